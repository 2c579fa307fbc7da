/* emulator_checks.cu — kernels that are wrong, each in one way, and what the emulator says of them; and one that is right. */
#include "launch.cuh"

#include <cstdio>
#include <cstring>

void cuda_launch(pyr_cuda *, const cuda_kernel &k, dim3 grid, unsigned block, size_t shared, void **arguments) {
  pyr_emulate_launch({ k.function, k.name, k.count, k.sizes, k.run }, grid, dim3(block), shared, arguments);
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

static __global__ void names_half_a_warp(int *out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 1); }

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
  if (cudaGetLastError() != cudaSuccess) fputs("copies that were waited for are refused\n", stderr), failures++;
  (void)cudaMemcpyAsync(out, from + 16, 32, cudaMemcpyHostToDevice, nullptr);
  expect("page-locked memory", "sent again");
  (void)cudaFreeHost(locked);
  expect("page-locked memory", "given back");
  (void)cudaStreamSynchronize(nullptr);
  if (cudaFreeHost(locked) != cudaSuccess) fputs("page-locked memory cannot be given back\n", stderr), failures++;
  (void)cudaEventDestroy(behind);
}

/* A graph keeps what its nodes were told; nodes stand in line, and keep their kernel. */
static void graph_checks(int *out) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaGraphNode_t first, second, none;
  int *to = out;
  void *arguments[] = { &to };
  cudaKernelNodeParams params = { reinterpret_cast<void *>(adds), dim3(1), dim3(64), 64 * sizeof *out, arguments, nullptr };
  bool made = cudaGraphCreate(&graph, 0) == cudaSuccess && cudaGraphAddKernelNode(&first, graph, nullptr, 0, &params) == cudaSuccess &&
              cudaGraphAddKernelNode(&second, graph, &first, 1, &params) == cudaSuccess;
  if (!made || cudaGraphAddKernelNode(&none, graph, &first, 1, &params) == cudaSuccess)
    fputs("nodes of a graph do not stand in line\n", stderr), failures++;
  to = nullptr;
  memset(out, 0, 64 * sizeof *out);
  if (!made || cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess || cudaGraphLaunch(exec, nullptr) != cudaSuccess || out[0] != 2 * 64 * 63)
    fprintf(stderr, "a graph of two adds: %d\n", out[0]), failures++;
  to = out + 1;
  if (cudaGraphExecKernelNodeSetParams(exec, second, &params) != cudaSuccess || cudaGraphLaunch(exec, nullptr) != cudaSuccess ||
      out[0] != 3 * 64 * 63 || out[1] != 64 * 63)
    fprintf(stderr, "a graph whose second add goes elsewhere: %d, %d\n", out[0], out[1]), failures++;
  params.func = reinterpret_cast<void *>(returns_early);
  if (cudaGraphExecKernelNodeSetParams(exec, second, &params) == cudaSuccess) fputs("a node takes another kernel\n", stderr), failures++;
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
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

  lock_checks(out);
  memset(out, 0, 64 * sizeof *out);
  PYR_LAUNCH(adds, 3, 64, 64 * sizeof *out, nullptr, out);
  if (cudaGetLastError() != cudaSuccess || out[0] != 3 * 64 * 63) fprintf(stderr, "adds: %d\n", out[0]), failures++;

  pyr_emulate_name({ reinterpret_cast<const void *>(adds), "adds", 1, cuda_signature<int *>::sizes, cuda_signature<int *>::run });
  graph_checks(out);

#if !defined(__SANITIZE_ADDRESS__)                  /* there the sanitizer ends the program at the first such write */
  PYR_LAUNCH(writes_behind, 1, 32, 0, nullptr, out);
  (void)cudaFreeAsync(out, nullptr);
  expect("behind a block of 256 bytes", "was written");
#else
  (void)cudaFreeAsync(out, nullptr);
#endif
  if (failures == 0) puts("all checks pass");
  return failures != 0;
}
