/* observe.c — see observe.h. */
#include "policy/observe.h"
#include "model/model.h"

static const pyr_model *model_of(const pyr_observation *o) { return o->splits->cache->pool->model; }

/* Whether the score's i-th operation reads sums of its own. A history that the lanes hold is read
 * there, unless a maximum over query heads is asked for, of which a lane holds only the mean. */
static bool needs_sums(const pyr_observation *o, const pyr_score_op *op) {
  const pyr_model_config *whole = &model_of(o)->whole;
  bool over_heads = op->b == PYR_MAX && whole->heads != whole->kv_heads;
  if (pyr_signal_is_attention(op)) return true;
  return pyr_signal_is_history(op)
      && (over_heads || !pyr_signal_is_history(&o->trigger->track));
}

/* Takes no memory: ranges and list were laid out once for all layers and are kept; all else is the
 * layer's. */
void pyr_observe_begin(pyr_observation *o, const pyr_splits *splits, const pyr_trigger *trigger,
                       bool restarts, int64_t last_position, int32_t *fault) {
  pyr_observation kept = *o;
  *o = (pyr_observation){ .splits = splits, .trigger = trigger, .last_position = last_position,
                          .ranges = { kept.ranges[0], kept.ranges[1] }, .list = kept.list };
  o->signals = (pyr_signals){ .cache = splits->cache, .layer = splits->layer,
                              .stride = splits->longest, .fault = fault,
                              .tracked = pyr_trigger_tracks(trigger) ? &trigger->track : NULL };
  o->signals.alive = splits->coming;
  o->program = splits->plan->score;
  for (int i = 0; i < splits->plan->weight.length; i++)
    o->program.ops[o->program.length++] = splits->plan->weight.ops[i];
  o->signals.next = last_position + 1;
  o->track = pyr_track_prompt(splits, trigger, restarts, last_position);
  if (o->track.queries > 0)
    o->tracked_stride = splits->rows - pyr_track_begin(&o->track, splits->rows);
}

void pyr_observe_layout_host(pyr_observation *o, int32_t heads, pyr_arena *host) {
  PYR_PART(host, o->ranges[0], heads);
  PYR_PART(host, o->ranges[1], heads);
  PYR_PART(host, o->list, PYR_OBSERVED_MAX);
}

/* Where rows carry a learned score, nothing is to be done for it: they have it when they are
 * stored. Of another learned map [kv_heads, width + 1] the weights, and room for what it gives; for
 * custom scores the inputs, once. A token of 3 K/V heads takes 12 bytes; its input, width 576,
 * 2,304. */
static void layout_inputs(pyr_observation *o, int ops, pyr_arena *arena) {
  const pyr_score *score = &o->program;
  int64_t heads = o->splits->cache->heads, width = model_of(o)->config.width;
  bool keeps = false, asks = false;
  for (int i = 0; i < ops; i++) {
    if (!pyr_signal_reads_inputs(&score->ops[i])) continue;
    if (o->signals.tracked && pyr_signal_is_carried(&score->ops[i], o->signals.tracked)) continue;
    o->learns = true;
    keeps = keeps || (!pyr_signal_is_learned(&score->ops[i]) && score->ops[i].b & 1);
    asks = asks || (!pyr_signal_is_learned(&score->ops[i]) && score->ops[i].b & 2);
    if (!pyr_signal_is_learned(&score->ops[i])) continue;
    PYR_PART(arena, o->maps[i], heads * width);
    PYR_PART(arena, o->signals.learned[i], heads * o->splits->coming);
  }
  if (keeps) PYR_PART(arena, o->signals.inputs, o->splits->coming * width);
  /* For custom scores that ask for queries all of the prompt's, [alive, heads, head_dim], and
   * where rope turned each to: of 9 heads of 64 dimensions a token takes 2,308 bytes. */
  if (!asks) return;
  PYR_PART(arena, o->signals.asked,
           o->splits->coming * model_of(o)->config.heads * model_of(o)->config.head_dim);
  PYR_PART(arena, o->signals.asked_at, o->splits->coming);
}

/* Sums come first and lie in one run, which pyr_observe_start fills in one call; means and
 * moments behind it are written before they are read.
 *
 *     [ sums of op 0 ][ sums of op 2 ] ... [ tracked ]   [ mean ][ moments ... ]
 *     ^ zeros                                        ^ zero_count floats later */
