--- Pyramid: LLM inference whose KV cache is scripted in Lua and run in C.
---
---   local pyramid = require "pyramid"
---   local model = assert(pyramid.model("models/tiny"))
---   for piece in assert(model:generate("Once upon a time", { policy = "pyramidinfer" })) do
---     io.write(piece)
---   end
---
--- Failures of the world (a missing file, a full budget, a malformed model) return nil, message,
--- code; misuse raises. Codes: argument, memory, budget, context, io, format, unsupported, policy,
--- cancelled, device.
local core = require "pyramid.core"

---@class pyramid
---@field version string
---@field model fun(path: string, options?: pyramid.ModelOptions): pyramid.Model?, string?, string?
---  opens a model: a Hugging Face directory or a .gguf file. The tokenizer is part of it; a model
---  without one still runs on ids (`model.tokenizer` is nil then)
---@field tokenizer fun(path: string, options?: pyramid.TokenizerOptions): pyramid.Tokenizer?, string?, string?
---  loads a tokenizer alone: a directory with a tokenizer.json, such a file, or a GGUF file
---@field sampler fun(options?: pyramid.SamplerOptions): pyramid.Sampler?, string?, string?
---  makes a sampler; no options: a greedy one
---@field grammar fun(source: string|pyramid.GrammarSource): pyramid.Grammar?, string?, string?
---  a grammar of a text in GBNF, a file, or a JSON Schema, for samplers
---@field policy fun(which: pyramid.PolicyLike, options?: table): pyramid.Policy?, string?, string?
---  a policy by name, by the path of a policy file, or from a definition; with options
---@field sessions fun(path: string, options?: pyramid.SessionsOptions): pyramid.Sessions?, string?, string?
---  a store of saved caches in a folder, for the option `sessions` of caches
local pyramid = {
  version = core.version,
  model = require("pyramid.model").open,           -- (path, options) -> model
  tokenizer = require("pyramid.tokenizer").load,   -- (path) -> tokenizer alone
  sampler = require "pyramid.sampler",             -- (options) -> sampler
  grammar = require("pyramid.grammar").new,        -- (text or table) -> grammar
  policy = require("pyramid.policy").load,         -- (name, path or table, options) -> policy
  sessions = require("pyramid.sessions").open,     -- (folder, options) -> store
}

return pyramid
