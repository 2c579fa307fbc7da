/* elementwise.c — operations on single values, on tokens by themselves, and on vectors of scores.
 *
 * Owns nothing but arithmetic. Long ones are cut into spans for the team (pyr_cpu_spans); each
 * value depends on its own inputs only, or is summed in an order that the cut does not touch. */
#include "cpu/cpu.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* ---- tokens ---------------------------------------------------------------------------------- */

typedef struct embed_call {
    const pyr_kernels *k; float *out; const pyr_tensor *table; const int32_t *ids; } embed_call;

/* A row of the table for each id, whatever its dtype: read where it lies, so of a vocabulary of
 * 49,152 in q8_0 a prompt touches only the rows of its own words, 612 bytes each of width 576. */
/* Tokens by themselves: a span of ids, a row each. */
static void embed_span(const void *ctx, int64_t begin, int64_t end) {
  const embed_call *c = ctx;
  int64_t d = c->table->shape[1];
  for (int64_t i = begin; i < end; i++)
    pyr_cpu_weights(c->k, c->out + i * d, c->table, c->ids[i], 0, d);
}

static pyr_status cpu_embed(pyr_backend *be, float *out, const pyr_tensor *table,
                            const int32_t *ids, int64_t n) {
  embed_call c = { pyr_cpu_of(be)->kernels, out, table, ids };
  pyr_cpu_spans(be, embed_span, &c, n, table->shape[1]);
  return PYR_OK;
}

/* Read by all threads of a call; a span is some rows. */
typedef struct norm_call { const pyr_kernels *k; float *out; const float *x; const pyr_norm *norm;
                           int64_t d; } norm_call;

/* Of (3, 4) with weights 1 and eps 0: the mean of squares is 12.5, so (0.849, 1.131). */
static void rms_norm(const norm_call *c, float *out, const float *x, const float *weight) {
  float scale = 1.0f / sqrtf(c->k->square_sum(x, c->d) / (float)c->d + c->norm->eps);
  for (int64_t j = 0; j < c->d; j++) out[j] = x[j] * scale * weight[j];
}

/* Of (3, 4): the mean is 3.5, the variance 0.25, so (-1, 1). What is left of x without its mean is
 * squared, so that a large mean costs the variance no digits. */
static void layer_norm(const norm_call *c, float *out, const float *x, const float *weight) {
  const float *bias = c->norm->bias;
  float mean = c->k->sum(x, c->d) / (float)c->d;
  for (int64_t j = 0; j < c->d; j++) out[j] = x[j] - mean;
  float scale = 1.0f / sqrtf(c->k->square_sum(out, c->d) / (float)c->d + c->norm->eps);
  for (int64_t j = 0; j < c->d; j++) out[j] = out[j] * scale * weight[j];
  for (int64_t j = 0; bias && j < c->d; j++) out[j] += bias[j];
}

/* One pass over a row for its sum (two for a mean and a variance), one that writes; a row stays
 * in the first cache in between. Rows take the sets of weights in turn: with one set for each of
 * 3 heads, rows 0 1 2 3 4 5 are the heads of two tokens, and take sets 0 1 2 0 1 2. */
static void norm_span(const void *ctx, int64_t begin, int64_t end) {
  const norm_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    const float *weight = c->norm->weight + i % c->norm->period * c->d;
    if (c->norm->kind == PYR_NORM_LAYER) layer_norm(c, c->out + i * c->d, c->x + i * c->d, weight);
    else rms_norm(c, c->out + i * c->d, c->x + i * c->d, weight);
  }
}

static pyr_status cpu_norm(pyr_backend *be, float *out, const float *x, const pyr_norm *norm,
                           int64_t n, int64_t d) {
  norm_call c = { pyr_cpu_of(be)->kernels, out, x, norm, d };
  pyr_cpu_spans(be, norm_span, &c, n, d);
  return PYR_OK;
}

typedef struct rope_call {
  const pyr_kernels *k;
  float *x;
  const int32_t *pos;
  const float *freq;
  int32_t heads, head_dim, pairs;
  pyr_rope_style style;
  float gain;
} rope_call;

