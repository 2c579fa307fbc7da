-- Steps that read less than is held: what they say equals a plain Lua transformer over the pages
-- that plain Lua picks; rows, forks, files, batches and failures are as they are without it.
local core = require "pyramid.core"
local helper = require "spec.helper"
local plain = require "support.plain_llama"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local reading = require "support.plain_reading"
local score = require "pyramid.score"
local shell = require "support.shell"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 1024 }
local PAGE, HEAD = 32, 8
local folder, model, llama

setup(function()
  folder = shell.folder()
  assert(random_model.write(folder .. "/model", { shape = SHAPE, dtype = "f32", seed = 11 }))
  model = assert(pyramid.model(folder .. "/model", { threads = 2 }))
  llama = plain.open(folder .. "/model")
end)
teardown(function()
  model:close()
  shell.remove(folder)
end)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

--- A policy whose steps read `rows` rows; `more` are other parts of its plan, which a prefill's is
--- then.
local function reads(rows, by, guard, more)
  local plan = { read = { rows = rows, by = by or score.bound(), guard = guard } }
  for key, value in pairs(more or {}) do plan[key] = value end
  return policy { name = "reads", [more and "prefill" or "decode"] = function(_, l)
    local own = {}
    for key, value in pairs(plan) do own[key] = value end
    own.keep = more and math.min(l.rows, more.keep or l.rows) or nil
    return own
  end }
end

local function new(p, given)
  given = given or {}
  given.policy, given.dtype = p, given.dtype or "f32"
  return assert(model:cache(given))
end

local function totable(logits) return assert(logits):totable() end

--- Logits of steps on these ids.
local function steps(cache, ids)
  local all = {}
  for i, id in ipairs(ids) do all[i] = totable(cache:step(id)) end
  return all
end

--- What plain Lua says: a prompt read whole, then steps under `o`; cut(lanes) between them.
local function plain_steps(ids, more, o, cut)
  local lanes, all = llama:lanes(), {}
  for _, id in ipairs(ids) do llama:step(lanes, id) end
  if cut then cut(lanes) end
  llama.reads = function(lane, queries, _, position)
    return reading.rows(o, lane, queries, position)
  end
  for i, id in ipairs(more) do all[i] = llama:step(lanes, id) end
  llama.reads = nil
  return all, lanes
end

local function assert_near(want, got, what)
  for i = 1, #want do
    local distance = helper.distance(got[i], want[i])
    assert.is_true(distance < 1e-4, ("%s, step %d: relative error %.3g"):format(what, i, distance))
  end
end

