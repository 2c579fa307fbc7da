/* forward.c — the transformer, written once, over the backend's operations.
 *
 * Prefill is layer-major: a layer runs over all tokens still alive, in chunks of PYR_CHUNK, before
 * the next one begins. That is what lets a plan hand only its survivors on: deeper layers then
 * compute attention, MLP and K/V for fewer tokens. Between layers only the residual stream lives,
 * [tokens, width]; everything else is a chunk long, whatever the prompt's length. A decode step is
 * one pass over `count` sequences of one token each, which read every weight once.
 *
 * One layer; what stands in brackets a model has or not, as its configuration says
 * (pyr_model_config in pyramid.h). Without any of it, it is Llama's:
 *     h = [norm(x)];  q, k, v = h W [+ b];  [q, k = norm(q), norm(k)];  q, k = [rope](q, k)
 *     store k, v;  x += [scale *] [norm](attention(q, rows, [cap, slopes, sinks]) W_o [+ b])
 *     h = [norm(x)];  x += [scale *] [norm](mlp(h))
 *     mlp(h) = (act(h W_gate) [*] [h W_up]) W_down [+ b]
 *
 * or in parallel, where both halves begin at the x that the layer was given. A layer may have many
 * MLPs, its experts: then mlp(h) is the weighted sum of those few that a router chooses for the
 * token, [and of one that all tokens share, weighted by sigmoid(h W_shared_router)].
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
 * A step is pyr_step_pick, in four phases: refuse what cannot be done; host memory; ask, reserve,
 * compute and rank, all or nothing (step_run); evict and sample.
 *
 * Positions. A token has the position at which it was read, by which rows are told apart, masked
 * and tracked. Its q and k are rotated to the same position, but in layers whose keys were
 * compacted (pyr_layer_state): there to the number of rows before it. The model's context bounds
 * the positions that are rotated to.
 *
 * Failure. Plans are asked for before anything is touched; memory is reserved before anything is
 * computed. A failed prefill puts older rows back (undo.h), or drops its rows again where no
 * older row changes; a failed step drops its row. After its reservation a step can fail only if
 * the device does; then rows are as before, but what was tracked of them may have counted the
 * step's attention. */
#include "model/model.h"
#include "sample/sample_batch.h"
#include "policy/evict.h"
#include "policy/policy.h"
#include "cache/undo.h"

#include <math.h>

/* Tokens of a chunk: enough that products are bound by arithmetic and not by reading weights,
 * and few enough that activations stay small. Of width 576, 9 heads of 64 and an MLP of 1,536, a
 * chunk takes 512 * (576 + 576 + 2 * 192 + 576 + 9 + 2 * 1,536) * 4 bytes, 10 MiB; the residual
 * stream, all tokens of it, 2,304 bytes a token. */
enum { PYR_CHUNK = 512 };

typedef struct pyr_forward {       /* the activations of one chunk, backend memory */
  const pyr_model *model;
  pyr_backend *be;
  pyr_layout layout;
  float *x;                        /* [tokens, width] the residual stream */
  float *h;                        /* [chunk, width] normed */
  float *half;                     /* [chunk, width] what half a layer adds, where it is normed or
                                      scaled first */
  float *q;                        /* [chunk, heads, head_dim] */
  float *k, *v;                    /* [chunk, kv_heads, head_dim] */
  float *att;                      /* [chunk, heads, head_dim] */
  float *lse;                      /* [chunk, heads] */
  float *gate, *up;                /* [chunk, ff], of plain or shared MLPs */
  float *router;                   /* [chunk, experts] logits of a token's router, … */
  int32_t *chosen;                 /* [chunk, experts_used] … what it chooses, and … */
  float *weights;                  /* [chunk, experts_used] … with what weights */
  float *share;                    /* [chunk] logits of how much of the shared expert there is */
  float *logits;                   /* [logit_rows, vocab] */
  int32_t *ids, *pos;              /* [tokens] */
  int32_t *rot;  /* [turned] positions that q and k are rotated to, where they are not `pos` */
  int32_t *faults;                 /* [faults] by plan: 1 where a score was no number */
  int exact;                       /* PYR_LINEAR_EXACT in a decode step, else 0 */
} pyr_forward;

/* What the activations are of: all tokens, those of a chunk, those whose logits are wanted. */
typedef struct pyr_extent { int64_t tokens, chunk, logit_rows, turned, faults; } pyr_extent;

/* Whether something happens to what half a layer made before it joins the residual stream. */
static bool adds_apart(const pyr_model_config *c) {
  return c->norm_place != PYR_NORM_BEFORE || c->residual_scale != 1;
}

/* The widest MLP that is no expert's: what an expert widens lies in scratch of the backend's, where
 * it may be laid out by expert. */
static int64_t plain_ff(const pyr_model_config *c) { return pyr_max(c->ff, c->shared_ff); }

/* Counts, and then cuts (arena.h): the one place that knows what a forward pass holds. Parts
 * that a pass has no use for have no length. */
static void layout(pyr_forward *f, const pyr_extent *e, pyr_arena *arena) {
  const pyr_model_config *c = &f->model->config;
  int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  PYR_PART(arena, f->x, e->tokens * c->width);
  PYR_PART(arena, f->h, e->chunk * c->width);
  PYR_PART(arena, f->half, adds_apart(c) ? e->chunk * c->width : 0);
  PYR_PART(arena, f->q, e->chunk * q);
  PYR_PART(arena, f->k, e->chunk * kv);
  PYR_PART(arena, f->v, e->chunk * kv);
  PYR_PART(arena, f->att, e->chunk * q);
  PYR_PART(arena, f->lse, e->chunk * c->heads);
  PYR_PART(arena, f->gate, e->chunk * plain_ff(c));
  PYR_PART(arena, f->up, c->plain_mlp ? 0 : e->chunk * plain_ff(c));
  PYR_PART(arena, f->router, e->chunk * c->experts);
  PYR_PART(arena, f->chosen, e->chunk * c->experts_used);
  PYR_PART(arena, f->weights, e->chunk * c->experts_used);
  PYR_PART(arena, f->share, c->shared_ff > 0 ? e->chunk : 0);
  PYR_PART(arena, f->logits, e->logit_rows * c->vocab);
  PYR_PART(arena, f->ids, e->tokens);
  PYR_PART(arena, f->pos, e->tokens);
  PYR_PART(arena, f->rot, e->turned);
  PYR_PART(arena, f->faults, e->faults);
}