enum { TURNS = 64 };   /* pairs whose sines are made before any head is turned by them */

/* `count` pairs of a head, from `a` and `b` on: value beside value, or every other one. Loops of
 * their own, as each becomes vectors:
 *
 *     half          a: 0 1 2 3 …      b: 32 33 34 35 …     of 64 dimensions
 *     interleaved   a: 0 2 4 6 …      b:  1  3  5  7 … */
static void turn_halves(float *restrict a, float *restrict b, const float *co, const float *si,
                        int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    float x = a[i], y = b[i];
    a[i] = x * co[i] - y * si[i];
    b[i] = x * si[i] + y * co[i];
  }
}
static void turn_neighbours(float *a, const float *co, const float *si, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    float x = a[2 * i], y = a[2 * i + 1];
    a[2 * i] = x * co[i] - y * si[i];
    a[2 * i + 1] = x * si[i] + y * co[i];
  }
}

/* (a, b) becomes (a cos - b sin, a sin + b cos), with the angle pos * freq[i]. A token's sines
 * serve all of its heads. Half style of 4 dimensions pairs values 0 and 2, 1 and 3; interleaved
 * 0 and 1, 2 and 3. Dimensions from `dims` on are not turned. */
static void rope_span(const void *ctx, int64_t begin, int64_t end) {
  const rope_call *c = ctx;
  float angle[TURNS], co[TURNS], si[TURNS];
  for (int64_t t = begin; t < end; t++)
    for (int32_t from = 0; from < c->pairs; from += TURNS) {
      int32_t some = c->pairs - from < TURNS ? c->pairs - from : TURNS;
      for (int32_t i = 0; i < some; i++) angle[i] = (float)c->pos[t] * c->freq[from + i];
      c->k->turns(co, si, angle, some);
      for (int32_t i = 0; i < some; i++) co[i] *= c->gain, si[i] *= c->gain;
      for (int32_t h = 0; h < c->heads; h++) {
        float *head = c->x + (t * c->heads + h) * c->head_dim;
        if (c->style == PYR_ROPE_HALF)
          turn_halves(head + from, head + c->pairs + from, co, si, some);
        else turn_neighbours(head + 2 * from, co, si, some);
      }
    }
}

/* `dims` may be less than head_dim; the gain (YaRN) scales what is turned. */
static pyr_status cpu_rope(pyr_backend *be, float *x, const int32_t *pos, const float *freq,
                           int64_t n, int32_t heads, int32_t head_dim, int32_t dims,
                               pyr_rope_style style, float gain) {
  rope_call c = { pyr_cpu_of(be)->kernels, x, pos, freq, heads, head_dim, dims / 2, style, gain };
  /* a sine costs as much as some products */
  pyr_cpu_spans(be, rope_span, &c, n, (int64_t)heads * dims + 16 * dims);
  return PYR_OK;
}

/* A span is some values: where it begins has no part in what they become. */
typedef struct act_call { const pyr_kernels *k; float *gate; const float *up; pyr_activation act;
                          float limit; } act_call;

static void act_span(const void *ctx, int64_t begin, int64_t end) {
  const act_call *c = ctx;
  c->k->activate(c->gate + begin, c->up ? c->up + begin : NULL, end - begin, c->act, c->limit);
}

/* SiLU of gate 1 and up 2: 0.731 * 2 = 1.462. */
pyr_status pyr_cpu_activate(pyr_backend *be, float *gate, const float *up, int64_t count,
                            pyr_activation act, float limit) {
  act_call c = { pyr_cpu_of(be)->kernels, gate, up, act, limit };
  pyr_cpu_spans(be, act_span, &c, count, 4);
  return PYR_OK;
}

/* Of scale, and with y of add. */
typedef struct scale_call { float *x; const float *y; float factor, cap; } scale_call;

