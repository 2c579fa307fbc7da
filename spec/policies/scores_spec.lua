-- The score algebra at work: what its signals and operators give a lane, tables, functions, another
-- cache's scores; and programs and functions that misbehave. Single operations are in
-- spec/ops/signals_spec.lua and spec/ops/scores_spec.lua.
local core = require "pyramid.core"
local helper = require "spec.helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local vector = require "pyramid.vector"

describe("scores", function()
  it("print as the expression that made them, and compare by it", function()
    for text, make in pairs {
      ["redundancy{threshold=0.5}"] = score.redundancy,
      ["redundancy{threshold=0.75}"] = function() return score.redundancy { threshold = 0.75 } end,
      ["key_similarity()"] = score.key_similarity, ["output_norm()"] = score.output_norm,
        ["place()"] = score.place,
      ["expected{future=9, sinks=2, covariance=false, heads=max}"] = function()
        return score.expected { future = 9, sinks = 2, covariance = false, heads = "max" }
      end,
      ["lag{lag=3, ranked=true}:softmax():chunk(5):top(7)"] = function() return score.lag {
        lag = 3 }:softmax():chunk(5):top(7) end,
      ["attention{queries=4, ramp=1, reduce=variance, heads=max}:sum():power(0.5)"] = function()
        return score.attention { queries = 4, reduce = "variance", heads = "max" }:sum():power(0.5)
      end,
      ["value_norm():log():above(-1)"] = function() return score.value_norm():log():above(-1) end,
      ["(position() * ((place() * 0.5) + 1))"] = function() return score.position():ramp(1,
        1.5) end,
    } do
      assert.equal(text, tostring(make()))
      assert.equal(make(), make())
    end
    assert.are_not.equal(score.expected(), score.expected { covariance = false })
    assert.are_not.equal(score.lag(), score.lag { lag = 127 })
  end)

  it("by tokens are one score for one set, however it is said", function()
    local s = score.tokens { "digits", 7, 3, "separators", 7.0 }
    assert.matches("^tokens#%d+{digits, separators, 3, 7}$", tostring(s))
    assert.is_true(s == score.tokens { 3, 7, "separators", "digits" })
    assert.is_true(score.tokens "digits" ~= score.tokens "separators")
    assert.matches("^tokens#%d+{digits=%-0.5, specials, 4}$",
      tostring(score.tokens { 4, digits = -0.5, specials = 1 }))
    for said, given in pairs { ["an id below 2^20"] = { -1 }, ["below 2^20"] = { 1 << 20 },
      ["one of digits, separators, specials, symbols"] = "words", ["which?"] = {},
      ["a class must be one of"] = { a = 1 }, ["a class is wanted"] = { 1.5 },
      ["digits counts a finite number, not inf"] = { digits = math.huge } } do
      assert.error_matches(function() score.tokens(given) end, said, 1, true)
    end
  end)

  it("by tokens are forgotten once nobody has them", function()
    local held = setmetatable({}, { __mode = "k" })
    for i = 1, 20 do held[score.tokens { 1000 + i }] = true end
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(held))
  end)

  it("of tables and functions equal only themselves", function()
    local function f() end
    for _, make in ipairs { function() return score.table { 1, 2 } end,
      function() return score.custom(f) end } do
      local one, other = make(), make()
      assert.equal(one, one)
      assert.equal(one + 1, one + 1)
      assert.are_not.equal(one, other)
      assert.are_not.equal(tostring(one), tostring(other))
    end
    local two = score.custom(f, { b = score.position(), a = score.key_norm() })
    assert.truthy(tostring(two):find("^custom#%d+{a=key_norm%(%), b=position"))
    local map = vector { { 1, 2, 3 } }
    assert.truthy(tostring(score.along(map)):find("^along#%d+$"))
    assert.truthy(tostring(score.centres(map)):find("^centres#%d+{far=65536, heads=max}$"))
    assert.truthy(tostring(score.table { by = "head", { 1 } }):find("^table#%d+{by=head}$"))
  end)

  it("refuse mistakes where they are built", function()
    local one = score.position()
    for i, f in ipairs {
      function() score.expected { future = 0 } end, function() score.expected { futur = 9 } end,
      function() score.expected { sinks = -1 } end,
        function() score.expected { heads = "median" } end,
      function() score.redundancy { threshold = 0 / 0 } end,
      function() score.redundancy { treshold = 1 } end,
      function() score.lag { lag = 0 } end, function() score.lag { lag = 1.5 } end,
        function() score.lag(128) end,
      function() score.attention { reduce = "variance", ramp = 2 } end,
      function() score.attention { reduce = "median" } end, function() one:power(0) end,
      function() one:power "x" end, function() one:above(1 / 0) end,
      function() score.attention { heads = "entropy" } end,
      function() one:chunk(0) end, function() one:chunk(2.5) end, function() one:top(-1) end,
        function() one:ramp(1) end,
      function() one:ramp(0 / 0, 1) end, function() score.table(7) end,
        function() score.table { by = "row", 1 } end,
      function() score.table { 1, "x" } end, function() score.table { 1, nil, 3 } end,
        function() score.table { 1, x = 2 } end,
      function() score.table { by = "head", 1 } end, function() score.table { { 1 } } end,
      function() score.table { by = "head", { 1, 2 }, { 1 } } end, function() score.custom(7) end,
      function() score.custom(print, { x = 7 }) end, function() score.custom(print, { one }) end,
      function() score.custom(print, { keys = one }) end, function() score.custom(print, 7) end,
    } do assert.is_false(pcall(f), "case " .. i) end
  end)
