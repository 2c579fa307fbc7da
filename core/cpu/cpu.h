/* cpu.h — what the CPU backend's files share: its state, scratch, row access, and the operations
 * that fill the table. */
#ifndef PYR_CPU_H
#define PYR_CPU_H

#include "backend/backend.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/tiles.h"
#include "cpu/matmul.h"

typedef struct pyr_cpu {
  const pyr_kernels *kernels;
  pyr_matmul *matmul;      /* NULL: products are not rounded to bf16, or made by tiles */
  const pyr_tiles *tiles;  /* NULL: none, or not asked for */
  uint8_t *tokens;         /* those of one product as bf16, or as f32 in groups of PYR_TOKEN_GROUP,
                              value beside value */
  size_t tokens_bytes;
  bool int8;               /* few tokens are multiplied with quantised weights as bytes */
  uint8_t *x8;             /* the tokens of one product as int8 */
  size_t x8_bytes;
  uint8_t *scratch;        /* [threads][scratch_each], 64-byte aligned */
  size_t scratch_each;     /* bytes for each worker; a multiple of 64 */
  uint8_t *mixture;        /* what a call of `experts` gathers, likewise aligned */
  size_t mixture_bytes;
  uint8_t *shared;         /* what all tasks of one attention share, likewise aligned */
  size_t shared_bytes;
  uint8_t *packed;         /* lanes of one attention, packed for all its queries, likewise */
  size_t packed_bytes;
  uint8_t *sums;           /* what tiles of queries leave of masses, likewise */
  size_t sums_bytes;
} pyr_cpu;

/* 12 is gemm's own tile at its widest (gemm.inc), and a multiple of PYR_UNIT, as its narrower
 * ones want. */
enum { PYR_TOKEN_GROUP = 12 };

static inline pyr_cpu *pyr_cpu_of(const pyr_backend *be) { return be->state; }

static inline int64_t pyr_round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t pyr_ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static inline size_t pyr_cpu_grouped_bytes(int64_t n, int64_t cols) {
  return (size_t)(pyr_round_up(n, PYR_TOKEN_GROUP) * cols) * sizeof(float);
}
/* Room for n tokens in groups; NULL if less is reserved. */
static inline float *pyr_cpu_grouped(const pyr_backend *be, int64_t n, int64_t cols) {
  const pyr_cpu *cpu = pyr_cpu_of(be);
  return pyr_cpu_grouped_bytes(n, cols) <= cpu->tokens_bytes ? (float *)(void *)cpu->tokens : NULL;
}

/* Pieces cut from a worker's scratch, each 64-byte aligned. With base NULL it only counts, so that
 * the code that lays scratch out also tells `reserve` how much to set aside. */
typedef struct pyr_arena { uint8_t *base; size_t used; } pyr_arena;
static inline void *pyr_arena_take(pyr_arena *arena, int64_t count, size_t size) {
  void *piece = arena->base ? arena->base + arena->used : NULL;
  arena->used += (size_t)pyr_round_up(count * (int64_t)size, 64);
  return piece;
}
static inline pyr_arena pyr_cpu_arena(const pyr_cpu *cpu, int worker) {
  return (pyr_arena){ cpu->scratch + (size_t)worker * cpu->scratch_each, 0 };
}

/* Bytes of scratch that a call needs for each worker. `group` is heads / kv_heads; rows are a
 * lane's. */
size_t pyr_cpu_linear_scratch(const pyr_kernels *k, int64_t cols);
size_t pyr_cpu_bf16_scratch(int64_t tokens, int64_t cols);
size_t pyr_cpu_amx_scratch(int64_t cols);
size_t pyr_cpu_attention_scratch(const pyr_cpu *cpu, int32_t group, int32_t head_dim,
                                 int64_t rows);
