--- What the queries of a model's heads have in common, taken from plain text: for the policies
--- "triattention" (arXiv 2604.04921) and "qfilter" (arXiv 2503.02812).
---
---   centres   of each query head the mean query before RoPE, and the mean length of each of its
---             pairs (the values that RoPE turns together)
---   filters   of each KV head the main direction of its group's queries as RoPE turned them: the
---             first right singular vector of a sample, pointing the way of their mean
---
--- Means and samples leave out the first rows, whose queries are like no others.
local core = require "pyramid.core"
local maps = require "pyramid.maps"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local score = require "pyramid.score"

local centres = {}

local SINKS = 4                -- first rows
local SAMPLE = 3000            -- queries of a KV head of which a direction is taken, about
local ROUNDS = 30              -- of the power iteration that finds it

-- Zeros but for ones at the places.
local function marked(size, ...)
  local list = {}
  for i = 1, size do list[i] = 0 end
  for _, place in ipairs { ... } do list[place] = 1 end
  return core.vector(list)
end

-- Two places a pair, for each query head of a group.
local function pairs_of(model, group)
  local c, masks = model.config, {}
  local rope = c.rope or {}
  local d, half = c.head_dim, (rope.dims or 0) // 2
  for head = 0, group - 1 do
    for p = 0, d // 2 - 1 do
      local first, second = p + 1, p + 1 + half
      if rope.style == "interleaved" then first, second = 2 * p + 1, 2 * p + 2 end
      if p < half then
        masks[#masks + 1] = marked(group * d, head * d + first, head * d + second)
      else
        masks[#masks + 1] = false
      end
    end
  end
  return masks
end

-- Adds `numbers` times `weight` to `sums`.
local function add(sums, numbers, weight)
  for i, x in ipairs(numbers) do sums[i] = (sums[i] or 0.0) + x * weight end
end

-- What one lane of one text adds: sums over its queries, and some of them as they are.
local function look(lane, into, masks, each)
  local q, lengths = lane.queries, {}
  local squares = q * q
  add(into.mean, q:mean("columns"):totable(), lane.rows)
  for i, mask in ipairs(masks) do
    lengths[i] = mask and squares:dot(mask):sqrt():mean() or 0.0
  end
  add(into.lengths, lengths, lane.rows)
  into.rows = into.rows + lane.rows
  local from = math.max(1, (lane.rows - each) // 2)
  into.sample[#into.sample + 1] = lane.turned:slice(from, math.min(from + each - 1, lane.rows)) * 1
end

-- The main direction of the sample's queries, of all query heads of the group.
local function direction(sample, group, d)
  local at = {}
  for head = 1, group do
    local padded = {}
    for i = 1, group * d do padded[i] = 0 end
    at[head] = padded
  end
  local function fold(columns, into)                 -- a group's heads, one upon the other
    for i, x in ipairs(columns) do
      local place = (i - 1) % d + 1
      into[place] = (into[place] or 0.0) + x
    end
  end
  local mean = {}
  for _, some in ipairs(sample) do fold(some:sum("columns"):totable(), mean) end
  local u = mean
  for _ = 1, ROUNDS do
    local size, next_u = core.vector(u):norm(), {}
    if size == 0 then return u end
    for head = 1, group do
      for i = 1, d do at[head][(head - 1) * d + i] = u[i] / size end
      local own = core.vector(at[head])
      for _, some in ipairs(sample) do
        local columns = (some * some:dot(own)):sum("columns")
        add(next_u, columns:slice((head - 1) * d + 1, head * d):totable(), 1.0)
      end
    end
    u = next_u
  end
  local size, along = core.vector(u):norm(), 0.0
  for i, x in ipairs(u) do along = along + x * mean[i] end
  local sign = along < 0 and -1 or 1
  for i, x in ipairs(u) do u[i] = size > 0 and sign * x / size or 0.0 end
  return u
end

---Reads texts and forgets them.
---@param model pyramid.Model
---@param texts integer[][]      ids, at least one text, of more than 16 tokens
---@param given? { progress?: fun(done: integer, total: integer) }
---@return pyramid.QueryCentres?
---@return string? message
---@return string? code
function centres.learn(model, texts, given)
  given = options.check("centres.learn", given, { progress = "function" })
  local c = model.config
  local group, all = c.heads // c.kv_heads, {}
  local masks = pairs_of(model, group)
  local each = math.max(1, SAMPLE // (#texts * group))
  for lane = 1, c.layers * c.kv_heads do
    all[lane] = { mean = {}, lengths = {}, sample = {}, rows = 0 }
  end
  local watch = score.custom(function(lane)
    look(lane, all[(lane.layer - 1) * c.kv_heads + lane.head], masks, each)
    return lane.positions
  end, nil, { queries = true })
  local reading = policy { name = "centres", prefill = function(_, l)
    return { keep = l.rows - 1, guard = { first = SINKS }, share = "head", score = watch }
  end }
  for i, ids in ipairs(texts) do
    local cache <close>, message, code = model:cache { policy = reading }
    if not cache then return nil, message, code end
    local logits, problem, kind = cache:prefill(ids)
    if not logits then return nil, problem, kind end
    if given.progress then given.progress(i, #texts) end
  end
  local rows, filters, d = {}, {}, c.head_dim
  for lane, seen in ipairs(all) do
    for head = 0, group - 1 do
      local row = {}
      for i = 1, d do row[i] = seen.mean[head * d + i] / seen.rows end
      for p = 1, d // 2 do row[d + p] = seen.lengths[head * (d // 2) + p] / seen.rows end
      rows[#rows + 1] = row
    end
    filters[lane] = direction(seen.sample, group, d)
  end
  return { centres = core.vector(rows), filters = core.vector(filters),
    metadata = { rows = tostring(all[1].rows), texts = tostring(#texts) } }
end

local file_name = "centres.safetensors"

---The files of a folder that is a policy: its policy.lua runs as it is.
---@param learned pyramid.QueryCentres
---@param about string                one line: of which model, from what
---@return table<string, string>      bytes by name
function centres.folder(learned, about)
  local policy_file = ([[
-- What queries around each head's centre would look at from afar;
-- %s
-- Options are those of the policy triattention: target=0.3, ratio, rows, sinks, recent. The policy
-- qfilter reads the same file: --policy qfilter map=.../%s
local folder = (...):match "^(.*/)" or "./"

return assert(require "pyramid.policy".load("triattention", { map = folder .. "%s" }))
]]):format(about, file_name, file_name)
  learned.metadata.about = about
  return { ["policy.lua"] = policy_file, [file_name] = maps.centres_bytes(learned) }
end

return centres
