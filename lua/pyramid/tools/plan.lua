--- What a model would take of each of several ranks, before one is started: bytes of weights, rows
--- and scratch, what goes between ranks, the largest batch, and how fast it could be.
---
--- Bytes and traffic are the core's own count (core/model/foresee.c), of ranks on paper; rows are
--- what a policy's forecast keeps. Speed is a roofline: a step takes as long as reading what it
--- reads, or as its products, whichever is longer, and then its ranks' exchanges.
local core = require "pyramid.core"
local caches = require "pyramid.cache"
local families = require "pyramid.families"
local dtypes = require "pyramid.loaders.dtypes"
local fault = require "pyramid.loaders.fault"
local loaders = require "pyramid.loaders"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local random_model = require "pyramid.tools.random_model"

local MOST <const> = 256          -- ranks, and threads of each, that the core knows

local plan = {}

---@class pyramid.Hardware   of one rank
---@field bandwidth number?  GB/s that its memory gives
---@field flops number?      TFLOP/s of its matrix products
---@field link number?       GB/s from it to the others, one way
---@field latency number?    microseconds of an exchange

--- What makers state of their accelerators: memory, dense products of bf16, NVLink one way.
---@type table<string, pyramid.Hardware>
plan.hardware = {
  a100 = { bandwidth = 2039, flops = 312, link = 300, latency = 10 },
  h100 = { bandwidth = 3350, flops = 989, link = 450, latency = 10 },
  h200 = { bandwidth = 4800, flops = 989, link = 450, latency = 10 },
}

--- Shapes beside those of random_model: too large to be written for a measurement.
---@type table<string, table>
plan.shapes = {
  ["llama-2-70b"] = { layers = 80, width = 8192, heads = 64, kv_heads = 8, ff = 28672,
    vocab = 32000, context = 4096 },
  ["llama-3.1-405b"] = { layers = 126, width = 16384, heads = 128, kv_heads = 8, ff = 53248,
    vocab = 128256, context = 131072 },
  ["gpt-3-175b"] = { layers = 96, width = 12288, heads = 96, kv_heads = 96, ff = 49152,
    vocab = 50257, context = 2048, family = "gpt2", tied = true },
}
for name, shape in pairs(random_model.shapes) do plan.shapes[name] = shape end

-- A configuration and its weights, as loaders give them of a file.
local function of_shape(name, shape, dtype)
  local family = families.find(shape.family or "llama")
  local decoder, optional, weights = {}, {}, {}
  for key, value in pairs(family.decoder) do decoder[key] = value end
  for _, role in ipairs(family.weights) do optional[role] = true end
  local freq, head_dim = {}, shape.width // shape.heads
  local turns = family.rope == "none" and {} or nil
  local dims = turns and 0 or head_dim
  for i = 1, dims // 2 do freq[i] = 1.0 end
  for layer = 1, turns and shape.layers or 0 do turns[layer] = "none" end
  decoder.turns = turns
  local config = { family = name, layers = shape.layers, heads = shape.heads,
    kv_heads = shape.kv_heads, head_dim = head_dim, width = shape.width, ff = shape.ff,
    vocab = shape.vocab, context = shape.context, norm_eps = 1e-5, tied = shape.tied,
    decoder = decoder, rope = { style = "half", dims = dims, freq = freq, gain = 1.0 } }
  local function add(roles, layer)
    for _, role in ipairs(roles) do
      if families.has(role, decoder, optional, layer) and not (role == "output" and shape.tied) then
        weights[#weights + 1] = { role = role, layer = layer, tensor = { dtype = dtype,
          shape = {} } }
      end
    end
  end
  add(families.global_roles)
  for layer = 1, shape.layers do add(families.layer_roles, layer) end
  return config, weights
end

-- What cannot be, by the names that the command has.
local function refuse(what, given)
  local function no(message, ...) fault.check(nil, message:format(...), "argument") end
  local known = plan.shapes[what] and options.sorted_keys(dtypes.by_name) or dtypes.writable
  local named = given.weights == nil
  for _, name in ipairs(known) do named = named or name == given.weights end
  if not named then
    no("--weights is '%s' (known: %s)", given.weights, table.concat(known, ", "))
  end
  for _, name in ipairs { "ranks", "threads", "stages" } do
    if (given[name] or 1) > MOST then no("--%s is %d, at most %d", name, given[name], MOST) end
  end
end

local function find(what, as)
  local shape = plan.shapes[what]
  if shape then return of_shape(what, shape, as or "f16") end
  local source = fault.check(loaders.prepare(what, { weights = as }))
  return source.config, source.weights
end

---@class pyramid.PlanOptions
---@field ranks? integer            processes or GPUs, 1
---@field stages? integer           of a pipeline, whose layers are dealt out; else nil
---@field memory? integer           bytes that each has; 0 or nil: whether that is enough is not asked
---@field batch? integer            sequences, 1
---@field prompt? integer           tokens of each, 512
---@field generate? integer         tokens made of each, 0
---@field policy? pyramid.Policy
---@field cache_dtype? string       "f16"
---@field weights? string           dtype to convert matrices to; of a shape what they are, "f16"
---@field threads? integer          of a rank: its kernels' scratch depends on it
---@field hardware? pyramid.Hardware

