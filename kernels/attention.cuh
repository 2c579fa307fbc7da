/* attention.cuh — what the kernels of attention share: the descriptions of calls, and how lanes are
 * cut into segments.
 *
 * Who does what: attention.cu is the operation, and holds the kernels for any row (f32 arithmetic
 * without tensor cores); attention_prefill.cu has many queries a sequence on tensor cores,
 * attention_decode.cu one query. */
#ifndef PYR_CUDA_ATTENTION_CUH
#define PYR_CUDA_ATTENTION_CUH

#include "convert.cuh"

/* Rows of a lane that one block of a decode step walks. It is the same for all calls, so that how a
 * sequence's sums are joined does not depend on its company: 8192 rows of 8 lanes make 256 blocks,
 * two for each multiprocessor of the largest devices.
 *
 * Segments begin at multiples of SEGMENT of the lane, not at the first row that is seen. So a lane
 * that grows by a row leaves all segments but its last one as they were:
 *
 *     a window shows rows [300, 700):
 *     lane       0         256       512       768
 *                |         | ########|#######  |
 *     segment              |    0    |    1    |       rows [300, 512) and [512, 700) */
static constexpr int SEGMENT = 256;
static_assert(PYR_SLIDE_ROWS % SEGMENT == 0, "what slides away are whole segments");

/* One sequence's attention in one layer, as kernels read it from the table of descriptions. A
 * launch has many, and blockIdx.z says which; what differs from step to step lies here, so that the
 * arguments of a noted kernel stay the same (step.cu). */
struct attend_call {
  float *out, *lse;
  /* q, out: [n][heads][d]; lse: [n][heads], or NULL; q_pos: [n] */
  const float *q;
  const int32_t *q_pos;
  const pyr_lane_view *lanes;      /* [kv_heads] */
  int64_t n;
  int32_t window;
  bool tracked;
  pyr_track track;
  float cap;                       /* see pyr_attention */
  const float *slopes, *sinks;     /* [heads], or NULL */
};

/* What all calls of a launch share. `parts`, `finals` and `scores` are scratch of decode steps,
 * where `segments` > 0. For one call of 2 heads, d = 64, and 600 rows, rounded up to 768:
 *
 *     parts    [2][5][66]   a head's segments beside each other, as join_kernel reads them
 *     finals   [2][2]
 *     scores   [2][768]     before softmax; written only for rows that the query sees
 *
 * finals count each head's sink; parts do not. */
struct attend_args {
  const attend_call *calls;
  row_format f;
  int heads, group;
  float scale;
  int rounded;                     /* operands are rounded to 16 bits; no bool, as arguments are
                                      compared byte by byte (step.cu) */
  int bent;                        /* some call has a cap or slopes: for the launchers, which have
                                      kernels of their own for that, so that others stay as fast */
  unsigned column_blocks;          /* blocks beside each other in grid.x; then the next segment */
  int64_t segments;                /* of the longest lane; 0: many queries, whole lanes */
  float *parts;                    /* [calls][heads][segments][2 + d] m, l, out */
  float *finals;                   /* [calls][heads][2] m and l of the whole lane */
  float *scores;                   /* [calls][heads][rows]; NULL: nothing is tracked */
  int64_t rows;
};

/* -inf, which weighs nothing, where a head has no sink. */
static __device__ __forceinline__ float sink_of(const attend_call &call, int64_t head) {
  return call.sinks ? call.sinks[head] : -INFINITY;
}
static __device__ __forceinline__ float slope_of(const attend_call &call, int64_t head) {
  return call.slopes ? call.slopes[head] : 0.0f;
}

/* Segments that hold rows of a span: at least one, if it is empty. */
static __device__ __forceinline__ int64_t segments_of(row_span seen) {
  return seen.high > seen.low ? (seen.high - 1) / SEGMENT - seen.low / SEGMENT + 1 : 1;
}

/* The rows of a span that lie in its segment-th segment; empty (low >= high) beyond the last. */
static __device__ __forceinline__ row_span segment_of(row_span seen, int64_t segment) {
  int64_t begin = (seen.low / SEGMENT + segment) * SEGMENT, end = begin + SEGMENT;
  return row_span{ begin > seen.low ? begin : seen.low, end < seen.high ? end : seen.high };
}

/* Launches on the stream. False: these rows or heads are not for tensor cores; nothing is done. */
bool cuda_attention_prefill(pyr_backend *be, const attend_args &a, int64_t columns, unsigned lanes,
                            unsigned calls);
bool cuda_attention_decode(pyr_backend *be, const attend_args &a, unsigned lanes, unsigned calls);

#endif
