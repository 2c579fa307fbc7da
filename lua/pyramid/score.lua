--- Scores: immutable expressions over native signals, by which rows are ranked. The core compiles
--- an expression once a layer and runs it over all judged rows; no Lua runs per row.
---
---   score.attention { queries = 32, heads = "max" }:pool("max", 7) * score.value_norm()
---
--- A score prints as the expression that made it, and equals another of the same program; tables
--- and custom scores equal only themselves, so make them once, outside of a policy's functions.
--- Mistakes raise where the expression is built.
local core = require "pyramid.core"
local options = require "pyramid.options"
local token_classes = require "pyramid.token_classes"

local score = {}

---An expression over signals. Its operators take scores and numbers.
---@class pyramid.Score
---@operator add(pyramid.Score|number): pyramid.Score
---@operator sub(pyramid.Score|number): pyramid.Score
---@operator mul(pyramid.Score|number): pyramid.Score
---@operator div(pyramid.Score|number): pyramid.Score
---@operator unm: pyramid.Score
---@field package program string
local Score = {}
Score.__index = Score
Score.__name = "pyramid.score"
Score.__newindex = function() error("scores are immutable", 2) end
Score.__metatable = "pyramid.score"

-- The core's pyr_score_code and pyr_reduce, in order.
local codes = { attention = 0, history = 1, key_norm = 2, value_norm = 3, position = 4, random = 5,
  const = 6, add = 7, sub = 8, mul = 9, div = 10, pool = 11, normalize = 12, key_similarity = 13,
    expected = 14, lag = 15, output_norm = 16, table = 17, place = 18, softmax = 19, chunk = 20,
      top = 21, custom = 22, learned = 23, probed = 24, redundancy = 25, total = 26,
        map = 27, along = 28, centres = 29, tokens = 30 }
local reduces = { mean = 0, sum = 1, max = 2 }
local over_queries = { mean = 0, sum = 1, max = 2, variance = 3, entropy = 4 }
local maps = { log = 0, power = 1, above = 2 }
local pools = { avg = 0, average = 0, max = 1 }
local longest = 32
local texts, programs = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" })
-- what a score's program refers to: [number] = vector or { function, … }
local objects = setmetatable({}, { __mode = "k" })
local numbered = 0

local function op(code, a, b, n, x)
  return string.pack("<BBBxi4f", codes[code], a or 0, b or 0, n or 0, x or 0)
end

-- A score of this text and program; `parts` are the scores that it is made of.
local function new(text, program, parts)
  if #program > longest * 12 then
    error(("score: more than %d operations: %s"):format(longest, text), 3)
  end
  local self = setmetatable({}, Score)
  local mine
  for _, part in ipairs(parts or {}) do
    for number, object in pairs(objects[part] or {}) do
      mine = mine or {}
      mine[number] = object
    end
  end
  texts[self], programs[self], objects[self] = text, program, mine
  return self
end

-- A signal that refers to `object` by a number of its own.
local function refer(text, program, code, a, object, parts, b, x)
  numbered = numbered + 1
  local self = new(text:format(numbered), program .. op(code, a, b, numbered, x), parts)
  objects[self] = objects[self] or {}
  objects[self][numbered] = object
  return self
end

---Whether a value is a score.
---@param value any
---@return boolean
function score.is(value) return programs[value] ~= nil end

---Whether a score is one attention, history or learned signal and nothing else: what decode can
---track.
---@param value any
---@return boolean
function score.is_signal(value)
  local program = programs[value]
  if program == nil or #program ~= 12 then return false end
  return program:byte() <= codes.history or program:byte() == codes.learned
end

---The packed program of a score, for the core.
---@param value pyramid.Score
---@return string
function score.program(value) return programs[value] end

