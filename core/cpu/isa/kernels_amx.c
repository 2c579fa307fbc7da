/* kernels_amx.c — packs tokens and weights of any dtype into tiles of bf16, and multiplies them by
 * matrix tiles (tiles.h). Empty where the compiler does not make such code.
 *
 * Weights are turned into bf16 16 rows at a time. From rows as they lie a vector holds 32 values of
 * one row, 16 pairs; 16 such vectors, rows for columns, are a tile. In the interleaved order a
 * vector of words has four values of each row already: its bytes become floats under a vector of
 * scales, and two values of k are shuffled into pairs; nothing is transposed.
 *
 * Instructions on tiles are spelt out: GCC 12's _tile_loadconfig and _tile_loadd tell the compiler
 * too little of the memory that they read, which it may then write later. */
#include "cpu/isa/kernels.h"
#include "cpu/isa/tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)

#pragma GCC diagnostic ignored "-Wunused-function"   /* of what is in formats.inc */
#include "simd.inc"
#include "formats.inc"
#include "packs.inc"
#include "round.inc"

/* ---- packing --------------------------------------------------------------------------------- */

enum { LINE = PYR_TILE_VALUES / PYR_TILE };          /* values in a tile's row: 64 bytes */

/* 32 values as bf16, in their order. */
INLINE __m512i rounded(vf first, vf second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

/* Sixteen vectors of sixteen words, rows for columns, into the rows of a tile. */
INLINE void put_transposed(uint16_t *to, const __m512i words[PYR_TILE]) {
  __m512i r[PYR_TILE];
#pragma GCC unroll 16
  for (int i = 0; i < PYR_TILE; i++) r[i] = words[i];
  turn16(r);
#pragma GCC unroll 16
  for (int i = 0; i < PYR_TILE; i++) _mm512_store_si512(to + LINE * i, r[i]);
}

static void pack_tokens(uint16_t *to, const float *x, int count, int64_t cols) {
  for (int64_t c = 0; c < cols; c += PYR_TILE_STEP, to += PYR_TILE_NEXT) {
    int64_t left = cols - c;
    __mmask16 first = (__mmask16)(left < VL ? (1 << left) - 1 : 0xffff);
    __mmask16 second = (__mmask16)(left < VL ? 0 : left < 2 * VL ? (1 << (left - VL)) - 1 : 0xffff);
    for (int t = 0; t < PYR_TILE; t++) {
      const float *from = x + t * cols + c;
      __m512i values = _mm512_setzero_si512();
      if (t < count)
        values = rounded((vf)_mm512_maskz_loadu_ps(first, from),
                         (vf)_mm512_maskz_loadu_ps(second, from + VL));
      _mm512_store_si512(to + t * LINE, values);
    }
  }
}

typedef struct rows_args { const uint8_t *w; size_t stride; int count; } rows_args;

/* A step of k that is whole, of 16 rows or fewer. */
INLINE void pack_group(uint16_t *to, const rows_args *a, const pyr_dtype dtype, int64_t g,
                       const int odd, float s[][SCALES]) {
  __m512i r[PYR_TILE];
  for (int i = 0; i < a->count; i++) {
    vf t[GROUP_VECTORS];
    load_group(t, a->w + (size_t)i * a->stride, dtype, g, odd, s[i]);
    r[i] = rounded(t[0], t[1]);
  }
  for (int i = a->count; i < PYR_TILE; i++) r[i] = _mm512_setzero_si512();
  put_transposed(to, r);
}

INLINE void pack_groups(uint16_t *to, const rows_args *a, const pyr_dtype dtype, int64_t groups) {
  float s[PYR_TILE][SCALES];
  int64_t g = 0;
  for (; g + 2 <= groups; g += 2, to += 2 * PYR_TILE_NEXT) {
    if (has_scales(dtype) && g % 8 == 0)
      for (int i = 0; i < a->count; i++) load_scales(s[i], a->w + (size_t)i * a->stride, dtype, g);
    pack_group(to, a, dtype, g, 0, s);
    pack_group(to + PYR_TILE_NEXT, a, dtype, g + 1, 1, s);
  }
  if (g < groups) pack_group(to, a, dtype, g, 0, s);
}

/* bf16 is what it shall become; it has no blocks, so that the last step may be part of one. */
static void pack_bf16(uint16_t *to, const rows_args *a, int64_t cols) {
  for (int64_t c = 0; c < cols; c += PYR_TILE_STEP, to += PYR_TILE_NEXT) {
    __mmask32 some = cols - c < PYR_TILE_STEP ? (1u << (cols - c)) - 1 : 0xffffffffu;
    __m512i r[PYR_TILE];
#pragma GCC unroll 16
    for (int i = 0; i < PYR_TILE; i++)
      r[i] = i < a->count ? _mm512_maskz_loadu_epi16(some, a->w + (size_t)i * a->stride + 2 * c)
                          : _mm512_setzero_si512();
    put_transposed(to, r);
  }
}

static void pack_rows(uint16_t *to, const void *w, size_t stride, pyr_dtype dtype, int count,
                      int64_t cols) {
  rows_args a = { w, stride, count };
  if (dtype == PYR_BF16) {
    pack_bf16(to, &a, cols);
    return;
  }
#define ACTION(type) pack_groups(to, &a, type, cols / GROUP)
  FOR_WEIGHT_DTYPE(dtype, ACTION)
#undef ACTION
}

/* ---- packing what lies interleaved ----------------------------------------------------------- */

/* Values k and k + 1 of 16 rows as a row of a tile. */
INLINE void put_pair(uint16_t *to, vf even, vf odd) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                          24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                          16, 0);
  _mm512_store_si512(to, _mm512_permutexvar_epi16(places, rounded(even, odd)));
}

