/* signals.cu — what the rows of a lane, the output projection and the prompt's queries say of each
 * row, beside attention. The definitions are in core/cpu/signals.c: key_similarity (KeyDiff), lag
 * (LagKV), output_norm (CriticalKV), expected (Expected Attention, of the moments that
 * query_stats.cu leaves).
 *
 * Where rows meet a matrix, a block has a tile of rows in shared memory as f32, a row for each lane
 * of its warps, and the warps share the matrix' rows; their sums are joined in the order of warps.
 *
 * What bounds them: key_similarity and lag read rows once or twice, bytes; output_norm and expected
 * multiply each row with a matrix in f32. Shared memory, bytes: static 128 (anchor, lag) or 512
 * (parts); dynamic of key_similarity 16 d, of lag 8 d, of the others a tile, 4 rows * (d | 1), and,
 * of output_norm, 16 d. Sums are f32. Equal ranks go by the lower row first (lag). */
#include "pack.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * WARP;

/* ---- scratch --------------------------------------------------------------------------------- */

/* Of key_similarity: the anchor, one vector. Of lag: what each row's K and V were given. */
struct signal_scratch { float *anchor, *spreads; };  /* [d]; [2][rows] of K and of V */
static signal_scratch signal_scratch_of(cuda_arena *arena, int64_t d, int64_t rows) {
  return signal_scratch{ arena->take<float>(d), arena->take<float>(2 * rows) };
}

size_t cuda_signals_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  signal_scratch_of(&arena, work->head_dim, work->rows);
  return arena.used;
}

/* Joins what the warps hold for each row of a tile, by warp 0; only its lanes' results count:
 *
 *     parts     warp 0: rows 0-31 | warp 1: rows 0-31 | warp 2 | warp 3
 *     row r     parts[r] + parts[32 + r] + parts[64 + r] + parts[96 + r], in this order */
static __device__ __forceinline__ float join_warps(float *parts, float mine) {
  parts[threadIdx.x] = mine;
  __syncthreads();
  float sum = parts[lane_of_warp()];
  for (int w = 1; w < WARPS; w++) sum += parts[w * WARP + lane_of_warp()];
  return sum;
}

/* A call on rows [begin, end) of one lane. */
struct tile_args {
  float *out;                      /* [heads][end - begin] */
  pyr_lane_view lane;
  row_format f;
  int64_t begin, end;
  int first;                       /* of the query heads */
};

/* Dynamic shared memory of a tile, and how many tiles a call has. */
static size_t tile_bytes(row_format f) {
  return static_cast<size_t>(tile_rows(f.d) * tile_ld(f.d)) * sizeof(float);
}
static unsigned tiles_of(const tile_args &a) {
  return static_cast<unsigned>(ceil_div(a.end - a.begin, tile_rows(a.f.d)));
}

/* ---- key_similarity -------------------------------------------------------------------------- */

/* One block: the sum of keys scaled to length 1, itself scaled to length 1: (.6, 1.8) becomes
 * (.316, .949). One block is slow for long lanes, but has no second pass; the sum's order is the
 * same for all. */
static __global__ void __launch_bounds__(THREADS) anchor_kernel(float *anchor, tile_args a) {
  __shared__ float parts[WARP];
  PYR_SHARED(float, sums);                           /* [WARPS][d] */
  float squares = 0;
  sum_unit_keys<WARPS>(sums, a.lane, a.f, a.begin, a.end, nullptr);
  for (int c = static_cast<int>(threadIdx.x); c < a.f.d; c += THREADS)
    squares += sums[c] * sums[c];
  float length = sqrtf(block_sum(squares, parts));
  for (int c = static_cast<int>(threadIdx.x); c < a.f.d; c += THREADS)
    anchor[c] = length > 0 ? sums[c] / length : 0.0f;
}