---@class pyramid.RankPlan
---@field rank integer
---@field heads integer
---@field kv_heads integer
---@field ff integer
---@field weights integer           bytes
---@field rows number               bytes of all sequences' rows once they are made
---@field reading number            bytes more while a prompt is read, before plans have cut it
---@field scratch integer           activations, and what kernels set aside
---@field total number
---@field prompt_sent integer       bytes to other ranks, of one prompt
---@field step_sent integer         likewise of a step of the batch
---@field prompt_swaps integer
---@field step_swaps integer

---@class pyramid.Planned
---@field model string
---@field ranks pyramid.RankPlan[]
---@field config pyramid.Config
---@field stages integer[]?         layers that each stage should have
---@field fraction number           rows kept of those of a full cache
---@field row_bytes number          K and V of one token in all layers, of all ranks
---@field fits boolean?             whether each rank has the memory
---@field largest_batch integer?    that fits it, 0: not even one
---@field step_seconds number?      of the batch, with all rows there
---@field prompt_seconds number?    of one prompt
---@field step_rate number?         tokens a second of all sequences
---@field rate number?              likewise, with their prompts, where tokens are generated

-- What is the same for all ranks: rows a lane keeps of each layer, tokens that reach it, and how
-- many rows a layer holds beyond what it keeps while a prompt is read.
local function forecast(config, given)
  local made, layers, computed = { kept = 0, longest = 0, bytes = 0, more = 0 }, {}, nil
  local prepares = given.policy and given.policy.definition.prepare
  local tracked = given.policy and given.policy.definition.trigger ~= nil
  if given.policy then
    layers, computed = policy.forecast(given.policy, config, given.prompt), {}
    for i, layer in ipairs(layers) do computed[i] = math.min(layer.computed, given.prompt) end
  else
    for i = 1, config.layers do layers[i] = { rows = given.prompt, computed = given.prompt } end
  end
  local function lane(rows)
    return caches.bytes_of_lane(given.cache_dtype, config.head_dim, rows, tracked)
  end
  for _, layer in ipairs(layers) do
    local rows = layer.rows + given.generate
    local more = math.max(lane(given.prompt) - lane(rows), 0)
    made.kept, made.longest = made.kept + rows, math.max(made.longest, rows)
    made.bytes = made.bytes + lane(rows)
    made.more = prepares and made.more + more or math.max(made.more, more)
  end
  made.layers, made.computed = layers, computed
  return made
end