/* Bytes of words, signed; and the numbers that four bits of them mean, from bit `at` on, times
 * scale plus min. */
INLINE vf signed_byte(__m512i words, const int i) {
  return vof_i32((vi)_mm512_srai_epi32(_mm512_slli_epi32(words, (unsigned)(24 - 8 * i)), 24));
}
static const float zero_to_15[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
INLINE vf four_bits(__m512i words, const int at, const float meaning[16], vf scale, vf min) {
  return vfma(vchoose(meaning, (vi)_mm512_srli_epi32(words, (unsigned)at)), scale, min);
}

INLINE __m512i words_at(const uint8_t *w) { return _mm512_loadu_si512(w); }

INLINE void put_nibbles(uint16_t *to, __m512i words, const int shift, const float meaning[16],
                        vf scale, vf min) {
  put_pair(to, four_bits(words, shift, meaning, scale, min),
           four_bits(words, shift + 8, meaning, scale, min));
  put_pair(to + LINE, four_bits(words, shift + 16, meaning, scale, min),
           four_bits(words, shift + 24, meaning, scale, min));
}

/* Bytes below 128. */
INLINE void put_words(uint16_t *to, __m512i words, vf scale, vf min) {
  put_pair(to, vfma(signed_byte(words, 0), scale, min), vfma(signed_byte(words, 1), scale, min));
  put_pair(to + LINE, vfma(signed_byte(words, 2), scale, min),
           vfma(signed_byte(words, 3), scale, min));
}

static void pack_of_q8_0(uint16_t *to, const uint8_t *w, int64_t cols) {
  for (int64_t c = 0; c < cols; c += GROUP, w += PYR_PACK * 34, to += PYR_TILE_NEXT) {
    vf scale = (vf)halves_at(w);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      __m512i q = words_at(w + 32 + 64 * i);
      uint16_t *line = to + 2 * i * LINE;
      put_pair(line, signed_byte(q, 0) * scale, signed_byte(q, 1) * scale);
      put_pair(line + LINE, signed_byte(q, 2) * scale, signed_byte(q, 3) * scale);
    }
  }
}

