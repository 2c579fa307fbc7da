/* lfile.c — files of a disk for Lua (core/base/disk.h): reading only what is a file, and replacing
 * files whole.
 *
 *   core.file_kind(path) -> "file", "folder", "other" (a device, a pipe, a socket), or nil
 *   core.open_regular(path) -> a file of io's for reading, bytes; or nil, message, code. Never
 *   waits
 *   core.output(path) -> output; or nil, message, code
 *   output:write(text, …) :commit() -> true; or nil, message, code. Without a commit nothing has
 *   happened to the path
 *   output:close()         gives it up, if it is not committed */
#include "lauxpyr.h"
#include "base/disk.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define OUTPUT "pyramid.output"

/* Comes right behind what failed: the code is errno's. */
static int fail(lua_State *L, const char *why) {
  pyr_status status = pyr_disk_status();
  lua_pushnil(L);
  lua_pushstring(L, why);
  lua_pushstring(L, pyr_status_name(status));
  return 3;
}

static const char *check_path(lua_State *L, int arg) {
  size_t length;
  const char *path = luaL_checklstring(L, arg, &length);
  luaL_argcheck(L, strlen(path) == length, arg, "a path with a zero byte");
  return path;
}

static int core_file_kind(lua_State *L) {
  static const char *const names[] = { NULL, "file", "folder", "other" };
  lua_pushstring(L, names[pyr_disk_kind(check_path(L, 1))]);      /* NULL gives nil */
  return 1;
}

static int stream_close(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  return luaL_fileresult(L, fclose(stream->f) == 0, NULL);
}

static int core_open_regular(lua_State *L) {
  const char *path = check_path(L, 1);
  char why[PYR_WHY_BYTES];
  int fd;
  uint64_t size;
  luaL_Stream *stream = lua_newuserdatauv(L, sizeof *stream, 0);
  stream->closef = NULL;                                          /* closed, so far */
  stream->f = NULL;
  luaL_setmetatable(L, LUA_FILEHANDLE);
  if (!pyr_disk_open(path, &fd, &size, why)) return fail(L, why);
  stream->f = fdopen(fd, "rb");
  if (stream->f == NULL) {
    int error = errno;
    close(fd);
    lua_pushfstring(L, "%s: %s", path, strerror(error));
    errno = error;
    return fail(L, lua_tostring(L, -1));
  }
  stream->closef = stream_close;
  lua_pushinteger(L, (lua_Integer)size);
  return 2;
}

pyr_output *pyr_lua_check_output(lua_State *L, int arg) {
  pyr_output *out = luaL_checkudata(L, arg, OUTPUT);
  luaL_argcheck(L, out->file != NULL, arg, "the file is closed");
  return out;
}

static int core_output(lua_State *L) {
  const char *path = check_path(L, 1);
  char why[PYR_WHY_BYTES];
  pyr_output *out = lua_newuserdatauv(L, sizeof *out, 0);
  out->file = NULL;
  luaL_setmetatable(L, OUTPUT);
  return pyr_output_open(out, path, why) ? 1 : fail(L, why);
}

static int output_write(lua_State *L) {
  int count = lua_gettop(L);
  char why[PYR_WHY_BYTES];
  for (int i = 2; i <= count; i++) {
    size_t bytes;
    const char *text = luaL_checklstring(L, i, &bytes);
    if (!pyr_output_write(pyr_lua_check_output(L, 1), text, bytes, why)) return fail(L, why);
  }
  lua_pushboolean(L, 1);
  return 1;
}

static int output_commit(lua_State *L) {
  char why[PYR_WHY_BYTES];
  if (!pyr_output_commit(pyr_lua_check_output(L, 1), why)) return fail(L, why);
  lua_pushboolean(L, 1);
  return 1;
}

static int output_close(lua_State *L) {
  pyr_output_abandon(luaL_checkudata(L, 1, OUTPUT));
  return 0;
}

void pyr_lua_open_file(lua_State *L) {
  static const luaL_Reg methods[] = { { "write", output_write }, { "commit", output_commit },
                                      { NULL, NULL } };
  static const luaL_Reg functions[] = { { "file_kind", core_file_kind },
                                        { "open_regular", core_open_regular },
                                        { "output", core_output }, { NULL, NULL } };
  pyr_lua_new_class(L, OUTPUT, methods, output_close);
  luaL_setfuncs(L, functions, 0);
}
