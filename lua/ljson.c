/* ljson.c — JSON text to Lua values: strict RFC 8259, for files that nobody here made.
 *
 * Owns: the grammar, its limits, the place of an error. Does not own: what a document means
 * (lua/pyramid/loaders), nor writing (lua/pyramid/json.lua).
 *
 * All memory is Lua's, asked for by calls that raise when there is none, and nothing is held
 * outside the stack, so that an allocation that fails is an error like any other. (lua-cjson ends
 * the process there.)
 *
 *   object → table, refused if a key comes twice; where a caller asks for it, with a metatable
 *            whose `json_keys` is the sequence of its keys as they stand in the text, so that
 *            templates print what they are given in the order it was given in
 *   array  → sequence
 *   null   → json_null, a light userdata
 *   number → integer, without fraction or exponent and within 64 bits; any other → float, refused
 *            beyond the range of doubles
 *   string → bytes of UTF-8, which must be valid; \uD83D\uDE00 → one character, half of such a
 *            pair is refused
 *
 * Three words are no JSON, and are read where a caller asks for them: NaN, Infinity and -Infinity,
 * spelled so and no other way, which Python's json module writes for such floats.
 *
 * Numbers are read in the C locale whatever the process's is. Recursion is bounded by the depth
 * that callers give, work and memory by the text: a value is at least two bytes of it, and costs at
 * most an empty table and its slot. */
#include "lauxpyr.h"
#include "base/plain.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
  DEPTH_LIMIT = 200,  /* of nesting: each level is a C call and four slots of Lua's stack */
  SLOTS = 5  /* of the stack a level: a table, its keys, a key, a value, a key's double */
};

typedef struct reader {
  lua_State *L;
  const char *text, *end, *at;     /* Lua's string: a zero byte stands at the end */
  int depth, depth_most;
  bool nonfinite;                  /* NaN and infinities are read, too */
  bool ordered;                    /* objects know the order of their keys */
  lua_Integer values, values_most;
} reader;

/* ---- errors ---------------------------------------------------------------------------------- */

/* Raises with the place of `where`: lines from 1, columns in characters from 1. A string, which
 * json_decode's protected call turns into a result. */
static int bad(reader *r, const char *where, const char *what) {
  lua_Integer line = 1, column = 1;
  for (const char *p = r->text; p < where; p++) {
    if (*p == '\n') line++, column = 1;
    else if (((unsigned char)*p & 0xc0) != 0x80) column++;
  }
  lua_pushfstring(r->L, "line %I, column %I: %s", (LUAI_UACINT)line, (LUAI_UACINT)column, what);
  return lua_error(r->L);
}

static int bad_limit(reader *r, const char *where, const char *what, lua_Integer most) {
  return bad(r, where, lua_pushfstring(r->L, "%s (the limit is %I)", what, (LUAI_UACINT)most));
}

/* What stands where something else was wanted. */
static int unexpected(reader *r, const char *wanted) {
  char shown[8] = "";
  unsigned char c = (unsigned char)*r->at;
  if (r->at == r->end)
    return bad(r, r->at, lua_pushfstring(r->L, "the text ends where %s is wanted", wanted));
  if (c > 0x20 && c < 0x7f) shown[0] = (char)c;
  return bad(r, r->at, *shown ? lua_pushfstring(r->L, "'%s' where %s is wanted", shown, wanted)
                              : lua_pushfstring(r->L, "byte %d where %s is wanted", (int)c,
                                                wanted));
}

/* ---- strings --------------------------------------------------------------------------------- */

/* Bytes of the well-formed UTF-8 sequence that begins at p, 0 if there is none. */
static int sequence(const unsigned char *p, const unsigned char *end) {
  unsigned char c = *p;
  int n = c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
  if (n == 0 || end - p < n) return 0;
  for (int i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) || (c == 0xf0 && p[1] < 0x90)
      || (c == 0xf4 && p[1] > 0x8f)) return 0;
  return n;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The code unit of the four digits at p; -1 if they are none. The text ends with a zero byte, which
 * is no digit. */
static int code_unit(const char *p) {
  int unit = 0;
  for (int i = 0; i < 4; i++) {
    int digit = hex_digit(p[i]);
    if (digit < 0) return -1;
    unit = unit << 4 | digit;
  }
  return unit;
}

static char *put_utf8(char *out, unsigned code) {
  if (code < 0x80) *out++ = (char)code;
  else if (code < 0x800) *out++ = (char)(0xc0 | code >> 6), *out++ = (char)(0x80 | (code & 0x3f));
  else if (code < 0x10000) *out++ = (char)(0xe0 | code >> 12),
      *out++ = (char)(0x80 | (code >> 6 & 0x3f)), *out++ = (char)(0x80 | (code & 0x3f));
  else {
    *out++ = (char)(0xf0 | code >> 18), *out++ = (char)(0x80 | (code >> 12 & 0x3f));
    *out++ = (char)(0x80 | (code >> 6 & 0x3f)), *out++ = (char)(0x80 | (code & 0x3f));
  }
  return out;
}

