/* dtype.c — conversion of rows of weights and cache rows to and from f32.
 *
 * Owns the arithmetic of the formats, nothing else (see dtype.h). All of it assumes a little-endian
 * machine, as the files do. The formats, each stored block after block:
 *
 *   q8_0   32 values,  34 bytes: f16 d; int8 q[32]                        x = d q
 *   q4_0   32 values,  18 bytes: f16 d; u8 q[16]                          x = d (q - 8)
 *   q4_1   32 values,  20 bytes: f16 d, m; u8 q[16]                       x = d q + m
 *   q5_0   32 values, 22 bytes: f16 d; u32 h; u8 q[16] x = d (q - 16), q's bit 4 in bit i of h
 *   q5_1   32 values,  24 bytes: f16 d, m; u32 h; u8 q[16]                x = d q + m, likewise
 *   iq4_nl 32 values,  18 bytes: f16 d; u8 q[16]                          x = d level[q]
 *   mxfp4 32 values, 17 bytes: u8 e; u8 q[16] x = 2^(e-128) fp4[q] (OCP's microscaling formats)
 *   nvfp4 64 values, 36 bytes: u8 e[4]; u8 q[32] x = (fp8(e) / 2) fp4[q], an e for 16 values
 *   q2_k 256 values, 84 bytes: u8 s[16]; u8 q[64]; f16 d, dmin x = (d low(s)) q - (dmin high(s)),
 *   an s for 16
 *   q3_k 256 values, 110 bytes: u8 h[32]; u8 q[64]; u8 s[12]; f16 d x = (d (scale - 32)) (q - 4
 *   where h's bit is clear)
 *   q4_k 256 values, 144 bytes: f16 d, dmin; u8 s[12]; u8 q[128] x = (d scale) q - (dmin min)
 *   q5_k 256 values, 176 bytes: f16 d, dmin; u8 s[12]; u8 h[32]; u8 q[128] likewise, q's bit 4 in h
 *   q6_k 256 values, 210 bytes: u8 q[128]; u8 h[64]; int8 scale[16]; f16 d x = (d scale) (q - 32)
 *   iq4_xs 256 values, 136 bytes: f16 d; u16 h; u8 s[4]; u8 q[128] x = (d (scale - 32)) level[q], a
 *   scale for 32
 *
 * Of 32 values the low nibbles of q are the first 16 and the high nibbles the others.
 * In q4_k and q5_k a scale and a min of 6 bits serve 32 values; in q6_k a scale serves 16. The
 * order of the products is part of the format: with it results are bit-equal to the `gguf`
 * package's, so multiply-add must not be contracted. Loops run over one block with fixed bounds and
 * no branches, so that compilers turn them into vector code.
 *
 * A format's own code is NAME_to_f32, for one block, and NAME_from_f32 if it can be made. The rest
 * of the file is made from the table in dtype.h. */
#include "base/dtype.h"

#include <stdio.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF   /* GCC keeps them apart under -std=c11 */
#endif

static uint16_t load16(const uint8_t *p) { uint16_t h; memcpy(&h, p, 2); return h; }
static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

/* ---- a block to f32 -------------------------------------------------------------------------- */

static void f32_to_f32(float *restrict dst, const uint8_t *restrict src) { memcpy(dst, src, 4); }
static void f16_to_f32(float *restrict dst, const uint8_t *restrict src) {
  *dst = pyr_f32_of_f16(load16(src));
}
static void bf16_to_f32(float *restrict dst, const uint8_t *restrict src) {
  *dst = pyr_f32_of_bf16(load16(src));
}
static void fp8_e4m3_to_f32(float *restrict dst, const uint8_t *restrict src) {
  *dst = pyr_f32_of_fp8(*src);
}

/* A double beyond the range of floats becomes infinite, as a cast does. */
static void f64_to_f32(float *restrict dst, const uint8_t *restrict src) {
  double x;
  memcpy(&x, src, 8);
  *dst = (float)x;
}

static void q8_0_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src));
  for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)src[2 + i] * d;
}

