/* check.c — see check.h. Every invariant is a sentence that is printed where it does not hold. */
#include "cache/check.h"

#ifdef PYR_DEBUG

static int64_t pages_for(int64_t rows) { return (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS; }

/* While an undo lives a lane may hold more pages than its rows need: those up to its floor. */
static const char *check_pages(const pyr_lane *lane) {
  int64_t rows = pyr_max(lane->rows, lane->floor);
  if (lane->rows < 0) return "rows are not negative";
  if (lane->page_count > lane->page_cap) return "its table has room for its pages";
  if (lane->page_count != pages_for(rows)) return "it has as many pages as its rows need";
  if (lane->listed > lane->page_count) return "no page is listed that it has not";
  for (int64_t p = 0; p < lane->page_count; p++) {
    if (!lane->pages[p] || lane->pages[p]->refs < 1) return "its pages are held";
    if (lane->data[p] != lane->pages[p]->data) return "the backend's pages are its own";
  }
  return NULL;
}

/* rows <= row_cap <= row_room: what is used, what counts as held, what is allocated. */
static const char *check_beside(const pyr_lane *lane) {
  if (lane->rows > lane->row_cap) return "rows have room beside them";
  if (lane->row_cap > lane->row_room) return "what counts as held is there";
  if (lane->row_room > 0 && !lane->positions) return "rows have positions";
  if (lane->row_room > 0 && lane->wide != (lane->born != NULL))
    return "wide pages, and they alone, have positions of birth";
  return NULL;
}

/* History is checked as far as it counts as held. */
static const char *check_numbers(const pyr_lane *lane, const int32_t *positions,
                                 const float *history) {
  for (int64_t row = 0; row < lane->rows; row++)
    if (positions[row] < 0 || (row > 0 && positions[row] <= positions[row - 1]))
      return "positions ascend";
  for (int64_t row = lane->rows; history && row < lane->row_cap; row++)
    if (history[row] != 0) return "history is zero behind the last row";
  return NULL;
}

/* Compacted keys stand rotated to their rows' indices, which one list for all lanes moves. */
static const char *check_layer(const pyr_cache *cache, int layer) {
  const pyr_layer_state *state = &cache->states[layer];
  if (state->since < 0 || state->unranked < 0 || state->past < 0) return "counts are not negative";
  if (!state->compact) return NULL;
  if (!pyr_cache_lanes_equal(cache, layer)) return "lanes of a compacted layer are equally long";
  if (state->turned > pyr_cache_layer_rows(cache, layer)) return "rows that were turned are there";
  for (int head = 0; head < cache->heads; head++)
    if (!pyr_cache_lane(cache, layer, head)->wide) return "a compacted layer has wide pages";
  return NULL;
}

/* Brings what the lane has beside its rows to the host. */
static pyr_status check_lane(const pyr_cache *cache, const pyr_lane *lane, const char **fault) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  size_t room = (size_t)lane->row_cap * sizeof(int32_t);
  *fault = check_pages(lane);
  if (!*fault) *fault = check_beside(lane);
  if (*fault || lane->row_cap == 0) return PYR_OK;
  int32_t *positions = pyr_alloc(rt, 2 * room);
  if (!positions) return pyr_nomem(rt, 2 * room, "checking a lane");
  float *history = lane->history ? (float *)(positions + lane->row_cap) : NULL;
  pyr_status status = lane->rows ? be->download(be, positions, lane->positions,
                                                (size_t)lane->rows * sizeof *positions) : PYR_OK;
  if (status == PYR_OK && history) status = be->download(be, history, lane->history, room);
  if (status == PYR_OK) *fault = check_numbers(lane, positions, history);
  pyr_release(rt, positions, 2 * room);
  return status;
}

pyr_status pyr_cache_check_layer(const pyr_cache *cache, int layer) {
  if (cache->below) PYR_TRY(pyr_cache_check_layer(cache->below, layer));
  const char *fault = check_layer(cache, layer);
  if (fault)
    return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                                 "invariant broken in layer %d: %s", layer + 1, fault);
  for (int head = 0; head < cache->heads; head++) {
    pyr_status status = check_lane(cache, pyr_cache_lane(cache, layer, head), &fault);
    if (status != PYR_OK) return status;
    if (fault)
      return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT,
                                   "invariant broken in layer %d, head %d: %s", layer + 1,
                                   head + 1, fault);
  }
  return PYR_OK;
}

#else

typedef int pyr_nothing_to_check;   /* a file of C holds something */

#endif
