--- JSON Schema (draft 2020-12) as a grammar: what JSON a model may write.
---
--- Objects have their properties in the order in which `properties` names them (sorted, where the
--- schema is a Lua table), then those that `required` alone names, then others, if any may be.
--- White space: one space at most behind `,` and `:`, none elsewhere. Characters in strings stand
--- for themselves wherever they may. Bounded numbers have no exponent, integers no fraction.
---
--- Supported: true, false; type, enum, const; properties, required, additionalProperties,
--- minProperties, maxProperties; items, prefixItems, minItems, maxItems; minLength, maxLength,
--- pattern, format (date, time, date-time, uuid, ipv4), of which a string may have one; minimum,
--- maximum, exclusiveMinimum, exclusiveMaximum, multipleOf (an integer, without bounds); allOf,
--- anyOf, oneOf where no value can be of two of its schemas; $ref within the schema, $defs. What
--- describes alone (title, default, …) is passed over. All else is refused by name and place: a
--- keyword that was passed over would let through what it forbids. `format` asserts. An object that
--- allows others than its named properties (additionalProperties is not false) may say one of
--- those twice.
---
--- A schema becomes alternatives (`forms`), each of which says what each type must fulfil: allOf
--- and keywords side by side add to a form, anyOf makes several. What lies inside of objects and
--- arrays is a rule of its own, made once for each set of schemas that must hold together, so that
--- a schema may contain itself.
local core = require "pyramid.core"
local json = require "pyramid.json"
local pattern = require "pyramid.grammar.pattern"
local text = require "pyramid.grammar.text"

local schema = {}

-- Alternatives of one schema; rules in all.
local FORMS_MOST <const>, RULES_MOST <const>, COUNT_MOST <const> = 200, 8000, 5000
local TYPES = { "null", "boolean", "number", "string", "array", "object" }

local function fail(code, path, message, ...)
  error({ code, ("schema: %s: %s"):format(path, message:format(...)) }, 0)
end
local function refuse(path, message, ...) fail("unsupported", path, message, ...) end
local function wrong(path, message, ...) fail("format", path, message, ...) end

-- ---- values -------------------------------------------------------------------------------------

