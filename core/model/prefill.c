/* prefill.c — reading a prompt: ids, or rows of embeddings, into a cache.
 *
 * Prefill is layer-major: a layer runs over all tokens still alive, in chunks of PYR_CHUNK, before
 * the next one begins. That is what lets a plan hand only its survivors on: deeper layers then
 * compute attention, MLP and K/V for fewer tokens. Between layers only the residual stream lives,
 * [tokens, width]; everything else is a chunk long, whatever the prompt's length.
 *
 * The walk of a layer in prefill, top to bottom in this file:
 *
 *     prefill_layer     asks for the layer's plan and trigger, makes room in its lanes (cache.h),
 *                       and takes the plan's memory: from here on little can fail
 *       prefill_run
 *         prefill_chunk for each 512 alive tokens: q, k, v; K and V join the lanes; attention; the
 *                       plan looks at the queries (observe.h); output projection and MLP
 *         the plan      ranks the layer's rows, and the losers leave (evict.c)
 *         hand on       x and pos keep the survivors' rows only: `alive` becomes smaller
 *
 *     alive   10 -> [layer 0] -> 8 -> [layer 1] -> 7 -> ...      tokens that each layer computes
 *
 * Layers that share a budget (share = "model") have all their plans asked for before the first of
 * them reads; after each, those that have read are cut again (evict.c).
 *
 * Where a policy prepares its plans (pyr_preparation), they are asked for and checked as above, but
 * all rows stay until the last layer has read. Then the prompt is read once more, by passes that
 * leave no rows (probe.h), and the plans of all layers run together (evict_now.c).
 *
 * Of several stages (stages.h) each walks its own layers: it receives x and pos of the one before,
 * and sends what is left of them to the one behind (prefill_stage). Pieces of a prompt of which all
 * rows stay follow each other so (prefill_stream), and prompts of several sequences (fly).
 *
 * Failure. Plans are asked for before anything is touched; memory is reserved before anything is
 * computed. A failed prefill puts older rows back (undo.h), or drops its rows again where no
 * older row changes. */
#include "model/forward.h"
#include "model/flight.h"
#include "model/stages.h"
#include "policy/evict.h"
#include "policy/policy.h"
#include "cache/tiers.h"
#include "cache/undo.h"
#include "model/probe.h"

#include <math.h>
#include <string.h>

/* One NaN in one row would be in every later token's attention, and in all that is saved of it; an
 * infinity is a NaN after the first norm. What is finite is let through, however large: how far
 * from the table's rows a caller's may lie is the model's affair. Called once n is known to fit the
 * context, so that n * width cannot overflow. */
static pyr_status check_embeddings(pyr_runtime *rt, const pyr_model_config *c, const float *rows,
                                   int64_t n) {
  for (int64_t i = 0; i < n * c->width; i++)
    if (!isfinite(rows[i]))
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "embedding %lld is not finite at number %lld of %d",
                                       (long long)(i / c->width + 1), (long long)(i % c->width + 1),
                                           (int)c->width);
  return PYR_OK;
}


typedef struct pyr_prefill {
  pyr_cache *cache;
  pyr_forward f;
  const int32_t *ids;              /* host [n] the prompt: tokens, … */
  const float *embeddings;         /* host [n, width] … or rows in their place; one is NULL */
  int64_t n, alive;                /* tokens of the prompt; those that reach the layer */
  int flags;
  pyr_preparation how;             /* of the passes that follow, where plans wait for them */
  int64_t total;                   /* token-layers of the call, for progress */
  int64_t computed, evicted, held; /* of the cache before; rows that count as the prompt's */
  bool begun;                      /* lanes are marked */
  pyr_undo *undo;                  /* the way back, where one is needed */
  pyr_arena host;                  /* host memory: */
  pyr_layer_plan plan;             /* of the layer that is running */
  pyr_layer_plan *plans;           /* host [layers of the stage], where pieces of the prompt go
                                      through all of them in turn; else NULL */
  pyr_layer_plan *now;             /* the one that is looked at */
  bool streams;                    /* whether they do, … */
  bool told;                       /* … and the stage behind knows that this one has failed */
  pyr_lane_view *views, *below;    /* host [kv_heads]: of hot lanes; scratch of those below */
  pyr_score *scores;               /* host [layers] what each layer's plan ranked by */
  int32_t *faults;                 /* host [layers] */
  float *needs, *queries;          /* host, where pages will be packed: sums of squares of queries
                                      [layers, kv_heads, head_dim]; a chunk's queries */
} pyr_prefill;

/* Room for the alive tokens in each lane of the layer, and a way back for what lies there. Undo
 * first: it copies what a plan may change while that is still as it was. Reserving room for
 * tokens that will be evicted a moment later is the price of ranking them: one layer's worth at
 * a time. */
static pyr_status prefill_reserve(pyr_prefill *p, int layer) {
  pyr_cache *cache = p->cache;
  bool history = pyr_trigger_tracks(&p->now->trigger);
  if (cache->undo) PYR_TRY(pyr_undo_layer(cache->undo, layer));
  pyr_cache_expect(cache, layer, p->alive);
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    PYR_TRY(pyr_lane_reserve(cache, lane, p->alive, history));
    for (pyr_cache *at = cache->below; at; at = at->below)   /* to learn what queries need */
      PYR_TRY(pyr_lane_frame(at, pyr_cache_lane(at, layer, head)));
    PYR_TRY(pyr_digests_reserve(cache->pool, &lane->digests, p->now->read.by,
                                lane->rows + p->alive));
  }
  return pyr_lanes_list(cache, pyr_cache_lane(cache, layer, 0), cache->heads);
}

/* Adds the squares of a chunk's queries to the layer's needs, [kv_heads, head_dim]: query head h
 * reads lane h / group. Only until the lanes have learned what rows look like and need no more of
 * it: of a prompt of 512 tokens and 9 heads of 64, 295,000 products a layer, once. */
