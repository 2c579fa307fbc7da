/* score.c — evaluation of score programs on a small stack of vectors.
 *
 * Scratch is laid out as [temp: kv_heads vectors][stack: depth vectors]; a vector is one f32 per judged row. A signal
 * of several lanes or query heads is first gathered into temp (or already lies in a mass accumulator), then reduced
 * into the stack. Vectors of the stack are told apart by index, so operators work in place. */
#include "score.h"
#include "model.h"

#include <math.h>

const char *pyr_score_check(const pyr_score *score, int *depth) {
  int height = 0, highest = 1;
  if (score->length < 0 || score->length > PYR_SCORE_MAX) return "has too many operations";
  for (int i = 0; i < score->length; i++) {
    const pyr_score_op *op = &score->ops[i];
    switch ((pyr_score_code)op->code) {
    case PYR_S_ATTENTION:
      if (op->n < 0) return "asks for attention of a negative number of queries";
      if (!isfinite(op->x) || op->x < 0) return "has an attention ramp that is negative or not finite";
      /* fall through */
    case PYR_S_HISTORY:
      if (op->a > PYR_MAX || op->b > PYR_MAX) return "reduces attention in an unknown way";
      if (op->code == PYR_S_HISTORY && !(op->x >= 0 && op->x <= 1)) return "has a history decay outside [0, 1]";
      height++;
      break;
    case PYR_S_CONST:
      if (!isfinite(op->x)) return "has a constant that is not finite";
      /* fall through */
    case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM: case PYR_S_POSITION: case PYR_S_RANDOM:
      height++;
      break;
    case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
      if (height < 2) return "combines a value that is not there";
      height--;
      break;
    case PYR_S_POOL:
      if (op->n < 1 || op->n % 2 == 0) return "pools over a width that is not odd and positive";
      if (op->a > 1) return "pools in an unknown way";
      /* Not in place: the result needs a place of its own for a moment. */
      if (height + 1 > highest) highest = height + 1;
      /* fall through */
    case PYR_S_NORMALIZE:
      if (height < 1) return "transforms a value that is not there";
      break;
    case PYR_SCORE_CODES: default:
      return "has an unknown operation";
    }
    if (height > highest) highest = height;
  }
  if (score->length > 0 && height != 1) return "leaves more than one value";
  *depth = highest;
  return NULL;
}

int64_t pyr_score_scratch(const pyr_cache *cache, int depth, int64_t judged) {
  return ((int64_t)depth + cache->heads) * judged;
}

static uint64_t mix_seed(uint32_t seed, int32_t layer) {
  return ((uint64_t)seed << 32 | (uint32_t)layer) * 0x9e3779b97f4a7c15u;
}

/* Pushes one signal of lanes [head, head+count) to `out`. */
static pyr_status eval_signal(const pyr_score *score, int index, const pyr_signals *s, int head, int count, float *temp,
                              float *out) {
  const pyr_score_op *op = &score->ops[index];
  pyr_cache *cache = s->cache;
  pyr_backend *be = cache->pool->be;
  int64_t n = s->end - s->begin;
  int32_t group = cache->pool->model->config.heads / cache->heads;
  const pyr_lane *first = pyr_cache_lane(cache, s->layer, head);
  pyr_status status = PYR_OK;
  switch ((pyr_score_code)op->code) {
  case PYR_S_ATTENTION: case PYR_S_HISTORY: {
    int64_t queries = s->mass[index] ? s->queries[index] : s->tracked_queries;
    float scale = op->code == PYR_S_ATTENTION && op->a == PYR_MEAN && queries > 0 ? 1.0f / (float)queries : 1.0f;
    if (s->mass[index])
      return be->reduce_rows(be, out, s->mass[index] + (int64_t)head * group * s->stride, count * group, s->stride, n,
                             (pyr_reduce)op->b, scale);
    for (int i = 0; i < count && status == PYR_OK; i++)
      status = be->copy(be, temp + i * n, first[i].history + s->begin, (size_t)n * sizeof(float));
    return status != PYR_OK ? status : be->reduce_rows(be, out, temp, count, n, n, (pyr_reduce)op->b, scale);
  }
  case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
    for (int i = 0; i < count && status == PYR_OK; i++) {
      pyr_lane_view lane = pyr_lane_get_view(&first[i]);
      status = be->row_norms(be, temp + i * n, &lane, cache->pool->layout, s->begin, s->end, op->code == PYR_S_VALUE_NORM);
    }
    return status != PYR_OK ? status : be->reduce_rows(be, out, temp, count, n, n, PYR_MEAN, 1.0f);
  case PYR_S_POSITION:
    return be->fill(be, out, first->positions + s->begin, n, 0, 0, 0.0f);
  case PYR_S_RANDOM:
    return be->fill(be, out, first->positions + s->begin, n, 1, mix_seed((uint32_t)op->n, s->layer), 0.0f);
  default:
    return be->fill(be, out, NULL, n, 2, 0, op->x);
  }
}

pyr_status pyr_score_eval(const pyr_score *score, const pyr_signals *signals, int head, int count, float *scratch,
                          float **out) {
  static const pyr_score by_position = { 1, { { PYR_S_POSITION, 0, 0, 0, 0.0f } } };
  pyr_backend *be = signals->cache->pool->be;
  int64_t n = signals->end - signals->begin;
  float *temp = scratch, *stack = scratch + signals->cache->heads * n;
  int height = 0;
  pyr_status status = PYR_OK;
  if (score->length == 0) score = &by_position;
  for (int i = 0; i < score->length && status == PYR_OK; i++) {
    const pyr_score_op *op = &score->ops[i];
    float *top = stack + (height - 1) * n;                 /* meaningful where height >= 1 */
    switch ((pyr_score_code)op->code) {
    case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
      status = be->arith(be, top - n, top, n, (pyr_score_code)op->code);
      height--;
      break;
    case PYR_S_POOL:
      status = be->pool(be, top + n, top, n, op->n, op->a);
      if (status == PYR_OK) status = be->copy(be, top, top + n, (size_t)n * sizeof(float));
      break;
    case PYR_S_NORMALIZE:
      status = be->normalize(be, top, n);
      break;
    default:
      status = eval_signal(score, i, signals, head, count, temp, stack + height * n);
      height++;
    }
  }
  *out = stack;
  return status;
}
