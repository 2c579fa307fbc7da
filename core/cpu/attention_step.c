/* attention_step.c — attention of one query a sequence (decode), and the history that it leaves.
 *
 * A lane is walked in segments of SEGMENT rows, counted from row 0: scores of the segment's rows for all heads of the group,
 * their softmax, and the mix of V. Each row is read once, from where it lies, for all heads. A segment leaves, for each head,
 *
 *     top = max s,   sum = sum exp(s - top),   out = sum exp(s - top) v
 *
 * and segments are joined in their order by top' = max top; sum' = sum of sum * exp(top - top'); out' likewise. Each segment is
 * a task, and the last to end joins them: long lanes share threads, and the result does not depend on how many there are.
 *
 * Where the lane's history is tracked (see pyr_track) the probabilities of all its rows are needed at its end, so that one task
 * walks all segments, with the same result. */
#include "attention.h"

#include <math.h>
#include <string.h>

enum { SEGMENT = 512 };   /* rows: their scores stay in the first cache; a multiple of PYR_PAGE_ROWS */

typedef struct step_scratch {
  float *q;                /* [group][dims] */
  float *rows;             /* [PYR_PAGE_ROWS][dims] rows as f32, where the kernels do not read them as they are */
  float *p;                /* [group][ld] scores, then exp(score - top) */
  float *parts;            /* what segments leave, if one task walks them all */
  float *tops, *sums;      /* [group] of the whole lane */
  int64_t dims, ld;
} step_scratch;

static int64_t dims_of(int32_t head_dim) { return pyr_round_up(head_dim, PYR_PAD); }

/* What a segment leaves: [group] tops, [group] sums, [group][dims] outs. */
static int64_t outs_at(int32_t group) { return pyr_round_up(2 * group, PYR_PAD); }
static int64_t part_size(int32_t group, int64_t dims) { return outs_at(group) + group * dims; }

/* Segments that hold rows of a run of n rows, at most. */
static int64_t most_segments(int64_t n) { return n / SEGMENT + 2; }

static step_scratch step_scratch_of(pyr_arena *arena, int32_t group, int32_t head_dim, int64_t rows) {
  step_scratch s = { .dims = dims_of(head_dim), .ld = pyr_round_up(pyr_most(rows, SEGMENT), PYR_PAD) };
  s.q = pyr_arena_take(arena, group * s.dims, sizeof(float));
  s.rows = pyr_arena_take(arena, PYR_PAGE_ROWS * s.dims, sizeof(float));
  s.p = pyr_arena_take(arena, group * s.ld, sizeof(float));
  s.parts = pyr_arena_take(arena, most_segments(rows) * part_size(group, s.dims), sizeof(float));
  s.tops = pyr_arena_take(arena, group, sizeof(float));
  s.sums = pyr_arena_take(arena, group, sizeof(float));
  return s;
}

size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows) {
  pyr_arena arena = { NULL, 0 };
  step_scratch_of(&arena, group, head_dim, rows);
  return arena.used;
}