static void q4_0_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src));
  for (int i = 0; i < 16; i++) dst[i] = d * (float)((int)(src[2 + i] & 15) - 8);
  for (int i = 0; i < 16; i++) dst[16 + i] = d * (float)((int)(src[2 + i] >> 4) - 8);
}

static void q4_1_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src)), m = pyr_f32_of_f16(load16(src + 2));
  for (int i = 0; i < 16; i++) dst[i] = d * (float)(src[4 + i] & 15) + m;
  for (int i = 0; i < 16; i++) dst[16 + i] = d * (float)(src[4 + i] >> 4) + m;
}

/* The 32 numbers of 5 bits of a q5_0 or q5_1 block, from its h on. */
static void fives_of(const uint8_t *src, int out[32]) {
  uint32_t h;
  memcpy(&h, src, 4);
  for (int i = 0; i < 16; i++) out[i] = (src[4 + i] & 15) | (int)(h >> i & 1) << 4;
  for (int i = 0; i < 16; i++) out[16 + i] = (src[4 + i] >> 4) | (int)(h >> (16 + i) & 1) << 4;
}

static void q5_0_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src));
  int q[32];
  fives_of(src + 2, q);
  for (int i = 0; i < 32; i++) dst[i] = d * (float)(q[i] - 16);
}

static void q5_1_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src)), m = pyr_f32_of_f16(load16(src + 2));
  int q[32];
  fives_of(src + 4, q);
  for (int i = 0; i < 32; i++) dst[i] = d * (float)q[i] + m;
}

static const int8_t levels[16] = { PYR_IQ4_LEVELS };
/* Twice the values of 4-bit floats with two bits of exponent and one of mantissa. */
static const int8_t fp4[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

/* Values of nibbles chosen from a table: the low nibbles of `bytes` bytes, then the high ones. */
static void chosen(float *restrict dst, float d, const int8_t table[16], const uint8_t *restrict q,
                   int bytes) {
  for (int i = 0; i < bytes; i++) dst[i] = d * (float)table[q[i] & 15];
  for (int i = 0; i < bytes; i++) dst[bytes + i] = d * (float)table[q[i] >> 4];
}

static void iq4_nl_to_f32(float *restrict dst, const uint8_t *restrict src) {
  chosen(dst, pyr_f32_of_f16(load16(src)), levels, src + 2, 16);
}

static void iq4_xs_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src));
  unsigned high = load16(src + 2);
  for (int g = 0; g < 8; g++) {
    int scale = (src[4 + g / 2] >> 4 * (g & 1) & 15) | (int)(high >> 2 * g & 3) << 4;
    chosen(dst + 32 * g, d * (float)(scale - 32), levels, src + 8 + 16 * g, 16);
  }
}

/* The scale's exponent is 127 too large, and fp4 holds twice its values: 2^(e-128), which is no
 * normal float for e of 0 and 1. */
static void mxfp4_to_f32(float *restrict dst, const uint8_t *restrict src) {
  uint32_t bits = src[0] < 2 ? 0x00200000u << src[0] : (uint32_t)(src[0] - 1) << 23;
  chosen(dst, pyr_f32_of_bits(bits), fp4, src + 1, 16);
}

static void nvfp4_to_f32(float *restrict dst, const uint8_t *restrict src) {
  for (int g = 0; g < 4; g++) {
    uint8_t e = src[g] & 0x7f;  /* the scale has no sign; 0x7f, not a number, counts as 0 */
    float d = e == 0x7f ? 0.0f : pyr_f32_of_fp8(e) * 0.5f;
    chosen(dst + 16 * g, d, fp4, src + 4 + 8 * g, 8);
  }
}

/* q2_k and q3_k hold their 2-bit numbers alike: 128 values lie in 32 bytes, 32 of them in each pair
 * of bits. */
