/* emulator_checks.cu — kernels that are wrong, each in one way, and what the emulator says of them;
 * and one that is right. */
#include "launch.cuh"

#include <cstdio>
#include <cstring>

void cuda_launch(pyr_cuda *, const cuda_kernel &k, dim3 grid, unsigned block, size_t shared,
                 void **arguments) {
  pyr_emulate_launch({ k.function, k.name, k.count, k.sizes, k.run }, grid, dim3(block), shared,
                     arguments);
}

static __global__ void returns_early(int *out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

static __global__ void waits_elsewhere(int *out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

static __global__ void leaves_its_warp(int *out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1, 1);
}

static __global__ void mixes_operations(int *out) {
  if (threadIdx.x % 2) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1, 1);
  else out[threadIdx.x] = static_cast<int>(__ballot_sync(ALL_LANES, 1));
}

static __global__ void waits_in_half_a_warp(int *out) {
  if (threadIdx.x < 16) __syncthreads();
  else out[threadIdx.x] = __shfl_sync(ALL_LANES, 1, 0);
}

static __global__ void names_half_a_warp(int *out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 1);
}

static __global__ void writes_behind(int *out) { out[64 + threadIdx.x % 2] = 1; }

/* A sum by shuffles and shared memory, whose every thread must see every other's writes. */
static __global__ void adds(int *out) {
  __shared__ int parts[32];
  PYR_SHARED(int, room);
  int x = static_cast<int>(threadIdx.x), lane = x % WARP;
  room[threadIdx.x] = x;
  __syncthreads();
  x += room[blockDim.x - 1 - threadIdx.x];
  for (int by = 1; by < WARP; by *= 2) {
    int y = __shfl_up_sync(ALL_LANES, x, by);
    if (lane >= by) x += y;
  }
  if (lane == WARP - 1) parts[threadIdx.x / WARP] = x;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned w = 0; w < blockDim.x / WARP; w++) atomicAdd(out, parts[w]);
}

/* The last block to count adds up what all have written; it is not told that the others' threads
 * have all written. */
template <bool WAITS> static __global__ void adds_last(int *out, int *arrived) {
  __shared__ bool last;
  out[8 + blockIdx.x * blockDim.x + threadIdx.x] = 1;
  if (WAITS) __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) sum += out[8 + i];
  if (threadIdx.x == 0) *out = sum, *arrived = 0;
}

/* Whoever comes last leaves its number. */
static __global__ void writes_who(int *out) { out[0] = static_cast<int>(blockIdx.x); }

