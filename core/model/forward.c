/* forward.c — the transformer, written once, over the backend's operations.
 *
 * Prefill is layer-major: a layer runs over all tokens still alive, in chunks of PYR_CHUNK, before
 * the next one begins. That is what lets a plan hand only its survivors on: deeper layers then
 * compute attention, MLP and K/V for fewer tokens. Between layers only the residual stream lives,
 * [tokens, width]; everything else is a chunk long, whatever the prompt's length. A decode step is
 * one pass over `count` sequences of one token each, which read every weight once.
 *
 * One layer (pre-norm decoder: Llama, Mistral, Qwen2, Qwen3):
 *     h = rms_norm(x);  q, k, v = h W + b;  [q, k = rms_norm per head];  q, k = rope(q, k)
 *     store k, v;  x += attention(q, rows) W_o
 *     h = rms_norm(x);  x += (silu(h W_gate) * h W_up) W_down
 *
 * Positions. A token has the position at which it was read, by which rows are told apart, masked
 * and tracked. Its q and k are rotated to the same position, but in layers whose keys were
 * compacted (pyr_layer_state): there to the number of rows before it. The model's context bounds
 * the positions that are rotated to.
 *
 * Failure. Plans are asked for before anything is touched; memory is reserved before anything is
 * computed. A failed prefill puts older rows back (undo.h), or drops its rows again where no older
 * row changes; a failed step drops its row. After its reservation a step can fail only if the
 * device does; then rows are as before, but what was tracked of them may have counted the step's
 * attention. */
#include "model/model.h"
#include "sample/sample_batch.h"
#include "policy/plan.h"
#include "cache/undo.h"

#include <string.h>

enum { PYR_CHUNK = 512 };

typedef struct pyr_forward {       /* the activations of one chunk, backend memory */
  const pyr_model *model;
  pyr_backend *be;
  pyr_layout layout;
  float *x;                        /* [tokens, width] the residual stream */
  float *h;                        /* [chunk, width] normed */
  float *q;                        /* [chunk, heads, head_dim] */
  float *k, *v;                    /* [chunk, kv_heads, head_dim] */
  float *att;                      /* [chunk, heads, head_dim] */
  float *lse;                      /* [chunk, heads] */
  float *gate, *up;                /* [chunk, ff] */
  float *logits;                   /* [logit_rows, vocab] */
  int32_t *ids, *pos;              /* [tokens] */
  int32_t *rot;  /* [turned] positions that q and k are rotated to, where they are not `pos` */
  int32_t *faults;                 /* [faults] by plan: 1 where a score was no number */
  int exact;                       /* PYR_LINEAR_EXACT in a decode step, else 0 */
} pyr_forward;

/* Lays the activations out in one block; returns its size. With base NULL only counts. */
static size_t carve(pyr_forward *f, char *base, int64_t tokens, int64_t chunk, int64_t logit_rows,
                    int64_t turned, int64_t faults) {
  const pyr_model_config *c = &f->model->config;
  int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  size_t used = 0;
  struct { void **at; int64_t count; } parts[] = {
    { (void **)&f->x, tokens * c->width }, { (void **)&f->h, chunk * c->width },
        { (void **)&f->q, chunk * q },
    { (void **)&f->k, chunk * kv },        { (void **)&f->v, chunk * kv },
        { (void **)&f->att, chunk * q },
    { (void **)&f->lse, chunk * c->heads },{ (void **)&f->gate, chunk * c->ff },
        { (void **)&f->up, chunk * c->ff },
    { (void **)&f->logits, logit_rows * c->vocab }, { (void **)&f->ids, tokens },
        { (void **)&f->pos, tokens },
    { (void **)&f->rot, turned }, { (void **)&f->faults, faults },
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    if (base) *parts[i].at = base + used;
    used += ((size_t)parts[i].count * 4 + 63) / 64 * 64;
  }
  return used;
}

static pyr_work work_of(const pyr_model *model, int64_t tokens, int64_t rows, int64_t sequences) {
  const pyr_model_config *c = &model->config;
  int64_t cols = pyr_max(pyr_max(c->width, c->ff), (int64_t)c->heads * c->head_dim);
  return (pyr_work){ .tokens = tokens, .rows = rows, .sequences = sequences, .heads = c->heads,
                     .kv_heads = c->kv_heads, .head_dim = c->head_dim, .cols = cols,
                         .outputs = pyr_max(cols, c->vocab) };
}

/* ---- one layer ------------------------------------------------------------------------------- */

