-- `pyramid convert`: what is written answers as the source converted at load does, bit for bit;
-- tensors, metadata and tokenizers are those of llama.cpp's converter; failures leave nothing.
local cjson = require "cjson"
local convert = require "pyramid.tools.convert"
local convert_tokenizer = require "pyramid.tools.convert.tokenizer"
local core = require "pyramid.core"
local dtypes = require "pyramid.loaders.dtypes"
local formats = require "spec.support.formats"
local gguf = require "pyramid.loaders.gguf"
local helper = require "spec.helper"
local lfs = require "lfs"
local pyramid = require "pyramid"
local shell = require "support.shell"

local folder
setup(function() folder = shell.folder() end)
teardown(function() shell.remove(folder) end)

local function family(name) return helper.fixture("families/" .. name) end
local function new(name) return folder .. "/" .. name end

local function logits_of(path, weights)
  local model <close> = assert(pyramid.model(path,
    { weights = weights, precision = "f32" }))
  local cache <close> = assert(model:cache { dtype = "f32" })
  local ids = {}                                  -- more than windows of the fixtures hold
  for i = 1, 40 do ids[i] = i * 37 % 89 + 3 end
  return assert(cache:prefill(ids)):totable()
end

local function by_name(path)
  local out, bytes = {}, helper.read(path)
  for _, t in ipairs(assert(gguf.read(path)).tensors) do
    t.data = bytes:sub(t.offset + 1, t.offset + t.bytes)
    out[t.name] = t
  end
  return out
end

