/* step.c — a decode step: one token each of `count` sequences, in one pass that reads every weight
 * once; or several tokens of one sequence, to verify what was guessed of them.
 *
 * Verifying (speculative decoding, arXiv 2211.17192) is a step whose tokens follow each other: one
 * product for all of them, then each token's row and its query as in a step of its own, so that
 * its logits are, bit for bit, those that steps one by one would give. Numbers below are of tokens:
 * token t is the t % each'th of sequence t / each, and a step has each = 1. No plan may be due
 * before the caller has said which tokens stay (pyr_cache_verifiable), and rows that slide out of
 * windows stay until the next call. A cache of 40 tokens whose plan is due in 8 steps, verifying 4:
 *
 *     read       40 41 42 43      in one pass; 43 turns out wrong
 *     truncated  40 41 42         rows of 43 go, and what its query gave to tracked rows
 *     plan due   in 5 steps
 *
 * pyr_step_pick refuses what cannot be done; then (step_whole) host memory; ask, reserve, compute
 * and rank, all or nothing (step_run); evict; and it samples.
 *
 * Failure. Plans are asked for before anything is touched; memory is reserved before anything is
 * computed. A failed step drops its row. After its reservation a step can fail only if the device
 * does; then rows are as before, but what was tracked of them may have counted the step's
 * attention. Rows that a trigger recalls come up before all that (policy/promote.h). */
#include "model/reading.h"
#include "model/stages.h"
#include "sample/sample_batch.h"
#include "policy/evict.h"
#include "policy/policy.h"
#include "policy/promote.h"
#include "cache/tiers.h"
#include "cache/undo.h"

#include <string.h>

typedef struct pyr_decode {
  pyr_cache *const *caches;        /* [count] */
  int count, each;                 /* sequences, and the tokens of each */
  int tokens;                      /* count * each */
  int across;                      /* those of the whole step, of which this may be a group */
  bool trial;                      /* they may be taken back: one sequence */
  int64_t longest;                 /* the most rows of any lane, with the step's */
  bool strides;                    /* lanes are not looked at while it is computed (stride.c) */
  pyr_forward f;
  int64_t due_count, turned;       /* plans due; positions in `rot`, [layers, count] or none */
  bool due_any;                    /* plans are due, of whichever stage */
  pyr_evictions due;               /* decode plans that run after this step */
  pyr_append *rows;                /* host [count] */
  pyr_attention *attention;        /* host [tokens] */
  pyr_attention *lower;            /* host [tokens], where there are tiers: scratch, as … */
  pyr_lane_view *below;            /* … host [tokens * kv_heads] */
  pyr_track *tracks;               /* host [tokens] */
  pyr_lane_view *views;            /* host [tokens * kv_heads]; NULL: in strides */
  pyr_readings reading;            /* of sequences of which some layer reads less than it holds */
  int32_t *pos, *rot;              /* host: f.pos and f.rot, before they go over */
  pyr_sample_batch samples;
} pyr_decode;

static bool same_layout(pyr_layout a, pyr_layout b) {
  return a.dtype == b.dtype && a.k == b.k && a.v == b.v;
}

/* Whether two caches' rows lie alike, tier by tier in one dtype, so that one call of the backend
 * can attend to those of both. */
static bool same_tiers(const pyr_cache *a, const pyr_cache *b) {
  while (a && b && same_layout(a->pool->layout, b->pool->layout)) a = a->below, b = b->below;
  return !a && !b;
}

/* A sequence twice would append two rows to one lane with one position. */
static pyr_status step_check(pyr_cache *const *caches, const int32_t *ids, int count, int each) {
  pyr_pool *pool = caches[0]->pool;
  for (int i = 0; i < count; i++) {
    if (caches[i]->pool->model != pool->model)
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "sequence %d of the step belongs to another model", i + 1);
    if (!same_layout(caches[i]->pool->layout, pool->layout))
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "sequence %d of the step has another cache dtype", i + 1);
    if (!same_tiers(caches[i], caches[0]))
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "sequence %d of the step has other tiers", i + 1);
    for (int j = 0; j < i; j++)
      if (caches[i] == caches[j])
        return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                     "sequences %d and %d of the step are the same", j + 1, i + 1);
    if (caches[i]->tokens == 0)
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "a step needs a cache that has read a prompt");
    PYR_TRY(pyr_forward_check_ids(pool->rt, &pool->model->config, ids + i * each, each));
    PYR_TRY(pyr_forward_check_room(caches[i], each));
  }
  return PYR_OK;
}

