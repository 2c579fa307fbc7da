/* interleave.c — the order of quantised weights in which few tokens are multiplied fastest.
 *
 * PYR_PACK rows that follow each other are a pack, as many bytes as before. Block by block of
 * their values, first the two bytes that no word of four holds (a scale, where the bytes of a block
 * are no multiple of four), row beside row, then the block's words, each row beside row: a vector
 * of words has one of each row. Of q8_0, whose block is a scale s of two bytes and 32 bytes, 8
 * words w:
 *
 *     before    row r:      s_r   w_r,0  w_r,1 … w_r,7                34 bytes, in 16 places
 *
 *     a pack    scales:     s_0   s_1   …  s_15                       16 x 2 bytes
 *               words 0:    w_0,0   w_1,0   …  w_15,0                 16 x 4 bytes: one vector, of
 *               words 1:    w_0,1   w_1,1   …  w_15,1                 values 0 to 3 of every row;
 *               …                                                     then their values 4 to 7, …
 *               words 7:    w_0,7   w_1,7   …  w_15,7                 544 bytes: 16 times 34
 *
 * A product then needs no scale spread over a vector, no sum across one, and unpacks each byte
 * once for all tokens (dot_pack of int8.inc), which reads them in the order in which they lie:
 * those of q6_k, q3_k and q2_k are their own. Only the fifth bits of q5_0 and q5_1 are no longer
 * the same words. All other readers get rows back through pyr_cpu_weights.
 *
 * Does not own: who asks for it and where it lies (bind_matrix of model.c). */
#include "cpu/cpu.h"

#include <string.h>