---How many of a prompt's last queries a score looks at (0: none, or no score); nil and why, where
---it needs more of the prompt than its rows and so many queries.
---@param value? pyramid.Score
---@return integer?
---@return string? why
function score.queries(value)
  local program, most = programs[value] or "", 0
  for at = 1, #program, 12 do
    local code, _, inputs, queries = string.unpack("<BBBxi4", program, at)
    if code == codes.attention and queries == 0 or code == codes.history
      or code == codes.expected then
      return nil, "it looks at all queries of the prompt"
    elseif code == codes.learned or code == codes.custom and inputs ~= 0 then
      return nil, "it looks at hidden states of the whole prompt"
    elseif code == codes.probed then
      return nil, "it looks at what a probe of the prompt found"
    elseif code == codes.attention then
      most = math.max(most, queries)
    end
  end
  return most
end

-- What score.tokens refers to until a model's tokenizer says which ids it means.
local TokenSet = { __name = "pyramid.tokens", __metatable = "pyramid.tokens" }

local function put(slots, number, object)
  if getmetatable(object) ~= "pyramid.tokens" then slots[number] = object
  elseif not slots[number] then
    slots[number] = slots.tokens(object)
    slots.sets = slots.sets or {}
    slots.sets[number] = object                   -- and with it its score
  end
end

---Keeps in `slots` what a plan's score refers to, for as long as it may be asked for: tables for
---good, custom scores until the same layer's plan is made anew. slots.tokens(set) makes a vector by
---id of what score.tokens refers to.
---@param slots table
---@param value pyramid.Score
---@param layer integer
---@param other? pyramid.Score  what the plan refers to besides
function score.anchor(slots, value, layer, other)
  slots.custom = slots.custom or {}
  for _, number in ipairs(slots.custom[layer] or {}) do slots[number] = nil end
  slots.custom[layer] = nil
  for number, object in pairs(other and objects[other] or {}) do put(slots, number, object) end
  for number, object in pairs(objects[value] or {}) do
    put(slots, number, object)
    if type(object) == "table" and getmetatable(object) ~= "pyramid.tokens" then
      slots.custom[layer] = slots.custom[layer] or {}
      table.insert(slots.custom[layer], number)
    end
  end
end

---Keeps in `slots` for good what a trigger's `track` refers to.
---@param slots table
---@param value? pyramid.Score
function score.hold(slots, value)
  for number, object in pairs(objects[value] or {}) do put(slots, number, object) end
end

-- ---- what ranks pages ---------------------------------------------------------------------------

