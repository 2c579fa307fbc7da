/* redundancy.cu — how like the other keys of its lane a key is (R-KV). The definition is in
 * core/cpu/redundancy.c.
 *
 * Three launches: one block for the sum of all keys of length 1; a block for each tile of rows,
 * which goes through the lane from its end until each of its rows has found the last one that is
 * like it; one block for the softmax. What the last ones are relieved of is summed by atomics, in
 * whole numbers of 2^-32: whole numbers add up to the same in any order.
 *
 * What bounds them: the middle one reads the lane's keys once for each tile, and multiplies; at
 * most, as it stops early. The first and the last are one block's work, n * d and n values.
 *
 * Shared memory, bytes: static 128 (anchor, softmax) and 512 (alike); dynamic 16 d (anchor) and a
 * tile and a key for each warp, 4 rows * (d | 1) + 16 d (alike). Sums are f32. */
#include "convert.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * WARP;

/* Rows of the lane that a block looks at between two exchanges of what its warps found. */
static constexpr int CHUNK = WARPS * 8;

static constexpr float STEPS = 4294967296.0f;        /* whole numbers in 1 */

struct redundancy_scratch {
  float *anchor;                   /* [d] the sum of all keys of length 1 */
  float *inverse;                  /* [n] one over the length of each key */
  float *mean;                     /* [n] */
  unsigned long long *relief;      /* [n] in whole numbers; negative ones wrap, and come back */
};

static redundancy_scratch redundancy_scratch_of(cuda_arena *arena, int64_t d, int64_t rows) {
  return redundancy_scratch{ arena->take<float>(d), arena->take<float>(rows),
                             arena->take<float>(rows), arena->take<unsigned long long>(rows) };
}

size_t cuda_redundancy_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  redundancy_scratch_of(&arena, work->head_dim, work->rows);
  return arena.used;
}

struct redundancy_args {
  redundancy_scratch s;
  pyr_lane_view lane;
  row_format f;
  int64_t n;
  float threshold;
};

/* One block; and nobody is relieved of anything yet. */
static __global__ void __launch_bounds__(THREADS) unit_sum_kernel(redundancy_args a) {
  PYR_SHARED(float, sums);                           /* [WARPS][d] */
  sum_unit_keys<WARPS>(sums, a.lane, a.f, 0, a.n, a.s.inverse);
  for (int c = static_cast<int>(threadIdx.x); c < a.f.d; c += THREADS) a.s.anchor[c] = sums[c];
  for (int64_t j = threadIdx.x; j < a.n; j += THREADS) a.s.relief[j] = 0;
}

/* A block for a tile of rows: lane r of each warp has row r. In a chunk of the lane each warp has
 * every WARPS-th row j, as u_j in shared memory, from the highest on; then all threads look at what
 * the four warps found for their row, and take the highest. The chunk's rows are above those of all
 * later chunks, so that a row that has found one is done, and the block when all are.
 *
 *     chunk      … | 95 94 93 92 … 66 65 64 |      warp 0: 95 91 …, warp 1: 94 90 …, …
 *     found[w]   91 | -1 | 93 | -1             -> 93, by warp 2, which alone writes it down */
