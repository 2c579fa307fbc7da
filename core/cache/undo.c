/* undo.c — see undo.h. Rows go back by their positions, which ascend: an older row lies in the lane
 * where it survived, else among the rows put aside. They are copied one by one from the last on, so
 * that none is overwritten before it has moved: slow, and only where a prefill has failed. */
#include "cache/undo.h"
#include "model/model.h"

#include <string.h>

typedef struct pyr_undo_lane {
  int64_t rows;                      /* before the prefill */
  int32_t *positions, *born;         /* backend memory [rows]: as they were; NULL: not copied yet,
                                        or there were none */
  float *history;
  bool copied, wide, tracked;        /* `positions` … are there; what the lane was and had */
  pyr_page **pages;                  /* kept: host [page_count] */
  int64_t page_count;
  char *aside;  /* put aside: pages of `lost` rows, then their positions, history and born */
  void **data;                       /* host: the pages of `aside` */
  int64_t lost;
  bool ready;                        /* … they are there */
  int32_t *at;                       /* host: positions, while rows go back */
  size_t at_bytes;
} pyr_undo_lane;

struct pyr_undo {
  pyr_cache *cache;
  pyr_layer_state *states;
  int64_t tokens, prompt, computed, evicted;
  pyr_cache *below;                  /* lower tiers as they were, sharing their pages; NULL: none */
  pyr_measure began;
  pyr_undo_lane lanes[];
};

static int64_t pages_for(int64_t rows) { return (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS; }
static size_t undo_bytes(const pyr_cache *cache) {
  return sizeof(pyr_undo) + (size_t)pyr_cache_lane_count(cache) * sizeof(pyr_undo_lane);
}
static size_t page_bytes(const pyr_cache *cache, bool wide) {
  return cache->pool->page_bytes[wide ? PYR_PAGE_WIDE : PYR_PAGE_PLAIN];
}

/* What is put aside lies in one block: 40 lost rows take two pages, and behind them three arrays
 * of 40 numbers, whether the lane has a history and births or not:
 *
 *     aside   [ page 0: rows 0..31 ][ page 1: rows 32..39 ][ positions ][ history ][ born ] */
static size_t aside_bytes(const pyr_cache *cache, const pyr_undo_lane *u) {
  return (size_t)pages_for(u->lost) * page_bytes(cache, u->wide)
      + 3 * (size_t)u->lost * sizeof(int32_t);
}

/* What is copied here is small: counters and states. What depends on rows is copied by layer
 * (pyr_undo_layer), as late as possible, so that a prefill that is refused early has cost
 * nothing. The floor of a lane of 70 rows is 70: three pages stay, even if its plan leaves 10
 * rows. */
pyr_status pyr_undo_new(pyr_cache *cache, pyr_undo **out) {
  pyr_runtime *rt = cache->pool->rt;
  size_t states = (size_t)cache->layers * sizeof *cache->states;
  pyr_lane *lanes = pyr_cache_lanes(cache);
  pyr_undo *undo = pyr_alloc_zero(rt, undo_bytes(cache));
  pyr_layer_state *copy = undo ? pyr_alloc(rt, states) : NULL;
  if (!copy) {
    pyr_release(rt, undo, undo_bytes(cache));
    return pyr_nomem(rt, undo_bytes(cache) + states, "a prefill");
  }
  memcpy(copy, cache->states, states);
  undo->cache = cache;
  undo->states = copy;
  undo->began = pyr_cache_measure(cache);
  pyr_status status = cache->below ? pyr_cache_snapshot(cache->below, &undo->below) : PYR_OK;
  if (status != PYR_OK) {
    pyr_release(rt, undo, undo_bytes(cache));
    pyr_release(rt, copy, states);
    return status;
  }
  undo->tokens = cache->tokens, undo->prompt = cache->prompt, undo->computed = cache->computed,
      undo->evicted = cache->evicted;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++)
    undo->lanes[i].rows = lanes[i].floor = lanes[i].rows;
  cache->undo = undo;
  cache->began = &undo->began;
  *out = undo;
  return PYR_OK;
}

/* A copy with room for whole pages, as a lane has; zeros behind. */
static pyr_status copy_of(pyr_cache *cache, const void *from, int64_t rows, void **out) {
  pyr_backend *be = cache->pool->be;
  int64_t room = pages_for(rows) * PYR_PAGE_ROWS;
  size_t bytes = (size_t)room * sizeof(int32_t);
  *out = be->alloc(be, bytes);
  if (!*out) return pyr_nomem(cache->pool->rt, bytes, "a prefill");
  pyr_status status = be->copy(be, *out, from, (size_t)rows * sizeof(int32_t));
  if (status != PYR_OK || room == rows) return status;
  return pyr_fill_zeros(be, (float *)*out + rows, room - rows);
}