/* A warp for a row: its cosine with the anchor. Bytes bound it: the lane's keys are read once. */
static __global__ void __launch_bounds__(THREADS) similarity_kernel(const float *anchor,
    tile_args a) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * WARPS + warp_of_block();
  if (i >= a.end - a.begin) return;
  const uint8_t *row = row_at(a.lane, a.f.bytes, a.begin + i, 0);
  float squares = 0, dot = 0;
  for (int c = lane_of_warp(); c < a.f.d; c += WARP) {
    float x = cache_value_at(row, a.f.dtype, c);
    squares += x * x;
    dot += x * anchor[c];
  }
  float length = sqrtf(warp_sum(squares));
  dot = warp_sum(dot);
  if (lane_of_warp() == 0) a.out[i] = length > 0 ? dot / length : 0.0f;
}

/* Two launches: the second needs the whole of what the first made, and the stream sees to it. */
static pyr_status cuda_key_similarity(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                      pyr_layout layout, int64_t begin, int64_t end) {
  tile_args a = { out, {}, format_of(layout), begin, end, 0 };
  pyr_cuda *cuda = cuda_of(be);
  cuda_arena arena = cuda_scratch(be);
  signal_scratch s = signal_scratch_of(&arena, a.f.d, 0);
  if (end <= begin) return PYR_OK;
  pyr_status status = cuda_check(be, "key_similarity", arena.used);
  if (status == PYR_OK) status = cuda_send_lane(be, "key_similarity", &a.lane, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(anchor_kernel, 1, THREADS, static_cast<size_t>(WARPS * a.f.d) * sizeof(float), cuda,
             s.anchor, a);
  PYR_LAUNCH(similarity_kernel, static_cast<unsigned>(ceil_div(end - begin, WARPS)), THREADS, 0,
             cuda, s.anchor, a);
  return cuda_launched(be, "key_similarity");
}

/* ---- lag ------------------------------------------------------------------------------------- */

/* The spread of each row of a run of K or V over the range of the run behind it, then its softmax
 * over the run, by a block. In dimension c, of the run behind: low_c and 1 / (high_c - low_c); a
 * row becomes y_c = (x_c - low_c) / (high_c - low_c), and its spread is the standard deviation of y
 * over its dimensions (d - 1 below). Behind, dimension 0 runs from 1 to 3, dimension 1 from 0 to 8:
 * row (2, 8) is (.5, 1), with a spread of .354. First a thread for each dimension, then a warp for
 * each row, then threads for rows again: the barriers stand between. */
static __device__ void lag_softmax(const tile_args &a, float *spread, float *low, float *parts,
                                   int64_t row, int64_t lag, int what) {
  /*     rows     row … row + lag - 1      row + lag … row + 2 lag - 1
   *              the run: judged          behind it: its range in each dimension is the measure
   *
   * What its follower's range explains is ordinary; a row that spreads far over it is kept. */
  float *inverse = low + a.f.d, top = -INFINITY, sum = 0;
  for (int c = static_cast<int>(threadIdx.x); c < a.f.d; c += THREADS) {
    float least = INFINITY, most = -INFINITY;
    for (int64_t r = 0; r < lag; r++) {
      float x = cache_value_at(row_at(a.lane, a.f.bytes, row + lag + r, what), a.f.dtype, c);
      least = x < least ? x : least;
      most = x > most ? x : most;
    }
    low[c] = least;
    inverse[c] = most > least ? 1.0f / (most - least) : 0.0f;
  }
  __syncthreads();
  for (int64_t r = warp_of_block(); r < lag; r += WARPS) {
    const uint8_t *at = row_at(a.lane, a.f.bytes, row + r, what);
    float mean = 0, squares = 0;
    for (int c = lane_of_warp(); c < a.f.d; c += WARP)
      mean += (cache_value_at(at, a.f.dtype, c) - low[c]) * inverse[c];
    mean = warp_sum(mean) / static_cast<float>(a.f.d);
    for (int c = lane_of_warp(); c < a.f.d; c += WARP) {
      float x = (cache_value_at(at, a.f.dtype, c) - low[c]) * inverse[c] - mean;
      squares += x * x;
    }
    squares = warp_sum(squares);
    if (lane_of_warp() == 0)
      spread[r] = a.f.d > 1 ? sqrtf(squares / static_cast<float>(a.f.d - 1)) : 0.0f;
  }
  __syncthreads();
  /* Softmax over the run. A thread writes rows r, r + THREADS, …, and only reads those again, up to
   * the next barrier: block_max and block_sum have it. */
  for (int64_t r = threadIdx.x; r < lag; r += THREADS) top = fmaxf(top, spread[r]);
  top = block_max(top, parts);
  for (int64_t r = threadIdx.x; r < lag; r += THREADS) sum += spread[r] = expf(spread[r] - top);
  sum = block_sum(sum, parts);
  for (int64_t r = threadIdx.x; r < lag; r += THREADS) spread[r] /= sum;
}

/* A block for a run, which is judged as a whole, also where only some of its rows are wanted. With
 * 7 rows and lag = 2 runs 0-1 and 2-3 are judged, by 2-3 and 4-5; 4-5 has no whole run behind it,
 * and gets 1 as row 6 does. Ranked: how many of the run are below, of its length; of .1 .4 .2 come
 * 0, 2/3 and 1/3, and equals in their order. */
static __global__ void __launch_bounds__(THREADS) lag_kernel(tile_args a, float *spreads,
                                                             int64_t all, int64_t lag, int ranked) {
  __shared__ float parts[WARP];
  PYR_SHARED(float, low);  /* [2][d] the least of the run behind, one over its range */
  int64_t at = static_cast<int64_t>(blockIdx.x) * lag,
      judged = a.end - a.begin - at < lag ? a.end - a.begin - at : lag;
  float *keys = spreads + at, *values = spreads + all + at;
  lag_softmax(a, keys, low, parts, a.begin + at, lag, 0);
  lag_softmax(a, values, low, parts, a.begin + at, lag, 1);
  for (int64_t i = threadIdx.x; i < lag; i += THREADS) keys[i] = (keys[i] + values[i]) * 0.5f;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < judged; i += THREADS) {
    int64_t below = 0;
    for (int64_t j = 0; j < lag && ranked; j++)
      below += keys[j] < keys[i] || (keys[j] == keys[i] && j < i);
    a.out[at + i] = ranked ? static_cast<float>(below) / static_cast<float>(lag) : keys[i];
  }
}

