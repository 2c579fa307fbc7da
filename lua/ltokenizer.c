/* ltokenizer.c — tokenizers for Lua, as lua/pyramid/tokenizer builds them.
 *
 *   core.tokenizer(runtime, options) -> t      options: vocab, unknown, byte_level, byte_fallback,
 *                                              by_score, whole_words, fuse_unknown, ids
 *                                              (pyr_tokenizer_options)
 *   t:piece(id, spelling, score, closed)       t:merge(left, right)      t:added(id, text, flags)
 *   t:step(stage, kind, pattern, text, a, b)   t:around(before, after) t:ready() each: true
 *   t:encode(text, parse, add) -> ids          t:decode(ids, plain, bytes) -> text
 *   t:spelling(id)  t:id(spelling)  t:flags(id) -> value or nil
 *   t:decoder(plain, bytes, continue) -> d     d:push(id) -> text        d:finish() -> text
 *   core.token                                 the PYR_TOKEN_… bits by name
 *
 * Owns the two userdata classes and the spelling of stages and steps; what the calls mean stands in
 * pyramid.h. */
#include "lauxpyr.h"

#include <limits.h>
#include <string.h>

#define TOKENIZER "pyramid.tokenizer"
#define DECODER "pyramid.decoder"

/* t NULL: closed; encoded: counts calls */
typedef struct tokenizer_box { pyr_tokenizer *t; uint64_t encoded; } tokenizer_box;
typedef struct decoder_box { pyr_decoder *d; pyr_runtime *rt; } decoder_box;  /* d NULL: closed */

static const char *const stage_names[] = { "normalize", "split", "decode", NULL };
static const char *const step_names[] = {   /* in pyr_step_kind's order */
  "nfd", "nfc", "nfkd", "nfkc", "lower", "strip", "prepend", "replace", "substitute", "match",
      "bytes", "fallback",
  "trim", "join", NULL };

pyr_tokenizer *pyr_lua_check_tokenizer(lua_State *L, int arg) {
  tokenizer_box *box = luaL_checkudata(L, arg, TOKENIZER);
  luaL_argcheck(L, box->t != NULL, arg, "the tokenizer is closed");
  return box->t;
}

static pyr_tokenizer *check_tokenizer(lua_State *L) { return pyr_lua_check_tokenizer(L, 1); }

/* An id from Lua: what no int32 can hold becomes -1, which no vocabulary has. */
static int32_t check_id(lua_State *L, int arg) {
  lua_Integer id = luaL_checkinteger(L, arg);
  return id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
}

static int done(lua_State *L, const pyr_tokenizer *t, pyr_status status) {
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_tokenizer_runtime(t), status);
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- building -------------------------------------------------------------------------------- */

static int flag(lua_State *L, int arg, const char *key) {
  lua_getfield(L, arg, key);
  int on = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return on;
}

static int32_t id_field(lua_State *L, int arg, const char *key, lua_Integer absent) {
  lua_getfield(L, arg, key);
  lua_Integer value = luaL_optinteger(L, -1, absent);
  lua_pop(L, 1);
  return value < INT32_MIN || value > INT32_MAX ? INT32_MAX : (int32_t)value;
}

static int core_tokenizer(lua_State *L) {
  static const char *const known[] = { "vocab", "unknown", "byte_level", "byte_fallback",
                                       "by_score", "whole_words", "fuse_unknown", "ids", NULL };
  luaL_checktype(L, 2, LUA_TTABLE);
  pyr_lua_check_keys(L, 2, "tokenizer", known);
  pyr_tokenizer_options options = {
    .vocab = id_field(L, 2, "vocab", 0), .unknown = id_field(L, 2, "unknown", -1),
    .byte_level = flag(L, 2, "byte_level"), .byte_fallback = flag(L, 2, "byte_fallback"),
    .ids = id_field(L, 2, "ids", 0),
    .by_score = flag(L, 2, "by_score"), .whole_words = flag(L, 2, "whole_words"),
        .fuse_unknown = flag(L, 2, "fuse_unknown") };
  tokenizer_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (tokenizer_box){ NULL, 0 };
  luaL_setmetatable(L, TOKENIZER);
  pyr_runtime *rt = pyr_lua_check_runtime(L, 1);
  pyr_status status = pyr_tokenizer_new(rt, &options, &box->t);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, rt, status);
}

static int tokenizer_close(lua_State *L) {
  tokenizer_box *box = luaL_checkudata(L, 1, TOKENIZER);
  pyr_tokenizer_free(box->t);
  *box = (tokenizer_box){ NULL, box->encoded + 1 };
  return 0;
}

static int tokenizer_piece(lua_State *L) {
  size_t n;
  int32_t id = check_id(L, 2);
  const char *s = luaL_checklstring(L, 3, &n);
  float score = (float)luaL_optnumber(L, 4, 0);
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_piece(t, id, s, n, score,
                                        lua_toboolean(L, 5) ? PYR_PIECE_CLOSED : 0));
}

