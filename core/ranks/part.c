/* part.c — see part.h. */
#include "ranks/part.h"
#include "ranks/link.h"

/* Where the r-th of n equal parts of `total` begins, in whole units; the last unit may be short. */
/* 49,152 ids in units of 32 for three ranks: 1,536 units, so that parts begin at 0, 512 and 1,024
 * of them. 3 K/V heads for two: at 0 and 1, as what does not divide falls to the later ranks. */
static int32_t begin_of(int64_t total, int64_t unit, int64_t r, int64_t n) {
  int64_t units = (total + unit - 1) / unit;
  return (int32_t)pyr_min(units * r / n * unit, total);
}

/* The r-th part itself: from where it begins to where the next one does. */
static pyr_slice even(int64_t total, int64_t unit, int64_t r, int64_t n) {
  int32_t first = begin_of(total, unit, r, n);
  return (pyr_slice){ first, begin_of(total, unit, r + 1, n) - first };
}

/* Heads that lie together in whole blocks of o's columns: 2 of 128 channels in blocks of 256. Of
 * all heads the columns are whole blocks, so the end is one, too. */
static int64_t heads_of_block(int64_t channels, int64_t block) {
  int64_t unit = 1;
  while (unit * channels % block != 0) unit++;   /* at most `block` times */
  return unit;
}

/* Ranks count from 0 in messages, as MPI's do. */
static pyr_status refuse(pyr_runtime *rt, const char *what, int ranks, int rank) {
  return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                               "ranks: %s cannot be divided among %d of them (rank %d would have "
                               "none); take fewer", what, ranks, rank);
}

/* Whole K/V heads where there are as many as ranks; else as many ranks a K/V head as come to it,
 * and its query heads among those. */
/* 4 query heads over one K/V head, three ranks: all have the K/V head, and 1, 1 and 2 of its query
 * heads. 8 over 2 and three ranks: one has the first with its four, two share the second, two each.
 * */
static pyr_status cut_heads(pyr_runtime *rt, const pyr_model_config *c, int64_t block, int ranks,
                            pyr_portion *parts) {
  int64_t lanes = c->kv_heads, group = c->heads / c->kv_heads, d = c->head_dim;
  for (int r = 0; r < ranks; r++) {
    pyr_portion *p = &parts[r];
    if (lanes >= ranks) {
      p->lanes = even(lanes, heads_of_block(group * d, block), r, ranks);
      p->heads.first = (int32_t)(p->lanes.first * group);
      p->heads.count = (int32_t)(p->lanes.count * group);
      p->copies = 1, p->copy = 0;
    } else {
      /* the lane whose ranks [begin, end) have r among them */
      int64_t lane = 0, begin = 0, end = 0;
      for (; lane < lanes; lane++) {
        begin = ranks * lane / lanes, end = ranks * (lane + 1) / lanes;
        if (r < end) break;
      }
      pyr_slice own = even(group, heads_of_block(d, block), r - begin, end - begin);
      p->lanes = (pyr_slice){ (int32_t)lane, 1 };
      p->heads = (pyr_slice){ (int32_t)(lane * group) + own.first, own.count };
      p->copies = (int32_t)(end - begin), p->copy = (int32_t)(r - begin);
    }
    if (p->heads.count == 0) return refuse(rt, "the model's heads", ranks, r);
  }
  return PYR_OK;
}

/* Columns of the MLP, so that all ranks have as many weights of a layer: each as many as it lacks
 * of the mean with its heads, but a block at least. Cumulative, so that what is rounded off at one
 * border is the next rank's:
 *
 *     SmolLM2, in units of its width: heads 512 and 1,024, MLP 3 * 1,536; the mean is 3,072
 *     rank 0 lacks 2,560 / 3 = 853.3 columns, so that the border is 864, a multiple of 32 */
static pyr_status cut_ff(pyr_runtime *rt, const pyr_model_config *c, int64_t block, int ranks,
                         pyr_portion *parts) {
  enum { TOGETHER = 32 };   /* rows that kernels like to have together, where there are enough */
  bool plain = c->experts == 0;
  for (int i = 0; i < c->layers && c->dense; i++) plain = plain || c->dense[i];
  for (int r = 0; r < ranks && !plain; r++) parts[r].ff = (pyr_slice){ 0, c->ff };
  if (!plain) return PYR_OK;                 /* every layer has experts: nothing is so wide */
  if (block < TOGETHER && c->ff % TOGETHER == 0 && c->ff / TOGETHER >= ranks) block = TOGETHER;
  int64_t matrices = c->plain_mlp ? 2 : 3, total = 0, lacking = 0, lack[PYR_RANKS_MAX];
  int64_t blocks = (c->ff + block - 1) / block, spare = blocks - ranks;
  if (spare < 0) return refuse(rt, "the model's MLP", ranks, ranks - 1);
  for (int r = 0; r < ranks; r++) {
    lack[r] = 2 * (int64_t)c->head_dim * (parts[r].heads.count + parts[r].lanes.count);
    total += lack[r];
  }
  total += matrices * c->ff;
  for (int r = 0; r < ranks; r++) {
    lack[r] = pyr_max(total / ranks - lack[r] - matrices * block, 0);
    lacking += lack[r];
  }
  int64_t before = 0, first = 0;
  for (int r = 0; r < ranks; r++) {
    before += lacking ? lack[r] : 1;
    int64_t of = lacking ? lacking : ranks, end = r + 1 + (spare * before + of / 2) / of;
    parts[r].ff = (pyr_slice){ (int32_t)pyr_min(first * block, c->ff), 0 };
    parts[r].ff.count = (int32_t)(pyr_min(end * block, c->ff) - parts[r].ff.first);
    first = end;
  }
  return PYR_OK;
}