/* The bounds by which a backend reserves its scratch: the longest row that is multiplied or
 * normed, the most outputs of a product. Reserved once for all layers, so that none of them can
 * fail for want of it. */
static pyr_work work_of(const pyr_model *model, int64_t tokens, int64_t rows, int64_t sequences) {
  const pyr_model_config *c = &model->config;
  int64_t ff = pyr_max(plain_ff(c), c->expert_ff), heads = (int64_t)c->heads * c->head_dim;
  int64_t cols = pyr_max(pyr_max(c->width, ff), heads);
  return (pyr_work){ .tokens = tokens, .rows = rows, .sequences = sequences, .heads = c->heads,
                     .kv_heads = c->kv_heads, .head_dim = c->head_dim, .cols = cols,
                     .outputs = pyr_max(pyr_max(cols, c->experts), c->vocab),
                     .experts = c->experts, .experts_used = c->experts_used,
                     .expert_ff = c->expert_ff };
}

/* ---- one layer ------------------------------------------------------------------------------- */

/* f->h [n, width] = x normed, or nothing where there is no norm before this half: returns which of
 * the two the half reads. */
static pyr_status layer_norm(pyr_forward *f, const float *x, const float *weight,
                             const float *bias, int64_t n, const float **normed) {
  const pyr_model_config *c = &f->model->config;
  pyr_norm norm = { c->norm, c->norm_eps, weight, bias, 1 };
  *normed = weight ? f->h : x;
  return weight ? f->be->norm(f->be, f->h, x, &norm, n, c->width) : PYR_OK;
}

/* Queries or keys [n, heads, head_dim], normed: each head by itself, with weights for all or of its
 * own, or all heads of a token as one vector. */
static pyr_status norm_heads(pyr_forward *f, float *x, const float *weight, int32_t heads,
                             int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_norm norm = { c->norm, c->norm_eps, weight, NULL, c->qk_norm == PYR_QK_EACH ? heads : 1 };
  if (c->qk_norm == PYR_QK_WIDTH)
    return f->be->norm(f->be, x, x, &norm, n, (int64_t)heads * c->head_dim);
  return f->be->norm(f->be, x, x, &norm, n * heads, c->head_dim);
}

/* out [n, heads, head_dim] = in W + b, normed and rotated to `pos`: queries or keys. The norm,
 * where a family has one (Qwen3), comes before the rotation. */
static pyr_status layer_rotated(pyr_forward *f, float *out, const float *in, const pyr_tensor *w,
                                const float *bias, const float *norm, int32_t heads,
                                const pyr_turn *turn, const int32_t *pos, int64_t n) {
  pyr_backend *be = f->be;
  PYR_TRY(be->linear(be, out, in, w, bias, n, f->exact));
  if (norm) PYR_TRY(norm_heads(f, out, norm, heads, n));
  if (!turn->freq) return PYR_OK;
  return be->rope(be, out, pos, turn->freq, n, heads, f->model->config.head_dim, turn->dims,
                  turn->style, turn->gain);
}

/* x [n, width] -> q (where wanted), k, v; q and k rotated to `rot`. f->h holds x normed until
 * layer_finish, which may want it again. Products: n * width * (heads + 2 * kv_heads) *
 * head_dim. */
static pyr_status layer_project(pyr_forward *f, int layer, const float *x, const int32_t *rot,
                                int64_t n, bool queries) {
  const pyr_model_config *c = &f->model->config;
  const pyr_layer *l = &f->model->layers[layer];
  pyr_turn turn = pyr_model_turn(f->model, layer);
  const float *in;
  PYR_TRY(layer_norm(f, x, l->attn_norm, l->attn_norm_bias, n, &in));
  if (queries)
    PYR_TRY(layer_rotated(f, f->q, in, &l->q, l->q_bias, l->q_norm, c->heads, &turn, rot, n));
  PYR_TRY(layer_rotated(f, f->k, in, &l->k, l->k_bias, l->k_norm, c->kv_heads, &turn, rot, n));
  return f->be->linear(f->be, f->v, in, &l->v, l->v_bias, n, f->exact);
}

/* Views hold addresses of pages and tables: they are made anew whenever rows were reserved or
 * moved. */
static void get_views(const pyr_cache *cache, int layer, pyr_lane_view *views) {
  for (int head = 0; head < cache->heads; head++)
    views[head] = pyr_lane_get_view(pyr_cache_lane(cache, layer, head));
}

/* Counts n rows that were stored in a layer's lanes, of which `views` are. In the lanes and in
 * the views that were made of them, so that attention sees the rows. */
static void add_rows(pyr_cache *cache, int layer, pyr_lane_view *views, int64_t n) {
  for (int head = 0; head < cache->heads; head++)
    views[head].rows = pyr_cache_lane(cache, layer, head)->rows += n;
}

/* Where half a layer leaves what it makes, and how the product that makes it is told to: it adds to
 * the residual stream itself (PYR_LINEAR_ADD), so that x is read and written once, but where it is
 * normed or scaled first. */
static float *half_begin(pyr_forward *f, float *x, int *flags) {
  bool apart = adds_apart(&f->model->config);
  *flags = f->exact | (apart ? 0 : PYR_LINEAR_ADD);
  return apart ? f->half : x;
}

/* x += what half_begin's place holds, if that is not x:
 *
 *     f->half = norm(f->half);  x += residual_scale * f->half
 *
 * writes and reads a chunk's width once more: of 512 * 576 floats 1.1 MiB, in a cache's reach. */