/* The scale and the min of each row of a block of packs.inc, the offset among the min. */
INLINE void factors_of(vf *scale, vf *min, const uint8_t *w, const pyr_dtype dtype) {
  *scale = (vf)block_scales(w, dtype);
  *min = has_mins(dtype) ? (vf)block_mins(w) : *scale * vset((float)-offset_of(dtype));
}

/* q4_0, q4_1 and iq4_nl, whose levels have no offset as floats: low bits are values 0 to 15 of a
 * block, high ones 16 to 31. */
INLINE void pack_of_nibbles(uint16_t *to, const uint8_t *w, int64_t cols, const pyr_dtype dtype) {
  const float *meaning = dtype == PYR_IQ4_NL ? iq4_levels : zero_to_15;
  for (int64_t c = 0; c < cols; c += GROUP, to += PYR_TILE_NEXT) {
    vf scale, min;
    factors_of(&scale, &min, w, dtype);
    if (dtype == PYR_IQ4_NL) min = vset(0);
    w += words_behind(dtype);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, w += 64) {
      __m512i q = words_at(w);
      put_nibbles(to + 2 * i * LINE, q, 0, meaning, scale, min);
      put_nibbles(to + (8 + 2 * i) * LINE, q, 4, meaning, scale, min);
    }
  }
}

/* q5_0 and q5_1. */
INLINE void pack_of_fives(uint16_t *to, const uint8_t *w, int64_t cols, const pyr_dtype dtype) {
  for (int64_t c = 0; c < cols; c += GROUP, to += PYR_TILE_NEXT) {
    vf scale, min;
    factors_of(&scale, &min, w, dtype);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
      put_words(to + 2 * i * LINE, block_words(w, dtype, i), scale, min);
    w += PYR_PACK * group_bytes(dtype);
  }
}

/* A block's scales and mins, then, for each two groups, eight words: one in their low bits, the
 * other in their high ones. */
static void pack_of_q4_k(uint16_t *to, const uint8_t *w, int64_t cols) {
  for (int64_t c = 0; c < cols; c += 256) {
    q4_k_scales of = load_q4_k_scales(w);
    w += 256;
    for (int pair = 0; pair < 4; pair++, w += 512, to += 2 * PYR_TILE_NEXT)
#pragma GCC unroll 2
      for (int g = 0; g < 2; g++) {
        vf scale = (vf)q4_k_scale(&of, 2 * pair + g), min = (vf)q4_k_min(&of, 2 * pair + g);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
          put_nibbles(to + g * PYR_TILE_NEXT + 2 * i * LINE, words_at(w + 64 * i), 4 * g,
                      zero_to_15, scale, min);
      }
  }
}

/* q6_k, q3_k and q2_k (packs.inc): words 4 which + i of group j of a half, the scale of such four
 * words, and their min, the offset among it. */
INLINE __m512i sixteens_words(const uint8_t *head, const uint8_t *w, const pyr_dtype dtype,
                              const int half, const int which, const int j, const int i) {
  if (dtype == PYR_Q6_K) return part_words(w + 64 * part_lines(dtype) * which, j, i);
  return _mm512_srli_epi32(pair_words(head, w, dtype, half, j, 4 * which + i),
                           (unsigned)bits_up(dtype, j));
}
INLINE void sixteens_factors(vf *scale, vf *min, const uint8_t *head, const pyr_dtype dtype,
                             const int half, const int which, const int j) {
  const int four = 2 * half + j / 2, byte = j % 2 * 2 + which;
  if (dtype == PYR_Q6_K) *scale = (vf)part_scales(head, half, which, j);
  else *scale = (vf)byte_of(scale_bytes(head, dtype, four), byte);
  if (dtype == PYR_Q3_K) *scale = (vf)halves_at(head) * (*scale - vset(32));
  if (dtype == PYR_Q2_K) *scale = (vf)block_factors(head) * *scale;
  *min = dtype == PYR_Q2_K ? -(vf)block_mins(head) * (vf)byte_of(min_bytes(head, four), byte)
      : *scale * vset((float)-offset_of(dtype));
}

