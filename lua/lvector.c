/* lvector.c — vectors and matrices of f32 for custom scores: what a function may see of a lane, and
 * what it makes of it.
 *
 *   core.vector({ 1, 2, … }) -> vector        core.vector({ { 1, 2 }, { 3, 4 }, … }) -> matrix
 *   v[i] m[i] (a row) #v #m (rows) m:columns() v + w v * 2 m * v (each row by its number) -v
 *   :exp() :log() :sqrt() :abs()   :sum() :mean() :max() :min() :norm() :dot(v) :slice(i, j)
 *                                  :pool(kind, width) :totable()
 *
 * Reductions of a vector are numbers; of a matrix vectors, one number a row, or a column with
 * ("columns"). Values never change once made. What a lane shows belongs to the call that shows it
 * (a scope): used later, it raises. What is computed from it is the caller's own. Sums run in
 * double, in order. */
#include "lvector.h"

#include <math.h>
#include <string.h>

#define VECTOR "pyramid.vector"

typedef struct vector {
  int64_t rows, cols;              /* cols 0: a vector; its stride is 1 then */
  const float *data;               /* behind the box, or the scope's */
  const pyr_lua_scope *scope;      /* NULL: owned. Kept alive by the user value */
} vector;

static int64_t stride_of(const vector *v) { return v->cols ? v->cols : 1; }
static int64_t count_of(const vector *v) { return v->rows * stride_of(v); }

static const vector *check_vector(lua_State *L, int arg) {
  const vector *v = luaL_checkudata(L, arg, VECTOR);
  if (v->scope && !v->scope->view)
    luaL_argerror(L, arg, "what a lane shows is valid only while its custom score runs");
  return v;
}

float *pyr_lua_new_vector(lua_State *L, int64_t rows, int64_t cols) {
  int64_t each = cols ? cols : 1;
  if (rows < 0 || cols < 0 || rows > INT64_MAX / 8 / each)
    luaL_error(L, "vector: too many numbers");
  vector *v = lua_newuserdatauv(L, sizeof *v + (size_t)(rows * each) * sizeof(float), 1);
  float *data = (float *)(v + 1);
  *v = (vector){ rows, cols, data, NULL };
  luaL_setmetatable(L, VECTOR);
  return data;
}

void pyr_lua_push_view(lua_State *L, int scope, const float *data, int64_t rows) {
  scope = lua_absindex(L, scope);
  vector *v = lua_newuserdatauv(L, sizeof *v, 1);
  *v = (vector){ rows, 0, data, lua_touserdata(L, scope) };
  luaL_setmetatable(L, VECTOR);
  lua_pushvalue(L, scope);
  lua_setiuservalue(L, -2, 1);
}

void pyr_lua_bind_vector(lua_State *L, int scope) {
  vector *v = lua_touserdata(L, -1);
  v->scope = lua_touserdata(L, scope);
  lua_pushvalue(L, scope);
  lua_setiuservalue(L, -2, 1);
}

const float *pyr_lua_to_vector(lua_State *L, int arg, int64_t *rows, int64_t *cols) {
  const vector *v = luaL_testudata(L, arg, VECTOR);
  if (v == NULL || v->scope) return NULL;
  *rows = v->rows, *cols = v->cols;
  return v->data;
}

const float *pyr_lua_read_rows(lua_State *L, int arg, int64_t *rows, int64_t *cols) {
  const vector *v = check_vector(L, arg);
  luaL_argcheck(L, v->cols > 0, arg, "a matrix is wanted");
  *rows = v->rows, *cols = v->cols;
  return v->data;
}

