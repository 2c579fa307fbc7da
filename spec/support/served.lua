-- A server in a process of its own, and plain ways to talk to it: what specs of `pyramid serve`
-- share.
local cjson = require "cjson"
local library = require "pyramid.serve.library"
local shell = require "spec.support.shell"

local served = {}

-- Objects of cjson decode null as userdata, which is neither nil nor anything else.
served.null = cjson.null

--- Why specs of it are pending; nil: they can run.
---@return string?
function served.missing()
  local modules, message = library.open()
  return not modules and message .. " (make serve-deps)" or nil
end

local Served = {}
Served.__index = Served

--- Starts `pyramid serve` with these words, on a free port.
---@param words string
---@return table
function served.start(words)
  local self = setmetatable({ folder = shell.folder() }, Served)
  local out = self.folder .. "/out"
  os.execute(("%s serve --port 0 %s >%s 2>&1 & echo $! >%s/pid"):format(shell.program, words, out,
    self.folder))
  for _ = 1, 600 do
    local file = io.open(out)
    local text = file and file:read "a" or ""
    if file then file:close() end
    self.port = math.tointeger(tonumber(text:match "serving [^\n]* on http://[^\n]*:(%d+)\n"))
    if self.port then
      local pid <close> = assert(io.open(self.folder .. "/pid"))
      self.pid = pid:read "n"
      self.url = "http://127.0.0.1:" .. self.port
      return self
    end
    os.execute "sleep 0.1"
  end
  error("the server does not come up: " .. self:log())
end

--- What it said so far.
function Served:log()
  local file <close> = assert(io.open(self.folder .. "/out"))
  return file:read "a"
end

--- Whether its process is there.
function Served:alive() return os.execute(("kill -0 %d 2>/dev/null"):format(self.pid)) == true end

--- Sends it a signal.
function Served:signal(name) os.execute(("kill -%s %d 2>/dev/null"):format(name, self.pid)) end

--- Waits until it has ended: false, if it has not after so many seconds.
function Served:ends(seconds)
  for _ = 1, seconds * 20 do
    if not self:alive() then return true end
    os.execute "sleep 0.05"
  end
  return false
end

function Served:stop()
  self:signal "INT"
  if not self:ends(10) then self:signal "KILL" end
  shell.remove(self.folder)
end

--- Asks by curl. A body is sent as JSON; the answer is decoded where it is JSON.
---@param path string
---@param body? table|string
---@param more? string     words for curl
---@return any answer, integer status, string text
function Served:ask(path, body, more)
  local file = ""
  if body then
    local name = os.tmpname()
    local out <close> = assert(io.open(name, "wb"))
    out:write(type(body) == "string" and body or cjson.encode(body))
    file = ("-H 'Content-Type: application/json' --data-binary @%s"):format(name)
    self.bodies = self.bodies or {}
    table.insert(self.bodies, name)
  end
  local text = shell.run(("curl -s -m 120 -w '\\n%%{http_code}' %s %s %s%s"):format(file,
    more or "", self.url, shell.quote(path)))
  for _, name in ipairs(self.bodies or {}) do os.remove(name) end
  self.bodies = nil
  local answer, status = text:match "^(.*)\n(%d+)$"
  local ok, value = pcall(cjson.decode, answer or "")
  return ok and value or answer, math.tointeger(tonumber(status)) or 0, answer
end

--- Waits until it writes no answer: false, if it still does after so many seconds.
function Served:rests(seconds)
  for _ = 1, seconds * 20 do
    local _, _, metrics = self:ask "/metrics"
    if metrics:match "pyramid_writing 0\n" then return true end
    os.execute "sleep 0.05"
  end
  return false
end

--- Asks for a stream: the data of its events, decoded, without [DONE], and whether that came.
---@return table[] events, boolean done, integer status
function Served:stream(path, body)
  body.stream = true
  local _, status, text = self:ask(path, body, "-N")
  local events, done = {}, false
  for data in text:gmatch "data: ([^\n]*)\n\n" do
    if data == "[DONE]" then done = true else events[#events + 1] = cjson.decode(data) end
  end
  return events, done, status
end

--- A connection of its own, for what no client would send. Blocking, with a time limit.
---@param seconds? number
---@return table   :write(text), :read(n or "*l"), :rest(), :close()
function Served:connect(seconds)
  local socket = require "cqueues.socket"
  local s = assert(socket.connect { host = "127.0.0.1", port = self.port, nodelay = true })
  s:setmode("b", "bn")
  s:settimeout(seconds or 10)
  s:onerror(function(_, _, why) return why end)
  assert(s:connect(10))
  local connection = {}
  function connection.write(_, text) return s:write(text) end
  function connection.read(_, what) return s:read(what) end
  function connection.rest()
    local parts = {}
    while true do
      local part = s:read(-4096)
      if not part then break end
      parts[#parts + 1] = part
    end
    return table.concat(parts)
  end
  function connection.shut() s:shutdown "w" end
  function connection.close() s:close() end
  return connection
end

--- One raw request and all that comes back.
---@param text string
---@param seconds? number
---@return string
function Served:raw(text, seconds)
  local connection = self:connect(seconds)
  connection:write(text)
  local answer = connection:rest()
  connection:close()
  return answer
end

return served
