/* score.c — evaluation of score programs on a small stack of vectors.
 *
 * Switches over codes have no `default:` and name those that they leave out, so that the compiler
 * (-Wswitch) lists every place that a new code has to be thought of.
 *
 * Scratch is laid out as [temp: heads vectors][stack: depth vectors]; a vector is one f32 a
 * candidate. A signal of several lanes or query heads is first gathered into temp (or already lies
 * in a mass accumulator), then reduced into the stack. Vectors of the stack are told apart by
 * index, so operators work in place.
 *
 * Tables and custom functions are the policy's, in host memory: a table's numbers go over a few at
 * a time, a function's inputs and results through host vectors of their own (its plan runs in
 * prefill, which may fail). */
#include "policy/score.h"
#include "policy/ranked.h"
#include "model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Two arrays of 1 KiB each, so that no memory is asked for. */
enum { AT_ONCE = 256 };    /* numbers of a table on the stack */

/* Runs the program on heights alone, without a row: what each operation takes must be there, one
 * value is left at the end, and the highest height is what a run needs. attention, pool 7,
 * value_norm, *:
 *
 *     operation    attention   pool 7       value_norm   *
 *     height       1           1 (2 once)   2            1       depth 2, one value left: sound */
const char *pyr_score_check(const pyr_score *score, int *depth) {
  int height = 0, highest = 1;
  if (score->length < 0 || score->length > PYR_SCORE_MAX) return "has too many operations";
  for (int i = 0; i < score->length; i++) {
    const pyr_score_op *op = &score->ops[i];
    if (op->code >= PYR_SCORE_CODES) return "has an unknown operation";
    switch ((pyr_score_code)op->code) {
    case PYR_S_ATTENTION:
      if (op->n < 0) return "asks for attention of a negative number of queries";
      if (!isfinite(op->x) || op->x < 0)
        return "has an attention ramp that is negative or not finite";
      /* fall through */
    case PYR_S_HISTORY:
      if (op->a > (op->code == PYR_S_ATTENTION ? PYR_ENTROPY : PYR_MAX) || op->b > PYR_MAX)
        return "reduces attention in an unknown way";
      if (op->code == PYR_S_ATTENTION && op->a > PYR_MAX && op->x != 1)
        return "weighs the queries of a variance or an entropy by a ramp";
      if (op->code == PYR_S_HISTORY && !(op->x >= 0 && op->x <= 1))
        return "has a history decay outside [0, 1]";
      height++;
      break;
    case PYR_S_CONST:
      if (!isfinite(op->x)) return "has a constant that is not finite";
      /* fall through */
    case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
      if (op->code != PYR_S_CONST && op->a > 1) return "takes an unknown norm";
      /* fall through */
    case PYR_S_POSITION: case PYR_S_RANDOM:
    case PYR_S_KEY_SIMILARITY: case PYR_S_OUTPUT_NORM: case PYR_S_TABLE: case PYR_S_PLACE:
    case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_ALONG: case PYR_S_TOKENS:
      height++;
      break;
    case PYR_S_EXPECTED:
      if (op->n < 1 || op->n > 1 << 16)
        return "expects attention from none or more than 65536 positions";
      if (op->a > 1 || op->b > PYR_MAX) return "reduces expected attention in an unknown way";
      if (!(op->x >= 0 && op->x <= 0x1p24f) || op->x != floorf(op->x))
        return "leaves out a number of queries that is not whole";
      height++;
      break;
    case PYR_S_LAG:
      if (op->n < 1) return "has a lag of no rows";
      if (op->a > 1) return "ranks a lag in an unknown way";
      height++;
      break;
    case PYR_S_REDUNDANCY:
      if (!isfinite(op->x)) return "has a threshold of redundancy that is not finite";
      height++;
      break;
    case PYR_S_CENTRES:
      if (op->b > PYR_MAX) return "reduces over heads in an unknown way";
      if (!(op->x >= 1 && op->x <= 0x1p24f))
        return "looks from a distance that is below 1 or above 2^24";
      height++;
      break;
    case PYR_S_CUSTOM:
      if (height < op->a) return "combines a value that is not there";
      height += 1 - op->a;
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
    case PYR_S_NORMALIZE: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP:
    case PYR_S_TOTAL: case PYR_S_MAP:
      if (op->code == PYR_S_MAP && op->a > PYR_MAP_ABOVE) return "maps in an unknown way";
      if (op->code == PYR_S_TOTAL && op->a > 1)
        return "takes a total in an unknown way";
      if (op->code == PYR_S_MAP && !isfinite(op->x))
        return "maps by a parameter that is not finite";
      if (op->code == PYR_S_MAP && op->a == PYR_MAP_POWER && op->x <= 0)
        return "takes a power that is not above 0";
      if (op->code == PYR_S_CHUNK && op->n < 1) return "has chunks of no rows";
      if (op->code == PYR_S_TOP && op->n < 0) return "takes a negative number of rows";
      if (height < 1) return "transforms a value that is not there";
      break;
    case PYR_SCORE_CODES: break;
    }
    if (height > highest) highest = height;
  }
  if (score->length > 0 && height != 1) return "leaves more than one value";
  *depth = highest;
  return NULL;
}

/* ---- in words -------------------------------------------------------------------------------- */

typedef struct score_text { char *at, *end; } score_text;

static void add_text(score_text *t, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(t->at, (size_t)(t->end - t->at), format, arguments);
  va_end(arguments);
  if (n > 0) t->at += n < t->end - t->at ? n : t->end - t->at - 1;
}

/* The first operation of the value that operation `last` leaves. Walks back, and counts the
 * values still wanted: a signal gives one, an operator wants more.
 *
 *     index      0           1            2      3
 *     op         attention   value_norm   *      position
 *     wanted     0           1            2      begin_of(2) begins with 1, ends at index 0 */
static int begin_of(const pyr_score *score, int last) {
  int wanted = 1;
  for (int i = last; i >= 0; i--) {
    const pyr_score_op *op = &score->ops[i];
    switch ((pyr_score_code)op->code) {
    case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV: wanted += 1; break;
    case PYR_S_POOL: case PYR_S_NORMALIZE: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP:
    case PYR_S_TOTAL: case PYR_S_MAP:
      break;
    case PYR_S_CUSTOM: wanted += op->a - 1; break;
    case PYR_S_ATTENTION: case PYR_S_HISTORY: case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
    case PYR_S_POSITION: case PYR_S_RANDOM: case PYR_S_CONST: case PYR_S_KEY_SIMILARITY:
    case PYR_S_EXPECTED: case PYR_S_LAG: case PYR_S_OUTPUT_NORM: case PYR_S_TABLE:
    case PYR_S_PLACE: case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_REDUNDANCY:
    case PYR_S_ALONG: case PYR_S_CENTRES: case PYR_S_TOKENS:
      wanted--;
      break;
    case PYR_SCORE_CODES: break;
    }
    if (wanted == 0) return i;
  }
  return 0;
}

