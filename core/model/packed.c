/* packed.c — rows out of packed matrices. See packed.h for the layouts.
 *
 * Numbers of one row lie far apart (GPTQ: a word each `out` words), those of neighbouring rows side
 * by side. So a strip of 16 rows is unpacked at once, from whole cache lines:
 *
 *     rows 0 … 15        word (0, 0) … word (0, 15)      64 bytes, columns 0 … 7
 *                        word (1, 0) … word (1, 15)      64 bytes, columns 8 … 15
 *
 * Scales and zeros of the strip are decoded before, once for each group.
 *
 * Whole numbers times one scale is what q8_0 and q4_0 are, too. So a block of 32 columns of one
 * group becomes such a block without loss, where rounding its values anew would choose another
 * scale: of scale 0.01 and numbers minus zeros from -7 to 5, q8_0 by itself takes 0.07 / 127 for a
 * step, and no value but the largest is met again.
 *
 *     0.01 * { 3, -7, 0, 5, … }   ->   d = 0.01, { 3, -7, 0, 5, … }
 *
 * q4_0 has numbers from -8 to 7: the same holds where the zero is 8, as symmetric quantisation has
 * it. What is not so (act order, fp8, a scale that is no half) goes through f32. */
#include "model/packed.h"
#include "base/dtype.h"
#include "base/fingerprint.h"

#include <math.h>
#include <string.h>

enum { WORD = 32, STRIP = PYR_PACKED_STRIP };

static uint32_t load32(const uint8_t *p) {
  uint32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

/* A product of dimensions, each at least 1, and bytes; 0 if it overflows, which no part has. */
static uint64_t product(int64_t a, int64_t b, size_t bytes) {
  size_t n;
  if (!pyr_mul_size((size_t)a, (size_t)b, &n) || !pyr_mul_size(n, bytes, &n)) return 0;
  return n;
}

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* ---- checks ---------------------------------------------------------------------------------- */

/* A part of `want` bytes inside of its file. Exactly so many: a file with more has another shape,
 * or other groups, than its configuration says, and would be read askew. */
static pyr_status open_part(pyr_runtime *rt, const char *name, const char *what,
                            const pyr_packing_part *part, uint64_t want, pyr_span *out) {
  if (!part->file)
    return pyr_runtime_set_error(rt, PYR_FORMAT, "tensor %s: no %s", name, what);
  const char *path = pyr_file_path(part->file);
  uint64_t size = pyr_file_size(part->file);
  if (want == 0 || part->bytes != want)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "%s: tensor %s: %s of %llu bytes, where shape and groups need "
                                 "%llu", path, name, what, (unsigned long long)part->bytes,
                                 (unsigned long long)want);
  if (part->offset > size || want > size - part->offset)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "%s: tensor %s: %s: bytes %llu..%llu lie outside the file of %llu",
                                 path, name, what, (unsigned long long)part->offset,
                                 (unsigned long long)(part->offset + want),
                                 (unsigned long long)size);
  *out = (pyr_span){ (const uint8_t *)pyr_file_data(part->file) + part->offset, (size_t)want };
  return PYR_OK;
}

/* Each column's group is one that there is. All are looked at before any is used: what is read of
 * scales and zeros later is then inside of them. */
static pyr_status check_order(pyr_runtime *rt, const char *name, const pyr_packed *p) {
  for (int64_t k = 0; k < p->cols; k++)
    if (load32(p->order.at + 4 * k) >= (uint64_t)p->groups)
      return pyr_runtime_set_error(rt, PYR_FORMAT,
                                   "tensor %s: g_idx: column %lld is of group %d, of %lld", name,
                                   (long long)k, (int)load32(p->order.at + 4 * k),
                                   (long long)p->groups);
  return PYR_OK;
}

/* What needs no file: kind and bits, dtype of scales, shape in whole words and groups. Dimensions
 * below 2^31 keep every product of two in 64 bits. */
