--- What schemas and patterns share when they write GBNF: literals, classes of characters as JSON
--- spells them in strings, ranges of numbers.
local text = {}

local named = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ['"'] = '\\"', ["\\"] = "\\\\" }

---A text as a literal.
---@param s string
---@return string
function text.literal(s)
  return '"' .. s:gsub('[%c"\\]', function(c) return named[c] or ("\\x%02X"):format(c:byte()) end)
    .. '"'
end

---One of several expressions; nil: none can be.
---@param list string[]
---@return string?
function text.choice(list)
  if #list == 0 then return nil end
  return #list == 1 and list[1] or "(" .. table.concat(list, " | ") .. ")"
end

local function escape(cp)
  if cp > 0xffff then return ("\\U%08X"):format(cp) end
  if cp < 32 or cp > 126 then return ("\\u%04X"):format(cp) end
  local c = string.char(cp)
  return c:find "[%-%^%[%]\\]" and "\\" .. c or c
end

---Ranges of code points, sorted and joined. Surrogates are no characters.
---@param ranges integer[][]
---@return integer[][]
function text.join(ranges)
  local sorted, out = {}, {}
  for i, range in ipairs(ranges) do sorted[i] = range end
  table.sort(sorted, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(sorted) do
    local last = out[#out]
    if last and range[1] <= last[2] + 1 then last[2] = math.max(last[2], range[2])
    else out[#out + 1] = { range[1], range[2] } end
  end
  return out
end

---What ranges, joined, leave out.
---@param ranges integer[][]
---@return integer[][]
function text.negate(ranges)
  local out, from = {}, 0
  for _, range in ipairs(ranges) do
    if range[1] > from then out[#out + 1] = { from, range[1] - 1 } end
    from = range[2] + 1
  end
  if from <= 0x10ffff then out[#out + 1] = { from, 0x10ffff } end
  return out
end

local short = { [8] = "b", [9] = "t", [10] = "n", [12] = "f", [13] = "r", [34] = '"', [92] = "\\" }

---One character of those ranges (joined), as JSON's strings spell it: itself, or escaped where it
---must be. Nothing that may stand for itself is escaped, but for U+007F, which both can be.
---@param ranges integer[][]
---@return string?
function text.char(ranges)
  local raw, alternatives, controls = {}, {}, 0
  local special = { { 0, 31 }, { 34, 34 }, { 92, 92 } }
  local has = {}
  for _, range in ipairs(ranges) do
    for _, s in ipairs(special) do
      for cp = math.max(range[1], s[1]), math.min(range[2], s[2]) do
        has[cp] = true
        if cp < 32 then controls = controls + 1 end
      end
    end
    if range[1] <= 127 and range[2] >= 127 then has[127] = true end
    local from = range[1]
    for _, s in ipairs { { 0, 31 }, { 34, 34 }, { 92, 92 }, { 0xd800, 0xdfff } } do
      if from <= s[2] and range[2] >= s[1] then
        if from < s[1] then raw[#raw + 1] = { from, s[1] - 1 } end
        from = s[2] + 1
      end
    end
    if from <= range[2] then raw[#raw + 1] = { from, range[2] } end
  end
  if #raw > 0 then
    local parts = {}
    for i, range in ipairs(raw) do
      parts[i] = escape(range[1]) .. (range[2] > range[1] and "-" .. escape(range[2]) or "")
    end
    alternatives[1] = "[" .. table.concat(parts) .. "]"
  end
  local letters = ""
  for cp = 0, 127 do
    if has[cp] and short[cp] then
      letters = letters .. (short[cp] == "\\" and "\\\\" or short[cp] == '"' and '\\"' or short[cp])
    elseif has[cp] and not (cp < 32 and controls == 32) then
      alternatives[#alternatives + 1] = text.literal(("\\u%04x"):format(cp))
    end
  end
  if letters ~= "" then alternatives[#alternatives + 1] = ('"\\\\" [%s]'):format(letters) end
  if controls == 32 then alternatives[#alternatives + 1] = '"\\\\u00" [01] [0-9a-f]' end
  return text.choice(alternatives)
end

-- ---- numbers ------------------------------------------------------------------------------------

local function times(n) return n == 0 and "" or n == 1 and "[0-9]" or ("[0-9]{%d}"):format(n) end

local function digit(a, b)
  if a > b then return nil end
  return a == b and ('"%d"'):format(a) or ("[%d-%d]"):format(a, b)
end

-- Digit strings between two of the same length.
local function between(a, b)
  if a == "" then return "" end
  if a:find "^0*$" and b:find "^9*$" then return times(#a) end
  local x, y, rest_a, rest_b = tonumber(a:sub(1, 1)), tonumber(b:sub(1, 1)), a:sub(2), b:sub(2)
  if x == y then return digit(x, x) .. " " .. between(rest_a, rest_b) end
  local list = { digit(x, x) .. " " .. between(rest_a, ("9"):rep(#rest_a)) }
  local middle = digit(x + 1, y - 1)
  if middle then list[#list + 1] = middle .. " " .. times(#rest_a) end
  list[#list + 1] = digit(y, y) .. " " .. between(("0"):rep(#rest_b), rest_b)
  return text.choice(list)
end

---Integers from lo to hi, both at least 0; hi nil: without end.
---@param lo integer
---@param hi? integer
---@return string?
function text.naturals(lo, hi)
  if hi and hi < lo then return nil end
  local list, a = {}, ("%d"):format(lo)
  local most = hi and ("%d"):format(hi)
  for n = #a, most and #most or #a do
    local from = n == #a and a or "1" .. ("0"):rep(n - 1)
    list[#list + 1] = between(from, most and n == #most and most or ("9"):rep(n))
  end
  if not hi then list[#list + 1] = ("[1-9] [0-9]{%d,}"):format(#a) end
  return text.choice(list)
end

-- Fractions: digits behind the point. `d` has no zeros at its end; nil: no such digits.
local function at_least(d, inclusive)
  if d == "" then return inclusive and "[0-9]*" or "[0-9]* [1-9] [0-9]*" end
  local c, list = tonumber(d:sub(1, 1)), {}
  if c < 9 then list[1] = digit(c + 1, 9) .. " [0-9]*" end
  list[#list + 1] = digit(c, c) .. " " .. at_least(d:sub(2), inclusive)
  return text.choice(list)
end

local function at_most(d, inclusive, first)
  if d == "" then
    if not inclusive then return nil end
    return first and '"0"+' or '"0"*'
  end
  local c, list = tonumber(d:sub(1, 1)), {}
  if c > 0 then list[1] = digit(0, c - 1) .. " [0-9]*" end
  local rest = at_most(d:sub(2), inclusive)
  if rest then list[#list + 1] = digit(c, c) .. " " .. rest end
  if not first then list[#list + 1] = '""' end
  return text.choice(list)
end

local function inside(low, with_low, high, with_high, first)
  if low == "" then
    if with_low then return at_most(high, with_high, first) end
    if high == "" then return nil end
  end
  local x, y = tonumber(low:sub(1, 1)) or 0, tonumber(high:sub(1, 1)) or 0
  local list = {}
  if x > y then return nil end
  if x == y then
    local rest = inside(low:sub(2), with_low, high:sub(2), with_high)
    return rest and digit(x, x) .. " " .. rest
  end
  list[1] = digit(x, x) .. " " .. at_least(low:sub(2), with_low)
  local middle = digit(x + 1, y - 1)
  if middle then list[#list + 1] = middle .. " [0-9]*" end
  local rest = at_most(high:sub(2), with_high)
  if rest then list[#list + 1] = digit(y, y) .. " " .. rest end
  return text.choice(list)
end

-- The whole part and the digits behind the point of a number at least 0; nil where it needs an
-- exponent.
local function decimal(x)
  for digits = 1, 17 do
    local s = ("%%.%dg"):format(digits):format(x)
    local whole, fraction = s:match "^(%d+)%.?(%d*)$"
    if whole and tonumber(s) == x then
      return #whole <= 16 and math.tointeger(tonumber(whole)) or nil, (fraction:gsub("0+$", ""))
    end
  end
end

-- Numbers at least 0, between bounds { value, inclusive }; high nil: without end. false: one of the
-- bounds cannot be written out.
local function magnitudes(low, high)
  local a, low_digits = decimal(low[1])
  local b, high_digits
  if high then b, high_digits = decimal(high[1]) end
  if not a or high and not b then return false end
  if high and (low[1] > high[1] or low[1] == high[1] and not (low[2] and high[2])) then
    return nil
  end
  local any, list = '("." [0-9]+)?', {}
  if high and a == b then
    local whole = text.naturals(a, a)
    local digits = inside(low_digits, low[2], high_digits, high[2], true)
    if low_digits == "" and low[2] then list[1] = whole end
    if digits then list[#list + 1] = whole .. ' "." ' .. digits end
    return text.choice(list)
  end
  local whole = text.naturals(a, a)
  if low_digits == "" and low[2] then list[1] = whole .. " " .. any
  else list[1] = whole .. ' "." ' .. at_least(low_digits, low[2]) end
  local middle = text.naturals(a + 1, high and b - 1 or nil)
  if middle then list[#list + 1] = middle .. " " .. any end
  if high then
    local digits = at_most(high_digits, high[2], true)
    whole = text.naturals(b, b)
    if high_digits ~= "" or high[2] then list[#list + 1] = whole end
    if digits then list[#list + 1] = whole .. ' "." ' .. digits end
  end
  return text.choice(list)
end

---Numbers between bounds { value, inclusive }, nil: none. Without exponents. Returns nil where
---there is no such number, false where a bound cannot be written out.
---@param low? { [1]: number, [2]: boolean }
---@param high? { [1]: number, [2]: boolean }
---@return string|false|nil
function text.numbers(low, high)
  local list = {}
  if not high or high[1] >= 0 then
    local found = magnitudes(low and low[1] >= 0 and low or { 0, true }, high)
    if found == false then return false end
    list[1] = found
  end
  if not low or low[1] < 0 then
    -- what is below 0, by its magnitude; 0 itself stands above
    local least = high and high[1] < 0 and { -high[1], high[2] } or { 0, false }
    local found = magnitudes(least, low and { -low[1], low[2] })
    if found == false then return false end
    if found then list[#list + 1] = '"-" ' .. found end
  end
  return text.choice(list)
end

---Integers between bounds, both inclusive.
---@param low? integer
---@param high? integer
---@return string?
function text.integers(low, high)
  local list = {}
  if not high or high >= 0 then list[1] = text.naturals(math.max(low or 0, 0), high) end
  if not low or low < 0 then
    local found = text.naturals(high and high < 0 and -high or 1, low and -low)
    if found then list[#list + 1] = '"-" ' .. found end
  end
  return text.choice(list)
end

return text
