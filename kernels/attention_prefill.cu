/* attention_prefill.cu — causal attention of many queries a sequence on tensor cores.
 *
 * A block has 16 MT columns for each of its four warps: the heads of a lane's group side by side,
 * query after query, so that a tile of rows serves all heads that read it. It walks the rows that
 * any of its columns sees a page (32 rows, K and V) at a time, in two stages: while one is worked
 * on, the next is copied. Rows beyond the causal bound of the last query, or before the window of
 * the first one, are not read; a warp none of whose columns sees a page leaves it out; only pages
 * at a bound are masked.
 *
 * Shared memory, bytes: queries 2 * 64 MT * D * TERMS, rows 2 stages * 2 * 32 * D * 2. For D = 128
 * that is 64 KiB rounded (MT = 2) and, exact, 64 KiB (f16) or 80 KiB (bf16) with MT = 1; for D =
 * 64, where MT is 2, 32, 48 and 64 KiB; for D = 256, rounded, MT = 1, 96 KiB. Registers hold the
 * sums, D / 2 MT of a lane's at most 255. Rows of fp8_e4m3 become halves where they lie: the bytes
 * of both stages have the place of one, the halves that of the other. Rows of f32 and q8_0 are
 * rounded to bf16 on their way, where calls are rounded; else they, and heads that no D fits, are
 * attention.cu's.
 *
 * What is read, drawn for pages of 32 rows and 64 queries of one head (x: masked, #: whole, blank:
 * not read), and the same with a window of 64:
 *
 *     rows           0    32   64   96   128        0    32   64   96   128
 *     queries   0-63   x    x                         x    x
 *              64-127  #    #    x    x               x    x    x    x
 *             128-191  #    #    #    #    x …                  x    x    x …
 *
 * A page costs a column 64 D multiply-adds, and a block 128 D bytes (of 16 bits): 128 MT operations
 * for two bytes, and blocks of one lane find the bytes in L2. So products count, and what stands
 * beside them: an exp2 for each row and column, and a barrier for each page. */
#include "attention_tile.cuh"

static constexpr int WARPS = 4, ROWS = PYR_PAGE_ROWS;

/* The lowest and the highest row that one, or that every column of `columns` sees. Columns that see
 * [0, 40) and [0, 41): any [0, 41), all [0, 40). Page 0 (rows 0 to 31) is whole, page 1 is masked,
 * page 2 is not read. */
struct bounds { int any_low, any_high, all_low, all_high; };

/* The least and greatest of lows and highs over `columns` columns, given to the whole warp. A
 * column that sees nothing has low = INT32_MAX and high = 0: it asks for no row, and any page is
 * masked for it, as all_low and all_high are then beyond all rows. */
static __device__ __forceinline__ bounds bounds_of(const int *lows, const int *highs, int columns) {
  int any_low = INT32_MAX, any_high = 0, all_low = 0, all_high = INT32_MAX;
  for (int i = lane_of_warp(); i < columns; i += WARP) {
    any_low = lows[i] < any_low ? lows[i] : any_low;
    all_low = lows[i] > all_low ? lows[i] : all_low;
    any_high = highs[i] > any_high ? highs[i] : any_high;
    all_high = highs[i] < all_high ? highs[i] : all_high;
  }
  return bounds{ -warp_max(-any_low), warp_max(any_high), warp_max(all_low), -warp_max(-all_high) };
}

