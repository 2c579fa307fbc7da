/* pulse_checks.c — ranks of core/ranks/pulse.c without MPI, processes of this machine that meet by
 * its loopback.
 *
 *     pulse_checks many       48 ranks, half of them far from the other half, each with 8 addresses
 *                             and hardly more descriptors than connections: all meet
 *     pulse_checks full       no descriptor for who comes: waits, and does not turn
 *     pulse_checks one-sided  a rank gave up before its answer came: is dropped, has not ended
 *
 * Says what is wrong, and ends with 1. */
#include "ranks/pulse.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 48 };

static struct {
  pyr_pulse_card cards[RANKS];
  uint8_t held[RANKS][RANKS];
  _Atomic int ready, met;
} *shared;

static void fail(const char *what, int a, int b) {
  printf("%s: %d, %d\n", what, a, b);
  fflush(stdout);
  _exit(1);
}

static void allow_descriptors(rlim_t n) {
  struct rlimit limit = { n, n };
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail("setrlimit", (int)n, 0);
}

/* 127.0.0.1 and its neighbours, which are this machine as well. */
static void set_addresses(pyr_pulse_card *card, int count) {
  card->count = (uint16_t)count;
  for (int i = 0; i < count; i++) {
    uint8_t address[16] = { [10] = 0xff, [11] = 0xff, 127, 0, 0, (uint8_t)(i + 1) };
    memcpy(card->address[i], address, 16);
  }
}

static pyr_pulse *begin(int rank, int size, int addresses) {
  pyr_pulse *p = pyr_pulse_new(rank, size, 10, &shared->cards[rank]);
  if (!p) fail("no pulse", rank, size);
  set_addresses(&shared->cards[rank], addresses);
  return p;
}

static void wait_for(_Atomic int *count, int size) {
  atomic_fetch_add(count, 1);
  while (atomic_load(count) < size) usleep(2000);
}

static double processor_seconds(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
       + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void one_of_many(int rank) {
  uint8_t far[RANKS];
  for (int i = 0; i < RANKS; i++) far[i] = i % 2 != rank % 2;
  allow_descriptors(3 + 1 + RANKS / 2 + 6);
  pyr_pulse *p = begin(rank, RANKS, PYR_PULSE_ADDRESSES);
  wait_for(&shared->ready, RANKS);
  pyr_pulse_meet(p, shared->cards, far, shared->held[rank]);
  wait_for(&shared->met, RANKS);
  for (int i = 0; i < RANKS; i++) {
    if (shared->held[rank][i] != far[i]) fail("has not met", rank, i);
    if (far[i] && pyr_pulse_look(p, i) != PYR_PULSE_THERE) fail("is not there", rank, i);
  }
  wait_for(&shared->ready, 2 * RANKS);               /* until all have looked */
  pyr_pulse_free(p);
  _exit(0);
}

static void many(void) {
  int failed = 0, status;
  for (int i = 0; i < RANKS; i++) if (fork() == 0) one_of_many(i);
  for (int i = 0; i < RANKS; i++) {
    wait(&status);
    if (status != 0 && !failed++) atomic_fetch_add(&shared->ready, 2 * RANKS);
  }
  exit(failed != 0);
}

static void full(void) {
  uint8_t far[2] = { 0, 1 }, held[2];
  pyr_pulse *p = begin(0, 2, 1);
  shared->cards[1] = shared->cards[0];
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(shared->cards[0].port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  int visitor = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(visitor, (struct sockaddr *)&to, sizeof to) != 0) fail("connect", 0, 0);
  allow_descriptors((rlim_t)visitor + 1);
  pyr_pulse_meet(p, shared->cards, far, held);
  if (processor_seconds() > 1) fail("turned, milliseconds", (int)(1000 * processor_seconds()), 0);
  pyr_pulse_free(p);
}

/* Rank 1 is played here: it says the right thing, hears the answer, and does not keep it. */
static void one_sided(void) {
  uint8_t far[2] = { 0, 1 }, held[2];
  pyr_pulse *p = begin(0, 2, 1);
  shared->cards[1] = shared->cards[0];
  memset(shared->cards[1].secret, 1, 16);
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(shared->cards[0].port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  struct { uint8_t secret[16]; int32_t rank; } says = { .rank = 1 };
  memcpy(says.secret, shared->cards[0].secret, 16);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0
      || write(fd, &says, sizeof says) != (ssize_t)sizeof says) fail("connect", 1, 0);
  pyr_pulse_meet(p, shared->cards, far, held);
  if (!held[1] || pyr_pulse_look(p, 1) != PYR_PULSE_THERE) fail("not met", 0, 1);
  close(fd);
  pyr_pulse_drop(p, 1);
  if (pyr_pulse_look(p, 1) != PYR_PULSE_UNWATCHED) fail("looked at", 0, 1);
  pyr_pulse_free(p);
}

int main(int argc, char **argv) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED || argc != 2) return 2;
  if (strcmp(argv[1], "many") == 0) many();
  else if (strcmp(argv[1], "full") == 0) full();
  else if (strcmp(argv[1], "one-sided") == 0) one_sided();
  else return 2;
  return 0;
}
