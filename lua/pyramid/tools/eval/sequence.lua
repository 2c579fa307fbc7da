--- Two sequences compared: the longest common subsequence, and Python's difflib, which metrics of
--- the field are defined by.
local sequence = {}

-- The table of lengths: table[i][j] of the first i of a and the first j of b.
local function lengths(a, b)
  local rows = { [0] = {} }
  for j = 0, #b do rows[0][j] = 0 end
  for i = 1, #a do
    local row, above = { [0] = 0 }, rows[i - 1]
    for j = 1, #b do
      row[j] = a[i] == b[j] and above[j - 1] + 1 or math.max(above[j], row[j - 1])
    end
    rows[i] = row
  end
  return rows
end

---How many elements the longest common subsequence has.
---@param a any[]
---@param b any[]
---@return integer
function sequence.common(a, b)
  local above = {}
  for j = 0, #b do above[j] = 0 end
  for i = 1, #a do
    local row = { [0] = 0 }
    for j = 1, #b do
      row[j] = a[i] == b[j] and above[j - 1] + 1 or math.max(above[j], row[j - 1])
    end
    above = row
  end
  return above[#b]
end

---The elements of one longest common subsequence. Of several it is the one that drops b's last
---element first, which is what the `rouge` package finds.
---@param a any[]
---@param b any[]
---@return any[]
function sequence.longest(a, b)
  local rows, i, j, back = lengths(a, b), #a, #b, {}
  while i > 0 and j > 0 do
    if a[i] == b[j] then
      back[#back + 1] = a[i]
      i, j = i - 1, j - 1
    elseif rows[i - 1][j] > rows[i][j - 1] then i = i - 1
    else j = j - 1 end
  end
  local out = {}
  for k = #back, 1, -1 do out[#out + 1] = back[k] end
  return out
end

-- Where each element of b stands. As difflib does by default, elements of a long b that are too
-- frequent begin no match.
local function places(b)
  local at = {}
  for j, x in ipairs(b) do
    at[x] = at[x] or {}
    table.insert(at[x], j)
  end
  if #b >= 200 then
    for x, list in pairs(at) do
      if #list > #b // 100 + 1 then at[x] = nil end
    end
  end
  return at
end

-- The longest stretch that a[a1 .. a2 - 1] and b[b1 .. b2 - 1] have in common, the first of
-- several: where it begins in both, and its length.
local function longest_match(a, b, at, a1, a2, b1, b2)
  local best_a, best_b, size, ending = a1, b1, 0, {}
  for i = a1, a2 - 1 do
    local now = {}
    for _, j in ipairs(at[a[i]] or {}) do
      if j >= b2 then break end
      if j >= b1 then
        local k = (ending[j - 1] or 0) + 1
        now[j] = k
        if k > size then best_a, best_b, size = i - k + 1, j - k + 1, k end
      end
    end
    ending = now
  end
  -- what is too frequent to begin a match goes on with one
  while best_a > a1 and best_b > b1 and a[best_a - 1] == b[best_b - 1] do
    best_a, best_b, size = best_a - 1, best_b - 1, size + 1
  end
  while best_a + size < a2 and best_b + size < b2 and a[best_a + size] == b[best_b + size] do
    size = size + 1
  end
  return best_a, best_b, size
end

---How alike two sequences are, from 0 to 1: difflib's SequenceMatcher(None, a, b).ratio(), twice
---what matches (the longest common stretch, and so on before and after it) over both lengths.
---@param a any[]
---@param b any[]
---@return number
function sequence.ratio(a, b)
  if #a + #b == 0 then return 1 end
  local at, matches, waiting = places(b), 0, { { 1, #a + 1, 1, #b + 1 } }
  while #waiting > 0 do
    local a1, a2, b1, b2 = table.unpack(table.remove(waiting))
    local i, j, size = longest_match(a, b, at, a1, a2, b1, b2)
    if size > 0 then
      matches = matches + size
      if a1 < i and b1 < j then waiting[#waiting + 1] = { a1, i, b1, j } end
      if i + size < a2 and j + size < b2 then
        waiting[#waiting + 1] = { i + size, a2, j + size, b2 }
      end
    end
  end
  return 2 * matches / (#a + #b)
end

return sequence