enum { WORD = 4, MOST_BLOCK = 210 };     /* bytes of q6_k, the largest block */
#define FITS(arg, number, name, kind, block, bytes, ...) \
  _Static_assert(bytes <= MOST_BLOCK, #name ": a block larger than MOST_BLOCK");
PYR_DTYPE_TABLE(FITS, )

/* Rows that do not fill packs stay as they are, all of them: a weight has one order. */
int32_t pyr_cpu_interleaved(const pyr_backend *be, const pyr_tensor *w) {
  const pyr_cpu *cpu = pyr_cpu_of(be);
  bool fits = w->rank == 2 && w->shape[0] % PYR_PACK == 0
      && (pyr_dtype_kernels(w->dtype, false) & PYR_KERNEL_PACKS);
  return cpu->int8 && fits ? PYR_PACK : 0;
}

/* q6_k's words (see dtype.c): the scales; then, for each half of the block and each half of its
 * runs of 32 values, four times a word of low bits of runs 0 and 2, one of runs 1 and 3, and one of
 * the high two bits of all four. Of a block's 52 words, 0 to 31 are low bits, 32 to 47 the high
 * two, 48 to 51 the scales; its own scale is the odd two bytes at 208. */
static const uint8_t q6_k_words[] = {
  48, 49, 50, 51,
   0,  8, 32,   1,  9, 33,   2, 10, 34,   3, 11, 35,      4, 12, 36,   5, 13, 37,   6, 14, 38,   7,
       15, 39,
  16, 24, 40,  17, 25, 41,  18, 26, 42,  19, 27, 43,     20, 28, 44,  21, 29, 45,  22, 30, 46,  23,
      31, 47,
};

/* q3_k's: the scales, third bits of all 256 values, then pairs of bits, which lie in the order in
 * which they are wanted. q2_k's: its two factors, then all in its order. In a pack, vectors of 16
 * rows, of which the first 32 bytes of q3_k's are half a one:
 *
 *     q3_k    d | 3 of scales | 8 of third bits  | 16 of pairs, 4 to each part: 110 * 16 bytes
 *     q2_k    d and dmin      | 4 of scales and mins of 4 bits | 16 of pairs:   84 * 16 bytes
 *
 * Third bits serve all parts: their 512 bytes are read again out of the first cache. */
static const uint8_t q3_k_words[] = {
  24, 25, 26,   0, 1, 2, 3, 4, 5, 6, 7,   8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
  23,
};
static const uint8_t q2_k_words[] = {
  20,   0, 1, 2, 3,   4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
};

/* A block of a row: `odd` bytes at odd_at, and words from words_at on, in the order of `order`, if
 * there is one; word `fifths` has the fifth bits of 32 values, if it is one of them. q8_0: 34
 * bytes, 2 odd ones at 0, 8 words from 2 on. q5_1: 24 bytes, 6 words from 0 on, fifth bits in
 * word 1. q6_k: 210 bytes, 2 odd ones at 208, 52 words from 0 on, in the order above. */
typedef struct block_form {
  size_t bytes, odd, odd_at, words_at, fifths;
  const uint8_t *order;
} block_form;
static block_form form_of(pyr_dtype dtype) {
  size_t bytes = pyr_dtype_block_bytes(dtype), odd = bytes % WORD;
  block_form f = { .bytes = bytes, .odd = odd, .words_at = odd, .fifths = SIZE_MAX };
  if (dtype == PYR_Q5_0) f.fifths = 0;
  if (dtype == PYR_Q5_1) f.fifths = 1;
  if (dtype == PYR_Q6_K) f.odd_at = bytes - odd, f.words_at = 0, f.order = q6_k_words;
  if (dtype == PYR_Q3_K) f.odd_at = bytes - odd, f.words_at = 0, f.order = q3_k_words;
  if (dtype == PYR_Q2_K) f.order = q2_k_words;
  return f;
}

/* Fifth bits, of value v in bit v, as packs have them: of value 4 i + j in bit i of byte j, so that
 * those of four values that follow each other are one shift away from their bytes. And back. A
 * product puts four bits into four bytes, or the lowest bits of four bytes beside each other: of
 * 1011 the first makes 1, 1, 0, 1 from the lowest byte up.
 *
 *     in a file     bit    0  1  2  3 |  4  5  6  7 | …        value 0, 1, 2, …
 *     in a pack     bit    0  8 16 24 |  1  9 17 25 | …        byte j has values j, 4 + j, 8 + j, …
 */
static uint32_t deal_fifths(uint32_t bits) {
  uint32_t dealt = 0;
  for (int i = 0; i < 8; i++) dealt |= ((bits >> 4 * i & 15) * 0x00204081u & 0x01010101u) << i;
  return dealt;
}
static uint32_t gather_fifths(uint32_t dealt) {
  uint32_t bits = 0;
  for (int i = 0; i < 8; i++)
    bits |= ((dealt >> i & 0x01010101u) * 0x01020408u >> 24 & 15) << 4 * i;
  return bits;
}

/* Where they lie in the block of its pack. Of row 3 in a pack of q8_0: its scale at 3 * 2, its
 * first word at 16 * 2 + 3 * 4, its next ones each 64 bytes on. */
static size_t odd_in(const block_form *f, int64_t row) { return (size_t)row * f->odd; }
static size_t words_in(const block_form *f, int64_t row) {
  return PYR_PACK * f->odd + (size_t)row * WORD;
}

/* Where word i of a pack's row stands in its own block: word 4 of q6_k, the first one behind the
 * scales, at 4 * 0 = 0; word 1 of q8_0 at 2 + 4 * 1 = 6; word 3 of q2_k, whose word 0 is the two
 * factors, at 4 * 2 = 8. */
static size_t word_from(const block_form *f, size_t i) {
  return f->words_at + WORD * (f->order ? f->order[i] : i);
}

/* One for all tasks: packs do not overlap. */
typedef struct call { uint8_t *to; const pyr_tensor *w; } call;

/* A task writes the pack of its own 16 rows, block by block: both are read and written once, in
 * order of memory but for the 16 rows' strides. */
static void interleave_pack(void *ctx, int64_t task, int worker) {
  const call *c = ctx;
  (void)worker;
  block_form f = form_of(c->w->dtype);
  int64_t blocks = c->w->shape[1] / pyr_dtype_block(c->w->dtype);
  const uint8_t *rows = (const uint8_t *)c->w->data + (size_t)(task * PYR_PACK) * c->w->stride;
  uint8_t *pack = c->to + (size_t)(task * PYR_PACK * blocks) * f.bytes;
  for (int64_t b = 0; b < blocks; b++, pack += PYR_PACK * f.bytes)
    for (int64_t r = 0; r < PYR_PACK; r++) {
      const uint8_t *from = rows + (size_t)r * c->w->stride + (size_t)b * f.bytes;
      uint8_t *to = pack + words_in(&f, r);
      memcpy(pack + odd_in(&f, r), from + f.odd_at, f.odd);
      for (size_t i = 0; i < f.bytes / WORD; i++, to += PYR_PACK * WORD) {
        uint32_t word;
        memcpy(&word, from + word_from(&f, i), WORD);
        if (i == f.fifths) word = deal_fifths(word);
        memcpy(to, &word, WORD);
      }
    }
}

/* `to` is as large as w's data, and may not be it. */
pyr_status pyr_cpu_interleave(pyr_backend *be, void *to, const pyr_tensor *w) {
  call c = { to, w };
  pyr_parallel(be->rt, interleave_pack, &c, w->shape[0] / PYR_PACK);
  return PYR_OK;
}

/* Of packs, the row is put together again 4 blocks at a time, in 840 bytes of stack, and then
 * read like any other. Slower than rows as they lie: for the few who read rows of such a weight
 * (embeddings are never interleaved). */
void pyr_cpu_weights(const pyr_kernels *k, float *dst, const pyr_tensor *w, int64_t row,
                     int64_t col, int64_t n) {
  enum { SOME = 4 };                     /* blocks at a time */
  const uint8_t *data = w->data;
  block_form f = form_of(w->dtype);
  int64_t block = pyr_dtype_block(w->dtype), first = col / block;
  if (!w->interleaved) {
    k->to_f32(dst, data + (size_t)row * w->stride + (size_t)first * f.bytes, w->dtype, n);
    return;
  }
  uint8_t plain[SOME * MOST_BLOCK];
  const uint8_t *pack = data + (size_t)(row / PYR_PACK * PYR_PACK) * w->stride
      + PYR_PACK * (size_t)first * f.bytes;
  for (int64_t left = n / block; left > 0;) {
    int64_t some = pyr_min(left, SOME);
    uint8_t *to = plain;
    for (int64_t b = 0; b < some; b++, pack += PYR_PACK * f.bytes, to += f.bytes) {
      const uint8_t *from = pack + words_in(&f, row % PYR_PACK);
      memcpy(to + f.odd_at, pack + odd_in(&f, row % PYR_PACK), f.odd);
      for (size_t i = 0; i < f.bytes / WORD; i++, from += PYR_PACK * WORD) {
        uint32_t word;
        memcpy(&word, from, WORD);
        if (i == f.fifths) word = gather_fifths(word);
        memcpy(to + word_from(&f, i), &word, WORD);
      }
    }
    k->to_f32(dst, plain, w->dtype, some * block);
    dst += some * block;
    left -= some;
  }
}
