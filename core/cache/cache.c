/* cache.c — lanes of rows: reserve, truncate, unshare, gather; and the life of a cache: new, fork,
 * clear, restore.
 *
 * Invariants. A lane's pages 0..page_count-1 exist; row r lies in page r / PYR_PAGE_ROWS. Pages may
 * be shared with forks; a page is written only while it has one reference. positions and history
 * are never shared: they are small, and the history of two forks differs from the first step on.
 * Every operation that can fail leaves rows as they were.
 *
 * Saving and loading is in session.c. */
#include "cache/cache.h"
#include "base/rowbits.h"
#include "base/versioned.h"
#include "model/model.h"

#include <string.h>

enum { AHEAD = 16 };             /* lanes from the one that is looked at to those asked for */
enum { LISTS = 1024 };           /* lanes whose page tables go to the backend in one call */

static int64_t pages_for(int64_t rows) { return (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS; }

/* Holds until the lane's pages or arrays change. A table that is not up to date is left out, and
 * the backend reads the host's. */
pyr_lane_view pyr_lane_get_view(const pyr_lane *lane) {
  void **table = lane->listed == lane->page_count ? lane->table : NULL;
  return (pyr_lane_view){ lane->data, lane->positions, lane->history, lane->rows, table,
                          lane->born, lane->packed, lane->frame };
}

/* ---- the page table -------------------------------------------------------------------------- */

/* Moves the table (host arrays, and the backend's) to room for `cap` pages. What is new is complete
 * before the old one goes, so a failure changes nothing. */
static pyr_status table_move(pyr_cache *cache, pyr_lane *lane, int64_t cap) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  size_t old = (size_t)lane->page_cap * sizeof(void *), size = (size_t)cap * sizeof(void *);
  pyr_page **pages = pyr_alloc(rt, size);
  void **data = pyr_alloc(rt, size);
  void **table = pages && data && be->list_pages ? be->alloc(be, size) : NULL;
  bool packs = pyr_layout_packs(cache->pool->layout);
  uint8_t *packed = pages && data && packs ? pyr_alloc(rt, (size_t)cap) : NULL;
  if (!pages || !data || (be->list_pages && !table) || (packs && !packed)) {
    pyr_release(rt, pages, size);
    pyr_release(rt, data, size);
    be->release(be, table, size);
    return pyr_nomem(rt, size, "a page table");
  }
  if (lane->page_count) {
    memcpy(pages, lane->pages, (size_t)lane->page_count * sizeof(void *));
    memcpy(data, lane->data, (size_t)lane->page_count * sizeof(void *));
    if (packs) memcpy(packed, lane->packed, (size_t)lane->page_count);
  }
  pyr_release(rt, lane->packed, lane->packed ? (size_t)lane->page_cap : 0);
  pyr_release(rt, lane->pages, old);
  pyr_release(rt, lane->data, old);
  be->release(be, lane->table, old);
  lane->pages = pages;
  lane->data = data;
  lane->packed = packed;
  lane->table = table;
  lane->listed = 0;
  lane->page_cap = cap;
  return PYR_OK;
}

/* On a device it begins with twice what a prompt takes, and doubles, as tables of many lanes, which
 * grow together, move by some calls of its driver each: 4, 8, 16, 32, … pages, and a lane of 10,000
 * rows, 313 pages, has moved its table seven times. On the host moving is cheap, and entries count
 * (PYR_PAGE_BESIDE): an eighth more, or two. Both are linear. */
static int64_t table_room(const pyr_cache *cache, int64_t count, int64_t had) {
  if (!cache->pool->be->own_memory) return count + pyr_max(count / 8, 2);
  return 2 * pyr_max(count, pyr_max(had, 2));
}

static pyr_status table_grow(pyr_cache *cache, pyr_lane *lane, int64_t count) {
  if (count <= lane->page_cap) return PYR_OK;
  return table_move(cache, lane, table_room(cache, count, lane->page_cap));
}

/* After rows have left; where there is no memory for a smaller one, it stays. */
static void table_trim(pyr_cache *cache, pyr_lane *lane) {
  if (!cache->pool->be->own_memory && lane->page_cap > 2 * lane->page_count + 4)
    (void)table_move(cache, lane, table_room(cache, lane->page_count, 0));
}

void pyr_lane_set_page(pyr_lane *lane, int64_t at, pyr_page *page) {
  lane->pages[at] = page;
  lane->data[at] = page->data;
  if (lane->packed) lane->packed[at] = (page->kind & PYR_PAGE_PACKED) != 0;
}

/* From page `from` on the backend's table is no longer what `data` says. */
static void forget_listed(pyr_lane *lane, int64_t from) {
  if (lane->listed > from) lane->listed = from;
}

/* A step that takes a page in every lane of 88 sequences goes over 140,800 lanes, of which each
 * has its numbers and its lists of pages elsewhere: none is in the processor's caches. So those of
 * lanes to come are asked for early, far enough ahead that memory answers by then. */
void pyr_lanes_expect(const pyr_cache *cache, int64_t at) {
  const pyr_lane *lanes = cache->lane_list;
  if (at + AHEAD < pyr_cache_lane_count(cache))
    for (size_t byte = 0; byte < sizeof *lanes; byte += 64)
      __builtin_prefetch((const char *)&lanes[at + AHEAD] + byte, 1, 3);
  if (at + AHEAD / 2 >= pyr_cache_lane_count(cache)) return;
  const pyr_lane *near = &lanes[at + AHEAD / 2];
  __builtin_prefetch(near->pages + near->page_count, 1, 3);
  __builtin_prefetch(near->data + near->page_count, 1, 3);
}

/* Invariant: lists[0..found) are those of lanes [first, i] that are not up to date; all before
 * `first` are. 32 layers of 8 lanes go over in one call. */
pyr_status pyr_lanes_list(pyr_cache *cache, pyr_lane *lanes, int64_t count) {
  pyr_backend *be = cache->pool->be;
  pyr_page_list lists[LISTS];
  int found = 0;
  for (int64_t i = 0, first = 0; be->list_pages && i < count; i++) {
    pyr_lane *lane = &lanes[i];
    if (lane->listed < lane->page_count)
      lists[found++] = (pyr_page_list){ lane->table, lane->data, lane->listed, lane->page_count };
    if (found < LISTS && i + 1 < count) continue;
    pyr_status status = found > 0 ? be->list_pages(be, lists, found) : PYR_OK;
    if (status != PYR_OK) return status;
    for (found = 0; first <= i; first++) lanes[first].listed = lanes[first].page_count;
  }
  return PYR_OK;
}

/* ---- what lies beside the rows --------------------------------------------------------------- */

/* How many rows to make room for where `cap` are wanted. Sanitizers see the end of an allocation:
 * there it is the last row's. On a device what a prompt brings, and what a plan leaves, has half as
 * much again, or four pages; then it doubles: many lanes that grow together move in the same step,
 * by a few calls of the driver each. A lane that grows by pages of 32 rows from one on moves at
 * 160, 320, 640 … rows. Shrinking, it moves when less than half is wanted: so a lane that lost a
 * few rows and gets them again stays put.
 *
 *     device     none       cap 608  becomes 912      room 160   cap 192  becomes 320
 *                room 912   cap 288  becomes 432      room 160   cap 128  stays 160
 *     host       none       cap 608  becomes 640      room 640   cap 672  becomes 704
 *                room 640   cap 576  stays 640        room 640   cap 320  becomes 320
 *
 * On the host, where moving is a copy of 4 bytes a row, it is a sixteenth, in whole pages: what is
 * held is what is counted, nearly, of rows of 40 bytes as well. */
