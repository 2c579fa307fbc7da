/* lvector.h — vectors for the binding's other files: lplan.c shows lanes in them, lcache.c returns
 * scores in them. */
#ifndef PYR_LVECTOR_H
#define PYR_LVECTOR_H

#include "lauxpyr.h"

#include <stdbool.h>

/* How long what a lane shows may be used: while `view` is not NULL. A userdata, so that vectors can
 * outlive it. */
typedef struct pyr_lua_scope {
  const pyr_custom_view *view;
  pyr_status status;       /* of what the core was asked for through it */
} pyr_lua_scope;

/* pushes one of its own, to be filled; cols 0: a vector */
float *pyr_lua_new_vector(lua_State *L, int64_t rows, int64_t cols);
/* Pushes a vector over `data`, usable while the scope at stack index `scope` is open. */
void pyr_lua_push_view(lua_State *L, int scope, const float *data, int64_t rows);
/* … makes the one on top such a one; scope is absolute */
void pyr_lua_bind_vector(lua_State *L, int scope);
/* The numbers of the vector at `arg`; NULL if it is none, or shows a lane. Raises nothing; takes
 * two places of stack. */
const float *pyr_lua_to_vector(lua_State *L, int arg, int64_t *rows, int64_t *cols);
/* The numbers of the matrix at `arg`, also one that a lane shows while it may be used; raises if it
 * is none. */
const float *pyr_lua_read_rows(lua_State *L, int arg, int64_t *rows, int64_t *cols);
/* Copies the vector or sequence at `arg` to out [n]; raises if it is something else. */
void pyr_lua_read_vector(lua_State *L, int arg, float *out, int64_t n);

#endif
