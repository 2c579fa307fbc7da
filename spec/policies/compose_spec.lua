-- Policies made from policies: one's prompt with another's generation, options by layer, a first
-- layer, a name.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local testing = require "pyramid.testing"

local config = { layers = 6, heads = 4, kv_heads = 2, head_dim = 16 }

local function rows_of(p, tokens)
  local rows = {}
  for index, layer in ipairs(policy.forecast(p, config, tokens)) do rows[index] = layer.rows end
  return rows
end

local function share(p, tokens)
  local sum = 0
  for _, rows in ipairs(rows_of(p, tokens)) do sum = sum + rows end
  return sum / (tokens * config.layers)
end

describe("policy.compose", function()
  it("reads with one policy and writes with another", function()
    local both = policy.compose { prefill = "snapkv", decode = "h2o" }
    local how = { prompt = 40, steps = 30, heads = 2 }
    local run, snapkv = testing.run(both:with { prefill_window = 4, decode_rows = 15 }, how),
      testing.run(assert(policy.load("snapkv", { window = 4 })), how)
    assert.same(snapkv.prefill, run.prefill)
    for layer = 1, 4 do assert.equal(15, run:rows(layer)) end
  end)

  it("tells the parts' options apart, prints them and checks them", function()
    local both = policy.compose { prefill = policy.load("snapkv", { ratio = 0.3 }), decode = "h2o" }
    assert.equal("snapkv+h2o", both.name)
    assert.equal(0.3, both.options.prefill_ratio)
    assert.equal(0.5, both.options.decode_ratio)
    assert.truthy(tostring(both):find("snapkv+h2o(decode_ratio=0.5, decode_recent=0.5,", 1, true),
      tostring(both))
    assert.equal(0.7, both:with({ decode_ratio = 0.7 }).options.decode_ratio)
    assert.error_matches(function() both:with { ratio = 0.2 } end,
      "unknown option 'ratio' %(known: decode_ratio,")
    assert.error_matches(function() both:with { prefill_kernel = 4 } end,
      "prefill_kernel.* steps of 2")
    assert.same({ prefill_ratio = 0.25, prefill_pool = "avg" },
      policy.parse_options(both, { "prefill_ratio=0.25", "prefill_pool=avg" }))
  end)

  it("fits a target and knows the presets of what reads", function()
    local both = policy.compose { prefill = "pyramidinfer", decode = "streaming" }
    assert.near(0.8, share(both:with { target = 0.8 }, 1000), 0.01)
    local preset = both:with { preset = 45 }
    assert.equal("paper", preset.options.prefill_mode)
    assert.same(rows_of(assert(policy.load("pyramidinfer", { preset = 45 })), 1000),
      rows_of(preset, 1000))
    assert.near(0.45, share(policy.compose { prefill = policy.load("pyramidinfer",
      { preset = 45 }) }, 1000), 0.01)
  end)

  it("may have one part only", function()
    local run = testing.run(policy.compose { decode = policy.load("streaming", { rows = 20 }) },
      { prompt = 50 })
    assert.equal(50, run:rows(1))
    run = testing.run(policy.compose { prefill = policy.load("h2o", { rows = 20 }) },
      { prompt = 50, steps = 10 })
    assert.equal(30, run:rows(1))
    assert.has_error(function() policy.compose {} end,
      "policy.compose: prefill, decode or both are wanted")
    assert.error_matches(function() policy.compose { prefill = "snapvk" } end,
      "policy.compose: prefill: .*snapkv")
    assert.error_matches(function() policy.compose { read = "snapkv" } end,
      "unknown option 'read' %(known: decode, prefill%)")
  end)
end)

