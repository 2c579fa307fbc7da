--- The rule by which all policies are measured: what is scored or answered comes from logits that
--- were computed AFTER the policy's cut.
---
---   1. read under the policy      2. read after the cut, with         3. scored, or
---      (which cuts)                  what is left in the cache           generated
---   ┌───────────────────────┐   ┌───────────────────────────┐     ┌──────────────────
---   │ a document, a context │   │ the context's last tokens │ ──▶ │ the first target …
---   └───────────────────────┘   └───────────────────────────┘     └──────────────────
---
--- The logits that reading under a policy returns are not alike: where hidden states are pruned
--- they have lost what the policy dropped, where only rows are dropped they are still the full
--- cache's, because a layer's rows are cut once its attention is done. A first target scored by
--- them, or an answer's first token picked from them, would be a full cache's under any policy of
--- the second kind. So a context's last tokens are held back and read when the cut is done. Under a
--- full cache nothing changes by that.
---
--- Used by pyramid.perplexity, .recall, .compare and .calibrate; nothing else of Pyramid measures
--- what a policy loses. What a user generates is not measured and follows no such rule: its first
--- token is the prompt's own.
local core = require "pyramid.core"
local follow = require "pyramid.follow"

local cut = {}

---@class pyramid.Cut
---@field tokens integer      read under the policy
---@field share number        the share of their rows that is held once the policy has cut
---@field bytes integer       held then
---@field seconds number      that took

---The share of the rows that a policy can evict which a cache holds: rows of the layers that see
---everything. Layers with a sliding window give rows back by themselves and are not counted, unless
---there are no others.
---@param cache pyramid.Cache
---@param config pyramid.Config
---@return number
function cut.share(cache, config)
  local windows, rows, all, layers = config.window, 0, 0, {}
  for layer = 1, config.layers do
    local window = type(windows) == "table" and windows[layer] or 0
    if window == 0 then layers[#layers + 1] = layer end
  end
  if #layers == 0 or #layers == config.layers or cache:tokens() == 0 then
    return cache:fraction()
  end
  for _, layer in ipairs(layers) do
    for head = 1, config.kv_heads do rows = rows + cache:rows(layer, head) end
    all = all + cache:tokens() * config.kv_heads
  end
  return rows / all
end

---Divides ids into what is read under the policy and what is read after its cut.
---@param ids integer[]
---@param after? integer
---  ids of the second part; 1 unless said; at least one id is left to the first part
---@return integer[] judged
---@return integer[] rest
function cut.split(ids, after)
  local past = math.max(1, #ids - (after or 1))
  return table.move(ids, 1, math.min(past, #ids), 1, {}), table.move(ids, past + 1, #ids, 1, {})
end

---Reads `judged` under the cache's policy, and says what the policy left of it. The cache should be
---new.
---@param cache pyramid.Cache
---@param judged integer[]
---@param progress? fun(done: integer, total: integer): boolean?
---@return pyramid.Cut?
---@return string? message
---@return string? code
function cut.judge(cache, judged, progress)
  local began = core.clock()
  local logits, message, code = cache:prefill(judged, { progress = progress })
  if not logits then return nil, message, code end
  local seconds = core.clock() - began
  return { tokens = #judged, share = cache:fraction(), bytes = cache:bytes(), seconds = seconds }
end

-- The first part of a context, read; and its second part.
local function begin(cache, context, progress)
  if #context < 2 then
    return nil, "a context of two tokens or more is wanted: one is read after the cut", "argument"
  end
  local judged, rest = cut.split(context)
  local made, message, code = cut.judge(cache, judged, progress)
  if not made then return nil, message, code end
  return made, rest
end

---Reads a context by the rule: all but its last token under the policy, then that one.
---@param cache pyramid.Cache
---@param context integer[]       two ids or more
---@param progress? fun(done: integer, total: integer): boolean?
---@return pyramid.Logits?      they foretell what follows the context
---@return pyramid.Cut|string|nil  or a message
---@return string? code
function cut.read(cache, context, progress)
  local made, rest, code = begin(cache, context, progress)
  if not made then return nil, rest, code end
  local logits, message
  logits, message, code = cache:step(rest[1])
  if not logits then return nil, message, code end
  return logits, made
end

---The same, with the true tokens that follow appended at once, no policy asked: logits that
---foretell each target.
---@param cache pyramid.Cache
---@param context integer[]       two ids or more
---@param targets integer[]       one or more
---@param progress? fun(done: integer, total: integer): boolean?
---@return pyramid.Logits[]?
---@return pyramid.Cut|string|nil
---@return string? code
function cut.append(cache, context, targets, progress)
  local made, rest, code = begin(cache, context, progress)
  if not made then return nil, rest, code end
  local all, message
  all, message, code = follow(cache, table.move(targets, 1, #targets - 1, 2, rest), { all = true })
  if not all then return nil, message, code end
  return all, made
end

return cut
