/* model.c — the checked configuration and the bound weights of one decoder.
 *
 * A model is made in three steps: pyr_model_new checks every number of the configuration against
 * its range and against the others; pyr_model_bind, once per weight, checks its shape against the
 * configuration and puts it where the backend can read it (pyr_model_bind_expert those of experts,
 * one by one); pyr_model_ready checks that nothing is missing. What each weight is called and how
 * its file is read is not known here (lua/pyramid/families, lua/pyramid/loaders).
 *
 * Where a matrix ends up:
 *
 *   backend reads host memory, dtype kept, aligned   stays in the mapping; the file is retained
 *   dtype kept otherwise                             copied to backend memory
 *   converted (`as`)                                 row by row through f32 into backend memory,
 *                                                    rows spread over the team
 *
 * A layer has one MLP, or experts, which have one each. The same roles name the weights of both; an
 * expert's number tells which. Of a model with one plain layer before those of 8 experts:
 *
 *     weight { role, layer, expert }   lies in                        has no place
 *            gate, 0, -1               layers[0].gate                 gate, 0, 5
 *            gate, 1, 5                layers[1].experts[5].gate      gate, 1, -1
 *            router, 1, -1             layers[1].router               router, 0, -1
 *
 * A model that reads and converts gigabytes reports progress in values bound, of all that the
 * configuration implies, and can be cancelled between two pieces of work; the weight being bound is
 * then given back as if it had never come. */
#include "model/model.h"
#include "model/config.h"
#include "model/source.h"
#include "backend/backend.h"
#include "base/dtype.h"
#include "base/fingerprint.h"
#include "base/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A piece of 4 Mi values is 8 MiB of f16: some milliseconds of work, so that progress is told
 * often and a cancel is soon heard. */
#define PIECE_VALUES (4 << 20)   /* values converted between two reports of progress */

/* Released with the model, one by one; the last one may be given back alone (disown). */
struct pyr_owned { void *ptr; size_t bytes; };   /* a block of backend memory */

/* ---- roles ----------------------------------------------------------------------------------- */

/* The dimensions that shapes are made of; dim_of says how large each is in a configuration. */
typedef enum dim { ONE, WIDTH, FF, VOCAB, CONTEXT, HEADS, Q_ROWS, KV_ROWS, Q_NORM, K_NORM,
                   EXPERTS, SHARED_FF, ROW } dim;

/* Which models have a weight; MAY: it is there in every layer or in none (of those that have a
 * place for it). */
typedef enum need { MAY, ALL, BEFORE_ATTENTION, BEFORE_MLP, BEHIND, GATED, LEARNED, ROUTED, SHARED,
                    SHARED_GATED } need;

/* What a role is called in messages, its shape, and where it lies: in pyr_layer, or, if it is not
 * layered, in pyr_model. */
static const struct role {
  const char *name;
  dim rows, cols;        /* rows ONE: a vector */
  bool layered;
  need need;
  size_t place;
} roles[PYR_ROLES] = {
  [PYR_W_EMBED]     = { "embed", VOCAB, WIDTH, false, ALL, offsetof(struct pyr_model, embed) },
  [PYR_W_OUT_NORM]  = { "out_norm", ONE, WIDTH, false, ALL, offsetof(struct pyr_model, out_norm) },
  [PYR_W_OUTPUT]    = { "output", VOCAB, WIDTH, false, MAY, offsetof(struct pyr_model, output) },
  [PYR_W_ATTN_NORM] = { "attn_norm", ONE, WIDTH, true, BEFORE_ATTENTION,
                        offsetof(pyr_layer, attn_norm) },
  [PYR_W_Q]         = { "q", Q_ROWS, WIDTH, true, ALL, offsetof(pyr_layer, q) },
  [PYR_W_K]         = { "k", KV_ROWS, WIDTH, true, ALL, offsetof(pyr_layer, k) },
  [PYR_W_V]         = { "v", KV_ROWS, WIDTH, true, ALL, offsetof(pyr_layer, v) },
  [PYR_W_Q_BIAS]    = { "q_bias", ONE, Q_ROWS, true, MAY, offsetof(pyr_layer, q_bias) },
  [PYR_W_K_BIAS]    = { "k_bias", ONE, KV_ROWS, true, MAY, offsetof(pyr_layer, k_bias) },
  [PYR_W_V_BIAS]    = { "v_bias", ONE, KV_ROWS, true, MAY, offsetof(pyr_layer, v_bias) },
  [PYR_W_Q_NORM]    = { "q_norm", ONE, Q_NORM, true, MAY, offsetof(pyr_layer, q_norm) },
  [PYR_W_K_NORM]    = { "k_norm", ONE, K_NORM, true, MAY, offsetof(pyr_layer, k_norm) },
  [PYR_W_O]         = { "o", WIDTH, Q_ROWS, true, ALL, offsetof(pyr_layer, o) },
  [PYR_W_O_BIAS]    = { "o_bias", ONE, WIDTH, true, MAY, offsetof(pyr_layer, o_bias) },
  [PYR_W_FFN_NORM]  = { "ffn_norm", ONE, WIDTH, true, BEFORE_MLP, offsetof(pyr_layer, ffn_norm) },
  [PYR_W_GATE]      = { "gate", FF, WIDTH, true, GATED, offsetof(pyr_layer, gate) },
  [PYR_W_UP]        = { "up", FF, WIDTH, true, ALL, offsetof(pyr_layer, up) },
  [PYR_W_DOWN]      = { "down", WIDTH, FF, true, ALL, offsetof(pyr_layer, down) },
  [PYR_W_POSITIONS] = { "positions", CONTEXT, WIDTH, false, LEARNED,
                        offsetof(struct pyr_model, positions) },
  [PYR_W_OUT_NORM_BIAS]  = { "out_norm_bias", ONE, WIDTH, false, MAY,
                             offsetof(struct pyr_model, out_norm_bias) },
  [PYR_W_OUTPUT_BIAS]    = { "output_bias", ONE, VOCAB, false, MAY,
                             offsetof(struct pyr_model, output_bias) },
  [PYR_W_ATTN_NORM_BIAS] = { "attn_norm_bias", ONE, WIDTH, true, MAY,
                             offsetof(pyr_layer, attn_norm_bias) },
  [PYR_W_FFN_NORM_BIAS]  = { "ffn_norm_bias", ONE, WIDTH, true, MAY,
                             offsetof(pyr_layer, ffn_norm_bias) },
  [PYR_W_ATTN_POST_NORM] = { "attn_post_norm", ONE, WIDTH, true, BEHIND,
                             offsetof(pyr_layer, attn_post_norm) },
  [PYR_W_FFN_POST_NORM]  = { "ffn_post_norm", ONE, WIDTH, true, BEHIND,
                             offsetof(pyr_layer, ffn_post_norm) },
  [PYR_W_GATE_BIAS] = { "gate_bias", ONE, FF, true, MAY, offsetof(pyr_layer, gate_bias) },
  [PYR_W_UP_BIAS]   = { "up_bias", ONE, FF, true, MAY, offsetof(pyr_layer, up_bias) },
  [PYR_W_DOWN_BIAS] = { "down_bias", ONE, WIDTH, true, MAY, offsetof(pyr_layer, down_bias) },
  [PYR_W_SINKS]     = { "sinks", ONE, HEADS, true, MAY, offsetof(pyr_layer, sinks) },
  [PYR_W_ROUTER]    = { "router", EXPERTS, WIDTH, true, ROUTED, offsetof(pyr_layer, router) },
  [PYR_W_ROUTER_BIAS]       = { "router_bias", ONE, EXPERTS, true, MAY,
                                offsetof(pyr_layer, router_bias) },
  [PYR_W_ROUTER_CORRECTION] = { "router_correction", ONE, EXPERTS, true, MAY,
                                offsetof(pyr_layer, router_correction) },
  [PYR_W_SHARED_GATE] = { "shared_gate", SHARED_FF, WIDTH, true, SHARED_GATED,
                          offsetof(pyr_layer, shared_gate) },
  [PYR_W_SHARED_UP]   = { "shared_up", SHARED_FF, WIDTH, true, SHARED,
                          offsetof(pyr_layer, shared_up) },
  [PYR_W_SHARED_DOWN] = { "shared_down", WIDTH, SHARED_FF, true, SHARED,
                          offsetof(pyr_layer, shared_down) },
  /* a matrix of one row: */
  [PYR_W_SHARED_ROUTER] = { "shared_router", ROW, WIDTH, true, MAY,
                            offsetof(pyr_layer, shared_router) },
  [PYR_W_EMBED_NORM]      = { "embed_norm", ONE, WIDTH, false, MAY,
                              offsetof(struct pyr_model, embed_norm) },
  [PYR_W_EMBED_NORM_BIAS] = { "embed_norm_bias", ONE, WIDTH, false, MAY,
                              offsetof(struct pyr_model, embed_norm_bias) },
};

