/* attention_units.c — cuts calls of attention into units and tasks (drawn in attention.h).
 *
 * Owns the cut and the memory that tasks share, which `reserve` sets aside by the same function
 * that lays it out. Knows nothing of what a task computes. The cut depends on the calls alone,
 * never on the number of threads: segments are counted from row 0 of a lane, so that the parts that
 * are joined, and with them the sums, are the same for any team and any company. */
#include "cpu/attention.h"

void pyr_cpu_attend_shared(pyr_attend *t, pyr_arena *shared, int64_t count, int64_t steps,
                           int64_t rows) {
  int64_t lanes = steps * t->kv_heads,
      part = pyr_cpu_part_size(t->group, pyr_cpu_part_dims(t->layout.head_dim)),
      parts = rows > PYR_SEGMENT ? lanes * pyr_cpu_segments_max(rows) : 0;
  t->units = pyr_arena_take(shared, lanes + count - steps, sizeof *t->units);
  t->parts = pyr_arena_take(shared, parts * part, sizeof(float));
  /* reserved whatever the layout, which is not known then: of 3 heads of 64 values 832 bytes a
   * lane, where its parts take as much for each 512 rows */
  int64_t framed = pyr_cpu_framed_size(t->group, pyr_cpu_part_dims(t->layout.head_dim));
  t->framed = pyr_arena_take(shared, lanes * framed, sizeof(float));
}

/* Rows 500 to 1,099 lie in segments 0, 1 and 2: 1,099 / 512 - 500 / 512 + 1 = 3, the first of 12
 * rows. */
int64_t pyr_cpu_segments_of(const pyr_attend_unit *u) {
  if (u->seen.high <= u->seen.low) return 1;
  return (u->seen.high - 1) / PYR_SEGMENT - u->seen.low / PYR_SEGMENT + 1;
}

/* Of those, segment 0 is rows 500 to 511, 1 is 512 to 1,023, 2 is 1,024 to 1,099. */
pyr_stretch pyr_cpu_segment_at(const pyr_attend_unit *u, int64_t segment) {
  int64_t begin = (u->seen.low / PYR_SEGMENT + segment) * PYR_SEGMENT;
  return (pyr_stretch){ &u->a->lanes[u->g], { pyr_max(u->seen.low, begin),
                                              pyr_min(u->seen.high, begin + PYR_SEGMENT) } };
}

/* A unit of one query: what it sees, and a task for each segment; one for all of a lane that is
 * tracked, as the scores of all its rows are kept to its end. */
static void cut_lane(pyr_attend *t, pyr_attend_unit *u) {
  u->seen = pyr_cpu_visible(&u->a->lanes[u->g], u->a->q_pos[0], u->a->window);
  int64_t segments = pyr_cpu_segments_of(u);
  u->tasks = pyr_cpu_is_tracked(u) ? 1 : segments;
  if (u->tasks == 1) return;
  u->parts = t->parts;
  t->parts += segments * pyr_cpu_part_size(t->group, pyr_cpu_part_dims(t->layout.head_dim));
  atomic_init(&u->left, (int)segments);
}

/* Invariant: t->tasks is the number of the next unit's first task, and t->parts where its parts
 * begin. */
void pyr_cpu_attend_cut(pyr_attend *t, const pyr_attention *a, int count) {
  int64_t lane = 0, dims = pyr_cpu_part_dims(t->layout.head_dim);
  for (int i = 0; i < count; i++)
    for (int g = 0; g < (a[i].n == 1 ? t->kv_heads : 1); g++) {
      pyr_attend_unit *u = &t->units[t->count++];
      *u = (pyr_attend_unit){ .a = &a[i], .g = g, .first = t->tasks,
                              .tasks = pyr_ceil_div(a[i].n, t->tile) * t->kv_heads };
      if (a[i].n == 1) {
        cut_lane(t, u);
        u->framed = t->framed + lane++ * pyr_cpu_framed_size(t->group, dims);
      }
      t->tasks += u->tasks;
    }
}

/* Invariant: units[low].first <= task, and the unit lies in [low, high]. */
pyr_attend_unit *pyr_cpu_unit_of(const pyr_attend *t, int64_t task) {
  int64_t low = 0, high = t->count - 1;      /* the last unit that begins at or before the task */
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (t->units[middle].first <= task) low = middle;
    else high = middle - 1;
  }
  return &t->units[low];
}
