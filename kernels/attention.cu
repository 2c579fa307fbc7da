/* attention.cu — causal attention over cache rows: out = softmax(scale * q k^T, over the visible
 * rows) v, its lse, and the history that one query leaves.
 *
 * A column is a query and a head. A warp has one; the WARPS columns of a block share a lane, whose
 * rows they walk ROWS at a time from multiples of ROWS, each tile in shared memory as f32, CHUNK
 * dimensions at once. A lane of the warp has a row of the tile:
 *
 *     s = scale * q . k, capped and sloped                     each lane its row; q is shared
 *     m' = max(m, max s); p = exp(s - m'); alpha = exp(m - m') over the warp
 *     l' = alpha l + sum p
 *     out' = alpha out + sum p v                               each lane its dimensions, each 32nd
 *
 * Invisible rows weigh exactly 0 and tiles lie alike for all, so that a query's result does not
 * depend on its neighbours.
 *
 * One query a sequence (decode): lanes are walked in segments of SEGMENT rows, a block for each,
 * which leave (m, l, out) in scratch; a second kernel joins a head's segments in their order.
 * Where history is tracked the scores stay in scratch too, and a third kernel makes probabilities
 * of them: rows are not read again. A query that sees nothing gets 0, with lse = -inf.
 *
 * A head's sink is a row without a value, seen before all others: m = sink, l = 1, out = 0 to begin
 * with. Where a column is cut into parts, it joins when they are joined.
 *
 * How three rows with scores 1, 3 and 4 are summed up, the first two in one tile, v_j a row's
 * values:
 *
 *                     m     alpha    p              l        out
 *     tile (1, 3)     3     0        .135  1        1.135    .135 v0 + v1
 *     tile (4)        4     .368     1              1.418    .050 v0 + .368 v1 + v2
 *     at the end      out / l = .035 v0 + .259 v1 + .705 v2 = softmax(1, 3, 4) . v
 *
 * Segments are joined by the same rule: (m, l, out) of one is a tile to the other. lse = m + log l
 * = 4.349, of which mass.cu makes each row's probability again: exp(4 - 4.349) = .705.
 *
 * Shared memory of attend_kernel: static 64 bytes, dynamic 4 (32 * 129 + 4 d), for d = 128 18.1
 * KiB. Sums are f32, over dimensions in their order, over rows tile by tile. What bounds it is
 * shared memory: each product of q and k reads one value of the tile. It is the way of rows that
 * tensor cores do not take, and of f32, where exact is what was asked for. */
#include "attention.cuh"

static constexpr int WARPS = 4, ROWS = WARP, CHUNK = 128, MOST_DIMS = 512;

/* Columns of a block, for a group of 3 heads (9 heads, 3 lanes) and WARPS = 4:
 *
 *     column   0    1    2    3  |  4    5    6    7
 *     query    0    0    0    1  |  1    1    2    2
 *     head     0    1    2    0  |  1    2    0    1     of the lane's group
 *     warp     0    1    2    3  |  0    1    2    3
 *              block 0              block 1
 *
 * Their spans differ by a row or so, and the tiles that one of them reads are the others' too.
 * CHUNK + 1 floats from row to row: lanes read one column of all rows, and 129 is odd, so that they
 * do not meet in a bank. */
/* The rows that any column of the block sees; lows, highs: shared, [WARPS]. A warp without a
 * column, or whose column sees nothing, asks for nothing, yet walks with the others: all load the
 * tiles, and all reach the barriers. The second barrier lets lows and highs be used again. */
static __device__ __forceinline__ row_span block_span(row_span mine, int64_t *lows,
                                                      int64_t *highs) {
  if (lane_of_warp() == 0) {
    lows[warp_of_block()] = mine.low;
    highs[warp_of_block()] = mine.high;
  }
  __syncthreads();
  row_span all = { INT64_MAX, 0 };
  for (int w = 0; w < WARPS; w++) {
    if (lows[w] >= highs[w]) continue;
    all.low = lows[w] < all.low ? lows[w] : all.low;
    all.high = highs[w] > all.high ? highs[w] : all.high;
  }
  __syncthreads();
  return all;
}

/* What a column has seen: m the highest score, l the sum of exp(s - m). The same in all lanes. */
struct column { float m, l; };

