-- Rows in place of ids: what model:embed gives is read as the ids are, bit for bit, under every
-- kind of policy; rows that no id has equal a plain Lua transformer's; what is no row is refused,
-- and a call that fails changes nothing.
local helper = require "spec.helper"
local plain = require "spec.support.plain_llama"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local vector = require "pyramid.vector"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 64, vocab = 272,
  context = 256 }
local models, folder = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

--- All that a saved cache holds: rows, positions, what is tracked, counters. With `ids`, what is
--- before ids (-1 of rows in their place), of which there must be so many; behind them are the
--- length of a note and a sum.
local function bytes_of(cache, ids)
  local path = helper.tmp()
  assert(cache:save(path))
  local bytes = helper.read(path)
  os.remove(path)
  if not ids then return bytes end
  local rest = #bytes - 24 - 4 * ids
  assert.equal(ids, (("<i8"):unpack(bytes, rest + 1)))
  return bytes:sub(1, rest)
end

--- Numbers of no id's row, the same for the same seed.
local function random_rows(n, seed)
  local rows = {}
  for at, id in ipairs(helper.ids(n * SHAPE.width, 2001, seed)) do
    local row = (at - 1) // SHAPE.width + 1
    rows[row] = rows[row] or {}
    rows[row][#rows[row] + 1] = (id - 1000) / 1024            -- f32 has them as they are
  end
  return rows
end

local function packed(rows)
  local parts = {}
  for i, row in ipairs(rows) do parts[i] = string.pack(("f"):rep(#row), table.unpack(row)) end
  return table.concat(parts)
end

describe("the rows of ids are read as the ids:", function()
  local policies = { full = "full", pyramidinfer = policy.load("pyramidinfer", { recent = 0.2,
    floor = 4 }), h2o = policy.load("h2o", { rows = 24 }), snapkv = policy.load("snapkv",
      { rows = 24 }), streaming = policy.load("streaming", { rows = 24, rotate = true }) }
  for _, kind in ipairs { "cpu", "device" } do
    -- kernels that a processor runs are slow
    for _, name in ipairs(kind == "cpu" and { "full", "pyramidinfer", "h2o", "snapkv",
      "streaming" } or { "pyramidinfer", "h2o" }) do
      it(name .. " on the " .. kind, function()
        local model, chosen = models[kind], policies[name]
        local first, second = prompt(kind == "cpu" and 60 or 30, 3), prompt(9, 4)
        local by_ids <close> = assert(model:cache { policy = chosen })
        local by_rows <close> = assert(model:cache { policy = chosen })
        -- the two kinds in turn, on both sides
        local a = assert(by_ids:prefill(first))
        local b = assert(by_rows:prefill { embeddings = assert(model:embed(first)) })
        assert.equal(a:tostring(), b:tostring())
        a, b = assert(by_ids:prefill(second)), assert(by_rows:prefill(second))
        assert.equal(a:tostring(), b:tostring())
        a = assert(by_ids:prefill(first, { prune = false }))
        b = assert(by_rows:prefill({ embeddings = assert(model:embed(first)) }, { prune = false }))
        assert.equal(a:tostring(), b:tostring())
        assert.equal(assert(by_ids:step(1)):tostring(), assert(by_rows:step(1)):tostring())
        assert.equal(#first * 2 + #second + 1, by_rows:tokens())
        assert.equal(bytes_of(by_ids, by_ids:tokens()), bytes_of(by_rows, by_rows:tokens()))
      end)
    end
  end

  it("in chunks, of quantised tables, and where logits of all are wanted", function()
    local q8 <close> = assert(pyramid.model(folder() .. "/model", { device = "cpu", threads = 2,
      weights = "q8_0", context = 1024, precision = "f32" }))
    local ids = prompt(600, 9)
    local rows = assert(q8:embed(ids))
    assert.equal(4 * SHAPE.width * #ids, #rows)
    assert.equal(rows:sub(-4 * SHAPE.width), q8:embed { ids[#ids] })
    assert.equal("", q8:embed {})
    local by_ids <close> = assert(q8:cache())
    local by_rows <close> = assert(q8:cache())
    local a = assert(by_ids:prefill(ids, { all = true }))
    local b = assert(by_rows:prefill({ embeddings = rows }, { all = true }))
    assert.equal(#a, #b)
    for _, i in ipairs { 1, 511, 512, 513, 600 } do
      assert.equal(a[i]:tostring(), b[i]:tostring())
    end
  end)

  it("in a saved cache, a fork, and behind a cut", function()
    local model, ids = models.cpu, prompt(40, 6)
    local cache <close> = assert(model:cache())
    assert(cache:prefill { embeddings = assert(model:embed(ids)) })
    local path = helper.tmp()
    assert(cache:save(path))
    local loaded <close> = assert(model:load_cache(path))
    os.remove(path)
    local fork <close> = assert(cache:fork())
    local wanted = assert(cache:step(5)):tostring()
    assert.equal(wanted, assert(loaded:step(5)):tostring())
    assert(fork:prefill(ids))
    assert(fork:truncate(40))
    assert.equal(wanted, assert(fork:step(5)):tostring())
  end)
end)

describe("rows that no id has", function()
  it("are what a plain transformer makes of them", function()
    local llama, rows = plain.open(folder() .. "/model"), random_rows(5, 7)
    for kind, model in pairs(models) do
      local cache <close> = assert(model:cache { dtype = "f32" })
      local lanes, wanted = llama:lanes(), nil
      assert(cache:prefill { 3, 4 })
      for _, id in ipairs { 3, 4 } do llama:step(lanes, id) end
      local got = assert(cache:prefill { embeddings = rows })
      for _, row in ipairs(rows) do
        llama.model.embed[SHAPE.vocab + 1] = row
        wanted = llama:step(lanes, SHAPE.vocab)
      end
      helper.assert_near(got, wanted, kind)
      helper.assert_near(assert(cache:step(9)), llama:step(lanes, 9), kind .. ", a token later")
    end
  end)

  it("may be packed, a matrix, or a sequence of either", function()
    local rows, wanted = random_rows(4, 8), nil
    for _, given in ipairs { rows, packed(rows), vector(rows),
      { rows[1], vector(rows[2]), rows[3], vector(rows)[4] }, vector(rows):slice(1, 4) } do
      local cache <close> = assert(models.cpu:cache())
      local logits = assert(cache:prefill { embeddings = given }):tostring()
      wanted = wanted or logits
      assert.equal(wanted, logits)
    end
  end)
end)

describe("what is no row", function()
  it("is refused, and changes nothing", function()
    local model = models.cpu
    local cache <close> = assert(model:cache { policy = policy.load("h2o", { rows = 16 }) })
    assert(cache:prefill(prompt(40)))
    local before = bytes_of(cache)
    local function refused(code, wanted, rows)
      local none, message, got = cache:prefill { embeddings = rows }
      assert.is_nil(none)
      assert.equal(code, got, message)
      assert.matches(wanted, message, 1, true)
      assert.equal(before, bytes_of(cache))
    end
    for _, number in ipairs { 0 / 0, math.huge, -math.huge } do
      local rows = random_rows(3, 9)
      rows[2][5] = number
      refused("argument", "embedding 2 is not finite at number 5 of 32", rows)
    end
    refused("argument", "the prompt is empty", "")
    refused("argument", "the prompt is empty", {})
    refused("context", "more than the model's context of 256", ("\0"):rep(4 * SHAPE.width * 217))
    local function raises(wanted, rows)
      assert.error_matches(function() cache:prefill { embeddings = rows } end, wanted, 1, true)
      assert.equal(before, bytes_of(cache))
    end
    raises("embeddings: 127 bytes are no rows of 32 numbers", ("\0"):rep(127))
    raises("embeddings: row 2 has 31 numbers, and the model's width is 32",
      { random_rows(1)[1], table.move(random_rows(1)[1], 1, 31, 1, {}) })
    raises("embeddings: the matrix has 3 columns", vector { { 1, 2, 3 } })
    raises("embeddings: the matrix has 0 columns", vector { 1, 2, 3 })
    raises("embeddings: packed f32, a matrix or a sequence of rows is wanted, not a number", 5)
    raises("a number is not a vector", { 5 })
    raises("value 32 is a string", { table.move({ "x" }, 1, 1, 32, table.move(random_rows(1)[1], 1,
      31, 1, {})) })
    assert.error_matches(function() cache:prefill { 1, embeddings = "" } end,
      "unknown option '1'", 1, true)
    assert.equal("argument", select(3, model:embed { SHAPE.vocab }))
    assert.has_error(function() model:embed "x" end)
    assert.error_matches(function()
      local closed = assert(pyramid.model(folder() .. "/model"))
      closed:close()
      closed:embed { 1 }
    end, "the model is closed", 1, true)
  end)

  it("nor is a policy that fails in a deep layer, and the caller's no", function()
    local model, fails = models.cpu, false
    local late = policy { name = "late", prefill = function(_, l)
      if fails and l.index == SHAPE.layers then error "no" end
      return { keep = math.min(l.rows, 20), share = "head" }
    end }
    local cache <close> = assert(model:cache { policy = late })
    assert(cache:prefill(prompt(40)))
    local before = bytes_of(cache)
    fails = true
    assert.equal("policy", select(3, cache:prefill { embeddings = random_rows(30, 2) }))
    assert.equal(before, bytes_of(cache))
    fails = false
    assert.equal("cancelled", select(3, cache:prefill({ embeddings = random_rows(30, 2) },
      { progress = function(done) return done > 30 end })))
    assert.equal(before, bytes_of(cache))
    assert(cache:prefill { embeddings = random_rows(30, 2) })
  end)
end)
