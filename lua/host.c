/* host.c — the facade for hosts that don't want to see Lua.
 *
 * Owns: one private lua_State with the bundled modules, an account of its memory, the last message. What a host does
 * — open, generate, close — is in lua/pyramid/host.lua; this file only carries values and statuses across.
 *
 * Every entry into Lua is one protected call of one C function with one light userdatum, which needs no memory of its
 * own: nothing can reach Lua's panic function, whatever fails. Errors that Lua raises are misuse (PYR_ARGUMENT) or want
 * of memory; failures of the world come as nil, message, code. */
#include "lpyramid.h"

#include <lualib.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PYR_HOST_MESSAGE = 1024 };

struct pyr_host {
  lua_State *L;
  int session;                            /* reference into the registry, or LUA_NOREF */
  size_t held, limit;                     /* bytes of the private state */
  const pyr_generate_options *running;    /* during pyr_host_generate */
  pyr_host_stats stats;
  char message[PYR_HOST_MESSAGE];
};

/* ---- the way in ----------------------------------------------------------------------------------------------------- */

typedef struct host_call {                /* what the protected functions get */
  pyr_host *host;
  const char *text;                       /* the model's path, or the prompt */
  const pyr_host_options *options;
  pyr_status status;                      /* what they say */
} host_call;

static void *host_alloc(void *ud, void *ptr, size_t old, size_t size) {
  pyr_host *host = ud;
  if (ptr == NULL) old = 0;               /* then it is the kind of the new object */
  if (size == 0) {
    free(ptr);
    host->held -= old;
    return NULL;
  }
  if (host->limit && size > old && size - old > host->limit - (host->held < host->limit ? host->held : host->limit)) return NULL;
  void *fresh = realloc(ptr, size);
  if (fresh) host->held += size - old;
  return fresh;
}

static pyr_status set_message(pyr_host *host, pyr_status status, const char *message) {
  snprintf(host->message, sizeof host->message, "%s", message ? message : pyr_status_name(status));
  return status;
}

static pyr_status status_of(const char *name) {
  for (int status = PYR_OK; name && status <= PYR_DEVICE; status++)
    if (strcmp(name, pyr_status_name((pyr_status)status)) == 0) return (pyr_status)status;
  return PYR_ARGUMENT;
}

/* Runs one function in the private state and returns its status; the message is in the host. */
static pyr_status protect(pyr_host *host, lua_CFunction function, host_call *call) {
  lua_State *L = host->L;
  lua_settop(L, 0);
  lua_pushcfunction(L, function);
  lua_pushlightuserdata(L, call);
  int failed = lua_pcall(L, 1, 0, 0);
  pyr_status status = call->status;
  if (failed) {
    const char *message = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "an error that is no text";
    status = set_message(host, failed == LUA_ERRMEM ? PYR_MEMORY : PYR_ARGUMENT, message);
  }
  lua_settop(L, 0);
  return status;
}

/* The results nil, message, code of a method at index, … into the host; anything else is success. */
static void take_results(lua_State *L, host_call *call, int index) {
  call->status = PYR_OK;
  if (!lua_isnil(L, index)) return;
  call->status = set_message(call->host, status_of(lua_tostring(L, index + 2)), lua_tostring(L, index + 1));
}

/* ---- open -------------------------------------------------------------------------------------------------------------- */

static void set_text(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);               /* NULL gives nil */
  lua_setfield(L, -2, key);
}

static void set_size(lua_State *L, const char *key, size_t value) {
  if (value == 0) return;
  lua_pushinteger(L, value > LUA_MAXINTEGER ? LUA_MAXINTEGER : (lua_Integer)value);
  lua_setfield(L, -2, key);
}

static int protected_open(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  const pyr_host_options *o = call->options;
  lua_pushboolean(L, 1);                  /* LUA_PATH and LUA_CPATH are for the user's own Lua */
  lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
  luaL_openlibs(L);
  pyr_lua_absolute_paths(L);
  lua_getglobal(L, "package");            /* modules in C would bring another Lua with them */
  lua_pushliteral(L, "");
  lua_setfield(L, -2, "cpath");
  pyr_lua_preload(L, 1);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "pyramid.host");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "open");
  lua_pushstring(L, call->text);
  lua_newtable(L);
  lua_pushinteger(L, o->threads);
  lua_setfield(L, -2, "threads");
  set_text(L, "weights", o->weights);
  set_text(L, "precision", o->precision);
  set_text(L, "policy", o->policy);
  set_text(L, "policy_options", o->policy_options);
  set_text(L, "cache_dtype", o->cache_dtype);
  set_size(L, "cache_budget", o->cache_budget);
  set_size(L, "memory", o->memory_limit);
  lua_call(L, 2, 3);
  take_results(L, call, -3);
  if (call->status == PYR_OK) {
    lua_settop(L, -3);
    call->host->session = luaL_ref(L, LUA_REGISTRYINDEX);
  }
  return 0;
}

pyr_status pyr_host_open(const char *model_path, const pyr_host_options *options, pyr_host **out) {
  static const pyr_host_options defaults;
  pyr_host *host = calloc(1, sizeof *host);
  *out = host;
  if (host == NULL) return PYR_MEMORY;
  host->session = LUA_NOREF;
  if (model_path == NULL) return set_message(host, PYR_ARGUMENT, "no model path");
  host->limit = options ? options->memory_limit : 0;
  host->L = lua_newstate(host_alloc, host);
  if (host->L == NULL) return set_message(host, PYR_MEMORY, "not enough memory for the private Lua state");
  host_call call = { .host = host, .text = model_path, .options = options ? options : &defaults };
  return protect(host, protected_open, &call);
}

