/* lsampler.c — samplers for Lua.
 *
 *   core.sampler(runtime or nil, options or nil) -> sampler; raises on unknown or impossible
 *   options
 *   sampler:pick(logits) -> id, remembered       logits: of a cache, or a sequence of numbers, the
 *                                                first for id 0
 *   sampler:accept(ids)                          ids seen elsewhere, such as the prompt's
 *   sampler:reset()                              as new: seed and history        sampler:close()
 *   sampler:begin(lexicon or nil) -> true        a new text: where it has a grammar, from its start
 *   sampler:guided() -> boolean                  whether it has a grammar
 *   sampler:over() -> boolean                    by its grammar, nothing may follow
 *   sampler:clone() -> sampler                   goes on as this one would
 *
 *   core.grammar(text) -> grammar                GBNF        grammar:close()
 *   grammar:match(text) -> "whole", "part" or false
 *   core.lexicon(tokenizer, count, unknown or nil, ends) -> lexicon      lexicon:close()
 *
 * A sampler's `allow` is called before the work that its pick belongs to (pyr_lua_ask_sampler), so
 * that nothing of Lua's runs inside of a step. Its user values: the grammar, `allow`, and the ids
 * picked since the text began, which only samplers with `allow` keep.
 *
 * Without a runtime the sampler makes a small one of its own. What the options mean is in
 * core/sample/sampler.c. */
#include "lauxpyr.h"
#include "grammar/api.h"

#include <math.h>
#include <stdbool.h>

#define SAMPLER "pyramid.sampler"
#define GRAMMAR "pyramid.grammar"
#define LEXICON "pyramid.lexicon"

typedef struct sampler_box {
  pyr_sampler *sampler;
  pyr_runtime *rt;
  int busy, begun;               /* begun: its grammar knows a vocabulary */
} sampler_box;

/* Samplers of one grammar share what is found out about it: `guide` is over `lexicon`, the last
 * that was asked for, which it retains. */
typedef struct grammar_box {
  pyr_grammar *grammar;
  pyr_runtime *rt;
  pyr_guide *guide, *texts;      /* texts: without a lexicon */
  pyr_lexicon *lexicon;
} grammar_box;
typedef struct lexicon_box { pyr_lexicon *lexicon; } lexicon_box;

enum { USES_GRAMMAR = 1, USES_ALLOW, USES_IDS };       /* user values of a sampler */

static sampler_box *check_sampler(lua_State *L, int arg) {
  sampler_box *box = luaL_checkudata(L, arg, SAMPLER);
  if (box->sampler == NULL) luaL_argerror(L, arg, "the sampler is closed");
  if (box->busy)
    luaL_argerror(L, arg,
                  "the sampler is busy: a callback may not use the sampler whose step is running");
  return box;
}

pyr_sampler *pyr_lua_check_sampler(lua_State *L, int arg) { return check_sampler(L, arg)->sampler; }

void pyr_lua_hold_sampler(lua_State *L, int arg, int busy) {
  ((sampler_box *)luaL_checkudata(L, arg, SAMPLER))->busy = busy;
}

static int32_t check_id(lua_State *L, int index, const char *what) {
  int ok;
  lua_Integer id = lua_tointegerx(L, index, &ok);
  if (!ok || id < 0 || id > INT32_MAX)
    luaL_error(L, "sampler: %s must be token ids, integers from 0; got %s", what,
               luaL_tolstring(L, index, NULL));
  return (int32_t)id;
}

/* ---- grammars -------------------------------------------------------------------------------- */

static int grammar_close(lua_State *L) {
  grammar_box *box = luaL_checkudata(L, 1, GRAMMAR);
  pyr_guide_free(box->guide);
  pyr_guide_free(box->texts);
  pyr_grammar_free(box->grammar);
  pyr_runtime_free(box->rt);
  *box = (grammar_box){ NULL, NULL, NULL, NULL, NULL };
  return 0;
}

static grammar_box *check_grammar(lua_State *L, int arg) {
  grammar_box *box = luaL_checkudata(L, arg, GRAMMAR);
  luaL_argcheck(L, box->grammar != NULL, arg, "the grammar is closed");
  return box;
}

