-- Regular expressions: from the dialect of tokenizer.json (Oniguruma with Ruby's syntax) to PCRE2's. The core runs them
-- with UTF, UCP and multi-line anchors on. The two differ in
--   \s \w \h \b   the characters they mean (PCRE2 counts U+180E as a space, and no marks as word characters),
--   a{2,3}+       Ruby: any number of times; PCRE2: possessive,
--   [a[b]] [a&&b] Ruby has unions and intersections of classes; PCRE2 takes the brackets and ampersands for characters,
--   (?m)          Ruby: the dot takes newlines too.
-- What cannot be said in PCRE2 is a fault, never a guess.

local fault = require "pyramid.loaders.fault"

local pattern = {}

local SPACE = "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
local NOT_SPACE = "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
  .. "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
local WORD = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
local HEX = "0-9a-fA-F"

local outside = {
  s = "[" .. SPACE .. "]", S = "[^" .. SPACE .. "]", w = "[" .. WORD .. "]", W = "[^" .. WORD .. "]",
  h = "[" .. HEX .. "]", H = "[^" .. HEX .. "]",
  b = ("(?:(?<=[%s])(?![%s])|(?<![%s])(?=[%s]))"):format(WORD, WORD, WORD, WORD),
  B = ("(?:(?<=[%s])(?=[%s])|(?<![%s])(?![%s]))"):format(WORD, WORD, WORD, WORD),
}
local inside = { s = SPACE, S = NOT_SPACE, w = WORD, h = HEX }

--- Escapes a text so that it stands for itself.
---@param text string
---@return string
function pattern.quote(text)
  return (text:gsub("[%p%s]", function(c) return c:find("%s") and ("\\x{%x}"):format(c:byte()) or "\\" .. c end))
end

--- Reads an escape at `at` (the backslash); returns its text and what follows.
local function escape(s, at)
  local name = s:match("^\\[pPx]{[^}]*}", at) or s:match("^\\u%x%x%x%x", at) or s:match("^\\x%x%x?", at)
  if name and name:sub(2, 2) == "u" then return "\\x{" .. name:sub(3) .. "}", at + #name end
  name = name or s:match("^\\" .. utf8.charpattern, at)
  return name, name and at + #name
end

local class

--- The members of a class from `at` on, up to its closing bracket or &&. Returns their text, and what follows.
local function members(s, at, what)
  local out = {}
  local first = true
  while true do
    local c = s:sub(at, at)
    if c == "" then fault.raise("format", "%s: a class without its closing bracket", what) end
    if (c == "]" and not first) or s:sub(at, at + 1) == "&&" then return table.concat(out), at end
    local posix = s:match("^%[:%^?%a+:%]", at)
    if posix then
      out[#out + 1], at = posix, at + #posix
    elseif c == "[" then
      local nested, negated
      nested, at, negated = class(s, at, what)
      if negated or not nested then fault.raise("unsupported", "%s: a negated or intersected class within a class", what) end
      out[#out + 1] = nested
    elseif c == "\\" then
      local text, after = escape(s, at)
      if not text then fault.raise("format", "%s: ends in a backslash", what) end
      local letter = text:sub(2)
      if letter == "W" or letter == "H" then fault.raise("unsupported", "%s: \\%s within a class", what, letter) end
      out[#out + 1], at = inside[letter] or text, after
    else
      local char = s:match("^" .. utf8.charpattern, at)
      out[#out + 1], at = c == "]" and "\\]" or char, at + #char
    end
    first = false
  end
end

--- A class at `at` (its bracket). Returns its members, what follows, whether it is negated; for A && [^B] nil, what
--- follows, and the whole expression.
function class(s, at, what)
  local negated = s:sub(at + 1, at + 1) == "^"
  local text
  text, at = members(s, at + (negated and 2 or 1), what)
  if s:sub(at, at) == "]" then return text, at + 1, negated end
  if negated or s:sub(at, at + 2) ~= "&&[" then fault.raise("unsupported", "%s: an intersection of classes of this form", what) end
  local other, out
  other, at, out = class(s, at + 2, what)
  if not other or s:sub(at, at) ~= "]" then fault.raise("unsupported", "%s: an intersection of more than two classes", what) end
  return nil, at + 1, ("(?:(?%s[%s])[%s])"):format(out and "!" or "=", other, text)
end

--- Translates an expression; raises faults that begin with `what`.
---@param s string
---@param what string
---@return string
function pattern.translate(s, what)
  if not utf8.len(s) then fault.raise("format", "%s: not UTF-8", what) end
  local out, at, groups = {}, 1, {}
  local atom = 1                     -- where in `out` begins what a quantifier would repeat
  local function put(text, after)
    out[#out + 1], at, atom = text, after, #out + 1
  end
  while at <= #s do
    local c = s:sub(at, at)
    if c == "\\" then
      local text, after = escape(s, at)
      if not text then fault.raise("format", "%s: ends in a backslash", what) end
      put(outside[text:sub(2)] or text, after)
    elseif c == "[" then
      local text, after, extra = class(s, at, what)
      put(text and (extra and "[^" or "[") .. text .. "]" or extra, after)
    elseif c == "(" then
      local letters = s:match("^%(%?([%a%-]+)[:)]", at)
      if letters and letters:find("m") then fault.raise("unsupported", "%s: the option m", what) end
      groups[#groups + 1] = #out + 1
      put(c, at + 1)
    elseif c == ")" then
      out[#out + 1], at = c, at + 1
      atom = table.remove(groups) or fault.raise("format", "%s: a closing parenthesis too many", what)
    elseif s:find("^{%d*,?%d*}%+", at) then
      local interval = s:match("^{%d*,?%d*}", at)
      out[atom] = "(?:" .. out[atom]
      out[#out + 1] = interval .. ")+"
      at = at + #interval + 1
    elseif c:find("[*+?{]") then
      out[#out + 1], at = c, at + 1          -- repeats the atom: which stays
    else
      local char = s:match("^" .. utf8.charpattern, at)
      put(char, at + #char)
    end
  end
  return table.concat(out)
end

return pattern
