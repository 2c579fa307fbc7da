/* probe.c — see probe.h.
 *
 * The idea (KVzip, arXiv 2505.23416). What of a text will be asked for is not known; but whoever
 * could repeat the text from the rows that are kept could answer anything about it. So the model
 * reads the text once more, over the rows of its first reading, and a row matters by the most that
 * any query of the repetition, in any query head of its K/V head, looks at it. A long text is
 * repeated in blocks, each led by a few words that say where it is:
 *
 *     rows       [ a b c d e f g h i j ]              ten tokens, read before
 *     pass 1     "repeat:"             a b c d        judges rows a to d
 *     pass 2     "go on after" c d     e f g h        judges rows e to h
 *     pass 3     "go on after" g h     i j            judges rows i and j
 *
 * All queries of a pass count, those of its leading words, too. They attend to all rows that are
 * there, as in any reading; what is tracked is their attention among all of these, or (KVzip) among
 * the cache's first rows, the block's and the pass's own. For the latter the rows of that choice
 * are copied together once a layer, and attention is computed there a second time, for its
 * denominators alone:
 *
 *     lane       s s . . . . [ block ] . . . .  p p p p         p: the pass's own
 *     copy       s s [ block ] p p p p                          lse of this; mass over [ block ]
 *
 * Where a block is all there is, the copy would be the lane, and is not made. */
#include "model/probe.h"
#include "base/arena.h"
#include "model/forward.h"
#include "model/stages.h"
#include "policy/score.h"

/* Rows of a lane that a pass judges, counted from the lane's end before the pass's own rows: of a
 * prompt of 10 tokens the block 4 .. 8 is those from 6 to 2 rows before the end. */
typedef struct pyr_judged { int64_t from, to; } pyr_judged;

/* Rows of the choice beside the lanes: working memory of the call, as activations are. */
typedef struct pyr_copies {
  void **pages;                    /* host [heads * page_count] */
  char *data;                      /* backend memory [heads * page_count pages] */
  int32_t *positions;              /* [heads * room] */
  int32_t *idx;                    /* [room] */
  int64_t page_count, room;        /* of a lane; 0: no copies */
} pyr_copies;

typedef struct pyr_pass {
  pyr_cache *cache;
  pyr_forward f;
  const pyr_score_op *track;
  const pyr_prompt_source *prompt; /* where tokens below 0 are found: -1 - i is its i-th row */
  const int32_t *tokens;           /* host [n] */
  int64_t n;
  int32_t position;                /* of the first */
  pyr_judged judged;
  int64_t sinks;                   /* of the choice; -1: among all rows */
  int64_t done, total;             /* token-layers, for progress */

  float *given;                    /* [heads, stride] what queries gave to judged rows */
  float *work;                     /* scratch of the reduction over heads */
  int64_t stride;
  pyr_copies copies;
  pyr_lane_view *views, *chosen;   /* host [kv_heads]: of the lanes; of the rows that count */
  pyr_lane_view *below;            /* host [kv_heads] scratch, of lower tiers' lanes */
  pyr_range *ranges;               /* host [kv_heads]: the judged ones among the latter */
  int64_t *rows;                   /* host [kv_heads]: of the layer's lanes before the pass */
} pyr_pass;

static int64_t behind(int64_t rows, int64_t from_end) { return pyr_max(rows - from_end, 0); }

/* The judged rows of a lane of so many: counted from the end, as what lanes held before the prompt
 * may differ, and the prompt's rows are the last of each. Of lanes of 14 and 12 rows, 6 to 2 before
 * the end are 8 to 12 and 6 to 10. A lane that a sliding window has cut has fewer of them, or none.
 */
