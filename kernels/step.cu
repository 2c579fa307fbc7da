/* step.cu — the kernels of a small decode step go to the device together.
 *
 * A step is hundreds of kernels, each shorter than it takes to launch it. So where a step is small
 * its kernels are noted instead of launched (launch.cu), and go to the device as one graph, which
 * is kept: in the next step, each kernel is compared with what the graph has in its place, and only
 * if an argument or the grid differs (a lane has come to another segment; the scratch has moved)
 * that node is told. What changes from step to step (how many rows lanes have) is in the
 * descriptions that kernels read out of the step's table, which is written while they are noted and
 * copied at once; page tables lie on the device already.
 *
 * Views of lanes lie on the device, too, where the host does not say otherwise (`list_lanes`), so
 * that a step describes calls alone: of 88 sequences of 40 layers 3,520 of each operation, and not
 * their 140,800 lanes. Where lanes are described and many (more than MOST_LANES), writing all of
 * them before the first kernel runs would take longer than launches do: then kernels are launched
 * as they come, as in a prefill.
 *
 * Three steps, of kernels A B C D (' : other arguments):
 *
 *     noted            the graph had     what happens
 *     A B C D          nothing           four nodes; built, launched
 *     A B' C D         A B C D           B's node is told its new arguments; launched
 *     A B E            A B' C D          from E on everything is new: built again, launched
 *     A B              A B E             E is cut off: built again, launched
 *
 * Graphs are kept for the last eight pairs of model and number of sequences: batches whose
 * sequences end one by one pass through few. A step is a chain: its kernels depend on each other
 * anyway, and the order of a stream is what they were written for. */
#include "step.cuh"

#include <cstring>

/* Lanes of all layers and sequences, where they are described with each step: 30 layers of 3 heads
 * are 90 a sequence, and 91 sequences of such a model go together. Resident lanes are not counted:
 * their steps go together whatever they are of. */
enum : int64_t { MOST_LANES = 8192 };

/* Gives back all of a graph; its place is free. */
static void forget(pyr_backend *be, step_graph *g) {
  const pyr_device_host *host = cuda_of(be)->host;
  cuda_drop_exec(g);
  host->release(be->rt, g->nodes, g->nodes_room * sizeof *g->nodes);
  host->release(be->rt, g->arguments, g->arguments_room);
  *g = step_graph{};
}

/* The graph of a model and a number of sequences, or the one used longest ago, emptied for it. */
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

/* From here to cuda_step_end kernels are noted, and descriptions go to the step's own table, which
 * must hold all of the step's: none of them may be written over before the graph has run. Large
 * steps return without any of that: `now` stays NULL, and launches are launches. */
static pyr_status cuda_step_begin(pyr_backend *be, const void *model, const pyr_work *work,
                                  int layers) {
  pyr_cuda *cuda = cuda_of(be);
  pyr_cuda_steps *steps = cuda->steps;
  pyr_work without = *work;
  without.rows = 0;                                  /* page tables are the lanes' own */
  if (!work->resident && layers * work->sequences * work->kv_heads > MOST_LANES) return PYR_OK;
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

/* The device's graph of what was noted, each node after the one before. */
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
    if (!cuda_node_params(g, node, at, &params)) return cudaErrorInvalidValue;
    error = cudaGraphAddKernelNode(&node->node, g->graph, i > 0 ? &g->nodes[i - 1].node : nullptr,
                                   i > 0 ? 1 : 0, &params);
  }
  return error == cudaSuccess ? cudaGraphInstantiate(&g->exec, g->graph, 0) : error;
}

/* In this order: what was noted of fewer kernels than the graph has cuts it off; the table is
 * copied; the graph is built, if nothing of it is kept; it is launched. Copy and launch are on one
 * stream, so that the kernels find the table. `run` false: the step failed before its end, and
 * nothing runs. */
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
    cuda_drop_exec(g);
    g->arguments_used = g->nodes[steps->at].at;
    g->count = steps->at;
  }
  cudaError_t error = cudaSuccess;
  if (table->used > 0)
    error = cudaMemcpyAsync(table->device, table->ring + table->at, table->used,
                            cudaMemcpyHostToDevice, cuda->stream);
  if (error == cudaSuccess && g->exec == nullptr) {
    cuda_drop_exec(g);
    error = build(g);
    steps->counts.built++;
  }
  if (error == cudaSuccess) error = cudaGraphLaunch(g->exec, cuda->stream);
  steps->counts.launched++;
  if (error != cudaSuccess) forget(be, g);
  return cuda_status(be, "step", error);
}

/* How many graphs were built and launched, nodes told, kernels launched by themselves. */
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
