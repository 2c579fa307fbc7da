--- What every policy should do, whatever it is for: checked over many shapes, without a model. Part
--- of pyramid.testing.
local options = require "pyramid.options"
local plans = require "pyramid.testing.plans"
local policy = require "pyramid.policy"
local score = require "pyramid.score"
local simulation = require "pyramid.testing.simulation"

local checks = {}

-- Prompts from one token on, shorter and longer than usual guards, and a huge one; rows held
-- before; layers and KV heads.
local prompts, pasts = { 1, 2, 3, 5, 16, 33, 64, 65, 300, 4096, 131072 }, { 0, 40, 3000 }
local depths = { { 1, 4 }, { 2, 1 }, { 5, 2 }, { 12, 4 } }
local few_prompts, few_pasts, few_depths = { 1, 40, 3000 }, { 0, 50 }, { { 3, 2 } }
local simulated = { 1, 3, 33, 90 }

---@class pyramid.testing.Report
---@field policy pyramid.Policy
---@field name string
---@field problems string[]
---@field notes string[]            what is allowed, but better known
---@field keeps_everything boolean
---  no plan drops a row, at any shape; false where a plan was not valid
---@field config table?             of the one model that it was checked for
---@field by_mass boolean  a plan keeps a share of scores: its forecast is the most that it keeps
---@field by_model boolean  layers share a budget: a forecast is what each keeps on average
---@field plans integer             how many were asked for
local Report = {}
Report.__index = Report
Report.__name = "pyramid.testing.report"

