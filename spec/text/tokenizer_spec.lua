-- Tokenizers against the libraries that define them: golden ids of
-- scripts/maker/oracle/tokenizer_fixtures.py, and files that are wrong.
local cjson = require "cjson"
local core = require "pyramid.core"
local helper = require "spec.helper"
local pyramid = require "pyramid"

local null = cjson.null
local root = helper.fixture "tokenizers/"
local cases = helper.json(root .. "cases.json")

local function golden_of(name)
  local golden = helper.json(root .. name .. "/golden.json")
  return golden.same_as and golden_of(golden.same_as) or golden
end

local function path_of(name)
  return root .. name .. (name:find "^gguf" and "/vocab.gguf" or "")
end

--- Fails with the text and the first place where ids differ.
local function same_ids(expected, got, t, what)
  for i = 1, math.max(#expected, #got) do
    if expected[i] ~= got[i] then
      local function around(ids)
        local out = {}
        for k = math.max(1, i - 2), math.min(#ids, i + 4) do
          out[#out + 1] = ("%d %q"):format(ids[k], t:piece(ids[k]))
        end
        return table.concat(out, ", ")
      end
      error(("%s: ids differ at %d\nexpected … %s\ngot      … %s"):format(what, i,
        around(expected), around(got)), 2)
    end
  end
end

local names = {
  "gpt2", "gpt2-prefix", "llama3", "qwen2", "deepseek-coder", "deepseek-v3", "starcoder", "falcon",
    "tekken", "cl100k", "kimi",
  "added", "lower", "nfkc", "nfkd", "removed", "previous", "next", "contiguous", "empty-match",
    "bert", "delimiter",
  "llama2-legacy", "llama2", "mistral-always", "metaspace-never", "metaspace-decoder", "phi3",
    "unk", "unk-fused", "dropped",
  "gguf-gpt2", "gguf-llama3", "gguf-qwen2", "gguf-starcoder", "gguf-deepseek-coder",
    "gguf-deepseek-v3", "gguf-tekken",
  "gguf-spm", "gguf-spm-noprefix",
}

describe("token ids equal the library's:", function()
  for _, name in ipairs(names) do
    it(name, function()
      local t <close> = assert(pyramid.tokenizer(path_of(name)))
      local golden = golden_of(name)
      for i, text in ipairs(cases) do
        local what = ("%s, case %d %q"):format(name, i, text:sub(1, 60))
        local plain = golden.plain[i]
        if plain ~= null then
          local got = assert(t:encode(text, { special = false }))
          same_ids(plain, got, t, what .. ", plain")
          local back = golden.text[i] == null and text or golden.text[i]
          assert.equal(back, assert(t:decode(got)), what)
        end
        if golden.ids then
          local ids = golden.ids[i] == null and plain or golden.ids[i]
          -- a text that begins with BOS itself: the library puts a second one before it, which no
          -- model has seen
          local twice = t.bos and ids[1] == t.bos and ids[2] == t.bos
          if twice then ids = helper.slice(ids, 2) end
          local got = assert(t:encode(text))
          same_ids(ids, got, t, what)
          if golden.shown[i] ~= null and not twice then
            assert.equal(golden.shown[i], assert(t:decode(got)), what)
          end
        end
      end
      for _, pair in ipairs(golden.random) do
        assert.equal(pair[2], assert(t:decode(pair[1])), name .. ": " .. table.concat(pair[1], " "))
      end
    end)
  end
end)

describe("decoding while ids come in", function()
  for _, name in ipairs { "llama3", "llama2-legacy", "gpt2-prefix", "gguf-spm", "dropped" } do
    it("gives whole characters, and all of the text: " .. name, function()
      local t <close> = assert(pyramid.tokenizer(path_of(name)))
      for _, text in ipairs(cases) do
        local ids, out = t:encode(text), {}
        local d <close> = t:decoder()
        for i, id in ipairs(ids) do
          out[i] = assert(d:push(id))
          assert.is_truthy(utf8.len(out[i]), "a character was cut")
        end
        out[#out + 1] = d:finish()
        assert.equal(t:decode(ids), table.concat(out))
      end
    end)
  end

  it("puts U+FFFD for what forms no character, as Unicode says", function()
    local t <close> = assert(pyramid.tokenizer(path_of "gpt2"))
    local R = "\u{fffd}"
    local function through(bytes)
      local d <close> = t:decoder()
      local out = ""
      for i = 1, #bytes do
        local id = assert(t:encode(bytes:sub(i, i), { special = false }))
        assert.equal(1, #id)
        out = out .. d:push(id[1])
        assert.is_truthy(utf8.len(out))
      end
      out = out .. d:finish()
      assert.equal(out, t:decode(t:encode(bytes, { special = false })))
      return out
    end
    assert.equal("a" .. R .. "b", through "a\x80b")
    assert.equal(R .. R, through "\xC0\xAF")
    assert.equal(R .. "A", through "\xE1\x80A")
    assert.equal(R .. R .. R, through "\xED\xA0\x80")
    assert.equal(R .. R .. R .. R, through "\xF4\x90\x80\x80")
    assert.equal(R, through "\xF0\x9F\x98")
    assert.equal(R .. "é", through "\xF0\x9Fé")
    assert.equal(R .. R .. R .. "\u{10ffff}", through "\xF5\xFF\xFE\u{10ffff}")
  end)

  it("keeps good characters beside bad bytes in byte fallback", function()
    local t <close> = assert(pyramid.tokenizer(path_of "llama2-legacy"))
    local byte = function(b) return assert(t:id(("<0x%02X>"):format(b))) end
    local ids = { byte(0xE4), byte(0xBD), byte(0xA0), byte(0xE5), byte(0x41) }
    assert.equal("你\u{fffd}A", t:decode(ids))
    assert.equal("\xE4\xBD\xA0\xE5A", t:decode(ids, { raw = true }))
  end)

  it("keeps the first space where the text goes on", function()
    local t <close> = assert(pyramid.tokenizer(path_of "llama2-legacy"))
    local ids = t:encode("keeper of", { special = false })
    local function all(given)
      local d <close> = t:decoder(given)
      local out = ""
      for _, id in ipairs(ids) do out = out .. d:push(id) end
      return out .. d:finish()
    end
    assert.equal("keeper of", all())
    assert.equal(" keeper of", all { continues = true })
  end)

  it("leaves special tokens out if asked", function()
    local t <close> = assert(pyramid.tokenizer(path_of "llama3"))
    local ids = t:encode("x<|eot_id|> y")
    assert.equal("<|begin_of_text|>x<|eot_id|> y", t:decode(ids))
    assert.equal("x y", t:decode(ids, { skip_special = true }))
    local d <close> = t:decoder { skip_special = true }
    assert.equal("", d:push(ids[1]))
  end)
end)

describe("bytes that are not UTF-8", function()
  for _, name in ipairs { "gpt2", "llama3", "qwen2", "falcon", "llama2-legacy",
    "gguf-spm-noprefix" } do
    it("come back through " .. name, function()
      local t <close> = assert(pyramid.tokenizer(path_of(name)))
      for _, bytes in ipairs { "\xFF", "a\x80b", "\xE4\xBD", "caf\xC3", "\xF0\x9F\x98",
        "x\xC0\x80y\xED\xA0\x80z", "\xFE\xFF\xFE" } do
        local ids = assert(t:encode(bytes, { special = false }))
        local back = assert(t:decode(ids, { raw = true }))
        -- a piece of text after the bytes is a beginning of its own, and may get SentencePiece's
        -- space
        if name == "llama2-legacy" then back = back:gsub(" ", "") end
        assert.equal(bytes, back)
        assert.is_truthy(utf8.len(t:decode(ids)))
      end
    end)
  end
end)

describe("the tokenizer object", function()
  local t
  before_each(function() t = assert(pyramid.tokenizer(path_of "llama3")) end)
  after_each(function() t:close() end)

  it("knows pieces and ids both ways", function()
    for id = 0, t.vocab_size - 1 do
      assert.equal(id, t:id(assert(t:piece(id))))
    end
    assert.is_nil(t:piece(-1))
    assert.is_nil(t:piece(t.vocab_size))
    assert.is_nil(t:id "no such piece")
    assert.is_nil(t:id "\xFF")
    assert.is_true(t:is_special(t:id "<|eot_id|>"))
    assert.is_false(t:is_special(0))
  end)

  it("adds and parses as it is told", function()
    local bos = t:id "<|begin_of_text|>"
    assert.equal(bos, t.bos)
    local plain = t:encode("a<|eot_id|>", { special = false })
    assert.same({ bos, t:id "a", t:id "<|eot_id|>" }, t:encode "a<|eot_id|>")
    assert.same({ t:id "a", t:id "<|eot_id|>" }, t:encode("a<|eot_id|>", { add = false }))
    assert.same({ bos, t:id "a", t:id "<|eot_id|>" },
      t:encode("a<|eot_id|>", { add = false, bos = true }))
    assert.same({ t:id "a", t:id "<|eot_id|>" }, t:encode("a<|eot_id|>", { bos = false }))
    assert.equal("a<|eot_id|>", t:decode(plain))
    assert.is_true(#plain > 3)
    assert.same({}, t:encode("", { special = false }))
    assert.equal("", t:decode {})
  end)

  it("refuses misuse", function()
    assert.has_error(function() t:encode("x", { specials = true }) end)
    assert.has_error(function() t:encode(nil) end)
    assert.has_error(function() t:decode { "x" } end)
    assert.has_error(function() t:decode { 1.5 } end)
    assert.has_error(function() pyramid.tokenizer() end)
    assert.has_error(function() pyramid.tokenizer(path_of "gpt2", { nonsense = 1 }) end)
    for _, id in ipairs { -1, t.vocab_size, 1 << 31, 1 << 40, math.mininteger } do
      local text, message, code = t:decode { 0, id }
      assert.is_nil(text)
      assert.matches("not in the vocabulary", message)
      assert.equal("argument", code)
    end
  end)

  it("closes more than once, and its decoders live on", function()
    local d = t:decoder()
    t:close()
    t:close()
    assert.has_error(function() t:encode "x" end)
    assert.equal("a", d:push(64))
    assert.is_nil(select(1, d:push(-5)))
    d:close()
    d:close()
    assert.has_error(function() d:push(1) end)
  end)

  it("is the same from its file, its folder, and with a slash behind", function()
    for _, path in ipairs { root .. "llama3/tokenizer.json", root .. "llama3/" } do
      local other <close> = assert(pyramid.tokenizer(path))
      assert.same(t:encode "Hello it's 12345", other:encode "Hello it's 12345")
    end
  end)
end)

describe("files beside tokenizer.json", function()
  local dir
  local function write(name, value)
    helper.write(dir .. "/" .. name, type(value) == "string" and value or cjson.encode(value))
  end
  before_each(function()
    dir = helper.tmp "-tokenizer"
    os.execute("mkdir " .. dir)
    write("tokenizer.json", helper.read(root .. "llama3/tokenizer.json"))
  end)
  after_each(function() os.execute("rm -r " .. dir) end)

  it("say which tokens begin and end, and how a chat looks", function()
    write("tokenizer_config.json", { bos_token = "<|begin_of_text|>",
      eos_token = { content = "<|end_of_text|>" }, chat_template = "T" })
    write("generation_config.json", { eos_token_id = { 562, 561 } })
    local t <close> = assert(pyramid.tokenizer(dir))
    assert.equal(560, t.bos)
    assert.same({ 562, 561 }, t.eos)
    assert.equal("T", t.chat_template)
  end)

  it("do not override the post-processor, as in transformers 5", function()
    write("tokenizer_config.json", { add_bos_token = false, bos_token = "<|begin_of_text|>" })
    local t <close> = assert(pyramid.tokenizer(dir))
    assert.same({ 560, t:id "a" }, t:encode "a")
    assert.is_true(t.adds_bos)
    local o = cjson.decode(helper.read(root .. "llama3/tokenizer.json"))
    o.post_processor = nil
    write("tokenizer.json", (cjson.encode(o):gsub('"add_prefix_space":false', '%0')))
    write("tokenizer_config.json", { add_bos_token = true, add_eos_token = true,
      bos_token = "<|begin_of_text|>" })
    write("special_tokens_map.json", { eos_token = "<|eot_id|>" })
    local u <close> = assert(pyramid.tokenizer(dir))
    assert.same({ u:id "a" }, u:encode "a")
    assert.is_false(u.adds_bos)
    assert.same({ 561 }, u.eos)
    assert.equal("<|begin_of_text|>", u.bos_text)
    assert.equal("<|eot_id|>", u.eos_text)
  end)

  it("end a text by all that they name, each once", function()
    write("generation_config.json", { eos_token_id = { 562, 561 } })
    write("config.json", { eos_token_id = { 561, 5, 10 ^ 6 } })
    write("tokenizer_config.json", { eos_token = "<|begin_of_text|>" })
    local t <close> = assert(pyramid.tokenizer(dir))
    assert.same({ 560, 562, 561, 5 }, t.eos)
    assert.equal("<|begin_of_text|>", t.eos_text)
  end)

  -- What each case gives was seen with transformers 5.24.
  it("name tokens that tokenizer.json does not", function()
    local next_id = 563
    local function ids_of(text, config, others)
      write("tokenizer_config.json", config)
      for name, value in pairs(others or {}) do write(name, value) end
      local t <close> = assert(pyramid.tokenizer(dir))
      for name in pairs(others or {}) do os.remove(dir .. "/" .. name) end
      local ids = assert(t:encode(text, { add = false }))
      local special = t:id "<x>" and t:is_special(t:id "<x>")
      return ids, special, t.vocab_size
    end
    local a, b = 64, 65
    local function token(config, others, special)
      local ids, is, size = ids_of("a<x>b", config, others)
      assert.same({ a, next_id, b }, ids)
      assert.equal(special, is)
      assert.equal(next_id + 1, size)
    end
    token({ added_tokens_decoder = { [tostring(next_id)] = { content = "<x>", special = true } } },
      nil, true)
    token({ added_tokens_decoder = { [tostring(next_id)] = { content = "<x>" } } }, nil, false)
    token({ additional_special_tokens = { "<x>" } }, nil, true)
    token({ extra_special_tokens = { { content = "<x>", lstrip = false } } }, nil, true)
    token({ extra_special_tokens = { image = "<x>" } }, nil, true)
    token({ image_token = "<x>" }, nil, true)
    token({ eos_token = { content = "<x>", normalized = false } }, nil, true)
    token({}, { ["added_tokens.json"] = { ["<x>"] = next_id } }, false)
    token({ pad_token = "<x>" }, { ["added_tokens.json"] = { ["<x>"] = next_id } }, true)
    token({}, { ["special_tokens_map.json"] = { additional_special_tokens = { "<x>" } } }, true)
    -- with added_tokens_decoder, the two older files are not asked
    local plain = ids_of("a<x>b",
      { added_tokens_decoder = { ["560"] = { content = "<|begin_of_text|>", special = true } } },
        { ["added_tokens.json"] = { ["<x>"] = next_id },
          ["special_tokens_map.json"] = { additional_special_tokens = { "<x>" } } })
    assert.is_true(#plain > 3)
    -- the vocabulary's id goes before one that is said elsewhere; white space is taken along where
    -- it is said
    local the = ids_of(" the", { eos_token = "Ġthe" })
    assert.is_true(#the >= 1)
    assert.same({ a, next_id, b }, (ids_of("a  <x> b",
      { eos_token = { content = "<x>", lstrip = true, rstrip = true } })))
  end)

  it("are named where what they add cannot be", function()
    write("tokenizer_config.json", { added_tokens_decoder = { ["5"] = { content = "<x>" } } })
    local t, message, code = pyramid.tokenizer(dir)
    assert.is_nil(t)
    assert.matches("/tokenizer_config%.json: added token: id 5 is added as '<x>'", message)
    assert.equal("format", code)
    write("tokenizer_config.json", {})
    write("added_tokens.json", { ["<x>"] = 5 })
    t, message = pyramid.tokenizer(dir)
    assert.is_nil(t)
    assert.matches("/added_tokens%.json: added token: id 5 is added as '<x>'", message)
    os.remove(dir .. "/added_tokens.json")
  end)

  it("give a text that begins with BOS no second one", function()
    write("tokenizer_config.json", { bos_token = "<|begin_of_text|>" })
    local t <close> = assert(pyramid.tokenizer(dir))
    local a = t:id "a"
    assert.same({ 560, a }, t:encode "a")
    assert.same({ 560, a }, t:encode "<|begin_of_text|>a")
    -- what is written is written
    assert.same({ 560, 560, a }, t:encode "<|begin_of_text|><|begin_of_text|>a")
    assert.same({ 560, a }, t:encode("<|begin_of_text|>a", { add = false }))
    assert.same({ 560, a }, t:encode("<|begin_of_text|>a", { bos = true }))
    assert.same({ 560, a }, t:encode("<|begin_of_text|>a", { add = false, bos = true }))
    assert.same({ 560, 560 }, { table.unpack(t:encode("<|begin_of_text|>",
      { special = false, bos = true }), 1, 1), t:encode("a", { special = false, bos = true })[1] })
  end)

  it("may hold the template in a list or a file of its own", function()
    local named = { { name = "tool_use", template = "A" }, { name = "default", template = "B" } }
    write("tokenizer_config.json", { chat_template = named })
    local t <close> = assert(pyramid.tokenizer(dir))
    assert.equal("B", t.chat_template)
    write("chat_template.jinja", "C")  -- beside a list or a text in the other file, the file counts
    for _, config in ipairs { { chat_template = named }, { chat_template = "B" } } do
      write("tokenizer_config.json", config)
      local u <close> = assert(pyramid.tokenizer(dir))
      assert.equal("C", u.chat_template)
    end
    write("tokenizer_config.json", "{}")
    local u <close> = assert(pyramid.tokenizer(dir))
    assert.equal("C", u.chat_template)
  end)

  it("are checked", function()
    for name, text in pairs { ["tokenizer_config.json"] = '{"bos_token":5}',
      ["generation_config.json"] = '{"eos_token_id":"x"}', ["special_tokens_map.json"] = "[]" } do
      write(name, text)
      local t, message, code = pyramid.tokenizer(dir)
      assert.is_nil(t)
      assert.equal("format", code)
      assert.matches(name, message, 1, true)
      os.remove(dir .. "/" .. name)
    end
    os.remove(dir .. "/tokenizer.json")
    local t, message, code = pyramid.tokenizer(dir)
    assert.is_nil(t)
    assert.equal("io", code)
    assert.matches("no tokenizer.json", message, 1, true)
    assert.equal("io", select(3, pyramid.tokenizer(dir .. "/nowhere")))
  end)
end)

-- ---- files that are wrong -----------------------------------------------------------------------

--- Loads a changed copy of a fixture's tokenizer.json; returns what pyramid.tokenizer returns.
local function load_changed(name, change)
  local text = helper.read(root .. name .. "/tokenizer.json")
  local path = helper.tmp()
  if change then
    local o = cjson.decode(text)
    local other = change(o)
    text = type(other) == "string" and other or cjson.encode(other or o)
  end
  helper.write(path, text)
  local t, message, code = pyramid.tokenizer(path)
  os.remove(path)
  return t, message, code
end

describe("a malformed tokenizer.json", function()
  local function refuses(what, code, pattern, change, name)
    it(what, function()
      local t, message, got = load_changed(name or "llama3", change)
      if t then t:close() end
      assert.is_nil(t)
      assert.equal(code, got)
      assert.matches(pattern, message, 1, true)
    end)
  end

  refuses("is cut short", "format", "not valid JSON",
    function(o) return cjson.encode(o):sub(1, 4000) end)
  refuses("is empty", "format", "not valid JSON", function() return "" end)
  refuses("is a list", "format", "not a JSON object", function() return "[1]" end)
  refuses("is nested too deep", "format", "not valid JSON", function() return ("["):rep(5000) end)
  refuses("has no model", "format", "model is missing", function(o) o.model = nil end)
  refuses("has a model that is a number", "format", "model is not a table",
    function(o) o.model = 5 end)
  refuses("has another model", "unsupported", "WordPiece",
    function(o) o.model.type = "WordPiece" end)
  refuses("has dropout", "unsupported", "dropout", function(o) o.model.dropout = 0.1 end)
  refuses("marks the ends of words", "unsupported", "end_of_word_suffix",
    function(o) o.model.end_of_word_suffix = "</w>" end)
  refuses("has a vocabulary that is a list", "format", "vocab",
    function(o) o.model.vocab = { "a", "b" } end)
  refuses("has an id that is a text", "format", "the id of a",
    function(o) o.model.vocab.a = "5" end)
  refuses("has an id that is no integer", "format", "the id of a",
    function(o) o.model.vocab.a = 1.5 end)
  refuses("has a negative id", "format", "the id of a", function(o) o.model.vocab.a = -1 end)
  refuses("has an id that is too large", "format", "the id of a",
    function(o) o.model.vocab.a = 1e9 end)
  refuses("has an id twice", "format", "given twice",
    function(o) o.model.vocab.a = o.model.vocab.b end)
  refuses("has no merges", "format", "merges is missing", function(o) o.model.merges = nil end)
  refuses("has a merge of unknown pieces", "format", "merges[1]",
    function(o) o.model.merges[2] = { "zzz", "t" } end)
  refuses("has a merge whose result is unknown", "format", "result is not in the vocabulary",
    function(o) o.model.merges[2] = { "z", "q" } end)
  refuses("has a merge of one piece", "format", "not a pair",
    function(o) o.model.merges[3] = { "a" } end)
  refuses("has a merge of three", "format", "not a pair",
    function(o) o.model.merges[3] = "a b c" end)
  refuses("has a merge of numbers", "format", "not a pair",
    function(o) o.model.merges[3] = { 1, 2 } end)
  refuses("has an unknown token that is unknown", "format", "unk_token",
    function(o) o.model.unk_token = "<nope>" end, "unk")
  refuses("has an added token without a text", "format", "added_tokens[0]: content",
    function(o) o.added_tokens[1].content = nil end)
  refuses("has an added token that is no object", "format", "added_tokens[0]",
    function(o) o.added_tokens[1] = "x" end)
  refuses("adds one id twice", "format", "added twice",
    function(o) o.added_tokens[2].id = o.added_tokens[1].id end)
  refuses("adds one text twice", "format", "listed twice",
    function(o) o.added_tokens[2].content = o.added_tokens[1].content end)
  refuses("adds a token over a piece", "format", "the vocabulary has",
    function(o) o.added_tokens[1].id = 5 end)
  refuses("has a flag that is no boolean", "format", "lstrip",
    function(o) o.added_tokens[1].lstrip = 1 end)
  local function expression(text) return function(
    o) o.pre_tokenizer.pretokenizers[1].pattern.Regex = text end end
  refuses("has a wrong expression", "format", "regular expression", expression "(a")
  refuses("has an expression with a bracket too many", "format", "parenthesis", expression "a)")
  refuses("has an open class", "format", "bracket", expression "[a")
  refuses("has an expression that ends in a backslash", "format", "backslash", expression "a\\")
  refuses("has an expression that PCRE2 cannot say", "unsupported", "class within a class",
    expression "[a[^b]]")
  refuses("has an expression with Ruby's option m", "unsupported", "option m", expression "(?m:a)")
  refuses("has an empty expression", "format", "Regex is empty", expression "")
  refuses("has an unknown behaviour", "format", "behavior",
    function(o) o.pre_tokenizer.pretokenizers[1].behavior = "Shaken" end)
  refuses("has an unknown pre-tokenizer", "unsupported",
    "pre_tokenizer.pretokenizers[0]: pre_tokenizer Chaos",
    function(o) o.pre_tokenizer.pretokenizers[1].type = "Chaos" end)
  refuses("has an unknown normalizer", "unsupported", "normalizer: normalizer Precompiled",
    function(o) o.normalizer = { type = "Precompiled" } end)
  refuses("has an unknown decoder", "unsupported", "decoder: decoder WordPiece",
    function(o) o.decoder = { type = "WordPiece" } end)
  refuses("has an unknown post-processor", "unsupported", "post_processor",
    function(o) o.post_processor.type = "Chaos" end)
  refuses("has a template of unknown tokens", "format", "special_tokens",
    function(o) o.post_processor.special_tokens = {} end)
  refuses("has a template without the text", "format", "no place",
    function(o) o.post_processor.single[2] = nil end)
  refuses("has a template with an id that is none", "format", "outside the vocabulary",
    function(o) o.post_processor.special_tokens["<|begin_of_text|>"].ids = { 10 ^ 6 } end)
  refuses("has a scheme that is none", "format", "prepend_scheme",
    function(o) o.pre_tokenizer.prepend_scheme = "sometimes" end, "llama2")
  refuses("has a mark of two characters", "format", "replacement",
    function(o) o.pre_tokenizer.replacement = "ab" end, "llama2")
  refuses("strips before it joins", "unsupported", "Strip",
    function(o) o.decoder = { type = "Strip", content = " ", start = 1, stop = 0 } end, "llama2")

  it("may begin its merges with a version", function()
    local plain <close> = assert(load_changed("llama3"))
    local t <close> = assert(load_changed("llama3",
      function(o) table.insert(o.model.merges, 1, "#version: 0.2") end))
    for _, text in ipairs(cases) do assert.same(plain:encode(text), t:encode(text)) end
  end)

  it("may name no unknown token, or one that bytes never need", function()
    for _, name in ipairs { "", "<nope>" } do
      local t <close> = assert(load_changed("gpt2", function(o) o.model.unk_token = name end))
      assert.equal("é", t:decode(t:encode "é"))
    end
  end)

  it("never crashes, whatever byte is wrong", function()
    local text = helper.read(root .. "unk/tokenizer.json")
    local path, seed = helper.tmp(), 1
    for _ = 1, 150 do
      seed = (seed * 1103515245 + 12345) % (1 << 31)
      local at = seed % #text + 1
      helper.write(path, text:sub(1, at - 1) .. string.char(seed // 7 % 256) .. text:sub(at + 1))
      local t, message, code = pyramid.tokenizer(path)
      if t then
        t:encode("The keeper's light 12 é 日本語")
        t:close()
      else
        assert.is_string(message)
        assert.is_truthy(code == "format" or code == "unsupported")
      end
    end
    os.remove(path)
  end)
end)

describe("GGUF metadata", function()
  local gguf = require "pyramid.loaders.gguf"
  local function changed(name, change)
    local header = assert(gguf.read(path_of(name)))
    change(header.metadata)
    return pyramid.tokenizer(header)
  end
  local function refuses(what, code, pattern, change, name)
    it(what, function()
      local t, message, got = changed(name or "gguf-gpt2", change)
      if t then t:close() end
      assert.is_nil(t)
      assert.equal(code, got)
      assert.matches(pattern, message, 1, true)
    end)
  end
  local P = "tokenizer.ggml."
  refuses("without a model", "format", "tokenizer.ggml.model",
    function(m) m[P .. "model"] = nil end)
  refuses("of another model", "unsupported", "bert", function(m) m[P .. "model"] = "bert" end)
  refuses("without a pre-tokenizer", "unsupported", "tokenizer.ggml.pre",
    function(m) m[P .. "pre"] = nil end)
  refuses("of an unknown pre-tokenizer", "unsupported", "tokenizer.ggml.pre nobody",
    function(m) m[P .. "pre"] = "nobody" end)
  refuses("without tokens", "format", "tokenizer.ggml.tokens",
    function(m) m[P .. "tokens"] = nil end)
  refuses("with a token that is a number", "format", "tokens[3]",
    function(m) m[P .. "tokens"][4] = 7 end)
  refuses("with no tokens at all", "format", "vocabulary of 0", function(m) m[P .. "tokens"],
    m[P .. "token_type"] = {}, nil end)
  refuses("with too few types", "format", "token_type",
    function(m) m[P .. "token_type"] = { 1, 1 } end)
  refuses("without merges", "format", "merges", function(m) m[P .. "merges"] = nil end)
  refuses("with a merge of one piece", "format", "merges[0]",
    function(m) m[P .. "merges"][1] = "abc" end)
  refuses("with a merge of unknown pieces", "format", "not in the vocabulary",
    function(m) m[P .. "merges"][1] = "zzz qqq" end)
  refuses("without scores", "format", "scores", function(m) m[P .. "scores"] = nil end, "gguf-spm")
  refuses("with too few scores", "format", "scores has 2",
    function(m) m[P .. "scores"] = { 0.0, 0.0 } end, "gguf-spm")
  refuses("with a score that is not a number", "format", "not a number",
    function(m) m[P .. "scores"][300] = 0 / 0 end, "gguf-spm")

  it("may give ids that no token has, and tokens without a text", function()
    local t <close> = assert(changed("gguf-llama3", function(m)
      m[P .. "bos_token_id"], m[P .. "eos_token_id"] = 0xFFFFFFFF, 1 << 20
      m[P .. "tokens"][#m[P .. "tokens"]] = ""
    end))
    assert.is_nil(t.bos)
    assert.same({ 561 }, t.eos)
    assert.equal("[EMPTY_562]", t:piece(562))
  end)

  it("may begin its merges with a version", function()
    local plain <close> = assert(changed("gguf-gpt2", function() end))
    local t <close> = assert(changed("gguf-gpt2",
      function(m) table.insert(m[P .. "merges"], 1, "#version: 0.2") end))
    for _, text in ipairs(cases) do assert.same(plain:encode(text), t:encode(text)) end
  end)

  -- llama.cpp's list of texts that end a generation wherever they are a token.
  it("may mark what ends a turn as normal text: it is a control token all the same, and said so",
    function()
    for _, name in ipairs { "gguf-qwen2", "gguf-spm" } do
      for _, text in ipairs { "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>",
        "<|endoftext|>", "_<EOT>", "<EOT>", "[EOT]", "<|return|>", "<|call|>", "</s>",
          "<|eom_id|>", "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<eos>",
            "<｜end▁of▁sentence｜>" } do
        for _, kind in ipairs { 1, 4, 5 } do
          local id
          local t <close> = assert(changed(name, function(m)
            for i, other in ipairs(m[P .. "tokens"]) do
              if other == text then id = i - 1 end
            end
            id = id or 300  -- in place of some piece, with the merges that it takes part in
            local old = m[P .. "tokens"][id + 1]
            m[P .. "tokens"][id + 1], m[P .. "token_type"][id + 1] = text, kind
            for i = #(m[P .. "merges"] or {}), 1, -1 do
              local left, right = m[P .. "merges"][i]:match "^(.[^ ]*) (.+)$"
              if left == old or right == old or left .. right == old then
                table.remove(m[P .. "merges"], i)
              end
            end
          end))
          assert.is_true(t:is_special(id), text)
          assert.equal(1, #t.warnings)
          assert.matches(("token %d, '%s', is not marked as a control token"):format(id,
            text:gsub("[\127-\255]", function(c)
            return ("\\x%02x"):format(c:byte()) end)), t.warnings[1], 1, true)
          local ends = false
          for _, other in ipairs(t.eos) do ends = ends or other == id end
          assert.is_true(ends, text)
          local ids = assert(t:encode("a" .. text, { add = false }))
          assert.equal(id, ids[#ids])
          assert.equal("a", (t:decode(ids, { skip_special = true }):gsub("^ ", "")))
        end
      end
    end
    local fine <close> = assert(pyramid.tokenizer(path_of "gguf-qwen2"))
    assert.same({}, fine.warnings)
  end)

  it("may have merges of such a token, which are passed over", function()
    local t <close> = assert(changed("gguf-gpt2", function(m)
      m[P .. "tokens"][301], m[P .. "token_type"][301] = "</s>", 1
      -- none of these needs the piece that was there before
      local merges = table.move(m[P .. "merges"], 1, 20, 1, {})
      table.insert(merges, 3, "</ s>")
      m[P .. "merges"] = merges
    end))
    local ids = t:encode("a</s>", { add = false })
    assert.equal(300, ids[#ids])
  end)

  it("knows where an end is none", function()
    local function eos_of(texts)
      local t <close> = assert(changed("gguf-qwen2", function(m)
        for _, text in ipairs(texts) do
          table.insert(m[P .. "tokens"], text)
          table.insert(m[P .. "token_type"], 3)
        end
      end))
      local found = {}
      for _, id in ipairs(t.eos) do found[t:piece(id)] = true end
      return found
    end
    local harmony = eos_of { "<|end|>", "<|return|>", "<|call|>" }
    assert.is_nil(harmony["<|end|>"])
    assert.is_true(harmony["<|return|>"] and harmony["<|call|>"])
    assert.is_true(eos_of { "<|end|>", "<|return|>" }["<|end|>"])
    assert.is_nil(eos_of({ "</s>", "<|tool_response>" })["</s>"])
  end)

  it("tells where a turn ends", function()
    local t <close> = assert(pyramid.tokenizer(path_of "gguf-qwen2"))
    assert.same({ t:id "<|im_end|>", t:id "<|endoftext|>" }, t.eos)
  end)

  it("knows every named pre-tokenizer's expressions", function()
    local pre = require "pyramid.tokenizer.pre"
    assert.is_true(#pre.list() > 30)
    for _, name in ipairs(pre.list()) do
      local t <close> = assert(changed("gguf-gpt2", function(m) m[P .. "pre"] = name end))
      for _, text in ipairs(cases) do
        local ids = assert(t:encode(text, { special = false }))
        if not pre.find(name).composed then assert.equal(text, t:decode(ids), name) end
      end
    end
  end)
end)

describe("limits", function()
  it("of memory are errors, at every allocation in turn, and nothing leaks", function()
    for _, name in ipairs { "added", "gguf-spm" } do
      local limit, failures, done = 1000, 0, false
      while not done do
        local runtime = core.runtime { threads = 1, memory = limit }
        local t, message, code = nil, "", "memory"          -- the runtime itself needs some
        if runtime then
          t, message, code = pyramid.tokenizer(path_of(name), { runtime = runtime })
        end
        if t then
          local ids
          ids, message, code = t:encode(cases[#cases] .. ("<tool>  a\u{300}"):rep(20))
          if ids then
            local text
            text, message, code = t:decode(ids)
            done = text ~= nil
          end
          t:close()
        end
        if not done then
          failures = failures + 1
          assert.equal("memory", code)
          assert.is_string(message)
        end
        collectgarbage()
        if runtime then runtime:close() end
        limit = limit + 64 + limit // 64
      end
      assert.is_true(failures > 20)
    end
  end)

  it("give all memory back", function()
    local runtime <close> = assert(core.runtime { threads = 1 })
    local before = runtime:memory()
    local t = assert(pyramid.tokenizer(path_of "qwen2", { runtime = runtime }))
    local ids = t:encode(("The keeper é "):rep(1000))
    t:decode(ids)
    assert.is_true(runtime:memory() > before)
    t:close()
    assert.equal(before, runtime:memory())
  end)

  it("of an expression are errors, not crashes", function()
    local t <close> = assert(load_changed("llama3", function(o)
      o.pre_tokenizer.pretokenizers[1].pattern.Regex = "(a+)+$|(?:(b|bb)+)+c"
    end))
    local ids, message, code = t:encode(("b"):rep(60) .. ("a"):rep(60) .. "!")
    assert.is_nil(ids)
    assert.equal("argument", code)
    assert.matches("gave up", message)
    assert.is_table(t:encode "b")
  end)

  it("of length are far away", function()
    local t <close> = assert(pyramid.tokenizer(path_of "gpt2"))
    local s <close> = assert(pyramid.tokenizer(path_of "llama2-legacy"))
    for _, text in ipairs { ("a"):rep(1 << 19), (" "):rep(1 << 18), ("\u{301}"):rep(1 << 17),
      ("the keeper's "):rep(1 << 15) } do
      assert.equal(text, t:decode(t:encode(text, { special = false })))
      assert.equal(text, s:decode(s:encode(text, { special = false })))
    end
  end)
end)

describe("SmolLM2", function()
  local path = helper.model
  if not path then
    pending("needs models/fetched (make models)")
    return
  end
  local golden = helper.json(root .. "smollm2.json")
  local texts = table.move(golden.texts, 1, #golden.texts, #cases + 1, { table.unpack(cases) })

  it("has the library's ids, and its text back", function()
    local t <close> = assert(pyramid.tokenizer(path))
    assert.equal(#texts, #golden.ids)
    for i, text in ipairs(texts) do
      local what = ("text %d %q"):format(i, text:sub(1, 60))
      same_ids(golden.ids[i], assert(t:encode(text)), t, what)
      local plain = golden.plain[i] ~= null and golden.plain[i] or golden.ids[i]
      same_ids(plain, assert(t:encode(text, { special = false })), t, what .. ", plain")
      -- 21 bytes of rare characters are no piece of this vocabulary: they are lost in both
      local back = t:decode(plain, { raw = true })
      if #back ~= #text then assert.is_true(#back < #text and text:find "[\0-\31\x80-\xff]" ~= nil,
        what)
      else assert.equal(text, back, what) end
    end
  end)

  it("ends a turn by <|im_end|>, and chats as its template says", function()
    local t <close> = assert(pyramid.tokenizer(path))
    assert.same({ t:id "<|im_end|>", t:id "<|endoftext|>" }, t.eos)
    assert.same({}, t.warnings)
    assert.equal(helper.read(helper.fixture "chat/smollm2-gguf.jinja"), t.chat_template)
    local text = assert(require("pyramid.chat").render(t.chat_template,
      { { role = "user", content = "Hello" } },
        { add_generation_prompt = true, bos = t.bos_text, eos = t.eos_text }))
    assert.equal("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
      .. "Hugging Face<|im_end|>\n"
      .. "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", text)
    local ids = assert(t:encode(text))
    assert.equal(t:id "<|im_start|>", ids[1])
    assert.not_equal(ids[1], ids[2])
  end)
end)

-- Real vocabularies, where there are some: a folder with llama.cpp's models/ggml-vocab-*.gguf and
-- their .inp and .out.
describe("llama.cpp's golden files", function()
  local folder = os.getenv "PYRAMID_VOCABS"
  if not folder then
    pending("need PYRAMID_VOCABS=<llama.cpp>/models")
    return
  end
  local vocabularies = { "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2",
    "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder" }
  for _, name in ipairs(vocabularies) do
    it(name, function()
      local path = ("%s/ggml-vocab-%s.gguf"):format(folder, name)
      local t <close> = assert(pyramid.tokenizer(path))
      local lines, count = {}, 0
      for line in io.lines(path .. ".out") do lines[#lines + 1] = line:match "^%s*(.-)%s*$" end
      for text in helper.read(path .. ".inp"):gmatch "(.-)\n__ggml_vocab_test__\n" do
        count = count + 1
        assert.equal(lines[count], table.concat(t:encode(text, { add = false }), " "), text)
      end
      assert.is_true(count > 40)
    end)
  end
end)
