--- What the plans of a run did, from the lines that --trace wrote: read, summed up, drawn.
---
--- Records come in the order in which plans were carried out: all layers of a prefill, then those
--- layers whose trigger fired after a step, and so on. Those of one policy and model make a run of
--- their own; what was carried out at the same number of tokens is one moment of it.
local core = require "pyramid.core"
local json = require "pyramid.json"
local options = require "pyramid.options"
local picture = require "pyramid.tools.picture"

local trace = {}

---The records of a file.
---@param path string
---@return pyramid.Trace[]|nil
---@return string? message
---@return string? code
function trace.read(path)
  local file <close>, message = io.open(path, "rb")
  if not file then return nil, message, "io" end
  local records = {}
  for line in file:lines() do
    local record, why = json.decode(line)
    if type(record) ~= "table" or not record.layer or not record.when then
      return nil, ("%s, line %d: %s"):format(path, #records + 1, why or "not a plan's record"),
        "format"
    end
    records[#records + 1] = record
  end
  return records
end

local function label_of(record)
  local words = { record.policy }
  for _, key in ipairs(options.sorted_keys(record.options or {})) do
    words[#words + 1] = ("%s=%s"):format(key, record.options[key])
  end
  return table.concat(words, " ")
end

---@class pyramid.TracedLayer
---@field layer integer
---@field prefills integer      plans of each kind
---@field decodes integer
---@field evicts integer
---@field rows number           before the plans, mean over them and over heads
---@field candidates number
---@field kept number
---@field evicted integer       rows, of all plans and heads
---@field hidden? number        prefill: tokens that reached the layer …
---@field hidden_kept? number   … and that went on, means over prefills
---@field seconds number        of all plans
---@field bytes integer         after the last
---@field why string            of the last plan that evicted, or of the last

---@class pyramid.TracedMoment
---@field tokens integer
---@field when string
---@field layers integer        that had a plan
---@field rows number           a layer's head before, on average
---@field kept number           and after

---@class pyramid.TracedRun
---@field model? string
---@field label string          the policy and its options
---@field plans integer
---@field seconds number
---@field evicted integer
---@field layers pyramid.TracedLayer[]
---@field moments pyramid.TracedMoment[]

local function new_layer(record)
  return { layer = record.layer, prefills = 0, decodes = 0, evicts = 0, rows = 0, candidates = 0,
    kept = 0, evicted = 0, seconds = 0, bytes = 0, why = record.why }
end

local function add_to_layer(layer, record)
  local counter = record.when .. "s"
  layer[counter] = layer[counter] + 1
  for _, key in ipairs { "rows", "candidates", "kept" } do
    layer[key] = layer[key] + record[key].mean
  end
  layer.evicted, layer.seconds = layer.evicted + record.evicted, layer.seconds + record.seconds
  layer.bytes = record.bytes
  if record.hidden then
    layer.hidden = (layer.hidden or 0) + record.hidden
    layer.hidden_kept = (layer.hidden_kept or 0) + record.hidden_kept
  end
  local acts = record.evicted > 0 or record.hidden ~= record.hidden_kept
  if acts or not layer.acted then layer.why, layer.acted = record.why, acts or layer.acted end
end

local function conclude_layer(layer)
  local plans = layer.prefills + layer.decodes + layer.evicts
  for _, key in ipairs { "rows", "candidates", "kept" } do layer[key] = layer[key] / plans end
  if layer.hidden then
    layer.hidden, layer.hidden_kept = layer.hidden / layer.prefills,
      layer.hidden_kept / layer.prefills
  end
  layer.acted = nil
end

-- The moment that a record belongs to: the last one, unless that has seen this layer.
local function moment_of(run, record)
  local last = run.moments[#run.moments]
  if last and last.tokens == record.tokens and last.when == record.when
    and not last.seen[record.layer] then
    return last
  end
  last = { tokens = record.tokens, when = record.when, layers = 0, rows = 0, kept = 0, seen = {} }
  run.moments[#run.moments + 1] = last
  return last
end

---Records, summed up by run, layer and moment.
---@param records pyramid.Trace[]
---@return pyramid.TracedRun[]
function trace.runs(records)
  local runs, by_label = {}, {}
  for _, record in ipairs(records) do
    local label = label_of(record)
    local key = label .. "\n" .. tostring(record.model)
    local run = by_label[key]
    if not run then
      run = { model = record.model, label = label, plans = 0, seconds = 0, evicted = 0,
        layers = {}, moments = {} }
      by_label[key], runs[#runs + 1] = run, run
    end
    for layer = #run.layers + 1, record.layer do
      run.layers[layer] = new_layer { layer = layer, why = "no plan" }
    end
    local moment = moment_of(run, record)
    add_to_layer(run.layers[record.layer], record)
    moment.layers, moment.rows, moment.kept = moment.layers + 1, moment.rows + record.rows.mean,
      moment.kept + record.kept.mean
    moment.seen[record.layer] = true
    run.plans, run.seconds = run.plans + 1, run.seconds + record.seconds
    run.evicted = run.evicted + record.evicted
  end
  for _, run in ipairs(runs) do
    for _, layer in ipairs(run.layers) do
      if layer.prefills + layer.decodes + layer.evicts > 0 then conclude_layer(layer) end
    end
    for _, moment in ipairs(run.moments) do
      moment.rows, moment.kept = moment.rows / moment.layers, moment.kept / moment.layers
      moment.seen = nil
    end
  end
  return runs
end

-- ---- drawing ------------------------------------------------------------------------------------

local MOMENTS = 24      -- lines of a picture, at most

local function plans_of(layer)
  local words = {}
  for _, kind in ipairs { "prefill", "decode", "evict" } do
    local count = layer[kind .. "s"]
    if count > 0 then words[#words + 1] = count == 1 and kind or ("%d %ss"):format(count, kind) end
  end
  return table.concat(words, ", ")
end

-- Ascending numbers in words: "1-4, 7".
local function ranges_of(numbers)
  local parts, from = {}, 1
  for i, n in ipairs(numbers) do
    if numbers[i + 1] ~= n + 1 then
      parts[#parts + 1] = from == i and ("%d"):format(n) or ("%d-%d"):format(numbers[from], n)
      from = i + 1
    end
  end
  return table.concat(parts, ", ")
end

-- A text in lines of a width, cut at spaces; all but the first are indented.
local function wrapped(text, width)
  local lines, line = {}, ""
  for word in text:gmatch "%S+" do
    if line ~= "" and picture.columns(line) + 1 + picture.columns(word) > width then
      lines[#lines + 1], line = line, "   "
    end
    line = line == "" and word or line .. " " .. word
  end
  lines[#lines + 1] = line
  return lines
end

-- By what rows were ranked, once and in full for all layers where that is the same.
local function reasons_of(pic, run)
  local layers, order, lines = {}, {}, {}
  for _, layer in ipairs(run.layers) do
    if not layers[layer.why] then layers[layer.why], order[#order + 1] = {}, layer.why end
    table.insert(layers[layer.why], layer.layer)
  end
  for _, why in ipairs(order) do
    local some = layers[why]
    local ranks = why ~= "fits" and why ~= "no plan"
    local text = ("%s %s: %s%s"):format(#some == 1 and "layer" or "layers", ranges_of(some),
      ranks and "ranked by " or "", why)
    for _, line in ipairs(wrapped(text, pic.width)) do lines[#lines + 1] = line end
  end
  return lines
end

local function table_of(pic, run)
  local hides = false
  for _, layer in ipairs(run.layers) do
    hides = hides or layer.hidden and layer.hidden_kept < layer.hidden
  end
  local head = { "layer", "plans", "rows", "ranked", "kept", "evicted" }
  if hides then head[#head + 1] = "tokens on" end
  for _, name in ipairs { "seconds", "KiB" } do head[#head + 1] = name end
  local rows = { {} }
  for i, name in ipairs(head) do rows[1][i] = pic:paint(name, "dim") end
  for i, layer in ipairs(run.layers) do
    local row = { ("%d"):format(layer.layer), plans_of(layer), ("%.0f"):format(layer.rows),
      ("%.0f"):format(layer.candidates), ("%.0f"):format(layer.kept),
        ("%d"):format(layer.evicted) }
    if hides then
      row[#row + 1] = layer.hidden and ("%.0f/%.0f"):format(layer.hidden_kept, layer.hidden) or ""
    end
    row[#row + 1] = ("%.4f"):format(layer.seconds)
    row[#row + 1] = ("%.1f"):format(layer.bytes / 1024)
    rows[i + 1] = row
  end
  local lines = picture.table(rows, "><>")
  for i, line in ipairs(lines) do lines[i] = pic:cut(line, pic.width) end
  return lines
end

-- At most MOMENTS of them: the first, the last, and what lies evenly between.
local function chosen(moments)
  if #moments <= MOMENTS then return moments end
  local some = {}
  for i = 1, MOMENTS do
    some[i] = moments[1 + (i - 1) * (#moments - 1) // (MOMENTS - 1)]
  end
  return some
end

local function moments_of(pic, run)
  local most, lines, some = 1, {}, chosen(run.moments)
  for _, moment in ipairs(run.moments) do most = math.max(most, moment.rows) end
  local wide = math.max(10, pic.width - 42)
  for i, moment in ipairs(some) do
    lines[i] = ("%8d %-7s %3d  %s %6.0f > %.0f"):format(moment.tokens, moment.when, moment.layers,
      pic:loss(moment.kept / most, moment.rows / most, wide), moment.rows, moment.kept)
  end
  if #some < #run.moments then
    lines[#lines + 1] = ("%d of %d moments are shown"):format(#some, #run.moments)
  end
  return lines
end

---A run as lines of text: what ranked its rows, a table by layer, and rows before and after each
---plan over time.
---@param pic pyramid.Picture
---@param run pyramid.TracedRun
---@return string[]
function trace.draw(pic, run)
  local _ <close> = core.plain_locale()
  local lines = { pic:paint(pic:cut(run.label, pic.width), "bold") }
  if run.model then lines[2] = pic:paint(pic:cut(run.model, pic.width), "dim") end
  lines[#lines + 1] = ("%d plans, %d rows evicted over all heads, in %s"):format(run.plans,
    run.evicted, picture.seconds(run.seconds))
  for _, line in ipairs(reasons_of(pic, run)) do lines[#lines + 1] = line end
  lines[#lines + 1] = ""
  lines[#lines + 1] = pic:paint(pic:cut("rows, ranked, kept: per head, mean over plans; "
    .. "evicted: all heads and plans", pic.width), "dim")
  for _, line in ipairs(table_of(pic, run)) do lines[#lines + 1] = line end
  lines[#lines + 1] = ""
  lines[#lines + 1] = pic:paint("rows of a head over time: what stayed, what left; tokens seen, "
    .. "plan, layers", "dim")
  for _, line in ipairs(moments_of(pic, run)) do lines[#lines + 1] = line end
  return lines
end

return trace
