/* weights.c — files mapped into memory or read into it, and the check that turns a tensor's
 * description into a view of one.
 *
 * A file is mapped once, whole, private and read-only; the pages come in as they are touched, and
 * the kernel may drop them again, so mapped weights do not count against the runtime's memory
 * limit. The mapping outlives the descriptor. Whoever shortens a file while it is mapped, or takes
 * away the disk below it, ends the process (SIGBUS): that is what a mapping is. Where this may
 * happen the file is read (pyr_file_read), and its bytes are the runtime's, and count.
 *
 * The check believes nothing: every quantity of a description is compared with the mapping by
 * subtraction, never by a sum that could wrap. */
#include "base/weights.h"
#include "base/disk.h"
#include "base/dtype.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PIECE = 1 << 26 };  /* bytes: of alignment, where a file is read; of one read */

struct pyr_file {
  pyr_runtime *rt;
  int refs;
  const void *data;            /* page-aligned */
  size_t size;
  void *block;                 /* what it was read into, counted; NULL: mapped */
  size_t block_bytes;
  size_t path_size;
  char path[];
};

/* All of a file into memory of the runtime's, which begins at a page as a mapping does. */
static pyr_status read_whole(pyr_file *file, int fd) {
  pyr_runtime *rt = file->rt;
  file->block_bytes = file->size + PAGE;
  file->block = pyr_alloc(rt, file->block_bytes);
  if (!file->block) return pyr_nomem(rt, file->block_bytes, "reading a file");
  char *data = (char *)file->block + (-(uintptr_t)file->block & (PAGE - 1));
  file->data = data;
  for (size_t at = 0; at < file->size;) {
    size_t wanted = file->size - at < PIECE ? file->size - at : PIECE;
    ssize_t n = pread(fd, data + at, wanted, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return pyr_runtime_set_error(rt, PYR_IO, "%s: cannot be read: %s", file->path,
                                   n < 0 ? strerror(errno) : "it became shorter");
    at += (size_t)n;
  }
  return PYR_OK;
}

static pyr_status open_file(pyr_runtime *rt, const char *path, bool map, pyr_file **out) {
  if (!path || !out) return pyr_runtime_set_error(rt, PYR_ARGUMENT, "file: no path");
  size_t path_size = strlen(path) + 1;
  char why[PYR_WHY_BYTES];
  pyr_file *file = NULL;
  pyr_status status = PYR_OK;
  uint64_t size;
  int fd;
  if (!pyr_disk_open(path, &fd, &size, why))
    return pyr_runtime_set_error(rt, pyr_disk_status(), "%s", why);
  if (size == 0) { status = pyr_runtime_set_error(rt, PYR_IO, "%s: the file is empty",
                                                  path); goto done; }
  if (size > SIZE_MAX / 2) { status = pyr_runtime_set_error(rt, PYR_IO, "%s: too large to map",
                                                            path); goto done; }
  file = pyr_alloc_zero(rt, sizeof *file + path_size);
  if (!file) { status = pyr_nomem(rt, sizeof *file + path_size, "a file"); goto done; }
  file->rt = pyr_runtime_retain(rt);
  file->refs = 1;
  file->path_size = path_size;
  memcpy(file->path, path, path_size);
  file->size = (size_t)size;
  if (!map) status = read_whole(file, fd);
  else {
    void *data = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
      status = pyr_runtime_set_error(rt, pyr_disk_status(), "%s: cannot map: %s", path,
                                     strerror(errno));
    else file->data = data;
  }
done:
  close(fd);
  if (status == PYR_OK) *out = file;
  else pyr_file_free(file);
  return status;
}

pyr_status pyr_file_open(pyr_runtime *rt, const char *path, pyr_file **out) {
  return open_file(rt, path, true, out);
}
pyr_status pyr_file_read(pyr_runtime *rt, const char *path, pyr_file **out) {
  return open_file(rt, path, false, out);
}

pyr_file *pyr_file_retain(pyr_file *file) {
  file->refs++;
  return file;
}

void pyr_file_free(pyr_file *file) {
  if (!file || --file->refs > 0) return;
  pyr_runtime *rt = file->rt;
  if (file->block) pyr_release(rt, file->block, file->block_bytes);
  else if (file->data) munmap((void *)(uintptr_t)file->data, file->size);
  pyr_release(rt, file, sizeof *file + file->path_size);
  pyr_runtime_free(rt);
}

uint64_t pyr_file_size(const pyr_file *file) { return file->size; }
const char *pyr_file_path(const pyr_file *file) { return file->path; }
const void *pyr_file_data(const pyr_file *file) { return file->data; }
bool pyr_file_mapped(const pyr_file *file) { return file->block == NULL; }

void pyr_file_forget(pyr_file *file, const void *at, size_t bytes) {
  if (file->block) return;
  size_t page = (size_t)sysconf(_SC_PAGESIZE),
      offset = (size_t)((const char *)at - (const char *)file->data);
  if (offset > file->size || bytes > file->size - offset) return;
  /* neighbours keep their pages */
  size_t begin = (offset + page - 1) / page * page, end = (offset + bytes) / page * page;
  if (begin < end) madvise((char *)(uintptr_t)file->data + begin, end - begin, MADV_DONTNEED);
}

pyr_status pyr_tensor_view(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_tensor *view,
                           bool *aligned) {
  const char *name = spec->name ? spec->name : "(unnamed)";
  if (!spec->file) return pyr_runtime_set_error(rt, PYR_FORMAT, "tensor %s: no file", name);
  const pyr_file *file = spec->file;
#define BAD(...) pyr_runtime_set_error(rt, PYR_FORMAT, __VA_ARGS__)
  if (!pyr_dtype_valid((int)spec->dtype))
    return BAD("%s: tensor %s: unknown dtype %d", file->path, name, (int)spec->dtype);
  if (spec->rank != 1 && spec->rank != 2)
    return BAD("%s: tensor %s: rank %d, not 1 or 2", file->path, name, spec->rank);
  int64_t rows = spec->rank == 2 ? spec->shape[0] : 1, cols = spec->shape[spec->rank - 1];
  if (rows < 1 || cols < 1)
    return BAD("%s: tensor %s: a dimension of %lld", file->path, name,
               (long long)(rows < 1 ? rows : cols));
  if (cols % pyr_dtype_block(spec->dtype) != 0)
    return BAD("%s: tensor %s: rows of %lld values are no multiple of %s's block of %d",
               file->path, name, (long long)cols, pyr_dtype_name(spec->dtype),
                   pyr_dtype_block(spec->dtype));
  size_t stride = pyr_dtype_bytes(spec->dtype, cols), bytes;
  if (stride == 0 || (uint64_t)rows > SIZE_MAX || !pyr_mul_size(stride, (size_t)rows, &bytes))
    return BAD("%s: tensor %s: shape overflows", file->path, name);
  if (spec->bytes != bytes)
    return BAD("%s: tensor %s: %llu bytes, where shape and dtype need %llu", file->path, name,
               (unsigned long long)spec->bytes, (unsigned long long)bytes);
  if (spec->offset > file->size || bytes > file->size - spec->offset)
    return BAD("%s: tensor %s: bytes %llu..%llu lie outside the file of %llu", file->path, name,
               (unsigned long long)spec->offset, (unsigned long long)(spec->offset + bytes),
                   (unsigned long long)file->size);
#undef BAD
  const char *data = (const char *)file->data + spec->offset;
  *aligned = (uintptr_t)data % pyr_dtype_align(spec->dtype) == 0;
  *view = (pyr_tensor){ .data = data, .dtype = spec->dtype, .rank = spec->rank, .stride = stride };
  view->shape[0] = spec->rank == 2 ? rows : cols;
  view->shape[1] = spec->rank == 2 ? cols : 1;
  if (spec->rank == 1)
    view->stride = pyr_dtype_block(spec->dtype) == 1 ? pyr_dtype_block_bytes(spec->dtype) : 0;
  return PYR_OK;
}
