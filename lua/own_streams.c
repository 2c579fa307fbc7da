/* own_streams.c — the streams that the Lua inside libpyramid.so calls stdin, stdout and stderr (the
 * Makefile renames them).
 *
 * Why: a system's liblua5.4.a is made for programs. It reaches these three, and no other data of
 * the C library, in a way that a shared object cannot (R_X86_64_PC32, and copies in the program).
 * Here they are data of the object itself, set once when it is loaded and never after. Where the
 * archive is position-independent nothing changes. */
#include <stdio.h>

#define HIDDEN __attribute__((visibility("hidden")))
extern HIDDEN FILE *pyr_own_stdin, *pyr_own_stdout, *pyr_own_stderr;
HIDDEN FILE *pyr_own_stdin, *pyr_own_stdout, *pyr_own_stderr;

__attribute__((constructor)) static void take_streams(void) {
  pyr_own_stdin = stdin;
  pyr_own_stdout = stdout;
  pyr_own_stderr = stderr;
}
