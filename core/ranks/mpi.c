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
 * of rank 0's environment, and whole ones.
 *
 * MPI is started here unless the host has, and ended by who started it. A process cannot start it
 * twice, so it stays until the process ends; a run whose ranks all come to the end meets there, one
 * that comes alone does not wait: MPI_Finalize would, for processes that will never come. */
#include "ranks/link.h"
#include "ranks/pulse.h"

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

/* LOOK: tests between two looks at the clock, some tens of microseconds. A rank that waits tests
 * for SPIN microseconds, as the others are mostly that close behind, and a sleep, which lasts 70 at
 * the least, would come twice a layer; then it sleeps between looks, so that who shares its
 * processor gets on, as whom it waits for may have to. Where a host has more ranks than processors
 * that is certain, and it sleeps at once. */
enum { TAG = 7, LOOK = 200, SPIN = 200, CLOSE_SECONDS = 3 };

/* Where a rank runs, and is met. Names alone may be those of many hosts ("localhost"), and
 * processes of containers of one host may not see each other: what tells them apart is the kernel's
 * start and the room of process numbers. */
typedef struct home {
  char host[200], room[120];
  int64_t process, wait, cut;  /* rank 0's seconds are everybody's */
  char fault[120];             /* what is wrong with the rank's environment; "": nothing */
} home;