static pyr_range judged_of(const pyr_pass *p, int64_t rows) {
  return (pyr_range){ .begin = behind(rows, p->judged.from), .end = behind(rows, p->judged.to) };
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void layout_host(pyr_pass *p, pyr_arena *host) {
  int32_t heads = p->cache->heads;
  PYR_PART(host, p->views, heads);
  PYR_PART(host, p->chosen, heads);
  PYR_PART(host, p->below, heads);
  PYR_PART(host, p->ranges, heads);
  PYR_PART(host, p->rows, heads);
  PYR_PART(host, p->copies.pages, heads * p->copies.page_count);
}

static void layout(pyr_pass *p, pyr_arena *arena) {
  const pyr_pool *pool = p->cache->pool;
  int64_t chunk = pyr_min(p->n, PYR_CHUNK), pages = p->cache->heads * p->copies.page_count;
  pyr_extent extent = { .tokens = p->n, .chunk = chunk, .turned = chunk,
                        .tiers = p->cache->below != NULL };
  pyr_forward_layout(&p->f, &extent, arena);
  PYR_PART(arena, p->given, pool->model->config.heads * p->stride);
  PYR_PART(arena, p->work, pyr_score_scratch(p->cache, 1, p->stride));
  PYR_PART(arena, p->copies.data, pages * (int64_t)pool->page_bytes[PYR_PAGE_PLAIN]);
  PYR_PART(arena, p->copies.positions, p->cache->heads * p->copies.room);
  PYR_PART(arena, p->copies.idx, p->copies.room);
}

/* The longest of all lanes says how much: of its judged rows, and of those copied. */
static pyr_status take_memory(pyr_pass *p, pyr_arena *block, pyr_arena *host) {
  pyr_cache *cache = p->cache;
  pyr_backend *be = p->f.be;
  pyr_arena count = { 0 }, host_count = { 0 };
  int64_t longest = pyr_cache_longest(cache), chunk = pyr_min(p->n, PYR_CHUNK);
  pyr_range judged = judged_of(p, longest);
  p->stride = pyr_max(judged.end - judged.begin, 1);
  if (p->sinks >= 0) {
    int64_t rows = pyr_min(p->sinks, judged.begin) + p->stride + p->n;
    p->copies.page_count = (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS;
    p->copies.room = p->copies.page_count * PYR_PAGE_ROWS;
  }
  layout_host(p, &host_count);
  host->block = pyr_alloc_zero(cache->pool->rt, host_count.used);
  if (!host->block) return pyr_nomem(cache->pool->rt, host_count.used, "a probe");
  layout_host(p, host);
  layout(p, &count);
  block->block = be->alloc(be, count.used);
  if (!block->block) return pyr_nomem(cache->pool->rt, count.used, "the activations of a probe");
  layout(p, block);
  for (int64_t i = 0; i < cache->heads * p->copies.page_count; i++)
    p->copies.pages[i] = p->copies.data + (size_t)i * cache->pool->page_bytes[PYR_PAGE_PLAIN];
  const pyr_model *model = p->f.model;
  pyr_work work = pyr_forward_work(model, chunk, longest + p->n, 1);
  PYR_TRY(pyr_ranks_reserve(model->ranks, chunk * model->config.width));
  return be->reserve(be, &work);
}

/* ---- one layer ------------------------------------------------------------------------------- */

/* Tokens become the residual stream, run by run of ids, or of rows of embeddings. */
static pyr_status embed(pyr_pass *p) {
  pyr_forward *f = &p->f;
  int32_t width = f->model->config.width;
  for (int64_t at = 0, n; at < p->n; at += n) {
    const int32_t *tokens = p->tokens + at;
    float *x = f->x + at * width;
    for (n = 1; at + n < p->n && (tokens[n] < 0) == (tokens[0] < 0)
         && (tokens[0] >= 0 || tokens[n] == tokens[0] - n);) n++;
    if (tokens[0] < 0) {
      const float *rows = p->prompt->embeddings + (int64_t)(-1 - tokens[0]) * width;
      PYR_TRY(f->be->upload(f->be, x, rows, (size_t)(n * width) * sizeof *rows));
      continue;
    }
    PYR_TRY(f->be->upload(f->be, f->ids, tokens, (size_t)n * sizeof *tokens));
    PYR_TRY(pyr_forward_embed(f->be, f->model, x, f->ids, n));
  }
  return PYR_OK;
}

/* Whether the rows that count are all rows of every lane of the layer: of 70 rows with 4 sinks,
 * where the block is 4 .. 70 or 0 .. 70. Then the forward pass's own denominators are those wanted.
 * */
static bool counts_all(const pyr_pass *p) {
  if (p->sinks < 0) return true;
  for (int head = 0; head < p->cache->heads; head++) {
    pyr_range judged = judged_of(p, p->rows[head]);
    if (judged.begin > p->sinks || judged.end < p->rows[head]) return false;
  }
  return true;
}

/* Copies the rows of the choice, sinks and block, of each lane; views are of the lanes. */
static pyr_status copy_chosen(pyr_pass *p) {
  pyr_backend *be = p->f.be;
  const pyr_copies *c = &p->copies;
  for (int head = 0; head < p->cache->heads; head++) {
    pyr_range judged = judged_of(p, p->rows[head]);
    int64_t sinks = pyr_min(p->sinks, judged.begin), block = judged.end - judged.begin;
    pyr_lane_view to = { .pages = c->pages + head * c->page_count,
                         .positions = c->positions + head * c->room, .rows = sinks + block };
    pyr_lane_view from = p->views[head];
    from.born = NULL;                              /* only K as it lies, and V */
    PYR_TRY(be->iota(be, c->idx, 0, sinks));
    PYR_TRY(be->iota(be, c->idx + sinks, (int32_t)judged.begin, block));
    PYR_TRY(be->gather(be, &to, &from, 1, p->f.layout, c->idx, sinks + block));
    p->chosen[head] = to;
    p->ranges[head] = (pyr_range){ .begin = sinks, .end = sinks + block };
  }
  return PYR_OK;
}

/* Products: those of attention over the judged rows, once more. Adds what queries [at, at + a->n)
 * of the pass gave to judged rows; a->lse is of the rows that
 * count. A ramp, and `queries`, count from the pass's end. */
static pyr_status add_given(pyr_pass *p, const pyr_attention *a, int64_t at) {
  pyr_cache *cache = p->cache;
  const pyr_model_config *c = &p->f.model->config;
  int64_t queries = p->track->n > 0 ? pyr_min(p->track->n, p->n) : p->n;
  int64_t skip = pyr_max(0, p->n - queries - at);
  if (skip >= a->n) return PYR_OK;
  pyr_weighting w = { .queries = 0, .ramp = 1.0f };
  if (p->track->n > 0)
    w = (pyr_weighting){ .queries = (int32_t)queries, .ramp = p->track->x, .due = p->n - 1 };
  pyr_mass m = { .out = p->given, .stride = p->stride, .n = a->n - skip,
                 .q = a->q + skip * c->heads * c->head_dim, .lse = a->lse + skip * c->heads,
                 .q_pos = a->q_pos + skip, .lanes = a->lanes, .ranges = p->ranges,
                 .window = a->window, .reduce = p->track->a == PYR_MAX ? PYR_MAX : PYR_SUM,
                 .weighting = w, .by_place = true, .place = (int32_t)(at + skip), .cap = a->cap,
                 .slopes = a->slopes };
  return p->f.be->mass(p->f.be, &m, p->f.layout, c->heads, cache->heads, p->f.model->scale);
}

/* Tokens [at, at + n) of the pass through the layer. In the last one only their queries are wanted.
 */
static pyr_status probe_chunk(pyr_pass *p, int layer, int64_t at, int64_t n, bool apart) {
  pyr_forward *f = &p->f;
  pyr_backend *be = f->be;
  pyr_cache *cache = p->cache;
  const pyr_model_config *c = &f->model->config;
  float *x = f->x + at * c->width;
  bool last = layer == c->layers - 1;
  const int32_t *rot = f->pos + at;
  const float *in;
  pyr_runtime *rt = cache->pool->rt;
  PYR_TRY(pyr_model_agree(f->model, pyr_progress(rt, p->done + layer * p->n + at, p->total)));
  if (cache->states[layer].compact) {
    PYR_TRY(be->iota(be, f->rot, (int32_t)pyr_cache_layer_rows(cache, layer), n));
    rot = f->rot;
  }
  PYR_TRY(pyr_layer_project(f, layer, x, rot, n, true, &in));
  pyr_layer_views(cache, layer, p->views);
  pyr_append rows = { .lanes = p->views, .k = f->k, .v = f->v, .positions = f->pos + at, .n = n };
  PYR_TRY(be->store(be, &rows, 1, f->layout, c->kv_heads));
  pyr_layer_add_rows(cache, layer, p->views, n);
  if (apart) {
    rows.lanes = p->chosen;
    PYR_TRY(be->store(be, &rows, 1, f->layout, c->kv_heads));
    for (int head = 0; head < cache->heads; head++) p->chosen[head].rows += n;
  }
  pyr_attention a = { .out = f->att, .lse = f->lse, .q = f->q, .q_pos = f->pos + at,
                      .lanes = apart ? p->chosen : p->views, .n = n,
                      .window = c->window ? c->window[layer] : 0, .cap = c->score_cap,
                      .slopes = f->model->slopes, .sinks = f->model->layers[layer].sinks };
  pyr_attention lower;
  if (apart)
    PYR_TRY(be->attention(be, &a, 1, f->layout, c->heads, c->kv_heads, f->model->scale));
  else PYR_TRY(pyr_layer_attend(f, layer, &a, &cache, 1, 1, NULL, NULL, &lower, p->below));
  PYR_TRY(add_given(p, &a, at));
  if (last) return PYR_OK;
  if (apart) {
    a.lanes = p->views;
    PYR_TRY(pyr_layer_attend(f, layer, &a, &cache, 1, 1, NULL, NULL, &lower, p->below));
  }
  return pyr_layer_finish(f, &f->model->layers[layer], x, 0, n);
}

/* What the heads of a lane gave becomes the lane's numbers: as a score of one signal would, which
 * is how they are reduced. */
static pyr_status keep_given(pyr_pass *p, int layer) {
  pyr_cache *cache = p->cache;
  pyr_backend *be = p->f.be;
  const pyr_score alone = { 1, { *p->track } };
  pyr_signals signals = { .cache = cache, .layer = layer, .stride = p->stride };
  signals.attention[0] = p->given;
  signals.queries[0] = p->track->n > 0 ? pyr_min(p->track->n, p->n) : p->n;
  for (int head = 0; head < cache->heads; head++) {
    pyr_range judged = judged_of(p, p->rows[head]);
    float *numbers;
    signals.end = judged.end - judged.begin;
    if (signals.end <= 0) continue;
    PYR_TRY(pyr_score_eval(&alone, &signals, head, 1, p->work, &numbers));
    PYR_TRY(be->copy(be, pyr_cache_lane_probed(cache, layer, head) + judged.begin, numbers,
                     (size_t)signals.end * sizeof *numbers));
  }
  return PYR_OK;
}

static pyr_status layer_run(pyr_pass *p, int layer) {
  pyr_cache *cache = p->cache;
  bool apart = !counts_all(p);
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++)
    status = pyr_lane_reserve(cache, pyr_cache_lane(cache, layer, head), p->n, false);
  PYR_TRY(pyr_model_agree(p->f.model, status));
  PYR_TRY(pyr_lanes_list(cache, pyr_cache_lane(cache, layer, 0), cache->heads));
  pyr_layer_views(cache, layer, p->views);
  for (int head = 0; head < cache->heads; head++) p->ranges[head] = judged_of(p, p->rows[head]);
  if (apart) PYR_TRY(copy_chosen(p));
  PYR_TRY(pyr_fill_zeros(p->f.be, p->given, p->f.model->config.heads * p->stride));
  for (int64_t at = 0; at < p->n; at += PYR_CHUNK)
    PYR_TRY(probe_chunk(p, layer, at, pyr_min(PYR_CHUNK, p->n - at), apart));
  return keep_given(p, layer);
}

/* The pass's rows leave, whatever came of it, before the next layer's come: of 30 layers, a pass of
 * 2,060 tokens holds 2,060 rows of one, and each lane gives its pages back as it got them. */
static pyr_status probe_layer(pyr_pass *p, int layer) {
  pyr_cache *cache = p->cache;
  for (int head = 0; head < cache->heads; head++)
    p->rows[head] = pyr_cache_lane(cache, layer, head)->rows;
  pyr_status status = layer_run(p, layer);
  for (int head = 0; head < cache->heads; head++)
    pyr_lane_truncate(cache, pyr_cache_lane(cache, layer, head), p->rows[head]);
  return status;
}

/* ---- one pass -------------------------------------------------------------------------------- */

static pyr_status run_pass(pyr_pass *p) {
  pyr_cache *cache = p->cache;
  pyr_backend *be = p->f.be;
  pyr_arena block = { 0 }, host = { 0 };
  const pyr_model *model = p->f.model;
  int64_t n = p->n;
  pyr_status status = pyr_ranks_agree(cache->pool->rt, take_memory(p, &block, &host));
  bool agreed = status == PYR_OK;
  if (agreed && pyr_model_begins(model)) {
    status = embed(p);
    if (status == PYR_OK) status = be->iota(be, p->f.pos, p->position, p->n);
    if (status == PYR_OK) status = pyr_forward_add_positions(&p->f, p->f.pos, p->n);
  }
  if (agreed && !pyr_model_begins(model))
    status = pyr_stage_receive(model, p->f.x, p->f.pos, p->n, &n);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    if (pyr_model_has(model, layer)) status = probe_layer(p, layer);
  if (agreed) {
    status = pyr_stage_settle(model, status);
    status = pyr_stage_send(model, status, p->f.x, p->f.pos, p->n);
  }
  if (status == PYR_OK) cache->computed += p->n * model->own.count;   /* a prefill sums stages' */
  be->release(be, block.block, block.used);
  pyr_release(cache->pool->rt, host.block, host.used);
  return status;
}

static pyr_pass pass_over(pyr_cache *cache, const pyr_score_op *track) {
  const pyr_model *model = cache->pool->model;
  return (pyr_pass){ .cache = cache, .track = track, .sinks = -1,
                     .f = { .model = model, .be = cache->pool->be,
                            .layout = cache->pool->layout } };
}

/* Zeros for all rows held, in the place of what was there, which is kept until the new numbers are
 * whole: a probe that fails leaves those of the one before. */
static pyr_status begin_numbers(pyr_cache *cache, pyr_probed **before) {
  pyr_runtime *rt = cache->pool->rt;
  int64_t lanes = pyr_cache_lane_count(cache);
  size_t bytes = (size_t)lanes * sizeof(int64_t);
  int64_t *rows = pyr_alloc(rt, bytes);
  pyr_probed *fresh = NULL;
  if (!rows) return pyr_nomem(rt, bytes, "a probe");
  for (int64_t i = 0; i < lanes; i++) rows[i] = pyr_cache_lanes(cache)[i].rows;
  pyr_status status = pyr_probed_new(cache->pool, rows, lanes, &fresh);
  pyr_release(rt, rows, bytes);
  if (status != PYR_OK) return status;
  *before = cache->probed;
  cache->probed = fresh;
  return PYR_OK;
}

/* The one of two that is not wanted any more goes: the new numbers, or those before. */
static pyr_status end_numbers(pyr_cache *cache, pyr_probed *before, pyr_status status) {
  pyr_probed_free(status == PYR_OK ? before : cache->probed);
  if (status != PYR_OK) cache->probed = before;
  return status;
}

pyr_status pyr_cache_probe(pyr_cache *cache, const int32_t *ids, int64_t n,
                           const pyr_score_op *track) {
  pyr_runtime *rt = cache->pool->rt;
  const pyr_model *model = cache->pool->model;
  pyr_score alone = { 1, { *track } };
  pyr_probed *before;
  int64_t computed = cache->computed;
  int depth;
  const char *fault = pyr_score_check(&alone, &depth);
  PYR_TRY(pyr_runtime_here(rt));
  if (!fault && pyr_signal_is_attention(track) && track->a > PYR_MAX)
    fault = "keeps sums or maxima over queries, no variance and no entropy";
  if (fault || !pyr_signal_is_attention(track))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "probe: track %s", fault ? fault
                                 : "is no attention, which is what a probe can track");
  if (n < 1 || cache->tokens == 0)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, n < 1 ? "probe: it needs at least one token"
                                 : "probe: the cache holds nothing yet");
  PYR_TRY(pyr_forward_check_ids(rt, &model->config, ids, n));
  PYR_TRY(pyr_forward_check_room(cache, n));
  pyr_pass p = pass_over(cache, track);
  p.tokens = ids, p.n = n, p.position = (int32_t)cache->tokens;
  p.judged = (pyr_judged){ INT64_MAX, 0 };
  p.total = n * cache->layers;
  pyr_ranks_begin(rt);
  pyr_status status = begin_numbers(cache, &before);
  bool begun = status == PYR_OK;
  status = pyr_ranks_agree(rt, status);
  if (status == PYR_OK) status = run_pass(&p);
  status = pyr_ranks_end(rt, status);
  cache->computed = computed + (status == PYR_OK ? p.total : 0);
  return begun ? end_numbers(cache, before, status) : status;
}