/* Grid: tiles of columns, those that see most first; lanes; calls. */
template <typename T, rows_come COME, int D, int TERMS, int MT, bool BENT>
static __global__ void __launch_bounds__(WARPS * WARP) prefill_kernel(attend_args a) {
  constexpr int TILE = 16 * MT * WARPS, PLANE = TILE * D;
  __shared__ int lows[TILE], highs[TILE];
  __shared__ float backs[TILE];
  __shared__ tile_bend<BENT ? TILE : 1> bend;
  PYR_SHARED(uint16_t, q);
  uint16_t *stages = q + TERMS * PLANE;
  const attend_call &call = a.calls[blockIdx.z];
  const pyr_lane_view lane = call.lanes[blockIdx.y];
  int thread = static_cast<int>(threadIdx.x), warp = warp_of_block(), first = warp * MT * 16;
  int64_t columns_of_call = call.n * a.group,
      base = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * TILE;
  /* Blocks start in the order of their numbers, and the last queries see most: they come first, and
   * the short ones fill what is left at the end. A call of fewer columns than the longest has idle
   * blocks. */
  if (base >= columns_of_call) return;

  if (thread < TILE) {  /* columns beyond the last are like it, and written nowhere */
    int64_t column_of_call = base + thread < columns_of_call ? base + thread : columns_of_call - 1;
    row_span seen = visible_rows(lane.positions, lane.rows, call.q_pos[column_of_call / a.group],
                                 call.window);
    lows[thread] = seen.low < seen.high ? static_cast<int>(seen.low) : INT32_MAX;
    highs[thread] = seen.low < seen.high ? static_cast<int>(seen.high) : 0;
    if (BENT) {
      bend.query[thread] = call.q_pos[column_of_call / a.group];
      bend.slope[thread] = slope_of(call, blockIdx.y * a.group + column_of_call % a.group);
    }
  }
  /* A warp for a column: its query's head, split into terms. What f16 scales up, `back` takes back.
   */
  for (int r = warp; r < TILE; r += WARPS) {
    int64_t at = base + r, query = at / a.group,
        head = static_cast<int64_t>(blockIdx.y) * a.group + at % a.group;
    const float *from = at < columns_of_call ? call.q + (query * a.heads + head) * a.f.d : nullptr;
    float back = put_split<T, D, TERMS>(q, r, PLANE, from, a.f.d);
    if (lane_of_warp() == 0) backs[r] = back;
  }
  __syncthreads();
  bounds block = bounds_of(lows, highs, TILE), mine = bounds_of(lows + first, highs + first,
      16 * MT);

  auto fetch = [&](int row, int stage) {
    fetch_stage<T, COME, D, ROWS>(stages, stage, lane, a.f, row, lane.rows, thread, WARPS * WARP);
    copy_commit();
  };

  /* Before each turn: c is of the rows [begin, row) that the warp's columns see; rows [row, row +
   * ROWS) are in `stage` or on their way; the other stage may still be read by slower warps. The
   * barrier ends that, and then the next page is asked for, so that it travels while this one is
   * worked on. */
  columns<D, MT> c;
  clear(c);
  int stage = 0, begin = block.any_low / ROWS * ROWS;
  if (begin < block.any_high) fetch(begin, 0);
  for (int row = begin; row < block.any_high; row += ROWS, stage ^= 1) {
    copy_wait<0>();
    __syncthreads();  /* this stage is there, and nobody works on the other any more */
    if (row + ROWS < block.any_high) fetch(row + ROWS, stage ^ 1);
    uint16_t *k = tile_of_stage<COME, D, ROWS>(stages, stage, thread, WARPS * WARP);
    /* The halves have one place for both stages; the barrier above freed it. */
    if (COME == WIDENED) __syncthreads();
    /* A warp that sees nothing of the page goes on to the barrier; all turns have the same
     * barriers. */
    if (row >= mine.any_high || row + ROWS <= mine.any_low) continue;
    float s[MT][ROWS / 8][4];
    tile_scores<T, D, TERMS, MT, ROWS>(s, q, first, PLANE, k);
    if (BENT) bend_tile<MT, ROWS>(s, bend, backs, first, row, lane, a.scale, call.cap);
    if (row < mine.all_low || row + ROWS > mine.all_high) {
      /* The page holds a bound of some column. Element i of s[mt][n] is of row at + 8 n + i % 2. */
      int at = row + lane_of_warp() % 4 * 2;
#pragma unroll
      for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            int j = at + n * 8 + i % 2, r = first + row_of_tile(mt, i / 2);
            if (j < lows[r] || j >= highs[r]) s[mt][n][i] = -INFINITY;
          }
    }
    float scale[MT][2], alpha[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        scale[mt][half] = BENT ? LOG2_E
            : a.scale * LOG2_E * backs[first + row_of_tile(mt, half)];
    tile_softmax<T, D, MT, ROWS>(c, s, scale, alpha);
    tile_mix<T, D, TERMS, MT, ROWS>(c, s, alpha, k + ROWS * D);
  }

#pragma unroll
  for (int mt = 0; mt < MT; mt++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      /* Each lane writes two neighbouring dimensions of its two columns: 8 bytes, four lanes 32
       * together. */
      float l = quad_sum(c.l[mt][half]), inverse = l > 0 || l != l ? 1.0f / l : 0.0f;
      int64_t at = base + first + row_of_tile(mt, half);
      if (at >= columns_of_call) continue;
      /* l holds 2^shift times the sum; m is unscaled, unless it is bent: scale it now. */
      float m = BENT || c.m[mt][half] == -INFINITY ? c.m[mt][half]
          : c.m[mt][half] * (a.scale * backs[at - base]);
      float sink = sink_of(call, static_cast<int64_t>(blockIdx.y) * a.group + at % a.group);
      if (sink != -INFINITY) {         /* one row more, without a value */
        float top = fmaxf(m, sink), down = expf(m - top);
        l = l * down + expf(sink - top) * static_cast<float>(1 << T::shift);
        inverse = down / l;
        m = top;
      }
      int64_t to = at / a.group * a.heads + static_cast<int64_t>(blockIdx.y) * a.group
          + at % a.group;
      float *out = call.out + to * a.f.d;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        int d = n * 8 + lane_of_warp() % 4 * 2;
        if (d < a.f.d)
          *reinterpret_cast<float2 *>(out + d) = make_float2(c.out[mt][n][2 * half] * inverse,
                                                             c.out[mt][n][2 * half + 1] * inverse);
      }
      if (call.lse && lane_of_warp() % 4 == 0)
        call.lse[to] = l == 0 ? -INFINITY
                                : m + (logf(l) - static_cast<float>(T::shift) * LN_2);
    }
}