/* A tile's scores for the warp's column: the lane's row, which lies at `row`. q is scaled already.
 * The first barrier: nobody reads what was in the tile before. The second: the chunk is whole. Sums
 * go on over chunks, so that a head of 256 dimensions is one sum as one of 128 is. */
static __device__ __forceinline__ float tile_score(const attend_args &a, const pyr_lane_view &lane,
                                                   const float *q, float *tile, int64_t row,
                                                   int64_t count) {
  float sum = 0;
  for (int from = 0; from < a.f.d; from += CHUNK) {
    int width = a.f.d - from < CHUNK ? a.f.d - from : CHUNK;
    __syncthreads();
    load_tile(tile, ROWS, CHUNK + 1, lane, a.f, from, width, row, count, 0);
    __syncthreads();
    const float *k = tile + lane_of_warp() * (CHUNK + 1);
    for (int i = 0; i < width; i++) sum += q[from + i] * k[i];
  }
  return sum;
}

/* out' = alpha out + sum p v over the tile; DIMS: the dimensions that a lane has: lane, lane + 32,
 * …. p is each lane's own row's, so it is handed round, row after row of the tile: 32 shuffles for
 * each chunk. Rows that nobody loaded are zeros in the tile, and weigh 0. */
template <int DIMS>
static __device__ __forceinline__ void tile_mix(const attend_args &a, const pyr_lane_view &lane,
                                                float (&out)[DIMS], float p, float alpha,
                                                float *tile, int64_t row, int64_t count) {
#pragma unroll
  for (int chunk = 0; chunk < DIMS; chunk += CHUNK / WARP) {
    int from = chunk * WARP, width = a.f.d - from < CHUNK ? a.f.d - from : CHUNK;
    if (width <= 0) break;
    __syncthreads();
    load_tile(tile, ROWS, CHUNK + 1, lane, a.f, from, width, row, count, 1);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < CHUNK / WARP; i++) out[chunk + i] *= alpha;
    for (int j = 0; j < ROWS; j++) {
      float p_j = __shfl_sync(ALL_LANES, p, j);
#pragma unroll
      for (int i = 0; i < CHUNK / WARP; i++)
        if (lane_of_warp() + i * WARP < width)
          out[chunk + i] += p_j * tile[j * (CHUNK + 1) + lane_of_warp() + i * WARP];
    }
  }
}

template <int DIMS>
static __device__ __forceinline__ void put_column(const attend_args &a, const attend_call &call,
                                                  int64_t query, int64_t head, int64_t segment,
                                                  const column &c, const float (&out)[DIMS]) {
  bool part = a.segments > 0;
  int64_t at = query * a.heads + head;
  /* l is 0 where nothing was seen: out is zeros then. A NaN in l must reach the output, and be
   * noticed. */
  float inverse = part ? 1.0f : c.l > 0 || c.l != c.l ? 1.0f / c.l : 0.0f;
  float *to = part ? a.parts + ((blockIdx.z * a.heads + head) * a.segments + segment) * (2 + a.f.d)
      : call.out + at * a.f.d;
  if (lane_of_warp() == 0) {
    if (part) to[0] = c.m, to[1] = c.l;
    else if (call.lse) call.lse[at] = c.l == 0 ? -INFINITY : c.m + logf(c.l);
  }
  if (part) to += 2;
#pragma unroll
  for (int i = 0; i < DIMS; i++)
    if (lane_of_warp() + i * WARP < a.f.d) to[lane_of_warp() + i * WARP] = out[i] * inverse;
}

/* Grid: blocks of columns, segment after segment; lanes; calls. With 3 column blocks and 5 segments
 * x counts 15: x % 3 is the block of columns, x / 3 the segment. Neighbours then read the same
 * rows, which the second of them finds in L2. */
