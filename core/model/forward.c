/* forward.c — the layers of the transformer, written once, over the backend's operations.
 *
 * One layer; what stands in brackets a model has or not, as its configuration says
 * (pyr_model_config in pyramid.h). Without any of it, it is Llama's:
 *     h = [norm(x)];  q, k, v = h W [+ b];  [q, k = norm(q), norm(k)];  q, k = [rope](q, k)
 *     [q *= 1 + temper log(1 + floor(position / temper_length))]
 *     store k, v;  x += [scale *] [norm](attention(q, rows, [cap, slopes, sinks]) W_o [+ b])
 *     h = [norm(x)];  x += [scale *] [norm](mlp(h))
 *     mlp(h) = (act(h W_gate) [*] [h W_up]) W_down [+ b]
 *
 * or in parallel, where both halves begin at the x that the layer was given. A layer may have many
 * MLPs, its experts: then mlp(h) is the weighted sum of those few that a router chooses for the
 * token, [and of one that all tokens share, weighted by sigmoid(h W_shared_router)].
 *
 * Prompts (prefill.c) run a layer over chunks of many tokens, steps (step.c) over one token of each
 * sequence; both go through the same functions, so that a token's arithmetic is the same but for
 * the order in which large products are summed.
 *
 * Positions. A token has the position at which it was read, by which rows are told apart, masked
 * and tracked. Its q and k are rotated to the same position, but in layers whose keys were
 * compacted (pyr_layer_state): there to the number of rows before it. The model's context bounds
 * the positions that are rotated to. */
#include "model/forward.h"

#include <math.h>
#include <string.h>

/* Whether something happens to what half a layer made before it joins the residual stream. */
static bool adds_apart(const pyr_model_config *c) {
  return c->norm_place != PYR_NORM_BEFORE || c->residual_scale != 1;
}

/* The widest MLP that is no expert's: what an expert widens lies in scratch of the backend's, where
 * it may be laid out by expert. */
static int64_t plain_ff(const pyr_model_config *c) { return pyr_max(c->ff, c->shared_ff); }

/* What prefill.c and step.c lay out, and what foresee.c counts, where nothing is laid out:
 *
 *                 tokens   chunk   logits of    positions to rotate to
 *     prompt        700     512    the last     a chunk's
 *     step of 32     32      32    all 32       of compacted layers alone
 *
 * A prompt has a number for each layer's plan, too, that says whether its scores were numbers; a
 * step's plans have theirs with their lists (evict.h). */
pyr_extent pyr_extent_of_prompt(const pyr_model *model, int64_t n, int64_t logit_rows, bool tiers) {
  int64_t chunk = pyr_min(n, PYR_CHUNK);
  return (pyr_extent){ .tokens = n, .chunk = chunk, .turned = chunk, .logit_rows = logit_rows,
                       .faults = model->config.layers, .tiers = tiers };
}
pyr_extent pyr_extent_of_step(int64_t tokens, int64_t turned, bool tiers) {
  return (pyr_extent){ .tokens = tokens, .chunk = tokens, .turned = turned, .logit_rows = tokens,
                       .tiers = tiers };
}

/* Counts, and then cuts (arena.h): the one place that knows what a forward pass holds. Parts
 * that a pass has no use for have no length. */
