--- Testing policies without a model: what a policy keeps, layer by layer and head by head, of a
--- prompt and while text is generated, given made-up attention, keys and values; checks that every
--- policy should pass; assertions for Busted.
---
---   local testing, policy = require "pyramid.testing", require "pyramid.policy"
---
---   describe("mine", function()
---     local mine = assert(policy.load "mine.lua")
---     it("keeps what is looked at", function()
---       local run = testing.run(mine:with { rows = 4 },
---         { prompt = 10, attention = { [3] = 100 } })
---       assert.keeps(run[2], { 0, 3, 8, 9 })   -- layer 2, every head; positions count from 0
---     end)
---     it("holds its budget", function() assert.budget(mine, 0.5) end)
---     it("is sound", function() assert(testing.check(mine)) end)
---   end)
---
--- `run` answers the questions of a cache (rows, positions, tokens, computed, evicted, fraction)
--- and follows the core's rules in plain Lua: guards are structure, ties go to the lower row,
--- survivors ascend. Not simulated are sliding windows of models, and, unless they are given, what
--- values add to the output and expected attention; nor what looks at the directions of keys once
--- they were rotated to their places: that raises "not simulated".
local checks = require "pyramid.testing.checks"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local simulation = require "pyramid.testing.simulation"

local testing = {}

local layer_keys = { index = "integer", layers = "integer", prompt = "integer", past = "integer",
  rows = "integer", waiting = "integer", tokens = "integer", heads = "integer",
    kv_heads = "integer", head_dim = "integer" }

