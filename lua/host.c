/* host.c — the facade for hosts that don't want to see Lua.
 *
 * Owns: one private lua_State with the bundled modules, an account of its memory, the last message,
 * and the conversations' handles. What a host does — open, generate, converse, close — is in
 * lua/pyramid/host.lua; this file only carries values and statuses across.
 *
 * Every entry into Lua is one protected call of one C function with one light userdatum, which
 * needs no memory of its own: nothing can reach Lua's panic function, whatever fails. Errors that
 * Lua raises are misuse (PYR_ARGUMENT) or want of memory; failures of the world come as nil,
 * message, code.
 *
 * A handle that is closed inside a callback of its own call is only marked; the call frees it when
 * it ends. A conversation keeps its host alive: `handles` counts the host's own and those.
 *
 * Cancelling sets one flag. It is read by a progress callback, between tokens, and by a hook that
 * the state runs every few thousand instructions, so that a policy's loop ends, too. */
#include "lauxpyr.h"
#include "base/plain.h"
#include "base/versioned.h"

#include <lualib.h>

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_BYTES = 1024, HOOK_EVERY = 4096 };

struct pyr_host {
  lua_State *L;
  int session;                            /* reference into the registry, or LUA_NOREF */
  int handles;                            /* the host's own, and one for each conversation */
  size_t held, limit;                     /* bytes of the private state */
  locale_t outer;                         /* the caller's, while Lua runs in the C locale */
  atomic_bool busy;
  atomic_bool cancelled;
  bool closed;                            /* its own handle is gone, … */
  bool closed_inside_call;  /* … or a conversation's, inside a callback of the call that runs */
  pyr_conversation *closed_inside;        /* conversations closed inside a callback */
  const pyr_generate_options *running;    /* what the callbacks are, while there are any */
  bool writing;                           /* the prompt is read, and there is no progress to tell */
  int64_t context, width;
  pyr_host_stats stats;
  char message[MESSAGE_BYTES];
};

struct pyr_conversation {
  pyr_host *host;
  int ref;                                /* into the registry */
  pyr_conversation *next;                 /* of those closed inside a callback */
};

/* ---- the way in ------------------------------------------------------------------------------ */

