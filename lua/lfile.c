/* lfile.c — files of a disk for Lua (core/base/disk.h): reading only what is a file, and replacing
 * files whole.
 *
 *   core.file_kind(path) -> "file", "folder", "other" (a device, a pipe, a socket), or nil
 *   core.open_regular(path) -> a file of io's for reading, bytes; or nil, message, code. Never
 *   waits
 *   core.output(path) -> output; or nil, message, code
 *   output:write(text, …) :commit() -> true; or nil, message, code. Without a commit nothing has
 *   happened to the path
 *   output:close()         gives it up, if it is not committed
 *   core.make_folder(path), core.touch(path) -> true; or nil, message, code
 *   core.list_files(path) -> { { name =, bytes =, changed = }, … }, regular files, in no order,
 *   changed in nanoseconds since 1970; or nil, message, code
 *   core.hash_text(text) -> FNV-1a, 64 bits, as 16 hexadecimal digits */
#include "lauxpyr.h"
#include "base/disk.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define OUTPUT "pyramid.output"
#define FOLDER "pyramid.folder"

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

/* ---- folders --------------------------------------------------------------------------------- */

static int core_make_folder(lua_State *L) {
  char why[PYR_WHY_BYTES];
  if (!pyr_disk_make_folder(check_path(L, 1), why)) return fail(L, why);
  lua_pushboolean(L, 1);
  return 1;
}

static int core_touch(lua_State *L) {
  char why[PYR_WHY_BYTES];
  if (!pyr_disk_touch(check_path(L, 1), why)) return fail(L, why);
  lua_pushboolean(L, 1);
  return 1;
}

static int folder_close(lua_State *L) {
  pyr_folder_close(luaL_checkudata(L, 1, FOLDER));
  return 0;
}

/* The open folder is a value of Lua's, so that it is closed when memory runs out in between. */
static int core_list_files(lua_State *L) {
  const char *path = check_path(L, 1);
  char why[PYR_WHY_BYTES];
  pyr_folder_entry entry;
  pyr_folder *folder = lua_newuserdatauv(L, sizeof *folder, 0);
  folder->dir = NULL;
  luaL_setmetatable(L, FOLDER);
  if (!pyr_folder_open(folder, path, why)) return fail(L, why);
  lua_newtable(L);
  for (lua_Integer i = 1; pyr_folder_next(folder, &entry); i++) {
    lua_createtable(L, 0, 3);
    lua_pushstring(L, entry.name);
    lua_setfield(L, -2, "name");
    lua_pushinteger(L, (lua_Integer)entry.bytes);
    lua_setfield(L, -2, "bytes");
    lua_pushinteger(L, (lua_Integer)entry.changed);
    lua_setfield(L, -2, "changed");
    lua_rawseti(L, -2, i);
  }
  pyr_folder_close(folder);
  return 1;
}

static int core_hash_text(lua_State *L) {
  size_t bytes;
  const char *text = luaL_checklstring(L, 1, &bytes);
  pyr_lua_push_hash(L, pyr_disk_hash(text, bytes));
  return 1;
}

void pyr_lua_open_file(lua_State *L) {
  static const luaL_Reg methods[] = { { "write", output_write }, { "commit", output_commit },
                                      { NULL, NULL } };
  static const luaL_Reg functions[] = { { "file_kind", core_file_kind },
                                        { "open_regular", core_open_regular },
                                        { "output", core_output },
                                        { "make_folder", core_make_folder },
                                        { "touch", core_touch },
                                        { "list_files", core_list_files },
                                        { "hash_text", core_hash_text }, { NULL, NULL } };
  static const luaL_Reg nothing[] = { { NULL, NULL } };
  pyr_lua_new_class(L, OUTPUT, methods, output_close);
  pyr_lua_new_class(L, FOLDER, nothing, folder_close);
  luaL_setfuncs(L, functions, 0);
}
