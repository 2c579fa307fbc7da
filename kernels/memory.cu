/* memory.cu — what every operation of the CUDA backend calls: how errors are told, and memory, that
 * of the device, the scratch, and the tables of descriptions.
 *
 * Owns the table's memory operations, and what of pyr_cuda they fill. Lies below the operations and
 * calls none of them. Device memory comes from the device's own pool in the order of the stream,
 * and counts against the runtime's limit. A failed launch or copy is reported by the operation that
 * issued it where the device knows by then, else by the next that waits.
 *
 * Where things lie, and who waits for whom:
 *
 *     host                                     device
 *     ring (page-locked)  --- copy --->        table: descriptions that kernels read
 *                                              scratch: numbers between kernels of one operation
 *                                              arrived: counters, 0 between kernels
 *     download            <--- copy ---        what was computed; the call waits for it
 *
 * All copies and kernels are on one stream: what was issued first is done first. So the table may
 * be written over by the next copy while the host runs ahead, and only the ring needs events. */
#include "cuda.cuh"

#include <cstring>

#ifdef PYR_EMULATED
extern const char cuda_name[] = "emulated";
#else
extern const char cuda_name[] = "cuda";
#endif

/* Bytes: one lane of half a million rows; small vectors. The emulator's ring is small, so that
 * specs go round it. */
#ifdef PYR_EMULATED
enum : size_t { LEAST_TABLE = 1 << 9 };
#else
enum : size_t { LEAST_TABLE = 1 << 17 };
#endif
enum : size_t { LEAST_SCRATCH = 1 << 16 };

/* ---- errors ---------------------------------------------------------------------------------- */

/* CUDA keeps an error until it is asked for, and tells it to whoever asks: here it is taken, so
 * that the next operation is not blamed for it. Out of memory is a code of its own, as a caller can
 * do something about it: a shorter cache, fewer sequences. */
pyr_status cuda_status(pyr_backend *be, const char *operation, cudaError_t error) {
  if (error == cudaSuccess) return PYR_OK;
  (void)cudaGetLastError();                          /* or a later call would be told of it again */
  pyr_status status = error == cudaErrorMemoryAllocation ? PYR_MEMORY : PYR_DEVICE;
  return cuda_of(be)->host->set_error(be->rt, status, "%s: %s: %s", cuda_name, operation,
                                      cudaGetErrorString(error));
}

pyr_status cuda_refuse(pyr_backend *be, const char *operation, const char *what) {
  return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT, "%s: %s", operation, what);
}

/* What a caller did not reserve is its fault, and told before anything is launched. */
pyr_status cuda_check(pyr_backend *be, const char *operation, size_t needed) {
  pyr_cuda *cuda = cuda_of(be);
  if (needed <= cuda->scratch_bytes) return PYR_OK;
  return cuda->host->set_error(be->rt, PYR_ARGUMENT,
                               "%s needs %zu bytes of scratch, and %zu are reserved", operation,
                                   needed, cuda->scratch_bytes);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Counted first, so that the limit holds before memory is asked for. Zero bytes are one: an address
 * tells it from a failure. */
static void *cuda_alloc(pyr_backend *be, size_t bytes) {
  pyr_cuda *cuda = cuda_of(be);
  void *ptr = nullptr;
  if (!cuda->host->charge(be->rt, bytes)) return nullptr;
  if (cudaMallocAsync(&ptr, bytes ? bytes : 1, cuda->stream) == cudaSuccess) return ptr;
  (void)cudaGetLastError();
  cuda->host->discharge(be->rt, bytes);
  return nullptr;
}

/* In the order of the stream: kernels issued before it still find the memory. */
static void cuda_release(pyr_backend *be, void *ptr, size_t bytes) {
  if (ptr == nullptr) return;
  (void)cudaFreeAsync(ptr, cuda_of(be)->stream);
  cuda_of(be)->host->discharge(be->rt, bytes);
}

/* Page-locked memory of the host's, for copies that the device makes by itself while the host goes
 * on; given back when the copies out of it are done. */
static void *lock_alloc(pyr_backend *be, size_t bytes) {
  pyr_cuda *cuda = cuda_of(be);
  void *ptr = nullptr;
  if (!cuda->host->charge(be->rt, bytes)) return nullptr;
  if (cudaHostAlloc(&ptr, bytes, cudaHostAllocDefault) == cudaSuccess) return ptr;
  (void)cudaGetLastError();
  cuda->host->discharge(be->rt, bytes);
  return nullptr;
}

static void lock_release(pyr_backend *be, void *ptr, size_t bytes) {
  if (ptr == nullptr) return;
  (void)cudaStreamSynchronize(cuda_of(be)->stream);
  (void)cudaFreeHost(ptr);
  cuda_of(be)->host->discharge(be->rt, bytes);
}

/* Source and destination may overlap only if they are the same. */
static pyr_status cuda_copy(pyr_backend *be, void *dst, const void *src, size_t bytes) {
  if (bytes == 0 || dst == src) return PYR_OK;
  return cuda_status(be, "copy", cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice,
                                                 cuda_of(be)->stream));
}