static int core_grammar(lua_State *L) {
  size_t n;
  const char *text = luaL_checklstring(L, 1, &n);
  pyr_runtime_options small = { .threads = 1 };
  grammar_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (grammar_box){ NULL, NULL, NULL, NULL, NULL };
  luaL_setmetatable(L, GRAMMAR);
  pyr_status status = pyr_runtime_new(&small, &box->rt);
  if (status == PYR_OK) status = pyr_grammar_new(box->rt, text, n, &box->grammar);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, box->rt, status);
}

static int grammar_match(lua_State *L) {
  static const char *const names[] = { NULL, "part", "whole" };
  size_t n;
  const char *text = luaL_checklstring(L, 2, &n);
  grammar_box *box = check_grammar(L, 1);
  pyr_match found = PYR_MATCH_NO;
  pyr_status status = PYR_OK;
  if (box->texts == NULL) status = pyr_guide_new(box->grammar, NULL, &box->texts);
  if (status == PYR_OK) status = pyr_guide_match(box->texts, text, n, &found);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  if (found == PYR_MATCH_NO) lua_pushboolean(L, 0);
  else lua_pushstring(L, names[found]);
  return 1;
}

static int lexicon_close(lua_State *L) {
  lexicon_box *box = luaL_checkudata(L, 1, LEXICON);
  pyr_lexicon_free(box->lexicon);
  box->lexicon = NULL;
  return 0;
}

static int core_lexicon(lua_State *L) {
  lua_Integer count = luaL_checkinteger(L, 2), unknown = luaL_optinteger(L, 3, -1);
  luaL_checktype(L, 4, LUA_TTABLE);
  lua_Unsigned n = lua_rawlen(L, 4);
  luaL_argcheck(L, count >= 0 && count <= INT32_MAX && n <= INT32_MAX, 2, "out of range");
  int32_t *ends = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *ends, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    lua_rawgeti(L, 4, (lua_Integer)i + 1);
    ends[i] = check_id(L, -1, "what ends a text");
    lua_pop(L, 1);
  }
  lexicon_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  box->lexicon = NULL;
  luaL_setmetatable(L, LEXICON);
  pyr_tokenizer *t = pyr_lua_check_tokenizer(L, 1);
  pyr_status status = pyr_lexicon_new(t, (int32_t)count, unknown < 0 || unknown > INT32_MAX ? -1
                                      : (int32_t)unknown, ends, (int32_t)n, &box->lexicon);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, pyr_tokenizer_runtime(t), status);
}

/* ---- options --------------------------------------------------------------------------------- */

static float number_option(lua_State *L, const char *key) {
  double value = 0;
  if (lua_getfield(L, 2, key) != LUA_TNIL) {
    int ok;
    value = lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_error(L, "sampler: %s must be a number, not a %s", key, luaL_typename(L, -1));
    if (isfinite(value) && !isfinite((float)value))
      luaL_error(L, "sampler: %s is out of range", key);
  }
  lua_pop(L, 1);
  return (float)value;
}

static lua_Integer integer_option(lua_State *L, const char *key, lua_Integer low,
                                  lua_Integer high) {
  lua_Integer value = 0;
  if (lua_getfield(L, 2, key) != LUA_TNIL) {
    int ok;
    value = lua_tointegerx(L, -1, &ok);
    if (!ok)
      luaL_error(L, "sampler: %s must be an integer, not %s", key, luaL_tolstring(L, -1, NULL));
    if (value < low || value > high)
      luaL_error(L, "sampler: %s must be between %I and %I", key, (LUAI_UACINT)low,
                 (LUAI_UACINT)high);
  }
  lua_pop(L, 1);
  return value;
}

/* Reads logit_bias = { [id] = bias, … }; the array is a userdata left on the stack. */
static void read_bias(lua_State *L, pyr_sampler_options *o) {
  if (lua_getfield(L, 2, "logit_bias") == LUA_TNIL) return;
  if (!lua_istable(L, -1)) luaL_error(L, "sampler: logit_bias must be a table from ids to numbers");
  int table = lua_gettop(L);
  size_t count = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) count++;
  pyr_logit_bias *bias = lua_newuserdatauv(L, (count + 1) * sizeof *bias, 0);
  o->bias = bias;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1), bias++) {
    int ok;
    if (bias == o->bias + count) luaL_error(L, "sampler: logit_bias was changed while it was read");
    bias->id = check_id(L, -2, "the keys of logit_bias");
    bias->bias = (float)lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_error(L, "sampler: the values of logit_bias must be numbers");
  }
  o->bias_count = (int32_t)(bias - o->bias);
}

