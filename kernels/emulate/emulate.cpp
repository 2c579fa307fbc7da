/* emulate.cpp — runs kernels on the processor: launches, fibres, barriers, warp operations, and memory with guards.
 *
 * A block's threads are fibres with stacks of their own, run in order of their index, every other block's in falling order, so
 * that what is read before a barrier makes it sure is seen to be wrong. A fibre runs until it waits: at a
 * barrier, for the rest of its block; in a warp operation, for the rest of its warp. The last lane to reach a warp operation
 * completes it and runs on; what the lanes handed in stays readable until every lane has come to the next one but one, which
 * none can before all have left this one. When nobody can run on, either all threads of the block stand at one barrier, which
 * then opens, or the kernel is wrong, and the launch fails with a message.
 *
 * Switching fibres is a dozen instructions on x86-64, and swapcontext elsewhere. Fibres of a launch that failed are left where
 * they stand: they hold nothing. */
#include "cuda.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum : size_t { THREADS = 1024, STACK = SANITIZED ? 256 << 10 : 64 << 10, GUARD = 64, SHARED = 48 << 10, MOST_SHARED = 99 << 10 };

/* ---- errors ------------------------------------------------------------------------------------------------------------ */

char message[512];
cudaError_t last = cudaSuccess;

cudaError_t fail(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
cudaError_t fail(cudaError_t error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  return last = error;
}

/* ---- fibres ------------------------------------------------------------------------------------------------------------ */

enum waiting { READY, IN_WARP, AT_BARRIER, DONE };

#if defined(__x86_64__)
typedef void *context;
extern "C" void pyr_emulate_switch(void **save, void *load) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl pyr_emulate_switch
.hidden pyr_emulate_switch
.type pyr_emulate_switch, @function
pyr_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pyr_emulate_switch, .-pyr_emulate_switch
)");
#else
typedef ucontext_t context;
#endif

struct fiber {
  context at;
  waiting state;
  int line;                /* of the barrier that it waits at */
  unsigned turn;           /* the warp's turn that it waits for the end of */
  uint8_t *stack;
  void *fake;              /* the sanitizer's */
};

struct warp {
  unsigned arrived, turn;  /* lanes in the current operation; operations completed */
  int kind;
  uint64_t value[2][32];   /* of the operations of even and odd turns */
};

/* Asynchronous copies of a thread, in the order of issue; those of groups below `closed` are committed. */
enum { COPIES = 256 };
struct copy { void *to; const void *from; int group; bool real; };
struct copies { int count, closed; copy list[COPIES]; };

struct allowance { const void *kernel; size_t bytes; };    /* of dynamic shared memory, beyond SHARED */

fiber *fibers;             /* [THREADS], with their stacks, from the first launch on */
warp warps[THREADS / 32];
context home;
#if SANITIZED
const void *home_stack;
size_t home_size;
#endif
unsigned current, threads;
copies *in_flight;         /* [THREADS] */
allowance allowances[64];
int allowance_count;
const char *kernel;
const pyr_emulate_kernel *running;
void *const *arguments_of_it;
uint8_t *dynamic_shared;
bool broken;               /* the launch has failed */
bool backwards;            /* this block's threads run in falling order */
std::recursive_mutex lock;

void enter_fiber(fiber *f) {
#if SANITIZED
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, f->stack, STACK);
#endif
#if defined(__x86_64__)
  pyr_emulate_switch(&home, f->at);
#else
  swapcontext(&home, &f->at);
#endif
#if SANITIZED
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void leave_fiber(fiber *f) {
#if SANITIZED
  __sanitizer_start_switch_fiber(f->state == DONE ? nullptr : &f->fake, home_stack, home_size);
#endif
#if defined(__x86_64__)
  pyr_emulate_switch(&f->at, home);
#else
  swapcontext(&f->at, &home);
#endif
#if SANITIZED
  __sanitizer_finish_switch_fiber(f->fake, nullptr, nullptr);
#endif
}

void fiber_main() {
#if SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_size);
#endif
  running->run(running->function, arguments_of_it);
  if (in_flight[current].count > 0 && !broken) {
    fail(cudaErrorLaunchFailure, "%s: thread %u of block (%u, %u, %u) returns with asynchronous copies under way", kernel, current,
         blockIdx.x, blockIdx.y, blockIdx.z);
    broken = true;
  }
  fibers[current].state = DONE;
  leave_fiber(&fibers[current]);
  abort();                 /* a fibre that is done is never entered again */
}

