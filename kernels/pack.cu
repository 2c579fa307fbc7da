/* pack.cu — brings quantised weights into the order of pack.cuh when a model is loaded.
 *
 *     rows in a file     | row 0: block 0 | block 1 | … | row 1: block 0 | block 1 | …
 *     a pack of 16       | block 0 of rows 0-15          | block 1 of rows 0-15          | …
 *
 * The numbers are the same, in as many bytes: nothing is rounded. */
#include "linear.cuh"

/* Rows to a pack, or 0 if the tensor stays as it is. Packs take a matrix of whole packs, of a dtype
 * that packs, of no more rows than there are counters for blocks of them: linear_few.cu could not
 * read it otherwise. */
static int32_t cuda_interleaved(const pyr_backend *, const pyr_tensor *w) {
  bool streamed = w->shape[0] <= static_cast<int64_t>(STREAM_ROWS * ARRIVALS);
  bool packs = (pyr_dtype_kernels(w->dtype, true) & PYR_KERNEL_PACKS) != 0;
  return w->rank == 2 && packs && w->shape[0] % PACK == 0 && streamed ? PACK : 0;
}

/* The column of a chunk of 32 that is value v of lane t of a row: pack_value's other way. */
static __device__ __forceinline__ int column_of(int t, int v) { return v / 4 * 16 + t * 4 + v % 4; }

/* Words of a unit of a pack, made of the blocks of its 16 rows: row r's is at from + r * stride. A
 * word is looked up from its own place: which lane's it is, which row's and columns', and then bit
 * by bit, which takes no more than the file's bytes, most of which are in L1 by then. */
struct unit_source {
  const uint8_t *from;
  size_t stride;
  __device__ const uint8_t *block(int row) const {
    return from + static_cast<size_t>(row) * stride;
  }
};

/* A row's number in column `col` of a unit, as its file has it. */
template <int DTYPE>
static __device__ __forceinline__ int number_at(const uint8_t *block, int col) {
  return DTYPE == PACKED + PYR_Q4_0 ? nibble_of(block + 2, col)
      : DTYPE == PACKED + PYR_Q6_K ? number_of_q6_k(block, col)
      : number_of_k(block, DTYPE == PACKED + PYR_Q5_K, col);
}

/* Four bits each of lane t's eight columns of a chunk. */
template <int DTYPE>
static __device__ __forceinline__ uint32_t nibbles_of(const uint8_t *block, int chunk, int t) {
  uint32_t word = 0;
  for (int v = 0; v < 8; v++)
    word |= static_cast<uint32_t>(number_at<DTYPE>(block, chunk * 32 + column_of(t, v)) & 15)
        << nibble_bit(v);
  return word;
}

/* Word n % 4 of lane n % 128 / 4 has, of q5_k, 64 columns of both the lane's rows, 32 bits of 32
 * numbers; of q6_k 32 columns, 2 bits of 16 numbers each, and after 128 columns the lanes come
 * again.
 *
 * What the numbers of q5_k and q6_k have beyond four bits: word n of what follows the nibbles. */
template <int DTYPE>
static __device__ __forceinline__ uint32_t extras_of(const unit_source &u, int n) {
  constexpr int CHUNKS = extra_bits(DTYPE) == 1 ? 2 : 1;   /* of a word */
  int lane = n % 128 / 4, first = n / 128 * 4 + n % 4 * CHUNKS;
  uint32_t word = 0;
  for (int i = 0; i < 2 * CHUNKS * 8; i++) {
    int row = lane / 4 + i / 8 % 2 * 8, col = (first + i / 16) * 32 + column_of(lane % 4, i % 8);
    word |= static_cast<uint32_t>(number_at<DTYPE>(u.block(row), col) >> 4)
        << extra_bit(DTYPE, row, col);
  }
  return word;
}

/* Words of rows g and g + 8: two f16, of q4_k's and q5_k's scales, of q6_k's. */
static __device__ __forceinline__ uint32_t two_scales(const unit_source &u, int g, int at) {
  return load16(u.block(g) + at) | static_cast<uint32_t>(load16(u.block(g + 8) + at)) << 16;
}
static __device__ __forceinline__ uint32_t scales_of_k(const uint8_t *block, int word) {
  uint32_t out = 0;
  if (word == 3) return load16(block) | static_cast<uint32_t>(load16(block + 2)) << 16;
  for (int g = 0; g < 8; g++) {
    auto min = static_cast<uint32_t>(min_number(block, g));
    if (word == 2) out |= (min & 15) << nibble_bit(g);
    else if (word == g % 2) out |= (min >> 4) << (g / 2 * 8 + 6);
    if (word == g / 4) out |= static_cast<uint32_t>(scale_number(block, g)) << g % 4 * 8;
  }
  return out;
}
static __device__ __forceinline__ uint32_t scales_of_q6_k(const uint8_t *block, int word) {
  uint32_t out = 0;
  for (int i = 0; i < 4; i++)
    out |= static_cast<uint32_t>(block[192 + word * 4 + i] ^ 0x80) << 8 * i;
  return out;
}