void pyr_forward_layout(pyr_forward *f, const pyr_extent *e, pyr_arena *arena) {
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
  for (int i = 0; i < 2; i++) {
    PYR_PART(arena, f->low[i], e->tiers ? e->chunk * q : 0);
    PYR_PART(arena, f->low_lse[i], e->tiers ? e->chunk * c->heads : 0);
  }
  PYR_PART(arena, f->learned, e->chunk * c->kv_heads);
  PYR_PART(arena, f->gate, e->chunk * plain_ff(c));
  PYR_PART(arena, f->up, c->plain_mlp ? 0 : e->chunk * plain_ff(c));
  PYR_PART(arena, f->router, e->chunk * c->experts);
  PYR_PART(arena, f->chosen, e->chunk * c->experts_used);
  PYR_PART(arena, f->weights, e->chunk * c->experts_used);
  PYR_PART(arena, f->share, c->shared_ff > 0 ? e->chunk : 0);
  PYR_PART(arena, f->logits, e->logit_rows * c->vocab);
  PYR_PART(arena, f->parts, f->model->ranks ? e->logit_rows * c->vocab : 0);
  PYR_PART(arena, f->squares, f->model->ranks ? e->chunk : 0);
  PYR_PART(arena, f->ids, e->tokens);
  PYR_PART(arena, f->pos, e->tokens);
  PYR_PART(arena, f->rot, e->turned);
  PYR_PART(arena, f->faults, e->faults);
}

/* The bounds by which a backend reserves its scratch: the longest row that is multiplied or
 * normed, the most outputs of a product. Reserved once for all layers, so that none of them can
 * fail for want of it. */
pyr_work pyr_forward_work(const pyr_model *model, int64_t tokens, int64_t rows, int64_t sequences) {
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

/* Of a token's 9 heads of 64 values on two ranks, 3 and 6: the sums of 192 and 384 squares are
 * added up over ranks, 4 bytes a token, and their mean over 576 is what both norm by (OLMo 2).
 *
 * All heads of a token as one vector, of which each rank has some: each adds up the squares of its
 * own, and the sum over ranks is that of the whole; copies of a K/V head count once. A norm that
 * takes the mean off would need that of the whole first; no model norms queries so. */
static pyr_status norm_over_ranks(pyr_forward *f, float *x, const float *weight, int32_t heads,
                                  bool counts, int32_t all_heads, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  int64_t own = (int64_t)heads * c->head_dim;
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t j = 0; j < own && counts; j++) sum += (double)x[i * own + j] * x[i * own + j];
    f->squares[i] = (float)sum;
  }
  PYR_TRY(pyr_ranks_sum(f->model->ranks, f->squares, n));
  for (int64_t i = 0; i < n; i++) {
    float mean = f->squares[i] / (float)((int64_t)all_heads * c->head_dim);
    float scale = 1.0f / sqrtf(mean + c->norm_eps);
    for (int64_t j = 0; j < own; j++) x[i * own + j] *= scale * weight[j];
  }
  return PYR_OK;
}

/* Queries or keys [n, heads, head_dim], normed: each head by itself, with weights for all or of its
 * own, or all heads of a token as one vector. */