static pyr_status prefill_needs(pyr_prefill *p, int layer, int64_t n) {
  const pyr_model_config *c = &p->f.model->config;
  int64_t d = c->head_dim, group = c->heads / c->kv_heads;
  const float *q = p->queries;
  PYR_TRY(p->f.be->download(p->f.be, p->queries, p->f.q,
                            (size_t)(n * c->heads * d) * sizeof(float)));
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < c->heads; h++, q += d) {
      float *sums = p->needs + (layer * c->kv_heads + h / group) * d;
      for (int64_t j = 0; j < d; j++) sums[j] += q[j] * q[j];
    }
  return PYR_OK;
}

/* What prefill_needs summed is the cache's from here on, and is not added again: told where a
 * failure forgets it all (a cache's first prefill), or where none can come any more. So what a
 * lane learns does not depend on calls that failed. Of a cache whose first prompt was too short to
 * learn from, say 40 tokens, the next prompts' queries count as well; steps add none, as one query
 * says little of those to come. */
static void prefill_tell_needs(pyr_prefill *p, int layer) {
  int64_t values = (int64_t)p->cache->heads * p->f.layout.head_dim;
  float *sums = p->needs + layer * values;
  if (!p->needs || !pyr_model_has(p->f.model, layer)) return;
  if (!pyr_cache_wants_needs(p->cache, layer)) return;
  pyr_cache_add_needs(p->cache, layer, sums);
  memset(sums, 0, (size_t)values * sizeof *sums);
}

/* Alive tokens [at, at + n) through the layer. Of 1,200 alive tokens the chunks are [0, 512),
 * [512, 1024), [1024, 1200). Each attends to all rows stored so far, its own included: causal,
 * as positions mask. In the last layer all three store K and V, and only token 1,199 goes on to
 * the MLP. */
static pyr_status prefill_chunk(pyr_prefill *p, int layer, int64_t at, int64_t n) {
  pyr_forward *f = &p->f;
  pyr_backend *be = f->be;
  const pyr_model_config *c = &f->model->config;
  float *x = f->x + at * c->width;
  bool wanted = pyr_observe_wants(&p->now->seen, at, n);
  /* After the last layer only the last token is looked at, unless logits of all are wanted: the
   * others leave their K and V and, where a score wants them, their queries. */
  bool last_only = layer == c->layers - 1 && !(p->flags & PYR_PREFILL_ALL),
      holds_last = at + n == p->alive;
  bool queries = !last_only || holds_last || wanted;
  const float *in;

  /* K and V of the chunk join the lanes, which are reserved */
  const int32_t *rot = f->pos + at;
  if (p->cache->states[layer].compact) {
    PYR_TRY(be->iota(be, f->rot, (int32_t)pyr_cache_layer_rows(p->cache, layer), n));
    rot = f->rot;
  }
  PYR_TRY(pyr_layer_project(f, layer, x, rot, n, queries, &in));
  PYR_TRY(pyr_layer_plan_observe_inputs(p->now, in, at, n));
  bool learns = pyr_trigger_learns(&p->now->trigger);
  if (learns) PYR_TRY(pyr_learned_apply(p->cache->learned, layer, f->learned, in, n));
  pyr_layer_views(p->cache, layer, p->views);
  pyr_append rows = { .lanes = p->views, .k = f->k, .v = f->v, .positions = f->pos + at, .n = n,
                      .learned = learns ? f->learned : NULL };
  PYR_TRY(be->store(be, &rows, 1, f->layout, c->kv_heads));
  pyr_layer_add_rows(p->cache, layer, p->views, n);
  if (!queries) return PYR_OK;
  if (p->needs && pyr_cache_wants_needs(p->cache, layer)) PYR_TRY(prefill_needs(p, layer, n));

  /* attention to all rows so far; the plan's score looks at the same queries, then or afterwards */
  bool tiered = pyr_cache_lies_below(p->cache, layer);
  pyr_attention a = { .out = f->att, .lse = wanted || tiered ? f->lse : NULL, .q = f->q,
                      .q_pos = f->pos + at, .lanes = p->views, .n = n,
                      .window = c->window ? c->window[layer] : 0, .cap = c->score_cap,
                      .slopes = f->model->slopes, .sinks = f->model->layers[layer].sinks };
  pyr_attention lower;
  if (wanted) pyr_layer_plan_ask_attention(p->now, &a, at);
  if (tiered) a.masses = NULL;   /* of all rows, and so summed up once the tiers are joined */
  PYR_TRY(pyr_layer_attend(f, layer, &a, &p->cache, 1, 1, NULL, NULL, &lower, p->below));
  if (wanted) PYR_TRY(pyr_layer_plan_observe(p->now, &a, rot, at));
  if (last_only && !holds_last) return PYR_OK;
  return pyr_layer_finish(f, &f->model->layers[layer], x, last_only ? n - 1 : 0, n);
}

/* All alive tokens through the layer, whose plan has memory now; then the plan runs. Invariant:
 * at the loop's head, tokens [0, at) are through the layer, their K and V are stored, and f->x
 * holds their residual stream after it; tokens from `at` on are as the layer before left them.
 * Progress counts prompt tokens, of which an alive one stands for n / alive. */
