/* signs.h — a page of keys known by the mean of its keys and, of each key, the signs of what it has
 * beside the mean: one bit a channel, by which a query tells about what it has with each of them.
 *
 * Owns the format and its plain arithmetic, which kernels are held against. The estimate is
 * RaBitQ's (arXiv 2405.12497), with the page as the cluster and Hadamard's matrix H as the rotation:
 *
 *     key k of a page with mean c      y = H (k - c),  its signs s,  its scale |y|^2 / sum |y|
 *     query q                          q . k  is about  q . c + scale (H q) . s
 *
 * The scale makes the estimate of a query along y exact, and of any other one right on average: it
 * errs by about 0.75 |q| |y| / sqrt(head_dim), where a bound of the page (Quest) is off by what all
 * channels together might have and no key has.
 *
 * In memory, of rows 0 to 31 and channels in groups of four; missing channels are 0:
 *
 *     mean f32 [head_dim, in steps of 16] | scales f32 [32] | 16 bytes for each group
 *
 *     byte i of a group:   channels 3210 of row i + 16 | channels 3210 of row i       1: y > 0
 *
 * so that one vector look-up of 16 bytes serves 16 rows. A query brings a table of 16 sums for each
 * group, one for every choice of four signs, rounded to 8 bits of one step:
 *
 *     (H q) . s  is about  step (sum over groups of table[bits] - 127 groups)
 */
#ifndef PYR_SIGNS_H
#define PYR_SIGNS_H

#include <stdint.h>

enum { PYR_SIGNS_ROWS = 32, PYR_SIGNS_MIDDLE = 127 };

/* Of 6 channels: 16 floats of mean, 2 groups of signs. Groups are even in number, for kernels that
 * take two at once. */
static inline int64_t pyr_signs_mean(int32_t head_dim) {
  return ((int64_t)head_dim + 15) / 16 * 16;
}
static inline int64_t pyr_signs_groups(int32_t head_dim) { return ((int64_t)head_dim + 7) / 8 * 2; }
/* Floats of a page: 64 channels take 64 + 32 + 64, or 20 bytes a row. */
static inline int64_t pyr_signs_width(int32_t head_dim) {
  return pyr_signs_mean(head_dim) + PYR_SIGNS_ROWS + 4 * pyr_signs_groups(head_dim);
}

/* What is known of keys [32, head_dim], which are spoiled: scales and signs come behind the mean,
 * which is there already, in a digest that is 0 otherwise. A key with a NaN or an infinity makes
 * the mean NaN. */
void pyr_signs_of(float *digest, float *keys, int32_t head_dim);

/* table [groups][16] of q [head_dim], which is spoiled; returns the step, 0 where q is. */
float pyr_signs_table(uint8_t *table, float *q, int32_t head_dim);

/* The most that one of the rows has beside the mean: the highest of scale * step * (…) above. */
float pyr_signs_most(const float *scales, const uint8_t *signs, const uint8_t *table, float step,
                     int64_t groups);

#endif
