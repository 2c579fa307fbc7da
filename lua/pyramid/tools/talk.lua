--- A conversation at a terminal: what `pyramid chat` is made of. Its turns are here, its commands
--- in pyramid.tools.talk_commands; scripts/chat.lua has the options and the loop.
---
--- Ctrl-C ends an answer, and what was written of it stays in the conversation. While a prompt is
--- read it gives the message up: the conversation is as before. What a model writes goes through
--- pyramid.tools.screen, which lets nothing through that a terminal would obey.
local cli = require "pyramid.tools.cli"
local conversation = require "pyramid.conversation"
local core = require "pyramid.core"
local interrupts = require "pyramid.interrupts"
local options = require "pyramid.options"
local picture = require "pyramid.tools.picture"
local sampler = require "pyramid.sampler"
local screen = require "pyramid.tools.screen"
local target = require "pyramid.tools.target"

local talk = {}

---@class pyramid.Talk
---@field model pyramid.Model
---@field label string             the policy as it was given
---@field cache_options pyramid.CacheOptions   with the policy
---@field told table               of the conversation's options: system, format, tools, thinking
---@field sampling pyramid.SamplerOptions     set_sampling has them, before anything is said
---@field max_tokens integer
---@field stop? string[]
---@field speculation? true|pyramid.SpeculateOptions
---@field plain boolean            there is no chat format
---@field interactive boolean
---@field dtype string             how rows are stored, as it was given
---@field talk pyramid.Conversation
---@field last? pyramid.GenerationStats
---@field leaving? boolean         the terminal is gone, or the program is told to end
---@field changed? boolean         it is another than it was when it began
local Talk = {}
Talk.__index = Talk

-- How long an interrupted step may take: a policy's code that takes longer is cancelled, and the
-- answer with it.
local STEP_SECONDS = 2

---A line beside the conversation, on standard error.
---@param text string
function Talk:note(text)
  io.stdout:flush()
  local columns = screen.width(io.stderr)
  if columns then text = screen.fold(text, columns) end
  io.stderr:write(self.err:paint(text, "dim"), "\n")
end

---Lines about the conversation on standard output, as wide as the terminal is.
---@param text string
function Talk.print(text)
  local columns = screen.width(io.stdout)
  print(columns and screen.fold(text, columns) or text)
end

-- The options of a conversation: of the cache, and what the format is told.
local function options_of(self)
  local o = {}
  for key, value in pairs(self.cache_options) do o[key] = value end
  for key, value in pairs(self.told) do o[key] = value end
  return o
end

-- Takes another conversation's place.
local function change_to(self, new)
  if self.talk then self.talk:close() end
  self.talk, self.last, self.stuck = new, nil, nil
end

-- A conversation that nobody has said anything in.
local function begin(self)
  local new, message, code = self.model:conversation(options_of(self))
  if not new then return nil, message, code end
  change_to(self, new)
  return true
end

---A conversation that nobody has said anything in.
---@param given table  the fields above that are not made here
---@return pyramid.Talk?
---@return string? message
---@return string? code
function talk.new(given)
  local self = setmetatable(given, Talk)
  self.out, self.err = picture.new(io.stdout), picture.new(io.stderr)
  local ok, message, code = begin(self)
  if not ok then return nil, message, code end
  return self
end

---A cache that holds nothing, to be closed: what is wrong with its options is said before a first
---message.
---@return pyramid.Cache?
---@return string? message
---@return string? code
function Talk:empty_cache() return self.model:cache(self.cache_options) end

---Begins anew.
---@return true?
---@return string? message
---@return string? code
function Talk:forget()
  local cache, message, code = self:empty_cache()
  if not cache then return nil, message, code end
  cache:close()
  local ok
  ok, message, code = begin(self)
  if not ok then return nil, message, code end
  self.picker:reset()
  self.changed = true
  return true
end

---A conversation that was saved takes this one's place; on a failure this one stays.
---@param path string
---@return true?
---@return string? message
---@return string? code
function Talk:load(path)
  local o = options_of(self)
  o.system = nil                                            -- the file has its own, or none
  local new, message, code = conversation.load(self.model, path, o)
  if not new then return nil, message, code end
  change_to(self, new)
  self.picker:reset()
  self.picker:accept(new.seen)
  self.told.system = new.messages[1] and new.messages[1].role == "system"
    and type(new.messages[1].content) == "string" and new.messages[1].content or nil
  self.changed = true
  return true
end

---Another sampler; on a failure the present one stays.
---@param o pyramid.SamplerOptions
---@return true?
---@return string? message
---@return string? code
function Talk:set_sampling(o)
  local ok, picker, message, code = pcall(sampler, o)
  if not ok then return nil, options.without_place(picker), "argument" end
  if not picker then return nil, message, code end
  picker:accept(self.talk.seen)
  self.sampling, self.picker = o, picker
  return true
end

---Another system message, or, with nil, none: the next message has the whole conversation read
---again.
---@param text? string
---@return true?
---@return string? message
---@return string? code
function Talk:set_system(text)
  local ok, message, code = self.talk:set_system(text)
  if not ok then return nil, message, code end
  self.told.system, self.changed = text, true
  return true
end

