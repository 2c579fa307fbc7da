/* step.cu — launches: at once, or, of a small decode step, together.
 *
 * A step is hundreds of kernels, each shorter than it takes to launch it. So where a step is small
 * its kernels are noted instead of launched, and go to the device as one graph, which is kept: in
 * the next step, each kernel is compared with what the graph has in its place, and only if an
 * argument or the grid differs (a lane has come to another segment; the scratch has moved) that
 * node is told. What changes from step to step (how many rows lanes have) is in the descriptions
 * that kernels read out of the step's table, which is written while they are noted and copied at
 * once; page tables lie on the device already.
 *
 * Where a step is large (more than MOST_LANES), launches take no time worth saving, and writing all
 * descriptions before the first kernel runs would: then kernels are launched as they come, as in a
 * prefill.
 *
 * Here kernels are also allowed their shared memory, before their first launch. */
#include "cuda.cuh"

#include <cstring>

enum : int64_t { MOST_LANES = 8192 };

struct step_node {
  cuda_kernel kernel;
  dim3 grid;
  unsigned block;
  size_t shared;
  size_t at;                         /* of its arguments in the graph's, each aligned to 16 */
  cudaGraphNode_t node;
};

struct step_graph {
  const void *model;                 /* NULL: not in use */
  int64_t sequences;
  uint64_t used;                     /* when it was last; the oldest makes room */
  step_node *nodes;
  size_t count, nodes_room;
  uint8_t *arguments;
  size_t arguments_used, arguments_room;
  cudaGraph_t graph;
  cudaGraphExec_t exec;              /* NULL: nodes have come or gone since */
};

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

/* ---- launching ------------------------------------------------------------------------------- */

static void launch_now(pyr_cuda *cuda, const cuda_kernel &kernel, dim3 grid, unsigned block,
                       size_t shared, void **arguments) {
#ifdef PYR_EMULATED
  (void)cuda;
  pyr_emulate_launch({ kernel.function, kernel.name, kernel.count, kernel.sizes, kernel.run },
                     grid, dim3(block), shared, arguments);
#else
  (void)cudaLaunchKernel(kernel.function, grid, dim3(block), arguments, shared, cuda->stream);
#endif
}

static size_t room_of(const cuda_kernel &kernel) {
  size_t room = 0;
  for (int i = 0; i < kernel.count; i++) room += (kernel.sizes[i] + 15u) / 16 * 16;
  return room;
}

/* Copies arguments to where the node has them; true if that changed anything. */
static bool put_arguments(const step_graph *g, const step_node *node, void **arguments) {
  uint8_t *to = g->arguments + node->at;
  bool changed = false;
  for (int i = 0; i < node->kernel.count; i++) {
    changed = changed || memcmp(to, arguments[i], node->kernel.sizes[i]) != 0;
    memcpy(to, arguments[i], node->kernel.sizes[i]);
    to += (node->kernel.sizes[i] + 15u) / 16 * 16;
  }
  return changed;
}

/* What CUDA is told of a node; its arguments are where `at` [64] says. */
static bool params_of(const step_graph *g, const step_node *node, void **at,
                      cudaKernelNodeParams *params) {
  uint8_t *from = g->arguments + node->at;
  if (node->kernel.count > 64) return false;
  for (int i = 0; i < node->kernel.count; i++) {
    at[i] = from;
    from += (node->kernel.sizes[i] + 15u) / 16 * 16;
  }
  *params = cudaKernelNodeParams{};
  params->func = const_cast<void *>(node->kernel.function);
  params->gridDim = node->grid;
  params->blockDim = dim3(node->block);
  params->sharedMemBytes = static_cast<unsigned>(node->shared);
  params->kernelParams = at;
  return true;
}

static void drop_exec(step_graph *g) {
  if (g->exec) (void)cudaGraphExecDestroy(g->exec);
  if (g->graph) (void)cudaGraphDestroy(g->graph);
  g->exec = nullptr;
  g->graph = nullptr;
}

template <typename T>
static bool grow(pyr_cuda *cuda, T **list, size_t used, size_t *room, size_t wanted) {
  if (wanted <= *room) return true;
  size_t fresh = wanted * 2;
  T *copy = static_cast<T *>(cuda->host->alloc(cuda->rt, fresh * sizeof(T)));
  if (copy == nullptr) return false;
  if (used > 0) memcpy(copy, *list, used * sizeof(T));
  cuda->host->release(cuda->rt, *list, *room * sizeof(T));
  *list = copy;
  *room = fresh;
  return true;
}

