--- Scores: immutable expressions over native signals, by which rows are ranked. The core compiles an expression once a
--- layer and runs it over all judged rows; no Lua runs per row.
---
---   score.attention { queries = 32, heads = "max" }:pool("max", 7) * score.value_norm()
---
--- A score prints as the expression that made it, and equals another of the same program. Mistakes raise where the
--- expression is built.
local options = require "pyramid.options"

local score = {}

---@class pyramid.score
---@operator add(pyramid.score|number): pyramid.score
---@operator sub(pyramid.score|number): pyramid.score
---@operator mul(pyramid.score|number): pyramid.score
---@operator div(pyramid.score|number): pyramid.score
---@field package program string
local Score = {}
Score.__index = Score
Score.__name = "pyramid.score"
Score.__newindex = function() error("scores are immutable", 2) end
Score.__metatable = "pyramid.score"

-- The core's pyr_score_code and pyr_reduce, in order.
local codes = { attention = 0, history = 1, key_norm = 2, value_norm = 3, position = 4, random = 5, const = 6,
  add = 7, sub = 8, mul = 9, div = 10, pool = 11, normalize = 12 }
local reduces = { mean = 0, sum = 1, max = 2 }
local pools = { avg = 0, average = 0, max = 1 }
local longest = 32
local texts, programs = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" })

local function op(code, a, b, n, x) return string.pack("<BBBxi4f", codes[code], a or 0, b or 0, n or 0, x or 0) end

local function new(text, program)
  if #program > longest * 12 then error(("score: more than %d operations: %s"):format(longest, text), 3) end
  local self = setmetatable({}, Score)
  texts[self], programs[self] = text, program
  return self
end

---Whether a value is a score.
---@param value any
---@return boolean
function score.is(value) return programs[value] ~= nil end

---Whether a score is one attention or history signal and nothing else: what decode can track.
---@param value any
---@return boolean
function score.is_signal(value)
  local program = programs[value]
  return program ~= nil and #program == 12 and program:byte() <= codes.history
end

---The packed program of a score, for the core.
---@param value pyramid.score
---@return string
function score.program(value) return programs[value] end

local function choice(what, name, value, set, default)
  if value == nil then return set[default] end
  if not set[value] then
    local known = table.concat(options.sorted_keys(set), ", ")
    error(("%s: %s must be one of %s, not '%s'"):format(what, name, known, tostring(value)), 3)
  end
  return set[value]
end

local function finite(value) return type(value) == "number" and value == value and math.abs(value) < math.huge end

---Attention mass that the last `queries` queries gave a row (0 or nil: every query), weighted by a ramp that rises from 1
---at the oldest to `ramp` at the newest. `reduce` is over queries, `heads` over the query heads that share a set: all of
---the layer's, or a KV head's group (see a plan's `share`). Source: PyramidInfer, arXiv 2405.12532; SnapKV, arXiv 2404.14469.
---@param o? { queries?: integer, ramp?: number, reduce?: "mean"|"sum"|"max", heads?: "mean"|"sum"|"max" }
---@return pyramid.score
function score.attention(o)
  o = options.check("score.attention", o, { queries = "integer", ramp = "number", reduce = "string", heads = "string" })
  local queries, ramp = o.queries or 0, o.ramp or 1
  if queries < 0 or queries > 0x7fffffff then error("score.attention: queries must be 0 (all) or more", 2) end
  if not finite(ramp) or ramp < 0 then error("score.attention: ramp must be a number of 0 or more", 2) end
  local reduce = choice("score.attention", "reduce", o.reduce, reduces, "mean")
  local heads = choice("score.attention", "heads", o.heads, reduces, "mean")
  local text = ("attention{queries=%d, ramp=%g, reduce=%s, heads=%s}"):format(queries, ramp, o.reduce or "mean", o.heads or "mean")
  return new(text, op("attention", reduce, heads, queries, ramp))
end

---Attention that every query so far gave a row, in prefill and in decode; each decode step first multiplies what has
---been gathered by `decay`. Source: H2O, arXiv 2306.14048; Scissorhands, arXiv 2305.17118.
---@param o? { decay?: number, heads?: "mean"|"sum"|"max" }
---@return pyramid.score
function score.history(o)
  o = options.check("score.history", o, { decay = "number", heads = "string" })
  local decay = o.decay or 1
  if not (decay >= 0 and decay <= 1) then error("score.history: decay must lie in [0, 1]", 2) end
  return new(("history{decay=%g, heads=%s}"):format(decay, o.heads or "mean"),
    op("history", 0, choice("score.history", "heads", o.heads, reduces, "mean"), 0, decay))
end

---The length of a row's key (after RoPE, which does not change it).
---@return pyramid.score
function score.key_norm() return new("key_norm()", op("key_norm")) end

---The length of a row's value.
---@return pyramid.score
function score.value_norm() return new("value_norm()", op("value_norm")) end

---A row's original position: the newest rank highest.
---@return pyramid.score
function score.position() return new("position()", op("position")) end

---Uniform in [0, 1), the same for the same seed, layer and position.
---@param seed? integer
---@return pyramid.score
function score.random(seed)
  seed = seed or 0
  if math.type(seed) ~= "integer" or seed < -0x80000000 or seed > 0x7fffffff then
    error("score.random: the seed must be a 32-bit integer", 2)
  end
  return new(("random(%d)"):format(seed), op("random", 0, 0, seed))
end

---The same number for every row.
---@param value number
---@return pyramid.score
function score.const(value)
  if not finite(value) then error("score.const: a finite number is wanted", 2) end
  return new(("%.9g"):format(value), op("const", 0, 0, 0, value))
end

local function operand(value)
  if score.is(value) then return value end
  if finite(value) then return score.const(value) end
  error(("score: cannot combine with a %s (%s)"):format(type(value), tostring(value)), 3)
end

local function binary(code, sign)
  return function(a, b)
    a, b = operand(a), operand(b)
    return new(("(%s %s %s)"):format(texts[a], sign, texts[b]), programs[a] .. programs[b] .. op(code))
  end
end

Score.__add, Score.__sub = binary("add", "+"), binary("sub", "-")
Score.__mul, Score.__div = binary("mul", "*"), binary("div", "/")
Score.__unm = function(a) return score.const(0) - a end
Score.__eq = function(a, b) return programs[a] == programs[b] end
Score.__tostring = function(a) return texts[a] end

---Average ("avg") or maximum ("max") over a centred window of odd width among the judged rows.
---@param kind "avg"|"max"
---@param width integer
---@return pyramid.score
function Score:pool(kind, width)
  local how = choice("score:pool", "kind", kind, pools)
  if not how then error("score:pool: kind must be \"avg\" or \"max\"", 2) end
  if math.type(width) ~= "integer" or width < 1 or width % 2 == 0 or width > 0x7fffffff then
    error(("score:pool: width must be an odd positive integer, not %s"):format(tostring(width)), 2)
  end
  return new(("%s:pool(%s, %d)"):format(texts[self], kind, width), programs[self] .. op("pool", how, 0, width))
end

---Divided by the sum over the judged rows.
---@return pyramid.score
function Score:normalize() return new(texts[self] .. ":normalize()", programs[self] .. op("normalize")) end

return score
