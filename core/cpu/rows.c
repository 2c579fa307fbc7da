/* rows.c — the rows of a cache lane: page layout, writing, moving, reading as f32, norms.
 *
 * A page is PYR_PAGE_ROWS rows of K, then as many of V. Everything that knows this is here, but for
 * where a row of a plain page lies (pyr_cpu_row_at); attention.c, mass.c and merge.c read rows
 * through pyr_cpu_load_rows. Which rows to keep, and where pages come from, is others' business.
 *
 * A lane's pages may be plain or packed (base/rowbits.h). What moves from a page to one of its own
 * kind moves as bytes, so that a packed row is never rounded twice; what comes into a packed page
 * from elsewhere is packed on the way, and what leaves it for a plain one is unpacked. */
#include "base/rowbits.h"
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

size_t pyr_row_bytes(pyr_dtype dtype, int head_dim) { return pyr_dtype_bytes(dtype, head_dim); }

/* head_dim 64 in f16: 2 * 32 * 128 = 8,192 bytes, 12,288 if wide. */
size_t pyr_page_bytes(pyr_dtype dtype, int head_dim, bool wide) {
  return (size_t)((wide ? 3 : 2) * PYR_PAGE_ROWS) * pyr_row_bytes(dtype, head_dim);
}

/* head_dim 64: 128 bytes in f16, of a key of 4 bits 34. */
size_t pyr_plane_row_bytes(pyr_layout layout, bool packed, pyr_plane plane) {
  pyr_bits bits = pyr_plane_bits(layout, packed, plane);
  return bits == PYR_BITS_PLAIN ? pyr_row_bytes(layout.dtype, layout.head_dim)
      : pyr_bits_bytes(bits, plane == PYR_PLANE_V, layout.head_dim);
}

/* Planes follow each other: of a packed page with keys of 66 bytes and values of 34, K at 0, V at
 * 2,112 and, where it is wide, K as it came at 3,200. */
size_t pyr_plane_at(pyr_layout layout, bool packed, pyr_plane plane) {
  size_t at = 0;
  for (int before = PYR_PLANE_K; before < (int)plane; before++)
    at += PYR_PAGE_ROWS * pyr_plane_row_bytes(layout, packed, (pyr_plane)before);
  return at;
}

size_t pyr_layout_page_bytes(pyr_layout layout, bool packed, bool wide) {
  int planes = wide ? 3 : 2;
  return pyr_plane_at(layout, packed, (pyr_plane)planes) + (packed ? PYR_BITS_SLACK : 0);
}

/* Row 40 of V in a packed page of that kind: page 1, 2,112 + 8 * 34 = 2,384 bytes into it. Slower
 * than pyr_cpu_row_at, which is told the bytes of a row: for what reads rows one by one. */
uint8_t *pyr_cpu_place(const pyr_lane_view *lane, pyr_layout layout, int64_t row,
                       pyr_plane plane) {
  bool packed = pyr_cpu_is_packed(lane, row);
  return (uint8_t *)lane->pages[row / PYR_PAGE_ROWS] + pyr_plane_at(layout, packed, plane)
      + (size_t)(row % PYR_PAGE_ROWS) * pyr_plane_row_bytes(layout, packed, plane);
}

void pyr_cpu_get_row(const pyr_kernels *k, float *dst, const pyr_lane_view *lane,
                     pyr_layout layout, int64_t row, pyr_plane plane) {
  const uint8_t *at = pyr_cpu_place(lane, layout, row, plane);
  pyr_bits bits = pyr_plane_bits(layout, pyr_cpu_is_packed(lane, row), plane);
  if (bits == PYR_BITS_PLAIN) k->to_f32(dst, at, layout.dtype, layout.head_dim);
  else pyr_bits_to_f32(dst, at, bits, plane == PYR_PLANE_V, lane->frame);
}

/* Rounded anew, whatever lay there: what was got, changed and set again has been rounded twice, as
 * means of merged rows and turned keys are. Bytes of other rows of the page are not touched. */
void pyr_cpu_set_row(const pyr_kernels *k, const pyr_lane_view *lane, pyr_layout layout,
                     int64_t row, pyr_plane plane, const float *src) {
  uint8_t *at = pyr_cpu_place(lane, layout, row, plane);
  pyr_bits bits = pyr_plane_bits(layout, pyr_cpu_is_packed(lane, row), plane);
  if (bits == PYR_BITS_PLAIN) k->from_f32(at, layout.dtype, src, layout.head_dim);
  else pyr_bits_from_f32(at, bits, plane == PYR_PLANE_V, lane->frame, src);
}

