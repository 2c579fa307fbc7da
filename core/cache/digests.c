/* digests.c — see digests.h. */
#include "cache/digests.h"

/* Of `pages` pages; what is not there takes none. */
static size_t bytes_of(const pyr_pool *pool, pyr_digest by, int64_t pages) {
  if (by == PYR_DIGEST_NONE) return 0;
  return (size_t)(pages * pyr_digest_width(by, pool->layout.head_dim)) * sizeof(float);
}

size_t pyr_digests_bytes(const pyr_pool *pool, const pyr_digests *d) {
  return bytes_of(pool, d->by, d->held);
}

/* Whatever is in rows from here on, pages that hold one of them are not known any more: row 70
 * leaves pages 0 and 1. */
void pyr_digests_stale(pyr_digests *d, int64_t row) {
  if (d->ready > row / PYR_PAGE_ROWS) d->ready = row / PYR_PAGE_ROWS;
}

/* Counts are the pool's, which shrinks without being asked. */
void pyr_digests_free(pyr_pool *pool, pyr_digests *d) {
  pyr_backend *be = pool->be;
  (void)pyr_pool_charge(pool, bytes_of(pool, d->by, d->held), 0);
  be->release(be, d->values, bytes_of(pool, d->by, d->room));
  *d = (pyr_digests){ 0 };
}

/* Moves what is ready to a block for `room` pages. On failure all is as it was. */
static pyr_status move_to(pyr_pool *pool, pyr_digests *d, int64_t room) {
  pyr_backend *be = pool->be;
  size_t bytes = bytes_of(pool, d->by, room);
  float *values = be->alloc(be, bytes);
  if (!values) return pyr_nomem(pool->rt, bytes, "the digests of a lane");
  pyr_status status = d->ready ? be->copy(be, values, d->values, bytes_of(pool, d->by, d->ready))
      : PYR_OK;
  if (status != PYR_OK) {
    be->release(be, values, bytes);
    return status;
  }
  be->release(be, d->values, bytes_of(pool, d->by, d->room));
  d->values = values;
  d->room = room;
  return PYR_OK;
}

/* As lanes grow, so do these: on a device by half, 8, 12, 18, … pages, else by a sixteenth, or one.
 * The pool is charged first, for the pages
 * alone, so that the count does not depend on how a lane came to its length. Of another kind than
 * the policy had before, all begin anew. */
pyr_status pyr_digests_reserve(pyr_pool *pool, pyr_digests *d, pyr_digest by, int64_t rows) {
  int64_t pages = rows / PYR_PAGE_ROWS;
  if (d->by != by) pyr_digests_free(pool, d);
  if (by == PYR_DIGEST_NONE || pages <= d->held) return PYR_OK;
  size_t before = bytes_of(pool, d->by, d->held);
  PYR_TRY(pyr_pool_charge(pool, before, bytes_of(pool, by, pages)));
  d->by = by;
  if (pages > d->room) {
    int64_t room = pool->be->own_memory ? pyr_max(pages, pyr_max(8, d->room + d->room / 2))
        : pages + pages / 16;
    pyr_status status = move_to(pool, d, room);
    if (status != PYR_OK && room > pages) status = move_to(pool, d, pages);   /* just that */
    if (status != PYR_OK) {
      (void)pyr_pool_charge(pool, bytes_of(pool, by, pages), before);
      return status;
    }
  }
  d->held = pages;
  return PYR_OK;
}

/* After rows have gone: what counts as held shrinks with them, and the block once it is a quarter
 * larger than that; if there is no memory for a smaller one, it stays. */
void pyr_digests_trim(pyr_pool *pool, pyr_digests *d, int64_t rows) {
  int64_t pages = rows / PYR_PAGE_ROWS;
  pyr_digests_stale(d, rows);
  if (pages >= d->held) return;
  if (pages == 0) {
    pyr_digests_free(pool, d);
    return;
  }
  (void)pyr_pool_charge(pool, bytes_of(pool, d->by, d->held),
                        bytes_of(pool, d->by, pages));
  d->held = pages;
  if (d->room > pages + pages / 4) (void)move_to(pool, d, pages);
}

/* The first `pages` pages leave; those behind are as they were. Pieces do not overlap where they
 * come from: copy moves within a block as it is told. */
void pyr_digests_slide(pyr_pool *pool, pyr_digests *d, int64_t pages) {
  pyr_backend *be = pool->be;
  size_t each = bytes_of(pool, d->by, pages);
  int64_t left = pyr_max(d->ready - pages, 0);
  for (int64_t at = 0; at < left; at += pages) {
    char *to = (char *)d->values + bytes_of(pool, d->by, at);
    (void)be->copy(be, to, to + each, bytes_of(pool, d->by, pyr_min(pages, left - at)));
  }
  d->ready = left;
}

/* A fork goes its own way from the next page on, so it has its own. */
pyr_status pyr_digests_share(pyr_pool *pool, pyr_digests *d, const pyr_digests *from) {
  pyr_backend *be = pool->be;
  if (from->by == PYR_DIGEST_NONE) return PYR_OK;
  PYR_TRY(pyr_digests_reserve(pool, d, from->by, from->held * PYR_PAGE_ROWS));
  if (from->ready)
    PYR_TRY(be->copy(be, d->values, from->values, bytes_of(pool, from->by, from->ready)));
  d->ready = from->ready;
  return PYR_OK;
}

/* Most steps find nothing: a page fills up every 32 of them. */
bool pyr_digests_wait(const pyr_digests *d, const pyr_lane_view *lane, pyr_digests_of *call) {
  int64_t pages = pyr_min(lane->rows / PYR_PAGE_ROWS, d->held);
  *call = (pyr_digests_of){ lane, d->values, d->ready, pages };
  return d->ready < pages;
}

void pyr_digests_made(pyr_digests *d, const pyr_lane_view *lane) {
  d->ready = pyr_max(d->ready, pyr_min(lane->rows / PYR_PAGE_ROWS, d->held));
}
