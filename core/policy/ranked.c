/* ranked.c — see ranked.h. */
#include "policy/ranked.h"
#include "base/arena.h"
#include "model/model.h"

#include <string.h>

/* ---- vectors --------------------------------------------------------------------------------- */

/* Of 4 query heads over one K/V head on three ranks, which have 1, 1 and 2 of them:
 *
 *     PYR_OF_QUERIES    1 1 2     each head once
 *     PYR_OF_LANES      1 0 0     the keys are the same on all three
 *     PYR_OF_HISTORY    1 1 1     each has what its own heads gave: join_copies
 *
 * How many vectors a rank hands on; -1: it has none of the set, and is not asked. */
static int64_t vectors_of(const pyr_set *s, const pyr_model *model, int rank,
                          pyr_vectors kind) {
  const pyr_portion *p = &model->parts[rank], *own = pyr_model_part(model);
  if (!s->together && p->lanes.first != own->lanes.first) return -1;
  if (kind == PYR_OF_QUERIES) return p->heads.count;
  return kind == PYR_OF_HISTORY || p->copy == 0 ? p->lanes.count : 0;
}

/* Histories of the copies of each K/V head become that head's, one after the other: the mean over
 * all of its query heads is that of the copies' means, each by how many heads it is of. Copies of 2
 * and 1 heads that gave .3 and .6: .3 * 2/3 + .6 * 1/3 = .4. Returns how many there are. */
static int32_t join_copies(const pyr_set *s, const pyr_model *model, float *all, int64_t n) {
  bool max = s->tracked && pyr_signal_tracks_max(s->tracked);
  float group = (float)(model->whole.heads / model->whole.kv_heads);
  const float *from = all;
  int32_t lanes = 0;
  for (int r = 0; r < pyr_ranks_size(model->ranks); r++) {
    const pyr_portion *p = &model->parts[r];
    if (vectors_of(s, model, r, PYR_OF_HISTORY) < 0) continue;
    if (p->copy == 0) lanes++;
    float *to = all + (lanes - 1) * n, weight = (float)p->heads.count / group;
    for (int64_t i = 0; i < n; i++) {
      float before = p->copy == 0 ? 0 : to[i];
      if (!max) to[i] = before + weight * from[i];
      else to[i] = p->copy == 0 || from[i] > before ? from[i] : before;
    }
    from += n;
  }
  return lanes;
}

pyr_status pyr_reduce_heads(const pyr_set *s, pyr_vectors kind, float *out, const float *in,
                            int32_t count, int64_t stride, int64_t n, pyr_reduce how,
                            float scale) {
  const pyr_model *model = s->cache->pool->model;
  pyr_backend *be = s->cache->pool->be;
  pyr_runtime *rt = s->cache->pool->rt;
  bool alone = !model->ranks
      || (!s->together && (pyr_model_part(model)->copies == 1 || kind == PYR_OF_LANES));
  if (alone) return be->reduce_rows(be, out, in, count, stride, n, how, scale);
  size_t bytes[PYR_RANKS_MAX];
  int64_t vectors = 0, own = 0;
  int size = pyr_ranks_size(model->ranks), rank = pyr_ranks_rank(model->ranks);
  for (int r = 0; r < size; r++) {
    int64_t some = vectors_of(s, model, r, kind);
    if (r == rank) own = vectors;
    bytes[r] = some < 0 ? PYR_RANKS_APART : (size_t)(some * n) * sizeof *in;
    vectors += pyr_max(some, 0);
  }
  size_t all_bytes = (size_t)(vectors * n) * sizeof *in;
  float *all = pyr_alloc(rt, all_bytes);
  if (!all) return pyr_nomem(rt, all_bytes, "the scores of all ranks");
  for (int64_t i = 0; i < count && bytes[rank] > 0; i++)
    memcpy(all + (own + i) * n, in + i * stride, (size_t)n * sizeof *in);
  pyr_status status = pyr_ranks_gather(model->ranks, all + own * n, bytes, all);
  if (status == PYR_OK && kind == PYR_OF_HISTORY && model->whole.kv_heads < size)
    vectors = join_copies(s, model, all, n);
  if (status == PYR_OK)
    status = be->reduce_rows(be, out, all, (int32_t)vectors, n, n, how, scale);
  pyr_release(rt, all, all_bytes);
  return status;
}

/* Of lanes of 5, 5 and 9 rows, the first on rank 0, the others on rank 1, and 4 bytes a row: rank 0
 * hands on 20 bytes, rank 1 56. */
pyr_status pyr_heads_gather(const pyr_model *model, const int64_t *counts, size_t item,
                            const void *mine, void *all) {
  size_t bytes[PYR_RANKS_MAX];
  for (int r = 0; r < pyr_ranks_size(model->ranks); r++) {
    const pyr_portion *p = &model->parts[r];
    bytes[r] = 0;
    for (int32_t i = 0; i < p->lanes.count && p->copy == 0; i++)
      bytes[r] += item * (counts ? (size_t)counts[p->lanes.first + i] : 1);
  }
  return pyr_ranks_gather(model->ranks, mine, bytes, all);
}

