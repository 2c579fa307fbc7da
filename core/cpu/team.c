/* team.c — what every operation of the CPU backend asks before it works: is the scratch that it
 * needs reserved, and is the work worth waking the runtime's threads for.
 *
 * Lies below the operations, as they lie below cpu.c, which fills the table with them. */
#include "cpu/cpu.h"

/* A norm of 512 tokens of 576 values: 16,384 / 576 = 28 tokens a task, 19 tasks. */
enum {
  SPAN_VALUES = 16384,   /* values that make a task of its own worth while */
  WAKING = 1 << 17,      /* multiply-adds that one thread does while the others are being woken */
};

/* An operation's scratch was reserved, or it is refused before it has written anything. (oneDNN's
 * primitives are made as they are asked for: matmul.c.) */
pyr_status pyr_cpu_check(pyr_backend *be, const char *operation, size_t needed) {
  if (needed <= pyr_cpu_of(be)->scratch_each) return PYR_OK;
  return pyr_runtime_set_error(be->rt, PYR_ARGUMENT,
                               "%s needs %zu bytes of scratch, and %zu are reserved", operation,
                               needed, pyr_cpu_of(be)->scratch_each);
}

typedef struct spans { pyr_span_fn fn; const void *ctx; int64_t n, each; } spans;

static void run_span(void *ctx, int64_t task, int worker) {
  const spans *s = ctx;
  (void)worker;
  s->fn(s->ctx, task * s->each, pyr_min(s->n, (task + 1) * s->each));
}

/* The cut depends on n and cost alone, never on the number of threads. */
void pyr_cpu_spans(pyr_backend *be, pyr_span_fn fn, const void *ctx, int64_t n, int64_t cost) {
  spans s = { fn, ctx, n, pyr_max(1, SPAN_VALUES / pyr_max(cost, 1)) };
  if (n <= 0) return;
  if (n <= s.each) fn(ctx, 0, n);
  else pyr_parallel(be->rt, run_span, &s, pyr_ceil_div(n, s.each));
}

/* Run here, all tasks take worker 0's scratch in turn. */
void pyr_cpu_tasks(pyr_backend *be, pyr_task_fn fn, void *ctx, int64_t tasks, int64_t cost) {
  if (cost >= WAKING) {
    pyr_parallel(be->rt, fn, ctx, tasks);
    return;
  }
  for (int64_t task = 0; task < tasks; task++) fn(ctx, task, 0);
}