static pyr_status prefill_run(pyr_prefill *p, int layer) {
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  const int32_t *survivors;
  int64_t kept = p->alive;
  for (int64_t at = 0; at < p->alive; at += PYR_CHUNK) {
    pyr_runtime *rt = p->cache->pool->rt;
    PYR_TRY(pyr_model_agree(f->model, pyr_progress(rt, layer * p->n + at * p->n / p->alive,
                                                   p->total)));
    PYR_TRY(prefill_chunk(p, layer, at, pyr_min(PYR_CHUNK, p->alive - at)));
  }
  p->cache->computed += p->alive;
  if (p->cache->tokens == 0) prefill_tell_needs(p, layer);   /* lower tiers learn by them */
  PYR_TRY(pyr_layer_plan_end(&p->plan, &survivors, &kept));
  if (!survivors) return PYR_OK;

  /* deeper layers get the survivors only, with the positions that they have */
  PYR_TRY(f->be->take_rows(f->be, f->x, survivors, kept, c->width));
  PYR_TRY(f->be->take_i32(f->be, f->pos, survivors, kept));
  p->cache->evicted += (p->alive - kept) * (p->f.model->own.first + p->f.model->own.count - 1
                                            - layer) * c->kv_heads;
  p->alive = kept;
  return PYR_OK;
}

/* The plan's memory lives from begin to free, around one layer: the next layer's takes its
 * place. */
static pyr_status prefill_layer(pyr_prefill *p, int layer) {
  p->now = &p->plan;
  pyr_status s = pyr_layer_plan_ask(&p->plan, p->cache, layer, p->n, p->alive, p->flags);
  if (s == PYR_OK) s = prefill_reserve(p, layer);
  p->scores[layer] = p->plan.eviction.plan.score;
  if (s == PYR_OK) s = pyr_layer_plan_begin(&p->plan, p->f.faults + layer);
  /* of several ranks one may be short of memory or over its budget, or its policy late: then none
   * begins the layer, and all go back as one does. From here to the next layer's agreement a rank
   * that fails is heard of where scores are gathered (ranks/ranks.h) */
  s = pyr_model_agree(p->f.model, s);
  if (s == PYR_OK) s = prefill_run(p, layer);
  pyr_layer_plan_free(&p->plan);
  /* before the next layer takes room; other prefills must be able to go back until they end, and
   * rows that may still be cut stay as they were scored */
  if (s == PYR_OK && p->cache->tokens == 0 && !p->plan.shares) {
    pyr_cache_slide_layer(p->cache, layer, p->n);
    if (p->plan.ahead) return s;
    pyr_cache_pack_layer(p->cache, layer);
  }
  return s;
}

/* Logits, or the states that they would be made of, a chunk at a time: 512 * 49,152 floats are 96
 * MiB, logits of a whole prompt may be gigabytes. States lie where the output layer finds them, so
 * that nothing is computed for them which logits would not need. */
static pyr_status prefill_results(pyr_prefill *p, float *out) {
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  bool states = p->flags & PYR_PREFILL_STATES;
  int64_t at = p->flags & PYR_PREFILL_ALL ? 0 : p->alive - 1, each = states ? c->width : c->vocab;
  for (; at < p->alive; at += PYR_CHUNK) {
    int64_t n = pyr_min(PYR_CHUNK, p->alive - at);
    const float *x = f->x + at * c->width;
    PYR_TRY(states ? pyr_forward_states(f, x, n) : pyr_forward_logits(f, x, n));
    PYR_TRY(f->be->download(f->be, out, states ? f->h : f->logits,
                            (size_t)(n * each) * sizeof(float)));
    out += n * each;
  }
  return PYR_OK;
}

/* After all results are there: whether every layer's scores were numbers. Waits for nothing else.
 */
static pyr_status prefill_check(const pyr_prefill *p) {
  pyr_backend *be = p->f.be;
  int layers = p->cache->layers;
  PYR_TRY(be->download(be, p->faults, p->f.faults, (size_t)layers * sizeof *p->faults));
  for (int layer = 0; layer < layers; layer++)
    if (p->faults[layer])
      return pyr_policy_not_finite(p->cache, layer, PYR_WHEN_PREFILL, &p->scores[layer]);
  return PYR_OK;
}

/* The prompt becomes the residual stream, the only place where ids and embeddings differ: all that
 * follows knows tokens by their rows and positions alone.
 *
 *     ids          17, 4, 301  ->  rows 17, 4, 301 of the table ─┐
 *                                                                ├─ x [3, width] -> layer 0
 *     embeddings   3 rows of the caller's ───────────────────────┘
 *
 * Of a width of 576, 4,000 rows are 9.2 MB that go over to a device, against 16 KB of ids. */
static pyr_status prefill_source(pyr_prefill *p) {
  pyr_forward *f = &p->f;
  if (p->embeddings)
    return f->be->upload(f->be, f->x, p->embeddings,
                         (size_t)(p->n * f->model->config.width) * sizeof *p->embeddings);
  PYR_TRY(f->be->upload(f->be, f->ids, p->ids, (size_t)p->n * sizeof *p->ids));
  return pyr_forward_embed(f->be, f->model, f->x, f->ids, p->n);
}

/* The prompt's tokens and their positions, where they enter the model. The order of all this is
 * that of the computation: nothing goes back to the host before the last layer has been asked for,
 * so a device is never waited for in between, but where a plan's counts depend on scores, or its
 * policy ranks by a function of its own. */
static pyr_status prefill_enter(pyr_prefill *p) {
  pyr_forward *f = &p->f;
  pyr_backend *be = f->be;
  PYR_TRY(pyr_fill_zeros(be, f->faults, f->model->config.layers));
  if (!pyr_model_begins(f->model)) return PYR_OK;
  PYR_TRY(prefill_source(p));
  PYR_TRY(be->iota(be, f->pos, (int32_t)p->cache->tokens, p->n));
  return pyr_forward_add_positions(f, f->pos, p->n);
}

/* All of the prompt through a layer, and then through the next; of a stage that is not the first
 * what the one before has left of it. All memory but the lanes' and the plans' is there. */
static pyr_status prefill_layers(pyr_prefill *p) {
  pyr_forward *f = &p->f;
  const pyr_slice own = f->model->own;
  p->cache->evicted += (p->n - p->alive) * own.count * f->model->config.kv_heads;
  for (int layer = own.first; layer < own.first + own.count; layer++)
    PYR_TRY(prefill_layer(p, layer));
  return pyr_layer_plans_end(&p->plan);
}

