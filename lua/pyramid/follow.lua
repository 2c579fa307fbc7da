--- Tokens that follow what a policy has judged: appended without asking it again.
---
--- At once, in one prefill, which attends to all rows that are held. But where steps read less than
--- that (a plan's `read`), what follows is to be read as text that is generated would be: then by
--- steps. So a question is answered from what a policy reads, and not from all that it holds.

---@param cache pyramid.Cache
---@param ids integer[]|pyramid.EmbeddedPrompt
---@param o? { all?: boolean, progress?: fun(done: integer, total: integer): boolean? }
---  all: logits after each of them, as a sequence
---@return pyramid.Logits|pyramid.Logits[]|nil
---@return string? message
---@return string? code
return function(cache, ids, o)
  o = o or {}
  if ids.embeddings or cache:reading() == 1 then
    return cache:prefill(ids, { all = o.all, progress = o.progress, prune = false })
  end
  if #ids == 0 then return cache:prefill(ids, { prune = false }) end           -- which refuses it
  local list, before = {}, cache:tokens()
  for i = 1, #ids do
    local logits, message, code = cache:step(ids[i])
    if not logits then
      cache:truncate(before)                                   -- as far as that goes
      return nil, message, code
    end
    list[o.all and i or 1] = logits
  end
  return o.all and list or list[1]
end