size_t pyr_cpu_mass_scratch(const pyr_kernels *k, int32_t group, int32_t head_dim);
size_t pyr_cpu_merge_scratch(const pyr_kernels *k, int32_t head_dim);
size_t pyr_cpu_rotate_scratch(int32_t head_dim);
size_t pyr_cpu_signals_scratch(const pyr_kernels *k, int32_t head_dim, int64_t lag);
size_t pyr_cpu_digests_scratch(int32_t head_dim, int64_t rows);
size_t pyr_cpu_redundancy_scratch(const pyr_kernels *k, int32_t head_dim, int64_t rows);
/* ---- team.c ---------------------------------------------------------------------------------- */

/* PYR_ARGUMENT if a call needs more than was reserved. */
pyr_status pyr_cpu_check(pyr_backend *be, const char *operation, size_t needed);

/* Runs fn over [0, n) in spans, on the team if the work (n items of `cost` values each) is worth
 * waking it. */
typedef void (*pyr_span_fn)(const void *ctx, int64_t begin, int64_t end);
void pyr_cpu_spans(pyr_backend *be, pyr_span_fn fn, const void *ctx, int64_t n, int64_t cost);

/* Runs tasks on the team, or all here if together they are too little work (about `cost`
 * multiply-adds) to wake it for. */
void pyr_cpu_tasks(pyr_backend *be, pyr_task_fn fn, void *ctx, int64_t tasks, int64_t cost);

/* ---- runs of a weight's rows ----------------------------------------------------------------- */

typedef struct pyr_span { int64_t low, high; } pyr_span;

/* Rows of a weight, cut into runs, a task each. A thread's first run is half its share, its next
 * one half of what is then left, and so on, down to `least` bytes: long runs, which are read ahead,
 * and yet an end for all threads at about the same time. Runs begin at multiples of `unit`.
 * 4,096 rows of 612 bytes in packs of 16, for 4 threads: `least` is 64 KiB / 612 = 108, rounded
 * up 112.
 *
 *     round    left    a run                     runs of the 4 threads
 *       1      4096    4096 / 8 = 512            0 .. 2047
 *       2      2048    256                       2048 .. 3071
 *       3      1024    128                       3072 .. 3583
 *       4       512    64, at least 112          3584 .. 4031
 *       5        64    112, cut to what is left  4032 .. 4095         17 runs in all
 *
 * One thread gets all of it in one run. */
typedef struct pyr_runs { int64_t rows, unit, least; int threads; } pyr_runs;

static inline pyr_runs pyr_cpu_runs(int64_t rows, size_t stride, int64_t unit, int threads) {
  int64_t bytes = 64 * 1024, least = pyr_round_up(pyr_ceil_div(bytes,
      stride ? (int64_t)stride : 1), unit);
  return (pyr_runs){ rows, unit, threads > 1 ? least : pyr_round_up(rows, unit), threads };
}

/* How long a round's runs are, one for each thread, where `left` rows are left. */
static inline int64_t pyr_cpu_run_length(const pyr_runs *r, int64_t left) {
  return pyr_max(r->least, pyr_round_up(pyr_ceil_div(left, 2 * r->threads), r->unit));
}

/* The rows of a run; empty after the last one. Invariant: rows before `begin` belong to earlier
 * rounds, and `task` counts from this one. A handful of rounds: each leaves half. */
static inline pyr_span pyr_cpu_run(const pyr_runs *r, int64_t task) {
  for (int64_t begin = 0;; task -= r->threads) {
    int64_t left = r->rows - begin, run = pyr_cpu_run_length(r, left);
    if (task < r->threads || left <= run * r->threads)
      return (pyr_span){ pyr_min(r->rows, begin + task * run),
                         pyr_min(r->rows, begin + (task + 1) * run) };
    begin += run * r->threads;
  }
}

/* Ends with the round whose runs, all together, hold what is left. */
static inline int64_t pyr_cpu_run_count(const pyr_runs *r) {
  int64_t left = r->rows, run, count = 0;
  for (; left > (run = pyr_cpu_run_length(r, left)) * r->threads; left -= run * r->threads)
    count += r->threads;
  return count + pyr_ceil_div(left, run);
}