static sampler_box *push_sampler(lua_State *L) {
  sampler_box *box = lua_newuserdatauv(L, sizeof *box, USES_IDS);
  *box = (sampler_box){ NULL, NULL, 0, 0 };
  luaL_setmetatable(L, SAMPLER);
  return box;
}

/* The options `grammar` (a core grammar by now) and `allow`, into the box at 3. */
static void read_masks(lua_State *L) {
  if (lua_getfield(L, 2, "grammar") != LUA_TNIL) (void)check_grammar(L, -1);
  lua_setiuservalue(L, 3, USES_GRAMMAR);
  if (lua_getfield(L, 2, "allow") != LUA_TNIL && !lua_isfunction(L, -1))
    luaL_error(L, "sampler: allow must be a function, not a %s", luaL_typename(L, -1));
  bool allows = !lua_isnil(L, -1);
  lua_setiuservalue(L, 3, USES_ALLOW);
  if (!allows) return;
  lua_newtable(L);
  lua_setiuservalue(L, 3, USES_IDS);
}

static int core_sampler(lua_State *L) {
  static const char *const known[] = {
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty",
        "presence_penalty", "penalty_last",
    "seed", "logit_bias", "grammar", "schema", "allow", NULL
  };
  pyr_lua_check_keys(L, 2, "sampler", known);
  lua_settop(L, 2);
  sampler_box *box = push_sampler(L);
  pyr_sampler_options o = { 0 };
  if (!lua_isnil(L, 2)) {
    o.temperature = number_option(L, "temperature");
    o.top_k = (int32_t)integer_option(L, "top_k", 0, INT32_MAX);
    o.top_p = number_option(L, "top_p");
    o.min_p = number_option(L, "min_p");
    o.repeat_penalty = number_option(L, "repeat_penalty");
    o.frequency_penalty = number_option(L, "frequency_penalty");
    o.presence_penalty = number_option(L, "presence_penalty");
    o.penalty_last = (int32_t)integer_option(L, "penalty_last", 0, INT32_MAX);
    o.seed = (uint64_t)integer_option(L, "seed", LUA_MININTEGER, LUA_MAXINTEGER);
    read_bias(L, &o);
    read_masks(L);
  }
  pyr_status status = PYR_OK;
  if (!lua_isnil(L, 1)) {
    box->rt = pyr_runtime_retain(pyr_lua_check_runtime(L, 1));
  } else {
    pyr_runtime_options small = { .threads = 1 };
    status = pyr_runtime_new(&small, &box->rt);
  }
  if (status == PYR_OK) status = pyr_sampler_new(box->rt, &o, &box->sampler);
  if (status == PYR_ARGUMENT) return luaL_error(L, "%s", pyr_runtime_error(box->rt));
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushvalue(L, 3);
  return 1;
}

/* ---- methods --------------------------------------------------------------------------------- */

/* A sequence of numbers as floats, in a userdata left on the stack. */
static const float *logits_of_table(lua_State *L, int arg, int32_t *vocab) {
  lua_Unsigned n = lua_rawlen(L, arg);
  luaL_argcheck(L, n > 0 && n <= INT32_MAX, arg, "a sequence of numbers is needed");
  float *logits = lua_newuserdatauv(L, (size_t)n * sizeof *logits, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    int ok;
    lua_rawgeti(L, arg, (lua_Integer)i + 1);
    logits[i] = (float)lua_tonumberx(L, -1, &ok);
    if (!ok) luaL_argerror(L, arg, "the logits must be numbers");
    lua_pop(L, 1);
  }
  *vocab = (int32_t)n;
  return logits;
}

