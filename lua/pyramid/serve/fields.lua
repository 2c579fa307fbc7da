--- A request's JSON, checked: fields of known names and types, and what engine and samplers take of
--- them. What is wrong with a field is said with its name.
local json = require "pyramid.json"
local options = require "pyramid.options"
local policies = require "pyramid.policy"
local caches = require "pyramid.cache"
local sampler = require "pyramid.sampler"

local fields = {}

local function is_list(value)
  return type(value) == "table" and json.keys(value) == nil
end
fields.is_list = is_list

local function kind_of(value)
  if math.type(value) == "integer" then return "integer" end
  if type(value) == "table" then return is_list(value) and "list" or "object" end
  return type(value)
end

-- The same object; nulls are as if they had been left out.
local function without_nulls(object)
  for key, one in pairs(object) do
    if one == json.null then object[key] = nil end
  end
  return object
end

---The object of a body; nulls are as if they had been left out.
---@param body string
---@return table?
---@return string? message
function fields.read(body)
  local value, message = json.decode(body, { ordered = true })
  if message then return nil, "the body is no JSON: " .. message end
  if kind_of(value) ~= "object" then return nil, "the body is no JSON object" end
  return without_nulls(value)
end

---Checks an object against known fields: kinds by name ("integer|string"), "any", or "ignored".
---@param given table
---@param known table<string, string>
---@param where? string   "pyramid": names are said as pyramid.NAME
---@return true?
---@return string? message
---@return string? field
function fields.check(given, known, where)
  local function named(key) return where and where .. "." .. key or key end
  for key, value in pairs(given) do
    local wanted = known[key]
    if not wanted then
      return nil, ("unknown field '%s' (known: %s)"):format(named(key),
        table.concat(options.sorted_keys(known), ", ")), named(key)
    end
    if wanted ~= "any" and wanted ~= "ignored" and value ~= json.null then
      local kind, right = kind_of(value), false
      for name in wanted:gmatch "[^|]+" do
        right = right or name == kind or name == "number" and kind == "integer"
          or name == "integer" and math.type(options.whole(value)) == "integer"
      end
      if not right then
        return nil, ("'%s' must be %s, not %s"):format(named(key), wanted:gsub("|", " or "), kind),
          named(key)
      end
    end
  end
  return true
end

---Checks that a number, if it is given, lies between two others.
---@return true?
---@return string? message
---@return string? field
function fields.range(given, name, least, most)
  local value = given[name]
  if value == nil or value >= least and value <= most then return true end
  return nil, ("'%s' must be from %g to %g, not %s"):format(name, least, most, tostring(value)),
    name
end

--- What both kinds of completions know beside their own.
fields.common = { model = "string", stream = "boolean", stream_options = "object", n = "integer",
  stop = "string|list", seed = "integer", temperature = "number", top_p = "number",
  top_k = "integer", min_p = "number", presence_penalty = "number", frequency_penalty = "number",
  repetition_penalty = "number", repeat_penalty = "number", logit_bias = "object",
  ignore_eos = "boolean", grammar = "string", pyramid = "object", user = "string",
  metadata = "ignored", store = "ignored", service_tier = "ignored",
  parallel_tool_calls = "ignored", best_of = "integer" }

local extension = { policy = "string", options = "object", cache_dtype = "string|object",
  budget = "integer|string", tiers = "object", pressure = "string" }

-- Runs what raises on misuse: here it is the client's.
local function guarded(f, ...)
  local results = table.pack(pcall(f, ...))
  if results[1] then return table.unpack(results, 2, results.n) end
  return nil, options.without_place(results[2]), "argument"
end

-- A table as Lua knows it: without the order of its keys.
local function plain(value)
  if type(value) ~= "table" then return value end
  local out = {}
  for key, one in pairs(value) do out[key] = plain(one) end
  return out
end
fields.plain = plain

-- Tiers by dtype alone: files are the operator's to name. They lie under the request's own budget.
local function tiers_of(asked, into)
  if (asked.tiers or asked.pressure) and not into.budget then
    local name = asked.tiers and "tiers" or "pressure"
    return nil, ("'pyramid.%s' goes with 'pyramid.budget'"):format(name), "pyramid." .. name
  end
  local tiers = without_nulls(asked.tiers or {})
  local ok, message, field = fields.check(tiers, { hot = "string|object",
    warm = "string|object", cold = "string|object" }, "pyramid.tiers")
  if not ok then return nil, message, field end
  for name, dtype in pairs(tiers) do
    local format, why = guarded(caches.row_format, plain(dtype))
    if not format then return nil, why, "pyramid.tiers." .. name end
    into.tiers = into.tiers or {}
    into.tiers[name] = { dtype = plain(dtype) }
  end
  local hot = into.tiers and into.tiers.hot
  if hot and into.dtype then
    return nil, "'pyramid.cache_dtype' and 'pyramid.tiers.hot' are one too many",
      "pyramid.tiers.hot"
  end
  if asked.pressure == "demote" and not (into.tiers and (into.tiers.warm or into.tiers.cold)) then
    return nil, "'pyramid.pressure' demote needs a tier to go to, in 'pyramid.tiers'",
      "pyramid.pressure"
  elseif asked.pressure and asked.pressure ~= "demote" and asked.pressure ~= "fail" then
    return nil, "'pyramid.pressure' is fail or demote", "pyramid.pressure"
  end
  into.dtype, into.pressure = hot and hot.dtype or into.dtype, asked.pressure
  return true
