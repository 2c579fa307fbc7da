-- What mutators of spec/fuzz share: bytes and JSON that are nearly right. All choices come from
-- math.random, which the caller seeds, and tables are walked in the order of their keys, so that a
-- seed says everything.
local cjson = require "cjson".new()

local mutate = {}

local R = math.random

--- One of a sequence.
function mutate.pick(list) return list[R(#list)] end
local pick = mutate.pick

--- Whole numbers at which code goes wrong.
mutate.integers = { 0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 127, 128, 255, 256, 257, 1000, 4095,
  4096, 65535, 65536, 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 30) - 1, 1 << 30, 0x7fffffff,
    0x80000000, 0xffffffff, 1 << 32, 1 << 40, 1 << 53, 1 << 62, math.maxinteger, math.mininteger,
      -1, -2 }

-- Bytes of numbers in files, of 4 and 8 bytes.
local function number_bytes()
  local n = pick(mutate.integers)
  if R(2) == 1 then return ("<I4"):pack(n & 0xffffffff) end
  return ("<i8"):pack(n)
end

local ways = {
  function(s, at) return s:sub(1, at - 1) .. string.char(R(0, 255)) .. s:sub(at + 1) end,
  function(s, at) return s:sub(1, at - 1) .. string.char(s:byte(at) ~ 1 << R(0, 7))
    .. s:sub(at + 1) end,
  function(s, at)
    local put = number_bytes()
    return s:sub(1, at - 1) .. put .. s:sub(at + #put)
  end,
  function(s, at) return s:sub(1, at - 1) .. s:sub(at + R(1, 40)) end,
  function(s, at)
    local piece = s:sub(at, at + R(0, 40))
    return s:sub(1, at - 1) .. piece:rep(R(6) == 1 and R(2, 400) or 2) .. s:sub(at + #piece)
  end,
  function(s, at)
    local piece, to = s:sub(at, at + R(0, 30)), R(1, #s)
    return s:sub(1, to - 1) .. piece .. s:sub(to + #piece)
  end,
  function(s) return R(4) == 1 and s:sub(1, R(0, #s)) or s end,
}

--- One to four changes within the first `limit` bytes (default: anywhere).
function mutate.bytes(s, limit)
  for _ = 1, R(1, 4) do
    local n = math.min(#s, limit or #s)
    if n < 2 then return s .. string.char(R(0, 255)) end
    s = pick(ways)(s, R(1, n))
  end
  return s
end

-- ---- JSON ---------------------------------------------------------------------------------------

--- Texts that mean something to tokenizers, configurations and expressions, or to nobody.
mutate.texts = { "", "a", "\0", "\xff\xfe", "Ġ", "▁", "<0x41>", "\u{10ffff}", ("x"):rep(300),
  "(a|a)*b", "((((", "(?i)x", "\\", "[", "[^", "\\p{L}+", "(?=a)", "a{0,65535}", "(?:a+)+$",
    "(*LIMIT_MATCH=1)a", "\\Ka", "(?<=\\Ka)", "(?R)", "\\G", "$", "^", "\\b", " ", "BPE",
      "ByteLevel", "Metaspace", "Sequence", "Replace", "Split", "Isolated", "Removed",
        "MergedWithNext", "MergedWithPrevious", "Contiguous", "llama", "yarn", "linear", "llama3",
          "default", "dynamic", "longrope", "none", "silu", "always", "first", "never",
            "sliding_attention", "full_attention", "Fuse", "Strip", "NFC", "NFKD", "Lowercase",
              "ByteFallback", "../x", "/dev/zero", "." }
local numbers = { 0, 1, 2, 3, 4, 8, -1, 0.5, 1e-45, 1e308, -1e308, 1e19, 1e15, 2 ^ 53,
  2 ^ 31, 2 ^ 31 - 1, 2 ^ 32, 2 ^ 24, 2 ^ 24 - 1, 2 ^ 30,
  2 ^ 20, 65536, 1000, 1024, 512, 64, 32, 1e-6, 10000, 1 / 3, 16, 48, 47 }
local raws = { "1e999", "-1e999", "1E+2", "-0", "0x10", "NaN", "Infinity", "1.0", "2.0",
  "99999999999999999999", "null", "[]", "{}", "[[]]",
  "true", "false", '"\\u0000"', '"\\ud800"', "[null]", "[1,2]", '{"a":1}', '{"a":1,"a":2}',
    ("["):rep(200) .. ("]"):rep(200) }

local Raw = {}
local function raw(text) return setmetatable({ text = text }, Raw) end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\" }
local function quote(s)
  return '"' .. s:gsub('[%c"\\]', function(c) return escapes[c]
    or ("\\u%04x"):format(c:byte()) end) .. '"'
end

local function sorted(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return keys
end

-- Empty tables are lists: in the files that cases are made from, most are.
local function is_list(t)
  local count = 0
  for _ in pairs(t) do count = count + 1 end
  return count == #t
end

--- A value's text: numbers and texts as they are, legal or not.
function mutate.encode(v)
  if type(v) == "string" then return quote(v) end
  if type(v) == "number" then
    if v ~= v or v == math.huge or v == -math.huge then return "1e999" end
    local whole = math.tointeger(v)
    return whole and math.abs(whole) < 1 << 53 and tostring(whole) or ("%.17g"):format(v)
  end
  if type(v) ~= "table" then return v == cjson.null and "null" or tostring(v) end
  if getmetatable(v) == Raw then return v.text end
  local out = {}
  if is_list(v) then
    for i = 1, #v do out[i] = mutate.encode(v[i]) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for i, key in ipairs(sorted(v)) do
    out[i] = quote(tostring(key)) .. ":" .. mutate.encode(v[key])
  end
  return "{" .. table.concat(out, ",") .. "}"
end

mutate.decode = cjson.decode

--- A copy, all the way down.
function mutate.copy(v)
  if type(v) ~= "table" then return v end
  local out = setmetatable({}, getmetatable(v))
  for key, value in pairs(v) do out[key] = mutate.copy(value) end
  return out
end

-- Places in a value, { table, key }: all of small ones, the first 400 of each table, 3,000 in all.
local function places(v, out)
  if type(v) ~= "table" or getmetatable(v) == Raw then return out end
  for i, key in ipairs(sorted(v)) do
    if i > 400 or #out > 3000 then break end
    out[#out + 1] = { v, key }
    places(v[key], out)
  end
  return out
end

--- Something that no one expects.
function mutate.anything()
  local how = R(10)
  if how <= 3 then return pick(numbers) end
  if how <= 6 then return pick(mutate.texts) end
  if how == 7 then return R(2) == 1 end
  return raw(pick(raws))
end

-- Something of the same kind, if there is such a thing.
local function alike(value)
  if math.type(value) == "integer" or type(value) == "number" and value % 1 == 0 then
    return R(2) == 1 and pick(mutate.integers) or value + pick { 1, -1, value, -value // 2 }
  end
  if type(value) == "number" then return pick(numbers) end
  if type(value) == "string" then return pick(mutate.texts) end
  if type(value) == "boolean" then return not value end
  return mutate.anything()
end

--- A copy of a decoded value with one to three changes.
function mutate.value(v)
  v = mutate.copy(v)
  for _ = 1, R(1, 3) do
    local all = places(v, {})
    if #all == 0 then return v end
    local place, other = pick(all), pick(all)
    local t, key, how = place[1], place[2], R(10)
    if how <= 3 then t[key] = alike(t[key])
    elseif how == 4 then t[key] = mutate.anything()
    elseif how == 5 then
      if math.type(key) == "integer" then table.remove(t, key) else t[key] = nil end
    elseif how == 6 then t[key] = mutate.copy(other[1][other[2]])
    elseif how == 7 then
      local mine, theirs = t[key], other[1][other[2]]
      t[key], other[1][other[2]] = mutate.copy(theirs), mutate.copy(mine)
    elseif how == 8 and type(key) == "string" then t[pick(mutate.texts)] = t[key]
    elseif type(t[key]) == "number" then t[key] = t[key] + pick { 1, -1, 0.5, 2 ^ 20, -2 ^ 20 }
    elseif type(t[key]) == "string" then t[key] = mutate.bytes(t[key])
    else t[key] = mutate.anything() end
  end
  return v
end

--- A JSON file that is nearly `value`.
function mutate.json(value)
  local text = mutate.encode(mutate.value(value))
  return R(8) == 1 and mutate.bytes(text) or text
end

return mutate
