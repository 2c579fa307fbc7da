--- What a request for a prompt's vector has in the place of a text that is written (choice.lua): it
--- takes the hidden states of the prompt as its parts are read, and ends once all are.
local pooled = require "pyramid.embedding"

local embedding = {}

---@class pyramid.ServeEmbedding
---@field request pyramid.ServeRequest
---@field index integer
---@field count integer          ids written: none
---@field ids integer[]          likewise
---@field vector? pyramid.Vector  once it has finished: of length one
---@field finish? string
local Embedding = {}
Embedding.__index = Embedding

---@param request pyramid.ServeRequest
---@param pooling "mean"|"last"
---@return pyramid.ServeEmbedding
function embedding.new(request, pooling)
  return setmetatable({ request = request, index = 1, count = 0, ids = {},
    pooling = pooled.pooling(pooling) }, Embedding)
end

---The states of the prompt's next tokens, or of its last one.
---@param states pyramid.Vector
function Embedding:add(states) self.pooling:add(states) end

---The prompt has been read.
---@param cache pyramid.Cache
function Embedding:first(cache)
  self.cache, self.vector = cache, self.pooling:vector(true)
  self:ends "embedded"
end

---@param reason string
---@param _ nil
---@param message? string
---@param code? string
function Embedding:ends(reason, _, message, code)
  if self.finish then return end
  self.finish, self.message, self.code = reason, message, code
  self.request:tell(self, { text = "", finish = reason, message = message, code = code })
end

function Embedding.close() end

return embedding
