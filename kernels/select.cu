/* select.cu — the rows of highest scores, in linear time and without a sort: so many of one vector (select), or so many, or so
 * much of the sum, of several vectors together (choose). The algorithm is that of core/cpu/select.c: keys ordered as the scores
 * are, a radix descent over 11, 11 and 10 bits that fixes the last key that is chosen, and a pass that writes what lies above it
 * and the first of what equals it.
 *
 * One block of as many threads as there are does it all: at 4096 scores four of them a thread, so that a pass is short next to
 * a launch, and passes need no launches between them. Counting is by atomic additions of integers, so no order shows. Of the rows
 * that a segment chooses for itself, those that equal its last key are counted out of a histogram together, as they are all
 * alike; only the last pass asks which rows they are, by their rank. */
#include "number.cuh"

#include <cfloat>
#include <cmath>

static constexpr int THREADS = 1024, DIGITS = 2048;
static constexpr int64_t MOST = 1 << 27;
static constexpr uint64_t ALL = UINT64_MAX;

struct cut { uint32_t key; int32_t equal; };         /* every key above is chosen, and the first `equal` of those that equal it */

struct shared_state {
  int count[DIGITS];
  unsigned long long sum[DIGITS], parts[WARP];
  int ranks[WARP];
  int64_t counts[WARP];
  unsigned long long sums[WARP];
  float tops[WARP];
  int64_t wanted;
  uint64_t target, each;
  int digit;
};