typedef struct host_call {                /* what the protected functions get, each what it needs */
  pyr_host *host;
  const char *text, *role;                /* the model's path, a prompt, a message, a file */
  const char *tools;                      /* JSON, or NULL */
  size_t length;
  const pyr_part *parts;                  /* [count] */
  int count;
  float *rows;                            /* where rows go, room for `room` numbers */
  int64_t room;
  const void *options;
  int ref;                                /* a conversation's, in or out */
  int64_t number;
  pyr_message *message;
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
  if (host->limit && size > old && size - old > host->limit - (host->held < host->limit
      ? host->held : host->limit)) return NULL;
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

static bool is_cancelled(pyr_host *host) {
  return atomic_load_explicit(&host->cancelled, memory_order_relaxed);
}

static void watch(lua_State *L, lua_Debug *at) {
  void *host;
  (void)at;
  lua_getallocf(L, &host);
  if (!is_cancelled(host)) return;
  lua_sethook(L, watch, LUA_MASKCOUNT, 1);            /* again at once, where something catches this
                                                         and goes on */
  luaL_error(L, "cancelled");
}

static void free_host(pyr_host *host) {
  if (host->L) lua_close(host->L);        /* finalizers release model, caches and runtime */
  free(host);
}

static void drop_conversation(pyr_conversation *c) {
  luaL_unref(c->host->L, LUA_REGISTRYINDEX, c->ref);
  c->host->handles--;
  free(c);
}

/* Whether a call may begin; if so it is one. */
static pyr_status begin(pyr_host *host) {
  if (host == NULL) return PYR_ARGUMENT;
  if (atomic_exchange(&host->busy, true))
    return set_message(host, PYR_ARGUMENT,
                       "the host is in another call already: one at a time, and none of its own "
                       "in a callback");
  host->message[0] = 0;
  atomic_store(&host->cancelled, false);
  return PYR_OK;
}

static int close_conversation(lua_State *L);

/* Runs one function in the private state and returns its status; the message is in the host. */
static pyr_status protect(pyr_host *host, lua_CFunction function, host_call *call) {
  lua_State *L = host->L;
  lua_settop(L, 0);
  lua_sethook(L, watch, LUA_MASKCOUNT, HOOK_EVERY);
  lua_pushcfunction(L, function);
  lua_pushlightuserdata(L, call);
  host->outer = pyr_plain_enter();        /* what is read and written does not depend on the
                                             process's locale */
  int failed = lua_pcall(L, 1, 0, 0);
  pyr_plain_leave(host->outer);
  if (failed) {
    const char *message = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
        : "an error that is no text";
    call->status = set_message(host, failed == LUA_ERRMEM ? PYR_MEMORY : PYR_ARGUMENT, message);
  }
  lua_settop(L, 0);
  if (call->status != PYR_OK && is_cancelled(host))
    call->status = set_message(host, PYR_CANCELLED, "cancelled");
  return call->status;
}

/* The end of a call that began; what was closed inside it is closed now. */
static pyr_status end(pyr_host *host, pyr_status status) {
  host->running = NULL;
  if (host->closed_inside_call) status = PYR_CANCELLED;
  host->closed_inside_call = false;
  atomic_store(&host->cancelled, false);
  while (host->closed_inside) {
    pyr_conversation *c = host->closed_inside;
    host->closed_inside = c->next;
    host_call call = { .host = host, .ref = c->ref };
    protect(host, close_conversation, &call);
    drop_conversation(c);
  }
  atomic_store(&host->busy, false);
  if (host->handles == 0) free_host(host);
  return status;
}

/* The results nil, message, code of a method at index, … into the host; anything else is success.
 */
static void take_results(lua_State *L, host_call *call, int index) {
  call->status = PYR_OK;
  if (!lua_isnil(L, index)) return;
  const char *message = lua_tostring(L, index + 1);
  call->status = set_message(call->host, status_of(lua_tostring(L, index + 2)), message);
  /* what Lua says when it has none; code that loads other code (a policy) hands it on as that
   * code's fault */
  if (message && strstr(message, "not enough memory")) call->status = PYR_MEMORY;
}

/* Pushes the session's method and the session. */
static void push_method(lua_State *L, host_call *call, const char *name) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->host->session);
  lua_getfield(L, -1, name);
  lua_insert(L, -2);
}

/* The options' fields are set in the table at the top. */
static void set_text(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);               /* NULL gives nil */
  lua_setfield(L, -2, key);
}

static void set_integer(lua_State *L, const char *key, int64_t value) {
  if (value == 0) return;
  lua_pushinteger(L, value);
  lua_setfield(L, -2, key);
}

static void set_flag(lua_State *L, const char *key, int value) {
  lua_pushboolean(L, value);
  lua_setfield(L, -2, key);
}

static int64_t size_number(size_t size) { return size > INT64_MAX ? INT64_MAX : (int64_t)size; }

/* ---- open ------------------------------------------------------------------------------------ */

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
  set_text(L, "device", o->device);
  lua_pushinteger(L, o->threads);
  lua_setfield(L, -2, "threads");
  if (o->read_weights) set_flag(L, "map", 0);
  set_text(L, "weights", o->weights);
  set_text(L, "precision", o->precision);
  set_text(L, "policy", o->policy);
  set_text(L, "policy_options", o->policy_options);
  if (o->policy_seconds != 0) {
    lua_pushnumber(L, o->policy_seconds > 0 ? o->policy_seconds : 0);
    lua_setfield(L, -2, "policy_seconds");
  }
  set_text(L, "cache_dtype", o->cache_dtype);
  set_integer(L, "cache_budget", size_number(o->cache_budget));
  set_integer(L, "memory", size_number(o->memory_limit));
  set_integer(L, "context", o->context);
  set_text(L, "scaling", o->scaling);
  set_text(L, "sessions", o->sessions);
  set_integer(L, "sessions_bytes", size_number(o->sessions_bytes));
  lua_call(L, 2, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  lua_settop(L, -3);
  lua_getfield(L, -1, "model");
  lua_getfield(L, -1, "config");
  lua_getfield(L, -1, "context");
  call->host->context = lua_tointeger(L, -1);
  lua_getfield(L, -2, "width");
  call->host->width = lua_tointeger(L, -1);
  lua_settop(L, -5);
  call->host->session = luaL_ref(L, LUA_REGISTRYINDEX);
  return 0;
}