---What ranks pages of rows, where steps read less than is held (a plan's `read`). It is no score of
---rows, and is not computed with.
---@class pyramid.Digest
local Digest = { __name = "pyramid.digest", __metatable = "pyramid.digest",
  __newindex = function() error("digests are immutable", 2) end }
Digest.__tostring = function(self) return rawget(self, 1) .. "()" end

-- The core's pyr_digest, in order.
local digests, digest_numbers = {}, {}
for number, name in ipairs { "bound", "ball", "mean", "signs" } do
  digests[name] = setmetatable({ name }, Digest)
  digest_numbers[digests[name]] = number
end

---The number of what ranks pages, for the core; nil if the value does not.
---@param value any
---@return integer?
function score.digest(value) return value ~= nil and digest_numbers[value] or nil end

---Pages by the most that the query can have with any of their keys, from the least and the highest
---of each channel: the sum over channels of max(q least, q highest). A page keeps two numbers a
---channel. Source: Quest, arXiv 2406.10774.
---@return pyramid.Digest
function score.bound() return digests.bound end

---Pages by the most that the query can have with any of their keys, from the mean of the keys and
---the distance of the farthest: q . mean + |q| distance. A page keeps a number a channel and one
---more. Source: ArkVale (NeurIPS 2024).
---@return pyramid.Digest
function score.ball() return digests.ball end

---Pages by what the query has with the mean of their keys. Source: InfLLM, arXiv 2402.04617, which
---has it beside representative rows.
---@return pyramid.Digest
function score.mean() return digests.mean end

---Pages by the most that the query is estimated to have with one of their keys: with the mean of
---the keys, and with what each key has beside it, by the signs of its channels. A page keeps the
---mean, and a bit a channel and a scale of each of its keys. Source: RaBitQ, arXiv 2405.12497.
---@return pyramid.Digest
function score.signs() return digests.signs end

local function choice(what, name, value, set, default)
  if value == nil then return set[default] end
  if not set[value] then
    local known = table.concat(options.sorted_keys(set), ", ")
    error(("%s: %s must be one of %s, not '%s'"):format(what, name, known, tostring(value)), 3)
  end
  return set[value]
end

local function finite(value)
  return type(value) == "number" and value == value and math.abs(value) < math.huge
end

---Attention mass that the last `queries` queries gave a row (0 or nil: every query), of those that
---reach the layer, weighted by a ramp that rises from 1 at the oldest to `ramp` at the newest.
---`reduce` is over queries, `heads` over the query heads that share a set: all of the layer's, or a
---KV head's group (see a plan's `share`). In decode, `queries` and `ramp` must be the trigger's.
---"variance" is over queries, divided by their number less one; "entropy" the mean over queries of
---what a row adds to the entropy of their attention, p ln (1 / p). Both have no ramp, and are known
---while a prompt is read only. Source: PyramidInfer, arXiv 2405.12532; SnapKV, arXiv 2404.14469;
---CAKE, arXiv 2503.12491.
---@param o? { queries?: integer, ramp?: number, reduce?: "mean"|"sum"|"max"|"variance"|"entropy", heads?: "mean"|"sum"|"max" }
---@return pyramid.Score
function score.attention(o)
  local _ <close> = core.plain_locale()
  o = options.check("score.attention", o, { queries = "integer", ramp = "number",
    reduce = "string", heads = "string" })
  local queries, ramp = o.queries or 0, o.ramp or 1
  if queries < 0 or queries > 0x7fffffff then
    error("score.attention: queries must be 0 (all) or more", 2)
  end
  if not finite(ramp) or ramp < 0 then
    error("score.attention: ramp must be a number of 0 or more", 2)
  end
  local reduce = choice("score.attention", "reduce", o.reduce, over_queries, "mean")
  if reduce > reduces.max and ramp ~= 1 then
    error("score.attention: a variance and an entropy have no ramp", 2)
  end
  local heads = choice("score.attention", "heads", o.heads, reduces, "mean")
  local text = ("attention{queries=%d, ramp=%g, reduce=%s, heads=%s}"):format(queries, ramp,
    o.reduce or "mean", o.heads or "mean")
  return new(text, op("attention", reduce, heads, queries, ramp))
end

---Attention that every query so far gave a row, in prefill and in decode; each decode step first
---multiplies what has been gathered by `decay`, which in decode, and where earlier prompts left
---history, must be the trigger's. Over earlier prompts `heads = "max"` needs as many KV heads as
---heads: what is tracked is the mean over a KV head's query heads. Source: H2O, arXiv 2306.14048;
---Scissorhands, arXiv 2305.17118.
---@param o? { decay?: number, heads?: "mean"|"sum"|"max" }
---@return pyramid.Score
function score.history(o)
  local _ <close> = core.plain_locale()
  o = options.check("score.history", o, { decay = "number", heads = "string" })
  local decay = o.decay or 1
  if not (decay >= 0 and decay <= 1) then error("score.history: decay must lie in [0, 1]", 2) end
  return new(("history{decay=%g, heads=%s}"):format(decay, o.heads or "mean"),
    op("history", 0, choice("score.history", "heads", o.heads, reduces, "mean"), 0, decay))
end

local function norm(name, o)
  o = options.check("score." .. name, o, { power = "integer" })
  if o.power ~= nil and o.power ~= 1 and o.power ~= 2 then
    error(("score.%s: power must be 1 or 2"):format(name), 3)
  end
  local absolute = o.power == 1
  return new(name .. (absolute and "{power=1}" or "()"), op(name, absolute and 1 or 0))
end

---The length of a row's key (after RoPE, which does not change it); `power = 1`: the sum of its
---absolute values, which RoPE does change.
---@param o? { power?: 1|2 }
---@return pyramid.Score
function score.key_norm(o) return norm("key_norm", o) end

---The length of a row's value; `power = 1`: the sum of its absolute values.
---@param o? { power?: 1|2 }
---@return pyramid.Score
function score.value_norm(o) return norm("value_norm", o) end

---A row's original position: the newest rank highest.
---@return pyramid.Score
function score.position() return new("position()", op("position")) end

