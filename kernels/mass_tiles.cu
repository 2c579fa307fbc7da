/* mass_tiles.cu — the score pass (mass.cu) on tensor cores.
 *
 * A block has 128 rows of a lane and one head; each of its four warps 32 of them (of 256
 * dimensions: a block 64, a warp 16) as the rows of products, in registers for as long as the block
 * lives. The queries pass by, 32 at a time, as the columns: two stages in shared memory, where they
 * are split into terms of 16 bits as attention's are (attention_tile.cuh), so that rows of 16 bits
 * lose nothing; rounded calls have one term. A lane adds up what its queries give to its rows, in
 * their order; the four lanes of a row are added at the end. Queries none of which counts for, or
 * sees, any of the rows are not read, and only where some do not are they asked one by one.
 *
 * Shared memory, bytes: 128 D TERMS and 1 KiB: for D = 128 17 KiB rounded, 33 KiB (f16) and 49 KiB
 * (bf16) exact.
 *
 * What a lane holds, g = lane / 4, t = lane % 4, of each 16 rows and 16 queries:
 *
 *     operand a    k of rows g and g + 8, all dimensions, in registers, loaded once
 *     operand b    queries, out of shared memory, by load_b: 8 columns for each of c[0] and c[1]
 *     c            rows g and g + 8, of queries 2t, 2t + 1, and 2t + 8, 2t + 9
 *
 * and p = 2^(c * scale - lse) of each is added to one of two sums of its rows; scores that are
 * capped or sloped (BENT) get log2 e behind that. So a row's queries are shared by four lanes: lane
 * t has queries 2t, 2t + 1, 2t + 8, 2t + 9 of each 16, in their order.
 *
 * Rows are the operand that stays, as there are more of them than of queries that count: a window
 * of 64 recent queries over 8,192 rows is two stages for each of 64 blocks and head. Each query
 * costs a row 2 D operations and one exp2; K is read once for each head of its group, out of L2
 * after the first. */
#include "mass.cuh"
#include "mma.cuh"

static constexpr int WARPS = 4, QUERIES = 32;
static constexpr float LOG2_E = 1.44269504f, LN_2 = .69314718f;

/* 1,024 bytes static shared memory for both stages. */
/* Of the queries of a stage: what their products are multiplied with, times log2 e, unless scores
 * are bent first; lse times log2 e, +inf where there is no query or it saw nothing; their
 * positions, the least where there is none; and what they count as. */
struct stage_queries { float scale[QUERIES], lse[QUERIES]; int32_t position[QUERIES],
                       at[QUERIES]; };

/* A row: its position, and who counts for it; nobody where there is no row. */
struct judged { int32_t position, base, due; };

/* Positions have 32 bits; bounds that lie beyond them count for all, or for none, as before. */
static __device__ __forceinline__ int32_t clamp_i32(int64_t x) {
  return static_cast<int32_t>(x < INT32_MIN ? INT32_MIN : x > INT32_MAX ? INT32_MAX : x);
}

static __device__ __forceinline__ judged judged_at(const mass_args &a, const pyr_lane_view &lane,
                                                   const pyr_range &range, int64_t row) {
  if (row >= range.end) return judged{ INT32_MAX, INT32_MAX, INT32_MIN };
  counting c = counting_of(a.weighting, row - range.origin);
  return judged{ lane.positions[row], clamp_i32(c.base), clamp_i32(c.due) };
}

/* What a query counts as: its place in the prompt, or its position. */
static __device__ __forceinline__ int32_t counted_at(const mass_args &a, int64_t i) {
  return a.by_place ? a.place + static_cast<int32_t>(i) : a.q_pos[i];
}

/* Without overflow where the row counts for nobody. */
static __device__ __forceinline__ int32_t age_of(int32_t at, int32_t base) {
  return static_cast<int32_t>(static_cast<uint32_t>(at) - static_cast<uint32_t>(base));
}

/* The first query at or after i, a multiple of QUERIES, from which on some of QUERIES may count for
 * rows from `first` to `last`: positions ascend over queries, and positions and due dates over
 * rows. */
static __device__ __forceinline__ int64_t next_queries(const mass_args &a, const judged &first,
                                                       const judged &last, int64_t i) {
  for (; i < a.n; i += QUERIES) {
    int64_t end = (i + QUERIES < a.n ? i + QUERIES : a.n) - 1;
    /* The stage's last query is the one that may see the block's first row, and may count for it;
     * its first query the one that may still be within the window of the block's last row, and not
     * past its due date. If even these fail no pair of the stage and the block succeeds. */
    bool sees = a.q_pos[end] >= first.position;
    if (a.window > 0) sees = sees && static_cast<int64_t>(a.q_pos[i]) - last.position < a.window;
    if (sees && counted_at(a, end) >= first.base && counted_at(a, i) <= last.due) return i;
  }
  return i;
}

