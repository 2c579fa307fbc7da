/* cuda.cuh — what the files of the CUDA backend share: its state, how calls reach the device, and
 * how errors come back.
 *
 * Everything runs on one stream, in the order of the calls, so that device scratch is free for the
 * next operation as soon as it is issued. What a kernel needs beside numbers (page tables,
 * descriptions of lanes and calls) is laid out in a host buffer and copied to a table on the device
 * before the launch. That buffer is page-locked, so that no call waits for its copy, and a ring of
 * two halves: before the first byte of a half is written again, the copies out of it are waited
 * for, which were issued at least as many tables ago as a half holds. Calls share one such table,
 * one after the other; those of a decode step that goes to the device as a whole (step.cu) lie
 * behind each other in another. */
#ifndef PYR_CUDA_CUH
#define PYR_CUDA_CUH

#include "launch.cuh"

extern "C" {
#include "backend/backend.h"
#include "backend/plugin.h"
#include "base/dtype.h"
}

enum : size_t { ARRIVALS = 4096 };
/* ARRIVALS: counters for blocks of rows of one matrix (linear_few.cu): 4,096 of 128 rows.
 * CALL_TABLE: of one call at a time; STEP_TABLE: of all calls of a step that goes to the device
 * whole. */
enum { CALL_TABLE, STEP_TABLE, TABLES };

struct cuda_table {
  uint8_t *device, *ring;      /* [bytes] descriptions on the device; [slots][bytes] where they are
                                  laid out, page-locked */
  size_t bytes, slots;         /* slots: even */
  size_t used, at;             /* of the present one; where in the ring it begins */
  cudaEvent_t left[2];         /* the copies out of each half when it was left last */
};

/* The backend's state. One thread at a time calls into it; kernels see none of it. */
struct pyr_cuda {
  const pyr_device_host *host;
  pyr_runtime *rt;
  cudaStream_t stream;
  bool rounded;                /* products of many tokens take operands of 16 bits */
  void *blas;                  /* blas.cuh's handle; NULL: not open yet */
  cuda_table tables[TABLES], *table;   /* table: where descriptions go now */
  uint8_t *scratch;            /* [scratch_bytes] numbers, on the device */
  size_t scratch_bytes;
  int *arrived;                /* [ARRIVALS] blocks that are done, of kernels whose last block goes
                                  on; zeros between kernels */
  struct pyr_cuda_steps *steps;        /* step.cu's */
  pyr_way_counts ways;
};

static inline pyr_cuda *cuda_of(const pyr_backend *be) {
  return static_cast<pyr_cuda *>(be->state);
}

/* ceil_div(10, 4) = 3; round_up(10, 4) = 12. n is not negative. */
static inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
static inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

/* ---- memory (memory.cu) ---------------------------------------------------------------------- */

extern const char cuda_name[];   /* of the device: "cuda" or "emulated" */

/* Scratch, tables and counters as small as they may be; close gives them back. */
pyr_status cuda_memory_open(pyr_backend *be);
void cuda_memory_close(pyr_backend *be);

/* PYR_OK, or PYR_DEVICE (PYR_MEMORY) with the operation's name and the device's reason, which CUDA
 * then has forgotten. */
pyr_status cuda_status(pyr_backend *be, const char *operation, cudaError_t error);
/* What became of the launches since the last call. */
static inline pyr_status cuda_launched(pyr_backend *be, const char *operation) {
  return cuda_status(be, operation, cudaGetLastError());
}

/* PYR_ARGUMENT */
pyr_status cuda_refuse(pyr_backend *be, const char *operation, const char *what);

/* ---- scratch and tables (memory.cu) ---------------------------------------------------------- */

/* Pieces of the scratch, each 256-byte aligned, as cuBLAS wants its workspace. With base NULL it
 * only counts, so that the code that lays scratch out also tells `reserve` how much to set aside.
 */
struct cuda_arena {
  uint8_t *base;
  size_t used;
  template <typename T> T *take(int64_t count) {
    T *piece = base ? reinterpret_cast<T *>(base + used) : nullptr;
    used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 256));
    return piece;
  }
};
static inline cuda_arena cuda_scratch(const pyr_backend *be) {
  return cuda_arena{ cuda_of(be)->scratch, 0 };
}
pyr_status cuda_grow_scratch(pyr_backend *be, size_t bytes);
/* PYR_ARGUMENT if a call needs more scratch than is reserved. */
pyr_status cuda_check(pyr_backend *be, const char *operation, size_t needed);

