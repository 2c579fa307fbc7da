-- saving.lua FOLDER MODEL save|load NAME: run by a launcher on each of several ranks, or alone.
-- Saves a cache of 120 ids and 20 steps under h2o, which tracks attention, and says how 20 steps
-- more go on; or loads one, and says how those go on from it. Also: a batch of three, and weights
-- of q8_0.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path
local pyramid = require "pyramid"

local folder, path, what, name = table.unpack(arg)
local function open(weights)
  return assert(pyramid.model(path, { threads = 1, precision = "f32", weights = weights,
    ranks = os.getenv "RANKS" }))
end

local function go_on(cache, id, n)
  local made = {}
  for i = 1, n do
    id = (assert(cache:step(id)):argmax())
    made[i] = id
  end
  return made
end

local ids = {}
for i = 1, 120 do ids[i] = i * 37 % 271 end
local lines = {}
local rank
do
  local model <close> = open()
  rank = model:ranks().rank
  local policy = pyramid.policy "h2o"
  if what == "save" then
    local cache <close> = assert(model:cache { dtype = "f32", policy = policy })
    local first = go_on(cache, (assert(cache:prefill(ids)):argmax()), 20)
    assert(cache:save(folder .. "/" .. name))
    local next_id = first[#first]
    lines[#lines + 1] = "next " .. next_id
    lines[#lines + 1] = "then " .. table.concat(go_on(cache, next_id, 20), " ")
    lines[#lines + 1] = "at " .. table.concat(cache:positions(2, 1), " ")
  else
    local cache <close> = assert(model:load_cache(folder .. "/" .. name,
      { dtype = "f32", policy = policy }))
    lines[#lines + 1] = "then " .. table.concat(go_on(cache, tonumber(arg[5]), 20), " ")
    lines[#lines + 1] = "at " .. table.concat(cache:positions(2, 1), " ")
  end
  local batch <close> = assert(model:batch { dtype = "f32",
    policy = pyramid.policy "pyramidinfer" })
  local sampler = pyramid.sampler {}
  for i = 1, 3 do assert(batch:add(table.move(ids, 1, 40 * i, 1, {}), sampler)) end
  for i = 1, 5 do
    local row = {}
    for at, entry in ipairs(assert(batch:step())) do
      row[at] = entry.id
      batch:push(entry[1], entry.id)
    end
    lines[#lines + 1] = ("batch %d %s"):format(i, table.concat(row, " "))
  end
end
local model <close> = open "q8_0"
local cache <close> = assert(model:cache { dtype = "f32" })
lines[#lines + 1] = "q8_0 " .. table.concat(go_on(cache, (assert(cache:prefill(ids)):argmax()), 20),
  " ")
local file = assert(io.open(("%s/%s.%d"):format(folder, what, rank), "w"))
file:write(table.concat(lines, "\n"), "\n")
file:close()
