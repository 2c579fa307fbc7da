/* thread_checks.c MODEL TIMES — two hosts and two Lua states, a thread for each, all at work at
 * once, each runtime with a team of two threads: what is shared that should not be. `make
 * check-threads` builds it with ThreadSanitizer, which watches; here is only checked that every
 * thread gives the same each time, and the same as its twin. */
#include "pyramid.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int luaopen_pyramid(lua_State *L);

static const char prompt[] = "the quick brown fox jumps over the lazy dog and runs away";

typedef struct job {
  const char *model;
  int times;
  bool failed;
  char result[512];            /* what it came to */
} job;

static bool fail(job *j, const char *what) {
  fprintf(stderr, "%s\n", what);
  return j->failed = true;
}

/* ---- hosts ---- */

typedef struct text { char bytes[256]; size_t length; } text;

static int keep_piece(void *ud, const char *piece, size_t length) {
  text *t = ud;
  if (t->length + length < sizeof t->bytes) {
    memcpy(t->bytes + t->length, piece, length);
    t->length += length;
  }
  return 0;
}

static void *host_job(void *ud) {
  job *j = ud;
  for (int i = 0; i < j->times && !j->failed; i++) {
    pyr_host *host;
    text t = { { 0 }, 0 };
    pyr_host_options options = { .threads = 2, .policy = "pyramidinfer" };
    pyr_generate_options how = { .max_tokens = 12, .on_piece = keep_piece, .ud = &t };
    if (pyr_host_open(j->model, &options, &host) != PYR_OK
        || pyr_host_generate(host, prompt, &how) != PYR_OK)
      fail(j, pyr_host_error(host));
    else if (i > 0 && strcmp(t.bytes, j->result) != 0)
      fail(j, "a host gives another text than before");
    memcpy(j->result, t.bytes, sizeof t.bytes);
    pyr_host_close(host);
  }
  return NULL;
}

/* ---- Lua states: a runtime, caches, a batch, saving and loading ---- */

static const char code[] =
  "local pyramid, path = require 'pyramid', ...\n"
  "local model = assert(pyramid.model(path, { threads = 2 }))\n"
  "local ids, out = {}, {}\n"
  "for i = 1, 70 do ids[i] = i * 37 % 271 end\n"
  "for _, name in ipairs { 'full', 'h2o', 'pyramidinfer' } do\n"
  "  local cache = assert(model:cache { policy = name })\n"
  "  local logits = assert(cache:prefill(ids))\n"
  "  for _ = 1, 6 do logits = assert(cache:step(logits:argmax())) end\n"
  "  local fork = assert(cache:fork())\n"
  "  local file = os.tmpname()\n"
  "  assert(cache:save(file))\n"
  "  local again = assert(model:load_cache(file, { policy = name }))\n"
  "  os.remove(file)\n"
  "  out[#out + 1] = assert(fork:step(1)):argmax() .. ' ' .. assert(again:step(1)):argmax()\n"
  "  fork:close() again:close() cache:close()\n"
  "end\n"
  "local batch = assert(model:batch { policy = 'streaming' })\n"
  "for i = 1, 3 do assert(batch:add({ table.unpack(ids, i, i * 11) })) end\n"
  "for _ = 1, 3 do for _, entry in ipairs(assert(batch:step())) do out[#out + 1] = "
  "entry[2]:argmax() end end\n"
  "batch:close() model:close()\n"
  "return table.concat(out, ' ')\n";

static void *state_job(void *ud) {
  job *j = ud;
  for (int i = 0; i < j->times && !j->failed; i++) {
    lua_State *L = luaL_newstate();
    if (L == NULL) {
      fail(j, "no memory for a Lua state");
      break;
    }
    luaL_openlibs(L);
    luaL_requiref(L, "pyramid", luaopen_pyramid, 0);
    lua_pop(L, 1);
    lua_pushstring(L, j->model);
    if (luaL_loadstring(L, code) != LUA_OK) fail(j, lua_tostring(L, -1));
    lua_insert(L, -2);
    if (!j->failed && lua_pcall(L, 1, 1, 0) != LUA_OK) fail(j, lua_tostring(L, -1));
    const char *result = lua_tostring(L, -1);
    if (!j->failed && i > 0 && strcmp(result, j->result) != 0)
      fail(j, "a state gives other ids than before");
    snprintf(j->result, sizeof j->result, "%s", result ? result : "");
    lua_close(L);
  }
  return NULL;
}

int main(int argc, char **argv) {
  enum { JOBS = 4 };
  static job jobs[JOBS];
  pthread_t threads[JOBS];
  bool failed = false;
  if (argc != 3) return 2;
  for (int i = 0; i < JOBS; i++) {
    jobs[i].model = argv[1];
    jobs[i].times = atoi(argv[2]);
    if (pthread_create(&threads[i], NULL, i % 2 ? state_job : host_job, &jobs[i]) != 0) return 2;
  }
  for (int i = 0; i < JOBS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < JOBS; i++) failed = failed || jobs[i].failed;
  for (int i = 0; i < 2; i++)
    if (!failed && strcmp(jobs[i].result, jobs[i + 2].result) != 0)
      failed = fail(&jobs[i], "twins give different results");
  printf("threads: 2 hosts and 2 Lua states, %d times each, teams of 2: %s\n", jobs[0].times,
         failed ? "FAILED" : "the same every time");
  return failed;
}