static int64_t room_for(const pyr_cache *cache, const pyr_lane *lane, int64_t cap) {
#if defined(__SANITIZE_ADDRESS__)
  return (void)cache, (void)lane, cap;
#else
  bool device = cache->pool->be->own_memory;
  int64_t fresh = cap + (device ? pyr_max(cap / 2, 4 * PYR_PAGE_ROWS)
                         : cap / 16 / PYR_PAGE_ROWS * PYR_PAGE_ROWS);
  int64_t least = device ? lane->row_room / 2 : lane->row_room - lane->row_room / 8;
  if (cap <= lane->row_room && (cap >= least || fresh >= lane->row_room)) return lane->row_room;
  if (cap <= lane->row_room) return cap > 0 ? fresh : 0;
  return device && lane->row_room > 0 ? pyr_max(cap, 2 * lane->row_room) : fresh;
#endif
}

/* Of a lane that holds rows, whatever their number: the lane, its layer's part of what the cache
 * knows, and what the host adds to a block to align it. */
enum { LANE_BESIDE = 256, BLOCK_BESIDE = 64 };
_Static_assert(sizeof(pyr_lane) <= LANE_BESIDE - BLOCK_BESIDE, "a lane counts what it takes");
_Static_assert(sizeof(pyr_page) + 2 * sizeof(void *) <= PYR_PAGE_BESIDE, "so does a page");

/* What counts against the budget: of 96 rows with a history, 96 * (4 + 4) + 256 + 64 = 1,088 bytes.
 * It is row_cap that counts, not row_room, so that the count does not depend on how a lane came to
 * its length. */
static size_t bytes_beside(int64_t rows, bool history, bool born) {
  if (rows == 0) return 0;
  size_t arrays = (size_t)history + (size_t)born;
  return (size_t)rows * (1 + arrays) * sizeof(int32_t) + LANE_BESIDE + arrays * BLOCK_BESIDE;
}

static size_t bytes_of_lane(const pyr_lane *lane) {
  return bytes_beside(lane->row_cap, lane->history != NULL, lane->wide)
      + (lane->frame ? pyr_frame_bytes(lane->frame->head_dim) : 0);
}
/* Of a page that is new. */
static int kind_of(const pyr_lane *lane) { return lane->wide ? PYR_PAGE_WIDE : PYR_PAGE_PLAIN; }

/* Of its first `count` pages. Where none can be packed all are of one kind, and none is looked at:
 * every token that is written asks for all lanes. Of 7 pages of 8,192 bytes, 57,344, or of 5 that
 * are packed to 3,208 and 2 that are not, 32,424; and 48 bytes that describe each. */
static size_t bytes_of_pages(const pyr_cache *cache, const pyr_lane *lane, int64_t count) {
  const size_t *each = cache->pool->page_bytes;
  if (!lane->packed) return (size_t)count * (each[kind_of(lane)] + PYR_PAGE_BESIDE);
  size_t bytes = (size_t)count * PYR_PAGE_BESIDE;
  for (int64_t p = 0; p < count; p++) bytes += each[lane->pages[p]->kind];
  return bytes;
}

/* Moves them to blocks for `room` rows. All three arrays, or none: on failure those that were
 * made go back, and the lane has what it had. Only what is used is copied; born is not copied to
 * a lane that becomes wide, as its caller fills it. */
static pyr_status rows_move(pyr_cache *cache, pyr_lane *lane, int64_t room, bool history,
                            bool wide) {
  pyr_backend *be = cache->pool->be;
  size_t bytes = (size_t)room * sizeof(int32_t), old = (size_t)lane->row_room * sizeof(int32_t);
  size_t used = (size_t)lane->rows * sizeof(int32_t);
  void *positions = NULL, *tracked = NULL, *born = NULL;
  pyr_status status = PYR_OK;
  if (room > 0) {
    positions = be->alloc(be, bytes);
    tracked = positions && history ? be->alloc(be, bytes) : NULL;
    born = positions && wide ? be->alloc(be, bytes) : NULL;
    if (!positions || (history && !tracked) || (wide && !born))
      status = pyr_nomem(cache->pool->rt, bytes, "the cache");
    if (status == PYR_OK && used) status = be->copy(be, positions, lane->positions, used);
    if (status == PYR_OK && used && born && lane->born)
      status = be->copy(be, born, lane->born, used);
    if (status == PYR_OK && tracked && used && lane->history)
      status = be->copy(be, tracked, lane->history, used);
    if (status == PYR_OK && tracked) {   /* what is new, or new to tracking, starts at zero */
      int64_t from = lane->history ? lane->rows : 0;
      if (room > from) status = pyr_fill_zeros(be, (float *)tracked + from, room - from);
    }
    if (status != PYR_OK) {
      be->release(be, positions, bytes);
      be->release(be, tracked, bytes);
      be->release(be, born, bytes);
      return status;
    }
  }
  be->release(be, lane->positions, old);
  be->release(be, lane->history, old);
  be->release(be, lane->born, old);
  lane->positions = positions;
  lane->history = tracked;
  lane->born = born;
  lane->wide = wide;
  lane->row_room = room;
  return PYR_OK;
}

/* positions (and history and born, if the lane has or should have them) for `cap` rows, cap >=
 * rows. Neither history nor width is ever taken from a lane here: `history` and `wide` may only
 * add them. The pool is charged before memory is asked for, and given back where there was none. */
static pyr_status rows_resize(pyr_cache *cache, pyr_lane *lane, int64_t cap, bool history,
                              bool wide) {
  bool had = lane->history != NULL, was = lane->wide;
  history = history || had;
  wide = wide || was;
  if (cap == lane->row_cap && history == had && wide == was) return PYR_OK;
  size_t before = bytes_of_lane(lane), held = before
      - bytes_beside(lane->row_cap, had, was), bytes = held + bytes_beside(cap, history, wide);
  pyr_status status = pyr_pool_charge(cache->pool, before, bytes);
  if (status != PYR_OK) return status;
  int64_t room = room_for(cache, lane, cap);
  if (room != lane->row_room || history != had || wide != was) {
    status = rows_move(cache, lane, room, history, wide);
    /* memory is short: just what is wanted */
    if (status != PYR_OK && room > cap) status = rows_move(cache, lane, cap, history, wide);
    /* … or what there is, if it is more */
    if (status != PYR_OK && cap <= lane->row_room && history == had && wide == was) status = PYR_OK;
  }
  if (status != PYR_OK) {
    (void)pyr_pool_charge(cache->pool, bytes, before);
    return status;
  }
  lane->row_cap = cap;
  return PYR_OK;
}

/* Replaces a shared page by a copy; a page with one reference is writable as it is. The copy is
 * whole, whatever rows of it are used. The other holders keep the old page; this lane's
 * reference to it goes when the copy is complete. */
static pyr_status page_unshare(pyr_cache *cache, pyr_lane *lane, int64_t index) {
  pyr_pool *pool = cache->pool;
  pyr_page *page = lane->pages[index], *fresh = NULL;
  if (page->refs == 1) return PYR_OK;
  pyr_status status = pyr_page_new(pool, page->kind, &fresh);
  if (status != PYR_OK) return status;
  status = pool->be->copy(pool->be, fresh->data, page->data, pool->page_bytes[page->kind]);
  if (status != PYR_OK) {
    pyr_page_free(pool, fresh);
    return status;
  }
  pyr_page_free(pool, page);
  pyr_lane_set_page(lane, index, fresh);
  forget_listed(lane, index);
  return PYR_OK;
}

/* Pages for all rows of `lane`, of which each is the wide one of its own: K and V copied, the third
 * plane left as it is. Old and new pages are held at the same time, and the budget must bear
 * both: 10 plain pages of 8 KiB take 10 wide ones of 12 KiB more until the plain ones go. The
 * last loop runs either way: it frees the old pages, or the new ones. */
