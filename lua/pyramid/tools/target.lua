--- What share of the rows a policy was asked to keep, and whether it did: guards, floors and
--- windows can stand above a target, limits below it. Whatever uses a policy says so with these
--- words, and names what was reached.
local target = {}

-- Targets are met by whole rows, in chunks, in each layer: nearer than this they count as met.
local slack, slack_rows = 0.01, 2

---The share of the prompt's rows that a policy was asked to keep, by its option `target`; nil, if
---by none.
---@param p pyramid.Policy
---@return number?
function target.of(p)
  local wanted = p.options.target
  return p.definition.fit and type(wanted) == "number" and wanted > 0 and wanted or nil
end

---Whether a share asked for was missed.
---@param wanted number?
---@param share number        of the rows, that was kept
---@param tokens integer      of the prompt
---@return boolean
function target.missed(wanted, share, tokens)
  return wanted ~= nil and math.abs(share - wanted) > slack + slack_rows / math.max(tokens, 1)
end

---A line that says that a target was missed and what was reached; nil, if it was met, or there is
---none.
---@param p pyramid.Policy
---@param label string        as the user wrote the policy
---@param share number
---@param tokens integer
---@param more? string        what else is known of the share
---@return string?
function target.warning(p, label, share, tokens, more)
  local wanted = target.of(p)
  if not target.missed(wanted, share, tokens) then return nil end
  return ("%s: the target of %.1f %% cannot be met for a prompt of %d tokens: %.1f %% of the "
    .. "rows are kept%s"):format(label, 100 * wanted, math.floor(tokens + 0.5), 100 * share,
      more or "")
end

return target