static pyr_status check_shape(pyr_runtime *rt, const char *name, const pyr_packed *p, int rank) {
  bool scaled = p->kind == PYR_PACKED_SCALED, gptq = p->kind == PYR_PACKED_GPTQ,
      fp4 = p->kind == PYR_PACKED_MXFP4;
  if (!(scaled ? p->bits == 8 : gptq ? p->bits == 4 || p->bits == 8
        : (fp4 || p->kind == PYR_PACKED_AWQ) && p->bits == 4))
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "tensor %s: numbers of %d bits in packing %d (known: 4 and 8 of "
                                 "GPTQ, 4 of AWQ and MXFP4, 8 with scales)", name, p->bits,
                                 (int)p->kind);
  if (p->scale_dtype != PYR_F32 && p->scale_dtype != PYR_F16 && p->scale_dtype != PYR_BF16)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "tensor %s: scales of another dtype than f32, f16, bf16", name);
  if (rank != 2 || p->rows < 1 || p->cols < 1 || p->group_rows < 1 || p->group_cols < 1
      || p->rows > INT32_MAX || p->cols > INT32_MAX)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "tensor %s: shape [%lld, %lld] in groups of [%lld, %lld]", name,
                                 (long long)p->rows, (long long)p->cols, (long long)p->group_rows,
                                 (long long)p->group_cols);
  if (fp4 && (p->group_rows != 1 || p->group_cols != 32 || p->cols % 32 != 0 || p->apart < 1
              || p->apart > INT32_MAX))
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "tensor %s: MXFP4 of shape [%lld, %lld], rows %lld apart: blocks "
                                 "have 32 columns", name, (long long)p->rows, (long long)p->cols,
                                 (long long)p->apart);
  if (fp4) return PYR_OK;
  int each = scaled ? 1 : WORD / p->bits;
  if (p->rows % each != 0 || (gptq && p->cols % each != 0))
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "tensor %s: shape [%lld, %lld] is no whole words of %d numbers",
                                 name, (long long)p->rows, (long long)p->cols, each);
  return PYR_OK;
}

/* Of 2 rows of 64 columns, 3 apart, the file has 4 rows from the first to the last: 4 * 32 bytes of
 * numbers, 4 * 2 of scales. */
static pyr_status open_fp4(pyr_runtime *rt, const char *name, const pyr_tensor_spec *spec,
                           pyr_packed *p) {
  int64_t held = (p->rows - 1) * p->apart + 1;
  const pyr_packing_part numbers = { spec->file, spec->offset, spec->bytes };
  p->groups = p->cols / 32;
  PYR_TRY(open_part(rt, name, "numbers", &numbers, product(held, p->cols / 2, 1), &p->numbers));
  return open_part(rt, name, "scales", &spec->packing->scales, product(held, p->groups, 1),
                   &p->scales);
}

/* Of q_proj [4096, 4096] in GPTQ of 4 bits and groups of 128: numbers of 512 * 4096 words, 32
 * groups of 4096 scales and of 512 words of zeros, 4096 words of order. */
pyr_status pyr_packed_open(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_packed *out) {
  const char *name = spec->name ? spec->name : "(unnamed)";
  const pyr_packing *packing = spec->packing;
  pyr_packed p = { .kind = packing->kind, .bits = packing->bits,
                   .scale_dtype = packing->scale_dtype, .rows = spec->shape[0],
                   .cols = spec->shape[1], .group_rows = packing->group[0],
                   .group_cols = packing->group[1],
                   .apart = packing->kind == PYR_PACKED_MXFP4 && spec->run == 1 ? spec->step : 1 };
  PYR_TRY(check_shape(rt, name, &p, spec->rank));
  if (p.kind == PYR_PACKED_MXFP4) {
    PYR_TRY(open_fp4(rt, name, spec, &p));
    *out = p;
    return PYR_OK;
  }
  bool scaled = p.kind == PYR_PACKED_SCALED;
  int64_t words = scaled ? p.rows : p.rows / (WORD / p.bits),   /* in a column of numbers */
      scale_rows = scaled ? ceil_div(p.rows, p.group_rows) : p.rows;
  p.groups = ceil_div(p.cols, p.group_cols);
  const pyr_packing_part numbers = { spec->file, spec->offset, spec->bytes };
  PYR_TRY(open_part(rt, name, "numbers", &numbers, product(words, p.cols, scaled ? 1 : 4),
                    &p.numbers));
  PYR_TRY(open_part(rt, name, "scales", &packing->scales,
                    product(scale_rows, p.groups, pyr_dtype_block_bytes(p.scale_dtype)),
                    &p.scales));
  if (!scaled)
    PYR_TRY(open_part(rt, name, "zeros", &packing->zeros, product(words, p.groups, 4), &p.zeros));
  if (packing->order.file) {
    if (p.kind != PYR_PACKED_GPTQ)
      return pyr_runtime_set_error(rt, PYR_FORMAT, "tensor %s: a g_idx without GPTQ", name);
    PYR_TRY(open_part(rt, name, "g_idx", &packing->order, product(p.cols, 1, 4), &p.order));
    PYR_TRY(check_order(rt, name, &p));
  }
  /* The first version of GPTQ's files holds zeros less one. The sum is that of whole words, as
   * GPTQModel takes it: what 0 - 1 borrowed from the next number when it was written goes back. */
  if (packing->zeros_less_one) p.plus = p.bits == 4 ? 0x11111111u : 0x01010101u;
  *out = p;
  return PYR_OK;
}

