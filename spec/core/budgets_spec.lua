-- Budgets that policies hold: a share of a prompt (`target`) by each that has a ratio, the newest
-- rows where a budget is small, chunks that fill it; and compositions that would hold none.
local policy = require "pyramid.policy"
local pyramid = require "pyramid"
local random_model = require "pyramid.tools.random_model"
local shell = require "spec.support.shell"

local SHAPE = { layers = 2, width = 32, heads = 4, kv_heads = 2, ff = 48, vocab = 272,
  context = 1024 }
local folder, model

setup(function()
  folder = shell.folder()
  assert(random_model.write(folder .. "/model", { shape = SHAPE, dtype = "f32", seed = 5 }))
  model = assert(pyramid.model(folder .. "/model", { threads = 2 }))
end)
teardown(function()
  model:close()
  shell.remove(folder)
end)

local function prompt(n)
  local ids = {}
  for i = 1, n do ids[i] = i * 37 % 271 end
  return ids
end

local function positions(p, n, head)
  local cache <close> = assert(model:cache { policy = p, dtype = "f32" })
  assert(cache:prefill(prompt(n)))
  return cache:positions(1, head or 1)
end

describe("target", function()
  it("is known to every policy that has a ratio, and kept", function()
    local config, known = { layers = 12, heads = 4, kv_heads = 2, head_dim = 64 }, 0
    for _, name in ipairs(policy.list()) do
      local p = assert(policy.load(name))
      -- as published, pyramidinfer's layers hand on half or more, and fastkv's deeper ones compute
      -- no more than a fifth; what passes dms's threshold, its ratio, follows the text
      local apart = name == "pyramidinfer" or name == "fastkv" or name == "dms"
      if p.definition.defaults.ratio and not apart then
        known = known + 1
        for _, target in ipairs { 0.3, 0.7 } do
          local rows = 0
          local found, message = policy.load(name, { target = target })
          assert.truthy(found, message)
          for _, layer in ipairs(policy.forecast(found, config, 2000)) do
            rows = rows + layer.rows
          end
          local reached = rows / (12 * 2000)
          assert.is_true(math.abs(reached - target) < 0.003,
            ("%s: %g, not %g"):format(name, reached, target))
        end
      end
    end
    assert.is_true(known >= 18, tostring(known))
  end)

  it("stands alone: a number of rows beside it is refused", function()
    for _, name in ipairs { "snapkv", "streaming" } do
      local found, message = policy.load(name, { target = 0.3, rows = 40 })
      assert.is_nil(found)
      assert.truthy(message:find("policy " .. name .. ": 'rows' and 'target' are two budgets", 1,
        true), message)
    end
  end)
end)

describe("lagkv", function()
  it("keeps the newest rows where the budget is no more than what has no run behind it", function()
    for _, n in ipairs { 60, 300, 403 } do
      for _, rows in ipairs { 5, 9, 30 } do
        for head = 1, 2 do
          local want = { 0, 1, 2, 3 }
          for position = n - (rows - 4), n - 1 do want[#want + 1] = position end
          assert.same(want, positions(assert(pyramid.policy("lagkv", { rows = rows, lag = 64 })),
            n, head), n .. "/" .. rows)
        end
      end
    end
  end)

  it("keeps all that has no run behind it, and ranks the others, where there is room", function()
    local kept = positions(assert(pyramid.policy("lagkv", { rows = 150, lag = 64 })), 403)
    assert.equal(150, #kept)
    local behind = (403 - 4) % 64 + 64
    for i = 1, behind do assert.equal(403 - i, kept[#kept + 1 - i]) end
  end)
end)

describe("chunkkv", function()
  it("fills its budget: whole chunks, and the first rows of one more", function()
    for _, rows in ipairs { 33, 40, 47, 59, 200 } do
      local kept = positions(assert(pyramid.policy("chunkkv", { rows = rows, chunk = 10 })), 300)
      assert.equal(rows, #kept)
      local chunks, torn = {}, 0
      for _, position in ipairs(kept) do
        if position < 300 - 32 then
          local chunk = position // 10
          chunks[chunk] = chunks[chunk] or {}
          table.insert(chunks[chunk], position % 10)
        end
      end
      for chunk, inside in pairs(chunks) do
        for i, place in ipairs(inside) do assert.equal(i - 1, place) end
        local whole = chunk == (300 - 32) // 10 and (300 - 32) % 10 or 10
        if #inside < whole then torn = torn + 1 end
      end
      assert.is_true(torn <= 1, torn .. " chunks are torn")
    end
  end)
end)

describe("policy.compose", function()
  it("says so where a part has nothing to give, and where nothing evicts", function()
    local wrong = {
      ["decode: finch evicts when a prompt is read only"] = { prefill = "streaming",
        decode = "finch" },
      ["prefill: late evicts while text is generated only"] = { prefill = { name = "late",
        trigger = function() end,
        decode = function() end }, decode = "h2o" },
      ["full never evicts"] = { prefill = "full" },
    }
    for words, parts in pairs(wrong) do
      local ok, message = pcall(policy.compose, parts)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("policy.compose: " .. words, 1, true), message)
    end
    assert.equal("full+h2o", policy.compose({ prefill = "full", decode = "h2o" }).name)
    assert.equal("snapkv", policy.compose({ prefill = "snapkv" }).name)
  end)
end)
