-- What callers are told of each plan (a cache's `trace`), and what happens where telling fails.
local helper = require "helper"
local json = require "pyramid.json"
local picture = require "pyramid.tools.picture"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local shell = require "support.shell"
local trace = require "pyramid.tools.trace"

describe("a cache's trace", function()
  local model, ids
  setup(function()
    model = assert(pyramid.model("models/tiny", { device = helper.device, threads = 1 }))
    ids = helper.ids(150, model.config.vocab, 5)
  end)
  teardown(function() model:close() end)

  -- A cache that is told of, and the list that its records come to.
  local function traced(which, more)
    local records = {}
    local given = { policy = which, trace = function(r) records[#records + 1] = r end }
    for key, value in pairs(more or {}) do given[key] = value end
    return assert(model:cache(given)), records
  end

  local function spread_of(cache, layer)
    local least, most, sum = math.huge, 0, 0
    for head = 1, model.config.kv_heads do
      local rows = cache:rows(layer, head)
      least, most, sum = math.min(least, rows), math.max(most, rows), sum + rows
    end
    return { min = least, max = most, mean = sum / model.config.kv_heads }
  end

  local function assert_spread(want, got, what)
    for _, key in ipairs { "min", "mean", "max" } do
      assert.equal(want[key], got[key], ("%s, %s"):format(what, key))
    end
  end

  it("has a record for each layer of a prefill, which adds up to what the cache says", function()
    for _, name in ipairs(policy.list()) do
      local p = helper.squeezed(name)
      local cache <close>, records = traced(p)
      assert(cache:prefill(ids))
      assert.equal(model.config.layers, #records, name)
      local bytes = 0
      for layer, r in ipairs(records) do
        assert.equal(name, r.policy)
        assert.same(p.options, r.options)
        assert.equal(model.description, r.model)
        assert.equal(p.definition.prepare and "prepared" or "prefill", r.when)
        assert.equal(layer, r.layer)
        assert.equal(model.config.layers, r.layers)
        assert.equal(model.config.kv_heads, r.heads)
        assert.equal(#ids, r.tokens)
        assert_spread(spread_of(cache, layer), r.kept, name)
        assert.equal((r.rows.mean - r.kept.mean) * r.heads, r.evicted)
        assert.is_true(r.candidates.max <= r.rows.min)
        if r.hidden then
          assert.is_true(r.hidden_kept <= r.hidden)
          assert.equal(r.hidden, r.rows.max)                  -- nothing was there before
          if layer > 1 then assert.equal(records[layer - 1].hidden_kept, r.hidden) end
        else
          assert.truthy(p.definition.prepare, name)           -- all layers are judged at once
        end
        assert.is_true(r.seconds >= 0)
        if r.evicted == 0 and r.hidden == r.hidden_kept then
          assert.is_true(r.why == "fits" or r.why == "no plan", r.why)
        else
          assert.is_true(r.why ~= "fits" and r.why ~= "no plan", r.why)
        end
        bytes = bytes + r.bytes
      end
      assert.equal(cache:bytes(), bytes, name)
    end
  end)

  it("says what was asked, of whom, and why", function()
    local score = require "pyramid.score"
    local p = policy { name = "mine", defaults = { some = 3 }, prefill = function(_, l)
      if l.index == 1 then return nil end
      if l.index == 2 then return { keep = l.rows, guard = { last = 1 } } end
      if l.index == 3 then
        return { keep = { 9, 20 }, guard = { first = 2, last = 5 }, share = "head",
          score = -score.key_norm() }
      end
      return { keep = math.min(50, l.rows), mass = 0.5, above = -2, least = math.min(10, l.rows),
        merge = { threshold = 0.25 }, prune = "both", score = score.attention { queries = 4 } }
    end }
    local cache <close>, records = traced(p)
    assert(cache:prefill(ids))
    local n = #ids
    assert.equal("no plan", records[1].why)
    assert.equal("fits", records[2].why)
    assert.same({ keep = n, first = 0, last = 1, share = "layer", prune = "cache" },
      records[2].asked)
    assert.same({ keep = { 9, 20 }, first = 2, last = 5, share = "head", prune = "cache" },
      records[3].asked)
    assert.same({ min = 9, mean = 14.5, max = 20 }, records[3].kept)
    assert.equal(n - 7, records[3].candidates.mean)
    assert.equal("(0 - key_norm)", (records[3].why:gsub("%(%)", "")))
    assert.same({ keep = 50, first = 0, last = 0, share = "layer", prune = "both", mass = 0.5,
      above = -2, least = 10, merge = 0.25 }, records[4].asked)
    assert.matches("attention", records[4].why)
    assert.is_true(records[4].hidden_kept < n)
    assert.same({ some = 3 }, records[4].options)
  end)

  it("has one for each trigger that fires, and changes nothing of what the policy does", function()
    for _, name in ipairs { "h2o", "streaming", "pyramidinfer", "d2o", "keydiff", "tova" } do
      local p = helper.squeezed(name)
      if name == "streaming" then p = p:with { rotate = true } end
      local cache <close>, records = traced(p)
      local plain <close> = assert(model:cache { policy = p })
      local one, other = assert(cache:prefill(ids)), assert(plain:prefill(ids))
      for i = 1, 40 do
        assert.equal(other:argmax(), one:argmax())
        local before = #records
        one, other = assert(cache:step(ids[i])), assert(plain:step(ids[i]))
        for at = before + 1, #records do
          local r = records[at]
          assert.equal("decode", r.when)
          assert.equal(#ids + i, r.tokens)
          assert.is_nil(r.hidden)
          assert_spread(spread_of(cache, r.layer), r.kept, name)
        end
      end
      assert.is_true(#records > model.config.layers, name .. " fired never")
      assert.equal(0, helper.distance(one:totable(), other:totable()))
      helper.assert_same_rows(cache, plain, model, name)
      assert.equal(plain:bytes(), cache:bytes())
    end
  end)

  it("has those of an eviction, by the policy that it is by", function()
    local cache <close>, records = traced "full"
    assert(cache:prefill(ids))
    assert.equal("full", records[1].policy)
    assert.equal("no plan", records[1].why)
    assert(cache:evict(policy.load("keydiff", { rows = 40 })))
    assert.equal(2 * model.config.layers, #records)
    local r = records[#records]
    assert.equal("keydiff", r.policy)
    assert.equal(40, r.options.rows)
    assert.equal("evict", r.when)
    assert.equal(#ids, r.tokens)
    assert.equal(40, r.kept.mean)
  end)

  it("goes on in forks, in batches, in what was saved, and ends where it is told to", function()
    local records = {}
    local function note(r) records[#records + 1] = r end
    local cache <close> = assert(model:cache { policy = "snapkv", trace = note })
    local fork <close> = assert(cache:fork())
    assert(fork:prefill(ids))
    assert.equal(model.config.layers, #records)
    local batch <close> = assert(model:batch { policy = "snapkv", trace = note })
    for seed = 1, 2 do assert(batch:add(helper.ids(70, model.config.vocab, seed))) end
    assert(batch:step())
    assert.equal(3 * model.config.layers, #records)
    fork:tell(nil)
    assert(fork:evict "keydiff")
    assert.equal(3 * model.config.layers, #records)
    local path = helper.tmp()
    assert(fork:save(path))
    local loaded <close> = assert(model:load_cache(path, { policy = "snapkv", trace = note }))
    os.remove(path)
    assert(loaded:evict "keydiff")
    assert.equal(4 * model.config.layers, #records)
    assert(loaded:prefill({ 1, 2 }, { prune = false }))         -- nobody is asked
    assert.equal(4 * model.config.layers, #records)
  end)

  it("comes with generations and conversations", function()
    local layers, tokens = {}, 0
    local function note(r) layers[r.layer], tokens = true, r.tokens end
    for _ in assert(model:generate("Once upon a time", { max_tokens = 2, trace = note,
      policy = "snapkv" })) do end
    assert.equal(model.config.layers, #layers)
    assert.error_matches(function()
      local cache <close> = assert(model:cache())
      model:generate("Once", { cache = cache, trace = note })
    end, "its own policy")
    assert.error_matches(function() model:cache { trace = 3 } end, "trace")
    layers = {}
    local talk <close> = assert(model:conversation { format = "none", trace = note })
    assert(talk:say("Once upon", { max_tokens = 1 }))
    assert.equal(model.config.layers, #layers)
    assert.is_true(tokens > 0)
  end)

  -- ---- where telling fails ----------------------------------------------------------------------

  -- Rows, and what comes of them: positions of all lanes, and the logits of a next step in a fork.
  local function state_of(cache)
    local out = { tokens = cache:tokens(), evicted = cache:evicted(), bytes = cache:bytes() }
    for layer = 1, model.config.layers do
      for head = 1, model.config.kv_heads do
        out[#out + 1] = table.concat(cache:positions(layer, head), " ")
      end
    end
    local fork <close> = assert(cache:fork())
    fork:tell(nil)
    out.logits = assert(fork:step(1)):totable()
    return out
  end

  -- The policies whose plans move rows in each of the ways there are.
  local ways = {
    ["rows that move"] = { "h2o", { ratio = 0.4, slack = 3 } },
    ["keys that are turned"] = { "streaming", { ratio = 0.4, slack = 3, rotate = true } },
    ["losers that are merged"] = { "d2o", { ratio = 0.4, slack = 3 } },
    ["lanes of their own lengths"] = { "adakv", { ratio = 0.4 } },
  }

  local function failing(way, broken)
    return assert(model:cache { policy = policy.load(way[1], way[2]), policy_seconds = 0.2,
      trace = function(r) if broken.on and r.layer == 3 then broken.how() end end })
  end

  for name, way in pairs(ways) do
    it("leaves a prefill undone that was not to be told: " .. name, function()
      local broken = { on = true, how = function() error("no more room", 0) end }
      local cache <close> = failing(way, broken)
      local logits, message, code = cache:prefill(ids)
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.equal("trace, layer 3, prefill: no more room", message)
      assert.equal(0, cache:tokens())
      broken.on = false
      assert(cache:prefill(ids))
      local before = state_of(cache)
      broken.on = true
      logits, message = cache:prefill(helper.slice(ids, 1, 60))
      assert.is_nil(logits)
      assert.equal("trace, layer 3, prefill: no more room", message)
      assert.same(before, state_of(cache))
    end)

    it("leaves a step undone, and the cache goes on as if there had been none: " .. name,
      function()
        local broken = { how = function() error("no more room", 0) end }
        local cache <close> = failing(way, broken)
        local plain <close> = assert(model:cache { policy = policy.load(way[1], way[2]) })
        assert(cache:prefill(ids))
        assert(plain:prefill(ids))
        local failed = 0
        for i = 1, 20 do
          local before = state_of(cache)
          broken.on = true
          local logits, message = cache:step(ids[i])
          broken.on = false
          if not logits then
            failed = failed + 1
            assert.equal("trace, layer 3, decode: no more room", message)
            assert.same(before, state_of(cache))
            logits = assert(cache:step(ids[i]))
          end
          local other = assert(plain:step(ids[i]))
          assert.equal(0, helper.distance(logits:totable(), other:totable()))
        end
        assert.is_true(failed > 0 or way[1] == "adakv")
        helper.assert_same_rows(cache, plain, model, name)
      end)

    it("leaves an eviction undone, of pages alone and of pages shared: " .. name, function()
      local broken = { how = function() error("no more room", 0) end }
      local cache <close> = failing(way, broken)
      assert(cache:prefill(ids))
      for _, shared in ipairs { false, true } do
        local fork <close> = shared and assert(cache:fork()) or nil
        local before = state_of(cache)
        local by = policy.load("streaming", { rows = 20, rotate = way[2].rotate or false })
        broken.on = true
        local done, message, code = cache:evict(by)
        broken.on = false
        assert.is_nil(done)
        assert.equal("policy", code)
        assert.equal("trace, layer 3, evict: no more room", message)
        assert.same(before, state_of(cache))
        if fork then assert.same(before, state_of(fork)) end
      end
      assert(cache:evict(policy.load("streaming", { rows = 20,
        rotate = way[2].rotate or false })))
      assert.equal(20, cache:rows(1))
    end)
  end

  it("is ended where it does not return", function()
    local broken = { on = true, how = function() while true do end end }
    local cache <close> = failing(ways["rows that move"], broken)
    local logits, message, code = cache:prefill(ids)
    assert.is_nil(logits)
    assert.equal("policy", code)
    assert.equal("trace, layer 3, prefill: did not return within 0.2 seconds (policy_seconds)",
      message)
    assert.equal(0, cache:tokens())
  end)

  it("takes a whole batch's step back", function()
    local on = false
    local batch <close> = assert(model:batch { policy = policy.load("h2o", { rows = 20,
      slack = 0 }), trace = function(r) if on and r.layer == 2 then error("no", 0) end end })
    local handles = {}
    for seed = 1, 3 do
      handles[seed] = assert(batch:add(helper.ids(60, model.config.vocab, seed)))
    end
    assert(batch:step())
    local before = {}
    for i, handle in ipairs(handles) do before[i] = state_of(handle) end
    on = true
    local results, message = batch:step()
    assert.is_nil(results)
    assert.equal("batch:step: trace, layer 2, decode: no", message)
    on = false
    for i, handle in ipairs(handles) do assert.same(before[i], state_of(handle)) end
    assert(batch:step())
  end)

  it("may look at its cache, and not change it", function()
    local seen, raised = {}, nil
    local cache
    cache = assert(model:cache { policy = "snapkv", trace = function(r)
      seen[r.layer] = cache:rows(r.layer)
      raised = raised or select(2, pcall(cache.clear, cache))
    end })
    assert(cache:prefill(ids))
    for layer, rows in ipairs(seen) do assert.equal(cache:rows(layer), rows) end
    assert.equal(model.config.layers, #seen)
    assert.matches("in use", raised)
    cache:close()
  end)
end)

describe("--trace", function()
  local folder, text, path
  setup(function()
    folder = shell.folder()
    text, path = folder .. "/text.txt", folder .. "/run.jsonl"
    helper.write(text, ("It rained. Toby had a dog named Rex. He went home.\n"):rep(12))
  end)
  teardown(function() shell.remove(folder) end)

  it("writes a line a layer and plan, and inspect draws it", function()
    local _, err, status = shell.pyramid("generate", "--prompt-file", text, "-n", "8",
      "--ignore-eos", "--trace", path, "--policy", "h2o", "rows=40", "slack=1")
    assert.equal("", err)
    assert.equal(0, status)
    local records = assert(trace.read(path))
    local layers = records[1].layers
    assert.equal(0, #records % layers)
    assert.equal("decode", records[#records].when)
    assert.equal(40, records[#records].options.rows)
    local runs = trace.runs(records)
    assert.equal(1, #runs)
    assert.equal(#records, runs[1].plans)
    assert.equal(#records // layers, #runs[1].moments)
    assert.equal(layers, runs[1].moments[1].layers)
    assert.equal(40, runs[1].layers[1].kept)
    local out
    out, err, status = shell.pyramid("inspect", "--trace", path)
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("^h2o .*rows=40", out)
    assert.matches("layer +plans +rows +ranked +kept +evicted", out)
    assert.matches("prefill, %d+ decodes", out)
    assert.matches(" > 40\n", out)
    out = shell.pyramid("inspect", "--trace", path, "--json")
    assert.equal(#records, json.decode(out)[1].plans)
  end)

  it("goes with what measures, and keeps policies apart", function()
    local _, err, status = shell.pyramid("perplexity", "--trace", path, "--context", "64",
      "--predict", "4", "--windows", "1", "-p", "full", "-p", "snapkv", "ratio=0.4", text)
    assert.equal("", err)
    assert.equal(0, status)
    local runs = trace.runs(assert(trace.read(path)))
    assert.equal(2, #runs)
    assert.equal("full", runs[1].label)
    assert.matches("^snapkv ", runs[2].label)
    for _, name in ipairs { "recall", "chat", "compare" } do
      assert.matches("%-%-trace FILE", (shell.pyramid(name, "--help")))
    end
  end)

  it("says what is wrong with a file", function()
    local _, out, err, status
    out, err, status = shell.pyramid("generate", "x", "--trace", folder .. "/none/run.jsonl")
    assert.equal("", out)
    assert.matches("No such file", err)
    assert.equal(1, status)
    helper.write(path, '{"layer":1,"when":"prefill"\n')
    _, err, status = shell.pyramid("inspect", "--trace", path)
    assert.matches("run.jsonl, line 1: ", err)
    assert.equal(1, status)
    _, err = shell.pyramid("inspect", "--trace", folder .. "/nothing")
    assert.matches("No such file", err)
    _, err = shell.pyramid("inspect", "--trace", path, "models/tiny")
    assert.matches("goes with no model", err)
  end)

  it("says a score once and in full, and of whom the counts are", function()
    local long = "(attention * " .. ("(value_norm + position) * "):rep(6) .. "key_norm)"
    local records = {}
    for layer, why in ipairs { long, "fits", long, long, "position", long } do
      records[layer] = { policy = "p", layer = layer, layers = 6, when = "prefill", tokens = 50,
        rows = { mean = 50 }, candidates = { mean = 40 }, kept = { mean = 20 }, hidden = 50,
          hidden_kept = layer == 3 and 20 or 50, evicted = why == "fits" and 0 or 60,
          seconds = 0.001, bytes = 1024, why = why }
    end
    local pic = picture.new(io.stdout, { width = 80, colour = false, ascii = true })
    local lines = trace.draw(pic, trace.runs(records)[1])
    local drawn = table.concat(lines, "\n")
    local said = drawn:gsub("\n +", " ")
    assert.truthy(said:find("layers 1, 3-4, 6: ranked by " .. long .. "\n", 1, true), said)
    assert.truthy(said:find("layer 2: fits\nlayer 5: ranked by position\n", 1, true), said)
    assert.truthy(said:find("kept: per head.*evicted: all heads"), said)
    assert.equal(1, select(2, drawn:gsub("attention", "")))
    for _, line in ipairs(lines) do assert.is_true(picture.columns(line) <= 80, line) end
  end)

  it("shows no more moments than fit", function()
    local records = {}
    for i = 1, 300 do
      records[i] = { policy = "p", layer = 1, layers = 1, when = "decode", tokens = i,
        rows = { mean = 50 + i % 2 }, candidates = { mean = 9 }, kept = { mean = 50 },
          evicted = i % 2, seconds = 0.001, bytes = 1024, why = "position" }
    end
    local pic = picture.new(io.stdout, { width = 80, colour = false, ascii = true })
    local lines = trace.draw(pic, trace.runs(records)[1])
    assert.equal("24 of 300 moments are shown", lines[#lines])
    assert.matches("^     300 decode", lines[#lines - 1])
    for _, line in ipairs(lines) do assert.is_true(picture.columns(line) <= 80, line) end
  end)
end)
