--- Python's ideas of text that templates rely on: characters are code points, white space is
--- Unicode's, lines end in more ways than one. Texts that are not UTF-8 count a byte as a
--- character.
local text = {}

-- What str.strip(), str.split() and \s of Python's re take for white space (str.isspace): ASCII
-- apart from the rest.
local ascii_space = "[\t-\r\x1c- ]"
local wide_space = {}
for _, cp in ipairs { 0x85, 0xA0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006,
  0x2007, 0x2008,
  0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000 } do wide_space[utf8.char(cp)] = true end

-- As many characters as bytes; far sooner known than by a pattern.
local function is_ascii(s) return utf8.len(s) == #s end
text.is_ascii = is_ascii

--- Bytes of the white-space character that begins at byte i of s, or nil.
local function space_at(s, i)
  if s:find("^" .. ascii_space, i) then return 1 end
  local b = s:byte(i)
  if not b or b < 0xC2 then return nil end
  if wide_space[s:sub(i, i + 1)] then return 2 end
  if wide_space[s:sub(i, i + 2)] then return 3 end
end

--- Bytes of the white-space character that ends at byte i of s, or nil.
local function space_before(s, i)
  if i < 1 then return nil end
  if s:find("^" .. ascii_space, i) then return 1 end
  if i >= 2 and wide_space[s:sub(i - 1, i)] then return 2 end
  if i >= 3 and wide_space[s:sub(i - 2, i)] then return 3 end
end
text.space_at = space_at

--- str.strip() and its halves, in time linear in the text.
function text.strip(s, left, right)
  local first, last = 1, #s
  if left then
    while first <= last do
      local n = space_at(s, first)
      if not n then break end
      first = first + n
    end
  end
  if right then
    while last >= first do
      local n = space_before(s, last)
      if not n then break end
      last = last - n
    end
  end
  return s:sub(first, last)
end

--- The characters of a text.
---@return string[]
function text.characters(s)
  local out = {}
  if is_ascii(s) or not utf8.len(s) then
    for i = 1, #s do out[i] = s:sub(i, i) end
    return out
  end
  for c in s:gmatch(utf8.charpattern) do out[#out + 1] = c end
  return out
end

function text.length(s) return is_ascii(s) and #s or utf8.len(s) or #s end

--- Characters first to last (from 1), as string.sub counts them when both are positive.
function text.sub(s, first, last)
  if is_ascii(s) or not utf8.len(s) then return s:sub(first, last) end
  local from = utf8.offset(s, first)
  if not from or first > last then return "" end
  local behind = utf8.offset(s, last - first + 2, from)
  return s:sub(from, (behind or #s + 1) - 1)
end

--- The number of the character (from 0) that begins at byte i.
function text.index(s, i)
  if is_ascii(s) then return i - 1 end
  return text.length(s:sub(1, i - 1))
end

--- str.strip(chars): characters of a set go.
function text.strip_set(s, set, left, right)
  local cs, drop = text.characters(s), {}
  for _, c in ipairs(text.characters(set)) do drop[c] = true end
  local first, last = 1, #cs
  while left and first <= last and drop[cs[first]] do first = first + 1 end
  while right and last >= first and drop[cs[last]] do last = last - 1 end
  return table.concat(cs, "", first, last)
end

-- Case is ASCII's; a text with other letters has no answer here (nil), for Unicode's tables are the
-- core's.
function text.upper(s)
  return is_ascii(s) and (s:gsub("[a-z]", function(c) return string.char(c:byte() - 32) end)) or nil
end
function text.lower(s)
  return is_ascii(s) and (s:gsub("[A-Z]", function(c) return string.char(c:byte() + 32) end)) or nil
end

--- str.splitlines().
---@return string[]
function text.lines(s, keep)
  local out, from, i = {}, 1, 1
  while true do
    local at = s:find("[\n\r\v\f\x1c-\x1e\xc2\xe2]", i)
    if not at then break end
    local n = 0
    if s:find("^\r\n", at) then n = 2
    elseif s:find("^[\n\r\v\f\x1c-\x1e]", at) then n = 1
    elseif s:find("^\xc2\x85", at) then n = 2
    elseif s:find("^\xe2\x80[\xa8\xa9]", at) then n = 3 end
    if n > 0 then
      out[#out + 1] = s:sub(from, at - 1 + (keep and n or 0))
      from = at + n
    end
    i = at + math.max(n, 1)
  end
  if from <= #s then out[#out + 1] = s:sub(from) end
  return out
end

--- str.split(): by runs of white space, at most `most` times (-1: all), from the left.
---@return string[]
function text.words(s, most)
  local out, i = {}, 1
  while true do
    local n = space_at(s, i)
    while n do
      i = i + n
      n = space_at(s, i)
    end
    if i > #s then return out end
    if most >= 0 and #out == most then
      out[#out + 1] = text.strip(s:sub(i), false, true)
      return out
    end
    local from = i
    while i <= #s and not space_at(s, i) do i = i + 1 end
    out[#out + 1] = s:sub(from, i - 1)
  end
end

--- str.split(separator, most), from the left.
---@return string[]
function text.split(s, separator, most)
  local out, from = {}, 1
  while most ~= 0 do
    local at, last = s:find(separator, from, true)
    if not at then break end
    out[#out + 1] = s:sub(from, at - 1)
    from, most = last + 1, most - 1
  end
  out[#out + 1] = s:sub(from)
  return out
end

--- str.rsplit(separator, most): the last `most` separators split.
---@return string[]
function text.split_right(s, separator, most)
  local all = text.split(s, separator, -1)
  if most < 0 or #all - 1 <= most then return all end
  local head = #all - most
  local out = { table.concat(all, separator, 1, head) }
  return table.move(all, head + 1, #all, 2, out)
end

--- str.replace(old, new, most).
function text.replace(s, old, new, most)
  if most == 0 then return s end
  if old == "" then
    local cs = text.characters(s)
    local n, out = 0, {}
    for i = 1, #cs + 1 do
      if most < 0 or n < most then out[#out + 1], n = new, n + 1 end
      out[#out + 1] = cs[i]
    end
    return table.concat(out)
  end
  return table.concat(text.split(s, old, most), new)
end

-- Unicode's control and separator characters and the like that repr() escapes, as far as texts have
-- them.
local function printable(cp)
  return not (cp < 0x20 or (cp >= 0x7F and cp <= 0xA0) or cp == 0xAD or (cp >= 0x2000
    and cp <= 0x200F) or cp == 0x1680
    or (cp >= 0x2028 and cp <= 0x202F) or (cp >= 0x205F and cp <= 0x206F) or cp == 0x3000
      or cp == 0xFEFF
    or (cp >= 0xD800 and cp <= 0xF8FF) or cp >= 0xE0000)
end

--- repr() of a text.
function text.repr(s)
  local quote = s:find("'", 1, true) and not s:find('"', 1, true) and '"' or "'"
  local out = {}
  for _, c in ipairs(text.characters(s)) do
    local cp = #c > 1 and utf8.codepoint(c) or c:byte()
    if c == quote or c == "\\" then c = "\\" .. c
    elseif c == "\n" then c = "\\n" elseif c == "\r" then c = "\\r" elseif c == "\t" then c = "\\t"
    elseif not printable(cp) then c = (cp < 0x100 and "\\x%02x" or cp < 0x10000 and "\\u%04x"
      or "\\U%08x"):format(cp) end
    out[#out + 1] = c
  end
  return quote .. table.concat(out) .. quote
end

return text