/* results: NULL where none are wanted. Logits are gathered of ranks that are all well: the last
 * layer's plan may have failed on one of them, after which no layer's agreement comes. */
static pyr_status prefill_leave(pyr_prefill *p, pyr_status s, float *results) {
  bool plans = p->cache->policy.prefill && !(p->flags & PYR_PREFILL_NO_PRUNE);
  if (plans) s = pyr_model_agree(p->f.model, s);
  if (s == PYR_OK && results && pyr_model_ends(p->f.model)) s = prefill_results(p, results);
  return s == PYR_OK && plans ? prefill_check(p) : s;
}

/* ---- pieces of a prompt in flight ------------------------------------------------------------ */

/* Where all rows of a prompt stay, and nothing is looked at while it is read, a stage need not have
 * all of it before the next one begins: it goes through in pieces, of which each layer sees one
 * after the other, as it sees chunks. Attention is causal, so that rows are the same.
 *
 *     stage 0   piece 1   piece 2   piece 3   piece 4
 *     stage 1             piece 1   piece 2   piece 3   piece 4        5 instead of 8
 *
 * Of 1,000 tokens and two stages the pieces are of 128: smaller ones would leave products bound by
 * reading weights, larger ones the second stage idle. What is left at the end goes with the last
 * one, as few tokens' products are summed in another order. All stages come to the same answer.
 * Where pages are packed, or rows slide out of windows, a layer's must go before the next one's
 * come. */
enum { LEAST_FLIGHT = 128, FLIGHT_UNIT = 64 };

static int64_t flight_of(const pyr_model *model, int64_t n) {
  int64_t each = n / (4 * pyr_ranks_size(model->line));
  each = (each + FLIGHT_UNIT - 1) / FLIGHT_UNIT * FLIGHT_UNIT;
  return pyr_min(pyr_max(each, LEAST_FLIGHT), PYR_CHUNK - FLIGHT_UNIT);
}

/* How many tokens go next. One process computes a prompt's last chunk by itself: where that is a
 * few tokens, they are a piece of their own here, too. Of 530 tokens 128, 128, 128, 128 and 18; of
 * 400, which are one chunk, 128, 128 and 144. */
static int64_t piece_at(int64_t n, int64_t at, int64_t piece) {
  int64_t tail = n % PYR_CHUNK, end = n > PYR_CHUNK && tail < FLIGHT_UNIT ? n - tail : n;
  if (at >= end) return n - at;
  return end - at < piece + FLIGHT_UNIT ? end - at : piece;
}

static bool may_stream(const pyr_prefill *p) {
  const pyr_cache *cache = p->cache;
  const pyr_model *model = cache->pool->model;
  bool plain = p->flags & PYR_PREFILL_NO_PRUNE
      || !(cache->policy.prefill || cache->policy.decode || cache->policy.trigger);
  if (!model->line || !plain || model->slides || p->n <= LEAST_FLIGHT) return false;
  for (const pyr_cache *at = cache; at; at = at->below)
    if (pyr_layout_packs(at->pool->layout)) return false;
  for (int layer = 0; layer < cache->layers; layer++)
    if (pyr_trigger_tracks(&cache->states[layer].trigger)) return false;
  return true;
}

/* All layers' plans, none of which lets a row go, and room for all rows. */
static pyr_status stream_begin(pyr_prefill *p) {
  const pyr_slice own = p->f.model->own;
  pyr_status s = PYR_OK;
  for (int i = 0; i < own.count && s == PYR_OK; i++) {
    int layer = own.first + i;
    p->now = &p->plans[i];
    s = pyr_layer_plan_ask(p->now, p->cache, layer, p->n, p->n, p->flags);
    if (s == PYR_OK) s = prefill_reserve(p, layer);
    p->scores[layer] = p->now->eviction.plan.score;
    if (s == PYR_OK) s = pyr_layer_plan_begin(p->now, p->f.faults + layer);
  }
  return pyr_model_agree(p->f.model, s);
}

/* Tokens [at, at + n) through all layers of the stage. */
static pyr_status stream_piece(pyr_prefill *p, int64_t at, int64_t n) {
  const pyr_slice own = p->f.model->own;
  for (int i = 0; i < own.count; i++) {
    pyr_runtime *rt = p->cache->pool->rt;
    p->now = &p->plans[i];
    int64_t done = at * p->cache->layers + i * n;
    PYR_TRY(pyr_model_agree(p->f.model, pyr_progress(rt, done, p->total)));
    PYR_TRY(prefill_chunk(p, own.first + i, at, n));
  }
  return PYR_OK;
}

static pyr_status stream_end(pyr_prefill *p) {
  const pyr_slice own = p->f.model->own;
  const int32_t *survivors;
  for (int i = 0; i < own.count; i++) {
    int64_t kept = p->n;
    PYR_TRY(pyr_layer_plan_end(&p->plans[i], &survivors, &kept));
    p->cache->computed += p->n;
  }
  return PYR_OK;
}

/* Who fails goes on taking what the stage before sends, which would wait for ever else, and tells
 * the stage behind once. */
static pyr_status prefill_stream(pyr_prefill *p, pyr_status s) {
  const pyr_model *model = p->f.model;
  int64_t width = model->config.width, piece = flight_of(model, p->n);
  bool ended = false;                  /* the stage before, or this one, has said that it failed */
  if (s == PYR_OK) s = stream_begin(p);
  for (int64_t at = 0, n; at < p->n; at += n) {
    n = piece_at(p->n, at, piece);
    int64_t got = n;
    float *x = p->f.x + at * width;
    if (!ended) {
      pyr_status came = pyr_stage_receive(model, x, p->f.pos + at, n, &got);
      ended = came != PYR_OK && !pyr_model_begins(model);
      if (s == PYR_OK) s = came;
    }
    if (s == PYR_OK) s = stream_piece(p, at, n);
    s = pyr_stage_settle(model, s);
    if (!p->told) {
      pyr_status sent = pyr_stage_send(model, s, x, p->f.pos + at, n);
      p->told = s != PYR_OK;
      if (s == PYR_OK) s = sent;
    }
  }
  return s == PYR_OK ? stream_end(p) : s;
}

