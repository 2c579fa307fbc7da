/* profile.c — where time goes: calls, seconds, arithmetic and traffic of each operation of the
 * backend's table.
 *
 * Switched on, every operation's pointer in the runtime's table is replaced by a wrapper that reads
 * the clock before and after the real one. Switched off, the real pointers are back, so that what
 * is off costs nothing. Callers hold the table's address, never its pointers, so both take effect
 * at once; state and memory operations stay the backend's own.
 *
 * A device works behind its host. Each wrapper therefore downloads one word after the operation,
 * which waits for it: the seconds are the operation's, not those of handing it over. (On a CPU that
 * is a copy of four bytes.)
 *
 * Arithmetic and traffic are worked out from the arguments: a multiply-add is two operations; bytes
 * are what must be read and written if nothing stays in a cache from call to call and nothing is
 * read twice within one. Attention's are those of its lanes' last rows: queries are the newest
 * tokens, and see everything before them (or the window). */
#include "backend/backend.h"

#include <string.h>
#include <time.h>

/* The operations that are counted: everything but alloc, release and reserve. */
#define OPERATIONS(X) \
  X(copy) X(upload) X(download) X(embed) X(norm) X(linear) X(rope) X(activate) X(mlp) X(scale) \
  X(add) X(gate_rows) X(temper) X(route) X(experts) X(take_rows) X(take_i32) X(store) \
  X(attention) X(digest) X(pick_pages) X(gather) X(move_rows) X(join) X(merge) X(rotate) X(mass) \
  X(reduce_rows) \
  X(row_norms) X(arith) X(pool) X(normalize) X(select) \
  X(choose) X(finite) X(iota) X(fill) X(look_up) X(softmax) X(total) X(map) X(standardize) \
  X(chunk) X(mark) X(read_rows) X(key_similarity) X(redundancy) X(along) X(lag) X(output_norm) \
  X(moments) X(moments_end) X(expected) X(pick) X(list_pages)

enum {
#define X(name) OP_##name,
  OPERATIONS(X)
#undef X
  OP_COUNT
};

typedef struct pyr_profile {
  pyr_backend real;
  uint32_t *word;                  /* backend memory: what is downloaded to wait */
  struct { int64_t calls; double seconds, flops, bytes; } counts[OP_COUNT];
} pyr_profile;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void count(pyr_backend *be, int op, double began, double flops, double bytes) {
  pyr_profile *p = be->profile;
  uint32_t host;
  (void)p->real.download(be, &host, p->word, sizeof host);
  p->counts[op].calls++;
  p->counts[op].seconds += now() - began;
  p->counts[op].flops += flops;
  p->counts[op].bytes += bytes;
}

/* One wrapper: its parameters behind `be`, the arguments it hands on, its arithmetic and its
 * traffic. */
#define WRAPPER(name, parameters, arguments, flops, bytes) \
  static pyr_status profiled_##name parameters { \
    double began = now(); \
    pyr_status status = ((pyr_profile *)be->profile)->real.name arguments; \
    count(be, OP_##name, began, flops, bytes); \
    return status; \
  }

static double size_of(const pyr_tensor *w) { return (double)w->stride * (double)w->shape[0]; }
static double row_of(pyr_layout layout) {
  return (double)pyr_row_bytes(layout.dtype, layout.head_dim);
}

/* Pairs of a query and a row that it sees, for one lane: n queries that are the newest of `rows`
 * rows. */
static double pairs_of(int64_t n, int64_t rows, int32_t window) {
  double pairs = 0, before = (double)(rows - n);
  if (before < 0) before = 0;
  if (window <= 0 || rows <= window) return (double)n * before + (double)n * ((double)n + 1) / 2;
  for (int64_t i = 1; i <= n; i++)
    pairs += before + (double)i < window ? before + (double)i : window;
  return pairs;
}

/* Scores and weighted values: two multiply-adds of head_dim for each pair and head. */
static double attention_flops(const pyr_attention *a, int count, pyr_layout layout, int32_t heads,
                              int32_t kv_heads) {
  double pairs = 0;
  for (int i = 0; i < count; i++)
    for (int h = 0; h < kv_heads; h++) pairs += pairs_of(a[i].n, a[i].lanes[h].rows, a[i].window);
  return 4.0 * layout.head_dim * pairs * (heads / kv_heads);
}