void pyr_observe_layout(pyr_observation *o, pyr_arena *arena) {
  const pyr_model *model = model_of(o);
  const pyr_score *score = &o->program;
  int32_t heads = model->config.heads;
  int64_t alive = o->splits->coming, stride = o->signals.stride;
  int ops = o->splits->needed && stride > 0 ? score->length : 0;
  size_t begin = arena->used;
  PYR_PART(arena, o->zeros, 0);
  for (int i = 0; i < ops; i++)
    if (needs_sums(o, &score->ops[i])) PYR_PART(arena, o->signals.attention[i], heads * stride);
  for (int i = 0; i < ops; i++)
    if (pyr_signal_is_attention(&score->ops[i]) && score->ops[i].a == PYR_VARIANCE)
      PYR_PART(arena, o->signals.squares[i], heads * stride);
  if (o->track.queries > 0) PYR_PART(arena, o->tracked, heads * o->tracked_stride);
  o->zero_count = (int64_t)((arena->used - begin) / sizeof *o->zeros);
  if (o->track.queries > 0) PYR_PART(arena, o->mean, 2 * o->tracked_stride);
  for (int i = 0; i < ops; i++) {
    const pyr_score_op *op = &score->ops[i];
    if (!pyr_signal_is_expected(op)) continue;
    o->expects = true;
    pyr_query_stats_layout(&o->signals.queries_of[i], model, o->splits->layer, op->a, alive,
                           (int64_t)op->x, arena);
  }
  layout_inputs(o, ops, arena);
}

/* The rows of a map go over without their constants, which score.c adds. */
static pyr_status send_map(pyr_observation *o, int i) {
  pyr_cache *cache = o->splits->cache;
  pyr_backend *be = cache->pool->be;
  int64_t width = model_of(o)->config.width;
  pyr_table table;
  PYR_TRY(pyr_learned_table(cache, &o->program.ops[i], &table));
  const float *from = pyr_table_of(model_of(o), &table, o->splits->layer, 0, false);
  for (int head = 0; head < cache->heads; head++)
    PYR_TRY(be->upload(be, o->maps[i] + head * width, from + head * table.width,
                       (size_t)width * sizeof *from));
  return PYR_OK;
}

pyr_status pyr_observe_start(pyr_observation *o) {
  pyr_backend *be = o->splits->cache->pool->be;
  for (int i = 0; i < o->program.length && o->learns; i++)
    if (o->maps[i]) PYR_TRY(send_map(o, i));
  return o->zero_count ? pyr_fill_zeros(be, o->zeros, o->zero_count) : PYR_OK;
}

/* ---- chunk by chunk -------------------------------------------------------------------------- */

/* How many of the last alive queries the score's i-th operation looks at. */
static int64_t queries_of(const pyr_observation *o, int i) {
  const pyr_score_op *op = &o->program.ops[i];
  int64_t alive = o->splits->coming;
  return pyr_signal_is_attention(op) && op->n > 0 ? pyr_min(op->n, alive) : alive;
}

/* Of 1,100 alive tokens in chunks at 0, 512 and 1,024, a score of the last 100 queries wants the
 * second chunk (76 queries behind it) and the third (none behind it), and not the first (588
 * behind it). */
bool pyr_observe_wants(const pyr_observation *o, int64_t at, int64_t n) {
  int64_t behind = o->splits->coming - (at + n);      /* alive queries after these */
  if (o->expects || o->signals.asked || (o->tracked && behind < o->track.queries)) return true;
  for (int i = 0; i < o->program.length; i++)
    if (o->signals.attention[i] && behind < queries_of(o, i)) return true;
  return false;
}

/* The rows that sums are of, in each lane: candidates, or what is tracked. Rows that are not stored
 * yet are seen by no query so far. */
static void set_ranges(pyr_observation *o, bool tracked) {
  const pyr_splits *s = o->splits;
  for (int head = 0; head < s->cache->heads; head++) {
    const pyr_split *lane = &s->lanes[head];
    int64_t stored = pyr_cache_lane(s->cache, s->layer, head)->rows;
    int64_t begin = tracked ? pyr_track_begin(&o->track, lane->rows) : lane->first;
    int64_t end = tracked ? stored : pyr_min(lane->first + lane->candidates, stored);
    o->ranges[tracked][head] = (pyr_range){ begin, end, lane->rows };
  }
}