/* ---- a stage --------------------------------------------------------------------------------- */

/* Where there are several stages, all hear how it went before the last one tells its results. s:
 * what has become of this one so far; one that has failed takes and hands on what is due. */
static pyr_status prefill_stage(pyr_prefill *p, pyr_status s, float *results) {
  const pyr_model *model = p->f.model;
  if (s == PYR_OK) s = prefill_enter(p);
  if (p->streams) {
    s = prefill_stream(p, s);
    s = prefill_leave(p, s, results);
    return pyr_stage_settle(model, s);
  }
  pyr_status came = pyr_stage_receive(model, p->f.x, p->f.pos, p->n, &p->alive);
  if (s == PYR_OK) s = came;
  if (s == PYR_OK) s = prefill_layers(p);
  s = prefill_leave(p, s, results);
  s = pyr_stage_settle(model, s);
  return pyr_stage_send(model, s, p->f.x, p->f.pos, p->alive);
}

/* A chunk's logits at a time are made; they go to all stages at once, when nothing can fail any
 * more, with what each has counted. */
static pyr_status prefill_tell(const pyr_prefill *p, int64_t computed, float *results) {
  const pyr_model_config *c = &p->f.model->config;
  int64_t rows = p->flags & PYR_PREFILL_ALL ? p->n : 1, more = p->cache->computed - computed;
  if (!p->f.model->line) return PYR_OK;
  PYR_TRY(pyr_cache_line_sum(p->cache, &more));
  p->cache->computed = computed + more;
  if (!results) return PYR_OK;
  return pyr_stage_spread(p->f.model, results, rows * (p->flags & PYR_PREFILL_STATES ? c->width
                                                       : c->vocab));
}

/* Asks whether plans are to wait for passes over the prompt, and counts those in. The context must
 * have room for them before anything is read. */
static pyr_status prefill_ask_preparation(pyr_prefill *p) {
  int64_t tokens;
  p->how.track.code = PYR_SCORE_CODES;
  p->total = p->cache->layers * p->n;
  if (p->flags & PYR_PREFILL_NO_PRUNE) return PYR_OK;
  PYR_TRY(pyr_policy_ask_preparation(p->cache, p->n, &p->how));
  p->plan.ahead = pyr_signal_is_attention(&p->how.track);
  if (!p->plan.ahead) return PYR_OK;
  /* the passes would repeat the last piece alone */
  if ((p->flags & PYR_PREFILL_WHOLE) && p->cache->tokens > 0)
    return pyr_runtime_set_error(p->cache->pool->rt, PYR_POLICY,
                                 "policy %s, prepare: reads a prompt once more, of which an "
                                 "earlier piece is here as rows only",
                                 p->cache->policy.name ? p->cache->policy.name : "?");
  PYR_TRY(pyr_probe_tokens(p->cache, &p->how, p->n, &tokens));
  p->total += p->cache->layers * tokens;
  return PYR_OK;
}

/* The prompt has been read, and all its rows are there: probes them, and carries the plans out that
 * waited. Where none of them evicts, the passes would be for nothing, and somebody may still want
 * to be told of the plans. */
static pyr_status prefill_prepared(pyr_prefill *p) {
  pyr_cache *cache = p->cache;
  const pyr_prompt_source prompt = { p->ids, p->embeddings, p->n };
  pyr_probed *before = cache->probed;
  int64_t evicts = p->plan.evicts;
  if (!p->plan.ahead) return PYR_OK;
  if (cache->pool->model->line)      /* the passes go through all stages, or through none */
    PYR_TRY(pyr_ranks_most(pyr_runtime_ranks(cache->pool->rt), &evicts));
  if (!(evicts || pyr_trace_wanted(cache))) return PYR_OK;
  cache->probed = NULL;
  pyr_status status = PYR_OK;
  if (evicts)
    status = pyr_probe_prompt(cache, &p->how, &prompt, cache->layers * p->n, p->total);
  if (status == PYR_OK) status = pyr_evict_prepared(cache, p->n);
  pyr_cache_rows_changed(cache);
  cache->probed = before;
  return status;
}

static void prefill_layout_host(pyr_prefill *p, pyr_arena *host) {
  PYR_PART(host, p->views, p->cache->heads);
  PYR_PART(host, p->below, p->cache->heads);
  PYR_PART(host, p->scores, p->cache->layers);
  PYR_PART(host, p->faults, p->cache->layers);
  bool packs = false;
  for (const pyr_cache *at = p->cache; at; at = at->below)
    packs = packs || pyr_layout_packs(at->pool->layout);
  if (packs) {
    const pyr_model_config *c = &p->f.model->config;
    PYR_PART(host, p->needs, c->layers * (int64_t)c->kv_heads * c->head_dim);
    PYR_PART(host, p->queries, pyr_min(p->n, PYR_CHUNK) * c->heads * c->head_dim);
  }
  if (p->streams) {
    int32_t own = p->f.model->own.count;
    PYR_PART(host, p->plans, own);
    for (int i = 0; i < own; i++)
      pyr_layer_plan_layout_host(p->plans ? &p->plans[i] : &p->plan, p->cache, host);
  }
  pyr_layer_plan_layout_host(&p->plan, p->cache, host);
}

/* What the activations are of. */
static pyr_extent extent_of(const pyr_prefill *p, bool logits) {
  int64_t chunk = pyr_min(p->n, PYR_CHUNK);
  int64_t rows = !logits || p->flags & PYR_PREFILL_STATES ? 0
      : p->flags & PYR_PREFILL_ALL ? chunk : 1;
  return pyr_extent_of_prompt(p->f.model, p->n, rows, p->cache->below != NULL);
}

