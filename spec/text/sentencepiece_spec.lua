-- tokenizer.model: ids and texts against the sentencepiece library (golden data by
-- scripts/maker/oracle/sentencepiece_fixtures.py), and files that are wrong.
local cjson = require "cjson"
local helper = require "spec.helper"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"

local root = helper.fixture "sentencepiece/"
local cases = helper.json(helper.fixture "tokenizers/cases.json")
local golden = helper.json(root .. "golden.json")

describe("tokenizer.model", function()
  local folder
  before_each(function() folder = shell.folder() end)
  after_each(function() shell.remove(folder) end)

  local function put(bytes, files)
    helper.write(folder .. "/tokenizer.model", bytes)
    for name, content in pairs(files or {}) do
      helper.write(folder .. "/" .. name, type(content) == "table" and cjson.encode(content)
        or content)
    end
  end

  for _, name in ipairs { "bpe", "spaces", "dummy" } do
    local list = golden[name]
    it("gives the library's ids and texts: " .. name, function()
      local t <close> = assert(pyramid.tokenizer(root .. name .. ".model"))
      for i, text in ipairs(cases) do
        if list[i] ~= cjson.null and not text:find("<tool>", 1, true) then
          local what = ("case %d %q"):format(i, text:sub(1, 60))
          local ids = assert(t:encode(text, { special = false }))
          assert.same(list[i].ids, ids, what)
          local known = true                    -- the library writes " ⁇ " for what it cannot say
          for _, id in ipairs(ids) do known = known and id ~= 0 end
          if known then assert.equal(list[i].text, assert(t:decode(ids)), what) end
        end
      end
    end)
  end

  it("cuts out its user-defined pieces as the library does, and its control pieces", function()
    local t <close> = assert(pyramid.tokenizer(root .. "bpe.model"))
    local tool = t:id "<tool>"
    -- a text that begins with one gets no space before it, as transformers has it
    for _, case in ipairs(golden.pieces) do
      assert.same(case[2], assert(t:encode(case[1], { add = false })), case[1])
    end
    assert.same({ 1, tool, 2 }, t:encode "<tool></s>")
    assert.is_true(t:is_special(1) and t:is_special(2) and not t:is_special(tool))
    assert.same({ 1, { 2 }, "<s>", "</s>" }, { t.bos, t.eos, t.bos_text, t.eos_text })
  end)

  it("is used where a folder has no tokenizer.json, with the files beside it", function()
    local bytes = helper.read(root .. "bpe.model")
    put(bytes, { ["tokenizer_config.json"] = { add_bos_token = false, chat_template = "{{ x }}",
      eos_token = "<|end|>", added_tokens_decoder = { ["520"] = { content = "<|end|>",
        special = true } } } })
    local t <close> = assert(pyramid.tokenizer(folder))
    local plain = t:encode("a b", { special = false })
    assert.same(plain, t:encode "a b")
    assert.equal(521, t.vocab_size)
    assert.same({ 520, 2 }, t.eos)
    assert.equal("{{ x }}", t.chat_template)
    local ids = t:encode "a b<|end|>"
    assert.equal(520, ids[#ids])
    -- behind a token a text goes on without another space, unless the files are of the old kind
    local function behind(config)
      config.additional_special_tokens = { "<x>" }
      put(bytes, { ["tokenizer_config.json"] = config, ["added_tokens.json"] = { ["<x>"] = 520 } })
      local other <close> = assert(pyramid.tokenizer(folder))
      local list = other:encode("<x>a", { add = false })
      assert.equal(520, list[1])
      return other:piece(list[2])
    end
    assert.equal("a", behind { legacy = false })
    assert.equal("a", behind {})
    assert.equal("▁a", behind { legacy = true })
    put(bytes, { ["tokenizer_config.json"] = { add_eos_token = true, bos_token = "<tool>" } })
    local turned <close> = assert(pyramid.tokenizer(folder))
    local around = turned:encode "a"
    assert.same({ turned:id "<tool>", 2 }, { around[1], around[#around] })
    put("no protobuf", { ["tokenizer.json"] = '{"model":{"type":"BPE","vocab":{"zz":0},'
      .. '"merges":[]}}' })
    local json <close> = assert(pyramid.tokenizer(folder))
    assert.equal(0, json:id "zz")
  end)

  it("is a model's, too", function()
    local family = helper.fixture "families/llama-mha/"
    put(helper.read(root .. "bpe.model"), { ["config.json"] = helper.read(family .. "config.json"),
      ["model.safetensors"] = helper.read(family .. "model.safetensors") })
    local source = assert(require("pyramid.loaders").open(folder))
    assert.equal(folder, source.tokenizer)
  end)

  it("becomes the metadata of a GGUF file with the same ids", function()
    local entries = require("pyramid.tools.convert.tokenizer").entries
    put(helper.read(root .. "bpe.model"), { ["tokenizer_config.json"] = { legacy = true } })
    local list, warnings = entries(folder, 530)
    assert.is_true(#list > 5)
    assert.same({}, warnings)
  end)

  -- ---- made by hand -----------------------------------------------------------------------------

  local function varint(n)
    local out = ""
    while n >= 128 do
      out, n = out .. string.char(n & 127 | 128), n >> 7
    end
    return out .. string.char(n)
  end
  local function bytes_field(number, text)
    return varint(number << 3 | 2) .. varint(#text) .. text
  end
  local function int_field(number, n) return varint(number << 3) .. varint(n) end
  local function piece(text, score, kind)
    return bytes_field(1, bytes_field(1, text) .. ("<Bf"):pack(2 << 3 | 5, score or 0)
      .. (kind and int_field(3, kind) or ""))
  end
  local function model(t)
    return (t.pieces or piece("<unk>", 0, 2) .. piece("▁", -1) .. piece("a", -2) .. piece("▁a", -3))
      .. bytes_field(2, int_field(3, t.kind or 2) .. (t.trainer or ""))
      .. bytes_field(3, t.normalizer or int_field(4, 0)) .. (t.more or "")
  end
  local function refuses(bytes, word, code)
    put(bytes)
    local t, message, got = pyramid.tokenizer(folder)
    assert.is_nil(t, word)
    assert.truthy(message:find(word, 1, true), ("'%s' is not about '%s'"):format(message, word))
    assert.truthy(message:find("tokenizer.model", 1, true), message)
    assert.equal(code or "format", got)
  end

  it("is read field by field, and unknown fields are passed over", function()
    put(model { more = int_field(900, 7) .. varint(901 << 3 | 1) .. ("x"):rep(8)
      .. bytes_field(902, "abc") .. bytes_field(4, "\255") })
    local t <close> = assert(pyramid.tokenizer(folder))
    assert.same({ 3 }, t:encode("a", { add = false }))
    assert.same({ 3, 0 }, t:encode("axyz", { add = false }))
  end)

  it("is refused by name where it is of a kind that nobody has", function()
    local unigram = helper.read(root .. "unigram.model")
    refuses(unigram, "trainer_spec: model_type is unigram (known: bpe)", "unsupported")
    refuses(piece "a" .. bytes_field(2, ""), "model_type is unigram", "unsupported")
    refuses(model { kind = 3 }, "model_type is word", "unsupported")
    refuses(model { kind = 9 }, "model_type is 9", "unsupported")
    refuses(model { normalizer = bytes_field(1, "nmt_nfkc") .. bytes_field(2, "table") },
      "normalizer_spec: name is nmt_nfkc (known: identity)", "unsupported")
    refuses(model { normalizer = int_field(5, 0) }, "escape_whitespaces is false", "unsupported")
    refuses(model { trainer = int_field(24, 1) }, "treat_whitespace_as_suffix", "unsupported")
    refuses(model { more = bytes_field(5, bytes_field(2, "x")) }, "denormalizer_spec",
      "unsupported")
    refuses(model { pieces = piece("<unk>", 0, 2) .. piece("u", 0, 5) }, "piece 1, 'u', is unused",
      "unsupported")
    refuses(model { pieces = piece("<unk>", 0, 2) .. piece("<t>", 0, 4), normalizer = "" },
      "remove_extra_whitespaces beside user-defined pieces", "unsupported")
  end)

  it("is refused where it is broken", function()
    local whole = helper.read(root .. "bpe.model")
    for cut = 1, #whole - 1, 397 do
      put(whole:sub(1, cut))
      local t, _, code = pyramid.tokenizer(folder)
      assert.is_nil(t, cut)                  -- without the trainer's message it is no bpe
      assert.is_true(code == "format" or code == "unsupported")
    end
    refuses("", "no pieces")
    refuses("\10", "a number that does not end")
    refuses(("\255"):rep(20), "a number that does not end")
    refuses("\10\255\255\255\255\255\255\255\255\127x", "ends outside")
    refuses("\10\255\255\255\255\255\255\255\255\255\1x", "ends outside")
    refuses("\10\5a", "ends outside")
    refuses("\11", "wire type 3")
    refuses("\8\1", "field 1 is of wire type 0")
    refuses(bytes_field(1, int_field(1, 3)), "piece 0: field 1 is of wire type 0")
    refuses(bytes_field(1, bytes_field(1, "a") .. int_field(2, 3)), "piece 0: field 2")
    refuses(piece("a", 0, 7), "piece 0: type 7")
    refuses(piece "", "piece 0 is empty")
    refuses(piece "a" .. piece "b" .. piece "a" .. model { pieces = "" },
      "pieces 0 and 2 are both 'a'")
    refuses(model { pieces = piece("a", 0 / 0) }, "not a number")
    refuses(model { trainer = bytes_field(35, "x") }, "byte_fallback is no bool")
    refuses(model { normalizer = int_field(1, 3) }, "name is no bytes")
  end)
end)
