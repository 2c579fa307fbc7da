-- A client of OpenAI's API over cqueues' sockets, for many at once: each call waits for its socket
-- alone, so that a coroutine each of one queue is a client each.
local cjson = require "cjson"
local socket = require "cqueues.socket"

local streams = {}

local WAIT <const> = 900            -- seconds for whatever a server says next

--- A connection to this machine's port; nil: there is none.
---@param port integer
---@return table?
function streams.connect(port)
  local s = socket.connect { host = "127.0.0.1", port = port, nodelay = true }
  s:setmode("b", "bn")
  s:onerror(function(_, _, why) return why end)
  s:settimeout(WAIT)
  return s:connect(30) and s or nil
end

--- Sends a request; `more` are lines of its head.
function streams.post(s, path, body, more)
  return s:xwrite(("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    .. "Content-Length: %d\r\n%s\r\n%s"):format(path, #body, more or "", body), "bn", 30)
end

-- Status and length (nil: in chunks) of an answer; no status: the server is gone.
local function head(s)
  local status = tonumber((s:xread("*l", "b", WAIT) or ""):match "HTTP/1%.1 (%d+)")
  local length
  while true do
    local line = s:xread("*l", "b", WAIT)
    if not line then return nil end
    if line == "" or line == "\r" then return status, length end
    length = length or tonumber(line:lower():match "^content%-length: (%d+)")
  end
end

-- The next chunk of HTTP's; "" is the last one, nil: the server is gone.
local function chunk(s)
  local size = tonumber((s:xread("*l", "b", WAIT) or ""):match "^%x+", 16)
  if not size then return nil end
  local text = size == 0 and "" or s:xread(size, "b", WAIT)
  s:xread("*l", "b", WAIT)
  return text
end

--- The events of a stream as they come; `each` may return false, to leave.
---@param each fun(event: table): boolean?
---@return integer? status
---@return boolean done    whether [DONE] came
function streams.events(s, each)
  local status, length = head(s)
  if not status then return nil, false end
  if length then
    s:xread(length, "b", WAIT)
    return status, false
  end
  local rest, done = "", false
  while true do
    local text = chunk(s)
    if not text or text == "" then return status, text ~= nil and done end
    rest = rest .. text
    while true do
      -- a line that begins with a colon says nothing but that the server is still there
      local event, after = rest:match "^(.-)\n\n()"
      if not event then break end
      rest = rest:sub(after)
      local data = event:match "^data: (.*)"
      if data == "[DONE]" then done = true
      elseif data and each(cjson.decode(data)) == false then return status, done
      end
    end
  end
end

--- An answer that comes whole.
---@return table? answer
---@return integer? status
function streams.answer(s)
  local status, length = head(s)
  local text = ""
  if length then text = s:xread(length, "b", WAIT) or ""
  elseif status then
    for part in function() return chunk(s) end do
      if part == "" then break end
      text = text .. part
    end
  end
  local ok, value = pcall(cjson.decode, text)
  return ok and value or nil, status
end

return streams