static double attention_bytes(const pyr_attention *a, int count, pyr_layout layout, int32_t heads,
                              int32_t kv_heads) {
  double bytes = 0;
  for (int i = 0; i < count; i++) {
    bytes += 8.0 * (double)a[i].n * heads * layout.head_dim;
    for (int h = 0; h < kv_heads; h++) {
      int64_t rows = a[i].lanes[h].rows, seen = a[i].n + a[i].window;
      bytes += 2 * row_of(layout) * (double)(a[i].window > 0 && seen < rows ? seen : rows);
    }
  }
  return bytes;
}

WRAPPER(copy, (pyr_backend *be, void *dst, const void *src, size_t bytes), (be, dst, src, bytes),
        0, 2.0 * (double)bytes)
WRAPPER(upload, (pyr_backend *be, void *dst, const void *host, size_t bytes),
        (be, dst, host, bytes), 0, 2.0 * (double)bytes)
WRAPPER(download, (pyr_backend *be, void *host, const void *src, size_t bytes),
        (be, host, src, bytes), 0, 2.0 * (double)bytes)

WRAPPER(embed, (pyr_backend *be, float *out, const pyr_tensor *table, const int32_t *ids,
                int64_t n), (be, out, table, ids, n), 0,
                    (double)n * ((double)table->stride + 4.0 * (double)table->shape[1]))
WRAPPER(norm, (pyr_backend *be, float *out, const float *x, const pyr_norm *norm, int64_t n,
               int64_t d), (be, out, x, norm, n, d),
        (norm->kind == PYR_NORM_LAYER ? 7.0 : 4.0) * (double)(n * d), 8.0 * (double)(n * d))
WRAPPER(linear, (pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                 const float *bias, int64_t n, int flags), (be, out, x, w, bias, n, flags),
                     2.0 * (double)n * (double)w->shape[0] * (double)w->shape[1],
                         size_of(w) + 4.0 * (double)n * ((double)w->shape[1]
                                                         + (flags & PYR_LINEAR_ADD ? 2.0
                                                            : 1.0) * (double)w->shape[0]))
static double mlp_values(const pyr_mlp *m) {
  return (double)m->up->shape[0] * ((m->gate ? 2.0 : 1.0) * (double)m->up->shape[1]
                                    + (double)m->down->shape[0]);
}
static double mlp_bytes(const pyr_mlp *m) {
  return (m->gate ? size_of(m->gate) : 0) + size_of(m->up) + size_of(m->down)
      + 4.0 * (double)m->n * ((double)m->up->shape[1] + (m->flags & PYR_LINEAR_ADD ? 2.0 : 1.0)
                              * (double)m->down->shape[0]);
}
WRAPPER(mlp, (pyr_backend *be, const pyr_mlp *m), (be, m), 2.0 * (double)m->n * mlp_values(m),
        mlp_bytes(m))
WRAPPER(rope, (pyr_backend *be, float *x, const int32_t *pos, const float *freq, int64_t n,
               int32_t heads, int32_t head_dim, int32_t dims, pyr_rope_style style, float gain),
                   (be, x, pos, freq, n, heads, head_dim, dims, style, gain),
                       3.0 * (double)n * heads * dims, 8.0 * (double)n * heads * dims)
WRAPPER(activate, (pyr_backend *be, float *gate, const float *up, int64_t n, pyr_activation act,
                   float limit), (be, gate, up, n, act, limit), 4.0 * (double)n,
        (up ? 12.0 : 8.0) * (double)n)
WRAPPER(scale, (pyr_backend *be, float *x, int64_t n, float factor, float cap),
        (be, x, n, factor, cap), (cap > 0 ? 4.0 : 1.0) * (double)n, 8.0 * (double)n)
WRAPPER(add, (pyr_backend *be, float *x, const float *y, int64_t n, float factor),
        (be, x, y, n, factor), 2.0 * (double)n, 12.0 * (double)n)
WRAPPER(gate_rows, (pyr_backend *be, float *x, const float *logits, int64_t n, int64_t d),
        (be, x, logits, n, d), (double)(n * d), 8.0 * (double)(n * d))
