-- What `pyramid inspect` says of model files and policies, as a library and as a program.
local helper = require "spec.helper"
local cjson = require "cjson"
local formats = require "spec.support.formats"
local inspect = require "pyramid.tools.inspect"
local make_model = require "spec.support.small_model"
local policy = require "pyramid.policy"
local shell = require "spec.support.shell"

describe("inspect.model", function()
  it("describes a directory", function()
    local model = assert(inspect.model(helper.fixture "families/qwen2-untied"))
    assert.equal("hf", model.format)
    assert.is_nil(model.problem)
    assert.equal("qwen2", model.config.family)
    assert.equal(#model.tensors, model.tensor_count)
    assert.equal(3 + 3 * 12, model.tensor_count)
    assert.equal(1, #model.totals)
    assert.equal("bf16", model.totals[1].dtype)
    assert.equal(model.bytes, model.totals[1].bytes)
    assert.equal(model.bytes, 2 * model.values)
    for _, t in ipairs(model.tensors) do assert.is_string(t.role) end
  end)

  it("describes a GGUF file, by dtype", function()
    local model = assert(inspect.model(helper.fixture "gguf/kquants.gguf"))
    local sum = 0
    for i, t in ipairs(model.totals) do
      sum = sum + t.bytes
      assert.is_true(i == 1 or t.bytes <= model.totals[i - 1].bytes)
    end
    assert.equal(model.bytes, sum)
    assert.equal("kquants.gguf", model.metadata["general.name"])
  end)

  it("describes what cannot be loaded, and says why", function()
    local model = assert(inspect.model(helper.fixture "gguf/dtypes.gguf"))
    assert.is_nil(model.config)
    assert.truthy(model.problem:find("architecture none", 1, true))
    assert.same({ count = 3 }, model.metadata["test.strings"])
    model = assert(inspect.model(helper.fixture "families/qwen3/model.safetensors"))
    assert.equal("safetensors", model.format)
    assert.is_string(model.problem)
  end)

  it("says what the user should know of a tokenizer, once, and where it cannot be read", function()
    local folder = shell.folder()
    local _ <close> = setmetatable({}, { __close = function() shell.remove(folder) end })
    local tokens, types, kv = {}, {}, {}
    for id = 0, 175 do
      tokens[id + 1], types[id + 1] = id < 94 and string.char(33 + id)
        or "ab" .. ("b"):rep(id - 94), 1
    end
    tokens[101] = "<|im_end|>"
    for _, entry in ipairs { { "model", "string", "gpt2" }, { "pre", "string", "gpt-2" },
      { "tokens", "array:string", tokens }, { "token_type", "array:u32", types },
        { "merges", "array:string", { "a b", "ab b" } } } do
      local key = "tokenizer.ggml." .. entry[1]
      kv[key] = formats.kv(key, entry[2], entry[3])
    end
    local path = folder .. "/odd.gguf"
    helper.write(path, formats.gguf(formats.gguf_of("codellama", "f32", kv)))
    local said = "token 100, '<|im_end|>', is not marked as a control token"
    local told = assert(inspect.model(path))
    assert.is_nil(told.problem)
    assert.equal(1, #told.warnings)
    assert.matches(said, told.warnings[1], 1, true)
    helper.write(folder .. "/text", "abcabc")
    for _, words in ipairs { {}, { "--policy", "full", "--prompt-file", folder .. "/text" } } do
      local _, err, status = shell.pyramid("inspect", path, table.unpack(words))
      assert.equal(0, status, err)
      assert.equal(1, select(2, err:gsub("is not marked", "")), err)
    end
    make_model(folder)
    assert.same({}, assert(inspect.model(folder)).warnings)
    helper.write(folder .. "/tokenizer.json", "{}")
    local model = assert(inspect.model(folder))
    assert.equal("llama", model.config.family)
    assert.matches("tokenizer.json", model.problem)
    local out, err, status = shell.pyramid("inspect", folder)
    assert.equal(0, status)
    assert.equal("", err)
    assert.matches("\ncannot be loaded: [^\n]*tokenizer.json", out)
  end)

  it("fails for what is no model", function()
    local model, message, code = inspect.model "/nowhere"
    assert.is_nil(model)
    assert.equal("io", code)
    assert.truthy(message:find "/nowhere")
    model, message, code = inspect.model "spec/helper.lua"
    assert.is_nil(model)
    assert.equal("format", code)
    assert.is_string(message)
  end)
end)

describe("inspect.policy", function()
  local config = { layers = 4, heads = 8, kv_heads = 2, head_dim = 64 }

  it("adds up what the plans keep", function()
    local made = inspect.policy(config, assert(policy.load "full"), 1000)
    assert.equal(1, made.fraction)
    assert.equal(4 * 1000 * 2 * 2 * 64 * 2, made.bytes)
    assert.equal(made.full_bytes, made.bytes)
    made = inspect.policy(config, assert(policy.load("snapkv", { ratio = 0.25 })), 1000, "q8_0")
    assert.equal(0.25, made.fraction)
    assert.equal(4 * 250 * 2 * 2 * 64 * 34 // 32, made.bytes)
    assert.equal(1, made.computed)
    made = inspect.policy(config, assert(policy.load "pyramidinfer"), 1000)
    assert.equal(1000, made.layers[1].computed)
    assert.is_true(made.layers[4].computed < 1000)
    assert.is_true(made.computed < 1)
  end)

  it("refuses nonsense", function()
    local full = assert(policy.load "full")
    assert.has_error(function() inspect.policy(config, full, 0) end)
    assert.has_error(function() inspect.policy(config, full, 1.5) end)
    assert.has_error(function() inspect.policy(config, full, 10, "q4_k") end)
  end)
end)

describe("pyramid inspect", function()
  local family = helper.fixture "families/mistral"

  it("prints a table", function()
    local out, err, status = shell.pyramid("inspect", family, "--tensors")
    assert.equal("", err)
    assert.equal(0, status)
    for _, word in ipairs { "family     mistral", "64 positions in 3 of 3 layers",
      "lm_head.weight", "160 x 64" } do
      assert.truthy(out:find(word, 1, true), word)
    end
  end)

  it("prints what a policy would keep", function()
    local out, err, status = shell.pyramid("inspect", family, "--length", "200", "--policy",
      "snapkv", "ratio=0.25")
    assert.equal("", err)
    assert.equal(0, status)
    assert.truthy(out:find("25.0 % of the rows", 1, true))
    assert.truthy(out:find("layer   3", 1, true))
  end)

  it("prints JSON", function()
    local out, err, status = shell.pyramid("inspect", family, "--json", "--length", "200",
      "--policy", "full")
    assert.equal("", err)
    assert.equal(0, status)
    local told = cjson.decode(out)
    assert.equal("mistral", told.config.family)
    assert.equal(30, told.tensor_count)
    assert.is_nil(told.tensors)
    assert.equal(200, told.forecast.layers[3].rows)
    told = cjson.decode((shell.pyramid("inspect", family, "--json", "--tensors")))
    assert.equal(30, #told.tensors)
  end)

  it("says where a policy failed, and where the default model would be", function()
    local path = os.tmpname()
    helper.write(path .. ".lua", [[return require "pyramid.policy" { name = "broken",
      prefill = function(_, l) if l.index == 2 then error("no more", 0) end end }]])
    local _, err, status = shell.pyramid("inspect", family, "--policy-file", path .. ".lua")
    os.remove(path .. ".lua")
    os.remove(path)
    assert.equal("pyramid inspect: policy broken, layer 2, prefill: no more\n", err)
    assert.equal(1, status)
    local program = io.popen("realpath " .. shell.quote(shell.program)):read "l"
    _, err = shell.run(("mkdir -p %s/bin && cp %s %s/bin && cd %s && env -u PYRAMID_PATH "
      .. "bin/pyramid inspect")
      :format(path, shell.quote(program), path, path))
    shell.remove(path)
    assert.matches("^pyramid inspect: there is no model 'models/tiny'\nThe default model "
      .. "lies.*\nGive MODEL: ", err)
  end)

  it("fails in a line", function()
    for _, words in ipairs { { "/nowhere" }, { family, "--policy", "none" },
      { family, "--policy", "snapkv", "rato=1" }, { family, "--policy", "snapkv", "ratio=x" },
        { family, "--policy", "full", "--length", "0" },
          { helper.fixture "gguf/dtypes.gguf", "--policy", "full" } } do
      local out, err, status = shell.pyramid("inspect", table.unpack(words))
      assert.equal("", out)
      assert.equal(1, status)
      assert.matches("^pyramid inspect: [^\n]+\n", err)
      assert.not_matches("traceback", err)
    end
  end)
end)