/* One weight of the model; `expert` -1: of the layer itself or, if it is not layered, the model. */
typedef struct weight { pyr_role role; int layer, expert; } weight;

/* Where a weight of an MLP lies in an expert; SIZE_MAX: experts have none of that role. What a
 * layer's own MLP calls gate is an expert's gate, too: one table of roles, two places. */
static size_t place_in_expert(pyr_role role) {
  switch (role) {
    case PYR_W_GATE: return offsetof(pyr_expert, gate);
    case PYR_W_UP: return offsetof(pyr_expert, up);
    case PYR_W_DOWN: return offsetof(pyr_expert, down);
    case PYR_W_GATE_BIAS: return offsetof(pyr_expert, gate_bias);
    case PYR_W_UP_BIAS: return offsetof(pyr_expert, up_bias);
    case PYR_W_DOWN_BIAS: return offsetof(pyr_expert, down_bias);
    default: return SIZE_MAX;
  }
}
static bool of_mlp(pyr_role role) { return place_in_expert(role) != SIZE_MAX; }

/* Of 9 query heads and 3 K/V heads of 64 values: Q_ROWS is 576, KV_ROWS 192. */
static int64_t dim_of(const pyr_model_config *c, dim d) {
  switch (d) {
    case WIDTH: return c->width;
    case FF: return c->ff;
    case VOCAB: return c->vocab;
    case CONTEXT: return c->context;
    case HEADS: return c->heads;
    case Q_ROWS: return (int64_t)c->heads * c->head_dim;
    case KV_ROWS: return (int64_t)c->kv_heads * c->head_dim;
    case Q_NORM: return c->qk_norm == PYR_QK_HEAD ? c->head_dim : dim_of(c, Q_ROWS);
    case K_NORM: return c->qk_norm == PYR_QK_HEAD ? c->head_dim : dim_of(c, KV_ROWS);
    case EXPERTS: return c->experts;
    case SHARED_FF: return c->shared_ff;
    default: return 1;
  }
}

/* Rows or columns of a weight: an expert's MLP has a width of its own. */
static int64_t extent_of(const pyr_model_config *c, weight w, dim d) {
  return d == FF && w.expert >= 0 ? c->expert_ff : dim_of(c, d);
}

/* What of a dimension this rank has: all of it, but for those that ranks divide. Rows and columns
 * of experts' MLPs are whole, as experts go to ranks whole; embeddings are looked up on every rank.
 * */
/* Of SmolLM2's rank 1 of 2, which has query heads 3 to 8, K/V heads 1 and 2, and MLP 864 to 1,535:
 *
 *     q       rows 192 to 575     columns all          o       rows all     columns 192 to 575
 *     k, v    rows 64 to 191      columns all          down    rows all     columns 864 to 1,535
 *     gate    rows 864 to 1,535   columns all          q_bias  values 192 to 575 */
static pyr_slice cut_of(const pyr_model *model, weight w, dim d) {
  const pyr_model_config *whole = &model->whole;
  pyr_slice all = { 0, (int32_t)extent_of(whole, w, d) };
  if (!model->ranks) return all;
  const pyr_portion *p = pyr_model_part(model);
  int32_t each = whole->head_dim;
  pyr_slice q = { p->heads.first * each, p->heads.count * each },
      kv = { p->lanes.first * each, p->lanes.count * each };
  switch (d) {
    case FF: return w.expert >= 0 ? all : p->ff;
    case HEADS: return p->heads;
    case Q_ROWS: return q;
    case KV_ROWS: return kv;
    case Q_NORM: return whole->qk_norm == PYR_QK_HEAD ? all : q;
    case K_NORM: return whole->qk_norm == PYR_QK_HEAD ? all : kv;
    case SHARED_FF: return p->shared_ff;
    case VOCAB: return w.role == PYR_W_OUTPUT || w.role == PYR_W_OUTPUT_BIAS ? p->vocab : all;
    default: return all;
  }
}

/* Whether an expert is another rank's, or a weight another stage's. Of 9 experts and two ranks the
 * first has 0 to 3, the second 4 to 8: expert 5 is elsewhere for the first. Its matrices are looked
 * at, for the fingerprint, and not bound. Embeddings are the first stage's, the output and its norm
 * the last one's, which may need the embeddings as its output. */
static bool is_elsewhere(const pyr_model *model, weight w) {
  switch (w.role) {
    case PYR_W_EMBED: if (!pyr_model_begins(model) && !pyr_model_ends(model)) return true; break;
    case PYR_W_POSITIONS: case PYR_W_EMBED_NORM: case PYR_W_EMBED_NORM_BIAS:
      if (!pyr_model_begins(model)) return true;
      break;
    case PYR_W_OUTPUT: case PYR_W_OUTPUT_BIAS: case PYR_W_OUT_NORM: case PYR_W_OUT_NORM_BIAS:
      if (!pyr_model_ends(model)) return true;
      break;
    default: if (!pyr_model_has(model, w.layer)) return true;
  }
  if (!model->ranks || w.expert < 0) return false;
  pyr_slice own = pyr_model_part(model)->experts;
  return w.expert < own.first || w.expert >= own.first + own.count;
}

static bool is_vector(pyr_role role) { return roles[role].rows == ONE; }

static bool has_experts(const pyr_model_config *c, int layer) {
  return c->experts > 0 && !(c->dense && c->dense[layer]);
}

/* How many weights of a role a layer may have: one for each expert where the MLP is theirs. These
 * two are how all of them are walked over: for i below count_of, weight_of(…, i); of a role of
 * which a layer has one, i is 0 and the expert -1. */
static int count_of(const pyr_model_config *c, pyr_role role, int layer) {
  return of_mlp(role) && has_experts(c, layer) ? c->experts : 1;
}
static weight weight_of(const pyr_model_config *c, pyr_role role, int layer, int i) {
  return (weight){ role, layer, of_mlp(role) && has_experts(c, layer) ? i : -1 };
}

/* Whether a layer of this kind has a place for a weight:
 *
 *                                  a plain layer    one with experts
 *     gate, up, down, biases       expert -1        each expert
 *     router and shared_…          no               expert -1
 *     all others                   expert -1        expert -1 */
static bool fits_layer(const pyr_model_config *c, weight w) {
  if (of_mlp(w.role)) return has_experts(c, w.layer) == (w.expert >= 0);
  if (w.role >= PYR_W_ROUTER && roles[w.role].layered) return has_experts(c, w.layer);
  return w.expert < 0;
}

/* Whether a model of this configuration cannot do without a weight, …
 *
 *     norm_place   before                 after           around
 *                  attn_norm, ffn_norm    …_post_norm     all four
 *
 * of which ffn_norm is gone where both halves share attn_norm. */