WRAPPER(temper, (pyr_backend *be, float *x, const int32_t *pos, int64_t n, int64_t d, float beta,
                 int32_t length), (be, x, pos, n, d, beta, length), (double)(n * d),
        8.0 * (double)(n * d))
WRAPPER(route, (pyr_backend *be, const pyr_route *r), (be, r), 4.0 * (double)r->n * r->experts,
        (double)r->n * (4.0 * r->experts + 8.0 * r->used))

/* Values and bytes of one expert's matrices. */
static double values_of(const pyr_expert *e) {
  return (double)(e->gate.shape[0] + e->up.shape[0] + e->down.shape[1]) * (double)e->up.shape[1];
}
static double bytes_of(const pyr_expert *e) {
  return size_of(&e->gate) + size_of(&e->up) + size_of(&e->down);
}
/* Which experts are taken, a device alone knows: as many different ones as there can be. */
static double experts_bytes(const pyr_experts *e) {
  double pairs = (double)e->n * e->used, taken = pairs < e->experts ? pairs : e->experts;
  return taken * bytes_of(e->each) + 4.0 * pairs * (double)(2 * e->each->up.shape[1]);
}
WRAPPER(experts, (pyr_backend *be, const pyr_experts *e), (be, e),
        2.0 * (double)e->n * e->used * values_of(e->each), experts_bytes(e))
WRAPPER(take_rows, (pyr_backend *be, float *x, const int32_t *idx, int64_t k, int64_t d),
        (be, x, idx, k, d), 0, 8.0 * (double)(k * d))
WRAPPER(take_i32, (pyr_backend *be, int32_t *x, const int32_t *idx, int64_t k), (be, x, idx, k), 0,
        8.0 * (double)k)

static double appended(const pyr_append *a, int calls, pyr_layout layout, int32_t kv_heads) {
  double tokens = 0;
  for (int i = 0; i < calls; i++) tokens += (double)a[i].n;
  return 2 * tokens * kv_heads * (4.0 * layout.head_dim + row_of(layout));
}
WRAPPER(store, (pyr_backend *be, const pyr_append *a, int calls, pyr_layout layout,
                int32_t kv_heads), (be, a, calls, layout, kv_heads), 0,
                    appended(a, calls, layout, kv_heads))
static double ranged_rows(const pyr_mass *m, int32_t kv_heads) {
  double rows = 0;
  for (int32_t g = 0; g < kv_heads; g++)
    if (m->ranges[g].end > m->ranges[g].begin)
      rows += (double)(m->ranges[g].end - m->ranges[g].begin);
  return rows;
}

/* Masses that an attention summed are counted as `mass`, with a multiply-add for each pair. */
static pyr_status profiled_attention(pyr_backend *be, const pyr_attention *a, int calls,
                                     pyr_layout layout, int32_t heads, int32_t kv_heads,
                                     float scale) {
  pyr_profile *p = be->profile;
  double began = now(), summing = 0;
  pyr_status status = p->real.attention(be, a, calls, layout, heads, kv_heads, scale);
  const pyr_masses *masses = a->masses;
  for (int i = 0; masses && masses->summed && i < masses->count; i++) {
    const pyr_mass *m = &masses->list[i];
    double pairs = (double)m->n * ranged_rows(m, kv_heads) * (heads / kv_heads);
    p->counts[OP_mass].calls++;
    p->counts[OP_mass].flops += 2.0 * pairs;
    p->counts[OP_mass].bytes += 4.0 * pairs;
    summing = masses->seconds;
  }
  p->counts[OP_mass].seconds += summing;
  count(be, OP_attention, began + summing, attention_flops(a, calls, layout, heads, kv_heads),
        attention_bytes(a, calls, layout, heads, kv_heads));
  return status;
}
/* Keys of full pages, once; all digests of a reading's lanes, once for all heads of a group, and a
 * multiply-add for each of their numbers and each head. */
