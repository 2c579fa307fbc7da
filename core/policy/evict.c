/* evict.c — the life of a plan, from the question to a shorter cache.
 *
 * The idea (PyramidInfer, arXiv 2405.12532). Few rows of a layer matter for what comes: the pivotal
 * context, those that the most recent queries attend to. And the deeper the layer, the fewer. So
 * after a layer has read a prompt, the rows that its recent queries attend to least are dropped,
 * and what was dropped need not be computed in any deeper layer:
 *
 *     layer 0   A B C D E F G H I J        all tokens are alive
 *               . . . . . . . [recent]     I, J are the recent window; of A..H six survive
 *     layer 1   A B . D E . G H I J        C and F are not computed here
 *     layer 2   A B . D . . G . I J        and so on: a pyramid
 *
 * Six steps, in the order of this file. Of layer i of L:
 *
 * 1. Ask. The policy is told the shape of the layer and answers with a plan: how many rows survive,
 *    which are guarded, what ranks the others, who shares a set. PyramidInfer's `keep` falls with
 *    depth, by a cosine from 1 to its `ratio`:
 *        d_i = ratio + (1 - ratio) * (cos(pi * i / L) + 1) / 2
 *    It is asked before the layer computes anything, and so is memory.
 * 2. Score. One number for each candidate. PyramidInfer's is the attention of the recent queries,
 *    averaged over heads and weighted by a ramp w from 1 (oldest) to `ramp` (newest):
 *        A_j = mean over heads h, mean over recent queries q, of w(q) * softmax(q_h . k_h)_j
 *    In prefill it is summed up as chunks pass by (observe.h). In decode each row has summed up its
 *    own (track.h). Other scores are programs over such signals (score.h).
 * 3. Split. Recent rows S_r, and the first few, are guarded; the context S_c before them holds the
 *    candidates (split.h). Splits do not depend on scores, so they are worked out as the plan is
 *    asked for: here they tell each lane's counts.
 * 4. Select. The k = |S_c| * d_i candidates of highest score survive (the paper's top-p is this
 *    proportion); ties go to the lower row. Under `mass` it is as few as hold that part of the sum,
 *    under `above` those whose score is no lower; with share = "pool" the lanes' candidates compete
 *    for one budget. Survivors are a list of row indices, three ascending runs in one array, so
 *    that guards are structure and never compete:
 *        idx   0 1 2 3 | 5 9 | 12 13 14 15             first | selected | last
 *    Counts that a plan fixes are never read back from a device. Under mass, above and pool they
 *    depend on scores: one number a lane is read back, before its rows move.
 * 5. Gather. Rows of idx move to the lane's front, pages behind them go back to the pool.
 * 6. Hand on. Where hidden states are pruned, the survivors' residual streams are all that the next
 *    layer gets. In decode the layer's trigger starts anew.
 *
 * With share = "model" the rows of all layers compete, and 4 and 5 are done again for the layers
 * that have read, each time another one has (CAKE, arXiv 2503.12491; LAVa, arXiv 2509.09754): see
 * pyr_cascade below.
 *
 * Nothing moves before it is known who survives, and what can fail comes first. */
#include "policy/evict.h"
#include "policy/policy.h"
#include "policy/ranked.h"
#include "cache/check.h"
#include "cache/tiers.h"
#include "cache/undo.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

/* What an eviction holds for itself, and the scratch that several may take turns with: of the host,
 * which depends on the model alone, … */
static void layout_own_host(pyr_eviction *e, int32_t heads, pyr_arena *host) {
  PYR_PART(host, e->splits.lanes, heads);
  PYR_PART(host, e->at, heads);
  PYR_PART(host, e->kept, heads);
}

static void layout_contest_host(pyr_contest *c, int64_t lanes, pyr_arena *host) {
  PYR_PART(host, c->segments, lanes);
  PYR_PART(host, c->counts, lanes);
}

static void layout_scratch_host(pyr_eviction *e, int32_t heads, pyr_arena *host) {
  PYR_PART(host, e->views, 2 * heads);
  layout_contest_host(&e->contest, heads, host);
}

/* … and of the backend, which depends on the plan. idx has room for every row of each set's
 * first lane: sets of 3 lanes of 70 rows take 70 entries, as they share one list; 3 sets of one
 * lane take 210. */
static void layout_own(pyr_eviction *e, pyr_arena *arena) {
  const pyr_splits *s = &e->splits;
  int64_t listed = 0;
  for (int g = 0; g < s->groups; g++) listed += s->lanes[g * s->members].rows;
  PYR_PART(arena, e->idx, listed);
  if (e->plan.prune & PYR_PRUNE_HIDDEN) PYR_PART(arena, e->hidden, s->coming);
}

/* cuts: two numbers a segment, the key where it ends and how many equal ones are taken. */
static void layout_contest(pyr_contest *c, int64_t lanes, int64_t candidates, pyr_arena *arena) {
  PYR_PART(arena, c->scores, candidates);
  PYR_PART(arena, c->chosen, lanes);
  PYR_PART(arena, c->cuts, 2 * lanes);
}

/* links: for each row what it was given to, and the losers (merge). */
static void layout_scratch(pyr_eviction *e, pyr_arena *arena) {
  const pyr_splits *s = &e->splits;
  bool pooled = e->plan.share == PYR_SHARE_POOL && !pyr_plan_unites(&e->plan);
  int depth;
  pyr_score_check(&e->plan.score, &depth);
  int64_t work = pyr_score_scratch(s->cache, depth, s->longest);
  if (e->plan.weight.length > 0) {
    pyr_score_check(&e->plan.weight, &depth);
    work = pyr_max(work, pyr_weight_scratch(s, depth));
  }
  PYR_PART(arena, e->work, work);
  layout_contest(&e->contest, pooled ? s->cache->heads : 1, pooled ? s->total : 0, arena);
  if (e->plan.merge) PYR_PART(arena, e->links, 2 * s->rows);
}

/* ---- 1. ask ---------------------------------------------------------------------------------- */

static pyr_shape shape_of(const pyr_cache *cache, int layer) {
  const pyr_model_config *c = &cache->pool->model->whole;
  return (pyr_shape){ .layer = layer, .layers = c->layers, .heads = c->heads,
                      .kv_heads = c->kv_heads, .head_dim = c->head_dim, .tokens = cache->tokens,
                      .rows = pyr_cache_layer_rows(cache, layer) };
}

/* Rows of the longest lane of a layer when the prefill that is running began. */
static int64_t rows_marked(const pyr_cache *cache, int layer) {
  int64_t rows = 0;
  for (int head = 0; head < cache->heads; head++)
    rows = pyr_max(rows, pyr_cache_lane(cache, layer, head)->mark);
  return rows > 0 ? rows + cache->states[layer].more : 0;
}

/* Whether passes over a prompt cannot see the layer's rows: they come a prompt later, and a sliding
 * window has moved on by then. What such a layer holds is bounded by its window, and stays. */
static bool passes_miss(const pyr_cache *cache, int layer) {
  const int32_t *windows = cache->pool->model->config.window;
  return windows && windows[layer] > 0;
}

/* The plan, and how it falls on lanes that get `coming` rows before it runs. */
static pyr_status ask(pyr_eviction *e, pyr_cache *cache, pyr_when when, const pyr_shape *shape,
                      int64_t coming) {
  e->trace = (pyr_trace_run){ 0 };
  if (when == PYR_WHEN_PREPARED && passes_miss(cache, shape->layer))
    e->plan = (pyr_plan){ .keep = shape->rows, .prune = PYR_PRUNE_CACHE };
  else PYR_TRY(pyr_policy_ask(cache, when, shape, &e->plan));
  pyr_splits_make(&e->splits, cache, shape->layer, &e->plan, when, coming, e->splits.lanes);
  PYR_TRY(pyr_splits_join(&e->splits));
  return pyr_policy_check_lanes(&e->splits);
}

