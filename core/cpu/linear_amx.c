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
 * on what else is in the call.
 *
 * An MLP goes at once: what widens is activated block by block, while it is in the first cache,
 * and rounded to the tiles that the last product reads. Of 512 tokens, 576 by 1,536, that leaves
 * 1.5 MiB to write and read where f32 in between took 20, and a prompt of SmolLM2 takes a sixth
 * less time. */
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

enum { ROUND = PYR_TILE_BLOCK * PYR_TILE_BLOCK };   /* values of a block of an MLP */

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

/* What a task that widens has: a panel each of gate and up, and what a block makes of each. */
typedef struct widen_scratch { uint16_t *gate, *up; float *gated, *upped; } widen_scratch;
static widen_scratch widen_scratch_of(pyr_arena *arena, int64_t cols) {
  return (widen_scratch){ .gate = panel_of(arena, cols), .up = panel_of(arena, cols),
                          .gated = pyr_arena_take(arena, ROUND, sizeof(float)),
                          .upped = pyr_arena_take(arena, ROUND, sizeof(float)) };
}

/* Laid out without memory, by the same function as in the call; one panel is less. */
size_t pyr_cpu_amx_scratch(int64_t cols) {
  pyr_arena arena = { NULL, 0 };
  widen_scratch_of(&arena, cols);
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

/* Rows [r, …) of a panel of `count`, packed, times tokens [t, …). */
static pyr_tile_product product_of(const call *c, uint16_t *panel, int64_t count, int64_t r,
                                   int64_t t) {
  return (pyr_tile_product){
    .x = tiles_at(c, c->tiles, t / PYR_TILE), .w = tiles_at(c, panel, r / PYR_TILE),
    .steps = c->steps, .tokens = (int)pyr_min(PYR_TILE_BLOCK, c->n - t),
    .rows = (int)pyr_min(PYR_TILE_BLOCK, count - r),
  };
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
        pyr_tile_product p = product_of(c, panel, count, r, t);
        p.out = c->out + t * c->rows + first + r, p.ld = c->rows;
        p.bias = c->bias ? c->bias + first + r : NULL, p.add = c->accumulate;
        tiles->multiply(&p);
      }
  tiles->end();
}

/* Sizes of tasks: weight rows of a panel, so that there are four for each thread, and tokens of a
 * block, so that it stays in the second cache beside the panel. Of 1,536 rows of 576 values and two
 * threads: panels of 128 rows, as a quarter of a thread's share would be 192; 18 steps of k, so
 * that 32 tokens take 36 KiB, and blocks of 320 tokens 360. */
static void cut(call *c, int threads) {
  c->rows = c->w->shape[0], c->cols = c->w->shape[1];
  c->steps = pyr_ceil_div(c->cols, PYR_TILE_STEP);
  int64_t share = pyr_ceil_div(c->rows, 4 * threads);
  c->panel = pyr_min(pyr_round_up(share, PYR_TILE_BLOCK), panel_rows(c->cols));
  c->tokens = pyr_max(1, TOKENS_BYTES / (c->steps * PYR_TILE_STEP * PYR_TILE_BLOCK
                                         * (int64_t)sizeof(uint16_t))) * PYR_TILE_BLOCK;
}

static void pack_all(pyr_backend *be, const call *c) {
  pyr_cpu_spans(be, pack_tokens, c, pyr_ceil_div(c->n, PYR_TILE), PYR_TILE * c->cols);
}
static void multiply_all(pyr_backend *be, call *c) {
  pyr_parallel(be->rt, panel_task, c, pyr_ceil_div(c->rows, c->panel));
}

/* That scratch and room for `bytes` of tiles are reserved, for products over `cols` at most. */
static pyr_status check(pyr_backend *be, const char *operation, int64_t cols, size_t bytes) {
  pyr_status status = pyr_cpu_check(be, operation, pyr_cpu_amx_scratch(cols));
  if (status == PYR_OK && bytes > pyr_cpu_of(be)->tokens_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "%s: more tokens than are reserved",
                                 operation);
  return status;
}

pyr_status pyr_cpu_linear_amx(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                              const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  call c = { .cpu = cpu, .w = w, .x = x, .bias = bias, .out = out,
             .tiles = (uint16_t *)(void *)cpu->tokens, .n = n,
             .accumulate = flags & PYR_LINEAR_ADD };
  cut(&c, pyr_runtime_threads(be->rt));
  PYR_TRY(check(be, "linear", c.cols, pyr_cpu_amx_tokens(n, c.cols)));
  pack_all(be, &c);
  multiply_all(be, &c);
  return PYR_OK;
}

/* ---- an MLP at once -------------------------------------------------------------------------- */