static pyr_status half_end(pyr_forward *f, float *x, const float *post_norm, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  if (!adds_apart(c)) return PYR_OK;
  pyr_norm norm = { c->norm, c->norm_eps, post_norm, NULL, 1 };
  if (post_norm) PYR_TRY(be->norm(be, f->half, f->half, &norm, n, c->width));
  return be->add(be, x, f->half, n * c->width, c->residual_scale);
}

/* x += in W + b, the end of half a layer. */
static pyr_status layer_add(pyr_forward *f, float *x, const float *in, const pyr_tensor *w,
                            const float *bias, const float *post_norm, int64_t n) {
  int flags;
  float *out = half_begin(f, x, &flags);
  PYR_TRY(f->be->linear(f->be, out, in, w, bias, n, flags));
  return half_end(f, x, post_norm, n);
}

/* The matrices of an MLP that widen, [width of the MLP, width]: the layer's own, or those of the
 * expert that all tokens share. Gate of rank 0 in plain ones. */
typedef struct pyr_widening {
  const pyr_tensor *gate, *up;
  const float *gate_bias, *up_bias;
} pyr_widening;

/* f->gate [n, width of the MLP] = act(in W_gate) * in W_up, or act(in W_up). Without a gate the
 * product goes where the gate's would, so that what follows reads one place either way. */
static pyr_status layer_widen(pyr_forward *f, const pyr_widening *w, const float *in, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  float *up = c->plain_mlp ? f->gate : f->up;
  PYR_TRY(be->linear(be, up, in, w->up, w->up_bias, n, f->exact));
  if (!c->plain_mlp) PYR_TRY(be->linear(be, f->gate, in, w->gate, w->gate_bias, n, f->exact));
  return be->activate(be, f->gate, c->plain_mlp ? NULL : up, n * w->up->shape[0], c->activation,
                      c->activation_limit);
}

/* out += the shared expert's part, weighed by a router of its own where there is one (Qwen2-MoE):
 * its logit's sigmoid multiplies what goes into W_down, which is the same as what comes out, as
 * there is no bias: s (a W_down) = (s a) W_down. `out` has the other experts' part already. */
static pyr_status layer_share(pyr_forward *f, const pyr_layer *l, float *out, const float *in,
                              int64_t n) {
  pyr_backend *be = f->be;
  pyr_widening w = { &l->shared_gate, &l->shared_up, NULL, NULL };
  PYR_TRY(layer_widen(f, &w, in, n));
  if (l->shared_router.rank != 0) {
    PYR_TRY(be->linear(be, f->share, in, &l->shared_router, NULL, n, PYR_LINEAR_EXACT));
    PYR_TRY(be->gate_rows(be, f->gate, f->share, n, f->model->config.shared_ff));
  }
  return be->linear(be, out, f->gate, &l->shared_down, NULL, n, PYR_LINEAR_ADD | f->exact);
}

/* x += the mixture of experts of in [n, width]. Who takes which stays on the device:
 *
 *     in --- linear, exact ---> router [n, experts] --- route ---> chosen, weights [n, used]
 *     in, chosen, weights --- experts ---> out --- [+ the shared expert's] ---> x
 *
 * The router's products are never rounded: of two experts that are nearly as good, a prompt and a
 * step, or two precisions, are to take the same one. Products: n * used * 3 * width * expert_ff. Of
 * 128 experts of 2,048 by 768 a token's 8 are 37.7 million values to read, a prompt's chunk most
 * likely takes all 128, and 32 tokens meet in each. */
static pyr_status layer_mix(pyr_forward *f, const pyr_layer *l, float *x, const float *in,
                            int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  int flags;
  float *out = half_begin(f, x, &flags);
  pyr_route route = { .logits = f->router, .correction = l->router_correction, .ids = f->chosen,
                      .weights = f->weights, .n = n, .experts = c->experts,
                      .used = c->experts_used, .groups = c->groups, .groups_used = c->groups_used,
                      .kind = c->router, .renormalise = c->router_renormalise,
                      .scale = c->router_scale };
  pyr_experts experts = { .out = out, .x = in, .ids = f->chosen, .weights = f->weights,
                          .each = l->experts, .table = l->table, .n = n, .experts = c->experts,
                          .used = c->experts_used, .activation = c->activation,
                          .limit = c->activation_limit, .flags = flags };
  PYR_TRY(be->linear(be, f->router, in, &l->router, l->router_bias, n, PYR_LINEAR_EXACT));
  PYR_TRY(be->route(be, &route));
  PYR_TRY(be->experts(be, &experts));
  if (c->shared_ff > 0) PYR_TRY(layer_share(f, l, out, in, n));
  return half_end(f, x, l->ffn_post_norm, n);
}

/* Both halves' ends: x += att W_o, x += mlp(x), for the tokens from `skip` on of the n that
 * layer_project normed. In parallel the MLP reads what x was before attention was added. Products:
 * n * width * (heads * head_dim + 3 * ff), most of a layer's work. */
static pyr_status layer_finish(pyr_forward *f, const pyr_layer *l, float *x, int64_t skip,
                               int64_t n) {
  const pyr_model_config *c = &f->model->config;
  const float *att = f->att + skip * c->heads * c->head_dim, *in = f->h + skip * c->width;
  x += skip * c->width;
  n -= skip;
  if (c->residual == PYR_RESIDUAL_PARALLEL)
    PYR_TRY(layer_norm(f, x, l->ffn_norm, l->ffn_norm_bias, n, &in));
  PYR_TRY(layer_add(f, x, att, &l->o, l->o_bias, l->attn_post_norm, n));
  if (c->residual == PYR_RESIDUAL_SEQUENTIAL)
    PYR_TRY(layer_norm(f, x, l->ffn_norm, l->ffn_norm_bias, n, &in));
  if (l->experts) return layer_mix(f, l, x, in, n);
  pyr_widening w = { &l->gate, &l->up, l->gate_bias, l->up_bias };
  PYR_TRY(layer_widen(f, &w, in, n));
  return layer_add(f, x, f->gate, &l->down, l->down_bias, l->ffn_post_norm, n);
}

/* ids [n], backend memory -> out [n, width], as they enter the first layer but for learned
 * positions: the one place that knows how, for prefill, steps and pyr_model_embed, so that rows
 * which a caller takes out and hands in again are those that ids would have become, bit for bit. */
