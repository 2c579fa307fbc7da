--- The lexer: a template's text as a sequence of tokens, with Jinja's control of white space.
---
--- As transformers sets Jinja up for chat templates: trim_blocks (the newline behind a block tag
--- goes), lstrip_blocks (the blanks before a block tag that begins its line go), and the one
--- newline at the template's end goes. `-` at a tag takes all white space on that side, `+` keeps
--- what the two settings would take.
---
--- Tokens are { kind, value, line }: "text", "name", "string", "integer", "float", "op", and the
--- four marks "{{", "}}", "{%", "%}".
local fault = require "pyramid.jinja.fault"
local text = require "pyramid.jinja.text"

local lexer = {}

local operators = { ["//"] = true, ["**"] = true, ["=="] = true, ["!="] = true, [">="] = true,
  ["<="] = true }
local escapes = { n = "\n", t = "\t", r = "\r", a = "\a", b = "\b", f = "\f", v = "\v",
  ["\\"] = "\\", ["'"] = "'", ['"'] = '"',
  ["\n"] = "" }

-- A code point as UTF-8, or a fault: half a surrogate pair is no character.
local function character(cp, line)
  if cp > 0x10FFFF or (cp >= 0xD800 and cp <= 0xDFFF) then
    fault.raise("format", line, "a string names no character (%X)", cp)
  end
  return utf8.char(cp)
end

