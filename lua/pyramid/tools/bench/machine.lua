--- The machine that a measurement runs on: what it is, what it can do at most, and how much memory
--- was resident.
local core = require "pyramid.core"
local json = require "pyramid.json"
local probe = require "pyramid.probe"

local machine = {}

local function read(path)
  local file = io.open(path, "r")
  local text = file and file:read "a"
  if file then file:close() end
  return text
end

local function output_of(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local text = pipe and pipe:read "a" or ""
  if pipe then pipe:close() end
  return text
end

-- Instruction sets that matter here, out of the long list.
local function useful_flags(flags)
  local out = {}
  for flag in flags:gmatch "%S+" do
    if flag:find "^avx" or flag:find "^amx" or flag:find "^sse4" or flag == "fma" or flag == "f16c"
      or flag:find "^asimd"
      or flag:find "^sve" or flag == "bf16" or flag == "i8mm" then out[#out + 1] = flag end
  end
  return out
end

local function flatten(entries, into)
  for _, entry in ipairs(entries) do
    if type(entry.data) == "string" then into[entry.field:gsub(":$", "")] = entry.data end
    if type(entry.children) == "table" then flatten(entry.children, into) end
  end
  return into
end

-- What lscpu says, by its own names; nothing where there is no lscpu.
local function lscpu()
  local parsed = json.decode(output_of "LC_ALL=C lscpu -J")
  return type(parsed) == "table" and parsed.lscpu and flatten(parsed.lscpu, {}) or {}
end

---The load of the last minute: how many threads wanted to run.
---@return number?
function machine.load() return tonumber((read "/proc/loadavg" or ""):match "^%S+") end

---What the machine is.
---@return table
function machine.describe()
  local cpu, memory = lscpu(), (read "/proc/meminfo" or ""):match "MemTotal:%s*(%d+) kB"
  local function number(key) return tonumber(cpu[key]) end
  return {
    cpu = cpu["Model name"] or (read "/proc/cpuinfo" or ""):match "model name%s*:%s*([^\n]+)"
      or "unknown",
    architecture = cpu["Architecture"], processors = number "CPU(s)",
      cores_per_socket = number "Core(s) per socket",
    sockets = number "Socket(s)", threads_per_core = number "Thread(s) per core",
      l2 = cpu["L2 cache"] or cpu["L2"],
    l3 = cpu["L3 cache"] or cpu["L3"], hypervisor = cpu["Hypervisor vendor"],
      flags = useful_flags(cpu["Flags"] or ""),
    memory = memory and tonumber(memory) * 1024,
      kernel = (read "/proc/sys/kernel/osrelease" or ""):match "%S+",
    pyramid = core.version, commit = machine.commit(), onednn = probe.version(), lua = _VERSION,
  }
end

---The last level cache in bytes; 0 where nothing says so.
---@return integer
function machine.last_cache()
  local most = 0
  for index = 0, 4 do
    local text = read(("/sys/devices/system/cpu/cpu0/cache/index%d/size"):format(index))
    local size, unit = (text or ""):match "^(%d+)(%a?)"
    if size then
      most = math.max(most, tonumber(size) * (unit == "M" and 1 << 20 or unit == "K" and 1 << 10
        or 1))
    end
  end
  return math.tointeger(most) or 0
end

-- ---- limits -------------------------------------------------------------------------------------

---@class pyramid.Limits
---@field read number[]
---  bytes a second, read by all threads out of a buffer far larger than the last cache
---@field f32 number[]
---  oneDNN's operations a second, a multiply-add being two; empty if it has no such product here
---@field bf16 number[]
---@field int8 number[]

---@return pyramid.Limits
function machine.new_limits() return { read = {}, f32 = {}, bf16 = {}, int8 = {} } end

---How much is measured to learn a device's ceilings: little where the processor plays the device.
---@param runtime userdata
---@return { copy: integer, product: integer, times: integer }
---  bytes; side of the matrices; runs of each
function machine.device_sizes(runtime)
  if runtime:isa() == "emulated" then return { copy = 1 << 20, product = 64, times = 1 } end
  return { copy = 1 << 30, product = 8192, times = 20 }
end

-- A ceiling of a device: bytes that are read and written a second where it copies within its
-- memory, operations a second of its library's products; nil and why not, if it fails.
local function device_ceiling(runtime, kind)
  local sizes, copies = machine.device_sizes(runtime), kind == "copy"
  local seconds, message = probe.device_time(runtime, kind, copies and sizes.copy or sizes.product,
    sizes.times)
  if not seconds then return nil, message end
  return (copies and 2 * sizes.copy or 2 * sizes.product ^ 3) / seconds
end

-- A device's copying counts as reading, its library's products as oneDNN's.
local function measure_device(limits, runtime)
  for kind, name in pairs { copy = "read", f32 = "f32", bf16 = "bf16" } do
    table.insert(limits[name], (device_ceiling(runtime, kind)))
  end
end

---Measures one of the limits once more, with as many threads as the runtime has: the processor's,
---not a device's.
---@param limits pyramid.Limits
---@param runtime userdata
---@param name "read"|"f32"|"bf16"|"int8"
---@param given { bytes: integer, size: integer }   buffer; side of the matrices
---@return number?   bytes or operations a second; nil where oneDNN has no such product
function machine.measure_one(limits, runtime, name, given)
  local work, seconds
  if name == "read" then
    work = given.bytes // (1 << 20) * (1 << 20)
    seconds = assert(probe.read(runtime, work, 1))
  else work, seconds = 2 * given.size ^ 3, probe.matmul(name, runtime:threads(), given.size, 2) end
  if not seconds then return nil end
  table.insert(limits[name], work / seconds)
  return work / seconds
end

---Measures all of them; or a device's.
---@param limits pyramid.Limits
---@param runtime userdata
---@param given { bytes: integer, size: integer, times: integer }
---  buffer; side of the matrices; passes of each
function machine.measure(limits, runtime, given)
  if probe.device(runtime) then
    for _ = 1, given.times do measure_device(limits, runtime) end
    return
  end
  for _ = 1, given.times do
    for _, name in ipairs { "read", "f32", "bf16", "int8" } do
      machine.measure_one(limits, runtime, name, given)
    end
  end
end

---What a runtime's device is; nil where that is the processor. `module` is the driver's own
---version, `state` its clocks, power and temperature, where its tool says so.
---@param runtime userdata
---@return table?
function machine.device(runtime)
  local facts = probe.device(runtime)
  if not facts or facts.arch == "none" then return facts or nil end
  local asked = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
  local line = output_of("nvidia-smi -i 0 --format=csv,noheader --query-gpu=" .. asked)
  facts.state = line:match "^[^\n]+"
  facts.module = line:match "^[^,]*,%s*([^,]+)"
  return facts
end

local function quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

---The commit that the program was built from: of its work tree, or what a bundle says. (Not of the
---current directory's, which may be anybody's.)
---@return string?
function machine.commit()
  for _, root in ipairs(require "pyramid.paths") do
    local git = io.open(root .. "/.git")
    if git then git:close() end
    local found = git and output_of("git -C " .. quote(root)
      .. " rev-parse --short HEAD"):match "^%x+"
      or (read(root .. "/COMMIT") or ""):match "^%x+[^%s]*"
    if found then return found end
  end
  return nil
end

---A new record of what a device does: what it is, its ceilings (bytes read and written, operations
---a second; kinds that fail are left out and named in `missing`), commit and date.
---@param runtime userdata
---@return table
function machine.record(runtime)
  local ceilings, missing = {}, {}
  for _, kind in ipairs { "copy", "f32", "f16", "bf16" } do
    local ceiling, message = device_ceiling(runtime, kind)
    if ceiling then
      ceilings[kind] = ceiling
    else
      missing[#missing + 1] = kind .. ": " .. message
    end
  end
  return { device = machine.device(runtime), ceilings = ceilings,
    missing = #missing > 0 and missing or nil, commit = machine.commit(),
      date = os.date "!%Y-%m-%dT%H:%M:%SZ", version = core.version }
end

---The most that was seen.
---@param samples number[]
---@return number?
function machine.most(samples)
  return #samples > 0 and math.max(table.unpack(samples)) or nil
end

-- ---- memory -------------------------------------------------------------------------------------

---Gives freed memory back to the system and lets the peak begin anew, where the kernel allows that.
---@return boolean
function machine.reset_peak()
  collectgarbage()
  probe.trim()
  local file = io.open("/proc/self/clear_refs", "w")
  local ok = file and file:write "5" and file:close()
  return ok and true or false
end

---Most bytes of this process that were resident since, mapped files included.
---@return integer?
function machine.peak()
  local kib = (read "/proc/self/status" or ""):match "VmHWM:%s*(%d+) kB"
  return kib and math.tointeger(tonumber(kib)) * 1024
end

return machine