/* Writes what `dot` left, `width` sums a token, for `count` weight rows and `some` tokens, `rows`
 * floats apart. The kernels leave sums in a layout of their own, as they know nothing of what
 * lies beside them in `out`; bias and addition are made here, once a value. */
static inline void pyr_cpu_put_dots(float *out, int64_t rows, const float *sum, int width,
                                    int some, int count, const float *bias, bool accumulate) {
  for (int r = 0; r < some; r++, out += rows)
    for (int i = 0; i < count; i++) {
      float value = sum[r * width + i] + (bias ? bias[i] : 0);
      out[i] = accumulate ? out[i] + value : value;
    }
}

/* interleave.c: the two entries of the table, and n values of a row from column col on, whole
 * blocks, in whatever order w lies. */
int32_t pyr_cpu_interleaved(const pyr_backend *be, const pyr_tensor *w);
pyr_status pyr_cpu_interleave(pyr_backend *be, void *to, const pyr_tensor *w);
void pyr_cpu_weights(const pyr_kernels *k, float *dst, const pyr_tensor *w, int64_t row,
                     int64_t col, int64_t n);

/* What attention of many queries multiplies with, where it is rounded to bf16; else NULL. */
static inline const pyr_flash *pyr_cpu_flash(const pyr_cpu *cpu) {
  return cpu->tiles ? &cpu->tiles->flash : cpu->matmul ? &cpu->kernels->flash : NULL;
}

/* What the score pass multiplies with. */
static inline const pyr_products *pyr_cpu_products(const pyr_cpu *cpu) {
  return cpu->matmul || cpu->tiles ? &cpu->kernels->bf16 : &cpu->kernels->f32;
}

/* Rows from `row` on that lie in one page, at most `count`. */
static inline int64_t pyr_cpu_run_in_page(int64_t row, int64_t count) {
  return pyr_min(count, PYR_PAGE_ROWS - row % PYR_PAGE_ROWS);
}

static inline bool pyr_cpu_is_packed(const pyr_lane_view *lane, int64_t row) {
  return lane->packed && lane->packed[row / PYR_PAGE_ROWS];
}

/* K or V of a row of a plain page, or K as it came; `bytes` is pyr_row_bytes. Row 40 of V, of 128
 * bytes a row: page 1, (40 % 32 + 1 * 32) * 128 = 5,120 bytes into it. */
static inline uint8_t *pyr_cpu_row_at(const pyr_lane_view *lane, size_t bytes, int64_t row,
                                      pyr_plane plane) {
  return (uint8_t *)lane->pages[row / PYR_PAGE_ROWS]
      + (size_t)(row % PYR_PAGE_ROWS + plane * PYR_PAGE_ROWS) * bytes;
}

/* The same in a page of any kind, and one row there from and to f32 [head_dim]. */
uint8_t *pyr_cpu_place(const pyr_lane_view *lane, pyr_layout layout, int64_t row,
                       pyr_plane plane);
void pyr_cpu_get_row(const pyr_kernels *k, float *dst, const pyr_lane_view *lane,
                     pyr_layout layout, int64_t row, pyr_plane plane);
void pyr_cpu_set_row(const pyr_kernels *k, const pyr_lane_view *lane, pyr_layout layout,
                     int64_t row, pyr_plane plane, const float *src);

/* Rows [begin, begin+count) of K or V as f32, `ld` >= head_dim floats apart; the
 * rest of each is zeroed. */
void pyr_cpu_load_rows(const pyr_kernels *k, float *dst, int64_t ld, const pyr_lane_view *lane,
                       pyr_layout layout, int64_t begin, int64_t count, pyr_plane plane);

/* Rows [low, high) that a query at `position` sees: positions ascend, so they are a run. Of rows
 * at positions 0 1 4 6 9, a query at 6 sees [0, 4); with a window of 3, positions 4 to 6, it
 * sees [2, 4). */
pyr_span pyr_cpu_visible(const pyr_lane_view *lane, int32_t position, int32_t window);