static int tokenizer_fingerprint(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pyr_tokenizer_fingerprint(check_tokenizer(L)));
  return 1;
}

static int tokenizer_merge(lua_State *L) {
  size_t ln, rn;
  const char *left = luaL_checklstring(L, 2, &ln), *right = luaL_checklstring(L, 3, &rn);
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_merge(t, left, ln, right, rn));
}

static int tokenizer_added(lua_State *L) {
  size_t n;
  int32_t id = check_id(L, 2);
  const char *s = luaL_checklstring(L, 3, &n);
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_added(t, id, s, n, (int)luaL_optinteger(L, 4, 0) & 31));
}

static int tokenizer_step(lua_State *L) {
  pyr_stage stage = (pyr_stage)luaL_checkoption(L, 2, NULL, stage_names);
  pyr_text_step step = { .kind = (pyr_step_kind)luaL_checkoption(L, 3, NULL, step_names) };
  step.pattern = luaL_optlstring(L, 4, "", &step.pattern_length);
  step.text = luaL_optlstring(L, 5, "", &step.text_length);
  step.a = (int)luaL_optinteger(L, 6, 0);
  step.b = (int)luaL_optinteger(L, 7, 0);
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_step(t, stage, &step));
}

/* Copies the sequence of ids at `arg` into a new userdata, which it pushes. */
static int32_t *push_ids(lua_State *L, int arg, lua_Integer *count) {
  luaL_checktype(L, arg, LUA_TTABLE);
  *count = (lua_Integer)lua_rawlen(L, arg);
  int32_t *ids = lua_newuserdatauv(L, (size_t)*count * sizeof *ids + 1, 0);
  for (lua_Integer i = 1; i <= *count; i++) {
    int exact;
    lua_rawgeti(L, arg, i);
    lua_Integer id = lua_tointegerx(L, -1, &exact);
    if (!exact)
      luaL_error(L, "bad argument #%d: element %d is not an id but a %s", arg - 1, (int)i,
                 luaL_typename(L, -1));
    ids[i - 1] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
    lua_pop(L, 1);
  }
  return ids;
}

static int tokenizer_around(lua_State *L) {
  lua_Integer b, a;
  const int32_t *before = push_ids(L, 2, &b), *after = push_ids(L, 3, &a);
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_around(t, before, b > 1000 ? 1000 : (int32_t)b, after,
                                         a > 1000 ? 1000 : (int32_t)a));
}

static int tokenizer_ready(lua_State *L) {
  pyr_tokenizer *t = check_tokenizer(L);
  return done(L, t, pyr_tokenizer_ready(t));
}

/* ---- using ----------------------------------------------------------------------------------- */

/* The ids are the tokenizer's until its next call, and room for a copy takes an allocation: when a
 * finalizer has made such a call meanwhile, the text is encoded again. */
