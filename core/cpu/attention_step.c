/* attention_step.c — attention of one query a sequence (decode), and the history that it leaves.
 *
 * A lane is walked page by page, and each row is read once, from where it lies, for all heads of
 * the group (kv_block.inc), in segments of SEGMENT rows, counted from row 0. A segment leaves, for
 * each head,
 *
 *     top = max s,   sum = sum exp(s - top),   out = sum exp(s - top) v
 *
 * and segments are joined in their order by top' = max top; sum' = sum of sum * exp(top - top');
 * out' likewise. Each segment is a task, and the last to end joins them: long lanes share threads,
 * and the result does not depend on how many there are.
 *
 * Where the lane's history is tracked (see pyr_track) the scores of all its rows are kept to its
 * end, so that one task walks all segments, with the same result. */
#include "cpu/attention.h"

#include <math.h>
#include <string.h>

enum { SEGMENT = 512 };   /* rows; a multiple of PYR_PAGE_ROWS */
_Static_assert(PYR_STRAND == PYR_PAGE_ROWS, "a page is what the kernels take at once");

typedef struct step_scratch {
  float *q;                /* [group][dims] */
  float *rows[2];          /* [PYR_PAGE_ROWS][dims] keys, values as f32, where the kernels do not
                              read them as they are */
  float *p, *share;        /* [group][PYR_STRAND], [group]: see pyr_strand */
  float *scores;           /* [group][ld] of a lane that is tracked */
  float *parts;            /* what segments leave, if one task walks them all */
  int64_t dims, ld;
} step_scratch;

static int64_t dims_of(int32_t head_dim) { return pyr_round_up(head_dim, PYR_PAD); }

/* What a segment leaves: [group] tops, [group] sums, [group][dims] outs. */
static int64_t outs_at(int32_t group) { return pyr_round_up(2 * group, PYR_PAD); }
static int64_t part_size(int32_t group, int64_t dims) { return outs_at(group) + group * dims; }

/* Segments that hold rows of a run of n rows, at most. */
static int64_t most_segments(int64_t n) { return n / SEGMENT + 2; }

static step_scratch step_scratch_of(pyr_arena *arena, int32_t group, int32_t head_dim,
                                    int64_t rows) {
  step_scratch s = { .dims = dims_of(head_dim), .ld = pyr_round_up(rows, PYR_PAD) };
  s.q = pyr_arena_take(arena, group * s.dims, sizeof(float));
  for (int what = 0; what < 2; what++)
    s.rows[what] = pyr_arena_take(arena, PYR_PAGE_ROWS * s.dims, sizeof(float));
  s.p = pyr_arena_take(arena, group * PYR_STRAND, sizeof(float));
  s.share = pyr_arena_take(arena, group, sizeof(float));
  s.scores = pyr_arena_take(arena, group * s.ld, sizeof(float));
  s.parts = pyr_arena_take(arena, most_segments(rows) * part_size(group, s.dims), sizeof(float));
  return s;
}

size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows) {
  pyr_arena arena = { NULL, 0 };
  step_scratch_of(&arena, group, head_dim, rows);
  return arena.used;
}

void pyr_cpu_step_shared(pyr_attend *t, pyr_arena *shared, int64_t count, int64_t steps,
                         int64_t rows) {
  int64_t lanes = steps * t->kv_heads, part = part_size(t->group, dims_of(t->layout.head_dim));
  t->units = pyr_arena_take(shared, lanes + count - steps, sizeof *t->units);
  t->parts = pyr_arena_take(shared, rows > SEGMENT ? lanes * most_segments(rows) * part : 0,
                            sizeof(float));
}

static bool tracked(const pyr_attend_unit *u) { return u->a->track && u->a->lanes[u->g].history; }

/* At least one, if it is empty. */
static int64_t segments_of(const pyr_attend_unit *u) {
  return u->seen.high > u->seen.low ? (u->seen.high - 1) / SEGMENT - u->seen.low / SEGMENT + 1 : 1;
}

