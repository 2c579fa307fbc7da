--- Values as templates see them: Python's, as far as Jinja shows them.
---
--- Texts, numbers and booleans are Lua's. None, undefined values, lists, dicts (which keep their
--- order), functions and namespaces are tables of the classes below. Lua's nil is never a value
--- here.
local fault = require "pyramid.jinja.fault"
local json = require "pyramid.json"
local text = require "pyramid.jinja.text"

local values = {}

--- Nesting of a message's data: more, or a table that holds itself, is refused.
local DEPTH = 64

local function class(name) return { __name = name } end
local None, Undefined, List, Dict, Function, Namespace, Markup = class "None", class "undefined",
  class "list",
  class "dict", class "function", class "namespace", class "Markup"

values.none = setmetatable({}, None)

--- What a name or key that there is not stands for; `what` names it in messages.
function values.undefined(what) return setmetatable({ what = what }, Undefined) end

--- A list of items 1..n. `form`: "list", "tuple", "view" (of a dict), "range", or "generator",
--- which can be read once.
function values.list(items, form)
  return setmetatable({ items = items, form = form or "list" }, List)
end

function values.dict() return setmetatable({ keys = {}, map = {} }, Dict) end

--- A function of (evaluator, args, named): args an array, named a table by name. `name` for
--- messages.
function values.func(name, call) return setmetatable({ name = name, call = call }, Function) end

--- A text that the filters `safe` and `escape` made: what is joined to it is escaped for HTML, as
--- Jinja's own Markup is.
function values.markup(s) return setmetatable({ text = s }, Markup) end

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["'"] = "&#39;",
  ['"'] = "&#34;" }
function values.escape(s) return (s:gsub("[&<>'\"]", entities)) end

function values.namespace() return setmetatable({ map = {} }, Namespace) end

local function is_class(value, metatable)
  return type(value) == "table" and getmetatable(value) == metatable
end
function values.is_none(v) return v == values.none end
function values.is_undefined(v) return is_class(v, Undefined) end
function values.is_list(v) return is_class(v, List) end
function values.is_dict(v) return is_class(v, Dict) end
function values.is_function(v) return is_class(v, Function) end
function values.is_namespace(v) return is_class(v, Namespace) end
function values.is_markup(v) return is_class(v, Markup) end

--- Python's name of a value's type, for messages.
function values.type(v)
  local kind = type(v)
  if kind == "string" then return "str" elseif kind == "boolean" then return "bool"
  elseif kind == "number" then return math.type(v) == "integer" and "int" or "float" end
  if values.is_list(v) then return v.form end
  if values.is_none(v) then return "NoneType" end
  return getmetatable(v).__name
end

-- ---- dicts --------------------------------------------------------------------------------------

-- Keys that are equal in Python are one key: 1, 1.0 and True. Texts are kept apart from numbers by
-- their Lua type.
local function key_of(key)
  if key == true then return 1 elseif key == false then return 0 end
  if math.type(key) == "float" then return math.tointeger(key) or key end
  if type(key) == "table" and not values.is_none(key) then
    fault.raise("argument", nil, "a %s cannot be a key", values.type(key))
  end
  return key
end