/* Invariant: rows before `begin` are in dst. A run lies in one page, so that it is read by one
 * call: rows 30 to 70 are 30..31, 32..63 and 64..70. Those of a packed page go one by one. */
void pyr_cpu_load_rows(const pyr_kernels *k, float *dst, int64_t ld, const pyr_lane_view *lane,
                       pyr_layout layout, int64_t begin, int64_t count, pyr_plane plane) {
  int64_t d = layout.head_dim;
  size_t bytes = pyr_row_bytes(layout.dtype, layout.head_dim);
  while (count > 0) {
    int64_t run = pyr_cpu_run_in_page(begin, count);
    const uint8_t *src = pyr_cpu_row_at(lane, bytes, begin, plane);
    if (pyr_cpu_is_packed(lane, begin)) {
      for (int64_t r = 0; r < run; r++) {
        pyr_cpu_get_row(k, dst + r * ld, lane, layout, begin + r, plane);
        memset(dst + r * ld + d, 0, (size_t)(ld - d) * sizeof(float));
      }
    } else if (ld == d) {
      k->to_f32(dst, src, layout.dtype, run * d);
    } else {
      for (int64_t r = 0; r < run; r++) {
        k->to_f32(dst + r * ld, src + (size_t)r * bytes, layout.dtype, d);
        memset(dst + r * ld + d, 0, (size_t)(ld - d) * sizeof(float));
      }
    }
    begin += run, count -= run, dst += run * ld;
  }
}

pyr_span pyr_cpu_visible(const pyr_lane_view *lane, int32_t position, int32_t window) {
  int64_t low = 0, high = lane->rows;                   /* first row whose position is above */
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (lane->positions[middle] <= position) low = middle + 1; else high = middle;
  }
  pyr_span span = { 0, low };
  if (window > 0) {
    int64_t oldest = (int64_t)position - window + 1, end = span.high;
    while (span.low < end) {
      int64_t middle = span.low + (end - span.low) / 2;
      if (lane->positions[middle] < oldest) span.low = middle + 1; else end = middle;
    }
  }
  return span;
}

/* ---- store ----------------------------------------------------------------------------------- */

/* Shared by all tasks, written by none; so are the other calls' below. */
typedef struct store_call {
  const pyr_kernels *kernels;
  const pyr_append *a;
  pyr_layout layout;
  int32_t kv_heads;
} store_call;

/* Tokens [begin, end) of one sequence, in all its lanes. Rows are written behind those there
 * are; who counts them is the caller. */
static void store_tokens(const store_call *c, const pyr_append *a, int64_t begin, int64_t end) {
  int64_t d = c->layout.head_dim;
  for (int64_t i = begin; i < end; i++)
    for (int32_t g = 0; g < c->kv_heads; g++) {
      const pyr_lane_view *lane = &a->lanes[g];
      int64_t row = lane->rows + i, from = (i * c->kv_heads + g) * d;
      pyr_cpu_set_row(c->kernels, lane, c->layout, row, PYR_PLANE_K, a->k + from);
      pyr_cpu_set_row(c->kernels, lane, c->layout, row, PYR_PLANE_V, a->v + from);
      lane->positions[row] = a->positions[i];
      if (a->learned) lane->history[row] = a->learned[i * c->kv_heads + g];
    }
}

/* One long prompt is cut by tokens, a batch of steps by sequences: either way a task writes rows
 * that no other writes. */
static void store_span(const void *ctx, int64_t begin, int64_t end) {
  const store_call *c = ctx;
  store_tokens(c, c->a, begin, end);
}

/* In decode n is 1: a row for each sequence and head. */
static void store_sequences(const void *ctx, int64_t begin, int64_t end) {
  const store_call *c = ctx;
  for (int64_t i = begin; i < end; i++) store_tokens(c, &c->a[i], 0, c->a[i].n);
}

/* Cost: K and V of every head, as many values as are written. */
static pyr_status cpu_store(pyr_backend *be, const pyr_append *a, int count, pyr_layout layout,
                            int32_t kv_heads) {
  store_call c = { pyr_cpu_of(be)->kernels, a, layout, kv_heads };
  int64_t cost = 2 * (int64_t)layout.head_dim * kv_heads;
  if (count == 1) pyr_cpu_spans(be, store_span, &c, a->n, cost);
  else pyr_cpu_spans(be, store_sequences, &c, count, cost);
  return PYR_OK;
}

/* ---- gather ---------------------------------------------------------------------------------- */

/* dst and src: [count] lanes each, the same list for all. */
typedef struct gather_call {
  const pyr_kernels *kernels;
  const pyr_lane_view *dst, *src;
  pyr_layout layout;
  const int32_t *idx;
  int64_t k;
} gather_call;

