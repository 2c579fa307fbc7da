/* lpyramid.h — what the binding's files share. One C file per class; each adds its functions to the table
 * `pyramid.core`, on which the Lua side (lua/pyramid) builds the API that users see.
 *
 * Userdata are boxes holding one core handle, made closed first (as liolib.c makes files), then opened, so that an
 * error between the two leaks nothing; `close`, `__close` and `__gc` are one idempotent function. Failures of the
 * world return nil, message, code; misuse raises. */
#ifndef PYR_LPYRAMID_H
#define PYR_LPYRAMID_H

#include <lua.h>
#include <lauxlib.h>
#include "pyramid.h"

/* Pushes nil, the runtime's message, the status name; returns 3. rt may be NULL. */
int pyr_lua_fail(lua_State *L, const pyr_runtime *rt, pyr_status status);

/* Each file's entry: registers its metatables and adds its functions to the table at the top of the stack. */
void pyr_lua_open_runtime(lua_State *L);    /* lruntime.c: runtimes, files */
void pyr_lua_open_model(lua_State *L);      /* lmodel.c */
void pyr_lua_open_tokenizer(lua_State *L);  /* ltokenizer.c */
void pyr_lua_open_policy(lua_State *L);     /* lplan.c: plans and triggers from tables; policies as C callbacks */
void pyr_lua_open_cache(lua_State *L);      /* lcache.c: pools, caches, step */
void pyr_lua_open_logits(lua_State *L);     /* llogits.c */
void pyr_lua_open_sampler(lua_State *L);    /* lsampler.c */
void pyr_lua_open_ops(lua_State *L);        /* lops.c: single operations, for the specs */

/* Handles out of arguments; raise if the object is of another class or closed. */
pyr_runtime *pyr_lua_check_runtime(lua_State *L, int arg);
pyr_file *pyr_lua_check_file(lua_State *L, int arg);
pyr_model *pyr_lua_check_model(lua_State *L, int arg);

/* Fills a policy from the Lua policy value at `arg` (nil: no callbacks). Its callbacks call back into Lua through
 * the state that is running (pyr_lua_enter), with errors caught and turned into PYR_POLICY. */
void pyr_lua_to_policy(lua_State *L, int arg, pyr_runtime *rt, pyr_policy *out);

int luaopen_pyramid(lua_State *L);          /* lpyramid.c: preloads the bundled modules, returns `require "pyramid"` */

#endif