pyr_status pyr_lane_widen(pyr_cache *cache, pyr_lane *lane) {
  pyr_pool *pool = cache->pool;
  pyr_backend *be = pool->be;
  size_t bytes = (size_t)lane->page_count * sizeof(pyr_page *);
  if (lane->wide) return PYR_OK;
  pyr_page **fresh = lane->page_count ? pyr_alloc_zero(pool->rt, bytes) : NULL;
  pyr_status status = lane->page_count && !fresh ? pyr_nomem(pool->rt, bytes, "a page table")
      : PYR_OK;
  for (int64_t p = 0; p < lane->page_count && status == PYR_OK; p++) {
    int kind = lane->pages[p]->kind;
    status = pyr_page_new(pool, kind | PYR_PAGE_WIDE, &fresh[p]);
    if (status == PYR_OK)
      status = be->copy(be, fresh[p]->data, lane->pages[p]->data, pool->page_bytes[kind]);
  }
  if (status == PYR_OK) status = rows_resize(cache, lane, lane->row_cap, false, true);
  if (status == PYR_OK && lane->rows)
    status = be->copy(be, lane->born, lane->positions, (size_t)lane->rows * sizeof *lane->born);
  for (int64_t p = 0; p < lane->page_count && fresh; p++) {
    pyr_page_free(pool, status == PYR_OK ? lane->pages[p] : fresh[p]);
    if (status == PYR_OK) pyr_lane_set_page(lane, p, fresh[p]);
  }
  if (status == PYR_OK) forget_listed(lane, 0);
  pyr_release(pool->rt, fresh, fresh ? bytes : 0);
  return status;
}

/* Room in the table stays. From the last page on, so that page_count is right at every moment. */
static void drop_pages(pyr_cache *cache, pyr_lane *lane, int64_t keep) {
  while (lane->page_count > keep) pyr_page_free(cache->pool, lane->pages[--lane->page_count]);
  forget_listed(lane, lane->page_count);
}

/* ---- lanes ----------------------------------------------------------------------------------- */

/* The frame of a lane whose pages will be packed comes with its first row, so that nothing is asked
 * for when it learns. */
pyr_status pyr_lane_frame(pyr_cache *cache, pyr_lane *lane) {
  pyr_pool *pool = cache->pool;
  size_t bytes = pyr_frame_bytes(pool->layout.head_dim);
  if (lane->frame || !pyr_layout_packs(pool->layout)) return PYR_OK;
  PYR_TRY(pyr_pool_charge(pool, 0, bytes));
  lane->frame = pyr_alloc_zero(pool->rt, bytes);
  if (!lane->frame) {
    (void)pyr_pool_charge(pool, bytes, 0);
    return pyr_nomem(pool->rt, bytes, "a lane's frame");
  }
  lane->frame->head_dim = pool->layout.head_dim;
  return PYR_OK;
}

/* A lane of 70 rows, for 30 more: 100 rows want 4 pages, and one comes. Row 70 lies in page 2,
 * where rows 64 to 69 are: if a fork holds it, too, it is copied. At 64 rows the next one begins
 * a page of its own, and nothing is copied. A copy that was made stays where a later part fails:
 * it holds the same rows. */
static pyr_status reserve_of(pyr_cache *cache, pyr_lane *lane, int64_t more, bool history,
                             int kind) {
  int64_t count = pages_for(lane->rows + more), before = lane->page_count;
  pyr_status status = pyr_lane_frame(cache, lane);
  if (status == PYR_OK) status = table_grow(cache, lane, count);
  while (status == PYR_OK && lane->page_count < count) {
    pyr_page *page = NULL;
    status = pyr_page_new(cache->pool, kind, &page);
    if (status != PYR_OK) break;
    pyr_lane_set_page(lane, lane->page_count++, page);
  }
  if (status == PYR_OK && more > 0 && lane->rows % PYR_PAGE_ROWS != 0)
    status = page_unshare(cache, lane, lane->rows / PYR_PAGE_ROWS);
  if (status == PYR_OK)
    status = rows_resize(cache, lane, lane->page_count * PYR_PAGE_ROWS, history, false);
  if (status != PYR_OK) drop_pages(cache, lane, before);
  return status;
}

/* Of this layer and the next, as if both were alike: of 3 lanes and 1,000 rows 192 pages at the
 * first, and 96 at the last. Where a layer that was cut leaves pages to the next, what is spare in
 * the end is found later (tidy.c). */
void pyr_cache_expect(pyr_cache *cache, int layer, int64_t more) {
  int64_t pages = 0;
  for (int head = 0; head < cache->heads; head++) {
    const pyr_lane *lane = pyr_cache_lane(cache, layer, head);
    pages += pyr_max(pages_for(lane->rows + more) - lane->page_count, 0);
  }
  cache->pool->coming = layer + 1 < cache->layers ? 2 * pages : pages;
}

pyr_status pyr_lane_reserve(pyr_cache *cache, pyr_lane *lane, int64_t more, bool history) {
  return reserve_of(cache, lane, more, history, kind_of(lane));
}

pyr_status pyr_lane_reserve_packed(pyr_cache *cache, pyr_lane *lane, int64_t more, bool history) {
  int packed = pyr_layout_packs(cache->pool->layout) ? PYR_PAGE_PACKED : 0;
  return reserve_of(cache, lane, more, history, kind_of(lane) | packed);
}

/* A plain page is the larger one, and the budget is asked for it. */
pyr_status pyr_lane_set_kind(pyr_cache *cache, pyr_lane *lane, int64_t at, bool packed) {
  pyr_page *page = NULL, *old = lane->pages[at];
  int kind = packed ? old->kind | PYR_PAGE_PACKED : old->kind & ~PYR_PAGE_PACKED;
  if (kind == old->kind) return PYR_OK;
  PYR_TRY(packed ? pyr_page_replacement(cache->pool, kind, &page)
          : pyr_page_new(cache->pool, kind, &page));
  pyr_page_free(cache->pool, old);
  pyr_lane_set_page(lane, at, page);
  return PYR_OK;
}

/* Shrinking cannot fail (rows_resize keeps what it has, if it must). Pages up to the floor stay
 * while an undo lives. */
void pyr_lane_trim(pyr_cache *cache, pyr_lane *lane) {
  int64_t held = lane->row_cap, stay = lane->floor > lane->rows ? lane->floor : lane->rows;
  drop_pages(cache, lane, pages_for(stay));
  (void)rows_resize(cache, lane, lane->page_count * PYR_PAGE_ROWS, false, false);
  /* Rows yet to come start with no history, whatever lay there. */
  if (held > lane->row_room) held = lane->row_room;
  if (lane->history && held > lane->rows)
    (void)pyr_fill_zeros(cache->pool->be, lane->history + lane->rows, held - lane->rows);
  pyr_digests_trim(cache->pool, &lane->digests, lane->rows);
  table_trim(cache, lane);
}

void pyr_lane_truncate(pyr_cache *cache, pyr_lane *lane, int64_t rows) {
  if (rows < lane->rows) lane->rows = rows;
  pyr_lane_trim(cache, lane);
}

/* Numbers [from, from + n) of an array go to its beginning, in pieces that do not overlap where
 * they come from: of 1,300 by 512, three pieces of 512, 512 and 276. */
static void move_down(pyr_backend *be, int32_t *numbers, int64_t from, int64_t n) {
  for (int64_t at = 0; numbers && at < n; at += from)
    (void)be->copy(be, numbers + at, numbers + at + from,
                   (size_t)pyr_min(from, n - at) * sizeof *numbers);
}

/* A lane of 1,100 rows that loses 512: pages 0 to 15 go, page 16 becomes the first. Nothing is
 * asked for, so nothing can fail unless the device does. */
