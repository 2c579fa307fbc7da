/* kernels.h — the table of inner loops, compiled once for each instruction set and picked when a
 * backend opens.
 *
 * Owns: the shapes that the operations (linear.c, attention.c, …) and the inner loops (kernels.inc)
 * agree on. Everything here works on memory that the operations prepare, knows nothing of pages,
 * threads or tensors, and allocates nothing.
 *
 * One primitive carries all matrix work: `gemm`, c[m][nr] += sum over k of a[k][m] * b[k][nr], with
 * m any multiple of PYR_UNIT and nr the kernels' own panel width. Both operands have the summed
 * index outermost, so a row of b is loaded as vectors and the values of a are broadcast. Each
 * element of c is one chain of multiply-adds in the order of k, so its value does not depend on how
 * the other two dimensions are cut. */
#ifndef PYR_CPU_KERNELS_H
#define PYR_CPU_KERNELS_H

#include "base/dtype.h"
#include "base/rowbits.h"
#include "base/signs.h"

/* A head_dim of 90 takes 96 floats where PYR_PAD counts, and 92 where PYR_UNIT does. */
enum {
  PYR_UNIT = 4,          /* m of gemm, and dimensions of a head in scratch, are padded to a multiple
                            of this */
  PYR_PAD = 16,          /* rows of f32 scratch are padded with zeros to a multiple of this (the
                            widest vector) */
  PYR_DOT_WEIGHTS = 4,   /* weight rows that `dot` takes at once */
  PYR_DOT_ROWS_MAX = 4,  /* no kernels' dot_rows is larger */
  PYR_PACK = 16,        /* weight rows that lie interleaved (interleave.c), … */
  PYR_PACK_TOKENS = 8,  /* … rows of x that are multiplied with them together at most, … */
  PYR_PACKS = 2,        /* … and packs of a panel (panel.inc), */
  PYR_PANEL_BYTES = 24 * 1024,  /* … which takes no more than that */
  PYR_KV_BLOCK = 32,       /* rows that `kv_block` takes at once: a page's */
  PYR_FLASH_ROWS = 64,     /* rows of a block of pyr_flash, */
  PYR_FLASH_STEP = 32,     /* values that d is padded to a multiple of there, */
  PYR_FLASH_PARTS = 16,    /* rows that sums are made of at once, and vectors of columns at most */
  PYR_FLASH_VECTORS = 64,
};

/* Columns of a softmax that runs over tiles of rows: per column the maximum so far, m, and the sum
 * of exp(score - m), l. A tile of 64 rows by 32 columns, of queries at positions 208 to 239,
 * with rows from 192 on: column 0 sees tile rows 0 to 16 (low 0, high 209, first 192), column 31
 * rows 0 to 47. What lies beyond is -inf. */
typedef struct pyr_tile {
  float *scores;                 /* [rows, nr] scores in, probabilities (relative to `m`) out */
  const int32_t *low, *high;     /* [nr] column c sees rows low[c] <= row < high[c] */
  float *m, *l;                  /* [nr] updated */
  float *out;                    /* [dims, nr] rescaled to the new maximum */
  int32_t first, rows, dims;     /* the tile's first row, as low and high count */
} pyr_tile;

/* The attention of a few queries to a run of rows, weighted (see pyr_weighting). low and high
 * count from the strip, and may lie beyond its ends; base and due are positions. */
typedef struct pyr_strip {
  float *mass;                   /* [nr] += or max=, queries in order; squares: += p^2; entropy: +=
                                    -p ln p */
  const float *scores;           /* [n][nr] */
  const int32_t *base, *due;     /* [nr] a query counts iff base <= position <= due */
  float slope;                   /* weight = 1 + slope * (position - base) */
  bool max, squares, entropy;    /* one at most */
  bool whole;                    /* every query counts, and sees every row */
  int n;
  const float *lse;              /* [n] */
  const int32_t *position;       /* [n] */
  const int32_t *low, *high;     /* [n] strip rows low <= i < high are visible */
} pyr_strip;

/* What a model makes of scores, before they are masked: first the cap, then the slopes (see
 * pyr_attention). Queries and keys lie either way:
 *
 *     keys down      lines are keys, columns queries, whose heads' slopes are [width]    prefill
 *     else           lines are queries, of slopes [lines], columns keys                  others */