/* Once for each kernel that has dynamic shared memory: it may have as much as the device gives a
 * block, beside its static part. The amount is the device's and never a launch's, as runtimes of a
 * process share it. A refusal shows in the launch. */
static void allow(pyr_cuda *cuda, const void *function) {
  pyr_cuda_steps *steps = cuda->steps;
  cudaFuncAttributes facts;
  int most = 0;
  for (size_t i = 0; i < steps->allowed_count; i++)
    if (steps->allowed[i] == function) return;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) != cudaSuccess ||
      cudaFuncGetAttributes(&facts, function) != cudaSuccess ||
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           most - static_cast<int>(facts.sharedSizeBytes)) != cudaSuccess)
    return;
  if (grow(cuda, &steps->allowed, steps->allowed_count, &steps->allowed_room,
           steps->allowed_count + 1))
    /* without memory for it, it is allowed again */
    steps->allowed[steps->allowed_count++] = function;
}

static bool same(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

static void tell(pyr_cuda_steps *steps, step_graph *g, const step_node *node) {
  void *at[64];
  cudaKernelNodeParams params;
  cudaError_t error = params_of(g, node, at, &params)
      ? cudaGraphExecKernelNodeSetParams(g->exec, node->node, &params)
                                                      : cudaErrorInvalidValue;
  steps->counts.told++;
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  drop_exec(g);  /* it is made again, with what it could not be told */
}

static void note(pyr_cuda *cuda, const cuda_kernel &kernel, dim3 grid, unsigned block,
                 size_t shared, void **arguments) {
  pyr_cuda_steps *steps = cuda->steps;
  step_graph *g = steps->now;
  step_node *node = g->nodes + steps->at;
  if (steps->at < g->count && node->kernel.function == kernel.function) {
    bool changed = put_arguments(g, node, arguments) || !same(node->grid, grid)
        || node->block != block || node->shared != shared;
    node->grid = grid;
    node->block = block;
    node->shared = shared;
    if (changed && g->exec) tell(steps, g, node);
    steps->at++;
    return;
  }
  drop_exec(g);  /* another step than the last: from here on everything is new */
  size_t from = steps->at < g->count ? g->nodes[steps->at].at : g->arguments_used,
      room = room_of(kernel);
  g->count = steps->at;
  g->arguments_used = from;
  if (!grow(cuda, &g->nodes, g->count, &g->nodes_room, g->count + 1) ||
      !grow(cuda, &g->arguments, from, &g->arguments_room, from + room)) {
    steps->failed = true;
    steps->why = cudaErrorMemoryAllocation;
    return;
  }
  step_node *fresh = g->nodes + g->count++;
  *fresh = step_node{ kernel, grid, block, shared, from, nullptr };
  g->arguments_used += room;
  memset(g->arguments + from, 0, room);
  (void)put_arguments(g, fresh, arguments);
  steps->at++;
}

void cuda_launch(pyr_cuda *cuda, const cuda_kernel &kernel, dim3 grid, unsigned block,
                 size_t shared, void **arguments) {
  if (shared > 0) allow(cuda, kernel.function);
  if (cuda->steps->now == nullptr) {
    cuda->steps->counts.single++;
    launch_now(cuda, kernel, grid, block, shared, arguments);
  } else if (!cuda->steps->failed) {
    note(cuda, kernel, grid, block, shared, arguments);
  }
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void forget(pyr_backend *be, step_graph *g) {
  const pyr_device_host *host = cuda_of(be)->host;
  drop_exec(g);
  host->release(be->rt, g->nodes, g->nodes_room * sizeof *g->nodes);
  host->release(be->rt, g->arguments, g->arguments_room);
  *g = step_graph{};
}

static step_graph *graph_for(pyr_backend *be, const void *model, int64_t sequences) {
  pyr_cuda_steps *steps = cuda_of(be)->steps;
  step_graph *oldest = steps->graphs;
  for (step_graph &g : steps->graphs) {
    if (g.model == model && g.sequences == sequences) return &g;
    if (g.used < oldest->used) oldest = &g;
  }
  forget(be, oldest);
  oldest->model = model;
  oldest->sequences = sequences;
  return oldest;
}

static pyr_status cuda_step_begin(pyr_backend *be, const void *model, const pyr_work *work,
                                  int layers) {
  pyr_cuda *cuda = cuda_of(be);
  pyr_cuda_steps *steps = cuda->steps;
  pyr_work without = *work;
  without.rows = 0;                                  /* page tables are the lanes' own */
  if (layers * work->sequences * work->kv_heads > MOST_LANES) return PYR_OK;
  pyr_status status = cuda_grow_table(be, &cuda->tables[STEP_TABLE],
                                      static_cast<size_t>(layers) * cuda_attention_table(&without));
  if (status != PYR_OK) return status;
  steps->now = graph_for(be, model, work->sequences);
  steps->now->used = ++steps->clock;
  steps->at = 0;
  steps->failed = false;
  cuda->table = &cuda->tables[STEP_TABLE];
  cuda_table_turn(be);
  return PYR_OK;
}

static cudaError_t build(step_graph *g) {
  cudaError_t error = cudaGraphCreate(&g->graph, 0);
  for (size_t i = 0; i < g->count && error == cudaSuccess; i++) {
    void *at[64];
    cudaKernelNodeParams params;
    step_node *node = g->nodes + i;
#ifdef PYR_EMULATED
    pyr_emulate_name({ node->kernel.function, node->kernel.name, node->kernel.count,
                       node->kernel.sizes, node->kernel.run });
#endif
    if (!params_of(g, node, at, &params)) return cudaErrorInvalidValue;
    error = cudaGraphAddKernelNode(&node->node, g->graph, i > 0 ? &g->nodes[i - 1].node : nullptr,
                                   i > 0 ? 1 : 0, &params);
  }
  return error == cudaSuccess ? cudaGraphInstantiate(&g->exec, g->graph, 0) : error;
}

static pyr_status cuda_step_end(pyr_backend *be, bool run) {
  pyr_cuda *cuda = cuda_of(be);
  pyr_cuda_steps *steps = cuda->steps;
  step_graph *g = steps->now;
  if (g == nullptr) return PYR_OK;
  steps->now = nullptr;
  cuda_table *table = cuda->table;
  cuda->table = &cuda->tables[CALL_TABLE];
  if (!run || steps->failed) {
    pyr_status status = steps->failed ? cuda_status(be, "step", steps->why) : PYR_OK;
    forget(be, g);  /* its nodes and what was noted may no longer agree */
    return status;
  }
  if (steps->at < g->count) {
    drop_exec(g);
    g->arguments_used = g->nodes[steps->at].at;
    g->count = steps->at;
  }
  cudaError_t error = cudaSuccess;
  if (table->used > 0)
    error = cudaMemcpyAsync(table->device, table->ring + table->at, table->used,
                            cudaMemcpyHostToDevice, cuda->stream);
  if (error == cudaSuccess && g->exec == nullptr) {
    drop_exec(g);
    error = build(g);
    steps->counts.built++;
  }
  if (error == cudaSuccess) error = cudaGraphLaunch(g->exec, cuda->stream);
  steps->counts.launched++;
  if (error != cudaSuccess) forget(be, g);
  return cuda_status(be, "step", error);
}

static void cuda_step_counts(pyr_backend *be, pyr_step_counts *out) {
  *out = cuda_of(be)->steps->counts;
}

static void cuda_way_counts(pyr_backend *be, pyr_way_counts *out) { *out = cuda_of(be)->ways; }

pyr_status cuda_steps_open(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  void *room = cuda->host->alloc(be->rt, sizeof *cuda->steps);
  if (room == nullptr)
    return cuda->host->set_error(be->rt, PYR_MEMORY, "out of memory: the backend needs %zu bytes",
                                 sizeof *cuda->steps);
  cuda->steps = static_cast<pyr_cuda_steps *>(memset(room, 0, sizeof *cuda->steps));
  return PYR_OK;
}

void cuda_steps_close(pyr_backend *be) {
  pyr_cuda *cuda = cuda_of(be);
  if (cuda->steps == nullptr) return;
  for (step_graph &g : cuda->steps->graphs) forget(be, &g);
  cuda->host->release(be->rt, cuda->steps->allowed,
                      cuda->steps->allowed_room * sizeof *cuda->steps->allowed);
  cuda->host->release(be->rt, cuda->steps, sizeof *cuda->steps);
  cuda->steps = nullptr;
}

void cuda_steps_fill(pyr_backend *be) {
  be->step_begin = cuda_step_begin;
  be->step_end = cuda_step_end;
  be->step_counts = cuda_step_counts;
  be->way_counts = cuda_way_counts;
}
