/* slide.c — layers with a sliding window give back the rows that their queries have left behind.
 *
 * A query at position q sees positions above q - w. Those below `next` that some query from `next`
 * on can see are next - w + 1 to next - 1: w - 1 of them, and a lane holds no position twice. So of
 * a lane's rows all but the last w - 1 are out of sight, whatever their positions are, and none has
 * to be read back from a device. Where a policy left gaps, more than that are out of sight, and
 * stay until enough others have come.
 *
 *     w = 4, next = 9      positions  0 1 2 3 4 5 6 7 8        6 rows can go: 0 .. 5
 *                                     - - - - - - * * *
 *     with gaps            positions  0     3     6 7 8        2 rows can go: 0 and 3
 *                                     -     -     * * *
 *
 * Rows go from a lane's front by PYR_SLIDE_ROWS at a time: whole pages, so that none is copied and
 * forks keep theirs; and whole segments of every backend, so that the rows that stay lie in
 * segments as they did, and sums over them are the same bit for bit. A lane of a layer with a
 * window of w holds less than w - 1 + PYR_SLIDE_ROWS rows at rest. Lanes that were equally long
 * stay so.
 *
 * It happens where nothing can go wrong any more: at the end of a step or a prefill, and of a layer
 * in the first prefill of a cache, which forgets everything if it fails. */
#include "cache/cache.h"
#include "model/model.h"

/* The rows held before the last prefill were the first: they are fewer now. A trigger's unranked
 * rows are counted from the end, and more of them than there are means all. */
void pyr_cache_slide_layer(pyr_cache *cache, int layer, int64_t next) {
  const int32_t *windows = cache->pool->model->config.window;
  int64_t window = windows ? windows[layer] : 0, most = 0;
  if (window <= 0 || next < window - 1 + PYR_SLIDE_ROWS) return;
  bool any = pyr_cache_layer_rows(cache, layer) - (window - 1) >= PYR_SLIDE_ROWS;
  if (cache->below) pyr_cache_slide_layer(cache->below, layer, next);   /* its own last w - 1 stay
                                                                           */
  for (int head = 0; any && head < cache->heads; head++) {
    pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    int64_t gone = pyr_max(lane->rows - (window - 1), 0) / PYR_SLIDE_ROWS * PYR_SLIDE_ROWS;
    if (gone == 0) continue;
    pyr_lane_slide(cache, lane, gone);
    cache->evicted += gone;
    most = pyr_max(most, gone);
  }
  cache->states[layer].past = pyr_max(cache->states[layer].past - most, 0);
}

void pyr_cache_slide(pyr_cache *cache) {
  for (int layer = 0; layer < cache->layers; layer++)
    pyr_cache_slide_layer(cache, layer, cache->tokens);
}