template <int DIMS, bool BENT> static __global__ void attend_kernel(attend_args a) {
  __shared__ int64_t lows[WARPS], highs[WARPS];
  PYR_SHARED(float, shared);  /* [ROWS][CHUNK + 1] a tile; [WARPS][d] the columns' queries */
  const attend_call &call = a.calls[blockIdx.z];
  const pyr_lane_view lane = call.lanes[blockIdx.y];
  unsigned group = static_cast<unsigned>(a.group);
  unsigned column_of_lane = blockIdx.x % a.column_blocks * WARPS
      + static_cast<unsigned>(warp_of_block());
  int64_t segment = blockIdx.x / a.column_blocks, query = column_of_lane / group;
  int64_t head = static_cast<int64_t>(blockIdx.y) * a.group + column_of_lane % group;
  bool real = query < call.n;
  float *tile = shared, *q = shared + ROWS * (CHUNK + 1) + warp_of_block() * a.f.d, out[DIMS] = {};
  for (int i = lane_of_warp(); i < a.f.d; i += WARP)
    q[i] = real ? call.q[(query * a.heads + head) * a.f.d + i] * a.scale : 0.0f;
  row_span seen = { 0, 0 };
  if (real) seen = visible_rows(lane.positions, lane.rows, call.q_pos[query], call.window);
  if (a.segments > 0) {
    real = real && segment < segments_of(seen);
    seen = segment_of(seen, segment);
  }
  float *scores = a.scores && call.tracked && real
      ? a.scores + (blockIdx.z * a.heads + head) * a.rows : nullptr;
  row_span all = block_span(seen, lows, highs);
  float sink = real && a.segments == 0 ? sink_of(call, head) : -INFINITY;
  column c = { sink, sink == -INFINITY ? 0.0f : 1.0f };
  /* Before each turn c and out are of the column's visible rows below `row`. Tiles begin at
   * multiples of ROWS of the lane whatever is seen, so that a row meets the same others in its
   * tile, and sums are the same, whoever shares the block. */
  for (int64_t row = all.low / ROWS * ROWS; row < all.high; row += ROWS) {
    int64_t count = all.high - row < ROWS ? all.high - row : ROWS, mine = row + lane_of_warp();
    float s = tile_score(a, lane, q, tile, row, count);
    bool visible = mine >= seen.low && mine < seen.high;
    if (BENT && visible)
      s = bent_score(s, call.cap, slope_of(call, head), call.q_pos[query], lane.positions[mine]);
    if (!visible) s = -INFINITY;
    else if (scores) scores[mine] = s;
    /* As long as nothing was seen m is -inf, and -inf - -inf would be NaN: base 0 gives p = alpha =
     * 0. */
    float m = fmaxf(c.m, warp_max(s)), base = m == -INFINITY ? 0 : m,
        alpha = expf(c.m - base), p = expf(s - base);
    c.l = c.l * alpha + warp_sum(p);
    c.m = m;
    tile_mix<DIMS>(a, lane, out, p, alpha, tile, row, count);
  }
  if (real) put_column<DIMS>(a, call, query, head, segment, c, out);
}

/* ---- one query a sequence -------------------------------------------------------------------- */

/* Grid: heads, calls. Joins the segments of a head, in their order. A thread for each dimension; m
 * and l are found by all of them, which read the same few numbers: 8192 rows have 32 segments. With
 * segments (m, l) = (3, 1.135) and (4, 1): m = 4, l = 1.135 e^-1 + 1 = 1.418. A segment that holds
 * m weighs exactly 1, also if m is infinite. A sink is one more, the first. The launch has room for
 * more segments than the lane has; those beyond `count` were not written, and are not read. */
static __global__ void join_kernel(attend_args a) {
  const attend_call &call = a.calls[blockIdx.y];
  int64_t head = blockIdx.x, at = blockIdx.y * a.heads + head, size = 2 + a.f.d;
  const pyr_lane_view lane = call.lanes[head / a.group];
  int64_t count = segments_of(visible_rows(lane.positions, lane.rows, call.q_pos[0], call.window));
  const float *parts = a.parts + at * a.segments * size;
  float sink = sink_of(call, head), m = sink;
  for (int64_t i = 0; i < count; i++) m = fmaxf(m, parts[i * size]);
  float l = sink == -INFINITY ? 0.0f : expf(sink - m);
  for (int64_t i = 0; i < count; i++)
    l += parts[i * size + 1] * (parts[i * size] == m ? 1.0f : expf(parts[i * size] - m));
  float inverse = l > 0 || l != l ? 1.0f / l : 0.0f;
  for (int64_t d = threadIdx.x; d < a.f.d; d += blockDim.x) {
    float out = 0;
    for (int64_t i = 0; i < count; i++) {
      float alpha = parts[i * size] == m ? 1.0f : expf(parts[i * size] - m);
      out += parts[i * size + 2 + d] * alpha;
    }
    call.out[head * a.f.d + d] = out * inverse;
  }
  if (threadIdx.x != 0) return;
  if (call.lse) call.lse[head] = l == 0 ? -INFINITY : m + logf(l);
  a.finals[at * 2] = m;
  a.finals[at * 2 + 1] = l;
}

