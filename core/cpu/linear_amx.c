/* linear_amx.c — matrix products of many tokens where the processor has matrix tiles (AMX): bf16
 * at several times the rate of its vectors, whatever the weights are.
 *
 * Only where the runtime was asked for it (isa "amxbf16" or "amxint8"; precision = "bf16" or "int8"
 * in Lua, where the processor has them). x is rounded to bf16 and packed into tiles once for the
 * whole call; weights, as they lie or interleaved, a panel of rows at a time, by the task that
 * needs it. Sums are f32. f32 and f16 weights hold more than bf16 can and stay with linear.c.
 *
 * A task is a panel for all tokens:
 *
 *     pack the panel                     it stays in the second cache
 *     for tokens in blocks               a block of x stays there too, beside it,
 *       for 32 rows of the panel         these in the first cache, where they fit,
 *         for 32 tokens of the block     and these stream
 *           multiply                     four sums of 16 x 16, in registers to the end of k
 *
 * A result is one chain in the order of k: it depends neither on how tokens and rows are cut, nor
 * on what else is in the call. */
#include "cpu/cpu.h"

enum {
  FEWEST = 16,                /* tokens that pay for it, with weights as they lie, and … */
  FEWEST_INTERLEAVED = PYR_SMALL_N,  /* … with those that products of bytes take, too: 32 tokens
                                 run at 0.8 to 1.4 times the rate of these, 64 at 1.3 to 2 times */
  PANEL = 128,                /* weight rows a task at most, … */
  PANEL_BYTES = 768 * 1024,   /* … of that many bytes in tiles, if they are more than 32 */
  TOKENS_BYTES = 384 * 1024,  /* of a block of x */
};

typedef struct call {
  const pyr_cpu *cpu;
  const pyr_tensor *w;
  const float *x, *bias;
  float *out;
  uint16_t *tiles;            /* of x: [n / PYR_TILE_BLOCK] blocks */
  int64_t n, rows, cols, steps, panel, tokens;
  bool accumulate;
} call;

bool pyr_cpu_amx_takes(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n, int flags) {
  if (!cpu->tiles || !(pyr_dtype_kernels(w->dtype, false) & PYR_KERNEL_BF16)) return false;
  bool step = flags & PYR_LINEAR_EXACT;      /* which gets the same in any company: see backend.h */
  if (w->interleaved) return n >= FEWEST_INTERLEAVED && !step;
  return n >= FEWEST && (cpu->int8 || !step);
}

static int64_t panel_rows(int64_t cols) {
  int64_t bytes = pyr_round_up(cols, PYR_TILE_STEP) * (int64_t)sizeof(uint16_t),
      fit = PANEL_BYTES / bytes / PYR_TILE_BLOCK * PYR_TILE_BLOCK;
  return pyr_max(PYR_TILE_BLOCK, pyr_min(PANEL, fit));
}

static uint16_t *panel_of(pyr_arena *arena, int64_t cols) {
  return pyr_arena_take(arena, panel_rows(cols) * pyr_round_up(cols, PYR_TILE_STEP),
                        sizeof(uint16_t));
}

size_t pyr_cpu_amx_scratch(int64_t cols) {
  pyr_arena arena = { NULL, 0 };
  panel_of(&arena, cols);
  return arena.used;
}

size_t pyr_cpu_amx_tokens(int64_t n, int64_t cols) {
  int64_t values = pyr_round_up(n, PYR_TILE_BLOCK) * pyr_round_up(cols, PYR_TILE_STEP);
  return (size_t)values * sizeof(uint16_t);
}

/* Where the tiles of 16 tokens, or weight rows, begin: the i-th of all. */
static uint16_t *tiles_at(const call *c, uint16_t *blocks, int64_t i) {
  return blocks + i / 2 * c->steps * PYR_TILE_NEXT + i % 2 * PYR_TILE_VALUES;
}

