/* evict.c — see evict.h. Survivors' indices are written as three ascending runs into one array, so
 * that guards are structure and never compete with scores. */
#include "policy/evict.h"
#include "model/model.h"
#include "cache/undo.h"

#include <string.h>

/* ---- how a plan falls on a lane -------------------------------------------------------------- */

/* Hidden pruning cannot drop rows stored before, nor the last token, whose logits are what a
 * prefill is for. In decode the trigger's window is guarded, and where rows are judged once, all
 * that were. */
pyr_split pyr_judge_split(const pyr_judge *j, int head) {
  const pyr_plan *plan = j->plan;
  const pyr_layer_state *state = &j->cache->states[j->layer];
  int64_t held = pyr_cache_lane(j->cache, j->layer, head)->rows, first = plan->first,
      last = plan->last;
  pyr_split s = { .rows = held + j->more };
  if (j->decode) {
    /* the same before and after a step: both grow */
    if (state->trigger.once) first = pyr_max(first, held - state->unjudged);
    last = pyr_max(last, state->trigger.window);
  } else if (plan->prune & PYR_PRUNE_HIDDEN) {
    first = pyr_max(first, s.rows - j->fresh);
    last = pyr_max(last, 1);
  }
  s.first = pyr_min(first, s.rows);
  s.last = pyr_min(last, s.rows - s.first);
  s.judged = s.rows - s.first - s.last;
  int64_t guards = s.first + s.last, keep = plan->keep_count ? plan->keep_of[head] : plan->keep;
  s.most = plan->share == PYR_SHARE_POOL ? s.judged
      : pyr_min(pyr_max(keep - guards, 0), s.judged);
  if (plan->share == PYR_SHARE_POOL || plan->mass > 0)
    s.least = pyr_min(pyr_max(pyr_max(plan->least, 1) - guards, 0), s.judged);
  else
    s.least = s.most;
  s.most = pyr_max(s.most, s.least);
  return s;
}

/* The pool's budget: keep rows a lane on average less all guards, but never less than the lanes are
 * promised. */
static int64_t pool_most(const pyr_judge *j) {
  int64_t budget = j->plan->keep * j->cache->heads, judged = 0, least = 0;
  for (int head = 0; head < j->cache->heads; head++) {
    pyr_split s = pyr_judge_split(j, head);
    budget -= s.first + s.last;
    judged += s.judged;
    least += s.least;
  }
  return pyr_min(pyr_max(budget, least), judged);
}

static bool lane_judged(const pyr_judge *j, const pyr_split *s) {
  return s->most < s->judged || (j->plan->mass > 0 && s->least < s->judged);
}

bool pyr_judge_needed(const pyr_judge *j) {
  int64_t judged = 0, least = 0;
  bool any = false;
  for (int head = 0; head < j->cache->heads; head++) {
    pyr_split s = pyr_judge_split(j, head);
    judged += s.judged;
    least += s.least;
    any = any || lane_judged(j, &s);
  }
  return j->plan->share == PYR_SHARE_POOL ? pool_most(j) < judged
      || (j->plan->mass > 0 && least < judged) : any;
}

int64_t pyr_judge_rows_after(const pyr_judge *j) {
  int64_t rows = 0, pool = j->plan->share == PYR_SHARE_POOL ? pool_most(j) : INT64_MAX;
  for (int head = 0; head < j->cache->heads; head++) {
    pyr_split s = pyr_judge_split(j, head);
    rows = pyr_max(rows, j->plan->prune & PYR_PRUNE_CACHE
                    ? s.first + pyr_min(s.most, pool) + s.last : s.rows);
  }
  return rows;
}

int64_t pyr_judge_longest(const pyr_judge *j) {
  int64_t longest = 0;
  for (int head = 0; head < j->cache->heads; head++)
    longest = pyr_max(longest, pyr_judge_split(j, head).judged);
  return longest;
}

static bool compacts(const pyr_judge *j) {
  return j->plan->rotate == PYR_ROTATE_COMPACT || j->cache->states[j->layer].compact;
}

bool pyr_judge_turns(const pyr_judge *j) { return compacts(j) && pyr_judge_needed(j); }

int64_t pyr_judge_first_written(const pyr_judge *j, int head) {
  /* all keys are turned at first */
  bool anywhere = j->plan->merge || (compacts(j) && !j->cache->states[j->layer].compact);
  return anywhere ? 0 : pyr_judge_split(j, head).first;
}