/* How much of everything the step takes. A plan is due where one step is left: this one.
 * `turned` is only laid out where some layer of some cache is compacted; then for all layers and
 * tokens, as rot[layer * tokens + t]. */
static void step_count_up(pyr_decode *d) {
  int layers = d->f.model->config.layers;
  bool compact = false;
  for (int i = 0; i < d->count; i++) {
    const pyr_cache *cache = d->caches[i];
    d->longest = pyr_max(d->longest, pyr_cache_longest(cache) + d->each);
    for (int layer = 0; layer < layers; layer++) {
      bool due = pyr_track_steps_left(cache, layer) == 1;
      d->due_any = d->due_any || due;
      d->due_count += due && pyr_model_has(d->f.model, layer);
      compact = compact || cache->states[layer].compact;
    }
  }
  pyr_readings_count(&d->reading, d->caches, d->count, d->each);
  d->longest = pyr_max(d->longest, d->reading.longest);
  d->strides = d->f.be->list_lanes && !d->f.be->profile && d->each == 1 && !d->trial
      && d->reading.tokens == 0 && !d->caches[0]->below;
  if (compact) d->turned = (int64_t)layers * d->tokens;
}

/* Counts, and then cuts, as `layout` does, with parts that the host alone reads. */
static void step_layout_host(pyr_decode *d, bool samples, pyr_arena *host) {
  int32_t heads = d->f.model->config.kv_heads;
  PYR_PART(host, d->rows, d->count);
  bool tiers = d->caches[0]->below != NULL;
  PYR_PART(host, d->attention, d->tokens);
  PYR_PART(host, d->tracks, d->tokens);
  PYR_PART(host, d->views, d->strides ? 0 : d->tokens * heads);
  pyr_readings_layout_host(&d->reading, d->tokens, heads, host);
  PYR_PART(host, d->lower, tiers ? d->tokens : 0);
  PYR_PART(host, d->below, tiers ? d->tokens * heads : 0);
  PYR_PART(host, d->pos, d->tokens);
  PYR_PART(host, d->rot, d->turned);
  pyr_evictions_layout_host(&d->due, d->due_count, heads, host);
  if (samples) pyr_sample_batch_layout(&d->samples, d->count, host);
}

/* Positions of the step's tokens, and what q and k are rotated to in each layer. Sequences of 40
 * and 900 tokens, the first compacted to 20 rows in layer 1 and not in layer 0:
 *
 *     pos                40  900
 *     rot    layer 0     40  900
 *            layer 1     20  900 */
static void step_place(pyr_decode *d) {
  for (int t = 0; t < d->tokens; t++)
    d->pos[t] = (int32_t)d->caches[t / d->each]->tokens + t % d->each;
  for (int64_t i = 0; i < d->turned; i++) {
    int t = (int)(i % d->tokens), layer = (int)(i / d->tokens);
    const pyr_cache *cache = d->caches[t / d->each];
    d->rot[i] = cache->states[layer].compact
        ? (int32_t)pyr_cache_layer_rows(cache, layer) + t % d->each : d->pos[t];
  }
}

/* Asks the policies of all caches for the plans that will run at the end of this step. In the
 * order of sequences and then layers; room for due_count of them has been laid out. */
static pyr_status step_ask(pyr_decode *d) {
  for (int i = 0; i < d->count && d->due_count > 0; i++)
    for (int layer = 0; layer < d->f.model->config.layers; layer++)
      if (pyr_model_has(d->f.model, layer) && pyr_track_steps_left(d->caches[i], layer) == 1)
        PYR_TRY(pyr_evictions_ask(&d->due, d->caches[i], layer, PYR_WHEN_DECODE));
  return PYR_OK;
}

/* Makes room for tokens' rows in every lane, and makes writable what this step's plans gather.
 * Most steps find room: a lane takes a new page every 32 steps, and a stride knows of all lanes of
 * its layer that they have. Where no plan may move pages yet, a sequence's tables go over while its
 * lanes are at hand: those of 88 sequences fit no cache of a processor. */