/* Word n of a unit. Of q4_0, 72 words: 8 of two scales each, then two for each lane. Word 8 + 13 is
 * lane 6's second: row 6 / 4 + 8 = 9, its columns 8 to 11 and 24 to 27. */
template <int DTYPE>
static __device__ __forceinline__ uint32_t word_of(const unit_source &u, int n) {
  constexpr bool BLOCKS = unit_cols(DTYPE) == 32;
  constexpr int HEAD = (BLOCKS ? 2 * PACK : nibbles_at(DTYPE)) / 4;
  constexpr int F16 = BLOCKS ? HEAD : DTYPE == PACKED + PYR_Q6_K ? 8 : 0;  /* of f16 scales */
  if (n < F16) return two_scales(u, n, BLOCKS ? 0 : 208);
  if (n < HEAD) {
    int place = (n - F16) / 4, row = place / 2 + place % 2 * 8;      /* row_place's other way */
    return DTYPE == PACKED + PYR_Q6_K ? scales_of_q6_k(u.block(row), (n - F16) % 4)
        : scales_of_k(u.block(row), (n - F16) % 4);
  }
  n -= HEAD;
  if (DTYPE == PACKED + PYR_Q8_0) {
    int lane = n / 4, row = lane / 4 + n / 2 % 2 * 8;
    uint32_t word = 0;
    for (int v = 0; v < 4; v++)
      word |= static_cast<uint32_t>(u.block(row)[2 + column_of(lane % 4, n % 2 * 4 + v)]) << 8 * v;
    return word;
  }
  if (BLOCKS) return nibbles_of<DTYPE>(u.block(n / 8 + n % 2 * 8), 0, n / 2 % 4);
  if (n < NIBBLES / 4)
    return nibbles_of<DTYPE>(u.block(n % 128 / 16 + n % 2 * 8), n / 128 * 2 + n / 2 % 2,
                             n / 4 % 4);
  return extras_of<DTYPE>(u, n - NIBBLES / 4);
}

/* A block for each unit and pack; a thread for each of its words, all of whose bits it looks up.
 * Runs once, when a model is loaded. */
template <int DTYPE>
static __global__ void pack_kernel(uint8_t *to, const uint8_t *rows, size_t stride) {
  size_t pack = static_cast<size_t>(blockIdx.y) * PACK * stride;
  auto *unit = reinterpret_cast<uint32_t *>(to + pack + blockIdx.x * pack_bytes(DTYPE));
  unit_source u = { rows + pack + blockIdx.x * unit_bytes(DTYPE), stride };
  for (int n = static_cast<int>(threadIdx.x); n < pack_bytes(DTYPE) / 4;
       n += static_cast<int>(blockDim.x)) unit[n] = word_of<DTYPE>(u, n);
}

/* The rows may be the host's; they pass through scratch, so many packs at a time as fit it, and as
 * the grid's y allows. All on one stream: the next copy waits until the kernel has read the last.
 */
static pyr_status cuda_interleave(pyr_backend *be, void *to, const pyr_tensor *w) {
  pyr_cuda *cuda = cuda_of(be);
  size_t pack = PACK * w->stride;
  pyr_status status = cuda_grow_scratch(be, pack);
  int64_t packs = w->shape[0] / PACK, most = static_cast<int64_t>(cuda->scratch_bytes / pack);
  if (most > 65535) most = 65535;
  for (int64_t first = 0; first < packs && status == PYR_OK; first += most) {
    int64_t some = packs - first < most ? packs - first : most;
    size_t at = static_cast<size_t>(first) * pack, bytes = static_cast<size_t>(some) * pack;
    status = cuda_status(be, "interleave", cudaMemcpyAsync(cuda->scratch,
                                                           static_cast<const uint8_t *>(w->data)
                                                               + at, bytes, cudaMemcpyDefault,
                                                                   cuda->stream));
    if (status != PYR_OK) break;
    uint8_t *packed = static_cast<uint8_t *>(to) + at;
#define INTERLEAVE(dtype) \
  PYR_LAUNCH(pack_kernel<dtype>, \
             dim3(static_cast<unsigned>(w->shape[1] / unit_cols(dtype)), \
                  static_cast<unsigned>(some)), \
             256, 0, cuda, packed, cuda->scratch, w->stride)
    switch (static_cast<int>(w->dtype) + PACKED) {
      PYR_PACK_CASES(INTERLEAVE)
    }
#undef INTERLEAVE
    status = cuda_launched(be, "interleave");
  }
  return status;
}

void cuda_pack_fill(pyr_backend *be) {
  be->interleaved = cuda_interleaved;
  be->interleave = cuda_interleave;
}
