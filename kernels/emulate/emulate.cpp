/* emulate.cpp — runs kernels on the processor: launches, fibres, barriers, warp operations, and
 * memory with guards.
 *
 * A launch has two orders. In one its blocks run in rising order, in the other in falling order; of
 * every other block the threads run in falling order, so that what is read before a barrier makes
 * it sure is seen to be wrong. In both, the block that comes first is held back in the midst of its
 * work (in rising order when its first warp waits for the others, in falling order when some warps
 * do) until all others are done, so that what it tells them before all of its threads have done
 * their part is seen, too:
 *
 *     block 0   warp 0 ......                                  warps 1 2 3, and on to the end
 *     others           1 from its beginning to its end, 2, 3 …
 *
 * The first launches of a kernel on a grid run in both orders, from the same memory, which must
 * come out the same to the byte; later ones take turns. What threads of one block share is poisoned
 * before a block begins.
 *
 * Shared memory that a kernel declares is a static variable of it here. The object's table of
 * symbols says where it lies and how large it is, so that it counts, as on a device, and each of
 * two blocks can have its own. Only kernels may declare it, not what they call.
 *
 * A block's threads are fibres with stacks of their own. A fibre runs until it waits: at a barrier,
 * for the rest of its block; in a warp operation, for the rest of its warp. The last lane to reach
 * a warp operation completes it and runs on; what the lanes handed in stays readable until every
 * lane has come to the next one but one, which none can before all have left this one. When nobody
 * can run on, either all threads of the block stand at one barrier, which then opens, or the kernel
 * is wrong, and the launch fails with a message.
 *
 * Switching fibres is a dozen instructions on x86-64, and swapcontext elsewhere. Fibres of a launch
 * that failed are left where they stand: they hold nothing. */
#include "cuda.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
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

/* SHARED: of a block, static and dynamic, what every kernel may have; MOST_SHARED: what one may
 * have that was allowed to, on the device that has least (8.6, 8.9 and 12.0 have 99 KiB, 8.0 has
 * 163, 9.0 and 10.0 have 227). */
enum : size_t { THREADS = 1024, STACK = SANITIZED ? 256 << 10 : 64 << 10, GUARD = 64,
                SHARED = 48 << 10, MOST_SHARED = 99 << 10 };

/* How often a launch of the same shape is run in both orders, and up to how much device memory,
 * which is copied for it. */
enum : size_t { COMPARED = 2, MOST_COMPARED = 16 << 20 };

/* ---- errors ---------------------------------------------------------------------------------- */

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

/* ---- fibres ---------------------------------------------------------------------------------- */

/* What a fibre is at. A block of two warps, of two lanes each for short, and a shuffle before a
 * barrier (t0 … t3; what each does when it is entered):
 *
 *     t0  runs to the shuffle              IN_WARP
 *     t1  is the last: completes it, on    AT_BARRIER
 *     t0  its turn is over: on             AT_BARRIER
 *     t2, t3 likewise                      AT_BARRIER, all four: the barrier opens, all are READY
 */
enum waiting { READY, IN_WARP, AT_BARRIER, DONE };

#if defined(__x86_64__)
/* A fibre that waits is a stack pointer: what a call must leave as it was lies on its stack. */
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

/* Asynchronous copies of a thread, in the order of issue; those of groups below `closed` are
 * committed. */
enum { COPIES = 256 };
struct copy { void *to; const void *from; int group; bool real; };
struct copies { int count, closed; copy list[COPIES]; };

/* A block that runs, or is held back. There are two at most. */
struct block_state {
  /* Everything that a device has once for a block that runs on it. */
  fiber *fibers;           /* [THREADS], with their stacks, from the first launch on */
  copies *in_flight;       /* [THREADS] */
  warp warps[THREADS / 32];
  uint8_t *dynamic_shared;
  std::vector<uint8_t> static_shared;     /* while it is held back */
  dim3 index;
  bool backwards;          /* its threads run in falling order */
};

struct piece { uint8_t *at; size_t bytes; };
/* What is known of a kernel: its name in the object, what it declares of shared memory, what it was
 * allowed of dynamic. */
struct known_kernel {
  const void *function;
  std::string symbol;
  std::vector<piece> pieces;
  size_t static_bytes, allowed, most;     /* most: dynamic bytes of a launch so far */
  bool noted;              /* in the list of launches, if one is kept */
};
struct known_launch { const void *function; dim3 grid, block; size_t shared, count; };

