/* lauxpyr.h — what the binding's files share. One C file per class; each adds its functions to the
 * table `pyramid.core`, on which the Lua side (lua/pyramid) builds the API that users see.
 *
 * Userdata are boxes whose first field is a core handle, NULL if closed (the specs' library,
 * lops.c, relies on it), made closed first (as liolib.c makes files), then opened, so that an error
 * between the two leaks nothing; `close`, `__close` and `__gc` are one idempotent function.
 * Failures of the world return nil, message, code; misuse raises. */
#ifndef PYR_LAUXPYR_H
#define PYR_LAUXPYR_H

#include <signal.h>

#include <lua.h>
#include <lauxlib.h>
#include "pyramid.h"

/* Seconds since some moment, as a watch counts them. */
double pyr_lua_now(void);

/* Pushes nil, the runtime's message, the status name; returns 3. rt may be NULL. */
int pyr_lua_fail(lua_State *L, const pyr_runtime *rt, pyr_status status);

/* A host may set this string in the registry: the device of runtimes that are opened without a
 * device and an isa. */
#define PYR_LUA_DEVICE "pyramid.device"
#define PYR_LUA_PRECISION "pyramid.precision"

/* Each file's entry: registers its metatables and adds its functions to the table at the top of the
 * stack. */
void pyr_lua_open_runtime(lua_State *L);    /* lruntime.c */
void pyr_lua_open_model(lua_State *L);      /* lmodel.c: mapped files, models */
void pyr_lua_open_tokenizer(lua_State *L);  /* ltokenizer.c */
void pyr_lua_open_policy(lua_State *L);     /* lplan.c: plans and triggers from tables; policies as
                                               C callbacks */
void pyr_lua_open_vector(lua_State *L);     /* lvector.c */
void pyr_lua_open_fit(lua_State *L);        /* lfit.c */
void pyr_lua_open_cache(lua_State *L);      /* lcache.c: pools, caches, step */
void pyr_lua_open_logits(lua_State *L);     /* llogits.c */
void pyr_lua_open_sampler(lua_State *L);    /* lsampler.c */
void pyr_lua_open_json(lua_State *L);       /* ljson.c: JSON texts to values */
void pyr_lua_open_file(lua_State *L);       /* lfile.c: files of a disk */

/* lprobe.c, in the program alone: the module "pyramid.probe", limits of the machine and random
 * weights for scripts that measure. */
int pyr_luaopen_probe(lua_State *L);

/* Registers the metatable `name`: methods, and `close` as method, __close and __gc. Names with __
 * are metamethods. */
void pyr_lua_new_class(lua_State *L, const char *name, const luaL_Reg *methods,
                       lua_CFunction close);

/* Callbacks out of the core (progress, policies) run Lua in the state that made the core call, and
 * may not throw through it. So every binding function whose core call may call back brackets it,
 * with nothing of Lua's in between:
 *
 *     lua_State *outer = pyr_lua_enter(L);
 *     pyr_status status = pyr_cache_prefill(…);
 *     pyr_lua_leave(L, outer);                      // raises what a progress callback raised
 *
 * A callback finds the state in the world it got as, or keeps in, its `ud`. Calls nest: a callback
 * may make core calls on other objects. */
typedef struct pyr_lua_guard pyr_lua_guard;
typedef struct pyr_lua_world {
  lua_State *running;                    /* NULL outside of core calls */
  int failed;
  pyr_lua_guard *guard;                  /* the innermost that is on, or NULL */
  const volatile sig_atomic_t *interrupted;   /* the host's flag, or NULL */
  int raised;                            /* how often it was answered */
} pyr_lua_world;
pyr_lua_world *pyr_lua_get_world(lua_State *L);   /* one for each Lua universe; lives until
                                                     lua_close frees it */
lua_State *pyr_lua_enter(lua_State *L);
void pyr_lua_leave(lua_State *L, lua_State *outer);
/* Pops a value to be raised by the next pyr_lua_leave. Allocates nothing, raises nothing. */
void pyr_lua_keep_error(lua_State *L, pyr_lua_world *world);

/* What every function that takes handles must know: any allocation of Lua's (a userdata, a string,
 * a table, a number that becomes a string, a luaL_Buffer) may run a finalizer, and any read of a
 * table that is not raw a metamethod, which may close or change any object. So: push first, check
 * handles last, use them before the next push, and measure again what was measured before. What a
 * core call that calls back uses is marked busy meanwhile: it can be looked at, not changed or
 * closed. */

/* Guards: an end to Lua code that does not return (lguard.c). Between on and off, which must both
 * be reached, stands one lua_pcall. off: PYR_OK; PYR_CANCELLED, by the host's flag or rt's progress
 * function; PYR_POLICY, more than `seconds` (0: no limit) passed. */
