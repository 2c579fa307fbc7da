/* tiles.c — whether matrix tiles (AMX) may be used: asks the processor, and the system for leave.
 *
 * Linux gives 8 KiB of a thread's state to the tiles only where the process has asked for them: by
 * arch_prctl, once and for all its threads, those that come later among them. That is done when a
 * backend that multiplies by tiles opens, never by merely loading the library. The system says no
 * where a thread has a signal stack too small to save tiles on; from then on it refuses signal
 * stacks of less than sysconf(_SC_MINSIGSTKSZ). */
#include "cpu/isa/tiles.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ASK_FOR_FEATURE = 0x1023, TILE_DATA = 18 };   /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */

bool pyr_tiles_present(void) {
  unsigned a, b, c, d, low, high;
  const unsigned bf16 = 1u << 22, tiles = 1u << 24, bytes = 1u << 25, all = bf16 | tiles | bytes,
      saved = 3u << 17, own_save = 1u << 27;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & own_save)) return false;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & saved) == saved;
}

const pyr_tiles *pyr_tiles_open(void) {
  bool has = pyr_tiles_amx.compiled && pyr_tiles_present()
      && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
      && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
      && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  return has && syscall(SYS_arch_prctl, ASK_FOR_FEATURE, TILE_DATA) == 0 ? &pyr_tiles_amx : NULL;
}

#else

bool pyr_tiles_present(void) { return false; }
const pyr_tiles *pyr_tiles_open(void) { return NULL; }

#endif