void pyr_lua_read_vector(lua_State *L, int arg, float *out, int64_t n) {
  if (luaL_testudata(L, arg, VECTOR)) {
    const vector *v = check_vector(L, arg);
    if (v->cols || v->rows != n)
      luaL_error(L, "%s of %I is not one number for each of %I rows",
                 v->cols ? "a matrix" : "a vector", (LUAI_UACINT)v->rows, (LUAI_UACINT)n);
    memcpy(out, v->data, (size_t)n * sizeof *out);
    return;
  }
  if (!lua_istable(L, arg)) luaL_error(L, "a %s is not a vector", luaL_typename(L, arg));
  lua_Integer length = luaL_len(L, arg);
  if (length != n)
    luaL_error(L, "a sequence of %I is not one number for each of %I rows", (LUAI_UACINT)length,
               (LUAI_UACINT)n);
  for (int64_t i = 0; i < n; i++) {
    lua_geti(L, arg, i + 1);
    if (!lua_isnumber(L, -1))
      luaL_error(L, "value %I is a %s", (LUAI_UACINT)(i + 1), luaL_typename(L, -1));
    out[i] = (float)lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
}

/* ---- making and reading ---------------------------------------------------------------------- */

static int core_vector(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  int64_t rows = luaL_len(L, 1), cols = 0;
  bool matrix = lua_geti(L, 1, 1) == LUA_TTABLE;
  if (matrix) {
    cols = luaL_len(L, 2);
    luaL_argcheck(L, cols > 0, 1, "a row is empty");
  }
  float *out = pyr_lua_new_vector(L, rows, cols);
  for (int64_t i = 0; i < rows; i++) {
    lua_geti(L, 1, i + 1);
    if (!matrix) {
      if (!lua_isnumber(L, -1))
        return luaL_error(L, "vector: value %I is a %s", (LUAI_UACINT)(i + 1),
                          luaL_typename(L, -1));
      out[i] = (float)lua_tonumber(L, -1);
    } else {
      if (!lua_istable(L, -1))
        return luaL_error(L, "vector: row %I is a %s", (LUAI_UACINT)(i + 1), luaL_typename(L, -1));
      pyr_lua_read_vector(L, lua_gettop(L), out + i * cols, cols);
    }
    lua_pop(L, 1);
  }
  return 1;
}

static int vector_len(lua_State *L) {
  lua_pushinteger(L, check_vector(L, 1)->rows);
  return 1;
}

static int vector_columns(lua_State *L) {
  lua_pushinteger(L, check_vector(L, 1)->cols);
  return 1;
}

/* v[i], m[i], and methods, which are upvalue 1. Beyond the end there is nil, as in a table. */
static int vector_index(lua_State *L) {
  int exact;
  lua_Integer i = lua_tointegerx(L, 2, &exact);
  if (!exact) {
    lua_pushvalue(L, 2);
    lua_gettable(L, lua_upvalueindex(1));
    return 1;
  }
  const vector *v = check_vector(L, 1);
  if (i < 1 || i > v->rows) return 0;
  if (v->cols == 0) lua_pushnumber(L, v->data[i - 1]);
  else memcpy(pyr_lua_new_vector(L, v->cols, 0), v->data + (i - 1) * v->cols,
              (size_t)v->cols * sizeof(float));
  return 1;
}

static void push_row(lua_State *L, const float *x, int64_t n) {
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    lua_pushnumber(L, x[i]);
    lua_rawseti(L, -2, i + 1);
  }
}

