-- Every policy in policies/ on decoders with every switch: norms behind the halves of a layer, soft
-- caps, windows, two tables of RoPE or none, heads of which a part turns, parallel residuals,
-- experts. Of the decoders in spec/fixtures/decoders as few are taken as have all switches between
-- them, and others run some policies each. A fixture or a policy that joins its folder joins this
-- file. How many rows stay follows from plans; which, from a plain Lua decoder in float64.
local cjson = require "cjson"
local cli = require "pyramid.tools.cli"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local plain = require "spec.support.plain_decoder"
local plans = require "pyramid.testing.plans"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local shell = require "spec.support.shell"
local testing = require "pyramid.testing"

-- Steps after the prompt, and until which forks and files go along: triggers fire at 16 and 32.
local PROMPT, STEPS, TOGETHER = 40, 40, 18
local fixtures, names = helper.decoders(), helper.policies()

-- 89 is a prime: no id comes twice, so no two rows are alike and no score is decided by rounding.
local ids = {}
for i = 1, PROMPT + STEPS do ids[i] = i * 37 % 89 + 3 end

local models = {}
setup(function()
  for _, name in ipairs(fixtures) do
    models[name] = assert(pyramid.model(helper.decoder(name),
      { threads = 1, precision = "f32" }))
  end
end)
teardown(function()
  for _, model in pairs(models) do model:close() end
end)

