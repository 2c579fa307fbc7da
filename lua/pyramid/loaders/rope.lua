-- Angles per position of rotary embeddings: rope.compute turns what a model's configuration says of
-- them into one frequency for each pair of dimensions and one gain, so that the core need not know
-- of scaling.
--
-- The arithmetic follows Hugging Face transformers' modeling_rope_utils (which ggml agrees with for
-- `linear` and `yarn`), rounding to f32 where it does. With d dims, base b and i = 0 … d/2-1:
--
--   none     f_i = b^(-2i/d)
--   linear   f_i / factor
--   llama3   long waves (> original/low) are divided by factor, short ones (< original/high) kept,
--            between them both are
--            mixed by (original/wavelength - low) / (high - low)      (Llama 3.1)
--   yarn     dimensions that turn more than beta_fast times in the original context are kept, fewer
--            than beta_slow
--            times are divided by factor, a linear ramp between; gain 0.1 ln(factor) + 1 (arXiv
--            2309.00071)
--   dynamic  as if b were b (factor c/original - (factor - 1))^(d / (d - 2)), where the context c
--            is more than the original one; else as it is
--   longrope f_i / long[i] where the context is more than the original one, else f_i / short[i];
--            gain sqrt(1 + ln(factor) / ln(original))  (LongRoPE, arXiv 2402.13753)
--   factors  f_i / factors[i]: a table that a GGUF file brings along
--
-- The context of dynamic and longrope is the one that a model is opened for, as llama.cpp takes it
-- (n_ctx of a sequence). transformers takes the length of what was read so far, at each call: a
-- text that grows beyond the original context goes on with the long factors over keys that the
-- short ones turned, and answers otherwise than if it had been read at once. Here all rows of a
-- cache are turned by one table, whatever is read, forked, evicted or saved. Both agree for texts
-- beyond the original context, and for texts within it where the model is opened for no more than
-- that (`context = N`).

local fault = require "pyramid.loaders.fault"

local rope = {}

---@class pyramid.Rope
---@field base number
---@field dims integer       leading dimensions of a head that rotate
---@field style string       "half" or "interleaved"
---@field type string        "none", "linear", "dynamic", "llama3", "yarn", "longrope"
---@field factor number?     of linear, dynamic, llama3, yarn, longrope
---@field original number?   context of pre-training, of dynamic, llama3, yarn and longrope
---@field context integer?   that the model is opened for, of dynamic and longrope
---@field short number[]?    divisors of longrope, …
---@field long number[]?     … and those of a context beyond the original one
---@field low number?        low_freq_factor of llama3
---@field high number?       high_freq_factor of llama3
---@field beta_fast number?  of yarn
---@field beta_slow number?  of yarn
---@field gain number?       of yarn: attention_factor if the configuration gives one
---@field truncate boolean?  of yarn: whether the ramp's ends are whole dimensions
---@field factors number[]?  divisors, one for each pair
---@field names table<string, string>?  what the file calls these fields, for messages

local function f32(x) return (string.unpack("<f", string.pack("<f", x))) end

local function clamp(x, low, high) return math.max(low, math.min(high, x)) end

local scale = {}

function scale.none(_, freq) return freq end

function scale.linear(r, freq)
  local out = {}
  for i, f in ipairs(freq) do out[i] = f32(f / r.factor) end
  return out
end

function scale.llama3(r, freq)
  local out = {}
  for i, f in ipairs(freq) do
    local wavelength = f32(2 * math.pi / f)
    if wavelength > r.original / r.low then out[i] = f32(f / r.factor)
    elseif wavelength < r.original / r.high then out[i] = f
    else
      local smooth = f32(f32(f32(r.original / wavelength) - r.low) / (r.high - r.low))
      out[i] = f32(f32(f32((1 - smooth) * f) / r.factor) + f32(smooth * f))
    end
  end
  return out
end

--- The dimension pair that turns `turns` times in the original context.
local function pair_of_turns(r, turns)
  return r.dims * math.log(r.original / (turns * 2 * math.pi)) / (2 * math.log(r.base))
end

function scale.yarn(r, freq)
  local low, high = pair_of_turns(r, r.beta_fast), pair_of_turns(r, r.beta_slow)
  if r.truncate then low, high = math.floor(low), math.ceil(high) end
  low, high = math.max(low, 0), math.min(high, r.dims - 1)
  if low == high then high = high + 0.001 end
  local out = {}
  for i, f in ipairs(freq) do
    local ramp = f32(clamp((i - 1 - low) / (high - low), 0, 1))
    local slow = f32(1 / f32(r.factor * f32(1 / f)))
    out[i] = f32(f32(slow * ramp) + f32(f * f32(1 - ramp)))
  end
  return out, r.gain or (r.factor > 1 and 0.1 * math.log(r.factor) + 1 or 1)
end

-- The base has been chosen before (base_of).
scale.dynamic = scale.none

