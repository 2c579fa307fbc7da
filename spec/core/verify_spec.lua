-- Guessed ids are verified in one pass: logits are those of single steps, bit for bit; what was
-- guessed wrong is taken back under every policy; what cannot be taken back is refused; what fails
-- changes nothing.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"

local SHAPE = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 4096 }
local models = random_models(SHAPE)

local function new(model, p, n)
  local cache = assert(model:cache { policy = p, dtype = "f16" })
  assert(cache:prefill(helper.ids(n or 70, SHAPE.vocab, 3)))
  return cache
end

-- What tracks attention shows it in scores; untracked caches have none.
local function state_of(cache)
  local all = { cache:tokens(), cache:evicted(), cache:bytes() }
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do all[#all + 1] = cache:positions(layer, head) end
  end
  local tracked = cache:scores()
  all[#all + 1] = tracked and tracked:totable() or false
  return all
end

-- Two caches go the same way, one by steps, one by verifying up to 9 ids of which the first few
-- stay. Returns how many rounds could verify.
local function compare(model, p, rounds, random)
  local one <close> = new(model, p)
  local many <close> = new(model, p)
  local verified = 0
  for round = 1, rounds do
    local count = math.min(many:verifiable(), random(1, 9))
    local ids = helper.ids(math.max(count, 1), SHAPE.vocab, round)
    local stay = math.max(1, random(0, count))
    local got = count > 0 and assert(many:verify(ids)) or { assert(many:step(ids[1])) }
    for i = 1, stay do
      assert.equal(assert(one:step(ids[i])):tostring(), got[i]:tostring(),
        ("round %d, token %d of %d"):format(round, i, count))
    end
    if stay < count then assert(many:truncate(many:tokens() - (count - stay))) end
    assert.same(state_of(one), state_of(many), "round " .. round)
    if count > 1 then verified = verified + 1 end
  end
  return verified
end

-- Triggers by length and by steps, sums with and without decay, dated ones, maxima, learned by
-- nothing, turned keys.
local function policies()
  local function tracking(name, every, track, once)
    return policy { name = name,
      trigger = function() return { every = every, window = 4, once = once, track = track } end,
      decode = function(_, l)
        return { keep = l.rows - 2, guard = { last = 4 }, score = track }
      end }
  end
  return {
    full = pyramid.policy("full"),
    sums = tracking("sums", 11, score.history {}),
    decays = tracking("decays", 7, score.history { decay = 0.9 }),
    recent = tracking("recent", 12, score.attention { queries = 5, ramp = 1.3 }),
    once = tracking("once", 9, score.attention { queries = 6, ramp = 1.2 }, true),
    highest = tracking("highest", 8, score.attention { reduce = "max", heads = "max" }),
    infer = assert(pyramid.policy("pyramidinfer", { floor = 8 })),
    streaming = assert(pyramid.policy("streaming", { rows = 64 })),
    turned = policy { name = "turned", trigger = function() return { every = 10 } end,
      decode = function(_, l) return { keep = l.rows - 9, guard = { first = 2 }, rotate = "compact",
        score = score.position() } end },
  }
end

describe("verifying guesses", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("gives what single steps give, and takes back what was wrong, on the " .. kind, function()
      local seed = os.time()
      math.randomseed(seed)
      for name, p in pairs(policies()) do
        local ok, message = pcall(compare, models[kind], p, kind == "cpu" and 16 or 3, math.random)
        assert(ok, ("%s, seed %d: %s"):format(name, seed, tostring(message)))
      end
    end)
  end

  it("refuses more than can be taken back, and says how many can", function()
    local p = policy { name = "soon", trigger = function() return { every = 4 } end,
      decode = function(_, l) return { keep = l.rows - 1, score = score.position() } end }
    local cache <close> = new(models.cpu, p)
    assert.equal(3, cache:verifiable())
    local before = state_of(cache)
    local ok, message, code = cache:verify { 1, 2, 3, 4 }
    assert.is_nil(ok)
    assert.equal("policy", code)
    assert.matches("soon evicts after 4 tokens", message, 1, true)
    assert.same(before, state_of(cache))
    assert(cache:verify { 1, 2, 3 })
    assert.equal(0, cache:verifiable())
    assert(cache:step(4))
    assert.equal(3, cache:verifiable())
    local empty <close> = assert(models.cpu:cache())
    assert.equal(0, empty:verifiable())
    assert.is_nil((empty:verify { 1 }))
    local full <close> = new(models.cpu, nil)
    assert.equal(47, full:verifiable())
    assert.is_nil((full:verify(helper.ids(48, SHAPE.vocab, 1))))
    assert.is_nil((full:verify { 1, SHAPE.vocab }))
    local late <close> = new(models.cpu, nil, SHAPE.context - 5)
    assert.equal(5, late:verifiable())
    assert.equal(SHAPE.context - 5, late:tokens())
  end)

  it("goes back only until another call moves rows", function()
    local p = policies().sums
    local cache <close> = new(models.cpu, p)
    local n = cache:tokens()
    assert(cache:verify { 1, 2, 3 })
    assert(cache:step(4))
    local ok, _, code = cache:truncate(n + 1)
    assert.is_nil(ok)
    assert.equal("policy", code)
    local fork <close> = assert(cache:fork())
    assert(cache:verify { 1, 2 })
    assert.is_nil((fork:truncate(n + 2)))
    assert(cache:truncate(n + 4))
    assert.same(state_of(fork), state_of(cache))
  end)

  it("changes nothing where the budget is short", function()
    local cache <close> = assert(models.cpu:cache { budget = 60000, dtype = "f16" })
    assert(cache:prefill(helper.ids(64, SHAPE.vocab, 3)))
    local failed
    for _ = 1, 60 do
      local before = state_of(cache)
      local got, _, code = cache:verify(helper.ids(40, SHAPE.vocab, 2))
      if not got then
        assert.equal("budget", code)
        assert.same(before, state_of(cache))
        failed = true
        break
      end
    end
    assert.is_true(failed)
  end)
end)