/* out [n, heads, head_dim] = f->h W + b, normed and rotated to `pos`: queries or keys. */
static pyr_status layer_rotated(pyr_forward *f, float *out, const pyr_tensor *w, const float *bias,
                                const float *norm, int32_t heads, const int32_t *pos, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  pyr_status s = be->linear(be, out, f->h, w, bias, n, f->exact);
  if (s == PYR_OK && norm)
    s = be->rms_norm(be, out, out, norm, n * heads, c->head_dim, c->norm_eps);
  if (s == PYR_OK)
    s = be->rope(be, out, pos, f->model->rope_freq, n, heads, c->head_dim, c->rope_dims,
                 c->rope_style, c->rope_gain);
  return s;
}

/* x [n, width] -> q (where wanted), k, v; q and k rotated to `rot`. */
static pyr_status layer_project(pyr_forward *f, const pyr_layer *l, const float *x,
                                const int32_t *rot, int64_t n, bool queries) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  pyr_status s = be->rms_norm(be, f->h, x, l->attn_norm, n, c->width, c->norm_eps);
  if (s == PYR_OK && queries)
    s = layer_rotated(f, f->q, &l->q, l->q_bias, l->q_norm, c->heads, rot, n);
  if (s == PYR_OK) s = layer_rotated(f, f->k, &l->k, l->k_bias, l->k_norm, c->kv_heads, rot, n);
  return s == PYR_OK ? be->linear(be, f->v, f->h, &l->v, l->v_bias, n, f->exact) : s;
}

static void get_views(const pyr_cache *cache, int layer, pyr_lane_view *views) {
  for (int head = 0; head < cache->heads; head++)
    views[head] = pyr_lane_get_view(pyr_cache_lane(cache, layer, head));
}

/* Counts n rows that were stored in a layer's lanes, of which `views` are. */
static void add_rows(pyr_cache *cache, int layer, pyr_lane_view *views, int64_t n) {
  for (int head = 0; head < cache->heads; head++)
    views[head].rows = pyr_cache_lane(cache, layer, head)->rows += n;
}

/* x += att W_o;  x += mlp(x). */
static pyr_status layer_finish(pyr_forward *f, const pyr_layer *l, float *x, const float *att,
                               int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  pyr_status s = be->linear(be, x, att, &l->o, l->o_bias, n, PYR_LINEAR_ADD | f->exact);
  if (s == PYR_OK) s = be->rms_norm(be, f->h, x, l->ffn_norm, n, c->width, c->norm_eps);
  if (s == PYR_OK) s = be->linear(be, f->gate, f->h, &l->gate, NULL, n, f->exact);
  if (s == PYR_OK) s = be->linear(be, f->up, f->h, &l->up, NULL, n, f->exact);
  if (s == PYR_OK) s = be->silu_mul(be, f->gate, f->up, n * c->ff);
  if (s == PYR_OK) s = be->linear(be, x, f->gate, &l->down, NULL, n, PYR_LINEAR_ADD | f->exact);
  return s;
}

/* logits of x [n, width] into f->logits. */
static pyr_status project_logits(pyr_forward *f, const float *x, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_status s = f->be->rms_norm(f->be, f->h, x, f->model->out_norm, n, c->width, c->norm_eps);
  return s == PYR_OK ? f->be->linear(f->be, f->logits, f->h, &f->model->output, NULL, n, f->exact)
      : s;
}

static pyr_status check_tokens(const pyr_cache *cache, const int32_t *ids, int64_t n) {
  const pyr_model_config *c = &cache->pool->model->config;
  pyr_runtime *rt = cache->pool->rt;
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= c->vocab)
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "token %lld has id %d, outside the vocabulary of %d",
                                       (long long)i + 1, (int)ids[i], (int)c->vocab);
  int64_t before = 0;  /* the position that the first of them is rotated to, at most */
  for (int layer = 0; layer < cache->layers; layer++)
    before = pyr_max(before, cache->states[layer].compact ? pyr_cache_layer_rows(cache, layer)
                      : cache->tokens);
  if (n > c->context - before)
    return pyr_runtime_set_error(rt, PYR_CONTEXT,
                                 "%lld tokens after %lld are more than the model's context of %d",
                                     (long long)n, (long long)before, (int)c->context);
  if (n > INT32_MAX - cache->tokens)
    return pyr_runtime_set_error(rt, PYR_CONTEXT, "positions beyond %d cannot be told apart",
                                 (int)INT32_MAX);
  return PYR_OK;
}

/* Remembers how many rows each lane holds, and drops those that came since. */
static void mark_lanes(pyr_cache *cache) {
  for (int64_t i = 0; i < (int64_t)cache->layers * cache->heads; i++)
    cache->lanes[i].mark = cache->lanes[i].rows;
}

static void drop_marked(pyr_cache *cache) {
  for (int64_t i = 0; i < (int64_t)cache->layers * cache->heads; i++)
    pyr_lane_truncate(cache, &cache->lanes[i], cache->lanes[i].mark);
}

/* ---- prefill --------------------------------------------------------------------------------- */

