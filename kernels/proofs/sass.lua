-- sass.lua: what a kernel's machine code does in its main loop, and what that costs a
-- multiprocessor. Reads what `nvdisasm -c` prints of a cubin.
--
-- The model is of one scheduler of Hopper, in cycles a warp's instruction keeps a unit of it busy.
-- Units work side by side, so that a loop takes as long as the busiest of them, and each
-- instruction takes a cycle of issuing:
--
--     issue      1, whatever it is
--     integer    2    logic, shifts, additions, comparisons: 16 lanes
--     float      1    FFMA, FADD, FMUL, HFMA2, and IMAD, of which …
--     wide       2    … one half of the float unit does all: 16 lanes
--     special    8    MUFU, conversions between kinds of numbers: 4 lanes
--     memory     4    of 4 bytes a lane and less, 8 of 8, 16 of 16: 32 bytes a cycle; SHFL, LDSM
--     tensor     6.6  HMMA of 16 x 8 x 16 by mma.sync, which has 62 % of the unit's peak
--
-- Published figures (NVIDIA's tables of throughput for compute capability 9.0, and measurements of
-- mma.sync by others), not ours: nothing here was run. Latency, conflicts of banks and caches are
-- not in it: an estimate says what a loop cannot be faster than.
local sass = {}

local INTEGER, SPECIAL, FLOAT, MEMORY = {}, {}, {}, {}
for word in ("LOP3 LOP IADD3 IADD SHF SHL SHR ISETP IMNMX VIMNMX LEA PRMT SEL FSEL FSETP FMNMX "
  .. "IABS POPC FLO BMSK SGXT VIADD VIADDMNMX PLOP3 P2R R2P F2FP I2FP ISCADD HMNMX2 HSETP2 "
  .. "FCHK MOV CS2R VOTE VOTEU"):gmatch "%S+" do INTEGER[word] = 2 end
INTEGER.POPC, INTEGER.FLO = 8, 8
for word in ("MUFU F2F F2I I2F FRND"):gmatch "%S+" do SPECIAL[word] = 8 end
for word in ("FFMA FADD FMUL HFMA2 HADD2 HMUL2"):gmatch "%S+" do FLOAT[word] = 1 end
for word in ("LDG STG LDS STS LDSM LDGSTS LD ST SHFL ATOMS ATOMG RED LDL STL STSM"):gmatch "%S+" do
  MEMORY[word] = 4
end

-- Of "LDG.E.128.CONSTANT": "LDG", 16. LDGSTS and LDSM say how much likewise (LDSM: .M88.4).
local function memory_cost(op)
  if op:find ".128" or op:find "%.4$" or op:find "M88%.4" then return 16 end
  if op:find "%.64" or op:find "M88%.2" then return 8 end
  return 4
end

--- Kernels of a listing, by symbol: lists of { label = … } and { op = "LDG.E.128", target = … }.
function sass.read(path)
  local kernels, code = {}, nil
  for line in io.lines(path) do
    local symbol = line:match "^%.text%.([%w_$]+):"
    local label = line:match "^(%.L_x_%d+):"
    local text = line:match "^%s*/%*%x+%*/%s+(.-)%s*;"
    if symbol then
      code = {}
      kernels[symbol] = code
    elseif label and code then
      code[#code + 1] = { label = label }
    elseif text and code then
      local op, rest = text:gsub("^{%s*", ""):gsub("^@!?U?P%w+%s+", ""):match "^(%S+)(.*)$"
      code[#code + 1] = { op = op, target = op:find "^BRA" and rest:match "(%.L_x_%d+)" or nil }
    end
  end
  return kernels
end

--- Loops of a kernel: { first, last } of its list, by branches back.
local function loops(code)
  local at, found = {}, {}
  for i, one in ipairs(code) do
    if one.label then at[one.label] = i end
    if one.target and at[one.target] then found[#found + 1] = { at[one.target], i } end
  end
  return found
end

-- What the instructions of a range are, by whole names, and how long each unit is busy with them.
local function counts_of(code, range)
  local ops = {}
  local busy = { issue = 0, integer = 0, float = 0, wide = 0, special = 0, memory = 0, tensor = 0 }
  for i = range[1], range[2] do
    local op = code[i].op
    local name = op and op:match "^[^%.]+"
    if op and name ~= "NOP" then
      ops[op] = (ops[op] or 0) + 1
      busy.issue = busy.issue + 1
      if name == "HMMA" or name == "IMMA" or name == "QMMA" then
        busy.tensor = busy.tensor + (op:find "1688" and 3.3 or 6.6)
      elseif MEMORY[name] then busy.memory = busy.memory + memory_cost(op)
      elseif SPECIAL[name] then busy.special = busy.special + 8
      elseif FLOAT[name] then busy.float = busy.float + 1
      elseif name == "IMAD" then busy.float, busy.wide = busy.float + 1, busy.wide + 2
      elseif INTEGER[name] then busy.integer = busy.integer + INTEGER[name]
      end
    end
  end
  return { ops = ops, busy = busy, instructions = busy.issue, range = range }
end

--- Counts of the main loop: of the loops with most instructions that begin with `of` the shortest,
--- as parts that lie out of line branch back over more than the loop. nil: there is none.
function sass.loop(code, of)
  local best, most = nil, 1
  for _, range in ipairs(loops(code)) do
    local found, length = 0, range[2] - range[1]
    for i = range[1], range[2] do
      if code[i].op and code[i].op:find(of, 1, true) == 1 then found = found + 1 end
    end
    if found > most or (found == most and (not best or length < best[2] - best[1])) then
      best, most = range, found
    end
  end
  return best and counts_of(code, best)
end

--- Counts of a kernel that has no loop.
function sass.whole(code) return counts_of(code, { 1, #code }) end

--- Counts of what stands around a loop in the shortest loop that has another instruction that
--- begins with `with`; nil: there is none.
function sass.around(code, loop, with)
  local best
  local first, last = loop.range[1], loop.range[2]
  for _, range in ipairs(loops(code)) do
    local outside = false
    for i = range[1], range[2] do
      local op = (i < first or i > last) and code[i].op
      outside = outside or (op and op:find(with, 1, true) == 1)
    end
    if outside and range[1] <= first and range[2] >= last
      and (not best or range[2] - range[1] < best[2] - best[1]) then best = range end
  end
  if not best then return nil end
  local around = counts_of(code, best)
  for unit, cycles in pairs(loop.busy) do around.busy[unit] = around.busy[unit] - cycles end
  around.instructions = around.busy.issue
  return around
end

return sass