INLINE void pack_of_sixteens(uint16_t *to, const uint8_t *w, int64_t cols, const pyr_dtype dtype) {
  for (int64_t c = 0; c < cols; c += 256, to += 8 * PYR_TILE_NEXT) {
    const uint8_t *head = w;
    w += head_bytes(dtype);
    for (int half = 0; half < 2; half++, w += 2 * 64 * part_lines(dtype))
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
        for (int which = 0; which < 2; which++) {
          uint16_t *line = to + (4 * half + j) * PYR_TILE_NEXT + 8 * which * LINE;
          vf scale, min;
          sixteens_factors(&scale, &min, head, dtype, half, which, j);
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++, line += 2 * LINE)
            put_words(line, sixteens_words(head, w, dtype, half, which, j, i), scale, min);
        }
  }
}

static void tile_pack(uint16_t *to, const void *pack, pyr_dtype dtype, int64_t cols) {
  switch (dtype) {
    case PYR_Q8_0: pack_of_q8_0(to, pack, cols); break;
    case PYR_Q4_0: pack_of_nibbles(to, pack, cols, PYR_Q4_0); break;
    case PYR_Q4_1: pack_of_nibbles(to, pack, cols, PYR_Q4_1); break;
    case PYR_IQ4_NL: pack_of_nibbles(to, pack, cols, PYR_IQ4_NL); break;
    case PYR_Q5_0: pack_of_fives(to, pack, cols, PYR_Q5_0); break;
    case PYR_Q5_1: pack_of_fives(to, pack, cols, PYR_Q5_1); break;
    case PYR_Q4_K: pack_of_q4_k(to, pack, cols); break;
    case PYR_Q3_K: pack_of_sixteens(to, pack, cols, PYR_Q3_K); break;
    case PYR_Q2_K: pack_of_sixteens(to, pack, cols, PYR_Q2_K); break;
    case PYR_Q6_K: pack_of_sixteens(to, pack, cols, PYR_Q6_K); break;
    case PYR_F32: case PYR_F16: case PYR_BF16: case PYR_Q5_K: PYR_CASES_NOT_WEIGHTS: break;
  }
}

/* ---- tiles ----------------------------------------------------------------------------------- */

typedef struct tile_shapes {                         /* as `ldtilecfg` wants it */
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} tile_shapes;

/* All eight are 16 rows of 64 bytes. */
static void begin(void) {
  static const tile_shapes shapes = {
    .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
    .rows = { 16, 16, 16, 16, 16, 16, 16, 16 },
  };
  __asm__ volatile("ldtilecfg %0" :: "m"(shapes));
}
static void end(void) { __asm__ volatile("tilerelease" ::: "memory"); }