static int vector_totable(lua_State *L) {
  const vector *v = check_vector(L, 1);
  luaL_argcheck(L, count_of(v) <= INT32_MAX, 1, "too many numbers for a table");
  if (v->cols == 0) {
    push_row(L, v->data, v->rows);
    return 1;
  }
  lua_createtable(L, (int)v->rows, 0);
  for (int64_t i = 0; i < v->rows; i++) {
    push_row(L, v->data + i * v->cols, v->cols);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int vector_slice(lua_State *L) {
  const vector *v = check_vector(L, 1);
  lua_Integer from = luaL_checkinteger(L, 2), to = luaL_optinteger(L, 3, v->rows);
  luaL_argcheck(L, from >= 1 && from <= v->rows + 1, 2, "no such row");
  luaL_argcheck(L, to >= from - 1 && to <= v->rows, 3, "no such row");
  int64_t each = stride_of(v), rows = to - from + 1;
  float *out = pyr_lua_new_vector(L, rows, v->cols);
  memcpy(out, v->data + (from - 1) * each, (size_t)(rows * each) * sizeof(float));
  return 1;
}

static int vector_show(lua_State *L) {
  const vector *v = luaL_checkudata(L, 1, VECTOR);
  if (v->cols)
    lua_pushfstring(L, "pyramid.vector (%I rows of %I)", (LUAI_UACINT)v->rows,
                    (LUAI_UACINT)v->cols);
  else lua_pushfstring(L, "pyramid.vector (%I)", (LUAI_UACINT)v->rows);
  return 1;
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

typedef struct operand { const float *data; int64_t rows, cols; float number; } operand;

static operand check_operand(lua_State *L, int arg) {
  if (lua_type(L, arg) == LUA_TNUMBER) return (operand){ NULL, 0, 0, (float)lua_tonumber(L, arg) };
  const vector *v = check_vector(L, arg);
  return (operand){ v->data, v->rows, v->cols, 0 };
}

/* Number i of the result's row r: an operand without columns has one number a row. */
static inline float value_of(const operand *x, int64_t r, int64_t i) {
  return !x->data ? x->number : x->cols ? x->data[r * x->cols + i] : x->data[r];
}

static int arithmetic(lua_State *L, char how) {
  operand a = check_operand(L, 1), b = check_operand(L, 2);
  int64_t rows = a.data ? a.rows : b.rows, cols = a.cols ? a.cols : b.cols, each = cols ? cols : 1;
  if (a.data && b.data && (a.rows != b.rows || (a.cols && b.cols && a.cols != b.cols)))
    return luaL_error(L, "vector: %I x %I and %I x %I do not go together", (LUAI_UACINT)a.rows,
                      (LUAI_UACINT)a.cols, (LUAI_UACINT)b.rows, (LUAI_UACINT)b.cols);
  float *out = pyr_lua_new_vector(L, rows, cols);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < each; i++) {
      float x = value_of(&a, r, i), y = value_of(&b, r, i);
      out[r * each + i] = how == '+' ? x + y : how == '-' ? x - y : how == '*' ? x * y : x / y;
    }
  return 1;
}

static int vector_add(lua_State *L) { return arithmetic(L, '+'); }
static int vector_sub(lua_State *L) { return arithmetic(L, '-'); }
static int vector_mul(lua_State *L) { return arithmetic(L, '*'); }
static int vector_div(lua_State *L) { return arithmetic(L, '/'); }

static int each_value(lua_State *L, float (*f)(float)) {
  const vector *v = check_vector(L, 1);
  float *out = pyr_lua_new_vector(L, v->rows, v->cols);
  for (int64_t i = 0; i < count_of(v); i++) out[i] = f(v->data[i]);
  return 1;
}

static float negative(float x) { return -x; }
static int vector_unm(lua_State *L) { return each_value(L, negative); }
static int vector_exp(lua_State *L) { return each_value(L, expf); }
static int vector_log(lua_State *L) { return each_value(L, logf); }
static int vector_sqrt(lua_State *L) { return each_value(L, sqrtf); }
static int vector_abs(lua_State *L) { return each_value(L, fabsf); }

/* ---- reductions ------------------------------------------------------------------------------ */

typedef enum reduction { SUM, MEAN, MAXIMUM, MINIMUM, NORM } reduction;

static double reduce(const float *x, int64_t n, int64_t step, reduction how) {
  double result = how == MAXIMUM ? -INFINITY : how == MINIMUM ? INFINITY : 0;
  for (int64_t i = 0; i < n; i++) {
    double y = x[i * step];
    if (how == MAXIMUM) result = y > result ? y : result;
    else if (how == MINIMUM) result = y < result ? y : result;
    else result += how == NORM ? y * y : y;
  }
  return how == MEAN && n > 0 ? result / (double)n : how == NORM ? sqrt(result) : result;
}

static int reduction_of(lua_State *L, reduction how) {
  static const char *const ways[] = { "rows", "columns", NULL };
  const vector *v = check_vector(L, 1);
  int way = luaL_checkoption(L, 2, "rows", ways);
  if (v->cols == 0) {
    lua_pushnumber(L, reduce(v->data, v->rows, 1, how));
    return 1;
  }
  int64_t n = way == 0 ? v->rows : v->cols;
  float *out = pyr_lua_new_vector(L, n, 0);
  for (int64_t i = 0; i < n; i++)
    out[i] = (float)(way == 0 ? reduce(v->data + i * v->cols, v->cols, 1, how)
                     : reduce(v->data + i, v->rows, v->cols, how));
  return 1;
}

static int vector_sum(lua_State *L) { return reduction_of(L, SUM); }
static int vector_mean(lua_State *L) { return reduction_of(L, MEAN); }
static int vector_max(lua_State *L) { return reduction_of(L, MAXIMUM); }
static int vector_min(lua_State *L) { return reduction_of(L, MINIMUM); }
static int vector_norm(lua_State *L) { return reduction_of(L, NORM); }

static double dot(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
  return sum;
}

/* v:dot(w) -> number; m:dot(v) -> one number a row */
static int vector_dot(lua_State *L) {
  const vector *v = check_vector(L, 1), *w = check_vector(L, 2);
  int64_t n = v->cols ? v->cols : v->rows;
  luaL_argcheck(L, w->cols == 0 && w->rows == n, 2, "not as long");
  if (v->cols == 0) {
    lua_pushnumber(L, dot(v->data, w->data, n));
    return 1;
  }
  float *out = pyr_lua_new_vector(L, v->rows, 0);
  for (int64_t i = 0; i < v->rows; i++) out[i] = (float)dot(v->data + i * n, w->data, n);
  return 1;
}

/* As a score's :pool: over a centred window of odd width, cut at the ends. */
static int vector_pool(lua_State *L) {
  static const char *const kinds[] = { "avg", "max", NULL };
  const vector *v = check_vector(L, 1);
  int kind = luaL_checkoption(L, 2, NULL, kinds);
  lua_Integer width = luaL_checkinteger(L, 3);
  luaL_argcheck(L, v->cols == 0, 1, "a matrix has no one order to pool in");
  luaL_argcheck(L, width >= 1 && width % 2 == 1, 3, "an odd positive integer is wanted");
  float *out = pyr_lua_new_vector(L, v->rows, 0);
  for (int64_t i = 0, half = width / 2; i < v->rows; i++) {
    int64_t low = i - half > 0 ? i - half : 0, high = v->rows - i > half ? i + half + 1 : v->rows;
    out[i] = (float)reduce(v->data + low, high - low, 1, kind == 0 ? MEAN : MAXIMUM);
  }
  return 1;
}

/* ---- entry ----------------------------------------------------------------------------------- */

void pyr_lua_open_vector(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "columns", vector_columns }, { "totable", vector_totable }, { "slice", vector_slice },
        { "exp", vector_exp },
    { "log", vector_log }, { "sqrt", vector_sqrt }, { "abs", vector_abs }, { "sum", vector_sum },
        { "mean", vector_mean },
    { "max", vector_max }, { "min", vector_min }, { "norm", vector_norm }, { "dot", vector_dot },
        { "pool", vector_pool },
    { NULL, NULL }
  };
  static const luaL_Reg meta[] = {
    { "__len", vector_len }, { "__add", vector_add }, { "__sub", vector_sub },
        { "__mul", vector_mul }, { "__div", vector_div },
    { "__unm", vector_unm }, { "__tostring", vector_show }, { NULL, NULL }
  };
  luaL_newmetatable(L, VECTOR);
  luaL_setfuncs(L, meta, 0);
  luaL_newlib(L, methods);
  lua_pushcclosure(L, vector_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pushliteral(L, VECTOR);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
  lua_pushcfunction(L, core_vector);
  lua_setfield(L, -2, "vector");
}
