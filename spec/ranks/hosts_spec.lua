-- Ranks on two hosts (docs/ranks.md), made of network namespaces on this machine: the same ids and
-- rows as one process over TCP, also where every message takes 100 ms; and what happens when the
-- link is cut, or a process on the other host is stopped, or killed.
local helper = require "spec.helper"
local launch = require "spec.support.mpirun"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local hosts = "sh spec/support/ranks/two_hosts.sh "
local name = "pyr" .. (assert(io.open "/proc/self/stat"):read "n")
local scripts = "spec/support/ranks/"

local missing = launch.missing()
if not missing then
  local _, err, status = shell.run(hosts .. "up " .. name)
  if status ~= 0 then missing = "network namespaces are not allowed: " .. err end
  shell.run(hosts .. "down " .. name)
end

local function hosted(words, test)
  if missing then pending(words .. ": " .. missing) else it(words, test) end
end

local folder
setup(function()
  folder = shell.folder()
  for _, kv_heads in ipairs { 4, 2, 1 } do
    assert(random_model.write(folder .. "/" .. kv_heads, { dtype = "f32", seed = 3,
      shape = { layers = 3, width = 32, heads = 4, kv_heads = kv_heads, ff = 96, vocab = 272,
        context = 512 } }))
  end
end)
before_each(function() if not missing then shell.run(hosts .. "down " .. name) end end)
teardown(function()
  if not missing then shell.run(hosts .. "down " .. name) end
  shell.remove(folder)
end)

local function up(...)
  local out, err, status = shell.run(hosts .. "up " .. launch.words(name, ...))
  assert.equal(0, status, out .. err)
end

-- Words for `n` ranks on each host, the environment's first.
local function line(environment, n, ...)
  return ("%s %s timeout 240 %s run %s </dev/null"):format(launch.environment, environment, hosts,
    launch.words(name, n, shell.program, ...))
end

