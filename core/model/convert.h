/* convert.h — rows of a weight, in another number format and another order, into a file that is
 * being written.
 *
 * Owns nothing: the rows come from a mapped file (source.h), go to an output (disk.h), and the
 * memory between them is the runtime's for the length of a call, so that it counts. Which weights a
 * file holds and how its header is written is Lua's (lua/pyramid/tools/convert.lua). */
#ifndef PYR_CONVERT_H
#define PYR_CONVERT_H

#include "base/disk.h"

/* Appends rows [first, first + n) of a weight to `out`, as they would lie in `as`, which is
 * writable or the weight's own dtype (then bytes are copied as they are). A vector is one row.
 *
 * heads > 0: rows, or a vector's values, are counted as GGUF files of Llamas have those of q and k.
 * Within each of `heads` runs of them the first half and the second are dealt like cards, so that
 * what RoPE pairs as (i, i + d/2) lies side by side: of 2 heads of 4 rows, rows 0 … 7 are 0 2 1 3,
 * 4 6 5 7. 0: they lie as the weight has them. plus: is added to a vector's values, as GGUF files
 * hold norms' weights whole of which checkpoints have what they are beyond 1.
 *
 * PYR_ARGUMENT: no such rows, heads that do not divide them into even runs, a dtype that values do
 * not become; PYR_FORMAT: spec is no tensor of the file, or its rows are no whole blocks of `as`;
 * PYR_MEMORY; PYR_IO. The output holds anything then, and is to be given up. */
pyr_status pyr_convert_rows(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_dtype as,
                            int32_t heads, float plus, int64_t first, int64_t n, pyr_output *out);

#endif