static pyr_status step_reserve_rows(pyr_decode *d) {
  const pyr_model_config *c = &d->f.model->config;
  for (int i = 0; i < d->count; i++) {
    for (int layer = 0; layer < c->layers; layer++) {
      const pyr_trigger *trigger = &d->caches[i]->states[layer].trigger;
      const pyr_stride *stride = &d->caches[i]->strides[layer];
      if (!pyr_model_has(d->f.model, layer)) continue;
      if (d->strides && stride->on && stride->left > 0) continue;
      PYR_TRY(pyr_learned_need(d->caches[i], trigger));
      for (int head = 0; head < c->kv_heads; head++) {
        pyr_lane *lane = pyr_cache_lane(d->caches[i], layer, head);
        pyr_lanes_expect(d->caches[i], (int64_t)layer * c->kv_heads + head);
        PYR_TRY(pyr_lane_reserve(d->caches[i], lane, d->each, pyr_trigger_tracks(trigger)));
      }
      PYR_TRY(pyr_readings_reserve(d->caches[i], layer, d->each));
      PYR_TRY(pyr_recall_reserve(d->caches[i], layer));
    }
    if (d->strides && d->due_count == 0) PYR_TRY(pyr_strides_begin(d->caches[i]));
  }
  if (d->trial) PYR_TRY(pyr_trial_begin(d->caches[0], d->each));
  return pyr_evictions_prepare(&d->due);
}

/* When all pages are known tables go over, and with them the views of lanes that a stride leaves
 * alone: it has ended in each layer that anyone looked at since the last step. */
static pyr_status step_list(const pyr_decode *d) {
  pyr_status status = PYR_OK;
  for (int i = 0; i < d->count && status == PYR_OK; i++)
    status = d->strides ? pyr_strides_begin(d->caches[i])
        : pyr_lanes_list(d->caches[i], pyr_cache_lanes(d->caches[i]),
                         pyr_cache_lane_count(d->caches[i]));
  return status;
}

/* All memory of the step, in the workspace that the pool keeps between steps. The backend's
 * scratch, the workspace, then rows: what fails leaves lanes that have room to spare, and
 * step_undo gives that back (pyr_lane_truncate trims). */
static pyr_status step_reserve(pyr_decode *d, const pyr_work *work) {
  pyr_backend *be = d->f.be;
  pyr_extent extent = pyr_extent_of_step(d->tokens, d->turned, d->caches[0]->below != NULL);
  pyr_arena count = { 0 }, arena = { 0 };
  int32_t heads = d->f.model->config.kv_heads;
  pyr_forward_layout(&d->f, &extent, &count);
  pyr_evictions_layout(&d->due, &count);
  pyr_readings_layout(&d->reading, heads, &count);
  PYR_TRY(be->reserve(be, work));
  PYR_TRY(pyr_ranks_reserve(d->f.model->ranks, d->tokens * (int64_t)d->f.model->config.width));
  PYR_TRY(pyr_pool_workspace(d->caches[0]->pool, count.used, &arena.block));
  PYR_TRY(step_reserve_rows(d));
  pyr_forward_layout(&d->f, &extent, &arena);
  pyr_evictions_layout(&d->due, &arena);
  pyr_readings_layout(&d->reading, heads, &arena);
  return PYR_OK;
}

/* Where somebody is told of the plans, and may say no when rows are gone already, and where a tier
 * that losers go down to may be full: what the due plans evict is kept until all is done. Of all
 * caches, as the step is one. */
static pyr_status step_keep_losers(pyr_decode *d) {
  bool told = false;
  for (int64_t i = 0; i < d->due.count; i++)
    told = told || pyr_trace_wanted(d->due.each[i].splits.cache) || d->due.each[i].plan.losers;
  for (int64_t i = 0; i < d->due.count && told; i++) {
    const pyr_splits *s = &d->due.each[i].splits;
    pyr_undo *undo;
    if (!s->cache->undo) PYR_TRY(pyr_undo_new(s->cache, &undo));
    PYR_TRY(pyr_undo_layer(s->cache->undo, s->layer));
  }
  return PYR_OK;
}

/* Rows are as they were before the step. An undo, where there is one, has the marks and more. */
static void step_undo(const pyr_decode *d) {
  for (int i = 0; i < d->count; i++) {
    if (d->strides) pyr_strides_forget(d->caches[i]);
    if (d->caches[i]->undo) pyr_undo_restore(d->caches[i]->undo);
    else pyr_forward_drop(d->caches[i]);
  }
}

