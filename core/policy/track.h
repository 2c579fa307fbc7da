/* track.h — when a layer's decode plan is due, and how much each query counts for each row until
 * then.
 *
 * A decode plan may rank rows by the attention that recent queries gave them: by the last `n`
 * queries before the plan runs, weighted by a ramp. Storing those queries' attention would cost
 * more than the rows do. One accumulator a row is enough, though, because it is known when the row
 * is born which query will be the last before the row is ranked. That query's position is the row's
 * due date. With it, every query knows its weight for the row as it comes.
 *
 * In numbers. A prompt of six tokens leaves rows at positions 0..5. The trigger fires every 4
 * steps, the window is the last 3 rows, and each row is ranked once. The score is the attention of
 * the last 4 queries with a ramp of 1.3.
 *
 *     step          1  2  3  4 fires        5   6   7   8 fires
 *     query at      6  7  8  9             10  11  12  13
 *
 *     rows after step 4    0  1  2     3  4  5  6     7  8  9
 *                          ranked      candidates     window          due date 9
 *     rows after step 8    0 .. 6      7  8  9 10    11 12 13
 *                                      candidates     window          due date 13
 *
 *     weight of the query at   6    7    8    9    10   11   12   13
 *     for rows 3 to 6          1   1.1  1.2  1.3   they have been ranked
 *     for rows 7 to 9               0    0    0     1   1.1  1.2  1.3
 *
 * Rows 0 to 2 lay before the prompt's window: they are never candidates. The weighting of
 * backend.h's operations says the same in a formula (pyr_weighting in op_args.h). It numbers rows
 * from the lane's end: seen from the prompt, row 5 is j = -1 and the row of the first step j = 0;
 *
 *     due = 6 + 4 - 1 = 9       the position of the query at which the trigger fires next
 *     threshold = 4 - 3 = 1     rows from j = 1 on (positions 7, 8, 9) are in the window then,
 *     every = 4                 … and are due 4 steps later, those from j = 5 on 8 steps later
 *
 * Counting from the end serves lanes of any length with the same numbers, as windows count from
 * there.
 *
 * Where rows are ranked at every firing (`once` is off), there is one due date for all rows, and
 * the accumulators start anew after each. History (H2O's sum over every query) needs no dates: each
 * query counts 1, and a decay shrinks what there was at each step.
 *
 * A learned score needs no queries: a row is given its number when it is made, by a prompt or by a
 * step, and keeps it. Nothing is weighted, nothing starts anew, and there are no due dates.
 *
 * A trigger by length (`over`) fires by the longest lane. Where a prefill's plan does not fix how
 * long that will be (share = "pool", mass), dates are first reckoned from the most that it can be.
 */
#ifndef PYR_TRACK_H
#define PYR_TRACK_H

#include "policy/score.h"
#include "policy/split.h"

/* Steps until the layer's trigger fires: 1, at the end of the coming step; INT64_MAX: never. */
int64_t pyr_track_steps_left(const pyr_cache *cache, int layer);
/* Rows of the longest lane, of `rows` with the coming step's, that its plan may rank. */
int64_t pyr_track_waiting(const pyr_cache *cache, int layer, int64_t rows);
/* Of each lane's last rows, how many no plan has ranked once this one has run: the window's, or of a
 * plan that evicts those that it guards at the end, if they are fewer. Only guarded rows are as far
 * from the end after it as before, and what a plan has ranked is not ranked once more.
 *
 *     rows         0 1 2 3 4 5 6 7 8 9       window 4, guard.last 1, six survive
 *     after it     0 2 3 5 7         9       5 and 7 have been ranked: 1 row is left, not 4   */
int64_t pyr_track_unranked(const pyr_splits *splits, const pyr_trigger *trigger);
/* What the coming step adds to accumulators, or the one that comes `ahead` steps after it, none of
 * which fires the trigger; false: nothing. */
bool pyr_track_step(const pyr_cache *cache, int layer, int64_t ahead, pyr_track *out);
/* Accumulators start anew: queries before now no longer count. */
pyr_status pyr_track_forget(pyr_cache *cache, int layer);

/* What a prompt's own queries add to them. */
typedef struct pyr_prompt_track {
  int64_t queries;           /* the last so many that reach the layer count; 0: none */
  int64_t last;              /* for the last so many rows of each lane */
  pyr_weighting weighting;   /* counts rows from the lane's end, once all tokens are stored */
} pyr_prompt_track;

/* `restarts`: the layer gets this trigger now; else it has had it, and steps since then count. */
pyr_prompt_track pyr_track_prompt(const pyr_splits *splits, const pyr_trigger *trigger,
                                  bool restarts, int64_t last_position);
/* The first row that counts of a lane which then holds `rows`. */
int64_t pyr_track_begin(const pyr_prompt_track *track, int64_t rows);

#endif
