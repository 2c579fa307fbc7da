-- Models that Pyramid does not have are refused with the reason, in both formats.
local cjson = require "cjson"
local families = require "pyramid.families"
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local refused = require "pyramid.loaders.refused"
local shell = require "spec.support.shell"

describe("models that are refused with a reason", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  it("are no families", function()
    for name in pairs(refused.reasons) do assert.is_nil(families.find(name), name) end
    for _, name in ipairs(families.gguf_list()) do assert.equal("", refused.why(name), name) end
  end)

  it("are named in folders", function()
    helper.write(folder .. "/config.json",
      cjson.encode { model_type = "apertus", architectures = { "ApertusForCausalLM" } })
    local source, message, code = loaders.open(folder)
    assert.is_nil(source)
    assert.equal("unsupported", code)
    assert.equal(1, (message:find(folder .. "/config.json: model_type apertus, architectures "
      .. "ApertusForCausalLM: its activation is xIELU (known families: ", 1, true)), message)
  end)

  it("are named in GGUF files", function()
    for arch, reason in pairs { ["hunyuan-dense"] = refused.reasons.hunyuan_v1_dense,
      deepseek2 = refused.reasons.deepseek_v3, apertus = refused.reasons.apertus } do
      local path = folder .. "/model.gguf"
      helper.write(path, formats.gguf { metadata = { formats.kv("general.architecture", "string",
        arch) } })
      local source, message, code = loaders.open(path)
      assert.is_nil(source)
      assert.equal("unsupported", code)
      assert.equal(1, (message:find(("%s: architecture %s: %s (known: "):format(path, arch,
        reason), 1, true)), message)
    end
  end)

  it("are known by fields that such models share", function()
    for _, case in ipairs {
      { { state_size = 16 }, refused.reasons.mamba .. " (state_size)" },
      { { kv_lora_rank = 512, n_routed_experts = 8 },
        refused.reasons.deepseek_v3 .. " (kv_lora_rank)" },
      { { is_encoder_decoder = true }, "its layers attend to an encoder's output "
        .. "(is_encoder_decoder)" },
      { { layer_types = { "full_attention", "linear_attention" } },
        refused.reasons.mamba .. " (layer_types: linear_attention)" },
      { { num_local_experts = 8 },
        "it is a mixture of experts of a kind that no family has (num_local_experts)" },
    } do
      case[1].model_type = "stranger"
      helper.write(folder .. "/config.json", cjson.encode(case[1]))
      local source, message, code = loaders.open(folder)
      assert.is_nil(source)
      assert.equal("unsupported", code)
      local wanted = ("%s/config.json: model_type stranger: %s (known families: "):format(folder,
        case[2])
      assert.equal(wanted, message:sub(1, #wanted))
    end
  end)

  it("may have any fields", function()
    for _, c in ipairs {
      {}, { kv_lora_rank = cjson.null }, { state_size = 0 }, { is_encoder_decoder = false },
      { layer_types = 5 }, { layer_types = { 7, {}, true } }, { num_experts = "x" },
      { num_experts = 1 }, { num_experts = 1.5 },
    } do
      assert.equal("", refused.why("stranger", c))
    end
  end)

  it("have no reason where nobody wrote one", function()
    assert.equal("", refused.why "somethingelse")
  end)
end)