static bool is_required(const pyr_model_config *c, weight w) {
  if (!fits_layer(c, w)) return false;
  switch (roles[w.role].need) {
    case ALL: return true;
    case BEFORE_ATTENTION: return c->norm_place != PYR_NORM_AFTER;
    case BEFORE_MLP:
      return c->norm_place != PYR_NORM_AFTER && c->residual != PYR_RESIDUAL_SHARED;
    case BEHIND: return c->norm_place != PYR_NORM_BEFORE;
    case GATED: return !c->plain_mlp;
    case LEARNED: return c->positions != 0;
    case ROUTED: return true;
    case SHARED: return c->shared_ff > 0;
    case SHARED_GATED: return c->shared_ff > 0 && !c->plain_mlp;
    case MAY: break;
  }
  return false;
}

/* … or has no place for it: it would be bound, and never read. */
static bool is_useless(const pyr_model_config *c, weight w) {
  bool layer_norm = c->norm == PYR_NORM_LAYER;
  if (!fits_layer(c, w)) return true;
  switch (w.role) {
    case PYR_W_GATE_BIAS: return c->plain_mlp != 0;
    case PYR_W_OUT_NORM_BIAS: case PYR_W_EMBED_NORM_BIAS: return !layer_norm;
    case PYR_W_ATTN_NORM_BIAS: return !layer_norm || c->norm_place == PYR_NORM_AFTER;
    case PYR_W_FFN_NORM_BIAS:
      return !layer_norm || !is_required(c, (weight){ PYR_W_FFN_NORM, w.layer, -1 });
    case PYR_W_SHARED_ROUTER: return c->shared_ff == 0;
    default: return roles[w.role].need != MAY && !is_required(c, w);
  }
}

/* The address of a weight: a pyr_tensor for matrices, a float * for vectors. */
static void *place_of(pyr_model *model, weight w) {
  if (w.expert >= 0)
    return (char *)&model->layers[w.layer].experts[w.expert] + place_in_expert(w.role);
  char *base = roles[w.role].layered ? (char *)&model->layers[w.layer] : (char *)model;
  return base + roles[w.role].place;
}

/* A model begins as zeros, and what is bound is none: a rank of 2, or an address. */
static bool is_bound(pyr_model *model, weight w) {
  void *place = place_of(model, w);
  return is_vector(w.role) ? *(float **)place != NULL : ((pyr_tensor *)place)->rank != 0;
}

/* ---- configuration --------------------------------------------------------------------------- */

/* Values of all the matrices that a model of this configuration can have, for progress. Optional
 * matrices count, too: a model whose output is tied to its embedding stops short of the end, and
 * pyr_model_ready reports the rest. */
static int64_t values_expected(const pyr_model_config *c) {
  int64_t total = 0;
  for (int layer = 0; layer < c->layers; layer++)
    for (int r = 0; r < PYR_ROLES; r++) {
      weight w = weight_of(c, (pyr_role)r, layer, 0);
      if (is_vector(w.role) || is_useless(c, w) || (!roles[r].layered && layer > 0)) continue;
      total += extent_of(c, w, roles[r].rows) * extent_of(c, w, roles[r].cols)
          * count_of(c, w.role, layer);
    }
  return total;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* The three of these take their memory one after the other, and give nothing back when one
 * fails: what was kept is in the model by then, and pyr_model_free knows how long each array is
 * from the configuration alone. A copy of `bytes` that the model keeps, of an array that the
 * caller may lose; zeros where the caller has none. */
static pyr_status keep_array(pyr_model *model, const void *from, size_t bytes, void *place) {
  void *copy = pyr_alloc_zero(model->rt, bytes);
  if (!copy) return pyr_nomem(model->rt, bytes, "a model's configuration");
  if (from) memcpy(copy, from, bytes);
  *(void **)place = copy;
  return PYR_OK;
}

/* The same for what the backend reads, too: a host copy and one in its memory. Nothing, where there
 * is none. */
static pyr_status keep_numbers(pyr_model *model, const float *from, size_t count,
                               const float **host, float **placed) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  size_t bytes = count * sizeof(float);
  if (!from || bytes == 0) return PYR_OK;
  PYR_TRY(keep_array(model, from, bytes, host));
  *placed = be->alloc(be, bytes);
  if (!*placed) return pyr_nomem(model->rt, bytes, "a model's configuration");
  return be->upload(be, *placed, from, bytes);
}

/* Room for the experts of all layers that have some, and each such layer's part of it: for 48
 * layers of 128 experts 6,144 times a pyr_expert, a bit more than a MiB. Layers are gone through
 * from the last to the first, as `layers` counts how many are left before the part of each. */
static pyr_status make_experts(pyr_model *model) {
  const pyr_model_config *c = &model->config;
  size_t layers = 0;
  for (int layer = 0; layer < c->layers; layer++) layers += has_experts(c, layer);
  model->experts_bytes = layers * (size_t)c->experts * sizeof(pyr_expert);
  if (layers == 0) return PYR_OK;
  model->experts = pyr_alloc_zero(model->rt, model->experts_bytes);
  if (!model->experts) return pyr_nomem(model->rt, model->experts_bytes, "a model's experts");
  for (int layer = c->layers - 1; layer >= 0; layer--)
    if (has_experts(c, layer))
      model->layers[layer].experts = model->experts + --layers * (size_t)c->experts;
  return PYR_OK;
}

/* Arrays of the configuration are the caller's; on failure pyr_model_free gives back what there
 * is, as each member is NULL till then. */
static pyr_status keep_config(pyr_model *model, const pyr_model_config *config) {
  pyr_model_config *c = &model->config;
  size_t layers = (size_t)config->layers, pairs = (size_t)config->rope_dims / 2;
  if (c->embed_scale == 0) c->embed_scale = 1;
  if (c->residual_scale == 0) c->residual_scale = 1;
  if (c->logit_scale == 0) c->logit_scale = 1;
  if (c->router_scale == 0) c->router_scale = 1;
  model->scale = c->score_scale > 0 ? c->score_scale : 1.0f / sqrtf((float)config->head_dim);
  PYR_TRY(keep_array(model, config->window, layers * sizeof *c->window, &c->window));
  PYR_TRY(keep_array(model, config->turns, layers * sizeof *c->turns, &c->turns));
  PYR_TRY(keep_array(model, config->dense, layers * sizeof *c->dense, &c->dense));
  PYR_TRY(make_experts(model));
  PYR_TRY(keep_numbers(model, config->rope_freq, pairs, &c->rope_freq, &model->rope_freq));
  PYR_TRY(keep_numbers(model, config->rope_second, pairs, &c->rope_second, &model->rope_second));
  const float *slopes = config->slopes && model->ranks
      ? config->slopes + pyr_model_part(model)->heads.first : config->slopes;
  return keep_numbers(model, slopes, (size_t)c->heads, &c->slopes, &model->slopes);
}

/* Of the whole configuration what ranks have in common is the copies that the model keeps; of
 * ALiBi's slopes it has another, of all heads (take_part). */
static void keep_whole(pyr_model *model) {
  const pyr_model_config own = model->config;
  pyr_model_config *whole = &model->whole;
  int32_t heads = whole->heads, kv_heads = whole->kv_heads, ff = whole->ff,
      shared_ff = whole->shared_ff;
  const float *slopes = model->ranks ? whole->slopes : own.slopes;
  *whole = own;
  whole->slopes = slopes;
  whole->heads = heads, whole->kv_heads = kv_heads;
  whole->ff = ff, whole->shared_ff = shared_ff;
}

/* Of SmolLM2 on rank 1 of 2 the configuration has 6 heads, 2 K/V heads and an MLP of 672, by which
 * all that computes is laid out; `whole` still has 9, 3 and 1,536, of which policies are told.
 *
 * The parts of all ranks; the configuration becomes that of this rank's. */
