-- What is measured comes from logits after a policy's cut: the same rule for all that measure, so
-- that policies which drop rows only are not judged by a full cache's logits.
local calibrate = require "pyramid.tools.calibrate"
local compare = require "pyramid.tools.compare"
local cut = require "pyramid.tools.cut"
local engine = require "pyramid.tools.engine"
local helper = require "helper"
local perplexity = require "pyramid.tools.perplexity"
local pyramid = require "pyramid"
local recall = require "pyramid.tools.recall"
local results = require "pyramid.tools.results"

describe("what is measured", function()
  local model, ids

  setup(function()
    model = assert(pyramid.model("models/tiny", { threads = 1 }))
    ids = helper.slice(assert(calibrate.texts(model, { length = 220, count = 1 }))[1], 1, 220)
  end)
  teardown(function() model:close() end)

  -- Drops nearly everything of a layer's own rows once its attention is done: the prompt's logits
  -- are a full cache's.
  local function blind()
    return pyramid.policy { name = "blind", doc = "next to nothing", defaults = { rows = 2 },
      prefill = function(o, l) return { keep = math.min(o.rows, l.rows) } end }
  end

  it("comes after the cut: the first target too", function()
    local context, targets = helper.slice(ids, 1, 200), helper.slice(ids, 201, 212)
    local function scored(policy, append)
      local cache <close> = assert(model:cache { policy = policy, dtype = "f32" })
      return assert(perplexity.window(cache, context, targets, { append = append }))
    end
    for _, append in ipairs { false, true } do
      local full, ours = scored(nil, append), scored(blind(), append)
      assert.is_true(math.abs(full.logprobs[1] - ours.logprobs[1]) > 1e-3)
      assert.near(2 / 199, ours.context_fraction, 1e-12)
      assert.equal(1, full.context_fraction)
      -- A full cache scores as it does where all is read at once.
      local cache <close> = assert(model:cache { dtype = "f32" })
      assert.near(assert(cache:prefill(context)):logprob(targets[1]), full.logprobs[1], 1e-4)
    end
  end)

  it("holds back a context's last token, whatever reads it", function()
    local seen = {}
    local function spy()
      return { name = "spy", prefill = function(_,
        l) if l.index == 1 then seen[#seen + 1] = l.prompt end end }
    end
    local function cache() return assert(model:cache { policy = spy() }) end
    local one <close> = cache()
    local two <close> = cache()
    local three <close> = cache()
    assert(cut.read(one, ids))
    assert.equal(220, one:tokens())
    assert(cut.append(two, ids, { 5, 6, 7 }))
    assert.equal(222, two:tokens())
    assert(perplexity.window(three, ids, { 5 }))
    assert.same({ 219, 219, 219 }, seen)
    assert.same({ nil, "a context of two tokens or more is wanted: one is read after the cut",
      "argument" }, { cut.read(one, { 5 }) })
  end)

  it("calibrates by what is foretold after a cut", function()
    -- Cut to a tenth, the last layer changes no other layer's input before the held-back token:
    -- only by rows that are gone.
    local curves = assert(calibrate.sensitivity(model, { ids },
      { queries = 8, predict = 2, steps = 10 }))
    assert.is_true(curves[model.config.layers][1] > 0)
  end)

  it("answers after the cut in both modes", function()
    local case = assert(recall.case(model, 400, 1))
    local q = case.questions[1]
    local whole = assert(model:encode(("Question: %s\nAnswer:"):format(q.question),
      { special = false }))
    local judged, rest = recall.prompt(model, case, q, "agnostic")
    assert.same(case.ids, judged)
    assert.same(whole, rest)
    judged, rest = recall.prompt(model, case, q, "aware")
    assert.equal("Answer:", model:decode(rest))
    assert.matches("%?\n$", (model:decode(judged)))
    assert.equal(#case.ids + #whole, #judged + #rest)
    local options = { policy = blind(), dtype = "f32" }
    for _, mode in ipairs(recall.modes) do
      local full = assert(recall.ask(model, case, mode, { dtype = "f32" }))
      local ours, right = assert(recall.ask(model, case, mode, options)), 0
      for i, result in ipairs(ours) do
        assert.is_true(result.fraction < 2.5 / 300 and full[i].fraction == 1)
        right = right + (result.line == full[i].line and 1 or 0)
      end
      assert.is_true(right < #ours, mode)
    end
    local seen = {}
    local spy = { name = "spy", prefill = function(_,
      l) if l.index == 1 then seen[#seen + 1] = l.prompt end end }
    assert(recall.ask(model, { ids = case.ids, questions = { q } }, "aware", { policy = spy }))
    assert.same({ #judged }, seen)
  end)

  it("compares what comes after the cut", function()
    local folder = os.tmpname()
    local store <close> = assert(results.open(folder .. ".jsonl", compare.format))
    local plan = assert(compare.plan(model,
      { variants = assert(engine.variants({ { policy = blind(), label = "blind" } }, {})),
        circumstances = "spec", lengths = { 220 }, modes = { "agnostic" }, questions = 0,
          documents = 1, predict = 1, seed = 2, cache = { dtype = "f32" } }))
    assert(compare.run(plan, model, store))
    local entry = compare.summary(plan, store)[2].document
    assert.equal(1, entry.tokens)
    assert.is_true(entry.kl > 1e-3, entry.kl)  -- of the one token that is scored: the first
    os.remove(folder)
    os.remove(folder .. ".jsonl")
  end)
end)