static const char *name_of(pyr_score_code code) {
  switch (code) {
  case PYR_S_ATTENTION: return "attention";
  case PYR_S_HISTORY: return "history";
  case PYR_S_KEY_NORM: return "key_norm";
  case PYR_S_VALUE_NORM: return "value_norm";
  case PYR_S_POSITION: return "position";
  case PYR_S_RANDOM: return "random";
  case PYR_S_CONST: return "const";
  case PYR_S_ADD: return "+";
  case PYR_S_SUB: return "-";
  case PYR_S_MUL: return "*";
  case PYR_S_DIV: return "/";
  case PYR_S_POOL: return "pool";
  case PYR_S_NORMALIZE: return "normalize";
  case PYR_S_KEY_SIMILARITY: return "key_similarity";
  case PYR_S_EXPECTED: return "expected";
  case PYR_S_LAG: return "lag";
  case PYR_S_OUTPUT_NORM: return "output_norm";
  case PYR_S_TABLE: return "table";
  case PYR_S_PLACE: return "place";
  case PYR_S_SOFTMAX: return "softmax";
  case PYR_S_CHUNK: return "chunk";
  case PYR_S_TOP: return "top";
  case PYR_S_CUSTOM: return "custom";
  case PYR_S_LEARNED: return "learned";
  case PYR_S_PROBED: return "probed";
  case PYR_S_REDUNDANCY: return "redundancy";
  case PYR_S_TOTAL: return "total";
  case PYR_S_MAP: return "map";
  case PYR_S_ALONG: return "along";
  case PYR_S_CENTRES: return "centres";
  case PYR_S_TOKENS: return "tokens";
  case PYR_SCORE_CODES: break;
  }
  return "?";
}

/* As deep as the program is long, which is PYR_SCORE_MAX. Reads the program from its end, so
 * operands are found by begin_of: what is before the last one's begin is the one before it. */
static void add_value(score_text *t, const pyr_score *score, int last) {
  static const char *const maps[] = { "log", "power", "above" };
  static const char *const totals[] = { "sum", "max" };
  const pyr_score_op *op = &score->ops[last];
  const char *name = name_of((pyr_score_code)op->code);
  int inputs[UINT8_MAX], at = last - 1;
  switch ((pyr_score_code)op->code) {
  case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
    add_text(t, "(");
    add_value(t, score, begin_of(score, at) - 1);
    add_text(t, " %s ", name);
    add_value(t, score, at);
    add_text(t, ")");
    break;
  case PYR_S_POOL: case PYR_S_NORMALIZE: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP:
    add_text(t, "%s(", name);
    add_value(t, score, at);
    if (op->code == PYR_S_NORMALIZE || op->code == PYR_S_SOFTMAX) add_text(t, ")");
    else add_text(t, ", %d)", (int)op->n);
    break;
  case PYR_S_TOTAL: case PYR_S_MAP:
    add_text(t, "%s(", op->code == PYR_S_TOTAL ? totals[op->a] : maps[op->a]);
    add_value(t, score, at);
    if (op->code == PYR_S_TOTAL || op->a == PYR_MAP_LOG) add_text(t, ")");
    else add_text(t, ", %g)", (double)op->x);
    break;
  case PYR_S_CUSTOM:
    for (int i = op->a; i > 0; i--) inputs[i - 1] = at, at = begin_of(score, at) - 1;
    add_text(t, "%s(", name);
    for (int i = 0; i < op->a; i++) {
      if (i > 0) add_text(t, ", ");
      add_value(t, score, inputs[i]);
    }
    add_text(t, ")");
    break;
  case PYR_S_CONST: add_text(t, "%g", (double)op->x); break;
  case PYR_S_ATTENTION: case PYR_S_HISTORY: case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
  case PYR_S_POSITION: case PYR_S_RANDOM: case PYR_S_KEY_SIMILARITY: case PYR_S_EXPECTED:
  case PYR_S_LAG: case PYR_S_OUTPUT_NORM: case PYR_S_TABLE: case PYR_S_PLACE:
  case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_REDUNDANCY:
  case PYR_S_ALONG: case PYR_S_CENTRES: case PYR_S_TOKENS: case PYR_SCORE_CODES:
    add_text(t, "%s", name);
    break;
  }
}

void pyr_score_text(const pyr_score *score, char out[PYR_SCORE_TEXT]) {
  score_text t = { out, out + PYR_SCORE_TEXT };
  *out = '\0';
  if (score->length > 0) add_value(&t, score, score->length - 1);
  else add_text(&t, "position");
}

static pyr_status find_table(const pyr_cache *cache, int32_t number, pyr_table *out) {
  const pyr_policy *policy = &cache->policy;
  if (policy->table && policy->table(policy->ud, number, out) == PYR_OK) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_POLICY,
                               "policy %s: score: refers to a table that the policy does not have",
                                   policy->name ? policy->name : "?");
}

const float *pyr_table_of(const pyr_model *model, const pyr_table *table, int layer, int head,
                          bool queries) {
  const pyr_model_config *whole = &model->whole;
  int64_t heads = queries ? whole->heads : whole->kv_heads, first = 0;
  if (model->ranks) first = queries ? pyr_model_part(model)->heads.first
                                    : pyr_model_part(model)->lanes.first;
  return table->values + (layer * heads + first + head) * table->width;
}

pyr_status pyr_learned_table(const pyr_cache *cache, const pyr_score_op *op, pyr_table *out) {
  return find_table(cache, op->n, out);
}

/* A vector for each K/V head, or what is known of each query head's queries: of 3 layers with 4
 * query heads over 2 K/V heads of 16 dimensions 6 rows of 16, or 12 rows of 16 + 8. A map of
 * another model has other numbers of them, as a rule; where it has not, nobody can tell. */
static bool along_fits(const pyr_table *table, const pyr_model_config *c, bool centres) {
  int64_t heads = centres ? c->heads : c->kv_heads,
      width = c->head_dim + (centres ? c->head_dim / 2 : 0);
  return table->by == PYR_BY_HEAD && table->width == width
      && table->count == c->layers * heads * width;
}

/* One map for each layer and K/V head of this model, of its width. */
static bool fits_model(const pyr_table *table, const pyr_model_config *c) {
  return table->by == PYR_BY_HEAD && table->width == (int64_t)c->width + 1
      && table->count == (int64_t)c->layers * c->kv_heads * table->width;
}

/* Numbers are the policy's for as long as it lives, so equal numbers are equal maps; a cache that
 * was loaded has asked for its number anew, and gets its map with the first row that it makes. */
pyr_status pyr_learned_need(pyr_cache *cache, const pyr_trigger *trigger) {
  const pyr_model *model = cache->pool->model;
  const pyr_model_config *c = &model->whole;
  pyr_runtime *rt = cache->pool->rt;
  const char *name = cache->policy.name ? cache->policy.name : "?";
  pyr_table table;
  if (!pyr_trigger_learns(trigger)) return PYR_OK;
  if (cache->learned && cache->learned->number == trigger->track.n) return PYR_OK;
  if (cache->learned)
    return pyr_runtime_set_error(rt, PYR_POLICY,
                                 "policy %s: tracks another learned score than before (make it "
                                 "once, outside of the policy's functions)", name);
  PYR_TRY(pyr_learned_table(cache, &trigger->track, &table));
  if (!fits_model(&table, c))
    return pyr_runtime_set_error(rt, PYR_POLICY, "policy %s: tracks a score that is learned for a "
                                 "model of other layers, heads or width", name);
  return pyr_learned_new(cache->pool, trigger->track.n, pyr_table_of(model, &table, 0, 0, false),
                         c->layers, cache->heads, c->kv_heads, c->width, &cache->learned);
}

