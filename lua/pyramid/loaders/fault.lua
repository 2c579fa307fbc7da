-- Failures of the world inside the loaders: raised where they are found, so that readers can be
-- written straight down, and turned into `nil, message, code` at the module's edge. Everything else
-- that is raised is a bug, and stays one.

local fault = {}

local Fault = {}

--- Raises a failure. Codes are pyramid's: "io", "format", "unsupported", …
---@param code string
---@param format string
function fault.raise(code, format, ...)
  error(setmetatable({ message = format:format(...), code = code }, Fault), 0)
end

--- Returns the values, or raises the failure that `nil, message, code` stands for.
function fault.check(value, message, code, ...)
  if value == nil then error(setmetatable({ message = message, code = code or "io" }, Fault), 0) end
  return value, message, code, ...
end

--- The same; a failure that is a file's fault, and does not say so, begins with the file's path.
---@param path string
function fault.check_of(path, value, message, code, ...)
  if value == nil and (code == "format" or code == "unsupported")
    and not message:find(path, 1, true) then
    message = ("%s: %s"):format(path, message)
  end
  return fault.check(value, message, code, ...)
end

local function finish(ok, value, ...)
  if ok then return value, ... end
  if getmetatable(value) == Fault then return nil, value.message, value.code end
  error(value, 0)
end

local function trace(err)
  return type(err) == "string" and debug and debug.traceback(err, 2) or err
end

--- Calls fn(...); returns its values, or nil, message, code.
---@return any value
---@return string? message
---@return string? code
function fault.catch(fn, ...)
  return finish(xpcall(fn, trace, ...))
end

--- What a file's text says, made fit for a message: control bytes as escapes, and not too long.
--- JSON's lists, objects and null by these names: their addresses would tell nobody anything.
---@param text any
---@return string
function fault.quote(text)
  local kind = type(text)
  text = kind == "table" and "(a list or an object)" or kind == "userdata" and "null"
    or tostring(text)
  if #text > 80 then text = text:sub(1, 77) .. "..." end
  return (text:gsub("[%c\127-\255]", function(c) return ("\\x%02x"):format(c:byte()) end))
end

return fault
