/* matmul.h — bf16 matrix products through oneDNN, for processors that multiply bf16 in hardware.
 *
 * out[m, n] = a[m, k] . b[n, k]^T with a and b in bf16 and sums in f32. b is row-major as weights
 * lie in their files, so nothing is packed and mapped weights are used where they are; packed they
 * gain 4 %. out is contiguous: into a part of a larger matrix oneDNN 2.6 takes another way, which
 * is a tenth slower.
 *
 * oneDNN keeps one thread here: the operations share their work out over the runtime's own team,
 * and a second team under it would fight it. Primitives are made before tasks begin
 * (pyr_matmul_prepare), so that running one cannot fail for want of memory; they are kept, as the
 * shapes of a model are few. */
#ifndef PYR_CPU_MATMUL_H
#define PYR_CPU_MATMUL_H

#include "base/runtime.h"

typedef struct pyr_matmul pyr_matmul;
typedef struct pyr_product pyr_product;  /* a primitive for one shape; owned by the pyr_matmul */

/* 512 tokens, a panel of 128 rows, 1,536 columns: m 512, n 128, k 1,536; ldb 1,536 where the
 * panel was made in scratch, the weight's own stride / 2 where it is used as it lies. */
typedef struct pyr_matmul_shape {
  int64_t m, n, k;
  int64_t ldb;           /* values from row to row of b; a and out are contiguous */
} pyr_matmul_shape;

/* *out is NULL, and the status PYR_OK, where the processor or the build has no fast bf16 product.
 */
pyr_status pyr_matmul_open(pyr_runtime *rt, pyr_matmul **out);
/* Gives back all primitives; none may be running. */
void pyr_matmul_close(pyr_matmul *mm);       /* NULL is legal */
pyr_status pyr_matmul_prepare(pyr_matmul *mm, const pyr_matmul_shape *shape,
                              const pyr_product **out);
/* Runs in a worker of the team. False if oneDNN failed. */
bool pyr_matmul_run(pyr_matmul *mm, const pyr_product *product, int worker, float *out,
                    const uint16_t *a, const uint16_t *b);

#endif