/* Of the parts beside the numbers, whose file is the description's own. */
static void each_file(const pyr_packing *packing, bool retain) {
  pyr_file *const files[] = { packing->scales.file, packing->zeros.file, packing->order.file };
  for (int i = 0; i < 3; i++) {
    if (!files[i]) continue;
    if (retain) pyr_file_retain(files[i]);
    else pyr_file_free(files[i]);
  }
}

void pyr_packing_retain(const pyr_packing *packing) { each_file(packing, true); }
void pyr_packing_release(const pyr_packing *packing) { each_file(packing, false); }

/* Numbers alone would be the same for two models that differ in their scales. */
uint64_t pyr_packed_print(const pyr_packed *p, uint64_t print) {
  const pyr_span spans[] = { p->numbers, p->scales, p->zeros, p->order };
  const int64_t head[] = { p->kind, p->bits, p->group_rows, p->group_cols, p->plus };
  print = pyr_fnv(print, head, sizeof head);
  for (int i = 0; i < 4; i++)
    if (spans[i].at) print = pyr_fnv_sample(print, spans[i].at, spans[i].bytes);
  return print;
}

/* ---- groups of a strip ----------------------------------------------------------------------- */

/* Scale i of all, at whatever address: parts lie where a file's header puts them. Halves and bf16
 * become f32 without loss. */
static float scale_at(const pyr_packed *p, int64_t i) {
  uint16_t half;
  float x;
  if (p->scale_dtype == PYR_F32) {
    memcpy(&x, p->scales.at + 4 * i, sizeof x);
    return x;
  }
  memcpy(&half, p->scales.at + 2 * i, sizeof half);
  return p->scale_dtype == PYR_F16 ? pyr_f32_of_f16(half) : pyr_f32_of_bf16(half);
}

/* Where in its word a row of AWQ's lies: words are dealt 0 2 4 6 1 3 5 7, so row 1 is fifth. */
static int awq_shift(int64_t row) {
  static const uint8_t place[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };
  return 4 * place[row & 7];
}

/* scales and zeros [groups, STRIP] of rows [row, row+n); of MXFP4 half its scales, as its numbers
 * are twice what they are. Zeros are held as floats: they are
 * subtracted from numbers of 8 bits at most, which is exact. */