/* Stands for a plan where the policy is not asked: every row survives, so `needed` is false and
 * the steps below do nothing. */
static void keep_everything(pyr_eviction *e, pyr_cache *cache, const pyr_shape *shape,
                            int64_t coming) {
  e->trace = (pyr_trace_run){ 0 };
  e->plan = (pyr_plan){ .keep = shape->rows, .prune = PYR_PRUNE_CACHE };
  pyr_splits_make(&e->splits, cache, shape->layer, &e->plan, PYR_WHEN_PREFILL, coming,
                  e->splits.lanes);
}

/* ---- 2. and 4. score and select -------------------------------------------------------------- */

/* A lane's candidates, or those of all lanes of a set, which are as many: *out [candidates]. */
static pyr_status score(const pyr_eviction *e, pyr_signals *signals, int head, int members,
                        float **out) {
  const pyr_split *lane = &e->splits.lanes[head];
  signals->begin = lane->first;
  signals->end = lane->first + lane->candidates;
  signals->together = e->plan.share == PYR_SHARE_LAYER && e->splits.groups == 1;
  return pyr_score_eval(&e->plan.score, signals, head, members, e->work, out);
}

/* Chooses among the candidates of the first `count` segments of a contest, whose scores are given,
 * to idx; their counts come to c->counts. `bounds`: the plan whose mass and bound may choose fewer
 * than `most`; NULL: exactly as many. `everywhere`: among the lanes of all ranks. */
static pyr_status choose(const pyr_cache *cache, const pyr_contest *c, const float *scores,
                         int32_t count, int64_t most, const pyr_plan *bounds, bool everywhere,
                         int32_t *idx) {
  pyr_backend *be = cache->pool->be;
  pyr_choice choice = { .score = scores, .segments = c->segments, .count = count, .most = most,
                        .idx = idx, .chosen = c->chosen, .work = c->cuts };
  if (bounds) {
    choice.mass = bounds->mass;
    choice.bounded = bounds->bounded, choice.above = bounds->above;
  }
  PYR_TRY(everywhere ? pyr_choose_ranked(cache, &choice, NULL) : be->choose(be, &choice));
  return be->download(be, c->counts, c->chosen, (size_t)count * sizeof *c->counts);
}

/* The same in each of several layers by itself, rows[i] of its lanes' on all ranks. */
static pyr_status choose_each(const pyr_cache *cache, const pyr_contest *c, int32_t layers,
                              int64_t *rows, int32_t *idx) {
  pyr_backend *be = cache->pool->be;
  pyr_choice choice = { .score = c->scores, .segments = c->segments,
                        .count = layers * cache->heads, .idx = idx, .chosen = c->chosen,
                        .work = c->cuts };
  PYR_TRY(pyr_choose_ranked(cache, &choice, rows));
  return be->download(be, c->counts, c->chosen, (size_t)choice.count * sizeof *c->counts);
}

/* Lists the survivors of a lane in idx: guards, selected, guards. Indices are less `skip`, whose
 * rows are not listed: hidden states are those of alive tokens, which lie behind the rows that were
 * there before them. *kept: how many are listed. `scores` is not looked at where none can be
 * selected.
 *
 *     rows of the lane   0 1 2 3   4 5 6 7 8 9     skip 4: the prompt's tokens are rows 4 to 9
 *     first 4, last 2    [guard]     a b     [g]   a and b are selected
 *     idx                0 1 2 3   6 7   8 9       of rows: 8 are listed
 *     idx, skip 4                  2 3   4 5       of tokens: 4 are listed */
static pyr_status list_survivors(const pyr_eviction *e, int head, const float *scores,
                                 int64_t skip, int32_t *idx, int64_t *kept) {
  pyr_backend *be = e->splits.cache->pool->be;
  const pyr_split *lane = &e->splits.lanes[head];
  int64_t first = lane->first - skip, selected = lane->max;
  if (first > 0) PYR_TRY(be->iota(be, idx, 0, first));
  if (lane->max > 0 && pyr_plan_is_open(&e->plan)) {
    e->contest.segments[0] = (pyr_segment){ .n = lane->candidates, .least = lane->min,
                                            .at = first, .offset = (int32_t)first };
    PYR_TRY(choose(e->splits.cache, &e->contest, scores, 1, lane->max, &e->plan, false, idx));
    selected = e->contest.counts[0];
  } else if (lane->max > 0) {
    PYR_TRY(be->select(be, idx + first, scores, lane->candidates, lane->max, (int32_t)first));
  }
  *kept = first + selected + lane->last;
  if (lane->last == 0) return PYR_OK;
  return be->iota(be, idx + first + selected, (int32_t)(lane->rows - lane->last - skip),
                  lane->last);
}

/* One set after the other: that of all lanes, or each lane's own. Invariant: `at` is where the
 * set's part of idx begins; a set that loses nothing keeps its part, empty, so that e->at is
 * right for those behind it. */
static pyr_status rank_sets(pyr_eviction *e, pyr_signals *signals) {
  const pyr_splits *s = &e->splits;
  int64_t at = 0;
  for (int head = 0; head < s->cache->heads; head += s->members) {
    const pyr_split *lane = &s->lanes[head];
    float *scores = NULL;
    e->at[head] = at;
    e->kept[head] = lane->rows;
    at += lane->rows;
    if (!pyr_split_loses(s, head)) continue;
    if (lane->max > 0) PYR_TRY(score(e, signals, head, s->members, &scores));
    if (e->plan.prune & PYR_PRUNE_CACHE)
      PYR_TRY(list_survivors(e, head, scores, 0, e->idx + e->at[head], &e->kept[head]));
    if (e->plan.prune & PYR_PRUNE_HIDDEN)
      PYR_TRY(list_survivors(e, head, scores, lane->rows - s->coming, e->hidden,
                             &e->hidden_kept));
  }
  return PYR_OK;
}

/* One budget for several lanes. Their scores lie one after the other, and the highest survive
 * wherever they are. Each lane has a part of idx as long as its rows, and its guards are put around
 * what was chosen of it:
 *
 *     scores    lane 0: a b c d    lane 1: e f         budget 3: b, c, f are the highest
 *     idx       [0 1|b c|6 7 . .] [0 1|f|4 5 .]        first | chosen | last, of each lane
 *
 * Before the choice: the lanes of one layer enter a contest, from its segment `lane` on, with
 * scores from `to` on, which are only `wanted` where some candidate survives. `from`: where the
 * choice's idx begins; the layer's own may lie behind it. */
static pyr_status enter(pyr_eviction *e, pyr_signals *signals, pyr_contest *c, int64_t lane,
                        const int32_t *from, float *to, bool wanted) {
  const pyr_splits *s = &e->splits;
  pyr_backend *be = s->cache->pool->be;
  int64_t begin = 0;
  for (int head = 0; head < s->cache->heads; head++, lane++) {
    const pyr_split *split = &s->lanes[head];
    float *scores;
    e->at[head] = begin;
    c->segments[lane] = (pyr_segment){ .n = split->candidates, .least = split->min,
                                       .at = e->idx - from + begin + split->first,
                                       .offset = (int32_t)split->first };
    c->counts[lane] = 0;
    begin += split->rows;
    if (split->candidates == 0 || !wanted) continue;
    PYR_TRY(score(e, signals, head, 1, &scores));
    PYR_TRY(be->copy(be, to, scores, (size_t)split->candidates * sizeof *to));
    to += split->candidates;
  }
  return PYR_OK;
}

