/* cpu.c — the CPU backend: opens and closes it, its memory, its scratch, and the choice of
 * instruction set.
 *
 * Owns: the table's memory operations and the scratch of every worker. The operations themselves
 * are in linear.c, interleave.c, experts.c, attention.c, mass.c, signals.c, redundancy.c,
 * digests.c, select.c, merge.c, rows.c and elementwise.c; their inner loops in kernels.inc. This
 * file knows them all, and none of them calls it: what they share is below them, in team.c.
 *
 * Memory is the host's own, so copy, upload and download are one memcpy. Blocks are aligned to 64
 * bytes by hand, because a host's allocator promises 16: each block is 64 bytes longer than asked
 * for, and the distance to its true beginning stands in the byte before the aligned address. */
#include "cpu/attention.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#include <string.h>

enum { ALIGN = 64 };

/* ---- memory ---------------------------------------------------------------------------------- */

/* Of a block at an address that ends in 0x10: shift is 64 - 16 = 48, what is handed out ends in
 * 0x40, and the byte before it says 48. A block that is aligned already is shifted by 64, so
 * that there is always room for that byte, and a shift of at most 64 fits into it. */
static void *cpu_alloc(pyr_backend *be, size_t bytes) {
  if (bytes > SIZE_MAX - ALIGN) return NULL;
  uint8_t *block = pyr_alloc(be->rt, bytes + ALIGN);
  if (block == NULL) return NULL;
  size_t shift = ALIGN - (uintptr_t)block % ALIGN;
  block[shift - 1] = (uint8_t)shift;
  return block + shift;
}

/* `bytes` as they were asked for: the runtime counts what is held by them. */
static void cpu_release(pyr_backend *be, void *ptr, size_t bytes) {
  if (ptr == NULL) return;
  uint8_t *block = ptr;
  pyr_release(be->rt, block - block[-1], bytes + ALIGN);
}

/* memmove, as callers move parts of one block, too. */
static pyr_status cpu_copy(pyr_backend *be, void *dst, const void *src, size_t bytes) {
  (void)be;
  if (bytes) memmove(dst, src, bytes);
  return PYR_OK;
}

/* Makes a buffer of the backend's as large as asked. Contents are not kept. On failure the old
 * buffer stays, and is as large as it was. */
static pyr_status grow(pyr_backend *be, uint8_t **buffer, size_t *have, size_t bytes) {
  if (bytes <= *have) return PYR_OK;
  uint8_t *fresh = cpu_alloc(be, bytes);
  if (fresh == NULL) return pyr_nomem(be->rt, bytes, "scratch");
  cpu_release(be, *buffer, *have);
  *buffer = fresh;
  *have = bytes;
  return PYR_OK;
}

/* Room for the tokens of one product, rounded or in groups. The largest of what the ways to
 * multiply ask for: 512 tokens of 1,536 values take 516 * 1,536 * 4 bytes in groups of 12, 3
 * MiB, and half as much as bf16. Only one way is taken a call, so they share one buffer. Bytes
 * have one of their own. */
static pyr_status reserve_tokens(pyr_backend *be, const pyr_work *work) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  size_t bytes = 0;
  bool fits = pyr_mul_size((size_t)work->tokens + PYR_TOKEN_GROUP,
                           (size_t)work->cols * sizeof(float), &bytes);
  if (!fits) return pyr_nomem(be->rt, SIZE_MAX, "scratch");
  bytes = work->tokens >= PYR_SMALL_N ? pyr_cpu_grouped_bytes(work->tokens, work->cols) : 0;
  if (cpu->matmul && bytes == 0) bytes = (size_t)(work->tokens * work->cols) * sizeof(uint16_t);
  size_t both = cpu->tiles ? 2 * pyr_cpu_amx_tokens(work->tokens, work->cols) : 0;   /* an MLP's */
  if (bytes < both) bytes = both;
  pyr_status status = grow(be, &cpu->tokens, &cpu->tokens_bytes, bytes);
  if (status != PYR_OK || !cpu->int8) return status;
  if (!pyr_mul_size((size_t)pyr_round_up(work->tokens, cpu->tiles ? PYR_TILE : PYR_PACK_TOKENS),
                    cpu->kernels->int8_bytes(work->cols), &bytes))
    return pyr_nomem(be->rt, SIZE_MAX, "scratch");
  return grow(be, &cpu->x8, &cpu->x8_bytes, bytes);
}

/* Room for what the tasks of one attention share. Laid out once more without memory, by the same
 * function as in the call: sizes cannot disagree. */