typedef struct pyr_prefill {
  pyr_cache *cache;
  pyr_forward f;
  int64_t n, alive;
  int flags;
  pyr_lane_view *views;            /* host [kv_heads] */
  pyr_score *scores;               /* host [layers] what each layer's plan ranked by */
} pyr_prefill;

static pyr_status prefill_chunk(pyr_prefill *p, int layer, pyr_plan_run *run, int64_t at,
                                int64_t n) {
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  const pyr_layer *l = &f->model->layers[layer];
  float *x = f->x + at * c->width;
  bool wanted = pyr_plan_wants(run, at, n);
  /* After the last layer only the last token is looked at, unless logits of all are wanted: the
   * others leave their K and V and, where a score wants them, their queries. */
  bool last_only = layer == c->layers - 1 && !(p->flags & PYR_PREFILL_ALL),
      holds_last = at + n == p->alive;
  bool queries = !last_only || holds_last || wanted;
  const int32_t *rot = f->pos + at;
  pyr_status s = PYR_OK;
  if (p->cache->states[layer].compact) {
    s = f->be->iota(f->be, f->rot, (int32_t)pyr_cache_layer_rows(p->cache, layer), n);
    rot = f->rot;
  }
  if (s == PYR_OK) s = layer_project(f, l, x, rot, n, queries);
  get_views(p->cache, layer, p->views);                  /* the lanes are reserved */
  pyr_append rows = { .lanes = p->views, .k = f->k, .v = f->v, .positions = f->pos + at, .n = n };
  if (s == PYR_OK) s = f->be->store(f->be, &rows, 1, f->layout, c->kv_heads);
  if (s == PYR_OK) add_rows(p->cache, layer, p->views, n);
  if (s != PYR_OK || !queries) return s;
  pyr_attention a = { .out = f->att, .lse = wanted ? f->lse : NULL, .q = f->q,
                      .q_pos = f->pos + at, .lanes = p->views, .n = n,
                          .window = c->window ? c->window[layer] : 0 };
  s = f->be->attention(f->be, &a, 1, f->layout, c->heads, c->kv_heads, f->model->scale);
  if (s == PYR_OK && wanted) s = pyr_plan_observe(run, &a, rot, at);
  if (s != PYR_OK || (last_only && !holds_last)) return s;
  int64_t skip = last_only ? n - 1 : 0;
  return layer_finish(f, l, x + skip * c->width, f->att + skip * c->heads * c->head_dim, n - skip);
}

static pyr_status prefill_layer(pyr_prefill *p, int layer) {
  pyr_cache *cache = p->cache;
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  int64_t before = pyr_cache_layer_rows(cache, layer), kept = p->alive;
  const int32_t *survivors = NULL;
  pyr_plan plan = { .keep = before + p->alive, .prune = PYR_PRUNE_CACHE };
  pyr_trigger trigger;
  pyr_plan_run run = { 0 };
  pyr_shape shape = { .layer = layer, .layers = c->layers, .prompt = p->n, .past = before,
                      .rows = before + p->alive, .tokens = cache->tokens + p->n, .heads = c->heads,
                          .kv_heads = c->kv_heads, .head_dim = c->head_dim };
  /* else: keep all, and the trigger stays as it is */
  bool asked = !(p->flags & PYR_PREFILL_NO_PRUNE);
  pyr_status s = asked ? pyr_plan_ask_prefill(cache, &shape, &plan) : PYR_OK;
  if (s != PYR_OK) return s;
  if ((p->flags & PYR_PREFILL_ALL) && (plan.prune & PYR_PRUNE_HIDDEN)
      && (plan.keep < shape.rows || plan.mass > 0))
    return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                                 "logits of every position need every token to reach the last "
                                 "layer, "
                                 "but policy %s prunes hidden states at layer %d (append with "
                                 "pruning off instead)",
                                 cache->policy.name ? cache->policy.name : "?", layer + 1);
  shape.rows = pyr_plan_rows_after(cache, &shape, &plan);
  if (asked) s = pyr_plan_ask_trigger(cache, &shape, &trigger);
  else trigger = cache->states[layer].trigger;
  if (s == PYR_OK && asked) s = pyr_plan_check_history(cache, &shape, &plan, &trigger);
  if (s == PYR_OK && cache->undo) s = pyr_undo_layer(cache->undo, layer);
  for (int head = 0; head < c->kv_heads && s == PYR_OK; head++)
    s = pyr_lane_reserve(cache, pyr_cache_lane(cache, layer, head), p->alive,
                         pyr_trigger_tracks(&trigger));
  if (s == PYR_OK) s = pyr_lanes_list(cache, pyr_cache_lane(cache, layer, 0), c->kv_heads);
  if (s == PYR_OK)
    s = pyr_plan_begin(&run, cache, layer, &plan, asked ? &trigger : NULL, p->alive,
                       cache->tokens + p->n - 1, f->faults + layer);
  p->scores[layer] = plan.score;
  for (int64_t at = 0; at < p->alive && s == PYR_OK; at += PYR_CHUNK) {
    s = pyr_progress(cache->pool->rt, layer * p->n + at * p->n / p->alive, c->layers * p->n);
    if (s == PYR_OK) s = prefill_chunk(p, layer, &run, at, pyr_min(PYR_CHUNK, p->alive - at));
  }
  cache->computed += p->alive;
  if (s == PYR_OK) s = pyr_plan_end(&run, &survivors, &kept);
  if (s == PYR_OK && survivors) {
    s = f->be->take_rows(f->be, f->x, survivors, kept, c->width);
    if (s == PYR_OK) s = f->be->take_i32(f->be, f->pos, survivors, kept);
    cache->evicted += (p->alive - kept) * (c->layers - 1 - layer) * c->kv_heads;
    p->alive = kept;
  }
  pyr_plan_free(&run);
  return s;
}

