-- Tiers of every dtype, those of few bits among them: a plain cache that holds the same rows, as
-- f32, foretells the same; forks, files, batches, budgets and failures are as they are of one tier.
local helper = require "spec.helper"
local ops = require "pyramid_specs"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_models = require "spec.support.random_models"
local saved_rows = require "spec.support.saved_rows"
local score = require "pyramid.score"
local shell = require "spec.support.shell"

local SHAPE = { layers = 3, width = 128, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 2048 }
local PAGE, D = ops.page_rows, SHAPE.width // SHAPE.heads
local models = random_models(SHAPE)

local function prompt(n, seed) return helper.ids(n, SHAPE.vocab, seed) end

-- Keeps `rows` rows of each lane; the others go to a tier.
local function keeper(rows, to, share)
  local function plan(_, l)
    return { keep = math.min(rows, l.rows), guard = { first = 2, last = 6 },
      share = share or "head", score = score.key_norm(), losers = { to = to } }
  end
  return policy { name = "keeper", prefill = plan, decode = plan,
    trigger = function() return { over = rows + 5, window = 6 } end }
end

local function fresh_path()
  local path = helper.tmp()
  os.remove(path)
  return path
end

-- A copy, whose files are new ones.
local function declared(tiers)
  local copy = {}
  for name, tier in pairs(tiers) do
    if type(tier) == "table" then
      local own = {}
      for key, value in pairs(tier) do own[key] = value end
      if own.file then own.file = fresh_path() end
      tier = own
    end
    copy[name] = tier
  end
  return copy
end

local function lower(tiers) return tiers.warm and "warm" or "cold" end

local function new(tiers, by, given)
  given = given or {}
  given.tiers, given.policy = declared(tiers), by
  return assert(models.cpu:cache(given))
end