static pyr_status embed_ids(pyr_backend *be, const pyr_model *model, float *out,
                            const int32_t *ids, int64_t n) {
  const pyr_model_config *c = &model->config;
  PYR_TRY(be->embed(be, out, &model->embed, ids, n));
  return c->embed_scale == 1 ? PYR_OK : be->scale(be, out, n * c->width, c->embed_scale, 0);
}

/* A token's row is its position's: after 900 tokens the next takes row 900, whatever was
 * evicted, so that the table bounds what a cache can read, and not what it holds. f->x [n,
 * width] += rows of the table of positions, where they are learned: through f->h, a chunk at a
 * time. */
static pyr_status add_positions(pyr_forward *f, const int32_t *pos, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  for (int64_t at = 0; c->positions && at < n; at += PYR_CHUNK) {
    int64_t some = pyr_min(PYR_CHUNK, n - at);
    PYR_TRY(be->embed(be, f->h, &f->model->positions, pos + at, some));
    PYR_TRY(be->add(be, f->x + at * c->width, f->h, some * c->width, 1));
  }
  return PYR_OK;
}

/* logits of x [n, width] into f->logits. Products: n * width * vocab. Of one token alone, a
 * vocabulary of 49,152 costs as much as 8 layers of the small model above. */
static pyr_status project_logits(pyr_forward *f, const float *x, int64_t n) {
  const pyr_model *model = f->model;
  const pyr_model_config *c = &model->config;
  pyr_norm norm = { c->norm, c->norm_eps, model->out_norm, model->out_norm_bias, 1 };
  PYR_TRY(f->be->norm(f->be, f->h, x, &norm, n, c->width));
  PYR_TRY(f->be->linear(f->be, f->logits, f->h, &model->output, model->output_bias, n, f->exact));
  if (c->logit_scale == 1 && c->logit_cap == 0) return PYR_OK;
  return f->be->scale(f->be, f->logits, n * c->vocab, c->logit_scale, c->logit_cap);
}

/* Before anything is touched: an id is an index into the table of embeddings, which no kernel
 * checks again. Tokens are counted from 1 in messages, as Lua's lists are. */
static pyr_status check_ids(pyr_runtime *rt, const pyr_model_config *c, const int32_t *ids,
                            int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= c->vocab)
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "token %lld has id %d, outside the vocabulary of %d",
                                       (long long)i + 1, (int)ids[i], (int)c->vocab);
  return PYR_OK;
}

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

/* The context bounds what is rotated to: of a compacted layer with 300 rows the next token is
 * rotated to 300, whatever has been read; of others to the number of tokens read. Positions
 * themselves are only bounded by 2^31. */
static pyr_status check_room(const pyr_cache *cache, int64_t n) {
  const pyr_model_config *c = &cache->pool->model->config;
  pyr_runtime *rt = cache->pool->rt;
  /* the position that the first of them is rotated to, at most; learned positions are the
   * tokens' */
  int64_t before = c->positions ? cache->tokens : 0;
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
  const int32_t *ids;              /* host [n] the prompt: tokens, … */
  const float *embeddings;         /* host [n, width] … or rows in their place; one is NULL */
  int64_t n, alive;                /* tokens of the prompt; those that reach the layer */
  int flags;
  pyr_layer_plan plan;             /* of the layer that is running */
  pyr_lane_view *views;            /* host [kv_heads] */
  pyr_score *scores;               /* host [layers] what each layer's plan ranked by */
  int32_t *faults;                 /* host [layers] */
} pyr_prefill;

/* Room for the alive tokens in each lane of the layer, and a way back for what lies there. Undo
 * first: it copies what a plan may change while that is still as it was. Reserving room for
 * tokens that will be evicted a moment later is the price of ranking them: one layer's worth at
 * a time. */
static pyr_status prefill_reserve(pyr_prefill *p, int layer) {
  pyr_cache *cache = p->cache;
  bool history = pyr_trigger_tracks(&p->plan.trigger);
  if (cache->undo) PYR_TRY(pyr_undo_layer(cache->undo, layer));
  for (int head = 0; head < cache->heads; head++)
    PYR_TRY(pyr_lane_reserve(cache, pyr_cache_lane(cache, layer, head), p->alive, history));
  return pyr_lanes_list(cache, pyr_cache_lane(cache, layer, 0), cache->heads);
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
  bool wanted = pyr_observe_wants(&p->plan.seen, at, n);
  /* After the last layer only the last token is looked at, unless logits of all are wanted: the
   * others leave their K and V and, where a score wants them, their queries. */
  bool last_only = layer == c->layers - 1 && !(p->flags & PYR_PREFILL_ALL),
      holds_last = at + n == p->alive;
  bool queries = !last_only || holds_last || wanted;

  /* K and V of the chunk join the lanes, which are reserved */
  const int32_t *rot = f->pos + at;
  if (p->cache->states[layer].compact) {
    PYR_TRY(be->iota(be, f->rot, (int32_t)pyr_cache_layer_rows(p->cache, layer), n));
    rot = f->rot;
  }
  PYR_TRY(layer_project(f, layer, x, rot, n, queries));
  get_views(p->cache, layer, p->views);
  pyr_append rows = { .lanes = p->views, .k = f->k, .v = f->v, .positions = f->pos + at, .n = n };
  PYR_TRY(be->store(be, &rows, 1, f->layout, c->kv_heads));
  add_rows(p->cache, layer, p->views, n);
  if (!queries) return PYR_OK;

  /* attention to all rows so far; the plan's score looks at the same queries once more */
  pyr_attention a = { .out = f->att, .lse = wanted ? f->lse : NULL, .q = f->q,
                      .q_pos = f->pos + at, .lanes = p->views, .n = n,
                      .window = c->window ? c->window[layer] : 0, .cap = c->score_cap,
                      .slopes = f->model->slopes, .sinks = f->model->layers[layer].sinks };
  PYR_TRY(be->attention(be, &a, 1, f->layout, c->heads, c->kv_heads, f->model->scale));
  if (wanted) PYR_TRY(pyr_layer_plan_observe(&p->plan, &a, rot, at));
  if (last_only && !holds_last) return PYR_OK;
  return layer_finish(f, &f->model->layers[layer], x, last_only ? n - 1 : 0, n);
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
    PYR_TRY(pyr_progress(p->cache->pool->rt, layer * p->n + at * p->n / p->alive,
                         c->layers * p->n));
    PYR_TRY(prefill_chunk(p, layer, at, pyr_min(PYR_CHUNK, p->alive - at)));
  }
  p->cache->computed += p->alive;
  PYR_TRY(pyr_layer_plan_end(&p->plan, &survivors, &kept));
  if (!survivors) return PYR_OK;

  /* deeper layers get the survivors only, with the positions that they have */
  PYR_TRY(f->be->take_rows(f->be, f->x, survivors, kept, c->width));
  PYR_TRY(f->be->take_i32(f->be, f->pos, survivors, kept));
  p->cache->evicted += (p->alive - kept) * (c->layers - 1 - layer) * c->kv_heads;
  p->alive = kept;
  return PYR_OK;
}