#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile :: "r"(from), "r"(stride) : "memory")
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" :: "r"(to), "r"(stride) : "memory")
#define TILE_PRODUCT(sum, x, w) \
    __asm__ volatile("tdpbf16ps %%tmm" #w ", %%tmm" #x ", %%tmm" #sum ::: "memory")

/* Lines of x that will be read soon; and of two rows of out, that will be read or written. Any
 * address does no harm. */
INLINE void ask_for(const uint16_t *x, const int first, const int some) {
#pragma GCC unroll 8
  for (int i = first; i < first + some; i++) __builtin_prefetch(x + LINE * i, 0, 3);
}
INLINE void ask_to_write(float *row, int64_t ld) {
  for (int i = 0; i < 2; i++, row += ld)
    __builtin_prefetch(row, 1, 3), __builtin_prefetch(row + PYR_TILE, 1, 3);
}

/* Sums in tiles 0 to 3: two token tiles (4, 5) times two of weights (6, 7), of which the second
 * ones may be missing; `two_x` and `two_w` are constants. Sums go to `to` and begin at what is
 * there, if `add`.
 *
 * What the next step multiplies is loaded as soon as the last product of this step that reads the
 * tile has begun, and x, which streams from the second cache, is asked for AHEAD steps earlier, a
 * few lines at a time: a core that runs two threads holds few instructions of each, and would
 * else wait for each load. That is half as fast again there; alone a thread runs as before. */
enum { AHEAD = 4 };

INLINE void tile_block(const pyr_tile_product *p, float *to, int64_t ld, bool add, const bool two_x,
                       const bool two_w) {
  const int64_t stride = ld * (int64_t)sizeof(float), line = 64;
  const uint16_t *x = p->x, *w = p->w;
  float *below = to + PYR_TILE * ld, *next = p->out + PYR_TILE_BLOCK * p->ld;
  if (add) {
    TILE_LOAD(0, to, stride);
    if (two_w) TILE_LOAD(1, to + PYR_TILE, stride);
    if (two_x) TILE_LOAD(2, below, stride);
    if (two_x && two_w) TILE_LOAD(3, below + PYR_TILE, stride);
  } else {
    TILE_ZERO(0);
    if (two_w) TILE_ZERO(1);
    if (two_x) TILE_ZERO(2);
    if (two_x && two_w) TILE_ZERO(3);
  }
  TILE_LOAD(4, x, line);
  TILE_LOAD(6, w, line);
  if (two_x) TILE_LOAD(5, x + PYR_TILE_VALUES, line);
  if (two_w) TILE_LOAD(7, w + PYR_TILE_VALUES, line);
  for (int64_t k = 1; k < p->steps; k++) {     /* tiles 4 to 7 are those of step k - 1 */
    const uint16_t *ahead = x + AHEAD * PYR_TILE_NEXT;
    x += PYR_TILE_NEXT, w += PYR_TILE_NEXT;
    if (k <= PYR_TILE) ask_to_write(next, p->ld), next += 2 * p->ld;
    TILE_PRODUCT(0, 4, 6);
    ask_for(ahead, 0, 8);
    if (two_x) TILE_PRODUCT(2, 5, 6);
    ask_for(ahead, 8, 8);
    TILE_LOAD(6, w, line);
    if (two_w) TILE_PRODUCT(1, 4, 7);
    if (two_x) ask_for(ahead, 16, 8);
    TILE_LOAD(4, x, line);
    if (two_x && two_w) TILE_PRODUCT(3, 5, 7);
    if (two_x) ask_for(ahead, 24, 8);
    if (two_x) TILE_LOAD(5, x + PYR_TILE_VALUES, line);
    if (two_w) TILE_LOAD(7, w + PYR_TILE_VALUES, line);
  }
  TILE_PRODUCT(0, 4, 6);
  if (two_x) TILE_PRODUCT(2, 5, 6);
  if (two_w) TILE_PRODUCT(1, 4, 7);
  if (two_x && two_w) TILE_PRODUCT(3, 5, 7);
  TILE_STORE(0, to, stride);
  if (two_w) TILE_STORE(1, to + PYR_TILE, stride);
  if (two_x) TILE_STORE(2, below, stride);
  if (two_x && two_w) TILE_STORE(3, below + PYR_TILE, stride);
}

static void whole_tiles(const pyr_tile_product *p, float *to, int64_t ld, bool add) {
  bool two_x = p->tokens > PYR_TILE, two_w = p->rows > PYR_TILE;
  if (two_x && two_w) tile_block(p, to, ld, add, true, true);
  else if (two_x) tile_block(p, to, ld, add, true, false);
  else if (two_w) tile_block(p, to, ld, add, false, true);
  else tile_block(p, to, ld, add, false, false);
}

/* What does not fill its tiles, or has a bias, which sums then begin at, goes by a block of whole
 * ones. Each sum is the same chain either way. */
static void multiply(const pyr_tile_product *p) {
  if (p->tokens % PYR_TILE == 0 && p->rows % PYR_TILE == 0 && !p->bias) {
    whole_tiles(p, p->out, p->ld, p->add);
    return;
  }
  float block[PYR_TILE_BLOCK * PYR_TILE_BLOCK] __attribute__((aligned(64))) = { 0 };
  for (int t = 0; t < p->tokens && (p->add || p->bias); t++)
    for (int r = 0; r < p->rows; r++)
      block[t * PYR_TILE_BLOCK + r] = (p->add ? p->out[t * p->ld + r] : 0)
          + (p->bias ? p->bias[r] : 0);
  whole_tiles(p, block, PYR_TILE_BLOCK, p->add || p->bias);
  for (int t = 0; t < p->tokens; t++)
    memcpy(p->out + t * p->ld, block + t * PYR_TILE_BLOCK, (size_t)p->rows * sizeof(float));
}

#include "tile_bytes.inc"

/* ---- attention ------------------------------------------------------------------------------- */

/* A block of rows against a slice of two tiles of columns. What is summed over lies in pairs in all
 * four operands, so that tiles are loaded from where they lie, `stride` bytes from line to line:
 *
 *     keys     [rows][d]         as rows are: sixteen rows, 32 values of d, are a tile
 *     q        [d pairs][WIDE]   sixteen pairs, sixteen columns
 *     values   [dims][rows]      turned: sixteen dimensions, 32 rows
 *     p        [row pairs][WIDE] as softmax leaves it
 *
 * Scores and out, f32, are lines of WIDE columns, too. Rows are taken in whole steps: weights of
 * those that fill them up are 0. */
enum { WIDE = 2 * PYR_TILE, STEP_PAIRS = PYR_TILE_STEP / 2, HALF = PYR_FLASH_ROWS / 2 };
_Static_assert((int)PYR_FLASH_STEP == (int)PYR_TILE_STEP, "d is padded to whole tiles");

/* Rows in their order: d is padded already, so that a block is one run of values. */
static void pack_keys(float *to, const float *rows, int64_t ld) {
  for (int64_t i = 0; i < PYR_FLASH_ROWS * ld; i += PYR_TILE_STEP, to += STEP_PAIRS)
    _mm512_storeu_si512(to, rounded(vload(rows + i), vload(rows + i + VL)));
}

/* A tile of values: pairs of 32 rows at sixteen dimensions, pairs for dimensions. */
static void pack_values(float *to, const float *rows, int64_t ld, int64_t dims) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                          24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                          16, 0);
  for (int64_t d = 0; d < dims; d += PYR_TILE)
    for (int64_t r = 0; r < PYR_FLASH_ROWS; r += PYR_TILE_STEP) {
      __m512i pairs[PYR_TILE];
#pragma GCC unroll 16
      for (int i = 0; i < PYR_TILE; i++) {
        const float *from = rows + (r + 2 * i) * ld + d;
        pairs[i] = _mm512_permutexvar_epi16(places, rounded(vload(from), vload(from + ld)));
      }
      turn16(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < PYR_TILE; i++) _mm512_storeu_si512(to + (d + i) * HALF + r / 2, pairs[i]);
    }
}