end

---What the field `pyramid` asks for, into the options of engine:submit.
---@param given table    the request's object
---@param into table
---@param operator? pyramid.Policy   what the operator chose: whose options stay where it is named
---@return true?
---@return string? message
---@return string? field
function fields.policy(given, into, operator)
  if not given.pyramid then return true end
  local asked = without_nulls(given.pyramid)
  local ok, message, field = fields.check(asked, extension, "pyramid")
  if not ok then return nil, message, field end
  if asked.options and not asked.policy then
    return nil, "'pyramid.options' are those of 'pyramid.policy', which is not there",
      "pyramid.options"
  end
  if asked.policy then
    -- a name and no path: what lies in files is the operator's to run
    local known = false
    for _, name in ipairs(policies.list()) do known = known or name == asked.policy end
    if not known then
      return nil, ("unknown policy '%s' (known: %s)"):format(asked.policy:sub(1, 80),
        table.concat(policies.list(), ", ")), "pyramid.policy"
    end
    local chosen = plain(asked.options or {})
    if chosen.map ~= nil then
      return nil, "'pyramid.options.map' names a file, and those are the operator's to name",
        "pyramid.options"
    end
    local found, why = policies.load(operator and operator.name == asked.policy and operator
      or asked.policy, chosen)
    if not found then return nil, why, "pyramid.options" end
    into.policy = found
  end
  if asked.cache_dtype then
    local format, why = guarded(caches.row_format, plain(asked.cache_dtype))
    if not format then return nil, why, "pyramid.cache_dtype" end
    into.dtype = plain(asked.cache_dtype)
  end
  if asked.budget then
    local bytes, why = guarded(options.bytes, "pyramid.budget", asked.budget)
    if not bytes then return nil, why, "pyramid.budget" end
    if bytes > 0 then into.budget = bytes end
  end
  return tiers_of(asked, into)
end

-- { "17": -100 } with ids as integers.
local function bias_of(given, vocab)
  local bias = {}
  for key, value in pairs(given) do
    local id = math.tointeger(tonumber(key))
    if not id or id < 0 or id >= vocab or type(value) ~= "number" then
      return nil, ("'logit_bias' has ids below %d as keys and numbers as values"):format(vocab)
    end
    bias[id] = value + 0.0
  end
  return bias
end

---Samplers of a request, one for each text that is asked for of a prompt.
---@param given table
---@param model pyramid.Model
---@param count integer
---@param grammar? any     of sampler options: what the texts must be
---@param random fun(): integer
---@return pyramid.Sampler[]?
---@return string? message
---@return string? field
function fields.samplers(given, model, count, grammar, random)
  for _, one in ipairs { { "temperature", 0, 100 }, { "top_p", 0, 1 }, { "min_p", 0, 1 },
    { "top_k", -1, 1 << 31 }, { "presence_penalty", -10, 10 }, { "frequency_penalty", -10, 10 } } do
    local ok, message, field = fields.range(given, table.unpack(one))
    if not ok then return nil, message, field end
  end
  local bias
  if given.logit_bias then
    local message
    bias, message = bias_of(given.logit_bias, model.config.vocab)
    if not bias then return nil, message, "logit_bias" end
  end
  if given.grammar and grammar then
    return nil, "'grammar' and 'response_format' are one too many", "grammar"
  end
  local seed = given.seed or random()
  local list = {}
  for i = 1, count do
    local made, message = guarded(sampler, { temperature = given.temperature or 1,
      top_p = given.top_p or 0, top_k = math.max(given.top_k or 0, 0), min_p = given.min_p or 0,
      presence_penalty = given.presence_penalty, frequency_penalty = given.frequency_penalty,
      repeat_penalty = given.repetition_penalty or given.repeat_penalty, logit_bias = bias,
      seed = (seed + i - 1) & math.maxinteger, grammar = given.grammar or grammar })
    if not made then
      for _, other in ipairs(list) do other:close() end
      return nil, message, given.grammar and "grammar" or grammar and "response_format" or nil
    end
    list[i] = made
  end
  return list
end

---Texts to stop before, at most 16.
---@param given table
---@return string[]?
---@return string? message
---@return string? field
function fields.stops(given)
  local stop = given.stop
  if stop == nil then return {} end
  local list = type(stop) == "string" and { stop } or plain(stop)
  if #list > 16 then return nil, "'stop' may have 16 texts", "stop" end
  for key, text in pairs(list) do
    if math.type(key) ~= "integer" or type(text) ~= "string" or text == "" or #text > 1024 then
      return nil, "'stop' is a text or a list of texts, none empty, of at most 1,024 bytes", "stop"
    end
  end
  return list
end

return fields
