-- Lua code of others that does not return: policies, their files, scripts under Ctrl-C.
local core = require "pyramid.core"
local helper = require "helper"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local shell = require "support.shell"

local function forever() while true do end end

-- Ways of not returning that a single error would not end.
local ways = {
  plain = forever,
  ["under pcall"] = function() while true do pcall(forever) end end,
  ["deep under pcall"] = function()
    local function deep(n) while true do pcall(n > 0 and deep or forever, n - 1) end end
    deep(20)
  end,
  ["under xpcall"] = function() while true do xpcall(forever, debug.traceback) end end,
  ["in a coroutine"] = function() while true do coroutine.resume(coroutine.create(forever)) end end,
  ["in a wrapped coroutine under pcall"] = function()
    while true do pcall(coroutine.wrap(function() while true do pcall(forever) end end)) end
  end,
  ["in to-be-closed values"] = function()
    local _ <close> = setmetatable({}, { __close = forever })
    error "x"
  end,
}

describe("a policy that does not return", function()
  local model, ids
  setup(function()
    model = assert(pyramid.model("models/tiny", { device = helper.device, threads = 1 }))
    ids = assert(model:encode "Once there was a baker who lived in the village and baked bread")
  end)
  teardown(function() model:close() end)

  local function soon(seconds, f)
    local began = core.clock()
    local results = table.pack(f())
    local took = core.clock() - began
    assert.is_true(took < seconds, took .. " s")
    return table.unpack(results, 1, results.n)
  end

  for name, loop in pairs(ways) do
    it("is ended by the time limit, " .. name .. ", and the cache is as before", function()
      local on = false
      local p = policy { name = "loop", prefill = function(_, l)
        if on and l.index == 2 then loop() end
      end }
      local cache <close> = assert(model:cache { policy = p, policy_seconds = 0.05 })
      assert(cache:prefill(ids))
      on = true
      local logits, message, code = soon(5, function() return cache:prefill(ids) end)
      assert.is_nil(logits)
      assert.equal("policy", code)
      assert.equal("policy loop, layer 2, prefill: did not return within 0.05 seconds "
        .. "(policy_seconds)", message)
      assert.equal(#ids, cache:tokens())
      assert.equal(#ids, #cache:positions(1, 1))
      on = false
      assert(cache:step(ids[1]))
    end)
  end

  it("is ended in each of its functions", function()
    local at
    local score = require "pyramid.score"
    local function loop_at(which) if at == which then forever() end end
    local p = policy { name = "late",
      prefill = function(_, l)
        loop_at "prefill"
        return { keep = l.rows - 1, score = score.custom(function(lane)
          loop_at "custom"
          return lane.positions
        end), prune = "cache" }
      end,
      trigger = function()
        loop_at "trigger"
        return { every = 2, window = 2 }
      end,
      decode = function(_, l)
        loop_at "decode"
        return { keep = l.waiting - 1, score = score.position() }
      end }
    for _, which in ipairs { "prefill", "custom", "trigger", "decode" } do
      at = nil
      local cache <close> = assert(model:cache { policy = p, policy_seconds = 0.05 })
      if which == "decode" then assert(cache:prefill(ids)) end
      at = which
      local ok, message, code
      for _ = 1, 6 do
        if which == "decode" then
          ok, message, code = cache:step(ids[2])
        else
          ok, message, code = cache:prefill(ids)
        end
        if not ok then break end
      end
      assert.is_nil(ok, which)
      assert.equal("policy", code)
      assert.matches("^policy late, layer %d+, %l+: did not return within 0.05 seconds", message)
      at = nil
      assert(cache:prefill(ids), which)
    end
  end)

  it("is ended by the progress function, also where no time limit is", function()
    local p = policy { name = "loop", prefill = forever }
    for _, loop in pairs(ways) do
      local asked = 0
      local cache <close> = assert(model:cache { policy = policy { name = "loop", prefill = loop },
        policy_seconds = 0 })
      local logits, message, code = soon(5, function()
        return cache:prefill(ids, { progress = function() asked = asked + 1 return asked > 1 end })
      end)
      assert.is_nil(logits)
      assert.equal("cancelled", code)
      assert.equal("policy loop, layer 1, prefill: cancelled", message)
      assert.equal(0, cache:tokens())
    end
    local run, _, code = model:generate("Once",
      { policy = p, progress = function() return true end })
    assert.is_nil(run)
    assert.equal("cancelled", code)
    local cache <close> = assert(model:cache { policy = p })
    assert.error_matches(function() cache:prefill(ids,
      { progress = function() error "mine" end }) end, "mine")
  end)

  it("is ended while a generation goes on", function()
    local on, stop = false, false
    local p = policy { name = "later", trigger = function() return { every = 2, window = 2 } end,
      decode = function(_, l) return on and forever() or { keep = l.waiting } end }
    local run = assert(model:generate("Once upon a time",
      { policy = p, policy_seconds = 0, ignore_eos = true, max_tokens = 20,
      progress = function() return stop end }))
    assert(run())
    on, stop = true, true
    for _ = 1, 20 do if not run() then break end end
    assert.equal("error", run.finish)
    assert.equal("cancelled", run.code)
    run:close()
  end)

  it("has its time to itself: what core calls take that it makes does not count", function()
    local other <close> = assert(model:cache())
    local p = policy { name = "asks", prefill = function(_, l)
      if l.index > 1 then return end
      for _ = 1, 4 do
        other:prefill(ids, { progress = function()
          local began = core.clock()
          while core.clock() - began < 0.02 do end
        end })
        other:clear()
      end
    end }
    local cache <close> = assert(model:cache { policy = p, policy_seconds = 0.1 })
    assert(cache:prefill(ids))
  end)

  it("leaves debug hooks as they were, and they see it run", function()
    local lines = 0
    local function hook() lines = lines + 1 end
    local p = policy { name = "seen", prefill = function()
      local x = 1
      x = x + 1
      return x and nil
    end }
    local cache <close> = assert(model:cache { policy = p })
    local co = coroutine.create(function()
      debug.sethook(hook, "l")
      local before = lines
      assert(cache:prefill(ids))
      local during = lines - before
      local f, mask = debug.gethook()
      debug.sethook()
      return f, mask, during
    end)
    local _, f, mask, during = assert(coroutine.resume(co))
    assert.equal(hook, f)
    assert.equal("l", mask)
    assert.is_true(during > model.config.layers * 3, tostring(during))
  end)

  it("is ended in its file and by policy.check", function()
    local path, seconds = os.tmpname() .. ".lua", policy.SECONDS
    policy.SECONDS = 0.05 -- luacheck: ignore 122
    local ok, message = pcall(function()
      helper.write(path, "while true do pcall(function() while true do end end) end")
      local found, why, code = policy.load(path)
      assert.is_nil(found)
      assert.equal("policy", code)
      assert.matches("did not return within 0%.05 seconds", why)
      found, why = require "pyramid.testing".check(policy { name = "loop", prefill = forever })
      assert.is_nil(found)
      assert.matches("did not return within", why)
      assert.error_matches(function()
        policy.forecast(policy { name = "loop", prefill = forever }, model.config, 100)
      end, "policy loop, layer 1, prefill: did not return within")
    end)
    policy.SECONDS = seconds -- luacheck: ignore 122
    os.remove(path)
    assert(ok, message)
  end)

  it("is an option that is checked", function()
    assert.error_matches(function() model:cache { policy = "full", policy_seconds = -1 } end,
      "policy_seconds must be 0 or more")
    assert.error_matches(function() model:cache { policy_seconds = "1" } end, "policy_seconds")
    local own <close> = assert(pyramid.model("models/tiny", { threads = 1, policy_seconds = 0.05 }))
    local batch <close> = assert(own:batch { policy = policy { name = "loop", prefill = forever } })
    assert(batch:add(ids))
    assert.equal("policy", (select(3, batch:step())))
  end)
end)

describe("core.limited", function()
  it("returns what a function returns, raises what it raises, and ends what does not return",
    function()
    assert.same({ true, 3, nil, "x" }, { core.limited(1, function(a, b) return a + b, nil, "x" end,
      1, 2) })
    local thrown = {}
    local ok, value = pcall(core.limited, 1, function() error(thrown) end)
    assert.is_false(ok)
    assert.equal(thrown, value)
    assert.same({ nil, "time" }, { core.limited(0.05, forever) })
    assert.same({ nil, "time" }, { core.limited(0.05,
      function() return core.limited(60, forever) end) })
    local returned = table.pack(core.limited(60, function() return core.limited(0.05, forever) end))
    assert.same({ true, nil, "time", n = 3 }, returned)
    assert.is_nil((debug.gethook()))
  end)
end)

describe("Ctrl-C", function()
  -- Status and error text of the program, interrupted after some seconds; how long that took. In
  -- the foreground: else timeout signals its group as well, and a second Ctrl-C ends the program at
  -- once, as it should.
  local function interrupted(after, ...)
    local words = {}
    for i, word in ipairs { ... } do words[i] = shell.quote(word) end
    local began = core.clock()
    local line = "timeout --foreground --preserve-status -s INT -k 20 %g %s %s"
    local out, err, status = shell.run(line:format(after, shell.quote(shell.program),
      table.concat(words, " ")))
    return status, err, core.clock() - began - after, out
  end

  local scripts = {
    ["in a loop"] = "while true do end",
    ["under pcall"] = "while true do pcall(function() while true do end end) end",
    ["where an exit is caught and another status asked for"] =
      "local ok = pcall(function() while true do end end) os.exit(ok and 0 or 7)",
    ["in a coroutine"] = "coroutine.wrap(function() while true do end end)()",
    ["in a C function"] = "local s = ('a'):rep(30) .. 'b'; return (s .. s):find(('a*'):rep(60) "
      .. ".. 'c')",
    ["in a policy"] = [[
      local pyramid = require "pyramid"
      local p = pyramid.policy { name = "loop", prefill = function() while true do pcall(function() while true do end end) end end }
      local model = pyramid.model("models/tiny", { threads = 1 })
      print(model:cache { policy = p, policy_seconds = 0 }:prefill { 1, 2, 3 })]],
    ["in core calls"] = [[
      local model = require "pyramid".model("models/tiny", { threads = 1 })
      local ids = {}
      for i = 1, 2000 do ids[i] = i end
      while true do assert(model:cache()):prefill(ids) end]],
  }
  for name, code in pairs(scripts) do
    it("ends a script " .. name .. ", with status 130 and without a word", function()
      local status, err, took = interrupted(0.7, "-e", code)
      assert.equal(130, status)
      assert.equal("", err)
      assert.is_true(took < 8, took .. " s")
    end)
  end

  it("lets files be closed and what is to be closed close", function()
    local status, err, _, out = interrupted(1.5, "-e", [[
      io.stdout:setvbuf "full"
      io.write "begun "
      local x <close> = setmetatable({}, { __close = function() io.write "closed" end })
      while true do end]])
    assert.equal(130, status, err)
    assert.equal("begun closed", out)
  end)
end)
