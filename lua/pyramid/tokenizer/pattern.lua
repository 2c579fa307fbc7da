-- Regular expressions: from the dialect of tokenizer.json (Oniguruma with Ruby's syntax) to
-- PCRE2's. The core runs them with UTF, UCP and multi-line anchors on. The two differ in
--   \s \w \h \b   the characters they mean (PCRE2 counts U+180E as a space, and no marks as word
--                 characters),
--   a{2,3}+       Ruby: any number of times; PCRE2: possessive,
--   [a[b]] [a&&b] Ruby has unions and intersections of classes; PCRE2 takes the brackets and
--   ampersands for characters,
--   (?m)          Ruby: the dot takes newlines too.
-- What cannot be said in PCRE2 is a fault, never a guess.

local fault = require "pyramid.loaders.fault"

local pattern = {}

-- The longest published expression has 3 KB (before its classes are written out, which makes each
-- up to sixty times as long); classes within classes are at most two deep.
local EXPRESSION_MAX, CLASS_DEPTH_MAX = 1 << 14, 8

local SPACE = "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
local NOT_SPACE = "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
  .. "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
local LETTERS = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}"
  .. "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
-- Oniguruma's; Rust's has U+200C and U+200D instead
local WORD = LETTERS .. "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
local HEX = "0-9a-fA-F"

-- What the library's Whitespace pre-tokenizer looks for (with Rust's expressions): words, or runs
-- of other characters.
pattern.WORDS = ("[%s\\x{200c}\\x{200d}]+|[^%s\\x{200c}\\x{200d}%s]+"):format(LETTERS, LETTERS,
  SPACE)

-- What the library's Punctuation means: ASCII punctuation and, frozen at an older Unicode version,
-- category P.
pattern.PUNCTUATION = "[" .. table.concat {
  [[\x{21}-\x{2f}\x{3a}-\x{40}\x{5b}-\x{60}\x{7b}-\x{7e}\x{a1}\x{a7}\x{ab}\x{b6}-\x{b7}\x{bb}\x{bf}\x{37e}\x{387}]],
  [[\x{55a}-\x{55f}\x{589}-\x{58a}\x{5be}\x{5c0}\x{5c3}\x{5c6}\x{5f3}-\x{5f4}\x{609}-\x{60a}\x{60c}-\x{60d}\x{61b}]],
  [[\x{61e}-\x{61f}\x{66a}-\x{66d}\x{6d4}\x{700}-\x{70d}\x{7f7}-\x{7f9}\x{830}-\x{83e}\x{85e}\x{964}-\x{965}\x{970}]],
  [[\x{af0}\x{df4}\x{e4f}\x{e5a}-\x{e5b}\x{f04}-\x{f12}\x{f14}\x{f3a}-\x{f3d}\x{f85}\x{fd0}-\x{fd4}\x{fd9}-\x{fda}]],
  [[\x{104a}-\x{104f}\x{10fb}\x{1360}-\x{1368}\x{1400}\x{166d}-\x{166e}\x{169b}-\x{169c}\x{16eb}-\x{16ed}]],
  [[\x{1735}-\x{1736}\x{17d4}-\x{17d6}\x{17d8}-\x{17da}\x{1800}-\x{180a}\x{1944}-\x{1945}\x{1a1e}-\x{1a1f}]],
  [[\x{1aa0}-\x{1aa6}\x{1aa8}-\x{1aad}\x{1b5a}-\x{1b60}\x{1bfc}-\x{1bff}\x{1c3b}-\x{1c3f}\x{1c7e}-\x{1c7f}]],
  [[\x{1cc0}-\x{1cc7}\x{1cd3}\x{2010}-\x{2027}\x{2030}-\x{2043}\x{2045}-\x{2051}\x{2053}-\x{205e}\x{207d}-\x{207e}]],
  [[\x{208d}-\x{208e}\x{2308}-\x{230b}\x{2329}-\x{232a}\x{2768}-\x{2775}\x{27c5}-\x{27c6}\x{27e6}-\x{27ef}]],
  [[\x{2983}-\x{2998}\x{29d8}-\x{29db}\x{29fc}-\x{29fd}\x{2cf9}-\x{2cfc}\x{2cfe}-\x{2cff}\x{2d70}\x{2e00}-\x{2e2e}]],
  [[\x{2e30}-\x{2e42}\x{3001}-\x{3003}\x{3008}-\x{3011}\x{3014}-\x{301f}\x{3030}\x{303d}\x{30a0}\x{30fb}]],
  [[\x{a4fe}-\x{a4ff}\x{a60d}-\x{a60f}\x{a673}\x{a67e}\x{a6f2}-\x{a6f7}\x{a874}-\x{a877}\x{a8ce}-\x{a8cf}]],
  [[\x{a8f8}-\x{a8fa}\x{a8fc}\x{a92e}-\x{a92f}\x{a95f}\x{a9c1}-\x{a9cd}\x{a9de}-\x{a9df}\x{aa5c}-\x{aa5f}]],
  [[\x{aade}-\x{aadf}\x{aaf0}-\x{aaf1}\x{abeb}\x{fd3e}-\x{fd3f}\x{fe10}-\x{fe19}\x{fe30}-\x{fe52}\x{fe54}-\x{fe61}]],
  [[\x{fe63}\x{fe68}\x{fe6a}-\x{fe6b}\x{ff01}-\x{ff03}\x{ff05}-\x{ff0a}\x{ff0c}-\x{ff0f}\x{ff1a}-\x{ff1b}]],
  [[\x{ff1f}-\x{ff20}\x{ff3b}-\x{ff3d}\x{ff3f}\x{ff5b}\x{ff5d}\x{ff5f}-\x{ff65}\x{10100}-\x{10102}\x{1039f}\x{103d0}]],
  [[\x{1056f}\x{10857}\x{1091f}\x{1093f}\x{10a50}-\x{10a58}\x{10a7f}\x{10af0}-\x{10af6}\x{10b39}-\x{10b3f}]],
  [[\x{10b99}-\x{10b9c}\x{11047}-\x{1104d}\x{110bb}-\x{110bc}\x{110be}-\x{110c1}\x{11140}-\x{11143}\x{11174}-\x{11175}]],
  [[\x{111c5}-\x{111c9}\x{111cd}\x{111db}\x{111dd}-\x{111df}\x{11238}-\x{1123d}\x{112a9}\x{114c6}\x{115c1}-\x{115d7}]],
  [[\x{11641}-\x{11643}\x{1173c}-\x{1173e}\x{12470}-\x{12474}\x{16a6e}-\x{16a6f}\x{16af5}\x{16b37}-\x{16b3b}\x{16b44}]],
  [[\x{1bc9f}\x{1da87}-\x{1da8b}]],
} .. "]"

