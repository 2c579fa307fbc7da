/* experts.cu — mixtures of experts: which experts each token takes, and their products. The
 * semantics are those of core/cpu/experts.c.
 *
 * How many tokens take an expert only the device knows, and nothing waits to ask it: grids are made
 * for the most that can be taken, min(experts, n * used) groups, and blocks of a group that nobody
 * made end at once. So a decode step's kernels have the same grids every time, and go to the device
 * as a graph (step.cu). Six kernels:
 *
 *     sort          pairs of a token and a rank, by expert; the experts that are taken
 *     gate, up      of each pair: rows of the token's x times the expert's
 *     activate      (elementwise.cu)
 *     down          of each pair
 *     combine       a token's pairs, weighted, in the order of their ranks
 *
 * A warp has one row of an expert's matrix, reads it from memory once, and goes over the tokens of
 * that expert, TOKENS at a time; lanes take every 32nd value, and their sums are added by a
 * butterfly: a pair's result is the same whatever others there are. f32 sums, operands that are not
 * rounded, weights of any dtype and order. Few tokens are bound by bytes of weights, many by plain
 * cores: tensor cores are not used here. */
#include "linear.cuh"

#include <cstddef>
#include <cstring>

static constexpr int THREADS = 256, ROWS_OF_BLOCK = 8, TOKENS = 8;

/* ---- route ----------------------------------------------------------------------------------- */

/* What a token chooses by: values, and their keys, which are 0 where an expert is out. */
struct ranking { float *value; uint32_t *key; };

/* Keys of all numbers, NaN too, are above 0, what is out. */
static __device__ __forceinline__ uint32_t rank_of(float x) { return key_of(x) + 1; }

/* The highest key of [begin, end), ties to the lower place, as key and place in one number; asked
 * by a whole warp. The keys 7 9 9: (9, place 1). */
static __device__ __forceinline__ uint64_t candidate(uint32_t key, int place) {
  return static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}
static __device__ __forceinline__ int place_of(uint64_t best) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
}
static __device__ __forceinline__ uint64_t warp_best(uint64_t x) {
  for (int other = WARP / 2; other > 0; other /= 2) {
    uint64_t y = __shfl_xor_sync(ALL_LANES, x, other);
    x = y > x ? y : x;
  }
  return x;
}

/* Chosen, and out from now on. All lanes have read the keys before one is changed, and see the
 * change afterwards. */
static __device__ __forceinline__ int take_best(const ranking &k, int begin, int end) {
  uint64_t best = 0;
  for (int i = begin + lane_of_warp(); i < end; i += WARP) {
    uint64_t mine = candidate(k.key[i], i);
    best = mine > best ? mine : best;
  }
  int place = place_of(warp_best(best));
  if (lane_of_warp() == 0) k.key[place] = 0;
  __syncwarp();
  return place;
}

/* Lane g has what group g is worth; all experts of groups that are not used are out. */
static __device__ void leave_groups(const pyr_route &r, const ranking &k) {
  int each = r.experts / r.groups, lane = lane_of_warp();
  float worth = 0;
  for (int g = 0; g < r.groups; g++) {
    int first = take_best(k, g * each, (g + 1) * each),
        second = take_best(k, g * each, (g + 1) * each);
    if (lane == g) worth = k.value[first] + k.value[second];
  }
  uint32_t key = lane < r.groups ? rank_of(worth) : 0, used = 0;
  for (int i = 0; i < r.groups_used; i++) {
    int g = place_of(warp_best(candidate(key, lane)));
    used |= 1u << g;
    if (lane == g) key = 0;
  }
  __syncwarp();
  for (int i = lane; i < r.experts; i += WARP)
    k.key[i] = used >> (i / each) & 1 ? rank_of(k.value[i]) : 0;
  __syncwarp();
}

/* A block, one warp, for a token. 8 KiB of static shared memory. As exp and sums of a softmax run
 * over lanes, scores may differ from the host's in their last bits; logits are ranked as they are
 * where nothing is added to scores, so that choices do not. */
