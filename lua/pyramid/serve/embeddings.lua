--- OpenAI's embeddings: a vector of the model's width for each text, its hidden states pooled
--- (pyramid.embedding).
local asked = require "pyramid.serve.asked"
local base64 = require "pyramid.base64"
local embedding = require "pyramid.embedding"
local fields = require "pyramid.serve.fields"

local known = { model = "string", input = "string|list", encoding_format = "string",
  dimensions = "integer", user = "string", pooling = "string", pyramid = "object",
  add_special_tokens = "boolean" }

-- Numbers in f32, one after the other, or a list.
local function written(vector, format)
  local numbers = vector:totable()
  if format == "float" then return numbers end
  local packed = {}
  for i, number in ipairs(numbers) do packed[i] = ("<f"):pack(number) end
  return base64(table.concat(packed))
end

-- What is asked for beside the texts; nil after an answer.
local function read(server, call)
  local given = asked.read(server, call, known)
  if not given then return nil end
  local width, format = server.engine.model.config.width, given.encoding_format or "float"
  if format ~= "float" and format ~= "base64" then
    return asked.wrong(call, "'encoding_format' is float or base64", "encoding_format")
  end
  if given.dimensions and given.dimensions ~= width then
    return asked.wrong(call, ("'dimensions' can be %d alone, the model's width"):format(width),
      "dimensions")
  end
  if given.pooling and not embedding.is_pooling(given.pooling) then
    return asked.wrong(call, ("'pooling' is %s"):format(table.concat(embedding.poolings, " or ")),
      "pooling")
  end
  return given, format
end

---POST /v1/embeddings
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
return function(server, call)
  local given, format = read(server, call)
  if not given then return end
  local texts = asked.prompts(server, call, given, "input", 1)
  if not texts then return end
  local submits = {}
  for i, ids in ipairs(texts) do
    local submit = { ids = ids, embed = given.pooling or "mean", owner = given.user,
      id = server.name_of "embd" }
    local ok, message, field = fields.policy(given, submit, server.engine.policy)
    if not ok then return asked.wrong(call, message, field) end
    submits[i] = submit
  end
  local answer = asked.begin(server, call, submits)
  if not answer or not answer:each(function() return true end) then return end
  local data = {}
  for i, part in ipairs(answer.parts) do
    data[i] = { object = "embedding", index = i - 1,
      embedding = written(part.choice.vector, format) }
  end
  return call:json(200, { object = "list", model = server.name, data = data,
    usage = answer:usage() })
end
