--- What a cache does under a policy, in plain Lua and with made-up numbers: the plan semantics once
--- more, apart from the core, slow and readable. Part of pyramid.testing, whose `run` describes
--- what goes in and what comes out.
---
--- Where the core tracks attention by due dates, in one number a row, this remembers every query:
--- what it gave to each row it saw (a lane's list grows in place and is replaced when rows leave,
--- so that a query refers to a list and a count). A score then is a sum over the queries that count
--- when the row is judged.
local plans = require "pyramid.testing.plans"
local scores = require "pyramid.testing.scores"

local simulation = {}

---@class pyramid.testing.Run  answers like a cache; run[layer][head] lists positions, from 0
---@field prefill table        the same, as it was when the prompt had been read
---@field config table
---@field policy pyramid.Policy
---@field fired { step: integer, layer: integer }[]  when decode plans ran
local Run = {}
Run.__index = Run
Run.__name = "pyramid.testing.run"

---Rows that a lane holds; of head 1, unless said.
---@param layer integer
---@param head? integer
---@return integer
function Run:rows(layer, head) return #self[layer][head or 1] end

---The positions of a lane's rows, from 0; of head 1, unless said.
---@param layer integer
---@param head? integer
---@return integer[]
function Run:positions(layer, head) return self[layer][head or 1] end

---Tokens seen.
---@return integer
function Run:tokens() return self.seen end

---Token-layers computed.
---@return integer
function Run:computed() return self.work end

---Rows dropped or never stored, over all lanes.
---@return integer
function Run:evicted()
  local held = 0
  for _, layer in ipairs(self) do
    for _, lane in ipairs(layer) do held = held + #lane end
  end
  return self.config.layers * self.config.kv_heads * self.seen - held
end

---Rows held of those a full cache would hold.
---@return number
function Run:fraction()
  return 1 - self:evicted() / (self.config.layers * self.config.kv_heads * self.seen)
end

local CLASSES = { "separators", "separators", "digits", "symbols", "specials" }

