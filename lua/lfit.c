/* lfit.c — linear maps fitted by ridge regression: what a learned score is made of.
 *
 *   core.ridge(inputs, outputs) -> fit
 *   fit:add(x, y)       x: a matrix of rows x inputs; y: a matrix of rows x outputs, or a list of
 *                       vectors, one an output
 *   fit:count()         rows added so far
 *   fit:solve(lambda)   -> a matrix of outputs x (inputs + 1), the constant last; nil, message,
 *                       code if there are too few rows
 *
 * Of rows x (a 1 added at the end) and y it keeps the sums of squares and products,
 *     G = sum of x x^T,   C = sum of y x^T,       and solves   W (G + lambda D) = C,
 * with D the diagonal of G and a ten-thousandth of its mean, 0 for the constant, which is not held
 * back: so lambda has no unit, the scale of an input hardly matters, and one that is always 0 does
 * no harm. In closed form, so that the same rows give the same map.
 * (Hoerl and Kennard, Ridge Regression, 1970.)
 *
 * G is symmetric and positive definite with lambda > 0: solved by Cholesky, in double. What is kept
 * does not grow with the rows: of 576 inputs 2.6 MiB, of 2,048 32 MiB. Rows are added a block at a
 * time in f32, a row of G at a time, and the block's sums are then added in double. */
#include "lvector.h"

#include <math.h>
#include <string.h>

#define FIT "pyramid.ridge"

enum { BLOCK = 64 };          /* rows whose sums are f32 */

typedef struct ridge {
  int64_t inputs, outputs, rows;
  double *gram, *cross;       /* [inputs + 1][inputs + 1], lower triangle; [outputs][inputs + 1] */
  float *block, *sums;        /* [BLOCK][inputs + 1] of x; [inputs + 1] of a row of G */
  float *targets;             /* [BLOCK][outputs] */
} ridge;

static ridge *check_fit(lua_State *L) { return luaL_checkudata(L, 1, FIT); }

/* The parts lie behind the box, in one userdata, which Lua frees. */
static int core_ridge(lua_State *L) {
  int64_t inputs = luaL_checkinteger(L, 1), outputs = luaL_checkinteger(L, 2);
  luaL_argcheck(L, inputs >= 1 && inputs <= 1 << 16, 1, "1 to 65536 inputs are wanted");
  luaL_argcheck(L, outputs >= 1 && outputs <= 1 << 16, 2, "1 to 65536 outputs are wanted");
  int64_t n = inputs + 1;
  size_t doubles = (size_t)(n * n + outputs * n), floats = (size_t)((BLOCK + 1) * n
                                                                   + BLOCK * outputs);
  ridge *r = lua_newuserdatauv(L, sizeof *r + doubles * sizeof(double) + floats * sizeof(float), 0);
  double *gram = (double *)(void *)(r + 1);
  float *block = (float *)(void *)(gram + doubles);
  *r = (ridge){ inputs, outputs, 0, gram, gram + n * n, block, block + BLOCK * n,
                block + (BLOCK + 1) * n };
  memset(gram, 0, doubles * sizeof(double));
  luaL_setmetatable(L, FIT);
  return 1;
}

/* Adds a block of `rows` rows, x and y of which are in place. */
static void add_block(ridge *r, int64_t rows) {
  int64_t n = r->inputs + 1;
  for (int64_t i = 0; i < n; i++) {
    memset(r->sums, 0, (size_t)(i + 1) * sizeof *r->sums);
    for (int64_t t = 0; t < rows; t++) {
      const float *x = r->block + t * n;
      float xi = x[i];
      for (int64_t j = 0; j <= i; j++) r->sums[j] += xi * x[j];
    }
    for (int64_t j = 0; j <= i; j++) r->gram[i * n + j] += r->sums[j];
  }
  for (int64_t o = 0; o < r->outputs; o++)
    for (int64_t t = 0; t < rows; t++) {
      const float *x = r->block + t * n;
      double y = r->targets[t * r->outputs + o];
      for (int64_t j = 0; j < n; j++) r->cross[o * n + j] += y * x[j];
    }
  r->rows += rows;
}

/* The targets of rows [at, at + rows) from the matrix or the list of vectors at index 3. */
static void read_targets(lua_State *L, ridge *r, int64_t at, int64_t rows) {
  int64_t vectors, columns;
  bool matrix = lua_type(L, 3) == LUA_TUSERDATA;
  for (int64_t o = 0; o < r->outputs; o++) {
    if (!matrix) lua_geti(L, 3, o + 1);
    const float *y = pyr_lua_to_vector(L, matrix ? 3 : -1, &vectors, &columns);
    int64_t stride = matrix ? r->outputs : 1;
    for (int64_t t = 0; t < rows; t++)
      r->targets[t * r->outputs + o] = y[(at + t) * stride + (matrix ? o : 0)];
    if (!matrix) lua_pop(L, 1);
  }
}

