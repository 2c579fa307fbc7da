--- Files out of a Python wheel, which is a zip file, without Python.
---
--- A zip file ends with a list of its members and where they begin. A deflated member is what a
--- gzip file holds between its head and its tail, and the list has what the tail needs:
---
---   zip   … | local head | deflated bytes        | …    list: method, CRC-32, sizes, place
---   gzip      1f 8b 08 …  | the same bytes        | CRC-32, size
---
--- so that gzip, which is on every system, inflates it and checks the CRC-32.
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local transfer = require "pyramid.tools.get.transfer"

local wheel = {}

local END, ENTRY, LOCAL = "PK\5\6", "PK\1\2", "PK\3\4"
local STORED, DEFLATED = 0, 8
local GZIP_HEAD = "\x1f\x8b\8\0\0\0\0\0\0\3"
local BLOCK = 1 << 20

-- Bytes of a file, all of them or a fault.
local function bytes_at(file, at, count, path)
  file:seek("set", at)
  local bytes = count > 0 and file:read(count) or ""
  if #(bytes or "") ~= count then fault.raise("format", "%s: a zip file that is cut off", path) end
  return bytes
end

-- The member of that name: { method, crc, packed, size, at }, `at` its local head's place.
local function find(file, size, member, path)
  local tail = bytes_at(file, math.max(0, size - (1 << 16) - 22), math.min(size, (1 << 16) + 22),
    path)
  local last, at = nil, 1
  while true do
    at = tail:find(END, at, true)
    if not at then break end
    last, at = at, at + 1
  end
  if not last or #tail - last + 1 < 22 then fault.raise("format", "%s: not a zip file", path) end
  local count, length, first = ("<I2I4I4"):unpack(tail, last + 10)
  if first + length > size then fault.raise("format", "%s: its list lies outside of it", path) end
  local list = bytes_at(file, first, length, path)
  at = 1
  for _ = 1, count do
    if at + 45 > #list or list:sub(at, at + 3) ~= ENTRY then break end
    local method, crc, packed, unpacked, name, extra, comment, place =
      ("<I2xxxxI4I4I4I2I2I2xxxxxxxxI4"):unpack(list, at + 10)
    if list:sub(at + 46, at + 45 + name) == member then
      return { method = method, crc = crc, packed = packed, size = unpacked, at = place }
    end
    at = at + 46 + name + extra + comment
  end
  fault.raise("format", "%s: holds no %s", path, member)
end

local function append(path, member, target)
  local file <close>, size = fault.check(files.open(path))
  local found = find(file, size, member, path)
  if found.method ~= STORED and found.method ~= DEFLATED then
    fault.raise("format", "%s: %s is packed by method %d, neither stored nor deflated", path,
      member, found.method)
  end
  local head = bytes_at(file, found.at, 30, path)
  local name, extra = ("<I2I2"):unpack(head, 27)
  local first = found.at + 30 + name + extra
  if head:sub(1, 4) ~= LOCAL or first + found.packed > size then
    fault.raise("format", "%s: %s is not where the list says", path, member)
  end
  -- Who reads goes on to the end though writing has failed: a pipe that is closed would end this
  -- program.
  local reader = found.method == STORED and "cat" or "gzip -dc"
  local pipe = assert(io.popen(("%s >>%s 2>/dev/null; status=$?; cat >/dev/null; exit $status")
    :format(reader, transfer.quote(target)), "w"))
  if found.method == DEFLATED then pipe:write(GZIP_HEAD) end
  file:seek("set", first)
  local left = found.packed
  while left > 0 do
    local block = file:read(math.min(left, BLOCK))
    if not block then break end
    pipe:write(block)
    left = left - #block
  end
  if found.method == DEFLATED then pipe:write(("<I4I4"):pack(found.crc, found.size)) end
  if not pipe:close() or left > 0 then
    fault.raise("io", "%s: %s was not unpacked: a broken file, no program gzip, or a full disk", path,
      member)
  end
  return true
end

---Appends a member of a wheel to a file.
---@param path string    the wheel
---@param member string  its name there
---@param target string
---@return true?
---@return string? message
---@return string? code
function wheel.append(path, member, target) return fault.catch(append, path, member, target) end

return wheel
