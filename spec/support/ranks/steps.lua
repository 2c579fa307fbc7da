-- steps.lua MODEL OUT STEPS POLICY: run by a launcher on each rank, or alone. A prompt, then greedy
-- steps. Writes to OUT.RANK, line by line: the process; the id of each step; then positions, layer
-- by layer, head by head. Or what ended it: a launcher's standard error may be on the other side of
-- a cut.
package.path = (arg[0]:match "^(.*)spec/" or "") .. "./?.lua;" .. package.path

local pyramid = require "pyramid"
local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or os.getenv "PMI_RANK")

local file = assert(io.open(("%s.%d"):format(arg[2], rank or 0), "w"))
file:setvbuf "no"

local function check(value, message, code)
  if value then return value end
  file:write(code, ": ", message, "\n")
  os.exit(3)
end

file:write(assert(io.open "/proc/self/stat"):read "n", "\n")
local ids = {}
for i = 1, 120 do ids[i] = i * 37 % 271 end
local model = check(pyramid.model(arg[1], { ranks = rank and "tensor" or nil, threads = 1,
  precision = "f32" }))
local cache = check(model:cache { dtype = "f32", policy = arg[4] and pyramid.policy(arg[4]) })
local logits = check(cache:prefill(ids))
for i = 1, tonumber(arg[3]) do
  local id = logits:argmax()
  file:write(id, "\n")
  logits = check(cache:step(id))
  if i % 300 == 0 then
    check(cache:clear())
    logits = check(cache:prefill(ids))
  end
end
for layer = 1, model.config.layers do
  for head = 1, model.config.kv_heads do
    file:write(layer, " ", head, ": ", table.concat(cache:positions(layer, head), " "), "\n")
  end
end
