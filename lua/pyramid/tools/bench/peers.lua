--- The engines that Pyramid is measured beside: which script speaks for each, what a Python must
--- have for it, and the ways in which it is measured. Of several ways of one engine the fastest
--- counts (cases.lua), so that none is held back by a setting.
---
---   llama.cpp      GGUF files; flash attention on and off; rows as ours
---   openvino       GGUF files, through GenAI's continuous batching; rows as ours, and its 8 bits
---   transformers   folders and GGUF files, on the processor in f32 and in bf16, two engines here;
---                  rows as the weights
local baselines = require "pyramid.tools.bench.baselines"
local peer = require "pyramid.tools.bench.peer"

local peers = {}

---@class pyramid.PeerAsked
---@field dtypes string[]               of cache rows
---@field flash "on"|"off"|"both"       llama.cpp's attention
---@field opened table                  what the peer answered to `open`

-- Ways, and what is refused: { label, cache_dtype, reason }.
local function llama_ways(asked)
  local ways, refused = {}, {}
  for _, dtype in ipairs(asked.dtypes) do
    for _, flash in ipairs { true, false } do
      local label = "llama.cpp, flash " .. (flash and "on" or "off")
      local reason = dtype == "fp8_e4m3" and "has no rows of this dtype"
        or dtype == "q8_0" and not flash and "needs flash attention for quantised rows" or nil
      if asked.flash ~= "both" and (asked.flash == "on") ~= flash then reason = "not asked for" end
      if not reason then
        ways[#ways + 1] = { engine = "llama.cpp", label = label, dtype = dtype, flash = flash,
          context = { flash = flash, cache = dtype } }
      elseif reason ~= "not asked for" then
        refused[#refused + 1] = { label = label, cache_dtype = dtype, reason = reason }
      end
    end
  end
  return ways, refused
end

local function openvino_ways(asked)
  local ways, refused, has, seen = {}, {}, { q8_0 = "u8" }, {}
  for _, cache in ipairs(asked.opened.caches) do has[cache] = cache end
  local function add(cache, dtype)
    if seen[cache] then return end
    seen[cache] = true
    ways[#ways + 1] = { engine = "openvino", label = ("openvino, %s rows"):format(cache),
      dtype = dtype, context = { cache = cache } }
  end
  for _, dtype in ipairs(asked.dtypes) do
    if has[dtype] then add(has[dtype], dtype)
    else
      refused[#refused + 1] = { label = "openvino", cache_dtype = dtype,
        reason = "has no rows of this dtype" }
    end
  end
  add(asked.opened.caches[1], asked.opened.caches[1])
  return ways, refused
end

local function transformers_ways(asked)
  local ways = {}
  for _, dtype in ipairs(asked.opened.dtypes) do
    ways[#ways + 1] = { engine = "transformers " .. dtype, label = "transformers, sdpa, " .. dtype,
      dtype = dtype, context = { dtype = dtype } }
  end
  return ways, {}
end

local known = {
  ["llama.cpp"] = { script = "llamacpp.py", ways = llama_ways, gguf = true,
    needs = "llama-cpp-python (pip install llama-cpp-python)" },
  openvino = { script = "openvino_genai_cb.py", ways = openvino_ways, gguf = true,
    needs = "openvino-genai (pip install openvino-genai)" },
  transformers = { script = "transformers_sdpa.py", ways = transformers_ways,
    needs = "torch, transformers and, for GGUF files, gguf and accelerate" },
}

---Their names, sorted.
---@type string[]
peers.names = { "llama.cpp", "openvino", "transformers" }

local function exists(path)
  local file = io.open(path, "rb")
  return file and file:close() or false
end

---Starts one, in a process of its own.
---@param name string
---@param python string   the interpreter
---@return pyramid.Peer?
---@return string? message
---@return string? hint
function peers.start(name, python)
  local which = known[name]
  for _, root in ipairs(require "pyramid.paths") do
    local script = ("%s/scripts/maker/peers/%s"):format(root, which.script)
    if exists(script) then
      local started, message = peer.start(python, script)
      if started then
        started.peer = name
        return started
      end
      return nil, message, ("--python PATH names a Python that has %s."):format(which.needs)
    end
  end
  return nil, "scripts/maker/peers was not found",
    "Run the program out of a source tree, or put the tree on PYRAMID_PATH."
end

---Opens a model in a peer, and lists the baselines that it is measured as.
---@param started pyramid.Peer
---@param given { path: string, converted: boolean, threads: integer, device: string, ids: integer[], context: integer, dtypes: string[], flash: string }
---@return pyramid.Theirs[] list
---@return table[] refused      { engine, label?, cache_dtype?, reason }
---@return number? seconds      that opening took
function peers.enter(started, given)
  local which = known[started.peer]
  local function none(reason) return {}, { { engine = started.peer, reason = reason } } end
  if which.gguf and not given.path:find "%.gguf$" then return none "reads GGUF files only" end
  if given.converted then return none "reads weights as they are in the file" end
  if which.gguf and given.device ~= "cpu" then return none "is measured on the processor only" end
  local ok, message = started:ask("ids", { ids = given.ids })
  if not ok then return none(message) end
  local opened
  opened, message = started:ask("open", { path = given.path, threads = given.threads,
    device = given.device })
  if not opened then return none(message) end
  local ways, refused = which.ways { dtypes = given.dtypes, flash = given.flash, opened = opened }
  for _, entry in ipairs(refused) do entry.engine = started.peer end
  local list = {}
  for i, way in ipairs(ways) do list[i] = baselines.theirs(started, way, given.context) end
  return list, refused, opened.seconds
end

return peers
