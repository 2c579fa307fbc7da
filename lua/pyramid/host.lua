--- What the C facade does (lua/host.c, the end of pyramid.h): one model, one policy; a text at a
--- time, or conversations.
local chat = require "pyramid.chat"
local conversation = require "pyramid.conversation"
local core = require "pyramid.core"
local json = require "pyramid.json"
local model = require "pyramid.model"
local policy = require "pyramid.policy"
local sampler = require "pyramid.sampler"
local sessions = require "pyramid.sessions"

local host = {}

---@class pyramid.Host
---@field rendered? string  what the host was given last, which its pointer needs
local Host = {}
Host.__index = Host

---@class pyramid.HostOptions
---@field device? string
---@field threads? integer
---@field memory? integer
---@field map? boolean            false: weights are read, not mapped
---@field weights? string
---@field precision? string
---@field context? integer
---@field scaling? string
---@field policy? string          a name, or a path to a policy file
---@field policy_options? string  "ratio=0.8 recent=0.1"
---@field policy_seconds? number
---@field cache_dtype? string
---@field cache_budget? integer
---@field sessions? string        a folder
---@field sessions_bytes? integer

local function load_policy(o)
  local chosen, message, code = policy.load(o.policy or "full")
  if not chosen then return nil, message, code end
  local words = {}
  for word in (o.policy_options or ""):gmatch "[^%s,]+" do words[#words + 1] = word end
  local given
  given, message, code = policy.parse_options(chosen, words)
  if not given then return nil, message, code end
  return policy.load(chosen, given)
end

---Opens a model. All that can be wrong with the options is found here, not by the first prompt.
---@param path string
---@param o pyramid.HostOptions
---@return pyramid.Host?
---@return string? message
---@return string? code
function host.open(path, o)
  local chosen, message, code = load_policy(o)
  if not chosen then return nil, message, code end
  local store, opened
  if o.sessions then
    if (o.sessions_bytes or 0) == 0 then o.sessions_bytes = nil end
    store, message, code = sessions.open(o.sessions, { bytes = o.sessions_bytes })
    if not store then return nil, message, code end
  end
  opened, message, code = model.open(path, { device = o.device, threads = o.threads,
    memory = o.memory, map = o.map, weights = o.weights, precision = o.precision,
      context = o.context, scaling = o.scaling })
  if not opened then return nil, message, code end
  local cache_options = { policy = chosen, dtype = o.cache_dtype, budget = o.cache_budget,
    policy_seconds = o.policy_seconds, sessions = store }
  local cache
  cache, message, code = opened:cache(cache_options)
  if not cache then
    opened:close()
    return nil, message, code
  end
  cache:close()
  return setmetatable({ model = opened, cache_options = cache_options }, Host)
end

---How many tokens a text is, as `generate` would read it.
---@param text string
---@return integer?
---@return string? message
---@return string? code
function Host:count(text)
  local ids, message, code = self.model:encode(text)
  if not ids then return nil, message, code end
  return #ids
end

---@class pyramid.HostGenerateOptions
---@field max_tokens? integer
---@field plain? boolean
---@field stop? string[]
---@field sampler pyramid.SamplerOptions
---@field logprobs? integer
---@field on_token fun(piece: string, id?: integer, logprob?: number, ids?: integer[], logprobs?: number[]): boolean|string?
---@field on_progress fun(done: integer, total: integer): boolean  true cancels
---@field thinking? boolean       these three are for messages alone
---@field format? string
---@field variables? string       JSON

-- What a piece comes with.
local function tell(how, run, piece, id)
  local logprob = id and run.logprobs and run.logprobs[run.stats.generated_tokens]
  return how.on_token(piece, id, logprob, run.top, run.top_logprobs)
end

local function statistics(stats, finish, cache, rereads)
  stats.finish, stats.context_tokens, stats.rereads = finish, cache and cache:tokens() or 0, rereads
  return stats
end

-- A JSON text that is to be a list or an object; nil is nil.
local function read_json(what, text, wanted)
  if text == nil then return nil end
  local value, message, code = json.decode(text, { ordered = true })
  if message then return nil, ("%s: %s"):format(what, message), code end
  local kind = type(value) == "table" and (json.keys(value) and "object" or "list")
  if kind ~= wanted then
    return nil, ("%s: the JSON is no %s"):format(what, wanted), "argument"
  end
  return value
end

local function is_for_messages(how) return how.thinking ~= nil or how.format or how.variables end

-- Options of a generation out of the host's.
local function run_options(how, more)
  local o = more or {}
  o.sampler, o.max_tokens, o.stop = o.sampler or how.sampler, how.max_tokens, how.stop
  o.logprobs, o.progress = how.logprobs, how.on_progress
  return o
end

-- … with those of the cache that it makes.
local function own_cache(self, o)
  for key, value in pairs(self.cache_options) do o[key] = value end
  return o
end

-- What a generation makes goes to the host.
local function hand_out(run, how)
  for piece, id in run do
    local wish = tell(how, run, piece, id)
    if wish == "cancel" then return nil, "cancelled", "cancelled" end
    if wish then break end
  end
  if run.finish == "error" then return nil, run.message, run.code end
  return statistics(run.stats, run.finish or "closed", run.cache)
end

---Generates text from a prompt, in a cache of its own.
---@param prompt string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host:generate(prompt, how)
  if is_for_messages(how) then
    return nil, "thinking, format and variables are for messages (pyr_host_generate_chat)",
      "argument"
  end
  local run <close>, message, code = self.model:generate(prompt,
    own_cache(self, run_options(how, { special = not how.plain })))
  if not run then return nil, message, code end
  return hand_out(run, how)
end

-- Messages and tools out of their JSON, as options of model:chat.
local function read_chat(messages, tools, how)
  local o, message, code = { format = how.format, thinking = how.thinking }
  if how.plain then
    return nil, "plain is for a prompt; messages are read as their template has them", "argument"
  end
  messages, message, code = read_json("the messages", messages, "list")
  if not messages then return nil, message, code end
  local wrong = chat.check(messages)
  if wrong or #messages == 0 then
    return nil, "the messages: " .. (wrong or "there are none"), "argument"
  end
  o.tools, message, code = read_json("the tools", tools, "list")
  if message then return nil, message, code end
  o.variables, message, code = read_json("the variables", how.variables, "object")
  if message then return nil, message, code end
  return messages, o
end

---Generates the answer to messages. Both are JSON: a list of messages, nil or a list of tools.
---@param messages string
---@param tools? string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host:generate_chat(messages, tools, how)
  local asked, o, code = read_chat(messages, tools, how)
  if not asked then return nil, o, code end
  local run <close>, message, kind = self.model:chat(asked, own_cache(self, run_options(how, o)))
  if not run then return nil, message, kind end
  return hand_out(run, how)
end

---The prompt that `generate_chat` would read.
---@param messages string
---@param tools? string
---@param how pyramid.HostGenerateOptions
---@return string?
---@return string? message
---@return string? code
function Host:render(messages, tools, how)
  local asked, o, code = read_chat(messages, tools, how)
  if not asked then return nil, o, code end
  local text, message, kind = conversation.render("pyr_host_render", self.model, asked, o)
  if not text then return nil, message, kind end
  self.rendered = text
  return text
end

-- What is read of each part: ids, or rows in their place. What begins the text stands before the
-- first part alone, what ends one nowhere.
local function read_parts(self, parts, how)
  local out, adds = {}, self.model.tokenizer and self.model.tokenizer.adds_bos or nil
  for i, part in ipairs(parts) do
    if type(part) == "string" then
      local ids, message, code = self.model:encode(part,
        { special = not how.plain, add = false, bos = i == 1 and not how.plain and adds or nil })
      if not ids then return nil, message, code end
      if #ids > 0 then out[#out + 1] = ids end
    elseif #part.embeddings > 0 then
      out[#out + 1] = part
    end
  end
  return out
end

---Generates text behind parts, in a cache of its own.
---@param parts (string|pyramid.EmbeddedPrompt)[]
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host:generate_parts(parts, how)
  local read, message, code = read_parts(self, parts, how)
  if not read then return nil, message, code end
  local cache <close>, why, kind = self.model:cache(self.cache_options)
  if not cache then return nil, why, kind end
  local picker
  picker, message, code = sampler(how.sampler)
  if not picker then return nil, message, code end
  local began = core.clock()
  for i = 1, #read - 1 do
    local logits
    logits, message, code = cache:prefill(read[i], { progress = how.on_progress })
    if not logits then return nil, message, code end
    picker:accept(read[i].embeddings and {} or read[i])
  end
  local before, seconds = cache:tokens(), core.clock() - began
  local run <close>, reason, status = self.model:generate(read[#read] or {},
    run_options(how, { cache = cache, sampler = picker }))
  if not run then return nil, reason, status end
  run.stats.prompt_tokens = run.stats.prompt_tokens + before
  run.stats.prefill_seconds = run.stats.prefill_seconds + seconds
  return hand_out(run, how)
end

---The rows of a text's tokens, packed, and how many there are.
---@param text string
---@return string?
---@return integer|string|nil count  or a message
---@return string? code
function Host:embed(text)
  local ids, rows, message, code
  ids, message, code = self.model:encode(text, { add = false })
  if not ids then return nil, message, code end
  rows, message, code = self.model:embed(ids)
  if not rows then return nil, message, code end
  return rows, #ids
end

---@class pyramid.HostConversationOptions
---@field system? string
---@field format? string
---@field thinking? boolean
---@field tools? string      JSON, as are
---@field variables? string

local function with_cache(self, o)
  local message, code
  local all = own_cache(self, { system = o.system, format = o.format, thinking = o.thinking })
  all.tools, message, code = read_json("the tools", o.tools, "list")
  if message then return nil, message, code end
  all.variables, message, code = read_json("the variables", o.variables, "object")
  if message then return nil, message, code end
  return all
end

---Begins a conversation.
---@param o pyramid.HostConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Host:converse(o)
  local all, message, code = with_cache(self, o)
  if not all then return nil, message, code end
  return self.model:conversation(all)
end

---A conversation from the file that it was saved in.
---@param path string
---@param o pyramid.HostConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Host:load(path, o)
  local all, message, code = with_cache(self, o)
  if not all then return nil, message, code end
  all.system = nil
  return self.model:load_conversation(path, all)
end

---Adds a message that is JSON.
---@param talk pyramid.Conversation
---@param text string
---@return true?
---@return string? message
---@return string? code
function Host.add_json(_, talk, text)
  local message, why, code = read_json("the message", text, "object")
  if not message then return nil, why, code end
  local wrong = chat.check { message }
  if wrong then return nil, (wrong:gsub(" 1", "", 1)), "argument" end
  return talk:add(message)
end

---A message's role, and its content as a text: of parts their JSON, "" where there is none.
---@param talk pyramid.Conversation
---@param index integer  from 1
---@return string? role
---@return string? text
function Host.message(_, talk, index)
  local message = talk.messages[index]
  if not message then return nil, "the conversation has no such message", "argument" end
  local content = message.content
  local text = type(content) == "string" and content or type(content) == "table"
    and json.encode(content) or ""
  talk.shown = text                       -- holds it for the pointer that the host is given
  return message.role, text
end

---A message, and the answer to it.
---@param talk pyramid.Conversation
---@param text? string
---@param how pyramid.HostGenerateOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Host.say(_, talk, text, how)
  if is_for_messages(how) then
    return nil, "thinking, format and variables of a conversation are told when it is opened",
      "argument"
  end
  local stats, message, code = talk:say(text, { sampler = how.sampler, max_tokens = how.max_tokens,
    stop = how.stop,
    logprobs = how.logprobs, progress = how.on_progress,
    on_piece = function(piece, id, run) return tell(how, run, piece, id) end })
  if not stats then return nil, message, code end
  return statistics(stats, talk.finish, talk.cache, talk.rereads)
end

return host
