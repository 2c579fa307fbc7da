--- How far figures can be trusted: means with their errors, shares with theirs, and whether two
--- differ by more than that. All intervals are those that hold the true value with 95 %.
local noise = {}

-- Student's t for 95 %, both sides, by degrees of freedom; beyond, by what it falls to.
local student = { 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228 }

---By how many standard errors the mean of n measurements may be off; math.huge for one.
---@param n integer
---@return number
function noise.errors(n) return n < 2 and math.huge or student[n - 1] or 1.96 + 2.4 / (n - 1) end

---The mean of a few measurements, and half the width of its interval; math.huge where one
---measurement alone tells none.
---@param list number[]
---@return number mean
---@return number half
function noise.mean(list)
  local sum, squares, n = 0, 0, #list
  for _, x in ipairs(list) do sum = sum + x end
  local mean = n > 0 and sum / n or 0
  if n < 2 then return mean, math.huge end
  for _, x in ipairs(list) do squares = squares + (x - mean) ^ 2 end
  return mean, noise.errors(n) * math.sqrt(squares / (n - 1) / n)
end

---The mean difference of two lists measured on the same things, in the same order, and half the
---width of its interval: what differs between the things is in neither.
---@param a number[]
---@param b number[]
---@return number mean    of a - b
---@return number half
function noise.paired(a, b)
  if #a ~= #b then error("noise.paired: the lists are not of the same things", 2) end
  local differences = {}
  for i, x in ipairs(a) do differences[i] = x - b[i] end
  return noise.mean(differences)
end

---Half the width of the interval of a share that was counted (Wilson's, seen from its own middle).
---@param right integer
---@param asked integer
---@return number
function noise.share(right, asked)
  if asked == 0 then return 0 end
  local z, p = 1.96, right / asked
  return z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked)) / (1 + z * z / asked)
end

---Wilson's interval of a counted share.
---@param right number
---@param asked integer
---@return number low
---@return number high
local function interval(right, asked)
  if asked == 0 then return 0, 1 end
  local middle, half = (right / asked + 1.96 ^ 2 / (2 * asked)) / (1 + 1.96 ^ 2 / asked),
    noise.share(right, asked)
  return middle - half, middle + half
end

noise.interval = interval

---Whether one counted share is greater than another by more than chance would make of equal ones
---(Newcombe's interval of a difference, which two Wilson intervals make; half a count on either
---side, without which few counts would tell too much).
---@param right integer
---@param asked integer
---@param other_right integer
---@param other_asked integer
---@return boolean
function noise.greater(right, asked, other_right, other_asked)
  if asked == 0 or other_asked == 0 then return false end
  local p, q = right / asked, other_right / other_asked
  local low, high = interval(right, asked), select(2, interval(other_right, other_asked))
  return p - q - 0.5 / asked - 0.5 / other_asked > math.sqrt((p - low) ^ 2 + (high - q) ^ 2)
end

---How often chance alone would make as great a difference, in either direction, between two that
---were asked the same: one answered `won` questions that the other did not, which answered `lost`
---that it did not (the exact test of McNemar, a coin tossed won + lost times).
---@param won integer
---@param lost integer
---@return number p
function noise.mcnemar(won, lost)
  local n, least = won + lost, math.min(won, lost)
  -- The binomial terms 0 .. least, summed against the last, which is the greatest: 2^-n alone would
  -- be 0 from n = 1075 on.
  local last, term, sum = -n * math.log(2), 1.0, 1.0
  for k = 1, least do last = last + math.log((n - k + 1) / k) end
  for k = least, 1, -1 do
    term = term * k / (n - k + 1)
    sum = sum + term
  end
  return math.min(1, 2 * math.exp(last) * sum)
end

---Whether one is better than another that was asked the same: chance alone would make it so, or the
---other way round, in fewer than 5 of 100.
---@param won integer
---@param lost integer
---@return boolean
function noise.wins(won, lost) return won > lost and noise.mcnemar(won, lost) < 0.05 end

---How two sums relate that were measured on the same things: sum(a) / sum(b), and half the width of
---its interval. What is measured of one thing belongs together: give one pair of numbers for each
---(of a document, say, the points of all its questions), not one for each question.
---@param a number[]
---@param b number[]
---@return number? ratio   nil where sum(b) is 0
---@return number half     math.huge for one thing
function noise.ratio(a, b)
  if #a ~= #b then error("noise.ratio: the lists are not of the same things", 2) end
  local over, under, n = 0, 0, #a
  for i, x in ipairs(a) do over, under = over + x, under + b[i] end
  if under == 0 then return nil, math.huge end
  local ratio, squares = over / under, 0
  if n < 2 then return ratio, math.huge end
  -- what each thing adds to the ratio's error, to first order (the delta method)
  for i, x in ipairs(a) do squares = squares + (x - ratio * b[i]) ^ 2 end
  return ratio, noise.errors(n) * math.sqrt(squares * n / (n - 1)) / under
end

-- The rank of each number, from 1; equal ones share the middle of theirs.
local function ranks(list)
  local order, out = {}, {}
  for i = 1, #list do order[i] = i end
  table.sort(order, function(a, b) return list[a] < list[b] end)
  local i = 1
  while i <= #order do
    local j = i
    while j < #order and list[order[j + 1]] == list[order[i]] do j = j + 1 end
    for k = i, j do out[order[k]] = (i + j) / 2 end
    i = j + 1
  end
  return out
end

---Spearman's rank correlation of two lists measured on the same things, from -1 to 1; 0 where one
---of them is all the same.
---@param a number[]
---@param b number[]
---@return number
function noise.spearman(a, b)
  local x, y = ranks(a), ranks(b)
  local middle, xy, xx, yy = (#a + 1) / 2, 0.0, 0.0, 0.0
  for i = 1, #x do
    local u, v = x[i] - middle, y[i] - middle
    xy, xx, yy = xy + u * v, xx + u * u, yy + v * v
  end
  return xx > 0 and yy > 0 and xy / math.sqrt(xx * yy) or 0.0
end

return noise
