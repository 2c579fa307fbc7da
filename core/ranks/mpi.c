/* mpi.c — libpyramid_mpi.so: the link of ranks.h over MPI. `make mpi` builds it with mpicc.
 *
 * Messages go from process to process, and none of MPI's own sums: ranks.c adds up itself. A wait
 * looks now and then whether those that it waits for are still there. Where they run on the same
 * machine their process tells; where they do not, a launcher ends what is left of a run when one of
 * its processes has gone (mpirun and srun do), and beyond WAIT_SECONDS nobody is waited for.
 *
 * MPI is started here unless the host has, and ended by who started it. A process cannot start it
 * twice, so it stays until the process ends; a run whose ranks all come to the end meets there, one
 * that comes alone does not wait: MPI_Finalize would, for processes that will never come. */
#include "ranks/link.h"

#include <errno.h>
#include <mpi.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* LOOK: tests between two looks at the clock, some tens of microseconds; then a rank that waits
 * sleeps for some more, so that who shares its processor gets on, as whom it waits for may have to.
 * */
enum { TAG = 7, LOOK = 200, GREETING = 1, WAIT_SECONDS = 600, CLOSE_SECONDS = 3 };

typedef struct home { char host[240]; int64_t process; } home;   /* where a rank runs */

typedef struct mpi_state {
  MPI_Comm comm;
  int rank, size;
  bool owner;                  /* this started MPI */
  home homes[PYR_RANKS_MAX];
  MPI_Request requests[2 * PYR_RANKS_MAX];
  size_t expected[2 * PYR_RANKS_MAX];
  int from[2 * PYR_RANKS_MAX];  /* whom a request is with */
} mpi_state;

/* Of the process, as MPI is: links that were opened, and not closed by all ranks. */
static int open_links;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A process of this machine that has gone; others cannot be told. What has ended and was not waited
 * for by its launcher yet is still listed, as a zombie: /proc tells. */
static bool is_gone(const mpi_state *s, int rank) {
  const home *h = &s->homes[rank];
  if (strcmp(h->host, s->homes[s->rank].host) != 0) return false;
  if (kill((pid_t)h->process, 0) != 0 && errno == ESRCH) return true;
  char path[64], text[512], *end;
  snprintf(path, sizeof path, "/proc/%lld/stat", (long long)h->process);
  FILE *f = fopen(path, "re");
  if (!f) return false;
  bool zombie = fgets(text, sizeof text, f) && (end = strrchr(text, ')')) && end[1]
      && end[2] == 'Z';
  fclose(f);
  return zombie;
}

/* Waits for `count` requests. -1: somebody has gone, or they take longer than anything may. */
static int wait_all(mpi_state *s, int count, double seconds, char *why, size_t why_bytes) {
  MPI_Status statuses[2 * PYR_RANKS_MAX];
  const struct timespec pause = { 0, 20000 };
  double began = 0, looked = 0;
  for (int64_t tries = 0;; tries++) {
    int done = 0;
    if (MPI_Testall(count, s->requests, &done, statuses) != MPI_SUCCESS) {
      snprintf(why, why_bytes, "a message failed: another rank has ended, or sent something else "
               "than was waited for");
      return -1;
    }
    if (done) break;
    if (tries % LOOK != LOOK - 1) continue;
    nanosleep(&pause, NULL);
    double at = now();
    if (began == 0) began = looked = at;
    if (at - looked < 0.2) continue;
    looked = at;
    for (int i = 0; i < count; i++) {
      if (s->requests[i] == MPI_REQUEST_NULL || !is_gone(s, s->from[i])) continue;
      snprintf(why, why_bytes, "rank %d (process %lld on %s) has ended", s->from[i],
               (long long)s->homes[s->from[i]].process, s->homes[s->from[i]].host);
      return -1;
    }
    if (at - began > seconds) {
      snprintf(why, why_bytes, "the other ranks have not answered for %.0f seconds", seconds);
      return -1;
    }
  }
  for (int i = 0; i < count; i++) {
    int got = 0;
    if (s->expected[i] == SIZE_MAX) continue;             /* what was sent */
    MPI_Get_count(&statuses[i], MPI_BYTE, &got);
    if ((size_t)got == s->expected[i]) continue;
    snprintf(why, why_bytes, "rank %d sent %d bytes where %zu were waited for: they do not run the "
             "same calls", s->from[i], got, s->expected[i]);
    return -1;
  }
  return 0;
}

/* Larger than an int's bytes is cut by ranks.c's callers' chunks; refused rather than wrapped. */
/* Receives first, so that what comes finds its place; all in flight at once, with any number of
 * ranks:
 *
 *     rank 0    from 1, from 2, to 1, to 2        waits for the four together
 *
 * Messages of one pair arrive in the order in which they were sent, so one tag serves all. */
