--- Filters and tests: Jinja's own, as far as templates of conversations use them, and transformers'
--- tojson.
---
--- A filter is a function of (evaluator, value, args, named); a test as well, and returns a
--- boolean.
local fault = require "pyramid.jinja.fault"
local methods = require "pyramid.jinja.methods"
local text = require "pyramid.jinja.text"
local values = require "pyramid.jinja.values"

local filters, tests = {}, {}
local argument, integer_argument, text_argument = methods.argument, methods.integer_argument,
  methods.text_argument

local function items_of(e, v)
  local items = values.iterate(v)
  e:step(#items)
  return items
end

local function ascii_lower(v) return type(v) == "string" and (text.lower(v) or v) or v end

-- The getter of filters with `attribute`: a dotted path of names and numbers, or the item itself.
local function getter(e, attribute, default)
  if attribute == nil or values.is_none(attribute) then return function(item) return item end end
  local path = {}
  if math.type(attribute) == "integer" then path[1] = attribute
  else
    for part in text_argument("attribute", attribute):gmatch "[^.]+" do
      path[#path + 1] = math.tointeger(tonumber(part)) or part
    end
  end
  return function(item)
    for _, part in ipairs(path) do
      item = e:item(item, part)
      if default ~= nil and values.is_undefined(item) then return default end
    end
    return item
  end
end

-- ---- texts --------------------------------------------------------------------------------------

local function as_text(e, v) return e:text(v) end

local function from_method(name)
  filters[name] = function(e, v, args, named) return methods.find(as_text(e, v), name).call(e, args,
    named) end
end
for _, name in ipairs { "upper", "lower", "capitalize" } do from_method(name) end

function filters.title(e, v)
  local low = methods.cased("title", as_text(e, v), text.lower(as_text(e, v)))
  local out = low:gsub("([^%-%s%({%[<]+)", function(word) return text.upper(word:sub(1, 1))
    .. word:sub(2) end)
  return out
end

function filters.trim(e, v, args, named)
  local set = argument("trim", args, named, 1, "chars", values.none)
  local s = as_text(e, v)
  e:spend(#s)
  if values.is_none(set) then return text.strip(s, true, true) end
  return text.strip_set(s, text_argument("trim", set), true, true)
end

function filters.replace(e, v, args, named)
  local old = e:text(argument("replace", args, named, 1, "old"))
  local new = e:text(argument("replace", args, named, 2, "new"))
  local most = argument("replace", args, named, 3, "count", -1)
  if values.is_none(most) then most = -1 end
  return methods.replace(e, as_text(e, v), old, new, integer_argument("replace", most))
end

function filters.indent(e, v, args, named)
  local width = argument("indent", args, named, 1, "width", 4)
  local first = values.truth(argument("indent", args, named, 2, "first", false))
  local blank = values.truth(argument("indent", args, named, 3, "blank", false))
  local by = width
  if type(width) ~= "string" then
    width = integer_argument("indent", width)
    e:spend(math.max(width, 0))
    by = (" "):rep(width)
  end
  local lines = text.lines(as_text(e, v) .. "\n")
  e:spend(#by * #lines)
  for i = 2, #lines do
    if blank or lines[i] ~= "" then lines[i] = by .. lines[i] end
  end
  return (first and by or "") .. e:concat(lines, "\n")
end

function filters.string(e, v) return as_text(e, v) end
function filters.safe(e, v) return values.markup(as_text(e, v)) end

function filters.escape(e, v)
  if values.is_markup(v) then return v end
  local s = values.escape(as_text(e, v))
  e:spend(#s)
  return values.markup(s)
end
function filters.forceescape(e, v) return filters.escape(e, as_text(e, v)) end
filters.e = filters.escape

function filters.center(e, v, args, named)
  return methods.find(as_text(e, v), "center").call(e, { argument("center", args, named, 1, "width",
    80) }, {})
end

function filters.truncate(e, v, args, named)
  local s = as_text(e, v)
  local length = integer_argument("truncate", argument("truncate", args, named, 1, "length", 255))
  local kill = values.truth(argument("truncate", args, named, 2, "killwords", false))
  local tail = text_argument("truncate", argument("truncate", args, named, 3, "end", "..."))
  local leeway = argument("truncate", args, named, 4, "leeway", 5)
  if values.is_none(leeway) then leeway = 5 end
  if text.length(s) <= length + integer_argument("truncate", leeway) then return s end
  local head = text.sub(s, 1, math.max(length - text.length(tail), 0))
  if not kill then head = head:match "^(.*) [^ ]*$" or head end
  return head .. tail
end

function filters.wordcount(e, v)
  local n, s = 0, as_text(e, v)
  methods.cased("wordcount", s, text.is_ascii(s) or nil)
  for _ in s:gmatch "[%w_]+" do n = n + 1 end
  return n
end

function filters.urlencode(e, v)
  local s = as_text(e, v):gsub("[^%w/_.~-]", function(c) return ("%%%02X"):format(c:byte()) end)
  e:spend(#s)
  return s
end

function filters.format(e, v, args, named)
  if next(named) then fault.raise("unsupported", nil, "format with names") end
  return e:percent(as_text(e, v), values.list(args, "tuple"))
end

function filters.tojson(e, v, args, named)
  local ascii = values.truth(argument("tojson", args, named, 1, "ensure_ascii", false))
  local indent = argument("tojson", args, named, 2, "indent", values.none)
  local separators = argument("tojson", args, named, 3, "separators", values.none)
  local o = { ascii = ascii, item = ", ", key = ": ", sort = values.truth(argument("tojson", args,
    named, 4, "sort_keys", false)) }
  if not values.is_none(indent) then
    if type(indent) == "string" then o.indent = indent
    else
      local n = integer_argument("tojson", indent)
      if n > 64 then fault.raise("unsupported", nil, "tojson: an indent of more than 64") end
      o.indent = (" "):rep(n)
    end
    o.item = ","
  end
  if values.is_list(separators) and #separators.items == 2 then
    o.item, o.key = text_argument("tojson", separators.items[1]), text_argument("tojson",
      separators.items[2])
  elseif not values.is_none(separators) then
    fault.raise("argument", nil, "tojson: separators are two texts")
  end
  return values.json(v, o, e.spender)
end

-- ---- numbers ------------------------------------------------------------------------------------

filters["int"] = function(_, v, args, named)
  local default = argument("int", args, named, 1, "default", 0)
  local base = integer_argument("int", argument("int", args, named, 2, "base", 10))
  local n = values.number_of(v)
  if n then
    return math.type(n) == "integer" and n or math.tointeger(n < 0 and math.ceil(n)
      or math.floor(n)) or default
  end
  if type(v) ~= "string" then return default end
  local s = text.strip(v, true, true)
  if base >= 2 and base <= 36 and base ~= 10 then
    return tonumber((s:gsub("^0[xXoObB]", "")), base) or default
  end
  if s:find "^[-+]?%d[%d_]*$" then  -- of a base that is none, too: Jinja reads a decimal then
    return math.tointeger(tonumber((s:gsub("[+_]", "")))) or default
  end
  n = s:find "^[-+]?[%d.]+[eE]?[-+]?%d*$" and tonumber((s:gsub("^%+", ""))) or nil
  return n and math.tointeger(n < 0 and math.ceil(n) or math.floor(n)) or default
end

filters["float"] = function(_, v, args, named)
  local default = argument("float", args, named, 1, "default", 0.0)
  local n = values.number_of(v) or (type(v) == "string" and not v:find "[xX]"
    and tonumber(text.strip(v, true, true))) or nil
  return n and n + 0.0 or default
end

function filters.abs(_, v)
  local n = values.number_of(v)
  if not n then fault.raise("argument", nil, "abs of a value of type %s", values.type(v)) end
  return math.abs(n)
end

function filters.round(_, v, args, named)
  local n = values.number_of(v)
  if not n then fault.raise("argument", nil, "round of a value of type %s", values.type(v)) end
  local precision = integer_argument("round", argument("round", args, named, 1, "precision", 0))
  local method = argument("round", args, named, 2, "method", "common")
  local scale = 10.0 ^ precision
  if method == "ceil" then return math.ceil(n * scale) / scale end
  if method == "floor" then return math.floor(n * scale) / scale end
  local scaled = n * scale
  local floor = math.floor(scaled)
  local rest = scaled - floor
  -- halves to even, as Python rounds
  local up = rest > 0.5 or (rest == 0.5 and floor % 2 == 1)
  return (floor + (up and 1 or 0)) / scale
end

-- ---- sequences ----------------------------------------------------------------------------------

function filters.length(_, v)
  if type(v) == "string" then return text.length(v) end
  if values.is_dict(v) then return #v.keys end
  if values.is_list(v) and v.form ~= "generator" then return #v.items end
  if values.is_undefined(v) then return 0 end
  fault.raise("argument", nil, "a value of type %s has no length", values.type(v))
end
filters.count = filters.length

function filters.list(e, v)
  local items = items_of(e, v)
  return values.list(table.move(items, 1, #items, 1, {}))
end

function filters.first(e, v)
  local first = items_of(e, v)[1]
  if first == nil then return values.undefined "the first item of an empty sequence" end
  return first
end

function filters.last(e, v)
  if values.is_list(v) and v.form == "generator" then
    fault.raise("argument", nil, "a generator has no last item")
  end
  local items = items_of(e, v)
  local last = items[#items]
  if last == nil then return values.undefined "the last item of an empty sequence" end
  return last
end

function filters.reverse(e, v)
  local items = items_of(e, v)
  local out = {}
  for i = #items, 1, -1 do out[#out + 1] = items[i] end
  if type(v) == "string" then return e:concat(out) end
  return values.list(out, "generator")
end

function filters.join(e, v, args, named)
  local separator = e:text(argument("join", args, named, 1, "d", ""))
  local get = getter(e, argument("join", args, named, 2, "attribute", values.none))
  local parts = {}
  for i, item in ipairs(items_of(e, v)) do parts[i] = e:text(get(item)) end
  return e:concat(parts, separator)
end

filters["default"] = function(_, v, args, named)
  local other = argument("default", args, named, 1, "default_value", "")
  local falsy = values.truth(argument("default", args, named, 2, "boolean", false))
  if values.is_undefined(v) or (falsy and not values.truth(v)) then return other end
  return v
end
filters.d = filters["default"]

function filters.items(e, v)
  if values.is_undefined(v) then return values.list({}, "generator") end
  if not values.is_dict(v) then
    fault.raise("argument", nil, "items of a value of type %s", values.type(v))
  end
  return values.list(methods.find(v, "items").call(e, {}, {}).items, "generator")
end

function filters.attr(_, v, args)
  local name = text_argument("attr", argument("attr", args, {}, 1))
  return methods.find(v, name) or values.undefined(name)
end

-- Sorts by a key with a stable order of equals.
local function sorted(e, items, key, reverse)
  local keyed = {}
  for i, item in ipairs(items) do keyed[i] = { key = key(item), item = item, i = i } end
  local function less(a, b)
    local order = values.compare(a.key, b.key, e.spender)
    if order == 0 then return a.i < b.i end
    if reverse then return order > 0 end
    return order < 0
  end
  table.sort(keyed, less)
  local out = {}
  for i, entry in ipairs(keyed) do out[i] = entry.item end
  return out
end

-- Sorting compares about n log n times; each counts.
local function spend_sorting(e, items)
  local n = #items
  e:step(n * (n > 1 and math.ceil(math.log(n, 2)) or 1))
end

local function folding(sensitive, get)
  return function(item)
    local key = get(item)
    return sensitive and key or ascii_lower(key)
  end
end

function filters.sort(e, v, args, named)
  local reverse = values.truth(argument("sort", args, named, 1, "reverse", false))
  local sensitive = values.truth(argument("sort", args, named, 2, "case_sensitive", false))
  local get = getter(e, argument("sort", args, named, 3, "attribute", values.none))
  local items = items_of(e, v)
  spend_sorting(e, items)
  return values.list(sorted(e, items, folding(sensitive, get), reverse))
end

function filters.dictsort(e, v, args, named)
  if not values.is_dict(v) then
    fault.raise("argument", nil, "dictsort of a value of type %s", values.type(v))
  end
  local sensitive = values.truth(argument("dictsort", args, named, 1, "case_sensitive", false))
  local by = argument("dictsort", args, named, 2, "by", "key") == "value" and 2 or 1
  local reverse = values.truth(argument("dictsort", args, named, 3, "reverse", false))
  local items = methods.find(v, "items").call(e, {}, {}).items
  spend_sorting(e, items)
  return values.list(sorted(e, items, folding(sensitive, function(pair) return pair.items[by] end),
    reverse))
end

local function extreme(name, sign)
  filters[name] = function(e, v, args, named)
    local sensitive = values.truth(argument(name, args, named, 1, "case_sensitive", false))
    local key = folding(sensitive, getter(e, argument(name, args, named, 2, "attribute",
      values.none)))
    local best
    for _, item in ipairs(items_of(e, v)) do
      if best == nil or sign * values.compare(key(item), key(best), e.spender) > 0 then
        best = item
      end
    end
    if best == nil then return values.undefined "no item of an empty sequence" end
    return best
  end
end
extreme("min", -1)
extreme("max", 1)

function filters.sum(e, v, args, named)
  local get = getter(e, argument("sum", args, named, 1, "attribute", values.none))
  local total = argument("sum", args, named, 2, "start", 0)
  for _, item in ipairs(items_of(e, v)) do total = e:binary("+", total, get(item)) end
  return total
end

function filters.unique(e, v, args, named)
  local sensitive = values.truth(argument("unique", args, named, 1, "case_sensitive", false))
  local key = folding(sensitive, getter(e, argument("unique", args, named, 2, "attribute",
    values.none)))
  local seen, out = values.dict(), {}
  for _, item in ipairs(items_of(e, v)) do
    local k = key(item)
    if values.get(seen, k) == nil then
      values.set(seen, k, true)
      out[#out + 1] = item
    end
  end
  return values.list(out, "generator")
end

function filters.groupby(e, v, args, named)
  local attribute = argument("groupby", args, named, 1, "attribute")
  local get = getter(e, attribute, named.default)
  local items = items_of(e, v)
  spend_sorting(e, items)
  local out, last = {}, nil
  for _, item in ipairs(sorted(e, items, folding(false, get))) do
    local key = ascii_lower(get(item))
    if last and values.equal(last.key, key, e.spender) then
      table.insert(last.items, item)
    else
      last = { key = key, items = { item } }
      out[#out + 1] = values.list({ get(item), values.list(last.items) }, "tuple")
    end
  end
  return values.list(out)
end

function filters.batch(e, v, args, named)
  local size = integer_argument("batch", argument("batch", args, named, 1, "linecount"))
  local fill = argument("batch", args, named, 2, "fill_with", values.none)
  if size < 1 then fault.raise("argument", nil, "batch: a size of at least 1 is wanted") end
  local out = {}
  for i, item in ipairs(items_of(e, v)) do
    if (i - 1) % size == 0 then out[#out + 1] = values.list {} end
    table.insert(out[#out].items, item)
  end
  local last = out[#out]
  if last and not values.is_none(fill) then
    e:spend(size)
    while #last.items < size do table.insert(last.items, fill) end
  end
  return values.list(out, "generator")
end

function filters.slice(e, v, args, named)
  local count = integer_argument("slice", argument("slice", args, named, 1, "slices"))
  local fill = argument("slice", args, named, 2, "fill_with", values.none)
  if count < 1 then fault.raise("argument", nil, "slice: at least one slice is wanted") end
  e:spend(count)
  local items, out, at = items_of(e, v), {}, 0
  local each, more = #items // count, #items % count
  for i = 1, count do
    local n = each + (i <= more and 1 or 0)
    local part = table.move(items, at + 1, at + n, 1, {})
    at = at + n
    if not values.is_none(fill) and i > more and more > 0 then part[#part + 1] = fill end
    out[i] = values.list(part)
  end
  return values.list(out, "generator")
end

function filters.map(e, v, args, named)
  local apply
  if #args == 0 and named.attribute ~= nil then
    apply = getter(e, named.attribute, named.default)
  else
    local name = text_argument("map", argument("map", args, named, 1))
    local rest = table.move(args, 2, #args, 1, {})
    apply = function(item) return e:filter(name, item, rest, named) end
  end
  -- whatever it is, as in Jinja
  if not values.truth(v) then return values.list({}, "generator") end
  local out = {}
  for i, item in ipairs(items_of(e, v)) do out[i] = apply(item) end
  return values.list(out, "generator")
end

-- select, reject, selectattr, rejectattr: `by_attribute` takes the first argument as a path, `keep`
-- says which stay.
local function choosing(filter, by_attribute, keep)
  filters[filter] = function(e, v, args, named)
    local at, get = 1, nil
    if by_attribute then
      get = getter(e, argument(filter, args, named, 1))
      at = 2
    end
    local test = args[at]
    local rest = table.move(args, at + 1, #args, 1, {})
    -- whatever it is, as in Jinja
    if not values.truth(v) then return values.list({}, "generator") end
    local out = {}
    for _, item in ipairs(items_of(e, v)) do
      local value = item
      if get then value = get(item) end
      local holds
      if test == nil then holds = values.truth(value)
      else holds = e:test(text_argument(filter, test), value, rest, named) end
      if holds == keep then out[#out + 1] = item end
    end
    return values.list(out, "generator")
  end
end
choosing("select", false, true)
choosing("reject", false, false)
choosing("selectattr", true, true)
choosing("rejectattr", true, false)

-- ---- tests --------------------------------------------------------------------------------------

function tests.defined(_, v) return not values.is_undefined(v) end
function tests.undefined(_, v) return values.is_undefined(v) end
function tests.none(_, v) return values.is_none(v) end
function tests.boolean(_, v) return type(v) == "boolean" end
tests["true"] = function(_, v) return v == true end
tests["false"] = function(_, v) return v == false end
function tests.string(_, v) return type(v) == "string" end
function tests.number(_, v) return values.number_of(v) ~= nil end
function tests.integer(_, v) return math.type(v) == "integer" end
tests["float"] = function(_, v) return math.type(v) == "float" end
function tests.mapping(_, v) return values.is_dict(v) end
function tests.callable(_, v) return values.is_function(v) end
function tests.iterable(_, v)
  return type(v) == "string" or values.is_list(v) or values.is_dict(v) or values.is_undefined(v)
end
-- Jinja asks for len() and []: texts, lists and dicts have both; views and generators do not,
-- undefined values have len().
function tests.sequence(_, v)
  return type(v) == "string" or values.is_dict(v) or values.is_undefined(v)
    or (values.is_list(v) and v.form ~= "generator" and v.form ~= "view")
end
function tests.sameas(_, v, args)
  return rawequal(v, args[1]) and math.type(v) == math.type(args[1])
end
function tests.escaped(_, v) return values.is_markup(v) end
function tests.lower(e, v)
  local s = e:text(v)
  return methods.find(s, "islower").call(e, {}, {})
end
function tests.upper(e, v)
  local s = e:text(v)
  return methods.find(s, "isupper").call(e, {}, {})
end
tests["in"] = function(e, v, args) return values.contains(argument("in", args, {}, 1), v,
  e.spender) end
function tests.filter(e, v) return e:has_filter(v) end
function tests.test(_, v) return tests[v] ~= nil end

local function modulo(name, wanted)
  tests[name] = function(e, v, args)
    return e:compare("==", e:binary("%", v, wanted and 2 or argument(name, args, {}, 1)), wanted
      or 0)
  end
end
modulo("odd", 1)
modulo("divisibleby")
function tests.even(e, v) return e:compare("==", e:binary("%", v, 2), 0) end

for name, op in pairs { eq = "==", equalto = "==", ["=="] = "==", ne = "!=", ["!="] = "!=",
  lt = "<", lessthan = "<",
  ["<"] = "<", le = "<=", ["<="] = "<=", gt = ">", greaterthan = ">", [">"] = ">", ge = ">=",
    [">="] = ">=" } do
  tests[name] = function(e, v, args) return e:compare(op, v, argument(name, args, {}, 1)) end
end

return { filters = filters, tests = tests }