/* The launch that runs: there is one at a time in the process, which `lock` sees to. `here` is the
 * block that runs, `current` its thread that does, `home` where fibres come from and return to. */
block_state blocks[2], *here = blocks;
context home;
#if SANITIZED
const void *home_stack;
size_t home_size;
#endif
unsigned current, threads;
const char *kernel;
const pyr_emulate_kernel *running;
void *const *arguments_of_it;
bool broken;               /* the launch has failed */
std::recursive_mutex lock;

/* From home into a fibre, until it waits or is done. A sanitizer is told of each change of stacks.
 */
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

/* From a fibre back home; returns when it is entered again. */
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

/* What a fibre does: the kernel, as one thread. Copies that nobody waited for would land in shared
 * memory that another block has by then. */
void fiber_main() {
#if SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_size);
#endif
  running->run(running->function, arguments_of_it);
  if (here->in_flight[current].count > 0 && !broken) {
    fail(cudaErrorLaunchFailure,
         "%s: thread %u of block (%u, %u, %u) returns with asynchronous copies under way", kernel,
             current, blockIdx.x, blockIdx.y, blockIdx.z);
    broken = true;
  }
  here->fibers[current].state = DONE;
  leave_fiber(&here->fibers[current]);
  abort();                 /* a fibre that is done is never entered again */
}

/* A fibre at the beginning of the kernel, its stack empty but for what the first switch pops: six
 * registers and the address of fiber_main.
 *
 *     top of the stack    | NULL | fiber_main | 0 | 0 | 0 | 0 | 0 | 0 |
 *                                                                   ^ f->at */
void start_fiber(fiber *f) {
  f->state = READY;
  copies *own = &here->in_flight[f - here->fibers];
  own->count = own->closed = 0;
#if SANITIZED
  ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK);
#endif
#if defined(__x86_64__)
  void **top = reinterpret_cast<void **>(f->stack + STACK);
  *--top = nullptr;  /* the entry finds the stack as after a call: 8 bytes past a multiple of 16 */
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

/* Once for each of the two blocks; they are used again by all launches. False: no memory. */
bool make_fibers(block_state *b) {
  if (b->fibers) return true;
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
  b->fibers = fresh;
  b->in_flight = room;
  return true;
}

/* Ends the launch from inside a fibre, which is never entered again. */
void break_off(fiber *f) {
  broken = true;
  f->state = DONE;
  leave_fiber(f);
  abort();
}

/* ---- a block --------------------------------------------------------------------------------- */

/* A lane that waits in a warp operation runs on when the warp has completed it: its turn is past.
 */
bool runnable(unsigned t) {
  const fiber *f = &here->fibers[t];
  return f->state == READY || (f->state == IN_WARP && here->warps[t / 32].turn != f->turn);
}

/* Lets the lanes of a warp run until all wait for others. */
void run_warp(unsigned first) {
  /* Each round enters every lane that can run; when a whole round enters none, all are done, at a
   * barrier, or wait for lanes that are. */
  for (bool any = true; any && !broken;) {
    any = false;
    for (unsigned i = 0; i < 32 && !broken; i++) {
      unsigned t = first + (here->backwards ? 31 - i : i);
      if (!runnable(t)) continue;
      any = true;
      current = t;
      threadIdx.x = t;
      here->fibers[t].state = READY;
      enter_fiber(&here->fibers[t]);
    }
  }
}

/* What threads wait for when none can run; true if the block goes on. False when all are done, or
 * with an error: of lanes that wait in a warp operation for lanes that will not come; of threads
 * that returned while others wait; of threads at different barriers, told apart by their lines. */
bool open_barrier() {
  fiber *fibers = here->fibers;
  unsigned done = 0, first = THREADS;
  for (unsigned t = 0; t < threads; t++) {
    const fiber *f = &fibers[t];
    if (f->state == IN_WARP) {
      fail(cudaErrorLaunchFailure,
           "%s: thread %u of block (%u, %u, %u) waits in a warp operation that not all lanes "
           "reach", kernel, t, blockIdx.x, blockIdx.y, blockIdx.z);
      broken = true;
      return false;
    }
    done += f->state == DONE;
    if (f->state == AT_BARRIER && first == THREADS) first = t;
  }
  if (done == threads) return false;
  if (done > 0) {
    fail(cudaErrorLaunchFailure,
         "%s: %u threads of block (%u, %u, %u) returned while thread %u waits at the barrier in "
         "line %d", kernel, done, blockIdx.x, blockIdx.y, blockIdx.z, first, fibers[first].line);
    broken = true;
    return false;
  }
  for (unsigned t = 0; t < threads; t++) {
    if (fibers[t].line != fibers[0].line) {
      fail(cudaErrorLaunchFailure,
           "%s: threads 0 and %u of block (%u, %u, %u) wait at barriers in lines %d and %d",
               kernel, t, blockIdx.x, blockIdx.y, blockIdx.z, fibers[0].line, fibers[t].line);
      broken = true;
      return false;
    }
    fibers[t].state = READY;
  }
  return true;
}

