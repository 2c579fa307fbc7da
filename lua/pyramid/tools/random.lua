--- Random numbers that are the same on every machine: splitmix64 (Steele, Lea, Flood 2014), whose
--- state is a counter, so that any seed is a good one. Integers of 64 bits, no floats.
local random = {}

---@class pyramid.Random
---@field package state integer
local Random = {}
Random.__index = Random

---@param state integer
---@return pyramid.Random
function random.new(state) return setmetatable({ state = state }, Random) end

---64 random bits.
---@return integer
function Random:next()
  self.state = self.state + 0x9E3779B97F4A7C15
  local z = self.state
  z = (z ~ (z >> 30)) * 0xBF58476D1CE4E5B9
  z = (z ~ (z >> 27)) * 0x94D049BB133111EB
  return z ~ (z >> 31)
end

---0 .. n-1. The bias of the modulus is below n / 2^63.
---@param n integer
---@return integer
function Random:below(n) return (self:next() >> 1) % n end

---@param a integer
---@param b integer
---@return integer
function Random:between(a, b) return a + self:below(b - a + 1) end

---@param percent integer
---@return boolean
function Random:chance(percent) return self:below(100) < percent end

---@generic T
---@param list T[]
---@return T
function Random:pick(list) return list[1 + self:below(#list)] end

---Puts a list in random order, in place.
---@generic T
---@param list T[]
---@return T[] list
function Random:shuffle(list)
  for i = #list, 2, -1 do
    local k = 1 + self:below(i)
    list[i], list[k] = list[k], list[i]
  end
  return list
end

---`count` different ones of a list, in random order.
---@generic T
---@param list T[]
---@param count integer
---@return T[]
function Random:sample(list, count)
  local pool = self:shuffle(table.move(list, 1, #list, 1, {}))
  return table.move(pool, 1, count, 1, {})
end

return random