static void scale_span(const void *ctx, int64_t begin, int64_t end) {
  const scale_call *c = ctx;
  for (int64_t i = begin; i < end; i++) c->x[i] *= c->factor;
  for (int64_t i = begin; c->cap > 0 && i < end; i++) c->x[i] = c->cap * tanhf(c->x[i] / c->cap);
}

/* 40 with factor 1 and cap 30: 30 tanh(4/3) = 26.1. Where there is no cap nothing but a product is
 * done, so that a scale of embeddings costs their traffic. */
static pyr_status cpu_scale(pyr_backend *be, float *x, int64_t count, float factor, float cap) {
  scale_call c = { x, NULL, factor, cap };
  pyr_cpu_spans(be, scale_span, &c, count, cap > 0 ? 16 : 1);
  return PYR_OK;
}

/* Each x is read and written once; y may not be x. */
static void add_span(const void *ctx, int64_t begin, int64_t end) {
  const scale_call *c = ctx;
  for (int64_t i = begin; i < end; i++) c->x[i] += c->factor * c->y[i];
}

static pyr_status cpu_add(pyr_backend *be, float *x, const float *y, int64_t count, float factor) {
  scale_call c = { x, y, factor, 0 };
  pyr_cpu_spans(be, add_span, &c, count, 1);
  return PYR_OK;
}

typedef struct gate_call { float *x; const float *logits; int64_t d; } gate_call;

/* A row whose logit is 0 is halved; of 1.1 and 2, logit 3: 1.048, 1.905. */
static void gate_span(const void *ctx, int64_t begin, int64_t end) {
  const gate_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    float gate = 1.0f / (1.0f + expf(-c->logits[i]));
    for (int64_t j = 0; j < c->d; j++) c->x[i * c->d + j] *= gate;
  }
}

static pyr_status cpu_gate_rows(pyr_backend *be, float *x, const float *logits, int64_t n,
                                int64_t d) {
  gate_call c = { x, logits, d };
  pyr_cpu_spans(be, gate_span, &c, n, d);
  return PYR_OK;
}

typedef struct temper_call {
  float *x;
  const int32_t *pos;
  int64_t d;
  float beta;
  int32_t length;
} temper_call;

/* Whole lengths before a position are counted in integers: with beta 0.1 and length 16,384 rows at
 * positions 0 to 16,383 stay, the next as many become 1.069 of what they are, then 1.110. */
static void temper_span(const void *ctx, int64_t begin, int64_t end) {
  const temper_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    int32_t whole = c->pos[i] / c->length;
    if (whole == 0) continue;
    float factor = 1.0f + c->beta * logf(1.0f + (float)whole);
    for (int64_t j = 0; j < c->d; j++) c->x[i * c->d + j] *= factor;
  }
}

static pyr_status cpu_temper(pyr_backend *be, float *x, const int32_t *pos, int64_t n, int64_t d,
                             float beta, int32_t length) {
  temper_call c = { x, pos, d, beta, length };
  pyr_cpu_spans(be, temper_span, &c, n, d);
  return PYR_OK;
}

/* Ascending indices only move things towards the front, so one pass in order is safe in place.
 * idx 0 2 3: row 0 stays, 2 moves to 1, 3 to 2. */
static pyr_status cpu_take_rows(pyr_backend *be, float *x, const int32_t *idx, int64_t k,
                                int64_t d) {
  (void)be;
  for (int64_t i = 0; i < k; i++)
    if (idx[i] != i) memmove(x + i * d, x + idx[i] * d, (size_t)d * sizeof(float));
  return PYR_OK;
}

static pyr_status cpu_take_i32(pyr_backend *be, int32_t *x, const int32_t *idx, int64_t k) {
  (void)be;
  for (int64_t i = 0; i < k; i++) x[i] = x[idx[i]];
  return PYR_OK;
}

/* ---- vectors of scores ----------------------------------------------------------------------- */

/* Row after row, so that the order of a sum is that of the rows. NaN wins a maximum, so that it is
 * seen. Two vectors 1 5 and 3 2: sum 4 7, mean 2 3.5, highest 3 5. The mean is scaled once, at
 * the end. */
