/* dtype.h — the number formats of weights and cache rows: one table of them, and conversion of rows
 * to and from f32.
 *
 * Owns: the arithmetic of f16, bf16 and the GGUF block formats. Does not own memory, files or
 * tensors, and needs no runtime. Everything here is plain C, independent of the machine's
 * instruction set, and bit-equal to the `gguf` Python package (the facts of the formats: ggml's
 * block structs, restated in dtype.c). Source pointers may be unaligned, and so may the
 * destinations of pyr_row_from_f32.
 *
 * docs/adding-a-dtype.md walks through all that a new entry needs. */
#ifndef PYR_DTYPE_H
#define PYR_DTYPE_H

#include "pyramid.h"
#include <stdbool.h>
#include <string.h>

/* ---- the table ------------------------------------------------------------------------------- */

/* One entry for each format. What tells formats apart elsewhere is made from it: the switches of
 * kernels (below), conversion (dtype.c), and what loaders, options and messages know of them
 * (pyr_dtype_describe; core.dtypes in Lua).
 *
 *   number    the pyr_dtype, without PYR_
 *   name      as options, messages and functions spell it: iq4_nl_to_f32 of dtype.c decodes it
 *   kind      what can be of it: a matrix that kernels read (WEIGHT), a cache's rows (ROW), BOTH;
 *             FILE: neither, files alone hold it
 *   block     values that lie together, and the bytes of such a block
 *   align     what the address of a tensor that is used where a file has it must be a multiple of
 *   made      TWO_WAY: values become it too, by NAME_from_f32; ONE_WAY: it is only read
 *   GGUF      its number there, or -1; and its name in safetensors, or NULL
 *   at load   what matrices of it become while they are loaded: themselves, unless it is FILE
 *   cpu       which kernels core/cpu and kernels/ have for it (PYR_KERNEL_…, without the prefix);
 *   device    a model whose backend lacks them refuses the type in words
 *
 * The order is that of pyr_dtype, whose numbers saved caches hold: a new entry goes to its end. */
#define PYR_DTYPE_TABLE(X, arg) \
  /* number,      name,     kind, block, bytes, align, made, GGUF, safetensors, at load, \
     cpu, device */ \
  X(arg, F32,      f32,      BOTH,     1,   4, 4, TWO_WAY,  0, "F32",  F32, \
    WEIGHTS | ROWS, WEIGHTS | ROWS) \
  X(arg, F16,      f16,      BOTH,     1,   2, 2, TWO_WAY,  1, "F16",  F16, \
    WEIGHTS | ROWS, WEIGHTS | ROWS) \
  X(arg, BF16,     bf16,     BOTH,     1,   2, 2, TWO_WAY, 30, "BF16", BF16, \
    WEIGHTS | ROWS | BF16, WEIGHTS | ROWS) \
  X(arg, Q8_0,     q8_0,     BOTH,    32,  34, 1, TWO_WAY,  8, NULL,   Q8_0, \
    WEIGHTS | ROWS | BF16 | BYTES | PACKS, WEIGHTS | ROWS | PACKS) \
  X(arg, Q4_0,     q4_0,     WEIGHT,  32,  18, 1, TWO_WAY,  2, NULL,   Q4_0, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS | PACKS) \
  X(arg, Q4_K,     q4_k,     WEIGHT, 256, 144, 1, ONE_WAY, 12, NULL,   Q4_K, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS | PACKS) \
  X(arg, Q5_K,     q5_k,     WEIGHT, 256, 176, 1, ONE_WAY, 13, NULL,   Q5_K, \
    WEIGHTS | BF16 | BYTES, WEIGHTS | PACKS) \
  X(arg, Q6_K,     q6_k,     WEIGHT, 256, 210, 1, ONE_WAY, 14, NULL,   Q6_K, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS | PACKS) \
  X(arg, FP8_E4M3, fp8_e4m3, ROW,      1,   1, 1, TWO_WAY, -1, NULL,   FP8_E4M3, ROWS, ROWS) \
  X(arg, Q4_1,     q4_1,     WEIGHT,  32,  20, 1, TWO_WAY,  3, NULL,   Q4_1, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, Q5_0,     q5_0,     WEIGHT,  32,  22, 1, TWO_WAY,  6, NULL,   Q5_0, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, Q5_1,     q5_1,     WEIGHT,  32,  24, 1, TWO_WAY,  7, NULL,   Q5_1, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, Q2_K,     q2_k,     WEIGHT, 256,  84, 1, ONE_WAY, 10, NULL,   Q2_K, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, Q3_K,     q3_k,     WEIGHT, 256, 110, 1, ONE_WAY, 11, NULL,   Q3_K, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, IQ4_NL,   iq4_nl,   WEIGHT,  32,  18, 1, ONE_WAY, 20, NULL,   IQ4_NL, \
    WEIGHTS | BF16 | BYTES | PACKS, WEIGHTS) \
  X(arg, IQ4_XS,   iq4_xs,   FILE,   256, 136, 1, ONE_WAY, 23, NULL,   Q8_0, NONE, NONE) \
  X(arg, MXFP4,    mxfp4,    FILE,    32,  17, 1, ONE_WAY, 39, NULL,   Q8_0, NONE, NONE) \
  X(arg, NVFP4,    nvfp4,    FILE,    64,  36, 1, ONE_WAY, 40, NULL,   Q8_0, NONE, NONE) \
  X(arg, F64,      f64,      FILE,     1,   8, 8, ONE_WAY, 28, "F64",  F32,  NONE, NONE)

