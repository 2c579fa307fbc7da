-- What several specs need: fixtures, golden numbers, distances, temporary paths.
local cjson = require "cjson"
local core = require "pyramid.core"
local lfs = require "lfs"

local helper = {}

--- The device that models and runtimes get which ask for none: "cpu", or what PYRAMID_DEVICE says.
helper.device = core.default_device()

--- Busted's `it`, for what only holds on the processor (its instruction sets, its threads, its
--- bits). On another device each is reported as pending, with the reason:
--- helper.cpu_only("threads", it)("gives the same on any number of them", function …)
---@param why string
---@param it function
---@return function
function helper.cpu_only(why, it)
  if helper.device == "cpu" then return it end
  return function(name)
    require "busted".pending(("%s (about the processor: %s)"):format(name, why))
  end
end

local here = debug.getinfo(1, "S").source:match "^@(.*)helper%.lua$" or "spec/"

--- Names of the dtypes that the processor has kernels of a kind for: "weights", "rows", "bf16",
--- "bytes" or "packs"; and the values of a block, by name.
---@param kernels string
---@return string[]
---@return table<string, integer>
function helper.dtypes(kernels)
  local names, blocks = {}, {}
  for _, info in ipairs(core.dtypes()) do
    if info.cpu[kernels] then
      names[#names + 1], blocks[info.name] = info.name, info.block
    end
  end
  return names, blocks
end

--- The path of a file or folder under spec/fixtures.
function helper.fixture(path)
  return here .. "fixtures/" .. path
end

--- What a cache counts of a lane beside its rows, and what lies with them a row: what describes
--- its pages, and, if it has any, the lane and its arrays.
---@param pages integer
---@param arrays? integer   of positions (1, the default), a history, positions as they came
---@return integer
function helper.lane_beside(pages, arrays)
  if pages == 0 then return 0 end
  return 48 * pages + 192 + 64 * (arrays or 1)
end

--- Decoders that have golden logits, one for each switch: folders of spec/fixtures/decoders.
---@return string[]
function helper.decoders()
  local out = {}
  for name in lfs.dir(helper.fixture "decoders") do
    if lfs.attributes(helper.fixture("decoders/" .. name .. "/config.json")) then
      out[#out + 1] = name
    end
  end
  table.sort(out)
  return out
end

--- Models that have golden logits, one for each switch and family: folders of spec/fixtures.
---@return string[]
function helper.golden_models()
  local out = {}
  for _, kind in ipairs { "decoders", "families" } do
    for name in lfs.dir(helper.fixture(kind)) do
      local path = kind .. "/" .. name
      if lfs.attributes(helper.fixture(path .. "/golden.json")) then out[#out + 1] = path end
    end
  end
  table.sort(out)
  return out
end

--- What opens a decoder of those: its folder, or the GGUF file in it.
---@param name string
---@return string
function helper.decoder(name)
  local folder = helper.fixture("decoders/" .. name)
  return lfs.attributes(folder .. "/model.gguf") and folder .. "/model.gguf" or folder
end

--- Bundled policies, by name.
---@return string[]
function helper.policies()
  local out = {}
  for name in lfs.dir "policies" do out[#out + 1] = name:match "^(.+)%.lua$" end
  table.sort(out)
  return out
end

--- SmolLM2-135M-Instruct, where `make models` has fetched it; else nil.
do
  local path = here .. "../models/fetched/SmolLM2-135M-Instruct.Q4_1.gguf"
  local file = io.open(path, "rb")
  helper.model = file and path or nil
  if file then file:close() end
end

--- A file's bytes.
function helper.read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

function helper.write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

--- `n` token ids below `vocab`, the same for the same seed.
function helper.ids(n, vocab, seed)
  local ids, state = {}, seed or 1
  for i = 1, n do
    state = (state * 1103515245 + 12345) % 2147483648
    ids[i] = state // 65536 % vocab
  end
  return ids
end

--- A JSON file's value.
function helper.json(path)
  return cjson.decode(helper.read(path))
end

--- JSON has no integers: the options of a golden file with those that are whole as integers.
function helper.with_integers(options)
  local out = {}
  for key, value in pairs(options) do
    out[key] = math.type(value) == "float" and math.tointeger(value) or value
  end
  return out
end

--- Options as text, for names of specs.
function helper.said(options)
  local out = {}
  for key, value in pairs(options) do out[#out + 1] = key .. " " .. tostring(value) end
  table.sort(out)
  return #out > 0 and table.concat(out, ", ") or "defaults"
end

--- `count` little-endian f32 from byte `offset` (from 0) of `bytes`, as a sequence.
function helper.floats(bytes, offset, count)
  local out, block = {}, 128
  for at = 0, count - 1, block do
    local n = math.min(block, count - at)
    local values = table.pack(string.unpack("<" .. ("f"):rep(n), bytes, offset + 4 * at + 1))
    table.move(values, 1, n, at + 1, out)
  end
  return out
end

--- ‖out − ref‖ / ‖ref‖ of two sequences of numbers of one length. Never NaN: what is not a number
--- is infinitely far.
function helper.distance(out, ref)
  assert(#out == #ref, ("%d values where the reference has %d"):format(#out, #ref))
  local apart, size = 0.0, 0.0
  for i = 1, #ref do
    apart, size = apart + (out[i] - ref[i]) ^ 2, size + ref[i] ^ 2
  end
  local distance = (apart / size) ^ 0.5
  return distance == distance and distance or math.huge
end

--- Fails unless logits are within `limit` (default 1e-4) of a reference sequence; `what` goes into
--- the message.
function helper.assert_near(logits, ref, what, limit)
  local distance = helper.distance(logits:totable(), ref)
  if distance >= (limit or 1e-4) then
    error(("%s: relative error %.3g"):format(what, distance), 2)
  end
end

--- The positions of a bit map: position p is bit p % 4 of hexadecimal digit p // 4.
function helper.positions(bits)
  local out = {}
  for at = 1, #bits do
    local digit = tonumber(bits:sub(at, at), 16)
    for bit = 0, 3 do
      if digit >> bit & 1 == 1 then out[#out + 1] = 4 * (at - 1) + bit end
    end
  end
  return out
end

--- Fails at the first row that differs; a table of 2000 positions in a message helps nobody.
function helper.assert_positions(want, got, what)
  for i = 1, math.max(#want, #got) do
    if want[i] ~= got[i] then
      error(("%s: row %d is position %s, should be %s (%d rows, should be %d)")
        :format(what, i, got[i], want[i], #got, #want), 2)
    end
  end
end

--- Elements first .. last of a sequence.
function helper.slice(t, first, last)
  return table.move(t, first, last or #t, 1, {})
end

--- A path that nothing uses yet, removed at exit by whoever made something there.
function helper.tmp(suffix)
  local path = os.tmpname()
  if not suffix then return path end
  os.remove(path)
  return path .. suffix
end

--- Fails unless two caches of a model hold the same rows in every lane.
function helper.assert_same_rows(one, other, model, what)
  for layer = 1, model.config.layers do
    for head = 1, model.config.kv_heads do
      helper.assert_positions(one:positions(layer, head), other:positions(layer, head),
        ("%s, layer %d, head %d"):format(what, layer, head))
    end
  end
end

--- A bundled policy under options that make it drop much of little, as far as it has such options.
function helper.squeezed(name)
  local p = assert(require "pyramid.policy".load("policies/" .. name .. ".lua"))
  for key, value in pairs { ratio = 0.4, floor = 8, window = 6, recent = 0.2, every = 9 } do
    if type(p.options[key]) == "number" then
      local ok, changed = pcall(p.with, p, { [key] = value })
      if ok then p = changed end
    end
  end
  return name == "simlayerkv" and p:with { recent = 20, lazy = 0.7 } or p
end

return helper
