/* disk.c — see disk.h. The order of a commit: flush the stream, fsync the file, close, rename,
 * fsync the folder. After a power failure between any two of them the target is the old file or the
 * new one. */
#include "base/disk.h"
#include "base/fingerprint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
  LINKS_MAX = 40,                  /* symbolic links followed, as many as Linux follows */
  ATTEMPTS = 100                   /* at a temporary name that nobody has */
};

/* ---- messages -------------------------------------------------------------------------------- */

static bool fail(char why[PYR_WHY_BYTES], const char *path, const char *what, int error) {
  snprintf(why, PYR_WHY_BYTES, "%s: %s%s%s", path, what, *what && error ? ": " : "",
           error ? strerror(error) : "");
  errno = error;
  return false;
}

pyr_status pyr_disk_status(void) { return errno == ENOMEM ? PYR_MEMORY : PYR_IO; }

static const char *name_of(mode_t mode) {
  return S_ISDIR(mode) ? "is a directory" : S_ISFIFO(mode) ? "is a pipe, not a regular file"
         : S_ISCHR(mode) || S_ISBLK(mode) ? "is a device, not a regular file"
             : "not a regular file";
}

/* ---- reading --------------------------------------------------------------------------------- */

pyr_kind pyr_disk_kind(const char *path) {
  struct stat st;
  if (stat(path, &st) != 0) return PYR_KIND_NONE;
  return S_ISREG(st.st_mode) ? PYR_KIND_FILE : S_ISDIR(st.st_mode) ? PYR_KIND_FOLDER
      : PYR_KIND_OTHER;
}

/* Asked twice: before it is opened, as opening a device may do something; and of what was opened,
 * which may be another. */
bool pyr_disk_open(const char *path, int *fd, uint64_t *size, char why[PYR_WHY_BYTES]) {
  struct stat st;
  if (stat(path, &st) != 0) return fail(why, path, "", errno);
  if (!S_ISREG(st.st_mode)) return fail(why, path, name_of(st.st_mode), 0);
  int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (opened < 0) return fail(why, path, "", errno);
  if (fstat(opened, &st) != 0) fail(why, path, "", errno);
  else if (!S_ISREG(st.st_mode)) fail(why, path, name_of(st.st_mode), 0);
  else {
    *fd = opened;
    *size = st.st_size > 0 ? (uint64_t)st.st_size : 0;
    return true;
  }
  close(opened);
  return false;
}

uint64_t pyr_disk_hash(const void *data, size_t bytes) {
  return pyr_fnv(PYR_FNV_START, data, bytes);
}

/* ---- folders --------------------------------------------------------------------------------- */

/* A folder that somebody else has made meanwhile is as good. */
bool pyr_disk_make_folder(const char *path, char why[PYR_WHY_BYTES]) {
  if (mkdir(path, 0777) == 0) return true;
  int error = errno;
  if (error == EEXIST && pyr_disk_kind(path) == PYR_KIND_FOLDER) return true;
  return fail(why, path, "the folder cannot be made", error);
}

/* Both times, as a file's owner or whoever may write to it can. */
bool pyr_disk_touch(const char *path, char why[PYR_WHY_BYTES]) {
  return utimensat(AT_FDCWD, path, NULL, 0) == 0 || fail(why, path, "", errno);
}

bool pyr_folder_open(pyr_folder *folder, const char *path, char why[PYR_WHY_BYTES]) {
  folder->dir = opendir(path);
  return folder->dir != NULL || fail(why, path, "", errno);
}

/* Asked of the folder itself, so that a folder that is renamed meanwhile does no harm. Links are
 * not followed: what a link names is not the folder's to count or to remove. */
