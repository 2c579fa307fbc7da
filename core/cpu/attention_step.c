/* attention_step.c — attention of one query a sequence (decode), and the history that it leaves.
 *
 * A lane is walked page by page, and each row is read once, from where it lies, for all heads of
 * the group (kv_block.inc), in segments of PYR_SEGMENT rows, counted from row 0. A segment leaves,
 * for each head,
 *
 *     m = max s,   l = sum exp(s - m),   out = sum exp(s - m) v
 *
 * and segments are joined in their order by m' = max m; alpha = exp(m - m'); l' = sum of alpha l;
 * out' likewise. With scores 1 and 3 in one segment and 2 in the next, of rows v1, v2 and v3:
 *
 *     segment 0    m = 3    l = 1 + e^-2 = 1.135    out = 0.135 v1 + v2
 *     segment 1    m = 2    l = 1                   out = v3
 *     joined       m = 3    l = 1.135 + e^-1 * 1    out = 0.135 v1 + v2 + 0.368 v3
 *
 * and out / l is softmax(1, 3, 2) over the rows, as if they had been walked at once. Each segment
 * is a task, and the last to end joins them: long lanes share threads,
 * and the result does not depend on how many there are.
 *
 * A head's sink joins them as one more segment, the first, with m the sink, l = 1 and out = 0.
 *
 * Rows of packed pages (base/rowbits.h) are walked in their lane's frame, by queries that were
 * taken there once a lane, and leave m, l and out of their own; out comes back from the frame once
 * a segment, where it is joined with that of the plain pages.
 *
 * Where the lane's history is tracked (see pyr_track) the scores of all its rows are kept to its
 * end, so that one task walks all segments, with the same result. */
#include "base/rowbits.h"
#include "cpu/attention.h"

#include <math.h>
#include <string.h>

_Static_assert(PYR_KV_BLOCK == PYR_PAGE_ROWS, "a page is what the kernels take at once");

typedef struct step_scratch {
  float *q;                /* [group][dims] */
  float *rows[2];          /* [PYR_PAGE_ROWS][dims] keys, values as f32, where the kernels do not
                              read them as they are */
  float *p, *alpha;        /* [group][PYR_KV_BLOCK], [group]: see pyr_kv_block */
  float *packed;           /* the part of a segment's packed pages; and p and alpha of the page */
  float *packed_p[2], *packed_alpha[2];   /* … that is scored, and of that whose values wait */
  float *scores;           /* [group][ld] of a lane that is tracked */
  float *parts;            /* what segments leave, if one task walks them all */
  int64_t dims, ld;
} step_scratch;

/* `rows` bounds what is laid out for one task: all rows of a lane that it walks, or one segment. */
static step_scratch step_scratch_of(pyr_arena *arena, int32_t group, int32_t head_dim,
                                    int64_t rows) {
  step_scratch s = { .dims = pyr_cpu_part_dims(head_dim), .ld = pyr_round_up(rows, PYR_PAD) };
  s.q = pyr_arena_take(arena, group * s.dims, sizeof(float));
  for (int what = 0; what < 2; what++)
    s.rows[what] = pyr_arena_take(arena, PYR_PAGE_ROWS * s.dims, sizeof(float));
  s.p = pyr_arena_take(arena, group * PYR_KV_BLOCK, sizeof(float));
  s.alpha = pyr_arena_take(arena, group, sizeof(float));
  s.packed = pyr_arena_take(arena, pyr_cpu_part_size(group, s.dims), sizeof(float));
  for (int i = 0; i < 2; i++) {
    s.packed_p[i] = pyr_arena_take(arena, group * PYR_KV_BLOCK, sizeof(float));
    s.packed_alpha[i] = pyr_arena_take(arena, group, sizeof(float));
  }
  s.scores = pyr_arena_take(arena, group * s.ld, sizeof(float));
  s.parts = pyr_arena_take(arena, pyr_cpu_segments_max(rows) * pyr_cpu_part_size(group, s.dims),
                           sizeof(float));
  return s;
}

size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows) {
  pyr_arena arena = { NULL, 0 };
  step_scratch_of(&arena, group, head_dim, rows);
  return arena.used;
}

