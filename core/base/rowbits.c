/* rowbits.c — see rowbits.h for the formats.
 *
 * A row's scale is chosen among a few around the one that a Gaussian of its size would want, as the
 * one whose rounding errors weigh least: 64 values differ from a Gaussian, and the row is written
 * once and read at every token. */
#include "base/rowbits.h"
#include "base/dtype.h"
#include "base/hadamard.h"

#include <math.h>

/* ---- formats --------------------------------------------------------------------------------- */

/* Bits by quarter: of keys as weights fall, of values, which are rotated as a whole, alike. */
static const uint8_t quarters[PYR_BITS_KINDS][2][PYR_QUARTERS] = {
  [PYR_BITS_8] = { { 8, 8, 8, 8 }, { 8, 8, 8, 8 } },
  [PYR_BITS_4] = { { 6, 4, 4, 2 }, { 4, 4, 4, 4 } },
  [PYR_BITS_3] = { { 4, 4, 2, 2 }, { 3, 3, 3, 3 } },
  [PYR_BITS_2] = { { 4, 2, 2, 0 }, { 2, 2, 2, 2 } },
};

/* 2^b levels, ascending; of no bits one. */
static const float none[] = { 0 }, two[] = { PYR_LEVELS_2 }, three[] = { PYR_LEVELS_3 },
    four[] = { PYR_LEVELS_4 };
static const float *const levels[] = { none, NULL, two, three, four };

static float step_of(int b) { return b == 6 ? PYR_LEVELS_STEP_6 : PYR_LEVELS_STEP_8; }

const uint8_t *pyr_bits_quarters(pyr_bits bits, bool value) {
  return bits == PYR_BITS_PLAIN ? NULL : quarters[bits][value];
}

/* 64 values at 6 4 4 2 bits: 2 + 64 / 4 / 8 * 16 = 34 bytes. */
size_t pyr_bits_bytes(pyr_bits bits, bool value, int32_t d) {
  const uint8_t *b = pyr_bits_quarters(bits, value);
  size_t eights = (size_t)d / PYR_QUARTERS / 8;
  return 2 + eights * ((size_t)b[0] + b[1] + b[2] + b[3]);
}

size_t pyr_frame_bytes(int32_t head_dim) {
  return sizeof(pyr_frame) + (size_t)head_dim * sizeof(pyr_channel);
}

/* ---- rotation -------------------------------------------------------------------------------- */

/* Quarters of 6 are rotated by twos, those of 16 as a whole. */
static void rotate_key(float *y, int32_t d) {
  pyr_hadamard(y, d, pyr_hadamard_size(d / PYR_QUARTERS));
}
static void rotate_value(float *y, int32_t d) { pyr_hadamard(y, d, pyr_hadamard_size(d)); }

float pyr_frame_query(float *y, const pyr_frame *frame, const float *q) {
  float shift = 0;
  for (int32_t i = 0; i < frame->head_dim; i++) {
    const pyr_channel *c = &frame->channels[i];
    y[i] = q[c->from] / c->factor;
    shift += q[c->from] * c->centre;
  }
  rotate_key(y, frame->head_dim);
  return shift;
}

void pyr_frame_output(float *out, const pyr_frame *frame, float *y, float share) {
  rotate_value(y, frame->head_dim);
  for (int32_t i = 0; i < frame->head_dim; i++) out[i] = y[i] + share * frame->channels[i].value;
}

/* ---- learning -------------------------------------------------------------------------------- */

/* Places by falling weight, ties by channel: an insertion sort of at most 512, once a lane. */
static void order(pyr_frame *frame, const float *weight) {
  for (int32_t i = 0; i < frame->head_dim; i++) {
    int32_t at = i;
    for (; at > 0 && weight[frame->channels[at - 1].from] < weight[i]; at--)
      frame->channels[at].from = frame->channels[at - 1].from;
    frame->channels[at].from = i;
  }
}

/* Where no query was seen all channels count alike; of n rows of which none differs from the
 * centre, factors are 1. A channel that queries hardly have is held to a fiftieth of their mean, as
 * later ones may have it. */
