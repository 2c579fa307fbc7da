/* sample.cu — token ids out of logits, one block a sequence: sampler.c's steps, with its arithmetic
 * (sample_math.h), so that the same id is picked here and there. To the host goes one integer a
 * sequence.
 *
 * Logits are read where they are; what penalties and biases make of them is a copy. The highest is
 * found in one pass. Where a token is drawn, top_k, top_p and the draw itself are radix selects
 * (radix_select.cuh): by logits after so many, by logits with a share of the weights, and by ids
 * with the place that the random number says. A thread has every THREADS-th id in all of them, so
 * that what it writes only it reads.
 *
 * From logits to an id, each step a pass over the vocabulary by 1,024 threads, or a radix select
 * (three passes):
 *
 *     changes      penalties and biases, in a copy
 *     highest      of finite logits; ties to the lower id. Temperature 0 ends here
 *     top_k        keep: logits, by count
 *     weights      whole numbers, of logits less the highest over the temperature
 *     top_p        keep: logits, by the sum of weights
 *     min_p        weights below a share of the highest's
 *     draw         ids, by the sum of weights
 *
 * Weights 6 3 1 of ids 0 to 2: the random number makes a place from 0 to 9 of it; at place 7 the
 * sums 6, 9, 10 reach 7 + 1 with id 1. Static shared memory: the radix select's 25 KiB. Launches
 * and passes over L2 bound it: a vocabulary of 49,152 is 48 ids a thread. */
#include "radix_select.cuh"

#define PYR_PICK_INLINE static __device__ __forceinline__
#define PYR_ADD(a, b) __fadd_rn(a, b)
#define PYR_SUB(a, b) __fsub_rn(a, b)
#define PYR_MUL(a, b) __fmul_rn(a, b)
#define PYR_DIV(a, b) __fdiv_rn(a, b)
#define PYR_HIGH(a, b) __umul64hi(a, b)
#include "sample/sample_math.h"

struct pick_call {
  pyr_pick p;                  /* its changes are the device's */
  float *adjusted;             /* [vocab], if there are changes */
  unsigned long long *weight;  /* [vocab], if it draws */
};

/* Neither infinite nor NaN: the exponent is not all ones. */
static __device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

/* Ids as keys, the first one highest, spread over all digits. A vocabulary of 5 has last = 7 and
 * shift = 29: ids 0, 1, 2 are 7, 6, 5 in the three highest bits. Radix selects then find the end of
 * so many ids, or of so much weight, counted from id 0. */
struct id_keys {
  uint32_t last;
  int shift;
  __device__ __forceinline__ explicit id_keys(int64_t vocab) : last(1), shift(31) {
    while (last < vocab) last = 2 * last + 1, shift--;
  }
  __device__ __forceinline__ uint32_t key(int64_t id) const { return (last - static_cast<uint32_t>(
      id)) << shift; }
  __device__ __forceinline__ int32_t id(uint32_t key) const { return static_cast<int32_t>(last - (
      key >> shift)); }
};

/* The highest finite logit's key and, in the low half, how far its id is below 2^32; 0: there is
 * none. Given to all. Of logits 2 7 7 the ids 1 and 2 have one key; 2^32 - 1 - 1 is the larger
 * half, so that id 1 is found. Warps join by a butterfly, then every thread reads the warps'
 * results; the second barrier lets `parts` be used again. */
static __device__ unsigned long long highest_of(radix_select *s, const float *logits,
                                                int64_t vocab) {
  /* Key and id in one number, of which the larger wins: the higher logit, or of equals the lower
   * id, whose complement is higher. Maxima have no order: warps and threads join as they like. */
  unsigned long long best = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
    unsigned long long mine =
        static_cast<unsigned long long>(key_of(logits[i])) << 32 | (
            0xffffffffu - static_cast<uint32_t>(i));
    if (is_finite(logits[i]) && mine > best) best = mine;
  }
  for (int other = WARP / 2; other > 0; other /= 2) {
    unsigned long long theirs = __shfl_xor_sync(ALL_LANES, best, other);
    best = theirs > best ? theirs : best;
  }
  if (lane_of_warp() == 0) s->parts[warp_of_block()] = best;
  __syncthreads();
  for (int w = 0; w < THREADS / WARP; w++) best = s->parts[w] > best ? s->parts[w] : best;
  __syncthreads();
  return best;
}

