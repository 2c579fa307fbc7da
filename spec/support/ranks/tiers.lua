-- tiers.lua OUT MODELS load|save: run by a launcher on each of several ranks, or alone. Rows that
-- go down tiers and come up again, of small random models with 4 query heads over 4, 2 and 1 K/V
-- heads: by plans, by a tier that is full, by a budget, by a score, in lanes of several lengths,
-- too, and by recall; tiers in files are told one path on all ranks. Writes a file of lines,
-- OUT.RANK: ids, and where every position of each lane lies. "save" also leaves caches in files,
-- which "load" goes on from.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local pyramid = require "pyramid"
local results = require "pyramid.tools.results"
local score = require "pyramid.score"

local out, models, what = table.unpack(arg)
local ranks = os.getenv "RANKS"
local lines, rank = {}, 0
local ids = {}
for i = 1, 150 do ids[i] = i * 37 % 271 end

local function places(cache, config)
  local all = {}
  for _, tier in ipairs { "hot", "warm", "cold" } do
    for layer = 1, cache:has_tier(tier) and config.layers or 0 do
      for head = 1, config.kv_heads do
        local positions = cache:positions(layer, head, tier)
        assert(#positions == cache:rows(layer, head, tier))
        all[#all + 1] = tier .. table.concat(positions, " ")
      end
    end
  end
  return ("%s %.6f"):format(results.hash(table.unpack(all)), cache:fraction())
end

local function go_on(cache, id, n)
  local made = {}
  for i = 1, n do
    id = assert(cache:step(id)):argmax()
    made[i] = id
  end
  return table.concat(made, " ")
end

local function keeper(share, recall)
  local function cut(_, l)
    return { keep = math.min(24, l.rows), guard = { first = 2, last = 8 }, share = share,
      score = score.key_norm(), losers = { to = "warm" } }
  end
  return pyramid.policy { name = "keeper-" .. share, prefill = cut, decode = cut,
    trigger = function()
      return { every = 6, track = recall and score.history() or nil, recall = recall }
    end }
end

local function halve(_, l)
  return { keep = l.rows // 2, share = "pool", score = score.key_norm(), losers = { to = "warm" } }
end
local halving = pyramid.policy { name = "halving", prefill = halve, decode = halve,
  trigger = function() return { every = 6 } end }

local function tell(kind, name, cache, config, made)
  lines[#lines + 1] = table.concat({ kind, name, places(cache, config), made }, " ")
end

for _, kind in ipairs { "4", "2", "1" } do
  local model <close> = assert(pyramid.model(models .. "/" .. kind,
    { threads = 1, precision = "f32", ranks = ranks }))
  rank = model:ranks().rank
  local config = model.config
  local function open(name, given, go)
    given.dtype = "f32"
    local path = ("%s-%s-%s"):format(models .. "/saved", kind, name)
    if what == "load" then
      local cache <close> = assert(model:load_cache(path, given))
      tell(kind, name, cache, config, go_on(cache, 5, 12))
      return
    end
    local cache <close> = assert(model:cache(given))
    tell(kind, name, cache, config, go(cache))
    if what == "save" then assert(cache:save(path)) end
    tell(kind, name .. "-on", cache, config, go_on(cache, 5, 12))
  end
  for _, share in ipairs { "layer", "head", "pool" } do
    open(share, { tiers = { warm = { dtype = "f32", rows = 60 }, cold = { dtype = "f32",
      file = out .. ".cold", bytes = "4 MiB" } }, policy = keeper(share) }, function(cache)
      return go_on(cache, assert(cache:prefill(ids)):argmax(), 20)
    end)
  end
  open("recall", { tiers = { warm = { dtype = "f32" } }, policy = keeper("head", 5) },
    function(cache) return go_on(cache, assert(cache:prefill(ids)):argmax(), 20) end)
  open("promote", { tiers = { warm = { dtype = "f32" } }, policy = keeper "layer" },
    function(cache)
      local id = assert(cache:prefill(ids)):argmax()
      assert(cache:promote { by = score.value_norm(), rows = 7 })
      return go_on(cache, id, 8)
    end)
  -- Lanes of several lengths get all of their rows back, and are of one length again: that is
  -- what plans are told of a layer's rows, on every rank.
  open("ragged", { tiers = { warm = { dtype = "f32" } }, policy = halving }, function(cache)
    local id = assert(cache:prefill(ids)):argmax()
    assert(cache:promote { by = score.value_norm(), rows = #ids })
    return go_on(cache, id, 8)
  end)
  if what ~= "load" then
    -- A budget of each rank, whose lanes are fewer than one process's: the same ids, at least.
    local cache <close> = assert(model:cache { dtype = "f32", pressure = "demote",
      tiers = { warm = { dtype = "f32", file = out .. ".warm", bytes = "4 MiB" } },
      budget = (ranks or ""):find "pipeline" and 30 * 1024 * config.kv_heads
        or 60 * 1024 * math.ceil(config.kv_heads / model:ranks().size) })
    local id = assert(cache:prefill(ids)):argmax()
    local made = go_on(cache, id, 150)
    lines[#lines + 1] = table.concat({ kind, "pressed", cache:rows(1), cache:fraction(), made },
      " ")
    assert(cache:rows(1, 1, "warm") > 0)
    -- A tier that is full on one rank alone, and has none below it: no rank's rows move.
    local full <close> = assert(model:cache { dtype = "f32", policy = keeper "head",
      tiers = { warm = { dtype = "f32", bytes = rank == 0 and "8 KiB" or "8 MiB" } } })
    local logits, _, code = full:prefill(ids)
    lines[#lines + 1] = table.concat({ kind, "full", tostring(logits), code, full:tokens(),
      full:rows(1) }, " ")
  end
end
local file = assert(io.open(out .. "." .. rank, "w"))
file:write(table.concat(lines, "\n"), "\n")
file:close()
