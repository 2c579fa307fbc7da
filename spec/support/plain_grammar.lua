-- plain_grammar.lua: random grammars as trees, their GBNF, and a matcher that only tries everything
-- out: the set of places where a part can end, character by character.
--
-- A tree is { "text", s }, { "class", set, negated }, { "any" }, { "rule", i }, { "seq", … },
-- { "or", … }, { "times", tree, least, most or false }. Rule i calls later rules anywhere, and
-- itself or earlier ones only behind a text, so that none begins with itself.
local plain = {}

local R = math.random
local letters = { "a", "b", "c", "é", "€", "😀", '"', "\\", "\n", "-", "]" }

local function pick(list) return list[R(#list)] end

local function text(least)
  local parts = {}
  for i = 1, R(least or 0, 2) do parts[i] = pick(letters) end
  return { "text", table.concat(parts) }
end

local function class()
  local set = {}
  for _ = 1, R(3) do set[pick(letters)] = true end
  return { "class", set, R(4) == 1 }
end

local function tree(i, rules, depth)
  local kind = R(10)
  if depth == 0 or kind <= 3 then
    return R(2) == 1 and text() or R(8) == 1 and { "any" } or class()
  end
  if kind == 4 and i < rules then return { "rule", R(i + 1, rules) } end
  if kind == 5 then return { "seq", text(1), { "rule", R(rules) } } end
  if kind == 6 then
    local least = R(0, 2)
    return { "times", tree(i, rules, depth - 1), least, R(2) == 1 and least + R(0, 2) }
  end
  local out = { kind <= 8 and "seq" or "or" }
  for n = 1, R(2, 3) do out[n + 1] = tree(i, rules, depth - 1) end
  return out
end

function plain.random()
  local rules, count = {}, R(3)
  for i = 1, count do rules[i] = tree(i, count, 3) end
  return rules
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["]"] = "\\]", ["-"] = "\\-" }

local function write(t)
  if t[1] == "text" then
    return '"' .. t[2]:gsub('["\\\n]', function(c) return R(2) == 1 and escapes[c]
      or ("\\x%02x"):format(c:byte()) end) .. '"'
  elseif t[1] == "any" then return "."
  elseif t[1] == "rule" then return "r" .. t[2]
  elseif t[1] == "class" then
    local parts = {}
    for c in pairs(t[2]) do
      parts[#parts + 1] = R(3) == 1 and ("\\U%08x"):format(utf8.codepoint(c)) or escapes[c] or c
    end
    return (t[3] and "[^" or "[") .. table.concat(parts) .. "]"
  elseif t[1] == "times" then
    local suffix = t[4] and ("{%d,%d}"):format(t[3], t[4]) or ("{%d,}"):format(t[3])
    if t[3] == 0 and t[4] == 1 then suffix = "?" end
    if not t[4] and t[3] < 2 then suffix = t[3] == 0 and "*" or "+" end
    return "(" .. write(t[2]) .. ")" .. suffix
  end
  local parts = {}
  for i = 2, #t do parts[i - 1] = write(t[i]) end
  return "(" .. table.concat(parts, t[1] == "or" and " | " or " ") .. ")"
end

function plain.gbnf(rules)
  local lines = { "root ::= r1 # the first" }
  for i, t in ipairs(rules) do lines[i + 1] = ("r%d ::= %s"):format(i, write(t)) end
  return table.concat(lines, "\n")
end

-- Where a tree can end that begins at `from` (characters, from 1). `budget` bounds the work.
local function ends(rules, t, s, from, memo)
  memo.work = memo.work + 1
  if memo.work > 20000 then error "too much work" end
  local key = t
  memo[key] = memo[key] or {}
  if memo[key][from] then return memo[key][from] end
  local out = {}
  memo[key][from] = out
  if t[1] == "text" then
    local at = from
    for _, c in utf8.codes(t[2]) do
      if s[at] ~= utf8.char(c) then return out end
      at = at + 1
    end
    out[at] = true
  elseif t[1] == "any" then out[from + 1] = s[from] ~= nil or nil
  elseif t[1] == "class" then
    if s[from] and (t[2][s[from]] or false) ~= t[3] then out[from + 1] = true end
  elseif t[1] == "rule" then
    for at in pairs(ends(rules, rules[t[2]], s, from, memo)) do out[at] = true end
  elseif t[1] == "or" then
    for i = 2, #t do for at in pairs(ends(rules, t[i], s, from, memo)) do out[at] = true end end
  elseif t[1] == "seq" then
    local now = { [from] = true }
    for i = 2, #t do
      local after = {}
      for at in pairs(now) do
        for to in pairs(ends(rules, t[i], s, at, memo)) do after[to] = true end
      end
      now = after
    end
    for at in pairs(now) do out[at] = true end
  else
    local now, least, most = { [from] = true }, t[3], t[4] or t[3] + #s + 1
    if least == 0 then out[from] = true end
    for n = 1, most do
      local after = {}
      for at in pairs(now) do
        for to in pairs(ends(rules, t[2], s, at, memo)) do after[to] = true end
      end
      now = after
      if n >= least then for at in pairs(now) do out[at] = true end end
    end
  end
  return out
end

--- Whether a text, a list of characters, is one of the grammar's; nil: too much work to say.
function plain.match(rules, s)
  local ok, found = pcall(ends, rules, rules[1], s, 1, { work = 0 })
  if not ok then
    if not tostring(found):find "too much work" then error(found, 0) end
    return nil
  end
  return found[#s + 1] or false
end

--- A text of the grammar as characters, or nil where none was found in a few tries.
function plain.sample(rules)
  local out, work = {}, 0
  local function add(t)
    work = work + 1
    if work > 200 then error "too long" end
    if t[1] == "text" then for _, c in utf8.codes(t[2]) do out[#out + 1] = utf8.char(c) end
    elseif t[1] == "any" then out[#out + 1] = pick(letters)
    elseif t[1] == "rule" then add(rules[t[2]])
    elseif t[1] == "or" then add(t[R(2, #t)])
    elseif t[1] == "seq" then for i = 2, #t do add(t[i]) end
    elseif t[1] == "times" then for _ = 1, R(t[3], t[4] or t[3] + 2) do add(t[2]) end
    else
      for _ = 1, 30 do
        local c = pick(letters)
        if (t[2][c] or false) ~= t[3] then
          out[#out + 1] = c
          return
        end
      end
      error "too long"
    end
  end
  for _ = 1, 5 do
    out, work = {}, 0
    if pcall(add, rules[1]) then return out end
  end
end

--- Characters at random.
function plain.noise()
  local out = {}
  for i = 1, R(0, 6) do out[i] = pick(letters) end
  return out
end

return plain