static pyr_status take_part(pyr_model *model, const pyr_model_config *config, int32_t o_block,
                            int32_t down_block) {
  pyr_runtime *rt = model->rt;
  pyr_model_config *c = &model->config;
  pyr_ranks *all = pyr_runtime_ranks(rt), *line = pyr_ranks_line(all);
  model->whole = *c;
  model->own = (pyr_slice){ 0, c->layers };
  if (line) {
    const pyr_arrangement *how = pyr_ranks_arrangement(all);
    size_t bytes = (size_t)how->stages * sizeof *model->stages;
    model->stages = pyr_alloc_zero(rt, bytes);
    if (!model->stages) return pyr_nomem(rt, bytes, "the stages of a model");
    model->line = line;
    PYR_TRY(pyr_stages_make(rt, config, how->given ? how->layers : NULL, how->stages,
                            model->stages));
    model->own = model->stages[pyr_ranks_rank(line)];
  }
  model->ranks = pyr_ranks_team(all);
  int size = pyr_ranks_size(model->ranks);
  if (size == 1) return PYR_OK;
  if (config->slopes)
    PYR_TRY(keep_array(model, config->slopes, (size_t)c->heads * sizeof(float),
                       &model->whole.slopes));
  size_t bytes = (size_t)size * sizeof *model->parts;
  model->parts = pyr_alloc_zero(rt, bytes);
  if (!model->parts) return pyr_nomem(rt, bytes, "the parts of a model");
  PYR_TRY(pyr_portions_make(rt, config, o_block, down_block, size, model->parts));
  const pyr_portion *own = pyr_model_part(model);
  c->heads = own->heads.count, c->kv_heads = own->lanes.count;
  c->ff = own->ff.count, c->shared_ff = own->shared_ff.count;
  return PYR_OK;
}

pyr_status pyr_model_new(pyr_runtime *rt, const pyr_model_config *config, pyr_model **out) {
  return pyr_model_new_ranked(rt, config, 1, 1, out);
}

pyr_status pyr_model_new_ranked(pyr_runtime *rt, const pyr_model_config *config, int32_t o_block,
                                int32_t down_block, pyr_model **out) {
  PYR_TRY(pyr_config_check(rt, config));
  if (o_block < 1 || down_block < 1 || o_block > 1 << 16 || down_block > 1 << 16)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: blocks of %d and %d columns",
                                 (int)o_block, (int)down_block);
  pyr_model *model = pyr_alloc_zero(rt, sizeof *model);
  if (!model) return pyr_nomem(rt, sizeof *model, "a model");
  model->rt = pyr_runtime_retain(rt);
  model->refs = 1;
  model->config = *config;
  model->config.rope_freq = model->config.rope_second = model->config.slopes = NULL;
  model->config.window = NULL;
  model->config.turns = model->config.dense = NULL;
  model->expected = values_expected(config);
  size_t bytes = (size_t)config->layers * sizeof *model->layers;
  model->layers = pyr_alloc_zero(rt, bytes);
  pyr_status status = model->layers ? PYR_OK : pyr_nomem(rt, bytes, "a model's layers");
  if (status == PYR_OK) status = take_part(model, config, o_block, down_block);
  if (status == PYR_OK) status = keep_config(model, config);
  if (status == PYR_OK) keep_whole(model);
  for (int i = 0; i < config->layers && config->window; i++)
    model->slides = model->slides || config->window[i] > 0;
  if (status == PYR_OK) *out = model;
  else pyr_model_free(model);
  return status;
}

/* Pools hold it, and whoever made it: the weights go with the last of them. */
pyr_model *pyr_model_retain(pyr_model *model) {
  model->refs++;
  return model;
}

/* Files last of the weights: tensors point into them. The runtime goes at the very end, as the
 * memory is its. */
void pyr_model_free(pyr_model *model) {
  if (!model || --model->refs > 0) return;
  pyr_runtime *rt = model->rt;
  pyr_backend *be = pyr_runtime_backend(rt);
  const pyr_model_config *c = &model->config;
  size_t layers = (size_t)c->layers, turn_bytes = (size_t)c->rope_dims / 2 * sizeof(float),
      slope_bytes = (size_t)c->heads * sizeof(float);
  for (size_t i = 0; i < model->owned_count; i++)
    be->release(be, model->owned[i].ptr, model->owned[i].bytes);
  for (size_t i = 0; i < model->file_count; i++) pyr_file_free(model->files[i]);
  if (model->rope_freq) be->release(be, model->rope_freq, turn_bytes);
  if (model->rope_second) be->release(be, model->rope_second, turn_bytes);
  if (model->slopes) be->release(be, model->slopes, slope_bytes);
  pyr_release(rt, model->owned, model->owned_room * sizeof *model->owned);
  pyr_release(rt, model->files, model->file_room * sizeof *model->files);
  pyr_release(rt, model->layers, layers * sizeof *model->layers);
  pyr_release(rt, (void *)c->window, layers * sizeof *c->window);
  pyr_release(rt, (void *)c->turns, layers * sizeof *c->turns);
  pyr_release(rt, (void *)c->dense, layers * sizeof *c->dense);
  pyr_release(rt, model->experts, model->experts ? model->experts_bytes : 0);
  pyr_release(rt, (void *)c->rope_freq, turn_bytes);
  pyr_release(rt, (void *)c->rope_second, turn_bytes);
  pyr_release(rt, (void *)c->slopes, slope_bytes);
  if (model->ranks)
    pyr_release(rt, (void *)model->whole.slopes, (size_t)model->whole.heads * sizeof(float));
  pyr_release(rt, model->parts, (size_t)pyr_ranks_size(model->ranks) * sizeof *model->parts);
  pyr_release(rt, model->stages, (size_t)pyr_ranks_size(model->line) * sizeof *model->stages);
  pyr_release(rt, model, sizeof *model);
  pyr_runtime_free(rt);
}

const pyr_model_config *pyr_model_get_config(const pyr_model *model) { return &model->whole; }
pyr_runtime *pyr_model_runtime(const pyr_model *model) { return model->rt; }
uint64_t pyr_model_bytes(const pyr_model *model) { return model->bytes; }

/* ---- memory of weights ----------------------------------------------------------------------- */

/* Room for one more element in an array of the model's; NULL if there is none, and the array is as
 * before. 16, 32, 64 … elements, so that a model of some hundred weights moves its lists a few
 * times. */
static void *grow(pyr_runtime *rt, void *array, size_t size, size_t count, size_t *room) {
  if (count < *room) return array;
  size_t more = *room ? *room * 2 : 16;
  void *grown = pyr_realloc(rt, array, *room * size, more * size);
  if (grown) *room = more;
  return grown;
}

/* The list has room before memory is asked for: so what has been allocated is always noted, and
 * never lost. */
static pyr_status own(pyr_model *model, size_t bytes, void **out) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  struct pyr_owned *owned = grow(model->rt, model->owned, sizeof *owned, model->owned_count,
                                 &model->owned_room);
  if (!owned) return pyr_nomem(model->rt, sizeof *owned, "a weight");
  model->owned = owned;
  void *ptr = be->alloc(be, bytes);
  if (!ptr) return pyr_nomem(model->rt, bytes, "a weight");
  owned[model->owned_count++] = (struct pyr_owned){ ptr, bytes };
  *out = ptr;
  return PYR_OK;
}

/* Undoes the last `own`. */
static void disown(pyr_model *model) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  struct pyr_owned last = model->owned[--model->owned_count];
  be->release(be, last.ptr, last.bytes);
}

/* Once for each file, however many tensors lie in it: a model in 4 shards keeps 4. */
static pyr_status keep_file(pyr_model *model, pyr_file *file) {
  for (size_t i = 0; i < model->file_count; i++)
    if (model->files[i] == file) return PYR_OK;
  pyr_file **files = grow(model->rt, model->files, sizeof *files, model->file_count,
                          &model->file_room);
  if (!files) return pyr_nomem(model->rt, sizeof *files, "a file");
  model->files = files;
  files[model->file_count++] = pyr_file_retain(file);
  return PYR_OK;
}

/* Where a backend computes in the host's memory, mappings serve as they are. Then a matrix that
 * keeps its dtype and lies aligned costs no memory: the system reads its pages from the file as
 * they are used, and shares them between processes. */
