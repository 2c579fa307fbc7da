/* config.c — the check of a configuration; see config.h. From parts to the whole: a table of RoPE,
 * what each layer has one of, experts, and then every number. */
#include "model/config.h"
#include "base/rowbits.h"

/* A frequency of 0 does not turn a pair, which is how a loader says that a part of a head stays as
 * it is where pairs do not lie at its front; none is faster than a radian a position by much.
 * A table of RoPE: one of `name`, of dims/2 frequencies, with the gain called `its_gain`. */
static pyr_status check_turn(pyr_runtime *rt, const char *name, const float *freq, int32_t dims,
                             const char *its_gain, float gain) {
  if (!freq) return pyr_runtime_set_error(rt, PYR_FORMAT, "model: %s is missing", name);
  if (!(gain > 0 && gain <= 100))
    return pyr_runtime_set_error(rt, PYR_FORMAT, "model: %s is %g, outside (0, 100]", its_gain,
                                 (double)gain);
  for (int i = 0; i < dims / 2; i++)
    if (!(freq[i] >= 0 && freq[i] <= 1e4f))
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: %s[%d] is %g, outside 0..1e4", name, i,
                                   (double)freq[i]);
  return PYR_OK;
}

/* `layers` may still be any number: nothing is read of more than there can be. */
static bool has_plain_layers(const pyr_model_config *c) {
  if (c->experts == 0) return true;
  for (int i = 0; c->dense && i < c->layers; i++)
    if (c->dense[i]) return true;
  return false;
}

/* What each layer has one of. Five layers of which every fifth sees all rows and turns by the first
 * table, as Gemma 3 has them, and one of SmolLM3's that does not turn:
 *
 *     window    512     512     512     512     0            0      0      0      0
 *     turns     second  second  second  second  first        first  first  first  none
 *
 * A table is checked where some layer uses it; another may be missing. */
static pyr_status check_layers(pyr_runtime *rt, const pyr_model_config *c) {
  bool used[3] = { !c->turns };
  for (int i = 0; c->window && i < c->layers; i++)
    if (c->window[i] < 0)
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: window[%d] is %d", i, c->window[i]);
  for (int i = 0; c->turns && i < c->layers; i++) {
    if (c->turns[i] > PYR_TURN_NONE)
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: turns[%d] is %d", i, c->turns[i]);
    used[c->turns[i]] = true;
  }
  if (c->rope_dims == 0 && (used[PYR_TURN_FIRST] || used[PYR_TURN_SECOND]))
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "model: rope_dims is 0, but there are layers that rotate");
  if (used[PYR_TURN_FIRST])
    PYR_TRY(check_turn(rt, "rope_freq", c->rope_freq, c->rope_dims, "rope_gain",
                       c->rope_gain));
  if (used[PYR_TURN_SECOND])
    PYR_TRY(check_turn(rt, "rope_second", c->rope_second, c->rope_dims, "rope_second_gain",
                       c->rope_second_gain));
  return PYR_OK;
}

/* Numbers of a mixture of experts, which are in range by themselves: none of them without experts,
 * and no token that could find fewer experts than it takes. Groups are chosen by their two best.
 * DeepSeek-V3 has 256 experts in 8 groups of 32; a token takes 8, out of its 4 best groups, which
 * hold 128. */
static pyr_status check_experts(pyr_runtime *rt, const pyr_model_config *c) {
  if (c->experts == 0) {
    if (c->experts_used || c->expert_ff || c->shared_ff || c->groups || c->dense)
      return pyr_runtime_set_error(rt, PYR_FORMAT,
                                   "model: experts is 0, but there are numbers of experts");
    return PYR_OK;
  }
  if (c->experts_used < 1 || c->expert_ff < 1)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "model: %d experts, of which a token takes %d, of width %d",
                                 c->experts, c->experts_used, c->expert_ff);
  if (c->groups == 0) return PYR_OK;
  int32_t each = c->experts / c->groups;
  if (c->experts % c->groups != 0 || each < 2 || c->groups_used < 1
      || c->groups_used * each < c->experts_used || c->router != PYR_ROUTER_SIGMOID)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "model: %d of %d groups of %d experts for %d a token: groups hold "
                                 "at least two experts each, those used at least as many as a "
                                 "token takes, and the router is a sigmoid", c->groups_used,
                                 c->groups, c->experts, c->experts_used);
  return PYR_OK;
}

/* Ranges are wide enough for any model known, and narrow enough that products of two of them fit
 * in 64 bits: vocab * width is at most 2^22 * 2^18 = 2^40 values. Single numbers come first,
 * then what they must be to each other; whatever follows may rely on all of it. */
