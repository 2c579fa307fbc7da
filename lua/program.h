/* program.h — what the files of the program `pyramid` share that no library has: signals
 * (linterrupt.c) and terminals (lterminal.c). */
#ifndef PYR_PROGRAM_H
#define PYR_PROGRAM_H

#include <lua.h>

/* linterrupt.c: SIGINT ends what runs in L. Not where a shell or nohup has said that it is to be
 * ignored. */
void pyr_program_catch_interrupts(lua_State *L);
/* Whether one has ended it; and the exit status that says so. */
int pyr_program_is_interrupted(void);
enum { PYR_PROGRAM_INTERRUPTED = 128 + 2 };

/* The module "pyramid.interrupts". */
int pyr_luaopen_interrupts(lua_State *L);

/* For who waits in poll(2): a descriptor that becomes readable when a signal has come (-1: there is
 * none), and what reads it empty. What has come, without taking it: NULL, "interrupt", or "leave"
 * where the terminal is gone or the program is told to end. */
int pyr_program_wake_fd(void);
void pyr_program_slept(void);
void pyr_program_wake(void);     /* of handlers: a signal may come to a thread that does not wait */
const char *pyr_program_asked(void);

/* Is called before the program ends, by a handler of signals, too; NULL: nothing is. */
void pyr_program_at_end(void (*restore)(void));

/* lterminal.c: the module "pyramid.terminal". */
int pyr_luaopen_terminal(lua_State *L);

#endif