void pyr_cpu_cut_step(pyr_attend *t, pyr_attend_unit *u) {
  u->seen = pyr_cpu_visible(&u->a->lanes[u->g], u->a->q_pos[0], u->a->window);
  int64_t segments = segments_of(u);
  u->tasks = tracked(u) ? 1 : segments;
  if (u->tasks == 1) return;
  u->parts = t->parts;
  t->parts += segments * part_size(t->group, dims_of(t->layout.head_dim));
  atomic_init(&u->left, (int)segments);
}

/* ---- one segment ----------------------------------------------------------------------------- */

typedef struct stretch { const pyr_lane_view *lane; pyr_span rows; } stretch;

/* What is read after the run that ends before `row`: the stretch's next page, or the first one that
 * this thread is likely to read then. */
static const void *after(const stretch *now, const stretch *next, size_t bytes, int64_t row,
                         int what) {
  const stretch *s = row < now->rows.high ? now : next;
  if (s == next) row = next->rows.low;
  return row < s->rows.high ? pyr_cpu_row_at(s->lane, bytes, row, what) : NULL;
}

/* Whether the kernels read rows where they lie, or, where that costs more (many heads would widen
 * each row again; dimensions that do not fill vectors), as f32 in scratch. */
static bool in_place(const pyr_attend *t, const step_scratch *s) {
  return s->dims == t->layout.head_dim && t->group <= t->k->row_heads;
}

/* Rows that lie in one page, as the kernels are to read them. */
static pyr_piece piece_at(const pyr_attend *t, const step_scratch *s, const stretch *now,
                          const stretch *next, int64_t row, int64_t count, int what) {
  size_t bytes = pyr_row_bytes(t->layout.dtype, t->layout.head_dim);
  if (in_place(t, s))
    return (pyr_piece){ pyr_cpu_row_at(now->lane, bytes, row, what),
                        after(now, next, bytes, row + count, what), bytes, (int)count };
  pyr_cpu_load_rows(t->k, s->rows[what], s->dims, now->lane, t->layout, row, count, what);
  return (pyr_piece){ s->rows[what], s->rows[what], (size_t)s->dims * sizeof(float), (int)count };
}

/* One segment; `scores` [group][ld], from its first row on, if they are to be kept. */
static void attend_segment(const pyr_attend *t, const stretch *now, const stretch *next,
                           const step_scratch *s, float *scores, float *part) {
  int group = t->group;
  pyr_strand strand = { .q = s->q, .top = part, .sum = part + group, .out = part + outs_at(group),
                        .p = s->p, .share = s->share, .scores = scores, .ld = s->ld,
                            .heads = group, .dims = (int)s->dims };
  pyr_piece scored = { 0 }, mixed = { 0 };
  for (int h = 0; h < group; h++) strand.top[h] = -INFINITY, strand.sum[h] = strand.share[h] = 0;
  memset(strand.out, 0, (size_t)(group * s->dims) * sizeof(float));
  pyr_dtype dtype = in_place(t, s) ? t->layout.dtype : PYR_F32;
  for (int64_t row = now->rows.low, run; row < now->rows.high; row += run) {
    run = pyr_cpu_run_in_page(row, now->rows.high - row);
    scored = piece_at(t, s, now, next, row, run, 0);
    t->k->strand(&strand, &scored, &mixed, dtype);
    mixed = piece_at(t, s, now, next, row, run, 1);
    if (scores) strand.scores += run;
  }
  scored.count = 0;
  t->k->strand(&strand, &scored, &mixed, dtype);
}

/* ---- joining them ---------------------------------------------------------------------------- */

static void join(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s,
                 const float *parts, int64_t count) {
  int64_t d = t->layout.head_dim, size = part_size(t->group, s->dims);
  for (int h = 0; h < t->group; h++) {
    int64_t at = (int64_t)u->g * t->group + h;
    float top = parts[h], sum = 0, *out = u->a->out + at * d;
    for (int64_t i = 1; i < count; i++) top = fmaxf(top, parts[i * size + h]);
    for (int64_t i = 0; i < count; i++) {
      const float *part = parts + i * size, *from = part + outs_at(t->group) + h * s->dims;
      /* equal also where nothing is seen: both -inf */
      float share = part[h] == top ? 1.0f : expf(part[h] - top);
      sum += part[t->group + h] * share;
      for (int64_t j = 0; j < d; j++) out[j] = (i > 0 ? out[j] : 0) + from[j] * share;
    }
    float inverse = sum > 0 || sum != sum ? 1.0f / sum : 0;
    for (int64_t j = 0; j < d; j++) out[j] *= inverse;
    if (u->a->lse) u->a->lse[at] = sum == 0 ? -INFINITY : top + logf(sum);
  }
}