/* One plane of `run` rows from row `from` of src to row `at` of dst, each within a page. Between
 * pages of one kind it is a move of bytes, 34 a row of 64 values at 4 bits. Into a packed page a
 * plain row of f16 is rounded to its bits, once: 5 scales are tried for it, so that it costs as
 * some hundred moves. Out of one it is unpacked, and rounded to f16. */
static void gather_run(const gather_call *c, const pyr_lane_view *dst, int64_t at,
                       const pyr_lane_view *src, int64_t from, int64_t run, pyr_plane plane) {
  bool packed = pyr_cpu_is_packed(dst, at);
  pyr_bits was = pyr_plane_bits(c->layout, pyr_cpu_is_packed(src, from), plane);
  if (was == pyr_plane_bits(c->layout, packed, plane)) {
    uint8_t *to = pyr_cpu_place(dst, c->layout, at, plane);
    const uint8_t *rows = pyr_cpu_place(src, c->layout, from, plane);
    if (to != rows)
      memmove(to, rows, (size_t)run * pyr_plane_row_bytes(c->layout, packed, plane));
    return;
  }
  float row[PYR_BITS_DIMS];
  for (int64_t r = 0; r < run; r++) {
    pyr_cpu_get_row(c->kernels, row, src, c->layout, from + r, plane);
    pyr_cpu_set_row(c->kernels, dst, c->layout, at + r, plane, row);
  }
}

/* Rows only move towards the front (idx ascends, so idx[i] >= i), and in order; so dst may be src,
 * and no row is overwritten before it has moved. Neighbours that stay neighbours move together.
 * idx 0 1 2 5 6 9, in one page: rows 0 to 2 are where they should be, 5 and 6 move together to 3
 * and 4, 9 to 5. A run ends where either page does. What lies beside the rows moves along,
 * unless source and destination are the same. */
static void gather_lane(void *ctx, int64_t task, int worker) {
  const gather_call *c = ctx;
  const pyr_lane_view *dst = &c->dst[task], *src = &c->src[task];
  (void)worker;
  for (int64_t i = 0; i < c->k;) {
    int64_t from = c->idx[i], run = 1, most = pyr_min(pyr_cpu_run_in_page(i, c->k - i),
                                                        pyr_cpu_run_in_page(from, c->k - i));
    while (run < most && c->idx[i + run] == from + run) run++;
    bool born = dst->born && src->born;
    for (int what = PYR_PLANE_K; what <= (born ? PYR_PLANE_CAME : PYR_PLANE_V); what++)
      gather_run(c, dst, i, src, from, run, (pyr_plane)what);
    if (dst->positions + i != src->positions + from)
      memmove(dst->positions + i, src->positions + from, (size_t)run * sizeof(int32_t));
    if (dst->history && src->history && dst->history + i != src->history + from)
      memmove(dst->history + i, src->history + from, (size_t)run * sizeof(float));
    if (born && dst->born + i != src->born + from)
      memmove(dst->born + i, src->born + from, (size_t)run * sizeof(int32_t));
    i += run;
  }
}

/* A lane is a task, as its rows must move in order. */
static pyr_status cpu_gather(pyr_backend *be, const pyr_lane_view *dst, const pyr_lane_view *src,
                             int count, pyr_layout layout, const int32_t *idx, int64_t k) {
  gather_call c = { pyr_cpu_of(be)->kernels, dst, src, layout, idx, k };
  pyr_cpu_tasks(be, gather_lane, &c, count, 2 * count * k * layout.head_dim);
  return PYR_OK;
}

/* ---- rotation -------------------------------------------------------------------------------- */

/* from: where keys were rotated to as they came; stood: the index they have been turned to
 * since, or NULL at the first turn. */
typedef struct rotate_call {
  const pyr_kernels *kernels;
  pyr_cpu *cpu;
  const pyr_lane_view *lane;
  pyr_layout layout;
  const int32_t *from, *stood;
  const float *freq;
  int32_t pairs;
  pyr_rope_style style;
} rotate_call;

size_t pyr_cpu_rotate_scratch(int32_t head_dim) {
  pyr_arena arena = { NULL, 0 };
  pyr_arena_take(&arena, head_dim, sizeof(float));
  return arena.used;
}

/* The rows of one page. From `from` to the row's index is the angle (index - from) * freq, whatever
 * turns lay between. Of head_dim 64 in f16, in one lane:
 *
 *     index j    from    stood      what is done
 *        0         0       0        nothing: it stands where it did
 *        2         9       9        never turned: K is kept as it came, then turned by 2 - 9
 *        3        12       5        turned before: from the key as it came, by 3 - 12 */
