--- Regular expressions of JSON Schema (ECMA-262, with its flag u) as GBNF over the characters of a
--- JSON string.
---
--- Supported: characters and escapes (\n \t \r \f \v \0 \cX \xHH \uHHHH \u{H…}), classes, . \d \D
--- \w \W \s \S, groups (capturing or not, named), | * + ? {m} {m,} {m,n} and their lazy forms, ^ at
--- the beginning and $ at the end of an alternative that is not inside a group. As in JSON Schema
--- an expression without ^ or $ may match anywhere in the string. Refused by name: looking ahead or
--- behind, back references, \b, \B, \p, flags.
local text = require "pyramid.grammar.text"

local pattern = {}

local DIGITS, WORDS = { { 48, 57 } }, { { 48, 57 }, { 65, 90 }, { 95, 95 }, { 97, 122 } }
local SPACES = { { 9, 13 }, { 32, 32 }, { 0xa0, 0xa0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200a },
  { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 },
  { 0xfeff, 0xfeff } }
local ENDS = { { 10, 10 }, { 13, 13 }, { 0x2028, 0x2029 } }
local classes = { d = DIGITS, w = WORDS, s = SPACES }
local controls = { n = 10, r = 13, t = 9, f = 12, v = 11 }

local ANY = text.char { { 0, 0x10ffff } }
local DEPTH_MOST <const>, TIMES_MOST <const> = 60, 1000

local function refuse(what) error({ "unsupported", what }, 0) end
local function wrong(what) error({ "format", what }, 0) end

local function peek(r) return r.chars[r.at] end
local function take(r)
  r.at = r.at + 1
  return r.chars[r.at - 1]
end
local function accept(r, c)
  if peek(r) ~= c then return false end
  r.at = r.at + 1
  return true
end

local function hex(r, digits)
  local value = 0
  for _ = 1, digits do
    local c = take(r)
    if not c or not c:find "^%x$" then wrong "an escape wants more hexadecimal digits" end
    value = value * 16 + tonumber(c, 16)
  end
  return value
end

-- What stands behind a backslash: a code point, or ranges.
local function escape(r, in_class)
  local c = take(r) or wrong "it ends in a backslash"
  local lower = c:lower()
  if classes[lower] and #c == 1 then
    return c == lower and classes[lower] or text.negate(classes[lower])
  end
  if controls[c] then return controls[c] end
  if c == "x" then return hex(r, 2) end
  if c == "u" then
    if not accept(r, "{") then
      local cp = hex(r, 4)
      if cp >= 0xd800 and cp < 0xdc00 and peek(r) == "\\" and r.chars[r.at + 1] == "u" then
        r.at = r.at + 2
        local low = hex(r, 4)
        if low < 0xdc00 or low > 0xdfff then wrong "half a surrogate pair" end
        return 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00)
      end
      return cp
    end
    local value = 0
    while not accept(r, "}") do
      value = value * 16 + hex(r, 1)
      if value > 0x10ffff then wrong "a character beyond U+10FFFF" end
    end
    return value
  end
  if c == "0" and not (peek(r) or ""):find "^%d" then return 0 end
  if c == "c" and (peek(r) or ""):find "^%a$" then return take(r):byte() % 32 end
  if c:find "^[1-9]$" or c == "k" then refuse "back references" end
  if c == "b" and in_class then return 8 end
  if lower == "b" then refuse("\\" .. c) end
  if lower == "p" then refuse("\\" .. c .. " (properties of characters)") end
  if c == "-" and in_class or c:find "^[%^%$\\%.%*%+%?%(%)%[%]{}|/]$" then return c:byte() end
  wrong(("the escape \\%s"):format(c))
end

