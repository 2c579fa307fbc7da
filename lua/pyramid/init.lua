--- Pyramid: LLM inference whose KV cache is scripted in Lua and run in C.
---
---   local pyramid = require "pyramid"
---   local model = assert(pyramid.model("models/tiny"))
---   for piece in assert(model:generate("Once upon a time", { policy = "pyramidinfer" })) do
---   io.write(piece) end
---
--- Failures of the world (a missing file, a full budget, a malformed model) return nil, message,
--- code; misuse raises. Codes: argument, memory, budget, context, io, format, unsupported, policy,
--- cancelled, device.
local core = require "pyramid.core"

local pyramid = {
  version = core.version,
  model = require("pyramid.model").open,           -- (path, options) -> model
  tokenizer = require("pyramid.tokenizer").load,   -- (path) -> tokenizer alone
  sampler = require "pyramid.sampler",             -- (options) -> sampler
  policy = require("pyramid.policy").load,         -- (name, path or table, options) -> policy
}

return pyramid
