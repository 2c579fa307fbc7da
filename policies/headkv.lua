-- HeadKV (arXiv 2410.19258): SnapKV's choice, with a budget for each KV head by how much the head
-- retrieves. Of a layer's rows beside the window a `beta`-th is put together over the model and
-- divided by `scores`, one number for each KV head, layer after layer, to the power of
-- `temperature`; `map` reads them from a file, of the authors or of `pyramid calibrate --heads`.
-- Without both all heads are alike, as under snapkv. (The authors' heads are query heads; here
-- those that share K and V are one, with their mean.)
local maps, policy, score = require "pyramid.maps", require "pyramid.policy",
  require "pyramid.score"

-- The budgets of a layer's heads. Each is rounded by itself, as the authors' are.
local function budgets(o, l, rows)
  local parts = maps.head_shares(o.scores, o.map, l, o.temperature)
  local last = math.min(o.window, l.rows)
  local base = rows - last
  local shared = math.floor(base / o.beta + 1e-9)
  local keep = {}
  for head = 1, l.kv_heads do
    local own = base - shared + parts[head] * l.layers * l.kv_heads * shared
    keep[head] = math.max(1, math.min(l.rows, last + math.floor(own + 0.5)))
  end
  return keep
end

return policy.scorer {
  name = "headkv",
  doc = "per head, what the prompt's last queries look at; heads that retrieve more keep more",
  defaults = { window = 32, kernel = 7, pool = "max", beta = 1.2, temperature = 1.0, scores = "",
    map = "" },
  limits = { beta = { 1 }, temperature = { 0 } },
  looks = function(_, queries) return score.attention { queries = queries } end,
  score = function(o, _, _, seen) return seen:pool(o.pool, o.kernel) end,
  each = budgets,
}
