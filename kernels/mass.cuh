/* mass.cuh — what the two kernels of the score pass share: mass.cu, for any row, and mass_tiles.cu,
 * on tensor cores. */
#ifndef PYR_CUDA_MASS_CUH
#define PYR_CUDA_MASS_CUH

#include "convert.cuh"

/* A call, as both kernels read it. out: [heads][stride], row range.begin of a head's lane first; q:
 * [n][heads][d]; lse: [n][heads]; `slope`: what the weight rises by from query to query. */
struct mass_args {
  float *out;
  int64_t stride;
  const float *q, *lse;
  const int32_t *q_pos;
  const pyr_lane_view *lanes;      /* [kv_heads] */
  const pyr_range *ranges;         /* [kv_heads] */
  int64_t n;
  row_format f;
  pyr_weighting weighting;
  float scale, slope;
  int heads, group;
  int32_t window, place;
  bool max, by_place, squares, entropy;   /* += p^2, += -p ln p */
  float cap;                       /* see pyr_attention */
  const float *slopes;             /* [heads], or NULL */
};

/* What a query gives to a sum: its probability p = e^log, or what a variance or an entropy is made
 * of. A p of 0 adds nothing, whatever its logarithm: of p = .5, .25 and .35 are added. */
static __device__ __forceinline__ float given_by(const mass_args &a, float p, float log) {
  if (a.squares) return p * p;
  return a.entropy ? (p > 0 ? -p * log : 0.0f) : p;
}

/* Whether scores are bent; for the launchers, as kernels that look for it are others. */
static inline bool bends(const mass_args &a) { return a.cap > 0 || a.slopes; }

/* The positions of the queries that count for a row: base <= position <= due. With 3 queries and
 * due = 10: base = 8, and queries at 8, 9 and 10 count, with 1, 1 + slope and 1 + 2 slope. */
struct counting { int64_t base, due; };

/* Who counts for row j; all queries, where no number of them is given. */
static __device__ __forceinline__ counting counting_of(const pyr_weighting &w, int64_t j) {
  if (w.queries == 0) return counting{ INT64_MIN, INT64_MAX };
  int64_t due = due_of(w, j);
  return counting{ due - w.queries + 1, due };
}

/* Launches on the stream, for ranges of at most `longest` rows. False: these rows or heads are not
 * for tensor cores. */
bool cuda_mass_tiles(pyr_backend *be, const mass_args &a, int64_t longest);

#endif