describe("a step that reads less than is held", function()
  for by, digest in pairs { bound = score.bound(), ball = score.ball(), mean = score.mean(),
    signs = score.signs() } do
    it("attends to what a plain choice of pages holds, by " .. by, function()
      local ids, more = prompt(PAGE * 9 + 5, 3), prompt(40, 4)
      local cache <close> = new(reads(4 * PAGE, digest, { first = 1, last = 40 }))
      assert(cache:prefill(ids))
      local want = plain_steps(ids, more, { rows = 4 * PAGE, by = by, first = 1, last = 40,
        scale = HEAD ^ -0.5 })
      assert_near(want, steps(cache, more), by)
      local whole <close> = new(nil)
      assert(whole:prefill(ids))
      assert.is_false(helper.distance(want[1], totable(whole:step(more[1]))) < 1e-4)
    end)
  end

  it("is a full step, bit for bit, where a lane holds no more", function()
    local ids, more = prompt(3 * PAGE - 4, 5), prompt(12, 6)
    local cache <close> = new(reads(4 * PAGE))
    local whole <close> = new(nil)
    assert.same(totable(whole:prefill(ids)), totable(cache:prefill(ids)))
    assert.same(steps(whole, more), steps(cache, more))
    assert.equal(1, cache:reading())
    assert.equal(1, cache:fraction())
  end)

  it("says the same on any number of threads, and in any company", function()
    local ids, more, want = prompt(300, 7), prompt(8, 8), nil
    local p = reads(2 * PAGE, score.ball())
    for threads = 1, 3 do
      local own <close> = assert(pyramid.model(folder .. "/model", { threads = threads }))
      local cache <close> = assert(own:cache { policy = p, dtype = "f32" })
      assert(cache:prefill(ids))
      local got = steps(cache, more)
      want = want or got
      assert.same(want, got)
    end
    local caches = { new(reads(5 * PAGE)), new(nil), new(p), new(policy.load "streaming") }
    for i, cache in ipairs(caches) do
      assert(cache:prefill(i == 3 and ids or prompt(150 * i, i)))
    end
    for t, id in ipairs(more) do
      local all = assert(core.step(caches, { 1, 2, id, 3 }))
      assert.same(want[t], totable(all[3]))
    end
    for _, cache in ipairs(caches) do cache:close() end
  end)

  it("is the same where several tokens are verified in one pass", function()
    local ids, more = prompt(300, 24), prompt(42, 25)
    local cache <close> = new(reads(3 * PAGE))
    local other <close> = new(reads(3 * PAGE))
    for _, c in ipairs { cache, other } do assert(c:prefill(ids)) end
    local want, got = steps(cache, more), {}
    for first = 1, #more, 7 do
      local all = assert(other:verify(table.move(more, first, first + 6, 1, {})))
      for i = 1, 7 do got[#got + 1] = totable(all[i]) end
    end
    assert.same(want, got)
    assert.equal(cache:bytes(), other:bytes())
  end)

  it("follows rows that leave, in ragged lanes, and later prompts", function()
    local ids, more = prompt(400, 9), prompt(6, 10)
    local cache <close> = new(reads(3 * PAGE, nil, nil, { keep = 230, share = "pool",
      score = score.key_norm(), guard = { first = 3, last = 20 } }))
    assert(cache:prefill(ids))
    local function cut(lanes)
      for layer = 1, SHAPE.layers do
        for head = 1, SHAPE.kv_heads do
          plain.keep(lanes[layer][head], cache:positions(layer, head))
        end
      end
    end
    local o = { rows = 3 * PAGE, by = "bound", first = 4, last = 32, scale = HEAD ^ -0.5 }
    local want, lanes = plain_steps(ids, more, o, cut)
    assert_near(want, steps(cache, more), "after the first prompt")
    assert.is_true(cache:rows(1, 1) ~= cache:rows(1, 2))
    for _, id in ipairs(prompt(90, 11)) do llama:step(lanes, id) end
    assert(cache:prefill(prompt(90, 11)))
    cut(lanes)
    llama.reads = function(lane, queries, _, position)
      return reading.rows(o, lane, queries, position)
    end
    want = {}
    for i, id in ipairs(more) do want[i] = llama:step(lanes, id) end
    llama.reads = nil
    assert_near(want, steps(cache, more), "after the second")
  end)

  it("follows rows that leave while text is generated, and keys that are turned", function()
    for _, rotate in ipairs { "keep", "compact" } do
      local function plan(_, l)
        return { keep = math.min(l.rows, 200), guard = { first = 4, last = 150 }, rotate = rotate,
          share = "layer", score = score.random(5), read = { rows = 3 * PAGE, by = score.ball() } }
      end
      local p = policy { name = "turns", prefill = plan, decode = plan,
        trigger = function() return { every = 9 } end }
      local whole = policy { name = "turns", prefill = function(o, l)
        local made = plan(o, l)
        made.read = { rows = 1 << 20, by = score.bound() }
        return made
      end, decode = function(o, l)
        local made = plan(o, l)
        made.read = nil
        return made
      end, trigger = function() return { every = 9 } end }
      local ids, more = prompt(330, 12), prompt(30, 13)
      local cache <close> = new(p)
      local other = new(p)
      local full <close> = new(whole)
      for _, c in ipairs { cache, other, full } do assert(c:prefill(ids)) end
      local got = steps(cache, more)
      -- digests made anew at each step: a file has none
      local path, again = helper.tmp(), {}
      for i, id in ipairs(more) do
        assert(other:save(path))
        other:close()
        other = assert(model:load_cache(path, { policy = p, dtype = "f32" }))
        again[i] = totable(other:step(id))
      end
      other:close()
      os.remove(path)
      assert.same(got, again)
      assert.is_false(helper.distance(got[30], steps(full, more)[30]) < 1e-6)
    end
  end)

  it("goes on in forks, after truncation and from files", function()
    local ids, more = prompt(330, 14), prompt(40, 15)
    local p = reads(2 * PAGE)
    local cache <close> = new(p)
    assert(cache:prefill(ids))
    steps(cache, prompt(3, 16))
    local fork <close> = assert(cache:fork())
    local path = helper.tmp()
    assert(cache:save(path))
    local loaded <close> = assert(model:load_cache(path, { policy = p, dtype = "f32" }))
    assert.equal(cache:bytes(), loaded:bytes())
    assert.equal(cache:reading(), loaded:reading())
    local want = steps(cache, more)
    assert.same(want, steps(fork, more))
    assert.same(want, steps(loaded, more))
    assert(fork:truncate(333))
    assert.same(want, steps(fork, more))
    assert(fork:truncate(100))
    steps(fork, prompt(40, 17))
    local straight <close> = new(p)
    assert(straight:prefill(table.move(ids, 1, 100, 1, {})))
    steps(straight, prompt(40, 17))
    assert.equal(straight:bytes(), fork:bytes())
    -- under another policy steps read all, until a prompt says otherwise
    local other <close> = assert(model:load_cache(path, { policy = "full", dtype = "f32" }))
    os.remove(path)
    assert.equal(1, other:reading())
    assert(other:prefill(prompt(2, 18)))
    assert.equal(1, other:reading())
  end)

  it("counts its digests among the bytes, and against the budget", function()
    local ids = prompt(10 * PAGE + 7, 19)
    local p = reads(2 * PAGE, score.bound())
    local cache <close> = new(p)
    local whole <close> = new(nil)
    assert(cache:prefill(ids))
    assert(whole:prefill(ids))
    local digests = SHAPE.layers * SHAPE.kv_heads * 10 * 2 * HEAD * 4
    assert.equal(whole:bytes() + digests, cache:bytes())
    assert(cache:step(1))
    assert(whole:step(1))
    assert.equal(whole:bytes() + digests, cache:bytes())
    -- guards win: page 0, and the two with the last 32 rows
    assert.equal(3 * PAGE / #ids, (function()
      local fresh <close> = new(p)
      assert(fresh:prefill(ids))
      return fresh:reading()
    end)())
    local bytes = cache:bytes()
    local fits <close> = new(p, { budget = bytes })
    assert(fits:prefill(ids))
    local short <close> = new(p, { budget = bytes - 1 })
    local logits, message, code = short:prefill(ids)
    assert.is_nil(logits)
    assert.equal("budget", code, message)
    assert.equal(0, short:tokens())
    assert.equal(0, short:bytes())
  end)

  it("picks among the rows of all tiers, wherever they lie", function()
    local tiers = { { hot = "f32", warm = "f32" }, { hot = "f32", cold = "f32" },
      { hot = "f32", warm = { dtype = "f32", rows = 100 }, cold = "f32" } }
    for turn, by in ipairs { "bound", "ball", "mean", "signs" } do
      for i = turn % 3 + 1, turn == 1 and 3 or turn % 3 + 1 do
        local declared = tiers[i]
        local ids, more = prompt(math.random(250, 330), 20 + i), prompt(12, 30)
        local o = { rows = 4 * PAGE, by = by, first = 1, last = 20, scale = HEAD ^ -0.5 }
        local function plan(_, l)
          return { keep = math.min(l.rows, 90), guard = { first = 2, last = 10 }, share = "pool",
            score = score.key_norm(), losers = { to = declared.warm and "warm" or "cold" },
            read = { rows = o.rows, by = score[by](), guard = { first = o.first, last = o.last } } }
        end
        local p = policy { name = "lower", prefill = plan, decode = plan, trigger = function()
          return { over = 60 + 10 * i }
        end }
        local cache <close> = new(p, { tiers = declared })
        assert(cache:prefill(ids))
        local lanes, want, got = llama:lanes(), {}, {}
        for _, id in ipairs(ids) do llama:step(lanes, id) end
        local below = {}
        llama.reads = function(lane, queries, layer, position)
          local head = lane == lanes[layer][1] and 1 or 2
          local parts, where = { {}, {}, {} }, {}
          for at, tier in ipairs { "hot", "warm", "cold" } do
            for _, held in ipairs(below[layer][head][tier]) do where[held] = at end
          end
          for _, row in ipairs(lane) do table.insert(parts[where[row.position] or 1], row) end
          return reading.rows(o, parts[1], queries, position, { parts[2], parts[3] })
        end
        for t, id in ipairs(more) do
          for layer = 1, SHAPE.layers do
            below[layer] = {}
            for head = 1, SHAPE.kv_heads do
              below[layer][head] = {}
              for _, tier in ipairs { "hot", "warm", "cold" } do
                below[layer][head][tier] = declared[tier] and cache:positions(layer, head, tier)
                  or {}
              end
            end
          end
          want[t] = llama:step(lanes, id)
          got[t] = totable(cache:step(id))
        end
        llama.reads = nil
        assert_near(want, got, ("%s, tiers %d"):format(by, i))
        assert.is_true(cache:reading() < 0.6)
        assert.equal(1, cache:fraction())
      end
    end
  end)

  it("looks at a sliding window's rows alone, and slides", function()
    local path = folder .. "/window"
    assert(random_model.write(path, { shape = SHAPE, dtype = "f32", seed = 12 }))
    local cjson = require "cjson"
    local config = cjson.decode(helper.read(path .. "/config.json"))
    config.sliding_window, config.use_sliding_window = 100, true
    config.model_type, config.architectures = "mistral", { "MistralForCausalLM" }
    helper.write(path .. "/config.json", cjson.encode(config))
    local own <close> = assert(pyramid.model(path, { threads = 2 }))
    local cache <close> = assert(own:cache { policy = reads(5 * PAGE), dtype = "f32" })
    local less <close> = assert(own:cache { policy = reads(2 * PAGE), dtype = "f32" })
    local whole <close> = assert(own:cache { dtype = "f32" })
    local ids, more = prompt(620, 20), prompt(40, 21)
    for _, c in ipairs { cache, whole, less } do assert(c:prefill(ids)) end
    local want = steps(whole, more)
    assert_near(want, steps(cache, more), "a window within the budget")
    assert.is_true(whole:rows(1) < 620)
    assert.is_false(helper.distance(want[40], steps(less, more)[40]) < 1e-4)
  end)
end)