/* ---- generate ---------------------------------------------------------------------------------------------------------- */

/* The host's callbacks as Lua functions; upvalue 1 is the host. True stops. */
static int call_on_piece(lua_State *L) {
  const pyr_generate_options *o = ((pyr_host *)lua_touserdata(L, lua_upvalueindex(1)))->running;
  size_t length;
  const char *piece = luaL_checklstring(L, 1, &length);
  lua_pushboolean(L, o->on_piece && o->on_piece(o->ud, piece, length) != 0);
  return 1;
}

static int call_on_progress(lua_State *L) {
  const pyr_generate_options *o = ((pyr_host *)lua_touserdata(L, lua_upvalueindex(1)))->running;
  lua_pushboolean(L, o->on_progress && o->on_progress(o->ud, luaL_checkinteger(L, 1), luaL_checkinteger(L, 2)) != 0);
  return 1;
}

static void set_callback(lua_State *L, const char *key, pyr_host *host, lua_CFunction function) {
  lua_pushlightuserdata(L, host);
  lua_pushcclosure(L, function, 1);
  lua_setfield(L, -2, key);
}

static void push_sampler_options(lua_State *L, const pyr_sampler_options *s) {
  lua_newtable(L);
  const struct { const char *key; double value; } numbers[] = {
    { "temperature", s->temperature }, { "top_p", s->top_p }, { "min_p", s->min_p },
    { "repeat_penalty", s->repeat_penalty }, { "frequency_penalty", s->frequency_penalty },
    { "presence_penalty", s->presence_penalty },
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    lua_pushnumber(L, numbers[i].value);
    lua_setfield(L, -2, numbers[i].key);
  }
  const struct { const char *key; lua_Integer value; } integers[] = {
    { "top_k", s->top_k }, { "penalty_last", s->penalty_last }, { "seed", (lua_Integer)s->seed },
  };
  for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
    lua_pushinteger(L, integers[i].value);
    lua_setfield(L, -2, integers[i].key);
  }
  if (s->bias_count <= 0 || s->bias == NULL) return;
  lua_newtable(L);
  for (int32_t i = 0; i < s->bias_count; i++) {
    lua_pushnumber(L, s->bias[i].bias);
    lua_rawseti(L, -2, s->bias[i].id);
  }
  lua_setfield(L, -2, "logit_bias");
}

static lua_Number number_field(lua_State *L, const char *key) {
  lua_getfield(L, -1, key);
  lua_Number value = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return value;
}

static int protected_generate(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  pyr_host *host = call->host;
  const pyr_generate_options *o = host->running;
  lua_rawgeti(L, LUA_REGISTRYINDEX, host->session);
  lua_getfield(L, -1, "generate");
  lua_pushvalue(L, -2);
  lua_pushstring(L, call->text);
  lua_newtable(L);
  if (o->max_tokens) {
    lua_pushinteger(L, o->max_tokens);
    lua_setfield(L, -2, "max_tokens");
  }
  set_text(L, "stop", o->stop);
  push_sampler_options(L, &o->sampler);
  lua_setfield(L, -2, "sampler");
  set_callback(L, "on_piece", host, call_on_piece);
  if (o->on_progress) set_callback(L, "on_progress", host, call_on_progress);
  lua_call(L, 3, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  lua_settop(L, -3);                      /* the statistics */
  host->stats.prompt_tokens = (int64_t)number_field(L, "prompt_tokens");
  host->stats.generated_tokens = (int64_t)number_field(L, "generated_tokens");
  host->stats.prefill_seconds = number_field(L, "prefill_seconds");
  host->stats.decode_seconds = number_field(L, "decode_seconds");
  host->stats.cache_bytes = (size_t)number_field(L, "cache_bytes");
  host->stats.cache_fraction = number_field(L, "cache_fraction");
  return 0;
}

pyr_status pyr_host_generate(pyr_host *host, const char *prompt, const pyr_generate_options *options) {
  static const pyr_generate_options defaults;
  if (host == NULL) return PYR_ARGUMENT;
  if (host->session == LUA_NOREF) return set_message(host, PYR_ARGUMENT, "the host has no model: opening it failed");
  if (host->running) return set_message(host, PYR_ARGUMENT, "the host is generating already");
  if (prompt == NULL) return set_message(host, PYR_ARGUMENT, "no prompt");
  if (options && options->max_tokens < 0) return set_message(host, PYR_ARGUMENT, "max_tokens is negative");
  host->running = options ? options : &defaults;
  host->stats = (pyr_host_stats){ 0 };
  host_call call = { .host = host, .text = prompt };
  pyr_status status = protect(host, protected_generate, &call);
  host->running = NULL;
  return status;
}

void pyr_host_get_stats(const pyr_host *host, pyr_host_stats *out) {
  *out = host ? host->stats : (pyr_host_stats){ 0 };
}

const char *pyr_host_error(const pyr_host *host) { return host ? host->message : "not enough memory for a host"; }

void pyr_host_close(pyr_host *host) {
  if (host == NULL) return;
  if (host->L) lua_close(host->L);        /* finalizers release model, caches and runtime */
  free(host);
}
