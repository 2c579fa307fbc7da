--- The evaluator: walks a template's tree and writes its text, within bounds of work and memory.
---
--- Each kind of node has one function: expressions in `expressions` return a value, statements in
--- `statements` write and return nil, or "break" or "continue" on their way to the loop that they
--- belong to.
local core = require "pyramid.core"
local fault = require "pyramid.jinja.fault"
local globals = require "pyramid.jinja.globals"
local known = require "pyramid.jinja.filters"
local methods = require "pyramid.jinja.methods"
local text = require "pyramid.jinja.text"
local values = require "pyramid.jinja.values"

local evaluate = {}

--- Bounds of one rendering; a conversation of a megabyte stays far below them, a hostile template
--- ends within seconds.
evaluate.STEPS = 2000000               -- nodes evaluated and items touched; specs lower it
-- bytes of all texts that were made on the way, rubbish included
local MADE <const> = 512 << 20
local OUTPUT <const> = 64 << 20        -- bytes of one text
local DEPTH <const> = 100              -- calls of macros within macros

---@class pyramid.jinja.Evaluator
local Evaluator = {}
Evaluator.__index = Evaluator

local expressions, statements = {}, {}

-- ---- bounds -------------------------------------------------------------------------------------

function Evaluator:step(n)
  self.steps = self.steps + n
  if self.steps > evaluate.STEPS then
    fault.raise("unsupported", self.line, "more than %d steps (the limit of a template's work)",
      evaluate.STEPS)
  end
end

--- Says that about `bytes` bytes, or items, are being made or looked at.
function Evaluator:spend(bytes)
  self.made = self.made + bytes
  if self.made > MADE then
    fault.raise("unsupported", self.line,
      "more than %d bytes made or searched on the way (the limit of a template)", MADE)
  end
  self:step(1 + (bytes >> 8))
end

function Evaluator:concat(parts, separator)
  local bytes = #parts * (#(separator or "") + 1)
  for _, part in ipairs(parts) do bytes = bytes + #part end
  if bytes > OUTPUT then
    fault.raise("unsupported", self.line, "a text of more than %d bytes (the limit of a template)",
      OUTPUT)
  end
  self:spend(bytes)
  return table.concat(parts, separator)
end

function Evaluator:text(v) return values.text(v, self.spender) end

-- ---- scopes and output --------------------------------------------------------------------------

local function new_scope(parent) return { names = {}, parent = parent } end

local function lookup(scope, name)
  while scope do
    local value = scope.names[name]
    if value ~= nil then return value end
    scope = scope.parent
  end
end

function Evaluator:value(node, scope)
  self:step(1)
  self.line = node.line
  return expressions[node.kind](self, node, scope)
end

function Evaluator:run(body, scope)
  for _, statement in ipairs(body) do
    self:step(1)
    self.line = statement.line
    local leave = statements[statement.kind](self, statement, scope)
    if leave then return leave end
  end
end

