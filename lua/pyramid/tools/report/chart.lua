--- Curves over an axis as inline SVG: scales with round ticks, markers that differ in shape as well
--- as in colour, and each curve's name beside it, where it covers the least.
---
--- Colours are the page's: class s1 … s8 sets --c (see report/style.lua). A chart is as wide as a
--- telephone, in units that are pixels there, so that letters stay readable.
local core = require "pyramid.core"
local html = require "pyramid.tools.report.html"

local chart = {}

local element, text = html.element, html.text

chart.width, chart.height = 360, 290
local left, right, top, bottom = 40, 18, 26, 38
local letter, line_height = 7.2, 13  -- of a label, about: the page's font is not known here

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

local function overlap(a, b)
  local w = math.min(a.x + a.w, b.x + b.w) - math.max(a.x, b.x)
  local h = math.min(a.y + a.h, b.y + b.h) - math.max(a.y, b.y)
  return w > 0 and h > 0 and w * h or 0
end

-- Places along a polyline, near enough to each other that no label slips between them.
local function samples(points)
  local out = {}
  for i, p in ipairs(points) do
    out[#out + 1] = { p.x, p.y, 4 }                                 -- markers weigh more than lines
    local q = points[i + 1]
    local steps = q and math.max(1, math.floor(math.max(math.abs(q.x - p.x),
      math.abs(q.y - p.y)) / 3)) or 0
    for s = 1, steps - 1 do
      out[#out + 1] = { p.x + (q.x - p.x) * s / steps, p.y + (q.y - p.y) * s / steps, 1 }
    end
  end
  return out
end

local function candidates(points, width)
  local list = {}
  local function add(x, y, bias, anchor)
    list[#list + 1] = { x = x, y = y, w = width, h = line_height, bias = bias, anchor = anchor }
  end
  for i, p in ipairs(points) do
    local ends = (i == 1 or i == #points) and 0 or 1.5
    add(p.x + 8, p.y - line_height / 2, ends)
    add(p.x - 8 - width, p.y - line_height / 2, ends, "end")
    for _, shift in ipairs { 0.5, 0.15, 0.85 } do
      add(p.x - width * shift, p.y - 8 - line_height, ends + 0.5)
      add(p.x - width * shift, p.y + 8, ends + 0.7)
    end
    local q = points[i + 1]
    if q then
      local x, y = (p.x + q.x) / 2, (p.y + q.y) / 2
      add(x + 5, y, 1)
      add(x - 5 - width, y - line_height, 1)
      add(x + 5, y - line_height - 2, 1)
      add(x - 5 - width, y + 2, 1)
    end
  end
  return list
end

-- Where each curve's name goes: boxes, in the order of the curves. Two rounds, so that the first
-- ones get out of the way of the last.
local function place(curves, frame, taken)
  local boxes, along = {}, {}
  for i, curve in ipairs(curves) do along[i] = samples(curve.points) end
  for _ = 1, 2 do
    for i, curve in ipairs(curves) do
      local best, least
      for _, box in ipairs(#curve.points > 0 and candidates(curve.points,
        #curve.short * letter + 4) or {}) do
        if box.x >= frame.x + 2 and box.y >= frame.y and box.x + box.w <= frame.x + frame.w
          and box.y + box.h <= frame.y + frame.h then
          local cost = box.bias
          for j, places in ipairs(along) do
            for _, s in ipairs(places) do
              if s[1] > box.x - 3 and s[1] < box.x + box.w + 3 and s[2] > box.y - 2
                and s[2] < box.y + box.h + 2 then
                cost = cost + s[3] * (j == i and 1 or 2)
              end
            end
          end
          for _, other in ipairs(taken) do cost = cost + overlap(box, other) end
          for j, other in pairs(boxes) do
            if j ~= i then cost = cost + overlap(box, other) end
          end
          if not least or cost < least then best, least = box, cost end
        end
      end
      boxes[i] = best
    end
  end
  return boxes
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

---@param given pyramid.Chart
---@return string
function chart.render(given)
  local _ <close> = core.plain_locale()
  local w, h = chart.width - left - right, chart.height - top - bottom
  local function px(x) return left + given.x.at(x) * w end
  local function py(y) return top + (1 - given.y.at(y)) * h end
  local out = {}
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
  add("text", { class = "axis-name", x = left + w, y = chart.height - 5, ["text-anchor"] = "end" },
    text(given.x_label))

  local taken = {}
  if given.front and #given.front > 1 then
    local d = {}
    for i, p in ipairs(given.front) do
      d[i] = ("%s%.1f %.1f"):format(i == 1 and "M" or "L", px(p.x), py(p.y))
    end
    add("path", { class = "front", d = table.concat(d) })
  end
  if given.reference then
    local y = py(given.reference.y)
    add("line", { class = "reference", x1 = left, x2 = left + w, y1 = y, y2 = y })
    local box = { x = left + 4, y = y > top + 16 and y - line_height - 2 or y + 3,
      w = #given.reference.label * letter, h = line_height }
    taken[1] = box
    add("text", { class = "label s0", x = box.x, y = box.y + 10 }, text(given.reference.label))
  end

  local curves = {}
  for i, curve in ipairs(given.curves) do
    curves[i] = { short = curve.short, points = {} }
    for k, p in ipairs(curve.points) do curves[i].points[k] = { x = px(p.x), y = py(p.y) } end
  end
  local marks = {}
  for i, curve in ipairs(given.curves) do
    local d = {}
    for _, source in ipairs(curve.points) do
      if source.half then                                                -- as far as the axis goes
        local function end_of(y) return py(math.max(given.y.low, math.min(given.y.high, y))) end
        add("line", { class = "error " .. chart.colour(curve.index), x1 = px(source.x),
          x2 = px(source.x), y1 = end_of(source.y - source.half),
            y2 = end_of(source.y + source.half) })
      end
    end
    for k, p in ipairs(curves[i].points) do
      d[k] = ("%s%.1f %.1f"):format(k == 1 and "M" or "L", p.x, p.y)
      local source = curve.points[k]
      marks[#marks + 1] = element("g", { class = "mark " .. chart.colour(curve.index),
        tabindex = "0", role = "img",
        ["aria-label"] = source.title }, {
        element("title", nil, text(source.title)),
          element("circle", { class = "hit", cx = p.x, cy = p.y, r = 9 }),
        element("path", { class = source.front and "on" or "off",
          d = chart.marker(curve.index, p.x, p.y, 4.2) }),
      })
    end
    if #d > 1 then
      add("path", { class = "curve " .. chart.colour(curve.index), d = table.concat(d),
        ["stroke-dasharray"] = curve.index > 7 and "5 3" })
    end
  end
  for _, mark in ipairs(marks) do out[#out + 1] = mark end
  local boxes = place(curves, { x = left, y = top, w = w, h = h }, taken)
  for i, curve in ipairs(given.curves) do
    if boxes[i] then
      local box = boxes[i]
      add("text", { class = "label " .. chart.colour(curve.index),
        x = box.anchor and box.x + box.w or box.x + 2, y = box.y + 10,
          ["text-anchor"] = box.anchor }, text(curve.short))
    end
  end
  return element("svg", { class = "chart", viewBox = ("0 0 %d %d"):format(chart.width,
    chart.height), role = "group", ["aria-label"] = given.describe }, out)
end

return chart