/* Adds what was never written to shared memory. */
static __global__ void reads_unwritten(int *out) {
  __shared__ int held[64];
  PYR_SHARED(int, room);
  if (threadIdx.x < 32) held[threadIdx.x] = room[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = held[1] + room[1] + held[63] * 2 + room[63] * 4;
}

/* Of 40 KiB that it declares; each block sees its own. */
static __global__ void holds_much(int *out) {
  __shared__ int held[10 << 10];
  for (unsigned i = threadIdx.x; i < 10 << 10; i += blockDim.x)
    held[i] = static_cast<int>(blockIdx.x);
  __syncthreads();
  int sum = 0;
  for (unsigned i = 0; i < 10 << 10; i++) sum += held[i];
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

static int failures;

static void expect(const char *kernel, const char *what) {
  cudaError_t error = cudaGetLastError();
  const char *said = cudaGetErrorString(error);
  if (error != cudaSuccess && strstr(said, kernel) && strstr(said, what)) return;
  fprintf(stderr, "%s: \"%s\", not \"%s\"\n", kernel, said, what);
  failures++;
}

/* Copies out of page-locked memory, which may not be touched before they are waited for. */
static void lock_checks(int *out) {
  void *locked;
  cudaEvent_t behind;
  if (cudaHostAlloc(&locked, 64, cudaHostAllocDefault) != cudaSuccess ||
      cudaEventCreateWithFlags(&behind, cudaEventDisableTiming) != cudaSuccess) {
    failures++;
    return;
  }
  uint8_t *from = static_cast<uint8_t *>(locked);
  (void)cudaMemcpyAsync(out, from, 32, cudaMemcpyHostToDevice, nullptr);
  (void)cudaEventRecord(behind, nullptr);
  (void)cudaMemcpyAsync(out, from + 32, 32, cudaMemcpyHostToDevice, nullptr);
  (void)cudaEventSynchronize(behind);
  (void)cudaMemcpyAsync(out, from, 32, cudaMemcpyHostToDevice, nullptr);
  if (cudaGetLastError() != cudaSuccess)
    fputs("copies that were waited for are refused\n", stderr), failures++;
  (void)cudaMemcpyAsync(out, from + 16, 32, cudaMemcpyHostToDevice, nullptr);
  expect("page-locked memory", "sent again");
  (void)cudaFreeHost(locked);
  expect("page-locked memory", "given back");
  (void)cudaStreamSynchronize(nullptr);
  if (cudaFreeHost(locked) != cudaSuccess)
    fputs("page-locked memory cannot be given back\n", stderr), failures++;
  (void)cudaEventDestroy(behind);
}

/* A graph keeps what its nodes were told; nodes stand in line, and keep their kernel. */
static void graph_checks(int *out) {
  cudaGraph_t graph;
  cudaGraphExec_t exec = nullptr;
  cudaGraphNode_t first, second = nullptr, none;
  int *to = out;
  void *arguments[] = { &to };
  cudaKernelNodeParams params = { reinterpret_cast<void *>(adds), dim3(1), dim3(64),
                                  64 * sizeof *out, arguments, nullptr };
  bool made = cudaGraphCreate(&graph, 0) == cudaSuccess
      && cudaGraphAddKernelNode(&first, graph, nullptr, 0, &params) == cudaSuccess &&
              cudaGraphAddKernelNode(&second, graph, &first, 1, &params) == cudaSuccess;
  if (!made || cudaGraphAddKernelNode(&none, graph, &first, 1, &params) == cudaSuccess)
    fputs("nodes of a graph do not stand in line\n", stderr), failures++;
  to = nullptr;
  memset(out, 0, 64 * sizeof *out);
  if (!made || cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess
      || cudaGraphLaunch(exec, nullptr) != cudaSuccess || out[0] != 2 * 64 * 63)
    fprintf(stderr, "a graph of two adds: %d\n", out[0]), failures++;
  to = out + 1;
  if (cudaGraphExecKernelNodeSetParams(exec, second, &params) != cudaSuccess
      || cudaGraphLaunch(exec, nullptr) != cudaSuccess || out[0] != 3 * 64 * 63
          || out[1] != 64 * 63)
    fprintf(stderr, "a graph whose second add goes elsewhere: %d, %d\n", out[0], out[1]),
        failures++;
  params.func = reinterpret_cast<void *>(returns_early);
  if (cudaGraphExecKernelNodeSetParams(exec, second, &params) == cudaSuccess)
    fputs("a node takes another kernel\n", stderr), failures++;
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
}

/* Static shared memory counts beside dynamic; only what was allowed passes 48 KiB, and nothing 99.
 */
static void shared_checks(int *out) {
  const void *much = reinterpret_cast<const void *>(holds_much),
      *little = reinterpret_cast<const void *>(adds);
  cudaFuncAttributes facts;
  if (cudaFuncGetAttributes(&facts, much) != cudaSuccess || facts.sharedSizeBytes < 40 << 10
      || facts.sharedSizeBytes > (40 << 10) + 64)
    fprintf(stderr, "40 KiB of static shared memory are %zu bytes\n", facts.sharedSizeBytes),
        failures++;
  PYR_LAUNCH(adds, 1, 64, 48 << 10, nullptr, out);
  expect("adds", "49152 bytes of dynamic and");
  PYR_LAUNCH(holds_much, 1, 64, (8 << 10) + 4, nullptr, out);
  expect("holds_much", "8196 bytes of dynamic and");
  (void)cudaFuncSetAttribute(little, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 << 10);
  memset(out, 0, 64 * sizeof *out);
  PYR_LAUNCH(adds, 1, 64, 48 << 10, nullptr, out);
  if (cudaGetLastError() != cudaSuccess || out[0] != 64 * 63)
    fputs("48 KiB that were allowed are refused\n", stderr), failures++;
  PYR_LAUNCH(adds, 1, 64, (48 << 10) + 4, nullptr, out);
  expect("adds", "and 49152 were allowed");
  if (cudaFuncSetAttribute(much, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           60 << 10) == cudaSuccess)
    fputs("40 and 60 KiB are allowed\n", stderr), failures++;
  (void)cudaGetLastError();
  PYR_LAUNCH(holds_much, 4, 64, 0, nullptr, out);
  for (int i = 0; i < 4; i++)
    if (out[i] != i * (10 << 10)) fprintf(stderr, "block %d: %d\n", i, out[i]), failures++;
  if (cudaGetLastError() != cudaSuccess)
    fputs("blocks that hold much are refused\n", stderr), failures++;
}

/* Blocks in two orders, one of them held back. */
static void order_checks(void) {
  void *block;
  if (cudaMallocAsync(&block, (8 + 4 * 64) * sizeof(int) + 64,
                      nullptr) != cudaSuccess) { failures++; return; }
  int *out = static_cast<int *>(block), *arrived = out + 8 + 4 * 64;
  memset(out, 0, (8 + 4 * 64) * sizeof(int) + 64);
  PYR_LAUNCH(adds_last<true>, 4, 64, 0, nullptr, out, arrived);
  if (cudaGetLastError() != cudaSuccess || out[0] != 4 * 64)
    fprintf(stderr, "adds_last: %d\n", out[0]), failures++;
  memset(out, 0, (8 + 4 * 64) * sizeof(int) + 64);
  PYR_LAUNCH(adds_last<false>, 4, 64, 0, nullptr, out, arrived);
  expect("adds_last", "depends on the order");
  PYR_LAUNCH(writes_who, 2, 32, 0, nullptr, out);
  expect("writes_who", "depends on the order");
  PYR_LAUNCH(reads_unwritten, 3, 64, 64 * sizeof *out, nullptr, out);
#if !defined(__SANITIZE_ADDRESS__)                  /* there static memory is not poisoned */
  for (int i = 0; i < 3; i++)
    if (out[i] != 2 - 2 - 4)
      fprintf(stderr, "reads_unwritten, block %d: %d\n", i, out[i]), failures++;
#endif
  if (cudaGetLastError() != cudaSuccess) fputs("reads_unwritten is refused\n", stderr), failures++;
  (void)cudaFreeAsync(out, nullptr);
}

int main(void) {
  int *out;
  void *block;
  if (cudaMallocAsync(&block, 64 * sizeof *out, nullptr) != cudaSuccess) return 1;
  out = static_cast<int *>(block);
  PYR_LAUNCH(returns_early, 2, 64, 0, nullptr, out);
  expect("returns_early", "returned while");
  PYR_LAUNCH(waits_elsewhere, 1, 64, 0, nullptr, out);
  expect("waits_elsewhere", "barriers in lines");
  PYR_LAUNCH(leaves_its_warp, 1, 64, 0, nullptr, out);
  expect("leaves_its_warp", "not all lanes reach");
  PYR_LAUNCH(mixes_operations, 1, 64, 0, nullptr, out);
  expect("mixes_operations", "another warp operation");
  PYR_LAUNCH(waits_in_half_a_warp, 1, 32, 0, nullptr, out);
  expect("waits_in_half_a_warp", "not all lanes reach");
  PYR_LAUNCH(names_half_a_warp, 1, 32, 0, nullptr, out);
  expect("names_half_a_warp", "only some lanes");
  PYR_LAUNCH(adds, 0, 64, 0, nullptr, out);
  expect("adds", "a grid of 0");
  PYR_LAUNCH(adds, 1, 65, 0, nullptr, out);
  expect("adds", "blocks of 65");
  PYR_LAUNCH(adds, 1, 64, 49153, nullptr, out);
  expect("adds", "shared memory");

  shared_checks(out);
  order_checks();
  lock_checks(out);
  memset(out, 0, 64 * sizeof *out);
  PYR_LAUNCH(adds, 3, 64, 64 * sizeof *out, nullptr, out);
  if (cudaGetLastError() != cudaSuccess || out[0] != 3 * 64 * 63)
    fprintf(stderr, "adds: %d\n", out[0]), failures++;

  pyr_emulate_name({ reinterpret_cast<const void *>(adds), "adds", 1, cuda_signature<int *>::sizes,
                     cuda_signature<int *>::run });
  graph_checks(out);

#if !defined(__SANITIZE_ADDRESS__)                  /* there the sanitizer ends the program at the
                                                       first such write */
  PYR_LAUNCH(writes_behind, 1, 32, 0, nullptr, out);
  (void)cudaFreeAsync(out, nullptr);
  expect("behind a block of 256 bytes", "was written");
#else
  (void)cudaFreeAsync(out, nullptr);
#endif
  if (failures == 0) puts("all checks pass");
  return failures != 0;
}