describe("policy.layers", function()
  it("gives layers options of their own", function()
    local p = policy.layers("snapkv", { [1] = { ratio = 1 }, ["2-3"] = { ratio = 0.8 },
      ["6-"] = { rows = 50 } })
    assert.same({ 1000, 800, 800, 500, 500, 50 }, rows_of(p, 1000))
    assert.same({ 1000, 800, 800, 300, 300, 50 }, rows_of(p:with { ratio = 0.3 }, 1000))
    assert.equal("snapkv[1: ratio=1; 2-3: ratio=0.8; 6-: rows=50]", p.name)
  end)

  it("reaches a target of the whole by the other layers", function()
    local p = policy.layers("pyramidinfer", { [1] = { ratio = 1 } }):with { mode = "paper",
      floor = 16, recent = 0.1, target = 0.5 }
    assert.equal(1000, rows_of(p, 1000)[1])
    assert.near(0.5, share(p, 1000), 0.01)
  end)

  it("holds in decode, and leaves what it was given alone", function()
    local overrides = { [1] = { rows = 30 } }
    local p = policy.layers(policy.load("h2o", { rows = 10 }), overrides)
    overrides[1].rows = 5
    local run = testing.run(p, { prompt = 40, steps = 20, layers = 2 })
    assert.equal(30, run:rows(1))
    assert.equal(10, run:rows(2))
    assert.equal(25, testing.run(p:with { rows = 25 }, { prompt = 40, layers = 2 }):rows(2))
  end)

  it("refuses mistakes where they are made", function()
    for pattern, overrides in pairs {
      ["layer 1: policy snapkv: unknown option 'ratoi'"] = { [1] = { ratoi = 1 } },
      ["layer 2: policy snapkv: option 'ratio' is 3"] = { [2] = { ratio = 3 } },
      ["'first' is no layer and no range"] = { first = {} },
        ["'4%-2' is no layer"] = { ["4-2"] = {} },
      ["'0' is no layer"] = { [0] = {} }, ["layer 3 is in two ranges"] = { ["1-3"] = {},
        ["3-4"] = {} },
      ["layer 1: a table of options is wanted, not number"] = { 5 },
    } do
      assert.error_matches(function() policy.layers("snapkv", overrides) end, pattern)
    end
    assert.error_matches(function() policy.layers("pyramidinfer", { { target = 0.5 } }) end,
      "target is of all layers")
  end)
end)

describe("policy.from", function()
  it("keeps everything before a layer", function()
    local p = policy.from("snapkv", 3)
    assert.same({ 1000, 1000, 500, 500, 500, 500 }, rows_of(p, 1000))
    assert.same({ 1000, 1000, 1000, 1000, 500, 500 }, rows_of(p:with { from = 5 }, 1000))
    assert.equal("snapkv(every=0, from=3, heads=mean, kernel=7, pool=max, ratio=0.5, rows=0, target=0.0, "
      .. "window=32)", tostring(p))
    local run = testing.run(policy.from(policy.load("h2o", { rows = 10 }), 2),
      { prompt = 30, steps = 5, layers = 3 })
    assert.equal(35, run:rows(1))
    assert.equal(10, run:rows(2))
  end)

  it("fits a target over all layers, as near as it can", function()
    local p = policy.from("pyramidinfer", 3):with { preset = "45" }
    assert.near(0.45, share(p, 1000), 0.01)
    -- the window alone is a tenth
    assert.near(2 / 6 + 4 / 6 * 0.1, share(p:with { target = 0.1 }, 1000), 0.05)
  end)

  it("refuses mistakes", function()
    assert.error_matches(function() policy.from("snapkv", 0) end, "a layer from 1 is wanted, not 0")
    assert.error_matches(function() policy.from(policy.from("snapkv", 2), 3) end,
      "use with { from = 3 }")
    assert.error_matches(function() policy.from(nil, 3) end,
      "a policy, its name or its path is wanted, not nil")
  end)
end)