static int tokenizer_encode(lua_State *L) {
  size_t n;
  const char *text = luaL_checklstring(L, 2, &n);
  const int32_t *theirs;
  int32_t *ids;
  int64_t count;
  uint64_t call;
  tokenizer_box *box;
  int flags = (lua_toboolean(L, 3) ? PYR_ENCODE_PARSE : 0) | (lua_toboolean(L, 4) ? PYR_ENCODE_ADD
                                                              : 0);
  do {
    lua_settop(L, 4);
    pyr_tokenizer *t = check_tokenizer(L);
    box = lua_touserdata(L, 1);
    call = ++box->encoded;
    pyr_status status = pyr_tokenizer_encode(t, text, n, flags, &theirs, &count);
    if (status != PYR_OK) return pyr_lua_fail(L, pyr_tokenizer_runtime(t), status);
    ids = lua_newuserdatauv(L, (size_t)count * sizeof *ids + 1, 0);
  } while (box->encoded != call);                      /* closing counts, too */
  if (count > 0) memcpy(ids, theirs, (size_t)count * sizeof *ids);
  lua_createtable(L, count > INT_MAX ? INT_MAX : (int)count, 0);
  for (int64_t i = 0; i < count; i++) {
    lua_pushinteger(L, ids[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int decode_flags(lua_State *L, int arg) {
  return (lua_toboolean(L, arg) ? PYR_DECODE_PLAIN : 0) | (lua_toboolean(L, arg + 1)
                                                           ? PYR_DECODE_BYTES : 0) |
         (lua_toboolean(L, arg + 2) ? PYR_DECODE_CONTINUE : 0);
}

/* Pushes the box of a decoder that does not exist yet. */
static decoder_box *push_decoder(lua_State *L) {
  decoder_box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (decoder_box){ NULL, NULL };
  luaL_setmetatable(L, DECODER);
  return box;
}

/* The decoder retains its tokenizer, and that its runtime. */
static pyr_status open_decoder(decoder_box *box, pyr_tokenizer *t, int flags) {
  box->rt = pyr_tokenizer_runtime(t);
  return pyr_decoder_new(t, flags, &box->d);
}

static void free_decoder(decoder_box *box) {
  pyr_decoder_free(box->d);
  *box = (decoder_box){ NULL, NULL };
}

/* Its decoder is a value of Lua's, so that an error (no memory for the text) cannot lose it. */
static int tokenizer_decode(lua_State *L) {
  lua_Integer count;
  const char *text;
  size_t n;
  int flags = decode_flags(L, 3) & ~PYR_DECODE_CONTINUE;
  lua_settop(L, 4);
  const int32_t *ids = push_ids(L, 2, &count);
  decoder_box *box = push_decoder(L);
  pyr_tokenizer *t = check_tokenizer(L);
  pyr_status status = open_decoder(box, t, flags);
  if (status != PYR_OK) return pyr_lua_fail(L, pyr_tokenizer_runtime(t), status);
  status = pyr_decoder_push(box->d, ids, count, &text, &n);
  if (status == PYR_OK) {
    lua_pushlstring(L, text, n);
    status = pyr_decoder_finish(box->d, &text, &n);
  }
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  if (n > 0) {
    lua_pushlstring(L, text, n);
    lua_concat(L, 2);
  }
  free_decoder(box);
  return 1;
}

static int tokenizer_spelling(lua_State *L) {
  pyr_tokenizer *t = check_tokenizer(L);
  size_t n;
  const char *s = pyr_tokenizer_spelling(t, check_id(L, 2), &n);
  if (s) lua_pushlstring(L, s, n);
  else lua_pushnil(L);
  return 1;
}

static int tokenizer_id(lua_State *L) {
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  pyr_tokenizer *t = check_tokenizer(L);
  int32_t id = pyr_tokenizer_id(t, s, n);
  if (id >= 0) lua_pushinteger(L, id);
  else lua_pushnil(L);
  return 1;
}

static int tokenizer_flags(lua_State *L) {
  int flags = pyr_tokenizer_flags(check_tokenizer(L), check_id(L, 2));
  if (flags >= 0) lua_pushinteger(L, flags);
  else lua_pushnil(L);
  return 1;
}

/* ---- decoders -------------------------------------------------------------------------------- */

static int tokenizer_decoder(lua_State *L) {
  int flags = decode_flags(L, 2);
  decoder_box *box = push_decoder(L);
  pyr_tokenizer *t = check_tokenizer(L);
  pyr_status status = open_decoder(box, t, flags);
  return status == PYR_OK ? 1 : pyr_lua_fail(L, pyr_tokenizer_runtime(t), status);
}

static decoder_box *check_decoder(lua_State *L) {
  decoder_box *box = luaL_checkudata(L, 1, DECODER);
  luaL_argcheck(L, box->d != NULL, 1, "the decoder is closed");
  return box;
}

static int decoder_push(lua_State *L) {
  int32_t id = check_id(L, 2);
  decoder_box *box = check_decoder(L);
  const char *text;
  size_t n;
  pyr_status status = pyr_decoder_push(box->d, &id, 1, &text, &n);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushlstring(L, text, n);
  return 1;
}

static int decoder_finish(lua_State *L) {
  decoder_box *box = check_decoder(L);
  const char *text;
  size_t n;
  pyr_status status = pyr_decoder_finish(box->d, &text, &n);
  if (status != PYR_OK) return pyr_lua_fail(L, box->rt, status);
  lua_pushlstring(L, text, n);
  return 1;
}

static int decoder_close(lua_State *L) {
  free_decoder(luaL_checkudata(L, 1, DECODER));
  return 0;
}

void pyr_lua_open_tokenizer(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "piece", tokenizer_piece }, { "merge", tokenizer_merge }, { "added", tokenizer_added },
        { "step", tokenizer_step },
    { "around", tokenizer_around }, { "ready", tokenizer_ready }, { "encode", tokenizer_encode },
    { "decode", tokenizer_decode }, { "spelling", tokenizer_spelling }, { "id", tokenizer_id },
    { "flags", tokenizer_flags }, { "decoder", tokenizer_decoder },
        { "fingerprint", tokenizer_fingerprint }, { NULL, NULL } };
  static const luaL_Reg decoder_methods[] = { { "push", decoder_push },
                                              { "finish", decoder_finish }, { NULL, NULL } };
  pyr_lua_new_class(L, TOKENIZER, methods, tokenizer_close);
  pyr_lua_new_class(L, DECODER, decoder_methods, decoder_close);
  lua_pushcfunction(L, core_tokenizer);
  lua_setfield(L, -2, "tokenizer");
  lua_createtable(L, 0, 5);
  static const struct { const char *name; int bit; } bits[] = {
    { "special", PYR_TOKEN_SPECIAL }, { "lstrip", PYR_TOKEN_LSTRIP },
        { "rstrip", PYR_TOKEN_RSTRIP },
    { "word", PYR_TOKEN_WORD }, { "raw", PYR_TOKEN_RAW } };
  for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
    lua_pushinteger(L, bits[i].bit);
    lua_setfield(L, -2, bits[i].name);
  }
  lua_setfield(L, -2, "token");
}