/* ---- switches over it ------------------------------------------------------------------------ */

/* A switch over dtypes has no `default:`, so that -Wswitch names it when a type is added that it
 * does not know. What its code is not about, it leaves out by kind, and types of files alone are
 * never its business:
 *
 *     switch (dtype) {                               switch (dtype) {
 *       case PYR_F16: …                                PYR_WEIGHT_CASES(action)
 *       …                                              PYR_CASES_NOT_WEIGHTS: break;
 *       PYR_CASES_NOT_ROWS: break;                   }
 *     }
 *
 * On the left each type has its own code, on the right all have `case PYR_…: action(PYR_…); break;`
 * with the dtype as a constant. */
#define PYR_CASES_NOT_WEIGHTS PYR_DTYPE_TABLE(PYR_NOT_WEIGHT, ) case PYR_DTYPES
#define PYR_CASES_NOT_ROWS PYR_DTYPE_TABLE(PYR_NOT_ROW, ) case PYR_DTYPES
#define PYR_CASES_OF_FILES PYR_DTYPE_TABLE(PYR_FILE_ALONE, ) case PYR_DTYPES
#define PYR_WEIGHT_CASES(action) PYR_DTYPE_TABLE(PYR_CASE_OF_WEIGHT, action)
#define PYR_ROW_CASES(action) PYR_DTYPE_TABLE(PYR_CASE_OF_ROW, action)
#define PYR_KERNEL_CASES(action) PYR_DTYPE_TABLE(PYR_CASE_OF_KERNEL, action)

/* By kind: a label, a case with its action, or nothing. */
#define PYR_NOT_WEIGHT(none, number, name, kind, ...) PYR_NOT_WEIGHT_##kind(PYR_##number)
#define PYR_NOT_WEIGHT_BOTH(dtype)
#define PYR_NOT_WEIGHT_WEIGHT(dtype)
#define PYR_NOT_WEIGHT_ROW(dtype) case dtype:
#define PYR_NOT_WEIGHT_FILE(dtype) case dtype:
#define PYR_NOT_ROW(none, number, name, kind, ...) PYR_NOT_ROW_##kind(PYR_##number)
#define PYR_NOT_ROW_BOTH(dtype)
#define PYR_NOT_ROW_WEIGHT(dtype) case dtype:
#define PYR_NOT_ROW_ROW(dtype)
#define PYR_NOT_ROW_FILE(dtype) case dtype:
#define PYR_FILE_ALONE(none, number, name, kind, ...) PYR_FILE_ALONE_##kind(PYR_##number)
#define PYR_FILE_ALONE_BOTH(dtype)
#define PYR_FILE_ALONE_WEIGHT(dtype)
#define PYR_FILE_ALONE_ROW(dtype)
#define PYR_FILE_ALONE_FILE(dtype) case dtype:
#define PYR_CASE_OF(action, dtype) case dtype: action(dtype); break;
#define PYR_CASE_OF_WEIGHT(action, number, name, kind, ...) \
  PYR_CASE_OF_WEIGHT_##kind(action, PYR_##number)
