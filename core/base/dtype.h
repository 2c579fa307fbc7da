/* dtype.h — the number formats of weights and cache rows, and conversion of rows of them to and
 * from f32.
 *
 * Owns: the arithmetic of f16, bf16 and the GGUF block formats. Does not own memory, files or
 * tensors, and needs no runtime. Everything here is plain C, independent of the machine's
 * instruction set, and bit-equal to the `gguf` Python package (the facts of the formats: ggml's
 * block structs, restated in dtype.c). Source pointers may be unaligned, and so may the
 * destinations of pyr_row_from_f32. */
#ifndef PYR_DTYPE_H
#define PYR_DTYPE_H

#include "pyramid.h"
#include <stdbool.h>
#include <string.h>

/* Bytes of n values, n >= 0 and a multiple of the dtype's block; 0 if it is not, or if it
 * overflows. */
size_t pyr_dtype_bytes(pyr_dtype dtype, int64_t n);

bool pyr_dtype_valid(int dtype);           /* 0 <= dtype < PYR_DTYPES */
bool pyr_dtype_writable(pyr_dtype dtype);  /* pyr_row_from_f32 can make it: f32, f16, bf16, q8_0,
                                              q4_0, fp8_e4m3 */
bool pyr_dtype_weights(pyr_dtype dtype);   /* a bound matrix may be of it: not fp8_e4m3, which cache
                                              rows alone are, nor those behind it, which no kernel
                                              reads: they are converted while they are bound */
int pyr_dtype_of_name(const char *name);   /* the dtype, or -1; names as pyr_dtype_name spells them
                                              */
size_t pyr_dtype_align(pyr_dtype dtype);   /* what a mapped tensor's address must be a multiple of:
                                              4, 2, or 1 for blocks */

/* Dequantises n values (a multiple of the block) of any dtype. */
void pyr_row_to_f32(float *dst, const void *src, pyr_dtype dtype, int64_t n);

/* Converts n values (a multiple of the block) to a writable dtype; others are left untouched. f16,
 * bf16 and fp8_e4m3 round to nearest even, and what is beyond 448 becomes 448 in fp8_e4m3; NaN
 * stays NaN. Blocks: q8_0 rounds half away from zero, q4_0 truncates x/d + 8.5, as ggml does. */
void pyr_row_from_f32(void *dst, pyr_dtype dtype, const float *src, int64_t n);

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
