/* weights.h — files mapped into memory, and the check that turns a tensor's description into a view
 * of one.
 *
 * Owns: the mapping. Does not own: what the file's headers mean (lua/pyramid/loaders reads them),
 * nor what a tensor is for (model.c). Nothing that a file says is believed here: a description
 * becomes a view only when every byte of it lies inside the mapping. */
#ifndef PYR_WEIGHTS_H
#define PYR_WEIGHTS_H

#include "base/runtime.h"
#include "base/tensor.h"

pyr_file *pyr_file_retain(pyr_file *file);
const char *pyr_file_path(const pyr_file *file);  /* as given to pyr_file_open; owned by the file */
const void *pyr_file_data(const pyr_file *file);   /* page-aligned, pyr_file_size bytes */

bool pyr_file_mapped(const pyr_file *file);

/* The bytes [at, at+bytes) of the mapping will not be read soon: they need no longer be resident.
 * Nothing where the file was read. */
void pyr_file_forget(pyr_file *file, const void *at, size_t bytes);

/* Fills *view from *spec. Checks: file and dtype given; rank 1 or 2; dimensions >= 1 whose product
 * fits; the contiguous dimension a multiple of the dtype's block; bytes exactly what shape and
 * dtype need; offset + bytes inside the mapping. A vector becomes [n, 1] with rank 1 (tensor.h).
 * view->data may be less aligned than pyr_dtype_align asks: the caller looks at *aligned and
 * copies. Nothing is retained. PYR_FORMAT with tensor and field in the message; *view untouched. */
pyr_status pyr_tensor_view(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_tensor *view,
                           bool *aligned);

#endif
