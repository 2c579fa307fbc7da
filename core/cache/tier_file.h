/* tier_file.h — the file that a tier's pages lie in: mapped, so that the system keeps in memory
 * what is read and writes back what is not, and bounded, so that it never grows beyond what was
 * said.
 *
 * Memory is handed out in extents of one size, as slabs of a pool (pages.c) are:
 *
 *     file   [extent 0][extent 1][extent 2] …            at most `count` of them
 *               used      free      used                  the lowest free one is taken first
 *
 * An extent has its blocks on the disk (posix_fallocate) before anything is written to it: a disk
 * that is full is an error of the call that wanted room, and no SIGBUS later. The file has no name
 * once it is open: nobody can shorten it, no path can vanish under it, and a process that dies
 * leaves nothing behind. */
#ifndef PYR_TIER_FILE_H
#define PYR_TIER_FILE_H

#include "base/runtime.h"

typedef struct pyr_tier_file pyr_tier_file;

/* A file at a path where there is none yet, which is taken off the folder at once; of at most
 * `bytes`, whole extents of them. PYR_IO: the path is taken, or no file can be made there, or
 * mapped; PYR_ARGUMENT: not even one extent fits; PYR_MEMORY. */
pyr_status pyr_tier_file_new(pyr_runtime *rt, const char *path, size_t bytes, size_t extent,
                         pyr_tier_file **out);
void pyr_tier_file_free(pyr_tier_file *place);   /* NULL is legal; no extent is in use any more */
/* PYR_BUDGET: all extents are in use; PYR_IO: the disk has no room. Then nothing has changed. */
pyr_status pyr_tier_file_take(pyr_tier_file *place, void **out);
void pyr_tier_file_give(pyr_tier_file *place, void *extent);

#endif