---A layer's shape as policies see it: the first of 8 layers (4 heads, 2 KV heads of 16) reading 256
---tokens, but for what is given.
---@param given? table<string, integer>
---  index, layers, prompt, past, rows, waiting, tokens, heads, kv_heads, head_dim
---@return pyramid.Layer
function testing.layer(given)
  given = options.check("testing.layer", given, layer_keys)
  local prompt, past = given.prompt or 256, given.past or 0
  local rows, heads = given.rows or past + prompt, given.heads or 4
  return policy.shape(given.index or 1, given.layers or 8, prompt, past, rows, given.waiting or 0,
    given.tokens or past + prompt, heads, given.kv_heads
      or (heads % 2 == 0 and heads // 2 or heads), given.head_dim or 16)
end

-- ---- made-up numbers ----------------------------------------------------------------------------

local function stir(z, i)
  z = (z ~ z >> 29) * 0x9e3779b97f4a7c15 + i + 1
  return (z ~ z >> 32) * 0xbf58476d1ce4e5b9
end

---A function of any integers to numbers above 0, the same for the same seed: few are large, as with
---attention.
---@param seed integer
---@return fun(...: integer): number
function testing.noise(seed)
  return function(a, b, c, d, ...)   -- named as far as simulations go: they ask millions of times
    local z = seed
    if a then z = stir(z, a) end
    if b then z = stir(z, b) end
    if c then z = stir(z, c) end
    if d then z = stir(z, d) end
    for i = 1, select("#", ...) do z = stir(z, (select(i, ...))) end
    return 1 / (((z ~ z >> 31) >> 40) * 2.0 ^ -24 + 0.01)
  end
end

-- A source of numbers: a function, a table by position (where it is silent, `default`), or else
-- noise.
local function source(what, given, default, noise)
  if given == nil then return noise end
  if type(given) == "function" then return given end
  for position in pairs(given) do
    if math.type(position) ~= "integer" or position < 0 then
      error(("testing.run: %s: '%s' is no position (they are integers from 0)"):format(what,
        tostring(position)), 3)
    end
  end
  return function(...)
    local value = given[(select(-1, ...))]
    return value == nil and default or value
  end
end

local run_keys = { prompt = "integer|table", layers = "integer", heads = "integer",
  kv_heads = "integer", head_dim = "integer", steps = "integer", attention = "function|table",
    attend = "function", keys = "function|table", values = "function|table", outputs = "function",
      expected = "function", probed = "function|table", tokens = "function|table",
    seed = "integer", scores = "boolean", watch = "function" }

---A number for each row that a query head sees: how much it looks at it.
---@alias pyramid.testing.Attention fun(layer: integer, head: integer, query: integer, position: integer): number

---A row's key or value, or its length.
---@alias pyramid.testing.Rows fun(layer: integer, kv_head: integer, position: integer): number|number[]

---What `testing.run` is given; in brackets, what holds otherwise.
---@class pyramid.testing.Given
---@field prompt? integer|integer[]   tokens (64); several: prompts read one after another
---@field steps? integer              tokens generated after it (0)
---@field layers? integer             (4)
---@field heads? integer              (2)
---@field kv_heads? integer           (as many as heads)
---@field head_dim? integer           (16); only shown to the policy
---@field attention? pyramid.testing.Attention|table<integer, number>
---  how much a query head looks at a position, in proportion to what else it sees; or a number by
---  position, 1 elsewhere
---@field attend? fun(layer: integer, head: integer, query: integer, positions: integer[], held: table): number[], number?
---  the same for all rows that the query sees at once, and what it gives to none of them (attention
---  sinks); called for each layer, query and head, in a model's order. held.merged: by position of
---  rows that took others in, { key =, value = }, or nil; held.compact: keys are rotated to the
---  places from 0 that rows have among `positions`
---@field keys? pyramid.testing.Rows|table<integer, number|number[]>
---  a row's key, or its length; or by position, 1 elsewhere
---@field values? pyramid.testing.Rows|table<integer, number|number[]>   likewise
---@field outputs? fun(layer: integer, head: integer, value: number|number[]): number
---  for score.output_norm: the length of what a value adds to the residual stream by way of a query
---  head
---@field expected? fun(layer: integer, head: integer, keys: table, how: table): number[]
---  for score.expected: the exponent of each key of a query head; how holds queries (their
---  positions), next, future and covariance
---@field probed? pyramid.testing.Rows|table<integer, number>
---  for score.probed: what preparing passes look at, a number by row of a KV head; or by position,
---  0 elsewhere
---@field tokens? fun(position: integer): (integer|string|nil)|table<integer, integer|string>
---  for score.tokens: by position an id, or the class that it is of, "separators"; nil elsewhere
---@field seed? integer
---  of what is not given: attention, keys, values, what is probed and tokens are then noise
---@field scores? boolean
---  false: scores are not worked out, and the oldest survive: for counting rows
---@field watch? fun(run: pyramid.testing.Run, step: integer)
---  after the prompt (0) and after each step

---What a policy keeps of a prompt and of `steps` tokens more. Raises as a cache would return `nil,
---message` where the policy misbehaves.
---@param which pyramid.PolicyLike
---@param given? pyramid.testing.Given
---@return pyramid.testing.Run
function testing.run(which, given)
  given = options.check("testing.run", given, run_keys)
  local p, message = policy.load(which)
  if not p then error("testing.run: " .. message, 2) end
  local prompts, heads = given.prompt or 64, given.heads or 2
  if type(prompts) ~= "table" then prompts = { prompts } end
  if #prompts == 0 then error("testing.run: no prompt", 2) end
  for _, prompt in ipairs(prompts) do
    prompt = options.whole(prompt)
    if math.type(prompt) ~= "integer" or prompt < 1 then
      error("testing.run: a prompt is a number of tokens from 1", 2)
    end
  end
  local kv_heads, noise = given.kv_heads or heads, testing.noise(given.seed or 0)
  if heads < 1 or kv_heads < 1 or heads % kv_heads ~= 0 then
    error(("testing.run: %d heads cannot share %d KV heads evenly"):format(heads, kv_heads), 2)
  end
  return simulation.run(p, { prompts = prompts, layers = given.layers or 4, heads = heads,
    kv_heads = kv_heads,
    head_dim = given.head_dim or 16, steps = given.steps or 0, attend = given.attend,
      outputs = given.outputs,
    expected = given.expected, watch = given.watch,
    scores = given.scores ~= false,
    attention = source("attention", given.attention, 1.0, noise),
    probed = source("probed", given.probed, 0.0, function(...) return noise(3, ...) end),
    keys = source("keys", given.keys, 1.0, function(...) return noise(1, ...) end),
    tokens = source("tokens", given.tokens, nil, simulation.tokens(noise)),
    values = source("values", given.values, 1.0, function(...) return noise(2, ...) end) })
end

-- ---- properties ---------------------------------------------------------------------------------

testing.check, testing.check_folder = checks.policy, checks.folder

-- ---- Busted -------------------------------------------------------------------------------------

---What Busted's `assert` learns: `assert.keeps(…)`, `assert.does_not.keep(…)`, `assert.budget(…)`.
---@class pyramid.testing.Assertions
---@field keeps fun(what: any, positions: integer[], given?: pyramid.testing.Given)
---  that a lane, every lane of a layer or run, or of a policy run by testing.run, holds exactly
---  these positions; a failure draws both
---@field budget fun(what: any, share: number, tolerance?: number, config?: table)
---  that a run or a policy's forecast keeps this share of the rows, within 0.02 unless said; the
---  configuration has prompt (1000), layers (8), heads (4), kv_heads (4) and head_dim (64)

local found, luassert = pcall(require, "luassert")
if found then require "pyramid.testing.assertions" (luassert, testing) end

return testing