/* Two tiles of lines from `a` on times the slice's columns, over `steps` of 16 pairs: lines are
 * `line` floats apart, steps of b follow each other. Sums begin at what is in c, if `add`. The
 * second tile of lines, or of columns, may be missing. */
INLINE void flash_block(float *c, const float *a, int64_t line, const float *b, int64_t steps,
                        const bool add, const bool two_a, const bool two_b) {
  const int64_t across = WIDE * (int64_t)sizeof(float), along = line * (int64_t)sizeof(float);
  float *below = c + PYR_TILE * WIDE;
  if (add) {
    TILE_LOAD(0, c, across);
    if (two_b) TILE_LOAD(1, c + PYR_TILE, across);
    if (two_a) TILE_LOAD(2, below, across);
    if (two_a && two_b) TILE_LOAD(3, below + PYR_TILE, across);
  } else {
    TILE_ZERO(0);
    if (two_b) TILE_ZERO(1);
    if (two_a) TILE_ZERO(2);
    if (two_a && two_b) TILE_ZERO(3);
  }
  for (int64_t s = 0; s < steps; s++, a += STEP_PAIRS, b += STEP_PAIRS * WIDE) {
    TILE_LOAD(4, a, along);
    TILE_LOAD(6, b, across);
    if (two_a) TILE_LOAD(5, a + PYR_TILE * line, along);
    if (two_b) TILE_LOAD(7, b + PYR_TILE, across);
    TILE_PRODUCT(0, 4, 6);
    if (two_a) TILE_PRODUCT(2, 5, 6);
    if (two_b) TILE_PRODUCT(1, 4, 7);
    if (two_a && two_b) TILE_PRODUCT(3, 5, 7);
  }
  TILE_STORE(0, c, across);
  if (two_b) TILE_STORE(1, c + PYR_TILE, across);
  if (two_a) TILE_STORE(2, below, across);
  if (two_a && two_b) TILE_STORE(3, below + PYR_TILE, across);
}