static bool reads_host_memory(const pyr_backend *be) { return !be->own_memory; }

/* ---- binding --------------------------------------------------------------------------------- */

/* Whether the backend multiplies by matrices of a dtype; whether some backend can hold what a file
 * has, as it is or converted. */
static bool multiplies(const pyr_backend *be, pyr_dtype dtype) {
  return pyr_dtype_kernels(dtype, be->own_memory) & PYR_KERNEL_WEIGHTS;
}
static bool is_weight(const pyr_dtype_info *info) { return info->weights; }
static bool is_converted(const pyr_dtype_info *info) {
  return pyr_dtype_describe(info->at_load) != info;
}

/* Two cases for the message: a type that some backend takes, or that converts, is to be bound
 * converted; any other is refused with the names of those that would do. */
static pyr_status refuse_dtype(pyr_model *model, const char *path, const char *name,
                               const pyr_dtype_info *info) {
  char known[128], converted[160], how[320];
  if (is_weight(info) || is_converted(info))
    snprintf(how, sizeof how, "as they are: bind them converted, to %s for instance",
             pyr_dtype_name(is_converted(info) ? info->at_load : PYR_F32));
  else snprintf(how, sizeof how, "(known: %s; converted: %s)",
                pyr_dtype_list(known, sizeof known, is_weight),
                pyr_dtype_list(converted, sizeof converted, is_converted));
  return pyr_runtime_set_error(model->rt, PYR_UNSUPPORTED,
                               "%s: tensor %s: weights of dtype %s are not supported %s", path,
                               name, info->name, how);
}

/* Read by all workers of a piece at once, written by none of them. */
struct conversion {   /* rows [first, first+n) of a matrix, one task each; packed: a strip each */
  const pyr_source *from;
  pyr_dtype as;
  int64_t first, n;
  char *out;          /* where row `first` goes; rows of `stride` bytes */
  size_t stride;
  float *scratch;     /* [workers, each] */
  size_t each, cut;   /* cut: packed, of which columns are left out: bytes of a whole row, else 0 */
};

/* Rows that a task makes, floats that it needs: a row, or what packed.h says. */
static int64_t rows_of_task(const pyr_source *from) {
  return from->is_packed ? PYR_PACKED_STRIP : 1;
}
static size_t floats_of_task(const pyr_source *from, size_t cut) {
  if (!from->is_packed) return (size_t)from->cols;
  return pyr_packed_scratch(&from->packed)
      + (cut * PYR_PACKED_STRIP + sizeof(float) - 1) / sizeof(float);
}

/* Of AWQ's [576, 1,536] columns 864 to 1,535 for rank 1, in q8_0: strips of 16 rows of 1,632 bytes
 * are unpacked, of which the last 714 are each row's part.
 *
 * Packed rows are unpacked whole, into the end of the scratch, where columns of them are left out:
 * those that stay are whole blocks of what the rows become. */
static void cut_strip(const struct conversion *c, int64_t at, int n, float *values) {
  const pyr_packed *p = &c->from->packed;
  char *whole = (char *)(values + pyr_packed_scratch(p)), *out = c->out + (size_t)at * c->stride;
  size_t skip = pyr_dtype_bytes(c->as, c->from->col0);
  pyr_packed_rows(p, c->from->row0 + c->first + at, n, whole, c->cut, c->as, values);
  for (int i = 0; i < n; i++)
    memcpy(out + (size_t)i * c->stride, whole + (size_t)i * c->cut + skip, c->stride);
}

/* Rows are independent, and each worker has a row of f32 of its own. */
static void convert_row(void *ctx, int64_t task, int worker) {
  const struct conversion *c = ctx;
  float *values = c->scratch + (size_t)worker * c->each;
  if (c->from->is_packed) {
    int64_t at = task * PYR_PACKED_STRIP;
    int n = (int)pyr_min(PYR_PACKED_STRIP, c->n - at);
    if (c->cut) cut_strip(c, at, n, values);
    else pyr_packed_rows(&c->from->packed, c->from->row0 + c->first + at, n,
                         c->out + (size_t)at * c->stride, c->stride, c->as, values);
    return;
  }
  if (c->as == c->from->view.dtype && pyr_source_contiguous(c->from)) {   /* some of the columns */
    const char *row = (const char *)c->from->view.data
        + (size_t)(c->first + task) * c->from->view.stride;
    memcpy(c->out + (size_t)task * c->stride, row, c->stride);
    return;
  }
  pyr_source_row(c->from, c->first + task, values);
  pyr_row_from_f32(c->out + (size_t)task * c->stride, c->as, values, c->from->cols);
}

/* Whether rows of so many bytes lie one after the other in the file, with nothing between. */
static bool lies_close(const pyr_source *from, size_t stride) {
  return pyr_source_contiguous(from) && from->view.stride == stride;
}

/* Fills `to` (backend memory) with the rows of `from` in the dtype and the order of `bound`. A
 * piece is whole rows, and whole packs where rows lie interleaved: of 576 columns and packs of
 * 16, (4,194,304 / 576 / 16 + 1) * 16 = 7,296 rows. Three ways, by where a piece is made ready:
 *
 *     dtype kept                from (the file)                     -> interleave or upload
 *     converted, host memory    straight into its place             -> nothing
 *     converted, otherwise      staging (one piece)                 -> interleave or upload
 *
 * Rows that the file has in another order, or packed (source.h), are converted, if only to their
 * own dtype; those of which a rank has some columns are copied as if they were.
 * So beside the matrix itself one piece and a row for each worker are held, whatever its size. */
static pyr_status fill_matrix(pyr_model *model, char *to, const pyr_tensor *bound,
                              const pyr_source *from) {
  pyr_runtime *rt = model->rt;
  pyr_backend *be = pyr_runtime_backend(rt);
  int64_t rows = from->rows, cols = from->cols,
      unit = bound->interleaved ? bound->interleaved : 1;
  int64_t piece = (PIECE_VALUES / cols / unit + 1) * unit;
  if (piece > rows) piece = rows;
  bool convert = bound->dtype != from->view.dtype || !lies_close(from, bound->stride),
      in_place = convert && !bound->interleaved && reads_host_memory(be);
  size_t cut = from->is_packed && from->cols != from->packed.cols
      ? pyr_dtype_bytes(bound->dtype, from->packed.cols) : 0;
  size_t stride = bound->stride, scratch_bytes = 0, each = floats_of_task(from, cut),
      staging_bytes = convert && !in_place ? (size_t)piece * stride : 0;
  int64_t strip = rows_of_task(from);
  float *scratch = NULL;
  char *staging = NULL;
  pyr_status status = PYR_OK;
  if (convert) {
    if (!pyr_mul_size((size_t)pyr_runtime_threads(rt) * sizeof(float), each, &scratch_bytes))
      return pyr_nomem(rt, SIZE_MAX, "conversion");
    scratch = pyr_alloc(rt, scratch_bytes);
    staging = pyr_alloc(rt, staging_bytes);
    if (!scratch || (staging_bytes && !staging)) { status = pyr_nomem(rt,
        scratch_bytes + staging_bytes, "conversion"); goto done; }
  }
  for (int64_t first = 0; first < rows; first += piece) {
    int64_t n = rows - first < piece ? rows - first : piece;
    char *at = to + (size_t)first * stride;
    const char *ready;
    if (convert) {
      struct conversion c = { from, bound->dtype, first, n, in_place ? at : staging, stride,
                              scratch, each, cut };
      pyr_parallel(rt, convert_row, &c, (n + strip - 1) / strip);
      ready = c.out;
    } else ready = (const char *)from->view.data + (size_t)first * from->view.stride;
    if (bound->interleaved) {
      pyr_tensor some = { ready, bound->dtype, 2, { n, cols }, stride, 0 };
      status = be->interleave(be, at, &some);
    } else if (!in_place) {
      status = be->upload(be, at, ready, (size_t)n * stride);
    }
    if (status == PYR_OK)
      status = pyr_progress(rt, model->done + (first + n) * cols, model->expected);
    if (status != PYR_OK) goto done;
  }
done:
  pyr_release(rt, scratch, scratch_bytes);
  pyr_release(rt, staging, staging_bytes);
  return status;
}