/* A grammar says nothing before it knows a vocabulary. */
static void check_begun(lua_State *L, int arg) {
  sampler_box *box = check_sampler(L, arg);
  if (lua_getiuservalue(L, arg, USES_GRAMMAR) != LUA_TNIL && !box->begun)
    luaL_error(L, "sampler: its grammar knows no tokenizer yet: sampler:begin(tokenizer)");
  lua_pop(L, 1);
}

/* What `allow` says of the next pick of the sampler at `arg`; raises what it raises. */
void pyr_lua_ask_sampler(lua_State *L, int arg) {
  arg = lua_absindex(L, arg);
  sampler_box *box = check_sampler(L, arg);
  if (lua_getiuservalue(L, arg, USES_ALLOW) != LUA_TFUNCTION) {
    lua_pop(L, 1);
    return;
  }
  int top = lua_gettop(L);
  luaL_checkstack(L, 8, "allow");
  lua_getiuservalue(L, arg, USES_IDS);
  lua_call(L, 1, 1);
  lua_Unsigned n = 0;
  int32_t *ids = NULL;
  if (lua_istable(L, top)) {
    n = lua_rawlen(L, top);
    ids = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *ids, 0);
    for (lua_Unsigned i = 0; i < n; i++) {
      lua_rawgeti(L, top, (lua_Integer)i + 1);
      ids[i] = check_id(L, -1, "what allow returns");
      lua_pop(L, 1);
    }
  } else if (!lua_isnil(L, top))
    luaL_error(L, "sampler: allow must return a sequence of ids, or nil for any, not a %s",
               luaL_typename(L, top));
  box = check_sampler(L, arg);
  pyr_status status = pyr_sampler_allow(box->sampler, ids, ids ? (int64_t)n : -1);
  if (status != PYR_OK) luaL_error(L, "%s", pyr_runtime_error(box->rt));
  lua_settop(L, top - 1);
}

