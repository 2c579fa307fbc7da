-- One budget for the lanes of all layers (share = "model"), chosen at once in plain Lua: a sort.
-- What is kept of lanes = { { layer, head, rows = positions, x = { [position] = score } } }, in
-- their order: { [lane] = { [position] = true } }. plan_of(layer): { keep, guard, least }.
return function(lanes, plan_of)
  local budget, entries, kept = 0, {}, {}
  for i, lane in ipairs(lanes) do
    local plan = plan_of(lane.layer)
    local rows = #lane.rows
    local first = math.min(plan.guard.first, rows)
    local last = math.min(plan.guard.last, rows - first)
    budget = budget + plan.keep - first - last
    local own = {}
    kept[i] = {}
    for j, position in ipairs(lane.rows) do
      if j <= first or j > rows - last then kept[i][position] = true
      else own[#own + 1] = { lane = i, position = position, x = lane.x[position] } end
    end
    table.sort(own, function(a, b) return a.x > b.x or a.x == b.x and a.position < b.position end)
    local least = math.max(math.min(math.max(plan.least or 0, 1) - first - last, #own), 0)
    for j, entry in ipairs(own) do
      if j <= least then
        kept[i][entry.position], budget = true, budget - 1
      else
        entries[#entries + 1] = entry
      end
    end
  end
  table.sort(entries, function(a, b)
    if a.x ~= b.x then return a.x > b.x end
    if a.lane ~= b.lane then return a.lane < b.lane end
    return a.position < b.position
  end)
  for j = 1, math.min(math.max(budget, 0), #entries) do
    kept[entries[j].lane][entries[j].position] = true
  end
  return kept
end