/* Asks for what those of a's queries give that are among the last `queries` alive. `m` says to
 * what, and how they count. */
static void ask(pyr_observation *o, pyr_mass m, const pyr_attention *a, int64_t at, int64_t queries,
                const pyr_range *ranges) {
  const pyr_model *model = model_of(o);
  int32_t heads = model->config.heads;
  int64_t skip = pyr_max(0, o->splits->coming - queries - at);
  if (skip >= a->n) return;
  m.q = a->q + skip * heads * model->config.head_dim;
  m.lse = a->lse + skip * heads;
  m.q_pos = a->q_pos + skip;
  m.n = a->n - skip;
  m.lanes = a->lanes;
  m.ranges = ranges;
  m.window = a->window;
  m.cap = a->cap;
  m.slopes = a->slopes;
  m.place = (int32_t)(at + skip);
  o->list[o->masses.count++] = m;
}

/* Of a variance the plain sum comes first; its squares have their own. A score may ask for mean and
 * variance of the same queries: then their sum is made twice, as each operation has its own. */
static pyr_reduce sums_of(const pyr_score_op *op) {
  bool entropy = pyr_signal_is_attention(op) && op->a == PYR_ENTROPY;
  return op->a == PYR_MAX ? PYR_MAX : entropy ? PYR_ENTROPY : PYR_SUM;
}

/* A score's ramp counts queries by their place among those alive: where earlier layers dropped
 * tokens, positions have gaps, but "the last n queries" does not. */
static void ask_for_score(pyr_observation *o, int i, const pyr_attention *a, int64_t at) {
  const pyr_score_op *op = &o->program.ops[i];
  int64_t queries = queries_of(o, i);
  pyr_weighting w = { .queries = 0, .ramp = 1.0f };
  if (pyr_signal_is_attention(op) && op->n > 0)
    w = (pyr_weighting){ .queries = (int32_t)queries, .ramp = op->x,
                         .due = o->splits->coming - 1 };
  o->signals.queries[i] = queries;
  pyr_mass m = { .out = o->signals.attention[i], .stride = o->signals.stride,
                 .reduce = sums_of(op), .weighting = w, .by_place = true };
  ask(o, m, a, at, queries, o->ranges[false]);
  m.out = o->signals.squares[i], m.reduce = PYR_VARIANCE;
  if (m.out) ask(o, m, a, at, queries, o->ranges[false]);
}

/* Due dates are positions. */
static void ask_for_tracked(pyr_observation *o, const pyr_attention *a, int64_t at) {
  pyr_mass m = { .out = o->tracked, .stride = o->tracked_stride,
                 .reduce = pyr_trigger_tracks_max(o->trigger) ? PYR_MAX : PYR_SUM,
                 .weighting = o->track.weighting, .by_place = false };
  ask(o, m, a, at, o->track.queries, o->ranges[true]);
}

/* Rows of the chunk are stored by now, so ranges hold those that its queries see. One query is a
 * step's attention, which sums nothing: `mass` is asked, as it is where any sum is not of p. */
void pyr_observe_ask(pyr_observation *o, pyr_attention *a, int64_t at) {
  set_ranges(o, false);
  set_ranges(o, true);
  o->masses = (pyr_masses){ .list = o->list };
  for (int i = 0; i < o->program.length; i++)
    if (o->signals.attention[i]) ask_for_score(o, i, a, at);
  if (o->tracked) ask_for_tracked(o, a, at);
  bool plain = true;
  for (int i = 0; i < o->masses.count; i++) plain = plain && o->list[i].reduce <= PYR_MAX;
  if (o->masses.count > 0 && a->n > 1 && plain) a->masses = &o->masses;
}

