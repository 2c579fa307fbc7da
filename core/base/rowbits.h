/* rowbits.h — cache rows of few bits: how keys and values become 8 to 2 bits each in the frame of
 * their lane, and back.
 *
 * Owns the formats and their plain arithmetic, which is the reference that kernels are held
 * against. Does not own pages (cache/) nor decide who is packed. A frame is learned once from the
 * first rows of a lane and then stays, so that rows can be compared with every query by products
 * alone:
 *
 *     key    k    less its centre, times a factor for each channel          (k - c) f
 *                 channels by falling weight, in four quarters             place i: channel from[i]
 *                 each quarter rotated by Hadamard's matrix H               y = H (…)
 *     value  v    less its centre, rotated as a whole                       y = H (v - c)
 *     row         y / scale rounded to the nearest of 2^b levels, b by quarter
 *
 * As H is its own inverse and the factors are the same for all rows of the lane, a query is taken
 * into the frame once, and rows are never taken out of it to be scored:
 *
 *     q . k  =  q . c + (H (q / f)) . y            out = sum p v  =  H (sum p y) + c sum p
 *
 * Why: the centre of keys, the same in every row, takes half a bit of each value otherwise; a
 * channel that queries hardly look at need not be exact, and factors make errors count alike
 * (factor = what queries have there, rms, over the rms of the quarter); bits fall from quarter to
 * quarter as the weights do, which is worth 0.7 bits (SmolLM2) to 1.5 bits (Gemma 3) of each key
 * over equal bits; H makes what is left nearly Gaussian, for which the levels are (Lloyd and Max;
 * QuaRot, arXiv 2404.00456, KIVI, arXiv 2402.02750, and TurboQuant, arXiv 2504.19874, tell of the
 * parts).
 *
 * A row in memory: its scale, f16, then the quarters. Eight values of b bits take b bytes, value i
 * from bit i b on, lowest first. Of 64 values at 6, 4, 4 and 2 bits:
 *
 *     byte  0 1 | 2 … 13         | 14 … 21       | 22 … 29        | 30 … 33          4.25 bits
 *         scale | 16 x 6 bits    | 16 x 4 bits   | 16 x 4 bits    | 16 x 2 bits      a value */
#ifndef PYR_ROWBITS_H
#define PYR_ROWBITS_H

#include "pyramid.h"

#include <stdbool.h>
#include <stddef.h>

enum {
  PYR_QUARTERS = 4,
  PYR_BITS_SLACK = 8,     /* bytes behind the last row of a page that may be read, never used */
  PYR_BITS_DIMS = 512,    /* values of a row at most, packed or plain: no model has more, */
  PYR_BITS_STEP = 32,     /* … and what their number is a multiple of where rows are packed */
};

/* Lloyd's and Max's levels of a Gaussian of variance 1, whose mean square errors are 0.1175,
 * 0.03454 and 0.009497 at 2, 3 and 4 bits: equal steps would cost 1, 8 and 21 % more. From 5 bits
 * on levels are equal steps apart, those that err least (Max, 1960). */
#define PYR_LEVELS_2 -1.5104f, -0.4528f, 0.4528f, 1.5104f
#define PYR_LEVELS_3 \
  -2.1519f, -1.3439f, -0.7560f, -0.2451f, 0.2451f, 0.7560f, 1.3439f, 2.1519f
#define PYR_LEVELS_4 \
  -2.7326f, -2.0690f, -1.6180f, -1.2562f, -0.9423f, -0.6568f, -0.3880f, -0.1284f, \
  0.1284f, 0.3880f, 0.6568f, 0.9423f, 1.2562f, 1.6180f, 2.0690f, 2.7326f
#define PYR_LEVELS_STEP_6 0.1041f
#define PYR_LEVELS_STEP_8 0.0308f

/* What the frame knows of a place of the rotated key, and of channel i of values and queries. */
typedef struct pyr_channel {
  int32_t from;              /* place i holds this channel of the key, */
  float centre, factor;      /* … less this, times this; factor > 0 */
  float value;               /* centre of channel i of values */
  float need;                /* sum of squares of channel i over queries, before it is learned */
} pyr_channel;

/* Learned or not, it is one block of numbers: forks copy it, and saved caches hold it as it is. */
typedef struct pyr_frame {
  int32_t head_dim, learned;    /* learned: 0 or 1 */
  float weight[PYR_QUARTERS];   /* what the square of an error of a key's quarter weighs */
  pyr_channel channels[];       /* [head_dim] */
} pyr_frame;

size_t pyr_frame_bytes(int32_t head_dim);

/* Bits of a value in each quarter of a key, or (`value`) of a value; NULL of PYR_BITS_PLAIN. */
const uint8_t *pyr_bits_quarters(pyr_bits bits, bool value);
/* Bytes of a row of d values; d is a multiple of PYR_BITS_STEP. */
size_t pyr_bits_bytes(pyr_bits bits, bool value, int32_t d);
/* Learns a frame of zeros but for head_dim and `need` from n rows of keys and of values [n,
 * head_dim]. */
void pyr_frame_learn(pyr_frame *frame, const float *keys, const float *values, int64_t n);
/* Whether a learned frame can be used as it is: for those that come from a file. */
bool pyr_frame_valid(const pyr_frame *frame);

/* One row [head_dim] into bits and back. NaN and what is infinite make a row of NaN or infinities;
 * a row that is the centre becomes exactly that. */
void pyr_bits_from_f32(void *row, pyr_bits bits, bool value, const pyr_frame *frame,
                       const float *src);
void pyr_bits_to_f32(float *dst, const void *row, pyr_bits bits, bool value,
                     const pyr_frame *frame);
/* As it lies in the frame: y, [head_dim]. */
void pyr_bits_unpack(float *y, const void *row, pyr_bits bits, bool value, int32_t d);

/* q [head_dim] becomes what is multiplied with y; returns q . c. */
float pyr_frame_query(float *y, const pyr_frame *frame, const float *q);
/* out [head_dim] = H y + share * c, of sums y of values in the frame whose weights add up to share;
 * y is spoiled. */
void pyr_frame_output(float *out, const pyr_frame *frame, float *y, float share);

#endif
