/* op_args.h — what the backend's operations are told: how rows lie, how many of what a call may
 * have, and one description for each operation that takes more than a few arguments. Which memory a
 * pointer is of, backend.h says. */
#ifndef PYR_OP_ARGS_H
#define PYR_OP_ARGS_H

#include "base/runtime.h"
#include "base/tensor.h"

#define PYR_PAGE_ROWS 32   /* rows a page */
/* Rows leave the front of a lane by so many: a backend's sums over a lane do not change by a bit
 * if it adds up rows in groups that begin at multiples of a divisor of this. */
#define PYR_SLIDE_ROWS 512

/* A page holds PYR_PAGE_ROWS rows of K, then as many rows of V, each row head_dim values of the
 * cache dtype. q8_0 rows need head_dim % 32 == 0, fp8_e4m3 an even one. K is stored after RoPE, at
 * its original position. A wide page, of lanes whose keys are turned as rows leave, has a third
 * plane behind these: K as it came, from which every turn begins, so that keys are rounded once on
 * the way however often they are turned. */
size_t pyr_row_bytes(pyr_dtype dtype, int head_dim);               /* one K or one V row */
/* (wide ? 3 : 2) * PYR_PAGE_ROWS * pyr_row_bytes */
size_t pyr_page_bytes(pyr_dtype dtype, int head_dim, bool wide);
typedef enum pyr_plane { PYR_PLANE_K, PYR_PLANE_V, PYR_PLANE_CAME } pyr_plane;

/* How the rows of a cache lie: those of plain pages in `dtype`; those of packed pages, where there
 * are any, in few bits (base/rowbits.h), K and V each in its own, or as in a plain page. */
typedef struct pyr_layout { pyr_dtype dtype; int32_t head_dim; pyr_bits k, v; } pyr_layout;

static inline bool pyr_layout_packs(pyr_layout layout) {
  return layout.k != PYR_BITS_PLAIN || layout.v != PYR_BITS_PLAIN;
}
/* The bits of one plane of a page; PYR_PLANE_CAME is another of K. */
static inline pyr_bits pyr_plane_bits(pyr_layout layout, bool packed, pyr_plane plane) {
  return !packed ? PYR_BITS_PLAIN : plane == PYR_PLANE_V ? layout.v : layout.k;
}
/* Bytes of a row there, and where the plane's first row lies in a page: in planes of K, V and, in
 * wide pages, K as it came. Packed pages end with a few bytes more, which may be read. */
size_t pyr_plane_row_bytes(pyr_layout layout, bool packed, pyr_plane plane);
size_t pyr_plane_at(pyr_layout layout, bool packed, pyr_plane plane);
size_t pyr_layout_page_bytes(pyr_layout layout, bool packed, bool wide);

/* What `pool` makes of the values in its window, as a score's operation says it. */
typedef enum pyr_pooling { PYR_POOL_AVERAGE, PYR_POOL_MAXIMUM } pyr_pooling;

typedef struct pyr_lane_view {   /* the rows of one lane, for reading or for in-place writing */
  void **pages;                  /* host array; page p holds rows [p*PYR_PAGE_ROWS, …) */
  int32_t *positions;            /* [rows] strictly ascending */
  float *history;                /* [rows] tracked attention, or NULL */
  int64_t rows;
  void **table;  /* `pages` in backend memory, where `list_pages` put them; or NULL */
  int32_t *born;  /* [rows] wide pages: the position K was rotated to when it came; else NULL */
  uint8_t *packed;               /* host: whether page p is packed, 1 or 0; NULL: none is */
  const struct pyr_frame *frame; /* of the packed pages (base/rowbits.h); else NULL */
} pyr_lane_view;

/* A lane's view, whose `pages` are its table, and where it goes in backend memory. */
typedef struct pyr_lane_entry { pyr_lane_view *to; pyr_lane_view view; } pyr_lane_entry;

/* pages: host */
typedef struct pyr_page_list { void **table; void *const *pages; int64_t begin,
                               end; } pyr_page_list;