/* All lines of a product, two tiles of them at a time. */
INLINE void flash_lines(float *c, const float *a, int64_t line, const float *b, int64_t steps,
                        int lines, bool wide, const bool add) {
  for (int i = 0; i < lines; i += WIDE, a += WIDE * line, c += WIDE * WIDE) {
    bool two = lines - i > PYR_TILE;
    if (two && wide) flash_block(c, a, line, b, steps, add, true, true);
    else if (two) flash_block(c, a, line, b, steps, add, true, false);
    else if (wide) flash_block(c, a, line, b, steps, add, false, true);
    else flash_block(c, a, line, b, steps, add, false, false);
  }
}

/* Of d 64 and 64 rows against 32 columns: two steps of four products for each two tiles of rows.
 * Their lines are keys, so that a softmax runs down columns here, too. */
static void flash_scores(const pyr_flash_step *t) {
  flash_lines(t->scores, t->keys + (int64_t)t->from * t->depth, t->depth, t->q,
              t->depth / STEP_PAIRS, t->rows, t->columns > PYR_TILE, false);
}

/* Sums begin at out, which is rescaled before, where a maximum rose: after the first blocks of a
 * tile that is rare, and a pass over out would cost as much as half of the products. */
static void flash_values(const pyr_flash_step *t) {
  int steps = pyr_flash_padded(t->rows, PYR_TILE_STEP) / PYR_TILE_STEP;
  for (int c = 0; c < t->columns; c += VL) {
    vf alpha = vload(t->alpha + c);
    if (_mm512_cmp_ps_mask((__m512)alpha, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) == 0) continue;
    for (int d = 0; d < t->dims; d++)
      vstore(t->out + d * WIDE + c, vload(t->out + d * WIDE + c) * alpha);
  }
  flash_lines(t->out, t->values + t->from / 2, HALF, t->p, steps, t->dims, t->columns > PYR_TILE,
              true);
}

const pyr_tiles pyr_tiles_amx = {
  .compiled = true, .begin = begin, .end = end, .pack_tokens = pack_tokens, .pack_rows = pack_rows,
  .tile_pack = tile_pack, .multiply = multiply, .takes_bytes = takes_bytes,
  .bytes_tokens = bytes_tokens, .bytes_sheet = bytes_sheet, .round_tokens = round_tokens,
  .begin_bytes = begin_bytes, .unpack_bytes = unpack_bytes, .dot_bytes = dot_bytes,
  .flash = { .width = WIDE, .unit = PYR_TILE_STEP, .pack_keys = pack_keys,
             .pack_values = pack_values, .scores = flash_scores, .values = flash_values,
             .begin = begin, .end = end },
};

#else
const pyr_tiles pyr_tiles_amx = { .compiled = false };
#endif