/* The plan's memory lives from begin to free, around one layer: the next layer's takes its
 * place. */
static pyr_status prefill_layer(pyr_prefill *p, int layer) {
  PYR_TRY(pyr_layer_plan_ask(&p->plan, p->cache, layer, p->n, p->alive, p->flags));
  PYR_TRY(prefill_reserve(p, layer));
  p->scores[layer] = p->plan.eviction.plan.score;
  pyr_status s = pyr_layer_plan_begin(&p->plan, p->f.faults + layer);
  if (s == PYR_OK) s = prefill_run(p, layer);
  pyr_layer_plan_free(&p->plan);
  /* before the next layer takes room; other prefills must be able to go back until they end */
  if (s == PYR_OK && p->cache->tokens == 0) pyr_cache_slide_layer(p->cache, layer, p->n);
  return s;
}

/* A chunk of logits at a time: 512 * 49,152 floats are 96 MiB, those of a whole prompt may be
 * gigabytes. */
static pyr_status prefill_logits(pyr_prefill *p, float *logits) {
  pyr_forward *f = &p->f;
  const pyr_model_config *c = &f->model->config;
  int64_t at = p->flags & PYR_PREFILL_ALL ? 0 : p->alive - 1;
  for (; at < p->alive; at += PYR_CHUNK) {
    int64_t n = pyr_min(PYR_CHUNK, p->alive - at);
    PYR_TRY(project_logits(f, f->x + at * c->width, n));
    PYR_TRY(f->be->download(f->be, logits, f->logits, (size_t)(n * c->vocab) * sizeof(float)));
    logits += n * c->vocab;
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
  return embed_ids(f->be, f->model, f->x, f->ids, p->n);
}

/* From the prompt to logits (NULL: not wanted); all memory but the lanes' and the plans' is there.
 * The order is that of the computation: nothing goes back to the host before the last layer has
 * been asked for, so a device is never waited for in between, but where a plan's counts depend on
 * scores, or its policy ranks by a function of its own. */
static pyr_status prefill_layers(pyr_prefill *p, float *logits) {
  pyr_cache *cache = p->cache;
  pyr_forward *f = &p->f;
  pyr_backend *be = f->be;
  const pyr_model_config *c = &f->model->config;
  PYR_TRY(pyr_fill_zeros(be, f->faults, c->layers));
  PYR_TRY(prefill_source(p));
  PYR_TRY(be->iota(be, f->pos, (int32_t)cache->tokens, p->n));
  PYR_TRY(add_positions(f, f->pos, p->n));
  for (int layer = 0; layer < c->layers; layer++) PYR_TRY(prefill_layer(p, layer));
  if (logits) PYR_TRY(prefill_logits(p, logits));
  if (cache->policy.prefill && !(p->flags & PYR_PREFILL_NO_PRUNE)) PYR_TRY(prefill_check(p));
  return pyr_progress(cache->pool->rt, c->layers * p->n, c->layers * p->n);
}

static void prefill_layout_host(pyr_prefill *p, pyr_arena *host) {
  PYR_PART(host, p->views, p->cache->heads);
  PYR_PART(host, p->scores, p->cache->layers);
  PYR_PART(host, p->faults, p->cache->layers);
  pyr_layer_plan_layout_host(&p->plan, p->cache, host);
}

/* Takes the memory of a whole prefill: activations in *block, host arrays in *host. The caller
 * releases both, whatever is returned. Two blocks, so that failure has two things to give back,
 * whatever was laid out in them. rows: the most that a lane can hold during the pass, before
 * anything is evicted. */
static pyr_status prefill_memory(pyr_prefill *p, bool logits, pyr_arena *block, pyr_arena *host) {
  pyr_cache *cache = p->cache;
  pyr_backend *be = p->f.be;
  pyr_runtime *rt = cache->pool->rt;
  int64_t chunk = pyr_min(p->n, PYR_CHUNK), rows = p->n;
  pyr_extent extent = { .tokens = p->n, .chunk = chunk, .turned = chunk, .faults = cache->layers,
                        .logit_rows = !logits ? 0 : p->flags & PYR_PREFILL_ALL ? chunk : 1 };
  pyr_arena count = { 0 }, host_count = { 0 };
  prefill_layout_host(p, &host_count);
  host->block = pyr_alloc_zero(rt, host_count.used);
  if (!host->block) return pyr_nomem(rt, host_count.used, "the activations of a prefill");
  prefill_layout_host(p, host);

  layout(&p->f, &extent, &count);
  block->block = be->alloc(be, count.used);
  if (!block->block) return pyr_nomem(rt, count.used, "the activations of a prefill");
  layout(&p->f, &extent, block);

  for (int layer = 0; layer < cache->layers; layer++)
    rows = pyr_max(rows, p->n + pyr_cache_layer_rows(cache, layer));
  pyr_work work = work_of(p->f.model, chunk, rows, 1);
  return be->reserve(be, &work);
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

/* Three ways back, from the most that may have changed to the least: undo, where older rows may
 * have; clear, where there were none; drop_marked, where only new rows came. Counters move at
 * the end, but for `computed` and `evicted`, which are put back. */
static pyr_status prefill(pyr_cache *cache, const int32_t *ids, const float *embeddings, int64_t n,
                          int flags, float *logits) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  const pyr_model *model = cache->pool->model;
  pyr_undo *undo = NULL;
  pyr_prefill p = { .cache = cache, .ids = ids, .embeddings = embeddings, .n = n, .alive = n,
                    .flags = flags,
                    .f = { .model = model, .be = be, .layout = cache->pool->layout } };
  if (!model->ready) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the model is not ready");
  if (pyr_runtime_here(rt) != PYR_OK) return PYR_DEVICE;
  if (n < 1)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "the prompt is empty: a prefill needs at least one token");
  if (ids) PYR_TRY(check_ids(rt, &model->config, ids, n));
  PYR_TRY(check_room(cache, n));
  if (embeddings) PYR_TRY(check_embeddings(rt, &model->config, embeddings, n));

  /* A failure drops the new rows again; more is needed only where older rows, or what is tracked of
   * them, change. */
  int64_t computed = cache->computed, evicted = cache->evicted;
  if (cache->tokens > 0 && changes_older_rows(cache, flags)) PYR_TRY(pyr_undo_new(cache, &undo));
  mark_lanes(cache);

  pyr_arena block = { 0 }, host = { 0 };
  pyr_status s = prefill_memory(&p, logits != NULL, &block, &host);
  if (s == PYR_OK) s = prefill_layers(&p, logits);
  be->release(be, block.block, block.used);
  pyr_release(rt, host.block, host.used);
  if (s == PYR_OK) {
    cache->tokens += n;
    if (!(flags & PYR_PREFILL_NO_PRUNE)) cache->prompt = n;
    for (int layer = 0; layer < cache->layers && (flags & PYR_PREFILL_NO_PRUNE); layer++)
      cache->states[layer].unranked += n;
    pyr_undo_keep(undo);
    pyr_cache_slide(cache);
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

pyr_status pyr_cache_prefill(pyr_cache *cache, const int32_t *ids, int64_t n, int flags,
                             float *logits) {
  return prefill(cache, ids, NULL, n, flags, logits);
}

pyr_status pyr_cache_prefill_embeddings(pyr_cache *cache, const float *rows, int64_t n, int flags,
                                        float *logits) {
  return prefill(cache, NULL, rows, n, flags, logits);
}

/* In chunks, so that what it takes on a device does not grow with n: of width 576, 512 ids and
 * their rows are 1.2 MB. */
pyr_status pyr_model_embed(pyr_model *model, const int32_t *ids, int64_t n, float *out) {
  pyr_runtime *rt = model->rt;
  pyr_backend *be = pyr_runtime_backend(rt);
  int64_t width = model->config.width, chunk = pyr_min(n, PYR_CHUNK);
  if (!model->ready) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the model is not ready");
  if (pyr_runtime_here(rt) != PYR_OK) return PYR_DEVICE;
  PYR_TRY(check_ids(rt, &model->config, ids, n));
  if (n < 1) return PYR_OK;
  size_t row_bytes = (size_t)width * sizeof *out, bytes = (size_t)chunk * (row_bytes + sizeof *ids);
  float *rows = be->alloc(be, bytes);
  if (!rows) return pyr_nomem(rt, bytes, "rows of embeddings");
  int32_t *place = (int32_t *)(rows + chunk * width);
  pyr_status s = PYR_OK;
  for (int64_t at = 0; at < n && s == PYR_OK; at += chunk) {
    int64_t count = pyr_min(chunk, n - at);
    s = be->upload(be, place, ids + at, (size_t)count * sizeof *ids);
    if (s == PYR_OK) s = embed_ids(be, model, rows, place, count);
    if (s == PYR_OK) s = be->download(be, out + at * width, rows, (size_t)count * row_bytes);
  }
  be->release(be, rows, bytes);
  return s;
}

/* ---- decode: one step of several sequences --------------------------------------------------- */

typedef struct pyr_decode {
  pyr_cache *const *caches;        /* [count] */
  int count;
  int64_t longest;                 /* the most rows of any lane, with the step's */
  pyr_forward f;
  int64_t due_count, turned;       /* plans due; positions in `rot`, [layers, count] or none */
  pyr_evictions due;               /* decode plans that run after this step */
  pyr_append *rows;                /* host [count] */
  pyr_attention *attention;        /* host [count] */
  pyr_track *tracks;               /* host [count] */
  pyr_lane_view *views;            /* host [count * kv_heads] */
  int32_t *pos, *rot;              /* host: f.pos and f.rot, before they go over */
  pyr_sample_batch samples;
} pyr_decode;

/* A sequence twice would append two rows to one lane with one position. */
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
    PYR_TRY(check_ids(pool->rt, &pool->model->config, ids + i, 1));
    PYR_TRY(check_room(caches[i], 1));
  }
  return PYR_OK;
}