void start_fiber(fiber *f) {
  f->state = READY;
  in_flight[f - fibers].count = in_flight[f - fibers].closed = 0;
#if SANITIZED
  ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK);
#endif
#if defined(__x86_64__)
  void **top = reinterpret_cast<void **>(f->stack + STACK);
  *--top = nullptr;        /* the entry finds the stack as after a call: 8 bytes past a multiple of 16 */
  *--top = reinterpret_cast<void *>(fiber_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f->at = top;
#else
  getcontext(&f->at);
  f->at.uc_stack.ss_sp = f->stack;
  f->at.uc_stack.ss_size = STACK;
  f->at.uc_link = nullptr;
  makecontext(&f->at, fiber_main, 0);
#endif
}

bool make_fibers() {
  if (fibers) return true;
  fiber *fresh = static_cast<fiber *>(calloc(THREADS, sizeof *fresh));
  uint8_t *stacks = static_cast<uint8_t *>(malloc(THREADS * STACK));
  copies *room = static_cast<copies *>(malloc(THREADS * sizeof *room));
  if (!fresh || !stacks || !room) {
    free(fresh);
    free(stacks);
    free(room);
    return false;
  }
  for (size_t i = 0; i < THREADS; i++) fresh[i].stack = stacks + i * STACK;
  fibers = fresh;
  in_flight = room;
  return true;
}

/* Ends the launch from inside a fibre, which is never entered again. */
void break_off(fiber *f) {
  broken = true;
  f->state = DONE;
  leave_fiber(f);
  abort();
}

/* ---- a block ----------------------------------------------------------------------------------------------------------- */

bool runnable(unsigned t) {
  const fiber *f = &fibers[t];
  return f->state == READY || (f->state == IN_WARP && warps[t / 32].turn != f->turn);
}

/* Lets the lanes of a warp run until all wait for others. */
void run_warp(unsigned first) {
  for (bool any = true; any && !broken;) {
    any = false;
    for (unsigned i = 0; i < 32 && !broken; i++) {
      unsigned t = first + (backwards ? 31 - i : i);
      if (!runnable(t)) continue;
      any = true;
      current = t;
      threadIdx.x = t;
      fibers[t].state = READY;
      enter_fiber(&fibers[t]);
    }
  }
}

/* What threads wait for when none can run; true if the block goes on. */
bool open_barrier() {
  unsigned done = 0, first = THREADS;
  for (unsigned t = 0; t < threads; t++) {
    const fiber *f = &fibers[t];
    if (f->state == IN_WARP) {
      fail(cudaErrorLaunchFailure, "%s: thread %u of block (%u, %u, %u) waits in a warp operation that not all lanes reach",
           kernel, t, blockIdx.x, blockIdx.y, blockIdx.z);
      broken = true;
      return false;
    }
    done += f->state == DONE;
    if (f->state == AT_BARRIER && first == THREADS) first = t;
  }
  if (done == threads) return false;
  if (done > 0) {
    fail(cudaErrorLaunchFailure, "%s: %u threads of block (%u, %u, %u) returned while thread %u waits at the barrier in line %d",
         kernel, done, blockIdx.x, blockIdx.y, blockIdx.z, first, fibers[first].line);
    broken = true;
    return false;
  }
  for (unsigned t = 0; t < threads; t++) {
    if (fibers[t].line != fibers[0].line) {
      fail(cudaErrorLaunchFailure, "%s: threads 0 and %u of block (%u, %u, %u) wait at barriers in lines %d and %d", kernel, t,
           blockIdx.x, blockIdx.y, blockIdx.z, fibers[0].line, fibers[t].line);
      broken = true;
      return false;
    }
    fibers[t].state = READY;
  }
  return true;
}

void run_block(size_t shared) {
  if (shared) memset(dynamic_shared, 0xff, shared);
  memset(warps, 0, threads / 32 * sizeof *warps);
  for (unsigned t = 0; t < threads; t++) start_fiber(&fibers[t]);
  do
    for (unsigned t = 0; t < threads && !broken; t += 32) run_warp(backwards ? threads - 32 - t : t);
  while (!broken && open_barrier());
}

size_t allowed(const void *address) {
  for (int i = 0; i < allowance_count; i++)
    if (allowances[i].kernel == address && allowances[i].bytes > SHARED) return allowances[i].bytes;
  return SHARED;
}

