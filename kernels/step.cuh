/* step.cuh — a decode step that is noted, and the graph that is kept of it: what launch.cu, which
 * notes kernels, and step.cu, which begins and ends steps, share. */
#ifndef PYR_CUDA_STEP_CUH
#define PYR_CUDA_STEP_CUH

#include "cuda.cuh"

/* A kernel of a step, as the graph has it. Arguments lie apart, in one buffer, one kernel's behind
 * the other's, so that nodes are small and all alike:
 *
 *     nodes        | A at 0 | B at 48 | C at 64 |
 *     arguments    | A: 16 16 16 | B: 16 | C: … |     each argument rounded up to 16 bytes */
struct step_node {
  cuda_kernel kernel;
  dim3 grid;
  unsigned block;
  size_t shared;
  size_t at;                         /* of its arguments in the graph's, each aligned to 16 */
  cudaGraphNode_t node;
};

/* A graph that is kept: of one model, for one number of sequences. */
struct step_graph {
  const void *model;                 /* NULL: not in use */
  int64_t sequences;
  uint64_t used;                     /* when it was last; the oldest makes room */
  step_node *nodes;
  size_t count, nodes_room;
  uint8_t *arguments;
  size_t arguments_used, arguments_room;
  /* nodes [count] in the order of their launches; each waits for the one before, as on a stream */
  cudaGraph_t graph;
  cudaGraphExec_t exec;              /* NULL: nodes have come or gone since */
};

/* What the runtime keeps of its steps. `failed` stays set from the kernel that could not be noted
 * to the end of the step: a step goes to the device whole, or not at all. */
struct pyr_cuda_steps {
  step_graph graphs[8];              /* one for each number of sequences that steps lately had */
  step_graph *now;                   /* what is being noted; NULL: nothing is */
  size_t at;                         /* nodes that were noted so far */
  bool failed;                       /* no memory to note them, or the device refused */
  cudaError_t why;
  uint64_t clock;
  pyr_step_counts counts;
  const void **allowed;              /* kernels that may have all shared memory of a block */
  size_t allowed_count, allowed_room;
};

/* What CUDA is told of a node; its arguments are where `at` [64] says. False: it has more. */
bool cuda_node_params(const step_graph *g, const step_node *node, void **at,
                      cudaKernelNodeParams *params);
/* Forgets what the device has of a graph; its nodes stay. */
void cuda_drop_exec(step_graph *g);

#endif
