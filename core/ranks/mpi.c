/* mpi.c — libpyramid_mpi.so: the link of ranks.h over MPI. `make mpi` builds it with mpicc.
 *
 * Messages go from process to process, and none of MPI's own sums: ranks.c adds up itself. A wait
 * looks now and then whether those that it waits for are still there. Where they run on the same
 * machine their process tells; where they do not, a connection with each (pulse.h). Who is there
 * and does not answer is waited for, as it may compute for long, or have been stopped:
 *
 *     PYRAMID_RANKS_CUT    seconds without a sign of another host after which it is given up (10)
 *     PYRAMID_RANKS_WAIT   seconds without an answer of a process that is there (600)
 *
 * MPI is started here unless the host has, and ended by who started it. A process cannot start it
 * twice, so it stays until the process ends; a run whose ranks all come to the end meets there, one
 * that comes alone does not wait: MPI_Finalize would, for processes that will never come. */
#include "ranks/link.h"
#include "ranks/pulse.h"

#include <errno.h>
#include <math.h>
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

/* LOOK: tests between two looks at the clock, some tens of microseconds. A rank that waits tests
 * for SPIN microseconds, as the others are mostly that close behind, and a sleep, which lasts 70 at
 * the least, would come twice a layer; then it sleeps between looks, so that who shares its
 * processor gets on, as whom it waits for may have to. Where a host has more ranks than processors
 * that is certain, and it sleeps at once. */
enum { TAG = 7, LOOK = 200, SPIN = 200, CLOSE_SECONDS = 3 };

/* Where a rank runs, and is met. Names alone may be those of many hosts ("localhost"), and
 * processes of containers of one host may not see each other: what tells them apart is the kernel's
 * start and the room of process numbers. */
typedef struct home { char host[200], room[120]; int64_t process; pyr_pulse_card card; } home;