describe("composed policies", function()
  it("compose further, under a name", function()
    local p = policy.named("mine", policy.from(policy.compose { prefill = policy.layers("snapkv",
      { [4] = { ratio = 0.9 } }), decode = "streaming" }, 2), "both worlds")
    assert.equal("mine", p.name)
    assert.equal("both worlds", p.definition.doc)
    assert.same({ 1000, 500, 500, 900, 500, 500 }, rows_of(p, 1000))
    assert.same({ 1000, 200, 200, 900, 200, 200 }, rows_of(p:with { prefill_ratio = 0.2 }, 1000))
  end)

  it("keep the kinds of their options: a ratio that is 1 may become less", function()
    local p = policy.from(policy.load("snapkv", { ratio = 1 }), 2)
    assert.equal(0.5, p:with({ ratio = 0.5 }).options.ratio)
    assert.error_matches(function() p:with { window = 0.5 } end, "integer")
  end)

  it("leave their parts alone", function()
    local part = assert(policy.load "pyramidinfer")
    local text = tostring(part)
    policy.compose({ prefill = part, decode = part }):with { prefill_ratio = 0.1, target = 0.9 }
    policy.layers(part, { { ratio = 0.1 } })
    policy.from(part, 3)
    assert.equal(text, tostring(part))
    part.options.ratio = 0.1                             -- a copy, as everywhere
    assert.equal(0.9, policy.from(part, 3).options.ratio)
  end)

  it("pass every check", function()
    for _, p in ipairs { policy.compose { prefill = "pyramidkv", decode = "h2o" },
      policy.layers("streaming", { ["1-2"] = { sinks = 0 }, ["3-"] = { rows = 40 } }),
        policy.from("pyramidinfer", 2) } do
      assert(testing.check(p))
    end
  end)

  it("come from a policy file, and run in the core as they do here", function()
    local path = helper.tmp ".lua"
    helper.write(path, [[
      local policy = require "pyramid.policy"
      return policy.named("filed", policy.from(policy.compose { prefill = "pyramidinfer", decode = "streaming" }, 2))]])
    local p = assert(pyramid.policy(path, { prefill_mode = "paper", prefill_floor = 8,
      prefill_ratio = 0.6, decode_rows = 30 }))
    os.remove(path)
    assert.equal("filed", p.name)
    local model <close> = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3",
      { threads = 2 }))
    local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
    local ids = {}
    for i = 1, 100 do ids[i] = i * 37 % model.config.vocab end
    assert(cache:prefill(ids))
    for index, layer in ipairs(policy.forecast(p, model.config, 100)) do
      assert.equal(layer.rows, cache:rows(index))
    end
    assert.equal(100, cache:rows(1))
    for i = 1, 20 do assert(cache:step(i)) end
    assert.equal(120, cache:rows(1))
    for layer = 2, model.config.layers do assert.is_true(cache:rows(layer) <= 45) end
  end)
end)

