-- Lanes of unequal length: budgets pooled over heads, by mass, by a bound, one a head, losers
-- merged, keys compacted. What is kept equals plain Lua's choice; what the model says over it
-- equals a plain Lua transformer over the same rows.
local helper = require "spec.helper"
local plain = require "support.plain_llama"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local reference = require "spec.support.ops_reference"
local score = require "pyramid.score"
local shell = require "support.shell"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 256 }
local PAGE = 32
local folder, model, llama

setup(function()
  folder = shell.folder()
  assert(random_model.write(folder .. "/model", { shape = SHAPE, dtype = "f32", seed = 5 }))
  model = assert(pyramid.model(folder .. "/model", { threads = 2 }))
  llama = plain.open(folder .. "/model")
end)
teardown(function()
  model:close()
  shell.remove(folder)
end)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function new(p, given)
  given = given or {}
  given.policy, given.dtype = p, given.dtype or "f32"
  return assert(model:cache(given))
end

local function each_lane(f)
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do f(layer, head, ("layer %d, head %d"):format(layer, head)) end
  end
end

local function all_positions(cache)
  local lanes = {}
  each_lane(function(layer, head) lanes[#lanes + 1] = cache:positions(layer, head) end)
  return lanes
end

local function assert_bytes(cache, tracked)
  local bytes = 0
  each_lane(function(layer, head)
    local pages = (cache:rows(layer, head) + PAGE - 1) // PAGE
    bytes = bytes + pages * (2 * PAGE * 4 * SHAPE.width // SHAPE.heads
      + PAGE * (tracked and 8 or 4)) + helper.lane_beside(pages, tracked and 2 or 1)
  end)
  assert.equal(bytes, cache:bytes())
end

local function assert_ragged(cache)
  local ragged = false
  for layer = 1, SHAPE.layers do ragged = ragged or cache:rows(layer, 1) ~= cache:rows(layer, 2) end
  assert.is_true(ragged)
end

-- bytes of a saved cache's header and of a layer's state
local HEADER <const>, STATE <const> = 256, 18 * 8

--- What a saved cache holds: lanes[layer][head] = { history = , k = rows, v = rows, came = rows
--- where keys are compact }.
local function lanes_of(cache)
  local path, d = helper.tmp(), SHAPE.width // SHAPE.heads
  assert(cache:save(path))
  local bytes, at, lanes = helper.read(path), HEADER + STATE * SHAPE.layers, {}
  os.remove(path)
  local function numbers(count)
    at = at + 4 * count
    return helper.floats(bytes, at - 4 * count, count)
  end
  each_lane(function(layer, head)
    local rows, tracked, lane = ("<i8"):unpack(bytes, at + 1), ("<i8"):unpack(bytes, at + 9),
      { k = {}, v = {} }
    at = at + 16 + 4 * rows
    if tracked == 1 then lane.history = numbers(rows) end
    local planes = { lane.k, lane.v }
    if ("<i8"):unpack(bytes, HEADER + (layer - 1) * STATE + 12 * 8 + 1) == 1 then
      at, lane.came = at + 4 * rows, {}
      planes[3] = lane.came
    end
    for first = 0, rows - 1, PAGE do
      for _, plane in ipairs(planes) do
        for _ = first + 1, math.min(first + PAGE, rows) do plane[#plane + 1] = numbers(d) end
      end
    end
    lanes[layer] = lanes[layer] or {}
    lanes[layer][head] = lane
  end)
  return lanes
end

local function tracking() return { every = 1 << 20, track = score.history() } end
local function keep_all(_, l) return { keep = l.rows } end

--- A policy that reads a prompt under one plan, ranks by accumulated attention, and then keeps all.
local function once(plan)
  return policy { name = "once", prefill = plan, trigger = tracking, decode = keep_all }
end

--- Accumulated attention of each row and lane, and the cache's rows, after a prompt under a plan.
local function histories(ids)
  local cache <close> = new(once(nil))
  assert(cache:prefill(ids))
  return lanes_of(cache)
end

--- Guarded rows and chosen ones (both from 0) as positions of a prompt.
local function with_guards(n, first, last, chosen)
  local out = {}
  for j = 0, first - 1 do out[#out + 1] = j end
  for _, j in ipairs(chosen) do out[#out + 1] = first + j end
  for j = n - last, n - 1 do out[#out + 1] = j end
  return out
end

describe("a plan", function()
  local N, FIRST, LAST = 100, 3, 9
  local ids, full

  setup(function()
    ids = prompt(N, 3)
    full = histories(ids)
  end)

  local function judged(layer, head)
    return helper.slice(full[layer][head].history, FIRST + 1, N - LAST)
  end

  local function check(plan, choose)
    local p = once(function()
      local copy = { guard = { first = FIRST, last = LAST }, score = score.history() }
      for key, value in pairs(plan) do copy[key] = value end
      return copy
    end)
    local cache <close> = new(p)
    assert(cache:prefill(ids))
    local rows = 0
    for layer = 1, SHAPE.layers do
      local chosen = choose(layer)
      for head = 1, SHAPE.kv_heads do
        helper.assert_positions(with_guards(N, FIRST, LAST, chosen[head]),
          cache:positions(layer, head), ("layer %d, head %d"):format(layer, head))
        rows = rows + cache:rows(layer, head)
      end
    end
    assert.equal(SHAPE.layers * SHAPE.kv_heads * N - rows, cache:evicted())
    assert.equal(rows / (SHAPE.layers * SHAPE.kv_heads * N), cache:fraction())
    assert_bytes(cache, true)
    return cache:rows(1, 1), cache:rows(1, 2)
  end

  local function check_pool(keep, least, mass)
    return check({ keep = keep, least = least, mass = mass, share = "pool" }, function(layer)
      local promised = math.max((least or 0) - FIRST - LAST, 0)
      local most = math.max(2 * (keep - FIRST - LAST), 2 * promised)
      return reference.choose({ judged(layer, 1), judged(layer, 2) }, { promised, promised }, most,
        mass or 0)
    end)
  end

  it("pools a budget over heads", function()
    for _, keep in ipairs { 13, 20, 50, 80, 99 } do
      for _, share in ipairs { 0, 0.2, 0.7, 1 } do check_pool(keep, math.floor(keep * share)) end
    end
    local a, b = check_pool(40)
    assert.equal(80, a + b)
    check_pool(FIRST + LAST - 4)                     -- guards exceed it
  end)

  it("keeps as few rows as hold a share of the score, by head, over a pool, by layer", function()
    for _, mass in ipairs { 0.05, 0.5, 0.9, 1 } do
      for _, keep in ipairs { 20, N } do
        for _, least in ipairs { 0, 15 } do
          local promised = math.max(least - FIRST - LAST, 0)
          check_pool(keep, least, mass)
          check({ keep = keep < N and keep or nil, least = least, mass = mass, share = "head" },
            function(layer)
            local chosen = {}
            for head = 1, 2 do
              chosen[head] = reference.choose({ judged(layer, head) }, { promised },
                keep - FIRST - LAST, mass)[1]
            end
            return chosen
          end)
          check({ keep = keep, least = least, mass = mass }, function(layer)
            local mean, a, b = {}, judged(layer, 1), judged(layer, 2)
            for i = 1, #a do mean[i] = ("f"):unpack(("f"):pack(a[i] + b[i])) / 2 end
            local chosen = reference.choose({ mean }, { promised }, keep - FIRST - LAST, mass)[1]
            return { chosen, chosen }
          end)
        end
      end
    end
  end)

  it("keeps the rows whose score is no lower than a bound, by head, over a pool, by layer",
    function()
    local function mean_of(layer)
      local mean, a, b = {}, judged(layer, 1), judged(layer, 2)
      for i = 1, #a do mean[i] = ("f"):unpack(("f"):pack(a[i] + b[i])) / 2 end
      return mean
    end
    local sorted = judged(1, 1)
    table.sort(sorted)
    for _, above in ipairs { -1, sorted[1], sorted[#sorted // 2], sorted[#sorted], 1e9 } do
      for _, least in ipairs { 0, 15 } do
        for _, keep in ipairs { 20, N } do
          local promised = math.max(least - FIRST - LAST, 0)
          local own = { keep = keep < N and keep or nil, least = least, above = above }
          check(own, function(layer)
            local chosen = reference.choose({ mean_of(layer) }, { promised },
              keep - FIRST - LAST, 0, above)[1]
            return { chosen, chosen }
          end)
          own.share = "head"
          check(own, function(layer)
            local chosen = {}
            for head = 1, 2 do
              chosen[head] = reference.choose({ judged(layer, head) }, { promised },
                keep - FIRST - LAST, 0, above)[1]
            end
            return chosen
          end)
          own.share, own.keep = "pool", keep
          check(own, function(layer)
            return reference.choose({ judged(layer, 1), judged(layer, 2) }, { promised, promised },
              2 * (keep - FIRST - LAST), 0, above)
          end)
          own.share, own.mass = "head", 0.7
          check(own, function(layer)
            local chosen = {}
            for head = 1, 2 do
              chosen[head] = reference.choose({ judged(layer, head) }, { promised },
                keep - FIRST - LAST, 0.7, above)[1]
            end
            return chosen
          end)
        end
      end
    end
    local p = policy { name = "bound", prefill = function() return { above = 3 } end }
    assert.same({ rows = N, computed = N, most = true }, policy.forecast(p, model.config, N)[1])
  end)

  it("prunes hidden states by mass to the rows that it would keep", function()
    local function kept(prune)
      local cache <close> = new(policy { name = "mass", prefill = function(_, l)
        if l.index == 1 then
          return { mass = 0.6, guard = { first = 2, last = 1 }, score = score.history(),
            prune = prune }
        end
      end })
      assert(cache:prefill(ids))
      return cache:positions(1, 1), cache:positions(2, 2), cache:computed()
    end
    local cut = kept("cache")
    assert.is_true(#cut < N)
    local whole, handed, computed = kept("hidden")
    assert.equal(N, #whole)
    assert.same(cut, handed)
    assert.equal(N + #cut, computed)
    whole, handed = kept("both")
    assert.same(cut, whole)
    assert.same(cut, handed)
  end)

  it("takes one budget for each head", function()
    local function choose(layer)
      local a, b = judged(layer, 1), judged(layer, 2)
      return { reference.choose({ a }, { 0 }, 3, 0)[1], reference.choose({ b }, { 0 }, #b, 0)[1] }
    end
    assert.same({ 15, N }, { check({ keep = { 15, N }, share = "head" }, choose) })
    check({ keep = { 15, N }, share = "head", mass = 0.5 }, function(layer)
      local a, b = judged(layer, 1), judged(layer, 2)
      return { reference.choose({ a }, { 0 }, 3, 0.5)[1],
        reference.choose({ b }, { 0 }, #b, 0.5)[1] }
    end)
    local p = policy { name = "list", prefill = function()
      return { keep = { 10, 21 }, guard = { first = 12 }, share = "head" }
    end }
    assert.equal(16.5, policy.forecast(p, model.config, N)[1].rows)
  end)

  it("averages losers into the survivors that are most similar", function()
    for _, threshold in ipairs { -1, 0.3, 0.6 } do
      local cache <close> = new(once(function()
        return { keep = 30, guard = { first = FIRST, last = LAST }, score = score.history(),
          share = "pool", merge = { threshold = threshold } }
      end))
      assert(cache:prefill(ids))
      local lanes = lanes_of(cache)
      each_lane(function(layer, head, what)
        local k, v = reference.merge(full[layer][head].k, full[layer][head].v,
          cache:positions(layer, head), threshold)
        for name, ref in pairs { k = k, v = v } do
          for j, row in ipairs(ref) do
            assert.is_true(helper.distance(lanes[layer][head][name][j], row) < 1e-4,
              ("%s: %s of row %d"):format(what, name, j))
          end
        end
      end)
    end
  end)
end)

-- ---- over many steps ----------------------------------------------------------------------------

--- An engine's cache and plain lanes that hold the same.
local Pair = {}
Pair.__index = Pair

--- how: compact, or the threshold of merging.
local function pair(p, how)
  how = how or {}
  return setmetatable({ cache = new(p), lanes = llama:lanes(), compact = how.compact,
    threshold = how.threshold }, Pair)
end

--- Takes over what the cache kept: rows dropped, merged, turned to their places.
function Pair:follow()
  each_lane(function(layer, head, what)
    local lane, positions = self.lanes[layer][head], self.cache:positions(layer, head)
    for j = 2, #positions do assert(positions[j - 1] < positions[j], what) end
    local k, v = {}, {}
    for j, row in ipairs(lane) do k[j], v[j] = row.turned, row.v end
    local before = #lane
    local idx = plain.keep(lane, positions)
    if #lane == before then return end
    if self.threshold then
      local merged_k, merged_v = reference.merge(k, v, idx, self.threshold)
      for j, row in ipairs(lane) do row.turned, row.v = merged_k[j], merged_v[j] end
    end
    if self.compact then
      lane.compact = true
      for j, row in ipairs(lane) do row.turned = llama:rotated(row.k, j - 1) end
    end
  end)
end

function Pair:plain_step(id)
  return llama:step(self.lanes, id, function(lane) return lane.compact and #lane
    or self.lanes.tokens end)
end

function Pair:prefill(ids, what)
  local logits, ref = assert(self.cache:prefill(ids)), nil
  for _, id in ipairs(ids) do ref = self:plain_step(id) end
  helper.assert_near(logits, ref, what or "prefill")
  self:follow()
end

function Pair:steps(n, seed, look)
  for i, id in ipairs(prompt(n, seed)) do
    local logits = assert(self.cache:step(id))
    helper.assert_near(logits, self:plain_step(id), ("step %d of %d"):format(i, n))
    if look then look(i) end
    self:follow()
  end
end

local policies = {
  adakv = function() return assert(pyramid.policy("adakv",
    { ratio = 0.35, window = 8, kernel = 5 })) end,
  lists = function()
    local function plan(_, l)
      return { keep = { math.min(20, l.rows), math.min(70, l.rows) },
        guard = { first = 2, last = 10 }, share = "head" }
    end
    return policy { name = "lists", prefill = plan, trigger = function() return { every = 8 } end,
      decode = plan }
  end,
  mass = function()
    local function plan()
      return { mass = 0.8, least = 12, guard = { first = 1, last = 6 }, score = score.history(),
        share = "head" }
    end
    return policy { name = "mass", prefill = plan, decode = plan,
      trigger = function() return { every = 9, track = score.history() } end }
  end,
  pool = function()
    local function plan(_, l)
      return { keep = math.min(26, l.rows), least = 12, guard = { first = 1, last = 6 },
        score = score.history { decay = 0.9 }, share = "pool" }
    end
    return policy { name = "pool", prefill = plan, decode = plan,
      trigger = function() return { over = 40, window = 8,
        track = score.history { decay = 0.9 } } end }
  end,
}

describe("lanes of unequal length", function()
  for _, name in ipairs { "adakv", "lists", "mass", "pool" } do
    it(("say what a plain transformer says over the same rows (%s)"):format(name), function()
      local both = pair(policies[name]())
      both:prefill(prompt(70, 2))
      assert_ragged(both.cache)
      both:steps(50, 11)
      local path = helper.tmp()
      assert(both.cache:save(path))
      local loaded <close> = assert(model:load_cache(path,
        { policy = policies[name](), dtype = "f32" }))
      local fork <close> = assert(both.cache:fork())
      local stray <close> = assert(both.cache:fork())
      os.remove(path)
      assert.same(all_positions(both.cache), all_positions(loaded))
      for i = 1, 20 do assert(stray:step(i)) end  -- what it writes, the others do not see
      both:steps(50, 12)
      for _, other in ipairs { loaded, fork } do
        for _, id in ipairs(prompt(50, 12)) do assert(other:step(id)) end
        assert.same(all_positions(both.cache), all_positions(other))
        assert.equal(both.cache:bytes(), other:bytes())
      end
      both:prefill(prompt(40, 4), "second prefill")
      both:steps(20, 13)
      both.cache:close()
    end)
  end

  it("are read on by a prompt as by single tokens", function()
    local whole, single = new(policies.adakv()), new(policies.adakv())
    for _, cache in ipairs { whole, single } do assert(cache:prefill(prompt(70, 2))) end
    local ids, logits = prompt(60, 8), nil
    for _, id in ipairs(ids) do logits = assert(single:step(id)) end
    helper.assert_near(assert(whole:prefill(ids, { prune = false })), logits:totable(), "appended")
    assert.same(all_positions(single), all_positions(whole))
    whole:close()
    single:close()
  end)

  it("step in a batch as they do alone", function()
    for name, make in pairs(policies) do
      local batch <close> = assert(model:batch { policy = make(), dtype = "f32" })
      local handles, alone = {}, {}
      for i, n in ipairs { 40, 75, 61 } do
        handles[i], alone[i] = assert(batch:add(prompt(n, i))), new(make())
        assert(alone[i]:prefill(prompt(n, i)))
      end
      assert(batch:step())
      for step = 1, 60 do
        for i, handle in ipairs(handles) do
          assert(batch:push(handle, (7 * step + i) % SHAPE.vocab))
        end
        for i, entry in ipairs(assert(batch:step())) do
          local logits = assert(alone[i]:step((7 * step + i) % SHAPE.vocab))
          helper.assert_near(entry[2], logits:totable(),
            ("%s, step %d, sequence %d"):format(name, step, i), 1e-6)
        end
      end
      for i, handle in ipairs(handles) do
        assert.same(all_positions(alone[i]), all_positions(handle))
        alone[i]:close()
      end
    end
  end)

  it("track the attention that each lane's rows got", function()
    local both = pair(policies.mass())
    both:prefill(prompt(60, 6))
    both:steps(30, 14)
    both:prefill(prompt(30, 7))
    both:steps(5, 15)
    assert_ragged(both.cache)
    local lanes = lanes_of(both.cache)
    each_lane(function(layer, head, what)
      for j, row in ipairs(both.lanes[layer][head]) do
        assert.near(row.history, lanes[layer][head].history[j], 1e-4, what)
      end
    end)
    both.cache:close()
  end)

  it("judge rows once, by the attention of the queries before they leave the window", function()
    local QUERIES, RAMP, EVERY, WINDOW, MASS = 16, 1.5, 8, 12, 0.6
    local both = pair(policy { name = "sliding",
      prefill = function(_, l)
        return { keep = math.min(30, l.rows), least = 14, guard = { first = 2, last = WINDOW },
          score = score.history(), share = "pool" }
      end,
      trigger = function()
        return { every = EVERY, window = WINDOW, once = true,
          track = score.attention { queries = QUERIES, ramp = RAMP } }
      end,
      decode = function(_, l)
        assert(l.waiting == EVERY, l.waiting)
        return { mass = MASS, guard = { first = 2 }, share = "head" }
      end })
    both:prefill(prompt(70, 9))
    assert_ragged(both.cache)
    local fired, dropped = 0, 0
    both:steps(80, 15, function(step)
      if step % EVERY ~= 0 then return end
      fired = fired + 1
      local now = both.lanes.tokens - 1
      each_lane(function(layer, head, what)
        local lane, scores, wanted = both.lanes[layer][head], {}, {}
        local first = #lane - WINDOW - EVERY
        for j = first + 1, #lane - WINDOW do
          local sum = 0.0
          for q = now - QUERIES + 1, now do
            sum = sum + (lane[j].seen[q] or 0) * (1
              + (RAMP - 1) * (q - (now - QUERIES + 1)) / (QUERIES - 1))
          end
          scores[#scores + 1] = sum
        end
        for _, j in ipairs(with_guards(#lane, first, WINDOW,
          reference.choose({ scores }, { 0 }, EVERY, MASS)[1])) do
          wanted[#wanted + 1] = lane[j + 1].position
        end
        dropped = dropped + #lane - #wanted
        helper.assert_positions(wanted, both.cache:positions(layer, head),
          ("step %d, %s"):format(step, what))
      end)
    end)
    assert.equal(80 // EVERY, fired)
    assert.is_true(dropped > 0)
    both.cache:close()
  end)

  it("merge losers while text is generated", function()
    local both = pair(assert(pyramid.policy("d2o", { rows = 24, slack = 3, threshold = 0.2 })),
      { threshold = 0.2 })
    both:prefill(prompt(60, 10))
    both:steps(60, 16)
    assert.is_true(both.cache:rows(1, 1) <= 27)
    both.cache:close()
  end)

  it("are judged by guards alone where one set is asked for, and refused by name where it would "
    .. "be ranked", function()
    local path = helper.tmp()
    local cache <close> = new(policies.adakv())
    assert(cache:prefill(prompt(70, 2)))
    assert(cache:save(path))
    local streaming <close> = assert(model:load_cache(path,
      { policy = pyramid.policy("streaming", { rows = 40 }), dtype = "f32" }))
    assert(streaming:prefill(prompt(20, 3)))
    each_lane(function(layer, head)
      local before, after = cache:positions(layer, head), streaming:positions(layer, head)
      assert.equal(math.min(#before + 20, 40), #after)
      assert.same(helper.slice(before, 1, 4), helper.slice(after, 1, 4))
    end)
    local ranked <close> = assert(model:load_cache(path,
      { dtype = "f32", policy = { name = "ranked",
      prefill = function(_, l) return { keep = l.rows // 2, guard = { last = 1 } } end } }))
    os.remove(path)
    local before = all_positions(ranked)
    local logits, message, code = ranked:prefill(prompt(100, 3))
    assert.is_nil(logits)
    assert.equal("policy", code)
    assert.truthy(message:find(
      'policy ranked, layer 1, prefill: share is "layer", but the heads hold unequal', 1, true),
        message)
    assert.same(before, all_positions(ranked))
    assert(ranked:prefill(prompt(20, 3), { prune = false }))
  end)

  it("come back when a prompt or a step does not fit the budget", function()
    for _, name in ipairs { "adakv", "pool" } do
      local probe <close> = new(policies[name]())
      assert(probe:prefill(prompt(70, 2)))
      local cache <close> = new(policies[name](), { budget = 2 * probe:bytes() })
      assert(cache:prefill(prompt(70, 2)))
      local before, bytes, evicted = all_positions(cache), cache:bytes(), cache:evicted()
      local logits, message, code = cache:prefill(prompt(180, 5))
      assert.is_nil(logits)
      assert.equal("budget", code, message)
      assert.same(before, all_positions(cache))
      assert.same({ bytes, evicted }, { cache:bytes(), cache:evicted() })
      for i = 1, 12 do
        helper.assert_near(assert(cache:step(i)), assert(probe:step(i)):totable(),
          "after the failure", 1e-6)
      end
    end
  end)

  it("copy shared pages before a step, or do not begin it", function()
    local failed = 0
    local page = 2 * PAGE * 4 * SHAPE.width // SHAPE.heads
    local made = assert(pyramid.policy("d2o", { rows = 70, slack = 3, threshold = -1 }))
    local probe <close> = new(made)
    assert(probe:prefill(prompt(71, 2)))
    for more = 0, 16 do
      local cache <close> = new(made, { budget = math.max(3 * probe:bytes(), 0) - more * page })
      if cache:prefill(prompt(71, 2)) then
        local fork = cache:fork()
        for i = 1, 8 do
          local before = all_positions(cache)
          local logits, _, code = cache:step(i)
          if not logits then
            failed = failed + 1
            assert.equal("budget", code)
            assert.same(before, all_positions(cache))
            assert.equal(70 + i, cache:tokens())
            if fork then
              fork:close()
              fork = nil
            end
            assert(cache:step(i))
          end
        end
        if fork then fork:close() end
      end
    end
    assert.is_true(failed > 0)
  end)
end)

-- ---- compact keys -------------------------------------------------------------------------------

describe("compact keys", function()
  local function streaming(given)
    local o = { rows = 40, slack = 7, rotate = true }
    for key, value in pairs(given or {}) do o[key] = value end
    return assert(pyramid.policy("streaming", o))
  end

  it("let a stream go on past the context, at the positions within the cache", function()
    local both = pair(streaming(), { compact = true })
    local bound = SHAPE.layers * SHAPE.kv_heads * (2 * (3 * PAGE * 4 * SHAPE.width // SHAPE.heads
      + PAGE * 8) + helper.lane_beside(2, 2))
    both:prefill(prompt(60, 2))
    both:steps(330, 3, function() assert.is_true(both.cache:bytes() <= bound) end)
    assert.is_true(both.cache:tokens() > SHAPE.context)
    local positions = both.cache:positions(2, 1)
    assert.same({ 0, 1, 2, 3 }, helper.slice(positions, 1, 4))
    assert.equal(389, positions[#positions])
    local lanes = lanes_of(both.cache)
    each_lane(function(layer, head, what)
      for j, row in ipairs(both.lanes[layer][head]) do
        assert.is_true(helper.distance(lanes[layer][head].k[j],
          llama:rotated(row.k, j - 1)) < 1e-4, what)
      end
    end)
    both:prefill(prompt(70, 5), "beyond the context")
    both:steps(20, 6)
    local logits, message, code = both.cache:prefill(prompt(SHAPE.context - 20, 7))
    assert.is_nil(logits)
    assert.equal("context", code, message)
    both:steps(20, 8)
    both.cache:close()
  end)

  it("equal keys of a prompt that is what the cache holds, where a layer sees tokens only",
    function()
    local one = folder .. "/one"
    local shape = { layers = 1, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
      context = 64 }
    assert(random_model.write(one, { shape = shape, dtype = "f32", seed = 9 }))
    local small <close> = assert(pyramid.model(one, { threads = 1 }))
    local cache <close> = assert(small:cache { policy = streaming { rows = 20, slack = 3 },
      dtype = "f32" })
    local ids = prompt(250, 4)
    assert(cache:prefill(helper.slice(ids, 1, 50)))
    for i = 51, #ids do
      local kept = {}
      for _, position in ipairs(cache:positions(1, 1)) do kept[#kept + 1] = ids[position + 1] end
      local fresh <close> = assert(small:cache { dtype = "f32" })
      assert(fresh:prefill(kept))
      helper.assert_near(assert(cache:step(ids[i])), assert(fresh:step(ids[i])):totable(),
        "token " .. i)
    end
  end)

  -- One layer, whose keys depend on tokens only: what was cut hundreds of times is what was cut
  -- once, but for the rounding.
  it("do not wear out, in rows of any dtype", function()
    local one = folder .. "/wear"
    local shape = { layers = 1, width = 64, heads = 2, kv_heads = 1, ff = 48, vocab = 272,
      context = 1024 }
    assert(random_model.write(one, { shape = shape, dtype = "f32", seed = 9 }))
    local small <close> = assert(pyramid.model(one, { threads = 1 }))
    local cuts = helper.device == "cpu" and 600 or 40  -- kernels that a processor runs are slow
    local ids = prompt(cuts + 100, 4)
    local function worn(dtype)
      local cache <close> = assert(small:cache { policy = streaming { rows = 48, slack = 0 },
        dtype = dtype })
      local whole <close> = assert(small:cache { dtype = dtype,
        policy = policy { name = "at the end",
        trigger = function() return { over = #ids - 1 } end,
        decode = function() return { keep = 48, guard = { first = 4, last = 44 },
          rotate = "compact" } end } })
      assert(cache:prefill(helper.slice(ids, 1, #ids - cuts)))
      assert(whole:prefill(helper.slice(ids, 1, #ids - cuts)))
      for i = #ids - cuts + 1, #ids do
        assert(cache:step(ids[i]))
        assert(whole:step(ids[i]))
      end
      assert.same(whole:positions(1), cache:positions(1))
      local fork <close> = assert(cache:fork())
      local path = helper.tmp()
      assert(cache:save(path))
      local loaded <close> = assert(small:load_cache(path,
        { policy = streaming { rows = 48, slack = 0 }, dtype = dtype }))
      os.remove(path)
      local got = assert(cache:step(7)):totable()
      assert.same(got, assert(fork:step(7)):totable())
      assert.same(got, assert(loaded:step(7)):totable())
      return got, assert(whole:step(7)):totable()
    end
    local exact, once_exact = worn "f32"
    assert.is_true(helper.distance(exact, once_exact) < 1e-4)
    for _, dtype in ipairs { "f16", "bf16", "q8_0", "fp8_e4m3" } do
      local got, turned_once = worn(dtype)
      local noise, off = helper.distance(turned_once, exact), helper.distance(got, exact)
      assert.is_true(off <= 1.5 * noise,
        ("%s: off by %g, and by %g where keys were turned once"):format(dtype, off, noise))
    end
  end)

  it("are forked, saved, loaded and stepped in a batch", function()
    local path = helper.tmp()
    local cache <close> = new(streaming())
    assert(cache:prefill(prompt(60, 2)))
    for i = 1, 250 do assert(cache:step(i % SHAPE.vocab)) end
    assert(cache:save(path))
    local others = { assert(cache:fork()), assert(model:load_cache(path,
      { policy = streaming(), dtype = "f32" })) }
    os.remove(path)
    for i = 1, 60 do
      local logits = assert(cache:step((3 * i) % SHAPE.vocab)):totable()
      for _, other in ipairs(others) do
        helper.assert_near(assert(other:step((3 * i) % SHAPE.vocab)), logits, "step " .. i, 1e-6)
      end
    end
    for _, other in ipairs(others) do
      assert.same(all_positions(cache), all_positions(other))
      other:close()
    end
    local batch <close> = assert(model:batch { policy = streaming(), dtype = "f32" })
    local alone = {}
    for i, n in ipairs { 20, 90, 55 } do
      assert(batch:add(prompt(n, i)))
      alone[i] = new(streaming())
      assert(alone[i]:prefill(prompt(n, i)))
    end
    local ids = {}
    for step = 1, 270 do
      for i, entry in ipairs(assert(batch:step())) do
        if step > 1 then
          helper.assert_near(assert(alone[i]:step(ids[i])), entry[2]:totable(),
            "batch step " .. step, 1e-6)
        end
        ids[i] = entry[2]:argmax()
      end
    end
    for _, one in ipairs(alone) do one:close() end
  end)

  it("stay compact under whatever comes later, or refuse it by name", function()
    local plan
    local cache <close> = new(policy { name = "changing",
      prefill = function(_, l) return plan(l) end })
    plan = function() return { keep = 30, guard = { first = 4, last = 10 }, rotate = "compact" } end
    assert(cache:prefill(prompt(60, 2)))
    for _, case in ipairs {
      { { keep = { 20, 21 }, share = "head" }, "rotate" },
      { { keep = 20, share = "pool" }, "rotate" },
      { { keep = 20, share = "pool", rotate = "compact" }, "rotate" },
      { { keep = 20, share = "head", above = 0, rotate = "compact" }, "rotate" },
      { { keep = 20, prune = "hidden", rotate = "compact" }, "rotate" },
    } do
      plan = function() return case[1] end
      local logits, message, code = cache:prefill(prompt(30, 3))
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.truthy(message:find("policy changing, layer 1, prefill: " .. case[2], 1, true),
        message)
    end
    plan = function() return { keep = 25, guard = { last = 25 } } end      -- compact it stays
    assert(cache:prefill(prompt(30, 3)))
    assert.equal(25, cache:rows(1, 2))
    for _ = 1, 4 do assert(cache:prefill(prompt(60, 3))) end               -- past the context
    local mistral <close> = assert(pyramid.model(helper.fixture "families/mistral",
      { threads = 1 }))
    local windowed <close> = assert(mistral:cache { policy = streaming { rows = 10 },
      dtype = "f32" })
    local short = {}
    for i, id in ipairs(prompt(40, 2)) do short[i] = id % mistral.config.vocab end
    local _, message, code = windowed:prefill(short)
    assert.equal("policy", code, message)
    assert.truthy(message:find("rotate cannot be \"compact\" in a model whose layers all have a "
      .. "sliding window", 1, true), message)
  end)

  it("are not taken from a file of an older build", function()
    local path = helper.tmp()
    local cache <close> = new(streaming())
    assert(cache:prefill(prompt(60, 2)))
    assert(cache:save(path))
    local bytes = helper.read(path)
    helper.write(path, bytes:sub(1, 8) .. ("<I4"):pack(1) .. bytes:sub(13))
    local loaded, message, code = model:load_cache(path, { dtype = "f32" })
    os.remove(path)
    assert.is_nil(loaded)
    assert.equal("format", code)
    assert.truthy(message:find("older build", 1, true), message)
  end)
end)

describe("plans that cannot be", function()
  it("are refused by policy, layer and field, in the cache and in the forecast", function()
    for i, case in ipairs {
      { { mass = 0 }, "mass" }, { { mass = 1.5 }, "mass" }, { { mass = "x" }, "mass" },
        { { mass = 0 / 0 }, "mass" },
      { { above = "x" }, "above" }, { { above = 0 / 0 }, "above" }, { { above = 1e39 }, "above" },
      { { above = 1, least = 61 }, "least" },
      { { keep = 20, least = 5 }, "least", true },
        { { keep = 20, least = 25, share = "pool" }, "least" },
      { { keep = 20, least = -1, share = "pool" }, "least", true },
        { { keep = 20, least = 1.5, share = "pool" }, "least" },
      { { keep = { 20 }, share = "head" }, "keep" },
        { { keep = { 20, 30, 40 }, share = "head" }, "keep" },
      { { keep = { 20, 0 }, share = "head" }, "keep" },
        { { keep = { 20, 61 }, share = "head" }, "keep" },
      { { keep = { 20, 30 } }, "keep" }, { { keep = { 20, 30 }, share = "pool" }, "keep" },
      { { keep = { 20, "x" }, share = "head" }, "keep" },
      { { keep = { 20, 30 }, least = 25, mass = 0.5, share = "head" }, "least" },
      { { keep = 20, merge = 3 }, "merge" }, { { keep = 20, merge = { threshold = 2 } },
        "merge.threshold" },
      { { keep = 20, merge = {} }, "merge.threshold" },
        { { keep = 20, merge = { limit = 1 } }, "merge.limit" },
      { { keep = 20, merge = true, prune = "hidden" }, "merge", true },
      { { keep = 20, share = "pool", prune = "hidden" }, "share" },
      { { keep = 20, rotate = "round" }, "rotate" },
        { { keep = 20, rotate = "compact", share = "pool" }, "rotate", true },
    } do
      local p = policy { name = "naughty", prefill = function() return case[1] end }
      local cache <close> = new(p)
      local logits, message, code = cache:prefill(prompt(60))
      assert.is_nil(logits, "case " .. i)
      assert.equal("policy", code)
      assert.truthy(message:find("policy naughty, layer 1, prefill: " .. case[2], 1, true),
        ("case %d: %s"):format(i, message))
      assert.equal(0, cache:bytes())
      if not case[3] then assert.has_error(function() policy.forecast(p, model.config, 60) end) end
    end
  end)
end)