/* Norms and biases are f32 everywhere, whatever the file has: they are small, and added exactly.
 * `offset` is added to each value: a file may hold what a norm's weights are beyond 1. */
static pyr_status bind_vector(pyr_model *model, float **place, const pyr_source *from,
                              float offset) {
  pyr_runtime *rt = model->rt;
  pyr_backend *be = pyr_runtime_backend(rt);
  size_t bytes = (size_t)from->cols * sizeof(float);
  void *ptr = NULL;
  float *values = pyr_alloc(rt, bytes);
  if (!values) return pyr_nomem(rt, bytes, "a weight");
  pyr_status status = own(model, bytes, &ptr);
  if (status == PYR_OK) {
    pyr_source_row(from, 0, values);
    for (int64_t i = 0; offset != 0 && i < from->cols; i++) values[i] += offset;
    status = be->upload(be, ptr, values, bytes);
    if (status == PYR_OK) { *place = ptr; model->bytes += bytes; }
    else disown(model);
  }
  pyr_release(rt, values, bytes);
  return status;
}

/* What norm_offset is added to. */
static bool is_norm_weight(pyr_role role) {
  switch (role) {
    case PYR_W_OUT_NORM: case PYR_W_ATTN_NORM: case PYR_W_FFN_NORM: case PYR_W_Q_NORM:
    case PYR_W_K_NORM: case PYR_W_ATTN_POST_NORM: case PYR_W_FFN_POST_NORM:
    case PYR_W_EMBED_NORM: return true;
    default: return false;
  }
}

/* A weight's part of the fingerprint, from how it lies in its file. Weights add up to the
 * model's fingerprint in any order, as each is mixed by itself first; role, layer and expert are
 * part of it, so that two that changed places are told apart. Large ones are sampled. */
static uint64_t print_of(weight w, const pyr_tensor *view, const pyr_packed *packed) {
  const int64_t head[5] = { (int64_t)w.role + (w.expert + 1) * 4096, w.layer, view->dtype,
                            view->shape[0], view->shape[1] };
  if (packed) return pyr_fnv_mix(pyr_packed_print(packed, pyr_fnv(PYR_FNV_START, head,
                                                                  sizeof head)));
  size_t bytes = view->rank == 2 ? view->stride * (size_t)view->shape[0]
      : pyr_dtype_bytes(view->dtype, view->shape[0]);
  return pyr_fnv_mix(pyr_fnv_sample(pyr_fnv(PYR_FNV_START, head, sizeof head), view->data, bytes));
}

/* `looked_up`: single rows are read, as they lie in the file. Two ends: the matrix stays in its
 * mapping and costs nothing but a reference to the file; or it is copied or converted to memory
 * of the model's, and the file's pages may leave the page cache (pyr_file_forget). `place` is
 * written last: until then nothing is bound. */
static pyr_status bind_matrix(pyr_model *model, pyr_tensor *place, const pyr_tensor_spec *spec,
                              const pyr_source *from, bool looked_up, int as) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  const pyr_tensor *view = &from->view;
  int64_t rows = from->rows, cols = from->cols;
  pyr_dtype dtype = as < 0 ? view->dtype : (pyr_dtype)as;
  pyr_tensor bound = { .data = view->data, .dtype = dtype, .rank = 2, .shape = { rows, cols },
                       .stride = pyr_dtype_bytes(dtype, cols) };
  pyr_status status;
  size_t bytes = bound.stride * (size_t)rows;   /* no overflow: at most 4 bytes a value of
                                                             2^22 * 2^20 */
  if (bound.stride == 0)
    return pyr_runtime_set_error(model->rt, PYR_UNSUPPORTED,
                                 "tensor %s: rows of %lld values cannot become %s (blocks of %d)",
                                     spec->name ? spec->name : "(unnamed)",
                                         (long long)cols, pyr_dtype_name(dtype),
                                             pyr_dtype_block(dtype));
  if (!looked_up && be->interleaved) bound.interleaved = be->interleaved(be, &bound);
  if (dtype == view->dtype && !bound.interleaved && from->aligned
      && lies_close(from, bound.stride) && reads_host_memory(be)) {
    status = keep_file(model, spec->file);
    if (status == PYR_OK)
      status = pyr_progress(model->rt, model->done + rows * cols, model->expected);
  } else {
    void *ptr = NULL;
    status = own(model, bytes, &ptr);
    if (status != PYR_OK) return status;
    status = fill_matrix(model, ptr, &bound, from);
    bound.data = ptr;
    if (status != PYR_OK) disown(model);
    else if (from->is_packed)
      pyr_file_forget(spec->file, from->packed.numbers.at, from->packed.numbers.bytes);
    else if (pyr_source_contiguous(from) && rows == spec->shape[0] && cols == spec->shape[1])
      pyr_file_forget(spec->file, view->data, view->stride * (size_t)view->shape[0]);
  }
  if (status != PYR_OK) return status;
  *place = bound;
  model->bytes += bytes;
  model->done += rows * cols;
  return PYR_OK;
}

/* Routers choose, and are small (1 MiB of 128 experts and a width of 2,048): they are f32 whatever
 * all else is converted to, so that what a token takes does not depend on it. */
static bool is_router(pyr_role role) {
  return role == PYR_W_ROUTER || role == PYR_W_SHARED_ROUTER;
}

/* Of two ranks of SmolLM2 in q8_0 the second has 384 rows of 576 of a layer's q: 235,008 bytes. */
uint64_t pyr_weight_bytes(const pyr_model *model, pyr_role role, int layer, int expert, bool tied,
                          pyr_dtype dtype) {
  const pyr_backend *be = pyr_runtime_backend(model->rt);
  weight w = { role, layer, expert };
  if ((int)role < 0 || role >= PYR_ROLES || layer < 0 || layer >= model->config.layers
      || expert >= model->whole.experts || is_elsewhere(model, w)) return 0;
  if (is_router(role)) dtype = PYR_F32;
  uint64_t rows = (uint64_t)cut_of(model, w, roles[role].rows).count,
      cols = (uint64_t)cut_of(model, w, roles[role].cols).count;
  if (is_vector(role)) return cols * sizeof(float);
  pyr_tensor t = { .dtype = dtype, .rank = 2, .shape = { (int64_t)rows, (int64_t)cols },
                   .stride = pyr_row_bytes(dtype, (int32_t)cols) };
  bool copied = be->interleaved && be->interleaved(be, &t);
  return tied && !copied ? 0 : rows * t.stride;
}

/* Order of checks: what the caller got wrong (role, layer, dtype, twice), then what the file has
 * (type, shape). After a failure the role is free, and may be bound again. */