typedef struct pyr_work {        /* upper bounds that `reserve` prepares for */
  int64_t tokens;                /* n of any call */
  int64_t rows;                  /* rows of any lane */
  int64_t sequences;             /* count of any batched call */
  int32_t heads, kv_heads, head_dim;
  int64_t cols, outputs;         /* widest input and output of a matrix product */
  int64_t picks, changes;        /* of one call of `pick`: those that draw or change logits; all
                                    their changes */
  int64_t experts, experts_used; /* of a layer, and of a token; 0: none */
  int64_t expert_ff;
  int32_t masses;                /* of any attention (see pyr_masses) */
  int32_t resident;              /* 1: between step_begin and step_end every call of `store` and
                                    `attention` is of resident lanes */
} pyr_work;

/* Each row by itself: x / sqrt(mean x^2 + eps) * weight, or, of kind PYR_NORM_LAYER, with m the
 * row's mean, (x - m) / sqrt(mean (x - m)^2 + eps) * weight + bias. */
typedef struct pyr_norm {
  pyr_norm_kind kind;
  float eps;
  const float *weight;           /* [period, d]: row i takes weights i % period */
  const float *bias;             /* [d], or NULL: none; none with PYR_NORM_RMS */
  int64_t period;                /* 1: the same weights for all rows */
} pyr_norm;

/* How much a query at position q counts for the row of index j: only the last `queries` queries
 * before the row's due date do, weighted by a ramp. The due date is the position of the newest
 * query before the row is judged; it is known in advance because rows are judged in the order in
 * which they leave the recent window.
 *     due(j)  = due + (every > 0 and j >= threshold ? ((j - threshold) / every + 1) * every : 0)
 *     i       = q - (due(j) - queries + 1)
 *     w(q, j) = 1                                        if queries == 0 (every query counts)
 *               0                                        if i < 0 or q > due(j)
 *               1 + (ramp - 1) * i / (queries - 1)       otherwise (1 if queries == 1)
 * j counts from an origin that each user of a weighting states for each lane: lanes of unequal
 * length are judged from their ends, so that one threshold, counted from there, serves them all. */
typedef struct pyr_weighting {
  int32_t queries;
  float ramp;
  int64_t due, threshold, every;
} pyr_weighting;

typedef struct pyr_track {       /* history[j] = decay * history[j] + w(q, j) * mean over the lane's
                                    heads of p_h(j) */
  pyr_weighting weighting;       /* j counts from the lane's end: row j of `rows` is j - rows */
  float decay;
  int32_t max;                   /* 1: history[j] = max(history[j], w(q, j) * max over the lane's
                                    heads of p_h(j)), and decay is not looked at */
  const float *more;             /* [heads] logarithm of the denominators of rows that are attended
                                    to elsewhere (backend.h, join), which count in p_h, but in
                                    neither out nor lse; NULL: none, as always where `join` is */
  const float *all;              /* [heads] or that of all rows, these and others: as `more`, where
                                    the whole is known; NULL: it is not */
} pyr_track;

typedef struct pyr_attention {   /* causal attention of n queries of one sequence over its kv_heads
                                    lanes */
  float *out;                    /* [n, heads, head_dim] */
  float *lse;  /* [n, heads] log of the softmax denominator: log(sum exp(s)); or NULL */
  const float *q;                /* [n, heads, head_dim], after RoPE */
  const int32_t *q_pos;          /* [n] ascending. Row j is visible iff positions[j] <= q_pos[i] and
                                    (window == 0 or q_pos[i] - positions[j] < window);
                                    a query sees itself at least */
  const pyr_lane_view *lanes;  /* host [kv_heads]; query head h reads lane h / (heads / kv_heads) */
  const pyr_lane_view *resident; /* [kv_heads] the same in backend memory, where `list_lanes` put
                                    them, of at most `longest` rows; NULL: only `lanes` are there.
                                    `lanes` are not looked at then */
  int64_t longest;
  int64_t n;
  int32_t window;
  const pyr_track *track;  /* host; NULL: none. Only with n == 1 and lanes that have a history */
  /* What a model adds to that; 0 and NULL: nothing. A score is, in this order,
   *
   *     s = scale * q.k
   *     s = cap * tanh(s / cap)                          soft cap (Gemma 2, Grok)
   *     s = s - (q_pos - position) * slopes[h]           ALiBi (arXiv 2108.12409)
   *
   * with both positions as they are compared for the mask, whatever keys are turned to; and each
   * head's sink (GPT-OSS) is one more score in its denominator, of a row without a value:
   *
   *     p_j = exp(s_j) / (exp(sinks[h]) + sum exp(s_k))        out = sum p_j v_j
   *
   * so that p adds up to less than 1. lse is the logarithm of that denominator: a query that sees
   * no row has 0 and its sink. A sink of -inf is none. Calls that are made together have the same
   * of all three. */
  float cap;
  const float *slopes, *sinks;   /* [heads] */
  struct pyr_masses *masses;     /* host; NULL: none. Only where there is one call, of n > 1 */
} pyr_attention;