/* w(q, j) of pyr_weighting: 1 for the oldest of the `queries` that count for row j, `ramp` for the
 * last, which is due; 0 for others. With queries = 3, ramp = 1.2 and due = 10 the queries at 8, 9
 * and 10 weigh 1, 1.1 and 1.2. */
static __device__ __forceinline__ float weight_of(const pyr_weighting &w, int64_t position,
                                                  int64_t j) {
  if (w.queries == 0) return 1;
  int64_t due = due_of(w, j), age = position - (due - w.queries + 1);
  float slope = w.queries > 1 ? (w.ramp - 1.0f) / static_cast<float>(w.queries - 1) : 0.0f;
  return age < 0 || position > due ? 0.0f : 1.0f + slope * static_cast<float>(age);
}

/* Grid: rows, lanes, calls. history = decay * history + w * mean over the lane's heads of p, or the
 * highest of history and w * max over them, which in any order is the same. A
 * thread for a row, so that its sum runs over heads in their order, and no two add to one row. p
 * is made of the scores that were left, exp(s - m) / l, with m and l of the whole lane, which the
 * segments did not know. Rows are counted from the lane's end (j - rows), as due dates are. */
static __global__ void track_kernel(attend_args a) {
  const attend_call &call = a.calls[blockIdx.z];
  const pyr_lane_view lane = call.lanes[blockIdx.y];
  int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (!call.tracked || !lane.history || j >= lane.rows) return;
  row_span seen = visible_rows(lane.positions, lane.rows, call.q_pos[0], call.window);
  float mean = 0;
  for (int h = 0; h < a.group && j >= seen.low && j < seen.high; h++) {
    int64_t at = static_cast<int64_t>(blockIdx.z) * a.heads + blockIdx.y * a.group + h;
    float m = a.finals[at * 2], l = a.finals[at * 2 + 1];
    if (l <= 0) continue;
    float e = expf(a.scores[at * a.rows + j] - m);
    mean = call.track.max ? fmaxf(mean, e / l) : mean + e / (l * static_cast<float>(a.group));
  }
  float x = weight_of(call.track.weighting, call.q_pos[0], j - lane.rows) * mean;
  lane.history[j] = call.track.max ? fmaxf(lane.history[j], x)
      : call.track.decay * lane.history[j] + x;
}

/* ---- the operation --------------------------------------------------------------------------- */

/* Scratch of a decode step. segments_for(rows): the most that a span of so many rows can touch; a
 * span that begins in the middle of a segment touches one more than its length says. */
struct step_scratch { float *parts, *finals, *scores; };
static int64_t segments_for(int64_t rows) { return rows / SEGMENT + 2; }
static step_scratch step_scratch_of(cuda_arena *arena, int64_t count, int64_t heads, int64_t d,
                                    int64_t rows, bool tracked) {
  rows = round_up(rows, SEGMENT);
  return step_scratch{ arena->take<float>(count * heads * segments_for(rows) * (2 + d)),
                       arena->take<float>(count * heads * 2),
                           tracked ? arena->take<float>(count * heads * rows) : nullptr };
}

size_t cuda_attention_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  step_scratch_of(&arena, work->sequences, work->heads, work->head_dim, work->rows, true);
  return arena.used;
}

/* Bytes of descriptions: of each sequence a call, and of each of its lanes a view and, where the
 * page table is the host's, as many addresses as it has pages. */
