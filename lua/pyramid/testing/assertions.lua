--- Assertions for Busted (luassert): assert.keeps and assert.budget, with pictures. Part of
--- pyramid.testing.
local options = require "pyramid.options"
local policy = require "pyramid.policy"
local say = require "say"
local simulation = require "pyramid.testing.simulation"

local widest = 100

-- Positions as runs: "0-3 7 9-12".
local function ranges(positions)
  local parts, at = {}, 1
  while at <= #positions and #parts < 24 do
    local last = at
    while positions[last + 1] == positions[last] + 1 do last = last + 1 end
    parts[#parts + 1] = last > at and ("%d-%d"):format(positions[at], positions[last])
      or ("%d"):format(positions[at])
    at = last + 1
  end
  return #positions == 0 and "nothing" or table.concat(parts, " ")
    .. (at <= #positions and " …" or "")
end

local function set_of(list)
  local set = {}
  for _, position in ipairs(list) do set[position] = true end
  return set
end

-- One character a position (or a few): # kept as wanted, + kept but not wanted, - wanted but gone,
-- · gone as wanted.
local function draw(kept, wanted, tokens)
  local has, want, cells = set_of(kept), set_of(wanted), {}
  local each = math.max(1, math.ceil(tokens / widest))
  for from = 0, tokens - 1, each do
    local cell = "·"
    for position = from, math.min(from + each, tokens) - 1 do
      if has[position] and not want[position] then cell = "+"
      elseif want[position] and not has[position] then cell = "-"
      elseif has[position] and cell == "·" then cell = "#" end
      if cell == "+" or cell == "-" then break end
    end
    cells[#cells + 1] = cell
  end
  return table.concat(cells)
end

local function equal(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

-- Lanes with names, of a lane, a layer's lanes, a run, or a policy and how to run it.
local function lanes_of(testing, value, given)
  local lanes = {}
  if policy.is(value) or type(value) == "string" then value = testing.run(value, given) end
  if simulation.is_run(value) then
    for layer, heads in ipairs(value) do
      for head, lane in ipairs(heads) do
        lanes[#lanes + 1] = { ("layer %d, head %d"):format(layer, head), lane }
      end
    end
  elseif type(value) == "table" and type(value[1]) == "table" then
    for head, lane in ipairs(value) do lanes[#lanes + 1] = { ("head %d"):format(head), lane } end
  elseif type(value) == "table" then
    lanes[1] = { "the lane", value }
  else
    error(("assert.keeps: a run, a layer of it, a lane or a policy is wanted, not %s"):format(
      tostring(value)), 0)
  end
  return lanes
end

local function keeps(testing, state, arguments)
  local wanted = arguments[2]
  if type(wanted) ~= "table" then
    error("assert.keeps: the rows that should be kept are a list of positions", 0)
  end
  local lines, tokens = {}, (wanted[#wanted] or 0) + 1
  local lanes = lanes_of(testing, arguments[1], arguments[3])
  for _, lane in ipairs(lanes) do tokens = math.max(tokens, (lane[2][#lane[2]] or 0) + 1) end
  for _, lane in ipairs(lanes) do
    if not equal(lane[2], wanted) then
      lines[#lines + 1] = ("%s %s keeps %s"):format(draw(lane[2], wanted, tokens), lane[1],
        ranges(lane[2]))
    end
  end
  local title = #lines == 0 and "every lane keeps" or "should keep"
  state.failure_message = (
    "%s %s\n%s\n(# kept, + kept but not wanted, - wanted but gone, · gone)"):format(title,
      ranges(wanted), table.concat(lines, "\n", 1, math.min(#lines, 12)))
  return #lines == 0
end

local budget_keys = { prompt = "integer", layers = "integer", heads = "integer",
  kv_heads = "integer", head_dim = "integer" }

local function rows_of(value, given)
  if simulation.is_run(value) then
    local rows = {}
    for layer, heads in ipairs(value) do
      local sum = 0
      for _, lane in ipairs(heads) do sum = sum + #lane end
      rows[layer] = sum / #heads
    end
    return rows, value:tokens()
  end
  given = options.check("assert.budget", given, budget_keys)
  local p, message = policy.load(value)
  if not p then error("assert.budget: " .. message, 0) end
  local config = { layers = given.layers or 8, heads = given.heads or 4,
    kv_heads = given.kv_heads or 4, head_dim = given.head_dim or 64 }
  local rows, prompt = {}, given.prompt or 1000
  for index, layer in ipairs(policy.forecast(p, config, prompt)) do rows[index] = layer.rows end
  return rows, prompt
end

local function budget(state, arguments)
  local wanted, tolerance = arguments[2], arguments[3] or 0.02
  if type(wanted) ~= "number" or type(tolerance) ~= "number" then
    error("assert.budget: a policy or a run, a fraction and, if need be, a tolerance are wanted", 0)
  end
  local rows, tokens = rows_of(arguments[1], arguments[4])
  local sum, lines = 0, {}
  for index, count in ipairs(rows) do
    sum = sum + count
    lines[index] = ("  layer %2d %-40s %5.0f of %d"):format(index,
      ("#"):rep(math.floor(40 * count / tokens + 0.5)), count, tokens)
  end
  local share = sum / (#rows * tokens)
  state.failure_message = (
    "keeps %.1f %% of the rows, to be compared with %.1f %% within %.1f %%\n%s"):format(
      100 * share, 100 * wanted, 100 * tolerance, table.concat(lines, "\n"))
  return math.abs(share - wanted) <= tolerance
end

return function(luassert, testing)
  local function register(name, check, yes, no)
    say:set(("assertion.%s.positive"):format(name), yes)
    say:set(("assertion.%s.negative"):format(name), no)
    luassert:register("assertion", name, check, ("assertion.%s.positive"):format(name),
      ("assertion.%s.negative"):format(name))
  end
  local function check_keeps(state, arguments) return keeps(testing, state, arguments) end
  for _, name in ipairs { "keeps", "keep" } do  -- assert.keeps, assert.does_not.keep
    register(name, check_keeps, "Other rows are kept than expected.",
      "Exactly these rows are kept, which was not expected.")
  end
  register("budget", budget, "The share of rows kept is not the one expected.",
    "This share of rows is kept, which was not expected.")
end