static pyr_status reserve_shared(pyr_backend *be, const pyr_work *work, int32_t group) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  pyr_attend t = { .kv_heads = work->kv_heads, .group = group,
                   .layout = { .head_dim = work->head_dim } };
  pyr_arena arena = { NULL, 0 };
  pyr_cpu_attend_shared(&t, &arena, work->sequences, work->sequences, work->rows);
  pyr_status status = grow(be, &cpu->shared, &cpu->shared_bytes, arena.used);
  /* of many queries, where their products are rounded: rows packed, and sums of tiles */
  if (status != PYR_OK || !pyr_cpu_flash(cpu)) return status;
  status = grow(be, &cpu->packed, &cpu->packed_bytes, pyr_cpu_packed_bytes(work));
  if (status != PYR_OK) return status;
  return grow(be, &cpu->sums, &cpu->sums_bytes, pyr_cpu_sums_bytes(work));
}

/* Scratch grows and never shrinks; it is replaced, not resized, as nothing in it outlives a call.
 * What a call needs depends on few of the bounds: the score of a decode step is kept for all rows
 * of a lane, everything else is tiled. A worker's part is as large as the greediest operation
 * asks, as each takes its turn with it. */
static pyr_status cpu_reserve(pyr_backend *be, const pyr_work *work) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  const pyr_kernels *k = cpu->kernels;
  int32_t group = work->kv_heads > 0 ? work->heads / work->kv_heads : 1;
  size_t need[] = { pyr_cpu_linear_scratch(k, work->cols),
                    pyr_cpu_attention_scratch(cpu, group, work->head_dim, work->rows)
                        + (pyr_cpu_flash(cpu) ? pyr_cpu_kept_scratch(pyr_cpu_flash(cpu), work) : 0),
                    pyr_cpu_mass_scratch(k, group, work->head_dim),
                    pyr_cpu_merge_scratch(k, work->head_dim),
                    pyr_cpu_rotate_scratch(work->head_dim),
                    pyr_cpu_signals_scratch(k, work->head_dim, work->rows),
                    pyr_cpu_redundancy_scratch(k, work->head_dim, work->rows),
                    pyr_cpu_digests_scratch(work->head_dim, work->rows),
                    cpu->matmul ? pyr_cpu_bf16_scratch(work->tokens, work->cols) : 0,
                    cpu->tiles ? pyr_cpu_amx_scratch(work->cols) : 0,
                    cpu->int8 ? pyr_cpu_int8_scratch(cpu, work->cols) : 0 };
  size_t each = cpu->scratch_each, threads = (size_t)pyr_runtime_threads(be->rt), bytes;
  for (size_t i = 0; i < sizeof need / sizeof *need; i++)
    if (need[i] > each) each = need[i];
  pyr_status status = reserve_tokens(be, work);
  if (status == PYR_OK) status = reserve_shared(be, work, group);
  if (status == PYR_OK)
    status = grow(be, &cpu->mixture, &cpu->mixture_bytes, pyr_cpu_experts_scratch(work));
  if (status != PYR_OK || each == cpu->scratch_each) return status;
  if (!pyr_mul_size(each, threads, &bytes)) return pyr_nomem(be->rt, SIZE_MAX, "scratch");
  uint8_t *scratch = cpu_alloc(be, bytes);
  if (scratch == NULL) return pyr_nomem(be->rt, bytes, "scratch");
  cpu_release(be, cpu->scratch, cpu->scratch_each * threads);
  cpu->scratch = scratch;
  cpu->scratch_each = each;
  return PYR_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