void pyr_lane_slide(pyr_cache *cache, pyr_lane *lane, int64_t drop) {
  pyr_backend *be = cache->pool->be;
  int64_t pages = drop / PYR_PAGE_ROWS, rows = lane->rows - drop;
  move_down(be, lane->positions, drop, rows);
  move_down(be, (int32_t *)lane->history, drop, rows);
  move_down(be, lane->born, drop, rows);
  pyr_digests_slide(cache->pool, &lane->digests, pages);
  for (int64_t p = 0; p < pages; p++) pyr_page_free(cache->pool, lane->pages[p]);
  lane->page_count -= pages;
  memmove(lane->pages, lane->pages + pages, (size_t)lane->page_count * sizeof *lane->pages);
  memmove(lane->data, lane->data + pages, (size_t)lane->page_count * sizeof *lane->data);
  if (lane->packed) memmove(lane->packed, lane->packed + pages, (size_t)lane->page_count);
  forget_listed(lane, 0);
  lane->rows = rows;
  pyr_lane_trim(cache, lane);
}

/* The count of what is held changes without asking the budget: these rows were held before, and
 * going back must not fail. With `pages` the lane's own go; without, those that hold `rows` rows
 * stay. */
void pyr_lane_put_back(pyr_cache *cache, pyr_lane *lane, int64_t rows, int32_t *positions,
                       float *history, int32_t *born, pyr_page **pages, int64_t count) {
  pyr_pool *pool = cache->pool;
  pyr_backend *be = pool->be;
  size_t before = bytes_of_lane(lane), old = (size_t)lane->row_room * sizeof(int32_t);
  drop_pages(cache, lane, pages ? 0 : pages_for(rows));
  for (int64_t p = 0; p < count && pages; p++) {
    pyr_lane_set_page(lane, p, pages[p]);
    lane->page_count = p + 1;
  }
  if (pages) forget_listed(lane, 0);
  be->release(be, lane->positions, old);
  be->release(be, lane->history, old);
  be->release(be, lane->born, old);
  lane->positions = positions;
  lane->history = history;
  lane->born = born;
  lane->wide = born != NULL;
  lane->rows = rows;
  pyr_digests_stale(&lane->digests, 0);
  lane->row_room = lane->row_cap = lane->page_count * PYR_PAGE_ROWS;
  pyr_pool_recount(pool, before, bytes_of_lane(lane));
}

/* Those copied before one fails stay copied. */
pyr_status pyr_lane_unshare(pyr_cache *cache, pyr_lane *lane, int64_t from) {
  pyr_status status = PYR_OK;
  for (int64_t p = from / PYR_PAGE_ROWS; p < lane->page_count && status == PYR_OK; p++)
    status = page_unshare(cache, lane, p);
  return status;
}

/* Gathering. Rows idx move to rows 0.. of their lane; idx ascends, so that no row moves over one
 * that is yet to move, and one pass in place is safe. The first `fixed` rows stay where they are:
 * the pages that hold only those are not touched, and may stay shared:
 *
 *     idx, fixed 40        0 .. 39   44 47 51 ... (20 rows)
 *     page 0  rows 0..31   stays as it is, shared or not            skip = 40 / 32 = 1 page
 *     page 1  rows 32..63  rows 32..39 stay, 20 rows come behind    changed; copied if it is shared
 *     page 2  rows 64..    holds nothing any more                   goes back
 *
 * Where a changed page is shared, survivors are written to a fresh page and the shared one loses a
 * reference: all fresh pages are there before the first row moves, so that a lack of memory changes
 * nothing. */

/* Pages to take the place of shared ones among `changed` pages from `skip` on of each lane, in
 * fresh [count, changed] (NULL where a page stays), and in data what the tables will then hold.
 * What is in `fresh` when it fails is the caller's to free. */
static pyr_status fresh_pages(pyr_cache *cache, const pyr_lane *lanes, int count, int64_t skip,
                              int64_t changed, pyr_page **fresh, void **data) {
  pyr_status status = PYR_OK;
  int64_t coming = cache->pool->coming;
  cache->pool->coming = pyr_max(coming, count * changed);
  for (int64_t i = 0; i < count * changed && status == PYR_OK; i++) {
    pyr_page *old = lanes[i / changed].pages[skip + i % changed];
    if (old->refs > 1) status = pyr_page_new(cache->pool, old->kind, &fresh[i]);
    data[i] = fresh[i] ? fresh[i]->data : old->data;
  }
  cache->pool->coming = coming;
  return status;
}

/* Destinations are views of the changed pages alone: row 0 of views[i] is row `offset` of its
 * lane, and idx + offset begins with it. Sources are whole lanes. One call moves all lanes, as
 * they have the same list. */
pyr_status pyr_lanes_gather(pyr_cache *cache, pyr_lane *lanes, int count, pyr_lane_view *views,
                            const int32_t *idx, int64_t keep, int64_t fixed) {
  pyr_pool *pool = cache->pool;
  pyr_runtime *rt = pool->rt;
  int64_t skip = fixed / PYR_PAGE_ROWS;  /* leading pages whose rows stay where they are */
  int64_t pages = pages_for(keep), changed = pages > skip ? pages - skip : 0,
      offset = skip * PYR_PAGE_ROWS;
  size_t bytes = (size_t)(count * changed) * sizeof(void *);
  pyr_status status = PYR_OK;
  pyr_page **fresh = NULL;
  void **data = NULL;
  bool shared = false;
  if (keep >= lanes[0].rows) return PYR_OK;
  for (int i = 0; i < count; i++) pyr_digests_stale(&lanes[i].digests, fixed);
  for (int64_t i = 0; i < count * changed; i++)
    shared = shared || lanes[i / changed].pages[skip + i % changed]->refs > 1;
  if (shared) {
    fresh = pyr_alloc_zero(rt, bytes);
    data = pyr_alloc(rt, bytes);
    status = fresh && data ? fresh_pages(cache, lanes, count, skip, changed, fresh, data)
        : pyr_nomem(rt, bytes, "a page table");
  }
  for (int i = 0; i < count && status == PYR_OK; i++) {
    pyr_lane *lane = &lanes[i];
    views[i] = (pyr_lane_view){ shared ? data + i * changed : lane->data + skip,
                                lane->positions + offset,
                                    lane->history ? lane->history + offset : NULL, keep - offset,
                                        NULL, lane->born ? lane->born + offset : NULL,
                                            lane->packed ? lane->packed + skip : NULL,
                                                lane->frame };
    views[count + i] = pyr_lane_get_view(lane);
  }
  if (status == PYR_OK && changed > 0)
    status = pool->be->gather(pool->be, views, views + count, count, pool->layout, idx + offset,
                              keep - offset);
  for (int64_t i = 0; i < count * changed && shared && fresh; i++) {
    pyr_lane *lane = &lanes[i / changed];
    int64_t page = skip + i % changed;
    if (!fresh[i]) continue;
    if (status != PYR_OK) {
      pyr_page_free(pool, fresh[i]);
      continue;
    }
    pyr_page_free(pool, lane->pages[page]);
    pyr_lane_set_page(lane, page, fresh[i]);
    forget_listed(lane, page);
  }
  for (int i = 0; i < count && status == PYR_OK; i++) {
    cache->evicted += lanes[i].rows - keep;
    lanes[i].rows = keep;
    pyr_lane_trim(cache, &lanes[i]);
  }
  pyr_release(rt, fresh, fresh ? bytes : 0);
  pyr_release(rt, data, data ? bytes : 0);
  return status;
}

/* Sizes are those of the capacities, as they were allocated. The lane is empty then, and may be
 * used again. */