/* Looks through a string from behind its opening quote to the closing one, which it returns;
 * *escaped: whether it holds escapes, whose first character is checked here and whose digits in
 * unescape. */
static const char *scan_string(reader *r, bool *escaped) {
  const char *open = r->at - 1, *p = r->at;
  *escaped = false;
  for (;;) {
    unsigned char c = (unsigned char)*p;
    if (c == '"') return p;
    if (c == '\\') {
      *escaped = true;
      if (p + 1 == r->end) bad(r, open, "a string that does not end");
      if (!strchr("\"\\/bfnrtu", p[1]) || p[1] == 0) bad(r, p, "an escape that JSON does not have");
      p += 2;
    } else if (c >= 0x80) {
      int n = sequence((const unsigned char *)p, (const unsigned char *)r->end);
      if (n == 0) bad(r, p, "a string that is not UTF-8");
      p += n;
    } else if (c < 0x20) {
      if (p == r->end) bad(r, open, "a string that does not end");
      bad(r, p, "a control character in a string, where JSON wants an escape");
    } else p++;
  }
}

/* Pushes a string with escapes; never longer than its text. */
static void unescape(reader *r, const char *stop) {
  luaL_Buffer buffer;
  const char *p = r->at;
  char *start = luaL_buffinitsize(r->L, &buffer, (size_t)(stop - p)), *out = start;
  while (p < stop) {
    if (*p != '\\') {
      *out++ = *p++;
      continue;
    }
    const char *escape = p++;
    char c = *p++;
    if (c != 'u') {
      *out++ = c == 'b' ? '\b' : c == 'f' ? '\f' : c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't'
          ? '\t' : c;
      continue;
    }
    int unit = code_unit(p);
    if (unit < 0) bad(r, escape, "\\u without four hexadecimal digits");
    p += 4;
    unsigned code = (unsigned)unit;
    if (unit >= 0xd800 && unit < 0xdc00) {
      int low = p[0] == '\\' && p[1] == 'u' ? code_unit(p + 2) : -1;
      if (low < 0xdc00 || low > 0xdfff) bad(r, escape, "half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10 | ((unsigned)low - 0xdc00));
      p += 6;
    } else if (unit >= 0xdc00 && unit < 0xe000) bad(r, escape, "half of a surrogate pair");
    out = put_utf8(out, code);
  }
  luaL_pushresultsize(&buffer, (size_t)(out - start));
}

/* r->at is behind the opening quote. */
static void push_string(reader *r) {
  bool escaped;
  const char *stop = scan_string(r, &escaped);
  if (escaped) unescape(r, stop);
  else lua_pushlstring(r->L, r->at, (size_t)(stop - r->at));
  r->at = stop + 1;
}

/* ---- numbers --------------------------------------------------------------------------------- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static void push_number(reader *r) {
  const char *start = r->at, *p = start;
  bool minus = *p == '-', whole = true;
  if (minus) p++;
  if (*p == '0') p++;
  else if (is_digit(*p)) while (is_digit(*p)) p++;
  else r->at = p, unexpected(r, "a digit");
  if (is_digit(*p)) bad(r, start, "a number that begins with 0");
  if (*p == '.') {
    whole = false;
    if (!is_digit(*++p)) r->at = p, unexpected(r, "a digit");
    while (is_digit(*p)) p++;
  }
  if (*p == 'e' || *p == 'E') {
    whole = false;
    if (*++p == '+' || *p == '-') p++;
    if (!is_digit(*p)) r->at = p, unexpected(r, "a digit");
    while (is_digit(*p)) p++;
  }
  r->at = p;
  if (whole) {
    lua_Integer value = 0;  /* counted downwards: the lowest integer has no opposite */
    const char *digit = start + minus;
    while (digit < p && !__builtin_mul_overflow(value, (lua_Integer)10, &value)
           && !__builtin_sub_overflow(value, (lua_Integer)(*digit - '0'), &value)) digit++;
    if (digit == p && (minus || value != LUA_MININTEGER)) {
      if (minus && value == 0) lua_pushnumber(r->L, -0.0);
      else lua_pushinteger(r->L, minus ? value : -value);
      return;
    }
  }
  lua_Number number = pyr_plain_number(start);
  if (number > 1.7976931348623157e308 || number < -1.7976931348623157e308)
    bad(r, start, "a number beyond the range of doubles");
  lua_pushnumber(r->L, number);
}

/* ---- values ---------------------------------------------------------------------------------- */

