/* attention.h — what the two halves of attention share: tiles of many queries (attention.c) and one
 * query (attention_step.c).
 *
 * A call's work is cut into units, each a run of tasks: all tiles of a sequence with many queries,
 * or one lane of a sequence with one. */
#ifndef PYR_CPU_ATTENTION_H
#define PYR_CPU_ATTENTION_H

#include "cpu/cpu.h"

#include <stdatomic.h>

typedef struct pyr_attend_unit {
  const pyr_attention *a;
  int g;                         /* one query: the lane */
  int64_t first, tasks;
  pyr_span seen;                 /* one query: the rows it sees, */
  float *parts;  /* what tasks leave here for the last of them to join, if there are several, */
  atomic_int left;               /* and how many have not */
} pyr_attend_unit;

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

/* The unit that a task (counted over all units) belongs to. */
pyr_attend_unit *pyr_cpu_unit_of(const pyr_attend *t, int64_t task);

/* Sets a unit of one query up: what it sees, and its tasks. */
void pyr_cpu_cut_step(pyr_attend *t, pyr_attend_unit *u);
void pyr_cpu_attend_step(const pyr_attend *t, pyr_attend_unit *u, int64_t task, pyr_arena arena);

/* Bytes of a worker's scratch; and what all tasks of a call share: units and parts, for `count`
 * sequences of which `steps` have one query, of at most `rows` rows a lane. */
size_t pyr_cpu_step_scratch(int32_t group, int32_t head_dim, int64_t rows);
void pyr_cpu_step_shared(pyr_attend *t, pyr_arena *shared, int64_t count, int64_t steps,
                         int64_t rows);

#endif