-- Every dtype as a tier in memory and in a file, and three tiers of mixed ones.
local ALL = {}
for i, dtype in ipairs { "f32", "f16", "bf16", "q8_0", "fp8_e4m3", "q4", "q3", "q2",
  { k = "q8_0", v = "q4" }, { k = "q2", v = "f16" } } do
  ALL[#ALL + 1] = { hot = i % 2 == 0 and "f32" or "f16", warm = { dtype = dtype } }
  ALL[#ALL + 1] = { hot = i % 3 == 0 and "q4" or "f16",
    cold = { dtype = dtype, file = "", bytes = "4 MiB" } }
end
ALL[#ALL + 1] = { hot = "f16", warm = { dtype = "q4", rows = 100 },
  cold = { dtype = "q2", file = "", bytes = "4 MiB" } }
ALL[#ALL + 1] = { hot = "q3", warm = { dtype = "q3", rows = 100 }, cold = "f16" }
ALL[#ALL + 1] = { hot = { dtype = "k=q8_0,v=q4" }, warm = { dtype = "f16", rows = 70 },
  cold = { dtype = { k = "q3", v = "q2" }, file = "", bytes = "4 MiB" } }

local function name_of(tiers)
  local parts = {}
  for _, name in ipairs { "hot", "warm", "cold" } do
    local tier = tiers[name]
    if tier then
      local dtype = tier
      if type(tier) == "table" then dtype = tier.dtype or tier end
      if type(dtype) == "table" then dtype = ("%s/%s"):format(dtype.k, dtype.v) end
      parts[#parts + 1] = ("%s %s%s"):format(name, dtype, type(tier) == "table" and tier.file
        and "@" or "")
    end
  end
  return table.concat(parts, ", ")
end

-- What a call that failed must not have changed.
local function state_of(cache)
  local all = { cache:tokens(), cache:evicted(), cache:computed(), cache:fraction() }
  for _, tier in ipairs { "hot", "warm", "cold" } do
    for layer = 1, cache:has_tier(tier) and SHAPE.layers or 0 do
      for head = 1, SHAPE.kv_heads do all[#all + 1] = cache:positions(layer, head, tier) end
    end
  end
  local fork <close> = cache:fork()                  -- where what lies beside its rows finds room
  local logits = fork and fork:step(7)               -- … and a row of its own
  all[#all + 1] = logits and logits:totable() or false
  return all
end

-- The same rows in a cache of one tier, as f32, and how many pages of each tier are packed.
local function plain_twin(cache)
  local path = helper.tmp()
  assert(cache:save(path))
  local found = saved_rows.read(helper.read(path))
  helper.write(path, saved_rows.plain(found))
  local twin = assert(models.cpu:load_cache(path, { dtype = "f32" }))
  os.remove(path)
  return twin, found
end

-- One step of both: at its end rows may go down, and are rounded in one of them. Where a hot lane
-- ends in a packed page, so is the step's own row; a token that no plan sees is read otherwise.
local function assert_near(cache, twin, what, found, full)
  local limit = found.open and 0.05 or 3e-4
  local function read(c)
    return assert(full and c:prefill({ 9 }, { prune = false }) or c:step(9)):totable()
  end
  local a, b = read(cache), read(twin)
  local off, all = 0, 0
  for j = 1, #a do off, all = off + (a[j] - b[j]) ^ 2, all + b[j] ^ 2 end
  local share = (off / all) ^ 0.5
  assert.is_true(share < limit, ("%s: off by %g"):format(what, share))
end

describe("tiers of every dtype", function()
  it("are read as what they say, however rows came there", function()
    for _, tiers in ipairs(ALL) do
      local what = name_of(tiers)
      local by = keeper(math.random(20, 150), lower(tiers), ({ "head", "pool" })[math.random(2)])
      local cache <close> = new(tiers, by)
      assert(cache:prefill(prompt(math.random(230, 400), 1)))
      local twin <close>, found = plain_twin(cache)
      assert.equal(twin:rows(2, 1), cache:rows(2, 1))
      assert_near(cache, twin, what .. ", a prompt", found)
      for i = 1, 40 do assert(cache:step(i)) end
      assert(cache:prefill(prompt(math.random(30, 90), 2)))
      local after <close>, now = plain_twin(cache)
      assert_near(cache, after, what .. ", steps and another prompt", now)
      for at = 2, #now.packed do
        local few = what:find(({ "hot", tiers.warm and "warm" or "cold", "cold" })[at]
          .. " [^,]*q[234]") ~= nil
        assert.equal(few, now.packed[at] > 0, what)
      end
      assert(cache:promote { by = score.value_norm(), rows = 25 })
      local promoted <close>, held = plain_twin(cache)
      assert_near(cache, promoted, what .. ", promoted", held)
      assert(cache:evict(keeper(15, lower(tiers))))
      local cut <close>, left = plain_twin(cache)
      assert.equal(15, cache:rows(1, 1, "hot"))
      assert_near(cache, cut, what .. ", cut at rest", left)
    end
  end)

  it("round a row once: what lies in a tier moves within it as it is", function()
    for _, dtype in ipairs { "q4", "q2" } do
      local cache <close> = new({ hot = "f32", warm = dtype }, keeper(150, "warm"))
      assert(cache:prefill(prompt(300, 3)))
      local path = helper.tmp()
      local function rows()
        assert(cache:save(path))
        local by = {}
        for i, lane in ipairs(saved_rows.read(helper.read(path)).lanes) do
          by[i] = {}
          for _, row in ipairs(lane) do by[i][row.position] = row.k .. row.v end
        end
        return by
      end
      local below = {}
      for layer = 1, SHAPE.layers do
        for head = 1, SHAPE.kv_heads do
          below[#below + 1] = cache:positions(layer, head, "warm")
        end
      end
      local before = rows()
      for n = 130, 30, -20 do assert(cache:evict(keeper(n, "warm"))) end
      local after = rows()
      os.remove(path)
      for i, positions in ipairs(below) do
        for _, position in ipairs(positions) do
          assert.is_true(before[i][position] == after[i][position],
            ("%s, lane %d, position %d"):format(dtype, i, position))
        end
      end
    end
  end)

  it("hold exactly the bytes of their pages, beside frames and positions", function()
    local row = { q8_0 = { 34, 34 }, q4 = { 18, 18 }, q3 = { 14, 14 }, q2 = { 10, 10 } }
    for _, dtype in ipairs { "q4", "q3", "q2" } do
      for _, file in ipairs { false, true } do
        local tiers = { hot = "f16", cold = { dtype = dtype, file = file and "" or nil,
          bytes = file and "4 MiB" or nil } }
        local cache <close> = new(tiers, keeper(20, "cold", "layer"))
        for _, n in ipairs { 60, 90, 200 } do
          assert(cache:prefill(prompt(n, n)))
          for i = 1, 9 do assert(cache:step(i)) end
          local sum = 0
          for layer = 1, SHAPE.layers do
            for head = 1, SHAPE.kv_heads do
              local rows = cache:rows(layer, head, "cold")
              local pages = (rows + PAGE - 1) // PAGE
              local page = rows >= 64 and PAGE * (row[dtype][1] + row[dtype][2]) + 8
                or PAGE * 2 * 2 * D
              sum = sum + pages * (page + PAGE * 4) + helper.lane_beside(pages) + 24 + 20 * D
            end
          end
          assert.equal(sum, cache:bytes "cold")
          assert.equal(cache:bytes(), cache:bytes "hot" + cache:bytes "cold")
        end
      end
    end
  end)

  it("are shared by forks, kept by files, cut by truncate, and stepped in batches", function()
    for _, tiers in ipairs(ALL) do
      local what = name_of(tiers)
      local by = keeper(30, lower(tiers))
      local cache <close> = new(tiers, by)
      assert(cache:prefill(prompt(200, 4)))
      for i = 1, 7 do assert(cache:step(i)) end
      local fork <close> = assert(cache:fork())
      local path = helper.tmp()
      assert(cache:save(path))
      local loaded <close> = assert(models.cpu:load_cache(path, { tiers = declared(tiers),
        policy = by }))
      assert.same(state_of(cache), state_of(loaded), what)
      assert.equal(cache:bytes(), loaded:bytes(), what)
      local again = helper.tmp()
      assert(loaded:save(again))
      assert.is_true(helper.read(path) == helper.read(again), what)
      os.remove(path)
      os.remove(again)
      for i = 1, 20 do
        local one = assert(cache:step(i)):totable()
        assert.same(one, assert(loaded:step(i)):totable(), what)
        assert.same(one, assert(fork:step(i)):totable(), what)
      end
      local tokens = cache:tokens()
      assert(cache:truncate(tokens - 12))
      assert(fork:truncate(tokens - 12))
      assert.same(state_of(cache), state_of(fork), what)
      assert(cache:prefill(prompt(40, 5)))
      assert(fork:prefill(prompt(40, 5)))
      assert.same(state_of(cache), state_of(fork), what)
      local batch <close> = assert(models.cpu:batch { tiers = declared(tiers), policy = by })
      local a, b = assert(batch:add(prompt(170, 6))), assert(batch:add(prompt(90, 7)))
      local alone <close> = new(tiers, by)
      assert(alone:prefill(prompt(170, 6)))
      assert(batch:step())
      for i = 1, 8 do
        batch:push(a, i)
        batch:push(b, 2 * i)
        local entries = assert(batch:step())
        assert.same(assert(alone:step(i)):totable(), entries[1][2]:totable(), what)
      end
      assert(cache:clear())
      assert.equal(0, cache:bytes(), what)
    end
  end)

  it("are verified by several tokens at once, and taken back", function()
    for _, tiers in ipairs { ALL[11], ALL[#ALL - 2], ALL[#ALL] } do
      local cache <close> = new(tiers, keeper(60, lower(tiers)))
      assert(cache:prefill(prompt(300, 8)))
      local fork <close> = assert(cache:fork())
      local n = math.min(cache:verifiable(), 4)
      assert.is_true(n > 1)
      local ids = prompt(n, 9)
      local all = assert(cache:verify(ids))
      for i = 1, n do assert.same(assert(fork:step(ids[i])):totable(), all[i]:totable()) end
      assert(cache:truncate(301))
      assert(fork:truncate(301))
      assert.same(state_of(cache), state_of(fork))
    end
  end)

  it("make room where memory is short", function()
    local three = { hot = "f16", warm = "q4", cold = { dtype = "q2", file = "", bytes = "4 MiB" } }
    for kib, tiers in pairs { [360] = { hot = "f16", warm = "q4" },
      [280] = { hot = "q4", warm = "q2" }, [240] = three } do
      local what, budget = name_of(tiers), kib * 1024
      local cache <close> = new(tiers, nil, { budget = budget, pressure = "demote" })
      for i = 1, 8 do assert(cache:prefill(prompt(100, i)), what) end
      for i = 1, 70 do assert(cache:step(i), what) end
      assert.equal(870, cache:rows(1))
      assert.equal(1, cache:fraction())
      assert.is_true(cache:bytes "hot" + cache:bytes "warm" <= budget, ("%s: %d"):format(what,
        cache:bytes()))
      assert.is_true(cache:rows(1, 1) - cache:rows(1, 1, "hot") > 64, what)
      local twin <close>, found = plain_twin(cache)
      assert_near(cache, twin, what, found)
    end
  end)

  it("that are full end a call, and nothing is lost", function()
    for kind, tiers in pairs {
      rows = { hot = "f16", warm = { dtype = "q4", rows = 90 } },
      bytes = { hot = "f16", warm = { dtype = "q3", bytes = "40 KiB" } },
      file = { hot = "q4", cold = { dtype = "q2", file = "", bytes = "192 KiB" } } } do
      local cache <close> = new(tiers, keeper(20, lower(tiers)))
      assert(cache:prefill(prompt(100, 1)), kind)
      local failed
      for round = 1, 30 do
        local before = state_of(cache)
        local ok, _, code = cache:prefill(prompt(60, round))
        if not ok then
          failed = code
          assert.same(before, state_of(cache), kind)
          break
        end
      end
      assert.equal("budget", failed, kind)
      for i = 1, 40 do
        local before = state_of(cache)
        local ok, _, code = cache:step(i)
        if not ok then
          assert.equal("budget", code)
          assert.same(before, state_of(cache), kind)
          break
        end
      end
      assert(cache:prefill(prompt(3, 5), { prune = false }))
      local twin <close>, found = plain_twin(cache)
      assert_near(cache, twin, kind, found, true)
    end
  end)

  it("say in words what cannot be", function()
    local function refused(given, word)
      local ok, message = pcall(models.cpu.cache, models.cpu, given)
      assert.is_false(ok)
      assert.matches(word, message)
    end
    refused({ tiers = { warm = "q5" } }, "tier \"warm\": unknown dtype 'q5'")
    refused({ tiers = { cold = { dtype = { k = "q4" } } } }, "tier \"cold\": dtype: give both")
    refused({ tiers = { hot = "q4" }, dtype = "q3" }, "dtype is 'f16,k=q3,v=q3'")
    refused({ tiers = { hot = { dtype = "q5" } } }, "unknown dtype 'q5'")
    assert(models.cpu:cache { tiers = { hot = "q4" }, dtype = "k=q4,v=q4" }):close()
    local none, message, code = models.device:cache { tiers = { warm = "q4" } }
    assert.is_nil(none)
    assert.equal("unsupported", code, message)
    -- a saved cache goes to where its tiers are, bits included
    local cache <close> = new({ hot = "f16", warm = "q4" }, keeper(20, "warm"))
    assert(cache:prefill(prompt(120, 1)))
    local path = helper.tmp()
    assert(cache:save(path))
    for _, tiers in ipairs { { warm = "q3" }, { warm = "f16" }, { cold = "q4" },
      { warm = { dtype = { k = "q4", v = "q3" } } }, { warm = "q4", cold = "q4" } } do
      none, message, code = models.cpu:load_cache(path, { tiers = tiers })
      assert.is_nil(none)
      assert.equal("format", code)
      assert.matches("tiers", message)
    end
    os.remove(path)
  end)

  it("are refused field by field where a file is wrong", function()
    local by, path = keeper(20, "warm"), helper.tmp()
    local tiers = { hot = "f16", warm = "q4" }
    local cache <close> = new(tiers, by)
    assert(cache:prefill(prompt(150, 1)))
    assert(cache:save(path))
    local bytes = helper.read(path)
    local at = saved_rows.read(bytes).tiers_at
    local tier = at + 8 + 8 * SHAPE.layers
    local lane, rows = tier + 16, cache:rows(1, 1, "warm")
    local frame = lane + 16 + 4 * rows
    local kinds = frame + 24 + 20 * D
    local hot = cache:positions(1, 1, "hot")
    local function refused(words, where, with)
      helper.write(path, saved_rows.patched(bytes, where, with))
      local none, message, code = models.cpu:load_cache(path, { tiers = tiers, policy = by })
      assert.is_nil(none, words)
      assert.equal("format", code)
      assert.matches(words, message)
    end
    local function i8(x) return ("<i8"):pack(x) end
    assert.equal(1, ("<i8"):unpack(bytes, at + 1))
    for _, count in ipairs { 0, 2, -1, math.maxinteger } do
      refused("tiers are not", at, i8(count))
    end
    for _, count in ipairs { 1, -1, 1 << 40 } do
      refused("the rows recalled are out of range", at + 8, i8(count))
    end
    for _, what in ipairs { 0, 2, 9, -1 } do refused("tiers differ", tier, i8(what)) end
    for _, dtype in ipairs { 0, 1, 1 + 256, -1, 1 << 40 } do
      refused("tiers differ", tier + 8, i8(dtype))
    end
    for _, count in ipairs { -1, 151, math.maxinteger } do
      refused("rows are out of range", lane, i8(count))
    end
    refused("rows are out of range", lane + 8, i8(2))
    refused("positions are not ascending", lane + 16, ("<i4"):pack(-1))
    refused("positions are not ascending", lane + 16 + 4 * (rows - 1), ("<i4"):pack(150))
    refused("positions are in two tiers", lane + 16, ("<i4"):pack(hot[1]))
    refused("a lane's frame is of another width", frame, ("<i4"):pack(D + 32))
    refused("a lane's frame is out of range", frame + 4, ("<i4"):pack(2))
    refused("a lane's frame is out of range", frame + 24, ("<i4"):pack(D))
    refused("the kinds of pages are out of range", frame + 4, ("<i4"):pack(0))
    refused("the kinds of pages are out of range", kinds, "\2")
    for _, cut in ipairs { 1, 9, 100, #bytes - at - 4, #bytes - frame - 3 } do
      helper.write(path, saved_rows.patched(bytes:sub(1, #bytes - cut), 0, "PYRCACHE"))
      local none, _, code = models.cpu:load_cache(path, { tiers = tiers, policy = by })
      assert.is_nil(none)
      assert.equal("format", code)
    end
    helper.write(path, saved_rows.patched(bytes, 0, "PYRCACHE"))
    assert(models.cpu:load_cache(path, { tiers = tiers, policy = by })):close()
    os.remove(path)
  end)

  it("run out of memory at any point without harm", function()
    local path = models.cpu.path
    local function task(limit, tiers)
      local model <close>, message, code = pyramid.model(path, { threads = 2, memory = limit })
      if not model then return nil, message, code end
      local file = helper.tmp()
      local made <close> = setmetatable({}, { __close = function(list)
        for i = #list, 1, -1 do list[i]:close() end
        os.remove(file)
      end })
      local function keep(value, why, what)
        if not value then error({ why, what }) end
        if type(value) == "userdata" and value.close then made[#made + 1] = value end
        return value
      end
      local ok, failure = pcall(function()
        local cache = keep(model:cache { tiers = declared(tiers), policy = keeper(30,
          lower(tiers)) })
        keep(cache:prefill(prompt(130, 12)))
        for i = 1, 12 do keep(cache:step(i)) end
        local fork = keep(cache:fork())
        keep(fork:prefill(prompt(70, 13)))
        keep(fork:promote { by = score.key_norm(), rows = 5 })
        keep(cache:evict(keeper(10, lower(tiers))))
        keep(cache:save(file))
        keep(model:load_cache(file, { tiers = declared(tiers) }))
      end)
      if ok then return true end
      if type(failure) ~= "table" then error(failure, 0) end
      return nil, failure[1], failure[2]
    end
    for _, tiers in ipairs { { hot = "q4", warm = { dtype = "q3", rows = 70 },
      cold = { dtype = "q2", file = "", bytes = "4 MiB" } }, { hot = "f16", warm = "q4" } } do
      local tries, limit = 0, 1 << 20
      while true do
        local done, message, code = task(limit, tiers)
        if done then break end
        assert.equal("memory", code, message)
        tries, limit = tries + 1, limit + 23 * 1024
        assert(tries < 400)
      end
      assert(tries > 3, tries)
    end
  end)
end)

-- What a process of its own does: reads and steps with a tier in a file of this folder.
local worker = [[
  local pyramid = require "pyramid"
  local policy = require "pyramid.policy"
  local model_path, folder, turns = ...
  local model = assert(pyramid.model(model_path, { threads = 1 }))
  local function plan(_, l)
    return { keep = math.min(20, l.rows), share = "head", losers = { to = "cold" },
      guard = { last = 6 } }
  end
  local cache = assert(model:cache { tiers = { hot = "q4",
    cold = { dtype = "q3", file = folder .. "/tier", bytes = "64 MiB" } },
    policy = policy { name = "some", prefill = plan, decode = plan,
      trigger = function() return { over = 21 } end } })
  local function ids(n, seed)
    local out = {}
    for i = 1, n do out[i] = (i * i * 31 + seed * 7 + i) % model.config.vocab end
    return out
  end
  local function positions()
    local all = {}
    for layer = 1, model.config.layers do
      for head = 1, model.config.kv_heads do
        all[#all + 1] = table.concat(cache:positions(layer, head), " ")
      end
    end
    return table.concat(all, "\n")
  end
  assert(cache:prefill(ids(100, 0)))
  assert(cache:save(folder .. "/saved"))
  for turn = 1, math.tointeger(tonumber(turns)) do
    local before, tokens = positions(), cache:tokens()
    local ok, message, code = cache:prefill(ids(60, turn))
    for i = 1, ok and 4 or 0 do
      if ok then
        before, tokens = positions(), cache:tokens()
        ok, message, code = cache:step(i)
      end
    end
    if not ok then
      assert(before == positions() and tokens == cache:tokens())
      assert(cache:prefill({ 1 }, { prune = false }))
      print(code, message)
      return
    end
  end
  print "done"
]]

describe("a tier in a file", function()
  local folder
  before_each(function()
    folder = shell.folder()
    helper.write(folder .. "/worker.lua", worker)
  end)
  after_each(function() shell.remove(folder) end)

  local function line(into, turns)
    return ("%s %s/worker.lua %s %s %d"):format(shell.program, folder,
      shell.quote(models.cpu.path), into, turns)
  end

  it("outlives its folder", function()
    local own = shell.folder()
    local tiers = { hot = "f16", cold = { dtype = "q4", file = own .. "/tier",
      bytes = "4 MiB" } }
    local cache <close> = assert(models.cpu:cache { tiers = tiers, policy = keeper(20, "cold") })
    local twin <close> = new({ hot = "f16", cold = "q4" }, keeper(20, "cold"))
    for _, c in ipairs { cache, twin } do assert(c:prefill(prompt(150, 1))) end
    shell.remove(own)
    for _, c in ipairs { cache, twin } do assert(c:prefill(prompt(150, 2))) end
    for i = 1, 30 do
      assert.same(assert(twin:step(i)):totable(), assert(cache:step(i)):totable())
    end
  end)

  it("says where its disk is full, and loses nothing", function()
    local inner = ("mount -t tmpfs -o size=256k none %s/small && exec %s"):format(folder,
      line(folder .. "/small", 4000))
    assert(os.execute("mkdir " .. folder .. "/small"))
    local _, _, status = shell.run(("unshare -rm mount -t tmpfs -o size=8k none %s/small"):format(
      folder))
    if status ~= 0 then return pending("a process here may mount no file system of its own") end
    local out, err = shell.run(("unshare -rm sh -c %s"):format(shell.quote(inner)))
    assert.matches("^io\t.*file of a tier cannot grow", out, out .. err)
  end)

  it("leaves nothing behind where its process is killed", function()
    for turn = 1, 4 do
      os.remove(folder .. "/saved")                  -- what is there is there whole
      shell.run(("%s & for i in $(seq 600); do test -e %s/saved && break; sleep 0.1; done; "
        .. "sleep %.2f; kill -9 $!; wait"):format(line(folder, 100000), folder, 0.1 * turn))
      local left = {}
      for name in require "lfs".dir(folder) do left[#left + 1] = name end
      table.sort(left)
      assert.same({ ".", "..", "saved", "worker.lua" }, left)
      local loaded <close> = assert(models.cpu:load_cache(folder .. "/saved", { tiers = {
        hot = "q4", cold = { dtype = "q3", file = folder .. "/again", bytes = "4 MiB" } } }))
      assert.equal(100, loaded:rows(1, 1))
      assert(loaded:step(1))
    end
  end)
end)