static char skip_space(reader *r) {
  while (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r') r->at++;
  return *r->at;
}

static void push_value(reader *r);

static void enter(reader *r) {
  if (++r->depth > r->depth_most) bad_limit(r, r->at, "values nested too deep", r->depth_most);
  luaL_checkstack(r->L, SLOTS + LUA_MINSTACK, "JSON");
  lua_newtable(r->L);
  r->at++;
}

static void push_array(reader *r) {
  lua_Integer n = 0;
  enter(r);
  if (skip_space(r) == ']') r->at++;
  else for (;;) {
    push_value(r);
    lua_rawseti(r->L, -2, ++n);
    char c = skip_space(r);
    if (c != ',' && c != ']') unexpected(r, "',' or ']'");
    r->at++;
    if (c == ']') break;
  }
  r->depth--;
}

/* The table on top, whose keys lie above it, is told their order. */
static void keep_order(reader *r) {
  lua_createtable(r->L, 0, 1);
  lua_insert(r->L, -2);
  lua_setfield(r->L, -2, "json_keys");
  lua_setmetatable(r->L, -2);
}

static void push_object(reader *r) {
  lua_Integer n = 0;
  enter(r);
  int object = lua_gettop(r->L);
  if (r->ordered) lua_newtable(r->L);
  if (skip_space(r) == '}') r->at++;
  else for (;;) {
    if (skip_space(r) != '"') unexpected(r, "a key in quotes");
    const char *key = r->at++;
    push_string(r);
    lua_pushvalue(r->L, -1);
    if (lua_rawget(r->L, object) != LUA_TNIL) {
      lua_pop(r->L, 1);
      size_t length;
      const char *name = lua_tolstring(r->L, -1, &length);
      bad(r, key, lua_pushfstring(r->L, length <= 80 ? "key '%s' comes twice in an object"
                                  : "a long key comes twice in an object", name));
    }
    lua_pop(r->L, 1);
    if (r->ordered) {
      lua_pushvalue(r->L, -1);
      lua_rawseti(r->L, object + 1, ++n);
    }
    if (skip_space(r) != ':') unexpected(r, "':'");
    r->at++;
    push_value(r);
    lua_rawset(r->L, object);
    char c = skip_space(r);
    if (c != ',' && c != '}') unexpected(r, "',' or '}'");
    r->at++;
    if (c == '}') break;
  }
  if (r->ordered) keep_order(r);
  r->depth--;
}

static bool take_word(reader *r, const char *word) {
  size_t length = strlen(word);
  if (strncmp(r->at, word, length) != 0) return false;
  r->at += length;
  return true;
}

/* The three words of Python's for floats that JSON has no number for. */
static bool take_nonfinite(reader *r) {
  lua_Number value;
  if (take_word(r, "NaN")) value = (lua_Number)NAN;
  else if (take_word(r, "Infinity")) value = (lua_Number)HUGE_VAL;
  else if (take_word(r, "-Infinity")) value = -(lua_Number)HUGE_VAL;
  else return false;
  lua_pushnumber(r->L, value);
  return true;
}

static void push_value(reader *r) {
  char c = skip_space(r);
  if (++r->values > r->values_most) bad_limit(r, r->at, "too many values", r->values_most);
  if (r->nonfinite && take_nonfinite(r)) return;
  if (c == '"') r->at++, push_string(r);
  else if (c == '{') push_object(r);
  else if (c == '[') push_array(r);
  else if (c == '-' || is_digit(c)) push_number(r);
  else if (take_word(r, "true")) lua_pushboolean(r->L, 1);
  else if (take_word(r, "false")) lua_pushboolean(r->L, 0);
  else if (take_word(r, "null")) lua_pushlightuserdata(r->L, NULL);
  else unexpected(r, "a value");
}

/* ---- entry ----------------------------------------------------------------------------------- */

static int decode(lua_State *L) {
  reader *r = lua_touserdata(L, 2);
  lua_settop(L, 1);
  push_value(r);
  if (skip_space(r) != 0 || r->at != r->end) unexpected(r, "the end of the text");
  return 1;
}

/* core.json_decode(text, depth, values, nonfinite, ordered) -> value; or nil, message. The last two
 * may be left out. */
static int json_decode(lua_State *L) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  lua_Integer depth = luaL_checkinteger(L, 2), values = luaL_checkinteger(L, 3);
  luaL_argcheck(L, depth >= 1 && depth <= DEPTH_LIMIT, 2, "a depth from 1 to 200");
  reader r = { .L = L, .text = text, .end = text + length, .at = text, .depth_most = (int)depth,
               .nonfinite = lua_toboolean(L, 4), .ordered = lua_toboolean(L, 5),
               .values_most = values };
  lua_settop(L, 1);
  lua_pushcfunction(L, decode);
  lua_pushvalue(L, 1);
  lua_pushlightuserdata(L, &r);
  int failed = lua_pcall(L, 2, 1, 0);
  if (failed == LUA_OK) return 1;
  if (failed != LUA_ERRRUN) return lua_error(L);  /* no memory: raised, as everywhere in Lua */
  lua_pushnil(L);
  lua_insert(L, -2);
  return 2;
}

void pyr_lua_open_json(lua_State *L) {
  static const luaL_Reg functions[] = { { "json_decode", json_decode }, { NULL, NULL } };
  luaL_setfuncs(L, functions, 0);
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "json_null");
}
