-- The engine behind `pyramid serve`, without HTTP: what it writes is what each request would get
-- alone, whatever joins and leaves; what does not fit waits or is refused; nothing is kept that
-- nobody needs.
local core = require "pyramid.core"
local helper = require "spec.helper"
local pyramid = require "pyramid"
local serve = require "pyramid.serve.engine"

describe("the engine of pyramid serve", function()
  local model

  setup(function() model = assert(pyramid.model("models/tiny", { threads = 2,
    precision = "f32" })) end)
  teardown(function() model:close() end)

  local function ids(n, seed) return helper.ids(n, model.config.vocab, seed) end

  -- Submits; what comes is noted in what is returned.
  local function ask(engine, given)
    local seen = { ids = {}, text = {}, logprobs = {} }
    given.samplers = given.samplers or { assert(pyramid.sampler()) }
    function given.on_event(choice, event)
      if event.id and choice.index == 1 then
        seen.ids[#seen.ids + 1] = event.id
        seen.logprobs[#seen.logprobs + 1] = event.logprob
      end
      local texts = seen.text
      texts[choice.index] = (texts[choice.index] or "") .. event.text
      if event.finish then
        seen[choice.index] = { finish = event.finish, message = event.message, code = event.code,
          held = engine:held(choice) }
      end
    end
    local message, code
    seen.request, message, code = engine:submit(given)
    if not seen.request then return nil, message, code end
    return seen
  end

  local function finish(engine)
    for _ = 1, 20000 do
      if not engine:tick() then return end
    end
    error "it does not come to an end"
  end

  -- What generation writes of a prompt that is read at once.
  local function alone(prompt, given)
    given.ignore_eos = given.ignore_eos == nil or given.ignore_eos
    local run <close> = assert(model:generate(prompt, given))
    local list, text = {}, {}
    for piece, id in run do
      list[#list + 1], text[#text + 1] = id, piece
    end
    return list, table.concat(text), run.finish
  end

  it("writes what each request gets alone, whatever joins and leaves", function()
    local names = { "full", "pyramidinfer", "h2o", "snapkv", "streaming", "tova", "pyramidkv" }
    local seed = os.time()
    local engine <close> = serve.new(model, { memory = "512 MiB" })
    local asked = {}
    local state = seed
    local function draw(n)
      state = (state * 1103515245 + 12345) % 2147483648
      return state // 65536 % n + 1
    end
    for i = 1, 30 do
      local given = { policy = assert(pyramid.policy(names[draw(#names)])),
        dtype = ({ "f16", "f32", "q8_0" })[draw(3)], max_tokens = draw(30), ignore_eos = true,
        ids = ids(({ 1, 3, 31, 32, 33, 63, 64, 65, 200, 255, 256, 257, 300, 513, 700 })[draw(15)],
          seed + i) }
      local text, policy, dtype = given.ids, given.policy, given.dtype
      local length = given.max_tokens
      asked[i] = { what = ("seed %d, request %d: %s, %s, %d tokens"):format(seed, i, policy.name,
        dtype, #text), given = { policy = policy, dtype = dtype, max_tokens = length },
        prompt = text, seen = assert(ask(engine, given)) }
      for _ = 1, draw(6) do engine:tick() end
    end
    finish(engine)
    for _, one in ipairs(asked) do
      local want, text = alone(one.prompt, one.given)
      assert.same(want, one.seen.ids, one.what)
      assert.equal(text, one.seen.text[1], one.what)
      assert.equal("length", one.seen[1].finish, one.what)
    end
    assert.same({ 0, 0, 0 }, { #engine.waiting, #engine.reading, #engine.running })
    assert.equal(30, engine.counts.finished)
  end)

  it("takes steps for those who write while a long prompt is read, at once or in pieces", function()
    for _, name in ipairs { "full", "h2o", "fastkv" } do
      local engine <close> = serve.new(model)
      local short = assert(ask(engine, { ids = ids(20, 3), max_tokens = 200, ignore_eos = true }))
      for _ = 1, 3 do engine:tick() end
      local long = assert(ask(engine, { ids = ids(1500, 4), max_tokens = 5, ignore_eos = true,
        policy = assert(pyramid.policy(name)) }))
      local before = #short.ids
      while long.request.status ~= "running" do engine:tick() end
      assert.is_true(#short.ids - before >= 5, ("%s: %d steps"):format(name, #short.ids - before))
      finish(engine)
      assert.same(alone(ids(20, 3), { max_tokens = 200 }), short.ids)
      assert.same(alone(ids(1500, 4), { max_tokens = 5, policy = name }), long.ids)
      assert.equal(name == "full", long.request.whole == nil)
    end
  end)

  it("lets a short prompt be read within a long one that is read at once", function()
    local engine <close> = serve.new(model)
    local long = assert(ask(engine, { ids = ids(1500, 5), max_tokens = 2,
      policy = assert(pyramid.policy "h2o") }))
    local short
    local pumped = 0
    function engine.pump()
      pumped = pumped + 1
      if not short then short = assert(ask(engine, { ids = ids(40, 6), max_tokens = 2,
        ignore_eos = true })) end
    end
    engine:tick()
    assert.is_true(pumped > 1)
    assert.equal("length", short[1].finish)
    assert.same(alone(ids(40, 6), { max_tokens = 2 }), short.ids)
    finish(engine)
    assert.is_true(short.request.first < long.request.first)
  end)

  it("reads a beginning once, of the same user's", function()
    local engine <close> = serve.new(model)
    local shared = ids(400, 7)
    local function prompt(seed) return table.move(ids(30, seed), 1, 30, 401,
      table.move(shared, 1, 400, 1, {})) end
    for _, name in ipairs { "full", "snapkv" } do
      local policy = assert(pyramid.policy(name))
      for i, owner in ipairs { "a", "a", "a", "b" } do
        local seen = assert(ask(engine, { ids = prompt(i), owner = owner, max_tokens = 6,
          policy = policy, ignore_eos = true }))
        finish(engine)
        assert.same(alone(prompt(i), { max_tokens = 6, policy = policy }), seen.ids)
        -- snapkv judges with the last 32 of 430
        local most = name == "snapkv" and 398 or 400
        assert.equal((i == 2 or i == 3) and most or 0, seen.request.reused, name)
      end
    end
    local h2o = assert(ask(engine, { ids = prompt(1), owner = "a", max_tokens = 6,
      policy = assert(pyramid.policy "h2o") }))
    finish(engine)
    assert.equal(0, h2o.request.reused)
    assert.matches("queries", h2o.request.whole)
  end)

  it("reads it once, too, where all come at the same time; and shares where the operator does",
    function()
    local engine <close> = serve.new(model, { share = true })
    local shared, seen = ids(600, 8), {}
    for i = 1, 10 do
      local prompt = table.move(ids(20, i), 1, 20, 601, table.move(shared, 1, 600, 1, {}))
      seen[i] = assert(ask(engine, { ids = prompt, owner = "user " .. i, max_tokens = 4,
        ignore_eos = true }))
    end
    finish(engine)
    assert.is_true(engine.counts.reused_tokens >= 9 * 600)
    for i = 1, 10 do
      local prompt = table.move(ids(20, i), 1, 20, 601, table.move(shared, 1, 600, 1, {}))
      assert.same(alone(prompt, { max_tokens = 4 }), seen[i].ids)
    end
  end)

  it("goes on with what a request wrote", function()
    local engine <close> = serve.new(model)
    local first = assert(ask(engine, { ids = ids(100, 9), max_tokens = 40, ignore_eos = true }))
    finish(engine)
    local prompt = table.move(first.ids, 1, 40, 101, ids(100, 9))
    table.move({ 5, 6, 7 }, 1, 3, #prompt + 1, prompt)
    local second = assert(ask(engine, { ids = prompt, max_tokens = 5, ignore_eos = true }))
    finish(engine)
    assert.is_true(second.request.reused >= 139)
    assert.same(alone(prompt, { max_tokens = 5 }), second.ids)
  end)

  it("writes several texts of one prompt, each by its sampler", function()
    local engine <close> = serve.new(model)
    local function sampler(seed)
      return assert(pyramid.sampler { temperature = 1, seed = seed })
    end
    for _, name in ipairs { "full", "h2o" } do
      local seen = assert(ask(engine, { ids = ids(50, 10), max_tokens = 12, ignore_eos = true,
        policy = assert(pyramid.policy(name)), samplers = { sampler(1), sampler(2), sampler(3) } }))
      finish(engine)
      for i = 1, 3 do
        local _, text = alone(ids(50, 10), { max_tokens = 12, policy = name,
          sampler = { temperature = 1, seed = i } })
        assert.equal(text, seen.text[i])
      end
      assert.equal(50, engine.counts.prompt_tokens)
      engine.counts.prompt_tokens = 0
    end
  end)

  it("ends texts before a text, at a token, by a grammar, and at the context's end", function()
    local engine <close> = serve.new(model)
    local prompt = assert(model:encode "Once upon a time")
    local _, text = alone(prompt, { max_tokens = 60 })
    local stop = text:sub(20, 26)
    local seen = assert(ask(engine, { ids = prompt, stop = { stop }, max_tokens = 60,
      ignore_eos = true }))
    local guided = assert(ask(engine, { ids = prompt, max_tokens = 30, samplers = {
      assert(pyramid.sampler { grammar = [[root ::= "yes" | "no"]] }) } }))
    local ended = assert(ask(engine, { ids = prompt, max_tokens = 3000 }))
    local n = model.config.context - 3
    local full = assert(ask(engine, { ids = ids(n, 1), max_tokens = 10, ignore_eos = true }))
    finish(engine)
    assert.equal(text:sub(1, text:find(stop, 1, true) - 1), seen.text[1])
    assert.equal("stop", seen[1].finish)
    assert.is_true(guided.text[1] == "yes" or guided.text[1] == "no")
    assert.equal("grammar", guided[1].finish)
    local _, whole, why = alone(prompt, { max_tokens = 3000, ignore_eos = false })
    assert.equal(whole, ended.text[1])
    assert.equal(why, ended[1].finish)
    assert.equal("context", full[1].finish)
    assert.equal(4, #full.ids)
    local none, message, code = ask(engine, { ids = ids(n + 4, 1) })
    assert.is_nil(none)
    assert.equal("context", code)
    assert.matches("context is", message)
  end)

  it("tells what the model says of what is written, and of the prompt", function()
    local engine <close> = serve.new(model)
    local prompt = ids(90, 11)
    local seen = assert(ask(engine, { ids = prompt, max_tokens = 8, logprobs = 3, echo = true,
      dtype = "f32", ignore_eos = true }))
    finish(engine)
    local all = table.move(seen.ids, 1, 8, 91, table.move(prompt, 1, 90, 1, {}))
    local found = assert(model:score({ all[1] }, table.move(all, 2, 98, 1, {}), { dtype = "f32" }))
    for i = 2, 90 do
      local said = seen.request.echoed[i]
      assert.equal(all[i], said.id)
      assert.near(found.logprobs[i - 1], said.logprob, 1e-4)
      assert.equal(3, #said.ids)
    end
    for i = 1, 8 do assert.near(found.logprobs[89 + i], seen.logprobs[i], 1e-4) end
    local none, message, code = ask(engine, { ids = prompt, logprobs = 0, echo = true,
      policy = assert(pyramid.policy "snapkv") })
    assert.is_nil(none)
    assert.equal("unsupported", code)
    assert.matches("snapkv", message)
  end)

  it("admits what fits, lets none be passed for ever, and refuses what never fits", function()
    local row = 2 * model.config.layers * model.config.kv_heads * (2 * model.config.head_dim + 4)
    local engine <close> = serve.new(model, { memory = row * 1400 })
    local large = assert(ask(engine, { ids = ids(600, 1), max_tokens = 40, ignore_eos = true }))
    local second = assert(ask(engine, { ids = ids(900, 2), max_tokens = 4, ignore_eos = true }))
    engine:tick()
    assert.equal("reading", large.request.status)
    assert.equal("waiting", second.request.status)
    local small = assert(ask(engine, { ids = ids(20, 3), max_tokens = 2, ignore_eos = true }))
    engine:tick()
    assert.is_not.equal("waiting", small.request.status)
    finish(engine)
    for _, seen in ipairs { large, second, small } do assert.equal("length", seen[1].finish) end
    local none, message, code = ask(engine, { ids = ids(1000, 2), max_tokens = 800 })
    assert.is_nil(none)
    assert.equal("budget", code)
    assert.matches("bytes of rows", message)
    assert.is_true(engine:bytes() <= row * 1400)
    local single <close> = assert(serve.new(model, { queue = 6, parallel = 1 }))
    for i = 1, 7 do assert(ask(single, { ids = ids(20, i), max_tokens = 2 })) end
    none, message, code = ask(single, { ids = ids(20, 9) })
    assert.is_nil(none)
    assert.equal("busy", code)
    assert.matches("6 requests", message)
    finish(single)
  end)

  it("names a budget that is full, and goes on with the others", function()
    local engine <close> = serve.new(model)
    local other = assert(ask(engine, { ids = ids(30, 1), max_tokens = 100, ignore_eos = true }))
    local small = assert(ask(engine, { ids = ids(500, 1), max_tokens = 4, budget = 4096 }))
    local row = 2 * model.config.layers * model.config.kv_heads * (2 * model.config.head_dim + 4)
    local later = assert(ask(engine, { ids = ids(60, 1), max_tokens = 400, budget = row * 100,
      ignore_eos = true }))
    local evicts = assert(ask(engine, { ids = ids(60, 1), max_tokens = 200, budget = row * 140,
      policy = assert(pyramid.policy("streaming", { rows = 40 })), ignore_eos = true }))
    finish(engine)
    assert.equal("error", small[1].finish)
    assert.equal("budget", small[1].code)
    assert.equal("budget", later[1].finish)
    assert.is_true(#later.ids > 20)
    assert.equal("length", evicts[1].finish)
    assert.equal(200, #evicts.ids)
    assert.is_true(evicts[1].held.evicted > 0)
    assert.same(alone(ids(30, 1), { max_tokens = 100 }), other.ids)
  end)

  it("ends what is cancelled, waiting, reading or writing", function()
    for _, name in ipairs { "full", "h2o" } do
      local engine <close> = serve.new(model, { parallel = 2 })
      local policy = assert(pyramid.policy(name))
      local writing = assert(ask(engine, { ids = ids(20, 1), max_tokens = 500, policy = policy,
        ignore_eos = true }))
      for _ = 1, 3 do engine:tick() end
      local reads = assert(ask(engine, { ids = ids(1500, 2), max_tokens = 5, policy = policy }))
      local waits = assert(ask(engine, { ids = ids(20, 3), max_tokens = 5, policy = policy }))
      function engine.pump() engine:cancel(reads.request) end
      engine:tick()
      engine:cancel(waits.request)
      engine:tick()
      assert.equal("cancelled", reads[1].finish)
      assert.equal("cancelled", waits[1].finish)
      assert.equal("running", writing.request.status)
      engine.pump = nil
      engine:cancel(writing.request)
      finish(engine)
      assert.equal("cancelled", writing[1].finish)
      assert.equal(3, engine.counts.cancelled)
    end
  end)

  it("counts budgets in, and goes on after a fault of its own", function()
    local row = 2 * model.config.layers * model.config.kv_heads * (2 * model.config.head_dim + 4)
    local engine <close> = assert(serve.new(model, { memory = row * 700 }))
    local first = assert(ask(engine, { ids = ids(500, 1), max_tokens = 20, budget = 1 << 40,
      ignore_eos = true }))
    local second = assert(ask(engine, { ids = ids(500, 2), max_tokens = 20, budget = 1 << 40 }))
    engine:tick()
    assert.equal("reading", first.request.status)
    assert.equal("waiting", second.request.status)
    function engine.pump() error "a fault" end
    assert.has_error(function() finish(engine) end)
    engine:recover "a fault"
    engine.pump = nil
    assert.equal("error", first[1].finish)
    assert.equal("error", second[1].finish)
    local third = assert(ask(engine, { ids = ids(30, 1), max_tokens = 10, ignore_eos = true }))
    finish(engine)
    assert.same(alone(ids(30, 1), { max_tokens = 10 }), third.ids)
  end)

  it("fails the request whose policy fails, and no other", function()
    local engine <close> = serve.new(model)
    local calls = 0
    local broken = assert(pyramid.policy { name = "broken",
      trigger = function() return { every = 4 } end,
      decode = function()
        calls = calls + 1
        error "no plan"
      end })
    local good = assert(ask(engine, { ids = ids(20, 1), max_tokens = 30, ignore_eos = true }))
    local bad = assert(ask(engine, { ids = ids(20, 2), max_tokens = 30, policy = broken,
      ignore_eos = true }))
    local wrong = assert(ask(engine, { ids = { 1, model.config.vocab }, max_tokens = 3 }))
    finish(engine)
    assert.is_true(calls > 0)
    assert.equal("error", bad[1].finish)
    assert.equal("policy", bad[1].code)
    assert.matches("no plan", bad[1].message)
    assert.equal("argument", wrong[1].code)
    assert.same(alone(ids(20, 1), { max_tokens = 30 }), good.ids)
  end)

  it("can be asked what a request holds, while it goes on and after", function()
    local engine <close> = serve.new(model, { kept = 2 })
    local seen = assert(ask(engine, { id = "one", ids = ids(60, 1), max_tokens = 10,
      ignore_eos = true, policy = assert(pyramid.policy "h2o") }))
    for _ = 1, 4 do engine:tick() end
    local cache, list = engine:find "one"
    assert.equal(60 + #seen.ids, #list)
    assert.is_true(cache:rows(1) < 60)
    finish(engine)
    cache, list = engine:find "one"
    assert.equal(70, #list)
    assert.equal(69, cache:tokens())
    for i = 1, 3 do assert(ask(engine, { ids = ids(60, i), max_tokens = 2 })) end
    finish(engine)
    assert.is_nil(engine:find "one")
  end)

  it("gives all of its memory back", function()
    collectgarbage()
    local before = model:memory()
    for _ = 1, 3 do
      local engine <close> = serve.new(model)
      for i = 1, 8 do
        assert(ask(engine, { ids = ids(100 * i, i), max_tokens = 5,
          policy = i % 2 == 0 and assert(pyramid.policy "snapkv") or nil }))
      end
      for _ = 1, 6 do engine:tick() end
    end
    collectgarbage()
    local left = model:memory()
    for _ = 1, 2 do
      local engine <close> = serve.new(model)
      for i = 1, 8 do assert(ask(engine, { ids = ids(100 * i, i), max_tokens = 5 })) end
      finish(engine)
    end
    collectgarbage()
    -- scratch grows to what the longest prompt needs, and stays
    assert.is_true(left - before < 16 << 20)
    assert.is_true(math.abs(model:memory() - left) < 1 << 16)
    assert.is_true(core.clock() > 0)
  end)
end)