pyr_status pyr_host_open(const char *model_path, const pyr_host_options *options, pyr_host **out) {
  pyr_host_options taken;
  if (out == NULL) return PYR_ARGUMENT;
  pyr_host *host = calloc(1, sizeof *host);
  *out = host;
  if (host == NULL) return PYR_MEMORY;
  host->session = LUA_NOREF;
  host->handles = 1;
  host->stats.finish = "";
  if (model_path == NULL) return set_message(host, PYR_ARGUMENT, "no model path");
  const char *wrong = pyr_take_options(&taken, sizeof taken, sizeof taken, options);
  if (wrong) {
    snprintf(host->message, sizeof host->message, "the host's options: %s", wrong);
    return PYR_ARGUMENT;
  }
  host->limit = taken.memory_limit;
  host->L = lua_newstate(host_alloc, host);
  if (host->L == NULL)
    return set_message(host, PYR_MEMORY, "not enough memory for the private Lua state");
  host_call call = { .host = host, .text = model_path, .options = &taken };
  begin(host);
  return end(host, protect(host, protected_open, &call));
}

/* ---- callbacks ------------------------------------------------------------------------------- */

/* Numbers of a sequence at an index; at most `most`. */
static int32_t read_numbers(lua_State *L, int index, int32_t *ids, double *numbers, int32_t most) {
  if (!lua_istable(L, index)) return 0;
  lua_Integer length = (lua_Integer)lua_rawlen(L, index);
  int32_t count = length < most ? (int32_t)length : most;
  for (int32_t i = 0; i < count; i++) {
    lua_rawgeti(L, index, i + 1);
    if (ids) ids[i] = (int32_t)lua_tointeger(L, -1);
    else numbers[i] = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return count;
}

/* The host's callbacks as Lua functions; upvalue 1 is the host. on_token(piece, id, logprob, ids,
 * logprobs) */
static int call_on_token(lua_State *L) {
  pyr_host *host = lua_touserdata(L, lua_upvalueindex(1));
  const pyr_generate_options *o = host->running;
  int32_t ids[PYR_ALTERNATIVES];
  double logprobs[PYR_ALTERNATIVES];
  pyr_token token = { .ids = ids, .logprobs = logprobs };
  host->writing = true;
  token.text = luaL_checklstring(L, 1, &token.length);
  token.id = lua_isnoneornil(L, 2) ? -1 : (int32_t)lua_tointeger(L, 2);
  token.logprob = lua_isnoneornil(L, 3) ? NAN : lua_tonumber(L, 3);
  int stop = 0;
  if (o->on_token && token.id >= 0) {
    token.count = read_numbers(L, 4, ids, NULL, PYR_ALTERNATIVES);
    int32_t known = read_numbers(L, 5, NULL, logprobs, PYR_ALTERNATIVES);
    if (known < token.count) token.count = known;
  }
  locale_t mine = uselocale(host->outer);          /* callbacks run in the host's locale */
  if (o->on_token) stop = o->on_token(o->ud, &token) != 0;
  if (o->on_piece && token.length > 0) stop |= o->on_piece(o->ud, token.text, token.length) != 0;
  uselocale(mine);
  if (is_cancelled(host)) lua_pushliteral(L, "cancel");
  else lua_pushboolean(L, stop);
  return 1;
}

static int call_on_progress(lua_State *L) {
  pyr_host *host = lua_touserdata(L, lua_upvalueindex(1));
  const pyr_generate_options *o = host->running;
  lua_Integer done = luaL_checkinteger(L, 1), total = luaL_checkinteger(L, 2);
  locale_t mine = uselocale(host->outer);
  int stop = o->on_progress && !host->writing && o->on_progress(o->ud, done, total) != 0;
  uselocale(mine);
  lua_pushboolean(L, stop || is_cancelled(host));
  return 1;
}

static void set_callback(lua_State *L, const char *key, pyr_host *host, lua_CFunction function) {
  lua_pushlightuserdata(L, host);
  lua_pushcclosure(L, function, 1);
  lua_setfield(L, -2, key);
}

/* ---- generate -------------------------------------------------------------------------------- */

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

/* Pushes the table that host.lua calls `how`. */
static void push_how(lua_State *L, pyr_host *host) {
  const pyr_generate_options *o = host->running;
  lua_newtable(L);
  set_integer(L, "max_tokens", o->max_tokens);
  set_flag(L, "plain", o->plain);
  lua_newtable(L);
  lua_Integer stops = 0;
  if (o->stop) {
    lua_pushstring(L, o->stop);
    lua_rawseti(L, -2, ++stops);
  }
  for (const char *const *stop = o->stops; stop && *stop; stop++) {
    lua_pushstring(L, *stop);
    lua_rawseti(L, -2, ++stops);
  }
  if (stops) lua_setfield(L, -2, "stop");
  else lua_pop(L, 1);
  push_sampler_options(L, &o->sampler);
  lua_setfield(L, -2, "sampler");
  if (o->logprobs || o->alternatives) {
    lua_pushinteger(L, o->alternatives);
    lua_setfield(L, -2, "logprobs");
  }
  if (o->thinking) set_flag(L, "thinking", o->thinking > 0);
  set_text(L, "format", o->format);
  set_text(L, "variables", o->variables);
  set_callback(L, "on_token", host, call_on_token);
  set_callback(L, "on_progress", host, call_on_progress);
}

/* The statistics at the top. */
static void take_stats(lua_State *L, pyr_host_stats *stats) {
  static const char *const reasons[] = { "eos", "stop", "grammar", "length", "context",
                                         "closed" };
  stats->prompt_tokens = (int64_t)number_field(L, "prompt_tokens");
  stats->generated_tokens = (int64_t)number_field(L, "generated_tokens");
  stats->prefill_seconds = number_field(L, "prefill_seconds");
  stats->decode_seconds = number_field(L, "decode_seconds");
  stats->cache_bytes = (size_t)number_field(L, "cache_bytes");
  stats->cache_fraction = number_field(L, "cache_fraction");
  stats->context_tokens = (int64_t)number_field(L, "context_tokens");
  stats->rereads = (int64_t)number_field(L, "rereads");
  lua_getfield(L, -1, "finish");
  const char *finish = lua_tostring(L, -1);
  for (size_t i = 0; finish && i < sizeof reasons / sizeof *reasons; i++)
    if (strcmp(finish, reasons[i]) == 0) stats->finish = reasons[i];
  lua_pop(L, 1);
}

/* Calls the method that lies below its `arguments`, and takes what it did into the statistics. */
static void run_text(lua_State *L, host_call *call, int arguments) {
  lua_call(L, arguments, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return;
  lua_settop(L, -3);
  take_stats(L, &call->host->stats);
}

static int protected_generate(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "generate");
  lua_pushlstring(L, call->text, call->length);
  push_how(L, call->host);
  run_text(L, call, 3);
  return 0;
}

/* Pushes what Host:generate_chat and Host:render take. */
static void push_chat(lua_State *L, host_call *call, const char *method) {
  push_method(L, call, method);
  lua_pushstring(L, call->text);
  lua_pushstring(L, call->tools);         /* NULL gives nil */
  push_how(L, call->host);
}

static int protected_generate_chat(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_chat(L, call, "generate_chat");
  run_text(L, call, 4);
  return 0;
}

static int protected_render(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_chat(L, call, "render");
  lua_call(L, 4, 3);
  take_results(L, call, -3);
  if (call->status == PYR_OK) call->text = lua_tolstring(L, -3, &call->length);
  return 0;                               /* the session keeps the text */
}

/* Rows are copied into a string of Lua's, which counts against the state's limit. */
static int protected_generate_parts(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "generate_parts");
  lua_createtable(L, call->count, 0);
  for (int i = 0; i < call->count; i++) {
    const pyr_part *part = &call->parts[i];
    if (part->text) {
      lua_pushlstring(L, part->text, part->length ? part->length : strlen(part->text));
    } else {
      lua_createtable(L, 0, 1);
      lua_pushlstring(L, (const char *)part->rows,
                      (size_t)(part->count * call->host->width) * sizeof *part->rows);
      lua_setfield(L, -2, "embeddings");
    }
    lua_rawseti(L, -2, i + 1);
  }
  push_how(L, call->host);
  run_text(L, call, 3);
  return 0;
}

