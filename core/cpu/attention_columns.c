/* attention_columns.c — the columns of a tile of many queries: how they begin, what a model makes
 * of their scores, and how their results are written. Both kinds of products (attention.c,
 * attention_bf16.c) have the same columns, in slices of their own width.
 *
 * Of three heads a lane and slices of 32 columns, slice 0 holds queries 0 to 9 of all heads and
 * query 10 of the first two:
 *
 *     column    0      1      2      3      …   30      31    |  32      33
 *     query     0      0      0      1          10      10    |  10      11
 *     head      0      1      2      0          0       1     |  2       0                       */
#include "cpu/attention.h"

#include <math.h>
#include <string.h>

void pyr_cpu_columns_take(pyr_columns *s, pyr_arena *arena, int32_t group) {
  int64_t columns = pyr_round_up(pyr_max(PYR_COLUMNS, group), s->width);
  s->q = pyr_arena_take(arena, columns * s->depth, sizeof(float));
  s->out = pyr_arena_take(arena, columns * s->dims, sizeof(float));
  s->m = pyr_arena_take(arena, columns, sizeof(float));
  s->l = pyr_arena_take(arena, columns, sizeof(float));
  s->low = pyr_arena_take(arena, columns, sizeof(int32_t));
  s->high = pyr_arena_take(arena, columns, sizeof(int32_t));
  s->position = pyr_arena_take(arena, columns, sizeof(int32_t));
  s->slope = pyr_arena_take(arena, columns, sizeof(float));
  s->rows = pyr_arena_take(arena, s->width * s->dims, sizeof(float));
}

/* Bounds are searched for once a query, not once a column. q is zeroed where a slice is not full,
 * and where its elements are padded; queries are gathered a slice at a time, so that what is
 * transposed lies together. */
void pyr_cpu_columns_begin(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s, int g,
                           int64_t q0, int64_t columns, const pyr_products *products) {
  int64_t width = s->width, d = t->layout.head_dim, padded = pyr_round_up(columns, width);
  for (int64_t c = 0; c < padded; c++) {
    bool real = c < columns;
    if (!real) s->low[c] = s->high[c] = 0;
    else if (c % t->group == 0) {
      pyr_span seen = pyr_cpu_visible(&a->lanes[g], a->q_pos[q0 + c / t->group], a->window);
      s->low[c] = (int32_t)seen.low, s->high[c] = (int32_t)seen.high;
    } else s->low[c] = s->low[c - 1], s->high[c] = s->high[c - 1];
    int64_t head = (int64_t)g * t->group + c % t->group;
    float sink = real && a->sinks ? a->sinks[head] : -INFINITY;
    s->m[c] = sink;
    s->l[c] = sink == -INFINITY ? 0 : 1;
    if (!a->slopes) continue;
    s->position[c] = real ? a->q_pos[q0 + c / t->group] : 0;
    s->slope[c] = real ? a->slopes[head] : 0;
  }
  bool whole = s->depth * products->per == d;
  for (int64_t c = 0; c < padded; c += width) {
    int64_t some = pyr_min(width, columns - c);
    if (some < width || !whole)
      memset(s->q + c * s->depth, 0, (size_t)(width * s->depth) * sizeof(float));
    for (int64_t i = 0; i < some; i++) {
      int64_t query = q0 + (c + i) / t->group, head = (int64_t)g * t->group + (c + i) % t->group;
      memcpy(s->rows + i * d, a->q + (query * t->heads + head) * d, (size_t)d * sizeof(float));
    }
    products->transpose(s->q + c * s->depth, width, s->rows, d, (int)some, d, t->scale);
  }
  memset(s->out, 0, (size_t)(padded * s->dims) * sizeof(float));
}

/* Out was summed with dimensions down and queries across; here it is turned back, a slice at a
 * time, and divided by l. A NaN in l goes through to out; l = 0, nothing seen, gives 0. */
void pyr_cpu_columns_end(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s, int g,
                         int64_t q0, int64_t columns) {
  int64_t width = s->width, d = t->layout.head_dim;
  for (int64_t c = 0; c < columns; c += width) {
    t->k->f32.transpose(s->rows, s->dims, s->out + c * s->dims, width, (int)d, width, 1.0f);
    for (int64_t i = 0; i < pyr_min(width, columns - c); i++) {
      int64_t at = (q0 + (c + i) / t->group) * t->heads + (int64_t)g * t->group
          + (c + i) % t->group;
      float l = s->l[c + i], inverse = l > 0 || l != l ? 1.0f / l : 0,
          *out = a->out + at * d;
      for (int64_t j = 0; j < d; j++) out[j] = s->rows[i * s->dims + j] * inverse;
      if (a->lse) a->lse[at] = l == 0 ? -INFINITY : s->m[c + i] + logf(l);
    }
  }
}

/* Rows are lines here; columns have positions and slopes of their own: the bend of keys down. */
void pyr_cpu_columns_bend(const pyr_attend *t, const pyr_attention *a, const pyr_columns *s,
                          float *scores, const pyr_lane_view *lane, int64_t row, int64_t rows,
                          int64_t c) {
  pyr_bend b = { .scores = scores, .ld = s->width, .lines = (int)rows, .width = (int)s->width,
                 .keys_down = true, .cap = a->cap, .slopes = a->slopes ? s->slope + c : NULL,
                 .line = lane->positions + row, .column = s->position + c };
  t->k->bend(&b);
}
