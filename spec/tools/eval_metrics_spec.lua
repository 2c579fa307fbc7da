-- Metrics of `pyramid eval` against what the published code says of made-up answers
-- (scripts/maker/oracle/metrics.py), and those that are a few lines by hand.
local cjson = require "cjson"
local helper = require "helper"
local metrics = require "pyramid.tools.eval.metrics"
local sequence = require "pyramid.tools.eval.sequence"

describe("eval's metrics", function()
  local golden = cjson.decode(helper.read(helper.fixture "eval/metrics.json"))

  it("score as the published code does", function()
    local seen = {}
    for _, case in ipairs(golden) do
      local score = metrics.score(case.metric, case.answer, case.wanted, { classes = case.classes })
      assert.is_true(math.abs(case.score - score) < 1e-9, ("%s of %q, wanted %q: %.9f, not %.9f")
        :format(case.metric, case.answer, table.concat(case.wanted, "|"), score, case.score))
      seen[case.metric] = (seen[case.metric] or 0) + 1
    end
    for _, name in ipairs { "contains", "contains_any", "exact", "f1", "rouge_l", "rouge",
      "rouge_l_sets", "edit", "classification", "retrieval", "count", "number" } do
      assert.is_true(metrics.known(name) and (seen[name] or 0) >= 8, name)
    end
  end)

  it("read letters and words", function()
    local function is(name, score, answer, wanted)
      assert.equal(score, metrics.score(name, answer, { wanted }), answer)
    end
    is("choice", 1, " B. to earn money", "B")
    is("choice", 0, "A or B", "B")
    is("choice", 1, "no letter is A", "nothing")
    is("letters", 1, "ABD", "ABD")
    is("letters", 1, "DBA", "ABD")
    is("letters", 1, "The options are A, C) and D.", "CD")
    is("letters", 0, "B", "AB")
    is("word", 1, " Mango. It", "mango")
    is("word", 0, "mangos", "mango")
    is("word", 0, "", "mango")
    assert.has_error(function() metrics.score("none", "", {}) end, "no metric 'none'")
    assert.is_false(metrics.known "none")
    assert.equal(0, metrics.score("f1", "x", {}))
    assert.equal(0, metrics.score("contains", "x", {}))
  end)

  it("know when an answer's score cannot change", function()
    assert.is_true(metrics.settled("contains", "it is 12 and 34", { "12", "34" }))
    assert.is_false(metrics.settled("contains", "it is 12", { "12", "34" }))
    assert.is_true(metrics.settled("contains_any", "it is 12", { "12", "34" }))
    assert.is_false(metrics.settled("f1", "it is 12", { "it is 12" }))
    assert.is_false(metrics.settled("word", " man", { "mango" }))
    assert.is_true(metrics.settled("word", " man,", { "mango" }))
  end)

  it("estimate pass@k as counting all choices of samples does", function()
    local function by_hand(n, passed, k)
      local hits, all = 0, 0
      local function choose(from, left, hit)
        if left == 0 then
          all, hits = all + 1, hits + (hit and 1 or 0)
          return
        end
        for i = from, n - left + 1 do choose(i + 1, left - 1, hit or i <= passed) end
      end
      choose(1, k, false)
      return hits / all
    end
    for n = 1, 7 do
      for passed = 0, n do
        for k = 1, n do
          assert.near(by_hand(n, passed, k), metrics.pass_at_k(n, passed, k), 1e-12)
        end
      end
    end
  end)

  it("find common subsequences as trying all does", function()
    math.randomseed(os.time())
    for _ = 1, 40 do
      local a, b = {}, {}
      for i = 1, math.random(0, 8) do a[i] = math.random(3) end
      for i = 1, math.random(0, 8) do b[i] = math.random(3) end
      local best = 0
      for mask = 0, (1 << #a) - 1 do
        local at, count = 1, 0
        for i = 1, #a do
          if mask >> (i - 1) & 1 == 1 then
            while at <= #b and b[at] ~= a[i] do at = at + 1 end
            if at > #b then count = -1 break end
            at, count = at + 1, count + 1
          end
        end
        best = math.max(best, count)
      end
      assert.equal(best, sequence.common(a, b))
      assert.equal(best, #sequence.longest(a, b))
      assert.is_true(sequence.ratio(a, a) == 1)
    end
    assert.equal(1, sequence.ratio({}, {}))
    assert.equal(0, sequence.ratio({ 1 }, { 2 }))
  end)
end)