static int protected_embed(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "embed");
  lua_pushlstring(L, call->text, call->length);
  lua_call(L, 2, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  size_t bytes;
  const char *rows = lua_tolstring(L, -3, &bytes);
  call->number = lua_tointeger(L, -2);
  if (call->number > call->room)
    call->status = set_message(call->host, PYR_ARGUMENT, "there is no room for all of the rows");
  else if (bytes) memcpy(call->rows, rows, bytes);
  return 0;
}

static pyr_status check_model(pyr_host *host) {
  if (host->session != LUA_NOREF) return PYR_OK;
  return set_message(host, PYR_ARGUMENT, "the host has no model: opening it failed");
}

/* What generating and answering have in common. */
static pyr_status check_how(pyr_host *host, const pyr_generate_options *options,
                            pyr_generate_options *taken) {
  size_t first = offsetof(pyr_generate_options, thinking);   /* of version 0.1 */
  const char *wrong = pyr_take_options(taken, sizeof *taken, first, options);
  if (wrong) {
    snprintf(host->message, sizeof host->message, "the options of a text: %s", wrong);
    return PYR_ARGUMENT;
  }
  if (check_model(host) != PYR_OK) return PYR_ARGUMENT;
  if (taken->max_tokens < 0) return set_message(host, PYR_ARGUMENT, "max_tokens is negative");
  if (taken->alternatives < 0 || taken->alternatives > PYR_ALTERNATIVES)
    return set_message(host, PYR_ARGUMENT,
                       "alternatives is negative, or more than PYR_ALTERNATIVES");
  for (size_t i = 0; i < sizeof taken->sampler.reserved / sizeof *taken->sampler.reserved; i++)
    if (taken->sampler.reserved[i])
      return set_message(host, PYR_ARGUMENT,
                         "the sampler's reserved members must be zero in this version");
  host->stats = (pyr_host_stats){ .finish = "" };
  host->running = taken;
  host->writing = false;
  return PYR_OK;
}

