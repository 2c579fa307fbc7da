/* reading.c — see reading.h. Sequences of one step need not agree on any of it: tokens take their
 * turns with what is laid out in the order in which a layer reads less for them.
 *
 * In numbers: 9 heads over 3 lanes of 7,680 rows of 64 channels in f16 are 5.6 MiB a layer. Their
 * digests by bounds are 360 KiB, and of 1,024 rows that are read 768 KiB are left; of 4 bits, 192.
 *
 * Of several tokens of one sequence each picks among the pages that were full before it, as in a
 * step of its own. Views are made anew in each layer: picking may leave the lane's own in their
 * place, which has other pages and positions than those that were laid out for what is picked. */
#include "model/reading.h"

/* One size for all that read less: of a sequence that reads 1,024 rows in some layers and 96 in
 * others, beside one that reads 512, 32 pages a lane of both; in each tier, as all of them may lie
 * in one. */
void pyr_readings_count(pyr_readings *r, pyr_cache *const *caches, int count, int each) {
  r->depth = 0;
  for (const pyr_cache *at = caches[0]; at; at = at->below) r->depth++;
  for (int i = 0; i < count; i++) {
    int64_t pages = 0;
    for (int layer = 0; layer < caches[i]->layers; layer++) {
      const pyr_read *read = &caches[i]->states[layer].read;
      int64_t sum = 0;
      if (!pyr_model_has(caches[i]->pool->model, layer)) continue;
      for (const pyr_cache *at = caches[i]; at && read->rows > 0; at = at->below) {
        int64_t rows = pyr_cache_layer_rows(at, layer) + (at == caches[i] ? each : 0);
        pages = pyr_max(pages, pyr_read_pages(read, rows));
        sum += rows + PYR_PAGE_ROWS;
      }
      r->longest = pyr_max(r->longest, sum);
    }
    r->tokens += pages > 0 ? each : 0;
    r->pages = pyr_max(r->pages, pages);
  }
}

void pyr_readings_layout_host(pyr_readings *r, int64_t step, int32_t kv_heads, pyr_arena *arena) {
  int64_t lanes = r->tokens * kv_heads, below = r->depth - 1;
  PYR_PART(arena, r->each, r->tokens);
  PYR_PART(arena, r->lower, r->tokens * below);
  PYR_PART(arena, r->of, r->tokens > 0 ? step : 0);
  PYR_PART(arena, r->views, lanes * below);
  PYR_PART(arena, r->picked, lanes * r->depth);
  PYR_PART(arena, r->picked_pages, lanes * r->depth * r->pages);
  PYR_PART(arena, r->picked_packed, lanes * r->depth * r->pages);
  PYR_PART(arena, r->digests, lanes * r->depth);
  PYR_PART(arena, r->digesting, r->tokens > 0 ? kv_heads : 0);
}

void pyr_readings_layout(pyr_readings *r, int32_t kv_heads, pyr_arena *arena) {
  PYR_PART(arena, r->picked_positions,
           r->tokens * kv_heads * r->depth * r->pages * PYR_PAGE_ROWS);
}

/* Lanes below neither grow nor shrink during a step: theirs are there but where a cut has come in
 * between, or the policy reads in another way than it did. */
pyr_status pyr_readings_reserve(pyr_cache *cache, int layer, int64_t more) {
  pyr_digest by = cache->states[layer].read.by;
  for (pyr_cache *at = cache; at; at = at->below)
    for (int head = 0; head < at->heads; head++) {
      pyr_lane *lane = pyr_cache_lane(at, layer, head);
      PYR_TRY(pyr_digests_reserve(at->pool, &lane->digests, by,
                                  lane->rows + (at == cache ? more : 0)));
    }
  return PYR_OK;
}

/* Digests of pages that have filled up since the last step, of all lanes of a layer in one call. A
 * lane of 7,680 rows, 240 pages, behind a prompt:
 *
 *     step      1      2 .. 32   33      34 .. 64   65
 *     digests   240    none      1       none       1
 *
 * If the step fails afterwards they stay: they are of full pages, which a row that is dropped again
 * was not the last of, or which are stale with it (pyr_digests_trim). */