pyr_status pyr_config_check(pyr_runtime *rt, const pyr_model_config *c) {
  const struct { const char *name; int64_t value, low, high; } ranges[] = {
    { "layers", c->layers, 1, 1024 },        { "heads", c->heads, 1, 1024 },
    { "kv_heads", c->kv_heads, 1, c->heads }, { "head_dim", c->head_dim, 2, PYR_BITS_DIMS },
    { "width", c->width, 1, 1 << 18 },
    { "ff", c->ff, has_plain_layers(c) ? 1 : 0, 1 << 20 },
    { "vocab", c->vocab, 1, 1 << 22 },       { "context", c->context, 1, 1 << 30 },
    { "rope_dims", c->rope_dims, 0, c->head_dim },
    { "rope_style", c->rope_style, PYR_ROPE_HALF, PYR_ROPE_INTERLEAVED },
    { "norm", c->norm, PYR_NORM_RMS, PYR_NORM_LAYER },
    { "norm_place", c->norm_place, PYR_NORM_BEFORE, PYR_NORM_AROUND },
    { "qk_norm", c->qk_norm, PYR_QK_HEAD, PYR_QK_WIDTH },
    { "residual", c->residual, PYR_RESIDUAL_SEQUENTIAL, PYR_RESIDUAL_SHARED },
    { "activation", c->activation, 0, PYR_ACTIVATIONS - 1 },
    { "plain_mlp", c->plain_mlp, 0, 1 },     { "positions", c->positions, 0, 1 },
    { "experts", c->experts, 0, PYR_EXPERTS_MAX },
    { "experts_used", c->experts_used, 0, pyr_min(c->experts, PYR_EXPERTS_USED_MAX) },
    { "expert_ff", c->expert_ff, 0, 1 << 20 }, { "shared_ff", c->shared_ff, 0, 1 << 20 },
    { "router", c->router, 0, PYR_ROUTERS - 1 },
    { "router_renormalise", c->router_renormalise, 0, 1 },
    { "temper_length", c->temper_length, c->temper != 0, 1 << 30 },
    { "groups", c->groups, 0, PYR_GROUPS_MAX }, { "groups_used", c->groups_used, 0, c->groups },
  };
  const struct { const char *name; float value, low, high; } numbers[] = {
    { "norm_eps", c->norm_eps, 1e-30f, 0.1f }, { "norm_offset", c->norm_offset, -1e3f, 1e3f },
    { "activation_limit", c->activation_limit, 0, 1e9f },
    { "embed_scale", c->embed_scale, -1e6f, 1e6f },
    { "residual_scale", c->residual_scale, -1e6f, 1e6f },
    { "logit_scale", c->logit_scale, -1e6f, 1e6f },
    { "score_scale", c->score_scale, 0, 1e6f }, { "router_scale", c->router_scale, -1e6f, 1e6f },
    { "temper", c->temper, 0, 1e3f },
    { "score_cap", c->score_cap, 0, 1e9f },  { "logit_cap", c->logit_cap, 0, 1e9f },
  };
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
    if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: %s is %lld, outside %lld..%lld",
                                   ranges[i].name, (long long)ranges[i].value,
                                       (long long)ranges[i].low, (long long)ranges[i].high);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!(numbers[i].value >= numbers[i].low && numbers[i].value <= numbers[i].high))
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: %s is %g, outside %g..%g",
                                   numbers[i].name, (double)numbers[i].value,
                                   (double)numbers[i].low, (double)numbers[i].high);
  if (c->heads % c->kv_heads != 0)
    return pyr_runtime_set_error(rt, PYR_FORMAT, "model: kv_heads %d does not divide heads %d",
                                 c->kv_heads, c->heads);
  if (c->head_dim % 2 != 0)
    return pyr_runtime_set_error(rt, PYR_FORMAT, "model: head_dim %d is odd", c->head_dim);
  if (c->rope_dims % 2 != 0)
    return pyr_runtime_set_error(rt, PYR_FORMAT, "model: rope_dims %d is odd", c->rope_dims);
  if (c->residual != PYR_RESIDUAL_SEQUENTIAL && c->norm_place != PYR_NORM_BEFORE)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "model: a parallel residual with norms behind its halves");
  if (c->activation == PYR_ACT_SWIGLU_CLAMPED && (c->plain_mlp || c->activation_limit == 0))
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "model: a clamped SwiGLU needs a gate and activation_limit");
  for (int i = 0; c->slopes && i < c->heads; i++)
    if (!(c->slopes[i] >= 0 && c->slopes[i] <= 1e4f))
      return pyr_runtime_set_error(rt, PYR_FORMAT, "model: slopes[%d] is %g, outside 0..1e4", i,
                                   (double)c->slopes[i]);
  PYR_TRY(check_experts(rt, c));
  return check_layers(rt, c);
}
