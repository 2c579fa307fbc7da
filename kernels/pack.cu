/* pack.cu — brings q8_0 and q4_0 weights into the order of pack.cuh when a model is loaded.
 *
 *     rows in a file     | row 0: block 0 | block 1 | … | row 1: block 0 | block 1 | …
 *     a pack of 16       | block 0 of rows 0-15          | block 1 of rows 0-15          | …
 *
 * The bytes are the same, and as many: nothing is rounded, and pack_place says where each is. */
#include "linear.cuh"

/* Rows to a pack, or 0 if the tensor stays as it is. Packs take a matrix of whole packs, of a dtype
 * that packs, of no more rows than there are counters for blocks of them: linear_few.cu could not
 * read it otherwise. */
static int32_t cuda_interleaved(const pyr_backend *, const pyr_tensor *w) {
  bool streamed = w->shape[0] <= static_cast<int64_t>(STREAM_ROWS * ARRIVALS);
  bool packs = (pyr_dtype_kernels(w->dtype, true) & PYR_KERNEL_PACKS) != 0;
  return w->rank == 2 && packs && w->shape[0] % PACK == 0 && streamed ? PACK : 0;
}

/* Byte b of the four that lane t of a row has of nibbles, out of the 16 bytes of a file's block,
 * which has column j in the low half of byte j, and column j + 16 in the high half. Byte b begins
 * at bit 8 b. */
static __device__ __forceinline__ uint8_t nibbles_of(const uint8_t *values, int t, int b) {
  int two = 0;
  for (int half = 0; half < 2; half++) {
    int col = t * 8 + b % 2 * 4 + half * 2 + b / 2;           /* nibble_shift(col) = 8 b + 4 half */
    int byte = values[col % 16];
    two |= (col < 16 ? byte & 15 : byte >> 4) << 4 * half;
  }
  return static_cast<uint8_t>(two);
}

/* A block for each pack and 32 columns; a thread for each byte of it: 2 of the scale, 32 values, or
 * 16 bytes of two. Row by row as it is read; the first two bytes of a row's block go to its scale's
 * place, the others where pack_place or nibbles_place says. Runs once, when a model is loaded:
 * bytes bound it. */
template <int DTYPE>
static __global__ void pack_kernel(uint8_t *to, const uint8_t *rows, size_t stride) {
  constexpr int BYTES = block_bytes(DTYPE);
  uint8_t *pack = to + static_cast<size_t>(blockIdx.y) * PACK * stride
      + blockIdx.x * pack_bytes(DTYPE);
  const uint8_t *from = rows + static_cast<size_t>(blockIdx.y) * PACK * stride + blockIdx.x * BYTES;
  for (int i = static_cast<int>(threadIdx.x); i < PACK * BYTES; i += static_cast<int>(blockDim.x)) {
    int row = i / BYTES, at = i % BYTES;
    const uint8_t *block = from + static_cast<size_t>(row) * stride;
    if (at < 2) pack[row * 2 + at] = block[at];
    else if (DTYPE == PACKED) pack[pack_place(row, at - 2)] = block[at];
    else {
      int t = (at - 2) / 4, b = (at - 2) % 4;
      pack[nibbles_place(row, t * 8) + b] = nibbles_of(block + 2, t, b);
    }
  }
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
    dim3 grid(static_cast<unsigned>(w->shape[1] / 32), static_cast<unsigned>(some));
    uint8_t *packed = static_cast<uint8_t *>(to) + at;
    if (w->dtype == PYR_Q8_0)
      PYR_LAUNCH(pack_kernel<PACKED>, grid, 256, 0, cuda, packed, cuda->scratch, w->stride);
    else
      PYR_LAUNCH(pack_kernel<PACKED_NIBBLES>, grid, 256, 0, cuda, packed, cuda->scratch, w->stride);
    status = cuda_launched(be, "interleave");
  }
  return status;
}

void cuda_pack_fill(pyr_backend *be) {
  be->interleaved = cuda_interleaved;
  be->interleave = cuda_interleave;
}
