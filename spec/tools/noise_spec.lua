-- Intervals: against tables, and what they are for: no difference is called one that is smaller
-- than its error.
local noise = require "pyramid.tools.noise"

describe("noise", function()
  it("knows the mean of a few measurements and how far it can be trusted", function()
    local mean, half = noise.mean { 1, 2, 3, 4, 5 }
    assert.equal(3, mean)
    assert.near(2.776 * math.sqrt(2.5 / 5), half, 1e-9)  -- t for 4 degrees of freedom
    local _, alone = noise.mean { 7 }
    assert.equal(math.huge, alone)
    local many = {}
    for i = 1, 400 do many[i] = i % 2 end
    local at, width = noise.mean(many)
    assert.near(0.5, at, 1e-12)
    assert.near(1.966 * 0.5 / 20, width, 2e-4)
  end)

  it("takes what differs between things out of a difference", function()
    local a, b = { 1, 10, 100, 1000 }, { 1.5, 10.4, 100.6, 1000.5 }
    local difference, half = noise.paired(a, b)
    assert.near(-0.5, difference, 1e-9)
    assert.is_true(half < 0.2)
    assert.has_error(function() noise.paired({ 1 }, { 1, 2 }) end)
  end)

  it("counts what one answers and the other does not", function()
    assert.is_false(noise.wins(5, 0))                                    -- 2/32 of all coins
    assert.is_true(noise.wins(6, 0))                                     -- 2/64
    assert.is_false(noise.wins(0, 6))
    assert.is_false(noise.wins(0, 0))
    assert.is_false(noise.wins(9, 3))                                    -- 0.146
    assert.is_true(noise.wins(10, 2))                                    -- 0.0386
    assert.is_false(noise.wins(60, 40))                                  -- 0.0569
    assert.is_true(noise.wins(61, 39))                                   -- 0.0352
  end)

  it("says how often chance would make as great a difference", function()
    for _, case in ipairs { { 5, 0, 0.0625 }, { 0, 6, 0.03125 }, { 9, 3, 0.14599609375 },
      { 61, 39, 0.03520020021770479 }, { 3, 3, 1 }, { 0, 0, 1 },
      { 800, 700, 0.010559255466711506 }, { 610, 590, 0.5833787795443902 } } do  -- scipy's
      assert.near(case[3], noise.mcnemar(case[1], case[2]), 1e-10)
    end
  end)

  it("relates two sums, with what belongs together as one", function()
    local ratio, half = noise.ratio({ 3, 4, 2, 4 }, { 4, 4, 4, 4 })
    assert.near(13 / 16, ratio, 1e-12)
    -- all bases alike: the mean's own interval, over their size
    local mean, around = noise.mean { 3 / 4, 1, 2 / 4, 1 }
    assert.near(mean, ratio, 1e-12)
    assert.near(around, half, 1e-12)
    assert.near(0, select(2, noise.ratio({ 1, 2, 3 }, { 2, 4, 6 })), 1e-12)
    assert.is_nil((noise.ratio({ 0, 0 }, { 0, 0 })))
    assert.equal(math.huge, select(2, noise.ratio({ 1 }, { 1 })))
    assert.has_error(function() noise.ratio({ 1 }, { 1, 2 }) end)
  end)

  it("has the interval of a share", function()
    local low, high = noise.interval(34, 40)
    assert.near(0.7092767563, low, 1e-4)
    assert.near(0.9293881228, high, 1e-4)
    assert.same({ 0, 1 }, { noise.interval(0, 0) })
  end)

  it("calls a share greater only beyond both errors", function()
    assert.near((0.867 - 0.711) / 2, noise.share(80, 100), 0.001)        -- Wilson's interval
    assert.is_false(noise.greater(15, 20, 12, 20))
    assert.is_true(noise.greater(18, 20, 8, 20))
    assert.is_false(noise.greater(8, 20, 18, 20))
    assert.is_true(noise.greater(750, 1000, 600, 1000))
    assert.is_false(noise.greater(1, 1, 0, 0))
    assert.is_false(noise.greater(1, 1, 0, 1))  -- one question tells nothing
    assert.is_false(noise.greater(3, 3, 0, 2))
    assert.is_true(noise.greater(6, 6, 0, 6))
    -- Newcombe's own example, 56 of 70 against 48 of 80: 0.0524 to 0.3339
    assert.is_true(noise.greater(56, 70, 48, 80))
  end)

  it("ranks as Spearman does", function()
    assert.near(1, noise.spearman({ 1, 2, 3 }, { 10, 20, 90 }), 1e-12)
    assert.near(-1, noise.spearman({ 1, 2, 3 }, { 5, 4, -3 }), 1e-12)
    -- 1 - 6 * (1 + 1 + 0 + 1 + 1) / (5 * 24)
    assert.near(0.8, noise.spearman({ 1, 2, 3, 4, 5 }, { 2, 1, 3, 6, 4.5 }), 1e-12)
    -- ranks 1.5, 1.5, 3 and 1, 2, 3: 1.5 / sqrt(1.5 * 2)
    assert.near(1.5 / math.sqrt(3), noise.spearman({ 7, 7, 9 }, { 1, 2, 3 }), 1e-12)
    assert.equal(0, noise.spearman({ 1, 1 }, { 1, 2 }))
  end)
end)
