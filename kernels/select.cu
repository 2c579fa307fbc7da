/* select.cu — the rows of highest scores, in linear time and without a sort: so many of one vector
 * (select), or so many, so much of the sum, or all above a bound, of several vectors together
 * (choose). The algorithm is that of core/cpu/select.c: the select of radix_select.cuh, and a pass
 * that writes what lies above the last key and the first of what equals it.
 *
 * One block of as many threads as there are does it all: at 4096 scores four of them a thread, so
 * that a pass is short next to a launch, and passes need no launches between them. Counting is by
 * atomic additions of integers, so no order shows. Of the rows that a segment chooses for itself,
 * those that equal its last key are counted out of a histogram together, as they are all alike;
 * only the last pass asks which rows they are, by their rank.
 *
 * select, k = 3 of the scores 5 1 4 4 2 4: the cut is { 4, 2 }; rows 0, 2 and 3, in their order. Of
 * equal scores the lower rows are taken.
 *
 * choose, at least 1 of each of two segments, 4 in all (A: 9 1 8, B: 7 6 2):
 *
 *     own cuts       A { 9, 1 }   B { 7, 1 }
 *     common cut     2 more of 1 8 | 6 2: { 6, 1 }
 *     rows           A 0 2        B 0 1            chosen: 2, 2
 *
 * With a mass the common cut is where the scores held reach that share of the sum of all, or `most`
 * rows are reached. Sums are of whole numbers, so that no order shows: at most 2^36 for a score,
 * and 2^27 of those fit 64 bits. */
#include "radix_select.cuh"

#include <cfloat>
#include <cmath>

static constexpr int64_t MOST = 1 << 27;

/* Static shared memory of both kernels: the radix select, and a number for each warp. */
struct shared_state {
  radix_select d;
  int ranks[WARP];
  float tops[WARP];
};

/* What a score counts in a sum; `unit` is 2^(36 - e), or 0 where nothing is summed. A highest score
 * of .375 has e = -1, so that unit is 2^37 and .375 weighs 3/4 of 2^36. Scores below 0, and NaN,
 * weigh nothing; an infinite one as much as the highest number. */
static __device__ __forceinline__ uint64_t weight_of(float x, double unit) {
  return x > 0 ? static_cast<uint64_t>(static_cast<double>(x < FLT_MAX ? x : FLT_MAX) * unit) : 0;
}

/* Scores of `count` segments, one behind the other in `score`; segment s has list[s].n of them. */
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

/* Where the common choice ends. What a segment chose for itself lies above its own cut: keys up to
 * it are counted, and of its equals `own.equal` are taken off again, by one thread, as they are all
 * alike: of 4 rows that equal the cut, 2 of them chosen, 4 are added and 2 subtracted. */
