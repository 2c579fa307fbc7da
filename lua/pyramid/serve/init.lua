--- pyramid.serve: a model over HTTP, as OpenAI's API has it.
---
---   local serve = require "pyramid.serve"
---   local server <close> = assert(serve.open(model, { port = 8080, memory = "1 GiB" }))
---   server:run()                                   -- until server:stop(), or a signal
---
--- engine.lua is the loop that reads and writes for all requests; http.lua the network; routes.lua
--- what is answered where; completions.lua OpenAI's two main routes.
local core = require "pyramid.core"
local engines = require "pyramid.serve.engine"
local http = require "pyramid.serve.http"
local library = require "pyramid.serve.library"
local options = require "pyramid.options"
local routes = require "pyramid.serve.routes"

local serve = {}

local engine_keys = { memory = true, queue = true, parallel = true, kept = true, share = true,
  policy = true, dtype = true, policy_seconds = true, sessions = true }
local own = { name = "string", template = "string", max_tokens = "integer" }
local http_keys = { host = true, port = true, api_keys = true, body = true, connections = true,
  read_seconds = true, idle_seconds = true, write_seconds = true, seconds = true, grace = true,
  log = true, signals = true }

---@class pyramid.ServeOpenOptions: pyramid.ServeEngineOptions, pyramid.ServeOptions
---@field name? string        what the model is called; nil: its file's name
---@field template? string    a chat format, if not the model's own
---@field max_tokens? integer of an answer in a chat that does not say (1024)

---A server that listens; `server:run()` answers.
---@param model pyramid.Model   with a tokenizer
---@param given? pyramid.ServeOpenOptions
---@return pyramid.ServeServer?
---@return string? message
---@return string? code
function serve.open(model, given)
  local for_engine, for_http, known = {}, {}, {}
  for key in pairs(engine_keys) do known[key] = "any" end
  for key in pairs(http_keys) do known[key] = "any" end
  for key, kind in pairs(own) do known[key] = kind end
  given = options.check("pyramid.serve", given, known)
  for key, value in pairs(given) do
    if engine_keys[key] then for_engine[key] = value
    elseif http_keys[key] then for_http[key] = value
    end
  end
  if not model.tokenizer then
    return nil, "pyramid.serve: the model has no tokenizer", "unsupported"
  end
  local modules, message, code = library.open()
  if not modules then return nil, message, code end
  local engine, server
  engine, message, code = engines.new(model, for_engine)
  if not engine then return nil, message, code end
  server, message, code = http.listen(engine, routes, for_http)
  if not server then
    engine:close()
    return nil, message, code
  end
  server.name = given.name or model.path:match "([^/]+)/*$":gsub("%.gguf$", "")
  server.template, server.max_tokens = given.template, given.max_tokens or 1024
  server.created, server.version, server.spellings = os.time(), core.version, {}
  function server.random() return modules.rand.uniform(1 << 31) end
  function server.name_of(kind)
    return kind .. "-" .. modules.rand.bytes(12):gsub(".", function(c)
      return ("%02x"):format(c:byte())
    end)
  end
  return server
end

return serve