static void q2_k_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float d = pyr_f32_of_f16(load16(src + 80)), dmin = pyr_f32_of_f16(load16(src + 82));
  for (int g = 0; g < 16; g++) {  /* 16 values under one scale and min */
    const uint8_t *q = src + 16 + 32 * (g / 8) + 16 * (g & 1);
    int shift = g / 2 % 4 * 2;
    float scale = d * (float)(src[g] & 15), min = dmin * (float)(src[g] >> 4);
    for (int i = 0; i < 16; i++) dst[16 * g + i] = scale * (float)(q[i] >> shift & 3) - min;
  }
}

/* Scale g has its low 4 bits in the low (g < 8) or high nibble of s[g % 8], and 2 more in bits 2 (g
 * / 4) of s[8 + g % 4]. */
static void q3_k_to_f32(float *restrict dst, const uint8_t *restrict src) {
  const uint8_t *s = src + 96;
  float d = pyr_f32_of_f16(load16(src + 108));
  for (int g = 0; g < 16; g++) {
    const uint8_t *q = src + 32 + 32 * (g / 8) + 16 * (g & 1), *h = src + 16 * (g & 1);
    int shift = g / 2 % 4 * 2, bit = g / 2;
    int scale = (s[g % 8] >> 4 * (g / 8) & 15) | (s[8 + g % 4] >> 2 * (g / 4) & 3) << 4;
    float scaled = d * (float)(scale - 32);
    for (int i = 0; i < 16; i++)
      dst[16 * g + i] = scaled * (float)((q[i] >> shift & 3) - (h[i] >> bit & 1 ? 0 : 4));
  }
}

/* The eight scales and mins of a q4_k or q5_k block. The first four lie in the low 6 bits of
 * s[0..3] and s[4..7]; of the last four, the low 4 bits share s[8..11] and the high 2 are the top
 * bits of s[0..3] and s[4..7]. */
static void scales_of(const uint8_t *src, float scale[8], float min[8]) {
  float d = pyr_f32_of_f16(load16(src)), dmin = pyr_f32_of_f16(load16(src + 2));
  const uint8_t *s = src + 4;
  for (int i = 0; i < 4; i++) {
    scale[i] = d * (float)(s[i] & 63);
    min[i] = dmin * (float)(s[4 + i] & 63);
    scale[4 + i] = d * (float)((s[8 + i] & 15) | ((s[i] >> 2) & 48));
    min[4 + i] = dmin * (float)((s[8 + i] >> 4) | ((s[4 + i] >> 2) & 48));
  }
}

static void q4_k_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float scale[8], min[8];
  scales_of(src, scale, min);
  const uint8_t *q = src + 16;
  for (int g = 0; g < 8; g += 2, q += 32, dst += 64) {
    for (int i = 0; i < 32; i++) dst[i] = scale[g] * (float)(q[i] & 15) - min[g];
    for (int i = 0; i < 32; i++) dst[32 + i] = scale[g + 1] * (float)(q[i] >> 4) - min[g + 1];
  }
}

static void q5_k_to_f32(float *restrict dst, const uint8_t *restrict src) {
  float scale[8], min[8];
  scales_of(src, scale, min);
  const uint8_t *h = src + 16, *q = src + 48;
  for (int g = 0; g < 8; g += 2, q += 32, dst += 64) {
    for (int i = 0; i < 32; i++)
      dst[i] = scale[g] * (float)((q[i] & 15) | ((h[i] >> g & 1) << 4)) - min[g];
    for (int i = 0; i < 32; i++)
      dst[32 + i] = scale[g + 1] * (float)((q[i] >> 4) | ((h[i] >> (g + 1) & 1) << 4)) - min[g + 1];
  }
}

static void q6_k_to_f32(float *restrict dst, const uint8_t *restrict src) {
  const uint8_t *q = src, *h = src + 128, *s = src + 192;
  float d = pyr_f32_of_f16(load16(src + 208)), scale[16];
  for (int i = 0; i < 16; i++) scale[i] = d * (float)(int8_t)s[i];
  /* each half: 64 bytes of q and 32 of h make four runs of 32 values */
  for (int half = 0; half < 2; half++, q += 64, h += 32, dst += 128)
    for (int run = 0; run < 4; run++) {
      const uint8_t *low = q + 32 * (run & 1);
      int shift = 4 * (run >> 1), shift_h = 2 * run;
      for (int part = 0; part < 2; part++) {
        float scaled = scale[half * 8 + run * 2 + part];
        for (int i = 16 * part; i < 16 * part + 16; i++)
          dst[32 * run + i] = scaled * (float)(((low[i] >> shift & 15) | ((
              h[i] >> shift_h & 3) << 4)) - 32);
      }
    }
}

