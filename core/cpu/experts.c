/* experts.c — mixtures of experts: which experts each token takes, and their products.
 *
 * An expert's products are those of linear.c and its neighbours (any dtype, any precision), over
 * the rows of all the tokens that take it, which are gathered first: its weights are read once,
 * and those of an expert that nobody takes, never. Experts come one after the other, lowest first;
 * what each makes of its tokens is added to their sums, weighted, before the next one begins:
 *
 *     ids of 4 tokens    2 0 | 1 2 | 0 2 | 2 1        (two each, in the order of their ranks)
 *     expert 0           tokens 0 2                   gather 2 rows, gate and up, down, add
 *     expert 1           tokens 1 3
 *     expert 2           tokens 0 1 2 3
 *
 * So a token's sum is in the order of its experts' numbers, whatever other tokens take, and scratch
 * is that of one expert that all tokens take. Where matrix products of few and of many tokens sum
 * in another order (PYR_SMALL_N, backend.h), what counts is how many tokens take the expert. */
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* ---- route ----------------------------------------------------------------------------------- */

typedef struct ranking {         /* of one token */
  float key[PYR_EXPERTS_MAX];    /* what it chooses by */
  bool gone[PYR_EXPERTS_MAX];    /* chosen already, or of a group that is not used */
} ranking;

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* What makes softmax of logits: exp(x - top) / total. Of the logits 2 0 1 3: top 3, total 1 + .368
 * + .135 + .050 = 1.553. A NaN is never the top, but total is NaN then, and all weights are. */
typedef struct softmax { float top, total; } softmax;

static softmax softmax_of(const float *logits, int32_t n) {
  softmax s = { logits[0], 0 };
  for (int32_t i = 1; i < n; i++) s.top = logits[i] > s.top ? logits[i] : s.top;
  for (int32_t i = 0; i < n; i++) s.total += expf(logits[i] - s.top);
  return s;
}

/* What a logit comes to as a weight, before `renormalise` and `scale`. */
static float score_of(const pyr_route *r, const softmax *s, float logit) {
  return r->kind == PYR_ROUTER_SIGMOID ? sigmoid(logit) : expf(logit - s->top) / s->total;
}

/* Index of the highest key of [begin, end) that is not gone, ties to the lower; -1: all are. NaN is
 * below all numbers, and so chosen last. */
static int32_t best_of(const ranking *k, int32_t begin, int32_t end) {
  int32_t best = -1;
  for (int32_t i = begin; i < end; i++) {
    if (k->gone[i]) continue;
    if (best < 0 || k->key[i] > k->key[best] || (isnan(k->key[best]) && !isnan(k->key[i])))
      best = i;
  }
  return best;
}

/* All experts are gone but those of the groups whose two highest keys have the highest sums. Of
 * groups (9 1) (5 4) (8 3) two are used: sums 10, 9, 11, so the third and the first. */
static void leave_groups(const pyr_route *r, ranking *k) {
  ranking groups;
  int32_t each = r->experts / r->groups;
  for (int32_t g = 0; g < r->groups; g++) {
    int32_t first = best_of(k, g * each, (g + 1) * each);
    k->gone[first] = true;
    int32_t second = best_of(k, g * each, (g + 1) * each);
    k->gone[first] = false;
    groups.key[g] = k->key[first] + k->key[second];
    groups.gone[g] = false;
  }
  for (int32_t i = 0; i < r->groups_used; i++) groups.gone[best_of(&groups, 0, r->groups)] = true;
  for (int32_t i = 0; i < r->experts; i++) k->gone[i] = !groups.gone[i / each];
}

/* One token, from logits to weights: keys, groups, as many times the best as it takes, weights. Its
 * result is its own, so that spans may be cut anywhere. Keys and flags of 1,024 experts are 5 KiB
 * of stack, the groups' as much. Without a correction logits are ranked themselves, which scores
 * would be as, but for those that round to the same. */
