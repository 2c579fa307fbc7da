/* attention_decode.cu — attention of one query a sequence on tensor cores: rows are read once for
 * all heads of their lane.
 *
 * A block has a segment of a lane and 16 columns: the heads of the lane's group (those beyond are
 * zeros; wider groups take several blocks). Its warps walk the segment in turn, 16 rows (K and V)
 * at a time, each through two stages of its own: no warp waits for another before the end, when
 * their sums are joined in shared memory and left in scratch, for the kernel that joins segments
 * (attention.cu). The products are exact (attention_tile.cuh), and would be too few to matter if
 * sixteen times as many: what counts is the bytes under way. A warp has 64 D bytes of rows in
 * flight while it works on as many; with D = 128 a block of four warps has 32 KiB, and the two
 * blocks that the registers of a multiprocessor hold have 64 KiB, three times what 3.4 TB/s and 0.8
 * us of latency ask of each of 132.
 *
 * Shared memory, bytes: queries 32 D TERMS, rows WARPS * 128 D: for D = 128 72 KiB (f16) or 76 KiB
 * (bf16). Rows of fp8_e4m3 are copied as bytes, and a warp makes halves of them before it works on
 * them. Rows of f32 and q8_0, and heads that no D fits, are attention.cu's.
 *
 * A segment of 256 rows, 16 at a time, by four warps (w0 … w3), four turns each:
 *
 *     rows   0    16   32   48   64   80   96   112  128 …
 *            w0   w1   w2   w3   w0   w1   w2   w3   w0 …
 *
 *     of w0:     copy 0 | copy 64  | copy 128 | copy 192 |
 *                       | work 0   | work 64  | work 128 | work 192
 *
 * At the end each warp has (m, l, out) of its own rows, for 16 columns; the block adds them up like
 * segments, with alpha_w = exp(m_w - m), over warps in their order. */
#include "attention_tile.cuh"

static constexpr int ROWS = 16, COLUMNS = 16;

/* The first row at or after `low` whose position is above `position`, by a whole warp: each step
 * asks 32 rows at once, so that 8192 rows take three steps where halving takes thirteen, and each
 * step is a wait for memory. Rows asked are `step` apart; positions ascend, so that the answer lies
 * between the last that is not above and the first that is. Of 100 rows: step 4, lanes ask 0, 4, …,
 * 96 (and beyond); 7 of them are not above: the answer is one of rows 25 to 28, and one more step
 * finds it. */
static __device__ __forceinline__ int64_t first_above(const int32_t *positions, int64_t low,
                                                      int64_t high, int64_t position) {
  while (low < high) {
    int64_t step = (high - low + WARP - 1) / WARP, at = low + step * lane_of_warp();
    /* Invariant: rows before low are not above; the row at high, if there is one, is. */
    int below = __popc(__ballot_sync(ALL_LANES, at < high && positions[at] <= position));
    if (below == 0) return low;
    int64_t end = low + below * step;                  /* row low + (below - 1) * step is not above,
                                                          row `end` is, or is beyond */
    low += (below - 1) * step + 1;
    high = end < high ? end : high;
  }
  return low;
}