describe("what a plan reads", function()
  local function refused(p, text)
    local cache <close> = new(p)
    local logits, message, code = cache:prefill(prompt(50, 1))
    assert.is_nil(logits)
    assert.equal("policy", code)
    assert.is_truthy(message:find(text, 1, true), message)
    assert.equal(0, cache:tokens())
  end

  it("is refused by its field", function()
    refused(reads(0), "read.rows is less than 1")
    refused(reads(1.5), "read.rows is not an integer")
    refused(reads(1, score.key_norm()), "read.by ranks no pages (key_norm()): score.ball(), "
      .. "bound(), mean() or signs() does")
    refused(reads(1, score.bound(), { first = -1 }), "read.guard.first is negative")
    refused(reads(1, score.bound(), { last = -1 }), "read.guard.last is negative")
    refused(reads(1, score.bound(), { late = 1 }), "read.guard.late is not a field (known: first, "
      .. "last)")
    refused({ name = "all", decode = function() return { read = true } end },
      "read is not a table")
    refused({ name = "more", decode = function()
      return { read = { rows = 1, by = score.mean(), pages = 1 } }
    end }, "read.pages is not a field (known: by, guard, rows)")
    refused({ name = "rows", prefill = function(_, l)
      return { keep = l.rows // 2, score = score.bound() }
    end }, "score ranks pages, not rows (bound()): it goes into `read.by`")
  end)

  it("needs a trigger only where rows leave", function()
    refused({ name = "leaves", decode = function(_, l)
      return { keep = l.rows - 1, read = { rows = 1, by = score.mean() } }
    end }, "keep leaves fewer rows than there are, which needs a trigger that says when")
  end)

  it("does not go with attention that is tracked", function()
    refused({ name = "tracks", prefill = function()
      return { read = { rows = 1, by = score.mean() } }
    end, trigger = function() return { every = 4, track = score.history() } end,
      decode = function(_, l) return { keep = l.rows } end },
      "read cannot be said where the trigger tracks attention")
  end)

  it("is refused by a device that reads all", function()
    local own = pyramid.model(folder .. "/model", { device = "emulated" })
    if not own then return pending "no emulated device" end
    local _ <close> = own
    local cache <close> = assert(own:cache { policy = reads(PAGE), dtype = "f32" })
    local logits, message, code = cache:prefill(prompt(50, 1))
    assert.is_nil(logits)
    assert.equal("unsupported", code)
    assert.matches('read: the device "emulated" reads all rows that are held', message, 1, true)
    assert.equal(0, cache:tokens())
  end)
end)
