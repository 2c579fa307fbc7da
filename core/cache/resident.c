/* resident.c — lanes' views go to the backend, and strides begin (stride.c).
 *
 * What is sent is what differs from `shown`. A lane that a step takes a page for has mostly the
 * table and the arrays that it had, and as many rows as the backend counted: then only the page's
 * address goes over, to the table.
 *
 *     lane             pages    arrays       sent
 *     608 to 609 rows  one more stay         an address of 16 bytes, with where it goes
 *     760 to 761       one more move         that, and a view of 72 bytes
 *     cut to 400       -        stay         a view, as rows are fewer */
#include "cache/cache.h"

#include <string.h>

enum { ENTRIES = 64 };           /* that go to the backend in one call */

static size_t views_bytes(const pyr_cache *cache) {
  return (size_t)pyr_cache_lane_count(cache) * sizeof(pyr_lane_view);
}

/* Both or neither. */
static pyr_status take_views(pyr_cache *cache) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  if (cache->resident) return PYR_OK;
  cache->shown = pyr_alloc_zero(rt, views_bytes(cache));
  cache->resident = cache->shown ? be->alloc(be, views_bytes(cache)) : NULL;
  if (cache->resident) return PYR_OK;
  pyr_strides_free(cache);
  return pyr_nomem(rt, views_bytes(cache), "the lanes of a cache");
}

/* What waits to be sent, of any layers. */
typedef struct batch { pyr_lane_entry entries[ENTRIES]; int64_t count; } batch;

static pyr_status send(pyr_cache *cache, batch *b) {
  pyr_backend *be = cache->pool->be;
  pyr_status status = b->count > 0 ? be->list_lanes(be, b->entries, b->count) : PYR_OK;
  b->count = 0;
  return status;
}

/* Page tables go over before the views that point to them, those of layers that follow each other
 * together. */
static pyr_status list_tables(pyr_cache *cache) {
  pyr_status status = PYR_OK;
  for (int layer = 0, end; layer < cache->layers && status == PYR_OK; layer = end) {
    for (end = layer; end < cache->layers && !cache->strides[end].on;) end++;
    if (end > layer)
      status = pyr_lanes_list(cache, &cache->lane_list[(int64_t)layer * cache->heads],
                              (int64_t)(end - layer) * cache->heads);
    else end++;
  }
  return status;
}

/* `longest` and `left` are those of all lanes:
 * of 70 and 95 rows 95, and one step. */
static pyr_status begin(pyr_cache *cache, int layer, batch *b) {
  int64_t first = (int64_t)layer * cache->heads, longest = 0, left = PYR_PAGE_ROWS;
  pyr_lane *lanes = &cache->lane_list[first];
  for (int head = 0; head < cache->heads; head++) {
    pyr_lane_view view = pyr_lane_get_view(&lanes[head]), *shown = &cache->shown[first + head];
    view.pages = view.table;
    longest = pyr_max(longest, view.rows);
    left = pyr_min(left, PYR_PAGE_ROWS - view.rows % PYR_PAGE_ROWS);
    if (memcmp(&view, shown, sizeof view) == 0) continue;
    *shown = view;
    b->entries[b->count++] = (pyr_lane_entry){ cache->resident + first + head, view };
    if (b->count == ENTRIES) PYR_TRY(send(cache, b));
  }
  cache->strides[layer] = (pyr_stride){ .on = true, .left = (int32_t)left, .longest = longest };
  return PYR_OK;
}

/* If it fails the backend may have less than `shown` says. */
pyr_status pyr_strides_begin(pyr_cache *cache) {
  pyr_status status = take_views(cache);
  batch b;
  b.count = 0;
  if (status == PYR_OK) status = list_tables(cache);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    if (!cache->strides[layer].on) status = begin(cache, layer, &b);
  if (status == PYR_OK) status = send(cache, &b);
  if (status != PYR_OK) pyr_strides_forget(cache);
  return status;
}
