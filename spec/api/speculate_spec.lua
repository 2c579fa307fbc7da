-- Speculation changes the time a text takes, never the text: greedy and sampled, by lookup and by a
-- draft model, under policies, at stops and ends; and what a cache then holds is the same.
local pyramid = require "pyramid"
local speculate = require "pyramid.speculate"

describe("speculation", function()
  local model, smaller
  local prompt = "The dog ran to the tree. The cat ran to the tree. The dog ran to the"

  setup(function()
    model = assert(pyramid.model("models/tiny", { threads = 2 }))
    smaller = assert(pyramid.model("models/tiny", { threads = 1 }))
  end)
  teardown(function()
    model:close()
    smaller:close()
  end)

  -- A clock by which a pass costs as much whatever is in it: guesses always pay.
  local function eager()
    local now = 0
    return function()
      now = now + 1
      return now
    end
  end

  local function collect(given, from)
    local run <close> = assert(model:generate(from or prompt, given))
    local pieces, ids = {}, {}
    for piece, id in run do pieces[#pieces + 1], ids[#ids + 1] = piece, id end
    return { text = table.concat(pieces), ids = ids, finish = run.finish,
      tokens = run.cache:tokens(), rows = run.cache:positions(1), logprobs = run.logprobs },
      run.stats
  end

  local function compare(given, how, from)
    local plain = collect(given, from)
    local guessed = {}
    for key, value in pairs(given) do guessed[key] = value end
    guessed.speculate, guessed.clock = how or true, eager()
    local found, stats = collect(guessed, from)
    assert.same(plain, found)
    return stats
  end

  it("writes the same text, greedy", function()
    local stats = compare { max_tokens = 120, ignore_eos = true }
    assert.is_true(stats.drafted > 0 and stats.accepted > 0)
    assert.is_true(stats.accepted <= stats.drafted)
  end)

  it("writes the same text, sampled, with penalties and log-probabilities", function()
    for seed = 1, 5 do
      compare { max_tokens = 60, ignore_eos = true, logprobs = 2,
        sampler = { temperature = 0.8, seed = seed, repeat_penalty = 1.1 } }
    end
  end)

  it("writes the same text under policies, also those that track attention", function()
    for _, name in ipairs { "pyramidinfer", "streaming", "scissorhands", "tova" } do
      compare { max_tokens = 60, ignore_eos = true, policy = name }
    end
  end)

  it("ends where it would: at a stop text, an id, the length, the context", function()
    local whole = collect { max_tokens = 60, ignore_eos = true }
    for _, at in ipairs { 4, 11, 30 } do
      compare { max_tokens = 60, ignore_eos = true, stop = whole.text:sub(at, at + 3) }
      compare { max_tokens = at, ignore_eos = true }
    end
    compare { max_tokens = 400 }
    local context = model.config.context
    local ids = assert(model:encode(prompt))
    local long = {}
    for i = 1, context - 20 do long[i] = ids[(i - 1) % #ids + 1] end
    local stats = compare({ max_tokens = 100, ignore_eos = true }, true, long)
    assert.is_true(stats.drafted > 0)
  end)

  it("takes guesses from a draft model", function()
    local stats = compare({ max_tokens = 50, ignore_eos = true }, { draft = smaller, most = 4 })
    assert.equal(stats.drafted, stats.accepted, "the same model guesses what it would pick")
    assert.is_true(stats.drafted >= 30)
    compare({ max_tokens = 50, ignore_eos = true, sampler = { temperature = 1, seed = 4 } },
      { draft = smaller, most = 4 })
  end)

  it("leaves a cache in the middle where the run was closed", function()
    local cache <close> = assert(model:cache())
    local run = assert(model:generate(prompt, { cache = cache, speculate = true, clock = eager(),
      ignore_eos = true, max_tokens = 60 }))
    local ids = assert(model:encode(prompt))
    for _ = 1, 33 do
      local _, id = run()
      ids[#ids + 1] = id
    end
    run:close()
    assert.equal(#ids - 1, cache:tokens())
    local twin <close> = assert(model:cache())
    assert(twin:prefill(assert(model:encode(prompt))))
    for i = twin:tokens() + 1, #ids - 1 do assert(twin:step(ids[i])) end
    assert.equal(assert(twin:step(9)):tostring(), assert(cache:step(9)):tostring())
  end)

  it("refuses another vocabulary, and what is no number of guesses", function()
    local other <close> = assert(pyramid.model("spec/fixtures/gguf/codellama-q8_0.gguf"))
    other.tokenizer = { fingerprint = function() return 1 end, close = function() end }
    local run, message, code = model:generate(prompt, { speculate = { draft = other } })
    assert.is_nil(run)
    assert.equal("argument", code)
    assert.matches("another vocabulary", message, 1, true)
    for _, wrong in ipairs { { most = 0 }, { most = 47 }, { draft = 5 }, { mist = 1 } } do
      assert.has_error(function() model:generate(prompt, { speculate = wrong }) end)
    end
  end)
end)

describe("the drafter", function()
  local fake = { config = { vocab = 100 } }
  local function drafter(ids, costs, most)
    local d = assert(speculate.new("x", fake, { most = most or 8 }, ids, function() return 0 end))
    for n, seconds in pairs(costs) do d:took(n, seconds) end
    return d
  end
  local flat = { [1] = 1, [2] = 1, [3] = 1, [5] = 1, [9] = 1 }

  it("goes on from the longest match, the latest of equals", function()
    local d = drafter({ 1, 2, 3, 50, 9, 2, 3, 60, 8, 2, 3, 61, 7, 1, 2, 3 }, flat)
    assert.same({ 50, 9, 2, 3, 60, 8, 2, 3 }, d:draft(8))
    d = drafter({ 9, 2, 3, 60, 8, 2, 3, 61, 7, 2, 3 }, flat, 2)
    assert.same({ 61, 7 }, d:draft(8))
    assert.same({}, drafter({ 1, 2, 3 }, flat):draft(8))
  end)

  it("repeats what repeats", function()
    assert.same({ 5, 6, 5, 6, 5 }, drafter({ 5, 6, 5, 6 }, flat, 5):draft(5))
  end)

  it("guesses no more than pays, and again after what did not hold", function()
    local ids = { 5, 6, 7, 8, 5, 6 }
    assert.same({}, drafter(ids, { [1] = 1, [2] = 3, [3] = 5, [9] = 17 }):draft(8))
    local d = drafter(ids, { [1] = 1, [2] = 1.2, [3] = 1.4, [5] = 1.8, [9] = 2.6 })
    assert.is_true(#d:draft(8) > 0)
    for _ = 1, 10 do d:learn(0, 1) end
    assert.same({}, d:draft(8))
    local rounds = 0
    while #d:draft(8) == 0 and rounds < 1000 do rounds = rounds + 1 end
    assert.is_true(rounds > 5 and rounds < 1000)
  end)

  it("guesses nothing before it knows what a step takes", function()
    assert.same({}, drafter({ 5, 6, 5, 6 }, {}):draft(5))
  end)
end)
