-- Layers with a sliding window give rows back that no later query sees (core/cache/slide.c). What
-- that leaves of a sum is in spec/ops/attention_spec.lua, bit for bit; here: how many rows stay,
-- what counters say, and what forks, files, batches, failures and policies make of it.
local cjson = require "cjson"
local core = require "pyramid.core"
local helper = require "spec.helper"
local lfs = require "lfs"
local ops = require "pyramid_specs"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local score = require "pyramid.score"
local shell = require "spec.support.shell"

local WINDOW, SLIDE, LAYERS, HEADS = 24, ops.slide_rows, 2, 2
local MOST = WINDOW - 2 + SLIDE           -- rows of a lane at rest
local device = helper.device == "cpu" and "emulated" or helper.device
local folder, model

-- A Mistral: both layers have the window.
setup(function()
  folder = shell.folder()
  assert(random_model.write(folder .. "/model", { dtype = "f32", seed = 11,
    shape = { layers = LAYERS, width = 32, heads = 4, kv_heads = HEADS, ff = 32, vocab = 260,
      context = 4096 } }))
  local path = folder .. "/model/config.json"
  local config = cjson.decode(helper.read(path))
  config.model_type, config.architectures = "mistral", { "MistralForCausalLM" }
  config.sliding_window = WINDOW
  helper.write(path, cjson.encode(config))
  model = assert(pyramid.model(folder .. "/model", { threads = 2 }))
end)
teardown(function()
  model:close()
  shell.remove(folder)
end)

local ids = {}
for i = 1, 2000 do ids[i] = i * i % 61 + i % 3 end

local function new(given)
  given = given or {}
  given.policy, given.dtype = given.policy or "full", given.dtype or "f32"
  return assert(model:cache(given))
end

-- Reads on to `tokens` tokens by steps; the last logits' bytes.
local function steps_to(cache, tokens)
  local logits
  for i = cache:tokens() + 1, tokens do logits = assert(cache:step(ids[i])) end
  return logits:tostring()
end

