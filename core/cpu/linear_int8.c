/* linear_int8.c — matrix products with quantised weights by products of bytes: decode steps and
 * small batches run at the speed of reading the weights, prompts faster than by vectors of bf16.
 *
 * Only where the runtime was asked for it (isa "avx512int8" or "amxint8"; precision = "int8" in
 * Lua). Activations are rounded to 8 bits in groups of 32, each with its scale, once for the whole
 * call; products and the sums of four are exact, what follows is f32 (int8.inc). Where weights lie
 * interleaved (interleave.c) any number of tokens is taken, but for prompts that go by matrix tiles
 * (linear_amx.c); otherwise few. A token's result does not depend on the others of the call.
 *
 *     weight rows as they lie    each row is unpacked for up to four tokens        rows_task
 *     packs, few tokens          16 rows are unpacked for up to eight tokens       packs_task
 *     packs, by matrix tiles     16 rows are unpacked for all of them              tiles_task
 *     packs, many tokens         32 rows are unpacked for all of them              panels_task
 */
#include "cpu/cpu.h"

enum {
  BEFORE_BF16 = 16,          /* tokens from which bf16 (linear_bf16.c) is faster with rows as they
                                lie, where the processor has it */
  FROM_PANELS = 96,          /* … and from which packs are unpacked for all of them (panel.inc), */
  FROM_PANELS_Q3_K = 24,     /* … which saves q3_k the most */
  FROM_TILES = 9,            /* … and from which matrix tiles multiply bytes (tile_bytes.inc) */
  TOKENS_BYTES = 640 * 1024, /* of many, so many at a time stay in the second cache while a task's
                                packs go by, … */
  TOKENS_MOST = 512,         /* … and sums of so many */
};

typedef struct call {
  pyr_cpu *cpu;
  const pyr_tensor *w;
  const float *x, *bias;
  float *out;
  int64_t n, rows, cols;
  pyr_runs runs;
  const pyr_tiles *tiles;     /* that multiply bytes, or NULL */
  int64_t together, places;   /* tokens that are rounded together, and for how many there is room */
  int64_t tokens;             /* by panels: of a block */
  size_t each;                /* bytes of a token as int8 */
  bool accumulate;
} call;

/* Interleaved weights have no other way but tiles, so any number of tokens is taken. */
bool pyr_cpu_int8_takes(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n) {
  bool bytes = pyr_dtype_kernels(w->dtype, false) & PYR_KERNEL_BYTES;
  bool rounds = cpu->matmul || cpu->tiles;
  return cpu->int8 && (w->interleaved
                       || (bytes && n < (rounds ? BEFORE_BF16 : PYR_SMALL_N)));
}

/* Tokens of groups [begin, end), each of those that are multiplied together. 8 tokens that are
 * multiplied together lie value beside value (quantize_tokens); else each token is a row of its
 * own. Either takes 2.25 bytes a value: a byte, an offset of 4 bytes for each 4 and a scale and
 * a sum for each 32. */
static void quantize_groups(const void *ctx, int64_t begin, int64_t end) {
  const call *c = ctx;
  const pyr_kernels *k = c->cpu->kernels;
  for (int64_t t = begin * c->together; t < pyr_min(end * c->together, c->n); t += c->together) {
    int some = (int)pyr_min(c->together, c->n - t);
    uint8_t *to = c->cpu->x8 + (size_t)t * c->each;
    if (c->tiles) c->tiles->round_tokens(to, c->x + t * c->cols, some, c->cols);
    else if (c->w->interleaved)
      k->quantize_tokens(to, c->x + t * c->cols, some, c->places ? (int)c->places : some, c->cols,
                         c->w->dtype);
    else k->quantize(to, c->x + t * c->cols, c->cols, c->w->dtype);
  }
}

/* Of packs, `row` begins one. */
static const uint8_t *row_at(const call *c, int64_t row) {
  return (const uint8_t *)c->w->data + (size_t)row * c->w->stride;
}

/* Weight rows as they lie. */
static void rows_task(const call *c, pyr_span run) {
  const pyr_kernels *k = c->cpu->kernels;
  for (int64_t row = run.low; row < run.high; row += PYR_DOT_WEIGHTS) {
    int rows = (int)pyr_min(PYR_DOT_WEIGHTS, run.high - row);
    for (int64_t t = 0; t < c->n; t += k->dot_rows) {
      float sum[PYR_DOT_ROWS_MAX * PYR_DOT_WEIGHTS];
      int some = (int)pyr_min(k->dot_rows, c->n - t);
      k->dot_int8(sum, row_at(c, row), c->w->stride, c->w->dtype, rows,
                  c->cpu->x8 + (size_t)t * c->each, some, c->cols);
      pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sum, PYR_DOT_WEIGHTS, some, rows,
                       c->bias ? c->bias + row : NULL, c->accumulate);
    }
  }
}

