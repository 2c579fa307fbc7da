-- SepLLM (arXiv 2412.12094): what a segment says gathers in the separator behind it. The first rows
-- stay, the newest ones (`recent` of the budget), and of those between them separators, the newest
-- first; what is left of the budget goes to further rows before the newest, or, without `fill`, as
-- published, to none. In generation likewise, whenever a head holds `slack` rows more than the
-- budget. Separators are told by the model's tokenizer; `ids` lists others, "11,13,198". (The
-- authors' masks hide other rows from the prompt's own queries, too; here it is read whole.)
local policy, score = require "pyramid.policy", require "pyramid.score"

local function separators(o)
  local ids = {}
  for word in o.ids:gmatch "[^,%s]+" do
    local id = word:find "^%d+$" and math.tointeger(tonumber(word))
    if not id then error(("ids: '%s' is no token's number"):format(word), 0) end
    ids[#ids + 1] = id
  end
  return score.tokens(o.ids == "" and "separators" or ids)
end

return policy.scorer {
  name = "sepllm",
  doc = "first rows, recent rows, and of those between them the separators",
  generates = true,
  defaults = { sinks = 4, recent = 0.5, fill = true, ids = "" },
  limits = { recent = { 0, 1 } },
  share = "layer",
  floor = function(o) return o.sinks + 2 end,
  guard = function(o, l, budget)
    local rest = math.max(math.min(budget, l.rows) - o.sinks, 1)
    return { first = o.sinks, last = math.max(1, math.ceil(o.recent * rest)) }
  end,
  score = function(o)
    if o.fill then return separators(o) * 2 + score.place() end
    return separators(o) * (score.place() + 1)
  end,
  more = function(o) return { above = not o.fill and 1 or nil } end,
}
