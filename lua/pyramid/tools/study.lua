--- The two observations that PyramidInfer rests on (arXiv 2405.12532), as experiments on any model.
---
---   icr   inference context redundancy: how much it costs to drop a share of the context's rows in
---         one layer, ranked by the attention of the last queries only, while all other layers keep
---         theirs. The paper's claim: the deeper the layer, the less.
---   rac   recent attention consistency: how far the rows that a query attends to most (its top
---         share) are those of the last query, by how far before it the query stands, and by layer.
---         The claim: recent queries agree.
---
--- Loss is the mean negative log-probability of the true tokens after a context, in nats, over what
--- the full cache has; they are appended after the cut (pyramid.cut).
local cut = require "pyramid.tools.cut"
local noise = require "pyramid.tools.noise"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local study = {}

---@class pyramid.StudyWindow
---@field context integer[]
---@field targets integer[]

---@class pyramid.StudyCell
---@field layer integer
---@field at number          the share dropped, or the distance
---@field mean number        nats lost, or the share in common
---@field half number        of its 95 % interval, over windows
---@field each number[]

-- One set for all heads, as in the paper: the rows that `queries` last queries attend to most, of
-- all but the last `recent`.
local function keep_of(l, recent, share, queries)
  local candidates = math.max(0, l.rows - recent)
  return { keep = l.rows - candidates + math.max(1, math.floor(share * candidates + 0.5)),
    guard = { last = math.min(recent, l.rows) },
    score = score.attention { queries = math.min(queries, l.rows) } }
end

-- Mean loss of the targets.
local function loss_of(model, window, p, dtype)
  local cache <close>, message, code = model:cache { policy = p, dtype = dtype }
  if not cache then return nil, message, code end
  local all, made, problem = cut.append(cache, window.context, window.targets)
  if not all then return nil, made, problem end
  local sum = 0
  for i, logits in ipairs(all) do sum = sum - logits:logprob(window.targets[i]) end
  return sum / #window.targets
end

local function cells_of(layers, columns, each)
  local cells = {}
  for _, layer in ipairs(layers) do
    for _, at in ipairs(columns) do
      local list = each[layer][at]
      local mean, half = noise.mean(list)
      cells[#cells + 1] = { layer = layer, at = at, mean = mean, half = half, each = list }
    end
  end
  return cells
end

local function empty(layers, columns)
  local each = {}
  for _, layer in ipairs(layers) do
    each[layer] = {}
    for _, at in ipairs(columns) do each[layer][at] = {} end
  end
  return each
end

local icr_keys = { windows = "table", shares = "table", layers = "table", recent = "integer",
  dtype = "string", progress = "function" }

---What it costs to drop each of `shares` of a context's rows in each of `layers`.
---@param model pyramid.Model
---@param given { windows: pyramid.StudyWindow[], shares: number[], layers: integer[], recent: integer, dtype?: string, progress?: fun(done: integer, total: integer) }
---  recent: the last rows, which stay, and whose queries rank the others
---@return pyramid.StudyCell[]?
---@return string? message
---@return string? code
function study.icr(model, given)
  given = options.check("study.icr", given, icr_keys)
  local each, done = empty(given.layers, given.shares), 0
  local total = #given.windows * (1 + #given.layers * #given.shares)
  local function step()
    done = done + 1
    if given.progress then given.progress(done, total) end
  end
  for _, window in ipairs(given.windows) do
    local full, message, code = loss_of(model, window, nil, given.dtype)
    if not full then return nil, message, code end
    step()
    for _, layer in ipairs(given.layers) do
      for _, share in ipairs(given.shares) do
        local p = policy { name = "icr", prefill = function(_, l)
          if l.index ~= layer then return nil end
          return keep_of(l, given.recent, 1 - share, given.recent)
        end }
        local loss
        loss, message, code = loss_of(model, window, p, given.dtype)
        if not loss then return nil, message, code end
        table.insert(each[layer][share], loss - full)
        step()
      end
    end
  end
  return cells_of(given.layers, given.shares, each)
end

-- The positions that the last `queries` of ids attend to most, of the first `context`: a set for
-- each layer.
local function attended(model, ids, context, share, queries, dtype)
  local p = policy { name = "rac", prefill = function(_, l)
    return keep_of(l, l.rows - context, share, queries)
  end }
  local cache <close>, message, code = model:cache { policy = p, dtype = dtype }
  if not cache then return nil, message, code end
  local logits
  logits, message, code = cache:prefill(ids)
  if not logits then return nil, message, code end
  local sets = {}
  for layer = 1, model.config.layers do
    local set = {}
    for _, position in ipairs(cache:positions(layer)) do
      if position < context then set[position] = true end
    end
    sets[layer] = set
  end
  return sets
end

local function overlap(a, b)
  local both, all = 0, 0
  for position in pairs(a) do
    all = all + 1
    if b[position] then both = both + 1 end
  end
  return both / all
end

local rac_keys = { windows = "table", distances = "table", layers = "table", share = "number",
  queries = "integer", dtype = "string", progress = "function" }

---How far the top `share` of a context, by the attention of the query that stands at each of
---`distances` before the last one, is the last one's. The context is what all these queries see.
---@param model pyramid.Model
---@param given { windows: pyramid.StudyWindow[], distances: integer[], layers: integer[], share: number, queries: integer, dtype?: string, progress?: fun(done: integer, total: integer) }
---  queries: as many as end there, averaged
---@return pyramid.StudyCell[]?
---@return string? message
---@return string? code
function study.rac(model, given)
  given = options.check("study.rac", given, rac_keys)
  local farthest = math.max(table.unpack(given.distances))
  local each, done, total = empty(given.layers, given.distances), 0,
    #given.windows * (1 + #given.distances)
  local function step()
    done = done + 1
    if given.progress then given.progress(done, total) end
  end
  for _, window in ipairs(given.windows) do
    local ids = window.context
    local context = #ids - farthest - given.queries
    if context < 2 then
      return nil, ("a context of %d has no rows that a query %d before its end sees"):format(#ids,
        farthest), "length"
    end
    local last, message, code = attended(model, ids, context, given.share, given.queries,
      given.dtype)
    if not last then return nil, message, code end
    step()
    for _, distance in ipairs(given.distances) do
      local sets
      sets, message, code = attended(model, table.move(ids, 1, #ids - distance, 1, {}), context,
        given.share, given.queries, given.dtype)
      if not sets then return nil, message, code end
      for _, layer in ipairs(given.layers) do
        table.insert(each[layer][distance], overlap(last[layer], sets[layer]))
      end
      step()
    end
  end
  return cells_of(given.layers, given.distances, each)
end

---How the cells of one column go with depth: Spearman's rank correlation with the layer, from -1
---(falls) to 1.
---@param cells pyramid.StudyCell[]
---@param at number
---@return number
function study.trend(cells, at)
  local layers, means = {}, {}
  for _, cell in ipairs(cells) do
    if cell.at == at then layers[#layers + 1], means[#means + 1] = cell.layer, cell.mean end
  end
  return noise.spearman(layers, means)
end

return study