/* Dynamic shared memory: the queries' terms, and two stages of K and V of a page, all of 16 bits.
 */
template <typename T, rows_come COME, int D, int TERMS, int MT>
static void launch(pyr_backend *be, const attend_args &a, int64_t columns, unsigned lanes,
                   unsigned calls) {
  constexpr int TILE = 16 * MT * WARPS, BYTES = 2 * (TERMS * TILE * D + 4 * ROWS * D);
  dim3 grid(static_cast<unsigned>(ceil_div(columns, TILE)), lanes, calls);
  if (a.bent)
    PYR_LAUNCH((prefill_kernel<T, COME, D, TERMS, MT, true>), grid, WARPS * WARP, BYTES,
               cuda_of(be), a);
  else
    PYR_LAUNCH((prefill_kernel<T, COME, D, TERMS, MT, false>), grid, WARPS * WARP, BYTES,
               cuda_of(be), a);
}

/* MT = 2 serves twice the columns with each page, as long as sums fit a lane's registers. */
template <typename T, rows_come COME>
static void launch_rounded(pyr_backend *be, const attend_args &a, int64_t columns, unsigned lanes,
                           unsigned calls) {
  if (a.f.d <= 64) launch<T, COME, 64, 1, 2>(be, a, columns, lanes, calls);
  else if (a.f.d <= 128) launch<T, COME, 128, 1, 2>(be, a, columns, lanes, calls);
  else launch<T, COME, 256, 1, 1>(be, a, columns, lanes, calls);
}

/* Sums of a tile by itself and of lesser terms take registers, too: MT = 1 from 65 dimensions on.
 */
template <typename T, rows_come COME>
static void launch_exact(pyr_backend *be, const attend_args &a, int64_t columns, unsigned lanes,
                         unsigned calls) {
  if (a.f.d <= 64) launch<T, COME, 64, T::exact, 2>(be, a, columns, lanes, calls);
  else launch<T, COME, 128, T::exact, 1>(be, a, columns, lanes, calls);
}

/* Which rows come how, and how many terms queries and probabilities have:
 *
 *     rows          rounded                                  exact
 *     f16           as they lie, f16, 1 term                 as they lie, f16, 2 terms
 *     bf16          as they lie, bf16, 1 term                as they lie, bf16, 3 terms
 *     fp8_e4m3      widened to f16, 1 term; rounded to       widened to f16, 2 terms,
 *                   f16 if d is no multiple of 16            if d is a multiple of 16
 *     f32, q8_0     rounded to bf16, 1 term                  no: attention.cu's
 *
 * Heads: d a multiple of 8, up to 256 rounded and 128 exact. scale > 0, as scores are compared
 * before they are scaled. */
bool cuda_attention_prefill(pyr_backend *be, const attend_args &a, int64_t columns, unsigned lanes,
                            unsigned calls) {
  bool rounded = a.rounded, half = a.f.dtype == PYR_F16, brain = a.f.dtype == PYR_BF16;
  bool eight = a.f.dtype == PYR_FP8_E4M3, bytes = eight && a.f.d % 16 == 0;
  if (!(a.scale > 0) || a.f.d % 8 != 0 || a.f.d > (rounded ? 256 : 128)
      || !(rounded || half || brain || bytes)) return false;
  if (rounded && half) launch_rounded<f16, AS_THEY_LIE>(be, a, columns, lanes, calls);
  else if (rounded && brain) launch_rounded<bf16, AS_THEY_LIE>(be, a, columns, lanes, calls);
  else if (rounded && bytes) launch_rounded<f16, WIDENED>(be, a, columns, lanes, calls);
  /* which halves are not */
  else if (rounded && eight) launch_rounded<f16, ROUNDED>(be, a, columns, lanes, calls);
  else if (rounded) launch_rounded<bf16, ROUNDED>(be, a, columns, lanes, calls);
  else if (half) launch_exact<f16, AS_THEY_LIE>(be, a, columns, lanes, calls);
  else if (brain) launch_exact<bf16, AS_THEY_LIE>(be, a, columns, lanes, calls);
  else launch_exact<f16, WIDENED>(be, a, columns, lanes, calls);
  return true;
}