local function read_class(r)
  local ranges, negated = {}, accept(r, "^")
  local function one()
    local c = take(r) or wrong "a class is not closed"
    if c == "\\" then return escape(r, true) end
    return utf8.codepoint(c)
  end
  while not accept(r, "]") do
    local low = one()
    if type(low) == "table" then
      for _, range in ipairs(low) do ranges[#ranges + 1] = range end
    elseif peek(r) == "-" and r.chars[r.at + 1] ~= "]" and r.chars[r.at + 1] then
      r.at = r.at + 1
      local high = one()
      if type(high) == "table" or high < low then wrong "a range of a class" end
      ranges[#ranges + 1] = { low, high }
    else
      ranges[#ranges + 1] = { low, low }
    end
  end
  ranges = text.join(ranges)
  return text.char(negated and text.negate(ranges) or ranges) or "[]"
end

local function repeated(r, atom)
  local c, suffix = peek(r), nil
  if c == "*" or c == "+" or c == "?" then suffix = take(r)
  elseif c == "{" then
    local rest = table.concat(r.chars, "", r.at, math.min(#r.chars, r.at + 12))
    local low, comma, high, length = rest:match "^{(%d+)(,?)(%d*)}()"
    if not low then wrong "a { that is no repetition (write \\{)" end
    if tonumber(low) > TIMES_MOST or (tonumber(high) or 0) > TIMES_MOST then
      refuse(("more than %d repetitions"):format(TIMES_MOST))
    end
    if comma == "" and high ~= "" then wrong "a repetition" end
    suffix = ("{%s%s%s}"):format(low, comma, high)
    if tonumber(high) and tonumber(high) < tonumber(low) then wrong "a repetition" end
    r.at = r.at + length - 1
  end
  if not suffix then return atom end
  accept(r, "?")
  c = peek(r)
  if c == "*" or c == "+" or c == "?" or c == "{" then wrong "a repetition of nothing" end
  return "(" .. atom .. ")" .. suffix
end

local read_choice

local function read_group(r, depth)
  if accept(r, "?") then
    local kind = take(r)
    if kind == "<" then
      local next_one = peek(r)
      if next_one == "=" or next_one == "!" then refuse "looking behind" end
      while not accept(r, ">") do
        if not take(r) then wrong "a group's name is not closed" end
      end
    elseif kind == "=" or kind == "!" then refuse "looking ahead"
    elseif kind ~= ":" then refuse "flags" end
  end
  local inner = read_choice(r, depth + 1)
  if not accept(r, ")") then wrong "a group is not closed" end
  return inner
end

-- One alternative. Outside of groups: with what may stand before and behind its match.
local function read_sequence(r, depth)
  local parts, open_start, open_end = {}, true, true
  while accept(r, "^") do
    if depth > 0 then refuse "^ inside of a group" end
    open_start = false
  end
  while true do
    local c = peek(r)
    if not c or c == "|" or c == ")" then break end
    r.at = r.at + 1
    local atom
    if c == "$" then
      if depth > 0 then refuse "$ inside of a group" end
      local after = peek(r)
      if after and after ~= "|" and after ~= "$" then refuse "$ before the end" end
      open_end = false
    elseif c == "^" then refuse "^ behind the beginning"
    elseif c == "." then atom = text.char(text.negate(ENDS))
    elseif c == "[" then atom = read_class(r)
    elseif c == "(" then
      if depth > DEPTH_MOST then refuse "groups that are nested so deep" end
      atom = read_group(r, depth)
    elseif c == "\\" then
      local cp = escape(r, false)
      atom = text.char(type(cp) == "table" and cp or { { cp, cp } }) or "[]"
    elseif c == "*" or c == "+" or c == "?" then wrong "a repetition of nothing"
    elseif c == "]" or c == "}" then wrong(("a lone %s (write \\%s)"):format(c, c))
    elseif c == "{" then wrong "a lone { (write \\{)"
    else
      local cp = utf8.codepoint(c)
      atom = text.char { { cp, cp } }
    end
    if atom then parts[#parts + 1] = repeated(r, atom) end
  end
  if depth == 0 then
    if open_start then table.insert(parts, 1, "(" .. ANY .. ")*") end
    if open_end then parts[#parts + 1] = "(" .. ANY .. ")*" end
  end
  return #parts == 0 and '""' or table.concat(parts, " ")
end

function read_choice(r, depth)
  local list = {}
  repeat list[#list + 1] = read_sequence(r, depth) until not accept(r, "|")
  return #list == 1 and depth == 0 and list[1] or "(" .. table.concat(list, " | ") .. ")"
end

---The characters of a JSON string that an expression matches, as GBNF. Fails ("format",
---"unsupported") with what is the matter.
---@param expression string
---@return string?
---@return string? message
---@return string? code
function pattern.read(expression)
  if not utf8.len(expression) then return nil, "no UTF-8", "format" end
  local r = { chars = {}, at = 1 }
  for _, cp in utf8.codes(expression) do r.chars[#r.chars + 1] = utf8.char(cp) end
  local ok, found = pcall(function()
    local whole = read_choice(r, 0)
    if peek(r) then wrong "a group is closed that is not open" end
    return whole
  end)
  if ok then return found end
  if type(found) ~= "table" then error(found, 0) end
  return nil, found[2], found[1]
end

return pattern
