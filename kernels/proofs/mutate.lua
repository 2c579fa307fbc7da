-- mutate.lua TREE [NUMBER…]: plants each fault of mutants.lua, or those of the numbers, in a copy
-- of the sources in the folder TREE, builds there, and runs the specs that are to see it on the
-- emulated device. A fault that none of them sees, or that does not build, is a failure, and so is
-- one that is seen and said to be `unseen`; TREE's kernels are as they were afterwards. `make
-- cuda-mutate` makes the copy.
--
-- What the specs say of the sources as they are comes first: they must pass. A spec that has not
-- ended in its time has not seen the fault.
local files = require "pyramid.files"
local quote = require "pyramid.tools.cli".quote

local mutants = dofile((arg[0]:match "^(.*/)" or "") .. "mutants.lua")

local tree, chosen = arg[1], {}
if not tree then
  io.stderr:write "usage: mutate.lua TREE [NUMBER…]\n"
  os.exit(2)
end
for i = 2, #arg do chosen[#chosen + 1] = assert(mutants[tonumber(arg[i])], arg[i]) end
if #chosen == 0 then chosen = mutants end

local SECONDS = 900

local function run(command, log)
  return select(3, os.execute(("cd %s && %s >>%s 2>&1"):format(quote(tree), command, quote(log))))
end

-- "passed", "failed" (or a crash), or "no end": `timeout` gives 124.
local function run_specs(specs, log)
  local code = run(("PYRAMID_BUILD=build timeout %d build/pyramid spec/run.lua %s")
    :format(SECONDS, specs:gsub("%S+", quote)), log)
  return code == 0 and "passed" or code ~= 124 and "failed" or "no end"
end

-- True if the fault was seen; else what happened.
local function plant(mutant, log)
  local path = tree .. "/kernels/" .. mutant.file
  local whole = assert(files.read(path, math.maxinteger))
  local from, to = whole:find(mutant.from, 1, true)
  if not from or whole:find(mutant.from, to + 1, true) then return nil, "its place is not found" end
  assert(files.write(path, whole:sub(1, from - 1) .. mutant.to .. whole:sub(to + 1)))
  local built = run("make build", log) == 0
  local said = built and run_specs(mutant.specs, log)
  assert(files.write(path, whole))
  if not built then return nil, "does not build" end
  return said == "failed", "the specs: " .. said
end

local sane, log_of_all = {}, os.tmpname()
if run("make build", log_of_all) ~= 0 then
  io.stderr:write("the sources do not build: ", log_of_all, "\n")
  os.exit(1)
end
for _, mutant in ipairs(chosen) do
  local said = sane[mutant.specs] or run_specs(mutant.specs, log_of_all)
  sane[mutant.specs] = said
  if said ~= "passed" then
    io.stderr:write("without a fault ", mutant.specs, ": ", said, ": ", log_of_all, "\n")
    os.exit(1)
  end
end
os.remove(log_of_all)

local failed, unseen = 0, 0
for i, mutant in ipairs(chosen) do
  local log = os.tmpname()
  local seen, what = plant(mutant, log)
  if mutant.unseen and seen then seen, what = nil, "it is seen, and said not to be" end
  print(("%2d  %-9s %-44s %s"):format(i, seen and "seen" or "NOT SEEN", mutant.specs, mutant.name))
  io.stdout:flush()
  if not seen and mutant.unseen and what == "the specs: passed" then
    print("    known: " .. mutant.unseen)
    unseen = unseen + 1
    os.remove(log)
  elseif not seen then
    failed = failed + 1
    print("    " .. what .. ": " .. log)
  else
    os.remove(log)
  end
end
print(("%d of %d faults seen"):format(#chosen - failed - unseen, #chosen))
os.exit(failed == 0)