/* history = decay * history + w * mean over the group's heads of p; rows that are not seen have p =
 * 0. */
static void track_step(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s) {
  const pyr_track *track = u->a->track;
  const pyr_weighting *w = &track->weighting;
  const pyr_lane_view *lane = &u->a->lanes[u->g];
  float *mean = s->scores, slope = pyr_cpu_slope(w);
  int64_t n = u->seen.high - u->seen.low, position = u->a->q_pos[0];
  for (int h = 0; h < t->group; h++) {
    float *p = s->scores + h * s->ld, sum;
    t->k->softmax(p, n, &sum);
    float share = sum > 0 ? 1.0f / (sum * (float)t->group) : 0;
    if (h == 0)
      for (int64_t j = 0; j < n; j++) mean[j] = p[j] * share;
    else
      for (int64_t j = 0; j < n; j++) mean[j] += p[j] * share;
  }
  for (int64_t j = 0; j < lane->rows; j++) lane->history[j] *= track->decay;
  for (int64_t j = 0; j < n; j++) {
    float weight = 1;
    if (w->queries > 0) {
      int64_t due = pyr_cpu_due(w, u->seen.low + j - lane->rows),
          age = position - (due - w->queries + 1);
      weight = age < 0 || position > due ? 0 : 1.0f + slope * (float)age;
    }
    lane->history[u->seen.low + j] += weight * mean[j];
  }
}

/* ---- tasks ----------------------------------------------------------------------------------- */

static stretch segment_at(const pyr_attend_unit *u, int64_t segment) {
  int64_t begin = (u->seen.low / SEGMENT + segment) * SEGMENT;
  return (stretch){ &u->a->lanes[u->g], { pyr_max(u->seen.low, begin),
                                          pyr_min(u->seen.high, begin + SEGMENT) } };
}

/* What a task of the call reads first, if it is one of a single query. */
static stretch stretch_of(const pyr_attend *t, int64_t task) {
  if (task >= t->tasks) return (stretch){ 0 };
  const pyr_attend_unit *u = pyr_cpu_unit_of(t, task);
  return u->a->n == 1 ? segment_at(u, task - u->first) : (stretch){ 0 };
}

/* All of a lane in one task. */
static void attend_lane(const pyr_attend *t, const pyr_attend_unit *u, const stretch *next,
                        const step_scratch *s) {
  int64_t size = part_size(t->group, s->dims), count = segments_of(u);
  for (int64_t i = 0; i < count; i++) {
    stretch now = segment_at(u, i), after = i + 1 < count ? segment_at(u, i + 1) : *next;
    attend_segment(t, &now, &after, s, tracked(u) ? s->scores + (now.rows.low - u->seen.low)
                   : NULL, s->parts + i * size);
  }
  join(t, u, s, s->parts, count);
  if (tracked(u)) track_step(t, u, s);
}

void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena) {
  int64_t d = t->layout.head_dim;
  step_scratch s = step_scratch_of(&arena, t->group, (int32_t)d,
                                   u->tasks == 1 ? u->seen.high - u->seen.low : SEGMENT);
  for (int h = 0; h < t->group; h++) {
    const float *q = u->a->q + ((int64_t)u->g * t->group + h) * d;
    for (int64_t i = 0; i < s.dims; i++) s.q[h * s.dims + i] = i < d ? q[i] * t->scale : 0;
  }
  /* the threads take tasks in turn, about */
  stretch next = stretch_of(t, u->first + task + t->threads);
  if (u->tasks == 1) {
    attend_lane(t, u, &next, &s);
    return;
  }
  stretch now = segment_at(u, task);
  attend_segment(t, &now, &next, &s, NULL, u->parts + task * part_size(t->group, s.dims));
  if (atomic_fetch_sub(&u->left, 1) == 1) join(t, u, &s, u->parts, u->tasks);
}
