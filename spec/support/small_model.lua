--- A small model of random weights with a tokenizer for ASCII and a chat template, for specs of
--- hosts.
local cjson = require "cjson"
local helper = require "spec.helper"

local template = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
  .. "message['content'] + '<|im_end|>'"
  .. " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% "
  .. "endif %}"

--- Writes it into a folder that is there.
---@param folder string
return function(folder)
  for _, name in ipairs { "config.json", "model.safetensors" } do
    helper.write(folder .. "/" .. name, helper.read(helper.fixture("families/llama-mha/" .. name)))
  end
  local vocab = { ["<unk>"] = 0, ["<s>"] = 1, ["</s>"] = 2, ["Ġ"] = 3, ["Ċ"] = 4 }
  for byte = 33, 126 do vocab[string.char(byte)] = byte - 28 end
  for id = 99, 157 do vocab["ab" .. ("b"):rep(id - 99)] = id end
  vocab["<|im_start|>"], vocab["<|im_end|>"] = 158, 159
  local function special(id, text)
    return { id = id, content = text, single_word = false, lstrip = false, rstrip = false,
      normalized = false, special = true }
  end
  helper.write(folder .. "/tokenizer.json", cjson.encode {
    version = "1.0",
    added_tokens = { special(0, "<unk>"), special(1, "<s>"), special(2, "</s>"),
      special(158, "<|im_start|>"), special(159, "<|im_end|>") },
    pre_tokenizer = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true,
      use_regex = true },
    decoder = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true,
      use_regex = true },
    model = { type = "BPE", vocab = vocab, merges = { "a b", "ab b" }, unk_token = cjson.null,
      byte_fallback = false },
  })
  helper.write(folder .. "/tokenizer_config.json",
    cjson.encode { chat_template = template, bos_token = "<s>", eos_token = "<|im_end|>" })
end