#if defined(__x86_64__) || defined(__i386__)
/* Halves to floats; not every compiler's __builtin_cpu_supports knows "f16c". */
static bool has_f16c(void) {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

/* What a table's code was compiled for must be there, all of it: avx512 also uses what avx2 has. */
static bool supported(const pyr_kernels *k) {
  if (k->name == NULL) return false;
#if defined(__x86_64__) || defined(__i386__)
  if (k == &pyr_kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (k == &pyr_kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")
               && supported(&pyr_kernels_avx2);
#endif
  return k == &pyr_kernels_base;
}

/* Legal on a backend that was only half opened: NULL buffers have no bytes. */
static void cpu_close(pyr_backend *be) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  if (cpu == NULL) return;
  cpu_release(be, cpu->scratch, cpu->scratch_each * (size_t)pyr_runtime_threads(be->rt));
  cpu_release(be, cpu->shared, cpu->shared_bytes);
  cpu_release(be, cpu->packed, cpu->packed_bytes);
  cpu_release(be, cpu->sums, cpu->sums_bytes);
  cpu_release(be, cpu->mixture, cpu->mixture_bytes);
  cpu_release(be, cpu->tokens, cpu->tokens_bytes);
  cpu_release(be, cpu->x8, cpu->x8_bytes);
  pyr_matmul_close(cpu->matmul);
  pyr_release(be->rt, cpu, sizeof *cpu);
  be->state = NULL;
}

/* The kernels of avx512 with rounded products, only for those who ask for them: "avx512bf16"
 * multiplies a prompt's tokens as bf16; "avx512int8" those with bf16 weights, and all that meet
 * quantised weights as bytes; "amxbf16" and "amxint8" likewise, and prompts meet both kinds of
 * weights as bf16, by matrix tiles. "bf16" and "int8" are whichever of each there is, and then go
 * by its name. "bf16" takes tiles where there are some, "amxbf16" insists on them, "avx512bf16"
 * leaves them alone. */
typedef enum use_of_tiles { NEVER, WHERE_THEY_ARE, ALWAYS } use_of_tiles;
typedef struct rounding { const char *asked; bool int8; use_of_tiles tiles; } rounding;
static const rounding roundings[] = {
  { "bf16", false, WHERE_THEY_ARE }, { "amxbf16", false, ALWAYS }, { "avx512bf16", false, NEVER },
  { "int8", true, WHERE_THEY_ARE }, { "amxint8", true, ALWAYS }, { "avx512int8", true, NEVER },
};

/* NULL: kernels of f32, asked for by their name or not at all. */
static const rounding *rounding_of(const char *isa) {
  for (size_t i = 0; isa && i < sizeof roundings / sizeof *roundings; i++)
    if (strcmp(isa, roundings[i].asked) == 0) return &roundings[i];
  return NULL;
}

static pyr_status missing(pyr_runtime *rt, const char *isa) {
  return pyr_runtime_set_error(rt, PYR_DEVICE, "this processor or build has no \"%s\" kernels",
                               isa);
}

/* Tiles first, then oneDNN's products of bf16, then bytes alone: "bf16" without any of the first
 * two is refused, while "int8" is left with its bytes. What was opened before a failure is freed
 * by the caller, and holds nothing else. */
static pyr_status open_rounding(pyr_runtime *rt, pyr_cpu *cpu, const rounding *asked,
                                const char **name) {
  cpu->int8 = asked->int8;
  if (asked->tiles != NEVER) cpu->tiles = pyr_tiles_open();
  if (!cpu->tiles && asked->tiles == ALWAYS) return missing(rt, asked->asked);
  pyr_status status = cpu->tiles ? PYR_OK : pyr_matmul_open(rt, &cpu->matmul);
  if (status == PYR_OK && !cpu->tiles && !cpu->matmul && !cpu->int8)
    status = missing(rt, asked->asked);
  *name = cpu->tiles ? cpu->int8 ? "amxint8" : "amxbf16" : cpu->int8 ? "avx512int8" : "avx512bf16";
  return status;
}

/* The best kernels that this processor runs, or those that were asked for by name, or none. The
 * table is written last: until then `be` is as it was. */
pyr_status pyr_cpu_backend_open(pyr_runtime *rt, const char *isa, pyr_backend *be) {
  static const pyr_kernels *const best_first[] = { &pyr_kernels_avx512, &pyr_kernels_avx2,
                                                   &pyr_kernels_base };
  const pyr_kernels *kernels = NULL;
  const rounding *asked = rounding_of(isa);
  const char *wanted = asked ? pyr_kernels_avx512.name : isa;
  for (int i = 0; i < 3 && kernels == NULL; i++)
    if (supported(best_first[i]) && (isa == NULL
                                     || (wanted && strcmp(wanted,
                                                          best_first[i]->name) == 0))) kernels =
                                                              best_first[i];
  if (kernels == NULL) return missing(rt, isa);
  pyr_cpu *cpu = pyr_alloc_zero(rt, sizeof *cpu);
  if (cpu == NULL) return pyr_nomem(rt, sizeof *cpu, "the CPU backend");
  cpu->kernels = kernels;
  const char *name = kernels->name;
  pyr_status status = asked ? open_rounding(rt, cpu, asked, &name) : PYR_OK;
  if (status != PYR_OK) {
    pyr_release(rt, cpu, sizeof *cpu);
    return status;
  }
  *be = (pyr_backend){
    .name = name, .rt = rt, .state = cpu, .close = cpu_close,
    .alloc = cpu_alloc, .release = cpu_release, .copy = cpu_copy, .upload = cpu_copy,
        .download = cpu_copy,
    .reserve = cpu_reserve, .interleaved = pyr_cpu_interleaved, .interleave = pyr_cpu_interleave,
    .linear = pyr_cpu_linear, .attention = pyr_cpu_attention, .mass = pyr_cpu_mass,
        .select = pyr_cpu_select,
    .choose = pyr_cpu_choose, .merge = pyr_cpu_merge,
  };
  if (cpu->tiles) be->takes_mlp = pyr_cpu_takes_mlp, be->mlp = pyr_cpu_mlp;
  pyr_cpu_rows_fill(be);
  pyr_cpu_elementwise_fill(be);
  pyr_cpu_experts_fill(be);
  pyr_cpu_signals_fill(be);
  pyr_cpu_redundancy_fill(be);
  pyr_cpu_digests_fill(be);
  pyr_cpu_tiers_fill(be);
  return PYR_OK;
}
