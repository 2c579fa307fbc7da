-- Comparing policies: numbers against direct calculations, results that are gone on with, and a
-- page that loads nothing.
local chart = require "pyramid.tools.report.chart"
local cjson = require "cjson"
local compare = require "pyramid.tools.compare"
local comparison = require "pyramid.tools.report.comparison"
local engine = require "pyramid.tools.engine"
local helper = require "helper"
local html = require "pyramid.tools.report.html"
local png = require "pyramid.tools.report.png"
local base64 = require "pyramid.base64"
local pyramid = require "pyramid"
local recall = require "pyramid.tools.recall"
local results = require "pyramid.tools.results"
local shell = require "support.shell"

local tiny = "models/tiny"

local function softmax(logits)
  local values, highest, sum = logits:totable(), -math.huge, 0
  for _, value in ipairs(values) do highest = math.max(highest, value) end
  for i, value in ipairs(values) do
    values[i] = math.exp(value - highest)
    sum = sum + values[i]
  end
  for i, value in ipairs(values) do values[i] = value / sum end
  return values
end

local function kl_by_hand(p, q)
  local sum = 0
  p, q = softmax(p), softmax(q)
  for i, share in ipairs(p) do
    if share > 0 then sum = sum + share * math.log(share / q[i]) end
  end
  return sum
end

describe("logits:kl", function()
  local model

  setup(function() model = assert(pyramid.model(tiny)) end)
  teardown(function() model:close() end)

  it("is the divergence of two distributions", function()
    local cache <close> = assert(model:cache { dtype = "f32" })
    local all = assert(cache:prefill(assert(
      model:encode "Once there was a baker who had a dog named Rex."), { all = true }))
    assert.equal(0, all[3]:kl(all[3]))
    for i = 2, #all do
      assert.near(kl_by_hand(all[i - 1], all[i]), all[i - 1]:kl(all[i]), 1e-6)
      assert.is_true(all[i]:kl(all[i - 1]) > 0)
    end
  end)

  it("refuses what is no distribution over the same tokens", function()
    local cache <close> = assert(model:cache())
    local logits = assert(cache:prefill { 5, 6, 7 })
    local other <close> = assert(pyramid.model(helper.fixture "families/llama-mha"))
    local foreign <close> = assert(other:cache())
    local theirs = assert(foreign:prefill { 5, 6, 7 })
    assert.has_error(function() logits:kl(theirs) end,
      "bad argument #1 to 'kl' (logits over another vocabulary)")
    assert.has_error(function() logits:kl { 1, 2 } end)
    assert.has_error(function() logits:kl() end)
  end)
end)