/* Packs times few tokens, PYR_PACK_TOKENS at a time. Bound by the weights' bytes: a pack is read
 * from memory for the first of them, and stays near for the others. */
static void packs_task(const call *c, pyr_span run) {
  for (int64_t row = run.low; row < run.high; row += PYR_PACK)
    for (int64_t t = 0; t < c->n; t += PYR_PACK_TOKENS) {
      float sum[PYR_PACK_TOKENS * PYR_PACK];
      int some = (int)pyr_min(PYR_PACK_TOKENS, c->n - t);
      c->cpu->kernels->dot_pack(sum, row_at(c, row), c->w->dtype,
                                c->cpu->x8 + (size_t)t * c->each, some, c->cols);
      pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sum, PYR_PACK, some, PYR_PACK,
                       c->bias ? c->bias + row : NULL, c->accumulate);
    }
}

/* A worker's own: 24 KiB, and 64 KiB of sums of 512 tokens. */
typedef struct panel_scratch { void *panel; float *sums; } panel_scratch;
static panel_scratch scratch_of(pyr_arena *arena) {
  return (panel_scratch){
    .panel = pyr_arena_take(arena, PYR_PANEL_BYTES, 1),
    .sums = pyr_arena_take(arena, TOKENS_MOST * PYR_PACKS * PYR_PACK, sizeof(float)),
  };
}
/* Or a pack unpacked for tiles. */
static void *sheet_of(pyr_arena *arena, const pyr_tiles *tiles, int64_t cols) {
  return pyr_arena_take(arena, (int64_t)tiles->bytes_sheet(cols), 1);
}
/* Laid out without memory, by the same functions as in the call. */
size_t pyr_cpu_int8_scratch(const pyr_cpu *cpu, int64_t cols) {
  pyr_arena panels = { NULL, 0 }, tiles = { NULL, 0 };
  scratch_of(&panels);
  if (cpu->tiles) sheet_of(&tiles, cpu->tiles, cols);
  return panels.used > tiles.used ? panels.used : tiles.used;
}

/* Packs times tokens by matrix tiles, PYR_TILE at a time: each pack is unpacked once for all. */
static void tiles_task(const call *c, pyr_span run, int worker) {
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  void *sheet = sheet_of(&arena, c->tiles, c->cols);
  c->tiles->begin_bytes(c->w->dtype);
  for (int64_t row = run.low; row < run.high; row += PYR_PACK) {
    const void *w = c->tiles->unpack_bytes(sheet, row_at(c, row), c->w->dtype, c->cols);
    for (int64_t t = 0; t < c->n; t += PYR_TILE) {
      float sum[PYR_TILE * PYR_PACK];
      int some = (int)pyr_min(PYR_TILE, c->n - t);
      c->tiles->dot_bytes(sum, w, c->w->dtype, c->cpu->x8 + (size_t)t * c->each, some, c->cols);
      pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sum, PYR_PACK, some, PYR_PACK,
                       c->bias ? c->bias + row : NULL, c->accumulate);
    }
  }
  c->tiles->end();
}

/* Asks for a part of the step that is unpacked next, from group g of the packs `further` on: parts
 * of it while each of the first tokens are multiplied. Any address does no harm. */
static void ask_for_step(const call *c, int64_t row, int64_t g, int further, int64_t part,
                         int64_t parts) {
  enum { LINE = 64 };
  if (part >= parts) return;
  size_t pack = PYR_PACK * c->w->stride, each = PYR_PACK * pyr_dtype_bytes(c->w->dtype, 256),
      begin = each * (size_t)part / (size_t)parts, end = each * (size_t)(part + 1) / (size_t)parts;
  const uint8_t *w = row_at(c, row) + (size_t)further * pack + each * (size_t)g / 8;
  for (int s = 0; s < PYR_PACKS; s++, w += pack)
    for (size_t at = begin; at < end; at += LINE) __builtin_prefetch(w + at, 0, 2);
}

/* Of 64 weight rows of 576 columns, and 200 tokens, one task's way is
 *
 *     rows 0 .. 31     columns 0 .. 255      unpack, 25 times eight tokens     sums begin
 *                      columns 256 .. 511    unpack, 25 times eight tokens     sums go on
 *                      columns 512 .. 575    unpack, 25 times eight tokens     and go to out
 *     rows 32 .. 63    columns 0 .. 255      …
 *
 * Two packs, or one, times tokens [begin, end): a step of k is unpacked, and multiplied with all of
 * them, before the next. Sums wait in scratch, [tokens][2 packs][16 rows]. A step is 8 groups of 32
 * values, and what is left of k, of formats of such blocks. */