static __device__ cut find_cut(radix_select *s, const segments &a, int64_t wanted,
                               uint64_t target) {
  return find_cut(s, [&](const digits_of &add) {
    const float *score = a.score;
    for (int32_t g = 0; g < a.count; score += a.list[g++].n) {
      cut own = own_cut(a, g);  /* what a segment chose for itself is left out */
      for (int64_t i = threadIdx.x; i < a.list[g].n; i += THREADS) {
        uint32_t key = key_of(score[i]);
        if (key <= own.key) add(key, 1, a.unit > 0 ? weight_of(score[i], a.unit) : 0);
      }
      if (threadIdx.x != 0 || own.equal == 0) continue;
      uint64_t weight = own.key && a.unit > 0 ? weight_of(score_of(own.key),
                                                          a.unit) * static_cast<uint64_t>(
                                                              own.equal) : 0;
      add(own.key, -own.equal, 0 - weight);
    }
  }, wanted, target);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* How many threads before this one have the flag; *all: how many of the block. */
static __device__ __forceinline__ int rank_of(shared_state *s, bool flag, int *all) {
  /* Within the warp: how many lanes below have the flag. Lanes 0, 3 and 4 have it: votes 11001, and
   * lane 4 counts the bits below its own: 2. */
  unsigned votes = __ballot_sync(ALL_LANES, flag);
  int rank = __popc(votes & ((1u << lane_of_warp()) - 1)), total = 0;
  if (lane_of_warp() == 0) s->ranks[warp_of_block()] = __popc(votes);
  __syncthreads();
  /* Sums over warps before this one. The second barrier lets `ranks` be used again. */
  for (int w = 0; w < THREADS / WARP; w++) {
    if (w == warp_of_block()) rank += total;
    total += s->ranks[w];
  }
  __syncthreads();
  *all = total;
  return rank;
}

/* Writes the rows of one segment: its own, and of the others those above the shared cut, whose
 * `equal` goes on to the next segment. Returns how many. */
static __device__ int32_t write_rows(shared_state *s, const float *score, int64_t n, cut own,
                                     cut *common, int32_t *idx, int32_t offset) {
  int32_t written = 0;
  for (int64_t tile = 0; tile < n; tile += THREADS) {
    int64_t i = tile + threadIdx.x;
    bool inside = i < n;
    uint32_t key = inside ? key_of(score[i]) : 0;
    /* Before each tile: `written` rows below it were chosen; own.equal and common->equal are what
     * may still be taken of those that equal the cuts. Rows are ranked by their place in the tile,
     * so that the lower ones are taken, and written in their order. */
    int equals = 0, seconds = 0, all, rank = 0;        /* nothing is ranked of which none is left to
                                                          take */
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

/* ---- select ---------------------------------------------------------------------------------- */

/* One block. n scores are one segment, which chooses nothing for itself. */
static __global__ void __launch_bounds__(THREADS) select_kernel(int32_t *idx, const float *score,
    int64_t n, int64_t k, int32_t offset) {
  __shared__ shared_state state;
  pyr_segment whole = { n, 0, 0, 0 };
  segments a = { score, &whole, 1, nullptr, 0 };
  cut common = find_cut(&state.d, a, k, ALL);
  write_rows(&state, score, n, no_cut(), &common, idx, offset);
}

/* k = 0 launches nothing: the select seeks one row at least. */
static pyr_status cuda_select(pyr_backend *be, int32_t *idx, const float *score, int64_t n,
                              int64_t k, int32_t offset) {
  if (k < 0 || k > n)
    return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT, "select: %lld of %lld rows",
                                        static_cast<long long>(k), static_cast<long long>(n));
  if (k == 0) return PYR_OK;
  PYR_LAUNCH(select_kernel, 1, THREADS, 0, cuda_of(be), idx, score, n, k, offset);
  return cuda_launched(be, "select");
}

/* ---- choose ---------------------------------------------------------------------------------- */

/* A call of choose. work: [2 * count], the segments' own cuts; idx: where each segment's rows go,
 * at list[s].at; chosen: [count] how many. */
struct choice {
  const float *score;
  const pyr_segment *list;
  int32_t count;
  int64_t n, least, most;
  double mass;
  bool bounded;
  float above;
  int32_t *idx, *chosen, *work;
};

/* 2^(36 - e), with 2^e the least power of two above the highest score; 0 if that is not above 0. So
 * the highest weighs between 2^35 and 2^36, whatever the scores' scale. */
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

/* What is still to be held: the share of the sum of all scores, less what the segments' own hold.
 */
static __device__ uint64_t target_of(shared_state *s, const segments &a, double mass) {
  /* Scores 9 1 8 | 7 6 2 as weights, mass .8: 33 in all, 26.4 wanted, so 27; own cuts hold 9 + 7:
   * 11 are left, which 8 and 6 fill. */
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
  sum = block_sum(sum, s->d.parts);
  held = block_sum(held, s->d.parts);
  uint64_t target = mass < 1 ? static_cast<uint64_t>(ceil(mass * static_cast<double>(sum))) : sum;
  if (target > sum) target = sum;
  return target > held ? target - held : 0;
}

/* How many rows at or above a bound no segment has chosen for itself: all of them, less those above
 * a segment's own cut, and less its equals that it took, which are counted once. 9 and 8 of 9 1 8 |
 * 7 6 2 are at 8 or above, and 9 was chosen: one. */
static __device__ int64_t passing(shared_state *s, const segments &a, float above) {
  unsigned long long n = 0;
  uint32_t least = key_of(above);
  const float *score = a.score;
  for (int32_t g = 0; g < a.count; score += a.list[g++].n) {
    cut own = own_cut(a, g);
    for (int64_t i = threadIdx.x; i < a.list[g].n; i += THREADS) {
      uint32_t key = key_of(score[i]);
      if (key >= least && key <= own.key) n++;
    }
    if (threadIdx.x == 0 && own.key >= least)
      n -= static_cast<unsigned long long>(own.equal);
  }
  return static_cast<int64_t>(block_sum(n, s->d.parts));
}

/* One block. First each segment's own cut, into work [2 * count]; then the common one, over what is
 * left of all of them; then rows are written, segment after segment, from the common cut's equals
 * what earlier segments left. The barrier: thread 0 wrote the cuts, all read them. */
static __global__ void __launch_bounds__(THREADS) choose_kernel(choice c) {
  __shared__ shared_state state;
  segments a = { c.score, c.list, c.count, c.work, 0 };
  const float *score = c.score;
  for (int32_t g = 0; g < c.count; score += c.list[g++].n) {
    segments alone = { score, &c.list[g], 1, nullptr, 0 };
    cut own = c.list[g].least > 0 ? find_cut(&state.d, alone, c.list[g].least, ALL) : no_cut();
    if (threadIdx.x == 0)
      c.work[2 * g] = static_cast<int32_t>(own.key), c.work[2 * g + 1] = own.equal;
  }
  __syncthreads();
  uint64_t target = ALL;
  if (c.mass > 0) {
    a.unit = unit_of(&state, c.score, c.n);
    target = target_of(&state, a, c.mass);
  }
  int64_t wanted = c.most - c.least;
  if (c.bounded && wanted > 0) {
    int64_t some = passing(&state, a, c.above);
    wanted = some < wanted ? some : wanted;
  }
  cut common = wanted > 0 && target > 0 ? find_cut(&state.d, a, wanted, target) : no_cut();
  score = c.score;
  for (int32_t g = 0; g < c.count; score += c.list[g++].n) {
    int32_t written = write_rows(&state, score, c.list[g].n, own_cut(a, g), &common,
                                 c.idx + c.list[g].at, c.list[g].offset);
    if (threadIdx.x == 0) c.chosen[g] = written;
  }
}

/* What does not fit is told before the launch: kernels have no way to fail. Counts are left on the
 * device, and the host does not wait for them. */
static pyr_status cuda_choose(pyr_backend *be, const pyr_choice *c) {
  int64_t n = 0, least = 0;
  bool fits = c->mass >= 0 && c->mass <= 1 && (!c->bounded || c->above == c->above);
  for (int32_t s = 0; s < c->count; s++) {
    fits = fits && c->segments[s].least >= 0 && c->segments[s].least <= c->segments[s].n;
    n += c->segments[s].n, least += c->segments[s].least;
  }
  if (!fits || c->most < least || c->most > n || n > MOST)
    return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT,
                                        "choose: %lld of %lld rows, at least %lld, mass %g",
                                            static_cast<long long>(c->most),
                                                static_cast<long long>(n),
                                                    static_cast<long long>(least), c->mass);
  if (c->count <= 0) return PYR_OK;
  pyr_segment *device;
  cuda_table_begin(be);
  pyr_segment *list = cuda_room(be, c->count, &device);
  for (int32_t s = 0; list && s < c->count; s++) list[s] = c->segments[s];
  pyr_status status = cuda_table_send(be, "choose", list != nullptr);
  if (status != PYR_OK) return status;
  choice call = { c->score, device, c->count, n, least, c->most, c->mass, c->bounded, c->above,
                  c->idx, c->chosen, c->work };
  PYR_LAUNCH(choose_kernel, 1, THREADS, 0, cuda_of(be), call);
  return cuda_launched(be, "choose");
}

void cuda_select_fill(pyr_backend *be) {
  be->select = cuda_select;
  be->choose = cuda_choose;
}
