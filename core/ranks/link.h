/* link.h — what carries bytes between the processes of one run, as a table that a plugin fills.
 *
 * One operation is enough: everybody swaps with everybody. What ranks add up, gather or agree upon
 * is made of it in ranks.c, in an order of the core's own, so that results do not depend on who
 * carries them. libpyramid_mpi.so (mpi.c) is the link over MPI. It is built on the machine where it
 * runs, as MPI libraries differ in their ABI, and is opened where it is asked for.
 *
 * Such an object exports one function, PYR_LINK_OPEN, of type pyr_link_open_fn, and calls nothing
 * of the core. */
#ifndef PYR_LINK_H
#define PYR_LINK_H

#include <stddef.h>

/* Both sides' table; raised when one of these structs changes. */
enum { PYR_LINK_VERSION = 1, PYR_RANKS_MAX = 256 };

/* With one other rank; 0 bytes: nothing goes there, or comes from there. */
typedef struct pyr_swap {
  const void *send;
  size_t send_bytes;
  void *recv;
  size_t recv_bytes;
} pyr_swap;

typedef struct pyr_link {
  int rank, size;              /* 0 <= rank < size <= PYR_RANKS_MAX */
  void *state;                 /* the plugin's own */
  /* with [size], of which the own is not looked at. All ranks call it, with sizes that fit. Waits.
   * 0, or -1 where a rank is gone, or sent something else than was waited for: why says which. */
  int (*swap)(void *state, const pyr_swap *with, char *why, size_t why_bytes);
  /* Waits a moment for the others to close, too; never for long. */
  void (*close)(void *state);
} pyr_link;

#define PYR_LINK_OPEN "pyr_link_open"
/* Fills *out. 0, or -1 with `why`. */
typedef int (*pyr_link_open_fn)(int version, pyr_link *out, char *why, size_t why_bytes);

#endif