const char *pyr_score_refused(const pyr_score *score, const pyr_cache *cache, bool prefill,
                              bool probed, const pyr_score_op *track) {
  pyr_table table;
  for (int i = 0; i < score->length; i++) {
    const pyr_score_op *op = &score->ops[i];
    bool learned = pyr_signal_is_learned(op), centres = op->code == PYR_S_CENTRES,
        along = op->code == PYR_S_ALONG || centres, tokens = op->code == PYR_S_TOKENS;
    if ((op->code == PYR_S_TABLE || learned || along || tokens)
        && find_table(cache, op->n, &table) != PYR_OK)
      return "refers to a table that the policy does not have";
    if (tokens && !pyr_ids_whole(cache->ids, cache->tokens))
      return "asks for tokens of rows that were saved without them, by an older build";
    if (learned && !fits_model(&table, &cache->pool->model->whole))
      return "is learned for a model of other layers, heads or width";
    if (along && !along_fits(&table, &cache->pool->model->whole, centres))
      return "has vectors for a model of other layers, heads or dimensions";
    if (learned && !prefill && !pyr_signal_is_carried(op, track))
      return "reads what the layer read, which is known in prefill only, or where the trigger "
             "tracks that learned score";
    if (pyr_signal_reads_inputs(op) && !learned && !prefill)
      return "reads what the layer read, which is known in prefill only";
    if (op->code == PYR_S_CUSTOM && !cache->policy.custom)
      return "refers to a function that the policy does not have";
    if (op->code == PYR_S_CUSTOM && !prefill)
      return "has a custom function, which can rank in prefill only";
    if (op->code == PYR_S_PROBED && !probed)
      return "asks for what a probe tracked, and there was none since rows last changed (a "
             "policy's `prepare`, or cache:probe, makes one)";
    if (op->code == PYR_S_EXPECTED && !prefill)
      return "expects attention from the queries of a prompt, which are known in prefill only";
  }
  return NULL;
}

const char *pyr_score_untracked(const pyr_score_op *op, const pyr_score_op *track) {
  bool attention = pyr_signal_is_attention(op);
  if (!attention && !pyr_signal_is_history(op)) return NULL;
  if (attention && op->a > PYR_MAX)
    return "asks for a variance or an entropy over queries, which only a running prefill knows";
  if (op->code != track->code || (attention && op->n != track->n))
    return "ranks by attention that the trigger does not track";
  if (attention && (op->a == PYR_MAX) != (track->a == PYR_MAX))
    /* neither can be had of the other */
    return op->a == PYR_MAX ? "takes a maximum over queries, of which the trigger tracks a sum"
                            : "adds queries up, of which the trigger tracks a maximum";
  if (op->x == track->x) return NULL;
  return attention ? "ranks by attention of another ramp than the trigger tracks"
                   : "ranks by history of another decay than the trigger tracks";
}

int64_t pyr_score_scratch(const pyr_cache *cache, int depth, int64_t candidates) {
  return ((int64_t)depth + cache->pool->model->config.heads) * candidates;
}

/* 2^64 over the golden ratio: seeds and layers that follow each other give states far apart. */
static uint64_t mix_seed(uint32_t seed, int32_t layer) {
  return ((uint64_t)seed << 32 | (uint32_t)layer) * 0x9e3779b97f4a7c15u;
}

/* Of the heads of the set that is scored, on whatever rank. */
static pyr_status reduce_heads(const pyr_signals *s, pyr_vectors kind, float *out, const float *in,
                               int32_t count, int64_t stride, int64_t n, pyr_reduce how,
                               float scale) {
  const pyr_set set = { s->cache, s->layer, s->together, s->tracked };
  return pyr_reduce_heads(&set, kind, out, in, count, stride, n, how, scale);
}

/* ---- the policy's tables and functions ------------------------------------------------------- */

/* out[i] = the table's number for the row, or for the lanes [head, head + count): their mean. A
 * table by head has one number for each layer and head, [layer * width + head], and fills the
 * vector with it; one by position is looked up row by row. What lies outside a table counts 0. */
static pyr_status eval_table(const pyr_signals *s, int32_t number, int head, int count,
                             float *out) {
  pyr_backend *be = s->cache->pool->be;
  int64_t n = s->end - s->begin;
  const int32_t *positions = pyr_cache_lane(s->cache, s->layer, head)->positions + s->begin;
  int32_t at[AT_ONCE];
  float value[AT_ONCE];
  pyr_table table;
  pyr_status status = find_table(s->cache, number, &table);
  if (status == PYR_OK && table.by == PYR_BY_HEAD) {
    const pyr_model *model = s->cache->pool->model;
    float sum = 0;
    if (s->together) head = 0, count = model->whole.kv_heads;
    else if (model->ranks) head += pyr_model_part(model)->lanes.first;
    for (int h = head; h < head + count; h++) {
      int64_t i = s->layer * table.width + h;
      sum += h < table.width && i < table.count ? table.values[i] : 0;
    }
    return pyr_fill_value(be, out, n, sum / (float)count);
  }
  for (int64_t i = 0; i < n && status == PYR_OK; i += AT_ONCE) {
    int64_t some = n - i < AT_ONCE ? n - i : AT_ONCE;
    status = be->download(be, at, positions + i, (size_t)some * sizeof *at);
    for (int64_t j = 0; j < some && status == PYR_OK; j++)
      value[j] = at[j] >= 0 && at[j] < table.count ? table.values[at[j]] : 0;
    if (status == PYR_OK) status = be->upload(be, out + i, value, (size_t)some * sizeof *value);
  }
  return status;
}

/* out[i] = what the table has of the row's token. */
static pyr_status eval_tokens(const pyr_signals *s, int32_t number, const int32_t *positions,
                              float *out) {
  pyr_table table;
  PYR_TRY(find_table(s->cache, number, &table));
  return pyr_ids_look_up(s->cache->pool, s->cache->ids, out, positions, s->end - s->begin, number,
                         table.values, table.count);
}

/* Which of the prompt's alive tokens the lane's first candidate is. Of 100 rows, 60 of them this
 * prompt's, and candidates from row 44 on: token 4. */
static int64_t first_alive(const pyr_signals *s, int head) {
  return s->begin - (pyr_cache_lane(s->cache, s->layer, head)->rows - s->alive);
}

typedef struct pyr_custom_source { const pyr_signals *signals; int head; } pyr_custom_source;

pyr_status pyr_custom_rows(const pyr_custom_view *view, int values, float *out) {
  const pyr_custom_source *source = view->source;
  const pyr_signals *s = source->signals;
  pyr_backend *be = s->cache->pool->be;
  pyr_lane_view lane = pyr_lane_get_view(pyr_cache_lane(s->cache, s->layer, source->head));
  size_t bytes = (size_t)(view->rows * view->head_dim) * sizeof(float);
  float *rows = be->alloc(be, bytes);
  if (!rows) return pyr_nomem(s->cache->pool->rt, bytes, "the rows of a custom score");
  pyr_status status = be->read_rows(be, rows, &lane, s->cache->pool->layout, s->begin, s->end,
                                    values ? PYR_PLANE_V : PYR_PLANE_K);
  if (status == PYR_OK) status = be->download(be, out, rows, bytes);
  be->release(be, rows, bytes);
  return status;
}