/* Takes the memory of a whole prefill: host arrays, in p->host, … */
static pyr_status prefill_host(pyr_prefill *p) {
  pyr_runtime *rt = p->cache->pool->rt;
  pyr_arena count = { 0 };
  prefill_layout_host(p, &count);
  p->host.block = pyr_alloc_zero(rt, count.used);
  if (!p->host.block) return pyr_nomem(rt, count.used, "the activations of a prefill");
  prefill_layout_host(p, &p->host);
  return PYR_OK;
}

/* … what kernels set aside (rows: the most that a lane can hold during the pass, before anything is
 * evicted), … */
static pyr_status prefill_scratch(pyr_prefill *p) {
  pyr_cache *cache = p->cache;
  int64_t chunk = pyr_min(p->n, PYR_CHUNK), rows = p->n + pyr_cache_longest(cache);
  pyr_work work = pyr_forward_work(p->f.model, chunk, rows, 1);
  work.masses = cache->policy.prefill && !(p->flags & PYR_PREFILL_NO_PRUNE) ? PYR_MASSES : 0;
  PYR_TRY(pyr_ranks_reserve(p->f.model->ranks, chunk * p->f.model->config.width));
  return p->f.be->reserve(p->f.be, &work);
}

/* … and activations in *block. The caller releases both blocks, whatever is returned: so failure
 * has two things to give back, whatever was laid out in them. */
static pyr_status prefill_block(pyr_prefill *p, bool logits, pyr_arena *block) {
  pyr_backend *be = p->f.be;
  pyr_extent extent = extent_of(p, logits);
  pyr_arena count = { 0 };
  pyr_forward_layout(&p->f, &extent, &count);
  block->block = be->alloc(be, count.used);
  if (!block->block)
    return pyr_nomem(p->cache->pool->rt, count.used, "the activations of a prefill");
  pyr_forward_layout(&p->f, &extent, block);
  return prefill_scratch(p);
}

/* What an older row can lose: its place, its key or its values (a plan evicts, turns or merges),
 * or what was tracked of it (a trigger starts anew, or adds). A cache without a policy only
 * appends. */
static bool changes_older_rows(const pyr_cache *cache, int flags) {
  if (cache->policy.prefill && !(flags & PYR_PREFILL_NO_PRUNE)) return true;
  if (cache->policy.trigger && !(flags & PYR_PREFILL_NO_PRUNE)) return true;
  for (int layer = 0; layer < cache->layers; layer++)
    if (pyr_trigger_tracks(&cache->states[layer].trigger)) return true;
  return false;
}

/* What is the same on all ranks, before anything is touched. */
static pyr_status prefill_check_call(pyr_cache *cache, const int32_t *ids, const float *embeddings,
                                     int64_t n) {
  pyr_runtime *rt = cache->pool->rt;
  const pyr_model *model = cache->pool->model;
  if (!model->ready) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the model is not ready");
  if (pyr_runtime_here(rt) != PYR_OK) return PYR_DEVICE;
  if (n < 1)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "the prompt is empty: a prefill needs at least one token");
  if (ids) PYR_TRY(pyr_forward_check_ids(rt, &model->config, ids, n));
  PYR_TRY(pyr_forward_check_room(cache, n));
  return embeddings ? check_embeddings(rt, &model->config, embeddings, n) : PYR_OK;
}

static pyr_prefill prefill_of(pyr_cache *cache, const int32_t *ids, const float *embeddings,
                              int64_t n, int flags) {
  const pyr_pool *pool = cache->pool;
  return (pyr_prefill){ .cache = cache, .ids = ids, .embeddings = embeddings, .n = n, .alive = n,
                        .flags = flags, .computed = cache->computed, .evicted = cache->evicted,
                        .f = { .model = pool->model, .be = pool->be, .layout = pool->layout } };
}

/* A failure drops the new rows again; more is needed only where older rows, or what is tracked of
 * them, change. */
static pyr_status prefill_begin(pyr_prefill *p) {
  pyr_cache *cache = p->cache;
  pyr_status s = PYR_OK;
  for (int layer = 0; layer < cache->layers && (p->flags & PYR_PREFILL_WHOLE); layer++)
    p->held = pyr_max(p->held, pyr_cache_layer_rows(cache, layer));
  if (cache->tokens > 0 && changes_older_rows(cache, p->flags)) s = pyr_undo_new(cache, &p->undo);
  pyr_forward_mark(cache);
  p->begun = true;
  if (s == PYR_OK) s = pyr_ids_put(cache->pool, &cache->ids, cache->tokens, p->ids, p->n);
  if (s == PYR_OK) s = prefill_ask_preparation(p);
  p->streams = may_stream(p);
  return s;
}

/* What layers' plans held, whatever came of them. */
static void prefill_free_plans(pyr_prefill *p) {
  for (int i = 0; i < p->f.model->own.count && p->plans; i++) pyr_layer_plan_free(&p->plans[i]);
  pyr_layer_plans_free(&p->plan, p->cache);
  p->cache->pool->coming = 0;
}

/* Three ways back, from the most that may have changed to the least: undo, where older rows may
 * have; clear, where there were none; drop_marked, where only new rows came. Counters move at
 * the end, but for `computed` and `evicted`, which are put back. */
