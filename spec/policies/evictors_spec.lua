-- StreamingLLM, SnapKV and H2O keep the rows that plain oracles keep
-- (scripts/maker/oracle/evictors.py), head by head; so do those of the catalogue that judge while
-- text is generated (scripts/maker/oracle/catalogue.py), and those that kvpress lacks
-- (scripts/maker/oracle/newer.py, fastkv.py, sepllm.py and window.py there).
local helper = require "spec.helper"
local pyramid = require "pyramid"

-- Every head of every layer holds the rows of its bit map.
local function assert_kept(maps, sequence, what)
  for layer, heads in ipairs(maps) do
    for head, bits in ipairs(heads) do
      helper.assert_positions(helper.positions(bits), sequence:positions(layer, head),
        ("%s, layer %d, head %d"):format(what, layer, head))
    end
  end
end

for _, folder in ipairs { "evictors/mha", "evictors/gqa", "catalogue/mha", "catalogue/gqa",
  "newer/mha", "newer/gqa", "fastkv/mha", "fastkv/gqa", "sepllm/mha", "sepllm/gqa",
  "window/mha", "window/gqa" } do
  local name = folder:match "[^/]*$"
  local golden = helper.json(helper.fixture(folder .. "/golden.json"))
  local bytes = helper.read(helper.fixture(folder .. "/golden.bin"))
  local model

  local function reference(offset)
    return helper.floats(bytes, offset, golden.vocab)
  end

  local function prompt_of(case)
    return helper.slice(golden.pool, case.first + 1, case.first + case.count)
  end

  local function policy_of(case)
    return assert(pyramid.policy(case.policy, case.options))
  end

  -- Cases of one policy and one set of options follow each other.
  local settings, last = {}, nil
  for _, case in ipairs(golden.cases) do
    case.options = helper.with_integers(case.options)
    local title = ("%s, %s (%s)"):format(case.policy, name, helper.said(case.options))
    if title ~= last then settings[#settings + 1] = { title = title, cases = {} } end
    table.insert(settings[#settings].cases, case)
    last = title
  end

  for _, setting in ipairs(settings) do
    describe(setting.title, function()
      setup(function()
        model = assert(pyramid.model(helper.fixture("pyramidinfer/" .. name), { threads = 2 }))
      end)
      teardown(function() model:close() end)

      for _, case in ipairs(setting.cases) do
        local more = case.generate and (" and %d more"):format(#case.generate.ids) or ""
        it(("keeps the oracle's rows: %d tokens%s"):format(case.count, more), function()
          local cache <close> = assert(model:cache { policy = policy_of(case), dtype = "f32" })
          local logits, at = assert(cache:prefill(prompt_of(case))), {}
          assert_kept(case.prefill, cache, "prefill")
          helper.assert_near(logits, reference(case.logits), "prefill")
          if not case.generate then return end
          for _, step in ipairs(case.generate.steps) do at[step.step] = step.logits end
          for t, id in ipairs(case.generate.ids) do
            assert.equal(id, logits:argmax(), "token " .. t)
            logits = assert(cache:step(id))
            if at[t] then helper.assert_near(logits, reference(at[t]), "step " .. t) end
          end
          assert_kept(case.generate.positions, cache, "after generation")
        end)
      end

      it("keeps them where the prompts share a batch", function()
        local batch <close> = assert(model:batch { policy = policy_of(setting.cases[1]),
          dtype = "f32" })
        local case_of, taken = {}, {}
        for _, case in ipairs(setting.cases) do
          if case.generate then
            case_of[assert(batch:add(prompt_of(case)))], taken[case] = case, 0
          end
        end
        for _ = 0, #setting.cases[1].generate.ids do
          for _, pair in ipairs(assert(batch:step())) do
            local case = case_of[pair[1]]
            local want = case.generate.ids[taken[case] + 1]
            if want then
              assert.equal(want, pair[2]:argmax(),
                ("%d tokens, token %d"):format(case.count, taken[case] + 1))
            end
            taken[case] = taken[case] + 1
          end
        end
        for handle, case in pairs(case_of) do
          assert.equal(#case.generate.ids + 1, taken[case])
          assert_kept(case.generate.positions, handle, ("%d tokens"):format(case.count))
        end
      end)
    end)
  end
end

describe("sepllm", function()
  it("refuses ids that are none", function()
    local model <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    for ids, said in pairs { ["11,x"] = "'x'", ["-5"] = "'-5'",
      ["7 99999999999999999999"] = "'99999999999999999999'" } do
      local cache <close> = assert(model:cache { policy = pyramid.policy("sepllm", { ids = ids }) })
      local ok, message, code = cache:prefill(helper.ids(40, 200, 1))
      assert.is_nil(ok)
      assert.equal("policy", code)
      assert.truthy(message:find("ids: " .. said, 1, true), message)
      assert.equal(0, cache:tokens())
    end
  end)
end)