typedef struct pyr_append {      /* the next n rows of a sequence's kv_heads lanes */
  const pyr_lane_view *lanes;    /* host [kv_heads]; rows [rows, rows + n) are there and writable */
  pyr_lane_view *resident;       /* [kv_heads] the same in backend memory, where `list_lanes` put
                                    them: rows are counted there; then n is 1, and `lanes` are not
                                    looked at. Or NULL */
  const float *k, *v;            /* [n, kv_heads, head_dim] */
  const int32_t *positions;      /* [n] */
  const float *learned;          /* [n, kv_heads] what the rows' history becomes; NULL: it stays */
  int64_t n;
} pyr_append;

typedef struct pyr_range {       /* rows [begin, end) of a lane, none if end <= begin */
  int64_t begin, end;
  int64_t origin;                /* a weighting counts rows from here: row j is j - origin */
} pyr_range;

typedef struct pyr_mass {        /* attention mass that n queries of one sequence gave to a range of
                                    each lane's rows */
  float *out;  /* [heads, end-begin] accumulates: += (or max=) w(q, j) * exp(s - lse); or see
                  `reduce` */
  int64_t stride;                /* floats from head to head in out, >= every lane's end-begin */
  const float *q;                /* [n, heads, head_dim] as given to attention, with its lse */
  const float *lse;              /* [n, heads] */
  const int32_t *q_pos;          /* [n] */
  const pyr_lane_view *lanes;    /* host [kv_heads] */
  const pyr_range *ranges;       /* host [kv_heads]; a lane holds at least `end` rows */
  int64_t n;
  int32_t window;                /* as in attention; invisible rows get nothing */
  pyr_reduce reduce;             /* over queries: PYR_SUM, PYR_MAX; with a ramp of 1 and p = exp(s -
                                    lse) also PYR_VARIANCE: += p^2, PYR_ENTROPY: += -p ln p */
  pyr_weighting weighting;
  bool by_place;                 /* the weighting counts the i-th query as place + i, not by its
                                    position: queries whose … */
  int32_t place;                 /* … tokens left earlier layers have no place */
  float cap;                     /* as in attention, and … */
  const float *slopes;           /* … likewise; sinks are in its lse */
} pyr_mass;

/* What the last queries of an attention give to rows, for a backend that can sum it up while it has
 * their probabilities. Each of the list is what `mass` would be called with after that attention:
 * its queries are the last n of the attention's, out is not negative, and `reduce` is PYR_SUM or
 * PYR_MAX. A backend that has summed all of them says so; else nothing was, and the caller calls
 * `mass` for each. */
typedef struct pyr_masses {
  const pyr_mass *list;          /* host [count] */
  int count;
  bool summed;                   /* out */
  double seconds;                /* out: of the attention's that this took, about */
} pyr_masses;

typedef struct pyr_segment {     /* one vector of scores in a choice; host */
  int64_t n;                     /* its rows */
  int64_t least;  /* so many of its highest are chosen whatever the others hold; 0..n */
  int64_t at;                    /* its chosen rows are written to idx + at, ascending, … */
  int32_t offset;                /* … each plus offset */
} pyr_segment;