static __global__ void route_kernel(pyr_route r) {
  __shared__ float values[PYR_EXPERTS_MAX];
  __shared__ uint32_t keys[PYR_EXPERTS_MAX];
  ranking k = { values, keys };
  int lane = lane_of_warp();
  const float *logits = r.logits + static_cast<int64_t>(blockIdx.x) * r.experts;
  bool direct = r.correction == nullptr && r.groups == 0, sigmoid = r.kind == PYR_ROUTER_SIGMOID;
  float top = logits[0], total = 0;
  for (int i = lane; i < r.experts && !sigmoid; i += WARP) top = fmaxf(top, logits[i]);
  top = warp_max(top);
  for (int i = lane; i < r.experts && !sigmoid; i += WARP) total += expf(logits[i] - top);
  total = warp_sum(total);
  for (int i = lane; i < r.experts; i += WARP) {
    float score = sigmoid ? 1.0f / (1.0f + expf(-logits[i])) : expf(logits[i] - top) / total;
    values[i] = direct ? logits[i] : score + (r.correction != nullptr ? r.correction[i] : 0.0f);
    keys[i] = rank_of(values[i]);
  }
  __syncwarp();
  if (r.groups > 0) leave_groups(r, k);
  int mine = 0;                                     /* lane i < used has the i-th choice */
  for (int i = 0; i < r.used; i++) {
    int place = take_best(k, 0, r.experts);
    if (lane == i) mine = place;
  }
  float logit = logits[mine], weight = 0;
  if (lane < r.used) weight = sigmoid ? 1.0f / (1.0f + expf(-logit)) : expf(logit - top) / total;
  float sum = warp_sum(weight), scale = r.renormalise ? r.scale / (sum + PYR_ROUTE_LEAST) : r.scale;
  if (lane >= r.used) return;
  int64_t at = static_cast<int64_t>(blockIdx.x) * r.used + lane;
  r.ids[at] = mine;
  r.weights[at] = weight * scale;
}

static pyr_status cuda_route(pyr_backend *be, const pyr_route *route) {
  if (route->n <= 0) return PYR_OK;
  pyr_route r = {};
  memcpy(&r, route, offsetof(pyr_route, scale) + sizeof r.scale);  /* zeros where nobody set any:
                                                                      steps compare bytes */
  PYR_LAUNCH(route_kernel, static_cast<unsigned>(r.n), WARP, 0, cuda_of(be), r);
  return cuda_launched(be, "route");
}

/* ---- experts --------------------------------------------------------------------------------- */

/* What sort finds out, in scratch. */
struct sorted {
  int32_t *pairs;          /* [n * used] token * used + rank, by expert */
  int32_t *first;          /* [experts + 1] where an expert's begin */
  int32_t *taken;          /* [experts + 1] how many experts are taken, and then which */
};

/* One block, a thread for each expert, which counts its pairs, adds up the counts of those before
 * it, and writes its pairs behind theirs, in their order: no atomic, no order of arrival. ids pass
 * through shared memory, a tile of as many as there are threads; all threads read the same one at a
 * time. Ids 2 0 1 2: counts 1 1 2, first 0 1 2 4, pairs 1 | 2 | 0 3. 8 KiB of static shared
 * memory. */