/* After it: counts [heads] of what was chosen of the layer's lanes. */
static pyr_status leave(pyr_eviction *e, const int32_t *counts) {
  const pyr_splits *s = &e->splits;
  pyr_backend *be = s->cache->pool->be;
  for (int head = 0; head < s->cache->heads; head++) {
    const pyr_split *lane = &s->lanes[head];
    int64_t chosen = counts[head];
    int32_t *idx = e->idx + e->at[head];
    if (lane->first) PYR_TRY(be->iota(be, idx, 0, lane->first));
    if (lane->last)
      PYR_TRY(be->iota(be, idx + lane->first + chosen, (int32_t)(lane->rows - lane->last),
                       lane->last));
    e->kept[head] = lane->first + chosen + lane->last;
  }
  return PYR_OK;
}

static pyr_status rank_together(pyr_eviction *e, pyr_signals *signals) {
  const pyr_splits *s = &e->splits;
  PYR_TRY(enter(e, signals, &e->contest, 0, e->idx, e->contest.scores, s->pooled > 0));
  if (s->pooled > 0)
    PYR_TRY(choose(s->cache, &e->contest, e->contest.scores, s->cache->heads, s->pooled,
                   &e->plan, true, e->idx));
  return leave(e, e->contest.counts);
}

static pyr_status rank(pyr_eviction *e, pyr_signals *signals) {
  if (!e->splits.needed) return PYR_OK;
  return e->plan.share == PYR_SHARE_POOL ? rank_together(e, signals) : rank_sets(e, signals);
}

/* ---- 5. gather ------------------------------------------------------------------------------- */

/* Keys of a compacted layer lie rotated to their rows' indices. Those that came since the last cut
 * came rotated to their index; from now on that is noted, as the index is about to change.
 * turned 40, 50 rows: rows 40 to 49 came rotated to 40 .. 49, and get born = 40 .. 49. */
static pyr_status note_born(const pyr_eviction *e, int head) {
  const pyr_splits *s = &e->splits;
  const pyr_layer_state *state = &s->cache->states[s->layer];
  pyr_backend *be = s->cache->pool->be;
  pyr_lane *lanes = pyr_cache_lane(s->cache, s->layer, head);
  if (!state->compact) return PYR_OK;
  for (int i = 0; i < s->members; i++)
    PYR_TRY(be->iota(be, lanes[i].born + state->turned, (int32_t)state->turned,
                     lanes[i].rows - state->turned));
  return PYR_OK;
}

/* Survivors take in before rows move, as losers are still there; any page may be written, so all
 * are made the lane's own first. */
static pyr_status merge_losers(const pyr_eviction *e, int head, const int32_t *idx, int64_t kept) {
  const pyr_splits *s = &e->splits;
  pyr_backend *be = s->cache->pool->be;
  pyr_lane *lanes = pyr_cache_lane(s->cache, s->layer, head);
  for (int i = 0; i < s->members; i++) {
    PYR_TRY(pyr_lane_unshare(s->cache, &lanes[i], 0));
    pyr_lane_view view = pyr_lane_get_view(&lanes[i]);
    PYR_TRY(be->merge(be, &view, s->cache->pool->layout, idx, kept, e->plan.threshold, e->links));
  }
  return PYR_OK;
}

/* Keys of the rows that stayed are turned to their new indices: at the first cut from where they
 * were born, later from the index that they stood at, which idx holds. Of rows 0, 1, 4, 6 that
 * stay, the third stood at index 4 and now stands at 2. Its key came at position 9, and is turned
 * from there, by -7, not once more by -2: so errors do not add up over cuts. */
static pyr_status turn_keys(const pyr_eviction *e, int head, const int32_t *idx) {
  const pyr_splits *s = &e->splits;
  pyr_backend *be = s->cache->pool->be;
  pyr_turn turn = pyr_model_turn(s->cache->pool->model, s->layer);
  pyr_lane *lanes = pyr_cache_lane(s->cache, s->layer, head);
  bool again = s->cache->states[s->layer].compact;
  for (int i = 0; i < s->members; i++) {
    if (!again) PYR_TRY(pyr_lane_widen(s->cache, &lanes[i]));
    PYR_TRY(pyr_lane_unshare(s->cache, &lanes[i], again ? s->lanes[head].first : 0));
    pyr_lane_view view = pyr_lane_get_view(&lanes[i]);
    if (!again)
      PYR_TRY(be->copy(be, view.born, view.positions, (size_t)view.rows * sizeof *view.born));
    if (turn.freq)
      PYR_TRY(be->rotate(be, &view, s->cache->pool->layout, view.born, again ? idx : NULL,
                         turn.freq, turn.dims, turn.style));
  }
  return PYR_OK;
}

/* All rows but the survivors leave the lanes of the set that begins at `head`. The first rows are
 * guarded and stay where they are, and so do their pages, shared with forks or not:
 *
 *     page     0          1          2              before: 80 rows, first 40, 20 survivors behind
 *     row      0 ... 31   32 ... 63  64 ... 79
 *     after    0 ... 31   32 ... 59                 page 0 is not touched, page 2 goes back */
static pyr_status gather_set(const pyr_eviction *e, int head) {
  const pyr_splits *s = &e->splits;
  pyr_cache *cache = s->cache;
  pyr_lane *lanes = pyr_cache_lane(cache, s->layer, head);
  const int32_t *idx = e->idx + e->at[head];
  int64_t kept = e->kept[head];
  /* rows keep their K and V, and are not cut again: losers of one cut can be put aside */
  bool moves = !e->plan.merge && !s->turns
      && !(pyr_plan_unites(&e->plan) && s->when == PYR_WHEN_PREFILL);
  if (kept >= lanes->rows) return PYR_OK;
  for (int i = 0; i < s->members && !moves; i++) pyr_digests_stale(&lanes[i].digests, 0);
  PYR_TRY(note_born(e, head));
  if (cache->undo)
    PYR_TRY(pyr_undo_lanes(cache->undo, s->layer, head, s->members, idx, kept, moves));
  if (e->plan.merge) PYR_TRY(merge_losers(e, head, idx, kept));
  if (e->plan.losers) {
    PYR_TRY(pyr_tier_demote(cache, s->layer, head, s->members, idx, kept,
                            (pyr_tier)e->plan.losers));
    /* what gathering is about to count has not left the cache */
    cache->evicted -= s->members * (lanes->rows - kept);
  }
  PYR_TRY(pyr_lanes_gather(cache, lanes, s->members, e->views, idx, kept, s->lanes[head].first));
  return s->turns ? turn_keys(e, head, idx) : PYR_OK;
}

/* Set after set: their lists of survivors lie in one block, and each moves its own lanes alone. */
static pyr_status gather_sets(const pyr_eviction *e) {
  const pyr_splits *s = &e->splits;
  for (int head = 0; head < s->cache->heads; head += s->members) PYR_TRY(gather_set(e, head));
  return PYR_OK;
}

/* Losers that go down a tier are there before they leave their lane, so limits hear of it
 * afterwards. Where a limit says no, rows have moved already: a prefill's undo, or that which a
 * step or an eviction has made for such plans, brings them back. */
static pyr_status gather_down(const pyr_eviction *e) {
  pyr_cache *cache = e->splits.cache;
  pyr_measure before = pyr_tiers_lift(cache);
  pyr_status status = gather_sets(e);
  if (status == PYR_OK) status = pyr_tiers_settle(cache, &before);
  return pyr_tiers_lower(cache, &before, status);
}

