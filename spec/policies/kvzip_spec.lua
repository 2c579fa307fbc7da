-- kvzip scores rows as kvpress' KVzipPress does, and keeps the same ones, over layers and heads and
-- by layer (scripts/maker/oracle/kvzip_scores.py).
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"

-- The policy, with ids for the texts that it says, as these models have no tokenizer; and showing
-- what was probed to `seen`, if there is such a table.
local function worded(p, words, seen)
  local d = {}
  for key, value in pairs(p.definition) do d[key] = value end
  function d.prepare(o, l)
    local how = p.definition.prepare(o, l)
    for _, lead in ipairs { how.first, how.lead } do
      for i, part in ipairs(lead) do lead[i] = words[part] or part end
    end
    return how
  end
  local shown = score.custom(function(lane)
    if seen then
      seen[lane.layer] = seen[lane.layer] or {}
      seen[lane.layer][lane.head] = { positions = lane.positions:totable(),
        scores = lane.its:totable() }
    end
    return lane.its
  end, { its = score.probed() })
  function d.prefill(o, l)
    local plan = p.definition.prefill(o, l)
    plan.score = seen and shown or plan.score
    return plan
  end
  return policy.define(d):with(p.options)
end

for _, name in ipairs { "mha", "gqa" } do
  local golden = helper.json(helper.fixture("kvpress/" .. name .. "/kvzip.json"))
  local bytes = helper.read(helper.fixture("kvpress/" .. name .. "/kvzip.bin"))

  describe("kvzip beside kvpress, " .. name .. ":", function()
    local model
    setup(function() model = assert(pyramid.model(helper.fixture("pyramidinfer/" .. name),
      { threads = 2 })) end)
    teardown(function() model:close() end)

    for _, case in ipairs(golden.cases) do
      local given = helper.with_integers(case.options)
      it(("%s, %d tokens"):format(helper.said(given), case.count), function()
        local p = assert(pyramid.policy("kvzip", given))
        local ids, seen = helper.slice(golden.pool, case.first + 1, case.first + case.count), {}
        for _, each in ipairs { worded(p, golden.words), worded(p, golden.words, seen) } do
          local cache <close> = assert(model:cache { policy = each, dtype = "f32" })
          assert(cache:prefill(ids))
          for layer, heads in ipairs(case.kept) do
            for head, bits in ipairs(heads) do
              helper.assert_positions(helper.positions(bits), cache:positions(layer, head),
                ("layer %d, head %d"):format(layer, head))
            end
          end
        end
        local at, guarded = case.scores, given.sinks or 4
        for layer = 1, model.config.layers do
          for head = 1, model.config.kv_heads do
            local theirs, own = helper.floats(bytes, at, case.count), seen[layer][head]
            assert.equal(case.count - guarded, #own.scores)
            for i, position in ipairs(own.positions) do
              local x = theirs[math.tointeger(position) + 1]
              assert.is_true(math.abs(own.scores[i] - x) < 1e-4,
                ("layer %d, head %d, position %d: %.6f, should be %.6f"):format(layer, head,
                  position, own.scores[i], x))
            end
            at = at + 4 * case.count
          end
        end
      end)
    end
  end)
end

describe("kvzip", function()
  it("leaves out its words where the model has no tokenizer, and says them where it has", function()
    local model <close> = assert(pyramid.model(helper.fixture("pyramidinfer/mha")))
    local cache <close> = assert(model:cache { policy = "kvzip" })
    local ids = helper.slice(helper.json(helper.fixture("kvpress/mha/kvzip.json")).pool, 1, 60)
    assert(cache:prefill(ids))
    assert.equal(120 * model.config.layers, cache:computed())
    local tiny <close> = assert(pyramid.model(helper.model or "models/tiny"))
    local text = "Once there was a baker who lived by the sea. Every day she made bread for all."
    local words = 0
    for _, part in ipairs(assert(pyramid.policy "kvzip").definition.prepare(
      { block = 99, sinks = 4, cue = 8 }).first) do
      words = words + #assert(tiny:encode(part, { add = false }))
    end
    local prompt = assert(tiny:encode(text))
    local spoken <close> = assert(tiny:cache { policy = "kvzip" })
    assert(spoken:prefill(prompt))
    assert.equal((2 * #prompt + words) * tiny.config.layers, spoken:computed())
    assert.is_true(math.abs(spoken:fraction() - 0.3) < 0.05)
  end)

  it("keeps what a target says, and only cuts the new rows of a longer text", function()
    local model <close> = assert(pyramid.model(helper.fixture("pyramidinfer/gqa")))
    local cache <close> = assert(model:cache { policy = assert(pyramid.policy("kvzip",
      { target = 0.4 })) })
    local pool = helper.json(helper.fixture("kvpress/gqa/kvzip.json")).pool
    for turn = 1, 3 do
      assert(cache:prefill(helper.slice(pool, 100 * turn, 100 * turn + 99)))
      assert.is_true(math.abs(cache:fraction() - 0.4) < 0.011, cache:fraction())
    end
  end)
end)