/* ---- shared memory --------------------------------------------------------------------------- */

/* Between the pieces of a sanitizer's object lie its guards, which it lets nobody read but by the
 * byte, unseen. */
#if SANITIZED
#define UNSEEN __attribute__((no_sanitize("address"), noinline))
#else
#define UNSEEN
#endif
UNSEEN void move_bytes(uint8_t *to, const uint8_t *from, size_t bytes) {
  volatile uint8_t *out = to;
  for (size_t i = 0; i < bytes; i++) out[i] = from[i];
}
/* Shared memory of a block begins as NaN: what it reads before it wrote it shows. */
void poison_statics(const known_kernel &k) {
#if !SANITIZED             /* sizes in the table of symbols hold the sanitizer's guards */
  for (const piece &p : k.pieces) memset(p.at, 0xff, p.bytes);
#else
  (void)k;
#endif
}

/* A kernel's static variables are one block's at a time: those of a block that is held back are put
 * aside while others run, and put back before it goes on. */
void save_statics(const known_kernel &k, block_state *b) {
  b->static_shared.resize(k.static_bytes);
  size_t at = 0;
  for (const piece &p : k.pieces)
    move_bytes(b->static_shared.data() + at, p.at, p.bytes), at += p.bytes;
}

void restore_statics(const known_kernel &k, const block_state *b) {
  size_t at = 0;
  for (const piece &p : k.pieces)
    move_bytes(p.at, b->static_shared.data() + at, p.bytes), at += p.bytes;
}

/* The object (library or program) that a kernel lies in, where it is loaded, and its file. */
struct object_file { const void *inside; ElfW(Addr) base; const char *path; };
int find_object(dl_phdr_info *info, size_t, void *data) {
  object_file *o = static_cast<object_file *>(data);
  ElfW(Addr) at = reinterpret_cast<ElfW(Addr)>(o->inside);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) &p = info->dlpi_phdr[i];
    if (p.p_type != PT_LOAD || at < info->dlpi_addr + p.p_vaddr
        || at >= info->dlpi_addr + p.p_vaddr + p.p_memsz) continue;
    o->base = info->dlpi_addr;
    o->path = info->dlpi_name && info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe";
    return 1;
  }
  return 0;
}

/* Calls each(name, address, bytes, type, may be written) for the symbols of the object that holds
 * `inside`; false: it has none. */
