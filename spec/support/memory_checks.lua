-- What memory_checks.c does through Lua: everything a cache goes through. Returns true, or nil, message, code.
local pyramid = require "pyramid"
local path = os.tmpname()

local function check(model_path)
  local model <close>, message, code = pyramid.model(model_path, { threads = 2 })
  if not model then return nil, message, code end
  local options = { policy = "h2o" }
  local cache <close>, fork, loaded, ids, ok
  cache, message, code = model:cache(options)
  if not cache then return nil, message, code end
  ids, message, code = model:encode "Once there was a baker who had a red"
  if not ids then return nil, message, code end
  ok, message, code = cache:prefill(ids)
  if not ok then return nil, message, code end
  ok, message, code = cache:step(ids[1])
  if not ok then return nil, message, code end
  fork, message, code = cache:fork()
  if not fork then return nil, message, code end
  ok, message, code = fork:step(ids[2])
  if not ok then return nil, message, code end
  ok, message, code = fork:save(path)
  if not ok then return nil, message, code end
  loaded, message, code = model:load_cache(path, options)
  if not loaded then return nil, message, code end
  ok, message, code = loaded:step(ids[3])
  if not ok then return nil, message, code end
  local batch <close>
  batch, message, code = model:batch(options)
  if not batch then return nil, message, code end
  ok, message, code = batch:add(ids, pyramid.sampler { temperature = 1 })
  if not ok then return nil, message, code end
  for _ = 1, 2 do
    ok, message, code = batch:step()
    if not ok then return nil, message, code end
  end
  return true
end

local results = table.pack(pcall(check, ...))
os.remove(path)
if not results[1] then error(results[2], 0) end
return table.unpack(results, 2, results.n)
