-- The rows of a saved cache, of all its tiers, as f32: and a saved cache of one tier that holds the
-- same. Knows the format by core/cache/session.c's words, and shares no code with it but the
-- reference conversions of single rows.
local ops = require "pyramid_specs"

local PAGE = ops.page_rows
local saved_rows = {}

local dtype_names = { [0] = "f32", [1] = "f16", [2] = "bf16", [3] = "q8_0", [8] = "fp8_e4m3" }
local bits_names = { [0] = "", [1] = "q8_0", [2] = "q4", [3] = "q3", [4] = "q2" }
local key_bits = { q8_0 = 8 * 4, q4 = 6 + 4 + 4 + 2, q3 = 4 + 4 + 2 + 2, q2 = 4 + 2 + 2 + 0 }
local value_bits = { q8_0 = 4 * 8, q4 = 4 * 4, q3 = 4 * 3, q2 = 4 * 2 }

local function fnv(text)
  local hash = 0xcbf29ce484222325
  for i = 1, #text do hash = (hash ~ text:byte(i)) * 0x100000001b3 end
  return hash
end

-- A function that takes so many bytes, or what a format of string.unpack says, from where it is;
-- given nothing, it says where that is, from 0.
local function reader(bytes)
  local at = 1
  return function(what)
    if what == nil then return at - 1 end
    if type(what) == "number" then
      at = at + what
      return bytes:sub(at - what, at - 1)
    end
    local values = { string.unpack(what, bytes, at) }
    at = table.remove(values)
    return table.unpack(values)
  end
end

local function format_of(code)
  return { plain = dtype_names[code & 255], k = bits_names[code >> 8 & 15],
    v = bits_names[code >> 12 & 15] }
end

function saved_rows.row_bytes(dtype, d)
  local zeros = {}
  for i = 1, d do zeros[i] = 0 end
  return #ops.from_f32(dtype, ops.floats(zeros))
end

-- One lane: { { position, k, v, history }, … }, keys and values as packed f32.
local function read_lane(take, format, d, lower)
  local rows, tracked = take "<i8i8"
  local packs, frame, kinds = format.k ~= "" or format.v ~= "", nil, ""
  local lane, pages = {}, (rows + PAGE - 1) // PAGE
  for i = 1, rows do lane[i] = { position = take "<i4" } end
  for i = 1, tracked == 1 and rows or 0 do lane[i].history = take "<f" end
  if packs and (rows > 0 or lower) then
    frame = take(24 + 20 * d)
    kinds = take(pages)
  end
  for page = 1, pages do
    local packed = packs and kinds:byte(page) == 1
    for _, what in ipairs { "k", "v" } do
      local bits = packed and format[what] or ""
      local bytes = bits == "" and saved_rows.row_bytes(format.plain, d)
        or 2 + d // 32 * (what == "k" and key_bits or value_bits)[bits]
      for i = (page - 1) * PAGE + 1, math.min(page * PAGE, rows) do
        local row = take(bytes)
        lane[i][what] = bits == "" and ops.to_f32(format.plain, row)
          or ops.unpack_row(frame, bits, what == "v", row)
      end
    end
  end
  return lane, kinds
end

--- All rows of a saved cache without compacted layers or a note, lane by lane, in the order of
--- their positions; how many of the pages in each tier were packed; whether a hot lane is `open`:
--- ends in a packed page that has room; and where in the file the tiers begin.
function saved_rows.read(bytes)
  local version, layers, heads, d, dtype = string.unpack("<I4xxxxi4i4i4i4", bytes, 9)
  local take = reader(bytes)
  local head = take(256)
  local states = take(layers * 144)
  local lanes, packed, code, lower, open = {}, {}, dtype, false, false
  local function tier()
    local count = 0
    for i = 1, layers * heads do
      local lane, kinds = read_lane(take, format_of(code), d, lower)
      for _, row in ipairs(lane) do row.tier = #packed end       -- 0: hot
      lanes[i] = lanes[i] or {}
      table.move(lane, 1, #lane, #lanes[i] + 1, lanes[i])
      count = count + select(2, kinds:gsub("\1", ""))
      open = open or not lower and #lane % PAGE > 0 and kinds:byte(-1) == 1
    end
    packed[#packed + 1] = count
  end
  tier()
  local tiers_at = take()
  local tiers = version % 2 == 0 and take "<I8" or 0
  if version % 2 == 0 then take(8 * layers) end       -- rows that triggers recall
  for _ = 1, tiers do
    local _
    _, code = take "<I8I8"
    lower = true
    tier()
  end
  if version >= 7 then take(4 * take "<i8") end       -- ids
  for _, lane in ipairs(lanes) do
    table.sort(lane, function(a, b) return a.position < b.position end)
  end
  return { head = head, states = states, lanes = lanes, packed = packed, open = open, d = d,
    tiers_at = tiers_at,
    rest = take "<i8" }
end

--- A saved cache's bytes with others in the place of those at `at`, from 0, and the sum of that.
function saved_rows.patched(bytes, at, with)
  local body = bytes:sub(1, at) .. with .. bytes:sub(at + #with + 1, -9)
  return body .. ("<i8"):pack(fnv(body))
end

--- The bytes of a saved cache of f32 rows and one tier that holds what `read` has found.
function saved_rows.plain(found)
  local parts = { found.head:sub(1, 8), ("<I4"):pack(5), found.head:sub(13, 28),
    ("<i4"):pack(0), found.head:sub(33), found.states }
  local function put(text) parts[#parts + 1] = text end
  for _, lane in ipairs(found.lanes) do
    put(("<i8i8"):pack(#lane, 0))
    for _, row in ipairs(lane) do put(("<i4"):pack(row.position)) end
    for first = 1, #lane, PAGE do
      for _, what in ipairs { "k", "v" } do
        for i = first, math.min(first + PAGE - 1, #lane) do put(lane[i][what]) end
      end
    end
  end
  put(("<i8"):pack(0))
  local body = table.concat(parts)
  return body .. ("<i8"):pack(fnv(body))
end

return saved_rows