template <typename F> bool for_symbols(const void *inside, F each) {
  object_file o = { inside, 0, nullptr };
  struct stat facts;
  if (!dl_iterate_phdr(find_object, &o)) return false;
  int file = open(o.path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  void *map = fstat(file, &facts) == 0 ? mmap(nullptr, static_cast<size_t>(facts.st_size),
                                              PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  close(file);
  if (map == MAP_FAILED) return false;
  const uint8_t *bytes = static_cast<const uint8_t *>(map);
  const ElfW(Ehdr) *head = reinterpret_cast<const ElfW(Ehdr) *>(bytes);
  const ElfW(Shdr) *sections = reinterpret_cast<const ElfW(Shdr) *>(bytes + head->e_shoff);
  bool any = false;
  for (int i = 0; i < head->e_shnum; i++) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const ElfW(Sym) *symbols = reinterpret_cast<const ElfW(Sym) *>(bytes + sections[i].sh_offset);
    const char *names = reinterpret_cast<const char *>(bytes
                                                       + sections[sections[i].sh_link].sh_offset);
    any = true;
    for (size_t n = 0; n < sections[i].sh_size / sizeof *symbols; n++) {
      const ElfW(Sym) &one = symbols[n];
      if (one.st_shndx == SHN_UNDEF || one.st_shndx >= head->e_shnum) continue;
      each(names + one.st_name, reinterpret_cast<uint8_t *>(o.base + one.st_value),
           static_cast<size_t>(one.st_size), ELF64_ST_TYPE(one.st_info),
               (sections[one.st_shndx].sh_flags & SHF_WRITE) != 0);
    }
  }
  munmap(map, static_cast<size_t>(facts.st_size));
  return any;
}

/* The kernel's statics: of _ZL4adds… they are called _ZZL4adds…E5parts. NULL if the object's
 * symbols were stripped. */
known_kernel *know_kernel(const void *function) {
  static std::vector<std::unique_ptr<known_kernel>> kernels;
  for (std::unique_ptr<known_kernel> &k : kernels)
    if (k->function == function) return k.get();
  std::unique_ptr<known_kernel> k(new known_kernel{ function, {}, {}, 0, 0, 0, false });
  bool found = for_symbols(function, [&](const char *name, uint8_t *at, size_t, int type, bool) {
    if (type == STT_FUNC && at == function && strncmp(name, "_Z", 2) == 0) k->symbol = name;
  });
  if (!found || k->symbol.empty()) return nullptr;
  std::string prefix = "_ZZ" + k->symbol.substr(2) + "E";
  (void)for_symbols(function, [&](const char *name, uint8_t *at, size_t bytes, int type,
                                  bool writable) {
    if (type == STT_OBJECT && writable && bytes > 0
        && strncmp(name, prefix.c_str(), prefix.size()) == 0) k->pieces.push_back(piece{ at,
            bytes });
  });
  for (const piece &p : k->pieces) k->static_bytes += p.bytes;
  kernels.push_back(std::move(k));
  return kernels.back().get();
}

/* ---- a launch -------------------------------------------------------------------------------- */

/* A block before its first instruction: its shared memory poisoned, its fibres at their beginning.
 */
void begin_block(block_state *b, const known_kernel &k, size_t shared, dim3 index, bool backwards) {
  here = b;
  b->index = blockIdx = index;
  b->backwards = backwards;
  if (shared) memset(b->dynamic_shared, 0xff, shared);
  poison_statics(k);
  memset(b->warps, 0, threads / 32 * sizeof *b->warps);
  for (unsigned t = 0; t < threads; t++) start_fiber(&b->fibers[t]);
}

/* Runs the next `some` warps of the block until they wait. */
void run_warps(unsigned from, unsigned some) {
  for (unsigned i = from; i < from + some && !broken; i++)
    run_warp(here->backwards ? threads - 32 - i * 32 : i * 32);
}

/* From its warp `from` on to its end. Warps before it have run already, and wait. Each turn of the
 * loop runs all warps up to the next barrier, and opens it. */
void finish_block(unsigned from) {
  unsigned all = threads / 32;
  do {
    run_warps(from, all - from);
    from = 0;
  } while (!broken && open_barrier());
}

/* All blocks of a launch, rising or falling; `held` warps of the first run before all others do. Of
 * a grid of 4 blocks of 4 warps:
 *
 *     rising, held 1     0: warp 0   1 2 3   0: warps 1 2 3 and on
 *     falling, held 2    3: warps 3 2   2 1 0   3: warps 1 0 and on
 *
 * Of every other block threads rise where the others fall. The block a kernel that expects its
 * blocks in some order, or all of them at once, is found out. */
void run_blocks(const known_kernel &k, size_t shared, bool falling, unsigned held) {
  uint64_t count = static_cast<uint64_t>(gridDim.x) * gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < count && !broken; i++) {
    uint64_t n = falling ? count - 1 - i : i;
    dim3 index(static_cast<unsigned>(n % gridDim.x),
               static_cast<unsigned>(n / gridDim.x % gridDim.y),
                   static_cast<unsigned>(n / gridDim.x / gridDim.y));
    bool hold = i == 0 && count > 1 && held < threads / 32;
    begin_block(hold ? &blocks[1] : &blocks[0], k, shared, index, (i % 2 != 0) != falling);
    if (hold) {
      run_warps(0, held);
      save_statics(k, here);
    } else {
      finish_block(0);
    }
  }
  if (broken || count == 1 || held >= threads / 32) return;
  here = &blocks[1];
  blockIdx = here->index;
  restore_statics(k, here);
  finish_block(held);
}

/* Memory of the device, block behind block in a list:
 *
 *     | size, before, after … guard | what was asked for | guard |
 *       128 bytes, 64 of them guard   0xff at first        64
 *
 * Guards are looked at when the block is given back; a kernel that wrote into them is named too
 * late, but it is seen. Where a sanitizer watches there is none behind, so that it sees the access
 * itself. */
struct header { uint64_t size; header *before, *after; uint64_t unused[5]; uint8_t guard[GUARD]; };
static_assert(sizeof(header) == 128, "blocks stay aligned to 64 bytes");
header *allocated;
size_t allocated_bytes;

