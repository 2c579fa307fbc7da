/* merge.cu — rows that go are merged into the most similar row that stays. As core/cpu/merge.c:
 *
 *     t(l) = argmax over survivors s of cos(l, s), for each loser l; ties to the lower s
 *     cos(l, s) = k_l . k_s / (|k_l| |k_s|)
 *     k_s <- (k_s + sum of k_l) / (1 + their number), over the losers l of s with
 *            cos >= threshold; likewise v_s
 *
 * First every loser's t(l) into links[l], -1 for none: a warp has a loser, whose direction lies in
 * shared memory; the block's warps share tiles of survivors, a survivor for each lane. Which rows
 * go follows from idx alone: the l-th loser is the row r with l = r - (survivors below r), found by
 * bisection. Then a warp for each survivor walks the losers in order and adds its own.
 *
 * Of 8 rows 0 2 3 6 are kept; idx[i] - i, 0 1 1 3, is how many losers lie below the i-th survivor:
 *
 *     l                 0    1    2    3
 *     idx[i] - i <= l   1    3    3    4      survivors below the loser
 *     row               1    4    5    7      l + that
 *
 * If rows 1 and 5 are most like row 2, and like enough, its key becomes (k_2 + k_1 + k_5) / 3.
 * find_kernel costs 4 d operations for each pair of loser and survivor, in f32, which bound it;
 * tiles of survivors serve the four losers of a block. mean_kernel reads each loser once.
 *
 * Shared memory, bytes: 4 (tile rows * (d | 1) + 4 d), for d = 128 18.1 KiB; 16 d. Sums are f32.
 * Ties between survivors go to the lower row. */
#include "convert.cuh"

static constexpr int WARPS = 4;

/* links: by the loser's row, not its number. */
struct merge_args {
  pyr_lane_view lane;
  row_format f;
  const int32_t *idx;
  int32_t *links;
  int64_t kept, lost;
  float threshold;
};

/* The l-th row that is not among idx: the survivors below it are those with idx[i] - i <= l. */
static __device__ __forceinline__ int64_t loser_at(const merge_args &a, int64_t l) {
  /* Invariant: of survivors before low idx[i] - i <= l, from high on it is above. It never falls.
   */
  int64_t low = 0, high = a.kept;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (a.idx[middle] - middle <= l) low = middle + 1; else high = middle;
  }
  return l + low;
}

/* A row of zeros is like nothing: its cosine with all is 0. */
static __device__ __forceinline__ float inverse_length(float squares) {
  float size = sqrtf(squares);
  return size > 0 ? 1.0f / size : 0.0f;
}

/* The loser's key, scaled to length 1 (zeros stay so), by its warp. */
static __device__ __forceinline__ void load_loser(const merge_args &a, float *to, int64_t row) {
  float squares = 0;
  for (int i = lane_of_warp(); i < a.f.d; i += WARP) {
    float x = cache_value_at(row_at(a.lane, a.f.bytes, row, 0), a.f.dtype, i);
    to[i] = x;
    squares += x * x;
  }
  float inverse = inverse_length(warp_sum(squares));
  for (int i = lane_of_warp(); i < a.f.d; i += WARP) to[i] *= inverse;
}

/* Grid: four losers to a block, one for each warp. Warps without one walk along, as the barriers
 * ask it of them. Before each tile: best and target are of the lane's survivors so far, every 32nd
 * (or 16th); only a better one replaces them, so that of equals the first stays. The butterfly
 * takes the better, or the lower, in the end. */