struct pyr_lua_guard {
  pyr_lua_guard *outer;
  lua_State *thread;
  pyr_runtime *rt;                       /* or NULL */
  double seconds, ends, asks, since;     /* moments, but the first */
  int paused, raised, inherits;          /* inherits: its end is the outer one's */
  pyr_status ended;
  lua_Hook hook;                         /* what the thread had before */
  int mask, count;
};
void pyr_lua_guard_on(lua_State *L, pyr_lua_world *world, pyr_lua_guard *guard, pyr_runtime *rt,
                      double seconds);
pyr_status pyr_lua_guard_off(lua_State *L, pyr_lua_world *world, pyr_lua_guard *guard);
/* For callbacks out of the core: fn(argument, a light userdata) in the state that is running, under
 * a guard. What goes wrong becomes rt's message, which begins with `who`: PYR_POLICY where it
 * raised or took more than `seconds`, PYR_MEMORY, PYR_CANCELLED. */
pyr_status pyr_lua_call_guarded(pyr_lua_world *world, pyr_runtime *rt, double seconds,
                                const char *who, lua_CFunction fn, void *argument);
void pyr_lua_open_guard(lua_State *L);

/* For hosts: Lua code and core calls end soon after *flag is not 0. A signal handler that raises it
 * also sets pyr_lua_stop as the main thread's hook, on all events, as lua.c does; it raises until
 * nothing of Lua's runs any more. */
void pyr_lua_watch(lua_State *L, const volatile sig_atomic_t *flag);
void pyr_lua_stop(lua_State *L, lua_Debug *ar);
int pyr_lua_is_interrupted(lua_State *L);

/* Pushes a 64-bit hash as 16 hexadecimal digits: Lua's integers have a sign. */
void pyr_lua_push_hash(lua_State *L, uint64_t hash);

/* Raises unless every key of the table at `arg` (nil or none: an empty one) is in `known`, a list
 * that ends with NULL. `what` begins the message: "sampler". */
void pyr_lua_check_keys(lua_State *L, int arg, const char *what, const char *const known[]);

/* Handles out of arguments; raise if the object is of another class or closed. */
pyr_runtime *pyr_lua_check_runtime(lua_State *L, int arg);
pyr_file *pyr_lua_check_file(lua_State *L, int arg);
pyr_model *pyr_lua_check_model(lua_State *L, int arg);
struct pyr_output *pyr_lua_check_output(lua_State *L, int arg);
const float *pyr_lua_check_logits(lua_State *L, int arg, int32_t *vocab);
pyr_sampler *pyr_lua_check_sampler(lua_State *L, int arg);
/* Before the work that its next pick belongs to: calls its `allow`, which may raise, and do
 * anything. And after the pick. */
void pyr_lua_ask_sampler(lua_State *L, int arg);
void pyr_lua_tell_sampler(lua_State *L, int arg, int32_t id);
pyr_tokenizer *pyr_lua_check_tokenizer(lua_State *L, int arg);
/* While it is busy all its methods raise, and it is not closed: for core calls that use it and call
 * back. */
void pyr_lua_hold_sampler(lua_State *L, int arg, int busy);

/* Fills a policy from the Lua policy value at `arg` (nil: no callbacks, ud NULL), and pushes what
 * holds it. Its callbacks call back into Lua through the state that is running (pyr_lua_enter),
 * with errors caught and turned into PYR_POLICY. It is nobody's yet: `start`, which runs no
 * finalizer and is followed by out->release, makes it last as long as the core has references. */
void pyr_lua_to_policy(lua_State *L, int arg, pyr_policy *out);
/* at: what `to` pushed */
void pyr_lua_start_policy(lua_State *L, int at, pyr_policy *out, pyr_runtime *rt);
/* What goes with a policy of Lua's that prepares its plans; zeros where it does not. It lives as
 * long as the policy. */
pyr_preparer pyr_lua_preparer_of(const pyr_policy *policy);
/* Pushes the field `options` of the value that a policy was made of; nil where it is not of Lua.
 * Needs three places of stack. */
int pyr_lua_push_policy_options(lua_State *L, const pyr_policy *policy);

/* Fills a tracer that tells the function at `arg` (nil: none, ud NULL), which may take `seconds` at
 * a time, and pushes what holds it; to be started as a policy is. */
void pyr_lua_to_tracer(lua_State *L, int arg, double seconds, pyr_tracer *out);
void pyr_lua_start_tracer(lua_State *L, int at, pyr_tracer *tracer, pyr_runtime *rt);

/* Reads the packed score program at `arg` (lplan.c; nil: an empty one) into ops; its length. Raises
 * on more than `most`. */
int pyr_lua_read_program(lua_State *L, int arg, pyr_score_op *ops, int most);

/* linit.c: preloads the bundled modules, returns `require "pyramid.init"`. The one name that
 * hosts look up. */
__attribute__((visibility("default"))) int luaopen_pyramid(lua_State *L);
/* The first half of it: the modules of `pyramid`, and with `vendored` also argparse, in
 * package.preload; what is there already stays. For hosts of our own. */
void pyr_lua_preload(lua_State *L, int vendored);

/* Takes the relative entries out of package.path and package.cpath: no file of the current
 * directory is ever run. */
void pyr_lua_absolute_paths(lua_State *L);

#endif