/* All device memory, block behind block, into one vector; and back; and compared with it. Scratch
 * counts, too: what a kernel leaves there must not depend on the order, either. */
void copy_memory(std::vector<uint8_t> *copy) {
  /* and stays: fresh memory is slow to come by */
  if (copy->size() < allocated_bytes) copy->resize(allocated_bytes);
  size_t at = 0;
  for (const header *h = allocated; h; h = h->after)
    memcpy(copy->data() + at, h + 1, h->size), at += h->size;
}

void put_memory(const std::vector<uint8_t> &copy) {
  size_t at = 0;
  for (header *h = allocated; h; h = h->after)
    memcpy(h + 1, copy.data() + at, h->size), at += h->size;
}

void compare_memory(const std::vector<uint8_t> &copy) {
  size_t at = 0;
  for (const header *h = allocated; h; at += h->size, h = h->after) {
    const uint8_t *now = reinterpret_cast<const uint8_t *>(h + 1);
    if (memcmp(now, copy.data() + at, h->size) == 0) continue;
    size_t i = 0;
    while (now[i] == copy[at + i]) i++;
    fail(cudaErrorLaunchFailure,
         "%s: what it writes depends on the order in which its blocks and threads run: byte %zu "
         "of a block of %zu", kernel, i, (size_t)h->size);
    return;
  }
}

/* Whether the launch is one of the first of its shape. Both orders take more than twice as long,
 * copies included: later launches take one of them. */
bool first_launches(const void *function, dim3 grid, dim3 block, size_t shared) {
  static std::vector<known_launch> launches;
  for (known_launch &l : launches)
    if (l.function == function && l.shared == shared && l.block.x == block.x && l.grid.x == grid.x
        && l.grid.y == grid.y && l.grid.z == grid.z)
      return l.count < COMPARED && ++l.count;
  launches.push_back(known_launch{ function, grid, block, shared, 1 });
  return true;
}

/* PYR_EMULATE_LAUNCHES names a file that gets a line for each kernel whenever it is launched with
 * more dynamic shared memory than before: its symbol, those bytes, and what it was allowed. `make
 * cuda-check` reads it. */
void note_launch(known_kernel *k, size_t shared) {
  const char *path = getenv("PYR_EMULATE_LAUNCHES");
  if (path == nullptr || (k->noted && shared <= k->most)) return;
  FILE *list = fopen(path, "a");
  if (list == nullptr) return;
  fprintf(list, "%s %zu %zu\n", k->symbol.c_str(), shared, k->allowed);
  fclose(list);
  k->noted = true;
  k->most = shared;
}

/* PYR_EMULATE_SKIP, set to anything: no kernel runs, launches are not looked at, and memory of the
 * device is neither poisoned nor copied. What is left is what the host does for a device
 * (kernels/proofs/host_cost.lua); what it reads back is nonsense. */
bool skipping(void) {
  static const bool skip = getenv("PYR_EMULATE_SKIP") != nullptr;
  return skip;
}

/* Whether a device would take the launch; what is wrong with it is told by the first that applies.
 */
bool check_launch(const known_kernel *k, dim3 grid, dim3 block, size_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535
      || grid.z > 65535)
    fail(cudaErrorInvalidConfiguration, "%s: a grid of %u x %u x %u blocks", kernel, grid.x,
         grid.y, grid.z);
  else if (block.x == 0 || block.x % 32 != 0 || block.x > THREADS || block.y != 1 || block.z != 1)
    fail(cudaErrorInvalidConfiguration, "%s: blocks of %u x %u x %u threads", kernel, block.x,
         block.y, block.z);
  else if (k == nullptr)
    fail(cudaErrorInvalidConfiguration,
         "%s: its static shared memory cannot be counted, as the object has no symbols (it was "
         "stripped)", kernel);
  else if (shared + k->static_bytes > SHARED && shared > k->allowed)
    fail(cudaErrorInvalidConfiguration,
         "%s: %zu bytes of dynamic and %zu of static shared memory: more than %zu, and %zu were "
         "allowed", kernel, shared, k->static_bytes, (size_t)SHARED, k->allowed);
  else if (shared + k->static_bytes > MOST_SHARED)
    fail(cudaErrorInvalidConfiguration,
         "%s: %zu bytes of dynamic and %zu of static shared memory: more than the %zu of some "
         "devices", kernel, shared, k->static_bytes, (size_t)MOST_SHARED);
  else if (!make_fibers(&blocks[0]) || !make_fibers(&blocks[1]))
    fail(cudaErrorMemoryAllocation, "%s: no memory for its threads", kernel);
  else
    return true;
  return false;
}

}   // namespace