-- What a table is: lists have values from 1 on and no order of keys.
local function is_list(t)
  return type(t) == "table" and not json.keys(t) and (#t > 0 or next(t) == nil)
end

local function keys_of(t, path)
  local known = json.keys(t)
  if known then return known end
  local keys = {}
  for key in pairs(t) do
    if type(key) ~= "string" then wrong(path, "an object is wanted, with names as keys") end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

local function type_of(value)
  if value == json.null then return "null" end
  local kind = type(value)
  if kind == "table" then return is_list(value) and "array" or "object" end
  return kind
end

-- JSON without white space, the keys as they came.
local function compact(value, path, depth)
  depth = depth or 0
  if depth > 60 then wrong(path, "a value that is nested too deep") end
  local kind = type_of(value)
  local parts = {}
  if kind == "array" then
    for i, one in ipairs(value) do parts[i] = compact(one, path, depth + 1) end
    return "[" .. table.concat(parts, ",") .. "]"
  elseif kind == "object" then
    for i, key in ipairs(keys_of(value, path)) do
      parts[i] = json.quote(key) .. ":" .. compact(value[key], path, depth + 1)
    end
    return "{" .. table.concat(parts, ",") .. "}"
  elseif kind == "number" and (value ~= value or math.abs(value) == math.huge) then
    wrong(path, "a number that is none")
  elseif kind == "number" then
    local whole = math.tointeger(value)
    if whole then return ("%d"):format(whole) end
    for digits = 1, 17 do
      local shortest = ("%%.%dg"):format(digits):format(value)
      if tonumber(shortest) == value then return shortest end
    end
  elseif kind == "null" then return "null"
  elseif kind ~= "string" and kind ~= "boolean" then
    wrong(path, "a %s is no JSON", kind)
  end
  return json.encode(value)
end

-- The same, with keys in the order of the alphabet: equal for equal values.
local function canonical(value, path)
  if type_of(value) ~= "object" then
    if type_of(value) ~= "array" then return compact(value, path) end
    local parts = {}
    for i, one in ipairs(value) do parts[i] = canonical(one, path) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  local parts, keys = {}, {}
  for i, key in ipairs(keys_of(value, path)) do keys[i] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do parts[i] = json.quote(key) .. ":" .. canonical(value[key], path) end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- ---- reading keywords ---------------------------------------------------------------------------

local function count_of(value, path)
  local n = type(value) == "number" and math.tointeger(value)
  if not n or n < 0 then wrong(path, "an integer of 0 or more is wanted") end
  if n > COUNT_MOST then refuse(path, "more than %d", COUNT_MOST) end
  return n
end

local function number_of(value, path)
  if type(value) ~= "number" or value ~= value or math.abs(value) == math.huge then
    wrong(path, "a number is wanted")
  end
  if math.abs(value) > 2.0 ^ 53 then refuse(path, "a bound beyond 2^53") end
  return value
end

local function list_of(value, path, empty)
  if not is_list(value) or #value == 0 and not empty then wrong(path, "a list is wanted") end
  return value
end

-- The tighter of two bounds { value, inclusive }; `up`: the larger one is.
local function tighter(a, b, up)
  if not a then return b end
  if a[1] == b[1] then return { a[1], a[2] and b[2] } end
  if up then return a[1] > b[1] and a or b end
  return a[1] < b[1] and a or b
end

local function least(form, key, value)
  form[key] = math.max(form[key] or 0, value)
end
local function most(form, key, value)
  form[key] = math.min(form[key] or math.huge, value)
end

-- An object's or an array's part of a form: the list is copied when it grows, as forms share it.
local function member(form, list, at)
  local members = table.move(form[list] or {}, 1, #(form[list] or {}), 1, {})
  local found = members[at]
  local copy = {}
  for key, value in pairs(found or {}) do copy[key] = value end
  members[at], form[list] = copy, members
  return copy
end

local function only(form, kinds)
  local types = {}
  for kind, how in pairs(form.types) do
    local other = kinds[kind]
    if other then types[kind] = (how == "integer" or other == "integer") and "integer" or true end
  end
  form.types = types
end

local readers = {}

function readers.type(_, form, value, path)
  local kinds = {}
  for i, name in ipairs(type(value) == "string" and { value } or list_of(value, path)) do
    if name == "integer" then kinds.number = kinds.number or "integer"
    else
      local known = false
      for _, other in ipairs(TYPES) do known = known or other == name end
      if not known then wrong(path, "there is no type %s", tostring(value[i] or value)) end
      kinds[name] = true
    end
  end
  only(form, kinds)
end

local function of_values(form, values, path)
  local list, seen = {}, {}
  for _, value in ipairs(values) do
    local name = canonical(value, path)
    if not seen[name] and (not form.values or form.values[name]) then
      list[#list + 1], seen[name] = { value = value, name = name }, true
    end
  end
  for _, one in ipairs(list) do list[one.name] = true end
  form.values = list
end

-- A schema of another language may mean anything by the same words.
readers["$schema"] = function(_, _, value, path)
  if type(value) ~= "string" or not value:find "^https?://json%-schema%.org/" then
    refuse(path, "it is not one of json-schema.org's")
  end
end

function readers.enum(_, form, value, path) of_values(form, list_of(value, path, true), path) end
function readers.const(_, form, value, path) of_values(form, { value }, path) end

function readers.minimum(_, form, value, path)
  form.low = tighter(form.low, { number_of(value, path), true }, true)
end
function readers.maximum(_, form, value, path)
  form.high = tighter(form.high, { number_of(value, path), true }, false)
end
function readers.exclusiveMinimum(_, form, value, path)
  form.low = tighter(form.low, { number_of(value, path), false }, true)
end
function readers.exclusiveMaximum(_, form, value, path)
  form.high = tighter(form.high, { number_of(value, path), false }, false)
end
function readers.multipleOf(_, form, value, path)
  local n = type(value) == "number" and math.tointeger(value)
  if type(value) ~= "number" or value <= 0 then wrong(path, "a number above 0 is wanted") end
  if not n or n > 100 then refuse(path, "only integers up to 100") end
  if form.multiple and form.multiple ~= n then refuse(path, "two of them side by side") end
  form.multiple = n
end

function readers.minLength(_, form, value, path) least(form, "shortest", count_of(value, path)) end
function readers.maxLength(_, form, value, path) most(form, "longest", count_of(value, path)) end

function readers.pattern(_, form, value, path)
  if type(value) ~= "string" then wrong(path, "a text is wanted") end
  local found, message, code = pattern.read(value)
  if not found then fail(code, path, "%s", message) end
  if form.chars and form.chars ~= found then
    refuse(path, "two patterns or formats side by side")
  end
  form.chars = found
end

local YEAR, LEAP = "\\d{4}",
  "(\\d\\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
local DAY = ("(%s-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))|%s-02-29)")
  :format(YEAR, LEAP)
local ZONE = "([Zz]|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
local TIME = ("(([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d+)?%s|23:59:60(\\.\\d+)?([Zz]|[+-]00:00))"):format(ZONE)
local BYTE = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
local formats = {
  date = "^" .. DAY .. "$",
  time = "^" .. TIME .. "$",
  ["date-time"] = "^" .. DAY .. "[Tt]" .. TIME .. "$",
  uuid = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
  ipv4 = ("^%s(\\.%s){3}$"):format(BYTE, BYTE),
}

function readers.format(s, form, value, path)
  if type(value) ~= "string" then wrong(path, "a text is wanted") end
  if not formats[value] then
    local known = {}
    for name in pairs(formats) do known[#known + 1] = name end
    table.sort(known)
    refuse(path, "the format %s (known: %s)", json.quote(value), table.concat(known, ", "))
  end
  readers.pattern(s, form, formats[value], path)
end

-- properties, additionalProperties and required of one schema belong together, so they are read at
-- once, by whichever comes first; so are an array's.
local function read_object(s, form, node, path)
  local one = member(form, "objects", #(form.objects or {}) + 1)
  one.properties, one.names, one.others = {}, {}, node.additionalProperties
  if one.others == nil then one.others = true end
  one.others = s:note(one.others, path .. "/additionalProperties")
  if node.properties ~= nil then
    if type(node.properties) ~= "table" or is_list(node.properties) and #node.properties > 0 then
      wrong(path .. "/properties", "an object is wanted")
    end
    for i, name in ipairs(keys_of(node.properties, path .. "/properties")) do
      one.names[i] = name
      one.properties[name] = s:note(node.properties[name], path .. "/properties/" .. name)
    end
  end
  local required = {}
  for i, name in ipairs(form.required or {}) do required[i], required[name] = name, true end
  local more = node.required == nil and {} or list_of(node.required, path .. "/required", true)
  for _, name in ipairs(more) do
    if type(name) ~= "string" then wrong(path .. "/required", "names are wanted") end
    if not required[name] then required[#required + 1], required[name] = name, true end
  end
  form.required = required
end

local function read_array(s, form, node, path)
  local one = member(form, "arrays", #(form.arrays or {}) + 1)
  if is_list(node.items) and #node.items > 0 then
    refuse(path .. "/items", "a list of schemas; write prefixItems")
  end
  one.prefix, one.rest = {}, s:note(node.items == nil and true or node.items, path .. "/items")
  local first = node.prefixItems
  for i, item in ipairs(first == nil and {} or list_of(first, path .. "/prefixItems")) do
    one.prefix[i] = s:note(item, ("%s/prefixItems/%d"):format(path, i - 1))
  end
end

function readers.minItems(_, form, value, path) least(form, "fewest", count_of(value, path)) end
function readers.maxItems(_, form, value, path) most(form, "most", count_of(value, path)) end
function readers.minProperties(_, form, value, path)
  least(form, "few_keys", count_of(value, path))
end
function readers.maxProperties(_, form, value, path)
  most(form, "many_keys", count_of(value, path))
end

local together = { properties = read_object, additionalProperties = read_object,
  required = read_object, items = read_array, prefixItems = read_array }
local describing = {}
for name in ("title description default examples deprecated readOnly writeOnly $comment $defs "
  .. "definitions $vocabulary contentEncoding contentMediaType contentSchema"):gmatch "%S+" do
  describing[name] = true
end

-- ---- schemas ------------------------------------------------------------------------------------

local Schemas = {}
Schemas.__index = Schemas

-- A schema's number, by which a set of schemas is named; where it was met first.
function Schemas:note(node, path)
  if type(node) ~= "boolean" and (type(node) ~= "table" or is_list(node) and #node > 0) then
    wrong(path, "a schema is wanted: an object, true or false")
  end
  if not self.numbers[node] then
    self.nodes[#self.nodes + 1] = node
    self.numbers[node], self.paths[node] = #self.nodes, type(node) == "boolean" and "" or path
  end
  return node
end

-- What a $ref names: a pointer into the schema.
function Schemas:find(ref, path)
  if type(ref) ~= "string" then wrong(path, "a text is wanted") end
  local pointer = ref:match "^#(.*)$"
  if not pointer or pointer ~= "" and pointer:sub(1, 1) ~= "/" then
    refuse(path, "%s; only references within the schema (#/…)", json.quote(ref))
  end
  local node = self.root
  for part in pointer:gmatch "/([^/]*)" do
    part = part:gsub("%%(%x%x)", function(h) return string.char(tonumber(h, 16)) end)
      :gsub("~1", "/"):gsub("~0", "~")
    local next_one
    if type(node) == "table" then
      if is_list(node) and #node > 0 then
        local at = math.tointeger(tonumber(part))
        next_one = at and node[at + 1]
      else
        next_one = node[part]
      end
    end
    if next_one == nil then wrong(path, "%s names nothing", json.quote(ref)) end
    node = next_one
  end
  return self:note(node, ref)
end

local function copy_form(form)
  local copy = {}
  for key, value in pairs(form) do copy[key] = value end
  return copy
end

-- Adds to `out` the forms of what holds where all of `waiting` hold and `form` does. `seen`: those
-- that it holds already.
function Schemas:spread(waiting, form, seen, out)
  local node = waiting[#waiting]
  if node == nil then
    if next(form.types) then out[#out + 1] = form end
    if #out > FORMS_MOST then
      refuse("#", "its alternatives multiply to more than %d", FORMS_MOST)
    end
    return
  end
  waiting = table.move(waiting, 1, #waiting - 1, 1, {})
  if node == true or seen[node] then return self:spread(waiting, form, seen, out) end
  if node == false then return end
  local path, branches, read = self.paths[node], {}, {}
  form, seen = copy_form(form), copy_form(seen)
  seen[node] = true
  for _, key in ipairs(keys_of(node, path)) do
    local value, at = node[key], path .. "/" .. key
    if together[key] then
      if not read[together[key]] then together[key](self, form, node, path) end
      read[together[key]] = true
    elseif readers[key] then readers[key](self, form, value, at)
    elseif key == "$ref" then waiting[#waiting + 1] = self:find(value, at)
    elseif key == "allOf" then
      -- the first is looked at first: properties keep the order they have in the text
      for i = #list_of(value, at), 1, -1 do
        waiting[#waiting + 1] = self:note(value[i], ("%s/%d"):format(at, i - 1))
      end
    elseif key == "anyOf" or key == "oneOf" then
      for i, one in ipairs(list_of(value, at)) do self:note(one, ("%s/%d"):format(at, i - 1)) end
      if key == "oneOf" then self:check_apart(value, at) end
      branches[#branches + 1] = value
    elseif key == "$id" and node == self.root then goto continue
    elseif not describing[key] then
      refuse(at, "the keyword %s is not supported", json.quote(key))
    end
    ::continue::
  end
  local function each(i, chosen)
    if not branches[i] then return self:spread(chosen, form, seen, out) end
    for _, one in ipairs(branches[i]) do
      local more = table.move(chosen, 1, #chosen, 1, {})
      more[#more + 1] = one
      each(i + 1, more)
    end
  end
  each(1, waiting)
end

local function anything()
  local types = {}
  for _, kind in ipairs(TYPES) do types[kind] = true end
  return { types = types }
end

-- A set of schemas as a list in the order of their numbers, and its name.
function Schemas:set(list)
  local seen, sorted, names = {}, {}, {}
  for _, node in ipairs(list) do
    if node ~= true and not seen[node] then
      seen[node], sorted[#sorted + 1] = true, node
    end
  end
  table.sort(sorted, function(a, b) return self.numbers[a] < self.numbers[b] end)
  for i, node in ipairs(sorted) do names[i] = self.numbers[node] end
  return sorted, table.concat(names, " ")
end

function Schemas:forms(list)
  local sorted, name = self:set(list)
  if self.known[name] then return self.known[name] end
  local out = {}
  local backwards = {}
  for i = #sorted, 1, -1 do backwards[#backwards + 1] = sorted[i] end
  self:spread(backwards, anything(), {}, out)
  self.known[name] = out
  return out
end

-- ---- oneOf --------------------------------------------------------------------------------------

-- The schemas that hold for a key of a form's objects.
local function for_key(form, key)
  local list = {}
  for i, one in ipairs(form.objects or {}) do
    local its = one.properties[key]
    if its == nil then its = one.others end
    list[i] = its
  end
  return list
end

function Schemas:apart_objects(a, b, depth)
  if depth > 3 then return false end
  for x, y in pairs { [a] = b, [b] = a } do
    for _, key in ipairs(x.required or {}) do
      local theirs = for_key(y, key)
      for _, node in ipairs(theirs) do if node == false then return true end end
      if (y.required or {})[key]
        and self:are_apart(self:forms(for_key(x, key)), self:forms(theirs), depth + 1) then
        return true
      end
    end
  end
  return false
end

local function apart_numbers(a, b)
  for x, y in pairs { [a] = b, [b] = a } do
    if x.high and y.low and (x.high[1] < y.low[1]
      or x.high[1] == y.low[1] and not (x.high[2] and y.low[2])) then return true end
  end
  return false
end

local function apart_counts(a, b, least_key, most_key)
  return (a[most_key] or math.huge) < (b[least_key] or 0)
    or (b[most_key] or math.huge) < (a[least_key] or 0)
end

function Schemas:forms_apart(a, b, depth)
  if a.values or b.values then
    local x, y = a.values and a or b, a.values and b or a
    for _, one in ipairs(x.values) do
      local kind = type_of(one.value)
      if y.values then
        if y.values[one.name] then return false end
      elseif y.types[kind] and (y.types[kind] ~= "integer" or math.tointeger(one.value)) then
        return false
      end
    end
    return true
  end
  for kind in pairs(a.types) do
    if b.types[kind] then
      local apart = false
      if kind == "object" then apart = self:apart_objects(a, b, depth)
      elseif kind == "number" then apart = apart_numbers(a, b)
      elseif kind == "string" then apart = apart_counts(a, b, "shortest", "longest")
      elseif kind == "array" then apart = apart_counts(a, b, "fewest", "most") end
      if not apart then return false end
    end
  end
  return true
end

function Schemas:are_apart(a, b, depth)
  for _, x in ipairs(a) do
    for _, y in ipairs(b) do
      if not self:forms_apart(x, y, depth) then return false end
    end
  end
  return true
end

-- A value of two of the schemas is none of the oneOf: that there is none must be seen.
function Schemas:check_apart(list, path)
  if self.apart[list] then return end
  self.apart[list] = true
  for i = 1, #list do
    for k = i + 1, #list do
      if not self:are_apart(self:forms { list[i] }, self:forms { list[k] }, 0) then
        refuse(path, "a value may be of its schemas %d and %d at once, which it forbids; "
          .. "write anyOf, or give them different constants", i - 1, k - 1)
      end
    end
  end
end

-- ---- rules --------------------------------------------------------------------------------------

local COMMA, COLON = '"," " "?', '":" " "?'
-- Characters of strings that nothing is known of; escaped ones as any JSON may have them.
local BASE = [==[
char ::= [^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" unit)
unit ::= [0-9a-cefA-CEF] hex{3} | [dD] [0-7] hex{2} | [dD] [89abAB] hex{2} "\\u" [dD] [c-fC-F] hex{2}
hex ::= [0-9a-fA-F]
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]*)
number ::= integer ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
value ::= "null" | "true" | "false" | number | string | array | object
array ::= "[" (value ("," " "? value)*)? "]"
object ::= "{" (pair ("," " "? pair)*)? "}"
pair ::= string ":" " "? value
key-char ::= [^"\\\x00-\x1f] | "\\" (["\\bfnrt] | "u00" [01] [0-9a-f])
]==]

function Schemas:rule(body)
  self.count = self.count + 1
  if self.count > RULES_MOST then refuse("#", "it needs more than %d rules", RULES_MOST) end
  local name = "r" .. self.count
  self.rules[#self.rules + 1] = name .. " ::= " .. body
  return name
end

-- Strings but those of `names`: a trie of them, and at each of its characters any other.
function Schemas:other_keys(names)
  local root = { ends = false, after = {} }
  for _, name in ipairs(names) do
    local at = root
    for _, cp in utf8.codes(name) do
      at.after[cp] = at.after[cp] or { ends = false, after = {} }
      at = at.after[cp]
    end
    at.ends = true
  end
  local others = self.any_rest or self:rule 'key-char* "\\""'
  self.any_rest = others
  local function write(node)
    local list, ranges = {}, {}
    if not node.ends then list[1] = '"\\""' end
    local characters = {}
    for cp in pairs(node.after) do characters[#characters + 1] = cp end
    table.sort(characters)
    for _, cp in ipairs(characters) do
      ranges[#ranges + 1] = { cp, cp }
      list[#list + 1] = text.char { { cp, cp } } .. " " .. write(node.after[cp])
    end
    list[#list + 1] = text.char(text.negate(text.join(ranges))) .. " " .. others
    return self:rule(table.concat(list, " | "))
  end
  return '"\\"" ' .. write(root)
end

-- Named properties in their order, each with the schemas that hold for it.
local function named_keys(form)
  local names, seen = {}, {}
  local function add(name)
    if not seen[name] then names[#names + 1], seen[name] = name, true end
  end
  for _, one in ipairs(form.objects or {}) do
    for _, name in ipairs(one.names) do add(name) end
  end
  for _, name in ipairs(form.required or {}) do add(name) end
  return names
end

function Schemas:object(form)
  local required, few, many = form.required or {}, form.few_keys or 0, form.many_keys or math.huge
  local names, pairs_of, must = {}, {}, {}
  for _, name in ipairs(named_keys(form)) do
    local value = self:value(for_key(form, name))
    if value then
      names[#names + 1] = name
      pairs_of[#names] = text.literal(json.quote(name)) .. " " .. COLON .. " " .. value
      must[#names] = required[name] or false
    elseif required[name] then return nil end
  end
  if not form.objects and few == 0 and many == math.huge then return "object" end
  local others = {}
  for i, one in ipairs(form.objects or {}) do others[i] = one.others end
  local other_value = self:value(others)
  local other = other_value and self:rule(("%s %s %s"):format(self:other_keys(named_keys(form)),
    COLON, other_value))
  if few > #required and few > 1 and other then
    refuse(self.paths[form] or "#", "minProperties of an object that allows other properties than "
      .. "its named ones")
  end
  if few <= #required then few = 0 end
  local counts = few > 0 or many < math.huge
  if many == math.huge and not counts then many = nil end
  -- what may follow when `at` - 1 names are behind, and so many properties said; nil: nothing can
  local made = {}
  local function tail(at, said)
    local key = at .. " " .. (counts and said or math.min(said, 1))
    if made[key] ~= nil then return made[key] or nil end
    local list = {}
    local comma = said > 0 and COMMA .. " " or ""
    if many and said > many then return nil end
    if at > #names then
      local left = many and math.min(many - said, COUNT_MOST)
      local need = math.max(few - said, 0)
      if other and (not left or left > 0) then
        local more = ("(%s %s)"):format(COMMA, other)
        local function times(low, high)
          if high == 0 then return "" end
          return high and ("%s{%d,%d}"):format(more, low, high) or ("%s{%d,}"):format(more, low)
        end
        if said > 0 then list[1] = times(need, left)
        else
          local one = other .. " " .. times(math.max(need - 1, 0), left and left - 1)
          list[1] = need > 0 and one or ("(%s)?"):format(one)
        end
      elseif need == 0 then list[1] = '""' end
    else
      local with = (not many or said < many) and tail(at + 1, said + 1)
      if with then list[1] = comma .. pairs_of[at] .. " " .. with end
      local without = not must[at] and tail(at + 1, said)
      if without then list[#list + 1] = without end
    end
    if #list == 1 and list[1] == '""' then made[key] = '""'
    else made[key] = #list > 0 and self:rule(table.concat(list, " | ")) end
    return made[key] or nil
  end
  local inside = tail(1, 0)
  return inside and '"{" ' .. inside .. ' "}"'
end

function Schemas:array(form)
  local few, many = form.fewest or 0, form.most
  if not form.arrays and few == 0 and not many then return "array" end
  local prefix = 0
  for _, one in ipairs(form.arrays or {}) do prefix = math.max(prefix, #one.prefix) end
  local function item(at)
    local list = {}
    for i, one in ipairs(form.arrays or {}) do
      local its = one.prefix[at]
      if its == nil then its = one.rest end
      list[i] = its
    end
    return self:value(list)
  end
  local values = {}
  for at = 1, prefix do
    if many and at > many then break end
    values[at] = item(at)
    if not values[at] then
      many = at - 1
      break
    end
  end
  if #values < prefix then prefix = #values end
  local rest = (not many or many > prefix) and item(prefix + 1) or nil
  if not rest then many = math.min(many or math.huge, prefix) end
  if many and few > many then return nil end
  -- from the end to the beginning: what may follow the first `at` items
  local inside = ""
  if rest then
    local low = math.max(few - math.max(prefix, 1), 0)
    local high = many and many - math.max(prefix, 1)
    local more = high == 0 and "" or ("(%s %s){%d,%s}"):format(COMMA, rest, low, high or "")
    if prefix > 0 then inside = more
    else
      inside = rest .. " " .. more
      if few == 0 then inside = "(" .. inside .. ")?" end
    end
  end
  for at = prefix, 1, -1 do
    local one = (at > 1 and COMMA .. " " or "") .. values[at] .. " " .. inside
    inside = at > few and self:rule(one .. ' | ""') or one
  end
  return '"[" ' .. inside .. ' "]"'
end

function Schemas:number(form)
  local integer, low, high = form.types.number == "integer", form.low, form.high
  if form.multiple and (low or high) then
    refuse("#", "multipleOf beside bounds")
  end
  if form.multiple then return self:multiples(form.multiple) end
  if not low and not high then return integer and "integer" or "number" end
  if integer then
    local a = low and math.ceil(low[1])
    local b = high and math.floor(high[1])
    if a and a == low[1] and not low[2] then a = a + 1 end
    if b and b == high[1] and not high[2] then b = b - 1 end
    if a and b and a > b then return nil end
    return text.integers(a, b)
  end
  local found = text.numbers(low, high)
  if found == false then refuse("#", "a bound that cannot be written without an exponent") end
  return found
end

-- Integers that n divides: a rule for each remainder of what is read.
function Schemas:multiples(n)
  if n == 1 then return "integer" end
  local base = self.count
  self.count = base + n
  if self.count > RULES_MOST then refuse("#", "it needs more than %d rules", RULES_MOST) end
  for rest = 0, n - 1 do
    local list = {}
    for digit = 0, 9 do
      list[#list + 1] = ('"%d" r%d'):format(digit, base + 1 + (rest * 10 + digit) % n)
    end
    if rest == 0 then list[#list + 1] = '""' end
    self.rules[#self.rules + 1] = ("r%d ::= %s"):format(base + 1 + rest, table.concat(list, " | "))
  end
  local first = {}
  for digit = 1, 9 do first[digit] = ('"%d" r%d'):format(digit, base + 1 + digit % n) end
  return ('("0" | "-"? (%s))'):format(table.concat(first, " | "))
end

function Schemas:string(form)
  local a, b = form.shortest or 0, form.longest
  if b and a > b then return nil end
  if form.chars then
    if form.shortest or form.longest then
      refuse("#", "minLength or maxLength beside a pattern or a format")
    end
    return '"\\"" ' .. self:rule(form.chars) .. ' "\\""'
  end
  if a == 0 and not b then return "string" end
  return ('"\\"" char{%d,%s} "\\""'):format(a, b or "")
end

-- A value of an enum fits beside other keywords if the grammar of those has it.
function Schemas:values(form)
  local list, others = {}, copy_form(form)
  others.values = nil
  local limited = false
  for key in pairs(others) do limited = limited or key ~= "types" end
  for _, one in ipairs(form.values) do
    local kind = type_of(one.value)
    local how = form.types[kind]
    local fits = how and not (how == "integer" and not math.tointeger(one.value))
    if fits and limited then
      if kind == "object" or kind == "array" then
        if kind == "object" and (others.objects or others.few_keys or others.many_keys)
          or kind == "array" and (others.arrays or others.fewest or others.most) then
          refuse("#", "enum or const of objects or arrays beside keywords of theirs")
        end
      elseif kind == "string" or kind == "number" then
        local body = self[kind](self, others)
        fits = body ~= nil and self:matches(body, compact(one.value, "#"))
      end
    end
    if fits then list[#list + 1] = text.literal(compact(one.value, "#")) end
  end
  return list
end

function Schemas:text(root)
  return ("root ::= %s\n%s%s\n"):format(root, BASE, table.concat(self.rules, "\n"))
end

function Schemas:matches(body, value)
  local grammar, message, code = core.grammar(self:text(body))
  if not grammar then error({ code, message }, 0) end
  local found = grammar:match(value)
  grammar:close()
  return found == "whole"
end

-- The rule of a value for which all of some schemas hold; nil: there is none.
function Schemas:value(list)
  for _, node in ipairs(list) do if node == false then return nil end end
  local _, name = self:set(list)
  if name == "" then return "value" end
  if self.made[name] ~= nil then return self.made[name] or nil end
  local forms = self:forms(list)
  self.count = self.count + 1
  local rule, alternatives = "r" .. self.count, {}
  self.made[name] = rule                         -- for schemas that contain themselves
  for _, form in ipairs(forms) do
    if form.values then
      for _, one in ipairs(self:values(form)) do alternatives[#alternatives + 1] = one end
    else
      for _, kind in ipairs(TYPES) do
        local one
        if not form.types[kind] then one = nil
        elseif kind == "null" then one = '"null"'
        elseif kind == "boolean" then one = '("true" | "false")'
        else one = self[kind](self, form) end
        alternatives[#alternatives + 1] = one
      end
    end
  end
  if #alternatives == 0 then
    self.made[name] = false
    -- whoever refers to it from inside of itself finds a rule that nothing matches
    self.rules[#self.rules + 1] = rule .. " ::= []"
    return nil
  end
  self.rules[#self.rules + 1] = rule .. " ::= " .. table.concat(alternatives, " | ")
  return rule
end

---The grammar of a JSON Schema, in GBNF. Fails ("unsupported") on what it cannot say, and
---("format") on what is no schema, each with its place.
---@param root table|boolean
---@return string?
---@return string? message
---@return string? code
function schema.grammar(root)
  local s = setmetatable({ root = root, nodes = {}, numbers = {}, paths = {}, known = {},
    apart = {}, made = {}, rules = {}, count = 0 }, Schemas)
  local ok, found = pcall(function()
    local name = s:value { s:note(root, "#") }
    if not name then wrong("#", "no value can be of it") end
    return s:text(name)
  end)
  if ok then return found end
  if type(found) ~= "table" then error(found, 0) end
  return nil, found[2], found[1]
end

return schema