/* Whether y is what fit:add says, for as many rows as x has. */
static void check_targets(lua_State *L, const ridge *r, int64_t rows) {
  int64_t have, columns;
  if (lua_type(L, 3) == LUA_TUSERDATA) {
    const float *y = pyr_lua_to_vector(L, 3, &have, &columns);
    luaL_argcheck(L, y && columns == r->outputs && have == rows, 3,
                  "a matrix of rows x outputs is wanted");
    return;
  }
  luaL_checktype(L, 3, LUA_TTABLE);
  luaL_argcheck(L, luaL_len(L, 3) == r->outputs, 3, "a vector for each output is wanted");
  for (int64_t o = 0; o < r->outputs; o++) {
    lua_geti(L, 3, o + 1);
    const float *y = pyr_lua_to_vector(L, -1, &have, &columns);
    luaL_argcheck(L, y && columns == 0 && have == rows, 3,
                  "a vector of one number for each row is wanted");
    lua_pop(L, 1);
  }
}

static int fit_add(lua_State *L) {
  ridge *r = check_fit(L);
  int64_t rows, columns, n = r->inputs + 1;
  lua_settop(L, 3);
  const float *x = pyr_lua_read_rows(L, 2, &rows, &columns);
  luaL_argcheck(L, columns == r->inputs, 2, "a matrix of rows x inputs is wanted");
  check_targets(L, r, rows);
  for (int64_t at = 0; at < rows; at += BLOCK) {
    int64_t some = rows - at < BLOCK ? rows - at : BLOCK;
    for (int64_t t = 0; t < some; t++) {
      memcpy(r->block + t * n, x + (at + t) * r->inputs, (size_t)r->inputs * sizeof *x);
      r->block[t * n + r->inputs] = 1.0f;
    }
    read_targets(L, r, at, some);
    add_block(r, some);
  }
  return 0;
}

static int fit_count(lua_State *L) {
  lua_pushinteger(L, check_fit(L)->rows);
  return 1;
}

/* a = L L^T in place, the lower triangle; false where it is not positive definite. */
static bool cholesky(double *a, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j <= i; j++) {
      double sum = a[i * n + j];
      for (int64_t k = 0; k < j; k++) sum -= a[i * n + k] * a[j * n + k];
      if (i == j && !(sum > 0)) return false;
      a[i * n + j] = i == j ? sqrt(sum) : sum / a[j * n + j];
    }
  return true;
}

/* x = (L L^T)^-1 x, in place. */
static void solve_one(const double *l, int64_t n, double *x) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t k = 0; k < i; k++) x[i] -= l[i * n + k] * x[k];
    x[i] /= l[i * n + i];
  }
  for (int64_t i = n - 1; i >= 0; i--) {
    for (int64_t k = i + 1; k < n; k++) x[i] -= l[k * n + i] * x[k];
    x[i] /= l[i * n + i];
  }
}

/* Leaves the sums as they are, so that more rows may be added, and another lambda tried. */
static int fit_solve(lua_State *L) {
  const ridge *r = check_fit(L);
  int64_t n = r->inputs + 1;
  double lambda = luaL_checknumber(L, 2);
  luaL_argcheck(L, lambda >= 0 && lambda <= 1e30, 2, "lambda is negative or no number");
  double *a = lua_newuserdatauv(L, (size_t)(n * n + n) * sizeof *a, 0), *x = a + n * n;
  memcpy(a, r->gram, (size_t)(n * n) * sizeof *a);
  double mean = 0;
  for (int64_t i = 0; i < r->inputs; i++) mean += a[i * n + i] / (double)r->inputs;
  for (int64_t i = 0; i < r->inputs; i++) a[i * n + i] += lambda * (a[i * n + i] + 1e-4 * mean);
  if (r->rows == 0 || !cholesky(a, n)) {
    lua_pushnil(L);
    lua_pushfstring(L, "ridge: %I rows do not tell %I inputs apart (add more, or raise lambda)",
                    (LUAI_UACINT)r->rows, (LUAI_UACINT)r->inputs);
    lua_pushliteral(L, "argument");
    return 3;
  }
  float *out = pyr_lua_new_vector(L, r->outputs, n);
  for (int64_t o = 0; o < r->outputs; o++) {
    memcpy(x, r->cross + o * n, (size_t)n * sizeof *x);
    solve_one(a, n, x);
    for (int64_t j = 0; j < n; j++) out[o * n + j] = (float)x[j];
  }
  return 1;
}

void pyr_lua_open_fit(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "add", fit_add }, { "count", fit_count }, { "solve", fit_solve }, { NULL, NULL }
  };
  luaL_newmetatable(L, FIT);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pushliteral(L, FIT);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
  lua_pushcfunction(L, core_ridge);
  lua_setfield(L, -2, "ridge");
}