/* One launch, done when this returns. Of a new shape: in falling order, from a copy of all memory,
 * and again in rising order from the same; both must leave the same bytes. Then memory is as the
 * rising order left it. */
void pyr_emulate_launch(const pyr_emulate_kernel &which, dim3 grid, dim3 block, size_t shared,
                        void *const *arguments) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  kernel = which.name;
  if (skipping()) return;
  if (last != cudaSuccess) return;                     /* a failure stays until asked for */
  known_kernel *k = know_kernel(which.function);
  if (!check_launch(k, grid, block, shared)) return;
  note_launch(k, shared);
  for (block_state &b : blocks)
    b.dynamic_shared = shared ? static_cast<uint8_t *>(malloc(shared)) : nullptr;
  if (shared && (!blocks[0].dynamic_shared || !blocks[1].dynamic_shared)) {
    fail(cudaErrorMemoryAllocation, "%s: no memory for a block's shared memory", kernel);
  } else {
    static unsigned turn;
    running = &which;
    arguments_of_it = arguments;
    gridDim = grid;
    blockDim = block;
    threads = block.x;
    broken = false;
    turn++;
    unsigned held = 1 + turn / 2 % 3;                  /* of the falling order */
    if (allocated_bytes <= MOST_COMPARED && first_launches(which.function, grid, block, shared)) {
      static std::vector<uint8_t> before, falling;
      copy_memory(&before);
      run_blocks(*k, shared, true, held);
      copy_memory(&falling);
      if (!broken) put_memory(before);
      if (!broken) run_blocks(*k, shared, false, 1);
      if (!broken) compare_memory(falling);
    } else {
      run_blocks(*k, shared, turn % 2 != 0, turn % 2 != 0 ? held : 1);
    }
  }
  for (block_state &b : blocks) free(b.dynamic_shared), b.dynamic_shared = nullptr;
}

/* ---- what threads wait for ------------------------------------------------------------------- */

/* Of the block that runs: two may be alive. */
void *pyr_emulate_shared(void) { return here->dynamic_shared; }

/* Returns when all threads of the block stand here. */
void pyr_emulate_barrier(int line) {
  fiber *f = &here->fibers[current];
  f->state = AT_BARRIER;
  f->line = line;
  leave_fiber(f);
}

/* Joins the warp's current operation with `value`; `all`, if any, is called with the values by the
 * last lane to come. */
static const uint64_t *meet(int kind, uint64_t value, void (*all)(void *const *each)) {
  unsigned t = current, lane = t % 32;
  warp *w = &here->warps[t / 32];
  fiber *f = &here->fibers[t];
  if (w->arrived && w->kind != kind) {
    fail(cudaErrorLaunchFailure, "%s: thread %u meets its warp in another warp operation", kernel,
         t);
    break_off(f);
  }
  unsigned turn = w->turn;
  /* Values of this turn; those of the last one may still be read by lanes that have not run since.
   * A lane cannot come to the next turn but one before all have come to the next: two are enough.
   */
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

/* The value of lane `from`, once all have come. Masks of less than a warp are not emulated. */
uint64_t pyr_emulate_exchange(int kind, unsigned mask, uint64_t value, int from) {
  if (mask != 0xffffffffu) {
    fail(cudaErrorLaunchFailure, "%s: thread %u names only some lanes of its warp (mask %08x)",
         kernel, current, mask);
    break_off(&here->fibers[current]);
  }
  return meet(kind, value, nullptr)[from];
}

void pyr_emulate_together(int kind, void *mine, void (*all)(void *const *each)) {
  meet(kind, reinterpret_cast<uint64_t>(mine), all);
}

/* All lanes' predicates, a bit each, out of the values that they handed in. */
unsigned pyr_emulate_ballot(unsigned mask, bool predicate) {
  const warp *w = &here->warps[current / 32];
  unsigned turn = w->turn, votes = 0;
  pyr_emulate_exchange(PYR_BALLOT, mask, predicate, 0);
  for (int lane = 0; lane < 32; lane++) votes |= (unsigned)w->value[turn & 1][lane] << lane;
  return votes;
}

/* ---- asynchronous copies --------------------------------------------------------------------- */

/* Only notes the copy, and poisons its target: it is made when it is waited for, so that a kernel
 * which reads too early reads NaN. */
void pyr_emulate_copy(void *to, const void *from, bool real) {
  copies *c = &here->in_flight[current];
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16
      || c->count == COPIES) {
    fail(cudaErrorLaunchFailure, c->count == COPIES
         ? "%s: thread %u has too many asynchronous copies under way"
                                                    : "%s: thread %u copies 16 bytes that are "
                                                      "not aligned", kernel, current);
    break_off(&here->fibers[current]);
  }
  memset(to, 0xff, 16);
  c->list[c->count++] = copy{ to, from, c->closed, real };
}