const char *pyr_judge_fault(const pyr_judge *j, const char **field) {
  const pyr_plan *plan = j->plan;
  const int32_t *window = j->cache->pool->model->config.window;
  bool equal = pyr_cache_lanes_equal(j->cache, j->layer), ranks = plan->prune & PYR_PRUNE_HIDDEN;
  if (!pyr_judge_needed(j)) return NULL;
  for (int head = 0; head < j->cache->heads; head++) {
    pyr_split s = pyr_judge_split(j, head);
    ranks = ranks || (lane_judged(j, &s) && s.most > 0);
  }
  *field = "share";
  if (plan->share == PYR_SHARE_LAYER && !equal && ranks)
    return "is \"layer\", but the heads hold unequal numbers of rows (\"head\" and \"pool\" "
           "judge each by its own)";
  *field = "rotate";
  if (!compacts(j) || !(plan->prune & PYR_PRUNE_CACHE)) return NULL;
  if (window && window[j->layer] > 0)
    return "cannot be \"compact\" in a layer with a sliding window";
  if (!equal) return "cannot be \"compact\" where the heads hold unequal numbers of rows";
  if (plan->share != PYR_SHARE_LAYER)
    return "was \"compact\": the layer's heads must go on sharing their rows (share = \"layer\")";
  return NULL;
}

/* ---- memory ---------------------------------------------------------------------------------- */

int64_t pyr_judge_carve(const pyr_judge *j, int depth, float *base, pyr_judge_work *work) {
  bool pool = j->plan->share == PYR_SHARE_POOL;
  int64_t heads = j->cache->heads, judged = 0, rows = 0, used = 0;
  for (int head = 0; head < heads; head++) {
    pyr_split s = pyr_judge_split(j, head);
    judged += s.judged;
    rows = pyr_max(rows, s.rows);
  }
  struct { void **at; int64_t count; } parts[] = {
    { (void **)&work->scratch, pyr_score_scratch(j->cache, depth, pyr_judge_longest(j)) },
    { (void **)&work->scores, pool ? judged : 0 },
    { (void **)&work->chosen, pool ? heads : 1 },
    { (void **)&work->cuts, pool ? 2 * heads : 2 },
    { (void **)&work->links, j->plan->merge ? 2 * rows : 0 },
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    *parts[i].at = base ? base + used : NULL;
    used += parts[i].count;
  }
  return used;
}

/* Lanes that share one set of survivors, or have each their own. */
static int group_count(const pyr_judge *j) {
  bool together = j->plan->share == PYR_SHARE_LAYER && pyr_cache_lanes_equal(j->cache, j->layer);
  return together ? 1 : j->cache->heads;
}

int64_t pyr_judge_carve_verdict(const pyr_judge *j, int32_t *base, pyr_verdict *verdict) {
  int groups = group_count(j);
  int64_t used = 0;
  verdict->idx = base;
  for (int g = 0; g < groups; g++) used += pyr_judge_split(j, g).rows;
  verdict->hidden = base ? base + used : NULL;
  return j->plan->prune & PYR_PRUNE_HIDDEN && !j->decode ? used + j->fresh : used;
}

size_t pyr_judge_host_bytes(const pyr_cache *cache) {
  size_t bytes = (size_t)cache->heads * (2 * sizeof(pyr_lane_view) + sizeof(pyr_segment)
                                         + sizeof(int32_t));
  return (bytes + 7) / 8 * 8;
}

size_t pyr_judge_verdict_bytes(const pyr_cache *cache) {
  return (size_t)cache->heads * 2 * sizeof(int64_t);
}

void pyr_judge_carve_host(const pyr_cache *cache, void *host, pyr_judge_work *work) {
  work->views = host;
  work->segments = (pyr_segment *)(work->views + 2 * cache->heads);
  work->counts = (int32_t *)(work->segments + cache->heads);
}

void pyr_judge_carve_verdict_host(const pyr_cache *cache, void *host, pyr_verdict *verdict) {
  verdict->at = host;
  verdict->kept = verdict->at + cache->heads;
}

/* ---- running --------------------------------------------------------------------------------- */

/* Chooses among the scores of `count` segments in work->segments, to idx; their counts come to
 * work->counts. */
