--- Calibrating: schedules that are found instead of guessed.
---
---   measure   reads texts under a policy that keeps every row and tracks the attention of the last
---             queries; for each layer and KV head, the share of that attention's mass that is lost
---             if only v of `steps` equal parts of the rows stay: first and last rows, and the
---             others of most mass
---   sensitivity the same with what is wanted in the mass's place: how far predictions are off if
---   one layer alone is cut
---   solve     the parts for each layer (or head) that lose the least mass for so many rows, or
---             hold the fewest rows for so much loss
---   write     a policy file that keeps just that
---   cosine    PyramidInfer's schedule for the same share of the rows, to be compared with
---
--- What is measured is a stand-in for what is wanted: a head that loses little mass need not lose
--- little of the answer, and where hidden states are pruned, a layer chooses among what the layers
--- before it left. So calibrate.check measures.
local core = require "pyramid.core"
local compare = require "pyramid.tools.compare"
local cut = require "pyramid.tools.cut"
local noise = require "pyramid.tools.noise"
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local results = require "pyramid.tools.results"
local schedule = require "pyramid.schedule"
local score = require "pyramid.score"
local world = require "pyramid.tools.world"

local calibrate = {}

--- Whose results a file of cells holds (pyramid.Results).
calibrate.format = "pyramid calibrate 1"

-- ---- measuring ----------------------------------------------------------------------------------

