--- Another program that keeps one processor busy, as machines that are shared have: what it costs
--- is measured with it and without it, in turns.
---
--- It is a shell that counts, bound to the first processor that this process may use, where
--- `taskset` is there to do so. It ends when it is told to, and by itself within moments of the
--- bench.
local neighbour = {}

local SPIN = [[while kill -0 $PPID 2>/dev/null; do
  i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
done]]

-- The first processor of "Cpus_allowed_list: 0-3,8".
local function first_processor()
  local file = io.open "/proc/self/status"
  local text = file and file:read "a" or ""
  if file then file:close() end
  return text:match "Cpus_allowed_list:%s*(%d+)"
end

---@class pyramid.Neighbour
local Neighbour = {}
Neighbour.__index = Neighbour

---Begins to keep a processor busy.
---@return pyramid.Neighbour?
---@return string? message
function neighbour.start()
  local first = first_processor()
  local bind = first and os.execute "command -v taskset >/dev/null 2>&1"
    and ("taskset -c %s "):format(first) or ""
  local pipe, message = io.popen(("exec %ssh -c 'echo $$; %s'"):format(bind, SPIN), "r")
  local pid = pipe and pipe:read "n"
  if pid then return setmetatable({ pipe = pipe, pid = math.tointeger(pid) }, Neighbour) end
  if pipe then pipe:close() end
  return nil, message or "no process could be started"
end

---Ends it.
function Neighbour:close()
  if not self.pid then return end
  os.execute(("kill %d 2>/dev/null"):format(self.pid))
  self.pipe:close()
  self.pid = nil
end

Neighbour.__close = Neighbour.close
Neighbour.__gc = Neighbour.close

return neighbour