/* After all results are there: whether every layer's scores were numbers. Waits for nothing else.
 * */
static pyr_status prefill_faults(const pyr_prefill *p, int32_t *faults) {
  int layers = p->cache->layers;
  pyr_status s = p->f.be->download(p->f.be, faults, p->f.faults, (size_t)layers * sizeof *faults);
  for (int layer = 0; layer < layers && s == PYR_OK; layer++)
    if (faults[layer]) s = pyr_plan_not_finite(p->cache, layer, "prefill", &p->scores[layer]);
  return s;
}

static bool changes_older_rows(const pyr_cache *cache, int flags) {
  if (cache->policy.prefill && !(flags & PYR_PREFILL_NO_PRUNE)) return true;
  if (cache->policy.trigger && !(flags & PYR_PREFILL_NO_PRUNE)) return true;
  for (int layer = 0; layer < cache->layers; layer++)
    if (pyr_trigger_tracks(&cache->states[layer].trigger)) return true;
  return false;
}

static pyr_status prefill_logits(pyr_prefill *p, float *logits) {
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  int64_t at = p->flags & PYR_PREFILL_ALL ? 0 : p->alive - 1;
  for (pyr_status s; at < p->alive; at += PYR_CHUNK) {
    int64_t n = pyr_min(PYR_CHUNK, p->alive - at);
    s = project_logits(f, f->x + at * c->width, n);
    if (s == PYR_OK)
      s = f->be->download(f->be, logits, f->logits, (size_t)(n * c->vocab) * sizeof(float));
    if (s != PYR_OK) return s;
    logits += n * c->vocab;
  }
  return PYR_OK;
}

pyr_status pyr_cache_prefill(pyr_cache *cache, const int32_t *ids, int64_t n, int flags,
                             float *logits) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  const pyr_model *model = cache->pool->model;
  const pyr_model_config *c = &model->config;
  pyr_undo *undo = NULL;
  pyr_prefill p = { .cache = cache, .f = { .model = model, .be = be,
                                           .layout = cache->pool->layout }, .n = n, .alive = n,
                                               .flags = flags };
  size_t views_bytes = (size_t)c->kv_heads * sizeof *p.views
      + (size_t)c->layers * (sizeof *p.scores + sizeof(int32_t)), block_bytes = 0,
          ids_bytes = (size_t)n * sizeof *ids;
  char *block = NULL;
  int64_t chunk = pyr_min(n, PYR_CHUNK);
  if (!model->ready) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the model is not ready");
  if (pyr_runtime_here(rt) != PYR_OK) return PYR_DEVICE;
  if (n < 1)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "the prompt is empty: a prefill needs at least one token");
  pyr_status s = check_tokens(cache, ids, n);
  if (s != PYR_OK) return s;
  /* A failure drops the new rows again; more is needed only where older rows, or what is tracked of
   * them, change. */
  int64_t computed = cache->computed, evicted = cache->evicted;
  if (cache->tokens > 0 && changes_older_rows(cache, flags)
      && (s = pyr_undo_new(cache, &undo)) != PYR_OK) return s;
  mark_lanes(cache);

  p.views = pyr_alloc(rt, views_bytes);
  block_bytes = carve(&p.f, NULL, n, chunk, logits ? (flags & PYR_PREFILL_ALL ? chunk : 1) : 0,
                      chunk, c->layers);
  block = p.views ? be->alloc(be, block_bytes) : NULL;
  if (!block) {
    s = pyr_nomem(rt, p.views ? block_bytes : views_bytes, "the activations of a prefill");
    goto done;
  }
  carve(&p.f, block, n, chunk, logits ? (flags & PYR_PREFILL_ALL ? chunk : 1) : 0, chunk,
        c->layers);
  p.scores = (pyr_score *)(p.views + c->kv_heads);
  int32_t *faults = (int32_t *)(p.scores + c->layers);
  int64_t rows = n;
  for (int layer = 0; layer < c->layers; layer++)
    rows = pyr_max(rows, n + pyr_cache_layer_rows(cache, layer));
  pyr_work work = work_of(model, chunk, rows, 1);
  s = be->reserve(be, &work);
  if (s == PYR_OK) s = be->upload(be, p.f.ids, ids, ids_bytes);
  if (s == PYR_OK) s = be->fill(be, (float *)p.f.faults, NULL, c->layers, 2, 0, 0.0f);
  if (s == PYR_OK) s = be->embed(be, p.f.x, &model->embed, p.f.ids, n);
  if (s == PYR_OK) s = be->iota(be, p.f.pos, (int32_t)cache->tokens, n);
  for (int layer = 0; layer < c->layers && s == PYR_OK; layer++) s = prefill_layer(&p, layer);
  if (s == PYR_OK && logits) s = prefill_logits(&p, logits);
  if (s == PYR_OK && cache->policy.prefill && !(flags & PYR_PREFILL_NO_PRUNE))
    s = prefill_faults(&p, faults);
  if (s == PYR_OK) s = pyr_progress(rt, c->layers * n, c->layers * n);
  if (s == PYR_OK) {
    cache->tokens += n;
    if (!(flags & PYR_PREFILL_NO_PRUNE)) cache->prompt = n;
    for (int layer = 0; layer < c->layers && (flags & PYR_PREFILL_NO_PRUNE); layer++)
      cache->states[layer].unjudged += n;
  }