/* How much of everything the step takes. A plan is due where one step is left: this one.
 * `turned` is only laid out where some layer of some cache is compacted; then for all layers and
 * sequences, as rot[layer * count + i]. */
static void step_count_up(pyr_decode *d) {
  int layers = d->f.model->config.layers;
  bool compact = false;
  for (int i = 0; i < d->count; i++)
    for (int layer = 0; layer < layers; layer++) {
      d->longest = pyr_max(d->longest, pyr_cache_layer_rows(d->caches[i], layer) + 1);
      d->due_count += pyr_track_steps_left(d->caches[i], layer) == 1;
      compact = compact || d->caches[i]->states[layer].compact;
    }
  if (compact) d->turned = (int64_t)layers * d->count;
}

/* Counts, and then cuts, as `layout` does, with parts that the host alone reads. */
static void step_layout_host(pyr_decode *d, bool samples, pyr_arena *host) {
  int32_t heads = d->f.model->config.kv_heads;
  PYR_PART(host, d->rows, d->count);
  PYR_PART(host, d->attention, d->count);
  PYR_PART(host, d->tracks, d->count);
  PYR_PART(host, d->views, d->count * heads);
  PYR_PART(host, d->pos, d->count);
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
  for (int i = 0; i < d->count; i++) d->pos[i] = (int32_t)d->caches[i]->tokens;
  for (int64_t i = 0; i < d->turned; i++) {
    const pyr_cache *cache = d->caches[i % d->count];
    int layer = (int)(i / d->count);
    d->rot[i] = cache->states[layer].compact ? (int32_t)pyr_cache_layer_rows(cache, layer)
        : d->pos[i % d->count];
  }
}

