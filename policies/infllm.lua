-- InfLLM (arXiv 2402.04617): initial rows, a local window, and of all blocks between them those
-- most relevant to the query. A block is known here by the mean of its keys; the paper's own are
-- known by a few representative rows, chosen by the attention that they got, which needs queries
-- that are gone. The prompt is read whole, where the paper reads it block by block, too.
local policy, score = require "pyramid.policy", require "pyramid.score"

return policy {
  name = "infllm",
  doc = "all rows stay; a step reads initial and local rows, and blocks by their mean key",
  defaults = { rows = 1024, sinks = 128, recent = 512 },
  limits = { rows = { 1 }, sinks = { 0 }, recent = { 1 } },
  decode = function(o)
    return { read = { rows = o.rows, by = score.mean(),
      guard = { first = o.sinks, last = o.recent } } }
  end,
}
