/* packed.h — matrices that several tensors of a file make up: numbers of few bits, and what they
 * are to be multiplied by.
 *
 * Hugging Face checkpoints come quantised in three layouts. In all of them a value is
 *
 *     value = scale * (number - zero)
 *
 * with a scale and a zero for each group of values. Of a matrix [out, in], p numbers in a word of
 * 32 bits (lowest bits first), groups of g columns:
 *
 *     SCALED  numbers  fp8_e4m3 [out, in]                   no zeros
 *             scales   [out / g0, in / g1], rounded up      128 x 128; one a matrix; one a row
 *     GPTQ    numbers  [in / p, out]: a word is p columns of one row
 *             zeros    [groups, out / p], minus 1 in the format's first version
 *             scales   [groups, out]
 *             order    [in] the group of each column ("act order"); or none: column / g
 *     AWQ     numbers  [in, out / 8]: a word is 8 rows of one column, dealt 0 2 4 6 1 3 5 7
 *             zeros    [groups, out / 8], dealt likewise
 *             scales   [groups, out]
 *     MXFP4   numbers  fp4 [out, in / 2]: a byte is two columns, the first in its low half
 *             scales   [out, in / 32] exponents e of 2^(e-127); no zeros
 *             rows may lie `apart` rows of numbers and of scales from each other
 *
 * Sources: DeepSeek-V3's weight format; AutoGPTQ's and GPTQModel's and AutoAWQ's own
 * dequantisation, held against them by scripts/maker/oracle/packed.py; transformers' of GPT-OSS.
 * Owns nothing: views of files (weights.h). Nothing that a file says is believed: a description
 * becomes a view only when all parts have just the bytes that its shape asks for, and each column a
 * group that exists. */
#ifndef PYR_PACKED_H
#define PYR_PACKED_H

#include "base/runtime.h"
#include "base/weights.h"

enum { PYR_PACKED_STRIP = 16 };   /* rows that are unpacked at once: they share cache lines */

typedef struct pyr_span { const uint8_t *at; size_t bytes; } pyr_span;   /* of a file, unaligned */

typedef struct pyr_packed {
  pyr_packing_kind kind;
  int bits;
  pyr_dtype scale_dtype;
  uint32_t plus;                  /* added to a word of zeros */
  int64_t rows, cols, group_rows, group_cols, groups;   /* groups: of columns */
  int64_t apart;                  /* MXFP4: row r lies where a row r * apart would; else 1 */
  pyr_span numbers, scales, zeros, order;               /* at NULL: none */
} pyr_packed;

/* From a description with a packing. PYR_FORMAT with tensor and part in the message,
 * PYR_UNSUPPORTED for bits that nothing has; *out untouched. */
pyr_status pyr_packed_open(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_packed *out);

/* The files of the packing's parts live until they are released. */
void pyr_packing_retain(const pyr_packing *packing);
void pyr_packing_release(const pyr_packing *packing);

/* Floats of scratch that a worker needs for pyr_packed_rows. */
size_t pyr_packed_scratch(const pyr_packed *p);

/* Rows [row, row+n), 1 <= n <= PYR_PACKED_STRIP, into dst, `stride` bytes a row of `dtype`, which
 * is writable and whose block divides cols. q8_0 and q4_0 hold a block of which all is in one group
 * exactly, its scale for theirs, where the scale is a half and the numbers fit; else they round as
 * pyr_row_from_f32 does. */
void pyr_packed_rows(const pyr_packed *p, int64_t row, int n, char *dst, size_t stride,
                     pyr_dtype dtype, float *scratch);

/* Mixes samples of all parts into a fingerprint. */
uint64_t pyr_packed_print(const pyr_packed *p, uint64_t print);

#endif