/* What a radix select by logits keeps: those above its last key, and of those that equal it the ids
 * up to `last`. With 5 4 4 4 1 and three wanted: above 4, and 4 up to id 2. */
struct kept {
  uint32_t key;
  int32_t last;
  __device__ __forceinline__ bool holds(float logit, int64_t id) const {
    uint32_t mine = key_of(logit);
    return mine > key || (mine == key && id <= last);
  }
};

/* weigh(i): what id i weighs, 0 if it is not among them. Two selects: the last logit, then, of the
 * ids that have it, the last: the first c.equal of them. */
template <typename Weigh>
static __device__ kept keep(radix_select *s, const float *logits, int64_t vocab, int64_t wanted,
                            uint64_t target, const Weigh &weigh) {
  cut c = find_cut(s, [&](const digits_of &add) {
    for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
      unsigned long long weight = weigh(i);
      if (weight) add(key_of(logits[i]), 1, weight);
    }
  }, wanted, target);
  id_keys keys(vocab);
  cut last = find_cut(s, [&](const digits_of &add) {
    for (int64_t i = threadIdx.x; i < vocab; i += THREADS)
      if (key_of(logits[i]) == c.key && weigh(i)) add(keys.key(i), 1, 0);
  }, c.equal, ALL);
  return kept{ c.key, keys.id(last.key) };
}

/* A token above temperature 0; `top` is the highest logit. Whole numbers add up to the same in any
 * order, so that atomics and threads choose what the host chooses. */
static __device__ int32_t draw(radix_select *s, const pick_call &c, const float *logits,
                               int64_t vocab, float top) {
  /* top_k counts finite logits only: if there are no more than it asks for, it keeps all. */
  /* Barriers are those of block_sum and find_cut: a thread has the same ids in each pass, and reads
   * no weight that another wrote. */
  unsigned long long finite = 0, sum = 0, *weight = c.weight;
  kept few = { 0, INT32_MAX };
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) finite += is_finite(logits[i]);
  finite = block_sum(finite, s->parts);
  if (c.p.top_k > 0 && static_cast<unsigned long long>(c.p.top_k) < finite)
    few = keep(s, logits, vocab, c.p.top_k, ALL,
               [&](int64_t i) { return is_finite(logits[i]) ? 1ull : 0ull; });
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
    bool mine = is_finite(logits[i]) && few.holds(logits[i], i);
    weight[i] = mine ? pyr_pick_weight(logits[i], top, c.p.temperature) : 0;
    sum += weight[i];
  }
  sum = block_sum(sum, s->parts);
  auto weigh = [&](int64_t i) { return weight[i]; };
  few = kept{ 0, INT32_MAX };
  if (c.p.top_p > 0 && c.p.top_p < 1)
    few = keep(s, logits, vocab, INT64_MAX, pyr_pick_share(c.p.top_p, sum), weigh);
  /* What the highest weighs is PYR_WEIGHT_ONE; 0 where top_p or min_p drop a token. */
  uint64_t least = c.p.min_p > 0 ? pyr_pick_share(c.p.min_p, PYR_WEIGHT_ONE) : 1;
  sum = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
    if (weight[i] < least || !few.holds(logits[i], i)) weight[i] = 0;
    sum += weight[i];
  }
  sum = block_sum(sum, s->parts);
  id_keys keys(vocab);
  cut last = find_cut(s, [&](const digits_of &add) {
    for (int64_t i = threadIdx.x; i < vocab; i += THREADS)
      if (weight[i]) add(keys.key(i), 1, weight[i]);
  }, INT64_MAX, pyr_pick_place(c.p.random, sum) + 1);
  return keys.id(last.key);
}

/* A block for a sequence. The barriers: the copy is whole before it is changed, and changed before
 * it is read. Each id is changed once at most. -1: no logit is finite. */
