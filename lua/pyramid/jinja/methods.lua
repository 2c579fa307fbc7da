--- Methods of texts, dicts and lists, as Python has them. Those that would change a value are
--- refused, as the sandbox that transformers renders in refuses them.
---
--- A method is a function of (evaluator, self, args, named); the evaluator is told of what it makes
--- (evaluator:spend).
local fault = require "pyramid.jinja.fault"
local text = require "pyramid.jinja.text"
local values = require "pyramid.jinja.values"

local methods = {}

local function wrong(method, wanted) fault.raise("argument", nil, "%s() takes %s", method,
  wanted) end

-- An argument by place or name, with a default (nil: it must be there).
local function argument(method, args, named, i, name, default)
  local v = args[i]
  if v == nil and name then v = named[name] end
  if v == nil then v = default end
  if v == nil then wrong(method, "more arguments") end
  return v
end

local function text_argument(method, v)
  if type(v) ~= "string" then wrong(method, "a text, not a value of type " .. values.type(v)) end
  return v
end

local function integer_argument(method, v)
  local n = values.number_of(v)
  if math.type(n) ~= "integer" then
    wrong(method, "a whole number, not a value of type " .. values.type(v))
  end
  return n
end
methods.argument, methods.text_argument, methods.integer_argument = argument, text_argument,
  integer_argument

--- Case in texts beyond ASCII needs Unicode's tables, which are not here.
function methods.cased(name, _, mapped)
  if not mapped then fault.raise("unsupported", nil, "%s of a text that is not ASCII", name) end
  return mapped
end

local strings = {}