static pyr_status bind_weight(pyr_model *model, weight w, const pyr_tensor_spec *spec, int as) {
  pyr_runtime *rt = model->rt;
  const pyr_model_config *c = &model->config;
  pyr_role role = w.role;
  pyr_source from;
  if ((int)role < 0 || role >= PYR_ROLES)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: no role %d", (int)role);
  const char *name = spec->name ? spec->name : roles[role].name;
  if (roles[role].layered && (w.layer < 0 || w.layer >= c->layers))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: layer %d of %s, outside 0..%d", w.layer,
                                 roles[role].name, c->layers - 1);
  if (is_router(role)) as = PYR_F32;
  if (as >= 0 && !(multiplies(pyr_runtime_backend(rt), (pyr_dtype)as)
                   && pyr_dtype_writable((pyr_dtype)as)))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: weights cannot be converted to dtype %s",
                                 pyr_dtype_valid(as) ? pyr_dtype_name((pyr_dtype)as) : "(unknown)");
  if (model->ready)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: %s bound after the model was ready",
                                 name);
  if (is_useless(c, w))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "model: %s is a %s, which this configuration does not have%s",
                                 name, roles[role].name, !of_mlp(role) || fits_layer(c, w) ? ""
                                     : w.expert < 0 ? " but for experts" : " for experts");
  if (is_bound(model, w))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "model: %s is bound twice", name);

  pyr_status status = pyr_source_open(rt, spec, &from);
  if (status != PYR_OK) return status;
  const pyr_tensor *view = &from.view;
  const pyr_tensor held = from.view;   /* as the file has it, whatever is taken of it */
  const char *path = pyr_file_path(spec->file);
  int64_t rows = extent_of(&model->whole, w, roles[role].rows),
      cols = extent_of(&model->whole, w, roles[role].cols);
  pyr_slice down = cut_of(model, w, roles[role].rows), across = cut_of(model, w, roles[role].cols);
  if (is_vector(role)) {
    if (spec->rank != 1 || from.cols != cols)
      return pyr_runtime_set_error(rt, PYR_FORMAT,
                                   "%s: tensor %s: shape [%lld%s], where the model's %s is [%lld]",
                                       path, name, (long long)spec->shape[0],
                                           spec->rank == 1 ? "" : ", …", roles[role].name,
                                               (long long)cols);
    if (across.count != cols)
      PYR_TRY(pyr_source_cut(rt, spec, &from, 0, 1, across.first, across.count));
    if (is_elsewhere(model, w)) status = PYR_OK;
    else status = bind_vector(model, place_of(model, w), &from,
                         is_norm_weight(role) ? c->norm_offset : 0);
    if (status == PYR_OK) model->print += print_of(w, &held, NULL);
    return status;
  }
  const pyr_dtype_info *info = pyr_dtype_describe(view->dtype);
  if (!(is_weight(info) || is_converted(info))
      || (as < 0 && !multiplies(pyr_runtime_backend(rt), view->dtype)))
    return refuse_dtype(model, path, name, info);
  if (spec->rank != 2 || from.rows != rows || from.cols != cols)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "%s: tensor %s: shape [%lld, %lld], where the model's %s is "
                                 "[%lld, %lld]", path, name, (long long)spec->shape[0],
                                     (long long)spec->shape[1], roles[role].name, (long long)rows,
                                         (long long)cols);
  pyr_tensor *place = place_of(model, w);
  bool looked_up = role == PYR_W_EMBED || role == PYR_W_POSITIONS;
  if (down.count != rows || across.count != cols)
    PYR_TRY(pyr_source_cut(rt, spec, &from, down.first, down.count, across.first, across.count));
  if (is_elsewhere(model, w)) {
    model->done += rows * cols;
    model->print += print_of(w, &held, from.is_packed ? &from.packed : NULL);
    return PYR_OK;
  }
  if (from.is_packed) {   /* a callback may close what its parts lie in */
    pyr_packing_retain(spec->packing);
    status = bind_matrix(model, place, spec, &from, looked_up, as);
    if (status == PYR_OK) model->print += print_of(w, &held, &from.packed);
    pyr_packing_release(spec->packing);
    return status;
  }
  status = bind_matrix(model, place, spec, &from, looked_up, as);
  /* what stays in a mapping is there when somebody asks: its pages need not be fetched now. Of a
   * part nobody could tell later what the whole was */
  if (status == PYR_OK
      && (model->ranks || model->line || place->data != view->data || !pyr_file_mapped(spec->file)))
    model->print += print_of(w, &held, NULL);
  return status;
}

pyr_status pyr_model_bind(pyr_model *model, pyr_role role, int layer, const pyr_tensor_spec *spec,
                          int as) {
  return bind_weight(model, (weight){ role, layer, -1 }, spec, as);
}

pyr_status pyr_model_bind_expert(pyr_model *model, pyr_role role, int layer, int expert,
                                 const pyr_tensor_spec *spec, int as) {
  if (expert < 0 || expert >= model->config.experts)
    return pyr_runtime_set_error(model->rt, PYR_ARGUMENT, "model: expert %d, of %d", expert,
                                 model->config.experts);
  return bind_weight(model, (weight){ role, layer, expert }, spec, as);
}

/* By address: a view into a mapped file begins inside of it. A model has a few files at most. */
static bool lies_in_mapping(const pyr_model *model, const pyr_tensor *t) {
  for (size_t i = 0; i < model->file_count; i++) {
    uintptr_t begin = (uintptr_t)pyr_file_data(model->files[i]), at = (uintptr_t)t->data;
    if (pyr_file_mapped(model->files[i]) && at >= begin
        && at - begin < pyr_file_size(model->files[i])) return true;
  }
  return false;
}

/* Reads samples of the mapped weights the first time it is asked, and keeps the result. */
uint64_t pyr_model_fingerprint(pyr_model *model) {
  if (!model->ready || model->printed || model->ranks || model->line) return model->print;
  const pyr_model_config *c = &model->config;
  for (int layer = 0; layer < c->layers; layer++)
    for (int r = 0; r < PYR_ROLES; r++) {
      if (is_vector((pyr_role)r) || (!roles[r].layered && layer > 0)) continue;
      for (int i = 0; i < count_of(c, (pyr_role)r, layer); i++) {
        weight w = weight_of(c, (pyr_role)r, layer, i);
        const pyr_tensor *t = place_of(model, w);
        if (r == PYR_W_OUTPUT && t->data == model->embed.data) continue;    /* tied, not bound */
        if (t->rank != 0 && lies_in_mapping(model, t)) model->print += print_of(w, t, NULL);
      }
    }
  model->printed = true;
  return model->print;
}

/* A name of more than 159 bytes is cut before the character that would not fit: bytes 10xxxxxx
 * go on with one, and are skipped backwards. */
void pyr_model_identify(pyr_model *model, const char *name, uint64_t tokenizer) {
  size_t bytes = name ? strlen(name) : 0;
  if (bytes >= sizeof model->name) {
    bytes = sizeof model->name - 1;
    /* not within a character */
    while (bytes > 0 && ((unsigned char)name[bytes] & 0xc0) == 0x80) bytes--;
  }
  memset(model->name, 0, sizeof model->name);
  if (bytes) memcpy(model->name, name, bytes);
  model->tokenizer = tokenizer;
}

/* The first weight of a kind: of the first layer that has a place for it, and of its first expert.
 * What that layer has, all of its kind must have; where the first two of four layers are plain,
 *
 *     gate_bias of layer 1            is held against layer 0's
 *     gate_bias of layer 3, expert 2  against expert 0's of layer 2
 *     q_bias of layer 3               against layer 0's */
static weight first_of_kind(const pyr_model *model, weight w) {
  const pyr_model_config *c = &model->config;
  int32_t expert = model->ranks ? pyr_model_part(model)->experts.first : 0;
  weight first = { w.role, model->own.first, w.expert < 0 ? -1 : expert };
  while (first.layer < w.layer && !fits_layer(c, first)) first.layer++;
  return first;
}

/* "expert 3's up of layer 1", "router of layer 1". */
static const char *name_of(weight w, char *text, size_t size) {
  int at = 0;
  if (w.expert >= 0) at = snprintf(text, size, "expert %d's ", w.expert);
  snprintf(text + at, size - (size_t)at, "%s of layer %d", roles[w.role].name, w.layer);
  return text;
}

/* A weight may be missing in the whole model, but not here alone. And one operation multiplies by
 * all experts of a layer, so what holds of one matrix must hold of the others: it is told of expert
 * 0's dtype and order alone. Files have them so; only a caller that binds some of them converted
 * is refused. */
