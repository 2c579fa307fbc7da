-- An output that is tied to the embedding: a copy in the backend's order where products are of
-- bytes, and the embedding's own rows elsewhere.
local helper = require "spec.helper"
local pyramid = require "pyramid"
local convert = require "pyramid.tools.convert"
local core = require "pyramid.core"
local json = require "pyramid.json"
local probe = require "pyramid.probe"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

describe("a tied output", function()
  local folder
  local ids = helper.ids(40, 4096, 3)
  setup(function()
    folder = shell.folder()
    assert(random_model.write(folder, { dtype = "f32", seed = 5, shape = { layers = 2, width = 64,
      heads = 4, kv_heads = 2, ff = 96, vocab = 4096, context = 256 } }))
    local path = folder .. "/config.json"
    local untied = helper.read(path)
    local tied, count = untied:gsub('"tie_word_embeddings": *false', '"tie_word_embeddings":true')
    assert(count == 1, untied)
    helper.write(path, tied)
    -- The output's bytes become the embedding's: of others, each would be used for itself.
    local file = folder .. "/model.safetensors"
    local bytes = helper.read(file)
    local size = ("<I8"):unpack(bytes)
    local header = json.decode(bytes:sub(9, 8 + size))
    local embed, output = header["model.embed_tokens.weight"], header["lm_head.weight"]
    local function place(t) return 8 + size + t.data_offsets[1], 8 + size + t.data_offsets[2] end
    local from, to = place(embed)
    local at, stop = place(output)
    helper.write(file, bytes:sub(1, at) .. bytes:sub(from + 1, to) .. bytes:sub(stop + 1))
  end)
  teardown(function() shell.remove(folder) end)

  local function logits(options)
    local model <close> = assert(pyramid.model(folder, options))
    local cache <close> = assert(model:cache { dtype = "f32" })
    local read = assert(cache:prefill(ids)):totable()
    return read, assert(cache:step(7)):totable(),
      assert(model:embed { 0, 15, 16, 4095 })
  end

  it("predicts what the embedding's rows say, and leaves those as they are", function()
    local exact, stepped, rows = logits { weights = "q8_0", precision = "f32", threads = 1 }
    local read, step, embedded = logits { weights = "q8_0", precision = "int8", threads = 2 }
    local function near(want, got, what)
      local sum, off = 0.0, 0.0
      for i, x in ipairs(want) do sum, off = sum + x * x, off + (x - got[i]) ^ 2 end
      assert.truthy(off < sum * 0.05 ^ 2, ("%s: %g of %g"):format(what, off, sum))
    end
    near(exact, read, "prompt")
    near(stepped, step, "step")
    assert.equal(rows, embedded)
  end)

  it("is streamed on a device, as other quantised weights are", function()
    local device = core.default_device() == "cpu" and "emulated" or core.default_device()
    local file = folder .. "/tied.gguf"
    assert(convert.write(folder, file, { weights = "q8_0" }))
    local function results(name)
      local model <close> = assert(pyramid.model(file, { precision = "f32", device = name }))
      local cache <close> = assert(model:cache { dtype = "f32" })
      local read = assert(cache:prefill(ids)):totable()
      local step = assert(cache:step(7)):totable()
      local ways = name ~= "cpu" and assert(probe.device_ways(model:runtime()))
      return read, step, assert(model:embed { 0, 15, 16, 4095 }), ways
    end
    local read, step, rows = results "cpu"
    local its_read, its_step, its_rows, ways = results(device)
    assert.same({ 0, 2 * (2 * 7 + 1) }, { ways.plain, ways.stream })
    assert.equal(rows, its_rows)
    for i = 1, #read do
      assert.near(read[i], its_read[i], 1e-3)
      assert.near(step[i], its_step[i], 1e-3)
    end
  end)

  it("is no copy where a memory limit leaves no room for caches beside it", function()
    if not helper.model then pending "needs models/fetched (make models)" end
    local function held(memory)
      local model <close> = assert(pyramid.model(helper.model, { precision = "int8", threads = 1,
        memory = memory }))
      return model:runtime():memory(), model.config
    end
    local whole, config = held()
    if whole < config.vocab * config.width // 2 then
      pending "this processor has no products of bytes, for which the copy is made"
    end
    local without = held(whole)
    local copy = whole - without
    assert.truthy(copy > config.vocab * config.width // 2, "no copy was left out")
    assert.equal(without, held(without + copy * 3 // 2))
    assert.equal(whole, held(without + 3 * copy))
  end)
end)
