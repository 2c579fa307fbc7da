-- Which layers turn their queries and keys, and by which table, as families' configurations say it
-- in more than one way. That the engine does it, families_spec holds against golden logits.
local cjson = require "cjson"
local helper = require "spec.helper"
local loaders = require "pyramid.loaders"
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