/* Which rows of several segments survive together. First every segment's own `least`; then, of all
 * that are left, the highest, ties to the lower segment, then to the lower row, until `most` rows
 * are chosen or, if mass > 0, until the chosen hold the share `mass` of the sum of all scores,
 * whichever comes first: the smallest such set. A score below `above`, where that bounds them, and
 * NaN, are chosen for a segment's `least` alone; they count in the sum.
 *
 * Sums are exact, so that no order of summing can change a choice: with 2^e the least power of two
 * above the highest score, a score s counts as the integer floor(s * 2^(36 - e)), those below 0 and
 * NaN as 0, +inf as the largest float. The share of a sum S that must be held is ceil(mass * S) in
 * double precision, S itself if mass is 1. */
typedef struct pyr_choice {
  const float *score;            /* the segments' scores one after the other; at most 2^27 rows */
  const pyr_segment *segments;   /* host [count] */
  int32_t count;
  int64_t most;                  /* from the sum of all `least` to the sum of all `n` */
  double mass;                   /* 0..1; 0: exactly `most` rows, as far as `above` lets */
  bool bounded;                  /* whether it is looked at: … */
  float above;                   /* … the lowest score that is chosen; no NaN */
  int32_t *idx;
  int32_t *chosen;               /* [count] how many rows of each segment were chosen */
  int32_t *work;                 /* [2 * count] scratch */
} pyr_choice;

/* Moments of the queries of each head, as they were before RoPE. Sums are of what remains after
 * `shift` is taken off, so that a mean far from 0 costs the covariance no digits: sum = S (q -
 * shift), outer = S (q - shift)(q - shift)^T. */
typedef struct pyr_moments {
  float *shift, *sum;            /* [heads, head_dim] */
  float *outer;                  /* [heads, head_dim, head_dim]; NULL: not wanted */
  float *turns;                  /* [n, dims] scratch */
  const float *freq;             /* [dims/2], as in rope */
  int32_t heads, head_dim, dims;
  pyr_rope_style style;
  float gain;
} pyr_moments;

/* How far keys go along a vector of each head, and how long they are pair by pair as RoPE pairs
 * values: of a key k, vector . k + sum over pairs p of spread_p |(k's pair p)|. */
typedef struct pyr_along {
  const float *vectors;          /* [heads, head_dim] */
  const float *spreads;          /* [heads, dims/2]; NULL: lengths do not count */
  int32_t dims;                  /* that rope turns, as in rope */
  pyr_rope_style style;
} pyr_along;

/* Which experts each token takes, and with what weight. With s = softmax(logits) or sigmoid(logits)
 * of a token:
 *
 *   experts are ranked by s + correction; ties go to the lower expert, NaN ranks below everything;
 *   with groups, only those of the groups_used groups whose sum of the two highest is highest;
 *   weight = scale * s, with `renormalise` divided by the sum of s over the chosen ones first.
 *
 * Logits 2 0 1 3, two of four, softmax: s = .237 .032 .087 .644; ids 3 0, weights .644 .237, or,
 * renormalised, .731 .269. */
typedef struct pyr_route {
  const float *logits;           /* [n, experts] */
  const float *correction;       /* [experts], or NULL: none */
  int32_t *ids;                  /* [n, used] in the order of their ranks */
  float *weights;                /* [n, used] likewise */
  int64_t n;
  int32_t experts, used;         /* <= PYR_EXPERTS_MAX, <= PYR_EXPERTS_USED_MAX and experts */
  int32_t groups, groups_used;   /* groups divide experts, into at least two each, and those used
                                    hold at least `used`; 0: none */
  pyr_router kind;
  int32_t renormalise;           /* 0 or 1 */
  float scale;
} pyr_route;

#define PYR_EXPERTS_MAX 1024
#define PYR_EXPERTS_USED_MAX 32
#define PYR_GROUPS_MAX 32
#define PYR_ROUTE_LEAST 1e-20f   /* is added to the sum of `renormalise`, which may be 0 */