static pyr_status gather(const pyr_eviction *e) {
  const pyr_splits *s = &e->splits;
  pyr_layer_state *state = &s->cache->states[s->layer];
  int64_t before = pyr_cache_layer_rows(s->cache, s->layer);
  if (!s->needed || !(e->plan.prune & PYR_PRUNE_CACHE)) return PYR_OK;
  PYR_TRY(e->plan.losers ? gather_down(e) : gather_sets(e));
  int64_t after = pyr_cache_layer_rows(s->cache, s->layer);
  if (s->turns && after < before) state->compact = true, state->turned = after;
  return PYR_OK;
}

/* ---- several plans --------------------------------------------------------------------------- */

void pyr_evictions_layout_host(pyr_evictions *es, int64_t room, int32_t heads, pyr_arena *host) {
  pyr_eviction scratch = { 0 };
  PYR_PART(host, es->each, room);
  PYR_PART(host, es->found, room);
  if (room > 0) layout_scratch_host(&scratch, heads, host);
  for (int64_t i = 0; i < room; i++) {
    if (es->each) es->each[i] = scratch;
    layout_own_host(es->each ? &es->each[i] : &scratch, heads, host);
  }
  layout_contest_host(&es->contest, room * heads, host);
}

/* Whether a plan shares its budget with other layers' plans. */
static bool is_united(const pyr_eviction *e) { return pyr_plan_unites(&e->plan); }

/* Layers may keep different numbers of rows, and guard different ones: budgets and candidates add
 * up. Of two layers of two lanes of 10 rows, one with keep 4 and one with keep 8, guards of 2 each:
 * 2 * (4 - 2) + 2 * (8 - 2) = 16 of the 32 candidates survive, wherever they are. Who would lose no
 * row by itself may lose some to another layer, so `needed` is said of all together. */
pyr_status pyr_evictions_unite(pyr_evictions *es) {
  int64_t budget = 0, promised = 0;
  const pyr_eviction *first = NULL;
  es->total = 0;
  for (int64_t i = 0; i < es->count; i++) {
    pyr_eviction *e = &es->each[i];
    const pyr_splits *s = &e->splits;
    if (!is_united(e)) continue;
    if (!first) first = e;
    if (e->plan.mass != first->plan.mass)
      return pyr_policy_unequal(s, "mass", first->splits.layer);
    if (e->plan.bounded != first->plan.bounded || e->plan.above != first->plan.above)
      return pyr_policy_unequal(s, "above", first->splits.layer);
    budget += s->budget, promised += s->promised, es->total += s->total;
  }
  es->bounds = first ? &first->plan : NULL;
  es->budget = pyr_min(pyr_max(budget, promised), es->total);
  bool open = first && pyr_plan_is_open(&first->plan);
  bool needed = es->budget < es->total || (open && promised < es->total);
  for (int64_t i = 0; i < es->count; i++)
    if (is_united(&es->each[i])) es->each[i].splits.needed = needed;
  return PYR_OK;
}

/* ---- 6. hand on: layers that share a budget while they read ---------------------------------- */

/* Rows of all layers compete for one budget, but a prompt is read layer by layer, and to hold all
 * rows until the last one has read would cost what a full cache costs. So after each layer those
 * that have read are cut to what the budget still allows them:
 *
 *     budget 6, each layer has 4 candidates, none of which is promised to its lane
 *     after layer 0    a b c d                           4 are held, none has to go
 *     after layer 1    a . c d | e f . h                 6 of 8: b and g are the lowest
 *     after layer 2    a . c . | e . . h | i j . .       6 of 6 + 4
 *
 * A row that is among the 6 highest of all layers is among the 6 highest of any few of them, and
 * equals keep their order. So what is left at the end is what one choice among all rows would have
 * left (CAKE's theorem 1 says it of its own budgets), and never more was held than the budget and
 * one layer. What later lanes keep whatever happens (`least`) is taken off the budget while they
 * are to come. Of each row that is held the score is kept: 4 bytes, and 4 of the list of survivors.
 *
 * All plans are asked for before the first of these layers reads, as the budget is the sum of what
 * they say; each is asked again when its turn comes, and must say the same.
 *
 * Where plans have weights, rows of different layers are not compared. A layer's k-th row is worth
 * weight / k to the budget, and the highest of these are kept, ties to the lower layer: so layers
 * get rows in proportion to their weights, in whole numbers (Jefferson's and D'Hondt's method), and
 * another layer can only lower what one gets. Weights 6, 3, 1 and 7 rows:
 *
 *     6 / k    6   3   2   1.5   1.2   1        5 rows: 6 3 2 1.5 1.2
 *     3 / k    3   1.5   1                      2 rows: 3 1.5; 1.2 and 1.5 were the last to come in
 *     1 / k    1                                none: only what is promised to it
 *
 * Within the layer the lanes compete (share = "pool"), or each keeps as many ("head"). */

/* The shape of a layer that `alive` of `prompt` tokens are about to reach. `whole`: what is held
 * is told as a part of the prompt, so that a prompt read in two pieces is judged as one that was
 * read at once. Of 300 rows held and 100 tokens to read:
 *
 *                 past   prompt   rows
 *     else         300      100    400     keep past + 0.5 * prompt = 350
 *     whole          0      400    400     keep past + 0.5 * prompt = 200
 *
 * A layer with a sliding window has given rows back that were tokens of the prompt, too: there all
 * tokens seen count, so that a share of them is never less than it was for the prompt at once. */
static pyr_shape shape_reading(const pyr_cache *cache, int layer, int64_t prompt, int64_t alive,
                               bool whole) {
  pyr_shape shape = shape_of(cache, layer);
  shape.prompt = prompt;
  shape.past = shape.rows;
  if (whole) {
    shape.prompt += passes_miss(cache, layer) ? cache->tokens : shape.rows;
    shape.past = 0;
  }
  shape.rows += alive;
  shape.tokens += prompt;
  return shape;
}

/* Of all lanes together, guards counted in: what a list of survivors has to have room for. */
static int64_t rows_of(const pyr_splits *s) {
  int64_t rows = 0;
  for (int head = 0; head < s->cache->heads; head++) rows += s->lanes[head].rows;
  return rows;
}

/* Plans of the layers from `layer` on, in their shapes of the moment before they read: no layer
 * from here on has been touched, and all tokens will reach it. Those that do not share are only
 * looked at: a layer that does must be reached by every token. */
static pyr_status cascade_ask(pyr_cascade *c, pyr_cache *cache, int layer, int64_t prompt,
                              bool whole) {
  for (int next = layer; next < cache->layers; next++) {
    pyr_eviction *e = &c->es.each[c->es.count];
    pyr_shape shape = shape_reading(cache, next, prompt, prompt, whole);
    PYR_TRY(ask(e, cache, PYR_WHEN_PREFILL, &shape, prompt));
    if (e->plan.prune & PYR_PRUNE_HIDDEN) return pyr_policy_hides(&e->splits);
    if (!is_united(e)) continue;
    bool weighed = e->plan.weight.length > 0;
    if (c->es.count > 0 && weighed != c->weighed) return pyr_policy_weighs_alone(&e->splits);
    c->weighed = weighed;
    c->open += e->splits.promised;
    c->es.count++;
  }
  return pyr_evictions_unite(&c->es);
}

/* Candidates that may be held at a time: the budget's, and those of the layer that has just read.
 * Of rows, guards come on top. Of 30 layers of 3 lanes of 2,000 rows, and a budget of a third of
 * them: 60,000 + 6,000 rows, 8 bytes each, are 0.5 MiB, where the rows in f16 take 15 MiB. A rank
 * may come to hold all of the budget, and its own lanes of a layer. */
static void cascade_layout(pyr_cascade *c, pyr_arena *arena) {
  int64_t most = 0, total = 0, guards = 0,
      lanes = c->es.count * c->es.each[0].splits.cache->heads;
  for (int64_t i = 0; i < c->es.count; i++) {
    const pyr_splits *s = &c->es.each[i].splits;
    most = pyr_max(most, s->own_total);
    total += s->own_total;
    guards += rows_of(s) - s->own_total;
  }
  most = pyr_min(c->es.budget + most, total);
  layout_contest(&c->es.contest, lanes, most, arena);
  PYR_PART(arena, c->idx, most + guards);
}