done:
  be->release(be, block, block_bytes);
  pyr_release(rt, p.views, views_bytes);
  if (s == PYR_OK) {
    pyr_undo_keep(undo);
  } else if (undo) {
    pyr_undo_restore(undo);
  } else if (cache->tokens == 0) {
    pyr_cache_clear(cache);
  } else {
    drop_marked(cache);
    cache->computed = computed;
    cache->evicted = evicted;
  }
  return s;
}

/* ---- step ------------------------------------------------------------------------------------ */

/* a decode plan that runs after this step */
typedef struct pyr_due { int index, layer; pyr_plan plan; pyr_plan_turn turn; } pyr_due;

typedef struct pyr_step_run {
  pyr_cache *const *caches;
  int count;
  pyr_forward f;
  pyr_due *due;
  int64_t due_count;
  pyr_append *rows;                /* host [count] */
  pyr_attention *attention;        /* host [count] */
  pyr_track *tracks;               /* host [count] */
  pyr_lane_view *views;            /* host [count * kv_heads] */
  void *plan_work, *plan_host;     /* what the plans take, in turns, and then their verdicts */
  char *verdicts, *verdicts_host;
  int32_t *faults;                 /* host [due_count] */
  bool turned;  /* f.rot [layers, count] holds positions; else all are rotated to f.pos */
} pyr_step_run;

/* Asks the policies of all caches for the plans that will run at the end of this step. */
static pyr_status step_ask(pyr_step_run *r) {
  const pyr_model_config *c = &r->f.model->config;
  int64_t at = 0;
  for (int i = 0; i < r->count; i++) {
    pyr_cache *cache = r->caches[i];
    for (int layer = 0; layer < c->layers; layer++) {
      if (pyr_plan_steps_left(cache, layer) != 1) continue;
      const pyr_layer_state *state = &cache->states[layer];
      int64_t rows = pyr_cache_layer_rows(cache, layer) + 1;
      pyr_shape shape = { .layer = layer, .layers = c->layers, .prompt = cache->prompt,
                          .past = state->past, .rows = rows,
                              .waiting = pyr_plan_waiting(cache, layer, rows),
                                  .tokens = cache->tokens + 1, .heads = c->heads,
                                      .kv_heads = c->kv_heads, .head_dim = c->head_dim };
      pyr_due *due = &r->due[at++];
      *due = (pyr_due){ .index = i, .layer = layer };
      pyr_status s = pyr_plan_ask_decode(cache, &shape, &due->plan);
      if (s != PYR_OK) return s;
    }
  }
  return PYR_OK;
}

/* Makes room for one row in every lane, and makes writable what this step's plans will gather. */
static pyr_status step_reserve(pyr_step_run *r) {
  const pyr_model_config *c = &r->f.model->config;
  pyr_status s = PYR_OK;
  for (int i = 0; i < r->count; i++)
    for (int layer = 0; layer < c->layers; layer++)
      for (int head = 0; head < c->kv_heads; head++) {
        pyr_cache *cache = r->caches[i];
        s = pyr_lane_reserve(cache, pyr_cache_lane(cache, layer, head), 1,
                             pyr_trigger_tracks(&cache->states[layer].trigger));
        if (s != PYR_OK) return s;
      }
  for (int64_t d = 0; d < r->due_count; d++) {
    s = pyr_plan_decode_prepare(r->caches[r->due[d].index], r->due[d].layer, &r->due[d].plan);
    if (s != PYR_OK) return s;
  }
  for (int i = 0; i < r->count && s == PYR_OK; i++)
    s = pyr_lanes_list(r->caches[i], r->caches[i]->lanes, (int64_t)c->layers * c->kv_heads);
  return s;
}