static __device__ __forceinline__ uint32_t key_of(float x) {
  uint32_t bits = __float_as_uint(x + 0.0f);
  return x != x ? 0u : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

static __device__ __forceinline__ float score_of(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

/* What a score counts in a sum; `unit` is 2^(36 - e), or 0 where nothing is summed. */
static __device__ __forceinline__ uint64_t weight_of(float x, double unit) {
  return x > 0 ? static_cast<uint64_t>(static_cast<double>(x < FLT_MAX ? x : FLT_MAX) * unit) : 0;
}

static __device__ __forceinline__ cut no_cut() { return cut{ 0xffffffffu, 0 }; }

/* ---- the descent ----------------------------------------------------------------------------------------------------------- */

/* Sums over this lane and those before it. */
static __device__ __forceinline__ void scan_warp(int64_t *count, unsigned long long *sum) {
  for (int by = 1; by < WARP; by *= 2) {
    int64_t c = __shfl_up_sync(ALL_LANES, *count, by);
    unsigned long long t = __shfl_up_sync(ALL_LANES, *sum, by);
    if (lane_of_warp() >= by) *count += c, *sum += t;
  }
}

/* By the block: the highest digit at which `wanted` rows or `target` of the sum are reached; what is left of both, and what a row
 * of that digit counts. A warp has a run of digits, the highest first, and a lane one or two of them; the warp where the sums
 * over warps get there looks among its lanes. */
static __device__ void find_digit(shared_state *s, int digits) {
  int lane = lane_of_warp(), warp = warp_of_block(), each = digits / THREADS > 0 ? digits / THREADS : 1;
  int high = digits - 1 - static_cast<int>(threadIdx.x) * each;
  int64_t count = 0;
  unsigned long long sum = 0;
  for (int i = 0; i < each; i++) count += s->count[high - i], sum += s->sum[high - i];
  int64_t counts = count, before = 0;
  unsigned long long sums = sum, held = 0;
  scan_warp(&counts, &sums);
  if (lane == WARP - 1) s->counts[warp] = counts, s->sums[warp] = sums;
  __syncthreads();
  int64_t all = s->counts[lane];
  unsigned long long whole = s->sums[lane];
  scan_warp(&all, &whole);
  int64_t wanted = s->wanted;
  uint64_t target = s->target;
  int first = __ffs(static_cast<int>(__ballot_sync(ALL_LANES, all >= wanted || whole >= target))) - 1;
  if (first > 0) before = __shfl_sync(ALL_LANES, all, first - 1), held = __shfl_sync(ALL_LANES, whole, first - 1);
  counts += before;
  sums += held;
  unsigned reached = __ballot_sync(ALL_LANES, counts >= wanted || sums >= target);
  __syncthreads();                                     /* all have read what is sought */
  if (warp != first || lane != __ffs(static_cast<int>(reached)) - 1) return;
  wanted -= counts - count;
  if (target != ALL) target -= sums - sum;
  int digit = high;
  while (s->count[digit] < wanted && s->sum[digit] < target) {
    wanted -= s->count[digit];
    if (target != ALL) target -= s->sum[digit];
    digit--;
  }
  s->digit = digit;
  s->wanted = wanted;
  s->target = target;
  s->each = s->sum[digit] / static_cast<uint64_t>(s->count[digit]);   /* exact in the last step, where all keys are equal */
}

struct segments {
  const float *score;
  const pyr_segment *list;
  int32_t count;
  const int32_t *own;      /* [2 * count] cuts of the segments' own; NULL: there are none */
  double unit;             /* see weight_of */
};

static __device__ __forceinline__ cut own_cut(const segments &a, int32_t s) {
  return a.own ? cut{ static_cast<uint32_t>(a.own[2 * s]), a.own[2 * s + 1] } : no_cut();
}

/* Counts the keys that agree with what is fixed, by their next digit; rows that segments chose for themselves are left out. */
static __device__ void count_digits(shared_state *s, const segments &a, uint32_t fixed, uint32_t mask, int shift, int digits) {
  const float *score = a.score;
  for (int i = static_cast<int>(threadIdx.x); i < digits; i += THREADS) s->count[i] = 0, s->sum[i] = 0;
  __syncthreads();
  for (int32_t g = 0; g < a.count; score += a.list[g++].n) {
    cut own = own_cut(a, g);
    for (int64_t i = threadIdx.x; i < a.list[g].n; i += THREADS) {
      uint32_t key = key_of(score[i]);
      if (key > own.key || (key & mask) != fixed) continue;
      int digit = static_cast<int>(key >> shift & static_cast<uint32_t>(digits - 1));
      atomicAdd(&s->count[digit], 1);
      if (a.unit > 0) atomicAdd(&s->sum[digit], static_cast<unsigned long long>(weight_of(score[i], a.unit)));
    }
    if (threadIdx.x != 0 || own.equal == 0 || (own.key & mask) != fixed) continue;
    int digit = static_cast<int>(own.key >> shift & static_cast<uint32_t>(digits - 1));
    uint64_t weight = own.key && a.unit > 0 ? weight_of(score_of(own.key), a.unit) * static_cast<uint64_t>(own.equal) : 0;
    atomicAdd(&s->count[digit], -own.equal);
    atomicAdd(&s->sum[digit], static_cast<unsigned long long>(0) - static_cast<unsigned long long>(weight));
  }
  __syncthreads();
}

/* Where the chosen end: after `wanted` rows, or with the first that fills `target`. Both at least 1; so many rows there are. */
static __device__ cut find_cut(shared_state *s, const segments &a, int64_t wanted, uint64_t target) {
  uint32_t fixed = 0, mask = 0;
  if (threadIdx.x == 0) s->wanted = wanted, s->target = target;
  for (int step = 0; step < 3; step++) {
    int shift = step == 0 ? 21 : step == 1 ? 10 : 0, digits = step == 2 ? 1024 : 2048;
    count_digits(s, a, fixed, mask, shift, digits);
    find_digit(s, digits);
    __syncthreads();
    fixed |= static_cast<uint32_t>(s->digit) << shift;
    mask |= static_cast<uint32_t>(digits - 1) << shift;
  }
  uint64_t left = s->target, each = s->each, enough = left != ALL && each > 0 ? left / each + (left % each > 0) : ALL;
  int64_t most = s->wanted;
  __syncthreads();
  return cut{ fixed, static_cast<int32_t>(enough < static_cast<uint64_t>(most) ? static_cast<int64_t>(enough) : most) };
}

/* ---- writing ----------------------------------------------------------------------------------------------------------------- */

/* How many threads before this one have the flag; *all: how many of the block. */
static __device__ __forceinline__ int rank_of(shared_state *s, bool flag, int *all) {
  unsigned votes = __ballot_sync(ALL_LANES, flag);
  int rank = __popc(votes & ((1u << lane_of_warp()) - 1)), total = 0;
  if (lane_of_warp() == 0) s->ranks[warp_of_block()] = __popc(votes);
  __syncthreads();
  for (int w = 0; w < THREADS / WARP; w++) {
    if (w == warp_of_block()) rank += total;
    total += s->ranks[w];
  }
  __syncthreads();
  *all = total;
  return rank;
}

/* Writes the rows of one segment: its own, and of the others those above the shared cut, whose `equal` goes on to the next
 * segment. Returns how many. */
static __device__ int32_t write_rows(shared_state *s, const float *score, int64_t n, cut own, cut *common, int32_t *idx,
                                     int32_t offset) {
  int32_t written = 0;
  for (int64_t tile = 0; tile < n; tile += THREADS) {
    int64_t i = tile + threadIdx.x;
    bool inside = i < n;
    uint32_t key = inside ? key_of(score[i]) : 0;
    int equals = 0, seconds = 0, all, rank = 0;        /* nothing is ranked of which none is left to take */
    if (own.equal > 0) rank = rank_of(s, inside && key == own.key, &equals);
    bool mine = inside && (key > own.key || (key == own.key && rank < own.equal));
    bool second = inside && !mine && key == common->key;
    if (common->equal > 0) rank = rank_of(s, second, &seconds);
    mine = mine || (inside && key > common->key) || (second && rank < common->equal);
    rank = rank_of(s, mine, &all);
    if (mine) idx[written + rank] = static_cast<int32_t>(i) + offset;
    written += all;
    own.equal = own.equal > equals ? own.equal - equals : 0;
    common->equal = common->equal > seconds ? common->equal - seconds : 0;
  }
  return written;
}

/* ---- select ------------------------------------------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(THREADS) select_kernel(int32_t *idx, const float *score, int64_t n, int64_t k,
                                                                int32_t offset) {
  __shared__ shared_state state;
  pyr_segment whole = { n, 0, 0, 0 };
  segments a = { score, &whole, 1, nullptr, 0 };
  cut common = find_cut(&state, a, k, ALL);
  write_rows(&state, score, n, no_cut(), &common, idx, offset);
}

static pyr_status cuda_select(pyr_backend *be, int32_t *idx, const float *score, int64_t n, int64_t k, int32_t offset) {
  if (k < 0 || k > n)
    return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT, "select: %lld of %lld rows", static_cast<long long>(k),
                                        static_cast<long long>(n));
  if (k == 0) return PYR_OK;
  PYR_LAUNCH(select_kernel, 1, THREADS, 0, cuda_of(be)->stream, idx, score, n, k, offset);
  return cuda_launched(be, "select");
}

/* ---- choose ------------------------------------------------------------------------------------------------------------------ */

struct choice {
  const float *score;
  const pyr_segment *list;
  int32_t count;
  int64_t n, least, most;
  double mass;
  int32_t *idx, *chosen, *work;
};

/* 2^(36 - e), with 2^e the least power of two above the highest score; 0 if that is not above 0. */
static __device__ double unit_of(shared_state *s, const float *score, int64_t n) {
  float top = 0;
  int e;
  for (int64_t i = threadIdx.x; i < n; i += THREADS)
    if (score[i] > top) top = score[i] < FLT_MAX ? score[i] : FLT_MAX;
  top = block_max(top, s->tops);
  if (top == 0) return 0;
  (void)frexp(static_cast<double>(top), &e);
  return ldexp(1.0, 36 - e);
}

/* What is still to be held: the share of the sum of all scores, less what the segments' own hold. */
static __device__ uint64_t target_of(shared_state *s, const segments &a, double mass) {
  unsigned long long sum = 0, held = 0;
  const float *score = a.score;
  for (int32_t g = 0; g < a.count; score += a.list[g++].n) {
    cut own = own_cut(a, g);
    for (int64_t i = threadIdx.x; i < a.list[g].n; i += THREADS) {
      uint64_t weight = weight_of(score[i], a.unit);
      sum += weight;
      if (key_of(score[i]) > own.key) held += weight;
    }
    if (threadIdx.x == 0 && own.equal > 0 && own.key)
      held += weight_of(score_of(own.key), a.unit) * static_cast<uint64_t>(own.equal);
  }
  sum = block_sum(sum, s->parts);
  held = block_sum(held, s->parts);
  uint64_t target = mass < 1 ? static_cast<uint64_t>(ceil(mass * static_cast<double>(sum))) : sum;
  if (target > sum) target = sum;
  return target > held ? target - held : 0;
}

static __global__ void __launch_bounds__(THREADS) choose_kernel(choice c) {
  __shared__ shared_state state;
  segments a = { c.score, c.list, c.count, c.work, 0 };
  const float *score = c.score;
  for (int32_t g = 0; g < c.count; score += c.list[g++].n) {
    segments alone = { score, &c.list[g], 1, nullptr, 0 };
    cut own = c.list[g].least > 0 ? find_cut(&state, alone, c.list[g].least, ALL) : no_cut();
    if (threadIdx.x == 0) c.work[2 * g] = static_cast<int32_t>(own.key), c.work[2 * g + 1] = own.equal;
  }
  __syncthreads();
  uint64_t target = ALL;
  if (c.mass > 0) {
    a.unit = unit_of(&state, c.score, c.n);
    target = target_of(&state, a, c.mass);
  }
  cut common = c.most > c.least && target > 0 ? find_cut(&state, a, c.most - c.least, target) : no_cut();
  score = c.score;
  for (int32_t g = 0; g < c.count; score += c.list[g++].n) {
    int32_t written = write_rows(&state, score, c.list[g].n, own_cut(a, g), &common, c.idx + c.list[g].at, c.list[g].offset);
    if (threadIdx.x == 0) c.chosen[g] = written;
  }
}

static pyr_status cuda_choose(pyr_backend *be, const pyr_choice *c) {
  int64_t n = 0, least = 0;
  bool fits = c->mass >= 0 && c->mass <= 1;
  for (int32_t s = 0; s < c->count; s++) {
    fits = fits && c->segments[s].least >= 0 && c->segments[s].least <= c->segments[s].n;
    n += c->segments[s].n, least += c->segments[s].least;
  }
  if (!fits || c->most < least || c->most > n || n > MOST)
    return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT, "choose: %lld of %lld rows, at least %lld, mass %g",
                                        static_cast<long long>(c->most), static_cast<long long>(n), static_cast<long long>(least),
                                        c->mass);
  if (c->count <= 0) return PYR_OK;
  pyr_segment *device;
  cuda_table_begin(be);
  pyr_segment *list = cuda_room(be, c->count, &device);
  for (int32_t s = 0; list && s < c->count; s++) list[s] = c->segments[s];
  pyr_status status = cuda_table_send(be, "choose", list != nullptr);
  if (status != PYR_OK) return status;
  choice call = { c->score, device, c->count, n, least, c->most, c->mass, c->idx, c->chosen, c->work };
  PYR_LAUNCH(choose_kernel, 1, THREADS, 0, cuda_of(be)->stream, call);
  return cuda_launched(be, "choose");
}

void cuda_select_fill(pyr_backend *be) {
  be->select = cuda_select;
  be->choose = cuda_choose;
}