/* ---- one segment ----------------------------------------------------------------------------- */

/* Decode runs at the speed at which rows come out of memory, so each page is asked for while the
 * one before it is being worked on. */

/* What is read after the run that ends before `row`: the stretch's next page, or the first one that
 * this thread is likely to read then. */
static const void *after(const pyr_stretch *now, const pyr_stretch *next, size_t bytes, int64_t row,
                         int what) {
  const pyr_stretch *s = row < now->rows.high ? now : next;
  if (s == next) row = next->rows.low;
  return row < s->rows.high && !pyr_cpu_is_packed(s->lane, row)
      ? pyr_cpu_row_at(s->lane, bytes, row, what) : NULL;
}

/* Whether the kernels read rows where they lie, or, where that costs more (many heads would widen
 * each row again; dimensions that do not fill vectors), as f32 in scratch. */
static bool in_place(const pyr_attend *t, const step_scratch *s) {
  return s->dims == t->layout.head_dim && t->group <= t->k->row_heads;
}

/* Rows that lie in one page, as the kernels are to read them. In place nothing is copied: the
 * kernels widen as they read. Otherwise up to 32 rows go to scratch, and `ahead` points at what
 * is there already, which does no harm. */
static pyr_piece piece_at(const pyr_attend *t, const step_scratch *s, const pyr_stretch *now,
                          const pyr_stretch *next, int64_t row, int64_t count, int what) {
  size_t bytes = pyr_row_bytes(t->layout.dtype, t->layout.head_dim);
  if (in_place(t, s))
    return (pyr_piece){ pyr_cpu_row_at(now->lane, bytes, row, what),
                        after(now, next, bytes, row + count, what), bytes, (int)count };
  pyr_cpu_load_rows(t->k, s->rows[what], s->dims, now->lane, t->layout, row, count, what);
  return (pyr_piece){ s->rows[what], s->rows[what], (size_t)s->dims * sizeof(float), (int)count };
}

/* Where a run of pages begins: nothing was seen. The first page then has alpha e^-inf = 0, which
 * multiplies an out of zeros. */
static void begin_part(const pyr_kv_block *b) {
  for (int h = 0; h < b->heads; h++) b->m[h] = -INFINITY, b->l[h] = b->alpha[h] = 0;
  memset(b->out, 0, (size_t)(b->heads * b->dims) * sizeof(float));
}

/* Rows of a plane of a packed page as f32 in scratch: as they lie in the frame, or as they are
 * where the plane is plain. */
static pyr_piece unpacked(const pyr_attend *t, const step_scratch *s, const uint8_t *at,
                          size_t bytes, int64_t run, pyr_plane plane) {
  float *to = s->rows[plane];
  int32_t d = t->layout.head_dim;
  pyr_bits bits = pyr_plane_bits(t->layout, true, plane);
  for (int64_t r = 0; r < run; r++, to += s->dims, at += bytes) {
    if (bits == PYR_BITS_PLAIN) t->k->to_f32(to, at, t->layout.dtype, d);
    else pyr_bits_unpack(to, at, bits, plane == PYR_PLANE_V, d);
    memset(to + d, 0, (size_t)(s->dims - d) * sizeof(float));
  }
  return (pyr_piece){ s->rows[plane], s->rows[plane], (size_t)s->dims * sizeof(float), (int)run };
}

/* Rows of few bits need no scratch where their quarters fill the kernels' vectors: of head_dim 96
 * quarters are 24 values, which do with AVX2 and do not with AVX-512. Then, and for planes that are
 * plain beside packed ones, a page's rows go through scratch, where they are as far as kv_block is
 * concerned rows of f32. */

/* How far before they are read packed rows are asked for. A page of q4 is worked on for 100 to 200
 * ns, about as long as memory takes to answer: with one page between the two they came too late. */
enum { AHEAD = 2 * PYR_PAGE_ROWS };

/* Where the plane of the page that far behind this one lies, in this stretch or in the next, as if
 * all rows of that were read, too; the rows themselves, if it is not packed. Of a stretch of rows 0
 * to 511, and of 512 to 1,023 behind it:
 *
 *     row       0     32    64   …   416    448    480
 *     asks for  64    96    128      480    512    544 */