/* ---- a prompt, block by block ---------------------------------------------------------------- */

/* Tokens of a lead in front of a block at `at`: -k stands for k tokens, or as many as there are. */
static int64_t lead_tokens(const int32_t *lead, int64_t count, int64_t at) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) n += lead[i] < 0 ? pyr_min(-(int64_t)lead[i], at) : 1;
  return n;
}

/* Of the context, behind the prompt of a prefill that is running: as pyr_forward_check_room counts,
 * by rows where a layer is compacted, of those that lanes held when it began. */
static int64_t room_behind(const pyr_cache *cache, int64_t n) {
  const pyr_model_config *c = &cache->pool->model->config;
  int64_t before = c->positions ? cache->tokens : 0;
  for (int layer = 0; layer < cache->layers; layer++)
    before = pyr_max(before, !cache->states[layer].compact ? cache->tokens
                     : pyr_model_has(cache->pool->model, layer)
                     ? pyr_cache_lane(cache, layer, 0)->mark : cache->states[layer].more);
  return c->context - before - n;
}

/* How many tokens a pass may repeat, so that it fits the context behind the prompt. Of a context of
 * 8,192 and a prompt of 7,000 with leads of 20 tokens, 1,172 are left: blocks of 2,048 become six
 * of 1,172, of which the last has 1,140. A block of 0 needs room for its lead alone. */
