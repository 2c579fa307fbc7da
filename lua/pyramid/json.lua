--- JSON: texts to values by a strict reader written in C (lua/ljson.c), values to texts here.
---
--- Reading follows RFC 8259 to the letter; keys that come twice, text that is not UTF-8 and numbers
--- beyond doubles are refused with line and column. Whole numbers are integers, null is json.null.
--- Writing sorts keys, so that equal values give equal texts. Neither depends on the locale, and
--- want of memory is an error like any other.
local core = require "pyramid.core"

local json = {
  null = core.json_null,
  --- The list of nothing, for writing: an empty table is an object.
  empty_list = setmetatable({}, { __newindex = function()
    error("json.empty_list is constant", 2)
  end }),
  --- Nesting: configurations have 5 or 6 levels, tokenizers 8.
  DEPTH_MAX = 64,
  --- Values of a text: the largest tokenizers have two million, and four million empty tables are
  --- 340 MB of memory.
  VALUES_MAX = 1 << 22,
}

---@class pyramid.JsonLimits
---@field depth? integer   levels of nesting, up to 200
---@field values? integer  numbers, strings, objects, … in all
---@field nonfinite? boolean
---  reads NaN, Infinity and -Infinity, which Python's json module writes and JSON does not have

---@field ordered? boolean
---  objects know the order of their keys (json.keys), and an empty one that it is no list

---The value of a JSON text.
---@param text string
---@param limits? pyramid.JsonLimits
---@return any value       nil for a text that is no JSON; null is json.null
---@return string? message with line and column
---@return string? code    "format"
function json.decode(text, limits)
  limits = limits or {}
  local value, message = core.json_decode(text, limits.depth or json.DEPTH_MAX,
    limits.values or json.VALUES_MAX, limits.nonfinite, limits.ordered)
  if value == nil then return nil, message, "format" end
  return value
end

---The keys of a table in the order they were read in, where it was an object that was read so.
---@param t table
---@return string[]?
function json.keys(t)
  local meta = getmetatable(t)
  return type(meta) == "table" and rawget(meta, "json_keys") or nil
end

---Gives a table the order of its keys.
---@param t table
---@param keys string[]
---@return table t
function json.with_keys(t, keys) return setmetatable(t, { json_keys = keys }) end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n",
  ["\r"] = "\\r", ["\t"] = "\\t" }

local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end

--- Bytes that are no UTF-8 become U+FFFD each: what is cut in the middle of a character can be
--- written, too.
local function valid(text)
  local at, parts = 1, {}
  while true do
    local length, wrong = utf8.len(text, at)
    parts[#parts + 1] = text:sub(at, length and #text or wrong - 1)
    if length then return table.concat(parts) end
    parts[#parts + 1] = "\u{FFFD}"
    at = wrong + 1
  end
end

---A text in quotes.
---@param text string
---@return string
function json.quote(text)
  if not utf8.len(text) then text = valid(text) end
  return '"' .. text:gsub('[\0-\31"\\\127]', escape) .. '"'
end

local function number_text(value)
  if math.type(value) == "integer" then return ("%d"):format(value) end
  if value ~= value or value == math.huge or value == -math.huge then return "null" end
  return ("%.14g"):format(value)
end

--- The length of a table as a list: its keys are 1 to n, with holes that are not more than half, or
--- few; else nil.
local function list_length(t)
  local most, count = 0, 0
  for key in next, t do
    if math.type(key) ~= "integer" or key < 1 then return nil end
    most, count = math.max(most, key), count + 1
  end
  if most > 10 and most > 2 * count then error("json.encode: a list with too many holes", 0) end
  return count > 0 and most or nil
end

local function all_integers(t, length)
  for i = 1, length do
    if math.type(t[i]) ~= "integer" then return false end
  end
  return true
end

local encode_into

local function encode_table(t, out, depth)
  if depth > json.DEPTH_MAX then error("json.encode: tables nested too deep, or in a circle", 0) end
  local length = list_length(t)
  if length then
    if all_integers(t, length) then      -- C writes long lists of them, ten times as fast
      out[#out + 1] = "[" .. table.concat(t, ",", 1, length) .. "]"
      return
    end
    for i = 1, length do
      out[#out + 1] = i == 1 and "[" or ","
      encode_into(t[i], out, depth)
    end
    out[#out + 1] = "]"
    return
  end
  local names, values = {}, {}
  for key, value in next, t do
    local name = math.type(key) and number_text(key) or key
    if type(name) ~= "string" then
      error(("json.encode: a key that is a %s"):format(type(key)), 0)
    end
    names[#names + 1], values[name] = name, value
  end
  table.sort(names)
  for i, name in ipairs(names) do
    out[#out + 1] = (i == 1 and "{" or ",") .. json.quote(name) .. ":"
    encode_into(values[name], out, depth)
  end
  out[#out + 1] = #names == 0 and "{}" or "}"
end

function encode_into(value, out, depth)
  local kind = type(value)
  if value == json.empty_list then out[#out + 1] = "[]"
  elseif kind == "table" then encode_table(value, out, depth + 1)
  elseif kind == "string" then out[#out + 1] = json.quote(value)
  elseif kind == "number" then out[#out + 1] = number_text(value)
  elseif kind == "boolean" then out[#out + 1] = tostring(value)
  elseif value == nil or value == json.null then out[#out + 1] = "null"
  else error(("json.encode: a %s"):format(kind), 0) end
end

---The JSON text of a value, on one line. A table whose keys are 1 to n is a list (nil in between is
---null), any other an object, as is the empty one; keys are sorted. NaN and infinities are null.
---Raises on what JSON has no word for.
---@param value any
---@return string
function json.encode(value)
  local _ <close> = core.plain_locale()
  local out = {}
  encode_into(value, out, 0)
  return table.concat(out)
end

return json
