/* ranks.c — sums, gathers and agreements out of swaps; see ranks.h.
 *
 * Sums, of x on each of three ranks. A short one goes whole to everybody, who adds up by himself:
 * one message's time. A long one is cut in as many slices as there are ranks; rank k adds up slice
 * k and sends it back, so that each float crosses the link twice whatever their number:
 *
 *     short   swap x               every rank: ((x_0 + x_1) + x_2)
 *     long    swap slices          rank 1:  slice 1 of x_0, x_1, x_2 -> its sum
 *             swap sums            everybody has slices 0, 1 and 2 of the sum
 *
 * Both add in the order of ranks, each float by itself: the same bits on all ranks, and the same
 * either way. Of 576 floats and two ranks a short sum sends 2,304 bytes; of 512 tokens of them a
 * long one sends 0.56 + 0.56 MiB. */
#include "ranks/ranks.h"

#include <stdio.h>
#include <string.h>

enum { SHORT = 8192, WHY = 512 };   /* floats of a short sum at most; bytes of a message */

struct pyr_ranks {
  pyr_runtime *rt;             /* whose memory it is; not retained: the runtime owns this */
  pyr_link link;               /* of a team, or a line, its rank and size alone … */
  struct pyr_ranks *world;     /* … and whose ranks base, base + step … they are; else NULL */
  int base, step;
  struct pyr_ranks *team, *line;   /* of the world; NULL: alone, or the world itself */
  pyr_arrangement how;
  float *scratch;              /* [room] what comes from the others to be added up */
  int64_t room;
  int depth;                   /* brackets that are open */
  bool told;                   /* a failure has been agreed upon within them … */
  pyr_status failed;           /* … or the link broke, for good: not PYR_OK */
  bool broken;
  char why[WHY];
  pyr_traffic traffic;
};

int pyr_ranks_rank(const pyr_ranks *r) { return r ? r->link.rank : 0; }
int pyr_ranks_size(const pyr_ranks *r) { return r ? r->link.size : 1; }
pyr_traffic pyr_ranks_traffic(const pyr_ranks *r) { return r ? r->traffic : (pyr_traffic){ 0 }; }

/* The run itself, of a team or a line of it: whose link carries, breaks and counts. */
static pyr_ranks *world_of(pyr_ranks *r) { return r->world ? r->world : r; }

pyr_ranks *pyr_ranks_team(const pyr_ranks *r) {
  if (!r || r->link.size == r->how.stages) return NULL;
  return r->how.stages == 1 ? (pyr_ranks *)r : r->team;
}
pyr_ranks *pyr_ranks_line(const pyr_ranks *r) {
  if (!r || r->how.stages == 1) return NULL;
  return r->link.size == r->how.stages ? (pyr_ranks *)r : r->line;
}
const pyr_arrangement *pyr_ranks_arrangement(const pyr_ranks *r) { return &r->how; }

/* `size` of the world's ranks, from `base` on by `step`, of which this is one:
 *
 *     a team     ranks 2, 3        base 2, step 1, size 2
 *     a line     ranks 1, 3, 5     base 1, step 2, size 3
 *
 * What they swap goes over the world's link, as messages of its ranks, and counts as its traffic:
 * so no link needs to know of teams. */
static pyr_status part_of(pyr_ranks *world, int base, int step, int size, pyr_ranks **out) {
  pyr_ranks *r = pyr_alloc_zero(world->rt, sizeof *r);
  if (!r) return pyr_nomem(world->rt, sizeof *r, "the ranks");
  r->rt = world->rt;
  r->world = world, r->base = base, r->step = step;
  r->link = (pyr_link){ .rank = (world->link.rank - base) / step, .size = size };
  r->how.stages = 1;
  *out = r;
  return PYR_OK;
}

/* Rank 3 of six in three stages of two is member 1 of stage 1: its team are ranks 2 and 3, its line
 * 1, 3 and 5. */
pyr_status pyr_ranks_new(pyr_runtime *rt, const pyr_link *link, const pyr_arrangement *how,
                         pyr_ranks **out) {
  pyr_ranks *r = pyr_alloc_zero(rt, sizeof *r);
  if (!r) {
    link->close(link->state);
    return pyr_nomem(rt, sizeof *r, "the ranks");
  }
  r->rt = rt;
  r->link = *link;
  r->how = *how;
  int each = link->size / how->stages, rank = link->rank;
  pyr_status status = PYR_OK;
  if (how->stages > 1 && each > 1) {
    status = part_of(r, rank / each * each, 1, each, &r->team);
    if (status == PYR_OK) status = part_of(r, rank % each, each, how->stages, &r->line);
  }
  if (status == PYR_OK) *out = r;
  else pyr_ranks_free(r);
  return status;
}

