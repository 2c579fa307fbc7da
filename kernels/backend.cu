/* backend.cu — opens and closes the CUDA backend, and asks all operations what they need.
 *
 * Owns the device's stream and the state that pyr_cuda is. Knows all operations, and none of them
 * calls it: memory, scratch and tables, which they share, are below them, in memory.cu.
 *
 *     backend.cu      opens, closes, reserves; knows all operations
 *        |  fill
 *     attention.cu, linear.cu, rows.cu, select.cu …      operations: launchers and kernels
 *        |  PYR_LAUNCH            |  scratch, tables, errors
 *     launch.cu, step.cu       memory.cu
 *
 * The object is opened at run time by a host that was built without CUDA: what it needs of the host
 * (memory, messages) comes as a table of functions, and only pyr_device_open is seen outside. */
#include "cuda.cuh"

#include <cstring>

/* Operations follow each other on one stream, so that they share scratch and table: the most that
 * any one needs is enough for all. */
static pyr_status cuda_reserve(pyr_backend *be, const pyr_work *work) {
  size_t need[] = { cuda_attention_scratch(work), cuda_signals_scratch(work),
                    cuda_redundancy_scratch(work),
                    cuda_linear_few_scratch(work), cuda_pick_scratch(work),
                    cuda_experts_scratch(work),
                    cuda_of(be)->rounded ? cuda_linear_scratch(work) : 0 };
  pyr_work described = *work;
  described.resident = 0;                              /* plans that are due move lanes by views */
  size_t tables[] = { cuda_attention_table(&described), cuda_pick_table(work) };
  size_t scratch = 0, table = 0;
  for (size_t bytes : need) scratch = bytes > scratch ? bytes : scratch;
  for (size_t bytes : tables) table = bytes > table ? bytes : table;
  pyr_status status = cuda_grow_scratch(be, scratch);
  return status == PYR_OK ? cuda_grow_table(be, &cuda_of(be)->tables[CALL_TABLE], table) : status;
}

/* ---- open and close -------------------------------------------------------------------------- */

void cuda_blas_close(pyr_cuda *cuda);   /* linear.cu */

/* Also closes what was opened in part: everything is NULL, or there. The device must have come to
 * the end of what it does before memory goes that it reads. */
static void cuda_close(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  if (cuda == nullptr) return;
  const pyr_device_host *host = cuda->host;
  if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
  cuda_blas_close(cuda);
  cuda_memory_close(be);
  for (cuda_table &t : cuda->tables)
    for (cudaEvent_t left : t.left)
      if (left) (void)cudaEventDestroy(left);
  cuda_steps_close(be);
  if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
  host->release(be->rt, cuda, sizeof *cuda);
  be->state = nullptr;
}

/* The stream does not wait for the default one, which is others'. The pool keeps what is given back
 * to it: without this each wait returns it to the driver. */
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

/* Each file puts its operations into the table: a new one is a line here. */
static void fill(pyr_backend *be) {
  be->close = cuda_close;
  be->reserve = cuda_reserve;
  cuda_memory_fill(be);
  cuda_elementwise_fill(be);
  cuda_scores_fill(be);
  cuda_linear_fill(be);
  cuda_experts_fill(be);
  cuda_pack_fill(be);
  cuda_rows_fill(be);
  cuda_merge_fill(be);
  cuda_attention_fill(be);
  cuda_mass_fill(be);
  cuda_select_fill(be);
  cuda_pick_fill(be);
  cuda_signals_fill(be);
  cuda_redundancy_fill(be);
  cuda_moments_fill(be);
  cuda_steps_fill(be);
  cuda_probe_fill(be);
}

extern "C" __attribute__((visibility("default"))) pyr_status pyr_device_open(
    const pyr_device_host *host, pyr_runtime *rt, const char *isa, pyr_backend *be) {
  /* In the order in which a user can do something about it: the object does not fit the library,
   * the name is unknown, there is no device, there is no memory. A failure closes what was opened,
   * and *be stays as it was. */
  int devices = 0;
  if (host->version != PYR_DEVICE_VERSION)
    return host->set_error(rt, PYR_DEVICE,
                           "device \"%s\": its object is of another version; build both together",
                               cuda_name);
  if (isa && strcmp(isa, "bf16") != 0)
    return host->set_error(rt, PYR_DEVICE, "device \"%s\": no \"%s\" kernels (known: bf16)",
                           cuda_name, isa);
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0)
    return host->set_error(rt, PYR_DEVICE,
                           "device \"%s\": no NVIDIA driver or no GPU here (%s); use device "
                           "\"cpu\", or install the driver",
                           cuda_name, error == cudaSuccess ? "no device"
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
  /* Of calls two tables to a half of the ring, at their largest; of steps, whose tables are long,
   * one. */
  cuda->tables[CALL_TABLE].slots = 4;
  cuda->tables[STEP_TABLE].slots = 2;
  pyr_backend fresh = {};
  fresh.name = cuda_name;
  fresh.own_memory = true;
  fresh.rt = rt;
  fresh.state = cuda;
  fill(&fresh);
  pyr_status status = cuda_status(&fresh, "opening the device", open_device(cuda));
  if (status == PYR_OK) status = cuda_memory_open(&fresh);
  if (status == PYR_OK) status = cuda_steps_open(&fresh);
  if (status != PYR_OK) cuda_close(&fresh);
  else *be = fresh;
  return status;
}