/* 12 bytes a row at most. If it fails half way, `copied` says of which lanes there is a copy,
 * and the others have not changed. */
pyr_status pyr_undo_layer(pyr_undo *undo, int layer) {
  pyr_cache *cache = undo->cache;
  pyr_status status = PYR_OK;
  for (int head = 0; head < cache->heads && status == PYR_OK; head++) {
    const pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    pyr_undo_lane *u = &undo->lanes[lane - pyr_cache_lanes(cache)];
    u->wide = lane->wide, u->tracked = lane->history != NULL;
    if (u->rows > 0) status = copy_of(cache, lane->positions, u->rows, (void **)&u->positions);
    if (status == PYR_OK && u->rows > 0 && lane->history)
      status = copy_of(cache, lane->history, u->rows, (void **)&u->history);
    if (status == PYR_OK && u->rows > 0 && lane->born)
      status = copy_of(cache, lane->born, u->rows, (void **)&u->born);
    u->copied = status == PYR_OK;
  }
  return status;
}

/* ---- before an eviction ---------------------------------------------------------------------- */

/* The second reference makes every page a shared one: gathering then writes survivors to fresh
 * pages, and these stay as they are. */
static pyr_status keep_pages(pyr_cache *cache, pyr_lane *lane, pyr_undo_lane *u) {
  int64_t count = pages_for(u->rows);
  u->pages = pyr_alloc(cache->pool->rt, (size_t)count * sizeof *u->pages);
  if (!u->pages) return pyr_nomem(cache->pool->rt, (size_t)count * sizeof *u->pages, "a prefill");
  u->page_count = count;
  for (int64_t p = 0; p < count; p++) pyr_page_retain(u->pages[p] = lane->pages[p]);
  lane->floor = 0;  /* its pages are kept, whatever becomes of it */
  return PYR_OK;
}

/* A lane like any other to the backend's gather, which writes into it, and from which rows come
 * back. */
static pyr_lane_view aside_view(const pyr_cache *cache, const pyr_undo_lane *u) {
  char *beside = u->aside + (size_t)pages_for(u->lost) * page_bytes(cache, u->wide);
  int32_t *numbers = (int32_t *)beside;
  return (pyr_lane_view){ .pages = u->data, .positions = numbers,
                          .history = u->tracked ? (float *)(numbers + u->lost) : NULL,
                          .rows = u->lost, .born = u->wide ? numbers + 2 * u->lost : NULL };
}

/* losers [lost] of a lane's `rows`: all of its first `older` that are not among idx, and as many
 * others as make `lost`. Their number follows from counts alone, min(rows - kept, older): it
 * need not be read back from a device. So where new rows leave, too, some of them fill up. Rows
 * 0 to 3 are old, 4 and 5 new, rows 0, 2 and 4 stay, 3 leave:
 *
 *     stay        1  0  1  0  1  0
 *     lose        0  1  0  1  0  1        1 - stay
 *     weighed     0  1  0  1  0  0.5      new rows count half, so old losers come first
 *     losers         1     3     5        the 3 highest; row 5 only fills up */
static pyr_status list_losers(pyr_backend *be, float *work, int32_t *losers, int64_t rows,
                              int64_t older, const int32_t *idx, int64_t kept, int64_t lost) {
  float *lose = work, *stay = work + rows;
  pyr_status s = pyr_fill_value(be, lose, rows, 1.0f);
  if (s == PYR_OK) s = be->mark(be, stay, rows, idx, kept);
  if (s == PYR_OK) s = be->arith(be, lose, stay, rows, PYR_S_SUB);
  if (s == PYR_OK && rows > older) s = pyr_fill_value(be, stay, rows - older, 0.5f);
  if (s == PYR_OK && rows > older) s = be->arith(be, lose + older, stay, rows - older, PYR_S_MUL);
  return s == PYR_OK ? be->select(be, losers, lose, rows, lost, 0) : s;
}

/* What is allocated here is the undo's, also where a later part fails: it goes with lane_free.
 * `ready` only says that the rows have been copied. */
