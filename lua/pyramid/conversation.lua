--- Conversations: messages in the model's chat format, and one cache that each turn only adds to.
---
---   local talk = assert(model:conversation { system = "Be brief.", policy = "pyramidinfer" })
---   assert(talk:say("Hello", { on_piece = io.write }))
---
--- What the cache holds is the text that the format makes of the messages. A turn renders them all,
--- and reads only what comes behind that text. Where a format tells the past in another way than it
--- did (one that leaves out earlier thoughts), or a call had failed in the middle of an answer, the
--- cache is made anew: `rereads` counts that.
---
---   messages   system, user, assistant, user, …: what was said, also what is not in the cache yet
---   text       "<|im_start|>system … assistant\n": what the format made of all before the answer
---   waiting    ids of the last answer that the cache does not hold yet: its last token, mostly
---   seen       ids of all that was read and written, for samplers with penalties
---   turns      what all of these were before each answer that the cache holds, for undo
---
--- Messages may hold more than a text: parts, calls of tools, what tools answered. An answer is
--- kept as the text that the model wrote, with the calls in it in the model's own spelling, which
--- is what its format tells the past in.
---
--- `format = "none"` is for models without a chat format: the messages are one plain text, which
--- the model goes on with.
local chat = require "pyramid.chat"
local generate = require "pyramid.generate"
local options = require "pyramid.options"
local packing = require "pyramid.packing"
local sampler = require "pyramid.sampler"

local conversation = {}

---Messages in a model's chat format, and the cache that each turn adds to.
---@class pyramid.Conversation
---@field messages pyramid.Message[]
---@field cache? pyramid.Cache    nil until the first turn
---@field rereads integer         how often the cache was made anew
---@field reply? string           the last answer
---@field finish? string          why it ended: as of a generation
local Conversation = {}
Conversation.__index = Conversation
Conversation.__name = "pyramid.conversation"

local keys = { system = "string", format = "string", policy = "any", dtype = "string",
  budget = "integer|string", policy_seconds = "number", trace = "function",
  sessions = "string|table", tiers = "table", pressure = "string", thinking = "boolean",
  date = "string", tools = "table", documents = "table", variables = "table" }

---@class pyramid.ConversationOptions: pyramid.CacheOptions
---@field system? string      what the model is told before the first message
---@field format? string  a chat format's name, a template's text, or "none"; nil: the model's own
---@field thinking? boolean   for formats that ask
---@field date? string        for formats that tell it
---@field tools? table[]      functions that the model may call, as in pyramid.ChatOptions
---@field documents? table[]
---@field variables? table<string, any>

