-- Calibration: curves against a direct calculation, the solver against all there is, and files that
-- keep what they say.
local calibrate = require "pyramid.tools.calibrate"
local cjson = require "cjson"
local helper = require "helper"
local maps = require "pyramid.maps"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local shell = require "support.shell"

local tiny = "models/tiny"

-- Falling, convex curves by lot, as lost mass is.
local function curves_of(seed, lanes, steps)
  math.randomseed(seed)
  local curves = {}
  for lane = 1, lanes do
    local saves, total = {}, 0
    for v = 1, steps do
      saves[v] = math.random(0, 40) / 64  -- exact in binary, and ties happen
      total = total + saves[v]
    end
    table.sort(saves, function(a, b) return a > b end)
    curves[lane] = {}
    for v = 1, steps do
      total = total - saves[v]
      curves[lane][v] = total
    end
  end
  return curves
end

-- The best of all combinations of levels: least loss among those that `fits`, then fewest parts.
local function brute(curves, falling, cost)
  local best
  local function go(lane, levels, loss, parts)
    if lane > #curves then
      local c = cost(loss, parts)
      if c and (not best or c < best) then best = c end
      return
    end
    for v = 1, (falling and levels[lane - 1] or #curves[1]) do
      levels[lane] = v
      go(lane + 1, levels, loss + curves[lane][v], parts + v)
      levels[lane] = nil
    end
  end
  go(1, {}, 0, 0)
  return best
end

describe("calibrate.solve", function()
  it("loses the least there is for a share of the rows", function()
    for seed = 1, 30 do
      local lanes, steps = 2 + seed % 3, 3 + seed % 4
      local curves = curves_of(seed, lanes, steps)
      for _, falling in ipairs { false, true } do
        for _, target in ipairs { 0.3, 0.5, 0.8, 1 } do
          local solved = calibrate.solve(curves, { target = target, falling = falling })
          local most = math.max(lanes, math.floor(target * lanes * steps + 1e-9))
          local least = brute(curves, falling, function(loss, parts) return parts <= most and loss
            or nil end)
          assert.near(least / lanes, solved.loss, 1e-12)
          assert.is_true(solved.fraction * lanes * steps <= most + 1e-9)
          if not falling then                                          -- convex, so this is as good
            assert.near(solved.loss, calibrate.solve(curves,
              { target = target, hull = true }).loss, 1e-12)
          end
          for i = 2, lanes do
            assert.is_true(not falling or solved.levels[i] <= solved.levels[i - 1])
          end
        end
      end
    end
  end)

  it("holds the fewest rows for a loss", function()
    for seed = 1, 30 do
      local curves = curves_of(seed, 3, 5)
      for _, loss in ipairs { 0, 0.1, 0.4, 1 } do
        local solved = calibrate.solve(curves, { loss = loss, falling = true })
        local parts = brute(curves, true, function(sum, used) return sum <= 3 * loss + 1e-12
          and used or nil end)
        assert.near(parts / 15, solved.fraction, 1e-12)
        assert.is_true(solved.loss <= loss + 1e-12)
        -- Without the order of depth there is a least one too; steps of equal savings leave no gap
        -- of a part or more.
        local free = calibrate.solve(curves, { loss = loss })
        parts = brute(curves, false, function(sum, used) return sum <= 3 * loss + 1e-12 and used
          or nil end)
        assert.near(parts / 15, free.fraction, 1e-12)
        assert.is_true(free.loss <= loss + 1e-12)
        assert.near(free.fraction, calibrate.solve(curves, { loss = loss, hull = true }).fraction,
          1e-12)
      end
    end
  end)

  it("goes no lower than it is told", function()
    local curves = curves_of(3, 3, 6)
    for _, hull in ipairs { false, true } do
      assert.same({ 2, 2, 2 }, calibrate.solve(curves,
        { target = 0.1, least = 2, hull = hull }).levels)
      for _, v in ipairs(calibrate.solve(curves,
        { target = 0.6, least = 2, hull = hull }).levels) do
        assert.is_true(v >= 2)
      end
    end
  end)

  it("refuses what cannot be meant", function()
    local curves = curves_of(1, 2, 3)
    assert.error_matches(function() calibrate.solve(curves, {}) end,
      "either target or loss is wanted")
    assert.error_matches(function() calibrate.solve(curves, { target = 0.5, loss = 0.1 }) end,
      "either target or loss")
    assert.error_matches(function() calibrate.solve(curves, { target = 1.5 }) end,
      "1.5 is no share")
    assert.error_matches(function() calibrate.solve(curves, { traget = 0.5 }) end,
      "unknown option 'traget'")
  end)
end)

describe("calibrate.curve", function()
  it("is what is lost of the mass, guards kept", function()
    -- 10 rows, of which 1 and 2 are guarded; parts of 2 rows
    local mass = { 0.1, 0.2, 0.05, 0.15, 0.1, 0.1, 0.05, 0.05, 0.1, 0.1 }
    local loss = calibrate.curve(mass, 5, 1, 2)
    assert.equal(5, #loss)
    assert.near(1 - 0.3, loss[1], 1e-12)  -- three guarded rows are more than a part
    assert.near(1 - (0.3 + 0.2), loss[2], 1e-12)
    assert.near(1 - (0.3 + 0.2 + 0.15 + 0.1), loss[3], 1e-12)
    assert.near(1 - (0.3 + 0.2 + 0.15 + 0.2 + 0.05), loss[4], 1e-12)
    assert.equal(0, loss[5])
    assert.same({ 0, 0 }, calibrate.curve({ 0, 0, 0 }, 2, 0, 0))
  end)
end)

describe("calibrate", function()
  local model, folder, texts

  setup(function()
    model = assert(pyramid.model(tiny, { threads = 1 }))
    folder = shell.folder()
    texts = assert(calibrate.texts(model, { length = 150, count = 2 }))
  end)
  teardown(function()
    model:close()
    shell.remove(folder)
  end)

  it("measures what a custom score sees", function()
    local made = assert(calibrate.measure(model, texts, { queries = 16, sinks = 2, steps = 10 }))
    assert.equal(300, made.tokens)
    assert.equal(model.config.layers, #made.layer)
    local seen = {}
    local watch = policy { name = "watch", prefill = function(_, l)
      return { keep = l.rows - 1, share = "head", score = score.custom(function(lane)
        seen[lane.layer] = seen[lane.layer] or {}
        seen[lane.layer][lane.head] = lane.its:totable()
        return lane.its
      end, { its = score.attention { queries = 16 } }) }
    end }
    local head, outside = {}, {}
    for _, ids in ipairs(texts) do
      local cache <close> = assert(model:cache { policy = watch })
      assert(cache:prefill(ids))
      for layer, heads in ipairs(seen) do
        for h, mass in ipairs(heads) do
          local at, inner, total = layer .. ":" .. h, 0, 0
          for row, x in ipairs(mass) do
            total = total + x
            if row > 2 and row <= 150 - 16 then inner = inner + x end
          end
          local sorted, kept = {}, total - inner
          for row = 3, 150 - 16 do sorted[#sorted + 1] = mass[row] end
          table.sort(sorted, function(a, b) return a > b end)
          for i = 1, 150 * 3 // 10 - 18 do kept = kept + sorted[i] end
          head[at] = (head[at] or 0) + (1 - kept / total) / 2
          outside[at] = (outside[at] or 0) + inner / total / 2
        end
      end
    end
    for layer = 1, model.config.layers do
      for h = 1, model.config.kv_heads do
        assert.near(head[layer .. ":" .. h], made.head[layer][h][3], 1e-4)
        assert.near(outside[layer .. ":" .. h], made.outside[layer][h], 1e-4)
      end
      for v = 2, 10 do assert.is_true(made.layer[layer][v] <= made.layer[layer][v - 1] + 1e-9) end
    end
  end)

  it("writes a file that keeps what it says, to the row", function()
    local made = assert(calibrate.measure(model, texts, { queries = 16, steps = 20 }))
    for _, how in ipairs { { share = "layer", prune = "cache" },
      { share = "layer", prune = "both" }, { share = "head" } } do
      local both = how.prune == "both"
      local ratios, solved = calibrate.ratios(made,
        { target = 0.5, falling = both, share = how.share })
      local path = ("%s/%s_%s.lua"):format(folder, how.share, how.prune or "none")
      helper.write(path, calibrate.write(ratios,
        { name = "mine", about = "made by a spec.", share = how.share, prune = how.prune,
          window = 4, sinks = 1 }))
      local p = assert(policy.load(path))
      assert.equal("mine", p.name)
      local cache <close> = assert(model:cache { policy = p })
      assert(cache:prefill(texts[1]))
      local rows = 0
      for layer = 1, model.config.layers do
        for head = 1, model.config.kv_heads do
          local ratio = how.share == "head" and ratios[layer][head] or ratios[layer]
          assert.equal(math.max(5, math.floor(ratio * 150 + 1e-6)), cache:rows(layer, head))
          rows = rows + cache:rows(layer, head)
        end
      end
      local lanes = model.config.layers * model.config.kv_heads
      assert.near(solved.fraction, rows / (150 * lanes), 1 / 150)
      -- Another share keeps the shape.
      local sum = 0
      for _, layer in ipairs(policy.forecast(p:with { target = 0.3 }, model.config, 1000)) do
        sum = sum + layer.rows
      end
      assert.near(0.3, sum / (1000 * model.config.layers), 0.005)
    end
  end)

  it("measures how far predictions are off", function()
    local curves, details = assert(calibrate.sensitivity(model, { texts[1] },
      { queries = 8, predict = 20, steps = 20 }))
    -- f32 rounds next to nothing
    assert.is_true(details.floor >= 0 and details.floor < 1e-3, details.floor)
    local ids = texts[1]
    -- the context's last token comes after the cut
    local context, rest = helper.slice(ids, 1, 129), helper.slice(ids, 130, 149)
    local function feed(p)
      local cache <close> = assert(model:cache { policy = p })
      assert(cache:prefill(context))
      return assert(cache:prefill(rest, { all = true, prune = false }))
    end
    local full, kl = feed(nil), 0
    local cut = feed(policy { name = "cut", prefill = function(_, l)
      if l.index ~= 2 then return end
      return { keep = 12, guard = { first = 4, last = 8 }, score = score.attention { queries = 8 } }
    end })
    for i, logits in ipairs(full) do kl = kl + logits:kl(cut[i]) / 20 end
    assert.equal(20, #full)
    assert.near(kl, curves[2][2], 0.1 * kl)  -- at least; more if a greater share was worse
    assert.is_true(curves[2][2] >= kl - model.config.layers * details.floor)
    for _, curve in ipairs(curves) do
      for v = 2, 20 do assert.is_true(curve[v] <= curve[v - 1] and curve[v] >= 0) end
      assert.equal(0, curve[20])
    end
  end)

  -- What rounding makes of any cut, however small, is the same at every share but the whole, and
  -- would seem to be spared by keeping all of a layer.
  it("gives no layer everything because rounding hides the others", function()
    local rounded <close> = assert(pyramid.model(tiny,
      { threads = 1, weights = "q8_0", precision = "int8" }))
    local layers = rounded.config.layers
    local curves, details = assert(calibrate.sensitivity(rounded, texts,
      { queries = 8, predict = 20, steps = 20 }))
    local exact = assert(calibrate.sensitivity(model, texts,
      { queries = 8, predict = 20, steps = 20 }))
    assert.is_true(details.floor > 0, details.floor)
    local made = { layers = layers, kv_heads = 1, steps = 20, layer = curves, each = {} }
    for t, each in ipairs(details.each) do made.each[t] = { layer = each } end
    local truly = { layers = layers, kv_heads = 1, steps = 20, layer = exact }
    local ratios, sure = calibrate.ratios(made, { target = 0.45 }),
      calibrate.ratios(truly, { target = 0.45 })
    local sum = 0
    for layer, ratio in ipairs(ratios) do
      assert.is_true(ratio < 1 or sure[layer] > 0.6,
        ("layer %d: %g, in f32 %g"):format(layer, ratio, sure[layer]))
      sum = sum + ratio
    end
    assert.near(0.45, sum / layers, 1 / 20)
  end)

  -- Losses that are noise, the same at every share but the whole: no layer needs more than another,
  -- unless one is `steep`.
  local function noisy(texts_count, spread, steep)
    math.randomseed(11)
    local made = { layers = 6, kv_heads = 1, steps = 20, layer = {}, each = {} }
    for t = 1, texts_count do
      made.each[t] = { layer = {} }
      for layer = 1, 6 do
        local curve, height = {}, math.max(0, spread * (math.random() - 0.5))
          + (steep and layer == 3 and 1 or 0)
        for v = 1, 19 do curve[v] = height end  -- spared only by keeping all
        curve[20] = 0
        made.each[t].layer[layer] = curve
        made.layer[layer] = made.layer[layer] or {}
        for v, x in ipairs(curve) do
          made.layer[layer][v] = (made.layer[layer][v] or 0) + x / texts_count
        end
      end
    end
    return made
  end

  it("shares rows out evenly where nothing is lost by a cut", function()
    local made = noisy(4, 0)
    for _, one in ipairs(made.each) do
      -- so that there is some noise
      for layer = 1, 6 do one.layer[layer][1] = 1e-6 * math.random() end
    end
    local ratios, solved = calibrate.ratios(made, { target = 0.5 })
    for _, ratio in ipairs(ratios) do assert.near(0.5, ratio, 0.051) end
    assert.near(0.5, solved.fraction, 1e-9)
  end)

  it("claims no gain inside the noise", function()
    local made = noisy(4, 0.5)
    local _, solved, size = calibrate.ratios(made, { target = 0.5 })
    assert.is_true(size > 0.01, size)
    assert.near(0.5, solved.fraction, 1e-9)
    for _, gain in ipairs(calibrate.gains(made, { target = 0.5 })) do
      assert.is_false(gain.claimed)
      assert.is_true(gain.half < math.huge)
    end
    -- One layer that stands out of the noise: it is whole, and the gain is claimed.
    made = noisy(4, 0.05, true)
    assert.equal(1, calibrate.ratios(made, { target = 0.5 })[3])
    local gains = calibrate.gains(made, { target = 0.5 })
    assert.equal("even", gains[1].rival)
    assert.is_true(gains[1].claimed and gains[1].gain > 0.05)
    -- From one text alone, nothing.
    for _, gain in ipairs(calibrate.gains(noisy(1, 0.05, true), { target = 0.5 })) do
      assert.is_false(gain.claimed)
      assert.equal(math.huge, gain.half)
    end
  end)

  it("has the cosine to be compared with", function()
    for _, fraction in ipairs { 0.2, 0.45, 0.9 } do
      local ratios, sum = calibrate.cosine(8, fraction), 0
      for i, ratio in ipairs(ratios) do
        sum = sum + ratio
        assert.is_true(i == 1 or ratio <= ratios[i - 1])
      end
      assert.near(fraction, sum / 8, 1e-6)
      assert.equal(fraction > 0.47, ratios[1] == 1)
    end
  end)

  it("ranks heads, and writes a duo", function()
    local made = { layers = 2, kv_heads = 2, outside = { { 0.2, 0.5 }, { 0.5, 0.9 } } }
    local ranked = calibrate.retrieval(made)
    local names = {}
    for i, one in ipairs(ranked) do names[i] = one.layer .. ":" .. one.head end
    assert.same({ "2:2", "1:2", "2:1", "1:1" }, names)
    local path = folder .. "/two.lua"
    helper.write(path, calibrate.write_duo(ranked, 2,
      { name = "two", about = "made by a spec.", sinks = 2, recent = 10 }))
    local p = assert(policy.load(path, { slack = 4 }))
    assert.equal("2:2,1:2", p.options.heads)
    local cache <close> = assert(model:cache { policy = p })
    assert(cache:prefill(texts[1]))
    local function check(tokens, streaming)
      for layer = 1, model.config.layers do
        for head = 1, model.config.kv_heads do
          local keeps = layer <= 2 and head == 2
          assert.equal(keeps and tokens or streaming, cache:rows(layer, head),
            ("%d:%d"):format(layer, head))
        end
      end
    end
    check(150, 12)
    for _ = 1, 3 do assert(cache:step(9)) end
    check(153, 15)
    assert(cache:step(9))
    check(154, 12)
    local positions = cache:positions(1, 1)
    assert.same({ 0, 1, 144 }, { positions[1], positions[2], positions[3] })
  end)

  it("writes what heads look at as a headkv, whose heads keep their part", function()
    local c, outside = model.config, {}
    for layer = 1, c.layers do
      outside[layer] = {}
      for head = 1, c.kv_heads do outside[layer][head] = head == 1 and 0.9 or 0.1 end
    end
    local path = folder .. "/four.lua"
    helper.write(path, calibrate.write_headkv({ outside = outside },
      { name = "four", about = "made by a spec." }))
    local p = assert(policy.load(path, { rows = 40, window = 8, beta = 2 }))
    local cache <close> = assert(model:cache { policy = p })
    assert(cache:prefill(texts[1]))
    local sum = 0.9 + 0.1 * (c.kv_heads - 1)
    for layer = 1, c.layers do
      for head = 1, c.kv_heads do
        local part = (head == 1 and 0.9 or 0.1) / sum * c.kv_heads
        assert.equal(8 + math.floor(16 + part * 16 + 0.5), cache:rows(layer, head))
      end
    end
  end)

  it("reads scores of heads as their authors publish them, and says what is wrong", function()
    local l = policy.shape(2, 2, 100, 0, 100, 0, 100, 4, 2, 64)
    local path = folder .. "/heads.json"
    local function shares(text, given)
      helper.write(path, text)
      return pcall(maps.head_shares, given or "", given and "" or path, l, 2)
    end
    -- of query heads: the mean of two, squared; sums of 1, 4, 9 and 16 hundredths
    local ok, parts = shares [[{ "0-0": [0.1, 0.1], "0-1": [0.1], "0-2": 0.2, "0-3": [0.2],
      "1-0": [0.2, 0.4], "1-1": [0.3], "1-2": [0.0, 0.8], "1-3": [0.4] }]]
    assert.is_true(ok, parts)
    assert.near(9 / 30, parts[1], 1e-12)
    assert.near(16 / 30, parts[2], 1e-12)
    for _, case in ipairs { { "[1", "line 1" }, { "{}", "names no head" },
      { '{ "0-0": [] }', '"0-0" is no head' }, { '{ "0-0": [-1] }', '"0-0" is no head' },
      { '{ "x": [1] }', '"x" is no head' }, { '{ "0-1": 1 }', '"0-0" is missing' } } do
      path = path .. "x"                                            -- a file is read once
      local fine, message = shares(case[1])
      assert.is_false(fine)
      assert.truthy(message:find(case[2], 1, true), message)
      assert.truthy(message:find(path, 1, true), message)
    end
    for given, said in pairs { ["1,2"] = "2 scores are not those of 2 layers of 2 KV heads",
      ["1,x"] = "'x' is no number of 0 or more", ["0, 0"] = "all are 0",
      ["-1"] = "'-1' is no number" } do
      local fine, message = shares("", given)
      assert.is_false(fine)
      assert.truthy(message:find(said, 1, true), message)
    end
    local none, message = pcall(maps.head_shares, "", folder .. "/none.json", l, 1)
    assert.is_false(none)
    assert.matches("none.json: No such file", message)
    assert.same({ 0.25, 0.25 }, maps.head_shares("", "", l, 1))
  end)

  it("refuses heads that there are not", function()
    for heads, message in pairs { ["1-1"] = "'1%-1' is not layer:head",
      ["99:1"] = "there is no 99:1", ["1:0"] = "no 1:0" } do
      local cache <close> = assert(model:cache { policy = policy.load("duo", { heads = heads }) })
      local ok, made, said = pcall(cache.prefill, cache, texts[1])
      assert.matches(message, tostring(ok and said or made))
    end
  end)

  local function run(...)
    return shell.pyramid("calibrate", "--model", tiny, "--length", "150", "--texts", "2", ...)
  end

  it("is a script that prints, writes and checks", function()
    local out, err, status = run("--target", "0.4", "--queries", "8", "--out",
      folder .. "/mine.lua", "--check", "--questions", "0", "--documents", "1", "--json")
    assert.equal("", err)
    assert.equal(0, status)
    local told = cjson.decode(out)
    assert.equal("mine", told.policy)
        assert.equal(4, #told.check)
    assert.near(told.check[2].document.context_fraction, told.check[3].document.context_fraction,
      0.03)
    assert.matches("^%-%- mine%.lua: made for .*`pyramid calibrate .*%-%-target 0%.4",
      helper.read(folder .. "/mine.lua"))
    out = run("--heads", "--target", "0.7", "--recent", "20", "--out", folder .. "/duo_mine.lua")
    assert.matches("layer:head", out)
    assert.matches("heads keep everything", out)
    assert.truthy(policy.load(folder .. "/duo_mine.lua"))
    out = run("--heads", "--as", "headkv", "--out", folder .. "/heads_mine.lua")
    assert.matches("policy: .*heads_mine.lua ratio=0.45", out)
    assert.matches("^headkv%(", tostring(assert(policy.load(folder .. "/heads_mine.lua")))
      :gsub("heads_mine", "headkv"))
    out, err = run("--heads", "--as", "headkv", "--target", "0.8", "--out",
      folder .. "/heads_mine.lua", "--check", "--questions", "0", "--documents", "1", "--json")
    assert.equal("", err)
    assert.is_true(cjson.decode(out).check[2].document.context_fraction > 0.55)  -- of 0.8, not 0.5
  end)

  it("refuses arguments that cannot be meant", function()
    for message, words in pairs {
      ["%-%-target: 2 is no share"] = { "--target", "2" },
      ["one of them follows"] = { "--target", "0.5", "--loss", "0.1" },
      ["cannot go with %-%-prune both"] = { "--share", "head", "--prune", "both" },
      ["%-%-as goes with %-%-heads"] = { "--as", "headkv" },
      ["does not end in %.lua"] = { "--out", "mine.txt" },
      ["is not an odd number"] = { "--kernel", "4" },
      ["guarded rows are all there is"] = { "--queries", "150" },
    } do
      local _, err, status = run(table.unpack(words))
      assert.equal(1, status)
      assert.matches(message, err)
    end
  end)
end)