static void open_strip(const pyr_packed *p, int64_t row, int n, float *scales, float *zeros) {
  int each = p->zeros.at ? WORD / p->bits : 1;
  uint32_t mask = p->bits == 4 ? 15 : 255;
  for (int64_t g = 0; g < p->groups; g++)
    for (int i = 0; i < n; i++) {
      int64_t r = row + i, at = g * STRIP + i;
      if (p->kind == PYR_PACKED_MXFP4) {
        scales[at] = ldexpf(1, p->scales.at[r * p->apart * p->groups + g] - 128);
        continue;
      }
      if (!p->zeros.at) {
        scales[at] = scale_at(p, r / p->group_rows * p->groups + g);
        continue;
      }
      uint32_t word = load32(p->zeros.at + 4 * (g * (p->rows / each) + r / each)) + p->plus;
      int shift = p->kind == PYR_PACKED_AWQ ? awq_shift(r) : (int)(r % each) * p->bits;
      scales[at] = scale_at(p, g * p->rows + r);
      zeros[at] = (float)(word >> shift & mask);
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Act order: columns are quantised in the order of their weight, and keep the group of then. */
static int64_t group_of(const pyr_packed *p, int64_t k) {
  return p->order.at ? (int64_t)load32(p->order.at + 4 * k) : k / p->group_cols;
}

/* values [n, cols]. A product of a half and a number of 9 bits is exact in f32. Columns are the
 * outer loop where a word holds columns, or rows of neighbours, so that each line of the file is
 * read once for all rows of the strip. */
static void unpack(const pyr_packed *p, int64_t row, int n, float *values, const float *scales,
                   const float *zeros) {
  if (p->kind == PYR_PACKED_MXFP4) {
    static const int8_t twice[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
    for (int i = 0; i < n; i++) {
      const uint8_t *bytes = p->numbers.at + (row + i) * p->apart * (p->cols / 2);
      for (int64_t k = 0; k < p->cols; k++)
        values[i * p->cols + k] = scales[k / 32 * STRIP + i]
            * (float)twice[bytes[k / 2] >> 4 * (k & 1) & 15];
    }
  } else if (p->kind == PYR_PACKED_SCALED) {
    for (int i = 0; i < n; i++)
      for (int64_t k = 0; k < p->cols; k++)
        values[i * p->cols + k] = pyr_f32_of_fp8(p->numbers.at[(row + i) * p->cols + k])
            * scales[k / p->group_cols * STRIP + i];
  } else if (p->kind == PYR_PACKED_GPTQ) {
    int each = WORD / p->bits;
    uint32_t mask = p->bits == 4 ? 15 : 255;
    for (int64_t k = 0; k < p->cols; k++) {
      const uint8_t *words = p->numbers.at + 4 * (k / each * p->rows + row);
      int64_t g = group_of(p, k) * STRIP;
      int shift = (int)(k % each) * p->bits;
      for (int i = 0; i < n; i++)
        values[i * p->cols + k] = scales[g + i]
            * ((float)(load32(words + 4 * i) >> shift & mask) - zeros[g + i]);
    }
  } else {
    int64_t words = p->rows / 8;
    for (int64_t k = 0; k < p->cols; k++) {
      const uint8_t *line = p->numbers.at + 4 * k * words;
      int64_t g = k / p->group_cols * STRIP;
      for (int i = 0; i < n; i++)
        values[i * p->cols + k] = scales[g + i]
            * ((float)(load32(line + 4 * ((row + i) / 8)) >> awq_shift(row + i) & 15)
               - zeros[g + i]);
    }
  }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* A block of 32 values that are all d times a whole number from `low` to `high`, as q8_0 or q4_0
 * hold it; false if they are not. 0.25 * (13 - 8) is 0.25 * 5: nothing is rounded. */
static bool keep_block(uint8_t *dst, pyr_dtype dtype, const float *values, float d) {
  int low = dtype == PYR_Q8_0 ? -128 : -8, high = dtype == PYR_Q8_0 ? 127 : 7;
  uint16_t half = pyr_f16_of_f32(d);
  int8_t numbers[32];
  if (!(fabsf(d) <= 65504.0f) || pyr_f32_of_f16(half) != d) return false;
  for (int i = 0; i < 32; i++) {
    float x = d == 0 ? 0 : values[i] / d;
    if (!(x >= (float)low && x <= (float)high)) return false;
    numbers[i] = (int8_t)x;
  }
  memcpy(dst, &half, sizeof half);
  if (dtype == PYR_Q8_0) memcpy(dst + 2, numbers, sizeof numbers);
  else
    for (int i = 0; i < 16; i++)
      dst[2 + i] = (uint8_t)((numbers[i] + 8) | (numbers[i + 16] + 8) << 4);
  return true;
}

/* Blocks lie in one group each where groups are whole blocks of neighbours; fp8's values are no
 * whole numbers. */
static bool has_whole_blocks(const pyr_packed *p, pyr_dtype dtype) {
  return (dtype == PYR_Q8_0 || dtype == PYR_Q4_0) && p->kind != PYR_PACKED_SCALED && !p->order.at
      && p->group_cols % 32 == 0;
}

/* Values of a strip, its scales and its zeros: of 4096 columns in 32 groups 16 * 4160 floats. */
size_t pyr_packed_scratch(const pyr_packed *p) {
  return (size_t)STRIP * ((size_t)p->cols + 2 * (size_t)p->groups);   /* of dimensions below 2^31 */
}

/* Values first, then row by row into blocks: a block that cannot be kept as it is rounds by itself,
 * and its neighbours stay exact. */
void pyr_packed_rows(const pyr_packed *p, int64_t row, int n, char *dst, size_t stride,
                     pyr_dtype dtype, float *scratch) {
  float *scales = scratch + STRIP * p->cols, *zeros = scales + STRIP * p->groups;
  bool whole = has_whole_blocks(p, dtype);
  open_strip(p, row, n, scales, zeros);
  unpack(p, row, n, scratch, scales, zeros);
  for (int i = 0; i < n; i++) {
    const float *values = scratch + i * p->cols;
    char *to = dst + (size_t)i * stride;
    if (!whole) {
      pyr_row_from_f32(to, dtype, values, p->cols);
      continue;
    }
    size_t bytes = pyr_dtype_block_bytes(dtype);
    for (int64_t b = 0; b < p->cols / 32; b++) {
      uint8_t *block = (uint8_t *)to + (size_t)b * bytes;
      if (!keep_block(block, dtype, values + 32 * b, scales[b * 32 / p->group_cols * STRIP + i]))
        pyr_row_from_f32(block, dtype, values + 32 * b, 32);
    }
  }
}
