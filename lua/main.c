/* main.c — the program `pyramid`: a Lua 5.4 host with the library, its scripts and its policies
 * linked in.
 *
 *   pyramid NAME args…           the script of that name
 *   pyramid path/to/x.lua args… a Lua file: a path has a slash or ends in .lua; `-` is standard
 *   input
 *   pyramid -e 'code' args…      Lua code
 *   pyramid --help | --version
 *
 * Scripts see their arguments in `arg` and `...`. A name is looked up as scripts/NAME.lua in each
 * folder of PYRAMID_PATH (separated by colons), beside the program, up to two above it if that is a
 * source tree, then among the bundled; `pyramid.paths` gives these folders to the policies' own
 * search, and Lua modules are looked for in share/lua/5.4 and lib/lua/5.4 of each, too. The current
 * directory is none of them: nothing that lies beside a model is run, unless its path is given.
 * PYRAMID_DEVICE is the device of models and runtimes that are opened without one (else "cpu"),
 * PYRAMID_PRECISION the precision of such models (else "auto").
 * Only this file reads the environment, prints, and decides the exit status: 0, what os.exit says,
 * or 1 with a traceback; 130 after a Ctrl-C (linterrupt.c). Lines that are typed at a terminal are
 * lterminal.c's. */
#include "lauxpyr.h"
#include "bundle.h"
#include "program.h"
#include "base/plain.h"

#include <lualib.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the search path ------------------------------------------------------------------------- */

/* Appends a folder to the table on top of the stack: an absolute path, whatever folder is the
 * current one later. */
static void add_root(lua_State *L, const char *path, size_t length) {
  char here[4096];
  if (length == 0) return;
  if (path[0] == '/') lua_pushlstring(L, path, length);
  else {
    if (!getcwd(here, sizeof here))
      luaL_error(L, "PYRAMID_PATH has a relative entry, and the current directory has no name");
    lua_pushfstring(L, "%s/", here);
    lua_pushlstring(L, path, length);
    lua_concat(L, 2);
  }
  lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
}

/* Whether a folder is Pyramid's source tree: it holds the public header and this file. Only there
 * does what lies above the program count: a program in /home/me/Downloads/bin runs no script of
 * /home/me/Downloads. */
static int is_source_tree(lua_State *L, const char *folder) {
  const char *header = lua_pushfstring(L, "%s/core/pyramid.h", folder),
      *program = lua_pushfstring(L, "%s/lua/main.c", folder);
  int found = access(header, R_OK) == 0 && access(program, R_OK) == 0;
  lua_pop(L, 2);
  return found;
}

/* Pushes the folders whose scripts/ and policies/ come before the bundled ones. */
static void push_roots(lua_State *L) {
  lua_newtable(L);
  const char *path = getenv("PYRAMID_PATH");
  while (path && *path) {
    size_t length = strcspn(path, ":");
    add_root(L, path, length);
    path += length + (path[length] == ':');
  }
  char program[4096];
  ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  for (int up = 0; up < 3 && length > 0; up++) {          /* build/pyramid and build/asan/pyramid
                                                             are below their tree */
    program[length] = 0;
    char *slash = strrchr(program, '/');
    if (slash == NULL || slash == program) break;
    length = slash - program;
    program[length] = 0;
    if (up == 0 || is_source_tree(L, program)) add_root(L, program, (size_t)length);
  }
}

static int return_upvalue(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(1));
  return 1;
}

/* Lua's own search goes on in the folders: a bundle carries Busted so. */
static void extend_module_paths(lua_State *L, int roots) {
  static const char code[] =
    "for _, root in ipairs(...) do\n"
    "  package.path = "
    "('%s;%s/share/lua/5.4/?.lua;%s/share/lua/5.4/?/init.lua'):format(package.path, root, root)\n"
    "  package.cpath = ('%s;%s/lib/lua/5.4/?.so'):format(package.cpath, root)\n"
    "end";
  if (luaL_loadbufferx(L, code, sizeof code - 1, "=paths", "t") != LUA_OK) lua_error(L);
  lua_pushvalue(L, roots);
  lua_call(L, 1, 0);
}

/* ---- scripts --------------------------------------------------------------------------------- */

/* Pushes the first of roots[i]/scripts/NAME.lua that can be read, and returns it; or pushes
 * nothing, and returns NULL. */