function scale.longrope(r, freq, what)
  local long = r.context > r.original
  local divisors, key = long and r.long or r.short, long and "long_factor" or "short_factor"
  if type(divisors) ~= "table" or #divisors ~= #freq then
    fault.raise("format", "%s: RoPE scaling longrope: %s has %d values for %d pairs", what, key,
      type(divisors) == "table" and #divisors or 0, #freq)
  end
  local out = {}
  for i, f in ipairs(freq) do
    local divisor = divisors[i]
    if math.type(divisor) == nil or not (divisor > 0 and divisor < 1e6) then
      fault.raise("format", "%s: RoPE scaling longrope: %s[%d] is %s", what, key, i,
        fault.quote(divisor))
    end
    out[i] = f32(f / f32(divisor))
  end
  local gain = r.factor > 1 and math.sqrt(1 + math.log(r.factor) / math.log(r.original)) or 1
  return out, r.gain or gain
end

local function base_of(r)
  if r.type ~= "dynamic" or r.context <= r.original then return r.base end
  return r.base * (r.factor * r.context / r.original - (r.factor - 1)) ^ (r.dims / (r.dims - 2))
end

local needs = {
  none = {}, linear = { "factor" }, dynamic = { "factor", "original", "context" },
  longrope = { "factor", "original", "context" }, llama3 = { "factor", "original", "low", "high" },
  yarn = { "factor", "original", "beta_fast", "beta_slow" },
}

--- Frequencies (radians per position, one for each pair of dimensions) and gain. Raises faults that
--- name `what`.
---@param r pyramid.Rope
---@param what string
---@return number[] freq
---@return number gain
function rope.compute(r, what)
  local need, names = needs[r.type], r.names or {}
  local function called(key) return names[key] or key end
  if not need then
    fault.raise("unsupported", "%s: %s: RoPE scaling '%s' (known: none, linear, dynamic, llama3, "
      .. "longrope, yarn)",
      what, called "type", fault.quote(r.type))
  end
  for _, key in ipairs(need) do
    local x = r[key]
    if math.type(x) == nil or not (x > 0 and x < 1e12) then
      fault.raise("format", "%s: RoPE scaling %s: %s is %s", what, r.type, called(key),
        x == nil and "missing" or fault.quote(x))
    end
  end
  if not (r.base > 1 and r.base < 1e12) then
    fault.raise("format", "%s: %s: RoPE base is %s", what, called "base", fault.quote(r.base))
  end
  if r.dims < 2 or r.dims % 2 ~= 0 or r.dims > 512 then
    fault.raise("format", "%s: %s: RoPE over %d dimensions", what, called "dims", r.dims)
  end
  if r.type == "llama3" and r.low >= r.high then
    fault.raise("format", "%s: RoPE scaling llama3: %s >= %s", what, called "low", called "high")
  end

  local freq, base = {}, base_of(r)
  for i = 0, r.dims // 2 - 1 do freq[i + 1] = f32(1 / f32(base ^ f32(2 * i / r.dims))) end
  local gain
  freq, gain = scale[r.type](r, freq, what)
  if r.factors then
    if #r.factors ~= #freq then
      fault.raise("format", "%s: %d RoPE factors for %d pairs", what, #r.factors, #freq)
    end
    for i, factor in ipairs(r.factors) do
      if not (factor > 0 and factor < 1e6) then
        fault.raise("format", "%s: RoPE factor %d is %s", what, i, fault.quote(factor))
      end
      freq[i] = f32(freq[i] / factor)
    end
  end
  return freq, gain or 1
end

--- What users should know of a table that was chosen by the context, or nil.
---@param r pyramid.Rope
---@param what string
---@return string?
function rope.advice(r, what)
  if r.type ~= "longrope" and r.type ~= "dynamic" or r.context <= r.original then return nil end
  return ("%s: RoPE scaling %s is that of texts beyond %d positions, as the model is opened for %d; "
    .. "for shorter ones open it with context = %d"):format(what, r.type, r.original, r.context,
      r.original)
end

--- Fills in frequencies and gains of a configuration's tables. Raises faults that name `what`.
---@param config pyramid.Config
---@param what string
function rope.finish(config, what)
  for _, key in ipairs { "rope", "rope_second" } do
    local r = config[key]
    if r and not r.freq then r.freq, r.gain = rope.compute(r, what) end
  end
end

--- Says which table turns each layer: "first", "second" or "none", of those with a window and of
--- the others.
---@param config pyramid.Config
---@param windowed string
---@param full string
function rope.turn(config, windowed, full)
  local turns = {}
  for i = 1, config.layers do
    turns[i] = config.window and config.window[i] > 0 and windowed or full
  end
  config.decoder.turns = turns
end

--- Layers with a window turn by a table of their own, which nothing scales.
---@param config pyramid.Config  with `rope` read
---@param base number
function rope.turn_windows_apart(config, base)
  rope.turn(config, "second", "first")
  config.rope_second = { type = "none", style = config.rope.style, dims = config.rope.dims,
    base = base, names = config.rope.names }
end

--- The rotary part of models that have none.
---@param config pyramid.Config
function rope.none(config)
  config.rope = { type = "none", style = "half", dims = 0, base = 1, freq = {}, gain = 1 }
  rope.turn(config, "none", "none")
end

return rope