/* Asks the policies of all caches for the plans that will run at the end of this step. In the
 * order of sequences and then layers; room for due_count of them has been laid out. */
static pyr_status step_ask(pyr_decode *d) {
  for (int i = 0; i < d->count; i++)
    for (int layer = 0; layer < d->f.model->config.layers; layer++)
      if (pyr_track_steps_left(d->caches[i], layer) == 1)
        PYR_TRY(pyr_evictions_ask(&d->due, d->caches[i], layer, PYR_WHEN_DECODE));
  return PYR_OK;
}

/* Makes room for one row in every lane, and makes writable what this step's plans will gather.
 * Most steps find room: a lane takes a new page every 32 steps. Page tables go over last, when
 * all pages are known. */
static pyr_status step_reserve_rows(pyr_decode *d) {
  const pyr_model_config *c = &d->f.model->config;
  for (int i = 0; i < d->count; i++)
    for (int layer = 0; layer < c->layers; layer++)
      for (int head = 0; head < c->kv_heads; head++)
        PYR_TRY(pyr_lane_reserve(d->caches[i], pyr_cache_lane(d->caches[i], layer, head), 1,
                                 pyr_trigger_tracks(&d->caches[i]->states[layer].trigger)));
  PYR_TRY(pyr_evictions_prepare(&d->due));
  for (int i = 0; i < d->count; i++)
    PYR_TRY(pyr_lanes_list(d->caches[i], d->caches[i]->lanes, (int64_t)c->layers * c->kv_heads));
  return PYR_OK;
}

/* All memory of the step, in the workspace that the pool keeps between steps. The backend's
 * scratch, the workspace, then rows: what fails leaves lanes that have room to spare, and
 * step_undo gives that back (pyr_lane_truncate trims). */
static pyr_status step_reserve(pyr_decode *d, const pyr_work *work) {
  pyr_backend *be = d->f.be;
  pyr_extent extent = { .tokens = d->count, .chunk = d->count, .logit_rows = d->count,
                        .turned = d->turned };
  pyr_arena count = { 0 }, arena = { 0 };
  layout(&d->f, &extent, &count);
  pyr_evictions_layout(&d->due, &count);
  PYR_TRY(be->reserve(be, work));
  PYR_TRY(pyr_pool_workspace(d->caches[0]->pool, count.used, &arena.block));
  PYR_TRY(step_reserve_rows(d));
  layout(&d->f, &extent, &arena);
  pyr_evictions_layout(&d->due, &arena);
  return PYR_OK;
}

/* Where somebody is told of the plans, and may say no when rows are gone already: what the due
 * plans evict is kept until all were told. Of all caches, as the step is one. */
static pyr_status step_keep_losers(pyr_decode *d) {
  bool told = false;
  for (int64_t i = 0; i < d->due.count; i++)
    told = told || pyr_trace_wanted(d->due.each[i].splits.cache);
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
    if (d->caches[i]->undo) pyr_undo_restore(d->caches[i]->undo);
    else drop_marked(d->caches[i]);
  }
}

/* One product for all sequences, so that weights are read once; then each sequence's row to its
 * own lanes, and its query along them. Invariant: views[i * kv_heads + g] is lane g of sequence
 * i in this layer, and holds the step's row once add_rows has counted it. */
static pyr_status step_layer(pyr_decode *d, int layer) {
  pyr_forward *f = &d->f;
  const pyr_model_config *c = &f->model->config;
  int64_t width = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
  const int32_t *rot = d->turned ? f->rot + (int64_t)layer * d->count : f->pos;
  PYR_TRY(layer_project(f, layer, f->x, rot, d->count, true));
  for (int i = 0; i < d->count; i++) {
    pyr_lane_view *views = d->views + (int64_t)i * c->kv_heads;
    /* before the row is there */
    bool tracked = pyr_track_step(d->caches[i], layer, &d->tracks[i]);
    get_views(d->caches[i], layer, views);
    d->rows[i] = (pyr_append){ .lanes = views, .k = f->k + i * kv, .v = f->v + i * kv,
                               .positions = f->pos + i, .n = 1 };
    d->attention[i] = (pyr_attention){ .out = f->att + i * width, .q = f->q + i * width,
                                       .q_pos = f->pos + i, .lanes = views, .n = 1,
                                       .window = c->window ? c->window[layer] : 0,
                                       .cap = c->score_cap, .slopes = f->model->slopes,
                                       .sinks = f->model->layers[layer].sinks,
                                       .track = tracked ? &d->tracks[i] : NULL };
  }
  PYR_TRY(f->be->store(f->be, d->rows, d->count, f->layout, c->kv_heads));
  for (int i = 0; i < d->count; i++)
    add_rows(d->caches[i], layer, d->views + (int64_t)i * c->kv_heads, 1);
  PYR_TRY(f->be->attention(f->be, d->attention, d->count, f->layout, c->heads, c->kv_heads,
                           f->model->scale));
  return layer_finish(f, &f->model->layers[layer], f->x, 0, d->count);
}

/* Reads every weight once: at one sequence that is what a step costs. */
static pyr_status step_layers(pyr_decode *d) {
  pyr_backend *be = d->f.be;
  const pyr_model *model = d->f.model;
  PYR_TRY(embed_ids(be, model, d->f.x, d->f.ids, d->count));
  PYR_TRY(add_positions(&d->f, d->f.pos, d->count));
  for (int layer = 0; layer < model->config.layers; layer++) PYR_TRY(step_layer(d, layer));
  return project_logits(&d->f, d->f.x, d->count);
}

