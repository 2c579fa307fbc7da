-- registers.lua [--launches=LIST] FILE…: what `nvcc -Xptxas -v` said of each kernel, as a table:
-- the most registers, static shared memory and stack over the targets, and spills; with LIST, which
-- the emulator wrote of launches (PYR_EMULATE_LAUNCHES: symbol, bytes of dynamic shared memory,
-- bytes that were allowed), also the most dynamic shared memory. Exits 1 if a kernel spills more
-- bytes, or uses more local memory, than is stated here; if static and dynamic shared memory pass
-- 48 KiB and so much was not allowed, or pass the 99 KiB of the devices that have least.

local here = arg[0]:match "^(.*/)" or ""
local stated = dofile(here .. "stated.lua")
local plain = dofile(here .. "symbols.lua").plain

local kernels, names = {}, {}

local function kernel_of(symbol)
  local name = plain(symbol)
  if not kernels[name] then
    kernels[name] = { registers = 0, shared = 0, stack = 0, spills = 0, targets = 0, dynamic = 0,
      allowed = 0 }
    names[#names + 1] = name
  end
  return kernels[name]
end

local launches
if (arg[1] or ""):find "^%-%-launches=" then launches = table.remove(arg, 1):match "=(.*)$" end

for _, path in ipairs(arg) do
  local kernel
  for line in io.lines(path) do
    local symbol = line:match "Compiling entry function '([^']+)'"
    if symbol then
      kernel = kernel_of(symbol)
      kernel.targets = kernel.targets + 1
    end
    local stack, stores,
      loads = line:match "(%d+) bytes stack frame, (%d+) bytes spill stores, (%d+) bytes spill loads"
    if stack and kernel then
      kernel.stack = math.max(kernel.stack, tonumber(stack))
      kernel.spills = math.max(kernel.spills, tonumber(stores), tonumber(loads))
    end
    local registers = line:match "Used (%d+) registers"
    if registers and kernel then
      kernel.registers = math.max(kernel.registers, tonumber(registers))
      kernel.shared = math.max(kernel.shared, tonumber(line:match "(%d+) bytes smem" or 0))
    end
  end
end

-- Kernels that are launched but in none of the files (of a run over some of them) are left out.
local launched = 0
for line in launches and io.lines(launches) or function() end do
  local symbol, dynamic, allowed = line:match "^(%S+) (%d+) (%d+)$"
  local k = kernels[plain(assert(symbol, "no list of launches"))]
  if k then
    if k.dynamic == 0 then launched = launched + 1 end
    k.dynamic, k.allowed = math.max(k.dynamic, tonumber(dynamic)),
      math.max(k.allowed, tonumber(allowed))
  end
end

local HELD, MOST = 48 << 10, 99 << 10
-- What is wrong with the kernel's shared memory; nil: nothing.
local function too_much(k)
  local both = k.shared + k.dynamic
  if both > MOST then return ("   %d bytes of shared memory, more than %d"):format(both, MOST) end
  if both > HELD and k.dynamic > k.allowed then
    return ("   %d bytes of shared memory, more than %d, and it was not allowed more"):format(both,
      HELD)
  end
end

table.sort(names)
local bad, large = 0, 0
print(("%-32s %9s %8s %8s %6s %6s %7s"):format("kernel", "registers", "shared", "dynamic", "stack",
  "spills", "targets"))
for _, name in ipairs(names) do
  local k, known = kernels[name], stated[name] or stated[name:gsub("<.*", "")]
    or { stack = 0, spills = 0 }
  local over = k.stack > known.stack or k.spills > known.spills
  if over then bad = bad + 1 end
  local shared = too_much(k)
  if shared then large = large + 1 end
  print(("%-32s %9d %8d %8d %6d %6d %7d%s%s"):format(name, k.registers, k.shared, k.dynamic,
    k.stack, k.spills, k.targets, shared or "",
      over and ("   more than the %d and %d stated"):format(known.stack, known.spills) or ""))
end
if #names == 0 then
  io.stderr:write "no kernels found\n"
  os.exit(1)
end
if launches and launched == 0 then
  io.stderr:write "no kernel of the list of launches is among these\n"
  os.exit(1)
end
if bad > 0 then
  io.stderr:write(bad, " kernels use more local memory than kernels/proofs/stated.lua states\n")
end
if large > 0 then io.stderr:write(large, " kernels have more shared memory than they may\n") end
if bad + large > 0 then os.exit(1) end