/* Grid: blocks of columns, segment after segment; lanes; calls. */
template <typename T, rows_come COME, int D, int WARPS, bool BENT>
static __global__ void __launch_bounds__(WARPS * WARP,
                                         D <= 64 ? 3 : 2) decode_kernel(attend_args a) {
  constexpr int TERMS = T::exact, PLANE = COLUMNS * D, STAGE = 2 * ROWS * D, JOIN = D + 8;
  __shared__ float backs[COLUMNS], ms[WARPS][COLUMNS], ls[WARPS][COLUMNS];
  __shared__ tile_bend<BENT ? COLUMNS : 1> bend;
  PYR_SHARED(uint16_t, q);
  int warp = warp_of_block(), thread = lane_of_warp();
  /* Dynamic shared memory: q [TERMS][16][D], then of each warp two stages [2][16][D], all of 16
   * bits. */
  uint16_t *stages = q + TERMS * PLANE + warp * 2 * STAGE;
  const attend_call &call = a.calls[blockIdx.z];
  const pyr_lane_view lane = call.lanes[blockIdx.y];
  int64_t segment = blockIdx.x / a.column_blocks;
  int head = static_cast<int>(blockIdx.x % a.column_blocks) * COLUMNS;
  int real = a.group - head < COLUMNS ? a.group - head : COLUMNS;
  head += static_cast<int>(blockIdx.y) * a.group;
  int32_t position = call.q_pos[0];

  /* A group is closed also where nothing was asked for, so that copy_wait<1> below always means:
   * all but the group asked for last have come. */
  auto fetch = [&](int64_t row, int stage) {
    if (row < lane.rows)
      fetch_stage<T, COME, D, ROWS>(stages, stage, lane, a.f, row, lane.rows, thread, WARP);
    copy_commit();
  };

  /* Where the query's rows end takes loads that wait for each other, so the first rows are asked
   * for before that is known. */
  row_span seen = { 0, lane.rows };
  if (call.window > 0)
    seen.low = first_above(lane.positions, 0, lane.rows,
                           static_cast<int64_t>(position) - call.window);
  int64_t row = (seen.low / SEGMENT + segment) * SEGMENT + warp * ROWS;
  fetch(row, 0);
  for (int r = warp; r < COLUMNS; r += WARPS) {
    float back = put_split<T, D, TERMS>(q, r, PLANE,
                                        r < real ? call.q + static_cast<int64_t>(head + r) * a.f.d
                                            : nullptr, a.f.d);
    if (thread != 0) continue;
    backs[r] = back;
    if (BENT) bend.query[r] = position, bend.slope[r] = r < real ? slope_of(call, head + r) : 0.0f;
  }
  if (lane.rows > 0 && lane.positions[lane.rows - 1] > position)
    seen.high = first_above(lane.positions, 0, lane.rows, position);
  __syncthreads();
  if (segment >= segments_of(seen)) {
    copy_wait<0>();
    return;
  }
  seen = segment_of(seen, segment);

  /* Scores are kept of real columns only: a group of 3 heads has 13 columns that are zeros. */
  float scale[1][2], *scores = a.scores && call.tracked
      ? a.scores + (blockIdx.z * a.heads + head) * a.rows : nullptr;
#pragma unroll
  for (int half = 0; half < 2; half++)
    scale[0][half] = BENT ? LOG2_E : a.scale * LOG2_E * backs[row_of_tile(0, half)];
  columns<D, 1> c;
  clear(c);
  /* Before each turn: c is of the warp's tiles before `row`, which is in `stage` or on its way; the
   * other stage is free. No barrier of the block: all of it is the warp's own. */
  for (int stage = 0; row < seen.high; row += WARPS * ROWS, stage ^= 1) {
    fetch(row + WARPS * ROWS < seen.high ? row + WARPS * ROWS : lane.rows, stage ^ 1);
    copy_wait<1>();
    __syncwarp();
    uint16_t *k = tile_of_stage<COME, D, ROWS>(stages, stage, thread, WARP);
    if (COME == WIDENED) __syncwarp();
    float s[1][ROWS / 8][4], alpha[1][2];
    tile_scores<T, D, TERMS, 1, ROWS>(s, q, 0, PLANE, k);
    if (BENT) bend_tile<1, ROWS>(s, bend, backs, 0, row, lane, a.scale, call.cap);
    int64_t at = row + thread % 4 * 2;
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int64_t j = at + n * 8 + i % 2;
        int r = row_of_tile(0, i / 2);
        if (j < seen.low || j >= seen.high) s[0][n][i] = -INFINITY;
        else if (scores && r < real)
          scores[r * a.rows + j] = BENT ? s[0][n][i] : s[0][n][i] * (a.scale * backs[r]);
      }
    tile_softmax<T, D, 1, ROWS>(c, s, scale, alpha);
    tile_mix<T, D, TERMS, 1, ROWS>(c, s, alpha, k + ROWS * D);
    __syncwarp();                                      /* the stage is free */
  }
  copy_wait<0>();
  __syncwarp();

  /* The warps' columns, each in its own stages; then a thread for each dimension adds them up. */
  float *mine = reinterpret_cast<float *>(stages),
      *all = reinterpret_cast<float *>(q + TERMS * PLANE);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int r = row_of_tile(0, half);
    float l = quad_sum(c.l[0][half]);
    if (thread % 4 == 0) ms[warp][r] = c.m[0][half], ls[warp][r] = l;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      float2 two = make_float2(c.out[0][n][2 * half], c.out[0][n][2 * half + 1]);
      *reinterpret_cast<float2 *>(mine + r * JOIN + n * 8 + thread % 4 * 2) = two;
    }
  }
  __syncthreads();
  /* p was lifted by 2^shift, in l and in out alike; `unit` takes that back. */
  const float unit = 1.0f / static_cast<float>(1 << T::shift);
  for (int r = warp; r < real; r += WARPS) {
    float m = -INFINITY, l = 0, alpha[WARPS], factor = BENT ? 1.0f : a.scale * backs[r];
    float *part = a.parts + ((blockIdx.z * a.heads + head + r) * a.segments + segment) * (2
        + a.f.d);
#pragma unroll
    for (int w = 0; w < WARPS; w++) m = fmaxf(m, ms[w][r]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      alpha[w] = m == -INFINITY ? unit
          : power_of_two((ms[w][r] - m) * factor * LOG2_E) * unit;
      l += ls[w][r] * alpha[w];
    }
    if (thread == 0) part[0] = m * factor, part[1] = l;
    for (int d = thread; d < a.f.d; d += WARP) {
      float out = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) out += all[w * STAGE + r * JOIN + d] * alpha[w];
      part[2 + d] = out;
    }
  }
}

