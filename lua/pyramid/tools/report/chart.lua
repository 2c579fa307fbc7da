--- Curves over an axis as inline SVG: scales with round ticks, markers that differ in shape as well
--- as in colour, and each curve's name in a column at the right, where none covers another.
---
--- Colours are the page's: class s1 … s7 sets --c (see report/style.lua). A chart is drawn for a
--- wide page and for a telephone, in units that are pixels there, so that letters stay readable.
local core = require "pyramid.core"
local html = require "pyramid.tools.report.html"

local chart = {}

local element, text = html.element, html.text

-- Units are pixels, about. A chart grows in height if its labels ask for it.
local layouts = { { name = "wide", width = 1000, height = 480 },
  { name = "narrow", width = 400, height = 340 } }
local left, top, bottom = 42, 26, 38
local gap = 22                       -- between the axes' end and the labels
local letter, line_height = 7, 14    -- of a label, about: the page's font is not known here

-- ---- scales -------------------------------------------------------------------------------------

---A round step that makes at most `most` of a span.
---@param span number
---@param most integer
---@return number
function chart.step(span, most)
  local rough = span / most
  local power = 10 ^ math.floor(math.log(rough, 10))
  for _, times in ipairs { 1, 2, 2.5, 5 } do
    if times * power >= rough * (1 - 1e-9) then return times * power end
  end
  return 10 * power
end

---@class pyramid.Scale
---@field low number
---@field high number
---@field log boolean
---@field ticks number[]
---@field at fun(value: number): number   from 0 to 1