bool check_launch(const void *address, dim3 grid, dim3 block, size_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    fail(cudaErrorInvalidConfiguration, "%s: a grid of %u x %u x %u blocks", kernel, grid.x, grid.y, grid.z);
  else if (block.x == 0 || block.x % 32 != 0 || block.x > THREADS || block.y != 1 || block.z != 1)
    fail(cudaErrorInvalidConfiguration, "%s: blocks of %u x %u x %u threads", kernel, block.x, block.y, block.z);
  else if (shared > allowed(address))
    fail(cudaErrorInvalidConfiguration, "%s: %zu bytes of shared memory", kernel, shared);
  else if (!make_fibers())
    fail(cudaErrorMemoryAllocation, "%s: no memory for its threads", kernel);
  else
    return true;
  return false;
}

}   // namespace

void pyr_emulate_launch(const pyr_emulate_kernel &which, dim3 grid, dim3 block, size_t shared, void *const *arguments) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  kernel = which.name;
  if (last != cudaSuccess || !check_launch(which.function, grid, block, shared)) return;   /* a failure stays until asked for */
  dynamic_shared = shared ? static_cast<uint8_t *>(malloc(shared)) : nullptr;
  if (shared && !dynamic_shared) {
    fail(cudaErrorMemoryAllocation, "%s: no memory for a block's shared memory", kernel);
    return;
  }
  running = &which;
  arguments_of_it = arguments;
  gridDim = grid;
  blockDim = block;
  threads = block.x;
  broken = false;
  for (unsigned z = 0; z < grid.z && !broken; z++)
    for (unsigned y = 0; y < grid.y && !broken; y++)
      for (unsigned x = 0; x < grid.x && !broken; x++) {
        blockIdx = dim3(x, y, z);
        backwards = !backwards;
        run_block(shared);
      }
  free(dynamic_shared);
  dynamic_shared = nullptr;
}

/* ---- what threads wait for ----------------------------------------------------------------------------------------------- */

void *pyr_emulate_shared(void) { return dynamic_shared; }

void pyr_emulate_barrier(int line) {
  fiber *f = &fibers[current];
  f->state = AT_BARRIER;
  f->line = line;
  leave_fiber(f);
}

/* Joins the warp's current operation with `value`; `all`, if any, is called with the values by the last lane to come. */
static const uint64_t *meet(int kind, uint64_t value, void (*all)(void *const *each)) {
  unsigned t = current, lane = t % 32;
  warp *w = &warps[t / 32];
  fiber *f = &fibers[t];
  if (w->arrived && w->kind != kind) {
    fail(cudaErrorLaunchFailure, "%s: thread %u meets its warp in another warp operation", kernel, t);
    break_off(f);
  }
  unsigned turn = w->turn;
  uint64_t *values = w->value[turn & 1];
  w->kind = kind;
  w->arrived |= 1u << lane;
  values[lane] = value;
  if (w->arrived == 0xffffffffu) {
    if (all) {
      void *each[32];
      for (int i = 0; i < 32; i++) each[i] = reinterpret_cast<void *>(values[i]);
      all(each);
    }
    w->arrived = 0;
    w->turn++;
  } else {
    f->state = IN_WARP;
    f->turn = turn;
    leave_fiber(f);
  }
  return values;
}

uint64_t pyr_emulate_exchange(int kind, unsigned mask, uint64_t value, int from) {
  if (mask != 0xffffffffu) {
    fail(cudaErrorLaunchFailure, "%s: thread %u names only some lanes of its warp (mask %08x)", kernel, current, mask);
    break_off(&fibers[current]);
  }
  return meet(kind, value, nullptr)[from];
}

void pyr_emulate_together(int kind, void *mine, void (*all)(void *const *each)) {
  meet(kind, reinterpret_cast<uint64_t>(mine), all);
}

unsigned pyr_emulate_ballot(unsigned mask, bool predicate) {
  unsigned turn = warps[current / 32].turn, votes = 0;
  const warp *w = &warps[current / 32];
  pyr_emulate_exchange(PYR_BALLOT, mask, predicate, 0);
  for (int lane = 0; lane < 32; lane++) votes |= (unsigned)w->value[turn & 1][lane] << lane;
  return votes;
}

/* ---- asynchronous copies ------------------------------------------------------------------------------------------------- */

