--- Models: weights, a tokenizer, and the things made from them. See pyramid.model in init.lua.
local batch = require "pyramid.batch"
local cache = require "pyramid.cache"
local conversation = require "pyramid.conversation"
local core = require "pyramid.core"
local embedding = require "pyramid.embedding"
local generate = require "pyramid.generate"
local likelihood = require "pyramid.likelihood"
local loaders = require "pyramid.loaders"
local options = require "pyramid.options"
local tokenizer = require "pyramid.tokenizer"

local model = {}

---A model: weights, a tokenizer, and the caches and generations made from it.
---@class pyramid.Model
---@field config pyramid.Config
---@field tokenizer? pyramid.Tokenizer
---@field description string   one line
---@field path string
---@field precision "f32"|"bf16"|"int8"
---  of its matrix products: what was asked for, where the processor or the device has it
---@field package converted? string    what its weights were asked to become
---@field warnings string[]
---  what its user should know, a line each: what was converted, what in its file is odd
local Model = {}
Model.__index = Model
Model.__name = "pyramid.model"

local model_keys = { device = "string", threads = "integer", weights = "string",
  memory = "integer|string", isa = "string", precision = "string", context = "integer",
    ranks = "string", scaling = "string", map = "boolean", progress = "function",
      policy_seconds = "number" }

-- device, precision -> the kernels that have it
local rounded = { cpu = { bf16 = "bf16", int8 = "int8" }, other = { bf16 = "bf16" } }
local precisions = { auto = true, f32 = true, bf16 = true, int8 = true }

---@class pyramid.ModelOptions
---@field device? "cpu"|"cuda"|"emulated"
---  "emulated": CUDA's kernels run by the processor, for specs; nil: the host's default, which is
---  PYRAMID_DEVICE in the program `pyramid`, else "cpu"; always "cpu" if isa is given
---@field threads? integer           0 or nil: all processors
---@field weights? string
---  "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1": converts; nil: as in the file,
---  but what no kernel reads (iq4_xs, mxfp4, nvfp4, …) becomes q8_0, as `model.warnings` then says
---@field memory? integer|string     most bytes the runtime may hold, mapped files excluded
---@field isa? string
---  CPU kernels: "base", "avx2", "avx512", or one that rounds: "avx512bf16", "avx512int8",
---  "amxbf16", "amxint8"; nil: the best for the precision
---@field precision? "auto"|"f32"|"bf16"|"int8"
---  of matrix products. "f32" multiplies activations as they are: the reference. "bf16" rounds a
---  prompt's where the processor multiplies bf16 and the weights are bf16 or quantised: about twice
---  as fast, logits within about 1 % of their norm; "int8" rounds those of quantised weights to 8
---  bits, in groups of 32, where it multiplies bytes: prompts and steps; all else as "bf16", large
---  batches of steps too. Quantised weights are then held in an order of their own, not in the
---  mapped file, and count against `memory`. Where the processor has matrix tiles (AMX) both
---  multiply prompts in bf16 by them, and "int8" batches of steps as bytes:
---  `model:runtime():isa()` is then "amxbf16" or "amxint8".
---  "auto" is "int8" where most weights are quantised and the processor multiplies
---  bytes, and the model fits into `memory` so; else "f32", and with an `isa` the precision that it
---  has. It costs 0.1 to 0.4 % of the perplexity of real models. `model.precision` says which it
---  is. nil: the host's default, which is PYRAMID_PRECISION in the program `pyramid`, else "auto"
---@field ranks? string
---  this process is one of several that MPI has started with the same script (docs/ranks.md):
---  "tensor", each has its part of every layer; "pipeline", each has layers of its own, and
---  "pipeline:18+12" says how many; "pipeline:2,tensor:2", both
---@field context? integer           positions, instead of those that the model was made for
---@field scaling? "none"|"linear"|"yarn"
---  what RoPE does to make room for a longer context: nothing (nil, "none"), divide all angles
---  ("linear": arXiv 2306.15595), or the slow ones ("yarn": arXiv 2309.00071)
---@field map? boolean
---  false: weights are read into memory, which counts, instead of being mapped. For files on a
---  network, on a stick, or that others may shorten: a mapping then ends the process (SIGBUS)
---@field progress? fun(done: integer, total: integer): boolean?   while weights are converted
---@field policy_seconds? number     what its caches use that say nothing else