pyr_status pyr_custom_hidden(const pyr_custom_view *view, float *out) {
  const pyr_custom_source *source = view->source;
  const pyr_signals *s = source->signals;
  pyr_backend *be = s->cache->pool->be;
  if (!s->inputs)
    return pyr_runtime_set_error(s->cache->pool->rt, PYR_ARGUMENT,
                                 "the custom score did not ask for hidden states");
  int64_t begin = first_alive(s, source->head);
  return be->download(be, out, s->inputs + begin * view->width,
                      (size_t)(view->rows * view->width) * sizeof *out);
}

/* Turned back on the host, query by query: few prompts are asked for this. What observe.c kept are
 * all heads' queries, [rows][heads][head_dim]; a lane's own lie side by side in each row.
 *
 *     turned    (a cos - b sin, a sin + b cos) times the gain, at the angle position * freq
 *     back      (a cos + b sin, b cos - a sin) over it */
pyr_status pyr_custom_queries(const pyr_custom_view *view, int turned, float *out) {
  const pyr_custom_source *source = view->source;
  const pyr_signals *s = source->signals;
  const pyr_model *model = s->cache->pool->model;
  const pyr_model_config *c = &model->config;
  pyr_backend *be = s->cache->pool->be;
  if (!s->asked)
    return pyr_runtime_set_error(s->cache->pool->rt, PYR_ARGUMENT,
                                 "the custom score did not ask for queries");
  int64_t begin = first_alive(s, source->head), each = (int64_t)c->heads * c->head_dim,
      own = (int64_t)view->group * c->head_dim;
  size_t bytes = (size_t)view->rows * ((size_t)each * sizeof(float) + sizeof(int32_t));
  float *all = pyr_alloc(s->cache->pool->rt, bytes);
  if (!all) return pyr_nomem(s->cache->pool->rt, bytes, "the queries of a custom score");
  int32_t *at = (int32_t *)(all + view->rows * each);
  pyr_status status = be->download(be, all, s->asked + begin * each,
                                   (size_t)(view->rows * each) * sizeof *all);
  if (status == PYR_OK)
    status = be->download(be, at, s->asked_at + begin, (size_t)view->rows * sizeof *at);
  pyr_turn turn = pyr_model_turn(model, s->layer);
  const float *freq = c->turns[s->layer] == PYR_TURN_SECOND ? c->rope_second : c->rope_freq;
  int32_t pairs = turn.dims / 2, step = turn.style == PYR_ROPE_HALF ? 1 : 2,
      other = turn.style == PYR_ROPE_HALF ? pairs : 1;
  for (int64_t i = 0; i < view->rows && status == PYR_OK; i++) {
    float *q = out + i * own;
    memcpy(q, all + i * each + source->head * own, (size_t)own * sizeof *q);
    for (int32_t p = 0; p < pairs && !turned; p++) {
      double co = cos((double)at[i] * freq[p]) / turn.gain,
          si = sin((double)at[i] * freq[p]) / turn.gain;
      for (int32_t h = 0; h < view->group; h++) {
        float *a = q + h * c->head_dim + p * step, *b = a + other, was = *a;
        *a = (float)(was * co + *b * si);
        *b = (float)(*b * co - was * si);
      }
    }
  }
  pyr_release(s->cache->pool->rt, all, bytes);
  return status;
}

/* Shows each lane and the inputs (vectors from `in` on) to the policy's function; the mean of what
 * it returns to `out`. One host block serves all lanes in turn, and goes back before the mean is
 * taken:
 *
 *     [ input 0 .. input a-1 : n floats each ][ result : n floats ][ positions : n int32 ]
 *
 * Two transfers a lane and one for all inputs: for a device that is slow, and bounded by it. */
static pyr_status eval_custom(const pyr_score_op *op, const pyr_signals *s, int head, int count,
                              const float *in, float *temp, float *out) {
  pyr_cache *cache = s->cache;
  pyr_backend *be = cache->pool->be;
  int64_t n = s->end - s->begin;
  size_t vector = (size_t)n * sizeof(float), bytes = (size_t)(op->a + 2) * vector;
  float *host = pyr_alloc(cache->pool->rt, bytes), *result = host ? host + op->a * n : NULL;
  const float *inputs[UINT8_MAX];
  if (!host) return pyr_nomem(cache->pool->rt, bytes, "the inputs of a custom score");
  int32_t *positions = (int32_t *)(result + n);
  pyr_status status = op->a ? be->download(be, host, in, op->a * vector) : PYR_OK;
  for (int i = 0; i < op->a; i++) inputs[i] = host + i * n;
  for (int i = 0; i < count && status == PYR_OK; i++) {
    pyr_custom_source source = { s, head + i };
    const pyr_model *model = cache->pool->model;
    int32_t before = model->ranks ? pyr_model_part(model)->lanes.first : 0;
    pyr_custom_view view = { .layer = s->layer, .head = before + head + i,
                             .head_dim = cache->pool->layout.head_dim, .inputs = op->a,
                             .width = cache->pool->model->config.width,
                             .group = cache->pool->model->config.heads / cache->heads, .rows = n,
                                 .positions = positions, .input = inputs, .source = &source };
    const int32_t *held = pyr_cache_lane(cache, s->layer, head + i)->positions + s->begin;
    status = be->download(be, positions, held, (size_t)n * sizeof *held);
    if (status == PYR_OK) status = cache->policy.custom(cache->policy.ud, op->n, &view, result);
    if (status == PYR_OK) status = be->upload(be, temp + i * n, result, vector);
  }
  pyr_release(cache->pool->rt, host, bytes);
  return status != PYR_OK ? status
      : reduce_heads(s, PYR_OF_LANES, out, temp, count, n, n, PYR_MEAN, 1.0f);
}

/* ---- signals --------------------------------------------------------------------------------- */

/* One vector for each of the group's `each` query heads a lane, lane after lane. */
static pyr_status eval_by_head(const pyr_score_op *op, int index, const pyr_signals *s,
                               const pyr_lane_view *lane, int32_t first, int32_t each, float *out) {
  const pyr_model *model = s->cache->pool->model;
  pyr_backend *be = s->cache->pool->be;
  pyr_layout layout = s->cache->pool->layout;
  int64_t n = s->end - s->begin;
  if (op->code == PYR_S_OUTPUT_NORM)
    return be->output_norm(be, out, lane, layout, s->begin, s->end, &model->layers[s->layer].o,
                           first, each);
  pyr_status status = be->expected(be, out, lane, layout, s->begin, s->end,
                                   &s->queries_of[index].moments, first, each);
  for (int32_t h = 0; h < each && status == PYR_OK; h++) status = be->softmax(be, out + h * n, n);
  return status;
}

/* Where a code comes that has no signal there: pyr_score_check has let none of these by. */
static pyr_status no_signal(const pyr_signals *s, const pyr_score_op *op) {
  return pyr_runtime_set_error(s->cache->pool->rt, PYR_POLICY, "score: %s is no signal here",
                               name_of((pyr_score_code)op->code));
}

