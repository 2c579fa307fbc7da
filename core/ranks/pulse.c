/* pulse.c — connections that tell whether other hosts are there; see pulse.h.
 *
 * Of three ranks, 0 and 1 on one host, 2 on another:
 *
 *     rank 2 calls every address of 0 and of 1; says 0's secret, and that it is 2
 *     rank 0 answers the first that knows its secret with 2's, and that it is 0
 *     whose call is answered keeps that connection and hangs up the others
 *
 * Secrets travel with the cards, over MPI, which is as safe as the run is. What else finds the port
 * while it is open (some milliseconds) says the wrong thing and is hung up on. */
#include "ranks/pulse.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
enum { MSG_NOSIGNAL = 0 };     /* where a socket says it itself (SO_NOSIGPIPE) */
#endif

/* CALLS: at a time, of all addresses; VISITORS: connections that have not said yet who they are, of
 * whoever finds the port. One that is as good as none leaves its place after PLACE_SECONDS if
 * another waits for it. */
enum { CALLS = 32, VISITORS = 32, MEET_SECONDS = 5, PLACE_SECONDS = 1 };

/* What the higher rank says first, and what the lower one answers: its rank, and the secret of whom
 * it speaks to. */
typedef struct greeting { uint8_t secret[16]; int32_t rank; } greeting;

/* A connection on its way: to or from a rank that is not known yet (-1) for a visitor. */
typedef struct caller {
  int fd, rank;
  bool said;
  double began;
  size_t got;
  greeting heard;
} caller;

/* Those on their way while ranks meet: calls first, visitors after them. `next` is the address to
 * be called next, the first ones of all ranks before the second ones. */
typedef struct meeting {
  const pyr_pulse_card *cards;
  const uint8_t *far;
  int next;
  caller callers[CALLS + VISITORS];
} meeting;