local function stripping(name, left, right)
  strings[name] = function(e, s, args)
    e:spend(#s)
    local set = args[1]
    if set == nil or values.is_none(set) then return text.strip(s, left, right) end
    return text.strip_set(s, text_argument(name, set), left, right)
  end
end
stripping("strip", true, true)
stripping("lstrip", true, false)
stripping("rstrip", false, true)

local function splitting(name, by_separator)
  strings[name] = function(e, s, args, named)
    local separator = argument(name, args, named, 1, "sep", values.none)
    local most = integer_argument(name, argument(name, args, named, 2, "maxsplit", -1))
    local parts
    if values.is_none(separator) then
      if name == "rsplit" and most >= 0 then
        fault.raise("unsupported", nil, "rsplit() by white space with a limit")
      end
      parts = text.words(s, most)
    else
      if text_argument(name, separator) == "" then wrong(name, "a separator that is not empty") end
      values.spend_search(s, separator, e.spender)
      parts = by_separator(s, separator, most)
    end
    e:spend(16 * #parts)
    return values.list(parts)
  end
end
splitting("split", text.split)
splitting("rsplit", text.split_right)

function strings.splitlines(e, s, args, named)
  local parts = text.lines(s, values.truth(argument("splitlines", args, named, 1, "keepends",
    false)))
  e:spend(16 * #parts)
  return values.list(parts)
end

local function partition(name, find)
  strings[name] = function(e, s, args)
    local separator = text_argument(name, argument(name, args, {}, 1))
    if separator == "" then wrong(name, "a separator that is not empty") end
    values.spend_search(s, separator, e.spender)
    local at, last = find(s, separator)
    if not at then
      return values.list(name == "partition" and { s, "", "" } or { "", "", s }, "tuple")
    end
    return values.list({ s:sub(1, at - 1), separator, s:sub(last + 1) }, "tuple")
  end
end

local function find_last(s, part)
  local at, last, from = nil, nil, 1
  while true do
    local i, j = s:find(part, from, true)
    if not i then return at, last end
    at, last, from = i, j, i + 1
    if part == "" then return #s + 1, #s end
  end
end
partition("partition", function(s, part) return s:find(part, 1, true) end)
partition("rpartition", find_last)

-- The part of s that start and end arguments (from 2 on) leave; the byte it begins at.
local function within(name, s, args)
  if args[2] == nil then return s, 0 end
  local n = text.length(s)
  local first = integer_argument(name, args[2])
  local last = args[3] ~= nil and not values.is_none(args[3]) and integer_argument(name, args[3])
    or n
  if first < 0 then first = math.max(0, n + first) end
  if last < 0 then last = n + last end
  return text.sub(s, first + 1, math.min(last, n)), math.min(first, n)
end

local function affix(name, matches)
  strings[name] = function(_, s, args)
    local part = argument(name, args, {}, 1)
    s = within(name, s, args)
    for _, one in ipairs(values.is_list(part) and part.items or { part }) do
      if matches(s, text_argument(name, one)) then return true end
    end
    return false
  end
end
affix("startswith", function(s, part) return s:sub(1, #part) == part end)
affix("endswith", function(s, part) return part == "" or s:sub(-#part) == part end)

function strings.removeprefix(_, s, args)
  local part = text_argument("removeprefix", argument("removeprefix", args, {}, 1))
  return s:sub(1, #part) == part and s:sub(#part + 1) or s
end

function strings.removesuffix(_, s, args)
  local part = text_argument("removesuffix", argument("removesuffix", args, {}, 1))
  return part ~= "" and s:sub(-#part) == part and s:sub(1, -#part - 1) or s
end

function strings.replace(e, s, args, named)
  local old = text_argument("replace", argument("replace", args, named, 1))
  local new = text_argument("replace", argument("replace", args, named, 2))
  local most = integer_argument("replace", argument("replace", args, named, 3, "count", -1))
  return methods.replace(e, s, old, new, most)
end

--- Replaces within the evaluator's bounds: what may be made is asked for before it is made.
function methods.replace(e, s, old, new, most)
  local room = old == "" and #s + 1 or #s // #old
  if most >= 0 then room = math.min(room, most) end
  values.spend_search(s, old, e.spender)
  if #new > #old and room * #new > 65536 then
    local count, at = 0, 1
    while old ~= "" and count < room do
      local _, last = s:find(old, at, true)
      if not last then break end
      count, at = count + 1, last + 1
    end
    e:spend((old == "" and room or count) * #new)
  end
  return text.replace(s, old, new, most)
end

local function finding(name, find, raises)
  strings[name] = function(e, s, args)
    local part = text_argument(name, argument(name, args, {}, 1))
    values.spend_search(s, part, e.spender)
    local inside, base = within(name, s, args)
    local at = find(inside, part)
    if not at and raises then fault.raise("argument", nil, "%s(): there is no such text", name) end
    return at and base + text.index(inside, at) or -1
  end
end
local function find_first(s, part) return (s:find(part, 1, true)) end
finding("find", find_first)
finding("rfind", find_last)
finding("index", find_first, true)
finding("rindex", find_last, true)

function strings.count(e, s, args)
  local part = text_argument("count", argument("count", args, {}, 1))
  values.spend_search(s, part, e.spender)
  e:spend(#s)
  s = within("count", s, args)
  if part == "" then return text.length(s) + 1 end
  return #text.split(s, part, -1) - 1
end

function strings.join(e, s, args)
  local items = values.iterate(argument("join", args, {}, 1))
  local parts = {}
  for i, item in ipairs(items) do parts[i] = text_argument("join", item) end
  return e:concat(parts, s)
end

function strings.upper(_, s) return methods.cased("upper()", s, text.upper(s)) end
function strings.lower(_, s) return methods.cased("lower()", s, text.lower(s)) end
function strings.casefold(_, s) return methods.cased("casefold()", s, text.lower(s)) end

function strings.capitalize(_, s)
  local low = methods.cased("capitalize()", s, text.lower(s))
  return text.upper(low:sub(1, 1)) .. low:sub(2)
end

function strings.title(_, s)
  local low = methods.cased("title()", s, text.lower(s))
  return (low:gsub("[a-z]+", function(word) return text.upper(word:sub(1, 1)) .. word:sub(2) end))
end

function strings.swapcase(_, s)
  methods.cased("swapcase()", s, text.lower(s))
  return (s:gsub("[A-Za-z]", function(c) return string.char(c:byte() ~ 32) end))
end

-- Questions about all characters of a text: patterns of ASCII.
for name, pattern in pairs { isdigit = "^[0-9]+$", isdecimal = "^[0-9]+$", isnumeric = "^[0-9]+$",
  isalpha = "^[A-Za-z]+$",
  isalnum = "^[A-Za-z0-9]+$", isspace = "^[\t-\r\x1c- ]+$" } do
  strings[name] = function(_, s)
    methods.cased(name .. "()", s, text.is_ascii(s) or nil)
    return s:find(pattern) ~= nil
  end
end

function strings.isupper(_, s)
  return methods.cased("isupper()", s, text.upper(s)) == s and s:find "[A-Z]" ~= nil
end

function strings.islower(_, s)
  return methods.cased("islower()", s, text.lower(s)) == s and s:find "[a-z]" ~= nil
end

-- Padding to a width in characters: left of the text, right of it, or both.
local function padding(name, share)
  strings[name] = function(e, s, args)
    local width = integer_argument(name, argument(name, args, {}, 1))
    local fill = text_argument(name, argument(name, args, {}, 2, nil, " "))
    local missing = width - text.length(s)
    if missing <= 0 then return s end
    e:spend(missing * #fill)
    local left = share(missing, width)
    return fill:rep(left) .. s .. fill:rep(missing - left)
  end
end
padding("ljust", function() return 0 end)
padding("rjust", function(missing) return missing end)
padding("center", function(missing, width) return missing // 2 + (missing & width & 1) end)

function strings.zfill(e, s, args)
  local missing = integer_argument("zfill", argument("zfill", args, {}, 1)) - text.length(s)
  if missing <= 0 then return s end
  e:spend(missing)
  local sign = s:match "^[-+]?"
  return sign .. ("0"):rep(missing) .. s:sub(#sign + 1)
end

-- str.format with {}, {0} and {name}: no attributes, no format specifications.
function strings.format(e, s, args, named)
  local place, out, at = 0, {}, 1
  while at <= #s do
    local brace = s:find("[{}]", at)
    out[#out + 1] = s:sub(at, (brace or 0) - 1)
    if not brace then break end
    if s:sub(brace, brace) == s:sub(brace + 1, brace + 1) then
      out[#out + 1], at = s:sub(brace, brace), brace + 2
    else
      local field, last = s:match("^{([%w_]*)}()", brace)
      if not field then
        fault.raise("unsupported", nil, "format() with more than {}, {0} and {name}")
      end
      local value
      if field == "" then
        place = place + 1
        value = args[place]
      elseif field:find "^%d+$" then value = args[tonumber(field) + 1]
      else value = named[field] end
      if value == nil then fault.raise("argument", nil, "format(): no argument for {%s}", field) end
      out[#out + 1], at = e:text(value), last
    end
  end
  return e:concat(out)
end

local dicts = {}

function dicts.items(e, d)
  local items = {}
  for i, key in ipairs(d.keys) do items[i] = values.list({ key, values.get(d, key) }, "tuple") end
  e:spend(32 * #items)
  return values.list(items, "view")
end

function dicts.keys(_, d) return values.list(d.keys, "view") end

function dicts.values(e, d)
  local items = {}
  for i, key in ipairs(d.keys) do items[i] = values.get(d, key) end
  e:spend(16 * #items)
  return values.list(items, "view")
end

function dicts.get(_, d, args)
  local value = values.get(d, argument("get", args, {}, 1))
  if value == nil then value = args[2] end
  if value == nil then return values.none end
  return value
end

function dicts.copy(e, d)
  local copy = values.dict()
  for _, key in ipairs(d.keys) do values.set(copy, key, values.get(d, key)) end
  e:spend(32 * #d.keys)
  return copy
end

local lists = {}

function lists.count(e, l, args)
  local n, wanted = 0, argument("count", args, {}, 1)
  for _, item in ipairs(l.items) do
    e:step(1)
    if e:compare("==", item, wanted) then n = n + 1 end
  end
  return n
end

function lists.index(e, l, args)
  local wanted = argument("index", args, {}, 1)
  for i, item in ipairs(l.items) do
    e:step(1)
    if e:compare("==", item, wanted) then return i - 1 end
  end
  fault.raise("argument", nil, "index(): there is no such item")
end

function lists.copy(e, l)
  e:spend(16 * #l.items)
  return values.list(table.move(l.items, 1, #l.items, 1, {}))
end

local function refusing(into, kind, names)
  for name in names:gmatch "%a+" do
    into[name] = function() fault.raise("argument", nil,
      "%s.%s() would change a value, which a template may not", kind, name) end
  end
end
refusing(dicts, "dict", "clear pop popitem setdefault update")
refusing(lists, "list", "append clear extend insert pop remove reverse sort")

--- The method of a value, bound to it, or nil.
function methods.find(value, name)
  local set = type(value) == "string" and strings or values.is_dict(value) and dicts
    or values.is_list(value) and (value.form == "list" or value.form == "tuple") and lists
  local method = set and set[name]
  if not method then return nil end
  return values.func(name, function(e, args, named) return method(e, value, args, named) end)
end

return methods