/* Grid as attend_kernel's, with 16 heads to a block of columns: a group of 3 is one block. */
template <typename T, rows_come COME, int D, int WARPS>
static void launch(pyr_backend *be, const attend_args &a, unsigned lanes, unsigned calls) {
  constexpr int BYTES = 2 * (T::exact * COLUMNS * D + WARPS * 4 * ROWS * D);
  /* The stages are free by then: the warps' sums [16][D + 8] f32 lie in them. 8 floats more than D
   * from row to row, so that the eight columns that a warp writes at once do not meet in the banks.
   */
  static_assert(COLUMNS * (D + 8) * 4 <= 2 * 4 * ROWS * D, "a warp's sums fit its stages");
  attend_args wide = a;
  wide.column_blocks = static_cast<unsigned>(ceil_div(a.group, COLUMNS));
  dim3 grid(static_cast<unsigned>(wide.column_blocks * a.segments), lanes, calls);
  if (a.bent)
    PYR_LAUNCH((decode_kernel<T, COME, D, WARPS, true>), grid, WARPS * WARP, BYTES, cuda_of(be),
               wide);
  else
    PYR_LAUNCH((decode_kernel<T, COME, D, WARPS, false>), grid, WARPS * WARP, BYTES, cuda_of(be),
               wide);
}

/* Two warps where heads are wide, as each has stages of its own: 2 * 128 * 256 bytes are 64 KiB. */
template <typename T, rows_come COME>
static void launch_any(pyr_backend *be, const attend_args &a, unsigned lanes, unsigned calls) {
  if (a.f.d <= 64) launch<T, COME, 64, 4>(be, a, lanes, calls);
  else if (a.f.d <= 128) launch<T, COME, 128, 4>(be, a, lanes, calls);
  else launch<T, COME, 256, 2>(be, a, lanes, calls);
}

/* Steps are exact: f16 with 2 terms, bf16 with 3, fp8_e4m3 widened to f16 with 2 (d a multiple of
 * 16 there). Heads: d a multiple of 8, up to 256. */
bool cuda_attention_decode(pyr_backend *be, const attend_args &a, unsigned lanes, unsigned calls) {
  if (!(a.scale > 0) || a.f.d % 8 != 0 || a.f.d > 256) return false;
  if (a.f.dtype == PYR_F16) launch_any<f16, AS_THEY_LIE>(be, a, lanes, calls);
  else if (a.f.dtype == PYR_BF16) launch_any<bf16, AS_THEY_LIE>(be, a, lanes, calls);
  else if (a.f.dtype == PYR_FP8_E4M3 && a.f.d % 16 == 0) launch_any<f16,
      WIDENED>(be, a, lanes, calls);
  else return false;
  return true;
}
