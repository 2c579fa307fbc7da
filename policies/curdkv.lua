-- CurDKV (arXiv 2509.15038): once, after the prompt, each KV head keeps the rows of the highest
-- leverage, as nearly as lengths tell it: |k|^2 |v|^2, each as a share of its run of `run` rows.
-- The first rows stay. No attention is looked at.
local policy, score = require "pyramid.policy", require "pyramid.score"

local k2 = score.key_norm() * score.key_norm()
local v2 = score.value_norm() * score.value_norm()
local first = {}                                  -- by how many: 1 for positions below that

local function sinks(count)
  local ones = {}
  for i = 1, count do ones[i] = 1 end
  first[count] = first[count] or score.table(ones) * 1e9
  return first[count]
end

return policy.scorer {
  name = "curdkv",
  doc = "per head, long keys with long values, as runs of rows go",
  defaults = { sinks = 4, run = 16 },
  limits = { sinks = { 0, 1024 }, run = { 1, 65536 } },
  floor = function(o) return math.max(o.sinks, 1) end,
  guard = function() return {} end,
  score = function(o, l)
    local by = k2 / k2:chunk(o.run) * (v2 / v2:chunk(o.run))
    -- of the last run, if it is shorter, a mean is of fewer rows
    local rest = l.rows % o.run
    if rest > 0 then by = by * (score.place():top(rest) * ((o.run / rest) ^ 2 - 1) + 1) end
    return o.sinks > 0 and by + sinks(o.sinks) or by
  end,
}
