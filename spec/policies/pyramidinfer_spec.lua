-- PyramidInfer keeps the rows that a plain oracle keeps (scripts/maker/oracle/pyramidinfer.py), in
-- prefill and in generation.
local helper = require "spec.helper"
local pyramid = require "pyramid"

local function folder(name)
  return helper.fixture("pyramidinfer/" .. name)
end

-- Every head of every layer holds the rows of the layer's bit map.
local function assert_kept(maps, cache, model, what)
  for layer = 1, model.config.layers do
    local want = helper.positions(maps[layer])
    for head = 1, model.config.kv_heads do
      local where = ("%s, layer %d, head %d"):format(what, layer, head)
      helper.assert_positions(want, cache:positions(layer, head), where)
      assert.equal(#want, cache:rows(layer, head), where)
    end
  end
end

for _, name in ipairs { "mha", "gqa" } do
  describe("PyramidInfer, " .. name, function()
    local golden = helper.json(folder(name) .. "/golden.json")
    local bytes = helper.read(folder(name) .. "/golden.bin")
    local model

    setup(function() model = assert(pyramid.model(folder(name), { threads = 2 })) end)
    teardown(function() model:close() end)

    local function reference(offset)
      return helper.floats(bytes, offset, golden.vocab)
    end

    local function prompt_of(case)
      return helper.slice(golden.pool, case.first + 1, case.first + case.count)
    end

    local function new_cache(options)
      return assert(model:cache { policy = assert(pyramid.policy("pyramidinfer", options)),
        dtype = "f32" })
    end

    for _, case in ipairs(golden.cases) do
      it(("keeps the oracle's rows: %s, %d tokens"):format(case.setting, case.count), function()
        local cache <close> = new_cache(case.options)
        local logits = assert(cache:prefill(prompt_of(case)))
        assert_kept(case.prefill, cache, model, "prefill")
        helper.assert_near(logits, reference(case.logits), "prefill")
      end)

      if case.generate then
        it(("keeps them for %d tokens more: %s, %d tokens"):format(#case.generate.ids,
          case.setting, case.count), function()
          local cache <close> = new_cache(case.options)
          local logits, at = assert(cache:prefill(prompt_of(case))), {}
          for _, step in ipairs(case.generate.steps) do at[step.step] = step.logits end
          for t, id in ipairs(case.generate.ids) do
            assert.equal(id, logits:argmax(), "token " .. t)
            logits = assert(cache:step(id))
            if at[t] then helper.assert_near(logits, reference(at[t]), "step " .. t) end
          end
          assert_kept(case.generate.positions, cache, model, "after generation")
        end)
      end
    end

    -- Seven prompts of very different length.
    local lengths, steps = { 300, 1, 64, 512, 17, 65, 130 }, 40

    local function prompt(i)
      return helper.slice(golden.pool, 100 * i, 100 * i + lengths[i] - 1)
    end

    -- One sequence alone: the cache, the ids picked after the prefill and each step, and the logits
    -- then.
    local function single(ids, options, count)
      local cache = new_cache(options)
      local logits = assert(cache:prefill(ids))
      local run = { cache = cache, ids = { logits:argmax() }, logits = { logits:totable() } }
      for t = 2, count do
        logits = assert(cache:step(run.ids[t - 1]))
        run.ids[t], run.logits[t] = logits:argmax(), logits:totable()
      end
      return run
    end

    for _, setting in ipairs { {}, { mode = "paper", floor = 16, ratio = 0.6, recent = 0.1 } } do
      it(("treats seven ragged sequences as seven alone: mode %s"):format(setting.mode or "code"),
        function()
        local batch = assert(model:batch { policy = assert(pyramid.policy("pyramidinfer",
          setting)), dtype = "f32" })
        local alone, number, taken = {}, {}, {}
        local function join(i)
          number[assert(batch:add(prompt(i)))], taken[i] = i, 0
        end
        for i = 1, 4 do join(i) end
        for round = 1, steps + 5 do
          if round == 6 then for i = 5, 7 do join(i) end end   -- the others come later
          for _, pair in ipairs(assert(batch:step())) do
            local handle, logits = pair[1], pair[2]
            local i = number[handle]
            taken[i] = taken[i] + 1
            alone[i] = alone[i] or single(prompt(i), setting, steps + (i <= 4 and 5 or 0))
            assert.equal(alone[i].ids[taken[i]], logits:argmax(),
              ("sequence %d, token %d"):format(i, taken[i]))
            helper.assert_near(logits, alone[i].logits[taken[i]],
              ("sequence %d, token %d"):format(i, taken[i]))
          end
        end
        for handle, i in pairs(number) do
          assert.equal(steps + (i <= 4 and 5 or 0), taken[i])
          helper.assert_same_rows(alone[i].cache, handle, model, "sequence " .. i)
          alone[i].cache:close()
        end
        batch:close()
      end)
    end

    it("feeds a batch the ids that are pushed, and lets sequences leave", function()
      local batch = assert(model:batch { policy = "pyramidinfer", dtype = "f32" })
      local ids, kept = prompt(3), nil
      local short = assert(batch:add(prompt(5)))
      local handle = assert(batch:add(ids))
      for t = 1, 33 do
        if t == 20 then batch:remove(short) end
        local found
        for _, pair in ipairs(assert(batch:step())) do
          if pair[1] == handle then found = pair[2] end
          assert.is_true(t < 20 or pair[1] == handle)
        end
        assert(found, "the sequence was not stepped")
        batch:push(handle, ids[t])                  -- not what greedy would pick
        kept = found
      end
      local cache <close> = new_cache()
      local logits = assert(cache:prefill(ids))
      for t = 1, 32 do logits = assert(cache:step(ids[t])) end
      helper.assert_near(kept, logits:totable(), "pushed ids")
      helper.assert_same_rows(cache, handle, model, "pushed ids")
      batch:close()
    end)
  end)
end