static pyr_status put_aside(pyr_cache *cache, pyr_lane *lane, pyr_undo_lane *u,
                            const int32_t *losers) {
  pyr_backend *be = cache->pool->be;
  size_t page = page_bytes(cache, u->wide), data = (size_t)pages_for(u->lost) * sizeof *u->data;
  u->aside = be->alloc(be, aside_bytes(cache, u));
  u->data = pyr_alloc(cache->pool->rt, data);
  u->at_bytes = (size_t)(u->rows + lane->rows + u->lost) * sizeof *u->at;
  u->at = pyr_alloc(cache->pool->rt, u->at_bytes);
  if (!u->aside || !u->data || !u->at)
    return pyr_nomem(cache->pool->rt, aside_bytes(cache, u) + data + u->at_bytes, "a prefill");
  for (int64_t p = 0; p < pages_for(u->lost); p++) u->data[p] = u->aside + (size_t)p * page;
  pyr_lane_view from = pyr_lane_get_view(lane), to = aside_view(cache, u);
  if (!from.history || !to.history) from.history = to.history = NULL;
  pyr_status status = be->gather(be, &to, &from, 1, cache->pool->layout, losers, u->lost);
  u->ready = status == PYR_OK;
  return status;
}

/* Rows can only be put aside if every page of older rows is the lane's own: else survivors go to
 * fresh pages (cache.c), and the shared ones, kept, still hold all of them. Nothing is done where
 * no row leaves, or where pages are kept already: a layer that is cut again has all its older rows
 * there. On failure the lanes have not changed yet. */
pyr_status pyr_undo_lanes(pyr_undo *undo, int layer, int head, int count, const int32_t *idx,
                          int64_t kept, bool moves) {
  pyr_cache *cache = undo->cache;
  pyr_backend *be = cache->pool->be;
  pyr_lane *lanes = pyr_cache_lane(cache, layer, head);
  pyr_undo_lane *u = &undo->lanes[lanes - pyr_cache_lanes(cache)];
  int64_t rows = lanes->rows, older = u->rows, lost = pyr_min(rows - kept, older);
  pyr_status status = PYR_OK;
  for (int i = 0; i < count; i++)
    for (int64_t p = 0; p < pages_for(older) && moves; p++)
      moves = u[i].rows == older && lanes[i].pages[p]->refs == 1
          && !(lanes[i].pages[p]->kind & PYR_PAGE_PACKED);   /* aside they would be unpacked */
  if (older == 0 || lost == 0 || u->pages) return PYR_OK;
  for (int i = 0; i < count && status == PYR_OK && !moves; i++)
    status = keep_pages(cache, &lanes[i], &u[i]);
  if (status != PYR_OK || !moves) return status;
  size_t bytes = (size_t)(2 * rows + lost) * sizeof(float);
  float *work = be->alloc(be, bytes);
  if (!work) return pyr_nomem(cache->pool->rt, bytes, "a prefill");
  status = list_losers(be, work, (int32_t *)(work + 2 * rows), rows, older, idx, kept, lost);
  for (int i = 0; i < count && status == PYR_OK; i++) {
    u[i].lost = lost;
    status = put_aside(cache, &lanes[i], &u[i], (int32_t *)(work + 2 * rows));
  }
  be->release(be, work, bytes);
  return status;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Sizes follow from `rows` and `lost`, as they did when it was allocated; NULL is legal
 * throughout. */
static void lane_free(pyr_cache *cache, pyr_undo_lane *u) {
  pyr_backend *be = cache->pool->be;
  pyr_runtime *rt = cache->pool->rt;
  size_t bytes = (size_t)(pages_for(u->rows) * PYR_PAGE_ROWS) * sizeof(int32_t);
  be->release(be, u->positions, bytes);
  be->release(be, u->history, bytes);
  be->release(be, u->born, bytes);
  for (int64_t p = 0; p < u->page_count; p++) pyr_page_free(cache->pool, u->pages[p]);
  pyr_release(rt, u->pages, u->pages ? (size_t)u->page_count * sizeof *u->pages : 0);
  be->release(be, u->aside, u->aside ? aside_bytes(cache, u) : 0);
  pyr_release(rt, u->data, u->data ? (size_t)pages_for(u->lost) * sizeof *u->data : 0);
  pyr_release(rt, u->at, u->at ? u->at_bytes : 0);
}

/* With it goes the cache's own pointer: from here on the cache may begin another. */
static void undo_free(pyr_undo *undo) {
  pyr_cache *cache = undo->cache;
  pyr_runtime *rt = cache->pool->rt;
  cache->undo = NULL;
  cache->began = NULL;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) lane_free(cache, &undo->lanes[i]);
  pyr_cache_free(undo->below);
  pyr_release(rt, undo->states, (size_t)cache->layers * sizeof *undo->states);
  pyr_release(rt, undo, undo_bytes(cache));
}

/* Without the floor a lane gives back what its rows no longer need: pages that it held for the
 * case that did not come. */
void pyr_undo_keep(pyr_undo *undo) {
  if (undo == NULL) return;
  pyr_cache *cache = undo->cache;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    pyr_lane *lane = &pyr_cache_lanes(cache)[i];
    bool held = lane->floor > lane->rows;
    lane->floor = 0;
    if (held) pyr_lane_trim(cache, lane);
  }
  undo_free(undo);
}

