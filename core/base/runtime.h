/* runtime.h — the root object, as the core sees it: allocation under a limit, a thread team,
 * progress, the message of the last failure, and the backend that runs operations, which is opened
 * elsewhere (backend/open.c) and unknown here. */
#ifndef PYR_RUNTIME_H
#define PYR_RUNTIME_H

#include "pyramid.h"
#include <stdbool.h>

struct pyr_backend;
struct pyr_ranks;

enum { PYR_THREADS_MAX = 256 };

/* Leaves the function with the status of a call that fails. Only where nothing is to be released:
 * what owns memory for a while wraps a function that leaves early. */
#define PYR_TRY(call) \
  do { \
    pyr_status try_ = (call); \
    if (try_ != PYR_OK) return try_; \
  } while (0)

static inline int64_t pyr_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pyr_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Allocation through the host's allocator, counted against the memory limit. Sizes are exact: the
 * caller gives back the size it asked for. All return NULL without touching the message; use
 * pyr_nomem to report. */
void *pyr_alloc(pyr_runtime *rt, size_t size);  /* not zeroed; size 0 gives NULL */
void *pyr_alloc_zero(pyr_runtime *rt, size_t size);
void *pyr_realloc(pyr_runtime *rt, void *ptr, size_t old, size_t size);  /* NULL leaves ptr alone */
void pyr_release(pyr_runtime *rt, void *ptr, size_t size);         /* NULL is legal */
bool pyr_mul_size(size_t a, size_t b, size_t *out);                /* false on overflow */
/* Whether so much more may be held under the limit. */
bool pyr_fits(const pyr_runtime *rt, size_t size);
/* counts memory that is not the host's; false: over the limit */
bool pyr_charge(pyr_runtime *rt, size_t size);
void pyr_discharge(pyr_runtime *rt, size_t size);
/* PYR_MEMORY with a message */
pyr_status pyr_nomem(pyr_runtime *rt, size_t wanted, const char *what);

/* Runs fn(ctx, task, worker) for task = 0..tasks-1 over the team; returns when all are done. Tasks
 * are handed out in order, one at a time; worker is 0..threads-1 and unique among tasks that run at
 * once. Results must not depend on which worker runs a task, so that they are the same on any
 * number of threads. Not reentrant. */
typedef void (*pyr_task_fn)(void *ctx, int64_t task, int worker);
void pyr_parallel(pyr_runtime *rt, pyr_task_fn fn, void *ctx, int64_t tasks);

/* The most bytes held are counted anew from now on. */
void pyr_runtime_reset_peak(pyr_runtime *rt);

/* Reports progress; PYR_CANCELLED if the host asks to stop. */
pyr_status pyr_progress(pyr_runtime *rt, int64_t done, int64_t total);

/* True in a child of the process that made the runtime (fork): it has none of its threads. */
bool pyr_runtime_is_forked(const pyr_runtime *rt);
/* backend/open.c: PYR_DEVICE in such a child, if the runtime is on a device. */
pyr_status pyr_runtime_here(pyr_runtime *rt);

/* For backend/open.c. Options are whole and in range. *out is set also where the team could not be
 * started: the runtime then has the message, and is to be freed. It is NULL still if there was no
 * memory even for it. */
pyr_status pyr_runtime_make(const pyr_runtime_options *options, pyr_runtime **out);
/* `close` is called once, when the last reference has gone, before the team ends. */
void pyr_runtime_set_backend(pyr_runtime *rt, struct pyr_backend *backend,
                             void (*close)(struct pyr_backend *backend));
struct pyr_backend *pyr_runtime_backend(const pyr_runtime *rt);
/* The same of the processes that compute together (ranks/ranks.h), closed before the backend. NULL:
 * it is alone. */
void pyr_runtime_set_ranks(pyr_runtime *rt, struct pyr_ranks *ranks,
                           void (*close)(struct pyr_ranks *ranks));
struct pyr_ranks *pyr_runtime_ranks(const pyr_runtime *rt);

#endif