-- All that a call which failed must not have changed.
local function state_of(cache)
  local lanes = {}
  for layer = 1, LAYERS do
    for head = 1, HEADS do lanes[#lanes + 1] = cache:positions(layer, head) end
  end
  local fork <close> = assert(cache:fork())
  return { lanes, cache:tokens(), cache:evicted(), cache:bytes(),
    assert(fork:step(7)):tostring() }
end

-- Rows ascend and are few, and what is held and what is gone add up.
local function assert_sound(cache, what)
  local held = 0
  for layer = 1, LAYERS do
    for head = 1, HEADS do
      local rows, last = cache:positions(layer, head), -1
      assert.is_true(#rows <= MOST, ("%s: %d rows"):format(what, #rows))
      for _, position in ipairs(rows) do
        assert.is_true(position > last, what)
        last = position
      end
      held = held + #rows
    end
  end
  assert.equal(LAYERS * HEADS * cache:tokens(), held + cache:evicted(), what)
  assert.near(held / (LAYERS * HEADS * cache:tokens()), cache:fraction(), 1e-12, what)
end

describe("rows beyond a sliding window", function()
  it("leave as tokens come, by as many as a slide, and what is read is the same", function()
    local whole <close> = new()
    local all = assert(whole:prefill(helper.slice(ids, 1, 1200), { all = true }))
    local cache <close> = new()
    assert(cache:prefill(helper.slice(ids, 1, 100)))
    local bytes
    for i = 101, 1200 do
      local logits = assert(cache:step(ids[i]))
      local rows = i < WINDOW - 1 + SLIDE and i or i < WINDOW - 1 + 2 * SLIDE and i - SLIDE
        or i - 2 * SLIDE
      assert.equal(rows, cache:rows(1))
      if i == WINDOW - 2 + SLIDE then bytes = cache:bytes() end
      if i == WINDOW - 1 + SLIDE then
        assert.is_true(cache:bytes() < bytes / 10)
        assert.same({ SLIDE, i - 1 }, { cache:positions(2, 2)[1], cache:positions(2, 2)[rows] })
      end
      if i % 50 == 0 or i % SLIDE == WINDOW then
        helper.assert_near(logits, all[i]:totable(), "token " .. i, 1e-4)
      end
      assert.is_true(not bytes or cache:bytes() <= bytes)
    end
    assert_sound(cache, "stepped")
    assert_sound(whole, "read at once")
    assert.equal(1200 - 2 * SLIDE, whole:rows(2))
    assert.equal(LAYERS * HEADS * 2 * SLIDE, whole:evicted())
    assert.equal(cache:bytes(), whole:bytes())
  end)

  it("leave as a second prompt ends, and stay where it fails", function()
    local bad = policy { name = "no number", prefill = function(_, l)
      if l.index == 2 and l.past > 0 then
        return { keep = 20, score = score.key_norm() * 1e38 * 1e38 }
      end
    end }
    local cache <close> = new { policy = bad }
    assert(cache:prefill(helper.slice(ids, 1, 600)))
    assert.equal(600 - SLIDE, cache:rows(1))
    local before = state_of(cache)
    assert.is_nil((cache:prefill(helper.slice(ids, 601, 1300))))
    assert.same(before, state_of(cache))
    assert.is_nil((cache:prefill { 3, 99999 }))
    assert.same(before, state_of(cache))
    assert(cache:prefill(helper.slice(ids, 601, 1300), { prune = false }))
    assert.equal(1300 - 2 * SLIDE, cache:rows(1))
    assert_sound(cache, "a second prompt")
  end)

  it("leave where memory may run out anywhere, and a call that fails changes nothing", function()
    local failures, limit = 0, 100000
    repeat
      local small <close> = pyramid.model(folder .. "/model", { threads = 1, memory = limit })
      local cache <close> = small and small:cache { policy = "full", dtype = "f32" } or nil
      local done = cache and cache:prefill(helper.slice(ids, 1, 530))
      for i = 531, 545 do
        if done then
          local before = { cache:tokens(), cache:evicted(), cache:rows(1), cache:rows(2) }
          local logits, message, code = cache:step(ids[i])
          if not logits then
            done = false
            assert.equal("memory", code, message)
            assert.same(before, { cache:tokens(), cache:evicted(), cache:rows(1), cache:rows(2) })
          end
        end
      end
      if done then assert.equal(545 - SLIDE, cache:rows(1)) else failures = failures + 1 end
      limit = limit + limit // 24
    until done
    assert.is_true(failures > 10, failures)
  end)

  it("leave each fork by itself: what they share stays while one holds it", function()
    local cache <close> = new()
    assert(cache:prefill(helper.slice(ids, 1, 520)))
    local early <close> = assert(cache:fork())
    local ahead = steps_to(cache, 560)
    assert.equal(560 - SLIDE, cache:rows(1))
    assert.equal(520, early:rows(1))
    local late <close> = assert(cache:fork())
    assert.equal(ahead, steps_to(early, 560))
    assert.equal(560 - SLIDE, early:rows(1))
    assert.equal(steps_to(early, 1100), steps_to(late, 1100))
  end)

  it("are not in files, which go on as the cache does, bit for bit", function()
    local path = helper.tmp()
    local cache <close> = new { dtype = "f16" }
    assert(cache:prefill(helper.slice(ids, 1, 700)))
    assert(cache:save(path))
    local loaded <close> = assert(model:load_cache(path, { policy = "full", dtype = "f16" }))
    os.remove(path)
    assert.same(state_of(cache), state_of(loaded))
    assert.equal(steps_to(cache, 1060), steps_to(loaded, 1060))
    assert.equal(cache:evicted(), loaded:evicted())
  end)

  it("leave sequences of a batch as they leave them alone", function()
    local caches, alone, last = {}, {}, {}
    for i, n in ipairs { 3, 530, 560 } do
      caches[i], alone[i] = new(), new()
      local from = helper.slice(ids, 1, n)
      assert(caches[i]:prefill(from))
      assert(alone[i]:prefill(from))
    end
    for step = 1, 20 do
      for i, cache in ipairs(caches) do last[i] = ids[cache:tokens() + 1] end
      local together = assert(core.step(caches, last))
      for i, cache in ipairs(alone) do
        assert.equal(assert(cache:step(last[i])):tostring(), together[i]:tostring(), step)
        assert.equal(cache:rows(1), caches[i]:rows(1))
      end
    end
    assert.same({ 23, 550 - SLIDE, 580 - SLIDE },
      { caches[1]:rows(1), caches[2]:rows(1), caches[3]:rows(1) })
    for i = 1, 3 do caches[i]:close() alone[i]:close() end
  end)

  it("end how far a cache can go back", function()
    local cache <close> = new()
    assert(cache:prefill(helper.slice(ids, 1, 540)))
    local least = SLIDE + WINDOW - 1
    assert.equal(540 - SLIDE, cache:rows(1))
    local other <close> = assert(cache:fork())
    local before = state_of(cache)
    local done, message, code = cache:truncate(least - 1)
    assert.same({ nil, "argument" }, { done, code })
    assert.matches(("layer 1 has given back .* window of %d .* token %d or later"):format(WINDOW,
      least), message)
    assert.same(before, state_of(cache))
    assert.is_true(cache:truncate(least))
    local read <close> = new()
    assert(read:prefill(helper.slice(ids, 1, least)))
    assert.same(read:positions(1, 1), cache:positions(1, 1))
    assert.equal(steps_to(read, 560), steps_to(cache, 560))
    assert.is_true(other:truncate(0))
    assert.equal(0, other:tokens())
  end)

  for name in lfs.dir "policies" do
    if name:find "%.lua$" then
      name = name:sub(1, -5)
      it("leave under " .. name, function()
        local p = helper.squeezed(name)
        local cache <close> = new { policy = p }
        assert(cache:prefill(helper.slice(ids, 1, 300), { prune = false }))
        local fine, message = cache:prefill(helper.slice(ids, 301, 560))
        if not fine and message:find "sliding window" then return end   -- keys cannot be turned
        assert(fine, message)
        assert_sound(cache, name)
        for i = 561, 600 do assert(cache:step(ids[i])) end
        assert_sound(cache, name)
        assert(cache:prefill(helper.slice(ids, 601, 1100), { prune = false }))
        assert_sound(cache, name)
        for i = 1101, 1130 do assert(cache:step(ids[i])) end
        assert_sound(cache, name)
      end)
    end
  end

  it("leave on the device, too", function()
    local other <close> = assert(pyramid.model(folder .. "/model", { device = device }))
    local one <close> = new()
    local two <close> = assert(other:cache { policy = "full", dtype = "f32" })
    for _, cache in ipairs { one, two } do assert(cache:prefill(helper.slice(ids, 1, 528))) end
    for i = 529, 542 do
      helper.assert_near(assert(two:step(ids[i])), assert(one:step(ids[i])):totable(),
        "step " .. i, 1e-4)
      assert.same(one:positions(2, 1), two:positions(2, 1))
    end
    assert.equal(542 - SLIDE, two:rows(1))
    assert.equal(one:bytes(), two:bytes())
  end)

  it("lets guesses be verified and taken back, and rows leave in time", function()
    local one <close> = new()
    local many <close> = new()
    assert(one:prefill { table.unpack(ids, 1, 500) })
    assert(many:prefill { table.unpack(ids, 1, 500) })
    for _ = 1, 90 do
      local at = one:tokens()
      local got = assert(many:verify { table.unpack(ids, at + 1, at + 9) })
      for i = 1, 7 do
        assert.equal(assert(one:step(ids[at + i])):tostring(), got[i]:tostring())
      end
      assert(many:truncate(at + 7))
    end
    assert_sound(one, "by steps")
    assert(many:rows(1) <= MOST + 9, "rows that no guess sees have left")
    assert.equal(assert(one:step(3)):tostring(), assert(many:step(3)):tostring())
    assert_sound(many, "after a step")
  end)
end)