pyr_status pyr_portions_make(pyr_runtime *rt, const pyr_model_config *c, int32_t o_block,
                          int32_t ff_block, int ranks, pyr_portion *out) {
  enum { IDS = 32 };   /* whole packs of interleaved rows, whatever the backend's */
  PYR_TRY(cut_heads(rt, c, o_block, ranks, out));
  PYR_TRY(cut_ff(rt, c, ff_block, ranks, out));
  for (int r = 0; r < ranks; r++) {
    out[r].vocab = even(c->vocab, c->vocab >= IDS * ranks ? IDS : 1, r, ranks);
    out[r].experts = even(c->experts, 1, r, ranks);
    out[r].shared_ff = even(c->shared_ff, ff_block, r, ranks);
    if (out[r].vocab.count == 0) return refuse(rt, "the vocabulary", ranks, r);
    if (c->experts > 0 && out[r].experts.count == 0) return refuse(rt, "the experts", ranks, r);
    if (c->shared_ff > 0 && out[r].shared_ff.count == 0)
      return refuse(rt, "the shared expert", ranks, r);
  }
  return PYR_OK;
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* Stages in turn take layers until the next one would be too much, and leave one for each stage
 * behind them. Whether all fit. Five layers of 3, a tail of 5 and two stages, within 11 and 9:
 *
 *     11    3 3 3 | 3 3 + 5          stage 0 has 9, stage 1 has 11
 *      9    3 3 3 | 3 3 + 5          11 are too much */
static bool deal_within(const double *cost, int32_t layers, double tail, int stages, double most,
                        pyr_slice *out) {
  int32_t at = 0;
  for (int s = 0; s < stages; s++) {
    int32_t end = layers - (stages - 1 - s);
    double sum = s == stages - 1 ? tail : 0;
    out[s] = (pyr_slice){ at, 0 };
    while (at < end && (out[s].count == 0 || s == stages - 1 || sum + cost[at] <= most))
      sum += cost[at++], out[s].count++;
    if (sum > most) return false;
  }
  return at == layers;
}

/* The least `most` that all fit in, found by halving what it may be: between nothing and all that
 * there is, 60 times, which is beyond what doubles tell apart. Stages in front may be full then,
 * and the last one light, which costs nothing: the one that has most says how long all take. */
void pyr_layers_deal(const double *cost, int32_t layers, double tail, int stages, pyr_slice *out) {
  double low = 0, high = tail * 1.001;
  for (int32_t i = 0; i < layers; i++) high += cost[i] * 1.001;
  for (int i = 0; i < 60; i++) {
    double middle = low + (high - low) / 2;
    if (deal_within(cost, layers, tail, stages, middle, out)) high = middle;
    else low = middle;
  }
  (void)deal_within(cost, layers, tail, stages, high, out);
}

/* Values that a token is multiplied by in a layer; of experts, those that it takes. */
static double weights_of(const pyr_model_config *c, int32_t layer) {
  double matrices = c->plain_mlp ? 2 : 3, width = c->width,
      mlp = c->experts > 0 && !(c->dense && c->dense[layer])
          ? (double)c->experts_used * c->expert_ff + c->shared_ff : (double)c->ff;
  return width * (2.0 * c->head_dim * (c->heads + c->kv_heads) + matrices * mlp);
}

pyr_status pyr_stages_make(pyr_runtime *rt, const pyr_model_config *c, const int32_t *given,
                           int stages, pyr_slice *out) {
  int64_t sum = 0;
  if (c->layers < stages)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED, "ranks: %d layers cannot be dealt out to %d "
                                 "stages; take fewer", (int)c->layers, stages);
  if (!given) {
    size_t bytes = (size_t)c->layers * sizeof(double);
    double *cost = pyr_alloc(rt, bytes);
    if (!cost) return pyr_nomem(rt, bytes, "the stages of a model");
    for (int32_t i = 0; i < c->layers; i++) cost[i] = weights_of(c, i);
    pyr_layers_deal(cost, c->layers, (double)c->width * c->vocab, stages, out);
    pyr_release(rt, cost, bytes);
    return PYR_OK;
  }
  for (int s = 0; s < stages; s++) {
    out[s] = (pyr_slice){ (int32_t)pyr_min(sum, c->layers), given[s] };
    sum += given[s];
  }
  if (sum == c->layers) return PYR_OK;
  return pyr_runtime_set_error(rt, PYR_ARGUMENT, "ranks: the stages have %lld layers, the model %d",
                               (long long)sum, (int)c->layers);
}