static const void *page_ahead(const pyr_stretch *now, const pyr_stretch *next, int64_t row,
                              size_t skip, const void *rows) {
  const pyr_stretch *s = row + AHEAD < now->rows.high ? now : next;
  row = s == now ? row + AHEAD : next->rows.low + row + AHEAD - now->rows.high;
  return row < s->rows.high && pyr_cpu_is_packed(s->lane, row)
      ? (const uint8_t *)s->lane->pages[row / PYR_PAGE_ROWS] + skip : rows;
}

/* Whether the kernels read packed rows where they lie: where quarters fill their vectors. Of
 * head_dim 96 they are 24 values, which do with AVX2 and do not with AVX-512. */
static bool in_bits(const pyr_attend *t, pyr_bits bits) {
  int32_t d = t->layout.head_dim;
  return bits != PYR_BITS_PLAIN && pyr_cpu_part_dims(d) == d
      && d % (PYR_QUARTERS * t->k->lanes) == 0;
}

/* Packed pages of a segment. A page's values are mixed in when the next one has been scored, whose
 * softmax then need not be waited for:
 *
 *     K0    K1 V0    K2 V1    V2              p and alpha of two pages, in turns
 *
 * `block` has those of the page that is scored next, `waits` the other's; rows 0: none waits. */
typedef struct packed_pages {
  const pyr_stretch *now, *next;
  pyr_kv_block block, waits;
  int64_t row, rows;
} packed_pages;

/* A plane of a packed page: keys are scored, values mixed in. The kernels read rows where they lie,
 * or from scratch. */
static void attend_plane(const pyr_attend *t, const step_scratch *s, const packed_pages *p,
                         const pyr_kv_block *block, int64_t row, int64_t run, pyr_plane plane) {
  pyr_piece none = { 0 };
  pyr_bits bits = pyr_plane_bits(t->layout, true, plane);
  size_t skip = t->packed[plane].at, bytes = t->packed[plane].bytes;
  const uint8_t *at = (const uint8_t *)p->now->lane->pages[row / PYR_PAGE_ROWS] + skip
      + (size_t)(row % PYR_PAGE_ROWS) * bytes;
  const uint8_t *quarters = pyr_bits_quarters(bits, plane == PYR_PLANE_V);
  if (!in_bits(t, bits)) {
    pyr_piece piece = unpacked(t, s, at, bytes, run, plane);
    t->k->kv_block(block, plane == PYR_PLANE_K ? &piece : &none,
                   plane == PYR_PLANE_K ? &none : &piece, PYR_F32);
    return;
  }
  pyr_piece piece = { at, page_ahead(p->now, p->next, row, skip, at), bytes, (int)run };
  if (plane == PYR_PLANE_K) t->k->score_bits(block, &piece, quarters);
  else t->k->mix_bits(block, &piece, quarters[0]);
}

static void mix_waiting(const pyr_attend *t, const step_scratch *s, packed_pages *p) {
  if (p->rows > 0) attend_plane(t, s, p, &p->waits, p->row, p->rows, PYR_PLANE_V);
  p->rows = 0;
}

static void attend_packed(const pyr_attend *t, const step_scratch *s, packed_pages *p, int64_t row,
                          int64_t run) {
  attend_plane(t, s, p, &p->block, row, run, PYR_PLANE_K);
  mix_waiting(t, s, p);
  float *free_p = p->waits.p, *free_alpha = p->waits.alpha;
  p->waits = p->block, p->row = row, p->rows = run;
  p->block.p = free_p, p->block.alpha = free_alpha;
}

/* What packed pages left joins what plain ones did, as segments are joined; and out comes back from
 * the frame, with the values' centre as often as the weights add up to. With m 2, l 1.5 of plain
 * pages and m 3, l 1.2 of packed ones, m is 3, alpha e^-1, beta 1, and l 1.5 * 0.368 + 1.2 = 1.752;
 * of out, the packed pages' part is H out + 1.2 centre, where the weights are relative to m as l
 * is. Where no packed page was seen its m is -inf, its l 0, and nothing is added; where no plain
 * one was, alpha is 0 the same way. If neither was, both m are -inf, alpha and beta 1, and all sums
 * stay 0. */
