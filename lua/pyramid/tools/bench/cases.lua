--- Cases, the turns that baselines take in them, and what comes out.
---
--- In each case every baseline has one run that is not counted, in which Pyramid's are profiled;
--- then they take turns in rounds (A B C A B C …), so that a machine that gets slower does so for
--- all: what one is beside another is the ratio of their runs of one round, its median and range
--- over the rounds. Where an engine can be measured in several ways (attention, rows), the one that
--- was fastest in the second of two uncounted runs takes the turns. A baseline whose uncounted run
--- took longer than the patience has fewer rounds, that run among them. Times are medians.
local machine = require "pyramid.tools.bench.machine"

local cases = {}

local LEAST = 3                   -- samples of a case, however long they take

---@class pyramid.BenchCase
---@field kind "prefill"|"decode"|"batch"
---@field tokens? integer         prefill: tokens read
---@field depth? integer          decode: tokens before the first step
---@field steps? integer          decode: steps timed
---@field count? integer          batch: sequences
---@field prompt? integer         batch: tokens read by each
---@field generated? integer      batch: tokens made by each, the prompt's included

---@class pyramid.BenchResult
---@field case pyramid.BenchCase
---@field engine string
---@field label string
---@field seconds number[]        one for each run that counts, in the order of the rounds
---@field ways? { label: string, seconds: number }[]
---  all ways of this engine that were tried, this one among them
---@field median number           seconds
---@field rate number
---  tokens a second: read (prefill), made by one sequence (decode) or by all (batch)
---@field ceilings (number|false)[]
---  what the machine could do around each run, in what bounds the case; false: not measured
---@field evicting? number  share of the profiled run's time in which rows were scored and chosen

---A case in a few words.
---@param case pyramid.BenchCase
---@return string
function cases.name(case)
  if case.kind == "prefill" then return ("prefill %d"):format(case.tokens) end
  if case.kind == "decode" then return ("decode at %d"):format(case.depth) end
  return ("batch %d of %d+%d"):format(case.count, case.prompt, case.generated)
end

---Cases in groups: those of one group may use what the one before them left in the cache.
---@param given { prefill: integer[], depth: integer[], steps: integer, batch: integer[], prompt: integer, generated: integer }
---@return pyramid.BenchCase[][]
function cases.groups(given)
  local by_length, lengths, groups = {}, {}, {}
  local function add(n, case)
    if not by_length[n] then
      by_length[n] = {}
      lengths[#lengths + 1] = n
    end
    table.insert(by_length[n], case)
  end
  for _, n in ipairs(given.prefill) do add(n, { kind = "prefill", tokens = n }) end
  for _, n in ipairs(given.depth) do add(n, { kind = "decode", depth = n, steps = given.steps }) end
  table.sort(lengths)
  for i, n in ipairs(lengths) do groups[i] = by_length[n] end
  for _, n in ipairs(given.batch) do
    groups[#groups + 1] = { { kind = "batch", count = n, prompt = given.prompt,
      generated = given.generated } }
  end
  return groups
end

-- Tokens in each sequence, and sequences.
local function size_of(case)
  if case.kind == "prefill" then return case.tokens, 1 end
  if case.kind == "decode" then return math.max(1, case.depth) + case.steps, 1 end
  return case.prompt + case.generated, case.count
end

-- What a case's rate counts.
local function work_of(case)
  return case.kind == "prefill" and case.tokens or case.kind == "decode" and case.steps
    or case.count * case.generated
end

local function measure(baseline, case, profiled)
  if case.kind == "prefill" then return baseline:prefill(case.tokens, profiled) end
  if case.kind == "decode" then return baseline:decode(case.depth, case.steps, profiled) end
  return baseline:batch(case.count, case.prompt, case.generated, profiled)
end

