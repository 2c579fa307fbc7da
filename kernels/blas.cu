/* blas.cu — see blas.cuh.
 *
 * Why a plan is kept: the library works its algorithm out on the host, each time it is asked. A
 * shape is all that the choice depends on, alignments of addresses included, so
 * that a plan fits every call of its shape; only addresses are told anew. The plan used longest ago
 * makes room. */
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

/* As the library may, it has nothing for some shapes: so the way round is taken in specs, too. */
cudaError_t blas_multiply(void *, const blas_product &p) {
  if (p.ld_out % 2 != 0) return cudaErrorNotSupported;
  for (int64_t i = 0; i < p.n; i++)
    for (int64_t r = 0; r < p.rows; r++) {
      float sum = 0, *out = p.out + i * p.ld_out + r;
      for (int64_t c = 0; c < p.cols; c++)
        sum += operand(p.x, p.type, i * p.ld_x + c) * operand(p.w, p.type, r * p.ld_w + c);
      if (p.bias) sum += p.bias[r];
      *out = p.add ? *out + sum : sum;
    }
  return cudaGetLastError();
}

#else

#include <cublasLt.h>
#include <cstring>
#include <dlfcn.h>
#include <new>

/* The functions of libcublasLt that are used. */
#define FUNCTIONS(X) \
  X(Create) X(Destroy) X(Matmul) X(MatmulAlgoGetHeuristic) \
  X(MatrixLayoutCreate) X(MatrixLayoutDestroy) \
  X(MatmulDescCreate) X(MatmulDescDestroy) X(MatmulDescSetAttribute) \
  X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy) X(MatmulPreferenceSetAttribute)

struct shape {
  int64_t n, rows, cols, ld_out, ld_x, ld_w;
  /* bias: whether there is one; its address is told with each call */
  int64_t type, bias, align_out, align_x, align_w;   /* as wide as the rest: shapes are compared
                                                        byte by byte */
};

/* How a product of one shape is made. */
struct plan {
  shape of;
  uint64_t used;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t w, x, out;
  cublasLtMatmulAlgo_t algorithm;
};

enum { PLANS = 64 };  /* a model has a dozen shapes, for each number of tokens */

struct blas {
#define X(name) decltype(&cublasLt##name) name;
  FUNCTIONS(X)
#undef X
  cublasLtHandle_t handle;
  cudaStream_t stream;
  uint64_t clock;
  int count;
  plan plans[PLANS];
};

/* The library of CUDA 13, or else what the system calls it. It is not linked: the backend's object
 * opens without it, and reports it missing when products are to be rounded. */
cudaError_t blas_open(void **handle, cudaStream_t stream) {
  void *library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcublasLt.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) return cudaErrorSharedObjectInitFailed;
  blas *b = new (std::nothrow) blas();
  if (!b) return cudaErrorMemoryAllocation;
  bool whole = true;
#define X(name) \
  b->name = reinterpret_cast<decltype(&cublasLt##name)>(dlsym(library, "cublasLt" #name)); \
  whole = whole && b->name != nullptr;
  FUNCTIONS(X)
#undef X
  b->stream = stream;
  cudaError_t error = !whole ? cudaErrorSharedObjectSymbolNotFound
                             : b->Create(&b->handle) == CUBLAS_STATUS_SUCCESS ? cudaSuccess
                                 : cudaErrorInitializationError;
  if (error == cudaSuccess) *handle = b;
  else delete b;
  return error;
}

/* Gives back what a plan has of the library; it may have been described in part. */
static void drop(blas *b, plan *p) {
  if (p->desc) (void)b->MatmulDescDestroy(p->desc);
  for (cublasLtMatrixLayout_t layout : { p->w, p->x, p->out })
    if (layout) (void)b->MatrixLayoutDestroy(layout);
  *p = plan{};
}

void blas_close(void *handle) {
  blas *b = static_cast<blas *>(handle);
  if (b == nullptr) return;
  for (int i = 0; i < b->count; i++) drop(b, &b->plans[i]);
  (void)b->Destroy(b->handle);
  delete b;
}

/* ---- plans ----------------------------------------------------------------------------------- */

/* The largest power of two, 256 at most, that an address and the bytes from row to row are
 * multiples of: of address 0x1040 and rows of 96 bytes 32. The lowest bit that is set in either, or
 * 256. */
static int64_t alignment_of(const void *at, int64_t stride) {
  uint64_t bits = reinterpret_cast<uintptr_t>(at) | static_cast<uint64_t>(stride) | 256;
  return static_cast<int64_t>(bits & (~bits + 1));
}

