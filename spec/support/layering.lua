-- layering.lua [BUILD]: who may include whom, how long files are, and what the library may not
-- call. Prints each violation and exits 1 if there is one. With a build folder it reads the objects
-- there too: what they call, and that none of them call each other in a circle.
local bad = 0

local function complain(...)
  bad = bad + 1
  io.stderr:write(string.format(...), "\n")
end

local function lines_of(command)
  local pipe = assert(io.popen(command))
  local lines = {}
  for line in pipe:lines() do lines[#lines + 1] = line end
  pipe:close()
  return lines
end

-- A unit of the core (core/ROOM/NAME.c and .h) may include units of lower rank only, and its own
-- header.
local rank = {
  pyramid = 0, ["base/plain"] = 0, ["base/fingerprint"] = 0, ["base/arena"] = 0,
  ["base/disk"] = 0.5, ["base/versioned"] = 0.5, ["base/rowbits"] = 1.5,
  ["base/hadamard"] = 0, ["base/signs"] = 0.5,
  ["base/tensor"] = 1, ["base/dtype"] = 1, ["base/runtime"] = 1, ["sample/sample_math"] = 1,
  ["backend/op_args"] = 2, ["backend/digest_args"] = 2.5,
  ["backend/backend"] = 3, ["base/unicode"] = 3,
  ["grammar/api"] = 0.2, ["grammar/grammar"] = 3.5, ["grammar/guide"] = 3.6, ["grammar/gbnf"] = 3.7,
  ["grammar/lexicon"] = 3.7,
  ["ranks/link"] = 0, ["ranks/ranks"] = 2, ["ranks/part"] = 3, ["ranks/open"] = 4.5,
  ["ranks/mpi"] = 1, ["ranks/pulse"] = 0,
  ["backend/plugin"] = 4, ["base/weights"] = 4, ["base/profile"] = 4, ["sample/sampler"] = 4,
  ["cache/tier_file"] = 3, ["cache/pages"] = 4, ["cache/probed"] = 5, ["cache/learned"] = 5,
  ["cache/digests"] = 5, ["cache/ids"] = 5,
  ["text/tokenizer"] = 4,
  ["text/token_alphabet"] = 5, ["text/vocab"] = 5, ["text/bpe"] = 5, ["text/split"] = 5,
  ["text/decode_piece"] = 5, ["text/decode"] = 5, ["text/fingerprint"] = 5,
  ["model/packed"] = 4.4, ["model/config"] = 4.5, ["model/source"] = 4.5,
  ["backend/open"] = 5, ["model/convert"] = 5, ["model/model"] = 5, ["sample/sample_batch"] = 5,
  ["cache/cache"] = 6,
  ["cache/undo"] = 7, ["cache/check"] = 7, ["cache/truncate"] = 7, ["cache/slide"] = 7,
  ["cache/tiers"] = 7, ["cache/trial"] = 7, ["cache/pack"] = 7, ["cache/stride"] = 7,
  ["cache/resident"] = 7, ["cache/tidy"] = 7, ["cache/line"] = 7, ["model/stages"] = 6,
  ["policy/query_stats"] = 7, ["policy/split"] = 7,
  ["policy/ranked"] = 7.5,
  ["policy/score"] = 8, ["policy/look"] = 9, ["policy/policy"] = 9, ["policy/track"] = 9,
  ["policy/trace"] = 9,
  ["policy/observe"] = 10,
  ["cache/session"] = 11, ["policy/evict"] = 11, ["policy/evict_now"] = 12,
  ["policy/promote"] = 11, ["model/forward"] = 7, ["model/foresee"] = 11,
  ["model/flight"] = 1,
  ["model/reading"] = 11, ["model/probe"] = 13, ["model/prefill"] = 14, ["model/step"] = 12,
}

local kernels_may = { pyramid = true, ["base/tensor"] = true, ["base/dtype"] = true,
  ["base/rowbits"] = true, ["base/signs"] = true, ["base/runtime"] = true,
  ["backend/backend"] = true, ["sample/sample_math"] = true }
local binding_may = { pyramid = true, ["base/plain"] = true, ["base/disk"] = true,
  ["model/convert"] = true, ["model/foresee"] = true, ["model/flight"] = true,
  ["base/versioned"] = true,
  ["grammar/api"] = true }
local outside = {            -- the program's own
  ["lua/lprobe.c"] = { ["backend/backend"] = true, ["base/runtime"] = true, ["base/dtype"] = true,
    ["cpu/onednn"] = true },
}

-- Who may see the libraries underneath.
local function check_system(path, header)
  local core = path:find "^core/"
  if core and (header:find "^lua" or header:find "^lauxlib" or header:find "^cu[bd]") then
    complain("%s: the core may not include <%s>", path, header)
  elseif (header:find "dnnl" or header == "omp.h" or header:find "intrin")
    and not path:find "^core/cpu/"
    and path ~= "lua/lprobe.c" then
    complain("%s: <%s> belongs to core/cpu", path, header)
  elseif header:find "pcre2" and not path:find "^core/text/" then
    complain("%s: <%s> belongs to the tokenizer", path, header)
  end
end

local function exists(path)
  local file = io.open(path)
  return file and file:close()
end

local function check_include(path, header)
  local unit, name = header:match "^(.*)%.[^.]*$", path:match "^core/(.*)%.[^.]*$"
  if path:find "^core/cpu/" then
    local here = path:match "^(.*/)"
    if not (header:find "^cpu/" and exists("core/" .. header)) and not exists(here .. header)
      and not kernels_may[unit] then
      complain("%s: a backend may not include %s", path, header)
    end
  elseif name then
    local mine, its = rank[name:gsub("_tables$", "")], rank[(unit:gsub("_tables$", ""))]
    if not mine or not its then
      complain("%s includes %s: one of them has no rank in spec/support/layering.lua", path, header)
    elseif unit:gsub("_tables$", "") ~= name and its >= mine then
      complain("%s: may not include %s, which is not below it", path, header)
    end
  elseif not exists("lua/" .. header) and not binding_may[unit]
    and not (outside[path] or {})[unit] then
    complain("%s: the binding may not include %s", path, header)
  end
end

-- Lines a file may have, so many that nobody makes lines longer to stay below; generated tables are
-- free. The public header is documentation for most of its length.
local function limit_of(path)
  if path:find "_tables%." then return math.huge end
  return path:find "%.h$" and path ~= "core/pyramid.h" and 400
    or path == "core/pyramid.h" and 1280 or 1200          -- the one header of a host
end

local files = lines_of("find core lua policies scripts spec -name fixtures -prune -o "
  .. "-type f '(' -name '*.[ch]' -o -name '*.inc' -o -name '*.lua' ')' -print | sort")
for _, path in ipairs(files) do
  local count = 0
  for line in io.lines(path) do
    count = count + 1
    if path:find "%.lua$" or path:find "^spec/" then goto continue end
    local header = line:match '^%s*#%s*include%s*"([^"]+)"'
    if header then check_include(path, header) end
    header = line:match "^%s*#%s*include%s*<([^>]+)>"
    if header then check_system(path, header) end
    ::continue::
  end
  if count > limit_of(path) then
    complain("%s: %d lines, at most %d are allowed", path, count, limit_of(path))
  end
end

-- The library never prints, exits or reads the environment, and has no mutable globals.
local forbidden = {}
for name in ("printf vprintf puts putchar perror stdout stderr stdin exit _exit abort getenv "
  .. "secure_getenv setenv"):gmatch "%S+" do
  forbidden[name] = true
end

-- The program, and the specs' operations; what holds the streams for the Lua in our shared
-- libraries, and what is linked of it.
local free = { ["lua/main.o"] = true, ["lua/linterrupt.o"] = true, ["lua/lterminal.o"] = true,
  ["spec/support/lops.o"] = true, ["spec/support/stress.o"] = true, ["spec/support/lpty.o"] = true,
  ["lua/own_streams.o"] = true, ["own_lua.o"] = true, ["module.o"] = true }

local build = arg[1]
for _, object in ipairs(build and lines_of("find " .. build .. "/obj -name '*.o' | sort") or {}) do
  if free[object:match "/obj/(.*)$"] then goto continue end
  for _, line in ipairs(lines_of("objdump -t " .. object)) do
    local section, size, symbol = line:match "^%x+ .......%s*(%S+)%s+(%x+)%s+(%S+)$"
    if section == "*UND*" and forbidden[symbol] then
      complain("%s: the library may not use %s", object, symbol)
    elseif section and (section:find "^%.data" or section:find "^%.bss")
      and not section:find "^%.data%.rel%.ro"
      and tonumber(size, 16) > 0 then
      complain("%s: %s is a mutable global", object, symbol)
    end
  end
  ::continue::
end

-- Circles of calls: an object calls what another defines, and that one, by whatever way, calls it.
-- What all call (memory, threads, messages, a table's rows) belongs into a unit below, what calls
-- all (it fills a table, registers classes, opens backends) into one above. Functions that are
-- called through a table's pointer are no calls by name. A circle that is better than its cut
-- would be is listed here, its units sorted and joined by spaces, with the reason; one of more than
-- three units is never.
local CIRCLE_MAX = 3
local argued = {}

-- Strong definitions and needs of all objects, in one run of nm: of object -> symbols it needs, and
-- symbol -> the object that has it. Lines of nm -A: "PATH:ADDRESS T name", "PATH:   U name".
local function symbols_of(folders)
  local needs, home, units = {}, {}, {}
  for _, line in ipairs(lines_of("find " .. folders .. " -name '*.o' -print | xargs nm -A")) do
    local path, kind, name = line:match "^(.-%.o):%s*%x*%s+(%a)%s+(%S+)"
    local unit = path and path:match "/obj/(.+)%.o$" or path and path:match "/emulated/(.+)%.o$"
    if unit and not needs[unit] then
      needs[unit], units[#units + 1] = {}, unit
    end
    if kind == "U" then
      needs[unit][name] = true
    elseif kind and ("TDBR"):find(kind, 1, true) then
      home[name] = unit
    end
  end
  table.sort(units)
  return units, needs, home
end

-- Tarjan's strongly connected components, of more than one unit.
local function circles_of(units, needs, home)
  local index, low, stack, on, circles, n = {}, {}, {}, {}, {}, 0
  local function visit(unit)
    n = n + 1
    index[unit], low[unit], on[unit] = n, n, true
    stack[#stack + 1] = unit
    for symbol in pairs(needs[unit]) do
      local other = home[symbol]
      if other and not index[other] then visit(other) end
      if other and on[other] then low[unit] = math.min(low[unit], low[other]) end
    end
    if low[unit] < index[unit] then return end
    local circle = {}
    while on[unit] do
      local top = table.remove(stack)
      on[top], circle[#circle + 1] = nil, top
    end
    if #circle > 1 then circles[#circles + 1] = circle end
  end
  for _, unit in ipairs(units) do
    if not index[unit] then visit(unit) end
  end
  return circles
end

-- One call by name of each unit of a circle to another of it, to begin with.
local function calls_within(circle, needs, home)
  local inside, lines = {}, {}
  for _, unit in ipairs(circle) do inside[unit] = true end
  for _, unit in ipairs(circle) do
    for symbol in pairs(needs[unit]) do
      local other = home[symbol]
      if inside[other] and other ~= unit then
        lines[#lines + 1] = ("  %s calls %s of %s"):format(unit, symbol, other)
        break
      end
    end
  end
  return table.concat(lines, "\n")
end

if build then
  local folders = ("%s/obj/core %s/obj/lua"):format(build, build)
  local emulated = build .. "/emulated/kernels"
  if #lines_of("ls -d " .. emulated .. " 2>/dev/null") > 0 then
    folders = folders .. " " .. emulated
  end
  local units, needs, home = symbols_of(folders)
  for _, circle in ipairs(circles_of(units, needs, home)) do
    table.sort(circle)
    local name = table.concat(circle, " ")
    if #circle > CIRCLE_MAX or not argued[name] then
      complain("%d units call each other in a circle: %s\n%s", #circle, name,
        calls_within(circle, needs, home))
    end
    argued[name] = nil
  end
  for name in pairs(argued) do
    complain("no circle of calls any more, but listed as one in spec/support/layering.lua: %s",
      name)
  end
end

if bad > 0 then os.exit(1) end
print(("layering: %d files in order"):format(#files))