static __global__ void sort_kernel(sorted s, const int32_t *ids, int64_t pairs, int64_t experts) {
  __shared__ int32_t tile[PYR_EXPERTS_MAX], counts[PYR_EXPERTS_MAX];
  int32_t mine = static_cast<int32_t>(threadIdx.x), count = 0, before = 0, taken = 0;
  for (int64_t at = 0; at < pairs; at += blockDim.x) {
    if (at + mine < pairs) tile[mine] = ids[at + mine];
    __syncthreads();
    for (int64_t i = 0; i < blockDim.x && at + i < pairs; i++) count += tile[i] == mine;
    __syncthreads();
  }
  counts[mine] = count;
  __syncthreads();
  for (int32_t i = 0; i < mine; i++) {
    before += counts[i];
    taken += counts[i] > 0;
  }
  if (mine < experts) {
    s.first[mine] = before;
    if (count > 0) s.taken[1 + taken] = mine;
  }
  if (mine == experts - 1) {
    s.first[experts] = before + count;
    s.taken[0] = taken + (count > 0);
  }
  for (int64_t at = 0; at < pairs; at += blockDim.x) {
    if (at + mine < pairs) tile[mine] = ids[at + mine];
    __syncthreads();
    for (int64_t i = 0; i < blockDim.x && at + i < pairs; i++)
      if (tile[i] == mine) s.pairs[before++] = static_cast<int32_t>(at + i);
    __syncthreads();
  }
}

/* The same matrix of all experts, times rows of x. */
struct pair_product {
  sorted s;
  float *out;                        /* [pairs, rows] */
  const float *x;                    /* [pairs / together, cols]: so many pairs share a row */
  const pyr_expert *table;
  int64_t matrix, bias;              /* where both lie in a pyr_expert, in bytes */
  int64_t stride, rows, cols, together;
};

/* Grid: blocks of ROWS_OF_BLOCK rows, experts that are taken. Both loops of a warp are over what it
 * alone reads: no barrier. Sums as few_kernel's (linear_few.cu). */
template <int DTYPE> static __global__ void pair_kernel(pair_product p) {
  if (static_cast<int32_t>(blockIdx.y) >= p.s.taken[0]) return;
  int32_t expert = p.s.taken[1 + blockIdx.y];
  int64_t row = static_cast<int64_t>(blockIdx.x) * ROWS_OF_BLOCK + warp_of_block();
  if (row >= p.rows) return;
  int lane = lane_of_warp();
  const uint8_t *own = reinterpret_cast<const uint8_t *>(p.table + expert);
  const uint8_t *w = static_cast<const uint8_t *>(
      reinterpret_cast<const pyr_tensor *>(own + p.matrix)->data);
  const float *bias = *reinterpret_cast<const float *const *>(own + p.bias);
  for (int32_t at = p.s.first[expert], end = p.s.first[expert + 1]; at < end; at += TOKENS) {
    int some = end - at < TOKENS ? end - at : TOKENS;
    const float *x[TOKENS];
    float sum[TOKENS] = {};
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
      x[t] = p.x + (t < some ? p.s.pairs[at + t] / p.together : 0) * p.cols;
    for (int64_t i = lane; i < p.cols; i += WARP) {
      float value = weight_at(w, static_cast<size_t>(p.stride), DTYPE, row, i);
#pragma unroll
      for (int t = 0; t < TOKENS; t++)
        if (t < some) sum[t] += value * x[t][i];
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      if (t >= some) break;
      float total = warp_sum(sum[t]);
      if (lane == 0)
        p.out[p.s.pairs[at + t] * p.rows + row] = total + (bias != nullptr ? bias[row] : 0.0f);
    }
  }
}

/* A thread for a value of out: its token's pairs in the order of their ranks. Bytes bound it. */
static __global__ void combine_kernel(float *out, const float *y, const float *weights, int64_t n,
                                      int64_t width, int64_t used, bool add) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n * width) return;
  int64_t token = i / width, column = i % width;
  float sum = 0;
  for (int64_t p = token * used; p < (token + 1) * used; p++)
    sum += weights[p] * y[p * width + column];
  out[i] = add ? out[i] + sum : sum;
}

struct mixture { sorted s; float *gate, *up, *y; };          /* [pairs, ff], [pairs, width] */

static mixture mixture_of(cuda_arena *arena, int64_t pairs, int64_t experts, int64_t width,
                          int64_t ff) {
  sorted s = { arena->take<int32_t>(pairs), arena->take<int32_t>(experts + 1),
               arena->take<int32_t>(experts + 1) };
  return mixture{ s, arena->take<float>(pairs * ff), arena->take<float>(pairs * ff),
                  arena->take<float>(pairs * width) };
}

