-- measure.lua OUT MODEL POLICY DTYPE: run by a launcher on each of several ranks. What a prompt of
-- 700 tokens and 20 steps hold and send, as the runtime counts it. Writes OUT.RANK, of JSON.
local pyramid = require "pyramid"
local json = require "pyramid.json"

local out, path, name, weights = table.unpack(arg)
local model <close> = assert(pyramid.model(path, { ranks = "tensor", threads = 1,
  precision = "f32", weights = weights }))
local runtime, ids = model:runtime(), {}
for i = 1, 700 do ids[i] = i * 37 % 250 + 3 end
local policy = name ~= "full" and pyramid.policy(name) or nil
local cache <close> = assert(model:cache { dtype = "f16", policy = policy })
local before, held = model:ranks(), runtime:memory()
assert(cache:prefill(ids))
local read, peak, rows = model:ranks(), runtime:memory_peak(), cache:bytes()
for i = 1, 20 do assert(cache:step(i)) end
local last = model:ranks()
local file = assert(io.open(("%s.%d"):format(out, last.rank), "w"))
file:write(json.encode { weights = model.handle:bytes(), peak = peak - held, rows = rows,
  prompt_sent = read.sent - before.sent, step_sent = (last.sent - read.sent) // 20 }, "\n")
file:close()