local function lines(path)
  local list = {}
  for text in (helper.read(path)):gmatch "[^\n]+" do list[#list + 1] = text end
  return list
end

describe("two hosts", function()
  hosted("keep the rows that one process keeps", function()
    up()
    local names = { "pyramidinfer", "h2o", "adakv", "cake", "kvzip", "lava", "cascade" }
    local out, err, status = shell.pyramid(scripts .. "policies.lua", folder .. "/alone", folder,
      table.unpack(names))
    assert.equal(0, status, out .. err)
    local expected = helper.read(folder .. "/alone.0")
    for _, each in ipairs { 1, 2 } do
      out, err, status = shell.run(line("RANKS=tensor", each, scripts .. "policies.lua",
        folder .. "/hosts", folder, table.unpack(names)))
      assert.equal(0, status, out .. err)
      for rank = 0, 2 * each - 1 do
        assert.equal(expected, helper.read(("%s/hosts.%d"):format(folder, rank)))
      end
    end
  end)

  hosted("with 100 ms between them generate what one process generates", function()
    local wire = folder .. "/wire"
    local out, err, status = shell.run(("${CC:-cc} -O1 -o %s %s"):format(wire, scripts .. "wire.c"))
    assert.equal(0, status, out .. err)
    up(wire, 100)
    for _, case in ipairs { { "2", "pyramidinfer" }, { "1", "adakv" } } do
      local model, policy = folder .. "/" .. case[1], case[2]
      local began = os.time()
      out, err, status = shell.run(line("", 1, scripts .. "steps.lua", model, folder .. "/far", 12,
        policy))
      assert.equal(0, status, out .. err)
      assert.is_true(os.time() - began >= 12 * 0.1 * 6)       -- six sums a step, at the least
      out, err, status = shell.pyramid(scripts .. "steps.lua", model, folder .. "/near", 12, policy)
      assert.equal(0, status, out .. err)
      local expected = table.concat(lines(folder .. "/near.0"), "\n", 2)
      for rank = 0, 1 do
        assert.equal(expected, table.concat(lines(("%s/far.%d"):format(folder, rank)), "\n", 2))
      end
    end
  end)
end)

-- A run without an end, of which all ranks have written so many lines: their processes, which are
-- returned, and steps.
local function start(environment, n, written)
  for rank = 0, 2 * n - 1 do os.remove(("%s/run.%d"):format(folder, rank)) end
  assert(os.execute(("(%s) >%s/out 2>&1 & echo $! >%s/launcher"):format(line(environment, n,
    scripts .. "steps.lua", folder .. "/2", folder .. "/run", 100000000), folder, folder)))
  local processes = {}
  for rank = 0, 2 * n - 1 do
    local path = ("%s/run.%d"):format(folder, rank)
    for _ = 1, 600 do
      local file = io.open(path)
      local seen = file and lines(path) or {}
      if file then file:close() end
      processes[rank] = seen[written or 4] and math.tointeger(tonumber(seen[1]))
      if processes[rank] then break end
      os.execute "sleep 0.05"
    end
    assert(processes[rank], helper.read(folder .. "/out"))
  end
  return processes
end

local function is_there(process)
  local file = io.open(("/proc/%d/stat"):format(process))
  if not file then return false end
  local state = file:read "a":match ".*%) (%a)"
  file:close()
  return state ~= "Z"
end

-- Until none of the processes is there, but for at most so many seconds. Returns how long.
local function wait(processes, seconds)
  local tenths = 0
  while tenths <= seconds * 10 do
    local left = false
    for _, process in pairs(processes) do left = left or is_there(process) end
    if not left then return tenths / 10 end
    os.execute "sleep 0.1"
    tenths = tenths + 1
  end
  error(("still there after %d seconds: %s"):format(seconds, helper.read(folder .. "/out")))
end

local function last(rank)
  local seen = lines(("%s/run.%d"):format(folder, rank))
  return seen[#seen]
end

describe("a link that is cut", function()
  for _, n in ipairs { 1, 2 } do
    hosted(("ends all ranks within seconds, and they say why: %d on each host"):format(n),
      function()
      up()
      local processes = start("PYRAMID_RANKS_CUT=2", n)
      assert.equal(0, select(3, shell.run(hosts .. "cut " .. name)))
      wait(processes, 12)
      local told = 0
      for rank = 0, 2 * n - 1 do
        local said = last(rank)
        assert.matches("^device: ranks: rank %d %(process %d+ on [%w-]+%) ", said)
        if said:find("cannot be reached any more: its host or the network between has gone", 1,
          true) then told = told + 1
        else assert.matches("has ended$", said) end            -- who learned of it a moment sooner
      end
      assert.is_true(told >= n)
      local launcher = math.tointeger(tonumber(helper.read(folder .. "/launcher")))
      wait({ launcher }, 60)                   -- mpirun itself waits as long as TCP (two_hosts.sh)
    end)
  end
end)

describe("a process on another host", function()
  hosted("that is stopped is waited for, as long as is said", function()
    up()
    local processes = start("PYRAMID_RANKS_CUT=2 PYRAMID_RANKS_WAIT=6", 1)
    os.execute(("kill -STOP %d; sleep 4; kill -CONT %d"):format(processes[1], processes[1]))
    local reached = #lines(folder .. "/run.0")
    os.execute "sleep 1"
    assert.is_true(is_there(processes[0]) and is_there(processes[1]))
    assert.is_true(#lines(folder .. "/run.0") > reached)       -- and goes on
    os.execute(("kill -STOP %d"):format(processes[1]))
    local took = wait({ processes[0] }, 12)
    assert.is_true(took > 5)
    assert.matches("^device: ranks: rank 1 %(process %d+ on " .. name .. "%-b%) is there, but has "
      .. "not answered for 6 seconds$", last(0))
    os.execute(("kill -CONT %d 2>/dev/null"):format(processes[1]))
    wait(processes, 10)
  end)

  -- PYRAMID_KILLS: how often. Every second time also while the model is opened.
  hosted("that is killed at any point ends the others", function()
    local seed = os.time()
    math.randomseed(seed)
    up()
    for i = 1, tonumber(os.getenv "PYRAMID_KILLS") or 4 do
      local processes = start("", 1, i % 2 == 0 and 1 or nil)
      local victim = math.random(0, 1)
      os.execute(("sleep %.3f; kill -9 %d"):format(math.random() * 0.5, processes[victim]))
      wait(processes, 10)
      wait({ math.tointeger(tonumber(helper.read(folder .. "/launcher"))) }, 20)
      local said = last(1 - victim) .. helper.read(folder .. "/out")
      assert(said:find(("rank %d "):format(victim), 1, true), ("seed %d: %s"):format(seed, said))
    end
  end)
end)

-- Process numbers mean nothing in another room of them: here rank 1's is none of rank 0's.
hosted("ranks in containers of one host do not take each other for dead", function()
  local script, wrapper = folder .. "/slow.lua", folder .. "/container"
  helper.write(script, ([[
    local pyramid = require "pyramid"
    local model = assert(pyramid.model(%q, { ranks = "tensor", threads = 1 }))
    local cache = assert(model:cache())
    assert(cache:prefill { 1, 2, 3 })
    if model:ranks().rank == 1 then os.execute "sleep 1" end
    assert(cache:step(4))
    print("made a step, process " .. assert(io.open "/proc/self/stat"):read "n")
  ]]):format(folder .. "/2"))
  helper.write(wrapper, [[
    if [ "$OMPI_COMM_WORLD_RANK$PMI_RANK" = 0 ]; then
      exec unshare --pid --fork --mount-proc "$@"
    fi
    later='for i in 1 2 3 4 5 6 7 8 9; do sleep 0; sleep 0; done; "$@"; exit $?'
    exec unshare --pid --fork --mount-proc sh -c "$later" sh "$@"
  ]])
  local command = "%s OMPI_MCA_btl_vader_single_copy_mechanism=none timeout 120 mpirun -n 2 sh %s"
  local out, err, status = shell.run(command:format(launch.environment, launch.words(wrapper,
    shell.program, script)))
  assert.equal(0, status, out .. err)
  assert.matches("made a step, process 1\n", out)
  assert.equal(2, select(2, out:gsub("made a step, process %d", "")))
end)

hosted("seconds that are none are refused in words", function()
  up()
  shell.run(line("PYRAMID_RANKS_CUT=soon", 1, scripts .. "steps.lua", folder .. "/2",
    folder .. "/run", 1))
  for rank = 0, 1 do
    assert.equal('device: runtime: ranks: PYRAMID_RANKS_CUT is "soon", no seconds of 1..86400',
      last(rank))
  end
end)