/* What operations need, for `reserve`. */
size_t cuda_attention_scratch(const pyr_work *work);
size_t cuda_signals_scratch(const pyr_work *work);
size_t cuda_redundancy_scratch(const pyr_work *work);
size_t cuda_linear_scratch(const pyr_work *work);
size_t cuda_linear_few_scratch(const pyr_work *work);
size_t cuda_experts_scratch(const pyr_work *work);
size_t cuda_attention_table(const pyr_work *work);
size_t cuda_pick_scratch(const pyr_work *work);
size_t cuda_pick_table(const pyr_work *work);

/* Descriptions of one call: begin; make room for what the kernels read and fill it in; send. Room
 * is in the host's buffer, and *device is the address that it will have there; NULL if the buffer
 * is full. */
void cuda_table_begin(pyr_backend *be);
void *cuda_table_room(pyr_backend *be, size_t bytes, void **device);
template <typename T> static inline T *cuda_room(pyr_backend *be, int64_t count, T **device) {
  void *there = nullptr, *here = cuda_table_room(be, static_cast<size_t>(count) * sizeof(T),
                                                 &there);
  *device = static_cast<T *>(there);
  return static_cast<T *>(here);
}
/* For step.cu: a table of at least so many bytes, and the next place in its ring. */
pyr_status cuda_grow_table(pyr_backend *be, cuda_table *table, size_t bytes);
void cuda_table_turn(pyr_backend *be);
/* The page table of rows [begin, end) of a lane: view->pages becomes the device's, indexed as the
 * host's is. It is the lane's own there, if that is up to date; else it is described with the call.
 */
bool cuda_put_lane(pyr_backend *be, pyr_lane_view *view, const pyr_lane_view *lane, int64_t begin,
                   int64_t end);
pyr_status cuda_table_send(pyr_backend *be, const char *operation, bool fits);
/* All of that for one lane. */
pyr_status cuda_send_lane(pyr_backend *be, const char *operation, pyr_lane_view *view,
                          const pyr_lane_view *lane, int64_t begin, int64_t end);

/* ---- steps (step.cu) ------------------------------------------------------------------------- */

pyr_status cuda_steps_open(pyr_backend *be);
void cuda_steps_close(pyr_backend *be);

/* The table's, for operations that end with it (elementwise.cu). */
pyr_status cuda_activate(pyr_backend *be, float *gate, const float *up, int64_t count,
                         pyr_activation act, float limit);

/* ---- operations ------------------------------------------------------------------------------ */

/* Each fills its part of the table. */
void cuda_memory_fill(pyr_backend *be);        /* memory.cu: alloc, release, and the copies */
void cuda_elementwise_fill(pyr_backend *be);   /* elementwise.cu: single values and tokens */
void cuda_scores_fill(pyr_backend *be);        /* scores.cu: vectors of scores */
void cuda_linear_fill(pyr_backend *be);        /* linear.cu */
void cuda_experts_fill(pyr_backend *be);       /* experts.cu: route, experts */
void cuda_pack_fill(pyr_backend *be);         /* pack.cu: interleaved, interleave */
void cuda_rows_fill(pyr_backend *be);  /* rows.cu: store, gather, rotate, row_norms, read_rows */
void cuda_merge_fill(pyr_backend *be);         /* merge.cu */
void cuda_attention_fill(pyr_backend *be);     /* attention.cu */
void cuda_mass_fill(pyr_backend *be);          /* mass.cu */
void cuda_select_fill(pyr_backend *be);        /* select.cu: select, choose */
void cuda_pick_fill(pyr_backend *be);          /* sample.cu */
void cuda_signals_fill(pyr_backend *be);       /* signals.cu: key_similarity, lag, output_norm,
                                                  expected */
void cuda_redundancy_fill(pyr_backend *be);    /* redundancy.cu */
void cuda_moments_fill(pyr_backend *be);       /* query_stats.cu: moments, moments_end */
void cuda_steps_fill(pyr_backend *be);  /* step.cu: step_begin, step_end, step_counts, way_counts */
void cuda_probe_fill(pyr_backend *be);         /* probe.cu: facts, trim, measure */

#endif