---Uniform in [0, 1), the same for the same seed, layer and position.
---@param seed? integer
---@return pyramid.Score
function score.random(seed)
  seed = options.whole(seed or 0)
  if math.type(seed) ~= "integer" or seed < -0x80000000 or seed > 0x7fffffff then
    error("score.random: the seed must be a 32-bit integer", 2)
  end
  return new(("random(%d)"):format(seed), op("random", 0, 0, seed))
end

---The same number for every row.
---@param value number
---@return pyramid.Score
function score.const(value)
  local _ <close> = core.plain_locale()
  if not finite(value) then error("score.const: a finite number is wanted", 2) end
  return new(("%.9g"):format(value), op("const", 0, 0, 0, value))
end

---How alike a row's key is to the others: the cosine of the key to the mean of the judged rows'
---keys, each first made of length 1 (rows that are guarded have no part in the mean). KeyDiff
---(arXiv 2504.15364) keeps the least alike.
---@return pyramid.Score
function score.key_similarity() return new("key_similarity()", op("key_similarity")) end

---How like the other keys of its lane a row's key is: the mean of their cosines, as a softmax over
---all rows of the lane, guarded ones too. Of rows whose cosine is above `threshold` (0.5) the last
---one stands for the others: for each row, what it shares with the last one like it is not counted
---as that one's redundancy. (The authors' code takes, where a row is like none, the first row of
---all for its last one; this does not.) At most rows * rows * head_dim products. Source: R-KV,
---arXiv 2505.24133, which ranks by attention less this.
---@param o? { threshold?: number }
---@return pyramid.Score
function score.redundancy(o)
  local _ <close> = core.plain_locale()
  o = options.check("score.redundancy", o, { threshold = "number" })
  local threshold = o.threshold or 0.5
  if not finite(threshold) then error("score.redundancy: threshold must be a finite number", 2) end
  return new(("redundancy{threshold=%g}"):format(threshold), op("redundancy", 0, 0, 0, threshold))
end

---The length (L1) of what a row's value adds to the residual stream, W_o v, mean over the query
---heads that read it. Source: CriticalKV, arXiv 2502.03805.
---@return pyramid.Score
function score.output_norm() return new("output_norm()", op("output_norm")) end

---What the last probe tracked of a row: that of a policy's preparing passes, in its prefill plans,
---or cache:probe's, in cache:evict and cache:scores. Rows that it did not judge have 0. Source:
---KVzip, arXiv 2505.23416.
---@return pyramid.Score
function score.probed() return new("probed()", op("probed")) end

---0 for the first judged row, 1 for the last, evenly between.
---@return pyramid.Score
function score.place() return new("place()", op("place")) end

local function whole(value, low, high)
  return math.type(value) == "integer" and value >= low and value <= high
end

---Attention that queries at the next `future` positions are expected to give a row: the prompt's
---queries without the first `sinks` are taken for Gaussian, with their mean and, unless
---`covariance` is false, their covariance, and turned by the mean of RoPE's rotations to those
---positions; softmax over the judged rows, for each query head. Where a model caps its scores, adds
---slopes (ALiBi) or has attention sinks, these are not looked at. Prefill plans only. Source:
---Expected Attention, arXiv 2510.00636, which ranks by `(score.expected() + epsilon) *
---score.value_norm()`.
---@param o? { future?: integer, sinks?: integer, covariance?: boolean, heads?: "mean"|"sum"|"max" }
---@return pyramid.Score
function score.expected(o)
  o = options.check("score.expected", o, { future = "integer", sinks = "integer",
    covariance = "boolean", heads = "string" })
  local future, sinks, covariance = o.future or 512, o.sinks or 4, o.covariance ~= false
  if not whole(future, 1, 1 << 16) then
    error("score.expected: future must be from 1 to 65536", 2)
  end
  if not whole(sinks, 0, 1 << 24) then error("score.expected: sinks must be from 0 to 2^24", 2) end
  local heads = choice("score.expected", "heads", o.heads, reduces, "mean")
  local text = ("expected{future=%d, sinks=%d, covariance=%s, heads=%s}"):format(future, sinks,
    covariance, o.heads or "mean")
  return new(text, op("expected", covariance and 1 or 0, heads, future, sinks))