void pyr_ranks_free(pyr_ranks *r) {
  if (!r) return;
  pyr_ranks_free(r->team);
  pyr_ranks_free(r->line);
  if (r->link.close) r->link.close(r->link.state);
  pyr_release(r->rt, r->scratch, (size_t)r->room * sizeof *r->scratch);
  pyr_release(r->rt, r, sizeof *r);
}

/* ---- swaps ----------------------------------------------------------------------------------- */

static pyr_status say_broken(pyr_ranks *r) {
  return pyr_runtime_set_error(r->rt, PYR_DEVICE, "%s", world_of(r)->why);
}

/* The first failure is the one that is remembered: what follows it are only its consequences. */
static pyr_status swap(pyr_ranks *r, const pyr_swap *with) {
  if (r->world) {
    pyr_swap all[PYR_RANKS_MAX] = { 0 };
    for (int i = 0; i < r->link.size; i++) all[r->base + i * r->step] = with[i];
    return swap(r->world, all);
  }
  if (r->broken) return say_broken(r);
  char why[WHY - 16];
  if (r->link.swap(r->link.state, with, why, sizeof why) != 0) {
    snprintf(r->why, sizeof r->why, "ranks: %s", why);
    r->broken = true;
    return say_broken(r);
  }
  for (int i = 0; i < r->link.size; i++) {
    if (i == r->link.rank) continue;
    r->traffic.sent += (int64_t)with[i].send_bytes;
    r->traffic.received += (int64_t)with[i].recv_bytes;
  }
  r->traffic.calls++;
  return PYR_OK;
}

pyr_status pyr_ranks_reserve(pyr_ranks *r, int64_t n) {
  int size = pyr_ranks_size(r);
  if (size == 1) return PYR_OK;
  /* short: whole vectors of all others; long: a slice of each */
  int64_t slice = (n + size - 1) / size, room = (size - 1) * pyr_max(pyr_min(n, SHORT), slice);
  if (room <= r->room) return PYR_OK;
  float *scratch = pyr_alloc(r->rt, (size_t)room * sizeof *scratch);
  if (!scratch) return pyr_nomem(r->rt, (size_t)room * sizeof *scratch, "sums over ranks");
  pyr_release(r->rt, r->scratch, (size_t)r->room * sizeof *r->scratch);
  r->scratch = scratch;
  r->room = room;
  return PYR_OK;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* mine [n] = the sum in the order of ranks; the others' lie in scratch, in that order. */
static void add_up(pyr_ranks *r, float *restrict mine, int64_t n) {
  const float *from = r->scratch;
  int rank = r->link.rank, size = r->link.size;
  if (size == 2) {   /* a + b is b + a */
    for (int64_t i = 0; i < n; i++) mine[i] += from[i];
    return;
  }
  /* what is in the others' order before this rank is added up first, then this one, then the rest
   * */
  float *restrict sum = r->scratch;
  for (int k = 1; k < rank; k++)
    for (int64_t i = 0; i < n; i++) sum[i] += from[k * n + i];
  for (int64_t i = 0; i < n && rank > 0; i++) mine[i] = sum[i] + mine[i];
  for (int k = rank; k < size - 1; k++)
    for (int64_t i = 0; i < n; i++) mine[i] += from[k * n + i];
}

/* One swap; n - 1 times as many bytes as a long one takes of many ranks, in half the time of few.
 * */
static pyr_status sum_short(pyr_ranks *r, float *x, int64_t n) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  size_t bytes = (size_t)n * sizeof *x;
  float *to = r->scratch;
  for (int i = 0; i < r->link.size; i++) {
    if (i == r->link.rank) continue;
    with[i] = (pyr_swap){ x, bytes, to, bytes };
    to += n;
  }
  PYR_TRY(swap(r, with));
  add_up(r, x, n);
  return PYR_OK;
}

/* Slices differ by a float at most: of 10 floats and three ranks 3, 3 and 4. The sums go straight
 * to their place in everybody's x, so that scratch holds what is added up alone. */