/* ---- a block from f32 ------------------------------------------------------------------------ */

static void f32_from_f32(uint8_t *restrict dst, const float *restrict src) { memcpy(dst, src, 4); }
static void f16_from_f32(uint8_t *restrict dst, const float *restrict src) {
  store16(dst, pyr_f16_of_f32(*src));
}
static void bf16_from_f32(uint8_t *restrict dst, const float *restrict src) {
  store16(dst, pyr_bf16_of_f32(*src));
}
static void fp8_e4m3_from_f32(uint8_t *restrict dst, const float *restrict src) {
  *dst = pyr_fp8_of_f32(*src);
}

/* x, made safe to convert to int: NaN becomes low. */
static float clamp(float x, float low, float high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

/* The largest magnitude of a block, as bits: those of floats without sign are ordered as the floats
 * are. */
static uint32_t largest_bits(const float *src) {
  int32_t most = 0;
  for (int i = 0; i < 32; i++) {
    int32_t a = (int32_t)(pyr_bits_of_f32(src[i]) & 0x7fffffffu);
    most = a > most ? a : most;
  }
  return (uint32_t)most;
}

enum { LARGEST_Q8 = 0x42fe0000 };   /* 127 as a float's bits; what is more, or NaN, must not be
                                       converted to int */

static void q8_0_from_f32(uint8_t *restrict dst, const float *restrict src) {
  float d = pyr_f32_of_bits(largest_bits(src)) / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(dst, pyr_f16_of_f32(d));
  for (int i = 0; i < 32; i++) {
    /* half away from zero: the integer part, and one more if twice the fraction reaches 1; both
     * exact */
    uint32_t bits = pyr_bits_of_f32(src[i] * inverse), sign = 0u - (bits >> 31);
    int32_t size = (int32_t)(bits & 0x7fffffffu);
    float a = pyr_f32_of_bits((uint32_t)(size < LARGEST_Q8 ? size : LARGEST_Q8));
    int32_t whole = (int32_t)a, rounded = whole + (int32_t)(2.0f * (a - (float)whole));
    dst[2 + i] = (uint8_t)(((uint32_t)rounded ^ sign) - sign);
  }
}

/* The first value of the largest magnitude: with its sign it becomes -8 in q4_0, -16 in q5_0. */
static int first_largest(const float *src) {
  uint32_t most = largest_bits(src);
  int first = 0;
  while (first < 31 && (pyr_bits_of_f32(src[first]) & 0x7fffffffu) != most) first++;
  return first;
}

static void q4_0_from_f32(uint8_t *restrict dst, const float *restrict src) {
  float d = src[first_largest(src)] / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(dst, pyr_f16_of_f32(d));
  for (int i = 0; i < 16; i++) {
    int low = (int)clamp(src[i] * inverse + 8.5f, 0, 15),
        high = (int)clamp(src[16 + i] * inverse + 8.5f, 0, 15);
    dst[2 + i] = (uint8_t)(low | high << 4);
  }
}

/* The least and the largest value of a block, in eight lanes, so that compilers keep them in
 * registers: comparing one value after the other waits for each. A NaN may hide the others of its
 * lane. */
static void ends_of(const float *restrict src, float *least, float *most) {
  float low[8], high[8];
  for (int i = 0; i < 8; i++) low[i] = high[i] = src[i];
  for (int i = 8; i < 32; i += 8)
    for (int lane = 0; lane < 8; lane++) {
      float x = src[i + lane];
      low[lane] = x < low[lane] ? x : low[lane];
      high[lane] = x > high[lane] ? x : high[lane];
    }
  for (int i = 1; i < 8; i++) {
    low[0] = low[i] < low[0] ? low[i] : low[0];
    high[0] = high[i] > high[0] ? high[i] : high[0];
  }
  *least = low[0];
  *most = high[0];
}

/* The inverse of fives_of: from a block's h on. */
static void put_fives(uint8_t *dst, const int q[32]) {
  uint32_t h = 0;
  for (int i = 0; i < 32; i++) h |= (uint32_t)(q[i] >> 4) << i;
  memcpy(dst, &h, 4);
  for (int i = 0; i < 16; i++) dst[4 + i] = (uint8_t)((q[i] & 15) | (q[16 + i] & 15) << 4);
}

/* q4_1 and q5_1 spread `steps` steps from the least value of a block to the largest: of values from
 * -1 to 2, q4_1 has d = 0.2 and m = -1, and 0.33 becomes (int)(1.33 / 0.2 + 0.5) = 7. */
static void steps_of(uint8_t *restrict dst, const float *restrict src, float steps, int q[32]) {
  float least, most;
  ends_of(src, &least, &most);
  float d = (most - least) / steps, inverse = d != 0 ? 1.0f / d : 0.0f;
  store16(dst, pyr_f16_of_f32(d));
  store16(dst + 2, pyr_f16_of_f32(least));
  for (int i = 0; i < 32; i++) q[i] = (int)clamp((src[i] - least) * inverse + 0.5f, 0, steps);
}

static void q4_1_from_f32(uint8_t *restrict dst, const float *restrict src) {
  int q[32];
  steps_of(dst, src, 15, q);
  for (int i = 0; i < 16; i++) dst[4 + i] = (uint8_t)(q[i] | q[16 + i] << 4);
}

static void q5_0_from_f32(uint8_t *restrict dst, const float *restrict src) {
  float d = src[first_largest(src)] / -16.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
  int q[32];
  store16(dst, pyr_f16_of_f32(d));
  for (int i = 0; i < 32; i++) q[i] = (int)clamp(src[i] * inverse + 16.5f, 0, 31);
  put_fives(dst + 2, q);
}

static void q5_1_from_f32(uint8_t *restrict dst, const float *restrict src) {
  int q[32];
  steps_of(dst, src, 31, q);
  put_fives(dst + 4, q);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* The loops over blocks, compiled around each format's own code: name_row_to_f32 of every type, and
 * name_row_from_f32 of those that are made. */
#define ROW_TO(arg, number, name, kind, block, bytes, align, made, ...) \
  static void name##_row_to_f32(float *restrict dst, const uint8_t *restrict src, int64_t n) { \
    for (int64_t i = 0; i < n / block; i++) name##_to_f32(dst + i * block, src + i * bytes); \
  } \
  ROW_FROM_##made(name, block, bytes)
#define ROW_FROM_ONE_WAY(name, block, bytes)
#define ROW_FROM_TWO_WAY(name, block, bytes) \
  static void name##_row_from_f32(uint8_t *restrict dst, const float *restrict src, int64_t n) { \
    for (int64_t i = 0; i < n / block; i++) name##_from_f32(dst + i * bytes, src + i * block); \
  }
