--- What `pyramid serve` answers, by path: OpenAI's routes, those of the page, and what operators
--- look at.
local completions = require "pyramid.serve.completions"
local embeddings = require "pyramid.serve.embeddings"
local fields = require "pyramid.serve.fields"
local json = require "pyramid.json"
local metrics = require "pyramid.serve.metrics"
local microscope = require "pyramid.serve.microscope"
local policies = require "pyramid.policy"

local routes = {}

-- ---- about the server ---------------------------------------------------------------------------

local function health(server, call)
  return call:json(server.ending and 503 or 200, { status = server.ending and "ending" or "ok" })
end

local function model_of(server)
  local config = server.engine.model.config
  return { id = server.name, object = "model", created = server.created, owned_by = "pyramid",
    max_model_len = config.context, meta = { description = server.engine.model.description,
      context = config.context, vocab = config.vocab, layers = config.layers,
      heads = config.heads, kv_heads = config.kv_heads, head_dim = config.head_dim } }
end

local function models(server, call)
  return call:json(200, { object = "list", data = { model_of(server) } })
end

local function one_model(server, call)
  local name = call.path:match "^/v1/models/(.+)$"
  if name == server.name then return call:json(200, model_of(server)) end
  return call:fail(404, ("there is no model '%s' here"):format(name:sub(1, 200)),
    "model_not_found", "model")
end

local function tell(server, call) return call:answer(200, "metrics", metrics.text(server)) end

-- ---- tokens -------------------------------------------------------------------------------------

local tokenize_fields = { model = "ignored", content = "string", prompt = "string", text = "string",
  add_special = "boolean", add_special_tokens = "boolean", with_pieces = "ignored",
  messages = "ignored" }

local function tokenize(server, call)
  local given, message = fields.read(call.body)
  if not given then return call:fail(400, message) end
  local ok, why, field = fields.check(given, tokenize_fields)
  if not ok then return call:fail(400, why, nil, field) end
  local text = given.content or given.prompt or given.text
  if not text then return call:fail(400, "'prompt' is wanted", nil, "prompt") end
  local add = given.add_special
  if add == nil then add = given.add_special_tokens end
  local ids, code
  ids, message, code = server.engine.model:encode(text, { add = add })
  if not ids then return call:fail(400, message, code) end
  return call:json(200, { tokens = #ids > 0 and ids or json.empty_list, count = #ids,
    max_model_len = server.engine.model.config.context })
end

local function detokenize(server, call)
  local given, message = fields.read(call.body)
  if not given then return call:fail(400, message) end
  local ok, why, field = fields.check(given, { model = "ignored", tokens = "list" })
  if not ok or not given.tokens then
    return call:fail(400, why or "'tokens' is wanted", nil, field or "tokens")
  end
  local ids = {}
  for i, id in ipairs(given.tokens) do
    ids[i] = math.type(id) and math.tointeger(id)
    if not ids[i] or ids[i] < 0 or ids[i] >= server.engine.model.config.vocab then
      return call:fail(400, ("what stands at %d is no id"):format(i), nil, "tokens")
    end
  end
  local text, code
  text, message, code = server.engine.model:decode(ids)
  if not text then return call:fail(400, message, code) end
  return call:json(200, { prompt = text, content = text })
end

-- What lm-evaluation-harness asks of a tokenizer that it does not have itself.
local function tokenizer_info(server, call)
  local tokenizer, model = server.engine.model.tokenizer, server.engine.model
  local eos = tokenizer.eos[1]
  return call:json(200, { tokenizer_class = "pyramid", bos_token_id = tokenizer.bos or json.null,
    eos_token_id = eos or json.null, bos_token = tokenizer.bos_text or json.null,
    eos_token = tokenizer.eos_text or eos and model:decode { eos } or json.null,
    chat_template = server.template or tokenizer.chat_template or json.null,
    max_model_len = model.config.context })
end

-- ---- the page -----------------------------------------------------------------------------------

local function page(_, call)
  local text = require "pyramid.serve.page"            -- made when it is first asked for
  -- What the page may do by itself it says itself; whether others may frame it, only a header can.
  return call:answer(200, "html", text, { ["x-frame-options"] = "DENY" })
end

local function list_policies(_, call)
  local out = {}
  for i, name in ipairs(policies.list()) do
    local found = policies.load(name)
    local defaults, limits, definition = {}, {}, found.definition
    for key, value in pairs(definition.defaults or {}) do
      local kind = type(value)
      if kind == "number" or kind == "boolean" or kind == "string" then defaults[key] = value end
    end
    for key, range in pairs(definition.limits or {}) do
      limits[key] = {}
      for at, bound in ipairs(range) do
        limits[key][at] = bound ~= math.huge and bound or json.null
      end
    end
    out[i] = { name = name, doc = definition.doc, defaults = defaults, limits = limits,
      presets = definition.presets, fit = definition.fit }
  end
  return call:json(200, { policies = out })
end

local function memory(server, call)
  local cache, ids, about = server.engine:find(call.query.id or "")
  if not cache then
    return call:fail(404, "there is no such request, or it was long ago", nil, "id")
  end
  local window = {}
  for _, key in ipairs { "first", "count" } do
    local text = call.query[key]
    window[key] = text and math.tointeger(tonumber(text))
    if text and not window[key] then
      return call:fail(400, ("'%s' is no whole number"):format(key), nil, key)
    end
  end
  local ok, found, message, code = pcall(microscope, cache, ids, server.engine.model,
    { policy = about.policy, prompt = about.prompt, first = window.first, count = window.count })
  if not ok then return call:fail(500, tostring(found)) end
  if not found then return call:fail(400, message, code) end
  return call:json(200, found)
end

-- ---- finding them -------------------------------------------------------------------------------

local paths = {
  ["/health"] = { GET = health }, ["/metrics"] = { GET = tell }, ["/"] = { GET = page },
  ["/v1/models"] = { GET = models }, ["/v1/completions"] = { POST = completions.text },
  ["/v1/chat/completions"] = { POST = completions.chat },
  ["/v1/embeddings"] = { POST = embeddings }, ["/tokenize"] = { POST = tokenize },
  ["/detokenize"] = { POST = detokenize }, ["/tokenizer_info"] = { GET = tokenizer_info },
  ["/pyramid/policies"] = { GET = list_policies }, ["/pyramid/memory"] = { GET = memory },
}

--- What is answered without a key.
local open = { ["/"] = true, ["/health"] = true }

---@param path string
---@return boolean
function routes.is_open(path) return open[path] or false end

---What answers a call; nil, and the method that its path wants, or nothing.
---@param call pyramid.ServeCall
---@return fun(server: pyramid.ServeServer, call: pyramid.ServeCall)?
---@return string? method
function routes.find(call)
  local known = paths[call.path]
  if not known and call.path:find "^/v1/models/." then known = { GET = one_model } end
  if not known then return nil end
  local method = call.method == "HEAD" and "GET" or call.method
  return known[method], (next(known))
end

return routes