static pyr_status cuda_upload(pyr_backend *be, void *dst, const void *host, size_t bytes) {
  if (bytes == 0) return PYR_OK;
  return cuda_status(be, "upload", cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice,
                                                   cuda_of(be)->stream));
}

/* Waits for all that was issued before: the host reads the bytes when it returns. An error of any
 * kernel before it shows here, if not earlier. */
static pyr_status cuda_download(pyr_backend *be, void *host, const void *src, size_t bytes) {
  cudaStream_t stream = cuda_of(be)->stream;
  if (bytes == 0) return PYR_OK;
  cudaError_t error = cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  return cuda_status(be, "download", error);
}

/* ---- scratch and tables ---------------------------------------------------------------------- */

/* The message says what was asked for, as a user can lower it. */
static pyr_status no_memory(pyr_backend *be, size_t bytes) {
  return cuda_of(be)->host->set_error(be->rt, PYR_MEMORY, "out of memory: scratch needs %zu bytes",
                                      bytes);
}

/* Kernels that still use the old scratch are before its release in the stream: nobody waits. */
pyr_status cuda_grow_scratch(pyr_backend *be, size_t bytes) {
  pyr_cuda *cuda = cuda_of(be);
  if (bytes <= cuda->scratch_bytes) return PYR_OK;
  uint8_t *fresh = static_cast<uint8_t *>(cuda_alloc(be, bytes));
  if (fresh == nullptr) return no_memory(be, bytes);
  cuda_release(be, cuda->scratch, cuda->scratch_bytes);
  cuda->scratch = fresh;
  cuda->scratch_bytes = bytes;
  return PYR_OK;
}

/* All or nothing: both pieces are there before the old ones go. */
static pyr_status table_of(pyr_backend *be, cuda_table *table, size_t bytes) {
  uint8_t *fresh = static_cast<uint8_t *>(cuda_alloc(be, bytes));
  uint8_t *ring = static_cast<uint8_t *>(lock_alloc(be, table->slots * bytes));
  if (fresh == nullptr || ring == nullptr) {
    cuda_release(be, fresh, bytes);
    lock_release(be, ring, table->slots * bytes);
    return no_memory(be, (1 + table->slots) * bytes);
  }
  cuda_release(be, table->device, table->bytes);
  lock_release(be, table->ring, table->slots * table->bytes);
  table->device = fresh;
  table->ring = ring;
  table->bytes = bytes;
  table->at = table->used = 0;
  return PYR_OK;
}

/* By half at least, where there is memory for it: page-locked memory is slow to come by. */
pyr_status cuda_grow_table(pyr_backend *be, cuda_table *table, size_t bytes) {
  if (bytes <= table->bytes) return PYR_OK;
  size_t least = round_up(static_cast<int64_t>(bytes), 64),
      more = round_up(static_cast<int64_t>(table->bytes / 2 * 3), 64);
  if (more > least && table_of(be, table, more) == PYR_OK) return PYR_OK;
  return table_of(be, table, least);
}

/* The ring of tables: [slots][bytes], two halves. A table takes what it used, not a slot; one that
 * may not fit the half begins in the other one, which must be free by then:
 *
 *     half 0                         half 1
 *     | t1 | t2 | t3 | t4 | (rest)   | t5 | t6 | t7 | …
 *                           left[0]: recorded when t5 begins here
 *
 * Before a table begins in half 0 again left[0] is waited for: the copies out of it were issued a
 * whole half ago, and are most often done. */
