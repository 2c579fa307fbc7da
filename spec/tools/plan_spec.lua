-- What a model would take of several ranks, on paper: against figures that others published, and
-- against formulas. What two processes do take is measured in ranks/ranks_spec.
local core = require "pyramid.core"
local helper = require "spec.helper"
local json = require "pyramid.json"
local plan = require "pyramid.tools.plan"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"

local GB = 1e9

describe("a plan of a published shape", function()
  it("has the rows and weights of LLaMA-2-13B, and what PyramidInfer keeps of them", function()
    -- the paper's table: 32 sequences of 512 + 256 tokens on one A100 of 80 GB
    local function of(preset)
      return assert(plan.make("13b", { memory = 80 << 30, batch = 32, prompt = 512,
        generate = 256, policy = preset and pyramid.policy("pyramidinfer", { preset = preset }) }))
    end
    local full, less = of(), of "45"
    assert.equal(2 * 40 * 40 * 128 * 2, full.row_bytes)
    local kv = 32 * 768 * full.row_bytes
    assert.near(kv, full.ranks[1].rows, 0.04 * kv)          -- positions beside them, whole pages
    assert.near(20.1, kv / GB, 0.1)
    assert.near(26.03, full.ranks[1].weights / GB, 0.05)    -- 13.0 B parameters of two bytes
    assert.is_true(full.fits and less.fits)
    assert.is_true(less.largest_batch > 1.2 * full.largest_batch)
    -- what is made is kept while nothing judges it: of the prompt's rows alone the paper speaks
    local prompt = assert(plan.make("13b", { batch = 32, prompt = 512,
      policy = pyramid.policy("pyramidinfer", { preset = "45" }) }))
    assert.near(0.45, prompt.fraction, 0.02)
  end)

  it("cuts LLaMA-2-70B, Llama-3.1-405B and GPT-3 in parts that fit, or says so", function()
    for name, case in pairs {
      ["llama-2-70b"] = { 8, 80 << 30, 137.95 }, ["llama-3.1-405b"] = { 16, 80 << 30, 811.7 },
      ["gpt-3-175b"] = { 8, 80 << 30, 349.2 },
    } do
      local made = assert(plan.make(name, { ranks = case[1], memory = case[2], batch = 1 }))
      assert.is_true(made.fits, name)
      assert.equal(case[1], #made.ranks)
      local sum, embed = 0, 2 * made.config.vocab * made.config.width
      for _, rank in ipairs(made.ranks) do sum = sum + rank.weights - embed end
      -- on paper all ranks have the embeddings, of which there is one
      assert.near(case[3], (sum + embed) / GB, 0.02 * case[3], name)
    end
    local one = assert(plan.make("llama-2-70b", { ranks = 1, memory = 80 << 30, batch = 1 }))
    assert.is_false(one.fits)
    assert.equal(0, one.largest_batch)
  end)

  it("counts 192 MiB of rows where n is 2,048, d 1,024 and L 24", function()
    plan.shapes.seed = { layers = 24, width = 1024, heads = 16, kv_heads = 16, ff = 4096,
      vocab = 32000, context = 2048 }
    local made = assert(plan.make("seed", { prompt = 2048 }))
    plan.shapes.seed = nil
    assert.equal(192 << 20, 2048 * made.row_bytes)
    assert.equal((192 << 20) + 24 * 16 * (2048 * 4 + helper.lane_beside(64)), made.ranks[1].rows)
  end)
end)

describe("a plan", function()
  it("sends what the formulas say", function()
    -- docs/ranks.md: w 2,048, L 22, v 32,000, four ranks
    local made = assert(plan.make("1.1b", { ranks = 4, prompt = 400, batch = 1 }))
    local w, layers, v, n = 2048, 22, 32000, 4
    for _, rank in ipairs(made.ranks) do
      assert.equal(2 * layers * w * 4 * (n - 1) + v * 4 * (n - 1) // n + 8 * (n - 1),
        rank.step_sent)
      local formula = 400 * 2 * (layers - 1) * w * 4 * 2 * (n - 1) / n
      assert.near(formula, rank.prompt_sent, 0.01 * formula)
    end
  end)

  it("takes as long as its roofline", function()
    local hardware = { bandwidth = 100, flops = 1, link = 10, latency = 50 }
    local one = assert(plan.make("1.1b", { hardware = hardware }))
    local r = one.ranks[1]
    local held = 512 * one.row_bytes
    assert.near((r.read + held) / 100e9, one.step_seconds, 1e-9)
    local two = assert(plan.make("1.1b", { ranks = 2, hardware = hardware, batch = 4,
      generate = 10 }))
    local longest = 0
    for _, rank in ipairs(two.ranks) do
      local rows = 4 * 522 * 22 * rank.kv_heads * 2 * 64 * 2
      local flops = 4 * (2 * rank.values + 4 * rank.heads * 64 * 522 * 22)
      longest = math.max(longest, math.max((rank.read + rows) / 100e9, flops / 1e12)
        + rank.step_swaps * 50e-6 + rank.step_sent / 10e9)
    end
    assert.near(longest, two.step_seconds, 1e-9)
    assert.near(4 / longest, two.step_rate, 1e-6)
    assert.is_nil(assert(plan.make("1.1b", { ranks = 2, hardware = { bandwidth = 1,
      flops = 1 } })).step_seconds)
  end)

  it("of a file is of its own weights, and of what it is cut in", function()
    local path = helper.fixture "decoders/qwen2-moe"
    local whole = assert(plan.make(path, { prompt = 20 }))
    local model <close> = assert(pyramid.model(path, { threads = 1 }))
    assert.equal(model.handle:bytes(), whole.ranks[1].weights)
    local none, message, code = plan.make(helper.fixture "families/codellama", { ranks = 3 })
    assert.is_nil(none)
    assert.equal("unsupported", code)
    assert.matches("heads cannot be divided among 3", message)
    none, message = plan.make("models/there-is-none", {})
    assert.is_nil(none)
    assert.matches("there%-is%-none", message)
  end)

  it("is what the command prints", function()
    local out, err, status = shell.pyramid("plan", "13b", "--gpus", "2", "--memory", "80 GiB",
      "--hardware", "a100", "--json")
    assert.equal(0, status, err)
    local made = assert(json.decode(out))
    assert.equal(2, #made.ranks)
    assert.is_true(made.fits)
    assert.matches("it does not fit; the largest batch that does: 0",
      (shell.pyramid("plan", "13b", "--memory", "8 GiB")))
    out, err, status = shell.pyramid("plan", "13b", "--memory", "much")
    assert.not_equal(0, status, out)
    assert.matches("^pyramid[^\n]*: %-%-memory: 'much' is not a size[^\n]*\n$", err)
    out, err, status = shell.pyramid("plan", "13b", "--ranks", "2", "--gpus", "2")
    assert.not_equal(0, status, out)
    assert.matches("are the same", err)
  end)
end)

describe("a plan that cannot be", function()
  it("is refused by the name of what is wrong", function()
    for _, case in ipairs { { "13b", { weights = "foo" }, "%-%-weights is 'foo' %(known: " },
      { "models/tiny", { weights = "q4_k" }, "%-%-weights is 'q4_k' %(known: f32, " },
      { "13b", { ranks = 257 }, "%-%-ranks is 257, at most 256" },
      { "models/tiny", { threads = 1000 }, "%-%-threads is 1000, at most 256" } } do
      local none, message, code = plan.make(case[1], case[2])
      assert.is_nil(none)
      assert.matches(case[3], message)
      assert.equal("argument", code)
    end
    assert(plan.make("1.1b", { weights = "q4_k" }))
  end)

  it("says that a context is exceeded", function()
    local out = shell.pyramid("plan", "models/tiny", "--prompt", "8000", "--generate", "193")
    assert.matches("more than the model's context of %d+", out)
  end)
end)

it("ranks on paper compute nothing", function()
  for _, words in ipairs { "paper 2/2", "paper -1/2", "paper 1/2x", "paper 0/257" } do
    local none, message = core.runtime { ranks = words }
    assert.is_nil(none)
    assert.matches("is not known", message)
  end
  local model, message, code = pyramid.model(helper.fixture "families/qwen2",
    { ranks = "paper 0/2" })
  assert.is_nil(model)
  assert.equal("device", code)
  assert.matches("on paper alone", message)
end)
