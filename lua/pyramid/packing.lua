--- Plain data as bytes: texts of any bytes, numbers, booleans, JSON's null, sequences, and tables
--- by text, which keep the order of their keys where they know it (json.keys). For what
--- conversations write into files; JSON would not do, as its texts are UTF-8.
---
---   "s" text · "i" integer · "d" double · "t" · "f" · "n" null
---   "l" count, that many values                     { 1, "a" } is  l 2  i 1  s "a"
---   "o" count, that many texts and values           { a = true } is  o 1  "a" t
local json = require "pyramid.json"

local packing = {}

--- Levels of tables within tables: as deep as JSON texts may be.
local DEPTH <const> = 64

local pack_into

local function pack_table(value, out, depth)
  if depth > DEPTH then error("tables nested too deep, or in a circle", 0) end
  local count = #value
  if count > 0 then
    out[#out + 1] = string.pack("<c1i8", "l", count)
    for i = 1, count do pack_into(value[i], out, depth) end
    return
  end
  local order, names, listed = json.keys(value), {}, {}
  for _, name in ipairs(order or {}) do
    if value[name] ~= nil then names[#names + 1], listed[name] = name, true end
  end
  local more = {}
  for name in pairs(value) do
    if type(name) ~= "string" then error(("a key that is a %s"):format(type(name)), 0) end
    if not listed[name] then more[#more + 1] = name end
  end
  table.sort(more)
  table.move(more, 1, #more, #names + 1, names)
  -- an empty table that does not say that it is an object is a list
  if #names == 0 and not order then out[#out + 1] = string.pack("<c1i8", "l", 0) return end
  out[#out + 1] = string.pack("<c1i8", "o", #names)
  for _, name in ipairs(names) do
    out[#out + 1] = string.pack("<s8", name)
    pack_into(value[name], out, depth)
  end
end

function pack_into(value, out, depth)
  local kind = math.type(value) or type(value)
  if kind == "string" then out[#out + 1] = string.pack("<c1s8", "s", value)
  elseif kind == "integer" then out[#out + 1] = string.pack("<c1i8", "i", value)
  elseif kind == "float" then out[#out + 1] = string.pack("<c1d", "d", value)
  elseif kind == "boolean" then out[#out + 1] = value and "t" or "f"
  elseif value == json.null then out[#out + 1] = "n"
  elseif kind == "table" then pack_table(value, out, depth + 1)
  else error(("a %s"):format(kind), 0) end
end

---The bytes of a value. nil and what is in the way, where there are none for it.
---@param value any
---@return string?
---@return string? message
function packing.pack(value)
  local out = {}
  local ok, message = pcall(pack_into, value, out, 0)
  if not ok then return nil, message end
  return table.concat(out)
end

-- Raises on bytes that `pack` did not write; every value takes at least one of them, so that counts
-- that promise more end with the bytes.
local function unpack_from(bytes, at, depth)
  if depth > DEPTH then error("values nested too deep", 0) end
  local kind = bytes:sub(at, at)
  at = at + 1
  if kind == "s" then return string.unpack("<s8", bytes, at)
  elseif kind == "i" then return string.unpack("<i8", bytes, at)
  elseif kind == "d" then return string.unpack("<d", bytes, at)
  elseif kind == "t" then return true, at
  elseif kind == "f" then return false, at
  elseif kind == "n" then return json.null, at
  elseif kind ~= "l" and kind ~= "o" then error("a value of no kind", 0) end
  local count
  count, at = string.unpack("<i8", bytes, at)
  if count < 0 or count > #bytes then error("a count is out of range", 0) end
  local out, keys = {}, {}
  for i = 1, count do
    local name = i
    if kind == "o" then
      name, at = string.unpack("<s8", bytes, at)
      keys[i] = name
    end
    out[name], at = unpack_from(bytes, at, depth + 1)
  end
  return kind == "o" and json.with_keys(out, keys) or out, at
end

---The value that was packed at `at`, and where the bytes go on. Raises on what is none.
---@param bytes string
---@param at integer
---@return any value
---@return integer after
function packing.unpack(bytes, at) return unpack_from(bytes, at, 0) end

return packing
