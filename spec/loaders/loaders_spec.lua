-- Models are found, read and bound: Hugging Face directories, shards, GGUF of both versions. Logits
-- of what was loaded equal the golden ones, so that a weight in the wrong place cannot pass.
local cjson = require "cjson"
local formats = require "spec.support.formats"
local file_blocks = require "spec.support.file_blocks"
local helper = require "spec.helper"
local gguf = require "pyramid.loaders.gguf"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local rope = require "pyramid.loaders.rope"
local safetensors = require "pyramid.loaders.safetensors"
local shell = require "support.shell"

local function family(name) return helper.fixture("families/" .. name) end

--- Runs fn(path) with a file of these bytes.
local function with_file(bytes, fn, suffix)
  local path = helper.tmp(suffix or ".gguf")
  helper.write(path, bytes)
  local ok, err = xpcall(fn, debug.traceback, path)
  os.remove(path)
  if not ok then error(err, 0) end
end

--- The golden logits of a family's longest sequence, against those of the model at `path`.
local function assert_golden(path, name, options, limit)
  options = options or {}
  options.precision = options.precision or "f32"
  local golden = helper.json(family(name) .. "/golden.json")
  local bytes = helper.read(family(name) .. "/golden.bin")
  local sequence = golden.sequences[#golden.sequences]
  local vocab = sequence.shape[2]
  local model = assert(pyramid.model(path, options))
  local cache = assert(model:cache { dtype = "f32" })
  local logits = assert(cache:prefill(sequence.ids, { all = true }))
  for i = 1, #logits do
    local ref = helper.floats(bytes, sequence.offset + 4 * vocab * (i - 1), vocab)
    helper.assert_near(logits[i], ref, ("%s, position %d"):format(name, i), limit)
  end
  cache:close()
  model:close()
end

describe("safetensors.read", function()
  it("lists tensors with absolute offsets", function()
    local file = assert(safetensors.read(family "llama-mha" .. "/model.safetensors"))
    assert.equal("pt", file.metadata.format)
    local by = {}
    for _, t in ipairs(file.tensors) do by[t.name] = t end
    local q = by["model.layers.0.self_attn.q_proj.weight"]
    assert.same({ 48, 48 }, q.shape)
    assert.equal("bf16", q.dtype)
    assert.equal(2 * 48 * 48, q.bytes)
    local last = file.tensors[#file.tensors]
    assert.equal(#helper.read(file.path), last.offset + last.bytes)
  end)
end)

describe("gguf.read", function()
  local path = helper.fixture "gguf/dtypes.gguf"

  it("reads metadata of every kind", function()
    local file = assert(gguf.read(path))
    assert.equal(3, file.version)
    assert.equal(32, file.alignment)
    assert.same({ "one", "", "drei" }, file.metadata["test.strings"])
    assert.same({ 1, 2, -3 }, file.metadata["test.integers"])
    assert.same({ 0.5, 1.5 }, file.metadata["test.numbers"])
    assert.equal(1 << 40, file.metadata["test.long"])
    assert.is_true(file.metadata["test.yes"])
  end)

  it("reads both versions, and alignments of a file's own", function()
    for _, version in ipairs { 2, 3 } do
      local bytes = formats.gguf {
        version = version, alignment = 64,
        metadata = {
          formats.kv("general.alignment", "u32", 64), formats.kv("a", "array:i16", { -1, 2 }),
            formats.kv("b", "u8", 255),
          formats.kv("c", "i8", -1), formats.kv("d", "u16", 65535), formats.kv("e", "f64", 0.1),
            formats.kv("f", "i64", -5),
          formats.kv("g", "bool", 0), formats.kv("h", "array:bool", { 1, 0 }),
            formats.kv("i", "array:u64", { 7 }),
        },
        tensors = {
          { name = "x", shape = { 3, 2 }, type = 0, data = ("x"):rep(24) },
          { name = "y", shape = { 5 }, type = 1, data = ("y"):rep(10) },
        },
      }
      with_file(bytes, function(file_path)
        local file = assert(gguf.read(file_path))
        assert.equal(version, file.version)
        local m = file.metadata
        assert.same({ { -1, 2 }, 255, -1, 65535, 0.1, -5, false, { true, false }, { 7 } },
          { m.a, m.b, m.c, m.d, m.e, m.f, m.g, m.h, m.i })
        local x, y = file.tensors[1], file.tensors[2]
        assert.same({ 3, 2 }, x.shape)
        assert.same({ 5 }, y.shape)
        assert.equal(("x"):rep(24), bytes:sub(x.offset + 1, x.offset + x.bytes))
        assert.equal(("y"):rep(10), bytes:sub(y.offset + 1, y.offset + y.bytes))
        assert.equal(0, y.offset % 64)
      end)
    end
  end)

  it("reads a vocabulary of 150 thousand strings quickly", function()
    local words, scores = {}, {}
    for i = 1, 150000 do words[i], scores[i] = "word number " .. i, i end
    local entries = { formats.kv("w", "array:string", words), formats.kv("s", "array:f32", scores) }
    with_file(formats.gguf { metadata = entries }, function(file_path)
      local start = os.clock()
      local file = assert(gguf.read(file_path))
      assert.is_true(os.clock() - start < 2)               -- a tenth of it where nothing else runs
      assert.same(words, file.metadata.w)
      assert.equal(150000, file.metadata.s[150000])
    end)
  end)
end)

describe("rope.compute", function()
  it("knows its scalings and their needs", function()
    local freq, gain = rope.compute({ type = "none", dims = 4, base = 100 }, "x")
    assert.same({ 1, 0.1 }, { freq[1], math.floor(freq[2] * 1e6 + 0.5) / 1e6 })
    assert.equal(1, gain)
    freq = rope.compute({ type = "linear", dims = 2, base = 100, factor = 4 }, "x")
    assert.same({ 0.25 }, freq)
    freq = rope.compute({ type = "none", dims = 2, base = 100, factors = { 2 } }, "x")
    assert.same({ 0.5 }, freq)
    local yarn = { type = "yarn", dims = 8, base = 100, factor = 4, original = 64, beta_fast = 32,
      beta_slow = 1 }
    assert.equal(0.1 * math.log(4) + 1, select(2, rope.compute(yarn, "x")))
    for _, bad in ipairs {
      { type = "dynamic", dims = 2, base = 100 }, { type = "linear", dims = 2, base = 100 },
      { type = "none", dims = 3, base = 100 },
      { type = "none", dims = 2, base = 0 / 0 },
        { type = "linear", dims = 2, base = 100, factor = -1 },
      { type = "none", dims = 4, base = 100, factors = { 1 } },
    } do
      assert.is_false(pcall(rope.compute, bad, "x"))
    end
  end)
end)

describe("loaders.open", function()
  it("tells what a path holds, without a runtime", function()
    local source = assert(loaders.open(family "qwen2-untied" .. "/"))
    assert.equal("hf", source.format)
    assert.equal("qwen2", source.config.family)
    assert.is_false(source.config.tied)
    assert.same({ 2 }, source.config.eos)
    assert.equal(1, source.config.bos)
    assert.is_nil(source.config.window)                    -- named, but switched off
    assert.equal(#loaders.weights(source), 3 + 3 * (9 + 3))
    source = assert(loaders.open(family "mistral"))
    assert.same({ 64, 64, 64 }, source.config.window)
    source = assert(loaders.open(helper.fixture "gguf/qwen3-f16.gguf"))
    assert.equal("gguf", source.format)
    assert.equal(32, source.config.head_dim)
    assert.is_true(source.config.tied)
    assert.equal("half", source.config.rope.style)
    source = assert(loaders.open(helper.fixture "gguf/llama3-bf16.gguf"))
    assert.equal("interleaved", source.config.rope.style)
  end)

  it("names what is wrong with a path", function()
    for path, code in pairs {
      ["/nowhere/at/all"] = "io", ["spec"] = "io", ["spec/helper.lua"] = "format",
        [""] = "argument", ["a\0b"] = "io",
    } do
      local source, message, got = loaders.open(path)
      assert.is_nil(source)
      assert.equal(code, got)
      assert.is_string(message)
    end
  end)
end)

describe("a family", function()
  local function family_of(t) return require("pyramid.families").family(t) end

  it("is one short table, which a call registers", function()
    local lfs = require "lfs"
    require("pyramid.families").register(family_of {
      name = "toy", architectures = { "ToyForCausalLM" }, weights = { "q_norm", "k_norm" },
      names = { hf = { embed = "toy.words", q_norm = "toy.%d.turn_q" } },
    })
    local config = helper.json(family "qwen3" .. "/config.json")
    config.model_type, config.architectures = "toy", { "ToyForCausalLM" }
    local source = assert(safetensors.read(family "qwen3" .. "/model.safetensors"))
    local bytes, tensors = helper.read(source.path), {}
    for i, t in ipairs(source.tensors) do
      local name = t.name:gsub("^model%.embed_tokens%.weight$", "toy.words")
      name = name:gsub("^model%.layers%.(%d+)%.self_attn%.q_norm%.weight$", "toy.%1.turn_q")
      tensors[i] = { name = name, dtype = "BF16", shape = t.shape,
        data = bytes:sub(t.offset + 1, t.offset + t.bytes) }
    end
    local dir = helper.tmp ".toy"
    assert(lfs.mkdir(dir))
    helper.write(dir .. "/config.json", require("cjson").encode(config))
    helper.write(dir .. "/model.safetensors", formats.safetensors(tensors))
    local ok, err = pcall(assert_golden, dir, "qwen3")
    local listed = table.concat(require("pyramid.families").list(), " ")
    for _, name in ipairs { "config.json", "model.safetensors" } do
      os.remove(dir .. "/" .. name)
    end
    lfs.rmdir(dir)
    assert(ok, err)
    for name in lfs.dir "lua/pyramid/families" do
      local bundled = name:match "^(.*)%.lua$"
      assert.equal(bundled ~= nil and bundled ~= "init",
        (" " .. listed .. " "):find(" " .. name:gsub("%.lua$", "") .. " ", 1, true) ~= nil, name)
    end
    assert.truthy(listed:find("toy", 1, true))
  end)

  it("refuses keys that it does not know", function()
    assert.has_error(function() family_of { name = "x", architecture = {} } end,
      "family: unknown key 'architecture' (known: architectures, decoder, defaults, "
        .. "experts, fields, from_gguf, from_hf, fused, gguf, gguf_as, gguf_key, gguf_pattern, "
        .. "gguf_rope, name, names, rope, to_gguf, transposed, weights, window)")
  end)
end)

describe("loaders.load", function()
  it("refuses options that it does not know", function()
    assert.has_error(function() loaders.load(nil, "x", { wieghts = "f32" }) end,
      "loaders.load: unknown option 'wieghts' (known: context, map, scaling, weights)")
    assert.has_error(function() loaders.load(nil, "x", { weights = "q6_k" }) end)
  end)

  it("loads shards", function() assert_golden(family "qwen2-untied", "qwen2-untied") end)

  -- As transformers 5 does (tie_weights): twins that differ are not tied, and one that is missing
  -- is the other.
  describe("a checkpoint that calls its output matrix and embedding one", function()
    local folder
    before_each(function() folder = shell.folder() end)
    after_each(function() shell.remove(folder) end)
    local function copy(name, tied)
      for _, file in ipairs { "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors", "model.safetensors.index.json" } do
        local from = io.open(family(name) .. "/" .. file, "rb")
        if from then
          helper.write(folder .. "/" .. file, from:read "a")
          from:close()
        end
      end
      local config = helper.json(family(name) .. "/config.json")
      config.tie_word_embeddings = tied
      helper.write(folder .. "/config.json", cjson.encode(config))
    end
    -- The weights of a folder, changed: change(tensors) gets and returns { name =, dtype =, shape
    -- =, data = }.
    local function rewrite(change)
      local path = folder .. "/model.safetensors"
      local tensors, bytes = {}, helper.read(path)
      for i, t in ipairs(assert(safetensors.read(path)).tensors) do
        tensors[i] = { name = t.name, dtype = t.dtype:upper(), shape = t.shape,
          data = bytes:sub(t.offset + 1, t.offset + t.bytes) }
      end
      helper.write(path, formats.safetensors(change(tensors)))
    end

    it("and holds two that differ uses each for itself, and says so", function()
      copy("qwen2-untied", true)
      local model <close> = assert(pyramid.model(folder))
      assert.is_false(model.config.tied)
      assert.matches("lm_head.weight differs from model.embed_tokens.weight", model.warnings[1], 1,
        true)
      assert_golden(folder, "qwen2-untied")
    end)

    it("and holds two that are equal uses one", function()
      copy("qwen2", true)
      rewrite(function(tensors)
        for _, t in ipairs(tensors) do
          if t.name == "model.embed_tokens.weight" then
            tensors[#tensors + 1] = { name = "lm_head.weight", dtype = t.dtype, shape = t.shape,
              data = t.data }
            break
          end
        end
        return tensors
      end)
      local model <close> = assert(pyramid.model(folder))
      assert.is_true(model.config.tied)
      assert.same({}, model.warnings)
      assert_golden(folder, "qwen2")
    end)

    it("and holds the output matrix alone uses that for both", function()
      copy("qwen2", true)
      rewrite(function(tensors)
        for _, t in ipairs(tensors) do
          if t.name == "model.embed_tokens.weight" then t.name = "lm_head.weight" end
        end
        return tensors
      end)
      assert_golden(folder, "qwen2")
    end)
  end)

  it("ends texts by what any of its files names", function()
    local folder = shell.folder()
    for _, file in ipairs { "config.json", "model.safetensors" } do
      helper.write(folder .. "/" .. file, helper.read(family "qwen2" .. "/" .. file))
    end
    local config = helper.json(folder .. "/config.json")
    config.eos_token_id = { 7, 5 }
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/generation_config.json", '{"eos_token_id":3}')
    local bare = assert(pyramid.model(folder))
    assert.same({ 3, 7, 5 }, bare.config.eos)
    bare:close()
    helper.write(folder .. "/tokenizer.json",
      '{"model":{"type":"BPE","vocab":{"a":0,"<end>":9,"<|far|>":4000},"merges":[]},'
      .. '"added_tokens":[{"id":9,"content":"<end>","special":true}]}')
    helper.write(folder .. "/tokenizer_config.json", '{"eos_token":"<end>"}')
    local model <close> = assert(pyramid.model(folder))
    assert.same({ 9, 3, 7, 5 }, model.tokenizer.eos)
    assert.same(model.tokenizer.eos, model.config.eos)
    shell.remove(folder)
  end)

  it("converts weights", function()
    for as, limit in pairs { f32 = 1e-4, bf16 = 1e-4, f16 = 1e-3 } do
      assert_golden(family "codellama", "codellama", { weights = as, threads = 2 }, limit)
    end
    -- eight bits: near, but one position of these peaked little models may be far
    assert_golden(family "codellama", "codellama", { weights = "q8_0" }, 0.3)
    local model, message, code = pyramid.model(family "llama-mha", { weights = "q8_0" })
    assert.is_nil(model)
    assert.equal("unsupported", code)                      -- 48 values are no whole blocks
    assert.truthy(message:find "blocks of 32")
  end)

  helper.cpu_only("what it maps; a device has copies", it)("maps what it does not convert",
    function()
    local core = require "pyramid.core"
    local runtime = assert(core.runtime { threads = 1 })
    local before = runtime:memory()
    local loaded = assert(loaders.load(runtime, family "codellama"))
    local mapped = runtime:memory() - before
    assert.is_true(loaded.handle:bytes() > 200000)
    assert.is_true(mapped < 20000)
    loaded.handle:close()
    loaded.handle:close()
    assert.equal(before, runtime:memory())
    runtime:close()
  end)

  it("says where a folder without a model in it could be meant", function()
    local _, message, code = pyramid.model "spec"
    assert.equal("io", code)
    assert.equal("spec: a directory without config.json, so no Hugging Face model; a .gguf file "
      .. "is given by its own path", message)
  end)

  it("reports progress and can be stopped", function()
    local core = require "pyramid.core"
    local runtime = assert(core.runtime { threads = 2 })
    local calls, last = 0, 0
    runtime:on_progress(function(done, total)
      assert(done >= last and done <= total)
      calls, last = calls + 1, done
    end)
    local loaded = assert(loaders.load(runtime, family "codellama", { weights = "f32" }))
    assert.is_true(calls > 20)
    loaded.handle:close()
    local before = runtime:memory()
    runtime:on_progress(function(done) return done > 0 end)
    local none, _, code = loaders.load(runtime, family "codellama", { weights = "f32" })
    assert.is_nil(none)
    assert.equal("cancelled", code)
    assert.equal(before, runtime:memory())
    runtime:on_progress(function() error "stop it" end)
    assert.has_error(function() loaders.load(runtime, family "codellama") end)
    assert.equal(before, runtime:memory())
    runtime:close()
  end)

  it("survives an allocation that fails at every step in turn", function()
    local core = require "pyramid.core"
    local succeeded = false
    local probe = assert(core.runtime { threads = 1 })
    local base = probe:memory()
    probe:close()
    for extra = 0, 600000, 1777 do
      local runtime = core.runtime { threads = 1, memory = base + extra }
      if runtime then
        local loaded, message, code = loaders.load(runtime, family "codellama", { weights = "f32" })
        if loaded then
          loaded.handle:close()
          succeeded = true
        else
          assert.equal("memory", code)
          assert.truthy(message:find "limit")
        end
        assert.is_true(runtime:memory() <= base)
        runtime:close()
      end
    end
    assert.is_true(succeeded)
  end)

  for _, case in ipairs {
    { "llama-mha", "bf16" }, { "llama-mha", "f32" }, { "llama-linear", "bf16" },
      { "llama-yarn", "bf16" },
    { "codellama", "f32" }, { "mistral", "bf16" }, { "qwen2", "bf16" }, { "qwen3", "bf16" },
  } do
    it(("loads %s from GGUF in %s"):format(case[1], case[2]), function()
      local parts = formats.gguf_of(case[1], case[2])
      parts.version = case[2] == "f32" and 2 or 3
      with_file(formats.gguf(parts), function(path) assert_golden(path, case[1]) end)
    end)
  end

  it("loads files that a converter wrote", function()
    assert_golden(helper.fixture "gguf/llama3-bf16.gguf", "llama-gqa-llama3")
    assert_golden(helper.fixture "gguf/qwen3-f16.gguf", "qwen3", nil, 1e-3)
  end)

  it("loads quantised files", function()
    for _, name in ipairs { "codellama-q8_0", "kquants" } do
      local golden = helper.json(helper.fixture("gguf/" .. name .. ".json"))
      local bytes, vocab = helper.read(helper.fixture("gguf/" .. name .. ".bin")), golden.shape[2]
      local model = assert(pyramid.model(helper.fixture("gguf/" .. name .. ".gguf"),
        { precision = "f32" }))
      local cache = assert(model:cache { dtype = "f32" })
      local logits = assert(cache:prefill(golden.ids, { all = true }))
      for i = 1, #logits do  -- activations are rounded to 8 bits on the way
        helper.assert_near(logits[i], helper.floats(bytes, 4 * vocab * (i - 1), vocab),
          name .. ", position " .. i, 0.05)
      end
      cache:close()
      model:close()
    end
  end)

  it("loads what it has no kernels for converted, and says so", function()
    local parts, plain = formats.gguf_of("codellama", "f32"), formats.gguf_of("codellama", "f32")
    local counts, kinds = {}, { "mxfp4", "nvfp4" }
    for i, t in ipairs(parts.tensors) do
      if #t.shape == 2 then
        local kind = kinds[i % 2 + 1]
        local format, values = file_blocks.types[kind]
        t.data, values = file_blocks.random(kind, t.shape[1] * t.shape[2] // format.block, i, -8,
          -6)
        t.type, plain.tensors[i].data = format.type, values
        counts[kind] = (counts[kind] or 0) + 1
      end
    end
    local function read(parts_of, options)
      local logits, warnings
      with_file(formats.gguf(parts_of), function(path)
        options = options or {}
        options.precision = "f32"
        local model <close> = assert(pyramid.model(path, options))
        local cache <close> = assert(model:cache { dtype = "f32" })
        logits, warnings = assert(cache:prefill { 5, 6, 7, 8 }):tostring(), model.warnings
        for i, warning in ipairs(warnings) do warnings[i] = warning:gsub("^.-: ", "FILE: ") end
      end)
      return logits, warnings
    end
    local words = {}
    for i, kind in ipairs(kinds) do words[i] = ("%d tensors of %s"):format(counts[kind], kind) end
    local line = "FILE: " .. table.concat(words, ", ")
      .. " converted to %s (the option 'weights' chooses another dtype)"
    for _, as in ipairs { "f32", "bf16", "q8_0", "q4_0" } do
      local expected, none = read(plain, { weights = as })
      local got, warnings = read(parts, { weights = as })
      assert.is_true(expected == got, as)
      assert.same({}, none)
      assert.same({ line:format(as) }, warnings)
    end
    local got, warnings = read(parts)
    assert.is_true(got == read(plain, { weights = "q8_0" }))
    assert.same({ line:format "q8_0" }, warnings)
    for _, model in ipairs { { weights = "mxfp4" }, { weights = "q4_k" } } do
      assert.error_matches(function() pyramid.model("models/tiny", model) end,
        "known: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1")
    end
  end)

  it("makes room for a longer context, scaled as the same model's configuration would", function()
    for name, scaling in pairs { ["llama-linear"] = "linear", ["llama-yarn"] = "yarn" } do
      local folder = shell.folder()
      local config = helper.json(family(name) .. "/config.json")
      local factor, long = config.rope_scaling.factor, config.max_position_embeddings
      config.rope_scaling, config.max_position_embeddings = nil, math.tointeger(long / factor)
      helper.write(folder .. "/config.json", cjson.encode(config))
      helper.write(folder .. "/model.safetensors",
        helper.read(family(name) .. "/model.safetensors"))
      assert_golden(folder, name, { context = math.tointeger(long), scaling = scaling })
      local plain <close> = assert(pyramid.model(folder, { context = 7 }))
      assert.equal(7, plain.config.context)
      local cache <close> = assert(plain:cache())
      assert.equal("context", select(3, cache:prefill { 1, 2, 3, 4, 5, 6, 7, 8 }))
      shell.remove(folder)
    end
    local result, message, code = pyramid.model(family "llama-yarn",
      { context = 4096, scaling = "linear" })
    assert.is_nil(result)
    assert.matches("llama%-yarn: its RoPE is scaled already %(yarn%), so that linear scaling "
      .. "cannot be asked for", message)
    assert.equal("unsupported", code)
    assert.has_error(function() pyramid.model(family "llama-yarn", { context = 0 }) end,
      "context = 0 (a positive integer is wanted)")
    assert.has_error(function() pyramid.model(family "llama-yarn", { scaling = "ntk" }) end,
      "scaling = 'ntk' (known: linear, none, yarn)")
  end)
end)
