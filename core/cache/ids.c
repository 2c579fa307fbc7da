/* ids.c — see ids.h. */
#include "cache/ids.h"
#include "backend/backend.h"

#include <string.h>

enum { ROOM_LEAST = 256 };

static void drop_sent(pyr_backend *be, pyr_ids *ids) {
  if (ids->sent) be->release(be, ids->sent, (size_t)ids->sent_room * sizeof *ids->sent);
  ids->sent = NULL;
  ids->sent_room = ids->sent_count = 0;
}

static void drop_worth(pyr_backend *be, pyr_ids *ids) {
  if (ids->worth) be->release(be, ids->worth, (size_t)ids->worth_count * sizeof *ids->worth);
  ids->worth = NULL;
  ids->worth_count = 0;
}

/* Room grows by half, so that steps, which bring one each, move what is there rarely: from 256 on
 * to 1,000 tokens it has moved 4 times. */
static pyr_status make_room(pyr_runtime *rt, pyr_ids **into, int64_t wanted) {
  if (!*into) {
    *into = pyr_alloc_zero(rt, sizeof **into);
    if (!*into) return pyr_nomem(rt, sizeof **into, "a cache's tokens");
  }
  pyr_ids *ids = *into;
  if (wanted <= ids->room) return PYR_OK;
  int64_t room = pyr_max(wanted, pyr_max(ROOM_LEAST, ids->room + ids->room / 2));
  int32_t *host = pyr_alloc(rt, (size_t)room * sizeof *host);
  if (!host) return pyr_nomem(rt, (size_t)room * sizeof *host, "a cache's tokens");
  if (ids->count > 0) memcpy(host, ids->host, (size_t)ids->count * sizeof *host);
  pyr_release(rt, ids->host, (size_t)ids->room * sizeof *host);
  ids->host = host;
  ids->room = room;
  return PYR_OK;
}

/* Of a cache that was loaded from a file without ids, all before its first new token are -1. */
pyr_status pyr_ids_put(pyr_pool *pool, pyr_ids **into, int64_t at, const int32_t *tokens,
                       int64_t n) {
  PYR_TRY(make_room(pool->rt, into, at + n));
  pyr_ids *ids = *into;
  if (at == 0) ids->gap = false;
  for (; ids->count < at; ids->count++) ids->host[ids->count] = -1, ids->gap = true;
  if (tokens) memcpy(ids->host + at, tokens, (size_t)n * sizeof *tokens);
  else for (int64_t i = 0; i < n; i++) ids->host[at + i] = -1;
  ids->count = at + n;
  ids->sent_count = pyr_min(ids->sent_count, at);
  return PYR_OK;
}

pyr_status pyr_ids_copy(pyr_pool *pool, const pyr_ids *from, int64_t n, pyr_ids **out) {
  if (!from) return PYR_OK;
  n = pyr_min(from->count, n);
  PYR_TRY(make_room(pool->rt, out, n));
  if (n > 0) memcpy((*out)->host, from->host, (size_t)n * sizeof *from->host);
  (*out)->count = n;
  (*out)->gap = from->gap;
  return PYR_OK;
}

void pyr_ids_free(pyr_pool *pool, pyr_ids *ids) {
  if (!ids) return;
  drop_sent(pool->be, ids);
  drop_worth(pool->be, ids);
  pyr_release(pool->rt, ids->host, (size_t)ids->room * sizeof *ids->host);
  pyr_release(pool->rt, ids, sizeof *ids);
}

void pyr_ids_forget_worth(pyr_pool *pool, pyr_ids *ids) {
  if (ids) drop_worth(pool->be, ids);
}

bool pyr_ids_whole(const pyr_ids *ids, int64_t n) {
  return n == 0 || (ids && !ids->gap && ids->count >= n);
}

/* What has come since the last time goes over, or, where there is no room for it, all anew. */
static pyr_status send_ids(pyr_pool *pool, pyr_ids *ids) {
  pyr_backend *be = pool->be;
  if (ids->count > ids->sent_room) {
    drop_sent(be, ids);
    size_t bytes = (size_t)ids->room * sizeof *ids->sent;
    ids->sent = be->alloc(be, bytes);
    if (!ids->sent) return pyr_nomem(pool->rt, bytes, "a cache's tokens");
    ids->sent_room = ids->room;
  }
  int64_t more = ids->count - ids->sent_count;
  if (more <= 0) return PYR_OK;
  PYR_TRY(be->upload(be, ids->sent + ids->sent_count, ids->host + ids->sent_count,
                     (size_t)more * sizeof *ids->sent));
  ids->sent_count = ids->count;
  return PYR_OK;
}

static pyr_status send_worth(pyr_pool *pool, pyr_ids *ids, int32_t number, const float *values,
                             int64_t count) {
  pyr_backend *be = pool->be;
  size_t bytes = (size_t)count * sizeof *ids->worth;
  if (ids->worth && ids->number == number && ids->worth_count == count) return PYR_OK;
  drop_worth(be, ids);
  ids->worth = be->alloc(be, bytes);
  if (!ids->worth) return pyr_nomem(pool->rt, bytes, "a score by tokens");
  ids->worth_count = count;
  ids->number = number;
  pyr_status status = be->upload(be, ids->worth, values, bytes);
  if (status != PYR_OK) drop_worth(be, ids);
  return status;
}

/* A cache of which nothing is known has no rows either, but for rows of a file without ids. */
pyr_status pyr_ids_look_up(pyr_pool *pool, pyr_ids *ids, float *out, const int32_t *positions,
                           int64_t n, int32_t number, const float *values, int64_t count) {
  pyr_backend *be = pool->be;
  if (!ids || count < 1) return pyr_fill_zeros(be, out, n);
  PYR_TRY(send_ids(pool, ids));
  PYR_TRY(send_worth(pool, ids, number, values, count));
  return be->look_up(be, out, positions, n, ids->sent, ids->sent_count, ids->worth, count);
}