typedef struct pyr_expert {      /* one MLP of many: down(act(gate x) * up x), each with a bias */
  pyr_tensor gate, up;           /* [ff, width]; gate of rank 0: down(act(up x)) */
  pyr_tensor down;               /* [width, ff] */
  float *gate_bias, *up_bias, *down_bias;   /* [ff], [ff], [width], or NULL */
} pyr_expert;

/* out[t] (+)= sum over r < used of weights[t, r] * expert ids[t, r] of x[t]. A token's sum has an
 * order that only its own ids give: nothing of it depends on what other tokens take. */
typedef struct pyr_experts {
  float *out;                    /* [n, width] */
  const float *x;                /* [n, width]; not out */
  const int32_t *ids;            /* [n, used], a token's all different */
  const float *weights;          /* [n, used] */
  const pyr_expert *each;        /* host [experts], all of the same shapes, dtypes and order */
  const pyr_expert *table;       /* `each` in the backend's memory; NULL: it reads the host's */
  int64_t n;
  int32_t experts, used;
  pyr_activation activation;
  float limit;                   /* as in `activate` */
  int flags;                     /* PYR_LINEAR_… */
} pyr_experts;

/* out (+)= down (act(gate x) * up x): a layer's MLP, or down act(up x) without a gate. */
typedef struct pyr_mlp {
  float *out;                    /* [n, down.shape[0]]; not x */
  const float *x;                /* [n, up.shape[1]] */
  const pyr_tensor *gate;        /* NULL: none */
  const pyr_tensor *up, *down;
  const float *gate_bias, *up_bias, *down_bias;   /* or NULL */
  int64_t n;
  pyr_activation activation;
  float limit;                   /* as in `activate` */
  int flags;                     /* PYR_LINEAR_…; ADD is of down */
} pyr_mlp;

typedef struct pyr_change {      /* what is known of an id beside its logit */
  int32_t id;
  float bias;
  int32_t count;                 /* how often it was seen; 0: no penalty */
} pyr_change;

typedef struct pyr_pick {        /* one token id out of logits, by the steps of sampler.c with the
                                    arithmetic of sample_math.h */
  const float *logits;           /* [vocab]; not changed */
  const pyr_change *changes;     /* host [changed]; ids are distinct and of the vocabulary */
  int32_t changed;
  int32_t top_k;                 /* 0: off */
  float repeat, frequency, presence;
  float temperature;             /* 0: the highest */
  float top_p, min_p;            /* 0, and top_p from 1 on: off */
  uint64_t random;               /* 53 random bits */
} pyr_pick;

typedef enum pyr_filling {       /* what `fill` writes to out[i] */
  PYR_FILL_POSITION,             /* positions[i] */
  PYR_FILL_HASH,                 /* a hash of (seed, positions[i]), in [0, 1) */
  PYR_FILL_VALUE,                /* the value */
  PYR_FILL_PLACE                 /* i / (n - 1), from 0 to 1; 1 if n == 1 */
} pyr_filling;

typedef struct pyr_facts {       /* what a device is; texts of the driver and of CUDA's runtime are
                                    versions of CUDA */
  char name[128], arch[16], driver[16], runtime[16];
  int64_t memory, free;          /* bytes; 0: not known */
  int32_t processors;            /* multiprocessors */
} pyr_facts;

typedef struct pyr_step_counts { /* how kernels were launched so far: alone; as graphs of a step,
                                    which were built, and how many … */
  int64_t single, launched, built, told;               /* … of their kernels were told that
                                                          something has changed */
} pyr_step_counts;

/* By which way products went so far. Slow ways are right, and several times slower: `plain`,
 * `refused` and the other two `…_plain`. */
typedef struct pyr_way_counts {
  int64_t library, refused;      /* rounded: by the device's library; by our own kernels, as it has
                                    no way for such matrices */
  int64_t stream, plain;         /* not rounded: by tensor cores, weights read once; one by one.
                                    `refused` counts here, too */
  int64_t attention, attention_plain, mass, mass_plain;            /* by tensor cores; one by one */
} pyr_way_counts;

typedef enum pyr_ceiling { PYR_CEILING_COPY, PYR_CEILING_F32, PYR_CEILING_F16,
                           PYR_CEILING_BF16 } pyr_ceiling;

#endif