/* From ids to logits. A device may note the operations, and do them all at the end; while they are
 * timed, each is done as it comes. */
static pyr_status step_compute(pyr_decode *d, const int32_t *ids, const pyr_work *work) {
  pyr_backend *be = d->f.be;
  const pyr_model *model = d->f.model;
  size_t each = sizeof(int32_t);
  PYR_TRY(be->upload(be, d->f.ids, ids, (size_t)d->count * each));
  PYR_TRY(be->upload(be, d->f.pos, d->pos, (size_t)d->count * each));
  if (d->turned) PYR_TRY(be->upload(be, d->f.rot, d->rot, (size_t)d->turned * each));
  if (!be->step_begin || be->profile) return step_layers(d);
  PYR_TRY(be->step_begin(be, model, work, model->config.layers));
  pyr_status s = step_layers(d);
  pyr_status ended = be->step_end(be, s == PYR_OK);
  return s == PYR_OK ? ended : s;
}

/* One token more, or (by -1) one less again. Before plans run: a trigger's `since` and
 * `unranked` count the step that is being ended. */
static void step_tally(const pyr_decode *d, int by) {
  int layers = d->f.model->config.layers;
  for (int i = 0; i < d->count; i++) {
    d->caches[i]->tokens += by;
    d->caches[i]->computed += by * layers;
    for (int layer = 0; layer < layers; layer++)
      d->caches[i]->states[layer].since += by, d->caches[i]->states[layer].unranked += by;
  }
}

/* To the host; at once where the caller's vectors follow each other, as a device is waited for each
 * time. Vectors of 4 sequences of which the first three follow each other and the fourth lies
 * elsewhere: two transfers. */
static pyr_status step_logits(const pyr_decode *d, float *const *logits) {
  int64_t vocab = d->f.model->config.vocab;
  for (int i = 0, together; logits && i < d->count; i += together) {
    together = 1;
    if (!logits[i]) continue;
    while (i + together < d->count && logits[i + together] == logits[i] + together * vocab)
      together++;
    PYR_TRY(d->f.be->download(d->f.be, logits[i], d->f.logits + i * vocab,
                              (size_t)(together * vocab) * sizeof(float)));
  }
  return PYR_OK;
}

/* All that can fail while rows can still be dropped again: on failure the caller does. Rows are
 * there (step_compute), and are counted (step_tally), before plans rank them; on failure both
 * are taken back, the count here and the rows by the caller. */
static pyr_status step_run(pyr_decode *d, const int32_t *ids, float *const *logits) {
  pyr_work work = work_of(d->f.model, d->count, d->longest, d->count);
  PYR_TRY(step_ask(d));
  PYR_TRY(step_reserve(d, &work));
  PYR_TRY(step_keep_losers(d));
  PYR_TRY(step_compute(d, ids, &work));
  step_tally(d, 1);
  pyr_status s = pyr_evictions_rank(&d->due);
  if (s == PYR_OK) s = step_logits(d, logits);
  /* whether all scores were numbers: logits are there already or come next, so that there is
   * nothing else to wait for */
  if (s == PYR_OK) s = pyr_evictions_check(&d->due);
  if (s != PYR_OK) step_tally(d, -1);
  return s;
}

/* The due plans' losers leave. Only where they were kept can a no bring them back. All caches'
 * undos end here, kept or restored: none outlives a step. */
static pyr_status step_evict(pyr_decode *d) {
  bool kept = d->due.count > 0 && d->due.each[0].splits.cache->undo;
  pyr_status s = pyr_evictions_gather(&d->due);
  if (s != PYR_OK && kept) {
    step_tally(d, -1);
    step_undo(d);
  }
  for (int i = 0; i < d->count && s == PYR_OK; i++) pyr_undo_keep(d->caches[i]->undo);
  return s;
}

pyr_status pyr_step(pyr_cache *const *caches, const int32_t *ids, int count, float *const *logits) {
  return pyr_step_pick(caches, ids, count, logits, NULL, NULL);
}

pyr_status pyr_step_pick(pyr_cache *const *caches, const int32_t *ids, int count,
                         float *const *logits, pyr_sampler *const *samplers, int32_t *picks) {
  if (count < 1) return PYR_OK;
  pyr_pool *pool = caches[0]->pool;
  pyr_backend *be = pool->be;
  int32_t vocab = pool->model->config.vocab;
  pyr_decode d = { .caches = caches, .count = count,
                   .f = { .model = pool->model, .be = be, .layout = pool->layout,
                          .exact = PYR_LINEAR_EXACT } };
  /* 1. refuse what cannot be done */
  PYR_TRY(pyr_runtime_here(pool->rt));
  PYR_TRY(step_check(caches, ids, count));
  for (int i = 0; samplers && i < count; i++) picks[i] = -1;
  if (samplers) PYR_TRY(pyr_sample_batch_prepare(be, samplers, count, vocab));

  /* 2. host memory */
  pyr_arena room = { 0 }, host = { 0 };
  step_count_up(&d);
  step_layout_host(&d, samplers != NULL, &room);
  host.block = pyr_alloc(pool->rt, room.used);
  if (!host.block) return pyr_nomem(pool->rt, room.used, "a step");
  step_layout_host(&d, samplers != NULL, &host);
  step_place(&d);

  /* 3. ask, reserve, compute, rank: all or nothing */
  for (int i = 0; i < count; i++) mark_lanes(caches[i]);
  pyr_status s = step_run(&d, ids, logits);
  if (s != PYR_OK) step_undo(&d);

  /* 4. evict, and sample */
  if (s == PYR_OK) s = step_evict(&d);
  for (int i = 0; i < count && s == PYR_OK; i++) pyr_cache_slide(caches[i]);
  if (s == PYR_OK && samplers)
    s = pyr_sample_batch_pick(&d.samples, be, samplers, d.f.logits, vocab, count, picks);
  pyr_release(pool->rt, host.block, host.used);
  return s;
}