static void rotate_page(void *ctx, int64_t page, int worker) {
  const rotate_call *c = ctx;
  int64_t begin = page * PYR_PAGE_ROWS, end = pyr_min(begin + PYR_PAGE_ROWS, c->lane->rows);
  int32_t step = c->style == PYR_ROPE_HALF ? 1 : 2,
      other = c->style == PYR_ROPE_HALF ? c->pairs : 1;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  float *row = pyr_arena_take(&arena, c->layout.head_dim, sizeof(float));
  for (int64_t j = begin; j < end; j++) {
    if ((c->stood ? c->stood[j] : c->from[j]) == j) continue;
    pyr_plane begins = c->lane->born ? PYR_PLANE_CAME : PYR_PLANE_K;
    /* never turned so far */
    if (c->lane->born && (!c->stood || c->stood[j] == c->from[j]))
      memcpy(pyr_cpu_place(c->lane, c->layout, j, PYR_PLANE_CAME),
             pyr_cpu_place(c->lane, c->layout, j, PYR_PLANE_K),
             pyr_plane_row_bytes(c->layout, pyr_cpu_is_packed(c->lane, j), PYR_PLANE_K));
    pyr_cpu_get_row(c->kernels, row, c->lane, c->layout, j, begins);
    for (int32_t i = 0; i < c->pairs; i++) {
      float angle = (float)(j - c->from[j]) * c->freq[i], co = cosf(angle), si = sinf(angle);
      float *pair = row + i * step, a = pair[0], b = pair[other];
      pair[0] = a * co - b * si;
      pair[other] = a * si + b * co;
    }
    pyr_cpu_set_row(c->kernels, c->lane, c->layout, j, PYR_PLANE_K, row);
  }
}

/* A page is a task. A pair costs two sines, about 16 products. */
static pyr_status cpu_rotate(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                             const int32_t *from, const int32_t *stood, const float *freq,
                                 int32_t dims, pyr_rope_style style) {
  rotate_call c = { pyr_cpu_of(be)->kernels, pyr_cpu_of(be), lane, layout, from, stood, freq,
                    dims / 2, style };
  pyr_status status = pyr_cpu_check(be, "rotate", pyr_cpu_rotate_scratch(layout.head_dim));
  if (status == PYR_OK)
    pyr_cpu_tasks(be, rotate_page, &c, pyr_ceil_div(lane->rows, PYR_PAGE_ROWS),
                  lane->rows * 16 * dims);
  return status;
}

/* ---- norms ----------------------------------------------------------------------------------- */

typedef struct norm_call {
  const pyr_kernels *kernels;
  float *out;
  const pyr_lane_view *lane;
  pyr_layout layout;
  int64_t begin;
  pyr_plane plane;
  int absolute;
} norm_call;

enum { PIECE = 256 };   /* values of a row that are summed at a time */
_Static_assert(PYR_BITS_DIMS % PIECE == 0, "a row on the stack is whole pieces");

/* Of (3, 4): 5. Pieces are summed from the first dimension to the last, so that a row's norm
 * does not depend on the span that it is in. */
static void norm_span(const void *ctx, int64_t begin, int64_t end) {
  const norm_call *c = ctx;
  float row[PYR_BITS_DIMS];
  for (int64_t i = begin; i < end; i++) {
    float sum = 0;
    pyr_cpu_get_row(c->kernels, row, c->lane, c->layout, c->begin + i, c->plane);
    for (int64_t d = 0; d < c->layout.head_dim; d += PIECE) {
      int64_t n = pyr_min(PIECE, c->layout.head_dim - d);
      const float *piece = row + d;
      if (!c->absolute) sum += c->kernels->square_sum(piece, n);
      for (int64_t j = 0; j < n && c->absolute; j++) sum += fabsf(piece[j]);
    }
    c->out[i] = c->absolute ? sum : sqrtf(sum);
  }
}

/* Bytes: each row once, of K or of V alone. */
static pyr_status cpu_row_norms(pyr_backend *be, float *out, const pyr_lane_view *lane,
                                pyr_layout layout, int64_t begin, int64_t end, pyr_plane plane,
                                int absolute) {
  norm_call c = { pyr_cpu_of(be)->kernels, out, lane, layout, begin, plane, absolute };
  pyr_cpu_spans(be, norm_span, &c, end - begin, layout.head_dim);
  return PYR_OK;
}

void pyr_cpu_rows_fill(pyr_backend *be) {
  be->store = cpu_store;
  be->gather = cpu_gather;
  be->rotate = cpu_rotate;
  be->row_norms = cpu_row_norms;
}