---The curve of one lane: loss[v] is the share of the mass lost if v / steps of its rows stay,
---guards included.
---@param mass number[]               of each row
---@param steps integer
---@param first integer               rows at either end that stay
---@param last integer
---@return number[]
function calibrate.curve(mass, steps, first, last)
  local _ <close> = core.plain_locale()
  local rows, total, kept = #mass, 0, 0
  local judged, loss = {}, {}
  for row, value in ipairs(mass) do
    total = total + value
    if row <= first or row > rows - last then
      kept = kept + value
    else
      judged[#judged + 1] = value
    end
  end
  table.sort(judged, function(a, b) return a > b end)
  local taken = 0
  for v = 1, steps do
    while taken < #judged and rows - #judged + taken < math.floor(v * rows / steps) do
      taken = taken + 1
      kept = kept + judged[taken]
    end
    loss[v] = total > 0 and math.max(0, 1 - kept / total) or 0
  end
  loss[steps] = 0  -- all rows; what is left is rounding
  return loss
end

---@class pyramid.Calibration
---@field layers integer
---@field kv_heads integer
---@field steps integer
---@field texts integer
---@field tokens integer              of all texts
---@field layer number[][]
---  [layer][v]: mass lost where all heads share one set, ranked by their mean
---@field head number[][][]           [layer][head][v]: where each KV head has its own
---@field outside number[][]
---  [layer][head]: mass on rows that are neither among the first nor among the last
---@field each { layer: number[][], head: number[][][] }[]  the same curves of each text alone
---@field floor number?
---  of losses by KL: what rounding alone makes of a cut of nothing, already taken off

local measure_keys = { queries = "integer", sinks = "integer", recent = "integer",
  steps = "integer", progress = "function", known = "function", store = "table",
  circumstances = "string" }

-- What one cell of a measurement gives: from the store, else measured, if it is this worker's, and
-- added. nil without a message: it is another worker's, who has not added it yet.
local function cell(given, words, measure)
  local store = given.store
  if not store then return measure() end
  local key = (given.circumstances or "") .. " | " .. table.concat(words, " | ")
  local known = store:get(key)
  if known then
    if given.known then given.known() end
    return known
  end
  if not store:mine(key) then return nil end
  local record, message, code = measure()
  if not record then return nil, message, code end
  local ok
  ok, message, code = store:add(key, record)
  if not ok then return nil, message, code end
  return store:get(key)          -- as who reads it later will have it
end

local function tell_missing(missing, total)
  local words = "%d of %d measurements are other workers', who have not made them yet"
  return nil, words:format(missing, total), "shard"
end

local function hash_of(ids) return results.hash(table.concat(ids, " ")) end

local function add(to, from, weight)
  for v, value in ipairs(from) do to[v] = (to[v] or 0) + value * weight end
  return to
end

-- The curves of one text, and of each head the mass on rows that are not at either end.
local function read_text(model, watch, ids, given)
  local cache <close>, problem, kind = model:cache { policy = watch }
  if not cache then return nil, problem, kind end
  local logits, message, code = cache:prefill(ids)
  if not logits then return nil, message, code end
  local c, one = model.config, { layer = {}, head = {}, outside = {} }
  for layer = 1, c.layers do
    local mean = {}
    one.head[layer], one.outside[layer] = {}, {}
    for head = 1, c.kv_heads do
      local mass = assert(cache:scores(nil, { layer = layer, head = head })):totable()
      local inner, total = 0, 0
      for row, value in ipairs(mass) do
        total = total + value
        if row > given.sinks and row <= #mass - given.recent then inner = inner + value end
      end
      add(mean, mass, 1 / c.kv_heads)
      one.outside[layer][head] = total > 0 and inner / total or 0
      one.head[layer][head] = calibrate.curve(mass, given.steps, given.sinks, given.recent)
    end
    one.layer[layer] = calibrate.curve(mean, given.steps, given.sinks, given.recent)
  end
  return one
end

---Reads texts and returns their mean curves.
---@param model pyramid.Model
---@param texts integer[][]           ids
---@param given? { queries?: integer, sinks?: integer, recent?: integer, steps?: integer, progress?: function, known?: function, store?: pyramid.Results, circumstances?: string }
---queries: the last ones, whose attention counts; sinks, recent: rows at either end that stay;
---progress(done, total); known(), once for each that was measured before; store: where each
---text's curves are looked up and added, so that a run
---goes on and workers share it, with what they depend on besides all this
---@return pyramid.Calibration?
---@return string? message
---@return string? code               "shard": some are another worker's, and not there yet
function calibrate.measure(model, texts, given)
  local _ <close> = core.plain_locale()
  given = options.check("calibrate.measure", given, measure_keys)
  local queries, sinks, steps = given.queries or 32, given.sinks or 4, given.steps or 50
  local recent, c = given.recent or queries, model.config
  if queries < 1 or steps < 2 then
    error("calibrate.measure: at least one query and two steps are wanted", 2)
  end
  if #texts == 0 then error("calibrate.measure: a text is wanted", 2) end
  -- A window of attention holds a place for the step that would come next.
  local watch = policy { name = "calibrate", decode = function() end,
    trigger = function() return { every = 1, track = score.attention { queries = queries
      + 1 } } end }
  local made = { layers = c.layers, kv_heads = c.kv_heads, steps = steps, texts = #texts,
    tokens = 0, layer = {}, head = {}, outside = {}, each = {} }
  for layer = 1, c.layers do
    made.layer[layer], made.head[layer], made.outside[layer] = {}, {}, {}
  end
  local missing = 0
  for done, ids in ipairs(texts) do
    local one, message, code = cell(given, { "mass", queries, sinks, recent, steps, hash_of(ids) },
      function()
      return read_text(model, watch, ids, { sinks = sinks, recent = recent, steps = steps })
    end)
    if message then return nil, message, code end
    made.tokens = made.tokens + #ids
    made.each[done] = one and { layer = one.layer, head = one.head }
    if not one then missing = missing + 1 end
    for layer = 1, one and c.layers or 0 do
      for head = 1, c.kv_heads do
        made.outside[layer][head] = (made.outside[layer][head] or 0)
          + one.outside[layer][head] / #texts
        made.head[layer][head] = add(made.head[layer][head] or {}, one.head[layer][head],
          1 / #texts)
      end
      add(made.layer[layer], one.layer[layer], 1 / #texts)
    end
    if given.progress then given.progress(done, #texts) end
  end
  if missing > 0 then return tell_missing(missing, #texts) end
  return made
end

-- Logits that foretell each target after a context that was read under a policy.
local function feed(model, p, context, targets)
  local cache <close>, problem, kind = model:cache { policy = p }
  if not cache then return nil, problem, kind end
  local all, made, code = cut.append(cache, context, targets)
  if not all then return nil, made, code end
  return all
end

local points = { 0.1, 0.2, 0.35, 0.5, 0.75, 1 }  -- shares of the rows that are tried

-- What was measured at `points`, at each of `steps` levels: along lines, also below the first;
-- never rising. `floor` is what a cut of next to nothing measures: it is rounding and no loss.
local function through(measured, steps, floor)
  local loss, at, values = {}, 1, {}
  for i, value in ipairs(measured) do values[i] = math.max(0, value - floor) end
  values[#points] = 0
  for i = #values - 1, 1, -1 do values[i] = math.max(values[i], values[i + 1]) end
  for v = 1, steps do
    local share = v / steps
    while at < #points - 1 and share > points[at + 1] do at = at + 1 end
    local slope = (values[at + 1] - values[at]) / (points[at + 1] - points[at])
    loss[v] = math.min(math.max(0, values[at] + slope * (share - points[at])),
      loss[v - 1] or math.huge)
  end
  loss[steps] = 0
  return loss
end

local sensitivity_keys = { queries = "integer", sinks = "integer", kernel = "integer",
  prune = "string", steps = "integer", predict = "integer", progress = "function",
  known = "function", store = "table", circumstances = "string" }

---How far the model's predictions of each text's last `predict` tokens are from the full cache's
---(KL, nats a token) if one layer alone keeps v / steps of its rows, by attention of the last
---queries: curves as `layer` of a measurement, of what is wanted itself. That layers' losses add up
---is an approximation.
---
---Under a precision that rounds (bf16, int8) any change of a layer, however small, shifts what
---later layers round, and the predictions by as much. A layer in which only the row of least
---attention was dropped shows how much that is; so much, and what it is uncertain by, is taken off
---every measurement, so that it does not pass for a loss, which only keeping all rows of a layer
---would spare.
---@param model pyramid.Model
---@param texts integer[][]
---@param given? table
---  queries, sinks, kernel, prune (as of `write`), steps, predict, progress(done, total), known(),
---  store, circumstances (as of `measure`; what is looked up and added is a layer of a text)
---@return number[][]?             [layer][v]
---@return { each: number[][][], floor: number }|string|nil
---  of each text: [text][layer][v]; what rounding alone amounts to,
---                                   on average over layers; or a message
---@return string? code
function calibrate.sensitivity(model, texts, given)
  local _ <close> = core.plain_locale()
  given = options.check("calibrate.sensitivity", given, sensitivity_keys)
  local predict, layers, done, steps = given.predict or 64, model.config.layers, 0,
    given.steps or 50
  local each, floors = {}, {}
  local how = { name = "calibrate", about = "", window = given.queries, sinks = given.sinks,
    kernel = given.kernel, prune = given.prune }
  local function only(layer, share)
    local ratios = {}
    for i = 1, layers do ratios[i] = i == layer and share or 1 end
    return assert(load(calibrate.write(ratios, how), "=calibrate", "t"))()
  end
  local function off(full, layer, share, context, targets)
    local all, message, code = feed(model, only(layer, share), context, targets)
    if not all then return nil, message, code end
    local sum = 0
    for i, logits in ipairs(all) do sum = sum + full[i]:kl(logits) / #all end
    return sum
  end
  local missing = 0
  for t, ids in ipairs(texts) do
    local context = table.move(ids, 1, #ids - predict, 1, {})
    local targets = table.move(ids, #ids - predict + 1, #ids, 1, {})
    local full, message, code
    local function measure(layer)
      local record = { kl = {} }
      if not full then full, message, code = feed(model, nil, context, targets) end
      if not full then return nil, message, code end
      for i = 1, #points do
        -- The last point is the cut of next to nothing: one row, or a thousandth of them.
        local share = i < #points and points[i] or math.min(1 - 1 / (#context - 1), 0.999)
        local kl, why, kind = off(full, layer, share, context, targets)
        if not kl then return nil, why, kind end
        if i < #points then record.kl[i] = kl else record.floor = kl end
      end
      return record
    end
    each[t], floors[t] = {}, {}
    for layer = 1, layers do
      local one, why, kind = cell(given, { "kl", layer, how.window or "", how.sinks or "",
        how.kernel or "", how.prune or "", predict, table.concat(points, ","), hash_of(ids) },
        function() return measure(layer) end)
      if why then return nil, why, kind end
      if one then each[t][layer], floors[t][layer] = one.kl, one.floor
      else missing = missing + 1 end
      done = done + 1
      if given.progress then given.progress(done, #texts * layers) end
    end
  end
  if missing > 0 then return tell_missing(missing, #texts * layers) end
  local curves, mean, of_text = {}, 0, {}
  for layer = 1, layers do
    local sums, of_layer = {}, {}
    for t in ipairs(texts) do
      of_layer[t] = floors[t][layer]
      for i, kl in ipairs(each[t][layer]) do sums[i] = (sums[i] or 0) + kl / #texts end
    end
    local floor, half = noise.mean(of_layer)
    if half < math.huge then floor = floor + half end
    curves[layer], mean = through(sums, steps, floor), mean + floor / layers
    for t in ipairs(texts) do
      of_text[t] = of_text[t] or {}
      of_text[t][layer] = through(each[t][layer], steps, floor)
    end
  end
  return curves, { each = of_text, floor = mean }
end

---Texts of `length` tokens: stretches of a text, evenly spread, or held-out documents of the world.
---@param model pyramid.Model
---@param given { length: integer, count: integer, seed?: integer, text?: string }
---@return integer[][]?            at least one
---@return string? message
---@return string? code
function calibrate.texts(model, given)
  local _ <close> = core.plain_locale()
  given = options.check("calibrate.texts", given,
    { length = "integer", count = "integer", seed = "integer", text = "string" })
  local texts, length = {}, given.length
  local function take(ids, from)
    texts[#texts + 1] = table.move(ids, from, from + length - 1, 1, {})
  end
  if given.text then
    local ids, message, code = model:encode(given.text)
    if not ids then return nil, message, code end
    local room = #ids - length
    for i = 0, math.min(given.count, room + 1) - 1 do
      take(ids, 1 + (given.count > 1 and i * room // (given.count - 1) or 0))
    end
  else
    for seed = given.seed or 0, (given.seed or 0) + 4 * given.count do
      -- A word is a token at least. With its questions, a document's end looks back, as the end of
      -- a prompt does.
      local document = world.document(world.held_out + seed, { words = length, title = true })
      local ids, message, code = model:encode(document.text)
      if not ids then return nil, message, code end
      if #texts < given.count and #ids >= length then take(ids, #ids - length + 1) end
    end
  end
  if #texts == 0 then return nil, ("there is no text of %d tokens"):format(length), "length" end
  return texts
end

-- ---- solving ------------------------------------------------------------------------------------

---@class pyramid.Solution
---@field levels integer[]            of each lane, 1 .. steps
---@field loss number                 mean over lanes
---@field fraction number             of the rows

local function solution(curves, levels)
  local loss, parts, steps = 0, 0, #curves[1]
  for i, v in ipairs(levels) do loss, parts = loss + curves[i][v], parts + v end
  return { levels = levels, loss = loss / #curves, fraction = parts / (#curves * steps) }
end

-- Curves of lost mass are convex but for rounding, so taking, one after the other, the parts that
-- save most is the best there is at each size: a Lagrangian whose multiplier is what the next part
-- saves. The lower hull takes rounding away.
local function greedy(curves, most, bound, least)
  local steps, levels, todo, loss, parts = #curves[1], {}, {}, 0, 0
  for i, curve in ipairs(curves) do
    local hull = {}
    for v = least, steps do
      while #hull >= 2 do
        local a, b = hull[#hull - 1], hull[#hull]
        if (curve[b] - curve[a]) * (v - a) <= (curve[v] - curve[a]) * (b - a) then break end
        hull[#hull] = nil
      end
      hull[#hull + 1] = v
    end
    for at = 2, #hull do
      local from, to = hull[at - 1], hull[at]
      todo[#todo + 1] = { lane = i, from = from, to = to,
        saved = (curve[from] - curve[to]) / (to - from) }
    end
    levels[i], loss, parts = least, loss + curve[least], parts + least
  end
  table.sort(todo, function(a, b)
    if a.saved ~= b.saved then return a.saved > b.saved end
    if a.lane ~= b.lane then return a.lane < b.lane end
    return a.from < b.from
  end)
  for _, one in ipairs(todo) do
    if loss <= bound or parts >= most or one.saved <= 0 then break end
    local to = math.min(one.to, one.from + most - parts)
    local curve = curves[one.lane]
    levels[one.lane], loss, parts = to, loss - curve[one.from] + curve[to], parts + to - one.from
  end
  return solution(curves, levels)
end

-- A dynamic program over (lane, its level, parts used so far) is exact whatever the curves are,
-- also where levels must not rise with depth: best[i][v][b] = loss[i][v] + min over u of
-- best[i-1][u][b-v], u >= v if they must not.
local function dynamic(curves, most, bound, lowest, falling)
  local steps, from, best = #curves[1], {}, {}
  for v = lowest, steps do best[v] = { [v] = curves[1][v] } end
  for i = 2, #curves do
    local now, origin = {}, {}
    local low, which = {}, {}  -- the least over u, by parts used
    local function admit(u)
      for b, loss in pairs(best[u]) do
        if not low[b] or loss < low[b] then low[b], which[b] = loss, u end
      end
    end
    for v = steps, falling and steps + 1 or lowest, -1 do admit(v) end
    for v = steps, lowest, -1 do
      if falling then admit(v) end
      now[v], origin[v] = {}, {}
      for b, loss in pairs(low) do
        if b + v <= most then now[v][b + v], origin[v][b + v] = loss + curves[i][v], which[b] end
      end
    end
    best, from[i] = now, origin
  end
  -- The least loss; of those within the bound, the fewest parts.
  local at, used, least
  for v = lowest, steps do
    for b, loss in pairs(best[v]) do
      local clipped = math.max(loss, bound)
      if b <= most and (not least or clipped < least
        or (clipped == least and (b < used or (b == used and v < at)))) then
        least, at, used = clipped, v, b
      end
    end
  end
  local levels = {}
  for i = #curves, 1, -1 do
    levels[i] = at
    if i > 1 then at, used = from[i][at][used], used - at end
  end
  return solution(curves, levels)
end

---The levels that lose the least for at most the share `target` of the rows, or hold the fewest
---rows for a mean loss of at most `loss`. With `falling`, no level is higher than the one before;
---none is below `least`, 1 unless said. Exact, by a dynamic program; with `hull`, for many lanes,
---exact for convex curves, and there only where no order is wanted.
---@param curves number[][]           of each lane, loss[1 .. steps], never rising
---@param given { target?: number, loss?: number, falling?: boolean, hull?: boolean, least?: integer }
---@return pyramid.Solution
function calibrate.solve(curves, given)
  local _ <close> = core.plain_locale()
  given = options.check("calibrate.solve", given,
    { target = "number", loss = "number", falling = "boolean", hull = "boolean",
      least = "integer" })
  local least = given.least or 1
  if least < 1 or least > #curves[1] then error("calibrate.solve: least is no level", 2) end
  if given.hull and given.falling then error("calibrate.solve: hull knows no order of lanes", 2) end
  if (given.target == nil) == (given.loss == nil) then
    error("calibrate.solve: either target or loss is wanted", 2)
  end
  local value = given.target or given.loss
  if not (value >= 0 and value <= 1) then
    error(("calibrate.solve: %g is no share from 0 to 1"):format(value), 2)
  end
  local parts = #curves * #curves[1]
  local most = given.target and math.max(#curves * least, math.floor(given.target * parts + 1e-9))
    or parts
  local bound = given.loss and given.loss * #curves + 1e-12 or 0
  return (given.hull and greedy or dynamic)(curves, most, bound, least, given.falling)
end

-- Curves in one list, of layers or, one layer after the other, of heads.
local function lanes_of(of, by_head)
  if not by_head then return of.layer end
  local list = {}
  for _, heads in ipairs(of.head) do table.move(heads, 1, #heads, #list + 1, list) end
  return list
end

-- The mean curves of some texts' own; what of them is likely: the mean less as much of its standard
-- error as two thirds of all means are off by at most; and that error, on average over all.
local function mean_of(each, by_head, without)
  local curves, squares, n = {}, {}, 0
  for t, one in ipairs(each) do
    if t ~= without then
      n = n + 1
      for i, curve in ipairs(lanes_of(one, by_head)) do
        curves[i], squares[i] = curves[i] or {}, squares[i] or {}
        for v, x in ipairs(curve) do
          curves[i][v], squares[i][v] = (curves[i][v] or 0) + x, (squares[i][v] or 0) + x * x
        end
      end
    end
  end
  local likely, sum, count = {}, 0, 0
  for i, curve in ipairs(curves) do
    likely[i] = {}
    for v = #curve, 1, -1 do
      curve[v] = curve[v] / n
      local variance = n > 1 and math.max(0, squares[i][v] / n - curve[v] ^ 2) / (n - 1) or 0
      if v < #curve then sum, count = sum + variance, count + 1 end
      local least = n > 1 and curve[v] - noise.errors(n) / 2 * math.sqrt(variance) or 0
      likely[i][v] = math.max(0, least, likely[i][v + 1] or 0)
    end
  end
  return curves, likely, count > 0 and math.sqrt(sum / count) or 0
end

-- Likely losses, and beside them one that all lanes have and that is least where rows are shared
-- out evenly, as large as the noise is: where nothing is likely, no lane is better than another.
local function even(curves, size)
  local out, steps = {}, #curves[1]
  for i, curve in ipairs(curves) do
    out[i] = {}
    for v, loss in ipairs(curve) do out[i][v] = loss + size * (1 - v / steps) ^ 2 end
  end
  return out
end

-- For a target only: a loss is a promise, and is kept by what was measured.
local function solve_above(curves, likely, size, given, by_head)
  local solved = calibrate.solve(given.target and size > 0 and even(likely, size) or curves,
    { target = given.target, loss = given.loss, falling = given.falling, hull = by_head,
      least = given.least })
  return solution(curves, solved.levels)
end

---Ratios out of a measurement: one a layer, or, with share = "head", a list for each layer. For a
---target, what differs between layers by no more than between texts is shared out evenly.
---@param made pyramid.Calibration
---@param given { target?: number, loss?: number, falling?: boolean, share?: "layer"|"head", least?: integer }
---@return number[]|number[][] ratios
---@return pyramid.Solution
---@return number error    of the mean of a loss over texts, on average
function calibrate.ratios(made, given)
  local _ <close> = core.plain_locale()
  local by_head = given.share == "head"
  if by_head and given.falling then
    error("calibrate.ratios: heads of their own cannot prune hidden states", 2)
  end
  local curves, likely, size = lanes_of(made, by_head), nil, 0
  if made.each and #made.each > 1 then likely, size = select(2, mean_of(made.each, by_head)) end
  local solved = solve_above(curves, likely, size, given, by_head)
  local ratios = {}
  for i, v in ipairs(solved.levels) do
    if by_head then
      local layer = (i - 1) // made.kv_heads + 1
      ratios[layer] = ratios[layer] or {}
      table.insert(ratios[layer], v / made.steps)
    else ratios[i] = v / made.steps end
  end
  return ratios, solved, size
end

---What a lane loses at a share of its rows; between two steps, along a line.
---@param curve number[]
---@param share number
---@return number
function calibrate.lost(curve, share)
  local _ <close> = core.plain_locale()
  local at = share * #curve
  local low = math.floor(at)
  if low < 1 then return curve[1] end
  return low >= #curve and 0 or curve[low] + (at - low) * (curve[low + 1] - curve[low])
end

---@class pyramid.Gain
---@field rival "even"|"cosine"
---@field gain number
---  loss of the rival's ratios, less that of those solved for, at the same share of the rows
---@field half number  half of the 95 % interval over texts; math.huge where there is one text alone
---@field claimed boolean             the gain is more than that

---What solving gains over rows shared out evenly, and over the cosine, on texts that were not
---solved for: each text in turn is left out, the others' curves are solved, and the ratios tried on
---its own.
---@param made pyramid.Calibration
---@param given { target?: number, loss?: number, falling?: boolean, share?: "layer"|"head", least?: integer }
---@return pyramid.Gain[]
function calibrate.gains(made, given)
  local _ <close> = core.plain_locale()
  local by_head, differences = given.share == "head", { even = {}, cosine = {} }
  for t, one in ipairs(#made.each > 1 and made.each or {}) do
    local curves, likely, size = mean_of(made.each, by_head, t)
    local solved, own = solve_above(curves, likely, size, given, by_head), lanes_of(one, by_head)
    local loss = { even = 0, cosine = 0 }
    local cosine, ours = calibrate.cosine(made.layers, solved.fraction), 0
    for i, curve in ipairs(own) do
      ours = ours + curve[solved.levels[i]] / #own
      loss.even = loss.even + calibrate.lost(curve, solved.fraction) / #own
      loss.cosine = loss.cosine + calibrate.lost(curve,
        cosine[by_head and (i - 1) // made.kv_heads + 1 or i]) / #own
    end
    for rival, sum in pairs(loss) do differences[rival][t] = sum - ours end
  end
  local list = {}
  for i, rival in ipairs { "even", "cosine" } do
    local gain, half = noise.mean(differences[rival])
    list[i] = { rival = rival, gain = gain, half = half, claimed = gain > half }
  end
  return list
end

---What PyramidInfer's falling proportions leave of each layer if they are to hold `fraction` of the
---rows on average: a layer chooses among what the one before left, so they multiply. Even if they
---fall to nothing, the first layers hold much; where that is more than `fraction`, all ratios are
---scaled down alike.
---@param layers integer
---@param fraction number
---@return number[]
function calibrate.cosine(layers, fraction)
  local _ <close> = core.plain_locale()
  local low, high, ratios = 0, 1, nil
  for _ = 1, 50 do
    local middle, left, sum = (low + high) / 2, 1, 0
    ratios = {}
    for layer = 1, layers do
      left = left * schedule.cosine(1, middle)((layer - 1) / layers)
      ratios[layer], sum = left, sum + left
    end
    if sum > fraction * layers then high = middle else low = middle end
  end
  local sum = 0
  for _, ratio in ipairs(ratios) do sum = sum + ratio end
  for layer, ratio in ipairs(ratios) do
    ratios[layer] = ratio * math.min(1, fraction * layers / sum)
  end
  return ratios
end

-- ---- policies -----------------------------------------------------------------------------------

local template = [=[
local policy, score = require "pyramid.policy", require "pyramid.score"

-- The share of the prompt's rows that each layer keeps@OF@.
local ratios = @RATIOS@

return policy {
  name = "@NAME@",
  doc = "ratios calibrated on a model, @SHARE@",
  defaults = { scale = 1.0, window = @WINDOW@, sinks = @SINKS@, kernel = @KERNEL@, heads = "mean" },   -- scale: of all ratios
  limits = { scale = { 0, @MOST@ }, window = { 1 }, sinks = { 0 }, kernel = { 1, 63, 2 }, heads = { "mean", "sum", "max" } },
  fit = "scale",                                                       -- so target = 0.3 keeps the shape
  prefill = function(o, l)
    local window = math.min(o.window, l.rows)
@KEEP@
    local seen = score.attention { queries = window, heads = o.heads }
    return {
      keep = keep,
      guard = { first = o.sinks, last = window },
      score = o.kernel > 1 and seen:pool("max", o.kernel) or seen,
      @HOW@,
    }
  end,
}
]=]

local keep_layer = [[
    local share = math.min(o.scale * ratios[math.floor(l.depth * #ratios + 1e-9) + 1], 1)
    local rows = math.max(l.past + math.floor(share * l.prompt + 1e-6), o.sinks + window)
    local keep = math.min(rows, l.rows)]]
local keep_head = [[
    local own = ratios[l.index] or {}
    if #ratios ~= l.layers or #own ~= l.kv_heads then
      error(("made for %d layers of %d K/V heads"):format(#ratios, #ratios[1]), 0)
    end
    local keep = {}
    for head, ratio in ipairs(own) do
      local rows = math.max(l.past + math.floor(math.min(o.scale * ratio, 1) * l.prompt + 1e-6), o.sinks + window)
      keep[head] = math.min(rows, l.rows)
    end]]

local function numbers(list)
  local words = {}
  for i, x in ipairs(list) do words[i] = ("%.4g"):format(x) end
  return "{ " .. table.concat(words, ", ") .. " }"
end

-- Words after each other in lines of a comment.
local function comment(text)
  local lines, line = {}, "--"
  for word in text:gmatch "%S+" do
    if #line + 1 + #word > 116 then
      lines[#lines + 1] = line
      line = "--"
    end
    line = line .. " " .. word
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n") .. "\n"
end

local text_keys = { name = "string", about = "string", share = "string", prune = "string",
  window = "integer", sinks = "integer", kernel = "integer" }

---A policy file's text that keeps these ratios of a prompt.
---@param ratios number[]|number[][]
---@param given { name: string, about: string, share?: string, prune?: string, window?: integer, sinks?: integer, kernel?: integer }
---@return string
function calibrate.write(ratios, given)
  local _ <close> = core.plain_locale()
  given = options.check("calibrate.write", given, text_keys)
  local by_head, least = given.share == "head", math.huge
  if by_head and given.prune == "both" then
    error("calibrate.write: heads of their own cannot prune hidden states", 2)
  end
  local lines = {}
  for layer, ratio in ipairs(ratios) do
    lines[layer] = by_head and "  " .. numbers(ratio) .. ",\n" or nil
    for _, x in ipairs(by_head and ratio or { ratio }) do least = math.min(least, x) end
  end
  local values = {
    OF = by_head and ", head by head" or "", RATIOS = by_head
      and "{\n" .. table.concat(lines) .. "}" or numbers(ratios),
    NAME = given.name, SHARE = by_head and "per head" or "per layer",
      WINDOW = tostring(given.window or 32),
    SINKS = tostring(given.sinks or 4), KERNEL = tostring(given.kernel or 1),
      MOST = ("%.4g"):format(1 / least + 1),
    KEEP = by_head and keep_head or keep_layer,
    HOW = by_head and 'share = "head"' or ('prune = "%s"'):format(given.prune or "cache"),
  }
  return comment(given.name .. ".lua: " .. given.about) .. template:gsub("@(%u+)@", values)
end

-- ---- retrieval heads ----------------------------------------------------------------------------

---KV heads by the attention mass that lies outside of first and last rows, most first.
---@param made pyramid.Calibration
---@return { layer: integer, head: integer, outside: number }[]
function calibrate.retrieval(made)
  local _ <close> = core.plain_locale()
  local list = {}
  for layer, heads in ipairs(made.outside) do
    for head, outside in ipairs(heads) do
      list[#list + 1] = { layer = layer, head = head, outside = outside }
    end
  end
  table.sort(list, function(a, b)
    if a.outside ~= b.outside then return a.outside > b.outside end
    if a.layer ~= b.layer then return a.layer < b.layer end
    return a.head < b.head
  end)
  return list
end

---A policy file's text: `duo`, with the first `count` of a ranking as its retrieval heads.
---@param ranked { layer: integer, head: integer }[]
---@param count integer
---@param given { name: string, about: string, sinks: integer, recent: integer }
---@return string
function calibrate.write_duo(ranked, count, given)
  local _ <close> = core.plain_locale()
  local chosen = {}
  for i = 1, count do chosen[i] = ("%d:%d"):format(ranked[i].layer, ranked[i].head) end
  return comment(given.name .. ".lua: " .. given.about) .. ([[
local policy = require "pyramid.policy"

-- Retrieval heads, as layer:head, those with most attention outside of sinks and recent rows first.
local heads = "%s"

return policy.named("%s", assert(policy.load("duo", { heads = heads, sinks = %d, recent = %d })),
  "duo, with heads ranked on a model")
]]):format(table.concat(chosen, ","), given.name, given.sinks, given.recent)
end

---A policy file's text: `headkv`, with what lies outside of first and last rows as the scores of
---its heads.
---@param made pyramid.Calibration
---@param given { name: string, about: string }
---@return string
function calibrate.write_headkv(made, given)
  local _ <close> = core.plain_locale()
  local lines = {}
  for layer, heads in ipairs(made.outside) do
    local words = {}
    for head, outside in ipairs(heads) do words[head] = ("%.4f"):format(outside) end
    lines[layer] = '  "' .. table.concat(words, ",") .. '",'
  end
  return comment(given.name .. ".lua: " .. given.about) .. ([[
local policy = require "pyramid.policy"

-- A line for each layer: of each KV head the attention that goes outside of sinks and recent rows.
local scores = {
%s
}

return policy.named("%s", assert(policy.load("headkv", { scores = table.concat(scores, ",") })),
  "headkv, with heads scored on a model")
]]):format(table.concat(lines, "\n"), given.name)
end

-- ---- checking -----------------------------------------------------------------------------------

---Measures policies against each other, and the full cache, on other texts than they were made
---from.
---@param model pyramid.Model
---@param policies { label: string, policy: pyramid.Policy }[]
---@param given { length: integer, questions: integer, documents: integer, predict: integer, seed: integer, mode: string }
---@param report? fun(done: number, total: number, what: string)
---@return pyramid.CompareEntry[]?  the full cache first
---@return string? message
---@return string? code
function calibrate.check(model, policies, given, report)
  local _ <close> = core.plain_locale()
  local variants = { { label = "full", series = "full", policy = assert(policy.load "full"),
    id = "full" } }
  for i, one in ipairs(policies) do
    variants[i + 1] = { label = one.label, series = one.label, policy = one.policy, id = one.label }
  end
  local plan, message, code = compare.plan(model,
    { variants = variants, circumstances = "", lengths = { given.length }, modes = { given.mode },
      questions = given.questions, documents = given.documents, predict = given.predict,
        seed = given.seed })
  if not plan then return nil, message, code end
  local records, store = {}, {}
  function store.get(_, key) return records[key] end
  function store.add(_, key, record)
    records[key] = record
    return true
  end
  function store.mine() return true end            -- no other worker has a part of it
  local ok
  ok, message, code = compare.run(plan, model, store, report)
  if not ok then return nil, message, code end
  return compare.summary(plan, store)
end

return calibrate