pyr_status pyr_host_generate(pyr_host *host, const char *prompt,
                             const pyr_generate_options *options) {
  pyr_generate_options taken;
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_how(host, options, &taken);
  if (status == PYR_OK && prompt == NULL) status = set_message(host, PYR_ARGUMENT, "no prompt");
  if (status == PYR_OK) {
    host_call call = { .host = host, .text = prompt,
                       .length = taken.prompt_length ? taken.prompt_length : strlen(prompt) };
    status = protect(host, protected_generate, &call);
  }
  return end(host, status);
}

pyr_status pyr_host_generate_chat(pyr_host *host, const char *messages, const char *tools,
                                  const pyr_generate_options *options) {
  pyr_generate_options taken;
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_how(host, options, &taken);
  if (status == PYR_OK && messages == NULL) status = set_message(host, PYR_ARGUMENT, "no messages");
  if (status == PYR_OK) {
    host_call call = { .host = host, .text = messages, .tools = tools };
    status = protect(host, protected_generate_chat, &call);
  }
  return end(host, status);
}

pyr_status pyr_host_render(pyr_host *host, const char *messages, const char *tools,
                           const pyr_generate_options *options, const char **text,
                               size_t *length) {
  pyr_generate_options taken;
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_how(host, options, &taken);
  if (status == PYR_OK && messages == NULL) status = set_message(host, PYR_ARGUMENT, "no messages");
  if (status == PYR_OK && text == NULL)
    status = set_message(host, PYR_ARGUMENT, "nowhere to put the text");
  if (status == PYR_OK) {
    host_call call = { .host = host, .text = messages, .tools = tools };
    status = protect(host, protected_render, &call);
    if (status == PYR_OK) *text = call.text;
    if (status == PYR_OK && length) *length = call.length;
  }
  return end(host, status);
}

