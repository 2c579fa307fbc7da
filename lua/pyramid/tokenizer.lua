--- Tokenizers: text to token ids and back, exactly as the model was trained.
---
---   local tokenizer = assert(pyramid.tokenizer("models/tiny"))   -- or a tokenizer.json, a GGUF
---   local ids = tokenizer:encode("Hello") -- with what the model wants before it, such as BOS
---   local text = tokenizer:decode(ids, { skip_special = true })
---
--- Files are read by pyramid.tokenizer.hf and .gguf into a recipe; the core builds and runs it. Ids
--- are 0-based data.
local core = require "pyramid.core"
local fault = require "pyramid.loaders.fault"
local files = require "pyramid.files"
local gguf = require "pyramid.loaders.gguf"
local options = require "pyramid.options"
local readers = { hf = require "pyramid.tokenizer.hf", gguf = require "pyramid.tokenizer.gguf" }

local tokenizer = {}

---Text to token ids and back.
---@class pyramid.Tokenizer
---@field vocab_size integer      ids are 0 .. vocab_size - 1
---@field bos integer?            the id that begins a text
---@field eos integer[]
---  ids that end a text or a turn: all that the tokenizer's files name; of a model's tokenizer, all
---  that any file of the model names
---@field adds_bos boolean        whether encode puts bos before a text
---@field bos_text string?        what templates write for those two
---@field eos_text string?
---@field warnings string[]       what is odd about the files, a line each
---@field chat_template string?   the model's own template, for pyramid.chat
---@field private handle userdata
---@field private own_runtime userdata?
---@field private before integer[]   ids that encode adds before a text
---@field private unknown integer?     the id of what the vocabulary cannot say
---@field private bytes userdata?      the lexicon, once it was asked for
local Tokenizer = {}
Tokenizer.__index = Tokenizer
Tokenizer.__name = "pyramid.Tokenizer"

---@class pyramid.Decoder         turns ids into text one by one; never cuts a character
---@field private handle userdata
local Decoder = {}
Decoder.__index = Decoder
Decoder.__name = "pyramid.Decoder"

-- ---- loading ------------------------------------------------------------------------------------

--- What a path is: "hf" and whether it is a directory, or "gguf".
local function detect(path)
  if path:find("\0", 1, true) then fault.raise("io", "tokenizer: a path with a zero byte") end
  if files.kind(path) == "folder" then return "hf", true end
  local file <close> = fault.check(files.open(path))
  local magic, why = file:read(4)
  if magic == "GGUF" then return "gguf" end
  if not magic and why then fault.raise("io", "%s: %s", path, why) end
  return "hf", false
end

local function read(source)
  if type(source) == "table" then return readers.gguf, readers.gguf.read(source) end
  local path = #source > 1 and source:gsub("/+$", "") or source
  local format, directory = detect(path)
  if format == "gguf" then return readers.gguf, readers.gguf.read(fault.check(gguf.read(path))) end
  return readers.hf, readers.hf.read(path, directory)
end

--- Prefixes a core failure with the file.
local function must(file, part, ok, message, code)
  if ok == nil then fault.raise(code, "%s: %s%s", file, part, message) end
  return ok
end

local function build(runtime, source, ids)
  local reader, recipe = read(source)
  local file = recipe.file
  recipe.options.ids = ids
  local t = must(file, "", core.tokenizer(runtime, recipe.options))
  local state <close> = setmetatable({},
    { __close = function(self) if not self.done then t:close() end end })
  reader.fill(recipe, t)
  for _, token in ipairs(recipe.added) do
    must(token.file or file, "added token: ", t:added(token.id, token.text, token.flags))
  end
  for _, step in ipairs(recipe.steps) do
    must(file, step[1] == "normalize" and "normalizer: " or step[1] == "split"
      and "pre_tokenizer: " or "decoder: ", t:step(table.unpack(step, 1, 6)))
  end
  must(file, "", t:around(recipe.before, recipe.after))
  must(file, "", t:ready())
  state.done = true
  local adds_bos = false
  for _, id in ipairs(recipe.before) do adds_bos = adds_bos or id == recipe.bos end
  return setmetatable({
    handle = t, vocab_size = recipe.options.vocab, bos = recipe.bos, eos = recipe.eos,
      chat_template = recipe.chat_template,
    before = recipe.before, unknown = recipe.options.unknown, adds_bos = adds_bos,
    warnings = recipe.warnings or {},
    bos_text = recipe.bos_text or recipe.bos and t:spelling(recipe.bos) or nil,
    eos_text = recipe.eos_text or recipe.eos_id and t:spelling(recipe.eos_id) or nil,
  }, Tokenizer)
end

local load_keys = { runtime = "userdata", memory = "integer|string", ids = "integer" }

---@class pyramid.TokenizerOptions
---@field memory? integer|string   the most bytes that it may hold
---@field ids? integer
---  how many ids the model has that it belongs to; those without a piece decode to nothing
---@field runtime? userdata        a core runtime to live in; otherwise it gets its own

---Loads a tokenizer alone.
---The path is a directory with a tokenizer.json or a SentencePiece tokenizer.model, such a file
---(NAME.json or NAME.model), or a GGUF file; a GGUF header may stand for its file.
---@param path string|pyramid.Gguf
---@param given? pyramid.TokenizerOptions
---@return pyramid.Tokenizer?
---@return string? message
---@return string? code
function tokenizer.load(path, given)
  local _ <close> = core.plain_locale()
  given = options.check("pyramid.tokenizer", given, load_keys)
  if type(path) ~= "string" and type(path) ~= "table" then
    error("pyramid.tokenizer: a path is wanted", 2)
  end
  if given.runtime then return fault.catch(build, given.runtime, path, given.ids) end
  local runtime, why, kind = core.runtime { device = "cpu", threads = 1,
    memory = options.bytes("pyramid.tokenizer", given.memory) }
  if not runtime then return nil, why, kind end
  local self, message, code = fault.catch(build, runtime, path, given.ids)
  if self then self.own_runtime = runtime else runtime:close() end
  return self, message, code
