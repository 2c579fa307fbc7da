-- What memory_checks.c does through Lua: everything that a cache goes through. Returns true, or
-- nil, message, code.
local pyramid = require "pyramid"
local path = os.tmpname()
local opened = {}

-- Ends by an error that tells the program's end from Lua's own, unless it got something, which is
-- closed at the end.
local function must(value, message, code)
  if not value then error({ message, code }, 0) end
  opened[#opened + 1] = value
  return value
end

local function check(model_path)
  local model = must(pyramid.model(model_path, { threads = 2 }))
  local options = { policy = "h2o" }
  local cache = must(model:cache(options))
  local ids = must(model:encode "Once there was a baker who had a red")
  must(cache:prefill(ids))
  must(cache:step(ids[1]))
  local fork = must(cache:fork())
  must(fork:step(ids[2]))
  must(fork:save(path))
  must(must(model:load_cache(path, options)):step(ids[3]))
  must(must(model:cache(options)):load_prefix(path, fork:tokens()))
  local batch = must(model:batch(options))
  must(batch:add(ids, pyramid.sampler { temperature = 1 }))
  for _ = 1, 2 do must(batch:step()) end
  must(model:decode(ids))
end

local ok, why = pcall(check, ...)
for i = #opened, 1, -1 do pcall(function() opened[i]:close() end) end
os.remove(path)
if ok then return true end
if type(why) == "table" then return nil, why[1], why[2] end
error(why, 0)
