/* tiers.c — what caches of several tiers need: rows that go from a lane of one dtype to a lane of
 * another, and attentions over the tiers that become one.
 *
 * The join is the online softmax's (arXiv 1805.02867) with whole tiers in the place of blocks. An
 * attention over some of the rows is out_t = sum p_j v_j with p a softmax over these alone, and
 * lse_t the logarithm of its denominator. Over all rows
 *
 *     lse = log(sum over t of e^lse_t)        out = sum over t of e^(lse_t - lse) out_t
 *
 * as each row's weight e^(s - lse) is e^(s - lse_t) e^(lse_t - lse). A query that gave .2 and .6 to
 * two hot rows of denominator 8, and half each to two warm ones of denominator 2, gives .8 of what
 * it gave to the hot ones and .1 to each of the others. */
#include "base/rowbits.h"
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

typedef struct move_call {
  const pyr_kernels *kernels;
  const pyr_lane_view *dst, *src;
  pyr_layout to_layout, from_layout;
  const int32_t *to, *from;
} move_call;

/* Whether bytes mean the same there and here: plain rows of one dtype, or as few bits in one frame,
 * which is that of one lane. */
static bool same_form(const move_call *c, int64_t to, int64_t from, pyr_plane plane) {
  pyr_bits is = pyr_plane_bits(c->to_layout, pyr_cpu_is_packed(c->dst, to), plane),
      was = pyr_plane_bits(c->from_layout, pyr_cpu_is_packed(c->src, from), plane);
  return is == was && (is == PYR_BITS_PLAIN ? c->to_layout.dtype == c->from_layout.dtype
                       : c->dst->frame == c->src->frame);
}

/* One row of K or V. Bytes are copied where they may be: none is rounded that need not be. */
static void move_row(const move_call *c, int64_t to, int64_t from, pyr_plane plane) {
  float row[PYR_BITS_DIMS];
  if (same_form(c, to, from, plane)) {
    memcpy(pyr_cpu_place(c->dst, c->to_layout, to, plane),
           pyr_cpu_place(c->src, c->from_layout, from, plane),
           pyr_plane_row_bytes(c->to_layout, pyr_cpu_is_packed(c->dst, to), plane));
    return;
  }
  pyr_cpu_get_row(c->kernels, row, c->src, c->from_layout, from, plane);
  pyr_cpu_set_row(c->kernels, c->dst, c->to_layout, to, plane, row);
}

/* Each row has a place of its own in dst, so spans of rows share nothing. */
static void move_span(const void *ctx, int64_t begin, int64_t end) {
  const move_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    int64_t to = c->to[i], from = c->from[i];
    for (int plane = PYR_PLANE_K; plane <= PYR_PLANE_V; plane++)
      move_row(c, to, from, (pyr_plane)plane);
    c->dst->positions[to] = c->src->positions[from];
    if (c->dst->history) c->dst->history[to] = c->src->history ? c->src->history[from] : 0;
  }
}

static pyr_status cpu_move_rows(pyr_backend *be, const pyr_lane_view *dst, pyr_layout dst_layout,
                                const int32_t *to, const pyr_lane_view *src,
                                pyr_layout src_layout, const int32_t *from, int64_t n) {
  move_call c = { pyr_cpu_of(be)->kernels, dst, src, dst_layout, src_layout, to, from };
  pyr_cpu_spans(be, move_span, &c, n, 4 * dst_layout.head_dim);
  return PYR_OK;
}

typedef struct join_call {
  float *out, *lse;
  const float *other, *other_lse;
  int64_t d;
} join_call;

/* From the higher of the two, so that no power overflows; a NaN in either comes through, as e to
 * it is one. */
static void join_span(const void *ctx, int64_t begin, int64_t end) {
  const join_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    float a = c->lse[i], b = c->other_lse[i], m = fmaxf(a, b);
    if (m == -INFINITY) continue;                         /* the query sees no row of either */
    float ea = expf(a - m), eb = expf(b - m), l = m + logf(ea + eb);
    float *out = c->out + i * c->d, wa = ea / (ea + eb), wb = eb / (ea + eb);
    const float *other = c->other + i * c->d;
    for (int64_t j = 0; j < c->d; j++) out[j] = wa * out[j] + wb * other[j];
    c->lse[i] = l;
  }
}

static pyr_status cpu_join(pyr_backend *be, float *out, float *lse, const float *other,
                           const float *other_lse, int64_t n, int64_t d) {
  join_call c = { out, lse, other, other_lse, d };
  pyr_cpu_spans(be, join_span, &c, n, 2 * d);
  return PYR_OK;
}

void pyr_cpu_tiers_fill(pyr_backend *be) {
  be->move_rows = cpu_move_rows;
  be->join = cpu_join;
}