/* ---- choices --------------------------------------------------------------------------------- */

/* All that a choice among all ranks takes, in one block. */
typedef struct pyr_everyone {
  int64_t *told, *mine;        /* [segments of all ranks, copies too][2] n and least; of this one */
  float *given, *scores;       /* what ranks hand on; the same in the order of layers and heads */
  pyr_segment *segments;       /* [layers * K/V heads] */
  int32_t *idx, *chosen, *cuts;
} pyr_everyone;

static void layout(pyr_everyone *e, int64_t told, int64_t mine, int64_t given, int64_t segments,
                   pyr_arena *arena) {
  PYR_PART(arena, e->told, 2 * told);
  PYR_PART(arena, e->mine, 2 * mine);
  PYR_PART(arena, e->given, given);
  PYR_PART(arena, e->scores, given);
  PYR_PART(arena, e->segments, segments);
  PYR_PART(arena, e->idx, given);
  PYR_PART(arena, e->chosen, segments);
  PYR_PART(arena, e->cuts, 2 * segments);
}

/* Rank 0 of two has lane 0, rank 1 lanes 1 and 2; of two layers:
 *
 *     handed on    rank 0: [l0 h0][l1 h0]     rank 1: [l0 h1][l0 h2][l1 h1][l1 h2]
 *     in order     [l0 h0][l0 h1][l0 h2][l1 h0][l1 h1][l1 h2]
 *
 * so that ties go to the lower layer, then to the lower head, as in one process. */
static void put_in_order(const pyr_model *model, pyr_everyone *e, int64_t layers) {
  int32_t lanes = model->whole.kv_heads;
  const int64_t *told = e->told;
  const float *given = e->given;
  for (int pass = 0; pass < 2; pass++) {      /* first how long each is, then what it holds */
    told = e->told, given = e->given;
    for (int r = 0; r < pyr_ranks_size(model->ranks); r++) {
      const pyr_portion *p = &model->parts[r];
      for (int64_t i = 0; i < layers * p->lanes.count; i++, told += 2) {
        pyr_segment *s = &e->segments[i / p->lanes.count * lanes + p->lanes.first
                                      + i % p->lanes.count];
        if (pass == 0) *s = (pyr_segment){ .n = told[0], .least = told[1] };
        else if (p->copy == 0) memcpy(e->scores + s->at, given, (size_t)told[0] * sizeof *given);
        given += told[0];
      }
    }
    int64_t at = 0;
    for (int64_t i = 0; i < layers * lanes && pass == 0; i++) {
      e->segments[i].at = at;
      at += e->segments[i].n;
    }
  }
}

/* One choice among all segments, or one in each layer of `lanes` of them. Scores of a layer follow
 * those of the layer before; where survivors are listed each segment says for itself. Two layers of
 * two lanes, of 4 and 3 candidates, and of 2 and 5:
 *
 *     rows 5, 0; least 1 of each     layer 0: the best 5 of 7
 *                                    layer 1: 2, the best of each lane, as that is promised
 */
static pyr_status choose_parts(pyr_backend *be, const pyr_choice *c, int32_t lanes,
                               int64_t *rows) {
  if (!rows) return be->choose(be, c);
  pyr_choice one = *c;
  one.count = lanes;
  for (int32_t i = 0; i < c->count; i += lanes) {
    int64_t least = 0, n = 0;
    one.segments = c->segments + i, one.chosen = c->chosen + i, one.work = c->work + 2 * i;
    for (int32_t j = 0; j < lanes; j++) least += one.segments[j].least, n += one.segments[j].n;
    one.most = rows[i / lanes] = pyr_max(rows[i / lanes], least);
    PYR_TRY(be->choose(be, &one));
    one.score += n;
  }
  return PYR_OK;
}

/* Every rank chooses for all, and takes its own lanes' part: their counts, and their survivors'
 * rows to where the caller's lists have them. */
static pyr_status choose_among(const pyr_cache *cache, const pyr_choice *c, pyr_everyone *e,
                               int64_t layers, int64_t *rows) {
  const pyr_model *model = cache->pool->model;
  const pyr_portion *own = pyr_model_part(model);
  int32_t lanes = model->whole.kv_heads;
  put_in_order(model, e, layers);
  pyr_choice all = *c;
  all.score = e->scores, all.segments = e->segments, all.count = (int32_t)layers * lanes;
  all.idx = e->idx, all.chosen = e->chosen, all.work = e->cuts;
  PYR_TRY(choose_parts(cache->pool->be, &all, lanes, rows));
  for (int32_t i = 0; i < c->count; i++) {
    int64_t from = i / own->lanes.count * lanes + own->lanes.first + i % own->lanes.count;
    c->chosen[i] = e->chosen[from];
    for (int32_t j = 0; j < e->chosen[from]; j++)
      c->idx[c->segments[i].at + j] = e->idx[e->segments[from].at + j] + c->segments[i].offset;
  }
  return PYR_OK;
}

