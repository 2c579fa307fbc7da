--- Prompts that are read in pieces: what a policy's plans need of the last piece, so that the rows
--- of all of them can be judged together, as those of a prompt that was read at once.
---
--- A row of an earlier piece has its key, its value and its position, as ever. Queries and hidden
--- states are there only while their own piece is read. So a plan that ranks by keys, values,
--- positions and the attention of the last 32 queries needs a last piece of 32 tokens; one that
--- ranks by the attention of all queries, by hidden states or by passes over the prompt needs the
--- prompt at once.
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local pieces = {}

---How many tokens the last piece of a prompt must have at least (0: none of its plans looks at
---queries), or nil and why it must be read at once.
---@param p? pyramid.Policy
---@param config pyramid.Config
---@param tokens integer   of the prompt
---@return integer?
---@return string? why
function pieces.needs(p, config, tokens)
  local d = p and p.definition
  if not p or not d or not (d.prefill or d.trigger) then return 0 end
  if d.prepare then return nil, "it prepares its plans by reading the prompt once more" end
  local queries = 0
  local function look(at)
    local wanted, why = score.queries(at)
    if not wanted then error({ why = why }, 0) end
    queries = math.max(queries, wanted)
  end
  local function ask()
    for layer = 1, config.layers do
      local l = policy.shape(layer, config.layers, tokens, 0, tokens, 0, tokens, config.heads,
        config.kv_heads, config.head_dim)
      local o = p:fitted(l)
      local plan = d.prefill and d.prefill(o, l)
      if plan then
        if plan.prune ~= nil and plan.prune ~= "cache" then
          error({ why = "it drops hidden states while it reads" }, 0)
        end
        look(plan.score)
        look(plan.weight)
        if math.type(plan.keep) == "integer" then l.rows = math.min(l.rows, plan.keep) end
      end
      local trigger = d.trigger and d.decode and d.trigger(o, l)
      if trigger then look(trigger.track) end
    end
  end
  local ok, raised = pcall(ask)
  if ok then return queries end
  -- a plan that is wrong is told of when the prompt is read
  return nil, type(raised) == "table" and raised.why or tostring(raised)
end

return pieces