typedef struct pyr_bend {
  float *scores;                 /* [lines][width], `ld` floats from line to line; in place */
  int64_t ld;
  int lines, width;              /* width: whole vectors */
  bool keys_down;
  float cap;                     /* 0: none */
  const float *slopes;           /* NULL: none, and positions are not read */
  const int32_t *line, *column;  /* [lines], [width] positions; line NULL: all 0 */
} pyr_bend;

/* `gemm` and what prepares its operands, whose elements are single values of the summed index, or
 * pairs of them rounded to bf16: in 32 bits either way, so that both are laid out alike. A sum
 * over 5 values takes 5 elements of one, or 3 of two, whose last is paired with 0. */
typedef struct pyr_products {
  int per;                       /* values an element */
  /* dst[c*ld + r] = the element of src[r*stride + c], times scale, for r < rows and c < cols, which
   * columns (or each two of them) become; rows up to a multiple of PYR_UNIT become 0 */
  void (*transpose)(float *dst, int64_t ld, const float *src, int64_t stride, int rows,
                    int64_t cols, float scale);
  /* see above; m a multiple of PYR_UNIT, k elements */
  void (*gemm)(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb,
               int64_t m, int64_t k);
} pyr_products;

/* A block of PYR_FLASH_ROWS rows of a lane against a slice of columns, each a query of one head, in
 * attention whose products are rounded to bf16 (attention_bf16.c). Elements are pairs of bf16, as
 * above. A slice of 40 columns at the block's rows 16 to 40, which its queries see or see a part
 * of: first is the block's first row + 16, from 16, rows 25. */
typedef struct pyr_flash_step {
  const float *keys, *values;    /* the block, packed */
  const float *q;                /* [depth][width] elements, scaled */
  float *out;                    /* [dims][width] */
  float *scores;                 /* [PYR_FLASH_ROWS][width] */
  float *p;                      /* [PYR_FLASH_ROWS / 2][width] elements: pairs of rows */
  float *m, *l, *alpha;          /* [width] as in pyr_tile; alpha is what the step makes of out */
  const int32_t *low, *high;     /* [width] column c sees rows low[c] <= row < high[c] */
  int32_t first;                 /* the first of these rows, as low and high count */
  int from, rows;                /* those of the block that the slice is multiplied with; from is
                                    a multiple of `unit` */
  int columns;                   /* of the slice, <= width; others may be computed or not */
  int depth, dims;               /* elements of d, and d of values, both padded */
  int width, unit;               /* as in pyr_flash */
} pyr_flash_step;

/* Three calls make a step, the second of them `flash_softmax`, and whoever makes them may change
 * scores after the first (pyr_bend):
 *
 *     scores[r][c] = K[from + r] . q[c]
 *     m, l, alpha, and p = exp(scores - m), rounded; rows that are invisible, or fill up a `unit`,
 *     weigh 0
 *     out[d][c] = alpha[c] * out[d][c] + sum over r of V[from + r][d] * p[r][c]
 *
 * Every value is one chain in the order of d, or of rows: it does not depend on how columns are
 * cut into slices. */
typedef struct pyr_flash {
  int width, unit;               /* columns of a slice; rows that both products take at once */
  /* a block from its rows, `ld` floats each: d padded with zeros to whole steps of PYR_FLASH_STEP,
   * as are rows that are missing. values: `dims` of them, whole vectors */
  void (*pack_keys)(float *to, const float *rows, int64_t ld);
  void (*pack_values)(float *to, const float *rows, int64_t ld, int64_t dims);
  void (*scores)(const pyr_flash_step *step);
  void (*values)(const pyr_flash_step *step);
  void (*begin)(void);           /* before the first and after the last of a run of calls; NULL: */
  void (*end)(void);             /* nothing is to be done */
} pyr_flash;

/* What the weights of a block give to its rows, summed over a tile's columns head by head, from p
 * as the steps left it and m as it was then:
 *
 *     mass[h][r] = sum (or max) over columns c of head h of
 *                  weight[c] * exp(m[c] - lse[c]) * p[r][c]
 *
 * Columns are query-major: column c is of head c % group. Where weights depend on rows, base is
 * not NULL, and a column counts for row r iff base[r] <= position[c] <= due[r], by 1 + slope *
 * (position[c] - base[r]), as in pyr_strip. */