/* Where somebody is told of the plans, and may say no when rows are gone already: what the due
 * plans evict is kept until all were told. Of all caches, as the step is one. */
static pyr_status step_keep_losers(pyr_step_run *r) {
  bool told = false;
  pyr_status s = PYR_OK;
  for (int64_t d = 0; d < r->due_count; d++)
    told = told || pyr_trace_wanted(r->caches[r->due[d].index]);
  for (int64_t d = 0; d < r->due_count && told && s == PYR_OK; d++) {
    pyr_cache *cache = r->caches[r->due[d].index];
    pyr_undo *undo;
    if (!cache->undo) s = pyr_undo_new(cache, &undo);
    if (s == PYR_OK) s = pyr_undo_layer(cache->undo, r->due[d].layer);
  }
  return s;
}

/* Rows are as they were before the step. */
static void step_undo(const pyr_step_run *r) {
  for (int i = 0; i < r->count; i++) {
    if (r->caches[i]->undo) pyr_undo_restore(r->caches[i]->undo);
    else drop_marked(r->caches[i]);
  }
}

static pyr_status step_layer(pyr_step_run *r, int layer) {
  pyr_forward *f = &r->f;
  const pyr_model_config *c = &f->model->config;
  const pyr_layer *l = &f->model->layers[layer];
  int64_t width = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  pyr_status s = layer_project(f, l, f->x, r->turned ? f->rot + (int64_t)layer * r->count : f->pos,
                               r->count, true);
  for (int i = 0; i < r->count; i++) {
    pyr_lane_view *views = r->views + (int64_t)i * c->kv_heads;
    /* before the row is there */
    bool tracked = pyr_plan_track(r->caches[i], layer, &r->tracks[i]);
    get_views(r->caches[i], layer, views);
    r->rows[i] = (pyr_append){ .lanes = views, .k = f->k + i * kv, .v = f->v + i * kv,
                               .positions = f->pos + i, .n = 1 };
    r->attention[i] = (pyr_attention){ .out = f->att + i * width, .q = f->q + i * width,
                                       .q_pos = f->pos + i, .lanes = views, .n = 1,
                                           .window = c->window ? c->window[layer] : 0,
                                               .track = tracked ? &r->tracks[i] : NULL };
  }
  if (s == PYR_OK) s = f->be->store(f->be, r->rows, r->count, f->layout, c->kv_heads);
  for (int i = 0; i < r->count && s == PYR_OK; i++)
    add_rows(r->caches[i], layer, r->views + (int64_t)i * c->kv_heads, 1);
  if (s == PYR_OK)
    s = f->be->attention(f->be, r->attention, r->count, f->layout, c->heads, c->kv_heads,
                         f->model->scale);
  return s == PYR_OK ? layer_finish(f, l, f->x, f->att, r->count) : s;
}

/* From ids to logits. While operations are timed, each is done as it comes. */
static pyr_status step_layers(pyr_step_run *r, const pyr_work *work) {
  pyr_backend *be = r->f.be;
  const pyr_model *model = r->f.model;
  bool whole = be->step_begin && !be->profile;
  pyr_status s = whole ? be->step_begin(be, model, work, model->config.layers) : PYR_OK;
  if (s != PYR_OK) return s;
  s = be->embed(be, r->f.x, &model->embed, r->f.ids, r->count);
  for (int layer = 0; layer < model->config.layers && s == PYR_OK; layer++)
    s = step_layer(r, layer);
  if (s == PYR_OK) s = project_logits(&r->f, r->f.x, r->count);
  pyr_status ended = whole ? be->step_end(be, s == PYR_OK) : PYR_OK;
  return s == PYR_OK ? ended : s;
}

/* Ranks what all due plans judge; nothing moves yet. */
static pyr_status step_rank(pyr_step_run *r) {
  pyr_backend *be = r->f.be;
  char *verdict = r->verdicts, *host = r->verdicts_host;
  pyr_status s = be->fill(be, (float *)r->f.faults, NULL, r->due_count, 2, 0, 0.0f);
  for (int64_t d = 0; d < r->due_count && s == PYR_OK; d++) {
    size_t bytes;
    pyr_plan_turn *turn = &r->due[d].turn;
    turn->judge.more = 0;
    pyr_plan_turn_bytes(turn, &bytes);
    pyr_plan_turn_carve(turn, r->plan_work, verdict, r->plan_host, host);
    verdict += bytes;
    host += pyr_judge_verdict_bytes(turn->judge.cache);
    s = pyr_plan_turn_rank(turn, r->f.faults + d);
  }
  return s;
}

