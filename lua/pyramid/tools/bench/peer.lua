--- Another engine in a process of its own, which measures one thing at a time on request: JSON
--- lines over its standard input and a named pipe (scripts/maker/peers/channel.py says how, each
--- peer there what it is asked).
local json = require "pyramid.json"

local peer = {}

---@class pyramid.Peer
---@field name string
---@field version string
---@field system string
---@field kernels? string    what its products are made of
---@field peer string        what --peer calls it
local Peer = {}
Peer.__index = Peer
Peer.__name = "pyramid.peer"

local function quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

---Starts it. Its own complaints go to our standard error.
---@param python string   the interpreter
---@param script string
---@return pyramid.Peer?
---@return string? message
function peer.start(python, script)
  local pipe = os.tmpname()
  os.remove(pipe)
  if not os.execute("mkfifo " .. quote(pipe)) then return nil, "mkfifo failed" end
  local requests, message = io.popen(("exec %s %s >%s"):format(quote(python), quote(script),
    quote(pipe)), "w")
  -- waits for the shell to open the other end, which it always does
  local replies = requests and io.open(pipe, "r")
  os.remove(pipe)
  if not replies then return nil, message or "the pipe cannot be opened" end
  local self = setmetatable({ requests = requests, replies = replies }, Peer)
  local hello
  hello, message = self:read()
  if not hello then
    self:close()
    return nil, ("%s (%s): %s"):format(script, python, message)
  end
  self.name, self.version, self.system = hello.name, hello.version, hello.system
  self.kernels = hello.kernels
  return self
end

-- The next reply.
function Peer:read()
  local line = self.replies:read "l"
  if not line then
    self.gone = true
    return nil, "it has ended"
  end
  local reply = json.decode(line)
  if type(reply) ~= "table" then return nil, "it said: " .. line end
  if reply.error then return nil, reply.error end
  return reply
end

---Asks for one thing and waits for it.
---@param op string
---@param fields? table
---@return table? reply
---@return string? message
function Peer:ask(op, fields)
  if self.gone then return nil, "it has ended" end
  local request = { op = op }
  for key, value in pairs(fields or {}) do request[key] = value end
  self.requests:write(json.encode(request), "\n")
  self.requests:flush()
  return self:read()
end

---Ends it.
function Peer:close()
  if not self.requests then return end
  self.gone = true
  self.requests:close()                        -- the end of its input ends it
  self.replies:close()
  self.requests, self.replies = nil, nil
end

Peer.__close = Peer.close
Peer.__gc = Peer.close

return peer