/* Two blocks, as a prefill's other memory: the host's depends on the model, the backend's on what
 * the plans say. What is taken here goes with pyr_layer_plans_free, whatever comes after it. */
static pyr_status cascade_begin(pyr_cascade *c, pyr_cache *cache, int layer, int64_t prompt,
                                bool whole) {
  pyr_backend *be = cache->pool->be;
  int64_t room = cache->layers - layer;
  pyr_arena count = { 0 }, host = { 0 }, block = { 0 };
  pyr_evictions_layout_host(&c->es, room, cache->heads, &count);
  PYR_PART(&count, c->rows, room);
  c->host = pyr_alloc_zero(cache->pool->rt, count.used);
  if (!c->host) return pyr_nomem(cache->pool->rt, count.used, "the scores of all layers");
  c->host_bytes = count.used;
  host.block = c->host;
  pyr_evictions_layout_host(&c->es, room, cache->heads, &host);
  PYR_PART(&host, c->rows, room);
  PYR_TRY(cascade_ask(c, cache, layer, prompt, whole));
  for (int64_t i = 0; i < c->es.count; i++) c->needed = c->needed || c->es.each[i].splits.needed;
  if (!c->needed) return PYR_OK;
  count = (pyr_arena){ 0 };
  cascade_layout(c, &count);
  c->block = be->alloc(be, count.used);
  if (!c->block) return pyr_nomem(cache->pool->rt, count.used, "the scores of all layers");
  c->block_bytes = count.used;
  block.block = c->block;
  cascade_layout(c, &block);
  return PYR_OK;
}

/* Whether the layer's plan says now what it said when all were asked: whether it shares, and how
 * many rows it adds to the budget. By what it ranks, or whom it guards among as many, may differ:
 * the memory that was laid out holds it, and only the budget was built upon. */
static bool says_the_same(const pyr_cascade *c, const pyr_eviction *e) {
  bool united = is_united(e), expected = c->read < c->es.count;
  if (united && c->weighed != (e->plan.weight.length > 0)) return false;
  const pyr_splits *now = &e->splits, *then = expected ? &c->es.each[c->read].splits : NULL;
  expected = expected && then->layer == now->layer;
  if (united != expected || (e->plan.prune & PYR_PRUNE_HIDDEN)) return false;
  return !united || (now->budget == then->budget && now->total == then->total
                     && now->promised == then->promised);
}

/* The layer's plan has been asked for, as every layer's is; those that share nothing pass by. The
 * first that shares brings all others to light; from then on every plan is held to what was said
 * there. `needed` decides whether queries are looked at, so it must be right before the layer
 * reads. */
static pyr_status cascade_join(pyr_layer_plan *p, pyr_cache *cache, int64_t prompt,
                               int64_t alive) {
  pyr_cascade *c = &p->cascade;
  pyr_eviction *e = &p->eviction;
  p->shares = is_united(e);
  if (p->shares && alive < prompt) return pyr_policy_reached_by_few(&e->splits);
  if (p->shares && !c->host)
    PYR_TRY(cascade_begin(c, cache, e->splits.layer, prompt, p->whole));
  if (c->host && !says_the_same(c, e)) return pyr_policy_not_pure(&e->splits);
  if (p->shares) e->splits.needed = c->needed;
  return PYR_OK;
}

/* Segments and lists of the layers that have read, from their splits; the scores of those that are
 * held lie as they are. The last one's are asked for: *signals.
 *
 *     scores   [ layer 0: held ][ layer 1: held ] … [ the last: all its candidates ]
 *     idx      [ layer 0: rows ][ layer 1: rows ] … [ the last: rows ]       guards counted in */
static pyr_status cascade_enter(pyr_cascade *c, pyr_signals *signals) {
  int32_t *idx = c->idx;
  int64_t lanes = 0;
  for (int64_t i = 0; i < c->read; i++) {
    pyr_eviction *e = &c->es.each[i];
    bool last = i == c->read - 1;
    e->idx = idx;
    PYR_TRY(enter(e, signals, &c->es.contest, lanes, c->idx,
                  c->es.contest.scores + c->own_held, last));
    if (last) c->held += e->splits.total, c->own_held += e->splits.own_total;
    idx += rows_of(&e->splits);
    lanes += e->splits.cache->heads;
  }
  return PYR_OK;
}

/* The scores of the chosen move to the front, where the next layer's come behind them. Segments
 * say where their rows are listed: behind those before them, by where their scores lie. */
static pyr_status cascade_pack(pyr_cascade *c, int32_t lanes, int64_t most) {
  pyr_contest *contest = &c->es.contest;
  pyr_backend *be = c->es.each[0].splits.cache->pool->be;
  int64_t at = 0, from = 0;
  for (int32_t i = 0; i < lanes; i++) {
    contest->segments[i].at = at, contest->segments[i].offset = (int32_t)from;
    contest->segments[i].least = contest->counts[i];   /* the same rows: each lane's highest */
    at += contest->counts[i], from += contest->segments[i].n;
  }
  c->held = most;
  c->own_held = at;
  if (at == 0) return PYR_OK;
  PYR_TRY(choose(c->es.each[0].splits.cache, contest, contest->scores, lanes, at, NULL, false,
                 c->idx));
  return be->take_i32(be, (int32_t *)contest->scores, c->idx, at);
}

/* What the layer's lanes hold after a cut, of which `counts` candidates are left. Guards are the
 * same rows as before, and what is promised to a lane is among its highest, which stayed. What is
 * left on other ranks is told where weights divide, who alone look at it: else `total` is what this
 * rank has left. */
static void cascade_shrink(pyr_splits *s, const int32_t *counts, const int64_t *left) {
  s->own_total = 0;
  for (int head = 0; head < s->cache->heads; head++) {
    pyr_split *lane = &s->lanes[head];
    lane->candidates = lane->max = counts[head];
    lane->rows = lane->first + lane->candidates + lane->last;
    s->own_total += lane->candidates;
  }
  s->total = left ? *left : s->own_total;
}

/* How many of the layer's rows are worth `least` or more each; those that are promised to it are
 * worth more than any. */
static int64_t rows_worth(const pyr_eviction *e, double least) {
  double weight = e->weight > 1e-30f ? e->weight : 1e-30f, count = floor(weight / least);
  int64_t rows = count < (double)e->splits.total ? (int64_t)count : e->splits.total;
  while (rows < e->splits.total && weight / (double)(rows + 1) >= least) rows++;
  while (rows > 0 && weight / (double)rows < least) rows--;
  return pyr_max(rows, e->splits.promised);
}

/* Rows that the budget has for all, of which `most` are wanted; the layers hold more. Positive
 * doubles are ordered as the integers that have their bits: so the highest `least` that
 * `most` rows are worth is found in 63 steps, whatever its size, and exactly. All that are worth
 * more are taken; of those that equal it the lower layers', until there are `most`. */
static void cascade_divide(pyr_cascade *c, int64_t most, int64_t *rows) {
  int64_t low = 1, high = 0x7fefffffffffffff, taken = 0;   /* the least and the highest double */
  while (low < high) {
    int64_t middle = low + (high - low) / 2 + 1, sum = 0;
    double least;
    memcpy(&least, &middle, sizeof least);
    for (int64_t i = 0; i < c->read; i++) sum += rows_worth(&c->es.each[i], least);
    if (sum >= most) low = middle;
    else high = middle - 1;
  }
  int64_t above = low + 1;
  double equal, more;
  memcpy(&equal, &low, sizeof equal);
  memcpy(&more, &above, sizeof more);
  for (int64_t i = 0; i < c->read; i++) taken += rows[i] = rows_worth(&c->es.each[i], more);
  for (int64_t i = 0; i < c->read; i++) {
    int64_t gets = pyr_min(rows_worth(&c->es.each[i], equal) - rows[i], most - taken);
    if (gets > 0) rows[i] += gets, taken += gets;
  }
}