#define PYR_CASE_OF_WEIGHT_BOTH(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_WEIGHT_WEIGHT(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_WEIGHT_ROW(action, dtype)
#define PYR_CASE_OF_WEIGHT_FILE(action, dtype)
#define PYR_CASE_OF_ROW(action, number, name, kind, ...) \
  PYR_CASE_OF_ROW_##kind(action, PYR_##number)
#define PYR_CASE_OF_ROW_BOTH(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_ROW_WEIGHT(action, dtype)
#define PYR_CASE_OF_ROW_ROW(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_ROW_FILE(action, dtype)
#define PYR_CASE_OF_KERNEL(action, number, name, kind, ...) \
  PYR_CASE_OF_KERNEL_##kind(action, PYR_##number)
#define PYR_CASE_OF_KERNEL_BOTH(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_KERNEL_WEIGHT(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_KERNEL_ROW(action, dtype) PYR_CASE_OF(action, dtype)
#define PYR_CASE_OF_KERNEL_FILE(action, dtype)

/* ---- what the table says --------------------------------------------------------------------- */

/* Bytes of n values, n >= 0 and a multiple of the dtype's block; 0 if it is not, or if it
 * overflows. */
size_t pyr_dtype_bytes(pyr_dtype dtype, int64_t n);

bool pyr_dtype_valid(int dtype);           /* 0 <= dtype < PYR_DTYPES */
bool pyr_dtype_writable(pyr_dtype dtype);  /* pyr_row_from_f32 can make it */
size_t pyr_dtype_align(pyr_dtype dtype);   /* what a mapped tensor's address must be a multiple of:
                                              8, 4, 2, or 1 for blocks */

/* Which PYR_KERNEL_… the processor has for it, or (`device`) devices have. */
unsigned pyr_dtype_kernels(pyr_dtype dtype, bool device);

/* Names of the dtypes for which `is` holds, with commas between, for messages; cut at `room` bytes,
 * its 0 among them. Returns out. */
const char *pyr_dtype_list(char *out, size_t room, bool (*is)(const pyr_dtype_info *info));

/* ---- rows of values -------------------------------------------------------------------------- */

/* Dequantises n values (a multiple of the block) of any dtype. */
void pyr_row_to_f32(float *dst, const void *src, pyr_dtype dtype, int64_t n);

/* Converts n values (a multiple of the block) to a writable dtype; others are left untouched. f16,
 * bf16 and fp8_e4m3 round to nearest even, and what is beyond 448 becomes 448 in fp8_e4m3; NaN
 * stays NaN. Blocks, as ggml makes them: q8_0 rounds half away from zero; q4_0 and q5_0 truncate
 * x/d + 8.5 and x/d + 16.5, q4_1 and q5_1 (x - m)/d + 0.5. */
void pyr_row_from_f32(void *dst, pyr_dtype dtype, const float *src, int64_t n);

/* The 16 levels that iq4_nl and iq4_xs choose from, by four bits: closer together where weights are
 * more frequent. */
#define PYR_IQ4_LEVELS \
  -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

/* ---- single values, for kernels that do their own loops -------------------------------------- */

