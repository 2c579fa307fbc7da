/* runtime.c — the root object: allocation under a limit, the thread team, progress, the last
 * failure's message.
 *
 * Owns: the byte count of everything the core allocates, and the worker threads. Keeps a backend's
 * table without looking into it: backend/open.c chooses and opens it, and says how it is closed.
 * Does not own: mapped files (weights.c counts none of them here) and anything of Lua's.
 *
 * The thread team. A call of pyr_parallel publishes a job under the lock and wakes the workers;
 * every thread, the caller included, then takes task numbers from one atomic counter until they run
 * out. A worker joins a job only while it is open; the caller closes it when the tasks have run out
 * and waits for those that joined, not for a worker that a busy neighbour keeps off its processor.
 * Waiting is a short bounded spin (tens of microseconds: the gap between two operations of one
 * forward pass), then sleep on a condition, so that an idle team costs its neighbours nothing.
 *
 * A child of fork(2) has the memory and not the threads: there the caller does all tasks itself,
 * nobody is waited for, and locks and conditions that threads of the parent may have held are left
 * as they are. */
#include "base/runtime.h"
#include "base/plain.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PYR_MESSAGE_BYTES = 512, PYR_SPINS = 1000, CLOSED = 1 << 20 };

typedef struct pyr_team {
  pid_t owner;                 /* the process whose threads they are */
  pthread_t *threads;          /* [started] */
  int started;
  pthread_mutex_t lock;
  pthread_cond_t wake, done;
  bool quit;
  atomic_uint generation;      /* changes when a job is published or the team ends */
  atomic_int inside;  /* workers inside the current job; with CLOSED added, none may join */
  atomic_llong next;           /* next task number */
  pyr_task_fn fn;
  void *ctx;
  int64_t tasks;
} pyr_team;

typedef struct pyr_worker { pyr_runtime *rt; int index; } pyr_worker;

struct pyr_runtime {
  atomic_int refs;
  pyr_alloc_fn alloc;
  void *alloc_ud;
  size_t held, peak, limit;
  pyr_progress_fn progress;
  void *progress_ud;
  int64_t done, total;         /* as reported last */
  int threads;
  pyr_team team;
  pyr_worker *workers;
  struct pyr_backend *backend;
  void (*close)(struct pyr_backend *backend);
  struct pyr_ranks *ranks;
  void (*close_ranks)(struct pyr_ranks *ranks);
  char message[PYR_MESSAGE_BYTES];
};

/* ---- statuses and messages ------------------------------------------------------------------- */

const char *pyr_version(void) { return PYR_VERSION; }