typedef struct pyr_flash_sums {
  const float *p;                /* [slices][PYR_FLASH_ROWS / 2][width] elements */
  const float *m, *lse, *weight; /* [slices * width]; lse +inf: gives nothing */
  float *factor;                 /* [slices * width] scratch */
  float *parts;                  /* [PYR_FLASH_PARTS][group * VL] scratch */
  float *mass;                   /* [group][PYR_FLASH_ROWS] written */
  const int32_t *base, *due;     /* [PYR_FLASH_ROWS], or NULL */
  const int32_t *position;       /* [slices * width] */
  float slope;
  int columns, width, group;
  bool max;
} pyr_flash_sums;

static inline int pyr_flash_padded(int n, int unit) { return (n + unit - 1) / unit * unit; }

/* Decode: one query for each of `heads` heads along the rows of a lane (see kv_block.inc).
 * Between calls p holds the weights of the page that was scored last, and alpha what they make
 * of the out before them: both wait for that page's values. */
typedef struct pyr_kv_block {
  const float *q;                /* [heads][dims], scaled; dims a multiple of PYR_PAD */
  float *m, *l, *out;            /* [heads], [heads], [heads][dims] so far; at first -inf, 0, 0 */
  float *p, *alpha;  /* [heads][PYR_KV_BLOCK], [heads] between calls; alpha is 0 at first */
  float *scores;                 /* NULL, or [heads][ld] where the scores are to be kept, too */
  int64_t ld;
  int heads, dims;
  const float *shift;            /* [heads] is added to a head's scores before they are bent; NULL:
                                    nothing */
  const pyr_bend *bend;          /* NULL, or what becomes of scores before they are kept: its cap,
                                    slopes [heads], and column [PYR_KV_BLOCK], where the scored
                                    rows lie from the query */
} pyr_kv_block;

/* A page's keys, or its values. Where rows are read in scratch, `ahead` is the scratch. */
typedef struct pyr_piece {       /* at most PYR_KV_BLOCK keys or values */
  const void *rows, *ahead;      /* `ahead`: as many that will be read next, to be asked for; any
                                    address does no harm */
  size_t stride;                 /* bytes from row to row */
  int count;
} pyr_piece;

/* One table for each instruction set. What is NULL in one is not asked for by the operations:
 * they look at cpu->int8, matmul and tiles, which are only set where the code and the processor
 * have it. */
