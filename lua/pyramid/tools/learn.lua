--- Learning what will be looked at: a linear map from a token's hidden state to how much its row
--- is worth, fitted on plain text (KVzap, arXiv 2601.07891).
---
---   teacher   a text is read, and then repeated (KVzip, arXiv 2505.23416): a row is worth the most
---             attention that any query of the repetition, in any head of its group, gave it
---   fit       the text is read once more; for each layer, ridge regression from the normed hidden
---             states to the logarithm of that, for all its KV heads at once, and to the sum of
---             it over deeper layers: what a token is worth to them. The last fifth of the layers,
---             of which the policy "narrow" computes only the newest tokens, counts for itself
---   budgets   of texts that were left out: which share of each head's rows is among the best of
---             all rows, by what the map says
---   agreement Spearman's rank correlation of map and teacher there, head by head, and of tokens
---
--- A text is at most half as long as the model's context, as it is read and repeated.
---
--- Only sums are kept (core.ridge), so that memory does not grow with the text.
local core = require "pyramid.core"
local maps = require "pyramid.maps"
local noise = require "pyramid.tools.noise"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local learn = {}

local LEAST = 1e-5             -- attention below this is all the same
local SINKS = 4                -- first rows, which are looked at for nothing they say
local LAMBDA = 0.01            -- of a ridge: see core.ridge
local LEVELS = 40              -- of budgets
local LATE = 0.8               -- of depth; `late` of the policy "narrow"
local HELD_OUT = 4             -- each so many-th text judges, and the others teach

-- ---- what the teacher says ----------------------------------------------------------------------

-- A policy that drops nothing but one row of each lane, so that it may look at all others.
local function watching(name, fn, inputs, hidden)
  local watch = score.custom(fn, inputs, { hidden = hidden })
  return policy { name = name, prefill = function(_, l)
    return { keep = l.rows - 1, guard = { first = SINKS }, share = "head", score = watch }
  end }
end

-- Reads ids under a policy, and forgets them.
local function reads(model, ids, p)
  local cache <close>, message, code = model:cache { policy = p }
  if not cache then return nil, message, code end
  local logits, problem, kind = cache:prefill(ids)
  if not logits then return nil, problem, kind end
  return true
end

local ASK = "\n\nRepeat the previous context exactly.\n\n"
local seen = score.attention { reduce = "max", heads = "max" }