static pyr_status prefill_end(pyr_prefill *p, pyr_status s, float *logits) {
  pyr_cache *cache = p->cache;
  if (s == PYR_OK) s = prefill_tell(p, p->computed, logits);
  for (int layer = 0; layer < cache->layers && s == PYR_OK; layer++) prefill_tell_needs(p, layer);
  pyr_release(cache->pool->rt, p->host.block, p->host.used);
  if (s == PYR_OK) {
    pyr_cache_rows_changed(cache);
    cache->tokens += p->n;
    /* held: 0 but in pieces */
    if (!(p->flags & PYR_PREFILL_NO_PRUNE)) cache->prompt = p->held + p->n;
    for (int layer = 0; layer < cache->layers && (p->flags & PYR_PREFILL_NO_PRUNE); layer++)
      cache->states[layer].unranked += p->n;
    pyr_undo_keep(p->undo);
    pyr_cache_slide(cache);
    pyr_cache_pack(cache);
    pyr_cache_tidy(cache);
    s = pyr_cache_level(cache);
  } else if (!p->begun) {
    return s;
  } else if (p->undo) {
    pyr_undo_restore(p->undo);
  } else if (cache->tokens == 0) {
    pyr_cache_clear(cache);
  } else {
    pyr_forward_drop(cache);
    cache->computed = p->computed;
    cache->evicted = p->evicted;
  }
  return s;
}

static pyr_status prefill(pyr_cache *cache, const int32_t *ids, const float *embeddings, int64_t n,
                          int flags, float *logits) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  PYR_TRY(prefill_check_call(cache, ids, embeddings, n));
  pyr_prefill p = prefill_of(cache, ids, embeddings, n, flags);
  pyr_arena block = { 0 };
  pyr_ranks_begin(rt);
  pyr_status s = prefill_begin(&p);
  if (s == PYR_OK) s = prefill_host(&p);
  if (s == PYR_OK) s = prefill_block(&p, logits != NULL, &block);
  s = pyr_ranks_agree(rt, s);
  if (s == PYR_OK) s = prefill_stage(&p, s, logits);
  prefill_free_plans(&p);
  be->release(be, block.block, block.used);
  if (s == PYR_OK) s = prefill_prepared(&p);
  if (s == PYR_OK) s = pyr_progress(rt, p.total, p.total);
  return prefill_end(&p, pyr_ranks_end(rt, s), logits);
}

/* ---- prompts in flight ----------------------------------------------------------------------- */

/* Several sequences' prompts, one behind the other, as one prompt's pieces are: while the second
 * stage has the first prompt, the first has the second. Each stage has the activations of one at a
 * time, and of all what they need of the host's memory; all agree before the first begins, and when
 * the last has ended: up to which of them all is well.
 *
 *     stage 0   prompt 1   prompt 2   prompt 3
 *     stage 1              prompt 1   prompt 2   prompt 3        fails at 2: 1 is read, 2 and 3 not
 *
 * A stage where one has failed computes no more, and still takes and hands on what is due. */
static pyr_status fly(pyr_prefill *all, int count, pyr_arena *block, float *const *logits,
                      int *failed) {
  pyr_runtime *rt = all[0].cache->pool->rt;
  pyr_status s = PYR_OK;
  *failed = count;
  for (int i = 0; i < count; i++) {
    pyr_prefill *p = &all[i];
    pyr_extent extent = extent_of(p, true);
    pyr_arena again = { .block = block->block };
    pyr_forward_layout(&p->f, &extent, &again);
    s = prefill_stage(p, s, logits[i]);
    prefill_free_plans(p);
    if (s != PYR_OK && *failed == count) *failed = i;
  }
  int64_t first = -(int64_t)*failed;
  pyr_status told = pyr_ranks_most(pyr_runtime_ranks(rt), &first);
  if (told != PYR_OK) return told;
  bool mine = *failed == -first;       /* else another's came first, and this one's is no cause */
  *failed = (int)-first;
  return pyr_ranks_agree(rt, mine && *failed < count ? s : PYR_OK);
}

static pyr_status fly_memory(pyr_prefill *all, int count, pyr_arena *block) {
  pyr_backend *be = all[0].f.be;
  size_t most = 0;
  for (int i = 0; i < count; i++) {
    pyr_extent extent = extent_of(&all[i], true);
    pyr_arena size = { 0 };
    PYR_TRY(prefill_begin(&all[i]));
    PYR_TRY(prefill_host(&all[i]));
    pyr_forward_layout(&all[i].f, &extent, &size);
    if (size.used > most) most = size.used; /* a short prompt of several tiers may need more */
  }
  for (int i = 0; i < count; i++) PYR_TRY(prefill_scratch(&all[i]));
  block->block = be->alloc(be, most);
  if (!block->block) return pyr_nomem(all[0].cache->pool->rt, most, "prompts in flight");
  block->used = most;
  return PYR_OK;
}

/* Whether they may: plans that wait for passes over a prompt need it to end first. */
static bool may_fly(pyr_cache *const *caches, int count) {
  for (int i = 0; i < count; i++) {
    if (caches[i]->pool->model != caches[0]->pool->model || caches[i]->preparer.prepare)
      return false;
    for (int j = 0; j < i; j++) if (caches[i] == caches[j]) return false;
  }
  return count > 1 && caches[0]->pool->model->line;
}

pyr_status pyr_prefill_flight(pyr_cache *const *caches, const int32_t *const *ids,
                              const int64_t *n, int count, float *const *logits, int *done) {
  *done = 0;
  if (!may_fly(caches, count)) return PYR_OK;
  pyr_runtime *rt = caches[0]->pool->rt;
  pyr_backend *be = caches[0]->pool->be;
  pyr_arena block = { 0 };
  int failed = 0;
  for (int i = 0; i < count; i++)
    PYR_TRY(prefill_check_call(caches[i], ids[i], NULL, n[i]));
  size_t bytes = (size_t)count * sizeof(pyr_prefill);
  pyr_ranks_begin(rt);
  pyr_prefill *all = pyr_alloc_zero(rt, bytes);
  pyr_status s = all ? PYR_OK : pyr_nomem(rt, bytes, "prompts in flight");
  for (int i = 0; i < count && all; i++) all[i] = prefill_of(caches[i], ids[i], NULL, n[i], 0);
  if (s == PYR_OK) s = fly_memory(all, count, &block);
  s = pyr_ranks_agree(rt, s);
  if (s == PYR_OK) s = fly(all, count, &block, logits, &failed);
  be->release(be, block.block, block.used);
  pyr_ranks_leave(rt);
  for (int i = 0; i < count && all; i++) {
    pyr_status ended = prefill_end(&all[i], i < failed ? PYR_OK : s, logits[i]);
    if (i < failed && ended != PYR_OK) s = ended, failed = i;
  }
  pyr_release(rt, all, bytes);
  *done = failed;
  return s;
}