/* The map that a sequence's layer gives its new rows numbers by; NULL: none. */
static const pyr_learned *step_map(const pyr_decode *d, int i, int layer) {
  const pyr_cache *cache = d->caches[i];
  return pyr_trigger_learns(&cache->states[layer].trigger) ? cache->learned : NULL;
}

/* f->learned [tokens, kv_heads] of what the layer read. Forks share a map: sequences that follow
 * each other and have the same one take one product.
 *
 *     sequences   a  a'  b  c         a' is a fork of a, b tracks attention, c has another map
 *     products    [a a']    [c]       rows of f->learned between them stay as they are, unread
 */
static pyr_status step_learn(const pyr_decode *d, int layer, const float *in) {
  const pyr_model_config *c = &d->f.model->config;
  for (int i = 0, together; i < d->count; i += together) {
    const pyr_learned *map = step_map(d, i, layer);
    together = 1;
    while (i + together < d->count && step_map(d, i + together, layer) == map) together++;
    if (map)
      PYR_TRY(pyr_learned_apply(map, layer, d->f.learned + (int64_t)i * d->each * c->kv_heads,
                                in + (int64_t)i * d->each * c->width, together * d->each));
  }
  return PYR_OK;
}

/* What the layer's attention is told of token t, whose row is stored: its views end with it. */
static void step_look(pyr_decode *d, int layer, int t, bool tracked) {
  const pyr_forward *f = &d->f;
  const pyr_model_config *c = &f->model->config;
  int64_t width = (int64_t)c->heads * c->head_dim;
  d->attention[t] = (pyr_attention){ .out = f->att + t * width, .q = f->q + t * width,
                                     .q_pos = f->pos + t, .lanes = d->views + t * c->kv_heads,
                                     .n = 1, .window = c->window ? c->window[layer] : 0,
                                     .cap = c->score_cap, .slopes = f->model->slopes,
                                     .sinks = f->model->layers[layer].sinks,
                                     .track = tracked ? &d->tracks[t] : NULL };
  if (d->strides) {
    d->attention[t].resident = pyr_stride_views(d->caches[t], layer);
    d->attention[t].longest = pyr_cache_layer_rows(d->caches[t], layer) + 1;
  }
  if (d->caches[t / d->each]->below) d->attention[t].lse = f->lse + (int64_t)t * c->heads;
}

/* All tokens' queries in one call; but where several of one sequence are tracked, one after the
 * other, as each adds to what the next one finds, which the trial remembers. */
static pyr_status step_attend(const pyr_decode *d, int layer) {
  const pyr_forward *f = &d->f;
  bool apart = d->trial && d->attention[0].track;
  for (int t = 0; t < d->tokens; t += apart ? 1 : d->tokens) {
    if (apart) PYR_TRY(pyr_trial_remember(d->caches[0], layer, t));
    PYR_TRY(pyr_layer_attend(f, layer, d->attention + t, d->caches + t / d->each, d->each,
                             apart ? 1 : d->tokens, d->tracks + t,
                             d->reading.tokens > 0 ? d->reading.of + t : NULL, d->lower,
                             d->below));
  }
  return PYR_OK;
}

/* One product for all tokens, so that weights are read once; then each sequence's rows to its own
 * lanes, and each query along them. Invariant: views[t * kv_heads + g] is lane g of token t's
 * sequence in this layer, and ends with the token's row once rows are stored: of three tokens on
 * a lane of 40 rows the views have 41, 42 and 43. */
