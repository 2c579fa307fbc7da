--- Files that nobody here made are opened only if they are files, and read up to a limit; files of
--- ours are replaced whole.
---
--- A folder of a model may hold anything under any name: a pipe that nobody writes to, a link to
--- /dev/zero. Opening such a thing by io.open would wait for ever or read for ever.
local core = require "pyramid.core"

local files = {}

---What a path names: "file", "folder", "other" (a device, a pipe, a socket), or nil.
---@param path string
---@return "file"|"folder"|"other"|nil
function files.kind(path)
  if path:find("\0", 1, true) then return nil end
  return core.file_kind(path)
end

---Whether there is something of that name.
---@param path string
---@return boolean
function files.exists(path) return files.kind(path) ~= nil end

---Opens a regular file for reading.
---@param path string
---@return file*?
---@return integer|string size  or a message
---@return string? code
function files.open(path)
  if path:find("\0", 1, true) then return nil, "a path with a zero byte", "io" end
  return core.open_regular(path)
end

---The bytes of a regular file, as many as it has when it is opened.
---@param path string
---@param limit integer  bytes that a file of this kind may have
---@return string?
---@return string? message
---@return string? code
function files.read(path, limit)
  local file <close>, size, code = files.open(path)
  if not file then return nil, size, code end
  if size > limit then
    return nil, ("%s: %d bytes are more than the limit of %d for such a file"):format(path, size,
      limit), "format"
  end
  local text, message = file:read(size)
  if not text and (message or size > 0) then
    return nil, ("%s: %s"):format(path, message or "cannot be read"), "io"
  end
  return text or ""
end

---Writes a file piece by piece; what is raised in it, and a nil with a message that it returns,
---leave the file as it was. `out` is the file itself, for writers in C.
---@alias pyramid.FileWriter fun(write: fun(...: string), out: userdata): any, string?, string?

---Replaces a file, or makes it: all of it or, on any failure, nothing. Symbolic links are followed
---and stay.
---@param path string
---@param content string|pyramid.FileWriter
---@return true?
---@return string? message
---@return string? code
function files.write(path, content)
  if path:find("\0", 1, true) then return nil, "a path with a zero byte", "io" end
  local out <close>, message, code = core.output(path)
  if not out then return nil, message, code end
  local failed, ok
  local function write(...)
    if failed then return end
    ok, message, code = out:write(...)
    failed = not ok
  end
  if type(content) == "string" then write(content)
  else
    local value, why, kind = content(write, out)
    if value == nil and why then return nil, why, kind end
  end
  if failed then return nil, message, code end
  return out:commit()
end

return files
