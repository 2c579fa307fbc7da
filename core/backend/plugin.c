/* plugin.c — see plugin.h. An object is looked for beside the real file of the program or library
 * that this code is part of, and in two folders from there; never in the current directory. */
#include "backend/plugin.h"
#include "backend/backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };    /* Linux's PATH_MAX */

bool pyr_device_known(const char *device) {
  return strcmp(device, "cuda") == 0 || strcmp(device, "emulated") == 0;
}

/* The folder of the file that this code was mapped from: the program, or a library. The kernel's
 * own list of mappings names it with all symbolic links resolved, whatever the program was started
 * as, found through or moved away from since; argv[0] and what dladdr tells are names that somebody
 * gave, and may be relative to a folder that is no longer the current one. False if it cannot be
 * told: nothing is guessed, and never is the current directory meant. */
static bool own_folder(char *path, size_t bytes) {
  uintptr_t self = (uintptr_t)pyr_device_known;
  bool found = false;
  FILE *maps = fopen("/proc/self/maps", "re");
  char line[PATH_BYTES + 128];
  while (maps && !found && fgets(line, sizeof line, maps)) {
    unsigned long long from, to;
    char *end = strchr(line, '\n'), *name = strchr(line, '/');
    if (!end) break;  /* a path of more bytes than any that this process can open */
    if (!name || sscanf(line, "%llx-%llx", &from, &to) != 2 || self < from || self >= to) continue;
    *end = 0;
    *strrchr(name, '/') = 0;
    if (strlen(name) >= bytes) break;
    memcpy(path, name, strlen(name) + 1);
    found = true;
  }
  if (maps) fclose(maps);
  return found;
}

/* Opens libpyramid_<name>.so: beside the program or library, or where `make install` puts it as
 * seen from there (bin/ and lib/; lib/lua/5.4/ and lib/). The loader's own search is not asked: an
 * empty entry of LD_LIBRARY_PATH is the current directory. */
static pyr_status open_object(pyr_runtime *rt, const char *label, const char *name,
                              const char *how, void **out) {
  static const char *const beside[] = { "", "/../lib", "/../.." };
  char folder[PATH_BYTES], path[PATH_BYTES + 64];
  const char *why = "/proc/self/maps does not tell where this library lies";
  if (own_folder(folder, sizeof folder)) {
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
      snprintf(path, sizeof path, "%s%s/libpyramid_%s.so", folder, beside[i], name);
      if (access(path, R_OK) != 0) continue;
      *out = dlopen(path, RTLD_NOW | RTLD_LOCAL);
      if (*out) return PYR_OK;
      why = dlerror();
      return pyr_runtime_set_error(rt, PYR_DEVICE, "%s: %s cannot be loaded (%s)", label, path,
                                   why ? why : "no reason given");
    }
    snprintf(path, sizeof path, "it is not in %.*s, ../lib or ../.. from there", PATH_BYTES / 2,
             folder);
    why = path;
  }
  return pyr_runtime_set_error(rt, PYR_DEVICE, "%s: libpyramid_%s.so cannot be loaded; %s (%s)",
                               label, name, how, why);
}

pyr_status pyr_plugin_open(pyr_runtime *rt, const char *label, const char *name,
                           const char *symbol, const char *how, void **out) {
  void *object;
  PYR_TRY(open_object(rt, label, name, how, &object));
  *out = dlsym(object, symbol);
  if (*out) return PYR_OK;
  return pyr_runtime_set_error(rt, PYR_DEVICE,
                               "%s: libpyramid_%s.so is not what its name says: build it again",
                               label, name);
}

pyr_status pyr_device_backend_open(pyr_runtime *rt, const char *device, const char *isa,
                                   pyr_backend *be) {
  static const pyr_device_host host = { PYR_DEVICE_VERSION, pyr_alloc, pyr_release, pyr_charge,
                                        pyr_discharge, pyr_runtime_set_error };
  pyr_device_open_fn open;
  char label[64];
  void *symbol;
  snprintf(label, sizeof label, "device \"%s\"", device);
  PYR_TRY(pyr_plugin_open(rt, label, device, PYR_DEVICE_OPEN, strcmp(device, "cuda") == 0
                          ? "build it where nvcc is with `make cuda`, and put it beside the program"
                          : "`make` builds it", &symbol));
  *(void **)&open = symbol;
  return open(&host, rt, isa, be);
}