static pyr_status step_layer(pyr_decode *d, int layer) {
  pyr_forward *f = &d->f;
  const pyr_model_config *c = &f->model->config;
  int64_t kv = (int64_t)c->kv_heads * c->head_dim;
  const int32_t *rot = d->turned ? f->rot + (int64_t)layer * d->across : f->pos;
  const float *in;
  PYR_TRY(pyr_layer_project(f, layer, f->x, rot, d->tokens, true, &in));
  PYR_TRY(step_learn(d, layer, in));
  for (int i = 0; i < d->count; i++) {
    int first = i * d->each;
    pyr_lane_view *views = d->views + (int64_t)first * c->kv_heads;
    if (!d->strides) pyr_layer_views(d->caches[i], layer, views);
    d->rows[i] = (pyr_append){ .lanes = views,
                               .resident = d->strides ? pyr_stride_views(d->caches[i], layer)
                                   : NULL,
                               .k = f->k + first * kv, .v = f->v + first * kv,
                               .positions = f->pos + first, .n = d->each };
    if (step_map(d, i, layer)) d->rows[i].learned = f->learned + (int64_t)first * c->kv_heads;
    for (int t = first; t < first + d->each; t++)   /* before the rows are there */
      step_look(d, layer, t, pyr_track_step(d->caches[i], layer, t - first, &d->tracks[t]));
  }
  PYR_TRY(f->be->store(f->be, d->rows, d->count, f->layout, c->kv_heads));
  for (int i = 0; i < d->count && d->strides; i++) pyr_stride_add_row(d->caches[i], layer);
  for (int t = 0; t < d->tokens && !d->strides; t++) {
    pyr_lane_view *views = d->views + (int64_t)t * c->kv_heads;
    if (t % d->each > 0) memcpy(views, views - c->kv_heads, (size_t)c->kv_heads * sizeof *views);
    pyr_layer_add_rows(d->caches[t / d->each], layer, views, 1);
  }
  PYR_TRY(pyr_readings_pick(&d->reading, f, layer, d->caches, d->count, d->each, d->attention));
  PYR_TRY(step_attend(d, layer));
  return pyr_layer_finish(f, &f->model->layers[layer], f->x, 0, d->tokens);
}

/* Sequences of a step go through stages in groups, so that these work at the same time; each group
 * reads the weights anew, so that it has to be of some. 32 sequences and two stages:
 *
 *     stage 0   1 to 16   17 to 32
 *     stage 1             1 to 16    17 to 32       three halves instead of four
 *
 * What picks among lower tiers, or pages, and what may be taken back, is of all tokens at once. */
enum { GROUP = 16 };

/* Whether any layer of any sequence reads less than it holds, of whichever stage: all must come to
 * the same groups, and `reading` knows of a stage's own layers alone. */
static bool step_reads_less(const pyr_decode *d) {
  for (int i = 0; i < d->count; i++)
    for (int layer = 0; layer < d->caches[i]->layers; layer++)
      if (d->caches[i]->states[layer].read.rows > 0) return true;
  return false;
}

static int step_groups(const pyr_decode *d) {
  const pyr_ranks *line = d->f.model->line;
  if (!line || d->each > 1 || d->trial || d->strides || d->caches[0]->below || step_reads_less(d))
    return 1;
  return (int)pyr_max(pyr_min(d->count / GROUP, 2 * pyr_ranks_size(line)), 1);
}

/* Sequences [first, first + count) of a step, whose tokens, positions and logits lie among those of
 * all; what a layer sets down it takes from the front. */
static pyr_decode step_group(const pyr_decode *d, int first, int count) {
  pyr_decode part = *d;
  const pyr_model_config *c = &d->f.model->config;
  part.caches += first;
  part.count = part.tokens = count;
  part.f.x += (int64_t)first * c->width;
  part.f.logits += (int64_t)first * c->vocab;
  part.f.ids += first, part.f.pos += first, part.f.rot += d->turned ? first : 0;
  return part;
}

/* Reads every weight of the stage once: at one sequence that is what a step costs. */
static pyr_status step_through(pyr_decode *d) {
  pyr_backend *be = d->f.be;
  const pyr_model *model = d->f.model;
  const pyr_slice own = model->own;
  if (pyr_model_begins(model)) {
    PYR_TRY(pyr_forward_embed(be, model, d->f.x, d->f.ids, d->tokens));
    PYR_TRY(pyr_forward_add_positions(&d->f, d->f.pos, d->tokens));
  } else {
    PYR_TRY(pyr_stage_take(model, d->f.x, d->tokens));
  }
  for (int layer = own.first; layer < own.first + own.count; layer++)
    PYR_TRY(step_layer(d, layer));
  if (!pyr_model_ends(model)) return pyr_stage_hand(model, d->f.x, d->tokens);
  return pyr_forward_logits(&d->f, d->f.x, d->tokens);
}

