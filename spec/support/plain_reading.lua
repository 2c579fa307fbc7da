--- Which rows a step reads where it reads less than is held, in plain Lua, as the papers write it:
--- what pyr_read and the policies that use it are held against.
local digests = require "spec.support.digests"
local reference = require "spec.support.ops_reference"

local reading = {}

local PAGE <const> = 32

-- The pages of one tier of a lane that this query sees: { first, last, settled, row } each, with
-- rows counted from 1.
local function pages_of(o, lane, position, hot)
  local pages = {}
  for first = 1, #lane, PAGE do
    local last = math.min(first + PAGE - 1, #lane)
    if (o.window or 0) == 0 or position - lane[last].position < o.window then
      local settled = last - first + 1 < PAGE
      if hot then settled = first <= o.first or last > #lane - math.max(o.last, 1) end
      pages[#pages + 1] = { lane = lane, first = first, last = last, settled = settled }
    end
  end
  return pages
end

--- The rows of a lane (of plain_llama) that these queries read, all heads of its group; `below`:
--- what lies in its lower tiers, whose pages compete with the lane's.
---@param o { rows: integer, by: string, first: integer, last: integer, scale: number, cap?: number,
---  slopes?: number[], window?: integer }
---@param below? table[]   lanes
function reading.rows(o, lane, queries, position, below)
  local pages, order, count = pages_of(o, lane, position, true), {}, 0
  for _, lower in ipairs(below or {}) do
    table.move(pages_of(o, lower, position), 1, #lower, #pages + 1, pages)
  end
  for i, page in ipairs(pages) do
    if page.settled then
      count = count + 1
    else
      local keys = {}
      for row = page.first, page.last do keys[#keys + 1] = page.lane[row].turned end
      local digest, most = digests.of(o.by, keys), -math.huge
      for h, q in ipairs(queries) do
        most = math.max(most, reference.bent(digests.score(o.by, q, digest) * o.scale, o.cap,
          o.slopes and o.slopes[h], position - page.lane[page.last].position))
      end
      page.score, page.place = most, i
      order[#order + 1] = page
    end
  end
  table.sort(order, function(a, b)
    if a.score ~= b.score then return a.score > b.score end
    return a.place < b.place
  end)
  for i = 1, math.min((o.rows + PAGE - 1) // PAGE - count, #order) do order[i].settled = true end
  local rows = {}
  for _, page in ipairs(pages) do
    if page.settled then table.move(page.lane, page.first, page.last, #rows + 1, rows) end
  end
  return rows
end

return reading