/* A prefill that the budget refuses is as if it had not been made: where rows may go down a tier
 * instead, as many as it may need go, and it is made again. */
static pyr_status prefill_pressed(pyr_cache *cache, const int32_t *ids, const float *embeddings,
                                  int64_t n, int flags, float *logits) {
  pyr_status status = prefill(cache, ids, embeddings, n, flags, logits);
  while (status == PYR_BUDGET && cache->pool->pressed) {
    size_t freed;
    PYR_TRY(pyr_tiers_relieve(cache, n, &freed));
    if (freed == 0) return status;
    status = prefill(cache, ids, embeddings, n, flags, logits);
  }
  return status;
}

/* Tokens that are read at a time where all of them do not fit: a chunk, as fewer would leave
 * products bound by reading weights, and fewer where not even that fits; 64 are what stays in the
 * hot tier anyway. */
enum { PIECE = PYR_CHUNK, LEAST_PIECE = 64 };

/* A prompt that is longer than the budget, of a cache without a policy, is read piece by piece, and
 * rows go down between them: 4,000 tokens by 512 take room for 512 in the hot tier. All or nothing,
 * by a snapshot, whose pages count: rows that are there go down before it is made. */
static pyr_status prefill_pieces(pyr_cache *cache, const int32_t *ids, const float *embeddings,
                                 int64_t n, int64_t piece, int flags, float *logits) {
  pyr_cache *snapshot = NULL;
  int64_t width = cache->pool->model->config.width;
  size_t freed;
  PYR_TRY(pyr_tiers_relieve(cache, n, &freed));
  pyr_ranks_begin(cache->pool->rt);
  pyr_status status = pyr_ranks_end(cache->pool->rt, pyr_cache_snapshot(cache, &snapshot));
  for (int64_t at = 0; at < n && status == PYR_OK; at += piece)
    status = prefill_pressed(cache, ids ? ids + at : NULL,
                             embeddings ? embeddings + at * width : NULL,
                             pyr_min(piece, n - at), flags, at + piece < n ? NULL : logits);
  if (status != PYR_OK && snapshot) pyr_cache_restore(cache, snapshot);
  else pyr_cache_free(snapshot);
  return status;
}

/* Whole first, as nothing is changed by trying: piece by piece a text is read as by several calls,
 * which a policy would notice, and logits of all positions are those of one call. Then by 512, 256,
 * 128 and 64: 500 tokens under a budget of 300 are read by 128. */
static pyr_status prefill_under(pyr_cache *cache, const int32_t *ids, const float *embeddings,
                                int64_t n, int flags, float *logits) {
  pyr_status status = prefill_pressed(cache, ids, embeddings, n, flags, logits);
  bool whole = (flags & PYR_PREFILL_ALL) || !cache->pool->pressed
      || (cache->policy.prefill && !(flags & PYR_PREFILL_NO_PRUNE));
  for (int64_t piece = PIECE; status == PYR_BUDGET && !whole && piece >= LEAST_PIECE; piece /= 2)
    if (n > piece) status = prefill_pieces(cache, ids, embeddings, n, piece, flags, logits);
  return status;
}

pyr_status pyr_cache_prefill(pyr_cache *cache, const int32_t *ids, int64_t n, int flags,
                             float *logits) {
  return prefill_under(cache, ids, NULL, n, flags, logits);
}

pyr_status pyr_cache_prefill_embeddings(pyr_cache *cache, const float *rows, int64_t n, int flags,
                                        float *logits) {
  return prefill_under(cache, NULL, rows, n, flags, logits);
}

/* In chunks, so that what it takes on a device does not grow with n: of width 576, 512 ids and
 * their rows are 1.2 MB. */
pyr_status pyr_model_embed(pyr_model *model, const int32_t *ids, int64_t n, float *out) {
  pyr_runtime *rt = model->rt;
  pyr_backend *be = pyr_runtime_backend(rt);
  int64_t width = model->config.width, chunk = pyr_min(n, PYR_CHUNK);
  if (!model->ready) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the model is not ready");
  if (pyr_runtime_here(rt) != PYR_OK) return PYR_DEVICE;
  PYR_TRY(pyr_forward_check_ids(rt, &model->config, ids, n));
  if (n < 1) return PYR_OK;
  size_t row_bytes = (size_t)width * sizeof *out, bytes = (size_t)chunk * (row_bytes + sizeof *ids);
  bool begins = pyr_model_begins(model);
  float *rows = begins ? be->alloc(be, bytes) : NULL;
  pyr_status s = begins && !rows ? pyr_nomem(rt, bytes, "rows of embeddings") : PYR_OK;
  for (int64_t at = 0; at < n && s == PYR_OK && begins; at += chunk) {
    int32_t *place = (int32_t *)(rows + chunk * width);
    int64_t count = pyr_min(chunk, n - at);
    s = be->upload(be, place, ids + at, (size_t)count * sizeof *ids);
    if (s == PYR_OK) s = pyr_forward_embed(be, model, rows, place, count);
    if (s == PYR_OK) s = be->download(be, out + at * width, rows, (size_t)count * row_bytes);
  }
  be->release(be, rows, rows ? bytes : 0);
  pyr_ranks_begin(rt);
  if (model->line) s = pyr_ranks_agree(rt, s);
  if (s == PYR_OK) s = pyr_stage_spread_first(model, out, n * width);
  pyr_ranks_leave(rt);
  return s;
}
