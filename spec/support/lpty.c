/* lpty.c — programs at a terminal of their own, for specs: `require "pyramid_specs.pty"`.
 *
 *   pty.spawn(line, columns, rows) -> terminal     a shell runs the line at a new pseudo-terminal
 *   terminal:read(seconds) -> bytes that it wrote, "" if none come in that time; nil at the end
 *   terminal:write(bytes) -> how many of them were typed; the rest has no room yet
 *   terminal:resize(columns, rows)
 *   terminal:cooked() -> whether lines are edited and echoed by the terminal itself, as a shell
 *                        wants to find it
 *   terminal:signal(number)   to the group that runs at it
 *   terminal:wait() -> its exit status, 128 + the signal that ended it
 *   terminal:close()          ends it, if it still runs */
#include <lua.h>
#include <lauxlib.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define PTY "pyramid.specs.pty"

typedef struct pty { int fd; pid_t pid; int status; } pty;

static pty *check(lua_State *L) {
  pty *p = luaL_checkudata(L, 1, PTY);
  luaL_argcheck(L, p->fd >= 0, 1, "the terminal is closed");
  return p;
}

static void set_size(int fd, lua_State *L, int arg) {
  struct winsize size = { .ws_col = (unsigned short)luaL_checkinteger(L, arg),
                          .ws_row = (unsigned short)luaL_checkinteger(L, arg + 1) };
  ioctl(fd, TIOCSWINSZ, &size);
}

static int pty_spawn(lua_State *L) {
  const char *line = luaL_checkstring(L, 1);
  luaL_checkinteger(L, 2);
  luaL_checkinteger(L, 3);
  pty *p = lua_newuserdatauv(L, sizeof *p, 0);
  *p = (pty){ -1, 0, -1 };
  luaL_setmetatable(L, PTY);
  int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  char name[128];
  if (fd < 0 || grantpt(fd) != 0 || unlockpt(fd) != 0 || ptsname_r(fd, name, sizeof name) != 0)
    return luaL_error(L, "no pseudo-terminal: %s", strerror(errno));
  set_size(fd, L, 2);
  p->fd = fd;
  p->pid = fork();
  if (p->pid == 0) {
    setsid();
    int end = open(name, O_RDWR);                          /* it becomes the session's */
    if (end < 0) _exit(126);
    for (int i = 0; i < 3; i++) dup2(end, i);
    if (end > 2) close(end);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    _exit(127);
  }
  if (p->pid < 0) return luaL_error(L, "fork: %s", strerror(errno));
  return 1;
}

static int pty_read(lua_State *L) {
  pty *p = check(L);
  int wait = (int)(luaL_checknumber(L, 2) * 1000);
  char bytes[65536];
  struct pollfd on = { p->fd, POLLIN, 0 };
  if (poll(&on, 1, wait) == 0) {
    lua_pushliteral(L, "");
    return 1;
  }
  ssize_t count = read(p->fd, bytes, sizeof bytes);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) count = 0;
  else if (count <= 0) return 0;                           /* EIO: nobody holds the other end */
  lua_pushlstring(L, bytes, (size_t)count);
  return 1;
}

static int pty_write(lua_State *L) {
  pty *p = check(L);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  ssize_t count = write(p->fd, bytes, length);
  lua_pushinteger(L, count < 0 ? 0 : (lua_Integer)count);
  return 1;
}

static int pty_resize(lua_State *L) {
  set_size(check(L)->fd, L, 2);
  return 0;
}

static int pty_cooked(lua_State *L) {
  struct termios state = { 0 };
  tcgetattr(check(L)->fd, &state);
  lua_pushboolean(L, (state.c_lflag & (ICANON | ECHO)) == (ICANON | ECHO));
  return 1;
}

static int pty_signal(lua_State *L) {
  pty *p = check(L);
  kill(-p->pid, (int)luaL_checkinteger(L, 2));
  return 0;
}

static int reap(pty *p) {
  int status;
  if (p->status < 0 && p->pid > 0 && waitpid(p->pid, &status, 0) == p->pid)
    p->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return p->status;
}

static int pty_wait(lua_State *L) {
  lua_pushinteger(L, reap(check(L)));
  return 1;
}

static int pty_close(lua_State *L) {
  pty *p = luaL_checkudata(L, 1, PTY);
  if (p->fd >= 0) close(p->fd);
  p->fd = -1;
  if (p->status < 0 && p->pid > 0) {
    kill(-p->pid, SIGKILL);
    reap(p);
  }
  return 0;
}

__attribute__((visibility("default"))) int luaopen_pyramid_specs_pty(lua_State *L);
int luaopen_pyramid_specs_pty(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "read", pty_read }, { "write", pty_write }, { "resize", pty_resize },
    { "cooked", pty_cooked }, { "signal", pty_signal }, { "wait", pty_wait },
    { "close", pty_close }, { "__gc", pty_close }, { "__close", pty_close }, { NULL, NULL }
  };
  luaL_newmetatable(L, PTY);
  luaL_setfuncs(L, methods, 0);
  lua_pushvalue(L, -1);
  lua_setfield(L, -2, "__index");
  lua_newtable(L);
  lua_pushcfunction(L, pty_spawn);
  lua_setfield(L, -2, "spawn");
  return 1;
}
