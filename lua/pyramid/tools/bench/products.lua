--- How fast one matrix product is, by dtype of the weights, shape and number of tokens: what
--- prefill and decode are made of.
local core = require "pyramid.core"
local probe = require "pyramid.probe"

local products = {}

local blocks = {}
for _, info in ipairs(core.dtypes()) do blocks[info.name] = info.block end

---Quantised weights that this processor's products take as they are, in the table's order.
---@return string[]
function products.dtypes()
  local names = {}
  for _, info in ipairs(core.dtypes()) do
    if info.cpu.bytes then names[#names + 1] = info.name end
  end
  return names
end

-- Multiply-adds that a measurement takes at least, so that its clock says something.
local WORK = 1e9

---@class pyramid.ProductsGiven
---@field dtypes string[]
---@field rows integer
---@field cols integer
---@field tokens integer[]
---@field turns integer
---@field bytes integer   more than the caches hold

---Rates of a shape's products, in 10^9 multiply-adds a second of the threads' own time, the best
---of some turns: other programs that run do not count. Few tokens meet weights that no cache holds,
---as a model's do; dtypes take turns.
---@param runtime userdata
---@param given pyramid.ProductsGiven
---@return table<string, number[]>   by dtype, one for each of `tokens`; of dtypes with such rows
function products.measure(runtime, given)
  local best = {}
  for _ = 1, given.turns do
    for _, dtype in ipairs(given.dtypes) do
      if given.cols % blocks[dtype] == 0 then
        best[dtype] = best[dtype] or {}
        for i, tokens in ipairs(given.tokens) do
          local macs = given.rows * given.cols * tokens
          local bytes = tokens < 16 and given.bytes or 0
          local matrices = math.max(1, bytes // (given.rows * given.cols // 2))
          local times = math.max(1, math.floor(WORK / (macs * matrices)))
          local _, seconds = assert(probe.linear(runtime, dtype, given.rows, given.cols, tokens,
            bytes, times))
          best[dtype][i] = math.max(best[dtype][i] or 0,
            macs * runtime:threads() / seconds / 1e9)
        end
      end
    end
  end
  return best
end

---A table of them in lines of text.
---@param best table<string, number[]>
---@param given table   what measure was given
---@return string
function products.text(best, given)
  local lines = { ("%d x %d, 10^9 multiply-adds a second"):format(given.rows, given.cols),
    ("%8s"):format "tokens" }
  for _, tokens in ipairs(given.tokens) do lines[2] = lines[2] .. ("%8d"):format(tokens) end
  for _, dtype in ipairs(given.dtypes) do
    if best[dtype] then
      local line = ("%8s"):format(dtype)
      for _, rate in ipairs(best[dtype]) do line = line .. ("%8.1f"):format(rate) end
      lines[#lines + 1] = line
    end
  end
  return table.concat(lines, "\n")
end

return products
