/* backend.cu — opens and closes the CUDA backend: its device, its memory, its scratch and its
 * tables.
 *
 * Owns: the table's memory operations, and everything in pyr_cuda but the kernels' contents. Device
 * memory comes from the device's own pool in the order of the stream, and counts against the
 * runtime's limit. A failed launch or copy is reported by the operation that issued it where the
 * device knows by then, else by the next that waits. */
#include "cuda.cuh"

#include <cstring>

#ifdef PYR_EMULATED
static const char backend_name[] = "emulated";
#else
static const char backend_name[] = "cuda";
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

pyr_status cuda_status(pyr_backend *be, const char *operation, cudaError_t error) {
  if (error == cudaSuccess) return PYR_OK;
  (void)cudaGetLastError();                          /* or a later call would be told of it again */
  pyr_status status = error == cudaErrorMemoryAllocation ? PYR_MEMORY : PYR_DEVICE;
  return cuda_of(be)->host->set_error(be->rt, status, "%s: %s: %s", backend_name, operation,
                                      cudaGetErrorString(error));
}

pyr_status cuda_refuse(pyr_backend *be, const char *operation, const char *what) {
  return cuda_of(be)->host->set_error(be->rt, PYR_ARGUMENT, "%s: %s", operation, what);
}

pyr_status cuda_check(pyr_backend *be, const char *operation, size_t needed) {
  pyr_cuda *cuda = cuda_of(be);
  if (needed <= cuda->scratch_bytes) return PYR_OK;
  return cuda->host->set_error(be->rt, PYR_ARGUMENT,
                               "%s needs %zu bytes of scratch, and %zu are reserved", operation,
                                   needed, cuda->scratch_bytes);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void *cuda_alloc(pyr_backend *be, size_t bytes) {
  pyr_cuda *cuda = cuda_of(be);
  void *ptr = nullptr;
  if (!cuda->host->charge(be->rt, bytes)) return nullptr;
  if (cudaMallocAsync(&ptr, bytes ? bytes : 1, cuda->stream) == cudaSuccess) return ptr;
  (void)cudaGetLastError();
  cuda->host->discharge(be->rt, bytes);
  return nullptr;
}

static void cuda_release(pyr_backend *be, void *ptr, size_t bytes) {
  if (ptr == nullptr) return;
  (void)cudaFreeAsync(ptr, cuda_of(be)->stream);
  cuda_of(be)->host->discharge(be->rt, bytes);
}

/* Page-locked memory of the host's; given back when the copies out of it are done. */
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

static pyr_status cuda_download(pyr_backend *be, void *host, const void *src, size_t bytes) {
  cudaStream_t stream = cuda_of(be)->stream;
  if (bytes == 0) return PYR_OK;
  cudaError_t error = cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  return cuda_status(be, "download", error);
}

/* ---- scratch and tables ---------------------------------------------------------------------- */

static pyr_status no_memory(pyr_backend *be, size_t bytes) {
  return cuda_of(be)->host->set_error(be->rt, PYR_MEMORY, "out of memory: scratch needs %zu bytes",
                                      bytes);
}

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

static pyr_status cuda_reserve(pyr_backend *be, const pyr_work *work) {
  size_t need[] = { LEAST_SCRATCH, cuda_attention_scratch(work), cuda_signals_scratch(work),
                    cuda_linear_few_scratch(work), cuda_pick_scratch(work),
                        cuda_of(be)->rounded ? cuda_linear_scratch(work) : 0 };
  size_t tables[] = { LEAST_TABLE, cuda_attention_table(work), cuda_pick_table(work) };
  size_t scratch = 0, table = 0;
  for (size_t bytes : need) scratch = bytes > scratch ? bytes : scratch;
  for (size_t bytes : tables) table = bytes > table ? bytes : table;
  pyr_status status = cuda_grow_scratch(be, scratch);
  return status == PYR_OK ? cuda_grow_table(be, &cuda_of(be)->tables[CALL_TABLE], table) : status;
}

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

void *cuda_table_room(pyr_backend *be, size_t bytes, void **device) {
  cuda_table *t = cuda_of(be)->table;
  size_t at = t->used, room = t->bytes - at;
  if (bytes > room || (bytes + 15) / 16 * 16 > room) return nullptr;
  t->used += (bytes + 15) / 16 * 16;
  *device = t->device + at;
  return t->ring + t->at + at;
}

bool cuda_put_lane(pyr_backend *be, pyr_lane_view *view, const pyr_lane_view *lane, int64_t begin,
                   int64_t end) {
  int64_t first = begin / PYR_PAGE_ROWS, last = ceil_div(end, PYR_PAGE_ROWS);
  *view = *lane;
  view->pages = lane->table;
  if (lane->table || last <= first) return true;
  void **device, **pages = cuda_room(be, last - first, &device);
  if (pages == nullptr) return false;
  memcpy(pages, lane->pages + first, static_cast<size_t>(last - first) * sizeof *pages);
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

void cuda_blas_close(pyr_cuda *cuda);   /* linear.cu */

static void cuda_close(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  if (cuda == nullptr) return;
  const pyr_device_host *host = cuda->host;
  if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
  cuda_blas_close(cuda);
  cuda_release(be, cuda->scratch, cuda->scratch_bytes);
  cuda_release(be, cuda->arrived, ARRIVALS * sizeof *cuda->arrived);
  for (cuda_table &t : cuda->tables) {
    cuda_release(be, t.device, t.bytes);
    lock_release(be, t.ring, t.slots * t.bytes);
    for (cudaEvent_t left : t.left)
      if (left) (void)cudaEventDestroy(left);
  }
  cuda_steps_close(be);
  if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
  host->release(be->rt, cuda, sizeof *cuda);
  be->state = nullptr;
}

static pyr_status make_arrivals(pyr_backend *be) {
  size_t bytes = ARRIVALS * sizeof *cuda_of(be)->arrived;
  int *fresh = cuda_of(be)->arrived = static_cast<int *>(cuda_alloc(be, bytes));
  if (fresh == nullptr) return no_memory(be, bytes);
  return cuda_status(be, "opening the device", cudaMemsetAsync(fresh, 0, bytes,
      cuda_of(be)->stream));
}

/* The pool keeps what is given back to it: without this each wait returns it to the driver. */
static cudaError_t open_device(pyr_cuda *cuda) {
  cudaError_t error = cudaSetDevice(0);
#ifndef PYR_EMULATED
  cudaMemPool_t pool;
  uint64_t all = UINT64_MAX;
  if (error == cudaSuccess) error = cudaDeviceGetDefaultMemPool(&pool, 0);
  if (error == cudaSuccess)
    error = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
#endif
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
  for (cuda_table &t : cuda->tables)
    for (cudaEvent_t &left : t.left)
      if (error == cudaSuccess) error = cudaEventCreateWithFlags(&left, cudaEventDisableTiming);
  return error;
}

static void fill(pyr_backend *be) {
  be->close = cuda_close;
  be->alloc = cuda_alloc;
  be->release = cuda_release;
  be->copy = cuda_copy;
  be->upload = cuda_upload;
  be->download = cuda_download;
  be->reserve = cuda_reserve;
  cuda_elementwise_fill(be);
  cuda_scores_fill(be);
  cuda_linear_fill(be);
  cuda_stack_fill(be);
  cuda_rows_fill(be);
  cuda_merge_fill(be);
  cuda_attention_fill(be);
  cuda_mass_fill(be);
  cuda_select_fill(be);
  cuda_pick_fill(be);
  cuda_signals_fill(be);
  cuda_moments_fill(be);
  cuda_steps_fill(be);
  cuda_probe_fill(be);
}

extern "C" __attribute__((visibility("default"))) pyr_status pyr_device_open(
    const pyr_device_host *host, pyr_runtime *rt, const char *isa, pyr_backend *be) {
  int devices = 0;
  if (host->version != PYR_DEVICE_VERSION)
    return host->set_error(rt, PYR_DEVICE,
                           "device \"%s\": its object is of another version; build both together",
                               backend_name);
  if (isa && strcmp(isa, "bf16") != 0)
    return host->set_error(rt, PYR_DEVICE, "device \"%s\": no \"%s\" kernels (known: bf16)",
                           backend_name, isa);
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0)
    return host->set_error(rt, PYR_DEVICE,
                           "device \"%s\": no NVIDIA driver or no GPU here (%s); use device "
                           "\"cpu\", or install the driver",
                           backend_name, error == cudaSuccess ? "no device"
                               : cudaGetErrorString(error));
  pyr_cuda *cuda = static_cast<pyr_cuda *>(host->alloc(rt, sizeof *cuda));
  if (cuda == nullptr)
    return host->set_error(rt, PYR_MEMORY, "out of memory: the backend needs %zu bytes",
                           sizeof *cuda);
  memset(cuda, 0, sizeof *cuda);
  cuda->host = host;
  cuda->rt = rt;
  cuda->rounded = isa != nullptr;
  cuda->table = &cuda->tables[CALL_TABLE];
  cuda->tables[CALL_TABLE].slots = 4;
  cuda->tables[STEP_TABLE].slots = 2;
  pyr_backend fresh = {};
  fresh.name = backend_name;
  fresh.own_memory = true;
  fresh.rt = rt;
  fresh.state = cuda;
  fill(&fresh);
  pyr_status status = cuda_status(&fresh, "opening the device", open_device(cuda));
  if (status == PYR_OK) status = cuda_grow_scratch(&fresh, LEAST_SCRATCH);
  if (status == PYR_OK) status = cuda_grow_table(&fresh, cuda->table, LEAST_TABLE);
  if (status == PYR_OK) status = cuda_steps_open(&fresh);
  if (status == PYR_OK) status = make_arrivals(&fresh);
  if (status != PYR_OK) cuda_close(&fresh);
  else *be = fresh;
  return status;
}
