/* cuda.h — what the kernels use of CUDA, for a C++ compiler: the emulated twin of cuda_runtime.h
 * (see emulate.cpp).
 *
 * Blocks run one after another but for one, in two orders (see emulate.cpp); the threads of a block
 * are fibres that give way only at barriers and warp operations. Launches are serialised among the
 * threads of the process, so that thread and block indices and shared memory are plain globals.
 * "Device" memory is the host's, exactly as large as asked, so that a sanitizer sees every access
 * beyond it.
 *
 * Errors, each naming the kernel: a barrier that some threads of the block do not reach, or reach
 * elsewhere; a warp operation that some lanes of the warp do not reach, or meet with another one; a
 * mask that is not the whole warp; blocks that are not whole warps; grids, blocks and shared memory
 * (static and dynamic) beyond what every device has, or what the kernel was allowed; results that
 * depend on the order of blocks and threads; memory written outside of its block; asynchronous
 * copies (emulate/mma.h) that nobody waited for, or not aligned; page-locked memory that is sent
 * again before the copy that was under way out of it has been waited for. */
#ifndef PYR_EMULATE_CUDA_H
#define PYR_EMULATE_CUDA_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

/* ---- the runtime API ------------------------------------------------------------------------- */

enum cudaError_t {
  cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2,
      cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100, cudaErrorLaunchFailure = 719, cudaErrorNotSupported = 801
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice,
                      cudaMemcpyDefault };
enum { cudaStreamNonBlocking = 1 };
typedef struct pyr_emulate_stream *cudaStream_t;

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
/* poisoned with 0xff: NaN */
cudaError_t cudaMallocAsync(void **ptr, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *ptr, cudaStream_t stream);
enum { cudaHostAllocDefault = 0, cudaEventDisableTiming = 2 };
cudaError_t cudaHostAlloc(void **ptr, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *ptr);
typedef struct pyr_emulate_event *cudaEvent_t;
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *ptr, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError(void);  /* and forgets it */
const char *cudaGetErrorString(cudaError_t error);  /* of a launch: what went wrong where */

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct cudaFuncAttributes { size_t sharedSizeBytes; };  /* static shared memory */
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int bytes);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *facts, const void *kernel);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);

/* ---- inside a kernel ------------------------------------------------------------------------- */

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return float2{ x, y }; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{ x, y, z, w }; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return uint4{ x, y, z, w };
}
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

enum { warpSize = 32 };

void pyr_emulate_barrier(int line);
void *pyr_emulate_shared(void);  /* the block's dynamic shared memory */
/* Hands `value` to the warp and gives that of lane `from`; all lanes meet in an operation of the
 * same kind. */
uint64_t pyr_emulate_exchange(int kind, unsigned mask, uint64_t value, int from);
unsigned pyr_emulate_ballot(unsigned mask, bool predicate);

enum { PYR_SHUFFLE = 1, PYR_SHUFFLE_XOR, PYR_SHUFFLE_UP, PYR_SHUFFLE_DOWN, PYR_SYNC, PYR_BALLOT,
       PYR_MMA, PYR_LDMATRIX };

#define __syncthreads() pyr_emulate_barrier(__LINE__)
inline void __syncwarp(unsigned mask = 0xffffffffu) { pyr_emulate_exchange(PYR_SYNC, mask, 0, 0); }

template <typename T> inline T pyr_emulate_shuffle(int kind, unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = pyr_emulate_exchange(kind, mask, bits, from);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T> inline T __shfl_sync(unsigned mask, T value, int from) {
  return pyr_emulate_shuffle(PYR_SHUFFLE, mask, value, from & 31);
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T value, int other) {
  return pyr_emulate_shuffle(PYR_SHUFFLE_XOR, mask, value, (int)(threadIdx.x & 31) ^ (other & 31));
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T value, int by) {
  int lane = (int)(threadIdx.x & 31);
  return pyr_emulate_shuffle(PYR_SHUFFLE_UP, mask, value, lane < by ? lane : lane - by);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T value, int by) {
  int lane = (int)(threadIdx.x & 31);
  return pyr_emulate_shuffle(PYR_SHUFFLE_DOWN, mask, value, lane + by > 31 ? lane : lane + by);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return pyr_emulate_ballot(mask, predicate != 0);
}

/* Fibres give way nowhere else, so plain reads and writes are atomic. */
template <typename T> inline T atomicAdd(T *at,
                                         T value) { T was = *at; *at = was + value; return was; }
template <typename T> inline T atomicMax(T *at,
                                         T value) { T was = *at; if (value > was) *at =
                                             value; return was; }

template <typename T> inline T __ldcg(const T *at) { return *at; }
inline void __threadfence() {}

/* Four of the eight bytes of a (0 to 3) and b (4 to 7), named by the nibbles of `which`, the lowest
 * first: of 0x44332211, 0x88776655 and 0x7140 it is 0x88225511. */
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  uint64_t both = a | static_cast<uint64_t>(b) << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; i++)
    out |= static_cast<unsigned>(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
/* Rounded once each, and never joined to a multiply-add: the device's arithmetic, step by step. */
inline float __fmul_rn(float a, float b) { return a * b; }        /* compiled without contraction */
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

/* ---- launching ------------------------------------------------------------------------------- */

/* A kernel, as launch.cuh hands it over; `run` calls it with one thread's arguments. */
struct pyr_emulate_kernel {
  const void *function;
  const char *name;
  int count;
  const uint16_t *sizes;
  void (*run)(const void *function, void *const *arguments);
};
void pyr_emulate_launch(const pyr_emulate_kernel &kernel, dim3 grid, dim3 block, size_t shared,
                        void *const *arguments);

/* Graphs of kernels, each but the first with the one before as its only dependency. The layout of a
 * kernel's arguments, which the driver knows, is known here of kernels that were named before. */
void pyr_emulate_name(const pyr_emulate_kernel &kernel);
struct cudaKernelNodeParams { void *func; dim3 gridDim,
                              blockDim; unsigned sharedMemBytes; void **kernelParams, **extra; };
typedef struct pyr_emulate_node *cudaGraphNode_t;
typedef struct pyr_emulate_graph *cudaGraph_t;
typedef struct pyr_emulate_exec *cudaGraphExec_t;
cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph,
                                   const cudaGraphNode_t *after, size_t count,
                                       const cudaKernelNodeParams *params);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);

#define PYR_SHARED(type, name) type *name = static_cast<type *>(pyr_emulate_shared())

#endif