/* Two gathers: how many candidates each segment has, by which everybody knows what follows; and
 * their scores. Of 3 lanes of 2,000 candidates 48 bytes and 24 KB. Memory for both is taken when
 * its size is known; a rank that gets none says so at its next agreement, of its team or of all,
 * where the others of its team wait for its scores. */
pyr_status pyr_choose_ranked(const pyr_cache *cache, const pyr_choice *c, int64_t *rows) {
  const pyr_model *model = cache->pool->model;
  pyr_runtime *rt = cache->pool->rt;
  if (!model->ranks) return choose_parts(cache->pool->be, c, cache->heads, rows);
  int size = pyr_ranks_size(model->ranks), rank = pyr_ranks_rank(model->ranks);
  int64_t layers = c->count / cache->heads, told = 0, given = 0, before = 0;
  size_t bytes[PYR_RANKS_MAX];
  for (int r = 0; r < size; r++) {
    bytes[r] = (size_t)(layers * model->parts[r].lanes.count * 2) * sizeof(int64_t);
    told += layers * model->parts[r].lanes.count;
  }
  int64_t segments = layers * model->whole.kv_heads;
  pyr_everyone e;
  pyr_arena count = { 0 }, first = { 0 }, arena = { 0 };
  layout(&e, told, c->count, 0, segments, &count);
  first.block = pyr_alloc(rt, count.used);
  if (!first.block) return pyr_nomem(rt, count.used, "a choice among all ranks");
  layout(&e, told, c->count, 0, segments, &first);
  for (int32_t i = 0; i < c->count; i++)
    e.mine[2 * i] = c->segments[i].n, e.mine[2 * i + 1] = c->segments[i].least;
  pyr_status status = pyr_ranks_gather(model->ranks, e.mine, bytes, e.told);
  const int64_t *at = e.told;
  for (int r = 0; r < size && status == PYR_OK; r++) {
    int64_t sum = 0;
    for (int64_t i = 0; i < layers * model->parts[r].lanes.count; i++, at += 2) sum += at[0];
    bytes[r] = (size_t)sum * sizeof *c->score;
    if (r == rank) before = given;
    given += sum;
  }
  if (status == PYR_OK) {
    const int64_t *heard = e.told;
    count = (pyr_arena){ 0 };
    layout(&e, told, c->count, given, segments, &count);
    arena.block = pyr_alloc(rt, count.used);
    if (!arena.block) status = pyr_nomem(rt, count.used, "a choice among all ranks");
    if (arena.block) {
      layout(&e, told, c->count, given, segments, &arena);
      memcpy(e.told, heard, (size_t)told * 2 * sizeof *heard);
      memcpy(e.given + before, c->score, bytes[rank]);
      status = pyr_ranks_gather(model->ranks, e.given + before, bytes, e.given);
      if (status == PYR_OK) status = choose_among(cache, c, &e, layers, rows);
    }
    pyr_release(rt, arena.block, count.used);
  }
  pyr_release(rt, first.block, first.used);
  return status;
}

/* ---- splits ---------------------------------------------------------------------------------- */

/* Six numbers of each rank, asked for with every plan that does not have one set for all lanes
 * (whose counts are the same everywhere). Of lanes of 300 rows on rank 0, and 280 on rank 1, where
 * 100 and 80 are over the budget of a lane:
 *
 *     rows, rows_after    the highest: 300, …     what shapes and triggers are told of
 *     total, budget       the sums                where lanes compete for one budget, whose copies
 *                                                 of a lane count once
 *     needed              anew from the sums      on all ranks alike, as all then go on to choose
 * */
pyr_status pyr_splits_join(pyr_splits *s) {
  const pyr_model *model = s->cache->pool->model;
  enum { NUMBERS = 6 };
  int64_t all[NUMBERS * PYR_RANKS_MAX];
  bool competes = pyr_splits_compete(s);
  s->own_total = s->total;
  if (!model->ranks || s->plan->share == PYR_SHARE_LAYER) return PYR_OK;
  const int64_t mine[NUMBERS] = { s->rows, s->rows_after, s->total, s->budget, s->promised,
                                  s->needed };
  PYR_TRY(pyr_ranks_tell(model->ranks, mine, NUMBERS, all));
  if (competes) s->total = s->budget = s->promised = 0;
  for (int r = 0; r < pyr_ranks_size(model->ranks); r++) {
    const int64_t *its = all + r * NUMBERS;
    s->rows = pyr_max(s->rows, its[0]);
    s->rows_after = pyr_max(s->rows_after, its[1]);
    if (!competes || model->parts[r].copy > 0) continue;
    s->total += its[2], s->budget += its[3], s->promised += its[4];
  }
  if (competes) pyr_splits_settle(s);
  return PYR_OK;
}
