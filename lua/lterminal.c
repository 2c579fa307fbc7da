/* lterminal.c — lines that people type at a terminal: the module "pyramid.terminal" of the program.
 *
 *   terminal.columns(text) -> columns that a UTF-8 text without control characters takes
 *   terminal.library() -> "readline 8.2", which is opened at the first call; or nil, why not
 *   terminal.edit(prompt, complete) -> line
 *                          reads a line with it. complete(word, before) -> words that `word` could
 *                          become, `before` being what stands before it; nil: names of files
 *   terminal.remember(line)  what its keys for the past find from now on; the last LINES_MOST
 *   terminal.raw(on, brackets)   keys arrive as they are pressed, and are not shown; brackets: the
 *                          script has asked for those around a paste, which end with it
 *   terminal.keys() -> bytes, as many as there are, once there are some
 *   terminal.private(path) -> true; or nil, message, code: makes a file, or takes one that is
 *                          there, so that no other user may read it
 *
 * edit and keys give nil and a word instead where something else happens first: "end" (of the
 * input), "interrupt" or "leave" (linterrupt.c); edit says behind "interrupt" whether there was
 * something in the line.
 *
 * The library is GNU readline, opened at run time where it is installed: no build needs it, and no
 * library of ours ever does. Its callback interface leaves the waiting to us, so that signals are
 * seen, and nothing runs in a handler. A line may be of any length and hold line breaks, which come
 * of bracketed paste, and of Alt-Enter. Its functions run in a UTF-8 locale, whatever the user's
 * is: models know no other. */
#include "lauxpyr.h"
#include "program.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

enum { LINES_MOST = 1000, KEYS_MOST = 4096 };

/* ---- columns --------------------------------------------------------------------------------- */

/* Returns the locale to go back to. Where the system has no such locale, that is also what stays.
 * It is opened once, by who needs it first: most commands never do. */
static locale_t enter_utf8(void) {
  static locale_t utf8;
  static int opened;
  if (!opened) utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
  opened = 1;
  return uselocale(utf8);
}

static int terminal_columns(lua_State *L) {
  size_t left;
  const char *text = luaL_checklstring(L, 1, &left);
  lua_Integer columns = 0;
  mbstate_t state = { 0 };
  locale_t before = enter_utf8();
  while (left > 0) {
    wchar_t c;
    size_t bytes = mbrtowc(&c, text, left, &state);
    int wide = 1;
    if (bytes == (size_t)-1 || bytes == (size_t)-2) {      /* a byte that is no character */
      bytes = 1;
      memset(&state, 0, sizeof state);
    } else if (bytes == 0) bytes = 1, wide = 0;
    else wide = wcwidth(c);
    columns += wide < 0 ? 1 : wide;
    text += bytes;
    left -= bytes;
  }
  uselocale(before);
  lua_pushinteger(L, columns);
  return 1;
}

/* ---- the terminal's state -------------------------------------------------------------------- */

static struct termios saved;
static volatile sig_atomic_t changed, bracketed;

/* Only what may be called in a handler. */
static void restore_terminal(void) {
  if (!changed) return;
  changed = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &saved);
  if (bracketed && write(STDOUT_FILENO, "\033[?2004l", 8) < 0) return;
}

static void will_change(int brackets) {
  bracketed = brackets;
  changed = tcgetattr(STDIN_FILENO, &saved) == 0;
  pyr_program_at_end(restore_terminal);
}

/* ---- signals of the terminal ----------------------------------------------------------------- */

static volatile sig_atomic_t resized, resumed;

static void on_change(int number) {
  if (number == SIGWINCH) resized = 1;
  else resumed = 1;
  pyr_program_wake();
}

static struct sigaction window_before, go_on_before;

/* Of a window that changed, and of a program that goes on after a stop, when the shell has had the
 * terminal. */
static void watch_terminal(void) {
  struct sigaction action = { .sa_handler = on_change };
  sigemptyset(&action.sa_mask);
  resized = resumed = 0;
  sigaction(SIGWINCH, &action, &window_before);
  sigaction(SIGCONT, &action, &go_on_before);
}

