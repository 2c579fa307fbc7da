/* attention.h — what the parts of attention share: tiles of many queries (attention.c), those whose
 * products are rounded to bf16 (attention_bf16.c), one query (attention_step.c), and how a call's
 * work is cut for the threads (attention_units.c).
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
  float *framed;                 /* one query, rows that are packed: [group][dims] queries in the
                                    lane's frame, [group] of them with the centre of keys */
  float *parts;  /* what tasks leave here for the last of them to join, if there are several, */
  atomic_int left;               /* and how many have not */
} pyr_attend_unit;

/* One call of attention, shared by all of its tasks. */
typedef struct pyr_attend {
  const pyr_kernels *k;
  const pyr_flash *flash;        /* of many queries, whose products are rounded; or NULL */
  pyr_cpu *cpu;
  pyr_attend_unit *units;
  int64_t count, tasks;          /* units, and tasks of all */
  float *parts;                  /* where the next unit's begin */
  float *framed;                 /* those of all lanes of one query */
  pyr_layout layout;
  struct { size_t at, bytes; } packed[2];   /* of K and V in packed pages: where, and of a row */
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
/* Queries in the frame of a lane, and their products with its centre: of 3 heads of 64 values
 * 3 * 64 + 16 floats. */
static inline int64_t pyr_cpu_framed_size(int32_t group, int64_t dims) {
  return group * dims + pyr_round_up(group, PYR_PAD);
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

/* ---- tiles of many queries ------------------------------------------------------------------- */

/* Columns of a tile at most, but for a group that is larger. Of head_dim 64 they take 48 KiB of q
 * and as much of out. */
enum { PYR_COLUMNS = 192 };

/* The columns of a tile, query-major: column qi * group + h is query q0 + qi of the group's head h.
 * So columns' spans of rows ascend from left to right, and the first and the last column bound what
 * a slice of them sees. Columns that fill the last slice up see nothing. */
typedef struct pyr_columns {
  float *q;                /* [slices][depth][width] transposed and scaled */
  float *out;              /* [slices][dims][width] */
  float *m, *l;            /* [columns] of the softmax so far */
  int32_t *low, *high;     /* [columns] rows each sees */
  int32_t *position;       /* [columns] and their heads' slopes, where there are any */
  float *slope;
  float *rows;             /* [width][dims]: queries, results */
  int64_t width;           /* of a slice */
  int64_t depth, dims;     /* elements of the summed index; head_dim padded */
} pyr_columns;

/* attention_columns.c: takes memory for columns of this width, depth and dims; lets those of a tile
 * begin, from query q0 of lane g on, transposed by `products`; and writes out and lse. */
void pyr_cpu_columns_take(pyr_columns *s, pyr_arena *arena, int32_t group);
void pyr_cpu_columns_begin(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s, int g,
                           int64_t q0, int64_t columns, const pyr_products *products);
void pyr_cpu_columns_end(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s, int g,
                         int64_t q0, int64_t columns);
/* Scores [rows][width] of the lane's rows from `row` on, of the slice that begins at column c. */
void pyr_cpu_columns_bend(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s,
                          float *scores, const pyr_lane_view *lane, int64_t row, int64_t rows,
                          int64_t c);

/* attention_bf16.c: all of a call that is the only one; a task of one of several; and the bytes of
 * scratch that a task needs. */
void pyr_cpu_attend_alone(pyr_attend *t, const pyr_attention *a, pyr_backend *be);
void pyr_cpu_attend_rounded(const pyr_attend *t, const pyr_attention *a, int g, int64_t q0,
                            pyr_arena arena);
size_t pyr_cpu_rounded_scratch(const pyr_flash *flash, int32_t group, int32_t head_dim);
/* What a task needs more, and all tasks together, where masses are summed. */
size_t pyr_cpu_kept_scratch(const pyr_flash *flash, const pyr_work *work);
size_t pyr_cpu_sums_bytes(const pyr_work *work);
/* Bytes that all lanes of a call take once they are packed, if many queries share them; else 0. */
size_t pyr_cpu_packed_bytes(const pyr_work *work);

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

/* attention_step.c: what the tasks of a unit of one query begin from, one task, and the bytes of
 * scratch that it needs. */
void pyr_cpu_attend_framed(const pyr_attend *t, pyr_attend_unit *u);
void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena);
size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows);

#endif