static pyr_status norm_heads(pyr_forward *f, float *x, const float *weight, int32_t heads,
                             int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_norm norm = { c->norm, c->norm_eps, weight, NULL, c->qk_norm == PYR_QK_EACH ? heads : 1 };
  if (c->qk_norm == PYR_QK_WIDTH && f->model->ranks) {
    const pyr_model_config *whole = &f->model->whole;
    bool keys = x == f->k;
    return norm_over_ranks(f, x, weight, heads, !keys || pyr_model_part(f->model)->copy == 0,
                           keys ? whole->kv_heads : whole->heads, n);
  }
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
 * pyr_layer_finish, which may want it again. Products: n * width * (heads + 2 * kv_heads) *
 * head_dim. */
pyr_status pyr_layer_project(pyr_forward *f, int layer, const float *x, const int32_t *rot,
                             int64_t n, bool queries, const float **input) {
  const pyr_model_config *c = &f->model->config;
  const pyr_layer *l = &f->model->layers[layer];
  pyr_turn turn = pyr_model_turn(f->model, layer);
  const float *in;
  PYR_TRY(layer_norm(f, x, l->attn_norm, l->attn_norm_bias, n, &in));
  *input = in;
  if (queries) {
    PYR_TRY(layer_rotated(f, f->q, in, &l->q, l->q_bias, l->q_norm, c->heads, &turn, rot, n));
    if (c->temper > 0)
      PYR_TRY(f->be->temper(f->be, f->q, rot, n, (int64_t)c->heads * c->head_dim, c->temper,
                            c->temper_length));
  }
  PYR_TRY(layer_rotated(f, f->k, in, &l->k, l->k_bias, l->k_norm, c->kv_heads, &turn, rot, n));
  return f->be->linear(f->be, f->v, in, &l->v, l->v_bias, n, f->exact);
}

/* Views hold addresses of pages and tables: they are made anew whenever rows were reserved or
 * moved. */
void pyr_layer_views(const pyr_cache *cache, int layer, pyr_lane_view *views) {
  for (int head = 0; head < cache->heads; head++)
    views[head] = pyr_lane_get_view(pyr_cache_lane(cache, layer, head));
}

/* Counts n rows that were stored in a layer's lanes, of which `views` are. In the lanes and in
 * the views that were made of them, so that attention sees the rows. */
void pyr_layer_add_rows(pyr_cache *cache, int layer, pyr_lane_view *views, int64_t n) {
  for (int head = 0; head < cache->heads; head++)
    views[head].rows = pyr_cache_lane(cache, layer, head)->rows += n;
}

/* x += attention(h) + mlp(h), of two ranks: rank 0 makes x + a0 + m0 in place, rank 1 a1 + m1, and
 * one sum makes both x + a0 + m0 + a1 + m1. Where the MLP reads what attention has added
 * (sequential), or what a half makes is normed before it is added, there is a sum for each half.
 *
 * Whether both halves of a layer begin at the same x and are added to it as they are: then ranks
 * sum up once for both. */
static bool sums_once(const pyr_model_config *c) {
  return c->residual != PYR_RESIDUAL_SEQUENTIAL && !adds_apart(c);
}

/* A norm of queries and keys over all heads (OLMo 2) takes two more, of one float a token each. */
int pyr_forward_sums(const pyr_model_config *c) { return sums_once(c) ? 1 : 2; }

/* Where half a layer leaves what it makes, and how the product that makes it is told to: it adds to
 * the residual stream itself (PYR_LINEAR_ADD), so that x is read and written once, but where it is
 * normed or scaled first.
 *
 * Of several ranks each makes a part, and half_end sums them up. One alone adds its part to x, on
 * the others the part takes the place of x, so that the sum has it once:
 *
 *     rank 0   x + part 0    ─┐
 *     rank 1       part 1    ─┴─ sum: x + part 0 + part 1, on both
 *
 * `second`: the half that begins at the same x as the one before, whose part lies there already. */
static float *half_begin(pyr_forward *f, float *x, bool second, int *flags) {
  const pyr_model_config *c = &f->model->config;
  bool apart = adds_apart(c), adds = pyr_model_adds(f->model) || (second && sums_once(c));
  *flags = f->exact | (apart || !adds ? 0 : PYR_LINEAR_ADD);
  return apart ? f->half : x;
}

/* x += what half_begin's place holds, if that is not x:
 *
 *     f->half = norm(f->half);  x += residual_scale * f->half
 *
 * writes and reads a chunk's width once more: of 512 * 576 floats 1.1 MiB, in a cache's reach. */
static pyr_status half_end(pyr_forward *f, float *x, const float *post_norm, bool second,
                           int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  if (second || !sums_once(c))
    PYR_TRY(pyr_ranks_sum(f->model->ranks, adds_apart(c) ? f->half : x, n * c->width));
  if (!adds_apart(c)) return PYR_OK;
  pyr_norm norm = { c->norm, c->norm_eps, post_norm, NULL, 1 };
  if (post_norm) PYR_TRY(be->norm(be, f->half, f->half, &norm, n, c->width));
  return be->add(be, x, f->half, n * c->width, c->residual_scale);
}

/* x += in W + b, the end of half a layer. */
static pyr_status layer_add(pyr_forward *f, float *x, const float *in, const pyr_tensor *w,
                            const float *bias, const float *post_norm, bool second, int64_t n) {
  int flags;
  float *out = half_begin(f, x, second, &flags);
  PYR_TRY(f->be->linear(f->be, out, in, w, pyr_model_adds(f->model) ? bias : NULL, n, flags));
  return half_end(f, x, post_norm, second, n);
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

/* x += the MLP of in [n, width]: at once where the backend does that (core/cpu/linear_amx.c), and
 * then what is between its products is never written, else by its parts, through f->gate and f->up.
 * Either way the same sums. */
static pyr_status layer_mlp(pyr_forward *f, const pyr_layer *l, float *x, const float *in,
                            int64_t n) {
  const pyr_model_config *c = &f->model->config;
  int flags;
  float *out = half_begin(f, x, true, &flags);
  pyr_mlp mlp = { .out = out, .x = in, .gate = c->plain_mlp ? NULL : &l->gate, .up = &l->up,
                  .down = &l->down, .gate_bias = l->gate_bias, .up_bias = l->up_bias,
                  .down_bias = pyr_model_adds(f->model) ? l->down_bias : NULL, .n = n,
                  .activation = c->activation,
                  .limit = c->activation_limit, .flags = flags };
  if (f->be->takes_mlp && f->be->takes_mlp(f->be, &mlp)) {
    PYR_TRY(f->be->mlp(f->be, &mlp));
    return half_end(f, x, l->ffn_post_norm, true, n);
  }
  pyr_widening w = { &l->gate, &l->up, l->gate_bias, l->up_bias };
  PYR_TRY(layer_widen(f, &w, in, n));
  return layer_add(f, x, f->gate, &l->down, l->down_bias, l->ffn_post_norm, true, n);
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
  float *out = half_begin(f, x, true, &flags);
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
  return half_end(f, x, l->ffn_post_norm, true, n);
}

/* The same queries, over the rows of one lower tier, or those of them that were picked: to
 * f->low[to] and f->low_lse[to]. A sink counts once, among the hot rows, and nothing is tracked or
 * summed up here. Lanes of all caches that have no row there give 0, with an lse of -inf. */
static pyr_status attend_tier(const pyr_forward *f, int layer, const pyr_attention *calls,
                              pyr_cache *const *caches, int each, int count, int depth, int to,
                              const pyr_reading *const *readings, pyr_attention *lower,
                              pyr_lane_view *views) {
  const pyr_model_config *c = &f->model->config;
  pyr_layout layout = f->layout;
  int64_t width = (int64_t)c->heads * c->head_dim, at = 0;
  for (int i = 0; i < count; i++) {
    const pyr_cache *cache = caches[i / each];
    const pyr_reading *read = readings ? readings[i] : NULL;
    for (int d = 0; d < depth; d++) cache = cache->below, read = read ? read->below : NULL;
    layout = cache->pool->layout;
    lower[i] = calls[i];
    lower[i].lanes = read ? read->out : views + (int64_t)i * c->kv_heads;
    if (!read) pyr_layer_views(cache, layer, views + (int64_t)i * c->kv_heads);
    lower[i].out = f->low[to] + at * width, lower[i].lse = f->low_lse[to] + at * c->heads;
    lower[i].sinks = NULL, lower[i].track = NULL, lower[i].masses = NULL;
    at += calls[i].n;
  }
  return f->be->attention(f->be, lower, count, layout, c->heads, c->kv_heads, f->model->scale);
}

/* What rows of lower tiers are given, where a trigger recalls: another attention to each tier, by
 * the denominators of all, which are known by now; what it makes goes nowhere. Of a batch of three
 * of which the second recalls, one call a tier. */
static pyr_status track_below(const pyr_forward *f, int layer, const pyr_attention *calls,
                              pyr_cache *const *caches, int each, int count, pyr_track *tracks,
                              pyr_attention *lower, pyr_lane_view *views) {
  const pyr_model_config *c = &f->model->config;
  for (int depth = 1; ; depth++) {
    pyr_layout layout = f->layout;
    int n = 0;
    for (int i = 0; i < count; i++) {
      const pyr_cache *cache = caches[i / each];
      if (!calls[i].track || !pyr_trigger_recalls(&cache->states[layer].trigger)) continue;
      for (int d = 0; d < depth && cache; d++) cache = cache->below;
      if (!cache || !pyr_cache_lane(cache, layer, 0)->history) continue;
      pyr_lane_view *own = views + (int64_t)n * c->kv_heads;
      layout = cache->pool->layout;
      pyr_layer_views(cache, layer, own);
      tracks[i].more = NULL, tracks[i].all = calls->lse + (int64_t)i * c->heads;
      lower[n] = calls[i];
      lower[n].lanes = own, lower[n].lse = NULL, lower[n].sinks = NULL, lower[n].masses = NULL;
      lower[n].out = f->low[0] + (int64_t)n * c->heads * c->head_dim;
      n++;
    }
    if (n == 0) return PYR_OK;
    PYR_TRY(f->be->attention(f->be, lower, n, layout, c->heads, c->kv_heads, f->model->scale));
  }
}

/* Products: those of attention over as many rows in one lane, and 3 * head_dim more a query, head
 * and lower tier. Lower tiers first: what is tracked of hot rows, while they are attended to, is of
 * the softmax over all rows, whose other part must be known by then.
 *
 *     warm    -> low[0]                 cold    -> low[1], joined to low[0]
 *     hot     -> att, tracking with more = low_lse[0]           low[0] joined to att
 *     warm, cold once more, tracking by the lse of all, where rows are recalled */
pyr_status pyr_layer_attend(const pyr_forward *f, int layer, const pyr_attention *calls,
                            pyr_cache *const *caches, int each, int count, pyr_track *tracks,
                            const pyr_reading *const *readings, pyr_attention *lower,
                            pyr_lane_view *views) {
  pyr_backend *be = f->be;
  const pyr_model_config *c = &f->model->config;
  int64_t n = 0;
  bool any = false;
  for (int i = 0; i < count; i++) {
    any = any || pyr_cache_lies_below(caches[i / each], layer);
    n += calls[i].n;
  }
  if (!any)
    return be->attention(be, calls, count, f->layout, c->heads, c->kv_heads, f->model->scale);
  /* a tier that holds no row of any of these sequences still costs a call, which finds nothing */
  int depth = 0;
  for (const pyr_cache *at = caches[0]->below; at; at = at->below, depth++) {
    int to = depth > 0;
    PYR_TRY(attend_tier(f, layer, calls, caches, each, count, depth + 1, to, readings, lower,
                        views));
    if (to)
      PYR_TRY(be->join(be, f->low[0], f->low_lse[0], f->low[1], f->low_lse[1], n * c->heads,
                       c->head_dim));
  }
  for (int i = 0; i < count && tracks; i++) tracks[i].more = f->low_lse[0] + (int64_t)i * c->heads;
  PYR_TRY(be->attention(be, calls, count, f->layout, c->heads, c->kv_heads, f->model->scale));
  PYR_TRY(be->join(be, calls->out, calls->lse, f->low[0], f->low_lse[0], n * c->heads,
                   c->head_dim));
  return tracks ? track_below(f, layer, calls, caches, each, count, tracks, lower, views) : PYR_OK;
}

/* Both halves' ends: x += att W_o, x += mlp(x), for the tokens from `skip` on of the n that
 * pyr_layer_project normed. In parallel the MLP reads what x was before attention was added.
 * Products: n * width * (heads * head_dim + 3 * ff), most of a layer's work. */
pyr_status pyr_layer_finish(pyr_forward *f, const pyr_layer *l, float *x, int64_t skip,
                            int64_t n) {
  const pyr_model_config *c = &f->model->config;
  const float *att = f->att + skip * c->heads * c->head_dim, *in = f->h + skip * c->width;
  x += skip * c->width;
  n -= skip;
  if (c->residual == PYR_RESIDUAL_PARALLEL)
    PYR_TRY(layer_norm(f, x, l->ffn_norm, l->ffn_norm_bias, n, &in));
  PYR_TRY(layer_add(f, x, att, &l->o, l->o_bias, l->attn_post_norm, false, n));
  if (c->residual == PYR_RESIDUAL_SEQUENTIAL)
    PYR_TRY(layer_norm(f, x, l->ffn_norm, l->ffn_norm_bias, n, &in));
  return l->experts ? layer_mix(f, l, x, in, n) : layer_mlp(f, l, x, in, n);
}

/* ids [n], backend memory -> out [n, width], as they enter the first layer but for learned
 * positions: the one place that knows how, for prefill, steps and pyr_model_embed, so that rows
 * which a caller takes out and hands in again are those that ids would have become, bit for bit. */
pyr_status pyr_forward_embed(pyr_backend *be, const pyr_model *model, float *out,
                             const int32_t *ids, int64_t n) {
  const pyr_model_config *c = &model->config;
  pyr_norm norm = { c->norm, c->norm_eps, model->embed_norm, model->embed_norm_bias, 1 };
  PYR_TRY(be->embed(be, out, &model->embed, ids, n));
  if (c->embed_scale != 1) PYR_TRY(be->scale(be, out, n * c->width, c->embed_scale, 0));
  return model->embed_norm ? be->norm(be, out, out, &norm, n, c->width) : PYR_OK;
}

/* A token's row is its position's: after 900 tokens the next takes row 900, whatever was
 * evicted, so that the table bounds what a cache can read, and not what it holds. f->x [n,
 * width] += rows of the table of positions, where they are learned: through f->h, a chunk at a
 * time. */
pyr_status pyr_forward_add_positions(pyr_forward *f, const int32_t *pos, int64_t n) {
  const pyr_model_config *c = &f->model->config;
  pyr_backend *be = f->be;
  for (int64_t at = 0; c->positions && at < n; at += PYR_CHUNK) {
    int64_t some = pyr_min(PYR_CHUNK, n - at);
    PYR_TRY(be->embed(be, f->h, &f->model->positions, pos + at, some));
    PYR_TRY(be->add(be, f->x + at * c->width, f->h, some * c->width, 1));
  }
  return PYR_OK;
}

/* f->logits [n, vocab] out of every rank's ids. Of one token they come to their place; of several a
 * rank's block has all tokens, and is dealt out:
 *
 *     parts     [ ids of rank 0: n tokens ][ ids of rank 1: n tokens ]
 *     logits    [ token 0: rank 0, rank 1 ][ token 1: rank 0, rank 1 ] … */
static pyr_status gather_logits(pyr_forward *f, int64_t n) {
  const pyr_model *model = f->model;
  int64_t vocab = model->config.vocab;
  size_t bytes[PYR_RANKS_MAX];
  int size = pyr_ranks_size(model->ranks);
  float *all = n == 1 ? f->logits : f->parts;
  for (int i = 0; i < size; i++)
    bytes[i] = (size_t)(n * model->parts[i].vocab.count) * sizeof *all;
  PYR_TRY(pyr_ranks_gather_known(model->ranks, all + n * pyr_model_part(model)->vocab.first, bytes,
                                 all));
  for (int i = 0; i < size && n > 1; i++) {
    pyr_slice ids = model->parts[i].vocab;
    for (int64_t t = 0; t < n; t++)
      memcpy(f->logits + t * vocab + ids.first, all + n * ids.first + t * ids.count,
             (size_t)ids.count * sizeof *all);
  }
  return PYR_OK;
}

/* f->h [n, width] = x normed, as the output layer reads it: the hidden states that callers see. Of
 * 512 tokens of width 576 they are 1.2 MB, where logits over 49,152 ids are 96 MiB. */
pyr_status pyr_forward_states(pyr_forward *f, const float *x, int64_t n) {
  const pyr_model *model = f->model;
  const pyr_model_config *c = &model->config;
  pyr_norm norm = { c->norm, c->norm_eps, model->out_norm, model->out_norm_bias, 1 };
  return f->be->norm(f->be, f->h, x, &norm, n, c->width);
}

/* logits of x [n, width] into f->logits. Products: n * width * vocab. Of one token alone, a
 * vocabulary of 49,152 costs as much as 8 layers of the small model above. */
pyr_status pyr_forward_logits(pyr_forward *f, const float *x, int64_t n) {
  const pyr_model *model = f->model;
  const pyr_model_config *c = &model->config;
  PYR_TRY(pyr_forward_states(f, x, n));
  float *out = !model->ranks ? f->logits
      : (n == 1 ? f->logits : f->parts) + n * pyr_model_part(model)->vocab.first;
  PYR_TRY(f->be->linear(f->be, out, f->h, &model->output, model->output_bias, n, f->exact));
  if (model->ranks) PYR_TRY(gather_logits(f, n));
  if (c->logit_scale == 1 && c->logit_cap == 0) return PYR_OK;
  return f->be->scale(f->be, f->logits, n * c->vocab, c->logit_scale, c->logit_cap);
}

/* Before anything is touched: an id is an index into the table of embeddings, which no kernel
 * checks again. Tokens are counted from 1 in messages, as Lua's lists are. */
pyr_status pyr_forward_check_ids(pyr_runtime *rt, const pyr_model_config *c, const int32_t *ids,
                                 int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= c->vocab)
      return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                   "token %lld has id %d, outside the vocabulary of %d",
                                       (long long)i + 1, (int)ids[i], (int)c->vocab);
  return PYR_OK;
}

