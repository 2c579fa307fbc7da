-- cache:read: texts of any length in bounded memory. Ids are those of the whole text, rows those of
-- a prefill where one block holds it, and what goes wrong leaves the blocks before.
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"
local stream = require "pyramid.stream"

local tiny

setup(function() tiny = assert(pyramid.model("models/tiny", { threads = 2 })) end)
teardown(function() tiny:close() end)

local function book(lines, first)
  local out = {}
  for i = first or 1, (first or 1) + lines - 1 do
    out[#out + 1] = ("Line %d: the captain, %s, sailed %d miles – and more…  \n"):format(i,
      ({ "Ada", "Bôn", "Cé-ci", "日本語の船長", "D'Arcy" })[i % 5 + 1], i * 7919 % 1000)
  end
  return table.concat(out)
end

-- A stream of a text in pieces of so many bytes.
local function in_pieces(text, bytes)
  local at = 1
  return function()
    local piece = text:sub(at, at + bytes - 1)
    at = at + bytes
    return piece ~= "" and piece or nil
  end
end

local function encoder(model)
  return function(text, begins)
    return model:encode(text, { add = false, bos = begins and model.tokenizer.adds_bos or nil })
  end
end

local function all_ids(model, given)
  local reader, out, sizes = stream.open(given, encoder(model), true), {}, {}
  while true do
    local ids = assert(reader:block(100))
    if #ids == 0 then return out, sizes end
    table.move(ids, 1, #ids, #out + 1, out)
    sizes[#sizes + 1] = #ids
  end
end

local function places(cache)
  local out = {}
  for layer = 1, tiny.config.layers do
    for head = 1, tiny.config.kv_heads do
      out[#out + 1] = table.concat(cache:positions(layer, head), " ")
    end
  end
  return out
end

describe("a stream's ids", function()
  it("are those of the whole text, whatever the pieces", function()
    local text = book(900)
    local wanted = assert(tiny:encode(text))
    for _, bytes in ipairs { 1, 2, 3, 999, 20000, #text } do
      local ids, sizes = all_ids(tiny, in_pieces(text, bytes))
      assert.same(wanted, ids)
      for i = 1, #sizes - 1 do assert.equal(100, sizes[i]) end
      assert.is_true(sizes[#sizes] > 25 and sizes[#sizes] <= 125)
    end
    -- no blank anywhere, and no letter at all
    for _, odd in ipairs { ("日本語の船長"):rep(3000), ("\n"):rep(40000), ("x"):rep(40000) } do
      local ids = all_ids(tiny, in_pieces(odd, 7))
      assert.equal(tiny.tokenizer.bos, table.remove(ids, 1))
      assert.is_true(tiny:decode(ids, { raw = true }) == odd)
    end
    assert.same({}, (all_ids(tiny, function() end)))
    assert.same({ 5, 6, 7 }, (all_ids(tiny, { 5, 6, 7 })))
  end)

  it("are those of real tokenizers, too", function()
    local text = book(1200)
    for _, name in ipairs(helper.decoders()) do
      local ok, tokenizer = pcall(pyramid.tokenizer, helper.decoder(name))
      if ok and tokenizer then
        local model = { tokenizer = tokenizer,
          encode = function(_, ...) return tokenizer:encode(...) end }
        local wanted = assert(model.encode(nil, text,
          { add = false, bos = tokenizer.adds_bos or nil }))
        assert.same(wanted, (all_ids(model, in_pieces(text, 5000))), name)
      end
    end
    for _, path in ipairs { helper.model } do
      local tokenizer <close> = assert(pyramid.tokenizer(path))
      local model = { tokenizer = tokenizer,
        encode = function(_, ...) return tokenizer:encode(...) end }
      assert.same(assert(tokenizer:encode(text)), (all_ids(model, in_pieces(text, 5000))))
    end
  end)
end)

describe("reading a stream", function()
  it("is a prefill where one block holds it", function()
    local ids = assert(tiny:encode(book(4)))
    for _, name in ipairs { "full", "snapkv", "h2o", "pyramidinfer", "streaming", "kvzip" } do
      local one <close> = assert(tiny:cache { policy = name, dtype = "f32" })
      local two <close> = assert(tiny:cache { policy = name, dtype = "f32" })
      assert(one:prefill(ids))
      assert.same({ tokens = #ids, blocks = 1 }, assert(two:read(book(4), { block = #ids })))
      assert.same(places(one), places(two))
      assert.equal(assert(one:step(9)):tostring(), assert(two:step(9)):tostring())
    end
  end)

  it("takes as many bytes after 20 blocks as after 2, past the context", function()
    local text, context = book(150), tiny.config.context
    for _, case in ipairs { { "streaming", {} }, { "h2o", {} }, { "snapkv", {} }, { "tova", {} },
      { "keydiff", { recent = 32 } }, { "streaming", { ratio = 0.5, rows = 0 } } } do
      local given = { rows = 150 }
      for key, value in pairs(case[2]) do given[key] = value end
      local cache <close> = assert(tiny:cache {
        policy = policy.endless(policy.load(case[1], given)) })
      local told = {}
      local done = assert(cache:read(in_pieces(text, 3000), { block = 128,
        progress = function(tokens, blocks)
          told[blocks] = { tokens = tokens, bytes = cache:bytes(), rows = cache:rows(1, 2) }
        end }))
      assert.equal(#told, done.blocks)
      assert.is_true(done.blocks > 20 and done.tokens > 2 * context)
      assert.equal(done.tokens, told[#told].tokens)
      assert.equal(done.tokens, cache:tokens())
      for i = 10, #told - 1 do
        assert.equal(told[9].bytes, told[i].bytes, case[1])
        assert.equal(told[9].rows, told[i].rows, case[1])
      end
      assert.is_true(told[9].rows <= 150)
      -- and it goes on from there
      local run <close> = assert(tiny:generate("The captain", { cache = cache, max_tokens = 5,
        ignore_eos = true }))
      for _ in run do assert.is_nil(run.message) end
      assert.equal("length", run.finish)
    end
  end)

  it("lets a policy of the call evict at rest", function()
    local cache <close> = assert(tiny:cache())
    local done = assert(cache:read(book(40), { block = 200,
      policy = policy.load("keydiff", { rows = 64 }) }))
    assert.is_true(done.blocks > 5)
    assert.equal(64, cache:rows(1, 1))
  end)

  it("leaves the blocks before what ends it", function()
    local ids = assert(tiny:encode(book(30)))
    local function check(given, wanted, more)
      local cache <close> = assert(tiny:cache { dtype = "f32" })
      local o = { block = 100 }
      for key, value in pairs(more or {}) do o[key] = value end
      local ok, done, message, code = pcall(cache.read, cache, given, o)
      if ok then assert.is_nil(done) else message = done end
      assert.matches(wanted[1], tostring(message))
      assert.equal(wanted[2], code)
      assert.equal(wanted[3], cache:tokens())
      local whole <close> = assert(tiny:cache { dtype = "f32" })
      if cache:tokens() > 0 then
        for at = 1, cache:tokens(), 100 do
          assert(whole:prefill(helper.slice(ids, at, at + 99)))
        end
        assert.equal(assert(whole:step(9)):tostring(), assert(cache:step(9)):tostring())
      end
    end
    local function after(count, how)
      local at = 0
      return function()
        at = at + 1
        if at > count then return how() end
        return helper.slice(ids, (at - 1) * 50 + 1, at * 50)
      end
    end
    check(after(8, function() error "the pipe burst" end), { "the pipe burst", nil, 300 })
    check(after(8, function() return nil, "the tape tore" end), { "the tape tore", "io", 300 })
    check(after(8, function() return nil, "no", "cancelled" end), { "no", "cancelled", 300 })
    check(after(8, function() return 7 end), { "gave a number", "argument", 300 })
    check(after(8, function() return { 1 << 20 } end),
      { "outside the vocabulary", "argument", 400 })
    check(after(20, function() end), { "cancelled", "cancelled", 200 },
      { progress = function(_, blocks) return blocks == 2 end })
    check(after(20, function() end), { "asked and raised", nil, 100 },
      { progress = function() error "asked and raised" end })
    check(after(1, function() error "at once" end), { "at once", nil, 0 })
  end)

  it("says what it cannot do", function()
    local cache <close> = assert(tiny:cache())
    assert.same({ tokens = 0, blocks = 0 }, assert(cache:read ""))
    assert.same({ tokens = 0, blocks = 0 }, assert(cache:read(function() end)))
    assert.error_matches(function() cache:read(7) end,
      "a function, a file, a text or ids are wanted")
    assert.error_matches(function() cache:read("x", { blocks = 1 }) end,
      "cache:read: unknown option 'blocks' %(known: block, policy, progress, special%)")
    assert.error_matches(function() cache:read("x", { block = 0 }) end,
      "a block is 1 token or more")
    -- nothing is cut: the context is the end
    local done, message, code = cache:read(book(150))
    assert.same({ nil, "context" }, { done, code })
    assert.matches("more than the model's context of 2048", message)
    assert.is_true(cache:tokens() > 2048 - 512 and cache:tokens() <= 2048)
    for _, name in ipairs { "pyramidinfer", "kvzip" } do
      local other <close> = assert(tiny:cache { policy = name })
      done, message, code = other:read(book(40), { block = 256 })
      assert.same({ nil, "policy", 256 }, { done, code, other:tokens() })
      assert.matches("piece", message)
    end
  end)

  it("reads files of any bytes", function()
    local folder = shell.folder()
    local path = folder .. "/bytes"
    local text = book(20) .. "\xff\xfe\xe6\x97" .. book(20) .. "\xe6"
    helper.write(path, text)
    local file <close> = assert(io.open(path, "rb"))
    local cache <close> = assert(tiny:cache())
    local done = assert(cache:read(file, { block = 300 }))
    assert.equal(#assert(tiny:encode(text)), done.tokens)
    shell.remove(folder)
  end)
end)

describe("pyramid generate --stream", function()
  it("reads a file that is longer than the context, then the prompt", function()
    local folder = shell.folder()
    helper.write(folder .. "/book", book(100))
    local out, err, status = shell.pyramid("generate", "--stream", folder .. "/book", "--block",
      "256", "--policy", "h2o", "rows=200", "--json", "-n", "4", "The captain")
    assert.equal(0, status, err)
    out = require "pyramid.json".decode(out)
    assert.equal(#assert(tiny:encode(book(100))), out.stream_tokens)
    assert.is_true(out.stream_tokens > 2048)
    assert.is_true(out.rows[1] < 250)
    out, err, status = shell.pyramid("generate", "--stream", folder .. "/book", "The captain")
    assert.equal(1, status, out)
    assert.matches("more than the model's context", err)
    assert.matches("%-%-policy streaming rows=512", err)
    out, err, status = shell.pyramid("generate", "--block", "3", "x")
    assert.equal(1, status, out)
    assert.matches("%-%-block goes with %-%-stream", err)
    shell.remove(folder)
  end)
end)
