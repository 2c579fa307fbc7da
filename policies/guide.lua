-- Keeps every row, and the attention that the prompt's last queries gave each: what a cache is read
-- under that is to guide another model's (see guided.lua).
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "guide",
  doc = "keeps every row, and what the prompt's last queries look at",
  defaults = { queries = 32 },
  limits = { queries = { 1 } },
  -- and one step's
  trigger = function(o) return { every = 1, track = score.attention { queries = o.queries
    + 1 } } end,
  decode = function() end,
}
