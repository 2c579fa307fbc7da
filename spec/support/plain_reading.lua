--- Which rows a step reads where it reads less than is held, in plain Lua, as the papers write it:
--- what pyr_read and the policies that use it are held against.
local digests = require "spec.support.digests"
local reference = require "spec.support.ops_reference"

local reading = {}

local PAGE <const> = 32

--- The rows of a lane (of plain_llama) that these queries read, all heads of its group.
---@param o { rows: integer, by: string, first: integer, last: integer, scale: number, cap?: number,
---  slopes?: number[], window?: integer }
function reading.rows(o, lane, queries, position)
  local all, settled, count, low = (#lane + PAGE - 1) // PAGE, {}, 0, 0
  local function last_of(page) return math.min((page + 1) * PAGE, #lane) end
  while (o.window or 0) > 0 and position - lane[last_of(low)].position >= o.window do
    low = low + 1
  end
  for page = low, all - 1 do
    settled[page] = page * PAGE < o.first or last_of(page) > #lane - math.max(o.last, 1)
    if settled[page] then count = count + 1 end
  end
  local scores, order = {}, {}
  for page = low, all - 1 do
    if not settled[page] then
      local keys = {}
      for row = page * PAGE + 1, (page + 1) * PAGE do keys[#keys + 1] = lane[row].turned end
      local digest, most = digests.of(o.by, keys), -math.huge
      for h, q in ipairs(queries) do
        most = math.max(most, reference.bent(digests.score(o.by, q, digest) * o.scale, o.cap,
          o.slopes and o.slopes[h], position - lane[last_of(page)].position))
      end
      scores[page] = most
      order[#order + 1] = page
    end
  end
  table.sort(order, function(a, b)
    if scores[a] ~= scores[b] then return scores[a] > scores[b] end
    return a < b
  end)
  for i = 1, math.min((o.rows + PAGE - 1) // PAGE - count, #order) do settled[order[i]] = true end
  local rows = {}
  for page = low, all - 1 do
    if settled[page] then table.move(lane, page * PAGE + 1, last_of(page), #rows + 1, rows) end
  end
  return rows
end

return reading
