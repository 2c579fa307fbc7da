-- The catalogue's policies keep the rows that kvpress keeps, and score rows as it does
-- (scripts/maker/oracle/kvpress_scores.py).
local helper = require "spec.helper"
local maps = require "pyramid.maps"
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local vector = require "pyramid.vector"

-- The same policy, showing each layer's and head's scores of the judged rows to `seen` as it ranks
-- by them.
local function watched(p, seen)
  return policy { name = "watched", prefill = function(_, l)
    local plan = p.definition.prefill(p.options, l)
    plan.score = score.custom(function(lane)
      seen[lane.layer] = seen[lane.layer] or {}
      seen[lane.layer][lane.head] = { positions = lane.positions:totable(),
        scores = lane.its:totable() }
      return lane.its
    end, { its = plan.score })
    return plan
  end }
end

-- A file of query centres with these filters, [layers][KV heads]; it goes when it is closed.
local function filters_file(layers)
  local rows, path = {}, helper.tmp ".safetensors"
  for _, heads in ipairs(layers) do table.move(heads, 1, #heads, #rows + 1, rows) end
  helper.write(path, maps.centres_bytes { centres = vector { { 0, 0 } }, filters = vector(rows),
    metadata = {} })
  return setmetatable({ path = path }, { __close = function() os.remove(path) end })
end

for _, name in ipairs { "mha", "gqa" } do
  local golden = helper.json(helper.fixture("kvpress/" .. name .. "/golden.json"))
  local bytes = helper.read(helper.fixture("kvpress/" .. name .. "/golden.bin"))

  describe("the catalogue beside kvpress, " .. name .. ":", function()
    local model
    setup(function() model = assert(pyramid.model(helper.fixture("pyramidinfer/" .. name),
      { threads = 2 })) end)
    teardown(function() model:close() end)

    for _, case in ipairs(golden.cases) do
      local given = helper.with_integers(case.options)
      it(("%s (%s), %d tokens"):format(case.policy, helper.said(given), case.count), function()
        local file <close> = case.filters and filters_file(case.filters)
        local p = assert(pyramid.policy(case.policy, given)):with { map = file and file.path }
        local ids, seen = helper.slice(golden.pool, case.first + 1, case.first + case.count), {}
        for _, each in ipairs { p, watched(p, seen) } do
          local cache <close> = assert(model:cache { policy = each, dtype = "f32" })
          assert(cache:prefill(ids))
          for layer, heads in ipairs(case.kept or {}) do
            for head, bits in ipairs(heads) do
              helper.assert_positions(helper.positions(bits), cache:positions(layer, head),
                ("layer %d, head %d"):format(layer, head))
            end
          end
        end
        local at = case.scores
        for _, layer in ipairs(at and { 1, model.config.layers } or {}) do
          for head = 1, model.config.kv_heads do
            local all, ours, ref = helper.floats(bytes, at, case.count), {}, {}
            local own = seen[layer][head]
            for i, position in ipairs(own.positions) do
              local theirs = all[math.tointeger(position) + 1]
              -- chosen in a first stage
              if theirs == math.huge then assert.is_true(own.scores[i] > 1e8)
              else ours[#ours + 1], ref[#ref + 1] = own.scores[i], theirs end
            end
            if case.factor then
              local product, square = 0.0, 0.0
              for i, x in ipairs(ours) do product, square = product + x * ref[i], square + x * x end
              for i, x in ipairs(ours) do ours[i] = x * product / square end
            end
            local distance = helper.distance(ours, ref)
            assert.is_true(distance < 1e-4, ("layer %d, head %d: scores %.2g apart"):format(layer,
              head, distance))
            at = at + 4 * case.count
          end
        end
      end)
    end
  end)
end