function Evaluator:write(s)
  local out = self.out
  out.bytes = out.bytes + #s
  if out.bytes > OUTPUT then
    fault.raise("unsupported", self.line, "more than %d bytes of output (the limit of a template)",
      OUTPUT)
  end
  out[#out + 1] = s
end

--- The text that a body writes, in a scope of its own.
function Evaluator:captured(body, scope)
  local outer = self.out
  self.out = { bytes = 0 }
  self:run(body, scope)
  local result = self:concat(self.out)
  self.out = outer
  return result
end

local function assign(target, value, scope)
  if target.kind == "name" then
    scope.names[target.name] = value
  elseif target.kind == "field" then
    local object = lookup(scope, target.name)
    if not values.is_namespace(object) then
      fault.raise("argument", target.line,
        "fields can be set of a namespace only, and '%s' is none", target.name)
    end
    object.map[target.field] = value
  else
    local items = values.iterate(value)
    if #items ~= #target.names then
      fault.raise("argument", target.line, "%d values for %d names", #items, #target.names)
    end
    for i, name in ipairs(target.names) do scope.names[name] = items[i] end
  end
end

-- ---- operators ----------------------------------------------------------------------------------

local function no_operator(op, a, b)
  for _, v in ipairs { a, b } do
    if values.is_undefined(v) then fault.raise("argument", nil, "%s is undefined", v.what) end
  end
  fault.raise("argument", nil, "'%s' of %s and %s", op, values.type(a), values.type(b))
end

-- Whole numbers of Python do not overflow; those of 64 bits must not silently.
local function whole(op, result, estimate)
  if math.type(result) == "integer" and math.abs(estimate) >= 2.0 ^ 63 then
    fault.raise("unsupported", nil, "'%s' of whole numbers beyond 64 bits", op)
  end
  return result
end

local function divisor(y)
  if y == 0 then fault.raise("argument", nil, "a division by zero") end
  return y
end

local function power(x, y)
  if math.type(x) == "integer" and math.type(y) == "integer" and y >= 0 then
    local estimate = (x + 0.0) ^ y
    if math.abs(estimate) >= 2.0 ^ 63 then whole("**", 0, estimate) end
    local result = 1
    for _ = 1, (x == 0 or x == 1) and math.min(y, 1) or x == -1 and y % 2 or y do
      result = result * x
    end
    return result
  end
  local result = (x + 0.0) ^ y
  if result ~= result then fault.raise("argument", nil, "'**' has no real result") end
  return result
end

local arithmetic = {
  ["+"] = function(x, y) return whole("+", x + y, (x + 0.0) + y) end,
  ["-"] = function(x, y) return whole("-", x - y, (x + 0.0) - y) end,
  ["*"] = function(x, y) return whole("*", x * y, (x + 0.0) * y) end,
  ["/"] = function(x, y) return x / divisor(y) end,
  ["//"] = function(x, y) return x // divisor(y) end,
  ["%"] = function(x, y) return x % divisor(y) end,
  ["**"] = power,
}

-- A text or list so many times.
local function repeated(self, v, n)
  local length = type(v) == "string" and #v or #v.items
  if n <= 0 or length == 0 then          -- nothing, however often: string.rep would go round, too
    return type(v) == "string" and "" or values.list({}, v.form)
  end
  if type(v) == "string" then
    if n > OUTPUT // #v then self:spend(MADE) end
    self:spend(#v * n)
    return v:rep(n)
  end
  if n > OUTPUT // #v.items then self:spend(MADE) end
  self:spend(16 * #v.items * n)
  local out = {}
  for _ = 1, n do table.move(v.items, 1, #v.items, #out + 1, out) end
  return values.list(out, v.form)
end

--- A binary operator of Python on two values.
function Evaluator:binary(op, a, b)
  local x, y = values.number_of(a), values.number_of(b)
  if x and y then return arithmetic[op](x, y) end
  local plain_a = values.is_list(a) and (a.form == "list" or a.form == "tuple")
  local plain_b = values.is_list(b) and (b.form == "list" or b.form == "tuple")
  if op == "+" then
    if values.is_markup(a) or values.is_markup(b) then
      local function part(v)
        if values.is_markup(v) then return v.text end
        if type(v) ~= "string" then no_operator(op, a, b) end
        return values.escape(v)
      end
      return values.markup(self:concat { part(a), part(b) })
    end
    if type(a) == "string" and type(b) == "string" then return self:concat { a, b } end
    if plain_a and plain_b and a.form == b.form then
      self:spend(16 * (#a.items + #b.items))
      local out = table.move(a.items, 1, #a.items, 1, {})
      return values.list(table.move(b.items, 1, #b.items, #out + 1, out), a.form)
    end
  elseif op == "*" then
    if math.type(y) == "integer" and (type(a) == "string" or plain_a) then
      return repeated(self, a, y)
    end
    if math.type(x) == "integer" and (type(b) == "string" or plain_b) then
      return repeated(self, b, x)
    end
  elseif op == "%" and type(a) == "string" then
    return self:percent(a, b)
  end
  no_operator(op, a, b)
end

--- Python's "…%s…" % value: %s, %r, %d, %f with a precision, %x, and widths.
function Evaluator:percent(s, given)
  local items = values.is_list(given) and given.form == "tuple" and given.items or { given }
  local used, out, at = 0, {}, 1
  while at <= #s do
    local from = s:find("%", at, true)
    out[#out + 1] = s:sub(at, (from or 0) - 1)
    if not from then break end
    local flags, width, precision, kind, last = s:match("^%%([-0+ ]*)(%d*)%.?(%d*)([%a%%])()", from)
    if not kind or #width > 4 or #precision > 2 then
      fault.raise("unsupported", nil, "a '%%' format that is not known here")
    end
    if kind == "%" then
      out[#out + 1] = "%"
    else
      used = used + 1
      local v = items[used]
      if v == nil then fault.raise("argument", nil, "too few values for a '%%' format") end
      local n, piece = values.number_of(v), nil
      if kind == "s" then piece = self:text(v)
      elseif kind == "r" then piece = values.repr(v, self.spender)
      elseif (kind == "d" or kind == "i") and n then piece = ("%d"):format(n < 0 and math.ceil(n)
        or math.floor(n))
      elseif kind == "x" and math.type(n) == "integer" then piece = ("%x"):format(n)
      elseif kind == "f" and n then
        piece = ("%." .. (precision == "" and "6" or precision) .. "f"):format(n):gsub("[^%d%-]",
          ".")
      else fault.raise("argument", nil, "'%%%s' of a value of type %s", kind, values.type(v)) end
      local missing = (tonumber(width) or 0) - text.length(piece)
      if missing > 0 then
        if flags:find("-", 1, true) then piece = piece .. (" "):rep(missing)
        elseif flags:find("0", 1, true) and kind ~= "s" then
          local sign = piece:match "^-?"
          piece = sign .. ("0"):rep(missing) .. piece:sub(#sign + 1)
        else piece = (" "):rep(missing) .. piece end
      end
      out[#out + 1] = piece
    end
    at = last
  end
  if used < #items and not values.is_dict(given) then
    fault.raise("argument", nil, "too many values for a '%%' format")
  end
  return self:concat(out)
end

local orders = {
  ["<"] = function(c) return c < 0 end, [">"] = function(c) return c > 0 end,
  ["<="] = function(c) return c <= 0 end, [">="] = function(c) return c >= 0 end,
}

--- A comparison of Python.
function Evaluator:compare(op, a, b)
  if op == "==" then return values.equal(a, b, self.spender) end
  if op == "!=" then return not values.equal(a, b, self.spender) end
  if op == "in" then return values.contains(b, a, self.spender) end
  if op == "not in" then return not values.contains(b, a, self.spender) end
  if values.is_undefined(a) or values.is_undefined(b) then no_operator(op, a, b) end
  local x, y = values.number_of(a), values.number_of(b)
  if x and y then                                   -- NaN has no order and no error
    return (op == "<" and x < y) or (op == ">" and x > y) or (op == "<=" and x <= y) or (op == ">="
      and x >= y)
  end
  return orders[op](values.compare(a, b, self.spender))
end

-- ---- attributes, items, slices, calls -----------------------------------------------------------

local function named(what) return ("'%s'"):format(tostring(what):sub(1, 60)) end

--- value[key], and value.key where there is no such item.
function Evaluator.item(_, v, key)
  if values.is_undefined(v) then fault.raise("argument", nil, "%s is undefined", v.what) end
  local found
  if values.is_dict(v) then found = values.get(v, key)
  elseif values.is_namespace(v) then found = v.map[key]
  elseif math.type(key) == "integer" then
    if values.is_list(v) then
      if v.form == "generator" or v.form == "view" then
        return values.undefined(("item %d of a %s"):format(key, v.form))
      end
      found = v.items[key < 0 and #v.items + key + 1 or key + 1]
    elseif type(v) == "string" then
      local n = text.length(v)
      local at = key < 0 and n + key + 1 or key + 1
      if at >= 1 and at <= n then found = text.sub(v, at, at) end
    end
  end
  if found == nil and type(key) == "string" then found = methods.find(v, key) end
  if found ~= nil then return found end
  return values.undefined(type(key) == "table" and "an item" or named(key))
end

--- value.name: a method, or an item.
function Evaluator:attribute(v, name)
  if values.is_undefined(v) then
    fault.raise("argument", nil, "%s is undefined, it has no '%s'", v.what, name)
  end
  local fields = type(v) == "table" and v.fields
  return methods.find(v, name) or (fields and fields(name)) or self:item(v, name)
end

-- Python's slice of n items: first, step and count.
local function bounds(self, n, node, scope)
  local function integer(part)
    if not part then return nil end
    local v = self:value(part, scope)
    if values.is_none(v) then return nil end
    local i = values.number_of(v)
    if math.type(i) ~= "integer" then
      fault.raise("argument", node.line, "a slice by a value of type %s", values.type(v))
    end
    return i
  end
  local first, last, step = integer(node.first), integer(node.last), integer(node.step) or 1
  if step == 0 then fault.raise("argument", node.line, "a slice by steps of zero") end
  local low, high = step > 0 and 0 or -1, step > 0 and n or n - 1
  local function clamp(i, default)
    if not i then return default end
    if i < 0 then i = i + n end
    return math.max(low, math.min(high, i))
  end
  return clamp(first, step > 0 and low or high), clamp(last, step > 0 and high or low), step
end

function expressions.slice(self, node, scope)
  local v = self:value(node.object, scope)
  if values.is_undefined(v) then fault.raise("argument", node.line, "%s is undefined", v.what) end
  local sliceable = type(v) == "string" or (values.is_list(v) and v.form ~= "generator"
    and v.form ~= "view")
  if not sliceable then
    fault.raise("argument", node.line, "a slice of a value of type %s", values.type(v))
  end
  if type(v) == "string" then
    local first, last, step = bounds(self, text.length(v), node, scope)
    self:spend(#v)
    if step == 1 then return text.sub(v, first + 1, last) end
    self:spend(32 * #v)                  -- a value of its own for each character
    local characters, out = text.characters(v), {}
    for i = first, last + (step > 0 and -1 or 1), step do out[#out + 1] = characters[i + 1] end
    return table.concat(out)
  end
  local first, last, step = bounds(self, #v.items, node, scope)
  local out = {}
  for i = first, last + (step > 0 and -1 or 1), step do out[#out + 1] = v.items[i + 1] end
  self:spend(16 * #out)
  return values.list(out, v.form)
end

function expressions.item(self, node, scope)
  local object = self:value(node.object, scope)
  return self:item(object, self:value(node.key, scope))
end

function expressions.attribute(self, node, scope)
  return self:attribute(self:value(node.object, scope), node.name)
end

-- Arguments of a call, filter or test: an array and a table by name.
local function arguments(self, node, scope)
  local args, by_name = {}, {}
  for i, arg in ipairs(node.args) do args[i] = self:value(arg, scope) end
  for _, arg in ipairs(node.named) do by_name[arg.name] = self:value(arg.value, scope) end
  if node.more then
    for _, item in ipairs(values.iterate(self:value(node.more, scope))) do
      args[#args + 1] = item
    end
  end
  if node.more_named then
    local more = self:value(node.more_named, scope)
    if not values.is_dict(more) then
      fault.raise("argument", node.line, "** of a value of type %s", values.type(more))
    end
    for _, key in ipairs(more.keys) do by_name[key] = values.get(more, key) end
  end
  return args, by_name
end

function Evaluator:call(callee, args, by_name, line)
  if values.is_undefined(callee) then
    fault.raise("argument", line, "%s is undefined, it cannot be called", callee.what)
  end
  if not values.is_function(callee) then
    fault.raise("argument", line, "a value of type %s cannot be called", values.type(callee))
  end
  self.depth = self.depth + 1
  if self.depth > DEPTH then
    fault.raise("unsupported", line, "calls nested deeper than %d (the limit of a template)", DEPTH)
  end
  self.line = line
  local result = callee.call(self, args, by_name)
  self.depth = self.depth - 1
  return result
end

function expressions.call(self, node, scope)
  local callee = self:value(node.callee, scope)
  local args, by_name = arguments(self, node, scope)
  return self:call(callee, args, by_name, node.line)
end

--- Whether there is a filter of a name.
-- luacheck: ignore 212
function Evaluator:has_filter(name) return known.filters[name] ~= nil end

function Evaluator:filter(name, v, args, by_name)
  local filter = known.filters[name]
  if not filter then
    fault.raise("unsupported", self.line, "the filter '%s' is not known here", name:sub(1, 40))
  end
  return filter(self, v, args, by_name)
end

function Evaluator:test(name, v, args, by_name)
  local test = known.tests[name]
  if not test then
    fault.raise("unsupported", self.line, "the test '%s' is not known here", name:sub(1, 40))
  end
  return test(self, v, args, by_name)
end

-- A filter or a test on a value: the evaluator's method of that name.
local function applied(method)
  return function(self, node, scope)
    local v = self:value(node.value, scope)
    local args, by_name = arguments(self, node, scope)
    self.line = node.line
    return self[method](self, node.name, v, args, by_name)
  end
end
expressions.filter, expressions.test = applied "filter", applied "test"

-- ---- other expressions --------------------------------------------------------------------------

function expressions.constant(_, node) return node.value end
function expressions.none() return values.none end
function expressions.placeholder(_, node) return node.held end

function expressions.name(_, node, scope)
  local value = lookup(scope, node.name)
  if value == nil then return values.undefined(named(node.name)) end
  return value
end

function expressions.list(self, node, scope)
  local items = {}
  for i, item in ipairs(node.items) do items[i] = self:value(item, scope) end
  return values.list(items, node.tuple and "tuple" or "list")
end

function expressions.dict(self, node, scope)
  local dict = values.dict()
  for _, pair in ipairs(node.pairs) do
    local key = self:value(pair.key, scope)
    values.set(dict, key, self:value(pair.value, scope))
  end
  return dict
end

function expressions.condition(self, node, scope)
  if values.truth(self:value(node.test, scope)) then return self:value(node.yes, scope) end
  if node.no then return self:value(node.no, scope) end
  return values.undefined "an inline if without else"
end

expressions["or"] = function(self, node, scope)
  local left = self:value(node.left, scope)
  if values.truth(left) then return left end
  return self:value(node.right, scope)
end

expressions["and"] = function(self, node, scope)
  local left = self:value(node.left, scope)
  if not values.truth(left) then return left end
  return self:value(node.right, scope)
end

expressions["not"] = function(self, node, scope) return not values.truth(self:value(node.value,
  scope)) end

function expressions.compare(self, node, scope)
  local left = self:value(node.first, scope)
  for _, part in ipairs(node.rest) do
    local right = self:value(part.value, scope)
    self.line = node.line
    if not self:compare(part.op, left, right) then return false end
    left = right
  end
  return true
end

function expressions.binary(self, node, scope)
  local left = self:value(node.left, scope)
  local right = self:value(node.right, scope)
  self.line = node.line
  return self:binary(node.op, left, right)
end

function expressions.concat(self, node, scope)
  local parts = {}
  for i, part in ipairs(node.parts) do parts[i] = self:text(self:value(part, scope)) end
  return self:concat(parts)
end

function expressions.sign(self, node, scope)
  local v = self:value(node.value, scope)
  local n = values.number_of(v)
  if not n then
    fault.raise("argument", node.line, "'%s' of a value of type %s", node.op, values.type(v))
  end
  if node.op == "+" then return n end
  return whole("-", -n, -(n + 0.0))
end

-- ---- statements ---------------------------------------------------------------------------------

function statements.text(self, node) self:write(node.text) end

function statements.output(self, node, scope) self:write(self:text(self:value(node.value,
  scope))) end

statements["if"] = function(self, node, scope)
  for _, branch in ipairs(node.branches) do
    if values.truth(self:value(branch.test, scope)) then return self:run(branch.body, scope) end
  end
  if node.otherwise then return self:run(node.otherwise, scope) end
end

function statements.set(self, node, scope) assign(node.target, self:value(node.value, scope),
  scope) end

function statements.set_block(self, node, scope)
  node.hole.held = self:captured(node.body, new_scope(scope))
  assign(node.target, self:value(node.filtered, scope), scope)
end

function statements.filter_block(self, node, scope)
  node.hole.held = self:captured(node.body, new_scope(scope))
  self:write(self:text(self:value(node.filtered, scope)))
end

statements["with"] = function(self, node, scope)
  local inner = new_scope(scope)
  for _, assignment in ipairs(node.assignments) do
    assign(assignment.target, self:value(assignment.value, scope), inner)
  end
  return self:run(node.body, inner)
end

statements["break"] = function() return "break" end
statements["continue"] = function() return "continue" end

-- The variable `loop`: its fields are worked out when asked for.
local function loop_variable(self, state)
  local loop = values.func("loop", function(_, args)
    if not state.recursive then
      fault.raise("argument", nil, "'loop' is called in a loop that is not recursive")
    end
    return state.recursive(args[1] or values.none)
  end)
  local fields = {
    index = function() return state.at end, index0 = function() return state.at - 1 end,
    revindex = function() return #state.items - state.at + 1 end,
      revindex0 = function() return #state.items - state.at end,
    first = function() return state.at == 1 end,
      last = function() return state.at == #state.items end,
    length = function() return #state.items end,
    depth = function() return state.depth end, depth0 = function() return state.depth - 1 end,
    previtem = function() return state.items[state.at - 1] end,
      nextitem = function() return state.items[state.at + 1] end,
    cycle = function()
      return values.func("cycle", function(_, args)
        if #args == 0 then fault.raise("argument", nil, "cycle() takes at least one value") end
        return args[(state.at - 1) % #args + 1]
      end)
    end,
    changed = function()
      return values.func("changed", function(_, args)
        local now = values.list(args, "tuple")
        local changed = not (state.before and values.equal(state.before, now, self.spender))
        state.before = now
        return changed
      end)
    end,
  }
  loop.fields = function(name)
    local field = fields[name]
    self:step(1)
    return field and field()
  end
  return loop
end

local function run_loop(self, node, scope, iterable, depth)
  local items = values.iterate(iterable)
  self:step(#items)
  if node.test then
    local kept = {}
    for _, item in ipairs(items) do
      local inner = new_scope(scope)
      assign(node.target, item, inner)
      if values.truth(self:value(node.test, inner)) then kept[#kept + 1] = item end
    end
    items = kept
  end
  if #items == 0 then
    if node.otherwise then return self:run(node.otherwise, new_scope(scope)) end
    return nil
  end
  local state = { items = items, at = 0, depth = depth }
  if node.recursive then
    state.recursive = function(more)
      local outer = self.out
      self.out = { bytes = 0 }
      run_loop(self, node, scope, more, depth + 1)
      local result = self:concat(self.out)
      self.out = outer
      return result
    end
  end
  local loop = loop_variable(self, state)
  for i, item in ipairs(items) do
    state.at = i
    local inner = new_scope(scope)
    inner.names.loop = loop
    assign(node.target, item, inner)
    if self:run(node.body, inner) == "break" then break end
  end
end

statements["for"] = function(self, node, scope)
  run_loop(self, node, scope, self:value(node.iterable, scope), 1)
end

-- Whether a body names one of the variables that Jinja gives a macro only where it uses them.
local function names_variable(node, name)
  if type(node) ~= "table" then return false end
  if node.kind == "name" and node.name == name then return true end
  for _, part in pairs(node) do
    if type(part) == "table" and names_variable(part, name) then return true end
  end
  return false
end

local function make_macro(node, scope)
  local parameters = node.parameters
  if node.takes_more == nil then
    node.takes_more, node.takes_named = names_variable(node.body, "varargs"),
      names_variable(node.body, "kwargs")
  end
  local macro = values.func(node.name, function(self, args, by_name)
    local inner = new_scope(scope)
    local taken = {}
    for i, parameter in ipairs(parameters) do
      local v = args[i]
      if by_name[parameter.name] ~= nil then
        if v ~= nil then
          fault.raise("argument", node.line, "macro %s takes '%s' once", node.name, parameter.name)
        end
        v = by_name[parameter.name]
      end
      taken[parameter.name] = true
      if v == nil and parameter.default then v = self:value(parameter.default, inner) end
      inner.names[parameter.name] = v == nil and values.undefined("parameter "
        .. named(parameter.name)) or v
    end
    if #args > #parameters then
      if not node.takes_more then
        fault.raise("argument", node.line, "macro %s takes %d values, not %d", node.name,
          #parameters, #args)
      end
    end
    if node.takes_more then
      inner.names.varargs = values.list(table.move(args, #parameters + 1, #args, 1, {}), "tuple")
    end
    local rest = values.dict()
    for name, v in pairs(by_name) do
      if name == "caller" and not taken.caller then inner.names.caller = v
      elseif not taken[name] then
        if not node.takes_named then
          fault.raise("argument", node.line, "macro %s knows no '%s'", node.name, name)
        end
        values.set(rest, name, v)
      end
    end
    if node.takes_named then inner.names.kwargs = rest end
    return self:captured(node.body, inner)
  end)
  macro.fields = function(name) return name == "name" and node.name or nil end
  return macro
end

function statements.macro(_, node, scope) scope.names[node.name] = make_macro(node, scope) end

function statements.call_block(self, node, scope)
  local call = node.call
  local callee = self:value(call.callee, scope)
  local args, by_name = arguments(self, call, scope)
  by_name.caller = make_macro(node.macro, scope)
  self:write(self:text(self:call(callee, args, by_name, call.line)))
end

---Renders a tree. `variables` are Lua values by name; `now` is a table as os.date("*t") makes it.
---@param body table
---@param variables table<string, any>
---@param now table
---@return string
function evaluate.render(body, variables, now)
  local _ <close> = core.plain_locale()
  local self = setmetatable({ steps = 0, made = 0, depth = 0, line = 1, now = now,
    out = { bytes = 0 } }, Evaluator)
  self.spender = function(bytes) self:spend(bytes) end
  local builtin = new_scope(nil)
  for name, call in pairs(globals) do builtin.names[name] = values.func(name, call) end
  local scope = new_scope(builtin)
  for name, value in pairs(variables) do scope.names[name] = values.from_lua(value, name) end
  local ok, raised = pcall(self.run, self, body, scope)
  if not ok then
    if fault.is(raised) and not raised.line then raised.line = self.line end
    error(raised, 0)
  end
  return self:concat(self.out)
end

return evaluate