/* What an algorithm is chosen by. */
static shape shape_of(const blas_product &p) {
  int64_t size = p.type == BLAS_F32 ? 4 : 2;
  return shape{ p.n, p.rows, p.cols, p.ld_out, p.ld_x, p.ld_w, p.type, p.bias != nullptr,
                alignment_of(p.out, p.ld_out * 4), alignment_of(p.x, p.ld_x * size),
                    alignment_of(p.w, p.ld_w * size) };
}

template <typename T>
static bool set(blas *b, cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, T value) {
  return b->MatmulDescSetAttribute(desc, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}
template <typename T>
static bool set(blas *b, cublasLtMatmulPreference_t wish,
                cublasLtMatmulPreferenceAttributes_t what, T value) {
  return b->MatmulPreferenceSetAttribute(wish, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

/* cuBLAS counts columns first: its out^T [rows, n] = w [cols, rows]^T . x^T [cols, n]. */
static bool describe(blas *b, plan *p) {
  const shape &s = p->of;
  cudaDataType type = s.type == BLAS_F32 ? CUDA_R_32F : s.type == BLAS_F16 ? CUDA_R_16F
      : CUDA_R_16BF;
  uint64_t n = static_cast<uint64_t>(s.n), rows = static_cast<uint64_t>(s.rows),
      cols = static_cast<uint64_t>(s.cols);
  return b->MatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
         set(b, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T)
             && set(b, p->desc, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N) &&
         (!s.bias || set(b, p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS)) &&
         b->MatrixLayoutCreate(&p->w, type, cols, rows, s.ld_w) == CUBLAS_STATUS_SUCCESS &&
         b->MatrixLayoutCreate(&p->x, type, cols, n, s.ld_x) == CUBLAS_STATUS_SUCCESS &&
         b->MatrixLayoutCreate(&p->out, CUDA_R_32F, rows, n, s.ld_out) == CUBLAS_STATUS_SUCCESS;
}

/* The algorithm that the library thinks fastest among those that sum each output in one place (no
 * reduction over blocks), in the workspace there is, at the alignment there is. */
static bool choose(blas *b, plan *p) {
  cublasLtMatmulPreference_t wish;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  if (b->MatmulPreferenceCreate(&wish) != CUBLAS_STATUS_SUCCESS) return false;
  bool wished = set(b, wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    static_cast<size_t>(BLAS_WORKSPACE)) &&
                set(b, wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE)) &&
                set(b, wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                    static_cast<uint32_t>(p->of.align_w)) &&
                set(b, wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                    static_cast<uint32_t>(p->of.align_x)) &&
                set(b, wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                    static_cast<uint32_t>(p->of.align_out)) &&
                set(b, wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                    static_cast<uint32_t>(p->of.align_out));
  bool chosen = wished && b->MatmulAlgoGetHeuristic(b->handle, p->desc, p->w, p->x, p->out, p->out,
                                                    wish, 1, &result, &found) ==
                              CUBLAS_STATUS_SUCCESS && found > 0;
  (void)b->MatmulPreferenceDestroy(wish);
  if (chosen) p->algorithm = result.algo;
  return chosen;
}

/* The plan of a shape, made if there is none; NULL: the library has no algorithm. The bias is told
 * before an algorithm is asked for: some versions give none for an epilogue that has nothing to
 * add. A plan that could not be made leaves its place empty, of no shape, and used longest ago. */
static plan *plan_for(blas *b, const shape &wanted, const float *bias) {
  plan *oldest = b->plans;
  for (int i = 0; i < b->count; i++) {
    if (memcmp(&b->plans[i].of, &wanted, sizeof wanted) == 0) return &b->plans[i];
    if (b->plans[i].used < oldest->used) oldest = &b->plans[i];
  }
  if (b->count < PLANS) oldest = &b->plans[b->count++];
  drop(b, oldest);
  oldest->of = wanted;
  bool told = describe(b, oldest) && (!bias || set(b, oldest->desc,
                                                   CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias));
  if (told && choose(b, oldest)) return oldest;
  drop(b, oldest);
  return nullptr;
}

/* cudaErrorNotSupported: the library has no algorithm for the shape; nothing was launched. */
cudaError_t blas_multiply(void *handle, const blas_product &p) {
  blas *b = static_cast<blas *>(handle);
  const float one = 1, zero = 0;
  plan *how = plan_for(b, shape_of(p), p.bias);
  if (how == nullptr) return cudaErrorNotSupported;
  how->used = ++b->clock;
  if (p.bias && !set(b, how->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias))
    return cudaErrorInvalidValue;
  cublasStatus_t status = b->Matmul(b->handle, how->desc, &one, p.w, how->w, p.x, how->x,
                                    p.add ? &one : &zero, p.out, how->out, p.out, how->out,
                                        &how->algorithm, p.workspace, BLAS_WORKSPACE, b->stream);
  return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
}

#endif