static int link_swap(void *state, const pyr_swap *with, char *why, size_t why_bytes) {
  mpi_state *s = state;
  int count = 0, error = MPI_SUCCESS;
  for (int i = 0; i < s->size && error == MPI_SUCCESS; i++) {
    if (i == s->rank || with[i].recv_bytes == 0) continue;
    if (with[i].recv_bytes > INT32_MAX) error = MPI_ERR_COUNT;
    s->from[count] = i, s->expected[count] = with[i].recv_bytes;
    if (error == MPI_SUCCESS)
      error = MPI_Irecv(with[i].recv, (int)with[i].recv_bytes, MPI_BYTE, i, TAG, s->comm,
                        &s->requests[count++]);
  }
  for (int i = 0; i < s->size && error == MPI_SUCCESS; i++) {
    if (i == s->rank || with[i].send_bytes == 0) continue;
    if (with[i].send_bytes > INT32_MAX) error = MPI_ERR_COUNT;
    s->from[count] = i, s->expected[count] = SIZE_MAX;
    if (error == MPI_SUCCESS)
      error = MPI_Isend(with[i].send, (int)with[i].send_bytes, MPI_BYTE, i, TAG, s->comm,
                        &s->requests[count++]);
  }
  if (error != MPI_SUCCESS) {
    snprintf(why, why_bytes, "a message could not be sent");
    return -1;
  }
  return wait_all(s, count, WAIT_SECONDS, why, why_bytes);
}

/* All meet: then MPI may be ended. Whoever comes alone, after a failure, leaves without. */
static void link_close(void *state) {
  mpi_state *s = state;
  char why[256];
  bool met = false;
  if (MPI_Ibarrier(s->comm, &s->requests[0]) == MPI_SUCCESS) {
    s->from[0] = s->rank, s->expected[0] = SIZE_MAX;
    met = wait_all(s, 1, CLOSE_SECONDS, why, sizeof why) == 0;
  }
  if (met) {
    MPI_Comm_free(&s->comm);
    open_links--;
  }
  free(s);
}

/* What is swapped once all are up: who runs where. */
static int greet(mpi_state *s, char *why, size_t why_bytes) {
  home mine = { .process = getpid() };
  if (gethostname(mine.host, sizeof mine.host - 1) != 0) snprintf(mine.host, sizeof mine.host, "?");
  if (MPI_Allgather(&mine, sizeof mine, MPI_BYTE, s->homes, sizeof mine, MPI_BYTE, s->comm)
      == MPI_SUCCESS) return 0;
  snprintf(why, why_bytes, "the ranks could not greet each other");
  return -1;
}

/* At the process's end, and only where every link was closed by all ranks together: MPI_Finalize
 * would wait for those that are in the middle of something, and they for this one. A process that
 * leaves without is what launchers take for a failure, which it is. */
static void finalize(void) {
  int done = 0;
  if (open_links == 0 && MPI_Finalized(&done) == MPI_SUCCESS && !done) MPI_Finalize();
}

/* Every link has a communicator of its own, so that messages of two models (a draft, and whom it
 * guesses for) never meet. Errors come back as numbers: MPI would end the process. */
EXPORT int pyr_link_open(int version, pyr_link *out, char *why, size_t why_bytes) {
  int started = 0, ended = 0, have;
  if (version != PYR_LINK_VERSION) {
    snprintf(why, why_bytes, "libpyramid_mpi.so is another version's: build it again (make mpi)");
    return -1;
  }
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  int failed = ended;
  if (!ended && !started) failed = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &have);
  if (failed) {
    snprintf(why, why_bytes, "MPI cannot be started in this process");
    return -1;
  }
  mpi_state *s = calloc(1, sizeof *s);
  if (!s) {
    snprintf(why, why_bytes, "out of memory");
    return -1;
  }
  s->owner = !started;
  if (MPI_Comm_dup(MPI_COMM_WORLD, &s->comm) != MPI_SUCCESS) {
    free(s);
    snprintf(why, why_bytes, "MPI has no communicator for this run");
    return -1;
  }
  MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(s->comm, &s->rank);
  MPI_Comm_size(s->comm, &s->size);
  if (s->size > PYR_RANKS_MAX) {
    snprintf(why, why_bytes, "%d ranks, and at most %d are possible", s->size, PYR_RANKS_MAX);
    free(s);
    return -1;
  }
  if (greet(s, why, why_bytes) != 0) {
    free(s);
    return -1;
  }
  open_links++;
  if (s->owner) atexit(finalize);
  *out = (pyr_link){ s->rank, s->size, s, link_swap, link_close };
  return 0;
}