static double digest_pages(const pyr_digests_of *lanes, int count) {
  double pages = 0;
  for (int i = 0; i < count; i++) pages += (double)(lanes[i].end - lanes[i].begin);
  return pages;
}
static double picked_numbers(const pyr_reading *r, int count, pyr_layout layout, int32_t kv_heads) {
  double numbers = 0;
  for (int i = 0; i < count; i++)
    for (int h = 0; h < kv_heads; h++)
      numbers += (double)(r[i].lanes[h].rows / PYR_PAGE_ROWS)
          * (double)pyr_digest_width(r[i].read.by, layout.head_dim);
  return numbers;
}
WRAPPER(digest, (pyr_backend *be, const pyr_digests_of *lanes, int n, pyr_layout layout,
                 pyr_digest by), (be, lanes, n, layout, by),
                     2.0 * digest_pages(lanes, n) * PYR_PAGE_ROWS * layout.head_dim,
                         digest_pages(lanes, n) * PYR_PAGE_ROWS * row_of(layout))
WRAPPER(pick_pages, (pyr_backend *be, const pyr_reading *readings, int n, pyr_layout layout,
                     int32_t heads, int32_t kv_heads, float scale),
                         (be, readings, n, layout, heads, kv_heads, scale),
                             2.0 * picked_numbers(readings, n, layout, kv_heads)
                                 * (heads / kv_heads),
                                     4.0 * picked_numbers(readings, n, layout, kv_heads))

WRAPPER(gather, (pyr_backend *be, const pyr_lane_view *dst, const pyr_lane_view *src, int lanes,
                 pyr_layout layout, const int32_t *idx, int64_t k),
                     (be, dst, src, lanes, layout, idx, k), 0,
                         4.0 * lanes * (double)k * row_of(layout))

WRAPPER(move_rows, (pyr_backend *be, const pyr_lane_view *dst, pyr_layout dst_layout,
                    const int32_t *to, const pyr_lane_view *src, pyr_layout src_layout,
                    const int32_t *from, int64_t n),
        (be, dst, dst_layout, to, src, src_layout, from, n), 0,
        2.0 * (double)n * (row_of(dst_layout) + row_of(src_layout)))
WRAPPER(join, (pyr_backend *be, float *out, float *lse, const float *other,
               const float *other_lse, int64_t n, int64_t d),
        (be, out, lse, other, other_lse, n, d), 3.0 * (double)n * (double)d,
        12.0 * (double)n * ((double)d + 1))
WRAPPER(merge, (pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout, const int32_t *idx,
                int64_t k, float threshold, int32_t *links),
                    (be, lane, layout, idx, k, threshold, links),
                        2.0 * (double)k * (double)(lane->rows - k) * layout.head_dim,
                            (double)lane->rows * row_of(layout)
                                + 2.0 * (double)(lane->rows - k) * row_of(layout))
WRAPPER(rotate, (pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                 const int32_t *from, const int32_t *stood, const float *freq, int32_t dims,
                     pyr_rope_style style), (be, lane, layout, from, stood, freq, dims, style),
                         3.0 * (double)lane->rows * dims, 2.0 * (double)lane->rows * row_of(layout))
WRAPPER(mass, (pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads,
               int32_t kv_heads, float scale), (be, m, layout, heads, kv_heads, scale),
        2.0 * (double)m->n * ranged_rows(m, kv_heads) * (heads / kv_heads) * layout.head_dim,
        ranged_rows(m, kv_heads) * (row_of(layout) + 8.0 * (heads / kv_heads))
          + 4.0 * (double)m->n * heads * layout.head_dim)
WRAPPER(reduce_rows, (pyr_backend *be, float *out, const float *in, int32_t rows, int64_t stride,
                      int64_t n, pyr_reduce how, float scale),
                          (be, out, in, rows, stride, n, how, scale), (double)rows * (double)n,
                              4.0 * (double)n * (rows + 1.0))
WRAPPER(row_norms, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                    int64_t begin, int64_t end, pyr_plane plane, int absolute),
                        (be, out, lane, layout, begin, end, plane, absolute),
                            2.0 * (double)(end - begin) * layout.head_dim,
                                (double)(end - begin) * (row_of(layout) + 4.0))
WRAPPER(arith, (pyr_backend *be, float *a, const float *b, int64_t n, pyr_score_code code),
        (be, a, b, n, code), (double)n, 12.0 * (double)n)
WRAPPER(pool, (pyr_backend *be, float *out, const float *in, int64_t n, int32_t width,
               pyr_pooling how),
        (be, out, in, n, width, how), (double)n * width, 8.0 * (double)n)
