--- Calls of tools in what a model writes: <tool_call>{"name": …, "arguments": …}</tool_call>, one
--- or several, or a list within one, as Qwen, SmolLM2, Hermes and others were taught. What other
--- models write stays text.
local json = require "pyramid.json"
local stops = require "pyramid.stops"

local toolcalls = {}

local BEGIN, FINISH <const> = "<tool_call>", "</tool_call>"

---@class pyramid.ServeToolCalls
---@field calls table[]   as OpenAI's API has them
local Filter = {}
Filter.__index = Filter

---What takes calls out of a text that comes in pieces.
---@param name fun(): string   makes an id
---@return pyramid.ServeToolCalls
function toolcalls.new(name)
  return setmetatable({ calls = {}, waiting = "", name = name }, Filter)
end

-- The calls of one <tool_call>; false: it is none.
local function take(self, text)
  local value = json.decode(text)
  if type(value) ~= "table" then return false end
  local list = value.name and { value } or value
  local made = {}
  for i, call in ipairs(list) do
    local arguments = type(call) == "table" and (call.arguments or call.parameters)
    if type(call) ~= "table" or type(call.name) ~= "string" then return false end
    if type(arguments) == "table" or arguments == nil then
      arguments = arguments and next(arguments) ~= nil and json.encode(arguments) or "{}"
    end
    if type(arguments) ~= "string" then return false end
    made[i] = { id = self.name(), type = "function",
      ["function"] = { name = call.name, arguments = arguments } }
  end
  if #made == 0 then return false end
  for _, call in ipairs(made) do self.calls[#self.calls + 1] = call end
  return true
end

---A piece of text: what of it, and of what waited, is text and no call. `last`: nothing follows.
---@param piece string
---@param last? boolean
---@return string text
function Filter:push(piece, last)
  local text, out = self.waiting .. piece, {}
  self.waiting = ""
  while true do
    local at = text:find(BEGIN, 1, true)
    if not at then
      local held = last and 0 or stops.held_back(text, { BEGIN })
      out[#out + 1] = text:sub(1, #text - held)
      self.waiting = text:sub(#text - held + 1)
      break
    end
    local first, after = text:find(FINISH, at, true)
    if not first and not last then
      out[#out + 1] = text:sub(1, at - 1)
      self.waiting = text:sub(at)
      break
    end
    local inner = text:sub(at + #BEGIN, (first or #text + 1) - 1)
    local ok = take(self, inner)
    out[#out + 1] = text:sub(1, ok and at - 1 or after or #text)
    text = text:sub((after or #text) + 1)
  end
  local said = table.concat(out)
  if #self.calls > 0 and said:find "^%s*$" then said = "" end
  return said
end

return toolcalls