/* Two passes of all threads, with a wait between them. In the first a task is a panel of rows of
 * gate and the same rows of up:
 *
 *     x tiles  *  32 rows of gate  ->  32 x 32 sums  ┐
 *     x tiles  *  32 rows of up    ->  32 x 32 sums  ┴ act(g) * u  ->  two tiles, one step of k
 *
 * The 32 rows are 32 values of k to the second pass, which multiplies down with all of them: so
 * their tiles lie in its order from the start, and are not packed again. What is rounded, and the
 * chains of sums, are those of three calls. */

/* gate without a weight: there is none. down's tiles are what the others leave. */
typedef struct mlp_call { call gate, up, down; pyr_activation activation; float limit; } mlp_call;

bool pyr_cpu_takes_mlp(const pyr_backend *be, const pyr_mlp *m) {
  const pyr_cpu *cpu = pyr_cpu_of(be);
  return m->up->shape[0] % PYR_TILE_STEP == 0
      && (!m->gate || pyr_cpu_amx_takes(cpu, m->gate, m->n, m->flags))
      && pyr_cpu_amx_takes(cpu, m->up, m->n, m->flags)
      && pyr_cpu_amx_takes(cpu, m->down, m->n, m->flags);
}

/* to [32 tokens][32 rows] = rows of a panel times tokens, and the bias. Tokens that fill the last
 * tile are zeros. */
static void widen(const call *c, uint16_t *panel, int64_t first, int64_t count, int64_t r,
                  int64_t t, float *to) {
  pyr_tile_product p = product_of(c, panel, count, r, t);
  p.tokens = (int)pyr_round_up(p.tokens, PYR_TILE);
  p.out = to, p.ld = PYR_TILE_BLOCK, p.bias = c->bias ? c->bias + first + r : NULL;
  c->cpu->tiles->multiply(&p);
}

/* A panel of gate and up for all tokens. 32 of their rows are a step of k of what is left. */
static void widen_task(void *ctx, int64_t task, int worker) {
  const mlp_call *m = ctx;
  const call *up = &m->up, *gate = m->gate.w ? &m->gate : NULL, *down = &m->down;
  const pyr_tiles *tiles = up->cpu->tiles;
  pyr_arena arena = pyr_cpu_arena(up->cpu, worker);
  widen_scratch s = widen_scratch_of(&arena, up->cols);
  int64_t first = task * up->panel, count = pyr_min(up->panel, up->rows - first), n = up->n;
  pack_panel(up, s.up, first, count);
  if (gate) pack_panel(gate, s.gate, first, count);
  tiles->begin();
  for (int64_t t0 = 0; t0 < n; t0 += up->tokens)
    for (int64_t r = 0; r < count; r += PYR_TILE_BLOCK)
      for (int64_t t = t0; t < pyr_min(n, t0 + up->tokens); t += PYR_TILE_BLOCK) {
        widen(up, s.up, first, count, r, t, gate ? s.upped : s.gated);
        if (gate) widen(gate, s.gate, first, count, r, t, s.gated);
        up->cpu->kernels->activate(s.gated, gate ? s.upped : NULL, ROUND, m->activation, m->limit);
        for (int64_t i = t; i < pyr_min(n, t + PYR_TILE_BLOCK); i += PYR_TILE)
          tiles->pack_tokens(tiles_at(down, down->tiles, i / PYR_TILE)
                             + (first + r) / PYR_TILE_STEP * PYR_TILE_NEXT,
                             s.gated + (i - t) * PYR_TILE_BLOCK, (int)pyr_min(PYR_TILE, n - i),
                             PYR_TILE_BLOCK);
      }
  tiles->end();
}

pyr_status pyr_cpu_mlp(pyr_backend *be, const pyr_mlp *mlp) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  uint16_t *tiles = (uint16_t *)(void *)cpu->tokens;
  call each = { .cpu = cpu, .x = mlp->x, .tiles = tiles, .n = mlp->n };
  mlp_call m = { .gate = each, .up = each, .down = each, .activation = mlp->activation,
                 .limit = mlp->limit };
  int threads = pyr_runtime_threads(be->rt);
  m.gate.w = mlp->gate, m.gate.bias = mlp->gate_bias;
  m.up.w = mlp->up, m.up.bias = mlp->up_bias;
  m.down.w = mlp->down, m.down.bias = mlp->down_bias;
  m.down.out = mlp->out, m.down.accumulate = mlp->flags & PYR_LINEAR_ADD;
  if (m.gate.w) cut(&m.gate, threads);
  cut(&m.up, threads);
  cut(&m.down, threads);
  size_t x = pyr_cpu_amx_tokens(mlp->n, m.up.cols),
      all = x + pyr_cpu_amx_tokens(mlp->n, m.down.cols);
  PYR_TRY(check(be, "mlp", pyr_max(m.up.cols, m.down.cols), all));
  m.down.tiles = tiles + x / sizeof(uint16_t);
  pack_all(be, &m.up);
  pyr_parallel(be->rt, widen_task, &m, pyr_ceil_div(m.up.rows, m.up.panel));
  multiply_all(be, &m.down);
  return PYR_OK;
}