/* Copies noted so far and not yet in a group are one now; later ones have the next number. */
void pyr_emulate_commit(void) { here->in_flight[current].closed++; }

/* Makes the copies of all groups but the `left` last: with 3 groups closed and left = 1 those of 0
 * and 1. What is in no group yet stays under way. */
void pyr_emulate_wait(int left) {
  copies *c = &here->in_flight[current];
  int kept = 0;
  for (int i = 0; i < c->count; i++) {
    const copy one = c->list[i];
    if (one.group >= c->closed - left) c->list[kept++] = one;
    else if (one.real) memcpy(one.to, one.from, 16);
    else memset(one.to, 0, 16);
  }
  c->count = kept;
}

/* What a kernel may have of dynamic memory, beside its static part: a device refuses more. */
cudaError_t cudaFuncSetAttribute(const void *address, cudaFuncAttribute, int bytes) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  known_kernel *k = know_kernel(address);
  if (k == nullptr || bytes < 0 || static_cast<size_t>(bytes) + k->static_bytes > MOST_SHARED)
    return fail(cudaErrorInvalidValue, "invalid value");
  k->allowed = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *facts, const void *address) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  const known_kernel *k = know_kernel(address);
  if (k == nullptr) return fail(cudaErrorInvalidValue, "invalid value");
  facts->sharedSizeBytes = k->static_bytes;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
  *value = MOST_SHARED;
  return cudaSuccess;
}

/* ---- the runtime API ------------------------------------------------------------------------- */

/* A block of memory: its size, a guard, what was asked for, a guard. Where a sanitizer watches, its
 * end is the block's end. */
namespace {
const size_t behind = SANITIZED ? (size_t)0 : GUARD;
}   // namespace

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

/* Page-locked memory: copies out of it are under way until an event behind them, or the stream, has
 * been waited for. The runtimes of a process share no memory, so that one list serves all. */