void cuda_table_turn(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  cuda_table *t = cuda->table;
  size_t half = t->slots / 2 * t->bytes;
  int which = t->at >= half;
  t->at += t->used;
  t->used = 0;
  if (t->at + t->bytes <= (which ? 2 * half : half)) return;
  (void)cudaEventRecord(t->left[which], cuda->stream);
  (void)cudaEventSynchronize(t->left[!which]);
  t->at = which ? 0 : half;
}

void cuda_table_begin(pyr_backend *be) {
  if (cuda_of(be)->table == &cuda_of(be)->tables[CALL_TABLE]) cuda_table_turn(be);
}

/* Pieces begin at multiples of 16, on both sides alike: `at` is the same in the ring's table and in
 * the device's. */
void *cuda_table_room(pyr_backend *be, size_t bytes, void **device) {
  cuda_table *t = cuda_of(be)->table;
  size_t at = t->used, room = t->bytes - at;
  if (bytes > room || (bytes + 15) / 16 * 16 > room) return nullptr;
  t->used += (bytes + 15) / 16 * 16;
  *device = t->device + at;
  return t->ring + t->at + at;
}

/* A lane of rows [begin, end) whose table is the host's has entries of pages begin / 32 to (end -
 * 1) / 32 copied: of rows [40, 100) pages 1, 2 and 3, whose entries the view finds at [1], [2],
 * [3]. */
bool cuda_put_lane(pyr_backend *be, pyr_lane_view *view, const pyr_lane_view *lane, int64_t begin,
                   int64_t end) {
  int64_t first = begin / PYR_PAGE_ROWS, last = ceil_div(end, PYR_PAGE_ROWS);
  *view = *lane;
  view->pages = lane->table;
  if (lane->table || last <= first) return true;
  void **device, **pages = cuda_room(be, last - first, &device);
  if (pages == nullptr) return false;
  memcpy(pages, lane->pages + first, static_cast<size_t>(last - first) * sizeof *pages);
  /* Only entries [first, last) are described; kernels index by the lane's page as the host does,
   * and never ask for others. */
  view->pages = device - first;
  return true;
}

pyr_status cuda_table_send(pyr_backend *be, const char *operation, bool fits) {
  pyr_cuda *cuda = cuda_of(be);
  const cuda_table *t = cuda->table;
  if (!fits)
    return cuda_refuse(be, operation,
                       "more rows, lanes or sequences than the scratch that is reserved can "
                       "describe");
  /* A step's table goes to the device once, at its end (step.cu). */
  if (t->used == 0 || t == &cuda->tables[STEP_TABLE]) return PYR_OK;
  return cuda_status(be, operation, cudaMemcpyAsync(t->device, t->ring + t->at, t->used,
                                                    cudaMemcpyHostToDevice, cuda->stream));
}

pyr_status cuda_send_lane(pyr_backend *be, const char *operation, pyr_lane_view *view,
                          const pyr_lane_view *lane, int64_t begin, int64_t end) {
  cuda_table_begin(be);
  return cuda_table_send(be, operation, cuda_put_lane(be, view, lane, begin, end));
}

/* ---- open and close -------------------------------------------------------------------------- */

/* The least of everything: the first `reserve` makes it as large as a model's work needs. */
pyr_status cuda_memory_open(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  size_t bytes = ARRIVALS * sizeof *cuda->arrived;
  pyr_status status = cuda_grow_scratch(be, LEAST_SCRATCH);
  if (status == PYR_OK) status = cuda_grow_table(be, cuda->table, LEAST_TABLE);
  if (status != PYR_OK) return status;
  cuda->arrived = static_cast<int *>(cuda_alloc(be, bytes));
  if (cuda->arrived == nullptr) return no_memory(be, bytes);
  return cuda_status(be, "opening the device",
                     cudaMemsetAsync(cuda->arrived, 0, bytes, cuda->stream));
}

void cuda_memory_close(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  cuda_release(be, cuda->scratch, cuda->scratch_bytes);
  cuda_release(be, cuda->arrived, ARRIVALS * sizeof *cuda->arrived);
  for (cuda_table &t : cuda->tables) {
    cuda_release(be, t.device, t.bytes);
    lock_release(be, t.ring, t.slots * t.bytes);
  }
}

void cuda_memory_fill(pyr_backend *be) {
  be->alloc = cuda_alloc;
  be->release = cuda_release;
  be->copy = cuda_copy;
  be->upload = cuda_upload;
  be->download = cuda_download;
}