-- What stands between quotes, with Python's escapes.
local function unescape(s, line)
  if not s:find("\\", 1, true) then return s end
  local out, i = {}, 1
  while i <= #s do
    local at = s:find("\\", i, true)
    if not at then
      out[#out + 1] = s:sub(i)
      break
    end
    out[#out + 1] = s:sub(i, at - 1)
    local c = s:sub(at + 1, at + 1)
    local digits = ({ x = 2, u = 4, U = 8 })[c]
    if digits then
      local hex = s:match("^%x+", at + 2) or ""
      if #hex < digits then fault.raise("format", line, "a string has a broken escape \\%s", c) end
      out[#out + 1] = character(tonumber(hex:sub(1, digits), 16), line)
      i = at + 2 + digits
    elseif c:find "[0-7]" then
      local octal = s:match("^[0-7][0-7]?[0-7]?", at + 1)
      out[#out + 1] = character(tonumber(octal, 8), line)
      i = at + 1 + #octal
    elseif escapes[c] then
      out[#out + 1] = escapes[c]
      i = at + 2
    else
      out[#out + 1] = "\\" .. c                        -- Python leaves unknown escapes as they are
      i = at + 1 + math.max(#c, 1)
    end
  end
  return table.concat(out)
end

---@class pyramid.jinja.Lexer
local Lexer = {}
Lexer.__index = Lexer

function Lexer:add(kind, value)
  self.tokens[#self.tokens + 1] = { kind = kind, value = value, line = self.line }
end

-- Moves on to byte `to`, counting lines.
function Lexer:advance(to)
  local _, lines = self.source:sub(self.at, to - 1):gsub("\n", "")
  self.line, self.at = self.line + lines, to
end

-- A number as Jinja writes it: 1_000, 0x1f, 1.5e3. A dot that no digit follows is an attribute's.
function Lexer:number()
  local s, at = self.source, self.at
  for prefix, base in pairs { ["0[xX]"] = 16, ["0[bB]"] = 2, ["0[oO]"] = 8 } do
    local digits = s:match("^" .. prefix .. "([%x_]+)", at)
    if digits then
      local value = tonumber((digits:gsub("_", "")), base)
      if not value then fault.raise("format", self.line, "a malformed number") end
      self:add("integer", value)
      return self:advance(at + 2 + #digits)
    end
  end
  local whole = s:match("^%d[%d_]*", at)
  local rest = s:match("^%.%d[%d_]*[eE][+-]?%d[%d_]*", at + #whole) or s:match("^%.%d[%d_]*",
    at + #whole)
    or s:match("^[eE][+-]?%d[%d_]*", at + #whole)
  local digits = (whole .. (rest or "")):gsub("_", "")
  local value = rest and tonumber(digits) or math.tointeger(tonumber(digits))
  if not value then
    fault.raise("unsupported", self.line, "the number %s is too large", digits:sub(1, 40))
  end
  self:add(rest and "float" or "integer", rest and value + 0.0 or value)
  self:advance(at + #whole + #(rest or ""))
end

function Lexer:string(quote)
  local at = self.at + 1
  while true do
    local found = self.source:find("[\\" .. quote .. "]", at)
    if not found then fault.raise("format", self.line, "a string does not end") end
    if self.source:sub(found, found) == quote then
      self:add("string", unescape(self.source:sub(self.at + 1, found - 1), self.line))
      return self:advance(found + 1)
    end
    at = found + 2
  end
end

-- Tokens of a tag up to its end; `close` is "}}" or "%}". Returns whether the end strips ("-") or
-- keeps ("+").
function Lexer:inside(close)
  local s, nesting = self.source, {}
  while true do
    local from = s:find("%S", self.at)
    if not from then
      fault.raise("format", self.line, "a tag does not end ('%s' is missing)", close)
    end
    self:advance(from)
    local c = s:sub(from, from)
    if #nesting == 0 then
      local sign = s:match("^[-+]?", from)
      if s:sub(from + #sign, from + #sign + 1) == close and (sign ~= "+" or close == "%}") then
        self:add(close)
        self:advance(from + #sign + 2)
        return sign
      end
    end
    if c == "'" or c == '"' then self:string(c)
    elseif c:find "%d" then self:number()
    elseif c:find "[A-Za-z_\128-\255]" then
      local name = s:match("^[%w_\128-\255]+", from)
      self:add("name", name)
      self:advance(from + #name)
    else
      local two = s:sub(from, from + 1)
      local op = operators[two] and two or c
      if not op:find "^[-+*/%%~<>=!.:|,;()%[%]{}]" or op == "!" then
        fault.raise("format", self.line, "an unexpected character '%s'", c)
      end
      if op:find "[%(%[{]" then nesting[#nesting + 1] = ({ ["("] = ")", ["["] = "]",
        ["{"] = "}" })[op]
      elseif op:find "^[%)%]}]$" then
        if table.remove(nesting) ~= op then
          fault.raise("format", self.line, "an unexpected '%s'", op)
        end
      end
      self:add("op", op)
      self:advance(from + #op)
    end
  end
end

-- What begins at an opening mark: text before it goes as `sign` and lstrip_blocks want.
local function before_tag(piece, sign, block, fresh_line)
  if sign == "-" then return text.strip(piece, false, true) end
  if sign == "+" or not block then return piece end
  local head, blanks = piece:match("^(.*\n)(.*)$")
  if not head then
    if not fresh_line then return piece end
    head, blanks = "", piece
  end
  return text.strip(blanks, true, false) == "" and head or piece
end

-- Behind a tag: `-` takes white space, otherwise trim_blocks takes one newline (blocks and
-- comments).
function Lexer:after_tag(sign, block)
  if sign == "-" then
    local n = text.space_at(self.source, self.at)
    local to = self.at
    while n do
      to = to + n
      n = text.space_at(self.source, to)
    end
    self:advance(to)
  elseif block and sign ~= "+" and self.source:sub(self.at, self.at) == "\n" then
    self:advance(self.at + 1)
  end
end

-- {% raw %} … {% endraw %}: text as it stands. True if the tag at self.at is one.
function Lexer:raw(fresh_line, piece)
  local s = self.source
  local sign, close, to = s:match("^{%%([-+]?)%s*raw%s*([-+]?)%%}()", self.at)
  if not to then return false end
  piece = before_tag(piece, sign, true, fresh_line)
  if piece ~= "" then self:add("text", piece) end
  self:advance(to)
  self:after_tag(close, false)
  local from, last, open, closing = s:find("{%%([-+]?)%s*endraw%s*([-+]?)%%}", self.at)
  if not from then fault.raise("format", self.line, "{%% raw %%} does not end") end
  local body = before_tag(s:sub(self.at, from - 1), open, true, false)
  if body ~= "" then self:add("text", body) end
  self:advance(last + 1)
  self:after_tag(closing, true)
  return true
end

---The tokens of a template.
---@param source string
---@return { kind: string, value: any, line: integer }[]
function lexer.tokens(source)
  source = source:gsub("\r\n?", "\n")
  if source:sub(-1) == "\n" then source = source:sub(1, -2) end
  local self = setmetatable({ source = source, at = 1, line = 1, tokens = {} }, Lexer)
  local fresh_line = true                    -- what stands before the next text ended a line
  while self.at <= #source do
    local open = source:find("{[{%%#]", self.at)
    local piece = source:sub(self.at, (open or 0) - 1)
    if not open then
      self:add("text", piece)
      break
    end
    local line_of_piece = self.line
    self:advance(open)
    local mark, sign = source:sub(open, open + 1), source:match("^[-+]?", open + 2)
    if mark == "{{" and sign == "+" then sign = "" end
    local block = mark ~= "{{"
    local from = self.at
    if mark == "{%" and self:raw(fresh_line, piece) then                   -- luacheck: ignore 542
      -- done
    else
      piece = before_tag(piece, sign, block, fresh_line)
      if piece ~= "" then
        self.tokens[#self.tokens + 1] = { kind = "text", value = piece, line = line_of_piece }
      end
      self:advance(open + 2 + #sign)
      if mark == "{#" then
        local last = source:find("#}", self.at, true)
        if not last then fault.raise("format", self.line, "a comment does not end") end
        local closing = source:sub(last - 1, last - 1)
        if last == self.at or not closing:find "[-+]" then closing = "" end
        self:advance(last + 2)
        self:after_tag(closing, true)
      else
        self:add(mark)
        self:after_tag(self:inside(mark == "{{" and "}}" or "%}"), block)
      end
    end
    fresh_line = self.at > from and source:sub(self.at - 1, self.at - 1) == "\n"
  end
  self:add("end")
  return self.tokens
end

return lexer
