/* open.c — a link is opened, and its ranks see whether they are one run of one library. */
#include "ranks/ranks.h"
#include "backend/plugin.h"

#include <stdio.h>
#include <string.h>

/* What all ranks must have in common before anything else is swapped. */
typedef struct pyr_passport { char version[32], isa[32]; int32_t pointer, device; } pyr_passport;

/* 88 bytes of each rank. The device's number stands for the layout of the structs that ranks may
 * swap some day; kernels for how they round, as what a rank chooses (experts, rows) is worked out
 * by each from the same numbers, and must come out the same. */
static pyr_status compare(pyr_runtime *rt, pyr_ranks *r) {
  pyr_passport mine = { .pointer = (int32_t)sizeof(void *), .device = PYR_DEVICE_VERSION },
      all[PYR_RANKS_MAX];
  size_t bytes[PYR_RANKS_MAX];
  snprintf(mine.version, sizeof mine.version, "%s", pyr_version());
  snprintf(mine.isa, sizeof mine.isa, "%s", pyr_runtime_backend(rt)->name);
  for (int i = 0; i < pyr_ranks_size(r); i++) bytes[i] = sizeof mine;
  PYR_TRY(pyr_ranks_gather_known(r, &mine, bytes, all));
  for (int i = 1; i < pyr_ranks_size(r); i++)
    if (strcmp(all[i].version, all[0].version) == 0 && strcmp(all[i].isa, all[0].isa) != 0)
      return pyr_runtime_set_error(rt, PYR_DEVICE,
                                   "ranks: rank %d computes with the kernels %.31s, rank 0 with "
                                   "%.31s, which round differently; give all one that they have "
                                   "(isa = \"avx2\", for instance)", i, all[i].isa, all[0].isa);
    else if (memcmp(&all[i], &all[0], sizeof mine) != 0)
      return pyr_runtime_set_error(rt, PYR_DEVICE,
                                   "ranks: rank %d runs another build of Pyramid (%.31s) than rank "
                                   "0 (%.31s)", i, all[i].version, all[0].version);
  return PYR_OK;
}

/* ---- on paper -------------------------------------------------------------------------------- */

static int swap_nowhere(void *state, const pyr_swap *with, char *why, size_t why_bytes) {
  (void)state, (void)with;
  snprintf(why, why_bytes, "the other ranks are there on paper alone");
  return -1;
}
static void close_nothing(void *state) { (void)state; }

/* "paper 2/8": rank 2 of eight that nobody started. A model can be laid out for it, and asked what
 * it would hold and send (model/foresee.c); whatever needs the others fails. Returns whether the
 * words are such. */
static bool read_paper(const char *kind, pyr_link *out) {
  int rank, size, length = 0;
  if (sscanf(kind, "paper %d/%d%n", &rank, &size, &length) != 2 || kind[length]) return false;
  *out = (pyr_link){ .rank = rank, .size = size, .swap = swap_nowhere, .close = close_nothing };
  return size >= 1 && size <= PYR_RANKS_MAX && rank >= 0 && rank < size;
}

/* *out is there, and the caller's to free, also where ranks do not fit together. */
pyr_status pyr_ranks_open(pyr_runtime *rt, const char *kind, pyr_ranks **out) {
  pyr_link_open_fn open;
  pyr_link link = { 0 };
  char why[400] = "";
  void *symbol;
  if (read_paper(kind, &link)) return pyr_ranks_new(rt, &link, out);
  if (strcmp(kind, "tensor") != 0)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "ranks: \"%s\" is not known (known: tensor)",
                                 kind);
  PYR_TRY(pyr_plugin_open(rt, "ranks", "mpi", PYR_LINK_OPEN,
                          "build it where mpicc is with `make mpi`, and put it beside the program",
                          &symbol));
  *(void **)&open = symbol;
  if (open(PYR_LINK_VERSION, &link, why, sizeof why) != 0)
    return pyr_runtime_set_error(rt, PYR_DEVICE, "ranks: %s", why);
  PYR_TRY(pyr_ranks_new(rt, &link, out));
  return compare(rt, *out);
}