typedef struct mpi_state {
  MPI_Comm comm;
  int rank, size;
  bool owner;                  /* this started MPI */
  double wait;                 /* PYRAMID_RANKS_WAIT */
  double spin;                 /* seconds before a wait sleeps */
  pyr_pulse *pulse;            /* NULL: other hosts are not watched */
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

/* The letter of /proc for a process of this machine: 'Z' for what has ended and was not waited for
 * by its launcher yet, 'T' for a stopped one; 0: it has gone; '?': nobody tells. */
static char process_state(pid_t process) {
  if (kill(process, 0) != 0 && errno == ESRCH) return 0;
  char path[64], text[512], *end;
  snprintf(path, sizeof path, "/proc/%lld/stat", (long long)process);
  FILE *f = fopen(path, "re");
  if (!f) return '?';
  char state = fgets(text, sizeof text, f) && (end = strrchr(text, ')')) && end[1] ? end[2] : '?';
  fclose(f);
  return state;
}

static bool is_near(const mpi_state *s, int rank) {
  const home *a = &s->homes[rank], *b = &s->homes[s->rank];
  return strcmp(a->host, b->host) == 0 && strcmp(a->room, b->room) == 0;
}

/* How it is with a rank, as the end of a sentence; *gone: there is nothing to wait for. */
static const char *look_at(const mpi_state *s, int rank, bool *gone) {
  const char *says = "has not answered";
  *gone = false;
  if (is_near(s, rank)) {
    char state = process_state((pid_t)s->homes[rank].process);
    if (state == 'T' || state == 't') says = "is stopped, and has not answered";
    *gone = state == 0 || state == 'Z';
    return *gone ? "has ended" : says;
  }
  switch (pyr_pulse_look(s->pulse, rank)) {
    case PYR_PULSE_THERE: return "is there, but has not answered";
    case PYR_PULSE_UNWATCHED: return says;
    case PYR_PULSE_ENDED: *gone = true; return "has ended";
    case PYR_PULSE_CUT: *gone = true; return "cannot be reached any more: its host or the "
        "network between has gone";
  }
  return says;
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
    double at = now();
    if (began == 0) began = looked = at;
    if (at - began < s->spin) continue;
    nanosleep(&pause, NULL);
    if (at - looked < 0.2) continue;
    looked = at;
    for (int i = 0; i < count; i++) {
      if (s->requests[i] == MPI_REQUEST_NULL || s->from[i] == s->rank) continue;
      bool gone, late = at - began > seconds;
      const char *says = look_at(s, s->from[i], &gone);
      if (!gone && !late) continue;
      char how_long[48] = "";
      if (!gone) snprintf(how_long, sizeof how_long, " for %.0f seconds", seconds);
      snprintf(why, why_bytes, "rank %d (process %lld on %s) %s%s", s->from[i],
               (long long)s->homes[s->from[i]].process, s->homes[s->from[i]].host, says, how_long);
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

/* Receives first, so that what comes finds its place; all in flight at once, with any number of
 * ranks:
 *
 *     rank 0    from 1, from 2, to 1, to 2        waits for the four together
 *
 * Messages of one pair arrive in the order in which they were sent, so one tag serves all. More
 * than an int's bytes are cut by ranks.c's callers; refused here rather than wrapped. */
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
  return wait_all(s, count, s->wait, why, why_bytes);
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
  pyr_pulse_free(s->pulse);
  free(s);
}

/* One request that all take part in; none of them is known yet. */
static int wait_for_all(mpi_state *s, int started, const char *what, char *why, size_t why_bytes) {
  s->from[0] = s->rank, s->expected[0] = SIZE_MAX;
  if (started == MPI_SUCCESS) return wait_all(s, 1, s->wait, why, why_bytes);
  snprintf(why, why_bytes, "%s", what);
  return -1;
}

/* "d2f1… pid:[4026531836]"; what a system does not tell is left out. */
static void name_room(char *out, size_t bytes) {
  char boot[48] = "", space[64] = "";
  FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (f && fgets(boot, sizeof boot, f)) boot[strcspn(boot, "\n")] = 0;
  if (f) fclose(f);
  if (readlink("/proc/self/ns/pid", space, sizeof space - 1) < 0) space[0] = 0;
  snprintf(out, bytes, "%s %s", boot, space);
}

/* What is swapped once all are up: who runs where. Those on other hosts are connected with. */
static int greet(mpi_state *s, double cut, char *why, size_t why_bytes) {
  home mine = { .process = getpid() };
  uint8_t far[PYR_RANKS_MAX] = { 0 };
  if (gethostname(mine.host, sizeof mine.host - 1) != 0) snprintf(mine.host, sizeof mine.host, "?");
  name_room(mine.room, sizeof mine.room);
  s->pulse = pyr_pulse_new(s->rank, s->size, cut, &mine.card);
  int started = MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, s->homes, sizeof mine, MPI_BYTE,
                               s->comm, &s->requests[0]);
  if (wait_for_all(s, started, "the ranks could not greet each other", why, why_bytes) != 0)
    return -1;
  int near = 0;
  for (int i = 0; i < s->size; i++) near += is_near(s, i), far[i] = !is_near(s, i);
  if (near <= sysconf(_SC_NPROCESSORS_ONLN)) s->spin = 1e-6 * SPIN;
  pyr_pulse_card *cards = malloc((size_t)s->size * sizeof *cards);
  for (int i = 0; cards && i < s->size; i++) cards[i] = s->homes[i].card;
  if (cards) pyr_pulse_meet(s->pulse, cards, far);
  free(cards);
  return 0;
}

/* Seconds that the environment names, or `seconds`. -1 with a message where they are none. */
static double read_seconds(const char *name, double seconds, char *why, size_t why_bytes) {
  const char *text = getenv(name);
  if (!text || !*text) return seconds;
  char *end;
  double value = strtod(text, &end);
  if (*end == 0 && isfinite(value) && value >= 1 && value <= 86400) return value;
  snprintf(why, why_bytes, "%s is \"%.40s\", no seconds of 1..86400", name, text);
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
  double wait = read_seconds("PYRAMID_RANKS_WAIT", 600, why, why_bytes);
  double cut = read_seconds("PYRAMID_RANKS_CUT", 10, why, why_bytes);
  if (wait < 0 || cut < 0) return -1;
  mpi_state *s = calloc(1, sizeof *s);
  if (!s) {
    snprintf(why, why_bytes, "out of memory");
    return -1;
  }
  s->owner = !started;
  s->wait = wait;
  MPI_Comm_rank(MPI_COMM_WORLD, &s->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &s->size);
  int made = MPI_Comm_idup(MPI_COMM_WORLD, &s->comm, &s->requests[0]);
  bool fits = s->size <= PYR_RANKS_MAX;
  if (!fits) snprintf(why, why_bytes, "%d ranks, and at most %d are possible", s->size,
                      PYR_RANKS_MAX);
  if (!fits || wait_for_all(s, made, "MPI has no communicator for this run", why, why_bytes) != 0
      || MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN) != MPI_SUCCESS
      || greet(s, cut, why, why_bytes) != 0) {
    pyr_pulse_free(s->pulse);
    free(s);
    return -1;
  }
  open_links++;
  if (s->owner) atexit(finalize);
  *out = (pyr_link){ s->rank, s->size, s, link_swap, link_close };
  return 0;
}