const char *pyr_status_name(pyr_status status) {
  static const char *const names[] = { "ok", "argument", "memory", "budget", "context", "io",
                                       "format", "unsupported", "policy", "cancelled", "device" };
  return (unsigned)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

pyr_status pyr_runtime_set_error(pyr_runtime *rt, pyr_status status, const char *format, ...) {
  va_list args;
  locale_t outer = pyr_plain_enter();       /* numbers are written with a point */
  va_start(args, format);
  vsnprintf(rt->message, sizeof rt->message, format, args);
  va_end(args);
  pyr_plain_leave(outer);
  return status;
}

const char *pyr_runtime_error(const pyr_runtime *rt) { return rt->message; }

pyr_status pyr_nomem(pyr_runtime *rt, size_t wanted, const char *what) {
  if (rt->limit)
    return pyr_runtime_set_error(rt, PYR_MEMORY,
                                 "out of memory: %s needs %zu bytes, and %zu of the limit of %zu "
                                 "are held", what, wanted, rt->held, rt->limit);
  return pyr_runtime_set_error(rt, PYR_MEMORY, "out of memory: %s needs %zu bytes", what, wanted);
}

/* ---- allocation ------------------------------------------------------------------------------ */

enum { HUGE_PAGE = 2 << 20 };

/* A large block is asked for in pages of 2 MiB where the system has them: its memory comes with one
 * interruption for each instead of 512. Of a prompt of 2,048 tokens of SmolLM2, whose rows take 46
 * MiB, that is a twentieth of the time. Only whole ones are asked for, so that no more is resident
 * than was touched but for what is left of the last. A block that grows is copied as any other. */
static void *large_block(size_t size) {
  void *block = NULL;
  if (posix_memalign(&block, HUGE_PAGE, size) != 0) return NULL;
#ifdef MADV_HUGEPAGE
  (void)madvise(block, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);   /* or it stays as it is */
#endif
  return block;
}

static void *default_alloc(void *ud, void *ptr, size_t old, size_t size) {
  (void)ud, (void)old;
  if (size == 0) {
    free(ptr);
    return NULL;
  }
  return ptr == NULL && size >= HUGE_PAGE ? large_block(size) : realloc(ptr, size);
}

bool pyr_fits(const pyr_runtime *rt, size_t size) {
  return !rt->limit || (rt->held <= rt->limit && size <= rt->limit - rt->held);
}

void *pyr_realloc(pyr_runtime *rt, void *ptr, size_t old, size_t size) {
  if (size == 0) {
    pyr_release(rt, ptr, old);
    return NULL;
  }
  if (ptr == NULL) old = 0;
  if (size > old && !pyr_fits(rt, size - old)) return NULL;
  void *fresh = rt->alloc(rt->alloc_ud, ptr, old, size);
  if (fresh == NULL) return NULL;
  rt->held = rt->held - old + size;
  if (rt->held > rt->peak) rt->peak = rt->held;
  return fresh;
}

void *pyr_alloc(pyr_runtime *rt, size_t size) {
  return size ? pyr_realloc(rt, NULL, 0, size) : NULL;
}

void *pyr_alloc_zero(pyr_runtime *rt, size_t size) {
  void *ptr = pyr_alloc(rt, size);
  if (ptr) memset(ptr, 0, size);
  return ptr;
}

void pyr_release(pyr_runtime *rt, void *ptr, size_t size) {
  if (ptr == NULL) return;
  rt->alloc(rt->alloc_ud, ptr, size, 0);
  rt->held -= size;
}

bool pyr_charge(pyr_runtime *rt, size_t size) {
  if (!pyr_fits(rt, size)) return false;
  rt->held += size;
  if (rt->held > rt->peak) rt->peak = rt->held;
  return true;
}

void pyr_discharge(pyr_runtime *rt, size_t size) { rt->held -= size; }

bool pyr_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

size_t pyr_runtime_memory(const pyr_runtime *rt) { return rt->held; }
size_t pyr_runtime_memory_peak(const pyr_runtime *rt) { return rt->peak; }
void pyr_runtime_reset_peak(pyr_runtime *rt) { rt->peak = rt->held; }

/* ---- the thread team ------------------------------------------------------------------------- */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

static void run_tasks(pyr_team *team, int worker) {
  for (;;) {
    int64_t task = atomic_fetch_add(&team->next, 1);
    if (task >= team->tasks) return;
    team->fn(team->ctx, task, worker);
  }
}

/* A late worker may find the next job open instead of the one it was woken for; that is as good. */
static bool join(pyr_team *team) {
  int inside = atomic_load(&team->inside);
  while (inside < CLOSED)
    if (atomic_compare_exchange_weak(&team->inside, &inside, inside + 1)) return true;
  return false;
}

static void *worker_main(void *arg) {
  pyr_worker *self = arg;
  pyr_team *team = &self->rt->team;
  unsigned seen = 0;
  for (;;) {
    for (int spin = 0; spin < PYR_SPINS && atomic_load(&team->generation) == seen; spin++) relax();
    if (atomic_load(&team->generation) == seen) {
      pthread_mutex_lock(&team->lock);
      while (atomic_load(&team->generation) == seen) pthread_cond_wait(&team->wake, &team->lock);
      pthread_mutex_unlock(&team->lock);
    }
    seen = atomic_load(&team->generation);
    if (team->quit) return NULL;
    if (!join(team)) continue;
    run_tasks(team, self->index);
    if (atomic_fetch_sub(&team->inside, 1) == CLOSED + 1) {
      pthread_mutex_lock(&team->lock);
      pthread_cond_signal(&team->done);
      pthread_mutex_unlock(&team->lock);
    }
  }
}

static bool is_forked(const pyr_team *team) { return team->owner != getpid(); }

void pyr_parallel(pyr_runtime *rt, pyr_task_fn fn, void *ctx, int64_t tasks) {
  pyr_team *team = &rt->team;
  if (team->started == 0 || tasks <= 1 || is_forked(team)) {
    for (int64_t task = 0; task < tasks; task++) fn(ctx, task, 0);
    return;
  }
  team->fn = fn;
  team->ctx = ctx;
  team->tasks = tasks;
  atomic_store(&team->next, 0);
  atomic_store(&team->inside, 0);              /* open: what it needs is in place */
  pthread_mutex_lock(&team->lock);
  atomic_fetch_add(&team->generation, 1);
  pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  run_tasks(team, 0);
  if (atomic_fetch_add(&team->inside, CLOSED) == 0) return;
  for (int spin = 0; spin < PYR_SPINS && atomic_load(&team->inside) != CLOSED; spin++) relax();
  if (atomic_load(&team->inside) == CLOSED) return;
  pthread_mutex_lock(&team->lock);
  while (atomic_load(&team->inside) != CLOSED) pthread_cond_wait(&team->done, &team->lock);
  pthread_mutex_unlock(&team->lock);
}

static void team_stop(pyr_runtime *rt) {
  pyr_team *team = &rt->team;
  bool forked = is_forked(team);
  if (team->threads && !forked) {
    pthread_mutex_lock(&team->lock);
    team->quit = true;
    atomic_fetch_add(&team->generation, 1);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->started; i++) pthread_join(team->threads[i], NULL);
  }
  size_t count = (size_t)(rt->threads - 1);
  pyr_release(rt, team->threads, count * sizeof *team->threads);
  pyr_release(rt, rt->workers, count * sizeof *rt->workers);
  if (forked) return;          /* destroying a condition waits for those that wait on it */
  pthread_mutex_destroy(&team->lock);
  pthread_cond_destroy(&team->wake);
  pthread_cond_destroy(&team->done);
}