static void join_packed(const pyr_attend *t, const pyr_kv_block *to, const pyr_kv_block *from,
                        const pyr_frame *frame) {
  bool framed = t->layout.v != PYR_BITS_PLAIN;
  for (int h = 0; h < to->heads; h++) {
    float m = fmaxf(to->m[h], from->m[h]), out[PYR_BITS_DIMS], *mixed = from->out + h * from->dims;
    float alpha = to->m[h] == m ? 1 : expf(to->m[h] - m),
        beta = from->m[h] == m ? 1 : expf(from->m[h] - m);
    if (in_bits(t, t->layout.v))
      t->k->bits_sums(mixed, from->dims, pyr_bits_quarters(t->layout.v, true)[0]);
    if (framed) pyr_frame_output(out, frame, mixed, from->l[h]);
    else memcpy(out, mixed, (size_t)t->layout.head_dim * sizeof *out);
    for (int32_t i = 0; i < t->layout.head_dim; i++)
      to->out[h * to->dims + i] = to->out[h * to->dims + i] * alpha + out[i] * beta;
    to->l[h] = to->l[h] * alpha + from->l[h] * beta;
    to->m[h] = m;
  }
}

/* One segment; `scores` [group][ld], from its first row on, if they are to be kept. Invariant:
 * m, l and out of `part` are those of the plain pages before the last one scored; that one's p wait
 * in the block until its values are mixed in. Bytes: each row's K and V once, for all heads. */
static void attend_segment(const pyr_attend *t, const pyr_attend_unit *u, const pyr_stretch *now,
                           const pyr_stretch *next, const step_scratch *s, float *scores,
                           float *part) {
  int group = t->group;
  int32_t apart[PYR_KV_BLOCK] = { 0 };     /* the page's rows from the query: -3, -2, -1, 0 */
  const pyr_attention *a = u->a;
  pyr_bend bend = { .cap = a->cap, .column = apart,
                    .slopes = a->slopes ? a->slopes + (int64_t)u->g * group : NULL };
  pyr_kv_block block = { .q = s->q, .m = part, .l = part + group,
                        .out = part + pyr_cpu_part_outs(group), .p = s->p, .alpha = s->alpha,
                        .ld = s->ld, .heads = group, .dims = (int)s->dims,
                        .bend = pyr_cpu_bends(a) ? &bend : NULL };
  packed_pages packed = { .now = now, .next = next, .block = block };
  packed.block.m = s->packed, packed.block.l = s->packed + group;
  packed.block.out = s->packed + pyr_cpu_part_outs(group);
  packed.block.p = s->packed_p[0], packed.block.alpha = s->packed_alpha[0];
  if (t->layout.k != PYR_BITS_PLAIN) {
    packed.block.q = u->framed;
    packed.block.shift = u->framed + group * s->dims;
  }
  packed.waits = packed.block;
  packed.waits.p = s->packed_p[1], packed.waits.alpha = s->packed_alpha[1];
  bool packs = now->lane->packed != NULL;
  /* A page's keys are scored in one call, its values mixed in the next, beside the keys of the page
   * after it:  call 0: K0;  call 1: K1, V0;  call 2: K2, V1;  last: V2. */
  pyr_piece scored = { 0 }, mixed = { 0 };
  begin_part(&block);
  if (packs) begin_part(&packed.block);
  pyr_dtype dtype = in_place(t, s) ? t->layout.dtype : PYR_F32;
  for (int64_t row = now->rows.low, run; row < now->rows.high; row += run) {
    run = pyr_cpu_run_in_page(row, now->rows.high - row);
    for (int64_t j = 0; a->slopes && j < run; j++)
      apart[j] = now->lane->positions[row + j] - a->q_pos[0];
    block.scores = packed.block.scores = scores ? scores + (row - now->rows.low) : NULL;
    if (pyr_cpu_is_packed(now->lane, row)) {
      /* values that wait as f32 would be overwritten */
      scored.count = 0;
      if (mixed.count > 0) t->k->kv_block(&block, &scored, &mixed, dtype);
      mixed.count = 0;
      attend_packed(t, s, &packed, row, run);
      continue;
    }
    scored = piece_at(t, s, now, next, row, run, 0);
    t->k->kv_block(&block, &scored, &mixed, dtype);
    mixed = piece_at(t, s, now, next, row, run, 1);
  }
  scored.count = 0;
  if (mixed.count > 0) t->k->kv_block(&block, &scored, &mixed, dtype);
  mix_waiting(t, s, &packed);
  if (packs) join_packed(t, &block, &packed.block, now->lane->frame);
}