/* Whether all scores were numbers. The logits are there already, or come next: there is nothing
 * else to wait for. */
static pyr_status step_faults(const pyr_step_run *r) {
  pyr_status s = r->f.be->download(r->f.be, r->faults, r->f.faults,
                                   (size_t)r->due_count * sizeof *r->faults);
  for (int64_t d = 0; d < r->due_count && s == PYR_OK; d++)
    if (r->faults[d])
      s = pyr_plan_not_finite(r->caches[r->due[d].index], r->due[d].layer, "decode",
                              &r->due[d].plan.score);
  return s;
}

/* One token more, or (by -1) one less again. */
static void step_count(const pyr_step_run *r, int by) {
  int layers = r->f.model->config.layers;
  for (int i = 0; i < r->count; i++) {
    r->caches[i]->tokens += by;
    r->caches[i]->computed += by * layers;
    for (int layer = 0; layer < layers; layer++)
      r->caches[i]->states[layer].since += by, r->caches[i]->states[layer].unjudged += by;
  }
}

static pyr_status step_check(pyr_cache *const *caches, const int32_t *ids, int count) {
  pyr_pool *pool = caches[0]->pool;
  for (int i = 0; i < count; i++) {
    if (caches[i]->pool->model != pool->model)
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "sequence %d of the step belongs to another model", i + 1);
    if (caches[i]->pool->layout.dtype != pool->layout.dtype)
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "sequence %d of the step has another cache dtype", i + 1);
    for (int j = 0; j < i; j++)
      if (caches[i] == caches[j])
        return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                     "sequences %d and %d of the step are the same", j + 1, i + 1);
    if (caches[i]->tokens == 0)
      return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                   "a step needs a cache that has read a prompt");
    pyr_status s = check_tokens(caches[i], ids + i, 1);
    if (s != PYR_OK) return s;
  }
  return PYR_OK;
}

/* To the host; at once where the caller's vectors follow each other, as a device is waited for each
 * time. */
static pyr_status step_logits(const pyr_step_run *r, float *const *logits) {
  int64_t vocab = r->f.model->config.vocab;
  pyr_status s = PYR_OK;
  for (int i = 0, run; logits && i < r->count && s == PYR_OK; i += run) {
    run = 1;
    if (!logits[i]) continue;
    while (i + run < r->count && logits[i + run] == logits[i] + run * vocab) run++;
    s = r->f.be->download(r->f.be, logits[i], r->f.logits + i * vocab,
                          (size_t)(run * vocab) * sizeof(float));
  }
  return s;
}

pyr_status pyr_step(pyr_cache *const *caches, const int32_t *ids, int count, float *const *logits) {
  return pyr_step_pick(caches, ids, count, logits, NULL, NULL);
}