/* What has no whole run behind it gets 1: nothing that was judged gets more. */
static __global__ void ones_kernel(float *out, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = 1.0f;
}

/* runs: how many begin within [begin, end) and have a whole run behind them, in the lane. The last
 * of them may reach beyond `end`: it is judged as a whole, and written as far as it was asked for.
 */
static pyr_status cuda_lag(pyr_backend *be, float *out, const pyr_lane_view *lane,
                           pyr_layout layout, int64_t begin, int64_t end, int64_t lag, int ranked) {
  tile_args a = { out, {}, format_of(layout), begin, end, 0 };
  pyr_cuda *cuda = cuda_of(be);
  cuda_arena arena = cuda_scratch(be);
  if (lag < 1) return cuda_refuse(be, "lag", "runs of less than one row");
  if (end <= begin) return PYR_OK;
  int64_t whole = (lane->rows - begin) / lag - 1, runs = ceil_div(end - begin, lag);
  runs = whole < 0 ? 0 : whole < runs ? whole : runs;
  signal_scratch s = signal_scratch_of(&arena, a.f.d, runs * lag);
  pyr_status status = cuda_check(be, "lag", arena.used);
  if (status == PYR_OK) status = cuda_send_lane(be, "lag", &a.lane, lane, begin, lane->rows);
  if (status != PYR_OK) return status;
  int64_t rest = end - begin - runs * lag;
  if (rest > 0)
    PYR_LAUNCH(ones_kernel, static_cast<unsigned>(ceil_div(rest, THREADS)), THREADS, 0, cuda,
               out + runs * lag, rest);
  if (runs > 0)
    PYR_LAUNCH(lag_kernel, static_cast<unsigned>(runs), THREADS,
               static_cast<size_t>(2 * a.f.d) * sizeof(float), cuda, a, s.spreads, runs * lag, lag,
                   ranked);
  return cuda_launched(be, "lag");
}