/* due(j) of pyr_weighting. With due 9, threshold 1, every 4 (track.h): rows j <= 0 are due at 9,
 * 1 to 4 at 13, 5 to 8 at 17. */
static inline int64_t pyr_cpu_due(const pyr_weighting *w, int64_t j) {
  return w->due + (w->every > 0 && j >= w->threshold
                   ? ((j - w->threshold) / w->every + 1) * w->every : 0);
}
/* A ramp to 1.3 over 4 queries: 0.1 from one to the next. */
static inline float pyr_cpu_slope(const pyr_weighting *w) {
  return w->queries > 1 ? (w->ramp - 1.0f) / (float)(w->queries - 1) : 0.0f;
}

/* The operations, documented in backend.h. */
pyr_status pyr_cpu_linear(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                          const float *bias, int64_t n, int flags);
pyr_status pyr_cpu_activate(pyr_backend *be, float *gate, const float *up, int64_t count,
                            pyr_activation act, float limit);
pyr_status pyr_cpu_attention(pyr_backend *be, const pyr_attention *a, int count, pyr_layout layout,
                             int32_t heads, int32_t kv_heads, float scale);
pyr_status pyr_cpu_mass(pyr_backend *be, const pyr_mass *m, pyr_layout layout, int32_t heads,
                        int32_t kv_heads, float scale);
pyr_status pyr_cpu_select(pyr_backend *be, int32_t *idx, const float *score, int64_t n, int64_t k,
                          int32_t offset);
pyr_status pyr_cpu_choose(pyr_backend *be, const pyr_choice *c);
pyr_status pyr_cpu_merge(pyr_backend *be, const pyr_lane_view *lane, pyr_layout layout,
                         const int32_t *idx, int64_t k, float threshold, int32_t *links);
/* Many tokens where bf16 is multiplied in hardware (linear_bf16.c), and whether it takes n tokens
 * and weights of a dtype. */
bool pyr_cpu_bf16_takes(const pyr_cpu *cpu, pyr_dtype dtype, int64_t n);
pyr_status pyr_cpu_linear_bf16(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                               const float *bias, int64_t n, int flags);
/* Many tokens where the processor has matrix tiles (linear_amx.c), whether it takes them, and the
 * bytes of n tokens in tiles. */
bool pyr_cpu_amx_takes(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n, int flags);
pyr_status pyr_cpu_linear_amx(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                              const float *bias, int64_t n, int flags);
size_t pyr_cpu_amx_tokens(int64_t n, int64_t cols);
/* … and whole MLPs by them. */
bool pyr_cpu_takes_mlp(const pyr_backend *be, const pyr_mlp *m);
pyr_status pyr_cpu_mlp(pyr_backend *be, const pyr_mlp *mlp);
/* Quantised weights where bytes are multiplied in hardware (linear_int8.c), and whether it takes
 * them and n tokens. */
bool pyr_cpu_int8_takes(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n);
pyr_status pyr_cpu_linear_int8(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                               const float *bias, int64_t n, int flags);
size_t pyr_cpu_int8_scratch(const pyr_cpu *cpu, int64_t cols);
size_t pyr_cpu_experts_scratch(const pyr_work *work);
void pyr_cpu_experts_fill(pyr_backend *be);       /* experts.c: route, experts */
void pyr_cpu_rows_fill(pyr_backend *be);          /* rows.c: store, gather, rotate, row_norms */
void pyr_cpu_elementwise_fill(pyr_backend *be);   /* elementwise.c: everything on single values and
                                                     tokens */
void pyr_cpu_signals_fill(pyr_backend *be);       /* signals.c: what rows, queries and weights say
                                                     of rows */
void pyr_cpu_redundancy_fill(pyr_backend *be);    /* redundancy.c */
void pyr_cpu_digests_fill(pyr_backend *be);       /* digests.c: digest, pick_pages */
void pyr_cpu_tiers_fill(pyr_backend *be);         /* tiers.c: move_rows, join */

#endif
