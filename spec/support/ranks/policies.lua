-- policies.lua OUT POLICY…: run by a launcher on each of several ranks, or alone. What each policy
-- of the catalogue keeps of a prompt of 270 ids and after 40 greedy steps, of small random models
-- with 4 query heads over 4, 2 and 1 K/V heads. Writes a file of lines, OUT.RANK: policy, heads,
-- and a hash of ids and of all positions; or what the policy said.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local pyramid = require "pyramid"
local results = require "pyramid.tools.results"

local out, models = arg[1], arg[2]
local ids = {}
for i = 1, 270 do ids[i] = i * 37 % 271 end

local function run(model, name)
  local policy = pyramid.policy(name)
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
local file = assert(io.open(out .. "." .. rank, "w"))
file:write(table.concat(lines, "\n"), "\n")
file:close()