/* ---- joining them ---------------------------------------------------------------------------- */

static float sink_of(const pyr_attend_unit *u, int64_t head) {
  return u->a->sinks ? u->a->sinks[head] : -INFINITY;
}

/* Parts are added in the order of segments, by whichever task ends last: the sums are the same. A
 * segment in which nothing is seen has m = -inf and l = 0, and adds nothing; if that is so of all,
 * out is 0. A NaN in a score goes through l to out: it is not hidden behind `l > 0`. */
static void join(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s,
                 const float *parts, int64_t count) {
  int64_t d = t->layout.head_dim, size = pyr_cpu_part_size(t->group, s->dims);
  for (int h = 0; h < t->group; h++) {
    int64_t at = (int64_t)u->g * t->group + h;
    float sink = sink_of(u, at), m = sink, *out = u->a->out + at * d;
    for (int64_t i = 0; i < count; i++) m = fmaxf(m, parts[i * size + h]);
    float l = sink == -INFINITY ? 0 : expf(sink - m);
    for (int64_t i = 0; i < count; i++) {
      const float *part = parts + i * size,
          *from = part + pyr_cpu_part_outs(t->group) + h * s->dims;
      /* equal also where nothing is seen: both -inf */
      float alpha = part[h] == m ? 1.0f : expf(part[h] - m);
      l += part[t->group + h] * alpha;
      for (int64_t j = 0; j < d; j++) out[j] = (i > 0 ? out[j] : 0) + from[j] * alpha;
    }
    float inverse = l > 0 || l != l ? 1.0f / l : 0;
    for (int64_t j = 0; j < d; j++) out[j] *= inverse;
    if (u->a->lse) u->a->lse[at] = l == 0 ? -INFINITY : m + logf(l);
  }
}

/* history = decay * history + w * mean over the group's heads of p; rows that are not seen have p =
 * 0. A row gets decay * history + weight * mean. Of two heads that gave it 0.2 and 0.4, with a
 * weight of 1.1 and no decay (1.0): 0.33 more. Or the highest of what it had and weight * max:
 * 0.44, if it had less. The mean, or maximum, is made in the first head's scores, which nobody
 * needs afterwards. */
static void track_step(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s) {
  const pyr_track *track = u->a->track;
  const pyr_weighting *w = &track->weighting;
  const pyr_lane_view *lane = &u->a->lanes[u->g];
  float *mean = s->scores, slope = pyr_cpu_slope(w);
  int64_t n = u->seen.high - u->seen.low, position = u->a->q_pos[0];
  for (int h = 0; h < t->group; h++) {
    float *p = s->scores + h * s->ld, l;
    float sink = sink_of(u, (int64_t)u->g * t->group + h), m = t->k->softmax(p, n, &l);
    if (sink != -INFINITY) l += expf(sink - m);
    if (track->more) l += expf(track->more[(int64_t)u->g * t->group + h] - m);
    if (track->all) l = expf(track->all[(int64_t)u->g * t->group + h] - m);
    float each = l > 0 ? 1.0f / (track->max ? l : l * (float)t->group) : 0;
    for (int64_t j = 0; j < n; j++) {
      float x = p[j] * each;
      mean[j] = h == 0 ? x : track->max ? fmaxf(mean[j], x) : mean[j] + x;
    }
  }
  for (int64_t j = 0; j < lane->rows && !track->max; j++) lane->history[j] *= track->decay;
  for (int64_t j = 0; j < n; j++) {
    float weight = 1;
    if (w->queries > 0) {
      int64_t due = pyr_cpu_due(w, u->seen.low + j - lane->rows),
          age = position - (due - w->queries + 1);
      weight = age < 0 || position > due ? 0 : 1.0f + slope * (float)age;
    }
    float *history = &lane->history[u->seen.low + j], x = weight * mean[j];
    *history = track->max ? fmaxf(*history, x) : *history + x;
  }
}