static pyr_status cpu_reduce_rows(pyr_backend *be, float *out, const float *in, int32_t count,
                                  int64_t stride, int64_t n, pyr_reduce how, float scale) {
  (void)be;
  for (int64_t i = 0; i < n; i++) out[i] = in[i];
  for (int32_t r = 1; r < count; r++) {
    const float *row = in + r * stride;
    if (how == PYR_MAX)
      for (int64_t i = 0; i < n; i++) out[i] = row[i] <= out[i] ? out[i] : row[i];
    else
      for (int64_t i = 0; i < n; i++) out[i] += row[i];
  }
  float factor = how == PYR_MEAN ? scale / (float)count : scale;
  for (int64_t i = 0; i < n; i++) out[i] *= factor;
  return PYR_OK;
}

/* A number over 0 is 0, not infinite: so no row ranks first by it alone. */
static pyr_status cpu_arith(pyr_backend *be, float *a, const float *b, int64_t n,
                            pyr_score_code code) {
  switch (code) {
    case PYR_S_ADD: for (int64_t i = 0; i < n; i++) a[i] += b[i]; return PYR_OK;
    case PYR_S_SUB: for (int64_t i = 0; i < n; i++) a[i] -= b[i]; return PYR_OK;
    case PYR_S_MUL: for (int64_t i = 0; i < n; i++) a[i] *= b[i]; return PYR_OK;
    case PYR_S_DIV: for (int64_t i = 0; i < n; i++) a[i] = b[i] == 0 ? 0 : a[i] / b[i];
    return PYR_OK;
    default: return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "arith: code %d is no arithmetic",
                                          (int)code);
  }
}

typedef struct pool_call {
  float *out;
  const float *in;
  int64_t n, half;
  pyr_pooling how;
} pool_call;

/* Each output sums (or compares) its own window, from left to right: no running sum, whose errors
 * would travel. 1 5 2 4 with a width of 3: means 3, 2.67, 3.67, 3, as at the ends only what is
 * there counts; highest 5 5 5 4. Cost: n * width. */
static void pool_span(const void *ctx, int64_t begin, int64_t end) {
  const pool_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    int64_t low = pyr_max(0, i - c->half), high = pyr_min(c->n, i + c->half + 1);
    float x = c->in[low];
    for (int64_t j = low + 1; j < high; j++)
      x = c->how == PYR_POOL_AVERAGE ? x + c->in[j] : c->in[j] <= x ? x : c->in[j];
    c->out[i] = c->how == PYR_POOL_AVERAGE ? x / (float)(high - low) : x;
  }
}

static pyr_status cpu_pool(pyr_backend *be, float *out, const float *in, int64_t n, int32_t width,
                           pyr_pooling how) {
  if (width < 1 || width % 2 == 0)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "pool: width %d is not odd", (int)width);
  pool_call c = { out, in, n, width / 2, how };
  pyr_cpu_spans(be, pool_span, &c, n, width);
  return PYR_OK;
}

/* In f64, so that the sum of many small numbers is right; a sum of 0 is left alone. */
static pyr_status cpu_normalize(pyr_backend *be, float *x, int64_t n) {
  (void)be;
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  if (sum != 0)
    for (int64_t i = 0; i < n; i++) x[i] = (float)(x[i] / sum);
  return PYR_OK;
}

/* In f64, as above; one number for all rows: 1 2 5 become 8 8 8, or 5 5 5. NaN wins a maximum. */
static pyr_status cpu_total(pyr_backend *be, float *x, int64_t n, pyr_reduce how) {
  (void)be;
  double sum = n > 0 ? x[0] : 0;
  for (int64_t i = 1; i < n; i++)
    sum = how != PYR_MAX ? sum + x[i] : x[i] <= sum || sum != sum ? sum : x[i];
  for (int64_t i = 0; i < n; i++) x[i] = (float)sum;
  return PYR_OK;
}

/* What is not a number stays so: each comparison asks for what is to be changed. 0 .25 4 become, as
 * logarithms, -87.3 -1.39 1.39; to the power of one half, 0 .5 2; and above .25, 0 0 1. */