/* Sizes are checked here, before anything is read by them; what the rows hold the core checks. */
static pyr_status check_parts(pyr_host *host, const pyr_part *parts, int count) {
  if (count < 1 || parts == NULL) return set_message(host, PYR_ARGUMENT, "no parts");
  for (int i = 0; i < count; i++) {
    const pyr_part *part = &parts[i];
    if (part->text ? part->rows != NULL : part->rows == NULL)
      return set_message(host, PYR_ARGUMENT, "a part is a text or rows, and not both");
    if (part->rows && (part->count < 0 || part->count > host->context))
      return set_message(host, PYR_ARGUMENT,
                         "a part's count of rows is negative, or more than the model's context");
  }
  return PYR_OK;
}

pyr_status pyr_host_generate_parts(pyr_host *host, const pyr_part *parts, int count,
                                   const pyr_generate_options *options) {
  pyr_generate_options taken;
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_how(host, options, &taken);
  if (status == PYR_OK) status = check_parts(host, parts, count);
  if (status == PYR_OK) {
    host_call call = { .host = host, .parts = parts, .count = count };
    status = protect(host, protected_generate_parts, &call);
  }
  return end(host, status);
}

pyr_status pyr_host_embed(pyr_host *host, const char *text, size_t length, float *out,
                          int64_t room, int64_t *count) {
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_model(host);
  if (status == PYR_OK && (text == NULL || count == NULL))
    status = set_message(host, PYR_ARGUMENT, "no text, or nowhere to put the count");
  if (status == PYR_OK) {
    host_call call = { .host = host, .text = text, .length = length ? length : strlen(text),
                       .rows = out, .room = out ? room : 0 };
    call.number = -1;
    status = protect(host, protected_embed, &call);
    if (call.number >= 0) *count = call.number;
  }
  return end(host, status);
}

static int protected_count(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "count");
  lua_pushlstring(L, call->text, call->length);
  lua_call(L, 2, 3);
  take_results(L, call, -3);
  if (call->status == PYR_OK) call->number = lua_tointeger(L, -3);
  return 0;
}

pyr_status pyr_host_count_tokens(pyr_host *host, const char *text, size_t length, int64_t *out) {
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  status = check_model(host);
  if (status == PYR_OK && (text == NULL || out == NULL))
    status = set_message(host, PYR_ARGUMENT, "no text, or nowhere to put the count");
  if (status == PYR_OK) {
    host_call call = { .host = host, .text = text, .length = length ? length : strlen(text) };
    status = protect(host, protected_count, &call);
    if (status == PYR_OK) *out = call.number;
  }
  return end(host, status);
}

void pyr_host_get_stats(const pyr_host *host, pyr_host_stats *out) {
  if (out) *out = host ? host->stats : (pyr_host_stats){ .finish = "" };
}

int64_t pyr_host_context(const pyr_host *host) { return host ? host->context : 0; }

int64_t pyr_host_width(const pyr_host *host) { return host ? host->width : 0; }

void pyr_host_cancel(pyr_host *host) {
  if (host) atomic_store_explicit(&host->cancelled, true, memory_order_relaxed);
}

const char *pyr_host_error(const pyr_host *host) {
  return host ? host->message : "not enough memory for a host";
}

void pyr_host_close(pyr_host *host) {
  if (host == NULL || host->closed) return;
  host->closed = true;
  host->handles--;
  if (atomic_load(&host->busy)) {         /* inside a callback: the call frees it */
    host->closed_inside_call = true;
    pyr_host_cancel(host);
  } else if (host->handles == 0) {
    free_host(host);
  }
}