size_t cuda_attention_table(const pyr_work *work) {
  if (work->resident)                        /* of `attention` and of `store`, calls alone */
    return static_cast<size_t>(work->sequences) * (sizeof(attend_call) + sizeof(pyr_append))
        + 4 * 16;
  /* `gather` describes what lanes are to be beside what they are */
  size_t lane = 2 * (sizeof(pyr_lane_view) + static_cast<size_t>(ceil_div(work->rows,
      PYR_PAGE_ROWS)) * sizeof(void *) + 32);
  return static_cast<size_t>(work->sequences) * (sizeof(attend_call) + 32
                                                 + static_cast<size_t>(work->kv_heads) * lane);
}

/* What the calls of one launch have together: how many they are, the longest lane, the most
 * queries; and how many calls' lanes are not resident. */
struct batch { int count, described; int64_t rows, queries; bool tracked, bent; };

/* The calls of a launch, by their number of queries, for each has its own way: one (steps), or
 * many. */
struct numbers { int64_t least, most; };
static bool takes(const pyr_attention &a, numbers n) { return a.n >= n.least && a.n <= n.most; }

static batch batch_of(const pyr_attention *a, int count, int32_t kv_heads, numbers n) {
  batch b = { 0, 0, 1, 0, false, false };
  for (int i = 0; i < count; i++) {
    if (!takes(a[i], n)) continue;
    b.count++;
    b.queries = a[i].n > b.queries ? a[i].n : b.queries;
    b.tracked = b.tracked || (n.most == 1 && a[i].track);
    b.bent = b.bent || a[i].cap > 0 || a[i].slopes;
    if (a[i].resident) b.rows = a[i].longest > b.rows ? a[i].longest : b.rows;
    b.described += a[i].resident == nullptr;
    for (int32_t g = 0; g < kv_heads && !a[i].resident; g++)
      b.rows = a[i].lanes[g].rows > b.rows ? a[i].lanes[g].rows : b.rows;
  }
  return b;
}

/* Their descriptions, in the table. NULL if there is no room. */
static const attend_call *put_batch(pyr_backend *be, const pyr_attention *a, int count,
                                    int32_t kv_heads, numbers n, const batch &b) {
  attend_call *device_calls;
  pyr_lane_view *device_lanes;
  cuda_table_begin(be);
  attend_call *calls = cuda_room(be, b.count, &device_calls);
  pyr_lane_view *lanes = cuda_room(be, static_cast<int64_t>(b.described) * kv_heads, &device_lanes);
  if (calls == nullptr || lanes == nullptr) return nullptr;
  for (int i = 0; i < count; i++) {
    if (!takes(a[i], n)) continue;
    /* The descriptions point at each other by the device's addresses, and are filled in by the
     * host's: both run along the same table, one call and its kv_heads lanes at a time. */
    const pyr_lane_view *there = a[i].resident;
    *calls = attend_call{ a[i].out, a[i].lse, a[i].q, a[i].q_pos, there ? there : device_lanes,
                          a[i].n, a[i].window, n.most == 1 && a[i].track,
                          {}, a[i].cap, a[i].slopes, a[i].sinks };
    if (calls->tracked) calls->track = *a[i].track;
    calls++;
    if (there) continue;
    for (int32_t g = 0; g < kv_heads; g++)
      if (!cuda_put_lane(be, lanes++, &a[i].lanes[g], 0, a[i].lanes[g].rows)) return nullptr;
    device_lanes += kv_heads;
  }
  return device_calls;
}

/* DIMS is 4, 8 or 16 of a lane: heads of up to 128, 256 and 512 dimensions. out[] is in registers
 * only if its length is known, so there are three kernels, and three for scores that are bent. */
template <bool BENT> static void launch(const attend_args &a, dim3 grid, pyr_cuda *cuda) {
  size_t shared = static_cast<size_t>(ROWS * (CHUNK + 1) + WARPS * a.f.d) * sizeof(float);
  if (a.f.d <= CHUNK) PYR_LAUNCH((attend_kernel<4, BENT>), grid, WARPS * WARP, shared, cuda, a);
  else if (a.f.d <= 2 * CHUNK)
    PYR_LAUNCH((attend_kernel<8, BENT>), grid, WARPS * WARP, shared, cuda, a);
  else PYR_LAUNCH((attend_kernel<16, BENT>), grid, WARPS * WARP, shared, cuda, a);
}