describe("convert", function()
  it("writes what conversion at load makes, of a folder", function()
    for _, weights in ipairs(convert.dtypes) do
      local path = new("qwen3-" .. weights .. ".gguf")
      local made = assert(convert.write(family "qwen2-untied", path, { weights = weights }))
      assert.equal(lfs.attributes(path, "size"), made.bytes)
      -- rows of 80 values in two thirds of the matrices: no whole blocks, so that f16 stands in
      local whole = made.warnings[1] == nil
      assert.equal(dtypes.value_bytes[weights] >= 2, whole, made.warnings[1])
      if whole then assert.same(logits_of(family "qwen2-untied", weights), logits_of(path)) end
      local tensors = by_name(path)
      assert.equal("f32", tensors["blk.0.attn_norm.weight"].dtype)
      assert.equal("f32", tensors["blk.0.attn_q.bias"].dtype)
      assert.equal(weights, tensors["blk.0.ffn_down.weight"].dtype)
      assert.equal(whole and weights or "f16", tensors["token_embd.weight"].dtype)
    end
  end)

  it("writes what conversion at load makes, of a GGUF file", function()
    local source = helper.fixture "gguf/codellama-q8_0.gguf"
    for _, weights in ipairs(dtypes.writable) do
      local path = new("codellama-" .. weights .. ".gguf")
      local made = assert(convert.write(source, path, { weights = weights }))
      assert.same({}, made.warnings)
      assert.same(logits_of(source, weights), logits_of(path))
      for _, t in pairs(by_name(path)) do
        assert.equal(#t.shape == 1 and "f32" or weights, t.dtype, t.name)
      end
    end
  end)

  it("leaves what it is not asked to change", function()
    for _, name in ipairs { "codellama-q8_0", "kquants", "llama3-bf16" } do
      local source, path = helper.fixture("gguf/" .. name .. ".gguf"), new(name .. "-same.gguf")
      assert(convert.write(source, path))
      local before, after = by_name(source), by_name(path)
      for tensor, t in pairs(before) do assert.equal(t.data, after[tensor].data, tensor) end
      local old, anew = gguf.read(source).metadata, gguf.read(path).metadata
      old["general.quantization_version"] = old["general.quantization_version"] or 2
      assert.same(old, anew)
    end
  end)

  it("has names, permuted rows and RoPE as GGUF has them", function()
    for _, name in ipairs { "llama-mha", "llama-rope-parameters", "qwen3" } do
      local path = new(name .. ".gguf")
      assert(convert.write(family(name), path))
      local made = by_name(path)
      local wanted = formats.gguf_of(name, "bf16").tensors
      for _, t in ipairs(wanted) do assert.equal(t.data, made[t.name].data, name .. t.name) end
    end
    -- Llama 3.1's scaling as a tensor, as the `gguf` package's file of this family has it
    local path = new "llama3.gguf"
    assert(convert.write(family "llama-gqa-llama3", path))
    local golden = by_name(helper.fixture "gguf/llama3-bf16.gguf")["rope_freqs.weight"]
    local factors = by_name(path)["rope_freqs.weight"]
    assert.same(golden.shape, factors.shape)
    for i, x in ipairs(helper.floats(golden.data, 0, golden.shape[1])) do
      assert.near(x, helper.floats(factors.data, 0, golden.shape[1])[i], 1e-6 * x)
    end
  end)

  it("says the same of every family in GGUF's words", function()
    for _, name in ipairs { "llama-gqa-llama3", "llama-linear", "llama-yarn", "mistral",
      "qwen2" } do
      local path = new(name .. "-f32.gguf")
      assert(convert.write(family(name), path, { weights = "f32" }))
      local one, other = logits_of(family(name), "f32"), logits_of(path)
      assert.is_true(helper.distance(other, one) < 1e-5, name)
    end
    local metadata = gguf.read(new "mistral-f32.gguf").metadata
    assert.equal("llama", metadata["general.architecture"])
    assert.equal(helper.json(family "mistral" .. "/config.json").sliding_window,
      metadata["llama.attention.sliding_window"])
    assert.equal(0, metadata["general.file_type"])
    assert.equal("none", metadata["tokenizer.ggml.model"])
    local model <close> = assert(pyramid.model(new "mistral-f32.gguf"))
    assert.is_nil(model.tokenizer)
  end)

  -- What GGUF files cannot say of a fixture, and what it is then refused with; or what its
  -- config.json says instead, with the same tensors.
  local none = "there are no GGUF files of its kind"
  local refused = { ["falcon-alibi"] = "cannot say its turns", ["glm4-moe"] = none,
    ["gpt-neo"] = none, gptj = none, helium = none, jais2 = none, ministral = none, opt = none,
    vaultgemma = none, ["gpt-oss-folder"] = "cannot say that activation_limit is 5" }
  local instead = { gemma2 = { query_pre_attn_scalar = 12 }, gemma3 = { query_pre_attn_scalar = 8 },
    ["gpt-oss-folder"] = { swiglu_limit = 7 } }

  for _, name in ipairs(helper.decoders()) do
    local dir = helper.fixture("decoders/" .. name)
    local path = dir .. "/model.safetensors"
    if lfs.attributes(path) then
      it("says the same in GGUF's words: " .. name, function()
        local out = new(name .. ".gguf")
        local made, message, code = convert.write(dir, out)
        if refused[name] then
          assert.same({ nil, "unsupported" }, { made, code })
          assert.truthy(message:find(dir .. "/config.json: ", 1, true), message)
          assert.truthy(message:find(refused[name], 1, true), message)
          assert.is_nil(lfs.attributes(out))
        end
        if instead[name] then
          assert.is_nil(made)
          local config = helper.json(dir .. "/config.json")
          for key, value in pairs(instead[name]) do config[key] = value end
          dir = shell.folder()
          helper.write(dir .. "/config.json", cjson.encode(config))
          helper.write(dir .. "/model.safetensors", helper.read(path))
          made, message = convert.write(dir, out)
        end
        if not refused[name] or instead[name] then
          assert(made, message)
          assert.same({}, made.warnings)
          local distance = helper.distance(logits_of(out), logits_of(dir))
          assert.is_true(distance < 1e-5, ("%s: %g"):format(name, distance))
          for tensor, t in pairs(by_name(out)) do
            if #t.shape == 1 or tensor:find "%.bias$" then assert.equal("f32", t.dtype, tensor) end
          end
        end
        if instead[name] then shell.remove(dir) end
      end)
    end
  end

  it("writes tensors by the names that llama.cpp's converters give them", function()
    local published = helper.json(helper.fixture "decoders" .. "/gguf_names.json")
    for name, known in pairs(published) do
      if not instead[name] then
        local path = new(name .. "-names.gguf")
        assert(convert.write(helper.fixture("decoders/" .. name), path))
        local there = by_name(path)
        for theirs, ours in pairs(known.names) do
          local apart = name == "internlm2" and theirs:find "wqkv"
          assert.truthy(apart or there[ours], ("%s: %s, %s"):format(name, theirs, ours))
        end
        assert.equal(known.architecture, gguf.read(path).metadata["general.architecture"])
      end
    end
  end)

  it("joins what is split", function()
    local whole, prefix = formats.gguf_of("qwen2", "bf16"), new "part"
    local function part(i, tensors)
      local metadata = table.move(whole.metadata, 1, i == 1 and #whole.metadata or 0, 1, {})
      metadata[#metadata + 1] = formats.kv("split.no", "u16", i - 1)
      metadata[#metadata + 1] = formats.kv("split.count", "u16", 2)
      helper.write(("%s-%05d-of-00002.gguf"):format(prefix, i),
        formats.gguf { metadata = metadata, tensors = tensors })
    end
    part(1, table.move(whole.tensors, 1, 9, 1, {}))
    part(2, table.move(whole.tensors, 10, #whole.tensors, 1, {}))
    assert(convert.write(prefix .. "-00001-of-00002.gguf", new "joined.gguf"))
    local made, metadata = by_name(new "joined.gguf"), gguf.read(new "joined.gguf").metadata
    for _, t in ipairs(whole.tensors) do assert.equal(t.data, made[t.name].data, t.name) end
    assert.is_nil(metadata["split.count"])
  end)

  it("holds a piece, whatever the size of the model", function()
    local done, told, calls = 0, nil, 0
    local path = new "tiny.gguf"
    local made = assert(convert.write("models/tiny", path, { weights = "f32", memory = "2 MiB",
      progress = function(now, total)
        assert(now > done and now <= total)
        done, told, calls = now, total, calls + 1
      end }))
    assert(made.bytes > 15 << 20)
    assert.equal(told, done)
    assert.is_true(calls >= made.tensors)
    local failed, message, code = convert.write("models/tiny", new "none.gguf",
      { weights = "f32", memory = "64 KiB" })
    assert.same({ nil, "memory" }, { failed, code }, message)
    assert.is_nil(lfs.attributes(new "none.gguf"))
  end)

  it("says what is wrong, and leaves what is there", function()
    local function fails(code, words, from, to, given)
      local made, message, got = convert.write(from, to, given)
      assert.is_nil(made)
      assert.truthy(message:find(words, 1, true), message)
      assert.equal(code, got, message)
    end
    local there, source = new "there.gguf", family "qwen3"
    helper.write(there, "old")
    fails("argument", there .. ": is there already", source, there)
    assert.equal("old", helper.read(there))
    fails("argument", "is there already", source, folder)
    fails("io", new "no/where.gguf", source, new "no/where.gguf")
    fails("io", folder .. ": a directory without config.json", folder, new "x.gguf")
    fails("format", "neither a model directory nor a GGUF file", "README.md", new "x.gguf")
    fails("io", "No such file", new "missing.gguf", new "x.gguf")
    fails("unsupported", "architecture", helper.fixture "gguf/dtypes.gguf", new "x.gguf")
    fails("format", there, there, there, { force = true })
    assert.equal("old", helper.read(there))
    assert.error_matches(function() convert.write(source, new "x.gguf", { weights = "q9" }) end,
      "weights = 'q9' %(known: f32, f16, ")
    assert.error_matches(function() convert.write(source, "") end, "a path to write to")
    assert.error_matches(function() convert.write(source, new "x.gguf", { kind = 1 }) end, "kind")
    assert(convert.write(source, there, { force = true }))
    -- a file may be replaced by itself in another format
    assert(convert.write(there, there, { weights = "f16", force = true }))
    assert.equal("f16", by_name(there)["token_embd.weight"].dtype)
    for name in lfs.dir(folder) do assert.is_nil(name:find "%.tmp$", name) end
  end)

  it("is a script", function()
    local path = new "script.gguf"
    local function run(...) return shell.pyramid("convert", ...) end
    local out, err, status = run(family "llama-mha", path, "--weights", "q4_1", "--threads", "1")
    assert.equal(0, status, err)
    assert.matches("script%.gguf: 30 tensors, .*\nllama, 3 layers", out)
    assert.matches("20 matrices of rows of 48 values, in f16: .* q4_1's block of 32", err)
    out, err, status = run(family "llama-mha", path)
    assert.same({ "", 1 }, { out, status })
    assert.matches("is there already.*\n%-%-force replaces it", err)
    assert.equal(0, select(3, run(family "llama-mha", path, "--force")))
    out, err, status = run(family "llama-mha", path, "--weights", "iq2_xs")
    assert.same({ "", 1 }, { out, status })
    assert.matches("q5_1", err)
  end)
end)

describe("a tokenizer.json in GGUF's words", function()
  local function header_of(name, vocab)
    local entries, warnings = convert_tokenizer.entries(helper.fixture("tokenizers/" .. name),
      vocab or name:find "llama2" and 763 or 562)
    local metadata = {}
    for _, e in ipairs(entries) do metadata[e.key] = e.value end
    return { path = name, metadata = metadata }, warnings
  end

  it("gives the library's ids", function()
    local cases = helper.json(helper.fixture "tokenizers/cases.json")
    for name, pre in pairs { gpt2 = "gpt-2", llama3 = "llama-bpe", starcoder = "smollm",
      tekken = "tekken", llama2 = "default" } do
      local header, warnings = header_of(name)
      assert.equal(name == "llama2" and "begin with a space" or nil,
        (warnings[1] or ""):match "begin with a space")
      assert.equal(pre, header.metadata["tokenizer.ggml.pre"])
      assert.equal(name == "llama2" and "llama" or "gpt2", header.metadata["tokenizer.ggml.model"])
      local t <close> = assert(pyramid.tokenizer(header))
      local golden = helper.json(helper.fixture("tokenizers/" .. name .. "/golden.json"))
      for i, text in ipairs(cases) do
        -- llama2's Metaspace puts no mark before one; SentencePiece does
        local marked = text:find "^ " or text:find "^▁"
        if type(golden.plain[i]) == "table" and not (name == "llama2" and marked) then
          assert.same(golden.plain[i], t:encode(text, { special = false }), name .. i)
        end
      end
    end
  end)

  it("names no token that the embedding has no row for", function()
    assert.equal(560, header_of "llama3".metadata["tokenizer.ggml.bos_token_id"])
    local metadata = header_of("llama3", 560).metadata
    assert.equal(560, #metadata["tokenizer.ggml.tokens"])
    assert.is_nil(metadata["tokenizer.ggml.bos_token_id"])
    assert.is_false(metadata["tokenizer.ggml.add_bos_token"])
  end)

  it("or is refused, where GGUF has no word for it", function()
    for name, words in pairs { bert = "pre_tokenizer", unk = "byte_fallback",
      nfkc = "normalizer" } do
      local ok, fault = pcall(header_of, name)
      assert.is_false(ok)
      assert.equal("unsupported", fault.code)
      assert.truthy(fault.message:find(words, 1, true), fault.message)
    end
  end)
end)

describe("core.convert_rows", function()
  it("refuses rows and types that there are not", function()
    local runtime <close> = assert(core.runtime { device = "cpu", threads = 1 })
    local path = helper.fixture "gguf/codellama-q8_0.gguf"
    local file <close> = assert(core.file_open(runtime, path))
    local t = by_name(path)["token_embd.weight"]
    local spec = { name = t.name, file = file, offset = t.offset, bytes = t.bytes, dtype = t.dtype,
      shape = t.shape }
    local out <close> = assert(core.output(new "rows"))
    local rows = t.shape[1]
    for _, case in ipairs { { "f16", 0, rows, 1, "rows" }, { "f16", 0, -1, 1, "rows" },
      { "f16", 0, 0, 0, "rows" }, { "f16", 0, 1, math.maxinteger, "rows" },
      { "f16", 3, 0, 1, "heads" }, { "q4_k", 0, 0, 1, "become" } } do
      local ok, message, code = core.convert_rows(runtime, out, spec, case[1], case[2], 0, case[3],
        case[4])
      assert.same({ nil, "argument" }, { ok, code })
      assert.truthy(message:find(case[5], 1, true), message)
    end
    spec.offset = 1 << 40
    local _, message, code = core.convert_rows(runtime, out, spec, "f16", 0, 0, 0, 1)
    assert.equal("format", code, message)
    assert.error(function() core.convert_rows(runtime, out, spec, "f16", -1, 0, 0, 1) end)
    spec.offset = t.offset
    out:close()
    assert.error_matches(function() core.convert_rows(runtime, out, spec, "f16", 0, 0, 0, 1) end,
      "closed")
  end)
end)
