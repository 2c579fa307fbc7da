/* linear.cuh — what the kernels of matrix products share: the description of a call, and how an
 * output is written.
 *
 * Who does what: linear.cu is the operation, and holds the kernels for many tokens; linear_few.cu
 * has those for few. */
#ifndef PYR_CUDA_LINEAR_CUH
#define PYR_CUDA_LINEAR_CUH

#include "pack.cuh"

enum { STREAM_ROWS = 128 };          /* of a block that streams weights (linear_few.cu) */

/* One product, or a part of one. out [n][rows], x [n][cols], bias [rows] or NULL: f32. w: rows of
 * `stride` bytes of `dtype`; of packs (pack.cuh), PACK rows to PACK * stride bytes. */
struct linear_call {
  float *out;
  const float *x;
  const uint8_t *w;
  size_t stride;
  int64_t dtype;                     /* or PACKED; as wide as the rest because calls are compared
                                        byte by byte (step.cu) */
  const float *bias;
  int64_t n, rows, cols;
  int64_t add;                       /* to what is there, if not 0 */
};

/* The one place where a sum leaves a kernel: bias first, then what was there, whatever the kernel.
 */
static __device__ __forceinline__ void put_out(const linear_call &c, int64_t token, int64_t row,
                                               float sum) {
  float *out = c.out + token * c.rows + row;
  if (c.bias) sum += c.bias[row];
  *out = c.add ? *out + sum : sum;
}

/* Any number of tokens; a token's result is the same whatever others there are. Fast for few, and
 * where weights can be streamed through tensor cores. */
pyr_status cuda_linear_few(pyr_backend *be, const linear_call &c);
bool cuda_streams(const linear_call &c);

#endif
