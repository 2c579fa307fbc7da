-- A share of the rows that was asked for: where it cannot be kept, whatever uses the policy says so
-- and what was reached; what depends on the text is not stated as fact.
local cjson = require "cjson"
local compare = require "pyramid.tools.compare"
local helper = require "helper"
local inspect = require "pyramid.tools.inspect"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local recall = require "pyramid.tools.recall"
local shell = require "support.shell"
local target = require "pyramid.tools.target"

local tiny = "models/tiny"
local story = ("The code of the tin box was 4821. Toby lived in Tilbury. Toby had a dog named "
  .. "Rex. It rained all day.\n"):rep(12)

describe("a target", function()
  local folder, text

  setup(function()
    folder = shell.folder()
    text = folder .. "/story.txt"
    helper.write(text, story)
  end)
  teardown(function() shell.remove(folder) end)

  it("is missed where a policy keeps more or less, not where it rounds", function()
    local p = assert(policy.load("pyramidinfer", { target = 0.3 }))
    assert.equal(0.3, target.of(p))
    assert.is_nil(target.of(assert(policy.load "pyramidinfer")))
    assert.is_nil(target.of(assert(policy.load "full")))
    assert.is_false(target.missed(0.3, 0.305, 1000))
    assert.is_false(target.missed(0.3, 0.36, 30))                        -- two rows of thirty
    assert.is_true(target.missed(0.3, 0.36, 1000))
    assert.is_true(target.missed(0.3, 0.2, 1000))
    assert.is_false(target.missed(nil, 1, 10))
    assert.is_nil(target.warning(p, "p", 0.3, 1000))
    assert.equal("p: the target of 30.0 % cannot be met for a prompt of 1000 tokens: 68.1 % of "
      .. "the rows are kept", target.warning(p, "p", 0.681, 1000))
  end)

  local function warned(name, ...)
    local out, err, status = shell.pyramid(name, ...)
    assert.equal(0, status, err)
    return out, err
  end

  it("that cannot be met is said by what uses it, with what was reached", function()
    local said = "pyramidinfer target=0%.2: the target of 20%.0 %% cannot be met for a prompt of "
      .. "%d+ tokens: %d+%.%d %% of the rows"
    local words = { "--policy", "pyramidinfer", "target=0.2" }
    local out, err = warned("generate", "--prompt-file", text, "-n", "2", table.unpack(words))
    assert.matches("^pyramid generate: warning: " .. said, err)
    assert.not_matches("warning", out)
    local object = cjson.decode((warned("generate", "--prompt-file", text, "-n", "2", "--json",
      table.unpack(words))))
    assert.is_true(object.target_missed and object.prompt_fraction > 0.5 and object.target == 0.2)
    out = warned("inspect", "--length", "1000", table.unpack(words))
    assert.matches(said, out)
    object = cjson.decode((warned("inspect", "--length", "1000", "--json",
      table.unpack(words)))).forecast
    assert.is_true(object.target_missed and object.target == 0.2 and object.fraction > 0.5)
    out, err = warned("recall", "--length", "300", "--questions", "1", "--kinds", "gift",
      table.unpack(words))
    assert.matches(said, err)
    assert.not_matches("warning", out)
    out, err = warned("perplexity", text, "--context", "200", "--predict", "4", "--windows", "1",
      table.unpack(words))
    assert.matches(said, err)
    assert.not_matches("warning", out)
    out, err = warned("perplexity", text, "--context", "200", "--predict", "4", "--windows", "1",
      "--policy", "pyramidinfer", "preset=45", "target=0.6")
    assert.equal("", err)  -- one that is met is not talked about
    assert.matches("preset=45 target=0%.6", out)
  end)

  it("is no label of compare's where it was not kept", function()
    local out, err, status = shell.pyramid("compare", "--lengths", "300", "--questions", "1",
      "--kinds", "gift", "--documents", "1", "--predict", "4", "--policy", "pyramidinfer",
        "--policy", "pyramidinfer", "preset=45", "--policy", "pyramidinfer", "target=0.1",
          "--budgets", "0.2,0.6", "--out", folder .. "/compare")
    assert.equal(0, status)
    assert.not_matches("\npyramidinfer target=0%.[26]", out)
    assert.not_matches("\npyramidinfer target=0%.1", out)
    assert.matches("\npyramidinfer, [78]%d %% kept +[78]%d %%[^\n]+asked 20 %%", out)
    assert.matches("\npyramidinfer, [78]%d %% kept +[78]%d %%[^\n]+asked 10 %%", out)
    assert.matches("\npyramidinfer preset=45 target=0%.6 +6%d %%", out)
    assert.matches("warning: pyramidinfer, [78]%d %% kept, 300 tokens, agnostic: asked for 20 %% "
      .. "of the rows", err)
    local page = helper.read(folder .. "/compare/report.html")
    assert.matches("asked 20 %%, kept [78]%d %%", page)
    assert.not_matches(">pyramidinfer target=0%.2", page)
  end)

  local massy = [[
local policy, score = require "pyramid.policy", require "pyramid.score"
return policy { name = "massy", doc = "most of the attention", defaults = { mass = 0.9 },
  prefill = function(o, l)
    if l.index == 1 then return end
    return { mass = o.mass, guard = { first = 4, last = math.min(16, l.rows) }, score = score.attention { queries = 16 } }
  end }
]]

  it("inspect states what scores decide as the most it can be, and measures it with a prompt",
    function()
    local path = folder .. "/massy.lua"
    helper.write(path, massy)
    local config = { layers = 4, heads = 8, kv_heads = 2, head_dim = 64 }
    local made = inspect.policy(config, assert(policy.load(path)), 1000)
    assert.is_true(made.at_most and made.layers[2].most and not made.layers[1].most)
    assert.is_false(inspect.policy(config, assert(policy.load "snapkv"), 1000).at_most)
    local out = warned("inspect", "--length", "200", "--policy-file", path)
    assert.matches("\nat most 100%.0 %% of the rows", out)
    assert.matches("layer   1 [^\n]* 200  100%.0 %%\n", out)
    assert.not_matches("layer   1 [^\n]*at most", out)
    assert.matches("layer   2 [^\n]*at most +200  100%.0 %%\n", out)
    -- With a prompt: what a cache holds.
    out = warned("inspect", "--length", "200", "--policy-file", path, "--prompt-file", text,
      "--json")
    local measured = cjson.decode(out).forecast
    local model <close> = assert(pyramid.model(tiny))
    local ids = helper.slice(assert(model:encode(story)), 1, 200)
    local cache <close> = assert(model:cache { policy = path })
    assert(cache:prefill(ids))
    assert.near(cache:fraction(), measured.fraction, 1e-9)
    assert.is_true(measured.fraction < 0.99 and not measured.at_most)
    for layer, held in ipairs(measured.layers) do assert.equal(cache:rows(layer), held.rows) end
    out = warned("inspect", "--length", "200", "--policy-file", path, "--prompt-file", text)
    assert.matches("massy, the first 200 tokens of [^\n]+\n%d+%.%d %% of the rows", out)
    local _, err, status = shell.pyramid("inspect", "--prompt-file", text)
    assert.matches("%-%-prompt%-file goes with a policy", err)
    assert.equal(1, status)
  end)

  it("needs no defaults: a policy without any is checked, inspected and compared", function()
    local path = folder .. "/half.lua"
    helper.write(path, [[return { name = "half", doc = "every half",
      prefill = function(_, l) return { keep = (l.rows + 1) // 2 } end }]])
    assert.matches("policy half: sound", (warned("check", path)))
    assert.matches("50%.0 %% of the rows", (warned("inspect", "--length", "100", "--policy-file",
      path)))
    assert.matches("\nhalf +50 %%", (warned("compare", "--lengths", "300", "--questions", "0",
      "--documents", "1", "--predict", "4", "--policy-file", path, "--out", folder .. "/half")))
    assert.matches("\nhalf [^\n]+ 50%.%d %%", (warned("perplexity", text, "--context", "100",
      "--predict", "4", "--windows", "1", "--policy-file", path)))
  end)

  it("recall's lengths are what they say, to the token", function()
    local model <close> = assert(pyramid.model(tiny))
    for _, length in ipairs { 200, 333, 700, 1500 } do
      for seed = 0, 3 do
        local case = recall.case(model, length, seed, { per_kind = 3 })
        if case then
          assert.equal(length - recall.room, #case.ids)
          assert.equal(model.tokenizer.bos, case.ids[1])
          for _, q in ipairs(case.questions) do
            local last = q.evidence[#q.evidence]
            assert.is_truthy(model:decode(helper.slice(case.ids, last[1] + 1,
              last[2] + 1)):find(q.value, 1, true))
          end
        end
      end
    end
    local out = warned("recall", "--length", "300", "--questions", "1", "--kinds", "gift")
    assert.matches("300 tokens: a document of 236, and room for 64 of question and answer", out)
    local told = cjson.decode((warned("recall", "--length", "300", "--questions", "1", "--kinds",
      "gift", "--json"))).results[1]
    assert.equal(236, told.document_tokens)
    assert.equal(236, told.prompt_tokens)
  end)

  it("check passes what calibrate writes, in the shape of its model", function()
    for name, words in pairs { layer = {}, head = { "--share", "head" },
      both = { "--prune", "both" }, heads = { "--heads", "--recent", "20", "--target", "0.7" } } do
      local path = ("%s/made_%s.lua"):format(folder, name)
      warned("calibrate", "--length", "120", "--texts", "1", "--queries", "8", "--by", "mass",
        "--out", path, table.unpack(words))
      assert.matches("sound", (warned("check", "--model", tiny, path)), name)
    end
    local out, err, status = shell.pyramid("check", folder .. "/made_head.lua")
    assert.equal(1, status)
    assert.matches("made for 8 layers of 2 K/V heads", out)
    assert.matches("check it with %-%-model PATH", err)
  end)
end)

describe("a front", function()
  it("needs more than chance", function()
    local function point(x, right, asked)
      return { x = x, y = right / asked, right = right, asked = asked }
    end
    -- 13 of 20 is not more than 11 of 20: the fewer rows win. 20 of 20 is.
    assert.same({ true, false, true, false }, compare.pareto { point(0.2, 11, 20),
      point(0.4, 13, 20), point(0.5, 20, 20), point(1, 20, 20) })
    -- As many rows but for rounding: neither beats the other, unless it answers more.
    assert.same({ true, true }, compare.pareto { point(0.4521, 12, 20), point(0.4500, 13, 20) })
    assert.same({ false, true }, compare.pareto { point(0.4500, 2, 20), point(0.4521, 18, 20) })
    -- The same questions: what one answers beside all that the other does is more than two shares
    -- tell.
    local function answers(x, right)
      local list = {}
      for i = 1, 24 do list[i] = i <= right and 1 or 0 end
      return { x = x, y = right / 24, right = right, asked = 24, answers = list }
    end
    assert.same({ true, false, true }, compare.pareto { answers(0.2, 11), answers(0.4, 16),
      answers(0.5, 17) })
    -- By losses on the same documents: a steady difference counts, a chance one does not.
    assert.same({ true, true, false }, compare.pareto {
      { x = 0.2, y = -1, each = { 1, 2, 3, 4 } },
        { x = 0.4, y = -0.8, each = { 0.8, 1.8, 2.8, 3.8 } },
      { x = 0.6, y = -0.79, each = { 0.2, 2.4, 2.0, 4.56 } } })
  end)
end)
