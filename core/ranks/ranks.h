/* ranks.h — several processes that compute one model: what they add up, gather and agree upon.
 *
 * Every rank runs the same program: the same Lua, the same calls in the same order. They differ in
 * what they hold of the weights and of the rows (part.h). What comes out of these calls is the same
 * on all of them, bit for bit, whatever the link and the number of its messages: sums are made in
 * the order of ranks.
 *
 * Failures. A call of the core that swaps anything is bracketed, and what can fail on one rank
 * alone (memory, a budget, a cancel, a policy that is late) is agreed upon before it counts:
 *
 *     pyr_ranks_begin(rt);
 *     s = take memory;                  may fail here and not there
 *     s = pyr_ranks_agree(rt, s);       all hear of it: "rank 1: out of memory …"
 *     … compute, with sums …
 *     return pyr_ranks_end(rt, s);      agrees once more
 *
 * Between two agreements a rank that fails says so at its next one, which the others meet as the
 * size of what they wanted from it (pyr_ranks_gather): so they fail there instead of waiting.
 * Nobody agrees twice about one failure: once it is told, the calls up to the outermost end pass it
 * on. A rank that is gone breaks the link for good: every later call fails with the same message.
 *
 * With one rank, and where a runtime has no ranks at all, these do nothing.
 *
 * Teams and lines. Ranks share the work in two ways, and in both at once: those of a team have a
 * part of every layer (part.h), those of a line have layers of their own, one stage after the other
 * (model/stages.h). Six ranks, as three stages of two:
 *
 *     stage      0      1      2
 *     member 0   0  ->  2  ->  4      a line: ranks 0, 2, 4, of which a rank's number is its stage
 *     member 1   1  ->  3  ->  5
 *
 * and 2 and 3 are a team, in which their numbers are 0 and 1. Both are ranks of their own for all
 * calls below. An agreement of all is one of each team first, whose gathers others do not meet. */
#ifndef PYR_RANKS_H
#define PYR_RANKS_H

#include "base/runtime.h"
#include "ranks/link.h"

/* The run's ranks, which the runtime owns; NULL: it is alone. */
typedef struct pyr_ranks pyr_ranks;

/* How ranks share the work. layers [stages], if `given`: how many each stage has. */
typedef struct pyr_arrangement {
  int stages;
  bool given;
  int32_t layers[PYR_RANKS_MAX];
} pyr_arrangement;

typedef struct pyr_traffic { int64_t sent, received, calls; } pyr_traffic;   /* bytes; swaps */

int pyr_ranks_rank(const pyr_ranks *r);   /* 0 of NULL */
int pyr_ranks_size(const pyr_ranks *r);   /* 1 of NULL */
pyr_traffic pyr_ranks_traffic(const pyr_ranks *r);

/* Those with whom this one shares its layers, and those with whom it shares the model's layers out;
 * NULL where it is alone in that. Owned by r. */
pyr_ranks *pyr_ranks_team(const pyr_ranks *r);
pyr_ranks *pyr_ranks_line(const pyr_ranks *r);
const pyr_arrangement *pyr_ranks_arrangement(const pyr_ranks *r);

/* Room for sums of up to n floats and gathers of up to so many bytes from each rank. PYR_MEMORY;
 * may only grow. */
pyr_status pyr_ranks_reserve(pyr_ranks *r, int64_t n);

/* What this rank sends to the others where all of them add up n floats. */
pyr_traffic pyr_ranks_sum_traffic(const pyr_ranks *r, int64_t n);
/* x [n] becomes the sum over ranks, ((x_0 + x_1) + x_2) + …, n within the reserved. */
pyr_status pyr_ranks_sum(pyr_ranks *r, float *x, int64_t n);
/* out [size] blocks, one after the other in the order of ranks, of bytes[i] each; the own is copied
 * from `mine` unless it lies there. Everybody knows all sizes. */
pyr_status pyr_ranks_gather_known(pyr_ranks *r, const void *mine, const size_t *bytes, void *out);
/* The same where a rank may have failed since the last agreement, or may hold another number of
 * bytes than is thought: asks first. PYR_DEVICE: sizes that nobody expected. Ranks of which bytes
 * says PYR_RANKS_APART take no part: several groups may gather at once. */
#define PYR_RANKS_APART SIZE_MAX
pyr_status pyr_ranks_gather(pyr_ranks *r, const void *mine, const size_t *bytes, void *out);
/* out[size] = everybody's `count` numbers; as gather, a failed rank is heard of. */
pyr_status pyr_ranks_tell(pyr_ranks *r, const int64_t *mine, int count, int64_t *out);
/* *n becomes the highest that a rank has. */
pyr_status pyr_ranks_most(pyr_ranks *r, int64_t *n);
/* What rank 0 has goes to all. */
pyr_status pyr_ranks_spread(pyr_ranks *r, void *data, size_t bytes);

/* Data of the rank `from` goes to the rank `to`, to `out`; the others do nothing. All know how much
 * it is. */
pyr_status pyr_ranks_pass(pyr_ranks *r, int from, int to, const void *data, size_t bytes,
                          void *out);

void pyr_ranks_begin(pyr_runtime *rt);
/* PYR_OK where all are; else the status and message of the lowest rank that failed. */
pyr_status pyr_ranks_agree(pyr_runtime *rt, pyr_status status);
/* The same among those of r, where it is a team or a line; NULL: nobody else is asked. */
pyr_status pyr_ranks_agree_in(pyr_ranks *r, pyr_status status);
pyr_status pyr_ranks_end(pyr_runtime *rt, pyr_status status);
/* The same where nothing can have failed since the last agreement: swaps nothing. */
void pyr_ranks_leave(pyr_runtime *rt);

/* open.c: opens the link of a kind ("tensor", "pipeline", both: over MPI) and sees that all ranks
 * run the same library. PYR_DEVICE with a message. */
pyr_status pyr_ranks_open(pyr_runtime *rt, const char *kind, pyr_ranks **out);
/* Of a link that is open; takes it over, on failure too. The size is a multiple of the stages. */
pyr_status pyr_ranks_new(pyr_runtime *rt, const pyr_link *link, const pyr_arrangement *how,
                         pyr_ranks **out);
void pyr_ranks_free(pyr_ranks *r);

#endif