/* One launch for all calls with n in [least, most]. In a decode step:
 *
 *     segments kernel   (m, l, out) of each call, head and segment into parts; scores if tracked
 *     join_kernel       out and lse of each head; m and l into finals
 *     track_kernel      history, if any call is tracked
 *
 * They are launched whatever lanes hold, with grids that change only as the longest lane comes
 * to another segment: the graph of a step is kept meanwhile. */
static pyr_status attend(pyr_backend *be, const pyr_attention *calls, int count, pyr_layout layout,
                         int32_t heads, int32_t kv_heads, float scale, numbers n, bool rounded) {
  bool steps = n.most == 1;
  batch b = batch_of(calls, count, kv_heads, n);
  pyr_cuda *cuda = cuda_of(be);
  cuda_arena arena = cuda_scratch(be);
  attend_args a = {};
  if (b.count == 0) return PYR_OK;
  a.f = format_of(layout);
  a.heads = heads;
  a.group = heads / kv_heads;
  a.scale = scale;
  a.rounded = rounded;
  a.bent = b.bent;
  if (steps) b.rows = round_up(b.rows, SEGMENT);  /* the same launches for a while as lanes grow */
  a.rows = b.rows;
  a.column_blocks = static_cast<unsigned>(ceil_div(b.queries * a.group, WARPS));
  if (steps) {
    step_scratch s = step_scratch_of(&arena, b.count, heads, layout.head_dim, b.rows, b.tracked);
    pyr_status status = cuda_check(be, "attention", arena.used);
    if (status != PYR_OK) return status;
    a.segments = segments_for(b.rows);
    a.parts = s.parts;
    a.finals = s.finals;
    a.scores = s.scores;
  }
  a.calls = put_batch(be, calls, count, kv_heads, n, b);
  pyr_status status = cuda_table_send(be, "attention", a.calls != nullptr);
  if (status != PYR_OK) return status;
  unsigned x = static_cast<unsigned>(a.column_blocks * (steps ? a.segments : 1)),
      g = static_cast<unsigned>(kv_heads);
  unsigned calls_of_batch = static_cast<unsigned>(b.count);
  bool tiles = steps ? cuda_attention_decode(be, a, g, calls_of_batch)
                     : cuda_attention_prefill(be, a, b.queries * a.group, g, calls_of_batch);
  if (!tiles) (a.bent ? launch<true> : launch<false>)(a, dim3(x, g, calls_of_batch), cuda);
  cuda->ways.attention += tiles;
  cuda->ways.attention_plain += !tiles;
  if (steps)
    PYR_LAUNCH(join_kernel, dim3(static_cast<unsigned>(heads), static_cast<unsigned>(b.count)),
               128, 0, cuda, a);
  if (b.tracked) {
    dim3 grid(static_cast<unsigned>(ceil_div(b.rows, 256)), g, static_cast<unsigned>(b.count));
    PYR_LAUNCH(track_kernel, grid, 256, 0, cuda, a);
  }
  return cuda_launched(be, "attention");
}

/* By their number of queries n, where the runtime rounds:
 *
 *     n = 1                      a decode step, exact, in segments
 *     2 <= n < PYR_SMALL_N       exact, whole lanes
 *     n >= PYR_SMALL_N           rounded operands
 *
 * and where it does not, all n >= 2 are exact. A call is in one of the launches. */
static pyr_status cuda_attention(pyr_backend *be, const pyr_attention *a, int count,
                                 pyr_layout layout, int32_t heads, int32_t kv_heads, float scale) {
  if (layout.head_dim > MOST_DIMS)
    return cuda_refuse(be, "attention", "heads of more than 512 dimensions");
  bool rounded = cuda_of(be)->rounded;
  numbers some = { 2, rounded ? PYR_SMALL_N - 1 : INT64_MAX };
  pyr_status status = attend(be, a, count, layout, heads, kv_heads, scale, some, false);
  if (status == PYR_OK && rounded)                     /* only many tokens are, as in linear.cu */
    status = attend(be, a, count, layout, heads, kv_heads, scale,
                    numbers{ PYR_SMALL_N, INT64_MAX }, true);
  return status == PYR_OK ? attend(be, a, count, layout, heads, kv_heads, scale, numbers{ 1, 1 },
                                   false) : status;
}

void cuda_attention_fill(pyr_backend *be) { be->attention = cuda_attention; }