static __global__ void find_kernel(merge_args a) {
  PYR_SHARED(float, shared);               /* [tile_rows][ld] survivors; [WARPS][d] losers */
  int rows = tile_rows(a.f.d), ld = tile_ld(a.f.d), lane = lane_of_warp();
  int64_t l = static_cast<int64_t>(blockIdx.x) * WARPS + warp_of_block(),
      mine = l < a.lost ? loser_at(a, l) : -1;
  float *tile = shared, *loser = shared + rows * ld + warp_of_block() * a.f.d, best = -INFINITY;
  int32_t target = INT32_MAX;
  if (mine >= 0) load_loser(a, loser, mine);
  for (int64_t first = 0; first < a.kept; first += rows) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < rows * a.f.d; i += static_cast<int>(
        blockDim.x)) {
      int r = i / a.f.d, c = i % a.f.d;
      if (first + r < a.kept)
        tile[r * ld + c] = cache_value_at(row_at(a.lane, a.f.bytes, a.idx[first + r], 0),
                                          a.f.dtype, c);
    }
    __syncthreads();
    if (mine < 0 || lane >= rows || first + lane >= a.kept) continue;
    const float *k = tile + lane * ld;
    float squares = 0, dot = 0;
    for (int i = 0; i < a.f.d; i++) squares += k[i] * k[i], dot += k[i] * loser[i];
    dot *= inverse_length(squares);
    if (dot > best) best = dot, target = a.idx[first + lane];
  }
  for (int other = WARP / 2; other > 0; other /= 2) {
    float x = __shfl_xor_sync(ALL_LANES, best, other);
    int32_t t = __shfl_xor_sync(ALL_LANES, target, other);
    if (x > best || (x == best && t < target)) best = x, target = t;
  }
  if (mine >= 0 && lane == 0)
    a.links[mine] = best >= a.threshold && target != INT32_MAX ? target : -1;
}

/* Grid: four survivors to a block, a warp for each; its sum lies in shared memory. Nobody writes a
 * loser, and a survivor only its own warp: order makes no difference. A warp asks 32 losers at once
 * whose they are, and adds those that are its own in their order. */
static __global__ void mean_kernel(merge_args a) {
  PYR_SHARED(float, shared);
  int64_t i = static_cast<int64_t>(blockIdx.x) * WARPS + warp_of_block();
  float *sum = shared + warp_of_block() * a.f.d;
  if (i >= a.kept) return;
  int32_t row = a.idx[i];
  for (int what = 0; what < 2; what++) {
    uint8_t *to = row_at(a.lane, a.f.bytes, row, what);
    float count = 1;
    for (int c = lane_of_warp(); c < a.f.d; c += WARP) sum[c] = cache_value_at(to, a.f.dtype, c);
    /* Before each turn: sum is of this row and of its losers among the first `first`, `count` rows;
     * a lane has every 32nd dimension of it. */
    for (int64_t first = 0; first < a.lost; first += WARP) {
      int64_t l = first + lane_of_warp(), loser = l < a.lost ? loser_at(a, l) : 0;
      unsigned found = __ballot_sync(ALL_LANES, l < a.lost && a.links[loser] == row);
      for (; found; found &= found - 1) {
        int64_t from = __shfl_sync(ALL_LANES, loser, __ffs(static_cast<int>(found)) - 1);
        const uint8_t *more = row_at(a.lane, a.f.bytes, from, what);
        for (int c = lane_of_warp(); c < a.f.d; c += WARP)
          sum[c] += cache_value_at(more, a.f.dtype, c);
        count++;
      }
    }
    if (count == 1) return;  /* nothing is merged into it: neither K nor V changes */
    if (a.lane.born && lane_of_warp() == 0) a.lane.born[row] = row;
    for (int c = lane_of_warp(); c < a.f.d; c += WARP) sum[c] /= count;
    __syncwarp();
    write_row(to, a.f.dtype, sum, a.f.d);
    __syncwarp();
  }
}

static pyr_status cuda_merge(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                             const int32_t *idx, int64_t k, float threshold, int32_t *links) {
  merge_args a = { {}, format_of(layout), idx, links, k, lane->rows - k, threshold };
  pyr_cuda *cuda = cuda_of(be);
  size_t tile = static_cast<size_t>(tile_rows(a.f.d) * tile_ld(a.f.d)) * sizeof(float);
  size_t each = static_cast<size_t>(WARPS * a.f.d) * sizeof(float);
  if (k <= 0 || a.lost <= 0) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "merge", &a.lane, lane, 0, lane->rows);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(find_kernel, static_cast<unsigned>(ceil_div(a.lost, WARPS)), WARPS * WARP,
             tile + each, cuda, a);
  PYR_LAUNCH(mean_kernel, static_cast<unsigned>(ceil_div(k, WARPS)), WARPS * WARP, each, cuda, a);
  return cuda_launched(be, "merge");
}

void cuda_merge_fill(pyr_backend *be) { be->merge = cuda_merge; }
