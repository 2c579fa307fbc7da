-- dms keeps, in a prompt and while text is generated, what kvpress' DMSPress keeps around
-- KVzapPress with the same map, whose numbers are those of score.learned
-- (scripts/maker/oracle/dms_scores.py).
local helper = require "spec.helper"
local maps = require "pyramid.maps"
local pyramid = require "pyramid"
local shell = require "spec.support.shell"
local vector = require "pyramid.vector"

for _, name in ipairs { "mha", "gqa" } do
  local golden = helper.json(helper.fixture("kvpress/" .. name .. "/dms.json"))
  local bytes = helper.read(helper.fixture("kvpress/" .. name .. "/dms.bin"))

  describe("dms beside kvpress, " .. name .. ":", function()
    local model, folder, map
    setup(function()
      model = assert(pyramid.model(helper.fixture("pyramidinfer/" .. name), { threads = 2 }))
      folder = shell.folder()
      map = folder .. "/map.safetensors"
      local lanes, columns = model.config.layers * model.config.kv_heads, golden.width + 1
      local numbers, rows, budgets = helper.floats(bytes, 0, lanes * columns), {}, {}
      local tokens = {}                                  -- what `narrow` reads; dms does not
      for layer = 1, model.config.layers do tokens[layer] = helper.slice(numbers, 1, columns) end
      for lane = 1, lanes do
        rows[lane] = helper.slice(numbers, (lane - 1) * columns + 1, lane * columns)
        budgets[lane] = { 0.5, 1 }
      end
      helper.write(map, maps.bytes { map = vector(rows), budgets = vector(budgets),
        thresholds = vector { { 0, -1 } }, tokens = vector(tokens), metadata = {} })
    end)
    teardown(function()
      model:close()
      shell.remove(folder)
    end)

    for _, case in ipairs(golden.cases) do
      it(("%d tokens, %d steps, window %d, above %g"):format(case.count, case.steps, case.window,
        case.above), function()
        local all = math.tointeger(case.count + case.steps)
        local ids = helper.slice(golden.pool, case.first + 1, case.first + all)
        local given = { map = map, above = case.above == 0 and -1e-9 or case.above, sinks = 0,
          window = math.tointeger(case.window), every = 1 }
        local cache <close> = assert(model:cache { policy = assert(pyramid.policy("dms", given)),
          dtype = "f32" })
        assert(cache:prefill(helper.slice(ids, 1, case.count)))
        for i = case.count + 1, all do assert(cache:step(ids[i])) end
        local at, learned = case.scores, maps.learned(map).score
        for layer, heads in ipairs(case.kept) do
          for head, bits in ipairs(heads) do
            local kept = helper.positions(bits)
            helper.assert_positions(kept, cache:positions(layer, head),
              ("layer %d, head %d"):format(layer, head))
            local own = assert(cache:scores(learned, { layer = layer, head = head }))
            local theirs = helper.floats(bytes, at, all)
            for _, position in ipairs(kept) do
              assert.near(theirs[position + 1], own[position + 1], 1e-4)
            end
            at = at + 4 * all
          end
        end
      end)
    end
  end)
end