static pyr_status choose(const pyr_judge *j, const pyr_judge_work *w, const float *score,
                         int32_t count, int64_t most, int32_t *idx) {
  pyr_backend *be = j->cache->pool->be;
  pyr_choice c = { .score = score, .segments = w->segments, .count = count, .most = most,
                   .mass = j->plan->mass, .idx = idx, .chosen = w->chosen, .work = w->cuts };
  pyr_status status = be->choose(be, &c);
  return status == PYR_OK ? be->download(be, w->counts, w->chosen,
                                         (size_t)count * sizeof *w->counts) : status;
}

/* Writes the survivors of one lane to idx, each less `shift` (rows before it are not listed), and
 * their count. `score` is not looked at where no judged row can survive. */
static pyr_status list_survivors(const pyr_judge *j, const pyr_judge_work *w, const pyr_split *s,
                                 const float *score, int64_t shift, int32_t *idx, int64_t *kept) {
  pyr_backend *be = j->cache->pool->be;
  int64_t head = s->first - shift, chosen = s->most;
  pyr_status status = head > 0 ? be->iota(be, idx, 0, head) : PYR_OK;
  if (status == PYR_OK && s->most > 0 && j->plan->mass > 0) {
    w->segments[0] = (pyr_segment){ .n = s->judged, .least = s->least, .at = head,
                                    .offset = (int32_t)head };
    status = choose(j, w, score, 1, s->most, idx);
    if (status == PYR_OK) chosen = w->counts[0];
  } else if (status == PYR_OK && s->most > 0) {
    status = be->select(be, idx + head, score, s->judged, s->most, (int32_t)head);
  }
  *kept = head + chosen + s->last;
  if (status != PYR_OK || s->last == 0) return status;
  return be->iota(be, idx + head + chosen, (int32_t)(s->rows - s->last - shift), s->last);
}

/* Keeps rows idx[0..kept), the first `fixed` of which are 0..fixed-1, in each of `count` equally
 * long lanes from `head` on. */
static pyr_status evict(const pyr_judge *j, const pyr_judge_work *w, int head, int count,
                        const int32_t *idx, int64_t kept, int64_t fixed) {
  pyr_cache *cache = j->cache;
  pyr_backend *be = cache->pool->be;
  pyr_layout layout = cache->pool->layout;
  const pyr_model_config *c = &cache->pool->model->config;
  pyr_lane *lanes = pyr_cache_lane(cache, j->layer, head);
  const pyr_layer_state *state = &cache->states[j->layer];
  bool compact = state->compact;
  if (kept >= lanes->rows) return PYR_OK;
  pyr_status status = PYR_OK;
  /* what came since the last cut came to its index */
  for (int i = 0; i < count && status == PYR_OK && compact; i++)
    status = be->iota(be, lanes[i].born + state->turned, (int32_t)state->turned,
                      lanes[i].rows - state->turned);
  if (status == PYR_OK && cache->undo)
    status = pyr_undo_lanes(cache->undo, j->layer, head, count, idx, kept,
                            !j->plan->merge && !compacts(j));
  for (int i = 0; i < count && status == PYR_OK && j->plan->merge; i++) {
    status = pyr_lane_unshare(cache, &lanes[i], 0);
    pyr_lane_view view = pyr_lane_get_view(&lanes[i]);
    if (status == PYR_OK)
      status = be->merge(be, &view, layout, idx, kept, j->plan->threshold, w->links);
  }
  if (status == PYR_OK) status = pyr_lanes_gather(cache, lanes, count, w->views, idx, kept, fixed);
  for (int i = 0; i < count && status == PYR_OK && compacts(j); i++) {
    if (!compact) status = pyr_lane_widen(cache, &lanes[i]);
    if (status == PYR_OK) status = pyr_lane_unshare(cache, &lanes[i], compact ? fixed : 0);
    pyr_lane_view view = pyr_lane_get_view(&lanes[i]);
    if (status == PYR_OK && !compact)
      status = be->copy(be, view.born, view.positions, (size_t)view.rows * sizeof *view.born);
    if (status == PYR_OK)
      status = be->rotate(be, &view, layout, view.born, compact ? idx : NULL,
                          cache->pool->model->rope_freq, c->rope_dims, c->rope_style);
  }
  return status;
}

