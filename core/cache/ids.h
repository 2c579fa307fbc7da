/* ids.h — which token each position of a cache is of: what a score by tokens (PYR_S_TOKENS) looks
 * up.
 *
 * Ids lie on the host, one for each token that was seen, whether its rows are held or not; whoever
 * makes rows says their tokens before. Those that a failed call has said are written over by the
 * next one, as are those behind a truncation: what counts are positions below pyr_cache.tokens, and
 * those of the call that is running. The first score that asks sends them to the backend, and later
 * ones what has come since:
 *
 *     position   0    1    2    3    4    5              a cache of 4 tokens, and 2 are being read
 *     host       1  412   13   -1    7   13              -1: a row that was given as an embedding
 *     sent       1  412   13   -1                        up to the last score
 *
 * 4 bytes a token, where rows of SmolLM2-135M take 23,040. */
#ifndef PYR_IDS_H
#define PYR_IDS_H

#include "cache/pages.h"

typedef struct pyr_ids {
  int32_t *host;           /* [room] */
  int64_t room, count;     /* count: positions that are known */
  bool gap;                /* earlier tokens are not: they came from a file that had none */
  int32_t *sent;           /* backend memory, [sent_room], or NULL: nobody has asked */
  int64_t sent_room, sent_count;
  float *worth;            /* likewise [worth_count]: what the last score gave to each id, … */
  int64_t worth_count;
  int32_t number;          /* … of the table of the policy that is in force */
} pyr_ids;

/* Says that the n tokens from position `at` on, behind which there are none, are `tokens`, or
 * (NULL) that they are none. *ids: NULL at first. PYR_MEMORY, and what was known before is as it
 * was. */
pyr_status pyr_ids_put(pyr_pool *pool, pyr_ids **ids, int64_t at, const int32_t *tokens,
                       int64_t n);
/* What is known of the first n positions; NULL of none. PYR_MEMORY. */
pyr_status pyr_ids_copy(pyr_pool *pool, const pyr_ids *from, int64_t n, pyr_ids **out);
void pyr_ids_free(pyr_pool *pool, pyr_ids *ids);       /* NULL is legal */
/* Whether the first n tokens are known, all of them. */
bool pyr_ids_whole(const pyr_ids *ids, int64_t n);
/* Another policy is in force now, whose numbers are of other tables. NULL is legal. */
void pyr_ids_forget_worth(pyr_pool *pool, pyr_ids *ids);
/* out[i] = values[id of positions[i]], backend memory both; 0 where there is no id, or values, host
 * memory of `count` numbers, have none of it. `number` is the policy's for them: what was sent by
 * it once is not sent again, until another is in force. PYR_MEMORY, PYR_DEVICE. */
pyr_status pyr_ids_look_up(pyr_pool *pool, pyr_ids *ids, float *out, const int32_t *positions,
                           int64_t n, int32_t number, const float *values, int64_t count);

#endif