struct pyr_emulate_event { uint64_t behind; };
namespace {
struct flight { const uint8_t *from, *to; uint64_t number; };
std::mutex flights_lock;
std::vector<flight> locked, flights;      /* blocks; copies */
uint64_t copies;

/* Copies up to that number are done, as the stream, or an event behind them, was waited for. */
void landed(uint64_t number) {
  size_t kept = 0;
  for (const flight &f : flights)
    if (f.number > number) flights[kept++] = f;
  flights.resize(kept);
}

/* Whether bytes [from, to) meet any of the list. */
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

/* Remembered, so that copies out of it are known from others, which are done when they return. */
cudaError_t cudaHostAlloc(void **ptr, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> hold(flights_lock);
  *ptr = malloc(bytes);
  if (*ptr == nullptr) return cudaErrorMemoryAllocation;
  const uint8_t *at = static_cast<uint8_t *>(*ptr);
  locked.push_back(flight{ at, at + bytes, 0 });
  return cudaSuccess;
}

/* Refused while a copy out of it is under way, as a device would read what is no more. */
cudaError_t cudaFreeHost(void *ptr) {
  std::lock_guard<std::mutex> hold(flights_lock);
  for (size_t i = 0; i < locked.size(); i++) {
    if (locked[i].from != ptr) continue;
    if (overlap(flights, locked[i].from, locked[i].to))
      return fail(cudaErrorLaunchFailure,
                  "page-locked memory was given back while a copy out of it was under way");
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
/* What has been issued so far is behind the event. */
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

/* A graph is a list, as each node waits for the one before. What is instantiated has copies of the
 * nodes, with their arguments' bytes, and knows whose copies they are: nodes are told there. */
struct pyr_emulate_node { pyr_emulate_kernel kernel; dim3 grid,
                          block; size_t shared; std::vector<std::vector<uint8_t>> arguments; };
struct pyr_emulate_graph { std::vector<pyr_emulate_node *> nodes; };
struct pyr_emulate_exec {
    std::vector<pyr_emulate_node> nodes; std::vector<pyr_emulate_node *> of; };

namespace {
std::vector<pyr_emulate_kernel> named;

/* What the driver knows of a kernel's parameters, here of those that were named. */
const pyr_emulate_kernel *kernel_of(const void *function) {
  for (const pyr_emulate_kernel &k : named)
    if (k.function == function) return &k;
  return nullptr;
}

/* Arguments are copied out of the caller's list, as CUDA does: it may reuse its memory. */
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
/* Only chains: a node that does not wait for the last one is refused, as step.cu makes none. */
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph,
                                   const cudaGraphNode_t *after, size_t count,
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
/* Another kernel in a node's place is refused, as CUDA refuses some: the graph is then built again.
 */
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params) {
  for (size_t i = 0; i < exec->nodes.size(); i++)
    if (exec->of[i] == node && params->func == exec->nodes[i].kernel.function)
      return fill_node(&exec->nodes[i], params) ? cudaSuccess : cudaErrorInvalidValue;
  return cudaErrorInvalidValue;
}
/* One launch after the other, with all checks that launches have. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  if (skipping()) return last;
  for (pyr_emulate_node &node : exec->nodes) {
    std::vector<void *> at;
    for (std::vector<uint8_t> &argument : node.arguments) at.push_back(argument.data());
    pyr_emulate_launch(node.kernel, node.grid, node.block, node.shared, at.data());
  }
  return last;
}

/* NaN at first: a kernel that reads what nobody wrote shows it. In the list before anyone else
 * looks. */
cudaError_t cudaMallocAsync(void **ptr, size_t bytes, cudaStream_t) {
  void *block;
  if (bytes > SIZE_MAX / 2 || posix_memalign(&block, 64, sizeof(header) + bytes + behind) != 0)
    return cudaErrorMemoryAllocation;
  header *h = static_cast<header *>(block);
  h->size = bytes;
  memset(h->guard, 0xa5, GUARD);
  if (!skipping()) memset(h + 1, 0xff, bytes);
  memset(reinterpret_cast<uint8_t *>(h + 1) + bytes, 0xa5, behind);
  *ptr = h + 1;
  std::lock_guard<std::recursive_mutex> guard(lock);
  h->before = nullptr;
  h->after = allocated;
  if (allocated) allocated->before = h;
  allocated = h;
  allocated_bytes += bytes;
  return cudaSuccess;
}

/* Poisoned once more, so that who reads it later reads nonsense, and no old truth. */
cudaError_t cudaFreeAsync(void *ptr, cudaStream_t) {
  if (ptr == nullptr) return cudaSuccess;
  header *h = static_cast<header *>(ptr) - 1;
  const uint8_t *end = static_cast<uint8_t *>(ptr) + h->size;
  std::lock_guard<std::recursive_mutex> guard(lock);
  (h->before ? h->before->after : allocated) = h->after;
  if (h->after) h->after->before = h->before;
  allocated_bytes -= h->size;
  for (size_t i = 0; i < GUARD; i++)
    if (h->guard[i] != 0xa5)
      fail(cudaErrorLaunchFailure, "memory before a block of %zu bytes was written",
           (size_t)h->size);
  for (size_t i = 0; i < behind; i++)
    if (end[i] != 0xa5)
      fail(cudaErrorLaunchFailure, "memory behind a block of %zu bytes was written",
           (size_t)h->size);
  if (!skipping()) memset(ptr, 0xdb, h->size);
  free(h);
  return last;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  const uint8_t *from = static_cast<const uint8_t *>(src), *to = from + bytes;
  std::lock_guard<std::recursive_mutex> guard(lock);  /* a launch that is compared puts all memory
                                                         back */
  std::lock_guard<std::mutex> hold(flights_lock);
  bool sent = kind == cudaMemcpyHostToDevice && overlap(locked, from, to);
  if (sent) {
    if (overlap(flights, from, to))
      fail(cudaErrorLaunchFailure,
           "page-locked memory was sent again while a copy out of it was under way");
    flights.push_back(flight{ from, to, ++copies });
  }
  /* nothing that is a device's work is done where kernels are skipped */
  bool own = sent || kind == cudaMemcpyDeviceToDevice;
  if (bytes && !(own && skipping())) memmove(dst, src, bytes);
  return last;
}

cudaError_t cudaMemsetAsync(void *ptr, int value, size_t bytes, cudaStream_t) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (bytes) memset(ptr, value, bytes);
  return last;
}

/* A failure is told once; until then launches do nothing. */
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