describe("policy.by_task", function()
  local texts = {
    code = ("for (i = 0; i < n; i++) { if (a[i] == b[i]) { return f(x[i], y); } }\n"):rep(6),
    arithmetic = ("17 plus 2948 is 2965 and 40821 less 1999 is 38822 so 77 by 312 is 24024\n"):rep(4),
    prose = ("Once there was a baker who lived by the river and sold bread to the old men\n"):rep(6),
  }
  local model
  setup(function() model = assert(pyramid.model("models/tiny", { threads = 1 })) end)
  teardown(function() model:close() end)

  local function kept(p, ids)
    local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
    assert(cache:prefill(ids))
    for i = 1, 20 do assert(cache:step(i)) end
    local out = {}
    for layer = 1, model.config.layers do
      for head = 1, model.config.kv_heads do
        out[#out + 1] = table.concat(cache:positions(layer, head), " ")
      end
    end
    return out
  end

  it("keeps of a prompt what the policy keeps under its task's options", function()
    local snapkv = assert(policy.load("snapkv", { window = 8 }))
    local keydiff = assert(policy.load("keydiff", { sinks = 2, recent = 3, slack = 1000 }))
    local above = policy { name = "above", defaults = { above = 0.0 },
      prefill = function(o)
        return { above = o.above, guard = { first = 2, last = 3 }, share = "head",
          score = -score.key_similarity() }
      end }
    for _, case in ipairs { { snapkv, { code = { ratio = 0.7 }, arithmetic = { ratio = 0.9 },
      prose = { ratio = 0.3 } } }, { snapkv, { code = { rows = 30 } } },
      { keydiff, { arithmetic = { ratio = 0.2 }, prose = { ratio = 0.8 } } },
      { keydiff, { code = { ratio = 0.5 }, prose = { ratio = 0.5 } } },
      { snapkv, { code = { target = 0.7 }, prose = { target = 0.3 } } },
      { assert(policy.load("rocketkv", { window = 4, read = 64 })), { code = { ratio = 0.7 } } },
      { above, { code = { above = -0.5 }, prose = { above = -0.7 } } } } do
      local by_task = policy.by_task(case[1], case[2])
      for task, text in pairs(texts) do
        local ids = helper.slice(assert(model:encode(text)), 1, 120)
        assert.is_true(#ids >= 60)
        local want = case[1]:with(case[2][task] or {})
        assert.same(kept(want, ids), kept(by_task, ids), task)
      end
    end
  end)

  it("is told by the tokens, in the simulation as well", function()
    local p = policy.by_task(policy.load("keydiff", { rows = 10 }), { code = { rows = 20 },
      arithmetic = { rows = 30 } })
    local function rows(class, part)
      local run = testing.run(p, { prompt = 100, layers = 1, heads = 1, tokens = function(position)
        return position % 100 < 100 * part and class or nil
      end })
      return #run[1][1]
    end
    assert.equal(20, rows("symbols", 0.6))
    assert.equal(20, rows("separators", 0.6))
    assert.equal(10, rows("separators", 0.2))
    assert.equal(10, rows("digits", 0.02))
    assert.equal(30, rows("digits", 0.2))
  end)

  it("forecasts the most, is sound, and says what it cannot do", function()
    local p = policy.by_task("snapkv", { code = { ratio = 0.7 }, prose = { ratio = 0.2 } })
    assert.equal("by_task(snapkv; code, prose)", p.name)
    assert(testing.check(p))
    local layer = policy.forecast(p, { layers = 2, heads = 4, kv_heads = 2, head_dim = 8 }, 1000)[1]
    assert.equal(700, layer.rows)
    assert.is_true(layer.most)
    for said, make in pairs {
      ["rows of heads compete"] = function()
        return policy.by_task("adakv", { code = { ratio = 1 } })
      end,
      ["options change the score"] = function()
        return policy.by_task("snapkv", { code = { kernel = 3 } })
      end,
      ["options change read"] = function()
        return policy.by_task("rocketkv", { code = { read = 64 } })
      end,
      ["options change merge"] = function()
        return policy.by_task("d2o", { code = { threshold = 0.9 } })
      end,
      ["options change least"] = function()
        return policy.by_task(policy { name = "few", defaults = { least = 2 },
          prefill = function(o)
            return { above = 0, least = o.least, score = score.key_norm() }
          end }, { code = { least = 9 } })
      end,
      ["options change guards"] = function()
        return policy.by_task("keydiff", { code = { recent = 9 } })
      end,
      ["options change keep beside a threshold"] = function()
        return policy.by_task(policy { name = "both", defaults = { ratio = 0.5 },
          prefill = function(o, l)
            return { keep = math.ceil(o.ratio * l.rows), above = 0, score = score.key_norm() }
          end }, { code = { ratio = 0.9 } })
      end,
      ["keep is a list"] = function()
        return policy.by_task("headkv", { code = { ratio = 0.9 } })
      end,
    } do
      local cache <close> = assert(model:cache { policy = make() })
      local ids = helper.slice(assert(model:encode(texts.prose)), 1, 80)
      local ok, message, code = cache:prefill(ids)
      assert.is_nil(ok)
      assert.equal("policy", code)
      assert.truthy(message:find(said, 1, true), message)
    end
    assert.error_matches(function() policy.by_task("snapkv", { poems = {} }) end, "unknown option")
    assert.error_matches(function() policy.by_task("snapkv", { code = { rato = 1 } }) end, "code: ")
    assert.error_matches(function() policy.by_task("full", {}) end, "no plan of a prompt")
  end)
end)