static pyr_status team_start(pyr_runtime *rt) {
  pyr_team *team = &rt->team;
  team->owner = getpid();
  pthread_mutex_init(&team->lock, NULL);
  pthread_cond_init(&team->wake, NULL);
  pthread_cond_init(&team->done, NULL);
  atomic_init(&team->inside, CLOSED);
  size_t count = (size_t)(rt->threads - 1);
  if (count == 0) return PYR_OK;
  team->threads = pyr_alloc(rt, count * sizeof *team->threads);
  rt->workers = pyr_alloc(rt, count * sizeof *rt->workers);
  if (!team->threads || !rt->workers)
    return pyr_nomem(rt, count * sizeof *team->threads, "the thread team");
  for (size_t i = 0; i < count; i++) {
    rt->workers[i] = (pyr_worker){ rt, (int)i + 1 };
    if (pthread_create(&team->threads[i], NULL, worker_main, &rt->workers[i]) != 0)
      return pyr_runtime_set_error(rt, PYR_MEMORY, "thread %zu of %d could not be started", i + 2,
                                   rt->threads);
    team->started++;
  }
  return PYR_OK;
}

/* ---- progress -------------------------------------------------------------------------------- */

void pyr_runtime_on_progress(pyr_runtime *rt, pyr_progress_fn fn, void *ud) {
  rt->progress = fn;
  rt->progress_ud = ud;
}

pyr_status pyr_progress(pyr_runtime *rt, int64_t done, int64_t total) {
  rt->done = done;
  rt->total = total;
  if (rt->progress && rt->progress(rt->progress_ud, done, total) != 0)
    return pyr_runtime_set_error(rt, PYR_CANCELLED, "cancelled after %lld of %lld",
                                 (long long)done, (long long)total);
  return PYR_OK;
}

pyr_status pyr_runtime_check(pyr_runtime *rt) { return pyr_progress(rt, rt->done, rt->total); }

bool pyr_runtime_is_forked(const pyr_runtime *rt) { return is_forked(&rt->team); }

/* ---- life ------------------------------------------------------------------------------------ */

/* Those that this process may run on. */
static long processors(void) {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return sysconf(_SC_NPROCESSORS_ONLN);
}

pyr_status pyr_runtime_make(const pyr_runtime_options *options, pyr_runtime **out) {
  pyr_alloc_fn alloc = options->alloc ? options->alloc : default_alloc;
  if (options->memory_limit && sizeof(pyr_runtime) > options->memory_limit) return PYR_MEMORY;
  pyr_runtime *rt = alloc(options->alloc_ud, NULL, 0, sizeof *rt);
  if (rt == NULL) return PYR_MEMORY;
  memset(rt, 0, sizeof *rt);
  atomic_init(&rt->refs, 1);
  rt->alloc = alloc;
  rt->alloc_ud = options->alloc_ud;
  rt->limit = options->memory_limit;
  rt->held = rt->peak = sizeof *rt;
  rt->threads = options->threads;
  if (rt->threads == 0) {
    long usable = processors();
    rt->threads = usable < 1 ? 1 : usable > PYR_THREADS_MAX ? PYR_THREADS_MAX : (int)usable;
  }
  *out = rt;
  return team_start(rt);
}

void pyr_runtime_set_backend(pyr_runtime *rt, struct pyr_backend *backend,
                             void (*close)(struct pyr_backend *backend)) {
  rt->backend = backend;
  rt->close = close;
}

void pyr_runtime_set_ranks(pyr_runtime *rt, struct pyr_ranks *ranks,
                           void (*close)(struct pyr_ranks *ranks)) {
  rt->ranks = ranks;
  rt->close_ranks = close;
}

pyr_runtime *pyr_runtime_retain(pyr_runtime *rt) {
  atomic_fetch_add(&rt->refs, 1);
  return rt;
}

void pyr_runtime_free(pyr_runtime *rt) {
  if (rt == NULL || atomic_fetch_sub(&rt->refs, 1) != 1) return;
  if (rt->close_ranks) rt->close_ranks(rt->ranks);
  if (rt->close) rt->close(rt->backend);
  team_stop(rt);
  rt->alloc(rt->alloc_ud, rt, sizeof *rt, 0);
}

int pyr_runtime_threads(const pyr_runtime *rt) { return rt->threads; }
struct pyr_backend *pyr_runtime_backend(const pyr_runtime *rt) { return rt->backend; }
struct pyr_ranks *pyr_runtime_ranks(const pyr_runtime *rt) { return rt->ranks; }