end

-- ---- using --------------------------------------------------------------------------------------

local function handle(self) return self.handle or error("the tokenizer is closed", 3) end

local encode_keys = { special = "boolean", add = "boolean", bos = "boolean" }

---@class pyramid.EncodeOptions
---@field special? boolean
---  false: nothing is added, and texts of special tokens are ordinary text
---@field add? boolean       only whether ids are added
---@field bos? boolean       whether the first id is BOS

---Token ids of a text. By default texts of special tokens become their ids, and what the model
---wants around a text (BOS) is added. A text that begins with BOS itself, as a rendered chat does,
---gets no second one. Bytes that are not UTF-8 are encoded one by one, so that decoding with
---{ raw = true } gives them back.
---@param text string
---@param given? pyramid.EncodeOptions
---@return integer[]?
---@return string? message
---@return string? code
function Tokenizer:encode(text, given)
  given = options.check("tokenizer:encode", given, encode_keys)
  local special = given.special ~= false
  local add = special
  if given.add ~= nil then add = given.add end
  local ids, message, code = handle(self):encode(text, special, add)
  if not ids then return nil, message, code end
  if add and special and self.bos and ids[#self.before + 1] == self.bos then
    for i, id in ipairs(self.before) do
      if id == self.bos then
        table.remove(ids, i)
        break
      end
    end
  end
  if given.bos == nil then return ids end
  local there = self.bos ~= nil and ids[1] == self.bos
  if given.bos and not there then
    if not self.bos then
      return nil, "tokenizer: it has no token that begins a text", "unsupported"
    end
    table.insert(ids, 1, self.bos)
  elseif there and not given.bos then
    table.remove(ids, 1)
  end
  return ids
end

local decode_keys = { skip_special = "boolean", raw = "boolean" }

---@class pyramid.DecodeOptions
---@field skip_special? boolean   special tokens are not shown
---@field raw? boolean            bytes as they come, which may be no UTF-8

---The text of token ids, special tokens shown. It is UTF-8: bytes that form no character become
---U+FFFD, unless `raw`.
---@param ids integer[]
---@param given? pyramid.DecodeOptions
---@return string?
---@return string? message
---@return string? code
function Tokenizer:decode(ids, given)
  given = options.check("tokenizer:decode", given, decode_keys)
  return handle(self):decode(ids, given.skip_special, given.raw)
end

local decoder_keys = { skip_special = "boolean", raw = "boolean", continues = "boolean" }

---@class pyramid.DecoderOptions: pyramid.DecodeOptions
---@field continues? boolean
---  the text goes on from earlier ids, so that the space which a SentencePiece vocabulary puts
---  before a text's first word is kept

---A decoder for ids that come one by one.
---@param given? pyramid.DecoderOptions
---@return pyramid.Decoder?
---@return string? message
---@return string? code
function Tokenizer:decoder(given)
  given = options.check("tokenizer:decoder", given, decoder_keys)
  local d, message, code = handle(self):decoder(given.skip_special, given.raw, given.continues)
  if not d then return nil, message, code end
  return setmetatable({ handle = d }, Decoder)
end

---How the vocabulary spells an id ("Ġthe", "▁the", "<0x0A>"); nil if it has no such id.
---@param id integer
---@return string?
function Tokenizer:piece(id) return handle(self):spelling(id) end

---The id of a piece as the vocabulary spells it, or of a special token's text; nil if there is
---none.
---@param piece string
---@return integer?
function Tokenizer:id(piece) return handle(self):id(piece) end

---A number that is equal for tokenizers that encode alike.
---@return integer
function Tokenizer:fingerprint() return handle(self):fingerprint() end

---Whether an id is a special (control) token.
---@param id integer
---@return boolean
function Tokenizer:is_special(id)
  local flags = handle(self):flags(id)
  return flags ~= nil and flags & core.token.special ~= 0
end

---The vocabulary as the bytes that each token adds to a text, for samplers with a grammar. Made
---once: `eos` as it is then.
---@return userdata?
---@return string? message
---@return string? code
function Tokenizer:lexicon()
  local t = handle(self)
  if self.bytes then return self.bytes end
  local bytes, message, code = core.lexicon(t, self.vocab_size, self.unknown, self.eos)
  self.bytes = bytes
  return bytes, message, code
end

---Closes the tokenizer; decoders made from it live on.
function Tokenizer:close()
  if self.bytes then self.bytes:close() end
  if self.handle then self.handle:close() end
  if self.own_runtime then self.own_runtime:close() end
  self.handle, self.own_runtime, self.bytes = nil, nil, nil
end
Tokenizer.__close = Tokenizer.close

---The text that is complete with this id: whole characters only, so it may be empty.
---@param id integer
---@return string?
---@return string? message
---@return string? code
function Decoder:push(id) return (self.handle or error("the decoder is closed", 2)):push(id) end

---What still waits (the beginning of a character, as U+FFFD); afterwards the decoder is as new.
---@return string?
---@return string? message
---@return string? code
function Decoder:finish() return (self.handle or error("the decoder is closed", 2)):finish() end

---Closes the decoder.
function Decoder:close()
  if self.handle then self.handle:close() end
  self.handle = nil
end
Decoder.__close = Decoder.close

return tokenizer
