-- Ranks on two hosts (docs/ranks.md), made of network namespaces on this machine: the same ids and
-- rows as one process over TCP, also where every message takes 100 ms; and what happens when the
-- link is cut, or a process on the other host is stopped, or killed. And of the link itself
-- (core/ranks/pulse.c, mpi.c), by C programs that use it.
local core = require "pyramid.core"
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

-- Words for `n` ranks of a program on each host, the environment's first.
local function hosted_line(environment, n, ...)
  return ("%s %s timeout %d %s run %s </dev/null"):format(launch.environment, environment,
    240 * launch.slow, hosts, launch.words(name, n, ...))
end

local function line(environment, n, ...)
  return hosted_line(environment, n, shell.program, ...)
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
      local began = core.clock()
      out, err, status = shell.run(line("", 1, scripts .. "steps.lua", model, folder .. "/far", 12,
        policy))
      assert.equal(0, status, out .. err)
      assert.is_true(core.clock() - began >= 12 * 0.1 * 6)       -- six sums a step, at the least
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
    local limit = core.clock() + 30 * launch.slow
    repeat
      local file = io.open(path)
      local seen = file and lines(path) or {}
      if file then file:close() end
      processes[rank] = seen[written or 4] and math.tointeger(tonumber(seen[1]))
      if not processes[rank] then os.execute "sleep 0.05" end
    until processes[rank] or core.clock() > limit
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
  local began = core.clock()
  repeat
    local left = false
    for _, process in pairs(processes) do left = left or is_there(process) end
    if not left then return core.clock() - began end
    os.execute "sleep 0.1"
  until core.clock() - began > seconds * launch.slow
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
    for i = 1, tonumber(os.getenv "PYRAMID_KILLS") or 2 do
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

-- mpirun, or its daemon on the other host, ends a run whose process was killed, too: the one that
-- would notice is stopped here, so that what the other rank says is its own. (Not both: Open MPI
-- waits for a rank's own daemon before it says that a connection has failed.)
describe("a killed process", function()
  for victim = 0, 1 do
    hosted(("is noticed by the other, without its launcher: rank %d"):format(victim), function()
      up()
      local processes = start("PYRAMID_RANKS_CUT=60", 1)
      local parent = helper.read(("/proc/%d/stat"):format(processes[victim])):match ".*%) %a (%d+)"
      assert(os.execute("kill -STOP " .. parent))
      assert(os.execute("kill -9 " .. processes[victim]))
      wait(processes, 10)
      os.execute("kill -9 " .. parent)
      assert.matches(("^device: ranks: rank %d %%(process %d on %%S+%%) has ended$"):format(victim,
        processes[victim]), last(1 - victim))
    end)
  end
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

-- Seconds of the environment that only one rank has: its words come first.
local function alone(rank, words)
  local script = '[ "$OMPI_COMM_WORLD_RANK$PMI_RANK" != %d ] || export %s; exec "$@"'
  return "sh", "-c", script:format(rank, words), "sh"
end

-- A command's words, with `program` and its own at the end.
local function after(words, ...)
  for _, word in ipairs { ... } do words[#words + 1] = word end
  return table.unpack(words)
end

local function mpirun(n, ...)
  return shell.run(("%s timeout %d mpirun -n %d %s </dev/null"):format(launch.environment,
    60 * launch.slow, n, launch.words(...)))
end

hosted("seconds that are none are refused in words, by all ranks", function()
  for i, words in ipairs { "CUT=soon", "CUT=0", "CUT=2.5", "CUT=1e3", "WAIT=86401", "WAIT=-1" } do
    local victim = i % 2
    for rank = 0, 1 do os.remove(("%s/run.%d"):format(folder, rank)) end
    mpirun(2, after({ alone(victim, "PYRAMID_RANKS_" .. words) }, shell.program,
      scripts .. "steps.lua", folder .. "/2", folder .. "/run", 1))
    for rank = 0, 1 do
      assert.equal(('device: runtime: ranks: rank %d: PYRAMID_RANKS_%s is "%s", no whole seconds '
        .. "of 1..86400"):format(victim, words:match "^(.*)=(.*)$"), last(rank))
    end
  end
end)

describe("the link", function()
  local link, library = nil, shell.build .. "/libpyramid_mpi.so"
  local flags = " -std=c11 -D_GNU_SOURCE -O1 $PYRAMID_CFLAGS -Icore -o %s %s%s %s"
  setup(function()
    if missing then return end
    link = folder .. "/link"
    local out, err, status = shell.run("mpicc" .. flags:format(link, scripts, "link_checks.c",
      "-ldl"))
    assert.equal(0, status, out .. err)
  end)

  -- What each rank said.
  local function assert_ok(n, out, err)
    for rank = 0, n - 1 do
      assert(out:find(("rank %d: ok\n"):format(rank), 1, true), out .. err)
    end
  end

  for _, n in ipairs { 1, 2 } do
    hosted(("leaves nothing that listens: %d on one host"):format(n), function()
      local out, err = mpirun(n, link, library, "listens")
      assert_ok(n, out, err)
    end)
  end

  hosted("leaves nothing that listens on two hosts", function()
    up()
    local out, err = shell.run(hosted_line("", 2, link, library, "listens"))
    assert_ok(4, out, err)
  end)

  hosted("minds only those whom it waits for", function()
    local out, err = mpirun(3, link, library, "delivered")
    assert(out:find("rank 0: ok\n", 1, true), out .. err)
    assert(out:find("rank 2: ok\n", 1, true), out .. err)
  end)

  hosted("takes a connection that breaks for a cut once it has waited as long", function()
    up()
    local out, err = shell.run(hosted_line("PYRAMID_RANKS_CUT=4", 1, link, library, "blink"))
    assert_ok(1, out, err)                   -- which waits; the other is ended by mpirun then
  end)

  -- Of a greeting, an answer, and five seconds: the answer comes when its rank has given up.
  hosted("does not look at a connection that the other side has not kept", function()
    local wire = folder .. "/wire"
    local out, err, status = shell.run(("${CC:-cc} -O1 -o %s %s"):format(wire, scripts .. "wire.c"))
    assert.equal(0, status, out .. err)
    up(wire, 1450)
    out, err = shell.run(hosted_line("", 1, link, library, "waits", 3, 1))
    assert_ok(2, out, err)
  end)

  hosted("has rank 0's seconds on all ranks", function()
    local out, err = mpirun(2, after({ alone(1, "PYRAMID_RANKS_WAIT=1") }, link, library, "waits",
      3, 0))
    assert_ok(2, out, err)
    out, err = mpirun(2, after({ alone(0, "PYRAMID_RANKS_WAIT=1") }, link, library, "waits", 3, 0))
    assert(out:find("rank 1: did not wait: rank 0 %b() has not answered for 1 seconds"), out .. err)
  end)

  it("meets many ranks with few descriptors, and waits without turning", function()
    local path = folder .. "/pulse"
    local out, err, status = shell.run("${CC:-cc}" .. flags:format(path, scripts,
      "pulse_checks.c", "core/ranks/pulse.c"))
    assert.equal(0, status, out .. err)
    for _, what in ipairs { "many", "full", "one-sided" } do
      out, err, status = shell.run(("timeout %d %s %s"):format(60 * launch.slow, path, what))
      assert.equal(0, status, out .. err)
    end
  end)
end)