/* What each lane keeps of a layer's part, where lanes do not compete: of 11 rows and 3 lanes 4, 4
 * and 3, unless one has fewer, or more are promised to it. What a lane has too few rows for is not
 * handed on to its neighbours, as no other lane's number may then grow when the part shrinks. */
static void share_out(const pyr_splits *s, int64_t rows, pyr_segment *segments) {
  const pyr_model *model = s->cache->pool->model;
  int64_t heads = model->whole.kv_heads, first = model->ranks ? pyr_model_part(model)->lanes.first
                                                              : 0;
  for (int64_t head = 0; head < s->cache->heads; head++) {
    const pyr_split *lane = &s->lanes[head];
    int64_t own = rows / heads + (first + head < rows % heads);
    segments[head].least = pyr_min(pyr_max(own, lane->min), lane->candidates);
  }
}

/* Chooses in each layer by itself as many rows as its weight brings it; where lanes do not compete,
 * what is shared out to them is promised, and nothing beside it is chosen. *most, so many rows in
 * all, becomes how many were chosen: fewer where such lanes hold too few, more where more is
 * promised to them. */
static pyr_status cascade_weigh(pyr_cascade *c, int64_t *most) {
  const pyr_cache *cache = c->es.each[0].splits.cache;
  cascade_divide(c, *most, c->rows);
  for (int64_t i = 0; i < c->read; i++) {
    const pyr_eviction *e = &c->es.each[i];
    if (e->plan.share != PYR_SHARE_HEAD) continue;
    share_out(&e->splits, c->rows[i], c->es.contest.segments + i * cache->heads);
    c->rows[i] = 0;
  }
  PYR_TRY(choose_each(cache, &c->es.contest, (int32_t)c->read, c->rows, c->idx));
  *most = 0;
  for (int64_t i = 0; i < c->read; i++) *most += c->rows[i];
  return PYR_OK;
}

/* The layers that have read are cut to what the budget leaves them. Budget 60, of which 4 are open
 * for lanes that are still to come: 56 may be held. Where fewer are, the scores just wait. */
static pyr_status cascade_cut(pyr_cascade *c) {
  pyr_contest *contest = &c->es.contest;
  const int32_t *counts = contest->counts;
  pyr_cache *cache = c->es.each[0].splits.cache;
  int64_t most = c->es.budget - c->open;
  int32_t lanes = (int32_t)c->read * cache->heads;
  if (c->held <= most) return PYR_OK;
  if (c->weighed)
    PYR_TRY(cascade_weigh(c, &most));
  else if (most > 0)
    PYR_TRY(choose(cache, contest, contest->scores, lanes, most, NULL, true, c->idx));
  for (int64_t i = 0; i < c->read; i++, counts += cache->heads) {
    pyr_eviction *e = &c->es.each[i];
    PYR_TRY(leave(e, counts));
    PYR_TRY(gather(e));
    PYR_TRY(pyr_cache_check_layer(cache, e->splits.layer));
    cascade_shrink(&e->splits, counts, c->weighed ? &c->rows[i] : NULL);
  }
  return cascade_pack(c, lanes, most);
}

/* What the layer that has just read weighs: one number, for which a device is waited for. Its lanes
 * are whole at that moment, and their scores are worked out behind it: the scratch is one. Where
 * the number is none, no part of the budget can be told, and the prefill ends. */
static pyr_status cascade_weigh_layer(pyr_layer_plan *p, pyr_eviction *e) {
  const pyr_splits *s = &e->splits;
  PYR_TRY(pyr_score_weigh(&p->seen.program, e->plan.score.length, &p->seen.signals, s, e->work,
                          &e->weight));
  return isfinite(e->weight) ? PYR_OK
      : pyr_policy_not_finite(s->cache, s->layer, s->when, &e->plan.weight);
}

/* A layer that shares has read: it enters, and all that have read are cut. What was promised to it
 * is its own now, and no longer open. */
static pyr_status cascade_run(pyr_layer_plan *p) {
  pyr_cascade *c = &p->cascade;
  pyr_eviction *e = &c->es.each[c->read++];
  e->work = p->eviction.work;
  c->open -= e->splits.promised;
  if (!c->needed) return PYR_OK;
  if (c->weighed) PYR_TRY(cascade_weigh_layer(p, e));
  PYR_TRY(cascade_enter(c, &p->seen.signals));
  return cascade_cut(c);
}

/* In the order of layers; those that share nothing were told of when they had read. Rows are what
 * they were before the first cut, and what is left after the last one. */
pyr_status pyr_layer_plans_end(pyr_layer_plan *p) {
  for (int64_t i = 0; i < p->cascade.es.count; i++) {
    const pyr_eviction *e = &p->cascade.es.each[i];
    PYR_TRY(pyr_trace_tell(&e->trace, &e->splits, p->last_position + 1, e->splits.coming));
  }
  return PYR_OK;
}

/* After a prefill that ended early, too: what was not taken yet is NULL, and releases nothing. */
void pyr_layer_plans_free(pyr_layer_plan *p, pyr_cache *cache) {
  pyr_cascade *c = &p->cascade;
  pyr_backend *be = cache->pool->be;
  be->release(be, c->block, c->block_bytes);
  pyr_release(cache->pool->rt, c->host, c->host_bytes);
  *c = (pyr_cascade){ 0 };
}

/* ---- 6. hand on: a layer in prefill ---------------------------------------------------------- */

void pyr_layer_plan_layout_host(pyr_layer_plan *p, const pyr_cache *cache, pyr_arena *host) {
  layout_own_host(&p->eviction, cache->heads, host);
  layout_scratch_host(&p->eviction, cache->heads, host);
  pyr_observe_layout_host(&p->seen, cache->heads, host);
}

/* What is wanted of all positions, logits or states, needs every token to reach the last layer. */
static pyr_status check_all_reach(const pyr_layer_plan *p, const pyr_shape *shape, int flags) {
  const pyr_plan *plan = &p->eviction.plan;
  const pyr_cache *cache = p->eviction.splits.cache;
  if (!(plan->prune & PYR_PRUNE_HIDDEN)) return PYR_OK;
  if (plan->keep >= shape->rows && !pyr_plan_is_open(plan)) return PYR_OK;
  return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                               "%s of every position need every token to reach the last layer, "
                               "but policy %s prunes hidden states at layer %d (append with "
                               "pruning off instead)",
                               flags & PYR_PREFILL_STATES ? "hidden states" : "logits",
                               cache->policy.name ? cache->policy.name : "?", shape->layer + 1);
}

/* The plan of a prefill that is read whole first, and then prepared: what it says is checked now,
 * and carried out when it is asked for again (pyr_evictions_ask). Until then all rows stay; but
 * when a trigger by length fires, and so which of the prompt's queries count for it, is reckoned
 * from the rows that will be left: of 45 rows over 30 it would be the next step, of 12 it is the
 * 19th. */
