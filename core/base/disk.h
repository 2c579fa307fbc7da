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

/* Makes a folder, unless there is one of that name. Its own folder must be there. */
bool pyr_disk_make_folder(const char *path, char why[PYR_WHY_BYTES]);
/* Says that a file was used just now: sets when it was last changed. */
bool pyr_disk_touch(const char *path, char why[PYR_WHY_BYTES]);

/* What a file may be named after that holds something of these bytes: FNV-1a, of 64 bits. */
uint64_t pyr_disk_hash(const void *data, size_t bytes);

/* What lies in a folder, one after the other, in no order. */
typedef struct pyr_folder {
  void *dir;                       /* NULL: closed */
} pyr_folder;
typedef struct pyr_folder_entry {
  char name[256];                  /* without the folder */
  uint64_t bytes;
  int64_t changed;                 /* nanoseconds since 1970 */
} pyr_folder_entry;

bool pyr_folder_open(pyr_folder *folder, const char *path, char why[PYR_WHY_BYTES]);
/* The next regular file; false after the last. Files that vanish meanwhile, and names of more than
 * 255 bytes, are passed over. */
bool pyr_folder_next(pyr_folder *folder, pyr_folder_entry *out);
void pyr_folder_close(pyr_folder *folder);  /* nothing if it is closed */

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