static pyr_status block_that_fits(const pyr_cache *cache, const pyr_preparation *how, int64_t n,
                                  int64_t *block) {
  int64_t longest = pyr_max(lead_tokens(how->first, how->first_count, 0),
                            lead_tokens(how->lead, how->lead_count, n));
  int64_t room = room_behind(cache, n) - longest;
  *block = pyr_min(pyr_min(how->block, n), room);
  if (room >= (how->block > 0 ? 1 : 0)) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_CONTEXT,
                               "policy %s repeats the prompt behind it, and of the model's context "
                               "of %d nothing is left after %lld tokens",
                               cache->policy.name ? cache->policy.name : "?",
                               (int)cache->pool->model->config.context,
                               (long long)(cache->tokens + n));
}

pyr_status pyr_probe_tokens(const pyr_cache *cache, const pyr_preparation *how, int64_t n,
                            int64_t *tokens) {
  int64_t block;
  PYR_TRY(block_that_fits(cache, how, n, &block));
  *tokens = lead_tokens(how->first, how->first_count, 0) + (how->block > 0 ? n : 0);
  for (int64_t at = block; how->block > 0 && at < n; at += block)
    *tokens += lead_tokens(how->lead, how->lead_count, at);
  return PYR_OK;
}

/* The prompt's i-th token, as a pass reads it: an id, or the place of a row of embeddings, told
 * from ids by its sign: -1 is the first row, -2 the second. */
