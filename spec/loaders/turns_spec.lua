-- Which layers turn their queries and keys, and by which table, as families' configurations say it
-- in more than one way. That the engine does it, families_spec holds against golden logits.
local cjson = require "cjson"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"

local absent = {}

describe("layers that turn", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  -- The configuration of a fixture with other fields; `absent` takes one away.
  local function open(name, fields)
    local dir = helper.fixture("decoders/" .. name)
    local config = helper.json(dir .. "/config.json")
    for key, value in pairs(fields) do config[key] = value ~= absent and value or nil end
    helper.write(folder .. "/config.json", cjson.encode(config))
    helper.write(folder .. "/model.safetensors", helper.read(dir .. "/model.safetensors"))
    return loaders.open(folder)
  end
  local function turns(name, fields)
    local turned = assert(open(name, fields)).config.decoder.turns
    return turned and table.concat(turned, " ")
  end

  it("are listed, or all but each n-th: smollm3", function()
    assert.equal("first none first none", turns("smollm3", { no_rope_layers = { 1, 0, 1, 0 } }))
    assert.equal("first first none first",
      turns("smollm3", { no_rope_layers = absent, no_rope_layer_interval = 3 }))
    assert.equal("first first first none",
      turns("smollm3", { no_rope_layers = absent, no_rope_layer_interval = absent }))
    local source, message, code = open("smollm3",
      { no_rope_layers = absent, no_rope_layer_interval = 0 })
    assert.is_nil(source)
    assert.equal(folder .. "/config.json: no_rope_layer_interval is 0, where a positive number is "
      .. "wanted", message)
    assert.equal("format", code)
  end)

  it("slide where they do not turn: smollm3", function()
    local source = assert(open("smollm3", { layer_types = absent, use_sliding_window = true,
      sliding_window = 24 }))
    assert.same({ 0, 0, 0, 24 }, source.config.window)
  end)

  it("are those that slide, or all where none does: exaone4", function()
    assert.equal("first none first", turns("exaone4", {}))
    assert.equal("none first none", turns("exaone4",
      { layer_types = { "full_attention", "sliding_attention", "full_attention" } }))
    assert.is_nil(turns("exaone4", { sliding_window = cjson.null, layer_types = absent }))
  end)

  it("are listed, whatever the pattern: exaone4", function()
    assert.equal("first none first", turns("exaone4", { sliding_window_pattern = "LG" }))
    local source, message = open("exaone4", { sliding_window_pattern = "LG",
      layer_types = absent })
    assert.is_nil(source)
    assert.equal(folder .. "/config.json: sliding_window_pattern is not an integer", message)
  end)

  it("turn plainly where they slide, by either form of the scaling: olmo3", function()
    local new = assert(open("olmo3", {})).config
    local p = helper.json(helper.fixture "decoders/olmo3" .. "/config.json").rope_parameters
    local old = assert(open("olmo3", { rope_parameters = absent, rope_theta = 10000.0,
      rope_scaling = p.full_attention })).config
    assert.same({ "second", "first", "second" }, new.decoder.turns)
    assert.same(new.decoder.turns, old.decoder.turns)
    assert.same(new.rope.freq, old.rope.freq)
    assert.same(new.rope_second.freq, old.rope_second.freq)
    assert.not_same(new.rope.freq, new.rope_second.freq)
    assert.equal(1, old.rope_second.gain)
  end)

  it("may slide by name: ministral", function()
    assert.same({ 0, 24, 0 }, assert(open("ministral", {})).config.window)
    assert.same({ 24, 24, 24 },
      assert(open("ministral", { layer_types = absent })).config.window)
  end)
end)

-- transformers chose by the length of each sequence: those of 1 and 7 tokens by the short factors,
-- that of 90 by the long ones.
describe("factors that are chosen by the context", function()
  local dir = helper.fixture "decoders/phi3-longrope"
  local golden = helper.json(dir .. "/golden.json")
  local bytes = helper.read(dir .. "/golden.bin")

  local function distance(model, sequence)
    local n, vocab = sequence.shape[1], sequence.shape[2]
    local want = helper.floats(bytes, sequence.offset + 4 * vocab * (n - 1), vocab)
    local cache <close> = assert(model:cache { dtype = "f32" })
    return helper.distance(assert(cache:prefill(sequence.ids)):totable(), want)
  end

  it("are the short ones where a model is opened for no more than the original", function()
    for _, context in ipairs { 32, 20 } do
      local model <close> = assert(pyramid.model(dir, { context = context, threads = 1 }))
      assert.is_true(distance(model, golden.sequences[1]) < 1e-4)
      assert.is_true(distance(model, golden.sequences[2]) < 1e-4)
      assert.same({}, model.warnings)
    end
  end)

  it("are the long ones else, and a line says so", function()
    for _, context in ipairs { 33, 320 } do
      local model <close> = assert(pyramid.model(dir, { context = context, threads = 1 }))
      assert.is_true(distance(model, golden.sequences[2]) > 1e-2)
      if context > 90 then assert.is_true(distance(model, golden.sequences[3]) < 1e-4) end
      assert.equal(("%s: RoPE scaling longrope is that of texts beyond 32 positions, as the model "
        .. "is opened for %d; for shorter ones open it with context = 32"):format(dir, context),
        model.warnings[1])
    end
  end)

  it("are of all rows of a cache, saved ones, too", function()
    local path = helper.tmp()
    local short <close> = assert(pyramid.model(dir, { context = 32, threads = 1 }))
    local long <close> = assert(pyramid.model(dir, { threads = 1 }))
    local cache <close> = assert(long:cache { dtype = "f32" })
    assert(cache:prefill(helper.slice(golden.sequences[3].ids, 1, 20)))
    assert(cache:save(path))
    local loaded, message, code = short:load_cache(path, { dtype = "f32" })
    os.remove(path)
    assert.is_nil(loaded)
    assert.equal("format", code)
    assert.matches("arithmetic is that of another model", message)
  end)

  it("leave the gain that a file states", function()
    for _, name in ipairs { "ministral3", "phi3-longrope" } do
      local own = assert(loaders.open(helper.fixture("decoders/" .. name))).config.rope.gain
      local model <close> = assert(pyramid.model(helper.fixture("decoders/" .. name),
        { context = 24, threads = 1 }))
      assert.equal(own, model.config.rope.gain)
    end
  end)
end)