/* ---- conversations --------------------------------------------------------------------------- */

/* The object at the top becomes the call's conversation. */
static void keep_conversation(lua_State *L, host_call *call) {
  call->ref = luaL_ref(L, LUA_REGISTRYINDEX);
}

static int close_conversation(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_getfield(L, -1, "close");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  call->status = PYR_OK;
  return 0;
}

/* host:converse(options), host:load(path, options) */
static int protected_converse(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  const pyr_conversation_options *o = call->options;
  push_method(L, call, call->text ? "load" : "converse");
  if (call->text) lua_pushstring(L, call->text);
  lua_newtable(L);
  set_text(L, "system", o->system);
  set_text(L, "format", o->format);
  set_text(L, "tools", o->tools);
  if (o->thinking) set_flag(L, "thinking", o->thinking > 0);
  set_text(L, "variables", o->variables);
  lua_call(L, call->text ? 3 : 2, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  lua_settop(L, -3);
  keep_conversation(L, call);
  return 0;
}

static int protected_fork(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_getfield(L, -1, "fork");
  lua_insert(L, -2);
  lua_call(L, 1, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  lua_settop(L, -3);
  keep_conversation(L, call);
  return 0;
}

/* Runs what makes a conversation, and wraps it. The box comes first, so that nothing is made that
 * cannot be kept. */
static pyr_status make_conversation(pyr_host *host, lua_CFunction function, host_call *call,
                                    pyr_conversation **out) {
  pyr_conversation *c = calloc(1, sizeof *c);
  if (c == NULL) return set_message(host, PYR_MEMORY, "not enough memory for a conversation");
  pyr_status status = protect(host, function, call);
  if (status != PYR_OK) {
    free(c);
    return status;
  }
  c->host = host;
  c->ref = call->ref;
  host->handles++;
  *out = c;
  return PYR_OK;
}

static pyr_status open_conversation(pyr_host *host, const char *path,
                                    const pyr_conversation_options *options,
                                        pyr_conversation **out) {
  pyr_conversation_options taken;
  size_t first = offsetof(pyr_conversation_options, tools);  /* of version 0.1 */
  const char *wrong = pyr_take_options(&taken, sizeof taken, first, options);
  if (wrong) {
    snprintf(host->message, sizeof host->message, "the conversation's options: %s", wrong);
    return PYR_ARGUMENT;
  }
  if (check_model(host) != PYR_OK) return PYR_ARGUMENT;
  if (out == NULL) return set_message(host, PYR_ARGUMENT, "nowhere to put the conversation");
  host_call call = { .host = host, .text = path, .options = &taken };
  return make_conversation(host, protected_converse, &call, out);
}

pyr_status pyr_conversation_open(pyr_host *host, const pyr_conversation_options *options,
                                 pyr_conversation **out) {
  pyr_status status = begin(host);
  return status == PYR_OK ? end(host, open_conversation(host, NULL, options, out)) : status;
}

pyr_status pyr_conversation_load(pyr_host *host, const char *path,
                                 const pyr_conversation_options *options, pyr_conversation **out) {
  pyr_status status = begin(host);
  if (status != PYR_OK) return status;
  return end(host, path ? open_conversation(host, path, options, out)
             : set_message(host, PYR_ARGUMENT, "no path"));
}

pyr_status pyr_conversation_fork(pyr_conversation *c, pyr_conversation **out) {
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  if (out == NULL)
    return end(c->host, set_message(c->host, PYR_ARGUMENT, "nowhere to put the conversation"));
  host_call call = { .host = c->host, .ref = c->ref };
  return end(c->host, make_conversation(c->host, protected_fork, &call, out));
}

/* host.say(session, conversation, text, how) */
static int protected_say(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "say");
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  if (call->text) lua_pushlstring(L, call->text, call->length);
  else lua_pushnil(L);
  push_how(L, call->host);
  run_text(L, call, 4);
  return 0;
}

pyr_status pyr_conversation_say(pyr_conversation *c, const char *text,
                                const pyr_generate_options *options) {
  pyr_generate_options taken;
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  status = check_how(c->host, options, &taken);
  if (status == PYR_OK) {
    size_t length = taken.prompt_length ? taken.prompt_length : text ? strlen(text) : 0;
    host_call call = { .host = c->host, .ref = c->ref, .text = text, .length = length };
    status = protect(c->host, protected_say, &call);
  }
  return end(c->host, status);
}

static int protected_add(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_getfield(L, -1, "add");
  lua_insert(L, -2);
  lua_pushstring(L, call->role);
  lua_pushlstring(L, call->text, call->length);
  lua_call(L, 3, 3);
  take_results(L, call, -3);
  return 0;
}

pyr_status pyr_conversation_add(pyr_conversation *c, const pyr_message *message) {
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  if (message == NULL || message->role == NULL || message->text == NULL)
    return end(c->host, set_message(c->host, PYR_ARGUMENT, "a message has a role and a text"));
  host_call call = { .host = c->host, .ref = c->ref, .role = message->role, .text = message->text,
                     .length = message->length ? message->length : strlen(message->text) };
  return end(c->host, protect(c->host, protected_add, &call));
}

/* host.add_json(session, conversation, text) */
static int protected_add_json(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "add_json");
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_pushstring(L, call->text);
  lua_call(L, 3, 3);
  take_results(L, call, -3);
  return 0;
}