function Report:__tostring()
  local lines = { ("policy %s: %s, %d plans"):format(self.name,
    #self.problems == 0 and "sound" or #self.problems
    .. (#self.problems == 1 and " problem" or " problems"), self.plans) }
  for _, text in ipairs(self.problems) do lines[#lines + 1] = "  problem: " .. text end
  for _, text in ipairs(self.notes) do lines[#lines + 1] = "  note: " .. text end
  return table.concat(lines, "\n")
end

local function add(list, format, ...)
  local text = format:format(...)
  for _, other in ipairs(list) do
    if other == text then return end
  end
  list[#list + 1] = text
end

-- A value as text by which two are equal: fields in order, scores by their programs.
local function text_of(value)
  if score.is(value) then return ("%q"):format(score.program(value)) end
  if type(value) ~= "table" then return tostring(value) end
  local parts = {}
  for _, key in ipairs(options.sorted_keys(value)) do
    local inner = value[key]
    if inner == nil then inner = value[math.tointeger(tonumber(key))] end
    parts[#parts + 1] = key .. "=" .. text_of(inner)
  end
  return "{" .. table.concat(parts, " ") .. "}"
end

local function copy(t)
  local result = {}
  for key, value in pairs(t) do result[key] = value end
  return result
end

local function differs(t, before)
  for key, value in pairs(t) do
    if before[key] ~= value then return true end
  end
  return false
end

-- ---- plans at many shapes -----------------------------------------------------------------------

-- Calls ask(kind, l, lanes, trigger) -> plan or trigger, layer by layer, for what the counts of
-- rows alone say: a prompt, and the first three firings in each layer. Where scores decide which
-- lane is longest, each is as long as it can be.
local function walk(config, prompt, past, ask)
  local alive, prepared = prompt, nil
  local whole = plans.shape(1, config, { prompt = prompt, past = past, rows = past + prompt,
    tokens = past + prompt })
  if ask("prepare", whole, {}) then
    prepared = {}
    for head = 1, config.kv_heads do prepared[head] = past end
  end
  for index = 1, config.layers do
    local lanes = {}
    for head = 1, config.kv_heads do lanes[head] = past + alive end
    local function shape(rows, tokens, waiting)
      return plans.shape(index, config, { prompt = prompt, past = past, rows = rows,
        tokens = tokens, waiting = waiting })
    end
    local tokens = past + prompt
    local plan = ask("prefill", shape(past + alive, tokens), lanes, prepared)
    local before, left = lanes, plans.left(plan, lanes)
    if plan.prune ~= "hidden" then lanes = left end
    if plan.prune ~= "cache" then alive = left[1] - past end
    local trigger = ask("trigger", shape(math.max(table.unpack(lanes)), tokens), lanes)
    if prepared then ask("rests", shape(past + alive, tokens), lanes, plan, trigger) end
    if not trigger then
      ask("reads", shape(math.max(table.unpack(lanes)), tokens), lanes, { window = 0 })
    end
    local unjudged = plans.unranked(plan, before, trigger)
    for _ = 1, 3 do
      local longest = math.max(table.unpack(lanes))
      local steps = plans.steps_until(trigger, 0, longest)
      if steps == math.huge then break end
      for head, rows in ipairs(lanes) do lanes[head] = rows + steps end
      longest, tokens, unjudged = longest + steps, tokens + steps, unjudged + steps
      local judged = trigger.once and math.max(0, longest - unjudged) or 0
      local decode = ask("decode", shape(longest, tokens,
        math.max(0, longest - trigger.window - judged)), lanes, trigger)
      if trigger.once then decode.unjudged = unjudged end
      lanes, unjudged = plans.left(decode, lanes), math.min(unjudged, trigger.window)
    end
  end
end

local function each_shape(p, own, all, visit)
  local configs = { own }
  for i, depth in ipairs(own and {} or all and depths or few_depths) do
    configs[i] = { layers = depth[1], heads = 4, kv_heads = depth[2], head_dim = 64 }
  end
  for _, config in ipairs(configs) do
    local asker = plans.asker(p)
    for _, prompt in ipairs(all and prompts or few_prompts) do
      for _, past in ipairs(all and pasts or few_pasts) do visit(config, asker, prompt, past) end
    end
  end
end

-- Every plan is valid, and asked twice the same. Returns whether any drops a row; nil, if a plan
-- was not valid, so that nothing can be said of all.
local function check_plans(report, p, all, what)
  local drops, before = false, text_of(p.definition.defaults)
  local function try(config, asker, prompt, past)
    local again = plans.asker(p, true)
    walk(config, prompt, past, function(kind, l, lanes, trigger, tracked)
      if kind == "rests" then return asker:rests(l, trigger, tracked) end
      if kind == "reads" then                   -- without a trigger, `decode` says what steps read
        if not p.definition.decode or p.definition.trigger then return nil end
        kind = "decode"
      end
      local shown = copy(l)
      local given, twice = asker[kind](asker, l, trigger), again[kind](again, l, trigger)
      local text, text_of_twice = text_of(given), text_of(twice)
      report.plans = report.plans + 1
      if report.answers then report.answers[#report.answers + 1] = text end
      if text ~= text_of_twice then
        error(("policy %s, layer %d, %s: two plans for one shape: %s and %s"):format(p.name,
          l.index, kind, text, text_of_twice), 0)
      end
      if differs(l, shown) then
        error(("policy %s, layer %d, %s: changes the shape it is given"):format(p.name, l.index,
          kind), 0)
      end
      if kind == "prefill" or kind == "decode" then
        asker:fits(kind, l, given, lanes)
        drops = drops or plans.needed(given, lanes)
        report.by_mass = report.by_mass or plans.is_open(given)
        report.by_model = report.by_model or plans.unites(given)
      end
      return given
    end)
  end
  local places, order = {}, {}                   -- by what is wrong: where first, and how often
  each_shape(p, report.config, all, function(config, asker, prompt, past)
    local ok, message = pcall(try, config, asker, prompt, past)
    if not ok and report.answers then report.answers[#report.answers + 1] = message end
    if not ok and plans.is_not_simulated(message) then
      drops = true  -- who knows; do not say that it keeps everything
      add(report.notes, "%s", message)
    elseif not ok then
      if not places[message] then
        order[#order + 1] = message
        places[message] = { times = 0,
          text = ("%d layers, %d KV heads, a prompt of %d on %d rows"):format(config.layers,
            config.kv_heads, prompt, past) }
      end
      places[message].times = places[message].times + 1
    end
  end)
  for _, message in ipairs(order) do
    local place = places[message]
    add(report.problems, "%s%s (%s%s)", what, message, place.text,
      place.times > 1 and (", and %d shapes more"):format(place.times - 1) or "")
  end
  if text_of(p.definition.defaults) ~= before then
    add(report.problems, "%schanges its own defaults", what)
  end
  if #order > 0 and not drops then return nil end
  return drops
end

-- ---- options at their limits --------------------------------------------------------------------

-- Values at the limits of an option: both ends, or the low one and one well above the default.
local function extremes(default, limit)
  if type(default) == "boolean" then return { true, false } end
  if not limit then return {} end
  if type(default) == "string" then return limit end
  local low, high, step = limit[1], limit[2], limit[3]
  if not high then
    high = math.max(low, default) * 8 + 1
    if step then high = low + (high - low) // step * step end
  elseif step then high = low + (high - low) // step * step end
  return { low, high }
end

-- All that a policy answers at the shapes, as one text; what is wrong with it goes to `report`, if
-- there is one.
local function answers_of(report, p, all, what, config)
  report = report or { problems = {}, notes = {}, plans = 0, config = config }
  report.answers = {}
  check_plans(report, p, all, what or "")
  local text = table.concat(report.answers, "\n")
  report.answers = nil
  return text
end

-- Whether an option that changes nothing at a few shapes does so at all of them, or beside another
-- option at its limits: one of a merge that is off, for example. `known` has what the policy
-- answers beside each such option, for all options that are asked about.
local function changes_elsewhere(report, p, key, values, known)
  local d = p.definition
  local function differs_from(base, all, beside)
    local before = known[beside] or answers_of(nil, base, all, nil, report.config)
    known[beside] = before
    for _, value in ipairs(values) do
      local ok, changed = pcall(base.with, base, { [key] = value })
      if ok and answers_of(nil, changed, all, nil, report.config) ~= before then return true end
    end
    return false
  end
  if differs_from(p, true, "") then return true end
  for _, other in ipairs(options.sorted_keys(d.defaults)) do
    for _, value in ipairs(other ~= key and extremes(d.defaults[other], d.limits[other]) or {}) do
      local ok, base = pcall(p.with, p, { [other] = value })
      local beside = ("%s=%s"):format(other, tostring(value))
      if ok and differs_from(base, false, beside) then return true end
    end
  end
  return false
end

-- Options that are texts and say nothing by default, such as the path of a file: what goes with
-- them cannot be tried.
local function unsaid(d)
  local names = {}
  for _, key in ipairs(options.sorted_keys(d.defaults)) do
    if d.defaults[key] == "" and not d.limits[key] then names[#names + 1] = ("'%s'"):format(key) end
  end
  return #names > 0 and table.concat(names, " and ") or nil
end

local function check_options(report, p)
  local d, silent = p.definition, {}
  local before = answers_of(nil, p, false, nil, report.config)
  for _, key in ipairs(options.sorted_keys(d.defaults)) do
    local default, limit = d.defaults[key], d.limits[key]
    if type(default) ~= "boolean" and not limit then
      add(report.notes, "option '%s' has no limits", key)
    end
    local values, changes = extremes(default, limit), false
    for _, value in ipairs(values) do
      local ok, changed = pcall(p.with, p, { [key] = value })
      if ok then
        local what = ("%s=%s: "):format(key, tostring(value))
        changes = answers_of(report, changed, false, what) ~= before or changes
      else add(report.problems, "%s", changed) end
    end
    if #values > 0 and not changes then silent[#silent + 1] = { key = key, values = values } end
  end
  for _, name in ipairs(options.sorted_keys(d.presets)) do
    local ok, changed = pcall(p.with, p, { preset = name })
    if ok then
      check_plans(report, changed, false, ("preset=%s: "):format(name))
    else
      add(report.problems, "%s", changed)
    end
  end
  local known = {}
  for _, option in ipairs(#report.problems == 0 and silent or {}) do
    if not changes_elsewhere(report, p, option.key, option.values, known) then
      local without = unsaid(d)
      if without then
        add(report.notes, "option '%s' was tried only without %s", option.key, without)
      else
        add(report.notes, "option '%s' changes no plan at any shape that was tried", option.key)
      end
    end
  end
end

-- ---- forecast and simulation --------------------------------------------------------------------

-- Rows of each layer, on average over heads.
local function rows_by_layer(run)
  local rows = {}
  for index, lanes in ipairs(run) do
    local sum = 0
    for _, lane in ipairs(lanes) do sum = sum + #lane end
    rows[index] = sum / #lanes
  end
  return rows
end

-- What does not depend on what scores say: ascending rows, rows that only disappear, books that
-- balance.
local function watcher(say)
  local before = {}
  return function(run, step)
    for index = 1, run.config.layers do
      for head = 1, run.config.kv_heads do
        local had, last = before[index .. "/" .. head], -1
        local newest = run:tokens() - 1
        for _, position in ipairs(run:positions(index, head)) do
          if position <= last then
            say("layer %d, head %d, step %d: rows do not ascend", index, head, step)
          end
          if had and position ~= newest and not had[position] then
            say("layer %d, head %d, step %d: row %d comes back", index, head, step, position)
          end
          last = position
        end
        local now = {}
        for _, position in ipairs(run:positions(index, head)) do now[position] = true end
        before[index .. "/" .. head] = now
      end
    end
  end
end

local function said(report, message)
  for _, text in ipairs(report.problems) do
    if text:find(message, 1, true) then return true end
  end
  return false
end

local function check_simulation(report, p)
  local noise = require "pyramid.testing".noise(7)
  for _, prompt in ipairs(simulated) do
    local own = report.config or { layers = 4, heads = 4, kv_heads = 2 }
    local config = { layers = own.layers, heads = own.heads, kv_heads = own.kv_heads,
      head_dim = 16 }
    local function say(format, ...)
      add(report.problems, "a prompt of %d: " .. format, prompt, ...)
    end
    local ok, message = pcall(function()
      local forecast = policy.forecast(p, config, prompt)
      local watch = watcher(say)
      local steps = prompt == simulated[#simulated] and 30 or 3
      simulation.run(p, { prompts = { prompt }, layers = config.layers, heads = config.heads,
        kv_heads = config.kv_heads,
        head_dim = 16, steps = steps,
        attention = noise, keys = noise, values = noise, probed = noise,
        tokens = simulation.tokens(noise),
        scores = true, watch = function(run, step)
          if step == 0 then
            local held, foretold = 0, 0
            for index, rows in ipairs(rows_by_layer(run)) do
              local most = forecast[index].rows
              held, foretold = held + rows, foretold + most
              if (rows > most or rows < most and not report.by_mass) and not report.by_model then
                say("layer %d keeps %g rows, its forecast is %g", index, rows, most)
              end
            end
            if report.by_model and math.abs(held - foretold) > 1e-6 and not report.by_mass then
              say("all layers keep %g rows, their forecasts are %g", held, foretold)
            end
          end
          watch(run, step)
        end })
    end)
    if not ok and not said(report, message) then
      add(plans.is_not_simulated(message) and report.notes or report.problems, "%s", message)
    end
  end
end

-- ---- the whole ----------------------------------------------------------------------------------

local function check_definition(report, p)
  local d = p.definition
  if not d.doc or d.doc == "" then
    add(report.problems, "it has no doc: one line that says what it keeps")
  end
  if not d.name:find "^[%a_][%w_]*$" then add(report.notes, "its name is no word: '%s'", d.name) end
  if (d.prefill or d.decode) and not next(d.defaults) then
    add(report.notes, "it has no defaults: nothing can be chosen, such as a ratio")
  end
  if d.trigger and not d.decode then
    add(report.problems, "it has a trigger, but no decode to run")
  end
end

local function check_falls(report, p)
  for _, layers in ipairs(report.config and { report.config.layers } or { 2, 12, 32 }) do
    for _, prompt in ipairs { 200, 3000 } do
      local ok, forecast = pcall(policy.forecast, p,
        report.config or { layers = layers, heads = 4, kv_heads = 2, head_dim = 64 }, prompt)
      for index = 2, ok and layers or 0 do
        if forecast[index].rows > forecast[index - 1].rows then
          add(report.problems,
            "its budget should fall or hold with depth, but layer %d of %d keeps %d rows, and "
              .. "the one before %d", index, layers, forecast[index].rows, forecast[index - 1].rows)
        end
      end
    end
  end
end

local check_keys = { name = "string", falls = "boolean", prunes = "boolean", config = "table" }

---What a policy should be beyond sound.
---@class pyramid.testing.Wanted
---@field name? string
---@field falls? boolean    budgets fall or hold with depth
---@field prunes? boolean   some rows are dropped
---@field config? { layers: integer, heads: integer, kv_heads: integer, head_dim: integer }
---  of the one model that it is made for; its plans are asked for in that shape alone

---Checks a policy, without a model: its definition; that plans are pure and valid at every shape
---and with every option at its limits, and that each option changes some plan (else a note says
---which does not); that a simulation keeps what the forecast says, in order,
---and brings nothing back. Returns a report, or nil and a text that names every problem.
---@param which pyramid.PolicyLike
---@param given? pyramid.testing.Wanted
---@return pyramid.testing.Report?
---@return string? message
---@return pyramid.testing.Report? failed
function checks.policy(which, given)
  given = options.check("testing.check", given, check_keys)
  local p, message = policy.load(which)
  if not p then return nil, message end
  local report = setmetatable({ policy = p, name = p.name, problems = {}, notes = {},
    by_mass = false, by_model = false, plans = 0, config = given.config }, Report)
  if given.name and given.name ~= p.name then
    add(report.problems, "its name should be '%s'", given.name)
  end
  check_definition(report, p)
  report.keeps_everything = check_plans(report, p, true, "") == false
  if report.keeps_everything then
    add(given.prunes and report.problems or report.notes,
      "keeps everything: it drops no row at any shape")
  end
  if given.falls then check_falls(report, p) end
  check_options(report, p)
  check_simulation(report, p)
  if #report.problems == 0 then return report end
  return nil, tostring(report), report
end

-- Paths of the Lua files in a folder, sorted.
local function files_of(folder)
  local lfs = require "lfs"
  local names = {}
  for name in lfs.dir(folder) do
    if name:find "%.lua$" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

---Checks every policy file in a folder; a file's name is its policy's. Returns the reports, or nil
---and a text that names every problem of every file.
---@param folder string
---@param given? table<string, table>  options of `check` by a policy's name
---@return pyramid.testing.Report[]?
---@return string? message
function checks.folder(folder, given)
  given = given or {}
  local reports, texts = {}, {}
  for _, file in ipairs(files_of(folder)) do
    local name, wanted = file:sub(1, -5), { name = file:sub(1, -5) }
    for key, value in pairs(given[name] or {}) do wanted[key] = value end
    local report, message = checks.policy(folder .. "/" .. file, wanted)
    if report then
      reports[#reports + 1] = report
    else
      texts[#texts + 1] = ("%s: %s"):format(file, message)
    end
  end
  if #texts > 0 then return nil, table.concat(texts, "\n") end
  if #reports == 0 then
    return nil, ("testing.check_folder: '%s' holds no policy files"):format(folder)
  end
  return reports
end

return checks