---Another policy, under which the next message has the whole conversation read again.
---@param policy pyramid.Policy
---@param label string
---@return true?
---@return string? message
---@return string? code
function Talk:set_policy(policy, label)
  local ok, message, code = self.talk:set_policy(policy)
  if not ok then return nil, message, code end
  self.cache_options.policy, self.label, self.warned = policy, label, nil
  return true
end

---How many answers the conversation has.
---@return integer
function Talk:turns()
  local count = 0
  for _, message in ipairs(self.talk.messages) do
    if message.role == "assistant" then count = count + 1 end
  end
  return count
end

-- What keeps the conversation from going on is said once, not for each line of a file that is piped
-- in.
local function say_stuck(self, code, message)
  local cure = self:turns() == 0 and cli.hints[code]
  if self.stuck ~= code then
    self:note(message .. (cure and "\n" .. cure
      or "; /clear forgets the conversation and begins anew"))
  end
  self.stuck = not self.interactive and code or nil
end

-- What on_piece, on_prompt and progress do for one turn: they draw the bar and the answer.
local function turn_of(self)
  local turn = { begun = self.plain, wrote = false, asked = 0 }
  local writer = self.out.terminal and screen.writer(io.stdout) or nil

  -- What is said when the message is read, before the answer to it. Whether a target was missed is
  -- said once.
  function turn.read(stats)
    if turn.progress then turn.progress:close() end
    local warning = turn.first and not self.warned
      and target.warning(self.cache_options.policy, self.label, stats.cache_fraction,
        stats.prompt_tokens)
    turn.first, turn.reading = false, false
    if warning then self:note(warning) end
    self.warned = self.warned or warning
  end

  function turn.on_prompt(tokens, anew)
    turn.progress, turn.first, turn.reading =
      picture.progress(("prefill of %d tokens"):format(tokens)), anew, true
  end

  -- true cancels. An answer is ended by on_piece, so that it stays: only a step that does not
  -- return is cancelled.
  function turn.on_progress(...)
    if not interrupts.asked() then
      if turn.reading then turn.progress.update(...) end
      return false
    end
    if turn.reading then return true end
    if turn.asked == 0 then turn.asked = core.clock() end
    return core.clock() - turn.asked > STEP_SECONDS
  end

  function turn.on_piece(piece, _, run)
    if turn.reading then turn.read(run.stats) end
    if not turn.begun then piece = piece:match "^%s*(.*)$" end  -- the blank before an answer
    turn.begun, turn.wrote = turn.begun or piece ~= "", turn.wrote or piece ~= ""
    if writer then writer:push(piece)
    else
      io.write(piece)
      io.flush()
    end
    return interrupts.asked() ~= nil
  end

  function turn.finish(stats)
    if stats and turn.reading then turn.read(stats)
    elseif turn.progress then turn.progress:close() end
    turn.interrupted = interrupts.take()
    local ended = writer and writer:finish()
    -- an answer ends its line, and is seen where it is empty; behind a prompt that was given up
    -- stands what the terminal has made of Ctrl-C
    if not writer and (stats or turn.wrote)
      or writer and not ended and (turn.interrupted or stats and not turn.wrote) then
      io.write "\n"
    end
    io.flush()
  end
  return turn
end

-- What is said to a conversation, and its answer: true, or false where nothing came of it.
local function answer(self, to, said)
  local turn = turn_of(self)
  local stats, message, code = to:say(said, { sampler = self.picker, max_tokens = self.max_tokens,
    stop = self.stop, speculate = self.speculation, on_prompt = turn.on_prompt,
    progress = turn.on_progress, on_piece = turn.on_piece })
  turn.finish(stats)
  self.leaving = self.leaving or turn.interrupted == "leave"
  if stats then
    self.last, self.stuck, self.changed = stats, nil, true
    return true
  end
  if code == "cancelled" then
    self:note(turn.wrote and "the answer was given up, and so is the message"
      or "not read: the message is not part of the conversation")
  else
    say_stuck(self, code, message)
  end
  return false
end

local function say_full(self)
  if self.talk.finish == "context" then
    say_stuck(self, "context", ("the model's context of %d tokens is full"):format(
      self.model.config.context))
  end
end

---Says something, and writes the answer.
---@param text string
function Talk:say(text)
  if answer(self, self.talk, self.plain and cli.unescape(text) or text) then say_full(self) end
end

---Takes the last answer back and has another written. Nothing is lost where that fails: the answer
---that was there stays.
---@return true?
---@return string? message
---@return string? code
function Talk:again()
  local other, message, code = self.talk:fork()
  if not other then return nil, message, code end
  local said
  said, message, code = other:undo()
  if not said then
    other:close()
    return nil, message, code
  end
  if not answer(self, other, said) then
    other:close()
    self:note "the answer before it stays"
    return true
  end
  self.talk:close()
  self.talk = other
  say_full(self)
  return true
end

---Takes back the last message and its answer.
---@return string? said
---@return string? message
---@return string? code
function Talk:undo()
  local said, message, code = self.talk:undo()
  if not said then return nil, message, code end
  self.last, self.stuck, self.changed = nil, nil, true
  return type(said) == "string" and said or "(parts)"
end

function Talk:close() self.talk:close() end

Talk.__close = Talk.close

return talk
