/* link_checks.c — a host program that uses libpyramid_mpi.so as the core does; built by mpicc, and
 * run by mpirun.
 *
 *     link_checks LINK listens         once a link is open, nothing listens that it has opened
 *     link_checks LINK delivered       of three ranks one sends and ends, which the first may not
 *                                      mind while it waits for the other
 *     link_checks LINK blink           of two hosts, whose connection breaks where MPI's stands:
 *                                      counts once the wait has lasted PYRAMID_RANKS_CUT seconds
 *     link_checks LINK waits SECONDS RANK  of two ranks that one answers after so many seconds
 *
 * Each rank says "ok", or what is wrong. */
#include "ranks/link.h"

#include <dlfcn.h>
#include <mpi.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static pyr_link run;
static char why[400];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int say(const char *what, const char *more) {
  int ok = strcmp(what, "ok") == 0;
  printf("rank %d: %s%s\n", run.rank, what, ok ? "" : more);
  fflush(stdout);
  return !ok;
}

/* Without MPI_Finalize, which others may not come to. */
static void leave(const char *what, const char *more) { _exit(say(what, more)); }

static int option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  return getsockopt(fd, level, name, &value, &length) == 0 ? value : 0;
}

/* Sockets of this process that listen; `broken`: those of which the kernel asks for so many
 * milliseconds whether the other end is there, which are put out of use. */
static int count_sockets(int broken) {
  int count = 0;
  for (int fd = 0; fd < 1024; fd++) {
    if (!broken) count += option(fd, SOL_SOCKET, SO_ACCEPTCONN) != 0;
    else if (option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == broken) {
      int other = socket(AF_INET, SOCK_STREAM, 0);
      dup2(other, fd);
      close(other);
      count++;
    }
  }
  return count;
}

/* One byte with each rank of which the letter says so: 's'ends, 'r'eceives, 'b'oth. */
static int swap(const char *how) {
  static char bytes[2][PYR_RANKS_MAX];
  pyr_swap with[PYR_RANKS_MAX] = { 0 };
  for (int i = 0; how[i]; i++)
    with[i] = (pyr_swap){ &bytes[0][i], how[i] == 's' || how[i] == 'b', &bytes[1][i],
                          how[i] == 'r' || how[i] == 'b' };
  return run.swap(run.state, with, why, sizeof why);
}

/* The launcher would end all of a run whose first process has left: it waits until that is over. */
static void delivered(void) {
  if (run.rank == 1) {
    if (swap("s..") != 0) leave("cannot send: ", why);
    kill(getppid(), SIGSTOP);
    usleep(300000);                      /* until the byte is where it should be */
    _exit(0);
  }
  if (run.rank == 2) {
    usleep(2500000);
    leave(swap("s..") == 0 ? "ok" : "cannot send: ", why);
  }
  int failed = say(swap(".rr") ? "did not wait: " : "ok", why);
  kill(getppid(), SIGCONT);              /* which may end this process at once */
  _exit(failed);
}

static void blink(void) {
  const char *both = run.rank == 0 ? ".b" : "b.";
  int cut = atoi(getenv("PYRAMID_RANKS_CUT"));
  if (swap(both) != 0) leave("cannot swap: ", why);
  if (run.rank == 0 && count_sockets(1000 * cut) != 1) leave("has no connection", "");
  if (run.rank == 1) sleep((unsigned)cut / 2);
  if (swap(both) != 0) leave("ended by a blink: ", why);
  if (run.rank == 1) {
    sleep((unsigned)(2 * cut));
    leave("ok", "");
  }
  double began = now();
  if (swap(both) == 0) leave("swapped with nobody", "");
  if (now() - began < cut - 0.5) leave("ended before its time: ", why);
  leave(strstr(why, "cannot be reached any more") ? "ok" : "another reason: ", why);
}

int main(int argc, char **argv) {
  if (argc < 3 || (strcmp(argv[2], "waits") == 0 && argc < 5)) return 2;
  MPI_Init(NULL, NULL);
  int before = count_sockets(0);
  pyr_link_open_fn open;
  void *library = dlopen(argv[1], RTLD_NOW);
  *(void **)&open = library ? dlsym(library, PYR_LINK_OPEN) : NULL;
  if (!open) leave("no library: ", dlerror());
  if (open(PYR_LINK_VERSION, &run, why, sizeof why) != 0) leave("not opened: ", why);
  if (strcmp(argv[2], "delivered") == 0) delivered();
  if (strcmp(argv[2], "blink") == 0) blink();
  if (strcmp(argv[2], "listens") == 0 && count_sockets(0) != before) leave("listens", "");
  if (strcmp(argv[2], "waits") == 0) {
    const char *both = run.rank == 0 ? ".b" : "b.";
    if (run.rank == atoi(argv[4])) sleep((unsigned)atoi(argv[3]));
    if (swap(both) != 0) leave("did not wait: ", why);
  }
  run.close(run.state);
  MPI_Finalize();
  printf("rank %d: ok\n", run.rank);
  return 0;
}
