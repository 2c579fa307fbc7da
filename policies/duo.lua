-- DuoAttention (arXiv 2410.10819): retrieval heads keep every row, the other heads stream: sinks
-- and recent rows, in the prompt and while text is generated. `heads` names the retrieval heads as
-- layer:head, "1:1,3:2"; `pyramid calibrate --heads` finds those of a model. (The paper trains
-- gates; this ranks heads by where their attention goes.)
local policy = require "pyramid.policy"

-- A set of "layer:head". Refuses what is not written so, and heads that the model has not.
local function chosen(o, l)
  local set = {}
  for word in o.heads:gmatch "[^,%s]+" do
    local layer, head = word:match "^(%d+):(%d+)$"
    layer, head = math.tointeger(layer), math.tointeger(head)
    if not layer then error(("option 'heads': '%s' is not layer:head"):format(word), 0) end
    if layer < 1 or layer > l.layers or head < 1 or head > l.kv_heads then
      error(("option 'heads': there is no %s among %d layers of %d K/V heads"):format(word,
        l.layers, l.kv_heads), 0)
    end
    set[("%d:%d"):format(layer, head)] = true
  end
  return set
end

local function plan(o, l)
  local set, keep = chosen(o, l), {}
  for head = 1, l.kv_heads do
    keep[head] = set[("%d:%d"):format(l.index, head)] and l.rows
      or math.min(o.sinks + o.recent, l.rows)
  end
  return { keep = keep, guard = { first = o.sinks, last = o.recent }, share = "head" }
end

return policy {
  name = "duo",
  doc = "retrieval heads keep all, the others sinks and recent rows",
  -- slack: steps from one cut to the next
  defaults = { heads = "", sinks = 4, recent = 64, slack = 16 },
  limits = { sinks = { 0 }, recent = { 1 }, slack = { 1 } },
  prefill = plan,
  trigger = function(o) return { every = o.slack } end,
  decode = plan,
}
