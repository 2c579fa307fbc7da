/* source.c — rows of a weight out of a file that holds them in another order. See source.h. */
#include "model/source.h"
#include "base/dtype.h"

#include <string.h>

/* Rows that runs are of: a vector's are its values, so that a run of one value is not all of it. */
static int64_t counted(const pyr_source *s) { return s->vector ? s->cols : s->rows; }

bool pyr_source_contiguous(const pyr_source *s) {
  return !s->scattered && !s->transposed && !s->is_packed;
}

/* What is packed has no rows to point at: nothing of the view but its shape is to be used. */
static pyr_status open_packed(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_source *out) {
  pyr_source s = { .is_packed = true };
  PYR_TRY(pyr_packed_open(rt, spec, &s.packed));
  s.rows = s.run = s.step = s.packed.rows;
  s.cols = s.packed.cols;
  s.view = (pyr_tensor){ .dtype = PYR_F32, .rank = 2, .shape = { s.rows, s.cols } };
  *out = s;
  return PYR_OK;
}

/* One message for all that runs can get wrong: with the three numbers it says which. A transposed
 * matrix's run is all of its rows, as its columns are taken whole. */
static pyr_status refuse_rows(pyr_runtime *rt, const pyr_tensor_spec *spec) {
  return pyr_runtime_set_error(rt, PYR_FORMAT, "tensor %s: %lld rows in runs of %lld, %lld apart",
                               spec->name ? spec->name : "(unnamed)", (long long)spec->shape[0],
                               (long long)spec->run, (long long)spec->step);
}

/* `count` pieces of `size`, `step` apart, from the first's beginning to the last's end:
 *
 *     count 3, step 6, size 2      xx....xx....xx      14
 *
 * False where that is nothing, where pieces overlap, or where it would not fit 62 bits. */
static bool reach(int64_t count, int64_t step, int64_t size, int64_t *out) {
  if (count < 1 || size < 1 || step < size || count > INT64_MAX / 2 / step) return false;
  *out = (count - 1) * step + size;
  return true;
}

/* What the file must hold, from what the model has: rows [0, last] of the larger matrix; or, of a
 * transposed one, all between its first and last value, as one vector. A vector's values are
 * counted as rows of one value each. Of 8 heads of 64 rows in runs of 64, 192 apart, the file holds
 * 7 * 192 + 64 = 1,408 rows from the first on: what follows the last run belongs to k and v. The
 * view checks that so many lie inside of it. */
pyr_status pyr_source_open(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_source *out) {
  if (spec->packing) return open_packed(rt, spec, out);
  pyr_tensor_spec held = *spec;
  pyr_source s = { .run = spec->run, .step = spec->step, .transposed = spec->transposed != 0,
                   .every = spec->every > 1 ? spec->every : 1, .vector = spec->rank == 1 };
  int64_t across = 0;   /* columns of a transposed matrix, from the first taken to the last */
  bool scattered = spec->run != 0;
  if (scattered || s.transposed) {
    if (pyr_dtype_valid((int)spec->dtype) && pyr_dtype_block(spec->dtype) != 1)
      return pyr_runtime_set_error(rt, PYR_FORMAT,
                                   "tensor %s: parts of it are wanted, which blocks of %s do not "
                                   "allow", spec->name ? spec->name : "(unnamed)",
                                   pyr_dtype_name(spec->dtype));
    if (!scattered) s.run = s.step = spec->shape[0];
    bool right = s.transposed
        ? !s.vector && s.run == spec->shape[0] && reach(s.run, s.every, 1, &across)
          && reach(spec->shape[1], s.step, across, &held.shape[0])
        : s.run > 0 && spec->shape[0] % s.run == 0
          && reach(spec->shape[0] / s.run, s.step, s.run, &held.shape[0]);
    if (!right) return refuse_rows(rt, spec);
    if (s.transposed) held.rank = 1;
  }
  PYR_TRY(pyr_tensor_view(rt, &held, &s.view, &s.aligned));
  s.rows = s.vector ? 1 : spec->shape[0];
  s.cols = s.vector ? spec->shape[0] : spec->shape[1];
  if (s.transposed) s.view.stride = (size_t)s.step * pyr_dtype_block_bytes(spec->dtype);
  if (!scattered && !s.transposed) s.run = s.step = counted(&s);
  s.scattered = s.run != counted(&s);
  *out = s;
  return PYR_OK;
}

/* Rows that lie as the view shows them are a smaller view, whose stride stays; of others their
 * place is counted from the first that was there:
 *
 *     view     8 rows of 6       rows 2 to 5, columns 3 to 5: begins at row 2, value 3, stride 6
 *     run 2    row r             is row r + 2 of the runs */
pyr_status pyr_source_cut(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_source *s, int64_t row,
                          int64_t rows, int64_t col, int64_t cols) {
  int64_t block = s->is_packed ? 1 : pyr_dtype_block(s->view.dtype);
  if (col % block != 0 || cols % block != 0)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "tensor %s: columns %lld to %lld of it are wanted, which are no "
                                 "whole blocks of %s; bind it converted, to q8_0 for instance",
                                 spec->name ? spec->name : "(unnamed)", (long long)col,
                                 (long long)(col + cols - 1), pyr_dtype_name(s->view.dtype));
  if (!pyr_source_contiguous(s)) {
    s->row0 = row, s->col0 = col;
  } else {
    size_t at = pyr_dtype_bytes(s->view.dtype, col);
    s->view.data = (const char *)s->view.data + (size_t)row * s->view.stride + at;
    s->view.shape[0] = s->vector ? cols : rows;
    if (!s->vector) s->view.shape[1] = cols;
    s->run = s->step = s->vector ? cols : rows;
  }
  s->rows = rows, s->cols = cols;
  return PYR_OK;
}

/* A scattered vector's values and a transposed row's lie apart, and are read one by one: of GPT-2's
 * [768, 3072] a row of the model's is a column of the file's, 768 values 12,288 bytes apart. Once,
 * while the model is loaded. */
void pyr_source_row(const pyr_source *s, int64_t row, float *values) {
  const char *data = s->view.data;
  size_t size = pyr_dtype_block_bytes(s->view.dtype);
  row += s->row0;
  if (s->transposed) {
    data += (size_t)(row * s->every) * size;
    for (int64_t i = 0; i < s->cols; i++)
      pyr_row_to_f32(values + i, data + (size_t)(s->col0 + i) * s->view.stride, s->view.dtype, 1);
  } else if (s->vector && !pyr_source_contiguous(s)) {
    for (int64_t i = 0, at = s->col0; i < s->cols; i++, at++)
      pyr_row_to_f32(values + i, data + (size_t)(at / s->run * s->step + at % s->run) * size,
                     s->view.dtype, 1);
  } else {
    int64_t at = row / s->run * s->step + row % s->run;
    data += (size_t)at * s->view.stride + pyr_dtype_bytes(s->view.dtype, s->col0);
    pyr_row_to_f32(values, data, s->view.dtype, s->cols);
  }
}
