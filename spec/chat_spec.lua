-- Chat prompts against transformers' rendering of the models' own templates (scripts/oracle/chat.py).
local cjson = require "cjson"
local chat = require "pyramid.chat"
local helper = require "spec.helper"

local root = helper.fixture "chat/"
local golden = helper.json(root .. "golden.json")

local function options(prompt)
  return { add_generation_prompt = prompt, bos = golden.bos, eos = golden.eos, date = golden.date }
end

local families = {
  ["chatml"] = "chatml", ["qwen2"] = "chatml", ["qwen2.5"] = "chatml", ["qwen3"] = "chatml", ["smollm2"] = "chatml",
  ["llama-2"] = "llama-2", ["llama-2-vigogne"] = "llama-2", ["llama-3"] = "llama-3", ["llama-3.1"] = "llama-3",
  ["llama-3.2"] = "llama-3", ["mistral-v0"] = "mistral", ["mistral-v1"] = "mistral", ["mistral-v3"] = "mistral",
  ["mistral-v7"] = "mistral", ["mistral-nemo"] = "mistral", ["phi-3-mini"] = "phi-3", ["phi-3-small"] = "phi-3",
  ["phi-3-medium"] = "phi-3", ["phi-3-vision"] = "phi-3", ["phi-3.5"] = "phi-3", ["zephyr"] = "zephyr",
}

describe("a chat prompt equals the model's template:", function()
  for name, rows in pairs(golden.templates) do
    it(name, function()
      local template = helper.read(root .. name .. ".jinja")
      assert.equal(families[name], chat.find(template))
      for i, messages in ipairs(golden.conversations) do
        for k, prompt in ipairs { false, true } do
          local expected = rows[i][k]
          local got, message, code = chat.render(template, messages, options(prompt))
          if expected == cjson.null then
            assert.is_nil(got, "conversation " .. i)
            assert.is_string(message)
            assert.equal("argument", code)
          else
            assert.equal(expected, got, "conversation " .. i)
          end
        end
      end
    end)
  end
end)

describe("chat", function()
  it("refuses templates of no family", function()
    for _, name in ipairs { "foreign-fusionnet", "foreign-gemma-2", "foreign-qwq", "foreign-deepseek-r1-llama" } do
      local template = helper.read(root .. name .. ".jinja")
      local found, message, code = chat.find(template)
      assert.is_nil(found, name)
      assert.matches("chatml", message, 1, true)
      assert.equal("unsupported", code)
      assert.equal("unsupported", select(3, chat.render(template, golden.conversations[1])))
    end
    assert.equal("unsupported", select(3, chat.render("", golden.conversations[1])))
  end)

  it("takes a family's name", function()
    local messages = golden.conversations[4]
    for name, template in pairs { chatml = "chatml", ["llama-2"] = "llama-2", ["llama-3"] = "llama-3", zephyr = "zephyr",
      ["phi-3"] = "phi-3-vision", mistral = "mistral-v1" } do
      local expected = golden.templates[template][2][2]
      local got = assert(chat.render(name, golden.conversations[2], options(true)))
      if name == "mistral" then got = got:gsub("%[INST%]", " [INST]", 1) end
      assert.equal(expected, got, name)
      assert.is_string(chat.render(name, messages, options(true)))
    end
    assert.is_true(#chat.list() >= 6)
  end)

  it("shuts Qwen3's thinking if told so", function()
    local template = helper.read(root .. "qwen3.jinja")
    local text = chat.render(template, golden.conversations[1], { add_generation_prompt = true, thinking = false })
    assert.equal("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", text)
  end)

  it("raises on misuse", function()
    assert.has_error(function() chat.render(nil, {}) end)
    assert.has_error(function() chat.render("chatml", "hello") end)
    assert.has_error(function() chat.render("chatml", { { role = "user" } }) end)
    assert.has_error(function() chat.render("chatml", { "hello" }) end)
    assert.has_error(function() chat.render("chatml", {}, { generation = true }) end)
  end)
end)