void pyr_frame_learn(pyr_frame *frame, const float *keys, const float *values, int64_t n) {
  int32_t d = frame->head_dim;
  float mean = 0, centre[PYR_BITS_DIMS], need[PYR_BITS_DIMS], work[PYR_BITS_DIMS];
  for (int32_t i = 0; i < d; i++) {
    double key = 0, value = 0, square = 0;
    for (int64_t r = 0; r < n; r++) key += keys[r * d + i], value += values[r * d + i];
    key /= (double)n;
    for (int64_t r = 0; r < n; r++) square += (keys[r * d + i] - key) * (keys[r * d + i] - key);
    centre[i] = (float)key;
    frame->channels[i].value = (float)(value / (double)n);
    need[i] = sqrtf(frame->channels[i].need);
    work[i] = (float)(square / (double)n);
    mean += need[i] / (float)d;
  }
  for (int32_t i = 0; i < d; i++) {
    need[i] = mean > 0 ? fmaxf(need[i] / mean, 0.02f) : 1;
    work[i] *= need[i] * need[i];
  }
  order(frame, work);
  int32_t quarter = d / PYR_QUARTERS;
  frame->learned = 1;
  for (int g = 0; g < PYR_QUARTERS; g++) {
    float sum = 0;
    for (int32_t i = 0; i < quarter; i++) sum += work[frame->channels[g * quarter + i].from];
    float size = sqrtf(sum / (float)quarter);
    if (!(size > 1e-12f)) size = 1;
    frame->weight[g] = size * size;
    for (int32_t i = 0; i < quarter; i++) {
      pyr_channel *c = &frame->channels[g * quarter + i];
      c->centre = centre[c->from];
      c->factor = need[c->from] / size;
    }
  }
}

/* Every channel is some place's, factors can be divided by, and nothing is infinite. */
bool pyr_frame_valid(const pyr_frame *frame) {
  bool seen[PYR_BITS_DIMS] = { false };
  for (int32_t i = 0; i < frame->head_dim; i++) {
    const pyr_channel *c = &frame->channels[i];
    if (c->from < 0 || c->from >= frame->head_dim || seen[c->from]) return false;
    if (!(c->factor > 0 && isfinite(c->factor) && isfinite(c->centre) && isfinite(c->value)))
      return false;
    seen[c->from] = true;
  }
  return true;
}

/* ---- a row into bits ------------------------------------------------------------------------- */

static float level_of(int index, int b) {
  return b <= 4 ? levels[b][index]
      : ((float)index - (float)((1 << b) - 1) * 0.5f) * step_of(b);
}

/* Indices of the levels nearest to n values, 8 or a multiple of it, of which `inverse` makes units
 * of the row's scale. Thresholds lie in the middle of levels; as each is compared with all values,
 * without branches, compilers make vector code of it. NaN becomes 0. */
static void nearest(int32_t *restrict index, const float *restrict y, int32_t n, int b,
                    float inverse) {
  for (int32_t i = 0; i < n; i++) index[i] = 0;
  if (b > 4) {
    float by = inverse / step_of(b), most = (float)((1 << b) - 1), half = (float)(1 << (b - 1));
    for (int32_t i = 0; i < n; i++) {
      float at = y[i] * by + half;
      at = at > 0 ? at : 0;
      index[i] = (int32_t)(at < most ? at : most);
    }
    return;
  }
  for (int t = 1; t < 1 << b; t++) {
    float threshold = 0.5f * (levels[b][t - 1] + levels[b][t]);
    for (int32_t i = 0; i < n; i++) index[i] += y[i] * inverse > threshold;
  }
}

/* What rounding y to levels of this scale costs. */
static float error_of(const float *y, int32_t d, const uint8_t *b, const float *weight,
                      float scale) {
  int32_t index[PYR_BITS_DIMS / PYR_QUARTERS], quarter = d / PYR_QUARTERS;
  float error = 0, inverse = 1 / scale;
  for (int g = 0; g < PYR_QUARTERS; g++, y += quarter) {
    float sum = 0;
    nearest(index, y, quarter, b[g], inverse);
    for (int32_t i = 0; i < quarter; i++) {
      float e = y[i] - scale * level_of(index[i], b[g]);
      sum += e * e;
    }
    error += weight ? sum * weight[g] : sum;
  }
  return error;
}

