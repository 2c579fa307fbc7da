/* tier_file.c — see tier_file.h. The whole bound is mapped at once, which costs addresses and no
 * memory; only extents that have blocks on the disk are ever touched. */
#include "cache/tier_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct pyr_tier_file {
  pyr_runtime *rt;
  char *map;               /* [count] extents of addresses */
  size_t extent;
  int64_t count, grown;    /* extents there may be; those that have blocks, the first ones */
  int fd;
  uint8_t used[];          /* [count] */
};

/* A byte an extent: of 1 TiB in extents of 128 KiB, 8 MiB. */
static size_t place_bytes(int64_t count) { return sizeof(pyr_tier_file) + (size_t)count; }

static pyr_status refuse(pyr_runtime *rt, const char *path, const char *what, int cause) {
  return pyr_runtime_set_error(rt, cause == ENOMEM ? PYR_MEMORY : PYR_IO, "tier file %s: %s: %s",
                               path, what, strerror(cause));
}

/* O_EXCL: a file that is there belongs to somebody, and is not written over. The name goes as soon
 * as the file is open. */
static pyr_status open_file(pyr_runtime *rt, const char *path, int *fd) {
  *fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (*fd < 0)
    return refuse(rt, path, errno == EEXIST ? "a tier needs a path of its own"
                  : "cannot be made", errno);
  if (unlink(path) == 0) return PYR_OK;
  int cause = errno;
  close(*fd);
  return refuse(rt, path, "cannot be taken off its folder", cause);
}

/* Of 1,000,000 bytes and extents of 131,072: 7. */
pyr_status pyr_tier_file_new(pyr_runtime *rt, const char *path, size_t bytes, size_t extent,
                         pyr_tier_file **out) {
  int64_t count = (int64_t)(bytes / extent);
  int fd;
  if (count < 1)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT,
                                 "tier file %s: of %zu bytes, and takes %zu at a time", path,
                                 bytes, extent);
  pyr_status status = open_file(rt, path, &fd);
  if (status != PYR_OK) return status;
  pyr_tier_file *place = pyr_alloc_zero(rt, place_bytes(count));
  if (!place) {
    close(fd);
    return pyr_nomem(rt, place_bytes(count), "a tier's file");
  }
  void *map = mmap(NULL, (size_t)count * extent, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) {
    status = refuse(rt, path, "cannot be mapped", errno);
    pyr_release(rt, place, place_bytes(count));
    close(fd);
    return status;
  }
  place->rt = rt, place->map = map, place->extent = extent, place->count = count, place->fd = fd;
  *out = place;
  return PYR_OK;
}

/* With the last descriptor and mapping the file is gone, as it has no name. */
void pyr_tier_file_free(pyr_tier_file *place) {
  if (place == NULL) return;
  munmap(place->map, (size_t)place->count * place->extent);
  close(place->fd);
  pyr_release(place->rt, place, place_bytes(place->count));
}

/* The lowest extent that is free has blocks already, unless all below `grown` are used. An
 * interrupted call to the disk is made again. */
pyr_status pyr_tier_file_take(pyr_tier_file *place, void **out) {
  int64_t i = 0;
  while (i < place->count && place->used[i]) i++;
  if (i == place->count)
    return pyr_runtime_set_error(place->rt, PYR_BUDGET,
                                 "the file of a tier is full: all of its %zu bytes are in use",
                                 (size_t)place->count * place->extent);
  if (i == place->grown) {
    int cause;
    do cause = posix_fallocate(place->fd, (off_t)((size_t)i * place->extent),
                               (off_t)place->extent);
    while (cause == EINTR);
    if (cause)
      return pyr_runtime_set_error(place->rt, PYR_IO,
                                   "the file of a tier cannot grow from %zu bytes: %s",
                                   (size_t)i * place->extent, strerror(cause));
    place->grown++;
  }
  place->used[i] = 1;
  *out = place->map + (size_t)i * place->extent;
  return PYR_OK;
}

/* Its blocks stay the file's, for the next that is taken: a file does not shrink while it is used.
 * */
void pyr_tier_file_give(pyr_tier_file *place, void *extent) {
  place->used[(size_t)((char *)extent - place->map) / place->extent] = 0;
}
