-- Models split over several GGUF files: opened by the first, refused by name for whatever of the
-- others is missing, or not of this model.
local formats = require "spec.support.formats"
local helper = require "spec.helper"
local inspect = require "pyramid.tools.inspect"
local loaders = require "pyramid.loaders"
local pyramid = require "pyramid"

local kv = formats.kv

describe("a split GGUF file", function()
  local prefix = helper.tmp "-big"
  local whole, written = formats.gguf_of("llama-mha", "bf16"), {}

  local function path_of(i, count) return ("%s-%05d-of-%05d.gguf"):format(prefix, i, count or 3) end

  --- The header and tensors of part i of 3, as gguf-split writes them: the first has all metadata.
  local function part(i, numbers)
    numbers = numbers or {}
    local metadata = i == 1 and table.move(whole.metadata, 1, #whole.metadata, 1, {}) or {}
    for _, entry in ipairs(numbers.more or {}) do metadata[#metadata + 1] = entry end
    for _, entry in ipairs { { "split.no", "u16", numbers.no or i - 1 },
      { "split.count", "u16", numbers.count or 3 },
      { "split.tensors.count", "i32", numbers.tensors or #whole.tensors } } do
      if entry[1] ~= numbers.without then metadata[#metadata + 1] = kv(table.unpack(entry)) end
    end
    local per = (#whole.tensors + 2) // 3
    local tensors = table.move(whole.tensors, per * (i - 1) + 1, math.min(per * i, #whole.tensors),
      1, {})
    return { metadata = metadata, tensors = tensors }
  end

  local function write(path, made)
    written[path] = true
    helper.write(path, formats.gguf(made))
  end

  local function refused(path, code, ...)
    local source, message, got = loaders.open(path)
    assert.is_nil(source)
    for _, words in ipairs { ... } do assert.truthy(message:find(words, 1, true), message) end
    assert.equal(code, got, message)
  end

  before_each(function()
    for i = 1, 3 do write(path_of(i), part(i)) end
  end)
  after_each(function()
    for path in pairs(written) do os.remove(path) end
    written = {}
  end)

  it("gives the logits of the file in one", function()
    local single = helper.tmp ".gguf"
    write(single, whole)
    local function logits_of(path)
      local model <close> = assert(pyramid.model(path))
      local cache <close> = assert(model:cache())
      return assert(cache:prefill { 5, 9, 100, 2 }):totable()
    end
    assert.same(logits_of(single), logits_of(path_of(1)))
  end)

  it("may have nothing but metadata in its first part", function()
    local first, second = part(1), part(2)
    table.move(first.tensors, 1, #first.tensors, #second.tensors + 1, second.tensors)
    first.tensors = {}
    write(path_of(1), first)
    write(path_of(2), second)
    assert.equal(#whole.tensors, #assert(loaders.weights(assert(loaders.open(path_of(1))))))
  end)

  it("is inspected by its first part, with the tensors of all", function()
    local told = assert(inspect.model(path_of(1)))
    assert.equal(#whole.tensors, told.tensor_count)
    assert.is_nil(told.problem)
    assert.equal("bf16", told.totals[1].dtype)
    local paths = {}
    for _, t in ipairs(told.tensors) do paths[t.path] = true end
    assert.same({ [path_of(1)] = true, [path_of(2)] = true, [path_of(3)] = true }, paths)
    -- another part is described alone, and says what it is
    told = assert(inspect.model(path_of(2)))
    assert.equal(#part(2).tensors, told.tensor_count)
    assert.truthy(told.problem:find(path_of(1), 1, true), told.problem)
  end)

  it("is not opened by another part, whatever that is called", function()
    refused(path_of(3), "format", path_of(3), "split.no is 2: this is part 3 of 3", path_of(1))
    local alone = helper.tmp ".gguf"
    write(alone, part(2))
    refused(alone, "format", alone, "part 2 of 3", "ends in -00001-of-00003.gguf")
  end)

  it("needs names by which its parts can be found", function()
    local alone = helper.tmp ".gguf"
    write(alone, part(1))
    refused(alone, "format", "split.count is 3", "-00001-of-00003.gguf")
    write(path_of(1, 4), part(1))
    refused(path_of(1, 4), "format", "split.count is 3", "-00001-of-00003.gguf")
    os.rename(path_of(1), path_of(2))                        -- the first under the second's name
    refused(path_of(2), "format", "split.count is 3", "-00001-of-00003.gguf")
  end)

  it("needs all its parts", function()
    os.remove(path_of(2))
    refused(path_of(1), "io", path_of(2), "part 2 of 3", path_of(1))
  end)

  it("has numbers that agree", function()
    local changed = { { { count = 4 }, "split.count is 4" }, { { no = 1 }, "split.no is 1" },
      { { tensors = 7 }, "split.tensors.count is 7" },
      { { without = "split.no" }, "split.no is missing" },
      { { without = "split.count" }, "split.count is missing" } }
    for _, case in ipairs(changed) do
      write(path_of(3), part(3, case[1]))
      refused(path_of(1), "format", path_of(3), case[2])
    end
    write(path_of(3), part(3))
    write(path_of(1), part(1, { without = "split.no" }))
    refused(path_of(1), "format", path_of(1), "split.no is missing")
    for _, count in ipairs { 2000, 65535 } do
      write(path_of(1), part(1, { count = count }))
      refused(path_of(1), "format", path_of(1), ("split.count is %d"):format(count), "1..1024")
    end
    for i = 1, 3 do write(path_of(i), part(i, { tensors = 5 })) end
    refused(path_of(1), "format", path_of(1), "split.tensors.count is 5",
      ("hold %d tensors"):format(#whole.tensors))
  end)

  it("is of one model", function()
    write(path_of(2), part(2, { more = { kv("general.architecture", "string", "qwen2") } }))
    refused(path_of(1), "format", path_of(2), "general.architecture is qwen2", "llama")
    local twice = part(2)
    twice.tensors[1] = part(1).tensors[2]
    write(path_of(2), twice)
    refused(path_of(1), "format", path_of(2), twice.tensors[1].name, path_of(1))
    helper.write(path_of(2), "GGUF")                        -- a part that is broken says so itself
    refused(path_of(1), "format", path_of(2), "version")
  end)

  it("is a file of its own where there is one part", function()
    for _, count in ipairs { 0, 1 } do
      local alone = helper.tmp ".gguf"
      local made = { metadata = table.move(whole.metadata, 1, #whole.metadata, 1, {}),
        tensors = whole.tensors }
      table.insert(made.metadata, kv("split.count", "u16", count))
      write(alone, made)
      assert(loaders.open(alone))
    end
  end)
end)