WRAPPER(normalize, (pyr_backend *be, float *x, int64_t n), (be, x, n), 2.0 * (double)n,
        12.0 * (double)n)
WRAPPER(select, (pyr_backend *be, int32_t *idx, const float *score, int64_t n, int64_t k,
                 int32_t offset), (be, idx, score, n, k, offset), 0, 4.0 * (double)(n + k))
static double scored_rows(const pyr_choice *c) {
  double rows = 0;
  for (int32_t s = 0; s < c->count; s++) rows += (double)c->segments[s].n;
  return rows;
}

WRAPPER(choose, (pyr_backend *be, const pyr_choice *c), (be, c), 0,
        4.0 * (scored_rows(c) + (double)c->most))
WRAPPER(finite, (pyr_backend *be, int32_t *fault, const float *x, int64_t n), (be, fault, x, n),
        (double)n, 4.0 * (double)n)
WRAPPER(iota, (pyr_backend *be, int32_t *out, int32_t first, int64_t n), (be, out, first, n), 0,
        4.0 * (double)n)
WRAPPER(fill, (pyr_backend *be, float *out, const int32_t *positions, int64_t n, pyr_filling what,
               uint64_t seed, float value), (be, out, positions, n, what, seed, value), 0,
                   8.0 * (double)n)

WRAPPER(look_up, (pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                  const int32_t *ids, int64_t known, const float *values, int64_t vocab),
                      (be, out, positions, n, ids, known, values, vocab), 0, 16.0 * (double)n)

WRAPPER(softmax, (pyr_backend *be, float *x, int64_t n), (be, x, n), 3.0 * (double)n,
        12.0 * (double)n)
WRAPPER(total, (pyr_backend *be, float *x, int64_t n, pyr_reduce how), (be, x, n, how), (double)n,
        8.0 * (double)n)
WRAPPER(map, (pyr_backend *be, float *x, int64_t n, pyr_mapping how, float value),
        (be, x, n, how, value), (double)n, 8.0 * (double)n)
WRAPPER(standardize, (pyr_backend *be, float *x, int64_t n), (be, x, n), 5.0 * (double)n,
        12.0 * (double)n)
WRAPPER(chunk, (pyr_backend *be, float *x, int64_t n, int64_t width), (be, x, n, width), (double)n,
        8.0 * (double)n)
WRAPPER(mark, (pyr_backend *be, float *out, int64_t n, const int32_t *idx, int64_t k),
        (be, out, n, idx, k), 0, 4.0 * (double)(n + k))
WRAPPER(read_rows, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                    int64_t begin, int64_t end, pyr_plane plane),
                        (be, out, lane, layout, begin, end, plane), 0,
                            (double)(end - begin) * (row_of(layout) + 4.0 * layout.head_dim))
WRAPPER(key_similarity, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                         int64_t begin, int64_t end), (be, out, lane, layout, begin, end),
                             6.0 * (double)(end - begin) * layout.head_dim,
                                 (double)(end - begin) * (row_of(layout) + 4.0))
/* At most: the search for the last row alike stops early. */
WRAPPER(redundancy, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                     int64_t begin, int64_t end, float threshold),
        (be, out, lane, layout, begin, end, threshold),
        2.0 * (double)lane->rows * (double)lane->rows * layout.head_dim,
        (double)lane->rows * (row_of(layout) + 12.0))
WRAPPER(along, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                int64_t begin, int64_t end, const pyr_along *a, int32_t heads),
        (be, out, lane, layout, begin, end, a, heads),
        2.0 * (double)(end - begin) * heads * (layout.head_dim + (a->spreads ? a->dims : 0)),
        (double)(end - begin) * (row_of(layout) + 4.0 * heads))
WRAPPER(lag, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
              int64_t begin, int64_t end, int64_t lag, int ranked),
                  (be, out, lane, layout, begin, end, lag, ranked),
                      12.0 * (double)(end - begin) * layout.head_dim,
                          (double)(end - begin) * (2 * row_of(layout) + 4.0))