pyr_status pyr_step_pick(pyr_cache *const *caches, const int32_t *ids, int count,
                         float *const *logits, pyr_sampler *const *samplers, int32_t *picks) {
  if (count < 1) return PYR_OK;
  pyr_pool *pool = caches[0]->pool;
  pyr_runtime *rt = pool->rt;
  pyr_backend *be = pool->be;
  const pyr_model *model = pool->model;
  const pyr_model_config *c = &model->config;
  pyr_step_run r = { .caches = caches, .count = count,
                     .f = { .model = model, .be = be, .layout = pool->layout,
                            .exact = PYR_LINEAR_EXACT } };
  int64_t rows = 0, turned = 0;
  size_t most = 0, verdicts = 0;
  int32_t *pos = NULL, *rot = NULL;
  pyr_status s = pyr_runtime_here(rt);
  if (s == PYR_OK) s = step_check(caches, ids, count);
  for (int i = 0; samplers && i < count; i++) picks[i] = -1;
  if (s == PYR_OK && samplers) s = pyr_pick_prepare(be, samplers, count, c->vocab);
  if (s != PYR_OK) return s;
  for (int i = 0; i < count; i++)
    for (int layer = 0; layer < c->layers; layer++) {
      rows = pyr_max(rows, pyr_cache_layer_rows(caches[i], layer) + 1);
      if (pyr_plan_steps_left(caches[i], layer) == 1) r.due_count++;
      r.turned = r.turned || caches[i]->states[layer].compact;
    }
  if (r.turned) turned = (int64_t)c->layers * count;

  /* host arrays in one block: due plans, new rows, attention calls, tracks, views, what plans take,
   * positions */
  size_t due_bytes = (size_t)r.due_count * sizeof *r.due,
      attention_bytes = (size_t)count * sizeof *r.attention;
  size_t row_bytes = (size_t)count * sizeof *r.rows, track_bytes = (size_t)count * sizeof *r.tracks;
  size_t view_bytes = (size_t)count * (size_t)c->kv_heads * sizeof *r.views;
  size_t verdict_bytes = (size_t)r.due_count * pyr_judge_verdict_bytes(caches[0]),
      fault_bytes = (size_t)r.due_count * sizeof *r.faults;
  size_t plan_bytes = r.due_count ? pyr_judge_host_bytes(caches[0]) : 0,
      pos_bytes = (size_t)count * sizeof *pos;
  size_t pick_bytes = samplers ? pyr_pick_bytes(count) : 0;
  size_t host_bytes = pick_bytes + due_bytes + row_bytes + attention_bytes + track_bytes
      + view_bytes + plan_bytes + verdict_bytes + pos_bytes + fault_bytes;
  host_bytes += (size_t)turned * sizeof *rot;
  char *host = pyr_alloc(rt, host_bytes);
  if (!host) return pyr_nomem(rt, host_bytes, "a step");
  r.due = (pyr_due *)(host + pick_bytes);
  r.rows = (pyr_append *)(host + pick_bytes + due_bytes);
  r.attention = (pyr_attention *)((char *)r.rows + row_bytes);
  r.tracks = (pyr_track *)((char *)r.attention + attention_bytes);
  r.views = (pyr_lane_view *)((char *)r.tracks + track_bytes);
  r.plan_host = (char *)r.views + view_bytes;
  r.verdicts_host = (char *)r.plan_host + plan_bytes;
  pos = (int32_t *)(r.verdicts_host + verdict_bytes);
  r.faults = pos + count;
  rot = r.faults + r.due_count;
  for (int i = 0; i < count; i++) {
    pos[i] = (int32_t)caches[i]->tokens;
    mark_lanes(caches[i]);
  }
  for (int64_t i = 0; i < turned; i++) {
    const pyr_cache *cache = caches[i % count];
    int layer = (int)(i / count);
    rot[i] = cache->states[layer].compact ? (int32_t)pyr_cache_layer_rows(cache, layer)
        : pos[i % count];
  }

  void *block = NULL;
  size_t block_bytes = carve(&r.f, NULL, count, count, count, turned, r.due_count);
  pyr_work work = work_of(model, count, rows, count);
  s = step_ask(&r);
  for (int64_t d = 0; d < r.due_count && s == PYR_OK; d++) {
    size_t bytes, own;
    pyr_plan_turn_begin(&r.due[d].turn, caches[r.due[d].index], r.due[d].layer, &r.due[d].plan,
                        true, 1);
    bytes = pyr_plan_turn_bytes(&r.due[d].turn, &own);
    if (bytes > most) most = bytes;
    verdicts += own;
  }
  if (s == PYR_OK) s = be->reserve(be, &work);
  if (s == PYR_OK) s = pyr_pool_work(pool, block_bytes + most + verdicts, &block);
  if (s == PYR_OK) s = step_reserve(&r);
  if (s == PYR_OK) s = step_keep_losers(&r);
  if (s != PYR_OK) goto undo;
  carve(&r.f, block, count, count, count, turned, r.due_count);
  r.plan_work = (char *)block + block_bytes;
  r.verdicts = (char *)r.plan_work + most;
  s = be->upload(be, r.f.ids, ids, (size_t)count * sizeof *ids);
  if (s == PYR_OK) s = be->upload(be, r.f.pos, pos, pos_bytes);
  if (s == PYR_OK && r.turned) s = be->upload(be, r.f.rot, rot, (size_t)turned * sizeof *rot);
  if (s == PYR_OK) s = step_layers(&r, &work);
  step_count(&r, 1);
  if (s == PYR_OK && r.due_count) s = step_rank(&r);
  if (s == PYR_OK) s = step_logits(&r, logits);
  if (s == PYR_OK && r.due_count) s = step_faults(&r);
  if (s != PYR_OK) {
    step_count(&r, -1);
    goto undo;
  }
  for (int64_t d = 0; d < r.due_count && s == PYR_OK; d++) s = pyr_plan_turn_evict(&r.due[d].turn);
  bool kept = r.due_count > 0 && caches[r.due[0].index]->undo;
  if (s != PYR_OK && kept) {
    step_count(&r, -1);
    goto undo;
  }
  for (int i = 0; i < count && kept; i++) pyr_undo_keep(caches[i]->undo);
  if (s == PYR_OK && samplers)
    s = pyr_pick_all(be, samplers, r.f.logits, c->vocab, count, picks, host);
  pyr_release(rt, host, host_bytes);
  return s;

undo:
  step_undo(&r);
  pyr_release(rt, host, host_bytes);
  return s;
}