/* ---- output_norm ----------------------------------------------------------------------------- */

/* Grid: tiles of rows, query heads. The sum over the projection's rows w of |o_w . v|: what a row's
 * values would move in the hidden state, if all attention went there. A warp has every WARPS-th row
 * of the projection; its columns of the head, in shared memory as f32: no others read them, so that
 * __syncwarp is enough. A lane of each warp has the same row of the lane's; four warps hold four
 * parts of its sum. Products bound it: 2 width d operations for each row and head. */
static __global__ void __launch_bounds__(THREADS) output_kernel(tile_args a, const uint8_t *o,
    size_t stride, int dtype, int64_t width) {
  __shared__ float parts[THREADS];
  PYR_SHARED(float, tile);                           /* [rows][ld] values; [WARPS][d] */
  int rows = tile_rows(a.f.d), ld = tile_ld(a.f.d), d = a.f.d;
  int64_t row = a.begin + static_cast<int64_t>(blockIdx.x) * rows, left = a.end - row;
  int64_t column = (a.first + static_cast<int64_t>(blockIdx.y)) * d;
  float *weights = tile + rows * ld + warp_of_block() * d, sum = 0;
  const float *v = tile + lane_of_warp() % rows * ld;
  load_tile(tile, rows, ld, a.lane, a.f, 0, d, row, left, 1);
  __syncthreads();
  for (int64_t w = warp_of_block(); w < width; w += WARPS) {
    for (int c = lane_of_warp(); c < d; c += WARP)
      weights[c] = weight_at(o, stride, dtype, w, column + c);
    __syncwarp();
    float dot = 0;
    for (int c = 0; c < d; c++) dot += weights[c] * v[c];
    sum += fabsf(dot);
    __syncwarp();
  }
  sum = join_warps(parts, sum);
  if (warp_of_block() == 0 && lane_of_warp() < rows && lane_of_warp() < left)
    a.out[blockIdx.y * (a.end - a.begin) + (row - a.begin) + lane_of_warp()] = sum;
}

/* A launch for all heads of one lane: they share its values. */
static pyr_status cuda_output_norm(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                   pyr_layout layout, int64_t begin, int64_t end,
                                       const pyr_tensor *o, int32_t first, int32_t count) {
  tile_args a = { out, {}, format_of(layout), begin, end, first };
  if (end <= begin || count <= 0) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "output_norm", &a.lane, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(output_kernel, dim3(tiles_of(a), static_cast<unsigned>(count)), THREADS,
             tile_bytes(a.f) + static_cast<size_t>(WARPS * a.f.d) * sizeof(float),
             cuda_of(be), a, static_cast<const uint8_t *>(o->data), o->stride, weight_dtype(o),
                 o->shape[0]);
  return cuda_launched(be, "output_norm");
}

/* ---- expected -------------------------------------------------------------------------------- */

/* Grid: tiles of rows, query heads. mean . k + k^T outer k: a warp has every WARPS-th dimension i,
 * and adds (mean_i + outer_i . k) k_i. All lanes read the same outer[j] at once, out of L1. With
 * mean (1, 0), outer ((2, 1), (1, 2)) and k = (1, 1): (1 + 3) + (0 + 3) = 7. NULL: only the mean
 * counts. */
static __global__ void __launch_bounds__(THREADS) expected_kernel(tile_args a, const float *means,
    const float *outers) {
  __shared__ float parts[THREADS];
  PYR_SHARED(float, tile);
  int rows = tile_rows(a.f.d), ld = tile_ld(a.f.d), d = a.f.d;
  int64_t row = a.begin + static_cast<int64_t>(blockIdx.x) * rows, left = a.end - row;
  int64_t head = a.first + static_cast<int64_t>(blockIdx.y);
  const float *mean = means + head * d, *k = tile + lane_of_warp() % rows * ld;
  float sum = 0;
  load_tile(tile, rows, ld, a.lane, a.f, 0, d, row, left, 0);
  __syncthreads();
  for (int i = warp_of_block(); i < d; i += WARPS) {
    float dot = 0;
    if (outers) {
      const float *outer = outers + (head * d + i) * d;
      for (int j = 0; j < d; j++) dot += outer[j] * k[j];
    }
    sum += (mean[i] + dot) * k[i];
  }
  sum = join_warps(parts, sum);
  if (warp_of_block() == 0 && lane_of_warp() < rows && lane_of_warp() < left)
    a.out[blockIdx.y * (a.end - a.begin) + (row - a.begin) + lane_of_warp()] = sum;
}

