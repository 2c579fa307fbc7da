-- Picking on a device, where only ids come back: the same ids as the sampler picks on the host,
-- whose own spec is sampler_spec.lua.
local ops = require "pyramid_specs"
local reference = require "spec.support.ops_reference"
local new_sampler = require "pyramid.sampler"

local function some_logits(vocab, spread)
  local values = {}
  for i = 1, vocab do values[i] = (math.random() - 0.5) * spread end
  for _ = 1, vocab // 5 do values[math.random(vocab)] = values[math.random(vocab)] end    -- ties
  return values
end

local cases = {
  { name = "the highest" },
  { name = "a temperature", temperature = 0.8 },
  { name = "a high temperature", temperature = 30 },
  { name = "one that leaves no choice", temperature = 1e-6 },
  { name = "top_k", temperature = 1, top_k = 7 },
  { name = "top_k of all and more", temperature = 1.5, top_k = 100000 },
  { name = "top_p", temperature = 1, top_p = 0.7 },
  { name = "a tiny top_p", temperature = 1, top_p = 1e-9 },
  { name = "min_p", temperature = 1, min_p = 0.1 },
  { name = "all filters", temperature = 1.2, top_k = 40, top_p = 0.9, min_p = 0.05 },
  { name = "top_p among equals", temperature = 1, top_p = 0.3, spread = 0 },
  { name = "top_k among equals", temperature = 1, top_k = 3, spread = 0 },
  { name = "penalties", repeat_penalty = 1.3, frequency_penalty = 0.2, presence_penalty = 0.1 },
  { name = "penalties of the last ones", temperature = 0.7, repeat_penalty = 1.1, penalty_last = 5,
    top_p = 0.95 },
  { name = "biases", temperature = 1, logit_bias = { [0] = 3, [2] = -math.huge, [1] = -1.5 } },
  { name = "biases of ids that were seen", temperature = 0.9, top_k = 10, repeat_penalty = 1.5,
    logit_bias = { [0] = 2, [1] = 2 } },
}

local function options_of(case, seed)
  local options = { seed = seed }
  for key, value in pairs(case) do
    if key ~= "name" and key ~= "spread" then options[key] = value end
  end
  return options
end