/* 512 tokens of 8 experts of 128, 2,048 wide inside and out of 768: 4,096 pairs, 57 MiB. */
size_t cuda_experts_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  if (work->experts == 0) return 0;
  mixture_of(&arena, work->tokens * work->experts_used, work->experts, work->cols,
             work->expert_ff);
  return arena.used;
}

/* `matrix` and `bias`: members of pyr_expert; `w`: one of them, for its shape and order. */
static pyr_status multiply(pyr_backend *be, const pyr_experts *e, const sorted &s, float *out,
                           const float *x, int64_t together, const pyr_tensor *w, size_t matrix,
                           size_t bias) {
  pair_product p = { s, out, x, e->table, static_cast<int64_t>(matrix), static_cast<int64_t>(bias),
                     static_cast<int64_t>(w->stride), w->shape[0], w->shape[1], together };
  int64_t pairs = e->n * e->used, groups = pairs < e->experts ? pairs : e->experts;
  dim3 grid(static_cast<unsigned>(ceil_div(p.rows, ROWS_OF_BLOCK)), static_cast<unsigned>(groups));
#define MULTIPLY(dtype) \
  do { \
    PYR_LAUNCH(pair_kernel<dtype>, grid, ROWS_OF_BLOCK * WARP, 0, cuda_of(be), p); \
    return cuda_launched(be, "experts"); \
  } while (0)
  int dtype = weight_dtype(w);
  switch (dtype) {
    PYR_WEIGHT_CASES(MULTIPLY)
    PYR_PACK_CASES(MULTIPLY)
  }
#undef MULTIPLY
  return cuda_refuse(be, "experts", "weights of an unknown dtype");
}

static pyr_status cuda_experts(pyr_backend *be, const pyr_experts *e) {
  cuda_arena arena = cuda_scratch(be);
  const pyr_expert *w = e->each;
  int64_t pairs = e->n * e->used, ff = w->up.shape[0], width = w->up.shape[1];
  mixture m = mixture_of(&arena, pairs, e->experts, width, ff);
  bool gated = w->gate.rank != 0;
  float *gate = gated ? m.gate : m.up;
  pyr_status status = cuda_check(be, "experts", arena.used);
  if (status != PYR_OK || e->n <= 0) return status;
  int64_t threads = round_up(e->experts, WARP);
  PYR_LAUNCH(sort_kernel, 1, static_cast<unsigned>(threads > THREADS ? threads : THREADS), 0,
             cuda_of(be), m.s, e->ids, pairs, e->experts);
  status = multiply(be, e, m.s, m.up, e->x, e->used, &w->up, offsetof(pyr_expert, up),
                    offsetof(pyr_expert, up_bias));
  if (status == PYR_OK && gated)
    status = multiply(be, e, m.s, gate, e->x, e->used, &w->gate, offsetof(pyr_expert, gate),
                      offsetof(pyr_expert, gate_bias));
  if (status == PYR_OK)
    status = cuda_activate(be, gate, gated ? m.up : nullptr, pairs * ff, e->activation, e->limit);
  if (status == PYR_OK)
    status = multiply(be, e, m.s, m.y, gate, 1, &w->down, offsetof(pyr_expert, down),
                      offsetof(pyr_expert, down_bias));
  if (status != PYR_OK) return status;
  PYR_LAUNCH(combine_kernel, static_cast<unsigned>(ceil_div(e->n * width, THREADS)), THREADS, 0,
             cuda_of(be), e->out, m.y, e->weights, e->n, width, e->used,
             (e->flags & PYR_LINEAR_ADD) != 0);
  return cuda_launched(be, "experts");
}

void cuda_experts_fill(pyr_backend *be) {
  be->route = cuda_route;
  be->experts = cuda_experts;
}
