-- plain_schema.lua: a JSON Schema validator that follows the specification keyword by keyword, for
-- what pyramid.grammar.schema supports; random schemas, and values for them.
local json = require "pyramid.json"

local plain = {}

local R = math.random
local function pick(list) return list[R(#list)] end

local function kind(v)
  if v == json.null then return "null" end
  if type(v) == "table" then return json.keys(v) and "object" or "array" end
  return type(v)
end

-- JSON with keys in the order of the alphabet, which objects here keep anyway.
local function text(v)
  local k, parts = kind(v), {}
  if k == "null" then return "null" end
  if k == "array" then
    for i, one in ipairs(v) do parts[i] = text(one) end
    return "[" .. table.concat(parts, ",") .. "]"
  elseif k == "object" then
    for i, key in ipairs(json.keys(v)) do parts[i] = json.quote(key) .. ":" .. text(v[key]) end
    return "{" .. table.concat(parts, ",") .. "}"
  end
  return json.encode(v)
end
plain.text = text

-- All orders of a list's elements.
local function orders(t)
  if #t <= 1 then return { t } end
  local out = {}
  for i = 1, #t do
    local rest = table.move(t, 1, #t, 1, {})
    local first = table.remove(rest, i)
    for _, order in ipairs(orders(rest)) do
      table.insert(order, 1, first)
      out[#out + 1] = table.move(order, 1, #order, 1, {})
    end
  end
  return out
end

local MOST <const> = 120

-- All lists of one of each.
local function products(lists)
  local out = { {} }
  for _, list in ipairs(lists) do
    local more = {}
    for _, before in ipairs(out) do
      for _, one in ipairs(list) do
        local copy = table.move(before, 1, #before, 1, {})
        copy[#copy + 1] = one
        more[#more + 1] = copy
        if #more > MOST then error("too many", 0) end
      end
    end
    out = more
  end
  return out
end

-- A value's texts, for each order of the keys of each of its objects.
local function texts(v)
  local k, out = kind(v), {}
  if k ~= "array" and k ~= "object" then return { text(v) } end
  local inner = {}
  if k == "array" then
    for i, one in ipairs(v) do inner[i] = texts(one) end
    for _, parts in ipairs(products(inner)) do
      out[#out + 1] = "[" .. table.concat(parts, ",") .. "]"
    end
    return out
  end
  for i, key in ipairs(json.keys(v)) do
    inner[i] = {}
    for n, one in ipairs(texts(v[key])) do inner[i][n] = json.quote(key) .. ":" .. one end
  end
  for _, parts in ipairs(products(inner)) do
    for _, order in ipairs(orders(parts)) do
      out[#out + 1] = "{" .. table.concat(order, ",") .. "}"
      if #out > MOST then error("too many", 0) end
    end
  end
  return out
end

--- The texts of a value in every order of its objects' keys; nil: they are too many.
function plain.texts(v)
  local ok, found = pcall(texts, v)
  if ok then return found end
  if found ~= "too many" then error(found, 0) end
end

local function whole(v) return math.tointeger(v) ~= nil end

local valid
local tests = {
  type = function(_, names, v)
    for _, name in ipairs(type(names) == "table" and names or { names }) do
      if name == kind(v) or name == "integer" and kind(v) == "number" and whole(v) then
        return true
      end
    end
    return false
  end,
  enum = function(_, list, v)
    for _, one in ipairs(list) do if text(one) == text(v) then return true end end
    return false
  end,
  const = function(_, one, v) return text(one) == text(v) end,
  minimum = function(_, x, v) return kind(v) ~= "number" or v >= x end,
  maximum = function(_, x, v) return kind(v) ~= "number" or v <= x end,
  exclusiveMinimum = function(_, x, v) return kind(v) ~= "number" or v > x end,
  exclusiveMaximum = function(_, x, v) return kind(v) ~= "number" or v < x end,
  multipleOf = function(_, x, v) return kind(v) ~= "number" or whole(v) and v % x == 0 end,
  minLength = function(_, n, v) return kind(v) ~= "string" or utf8.len(v) >= n end,
  maxLength = function(_, n, v) return kind(v) ~= "string" or utf8.len(v) <= n end,
  minItems = function(_, n, v) return kind(v) ~= "array" or #v >= n end,
  maxItems = function(_, n, v) return kind(v) ~= "array" or #v <= n end,
  maxProperties = function(_, n, v) return kind(v) ~= "object" or #json.keys(v) <= n end,
  minProperties = function(_, n, v) return kind(v) ~= "object" or #json.keys(v) >= n end,
  required = function(_, names, v)
    if kind(v) ~= "object" then return true end
    for _, name in ipairs(names) do if v[name] == nil then return false end end
    return true
  end,
  properties = function(_, map, v)
    if kind(v) ~= "object" then return true end
    for name, schema in pairs(map) do
      if v[name] ~= nil and not valid(schema, v[name]) then return false end
    end
    return true
  end,
  additionalProperties = function(s, schema, v)
    if kind(v) ~= "object" then return true end
    for _, name in ipairs(json.keys(v)) do
      if (s.properties or {})[name] == nil and not valid(schema, v[name]) then return false end
    end
    return true
  end,
  prefixItems = function(_, list, v)
    for i, schema in ipairs(kind(v) == "array" and list or {}) do
      if v[i] ~= nil and not valid(schema, v[i]) then return false end
    end
    return true
  end,
  items = function(s, schema, v)
    for i = #(s.prefixItems or {}) + 1, kind(v) == "array" and #v or 0 do
      if not valid(schema, v[i]) then return false end
    end
    return true
  end,
  allOf = function(_, list, v)
    for _, one in ipairs(list) do if not valid(one, v) then return false end end
    return true
  end,
  anyOf = function(_, list, v)
    for _, one in ipairs(list) do if valid(one, v) then return true end end
    return false
  end,
  oneOf = function(_, list, v)
    local count = 0
    for _, one in ipairs(list) do count = count + (valid(one, v) and 1 or 0) end
    return count == 1
  end,
}

function valid(schema, v)
  if type(schema) == "boolean" then return schema end
  for key, wanted in pairs(schema) do
    if not tests[key](schema, wanted, v) then return false end
  end
  return true
end
plain.valid = valid

local function list_of(values, write)
  local parts = {}
  for i, one in ipairs(values) do parts[i] = write(one) end
  return "[" .. table.concat(parts, ",") .. "]"
end

--- The JSON of a schema: an empty schema is an object, an empty value without keys a list.
function plain.encode(schema)
  if type(schema) == "boolean" then return tostring(schema) end
  local keys, parts = {}, {}
  for key in pairs(schema) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do
    local value, shown = schema[key]
    if key == "enum" then shown = list_of(value, text)
    elseif key == "const" then shown = text(value)
    elseif key == "items" or key == "additionalProperties" then shown = plain.encode(value)
    elseif key == "prefixItems" or key == "allOf" or key == "anyOf" or key == "oneOf" then
      shown = list_of(value, plain.encode)
    elseif key == "properties" then
      local named, ones = {}, {}
      for name in pairs(value) do named[#named + 1] = name end
      table.sort(named)
      for k, name in ipairs(named) do
        ones[k] = ('"%s":%s'):format(name, plain.encode(value[name]))
      end
      shown = "{" .. table.concat(ones, ",") .. "}"
    else shown = json.encode(value) end
    parts[i] = json.quote(key) .. ":" .. shown
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

local names, strings = { "a", "b", "ba", "c" }, { "", "x", "é€", 'q"\\\n', "longer" }
local numbers = { -12, -3, -1.5, -1, 0, 0.25, 1, 1.5, 2, 2.25, 3, 7, 10, 99, 100, 104, 1000 }

function plain.value(depth)
  local which = R(depth > 0 and 7 or 4)
  if which == 1 then return pick { json.null, true, false } end
  if which <= 3 then return pick(numbers) end
  if which == 4 then return pick(strings) end
  local out = {}
  if which == 5 then
    for i = 1, R(0, 3) do out[i] = plain.value(depth - 1) end
    return out
  end
  local keys = {}
  for _, name in ipairs(names) do
    if R(2) == 1 then
      keys[#keys + 1], out[name] = name, plain.value(depth - 1)
    end
  end
  return json.with_keys(out, keys)
end

local function some(list, least)
  local out = {}
  for _, one in ipairs(list) do if R(2) == 1 then out[#out + 1] = one end end
  while #out < least do out[1] = list[1] end
  return out
end

--- A schema, whose properties are named in the order of the alphabet.
function plain.schema(depth)
  if R(12) == 1 then return R(3) > 1 end
  local s, which = {}, R(depth > 0 and 12 or 6)
  local function inner() return plain.schema(depth - 1) end
  if which == 1 then
    s.type = R(2) == 1 and pick { "null", "boolean", "string", "number", "integer", "object" }
      or some({ "integer", "string", "null", "array", "object" }, 1)
  elseif which == 2 then
    s[R(2) == 1 and "minimum" or "exclusiveMinimum"] = pick(numbers)
    if R(2) == 1 then s[R(2) == 1 and "maximum" or "exclusiveMaximum"] = pick(numbers) end
    if R(2) == 1 then s.type = pick { "integer", "number" } end
  elseif which == 3 then
    s[R(2) == 1 and "minLength" or "maxLength"] = R(0, 3)
    s.type = R(2) == 1 and "string" or nil
  elseif which == 4 then s.multipleOf = pick { 1, 2, 3, 7, 25 }
  elseif which == 5 then
    s.enum = {}
    for i = 1, R(4) do s.enum[i] = plain.value(1) end
    if R(3) == 1 then s.minLength = 2 end
    if R(3) == 1 then s.maximum = 2 end
  elseif which == 6 then s.const = plain.value(1)
  elseif which <= 9 then
    s.type = R(3) > 1 and "object" or nil
    if R(4) > 1 then
      s.properties = {}
      for _, name in ipairs(some(names, 1)) do s.properties[name] = inner() end
    end
    if R(2) == 1 then s.required = some({ "a", "b", "c" }, 1) end
    if R(3) > 1 then s.additionalProperties = R(2) == 1 and inner() end
    if R(4) == 1 then s.maxProperties = R(0, 3) end
    if R(4) == 1 then s.minProperties = R(0, 3) end
  elseif which == 10 then
    s.type = R(3) > 1 and "array" or nil
    if R(2) == 1 then s.items = inner() end
    if R(2) == 1 then s.prefixItems = { inner(), R(2) == 1 and inner() or nil } end
    if R(2) == 1 then s.minItems = R(0, 2) end
    if R(2) == 1 then s.maxItems = R(0, 3) end
  else
    s[which == 11 and pick { "anyOf", "oneOf" } or "allOf"] = { inner(), inner() }
    if R(2) == 1 then s.type = some({ "integer", "string", "object" }, 1) end
  end
  return s
end

return plain