/* One group of lanes after the other: all of the layer, or each by itself. */
static pyr_status rank_groups(const pyr_judge *j, pyr_signals *signals, const pyr_judge_work *w,
                              const pyr_verdict *v, int64_t *hidden) {
  pyr_cache *cache = j->cache;
  int groups = group_count(j), count = cache->heads / groups;
  int64_t at = 0;
  for (int g = 0; g < groups; g++) {
    int head = g * count;
    pyr_split s = pyr_judge_split(j, head);
    float *score = NULL;
    pyr_status status = PYR_OK;
    v->at[head] = at;
    v->kept[head] = s.rows;
    at += s.rows;
    if (!lane_judged(j, &s)) continue;
    signals->begin = s.first;
    signals->end = s.first + s.judged;
    if (s.most > 0)
      status = pyr_score_eval(&j->plan->score, signals, head, count, w->scratch, &score);
    if (status == PYR_OK && (j->plan->prune & PYR_PRUNE_CACHE))
      status = list_survivors(j, w, &s, score, 0, v->idx + v->at[head], &v->kept[head]);
    if (status == PYR_OK && hidden)
      status = list_survivors(j, w, &s, score, s.rows - j->fresh, v->hidden, hidden);
    if (status != PYR_OK) return status;
  }
  return PYR_OK;
}

/* All lanes' scores go into one block, lane after lane; each lane's survivors into its own part of
 * idx. */
static pyr_status rank_pool(const pyr_judge *j, pyr_signals *signals, const pyr_judge_work *w,
                            const pyr_verdict *v) {
  pyr_cache *cache = j->cache;
  pyr_backend *be = cache->pool->be;
  int64_t most = pool_most(j), begin = 0;
  float *scores = w->scores;
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    pyr_split s = pyr_judge_split(j, head);
    float *score;
    w->segments[head] = (pyr_segment){ .n = s.judged, .least = s.least, .at = begin + s.first,
                                       .offset = (int32_t)s.first };
    w->counts[head] = 0;
    v->at[head] = begin;
    begin += s.rows;
    if (s.judged == 0 || most == 0) continue;
    signals->begin = s.first;
    signals->end = s.first + s.judged;
    status = pyr_score_eval(&j->plan->score, signals, head, 1, w->scratch, &score);
    if (status == PYR_OK) status = be->copy(be, scores, score, (size_t)s.judged * sizeof *score);
    scores += s.judged;
  }
  if (status == PYR_OK && most > 0) status = choose(j, w, w->scores, cache->heads, most, v->idx);
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    pyr_split s = pyr_judge_split(j, head);
    int64_t chosen = w->counts[head];
    int32_t *idx = v->idx + v->at[head];
    if (s.first) status = be->iota(be, idx, 0, s.first);
    if (status == PYR_OK && s.last)
      status = be->iota(be, idx + s.first + chosen, (int32_t)(s.rows - s.last), s.last);
    v->kept[head] = s.first + chosen + s.last;
  }
  return status;
}

pyr_status pyr_judge_rank(const pyr_judge *j, pyr_signals *signals, const pyr_judge_work *work,
                          const pyr_verdict *verdict, int64_t *hidden) {
  if (!pyr_judge_needed(j)) return PYR_OK;
  if (j->plan->share == PYR_SHARE_POOL) return rank_pool(j, signals, work, verdict);
  return rank_groups(j, signals, work, verdict, hidden);
}

pyr_status pyr_judge_evict(const pyr_judge *j, const pyr_judge_work *work,
                           const pyr_verdict *verdict) {
  pyr_cache *cache = j->cache;
  int groups = group_count(j), count = cache->heads / groups;
  bool compact = compacts(j);
  int64_t rows = pyr_cache_layer_rows(cache, j->layer);
  pyr_status status = PYR_OK;
  if (!pyr_judge_needed(j) || !(j->plan->prune & PYR_PRUNE_CACHE)) return PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head += count) {
    pyr_split s = pyr_judge_split(j, head);
    status = evict(j, work, head, count, verdict->idx + verdict->at[head], verdict->kept[head],
                   s.first);
  }
  if (status == PYR_OK && compact && pyr_cache_layer_rows(cache, j->layer) < rows) {
    cache->states[j->layer].compact = true;
    cache->states[j->layer].turned = pyr_cache_layer_rows(cache, j->layer);
  }
  return status;
}