static __global__ void __launch_bounds__(THREADS) pick_kernel(const pick_call *calls, int32_t *ids,
                                                              int64_t vocab) {
  __shared__ radix_select state;
  const pick_call &c = calls[blockIdx.x];
  const float *logits = c.p.logits;
  if (c.p.changed > 0) {
    for (int64_t i = threadIdx.x; i < vocab; i += THREADS) c.adjusted[i] = logits[i];
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < c.p.changed; i += THREADS) {
      pyr_change change = c.p.changes[i];
      float *at = c.adjusted + change.id;
      *at = pyr_pick_adjust(*at, change.bias, change.count, c.p.repeat, c.p.frequency,
                            c.p.presence);
    }
    __syncthreads();
    logits = c.adjusted;
  }
  unsigned long long best = highest_of(&state, logits, vocab);
  int32_t id = best ? static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best)) : -1;
  if (best && c.p.temperature > 0) id = draw(&state, c, logits, vocab, logits[id]);
  if (threadIdx.x == 0) ids[blockIdx.x] = id;
}

/* ---- the operation --------------------------------------------------------------------------- */

/* A copy of the logits only where something changes them, weights only where a token is drawn. */
static void put_room(cuda_arena *arena, pick_call *call, int64_t vocab) {
  if (call->p.changed > 0) call->adjusted = arena->take<float>(vocab);
  if (call->p.temperature > 0) call->weight = arena->take<unsigned long long>(vocab);
}

/* As if every sequence that picks here changed logits and drew. */
size_t cuda_pick_scratch(const pyr_work *work) {
  cuda_arena arena = { nullptr, 0 };
  pick_call any = {};
  any.p.changed = 1;
  any.p.temperature = 1;
  arena.take<int32_t>(work->sequences);
  for (int64_t i = 0; i < work->picks; i++) put_room(&arena, &any, work->outputs);
  return arena.used;
}

size_t cuda_pick_table(const pyr_work *work) {
  return static_cast<size_t>(work->sequences) * (sizeof(pick_call) + 32)
      + static_cast<size_t>(work->changes) * sizeof(pyr_change);
}

/* Describes one sequence: its changes go into the table, what it needs of scratch behind the last
 * one's. */
static bool put_pick(pyr_backend *be, pick_call *to, const pyr_pick &pick, cuda_arena *arena,
                     int64_t vocab) {
  pyr_change *device = nullptr, *changes = pick.changed > 0 ? cuda_room(be, pick.changed, &device)
      : nullptr;
  if (pick.changed > 0 && changes == nullptr) return false;
  if (pick.changed > 0)
    memcpy(changes, pick.changes, static_cast<size_t>(pick.changed) * sizeof *changes);
  *to = pick_call{ pick, nullptr, nullptr };
  to->p.changes = device;
  put_room(arena, to, vocab);
  return true;
}

/* One launch for all sequences, then one copy of their ids to the host, who waits for it. */
static pyr_status cuda_pick(pyr_backend *be, const pyr_pick *picks, int count, int64_t vocab,
                            int32_t *ids) {
  cuda_arena arena = cuda_scratch(be);
  if (count <= 0) return PYR_OK;
  if (vocab < 1 || vocab > INT32_MAX) return cuda_refuse(be, "pick", "no such vocabulary");
  int32_t *picked = arena.take<int32_t>(count);
  pick_call *device;
  cuda_table_begin(be);
  pick_call *calls = cuda_room(be, count, &device);
  bool fits = calls != nullptr;
  for (int i = 0; i < count && fits; i++) fits = put_pick(be, calls + i, picks[i], &arena, vocab);
  pyr_status status = cuda_check(be, "pick", arena.used);
  if (status == PYR_OK) status = cuda_table_send(be, "pick", fits);
  if (status != PYR_OK) return status;
  PYR_LAUNCH(pick_kernel, static_cast<unsigned>(count), THREADS, 0, cuda_of(be), device, picked,
             vocab);
  status = cuda_launched(be, "pick");
  return status == PYR_OK ? be->download(be, ids, picked, static_cast<size_t>(count) * sizeof *ids)
      : status;
}

void cuda_pick_fill(pyr_backend *be) { be->pick = cuda_pick; }