/* Token tiles [begin, end). */
static void pack_tokens(const void *ctx, int64_t begin, int64_t end) {
  const call *c = ctx;
  for (int64_t i = begin; i < end; i++)
    c->cpu->tiles->pack_tokens(tiles_at(c, c->tiles, i), c->x + i * PYR_TILE * c->cols,
                               (int)pyr_min(PYR_TILE, c->n - i * PYR_TILE), c->cols);
}

/* Weight rows [row, row + count). */
static void pack_panel(const call *c, uint16_t *panel, int64_t row, int64_t count) {
  const pyr_tiles *tiles = c->cpu->tiles;
  const uint8_t *w = (const uint8_t *)c->w->data + (size_t)row * c->w->stride;
  for (int64_t r = 0; r < count; r += PYR_TILE, w += PYR_TILE * c->w->stride) {
    uint16_t *to = tiles_at(c, panel, r / PYR_TILE);
    if (c->w->interleaved) tiles->tile_pack(to, w, c->w->dtype, c->cols);
    else tiles->pack_rows(to, w, c->w->stride, c->w->dtype, (int)pyr_min(PYR_TILE, count - r),
                          c->cols);
  }
}

static void panel_task(void *ctx, int64_t task, int worker) {
  const call *c = ctx;
  const pyr_tiles *tiles = c->cpu->tiles;
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  uint16_t *panel = panel_of(&arena, c->cols);
  int64_t first = task * c->panel, count = pyr_min(c->panel, c->rows - first);
  pack_panel(c, panel, first, count);
  tiles->begin();
  for (int64_t t0 = 0; t0 < c->n; t0 += c->tokens)
    for (int64_t r = 0; r < count; r += PYR_TILE_BLOCK)
      for (int64_t t = t0; t < pyr_min(c->n, t0 + c->tokens); t += PYR_TILE_BLOCK) {
        pyr_tile_product p = {
          .x = tiles_at(c, c->tiles, t / PYR_TILE), .w = tiles_at(c, panel, r / PYR_TILE),
          .steps = c->steps, .out = c->out + t * c->rows + first + r, .ld = c->rows,
          .tokens = (int)pyr_min(PYR_TILE_BLOCK, c->n - t),
          .rows = (int)pyr_min(PYR_TILE_BLOCK, count - r),
          .bias = c->bias ? c->bias + first + r : NULL, .add = c->accumulate,
        };
        tiles->multiply(&p);
      }
  tiles->end();
}

pyr_status pyr_cpu_linear_amx(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                              const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  call c = { .cpu = cpu, .w = w, .x = x, .bias = bias, .out = out,
             .tiles = (uint16_t *)(void *)cpu->tokens, .n = n, .rows = w->shape[0],
             .cols = w->shape[1], .accumulate = flags & PYR_LINEAR_ADD };
  pyr_status status = pyr_cpu_check(be, "linear", pyr_cpu_amx_scratch(c.cols));
  if (status != PYR_OK) return status;
  if (pyr_cpu_amx_tokens(n, c.cols) > cpu->tokens_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "linear: more tokens than are reserved");
  c.steps = pyr_ceil_div(c.cols, PYR_TILE_STEP);
  int64_t share = pyr_ceil_div(c.rows, 4 * pyr_runtime_threads(be->rt));
  c.panel = pyr_min(pyr_round_up(share, PYR_TILE_BLOCK), panel_rows(c.cols));
  c.tokens = pyr_max(1, TOKENS_BYTES / (c.steps * PYR_TILE_STEP * PYR_TILE_BLOCK
                                        * (int64_t)sizeof(uint16_t))) * PYR_TILE_BLOCK;
  pyr_cpu_spans(be, pack_tokens, &c, pyr_ceil_div(n, PYR_TILE), PYR_TILE * c.cols);
  pyr_parallel(be->rt, panel_task, &c, pyr_ceil_div(c.rows, c.panel));
  return PYR_OK;
}
