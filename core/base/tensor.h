/* tensor.h — a typed view of memory. It owns nothing and does nothing: operations are in backend.h.
 */
#ifndef PYR_TENSOR_H
#define PYR_TENSOR_H

#include "pyramid.h"

typedef struct pyr_tensor {
  const void *data;    /* rows of `stride` bytes; may be unaligned for quantised dtypes, else
                          element-aligned */
  pyr_dtype dtype;
  int32_t rank;        /* 1 or 2; 0 marks "no tensor" */
  int64_t shape[2];    /* [rows, cols]; a vector is [n, 1] with rank 1 and contiguous */
  size_t stride;       /* bytes from row to row; of a row, where rows are interleaved */
  int32_t interleaved; /* so many rows that follow each other lie interleaved, in the backend's own
                          order; 0: none */
} pyr_tensor;

#endif