void pyr_cpu_step_shared(pyr_attend *t, pyr_arena *shared, int64_t count, int64_t steps, int64_t rows) {
  int64_t lanes = steps * t->kv_heads, part = part_size(t->group, dims_of(t->layout.head_dim));
  t->units = pyr_arena_take(shared, lanes + count - steps, sizeof *t->units);
  t->parts = pyr_arena_take(shared, rows > SEGMENT ? lanes * most_segments(rows) * part : 0, sizeof(float));
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

/* ---- one segment --------------------------------------------------------------------------------------------------- */

/* A segment's rows are read K first, then V, in runs of RUN rows at most. Pages lie anywhere, and the hardware looks no further
 * ahead than 4 KiB: each run asks for the rows AHEAD rows further on in that order, and the last ones for the first K of what
 * this thread is likely to read next. */
enum { RUN = 16, AHEAD = 64 };

typedef struct stretch { const pyr_lane_view *lane; pyr_span rows; } stretch;

static void fetch_ahead(const stretch *now, const stretch *next, pyr_layout layout, int64_t row, int what) {
  size_t bytes = pyr_row_bytes(layout.dtype, layout.head_dim);
  int64_t rows = now->rows.high - now->rows.low, at = row - now->rows.low + what * rows + AHEAD;
  const stretch *s = at < 2 * rows ? now : next;
  what = s == now && at >= rows;
  row = s->rows.low + at - (s == now ? what : 2) * rows;
  for (int64_t left = RUN; left > 0 && row < s->rows.high;) {
    int64_t some = pyr_least(left, PYR_PAGE_ROWS - row % PYR_PAGE_ROWS);
    const uint8_t *from = pyr_cpu_row_at(s->lane, bytes, row, what);
    for (size_t line = 0; line < (size_t)some * bytes; line += 64) __builtin_prefetch(from + line, 0, 2);
    row += some, left -= some;
  }
}

/* How many rows from `row` on are read together. */
static int64_t run_of(int64_t row, int64_t high) { return pyr_least(high - row, RUN - row % RUN); }

/* Rows that lie in one page, as the kernels are to read them: in place, or where that costs more (many heads would widen each
 * row again; dimensions that do not fill vectors) as f32 in scratch. */
typedef struct row_run { const void *rows; size_t stride; pyr_dtype dtype; } row_run;

static row_run run_at(const pyr_attend *t, const step_scratch *s, const pyr_lane_view *lane, int64_t row, int64_t count, int what) {
  size_t bytes = pyr_row_bytes(t->layout.dtype, t->layout.head_dim);
  if (s->dims == t->layout.head_dim && t->group <= t->k->row_heads)
    return (row_run){ pyr_cpu_row_at(lane, bytes, row, what), bytes, t->layout.dtype };
  pyr_cpu_load_rows(t->k, s->rows, s->dims, lane, t->layout, row, count, what);
  return (row_run){ s->rows, (size_t)s->dims * sizeof(float), PYR_F32 };
}

/* One segment; p [group][ld] begins at its first row. */
static void attend_segment(const pyr_attend *t, const stretch *now, const stretch *next, const step_scratch *s, float *p,
                           float *part) {
  const pyr_kernels *k = t->k;
  const pyr_lane_view *lane = now->lane;
  int64_t low = now->rows.low, high = now->rows.high;
  int group = t->group;
  float *top = part, *sum = part + group, *out = part + outs_at(group);
  for (int64_t row = low, run; row < high; row += run) {
    run = run_of(row, high);
    fetch_ahead(now, next, t->layout, row, 0);
    row_run r = run_at(t, s, lane, row, run, 0);
    k->scores(p + (row - low), s->ld, s->q, group, r.rows, r.stride, r.dtype, run, (int)s->dims);
  }
  for (int h = 0; h < group; h++) top[h] = k->softmax(p + h * s->ld, high - low, &sum[h]);
  memset(out, 0, (size_t)(group * s->dims) * sizeof(float));
  for (int64_t row = low, run; row < high; row += run) {
    run = run_of(row, high);
    fetch_ahead(now, next, t->layout, row, 1);
    row_run r = run_at(t, s, lane, row, run, 1);
    k->mix(out, p + (row - low), s->ld, group, r.rows, r.stride, r.dtype, run, (int)s->dims);
  }
}

/* ---- joining them -------------------------------------------------------------------------------------------------- */

static void join(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s, const float *parts, int64_t count) {
  int64_t d = t->layout.head_dim, size = part_size(t->group, s->dims);
  for (int h = 0; h < t->group; h++) {
    int64_t at = (int64_t)u->g * t->group + h;
    float top = parts[h], sum = 0, *out = u->a->out + at * d;
    for (int64_t i = 1; i < count; i++) top = fmaxf(top, parts[i * size + h]);
    for (int64_t i = 0; i < count; i++) {
      const float *part = parts + i * size, *from = part + outs_at(t->group) + h * s->dims;
      float share = part[h] == top ? 1.0f : expf(part[h] - top);   /* equal also where nothing is seen: both -inf */
      sum += part[t->group + h] * share;
      for (int64_t j = 0; j < d; j++) out[j] = (i > 0 ? out[j] : 0) + from[j] * share;
    }
    float inverse = sum > 0 || sum != sum ? 1.0f / sum : 0;
    for (int64_t j = 0; j < d; j++) out[j] *= inverse;
    if (u->a->lse) u->a->lse[at] = sum == 0 ? -INFINITY : top + logf(sum);
    s->tops[h] = top;
    s->sums[h] = sum;
  }
}

/* history = decay * history + w * mean over the group's heads of p; rows that are not seen have p = 0. */
static void track_step(const pyr_attend *t, const pyr_attend_unit *u, const step_scratch *s) {
  const pyr_track *track = u->a->track;
  const pyr_weighting *w = &track->weighting;
  const pyr_lane_view *lane = &u->a->lanes[u->g];
  float *mean = s->p, slope = pyr_cpu_slope(w);
  int64_t n = u->seen.high - u->seen.low, position = u->a->q_pos[0];
  for (int h = 0; h < t->group; h++) {
    const float *p = s->p + h * s->ld;
    float share = s->sums[h] > 0 ? 1.0f / (s->sums[h] * (float)t->group) : 0;
    if (h == 0)
      for (int64_t j = 0; j < n; j++) mean[j] = p[j] * share;
    else
      for (int64_t j = 0; j < n; j++) mean[j] += p[j] * share;
  }
  for (int64_t j = 0; j < lane->rows; j++) lane->history[j] *= track->decay;
  for (int64_t j = 0; j < n; j++) {
    float weight = 1;
    if (w->queries > 0) {
      int64_t due = pyr_cpu_due(w, u->seen.low + j - lane->rows), age = position - (due - w->queries + 1);
      weight = age < 0 || position > due ? 0 : 1.0f + slope * (float)age;
    }
    lane->history[u->seen.low + j] += weight * mean[j];
  }
}

/* p of a segment is relative to its own top: makes it relative to the lane's. */
static void level(const pyr_attend *t, const step_scratch *s, float *p, int64_t n, const float *part) {
  for (int h = 0; h < t->group; h++) {
    if (part[h] == s->tops[h]) continue;
    float share = expf(part[h] - s->tops[h]);
    for (int64_t j = 0; j < n; j++) p[h * s->ld + j] *= share;
  }
}

/* ---- tasks --------------------------------------------------------------------------------------------------------- */

static stretch segment_at(const pyr_attend_unit *u, int64_t segment) {
  int64_t begin = (u->seen.low / SEGMENT + segment) * SEGMENT;
  return (stretch){ &u->a->lanes[u->g], { pyr_most(u->seen.low, begin), pyr_least(u->seen.high, begin + SEGMENT) } };
}

/* What a task of the call reads first, if it is one of a single query. */
static stretch stretch_of(const pyr_attend *t, int64_t task) {
  if (task >= t->tasks) return (stretch){ NULL };
  const pyr_attend_unit *u = pyr_cpu_unit_of(t, task);
  return u->a->n == 1 ? segment_at(u, task - u->first) : (stretch){ NULL };
}

/* All of a lane in one task. */
static void attend_lane(const pyr_attend *t, const pyr_attend_unit *u, const stretch *next, const step_scratch *s) {
  int64_t size = part_size(t->group, s->dims), count = segments_of(u);
  for (int64_t i = 0; i < count; i++) {
    stretch now = segment_at(u, i), after = i + 1 < count ? segment_at(u, i + 1) : *next;
    attend_segment(t, &now, &after, s, s->p + (now.rows.low - u->seen.low), s->parts + i * size);
  }
  join(t, u, s, s->parts, count);
  if (!tracked(u)) return;
  for (int64_t i = 0; i < count; i++) {
    pyr_span rows = segment_at(u, i).rows;
    level(t, s, s->p + (rows.low - u->seen.low), rows.high - rows.low, s->parts + i * size);
  }
  track_step(t, u, s);
}

void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena) {
  int64_t d = t->layout.head_dim;
  step_scratch s = step_scratch_of(&arena, t->group, (int32_t)d, u->tasks == 1 ? u->seen.high - u->seen.low : SEGMENT);
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
  attend_segment(t, &now, &next, &s, s.p, u->parts + task * part_size(t->group, s.dims));
  if (atomic_fetch_sub(&u->left, 1) == 1) join(t, u, &s, u->parts, u->tasks);
}