/* One vector for a lane. */
static pyr_status eval_lane(const pyr_score_op *op, const pyr_signals *s,
                            const pyr_lane_view *lane, float *out) {
  pyr_backend *be = s->cache->pool->be;
  pyr_layout layout = s->cache->pool->layout;
  switch ((pyr_score_code)op->code) {
  case PYR_S_KEY_SIMILARITY: return be->key_similarity(be, out, lane, layout, s->begin, s->end);
  case PYR_S_REDUNDANCY: return be->redundancy(be, out, lane, layout, s->begin, s->end, op->x);
  case PYR_S_LAG: return be->lag(be, out, lane, layout, s->begin, s->end, op->n,
                                 (pyr_pooling)op->a);
  case PYR_S_KEY_NORM: return be->row_norms(be, out, lane, layout, s->begin, s->end,
                                               PYR_PLANE_K, op->a);
  case PYR_S_VALUE_NORM: return be->row_norms(be, out, lane, layout, s->begin, s->end,
                                                 PYR_PLANE_V, op->a);
  /* None of these comes here: they are not of one lane, or no signals. */
  case PYR_S_ATTENTION: case PYR_S_HISTORY: case PYR_S_POSITION: case PYR_S_RANDOM:
  case PYR_S_CONST: case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
  case PYR_S_POOL: case PYR_S_NORMALIZE: case PYR_S_EXPECTED: case PYR_S_OUTPUT_NORM:
  case PYR_S_TABLE: case PYR_S_PLACE: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP:
  case PYR_S_CUSTOM: case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_ALONG: case PYR_S_CENTRES:
  case PYR_S_TOTAL: case PYR_S_MAP: case PYR_S_TOKENS: case PYR_SCORE_CODES: break;
  }
  return no_signal(s, op);
}

/* What is added to the products of all lanes of the layer, on whatever rank. */
static double learned_constants(const pyr_signals *s, const pyr_table *table, int *count) {
  const pyr_model_config *whole = &s->cache->pool->model->whole;
  double sum = 0;
  *count = whole->kv_heads;
  for (int64_t head = 0; head < whole->kv_heads; head++)
    sum += table->values[((int64_t)s->layer * whole->kv_heads + head + 1) * table->width - 1];
  return sum;
}

/* What the map gave to each candidate, gathered from the chunks that they were read in. Of 1,100
 * tokens, candidates 500 to 600 lie in the first chunk's part of 512 and the second's:
 *
 *     learned   [head 0: 0 .. 511][head 1: 0 .. 511] [head 0: 512 .. 1023][head 1: ...] [...]
 *                          ^ 500 .. 511                       ^ 512 .. 599
 */
static pyr_status eval_learned(const pyr_score_op *op, int index, const pyr_signals *s, int head,
                               int count, float *temp, float *out) {
  pyr_cache *cache = s->cache;
  pyr_backend *be = cache->pool->be;
  int64_t n = s->end - s->begin;
  pyr_table table;
  PYR_TRY(pyr_learned_table(cache, op, &table));
  double constants = 0;
  int own = count;
  for (int i = 0; i < count; i++) {
    int64_t from = first_alive(s, head + i);
    for (int64_t done = 0; done < n;) {
      int64_t token = from + done, chunk = token / s->chunk * s->chunk;
      int64_t held = pyr_min(s->chunk, s->alive - chunk),
          some = pyr_min(n - done, chunk + held - token);
      const float *part = s->learned[index] + chunk * cache->heads + (head + i) * held;
      PYR_TRY(be->copy(be, temp + i * n + done, part + (token - chunk),
                       (size_t)some * sizeof *part));
      done += some;
    }
    constants += pyr_table_of(cache->pool->model, &table, s->layer, head + i,
                              false)[table.width - 1];
  }
  if (s->together) constants = learned_constants(s, &table, &count);
  PYR_TRY(reduce_heads(s, PYR_OF_LANES, out, temp, own, n, n, PYR_MEAN, 1.0f));
  PYR_TRY(pyr_fill_value(be, temp, n, (float)(constants / count)));
  return be->arith(be, out, temp, n, PYR_S_ADD);
}

/* The variance over queries of what each query head gave: (S2 - S^2 / n) / (n - 1), of the sums S
 * and S2 of its n queries. They gave .1 .3 .2: S = .6, S2 = .14, so .01. Then reduced over heads.
 * `temp` takes what S^2 / n is for each head, `out` the constant that divides it. */
static pyr_status eval_variance(const pyr_score_op *op, int index, const pyr_signals *s,
                                int32_t first, int32_t count, float *temp, float *out) {
  pyr_backend *be = s->cache->pool->be;
  int64_t n = s->end - s->begin, queries = s->queries[index];
  PYR_TRY(pyr_fill_value(be, out, n, -(float)queries));
  for (int32_t i = 0; i < count; i++) {
    const float *sum = s->attention[index] + (first + i) * s->stride;
    PYR_TRY(be->copy(be, temp + i * n, sum, (size_t)n * sizeof *sum));
    PYR_TRY(be->arith(be, temp + i * n, sum, n, PYR_S_MUL));
    PYR_TRY(be->arith(be, temp + i * n, out, n, PYR_S_DIV));
    PYR_TRY(be->arith(be, temp + i * n, s->squares[index] + (first + i) * s->stride, n,
                      PYR_S_ADD));
  }
  return reduce_heads(s, PYR_OF_QUERIES, out, temp, count, n, n, (pyr_reduce)op->b,
                          queries > 1 ? 1.0f / (float)(queries - 1) : 0.0f);
}

/* What a head of the table gives to `along`: vectors as they are, or the mean query turned to where
 * queries come next and its spread. The position is `next` plus 1, 2, 4, ... `far`, and as keys lie
 * turned to theirs, a product with the mean of all these turns is the mean of all products:
 *
 *     mean over t of  (R(next + t) q) . (R(j) k)  =  ((mean over t of R(next + t)) q) . (R(j) k)
 *
 * A pair with the mean (1, 0) and a freq of 1, seen from next = 0 at the distances 1, 2 and 4:
 *
 *     angle       1         2         4
 *     cos         0.540    -0.416    -0.654       mean -0.177
 *     sin         0.841     0.909    -0.757       mean  0.331       so (-0.177, 0.331)
 *
 * A fast pair nearly cancels out, as here; one of freq 0.001 stays (1.000, 0.002): far queries
 * agree about it.
 *
 * Spread: the mean length of a pair less the length of the mean, what queries have in it that
 * points anywhere: queries (1, 0) and (0, 1) have the mean (0.5, 0.5) of length 0.707, and a mean
 * length of 1, so a spread of 0.293. `gain` is what rope multiplies q and k with; k has it
 * already. Where rope turns nothing there are no pairs, and the mean query is taken as it is. */
