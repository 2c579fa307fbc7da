/* blas.cuh — matrix products by cuBLASLt, and the emulated twin: plain sums. Row-major,
 *     out[n, rows] (+)= x[n, cols] . w[rows, cols]^T (+ bias[rows])
 * with f32 sums; x and w are both f32, both f16 or both bf16. The library is loaded when it is
 * first wanted, so that the backend runs without it where products are not rounded. An algorithm is
 * asked for once for each shape, and only such as sum every output in one place: the same call
 * gives the same result. */
#ifndef PYR_CUDA_BLAS_CUH
#define PYR_CUDA_BLAS_CUH

#include "convert.cuh"

enum blas_type { BLAS_F32, BLAS_F16, BLAS_BF16 };

struct blas_product {
  float *out;
  int64_t ld_out;          /* values from row to row */
  const void *x;
  int64_t ld_x;
  const void *w;
  int64_t ld_w;
  int64_t n, rows, cols;
  blas_type type;
  bool add;
  const float *bias;       /* NULL: none */
  void *workspace;         /* [BLAS_WORKSPACE] device memory */
};

#ifdef PYR_EMULATED
enum : size_t { BLAS_WORKSPACE = 0 };
#else
enum : size_t { BLAS_WORKSPACE = 32 << 20 };         /* what NVIDIA advises for Hopper */
#endif

cudaError_t blas_open(void **handle, cudaStream_t stream);
void blas_close(void *handle);                       /* NULL is legal */
cudaError_t blas_multiply(void *handle, const blas_product &p);

#endif
