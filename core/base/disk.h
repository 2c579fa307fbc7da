/* disk.h — files of a disk: opened for reading only if they are files, and replaced whole or not at
 * all.
 *
 * Owns: an output until it is committed or abandoned. Knows nothing of what the files hold. Uses no
 * runtime and allocates only what the C library does for a stream, so that the binding writes its
 * reports in the same way as the core its caches. Functions that can fail return false, with a
 * sentence that names the path in `why` and its cause in errno, 0 where the system has none;
 * pyr_disk_status says which status that is, if it is asked at once. */
#ifndef PYR_DISK_H
#define PYR_DISK_H

#include "pyramid.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
  PYR_PATH_BYTES = 4096,           /* of a path with its zero byte: Linux's PATH_MAX */
  PYR_WHY_BYTES = PYR_PATH_BYTES + 256
};

pyr_status pyr_disk_status(void);   /* PYR_MEMORY where errno is ENOMEM, else PYR_IO */

/* What a path names, symbolic links followed. */
typedef enum pyr_kind { PYR_KIND_NONE, PYR_KIND_FILE, PYR_KIND_FOLDER, PYR_KIND_OTHER } pyr_kind;
pyr_kind pyr_disk_kind(const char *path);

/* Opens a regular file for reading. Never waits: a pipe that nobody writes to, a terminal, an
 * endless device are refused, as are folders. *size: its bytes now; more than that should not be
 * read, as some files of /proc have none and never end. */
bool pyr_disk_open(const char *path, int *fd, uint64_t *size, char why[PYR_WHY_BYTES]);

/* A file being written. Until the commit nothing is seen of it but a file ".pyramid-….tmp" of its
 * own in the target's folder; the commit flushes that to the disk and puts it in the target's
 * place. So the target is always one whole file, the old one or one of those that were written; a
 * process that dies leaves only the temporary file. */
typedef struct pyr_output {
  FILE *file;                      /* NULL: closed */
  char target[PYR_PATH_BYTES];     /* the path with symbolic links followed, so that those stay */
  char temporary[PYR_PATH_BYTES + 32];
} pyr_output;

/* A new file's permissions are what the umask leaves, a replaced one's stay. Refused: folders,
 * devices, pipes, and files that may not be written to. */
bool pyr_output_open(pyr_output *out, const char *path, char why[PYR_WHY_BYTES]);
bool pyr_output_write(pyr_output *out, const void *data, size_t bytes, char why[PYR_WHY_BYTES]);
/* Closed afterwards, whatever it returns; where it is false the target is as before. */
bool pyr_output_commit(pyr_output *out, char why[PYR_WHY_BYTES]);
void pyr_output_abandon(pyr_output *out);   /* nothing if it is closed */

#endif