/* means, outers: of all query heads, [heads][d] and [heads][d][d], as moments_end left them. */
static pyr_status cuda_expected(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                pyr_layout layout, int64_t begin, int64_t end,
                                    const pyr_moments *m, int32_t first, int32_t count) {
  tile_args a = { out, {}, format_of(layout), begin, end, first };
  if (end <= begin || count <= 0) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "expected", &a.lane, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(expected_kernel, dim3(tiles_of(a), static_cast<unsigned>(count)), THREADS,
             tile_bytes(a.f), cuda_of(be), a, m->sum, m->outer);
  return cuda_launched(be, "expected");
}

/* ---- along ----------------------------------------------------------------------------------- */

/* Grid: tiles of rows, heads. A warp has every WARPS-th dimension, and then every WARPS-th pair: of
 * 64 dimensions and 32 pairs 16 and 8. A lane of each warp has the same row; the four warps' sums
 * are joined in their order, so that a row's number does not depend on its place in the tile.
 *
 *     half           values p and p + pairs are a pair         0 1 2 3 | 4 5 6 7     (0, 4) (1, 5)
 *     interleaved    values 2 p and 2 p + 1                    0 1 | 2 3 | 4 5 | 6 7
 *
 * All lanes read the same vector value at once, out of L1. Sums are f32. */
static __global__ void __launch_bounds__(THREADS) along_kernel(tile_args a, pyr_along v) {
  __shared__ float parts[THREADS];
  PYR_SHARED(float, tile);
  int rows = tile_rows(a.f.d), ld = tile_ld(a.f.d), d = a.f.d, pairs = v.dims / 2;
  int each = v.style == PYR_ROPE_HALF ? 1 : 2, other = v.style == PYR_ROPE_HALF ? pairs : 1;
  int64_t row = a.begin + static_cast<int64_t>(blockIdx.x) * rows, left = a.end - row;
  int64_t head = blockIdx.y;
  const float *vector = v.vectors + head * d, *k = tile + lane_of_warp() % rows * ld;
  float sum = 0;
  load_tile(tile, rows, ld, a.lane, a.f, 0, d, row, left, 0);
  __syncthreads();
  for (int i = warp_of_block(); i < d; i += WARPS) sum += vector[i] * k[i];
  for (int p = warp_of_block(); p < pairs && v.spreads; p += WARPS) {
    float x = k[p * each], y = k[p * each + other];
    sum += v.spreads[head * pairs + p] * sqrtf(x * x + y * y);
  }
  sum = join_warps(parts, sum);
  if (warp_of_block() == 0 && lane_of_warp() < rows && lane_of_warp() < left)
    a.out[head * (a.end - a.begin) + (row - a.begin) + lane_of_warp()] = sum;
}

static pyr_status cuda_along(pyr_backend *be, float *out, const pyr_lane_view *lane,
                             pyr_layout layout, int64_t begin, int64_t end, const pyr_along *along,
                                 int32_t count) {
  tile_args a = { out, {}, format_of(layout), begin, end, 0 };
  if (end <= begin || count <= 0) return PYR_OK;
  pyr_status status = cuda_send_lane(be, "along", &a.lane, lane, begin, end);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(along_kernel, dim3(tiles_of(a), static_cast<unsigned>(count)), THREADS,
             tile_bytes(a.f), cuda_of(be), a, *along);
  return cuda_launched(be, "along");
}

void cuda_signals_fill(pyr_backend *be) {
  be->along = cuda_along;
  be->key_similarity = cuda_key_similarity;
  be->lag = cuda_lag;
  be->output_norm = cuda_output_norm;
  be->expected = cuda_expected;
}
