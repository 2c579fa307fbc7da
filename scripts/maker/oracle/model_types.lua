-- model_types.lua FOLDER…: what Pyramid makes of each: a line "loads" and the logits behind the ids
-- 1 to 6, or a line "refused" and the message. Asked by model_types.py.
local pyramid = require "pyramid"

local ids = { 1, 2, 3, 4, 5, 6 }

for _, folder in ipairs(arg) do
  local model, message = pyramid.model(folder, { threads = 1 })
  if not model then
    print("refused", (message:gsub("%s+", " ")))
  else
    local cache = assert(model:cache { dtype = "f32" })
    print("loads", table.concat(assert(cache:prefill(ids)):totable(), " "))
    cache:close()
    model:close()
  end
end