bool pyr_folder_next(pyr_folder *folder, pyr_folder_entry *out) {
  const struct dirent *entry;
  struct stat st;
  while ((entry = readdir(folder->dir)) != NULL) {
    size_t length = strlen(entry->d_name);
    if (length >= sizeof out->name) continue;
    if (fstatat(dirfd(folder->dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (!S_ISREG(st.st_mode)) continue;
    memcpy(out->name, entry->d_name, length + 1);
    out->bytes = st.st_size > 0 ? (uint64_t)st.st_size : 0;
    out->changed = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    return true;
  }
  return false;
}

void pyr_folder_close(pyr_folder *folder) {
  if (folder->dir) closedir(folder->dir);
  folder->dir = NULL;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The folder of a path, with its slash; empty for the current one. */
static size_t folder_bytes(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? (size_t)(slash - path) + 1 : 0;
}

/* Follows the links of the last component: to a file, or to a name where there is none yet. */
static bool follow(char target[PYR_PATH_BYTES], const char *path, char why[PYR_WHY_BYTES]) {
  char link[PYR_PATH_BYTES];
  if (strlen(path) >= PYR_PATH_BYTES) return fail(why, path, "", ENAMETOOLONG);
  strcpy(target, path);
  for (int links = 0; ; links++) {
    ssize_t length = readlink(target, link, sizeof link - 1);
    /* EINVAL: no link */
    if (length < 0) return errno == EINVAL || errno == ENOENT ? true : fail(why, path, "", errno);
    if (links == LINKS_MAX) return fail(why, path, "", ELOOP);
    link[length] = 0;
    size_t folder = link[0] == '/' ? 0 : folder_bytes(target);
    if (folder + (size_t)length >= PYR_PATH_BYTES) return fail(why, path, "", ENAMETOOLONG);
    memcpy(target + folder, link, (size_t)length + 1);
  }
}

/* A number that no other process or thread has at this moment; O_EXCL is what makes sure. */
static uint64_t unlikely_number(const void *here, int attempt) {
  struct timespec now = { 0, 0 };
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t mix = (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20 ^ (
      uint64_t)getpid() << 40
                 ^ (uint64_t)(uintptr_t)here ^ (uint64_t)attempt << 56;
  mix = (mix ^ mix >> 30) * 0xbf58476d1ce4e5b9u;
  mix = (mix ^ mix >> 27) * 0x94d049bb133111ebu;
  return mix ^ mix >> 31;
}

bool pyr_output_open(pyr_output *out, const char *path, char why[PYR_WHY_BYTES]) {
  struct stat st;
  int fd = -1, error;
  out->file = NULL;
  if (!*path) return fail(why, "(no path)", "", ENOENT);
  if (!follow(out->target, path, why)) return false;
  bool replaces = stat(out->target, &st) == 0;
  if (!replaces && errno != ENOENT) return fail(why, path, "", errno);
  if (replaces && !S_ISREG(st.st_mode)) return fail(why, path, name_of(st.st_mode), 0);
  if (replaces && access(out->target, W_OK) != 0)
    return fail(why, path, "cannot be replaced", errno);
  for (int attempt = 0; attempt < ATTEMPTS && fd < 0; attempt++) {
    snprintf(out->temporary, sizeof out->temporary, "%.*s.pyramid-%012llx.tmp",
             (int)folder_bytes(out->target), out->target,
                 (unsigned long long)(unlikely_number(out, attempt) >> 16));
    fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
              replaces ? 0600 : 0666);
    if (fd < 0 && errno != EEXIST) return fail(why, path, "no file can be made beside it", errno);
  }
  if (fd < 0) return fail(why, path, "no file can be made beside it", EEXIST);
  if (replaces && fchmod(fd, st.st_mode & 07777) != 0) goto fail;
  out->file = fdopen(fd, "wb");
  if (out->file) return true;
fail:
  error = errno;
  close(fd);
  unlink(out->temporary);
  return fail(why, path, "cannot be written", error);
}

bool pyr_output_write(pyr_output *out, const void *data, size_t bytes, char why[PYR_WHY_BYTES]) {
  if (bytes == 0 || fwrite(data, 1, bytes, out->file) == bytes) return true;
  return fail(why, out->target, "cannot be written", errno);
}

/* The folder's entry, too, must be on the disk. Some file systems know no such thing, which is no
 * failure. */
static bool flush_folder(const char *target) {
  char folder[PYR_PATH_BYTES];
  size_t bytes = folder_bytes(target);
  snprintf(folder, sizeof folder, "%.*s", bytes ? (int)bytes : 1, bytes ? target : ".");
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return true;
  bool done = fsync(fd) == 0 || errno != EIO;
  close(fd);
  return done;
}

bool pyr_output_commit(pyr_output *out, char why[PYR_WHY_BYTES]) {
  bool good = fflush(out->file) == 0 && fsync(fileno(out->file)) == 0;
  int error = errno;
  if (fclose(out->file) != 0 && good) good = false, error = errno;
  out->file = NULL;
  if (good && rename(out->temporary, out->target) != 0) good = false, error = errno;
  if (!good) {
    unlink(out->temporary);
    return fail(why, out->target, "cannot be written", error);
  }
  return flush_folder(out->target) || fail(why, out->target,
                                           "the folder cannot be flushed to the disk", EIO);
}

void pyr_output_abandon(pyr_output *out) {
  if (!out->file) return;
  fclose(out->file);
  out->file = NULL;
  unlink(out->temporary);
}