pyr_status pyr_conversation_add_json(pyr_conversation *c, const char *message) {
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  if (message == NULL) return end(c->host, set_message(c->host, PYR_ARGUMENT, "no message"));
  host_call call = { .host = c->host, .ref = c->ref, .text = message };
  return end(c->host, protect(c->host, protected_add_json, &call));
}

/* host:message(conversation, index): the message keeps the role, the session the text */
static int protected_get(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  push_method(L, call, "message");
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_pushinteger(L, call->number < 0 ? 0 : call->number + 1);
  lua_call(L, 3, 3);
  take_results(L, call, -3);
  if (call->status != PYR_OK) return 0;
  call->message->role = lua_tostring(L, -3);
  call->message->text = lua_tolstring(L, -2, &call->message->length);
  return 0;
}

pyr_status pyr_conversation_get(pyr_conversation *c, int64_t index, pyr_message *out) {
  if (out) *out = (pyr_message){ 0 };
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  if (out == NULL)
    return end(c->host, set_message(c->host, PYR_ARGUMENT, "nowhere to put the message"));
  host_call call = { .host = c->host, .ref = c->ref, .number = index, .message = out };
  return end(c->host, protect(c->host, protected_get, &call));
}

static int protected_save(lua_State *L) {
  host_call *call = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->ref);
  lua_getfield(L, -1, "save");
  lua_insert(L, -2);
  lua_pushstring(L, call->text);
  lua_call(L, 2, 3);
  take_results(L, call, -3);
  return 0;
}

pyr_status pyr_conversation_save(pyr_conversation *c, const char *path) {
  pyr_status status = begin(c ? c->host : NULL);
  if (status != PYR_OK) return status;
  if (path == NULL) return end(c->host, set_message(c->host, PYR_ARGUMENT, "no path"));
  host_call call = { .host = c->host, .ref = c->ref, .text = path };
  return end(c->host, protect(c->host, protected_save, &call));
}

void pyr_conversation_close(pyr_conversation *c) {
  if (c == NULL) return;
  pyr_host *host = c->host;
  if (atomic_load(&host->busy)) {         /* inside a callback: the call closes it */
    for (pyr_conversation *other = host->closed_inside; other; other = other->next)
      if (other == c) return;
    c->next = host->closed_inside;
    host->closed_inside = c;
    host->closed_inside_call = true;
    pyr_host_cancel(host);
    return;
  }
  atomic_store(&host->cancelled, false);
  host_call call = { .host = host, .ref = c->ref };
  protect(host, close_conversation, &call);
  drop_conversation(c);
  if (host->handles == 0) free_host(host);
}