local function append(ids, more) return table.move(more, 1, #more, #ids + 1, ids) end
local function begins_with(text, start) return text:sub(1, #start) == start end
local function copy(list) return table.move(list, 1, #list, 1, {}) end

-- `how`: of chat.render, what stays the same for all messages of a conversation.
local function render_as(tokenizer, format, messages, ask, how)
  local o = { add_generation_prompt = ask, bos = tokenizer.bos_text, eos = tokenizer.eos_text }
  for key, value in pairs(how) do o[key] = value end
  return chat.render(format, messages, o)
end

local function render(self, messages, ask)
  if self.format ~= "none" then
    return render_as(self.model.tokenizer, self.format, messages, ask, self.how)
  end
  local texts = {}
  for i, message in ipairs(messages) do texts[i] = message.content end
  return table.concat(texts)
end

-- A message as it may be given: a text or parts, of a role, or all of it. Raises, for the caller's
-- caller, on what is none. nil, message, code where the format is none and it is more than a text.
local function as_message(self, what, role, given)
  local one = { role = role, content = given }
  if type(given) == "table" and given.role ~= nil then one = given end
  local wrong = chat.check { one }
  if wrong then error(("%s: %s"):format(what, wrong:gsub(" 1", "", 1)), 3) end
  if self.format == "none" and type(one.content) ~= "string" then
    return nil, what .. ': format = "none" knows texts alone', "argument"
  end
  return one
end

-- A format that ends turns with no token of their own needs a text to end at: what it puts between
-- an answer and a question. Also finds out whether the format can be rendered at all.
local function turn_end(tokenizer, format, how)
  local whole, message, code = render_as(tokenizer, format, { { role = "user", content = "<1>" },
    { role = "assistant", content = "<2>" }, { role = "user", content = "<3>" } }, false, how)
  if not whole then return nil, message, code end
  local between = whole:match "<2>(.-)<3>"
  if not between then return "" end
  local ids
  ids, message, code = tokenizer:encode(between, { add = false })
  if not ids then return nil, message, code end
  for _, id in ipairs(ids) do
    if tokenizer:is_special(id) then return "" end
  end
  return chat.trim("|" .. between):sub(2)                     -- the blanks before it stay
end

-- Ids of what begins a text: the format may have written BOS, or left it to the tokenizer, which
-- adds none if it is there.
local function first_ids(tokenizer, text)
  return tokenizer:encode(text, { add = false, bos = tokenizer.adds_bos or nil })
end

-- After how many of the ids what others may share ends: the system message, and the last answer.
-- Where tokens join over such an end, what both have in common before it.
local function boundaries_of(tokenizer, format, messages, how, whole, ids)
  local ends, out, system = {}, {}, 0
  while messages[system + 1] and messages[system + 1].role == "system" do system = system + 1 end
  ends[1] = system > 0 and system or nil
  for i = #messages, system + 1, -1 do
    if messages[i].role == "assistant" then
      ends[#ends + 1] = i
      break
    end
  end
  for _, last in ipairs(ends) do
    local text = render_as(tokenizer, format, table.move(messages, 1, last, 1, {}), false, how)
    local start = text and begins_with(whole, text) and first_ids(tokenizer, text)
    local same = 0
    while start and start[same + 1] and start[same + 1] == ids[same + 1] do same = same + 1 end
    if same > 0 then out[#out + 1] = same end
  end
  return out
end

-- The format of a call: what it names, or the model's own, compiled.
local function find_format(what, model, named)
  if not model.tokenizer then return nil, what .. ": the model has no tokenizer", "unsupported" end
  local format = named or model.tokenizer.chat_template
  if format then return chat.compile(format) end
  return nil, ("%s: the model has no chat format; name one with `format` (%s)"):format(what,
    table.concat(chat.list(), ", ")), "unsupported"
end

---Begins a conversation. Nothing is read before the first turn.
---@param model pyramid.Model
---@param given? pyramid.ConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function conversation.new(model, given)
  given = options.check("model:conversation", given, keys)
  local format, message, code
  if given.format == "none" and model.tokenizer then
    for _, key in ipairs { "system", "tools", "documents", "variables" } do
      if given[key] then
        return nil, ('model:conversation: `%s` needs a chat format, and format = "none" is none')
          :format(key), "argument"
      end
    end
    format = "none"
  else
    format, message, code = find_format("model:conversation", model, given.format)
    if not format then return nil, message, code end
  end
  -- a format that tells the time would tell the past in another way a minute later
  local self = setmetatable({ model = model, format = format,
    how = { date = given.date, thinking = given.thinking, tools = given.tools,
      documents = given.documents, variables = given.variables, now = os.date "*t" },
    messages = {}, waiting = {}, seen = {},
    cache_options = { policy = given.policy, dtype = given.dtype, budget = given.budget,
      policy_seconds = given.policy_seconds, trace = given.trace, sessions = given.sessions,
      tiers = given.tiers, pressure = given.pressure },
    rereads = 0, turn_end = "", turns = {} },
    Conversation)
  if format ~= "none" then
    self.turn_end, message, code = turn_end(model.tokenizer, format, self.how)
    if not self.turn_end then return nil, message, code end
  end
  if given.system then self.messages[1] = { role = "system", content = given.system } end
  return self
end

---Adds a message without an answer: a role and a text (or parts), or a message with whatever the
---format asks for. nil, message, code if the format cannot tell it there.
---@param role string|pyramid.Message
---@param content? string|table[]
---@return true?
---@return string? message
---@return string? code
function Conversation:add(role, content)
  if type(role) ~= "table" and (type(role) ~= "string" or type(content) ~= "string"
    and type(content) ~= "table") then
    error("conversation:add: a role and a text are wanted, or a message", 2)
  end
  local added, message, code = as_message(self, "conversation:add", role,
    type(role) == "table" and role or content)
  if not added then return nil, message, code end
  local whole
  local messages = copy(self.messages)
  messages[#messages + 1] = added
  whole, message, code = render(self, messages, false)
  if not whole then return nil, message, code end
  self.messages = messages
  return true
end

-- What the format adds to the text that the cache holds; nil if it tells the past in another way
-- than before. `answered`: how many messages there were with the last answer.
local function addition(self, messages, whole)
  if not self.text or not self.cache then return nil end
  local past = render(self, table.move(messages, 1, self.answered, 1, {}), false)
  if not past or not begins_with(past, self.text) then return nil end
  -- The answer is in the cache as the model wrote it, with its blanks; what the format puts behind
  -- it is new. One that somebody has put another way, as calls, is not what the cache holds.
  if type(messages[self.answered].content) ~= "string" then return nil end
  local first, last = past:find(messages[self.answered].content, #self.text + 1, true)
  if not first or not begins_with(whole, past:sub(1, last)) then return nil end
  return whole:sub(last + 1)
end

-- The ids to read for messages, and the cache they go into: the conversation's, or a new one.
local function new_ids(self, messages)
  local whole, message, code = render(self, messages, true)
  if not whole then return nil, message, code end
  local tokenizer, ids = self.model.tokenizer
  local added = addition(self, messages, whole)
  if added then
    ids, message, code = tokenizer:encode(added, { add = false, special = self.format ~= "none" })
    if not ids then return nil, message, code end
    return append(copy(self.waiting), ids), self.cache, whole
  end
  if self.format == "none" then ids, message, code = tokenizer:encode(whole)
  else ids, message, code = first_ids(tokenizer, whole)
  end
  if not ids then return nil, message, code end
  local cache, boundaries
  cache, message, code = self.model:cache(self.cache_options)
  if not cache then return nil, message, code end
  if self.cache_options.sessions and self.format ~= "none" then
    boundaries = boundaries_of(tokenizer, self.format, messages, self.how, whole, ids)
  end
  return ids, cache, whole, boundaries
end

-- How the conversation is before a turn: what it goes back to when the turn is undone.
local function mark_of(self, anew)
  return { messages = #self.messages, tokens = anew and 0 or self.cache:tokens(),
    evicted = anew and 0 or self.cache:evicted(), text = not anew and self.text or nil,
    answered = self.answered, waiting = self.waiting, seen = #self.seen }
end

local how_keys = { sampler = "any", max_tokens = "integer", stop = "string|table",
  progress = "function", clock = "function", logprobs = "boolean|integer", on_piece = "function",
    on_prompt = "function", speculate = "boolean|table" }

---@class pyramid.SayOptions
---@field sampler? pyramid.Sampler|pyramid.SamplerOptions
---@field max_tokens? integer
---@field stop? string|string[]
---@field progress? fun(done: integer, total: integer): boolean?
---@field clock? fun(): number
---@field logprobs? boolean|integer
---@field speculate? boolean|pyramid.SpeculateOptions   looks in what was said before, too
---@field on_prompt? fun(tokens: integer, anew: boolean)
---  before reading: how many are new; whether from the beginning
---@field on_piece? fun(piece: string, id: integer?, run: pyramid.Generation): boolean|string?
---  true ends the answer there, "cancel" gives it up

---Says something, and generates the answer. Returns the answer's statistics (prompt_tokens: those
---that were new); the answer is `reply`, why it ended `finish`. On a failure the messages are as
---before.
---@param given string|table[]|pyramid.Message|nil
---  what the user says, a text or parts; a message, such as a tool's; nil: answers what was added
---@param how? pyramid.SayOptions
---@return pyramid.GenerationStats?
---@return string? message
---@return string? code
function Conversation:say(given, how)
  how = options.check("conversation:say", how, how_keys)
  if given ~= nil and type(given) ~= "string" and type(given) ~= "table" then
    error("conversation:say: a text is wanted, parts or a message", 2)
  end
  if self.closed then error("the conversation is closed", 2) end
  local messages = copy(self.messages)
  if given then
    local said, why, kind = as_message(self, "conversation:say", "user", given)
    if not said then return nil, why, kind end
    messages[#messages + 1] = said
  end
  if #messages == 0 then return nil, "conversation:say: there is nothing to answer", "argument" end
  local ids, cache, whole, boundaries = new_ids(self, messages)
  if not ids then return nil, cache, whole end
  local anew = cache ~= self.cache
  local mark = mark_of(self, anew)
  local stops = type(how.stop) == "string" and { how.stop } or copy(how.stop or {})
  if self.turn_end ~= "" then stops[#stops + 1] = self.turn_end end
  local held = { cache = anew and cache or nil }  -- what is closed if this does not end well
  local _ <close> = setmetatable({}, { __close = function()
    if held.cache then held.cache:close() end
    if held.asked then held.asked:close() end
  end })
  if how.on_prompt then how.on_prompt(#ids, anew) end
  local picker = how.sampler or {}
  local seen = anew and {} or copy(self.seen)
  if type(picker) == "table" then
    local why, kind
    picker, why, kind = sampler(picker)
    if not picker then return nil, why, kind end
    picker:accept(seen)
  end
  local guesses = how.speculate
  if guesses and not anew then
    guesses = { before = self.seen }
    for key, value in pairs(how.speculate == true and {} or how.speculate) do
      guesses[key] = value
    end
  end
  local run <close>, message, code = self.model:generate(ids, { cache = cache, sampler = picker,
    max_tokens = how.max_tokens, stop = stops, progress = how.progress, clock = how.clock,
      logprobs = how.logprobs, speculate = guesses, boundaries = boundaries,
    prune = anew })
  if not run then return nil, message, code end
  append(seen, ids)
  if not anew then self.text = nil end  -- until the answer is whole, the cache is no one's
  -- A text that is stopped at is in the cache when it is found: then this goes on. Pages are shared
  -- until written.
  held.asked = #stops > 0 and cache:fork() or nil
  local pieces, counted, waiting = {}, 0, {}
  for piece, id in run do
    pieces[#pieces + 1] = piece
    if run.stats.generated_tokens > counted then  -- the last piece may come without a token
      -- and the last token is not in the cache
      counted, waiting = run.stats.generated_tokens, { id }
      seen[#seen + 1] = id
    end
    local wish = how.on_piece and how.on_piece(piece, id, run)
    if wish == "cancel" then return nil, "cancelled", "cancelled" end
    if wish then
      run:close()                                  -- what was guessed leaves the cache
      pieces[#pieces + 1] = run.pending            -- the beginning of a stop text is in it, too
      break
    end
  end
  if run.finish == "error" then return nil, run.message, run.code end
  local reply = table.concat(pieces)
  local stays = true
  if run.finish == "stop" then
    stays = held.asked ~= nil
    if stays then
      cache, held.asked = held.asked, cache
      if anew then held.cache = nil end
      waiting, message, code = self.model:encode(reply, { special = false })
      if not waiting then return nil, message, code end
      if not anew then self.cache = cache end
    end
  elseif run.finish == "eos" then
    waiting = {}                                             -- all before the end was fed
  end
  messages[#messages + 1] = { role = "assistant",
    content = self.format == "none" and reply or chat.trim(reply) }
  if anew then
    if self.cache then
      self.rereads = self.rereads + 1
      self.cache:close()
    end
    self.cache, held.cache, self.turns = cache, nil, {}
  end
  self.turns[#self.turns + 1] = mark
  self.messages, self.answered, self.waiting = messages, #messages, waiting
  self.text = stays and whole or nil
  self.reply, self.finish, self.seen = reply, run.finish or "closed", seen
  return run.stats
end

-- ---- told otherwise -----------------------------------------------------------------------------

-- The cache as a mark has it; false where its rows are not what they were, or cannot be had back.
local function go_back(self, mark)
  local cache = self.cache
  if not self.text or not mark.text or not cache or cache:evicted() ~= mark.evicted
    or not cache:truncate(mark.tokens) then
    return false
  end
  self.text, self.answered, self.waiting = mark.text, mark.answered, mark.waiting
  self.seen = table.move(self.seen, 1, mark.seen, 1, {})
  return true
end

local function answers_in(messages)
  for _, message in ipairs(messages) do
    if message.role == "assistant" then return true end
  end
  return false
end

---Takes back the last turn: what the user said, and all behind it. The cache drops the turn's rows;
---where it cannot, because a policy has evicted others meanwhile, say, the next turn reads the
---conversation anew. nil, message, code where nothing was said.
---@return string|table[]|nil said  the message's content
---@return string? message
---@return string? code
function Conversation:undo()
  if self.closed then error("the conversation is closed", 2) end
  local messages, last = self.messages, nil
  for i = #messages, 1, -1 do
    if messages[i].role == "user" then
      last = i
      break
    end
  end
  if not last then
    return nil, "conversation:undo: nothing was said that could be undone", "argument"
  end
  if self.answered and self.answered > last then
    local turns = self.turns
    while turns[1] and turns[#turns].messages >= last do turns[#turns] = nil end
    local mark = table.remove(turns)
    if not mark or not go_back(self, mark) then self.text = nil end
  end
  self.messages = table.move(messages, 1, last - 1, 1, {})
  if self.cache and not self.text and not answers_in(self.messages) then
    self.cache:close()                                     -- as before the first turn
    self.cache, self.answered = nil, nil
  end
  self.reply, self.finish = nil, nil
  return messages[last].content
end

---Another system message from here on, or, with nil, none. The next turn reads the conversation
---anew.
---@param text? string
---@return true?
---@return string? message
---@return string? code
function Conversation:set_system(text)
  if text ~= nil and type(text) ~= "string" then
    error("conversation:set_system: a text is wanted, or nil", 2)
  end
  if self.format == "none" and text then
    return nil, 'conversation:set_system: format = "none" knows texts alone', "argument"
  end
  local messages = {}
  if text then messages[1] = { role = "system", content = text } end
  local first = self.messages[1] and self.messages[1].role == "system" and 2 or 1
  table.move(self.messages, first, #self.messages, #messages + 1, messages)
  if #messages > 0 then
    local whole, message, code = render(self, messages, false)
    if not whole then return nil, message, code end
  end
  if #messages ~= #self.messages then self.text, self.turns = nil, {} end   -- all numbers move
  self.messages = messages
  return true
end

---Another policy from here on. What was said stays; the next turn reads all of it anew, under this
---policy.
---@param policy pyramid.PolicyLike
---@return true?
---@return string? message
---@return string? code
function Conversation:set_policy(policy)
  if self.closed then error("the conversation is closed", 2) end
  local o = {}
  for key, value in pairs(self.cache_options) do o[key] = value end
  o.policy = policy
  local cache, message, code = self.model:cache(o)         -- what is wrong with it is said now
  if not cache then return nil, message, code end
  cache:close()
  if self.cache then
    self.cache:close()
    self.rereads = self.rereads + 1
  end
  self.cache_options, self.cache, self.text, self.turns = o, nil, nil, {}
  return true
end

-- ---- one answer ---------------------------------------------------------------------------------

---@class pyramid.ChatAnswerOptions: pyramid.GenerateOptions
---@field format? string  a chat format's name or a template's text; nil: the model's own
---@field tools? table[]              these as in pyramid.ChatOptions
---@field documents? table[]
---@field thinking? boolean
---@field date? string
---@field now? table
---@field variables? table<string, any>

-- Those that the format is told; the others are the generation's.
local format_keys = { tools = "table", documents = "table", thinking = "boolean", date = "string",
  now = "table", variables = "table" }
local answer_keys = { format = "string" }
for key, kind in pairs(format_keys) do answer_keys[key] = kind end
for key, kind in pairs(generate.keys) do answer_keys[key] = kind end

---Messages as a prompt's text, and the options that are left for the generation: the first step of
---all that answers messages.
---@param what string  names the caller in messages
---@param model pyramid.Model
---@param messages pyramid.Message[]
---@param given? pyramid.ChatAnswerOptions
---@return string? text
---@return pyramid.GenerateOptions|string|nil rest
---@return string? code
---@return pyramid.jinja.Template? format  … and what it is told
---@return table? how
function conversation.render(what, model, messages, given)
  local format, message, code = find_format(what, model, given and given.format)
  if not format then return nil, message, code end
  local how, rest, whole = {}, {}
  for key, value in pairs(given or {}) do
    if format_keys[key] then how[key] = value elseif key ~= "format" then rest[key] = value end
  end
  whole, message, code = render_as(model.tokenizer, format, messages, true, how)
  if not whole then return nil, message, code end
  -- a format may refuse the messages that this tries it on, which says nothing of those that are
  -- given
  local ending = turn_end(model.tokenizer, format, how) or ""
  if ending ~= "" then
    local stops = type(rest.stop) == "string" and { rest.stop } or copy(rest.stop or {})
    stops[#stops + 1] = ending
    rest.stop = stops
  end
  return whole, rest, nil, format, how
end

---The same as ids; with `sessions`, the rest has `boundaries`, too.
---@param what string
---@param model pyramid.Model
---@param messages pyramid.Message[]
---@param given? pyramid.ChatAnswerOptions
---@return integer[]? ids
---@return pyramid.GenerateOptions|string|nil rest
---@return string? code
function conversation.prompt(what, model, messages, given)
  local whole, rest, code, format, how = conversation.render(what, model, messages, given)
  if not whole then return nil, rest, code end
  local ids, message
  ids, message, code = first_ids(model.tokenizer, whole)
  if not ids then return nil, message, code end
  if rest.sessions and not rest.boundaries then
    rest.boundaries = boundaries_of(model.tokenizer, format, messages, how, whole, ids)
  end
  return ids, rest
end

---The answer to messages, as a generation: model:chat, and model:generate with messages.
---@param what string  "model:chat"
---@param model pyramid.Model
---@param messages pyramid.Message[]
---@param given? pyramid.ChatAnswerOptions
---@return pyramid.Generation?
---@return string? message
---@return string? code
---@return pyramid.Generation? closing
function conversation.answer(what, model, messages, given)
  given = options.check(what, given, answer_keys)
  local wrong = chat.check(messages)
  if wrong or #messages == 0 then
    error(("%s: %s"):format(what, wrong or "a sequence of messages is wanted"), 2)
  end
  local class = given.cache and getmetatable(given.cache)
  if class and class.__name == "pyramid.cache" and given.cache:tokens() > 0 then
    error(what .. ": it reads messages from their beginning, and the cache holds a text "
      .. "(model:conversation goes on)", 2)
  end
  local ids, rest, code = conversation.prompt(what, model, messages, given)
  if not ids then return nil, rest, code end
  return generate.start(model, ids, rest)
end

-- ---- copies -------------------------------------------------------------------------------------

---A conversation that goes on from here by itself. Shares the cache's pages until they are written.
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Conversation:fork()
  local other = setmetatable({}, Conversation)
  for key, value in pairs(self) do other[key] = value end
  for _, key in ipairs { "messages", "waiting", "seen", "turns" } do
    other[key] = copy(self[key])
  end
  if self.cache then
    local message, code
    other.cache, message, code = self.cache:fork()
    if not other.cache then return nil, message, code end
  end
  return other
end

-- ---- in a file ----------------------------------------------------------------------------------
--
-- The cache's own file, whose note holds the rest: a line that says so, then in string.pack's words
-- the text (empty: the cache is to be made anew), three counts, and the lists. Messages are packed
-- as they are, with calls and parts (packing.lua); in files of version 1 they are a role and a
-- text.

local heads = { "pyramid conversation 1\n", "pyramid conversation 2\n" }
local MESSAGES_MOST = 1 << 20      -- of a file: more is no conversation

local function pack_ids(ids)
  local parts = {}
  for first = 1, #ids, 128 do
    local last = math.min(first + 127, #ids)
    parts[#parts + 1] = string.pack("<" .. ("i4"):rep(last - first + 1),
      table.unpack(ids, first, last))
  end
  return string.pack("<s8", table.concat(parts))
end

local function unpack_ids(note, at, vocab)
  local bytes, after = string.unpack("<s8", note, at)
  local ids = {}
  for i = 1, #bytes // 4 do
    ids[i] = string.unpack("<i4", bytes, 4 * i - 3)
    if ids[i] < 0 or ids[i] >= vocab then error "an id that the vocabulary has not" end
  end
  return ids, after
end

---Saves messages and cache in one file, which is replaced whole.
---@param path string
---@param given? { cache?: boolean }
---  cache = false: the messages alone, in a few bytes; who loads them reads them anew
---@return true?
---@return string? message
---@return string? code
function Conversation:save(path, given)
  given = options.check("conversation:save", given, { cache = "boolean" })
  if type(path) ~= "string" then error("conversation:save: a path is wanted", 2) end
  if self.closed then error("the conversation is closed", 2) end
  local whole = self.cache and given.cache ~= false
  local parts = { heads[2], string.pack("<s8i8i8i8", whole and self.text or "",
    self.answered or 0, self.rereads, #self.messages) }
  for i, message in ipairs(self.messages) do
    local packed, why = packing.pack(message)
    if not packed then
      return nil, ("conversation:save: message %d holds %s"):format(i, why), "argument"
    end
    parts[#parts + 1] = packed
  end
  parts[#parts + 1] = pack_ids(whole and self.waiting or {})
  parts[#parts + 1] = pack_ids(self.seen)
  if whole then return self.cache:save(path, table.concat(parts)) end
  local empty <close>, message, code = self.model:cache(self.cache_options)
  if not empty then return nil, message, code end
  return empty:save(path, table.concat(parts))
end

local function read_note(self, note, vocab)
  local version = note:sub(1, #heads[1]) == heads[1] and 1 or 2
  if note:sub(1, #heads[version]) ~= heads[version] then error "it begins otherwise" end
  local text, answered, rereads, count, at = string.unpack("<s8i8i8i8", note, #heads[version] + 1)
  if count < 0 or count > MESSAGES_MOST or answered < 0 or answered > count or rereads < 0 then
    error "a count is out of range"
  end
  for i = 1, count do
    local one = {}
    if version == 1 then one.role, one.content, at = string.unpack("<s8s8", note, at)
    else one, at = packing.unpack(note, at) end
    local wrong = chat.check { one }
    if wrong then error(wrong) end
    self.messages[i] = one
  end
  self.waiting, at = unpack_ids(note, at, vocab)
  self.seen, at = unpack_ids(note, at, vocab)
  if at ~= #note + 1 then error "it goes on behind its end" end
  if text ~= "" and answered > 0 and self.messages[answered].role == "assistant" then
    self.text, self.answered = text, answered
  end
  self.rereads = rereads
end

---A conversation that `conversation:save` wrote. Options as for `model:conversation`, without
---`system`; policy and dtype must be those it was saved with.
---@param model pyramid.Model
---@param path string
---@param given? pyramid.ConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function conversation.load(model, path, given)
  given = options.check("model:load_conversation", given, keys)
  if type(path) ~= "string" then error("model:load_conversation: a path is wanted", 2) end
  if given.system then
    error("model:load_conversation: the conversation has its own system message, or none", 2)
  end
  local self, message, code = conversation.new(model, given)
  if not self then return nil, message, code end
  self.cache, message, code = model:load_cache(path, self.cache_options)
  if not self.cache then return nil, message, code end
  local note = self.cache:note()
  if not note then
    self:close()
    return nil, path .. ": holds a cache alone, and no conversation", "format"
  end
  local ok, why = pcall(read_note, self, note, model.config.vocab)
  if not ok then
    self:close()
    return nil, ("%s: its note is not that of a conversation (%s)"):format(path,
      tostring(why):gsub("^.-:%d+: ", "")), "format"
  end
  if self.cache:tokens() == 0 then
    self.cache:close()
    self.cache, self.text = nil, nil
  end
  return self
end

---Closes the conversation and its cache.
function Conversation:close()
  if self.cache then self.cache:close() end
  self.cache, self.text, self.closed = nil, nil, true
end

Conversation.__close = Conversation.close
Conversation.__gc = Conversation.close

return conversation
