-- mutate.lua TREE [NUMBER…]: plants each fault of mutants.lua, or those of the numbers, in a copy of
-- the sources in the folder TREE, builds there, and runs the specs that are to see it on the
-- emulated device. A fault that none of them sees, or that does not build, is a failure; TREE's
-- kernels are as they were afterwards. `make cuda-mutate` makes the copy.
--
-- A spec is to fail, not to hang: each run has a limit of time, and passing it counts as seen.
local mutants = dofile((arg[0]:match "^(.*/)" or "") .. "mutants.lua")

local tree, chosen = arg[1], {}
if not tree then
  io.stderr:write "usage: mutate.lua TREE [NUMBER…]\n"
  os.exit(2)
end
for i = 2, #arg do chosen[#chosen + 1] = assert(mutants[tonumber(arg[i])], arg[i]) end
if #chosen == 0 then chosen = mutants end

local SECONDS = 900

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function run(command, log)
  return (os.execute(("cd %s && %s >>%s 2>&1"):format(quote(tree), command, quote(log))))
end

-- True if the fault was seen; else what happened.
local function plant(mutant, log)
  local path = tree .. "/kernels/" .. mutant.file
  local whole = read(path)
  local from, to = whole:find(mutant.from, 1, true)
  if not from or whole:find(mutant.from, to + 1, true) then return nil, "its place is not found" end
  write(path, whole:sub(1, from - 1) .. mutant.to .. whole:sub(to + 1))
  local built = run("make build", log)
  local passed = built and run(("PYRAMID_BUILD=build timeout %d build/pyramid spec/run.lua %s")
    :format(SECONDS, mutant.specs), log)
  write(path, whole)
  if not built then return nil, "does not build" end
  return not passed, "not seen"
end

local failed = 0
for i, mutant in ipairs(chosen) do
  local log = os.tmpname()
  local seen, what = plant(mutant, log)
  print(("%2d  %-9s %-28s %s"):format(i, seen and "seen" or "NOT SEEN", mutant.specs, mutant.name))
  io.stdout:flush()
  if not seen then
    failed = failed + 1
    print("    " .. what .. ": " .. log)
  else
    os.remove(log)
  end
end
print(("%d of %d faults seen"):format(#chosen - failed, #chosen))
os.exit(failed == 0)
