/* tiles.h — products of bf16 by matrix tiles (AMX): the inner loops that linear_amx.c is made of,
 * those of attention (pyr_flash), and whether they may run.
 *
 * A tile is 16 rows of 64 bytes. The processor has eight, and one instruction
 *
 *     sum[t][r] += over the 32 values of a step of k: x[t][k] * w[r][k],   16 tokens, 16 rows,
 *
 * on three of them: sums are f32; x lies token by token, 32 values each; w by pairs of values, so
 * that one row of its tile has values 2i and 2i + 1 of all 16 weight rows:
 *
 *     x: | t0: k0 k1 … k31 |      w: | r0: k0 k1   | r1: k0 k1   | … | r15: k0 k1   |
 *        | t1: k0 k1 … k31 |         | r0: k2 k3   | r1: k2 k3   | … | r15: k2 k3   |
 *        | …               |         | …                                            |
 *        | t15             |         | r0: k30 k31 | …               | r15: k30 k31 |
 *
 * Both operands are packed into such tiles, PYR_TILE_VALUES each, those of 32 tokens or weight
 * rows (a block) together: for each step of k, which is padded with zeros, a tile of the first 16
 * and one of the others. Each sum is one chain in the order of k, so a token's result depends on
 * nothing else in the call. Numbers that are denormal in bf16 or f32 count as 0.
 *
 * Tiles belong to a thread and are not kept by a call (`begin`, `end`): between the two nothing but
 * what is here may use them, and after `end` they are as if they had never been used, so that
 * neither the host nor a context switch meets any. */
#ifndef PYR_CPU_TILES_H
#define PYR_CPU_TILES_H

#include "cpu/isa/kernels.h"

enum {
  PYR_TILE = 16,               /* tokens, or weight rows, of a tile */
  PYR_TILE_STEP = 32,          /* values of k */
  PYR_TILE_VALUES = PYR_TILE * PYR_TILE_STEP,
  PYR_TILE_BLOCK = 2 * PYR_TILE, /* tokens, or weight rows, of a block */
  PYR_TILE_NEXT = 2 * PYR_TILE_VALUES,   /* values from a tile to that of the next step */
};

typedef struct pyr_tile_product {
  const uint16_t *x, *w;         /* a block each: [steps][2] tiles */
  int64_t steps;
  float *out;                    /* [tokens], `ld` floats apart */
  int64_t ld;
  int tokens, rows;              /* <= PYR_TILE_BLOCK; a tile without any is not read */
  const float *bias;             /* [rows], or NULL */
  bool add;                      /* sums begin at what is in out (and the bias), not at 0 */
} pyr_tile_product;

typedef struct pyr_tiles {
  bool compiled;
  void (*begin)(void);
  void (*end)(void);
  /* `count` <= PYR_TILE tokens, `cols` floats apart, rounded to bf16; to: the first of their tiles
   * in a block; those that are missing become 0 */
  void (*pack_tokens)(uint16_t *to, const float *x, int count, int64_t cols);
  /* as many weight rows of any dtype, `stride` bytes apart */
  void (*pack_rows)(uint16_t *to, const void *w, size_t stride, pyr_dtype dtype, int count,
                    int64_t cols);
  /* PYR_PACK rows that lie interleaved (interleave.c) */
  void (*tile_pack)(uint16_t *to, const void *pack, pyr_dtype dtype, int64_t cols);
  void (*multiply)(const pyr_tile_product *p);
  /* products of bytes (tile_bytes.inc), to the bit those of `dot_pack` (kernels.h): which dtypes
   * of those that lie interleaved have them; bytes of PYR_TILE tokens, and of a pack that is
   * unpacked, of k values */
  bool (*takes_bytes)(pyr_dtype dtype);
  size_t (*bytes_tokens)(int64_t k);
  size_t (*bytes_sheet)(int64_t k);
  /* `count` <= PYR_TILE tokens, k floats apart */
  void (*round_tokens)(void *to, const float *x, int count, int64_t k);
  void (*begin_bytes)(pyr_dtype dtype);      /* instead of `begin`; ended by `end`, too */
  /* what dot_bytes reads for a pack: `sheet`, filled, or the pack where it lies */
  const void *(*unpack_bytes)(void *sheet, const void *pack, pyr_dtype dtype, int64_t k);
  /* out [PYR_TILE][PYR_PACK], of which the first n <= PYR_TILE lines are tokens' results */
  void (*dot_bytes)(float *out, const void *w, pyr_dtype dtype, const void *x, int n, int64_t k);
  pyr_flash flash;               /* attention's; its begin and end are those above */
} pyr_tiles;

extern const pyr_tiles pyr_tiles_amx;

/* tiles.c: whether processor and system have them; and &pyr_tiles_amx, if they do and this process
 * may use them, which it asks the system for; else NULL. */
bool pyr_tiles_present(void);
const pyr_tiles *pyr_tiles_open(void);

#endif
