-- hostile.lua: finalizers that close or change what a call of the binding is at work on, at each
-- place of that call where Lua may collect: `pyramid spec/support/hostile.lua [WORD]` (only calls
-- whose names contain the word). Prints how many places were tried, and exits 1 if a call gave a
-- wrong answer. What it reads of freed memory a sanitizer sees.
package.cpath = (os.getenv "PYRAMID_BUILD" or "build") .. "/?.so;" .. package.cpath
local pyramid = require "pyramid"
local core = require "pyramid.core"
local score = require "pyramid.score"
local stress = require "pyramid_specs.stress"

local PLACES = 60           -- of one call, at most: those of long loops are alike
local folder = "models/tiny"
local text = "Once there was a baker who lived in the village"
local model = assert(pyramid.model(folder, { device = "cpu", threads = 1 }))
local ids = assert(model:encode(text))
local more = table.move(ids, 1, #ids, 1, {})

local function filled(options)
  local cache = assert(model:cache(options))
  assert(cache:prefill(ids))
  return cache
end

-- Everything a finalizer can lay hands on: made anew for each trial.
local function objects()
  local runtime = assert(core.runtime { device = "cpu", threads = 1 })
  local pool = assert(core.pool(model:native(), "f32", 0))
  local tokenizer = assert(pyramid.tokenizer(folder, { runtime = runtime }))
  local batch = assert(model:batch {})
  local handle = assert(batch:add(ids))
  assert(batch:step())
  return { runtime = runtime, pool = pool, tokenizer = tokenizer, batch = batch, handle = handle,
    cache = filled { policy = "full" }, sampler = pyramid.sampler { temperature = 1, seed = 1 },
    sampling = assert(core.sampler(runtime, {})),
    decoder = assert(tokenizer:decoder()), file = assert(core.file_open(runtime,
      folder .. "/config.json")) }
end

local attacks = {
  ["closes all"] = function(o)
    for _, name in ipairs { "batch", "handle", "cache", "pool", "decoder", "tokenizer", "sampler",
      "sampling", "file", "runtime" } do
      pcall(o[name].close, o[name])
    end
  end,
  ["changes all"] = function(o)
    pcall(o.cache.prefill, o.cache, more)
    pcall(o.handle.prefill, o.handle, more)
    pcall(o.tokenizer.encode, o.tokenizer, ("x y"):rep(400))
    pcall(o.tokenizer.decode, o.tokenizer, more)
    pcall(o.sampler.accept, o.sampler, more)
    pcall(o.decoder.push, o.decoder, more[1])
  end,
  ["empties all"] = function(o)
    pcall(o.cache.clear, o.cache)
    pcall(o.handle.clear, o.handle)
    pcall(o.tokenizer.encode, o.tokenizer, "")
    pcall(o.sampler.reset, o.sampler)
    pcall(o.decoder.finish, o.decoder)
  end,
}

local wanted_ids, wanted_text = table.concat(ids, " "), nil
local bound = assert(pyramid.policy("h2o")):bind()
local saved = os.tmpname()
local small = { layers = 1, heads = 1, kv_heads = 1, head_dim = 32, width = 32, ff = 32, vocab = 8,
  context = 64, rope_dims = 2, norm_eps = 1e-5, rope_gain = 1, rope_style = "half",
    rope_freq = { 1 } }
do
  local file <close> = assert(io.open(saved, "wb"))
  assert(file:write(("\0"):rep(1024)))
end

local function is_counted(positions)
  for i, position in ipairs(positions) do
    if position ~= i - 1 then return ("row %d is position %s"):format(i, position) end
  end
end

-- name -> the call, which returns its result, and what must be said against a result: nil if
-- nothing
local calls = {
  ["cache:positions"] = { function(o) return o.cache:positions(1, 1) end, is_counted },
  ["handle:positions"] = { function(o) return o.handle:positions(1, 1) end, is_counted },
  ["cache:rows"] = { function(o) return o.cache:rows(1, 1) end },
  ["cache:evaluate"] = { function(o) return o.cache:scores(score.value_norm()) end,
    function(v) return #v % #ids ~= 0 and ("a vector of %d"):format(#v) end },
  ["cache:prefill"] = { function(o) return o.cache:prefill(ids) end,
    function(l) return #l:totable() ~= model.config.vocab end },
  ["cache:prefill all"] = { function(o) return o.cache:prefill(ids, { all = true }) end,
    function(all) return #all ~= #ids end },
  ["cache:prefill odd"] = { function(o)
    return o.cache:read(setmetatable({}, { __len = function() return 4 end,
      __index = function(_, i) return ids[i] end }))
  end },
  ["cache:probe"] = { function(o) return o.cache:probe(ids, score.attention()) end },
  ["cache:step"] = { function(o) return o.cache:step(ids[1]) end,
    function(l) return #l:totable() ~= model.config.vocab end },
  ["cache:fork"] = { function(o) return o.cache:fork() end,
    function(c) return c:tokens() % #ids ~= 0 end },
  ["cache:save"] = { function(o) return o.cache:save(saved .. ".cache") end },
  ["cache:tostring"] = { function(o) return tostring(o.cache) end },
  ["core.cache"] = { function(o) return core.cache(model:native(), o.pool, bound) end,
    function(c) return c:tokens() ~= 0 end },
  ["core.pool"] = { function() return core.pool(model:native(), "f16", 0) end },
  ["core.step"] = { function(o) return core.step({ o.cache, o.handle }, { ids[1], ids[2] }) end,
    function(all) return #all ~= 2 end },
  ["core.step picks"] = { function(o) return core.step({ o.cache, o.handle }, { ids[1], ids[2] },
    { o.sampler, false }) end },
  ["batch:step"] = { function(o) return o.batch:step() end },
  ["logits:totable"] = { function(o) return o.cache:step(ids[1]):totable() end },
  ["core.runtime"] = { function() return core.runtime { device = "cpu", threads = 1 } end },
  ["runtime:profile"] = { function(o) return o.runtime:profile(true) end },
  ["runtime:tostring"] = { function(o) return tostring(o.runtime) end },
  ["core.file_open"] = { function(o) return core.file_open(o.runtime,
    folder .. "/config.json") end },
  ["core.tokenizer"] = { function(o) return core.tokenizer(o.runtime, { vocab = 10 }) end },
  ["tokenizer:piece"] = { function(o) return core.tokenizer(o.runtime, { vocab = 10 }):piece(1,
    12) end },
  ["tokenizer:encode"] = { function(o) return o.tokenizer:encode(text) end,
    function(got) return table.concat(got, " ") ~= wanted_ids end },
  ["tokenizer:decode"] = { function(o) return o.tokenizer:decode(ids, { skip_special = true }) end,
    function(got) return got ~= wanted_text end },
  ["tokenizer:decoder"] = { function(o) return o.tokenizer:decoder() end },
  ["tokenizer:piece of an id"] = { function(o) return o.tokenizer.handle:spelling(ids[2]) end },
  ["tokenizer:id"] = { function(o) return o.tokenizer.handle:id(7) end },
  ["decoder:push"] = { function(o) return o.decoder:push(ids[2]) end },
  ["core.sampler"] = { function(o) return core.sampler(o.runtime,
    { logit_bias = { [1] = 1, [2] = 2 } }) end },
  ["sampler:pick"] = { function(o) return o.sampler:pick { 1, 2, 3 } end,
    function(id) return id < 0 or id > 2 end },
  ["sampler:accept"] = { function(o) return o.sampler:accept { 1, 2, 3 } end },
  ["sampling:pick"] = { function(o) return o.sampling:pick { 1, 2, 3 } end },
  ["core.model_new"] = { function(o) return core.model_new(o.runtime, small) end },
  ["model:bind"] = { function(o)
    local made, weights = assert(core.model_new(o.runtime, small)),
      assert(core.file_open(o.runtime, saved))
    local spec = { file = weights, offset = 0, bytes = 1024, dtype = "f32", shape = { 8, 32 },
      name = "x" }
    return made:bind("embed", nil, spec, "bf16")
  end },
  ["vector"] = { function() return (core.vector { { 1, 2 }, { 3, 4 } } * 2)[2]:totable() end,
    function(v) return v[1] ~= 6 or v[2] ~= 8 end },
}

wanted_text = assert(model:decode(ids, { skip_special = true }))
local tried, wrong = 0, 0
local names = {}
for name in pairs(calls) do if not arg[1] or name:find(arg[1], 1,
  true) then names[#names + 1] = name end end
table.sort(names)

-- One trial: the attack at place k of the call. False if the call has no such place.
local function try(name, what, k)
  local o, place, armed = objects(), 0, true
  local function lurk()
    setmetatable({}, { __gc = function()
      if not armed then return end
      place = place + 1
      if place == k then attacks[what](o) else lurk() end
    end })
  end
  lurk()
  stress.start()
  local ok, result = pcall(calls[name][1], o)
  stress.stop()
  armed = false
  if place < k then return false end
  tried = tried + 1
  local fault = ok and result and calls[name][2] and calls[name][2](result)
  if fault then
    wrong = wrong + 1
    io.stderr:write(("%s, a finalizer %s at place %d: wrong answer (%s)\n"):format(name, what, k,
      tostring(fault)))
  end
  return true
end

for _, name in ipairs(names) do
  for what in pairs(attacks) do
    local k = 1
    while k <= PLACES and try(name, what, k) do k = k + 1 end
  end
end
os.remove(saved)
os.remove(saved .. ".cache")
print(("%d places tried, %d wrong"):format(tried, wrong))
os.exit(wrong == 0 and tried > 0 and 0 or 1)
