/* radix_select.cuh — where the highest of many values end: after so many of them, or with the first
 * that fills so much of a sum. In linear time, without a sort, by one block of as many threads as
 * there are.
 *
 * Values have keys ordered as they are, and a radix select over 11, 11 and 10 bits fixes the last
 * key that is chosen: count the keys that agree with what is fixed, and add up what they weigh, by
 * their next digit; walk down from the highest until enough are passed. Counting is by atomic
 * additions of integers, so no order shows.
 *
 * With keys of two decimal digits, 93 71 47 45 42 12, where do the 4 highest end?
 *
 *     pass 1, tens      9: 1   7: 1   4: 3   1: 1      1, 2, 5 >= 4: digit 4, and 2 are left
 *     pass 2, units     of 4x:  7: 1   5: 1   2: 1     1, 2 >= 2: digit 5, and 1 is left
 *     cut               { 45, 1 }: all above 45, and the first 1 of those that are 45
 *
 * And if each weighs what it is, where are 200 reached? 93 + 71 = 164, + 134 >= 200: digit 4, 36
 * left; 47 >= 36: digit 7; cut { 47, 1 }. Real keys have 32 bits: | 11 | 11 | 10 |, three passes.
 *
 * Shared memory: about 25 KiB, of which the histograms are 24. Time is three readings of the
 * values, which L2 holds, and the collisions of atomics where many share a digit. */
#ifndef PYR_CUDA_RADIX_SELECT_CUH
#define PYR_CUDA_RADIX_SELECT_CUH

#include "convert.cuh"

static constexpr int THREADS = 1024, DIGITS = 2048;
static constexpr uint64_t ALL = UINT64_MAX;

struct cut { uint32_t key; int32_t equal; };         /* every key above is chosen, and the first
                                                        `equal` of those that equal it */

struct radix_select {                                /* shared */
  int count[DIGITS];
  unsigned long long sum[DIGITS], parts[WARP];
  int64_t counts[WARP];
  unsigned long long sums[WARP];
  int64_t wanted;
  uint64_t target, each;
  int digit;
};

static __device__ __forceinline__ float score_of(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

/* Nothing is chosen: no key is above this one, and none of its equals is taken. */
static __device__ __forceinline__ cut no_cut() { return cut{ 0xffffffffu, 0 }; }

/* ---- radix select ---------------------------------------------------------------------------- */

/* Sums over this lane and those before it. */
static __device__ __forceinline__ void scan_warp(int64_t *count, unsigned long long *sum) {
  for (int by = 1; by < WARP; by *= 2) {
    int64_t c = __shfl_up_sync(ALL_LANES, *count, by);
    unsigned long long t = __shfl_up_sync(ALL_LANES, *sum, by);
    if (lane_of_warp() >= by) *count += c, *sum += t;
  }
}

/* By the block: the highest digit at which `wanted` rows or `target` of the sum are reached; what
 * is left of both, and what a row of that digit counts. A warp has a run of digits, the highest
 * first, and a lane one or two of them; the warp where the sums over warps get there looks among
 * its lanes. */
static __device__ void find_digit(radix_select *s, int digits) {
  int lane = lane_of_warp(), warp = warp_of_block(),
      each = digits / THREADS > 0 ? digits / THREADS : 1;
  int high = digits - 1 - static_cast<int>(threadIdx.x) * each;
  /* The thread's own digits, high and down; then of the warp's lanes up to this one; then of warps.
   * At every level the first place where the sums reach what is sought is the place: sums only
   * grow.
   *
   *     warp       0     1     2     3 …        all: over warps; first = 2, before = 9
   *     count      4     5     6     2          wanted 12: 4, 9, 15 >= 12
   *     lane of 2  1 0 3 2 0 …               counts: 10, 10, 13 >= 12: that lane looks, wanted 2 */
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
  int first = __ffs(static_cast<int>(__ballot_sync(ALL_LANES,
                                                   all >= wanted || whole >= target))) - 1;
  if (first > 0)
    before = __shfl_sync(ALL_LANES, all, first - 1),
        held = __shfl_sync(ALL_LANES, whole, first - 1);
  counts += before;
  sums += held;
  unsigned reached = __ballot_sync(ALL_LANES, counts >= wanted || sums >= target);
  __syncthreads();                                     /* all have read what is sought */
  if (warp != first || lane != __ffs(static_cast<int>(reached)) - 1) return;
  wanted -= counts - count;
  if (target != ALL) target -= sums - sum;
  /* One or two digits: it ends at the latest at the thread's last, which reaches what is sought. */
  int digit = high;
  while (s->count[digit] < wanted && s->sum[digit] < target) {
    wanted -= s->count[digit];
    if (target != ALL) target -= s->sum[digit];
    digit--;
  }
  s->digit = digit;
  s->wanted = wanted;
  s->target = target;
  /* exact in the last step, where all keys are equal */
  s->each = s->sum[digit] / static_cast<uint64_t>(s->count[digit]);
}

/* Adds to the histograms of the next digit what agrees with what is fixed. */
struct digits_of {
  radix_select *s;
  uint32_t fixed, mask;
  int shift, digits;
  __device__ __forceinline__ void operator()(uint32_t key, int count,
                                             unsigned long long weight) const {
    if ((key & mask) != fixed) return;
    int digit = static_cast<int>(key >> shift & static_cast<uint32_t>(digits - 1));
    atomicAdd(&s->count[digit], count);
    if (weight) atomicAdd(&s->sum[digit], weight);
  }
};

/* Where the chosen end: after `wanted` values, or with the first that fills `target`. Both at least
 * 1, and one of them is reached. each(add) calls add(key, how many, what they weigh together) for
 * the values of the calling thread; a key always weighs the same where weights are asked for. */
template <typename Each>
static __device__ __forceinline__ cut find_cut(radix_select *s, const Each &each, int64_t wanted,
                                               uint64_t target) {
  uint32_t fixed = 0, mask = 0;
  if (threadIdx.x == 0) s->wanted = wanted, s->target = target;
  /* Before each pass: `fixed`, under `mask`, is the beginning of the last key that is chosen;
   * s->wanted and s->target are what keys with that beginning still have to give. Barriers: the
   * histogram is empty before any adds to it; all have added before it is read; the digit is known
   * before it is used. */
  for (int step = 0; step < 3; step++) {
    int shift = step == 0 ? 21 : step == 1 ? 10 : 0, digits = step == 2 ? 1024 : 2048;
    for (int i = static_cast<int>(threadIdx.x); i < digits; i += THREADS)
      s->count[i] = 0, s->sum[i] = 0;
    __syncthreads();
    each(digits_of{ s, fixed, mask, shift, digits });
    __syncthreads();
    find_digit(s, digits);
    __syncthreads();
    fixed |= static_cast<uint32_t>(s->digit) << shift;
    mask |= static_cast<uint32_t>(digits - 1) << shift;
  }
  uint64_t left = s->target, one = s->each, enough = left != ALL
      && one > 0 ? left / one + (left % one > 0) : ALL;
  /* Of the last key, so many as the count allows, or as fill the target: 36 of 47 take one. */
  int64_t most = s->wanted;
  __syncthreads();
  return cut{ fixed, static_cast<int32_t>(enough < static_cast<uint64_t>(most)
                                          ? static_cast<int64_t>(enough) : most) };
}

#endif