/* Two values of a row as they are, or rounded; zeros beyond the head's dimensions, and of no row.
 */
template <typename T, bool ROUND>
static __device__ __forceinline__ uint32_t pair_at(const uint8_t *row, const row_format &f,
                                                   int at) {
  if (row == nullptr || at >= f.d) return 0;
  if (!ROUND) return reinterpret_cast<const uint32_t *>(row)[at / 2];
  float low = cache_value_at(row, f.dtype, at), high = cache_value_at(row, f.dtype, at + 1);
  return take_pair<T>(low, high);
}

/* Grid: tiles of rows, heads. */
template <typename T, bool ROUND, int D, int TERMS, int MT, bool BENT>
static __global__ void __launch_bounds__(WARPS * WARP) mass_tiles_kernel(mass_args a) {
  constexpr int ROWS = WARPS * 16 * MT, PLANE = QUERIES * D;
  __shared__ stage_queries stages[2];
  PYR_SHARED(uint16_t, tiles);
  int head = static_cast<int>(blockIdx.y), lane = lane_of_warp(), warp = warp_of_block();
  const pyr_lane_view view = a.lanes[head / a.group];
  const pyr_range range = a.ranges[head / a.group];
  int64_t begin = range.begin + static_cast<int64_t>(blockIdx.x) * ROWS;
  if (begin >= range.end) return;
  float slope = BENT && a.slopes ? a.slopes[head] : 0.0f;
  judged first = judged_at(a, view, range, begin);
  judged last = judged_at(a, view, range, begin + ROWS < range.end ? begin + ROWS - 1
                          : range.end - 1);

  uint32_t k[MT][D / 16][4];
  judged rows[MT][2];
  float mass[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int64_t row = begin + (warp * MT + m) * 16 + half * 8 + lane / 4;
      const uint8_t *from = row < range.end ? row_at(view, a.f.bytes, row, 0) : nullptr;
      rows[m][half] = judged_at(a, view, range, row);
      mass[m][half] = a.max ? -INFINITY : 0.0f;
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        k[m][n][half] = pair_at<T, ROUND>(from, a.f, n * 16 + lane % 4 * 2);
        k[m][n][half + 2] = pair_at<T, ROUND>(from, a.f, n * 16 + lane % 4 * 2 + 8);
      }
    }

  auto fetch = [&](int64_t i, int stage) {
    uint16_t *tile = tiles + stage * TERMS * PLANE;
    stage_queries &s = stages[stage];
#pragma unroll 2
    for (int r = warp; r < QUERIES; r += WARPS) {
      bool real = i + r < a.n;
      const float *from = real ? a.q + ((i + r) * a.heads + head) * a.f.d : nullptr;
      float back = put_split<T, D, TERMS>(tile, r, PLANE, from, a.f.d),
          lse = real ? a.lse[(i + r) * a.heads + head] : -INFINITY;
      if (lane != 0) continue;
      s.scale[r] = a.scale * (BENT ? 1.0f : LOG2_E) * back;
      s.lse[r] = lse == -INFINITY ? INFINITY : lse * LOG2_E;
      s.position[r] = lse == -INFINITY ? INT32_MIN : a.q_pos[i + r];
      s.at[r] = real ? counted_at(a, i + r) : 0;
    }
  };

  /* Before each turn: mass is of the queries before i; those of [i, i + QUERIES) are in `stage`.
   * The next that count are found, read and split into the other stage while the tensor cores work.
   */
  int stage = 0;
  int64_t i = next_queries(a, first, last, 0);
  if (i < a.n) fetch(i, 0);
  for (int64_t next; i < a.n; i = next, stage ^= 1) {
    __syncthreads();  /* this stage is there, and nobody works on the other any more */
    next = next_queries(a, first, last, i + QUERIES);
    if (next < a.n) fetch(next, stage ^ 1);
    uint16_t *tile = tiles + stage * TERMS * PLANE;
    const stage_queries &s = stages[stage];
    /* All pairs of the stage and the block count: the oldest query sees the newest row and has
     * begun to count for it, and the newest query is not past the due date of the oldest row, nor
     * its window. Otherwise each pair is asked. A query that saw nothing has lse = +inf: p = 0
     * either way. */
    bool whole = i + QUERIES <= a.n && a.q_pos[i] >= last.position
        && counted_at(a, i) >= last.base &&
                 counted_at(a, i + QUERIES - 1) <= first.due &&
                 (a.window == 0 || static_cast<int64_t>(a.q_pos[i
                     + QUERIES - 1]) - first.position < a.window);
#pragma unroll
    for (int pair = 0; pair < QUERIES; pair += 16) {
      float c[MT][2][4] = {};
#pragma unroll
      for (int n = 0; n < D / 16; n++)
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
          uint32_t b[4];
          load_b<D>(b, tile + t * PLANE, pair, n * 16);
#pragma unroll
          for (int m = 0; m < MT; m++) {
            mma<T>(c[m][0], k[m][n], b[0], b[1]);
            mma<T>(c[m][1], k[m][n], b[2], b[3]);
          }
        }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int query = pair + j / 2 * 8 + lane % 4 * 2 + j % 2;
        float scale = s.scale[query], lse = s.lse[query];
        int32_t position = s.position[query], at = s.at[query];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const judged &row = rows[m][half];
            float x = c[m][j / 2][half * 2 + j % 2] * scale;
            if (BENT) x = bent_score(x, a.cap, slope, position, row.position) * LOG2_E;
            float p = given_by(a, power_of_two(x - lse), (x - lse) * LN_2);
            if (a.slope != 0) p *= 1.0f + a.slope * static_cast<float>(age_of(at, row.base));
            bool counts = whole || (position >= row.position
                                    && (a.window == 0 || position - row.position < a.window)
                                        && at >= row.base && at <= row.due);
            if (a.max) mass[m][half] = counts && p > mass[m][half] ? p : mass[m][half];
            else mass[m][half] += counts ? p : 0.0f;
          }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int64_t row = begin + (warp * MT + m) * 16 + half * 8 + lane / 4;
      float x = mass[m][half];