static float mapped(float x, pyr_mapping how, float value) {
  switch (how) {
  case PYR_MAP_LOG:   return logf(x < FLT_MIN ? FLT_MIN : x);
  case PYR_MAP_POWER: return x <= 0 ? 0 : powf(x, value);
  case PYR_MAP_ABOVE: return x > value ? 1.0f : 0.0f;
  }
  return x;
}

static pyr_status cpu_map(pyr_backend *be, float *x, int64_t n, pyr_mapping how, float value) {
  (void)be;
  for (int64_t i = 0; i < n; i++) x[i] = mapped(x[i], how, value);
  return PYR_OK;
}

/* NaN and the infinities are what no number times 0 is 0 of. One look at the sum in place of one
 * at each value. */
static pyr_status cpu_finite(pyr_backend *be, int32_t *fault, const float *x, int64_t n) {
  float sum = 0;
  (void)be;
  for (int64_t i = 0; i < n; i++) sum += x[i] * 0.0f;
  if (!(sum == 0)) *fault = 1;
  return PYR_OK;
}

/* first, first + 1, … : indices of guards, and positions of a prompt. */
static pyr_status cpu_iota(pyr_backend *be, int32_t *out, int32_t first, int64_t n) {
  (void)be;
  for (int64_t i = 0; i < n; i++) out[i] = first + (int32_t)i;
  return PYR_OK;
}

/* The finaliser of splitmix64 over the position-th state of the generator that starts at `seed`; 24
 * bits make a float. From 0 up to 1 - 2^-24; the same for a position in every lane of a layer,
 * and on every backend. */
static float hash_unit(uint64_t seed, int32_t position) {
  uint64_t z = seed + ((uint64_t)(uint32_t)position + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

/* PLACE: 0 for the first row, 1 for the last. POSITION is exact up to 2^24. */
static pyr_status cpu_fill(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                           pyr_filling what, uint64_t seed, float value) {
  (void)be;
  for (int64_t i = 0; i < n; i++)
    switch (what) {
    case PYR_FILL_POSITION: out[i] = (float)positions[i]; break;
    case PYR_FILL_HASH:     out[i] = hash_unit(seed, positions[i]); break;
    case PYR_FILL_VALUE:    out[i] = value; break;
    case PYR_FILL_PLACE:    out[i] = n == 1 ? 1.0f : (float)i / (float)(n - 1); break;
    }
  return PYR_OK;
}

/* As many reads as there are rows, wherever they lie: of 4,000 candidates the ids and positions are
 * 32 KB, and what is read of the values of a vocabulary are those of ids that came. */
static pyr_status cpu_look_up(pyr_backend *be, float *out, const int32_t *positions, int64_t n,
                              const int32_t *ids, int64_t known, const float *values,
                              int64_t vocab) {
  (void)be;
  for (int64_t i = 0; i < n; i++) {
    int32_t at = positions[i], id = at >= 0 && at < known ? ids[at] : -1;
    out[i] = id >= 0 && id < vocab ? values[id] : 0.0f;
  }
  return PYR_OK;
}

void pyr_cpu_elementwise_fill(pyr_backend *be) {
  be->embed = cpu_embed;
  be->norm = cpu_norm;
  be->rope = cpu_rope;
  be->activate = pyr_cpu_activate;
  be->scale = cpu_scale;
  be->add = cpu_add;
  be->gate_rows = cpu_gate_rows;
  be->temper = cpu_temper;
  be->take_rows = cpu_take_rows;
  be->take_i32 = cpu_take_i32;
  be->reduce_rows = cpu_reduce_rows;
  be->arith = cpu_arith;
  be->pool = cpu_pool;
  be->normalize = cpu_normalize;
  be->total = cpu_total;
  be->map = cpu_map;
  be->finite = cpu_finite;
  be->iota = cpu_iota;
  be->fill = cpu_fill;
  be->look_up = cpu_look_up;
}