void pyr_lane_free(pyr_cache *cache, pyr_lane *lane) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_backend *be = cache->pool->be;
  drop_pages(cache, lane, 0);
  be->release(be, lane->positions, (size_t)lane->row_room * sizeof(int32_t));
  be->release(be, lane->history, (size_t)lane->row_room * sizeof(float));
  be->release(be, lane->born, (size_t)lane->row_room * sizeof(int32_t));
  be->release(be, lane->table, (size_t)lane->page_cap * sizeof(void *));
  (void)pyr_pool_charge(cache->pool, bytes_of_lane(lane), 0);
  pyr_digests_free(cache->pool, &lane->digests);
  pyr_release(rt, lane->frame, lane->frame ? pyr_frame_bytes(lane->frame->head_dim) : 0);
  pyr_release(rt, lane->packed, lane->packed ? (size_t)lane->page_cap : 0);
  pyr_release(rt, lane->pages, (size_t)lane->page_cap * sizeof(void *));
  pyr_release(rt, lane->data, (size_t)lane->page_cap * sizeof(void *));
  memset(lane, 0, sizeof *lane);
}

/* Shares all pages of src. The destination is empty. What lies beside the rows is copied: it is
 * small, and a fork's history goes its own way from the next step on. Pages get a reference
 * each, and cost nothing until one of both writes. If it fails the destination holds a part, and
 * is whole enough for pyr_lane_free. Capacities of its own: row_cap is the source's, and charged
 * anew, as positions are its own. */
static pyr_status lane_share(pyr_cache *cache, pyr_lane *dst, const pyr_lane *src) {
  pyr_status status = src->frame ? pyr_lane_frame(cache, dst) : PYR_OK;
  if (status == PYR_OK) status = table_grow(cache, dst, src->page_count);
  if (status != PYR_OK) return status;
  if (src->frame) memcpy(dst->frame, src->frame, pyr_frame_bytes(src->frame->head_dim));
  dst->rows = 0;
  status = rows_resize(cache, dst, src->row_cap, src->history != NULL, src->wide);
  if (status != PYR_OK) return status;
  pyr_backend *be = cache->pool->be;
  size_t used = (size_t)src->rows * sizeof(int32_t);
  if (used) status = be->copy(be, dst->positions, src->positions, used);
  if (status == PYR_OK && used && src->history)
    status = be->copy(be, dst->history, src->history, used);
  if (status == PYR_OK && used && src->born) status = be->copy(be, dst->born, src->born, used);
  if (status != PYR_OK) return status;
  for (int64_t p = 0; p < src->page_count; p++) {
    pyr_page_retain(src->pages[p]);
    pyr_lane_set_page(dst, p, src->pages[p]);
  }
  dst->page_count = src->page_count;
  dst->rows = src->rows;
  return pyr_digests_share(cache->pool, &dst->digests, &src->digests);
}

/* Which kind a page of a lane that is composed anew is, by its place: of a lane that has learned
 * its frame, in a tier below every page; in the hot tier those that pack.c would pack, all but the
 * first and the newest. */
static int kind_at(const pyr_cache *cache, const pyr_lane *lane, int64_t at, int64_t count) {
  if (!lane->frame || !lane->frame->learned) return PYR_PAGE_PLAIN;
  bool packed = cache->pool->top || (at > 0 && at < count - 1);
  return packed ? PYR_PAGE_PACKED : PYR_PAGE_PLAIN;
}

/* Positions and history of the shared pages come along; budgets are asked for all that is new. The
 * lane itself is only read: whoever fails on the way frees what was made, and nothing has happened.
 * The frame stays the lane's until the other takes its place. */
pyr_status pyr_lane_remake(pyr_cache *cache, const pyr_lane *lane, int64_t skip, int64_t rows,
                           pyr_lane *out) {
  pyr_backend *be = cache->pool->be;
  int64_t count = pages_for(rows), coming = cache->pool->coming;
  size_t used = (size_t)(skip * PYR_PAGE_ROWS) * sizeof(int32_t);
  *out = (pyr_lane){ 0 };
  cache->pool->coming = pyr_max(coming, count - skip);
  pyr_status status = table_grow(cache, out, count);
  for (int64_t p = 0; p < count && status == PYR_OK; p++) {
    pyr_page *page = p < skip ? lane->pages[p] : NULL;
    if (page) pyr_page_retain(page);
    else status = pyr_page_new(cache->pool, kind_at(cache, lane, p, count), &page);
    if (status != PYR_OK) break;
    pyr_lane_set_page(out, out->page_count++, page);
  }
  if (status == PYR_OK)
    status = rows_resize(cache, out, count * PYR_PAGE_ROWS, lane->history != NULL, false);
  if (status == PYR_OK && used) status = be->copy(be, out->positions, lane->positions, used);
  if (status == PYR_OK && used && lane->history)
    status = be->copy(be, out->history, lane->history, used);
  out->rows = rows;
  cache->pool->coming = coming;
  if (status != PYR_OK) pyr_lane_free(cache, out);
  return status;
}

/* What it charged for a frame and digests goes over with them. */
void pyr_lane_replace(pyr_cache *cache, pyr_lane *lane, pyr_lane *made, int64_t same) {
  made->mark = lane->mark, made->floor = lane->floor;
  made->frame = lane->frame, made->digests = lane->digests;
  lane->frame = NULL, lane->digests = (pyr_digests){ 0 };
  pyr_digests_stale(&made->digests, same);
  pyr_digests_trim(cache->pool, &made->digests, made->rows);
  pyr_lane_free(cache, lane);
  *lane = *made;
  *made = (pyr_lane){ 0 };
}

/* ---- caches ---------------------------------------------------------------------------------- */

/* Of several ranks, room for what pyr_cache_level swaps: two numbers a layer, of each and of its
 * own. Of 30 layers and two ranks 1,440 bytes, taken with the cache, so that looking cannot fail
 * for want of them when rows have gone already. Plans that run at the end of a step come to that
 * point with nothing to go back to. */
static size_t lengths_bytes(const pyr_cache *cache) {
  const pyr_model *model = cache->pool->model;
  if (!model->ranks) return 0;
  return 2 * (size_t)cache->layers * (size_t)(pyr_ranks_size(model->ranks) + 1) * sizeof(int64_t);
}

/* No trigger, nothing tracked. A track code of PYR_SCORE_CODES is that of no signal. */
static void reset_states(pyr_cache *cache) {
  memset(cache->states, 0, (size_t)cache->layers * sizeof *cache->states);
  for (int layer = 0; layer < cache->layers; layer++)
    cache->states[layer].trigger.track.code = PYR_SCORE_CODES;
}

/* Keeps the pool, and the policy by its own callback, last: until then nothing of the policy's
 * need be given back. A fresh cache has no page. */
pyr_status pyr_cache_new(pyr_model *model, pyr_pool *pool, const pyr_policy *policy,
                         pyr_cache **out) {
  pyr_runtime *rt = pool->rt;
  if (pool->model != model)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "the pool belongs to another model");
  pyr_cache *cache = pyr_alloc_zero(rt, sizeof *cache);
  if (!cache) return pyr_nomem(rt, sizeof *cache, "a cache");
  cache->layers = model->config.layers;
  cache->heads = model->config.kv_heads;
  cache->pool = pyr_pool_retain(pool);
  size_t lanes = (size_t)cache->layers * (size_t)cache->heads;
  cache->lane_list = pyr_alloc_zero(rt, lanes * sizeof *cache->lane_list);
  cache->strides = pyr_alloc_zero(rt, (size_t)cache->layers * sizeof *cache->strides);
  cache->states = pyr_alloc_zero(rt, (size_t)cache->layers * sizeof *cache->states);
  size_t lengths = lengths_bytes(cache), line = pyr_cache_line_bytes(model);
  if (lengths) cache->lengths = pyr_alloc_zero(rt, lengths);
  if (line) cache->line = pyr_alloc_zero(rt, line);
  if (!cache->lane_list || !cache->states || !cache->strides || (lengths && !cache->lengths)
      || (line && !cache->line)) {
    pyr_cache_free(cache);
    return pyr_nomem(rt, lanes * sizeof *cache->lane_list, "a cache's lanes");
  }
  reset_states(cache);
  if (policy) {
    cache->policy = *policy;
    if (policy->retain) policy->retain(policy->ud);
  }
  pyr_status status = pool->below ? pyr_cache_new(model, pool->below, NULL, &cache->below) : PYR_OK;
  if (status != PYR_OK) {
    pyr_cache_free(cache);
    return status;
  }
  *out = cache;
  return PYR_OK;
}