/* The sampler at `arg` picked an id: `allow` is told of it. */
void pyr_lua_tell_sampler(lua_State *L, int arg, int32_t id) {
  arg = lua_absindex(L, arg);
  if (lua_getiuservalue(L, arg, USES_IDS) == LUA_TTABLE) {
    lua_pushinteger(L, id);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
  lua_pop(L, 1);
}

static int sampler_pick(lua_State *L) {
  int32_t vocab, id;
  lua_settop(L, 2);
  check_begun(L, 1);
  pyr_lua_ask_sampler(L, 1);
  const float *logits = lua_istable(L, 2) ? logits_of_table(L, 2, &vocab)
      : pyr_lua_check_logits(L, 2, &vocab);
  sampler_box *box = check_sampler(L, 1);
  pyr_status status = pyr_sampler_pick(box->sampler, logits, vocab, &id);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  pyr_lua_tell_sampler(L, 1, id);
  lua_pushinteger(L, id);
  return 1;
}

static int sampler_accept(lua_State *L) {
  check_sampler(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Unsigned n = lua_rawlen(L, 2);
  int32_t *ids = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *ids, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    ids[i] = check_id(L, -1, "what it accepts");
    lua_pop(L, 1);
  }
  sampler_box *box = check_sampler(L, 1);
  pyr_status status = pyr_sampler_accept(box->sampler, ids, (int64_t)n);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushvalue(L, 1);
  return 1;
}

/* As if nothing was picked for `allow`. */
static void forget_ids(lua_State *L, int arg) {
  if (lua_getiuservalue(L, arg, USES_IDS) == LUA_TTABLE) {
    lua_newtable(L);
    lua_setiuservalue(L, arg, USES_IDS);
  }
  lua_pop(L, 1);
}

static int sampler_reset(lua_State *L) {
  check_sampler(L, 1);
  forget_ids(L, 1);
  pyr_sampler_reset(check_sampler(L, 1)->sampler);
  lua_pushvalue(L, 1);
  return 1;
}

static int sampler_guided(lua_State *L) {
  check_sampler(L, 1);
  lua_pushboolean(L, lua_getiuservalue(L, 1, USES_GRAMMAR) != LUA_TNIL);
  return 1;
}

static int sampler_over(lua_State *L) {
  lua_pushboolean(L, pyr_sampler_is_over(check_sampler(L, 1)->sampler));
  return 1;
}

/* The guide of a grammar over a lexicon, which its box keeps. */
static pyr_status guide_over(grammar_box *its, pyr_lexicon *lexicon, pyr_guide **out) {
  if (its->guide == NULL || its->lexicon != lexicon) {
    pyr_guide *guide;
    pyr_status status = pyr_guide_new(its->grammar, lexicon, &guide);
    if (status != PYR_OK) return status;
    pyr_guide_free(its->guide);
    its->guide = guide;
    its->lexicon = lexicon;
  }
  *out = its->guide;
  return PYR_OK;
}

static int sampler_begin(lua_State *L) {
  lua_settop(L, 2);
  check_sampler(L, 1);
  forget_ids(L, 1);
  bool guided = lua_getiuservalue(L, 1, USES_GRAMMAR) != LUA_TNIL;
  sampler_box *box = check_sampler(L, 1);
  if (guided && !lua_isnil(L, 2)) {
    grammar_box *its = check_grammar(L, 3);
    lexicon_box *lexicon = luaL_checkudata(L, 2, LEXICON);
    pyr_guide *guide;
    luaL_argcheck(L, lexicon->lexicon != NULL, 2, "the lexicon is closed");
    pyr_status status = guide_over(its, lexicon->lexicon, &guide);
    if (status != PYR_OK) return pyr_lua_fail(L, its->rt, status);
    status = pyr_sampler_guide(box->sampler, guide);
    if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
    box->begun = 1;
  } else check_begun(L, 1);
  pyr_sampler_begin(box->sampler);
  lua_pushboolean(L, 1);
  return 1;
}

static int sampler_clone(lua_State *L) {
  lua_settop(L, 1);
  check_sampler(L, 1);
  sampler_box *to = push_sampler(L);
  for (int i = USES_GRAMMAR; i <= USES_ALLOW; i++) {
    lua_getiuservalue(L, 1, i);
    lua_setiuservalue(L, 2, i);
  }
  if (lua_getiuservalue(L, 1, USES_IDS) == LUA_TTABLE) {
    lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
    lua_newtable(L);
    for (lua_Integer i = 1; i <= n; i++) {
      lua_rawgeti(L, 3, i);
      lua_rawseti(L, 4, i);
    }
    lua_setiuservalue(L, 2, USES_IDS);
  }
  sampler_box *from = check_sampler(L, 1);
  to->rt = pyr_runtime_retain(from->rt);
  to->begun = from->begun;
  pyr_status status = pyr_sampler_clone(from->sampler, &to->sampler);
  if (status != PYR_OK) return pyr_lua_fail(L, from->rt, status);
  lua_settop(L, 2);
  return 1;
}

static int sampler_close(lua_State *L) {
  sampler_box *box = luaL_checkudata(L, 1, SAMPLER);
  if (box->busy)
    return luaL_error(L,
                      "the sampler is busy: a callback may not close the sampler whose step is "
                      "running");
  pyr_sampler_free(box->sampler);
  pyr_runtime_free(box->rt);
  *box = (sampler_box){ NULL, NULL, 0, 0 };
  return 0;
}

void pyr_lua_open_sampler(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "pick", sampler_pick }, { "accept", sampler_accept }, { "reset", sampler_reset },
    { "begin", sampler_begin }, { "guided", sampler_guided }, { "over", sampler_over },
    { "clone", sampler_clone }, { NULL, NULL }
  };
  static const luaL_Reg grammar_methods[] = { { "match", grammar_match }, { NULL, NULL } };
  static const luaL_Reg none[] = { { NULL, NULL } };
  pyr_lua_new_class(L, SAMPLER, methods, sampler_close);
  pyr_lua_new_class(L, GRAMMAR, grammar_methods, grammar_close);
  pyr_lua_new_class(L, LEXICON, none, lexicon_close);
  lua_pushcfunction(L, core_grammar);
  lua_setfield(L, -2, "grammar");
  lua_pushcfunction(L, core_lexicon);
  lua_setfield(L, -2, "lexicon");
  lua_pushcfunction(L, core_sampler);
  lua_setfield(L, -2, "sampler");
}
