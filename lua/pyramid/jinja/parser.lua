--- The parser: tokens to a tree, by Jinja's grammar (recursive descent, one function a level of
--- precedence).
---
--- A node is { kind, line, … }; evaluate.lua has a function for each kind. Bodies are arrays of
--- statements. Tags that reach for other templates (extends, include, import, block) are refused by
--- name.
local fault = require "pyramid.jinja.fault"
local lexer = require "pyramid.jinja.lexer"

local parser = {}

--- Nesting of expressions and blocks: more is a template made to exhaust the stack.
local DEPTH = 150

---@class pyramid.jinja.Parser
local Parser = {}
Parser.__index = Parser

local function node(kind, line, fields)
  fields.kind, fields.line = kind, line
  return fields
end

-- ---- tokens -------------------------------------------------------------------------------------

function Parser:peek(ahead)
  return self.tokens[self.at + (ahead or 0)] or self.tokens[#self.tokens]
end

function Parser:take()
  local token = self:peek()
  self.at = self.at + 1
  return token
end

local function shown(token)
  if token.kind == "end" then return "the end of the template" end
  return ("'%s'"):format(tostring(token.value or token.kind):sub(1, 40))
end

function Parser.fail(_, token, wanted)
  fault.raise("format", token.line, "%s is wanted, not %s", wanted, shown(token))
end

function Parser:is(kind, value, ahead)
  local token = self:peek(ahead)
  return token.kind == kind and (value == nil or token.value == value)
end

function Parser:accept(kind, value)
  if self:is(kind, value) then return self:take() end
end

function Parser:expect(kind, value)
  if not self:is(kind, value) then
    self:fail(self:peek(), value and ("'%s'"):format(value) or "a " .. kind)
  end
  return self:take()
end

-- Runs a level of the grammar one deeper.
function Parser:deeper(level, ...)
  self.depth = self.depth + 1
  if self.depth > DEPTH then
    fault.raise("unsupported", self:peek().line, "nested deeper than %d levels", DEPTH)
  end
  local result = level(self, ...)
  self.depth = self.depth - 1
  return result
end

-- ---- expressions --------------------------------------------------------------------------------

-- a if test else b
function Parser:expression()
  return self:deeper(function()
    local line = self:peek().line
    local value = self:disjunction()
    while self:accept("name", "if") do
      local test = self:disjunction()
      local other
      if self:accept("name", "else") then other = self:expression() end
      value = node("condition", line, { test = test, yes = value, no = other })
    end
    return value
  end)
end

function Parser:disjunction()
  local left = self:conjunction()
  while self:is("name", "or") do
    local line = self:take().line
    left = node("or", line, { left = left, right = self:conjunction() })
  end
  return left
end

function Parser:conjunction()
  local left = self:negation()
  while self:is("name", "and") do
    local line = self:take().line
    left = node("and", line, { left = left, right = self:negation() })
  end
  return left
end

function Parser:negation()
  if self:is("name", "not") then
    local line = self:take().line
    return node("not", line, { value = self:deeper(self.negation) })
  end
  return self:comparison()
end

local comparisons = { ["=="] = true, ["!="] = true, ["<"] = true, [">"] = true, ["<="] = true,
  [">="] = true }

function Parser:comparison()
  local line = self:peek().line
  local first, rest = self:sum(), {}
  while true do
    local token = self:peek()
    if token.kind == "op" and comparisons[token.value] then
      self:take()
      rest[#rest + 1] = { op = token.value, value = self:sum() }
    elseif self:accept("name", "in") then
      rest[#rest + 1] = { op = "in", value = self:sum() }
    elseif self:is("name", "not") and self:is("name", "in", 1) then
      self.at = self.at + 2
      rest[#rest + 1] = { op = "not in", value = self:sum() }
    else
      break
    end
  end
  if #rest == 0 then return first end
  return node("compare", line, { first = first, rest = rest })
end

-- One level of left-associative operators.
local function level(operators, below)
  return function(self)
    local left = self[below](self)
    while self:peek().kind == "op" and operators[self:peek().value] do
      local token = self:take()
      left = node("binary", token.line, { op = token.value, left = left,
        right = self[below](self) })
    end
    return left
  end
end

Parser.sum = level({ ["+"] = true, ["-"] = true }, "concatenation")
Parser.product = level({ ["*"] = true, ["/"] = true, ["//"] = true, ["%"] = true }, "power")
Parser.power = level({ ["**"] = true }, "unary")

function Parser:concatenation()
  local line = self:peek().line
  local parts = { self:product() }
  while self:accept("op", "~") do parts[#parts + 1] = self:product() end
  if #parts == 1 then return parts[1] end
  return node("concat", line, { parts = parts })
end

function Parser:unary(without_filters)
  return self:deeper(function()
    local token = self:peek()
    local value
    if token.kind == "op" and (token.value == "-" or token.value == "+") then
      self:take()
      value = node("sign", token.line, { op = token.value, value = self:unary(true) })
    else
      value = self:primary()
    end
    value = self:postfix(value)
    if not without_filters then value = self:filters(value) end
    return value
  end)
end

local constants = { ["true"] = true, ["True"] = true, ["false"] = false, ["False"] = false }

function Parser:primary()
  local token = self:take()
  local line = token.line
  if token.kind == "name" then
    local name = token.value
    if constants[name] ~= nil then return node("constant", line, { value = constants[name] }) end
    if name == "none" or name == "None" then return node("none", line, {}) end
    return node("name", line, { name = name })
  elseif token.kind == "string" then
    local parts = { token.value }
    while self:is("string") do parts[#parts + 1] = self:take().value end
    return node("constant", line, { value = table.concat(parts) })
  elseif token.kind == "integer" or token.kind == "float" then
    return node("constant", line, { value = token.value })
  elseif token.kind == "op" and token.value == "(" then
    local value = self:tuple(")", true)
    self:expect("op", ")")
    return value
  elseif token.kind == "op" and token.value == "[" then
    return node("list", line, { items = self:items("]") })
  elseif token.kind == "op" and token.value == "{" then
    return self:dict(line)
  end
  self:fail(token, "an expression")
end

-- Expressions up to a closing bracket, which is taken; a comma may stand before it.
function Parser:items(close)
  local items = {}
  while not self:accept("op", close) do
    if #items > 0 then
      self:expect("op", ",")
      if self:accept("op", close) then break end
    end
    items[#items + 1] = self:expression()
  end
  return items
end

function Parser:dict(line)
  local pairs_ = {}
  while not self:accept("op", "}") do
    if #pairs_ > 0 then
      self:expect("op", ",")
      if self:accept("op", "}") then break end
    end
    local key = self:expression()
    self:expect("op", ":")
    pairs_[#pairs_ + 1] = { key = key, value = self:expression() }
  end
  return node("dict", line, { pairs = pairs_ })
end

-- Expressions with commas between them make a tuple; one alone is itself. `close`: the op that may
-- end it.
function Parser:tuple(close, empty)
  local line = self:peek().line
  local items, comma = {}, false
  local function ends()
    local token = self:peek()
    return token.kind == "%}" or token.kind == "}}" or (close and token.kind == "op"
      and token.value == close)
      or (not close and token.kind == "name" and token.value == "in")
  end
  while not ends() do
    items[#items + 1] = self:expression()
    if not self:accept("op", ",") then break end
    comma = true
  end
  if #items == 1 and not comma then return items[1] end
  if #items == 0 and not empty then self:fail(self:peek(), "an expression") end
  return node("list", line, { items = items, tuple = true })
end

function Parser:postfix(value)
  while true do
    if self:is("op", ".") then
      local line = self:take().line
      local token = self:take()
      if token.kind == "name" then
        value = node("attribute", line, { object = value, name = token.value })
      elseif token.kind == "integer" then
        value = node("item", line, { object = value, key = node("constant", line,
          { value = token.value }) })
      else
        self:fail(token, "a name")
      end
    elseif self:is("op", "[") then
      local line = self:take().line
      value = self:subscript(value, line)
      self:expect("op", "]")
    elseif self:is("op", "(") then
      value = self:call(value)
    else
      return value
    end
  end
end

-- x[key] or x[first:last:step]
function Parser:subscript(object, line)
  local parts, at, colons = {}, 1, 0
  while not self:is("op", "]") do
    if self:accept("op", ":") then
      colons, at = colons + 1, at + 1
      if colons > 2 then self:fail(self:peek(), "']'") end
    else
      if parts[at] then self:fail(self:peek(), "']'") end
      parts[at] = self:expression()
    end
  end
  if colons > 0 then
    return node("slice", line, { object = object, first = parts[1], last = parts[2],
      step = parts[3] })
  end
  if not parts[1] then self:fail(self:peek(), "an expression") end
  return node("item", line, { object = object, key = parts[1] })
end

-- (a, b, name=c, *more, **named): the fields `args`, `named`, `more`, `more_named` of a node.
function Parser:arguments(into)
  self:expect("op", "(")
  into.args, into.named = {}, {}
  local first = true
  while not self:accept("op", ")") do
    if not first then
      self:expect("op", ",")
      if self:accept("op", ")") then break end
    end
    first = false
    if self:accept("op", "*") then into.more = self:expression()
    elseif self:accept("op", "**") then into.more_named = self:expression()
    elseif self:is("name") and self:is("op", "=", 1) then
      local name = self:take().value
      self:take()
      into.named[#into.named + 1] = { name = name, value = self:expression() }
    else
      if #into.named > 0 then self:fail(self:peek(), "an argument with a name") end
      into.args[#into.args + 1] = self:expression()
    end
  end
  return into
end

function Parser:call(callee)
  return self:arguments(node("call", self:peek().line, { callee = callee }))
end

function Parser:dotted_name()
  local name = self:expect("name").value
  while self:accept("op", ".") do name = name .. "." .. self:expect("name").value end
  return name
end

function Parser:filter(value)
  local filter = node("filter", self:peek().line, { value = value, name = self:dotted_name(),
    args = {}, named = {} })
  if self:is("op", "(") then self:arguments(filter) end
  return filter
end

local not_an_argument = { ["else"] = true, ["or"] = true, ["and"] = true, ["if"] = true,
  ["in"] = true, ["not"] = true }

-- value is [not] test [argument]
function Parser:test(value)
  local line = self:peek().line
  local negated = self:accept("name", "not") ~= nil
  local test = node("test", line, { value = value, name = self:dotted_name(), args = {},
    named = {} })
  local token = self:peek()
  if self:is("op", "(") then self:arguments(test)
  elseif (token.kind == "name" and not not_an_argument[token.value]) or token.kind == "string"
    or token.kind == "integer"
    or token.kind == "float" or (token.kind == "op" and (token.value == "["
      or token.value == "{")) then
    if token.value == "is" then fault.raise("format", line, "tests cannot be chained with 'is'") end
    test.args = { self:postfix(self:primary()) }
  end
  return negated and node("not", line, { value = test }) or test
end

function Parser:filters(value)
  while true do
    if self:accept("op", "|") then value = self:filter(value)
    elseif self:accept("name", "is") then value = self:test(value)
    elseif self:is("op", "(") then value = self:call(value)
    else return value end
  end
end

-- ---- statements ---------------------------------------------------------------------------------

-- Statements up to one of the tags named, which is left to the caller (its "{%" and name are
-- taken). Returns the name, too.
function Parser:body(ends, opened)
  return self:deeper(function()
    local body = {}
    while true do
      local token = self:peek()
      if token.kind == "end" then
        if ends then
          fault.raise("format", opened, "this tag is not closed ('%s' is missing)", ends[#ends])
        end
        return body
      end
      self:take()
      if token.kind == "text" then
        body[#body + 1] = node("text", token.line, { text = token.value })
      elseif token.kind == "{{" then
        body[#body + 1] = node("output", token.line, { value = self:tuple(nil) })
        self:expect("}}")
      else
        local name = self:expect("name").value
        for _, stop in ipairs(ends or {}) do
          if stop == name then
            body.ended_by = name
            return body
          end
        end
        local parse = self.tags[name]
        if not parse then
          fault.raise("unsupported", token.line, "the tag '%s' is not known here", name:sub(1, 40))
        end
        body[#body + 1] = parse(self, token.line)
      end
    end
  end)
end

local tags = {}
Parser.tags = tags

-- What is assigned to: a name, names with commas, or a namespace's field.
function Parser:target(fields)
  local line = self:peek().line
  local names = {}
  local parenthesis = self:accept("op", "(")
  repeat
    if #names > 0 and not self:is("name") then break end
    local name = self:expect("name").value
    if fields and #names == 0 and self:accept("op", ".") then
      return node("field", line, { name = name, field = self:expect("name").value })
    end
    if constants[name] ~= nil or name == "none" or name == "None" then
      fault.raise("format", line, "cannot assign to %s", name)
    end
    names[#names + 1] = name
  until not self:accept("op", ",")
  if parenthesis then self:expect("op", ")") end
  if #names == 1 then return node("name", line, { name = names[1] }) end
  return node("names", line, { names = names })
end

tags["for"] = function(self, line)
  local target = self:target()
  self:expect("name", "in")
  local loop = node("for", line, { target = target })
  loop.iterable = self:for_iterable()
  if self:accept("name", "if") then loop.test = self:expression() end
  loop.recursive = self:accept("name", "recursive") ~= nil
  self:expect("%}")
  loop.body = self:body({ "else", "endfor" }, line)
  if loop.body.ended_by == "else" then
    self:expect("%}")
    loop.otherwise = self:body({ "endfor" }, line)
  end
  self:expect("%}")
  return loop
end

-- The iterable of a loop: a tuple without conditions, as `if` begins the loop's own test.
function Parser:for_iterable()
  local line = self:peek().line
  local items = { self:disjunction() }
  local comma = false
  while self:accept("op", ",") do
    comma = true
    if self:is("%}") then break end
    items[#items + 1] = self:disjunction()
  end
  if not comma then return items[1] end
  return node("list", line, { items = items, tuple = true })
end

tags["if"] = function(self, line)
  local branches, otherwise = {}, nil
  repeat
    local test = self:tuple(nil)
    self:expect("%}")
    local body = self:body({ "elif", "else", "endif" }, line)
    branches[#branches + 1] = { test = test, body = body }
    if body.ended_by == "else" then
      self:expect("%}")
      otherwise = self:body({ "endif" }, line)
    end
  until body.ended_by ~= "elif"
  self:expect("%}")
  return node("if", line, { branches = branches, otherwise = otherwise })
end

tags["set"] = function(self, line)
  local target = self:target(true)
  if self:accept("op", "=") then
    local value = self:tuple(nil)
    self:expect("%}")
    return node("set", line, { target = target, value = value })
  end
  local filters = node("placeholder", line, {})
  local filtered = self:filters(filters)
  self:expect("%}")
  local body = self:body({ "endset" }, line)
  self:expect("%}")
  return node("set_block", line, { target = target, body = body, hole = filters,
    filtered = filtered })
end

-- Parameters with defaults: (a, b=1)
function Parser:parameters()
  local parameters = {}
  self:expect("op", "(")
  while not self:accept("op", ")") do
    if #parameters > 0 then
      self:expect("op", ",")
      if self:accept("op", ")") then break end
    end
    local parameter = { name = self:expect("name").value }
    if self:accept("op", "=") then parameter.default = self:expression() end
    parameters[#parameters + 1] = parameter
  end
  return parameters
end

tags["macro"] = function(self, line)
  local name = self:expect("name").value
  local parameters = self:parameters()
  self:expect("%}")
  local body = self:body({ "endmacro" }, line)
  self:accept("name", name)
  self:expect("%}")
  return node("macro", line, { name = name, parameters = parameters, body = body })
end

tags["call"] = function(self, line)
  local parameters = self:is("op", "(") and self:parameters() or {}
  local call = self:unary(true)
  if call.kind ~= "call" then fault.raise("format", line, "a call is wanted") end
  self:expect("%}")
  local body = self:body({ "endcall" }, line)
  self:expect("%}")
  return node("call_block", line, { call = call, macro = node("macro", line, { name = "caller",
    parameters = parameters, body = body }) })
end

tags["filter"] = function(self, line)
  local hole = node("placeholder", line, {})
  local filtered = self:filter(hole)
  while self:accept("op", "|") do filtered = self:filter(filtered) end
  self:expect("%}")
  local body = self:body({ "endfilter" }, line)
  self:expect("%}")
  return node("filter_block", line, { body = body, hole = hole, filtered = filtered })
end

tags["with"] = function(self, line)
  local assignments = {}
  while not self:is("%}") do
    if #assignments > 0 then self:expect("op", ",") end
    local target = self:target()
    self:expect("op", "=")
    assignments[#assignments + 1] = { target = target, value = self:expression() }
  end
  self:expect("%}")
  local body = self:body({ "endwith" }, line)
  self:expect("%}")
  return node("with", line, { assignments = assignments, body = body })
end

-- transformers' mark of what an assistant wrote: it only bounds a scope here.
tags["generation"] = function(self, line)
  self:expect("%}")
  local body = self:body({ "endgeneration" }, line)
  self:expect("%}")
  return node("with", line, { assignments = {}, body = body })
end

for _, name in ipairs { "break", "continue" } do
  tags[name] = function(self, line)
    self:expect("%}")
    return node(name, line, {})
  end
end

---Parses a template's text; raises faults.
---@param source string
---@return table body
function parser.parse(source)
  local self = setmetatable({ tokens = lexer.tokens(source), at = 1, depth = 0 }, Parser)
  return self:body(nil)
end

return parser