PYR_DTYPE_TABLE(ROW_TO, )

/* ---- the table ------------------------------------------------------------------------------- */

typedef struct entry {
  pyr_dtype_info info;
  size_t align;
  void (*to_f32)(float *restrict dst, const uint8_t *restrict src, int64_t n);
  void (*from_f32)(uint8_t *restrict dst, const float *restrict src, int64_t n);  /* or NULL */
} entry;

/* What the table's words mean here. */
enum { NONE = PYR_KERNEL_NONE, WEIGHTS = PYR_KERNEL_WEIGHTS, ROWS = PYR_KERNEL_ROWS,
       BF16 = PYR_KERNEL_BF16, BYTES = PYR_KERNEL_BYTES, PACKS = PYR_KERNEL_PACKS,
       CAN_WEIGHT = WEIGHTS, CAN_ROW = ROWS, CAN_BOTH = WEIGHTS | ROWS, CAN_FILE = NONE };
#define FROM_ONE_WAY(name) NULL
#define FROM_TWO_WAY(name) name##_row_from_f32

#define ENTRY(arg, number, name, kind, block, bytes, align, made, gguf, tensors, load, cpu, dev) \
  [PYR_##number] = { { #name, block, bytes, gguf, tensors, (CAN_##kind & WEIGHTS) != 0, \
                       (CAN_##kind & ROWS) != 0, FROM_##made(name) != NULL, PYR_##load, \
                       cpu, dev }, align, name##_row_to_f32, FROM_##made(name) },
static const entry entries[PYR_DTYPES] = { PYR_DTYPE_TABLE(ENTRY, ) };

/* Every number of pyr_dtype has an entry; kernels are for what a type can be; and what is bound as
 * it is stays what it is. */
#define COUNT(...) +1
_Static_assert(PYR_DTYPE_TABLE(COUNT, ) == PYR_DTYPES, "an entry for each pyr_dtype");
#define CHECK(arg, number, name, kind, block, bytes, align, made, gguf, tensors, load, cpu, dev) \
  _Static_assert((((cpu) | (dev)) & (WEIGHTS | ROWS) & ~CAN_##kind) == 0, \
                 #name ": kernels for what its kind says that it cannot be"); \
  _Static_assert((CAN_##kind == CAN_FILE) == (PYR_##load != PYR_##number), \
                 #name ": of files alone, and not converted at load; or the other way round");
PYR_DTYPE_TABLE(CHECK, )

bool pyr_dtype_valid(int dtype) { return dtype >= 0 && dtype < PYR_DTYPES; }
const pyr_dtype_info *pyr_dtype_describe(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) ? &entries[dtype].info : NULL;
}
const char *pyr_dtype_name(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) ? entries[dtype].info.name : NULL;
}
int pyr_dtype_block(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) ? entries[dtype].info.block : 0;
}
size_t pyr_dtype_block_bytes(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) ? entries[dtype].info.block_bytes : 0;
}
size_t pyr_dtype_align(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) ? entries[dtype].align : 1;
}
bool pyr_dtype_writable(pyr_dtype dtype) {
  return pyr_dtype_valid((int)dtype) && entries[dtype].info.writable;
}
unsigned pyr_dtype_kernels(pyr_dtype dtype, bool device) {
  if (!pyr_dtype_valid((int)dtype)) return PYR_KERNEL_NONE;
  return device ? entries[dtype].info.device : entries[dtype].info.cpu;
}