/* ---- tasks ----------------------------------------------------------------------------------- */

/* What a task of the call reads first, if it is one of a single query. */
static pyr_stretch stretch_of(const pyr_attend *t, int64_t task) {
  if (task >= t->tasks) return (pyr_stretch){ 0 };
  const pyr_attend_unit *u = pyr_cpu_unit_of(t, task);
  return u->a->n == 1 ? pyr_cpu_segment_at(u, task - u->first) : (pyr_stretch){ 0 };
}

/* All of a lane in one task. Segments in order, each with what is read after it: the next one,
 * or this thread's next task. */
static void attend_lane(const pyr_attend *t, const pyr_attend_unit *u, const pyr_stretch *next,
                        const step_scratch *s) {
  int64_t size = pyr_cpu_part_size(t->group, s->dims), count = pyr_cpu_segments_of(u);
  for (int64_t i = 0; i < count; i++) {
    pyr_stretch now = pyr_cpu_segment_at(u, i),
        after = i + 1 < count ? pyr_cpu_segment_at(u, i + 1) : *next;
    float *scores = pyr_cpu_is_tracked(u) ? s->scores + (now.rows.low - u->seen.low) : NULL;
    attend_segment(t, u, &now, &after, s, scores, s->parts + i * size);
  }
  join(t, u, s, s->parts, count);
  if (pyr_cpu_is_tracked(u)) track_step(t, u, s);
}

/* A lane's queries in its frame, as its packed pages are scored by them, and behind them their
 * products with the centre of keys. Once a lane, where its segments are many tasks: of 7,680 rows
 * 15, each of which took its queries there for itself. A lane without a frame has nothing packed,
 * and what is here is not read. */
void pyr_cpu_attend_framed(const pyr_attend *t, pyr_attend_unit *u) {
  const pyr_frame *frame = u->a->n == 1 ? u->a->lanes[u->g].frame : NULL;
  int64_t d = t->layout.head_dim, dims = pyr_cpu_part_dims(t->layout.head_dim);
  if (!frame || !frame->learned) return;
  for (int h = 0; h < t->group; h++) {
    const float *q = u->a->q + ((int64_t)u->g * t->group + h) * d;
    float scaled[PYR_BITS_DIMS], *to = u->framed + h * dims;
    for (int64_t i = 0; i < d; i++) scaled[i] = q[i] * t->scale;
    memset(to, 0, (size_t)dims * sizeof *to);
    u->framed[t->group * dims + h] = pyr_frame_query(to, frame, scaled);
    if (in_bits(t, t->layout.k))
      t->k->bits_query(to, (int)dims, pyr_bits_quarters(t->layout.k, false));
  }
}

/* Queries are scaled and padded once a task, not once a row. The counter of segments left is the
 * only thing that tasks share: who takes it to 0 sees all parts. */
void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena) {
  int64_t d = t->layout.head_dim;
  step_scratch s = step_scratch_of(&arena, t->group, (int32_t)d,
                                   u->tasks == 1 ? u->seen.high - u->seen.low : PYR_SEGMENT);
  for (int h = 0; h < t->group; h++) {
    const float *q = u->a->q + ((int64_t)u->g * t->group + h) * d;
    for (int64_t i = 0; i < s.dims; i++) s.q[h * s.dims + i] = i < d ? q[i] * t->scale : 0;
  }
  /* the threads take tasks in turn, about */
  pyr_stretch next = stretch_of(t, u->first + task + t->threads);
  if (u->tasks == 1) {
    attend_lane(t, u, &next, &s);
    return;
  }
  pyr_stretch now = pyr_cpu_segment_at(u, task);
  attend_segment(t, u, &now, &next, &s, NULL,
                 u->parts + task * pyr_cpu_part_size(t->group, s.dims));
  if (atomic_fetch_sub(&u->left, 1) == 1) join(t, u, &s, u->parts, u->tasks);
}