static void route_token(const pyr_route *r, int64_t token) {
  const float *logits = r->logits + token * r->experts;
  int32_t *ids = r->ids + token * r->used;
  float *weights = r->weights + token * r->used, sum = 0;
  softmax s = { 0, 1 };
  ranking k;
  if (r->kind == PYR_ROUTER_SOFTMAX) s = softmax_of(logits, r->experts);
  for (int32_t i = 0; i < r->experts; i++) {
    k.key[i] = !r->correction && !r->groups ? logits[i]
        : score_of(r, &s, logits[i]) + (r->correction ? r->correction[i] : 0);
    k.gone[i] = false;
  }
  if (r->groups) leave_groups(r, &k);
  for (int32_t i = 0; i < r->used; i++) {
    ids[i] = best_of(&k, 0, r->experts);
    k.gone[ids[i]] = true;
    weights[i] = score_of(r, &s, logits[ids[i]]);
    sum += weights[i];
  }
  float scale = r->renormalise ? r->scale / (sum + PYR_ROUTE_LEAST) : r->scale;
  for (int32_t i = 0; i < r->used; i++) weights[i] *= scale;
}

static void route_span(const void *ctx, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; token++) route_token(ctx, token);
}

static pyr_status cpu_route(pyr_backend *be, const pyr_route *r) {
  pyr_cpu_spans(be, route_span, r, r->n, (int64_t)r->experts * (r->used + 8));
  return PYR_OK;
}

/* ---- experts --------------------------------------------------------------------------------- */

/* Pieces of the backend's `mixture`; with a base of NULL it only counts. */
typedef struct mixture {
  int32_t *first;        /* [experts + 1] where an expert's pairs begin in `pairs` */
  int32_t *pairs;        /* [n * used] pairs of a token and a rank, token * used + rank,
                            expert by expert */
  float *x;              /* [n, width] rows of the tokens that take an expert, … */
  float *gate, *up;      /* [n, ff] */
  float *y;              /* [n, width] … and what it makes of them */
} mixture;

static mixture mixture_of(pyr_arena *arena, int64_t n, int64_t experts, int64_t used,
                          int64_t width, int64_t ff) {
  return (mixture){ .first = pyr_arena_take(arena, experts + 1, sizeof(int32_t)),
                    .pairs = pyr_arena_take(arena, n * used, sizeof(int32_t)),
                    .x = pyr_arena_take(arena, n * width, sizeof(float)),
                    .gate = pyr_arena_take(arena, n * ff, sizeof(float)),
                    .up = pyr_arena_take(arena, n * ff, sizeof(float)),
                    .y = pyr_arena_take(arena, n * width, sizeof(float)) };
}

/* A width is at most the widest input of any product. 512 tokens, 2,048 wide, of experts of 768: 4
 * + 1.5 + 1.5 + 4 MiB, and 16 KiB of pairs. */
size_t pyr_cpu_experts_scratch(const pyr_work *work) {
  pyr_arena arena = { NULL, 0 };
  if (work->experts == 0) return 0;
  mixture_of(&arena, work->tokens, work->experts, work->experts_used, work->cols,
             work->expert_ff);
  return arena.used;
}

/* Counts, adds up, and writes each pair behind those of its expert before it: `first` of the next
 * expert runs ahead meanwhile, and ends where it belongs. Of the ids above: counts 2 2 4, so first
 * 0 2 4 8 and pairs 1 4 | 2 7 | 0 3 5 6. */
static void sort_pairs(const pyr_experts *e, const mixture *m) {
  int64_t pairs = e->n * e->used;
  for (int32_t i = 0; i <= e->experts; i++) m->first[i] = 0;
  for (int64_t p = 0; p < pairs; p++) m->first[e->ids[p] + 1]++;
  for (int32_t i = 0; i < e->experts; i++) m->first[i + 1] += m->first[i];
  for (int64_t p = 0; p < pairs; p++) m->pairs[m->first[e->ids[p]]++] = (int32_t)p;
  for (int32_t i = e->experts; i > 0; i--) m->first[i] = m->first[i - 1];
  m->first[0] = 0;
}

