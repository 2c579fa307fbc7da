/* open.c — a runtime is made: a base of memory, threads and messages (base/runtime.c), and the
 * backend that its options name.
 *
 * This is the one file that knows all backends. The processor's is part of the library; others are
 * shared objects of their own (plugin.c). Whatever runs operations calls the base, and the base
 * calls none of them: it keeps the backend's table as something to be closed. */
#include "backend/backend.h"
#include "backend/plugin.h"
#include "base/versioned.h"
#include "ranks/ranks.h"

#include <stdio.h>
#include <string.h>

/* A device is left alone in a child of the process that opened it: what the driver keeps of it
 * there is the parent's. */
static void close_backend(pyr_backend *be) {
  if (be->close && pyr_runtime_here(be->rt) == PYR_OK) be->close(be);
  pyr_release(be->rt, be, sizeof *be);
}

static pyr_status open_backend(pyr_runtime *rt, const char *device, const char *isa) {
  pyr_backend *be = pyr_alloc_zero(rt, sizeof *be);
  if (be == NULL) return pyr_nomem(rt, sizeof *be, "the backend");
  be->rt = rt;
  pyr_runtime_set_backend(rt, be, close_backend);
  return strcmp(device, "cpu") == 0 ? pyr_cpu_backend_open(rt, isa, be)
                                    : pyr_device_backend_open(rt, device, isa, be);
}

/* Ranks read each other's sums and scores in the host's memory. */
static pyr_status open_ranks(pyr_runtime *rt, const char *kind) {
  pyr_ranks *ranks = NULL;
  if (pyr_runtime_backend(rt)->own_memory)
    return pyr_runtime_set_error(rt, PYR_DEVICE, "ranks: on the processor only, so far");
  pyr_status status = pyr_ranks_open(rt, kind, &ranks);
  if (ranks) pyr_runtime_set_ranks(rt, ranks, pyr_ranks_free);
  return status;
}

pyr_status pyr_runtime_new(const pyr_runtime_options *options, pyr_runtime **out) {
  pyr_runtime_options taken;
  pyr_runtime *rt = NULL;
  const char *wrong = pyr_take_options(&taken, sizeof taken,
                                       offsetof(pyr_runtime_options, ranks), options);
  if (wrong) {
    if (taken.why && taken.why_bytes)
      snprintf(taken.why, taken.why_bytes, "runtime's options: %s", wrong);
    return PYR_ARGUMENT;
  }
  const char *device = taken.device ? taken.device : "cpu";
  if (taken.threads < 0 || taken.threads > PYR_THREADS_MAX) return PYR_ARGUMENT;
  if (strcmp(device, "cpu") != 0 && !pyr_device_known(device)) return PYR_DEVICE;
  pyr_status status = pyr_runtime_make(&taken, &rt);
  if (status == PYR_OK) status = open_backend(rt, device, taken.isa);
  if (status == PYR_OK && taken.ranks) status = open_ranks(rt, taken.ranks);
  if (status != PYR_OK) {
    if (rt && taken.why && taken.why_bytes)
      snprintf(taken.why, taken.why_bytes, "%s", pyr_runtime_error(rt));
    pyr_runtime_free(rt);
    return status;
  }
  *out = rt;
  return PYR_OK;
}

pyr_status pyr_runtime_here(pyr_runtime *rt) {
  if (!pyr_runtime_backend(rt)->own_memory || !pyr_runtime_is_forked(rt)) return PYR_OK;
  return pyr_runtime_set_error(rt, PYR_DEVICE,
                               "device: it belongs to the process that opened it, and this is a "
                               "child of that (fork); open the model after forking");
}

const char *pyr_runtime_isa(const pyr_runtime *rt) { return pyr_runtime_backend(rt)->name; }

pyr_ranks_info pyr_runtime_get_ranks(const pyr_runtime *rt) {
  const pyr_ranks *ranks = pyr_runtime_ranks(rt);
  pyr_traffic traffic = pyr_ranks_traffic(ranks);
  return (pyr_ranks_info){ pyr_ranks_rank(ranks), pyr_ranks_size(ranks), traffic.sent,
                           traffic.received, traffic.calls };
}

void pyr_runtime_ranks_begin(pyr_runtime *rt) { pyr_ranks_begin(rt); }
pyr_status pyr_runtime_ranks_end(pyr_runtime *rt, pyr_status status) {
  return pyr_ranks_end(rt, status);
}
