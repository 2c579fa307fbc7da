-- run.lua [--seconds=N] [--seed=N] [--kind=NAME[,…]] [--case=N] [--jobs=N]: mutated files,
-- policies and requests of HTTP, for so many seconds, each batch in a process of its own under
-- limits of time and memory. `make fuzz` builds with sanitizers and calls it.
--
-- A case is what (kind, seed, number) make of it, and nothing else. Prints for each kind how many
-- were tried, how they ended, and of each find the command that repeats it; a find's file goes to
-- spec/fixtures/finds, made smaller where that is easy, and spec/loaders/finds_spec.lua holds it
-- from then on. A find is a crash, a sanitizer's report, an error that is raised, a failure without
-- message, code or file name, or more time or memory than a small file may take. Exits 1 if there
-- are any.
package.path = "./?.lua;" .. package.path
local core = require "pyramid.core"
local shell = require "spec.support.shell"

local given = { seconds = "60", seed = tostring(os.time()), kind = "", case = "", jobs = "2" }
for _, word in ipairs(arg) do
  local key, value = word:match "^%-%-(%l+)=(.*)$"
  if not given[key] then
    io.stderr:write("usage: run.lua [--seconds=N] [--seed=N] [--kind=NAME,…] [--case=N] "
      .. "[--jobs=N]\n")
    os.exit(1)
  end
  if value ~= "" then given[key] = value end
end
local seconds, seed, jobs = tonumber(given.seconds), math.tointeger(tonumber(given.seed)),
  tonumber(given.jobs)
local only = math.tointeger(tonumber(given.case))

local known = { "gguf", "safetensors", "index", "config", "generation_config", "tokenizer_config",
  "tokenizer", "template", "cache", "results", "json", "gbnf",
  "schema", "policy" }
