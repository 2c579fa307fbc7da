-- What a cache says it holds, and what the process holds for it.
local held = require "spec.support.held"
local random_models = require "spec.support.random_models"

local SHAPE = { layers = 20, width = 256, heads = 4, kv_heads = 4, ff = 64, vocab = 512,
  context = 2048 }
local models = random_models(SHAPE)

describe("a cache's bytes", function()
  for _, which in ipairs(held.cases) do
    it("are what is held for it, within 2 %: " .. which[1], function()
      local bytes, memory = held.measure(models.cpu, 800, which)
      local share = memory / bytes
      assert.is_true(share > 0.98 and share < 1.02,
        ("%d bytes, %d held: %.2f %%"):format(bytes, memory, 100 * (share - 1)))
    end)
  end
end)