-- [layer][head]: a vector, the logarithm of what each row from the fifth on was given; and behind
-- the heads, at [layer][heads + 1], what the tokens' rows were given in deeper layers: of those up
-- to LATE in the ones up to there, of later ones in all.
local function taught(model, ids)
  local asked, message, code = {}, nil, nil   -- a model without a tokenizer is just shown the text
  if model.tokenizer then asked, message, code = model:encode(ASK, { special = false }) end
  if not asked then return nil, message, code end
  local cache <close>, problem, kind = model:cache()
  if not cache then return nil, problem, kind end
  local logits, what, of = cache:prefill(ids)
  if not logits then return nil, what, of end
  local ok, wrong, class = cache:probe(table.move(ids, 1, #ids, #asked + 1, asked), seen)
  if not ok then return nil, wrong, class end
  local all, heads, deeper = {}, model.config.kv_heads, nil
  local late = math.floor(LATE * model.config.layers)
  for layer = model.config.layers, 1, -1 do
    local row, sum = {}, layer ~= late and deeper or nil
    for head = 1, heads do
      local given = assert(cache:scores(score.probed(), { layer = layer, head = head }))
      given = given:slice(SINKS + 1, #ids)
      row[head], sum = (given + LEAST):log(), sum and sum + given or given
    end
    row[heads + 1] = deeper or row[1] * 0
    all[layer], deeper = row, sum
  end
  return all
end

-- ---- budgets ------------------------------------------------------------------------------------

-- [row][level]: of each head's numbers, the share that lies among the best level / LEVELS of all;
-- and [level] the least of those.
local function budgets_of(said)
  local all = {}
  for _, list in ipairs(said) do table.move(list, 1, #list, #all + 1, all) end
  table.sort(all)
  local out, least = {}, {}
  for level = 1, LEVELS do
    least[level] = all[math.max(1, #all - math.floor(#all * level / LEVELS + 0.5) + 1)]
  end
  for head, list in ipairs(said) do
    table.sort(list)
    local row, at = {}, #list
    for level, from in ipairs(least) do
      while at > 0 and list[at] >= from do at = at - 1 end
      row[level] = level == LEVELS and 1.0 or (#list - at) / #list
    end
    out[head] = row
  end
  return out, least
end

-- ---- the whole ----------------------------------------------------------------------------------

---@class pyramid.Learned
---@field map pyramid.Vector
---@field budgets pyramid.Vector
---@field thresholds pyramid.Vector
---@field tokens pyramid.Vector
---@field agreement number[][]    [layer][head]: Spearman's correlation on the texts left out
---@field deeper number[]         [layer]: the same of tokens; 0 for the last layer
---@field rows integer            that the map was fitted to
---@field texts integer           all of them
---@field held_out integer        those of them that were left out

local function fit(model, ids, fits)
  local targets, message, code = taught(model, ids)
  if not targets then return nil, message, code end
  return reads(model, ids, watching("learn", function(lane)
    if lane.head == 1 then fits[lane.layer]:add(lane.hidden, targets[lane.layer]) end
    return lane.positions
  end, nil, true))
end

-- Of all layers the heads' maps, and the tokens'.
local function solve(model, fits)
  local rows, tokens, heads = {}, {}, model.config.kv_heads
  for layer = 1, model.config.layers do
    local map, message, code = fits[layer]:solve(LAMBDA)
    if not map then return nil, ("layer %d: %s"):format(layer, message), code end
    for head = 1, heads do rows[#rows + 1] = map[head]:totable() end
    tokens[layer] = map[heads + 1]:totable()
  end
  return { map = core.vector(rows), tokens = core.vector(tokens) }
end

-- What maps and teacher say of a text that was left out, added to `said`, `agreement` and `deeper`.
local function judge(model, ids, solved, said, agreement, deeper)
  local targets, message, code = taught(model, ids)
  if not targets then return nil, message, code end
  local heads, width = model.config.kv_heads, model.config.width
  return reads(model, ids, watching("judge", function(lane)
    local guess, truth = lane.guess:totable(), targets[lane.layer][lane.head]:totable()
    local all = said[(lane.layer - 1) * heads + lane.head]
    table.move(guess, 1, #guess, #all + 1, all)
    local sums = agreement[lane.layer]
    sums[lane.head] = (sums[lane.head] or 0.0) + noise.spearman(guess, truth)
    if lane.head == 1 and lane.layer < model.config.layers then
      local worth = lane.hidden:dot(solved.tokens[lane.layer]:slice(1, width))
      deeper[lane.layer] = deeper[lane.layer] + noise.spearman(worth:totable(),
        targets[lane.layer][heads + 1]:totable())
    end
    return lane.positions
  end, { guess = score.learned(solved.map) }, true))
end

local keys = { progress = "function" }

---Learns from texts, each fourth of which is left out to judge by.
---@param model pyramid.Model
---@param texts integer[][]       ids, at least 2 texts of more than 64 tokens
---@param given? { progress?: fun(done: integer, total: integer) }
---@return pyramid.Learned?
---@return string? message
---@return string? code
function learn.map(model, texts, given)
  given = options.check("learn.map", given, keys)
  if #texts < 2 then error("learn.map: at least two texts are wanted", 2) end
  local c, fits, held = model.config, {}, {}
  for layer = 1, c.layers do fits[layer] = core.ridge(c.width, c.kv_heads + 1) end
  local function told(done) if given.progress then given.progress(done, #texts) end end
  local done = 0
  for i, ids in ipairs(texts) do
    if i % HELD_OUT == 0 or i == 2 and #texts < HELD_OUT then
      held[#held + 1] = ids
    else
      local ok, message, code = fit(model, ids, fits)
      if not ok then return nil, message, code end
      done = done + 1
      told(done)
    end
  end
  local solved, message, code = solve(model, fits)
  if not solved then return nil, message, code end
  local said, agreement, deeper = {}, {}, {}
  for head = 1, c.layers * c.kv_heads do said[head] = {} end
  for layer = 1, c.layers do agreement[layer], deeper[layer] = {}, 0.0 end
  for _, ids in ipairs(held) do
    local ok, problem, kind = judge(model, ids, solved, said, agreement, deeper)
    if not ok then return nil, problem, kind end
    done = done + 1
    told(done)
  end
  for layer, sums in ipairs(agreement) do
    for head, sum in ipairs(sums) do sums[head] = sum / #held end
    deeper[layer] = deeper[layer] / #held
  end
  local budgets, thresholds = budgets_of(said)
  return { map = solved.map, budgets = core.vector(budgets), tokens = solved.tokens,
    thresholds = core.vector { thresholds }, agreement = agreement, deeper = deeper,
    rows = fits[1]:count(), texts = #texts, held_out = #held }
end

-- ---- what is written ----------------------------------------------------------------------------

local file_name = "map.safetensors"

---The files of a folder of two policies, which run as they are: policy.lua (pyramid_plus) and
---narrow.lua.
---@param learned pyramid.Learned
---@param about string                one line: of which model, from what
---@return table<string, string>      bytes by name
function learn.folder(learned, about)
  local policy_file = [[
-- What a second reading would keep, guessed by a linear map of hidden states;
-- %s
-- Options are those of the policy %s.
local folder = (...):match "^(.*/)" or "./"

return assert(require "pyramid.policy".load("%s", { map = folder .. "%s" }))
]]
  return {
    ["policy.lua"] = policy_file:format(about,
      "pyramid_plus: target=0.3, ratio, sinks, recent, window", "pyramid_plus", file_name),
    ["narrow.lua"] = policy_file:format(about, "narrow: at, handed, late, kernel", "narrow",
      file_name),
    [file_name] = maps.bytes { map = learned.map, budgets = learned.budgets,
      thresholds = learned.thresholds, tokens = learned.tokens,
      metadata = { about = about, rows = tostring(learned.rows) } },
  }
end

return learn
