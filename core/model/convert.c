/* convert.c — see convert.h. Rows are independent: each is read to f32 and written as the new
 * format by one task of the team, into a piece of memory that goes to the output in one write. So a
 * call holds n rows of the result, and of f32 two rows for each worker. */
#include "model/convert.h"
#include "base/dtype.h"
#include "base/runtime.h"
#include "model/source.h"

#include <string.h>

typedef struct conversion {
  pyr_source from;
  pyr_dtype as;
  bool copies;                  /* bytes as they are */
  float plus;                   /* to values of a vector */
  int64_t first, run;           /* run: rows, or a vector's values, of a head; 0: in order */
  size_t stride;                /* bytes of a row of `out` */
  char *out;
  float *scratch;               /* [workers, each]; NULL if it copies */
  size_t each;                  /* 2 rows, or what a packed matrix needs */
} conversion;

/* Where row `row` of the result lies in the source: of a run of 4, row 1 is the first of the second
 * half. */
static int64_t source_row(int64_t run, int64_t row) {
  if (run == 0) return row;
  int64_t at = row % run;
  return row - at + at % 2 * (run / 2) + at / 2;
}

static void convert_row(void *ctx, int64_t task, int worker) {
  const conversion *c = ctx;
  int64_t cols = c->from.cols, row = c->first + task;
  char *dst = c->out + (size_t)task * c->stride;
  if (!c->from.vector) row = source_row(c->run, row);
  if (c->copies) {
    memcpy(dst, (const char *)c->from.view.data + (size_t)row * c->stride, c->stride);
    return;
  }
  float *values = c->scratch + (size_t)worker * c->each;
  if (c->from.is_packed) {
    pyr_packed_rows(&c->from.packed, row, 1, dst, c->stride, c->as, values);
    return;
  }
  pyr_source_row(&c->from, row, values);
  if (c->from.vector && c->run > 0) {
    for (int64_t i = 0; i < cols; i++) values[cols + i] = values[source_row(c->run, i)];
    values += cols;
  }
  for (int64_t i = 0; c->plus != 0 && i < cols; i++) values[i] += c->plus;
  pyr_row_from_f32(dst, c->as, values, cols);
}

/* Fills *c but for its memory. */
static pyr_status plan(pyr_runtime *rt, const pyr_tensor_spec *spec, int32_t heads, int64_t n,
                       conversion *c) {
  const char *name = spec->name ? spec->name : "(unnamed)";
  const pyr_source *from = &c->from;
  PYR_TRY(pyr_source_open(rt, spec, &c->from));
  int64_t dealt = from->vector ? from->cols : from->rows;
  if (c->as != from->view.dtype && !pyr_dtype_writable(c->as))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "tensor %s: values do not become %s", name,
                                 pyr_dtype_name(c->as));
  if (c->first < 0 || n < 1 || n > from->rows || c->first > from->rows - n)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "tensor %s: %lld rows from %lld on, of %lld",
                                 name, (long long)n, (long long)c->first, (long long)from->rows);
  if (heads < 0 || (heads > 0 && dealt % ((int64_t)heads * 2) != 0))
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "tensor %s: %lld rows are no %d even heads",
                                 name, (long long)dealt, heads);
  c->run = heads > 0 ? dealt / heads : 0;
  c->stride = pyr_dtype_bytes(c->as, from->cols);
  if (c->stride == 0)
    return pyr_runtime_set_error(rt, PYR_FORMAT,
                                 "%s: tensor %s: rows of %lld values are no whole blocks of %s",
                                 pyr_file_path(spec->file), name, (long long)from->cols,
                                 pyr_dtype_name(c->as));
  c->copies = c->as == from->view.dtype && pyr_source_contiguous(from)
      && !(from->vector && (heads > 0 || c->plus != 0));
  if (!from->vector) c->plus = 0;
  return PYR_OK;
}

pyr_status pyr_convert_rows(pyr_runtime *rt, const pyr_tensor_spec *spec, pyr_dtype as,
                            int32_t heads, float plus, int64_t first, int64_t n, pyr_output *out) {
  conversion c = { .as = as, .plus = plus, .first = first };
  char why[PYR_WHY_BYTES];
  size_t bytes, scratch_bytes = 0;
  PYR_TRY(plan(rt, spec, heads, n, &c));
  if (!pyr_mul_size((size_t)n, c.stride, &bytes)) return pyr_nomem(rt, SIZE_MAX, "conversion");
  pyr_status status = PYR_OK;
  c.out = pyr_alloc(rt, bytes);
  if (!c.copies) {
    c.each = c.from.is_packed ? pyr_packed_scratch(&c.from.packed) : 2 * (size_t)c.from.cols;
    scratch_bytes = (size_t)pyr_runtime_threads(rt) * c.each * sizeof(float);
    c.scratch = pyr_alloc(rt, scratch_bytes);
  }
  if (!c.out || (!c.copies && !c.scratch)) {
    status = pyr_nomem(rt, bytes + scratch_bytes, "conversion");
    goto done;
  }
  pyr_parallel(rt, convert_row, &c, n);
  /* read once: a file larger than memory need not push out what others use */
  if (!c.from.vector && pyr_source_contiguous(&c.from))
    pyr_file_forget(spec->file, (const char *)c.from.view.data + (size_t)first * c.from.view.stride,
                    (size_t)n * c.from.view.stride);
  if (!pyr_output_write(out, c.out, bytes, why))
    status = pyr_runtime_set_error(rt, pyr_disk_status(), "%s", why);
done:
  pyr_release(rt, c.scratch, scratch_bytes);
  pyr_release(rt, c.out, bytes);
  return status;
}