/* The context bounds what is rotated to: of a compacted layer with 300 rows the next token is
 * rotated to 300, whatever has been read; of others to the number of tokens read. Positions
 * themselves are only bounded by 2^31. */
pyr_status pyr_forward_check_room(const pyr_cache *cache, int64_t n) {
  const pyr_model_config *c = &cache->pool->model->config;
  pyr_runtime *rt = cache->pool->rt;
  /* the position that the first of them is rotated to, at most; learned positions are the
   * tokens' */
  int64_t before = c->positions ? cache->tokens : 0;
  bool compact = false;
  for (int layer = 0; layer < cache->layers; layer++) compact |= cache->states[layer].compact;
  /* Where other layers are compact, one with a sliding window bounds nothing: it sees differences
   * of positions below its window alone, however far the text goes. */
  for (int layer = 0; layer < cache->layers; layer++) {
    bool slides = compact && c->window && c->window[layer] > 0;
    before = pyr_max(before, slides || cache->states[layer].compact
                     ? pyr_cache_layer_rows(cache, layer) : cache->tokens);
  }
  if (n > c->context - before)
    return pyr_runtime_set_error(rt, PYR_CONTEXT,
                                 "%lld tokens after %lld are more than the model's context of %d",
                                     (long long)n, (long long)before, (int)c->context);
  if (n > INT32_MAX - cache->tokens)
    return pyr_runtime_set_error(rt, PYR_CONTEXT, "positions beyond %d cannot be told apart",
                                 (int)INT32_MAX);
  return PYR_OK;
}

/* Remembers how many rows each lane holds, and drops those that came since. A layer that is in a
 * stride remembers it for all its lanes, which learn of it when they are looked at (stride.c). */
void pyr_forward_mark(pyr_cache *cache) {
  for (int layer = 0; layer < cache->layers; layer++) {
    pyr_lane *lanes = &cache->lane_list[(int64_t)layer * cache->heads];
    pyr_stride *stride = &cache->strides[layer];
    if (stride->on) stride->mark = stride->ahead;
    for (int head = 0; head < cache->heads && !stride->on; head++)
      lanes[head].mark = lanes[head].rows;
  }
}

void pyr_forward_drop(pyr_cache *cache) {
  pyr_lane *lanes = pyr_cache_lanes(cache);
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++)
    pyr_lane_truncate(cache, &lanes[i], lanes[i].mark);
}