static pyr_status check_bound(pyr_model *model, weight w) {
  const pyr_model_config *c = &model->config;
  if (is_elsewhere(model, w)) return PYR_OK;
  weight first = first_of_kind(model, w);
  bool bound = is_bound(model, w);
  /* what is optional is there in every layer or in none: a half-bound model would run, and be
   * wrong */
  bool wanted = is_required(c, w) || is_bound(model, first);
  char name[96], other[96];
  if (bound != wanted && wanted)
    return pyr_runtime_set_error(model->rt, PYR_FORMAT, "model: weight %s is missing",
                                 name_of(w, name, sizeof name));
  if (bound != wanted)
    return pyr_runtime_set_error(model->rt, PYR_FORMAT,
                                 "model: weight %s is there, but %s is not",
                                 name_of(w, name, sizeof name),
                                 name_of(first, other, sizeof other));
  if (w.expert < 0 || !bound || is_vector(w.role)) return PYR_OK;
  const pyr_tensor *t = place_of(model, w),
      *its = place_of(model, (weight){ w.role, w.layer, first.expert });
  if (t->dtype == its->dtype && t->interleaved == its->interleaved) return PYR_OK;
  return pyr_runtime_set_error(model->rt, PYR_UNSUPPORTED,
                               "model: weight %s is %s, that of expert %d %s",
                               name_of(w, name, sizeof name), pyr_dtype_name(t->dtype),
                               first.expert, pyr_dtype_name(its->dtype));
}

/* A device finds out by itself which experts are taken, so it reads where their matrices lie from
 * its own memory: copied there once, when all of them are known. A second call of pyr_model_ready,
 * after a failure, finds the tables that are there. */
static pyr_status place_tables(pyr_model *model) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  size_t bytes = (size_t)model->config.experts * sizeof(pyr_expert);
  for (int layer = 0; layer < model->config.layers && !reads_host_memory(be); layer++) {
    pyr_layer *l = &model->layers[layer];
    void *table;
    if (!l->experts || l->table || !pyr_model_has(model, layer)) continue;
    PYR_TRY(own(model, bytes, &table));
    pyr_status status = be->upload(be, table, l->experts, bytes);
    if (status != PYR_OK) {
      disown(model);
      return status;
    }
    l->table = table;
  }
  return PYR_OK;
}

/* A matrix that embeds and predicts is read in two ways: single rows, which lie well as they are in
 * the file, and whole at every step, where interleaved rows are read about twice as fast. So where
 * the backend interleaves, the output is a copy in that order, and the file's rows stay mapped, of
 * which a prompt touches a few. Of Gemma 3 270M, 262,144 rows of 680 bytes, the copy is 170 MiB:
 * two thirds of what a step reads. Under a memory limit it is only made where as much again is left
 * then, for the caches that are to come; else both are one. */
static pyr_status tie_output(pyr_model *model) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  pyr_tensor output = model->embed;
  if (model->ranks) {      /* this rank's ids */
    pyr_slice own = pyr_model_part(model)->vocab;
    output.data = (const char *)output.data + (size_t)own.first * output.stride;
    output.shape[0] = own.count;
  }
  const pyr_tensor rows_of_embed = output;
  model->output = output;
  if (output.interleaved || !be->interleaved) return PYR_OK;
  size_t bytes = output.stride * (size_t)output.shape[0];
  void *rows;
  output.interleaved = be->interleaved(be, &output);
  if (!output.interleaved || bytes > SIZE_MAX / 2 || !pyr_fits(model->rt, 2 * bytes)
      || own(model, bytes, &rows) != PYR_OK) return PYR_OK;
  pyr_status status = be->interleave(be, rows, &rows_of_embed);
  if (status != PYR_OK) {
    disown(model);
    return status;
  }
  output.data = rows;
  model->output = output;
  model->bytes += bytes;
  return PYR_OK;
}

/* What the first layer has of optional weights is what all must have; of experts, the first.
 *
 *     q_bias in layer   0  1  2  3         wanted in all
 *                       x  x  .  x         layer 2: "missing"
 *                       .  .  x  .         layer 2: "there, but q_bias of layer 0 is not" */
static pyr_status make_ready(pyr_model *model) {
  const pyr_model_config *c = &model->config;
  if (model->ready) return PYR_OK;
  for (int layer = 0; layer < c->layers; layer++)
    for (int r = 0; r < PYR_ROLES; r++) {
      weight w = weight_of(c, (pyr_role)r, layer, 0);
      if (roles[r].layered) {
        for (int i = 0; i < count_of(c, w.role, layer) && fits_layer(c, w); i++)
          PYR_TRY(check_bound(model, weight_of(c, w.role, layer, i)));
      } else if (layer == 0 && is_required(c, w) && !is_bound(model, w)
                 && !is_elsewhere(model, w)) {
        return pyr_runtime_set_error(model->rt, PYR_FORMAT, "model: weight %s is missing",
                                     roles[r].name);
      }
    }
  PYR_TRY(place_tables(model));
  pyr_status status = pyr_progress(model->rt, model->expected, model->expected);
  if (status != PYR_OK) return status;
  if (model->output.rank == 0 && pyr_model_ends(model)) status = tie_output(model);
  model->ready = status == PYR_OK;
  return status;
}

/* Three numbers of each rank: the weights' fingerprint, which is of the whole file on all of them,
 * as each has looked at every tensor; one of the shape; and one of the dtypes that q and o have in
 * each layer that is its own, of which one rank may have been told to convert them.
 *
 * All ranks come here, with whatever went wrong before, as a rank that fails alone would leave the
 * others waiting. Weights are those of one model where all fingerprints are equal, and their parts
 * fit together where all have the same configuration and were bound in the same dtypes. */
static pyr_status compare_ranks(pyr_model *model, pyr_status status) {
  enum { NUMBERS = 3 };
  int64_t mine[NUMBERS] = { (int64_t)model->print }, all[NUMBERS * PYR_RANKS_MAX];
  int team = pyr_ranks_size(model->ranks);     /* whose layers are the same: ranks lie by teams */
  const pyr_model_config *c = &model->whole;
  const int32_t numbers[] = { c->layers, c->heads, c->kv_heads, c->head_dim, c->width, c->ff,
                              c->vocab, c->context, c->rope_dims, c->experts, c->expert_ff,
                              c->shared_ff };
  uint64_t print = PYR_FNV_START;
  for (int layer = 0; layer < c->layers; layer++) {
    if (!pyr_model_has(model, layer)) continue;
    const int32_t dtypes[2] = { model->layers[layer].q.dtype, model->layers[layer].o.dtype };
    print = pyr_fnv(print, dtypes, sizeof dtypes);
  }
  mine[1] = (int64_t)pyr_fnv_mix(pyr_fnv(PYR_FNV_START, numbers, sizeof numbers));
  mine[2] = (int64_t)pyr_fnv_mix(print);
  pyr_ranks_begin(model->rt);
  status = pyr_ranks_agree(model->rt, status);
  pyr_ranks *ranks = pyr_runtime_ranks(model->rt);
  if (status == PYR_OK) status = pyr_ranks_tell(ranks, mine, NUMBERS, all);
  for (int i = 1; i < pyr_ranks_size(ranks) && status == PYR_OK; i++) {
    int first = i / team * team;
    if (all[NUMBERS * i] != all[0])
      status = pyr_runtime_set_error(model->rt, PYR_FORMAT, "ranks: rank %d has other weights than "
                                     "rank 0: is its model file another one?", i);
    else if (all[NUMBERS * i + 1] != all[1]
             || all[NUMBERS * i + 2] != all[NUMBERS * first + 2])
      status = pyr_runtime_set_error(model->rt, PYR_FORMAT, "ranks: rank %d has another "
                                     "configuration, or its weights in other dtypes, than rank "
                                     "%d", i, first);
  }
  return pyr_ranks_end(model->rt, status);
}

/* Of several ranks also where this one's weights are not all there: who fails here alone would
 * leave the others waiting for it at their first sum. */
pyr_status pyr_model_ready(pyr_model *model) {
  if (model->ready || !(model->ranks || model->line)) return make_ready(model);
  pyr_status status = compare_ranks(model, make_ready(model));
  model->ready = status == PYR_OK;
  return status;
}