-- A policy as squeezed as helper has it.
local squeezed, presets = {}, {}
for _, name in ipairs(names) do
  squeezed[name] = helper.squeezed(name)
  -- each preset with guards that let it drop something of so little
  for preset in pairs(squeezed[name].definition.presets or {}) do
    local small = { preset = preset }
    for key, value in pairs { floor = 4, exceed = 8 } do
      if squeezed[name].definition.defaults[key] then small[key] = value end
    end
    presets[#presets + 1] = { name .. ", preset " .. preset, assert(policy.load(name, small)) }
  end
end
table.sort(presets, function(a, b) return a[1] < b[1] end)

-- What a configuration has that a Llama has not: names of switches with their values, of numbers
-- that they are there. What only the MLP or the embedding knows is no matter of a policy's.
local apart = {}
for name in ([[activation activation_limit plain_mlp embed_scale residual_scale logit_scale
  logit_cap norm norm_offset dense expert_ff experts_used shared_ff router_scale router_renormalise
  groups_used]]):gmatch "%S+" do apart[name] = true end

local function switches_of(config)
  local out = {}
  for key, value in pairs(config.decoder) do
    local kind = type(value)
    if not apart[key] and value ~= 0 and value ~= false then
      out[kind == "string" and key .. " " .. value or key] = true
    end
  end
  for _, which in ipairs(config.decoder.turns or {}) do out["turns " .. which] = true end
  if config.window then out.window = true end
  if config.rope.dims < config.head_dim then out["rope in part"] = true end
  out["rope " .. config.rope.style] = true
  return out
end

-- As few fixtures as have all switches, greedily: the one that adds most comes next.
local full = {}
do
  local had, all = {}, {}
  for _, name in ipairs(fixtures) do
    all[name] = switches_of(assert(loaders.open(helper.decoder(name))).config)
  end
  repeat
    local best, most = nil, 0
    for _, name in ipairs(fixtures) do
      local adds = 0
      for switch in pairs(all[name]) do adds = adds + (had[switch] and 0 or 1) end
      if adds > most then best, most = name, adds end
    end
    for switch in pairs(best and all[best] or {}) do had[switch] = true end
    if best then full[best] = true end
  until not best
end

-- Those of a list that are a fixture's turn, of those beside these.
local others = {}
for _, name in ipairs(fixtures) do
  if not full[name] then others[#others + 1] = name end
end
local function of_turn(list, fixture)
  local out = {}
  for at, item in ipairs(list) do
    if others[at % #others + 1] == fixture then out[#out + 1] = item end
  end
  return out
end

local function shape_of(config, more)
  local out = { prompt = PROMPT, layers = config.layers, heads = config.heads,
    kv_heads = config.kv_heads, head_dim = config.head_dim }
  for key, value in pairs(more) do out[key] = value end
  return out
end

local function layer_rows(cache, config) return table.concat(cli.layer_rows(cache, config), " ") end

-- Rows of each layer after the prompt [0] and after each step, by the plans alone: the same for all
-- models of a shape. False where scores say how many, as rows of all layers compete.
local counted = {}
local function counts(name, p, config)
  local key = table.concat({ name, config.layers, config.heads, config.kv_heads, config.head_dim },
    " ")
  if counted[key] ~= nil then return counted[key] end
  local found = {}
  local ok, message = pcall(testing.run, p, shape_of(config, { steps = STEPS, scores = false,
    watch = function(run, i) found[i] = layer_rows(run, config) end }))
  if not ok and not plans.is_not_simulated(message) then error(message, 0) end
  counted[key] = ok and found
  return counted[key]
end

local function start(model, p)
  local cache = assert(model:cache { policy = p, dtype = "f32" })
  return cache, assert(cache:prefill(helper.slice(ids, 1, PROMPT)))
end

local function assert_finite(logits, what)
  for _, x in ipairs(logits:totable()) do
    if x ~= x or math.abs(x) == math.huge then error(what .. ": logits are not finite", 2) end
  end
end

local function state_of(cache, config)
  local out = { cache:tokens(), cache:evicted(), cache:computed(), cache:bytes() }
  for layer = 1, config.layers do
    for head = 1, config.kv_heads do
      out[#out + 1] = table.concat(cache:positions(layer, head), " ")
    end
  end
  return table.concat(out, "\n")
end

-- Goes back by a step, where the cache can: what is read again is the same.
local function assert_goes_back(cache, p, config, what)
  local fork <close> = assert(cache:fork())
  local first = assert(fork:step(7)):tostring()
  local done, message, code = fork:truncate(fork:tokens() - 1)
  if not done and code == "argument" then       -- windows give rows back now and then
    assert.truthy(config.window, message)
    assert.matches("sliding window", message)
  elseif not done then
    assert.equal("policy", code, message)
    assert.truthy(p.definition.trigger, message)
  elseif not p.definition.decode then
    assert.equal(first, assert(fork:step(7)):tostring(), what)
  end
end

-- A prompt that is cancelled changes nothing.
local function assert_fails(cache, config, what)
  local calls, before = 0, state_of(cache, config)
  local _, message, code = cache:prefill({ 5, 6, 7, 8 }, { progress = function()
    calls = calls + 1
    return calls > 1
  end })
  assert.equal("cancelled", code, message)
  assert.equal(before, state_of(cache, config), what .. ": cancelled")
end

-- A prompt and steps under a policy: as many rows as its plans say, finite logits; after ten steps
-- a fork, a file and a prompt that is cancelled, and all go on alike, bit for bit.
local function assert_runs(fixture, name, p, path)
  local model, what = models[fixture], fixture .. ", " .. name
  local config, want = model.config, counts(name, p, model.config)
  local cache <close>, logits = start(model, p)
  local along = {}
  if want then
    assert.equal(want[0], layer_rows(cache, config), what .. ": prompt")
  else
    -- Layers share a budget, which all of them together hold; passes leave layers with a sliding
    -- window alone. Where scores say how many rows stay of each layer, nothing is known before.
    local ratio = p.options.ratio or cache:fraction()
    assert.near(ratio, cache:fraction(), config.window and 0.4 or 0.1, what)
  end
  assert_finite(logits, what)
  for i = 1, STEPS do
    if i == 11 then
      assert_goes_back(cache, p, config, what)
      assert(cache:save(path))
      along = { assert(cache:fork()),
        assert(model:load_cache(path, { policy = p, dtype = "f32" })) }
      assert_fails(cache, config, what)
    end
    logits = assert(cache:step(ids[PROMPT + i]))
    if want and want[i] ~= layer_rows(cache, config) then
      error(("%s: step %d: rows %s, should be %s"):format(what, i, layer_rows(cache, config),
        want[i]))
    end
    for _, other in ipairs(along) do
      local again = assert(other:step(ids[PROMPT + i]))
      if i == TOGETHER then
        assert.equal(logits:tostring(), again:tostring(), what)
        assert.equal(state_of(cache, config), state_of(other, config), what)
        other:close()
      end
    end
    if i == TOGETHER then along = {} end
  end
  assert_finite(logits, what)
end

-- ---- which rows stay ----------------------------------------------------------------------------

local weights = {}

-- The core keeps what the simulation keeps with a plain decoder's attention, keys and values.
local function assert_simulated(fixture, p, n, steps)
  local model = models[fixture]
  weights[fixture] = weights[fixture] or plain.open(helper.decoder(fixture))
  local config, source = model.config, plain.source(weights[fixture], ids)
  local run = testing.run(p, shape_of(config, { prompt = n, steps = steps, attend = source.attend,
    keys = source.keys, values = source.values, outputs = source.outputs,
    tokens = function(position) return ids[position + 1] end,
    expected = source.expected }))
  local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
  local function compare(want, when)
    for layer = 1, config.layers do
      for head = 1, config.kv_heads do
        helper.assert_positions(want[layer][head], cache:positions(layer, head),
          ("%s, %s, %s, layer %d, head %d"):format(fixture, p.name, when, layer, head))
      end
    end
  end
  local logits = assert(cache:prefill(helper.slice(ids, 1, n)))
  compare(run.prefill, "prompt")
  for i = n + 1, n + steps do logits = assert(cache:step(ids[i])) end
  compare(run, "generation")
  helper.assert_near(logits, source.logits(n + steps - 1), fixture .. ", " .. p.name)
  assert.equal(run:evicted(), cache:evicted())
  assert.equal(run:computed(), cache:computed())
end

-- What knows of switches, on every fixture: attention, of a prompt and of steps; moments of queries
-- before they turn, and W_o. The bundled policies take turns, each on one.
local everywhere = {
  assert(policy.load("pyramidinfer", { floor = 4, exceed = 4, ratio = 0.4 })),
  policy { name = "outlook", defaults = {}, prefill = function(_, l)
    return { keep = l.rows // 2, share = "head", guard = { first = 1, last = 1 },
      score = score.expected { future = 16, sinks = 1 } * score.output_norm() }
  end },
}

for _, fixture in ipairs(fixtures) do
  describe("policies on " .. fixture, function()
    local path, turn = nil, of_turn(names, fixture)
    if #turn == 0 then turn = { "pyramidinfer" } end
    setup(function() path = helper.tmp() end)
    teardown(function() os.remove(path) end)

    it("run, and fork, save, go back and fail as anywhere", function()
      for _, name in ipairs(full[fixture] and names or turn) do
        assert_runs(fixture, name, squeezed[name], path)
      end
      for _, preset in ipairs(of_turn(presets, fixture)) do
        assert_runs(fixture, preset[1], preset[2], path)
      end
    end)

    it("keep all where they are told to, and then are the golden logits", function()
      local golden = helper.json(helper.fixture("decoders/" .. fixture) .. "/golden.json")
      local bytes = helper.read(helper.fixture("decoders/" .. fixture) .. "/golden.bin")
      local sequence = golden.sequences[#golden.sequences]
      local n, vocab = sequence.shape[1], sequence.shape[2]
      local want = helper.floats(bytes, sequence.offset + 4 * vocab * (n - 1), vocab)
      for _, name in ipairs(full[fixture] and names or { "pyramidinfer" }) do
        local p = assert(policy.load(name))
        if p.options.ratio then
          p = p:with { ratio = 1, handed = p.options.handed and 1 or nil }
          local cache <close> = assert(models[fixture]:cache { policy = p, dtype = "f32" })
          helper.assert_near(assert(cache:prefill(sequence.ids)), want, fixture .. ", " .. name)
        end
      end
    end)

    it("keep the top of true scores, head by head", function()
      for _, p in ipairs(full[fixture] and everywhere or {}) do
        assert_simulated(fixture, p, 20, 8)
      end
      -- What passes look at is held to kvpress, in spec/policies/kvzip_spec.lua.
      for _, name in ipairs(full[fixture] and {} or turn) do
        -- GPT-Neo does not scale its scores: what 512 positions are expected to give is, but for
        -- one row, less than the least f32, where the simulation's float64 still ranks it.
        local vanishes = fixture == "gpt-neo" and name == "expected_attention"
        if not squeezed[name].definition.prepare and not vanishes then
          assert_simulated(fixture, squeezed[name], 20, 8)
        end
      end
    end)
  end)
end

describe("policies on decoders", function()
  it("turn keys to places within the cache, where positions are turned by", function()
    for _, case in ipairs { { "gpt-neox" }, { "phi3" }, { "gemma" }, { "ministral3" },
      { "gemma3" },
      { "gpt2", "rotate cannot be \"compact\" in a model that learned its positions" } } do
      local fixture, refused = case[1], case[2]
      local p = assert(policy.load("streaming", { rows = 16, rotate = true }))
      if not refused then
        -- heads that choose their own rows, as many as each other
        assert_simulated(fixture, policy.endless(policy.load("h2o", { rows = 16 })), 20, 8)
        assert_simulated(fixture, policy.endless(policy.load("tova", { rows = 16 })), 20, 8)
      end
      if refused then
        local cache <close> = assert(models[fixture]:cache { policy = p, dtype = "f32" })
        local logits, message, code = cache:prefill(helper.slice(ids, 1, PROMPT))
        assert.is_nil(logits, fixture)
        assert.equal("policy", code, message)
        assert.truthy(message:find(refused, 1, true), message)
        assert.equal(0, cache:tokens())
      else
        assert_simulated(fixture, p, 20, 8)
      end
    end
  end)

  -- The same weights under another configuration: rows would mean something else.
  it("do not go on from files of a model of other arithmetic", function()
    local saved = {}
    for _, case in ipairs {
      { "gemma3", "layer_types", { "full_attention", "full_attention", "sliding_attention" } },
      { "gemma2", "attn_logit_softcapping", 5 }, { "gemma2", "final_logit_softcapping", 1 },
      { "gemma2", "query_pre_attn_scalar", 16 }, { "gemma2", "sliding_window", 20 },
      { "starcoder2", "sliding_window", cjson.null }, { "starcoder2", "hidden_act", "gelu" },
      { "granite", "residual_multiplier", 0.7 }, { "granite", "embedding_multiplier", 5 },
      { "mixtral", "num_experts_per_tok", 3 }, { "qwen2-moe", "norm_topk_prob", true },
      { "gpt-neox", "use_parallel_residual", false }, { "granite", "rms_norm_eps", 1e-3 },
      { "ministral3", "rope_parameters", "llama_4_scaling_beta", 0.5 },
    } do
      local fixture, key, path = case[1], case[2], saved[case[1]]
      if not path then
        path = helper.tmp()
        local cache <close> = assert(models[fixture]:cache { policy = "full", dtype = "f32" })
        assert(cache:prefill(helper.slice(ids, 1, PROMPT)))
        assert(cache:save(path))
        saved[fixture] = path
        local again <close> = assert(models[fixture]:load_cache(path,
          { policy = "full", dtype = "f32" }))
        assert.equal(PROMPT, again:tokens())
      end
      local folder, source = shell.folder(), helper.fixture("decoders/" .. fixture)
      local config = helper.json(source .. "/config.json")
      if case[4] then config[key][case[3]] = case[4] else config[key] = case[3] end
      helper.write(folder .. "/config.json", cjson.encode(config))
      helper.write(folder .. "/model.safetensors", helper.read(source .. "/model.safetensors"))
      local other <close> = assert(pyramid.model(folder))
      local loaded, message, code = other:load_cache(path, { policy = "full", dtype = "f32" })
      assert.is_nil(loaded, fixture .. ", " .. key)
      assert.equal("format", code)
      assert.truthy(message:find(path .. ": arithmetic is that of another model", 1, true), message)
      shell.remove(folder)
    end
    for _, path in pairs(saved) do os.remove(path) end
  end)
end)
