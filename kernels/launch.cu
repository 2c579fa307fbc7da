/* launch.cu — launches of kernels: at once, or noted as part of the step that has begun (step.cu).
 *
 * Here kernels are also allowed their shared memory, before their first launch.
 *
 * Two ways of one call:
 *
 *     cuda_launch --- no step has begun ---> launch_now: the device has it
 *                \--- a step has begun  ---> note: node at is compared, told, or added
 *                                            step_end launches the graph */
#include "step.cuh"

#include <cstring>

/* At once. What the device says of it is asked later (cuda_launched), so that no launch waits. */
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

/* Bytes that a kernel's arguments take in a graph's buffer: 8, 4 and 200 bytes take 16 + 16 + 208.
 */
static size_t room_of(const cuda_kernel &kernel) {
  size_t room = 0;
  for (int i = 0; i < kernel.count; i++) room += (kernel.sizes[i] + 15u) / 16 * 16;
  return room;
}

/* Copies arguments to where the node has them; true if that changed anything. Compared byte by
 * byte: structures that are arguments have no padding whose bytes nobody set, or a node would be
 * told for nothing. */
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

/* CUDA reads arguments through a list of their addresses, while it is told; they may move later. */
bool cuda_node_params(const step_graph *g, const step_node *node, void **at,
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

/* Both go: nodes of a graph that changed in number have no place in the old one. */
void cuda_drop_exec(step_graph *g) {
  if (g->exec) (void)cudaGraphExecDestroy(g->exec);
  if (g->graph) (void)cudaGraphDestroy(g->graph);
  g->exec = nullptr;
  g->graph = nullptr;
}

/* Room for `wanted`, twice as much if it must be made: then n additions copy 2 n at most. False: no
 * memory, and the list is as it was. */
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
 * block, beside its static part: of 227 KiB and 1 KiB static, 226. The amount is the device's and
 * never a launch's, as runtimes of a process share it: one that allowed less would take from
 * another. A refusal shows in the launch. */
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

/* A grid that changes is told like an argument: the graph's shape stays. */
static bool same(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

/* Puts a node's new arguments and grid into the graph that the device has. */
static void tell(pyr_cuda_steps *steps, step_graph *g, const step_node *node) {
  void *at[64];
  cudaKernelNodeParams params;
  cudaError_t error = cuda_node_params(g, node, at, &params)
      ? cudaGraphExecKernelNodeSetParams(g->exec, node->node, &params)
                                                      : cudaErrorInvalidValue;
  steps->counts.told++;
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  cuda_drop_exec(g);  /* it is made again, with what it could not be told */
}

/* The next kernel of the step that has begun. Invariant: nodes [0, at) are what this step launched
 * so far; if exec is not NULL the device's graph has exactly nodes [0, count), with their
 * arguments. */
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
  cuda_drop_exec(g);  /* another step than the last: from here on everything is new */
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
  /* Padding between arguments is zeros. */
  memset(g->arguments + from, 0, room);
  (void)put_arguments(g, fresh, arguments);
  steps->at++;
}

/* Every kernel of the backend comes through here. */
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