end

---How a row stands out against the next `lag` rows. Rows are cut into runs of `lag` from the first
---judged one on; each channel of K and V is brought to the range that it has in the run behind; the
---spread over channels goes through a softmax in the run, K and V are averaged, and (`ranked`, the
---default) a row's rank in its run, from 0 to below 1, is its score. Rows without a whole run
---behind theirs have 1. Source: LagKV, arXiv 2504.04704.
---@param o? { lag?: integer, ranked?: boolean }
---@return pyramid.Score
function score.lag(o)
  o = options.check("score.lag", o, { lag = "integer", ranked = "boolean" })
  local lag, ranked = o.lag or 128, o.ranked ~= false
  if not whole(lag, 1, 1 << 24) then error("score.lag: lag must be from 1 to 2^24", 2) end
  return new(("lag{lag=%d, ranked=%s}"):format(lag, ranked), op("lag", ranked and 1 or 0, 0, lag))
end

---Numbers from Lua: `{ by = "position", … }` has one for each original position, from 0; `{ by =
---"head", { … }, … }` has [layer][KV head]. A vector (pyramid.vector) does as well, or a matrix
---with [layer][head]. Rows beyond it get 0. The numbers are copied here, once; later changes of the
---table are not seen.
---@param t table|pyramid.Vector
---@return pyramid.Score
function score.table(t)
  local by, values = "position", t
  if type(t) == "table" then
    by, values = t.by or by, {}
    for i, value in ipairs(t) do values[i] = value end
    for key in pairs(t) do
      if key ~= "by" and not whole(key, 1, #values) then
        error(("score.table: '%s' is no place of a sequence"):format(tostring(key)), 2)
      end
    end
    if by ~= "position" and by ~= "head" then
      error('score.table: by must be "position" or "head"', 2)
    end
    if (by == "head") ~= (type(values[1]) == "table") then
      error('score.table: by = "head" wants a table for each layer, by = "position" numbers', 2)
    end
    local ok, made = pcall(core.vector, values)
    if not ok then error("score.table: " .. tostring(made), 2) end
    values = made
  elseif getmetatable(t) == "pyramid.vector" then
    by = t:columns() > 0 and "head" or by
    values = t:slice(1)
  else
    error(("score.table: a table or a vector is wanted, not a %s"):format(type(t)), 2)
  end
  return refer(("table#%%d{by=%s}"):format(by), "", "table", 0, values)
end

-- What score.tokens has been asked for: a policy's functions may ask again and again, and get the
-- same score for as long as a cache has it.
local token_scores = setmetatable({}, { __mode = "v" })

---1 for rows whose token is one of these, 0 for others: ids, and classes of them that the model's
---tokenizer tells. "separators": one of . , ? ! ; : or white space alone, with spaces around it or
---not (SepLLM, arXiv 2412.12094); "digits": digits alone, with spaces around; "specials": what the
---model was given beside text, such as <s>; "symbols": no letter, digit, separator or special among
---it, as brackets and operators are. Rows read as embeddings are of no class, nor is any row of a
---model without a tokenizer. `{ digits = 1, separators = -0.5 }`: other numbers than 1, by class.
---Cheap, in decode, too.
---@param which (integer|"separators"|"digits"|"specials"|"symbols")[]|table<string, number>|string
---@return pyramid.Score
function score.tokens(which)
  local _ <close> = core.plain_locale()
  local weights, classes, ids = {}, {}, {}
  for key, value in pairs(type(which) == "table" and which or { which }) do
    local weight, one = 1, value
    if type(key) == "string" then one, weight = key, value end
    if type(one) == "string" then choice("score.tokens", "a class", one, token_classes.known)
    else one = options.whole(one) end
    if type(one) ~= "string" and not whole(one, 0, (1 << 20) - 1) then
      error(("score.tokens: an id below 2^20 or a class is wanted, not %s"):format(tostring(value)),
        2)
    end
    if not finite(weight) then
      error(("score.tokens: %s counts a finite number, not %s"):format(one, tostring(weight)), 2)
    end
    if not weights[one] then table.insert(type(one) == "string" and classes or ids, one) end
    weights[one] = weight
  end
  table.sort(classes)
  table.sort(ids)
  local said = {}
  for i, one in ipairs(table.move(ids, 1, #ids, #classes + 1, classes)) do
    said[i] = weights[one] == 1 and tostring(one) or ("%s=%.9g"):format(one, weights[one])
  end
  local text = table.concat(said, ", ")
  if text == "" then error("score.tokens: which? (ids, or classes of them)", 2) end
  local made = token_scores[text]
  if not made then
    local set = setmetatable({ weights = weights, key = text }, TokenSet)
    made = refer("tokens#%d{" .. text .. "}", "", "tokens", 0, set)
    set.score, token_scores[text] = made, made
  end
  return made
end

---What another cache's rows say of the same positions: the mean over its layers and heads, or of
---one `layer` or `head`, of `expression`, as a table by position (see cache:scores, which says what
---the expression may hold; left out, it is what the cache's policy tracks). With a small model's
---cache that was read under the policy "guide", a large model keeps what the small one's last
---queries looked at.
---@param cache pyramid.Cache
---@param expression? pyramid.Score
---@param o? { layer?: integer, head?: integer }
---@return pyramid.Score
function score.from(cache, expression, o)
  local values, message = cache:scores(expression, o)
  if not values then error("score.from: " .. message, 2) end
  return score.table(values)
end

---A score by a function, for what the algebra lacks: fn(lane) returns one number for each judged
---row, as a vector or a sequence. lane holds layer, head, rows (how many), positions, keys and
---values (matrices of rows x head_dim), and the vector of each score in `inputs` by its name:
---`score.custom(f, { seen = score.attention { queries = 32 } })` gives lane.seen. All of them end
---with the call. Where heads share one set, fn is asked for each KV head, inputs are the set's, and
---the mean of what it returns ranks. Runs once a layer and head, in prefill plans only; what it
---raises ends the prefill. Vectors are in pyramid.vector. With `hidden = true` the lane also has
---`hidden`, a matrix of rows x width: what the layer's q, k and v of each row were made of, normed.
---Only the prompt's own rows have it, so earlier ones are then guarded. With `queries = true` it
---has `queries` and `turned`, likewise, matrices of rows x (query heads of the lane * head_dim):
---the rows' own queries as they were before RoPE, and as RoPE turned them.
---@param fn fun(lane: pyramid.Lane): pyramid.Vector|number[]
---@param inputs? table<string, pyramid.Score>
---@param o? { hidden?: boolean, queries?: boolean }
---@return pyramid.Score
function score.custom(fn, inputs, o)
  o = options.check("score.custom", o, { hidden = "boolean", queries = "boolean" })
  if type(fn) ~= "function" then
    error(("score.custom: a function is wanted, not a %s"):format(type(fn)), 2)
  end
  inputs = inputs or {}
  if type(inputs) ~= "table" then error("score.custom: inputs are a table of scores by name", 2) end
  local reserved = { layer = true, head = true, rows = true, positions = true, keys = true,
    values = true, hidden = true, queries = true, turned = true }
  local object, parts, said, program = { fn }, {}, {}, ""
  for name, value in pairs(inputs) do
    if type(name) ~= "string" or not score.is(value) then
      error("score.custom: inputs are scores by name", 2)
    end
    if reserved[name] then
      error(("score.custom: '%s' is a field of every lane"):format(name), 2)
    end
  end
  for i, name in ipairs(options.sorted_keys(inputs)) do
    object[i + 1], parts[i], said[i] = name, inputs[name], name .. "=" .. texts[inputs[name]]
    program = program .. programs[inputs[name]]
  end
  return refer("custom#%d" .. ("{" .. table.concat(said, ", ") .. "}"):gsub("%%", "%%%%"), program,
    "custom", #parts, object, parts, (o.hidden and 1 or 0) + (o.queries and 2 or 0))
end

---A learned map of what a layer read: of a row's normed hidden state x, as q, k and v are made of
---it, `w . x + b`, with w and b of the layer and KV head; the mean where heads share a set. Such a
---map comes near what a second reading of the prompt says of each row (KVzap, arXiv 2601.07891).
---`map` is a matrix (pyramid.vector) of layers * KV heads rows, layer after layer, and width + 1
---columns, the last of which is b. In prefill, and of the prompt's own rows: those of earlier
---prompts are guarded. Where the trigger tracks it (`track`), rows are given it when they are made,
---generated ones too, and decode, later prompts and cache:evict rank all of them by it.
---@param map pyramid.Vector
---@return pyramid.Score
function score.learned(map)
  if getmetatable(map) ~= "pyramid.vector" or map:columns() < 2 then
    error("score.learned: a matrix of (layers * KV heads) x (width + 1) numbers is wanted", 2)
  end
  return refer("learned#%d", "", "learned", 0, map)
end

---How far a row's key goes along a vector of its layer and KV head; the mean where heads share a
---set. `map` is a matrix (pyramid.vector) of layers * KV heads rows, layer after layer, and
---head_dim columns. Source: Q-Filters (arXiv 2503.02812), whose vectors are the main direction of
---a head's queries.
---@param map pyramid.Vector
---@return pyramid.Score
function score.along(map)
  if getmetatable(map) ~= "pyramid.vector" or map:columns() < 2 then
    error("score.along: a matrix of (layers * KV heads) x head_dim numbers is wanted", 2)
  end
  return refer("along#%d", "", "along", 0, map)
end

---What a query in the middle of its head's queries would give a row, from the distances 1, 2, 4, …
---up to `far` (65536) on, without softmax: RoPE turns the middle to where such a query would stand,
---and a sum of cosines over pairs says which distances it prefers. And what lies around the middle:
---for each pair the mean length of queries there, less the length of their mean, times the length
---of the key's. For each query head less the mean over the judged rows and divided by their
---deviation; then `heads` ("max") over the query heads that share a set. `map` is a matrix
---(pyramid.vector) of
---layers * heads rows and head_dim + head_dim / 2 columns: the mean query before RoPE, and the mean
---length of each pair of it (0 where RoPE turns fewer). In a layer without RoPE only the mean
---counts. Source: TriAttention, arXiv 2604.04921.
---@param map pyramid.Vector
---@param o? { far?: integer, heads?: "mean"|"sum"|"max" }
---@return pyramid.Score
function score.centres(map, o)
  o = options.check("score.centres", o, { far = "integer", heads = "string" })
  if getmetatable(map) ~= "pyramid.vector" or map:columns() < 3 then
    error("score.centres: a matrix of (layers * heads) x (1.5 head_dim) numbers is wanted", 2)
  end
  local far = o.far or 65536
  if not whole(far, 1, 1 << 24) then error("score.centres: far must be from 1 to 2^24", 2) end
  local heads = choice("score.centres", "heads", o.heads, reduces, "max")
  return refer(("centres#%%d{far=%d, heads=%s}"):format(far, o.heads or "max"), "", "centres", 0,
    map, nil, heads, far)
end

local function operand(value)
  if score.is(value) then return value end
  if finite(value) then return score.const(value) end
  error(("score: cannot combine with a %s (%s)"):format(type(value), tostring(value)), 3)
end

local function binary(code, sign)
  return function(a, b)
    a, b = operand(a), operand(b)
    return new(("(%s %s %s)"):format(texts[a], sign, texts[b]),
      programs[a] .. programs[b] .. op(code), { a, b })
  end
end

Score.__add, Score.__sub = binary("add", "+"), binary("sub", "-")
Score.__mul, Score.__div = binary("mul", "*"), binary("div", "/")
Score.__unm = function(a) return score.const(0) - a end
Score.__eq = function(a, b) return programs[a] == programs[b] end
Score.__tostring = function(a) return texts[a] end

---Average ("avg") or maximum ("max") over a centred window of odd width among the judged rows.
---@param kind "avg"|"max"
---@param width integer
---@return pyramid.Score
function Score:pool(kind, width)
  local how = choice("score:pool", "kind", kind, pools)
  if not how then error("score:pool: kind must be \"avg\" or \"max\"", 2) end
  width = options.whole(width)
  if math.type(width) ~= "integer" or width < 1 or width % 2 == 0 or width > 0x7fffffff then
    error(("score:pool: width must be an odd positive integer, not %s"):format(tostring(width)), 2)
  end
  return new(("%s:pool(%s, %d)"):format(texts[self], kind, width),
    programs[self] .. op("pool", how, 0, width), { self })
end

local function transformed(self, said, ...)
  return new(texts[self] .. said, programs[self] .. op(...), { self })
end

---Divided by the sum over the judged rows.
---@return pyramid.Score
function Score:normalize() return transformed(self, ":normalize()", "normalize") end

---exp of it, divided by the sum of that over the judged rows.
---@return pyramid.Score
function Score:softmax() return transformed(self, ":softmax()", "softmax") end

---The sum over the judged rows, for each of them: a number that tells of the whole, as how much
---attention they hold together.
---@return pyramid.Score
function Score:sum() return transformed(self, ":sum()", "total", 0) end

---The highest of the judged rows, for each of them.
---@return pyramid.Score
function Score:max() return transformed(self, ":max()", "total", 1) end

---The natural logarithm; of what is below 2^-126, zero and less among it, that of 2^-126.
---@return pyramid.Score
function Score:log() return transformed(self, ":log()", "map", maps.log) end

---To a power above 0; what is not above 0 becomes 0.
---@param exponent number
---@return pyramid.Score
function Score:power(exponent)
  local _ <close> = core.plain_locale()
  if not finite(exponent) or exponent <= 0 then
    error(("score:power: a number above 0 is wanted, not %s"):format(tostring(exponent)), 2)
  end
  return transformed(self, (":power(%.9g)"):format(exponent), "map", maps.power, 0, 0, exponent)
end

---1 where it is above a number, else 0. Under `mass = 1` a plan then keeps the rows above a
---threshold, however many they are: what counts 0 holds nothing of the sum.
---@param limit number
---@return pyramid.Score
function Score:above(limit)
  local _ <close> = core.plain_locale()
  if not finite(limit) then
    error(("score:above: a finite number is wanted, not %s"):format(tostring(limit)), 2)
  end
  return transformed(self, (":above(%.9g)"):format(limit), "map", maps.above, 0, 0, limit)
end

---The mean over each run of `rows` consecutive judged rows, so that runs live or die whole but for
---the one at the limit (ties go to the lower row). Runs are counted from the first judged row; the
---last one may be shorter, and has its own mean. Source: ChunkKV, arXiv 2502.00299.
---@param rows integer
---@return pyramid.Score
function Score:chunk(rows)
  if not whole(rows, 1, 1 << 24) then
    error(("score:chunk: a positive integer is wanted, not %s"):format(tostring(rows)), 2)
  end
  return transformed(self, (":chunk(%d)"):format(rows), "chunk", 0, 0, rows)
end

---1 for the `rows` judged rows that are highest by it, 0 for the others. As a mask, multiply:
---`a:top(n) * b`, with b above 0, ranks by b the n rows that are highest by a, and all others below
---them. `a:top(n) * 1e9 + b` takes n by a and the rest by b, for plans that keep n rows or more: a
---sum this large loses b among the rows marked 1, as scores are f32, whose steps are 64 at 1e9.
---@param rows integer
---@return pyramid.Score
function Score:top(rows)
  if not whole(rows, 0, 0x7fffffff) then
    error(("score:top: an integer of 0 or more is wanted, not %s"):format(tostring(rows)), 2)
  end
  return transformed(self, (":top(%d)"):format(rows), "top", 0, 0, rows)
end

---Weighted by a ramp along the judged rows: `from` at the first, `to` at the last.
---@param from number
---@param to number
---@return pyramid.Score
function Score:ramp(from, to)
  local _ <close> = core.plain_locale()
  if not finite(from) or not finite(to) then
    error("score:ramp: two finite numbers are wanted", 2)
  end
  return self * (score.place() * (to - from) + from)
end

return score
