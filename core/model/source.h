/* source.h — where the rows of a weight come from, when they do not lie in the file as the model
 * has them.
 *
 * A checkpoint may hold several weights in one matrix, rows of them in turn, or a matrix the other
 * way round. What a model has is then a selection:
 *
 *     run 2, step 6 of a matrix with the rows      0 1 2 3 4 5 6 7 8 9 10 11
 *     are the rows                                 0 1         6 7             (offset 0)
 *                                                      2 3         8 9         (offset 2 rows)
 *
 * as GPT-NeoX and Falcon interleave q, k and v head by head. Transposed: the file has [in, out], as
 * GPT-2's Conv1D; of GPT-OSS's every second column is a row of the gates, the others are the ups'.
 * Owns nothing: views of a file (weights.h). Rows that lie otherwise than they are bound are
 * converted one by one, through f32; dtypes of files that do so hold in it. */
#ifndef PYR_SOURCE_H
#define PYR_SOURCE_H

#include "base/tensor.h"
#include "base/weights.h"
#include "model/packed.h"

typedef struct pyr_source {
  pyr_tensor view;     /* all that the rows are taken from, as the file has it */
  int64_t rows, cols;  /* as the model has them; a vector is one row */
  int64_t run, step;   /* row r, or value r of a vector, lies at r / run * step + r % run; run ==
                          rows, or cols of a vector: one after another;
                          transposed: value i of row r lies at i * step + r * every */
  int64_t every;
  int64_t row0, col0;  /* pyr_source_cut's, where rows do not lie as a view shows them */
  bool scattered, transposed, aligned, vector;   /* scattered: in runs that are apart */
  bool is_packed;      /* rows come out of `packed`; view is the matrix as f32, without data */
  pyr_packed packed;
} pyr_source;

/* Checked as pyr_tensor_view checks, and: rows a multiple of run, step >= run, dtypes without
 * blocks where rows (or a vector's values) are scattered or transposed. PYR_FORMAT names tensor and
 * field. */
pyr_status pyr_source_open(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_source *out);

/* Leaves rows [row, row + rows) and columns [col, col + cols) of it, as if the file had no others:
 * a vector has one row. PYR_UNSUPPORTED: columns that are no whole blocks. */
pyr_status pyr_source_cut(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_source *s, int64_t row,
                          int64_t rows, int64_t col, int64_t cols);

/* Whether the rows lie one after the other, as a view shows them. */
bool pyr_source_contiguous(const pyr_source *s);

/* values [cols] = row 0 <= row < rows. */
void pyr_source_row(const pyr_source *s, int64_t row, float *values);

#endif