static pyr_status step_layers(pyr_decode *d) {
  int groups = step_groups(d);
  if (groups == 1) return step_through(d);
  for (int g = 0; g < groups; g++) {
    int first = d->count * g / groups;
    pyr_decode part = step_group(d, first, d->count * (g + 1) / groups - first);
    PYR_TRY(step_through(&part));
  }
  return PYR_OK;
}

/* From ids to logits. A device may note the operations, and do them all at the end; while they are
 * timed, each is done as it comes. */
static pyr_status step_compute(pyr_decode *d, const int32_t *ids, const pyr_work *work) {
  pyr_backend *be = d->f.be;
  const pyr_model *model = d->f.model;
  size_t each = sizeof(int32_t);
  PYR_TRY(be->upload(be, d->f.ids, ids, (size_t)d->tokens * each));
  PYR_TRY(be->upload(be, d->f.pos, d->pos, (size_t)d->tokens * each));
  if (d->turned) PYR_TRY(be->upload(be, d->f.rot, d->rot, (size_t)d->turned * each));
  if (!be->step_begin || be->profile || d->each > 1) {
    PYR_TRY(step_layers(d));
    return pyr_stage_spread(model, d->f.logits, (int64_t)d->tokens * model->config.vocab);
  }
  PYR_TRY(be->step_begin(be, model, work, model->config.layers));
  pyr_status s = step_layers(d);
  pyr_status ended = be->step_end(be, s == PYR_OK);
  return s == PYR_OK ? ended : s;
}

/* Each sequence's tokens more, or (sign -1) less again. Before plans run: a trigger's `since` and
 * `unranked` count the step that is being ended. */
static void step_tally(const pyr_decode *d, int sign) {
  int layers = d->f.model->config.layers, by = sign * d->each;
  for (int i = 0; i < d->count; i++) {
    d->caches[i]->tokens += by;
    d->caches[i]->computed += by * layers;
    for (int layer = 0; layer < layers; layer++)
      d->caches[i]->states[layer].since += by, d->caches[i]->states[layer].unranked += by;
    pyr_cache_line_grow(d->caches[i], by);
  }
}

/* To the host; at once where the caller's vectors follow each other, as a device is waited for each
 * time. Vectors of 4 sequences of which the first three follow each other and the fourth lies
 * elsewhere: two transfers. */
static pyr_status step_logits(const pyr_decode *d, float *const *logits) {
  int64_t vocab = d->f.model->config.vocab;
  for (int i = 0, together; logits && i < d->tokens; i += together) {
    together = 1;
    if (!logits[i]) continue;
    while (i + together < d->tokens && logits[i + together] == logits[i] + together * vocab)
      together++;
    PYR_TRY(d->f.be->download(d->f.be, logits[i], d->f.logits + i * vocab,
                              (size_t)(together * vocab) * sizeof(float)));
  }
  return PYR_OK;
}

/* What the step needs before it computes, which all ranks must have: the only agreement of a step
 * without plans, 8 bytes from each to each. After it nothing can fail on one rank alone but a plan
 * that ranks, which step_run agrees about. */
static pyr_status step_take(pyr_decode *d, const int32_t *ids, const pyr_work *work) {
  pyr_status s = step_ask(d);
  for (int i = 0; i < d->count && s == PYR_OK; i++)
    s = pyr_ids_put(d->caches[i]->pool, &d->caches[i]->ids, d->caches[i]->tokens,
                    ids + i * d->each, d->each);
  if (s == PYR_OK) s = step_reserve(d, work);
  if (s == PYR_OK) s = step_keep_losers(d);
  if (s == PYR_OK) s = step_list(d);
  return pyr_ranks_agree(d->caches[0]->pool->rt, s);
}

/* All that can fail while rows can still be dropped again: on failure the caller does. Rows are
 * there (step_compute), and are counted (step_tally), before plans rank them; on failure both
 * are taken back, the count here and the rows by the caller. */
static pyr_status step_run(pyr_decode *d, const int32_t *ids, float *const *logits) {
  pyr_work work = pyr_forward_work(d->f.model, d->tokens, d->longest, d->tokens);
  work.resident = d->strides;
  PYR_TRY(step_take(d, ids, &work));
  PYR_TRY(step_compute(d, ids, &work));
  step_tally(d, 1);
  pyr_status s = pyr_evictions_rank(&d->due);
  if (s == PYR_OK) s = step_logits(d, logits);
  /* whether all scores were numbers: logits are there already or come next, so that there is
   * nothing else to wait for */
  if (s == PYR_OK) s = pyr_evictions_check(&d->due);
  if (d->due_any) s = pyr_ranks_agree(d->caches[0]->pool->rt, s);
  if (s != PYR_OK) step_tally(d, -1);
  return s;
}