static pyr_status digest(const pyr_readings *r, pyr_cache *cache, int layer, pyr_digest by,
                         const pyr_lane_view *views) {
  pyr_backend *be = cache->pool->be;
  int count = 0;
  for (int head = 0; head < cache->heads; head++)
    count += pyr_digests_wait(&pyr_cache_lane(cache, layer, head)->digests, &views[head],
                              &r->digesting[count]);
  if (count == 0) return PYR_OK;
  PYR_TRY(be->digest(be, r->digesting, count, cache->pool->layout, by));
  for (int head = 0; head < cache->heads; head++)
    pyr_digests_made(&pyr_cache_lane(cache, layer, head)->digests, &views[head]);
  return PYR_OK;
}

/* The n-th reading's part of one tier: room for what is picked; it is used where a lane holds more
 * than is read. The parts of a reading lie together: [hot][warm][cold] of lanes each. */
static pyr_reading part_of(const pyr_readings *r, const pyr_cache *tier, int layer, int64_t n,
                           int depth, const pyr_lane_view *lanes) {
  int64_t first = (n * r->depth + depth) * tier->heads;
  for (int head = 0; head < tier->heads; head++) {
    int64_t at = (first + head) * r->pages;
    r->digests[first + head] = pyr_cache_lane(tier, layer, head)->digests.values;
    r->picked[first + head] = (pyr_lane_view){
      .pages = r->picked_pages + at, .positions = r->picked_positions + at * PYR_PAGE_ROWS,
      .packed = r->picked_packed + at };
  }
  return (pyr_reading){ .lanes = lanes, .digests = r->digests + first, .out = r->picked + first };
}

/* The tiers below of one token, linked behind its hot lanes. */
static pyr_status pick_below(pyr_readings *r, pyr_cache *cache, int layer, int64_t n,
                             bool first_token) {
  pyr_digest by = cache->states[layer].read.by;
  const pyr_reading **link = &r->each[n].below;
  int depth = 1;
  for (pyr_cache *at = cache->below; at; at = at->below, depth++) {
    int64_t place = n * (r->depth - 1) + depth - 1;
    pyr_lane_view *views = r->views + place * at->heads;
    pyr_layer_views(at, layer, views);
    if (first_token) PYR_TRY(digest(r, at, layer, by, views));
    r->lower[place] = part_of(r, at, layer, n, depth, views);
    *link = &r->lower[place];
    link = &r->lower[place].below;
  }
  return PYR_OK;
}

pyr_status pyr_readings_pick(pyr_readings *r, const pyr_forward *f, int layer,
                             pyr_cache *const *caches, int count, int each, pyr_attention *calls) {
  const pyr_model_config *c = &f->model->config;
  int n = 0;
  for (int t = 0; t < count * each && r->tokens > 0; t++) {
    pyr_cache *cache = caches[t / each];
    const pyr_read *read = &cache->states[layer].read;
    pyr_attention *a = &calls[t];
    bool first = t % each == 0;
    r->of[t] = NULL;
    if (read->rows == 0) continue;
    if (first) PYR_TRY(digest(r, cache, layer, read->by, calls[t + each - 1].lanes));
    pyr_reading *own = &r->each[n];
    *own = part_of(r, cache, layer, n, 0, a->lanes);
    own->q = a->q, own->q_pos = a->q_pos, own->read = *read, own->window = a->window;
    own->cap = a->cap, own->slopes = a->slopes;
    PYR_TRY(pick_below(r, cache, layer, n, first));
    a->lanes = own->out;
    r->of[t] = own;
    n++;
  }
  return n == 0 ? PYR_OK : f->be->pick_pages(f->be, r->each, n, f->layout, c->heads, c->kv_heads,
                                             f->model->scale);
}
