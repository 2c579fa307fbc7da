/* digest_args.h — what the operations are told by which steps read less than is held: what pages of
 * keys are known by, and which of them a query picks. As op_args.h, apart from it. */
#ifndef PYR_DIGEST_ARGS_H
#define PYR_DIGEST_ARGS_H

#include "backend/op_args.h"
#include "base/signs.h"

/* Digests of pages (pyr_digest), `width` floats each. How a page ranks is one product of its digest
 * with what is made of the query, but for SIGNS, whose rows are told apart (base/signs.h):
 *
 *     digest        of a page's keys                   of a query       product
 *     BOUND         highest [d], least [d]             q > 0, q < 0     S max(q least, q highest)
 *     BALL          mean [d], farthest from it [1]     q, |q|           q.c + |q| r
 *     MEAN          mean [d]                           q                q.c
 *     SIGNS         mean, scales, signs of each row    q, sums of H q   q.c + the highest row's
 *
 * and zeros up to a multiple of 16. (q > 0: the channels above 0, zeros in place of the others.)
 * Means and distances are worked out in f32, row after row. A key with a NaN gives a digest with
 * one. */
static inline int64_t pyr_digest_width(pyr_digest by, int32_t head_dim) {
  int64_t n = by == PYR_DIGEST_BOUND ? 2 * head_dim : by == PYR_DIGEST_BALL ? head_dim + 1
      : by == PYR_DIGEST_SIGNS ? pyr_signs_width(head_dim) : head_dim;
  return (n + 15) / 16 * 16;
}

typedef struct pyr_digests_of {  /* pages [begin, end) of a lane, each of them full */
  const pyr_lane_view *lane;
  float *out;                    /* [page][width], from page 0 on: others are not written */
  int64_t begin, end;
} pyr_digests_of;

/* Which pages of its lanes the query of one sequence reads, as pyr_read says. A lane of which all
 * visible pages are to be read comes back as it is. Else `out` gets `pages` and `positions`, in
 * order, and rows; no history, table or birth: it is there to be attended to. Pages rank by
 *
 *     max over the lane's heads of  cap * tanh(s / cap) - (q_pos - position) * slope
 *
 * with s as the digests give it, times `scale`, cap and slopes as in pyr_attention, and the
 * position of the page's last row; ties go to the lower page, NaN ranks above everything, so that a
 * broken row is read.
 *
 * Where rows lie in tiers below, too, the pages of all tiers of a lane compete for the rows that
 * are read: guards are those of the hot tier, which comes first where scores tie; of the others a
 * page that is not full is read whatever it holds, as the hot lane's newest is. */
typedef struct pyr_reading {
  const pyr_lane_view *lanes;    /* host [kv_heads]; … */
  const float *const *digests;   /* host [kv_heads] … of their full pages, of kind read.by */
  pyr_lane_view *out;            /* host [kv_heads]; each with pages and positions of room for
                                    pyr_read_pages pages */
  const float *q;                /* [heads, head_dim] */
  const int32_t *q_pos;          /* [1] */
  pyr_read read;                 /* rows > 0 */
  int32_t window;
  float cap;
  const float *slopes;           /* [heads] or NULL */
  const struct pyr_reading *below;   /* lanes, digests and out of the tier below; NULL: there is
                                        none */
} pyr_reading;

/* So many pages are read of a lane of `rows` rows at most. Rows 1,024, first 4, last 64, of 7,000:
 * 32, page 0 and the last 3 at most are settled; rows 64: 4, as guards win. It does not fall as
 * rows grow: what is laid out for the longest of several lanes serves the others. */
static inline int64_t pyr_read_pages(const pyr_read *read, int64_t rows) {
  int64_t all = (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS;
  int64_t wanted = (read->rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS;
  int64_t first = (read->first + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS;
  int64_t last = read->last > rows ? all : (read->last + PYR_PAGE_ROWS - 2) / PYR_PAGE_ROWS + 1;
  int64_t most = wanted > first + last ? wanted : first + last;
  return most < all ? most : all;
}

#endif