#pragma unroll
      for (int other = 1; other < 4; other *= 2) {
        float y = __shfl_xor_sync(ALL_LANES, x, other);
        x = !a.max ? x + y : fmaxf(x, y);
      }
      if (lane % 4 != 0 || row >= range.end) continue;
      float *out = a.out + head * a.stride + (row - range.begin);
      *out = !a.max ? *out + x : x > *out ? x : *out;
    }
}

/* Two stages of queries; a block for each 64 MT rows and head. */
template <typename T, bool ROUND, int D, int TERMS, int MT>
static void launch(pyr_backend *be, const mass_args &a, int64_t longest) {
  constexpr int BYTES = 2 * 2 * TERMS * QUERIES * D;
  dim3 grid(static_cast<unsigned>(ceil_div(longest, WARPS * 16 * MT)),
            static_cast<unsigned>(a.heads));
  if (bends(a))
    PYR_LAUNCH((mass_tiles_kernel<T, ROUND, D, TERMS, MT, true>), grid, WARPS * WARP, BYTES,
               cuda_of(be), a);
  else
    PYR_LAUNCH((mass_tiles_kernel<T, ROUND, D, TERMS, MT, false>), grid, WARPS * WARP, BYTES,
               cuda_of(be), a);
}

/* D is the next of 64, 128, 256: what lies beyond the head's dimensions are zeros. MT = 1 at 256,
 * as K of 16 rows is D / 4 of a lane's registers: 64 with D = 128 and MT = 2, and with D = 256 and
 * MT = 1. */
template <typename T, bool ROUND, int TERMS>
static void launch_any(pyr_backend *be, const mass_args &a, int64_t longest) {
  if (a.f.d <= 64) launch<T, ROUND, 64, TERMS, 2>(be, a, longest);
  else if (a.f.d <= 128) launch<T, ROUND, 128, TERMS, 2>(be, a, longest);
  else launch<T, ROUND, 256, TERMS, 1>(be, a, longest);
}

/*     rows          rounded                        exact
 *     f16           f16, 1 term                    f16, 2 terms
 *     bf16          bf16, 1 term                   bf16, 3 terms
 *     fp8_e4m3      rounded to bf16, 1 term        made f16, which is exact, 2 terms
 *     f32, q8_0     rounded to bf16, 1 term        no: mass.cu's
 *
 * Heads: d even, up to 256. Terms are the queries', as rows stay what they are. */
bool cuda_mass_tiles(pyr_backend *be, const mass_args &a, int64_t longest) {
  bool rounded = cuda_of(be)->rounded && a.n >= PYR_SMALL_N, half = a.f.dtype == PYR_F16,
      brain = a.f.dtype == PYR_BF16;
  bool bytes = a.f.dtype == PYR_FP8_E4M3;
  if (a.f.d % 2 != 0 || a.f.d > 256 || !(rounded || half || brain || bytes)) return false;
  if (rounded && half) launch_any<f16, false, 1>(be, a, longest);
  else if (rounded && brain) launch_any<bf16, false, 1>(be, a, longest);
  else if (rounded) launch_any<bf16, true, 1>(be, a, longest);
  else if (half) launch_any<f16, false, f16::exact>(be, a, longest);
  else if (brain) launch_any<bf16, false, bf16::exact>(be, a, longest);
  else launch_any<f16, true, f16::exact>(be, a, longest);  /* fp8_e4m3 as halves is not rounded */
  return true;
}