/* The due plans' losers leave. Only where they were kept can a no bring them back, of whichever
 * rank. All caches' undos end here, kept or restored: none outlives a step. */
static pyr_status step_evict(pyr_decode *d) {
  pyr_runtime *rt = d->caches[0]->pool->rt;
  int64_t kept = d->due.count > 0 && d->due.each[0].splits.cache->undo;
  if (d->f.model->line && d->due_any) PYR_TRY(pyr_ranks_most(pyr_runtime_ranks(rt), &kept));
  pyr_status s = pyr_evictions_gather(&d->due);
  if (kept) s = pyr_ranks_agree(rt, s);
  if (s != PYR_OK && kept) {
    step_tally(d, -1);
    step_undo(d);
  }
  for (int i = 0; i < d->count && s == PYR_OK; i++) pyr_undo_keep(d->caches[i]->undo);
  return s;
}

/* Host memory, then all or nothing: ask, reserve, compute, rank. What is due leaves. *host holds
 * what the step was laid out in, until the caller releases it. */
static pyr_status step_whole(pyr_decode *d, const int32_t *ids, float *const *logits, bool samples,
                             pyr_arena *host) {
  pyr_runtime *rt = d->caches[0]->pool->rt;
  pyr_arena room = { 0 };
  step_count_up(d);
  step_layout_host(d, samples, &room);
  host->block = pyr_alloc(rt, room.used);
  pyr_ranks_begin(rt);
  if (!host->block) return pyr_ranks_end(rt, pyr_nomem(rt, room.used, "a step"));
  step_layout_host(d, samples, host);
  step_place(d);
  for (int i = 0; i < d->count; i++) pyr_forward_mark(d->caches[i]);
  pyr_status s = step_run(d, ids, logits);
  if (s != PYR_OK) step_undo(d);
  else s = step_evict(d);
  pyr_ranks_leave(rt);                 /* nothing has failed since it was agreed upon */
  return s;
}

static pyr_decode step_of(pyr_cache *const *caches, int count, int each) {
  pyr_pool *pool = caches[0]->pool;
  return (pyr_decode){ .caches = caches, .count = count, .each = each, .tokens = count * each,
                       .across = count * each,
                       .f = { .model = pool->model, .be = pool->be, .layout = pool->layout,
                              .exact = PYR_LINEAR_EXACT } };
}

pyr_status pyr_step(pyr_cache *const *caches, const int32_t *ids, int count, float *const *logits) {
  return pyr_step_pick(caches, ids, count, logits, NULL, NULL);
}

static pyr_status step_once(pyr_cache *const *caches, const int32_t *ids, int count,
                            float *const *logits, pyr_sampler *const *samplers, int32_t *picks) {
  if (count < 1) return PYR_OK;
  pyr_pool *pool = caches[0]->pool;
  int32_t vocab = pool->model->config.vocab;
  pyr_decode d = step_of(caches, count, 1);
  pyr_arena host = { 0 };
  PYR_TRY(pyr_runtime_here(pool->rt));
  PYR_TRY(step_check(caches, ids, count, 1));
  for (int i = 0; samplers && i < count; i++) picks[i] = -1;
  for (int i = 0; i < count; i++) PYR_TRY(pyr_cache_recall(caches[i]));
  if (samplers) PYR_TRY(pyr_sample_batch_prepare(pool->be, samplers, count, vocab));
  pyr_status s = step_whole(&d, ids, logits, samplers != NULL, &host);
  for (int i = 0; i < count && s == PYR_OK; i++) {
    pyr_cache_rows_changed(caches[i]);
    pyr_cache_slide(caches[i]);
    pyr_cache_pack(caches[i]);
    /* rows go where plans ran, and where windows slide */
    if (d.due_any || pool->model->slides) s = pyr_cache_level(caches[i]);
  }
  if (s == PYR_OK) pyr_caches_tidy(caches, count);
  if (s == PYR_OK && samplers)
    s = pyr_sample_batch_pick(&d.samples, pool->be, samplers, d.f.logits, vocab, count, picks);
  pyr_release(pool->rt, host.block, host.used);
  return s;
}

