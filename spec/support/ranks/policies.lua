-- policies.lua OUT POLICY…: run by a launcher on each of several ranks, or alone. What each policy
-- of the catalogue, or of those below, keeps of a prompt of 270 ids and after 40 greedy steps, of
-- small random models with 4 query heads over 4, 2 and 1 K/V heads. Writes a file of lines,
-- OUT.RANK: policy, heads, and a hash of ids and of all positions; or what the policy said; and
-- another, OUT.RANK.scores: what cache:scores says of the rows that are left, numbers or its words.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local pyramid = require "pyramid"
local results = require "pyramid.tools.results"
local score = require "pyramid.score"

local out, models = arg[1], arg[2]
local ids = {}
for i = 1, 270 do ids[i] = i * 37 % 271 end

-- Budgets over layers while a prompt is read, which the catalogue has only some of.
local function weighing(share)
  return pyramid.policy { name = "weighing-" .. share, prefill = function(_, l)
    return { keep = l.rows // 3, least = 3, share = share, score = score.value_norm(),
      guard = { first = 2, last = 8 + l.index },
      weight = (score.key_norm() * score.position():normalize()):pool("avg", 5):sum() }
  end }
end
local own = {
  cascade = pyramid.policy { name = "cascade", prefill = function(_, l)
    return { keep = l.rows // (1 + l.index), least = 20, share = "model",
      guard = { first = 2, last = 8 }, score = score.attention { queries = 8, heads = "max" } }
  end },
  ["weighing-head"] = weighing "head", ["weighing-pool"] = weighing "pool",
}

-- What is asked of rows at rest: of all lanes, of one, of a layer's, and, where the policy tracks
-- attention, that.
local looked = {}
local function look(cache, heads)
  local function ask(...)
    local values, message = cache:scores(...)
    looked[#looked + 1] = values and table.concat(values:totable(), " ") or message
  end
  ask(score.key_norm() * score.position())
  ask(score.value_norm():pool("max", 3), { layer = 2, head = heads })
  ask(score.key_norm(), { layer = 1 })
  ask()
  ask(score.key_norm(), { layer = 1, head = heads + 1 })
end

local function run(model, name)
  local policy = own[name] or pyramid.policy(name)
  local cache <close> = assert(model:cache { dtype = "f32", policy = policy })
  local logits, message = cache:prefill(ids)
  if not logits then return "prefill: " .. message end
  local made = {}
  for i = 1, 40 do
    made[i] = (logits:argmax())
    logits, message = cache:step(made[i])
    if not logits then return ("step %d: %s"):format(i, message) end
  end
  local kept = {}
  for layer = 1, model.config.layers do
    for head = 1, model.config.kv_heads do
      local positions = cache:positions(layer, head)
      assert(#positions == cache:rows(layer, head))
      kept[#kept + 1] = table.concat(positions, " ")
    end
  end
  look(cache, model.config.kv_heads)
  return ("%s %s %.6f"):format(results.hash(table.concat(made, " ")),
    results.hash(table.unpack(kept)), cache:fraction())
end

local ranks = os.getenv "RANKS"
local lines = {}
local rank = 0
for _, kind in ipairs { "4", "2", "1" } do
  local model <close> = assert(pyramid.model(models .. "/" .. kind,
    { threads = 1, precision = "f32", ranks = ranks }))
  rank = model:runtime():ranks().rank
  for i = 3, #arg do
    local _, line = pcall(run, model, arg[i])
    lines[#lines + 1] = ("%s %s %s"):format(kind, arg[i], line)
  end
end
for ending, list in pairs { [""] = lines, [".scores"] = looked } do
  local file = assert(io.open(("%s.%d%s"):format(out, rank, ending), "w"))
  file:write(table.concat(list, "\n"), "\n")
  file:close()
end