static pyr_status ask_ahead(pyr_layer_plan *p, pyr_cache *cache, pyr_shape *shape, int64_t alive) {
  const pyr_shape as_read = *shape;
  PYR_TRY(ask(&p->eviction, cache, PYR_WHEN_PREPARED, shape, alive));
  shape->rows = p->eviction.splits.rows_after;
  PYR_TRY(pyr_policy_ask_trigger(cache, shape, &p->eviction.plan, &p->trigger));
  PYR_TRY(pyr_policy_ask_read(cache, shape, &p->eviction.plan, &p->trigger, &p->read));
  PYR_TRY(pyr_policy_check_prepared(cache, &as_read, &p->trigger, &p->eviction.plan));
  PYR_TRY(pyr_learned_need(cache, &p->trigger));
  p->evicts = p->evicts || p->eviction.splits.needed;
  keep_everything(&p->eviction, cache, &as_read, alive);
  p->eviction.splits.rows_after = shape->rows;
  return PYR_OK;
}

/* Old rows are judged as the prompt's own where a prompt is read in pieces. What only the newest
 * piece has cannot judge them: hidden states to hand on, and scores of what the layer read, which
 * guard old rows (own_rows_only). A plan that lets all rows be is fine, as is one without old rows.
 */
static pyr_status check_whole(const pyr_layer_plan *p) {
  const pyr_splits *s = &p->eviction.splits;
  bool hides = p->eviction.plan.prune & PYR_PRUNE_HIDDEN;
  if (!p->whole || rows_marked(s->cache, s->layer) == 0 || !s->needed) return PYR_OK;
  if (!hides && s->past == 0) return PYR_OK;
  return pyr_policy_not_in_pieces(s, hides);
}

pyr_status pyr_layer_plan_ask(pyr_layer_plan *p, pyr_cache *cache, int layer, int64_t prompt,
                              int64_t alive, int flags) {
  p->whole = flags & PYR_PREFILL_WHOLE;
  pyr_shape shape = shape_reading(cache, layer, prompt, alive, p->whole);
  p->before = shape.past;
  p->shares = false;
  p->last_position = cache->tokens + prompt - 1;
  p->asked = !(flags & PYR_PREFILL_NO_PRUNE);
  if (!p->asked) {
    keep_everything(&p->eviction, cache, &shape, alive);
    p->trigger = cache->states[layer].trigger;
    p->read = cache->states[layer].read;
    return pyr_learned_need(cache, &p->trigger);
  }
  if (p->ahead) return ask_ahead(p, cache, &shape, alive);
  PYR_TRY(ask(&p->eviction, cache, PYR_WHEN_PREFILL, &shape, alive));
  PYR_TRY(check_whole(p));
  PYR_TRY(cascade_join(p, cache, prompt, alive));
  if (flags & PYR_PREFILL_ALL) PYR_TRY(check_all_reach(p, &shape, flags));
  shape.rows = p->eviction.splits.rows_after;
  PYR_TRY(pyr_policy_ask_trigger(cache, &shape, &p->eviction.plan, &p->trigger));
  PYR_TRY(pyr_policy_ask_read(cache, &shape, &p->eviction.plan, &p->trigger, &p->read));
  return pyr_learned_need(cache, &p->trigger);
}

static void layout(pyr_layer_plan *p, pyr_arena *arena) {
  pyr_observe_layout(&p->seen, arena);
  if (!p->eviction.splits.needed) return;
  if (!p->shares) layout_own(&p->eviction, arena);     /* else the list is that of all layers */
  layout_scratch(&p->eviction, arena);
}

/* Before rows come that are given a learned score, or from which on none is: what older rows carry
 * is another signal's. A history of 0.7 is a sum of attention to the one and a guess at a logarithm
 * to the other, so both begin at 0. Rows of this prompt are stored after this, and keep what they
 * are given. */
static pyr_status begin_tracking(const pyr_layer_plan *p) {
  const pyr_splits *s = &p->eviction.splits;
  const pyr_trigger *before = &s->cache->states[s->layer].trigger;
  if (!p->asked || pyr_trigger_learns(before) == pyr_trigger_learns(&p->trigger)) return PYR_OK;
  return pyr_track_forget(s->cache, s->layer);
}

/* The same layout counts first and then cuts the block: one allocation a layer, given back with
 * it. */
pyr_status pyr_layer_plan_begin(pyr_layer_plan *p, int32_t *fault) {
  pyr_pool *pool = p->eviction.splits.cache->pool;
  PYR_TRY(begin_tracking(p));
  pyr_arena count = { 0 };
  pyr_observe_begin(&p->seen, &p->eviction.splits, &p->trigger, p->asked, p->last_position, fault);
  layout(p, &count);
  p->block_bytes = count.used;
  if (p->block_bytes == 0) return PYR_OK;
  p->block = pool->be->alloc(pool->be, p->block_bytes);
  if (!p->block) return pyr_nomem(pool->rt, p->block_bytes, "the scores of a layer");
  pyr_arena arena = { .block = p->block };
  layout(p, &arena);
  return pyr_observe_start(&p->seen);
}

void pyr_layer_plan_free(pyr_layer_plan *p) {
  if (!p->block) return;
  pyr_backend *be = p->eviction.splits.cache->pool->be;
  be->release(be, p->block, p->block_bytes);
  p->block = NULL;
}

void pyr_layer_plan_ask_attention(pyr_layer_plan *p, pyr_attention *a, int64_t at) {
  pyr_observe_ask(&p->seen, a, at);
}

pyr_status pyr_layer_plan_observe(pyr_layer_plan *p, const pyr_attention *a,
                                  const int32_t *turned_to, int64_t at) {
  pyr_eviction *e = &p->eviction;
  pyr_trace_start(&e->trace, &e->splits);
  pyr_status status = pyr_observe_queries(&p->seen, a, turned_to, at);
  pyr_trace_stop(&e->trace, &e->splits);
  return status;
}

pyr_status pyr_layer_plan_observe_inputs(pyr_layer_plan *p, const float *in, int64_t at,
                                         int64_t n) {
  pyr_eviction *e = &p->eviction;
  if (!p->seen.learns) return PYR_OK;
  pyr_trace_start(&e->trace, &e->splits);
  pyr_status status = pyr_observe_inputs(&p->seen, in, at, n);
  pyr_trace_stop(&e->trace, &e->splits);
  return status;
}

/* The order matters: what was tracked is forgotten before this prompt's is added, it is added
 * before rows are ranked (a score may read it), and rows move last. */
pyr_status pyr_layer_plan_end(pyr_layer_plan *p, const int32_t **survivors, int64_t *kept) {
  pyr_eviction *e = &p->eviction;
  const pyr_splits *s = &e->splits;
  pyr_layer_state *state = &s->cache->states[s->layer];
  *survivors = NULL;
  pyr_trace_start(&e->trace, s);
  pyr_trace_rows(&e->trace, s);
  if (p->asked && pyr_signal_is_attention(&p->trigger.track))
    PYR_TRY(pyr_track_forget(s->cache, s->layer));
  PYR_TRY(pyr_observe_end(&p->seen));
  if (p->shares) {
    PYR_TRY(cascade_run(p));
  } else {
    PYR_TRY(rank(e, &p->seen.signals));
    PYR_TRY(gather(e));
  }
  if (s->needed && (e->plan.prune & PYR_PRUNE_HIDDEN))
    *survivors = e->hidden, *kept = e->hidden_kept;
  PYR_TRY(pyr_cache_check_layer(s->cache, s->layer));
  if (!p->asked) return PYR_OK;
  state->trigger = p->trigger;
  state->read = p->read;
  state->since = 0;
  state->past = p->before;
  state->unranked = pyr_track_unranked(s, &p->trigger);
  pyr_trace_stop(&e->trace, s);
  if (p->shares) p->cascade.es.each[p->cascade.read - 1].trace = e->trace;
  if (p->ahead || p->shares) return PYR_OK;            /* told of when it is settled */
  return pyr_trace_tell(&e->trace, s, p->last_position + 1, *kept);
}