static void turn_centre(const float *from, const pyr_model_config *c, pyr_turn turn,
                        const float *freq, int64_t next, double far, float *vector,
                        float *spread) {
  int32_t pairs = turn.dims / 2, each = turn.style == PYR_ROPE_HALF ? 1 : 2,
      other = turn.style == PYR_ROPE_HALF ? pairs : 1;
  memcpy(vector, from, (size_t)c->head_dim * sizeof *vector);
  for (int32_t p = 0; p < pairs; p++) {
    double a = from[p * each], b = from[p * each + other], co = 0, si = 0;
    int count = 0;
    for (double t = 1; t <= far; t *= 2, count++) {
      double angle = ((double)next + t) * freq[p];
      co += cos(angle), si += sin(angle);
    }
    co *= (double)turn.gain / count, si *= (double)turn.gain / count;
    vector[p * each] = (float)(a * co - b * si);
    vector[p * each + other] = (float)(b * co + a * si);
    spread[p] = turn.gain * (from[c->head_dim + p] - (float)sqrt(a * a + b * b));
  }
}

/* Vectors of the query heads (or K/V heads) of these lanes are made on the host and sent over: two
 * lanes of three query heads each, 64 dimensions, are 6 * (64 + 32) floats.
 *
 *     vectors   [head 0 .. head 5: 64 each]     spreads   [head 0 .. head 5: 32 each]
 *     along     lane 0 with heads 0 to 2 -> temp [3][n], lane 1 with heads 3 to 5 -> temp [6][n]
 *     scaled    each of the six vectors of scores by itself
 *     reduced   op->b over all six (the highest, as a rule), or over three, a lane by itself
 *
 * Heads' products are of different sizes, so that without scaling the loudest would decide. Memory
 * is asked for and given back here: a step that gets none fails before any row has moved. */
static pyr_status eval_along(const pyr_score_op *op, const pyr_signals *s, int head, int count,
                             float *temp, float *out) {
  pyr_cache *cache = s->cache;
  const pyr_model *model = cache->pool->model;
  const pyr_model_config *c = &model->config;
  pyr_backend *be = cache->pool->be;
  bool centres = op->code == PYR_S_CENTRES;
  int32_t group = centres ? c->heads / cache->heads : 1;
  int64_t n = s->end - s->begin, heads = (int64_t)count * group;
  pyr_turn turn = pyr_model_turn(model, s->layer);
  const float *freq = c->turns[s->layer] == PYR_TURN_SECOND ? c->rope_second : c->rope_freq;
  int64_t pairs = turn.dims / 2, floats = heads * (c->head_dim + pairs);
  int64_t next = cache->states[s->layer].compact ? pyr_cache_layer_rows(cache, s->layer) : s->next;
  size_t bytes = (size_t)floats * sizeof(float);
  pyr_table table;
  PYR_TRY(find_table(cache, op->n, &table));
  float *host = pyr_alloc(cache->pool->rt, bytes), *vectors = be->alloc(be, bytes);
  pyr_status status = host && vectors ? PYR_OK
      : pyr_nomem(cache->pool->rt, bytes, "the vectors of a score");
  float *spreads = host + heads * c->head_dim;
  for (int64_t h = 0; h < heads && status == PYR_OK; h++) {
    const float *from = pyr_table_of(model, &table, s->layer, (int)(head * group + h), centres);
    float *vector = host + h * c->head_dim;
    if (centres) turn_centre(from, c, turn, freq, next, op->x, vector, spreads + h * pairs);
    else memcpy(vector, from, (size_t)c->head_dim * sizeof *vector);
  }
  if (status == PYR_OK) status = be->upload(be, vectors, host, bytes);
  for (int i = 0; i < count && status == PYR_OK; i++) {
    pyr_lane_view lane = pyr_lane_get_view(pyr_cache_lane(cache, s->layer, head + i));
    int64_t first = (int64_t)i * group;
    pyr_along along = { .vectors = vectors + first * c->head_dim, .dims = turn.dims,
                        .style = turn.style };
    if (centres) along.spreads = vectors + heads * c->head_dim + first * pairs;
    status = be->along(be, temp + first * n, &lane, cache->pool->layout, s->begin, s->end, &along,
                       group);
    for (int32_t h = 0; h < group && centres && status == PYR_OK; h++)
      status = be->standardize(be, temp + (first + h) * n, n);
  }
  if (vectors) be->release(be, vectors, bytes);
  if (host) pyr_release(cache->pool->rt, host, bytes);
  if (status != PYR_OK) return status;
  return reduce_heads(s, centres ? PYR_OF_QUERIES : PYR_OF_LANES, out, temp, (int32_t)heads, n,
                          n, centres ? (pyr_reduce)op->b : PYR_MEAN, 1.0f);
}

/* Pushes one signal of lanes [head, head + count) to `out`: one number a candidate. A set of lanes
 * has one vector, so what each lane (or each of its query heads) has is reduced to one. With two
 * K/V heads of three query heads each, and four candidates:
 *
 *     attention    6 vectors, one a query head    -> op->b over all 6 (mean, sum or highest)
 *     history      2 vectors, one a lane          -> as well; each is a mean over its heads already
 *     key_norm     2 vectors, one a lane          -> their mean
 *     position     1 vector: lanes that share a set hold the same positions
 *
 * Attention comes as a sum over queries; where the mean is asked for, `scale` divides it. */