static __global__ void __launch_bounds__(THREADS) alike_kernel(redundancy_args a) {
  __shared__ int found[THREADS];
  PYR_SHARED(float, tile);                           /* [rows][ld] keys; [WARPS][d] u_j */
  int rows = tile_rows(a.f.d), ld = tile_ld(a.f.d), d = a.f.d;
  int64_t first = static_cast<int64_t>(blockIdx.x) * rows, left = a.n - first,
      own = first + lane_of_warp();
  float *other = tile + rows * ld + warp_of_block() * d;
  const float *mine = tile + lane_of_warp() % rows * ld;
  bool has_row = lane_of_warp() < rows && lane_of_warp() < left;
  load_tile(tile, rows, ld, a.lane, a.f, 0, d, first, left, 0);
  __syncthreads();
  float inverse = has_row ? a.s.inverse[own] : 0.0f;
  if (warp_of_block() == 0 && has_row) {
    float sum = 0, squares = 0;
    for (int c = 0; c < d; c++) {
      float x = mine[c] * inverse;
      sum += x * a.s.anchor[c], squares += x * x;
    }
    a.s.mean[own] = (sum - squares) / static_cast<float>(a.n);
  }
  for (int64_t above = a.n; above > 0; above -= CHUNK) {
    int mine_found = -1;
    float alike = 0;
    for (int t = warp_of_block(); t < CHUNK; t += WARPS) {
      int64_t j = above - 1 - t;
      if (j < 0) break;                              /* the same for all lanes of the warp */
      const uint8_t *row = row_at(a.lane, a.f.bytes, j, 0);
      for (int c = lane_of_warp(); c < d; c += WARP)
        other[c] = cache_value_at(row, a.f.dtype, c) * a.s.inverse[j];
      __syncwarp();
      float dot = 0;
      for (int c = 0; c < d; c++) dot += mine[c] * inverse * other[c];
      if (mine_found < 0 && has_row && j != own && dot > a.threshold)
        mine_found = static_cast<int>(j), alike = dot;
      __syncwarp();
    }
    found[threadIdx.x] = mine_found;
    __syncthreads();
    int best = found[lane_of_warp()];
    for (int w = 1; w < WARPS; w++) {
      int x = found[w * WARP + lane_of_warp()];
      best = x > best ? x : best;
    }
    __syncthreads();                                 /* all have read before it is written again */
    if (best >= 0 && best == mine_found)
      atomicAdd(&a.s.relief[best],
                static_cast<unsigned long long>(static_cast<long long>(alike * STEPS)));
    if (best >= 0) has_row = false;                  /* in all four warps alike */
    if (__ballot_sync(ALL_LANES, has_row) == 0) return;
  }
}

/* One block: s of all rows over `mean`, its softmax, and rows [begin, begin + count) to out. */
static __global__ void __launch_bounds__(THREADS) redundancy_kernel(redundancy_args a, float *out,
    int64_t begin, int64_t count) {
  __shared__ float parts[WARP];
  float top = -INFINITY, sum = 0;
  for (int64_t i = threadIdx.x; i < a.n; i += THREADS) {
    float relief = static_cast<float>(static_cast<long long>(a.s.relief[i])) / STEPS;
    a.s.mean[i] -= relief / static_cast<float>(a.n);
    top = fmaxf(top, a.s.mean[i]);
  }
  top = block_max(top, parts);
  for (int64_t i = threadIdx.x; i < a.n; i += THREADS)
    sum += a.s.mean[i] = expf(a.s.mean[i] - top);
  sum = block_sum(sum, parts);                       /* its barriers: all of `mean` is there */
  for (int64_t i = threadIdx.x; i < count; i += THREADS) out[i] = a.s.mean[begin + i] / sum;
}

static pyr_status cuda_redundancy(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                  pyr_layout layout, int64_t begin, int64_t end,
                                  float threshold) {
  redundancy_args a = { {}, {}, format_of(layout), lane->rows, threshold };
  pyr_cuda *cuda = cuda_of(be);
  cuda_arena arena = cuda_scratch(be);
  if (end <= begin) return PYR_OK;
  a.s = redundancy_scratch_of(&arena, a.f.d, a.n);
  pyr_status status = cuda_check(be, "redundancy", arena.used);
  if (status == PYR_OK) status = cuda_send_lane(be, "redundancy", &a.lane, lane, 0, a.n);
  if (status != PYR_OK) return status;
  size_t sums = static_cast<size_t>(WARPS * a.f.d) * sizeof(float),
      tile = static_cast<size_t>(tile_rows(a.f.d) * tile_ld(a.f.d)) * sizeof(float);
  PYR_LAUNCH(unit_sum_kernel, 1, THREADS, sums, cuda, a);
  PYR_LAUNCH(alike_kernel, static_cast<unsigned>(ceil_div(a.n, tile_rows(a.f.d))), THREADS,
             tile + sums, cuda, a);
  PYR_LAUNCH(redundancy_kernel, 1, THREADS, 0, cuda, a, out, begin, end - begin);
  return cuda_launched(be, "redundancy");
}

void cuda_redundancy_fill(pyr_backend *be) { be->redundancy = cuda_redundancy; }
