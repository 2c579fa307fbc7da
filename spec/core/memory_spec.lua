-- An allocation that fails, at every step in turn: the limit rises until the task succeeds; before
-- that every try ends in a clean error, and nothing is left behind (after Lua's own
-- testes/memerr.lua).
local helper = require "spec.helper"
local core = require "pyramid.core"
local pyramid = require "pyramid"
local score = require "pyramid.score"

local folder = helper.fixture "families/llama-gqa-llama3"

local function prompt(n, vocab)
  local ids = {}
  for i = 1, n do ids[i] = i * 37 % vocab end
  return ids
end

--- Everything a session does that allocates. Returns true, or what failed.
local function task(limit, weights)
  local model <close>, message, code = pyramid.model(folder,
    { threads = 2, memory = limit, weights = weights })
  if not model then return nil, message, code end
  local made <close> = setmetatable({}, { __close = function(list)
    for i = #list, 1, -1 do list[i]:close() end
  end })
  local function keep(value, why, what)
    if not value then error({ why, what }) end
    if type(value) == "userdata" and value.close then made[#made + 1] = value end
    return value
  end
  local path = helper.tmp()
  local ok, failure = pcall(function()
    local given = { pyramidinfer = { floor = 8 }, quest = { rows = 32, whole = 0, recent = 1 },
      rocketkv = { ratio = 0.9, read = 32, window = 4 } }
    for _, name in ipairs { "h2o", "pyramidinfer", "quest", "rocketkv" } do
      local policy = pyramid.policy(name, given[name])
      local cache = keep(model:cache { policy = policy, dtype = "f16" })
      keep(cache:prefill(prompt(80, model.config.vocab)))
      for i = 1, 20 do keep(cache:step(i)) end
      local fork = keep(cache:fork())
      keep(fork:prefill(prompt(40, model.config.vocab)))
      keep(cache:save(path))
      keep(model:load_cache(path, { policy = policy }))
      local batch <close> = assert(model:batch { policy = policy })
      keep(batch:add { 1, 2, 3 })
      keep(batch:add { 4 })
      keep(batch:step())
      keep(batch:step())
    end
    local cache = keep(model:cache { policy = { name = "both", prefill = function()
      return { keep = 20, share = "head", score = score.expected() * score.output_norm()
        + score.custom(function(lane) return lane.keys:norm() + lane.seen end,
          { seen = score.attention { queries = 9 } }) }
    end } })
    keep(cache:prefill(prompt(80, model.config.vocab)))
    keep(cache:scores(score.key_norm()))
    local shared = keep(model:cache { policy = { name = "shared", prefill = function(_, l)
      return { keep = math.min(l.rows, l.past + l.prompt // 2), share = "model",
        score = score.attention { queries = 9 } }
    end } })
    keep(shared:prefill(prompt(80, model.config.vocab)))
    keep(shared:prefill(prompt(30, model.config.vocab)))
    local read = keep(model:cache { policy = pyramid.policy("kvzip", { block = 20 }) })
    keep(read:prefill(prompt(50, model.config.vocab)))
    keep(read:prefill(prompt(30, model.config.vocab)))
    keep(read:probe(prompt(9, model.config.vocab), score.attention { reduce = "max" }))
    keep(read:evict { name = "by what was seen", prefill = function(_, l)
      return { keep = math.min(l.rows, 20), share = "model", score = score.probed() }
    end })
  end)
  os.remove(path)
  if ok then return true end
  if type(failure) == "table" then return nil, failure[1], failure[2] end
  error(failure, 0)
end

describe("memory", function()
  for _, weights in ipairs { false, "f16" } do
    it("runs out at any point without harm" .. (weights and ", weights " .. weights or ""),
      function()
      local limit, failures = 1024, 0
      while true do
        local ok, message, code = task(limit, weights or nil)
        if ok then break end
        assert.equal("memory", code, message)
        failures = failures + 1
        limit = limit + math.max(1024, limit // 64)
        assert.is_true(limit < 1 << 28, "it should have succeeded by now")
      end
      assert.is_true(failures > 50, failures .. " failures only")
    end)
  end

  it("peaks lower by what a policy does not keep", function()
    local function measure(policy)
      local model <close> = assert(pyramid.model("models/tiny", { threads = 2 }))
      local cache <close> = assert(model:cache { policy = policy })
      assert(cache:prefill(prompt(2000, model.config.vocab)))
      return select(2, model:memory()), cache:bytes()
    end
    local peak, bytes = measure "full"
    local lower, fewer = measure(pyramid.policy("pyramidinfer", { preset = "45" }))
    assert.is_true(fewer < 0.5 * bytes)
    local saved, promised = peak - lower, bytes - fewer
    assert.is_true(saved > 0.9 * promised, ("%d of %d bytes"):format(saved, promised))
  end)

  it("is what the runtime says, and all given back", function()
    local runtime = assert(core.runtime { threads = 2 })
    local bare = runtime:memory()
    local loaded = assert(require("pyramid.loaders").load(runtime, folder))
    assert.is_true(runtime:memory() > bare)
    loaded.handle:close()
    collectgarbage()
    assert.equal(bare, runtime:memory())
    assert.is_true(runtime:memory_peak() > bare)
    runtime:close()
  end)
end)
