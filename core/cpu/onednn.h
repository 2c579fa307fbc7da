/* onednn.h — oneDNN's C interface, of versions 2 and 3, as far as it is used here: descriptions of
 * memory and of matrix products, and the number of its threads.
 *
 * Version 2 has descriptions as values, version 3 owns them and hands out pointers.
 * `pyr_dnnl_layout` is either: made, asked for and freed by the functions below, in which alone the
 * two differ; the header's version macro picks. A zeroed one is none.
 *
 * The number of threads is OpenMP's, where oneDNN was built for OpenMP: two functions of its
 * standard, declared here, since not every compiler finds <omp.h>. Other builds of oneDNN have
 * threads of their own or none, and are left alone. */
#ifndef PYR_CPU_ONEDNN_H
#define PYR_CPU_ONEDNN_H

#include <dnnl.h>

#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
extern int omp_get_max_threads(void);
extern void omp_set_num_threads(int);
static inline int pyr_dnnl_threads(void) { return omp_get_max_threads(); }
/* of this thread's parallel regions only */
static inline void pyr_dnnl_set_threads(int n) { omp_set_num_threads(n); }
#else
static inline int pyr_dnnl_threads(void) { return 1; }
static inline void pyr_dnnl_set_threads(int n) { (void)n; }
#endif

typedef dnnl_memory_desc_t pyr_dnnl_layout;

#if DNNL_VERSION_MAJOR >= 3

typedef const_dnnl_memory_desc_t pyr_dnnl_layout_ref;
static inline pyr_dnnl_layout_ref pyr_dnnl_layout_of(const pyr_dnnl_layout *l) { return *l; }

static inline void pyr_dnnl_layout_free(pyr_dnnl_layout *l) {
  if (*l) dnnl_memory_desc_destroy(*l);
  *l = NULL;
}

/* Two dimensions; values from one to the next along each, or NULL: as oneDNN likes it best. */
static inline dnnl_status_t pyr_dnnl_layout_make(pyr_dnnl_layout *l, const dnnl_dims_t dims,
                                                 dnnl_data_type_t type, const dnnl_dim_t *strides) {
  return strides ? dnnl_memory_desc_create_with_strides(l, 2, dims, type, strides)
                 : dnnl_memory_desc_create_with_tag(l, 2, dims, type, dnnl_format_tag_any);
}

static inline dnnl_status_t pyr_dnnl_layout_copy(pyr_dnnl_layout *l, pyr_dnnl_layout_ref from) {
  return dnnl_memory_desc_clone(l, from);
}

/* out = x . w; attr may be NULL. */
static inline dnnl_status_t pyr_dnnl_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                            const pyr_dnnl_layout *x, const pyr_dnnl_layout *w,
                                                const pyr_dnnl_layout *out,
                                                    dnnl_primitive_attr_t attr) {
  return dnnl_matmul_primitive_desc_create(pd, engine, *x, *w, NULL, *out, attr);
}

#else

typedef const dnnl_memory_desc_t *pyr_dnnl_layout_ref;
static inline pyr_dnnl_layout_ref pyr_dnnl_layout_of(const pyr_dnnl_layout *l) { return l; }

/* A value: nothing is owned. */
static inline void pyr_dnnl_layout_free(pyr_dnnl_layout *l) { (void)l; }

static inline dnnl_status_t pyr_dnnl_layout_make(pyr_dnnl_layout *l, const dnnl_dims_t dims,
                                                 dnnl_data_type_t type, const dnnl_dim_t *strides) {
  return strides ? dnnl_memory_desc_init_by_strides(l, 2, dims, type, strides)
                 : dnnl_memory_desc_init_by_tag(l, 2, dims, type, dnnl_format_tag_any);
}

static inline dnnl_status_t pyr_dnnl_layout_copy(pyr_dnnl_layout *l, pyr_dnnl_layout_ref from) {
  return *l = *from, dnnl_success;
}

static inline dnnl_status_t pyr_dnnl_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                            const pyr_dnnl_layout *x, const pyr_dnnl_layout *w,
                                                const pyr_dnnl_layout *out,
                                                    dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t desc;
  dnnl_status_t code = dnnl_matmul_desc_init(&desc, x, w, NULL, out);
  return code == dnnl_success ? dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL) : code;
}

#endif
#endif