struct pyr_pulse {
  int rank, size, listener;
  bool v6;                     /* the listener takes both kinds */
  double cut;
  uint8_t secret[16];
  int *fds;                    /* [size] -1: not watched */
  pyr_pulse_state *seen;       /* [size] what a socket says once */
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- addresses ------------------------------------------------------------------------------- */

static const uint8_t MAPPED[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

/* All of this host that another may reach: no loopback, and none that only a link knows. */
static void list_addresses(const pyr_pulse *p, pyr_pulse_card *card) {
  struct ifaddrs *all = NULL;
  if (getifaddrs(&all) != 0) return;
  for (const struct ifaddrs *a = all; a && card->count < PYR_PULSE_ADDRESSES; a = a->ifa_next) {
    if (!a->ifa_addr || !(a->ifa_flags & IFF_UP) || a->ifa_flags & IFF_LOOPBACK) continue;
    uint8_t *to = card->address[card->count];
    if (a->ifa_addr->sa_family == AF_INET) {
      struct sockaddr_in v4;
      memcpy(&v4, a->ifa_addr, sizeof v4);
      memcpy(to, MAPPED, 12);
      memcpy(to + 12, &v4.sin_addr, 4);
      card->count++;
    } else if (a->ifa_addr->sa_family == AF_INET6 && p->v6) {
      struct sockaddr_in6 v6;
      memcpy(&v6, a->ifa_addr, sizeof v6);
      if (IN6_IS_ADDR_LINKLOCAL(&v6.sin6_addr)) continue;
      memcpy(to, &v6.sin6_addr, 16);
      card->count++;
    }
  }
  freeifaddrs(all);
}

/* Of a mapped or another address; its length, or 0 where this host has no such kind. */
static socklen_t make_address(const pyr_pulse *p, const uint8_t *address, uint16_t port,
                              struct sockaddr_storage *out) {
  memset(out, 0, sizeof *out);
  if (!p->v6) {
    struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
    if (memcmp(address, MAPPED, 12) != 0) return 0;
    memcpy(&v4.sin_addr, address + 12, 4);
    memcpy(out, &v4, sizeof v4);
    return sizeof v4;
  }
  struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
  memcpy(&v6.sin6_addr, address, 16);
  memcpy(out, &v6, sizeof v6);
  return sizeof v6;
}

static bool prepare(int fd) {
  int flags = fcntl(fd, F_GETFL);
#ifdef SO_NOSIGPIPE
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
  return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0
      && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

/* Both kinds of addresses where the kernel has both. */
static int listen_anywhere(pyr_pulse *p, uint16_t *port) {
  const uint8_t any[2][16] = { { 0 }, { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff } };
  for (int kind = 0; kind < 2; kind++) {
    struct sockaddr_storage at;
    int off = 0, fd = socket(kind == 0 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (fd < 0) continue;
    p->v6 = kind == 0;
    socklen_t length = make_address(p, any[kind], 0, &at);
    if ((kind != 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0)
        && prepare(fd) && bind(fd, (struct sockaddr *)&at, length) == 0 && listen(fd, 128) == 0
        && getsockname(fd, (struct sockaddr *)&at, &length) == 0) {
      struct sockaddr_in v4;                       /* the port is at the same place in both */
      memcpy(&v4, &at, sizeof v4);
      *port = ntohs(v4.sin_port);
      return fd;
    }
    close(fd);
  }
  return -1;
}

static void make_secret(uint8_t *secret) {
  FILE *f = fopen("/dev/urandom", "rbe");
  if (f && fread(secret, 1, 16, f) == 16) {
    fclose(f);
    return;
  }
  if (f) fclose(f);
  struct timespec t;                               /* tells runs apart, if not enemies */
  clock_gettime(CLOCK_REALTIME, &t);
  uint64_t parts[2] = { (uint64_t)t.tv_nsec ^ (uint64_t)t.tv_sec << 30, (uint64_t)getpid() };
  memcpy(secret, parts, 16);
}

pyr_pulse *pyr_pulse_new(int rank, int size, double cut, pyr_pulse_card *mine) {
  memset(mine, 0, sizeof *mine);
  pyr_pulse *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  *p = (pyr_pulse){ .rank = rank, .size = size, .listener = -1, .cut = cut };
  p->fds = malloc((size_t)size * sizeof *p->fds);
  p->seen = calloc((size_t)size, sizeof *p->seen);
  if (p->fds) for (int i = 0; i < size; i++) p->fds[i] = -1;
  if (!p->fds || !p->seen || (p->listener = listen_anywhere(p, &mine->port)) < 0) {
    pyr_pulse_free(p);
    return NULL;
  }
  make_secret(p->secret);
  memcpy(mine->secret, p->secret, sizeof mine->secret);
  list_addresses(p, mine);
  return p;
}

void pyr_pulse_free(pyr_pulse *p) {
  if (!p) return;
  if (p->listener >= 0) close(p->listener);
  for (int i = 0; p->fds && i < p->size; i++) if (p->fds[i] >= 0) close(p->fds[i]);
  free(p->fds);
  free(p->seen);
  free(p);
}

/* ---- to meet --------------------------------------------------------------------------------- */

/* The kernel asks after a third of `cut` seconds without a word, and again, and gives up after
 * them. */
static void keep_alive(int fd, double cut) {
  int on = 1, third = cut < 3 ? 1 : (int)(cut / 3), count = 3;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef TCP_KEEPIDLE
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &third, sizeof third);
#endif
#ifdef TCP_KEEPINTVL
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third, sizeof third);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
#endif
#ifdef TCP_USER_TIMEOUT
  unsigned int milliseconds = (unsigned int)(cut * 1000);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof milliseconds);
#endif
  (void)third, (void)count;
}

static void hang_up(caller *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

/* Twenty bytes on a new connection fit into its buffer, or it is not one to keep. */
static bool say(const pyr_pulse *p, int fd, const uint8_t *secret) {
  greeting mine = { .rank = p->rank };
  memcpy(mine.secret, secret, sizeof mine.secret);
  return send(fd, &mine, sizeof mine, MSG_NOSIGNAL) == (ssize_t)sizeof mine;
}

static bool is_full(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* One address of one rank; where it cannot be tried, another may. False: not now. */
static bool call(const pyr_pulse *p, int rank, const uint8_t *address, uint16_t port, caller *out) {
  struct sockaddr_storage to;
  socklen_t length = make_address(p, address, port, &to);
  *out = (caller){ .fd = -1, .rank = rank, .began = now() };
  if (length == 0) return true;
  if ((out->fd = socket(to.ss_family, SOCK_STREAM, 0)) < 0) return !is_full(errno);
  if (!prepare(out->fd)
      || (connect(out->fd, (struct sockaddr *)&to, length) != 0 && errno != EINPROGRESS))
    hang_up(out);
  return true;
}

/* A rank is met: by the first of its addresses that answers. */
static void keep(pyr_pulse *p, caller *c, int rank) {
  keep_alive(c->fd, p->cut);
  p->fds[rank] = c->fd;
  c->fd = -1;
}

/* Something has come for c, or its connection stands, or has failed. */
static void attend(pyr_pulse *p, caller *c, const pyr_pulse_card *cards, const uint8_t *far) {
  if (c->rank >= 0 && !c->said) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0 || !say(p, c->fd, cards[c->rank].secret)) hang_up(c);
    c->said = true;
    return;
  }
  ssize_t got = recv(c->fd, (char *)&c->heard + c->got, sizeof c->heard - c->got, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    hang_up(c);
    return;
  }
  c->got += (size_t)got;
  if (c->got < sizeof c->heard) return;
  int rank = c->heard.rank;
  bool known = memcmp(c->heard.secret, p->secret, sizeof p->secret) == 0 && rank >= 0
      && rank < p->size && far[rank] && p->fds[rank] < 0
      && (c->rank >= 0 ? rank == c->rank : rank > p->rank);
  if (known && (c->rank >= 0 || say(p, c->fd, cards[rank].secret))) keep(p, c, rank);
  else hang_up(c);
}

static bool is_unmet(const pyr_pulse *p, const meeting *m, int rank) {
  return rank != p->rank && m->far[rank] && m->cards[rank].port != 0 && p->fds[rank] < 0;
}

static bool is_over(const pyr_pulse *p, const meeting *m) {
  for (int i = 0; i < p->size; i++) if (is_unmet(p, m, i)) return false;
  return true;
}

/* A free place among `count`; NULL: none, as yet. */
static caller *find_place(caller *places, int count) {
  double at = now();
  for (int i = 0; i < count; i++) if (places[i].fd < 0) return &places[i];
  for (int i = 0; i < count; i++)
    if (!places[i].said && at - places[i].began > PLACE_SECONDS) {
      hang_up(&places[i]);
      return &places[i];
    }
  return NULL;
}

/* Whether there is an address left to call; m->next is it. */
static bool find_address(const pyr_pulse *p, meeting *m) {
  for (; m->next < p->rank * PYR_PULSE_ADDRESSES; m->next++) {
    int rank = m->next % p->rank;
    if (is_unmet(p, m, rank) && m->next / p->rank < m->cards[rank].count) return true;
  }
  return false;
}

/* As many as there are places and descriptors for; the others' turn comes. */
static void call_some(const pyr_pulse *p, meeting *m) {
  caller *place;
  for (int i = 0; i < CALLS; i++)                  /* somebody may have come by another address */
    if (m->callers[i].fd >= 0 && !is_unmet(p, m, m->callers[i].rank)) hang_up(&m->callers[i]);
  while (find_address(p, m) && (place = find_place(m->callers, CALLS)) != NULL) {
    int rank = m->next % p->rank;
    const pyr_pulse_card *card = &m->cards[rank];
    if (!call(p, rank, card->address[m->next / p->rank], card->port, place)) return;
    m->next++;
  }
}

/* False: there is no descriptor for who has come, who goes on waiting. */
static bool let_in(const pyr_pulse *p, caller *place) {
  int fd = accept(p->listener, NULL, NULL);
  if (fd < 0) return !is_full(errno);
  *place = (caller){ .fd = fd, .rank = -1, .began = now() };
  if (!prepare(fd)) hang_up(place);
  return true;
}

/* Waits for a tenth of a second at most. Polls for what is open alone: a system refuses more
 * entries than a process may have descriptors. */
static void wait_and_attend(pyr_pulse *p, meeting *m) {
  struct pollfd polls[CALLS + VISITORS + 1];
  caller *of[CALLS + VISITORS + 1], *place = find_place(m->callers + CALLS, VISITORS);
  const struct timespec pause = { 0, 20000000 };
  nfds_t count = 0;
  for (int i = 0; i < CALLS + VISITORS; i++) {
    caller *c = &m->callers[i];
    if (c->fd < 0) continue;
    polls[count] = (struct pollfd){ .fd = c->fd,
                                    .events = c->rank >= 0 && !c->said ? POLLOUT : POLLIN };
    of[count++] = c;
  }
  if (place) polls[count] = (struct pollfd){ .fd = p->listener, .events = POLLIN };
  int ready = poll(polls, count + (place != NULL), 100);
  if (ready < 0) nanosleep(&pause, NULL);
  if (ready <= 0) return;
  for (nfds_t i = 0; i < count; i++)
    if (polls[i].revents) attend(p, of[i], m->cards, m->far);
  if (place && polls[count].revents && !let_in(p, place)) nanosleep(&pause, NULL);
}

/* The addresses of all lower ranks are called, and all higher ones come: whoever answers first,
 * stays. An address that two hosts have (of a bridge for containers) leads nowhere, or to one who
 * does not know the secret. */
void pyr_pulse_meet(pyr_pulse *p, const pyr_pulse_card *cards, const uint8_t *far, uint8_t *held) {
  meeting m = { .cards = cards, .far = far };
  if (!p) return;
  for (int i = 0; i < CALLS + VISITORS; i++) m.callers[i].fd = -1;
  for (double end = now() + MEET_SECONDS; !is_over(p, &m) && now() < end;) {
    call_some(p, &m);
    wait_and_attend(p, &m);
  }
  for (int i = 0; i < CALLS + VISITORS; i++) hang_up(&m.callers[i]);
  close(p->listener);
  p->listener = -1;
  for (int i = 0; i < p->size; i++) held[i] = p->fds[i] >= 0;
}

void pyr_pulse_drop(pyr_pulse *p, int rank) {
  if (!p || p->fds[rank] < 0) return;
  close(p->fds[rank]);
  p->fds[rank] = -1;
}

/* ---- to look --------------------------------------------------------------------------------- */

pyr_pulse_state pyr_pulse_look(pyr_pulse *p, int rank) {
  if (!p || p->fds[rank] < 0) return PYR_PULSE_UNWATCHED;
  if (p->seen[rank] != PYR_PULSE_THERE) return p->seen[rank];
  char byte;
  ssize_t got = recv(p->fds[rank], &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
    return PYR_PULSE_THERE;
  /* it ended: an end of file, or a reset; everything else is of the way to it */
  p->seen[rank] = got >= 0 || errno == ECONNRESET || errno == EPIPE ? PYR_PULSE_ENDED
      : PYR_PULSE_CUT;
  return p->seen[rank];
}