---The middle of some numbers.
---@param samples number[]
---@return number
function cases.median(samples)
  local sorted = table.move(samples, 1, #samples, 1, {})
  table.sort(sorted)
  local half = #sorted // 2
  return #sorted % 2 == 1 and sorted[half + 1] or (sorted[half] + sorted[half + 1]) / 2
end

-- Half of the distance between the extremes, as a share of the median.
local function spread(samples, median)
  return (math.max(table.unpack(samples)) - math.min(table.unpack(samples))) / 2 / median
end

---@class pyramid.BenchRatio
---@field median number
---@field least number
---@field most number
---@field rounds integer

---How many times as fast one is as another, round by round.
---@param ours number[]     seconds of each round
---@param theirs number[]
---@return pyramid.BenchRatio
function cases.ratio(ours, theirs)
  local ratios = {}
  for i = 1, math.min(#ours, #theirs) do ratios[i] = theirs[i] / ours[i] end
  return { median = cases.median(ratios), least = math.min(table.unpack(ratios)),
    most = math.max(table.unpack(ratios)), rounds = #ratios }
end

-- ---- what a case will take ----------------------------------------------------------------------

-- Seconds that one run should take, from what the baseline's earlier cases took; nil if nothing
-- is known.
local function expected(known, case)
  if case.kind == "prefill" then return known.prefill and known.prefill * case.tokens end
  if case.kind == "decode" then
    return known.prefill and known.prefill * case.depth + (known.decode or 0) * case.steps
  end
  if known.batch then return known.batch * case.count * (case.prompt + case.generated) end
  return known.prefill and known.decode and case.count * (known.prefill * case.prompt
    + known.decode * case.generated)
end

local function learn(known, case, seconds)
  if case.kind == "batch" then known.batch = seconds / (case.count * (case.prompt + case.generated))
  elseif case.kind == "prefill" then known.prefill = seconds / case.tokens
  else known.decode = seconds / case.steps end
end

-- ---- one case -----------------------------------------------------------------------------------

---@class pyramid.BenchRules
---@field repeats integer         runs that count
---@field patience number         seconds: longer runs are not repeated so often
---@field limit number            seconds: a run that would take longer is left out
---@field batch_limit number      the same for batches
---@field context integer         the model's
---@field report fun(text: string)   what goes on
---@field ceiling? fun(case: pyramid.BenchCase): number?
---  what the machine can do at this moment, in what bounds such a case
---@field done? fun(results: pyramid.BenchResult[], left_out: table[])
---  called after each group with all so far

-- The baselines that take part; the others are left out, with the reason.
local function admit(entrants, case, rules, leave_out)
  local tokens = size_of(case)
  local out = {}
  for _, entrant in ipairs(entrants) do
    local seconds, limit = expected(entrant.known, case),
      case.kind == "batch" and rules.batch_limit or rules.limit
    if tokens > rules.context then
      leave_out(case, entrant, ("%d tokens are more than the model's context of %d"):format(tokens,
        rules.context))
    elseif seconds and seconds > limit then
      leave_out(case, entrant,
        ("one run would take about %.0f s, and the limit is %g s"):format(seconds, limit))
    else out[#out + 1] = entrant end
  end
  return out
end

-- The run of each that is not counted, and how many will be. What it takes of memory is looked at
-- here, where nothing of an earlier case is left.
local function try_all(entrants, rules, play)
  local others = {}
  for i, entrant in ipairs(entrants) do others[i] = entrant.baseline end
  for _, entrant in ipairs(entrants) do
    entrant.runs, entrant.wanted, entrant.trial, entrant.ways = {}, 0, nil, nil
    entrant.baseline:reset_peak()
    local sample = play(entrant, true)
    if sample then
      entrant.trial, entrant.profile, entrant.wanted = sample, sample.profile, rules.repeats
      entrant.peak = entrant.baseline:peak(others)
      if sample.seconds > rules.patience then
        entrant.runs[1], entrant.wanted = sample, math.min(LEAST, rules.repeats)
      end
    end
  end
end

-- Of the ways of one engine other than ours, lets only the fastest go on. What an engine compiles
-- or lays out the first time is behind it in a second run, if that does not take too long.
local function pick_ways(entrants, rules, play)
  local by_engine, engines = {}, {}
  for _, entrant in ipairs(entrants) do
    local engine = entrant.baseline.engine
    if entrant.trial and engine ~= "pyramid" then
      if not by_engine[engine] then
        by_engine[engine] = {}
        engines[#engines + 1] = engine
      end
      table.insert(by_engine[engine], entrant)
    end
  end
  for _, engine in ipairs(engines) do
    local ways, best = by_engine[engine], nil
    local tried = {}
    for _, entrant in ipairs(#ways > 1 and ways or {}) do
      local sample = entrant.trial
      if sample.seconds <= rules.patience then sample = play(entrant) or sample end
      tried[#tried + 1] = { label = entrant.baseline.label, seconds = sample.seconds }
      entrant.second = sample.seconds
      if not best or entrant.second < best.second then best = entrant end
    end
    for _, entrant in ipairs(#ways > 1 and ways or {}) do
      if entrant == best then entrant.ways = tried else entrant.runs, entrant.wanted = {}, 0 end
    end
  end
end

-- Runs of a case, in turns. Each entrant gets `runs`, a list of samples: none, if it failed.
local function take_turns(entrants, case, rules, leave_out)
  local function play(entrant, profiled)
    rules.report(cases.name(case) .. ", " .. entrant.baseline.label)
    collectgarbage()
    local sample, message = measure(entrant.baseline, case, profiled)
    if not sample then leave_out(case, entrant, message) end
    return sample
  end
  try_all(entrants, rules, play)
  pick_ways(entrants, rules, play)
  for _ = 1, rules.repeats do
    for _, entrant in ipairs(entrants) do
      if #entrant.runs < entrant.wanted then
        local asks = rules.ceiling and entrant.baseline.engine == "pyramid"
          and not entrant.baseline.quiet
        local before = asks and rules.ceiling(case)
        local sample = play(entrant)
        if sample and before then sample.ceiling = (before + rules.ceiling(case)) / 2 end
        if sample then table.insert(entrant.runs, sample)
        else entrant.runs, entrant.wanted = {}, 0 end
      end
    end
  end
end

-- What a forward pass and the moving of rows would take without a policy's scores and choices.
local not_evicting = {}
for name in ([[linear attention embed norm rope activate scale add gate_rows temper route
  experts mlp take_rows take_i32 store gather merge
  rotate copy upload download]]):gmatch "%S+" do not_evicting[name] = true end

-- The share of profiled time in which rows were scored and chosen.
local function evicting(profile)
  local total, spent = 0, 0
  for _, entry in ipairs(profile or {}) do
    total = total + entry.seconds
    if not not_evicting[entry.name] then spent = spent + entry.seconds end
  end
  return total > 0 and spent / total or nil
end

local function conclude(entrant, case)
  local baseline, seconds, firsts, ceilings = entrant.baseline, {}, {}, {}
  for i, run in ipairs(entrant.runs) do
    seconds[i], firsts[i], ceilings[i] = run.seconds, run.first, run.ceiling or false
  end
  local median, last = cases.median(seconds), entrant.runs[#entrant.runs]
  learn(entrant.known, case, median)
  return {
    case = case, engine = baseline.engine, label = baseline.label,
      cache_dtype = baseline.dtype, flash = baseline.flash,
    policy = baseline.policy, seconds = seconds, median = median,
      spread = spread(seconds, median),
    ways = entrant.ways, quiet = baseline.quiet and baseline.quiet.label,
    rate = work_of(case) / median, first = #firsts > 0 and cases.median(firsts) or nil,
      kv_bytes = last.kv_bytes,
    ceilings = ceilings, kept = last.kept, computed = last.computed, peak_bytes = entrant.peak,
      profile = entrant.profile,
    evicting = evicting(entrant.profile),
  }
end

---Runs all cases of one model.
---@param list table[]                   baselines
---@param groups pyramid.BenchCase[][]
---@param rules pyramid.BenchRules
---@return pyramid.BenchResult[]
---@return table[] left_out              { case=, engine=, label=, cache_dtype=, reason= }
function cases.run(list, groups, rules)
  local entrants, results, left_out = {}, {}, {}
  for i, baseline in ipairs(list) do entrants[i] = { baseline = baseline, known = {} } end
  local function leave_out(case, entrant, reason)
    local c = entrant.baseline
    left_out[#left_out + 1] = { case = case, engine = c.engine, label = c.label,
      cache_dtype = c.dtype, reason = reason }
  end
  for _, group in ipairs(groups) do
    local tokens, sequences = 0, 1
    for _, case in ipairs(group) do
      local n, count = size_of(case)
      tokens, sequences = math.max(tokens, n), math.max(sequences, count)
    end
    local ready = {}
    for _, entrant in ipairs(entrants) do ready[entrant] = false end
    for _, case in ipairs(group) do
      local playing = {}
      for _, entrant in ipairs(admit(entrants, case, rules, leave_out)) do
        local ok, message = true, nil
        if not ready[entrant] then ok, message = entrant.baseline:begin(tokens, sequences) end
        ready[entrant] = ok and true
        if ok then playing[#playing + 1] = entrant else leave_out(case, entrant, message) end
      end
      take_turns(playing, case, rules, leave_out)
      for _, entrant in ipairs(playing) do
        if #entrant.runs > 0 then results[#results + 1] = conclude(entrant, case) end
      end
    end
    for _, entrant in ipairs(entrants) do
      if ready[entrant] then entrant.baseline:finish() end
    end
    if rules.done then rules.done(results, left_out) end
  end
  return results, left_out
end

-- ---- against the limits -------------------------------------------------------------------------

---The limit that a case is held against, by name: of prefill oneDNN's rate for weights of a kind,
---of decode that of reading; nil for a batch, which is both.
---@param case pyramid.BenchCase
---@param limits pyramid.Limits
---@param kind "f32"|"bf16"|"int8"    how oneDNN would multiply such weights
---@return string?
function cases.limit_of(case, limits, kind)
  if case.kind == "batch" then return nil end
  if case.kind == "decode" then return "read" end
  -- processors without bf16 compute it so
  return kind == "bf16" and #limits.bf16 == 0 and "f32" or kind
end

---Adds to a result what share of the machine's limit it reached: for prefill, operations of matrix
---products and attention a second; for decode, bytes of weights and rows. Machines that others use
---too are faster at one moment than at the next: each run is held against what was measured right
---before and after it, and the median counts; against the most that was measured at all where that
---was not done.
---@param result pyramid.BenchResult
---@param limits pyramid.Limits
---@param kind "f32"|"bf16"|"int8"    see limit_of
function cases.add_fraction(result, limits, kind)
  if result.quiet then return end                        -- the neighbour took a part of it
  local flops, bytes = 0, 0
  for _, entry in ipairs(result.profile or {}) do
    if entry.name == "linear" or entry.name == "mlp" or entry.name == "attention" then
      flops, bytes = flops + entry.flops, bytes + entry.bytes
    end
  end
  local name = cases.limit_of(result.case, limits, kind)
  local done, most = name == "read" and bytes or flops, name and machine.most(limits[name])
  if not most or done == 0 then return end
  local shares = {}
  for i, seconds in ipairs(result.seconds) do
    if result.ceilings[i] then shares[#shares + 1] = done / seconds / result.ceilings[i] end
  end
  result.limit, result.of_limit = name, #shares > 0 and cases.median(shares)
    or done / result.median / most
end

return cases
