-- model:generate and model:batch on the default model: what a script of one's own relies on.
local pyramid = require "pyramid"
local score = require "pyramid.score"

describe("generation", function()
  local model
  local prompt = "Once upon a time there was a"

  setup(function() model = assert(pyramid.model("models/tiny", { threads = 2 })) end)
  teardown(function() model:close() end)

  local function collect(given)
    local run = assert(model:generate(prompt, given))
    local pieces, ids = {}, {}
    for piece, id in run do
      pieces[#pieces + 1] = piece
      ids[#ids + 1] = id
    end
    return table.concat(pieces), ids, run
  end

  it("yields the greedy continuation, piece by piece", function()
    local text, ids, run = collect { max_tokens = 20, ignore_eos = true }
    assert.equal("length", run.finish)
    assert.equal(20, run.stats.generated_tokens)
    local cache <close> = assert(model:cache())
    local logits = assert(cache:prefill(assert(model:encode(prompt))))
    for i = 1, 20 do
      local id = logits:argmax()
      assert.equal(id, ids[i])
      logits = assert(cache:step(id))
    end
    assert.equal(model:decode { table.unpack(ids, 1, 20) }, text)
  end)

  it("takes ids, and reports what it cost", function()
    local ids = assert(model:encode(prompt))
    local run <close> = assert(model:generate(ids, { max_tokens = 3 }))
    assert.equal(#ids, run.stats.prompt_tokens)
    while run() do end
    assert.is_true(run.stats.prefill_seconds >= 0 and run.stats.decode_seconds >= 0)
    assert.is_true(run.stats.cache_bytes > 0)
    assert.equal(1, run.stats.cache_fraction)
  end)

  it("stops before a stop text, however the pieces fall", function()
    local whole = collect { max_tokens = 40, ignore_eos = true }
    for _, at in ipairs { 5, 9, 17 } do
      local stop = whole:sub(at, at + 3)
      local text, _, run = collect { max_tokens = 40, ignore_eos = true, stop = stop }
      assert.equal(whole:sub(1, whole:find(stop, 1, true) - 1), text)
      assert.equal("stop", run.finish)
    end
    assert.equal(whole, (collect { max_tokens = 40, ignore_eos = true,
      stop = { "\1never", "\2there" } }))
  end)

  it("is the same for the same seed, and another for another", function()
    local function sampled(seed)
      return (collect { max_tokens = 30, sampler = { temperature = 1, seed = seed } })
    end
    assert.equal(sampled(1), sampled(1))
    assert.are_not.equal(sampled(1), sampled(2))
  end)

  it("goes on in a cache of the caller's", function()
    local cache <close> = assert(model:cache { policy = "pyramidinfer" })
    local _, ids, run = collect { cache = cache, max_tokens = 5, ignore_eos = true }
    assert.equal("length", run.finish)
    -- the last pick is not fed
    assert.equal(#assert(model:encode(prompt)) + #ids - 1, cache:tokens())
    run:close()
    assert.is_true(cache:rows(1) > 0)
    assert.has_error(function() model:generate(prompt, { cache = cache, budget = 3 }) end)
  end)

  it("goes on behind rows, whose ids no penalty knows", function()
    local ids = assert(model:encode(prompt))
    local rows, cache <close> = assert(model:embed(ids)), assert(model:cache())
    local last = rows:sub(-4 * model.config.width)
    assert(cache:prefill { embeddings = rows:sub(1, -4 * model.config.width - 1) })
    local run <close> = assert(model:generate({ embeddings = last },
      { cache = cache, max_tokens = 20, ignore_eos = true }))
    assert.equal(1, run.stats.prompt_tokens)
    local pieces = {}
    for piece in run do pieces[#pieces + 1] = piece end
    assert.equal((collect { max_tokens = 20, ignore_eos = true }), table.concat(pieces))
    -- nothing was seen before the first pick: it is what the model alone says
    local penalty = { repeat_penalty = 1e6 }
    local again = assert(model:generate({ embeddings = rows },
      { sampler = penalty, max_tokens = 1 }))
    assert.equal((collect { max_tokens = 1 }), again())
    again:close()
  end)

  it("closes its own cache when the loop is left", function()
    local run
    do
      local closing <close> = assert(model:generate(prompt))
      run = closing
      closing()
    end
    assert.equal("closed", run.finish)
    assert.has_error(function() run.cache:rows(1) end)
  end)

  it("adds nothing before a text that goes on in a used cache", function()
    local bos = assert(model.tokenizer.bos)
    assert.same({ bos }, { assert(model:encode "")[1] })
    local first, second = "Once upon a time", " there was a"
    local cache <close> = assert(model:cache())
    assert(model:generate(first, { cache = cache, max_tokens = 0 }))
    local seen = cache:tokens()
    assert.equal(#assert(model:encode(first)), seen)
    local run = assert(model:generate(second, { cache = cache, max_tokens = 5, ignore_eos = true }))
    local plain = assert(model:encode(second, { add = false }))
    assert.equal(#plain, run.stats.prompt_tokens)
    local other <close> = assert(model:cache())
    assert(other:prefill(assert(model:encode(first))))
    local logits = assert(other:prefill(plain))
    assert.equal(logits:argmax(), select(2, run()))
    -- in an empty cache it is a beginning
    local fresh <close> = assert(model:cache())
    run = assert(model:generate(first, { cache = fresh, max_tokens = 0 }))
    assert.equal(seen, run.stats.prompt_tokens)
  end)

  it("takes whole numbers for integers, as JSON writes them", function()
    local options = { max_tokens = 5.0, ignore_eos = true }
    local text, ids = collect(options)
    assert.equal(5.0, options.max_tokens)
    assert.equal("float", math.type(options.max_tokens))
    assert.equal((collect { max_tokens = 5, ignore_eos = true }), text)
    assert.equal(5, #ids)
    assert.has_error(function() model:generate(prompt, { max_tokens = 5.5 }) end)
    assert.has_error(function() model:generate(prompt, { max_tokens = "5" }) end)
    local cache <close> = assert(model:cache { budget = 2.0 ^ 28,
      policy = { name = "t", prefill = function()
      return { keep = 4.0, score = score.random(1.0):pool("avg", 3.0) }
    end } })
    assert(cache:prefill(assert(model:encode(prompt))))
    local same <close> = assert(pyramid.model("models/tiny",
      { threads = 2.0, context = 512.0, memory = 2.0 ^ 30 }))
    assert.equal(512, same.config.context)
    assert.equal("integer", math.type(same.config.context))
  end)

  it("fails with nil, message, code", function()
    local function code(...) return select(3, ...) end
    assert.equal("argument", code(model:generate({})))
    assert.equal("policy", code(model:generate(prompt, { policy = "nobody" })))
    assert.equal("budget", code(model:generate(prompt, { budget = 10 })))
    assert.equal("cancelled", code(model:generate(prompt,
      { progress = function() return true end })))
    assert.has_error(function() model:generate(prompt, { max_token = 3 }) end)
    local long = {}
    for i = 1, model.config.context - 2 do long[i] = i % model.config.vocab end
    local run = assert(model:generate(long, { max_tokens = 10, ignore_eos = true }))
    for _ in run do end
    assert.equal("context", run.finish)
    assert.is_nil(run.code)
    run:close()
  end)

  it("refuses values that cannot be meant", function()
    local pool = io.tmpfile()
    for i, given in ipairs { { stop = "" }, { stop = { "a", 1 } }, { stop = { a = "b" } },
      { stop = { "a", "" } }, { max_tokens = -1 }, { sampler = 5 }, { sampler = pool },
        { cache = pool } } do
      local ok, message = pcall(function() model:generate(prompt, given) end)
      assert.is_false(ok, "case " .. i)
      assert.truthy(message:find("generate_spec.lua:%d+: model:generate: "), message)
    end
    pool:close()
  end)

  it("keeps working after the batch it shares the model with", function()
    local batch <close> = assert(model:batch { policy = "snapkv" })
    assert(batch:add(assert(model:encode(prompt))))
    assert(batch:add(assert(model:encode "The")))
    for _ = 1, 5 do assert(batch:step()) end
    assert.equal(2, #batch)
    assert.is_true(batch:bytes() > 0)
    assert.has_error(function() batch:push(42, 1) end)
    assert(collect { max_tokens = 3 })
  end)
end)

describe("a vocabulary that is padded beyond its tokenizer", function()
  local random_model = require "pyramid.tools.random_model"
  local shell = require "support.shell"
  local folder, model, ids, beyond

  setup(function()
    folder = shell.folder()
    local shape = setmetatable({ vocab = 2600, layers = 1 }, { __index = random_model.shapes.tiny })
    assert(random_model.write(folder, { shape = shape, dtype = "f32" }))
    assert(os.execute(("cp models/tiny/tokenizer*.json %s/"):format(folder)))
    model = assert(pyramid.model(folder, { device = "cpu", threads = 1 }))
    ids = assert(model:encode "Once upon a time")
    beyond = model.tokenizer.vocab_size
    assert.is_true(beyond < model.config.vocab)
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  -- A sampler that picks nothing but these ids, the first most of all.
  local function only(...)
    local bias = {}
    for i, id in ipairs { ... } do bias[id] = 1e6 - i end
    return { logit_bias = bias }
  end

  it("is the empty text there, wherever ids become text", function()
    assert.equal("", model:decode { beyond, model.config.vocab - 1 })
    assert.equal(model:decode { ids[2], ids[3] }, model:decode { ids[2], beyond, ids[3] })
    local decoder = assert(model.tokenizer:decoder())
    assert.equal("", decoder:push(beyond))
    assert.same({ nil, ("id %d is not in the vocabulary of %d"):format(model.config.vocab,
      model.config.vocab), "argument" }, { model:decode { model.config.vocab } })
    assert.same({ nil, "id -1 is not in the vocabulary of 2600", "argument" },
      { model:decode { -1 } })
    local alone = assert(pyramid.tokenizer("models/tiny"))
    assert.equal("argument", (select(3, alone:decode { beyond })))
  end)

  it("does not end a generation, nor a search for stop texts, nor a batch", function()
    for _, stop in ipairs { false, { "zebra", "\n\n" } } do
      local run = assert(model:generate(ids, { max_tokens = 3, sampler = only(beyond),
        stop = stop or nil }))
      local seen = 0
      for piece, id in run do
        assert.equal("", piece)
        assert.equal(beyond, id)
        seen = seen + 1
      end
      assert.equal(3, seen)
      assert.equal("length", run.finish)
    end
    local batch <close> = assert(model:batch {})
    assert(batch:add(ids, pyramid.sampler(only(beyond))))
    for _ = 1, 3 do assert.equal(beyond, assert(batch:step())[1].id) end
    assert.equal("argument", (select(3, assert(model:cache()):prefill { model.config.vocab })))
  end)

  it("is the empty text in a hole of the tokenizer's own, too", function()
    local core = require "pyramid.core"
    local runtime <close> = assert(core.runtime { threads = 1 })
    local t = assert(core.tokenizer(runtime, { vocab = 4 }))
    assert(t:piece(0, "a"))
    assert(t:piece(3, "b"))
    assert(t:ready())
    assert.equal("ab", t:decode({ 0, 1, 3, 2 }, false, false))
    assert.is_nil(t:spelling(1))
  end)
end)
