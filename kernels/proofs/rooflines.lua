-- rooflines.lua: the kernels whose estimate `make cuda-check` watches, and the share that each is
-- to reach (roofline.lua). By nvcc 13.0 for sm_90a; another compiler may move them.
--
-- `loop` is the instruction that the main loop has most of, or nil of a kernel without a loop;
-- bytes(loop): what one turn of it reads of weights or rows, by one warp. `around`: an instruction
-- of what stands around the loop, once for several of its turns, and counts for a `part` of each.
local list = {}

-- A warp's turn: 32 rows by 128 columns.
local function stream(kernel, bits, share)
  list[#list + 1] = { file = "linear_few", kernel = kernel, loop = "HMMA", share = share,
    bytes = function() return 32 * 128 * bits / 8 end }
end

-- A warp's turn: 32 rows by a step of columns. Around it, a warp splits x of one step, for all
-- warps of its block and, of 8 tokens, the four steps of a stage (of 16 two, of 32 one). Steps of
-- half as many columns are twice as many, of which a warp splits two, one after the other.
local function packs(weights, name, bits, shares)
  for i, tokens in ipairs { 1, 2, 4 } do
    local columns = bits == 8.5 and 128 or 256
    list[#list + 1] = { file = "linear_packs",
      kernel = ("packs_kernel<%s,%d>"):format(weights, tokens),
      name = ("packs_kernel<%s,%d>"):format(name, tokens), loop = "HMMA", share = shares[i],
      around = "STS.128", part = tokens / 4,
      bytes = function() return 32 * columns * bits / 8 end }
  end
end

-- A warp's whole work: 16 rows by a step of columns, which are read, and written as bf16.
local function unpack(weights, name, bits, share)
  local columns = bits == 8.5 and 128 or 256
  list[#list + 1] = { file = "linear_packs", kernel = ("unpack_kernel<%s>"):format(weights),
    name = ("unpack_kernel<%s>"):format(name), share = share,
    bytes = function() return 16 * columns * (bits / 8 + 2) end }
end

-- A warp's turn: a value of each of 32 lanes, as often as the loop is unrolled; each is multiplied
-- with eight values of x, which are the loop's loads of four bytes.
local function few(number, name, bits, share)
  list[#list + 1] = { file = "linear_few", kernel = ("few_kernel<%d>"):format(number),
    name = ("few_kernel<%s>"):format(name), loop = "FFMA", share = share,
    bytes = function(loop) return loop.ops["LDG.E"] // 8 * 32 * bits / 8 end }
end

-- A warp's turn: 16 rows of K and of V.
local function decode(arguments, dims, bytes, share)
  list[#list + 1] = { file = "attention_decode", kernel = ("decode_kernel<%s>"):format(arguments),
    loop = "HMMA", share = share, bytes = function() return 2 * 16 * dims * bytes end }
end

stream("stream_kernel<plain_weights<bf16>,1>", 16, 320.4)
stream("stream_kernel<plain_weights<bf16>,2>", 16, 174.3)
stream("stream_kernel<plain_weights<bf16>,4>", 16, 91.9)
stream("stream_kernel<plain_weights<f16>,1>", 16, 334.3)
stream("stream_kernel<plain_weights<f16>,2>", 16, 183.3)
stream("stream_kernel<plain_weights<f16>,4>", 16, 104.6)
packs("packed_q8_0", "q8_0", 8.5, { 168.1, 129.4, 83.4 })
packs("packed_q4_0", "q4_0", 4.5, { 83.9, 69.0, 45.0 })
packs("packed_k<0>", "q4_k", 4.5, { 92.5, 69.7, 46.2 })
packs("packed_k<1>", "q5_k", 5.5, { 87.0, 74.7, 51.8 })
packs("packed_q6_k", "q6_k", 6.5625, { 107.2, 86.9, 59.9 })
unpack("packed_q8_0", "q8_0", 8.5, 231.8)
unpack("packed_q4_0", "q4_0", 4.5, 227.6)
unpack("packed_k<0>", "q4_k", 4.5, 198.6)
unpack("packed_k<1>", "q5_k", 5.5, 192.4)
unpack("packed_q6_k", "q6_k", 6.5625, 230.9)
few(0, "f32", 32, 76.6)
few(4, "q4_0", 4.5, 4.0)
few(5, "q4_k", 4.5, 2.9)
few(6, "q5_k", 5.5, 3.3)
few(7, "q6_k", 6.5625, 4.0)
few(9, "q4_1", 5, 4.6)
few(10, "q5_0", 5.5, 4.0)
few(11, "q5_1", 6, 4.5)
few(12, "q2_k", 2.625, 1.7)
few(13, "q3_k", 3.4375, 1.6)
few(14, "iq4_nl", 4.5, 3.6)
decode("f16,0,64,4,0", 64, 2, 164.4)
decode("f16,0,128,4,0", 128, 2, 234.8)
decode("f16,0,256,2,0", 256, 2, 277.6)
decode("bf16,0,64,4,0", 64, 2, 153.0)
decode("bf16,0,128,4,0", 128, 2, 200.6)
decode("bf16,0,256,2,0", 256, 2, 228.7)
decode("f16,1,64,4,0", 64, 1, 71.0)
decode("f16,1,128,4,0", 128, 1, 107.1)
decode("f16,1,256,2,0", 256, 1, 131.4)

return list
