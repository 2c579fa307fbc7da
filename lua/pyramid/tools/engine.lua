--- What measures policies against the full cache, whatever is measured: variants (policies at
--- budgets), the steps that every variant takes in turn, and a store that a run which was ended
--- goes on from. `compare` and `eval` are two lists of steps and what is measured in one.
---
---   variants     policies as a user names them, each at several budgets
---   fingerprint  what tells a model's weights from others'
---   run          measures what the store does not hold yet: step by step, rivals taking turns, so
---                that a machine that gets slower does so for all of them
local core = require "pyramid.core"
local files = require "pyramid.files"
local inspect = require "pyramid.tools.inspect"
local policy = require "pyramid.policy"
local results = require "pyramid.tools.results"

local engine = {}

-- ---- variants -----------------------------------------------------------------------------------

---@class pyramid.Variant
---@field label string        the policy with its options, as a user would write it
---@field series string       the same without the budget: what a curve connects
---@field budget number?      the share of the rows asked for
---@field policy pyramid.Policy
---@field id string           equal for equal policies

---Whether a policy never drops a row.
---@param p pyramid.Policy
---@return boolean
function engine.keeps_all(p) return not p.definition.prefill and not p.definition.decode end

---Whether a policy's steps read less than it holds, so that it need drop nothing: as its plans say
---of the last layer of a long prompt.
---@param p pyramid.Policy
---@return boolean
function engine.reads_less(p)
  local layers <const>, rows <const> = 64, 1 << 16
  local l = policy.shape(layers, layers, rows, 0, rows, 0, rows, 8, 8, 64)
  for _, name in ipairs { "prefill", "decode" } do
    local f = p.definition[name]
    if f then
      local ok, plan = policy.call(f, f, p:fitted(l), l)
      if ok and type(plan) == "table" and plan.read then return true end
    end
  end
  return false
end

-- The option that says what share of the rows a policy keeps, if it has one that the user left
-- open.
local function budget_option(p, label)
  local definition = p.definition
  for _, key in ipairs { "target", "ratio", "rows", definition.fit or "ratio" } do
    if label:find("%f[%w_]" .. key .. "=") then return nil end
  end
  if definition.fit then return "target" end
  return type((definition.defaults or {}).ratio) == "number" and "ratio" or nil
end

---Policies at budgets. A policy with an option that says which share of the rows it keeps (`target`
---where it can fit one, else `ratio`) is measured at each; one without, or whose user has chosen
---`ratio`, `target` or `rows`, as it is. The full cache comes first, whether it was asked for or
---not: everything is measured against it.
---@param given { policy: pyramid.Policy, label: string, source?: string }[]
---  source: the text of a policy file
---@param budgets number[]
---@return pyramid.Variant[]?
---@return string? message
---@return string? code
function engine.variants(given, budgets)
  local _ <close> = core.plain_locale()
  local list, seen, owners = {}, {}, {}
  local function add(p, label, series, budget, source)
    local id = tostring(p) .. (source and " " .. results.hash(source) or "")
    if seen[id] then return end
    seen[id] = true
    local owner = source or ""  -- two files may name their policies alike
    if (owners[series] or owner) ~= owner then
      label, series = label .. " (another)", series .. " (another)"
    end
    owners[series] = owner
    list[#list + 1] = { label = label, series = series, budget = budget, policy = p, id = id }
  end
  local full
  for _, one in ipairs(given) do full = full or engine.keeps_all(one.policy) and one end
  if full then add(full.policy, full.label, full.label)
  else add(assert(policy.load "full"), "full", "full") end
  for _, one in ipairs(given) do
    local key = budget_option(one.policy, one.label)
    for _, budget in ipairs(key and budgets or {}) do
      local at, message, code = policy.load(one.policy, { [key] = budget })
      if not at then return nil, message, code end
      add(at, ("%s %s=%g"):format(one.label, key, budget), one.label, budget, one.source)
    end
    if not key and not engine.keeps_all(one.policy) then
      add(one.policy, one.label, one.label, nil, one.source)
    end
  end
  return list
end

---What tells a model's weights from others': a hash of names, shapes and some bytes of every
---tensor. Reading all of them would take longer than many a measurement.
---@param path string
---@return string?
---@return string? message
---@return string? code
function engine.fingerprint(path)
  local about, message, code = inspect.model(path)
  if not about then return nil, message, code end
  local parts, opened = {}, {}
  for _, tensor in ipairs(about.tensors) do
    local file = opened[tensor.path]
    if not file then
      file, message, code = files.open(tensor.path)
      if not file then return nil, message, code end
      opened[tensor.path] = file
    end
    file:seek("set", tensor.offset + math.max(0, tensor.bytes // 2 - 32))
    parts[#parts + 1] = ("%s %s %s"):format(tensor.name, tensor.dtype,
      table.concat(tensor.shape, "x"))
    parts[#parts + 1] = file:read(math.min(64, tensor.bytes)) or ""
  end
  for _, file in pairs(opened) do file:close() end
  return results.hash(table.unpack(parts))
end

-- ---- measuring ----------------------------------------------------------------------------------

---What a variant's caches are made with: what all caches of a run have in common, and its policy.
---@param given? pyramid.CacheOptions
---@param variant pyramid.Variant
---@return pyramid.CacheOptions
function engine.cache_options(given, variant)
  local made = { policy = variant.policy }
  for key, value in pairs(given or {}) do made[key] = value end
  return made
end

---@class pyramid.EngineSteps
---@field steps table[]                     each with `cost`, in a unit of their own
---@field variants pyramid.Variant[]
---@field key fun(step: table, variant: pyramid.Variant): string    what a result is found by
---@field measure fun(step: table, variant: pyramid.Variant): table?, string?, string?
---@field name fun(step: table, variant: pyramid.Variant): string   what is measured, for people
---@field done? fun(step: table)            after all rivals of a step

---Measures what the store does not hold yet. `report(done, total, what)` counts costs, of what is
---missing only.
---@param given pyramid.EngineSteps
---@param store pyramid.Results
---@param report? fun(done: number, total: number, what: string)
---@return integer? measured    how many results are new
---@return string? message
---@return string? code
function engine.run(given, store, report)
  local todo, total, done, measured = {}, 0, 0, 0
  for _, step in ipairs(given.steps) do
    local rivals = {}
    for _, variant in ipairs(given.variants) do
      local key = given.key(step, variant)
      if not store:get(key) and store:mine(key) then rivals[#rivals + 1] = variant end
    end
    if #rivals > 0 then
      todo[#todo + 1] = { step = step, rivals = rivals }
      total = total + #rivals * step.cost
    end
  end
  for _, turn in ipairs(todo) do
    local step = turn.step
    for _, variant in ipairs(turn.rivals) do
      if report then report(done, total, given.name(step, variant)) end
      local record, message, code = given.measure(step, variant)
      if not record then return nil, message, code end
      local ok
      ok, message, code = store:add(given.key(step, variant), record)
      if not ok then return nil, message, code end
      done, measured = done + step.cost, measured + 1
    end
    if given.done then given.done(step) end
  end
  return measured
end

return engine