WRAPPER(output_norm, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                      int64_t begin, int64_t end, const pyr_tensor *o, int32_t first,
                          int32_t heads), (be, out, lane, layout, begin, end, o, first, heads),
                              2.0 * (double)(end - begin) * layout.head_dim * heads * (
                                  double)o->shape[0], (double)(end - begin) * (row_of(layout)
                                      + 4.0 * heads) + size_of(o) * heads * layout.head_dim / (
                                          double)o->shape[1])
WRAPPER(moments, (pyr_backend *be, const pyr_moments *m, const float *q, const int32_t *q_pos,
                  int64_t n, bool begin), (be, m, q, q_pos, n, begin),
                      2.0 * (double)n * m->heads * m->head_dim * (m->outer ? m->head_dim : 1.0),
                          4.0 * (double)n * m->heads * m->head_dim)
WRAPPER(moments_end, (pyr_backend *be, const pyr_moments *m, int64_t queries, int64_t next,
                      int64_t future, float scale), (be, m, queries, next, future, scale),
                          12.0 * m->heads * m->head_dim * m->head_dim,
                              8.0 * m->heads * m->head_dim * m->head_dim)
WRAPPER(expected, (pyr_backend *be, float *out, const pyr_lane_view *lane, pyr_layout layout,
                   int64_t begin, int64_t end, const pyr_moments *m, int32_t first, int32_t heads),
                       (be, out, lane, layout, begin, end, m, first, heads),
                           2.0 * (double)(end - begin) * heads * layout.head_dim * (m->outer
                               ? layout.head_dim + 2.0 : 1.0),
                                   (double)(end - begin) * (row_of(layout) + 4.0 * heads))
WRAPPER(pick, (pyr_backend *be, const pyr_pick *picks, int picked, int64_t vocab, int32_t *ids),
        (be, picks, picked, vocab, ids), 0, 4.0 * (double)picked * (double)vocab)

static double listed(const pyr_page_list *lists, int lanes) {
  double pages = 0;
  for (int i = 0; i < lanes; i++) pages += (double)(lists[i].end - lists[i].begin);
  return pages * 2 * sizeof(void *);
}
WRAPPER(list_pages, (pyr_backend *be, const pyr_page_list *lists, int lanes), (be, lists, lanes),
        0, listed(lists, lanes))

/* ---- on and off ------------------------------------------------------------------------------ */

static void stop(pyr_backend *be) {
  pyr_profile *p = be->profile;
#define X(name) be->name = p->real.name;
  OPERATIONS(X)
#undef X
  be->close = p->real.close;
  be->release(be, p->word, sizeof *p->word);
  be->profile = NULL;
  pyr_release(be->rt, p, sizeof *p);
}

static void profiled_close(pyr_backend *be) {
  stop(be);
  be->close(be);
}

pyr_status pyr_runtime_profile(pyr_runtime *rt, int on) {
  static const uint32_t zero;
  pyr_backend *be = pyr_runtime_backend(rt);
  if (be->profile) stop(be);
  if (!on) return PYR_OK;
  pyr_profile *p = pyr_alloc_zero(rt, sizeof *p);
  if (!p) return pyr_nomem(rt, sizeof *p, "a profile");
  p->real = *be;
  p->word = be->alloc(be, sizeof *p->word);
  pyr_status status = p->word ? be->upload(be, p->word, &zero, sizeof zero)
      : pyr_nomem(rt, sizeof *p->word, "a profile");
  if (status != PYR_OK) {
    be->release(be, p->word, sizeof *p->word);
    pyr_release(rt, p, sizeof *p);
    return status;
  }
#define X(name) if (be->name) be->name = profiled_##name;
  OPERATIONS(X)
#undef X
  be->close = profiled_close;
  be->profile = p;
  return PYR_OK;
}

int pyr_runtime_get_profile(pyr_runtime *rt, pyr_profile_entry *out, int room) {
  static const char *const names[OP_COUNT] = {
#define X(name) #name,
    OPERATIONS(X)
#undef X
  };
  const pyr_profile *p = pyr_runtime_backend(rt)->profile;
  int found = 0;
  for (int op = 0; p && op < OP_COUNT; op++) {
    if (p->counts[op].calls == 0) continue;
    if (found < room)
      out[found] = (pyr_profile_entry){ names[op], p->counts[op].calls, p->counts[op].seconds,
                                        p->counts[op].flops, p->counts[op].bytes };
    found++;
  }
  return found;
}