/* ---- several tokens of one sequence ---------------------------------------------------------- */

/* A trigger that fires in 16 steps lets 15 be verified: the 16th evicts, which cannot be taken
 * back. Layers that never evict leave the bound, below which products round a token as in a step of
 * its own. */
int64_t pyr_cache_verifiable(const pyr_cache *cache) {
  int64_t most = PYR_SMALL_N - 1,
      room = cache->pool->model->config.context - cache->tokens;
  for (int layer = 0; layer < cache->layers; layer++) {
    most = pyr_min(most, pyr_track_steps_left(cache, layer) - 1);
    /* what tokens gave to rows of lower tiers no trial remembers */
    if (cache->below && pyr_trigger_recalls(&cache->states[layer].trigger)) most = 0;
  }
  return cache->tokens > 0 ? pyr_max(pyr_min(most, room), 0) : 0;
}

/* Rows that no later token sees leave first: tokens before this call stay. One token takes the same
 * way as several, so that it can be taken back, too. */
static pyr_status verify_once(pyr_cache *cache, const int32_t *ids, int64_t n, float *logits) {
  pyr_pool *pool = cache->pool;
  pyr_runtime *rt = pool->rt;
  int64_t vocab = pool->model->config.vocab, most = pyr_cache_verifiable(cache);
  float *rows[PYR_SMALL_N];
  pyr_arena host = { 0 };
  if (n < 1) return PYR_OK;
  PYR_TRY(pyr_runtime_here(rt));
  if (n >= PYR_SMALL_N)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "verify: at most %d tokens at once, not %lld",
                                 PYR_SMALL_N - 1, (long long)n);
  pyr_decode d = step_of(&cache, 1, (int)n);
  d.trial = true;
  PYR_TRY(step_check(&cache, ids, 1, (int)n));
  if (n > most)
    return pyr_runtime_set_error(rt, PYR_POLICY,
                                 "verify: policy %s evicts after %lld tokens, and that cannot be "
                                 "taken back; so many at most, not %lld",
                                 cache->policy.name ? cache->policy.name : "?",
                                 (long long)most + 1, (long long)n);
  for (int64_t i = 0; i < n; i++) rows[i] = logits + i * vocab;
  pyr_cache_rows_changed(cache);
  pyr_cache_slide(cache);
  if (pool->model->line && pool->model->slides) PYR_TRY(pyr_cache_level(cache));
  pyr_status s = step_whole(&d, ids, logits ? rows : NULL, false, &host);
  if (s != PYR_OK) pyr_trial_end(cache);
  pyr_release(rt, host.block, host.used);
  return s;
}

/* ---- where the budget is full ---------------------------------------------------------------- */

/* A step that the budget refuses has not been made. Each of its caches gives what it takes to the
 * tier below, and the step is made again, as long as that frees anything.
 *
 *     step        no room                        PYR_BUDGET, and nothing has changed
 *     relieve     96 rows of each lane go down   room for 96 steps, about
 *     step        done */
pyr_status pyr_step_pick(pyr_cache *const *caches, const int32_t *ids, int count,
                         float *const *logits, pyr_sampler *const *samplers, int32_t *picks) {
  pyr_status status = step_once(caches, ids, count, logits, samplers, picks);
  while (status == PYR_BUDGET && caches[0]->pool->pressed) {
    size_t freed = 0;
    for (int i = 0; i < count; i++) {
      size_t some = 0;
      PYR_TRY(pyr_tiers_relieve(caches[i], 1, &some));
      freed += some;
    }
    if (freed == 0) return status;
    status = step_once(caches, ids, count, logits, samplers, picks);
  }
  return status;
}

pyr_status pyr_cache_verify(pyr_cache *cache, const int32_t *ids, int64_t n, float *logits) {
  pyr_status status = verify_once(cache, ids, n, logits);
  while (status == PYR_BUDGET && cache->pool->pressed) {
    size_t freed = 0;
    PYR_TRY(pyr_tiers_relieve(cache, PYR_SMALL_N - 1, &freed));   /* of a longer trial, too */
    if (freed == 0) return status;
    status = verify_once(cache, ids, n, logits);
  }
  return status;
}