void pyr_emulate_copy(void *to, const void *from, bool real) {
  copies *c = &in_flight[current];
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || c->count == COPIES) {
    fail(cudaErrorLaunchFailure, c->count == COPIES ? "%s: thread %u has too many asynchronous copies under way"
                                                    : "%s: thread %u copies 16 bytes that are not aligned", kernel, current);
    break_off(&fibers[current]);
  }
  memset(to, 0xff, 16);
  c->list[c->count++] = copy{ to, from, c->closed, real };
}

void pyr_emulate_commit(void) { in_flight[current].closed++; }

void pyr_emulate_wait(int left) {
  copies *c = &in_flight[current];
  int kept = 0;
  for (int i = 0; i < c->count; i++) {
    const copy one = c->list[i];
    if (one.group >= c->closed - left) c->list[kept++] = one;
    else if (one.real) memcpy(one.to, one.from, 16);
    else memset(one.to, 0, 16);
  }
  c->count = kept;
}

cudaError_t pyr_emulate_allow(const void *address, int bytes) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (bytes < 0 || static_cast<size_t>(bytes) > MOST_SHARED) return cudaErrorInvalidValue;
  int i = 0;
  while (i < allowance_count && allowances[i].kernel != address) i++;
  if (i == static_cast<int>(sizeof allowances / sizeof *allowances)) return cudaErrorInvalidValue;
  if (i == allowance_count) allowance_count++;
  allowances[i] = allowance{ address, static_cast<size_t>(bytes) };
  return cudaSuccess;
}

/* ---- the runtime API ------------------------------------------------------------------------------------------------------- */

/* A block of memory: its size, a guard, what was asked for, a guard. Where a sanitizer watches, its end is the block's end. */
namespace {
struct header { uint64_t size, unused[7]; uint8_t guard[GUARD]; };
static_assert(sizeof(header) == 128, "blocks stay aligned to 64 bytes");
const size_t behind = SANITIZED ? (size_t)0 : GUARD;
}   // namespace

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = nullptr; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

/* Page-locked memory: copies out of it are under way until an event behind them, or the stream, has been waited for. The
 * runtimes of a process share no memory, so that one list serves all. */
struct pyr_emulate_event { uint64_t behind; };
namespace {
struct flight { const uint8_t *from, *to; uint64_t number; };
std::mutex flights_lock;
std::vector<flight> locked, flights;      /* blocks; copies */
uint64_t copies;

void landed(uint64_t number) {
  size_t kept = 0;
  for (const flight &f : flights)
    if (f.number > number) flights[kept++] = f;
  flights.resize(kept);
}

bool overlap(const std::vector<flight> &list, const uint8_t *from, const uint8_t *to) {
  for (const flight &f : list)
    if (from < f.to && f.from < to) return true;
  return false;
}
}   // namespace

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  std::lock_guard<std::mutex> hold(flights_lock);
  landed(copies);
  return last;
}

cudaError_t cudaHostAlloc(void **ptr, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> hold(flights_lock);
  *ptr = malloc(bytes);
  if (*ptr == nullptr) return cudaErrorMemoryAllocation;
  const uint8_t *at = static_cast<uint8_t *>(*ptr);
  locked.push_back(flight{ at, at + bytes, 0 });
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *ptr) {
  std::lock_guard<std::mutex> hold(flights_lock);
  for (size_t i = 0; i < locked.size(); i++) {
    if (locked[i].from != ptr) continue;
    if (overlap(flights, locked[i].from, locked[i].to))
      return fail(cudaErrorLaunchFailure, "page-locked memory was given back while a copy out of it was under way");
    locked.erase(locked.begin() + static_cast<std::ptrdiff_t>(i));
    free(ptr);
    return last;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = static_cast<cudaEvent_t>(calloc(1, sizeof **event));
  return *event ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  std::lock_guard<std::mutex> hold(flights_lock);
  event->behind = copies;
  return last;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::lock_guard<std::mutex> hold(flights_lock);
  landed(event->behind);
  return last;
}

/* ---- graphs ---- */

struct pyr_emulate_node { pyr_emulate_kernel kernel; dim3 grid, block; size_t shared; std::vector<std::vector<uint8_t>> arguments; };
struct pyr_emulate_graph { std::vector<pyr_emulate_node *> nodes; };
struct pyr_emulate_exec { std::vector<pyr_emulate_node> nodes; std::vector<pyr_emulate_node *> of; };

namespace {
std::vector<pyr_emulate_kernel> named;

const pyr_emulate_kernel *kernel_of(const void *function) {
  for (const pyr_emulate_kernel &k : named)
    if (k.function == function) return &k;
  return nullptr;
}

bool fill_node(pyr_emulate_node *node, const cudaKernelNodeParams *p) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  const pyr_emulate_kernel *k = kernel_of(p->func);
  if (k == nullptr || p->extra != nullptr) return false;
  *node = pyr_emulate_node{ *k, p->gridDim, p->blockDim, p->sharedMemBytes, {} };
  for (int i = 0; i < k->count; i++) {
    const uint8_t *at = static_cast<const uint8_t *>(p->kernelParams[i]);
    node->arguments.emplace_back(at, at + k->sizes[i]);
  }
  return true;
}
}   // namespace