int pyr_dtype_of_name(const char *name) {
  for (int i = 0; i < PYR_DTYPES; i++)
    if (strcmp(entries[i].info.name, name) == 0) return i;
  return -1;
}

const char *pyr_dtype_list(char *out, size_t room, bool (*is)(const pyr_dtype_info *info)) {
  size_t at = 0;
  out[0] = 0;
  for (int i = 0; i < PYR_DTYPES && at < room; i++)
    if (is(&entries[i].info)) {
      int n = snprintf(out + at, room - at, "%s%s", at ? ", " : "", entries[i].info.name);
      at += n > 0 ? (size_t)n : 0;
    }
  return out;
}

size_t pyr_dtype_bytes(pyr_dtype dtype, int64_t n) {
  if (!pyr_dtype_valid((int)dtype)) return 0;
  const pyr_dtype_info *info = &entries[dtype].info;
  if (n <= 0 || n % info->block != 0) return 0;
  uint64_t blocks = (uint64_t)n / (uint64_t)info->block;
  return blocks > SIZE_MAX / info->block_bytes ? 0 : (size_t)blocks * info->block_bytes;
}

void pyr_row_to_f32(float *dst, const void *src, pyr_dtype dtype, int64_t n) {
  if (n > 0 && pyr_dtype_valid((int)dtype)) entries[dtype].to_f32(dst, src, n);
}

void pyr_row_from_f32(void *dst, pyr_dtype dtype, const float *src, int64_t n) {
  if (n > 0 && pyr_dtype_writable(dtype)) entries[dtype].from_f32(dst, src, n);
}