---Made-up tokens: of three positions one, about, is of a class.
---@param noise fun(...: integer): number
---@return fun(position: integer): string?
function simulation.tokens(noise)
  return function(position)
    return CLASSES[math.floor(1500 / noise(11, position)) % 1500 // 100 + 1]
  end
end

---Whether a value is a run.
---@param value any
---@return boolean
function simulation.is_run(value) return getmetatable(value) == Run end

-- ---- what queries gave to rows ------------------------------------------------------------------

-- The query heads of a KV head: from, to.
local function heads_of(config, kv_head)
  local group = config.heads // config.kv_heads
  return (kv_head - 1) * group + 1, kv_head * group
end

-- What a cache's rows are at a query, where they are no longer as they were read.
local function held_of(layer, kv_head, record)
  return { merged = layer.merged[kv_head], compact = record.compact }
end

-- What a query head gave to each row it saw, by position; with what it gave to none the shares add
-- up to 1.
local function shares(self, layer, record, head)
  if record.shares[head] then return record.shares[head] end
  local kv_head = (head - 1) * self.run.config.kv_heads // self.run.config.heads + 1
  local seen = table.move(record.lanes[kv_head], 1, record.counts[kv_head], 1, {})
  local weights, sum, found = nil, 0.0, {}
  if self.given.attend then
    local none
    weights, none = self.given.attend(layer.index, head, record.query, seen,
      held_of(layer, kv_head, record))
    sum = none or sum
  end
  for i, position in ipairs(seen) do
    local weight = weights and weights[i] or not weights
      and self.given.attention(layer.index, head, record.query, position)
    if type(weight) ~= "number" or weight < 0 then
      error(("testing.run: attention at layer %d, head %d, query %d, position %d is %s, not a "
        .. "number of 0 or more")
        :format(layer.index, head, record.query, position, tostring(weight)), 0)
    end
    found[position], sum = weight, sum + weight
  end
  for position, weight in pairs(found) do found[position] = sum > 0 and weight / sum or 0.0 end
  record.shares[head] = found
  return found
end

-- Remembers that the query at `position` saw the first `count` rows of each lane. What it gave them
-- is worked out when a score asks; a source that must be asked in order (attend) is asked now.
local function remember(self, layer, position)
  local config = self.run.config
  local record = { query = position, step = self.step, lanes = {}, counts = {}, shares = {},
    compact = layer.compact }
  for head, lane in ipairs(self.run[layer.index]) do
    local count = #lane
    while count > 0 and lane[count] > position do count = count - 1 end
    record.lanes[head], record.counts[head] = lane, count
  end
  if self.given.attend then
    for head = 1, config.heads do shares(self, layer, record, head) end
  end
  layer.queries[#layer.queries + 1] = record
end

local function reduce(list, how)
  local x = list[1]
  for i = 2, #list do x = how == 2 and math.max(x, list[i]) or how ~= 2 and x + list[i] or x end
  return how == 0 and x / #list or x
end

-- The weight of a query at position q among the last n up to `newest`: a ramp from 1 to x; 0 if it
-- is older. n = 0: all are alike.
local function weight_of(q, n, newest, x)
  if n == 0 then return 1.0 end
  local i = q - (newest - n + 1)
  if i < 0 then return 0.0 end
  return n == 1 and 1.0 or 1 + (x - 1) * i / (n - 1)
end

-- ---- signals ------------------------------------------------------------------------------------

-- What the queries from the `first` on gave to each of `rows` under a query head. weigh(record):
-- how much one counts; join(a, b): a with b added.
local function gather(self, layer, head, rows, first, weigh, join)
  local out = {}
  for i = 1, #rows do out[i] = 0.0 end
  for at = first, #layer.queries do
    local record = layer.queries[at]
    local w = weigh(record)
    if w > 0 then
      local given = shares(self, layer, record, head)
      for i, position in ipairs(rows) do out[i] = join(out[i], w * (given[position] or 0)) end
    end
  end
  return out
end

local function plus(a, b) return a + b end
local function plus_square(a, b) return a + b * b end
local function plus_entropy(a, b) return b > 0 and a - b * math.log(b) or a end

-- Lists of one length, reduced to one by `how`.
local function across(lists, how)
  local out = {}
  for i = 1, #lists[1] do
    local values = {}
    for j, list in ipairs(lists) do values[j] = list[i] end
    out[i] = reduce(values, how)
  end
  return out
end

-- One list for each query head of the group's lanes; reduced to one by `how`.
local function over_heads(self, lanes, how, list_of)
  local lists = {}
  for _, lane in ipairs(lanes) do
    local from, to = heads_of(self.run.config, lane.head)
    for head = from, to do lists[#lists + 1] = list_of(head, lane.rows) end
  end
  return across(lists, how)
end

-- What lanes have tracked is the mean over their query heads, or the highest; reduced over the
-- lanes.
local function over_lanes(self, lanes, how, list_of, max)
  local each = {}
  for j, lane in ipairs(lanes) do each[j] = over_heads(self, { lane }, max and 2 or 0, list_of) end
  return across(each, how)
end

local function divide(list, by)
  for i, x in ipairs(list) do list[i] = x / by end
  return list
end

-- Attention of the last n of the prompt's queries that reached the layer, or of all. History, where
-- the trigger does not track it: the sum over all of them.
local function prompt_attention(self, layer, lanes, op, history)
  local alive = #layer.queries - layer.first_query + 1
  local n = history and 0 or math.min(op.n, alive)
  local first = n > 0 and #layer.queries - n + 1 or layer.first_query
  local places = {}
  for at = first, #layer.queries do places[layer.queries[at]] = at end
  local function weigh(record) return weight_of(places[record], n, #layer.queries, op.x) end
  local function given(head, rows, join)
    return gather(self, layer, head, rows, first, weigh, join)
  end
  local found = over_heads(self, lanes, op.b, function(head, rows)
    if op.a == 3 and not history then
      local sums, squares = given(head, rows, plus), given(head, rows, plus_square)
      for i, sum in ipairs(sums) do
        local queries = n > 0 and n or alive
        sums[i] = queries > 1 and (squares[i] - sum * sum / queries) / (queries - 1) or 0.0
      end
      return sums
    end
    return given(head, rows, history and plus or op.a == 4 and plus_entropy
      or op.a == 2 and math.max or plus)
  end)
  if op.a ~= 0 and op.a ~= 4 or history then return found end
  return divide(found, n > 0 and n or alive)
end

-- History: every query so far, each decode step dimming what came before it.
local function tracked_history(self, layer, lanes, op)
  local decay = layer.trigger.track.x
  local function weigh(record) return decay ^ (self.step - record.step) end
  return over_lanes(self, lanes, op.b, function(head, rows) return gather(self, layer, head, rows,
    1, weigh, plus) end)
end

-- Attention of the last n queries in decode; where rows are judged at each firing, only of those
-- since the last. Which of the prompt's queries will count is settled when the prompt has been
-- read, by when the trigger is then due; where rows are judged once, those that the first firing
-- leaves in the window by when the next is, and so on.
local function tracked_attention(self, layer, lanes, op)
  local track, newest = layer.trigger.track, layer.queries[#layer.queries].query
  local function weigh(record)
    return weight_of(record.query, track.queries,
      record.query < layer.read and layer.due or newest, track.x)
  end
  local found = over_lanes(self, lanes, op.b, function(head, rows)
    return gather(self, layer, head, rows, layer.first_query, weigh, track.max and math.max or plus)
  end, track.max)
  if op.a ~= 0 or track.queries == 0 then return found end
  return divide(found, track.queries)
end

local function group_of(self, layer, lanes, reading, objects)
  local rows = lanes[1].rows
  local function attention(op)
    if reading then return prompt_attention(self, layer, lanes, op) end
    return tracked_attention(self, layer, lanes, op)
  end
  local function history(op)
    local tracks = layer.trigger and layer.trigger.track and layer.trigger.track.history
    local means = op.b == 2 and self.run.config.heads ~= self.run.config.kv_heads
    if reading and not (tracks and not means) then
      return prompt_attention(self, layer, lanes, op, true)
    end
    return tracked_history(self, layer, lanes, op)
  end
  local config = self.run.config
  local function merged(head, position)
    return layer.merged[head] and layer.merged[head][position]
  end
  local function key(head, position)
    return (merged(head, position) or {}).key or self.given.keys(layer.index, head, position)
  end
  local function value(head, position)
    return (merged(head, position) or {}).value or self.given.values(layer.index, head, position)
  end
  local function queries()
    local out = {}
    for at = layer.first_query, #layer.queries do out[#out + 1] = layer.queries[at].query end
    return out
  end
  return { policy = self.run.policy.name, layer = layer.index, lanes = lanes, rows = rows,
    attention = attention, history = history, key = key, value = value, compact = layer.compact,
      held = self.run[layer.index], objects = objects or {},
        each = config.heads // config.kv_heads, queries = queries, next = layer.read,
          outputs = self.given.outputs, expected = self.given.expected,
            probed = self.given.probed, tokens = self.given.tokens, reduce = reduce }
end

-- ---- selection ----------------------------------------------------------------------------------

-- Averages losers of a lane into those of `kept` whose keys are most similar to theirs.
local function merge(self, layer, head, kept, threshold)
  if layer.compact then plans.not_simulated "merging where keys are rotated to their places" end
  local all, stays, sums = self.run[layer.index][head], {}, {}
  local group = group_of(self, layer, { { head = head, rows = all } }, false)
  for _, position in ipairs(kept) do stays[position] = true end
  for _, position in ipairs(all) do
    local target = not stays[position] and scores.most_similar(group, head, position, kept,
      threshold)
    if target then
      sums[target] = sums[target] or { group.key(head, target), group.value(head, target), 1 }
      local sum = sums[target]
      sum[1], sum[2] = scores.plus(sum[1], group.key(head, position)),
        scores.plus(sum[2], group.value(head, position))
      sum[3] = sum[3] + 1
    end
  end
  local now = {}
  for _, position in ipairs(kept) do
    local sum = sums[position]
    now[position] = sum and { key = scores.times(sum[1], 1 / sum[3]),
      value = scores.times(sum[2], 1 / sum[3]) }
      or layer.merged[head] and layer.merged[head][position]
  end
  layer.merged[head] = now
end

-- The scores of the judged rows of lanes that are ranked together.
local function ranked(self, layer, plan, lanes, splits, reading)
  local group = {}
  for at, head in ipairs(lanes) do
    local all, split = self.run[layer.index][head], splits[head]
    group[at] = { head = head, first = split.first,
      rows = table.move(all, split.first + 1, split.first + split.judged, 1, {}) }
  end
  local split = splits[lanes[1]]
  if self.given.scores and split.judged > 0 then
    local found = scores.evaluate(plan.program, group_of(self, layer, group, reading, plan.objects))
    return found or error((
      "policy %s, layer %d, %s: score is NaN or infinite at some row: only numbers rank"):format(
      self.asker.policy.name, layer.index, (reading or plan.before) and "prefill" or "decode"), 0)
  end
  if plans.is_open(plan) then
    plans.not_simulated "how many rows stay by scores that are not worked out"
  end
  local alike = {}
  for i = 1, split.judged do alike[i] = 0.0 end
  return alike
end

-- What stays of a lane that is split so: guarded rows, the places chosen of the judged, guarded
-- rows; nil where all do.
local function kept_of(all, split, places)
  local out = table.move(all, 1, split.first, 1, {})
  for _, place in ipairs(places) do out[#out + 1] = all[split.first + place] end
  table.move(all, #all - split.last + 1, #all, #out + 1, out)
  return #out < #all and out or nil
end

-- The survivors of each lane, ascending. A lane that loses nothing is the same list as before.
local function select(self, layer, plan, reading)
  local lanes, counts, kept = self.run[layer.index], {}, {}
  for head, lane in ipairs(lanes) do counts[head], kept[head] = #lane, lane end
  if not plans.needed(plan, counts) then return kept end
  local groups, splits = {}, {}
  local together = plan.share == "layer" and plans.equal(counts)
  for head, rows in ipairs(counts) do
    splits[head] = plans.split(plan, rows, head)
    if together and head > 1 then
      table.insert(groups[1], head)
    else
      groups[#groups + 1] = { head }
    end
  end
  local function keep(head, places)
    kept[head] = kept_of(lanes[head], splits[head], places) or kept[head]
  end
  local segments, least, most = {}, {}, plan.share == "pool" and plans.pooled(plan, counts) or 0
  for at, group in ipairs(groups) do
    local split = splits[group[1]]
    local worth = (plan.share == "pool" and most or split.most) > 0
    if plan.share == "pool" then
      segments[at], least[at] = worth and ranked(self, layer, plan, group, splits, reading) or {},
        split.least
    elseif plans.cuts(plan, split) then
      local chosen = worth and scores.choose({ ranked(self, layer, plan, group, splits, reading) },
        { split.least }, split.most, plan)[1] or {}
      for _, head in ipairs(group) do keep(head, chosen) end
    end
  end
  for head, chosen in ipairs(plan.share == "pool"
    and scores.choose(segments, least, most, plan) or {}) do
    keep(head, chosen)
  end
  return kept
end

-- Puts survivors in the place of a layer's lanes.
local function replace(self, layer, plan, kept)
  local lanes, cut = self.run[layer.index], false
  for head, lane in ipairs(kept) do
    if lane ~= lanes[head] then
      cut = true
      if plan.threshold then merge(self, layer, head, lane, plan.threshold) end
    end
    lanes[head] = lane
  end
  layer.compact = layer.compact or cut and plan.compact
end

-- ---- reading and stepping -----------------------------------------------------------------------

-- Each lane's rows, with `more` added.
local function rows_of(lanes, more)
  local counts, longest = {}, 0
  for head, lane in ipairs(lanes) do
    counts[head] = #lane + more
    longest = math.max(longest, counts[head])
  end
  return counts, longest
end

local function longest_of(lanes)
  local _, longest = rows_of(lanes, 0)
  return longest
end

local function read_layer(self, layer, alive, prompt, prepared, united)
  local run, config = self.run, self.run.config
  local lanes = run[layer.index]
  local held, before = rows_of(lanes, 0)
  local counts, rows = rows_of(lanes, #alive)
  local l = { prompt = prompt, past = before, rows = rows, tokens = run.seen + prompt }
  local shape = plans.shape(layer.index, config, l)
  local plan = self.asker:prefill(shape, prepared and held)
  self.asker:fits("prefill", shape, plan, counts, layer.compact)
  if not prepared then self.asker:unites(shape, plan, #alive, #united > 0) end
  if plan.prune ~= "hidden" then l.rows = math.max(table.unpack(plans.left(plan, counts))) end
  layer.trigger = self.asker:trigger(plans.shape(layer.index, config, l))
  self.asker:remembers(shape, plan, layer.trigger)
  if prepared then self.asker:rests(shape, plan, layer.trigger) end
  layer.since, layer.past, layer.read = 0, before, run.seen + prompt
  layer.due = layer.read - 1 + plans.steps_until(layer.trigger, 0, l.rows)
  layer.first_query = #layer.queries + 1
  for head, lane in ipairs(lanes) do
    lanes[head] = table.move(alive, 1, #alive, #lane + 1, table.move(lane, 1, #lane, 1, {}))
  end
  for _, position in ipairs(alive) do remember(self, layer, position) end
  run.work = run.work + #alive
  layer.plan, layer.unjudged = plan, plans.unranked(plan, counts, layer.trigger)
  if prepared then return alive end                       -- plans run when all layers have read
  if plans.unites(plan) then                              -- likewise
    united[#united + 1] = layer
    return alive
  end
  local kept = select(self, layer, plan, true)
  if plan.prune ~= "hidden" then replace(self, layer, plan, kept) end
  if plan.prune == "cache" then return alive end
  -- rows held before are guarded: they lead
  return table.move(kept[1], before + 1, #kept[1], 1, {})
end

-- Rows for each layer, in proportion to weights: one after the other to the layer whose weight,
-- over the rows that it then has, is highest, ties to the lower; what is promised comes first.
local function divide_rows(weights, promised, room, most)
  local rows, left = {}, most
  for i, least in ipairs(promised) do rows[i], left = least, left - least end
  while left > 0 do
    local best, value = nil, 0.0
    for i, weight in ipairs(weights) do
      local worth = math.max(weight, 1e-30) / (rows[i] + 1)
      if rows[i] < room[i] and worth > value then best, value = i, worth end
    end
    rows[best], left = rows[best] + 1, left - 1
  end
  return rows
end

-- The survivors of layers that have weights: lists of places, a list for each lane.
local function choose_weighed(self, layers, splits, segments, most)
  local heads, weights, promised, room = self.run.config.kv_heads, {}, {}, {}
  local chosen = {}
  for at, layer in ipairs(layers) do
    local groups = {}
    promised[at], room[at] = 0, 0
    for head = 1, heads do
      local split, all = splits[(at - 1) * heads + head], self.run[layer.index][head]
      promised[at], room[at] = promised[at] + split.least, room[at] + split.judged
      groups[head] = group_of(self, layer, { { head = head, first = split.first,
        rows = table.move(all, split.first + 1, split.first + split.judged, 1, {}) } }, true,
        layer.plan.objects)
    end
    weights[at] = scores.weigh(layer.plan.weight, groups)
  end
  local rows = divide_rows(weights, promised, room, most)
  for at, layer in ipairs(layers) do
    local own, least, sum = table.move(segments, (at - 1) * heads + 1, at * heads, 1, {}), {}, 0
    for head = 1, heads do
      local split = splits[(at - 1) * heads + head]
      least[head] = split.least
      if layer.plan.share == "head" then
        local part = rows[at] // heads + (head <= rows[at] % heads and 1 or 0)
        least[head] = math.min(math.max(part, split.least), split.judged)
      end
      sum = sum + least[head]
    end
    local kept = scores.choose(own, least, layer.plan.share == "head" and sum or rows[at],
      { mass = 0 })
    table.move(kept, 1, heads, #chosen + 1, chosen)
  end
  return chosen
end

-- The layers whose plans share one budget: their lanes' rows compete, those of lower layers and
-- heads first among equals. The core cuts them again and again as layers read, and this once, when
-- all have: what is left must be the same.
local function select_together(self, layers, reading)
  local parts = {}
  for at, layer in ipairs(layers) do
    parts[at] = { plan = layer.plan, lanes = (rows_of(self.run[layer.index], 0)) }
  end
  local splits, most = plans.united(parts)
  if not splits then return end
  if not self.given.scores then
    plans.not_simulated "how many rows a layer keeps of a budget that layers share, by no scores"
  end
  local segments, least = {}, {}
  for _, layer in ipairs(layers) do
    local own = table.move(splits, #segments + 1, #segments + self.run.config.kv_heads, 1, {})
    for head, split in ipairs(own) do
      least[#least + 1] = split.least
      segments[#segments + 1] = most > 0
        and ranked(self, layer, layer.plan, { head }, own, reading) or {}
    end
  end
  local chosen
  if layers[1].plan.weight then
    chosen = choose_weighed(self, layers, splits, segments, most)
  else
    chosen = scores.choose(segments, least, most, layers[1].plan)
  end
  for at, layer in ipairs(layers) do
    local kept, lanes, heads = {}, self.run[layer.index], self.run.config.kv_heads
    for head, lane in ipairs(lanes) do
      local place = (at - 1) * heads + head
      kept[head] = kept_of(lane, splits[place], chosen[place]) or lane
    end
    replace(self, layer, layer.plan, kept)
  end
end

-- The prompt has been read, and its rows are probed: the plans that waited run.
local function run_prepared(self, how, prompt)
  local needed, united, apart = false, {}, {}
  for _, layer in ipairs(self.layers) do
    local counts = rows_of(self.run[layer.index], 0)
    needed = needed or plans.needed(layer.plan, counts)
    table.insert(layer.plan.share == "model" and united or apart, layer)
  end
  if not needed then return end
  self.run.work = self.run.work + plans.pass_tokens(how, prompt) * self.run.config.layers
  for _, layer in ipairs(apart) do
    replace(self, layer, layer.plan, select(self, layer, layer.plan, false))
  end
  if #united > 0 then select_together(self, united, false) end
end

local function snapshot(run)
  local out = {}
  for index, layer in ipairs(run) do
    out[index] = {}
    for head, lane in ipairs(layer) do out[index][head] = table.move(lane, 1, #lane, 1, {}) end
  end
  return out
end

local function read(self, prompt)
  local alive = {}
  self.prompt = prompt
  for i = 1, prompt do alive[i] = self.run.seen + i - 1 end
  local past = 0
  for _, lanes in ipairs(self.run) do past = math.max(past, longest_of(lanes)) end
  local how = self.asker:prepare(plans.shape(1, self.run.config, { prompt = prompt, past = past,
    rows = past + prompt, tokens = self.run.seen + prompt }))
  local united = {}
  for _, layer in ipairs(self.layers) do
    alive = read_layer(self, layer, alive, prompt, how ~= nil, united)
  end
  if how then run_prepared(self, how, prompt) end
  if #united > 0 then select_together(self, united, true) end
  self.run.seen = self.run.seen + prompt
  self.run.prefill = snapshot(self.run)
end

-- What decode ranks by where its plan has no score: the tracked signal.
local function track_program(t)
  return string.pack("<BBBxi4f", t.history and 1 or 0, t.reduce, t.heads, t.queries, t.x)
end

local function fire(self, layer)
  local run, trigger = self.run, layer.trigger
  local counts, rows = rows_of(run[layer.index], 0)
  local judged = trigger.once and math.max(0, rows - layer.unjudged) or 0
  local shape = plans.shape(layer.index, run.config,
    { prompt = self.prompt, past = layer.past, rows = rows,
      waiting = math.max(0, rows - trigger.window - judged), tokens = run.seen })
  local plan = self.asker:decode(shape, trigger)
  if trigger.once then plan.unjudged = layer.unjudged end
  self.asker:fits("decode", shape, plan, counts, layer.compact)
  if not plan.program and trigger.track then plan.program = track_program(layer.trigger.track) end
  replace(self, layer, plan, select(self, layer, plan, false))
  layer.since, layer.unjudged = 0, math.min(layer.unjudged, trigger.window)
  if trigger.once then layer.due = layer.due + trigger.every end
  if not trigger.once and trigger.track and not trigger.track.history then
    layer.first_query = #layer.queries + 1
  end
  run.fired[#run.fired + 1] = { step = self.step, layer = layer.index }
end

local function step(self)
  local run, due = self.run, {}
  local position = run.seen
  self.step = self.step + 1
  for _, layer in ipairs(self.layers) do
    local _, rows = rows_of(run[layer.index], 0)
    if plans.steps_until(layer.trigger, layer.since, rows) == 1 then due[#due + 1] = layer end
    for _, lane in ipairs(run[layer.index]) do lane[#lane + 1] = position end
    remember(self, layer, position)
    layer.since, layer.unjudged = layer.since + 1, layer.unjudged + 1
  end
  run.seen, run.work = run.seen + 1, run.work + run.config.layers
  for _, layer in ipairs(due) do fire(self, layer) end
end

---Runs a policy. All fields of `given` are set (testing.run sets them).
---@param p pyramid.Policy
---@param given table
---@return pyramid.testing.Run
function simulation.run(p, given)
  local config = { layers = given.layers, heads = given.heads, kv_heads = given.kv_heads,
    head_dim = given.head_dim }
  local run = setmetatable({ policy = p, config = config, seen = 0, work = 0, fired = {} }, Run)
  local self = { run = run, given = given, asker = plans.asker(p), layers = {}, step = 0 }
  for index = 1, config.layers do
    run[index] = {}
    for head = 1, config.kv_heads do run[index][head] = {} end
    self.layers[index] = { index = index, queries = {}, first_query = 1, since = 0, unjudged = 0,
      past = 0, merged = {}, compact = false }
  end
  for _, prompt in ipairs(given.prompts) do read(self, prompt) end
  if given.watch then given.watch(run, 0) end
  for i = 1, given.steps do
    step(self)
    if given.watch then given.watch(run, i) end
  end
  return run
end

return simulation