---A scale that holds all values, with round ends. Logarithmic, if `log` allows it and the values
---span more than that many times the least.
---@param values number[]
---@param given? { low?: number, high?: number, log?: number, ticks?: integer }
---@return pyramid.Scale
function chart.scale(values, given)
  given = given or {}
  local low, high = math.huge, -math.huge
  for _, value in ipairs(values) do low, high = math.min(low, value), math.max(high, value) end
  if low > high then low, high = 0, 1 end
  local scale = { ticks = {}, log = (given.log and low > 0 and high / low > given.log) and true
    or false }
  if scale.log then
    -- 1, 2, 5, 10, 20, …
    local function third(n) return ({ [0] = 1, 2, 5 })[n % 3] * 10.0 ^ (n // 3) end
    local from, to = math.floor(math.log(low, 10) * 3 + 1e-9),
      math.ceil(math.log(high, 10) * 3 - 1e-9)
    while third(from) > low do from = from - 1 end
    while third(to) < high do to = to + 1 end
    scale.low, scale.high = third(from), third(to)
    for n = from, to do
      if to - from <= 9 or n % 3 == 0 then table.insert(scale.ticks, third(n)) end
    end
    scale.at = function(value) return math.log(value / scale.low) / math.log(
      scale.high / scale.low) end
    return scale
  end
  low, high = given.low or low, given.high or high
  if high <= low then  -- a single value; an end that is given stays
    local value = low
    if not given.low then low = value - 0.5 * math.abs(value) - (value == 0 and 0.5 or 0) end
    if not given.high or given.low then high = value + 0.5 * math.abs(value) + 0.5 end
  end
  local step = chart.step(high - low, given.ticks or 5)
  local first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  for n = first, last do table.insert(scale.ticks, n * step) end
  scale.low, scale.high = first * step, last * step
  scale.at = function(value) return (value - scale.low) / (scale.high - scale.low) end
  return scale
end

---A number as short as its tick marks allow.
---@param value number
---@return string
function chart.number(value)
  local _ <close> = core.plain_locale()
  if value ~= 0 and math.abs(value) < 0.001 then return ("%.0e"):format(value) end
  if math.abs(value) >= 10000 then return ("%.4gk"):format(value / 1000) end
  return ("%.4g"):format(value)
end

-- ---- markers ------------------------------------------------------------------------------------

local shapes = {
  function(x, y, r)                                                      -- circle
    return ("M%.1f %.1fa%.1f %.1f 0 1 0 %.1f 0a%.1f %.1f 0 1 0 -%.1f 0z"):format(x - r, y, r, r,
      2 * r, r, r, 2 * r)
  end,
  function(x, y, r)                                                      -- square
    r = r * 0.9
    return ("M%.1f %.1fh%.1fv%.1fh-%.1fz"):format(x - r, y - r, 2 * r, 2 * r, 2 * r)
  end,
  function(x, y, r)                                                      -- triangle
    r = r * 1.15
    return ("M%.1f %.1fl%.1f %.1fh-%.1fz"):format(x, y - r, r, 1.8 * r, 2 * r)
  end,
  function(x, y, r)                                                      -- diamond
    r = r * 1.3
    return ("M%.1f %.1fl%.1f %.1fl-%.1f %.1fl-%.1f -%.1fz"):format(x, y - r, r, r, r, r, r, r)
  end,
  function(x, y, r)                                                      -- triangle on its head
    r = r * 1.15
    return ("M%.1f %.1fl%.1f -%.1fh-%.1fz"):format(x, y + r, r, 1.8 * r, 2 * r)
  end,
}

---A marker's path. Shapes repeat after five, colours after seven, so 35 series look different.
---@param index integer    of the series, from 1
---@param x number
---@param y number
---@param r number
---@return string
function chart.marker(index, x, y, r) return shapes[(index - 1) % #shapes + 1](x, y, r) end

---The class that gives a series its colour; 0 is the full cache.
---@param index integer
---@return string
function chart.colour(index) return index == 0 and "s0" or "s" .. ((index - 1) % 7 + 1) end

-- ---- labels -------------------------------------------------------------------------------------

---Where labels go in a column: each as near as can be to where it wants to be, none over another.
---Neighbours that would touch move as one block, to the mean of what they want.
---@param wanted number[]     centres, in order
---@param pitch number        the least distance of two
---@param low number          none lies below this
---@param high number         nor above this, if there is room
---@return number[]
function chart.spread(wanted, pitch, low, high)
  local blocks = {}
  local function settle(block)                             -- sum: of what its first label wants
    local most = math.max(low, high - (block.n - 1) * pitch)
    block.at = math.max(low, math.min(most, block.sum / block.n))
  end
  for _, y in ipairs(wanted) do
    local block = { n = 1, sum = y }
    settle(block)
    while #blocks > 0 and blocks[#blocks].at + blocks[#blocks].n * pitch > block.at do
      local before = table.remove(blocks)
      block = { n = before.n + block.n,
        sum = before.sum + block.sum - before.n * block.n * pitch }
      settle(block)
    end
    blocks[#blocks + 1] = block
  end
  local out = {}
  for _, block in ipairs(blocks) do
    for i = 0, block.n - 1 do out[#out + 1] = block.at + i * pitch end
  end
  return out
end

-- ---- the chart ----------------------------------------------------------------------------------

---@class pyramid.Curve
---@field name string
---@field short string        what stands beside it
---@field index integer       chooses marker and colour
---@field points { x: number, y: number, half?: number, title: string, front?: boolean }[]
---  in the order they are connected; half: of the interval that y is uncertain by

---@class pyramid.Chart
---@field title string
---@field describe string     what a screen reader says of it
---@field x pyramid.Scale
---@field y pyramid.Scale
---@field x_label string
---@field y_label string
---@field x_format fun(value: number): string
---@field y_format fun(value: number): string
---@field curves pyramid.Curve[]
---@field reference { y: number, label: string }?   a dashed line
---@field front { x: number, y: number }[]?         a line behind all others

-- A series: its errors, its curve, its points, and a line to its label in the column.
local function series(given, curve, px, py, first)
  local out, d = {}, {}
  for k, p in ipairs(curve.points) do
    d[k] = ("%s%.1f %.1f"):format(k == 1 and "M" or "L", px(p.x), py(p.y))
    if p.half then                                                       -- as far as the axis goes
      local function end_of(y) return py(math.max(given.y.low, math.min(given.y.high, y))) end
      out[#out + 1] = element("line", { class = "error", x1 = px(p.x), x2 = px(p.x),
        y1 = end_of(p.y - p.half), y2 = end_of(p.y + p.half) })
    end
  end
  if #d > 1 then
    out[#out + 1] = element("path", { class = "curve", d = table.concat(d),
      ["stroke-dasharray"] = curve.index > 7 and "5 3" })
  end
  for k, p in ipairs(curve.points) do
    out[#out + 1] = element("g", { class = "mark", role = "img",
      tabindex = first and k == 1 and "0" or "-1" }, {
      element("title", nil, text(p.title)),
      element("circle", { class = "hit", cx = px(p.x), cy = py(p.y), r = 9 }),
      element("path", { class = p.front and "on" or "off",
        d = chart.marker(curve.index, px(p.x), py(p.y), 4.2) }) })
  end
  return out
end

-- The column of labels at the right: { x, y, text, colour, and the list its label is added to }.
local function label_column(labels, at, low, high)
  table.sort(labels, function(one, other) return one.y < other.y end)
  local wanted = {}
  for i, label in ipairs(labels) do wanted[i] = label.y end
  for i, y in ipairs(chart.spread(wanted, line_height, low, high)) do
    local label = labels[i]
    table.insert(label.into, element("path", { class = "leader",
      d = ("M%.1f %.1fL%.1f %.1f"):format(label.x, label.y, at - 3, y) }))
    table.insert(label.into, element("text", { class = "label", x = at, y = y + 4 },
      text(label.text)))
  end
end

local function draw(given, layout)
  local widest = given.reference and utf8.len(given.reference.label) or 0
  for _, curve in ipairs(given.curves) do
    widest = math.max(widest, utf8.len(curve.short) or #curve.short)
  end
  local rows = (#given.curves + 1) * line_height
  local w = layout.width - left - gap - widest * letter
  local h = math.max(layout.height - top - bottom, rows)
  local function px(x) return left + given.x.at(x) * w end
  local function py(y) return top + (1 - given.y.at(y)) * h end
  local out, labels = {}, {}
  local function add(...) out[#out + 1] = element(...) end

  add("text", { class = "axis-name", x = 4, y = 13 }, text(given.y_label))
  for _, tick in ipairs(given.y.ticks) do
    add("line", { class = "grid", x1 = left, x2 = left + w, y1 = py(tick), y2 = py(tick) })
    add("text", { class = "tick", x = left - 6, y = py(tick) + 4, ["text-anchor"] = "end" },
      text(given.y_format(tick)))
  end
  for _, tick in ipairs(given.x.ticks) do
    add("line", { class = "grid", x1 = px(tick), x2 = px(tick), y1 = top, y2 = top + h })
    add("text", { class = "tick", x = px(tick), y = top + h + 15, ["text-anchor"] = "middle" },
      text(given.x_format(tick)))
  end
  add("text", { class = "axis-name", x = left + w, y = top + h + 33, ["text-anchor"] = "end" },
    text(given.x_label))

  if given.front and #given.front > 1 then
    local d = {}
    for i, p in ipairs(given.front) do
      d[i] = ("%s%.1f %.1f"):format(i == 1 and "M" or "L", px(p.x), py(p.y))
    end
    add("path", { class = "front", d = table.concat(d) })
  end
  local drawn = {}
  if given.reference then
    local y = py(given.reference.y)
    add("line", { class = "reference", x1 = left, x2 = left + w, y1 = y, y2 = y })
    drawn[0] = {}
    labels[1] = { x = left + w, y = y, text = given.reference.label, into = drawn[0] }
  end
  for i, curve in ipairs(given.curves) do
    local last = curve.points[#curve.points]
    drawn[i] = series(given, curve, px, py, i == 1)
    labels[#labels + 1] = { x = px(last.x) + 7, y = py(last.y), text = curve.short,
      into = drawn[i] }
  end
  label_column(labels, left + w + gap - 4, top, top + h)
  for i = 0, #given.curves do
    local index = i == 0 and 0 or given.curves[i].index
    if drawn[i] then
      add("g", { class = "series " .. chart.colour(index), ["data-s"] = i > 0 and index },
        drawn[i])
    end
  end
  return element("svg", { class = "chart " .. layout.name .. (#given.curves > 6 and " many" or ""),
    viewBox = ("0 0 %d %.0f"):format(layout.width, top + h + bottom), role = "group",
    ["aria-label"] = given.describe }, out)
end

---A chart twice: for a wide page and for a narrow one; the page's style shows one of them.
---@param given pyramid.Chart
---@return string
function chart.render(given)
  local _ <close> = core.plain_locale()
  return draw(given, layouts[1]) .. draw(given, layouts[2])
end

return chart
