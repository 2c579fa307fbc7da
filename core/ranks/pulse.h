/* pulse.h — whether the processes of a run that are on other hosts are still there.
 *
 * An MPI library tells late or never that a host has gone: its sockets wait as long as TCP does, a
 * quarter of an hour. So every pair of ranks on different hosts holds a connection of its own, on
 * which nothing is sent once both have said who they are. The kernels keep it:
 *
 *     the process ends, by whatever        its kernel closes the connection: noticed at once
 *     the cable, the switch, the host      keepalives are not answered: `cut` seconds
 *     the process computes, or is stopped  its kernel answers for it: it is there
 *
 * Where no connection comes about (a firewall), such ranks are not watched. Part of a link's
 * plugin: calls nothing of the core. */
#ifndef PYR_PULSE_H
#define PYR_PULSE_H

#include <stdint.h>

enum { PYR_PULSE_ADDRESSES = 8 };

/* Where a rank is met, which all tell each other before they connect. IPv4 addresses are mapped
 * into IPv6's; port 0: nowhere. */
typedef struct pyr_pulse_card {
  uint8_t secret[16];          /* whoever knows it is of this run */
  uint8_t address[PYR_PULSE_ADDRESSES][16];
  uint16_t count, port;
} pyr_pulse_card;

typedef enum pyr_pulse_state { PYR_PULSE_THERE, PYR_PULSE_UNWATCHED, PYR_PULSE_ENDED,
                               PYR_PULSE_CUT } pyr_pulse_state;

typedef struct pyr_pulse pyr_pulse;

/* Listens, and fills the card. NULL where there is no memory, or no network. */
pyr_pulse *pyr_pulse_new(int rank, int size, double cut, pyr_pulse_card *mine);
/* Connects with the ranks of which far[i] is set, the higher of two to the lower; cards [size].
 * Waits for a few seconds at most, and listens no longer. held[i]: there is a connection. */
void pyr_pulse_meet(pyr_pulse *p, const pyr_pulse_card *cards, const uint8_t *far, uint8_t *held);
/* A rank that does not hold its end (it waited no longer than the answer took) is not watched: its
 * end would look like the rank's. */
void pyr_pulse_drop(pyr_pulse *p, int rank);
/* Looks, without waiting. Of NULL: unwatched. */
pyr_pulse_state pyr_pulse_look(pyr_pulse *p, int rank);
void pyr_pulse_free(pyr_pulse *p);

#endif