static const char *push_script_path(lua_State *L, int roots, const char *name) {
  for (lua_Integer i = 1; lua_rawgeti(L, roots, i) == LUA_TSTRING; i++) {
    const char *path = lua_pushfstring(L, "%s/scripts/%s.lua", lua_tostring(L, -1), name);
    lua_remove(L, -2);
    if (access(path, R_OK) == 0) return path;
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return NULL;
}

static const pyr_bundle_entry *find_bundled(const char *name) {
  for (const pyr_bundle_entry *e = pyr_bundle; e->kind; e++)
    if (strcmp(e->kind, "script") == 0 && strcmp(e->name, name) == 0) return e;
  return NULL;
}

/* Pushes what a script's first line says of it: "-- NAME.lua: reads a prompt" gives "reads a
 * prompt". */
static void push_summary(lua_State *L, const char *name, const char *text, size_t length) {
  const char *end = text + length, *line = text;
  if (length > 1 && line[0] == '#')
    line = memchr(line, '\n', length) ? (char *)memchr(line, '\n', length) + 1 : end;
  const char *stop = memchr(line, '\n', (size_t)(end - line));
  if (stop == NULL) stop = end;
  if (stop - line < 2 || strncmp(line, "--", 2) != 0) {
    lua_pushliteral(L, "");
    return;
  }
  while (line < stop && strchr("- \t", *line)) line++;
  size_t known = strlen(name);
  if ((size_t)(stop - line) > known && strncmp(line, name, known) == 0
      && strchr(".: ", line[known])) {
    line += known;
    if (stop - line > 4 && strncmp(line, ".lua", 4) == 0) line += 4;
    while (line < stop && strchr(": -", *line)) line++;
    if (stop - line > 4 && strncmp(line, "\342\200\224 ", 4) == 0) line += 4;   /* an em dash */
  }
  lua_pushlstring(L, line, (size_t)(stop - line));
}

/* Sets list[name] to the summary of a script in a file, unless the name is there. */
static void add_file_summary(lua_State *L, int list, const char *root, const char *file) {
  size_t length = strlen(file);
  if (length < 5 || strcmp(file + length - 4, ".lua") != 0) return;
  const char *name = lua_pushlstring(L, file, length - 4);
  if (lua_getfield(L, list, name) == LUA_TNIL) {
    char head[512];
    const char *path = lua_pushfstring(L, "%s/scripts/%s", root, file);
    FILE *stream = fopen(path, "r");
    size_t read = stream ? fread(head, 1, sizeof head, stream) : 0;
    if (stream) fclose(stream);
    push_summary(L, name, head, read);
    lua_setfield(L, list, name);
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

/* Pushes a table from the names of all scripts to their summaries. */
static void push_scripts(lua_State *L, int roots) {
  lua_newtable(L);
  int list = lua_gettop(L);
  for (lua_Integer i = 1; lua_rawgeti(L, roots, i) == LUA_TSTRING; i++) {
    const char *root = lua_tostring(L, -1);
    DIR *dir = opendir(lua_pushfstring(L, "%s/scripts", root));
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;)
      add_file_summary(L, list, root, e->d_name);
    if (dir) closedir(dir);
    lua_pop(L, 2);
  }
  lua_pop(L, 1);
  for (const pyr_bundle_entry *e = pyr_bundle; e->kind; e++) {
    if (strcmp(e->kind, "script") != 0) continue;
    if (lua_getfield(L, list, e->name) == LUA_TNIL) {
      push_summary(L, e->name, e->text, e->length);
      lua_setfield(L, list, e->name);
    }
    lua_pop(L, 1);
  }
}

/* Pushes the scripts' names, sorted, one a line; with their summaries if `summaries`. */
static void push_listing(lua_State *L, int roots, int summaries) {
  static const char code[] =
    "local list, summaries = ...\n"
    "local names, width, lines = {}, 0, {}\n"
    "for name in pairs(list) do names[#names + 1] = name; width = math.max(width, #name) end\n"
    "table.sort(names)\n"
    "if not summaries then return table.concat(names, ', ') end\n"
    "for i, name in ipairs(names) do lines[i] = ('  %-' .. width .. 's  %s\\n'):format(name, "
    "list[name]) end\n"
    "return table.concat(lines)";
  if (luaL_loadbufferx(L, code, sizeof code - 1, "=listing", "t") != LUA_OK) lua_error(L);
  push_scripts(L, roots);
  lua_pushboolean(L, summaries);
  lua_call(L, 2, 1);
}

/* ---- running --------------------------------------------------------------------------------- */

static int print_help(lua_State *L, int roots, FILE *to) {
  push_listing(L, roots, 1);
  fprintf(to,
          "usage: pyramid NAME args…           run a script\n"
          "       pyramid path/to/x.lua args…  run a Lua file (`-`: standard input)\n"
          "       pyramid -e 'code' args…      run Lua code\n"
          "       pyramid --version\n"
          "\n"
          "scripts (pyramid NAME --help says more):\n"
          "%s"
          "\n"
          "Scripts and policies of one's own: a scripts/ or policies/ folder on PYRAMID_PATH, or "
          "beside the program.\n",
          lua_tostring(L, -1));
  return to == stdout ? 0 : 1;
}

/* Sets the global `arg`: arg[0] = script, arg[1…] its arguments, what came before at negative
 * indices. */
static void set_arg(lua_State *L, char **argv, int argc, int script, const char *name) {
  lua_createtable(L, argc - script, script + 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_pushstring(L, name);
  lua_rawseti(L, -2, 0);
  lua_setglobal(L, "arg");
}

static int with_traceback(lua_State *L) {
  if (pyr_lua_is_interrupted(L)) return 1;
  const char *message = lua_tostring(L, 1);
  if (message == NULL) {
    if (luaL_callmeta(L, 1, "__tostring") && lua_type(L, -1) == LUA_TSTRING) return 1;
    message = lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
  }
  luaL_traceback(L, L, message, 1);
  return 1;
}

static int report(lua_State *L) {
  if (pyr_lua_is_interrupted(L)) return 1;
  const char *message = lua_tostring(L, -1);
  fprintf(stderr, "pyramid: %s\n", message ? message : "error");
  return 1;
}

/* Pushes the chunk of the script of that name, or a message. */
static int load_script(lua_State *L, int roots, const char *name) {
  const char *path = push_script_path(L, roots, name);
  if (path) return luaL_loadfilex(L, path, "t");
  const pyr_bundle_entry *e = find_bundled(name);
  if (e) return luaL_loadbufferx(L, e->text, e->length, e->chunk, "t");
  push_listing(L, roots, 0);
  lua_pushfstring(L, "there is no script '%s' (known: %s)", name, lua_tostring(L, -1));
  return LUA_ERRFILE;
}

/* The module pyramid.scripts: list() -> summaries by name; load(name) -> the chunk, or nil and a
 * message. */
static int scripts_list(lua_State *L) {
  lua_settop(L, 0);
  lua_pushvalue(L, lua_upvalueindex(1));
  push_scripts(L, 1);
  return 1;
}

static int scripts_load(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  if (load_script(L, 2, name) == LUA_OK) return 1;
  luaL_pushfail(L);
  lua_insert(L, -2);
  return 2;
}

static int open_scripts(lua_State *L) {
  static const luaL_Reg functions[] = { { "list", scripts_list }, { "load", scripts_load },
                                        { NULL, NULL } };
  lua_newtable(L);
  lua_pushvalue(L, lua_upvalueindex(1));
  luaL_setfuncs(L, functions, 1);
  return 1;
}

/* Loads what argv[1] names. Returns LUA_OK and pushes the chunk, or pushes a message. *script is
 * its index in argv. */
static int load_named(lua_State *L, char **argv, int argc, int roots, int *script) {
  const char *name = argv[1];
  *script = 1;
  if (strcmp(name, "-e") == 0) {
    if (argc < 3) {
      lua_pushliteral(L, "-e needs Lua code");
      return LUA_ERRSYNTAX;
    }
    *script = 2;
    set_arg(L, argv, argc, 2, "pyramid -e");
    return luaL_loadbufferx(L, argv[2], strlen(argv[2]), "=(command line)", "t");
  }
  if (strcmp(name, "-") == 0) {
    set_arg(L, argv, argc, 1, name);
    return luaL_loadfilex(L, NULL, "t");
  }
  size_t length = strlen(name);
  if (strchr(name, '/') || (length > 4 && strcmp(name + length - 4, ".lua") == 0)) {
    set_arg(L, argv, argc, 1, name);
    return luaL_loadfilex(L, name, "t");
  }
  if (name[0] == '-') {
    lua_pushfstring(L, "unknown option '%s'; try pyramid --help", name);
    return LUA_ERRSYNTAX;
  }
  lua_pushfstring(L, "pyramid %s", name);         /* what an argument parser calls the script */
  set_arg(L, argv, argc, 1, lua_tostring(L, -1));
  return load_script(L, roots, name);
}

/* lua-cjson for scripts of one's own, in this program alone: it ends its process where memory runs
 * out, so that no library may carry it into a host. What ships reads JSON by lua/ljson.c. */
#if !defined(PYR_NO_CJSON)
int luaopen_cjson(lua_State *L);
int luaopen_cjson_safe(lua_State *L);
#endif

static void preload_cjson(lua_State *L) {
  static const luaL_Reg modules[] = {
#if !defined(PYR_NO_CJSON)
    { "cjson", luaopen_cjson }, { "cjson.safe", luaopen_cjson_safe },
#endif
    { NULL, NULL }
  };
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  luaL_setfuncs(L, modules, 0);
  lua_pop(L, 1);
}

typedef struct command { int argc; char **argv; int status; } command;

/* What the environment says becomes a default of the library's. */
static void choose(lua_State *L, const char *variable, const char *key) {
  const char *value = getenv(variable);
  if (!value || !*value) return;
  lua_pushstring(L, value);
  lua_setfield(L, LUA_REGISTRYINDEX, key);
}

static int run(lua_State *L) {
  command *c = lua_touserdata(L, 1);
  luaL_openlibs(L);
  pyr_program_catch_interrupts(L);
  pyr_lua_absolute_paths(L);
  push_roots(L);
  int roots = lua_gettop(L);
  extend_module_paths(L, roots);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushvalue(L, roots);
  lua_pushcclosure(L, return_upvalue, 1);
  lua_setfield(L, -2, "pyramid.paths");
  lua_pushvalue(L, roots);
  lua_pushcclosure(L, open_scripts, 1);
  lua_setfield(L, -2, "pyramid.scripts");
  pyr_lua_preload(L, 1);
  preload_cjson(L);
  static const luaL_Reg own[] = { { "pyramid.probe", pyr_luaopen_probe },
                                  { "pyramid.interrupts", pyr_luaopen_interrupts },
                                  { "pyramid.terminal", pyr_luaopen_terminal } };
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
    lua_pushcfunction(L, own[i].func);
    lua_setfield(L, roots + 1, own[i].name);
  }
  choose(L, "PYRAMID_DEVICE", PYR_LUA_DEVICE);
  choose(L, "PYRAMID_PRECISION", PYR_LUA_PRECISION);

  if (c->argc < 2 || strcmp(c->argv[1], "--help") == 0 || strcmp(c->argv[1], "-h") == 0) {
    c->status = print_help(L, roots, c->argc < 2 ? stderr : stdout);
    return 0;
  }
  if (strcmp(c->argv[1], "--version") == 0 || strcmp(c->argv[1], "-v") == 0) {
    printf("Pyramid %s, %s\n", PYR_VERSION, LUA_RELEASE);
    return 0;
  }
  int script;
  lua_pushcfunction(L, with_traceback);
  int handler = lua_gettop(L);
  if (load_named(L, c->argv, c->argc, roots, &script) != LUA_OK) {
    c->status = report(L);
    return 0;
  }
  int count = c->argc - script - 1;
  luaL_checkstack(L, count + 1, "too many arguments");
  for (int i = script + 1; i < c->argc; i++) lua_pushstring(L, c->argv[i]);
  if (lua_pcall(L, count, 0, handler) != LUA_OK) c->status = report(L);
  return 0;
}

int main(int argc, char **argv) {
  command c = { argc, argv, 0 };
  pyr_plain_enter();  /* for good: what a script reads and writes is the same in every locale */
  lua_State *L = luaL_newstate();
  if (L == NULL) {
    fprintf(stderr, "pyramid: not enough memory\n");
    return 1;
  }
  lua_pushcfunction(L, run);
  lua_pushlightuserdata(L, &c);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) c.status = report(L);
  if (pyr_program_is_interrupted()) fflush(stdout);
  lua_close(L);
  if (pyr_program_is_interrupted()) return PYR_PROGRAM_INTERRUPTED;
  if (fflush(stdout) != 0) {
    fprintf(stderr, "pyramid: %s\n", strerror(errno));
    return 1;
  }
  return c.status;
}