end)

describe("vectors", function()
  local v, m = vector { 1, 4, 9 }, vector { { 1, 2 }, { 3, 4 }, { 5, 6 } }

  it("index, count, slice and show", function()
    assert.same({ 3, 4, 9, nil }, { #v, v[2], v[3], v[4] })
    assert.same({ 3, 2, 0 }, { #m, m:columns(), v:columns() })
    assert.same({ 3, 4 }, m[2]:totable())
    assert.is_nil(m[0])
    assert.same({ { 1, 2 }, { 3, 4 }, { 5, 6 } }, m:totable())
    assert.same({ 4, 9 }, v:slice(2):totable())
    assert.same({ { 3, 4 } }, m:slice(2, 2):totable())
    assert.same({}, v:slice(4):totable())
    assert.equal("pyramid.vector (3)", tostring(v))
    assert.equal("pyramid.vector (3 rows of 2)", tostring(m))
    assert.same({}, vector({}):totable())
  end)

  it("compute value by value", function()
    assert.same({ 2, 8, 18 }, (v + v):totable())
    assert.same({ -1, -4, -9 }, (-v):totable())
    assert.same({ 1, 0.25 }, (1 / v):slice(1, 2):totable())
    assert.same({ 1, 2, 3 }, v:sqrt():totable())
    assert.same({ { 0, 1 }, { 2, 3 }, { 4, 5 } }, (m - 1):totable())
    assert.same({ { 1, 2 }, { 12, 16 }, { 45, 54 } }, (m * v):totable())
    assert.same({ 1, 4, 9 }, (-v):abs():totable())
    assert.near(math.exp(1), v:exp()[1], 1e-6)
    assert.near(math.log(9), v:log()[3], 1e-6)
  end)

  it("reduce, multiply and pool", function()
    assert.same({ 14, 14 / 3, 9, 1 }, { v:sum(), v:mean(), v:max(), v:min() })
    assert.near(98 ^ 0.5, v:norm(), 1e-6)
    assert.same({ 3, 7, 11 }, m:sum():totable())
    assert.same({ 3, 4 }, m:mean("columns"):totable())
    assert.same({ 5, 6 }, m:max("columns"):totable())
    assert.near(5, m:norm()[2], 1e-6)
    assert.equal(98, v:dot(v))
    assert.same({ 5, 11, 17 }, m:dot(vector { 1, 2 }):totable())
    assert.same({ 4, 9, 9 }, v:pool("max", 3):totable())
    assert.same({ 2.5, 14 / 3, 6.5 }, { v:pool("avg", 3)[1],
      (v:pool("avg", 3)[2] * 3 + 0.5) // 1 / 3, v:pool("avg", 3)[3] })
  end)

  it("refuse what does not fit", function()
    for i, f in ipairs {
      function() return v + vector { 1, 2 } end, function() return m + vector { { 1, 2, 3 } } end,
        function() return v + "x" end,
      function() return v:dot(vector { 1 }) end, function() return m:dot(v) end,
        function() return v:slice(0) end,
      function() return v:slice(1, 4) end, function() return v:slice(3, 1) end,
        function() return v:pool("max", 2) end,
      function() return m:pool("max", 3) end, function() return v:sum "diagonals" end,
        function() return vector { 1, {} } end,
      function() return vector { { 1 }, { 1, 2 } } end, function() return vector { {} } end,
        function() return vector(7) end,
      function() v[1] = 2 end, function() return v.x.y end,
    } do assert.is_false(pcall(f), "case " .. i) end
  end)
end)

describe("scores at work", function()
  local model, vocab

  setup(function()
    model = assert(pyramid.model(helper.fixture "families/llama-gqa-llama3", { threads = 2 }))
    vocab = model.config.vocab
  end)
  teardown(function() model:close() end)

  local function prompt(n)
    local ids = {}
    for i = 1, n do ids[i] = (i * i * 31 + i * 7) % vocab end
    return ids
  end

  -- What each head of a layer sees: scores by name, of the rows 3 to 57 of 60.
  local function seen_by(inputs, given)
    given = given or {}
    local seen = {}
    local cache <close> = assert(model:cache { dtype = given.dtype or "f32",
      policy = { name = "probe", prefill = function(_, l)
      return { keep = 20, guard = { first = 2, last = 3 }, share = given.share or "head",
        score = score.custom(function(lane)
        seen[l.index] = seen[l.index] or {}
        local mine = { positions = lane.positions:totable(), rows = lane.rows }
        mine.keys, mine.values = lane.keys:totable(), lane.values:totable()
        for name in pairs(inputs) do mine[name] = lane[name]:totable() end
        seen[l.index][lane.head] = mine
        return lane.positions
      end, inputs) }
    end } })
    assert(cache:prefill(prompt(given.tokens or 60)))
    return seen
  end

  it("transform vectors of the judged rows", function()
    local base = score.key_norm()
    local lane = seen_by { base = base, chunks = base:chunk(10), top = base:top(7),
      ramp = base:ramp(2, 4), place = score.place(), soft = base:softmax(), all = base:top(100),
        none = base:top(0) }[2][1]
    assert.equal(55, lane.rows)
    assert.equal(2, lane.positions[1])
    assert.equal(56, lane.positions[55])
    local sum, order = 0.0, {}
    for i, x in ipairs(lane.base) do
      sum, order[i] = sum + math.exp(x), i
      assert.near(x * (2 + 2 * (i - 1) / 54), lane.ramp[i], 1e-5)
      assert.near((i - 1) / 54, lane.place[i], 1e-6)
      local low, total = (i - 1) // 10 * 10, 0.0
      for j = low + 1, math.min(low + 10, 55) do total = total + lane.base[j] end
      assert.near(total / (math.min(low + 10, 55) - low), lane.chunks[i], 1e-5)
      assert.same({ 1, 0 }, { lane.all[i], lane.none[i] })
    end
    table.sort(order, function(a, b) return lane.base[a] > lane.base[b] end)
    for place, i in ipairs(order) do
      assert.equal(place <= 7 and 1 or 0, lane.top[i])
      assert.near(math.exp(lane.base[i]) / sum, lane.soft[i], 1e-6)
    end
  end)

  it("say the same as a function that spells them out, for every cache dtype", function()
    for _, dtype in ipairs { "f32", "f16", "bf16" } do
      for layer, heads in ipairs(seen_by({ like = score.key_similarity(), norm = score.key_norm(),
        holds = score.value_norm() }, { dtype = dtype })) do
        for head, lane in ipairs(heads) do
          local keys = vector(lane.keys)
          local anchor = (keys / keys:norm()):mean "columns"
          local like = keys:dot(anchor) / (keys:norm() * anchor:norm())
          for i = 1, lane.rows do
            assert.near(like[i], lane.like[i], 1e-5, ("layer %d, head %d"):format(layer, head))
            assert.near(keys:norm()[i], lane.norm[i], 1e-5)
            assert.near(vector(lane.values[i]):norm(), lane.holds[i], 1e-5)
          end
        end
      end
    end
  end)

  it("average over lanes where heads share one set", function()
    local each, all = seen_by { like = score.key_similarity() },
      seen_by({ like = score.key_similarity() }, { share = "layer" })
    for i = 1, 55 do
      local mean = 0.0
      for head = 1, model.config.kv_heads do
        mean = mean + each[1][head].like[i] / model.config.kv_heads
      end
      assert.near(mean, all[1][1].like[i], 1e-6)
      assert.equal(all[1][1].like[i], all[1][2].like[i])
    end
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = { name = "mean", prefill = function()
      return { keep = 10, score = score.custom(function(lane) return lane.head == 1
        and lane.positions or lane.positions * -3 end) }
    end } })
    assert(cache:prefill(prompt(60)))
    for head = 1, model.config.kv_heads do
      assert.same({ 0, 1, 2 }, helper.slice(cache:positions(1, head), 1, 3))
    end
  end)

  it("expect attention the same however a prompt is cut into chunks", function()
    local few, many = {}, {}
    -- (chunks are of 512: one here; pieces of 256 are what is cut)
    for _, tokens in ipairs { 480, 505 } do
      for _, to in ipairs { few, many } do
        to[tokens] = seen_by({ e = score.expected { future = 64 } }, { tokens = tokens })[3][2].e
      end
      assert.same(few[tokens], many[tokens])
      local sum = 0.0
      for _, x in ipairs(few[tokens]) do sum = sum + x end
      assert.near(1, sum, 1e-5)
    end
    local uniform = seen_by({ e = score.expected { sinks = 1000 } })[1][1].e    -- no query is left
    assert.near(1 / 55, uniform[7], 1e-7)
  end)

  local function kept(s, given)
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = { name = "table", prefill = function()
      return { keep = 10, score = s, share = given }
    end } })
    assert(cache:prefill(prompt(60)))
    return cache:positions(2, 1), cache:positions(2, 2)
  end

  it("read tables by position and by head", function()
    local numbers = { by = "position" }
    for i = 1, 50 do numbers[i] = (i * 17) % 50 end
    local s = score.table(numbers)
    local best = {}
    for i = 1, 50 do if numbers[i] >= 40 then best[#best + 1] = i - 1 end end
    for i = 1, 50 do numbers[i] = 0 end
    collectgarbage()
    assert.same(best, (kept(s)))
    assert.same({ 50, 51, 52, 53, 54, 55, 56, 57, 58, 59 },
      (kept(-s - 1e-3)) and (kept(score.const(0) - s:top(50))))
    assert.same(best, (kept(score.table(vector { table.unpack(seen_by { t = s }[1][1].t, 1, 0) } )
      + s)))
    local heads = score.table { by = "head", { 0, 0 }, { 1, -1 } }
    local first, second = kept(score.position() * heads, "head")
    assert.equal(50, first[1])
    assert.equal(0, second[1])
    -- layer 2 is beyond it
    first, second = kept(score.position() * score.table { by = "head", { 1 } }, "head")
    assert.same({ 0, 0 }, { first[1], second[1] })
  end)

  it("keep tables through forks, saved files, and decode", function()
    local numbers = {}
    for i = 1, 200 do numbers[i] = i % 3 == 0 and 1 or 0 end
    local function make()
      local s = score.table(numbers)
      return policy { name = "thirds", prefill = function() return { keep = 20, score = s } end,
        trigger = function() return { over = 24 } end,
        decode = function() return { keep = 20, guard = { last = 1 }, score = s } end }
    end
    local path = helper.tmp ".cache"
    local cache = assert(model:cache { dtype = "f32", policy = make() })
    assert(cache:prefill(prompt(60)))
    local fork <close> = assert(cache:fork())
    assert(cache:save(path))
    cache:close()
    collectgarbage()
    collectgarbage()
    local loaded <close> = assert(model:load_cache(path, { dtype = "f32", policy = make() }))
    os.remove(path)
    for _, each in ipairs { fork, loaded } do
      for i = 1, 15 do assert(each:step(i)) end
      for i, position in ipairs(each:positions(1, 1)) do
        if i <= 15 then assert.equal(2, position % 3) end
      end
    end
  end)

  it("know tokens by id, also of steps, forks, files and after a truncation", function()
    local s = score.tokens { 3, 17, 44, 50, 93 }
    local wanted = { [3] = true, [17] = true, [44] = true, [50] = true, [93] = true }
    local ids = prompt(60)
    local function places(from, list)
      local out = {}
      for position = 0, #list - 1 do
        if position >= from and wanted[list[position + 1]] then out[#out + 1] = position end
      end
      return out
    end
    ids[12], ids[31], ids[59] = 3, 93, 17
    local keeps = policy { name = "some",
      prefill = function(_, l) return { above = 0.5, keep = l.rows, score = s } end,
      trigger = function() return { every = 8 } end,
      decode = function(_, l) return { above = 0.5, keep = l.rows, share = "head", score = s } end }
    local function grown(cache, list)
      for i = 1, 16 do
        list[#list + 1] = i % 5 == 0 and 44 or 60 + i
        assert(cache:step(list[#list]))
      end
      assert.same(places(0, list), cache:positions(2, 1))
    end
    local path = helper.tmp ".cache"
    local cache <close> = assert(model:cache { dtype = "f32", policy = keeps })
    assert(cache:prefill(helper.slice(ids, 1, 40)))
    assert(cache:prefill(helper.slice(ids, 41, 60)))
    assert.same(places(0, ids), cache:positions(1, 2))
    assert.is_true(#places(0, ids) > 2)
    assert(cache:save(path))
    local fork <close> = assert(cache:fork())
    local loaded <close> = assert(model:load_cache(path, { dtype = "f32", policy = keeps }))
    os.remove(path)
    for _, each in ipairs { cache, fork, loaded } do grown(each, helper.slice(ids, 1, 60)) end
    -- a token that was taken back is forgotten
    local plain <close> = assert(model:cache { dtype = "f32" })
    assert(plain:prefill(ids))
    assert(plain:evict(policy { name = "all", prefill = function(_, l)
      return { keep = l.rows, score = s } end }))
    assert(plain:truncate(50))
    local other = helper.slice(ids, 1, 50)
    for i = 1, 10 do other[50 + i] = i == 4 and 50 or 100 + i end
    assert(plain:prefill(helper.slice(other, 51, 60)))
    assert(plain:evict(policy { name = "some", prefill = function(_, l)
      return { above = 0.5, keep = l.rows, score = s } end }))
    assert.same(places(0, other), plain:positions(1, 1))
  end)

  it("know tokens by the tables of the policy that is asked, whatever its numbers", function()
    local ids, s = prompt(40), score.tokens { 3, 17 }
    ids[9], ids[12], ids[20], ids[31] = 3, 17, 3, 17
    local function worth(list)
      local values = {}
      for id = 0, 17 do values[id + 1] = list[id] or 0 end
      return policy { name = "some", prefill = function(_, l)
        return { above = 0.5, keep = l.rows, score = s }
      end }:bind(nil, function() return vector(values) end)
    end
    local cache <close> = assert(model:cache { dtype = "f32" })
    assert(cache:prefill(ids))
    assert(cache:cut(worth { [3] = 1, [17] = 1 }))
    local both = cache:positions(1, 1)
    assert.is_true(#both >= 4)
    assert(cache:cut(worth { [17] = 1 }))
    local want = {}
    for _, position in ipairs(both) do
      if ids[position + 1] == 17 then want[#want + 1] = position end
    end
    assert.same(want, cache:positions(1, 1))
  end)

  it("know no token of embedded rows, and no class without a tokenizer", function()
    local ids = prompt(30)
    local s = score.tokens(ids)
    local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "some",
      prefill = function(_, l) return { above = 0.5, keep = l.rows, score = s } end } })
    assert(cache:prefill(helper.slice(ids, 1, 10), { prune = false }))
    assert(cache:prefill({ embeddings = assert(model:embed(helper.slice(ids, 11, 20))) },
      { prune = false }))
    assert(cache:prefill(helper.slice(ids, 21, 30)))
    local want = {}
    for i = 0, 29 do if i < 10 or i > 19 then want[#want + 1] = i end end
    assert.same(want, cache:positions(1, 1))
    local other <close> = assert(model:cache { dtype = "f32", policy = { name = "words",
      prefill = function(_, l) return { above = 0.5, keep = l.rows, guard = { last = 1 },
        score = score.tokens { "separators", ids[4] } } end } })
    assert(other:prefill(ids))
    assert.same({ 3, 29 }, other:positions(1, 1))
  end)

  it("know classes of tokens by the model's tokenizer", function()
    local tiny <close> = assert(pyramid.model("models/tiny", { threads = 1 }))
    local text = "Once, in 1984, there was a cat. It ran! Where? { a; b }\nHome: 12 cats"
    local ids = assert(tiny:encode(text))
    local classes = require "pyramid.token_classes".of(tiny.tokenizer)
    local sorted = {}
    for position, id in ipairs(ids) do
      local class = classes[id] or "words"
      sorted[class] = sorted[class] or {}
      table.insert(sorted[class], position - 1)
    end
    assert.is_true(#sorted.separators >= 8 and #sorted.digits >= 2 and #sorted.specials >= 1)
    for class in pairs(require "pyramid.token_classes".known) do
      local s = score.tokens(class)
      local some = policy { name = "some", prefill = function(_, l)
        return { above = 0.5, keep = l.rows, score = s } end }
      local cache <close> = assert(tiny:cache { policy = some })
      assert(cache:prefill(ids))
      assert.same(sorted[class] or {}, cache:positions(1, 1), class)
      local read <close> = assert(tiny:cache())
      assert(read:read(ids, { policy = some }))
      assert.same(sorted[class] or {}, read:positions(1, 1), class)
    end
    local of = require "pyramid.token_classes".of_text
    for said, class in pairs { ["."] = "separators", [" ,"] = "separators", ["\n\n"] = "separators",
      [" "] = "separators", ["7"] = "digits", [" 2024"] = "digits", [" =="] = "symbols",
      ["){"] = "symbols", [".."] = "symbols", ["...x"] = false, ["a"] = false, ["1a"] = false,
      [""] = false, ["é"] = false } do
      assert.equal(class or nil, of(said), said)
    end
  end)

  it("that are functions fail by name, and nothing is lost", function()
    local held
    local cases = {
      { function() error("boom", 0) end, "layer 2, prefill: boom" },
      { function() error({}) end, "not a string" },
      { function() end, "a nil is not a vector" },
      { function() return 7 end, "a number is not a vector" },
      { function() return { 1, 2 } end, "a sequence of 2 is not one number for each of 60 rows" },
      { function(lane) return lane.positions:slice(2) end, "a vector of 59" },
      { function(lane) return lane.keys end, "a matrix" },
      { function(lane) local t = lane.positions:totable() t[9] = "x" return t end,
        "value 9 is a string" },
      { function(lane) return lane.kyes end, "no 'kyes'" },
      { function(lane) held = held or lane.positions return held * 2 end, "valid only while" },
    }
    local wanted
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = { name = "naughty", prefill = function(_, l)
      return { keep = 20, share = "head", score = l.index == 2 and wanted or score.position() }
    end } })
    local function fails(case, message)
      held, wanted = nil, score.custom(case[1])
      local logits, said_so, code = cache:prefill(prompt(60), {})
      assert.is_nil(logits)
      assert.equal("policy", code, said_so)
      assert.truthy(said_so:find("policy naughty, layer 2, prefill: ", 1, true), said_so)
      assert.truthy(said_so:find(case[2], 1, true), said_so .. message)
    end
    for i, case in ipairs(cases) do
      fails(case, i)
      assert.equal(0, cache:rows(1))
      assert.equal(0, cache:bytes())
    end
    wanted = score.custom(function(lane) return lane.positions:totable() end)
    assert(cache:prefill(prompt(60)))
    local before = { cache:positions(1, 1), cache:positions(3, 2), cache:bytes(), cache:evicted() }
    fails({ function() error("later", 0) end, "later" }, "again")
    assert.same(before, { cache:positions(1, 1), cache:positions(3, 2), cache:bytes(),
      cache:evicted() })
    assert(cache:step(1))
  end)

  it("end what they showed with the call, and give what was computed", function()
    local lane_kept, keys, input, own
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = { name = "late", prefill = function()
      return { keep = 20, score = score.custom(function(lane)
        lane_kept, keys, input, own = lane, lane.keys, lane.seen, lane.seen * 2
        return own
      end, { seen = score.attention { queries = 4 } }) }
    end } })
    assert(cache:prefill(prompt(60)))
    for _, f in ipairs { function() return keys[1] end, function() return #input end,
      function() return input + 1 end,
      function() return lane_kept.values end, function() return lane_kept.positions:sum() end,
      function() return own + input end } do
      local ok, message = pcall(f)
      assert.is_false(ok)
      assert.truthy(message:find("valid only while", 1, true), message)
    end
    assert.equal(60, #own)
    assert.truthy(tostring(keys):find("pyramid.vector", 1, true))
  end)

  it("may run other models and caches of their own", function()
    local other <close> = assert(model:cache { dtype = "f32" })
    local cache <close> = assert(model:cache { dtype = "f32",
      policy = { name = "deep", prefill = function()
      return { keep = 20, score = score.custom(function(lane)
        assert(other:clear())
        assert(other:prefill(prompt(30)))
        return lane.positions
      end) }
    end } })
    assert(cache:prefill(prompt(60)))
    assert.equal(30, other:rows(1))
    assert.equal(20, cache:rows(1))
    local own
    own = assert(model:cache { dtype = "f32", policy = { name = "self", prefill = function()
      return { keep = 20, score = score.custom(function(
        lane) own:close() return lane.positions end) }
    end } })
    local _, message, code = own:prefill(prompt(60))
    assert.equal("policy", code)
    assert.truthy(message:find("the cache is in use", 1, true), message)
    own:close()
  end)

  it("that only a prompt knows are refused in decode", function()
    for said_so, s in pairs { ["expects attention"] = score.expected(),
      ["custom function"] = score.custom(function() end) } do
      local cache <close> = assert(model:cache { dtype = "f32", policy = { name = "late",
        trigger = function() return { every = 1 } end,
        decode = function() return { keep = 5, score = s } end } })
      assert(cache:prefill(prompt(20)))
      local logits, message, code = cache:step(1)
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.truthy(message:find("policy late, layer 1, decode: score", 1, true), message)
      assert.truthy(message:find(said_so, 1, true), message)
      assert.equal(20, cache:rows(1))
    end
  end)

  it("of a cache at rest are those of its rows", function()
    local p = assert(pyramid.policy("snapkv", { rows = 40, window = 8 }))
    local cache <close> = assert(model:cache { dtype = "f32", policy = p })
    assert(cache:prefill(prompt(60)))
    local norms = assert(cache:scores(score.key_norm(), { layer = 2, head = 1 }))
    local held = {}
    for _, position in ipairs(cache:positions(2, 1)) do held[position] = true end
    assert.equal(60, #norms)
    for i = 1, 60 do assert.equal(held[i - 1] or false, norms[i] > 0) end
    local mean = assert(cache:scores(score.key_norm()))
    local sum = 0.0
    for layer = 1, model.config.layers do
      for head = 1, model.config.kv_heads do
        sum = sum + cache:scores(score.key_norm(),
          { layer = layer, head = head })[60] / model.config.layers / model.config.kv_heads
      end
    end
    assert.near(sum, mean[60], 1e-5)
    for _, wrong in ipairs { score.attention(), score.expected(), score.custom(function() end),
      score.table { 1 } } do
      local values, _, code = cache:scores(wrong)
      assert.is_nil(values)
      assert.equal("argument", code)
    end
    assert.equal("argument", select(3, cache:scores()))                       -- nothing is tracked
    assert.equal("argument", select(3, cache:scores(score.key_norm(), { layer = 99 })))
    assert.has_error(function() cache:scores(7) end)
    assert.has_error(function() cache:scores(score.key_norm(), { head = 0 }) end)
  end)

  it("guide another cache by what the last queries looked at", function()
    local n, queries = 120, 16
    local wanted = {}
    for i = 1, n do wanted[i] = 0.0 end
    local probe <close> = assert(model:cache { dtype = "f32",
      policy = { name = "probe", prefill = function(_, l)
      return { keep = l.rows - 1, share = "head", score = score.custom(function(lane)
        for i, x in ipairs(lane.seen:totable()) do
          wanted[i] = wanted[i] + x / model.config.layers / model.config.kv_heads
        end
        return lane.seen
      end, { seen = score.attention { queries = queries, reduce = "sum" } }) }
    end } })
    assert(probe:prefill(prompt(n)))
    local draft <close> = assert(model:cache { dtype = "f32",
      policy = assert(pyramid.policy("guide", { queries = queries })) })
    assert(draft:prefill(prompt(n)))
    assert.equal(n, draft:rows(1))
    -- The mean is over as many as are tracked, one more than the prompt's.
    assert.is_true(helper.distance((assert(draft:scores()) * (queries + 1)):totable(),
      wanted) < 1e-5)

    local by = score.from(draft)
    local given = { by = by, rows = 30, sinks = 2, recent = 5, kernel = 1 }
    local order = {}
    for i = 3, n - 5 do order[#order + 1] = i end
    table.sort(order, function(a, b) return wanted[a] > wanted[b] end)
    local expected = { 0, 1, 115, 116, 117, 118, 119 }
    for i = 1, 23 do expected[#expected + 1] = order[i] - 1 end
    table.sort(expected)
    for prune, layer in pairs { cache = 3, both = 3 } do
      given.prune = prune
      local cache <close> = assert(model:cache { dtype = "f32",
        policy = assert(pyramid.policy("guided", given)) })
      assert(cache:prefill(prompt(n)))
      assert.same(expected, cache:positions(layer, 2))
    end
    assert.is_false(pcall(score.from, probe, score.attention { queries = 3 }))
  end)

  -- The codes of pyr_score_code by name, in the header's order, which counts from 0.
  local function all_codes()
    local list = helper.read("core/pyramid.h"):match "enum pyr_score_code {(.-)PYR_SCORE_CODES"
    local names = {}
    for name in list:gsub("/%*.-%*/", ""):gmatch "PYR_S_(%u+[%u_]*)" do names[#names + 1] = name end
    return names
  end

  it("have a name in traces, whatever their code", function()
    local pool <close> = assert(core.pool(model:native(), "f16", 0))
    local position = string.pack("<BBBxi4f", 4, 0, 0, 0, 0)
    local c = model.config
    local function zeros(heads, columns)
      local map = {}
      for row = 1, c.layers * heads do
        map[row] = {}
        for i = 1, columns do map[row][i] = 0 end
      end
      return vector(map)
    end
    local maps = { LEARNED = zeros(c.kv_heads, c.width + 1), ALONG = zeros(c.kv_heads, c.head_dim),
      CENTRES = zeros(c.heads, c.head_dim + c.head_dim // 2) }
    -- Why rows left, by a program of the code behind so many positions; nil if it is refused.
    local function told(name, code, behind)
      local program = position:rep(behind) .. string.pack("<BBBxi4f", code, 0, 0, 1, 1)
      local function custom(lane) return lane.positions end
      local object = name == "CUSTOM" and { custom } or maps[name] or vector { 1, 2, 3 }
      local why
      local cache <close> = assert(core.cache(model:native(), pool, { { [1] = object },
        name = "named",
        prefill = function()
          return 10, 1, 2, 0, 1, program, 0, 0, nil, 0, nil, nil, nil, 0
        end }))
      cache:tell(function(record) why = record.why end)
      return cache:read_ids(prompt(40), false, true) and why
    end
    for i, name in ipairs(all_codes()) do
      local why = told(name, i - 1, 0) or told(name, i - 1, 1) or told(name, i - 1, 2)
      if name == "PROBED" then
        assert.is_nil(why, "nothing was probed")
      else
        assert.truthy(why, name)
        assert.not_matches("?", why, 1, true)
        assert.truthy(why:find "%w" and why ~= "fits" and why ~= "no plan", why)
      end
    end
    assert.falsy(told("", #all_codes(), 0) or told("", #all_codes(), 1))
  end)

  -- Any program is refused or runs; a sanitizer watches. Codes, parameters and numbers are drawn
  -- beyond what is legal.
  it("never run a program that is not sound", function()
    local last = #all_codes() - 1
    local function draw()
      local program = {}
      for i = 1, math.random(1, math.random() < 0.7 and 4 or 33) do
        local code = i == 1 and math.random(0, 6) or math.random(0, last + 2)
        program[i] = string.pack("<BBBxi4f", code,
          math.random() < 0.8 and math.random(0, 2) or math.random(0, 255), math.random(0, 3),
            ({ -1, 0, 1, 3, 5, 7, 64, 0x7fffffff, math.random(-9, 99) })[math.random(9)],
              ({ 0, 1, -1, 0.5, 3, 2 ^ 30, 0 / 0, math.huge })[math.random(8)])
      end
      return table.concat(program)
    end
    local pool <close> = assert(core.pool(model:native(), "f16", 0))
    local empty <close> = assert(core.cache(model:native(), pool))
    for _, odd in ipairs { math.mininteger, -1, 1 << 31, math.maxinteger } do
      assert.error_matches(function() empty:evaluate(nil, odd, 0) end, "no such layer")
      assert.error_matches(function() empty:evaluate(nil, 0, odd) end, "no such head")
    end
    local ran, refused = 0, 0
    for _ = 1, 1500 do
      local program = draw()
      local bound = { { function(lane) return lane.positions end }, name = "fuzz",
        prefill = function()
        return 10, 1, 2, math.random(0, 2), 1, program, 0, math.random(0, 1) * 0.5, nil, 0, nil,
          nil, nil, 0
      end }
      bound[1] = { [3] = vector { 1, 2, 3 }, [7] = vector { { 1, 2 } },
        [5] = { function(lane) return lane.positions end, "a", "b", "c" } }
      local cache <close> = assert(core.cache(model:native(), pool, bound))
      local logits, message, code = cache:read_ids(prompt(40), false, true)
      if logits then ran = ran + 1
      else
        assert.equal("policy", code, message)
        refused = refused + 1
      end
      cache:scores(nil)
      if #program <= 32 * 12 then cache:evaluate(program, math.random(0, 3), math.random(0, 2)) end
    end
    assert.is_true(ran > 50 and refused > 50, ("%d ran, %d were refused"):format(ran, refused))
  end)
end)