static inline float pyr_f32_of_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t pyr_bits_of_f32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float pyr_f32_of_bf16(uint16_t h) { return pyr_f32_of_bits((uint32_t)h << 16); }

static inline uint16_t pyr_bf16_of_f32(float x) {
  uint32_t bits = pyr_bits_of_f32(x);
  uint32_t quiet = (bits >> 16) | 0x40u;  /* a NaN must not round to infinity */
  uint32_t even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;   /* wraps only for NaN */
  return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : even);
}

/* All ones if the condition holds. Choosing by mask leaves loops without branches, so that
 * compilers vectorise them. */
static inline uint32_t pyr_mask(bool condition) { return 0u - (uint32_t)condition; }

/* Normal, special and denormal halves are all computed and one is chosen: the exponent is moved in
 * integers, and the mantissa of a denormal counts units of 2^-24. No arithmetic meets a denormal
 * float. */
static inline float pyr_f32_of_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
  uint32_t normal = (rest << 13) + 0x38000000u + (pyr_mask(rest >= 0x7c00u) & 0x38000000u);
  uint32_t small = pyr_bits_of_f32((float)(int32_t)rest * 0x1p-24f),
      is_small = pyr_mask(rest < 0x400u);
  return pyr_f32_of_bits((small & is_small) | (normal & ~is_small) | sign);
}

/* Likewise. Normal halves: move the exponent in integers, round half to even by adding 0xfff plus
 * the bit that will be last. Denormal halves: add 0.5, whose last mantissa bit weighs 2^-24 as a
 * half's does, so that the adder rounds. */
static inline uint16_t pyr_f16_of_f32(float x) {
  uint32_t bits = pyr_bits_of_f32(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t is_small = pyr_mask(rest < 0x38800000u), is_large = pyr_mask(rest >= 0x477ff000u),
      is_nan = pyr_mask(rest > 0x7f800000u);
  uint32_t small = pyr_bits_of_f32(pyr_f32_of_bits(rest & is_small) + 0.5f) - 0x3f000000u;
  uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  uint32_t special = 0x7c00u | (is_nan & (0x200u | ((rest >> 13) & 0x3ffu)));
  return (uint16_t)((small & is_small) | (special & is_large) | (normal & ~(
      is_small | is_large)) | sign);
}

/* E4M3 of the OCP's 8-bit floating point: four bits of exponent, which is 7 too large, and three of
 * mantissa; denormals count units of 2^-9; there are no infinities, and 0x7f is NaN. */
static inline float pyr_f32_of_fp8(uint8_t b) {
  uint32_t sign = (uint32_t)(b & 0x80u) << 24, rest = b & 0x7fu;
  uint32_t normal = ((rest << 20) + 0x3c000000u) | (pyr_mask(rest == 0x7fu) & 0x7fc00000u);
  uint32_t small = pyr_bits_of_f32((float)(int32_t)rest * 0x1p-9f), is_small = pyr_mask(rest < 8u);
  return pyr_f32_of_bits((small & is_small) | (normal & ~is_small) | sign);
}

/* Nearest even, as pyr_f16_of_f32; from 448 on 448, as caches of 8 bits have it, and not NaN. */
static inline uint8_t pyr_fp8_of_f32(float x) {
  uint32_t bits = pyr_bits_of_f32(x), sign = (bits >> 24) & 0x80u, rest = bits & 0x7fffffffu;
  uint32_t is_small = pyr_mask(rest < 0x3c800000u), is_large = pyr_mask(rest >= 0x43e00000u);
  uint32_t small = pyr_bits_of_f32(pyr_f32_of_bits(rest & is_small) + 0x1p14f) - 0x46800000u;
  uint32_t normal = (rest - 0x3c000000u + 0x7ffffu + ((rest >> 20) & 1u)) >> 20;
  uint32_t large = 0x7eu | (pyr_mask(rest > 0x7f800000u) & 1u);
  return (uint8_t)((small & is_small) | (large & is_large) | (normal & ~(
      is_small | is_large)) | sign);
}

#endif