typedef struct expert_call {
  const pyr_experts *e;
  const mixture *m;
  const int32_t *pairs;          /* of this expert */
  int64_t width;
} expert_call;

static void gather_span(const void *ctx, int64_t begin, int64_t end) {
  const expert_call *c = ctx;
  for (int64_t i = begin; i < end; i++)
    memcpy(c->m->x + i * c->width, c->e->x + c->pairs[i] / c->e->used * c->width,
           (size_t)c->width * sizeof(float));
}

/* Tokens take an expert once: no two rows go to the same place, and spans need not know of each
 * other. Pair 7 of two a token is rank 1 of token 3: weights[7] times a row of y goes to out[3]. */
static void scatter_span(const void *ctx, int64_t begin, int64_t end) {
  const expert_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    float weight = c->e->weights[c->pairs[i]];
    float *out = c->e->out + c->pairs[i] / c->e->used * c->width;
    for (int64_t j = 0; j < c->width; j++) out[j] += weight * c->m->y[i * c->width + j];
  }
}

/* One expert and the n tokens that take it: m->x [n, width] -> up, gate [n, ff] -> m->y [n, width].
 * Plain ones widen into `up`, which then is what is activated. The product is never told to add to
 * `out`: its rows are those of a few tokens, and have to be weighed first. */
static pyr_status run_expert(pyr_backend *be, const expert_call *c, const pyr_expert *w,
                             int64_t n) {
  const pyr_experts *e = c->e;
  const mixture *m = c->m;
  int flags = e->flags & ~PYR_LINEAR_ADD;
  bool gated = w->gate.rank != 0;
  float *gate = gated ? m->gate : m->up;
  pyr_cpu_spans(be, gather_span, c, n, c->width);
  PYR_TRY(pyr_cpu_linear(be, m->up, m->x, &w->up, w->up_bias, n, flags));
  if (gated) PYR_TRY(pyr_cpu_linear(be, gate, m->x, &w->gate, w->gate_bias, n, flags));
  PYR_TRY(pyr_cpu_activate(be, gate, gated ? m->up : NULL, n * w->up.shape[0], e->activation,
                           e->limit));
  PYR_TRY(pyr_cpu_linear(be, m->y, gate, &w->down, w->down_bias, n, flags));
  pyr_cpu_spans(be, scatter_span, c, n, c->width);
  return PYR_OK;
}

/* Experts that are another rank's have no matrices here, and add nothing. Invariant of the loop:
 * out[t] holds what experts below i make of token t, weighted, and what was there before, if that
 * is added to. An expert that fails (a device's failure, or want of scratch) leaves it half made,
 * as any product would. */
static pyr_status cpu_experts(pyr_backend *be, const pyr_experts *e) {
  pyr_cpu *cpu = pyr_cpu_of(be);
  int32_t here = 0;
  while (e->each[here].up.rank == 0) here++;
  int64_t width = e->each[here].up.shape[1], ff = e->each[here].up.shape[0];
  pyr_arena arena = { cpu->mixture, 0 };
  mixture m = mixture_of(&arena, e->n, e->experts, e->used, width, ff);
  if (arena.used > cpu->mixture_bytes)
    return pyr_runtime_set_error(be->rt, PYR_ARGUMENT, "experts: more tokens than are reserved");
  if (!(e->flags & PYR_LINEAR_ADD)) memset(e->out, 0, (size_t)(e->n * width) * sizeof(float));
  sort_pairs(e, &m);
  for (int32_t i = 0; i < e->experts; i++) {
    int64_t n = m.first[i + 1] - m.first[i];
    expert_call c = { e, &m, m.pairs + m.first[i], width };
    if (n > 0 && e->each[i].up.rank != 0) PYR_TRY(run_expert(be, &c, &e->each[i], n));
  }
  return PYR_OK;
}

void pyr_cpu_experts_fill(pyr_backend *be) {
  be->route = cpu_route;
  be->experts = cpu_experts;
}
