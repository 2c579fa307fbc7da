/* memory_checks.c — every allocation of a process failing in its turn: memory_checks MODEL SCRIPT
 * FROM TO STRIDE [DETAILS].
 *
 * For n = FROM, FROM + STRIDE, … < TO (0: until all pass) the n-th allocation from the beginning
 * fails, once (Lua asks again, when it has collected) or all from there on: of a facade that opens
 * the model and generates, and of a Lua 5.4 state with the library that runs SCRIPT. Each must say
 * "memory" with a message, or succeed, and what was opened must close; then the same without
 * failures must work. Prints counts, and what was otherwise. */
#include "pyramid.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>

int luaopen_pyramid(lua_State *L);

/* glibc's own, under the names that stay when a program defines malloc. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long left = -1;      /* allocations until the one that fails; negative: none does */
static int on;              /* all fail from there on */

static int fails(void) {
  if (__atomic_load_n(&left, __ATOMIC_RELAXED) < 0) return 0;
  long before = __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED);
  if (before > 0) return 0;
  if (on) __atomic_store_n(&left, 0, __ATOMIC_RELAXED);
  errno = ENOMEM;
  return 1;
}

void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t a, size_t b) { return fails() ? NULL : __libc_calloc(a, b); }
void *realloc(void *p, size_t n) { return n && fails() ? NULL : __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { return fails() ? NULL : __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return fails() ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  return fails() || (*p = __libc_memalign(a, n)) == NULL ? ENOMEM : 0;
}

typedef struct outcome { char code[32], message[256]; } outcome;

static const char *model, *script;

static void say(outcome *o, const char *code, const char *message) {
  snprintf(o->code, sizeof o->code, "%s", code ? code : "?");
  snprintf(o->message, sizeof o->message, "%s", message ? message : "");
}

static void try_facade(outcome *o) {
  pyr_host *host = NULL;
  pyr_host_options options = { .threads = 2, .policy = "pyramidinfer",
                               .policy_options = "ratio=0.5 floor=4" };
  pyr_generate_options how = { .max_tokens = 6, .sampler = { .temperature = 1, .seed = 3 } };
  pyr_status status = pyr_host_open(model, &options, &host);
  if (status == PYR_OK)
    status = pyr_host_generate(host, "Once there was a baker who had a red", &how);
  say(o, pyr_status_name(status), status == PYR_OK ? "" : pyr_host_error(host));
  pyr_host_close(host);
}

/* SCRIPT returns true, or nil, message, code. */
static int protected(lua_State *L) {
  luaL_openlibs(L);
  luaL_requiref(L, "pyramid", luaopen_pyramid, 0);
  if (luaL_loadfilex(L, script, "t") != LUA_OK) return lua_error(L);
  lua_pushstring(L, model);
  lua_call(L, 1, 3);
  return 3;
}

static void try_lua(outcome *o) {
  lua_State *L = luaL_newstate();
  if (L == NULL) {
    say(o, "memory", "no state");
    return;
  }
  lua_pushcfunction(L, protected);
  int code = lua_pcall(L, 0, 3, 0);
  if (code == LUA_ERRMEM) say(o, "memory", "raised");
  else if (code != LUA_OK) say(o, strstr(luaL_tolstring(L, -1, NULL), "not enough memory")
                               ? "memory" : "raised", lua_tostring(L, -1));
  else if (lua_toboolean(L, -3)) say(o, "ok", "");
  else say(o, lua_tostring(L, -1), lua_tostring(L, -2));
  lua_close(L);
}

int main(int argc, char **argv) {
  static void (*const tries[])(outcome *) = { try_facade, try_lua };
  static const char *const names[] = { "facade", "Lua" },
      *const modes[] = { "once", "from there on" };
  if (argc < 6) return 2;
  model = argv[1];
  script = argv[2];
  long from = atol(argv[3]), to = atol(argv[4]), stride = atol(argv[5]);
  int wrong = 0;
  for (int t = 0; t < 4; t++) {
    int which = t / 2, sticky = t % 2;
    long done = 0, failed = 0, n = from;
    outcome o;
    for (; to == 0 || n < to; n += stride) {
      if (argc > 6) fprintf(stderr, "%s %s %ld\n", names[which], modes[sticky], n);
      on = sticky;
      left = n;
      tries[which](&o);
      int passed = left > 0;
      left = -1;
      done++;
      failed += strcmp(o.code, "ok") != 0;
      if (strcmp(o.code, "ok") != 0 && (strcmp(o.code, "memory") != 0 || !*o.message)
          && wrong++ < 20)
        printf("%s, allocation %ld, %s: %s: %s\n", names[which], n, modes[sticky], o.code,
               o.message);
      if (passed) break;
    }
    tries[which](&o);
    if (strcmp(o.code, "ok") != 0)
      printf("%s, without failures: %s: %s\n", names[which], o.code, o.message), wrong++;
    printf("%s, %s: %ld tried, %ld failed, up to allocation %ld\n", names[which], modes[sticky],
           done, failed, n);
  }
  return wrong != 0;
}