static pyr_status sum_long(pyr_ranks *r, float *x, int64_t n) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  int rank = r->link.rank, size = r->link.size;
  int64_t begin = n * rank / size, own = n * (rank + 1) / size - begin;
  float *to = r->scratch;
  for (int i = 0; i < size; i++) {
    int64_t first = n * i / size, count = n * (i + 1) / size - first;
    if (i == rank) continue;
    with[i] = (pyr_swap){ x + first, (size_t)count * sizeof *x, to, (size_t)own * sizeof *x };
    to += own;
  }
  PYR_TRY(swap(r, with));
  add_up(r, x + begin, own);
  for (int i = 0; i < size; i++) {
    int64_t first = n * i / size, count = n * (i + 1) / size - first;
    if (i == rank) continue;
    with[i] = (pyr_swap){ x + begin, (size_t)own * sizeof *x, x + first,
                          (size_t)count * sizeof *x };
  }
  return swap(r, with);
}

/* Of 576 floats and two ranks 2,304 bytes; of 20,000, of which rank 0 of two adds up the first
 * half, 40,000 of its own to the other and 40,000 of the sum. */
pyr_traffic pyr_ranks_sum_traffic(const pyr_ranks *r, int64_t n) {
  int64_t rank = pyr_ranks_rank(r), size = pyr_ranks_size(r);
  int64_t own = n * (rank + 1) / size - n * rank / size, each = (int64_t)sizeof(float);
  if (size == 1) return (pyr_traffic){ 0 };
  if (n <= SHORT) return (pyr_traffic){ (size - 1) * n * each, (size - 1) * n * each, 1 };
  int64_t bytes = (n - own + (size - 1) * own) * each;   /* slices, and sums of the own one */
  return (pyr_traffic){ bytes, bytes, 2 };
}

pyr_status pyr_ranks_sum(pyr_ranks *r, float *x, int64_t n) {
  if (pyr_ranks_size(r) == 1 || n == 0) return PYR_OK;
  return n <= SHORT ? sum_short(r, x, n) : sum_long(r, x, n);
}

/* ---- gathers --------------------------------------------------------------------------------- */

pyr_status pyr_ranks_gather_known(pyr_ranks *r, const void *mine, const size_t *bytes, void *out) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  int rank = pyr_ranks_rank(r), size = pyr_ranks_size(r);
  char *to = out;
  for (int i = 0; i < size; i++) {
    if (bytes[i] == PYR_RANKS_APART) continue;
    if (i != rank) with[i] = (pyr_swap){ mine, bytes[rank], to, bytes[i] };
    else if (to != mine && bytes[i]) memmove(to, mine, bytes[i]);
    to += bytes[i];
  }
  return size == 1 ? PYR_OK : swap(r, with);
}

/* By which number messages call a rank: the run's. */
static int number_of(const pyr_ranks *r, int i) { return r->world ? r->base + i * r->step : i; }

/* Eight bytes to and from each: what a gather asks before, and what an agreement is. As both begin
 * so, a rank that agrees about its failure is heard by those who wait for its part of a gather.
 *
 * Everybody's number to everybody: numbers [size], but for those that `bytes` leaves out. */
static pyr_status swap_numbers(pyr_ranks *r, int64_t mine, const size_t *bytes, int64_t *numbers) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  for (int i = 0; i < r->link.size; i++) {
    numbers[i] = 0;
    if (!bytes || bytes[i] != PYR_RANKS_APART)
      with[i] = (pyr_swap){ &mine, sizeof mine, &numbers[i], sizeof mine };
  }
  numbers[r->link.rank] = mine;
  return swap(r, with);
}

/* The message of the lowest rank that failed, from it to all. */
static pyr_status hear(pyr_ranks *r, int who, pyr_status status) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  char message[WHY] = "";
  if (who == r->link.rank) snprintf(message, sizeof message, "%s", pyr_runtime_error(r->rt));
  for (int i = 0; i < r->link.size; i++)
    with[i] = who == r->link.rank ? (pyr_swap){ message, sizeof message, NULL, 0 }
        : i == who ? (pyr_swap){ NULL, 0, message, sizeof message } : (pyr_swap){ 0 };
  r->told = true;
  r->failed = status;
  PYR_TRY(swap(r, with));
  message[WHY - 1] = 0;
  /* told once more, further out: the rank stands there already */
  bool named = strncmp(message, "rank ", 5) == 0 && strchr(message, ':');
  if (named) return pyr_runtime_set_error(r->rt, status, "%s", message);
  return pyr_runtime_set_error(r->rt, status, "rank %d: %.480s", number_of(r, who), message);
}

/* Swaps a number, a failure being one below 0; the first failure ends it on all ranks. */
static pyr_status ask(pyr_ranks *r, int64_t mine, const size_t *bytes, int64_t *numbers) {
  PYR_TRY(swap_numbers(r, mine, bytes, numbers));
  for (int i = 0; i < r->link.size; i++)
    if (numbers[i] < 0) return hear(r, i, (pyr_status)-numbers[i]);
  return PYR_OK;
}