typedef struct pyr_kernels {
  const char *name;              /* "base", …; NULL: not compiled in */
  int nr;                        /* panel width of gemm */
  int dot_rows;                  /* rows of x that `dot` takes at most */
  int row_heads;                 /* see `kv_block` */

  /* n values of any dtype (n a multiple of its block; any n for f32, f16, bf16) to f32 */
  void (*to_f32)(float *dst, const void *src, pyr_dtype dtype, int64_t n);
  void (*from_f32)(void *dst, pyr_dtype dtype, const float *src, int64_t n);
  /* out[r*PYR_DOT_WEIGHTS + i] = w[i] . x[r] for i < rows <= PYR_DOT_WEIGHTS and r < n <= dot_rows;
   * rows of w are w_stride bytes apart, those of x x_stride floats. The value for a pair does not
   * depend on rows and n. */
  void (*dot)(float *out, const void *w, size_t w_stride, pyr_dtype dtype, int rows,
              const float *x, int64_t x_stride, int n, int64_t k);
  /* NULL where the processor has no products of bytes. quantize: k values of x as 8 bits, for
   * weights of `dtype`, in int8_bytes(k) bytes; dot_int8: as `dot`, on such rows of x one after the
   * other, for quantised weights. */
  size_t (*int8_bytes)(int64_t k);
  void (*quantize)(void *row, const float *x, int64_t k, pyr_dtype dtype);
  void (*dot_int8)(float *out, const void *w, size_t w_stride, pyr_dtype dtype, int rows,
                   const void *x, int n, int64_t k);
  /* out[r*PYR_PACK + i]: likewise, for a pack of interleaved weight rows, of a dtype that has
   * PYR_KERNEL_PACKS, and n <= PYR_PACK_TOKENS rows of x, which quantize_tokens has made together
   * of such that follow each other, in as many places: in n * int8_bytes(k) bytes */
  void (*quantize_tokens)(void *tokens, const float *x, int n, int places, int64_t k,
                          pyr_dtype dtype);
  void (*dot_pack)(float *out, const void *w, pyr_dtype dtype, const void *tokens, int n,
                   int64_t k);
  /* The same for many rows of x, in PYR_PACK_TOKENS places: `groups` <= 8 groups of 32 values, from
   * group `first` on, which begins a block, of 1 or 2 packs that follow each other are unpacked
   * into PYR_PANEL_BYTES that lie at a multiple of 64; and sums[r*PYR_PACKS*PYR_PACK + i] go on by
   * the products of these, or begin with them where first is 0. Results are dot_pack's to the bit.
   * Behind the tokens further ones may be asked for; any address does no harm */
  void (*unpack_panel)(void *panel, const void *w, pyr_dtype dtype, int packs, int64_t k,
                       int64_t first, int groups);
  void (*dot_panel)(float *sums, const void *panel, pyr_dtype dtype, int packs,
                    const void *tokens, int64_t k, int64_t first, int groups);
  pyr_products f32, bf16;        /* bf16.gemm is NULL where no such code is compiled in, */
  pyr_flash flash;               /* and so is all of this, */
  void (*flash_softmax)(const pyr_flash_step *step);   /* this, and this: of any pyr_flash */
  void (*flash_sums)(const pyr_flash_sums *sums);

  void (*bend)(const pyr_bend *bend);
  void (*softmax_tile)(const pyr_tile *tile);
  void (*mass_strip)(const pyr_strip *strip);
  /* scores the rows of `scored`, and mixes in those of `mixed`: the values of the rows that the
   * call before scored. Rows are f32, f16, bf16 or q8_0; up to row_heads heads take them as they
   * are, more are better served from f32. */
  void (*kv_block)(const pyr_kv_block *s, const pyr_piece *scored, const pyr_piece *mixed,
                 pyr_dtype dtype);
  /* The same of packed rows (base/rowbits.h), in two calls: the first scores them, the second, with
   * the same rows, mixes their values in. `bits` of each quarter of keys, and of all values; dims
   * are not padded, and a multiple of 4 * `lanes`. */
  void (*score_bits)(const pyr_kv_block *s, const pyr_piece *scored, const uint8_t *bits);
  void (*mix_bits)(const pyr_kv_block *s, const pyr_piece *mixed, int bits);
  /* what is done once: q [dims] becomes what score_bits is given, and the sums that mix_bits has
   * left in out [dims] what they are (from 0s on) */
  void (*bits_query)(float *q, int dims, const uint8_t *bits);
  void (*bits_sums)(float *out, int dims, int bits);
  int lanes;                     /* values of a vector */
  /* out[j] = q . row j; out += sum over j of p[j] * row j: rows of `dims` f32, a multiple of
   * PYR_PAD, that follow each other */
  void (*dots)(float *out, const float *q, const float *rows, int64_t count, int dims);
  void (*mix)(float *out, const float *p, const float *rows, int64_t count, int dims);
  /* as pyr_signs_most (base/signs.h), to the last bit */
  float (*signs_most)(const float *scales, const uint8_t *signs, const uint8_t *table, float step,
                      int64_t groups);
  /* x[i] = exp(x[i] - m); returns the maximum m, and the sum in *l; an empty or all -inf x gives
   * -inf and 0 */
  float (*softmax)(float *x, int64_t n, float *l);

  float (*sum)(const float *x, int64_t n);
  float (*square_sum)(const float *x, int64_t n);
  /* as the backend's operation */
  void (*activate)(float *gate, const float *up, int64_t n, pyr_activation act, float limit);
  /* cosines and sines of `count` angles, to an ulp */
  void (*turns)(float *co, float *si, const float *angle, int count);
} pyr_kernels;

extern const pyr_kernels pyr_kernels_base, pyr_kernels_avx2, pyr_kernels_avx512;

#endif
