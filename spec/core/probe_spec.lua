-- Reading over a cache without leaving rows: cache:probe, the passes of a policy that prepares its
-- plans, and budgets that all layers share (share = "model"). What is tracked equals a plain Lua
-- transformer's attention; what is kept equals plain Lua's choice; what fails changes nothing.
local cjson = require "cjson"
local helper = require "spec.helper"
local plain = require "spec.support.plain_llama"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local random_models = require "spec.support.random_models"
local score = require "pyramid.score"
local chosen = require "spec.support.one_budget"

local SHAPE = { layers = 3, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 512 }
local GROUP = SHAPE.heads // SHAPE.kv_heads
local models, folder = random_models(SHAPE)
local llama

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

local function new(model, p, given)
  given = given or {}
  given.policy, given.dtype = p, given.dtype or "f32"
  return assert(model:cache(given))
end

local function each_lane(f)
  for layer = 1, SHAPE.layers do
    for head = 1, SHAPE.kv_heads do f(layer, head, ("layer %d, head %d"):format(layer, head)) end
  end
end

local function positions(cache)
  local all = {}
  each_lane(function(layer, head) all[#all + 1] = cache:positions(layer, head) end)
  return all
end

-- What a call that failed, or left no rows, must not have changed.
local function state_of(cache)
  local fork <close> = assert(cache:fork())
  local logits = cache:tokens() > 0 and assert(fork:step(7)):totable()
  return { positions(cache), cache:tokens(), cache:evicted(), cache:bytes(), logits }
end

-- Numbers of two lists, each within `limit` of the other's.
local function near(got, expected, what, limit)
  assert.equal(#expected, #got, what)
  for i, x in ipairs(expected) do
    if got[i] ~= got[i] or math.abs(got[i] - x) > limit then
      error(("%s: number %d is %.9g, should be %.9g"):format(what, i, got[i], x), 2)
    end
  end
end

-- Rows dropped by head, so that lanes hold other positions and other numbers of them.
local ragged = policy { name = "ragged", prefill = function(_, l)
  return { keep = math.max(1, l.rows * 2 // 3), guard = { first = 2 }, share = "pool",
    score = score.key_norm() }
end }

-- ---- the plain reading --------------------------------------------------------------------------

-- Reads ids token by token into lanes.
local function read(lanes, ids)
  llama = llama or plain.open(folder() .. "/model")
  for _, id in ipairs(ids) do llama:step(lanes, id) end
end

-- Reads `ids` over the lanes, which then hold what they held; looked[row][query head] is a list of
-- { score, weight, at } of the ids in turn.
local function look(lanes, ids)
  local looked, first, held = {}, lanes.tokens, {}
  each_lane(function(layer, head) held[lanes[layer][head]] = #lanes[layer][head] end)
  function llama.watch(row, position, head, s, weight)
    local of_row = looked[row] or {}
    looked[row] = of_row
    of_row[head] = of_row[head] or {}
    table.insert(of_row[head], { score = s, weight = weight, at = position - first + 1 })
  end
  read(lanes, ids)
  llama.watch, lanes.tokens = nil, first
  local own = {}
  for lane, rows in pairs(held) do
    own[lane] = table.move(lane, rows + 1, #lane, 1, {})
    for j = #lane, rows + 1, -1 do lane[j] = nil end
  end
  return looked, own
end

local function ramp(at, n, queries, rise)
  if queries == 0 then return 1 end
  local i = at - (n - queries) - 1
  if i < 0 then return 0 end
  return queries == 1 and 1 or 1 + (rise - 1) * i / (queries - 1)
end

-- One number of a row, of what each of n queries of each query head gave it: { [head] = weights }.
local function reduced(given, head, n, how)
  local queries, heads = math.min(how.queries or 0, n), {}
  for h = 1, GROUP do
    local sum, most = 0, 0
    for at, weight in ipairs(given[(head - 1) * GROUP + h]) do
      local x = weight * ramp(at, n, queries, how.ramp or 1)
      sum, most = sum + x, math.max(most, x)
    end
    heads[h] = how.reduce == "max" and most or how.reduce == "sum" and sum
      or sum / (queries > 0 and queries or n)
  end
  local sum, most = 0, 0
  for _, x in ipairs(heads) do sum, most = sum + x, math.max(most, x) end
  return how.heads == "max" and most or how.heads == "sum" and sum or sum / GROUP
end

local function weights_of(list)
  local out = {}
  for i, seen in ipairs(list) do out[i] = seen.weight end
  return out
end

local ways = {
  { reduce = "max", heads = "max" }, { reduce = "mean", heads = "max", queries = 5 },
  { reduce = "sum", heads = "sum", queries = 9, ramp = 1.7 }, {},
  { reduce = "max", heads = "mean", queries = 4, ramp = 0.5 }, { heads = "sum", queries = 1 },
}

describe("cache:probe", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("tracks what reading the ids would look at, and leaves no rows, on the " .. kind, function()
      local model = models[kind]
      local seed = helper.seed and helper.seed() or os.time() % 1000
      for i, how in ipairs(ways) do
        local ids, more = prompt(37 + 11 * i, seed + i), prompt(3 + 7 * i, seed + 2 * i)
        local cache <close> = new(model, i % 2 == 0 and ragged or nil)
        assert(cache:prefill(ids))
        local before, tokens = state_of(cache), cache:tokens()
        assert.is_true(assert(cache:probe(more, score.attention(how))))
        local lanes = (llama or plain.open(folder() .. "/model")):lanes()
        read(lanes, ids)
        each_lane(function(layer, head)
          plain.keep(lanes[layer][head], cache:positions(layer, head))
        end)
        local looked = look(lanes, more)
        each_lane(function(layer, head, where)
          local got = assert(cache:scores(score.probed(), { layer = layer, head = head })):totable()
          assert.equal(tokens, #got)
          local expected = {}
          for p = 1, tokens do expected[p] = 0 end
          for _, row in ipairs(lanes[layer][head]) do
            local given = {}
            for h, list in pairs(looked[row]) do given[h] = weights_of(list) end
            expected[row.position + 1] = reduced(given, head, #more, how)
          end
          near(got, expected, ("way %d, %s"):format(i, where), 2e-5)
        end)
        assert.same(before, state_of(cache), "way " .. i)
        assert.equal(3 * (#ids + #more), cache:computed())
      end
    end)
  end

  it("lasts until rows change, and is no fork's", function()
    local model, how = models.cpu, score.attention { reduce = "max", heads = "max" }
    local asked = { layer = 1, head = 1 }
    local changes = {
      step = function(c) return c:step(3) end,
      prefill = function(c) return c:prefill(prompt(3, 1)) end,
      evict = function(c) return c:evict(ragged) end,
      truncate = function(c) return c:truncate(20) end,
    }
    for name, change in pairs(changes) do
      local cache <close> = new(model)
      assert(cache:prefill(prompt(40, 2)))
      assert.equal("argument", select(3, cache:scores(score.probed(), asked)))
      assert(cache:probe(prompt(6, 3), how))
      local first = assert(cache:scores(score.probed(), asked)):totable()
      local fork <close> = assert(cache:fork())
      local none, message = fork:scores(score.probed(), asked)
      assert.is_nil(none)
      assert.truthy(message:find("what a probe tracked, and there was none", 1, true), message)
      assert.is_nil((cache:probe({ 999999 }, how)))
      assert.is_nil((cache:evict("snapkv")))
      assert.same(first, assert(cache:scores(score.probed(), asked)):totable())
      assert(change(cache))
      assert.is_nil((cache:scores(score.probed(), asked)), name)
    end
  end)

  it("refuses what it cannot do, by name", function()
    local how = score.attention { queries = 4 }
    local cache <close> = new(models.cpu)
    local function refused(code, words, ids, track)
      local done, message, got = cache:probe(ids, track or how)
      assert.is_nil(done)
      assert.equal(code, got)
      assert.truthy(message:find(words, 1, true), message)
    end
    refused("argument", "holds nothing yet", { 1 })
    assert(cache:prefill(prompt(500, 1)))
    local before = state_of(cache)
    refused("argument", "at least one token", {})
    refused("argument", "outside the vocabulary", { 1, 272 })
    refused("context", "more than the model's context of 512", prompt(13, 1))
    refused("argument", "is no attention", { 1 }, score.history())
    assert.has_error(function() cache:probe({ 1 }, score.key_norm()) end)
    assert.has_error(function() cache:probe({ 1 }, score.attention() * 2) end)
    assert.has_error(function() cache:probe("text", how) end)
    assert.same(before, state_of(cache))
  end)

  it("takes room for one layer's rows, and gives it back where there is too little", function()
    local full <close> = new(models.cpu)
    assert(full:prefill(prompt(64, 1)))
    local held = full:bytes()
    local page = held // (SHAPE.layers * SHAPE.kv_heads * 2)
    local how, served, refused = score.attention { reduce = "max" }, 0, 0
    for more = 0, 5 * page, page do
      local cache <close> = new(models.cpu, nil, { budget = held + more })
      assert(cache:prefill(prompt(64, 1)))
      local before, bytes = positions(cache), cache:bytes()
      local done, message, code = cache:probe(prompt(33, 2), how)
      if done then served = served + 1 else
        refused = refused + 1
        assert.equal("budget", code, message)
      end
      assert.equal(more >= 2 * SHAPE.kv_heads * page, done == true,
        ("%d pages"):format(more // page))
      assert.same(before, positions(cache))
      assert.equal(bytes, cache:bytes())
    end
    assert.is_true(served > 0 and refused > 0)
  end)
end)

-- ---- passes over a prompt -----------------------------------------------------------------------

-- A policy that keeps `keep` of its score's highest rows, and shows what was probed: seen[layer] is
-- a list by head of { [position] = number }.
local function showing(how, plan)
  local seen = {}
  local shown = score.custom(function(lane)
    seen[lane.layer] = seen[lane.layer] or {}
    local of = {}
    for i = 1, lane.rows do of[math.tointeger(lane.positions[i])] = lane.seen[i] end
    seen[lane.layer][lane.head] = of
    return lane.seen
  end, { seen = score.probed() })
  return policy { name = "showing", prepare = function() return how end,
    prefill = function(_, l)
      local made = plan and plan(l, shown)
      return made or { keep = l.rows - 1, share = "model", score = shown }
    end }, seen
end

-- What the passes of a preparation give: numbers by layer, head and position.
local function passes(lanes, ids, past, how, track)
  local out, block = {}, how.block > 0 and how.block or #ids
  each_lane(function(layer, head)
    out[layer] = out[layer] or {}
    out[layer][head] = {}
  end)
  for at = 0, #ids - 1, block do
    local tokens = {}
    for _, part in ipairs(at == 0 and how.first or how.lead or {}) do
      if type(part) == "table" then table.move(part, 1, #part, #tokens + 1, tokens) end
      for k = math.max(0, at - (math.tointeger(part) or 0)), at - 1 do
        if math.tointeger(part) then tokens[#tokens + 1] = ids[k + 1] end
      end
    end
    local to = math.min(at + block, #ids)
    if how.block > 0 then table.move(ids, at + 1, to, #tokens + 1, tokens) end
    local looked, own = look(lanes, tokens)
    each_lane(function(layer, head)
      local lane = lanes[layer][head]
      local denominators = {}                  -- of [query head][query], where only some rows count
      local function count(row)
        for h, list in pairs(looked[row]) do
          denominators[h] = denominators[h] or {}
          for _, s in ipairs(list) do
            denominators[h][s.at] = (denominators[h][s.at] or 0) + math.exp(s.score)
          end
        end
      end
      local judged = {}
      for j, row in ipairs(lane) do
        local inside = row.position >= past + at and row.position < past + to
        if inside then judged[#judged + 1] = row end
        local sink = j <= (how.sinks or 4) and row.position < past + at
        if inside or sink then count(row) end
      end
      for _, row in ipairs(own[lane]) do count(row) end
      for _, row in ipairs(judged) do
        local given = {}
        for h, list in pairs(looked[row]) do
          given[h] = weights_of(list)
          for i, s in ipairs(list) do
            if how.among == "block" then given[h][i] = math.exp(s.score) / denominators[h][s.at] end
          end
        end
        out[layer][head][row.position] = reduced(given, head, #tokens, track)
      end
    end)
  end
  return out
end

local preparations = {
  { block = 100, among = "block" },
  { block = 16, lead = { { 5, 6, 7 }, 3, { 9 } }, among = "block", sinks = 2 },
  { block = 16, first = { { 8 } }, lead = { 4 } },
  { block = 7, lead = { { 11 } }, among = "block", sinks = 0 },
  { block = 0, lead = { { 3, 1, 4, 1, 5 } } },
  { block = 0, first = { { 3, 1, 4 } }, among = "block", sinks = 9 },
  { block = 33, lead = { 50, { 1 } }, among = "block", sinks = 40 },
}

describe("a policy that prepares", function()
  for _, kind in ipairs { "cpu", "device" } do
    it("is shown what the passes look at, block by block, on the " .. kind, function()
      local seed = os.time() % 1000
      for i, given in ipairs(preparations) do
        local track = ways[(i - 1) % #ways + 1]
        local how = { track = score.attention(track), block = given.block, lead = given.lead,
          first = given.first, among = given.among, sinks = given.sinks }
        local p, seen = showing(how)
        local ids = prompt(45 + i, seed + i)
        local cache <close> = new(models[kind], p)
        local logits = assert(cache:prefill(ids)):totable()
        local full <close> = new(models[kind])
        assert.same(assert(full:prefill(ids)):totable(), logits)
        assert.equal(1 * SHAPE.layers * SHAPE.kv_heads, cache:evicted())
        local lanes = (llama or plain.open(folder() .. "/model")):lanes()
        read(lanes, ids)
        given.first = given.first or given.lead
        local expected = passes(lanes, ids, 0, given, track)
        each_lane(function(layer, head, where)
          for position = 0, #ids - 1 do
            near({ seen[layer][head][position] }, { expected[layer][head][position] },
              ("preparation %d, %s, position %d"):format(i, where, position), 2e-5)
          end
        end)
      end
    end)
  end

  it("judges only the rows of the prompt that is read, whatever lanes held before", function()
    local how = { track = score.attention { reduce = "max", heads = "max" }, block = 8,
      lead = { { 5 } }, among = "block" }
    for _, share in ipairs { "model", "pool", "head" } do
      local p, seen = showing(how, function(l, shown)
        return { keep = l.past + l.prompt // 2, guard = { first = 2 }, share = share,
          score = shown }
      end)
      local cache <close> = new(models.cpu, p)
      local held = {}
      for turn = 1, 3 do
        local n = 20 + 2 * turn
        for layer in pairs(seen) do seen[layer] = nil end
        assert(cache:prefill(prompt(n, turn)))
        local rows, tokens = 0, cache:tokens()
        each_lane(function(layer, head, where)
          local now, key = cache:positions(layer, head), layer * 10 + head
          for i, position in ipairs(held[key] or {}) do assert.equal(position, now[i], where) end
          for position in pairs(seen[layer][head]) do
            assert.is_true(position >= tokens - n and position < tokens, where)
          end
          rows = rows + #now - #(held[key] or {})
          held[key] = now
        end)
        -- two rows of the first turn are guarded inside the budget; in later ones they are old
        assert.equal(SHAPE.layers * SHAPE.kv_heads * (n // 2), rows, share)
      end
    end
  end)

  it("leaves the same of rows of embeddings, in a batch, and after a file", function()
    local p = assert(pyramid.policy("kvzip", { ratio = 0.4, block = 17 }))
    local model, ids = models.cpu, prompt(60, 4)
    local cache <close> = new(model, p)
    assert(cache:prefill(ids))
    local embedded <close> = new(model, p)
    assert(embedded:prefill { embeddings = assert(model:embed(ids)) })
    assert.same(positions(cache), positions(embedded))
    local batch <close> = assert(model:batch { policy = p, dtype = "f32" })
    local other = assert(batch:add(prompt(50, 9)))
    local handle = assert(batch:add(ids))
    for _ = 1, 3 do assert(batch:step()) end
    each_lane(function(layer, head, where)
      local rows = cache:positions(layer, head)
      assert.same(rows, helper.slice(handle:positions(layer, head), 1, #rows), where)
      assert.is_true(handle:rows(layer, head) <= #rows + 3, where)
    end)
    assert.is_true(other:fraction() < 0.5)
    local path = helper.tmp()
    assert(cache:save(path))
    local loaded <close> = assert(model:load_cache(path, { policy = p, dtype = "f32" }))
    os.remove(path)
    for _, more in ipairs { prompt(30, 5), prompt(9, 6) } do
      assert.same(assert(cache:prefill(more)):totable(), assert(loaded:prefill(more)):totable())
      assert.same(positions(cache), positions(loaded))
    end
  end)

  it("reads nothing twice where no plan evicts, and is not asked where none may", function()
    local asked = 0
    local p = policy { name = "lazy", prepare = function(_, l)
      asked = asked + 1
      assert.is_nil(l.index)
      assert.is_nil(l.depth)
      assert.same({ SHAPE.layers, SHAPE.heads, SHAPE.kv_heads },
        { l.layers, l.heads, l.kv_heads })
      return l.prompt > 30 and { track = score.attention(), block = 8 } or nil
    end, prefill = function(_, l)
      return { keep = math.min(l.rows, 40), share = "head",
        score = l.prompt > 30 and score.probed() or score.key_norm() }
    end }
    local cache <close> = new(models.cpu, p)
    assert(cache:prefill(prompt(36, 1)))
    assert.equal(36 * SHAPE.layers, cache:computed())
    assert(cache:prefill(prompt(20, 1)))                        -- not prepared: an ordinary plan
    assert.equal(40, cache:rows(1))
    assert.equal(56 * SHAPE.layers, cache:computed())
    assert(cache:prefill(prompt(40, 1), { prune = false }))
    assert.equal(2, asked)
    local long <close> = new(models.cpu, p)
    assert(long:prefill(prompt(60, 1)))
    assert.equal(120 * SHAPE.layers, long:computed())
  end)

  it("fits its passes into the context behind the prompt, or says that there is no room", function()
    local p, seen = showing({ track = score.attention(), block = 400, lead = { { 1, 2 } } })
    local cache <close> = new(models.cpu, p)
    assert(cache:prefill(prompt(480, 3)))
    assert.equal((480 + 480 + 2 * 16) * SHAPE.layers, cache:computed())
    assert.is_true(seen[1][1][479] > 0)
    local full <close> = new(models.cpu, p)
    local done, message, code = full:prefill(prompt(510, 3))
    assert.is_nil(done)
    assert.equal("context", code)
    assert.truthy(message:find("repeats the prompt behind it", 1, true), message)
    assert.equal(0, full:tokens())
    assert.equal(0, full:bytes())
  end)

  it("keeps what the trigger tracks to the prompt's own queries", function()
    local function p(prepare)
      return policy { name = "tracking", prepare = prepare,
        prefill = function(_, l) return { keep = l.rows // 2, share = "head",
          score = score.history() } end,
        trigger = function() return { every = 1000, track = score.history() } end,
        decode = function() end }
    end
    local prepared <close> = new(models.cpu, p(function()
      return { track = score.attention(), block = 9 }
    end))
    local plainly <close> = new(models.cpu, p())
    assert(prepared:prefill(prompt(50, 3)))
    assert(plainly:prefill(prompt(50, 3)))
    assert.same(positions(plainly), positions(prepared))
    assert(prepared:step(4))
    assert(plainly:step(4))
    near(assert(prepared:scores()):totable(), assert(plainly:scores()):totable(),
      "history", 1e-6)
  end)

  it("changes nothing where a pass, a plan or memory fails, or somebody cancels", function()
    local wrong = false
    local p = policy { name = "frail", defaults = { ratio = 0.5 },
      prepare = function() return { track = score.attention { heads = "max" }, block = 12 } end,
      prefill = function(_, l)
        local by = wrong and l.index == 3 and score.key_norm() * 1e38 * 1e38 or score.probed()
        return { keep = l.past + l.prompt // 2, share = wrong and "head" or "model", score = by }
      end,
      trigger = function() return { over = 90, track = score.history() } end,
      decode = function(_, l) return { keep = l.rows - 5, share = "head" } end }
    for _, turns in ipairs { 0, 1 } do
      local cache <close> = new(models.cpu, p)
      if turns > 0 then
        assert(cache:prefill(prompt(40, 1)))
        assert(cache:step(3))
      end
      local before = state_of(cache)
      local function unchanged(code, logits, message, got)
        assert.is_nil(logits)
        assert.equal(code, got, message)
        assert.same(before, state_of(cache))
      end
      wrong = true
      unchanged("policy", cache:prefill(prompt(30, 2)))
      wrong = false
      local calls, last = 0, 0
      local twin <close> = assert(cache:fork())
      assert(twin:prefill(prompt(30, 2), { progress = function(done, total)
        calls = calls + 1
        assert.is_true(done >= last and done <= total)
        last = done
      end }))
      for stop = 1, calls do
        local n = 0
        unchanged("cancelled", cache:prefill(prompt(30, 2), { progress = function()
          n = n + 1
          return n == stop
        end }))
      end
      cache:tell(function() error("no") end)
      unchanged("policy", cache:prefill(prompt(30, 2)))
      cache:tell()
      assert(cache:prefill(prompt(30, 2)))
      assert.same(positions(twin), positions(cache))
    end
    local roomy <close> = new(models.cpu, p)
    assert(roomy:prefill(prompt(96, 2)))
    local served, refused = 0, 0
    for budget = 0, 200000, 8000 do
      local cache <close> = new(models.cpu, p, { budget = budget + 1 })
      local done, message, code = cache:prefill(prompt(96, 2))
      if done then served = served + 1 else
        refused = refused + 1
        assert.equal("budget", code, message)
        assert.equal(0, cache:tokens())
        assert.equal(0, cache:bytes())
      end
    end
    assert.is_true(served > 0 and refused > 0)
  end)

  it("leaves layers with a sliding window whole, which passes cannot see", function()
    local path = folder() .. "/windows"
    assert(random_model.write(path, { shape = SHAPE, dtype = "f32", seed = 7 }))
    local config = cjson.decode(helper.read(path .. "/config.json"))
    config.model_type, config.architectures = "mistral", { "MistralForCausalLM" }
    config.sliding_window = 24
    config.layer_types = { "sliding_attention", "full_attention", "sliding_attention" }
    helper.write(path .. "/config.json", cjson.encode(config))
    local model <close> = assert(pyramid.model(path, { threads = 2 }))
    local told = {}
    local cache <close> = new(model, assert(pyramid.policy("kvzip", { ratio = 0.4 })),
      { trace = function(r) told[r.layer] = r.why end })
    local ids = prompt(90, 3)
    assert(cache:prefill(ids))
    local full <close> = new(model)
    assert(full:prefill(ids))
    for _, layer in ipairs { 1, 3 } do
      for head = 1, SHAPE.kv_heads do
        assert.same(full:positions(layer, head), cache:positions(layer, head))
      end
    end
    assert.same({ "no plan", "probed", "no plan" }, told)
    assert.equal(36 * SHAPE.kv_heads, cache:rows(2, 1) + cache:rows(2, 2))
  end)

  it("is told as a plan that was prepared", function()
    local told = {}
    local cache <close> = new(models.cpu, "kvzip", { trace = function(r) told[#told + 1] = r end })
    assert(cache:prefill(prompt(50, 1)))
    assert.equal(SHAPE.layers, #told)
    local kept = 0
    for layer, r in ipairs(told) do
      assert.same({ "prepared", layer, 50, "model", "probed", 50 },
        { r.when, r.layer, r.tokens, r.asked.share, r.why, r.rows.max })
      kept = kept + r.kept.mean * SHAPE.kv_heads
    end
    assert.equal(15 * SHAPE.layers * SHAPE.kv_heads, math.tointeger(kept))
    local whole <close> = new(models.cpu, assert(pyramid.policy("kvzip", { ratio = 1 })),
      { trace = function(r) told[#told + 1] = r end })
    assert(whole:prefill(prompt(50, 1)))
    local last = told[#told]
    assert.same({ "prepared", "fits", 50 }, { last.when, last.why, last.tokens })
    assert.equal(2 * SHAPE.layers, #told)
    assert.equal(50 * SHAPE.layers, whole:computed())
  end)

  it("may not change its mind while the prompt is read", function()
    for words, later in pairs {
      ["score expects attention from the queries"] = { keep = 5, score = score.expected() },
      ["prune drops hidden states"] = { keep = 5, prune = "both" },
      ["keep is another than before the prompt was read"] = { keep = 5, score = score.probed() },
    } do
      local asked = 0
      local p = policy { name = "fickle", prepare = function()
        return { track = score.attention(), block = 8 }
      end, prefill = function(_, l)
        asked = asked + 1
        local first = words:find "^keep" and { keep = l.rows } or { keep = 9 }
        return asked <= SHAPE.layers and first or later
      end }
      local cache <close> = new(models.cpu, p, { trace = function() end })
      local done, message, code = cache:prefill(prompt(30, 2))
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy fickle, layer 1, prefill: " .. words, 1, true), message)
      assert.equal(0, cache:tokens())
    end
  end)

  it("is refused by name where it says what cannot be", function()
    local track = score.attention()
    local cases = {
      ["prepare: block is negative"] = { track = track, block = -1 },
      ["prepare: block is not an integer"] = { track = track },
      ["prepare: track must be a single attention signal"] = { block = 4 },
      ["prepare: track is no attention"] = { track = score.history(), block = 4 },
      ["prepare: block is 0, and there is nothing else"] = { track = track, block = 0 },
      ["prepare: among is 'row', not one of all, block"] = { track = track, block = 4,
        among = "row" },
      ["prepare: sinks is negative"] = { track = track, block = 4, sinks = -1 },
      ["prepare: first has an id outside the vocabulary"] = { track = track, block = 4,
        lead = { { 272 } } },
      ["prepare: lead has an id outside the vocabulary"] = { track = track, block = 4,
        first = {}, lead = { { 272 } } },
      ["prepare: first has a part that is no id (-2)"] = { track = track, block = 4,
        lead = { { -2 } } },
      ["prepare: first takes a negative number"] = { track = track, block = 4, first = { -2 } },
      ["prepare: first has a part that is no text"] = { track = track, block = 4,
        first = { true } },
      ["prepare: prepare.words is not a field (known: among, block, first, lead, sinks, track)"] = {
        track = track, block = 4, words = 3 },
    }
    for words, how in pairs(cases) do
      local cache <close> = new(models.cpu, (showing(how)))
      local done, message, code = cache:prefill(prompt(20, 1))
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy showing, layer 1, " .. words, 1, true), message)
      assert.equal(0, cache:tokens())
    end
    assert.has_error(function() policy { name = "bare", prepare = function() end } end)
    local function refused(words, plan, prepared)
      local p = policy { name = "wrong", prefill = function() return plan end,
        prepare = prepared and function() return { track = track, block = 4 } end or nil }
      local cache <close> = new(models.cpu, p)
      local done, message, code = cache:prefill(prompt(20, 1))
      assert.is_nil(done)
      assert.equal("policy", code)
      assert.truthy(message:find("policy wrong, layer 1, prefill: " .. words, 1, true), message)
    end
    refused("score asks for what a probe tracked, and there was none", { keep = 5,
      score = score.probed() })
    refused("score ranks by attention that the cache does not track", { keep = 5,
      score = score.attention() }, true)
    refused("score expects attention from the queries of a prompt", { keep = 5,
      score = score.expected() }, true)
    refused("prune drops hidden states", { keep = 5, prune = "both" }, true)
    local late = policy { name = "late", trigger = function() return { over = 20 } end,
      decode = function() return { keep = 5, share = "model" } end }
    local cache <close> = new(models.cpu, late)
    assert(cache:prefill(prompt(20, 1)))
    local message = select(2, cache:step(1))
    assert.truthy(message:find('layer 1, decode: share cannot be "model" in decode', 1, true),
      message)
  end)
end)

-- ---- one budget for all layers ------------------------------------------------------------------

describe('share = "model"', function()
  for _, kind in ipairs { "cpu", "device" } do
    it("keeps the best rows of all layers that say so, ties to the lower, on the " .. kind,
      function()
      local state = os.time()
      local function draw(n)
        state = (state * 1103515245 + 12345) % 2147483648
        return state // 65536 % n
      end
      for round = 1, 12 do
        local levels, n = 1 + draw(40), 40 + draw(60)
        local values = {}                       -- few levels: many ties
        local by = score.custom(function(lane)
          local out = {}
          for i = 1, lane.rows do
            local position = math.tointeger(lane.positions[i])
            out[i] = values[lane.layer * 10 + lane.head][position]
          end
          return out
        end)
        local plans, apart = {}, draw(3) == 0 and 1 + draw(SHAPE.layers) or nil
        for layer = 1, SHAPE.layers do
          local keep = 1 + draw(n * 2 // 3)
          plans[layer] = { keep = keep, guard = { first = draw(5), last = draw(5) },
            least = draw(2) * math.min(keep, 1 + draw(9)), share = "model", score = by }
          if layer == apart then plans[layer] = { keep = n // 3, share = "head", score = by } end
        end
        local p = policy { name = "shared", prefill = function(_, l)
          local plan = plans[l.index]
          plan.keep = math.min(plan.keep, l.rows)
          plan.least = plan.least and math.min(plan.least, plan.keep)
          return plan
        end }
        local cache <close> = new(models[kind], draw(2) == 0 and ragged or nil)
        assert(cache:prefill(prompt(n, round)))
        local lanes = {}
        each_lane(function(layer, head)
          local key = layer * 10 + head
          values[key] = {}
          for position = 0, n - 1 do values[key][position] = draw(levels) - levels // 2 end
          if layer ~= apart then
            lanes[#lanes + 1] = { layer = layer, head = head, x = values[key],
              rows = cache:positions(layer, head) }
            plans[layer].keep = math.min(plans[layer].keep, #lanes[#lanes].rows)
          end
        end)
        for layer = 1, SHAPE.layers do
          plans[layer].least = plans[layer].least and math.min(plans[layer].least,
            plans[layer].keep)
        end
        local kept = chosen(lanes, function(layer) return plans[layer] end)
        assert.is_true(assert(cache:evict(p)))
        for i, lane in ipairs(lanes) do
          local expected = {}
          for _, position in ipairs(lane.rows) do
            if kept[i][position] then expected[#expected + 1] = position end
          end
          assert.same(expected, cache:positions(lane.layer, lane.head),
            ("round %d, layer %d, head %d"):format(round, lane.layer, lane.head))
        end
        if apart then
          assert.is_true(cache:rows(apart) <= n // 3)
        end
      end
    end)
  end

  it("keeps as few as hold a share of the sum of all layers", function()
    local function p(mass)
      return policy { name = "mass", prefill = function(_, l)
        return { mass = type(mass) == "table" and mass[l.index] or mass, share = "model",
          score = score.value_norm(), keep = l.rows }
      end }
    end
    local cache <close> = new(models.cpu)
    assert(cache:prefill(prompt(60, 3)))
    local sum, all = 0, {}
    each_lane(function(layer, head)
      local norms = assert(cache:scores(score.value_norm(), { layer = layer, head = head }))
      for _, x in ipairs(norms:totable()) do
        sum = sum + x
        all[#all + 1] = x
      end
    end)
    table.sort(all, function(a, b) return a > b end)
    local held, wanted = 0, 0
    while held < 0.6 * sum do
      wanted = wanted + 1
      held = held + all[wanted]
    end
    local bound = policy { name = "bound", prefill = function(_, l)
      return { above = l.index // 3, share = "model", score = score.value_norm() }
    end }
    local unequal = select(2, cache:evict(bound))
    assert.truthy(unequal:find("policy bound, layer 3, evict: above is another than layer 1 has", 1,
      true), unequal)
    local message = select(2, cache:evict(p { 0.6, 0.5, 0.6 }))
    assert.truthy(message:find("policy mass, layer 2, evict: mass is another than layer 1 has", 1,
      true), message)
    assert.is_true(assert(cache:evict(p(0.6))))
    local rows = 0
    each_lane(function(layer, head) rows = rows + cache:rows(layer, head) end)
    assert.is_true(math.abs(rows - wanted) <= 1, ("%d, %d"):format(rows, wanted))
  end)

  it("merges losers into survivors, and leaves forks as they were", function()
    local p = policy { name = "merging", prefill = function(_, l)
      return { keep = l.rows // 3, share = "model", score = score.key_norm(), merge = true }
    end }
    local cache <close> = new(models.cpu)
    assert(cache:prefill(prompt(90, 3)))
    local fork <close> = assert(cache:fork())
    local before = state_of(fork)
    assert.is_true(assert(cache:evict(p)))
    assert.same(before, state_of(fork))
    local rows = 0
    each_lane(function(layer, head) rows = rows + cache:rows(layer, head) end)
    assert.equal(30 * SHAPE.layers * SHAPE.kv_heads, rows)
    assert(cache:step(3))
  end)
end)