/* Legal on a cache that was only half made. */
static void free_lanes(pyr_cache *cache) {
  if (cache->lane_list && cache->strides)
    for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++)
      pyr_lane_free(cache, &pyr_cache_lanes(cache)[i]);
}

void pyr_cache_rows_changed(pyr_cache *cache) {
  pyr_probed_free(cache->probed);
  cache->probed = NULL;
  pyr_trial_end(cache);
}

/* Policy, preparer and tracer are let go after the cache's own memory, the pool last of all: their
 * callbacks run when the cache is gone and cannot be asked for. */
void pyr_cache_free(pyr_cache *cache) {
  if (cache == NULL) return;
  pyr_runtime *rt = cache->pool->rt;
  pyr_pool *pool = cache->pool;
  pyr_policy policy = cache->policy;
  pyr_tracer tracer = cache->tracer;
  pyr_preparer preparer = cache->preparer;
  pyr_cache_free(cache->below);
  pyr_cache_rows_changed(cache);
  pyr_trial_free(cache);
  pyr_learned_free(cache->learned);
  pyr_ids_free(pool, cache->ids);
  free_lanes(cache);
  pyr_strides_free(cache);
  if (cache->lane_list)
    pyr_release(rt, cache->lane_list,
                (size_t)cache->layers * (size_t)cache->heads * sizeof *cache->lane_list);
  pyr_release(rt, cache->lengths, lengths_bytes(cache));
  pyr_release(rt, cache->line, pyr_cache_line_bytes(pool->model));
  if (cache->states) pyr_release(rt, cache->states, (size_t)cache->layers * sizeof *cache->states);
  if (cache->strides)
    pyr_release(rt, cache->strides, (size_t)cache->layers * sizeof *cache->strides);
  pyr_release(rt, cache->note, cache->note_bytes);
  pyr_release(rt, cache, sizeof *cache);
  if (policy.release) policy.release(policy.ud);
  if (tracer.release) tracer.release(tracer.ud);
  if (preparer.release) preparer.release(preparer.ud);
  pyr_pool_free(pool);
}

/* The new one is kept before the old one goes: both may be the same. */
pyr_status pyr_cache_on_trace(pyr_cache *cache, const pyr_tracer *tracer) {
  pyr_tracer before = cache->tracer, own;
  const char *fault = pyr_take_options(&own, sizeof own, sizeof own, tracer);
  if (fault) return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "tracer: %s", fault);
  if (own.trace && cache->pool->model->line)
    return pyr_runtime_set_error(cache->pool->rt, PYR_UNSUPPORTED, "tracer: of several stages none "
                                 "sees the plans of all layers (ranks = \"pipeline\")");
  if (own.trace == NULL) own = (pyr_tracer){ 0 };
  if (own.retain) own.retain(own.ud);
  cache->tracer = own;
  if (before.release) before.release(before.ud);
  return PYR_OK;
}

pyr_status pyr_cache_on_prepare(pyr_cache *cache, const pyr_preparer *preparer) {
  pyr_preparer before = cache->preparer, own;
  const char *fault = pyr_take_options(&own, sizeof own, sizeof own, preparer);
  if (fault) return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "preparer: %s", fault);
  if (own.prepare == NULL) own = (pyr_preparer){ 0 };
  if (own.retain) own.retain(own.ud);
  cache->preparer = own;
  if (before.release) before.release(before.ud);
  return PYR_OK;
}

pyr_model *pyr_cache_model(const pyr_cache *cache) { return cache->pool->model; }
pyr_pool *pyr_cache_pool(const pyr_cache *cache) { return cache->pool; }

/* Costs a reference a page and a copy of positions and history: of 32 layers, 8 lanes and 4,096
 * rows, 4 MiB of positions, where the rows themselves, of 128 values in f16, are 512 MiB. */
pyr_status pyr_cache_snapshot(const pyr_cache *cache, pyr_cache **out) {
  pyr_cache *copy = NULL;
  pyr_status status = pyr_cache_new(cache->pool->model, cache->pool,
                                    cache->policy.ud ? &cache->policy : NULL, &copy);
  if (status != PYR_OK) return status;
  (void)pyr_cache_on_trace(copy, &cache->tracer);
  (void)pyr_cache_on_prepare(copy, &cache->preparer);
  copy->uneven = cache->uneven;
  memcpy(copy->states, cache->states, (size_t)cache->layers * sizeof *cache->states);
  copy->tokens = cache->tokens;
  copy->prompt = cache->prompt;
  copy->computed = cache->computed;
  copy->evicted = cache->evicted;
  copy->learned = pyr_learned_retain(cache->learned);
  status = pyr_ids_copy(copy->pool, cache->ids, cache->tokens, &copy->ids);
  for (int64_t i = 0; i < pyr_cache_lane_count(cache) && status == PYR_OK; i++)
    status = lane_share(copy, &pyr_cache_lanes(copy)[i], &pyr_cache_lanes(cache)[i]);
  if (cache->below && status == PYR_OK) {
    pyr_cache_free(copy->below);
    copy->below = NULL;
    status = pyr_cache_snapshot(cache->below, &copy->below);
  }
  if (status != PYR_OK) {
    pyr_cache_free(copy);
    return status;
  }
  *out = copy;
  return PYR_OK;
}

/* A fork of a cache of 1 GB costs some MB until both go on; each page that one of them changes
 * is then copied once. */
pyr_status pyr_cache_fork(const pyr_cache *cache, pyr_cache **out) {
  return pyr_cache_snapshot(cache, out);
}

/* Who holds the cache goes on holding it: the struct stays, its contents are the snapshot's.
 * What was spoiled goes with the other struct. */
void pyr_cache_restore(pyr_cache *cache, pyr_cache *snapshot) {
  pyr_cache spoiled = *cache;
  *cache = *snapshot;
  /* A snapshot has neither a note nor a probe: rows are as they were, and so is what was found out
   * of them. */
  cache->note = spoiled.note;
  cache->note_bytes = spoiled.note_bytes;
  cache->probed = spoiled.probed;
  cache->trial = spoiled.trial;
  spoiled.trial = NULL;
  spoiled.note = NULL;
  spoiled.note_bytes = 0;
  spoiled.probed = NULL;
  *snapshot = spoiled;
  pyr_cache_free(snapshot);
}

/* Its policy, tracer and note stay. */
pyr_status pyr_cache_clear(pyr_cache *cache) {
  if (cache->below) (void)pyr_cache_clear(cache->below);
  pyr_cache_rows_changed(cache);
  free_lanes(cache);
  reset_states(cache);
  pyr_strides_forget(cache);
  cache->tokens = cache->prompt = cache->computed = cache->evicted = 0;
  return PYR_OK;
}

/* ---- questions ------------------------------------------------------------------------------- */

const char *pyr_cache_note(const pyr_cache *cache, size_t *length) {
  *length = cache->note_bytes;
  return cache->note;
}