local outside = {
  s = "[" .. SPACE .. "]", S = "[^" .. SPACE .. "]", w = "[" .. WORD .. "]",
    W = "[^" .. WORD .. "]",
  h = "[" .. HEX .. "]", H = "[^" .. HEX .. "]",
  b = ("(?:(?<=[%s])(?![%s])|(?<![%s])(?=[%s]))"):format(WORD, WORD, WORD, WORD),
  B = ("(?:(?<=[%s])(?=[%s])|(?<![%s])(?![%s]))"):format(WORD, WORD, WORD, WORD),
}
local inside = { s = SPACE, S = NOT_SPACE, w = WORD, h = HEX }

--- Escapes a text so that it stands for itself.
---@param text string
---@return string
function pattern.quote(text)
  return (text:gsub("[%p%s]", function(c) return c:find("%s") and ("\\x{%x}"):format(c:byte())
    or "\\" .. c end))
end

--- Reads an escape at `at` (the backslash); returns its text and what follows.
local function escape(s, at)
  local name = s:match("^\\[pPx]{[^}]*}", at) or s:match("^\\u%x%x%x%x", at)
    or s:match("^\\x%x%x?", at)
  if name and name:sub(2, 2) == "u" then return "\\x{" .. name:sub(3) .. "}", at + #name end
  name = name or s:match("^\\" .. utf8.charpattern, at)
  return name, name and at + #name
end

local class

--- The members of a class from `at` on, up to its closing bracket or &&. Returns their text, and
--- what follows.
local function members(s, at, what, depth)
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
      nested, at, negated = class(s, at, what, depth + 1)
      if negated or not nested then
        fault.raise("unsupported", "%s: a negated or intersected class within a class", what)
      end
      out[#out + 1] = nested
    elseif c == "\\" then
      local text, after = escape(s, at)
      if not text then fault.raise("format", "%s: ends in a backslash", what) end
      local letter = text:sub(2)
      if letter == "W" or letter == "H" then
        fault.raise("unsupported", "%s: \\%s within a class", what, letter)
      end
      out[#out + 1], at = inside[letter] or text, after
    else
      local char = s:match("^" .. utf8.charpattern, at)
      out[#out + 1], at = c == "]" and "\\]" or char, at + #char
    end
    first = false
  end
end

--- A class at `at` (its bracket). Returns its members, what follows, whether it is negated; for A
--- && [^B] nil, what follows, and the whole expression.
function class(s, at, what, depth)
  if depth > CLASS_DEPTH_MAX then
    fault.raise("unsupported", "%s: classes within each other, more than %d deep", what,
      CLASS_DEPTH_MAX)
  end
  local negated = s:sub(at + 1, at + 1) == "^"
  local text
  text, at = members(s, at + (negated and 2 or 1), what, depth)
  if s:sub(at, at) == "]" then return text, at + 1, negated end
  if negated or s:sub(at, at + 2) ~= "&&[" then
    fault.raise("unsupported", "%s: an intersection of classes of this form", what)
  end
  local other, out
  other, at, out = class(s, at + 2, what, depth + 1)
  if not other or s:sub(at, at) ~= "]" then
    fault.raise("unsupported", "%s: an intersection of more than two classes", what)
  end
  return nil, at + 1, ("(?:(?%s[%s])[%s])"):format(out and "!" or "=", other, text)
end

--- Translates an expression; raises faults that begin with `what`.
---@param s string
---@param what string
---@return string
function pattern.translate(s, what)
  if #s > EXPRESSION_MAX then
    fault.raise("unsupported", "%s: an expression of %d bytes (at most %d are possible)", what, #s,
      EXPRESSION_MAX)
  end
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
      local text, after, extra = class(s, at, what, 1)
      put(text and (extra and "[^" or "[") .. text .. "]" or extra, after)
    elseif c == "(" then
      local letters = s:match("^%(%?([%a%-]+)[:)]", at)
      if letters and letters:find("m") then fault.raise("unsupported", "%s: the option m", what) end
      groups[#groups + 1] = #out + 1
      put(c, at + 1)
    elseif c == ")" then
      out[#out + 1], at = c, at + 1
      atom = table.remove(groups) or fault.raise("format", "%s: a closing parenthesis too many",
        what)
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