static void run_panels(const call *c, const panel_scratch *s, int64_t row, int packs,
                       int64_t begin, int64_t end) {
  enum { WIDTH = PYR_PACKS * PYR_PACK, GROUPS = 8 };
  const pyr_kernels *k = c->cpu->kernels;
  int64_t groups = c->cols / 32;
  for (int64_t g = 0; g < groups; g += GROUPS) {
    int some = (int)pyr_min(GROUPS, groups - g);
    bool last = g + some == groups;
    k->unpack_panel(s->panel, row_at(c, row), c->w->dtype, packs, c->cols, g, some);
    for (int64_t t = begin; t < end; t += PYR_PACK_TOKENS) {
      float *sums = s->sums + (t - begin) * WIDTH;
      ask_for_step(c, row, last ? 0 : g + some, last ? packs : 0, (t - begin) / PYR_PACK_TOKENS,
                   pyr_min(8, pyr_ceil_div(end - begin, PYR_PACK_TOKENS)));
      k->dot_panel(sums, s->panel, c->w->dtype, packs, c->cpu->x8 + (size_t)t * c->each, c->cols,
                   g, some);
      if (last)
        pyr_cpu_put_dots(c->out + t * c->rows + row, c->rows, sums, WIDTH,
                         (int)pyr_min(PYR_PACK_TOKENS, end - t), packs * PYR_PACK,
                         c->bias ? c->bias + row : NULL, c->accumulate);
    }
  }
}

/* The run is read once for each block of tokens, and these once for each 32 rows of it. */
static void panels_task(const call *c, pyr_span run, int worker) {
  pyr_arena arena = pyr_cpu_arena(c->cpu, worker);
  panel_scratch s = scratch_of(&arena);
  for (int64_t t = 0; t < c->n; t += c->tokens)
    for (int64_t row = run.low; row < run.high; row += PYR_PACKS * PYR_PACK)
      run_panels(c, &s, row, (int)pyr_min(PYR_PACKS, (run.high - row) / PYR_PACK), t,
                 pyr_min(c->n, t + c->tokens));
}

/* A run of weight rows. */
static void run_task(void *ctx, int64_t task, int worker) {
  const call *c = ctx;
  pyr_span run = pyr_cpu_run(&c->runs, task);
  if (!c->w->interleaved) rows_task(c, run);
  else if (c->tiles) tiles_task(c, run, worker);
  else if (c->places) panels_task(c, run, worker);
  else packs_task(c, run);
}

/* Tiles take packs of any number of tokens from FROM_TILES on. */
static const pyr_tiles *tiles_for(const pyr_cpu *cpu, const pyr_tensor *w, int64_t n) {
  bool takes = cpu->tiles && w->interleaved && n >= FROM_TILES && cpu->tiles->takes_bytes(w->dtype);
  return takes ? cpu->tiles : NULL;
}

/* Blocks of tokens are about equally long: 600 tokens of 1,536 values, of which 640 KiB hold 280,
 * go by 3 blocks of 200. */
pyr_status pyr_cpu_linear_int8(pyr_backend *be, float *out, const float *x, const pyr_tensor *w,
                               const float *bias, int64_t n, int flags) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  call c = { .cpu = cpu, .w = w, .x = x, .bias = bias, .out = out, .n = n, .rows = w->shape[0],
             .cols = w->shape[1], .tiles = tiles_for(cpu, w, n),
             .together = w->interleaved ? PYR_PACK_TOKENS : 1,
             .each = cpu->kernels->int8_bytes(w->shape[1]), .accumulate = flags & PYR_LINEAR_ADD };
  bool panels = w->interleaved && !c.tiles
      && n >= (w->dtype == PYR_Q3_K ? FROM_PANELS_Q3_K : FROM_PANELS);
  if (panels) c.places = PYR_PACK_TOKENS;
  if (c.tiles) c.together = PYR_TILE, c.each = c.tiles->bytes_tokens(c.cols) / PYR_TILE;
  int64_t room = panels || c.tiles ? pyr_round_up(n, c.together) : n;
  if ((size_t)room * c.each > cpu->x8_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "linear: more tokens than are reserved");
  pyr_status status = panels || c.tiles
      ? pyr_cpu_check(be, "linear", pyr_cpu_int8_scratch(cpu, c.cols)) : PYR_OK;
  if (status != PYR_OK) return status;
  int64_t fit = pyr_max(64, pyr_min(TOKENS_MOST, TOKENS_BYTES / (c.cols + c.cols / 2)));
  c.tokens = pyr_min(TOKENS_MOST, pyr_round_up(pyr_ceil_div(n, pyr_ceil_div(n, fit)),
                                               PYR_PACK_TOKENS));
  c.runs = pyr_cpu_runs(c.rows, w->stride,
                        panels ? PYR_PACKS * PYR_PACK : w->interleaved ? PYR_PACK : PYR_DOT_WEIGHTS,
                        pyr_runtime_threads(be->rt));
  pyr_cpu_spans(be, quantize_groups, &c, pyr_ceil_div(n, c.together), c.together * c.cols);
  pyr_parallel(be->rt, run_task, &c, pyr_cpu_run_count(&c.runs));
  return PYR_OK;
}