/* ---- 6. hand on: plans on rows that are there ------------------------------------------------ */

pyr_status pyr_evictions_ask(pyr_evictions *es, pyr_cache *cache, int layer, pyr_when when) {
  pyr_shape shape = shape_of(cache, layer);
  int64_t coming = when == PYR_WHEN_DECODE ? 1 : 0;
  shape.prompt = shape.rows;
  if (when == PYR_WHEN_PREPARED) {
    shape.prompt = es->prompt;
    shape.past = rows_marked(cache, layer);
    shape.tokens += es->prompt;
  }
  if (when == PYR_WHEN_DECODE) {
    shape.prompt = cache->prompt;
    shape.past = cache->states[layer].past;
    shape.rows += 1;
    shape.tokens += 1;
    shape.waiting = pyr_track_waiting(cache, layer, shape.rows);
  }
  pyr_eviction *e = &es->each[es->count++];
  PYR_TRY(ask(e, cache, when, &shape, coming));
  /* asked for the second time: a policy that is not pure may say something else than it did */
  return when == PYR_WHEN_PREPARED
      ? pyr_policy_check_prepared(cache, &shape, &cache->states[layer].trigger, &e->plan) : PYR_OK;
}

/* Pages that hold first guarded rows alone stay shared; copies of the others count against the
 * budget, which may say no here, before anything is computed. */
pyr_status pyr_evictions_prepare(pyr_evictions *es) {
  for (int64_t i = 0; i < es->count; i++) {
    const pyr_splits *s = &es->each[i].splits;
    for (int head = 0; head < s->cache->heads; head++) {
      pyr_lane *lane = pyr_cache_lane(s->cache, s->layer, head);
      if (s->turns) PYR_TRY(pyr_lane_widen(s->cache, lane));
      PYR_TRY(pyr_lane_unshare(s->cache, lane, pyr_split_first_written(s, head)));
    }
  }
  return PYR_OK;
}

/* Each has its own list of survivors, as all are ranked before the first gathers; the scratch they
 * take in turns, and the greediest says how much it is. */
void pyr_evictions_layout(pyr_evictions *es, pyr_arena *arena) {
  size_t most = 0;
  char *scratch;
  PYR_PART(arena, es->faults, es->count);
  for (int64_t i = 0; i < es->count; i++) {
    pyr_arena one = { 0 };
    layout_own(&es->each[i], arena);
    layout_scratch(&es->each[i], &one);
    if (one.used > most) most = one.used;
  }
  PYR_PART(arena, scratch, (int64_t)most);
  layout_contest(&es->contest, es->total ? es->count * es->each[0].splits.cache->heads : 0,
                 es->total, arena);
  for (int64_t i = 0; i < es->count; i++) {
    pyr_arena one = { .block = scratch };
    layout_scratch(&es->each[i], &one);
  }
}

/* What the i-th plan's score reads of a cache at rest: rows, what is tracked, and what a probe
 * found out; no queries. */
static pyr_signals signals_of(const pyr_evictions *es, int64_t i) {
  const pyr_splits *s = &es->each[i].splits;
  const pyr_score_op *track = &s->cache->states[s->layer].trigger.track;
  return (pyr_signals){ .cache = s->cache, .layer = s->layer, .tracked = track,
                        .tracked_queries = track->n, .fault = es->faults + i,
                        .next = s->cache->tokens + es->prompt };
}

/* Those with share = "model" enter one contest as they come; when all have, one choice decides, and
 * each is told its part. Lists of survivors lie in one block of memory, so that the choice may
 * write to all of them. */
static pyr_status rank_united(pyr_evictions *es) {
  pyr_contest *c = &es->contest;
  int32_t heads = es->each[0].splits.cache->heads, lanes = 0;
  const int32_t *from = NULL;
  int32_t *idx = NULL;
  float *to = c->scores;
  for (int64_t i = 0; i < es->count; i++) {
    pyr_eviction *e = &es->each[i];
    if (!is_united(e) || !e->splits.needed) continue;
    pyr_signals signals = signals_of(es, i);
    if (!from) from = idx = e->idx;
    pyr_trace_start(&e->trace, &e->splits);
    PYR_TRY(enter(e, &signals, c, lanes, from, to, es->budget > 0));
    pyr_trace_stop(&e->trace, &e->splits);
    to += e->splits.own_total;
    lanes += heads;
  }
  if (lanes == 0) return PYR_OK;
  if (es->budget > 0)
    PYR_TRY(choose(es->each[0].splits.cache, c, c->scores, lanes, es->budget, es->bounds, true,
                   idx));
  const int32_t *counts = c->counts;
  for (int64_t i = 0; i < es->count; i++) {
    if (!is_united(&es->each[i])) continue;
    PYR_TRY(leave(&es->each[i], counts));
    counts += heads;
  }
  return PYR_OK;
}

pyr_status pyr_evictions_rank(pyr_evictions *es) {
  if (es->count == 0) return PYR_OK;
  pyr_backend *be = es->each[0].splits.cache->pool->be;
  PYR_TRY(pyr_fill_zeros(be, es->faults, es->count));
  for (int64_t i = 0; i < es->count; i++) {
    pyr_eviction *e = &es->each[i];
    pyr_signals signals = signals_of(es, i);
    pyr_trace_start(&e->trace, &e->splits);
    pyr_trace_rows(&e->trace, &e->splits);
    if (!is_united(e)) PYR_TRY(rank(e, &signals));
    pyr_trace_stop(&e->trace, &e->splits);
  }
  return rank_united(es);
}

pyr_status pyr_evictions_check(pyr_evictions *es) {
  if (es->count == 0) return PYR_OK;
  pyr_backend *be = es->each[0].splits.cache->pool->be;
  PYR_TRY(be->download(be, es->found, es->faults, (size_t)es->count * sizeof *es->found));
  for (int64_t i = 0; i < es->count; i++) {
    const pyr_splits *s = &es->each[i].splits;
    if (es->found[i])
      return pyr_policy_not_finite(s->cache, s->layer, s->when, &es->each[i].plan.score);
  }
  return PYR_OK;
}

/* After a step: the next firing is counted from here. The window's rows have not been ranked, but
 * where a prompt's plan ranked some of them, so they are what `unranked` starts from. Rows judged
 * once keep what they have: their due dates say which queries count. */
static pyr_status start_anew(const pyr_splits *s) {
  pyr_layer_state *state = &s->cache->states[s->layer];
  state->since = 0;
  state->unranked = pyr_min(state->unranked, state->trigger.window);
  if (state->trigger.once || !pyr_signal_is_attention(&state->trigger.track)) return PYR_OK;
  return pyr_track_forget(s->cache, s->layer);
}

pyr_status pyr_evictions_gather(pyr_evictions *es) {
  for (int64_t i = 0; i < es->count; i++) {
    pyr_eviction *e = &es->each[i];
    const pyr_splits *s = &e->splits;
    pyr_trace_start(&e->trace, s);
    PYR_TRY(gather(e));
    pyr_layer_state *state = &s->cache->states[s->layer];
    if (s->when == PYR_WHEN_DECODE) PYR_TRY(start_anew(s));
    else state->unranked = pyr_min(state->unranked, pyr_track_unranked(s, &state->trigger));
    /* a plan that says nothing of it leaves it; its digests are reserved by the next step */
    if (s->when == PYR_WHEN_DECODE && e->plan.read.rows > 0)
      s->cache->states[s->layer].read = e->plan.read;
    pyr_trace_stop(&e->trace, s);
    PYR_TRY(pyr_cache_check_layer(s->cache, s->layer));
    PYR_TRY(pyr_trace_tell(&e->trace, s, s->cache->tokens + es->prompt, 0));
  }
  return PYR_OK;
}
