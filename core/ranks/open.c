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

/* ---- how they share the work ----------------------------------------------------------------- */

/* "18+12" or "2": layers of each stage, or how many stages there are. Returns what follows; NULL:
 * neither. */
static const char *read_stages(const char *at, pyr_arrangement *how) {
  int length, count = 0, number;
  for (;; at++, count++) {
    if (count == PYR_RANKS_MAX || at[0] < '1' || at[0] > '9') return NULL;
    if (sscanf(at, "%9d%n", &number, &length) != 1) return NULL;
    how->layers[count] = number;
    at += length;
    if (*at != '+') break;
  }
  how->given = count > 0;
  how->stages = count > 0 ? count + 1 : how->layers[0];
  return at;
}

/* *across: how many share a layer; 0: as many as are left. Whether the words are known:
 *
 *     tensor                 4 ranks     one stage of 4
 *     pipeline               4           4 stages of one
 *     pipeline:18+12         2           2 stages, of 18 layers and of 12
 *     pipeline:2,tensor:2    4           2 stages of two */
static bool read_kind(const char *kind, pyr_arrangement *how, int *across) {
  const char *at = kind;
  int length;
  *how = (pyr_arrangement){ .stages = 1 };
  *across = 0;
  if (strncmp(at, "pipeline", 8) == 0) {
    how->stages = 0, at += 8;
    *across = 1;
    if (*at == ':' && !(at = read_stages(at + 1, how))) return false;
    if (*at == 0) return true;
    if (*at++ != ',') return false;
    *across = 0;
  }
  if (strncmp(at, "tensor", 6) != 0) return false;
  at += 6;
  return *at == 0 || (sscanf(at, ":%4d%n", across, &length) == 1 && *across > 0 && !at[length]);
}

/* Of two numbers that are not said the other one says which they are. */
static pyr_status arrange(pyr_runtime *rt, const char *kind, int size, pyr_arrangement *how) {
  int across;
  if (!read_kind(kind, how, &across))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "ranks: \"%s\" is not known (known: tensor, pipeline, "
                                 "pipeline:18+12, pipeline:2,tensor:2)", kind);
  if (across == 0) across = (int)pyr_max(how->stages ? size / how->stages : size, 1);
  if (how->stages == 0) how->stages = (int)pyr_max(size / across, 1);
  if ((int64_t)how->stages * across == size) return PYR_OK;
  return pyr_runtime_set_error(rt, PYR_ARGUMENT, "ranks: \"%s\" does not fit %d of them", kind,
                               size);
}

/* *out is there, and the caller's to free, also where ranks do not fit together. */
pyr_status pyr_ranks_open(pyr_runtime *rt, const char *kind, pyr_ranks **out) {
  pyr_link_open_fn open;
  pyr_link link = { 0 };
  char why[400] = "";
  void *symbol;
  pyr_arrangement how;
  if (read_paper(kind, &link)) {
    PYR_TRY(arrange(rt, "tensor", link.size, &how));
    return pyr_ranks_new(rt, &link, &how, out);
  }
  int across;
  if (!read_kind(kind, &how, &across)) return arrange(rt, kind, 1, &how);   /* says why */
  PYR_TRY(pyr_plugin_open(rt, "ranks", "mpi", PYR_LINK_OPEN,
                          "build it where mpicc is with `make mpi`, and put it beside the program",
                          &symbol));
  *(void **)&open = symbol;
  if (open(PYR_LINK_VERSION, &link, why, sizeof why) != 0)
    return pyr_runtime_set_error(rt, PYR_DEVICE, "ranks: %s", why);
  pyr_status status = arrange(rt, kind, link.size, &how);
  if (status != PYR_OK) {
    link.close(link.state);
    return status;
  }
  PYR_TRY(pyr_ranks_new(rt, &link, &how, out));
  return compare(rt, *out);
}
