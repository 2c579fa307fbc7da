-- Workers that share a measurement: each measures what falls to it, one that was lost costs its
-- cells alone, and the same command without --shard joins them.
local files = require "pyramid.files"
local helper = require "spec.helper"
local results = require "pyramid.tools.results"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

describe("shards of results", function()
  local folder
  local launch = require "spec.support.mpirun"
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  it("take each key once, and are joined by whoever opens the whole", function()
    local path = folder .. "/keys.jsonl"
    local taken = {}
    for index = 1, 3 do
      local store <close> = assert(results.open(path, "spec 1", { index = index, count = 3 }))
      for i = 1, 60 do
        local key = "key " .. i
        if store:mine(key) then
          assert.is_nil(taken[key])
          taken[key] = index
          assert(store:add(key, { value = i }))
        end
      end
    end
    local file = assert(io.open(folder .. "/keys.2-of-3.jsonl", "ab"))
    file:write '{"format":"spec 1","key":"cut of'                 -- by the end of a worker
    file:close()
    local store <close> = assert(results.open(path, "spec 1"))
    assert.equal(60, store.count)
    for i = 1, 60 do
      assert.equal(i, store:get("key " .. i).value)
      assert.is_true(store:mine("key " .. i))
    end
    assert(store:add("another", { value = 7 }))               -- is no worker's to measure again
    local worker <close> = assert(results.open(path, "spec 1", { index = 1, count = 3 }))
    assert.equal(7, worker:get("another").value)
    file = assert(io.open(folder .. "/keys.9-of-9.jsonl", "wb"))
    file:write '{"format":"another","key":"x"}\n'
    file:close()
    local none, message, code = results.open(path, "spec 1")
    assert.is_nil(none)
    assert.equal("format", code)
    assert.matches("keys.9%-of%-9.jsonl: not results of spec 1", message)
  end)

  it("of a comparison are what one process measures, but for what a lost worker had", function()
    local model = folder .. "/tiny.gguf"
    assert(random_model.write(model, { dtype = "q8_0", seed = 1, format = "gguf",
      shape = random_model.shapes.tiny }))
    local function compare(...)
      local out, err, status = shell.pyramid("compare", "-m", model, "--out", folder .. "/out",
        "--lengths", "256", "--questions", "1", "--documents", "1", "--budgets", "0.5", "-p", "h2o",
        "-p", "streaming", ...)
      return out, err, status
    end
    for i = 1, 2 do
      local out, err, status = compare("--shard", i .. "/2")
      assert.equal(0, status, out .. err)
    end
    local lost = folder .. "/out/results.2-of-2.jsonl"
    local _, lines = helper.read(lost):gsub("\n", "\n")
    local _, others = helper.read(folder .. "/out/results.1-of-2.jsonl"):gsub("\n", "\n")
    assert.is_true(lines > 0 and others > 0)
    assert.matches("0 of them new", (compare()))
    os.remove(lost)
    assert.matches(("%d results, %d of them new"):format(lines + others, lines), (compare()))
    for _, words in ipairs { "3/2", "0/2", "0/0", "2", "a/b", "1/" .. ("9"):rep(30) } do
      local out, err, status = compare("--shard", words)
      assert.not_equal(0, status, out)
      assert.matches("a worker and how many there are", err)
    end
  end)

  it("of a calibration are what one process measures, but for what a lost worker had", function()
    local model = folder .. "/tiny.gguf"
    local function calibrate(out, ...)
      return shell.pyramid("calibrate", "-m", model, "--length", "96", "--texts", "2", "--queries",
        "8", "--out", folder .. "/" .. out, ...)
    end
    local function lines(name)
      return select(2, helper.read(folder .. "/" .. name):gsub("\n", "\n"))
    end
    local alone, err, status = calibrate("alone/mine.lua")
    assert.equal(0, status, alone .. err)
    local cells = lines "alone/mine.jsonl"                   -- 2 texts, and each layer of each
    assert.is_true(cells >= 4)
    for i = 1, 2 do
      local out
      out, err, status = calibrate("many/mine.lua", "--shard", i .. "/2")
      assert.equal(0, status, out .. err)
      local own = lines(("many/mine.%d-of-2.jsonl"):format(i))
      assert.is_true(own > 0 and own < cells)
      assert.matches(("%d new results: "):format(own), out)
      assert.matches(i == 1 and "are other workers', who have not made them yet"
        or "all measurements are there", out)
      assert.is_false(files.exists(folder .. "/many/mine.lua"))   -- who joins them writes it
    end
    local function policy_of(out)
      local text = helper.read(folder .. "/" .. out):gsub("^%-%-.-\nlocal", "local")
      return text
    end
    local before = ("%d of %d measured before: %s/many/mine.jsonl\n"):format(cells, cells, folder)
    assert.equal(before .. alone:gsub("alone/mine", "many/mine"), (calibrate("many/mine.lua")))
    assert.equal(policy_of "alone/mine.lua", policy_of "many/mine.lua")
    assert.equal(0, lines "many/mine.jsonl")                 -- all were there
    local lost = lines "many/mine.2-of-2.jsonl"
    os.remove(folder .. "/many/mine.2-of-2.jsonl")
    assert.matches(("^%d of %d measured before: "):format(cells - lost, cells),
      (calibrate("many/mine.lua")))
    assert.equal(lost, lines "many/mine.jsonl")
    assert.equal(policy_of "alone/mine.lua", policy_of "many/mine.lua")
    calibrate("many/mine.lua", "--scaling", "linear", "--max-context", "1024")
    assert.equal(lost + cells, lines "many/mine.jsonl")      -- another scaling is measured anew
    if not launch.missing() then                             -- of two ranks the first writes
      local out
      out, err, status = launch.run(2, "calibrate", "-m", model, "--length", "96", "--texts", "2",
        "--queries", "8", "--ranks", "tensor", "--threads", "1", "--out", folder .. "/ranks.lua")
      assert.equal(0, status, out .. err)
      assert.equal(cells, lines "ranks.jsonl")
    end
    local _, said, refused = calibrate("other.lua", "--learn", "--shard", "1/2")
    assert.equal(1, refused)
    assert.matches("what is measured text by text", said)
  end)
end)
