/* linterrupt.c — what Ctrl-C does: the module "pyramid.interrupts" of the program.
 *
 * Ctrl-C (SIGINT) ends scripts and core calls by errors that nothing catches for long, so that
 * files and models are closed, with status 130 and no word. Where that takes more than GRACE
 * seconds (one long call of a C function), or at the second Ctrl-C, the process ends at once.
 *
 * A script may answer it instead:
 *
 *   interrupts.asks(true | false)   from here on the first Ctrl-C only raises a flag; while that is
 *                                   up, the next acts as above. SIGHUP and SIGTERM raise it, too
 *   interrupts.asked() -> nil, "interrupt", or "leave", of SIGHUP and SIGTERM
 *   interrupts.take()               the same, and lowers it; "leave" stays
 *   interrupts.run(fn, ...) -> true, what fn returned; or false and what it raised. Ctrl-C ends fn
 *                                   and nothing else: then false and "interrupted"
 *
 * Handlers do what POSIX lets them: they set flags, and write a byte to a pipe, which wakes who
 * waits for a key (pyr_program_wake_fd). lua_sethook may be called by them, too. */
#include "lauxpyr.h"
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { GRACE = 3 };
enum { ENDS, ASKS, RUNS };                   /* what the first SIGINT does; RUNS: it ends a call */

static volatile sig_atomic_t interrupted, asked, leaving, mode;
static lua_State *interruptible;             /* NULL: SIGINT is ignored */
static int wake[2] = { -1, -1 };
static void (*volatile at_end)(void);

void pyr_program_at_end(void (*restore)(void)) { at_end = restore; }

static void restore(void) {
  if (at_end) at_end();
}

static void end_now(void) {
  restore();
  _exit(PYR_PROGRAM_INTERRUPTED);
}

static void on_alarm(int number) {
  (void)number;
  end_now();
}

void pyr_program_wake(void) {
  int error = errno;
  if (wake[1] >= 0 && write(wake[1], "", 1) < 0) errno = error;   /* full: there is enough in it */
  errno = error;
}

/* Ends what runs, by a hook that raises. */
static void stop(int number) {
  interrupted = number;
  lua_sethook(interruptible, pyr_lua_stop,
              LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

static void on_interrupt(int number) {
  if (mode == ASKS && !asked) {
    asked = number;
    pyr_program_wake();
    return;
  }
  if (interrupted) end_now();
  stop(number);
  pyr_program_wake();
  if (mode == RUNS) return;
  signal(SIGALRM, on_alarm);
  alarm(GRACE);
}

/* The second ends the program as if there were no handler. */
static void on_leave(int number) {
  if (leaving) {
    restore();
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  leaving = asked = number;
  if (mode == RUNS) stop(number);
  pyr_program_wake();
}

/* os.exit of a script that ends because of an interrupt. */
static void at_exit(void) {
  restore();
  if (!interrupted) return;
  fflush(NULL);
  _exit(PYR_PROGRAM_INTERRUPTED);
}

/* System calls are not restarted: reading ends, too. */
static int handle(int number, void (*handler)(int)) {
  struct sigaction old, action = { .sa_handler = handler };
  if (sigaction(number, NULL, &old) != 0 || old.sa_handler == SIG_IGN) return 0;
  sigemptyset(&action.sa_mask);
  return sigaction(number, &action, NULL) == 0;
}

void pyr_program_catch_interrupts(lua_State *L) {
  interruptible = L;
  if (!handle(SIGINT, on_interrupt)) {
    interruptible = NULL;
    return;
  }
  pyr_lua_watch(L, &interrupted);
  atexit(at_exit);
}

int pyr_program_is_interrupted(void) { return interrupted != 0; }

/* ---- who waits ------------------------------------------------------------------------------- */

int pyr_program_wake_fd(void) {
  if (wake[0] < 0 && pipe(wake) == 0) {
    for (int end = 0; end < 2; end++) {
      fcntl(wake[end], F_SETFL, O_NONBLOCK);
      fcntl(wake[end], F_SETFD, FD_CLOEXEC);
    }
  }
  return wake[0];
}

void pyr_program_slept(void) {
  char bytes[64];
  while (wake[0] >= 0 && read(wake[0], bytes, sizeof bytes) > 0) {}
}

const char *pyr_program_asked(void) {
  return leaving ? "leave" : asked || interrupted ? "interrupt" : NULL;
}

/* ---- the module ------------------------------------------------------------------------------ */

static int interrupts_asks(lua_State *L) {
  int on = lua_toboolean(L, 1);
  pyr_program_wake_fd();
  if (interruptible) mode = on ? ASKS : ENDS;
  static const int numbers[] = { SIGHUP, SIGTERM };
  for (int i = 0; i < 2; i++) handle(numbers[i], on ? on_leave : SIG_DFL);
  return 0;
}

static int interrupts_asked(lua_State *L) {
  lua_pushstring(L, pyr_program_asked());                  /* NULL gives nil */
  return 1;
}

static int interrupts_take(lua_State *L) {
  lua_pushstring(L, pyr_program_asked());
  asked = 0;
  return 1;
}

/* What the hook raises may be caught, turned into another error, or come when fn has returned: the
 * flag alone says whether it was ended. */
static int interrupts_run(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  int before = mode;
  luaL_checkstack(L, 4, NULL);
  pyr_program_wake_fd();
  if (interruptible) mode = RUNS;
  int code = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  mode = before;
  int ended = interrupted != 0 && before != ENDS;
  if (ended) {
    interrupted = 0;
    lua_sethook(L, NULL, 0, 0);
    pyr_lua_watch(L, &interrupted);                        /* as if nothing had been raised */
    pyr_program_slept();
    lua_settop(L, 0);
    lua_pushboolean(L, 0);
    lua_pushliteral(L, "interrupted");
    return 2;
  }
  lua_pushboolean(L, code == LUA_OK);
  lua_insert(L, 1);
  return lua_gettop(L);
}

int pyr_luaopen_interrupts(lua_State *L) {
  static const luaL_Reg functions[] = { { "asks", interrupts_asks }, { "asked", interrupts_asked },
                                        { "take", interrupts_take }, { "run", interrupts_run },
                                        { NULL, NULL } };
  luaL_newlib(L, functions);
  return 1;
}