static pyr_status eval_signal(const pyr_score *score, int index, const pyr_signals *s, int head,
                              int count, float *temp, float *out) {
  const pyr_score_op *op = &score->ops[index];
  pyr_cache *cache = s->cache;
  pyr_backend *be = cache->pool->be;
  int64_t n = s->end - s->begin;
  int32_t group = cache->pool->model->config.heads / cache->heads;
  const pyr_lane *first = pyr_cache_lane(cache, s->layer, head);
  pyr_status status = PYR_OK;
  switch ((pyr_score_code)op->code) {
  case PYR_S_ATTENTION: case PYR_S_HISTORY: {
    int64_t queries = s->attention[index] ? s->queries[index] : s->tracked_queries;
    float scale = op->code == PYR_S_ATTENTION && (op->a == PYR_MEAN || op->a == PYR_ENTROPY)
        && queries > 0 ? 1.0f / (float)queries : 1.0f;
    if (s->squares[index])
      return eval_variance(op, index, s, head * group, count * group, temp, out);
    if (s->attention[index])
      return reduce_heads(s, PYR_OF_QUERIES, out,
                              s->attention[index] + (int64_t)head * group * s->stride,
                              count * group, s->stride, n, (pyr_reduce)op->b, scale);
    for (int i = 0; i < count && status == PYR_OK; i++)
      status = be->copy(be, temp + i * n, first[i].history + s->begin, (size_t)n * sizeof(float));
    return status != PYR_OK ? status
        : reduce_heads(s, PYR_OF_HISTORY, out, temp, count, n, n, (pyr_reduce)op->b, scale);
  }
  case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM: case PYR_S_KEY_SIMILARITY: case PYR_S_LAG:
  case PYR_S_REDUNDANCY:
    for (int i = 0; i < count && status == PYR_OK; i++) {
      pyr_lane_view lane = pyr_lane_get_view(&first[i]);
      status = eval_lane(op, s, &lane, temp + i * n);
    }
    return status != PYR_OK ? status
        : reduce_heads(s, PYR_OF_LANES, out, temp, count, n, n, PYR_MEAN, 1.0f);
  case PYR_S_OUTPUT_NORM: case PYR_S_EXPECTED:
    for (int i = 0; i < count && status == PYR_OK; i++) {
      pyr_lane_view lane = pyr_lane_get_view(&first[i]);
      status = eval_by_head(op, index, s, &lane, (head + i) * group, group,
                            temp + (int64_t)i * group * n);
    }
    if (status != PYR_OK) return status;
    return reduce_heads(s, PYR_OF_QUERIES, out, temp, count * group, n, n,
                            op->code == PYR_S_EXPECTED ? (pyr_reduce)op->b : PYR_MEAN, 1.0f);
  case PYR_S_ALONG: case PYR_S_CENTRES:
    return eval_along(op, s, head, count, temp, out);
  case PYR_S_LEARNED:
    if (!s->tracked || !pyr_signal_is_carried(op, s->tracked))
      return eval_learned(op, index, s, head, count, temp, out);
    for (int i = 0; i < count && status == PYR_OK; i++)
      status = be->copy(be, temp + i * n, first[i].history + s->begin, (size_t)n * sizeof(float));
    return status != PYR_OK ? status
        : reduce_heads(s, PYR_OF_LANES, out, temp, count, n, n, PYR_MEAN, 1.0f);
  case PYR_S_PROBED:
    for (int i = 0; i < count && status == PYR_OK; i++)
      status = be->copy(be, temp + i * n,
                        pyr_cache_lane_probed(cache, s->layer, head + i) + s->begin,
                        (size_t)n * sizeof(float));
    return status != PYR_OK ? status
        : reduce_heads(s, PYR_OF_LANES, out, temp, count, n, n, PYR_MEAN, 1.0f);
  case PYR_S_TABLE:
    return eval_table(s, op->n, head, count, out);
  case PYR_S_TOKENS:
    return eval_tokens(s, op->n, first->positions + s->begin, out);
  case PYR_S_PLACE:
    return be->fill(be, out, NULL, n, PYR_FILL_PLACE, 0, 0.0f);
  case PYR_S_POSITION:
    return be->fill(be, out, first->positions + s->begin, n, PYR_FILL_POSITION, 0, 0.0f);
  case PYR_S_RANDOM:
    return be->fill(be, out, first->positions + s->begin, n, PYR_FILL_HASH,
                    mix_seed((uint32_t)op->n, s->layer), 0.0f);
  case PYR_S_CONST:
    return pyr_fill_value(be, out, n, op->x);
  /* These work on the stack, in pyr_score_eval. */
  case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV: case PYR_S_POOL:
  case PYR_S_NORMALIZE: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP: case PYR_S_CUSTOM:
  case PYR_S_TOTAL: case PYR_S_MAP: case PYR_SCORE_CODES: break;
  }
  return no_signal(s, op);
}

/* Invariant: before each operation the stack holds `height` vectors of n floats, the deepest first;
 * pyr_score_check has proved that none is popped which is not there, and how high it gets. Whether
 * all scores are numbers is noted in device memory as the program runs, and read by the caller when
 * he waits for the device anyway. */
pyr_status pyr_score_eval(const pyr_score *score, const pyr_signals *signals, int head, int count,
                          float *scratch, float **out) {
  static const pyr_score by_position = { 1, { { PYR_S_POSITION, 0, 0, 0, 0.0f } } };
  pyr_backend *be = signals->cache->pool->be;
  int64_t n = signals->end - signals->begin;
  float *temp = scratch, *stack = scratch + signals->cache->pool->model->config.heads * n;
  int height = 0;
  pyr_status status = PYR_OK;
  if (score->length == 0) score = &by_position;
  int32_t *fault = signals->fault;
  for (int i = 0; i < score->length && status == PYR_OK; i++) {
    const pyr_score_op *op = &score->ops[i];
    float *top = stack + (height - 1) * n;                 /* meaningful where height >= 1 */
    /* What these make of a value may hide that it is no number. */
    bool hides = op->code == PYR_S_POOL || op->code == PYR_S_TOP || op->code == PYR_S_SOFTMAX
        || op->code == PYR_S_DIV || op->code == PYR_S_MAP;
    if (fault && hides) status = be->finite(be, fault, top, n);
    if (status != PYR_OK) return status;
    switch ((pyr_score_code)op->code) {
    case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
      status = be->arith(be, top - n, top, n, (pyr_score_code)op->code);
      height--;
      break;
    case PYR_S_POOL:
      status = be->pool(be, top + n, top, n, op->n, (pyr_pooling)op->a);
      if (status == PYR_OK) status = be->copy(be, top, top + n, (size_t)n * sizeof(float));
      break;
    case PYR_S_NORMALIZE:
      status = be->normalize(be, top, n);
      break;
    case PYR_S_SOFTMAX:
      status = be->softmax(be, top, n);
      break;
    case PYR_S_TOTAL:
      status = be->total(be, top, n, op->a ? PYR_MAX : PYR_SUM);
      break;
    case PYR_S_MAP:
      status = be->map(be, top, n, (pyr_mapping)op->a, op->x);
      break;
    case PYR_S_CHUNK:
      status = be->chunk(be, top, n, op->n);
      break;
    case PYR_S_TOP: {
      int64_t some = op->n < n ? op->n : n;
      status = be->select(be, (int32_t *)temp, top, n, some, 0);
      if (status == PYR_OK) status = be->mark(be, top, n, (int32_t *)temp, some);
      break;
    }
    case PYR_S_CUSTOM:
      height -= op->a;
      status = eval_custom(op, signals, head, count, stack + height * n, temp, stack + height * n);
      height++;
      break;
    case PYR_S_ATTENTION: case PYR_S_HISTORY: case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
    case PYR_S_POSITION: case PYR_S_RANDOM: case PYR_S_CONST: case PYR_S_KEY_SIMILARITY:
    case PYR_S_EXPECTED: case PYR_S_LAG: case PYR_S_OUTPUT_NORM: case PYR_S_TABLE:
    case PYR_S_PLACE: case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_REDUNDANCY:
    case PYR_S_ALONG: case PYR_S_CENTRES: case PYR_S_TOKENS:
      status = eval_signal(score, i, signals, head, count, temp, stack + height * n);
      height++;
      break;
    case PYR_SCORE_CODES: break;
    }
  }
  *out = stack;
  return status == PYR_OK && fault ? be->finite(be, fault, stack, n) : status;
}

/* ---- of a whole layer ------------------------------------------------------------------------ */

/* One vector for each query head of a lane, as a signal is reduced from. */
static int64_t weight_temp(const pyr_splits *splits) {
  const pyr_model *model = splits->cache->pool->model;
  int64_t own = model->config.heads * splits->longest;
  /* a lane of another rank has no more rows than the layer has candidates */
  return model->ranks ? pyr_max(own, splits->total) : own;
}

/* These, and vectors as long as the layer for the stack. A layer of 3 lanes of 1,000 rows and 9
 * query heads, 4 deep: 21,000 floats. */
int64_t pyr_weight_scratch(const pyr_splits *splits, int depth) {
  return depth * splits->total + weight_temp(splits);
}

/* The lanes of a layer whose candidates are weighed together, on whatever rank. Of three lanes of
 * 40, 52 and 31, the first on rank 0: counts are these on both, and `before` 0 and 40. */
