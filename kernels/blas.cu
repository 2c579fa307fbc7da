/* blas.cu — see blas.cuh. */
#include "blas.cuh"

#ifdef PYR_EMULATED

cudaError_t blas_open(void **handle, cudaStream_t) {
  static char open;
  *handle = &open;
  return cudaSuccess;
}

void blas_close(void *) {}

static float operand(const void *x, blas_type type, int64_t i) {
  const uint8_t *row = static_cast<const uint8_t *>(x);
  return value_at(row, type == BLAS_F32 ? PYR_F32 : type == BLAS_F16 ? PYR_F16 : PYR_BF16, i);
}

cudaError_t blas_multiply(void *, const blas_product &p) {
  for (int64_t i = 0; i < p.n; i++)
    for (int64_t r = 0; r < p.rows; r++) {
      float sum = 0, *out = p.out + i * p.ld_out + r;
      for (int64_t c = 0; c < p.cols; c++) sum += operand(p.x, p.type, i * p.ld_x + c) * operand(p.w, p.type, r * p.ld_w + c);
      *out = p.add ? *out + sum : sum;
    }
  return cudaGetLastError();
}

#else

#include <cublas_v2.h>
#include <dlfcn.h>
#include <new>

/* The functions of libcublas that are used, found when it is loaded. The header overloads cublasGemmEx: its type is spelt out. */
typedef cublasStatus_t (*gemm_function)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                                        const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *,
                                        cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
struct blas {
  void *library;
  cublasHandle_t handle;
  decltype(&cublasDestroy_v2) destroy;
  gemm_function gemm;
};

template <typename T> static bool find(void *library, const char *name, T *function) {
  *function = reinterpret_cast<T>(dlsym(library, name));
  return *function != nullptr;
}

cudaError_t blas_open(void **handle, cudaStream_t stream) {
  decltype(&cublasCreate_v2) create;
  decltype(&cublasSetStream_v2) set_stream;
  blas fresh = {};
  fresh.library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
  if (!fresh.library) fresh.library = dlopen("libcublas.so", RTLD_NOW | RTLD_LOCAL);
  if (!fresh.library) return cudaErrorSharedObjectInitFailed;
  bool whole = find(fresh.library, "cublasCreate_v2", &create) && find(fresh.library, "cublasSetStream_v2", &set_stream) &&
               find(fresh.library, "cublasDestroy_v2", &fresh.destroy) && find(fresh.library, "cublasGemmEx", &fresh.gemm);
  if (!whole) return cudaErrorSharedObjectSymbolNotFound;
  if (create(&fresh.handle) != CUBLAS_STATUS_SUCCESS) return cudaErrorInitializationError;
  if (set_stream(fresh.handle, stream) != CUBLAS_STATUS_SUCCESS) {
    fresh.destroy(fresh.handle);
    return cudaErrorInitializationError;
  }
  *handle = new (std::nothrow) blas(fresh);
  if (*handle) return cudaSuccess;
  fresh.destroy(fresh.handle);
  return cudaErrorMemoryAllocation;
}

void blas_close(void *handle) {
  blas *b = static_cast<blas *>(handle);
  if (b == nullptr) return;
  b->destroy(b->handle);
  delete b;
}

/* cuBLAS counts columns first: its out^T [rows, n] = w [cols, rows]^T . x^T [cols, n]. */
cudaError_t blas_multiply(void *handle, const blas_product &p) {
  blas *b = static_cast<blas *>(handle);
  const float one = 1, zero = 0;
  cudaDataType type = p.type == BLAS_F32 ? CUDA_R_32F : p.type == BLAS_F16 ? CUDA_R_16F : CUDA_R_16BF;
  int rows = static_cast<int>(p.rows), n = static_cast<int>(p.n), cols = static_cast<int>(p.cols);
  int ld_w = static_cast<int>(p.ld_w), ld_x = static_cast<int>(p.ld_x), ld_out = static_cast<int>(p.ld_out);
  cublasStatus_t status = b->gemm(b->handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, n, cols, &one, p.w, type, ld_w, p.x, type, ld_x,
                                  p.add ? &one : &zero, p.out, CUDA_R_32F, ld_out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
}

#endif
