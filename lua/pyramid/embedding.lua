--- One vector for a whole text: the hidden states of its tokens, after the model's last norm,
--- pooled as sentence encoders do (Reimers and Gurevych, https://arxiv.org/abs/1908.10084).
---
---   mean   the mean over all tokens
---   last   that of the last token, which alone has seen all others in a model that looks back
---
--- Models that were trained to write make embeddings that tell texts apart roughly; models that
--- were trained for it (Qwen3-Embedding reads here) say on their cards which pooling they want.
local embedding = {}

--- The ways of pooling.
embedding.poolings = { "mean", "last" }

---Whether it is the name of a way of pooling.
---@param name any
---@return boolean
function embedding.is_pooling(name)
  for _, known in ipairs(embedding.poolings) do
    if known == name then return true end
  end
  return false
end

---@class pyramid.Pooling
---@field every boolean   whether states of all tokens are wanted, not of the last one alone
local Pooling = {}
Pooling.__index = Pooling

---Takes states as they come, and makes the vector of them.
---@param name "mean"|"last"
---@return pyramid.Pooling
function embedding.pooling(name)
  return setmetatable({ every = name == "mean", count = 0 }, Pooling)
end

---Takes the states of a text's next tokens.
---@param states pyramid.Vector   tokens x width
function Pooling:add(states)
  if not self.every then
    self.sum, self.count = states[#states], 1
    return
  end
  local sum = states:sum "columns"
  self.sum, self.count = self.sum and self.sum + sum or sum, self.count + #states
end

---The text's vector. `normalize` makes it one long, so that products are cosines.
---@param normalize? boolean
---@return pyramid.Vector
function Pooling:vector(normalize)
  local vector = self.sum / self.count
  local length = normalize and vector:norm() or 0
  return length > 0 and vector / length or vector
end

return embedding
