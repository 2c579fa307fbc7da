-- MorphKV (arXiv 2503.00979): a cache of constant size. Each KV head keeps its recent rows, and of
-- the others those that the recent queries attend to most, added up or at most (`fuse`). The
-- authors cut a row a step; here as many leave at once as there are recent queries, so that what
-- one number a row has gathered is their attention and nobody else's.
local policy, score = require "pyramid.policy", require "pyramid.score"

local function seen(o)
  local max = o.fuse == "max"
  return score.attention { queries = o.recent, reduce = o.fuse, heads = max and "max" or "mean" }
end

return policy.scorer {
  name = "morphkv",
  doc = "per head, recent rows and what the recent queries look at; of constant size",
  generates = true,
  slack = 31,
  defaults = { recent = 32, fuse = "sum" },
  limits = { recent = { 1 }, fuse = { "sum", "max" } },
  guard = function(o, l) return { last = math.min(o.recent, l.rows) } end,
  window = function(o) return o.recent end,
  score = seen,
  track = seen,
}