/* The scale, as the half that is stored. Those tried lie around the size of the row. */
static uint16_t scale_of(const float *y, int32_t d, const uint8_t *b, const float *weight) {
  static const float tried[] = { 1.0f, 0.88f, 0.94f, 1.07f, 1.15f };
  float square = 0, least = INFINITY;
  for (int32_t i = 0; i < d; i++) square += y[i] * y[i];
  float size = sqrtf(square / (float)d);
  uint16_t best = pyr_f16_of_f32(size);
  if (!(size > 1e-7f && size < 65000.0f)) return best;
  for (size_t t = 0; t < sizeof tried / sizeof *tried; t++) {
    uint16_t half = pyr_f16_of_f32(size * tried[t]);
    float error = error_of(y, d, b, weight, pyr_f32_of_f16(half));
    if (error < least) least = error, best = half;
  }
  return best;
}

/* Eight indices of b bits into b bytes, value i from bit i b on. */
static void put_eight(uint8_t *to, const float *y, int b, float scale) {
  uint64_t word = 0;
  int32_t index[8];
  nearest(index, y, 8, b, scale > 0 ? 1 / scale : 0);
  for (int i = 0; i < 8; i++) word |= (uint64_t)index[i] << i * b;
  for (int i = 0; i < b; i++) to[i] = (uint8_t)(word >> 8 * i);
}

void pyr_bits_from_f32(void *row, pyr_bits bits, bool value, const pyr_frame *frame,
                       const float *src) {
  float y[PYR_BITS_DIMS];
  int32_t d = frame->head_dim, quarter = d / PYR_QUARTERS;
  const uint8_t *b = pyr_bits_quarters(bits, value);
  uint8_t *to = row;
  for (int32_t i = 0; i < d; i++) {
    const pyr_channel *c = &frame->channels[i];
    y[i] = value ? src[i] - c->value : (src[c->from] - c->centre) * c->factor;
  }
  if (value) rotate_value(y, d);
  else rotate_key(y, d);
  uint16_t half = scale_of(y, d, b, value ? NULL : frame->weight);
  memcpy(to, &half, sizeof half);
  to += sizeof half;
  for (int g = 0; g < PYR_QUARTERS; g++)
    for (int32_t i = quarter * g; i < quarter * (g + 1); i += 8, to += b[g])
      put_eight(to, y + i, b[g], pyr_f32_of_f16(half));
}

/* ---- and back -------------------------------------------------------------------------------- */

void pyr_bits_unpack(float *y, const void *row, pyr_bits bits, bool value, int32_t d) {
  const uint8_t *b = pyr_bits_quarters(bits, value), *from = row;
  int32_t quarter = d / PYR_QUARTERS;
  uint16_t half;
  memcpy(&half, from, sizeof half);
  float scale = pyr_f32_of_f16(half);
  from += sizeof half;
  for (int g = 0; g < PYR_QUARTERS; g++)
    for (int32_t i = quarter * g; i < quarter * (g + 1); i += 8, from += b[g]) {
      uint64_t word = 0;
      for (int k = 0; k < b[g]; k++) word |= (uint64_t)from[k] << 8 * k;
      for (int k = 0; k < 8; k++)
        y[i + k] = scale * level_of((int)(word >> k * b[g]) & ((1 << b[g]) - 1), b[g]);
    }
}

void pyr_bits_to_f32(float *dst, const void *row, pyr_bits bits, bool value,
                     const pyr_frame *frame) {
  float y[PYR_BITS_DIMS];
  int32_t d = frame->head_dim;
  pyr_bits_unpack(y, row, bits, value, d);
  if (value) {
    pyr_frame_output(dst, frame, y, 1);
    return;
  }
  rotate_key(y, d);
  for (int32_t i = 0; i < d; i++) {
    const pyr_channel *c = &frame->channels[i];
    dst[c->from] = y[i] / c->factor + c->centre;
  }
}