describe("pick", function()
  for _, case in ipairs(cases) do
    it("comes to the sampler's ids: " .. case.name, function()
      local rounds = {}
      for round, vocab in ipairs { 3, 31, 1000, 2049, math.random(4, 5000) } do
        rounds[round] = { vocab = vocab }
        for step = 1, 6 do
          rounds[round][step] = ops.floats(some_logits(vocab, case.spread or 12))
        end
      end
      reference.each(function(rt)
        local result = {}
        for round, logits in ipairs(rounds) do
          local here, there = new_sampler(options_of(case, round)),
            new_sampler(options_of(case, round))
          here:accept { 0, 1, 1, 2 }
          there:accept { 0, 1, 1, 2 }
          for step, bytes in ipairs(logits) do
            local picked = ops.numbers(assert(ops.pick(rt, { bytes }, { there })), "ints")
            result[#result + 1] = { logits.vocab, step, picked[1], (here:pick(ops.numbers(bytes))) }
          end
          here:close()
          there:close()
        end
        return result
      end, function(result, fail)
        for _, r in ipairs(result) do
          if r[3] ~= r[4] then
            fail("of %d logits, pick %d: id %d instead of %d", r[1], r[2], r[3], r[4])
          end
        end
      end)
    end)
  end

  it("serves many sequences at once, of which some share a sampler", function()
    local logits = {}
    for i = 1, 9 do logits[i] = ops.floats(some_logits(700, 10)) end
    reference.each(function(rt)
      local result = {}
      for _, options in ipairs { { temperature = 1, seed = 4 },
        { temperature = 1, repeat_penalty = 2, seed = 4 }, {} } do
        local shared, other = new_sampler(options), new_sampler { temperature = 0.5, seed = 8 }
        local alone, others = new_sampler(options), new_sampler { temperature = 0.5, seed = 8 }
        local who, expected = {}, {}
        for i = 1, 9 do who[i] = i % 4 == 2 and other or shared end
        for i = 1, 9 do
          expected[i] = (i % 4 == 2 and others or alone):pick(ops.numbers(logits[i]))
        end
        result[#result + 1] = { ops.numbers(assert(ops.pick(rt, logits, who)), "ints"), expected }
      end
      return result
    end, function(result, fail)
      for _, r in ipairs(result) do
        for i = 1, 9 do
          if r[1][i] ~= r[2][i] then
            fail("sequence %d: id %d instead of %d", i, r[1][i], r[2][i])
          end
        end
      end
    end)
  end)

  it("passes over what is not finite; where nothing is, no sampler moves", function()
    local nan, inf = 0 / 0, math.huge
    local none, some, wide = { nan, inf, -inf, nan }, { nan, inf, -3, -inf }, { 1, 1, 1, 1 }
    reference.each(function(rt)
      local result = {}
      for seed = 1, 12 do
        for _, options in ipairs { {}, { temperature = 1 },
          { temperature = 1, top_k = 3, top_p = 0.9 },
            { temperature = 1, repeat_penalty = 1.5 } } do
          options.seed = seed
          local there, here = new_sampler(options), new_sampler(options)
          local logits, who, expected = {}, {}, {}
          for i, values in ipairs { wide, none, wide, some, none, wide } do
            logits[i], who[i], expected[i] = ops.floats(values), there, here:pick(values) or -1
          end
          result[#result + 1] = { ops.numbers(assert(ops.pick(rt, logits, who)), "ints"), expected }
        end
      end
      return result
    end, function(result, fail)
      for _, r in ipairs(result) do
        for i, id in ipairs(r[2]) do
          if r[1][i] ~= id then fail("sequence %d: id %d instead of %d", i, r[1][i], id) end
        end
      end
    end)
  end)

  it("comes to the sampler's ids at the limits: one logit, the largest vocabulary of equals, "
    .. "zeros of both signs", function()
    local most = 1 << 19
    local logits = { { -5 }, { 0.0, -0.0, 0.0, -0.0 }, false }
    reference.each(function(rt)
      local result = {}
      for _, options in ipairs { {}, { temperature = 1e-45 }, { temperature = 3e38, seed = 4 },
        { temperature = 1, top_p = 0.5, seed = 9 } } do
        for _, values in ipairs(logits) do
          local there, here = new_sampler(options), new_sampler(options)
          if not values then
            values = {}
            for i = 1, rt:isa() == "emulated" and most // 16 or most do values[i] = 1 end
          end
          local picked = ops.numbers(assert(ops.pick(rt, { ops.floats(values) }, { there })),
            "ints")
          result[#result + 1] = { picked[1], (here:pick(values)) }
        end
      end
      local over = ops.floats { 1, 2 }:rep(most // 2 + 1)
      result[#result + 1] = { ops.numbers(assert(ops.pick(rt, { over }, { new_sampler() })),
        "ints")[1], 1 }
      result[#result + 1] = { select("#", ops.pick(rt, { over },
        { new_sampler { temperature = 1 } })), 3 }
      return result
    end, function(result, fail)
      for i, r in ipairs(result) do
        if r[1] ~= r[2] then
          fail("case %d: %s instead of %s", i, tostring(r[1]), tostring(r[2]))
        end
      end
    end)
  end)

  it("refuses biases of ids that there are not", function()
    reference.each(function(rt)
      return { ops.pick(rt, { ops.floats { 1, 2 } }, { new_sampler { logit_bias = { [2] = 1 } } }) }
    end, function(result, fail)
      if result[1] ~= nil or not tostring(result[2]):find("bias of id 2", 1, true) then
        fail("%s", tostring(result[2]))
      end
    end)
  end)
end)
