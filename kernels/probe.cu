/* probe.cu — what the device is, and what it can do at most: the ceilings beside which measured
 * figures stand.
 *
 * Times are the host's, from one wait for the stream to the next, over `times` runs after one that
 * is not counted. Operands are random numbers: processors that multiply constants draw less power,
 * and run faster than they do on a model.
 *
 * Bytes that `measure` reads and writes, or products and sums, of a run: a copy of n bytes 2 n; a
 * product of matrices of side n 2 n^3. What is asked for should be larger than caches, and take
 * much longer than the waits at both ends. */
#include "blas.cuh"
#include "cuda.cuh"

#include <cstdio>
#include <cstring>
#include <ctime>

/* Seconds, from some point in the past; never backwards. */
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

/* Blocks of 256 threads walk over n values with the grid's stride; a value depends on its index
 * only: splitmix64's finaliser, of which 24 bits become a number from -1 to 1. */
static __global__ void random_kernel(uint8_t *out, int dtype, int64_t n) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x
       + threadIdx.x; i < n; i += stride) {
    uint64_t z = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    float x = static_cast<float>(z >> 40) * 0x1p-23f - 1.0f;
    if (dtype == PYR_F32) reinterpret_cast<float *>(out)[i] = x;
    else reinterpret_cast<uint16_t *>(out)[i] = dtype == PYR_F16 ? f16_of_f32(x) : bf16_of_f32(x);
  }
}

/* At most 4,096 blocks: each walks on until all n values are written. */
static void fill_random(pyr_cuda *cuda, void *out, pyr_dtype dtype, int64_t n) {
  int64_t blocks = ceil_div(n, 256);
  PYR_LAUNCH(random_kernel, static_cast<unsigned>(blocks < 4096 ? blocks : 4096), 256, 0, cuda,
             static_cast<uint8_t *>(out), static_cast<int>(dtype), n);
}

/* Seconds of one run of f(), which returns a cudaError_t. */
template <typename F>
static pyr_status timed(pyr_backend *be, int times, double *seconds, const F &f) {
  cudaStream_t stream = cuda_of(be)->stream;
  cudaError_t error = f();
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  double began = now();
  for (int i = 0; i < times && error == cudaSuccess; i++) error = f();
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  *seconds = (now() - began) / times;
  return cuda_status(be, "probe", error);
}

/* The ceiling of bytes: `bytes` read and as many written, within the device. */
static pyr_status time_copy(pyr_backend *be, const uint8_t *memory, int64_t bytes, int times,
                            double *seconds) {
  pyr_cuda *cuda = cuda_of(be);
  uint8_t *to = const_cast<uint8_t *>(memory) + bytes;
  return timed(be, times, seconds, [=] {
    return cudaMemcpyAsync(to, memory, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                           cuda->stream);
  });
}

/* The ceiling of products: a square matrix by another. memory: out, x, w, workspace. */
static pyr_status time_product(pyr_backend *be, uint8_t *memory, pyr_dtype dtype, int64_t side,
                               int times, double *seconds) {
  pyr_cuda *cuda = cuda_of(be);
  blas_type type = dtype == PYR_F32 ? BLAS_F32 : dtype == PYR_F16 ? BLAS_F16 : BLAS_BF16;
  int64_t count = side * side, size = dtype == PYR_F32 ? 4 : 2;
  uint8_t *x = memory + count * 4, *w = x + count * size;
  if (cuda->blas == nullptr) {
    pyr_status status = cuda_status(be, "opening cuBLAS", blas_open(&cuda->blas, cuda->stream));
    if (status != PYR_OK) return status;
  }
  fill_random(cuda, x, dtype, 2 * count);
  blas_product product = { reinterpret_cast<float *>(memory), side, x, side, w, side, side, side,
                           side, type, false, nullptr, w + count * size };
  return timed(be, times, seconds, [=] { return blas_multiply(cuda->blas, product); });
}

/* size: bytes of a copy, or the side of square matrices. Memory is asked for and given back here:
 * no operation's scratch is used, which would grow by it. */
static pyr_status cuda_measure(pyr_backend *be, pyr_ceiling what, int64_t size, int times,
                               double *seconds) {
  pyr_dtype dtype = what == PYR_CEILING_F32 ? PYR_F32 : what == PYR_CEILING_F16 ? PYR_F16
      : PYR_BF16;
  int64_t need = what == PYR_CEILING_COPY ? 2 * size
      : size * size * (4 + 2 * (dtype == PYR_F32 ? 4 : 2)) + static_cast<int64_t>(BLAS_WORKSPACE);
  uint8_t *memory = static_cast<uint8_t *>(be->alloc(be, static_cast<size_t>(need)));
  if (memory == nullptr)
    return cuda_of(be)->host->set_error(be->rt, PYR_MEMORY,
                                        "out of memory: the probe needs %lld bytes",
                                            static_cast<long long>(need));
  pyr_status status;
  if (what == PYR_CEILING_COPY) {
    fill_random(cuda_of(be), memory, PYR_F32, size / 4);
    status = time_copy(be, memory, size, times, seconds);
  } else {
    status = time_product(be, memory, dtype, size, times, seconds);
  }
  be->release(be, memory, static_cast<size_t>(need));
  return status;
}

#ifdef PYR_EMULATED

static pyr_status cuda_trim(pyr_backend *) { return PYR_OK; }

static pyr_status cuda_facts(pyr_backend *, pyr_facts *out) {
  *out = {};
  snprintf(out->name, sizeof out->name, "the emulated device");
  snprintf(out->driver, sizeof out->driver, "none");
  snprintf(out->runtime, sizeof out->runtime, "none");
  snprintf(out->arch, sizeof out->arch, "none");
  return PYR_OK;
}

#else

/* Gives the pool's unused memory back to the driver, so that another runtime can have it. */
static pyr_status cuda_trim(pyr_backend *be) {
  cudaMemPool_t pool;
  cudaError_t error = cudaStreamSynchronize(cuda_of(be)->stream);
  if (error == cudaSuccess) error = cudaDeviceGetDefaultMemPool(&pool, 0);
  return cuda_status(be, "trim", error == cudaSuccess ? cudaMemPoolTrimTo(pool, 0) : error);
}

static void put_version(char *out, size_t size, int version) {
  snprintf(out, size, "%d.%d", version / 1000, version % 1000 / 10);
}

/* The driver is named by the version of CUDA that it speaks; its own is the kernel module's. */
static pyr_status cuda_facts(pyr_backend *be, pyr_facts *out) {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  size_t free = 0, total = 0;
  *out = {};
  cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free, &total);
  if (error != cudaSuccess) return cuda_status(be, "asking what the device is", error);
  snprintf(out->name, sizeof out->name, "%.127s", properties.name);
  snprintf(out->arch, sizeof out->arch, "sm_%d%d", properties.major, properties.minor);
  put_version(out->driver, sizeof out->driver, driver);
  put_version(out->runtime, sizeof out->runtime, runtime);
  out->memory = static_cast<int64_t>(total);
  out->free = static_cast<int64_t>(free);
  out->processors = properties.multiProcessorCount;
  return PYR_OK;
}

#endif

/* Operations that only scripts which measure ask for. */
void cuda_probe_fill(pyr_backend *be) {
  be->facts = cuda_facts;
  be->trim = cuda_trim;
  be->measure = cuda_measure;
}
