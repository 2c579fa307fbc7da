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

-- Sums of 32 tokens, and of a step, beside 4 to 7 KiB of weights under way: some values a step of
-- over a thousand instructions. Of 8 tokens, where a multiprocessor has three blocks, and of 16.
local packs, packs_few = { stack = 96, spills = 368 }, { stack = 40, spills = 56 }

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
  ["packs_kernel<packed_q8_0,4>"] = packs, ["packs_kernel<packed_q4_0,4>"] = packs,
  ["packs_kernel<packed_k<0>,4>"] = packs, ["packs_kernel<packed_k<1>,4>"] = packs,
  ["packs_kernel<packed_q6_k,4>"] = packs,
  ["packs_kernel<packed_q4_0,1>"] = packs_few, ["packs_kernel<packed_q4_0,2>"] = packs_few,
  ["packs_kernel<packed_k<1>,1>"] = packs_few,
  ["packs_kernel<packed_q6_k,1>"] = packs_few, ["packs_kernel<packed_q6_k,2>"] = packs_few,
  output_kernel = few,
}