/* Row 40 of plane V lies in page 1 at (1 * 32 + 8) rows from its beginning. */
static char *row_at(const pyr_cache *cache, void *const *data, int64_t row, int plane) {
  size_t bytes = pyr_row_bytes(cache->pool->layout.dtype, cache->pool->layout.head_dim);
  return (char *)data[row / PYR_PAGE_ROWS] + (size_t)(plane * PYR_PAGE_ROWS
                                                      + row % PYR_PAGE_ROWS) * bytes;
}

/* Rows that were put aside go back between those that stayed. Invariant: rows above r are as
 * they were, and what rows 0..r need lies in rows 0..j of the lane, with j <= r, or aside. A
 * survivor's index never grew, so it is copied up or stays. Row 1 of four was lost, two came:
 *
 *     was    positions 0 1 2 3      lane now  0 2 3 4 5      aside  1
 *     r = 3  position 3 stands at j = 2: copied to row 3     0 2 3 3 5
 *     r = 2  position 2 stands at j = 1: copied to row 2     0 2 2 3 5
 *     r = 1  position 1 is aside:        copied to row 1     0 1 2 3 5
 *     r = 0  stands where it was, as all before it: done
 *
 * Positions and history are not moved here: whole copies of them take their place (lane_back). */
static pyr_status rows_back(pyr_cache *cache, pyr_lane *lane, const pyr_undo_lane *u) {
  pyr_backend *be = cache->pool->be;
  size_t bytes = pyr_row_bytes(cache->pool->layout.dtype, cache->pool->layout.head_dim);
  int32_t *was = u->at, *stays = was + u->rows, *lost = stays + lane->rows;
  pyr_lane_view aside = aside_view(cache, u);
  pyr_status s = be->download(be, was, u->positions, (size_t)u->rows * sizeof *was);
  if (s == PYR_OK && lane->rows)
    s = be->download(be, stays, lane->positions, (size_t)lane->rows * sizeof *was);
  if (s == PYR_OK) s = be->download(be, lost, aside.positions, (size_t)u->lost * sizeof *was);
  int64_t j = lane->rows - 1, l = u->lost - 1;
  for (int64_t r = u->rows - 1; r >= 0 && s == PYR_OK; r--) {
    while (j >= 0 && stays[j] > was[r]) j--;
    while (l >= 0 && lost[l] > was[r]) l--;
    bool stayed = j >= 0 && stays[j] == was[r];
    if (stayed && j == r) break;                         /* and all before it: none has moved */
    for (int plane = PYR_PLANE_K; plane <= (u->wide ? PYR_PLANE_CAME : PYR_PLANE_V)
         && s == PYR_OK; plane++)
      s = be->copy(be, row_at(cache, lane->data, r, plane),
                   row_at(cache, stayed ? lane->data : u->data, stayed ? j : l, plane), bytes);
  }
  return s;
}

/* Cannot fail unless the device does. Three ways back. Nothing copied: no older row has changed,
 * new ones are dropped. Rows aside: they have been copied back, and what lay beside them takes
 * its place. Pages kept: they take the place of the lane's, with their references. The last two
 * hand the copies over to the lane. */
static void lane_back(pyr_cache *cache, pyr_lane *lane, pyr_undo_lane *u) {
  if (!u->pages && u->ready) (void)rows_back(cache, lane, u);
  lane->floor = 0;
  if (!u->copied || u->rows == 0) {
    pyr_lane_truncate(cache, lane, u->rows);
    return;
  }
  pyr_lane_put_back(cache, lane, u->rows, u->positions, u->history, u->born, u->pages,
                    u->page_count);
  u->positions = u->born = NULL;
  u->history = NULL;
  if (u->pages) pyr_release(cache->pool->rt, u->pages, (size_t)u->page_count * sizeof *u->pages);
  u->pages = NULL;
  u->page_count = 0;
}

/* Lower tiers come back whole, as nothing in their pages was changed: rows that went down are found
 * where they were, in the hot lanes. After the rows, the counters: a failed call has never been. */
void pyr_undo_restore(pyr_undo *undo) {
  pyr_cache *cache = undo->cache;
  if (undo->below) pyr_cache_restore(cache->below, undo->below);
  undo->below = NULL;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++)
    lane_back(cache, &pyr_cache_lanes(cache)[i], &undo->lanes[i]);
  memcpy(cache->states, undo->states, (size_t)cache->layers * sizeof *cache->states);
  cache->tokens = undo->tokens, cache->prompt = undo->prompt, cache->computed = undo->computed,
      cache->evicted = undo->evicted;
  undo_free(undo);
}
