-- The sampler against a plain reference in Lua that sorts everything, one step after the other.
local core = require "pyramid.core"
local new_sampler = require "pyramid.sampler"

--- The distribution that core/sample/sampler.c documents: a table from id to probability.
local function reference(logits, o, seen)
  local l, order = {}, {}
  for i, x in ipairs(logits) do l[i] = x + ((o.logit_bias or {})[i - 1] or 0) end
  local counts = {}
  local last = (o.penalty_last or 0) > 0 and o.penalty_last or #seen
  for i = math.max(1, #seen - last + 1), #seen do counts[seen[i]] = (counts[seen[i]] or 0) + 1 end
  for id, count in pairs(counts) do
    local x, penalty = l[id + 1], o.repeat_penalty or 1
    x = x > 0 and x / penalty or x * penalty
    l[id + 1] = x - (o.frequency_penalty or 0) * count - (o.presence_penalty or 0)
  end
  for i, x in ipairs(l) do
    if x == x and x ~= math.huge and x ~= -math.huge then order[#order + 1] = i end
  end
  table.sort(order, function(a, b) return l[a] > l[b] or (l[a] == l[b] and a < b) end)
  if (o.temperature or 0) == 0 then return { [order[1] - 1] = 1 } end
  local weights, highest = {}, l[order[1]]
  for rank, i in ipairs(order) do weights[rank] = math.exp((l[i] - highest) / o.temperature) end
  if (o.top_k or 0) > 0 then
    for rank = o.top_k + 1, #weights do weights[rank] = nil end
  end
  local function sum()
    local total = 0
    for _, w in ipairs(weights) do total = total + w end
    return total
  end
  if o.top_p and o.top_p > 0 and o.top_p < 1 then
    local enough, mass, rank = o.top_p * sum(), 0, 0
    while rank < #weights and mass < enough do rank = rank + 1; mass = mass + weights[rank] end
    for r = #weights, rank + 1, -1 do weights[r] = nil end
  end
  for rank = #weights, 1, -1 do
    if weights[rank] < (o.min_p or 0) then weights[rank] = nil end
  end
  local total, out = sum(), {}
  for rank, w in ipairs(weights) do out[order[rank] - 1] = w / total end
  return out
end

--- Numbers between -4 and 4, always the same.
local function some_logits(n, seed)
  local state, out = seed or 1, {}
  for i = 1, n do
    state = (state * 1103515245 + 12345) % 2147483648
    out[i] = state / 2147483648 * 8 - 4
  end
  return out
end

--- Picks `draws` times from the same logits with no history, and counts ids.
local function histogram(logits, options, draws)
  local sampler, counts = new_sampler(options), {}
  for _ = 1, draws do
    local id = assert(sampler:pick(logits))
    counts[id] = (counts[id] or 0) + 1
  end
  sampler:close()
  return counts
end

describe("sampler", function()
  describe("greedy", function()
    it("picks the highest logit", function()
      assert.equal(2, new_sampler():pick { 1, -2, 7.5, 7.25 })
      assert.equal(0, new_sampler { temperature = 0, top_k = 3 }:pick { 5 })
    end)

    it("breaks ties towards the lower id", function()
      assert.equal(1, new_sampler():pick { 0, 3, 3, 3 })
    end)

    it("passes over what is not finite, and fails if nothing is", function()
      local nan, inf = 0 / 0, math.huge
      assert.equal(3, new_sampler():pick { nan, inf, -inf, -5 })
      for _, options in ipairs { { temperature = 0 }, { temperature = 1 },
        { temperature = 1, top_k = 2, top_p = 0.5 } } do
        local id, message, code = new_sampler(options):pick { nan, inf, -inf }
        assert.is_nil(id)
        assert.matches("no logit is finite", message)
        assert.equal("argument", code)
        assert.equal(2, new_sampler(options):pick { nan, inf, -3, -inf })
      end
    end)
  end)

  describe("draws the documented distribution with", function()
    local cases = {
      { name = "temperature 1", temperature = 1 },
      { name = "a low temperature", temperature = 0.3 },
      { name = "a high temperature", temperature = 5 },
      { name = "top_k", temperature = 1, top_k = 5 },
      { name = "top_k of one", temperature = 2, top_k = 1 },
      { name = "top_k beyond the vocabulary", temperature = 1, top_k = 1000 },
      { name = "top_p", temperature = 1, top_p = 0.7 },
      { name = "a tiny top_p", temperature = 1, top_p = 1e-6 },
      { name = "min_p", temperature = 1, min_p = 0.1 },
      { name = "min_p of one", temperature = 1, min_p = 1 },
      { name = "top_k and top_p", temperature = 0.8, top_k = 9, top_p = 0.8 },
      { name = "top_p and min_p", temperature = 1.5, top_p = 0.95, min_p = 0.2 },
      { name = "all filters", temperature = 1.2, top_k = 20, top_p = 0.9, min_p = 0.05 },
      { name = "logit bias", temperature = 1, logit_bias = { [0] = 5, [7] = -math.huge,
        [3] = -1 } },
    }
    for _, case in ipairs(cases) do
      it(case.name, function()
        local logits, options = some_logits(40), {}
        for k, v in pairs(case) do options[k] = k ~= "name" and v or nil end
        options.seed = 11
        local draws = 20000
        local expected, counts = reference(logits, options, {}), histogram(logits, options, draws)
        for id in pairs(counts) do assert.is_truthy(expected[id], "picked " .. id) end
        for id, p in pairs(expected) do
          -- five standard deviations, and the Poisson tail of rare ids
          local bound = 5 * math.sqrt(draws * p * (1 - p)) + 5
          assert.is_true(math.abs((counts[id] or 0) - draws * p) <= bound,
            ("id %d: %d of %d draws, expected %.1f"):format(id, counts[id] or 0, draws, draws * p))
        end
      end)
    end

    it("equal logits, of which top_k keeps the lower ids", function()
      local logits = {}
      for i = 1, 50 do logits[i] = 1 end
      local counts = histogram(logits, { temperature = 1, top_k = 10 }, 2000)
      for id = 0, 9 do assert.is_truthy(counts[id]) end
      for id = 10, 49 do assert.is_nil(counts[id]) end
      counts = histogram(logits, { temperature = 1, top_p = 0.09 }, 2000)
      for id = 5, 49 do assert.is_nil(counts[id]) end
    end)

    it("a large vocabulary", function()
      local logits = some_logits(30000, 5)
      for _, options in ipairs { { top_k = 40 }, { top_p = 0.05 }, { min_p = 0.9 },
        { top_k = 500, top_p = 0.3 } } do
        options.temperature, options.seed = 0.7, 3
        local expected, counts = reference(logits, options, {}), histogram(logits, options, 400)
        for id in pairs(counts) do assert.is_truthy(expected[id]) end
      end
    end)
  end)

  describe("penalties", function()
    local function check(options, seen, logits)
      options.temperature = 0
      local sampler, history = new_sampler(options), table.move(seen, 1, #seen, 1, {})
      sampler:accept(seen)
      for step = 1, 30 do
        local expected = next(reference(logits, options, history))
        local id = sampler:pick(logits)
        assert.equal(expected, id, "step " .. step)
        history[#history + 1] = id
      end
    end

    it("equal the reference, with and without a window", function()
      local logits = some_logits(25, 9)
      for _, penalty_last in ipairs { 0, 1, 3, 64 } do
        check({ repeat_penalty = 1.3, penalty_last = penalty_last }, { 3, 3, 7 }, logits)
        check({ frequency_penalty = 0.4, penalty_last = penalty_last }, {}, logits)
        check({ presence_penalty = 2, penalty_last = penalty_last },
          { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 }, logits)
        check({ repeat_penalty = 1.1, frequency_penalty = 0.2, presence_penalty = -0.3,
          penalty_last = penalty_last }, { 24, 24, 24 }, logits)
      end
    end)

    it("remember thousands of ids", function()
      local logits, seen = some_logits(5000, 2), {}
      for i = 1, 4000 do seen[i] = (i * 37) % 5000 end
      for _, penalty_last in ipairs { 0, 1000 } do
        check({ presence_penalty = 100, penalty_last = penalty_last }, seen, logits)
      end
    end)

    it("pass over ids beyond the vocabulary", function()
      local sampler = new_sampler { repeat_penalty = 2 }
      sampler:accept { 2147483647, 1 }
      assert.equal(0, sampler:pick { 1.5, 2 })
    end)

    it("are forgotten by reset", function()
      local sampler = new_sampler { presence_penalty = 10 }
      assert.equal(1, sampler:pick { 1, 2 })
      assert.equal(0, sampler:pick { 1, 2 })
      assert.equal(1, sampler:reset():pick { 1, 2 })
    end)
  end)

  describe("seeds", function()
    local function sequence(options, n)
      local sampler, out = new_sampler(options), {}
      local logits = some_logits(200, 4)
      for i = 1, n do out[i] = sampler:pick(logits) end
      return out, sampler, logits
    end

    it("give the same picks again, after reset too", function()
      local options = { temperature = 1, top_p = 0.95, seed = 42 }
      local first = sequence(options, 100)
      local again, sampler, logits = sequence(options, 100)
      assert.same(first, again)
      sampler:reset()
      for i = 1, 100 do assert.equal(first[i], sampler:pick(logits)) end
    end)

    it("give other picks when they differ, negative ones included", function()
      local first = sequence({ temperature = 1, seed = 1 }, 50)
      assert.not_same(first, (sequence({ temperature = 1, seed = 2 }, 50)))
      assert.not_same(first, (sequence({ temperature = 1, seed = -1 }, 50)))
      assert.same((sequence({ temperature = 1 }, 50)),
        (sequence({ temperature = 1, seed = 0 }, 50)))
    end)

    it("do not depend on the runtime's threads", function()
      local picks = {}
      for _, threads in ipairs { 1, 3 } do
        local rt = core.runtime { threads = threads }
        local sampler, out = core.sampler(rt, { temperature = 1, top_k = 50, seed = 9 }), {}
        for i = 1, 50 do out[i] = sampler:pick(some_logits(300, i)) end
        picks[#picks + 1] = out
        sampler:close()
        rt:close()
      end
      assert.same(picks[1], picks[2])
    end)
  end)

  describe("misuse", function()
    it("raises on unknown options and lists the known ones", function()
      assert.error_matches(function() new_sampler { temprature = 1 } end,
        "unknown option 'temprature' %(known: temperature, top_k, .*logit_bias, .*%)")
      assert.error_matches(function() new_sampler { 1 } end, "unknown option '1'")
      assert.error(function() new_sampler(3) end)
    end)

    it("raises on values out of range, naming the option", function()
      local bad = {
        temperature = { -1, 0 / 0, math.huge, 1e300, "warm", {} }, top_k = { -1, 1.5, "x", 2 ^ 40 },
        top_p = { -0.1, 0 / 0 }, min_p = { -0.1, 1.1, 0 / 0 }, repeat_penalty = { -1, math.huge },
        frequency_penalty = { 0 / 0 }, presence_penalty = { -math.huge },
          penalty_last = { -1, 0.5, 1 << 21 },
        seed = { 0.5, "s" }, logit_bias = { 1, { a = 1 }, { [-1] = 1 }, { [0] = math.huge },
          { [0] = 0 / 0 }, { [0] = "x" } },
      }
      for option, values in pairs(bad) do
        for _, value in ipairs(values) do
          local ok, message = pcall(new_sampler, { [option] = value })
          assert.is_false(ok, option .. " = " .. tostring(value))
          assert.matches("sampler: ", message)
          if option ~= "logit_bias" then assert.matches(option, message, 1, true) end
        end
      end
    end)

    it("fails on a bias beyond the vocabulary", function()
      local id, message, code = new_sampler { logit_bias = { [5] = 1 } }:pick { 1, 2 }
      assert.is_nil(id)
      assert.matches("bias of id 5", message)
      assert.equal("argument", code)
    end)

    it("raises on logits and ids that are none", function()
      local sampler = new_sampler { repeat_penalty = 1.1 }
      for _, value in ipairs { 3, "x", {}, { 1, "y" }, { true } } do
        assert.error(function() sampler:pick(value) end)
      end
      assert.error(function() sampler:pick() end)
      for _, value in ipairs { 3, { -1 }, { 0.5 }, { "a" }, { 2 ^ 31 } } do
        assert.error(function() sampler:accept(value) end)
      end
    end)

    it("closes once and for all, before its runtime or after", function()
      local sampler = new_sampler()
      sampler:close()
      sampler:close()
      assert.error_matches(function() sampler:pick { 1 } end, "closed")
      local rt = core.runtime { threads = 1 }
      local late <close> = core.sampler(rt, {})
      rt:close()
      assert.equal(0, late:pick { 1 })
      assert.error_matches(function() core.sampler(rt, {}) end, "closed")
    end)
  end)

  it("survives an allocator that fails at any step", function()
    local function task(limit)
      local rt <close> = assert(core.runtime { threads = 1, memory = limit })
      local before = rt:memory()
      local options = { temperature = 1, top_p = 0.9, frequency_penalty = 0.1, penalty_last = 9,
        logit_bias = { [1] = 1 } }
      local sampler, message, code = core.sampler(rt, options)
      local ok = sampler
      if sampler then
        ok, message, code = sampler:accept { 1, 2, 3 }
        if ok then ok, message, code = sampler:pick(some_logits(1000)) end
        sampler:close()
      end
      assert.equal(before, rt:memory())
      if not ok then
        assert.equal("memory", code)
        assert.matches("out of memory", message)
      end
      return ok
    end
    local rt <close> = core.runtime { threads = 1 }
    local base, failures = rt:memory(), 0
    local limit = base + 8
    while not task(limit) do
      failures, limit = failures + 1, limit + 200
    end
    assert.is_true(failures > 5)
  end)
end)
