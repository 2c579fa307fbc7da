-- roofline.lua FOLDER: what each kernel of rooflines.lua can reach at most on an H200, by the
-- instructions of its main loop (sass.lua), as a share of what bounds it at best: bytes through
-- memory. FOLDER has a listing FILE.sass (nvdisasm -c) of each file, for sm_90a.
--
-- Exits 1 if a kernel falls below the share that is stated there, or is not found: who makes a
-- kernel slower says so by changing its line. One that has risen by a tenth is pointed out.
--
--     bytes     4.3e12 a second, 132 multiprocessors of 4 schedulers at 1.755e9: 4.64 a cycle
--     loop      774 cycles of issuing for 4,352 bytes, which pass in 938: 121 %
--
-- More than 100 % means that instructions leave memory its time. It does not mean that the bytes
-- are asked for early enough, which only a device shows.
local here = arg[0]:match "^(.*/)" or ""
local sass = dofile(here .. "sass.lua")
local plain = dofile(here .. "symbols.lua").plain
local stated = dofile(here .. "rooflines.lua")

local BYTES = 4.3e12 / (132 * 4 * 1.755e9)

local folder = assert(arg[1], "usage: roofline.lua FOLDER")
local listings = {}

local function code_of(file, kernel)
  local path = ("%s/%s.sass"):format(folder, file)
  if not listings[path] then
    listings[path] = {}
    for symbol, code in pairs(sass.read(path)) do listings[path][plain(symbol)] = code end
  end
  return listings[path][kernel]
end

-- The share in percent, the loop, and its busiest unit: of a turn of the loop, with its part of
-- what stands around it.
local function share_of(one)
  local code = code_of(one.file, one.kernel)
  local loop = code and (one.loop == nil and sass.whole(code) or sass.loop(code, one.loop))
  local around = loop and one.around and sass.around(code, loop, one.around)
  if not loop or (one.around and not around) then return nil end
  local unit, most = "issue", 0
  for name, cycles in pairs(loop.busy) do
    if around then cycles = cycles + around.busy[name] * one.part end
    if cycles > most or (cycles == most and name < unit) then unit, most = name, cycles end
  end
  return 100 * one.bytes(loop) / BYTES / most, loop, unit
end

local failed = 0
print(("%-44s %6s %9s %8s %7s"):format("kernel", "instr.", "busiest", "share", "stated"))
for _, one in ipairs(stated) do
  local share, loop, unit = share_of(one)
  if not share then
    failed = failed + 1
    print(("%-44s has no such loop in %s.sass"):format(one.kernel, one.file))
  else
    local fallen = share < one.share - 0.05
    if fallen then failed = failed + 1 end
    print(("%-44s %6d %9s %6.1f %% %7.1f%s"):format(one.name or one.kernel, loop.instructions,
      unit, share, one.share,
      fallen and "   FALLEN" or share > one.share * 1.1 and "   risen: state it" or ""))
  end
end
if failed > 0 then
  io.stderr:write(failed, " kernels are below what kernels/proofs/rooflines.lua states\n")
  os.exit(1)
end
