/* wire.c — a cable between two network namespaces with a delay, where the kernel has no netem.
 *
 *     wire A B MILLISECONDS OWNER  a device `wire` in each of the namespaces A and B (files)
 *
 * Each packet that one host's kernel hands to its device is written to the other's once the delay
 * is over; their order stays. Returns once both devices are there, and goes on behind until it is
 * ended, or the process OWNER is no more. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

typedef struct packet { struct packet *next; double due; int length; char bytes[]; } packet;
typedef struct way { int from, to; packet *first, **last; } way;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int open_end(const char *space) {
  struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
  int fd = open(space, O_RDONLY), end;
  if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) die(space);
  strcpy(request.ifr_name, "wire");
  if ((end = open("/dev/net/tun", O_RDWR | O_NONBLOCK)) < 0) die("/dev/net/tun");
  if (ioctl(end, TUNSETIFF, &request) != 0) die("TUNSETIFF");
  close(fd);
  return end;
}

static void take_all(way *w, double delay) {
  char bytes[65536];
  for (;;) {
    ssize_t got = read(w->from, bytes, sizeof bytes);
    if (got <= 0) return;
    packet *p = malloc(sizeof *p + (size_t)got);
    if (!p) die("malloc");
    *p = (packet){ .due = now() + delay, .length = (int)got };
    memcpy(p->bytes, bytes, (size_t)got);
    *w->last = p;
    w->last = &p->next;
  }
}

/* What the other host does not take is lost, as on any cable. Returns the seconds to the next. */
static double give_due(way *w) {
  for (packet *p = w->first; p; p = w->first) {
    double rest = p->due - now();
    if (rest > 0) return rest;
    if (write(w->to, p->bytes, (size_t)p->length) < 0 && errno == EAGAIN) return 0.0005;
    w->first = p->next;
    if (!w->first) w->last = &w->first;
    free(p);
  }
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int a = open_end(argv[1]), b = open_end(argv[2]);
  double delay = atof(argv[3]) / 1000;
  way ways[2] = { { .from = a, .to = b }, { .from = b, .to = a } };
  for (int i = 0; i < 2; i++) ways[i].last = &ways[i].first;
  pid_t owner = (pid_t)atoi(argv[4]);
  if (daemon(0, 0) != 0) die("daemon");
  while (kill(owner, 0) == 0 || errno != ESRCH) {      /* looked at once a second, at the least */
    double rest = 1, other;
    for (int i = 0; i < 2; i++) rest = (other = give_due(&ways[i])) < rest ? other : rest;
    struct pollfd polls[2] = { { .fd = a, .events = POLLIN }, { .fd = b, .events = POLLIN } };
    struct timespec wait = { (time_t)rest, (long)((rest - (double)(time_t)rest) * 1e9) };
    ppoll(polls, 2, &wait, NULL);
    for (int i = 0; i < 2; i++) if (polls[i].revents) take_all(&ways[i], delay);
  }
}