-- A rank's weights: all bytes of them, those that a step reads, and the values that it multiplies.
local function weigh(handle, weights, config)
  local all, read, values = 0, 0, 0
  local used = (config.decoder.experts or 0) > 0
    and config.decoder.experts_used / config.decoder.experts or 1
  for _, w in ipairs(weights) do
    local bytes = handle:foresee_weight(w.role, w.layer, w.expert, w.dtype)
    local looked_up, share = w.role == "embed" or w.role == "positions", w.expert and used or 1
    all = all + bytes
    if not looked_up then
      read = read + share * bytes
      values = values
        + share * (handle:foresee_weight(w.role, w.layer, w.expert, "f32") // 4)
    end
    if w.role == "embed" and config.tied then              -- once more, as the output
      all = all + handle:foresee_weight("output", nil, nil, w.dtype, true)
      read = read + handle:foresee_weight("output", nil, nil, w.dtype)
      values = values + handle:foresee_weight("output", nil, nil, "f32") // 4
    end
  end
  return all, read, values
end

-- What fn returns of a model that is laid out for a rank, in a runtime of its own.
local function on_paper(index, core_config, given, fn)
  local runtime <close> = fault.check(core.runtime { threads = given.threads,
    ranks = given.ranks > 1 and ("paper %d/%d"):format(index, given.ranks) or nil })
  local handle <close> = fault.check(core.model_new(runtime, core_config))
  return fn(handle)
end

-- A value that a step reads takes as long as so many tokens' products of a prompt by it: about what
-- processors show (docs/ranks.md).
local STEP <const> = 8

-- Layers of each stage, so that they take equal time for a prompt and what is generated after it. A
-- layer computes the tokens that the policy's forecast lets reach it; the output follows the last.
local function deal(config, core_config, weights, made, given)
  local tail, costs = 0, {}
  local alone = { ranks = 1, threads = given.threads }
  for i, layer in ipairs(made.layers) do
    costs[i] = 2 * config.heads * config.head_dim * layer.computed ^ 2 / 2
  end
  local experts = config.decoder.experts or 0
  local used = experts > 0 and config.decoder.experts_used / experts or 1
  on_paper(0, core_config, alone, function(handle)
    for _, w in ipairs(weights) do
      local values = handle:foresee_weight(w.role, w.layer, w.expert, "f32") / 4
      if w.layer then
        costs[w.layer] = costs[w.layer] + (w.expert and used or 1) * values
          * (made.layers[w.layer].computed + STEP * given.generate)
      elseif w.role == "output" or (w.role == "embed" and config.tied) then
        tail = tail + values * (1 + STEP * given.generate)
      end
    end
  end)
  local stages = core.deal(costs, tail, given.stages)
  if stages then return stages end
  fault.check(nil, ("--stages is %d, and the model has %d layers"):format(given.stages,
    config.layers), "argument")
end

-- Seconds of a step and of a prompt on one rank.
local function roofline(h, rank, made, config, given)
  local function seconds(bytes, flops, sent, swaps)
    local link = given.ranks > 1 and swaps * (h.latency or 0) * 1e-6 + sent / (h.link * 1e9) or 0
    return math.max(bytes / (h.bandwidth * 1e9), flops / (h.flops * 1e12)) + link
  end
  local unit = caches.bytes_of_value(given.cache_dtype)
  local held = made.kept * rank.kv_heads * 2 * config.head_dim * unit
  local pairs_of, tokens, attention = 4 * rank.heads * config.head_dim, 0, 0
  for _, layer in ipairs(made.layers) do
    tokens = tokens + layer.computed / config.layers
    attention = attention + pairs_of * layer.computed ^ 2 / 2
  end
  return seconds(rank.read + given.batch * held,
      given.batch * (2 * rank.values + pairs_of * made.kept), rank.step_sent, rank.step_swaps),
    seconds(rank.read, 2 * rank.values * tokens + attention, rank.prompt_sent, rank.prompt_swaps)
end

-- The largest batch of which `fits` is true, as it is of all smaller ones.
local function largest(fits)
  local low, high = 0, 1
  while high <= 1 << 16 and fits(high) do low, high = high, 2 * high end
  while high - low > 1 do
    local middle = (low + high) // 2
    if fits(middle) then low = middle else high = middle end
  end
  return low
end

local function plan_rank(index, config, core_config, weights, made, given)
  local function foresee(batch)
    return on_paper(index, core_config, given, function(handle)
      return fault.check(handle:foresee(given.prompt, batch, math.ceil(made.longest),
        given.policy ~= nil, made.computed))
    end)
  end
  local seen = foresee(given.batch)
  local bytes, read, values = on_paper(index, core_config, given, function(handle)
    return weigh(handle, weights, config)
  end)
  local rank = { rank = index, heads = seen.heads, kv_heads = seen.kv_heads, ff = seen.ff,
    weights = bytes, read = read, values = values, rows = made.bytes * seen.kv_heads * given.batch,
    reading = made.more * seen.kv_heads, scratch = math.max(seen.prompt_bytes, seen.step_bytes),
    prompt_sent = seen.prompt_sent, step_sent = seen.step_sent, prompt_swaps = seen.prompt_swaps,
    step_swaps = seen.step_swaps }
  rank.total = bytes + rank.rows + rank.reading + rank.scratch
  if given.memory > 0 then
    rank.largest_batch = largest(function(batch)
      local other = foresee(batch)
      return bytes + made.bytes * seen.kv_heads * batch + rank.reading
        + math.max(other.prompt_bytes, other.step_bytes) <= given.memory
    end)
  end
  return rank
end

local function make(what, given)
  refuse(what, given)
  local config, found = find(what, given.weights)
  local core_config, weights = loaders.outline(config, found, given.weights)
  local made, h = forecast(config, given), given.hardware or {}
  local out = { model = what, config = config, ranks = {},
    fraction = made.kept / (config.layers * (given.prompt + given.generate)),
    row_bytes = 2 * config.layers * config.kv_heads * config.head_dim
      * caches.bytes_of_value(given.cache_dtype) }
  if given.stages then out.stages = deal(config, core_config, weights, made, given) end
  for index = 0, given.ranks - 1 do
    local rank = plan_rank(index, config, core_config, weights, made, given)
    out.ranks[index + 1] = rank
    if given.memory > 0 then
      out.fits = out.fits ~= false and rank.total <= given.memory
      out.largest_batch = math.min(out.largest_batch or rank.largest_batch, rank.largest_batch)
    end
    if h.bandwidth and h.flops and (given.ranks == 1 or h.link) then
      local step, prompt = roofline(h, rank, made, config, given)
      out.step_seconds = math.max(out.step_seconds or 0, step)
      out.prompt_seconds = math.max(out.prompt_seconds or 0, prompt)
    end
  end
  if out.step_seconds then
    out.step_rate = given.batch / out.step_seconds
    if given.generate > 0 then
      out.rate = given.batch * given.generate
        / (given.batch * out.prompt_seconds + given.generate * out.step_seconds)
    end
  end
  return out
end

---What a model, or a shape of plan.shapes, takes of each of several ranks.
---@param what string  a path, or the name of a shape
---@param given? pyramid.PlanOptions
---@return pyramid.Planned?
---@return string? message
---@return string? code
function plan.make(what, given)
  local _ <close> = core.plain_locale()
  local full = { ranks = 1, memory = 0, batch = 1, prompt = 512, generate = 0,
    cache_dtype = "f16" }
  for key, value in pairs(given or {}) do full[key] = value end
  return fault.catch(make, what, full)
end

return plan
