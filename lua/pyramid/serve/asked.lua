--- What requests of all kinds have in common: their JSON is read and checked, their texts become
--- ids, and the engine gets them. Whatever is wrong is answered here, and nil comes back.
local answers = require "pyramid.serve.answers"
local fields = require "pyramid.serve.fields"

local asked = {}

local TEXTS_MOST <const> = 128        -- of one request: prompts times n
local TOP_MOST <const> = 20           -- alternatives

---Refuses, with a field's name; gives nil, for whoever returns it.
---@param call pyramid.ServeCall
---@param message string
---@param field? string
---@param code? string
function asked.wrong(call, message, field, code)
  call:fail(400, message, code, field)
end
local wrong = asked.wrong

---The fields of a request, of known names and kinds.
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
---@param names table<string, string>
---@return table?
function asked.read(server, call, names)
  local given, message = fields.read(call.body)
  if not given then return wrong(call, message) end
  local ok, field
  ok, message, field = fields.check(given, names)
  if ok and given.stream_options then
    ok, message, field = fields.check(given.stream_options, { include_usage = "boolean" },
      "stream_options")
  end
  for _, one in ipairs { { "n", 1, TEXTS_MOST }, { "max_tokens", 0, 1 << 31 },
    { "max_completion_tokens", 0, 1 << 31 }, { "logprobs", 0, TOP_MOST },
    { "top_logprobs", 0, TOP_MOST } } do
    if ok and type(given[one[1]]) == "number" then
      ok, message, field = fields.range(given, table.unpack(one))
    end
  end
  if not ok then return wrong(call, message, field) end
  if given.model and given.model ~= server.name then
    call:fail(404, ("there is no model '%s' here; there is '%s'"):format(given.model:sub(1, 200),
      server.name), "model_not_found", "model")
    return
  end
  if given.best_of and given.best_of ~= (given.n or 1) then
    return wrong(call, "'best_of' other than 'n' is not supported", "best_of")
  end
  return given
end

-- One text as ids.
local function ids_of(server, call, given, name, one)
  local model, ids = server.engine.model, {}
  if type(one) == "string" then
    local message, code
    ids, message, code = model:encode(one, { add = given.add_special_tokens })
    if not ids then return wrong(call, message, name, code) end
    if #ids == 0 and model.tokenizer.bos then ids = { model.tokenizer.bos } end
  elseif fields.is_list(one) then
    for j, id in ipairs(one) do
      ids[j] = math.type(id) and math.tointeger(id) or nil
      if not ids[j] or ids[j] < 0 or ids[j] >= model.config.vocab then
        return wrong(call, ("'%s': what stands at %d is no id below %d"):format(name, j,
          model.config.vocab), name)
      end
    end
  else
    return wrong(call, ("'%s' is a text, a list of texts, of ids, or of lists of ids"):format(name),
      name)
  end
  if #ids == 0 then return wrong(call, ("'%s' is empty"):format(name), name) end
  return ids
end

---The texts of a request as ids: a text, texts, ids, or lists of ids.
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
---@param given table
---@param name string      the field
---@param each integer     texts that are written for each of them
---@return integer[][]?
function asked.prompts(server, call, given, name, each)
  local prompt = given[name]
  if prompt == nil then return wrong(call, ("'%s' is wanted"):format(name), name) end
  local list = type(prompt) == "string" and { prompt } or prompt
  if type(list[1]) == "number" then list = { list } end
  if #list == 0 then return wrong(call, ("'%s' is empty"):format(name), name) end
  if #list * each > TEXTS_MOST then
    return wrong(call, ("at most %d texts of one request"):format(TEXTS_MOST), name)
  end
  local out = {}
  for i, one in ipairs(list) do
    out[i] = ids_of(server, call, given, name, one)
    if not out[i] then return nil end
  end
  return out
end

---Submits, or says why not.
---@param server pyramid.ServeServer
---@param call pyramid.ServeCall
---@param submits pyramid.ServeSubmit[]
---@return pyramid.ServeAnswer?
function asked.begin(server, call, submits)
  local answer, message, code = answers.begin(server, call, submits)
  if answer then return answer end
  call:fail(code == "budget" and 400 or answers.status(code), message, answers.code(code))
end

return asked
