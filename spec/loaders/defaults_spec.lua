-- What config.json means where it is silent: each family's `defaults` are those of its class in
-- Hugging Face transformers, and a field that nobody has a default for is asked for by name.
local cjson = require "cjson"
local core = require "pyramid.core"
local families = require "pyramid.families"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local shell = require "spec.support.shell"

-- As the classes of transformers have them (scripts/maker/oracle/decoders.py); a family without a
-- class there states its own here.
local published = helper.json(helper.fixture "decoders" .. "/defaults.json")
published.minicpm = { rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000,
  scale_emb = 1, scale_depth = 1, dim_model_base = 1, tie_word_embeddings = true }
published.internlm2 = { rms_norm_eps = 1e-6, max_position_embeddings = 2048, rope_theta = 10000,
  bias = true }

-- Families by a fixture of theirs in which these defaults can be told apart.
local fixtures = { llama = "llama-mha", mistral = "mistral", qwen2 = "qwen2", qwen3 = "qwen3" }

-- What a loaded configuration says of a field.
local loaded = {
  rms_norm_eps = function(c) return c.norm_eps end,
  max_position_embeddings = function(c) return c.context end,
  rope_theta = function(c) return c.rope.base end,
  num_key_value_heads = function(c) return c.kv_heads end,
  head_dim = function(c) return c.head_dim end,
  sliding_window = function(c) return c.window[c.layers] end,
  max_window_layers = function(c)                  -- layers before the first that slides
    for i = 1, c.layers do
      if c.window[i] > 0 then return i - 1 end
    end
  end,
}

local function bundled()
  local names = {}
  for _, name in ipairs(families.list()) do
    if core.bundled("module", "pyramid.families." .. name) then names[#names + 1] = name end
  end
  return names
end

describe("defaults of a family", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  -- A configuration that is large enough for published defaults; its tensors are not bound.
  local function put(fixture, without)
    local dir = helper.fixture("families/" .. fixture)
    local config = helper.json(dir .. "/config.json")
    config.num_hidden_layers, config.num_attention_heads, config.hidden_size = 30, 64, 64 * 16
    config.num_key_value_heads, config.sliding_window = 16, 99
    config.max_window_layers, config.use_sliding_window = 3, true
    for _, key in ipairs(without) do config[key] = nil end
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/model.safetensors", helper.read(dir .. "/model.safetensors"))
    return loaders.open(folder)
  end

  for _, name in ipairs(bundled()) do
    local family = families.find(name)

    it("are the published ones: " .. name, function()
      local known = assert(published[name], "spec/fixtures/decoders/defaults.json has no " .. name)
      for key, value in pairs(family.defaults) do
        assert.equal(known[key], value, ("%s.%s"):format(name, key))
      end
    end)
  end

  for name, fixture in pairs(fixtures) do
    local family = families.find(name)

    it("stand for what config.json leaves out: " .. name, function()
      local all = {}
      for key, value in pairs(family.defaults) do
        all[#all + 1] = key
        local of = assert(loaded[key], "spec/loaders/defaults_spec.lua: loaded has no " .. key)
        assert.not_equal(value, key ~= "rope_theta" and key ~= "rms_norm_eps"
          and of(assert(put(fixture, {})).config))
        assert.equal(value, of(assert(put(fixture, { key })).config), key)
      end
      local config = assert(put(fixture, all)).config
      for key, value in pairs(family.defaults) do assert.equal(value, loaded[key](config), key) end
    end)
  end

  it("do not stand for a null that switches a window off", function()
    local dir = helper.fixture "families/mistral"
    local config = helper.json(dir .. "/config.json")
    config.sliding_window = cjson.null
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/model.safetensors", helper.read(dir .. "/model.safetensors"))
    assert.is_nil(assert(loaders.open(folder)).config.window)
  end)

  it("may be missing: then the field is asked for", function()
    if not families.find "silent" then
      families.register(families.family { name = "silent",
        architectures = { "SilentForCausalLM" } })
    end
    local dir = helper.fixture "families/llama-mha"
    for _, key in ipairs { "rope_theta", "rms_norm_eps", "max_position_embeddings",
      "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
      "vocab_size" } do
      for _, value in ipairs { false, cjson.null } do
        local config = helper.json(dir .. "/config.json")
        config.model_type, config.architectures = "silent", { "SilentForCausalLM" }
        config[key] = value or nil
        helper.write(folder .. "/config.json", cjson.encode(config))
        helper.write(folder .. "/model.safetensors", helper.read(dir .. "/model.safetensors"))
        local source, message, code = loaders.open(folder)
        assert.is_nil(source, key)
        assert.equal(("%s/config.json: %s is missing"):format(folder, key), message)
        assert.equal("format", code)
      end
    end
  end)
end)