pyr_status pyr_ranks_gather(pyr_ranks *r, const void *mine, const size_t *bytes, void *out) {
  int64_t numbers[PYR_RANKS_MAX];
  if (pyr_ranks_size(r) == 1) return pyr_ranks_gather_known(r, mine, bytes, out);
  PYR_TRY(ask(r, (int64_t)bytes[r->link.rank], bytes, numbers));
  for (int i = 0; i < r->link.size; i++)
    if (bytes[i] != PYR_RANKS_APART && numbers[i] != (int64_t)bytes[i]) {
      pyr_ranks *all = world_of(r);
      snprintf(all->why, sizeof all->why, "ranks: rank %d has %lld bytes where rank %d waits for "
               "%zu: they do not run the same calls", number_of(r, i), (long long)numbers[i],
               all->link.rank, bytes[i]);
      all->broken = true;
      return say_broken(r);
    }
  return pyr_ranks_gather_known(r, mine, bytes, out);
}

pyr_status pyr_ranks_tell(pyr_ranks *r, const int64_t *mine, int count, int64_t *out) {
  size_t bytes[PYR_RANKS_MAX];
  for (int i = 0; i < pyr_ranks_size(r); i++) bytes[i] = (size_t)count * sizeof *mine;
  return pyr_ranks_gather(r, mine, bytes, out);
}

pyr_status pyr_ranks_most(pyr_ranks *r, int64_t *n) {
  int64_t all[PYR_RANKS_MAX];
  if (pyr_ranks_size(r) == 1) return PYR_OK;
  PYR_TRY(pyr_ranks_tell(r, n, 1, all));
  for (int i = 0; i < r->link.size; i++) *n = pyr_max(*n, all[i]);
  return PYR_OK;
}

pyr_status pyr_ranks_spread(pyr_ranks *r, void *data, size_t bytes) {
  size_t sizes[PYR_RANKS_MAX] = { bytes };
  if (pyr_ranks_size(r) == 1) return PYR_OK;
  int64_t numbers[PYR_RANKS_MAX];
  PYR_TRY(ask(r, (int64_t)bytes, NULL, numbers));
  return pyr_ranks_gather_known(r, data, sizes, data);
}

pyr_status pyr_ranks_pass(pyr_ranks *r, int from, int to, const void *data, size_t bytes,
                          void *out) {
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  int rank = pyr_ranks_rank(r);
  if (from == to || bytes == 0 || (rank != from && rank != to)) return PYR_OK;
  if (rank == from) with[to] = (pyr_swap){ data, bytes, NULL, 0 };
  else with[from] = (pyr_swap){ NULL, 0, out, bytes };
  return swap(r, with);
}

/* ---- agreements ------------------------------------------------------------------------------ */

void pyr_ranks_begin(pyr_runtime *rt) {
  pyr_ranks *r = pyr_runtime_ranks(rt);
  if (r) r->depth++;
}

pyr_status pyr_ranks_agree(pyr_runtime *rt, pyr_status status) {
  return pyr_ranks_agree_in(pyr_runtime_ranks(rt), status);
}

/* A team that has agreed about a failure has yet to tell the others of it. Of all ranks, teams come
 * first: whoever failed alone is waited for by its team, in a gather that the others are not in.
 *
 *     rank 2    fails        tells its team      tells all
 *     rank 3    waits for scores of rank 2       tells all
 *     rank 0                                     hears of it */
pyr_status pyr_ranks_agree_in(pyr_ranks *r, pyr_status status) {
  int64_t numbers[PYR_RANKS_MAX];
  if (pyr_ranks_size(r) == 1) return status;
  if (world_of(r)->broken) return status != PYR_OK ? status : say_broken(r);
  if (r->told) return status != PYR_OK ? status : r->failed;
  if (r->team && !r->team->told) status = pyr_ranks_agree_in(r->team, status);
  if (r->broken) return status;
  return ask(r, -(int64_t)status, NULL, numbers);
}

pyr_status pyr_ranks_end(pyr_runtime *rt, pyr_status status) {
  pyr_ranks *r = pyr_runtime_ranks(rt);
  if (!r) return status;
  status = pyr_ranks_agree(rt, status);
  pyr_ranks_leave(rt);
  return status;
}

void pyr_ranks_leave(pyr_runtime *rt) {
  pyr_ranks *r = pyr_runtime_ranks(rt);
  if (!r || --r->depth > 0) return;
  r->told = false;
  if (r->team) r->team->told = false;
  if (r->line) r->line->told = false;
}
