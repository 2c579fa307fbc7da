-- `pyramid study`: what it says of a model against the same sums done by hand.
local cjson = require "cjson"
local helper = require "helper"
local pyramid = require "pyramid"
local score = require "pyramid.score"
local shell = require "support.shell"
local study = require "pyramid.tools.study"

describe("study", function()
  local model, window
  setup(function()
    model = assert(pyramid.model("models/tiny", { threads = 1 }))
    local ids = assert(model:encode(helper.read "README.md"))
    window = { context = helper.slice(ids, 1, 120), targets = helper.slice(ids, 121, 130) }
  end)
  teardown(function() model:close() end)

  local function loss(policy)
    local cache <close> = assert(model:cache { policy = policy, dtype = "f32" })
    assert(cache:prefill(helper.slice(window.context, 1, 119)))
    local logits, sum = assert(cache:step(window.context[120])), 0
    for i, id in ipairs(window.targets) do
      sum = sum - logits:logprob(id)
      if i < 10 then logits = assert(cache:step(id)) end
    end
    return sum / 10, cache
  end

  it("says what a layer costs that is cut by the last queries' attention", function()
    local cells = assert(study.icr(model, { windows = { window }, shares = { 0.5, 0.9 },
      layers = { 2, 5 }, recent = 16, dtype = "f32" }))
    assert.equal(4, #cells)
    local full = loss(nil)
    for _, cell in ipairs(cells) do
      local seen
      local by_hand = assert(pyramid.policy { name = "hand", prefill = function(_, l)
        if l.index ~= cell.layer then return nil end
        seen = l.rows
        return { keep = 16 + math.floor((1 - cell.at) * (l.rows - 16) + 0.5),
          guard = { last = 16 }, score = score.attention { queries = 16 } }
      end })
      assert.near(loss(by_hand) - full, cell.mean, 1e-4)
      assert.equal(119, seen)
      assert.equal(math.huge, cell.half)
    end
  end)

  it("says what queries attend to alike", function()
    local cells = assert(study.rac(model, { windows = { window, window }, distances = { 3, 20 },
      layers = { 1, 4, 8 }, share = 0.25, queries = 1, dtype = "f32" }))
    local context = 120 - 20 - 1
    local function top(n, layer)
      local cache <close> = assert(model:cache { dtype = "f32", policy = assert(pyramid.policy {
        name = "hand", prefill = function(_, l)
          return { keep = l.rows - context + math.floor(0.25 * context + 0.5),
            guard = { last = l.rows - context }, score = score.attention { queries = 1 } }
        end }) })
      assert(cache:prefill(helper.slice(window.context, 1, n)))
      local set, count = {}, 0
      for _, position in ipairs(cache:positions(layer)) do
        if position < context then set[position], count = true, count + 1 end
      end
      return set, count
    end
    for _, cell in ipairs(cells) do
      local last, count = top(120, cell.layer)
      local other, both = top(120 - cell.at, cell.layer), 0
      assert.equal(25, count)
      for position in pairs(last) do both = both + (other[position] and 1 or 0) end
      assert.near(both / count, cell.mean, 1e-12)
      assert.near(0, cell.half, 1e-12)                       -- the same context twice
    end
    local none, message, code = study.rac(model, { windows = { window }, distances = { 119 },
      layers = { 1 }, share = 0.5, queries = 1 })
    assert.is_nil(none)
    assert.matches("no rows that a query 119 before its end sees", message)
    assert.equal("length", code)
  end)

  it("says how a column goes with depth", function()
    local function trend(list)
      local cells = {}
      for layer, mean in ipairs(list) do cells[layer] = { layer = layer, at = 1, mean = mean } end
      return study.trend(cells, 1)
    end
    assert.near(1, trend { 1, 2, 3, 9 }, 1e-12)
    assert.near(-1, trend { 5, 4, 0, -1 }, 1e-12)
    assert.near(0.8, trend { 1, 3, 2, 4 }, 1e-12)
    assert.near(0.948683298, trend { 1, 2, 2, 4 }, 1e-9)     -- scipy.stats.spearmanr
    assert.equal(0, trend { 1, 1, 1 })
  end)
end)

describe("pyramid study", function()
  local folder
  setup(function() folder = shell.folder() end)
  teardown(function() shell.remove(folder) end)

  local function run(...)
    return shell.pyramid("study", ...)
  end

  it("prints a table by layer and writes a page", function()
    for what, more in pairs { icr = { "--shares", "0.3,0.8", "--predict", "8" },
      rac = { "--distances", "1,10" } } do
      local path = folder .. "/" .. what .. ".html"
      local out, err, status = run(what, "--context", "100", "--windows", "2", "--layers", "1,8",
        "--threads", "1", "--out", path, table.unpack(more))
      assert.equal("", err)
      assert.equal(0, status)
      assert.matches("\nlayer ", out)
      assert.matches("\n +8 ", out)
      assert.matches("\ndepth +[-+][%d.]+ +[-+][%d.]+", out)
      assert.is_truthy(out:find("page: " .. path, 1, true))
      local page = helper.read(path)
      assert.matches("<table", page)
      assert.matches("pyramid study " .. what, page)
      for _, foreign in ipairs { "http:", "https:", "@import", "<link", "src=" } do
        assert.is_nil(page:find(foreign), foreign)
      end
    end
    local object = cjson.decode((run("rac", "--context", "100", "--windows", "1", "--distances",
      "5", "--json", "--out", folder .. "/j.html")))
    assert.equal(8, #object.cells)
  end)

  it("says what is wrong with its arguments", function()
    local function fails(pattern, ...)
      local out, err, status = run(...)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.not_matches("stack traceback", err)
      assert.equal(1, status)
    end
    fails("unknown option '%-%-nonesuch'", "--nonesuch")
    fails("must be one of 'icr', 'rac'", "both")
    fails("%-%-shares: '1' is not a share between 0 and 1", "icr", "--shares", "1")
    fails("%-%-distances: '0' is not a number from 1", "rac", "--distances", "0")
    fails("%-%-layers: 99 is more than the model's 8", "icr", "--layers", "99")
    fails("the model's context", "icr", "--context", "999999")
    fails("sees", "rac", "--context", "64", "--distances", "64", "--out", folder .. "/x.html")
    local short = folder .. "/short.txt"
    helper.write(short, "A few words.")
    fails("fewer than %-%-context and %-%-predict", "icr", "--text", short)
  end)
end)