static void leave_terminal(void) {
  sigaction(SIGWINCH, &window_before, NULL);
  sigaction(SIGCONT, &go_on_before, NULL);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static struct termios raw;
static int is_raw;

/* The line discipline would cut lines at 4,095 bytes; signals and what the terminal does with
 * output stay. */
static int terminal_raw(lua_State *L) {
  int on = lua_toboolean(L, 1);
  if (on == is_raw) return 0;
  is_raw = on;
  if (!on) {
    restore_terminal();
    leave_terminal();
    return 0;
  }
  watch_terminal();
  will_change(lua_toboolean(L, 2));
  raw = saved;
  raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
  raw.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IXON);
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  if (changed) tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  return 0;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Waits for a key: NULL; or why there is none. */
static const char *wait_for_key(void) {
  struct pollfd on[2] = { { STDIN_FILENO, POLLIN, 0 }, { pyr_program_wake_fd(), POLLIN, 0 } };
  const char *asked = pyr_program_asked();               /* its byte may have been read */
  if (asked) return asked;
  int ready = poll(on, 2, -1), error = errno;
  if (ready > 0 && on[1].revents) pyr_program_slept();
  asked = pyr_program_asked();
  if (asked) return asked;
  if (ready < 0 && error != EINTR) return "end";
  if (ready <= 0 || !on[0].revents) return "again";
  return NULL;
}

static int terminal_keys(lua_State *L) {
  char keys[KEYS_MOST];
  const char *why;
  ssize_t count = 0;
  do {
    while ((why = wait_for_key()) != NULL && strcmp(why, "again") == 0) {
      if (!resumed) continue;
      resumed = 0;
      if (is_raw && changed) tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    }
    if (why == NULL) count = read(STDIN_FILENO, keys, sizeof keys);
  } while (why == NULL && count < 0 && (errno == EINTR || errno == EAGAIN));
  if (why == NULL && count > 0) {
    lua_pushlstring(L, keys, (size_t)count);
    return 1;
  }
  luaL_pushfail(L);
  lua_pushstring(L, why ? why : "end");
  return 2;
}

/* ---- the library ----------------------------------------------------------------------------- */

typedef void line_handler(char *line);
typedef char **completer(const char *word, int start, int end);

/* What is called of it, as readline.h and history.h declare it since version 7. */
#define FUNCTIONS(X) \
  X(void, rl_callback_handler_install, (const char *prompt, line_handler *handler)) \
  X(void, rl_callback_handler_remove, (void)) \
  X(void, rl_callback_read_char, (void)) \
  X(void, rl_callback_sigcleanup, (void)) \
  X(int, rl_initialize, (void)) \
  X(int, rl_variable_bind, (const char *name, const char *value)) \
  X(int, rl_bind_keyseq, (const char *keys, int (*function)(int, int))) \
  X(int, rl_insert_text, (const char *text)) \
  X(int, rl_forced_update_display, (void)) \
  X(void, rl_redisplay, (void)) \
  X(void, rl_free_line_state, (void)) \
  X(void, rl_prep_terminal, (int meta)) \
  X(void, rl_deprep_terminal, (void)) \
  X(void, rl_resize_terminal, (void)) \
  X(void, rl_reset_screen_size, (void)) \
  X(void, add_history, (const char *line)) \
  X(void, stifle_history, (int most))
#define VARIABLES(X) \
  X(int, rl_catch_signals) X(int, rl_catch_sigwinch) X(int, rl_point) X(int, rl_end) \
  X(int, rl_attempted_completion_over) X(char *, rl_line_buffer) \
  X(const char *, rl_readline_name) X(const char *, rl_library_version) \
  X(completer *, rl_attempted_completion_function)

#define FIELD(type, name, arguments) type (*name) arguments;
#define POINTER(type, name) type *name;
static struct {
  FUNCTIONS(FIELD)
  VARIABLES(POINTER)
  int (*_rl_pushed_input_available)(void);       /* not in every version: keys read ahead */
  int ready;
  char why[160];
} rl;

static void *find(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (found == NULL && rl.why[0] == 0) snprintf(rl.why, sizeof rl.why, "it has no %s", name);
  return found;
}

/* The line that is being read, and who completes it. */
static struct { char *line; int done; lua_State *L; } editing;

static void take_line(char *line) {
  editing.line = line;
  editing.done = 1;
  rl.rl_callback_handler_remove();
}

static int insert_break(int count, int key) {
  (void)count, (void)key;
  return rl.rl_insert_text("\n");
}

/* The words that Lua gave, the list at the top of the stack: the first is what all have in
 * common. The library frees all of it. */
static char **matches_of(lua_State *L) {
  size_t count = lua_rawlen(L, -1), common = 0;
  char **matches = count > 0 ? calloc(count + 2, sizeof *matches) : NULL;
  if (matches == NULL) return NULL;
  size_t made = 0;
  for (size_t i = 1; i <= count; i++) {
    int kind = lua_rawgeti(L, -1, (lua_Integer)i);
    char *word = kind == LUA_TSTRING ? strdup(lua_tostring(L, -1)) : NULL;
    lua_pop(L, 1);
    if (word == NULL) continue;
    matches[++made] = word;
    if (made == 1) common = strlen(word);
    for (size_t at = 0; at < common; at++)
      if (word[at] != matches[1][at]) common = at;
  }
  matches[0] = made > 0 ? strndup(matches[1], common) : NULL;
  if (matches[0] && made == 1) {                           /* the one is given alone */
    free(matches[1]);
    matches[1] = NULL;
  }
  if (matches[0]) return matches;
  for (size_t i = 1; i <= made; i++) free(matches[i]);
  free(matches);
  return NULL;
}

/* Under a pcall: Lua may raise, and nothing may jump over the library. */
static int ask_words(lua_State *L) {
  const char *word = lua_touserdata(L, 2);
  lua_pushvalue(L, 1);
  lua_pushstring(L, word);
  lua_pushlstring(L, *rl.rl_line_buffer, (size_t)lua_tointeger(L, 3));
  lua_call(L, 2, 1);
  return 1;
}

static char **complete(const char *word, int start, int end) {
  (void)end;
  lua_State *L = editing.L;
  *rl.rl_attempted_completion_over = 1;                    /* no names of files */
  if (!lua_isfunction(L, 2) || !lua_checkstack(L, 8)) return NULL;
  int top = lua_gettop(L);
  lua_pushcfunction(L, ask_words);
  lua_pushvalue(L, 2);
  lua_pushlightuserdata(L, (void *)word);
  lua_pushinteger(L, start);
  char **matches = NULL;
  if (lua_pcall(L, 3, 1, 0) == LUA_OK) {
    if (lua_istable(L, -1)) matches = matches_of(L);
    else if (lua_isnil(L, -1)) *rl.rl_attempted_completion_over = 0;
  }
  lua_settop(L, top);
  return matches;
}

/* Opens it once; the text that says why not, or NULL. */
static const char *open_library(void) {
  if (rl.ready || rl.why[0]) return rl.ready ? NULL : rl.why;
  void *library = dlopen("libreadline.so.8", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) library = dlopen("libreadline.so.7", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    snprintf(rl.why, sizeof rl.why, "GNU readline 7 or later is not installed");
    return rl.why;
  }
#define FIND_FUNCTION(type, name, arguments) *(void **)&rl.name = find(library, #name);
#define FIND_VARIABLE(type, name) rl.name = find(library, #name);
  FUNCTIONS(FIND_FUNCTION)
  VARIABLES(FIND_VARIABLE)
  *(void **)&rl._rl_pushed_input_available = dlsym(library, "_rl_pushed_input_available");
  if (rl.why[0]) {
    dlclose(library);
    return rl.why;
  }
  *rl.rl_readline_name = "pyramid";                        /* in ~/.inputrc: $if pyramid */
  *rl.rl_catch_signals = *rl.rl_catch_sigwinch = 0;
  *rl.rl_attempted_completion_function = complete;
  rl.rl_variable_bind("enable-bracketed-paste", "on");     /* before ~/.inputrc, which may differ */
  rl.rl_initialize();
  rl.rl_variable_bind("input-meta", "on");                 /* bytes from 128 are text */
  rl.rl_variable_bind("output-meta", "on");
  rl.rl_variable_bind("convert-meta", "off");
  rl.rl_bind_keyseq("\\e\\C-m", insert_break);
  rl.stifle_history(LINES_MOST);
  rl.ready = 1;
  return NULL;
}

static int terminal_library(lua_State *L) {
  locale_t before = enter_utf8();
  const char *why = open_library();
  uselocale(before);
  if (why) {
    luaL_pushfail(L);
    lua_pushstring(L, why);
    return 2;
  }
  lua_pushfstring(L, "readline %s", *rl.rl_library_version);
  return 1;
}

static int terminal_remember(lua_State *L) {
  const char *line = luaL_checkstring(L, 1);
  if (rl.ready) rl.add_history(line);
  return 0;
}

/* Reads keys until there is a line: NULL, or why there is none. */
static const char *edit(const char *prompt, int *filled) {
  editing.done = 0;
  free(editing.line);                                      /* where memory had run out */
  editing.line = NULL;
  rl.rl_reset_screen_size();                               /* it may have changed meanwhile */
  rl.rl_callback_handler_install(prompt, take_line);
  while (!editing.done) {
    int ahead = rl._rl_pushed_input_available && rl._rl_pushed_input_available();
    const char *why = ahead ? NULL : wait_for_key();
    if (resized) {
      resized = 0;
      rl.rl_resize_terminal();
    }
    if (resumed) {
      resumed = 0;                                         /* the shell has had the terminal */
      rl.rl_deprep_terminal();
      rl.rl_prep_terminal(1);
      rl.rl_forced_update_display();
    }
    if (why == NULL) rl.rl_callback_read_char();
    else if (strcmp(why, "again") != 0) {
      *filled = *rl.rl_end > 0;
      *rl.rl_point = *rl.rl_end;
      rl.rl_redisplay();
      rl.rl_free_line_state();
      rl.rl_callback_sigcleanup();
      rl.rl_callback_handler_remove();
      return why;
    }
  }
  return editing.line ? NULL : "end";
}

static int terminal_edit(lua_State *L) {
  const char *prompt = luaL_checkstring(L, 1), *why;
  if (open_library()) return luaL_error(L, "%s", rl.why);
  if (editing.L) return luaL_error(L, "a line is being edited already");
  lua_settop(L, 2);
  luaL_Buffer buffer;
  watch_terminal();
  locale_t before = enter_utf8();
  editing.L = L;
  int filled = 0;
  will_change(1);
  why = edit(prompt, &filled);
  changed = 0;
  editing.L = NULL;
  uselocale(before);
  leave_terminal();
  if (why) {
    luaL_pushfail(L);
    lua_pushstring(L, why);
    lua_pushboolean(L, filled);
    return 3;
  }
  /* the line is the library's, and allocating may raise: it waits in `editing` for the next call */
  size_t length = strlen(editing.line);
  char *copy = luaL_buffinitsize(L, &buffer, length);
  memcpy(copy, editing.line, length);
  free(editing.line);
  editing.line = NULL;
  luaL_pushresultsize(&buffer, length);
  return 1;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int terminal_private(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat state;
  int file = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
  int ok = file >= 0 && fstat(file, &state) == 0;
  if (ok && !S_ISREG(state.st_mode)) ok = 0, errno = EINVAL;
  ok = ok && fchmod(file, 0600) == 0;
  int error = errno;
  if (file >= 0) close(file);
  if (ok) {
    lua_pushboolean(L, 1);
    return 1;
  }
  luaL_pushfail(L);
  lua_pushfstring(L, "%s: %s", path, strerror(error));
  lua_pushliteral(L, "io");
  return 3;
}

int pyr_luaopen_terminal(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "columns", terminal_columns }, { "library", terminal_library }, { "edit", terminal_edit },
    { "remember", terminal_remember }, { "raw", terminal_raw }, { "keys", terminal_keys },
    { "private", terminal_private }, { NULL, NULL }
  };
  luaL_newlib(L, functions);
  return 1;
}