-- `pyramid serve`, where there is what it speaks HTTP with
if require "pyramid.serve.library".open() then known[#known + 1] = "http" end
local kinds = {}
for name in (given.kind ~= "" and given.kind or table.concat(known, ",")):gmatch "[^,]+" do
  local there = false
  for _, one in ipairs(known) do there = there or one == name end
  if not there then
    io.stderr:write(("no kind '%s' (known: %s)\n"):format(name, table.concat(known, ", ")))
    os.exit(1)
  end
  kinds[#kinds + 1] = name
end

-- A batch may take its seconds and as many again as its longest case; more is a case that never
-- ends.
local GRACE, BATCH = 40, 1 << 30
-- Freed memory is held back from reuse, but not so much that it looks like the case's; more than 3
-- GB in use end the process.
local environment = "ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=16:hard_rss_limit_mb=3000:allocator_may_return_null=1 "
  .. "UBSAN_OPTIONS=print_stacktrace=1"
-- What libraries of others keep until the end is not ours to find.
local function environment_of(kind)
  return kind == "http" and environment:gsub("detect_leaks=1", "detect_leaks=0") or environment
end
local finds_folder = "spec/fixtures/finds"
local work = os.tmpname()
os.remove(work)

local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "a"
  if file then file:close() end
  return text
end

-- What a find is about, so that one fault is one find: numbers and names of files and of memory
-- left out.
local function key_of(text)
  return (text:gsub("traceback:.*", ""):gsub("/[%w_./-]+", "F"):gsub("0x%x+", "N"):gsub("%d+",
    "N"):sub(1, 160))
end

-- The line of a sanitizer's or of the system's report that says what it is about.
local function crash_of(status, report)
  local line = report:match "SUMMARY: ([^\n]*)" or report:match "([^\n]*runtime error[^\n]*)"
    or report:match "([^\n]*ERROR: [^\n]*)"
  if status == 124 or status == 137 then return line or "does not end" end
  return ("exit status %d: %s"):format(status, line or report:sub(-200):gsub("%s+", " "))
end

local counts, finds, seen, slot = {}, {}, {}, {}
for _, kind in ipairs(kinds) do counts[kind] = { tried = 0, next = only or 1, endings = {} } end

local function fnv(s)
  local h = 0xcbf29ce484222325
  for i = 1, #s do h = (h ~ s:byte(i)) * 0x100000001b3 end
  return ("%08x"):format(h & 0xffffffff)
end

-- What the child says of a file; nil: nothing is wrong.
local function wrong_with(path)
  local command = ("%s timeout -k 2 %d %s spec/fuzz/child.lua --file %s"):format(
    environment_of(path:match "([^/.]+)%.[^/]*$"), GRACE, shell.quote(shell.program),
    shell.quote(path))
  local out, err, status = shell.run(command)
  if status == 0 then return nil end
  return status == 1 and not err:find "SUMMARY" and out or crash_of(status, err)
end

local function note(kind, n, path, what)
  local key = kind .. " " .. key_of(what)
  seen[key] = (seen[key] or 0) + 1
  if seen[key] > 1 then return end
  local bytes = read(path)
  local base = path:match "%.([^/.]+)%.[^/]*$" or "base"
  local suffix = path:match "(%.%a+)$" or ""
  local kept = bytes and ("%s/%s.%s.%s%s"):format(finds_folder, kind, base, fnv(bytes), suffix)
  if kept then
    os.execute("mkdir -p " .. finds_folder)
    local file = assert(io.open(kept, "wb"))
    file:write(bytes)
    file:close()
  end
  finds[#finds + 1] = { kind = kind, n = n, what = what, path = kept, key = key }
  print(("FIND %s: %s\n  again: make fuzz KIND=%s SEED=%d CASE=%d\n  kept:  %s"):format(kind,
    what:sub(1, 600), kind, seed, n, kept or "nothing"))
  io.flush()
end

-- What a batch left: counts, finds, and where the next one goes on.
local function collect(kind, folder)
  local count = counts[kind]
  local out, err, status = read(folder .. "/out") or "", read(folder .. "/err") or "",
    tonumber(read(folder .. "/status") or "1")
  for n, path, what in out:gmatch "FIND (%d+) (%S+) ([^\n]*)" do
    note(kind, tonumber(n), path, what)
  end
  local tried, next_one, endings = out:match "DONE (%d+) (%d+) ([^\n]*)"
  if tried then
    count.tried, count.next = count.tried + tried, tonumber(next_one)
    for ending, n in endings:gmatch "(%S+)=(%d+)" do
      count.endings[ending] = (count.endings[ending] or 0) + n
    end
    if status ~= 0 then
      note(kind, count.next - tried, "", crash_of(status, err)
        .. " (at the end of the batch from there)")
    end
  else
    local n, path = (read(folder .. "/now") or ""):match "(%d+) (%S+)"
    if not n then
      io.stderr:write(("%s: the batch did not begin: exit status %d\n%s\n"):format(kind, status,
        err:sub(-2000)))
      os.exit(2)
    end
    note(kind, tonumber(n), path, crash_of(status, err))
    count.tried, count.next = count.tried + tonumber(n) - count.next + 1, tonumber(n) + 1
    count.endings.died = (count.endings.died or 0) + 1
  end
  os.execute(("rm -rf %s"):format(shell.quote(folder)))
end

local began = core.clock()
local slice = only and 60 or math.max(2, math.min(20, seconds * jobs // (#kinds * 2)))
local turn = 0
repeat
  local commands, batch = {}, {}
  for _ = 1, math.min(jobs, #kinds) do
    local kind = kinds[turn % #kinds + 1]
    turn = turn + 1
    local folder = ("%s.%s"):format(work, kind)
    batch[#batch + 1] = { kind, folder }
    local line = "(mkdir -p %s; %s timeout -k 2 %d %s spec/fuzz/child.lua %s %d %d %d %d %s "
      .. ">%s/out 2>%s/err; "
      .. "echo $? >%s/status) &"
    commands[#commands + 1] = line:format(folder, environment_of(kind), slice + GRACE,
      shell.quote(shell.program), kind, seed, counts[kind].next, only or counts[kind].next + BATCH,
        slice, folder, folder, folder, folder)
  end
  os.execute(table.concat(commands, " ") .. " wait")
  for _, each in ipairs(batch) do collect(each[1], each[2]) end
until only or (core.clock() - began + slice > seconds and turn >= #kinds)

-- Pieces are left out as long as what is wrong stays: halves, quarters, …
local function smaller(find)
  local bytes, stop = read(find.path), core.clock() + 20
  local trial, piece = find.path, #bytes // 2
  local best = bytes
  while piece >= 1 and core.clock() < stop do
    local at = 1
    while at <= #best and core.clock() < stop do
      local try = best:sub(1, at - 1) .. best:sub(at + piece)
      local path = trial:gsub("([^/]*)$", function(name) return name:gsub("^([^.]+%.[^.]+)",
        "%1.try", 1) end)
      local file = assert(io.open(path, "wb"))
      file:write(try)
      file:close()
      local what = wrong_with(path)
      os.remove(path)
      if what and find.kind .. " " .. key_of(what) == find.key then
        best = try
      else
        at = at + piece
      end
    end
    piece = piece // 2
  end
  if #best < #bytes then
    os.remove(find.path)
    find.path = find.path:gsub("%x+(%.%a+)$", fnv(best) .. "%1")
    local file = assert(io.open(find.path, "wb"))
    file:write(best)
    file:close()
    print(("  %s: %d bytes of %d are enough: %s"):format(find.kind, #best, #bytes, find.path))
  end
end
for _, find in ipairs(finds) do
  if find.path and find.kind ~= "policy" and #read(find.path) < 1 << 20
    and not find.what:find "seconds" then
    smaller(find)
  end
end

local all = 0
for _, kind in ipairs(kinds) do
  local count, list = counts[kind], {}
  for ending, n in pairs(count.endings) do list[#list + 1] = ("%s %d"):format(ending, n) end
  table.sort(list)
  all = all + count.tried
  print(("%-18s %7d tried: %s"):format(kind, count.tried, table.concat(list, ", ")))
end
for key, n in pairs(seen) do
  if n > 1 then slot[#slot + 1] = ("%d times: %s"):format(n, key) end
end
table.sort(slot)
for _, line in ipairs(slot) do print(line) end
print(("fuzz: %d cases of %d kinds in %.0f s, seed %d: %d finds"):format(all, #kinds,
  core.clock() - began, seed, #finds))
os.exit(#finds == 0 and 0 or 1)