typedef struct mpi_state {
  MPI_Comm comm;
  int rank, size;
  bool owner;                  /* this started MPI */
  double wait, cut;            /* PYRAMID_RANKS_WAIT, PYRAMID_RANKS_CUT */
  double spin;                 /* seconds before a wait sleeps */
  pyr_pulse *pulse;            /* NULL: other hosts are not watched */
  home homes[PYR_RANKS_MAX];
  pyr_pulse_card cards[PYR_RANKS_MAX];
  uint8_t held[PYR_RANKS_MAX][PYR_RANKS_MAX];        /* [i][j]: i has a connection with j */
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

/* How it is with a rank, as the end of a sentence. A way that was cut while nothing was waited for
 * may be another than MPI's, or stand again: it counts once a wait has lasted as long. */
typedef struct condition { const char *says; enum { THERE, ENDED, CUT } what; } condition;

static condition look_at(const mpi_state *s, int rank, double waited) {
  if (is_near(s, rank)) {
    char state = process_state((pid_t)s->homes[rank].process);
    if (state == 0 || state == 'Z') return (condition){ "has ended", ENDED };
    if (state == 'T' || state == 't')
      return (condition){ "is stopped, and has not answered", THERE };
    return (condition){ "has not answered", THERE };
  }
  switch (pyr_pulse_look(s->pulse, rank)) {
    case PYR_PULSE_THERE: return (condition){ "is there, but has not answered", THERE };
    case PYR_PULSE_ENDED: return (condition){ "has ended", ENDED };
    case PYR_PULSE_CUT:
      if (waited < s->cut) break;
      return (condition){ "cannot be reached any more: its host or the network between has gone",
                          CUT };
    case PYR_PULSE_UNWATCHED: break;
  }
  return (condition){ "has not answered", THERE };
}

/* Whom something is waited for from is looked at; who has delivered may go. -1: one of them has
 * gone, or all take too long. Of several that are gone, a host is the reason rather than an end: it
 * ends others, too. */
static int look_around(mpi_state *s, int count, double waited, double seconds, char *why,
                       size_t why_bytes) {
  int worst = -1;
  condition how = { "", THERE };
  for (int i = 0; i < count; i++) {
    int delivered = 0;
    if (s->requests[i] == MPI_REQUEST_NULL || s->from[i] == s->rank) continue;
    MPI_Request_get_status(s->requests[i], &delivered, MPI_STATUS_IGNORE);
    if (delivered) continue;
    condition each = look_at(s, s->from[i], waited);
    if (worst >= 0 && each.what <= how.what) continue;
    worst = s->from[i], how = each;
  }
  if (how.what == THERE && waited <= seconds) return 0;
  char how_long[48] = "";
  if (how.what == THERE) snprintf(how_long, sizeof how_long, " for %.0f seconds", seconds);
  if (worst >= 0)
    snprintf(why, why_bytes, "rank %d (process %lld on %s) %s%s", worst,
             (long long)s->homes[worst].process, s->homes[worst].host, how.says, how_long);
  else snprintf(why, why_bytes, "the other ranks have not answered%s", how_long);
  return -1;
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
    if (look_around(s, count, at - began, seconds, why, why_bytes) != 0) return -1;
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

/* Whole seconds that the environment names, in digits as no locale writes them otherwise; or
 * `seconds`, and what is wrong with it. */
static int64_t read_seconds(const char *name, int64_t seconds, char *fault, size_t fault_bytes) {
  const char *text = getenv(name), *at = text;
  if (!text || !*text) return seconds;
  int64_t value = 0;
  while (*at >= '0' && *at <= '9' && value <= 86400) value = 10 * value + (*at++ - '0');
  if (*at == 0 && value >= 1 && value <= 86400) return value;
  snprintf(fault, fault_bytes, "%s is \"%.40s\", no whole seconds of 1..86400", name, text);
  return seconds;
}

/* Connects with those on other hosts. What only one side of two holds (its answer came late) is
 * closed by it: all know who holds what before anybody looks. Failing alone would leave the others
 * waiting: who has no network goes on unwatched. */
static int watch(mpi_state *s, char *why, size_t why_bytes) {
  uint8_t far[PYR_RANKS_MAX] = { 0 }, held[PYR_RANKS_MAX] = { 0 };
  pyr_pulse_card mine;
  const char *failed = "the ranks could not say where they are met";
  for (int i = 0; i < s->size; i++) far[i] = !is_near(s, i);
  s->pulse = pyr_pulse_new(s->rank, s->size, s->cut, &mine);
  int started = MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, s->cards, sizeof mine, MPI_BYTE,
                               s->comm, &s->requests[0]);
  if (wait_for_all(s, started, failed, why, why_bytes) != 0) return -1;
  pyr_pulse_meet(s->pulse, s->cards, far, held);
  started = MPI_Iallgather(held, sizeof held, MPI_BYTE, s->held, sizeof held, MPI_BYTE, s->comm,
                           &s->requests[0]);
  if (wait_for_all(s, started, failed, why, why_bytes) != 0) return -1;
  for (int i = 0; i < s->size; i++) if (!s->held[i][s->rank]) pyr_pulse_drop(s->pulse, i);
  return 0;
}

/* What is swapped once all are up: who runs where, and for how long each would wait. An environment
 * that is wrong on one rank is refused by all. */
static int greet(mpi_state *s, char *why, size_t why_bytes) {
  home mine = { .process = getpid() };
  if (gethostname(mine.host, sizeof mine.host - 1) != 0) snprintf(mine.host, sizeof mine.host, "?");
  name_room(mine.room, sizeof mine.room);
  mine.wait = read_seconds("PYRAMID_RANKS_WAIT", 600, mine.fault, sizeof mine.fault);
  mine.cut = read_seconds("PYRAMID_RANKS_CUT", 10, mine.fault, sizeof mine.fault);
  s->wait = (double)mine.wait;
  int started = MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, s->homes, sizeof mine, MPI_BYTE,
                               s->comm, &s->requests[0]);
  if (wait_for_all(s, started, "the ranks could not greet each other", why, why_bytes) != 0)
    return -1;
  int near = 0;
  for (int i = 0; i < s->size; i++) {
    near += is_near(s, i);
    if (s->homes[i].fault[0] == 0) continue;
    snprintf(why, why_bytes, "rank %d: %s", i, s->homes[i].fault);
    return -1;
  }
  s->wait = (double)s->homes[0].wait, s->cut = (double)s->homes[0].cut;
  if (near <= sysconf(_SC_NPROCESSORS_ONLN)) s->spin = 1e-6 * SPIN;
  return near < s->size ? watch(s, why, why_bytes) : 0;       /* the same on all ranks */
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
  s->wait = 600;
  MPI_Comm_rank(MPI_COMM_WORLD, &s->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &s->size);
  int made = MPI_Comm_idup(MPI_COMM_WORLD, &s->comm, &s->requests[0]);
  bool fits = s->size <= PYR_RANKS_MAX;
  if (!fits) snprintf(why, why_bytes, "%d ranks, and at most %d are possible", s->size,
                      PYR_RANKS_MAX);
  if (!fits || wait_for_all(s, made, "MPI has no communicator for this run", why, why_bytes) != 0
      || MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN) != MPI_SUCCESS
      || greet(s, why, why_bytes) != 0) {
    pyr_pulse_free(s->pulse);
    free(s);
    return -1;
  }
  open_links++;
  if (s->owner) atexit(finalize);
  *out = (pyr_link){ s->rank, s->size, s, link_swap, link_close };
  return 0;
}