function values.set(dict, key, value)
  local k = key_of(key)
  if dict.map[k] == nil then dict.keys[#dict.keys + 1] = key end
  dict.map[k] = value
end

--- The value of a key, or nil.
function values.get(dict, key)
  if type(key) == "table" and not values.is_none(key) then return nil end
  return dict.map[key_of(key)]
end

-- ---- from Lua -----------------------------------------------------------------------------------

-- Lua's tables have no order; templates that print a dict see the keys in the order that people
-- write them in, unless the table came out of a JSON text that had an order of its own.
local usual = { "type", "id", "function", "role", "name", "description", "parameters", "properties",
  "required", "content",
  "reasoning_content", "tool_calls", "arguments" }
local rank = {}
for i, key in ipairs(usual) do rank[key] = i end

local function before(a, b)
  local ra, rb = rank[a] or #usual + 1, rank[b] or #usual + 1
  if ra ~= rb then return ra < rb end
  return a < b
end

-- The order of a table's keys: those that the text had, and any that were added since behind them.
local function sort_keys(keys, order)
  if not order then return table.sort(keys, before) end
  local place = {}
  for i, name in ipairs(order) do place[name] = i end
  table.sort(keys, function(a, b)
    local pa, pb = place[a] or #order + 1, place[b] or #order + 1
    if pa ~= pb then return pa < pb end
    return before(a, b)
  end)
end

-- An empty table says not what it is; under these keys it is a dict.
local dict_keys = { properties = true, arguments = true, parameters = true, ["function"] = true }

--- A value of a template from one of Lua. Sequences become lists, other tables dicts; a light
--- userdata is JSON's null.
---@param v any
---@param key string? the key it stands under
---@param depth integer?
---@param made table? what tables became, so that one that stands in many places is converted once
function values.from_lua(v, key, depth, made)
  depth, made = depth or 0, made or {}
  local kind = type(v)
  if kind == "string" or kind == "number" or kind == "boolean" then return v end
  if kind == "nil" or kind == "userdata" then return values.none end
  if kind ~= "table" then fault.raise("argument", nil, "a message cannot hold a %s", kind) end
  local metatable = getmetatable(v)
  if metatable == List or metatable == Dict or metatable == None then return v end
  if made[v] then return made[v] end
  if depth > DEPTH then
    fault.raise("argument", nil, "a message is nested deeper than %d levels", DEPTH)
  end
  local order = json.keys(v)
  if v[1] ~= nil or (next(v) == nil and not order and not dict_keys[key]) then
    local items = {}
    for i = 1, #v do items[i] = values.from_lua(v[i], nil, depth + 1, made) end
    made[v] = values.list(items)
    return made[v]
  end
  local keys = {}
  for name in pairs(v) do
    if type(name) ~= "string" then
      fault.raise("argument", nil, "a message has a key that is no text")
    end
    keys[#keys + 1] = name
  end
  sort_keys(keys, order)
  local dict = values.dict()
  for _, name in ipairs(keys) do
    values.set(dict, name, values.from_lua(v[name], name, depth + 1, made))
  end
  made[v] = dict
  return dict
end

-- ---- questions ----------------------------------------------------------------------------------

function values.truth(v)
  if type(v) == "boolean" then return v end
  if type(v) == "string" then return v ~= "" end
  if type(v) == "number" then return v ~= 0 end
  if values.is_none(v) or values.is_undefined(v) then return false end
  if values.is_markup(v) then return v.text ~= "" end
  if values.is_list(v) then return v.form == "generator" or #v.items > 0 end
  if values.is_dict(v) then return #v.keys > 0 end
  return true
end

--- The items that a loop over a value takes, as an array that is not to be changed.
function values.iterate(v)
  if values.is_list(v) then
    if v.form ~= "generator" then return v.items end
    local items = v.items
    v.items = {}                              -- a generator can be read once
    return items
  end
  if values.is_dict(v) then return v.keys end
  if type(v) == "string" then return text.characters(v) end
  if values.is_undefined(v) then return {} end
  fault.raise("argument", nil, "a value of type %s cannot be iterated", values.type(v))
end

local function number_of(v)
  if v == true then return 1 elseif v == false then return 0 end
  return type(v) == "number" and v or nil
end
values.number_of = number_of

--- Whether two values are equal. `spend(n)` is told of the work, which shared lists within lists
--- can make large.
function values.equal(a, b, spend)
  local x, y = number_of(a), number_of(b)
  if x and y then return x == y end
  if rawequal(a, b) then return true end
  if values.is_markup(a) then a = a.text end
  if values.is_markup(b) then b = b.text end
  if type(a) ~= "table" or type(b) ~= "table" then return a == b and type(a) == type(b) end
  if values.is_undefined(a) and values.is_undefined(b) then return true end
  if values.is_list(a) and values.is_list(b) then
    if a.form ~= b.form or a.form == "generator" or #a.items ~= #b.items then return false end
    spend(#a.items)
    for i, item in ipairs(a.items) do
      if not values.equal(item, b.items[i], spend) then return false end
    end
    return true
  end
  if values.is_dict(a) and values.is_dict(b) then
    if #a.keys ~= #b.keys then return false end
    spend(#a.keys)
    for _, key in ipairs(a.keys) do
      local other = values.get(b, key)
      if other == nil or not values.equal(values.get(a, key), other, spend) then return false end
    end
    return true
  end
  return false
end

--- -1, 0 or 1; raises for values that have no order.
function values.compare(a, b, spend)
  local x, y = number_of(a), number_of(b)
  if x and y then return x < y and -1 or x > y and 1 or 0 end
  if type(a) == "string" and type(b) == "string" then      -- bytes of UTF-8 sort as code points do
    if a == b then return 0 end
    local i, shorter = 1, math.min(#a, #b)
    spend(shorter)
    while i <= shorter and a:byte(i) == b:byte(i) do i = i + 1 end
    if i > shorter then return #a < #b and -1 or 1 end
    return a:byte(i) < b:byte(i) and -1 or 1
  end
  if values.is_list(a) and values.is_list(b) and a.form == b.form then
    spend(math.min(#a.items, #b.items))
    for i = 1, math.min(#a.items, #b.items) do
      if not values.equal(a.items[i], b.items[i], spend) then
        return values.compare(a.items[i], b.items[i], spend)
      end
    end
    return values.compare(#a.items, #b.items, spend)
  end
  fault.raise("argument", nil, "%s and %s have no order", values.type(a), values.type(b))
end

--- Tells of the work of looking for `part` in `s`, at worst the product of their lengths; and eight
--- of it for each place where that begins anew, as it does at each of "aaaa" for "aab".
function values.spend_search(s, part, spend) spend(8 * #s + ((#s * #part) >> 6)) end

--- Whether `container` holds `item`, as Python's `in`.
function values.contains(container, item, spend)
  if type(container) == "string" then
    if type(item) ~= "string" then
      fault.raise("argument", nil,
        "only a text can be looked for in a text, not a value of type %s", values.type(item))
    end
    values.spend_search(container, item, spend)
    return container:find(item, 1, true) ~= nil
  end
  if values.is_dict(container) then
    if values.is_undefined(item) then return false end
    return values.get(container, item) ~= nil
  end
  for _, other in ipairs(values.iterate(container)) do
    spend(1)
    if values.equal(other, item, spend) then return true end
  end
  return false
end

-- ---- as text ------------------------------------------------------------------------------------

--- repr() of a float: the shortest digits that read back the same, with a dot or an exponent; in
--- any locale.
function values.float(x)
  if x ~= x then return "nan" elseif x == math.huge then return "inf" elseif x == -math.huge then
    return "-inf"
  end
  local digits
  for precision = 1, 17 do
    digits = ("%." .. precision - 1 .. "e"):format(x):gsub("[^%d%-+e]", ".")
    local mantissa, exponent = digits:match "^(.-)e(.*)$"
    local whole = mantissa:gsub("[%.%-]", "")
    -- the same number again, by Lua's own reader, which knows the locale's point
    local point = ("%.1f"):format(0.5):match "0(.)5"
    if tonumber((digits:gsub("%.", point))) == x then
      local sign, e = x < 0 or 1 / x < 0, math.tointeger(tonumber(exponent))
      whole = whole:gsub("0+$", "")
      if whole == "" then whole = "0" end
      local out
      if e < -4 or e >= 16 then
        out = whole:sub(1, 1) .. (#whole > 1 and "." .. whole:sub(2) or "")
          .. ("e%s%02d"):format(e < 0 and "-" or "+", math.abs(e))
      elseif e < 0 then
        out = "0." .. ("0"):rep(-e - 1) .. whole
      else
        if #whole < e + 2 then whole = whole .. ("0"):rep(e + 2 - #whole) end
        out = whole:sub(1, e + 1) .. "." .. whole:sub(e + 2)
      end
      return (sign and "-" or "") .. out
    end
  end
end

local function number_text(v)
  return math.type(v) == "integer" and ("%d"):format(v) or values.float(v)
end

--- repr() of a value. `spend(bytes)` is told of what it makes.
function values.repr(v, spend, depth)
  depth = depth or 0
  if depth > DEPTH then
    fault.raise("argument", nil, "a value is nested deeper than %d levels", DEPTH)
  end
  if type(v) ~= "table" then
    if type(v) == "string" then
      spend(#v)
      return text.repr(v)
    end
    return type(v) == "number" and number_text(v) or (v and "True" or "False")
  end
  if values.is_none(v) then return "None" end
  if values.is_undefined(v) then return "Undefined" end
  if values.is_list(v) then
    if v.form ~= "list" and v.form ~= "tuple" then
      fault.raise("unsupported", nil, "a %s is printed", v.form)
    end
    local parts = {}
    for i, item in ipairs(v.items) do parts[i] = values.repr(item, spend, depth + 1) end
    spend(2 * #parts)
    local inner = table.concat(parts, ", ")
    if v.form == "tuple" then return "(" .. inner .. (#parts == 1 and "," or "") .. ")" end
    return "[" .. inner .. "]"
  end
  if values.is_dict(v) then
    local parts = {}
    for i, key in ipairs(v.keys) do
      parts[i] = values.repr(key, spend, depth + 1) .. ": " .. values.repr(values.get(v, key),
        spend, depth + 1)
    end
    spend(2 * #parts)
    return "{" .. table.concat(parts, ", ") .. "}"
  end
  fault.raise("unsupported", nil, "a %s is printed", values.type(v))
end

--- str() of a value: what {{ value }} writes.
function values.text(v, spend)
  if type(v) == "string" then return v end
  if values.is_undefined(v) then return "" end
  if values.is_markup(v) then return v.text end
  return values.repr(v, spend)
end

-- ---- as JSON ------------------------------------------------------------------------------------

local json_escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r",
  ["\t"] = "\\t", ["\b"] = "\\b", ["\f"] = "\\f" }

local function json_string(s, ascii)
  s = s:gsub('[%c"\\]', function(c) return json_escapes[c] or c:byte() < 0x20
    and ("\\u%04x"):format(c:byte()) or c end)
  if not ascii or text.is_ascii(s) then return '"' .. s .. '"' end
  local out = {}
  for _, c in ipairs(text.characters(s)) do
    if #c > 1 then
      local cp = utf8.codepoint(c)
      if cp >= 0x10000 then
        cp = cp - 0x10000
        c = ("\\u%04x\\u%04x"):format(0xD800 + (cp >> 10), 0xDC00 + (cp & 0x3FF))
      else
        c = ("\\u%04x"):format(cp)
      end
    end
    out[#out + 1] = c
  end
  return '"' .. table.concat(out) .. '"'
end

--- json.dumps(v, …) as the filter tojson of chat templates calls it. o: { indent (text or nil),
--- item, key (separators), ascii, sort }.
function values.json(v, o, spend, indent, depth)
  depth = depth or 0
  if depth > DEPTH then
    fault.raise("argument", nil, "a value is nested deeper than %d levels", DEPTH)
  end
  if type(v) == "string" then
    spend(#v)
    return json_string(v, o.ascii)
  end
  if type(v) == "boolean" then return v and "true" or "false" end
  if type(v) == "number" then
    if v ~= v then return "NaN" end
    if v == math.huge then return "Infinity" elseif v == -math.huge then return "-Infinity" end
    return number_text(v)
  end
  if values.is_none(v) then return "null" end
  local parts, open, close = {}, "[", "]"
  local inner = o.indent and (indent or "\n") .. o.indent
  if values.is_list(v) and (v.form == "list" or v.form == "tuple") then
    for i, item in ipairs(v.items) do parts[i] = values.json(item, o, spend, inner, depth + 1) end
  elseif values.is_dict(v) then
    open, close = "{", "}"
    local keys = v.keys
    if o.sort then
      keys = table.move(keys, 1, #keys, 1, {})
      table.sort(keys, function(a, b) return values.compare(a, b, spend) < 0 end)
    end
    for i, key in ipairs(keys) do
      local name = type(key) == "string" and key or values.json(key, o, spend)
      parts[i] = json_string(name, o.ascii) .. o.key .. values.json(values.get(v, key), o, spend,
        inner, depth + 1)
    end
  else
    fault.raise("argument", nil, "a value of type %s cannot be written as JSON", values.type(v))
  end
  spend(#parts * (2 + #(inner or "")))
  if #parts == 0 then return open .. close end
  if not inner then return open .. table.concat(parts, o.item) .. close end
  return open .. inner .. table.concat(parts, o.item .. inner) .. (indent or "\n") .. close
end

return values