int64_t pyr_cache_tokens(const pyr_cache *cache) { return cache->tokens; }
int64_t pyr_cache_computed(const pyr_cache *cache) { return cache->computed; }
/* Lower tiers count what was lost of their own rows. */
int64_t pyr_cache_evicted(const pyr_cache *cache) {
  return cache->evicted + (cache->below ? pyr_cache_evicted(cache->below) : 0);
}

/* Of three K/V heads and two ranks head 2 is the second rank's lane 1, and nobody's on the first;
 * with copies the lowest rank that has one tells.
 *
 * Which lane of this rank's a head of the whole model is, -1: another's; and who tells of it. */
int pyr_cache_own_lane(const pyr_model *model, int head, int *teller) {
  *teller = 0;
  if (!model->ranks) return head;
  for (int r = pyr_ranks_size(model->ranks) - 1; r >= 0; r--) {
    pyr_slice lanes = model->parts[r].lanes;
    if (head >= lanes.first && head < lanes.first + lanes.count) *teller = r;
  }
  pyr_slice own = pyr_model_part(model)->lanes;
  return head >= own.first && head < own.first + own.count ? head - own.first : -1;
}

/* Of several ranks everybody asks, and whoever has the lane tells: 8 bytes. -1 also where the
 * others have gone, which the next call that has a status says. */
int64_t pyr_cache_rows(const pyr_cache *cache, int layer, int head) {
  const pyr_model *model = cache->pool->model;
  int teller;
  if (layer < 0 || layer >= cache->layers || head < 0 || head >= model->whole.kv_heads) return -1;
  int own = pyr_cache_own_lane(model, head, &teller);
  int64_t rows = own < 0 ? 0 : pyr_cache_lane_rows(cache, (int64_t)layer * cache->heads + own),
      all[PYR_RANKS_MAX];
  pyr_status status = PYR_OK;
  pyr_ranks_begin(cache->pool->rt);
  if (model->ranks && pyr_model_has(model, layer)) {
    status = pyr_ranks_tell(model->ranks, &rows, 1, all);
    rows = all[teller];
  }
  if (status == PYR_OK) status = pyr_cache_line_tell(cache, layer, &rows);
  pyr_ranks_leave(cache->pool->rt);
  return status == PYR_OK ? rows : -1;
}

/* One exchange of two numbers a layer, the longest and the shortest of a rank's lanes. Of three
 * lanes of 40, 52 and 31 rows in a layer, the first on rank 0 and the others on rank 1:
 *
 *     rank    tells      the longest is 52, the shortest 31     more   uneven
 *     0       40 40                                              12    yes
 *     1       52 31                                               0    yes
 *
 * so that both say 52 rows where a policy asks how many the layer has, and go on saying the same,
 * as every lane gets a row with every token. Without a policy lanes are as long as each other, and
 * nothing is asked; a cache that was cut by a policy lent to it remembers that it was. */
pyr_status pyr_cache_level(pyr_cache *cache) {
  const pyr_model *model = cache->pool->model;
  bool cut = cache->policy.prefill || cache->policy.decode || (model->line && model->slides);
  if (!(cut || cache->uneven)) return PYR_OK;   /* else all are of one length */
  cache->uneven = true;
  if (!model->ranks) return pyr_cache_line_sync(cache);
  int size = pyr_ranks_size(model->ranks);
  size_t count = 2 * (size_t)cache->layers;
  int64_t *all = cache->lengths, *mine = all + count * (size_t)size;
  for (int layer = 0; layer < cache->layers; layer++) {
    cache->states[layer].more = 0;
    mine[2 * layer] = pyr_cache_layer_rows(cache, layer);
    mine[2 * layer + 1] = mine[2 * layer];
    for (int head = 0; head < cache->heads; head++)
      mine[2 * layer + 1] = pyr_min(mine[2 * layer + 1], pyr_cache_lane(cache, layer, head)->rows);
  }
  pyr_status status = pyr_ranks_tell(model->ranks, mine, (int)count, all);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++) {
    int64_t longest = mine[2 * layer], shortest = mine[2 * layer + 1];
    for (int r = 0; r < size; r++) {
      longest = pyr_max(longest, all[(size_t)r * count + 2 * (size_t)layer]);
      shortest = pyr_min(shortest, all[(size_t)r * count + 2 * (size_t)layer + 1]);
    }
    cache->states[layer].more = longest - mine[2 * layer];
    cache->states[layer].uneven = shortest < longest;
  }
  return status == PYR_OK ? pyr_cache_line_sync(cache) : status;
}

/* Lanes differ in length where plans gave each its own share (share = "pool", mass, `keep` by
 * head). */
int64_t pyr_cache_layer_rows(const pyr_cache *cache, int layer) {
  const pyr_stride *stride = &cache->strides[layer];
  int64_t rows = 0, first = (int64_t)layer * cache->heads;
  if (stride->on) return stride->longest + stride->ahead + cache->states[layer].more;
  for (int head = 0; head < cache->heads; head++)
    rows = pyr_max(rows, cache->lane_list[first + head].rows);
  return rows + cache->states[layer].more;
}

/* What scratch is reserved by, as operations run over lanes of any tier. */
int64_t pyr_cache_longest(const pyr_cache *cache) {
  int64_t rows = cache->below ? pyr_cache_longest(cache->below) : 0;
  for (int layer = 0; layer < cache->layers; layer++)
    rows = pyr_max(rows, pyr_cache_layer_rows(cache, layer));
  return rows;
}

bool pyr_cache_lies_below(const pyr_cache *cache, int layer) {
  const pyr_cache *below = cache->below;
  return below && (pyr_cache_layer_rows(below, layer) > 0 || pyr_cache_lies_below(below, layer));
}

bool pyr_cache_lanes_equal(const pyr_cache *cache, int layer) {
  int64_t first = (int64_t)layer * cache->heads;
  if (cache->states[layer].uneven) return false;
  for (int head = 1; head < cache->heads; head++)
    if (cache->lane_list[first + head].rows != cache->lane_list[first].rows) return false;
  return true;
}

/* Of several ranks, whoever has the lane tells the others: how many rows, and then 4 bytes of each.
 * All have asked pyr_cache_rows before, which said the same on all, so that there is room. */
pyr_status pyr_cache_positions(const pyr_cache *cache, int layer, int head, int32_t *out) {
  const pyr_model *model = cache->pool->model;
  pyr_runtime *rt = cache->pool->rt;
  int teller;
  if (!(model->ranks || model->line) || layer < 0 || layer >= cache->layers || head < 0
      || head >= model->whole.kv_heads) return pyr_lane_positions(cache, layer, head, out);
  int own = pyr_cache_own_lane(model, head, &teller), rank = pyr_ranks_rank(model->ranks);
  int64_t rows = own >= 0 ? pyr_cache_lane(cache, layer, own)->rows : 0, all[PYR_RANKS_MAX];
  bool has = pyr_model_has(model, layer);
  pyr_status status = PYR_OK;
  pyr_ranks_begin(rt);
  if (model->ranks && has) {
    status = pyr_ranks_tell(model->ranks, &rows, 1, all);
    rows = all[teller];
  }
  if (has && rank == teller && status == PYR_OK)
    status = pyr_lane_positions(cache, layer, own, out);
  if (model->ranks && has && status == PYR_OK) {
    size_t bytes[PYR_RANKS_MAX] = { 0 };
    bytes[teller] = (size_t)rows * sizeof *out;
    status = pyr_ranks_gather_known(model->ranks, out, bytes, out);
  }
  if (status == PYR_OK) status = pyr_cache_line_tell(cache, layer, &rows);
  if (model->line && status == PYR_OK) {
    size_t bytes[PYR_RANKS_MAX] = { 0 };
    bytes[pyr_model_stage_of(model, layer)] = (size_t)rows * sizeof *out;
    status = pyr_ranks_gather_known(model->line, out, bytes, out);
  }
  pyr_ranks_leave(rt);
  return status;
}