static int32_t token_of(const pyr_prompt_source *prompt, int64_t i) {
  return prompt->ids ? prompt->ids[i] : (int32_t)(-1 - i);
}

/* Writes a pass's tokens: the lead, and the block of `count` at `at`. */
static int64_t compose(int32_t *out, const int32_t *lead, int64_t leads,
                       const pyr_prompt_source *prompt, int64_t at, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < leads; i++) {
    int64_t copied = lead[i] < 0 ? pyr_min(-(int64_t)lead[i], at) : 0;
    for (int64_t k = at - copied; k < at && lead[i] < 0; k++) out[n++] = token_of(prompt, k);
    if (lead[i] >= 0) out[n++] = lead[i];
  }
  for (int64_t k = 0; k < count; k++) out[n++] = token_of(prompt, at + k);
  return n;
}

/* A block of 0: one pass, of the lead alone, which judges the whole prompt. */
static pyr_status passes(pyr_cache *cache, const pyr_preparation *how,
                         const pyr_prompt_source *prompt, int64_t block, int32_t *tokens,
                         int64_t done, int64_t total) {
  for (int64_t at = 0, count; at < prompt->n; at += count) {
    bool first = at == 0;
    pyr_pass p = pass_over(cache, &how->track);
    count = how->block > 0 ? pyr_min(block, prompt->n - at) : prompt->n;
    p.prompt = prompt, p.tokens = tokens;
    p.n = compose(tokens, first ? how->first : how->lead,
                  first ? how->first_count : how->lead_count, prompt, at,
                  how->block > 0 ? count : 0);
    p.position = (int32_t)(cache->tokens + prompt->n);
    p.judged = (pyr_judged){ prompt->n - at, prompt->n - at - count };
    p.sinks = how->among == PYR_AMONG_BLOCK ? how->sinks : -1;
    p.done = done, p.total = total;
    PYR_TRY(run_pass(&p));
    done += p.n * cache->layers;
  }
  return PYR_OK;
}

pyr_status pyr_probe_prompt(pyr_cache *cache, const pyr_preparation *how,
                            const pyr_prompt_source *prompt, int64_t done, int64_t total) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_probed *before;
  int64_t block, most;
  PYR_TRY(block_that_fits(cache, how, prompt->n, &block));
  most = pyr_max(lead_tokens(how->first, how->first_count, 0),
                 lead_tokens(how->lead, how->lead_count, prompt->n)) + pyr_max(block, 0);
  size_t bytes = (size_t)most * sizeof(int32_t);
  int32_t *tokens = pyr_alloc(rt, bytes);
  if (!tokens) return pyr_nomem(rt, bytes, "a preparing pass");
  pyr_status status = begin_numbers(cache, &before);
  if (status == PYR_OK)
    status = end_numbers(cache, before, passes(cache, how, prompt, block, tokens, done, total));
  pyr_release(rt, tokens, bytes);
  return status;
}