describe("compare", function()
  local model, folder

  setup(function()
    model = assert(pyramid.model(tiny, { threads = 1 }))
    folder = shell.folder()
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  local function given(name, words)
    local chosen = assert(pyramid.policy(name, words))
    local label = name
    for key, value in pairs(words or {}) do label = ("%s %s=%s"):format(label, key, value) end
    return { policy = chosen, label = label }
  end

  local function labels(list)
    local out = {}
    for i, variant in ipairs(list) do out[i] = variant.label end
    return out
  end

  local store_count = 0
  local function store_of()
    store_count = store_count + 1
    return assert(results.open(("%s/%d.jsonl"):format(folder, store_count), compare.format))
  end

  local function plan_of(more)
    local how = { variants = assert(engine.variants({ given("snapkv", { window = 8 }) },
      { 0.3, 1 })), circumstances = "spec", lengths = { 300 }, modes = { "agnostic" },
        questions = 1, kinds = { "code", "gift" }, documents = 1, predict = 8, seed = 2,
          cache = { dtype = "f32" } }
    for key, value in pairs(more or {}) do how[key] = value end
    return assert(compare.plan(model, how))
  end

  it("measures policies at budgets, where they have one, and the full cache first", function()
    assert.same({ "full", "snapkv target=0.2", "snapkv target=0.5", "pyramidinfer target=0.2",
      "pyramidinfer target=0.5" }, labels(assert(engine.variants({ given "snapkv",
        given "pyramidinfer" }, { 0.2, 0.5 }))))
    assert.same({ "full", "snapkv rows=64", "pyramidinfer ratio=0.8", "pyramidinfer target=0.4" },
      labels(assert(engine.variants({ given("snapkv", { rows = 64 }),
        given("pyramidinfer", { ratio = 0.8 }), given "full",
        given("pyramidinfer", { target = 0.4 }) }, { 0.2, 0.5 }))))
    local preset = given("pyramidinfer", { preset = "45" })
    local all = assert(engine.variants({ preset, preset }, { 0.2 }))
    assert.same({ "full", "pyramidinfer preset=45 target=0.2" }, labels(all))
    assert.equal("pyramidinfer preset=45", all[2].series)
    assert.equal(0.2, all[2].policy.options.target)
    local none = { policy = assert(pyramid.policy { name = "none", prefill = function() end }),
      label = "none" }
    assert.same({ "full", "none" }, labels(assert(engine.variants({ none }, { 0.2 }))))
    local narrow = pyramid.policy { name = "narrow", defaults = { ratio = 0.9 },
      limits = { ratio = { 0.5, 1 } } }
    narrow = assert(pyramid.policy { name = "narrow", defaults = narrow.options,
      limits = { ratio = { 0.5, 1 } },
      prefill = function() end })
    local list, message = engine.variants({ { policy = narrow, label = "narrow" } }, { 0.2 })
    assert.is_nil(list)
    assert.matches("policy narrow: option 'ratio' is 0%.2; it must be from 0%.5 to 1", message)
  end)

  it("scores what follows a context as a direct calculation does", function()
    local plan, store = plan_of(), store_of()
    assert(compare.run(plan, model, store))
    local step
    for _, each in ipairs(plan.steps) do step = each.kind == "text" and each or step end
    assert.equal(300 - 8, #step.context)
    assert.equal(8, #step.targets)
    local function logits_of(policy)
      local cache <close> = assert(model:cache { policy = policy, dtype = "f32" })
      assert(cache:prefill(helper.slice(step.context, 1, #step.context - 1)))
      local context_fraction = cache:fraction()
      local all = { assert(cache:step(step.context[#step.context])) }       -- after the cut
      for i = 1, 7 do all[i + 1] = assert(cache:step(step.targets[i])) end
      return all, cache:fraction(), context_fraction
    end
    local full = logits_of(nil)
    local ours, fraction, context_fraction = logits_of(plan.given.variants[2].policy)
    local sum, kl, top1 = 0, 0, 0
    for i, target in ipairs(step.targets) do
      sum, kl = sum + math.log(softmax(ours[i])[target + 1]), kl + kl_by_hand(full[i], ours[i])
      top1 = top1 + (ours[i]:argmax() == full[i]:argmax() and 1 or 0)
    end
    local entries = compare.summary(plan, store)
    assert.equal(3, #entries)
    local entry, base, whole = entries[2].document, entries[1].document, entries[3]
    assert.near(math.exp(-sum / 8), entry.perplexity, 1e-4)
    assert.near(kl / 8, entry.kl, 1e-6)
    assert.equal(top1 / 8, entry.top1)
    assert.near(fraction, entry.fraction, 1e-12)
    assert.near(context_fraction, entry.context_fraction, 1e-12)
    assert.near(-sum / math.log(2) / #assert(model:decode(step.targets)), entry.bits_per_byte, 1e-4)
    assert.equal(8, entry.tokens)
    assert.equal(0, base.kl)
    assert.equal(1, base.top1)
    assert.equal(1, base.fraction)
    -- ratio = 1 keeps all: the same as the full cache, and said to be
    assert.near(0, whole.document.kl, 1e-9)
    assert.is_true(whole.silent)
    assert.is_false(entries[2].silent)
    assert.is_false(entries[1].silent)
    assert.is_true(base.prefill_seconds > 0 and base.decode_rate > 0)
    assert.is_true(entry.cache_bytes < base.cache_bytes)
  end)

  it("counts answers, rows and evidence as recall does", function()
    local plan, store = plan_of { documents = 0, modes = { "agnostic", "aware" } }, store_of()
    assert(compare.run(plan, model, store))
    local entries = compare.summary(plan, store)
    assert.equal(6, #entries)
    local cases = recall.cases(model, 300, { questions = 1, kinds = { "code", "gift" }, seed = 2 })
    for _, at in ipairs { 2, 5 } do
      local entry, fraction, asked, right, survival = entries[at], 0, 0, 0, 0
      for _, case in ipairs(cases) do
        local options = { policy = plan.given.variants[2].policy, dtype = "f32" }
        for _, result in ipairs(assert(recall.ask(model, case, entry.mode, options))) do
          asked, right, fraction = asked + 1, right + (result.right and 1 or 0),
            fraction + result.fraction
          survival = survival + result.survival[3]
        end
      end
      assert.equal(2, asked)
      assert.equal(asked, entry.recall.asked)
      assert.equal(right, entry.recall.right)
      assert.near(fraction / asked, entry.fraction, 1e-12)
      assert.near(survival / asked, entry.recall.survival[3], 1e-12)
      assert.equal(1, entry.recall.kinds.code.asked)
      assert.is_nil(entry.recall.kinds.chain)
      assert.is_nil(entry.document)
    end
  end)

  it("draws what was kept as the cache holds it", function()
    local plan, store = plan_of { documents = 0 }, store_of()
    assert(compare.run(plan, model, store))
    local entry = compare.summary(plan, store)[2]
    local case = recall.cases(model, 300, { questions = 1, kinds = { "code", "gift" },
      seed = 2 })[1]
    local cache <close> = assert(model:cache { policy = plan.given.variants[2].policy,
      dtype = "f32" })
    assert(cache:prefill(case.ids))
    assert.equal(#case.ids, entry.kept.tokens)
    assert.equal(#case.ids, entry.kept.columns)
    for layer = 1, model.config.layers do
      local held = {}
      for head = 1, model.config.kv_heads do
        for _, position in ipairs(cache:positions(layer, head)) do
          held[position] = (held[position] or 0) + 1
        end
      end
      for position = 0, #case.ids - 1 do
        local level = tonumber(entry.kept.layers[layer]:sub(position + 1, position + 1), 16)
        assert.near((held[position] or 0) / model.config.kv_heads, level / 15, 1 / 15)
        assert.equal(held[position] == nil, level == 0)
      end
    end
    local mark = entry.kept.marks[1]
    assert.equal(case.questions[1].answer, mark.answer)
    assert.equal(case.questions[1].evidence[1][1], mark.first)
    assert.is_truthy(mark.text:find(case.questions[1].value, 1, true)
      or #case.questions[1].evidence > 1)
  end)

  it("finds the front", function()
    local front = compare.pareto { { x = 1, y = 0.9 }, { x = 0.5, y = 0.9 }, { x = 0.5, y = 0.8 },
      { x = 0.2, y = 0.1 }, { x = 0.2, y = 0.1 }, { x = 0.3, y = 0.05 }, { x = 0.6, y = 0.95 } }
    assert.same({ false, true, false, true, true, false, true }, front)
    assert.same({}, compare.pareto {})
    assert.near((0.867 - 0.711) / 2, compare.uncertainty(80, 100), 0.001)      -- Wilson's interval
    assert.is_true(compare.uncertainty(10, 10) > 0.1)
    assert.equal(0, compare.uncertainty(0, 0))
  end)

  it("goes on where it was", function()
    local path = folder .. "/resumed.jsonl"
    local plan = plan_of()
    local count = #plan.steps * 3
    do
      local store <close> = assert(results.open(path, compare.format))
      assert.equal(count, assert(compare.run(plan, model, store)))
      assert.equal(count, store.count)
    end
    local function again(wanted, other)
      local store <close> = assert(results.open(path, compare.format))
      assert.equal(wanted, assert(compare.run(other or plan, model, store)))
      return compare.summary(other or plan, store)
    end
    local first = again(0)
    assert.same(first, again(0, plan_of()))
    -- What was cut off is measured again, and nothing else; what is deterministic comes out the
    -- same.
    local text = helper.read(path)
    local lines = {}
    for line in text:gmatch "[^\n]*\n" do lines[#lines + 1] = line end
    helper.write(path, table.concat(lines, "", 1, #lines - 1) .. lines[#lines]:sub(1, 40))
    local second = again(1)
    for i, entry in ipairs(second) do
      assert.same(first[i].recall, entry.recall)
      assert.equal(first[i].document.kl, entry.document.kl)
      assert.equal(first[i].document.perplexity, entry.document.perplexity)
    end
    assert.equal(#lines, select(2, helper.read(path):gsub("\n", "")))
    -- Other circumstances are other results.
    again(count, plan_of { circumstances = "elsewhere" })
    again(0)
    again(#plan.steps, plan_of { variants = assert(engine.variants({ given("streaming",
      { rows = 99 }) }, {})) })
  end)

  it("tells models apart by their weights", function()
    local a, b = assert(engine.fingerprint(tiny)),
      assert(engine.fingerprint(helper.fixture "families/llama-mha"))
    assert.equal(a, assert(engine.fingerprint(tiny)))
    assert.not_equal(a, b)
    local none, message = engine.fingerprint "no/such"
    assert.is_nil(none)
    assert.is_string(message)
    assert.not_equal(results.hash("ab", "c"), results.hash("a", "bc"))
    assert.equal(16, #results.hash())
  end)

  it("says what cannot be planned", function()
    local plan, message, code = compare.plan(model,
      { variants = {}, lengths = { 1000 }, modes = { "agnostic" }, questions = 0, documents = 0,
        predict = 8, seed = 0, circumstances = "",
          text = { name = "note.txt", text = "Too short.", windows = 2 } })
    assert.is_nil(plan)
    assert.matches("note%.txt has %d+ tokens, fewer than a length of 1000", message)
    assert.equal("length", code)
    assert.has_error(function() compare.plan(model, { lenghts = {} }) end)
  end)
end)

describe("results", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  it("are read in time linear in a last line that was never finished", function()
    local path = folder .. "/unfinished.jsonl"
    local first = [[{"format":"ours","key":"a"}]] .. "\n"
    helper.write(path, first .. [[{"format":"ours","key":"]] .. ("b"):rep(1 << 20))
    local began = os.clock()
    local store <close> = assert(results.open(path, "ours"))
    assert.is_true(os.clock() - began < 5)
    assert.equal(1, store.count)
    assert.equal(first, helper.read(path))
  end)

  it("refuse files that hold something else, and leave them as they are", function()
    for text, pattern in pairs {
      ["a list of things\n"] = "line 1: no JSON object",
      ["a list of things"] = "line 1: not a result of ours",
      ['{"format":"theirs","key":"x"}\n'] = "line 1: not a result of ours",
      ['{"format":"ours","key":"x"}\n{"format":"ours"}\n'] = "line 2: not a result of ours",
      ['{"format":"ours","key":"x"}\n\n'] = "line 2: no JSON object",
      ['{"format":"ours","key":"x"}\n{"key"\n{"format":"ours","key":"y"}\n'] = "line 2: no JSON "
        .. "object",
    } do
      local path = folder .. "/other.jsonl"
      helper.write(path, text)
      local store, message, code = results.open(path, "ours")
      assert.is_nil(store)
      assert.matches(path .. ", " .. pattern, message)
      assert.equal("format", code)
      assert.equal(text, helper.read(path))
    end
    local store, message = results.open(folder .. "/no/such/folder.jsonl", "ours")
    assert.is_nil(store)
    assert.matches("No such file", message)
  end)

  it("are what a later run reads", function()
    local path = folder .. "/ours.jsonl"
    local one <close> = assert(results.open(path, "ours"))
    assert(one:add("a", { value = 1 / 3, name = "x/y" }))
    assert(one:add("b", { value = 0 / 0 }))
    local two <close> = assert(results.open(path, "ours"))
    assert.same(one:get "a", two:get "a")
    assert.equal(2, two.count)
    assert.is_nil(two:get "c")
    assert.equal(cjson.null, two:get "b".value)
  end)
end)

describe("reports", function()
  it("escape what they are given", function()
    assert.equal("&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;", html.text "<b> & \"c\" 'd'")
    assert.equal('<p class="a&quot;" hidden x="1.5">t</p>',
      html.element("p", { class = 'a"', x = 1.5, hidden = true, id = false }, "t"))
  end)

  it("choose round ticks that hold all values", function()
    local function ticks(values, how) return table.concat(chart.scale(values, how).ticks, " ") end
    assert.equal("0.0 0.2 0.4 0.6 0.8 1.0", ticks({ 0.3, 0.97 }, { low = 0 }))
    assert.equal("3.5 4.0 4.5 5.0", ticks({ 3.6, 4.9 }, { ticks = 4 }))
    assert.equal("0.01 0.02 0.05 0.1 0.2 0.5 1.0", ticks({ 0.012, 0.9 }, { log = 20 }))
    local scale = chart.scale({ 0.001, 3 }, { log = 20 })
    assert.is_true(scale.log and scale.low <= 0.001 and scale.high >= 3)
    assert.near(0, scale.at(scale.low), 1e-12)
    assert.near(1, scale.at(scale.high), 1e-12)
    for _, values in ipairs { {}, { 0 }, { 5 }, { 0, 0 }, { -2, 7 } } do
      scale = chart.scale(values)
      assert.is_true(scale.high > scale.low and #scale.ticks >= 2)
      for _, value in ipairs(values) do
        assert.is_true(scale.low <= value and value <= scale.high)
      end
    end
  end)

  it("keep an end of an axis that is given", function()
    for _, values in ipairs { { 0 }, { 0, 0 }, { 0.4 }, {}, { 1 } } do
      local scale = chart.scale(values, { low = 0 })
      assert.equal(0, scale.low)  -- shares are never negative
      assert.is_true(scale.high > 0)
      for _, tick in ipairs(scale.ticks) do assert.is_true(tick >= 0) end
    end
  end)

  -- Entries made by hand: what a page says of them is known.
  local function entry_of(label, series, fraction, right, kl)
    return { label = label, series = series, length = 300, mode = "agnostic", fraction = fraction,
      silent = false, front = false, missed = false,
        recall = { asked = 20, right = right, found = right,
          kinds = { gift = { asked = 20, right = right } }, survival = { 1, 1 }, evidence = 1,
            accuracy = right / 20, uncertainty = compare.uncertainty(right, 20) },
              document = { perplexity = 2 + kl, bits_per_byte = 0.5, kl = kl, top1 = 0.9,
                fraction = fraction, context_fraction = fraction, cache_bytes = 1000, computed = 1,
                  prefill_seconds = 0.1, decode_rate = 10, tokens = 8, kl_each = { kl, kl },
                    loss_each = { 1 + kl, 1 + kl } } }
  end

  local about = { command = "pyramid compare", date = "", model = "m", path = "m", version = "0",
    machine = { cpu = "", onednn = "" }, threads = 1, isa = "", measured = 0, seconds = 0,
      kinds = { "gift" },
    settings = { lengths = { 300 }, modes = { "agnostic" },
      budgets = { 0.2 }, questions = 20, documents = 2, predict = 8, first_seed = 0,
        cache_dtype = "f16", precision = "f32" } }

  it("show no negative recall, draw errors, and have one axis of rows for the charts of a row",
    function()
    local page = comparison.render({ entry_of("full", "full", 1, 0, 0),
      entry_of("a ratio=0.2", "a", 0.2, 0, 0.5), entry_of("b ratio=0.6", "b", 0.62, 0, 0.1) },
        about)
    local axes, charts = {}, 0
    for svg in page:gmatch '<svg[^>]-class="chart wide".-</svg>' do
      charts = charts + 1
      local ticks = {}
      for tick in svg:gmatch 'text%-anchor="middle"[^>]*>([^<]*)<' do ticks[#ticks + 1] = tick end
      axes[charts] = table.concat(ticks, " ")
      assert.not_matches(">%-%d", svg)
      assert.matches("rows kept of what was read", svg)
    end
    assert.equal(3, charts)                                              -- recall, KL, perplexity
    assert.matches("20 %%.*100 %%", axes[1])
    assert.equal(axes[1], axes[2])
    assert.equal(axes[1], axes[3])
    assert.matches('class="error"', page)
  end)

  it("call no difference better that is within its error", function()
    local page = comparison.render({ entry_of("full", "full", 1, 16, 0),
      entry_of("a ratio=0.2", "a", 0.2, 14, 0.5), entry_of("b ratio=0.4", "b", 0.4, 15, 0.1) },
        about)
    assert.matches("Fewest rows with no loss that 20 questions would show – <b>a ratio=0%.2</b>",
      page)
    assert.matches("Most answers with at most half of the rows – <b>b ratio=0%.4</b>[^;]*; 1 "
      .. "other is no worse", page)
    page = comparison.render({ entry_of("full", "full", 1, 20, 0),
      entry_of("a ratio=0.2", "a", 0.2, 4, 0.5) }, about)
    assert.matches("Every policy answers fewer than the full cache, by more than the error", page)
  end)

  it("write pictures that others read", function()
    assert.equal("", base64 "")
    assert.equal("Zg==", base64 "f")
    assert.equal("Zm9vYmE=", base64 "fooba")
    assert.equal("Zm9vYmFy", base64 "foobar")
    local picture = png.strip("0f8", 1, 2, 3)
    assert.equal("\x89PNG\r\n\x1a\n\0\0\0\13IHDR\0\0\0\3\0\0\0\1\2\3\0\0\0", picture:sub(1, 29))
    -- as in every PNG: the CRC is right
    assert.equal("\0\0\0\0IEND\xae\x42\x60\x82", picture:sub(-12))
    -- 00 01 10, the rest empty
    assert.equal("\0\x18", picture:match "IDAT\x78\x01\x01\2\0\xfd\xff(..)")
    assert.equal("\0\xff\x88", picture:match "tRNS(...)")
    -- 000101, likewise
    assert.equal("\0\x14", png.strip("fff0f0", 1, 2, 3):match "IDAT\x78\x01\x01\2\0\xfd\xff(..)")
    assert.equal("\0\x01\x23\x40", png.strip("a1b2c", 1, 2,
      3):match "IDAT\x78\x01\x01\4\0\xfb\xff(....)")
  end)
end)

describe("pyramid compare", function()
  local folder

  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  local function run(out, ...)
    return shell.pyramid("compare", "--lengths", "300", "--questions", "1", "--kinds", "code",
      "--documents", "1", "--predict", "8", "--threads", "1", "--out", folder .. "/" .. out, ...)
  end

  it("explains itself", function()
    local out, err, status = shell.pyramid("compare", "--help")
    assert.matches("^Usage: pyramid compare ", out)
    for _, option in ipairs { "policy NAME", "budgets LIST", "lengths LIST", "mode MODE",
      "text FILE", "out DIR" } do
      assert.matches("%-%-" .. option, out)
    end
    assert.equal("", err)
    assert.equal(0, status)
  end)

  it("prints a table, writes a page, and does neither work twice", function()
    local own = folder .. "/own policy.lua"
    helper.write(own, [[
      local policy = require "pyramid.policy"
      return policy { name = "a<b>&\"c\"", defaults = { ratio = 0.5 },
        prefill = function(o, l)
          return { keep = math.ceil(o.ratio * l.rows), guard = { last = math.ceil(o.ratio * l.rows) } }
        end }]])
    local out, err, status = run("a", "--policy-file", own, "--policy", "snapkv", "--budgets",
      "0.3,1", "--mode", "both")
    assert.equal("", err)
    assert.equal(0, status)
    assert.matches("300 tokens, agnostic", out)
    assert.matches("300 tokens, aware", out)
    assert.matches('\na<b>&"c" ratio=0%.3 +3%d %%', out)
    assert.matches("\nsnapkv target=1 +100 %%.*pruned nothing", out)
    assert.matches("25 results, 25 of them new: ", out)
    local page = helper.read(folder .. "/a/report.html")
    assert.is_truthy(page:find("a&lt;b&gt;&amp;&quot;c&quot; ratio=0.3", 1, true))
    assert.is_nil(page:find("<b>&", 1, true))
    for _, foreign in ipairs { "http:", "https:", "@import", "url%(", "<link", "src=" } do
      assert.is_nil(page:find(foreign), foreign)
    end
    assert.matches("<svg ", page)
    assert.matches("aria%-label=", page)
    assert.matches("data:image/png;base64,", page)
    assert.matches("prefers%-color%-scheme", page)
    assert.matches("pyramid compare %-%-lengths 300 ", page)
    local again = run("a", "--policy-file", own, "--policy", "snapkv", "--budgets", "0.3,1",
      "--mode", "both")
    assert.equal((out:gsub("25 of them new", "0 of them new")), again)
    local more = run("a", "--policy", "snapkv", "--policy", "streaming", "rows=64", "--budgets",
      "1", "--json")
    local object = cjson.decode(more)
    assert.equal(3, #object.results)
    assert.equal("streaming rows=64", object.results[3].label)
    assert.is_true(object.results[2].silent)
    assert.equal(28, select(2, helper.read(folder .. "/a/results.jsonl"):gsub("\n", "")))
  end)

  it("scores a text of the user's", function()
    local text = folder .. "/text.txt"
    helper.write(text, ("The code of the tin box was 4821. Toby lived in Tilbury. It rained all "
      .. "day.\n"):rep(80))
    local out, err, status = run("b", "--questions", "0", "--documents", "0", "--text", text,
      "--windows", "2", "--json", "--policy", "streaming", "--budgets", "0.4")
    assert.equal("", err)
    assert.equal(0, status)
    local entry = cjson.decode(out).results[2]
    assert.equal(16, entry.file.tokens)
    assert.equal(2, entry.file.windows)
    assert.is_nil(entry.recall)
    assert.is_true(entry.file.kl > 0 and entry.file.context_fraction < 0.45)
    assert.matches("Distance from the full cache", helper.read(folder .. "/b/report.html"))
  end)

  it("says what is wrong with its arguments", function()
    local function fails(pattern, ...)
      local out, err, status = run("c", ...)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.not_matches("stack traceback", err)
      assert.equal(1, status)
    end
    fails("unknown option '%-%-nonesuch'.*\npyramid compare %-%-help lists the options%.\n$",
      "--nonesuch")
    fails("%-%-budgets: '2' is not a share of the rows, more than 0 and at most 1", "--budgets",
      "0.2,2")
    fails("%-%-budgets: '' is not a share", "--budgets", "")
    fails("%-%-lengths: 'many' is not a number of tokens of 200 or more", "--lengths", "many")
    fails("%-%-lengths: 99999 is more than the model's context of %d+", "--lengths", "99999")
    fails("%-%-kinds: 'riddle' is not a kind %(known: attribute, ", "--kinds", "riddle")
    fails("%-%-predict 300 leaves nothing of a length of 300 to read", "--predict", "300")
    fails("nothing to measure\nAt least one of", "--questions", "0", "--documents", "0")
    fails("has 0 tokens, fewer than a length of 300\nGive a longer text", "--text", "/dev/null")
    fails("nonesuch%.txt: No such file", "--text", folder .. "/nonesuch.txt")
    fails("unknown policy 'nonesuch' %(known: ", "--policy", "nonesuch")
    fails("there is no model 'no/such'\nGive %-%-model PATH", "--model", "no/such")
    fails("has no tokenizer", "--model", helper.fixture "families/llama-mha")
    fails("must be one of 'agnostic', 'aware', 'both'", "--mode", "blind")
    assert(os.execute("mkdir -p " .. folder .. "/d"))
    helper.write(folder .. "/d/results.jsonl", "mine\n")
    local out, err, status = run "d"
    assert.equal("", out)
    assert.matches("results%.jsonl, line 1: no JSON object\nIt is left as it is; give another "
      .. "%-%-out%.\n$", err)
    assert.equal(1, status)
    assert.equal("mine\n", helper.read(folder .. "/d/results.jsonl"))
    helper.write(folder .. "/e", "")
    out, err, status = run "e"
    assert.equal("", out)
    assert.matches("e/results%.jsonl: Not a directory", err)
    assert.equal(1, status)
  end)
end)