/* Waits for the device, if there is one. */
pyr_status pyr_lane_positions(const pyr_cache *cache, int layer, int head, int32_t *out) {
  pyr_backend *be = cache->pool->be;
  if (layer < 0 || layer >= cache->layers || head < 0 || head >= cache->heads)
    return pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "no lane at layer %d, head %d",
                                 layer + 1, head + 1);
  const pyr_lane *lane = pyr_cache_lane(cache, layer, head);
  return lane->rows ? be->download(be, out, lane->positions, (size_t)lane->rows * sizeof(int32_t))
      : PYR_OK;
}

/* A page that forks share counts in each of them, and once in the pool: the sum over caches may
 * be more than the pool holds. */
size_t pyr_cache_bytes(const pyr_cache *cache) {
  size_t bytes = cache->below ? pyr_cache_bytes(cache->below) : 0;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    const pyr_lane *lane = &cache->lane_list[i];
    bytes += bytes_of_pages(cache, lane, lane->page_count) + bytes_of_lane(lane)
        + pyr_digests_bytes(cache->pool, &lane->digests);
  }
  return bytes;
}

size_t pyr_cache_workspace(const pyr_cache *cache) { return cache->pool->workspace_bytes; }

/* Counted from rows, not from what is held: a lane of 70 rows takes 3 pages and 96 entries
 * beside them. */
size_t pyr_cache_layer_bytes(const pyr_cache *cache, int layer) {
  size_t bytes = cache->below ? pyr_cache_layer_bytes(cache->below, layer) : 0;
  for (int head = 0; head < cache->heads; head++) {
    int64_t i = (int64_t)layer * cache->heads + head;
    const pyr_lane *lane = &cache->lane_list[i];
    int64_t pages = pages_for(pyr_cache_lane_rows(cache, i));
    bytes += bytes_of_pages(cache, lane, pages);
    bytes += bytes_beside(pages * PYR_PAGE_ROWS, lane->history != NULL, lane->wide);
    bytes += pyr_digests_bytes(cache->pool, &lane->digests);
    if (lane->frame) bytes += pyr_frame_bytes(lane->frame->head_dim);
  }
  return bytes;
}

/* By counts alone: which pages they are is known when the query is. Two lanes of 4,000 rows of
 * which 1,024 are read, and two that are read whole: 2 * 1,024 + 2 * 4,000 of 16,000, 0.628. In a
 * tier below, of which no row is guarded, a page that is not full is read, too. */
double pyr_cache_reading(const pyr_cache *cache) {
  int64_t held = 0, read = 0;
  for (int64_t i = 0; i < pyr_cache_lane_count(cache); i++) {
    const pyr_read *how = &cache->states[i / cache->heads].read;
    int64_t rows = pyr_cache_lane_rows(cache, i), wanted = pages_for(how->rows),
        settled = pyr_read_pages(&(pyr_read){ 0, how->first, how->last, how->by }, rows);
    for (const pyr_cache *at = cache->below; at; at = at->below) {
      rows += pyr_cache_lane_rows(at, i);
      settled += pyr_cache_lane_rows(at, i) % PYR_PAGE_ROWS != 0;
    }
    held += rows;
    read += how->rows > 0 ? pyr_min(rows, pyr_max(wanted, settled) * PYR_PAGE_ROWS) : rows;
  }
  pyr_ranks_begin(cache->pool->rt);
  if (pyr_cache_line_sum(cache, &held) == PYR_OK) (void)pyr_cache_line_sum(cache, &read);
  pyr_ranks_leave(cache->pool->rt);
  return held ? (double)read / (double)held : 1.0;
}

/* Counted from rows, as pyr_cache_layer_bytes does; what lies in a file is no memory, what lies
 * beside it is. */
pyr_measure pyr_cache_measure(const pyr_cache *cache) {
  pyr_measure m = { { 0 }, { 0 } };
  for (const pyr_cache *at = cache; at; at = at->below) {
    size_t bytes = 0;
    for (int64_t i = 0; i < pyr_cache_lane_count(at); i++) {
      const pyr_lane *lane = &at->lane_list[i];
      int64_t pages = pages_for(pyr_cache_lane_rows(at, i));
      bytes += (at->pool->place ? (size_t)pages * PYR_PAGE_BESIDE : bytes_of_pages(at, lane, pages))
          + bytes_beside(pages * PYR_PAGE_ROWS, lane->history != NULL, lane->wide)
          + pyr_digests_bytes(at->pool, &lane->digests);
      if (lane->frame) bytes += pyr_frame_bytes(lane->frame->head_dim);
    }
    m.bytes[at->pool->tier] = bytes;
    m.held[at->pool->tier] = at->pool->held;
  }
  return m;
}

/* The cache of a tier, the same or one below; NULL: it has none. */
static const pyr_cache *tier_of(const pyr_cache *cache, pyr_tier tier) {
  while (cache && cache->pool->tier != tier) cache = cache->below;
  return cache;
}

int pyr_cache_has_tier(const pyr_cache *cache, pyr_tier tier) {
  return tier_of(cache, tier) != NULL;
}

int64_t pyr_cache_tier_rows(const pyr_cache *cache, pyr_tier tier, int layer, int head) {
  const pyr_cache *at = tier_of(cache, tier);
  return at ? pyr_cache_rows(at, layer, head) : -1;
}

pyr_status pyr_cache_tier_positions(const pyr_cache *cache, pyr_tier tier, int layer, int head,
                                    int32_t *out) {
  const pyr_cache *at = tier_of(cache, tier);
  return at ? pyr_cache_positions(at, layer, head, out)
      : pyr_runtime_set_error(cache->pool->rt, PYR_ARGUMENT, "the cache has no tier \"%s\"",
                              pyr_tier_text(tier));
}

size_t pyr_cache_tier_bytes(const pyr_cache *cache, pyr_tier tier) {
  const pyr_cache *at = tier_of(cache, tier);
  return !at ? 0 : pyr_cache_bytes(at) - (at->below ? pyr_cache_bytes(at->below) : 0);
}

/* Two layers of two lanes have seen 10 tokens, and hold 10, 10, 6 and 6 rows: 32 of 40, 0.8. With 2
 * more of each of the last two in a lower tier it is 36 of 40. */
double pyr_cache_fraction(const pyr_cache *cache) {
  const pyr_model *model = cache->pool->model;
  int64_t lanes = pyr_cache_lane_count(cache), rows = 0, all[PYR_RANKS_MAX];
  pyr_ranks_begin(cache->pool->rt);
  for (const pyr_cache *at = cache; at; at = at->below)
    for (int64_t i = 0; i < lanes; i++) rows += pyr_cache_lane_rows(at, i);
  /* of several ranks the sum over all: of two that hold 300 and 500 rows of the lanes that are
   * theirs 800; a copy of a lane counts once */
  if (model->ranks) {
    if (pyr_ranks_tell(model->ranks, &rows, 1, all) == PYR_OK) rows = 0;
    for (int r = 0; r < pyr_ranks_size(model->ranks) && rows >= 0; r++)
      rows += model->parts[r].copy == 0 ? all[r] : 0;
    lanes = (int64_t)cache->layers * model->whole.kv_heads;
  }
  (void)pyr_cache_line_sum(cache, &rows);
  pyr_ranks_leave(cache->pool->rt);
  return cache->tokens ? (double)rows / ((double)lanes * (double)cache->tokens) : 1.0;
}
