-- KVzap (arXiv 2601.07891): what a second reading would say of each row (KVzip, arXiv 2505.23416)
-- is guessed, while the prompt is read once, by a linear map of its hidden state. The map is a
-- model's own: `pyramid calibrate --learn` takes it from plain text, with the share of the rows
-- that each layer and head had when all competed for one budget. So counts are known beforehand,
-- and each layer is cut as soon as it is read. Without a map the rows whose keys are unlike all
-- others stay (KeyDiff, arXiv 2504.15364), as many in each head: a guess too, and a worse one.
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

local unlike = -score.key_similarity()

return policy {
  name = "kvzap",
  doc = "what a learned map of hidden states says will be looked at",
  defaults = { ratio = 0.3, map = "", sinks = 4, recent = 32 },
  limits = { ratio = { 0, 1 }, sinks = { 0 }, recent = { 0 } },
  fit = "ratio",
  prefill = function(o, l)
    local file, keep = o.map ~= "" and maps.learned(o.map), {}
    local guarded = math.min(o.sinks + o.recent, l.prompt)
    local share = (o.ratio * l.prompt - guarded) / math.max(l.prompt - guarded, 1)
    for head = 1, l.kv_heads do
      local budget = file and maps.budget(file, (l.index - 1) * l.kv_heads + head, share) or share
      local own = math.floor(math.max(budget, 0) * (l.prompt - guarded) + 0.5)
      keep[head] = math.min(l.rows, math.max(1, l.past + guarded + own))
    end
    return { keep = keep, guard = { first = o.sinks, last = o.recent }, share = "head",
      score = file and file.score or unlike }
  end,
}