pyr_status pyr_observe_queries(pyr_observation *o, const pyr_attention *a,
                               const int32_t *turned_to, int64_t at) {
  const pyr_cache *cache = o->splits->cache;
  pyr_backend *be = cache->pool->be;
  const pyr_model *model = model_of(o);
  const pyr_score *score = &o->program;
  int64_t each = (int64_t)model->config.heads * model->config.head_dim;
  if (o->signals.asked) {
    /* as rope turned them, and to what: score.c turns them back for whoever asks */
    PYR_TRY(be->copy(be, o->signals.asked + at * each, a->q,
                     (size_t)(a->n * each) * sizeof(float)));
    PYR_TRY(be->copy(be, o->signals.asked_at + at, turned_to, (size_t)a->n * sizeof *turned_to));
  }
  for (int i = 0; i < score->length; i++)
    if (o->expects && pyr_signal_is_expected(&score->ops[i]))
      PYR_TRY(pyr_query_stats_add(&o->signals.queries_of[i], be, a, turned_to, at));
  for (int i = 0; i < o->masses.count && !o->masses.summed; i++)
    PYR_TRY(be->mass(be, &o->list[i], cache->pool->layout, model->config.heads, cache->heads,
                     model->scale));
  return PYR_OK;
}

/* Tokens are the rows of the weight here, and the map's rows what is multiplied with it, so that
 * what comes out lies head by head:
 *
 *     maps [heads, width] . in [n, width]^T  ->  [heads, n], behind those of the chunks before */
pyr_status pyr_observe_inputs(pyr_observation *o, const float *in, int64_t at, int64_t n) {
  pyr_cache *cache = o->splits->cache;
  pyr_backend *be = cache->pool->be;
  int64_t width = model_of(o)->config.width;
  pyr_tensor tokens = { .data = in, .dtype = PYR_F32, .rank = 2, .shape = { n, width },
                        .stride = (size_t)width * sizeof *in };
  if (at == 0) o->signals.chunk = n;
  for (int i = 0; i < o->program.length; i++)
    if (o->maps[i])
      PYR_TRY(be->linear(be, o->signals.learned[i] + at * cache->heads, o->maps[i], &tokens, NULL,
                         cache->heads, PYR_LINEAR_EXACT));
  if (!o->signals.inputs) return PYR_OK;
  return be->copy(be, o->signals.inputs + at * width, in, (size_t)(n * width) * sizeof *in);
}

/* ---- at the end of the prompt ---------------------------------------------------------------- */

/* Of what a lane's query heads gave, its rows' history gets the mean. Of two query heads that
 * gave a row 0.4 and 0.2, its history gets 0.3 more; or, where maxima are tracked, becomes 0.4
 * unless it is more already. `tracked` has a vector for each query head, and a lane's lie one after
 * the other. Behind the mean there is room for what the history was, of which both the highest is.
 * */
static pyr_status flush_tracked(pyr_observation *o) {
  bool max = pyr_trigger_tracks_max(o->trigger);
  pyr_cache *cache = o->splits->cache;
  pyr_backend *be = cache->pool->be;
  int32_t group = model_of(o)->config.heads / cache->heads;
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, o->splits->layer, head);
    int64_t begin = pyr_track_begin(&o->track, lane->rows), n = lane->rows - begin;
    const float *from = o->tracked + (int64_t)head * group * o->tracked_stride;
    float *history = lane->history + begin, *was = o->mean + o->tracked_stride;
    PYR_TRY(be->reduce_rows(be, o->mean, from, group, o->tracked_stride, n,
                            max ? PYR_MAX : PYR_MEAN, 1.0f));
    if (!max) {
      PYR_TRY(be->arith(be, history, o->mean, n, PYR_S_ADD));
      continue;
    }
    PYR_TRY(be->copy(be, was, history, (size_t)n * sizeof *was));
    PYR_TRY(be->reduce_rows(be, history, o->mean, 2, o->tracked_stride, n, PYR_MAX, 1.0f));
  }
  return PYR_OK;
}

/* Expected are queries behind the rows as they are rotated: by their indices where the layer is
 * compacted. */
static pyr_status end_query_stats(pyr_observation *o) {
  pyr_cache *cache = o->splits->cache;
  int layer = o->splits->layer;
  const pyr_score *score = &o->program;
  int64_t next = cache->states[layer].compact ? pyr_cache_layer_rows(cache, layer)
      : o->last_position + 1;
  for (int i = 0; i < score->length; i++)
    if (pyr_signal_is_expected(&score->ops[i]))
      PYR_TRY(pyr_query_stats_end(&o->signals.queries_of[i], cache->pool->be, model_of(o), next,
                                  score->ops[i].n));
  return PYR_OK;
}

pyr_status pyr_observe_end(pyr_observation *o) {
  if (o->tracked) PYR_TRY(flush_tracked(o));
  return o->expects ? end_query_stats(o) : PYR_OK;
}
