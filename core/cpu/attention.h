/* attention.h — what the parts of attention share: tiles of many queries (attention.c), one query
 * (attention_step.c), and how a call's work is cut for the threads (attention_units.c).
 *
 * A call's work is cut into units, each a run of tasks: all tiles of a sequence with many queries,
 * or one lane of a sequence with one. For two KV heads, tiles of 64 queries, and lanes of B's of
 * which 600 rows are seen:
 *
 *     calls    A: 150 queries, 3 tiles        B: 1 query
 *     units    0: all of A                    1: B's lane 0          2: B's lane 1
 *     tasks    0 1 2 3 4 5 (tile, lane),      6: rows   0 to 511     8: rows   0 to 511
 *              the last tile first            7: rows 512 to 599     9: rows 512 to 599
 *
 * A thread takes the next task number and finds its unit by bisection (pyr_cpu_unit_of). */
#ifndef PYR_CPU_ATTENTION_H
#define PYR_CPU_ATTENTION_H

#include "cpu/cpu.h"

#include <stdatomic.h>

enum { PYR_SEGMENT = 512 };   /* rows of a lane that one task of one query walks; whole pages */
_Static_assert(PYR_SEGMENT % PYR_PAGE_ROWS == 0, "segments begin with a page");
_Static_assert(PYR_SLIDE_ROWS % PYR_SEGMENT == 0, "what slides away are whole segments");

/* Written by the cut, read by tasks; `left` alone changes while they run. */
typedef struct pyr_attend_unit {
  const pyr_attention *a;
  int g;                         /* one query: the lane */
  int64_t first, tasks;
  pyr_span seen;                 /* one query: the rows it sees, */
  float *parts;  /* what tasks leave here for the last of them to join, if there are several, */
  atomic_int left;               /* and how many have not */
} pyr_attend_unit;

/* One call of attention, shared by all of its tasks. */
typedef struct pyr_attend {
  const pyr_kernels *k;
  const pyr_products *products;  /* of many queries */
  pyr_cpu *cpu;
  pyr_attend_unit *units;
  int64_t count, tasks;          /* units, and tasks of all */
  float *parts;                  /* where the next unit's begin */
  pyr_layout layout;
  int32_t heads, kv_heads, group, tile;
  int threads;
  float scale;
} pyr_attend;

/* Rows that one task walks, and the lane they are of; an empty one, zeros, is none. */
typedef struct pyr_stretch { const pyr_lane_view *lane; pyr_span rows; } pyr_stretch;

/* What a segment leaves for the join: [group] m, [group] l, [group][dims] outs, at these places.
 * Of 3 heads of 64 values: m 0 .. 2, l 3 .. 5, outs from 16 on, 16 + 3 * 64 = 208 floats a part. */
static inline int64_t pyr_cpu_part_dims(int32_t head_dim) {
  return pyr_round_up(head_dim, PYR_PAD);
}
static inline int64_t pyr_cpu_part_outs(int32_t group) { return pyr_round_up(2 * group, PYR_PAD); }
static inline int64_t pyr_cpu_part_size(int32_t group, int64_t dims) {
  return pyr_cpu_part_outs(group) + group * dims;
}

/* Segments that hold rows of a run of n rows, at most. 600 rows that begin at 500 touch segments
 * 0, 1 and 2: one more at either end than 600 / 512. */
static inline int64_t pyr_cpu_segments_max(int64_t n) { return n / PYR_SEGMENT + 2; }

/* Whether the lane keeps what its rows were given: one task then walks all of it. Cache and
 * policy decide; a lane without a history has nowhere to keep it. */
static inline bool pyr_cpu_is_tracked(const pyr_attend_unit *u) {
  return u->a->track && u->a->lanes[u->g].history;
}

/* Whether scores become something else before they are masked. */
static inline bool pyr_cpu_bends(const pyr_attention *a) { return a->cap > 0 || a->slopes; }

/* attention_units.c */

/* Lays out in `shared` what all tasks of a call use: units and parts, for `count` sequences of
 * which `steps` have one query, of at most `rows` rows a lane. */
void pyr_cpu_attend_shared(pyr_attend *t, pyr_arena *shared, int64_t count, int64_t steps,
                           int64_t rows);
/* Cuts the calls into units, in that memory. */
void pyr_cpu_attend_cut(pyr_attend *t, const pyr_attention *a, int count);
/* The unit that a task (counted over all units) belongs to. */
pyr_attend_unit *pyr_cpu_unit_of(const pyr_attend *t, int64_t task);
/* Of a unit of one query: its segments, at least one, if it is empty; and the rows of one. */
int64_t pyr_cpu_segments_of(const pyr_attend_unit *u);
pyr_stretch pyr_cpu_segment_at(const pyr_attend_unit *u, int64_t segment);

/* attention_step.c: one task of a unit of one query, and the bytes of scratch that it needs. */
void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena);
size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows);

#endif