-- The ids of two lists, each once, as far as the model has them.
local function union(one, other, vocab)
  local out, seen = {}, {}
  for _, list in ipairs { one, other } do
    for _, id in ipairs(list) do
      if not seen[id] and id >= 0 and id < vocab then out[#out + 1] = id end
      seen[id] = true
    end
  end
  return out
end

-- Loads a source's weights in a runtime of their own, with the kernels of a precision, where the
-- processor or the device has them. nil, nil, message and code where that fails.
local function load(source, given, precision, asked)
  local device = given.device or (given.isa and "cpu") or core.default_device()
  local function start(isa)
    return core.runtime { device = device, threads = given.threads, isa = isa, ranks = given.ranks,
      memory = options.bytes("pyramid.model", given.memory) }
  end
  local kernels, runtime, message, code = (rounded[device] or rounded.other)[precision]
  if kernels and not given.isa then runtime, message, code = start(kernels) end
  local apart = given.ranks and message and message:find("ranks:", 1, true)
  if not runtime and not apart then runtime, message, code = start(given.isa) end
  if not runtime then return nil, nil, message, code end
  if given.progress then runtime:on_progress(given.progress) end
  local loaded
  runtime:ranks_begin()
  loaded, message, code = loaders.load(runtime, source, asked)
  runtime:on_progress(nil)
  local all, why, kind = runtime:ranks_end(code, message)
  if not all then                                -- of several ranks another one failed, or this did
    if loaded then loaded.handle:close() end
    loaded, message, code = nil, why, kind
  end
  if loaded then return loaded, runtime end
  runtime:close()
  return nil, nil, message, code
end

---Opens a model: a Hugging Face directory or a .gguf file. The tokenizer is part of it; a model
---without one still runs on ids (`model.tokenizer` is nil then).
---@param path string
---@param given? pyramid.ModelOptions
---@return pyramid.Model?
---@return string? message
---@return string? code
function model.open(path, given)
  local _ <close> = core.plain_locale()
  given = options.check("pyramid.model", given, model_keys)
  if type(path) ~= "string" then error("pyramid.model: a path is wanted", 2) end
  local precision = given.precision or core.default_precision()
  if not precisions[precision] then
    error(("pyramid.model: unknown precision '%s' (known: auto, bf16, f32, int8)"):format(
      precision), 2)
  end
  local asked = { weights = given.weights, context = given.context, scaling = given.scaling,
    map = given.map }
  local source, message, code = loaders.prepare(path, asked)
  if not source then return nil, message, code end
  local best = precision ~= "auto" and precision or source.quantised and "int8" or "f32"
  local loaded, runtime
  loaded, runtime, message, code = load(source, given, best, asked)
  if code == "memory" and precision ~= best and best ~= "f32" then
    -- bytes are multiplied in an order of their own, which takes memory; mapped weights take none
    loaded, runtime, message, code = load(source, given, "f32", asked)
  end
  if not loaded or not runtime then return nil, message, code end
  local self = setmetatable({ config = loaded.config, description = loaded.description, path = path,
    precision = runtime:isa():match "bf16$" or runtime:isa():match "int8$" or "f32",
    warnings = loaded.warnings, policy_seconds = given.policy_seconds,
      converted = given.weights }, Model)
  self.handle, self.root = loaded.handle, runtime
  if loaded.tokenizer then
    self.tokenizer, message, code = tokenizer.load(loaded.tokenizer, { ids = loaded.config.vocab })
    if not self.tokenizer then
      self:close()
      return nil, message, code
    end
    for _, warning in ipairs(self.tokenizer.warnings) do
      self.warnings[#self.warnings + 1] = warning
    end
    self.tokenizer.eos = union(self.tokenizer.eos, self.config.eos, self.config.vocab)
    self.config.eos = self.tokenizer.eos
  end
  self.handle:identify(("%s: %s"):format(path:match "([^/]+)/*$" or path, loaded.description),
    self.tokenizer and self.tokenizer:fingerprint())
  return self
end

---The core model; raises if the model is closed.
---@return userdata
function Model:native() return self.handle or error("the model is closed", 3) end

---The runtime; raises if the model is closed.
---@return userdata
function Model:runtime() return self.root or error("the model is closed", 3) end

---Token ids of a text. `special = false`: nothing is added, and texts of special tokens are
---ordinary text.
---@param text string
---@param given? pyramid.EncodeOptions
---@return integer[]?
---@return string? message
---@return string? code
function Model:encode(text, given)
  if not self.tokenizer then return nil, "the model has no tokenizer", "unsupported" end
  return self.tokenizer:encode(text, given)
end

---The text of token ids, as of the tokenizer.
---@param ids integer[]
---@param given? pyramid.DecodeOptions
---@return string?
---@return string? message
---@return string? code
function Model:decode(ids, given)
  if not self.tokenizer then return nil, "the model has no tokenizer", "unsupported" end
  return self.tokenizer:decode(ids, given)
end

---What ids are to the first layer: packed f32, a row of `config.width` numbers for each.
---`cache:prefill { embeddings = … }` reads them, alone or among rows of one's own, as it reads the
---ids.
---@param ids integer[]
---@return string?
---@return string? message
---@return string? code
function Model:embed(ids) return core.embed(self:native(), ids) end

---@class pyramid.TextEmbeddingOptions
---@field pooling? "mean"|"last"   over all tokens (the default), or the last one's
---@field normalize? boolean       to a length of one (true)
---@field policy? pyramid.PolicyLike   rows that it evicts are not seen by what is read later; one
---  that drops hidden states goes with "last" alone
---@field dtype? string|table      how rows are stored meanwhile

---One vector of `config.width` numbers for a whole text: the hidden states of its tokens, after the
---model's last norm, pooled.
---@param source string|integer[]  a text, or ids
---@param given? pyramid.TextEmbeddingOptions
---@return pyramid.Vector?
---@return string? message
---@return string? code
function Model:text_embedding(source, given)
  given = options.check("model:text_embedding", given, { pooling = "string", normalize = "boolean",
    policy = "any", dtype = "string|table" })
  local name = given.pooling or "mean"
  if not embedding.is_pooling(name) then
    error(("model:text_embedding: pooling is '%s', not one of %s"):format(name,
      table.concat(embedding.poolings, ", ")), 2)
  end
  local ids, message, code = source, nil, nil
  if type(source) == "string" then ids, message, code = self:encode(source) end
  if not ids then return nil, message, code end
  local reader, states
  reader, message, code = self:cache { policy = given.policy, dtype = given.dtype }
  if not reader then return nil, message, code end
  local pooling = embedding.pooling(name)
  states, message, code = reader:read_ids(ids, pooling.every, true, false, true)
  reader:close()
  if not states then return nil, message, code end
  pooling:add(states)
  return pooling:vector(given.normalize ~= false)
end

---A cache for one sequence.
---@param given? pyramid.CacheOptions
---@return pyramid.Cache?
---@return string? message
---@return string? code
function Model:cache(given)
  local pool, bound, telling = cache.prepare("model:cache", self, given)
  if not pool then return nil, bound, telling end
  local made, message, code = cache.make(self, pool, bound, telling)
  pool:close()                      -- the cache keeps it
  return made, message, code
end

---A cache that `cache:save` wrote. Options as for `cache`; dtype must be the saved one's.
---@param path string
---@param given? pyramid.CacheOptions
---@return pyramid.Cache?
---@return string? message
---@return string? code
function Model:load_cache(path, given)
  if type(path) ~= "string" then error("model:load_cache: a path is wanted", 2) end
  local pool, bound, telling = cache.prepare("model:load_cache", self, given)
  if not pool then return nil, bound, telling end
  local made, message, code = cache.make(self, pool, bound, telling, path)
  pool:close()
  return made, message, code
end

---A batch of sequences.
---@param given? pyramid.CacheOptions
---@return pyramid.Batch?
---@return string? message
---@return string? code
function Model:batch(given) return batch.new(self, given) end

---Generates text: an iterator of pieces and ids. Goes on with a text, with ids, or with rows in
---their place; messages are answered as by `chat`, and its options are known then, too.
---@param prompt string|integer[]|pyramid.EmbeddedPrompt|pyramid.Message[]
---@param given? pyramid.GenerateOptions|pyramid.ChatAnswerOptions
---@return pyramid.Generation?
---@return string? message
---@return string? code
---@return pyramid.Generation? closing  the generic `for` closes it
function Model:generate(prompt, given)
  if type(prompt) == "table" and type(prompt[1]) == "table" then
    return conversation.answer("model:generate", self, prompt, given)
  end
  return generate.start(self, prompt, given)
end

--- How probable the model finds a continuation of a prompt, id by id: two texts, or two sequences
--- of ids. A policy's plans run as in generation.
---@param prompt string|integer[]
---@param continuation string|integer[]
---@param given? pyramid.ScoreOptions
---@return pyramid.Likelihood?
---@return string? message
---@return string? code
function Model:score(prompt, continuation, given)
  return likelihood.score(self, prompt, continuation, given)
end

--- The model's answer to messages in its chat format, from their beginning: a generation as of
--- `generate`.
---
---   for piece in assert(model:chat { { role = "user", content = "Hello" } }) do
---     io.write(piece)
---   end
---@param messages pyramid.Message[]
---@param given? pyramid.ChatAnswerOptions
---@return pyramid.Generation?
---@return string? message
---@return string? code
---@return pyramid.Generation? closing  the generic `for` closes it
function Model:chat(messages, given)
  return conversation.answer("model:chat", self, messages, given)
end

---A conversation in the model's chat format; nothing is read before its first turn.
---@param given? pyramid.ConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Model:conversation(given) return conversation.new(self, given) end

---A conversation that `conversation:save` wrote.
---@param path string
---@param given? pyramid.ConversationOptions
---@return pyramid.Conversation?
---@return string? message
---@return string? code
function Model:load_conversation(path, given) return conversation.load(self, path, given) end

---Bytes that the runtime holds now, and the most it held: converted weights, caches, workspaces;
---not mapped files.
---@return integer held
---@return integer peak
function Model:memory() return self:runtime():memory(), self:runtime():memory_peak() end

---@class pyramid.Ranks
---@field rank integer      which of the processes this is, from 0
---@field size integer      how many they are; 1: it is alone
---@field sent integer      bytes that went to the others so far
---@field received integer
---@field swaps integer     in so many exchanges

---Which of the processes that compute the model this is, and what they have exchanged.
---@return pyramid.Ranks
function Model:ranks() return self:runtime():ranks() end

---@class pyramid.ProfileEntry
---@field name string      an operation: "linear", "attention", …
---@field calls integer
---@field seconds number
---@field flops number     a multiply-add is 2; worked out from the arguments
---@field bytes number     read and written, if nothing is read twice

---Where time goes, by operation, the longest first. `true` counts from zero on, `false` stops; both
---return what was counted until then, as the call without an argument does. Off (as at first) it
---costs nothing; on, two readings of the clock for each operation.
---@param on? boolean
---@return pyramid.ProfileEntry[]?
---@return string? message
---@return string? code
function Model:profile(on)
  if on ~= nil and type(on) ~= "boolean" then
    error("model:profile: true, false or nothing is wanted", 2)
  end
  local entries, message, code = self:runtime():profile(on)
  if not entries then return nil, message, code end
  table.sort(entries, function(a, b) return a.seconds > b.seconds end)
  return entries
end

---Closes the model. Caches made from it live on until they are closed.
function Model:close()
  if self.tokenizer then self.tokenizer:close() end
  if self.handle then self.handle:close() end
  if self.root then self.root:close() end
  self.handle, self.root = nil, nil
end

-- No __gc: what the model is made of closes itself when nobody has it any more; its tokenizer may
-- outlive it.
Model.__close = Model.close

function Model:__tostring() return ("pyramid.model (%s)"):format(self.description or "closed") end

return model