void pyr_emulate_name(const pyr_emulate_kernel &kernel) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (kernel_of(kernel.function) == nullptr) named.push_back(kernel);
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned) {
  *graph = new (std::nothrow) pyr_emulate_graph;
  return *graph ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  for (pyr_emulate_node *node : graph->nodes) delete node;
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph, const cudaGraphNode_t *after, size_t count,
                                   const cudaKernelNodeParams *params) {
  bool chain = graph->nodes.empty() ? count == 0 : count == 1 && after[0] == graph->nodes.back();
  *node = chain ? new (std::nothrow) pyr_emulate_node : nullptr;
  if (!chain) return cudaErrorInvalidValue;
  if (*node == nullptr) return cudaErrorMemoryAllocation;
  if (!fill_node(*node, params)) {
    delete *node;
    return cudaErrorInvalidValue;
  }
  graph->nodes.push_back(*node);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
  *exec = new (std::nothrow) pyr_emulate_exec;
  if (*exec == nullptr) return cudaErrorMemoryAllocation;
  (*exec)->of = graph->nodes;
  for (const pyr_emulate_node *node : graph->nodes) (*exec)->nodes.push_back(*node);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node, const cudaKernelNodeParams *params) {
  for (size_t i = 0; i < exec->nodes.size(); i++)
    if (exec->of[i] == node && params->func == exec->nodes[i].kernel.function)
      return fill_node(&exec->nodes[i], params) ? cudaSuccess : cudaErrorInvalidValue;
  return cudaErrorInvalidValue;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (pyr_emulate_node &node : exec->nodes) {
    std::vector<void *> at;
    for (std::vector<uint8_t> &argument : node.arguments) at.push_back(argument.data());
    pyr_emulate_launch(node.kernel, node.grid, node.block, node.shared, at.data());
  }
  return last;
}

cudaError_t cudaMallocAsync(void **ptr, size_t bytes, cudaStream_t) {
  void *block;
  if (bytes > SIZE_MAX / 2 || posix_memalign(&block, 64, sizeof(header) + bytes + behind) != 0) return cudaErrorMemoryAllocation;
  header *h = static_cast<header *>(block);
  h->size = bytes;
  memset(h->guard, 0xa5, GUARD);
  memset(h + 1, 0xff, bytes);
  memset(reinterpret_cast<uint8_t *>(h + 1) + bytes, 0xa5, behind);
  *ptr = h + 1;
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *ptr, cudaStream_t) {
  if (ptr == nullptr) return cudaSuccess;
  header *h = static_cast<header *>(ptr) - 1;
  const uint8_t *end = static_cast<uint8_t *>(ptr) + h->size;
  for (size_t i = 0; i < GUARD; i++)
    if (h->guard[i] != 0xa5) fail(cudaErrorLaunchFailure, "memory before a block of %zu bytes was written", (size_t)h->size);
  for (size_t i = 0; i < behind; i++)
    if (end[i] != 0xa5) fail(cudaErrorLaunchFailure, "memory behind a block of %zu bytes was written", (size_t)h->size);
  memset(ptr, 0xdb, h->size);
  free(h);
  return last;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  const uint8_t *from = static_cast<const uint8_t *>(src), *to = from + bytes;
  std::lock_guard<std::mutex> hold(flights_lock);
  if (kind == cudaMemcpyHostToDevice && overlap(locked, from, to)) {
    if (overlap(flights, from, to))
      fail(cudaErrorLaunchFailure, "page-locked memory was sent again while a copy out of it was under way");
    flights.push_back(flight{ from, to, ++copies });
  }
  if (bytes) memmove(dst, src, bytes);
  return last;
}

cudaError_t cudaMemsetAsync(void *ptr, int value, size_t bytes, cudaStream_t) {
  if (bytes) memset(ptr, value, bytes);
  return last;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid value";
    case cudaErrorNoDevice: return "no device";
    default: return message;
  }
}
