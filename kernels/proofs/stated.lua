-- Local memory that kernels may use, in bytes, by name; see registers.lua. All others may use none.
--
-- Sines and cosines of angles beyond 105615 are reduced with the help of a table in local memory:
-- positions so far out, of the fastest pairs only.
local reduction = { stack = 32, spills = 0 }

-- A warp's sums are 128 of a lane's 255 registers, and its scores 32: a few loop invariants
-- (addresses, bounds) are kept in local memory, some ten loads from L1 a tile of over a thousand
-- instructions. Half the columns a warp would read shared memory twice.
local tile = { stack = 96, spills = 112 }

-- The same beside bytes on their way to halves: in attention of one query, where memory bounds,
-- heads of 256 dimensions.
local widened = { stack = 120, spills = 160 }

-- Sums of 32 tokens, and of each block of 32 columns, beside 4 KiB of weights under way: some
-- twenty values a step of over a thousand instructions.
local packs = { stack = 48, spills = 56 }

-- The last argument of attention's kernels and of the score pass's tiles is whether scores are
-- capped or sloped: a position, a slope and the steps of tanh beside the above.

-- Two registers more than blocks of so many threads leave a lane, outside of the inner loop.
local few = { stack = 8, spills = 8 }

return {
  rope_kernel = reduction, rotate_kernel = reduction, turns_kernel = reduction,
    mean_turns_kernel = reduction,
  ["prefill_kernel<bf16,0,128,1,2,0>"] = tile, ["prefill_kernel<f16,0,128,1,2,0>"] = tile,
    ["prefill_kernel<bf16,2,128,1,2,0>"] = tile,
  ["prefill_kernel<f16,1,128,1,2,0>"] = tile, ["prefill_kernel<f16,1,256,1,1,0>"] = tile,
    ["prefill_kernel<f16,1,64,2,2,0>"] = tile,
  ["prefill_kernel<bf16,2,64,1,2,0>"] = tile, ["prefill_kernel<f16,2,64,1,2,0>"] = tile,
    ["prefill_kernel<f16,2,128,1,2,0>"] = tile,
  ["prefill_kernel<f16,2,256,1,1,0>"] = tile,
  ["prefill_kernel<bf16,0,256,1,1,0>"] = tile, ["prefill_kernel<f16,0,256,1,1,0>"] = tile,
    ["prefill_kernel<bf16,2,256,1,1,0>"] = tile,
  ["decode_kernel<bf16,0,256,2,0>"] = tile, ["decode_kernel<f16,0,256,2,0>"] = tile,
    ["decode_kernel<f16,1,256,2,0>"] = widened,
  ["prefill_kernel<bf16,0,128,1,2,1>"] = tile, ["prefill_kernel<f16,0,128,1,2,1>"] = tile,
    ["prefill_kernel<bf16,2,128,1,2,1>"] = tile,
  ["prefill_kernel<f16,1,128,1,2,1>"] = tile, ["prefill_kernel<f16,1,256,1,1,1>"] = widened,
    ["prefill_kernel<f16,1,64,2,2,1>"] = tile,
  ["prefill_kernel<bf16,2,64,1,2,1>"] = tile, ["prefill_kernel<f16,2,64,1,2,1>"] = tile,
    ["prefill_kernel<f16,2,128,1,2,1>"] = tile,
  ["prefill_kernel<f16,2,256,1,1,1>"] = tile,
  ["prefill_kernel<bf16,0,256,1,1,1>"] = tile, ["prefill_kernel<f16,0,256,1,1,1>"] = tile,
    ["prefill_kernel<bf16,2,256,1,1,1>"] = tile,
  ["decode_kernel<bf16,0,256,2,1>"] = widened, ["decode_kernel<f16,0,256,2,1>"] = widened,
    ["decode_kernel<f16,1,256,2,1>"] = widened,
  ["mass_tiles_kernel<f16,1,128,2,2,1>"] = few,
  ["stream_kernel<packed_weights,4>"] = packs,
  output_kernel = few,
}