typedef struct pyr_field {
  const pyr_splits *splits;      /* of this rank's lanes */
  int64_t *counts;               /* host [K/V heads] candidates of each */
  int32_t lanes;
  int64_t before;                /* candidates of the lanes before this rank's first */
} pyr_field;

/* A signal, of lane after lane: each has its own rows to look at, and its own number of them. What
 * queries gave lies by query head, [query heads, stride], whatever the lane's length. Of several
 * ranks each works out its own lanes' and gets the others': all have the same bits then, and go on
 * alike. */
static pyr_status weigh_signal(const pyr_score *program, int index, const pyr_signals *signals,
                               const pyr_field *field, float *temp, float *out) {
  const pyr_splits *splits = field->splits;
  const pyr_model *model = splits->cache->pool->model;
  pyr_signals s = *signals;
  float *own = out + field->before, *to = own;
  for (int head = 0; head < splits->cache->heads; head++) {
    const pyr_split *lane = &splits->lanes[head];
    s.begin = lane->first, s.end = lane->first + lane->candidates;
    if (lane->candidates > 0) PYR_TRY(eval_signal(program, index, &s, head, 1, temp, to));
    to += lane->candidates;
  }
  return model->ranks ? pyr_heads_gather(model, field->counts, sizeof *out, own, out) : PYR_OK;
}

/* What looks at neighbours, ranks, or asks for the highest stays within a lane. */
static pyr_status weigh_lanes(const pyr_score_op *op, const pyr_field *field, float *temp,
                              float *x) {
  pyr_backend *be = field->splits->cache->pool->be;
  for (int head = 0; head < field->lanes; head++) {
    int64_t n = field->counts[head], some = pyr_min(op->n, n);
    pyr_status status = PYR_OK;
    if (n > 0 && op->code == PYR_S_TOTAL) {
      status = be->total(be, x, n, PYR_MAX);
    } else if (n > 0 && op->code == PYR_S_POOL) {
      status = be->pool(be, temp, x, n, op->n, (pyr_pooling)op->a);
      if (status == PYR_OK) status = be->copy(be, x, temp, (size_t)n * sizeof *x);
    } else if (n > 0 && op->code == PYR_S_SOFTMAX) {
      status = be->softmax(be, x, n);
    } else if (n > 0 && op->code == PYR_S_CHUNK) {
      status = be->chunk(be, x, n, op->n);
    } else if (n > 0) {
      status = be->select(be, (int32_t *)temp, x, n, some, 0);
      if (status == PYR_OK) status = be->mark(be, x, n, (int32_t *)temp, some);
    }
    PYR_TRY(status);
    x += n;
  }
  return PYR_OK;
}

/* Whether values on the way are numbers is not asked of each, as it is of a score: one that is none
 * makes the weight none, but under :above, where a row less or more counts. Only the weight itself
 * must be a number, which the caller sees.
 *
 * As pyr_score_eval, but that a vector has the candidates of all lanes, one lane after the other.
 * So x:sum() is of the layer, and (x / x:sum()) its share of what the layer has:
 *
 *     lanes        .1 .3 | .2 .2 .2        x
 *     x:sum()      1  1  | 1  1  1         one number for all, which is the mean of all, too   */
static pyr_status weigh(const pyr_score *program, int first, const pyr_signals *signals,
                        const pyr_field *field, float *scratch, float *out) {
  pyr_backend *be = field->splits->cache->pool->be;
  int64_t n = field->splits->total;
  float *temp = scratch, *stack = scratch + weight_temp(field->splits);
  int height = 0;
  for (int i = first; i < program->length; i++) {
    const pyr_score_op *op = &program->ops[i];
    float *top = stack + (height - 1) * n;                 /* meaningful where height >= 1 */
    switch ((pyr_score_code)op->code) {
    case PYR_S_ADD: case PYR_S_SUB: case PYR_S_MUL: case PYR_S_DIV:
      PYR_TRY(be->arith(be, top - n, top, n, (pyr_score_code)op->code));
      height--;
      break;
    case PYR_S_NORMALIZE: PYR_TRY(be->normalize(be, top, n)); break;
    case PYR_S_TOTAL:
      if (!op->a) PYR_TRY(be->total(be, top, n, PYR_SUM));
      else PYR_TRY(weigh_lanes(op, field, temp, top));
      break;
    case PYR_S_MAP: PYR_TRY(be->map(be, top, n, (pyr_mapping)op->a, op->x)); break;
    case PYR_S_POOL: case PYR_S_SOFTMAX: case PYR_S_CHUNK: case PYR_S_TOP:
      PYR_TRY(weigh_lanes(op, field, temp, top));
      break;
    case PYR_S_ATTENTION: case PYR_S_HISTORY: case PYR_S_KEY_NORM: case PYR_S_VALUE_NORM:
    case PYR_S_POSITION: case PYR_S_RANDOM: case PYR_S_CONST: case PYR_S_KEY_SIMILARITY:
    case PYR_S_EXPECTED: case PYR_S_LAG: case PYR_S_OUTPUT_NORM: case PYR_S_TABLE:
    case PYR_S_PLACE: case PYR_S_LEARNED: case PYR_S_PROBED: case PYR_S_REDUNDANCY:
    case PYR_S_ALONG: case PYR_S_CENTRES: case PYR_S_TOKENS:
      PYR_TRY(weigh_signal(program, i, signals, field, temp, stack + height * n));
      height++;
      break;
    case PYR_S_CUSTOM: case PYR_SCORE_CODES: break;        /* refused when the plan was checked */
    }
  }
  PYR_TRY(be->total(be, stack, n, PYR_SUM));
  PYR_TRY(be->download(be, out, stack, sizeof *out));
  *out /= (float)n;
  return PYR_OK;
}

/* Of several ranks one exchange tells how many candidates each lane has, by which all later ones
 * are known. */
pyr_status pyr_score_weigh(const pyr_score *program, int first, const pyr_signals *signals,
                           const pyr_splits *splits, float *scratch, float *out) {
  const pyr_model *model = splits->cache->pool->model;
  pyr_runtime *rt = splits->cache->pool->rt;
  int32_t lanes = model->whole.kv_heads, own = splits->cache->heads,
      at = model->ranks ? pyr_model_part(model)->lanes.first : 0;
  size_t bytes = (size_t)lanes * 2 * sizeof(int64_t);
  *out = 0;
  if (splits->total == 0) return PYR_OK;
  int64_t *counts = pyr_alloc(rt, bytes), *mine = counts ? counts + lanes : NULL;
  if (!counts) return pyr_nomem(rt, bytes, "what a layer weighs");
  for (int head = 0; head < own; head++)
    mine[head] = counts[at + head] = splits->lanes[head].candidates;
  pyr_field field = { splits, counts, lanes, 0 };
  pyr_status status = model->ranks
      ? pyr_heads_gather(model, NULL, sizeof *counts, mine, counts) : PYR_OK;
  for (int head = 0; head < at && status == PYR_OK; head++) field.before += counts[head];
  if (status == PYR_OK) status = weigh(program, first, signals, &field, scratch, out);
  pyr_release(rt, counts, bytes);
  return status;
}
