/* device.c — see device.h. An object is looked for beside the program or library that this code is part of, in the folder
 * ../lib from there, and where the system's loader looks. */
#include "device.h"
#include "backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 1024 };

bool pyr_device_known(const char *device) { return strcmp(device, "cuda") == 0 || strcmp(device, "emulated") == 0; }

/* Opens libpyramid_<device>.so from the folder of this code, `beside` it; NULL if it is not there or cannot be loaded. */
static void *open_beside(const char *device, const char *beside) {
  char path[PATH_BYTES];
  Dl_info info;
  if (!dladdr((void *)(uintptr_t)pyr_device_known, &info) || !info.dli_fname) return NULL;
  const char *slash = strrchr(info.dli_fname, '/');
  int folder = slash ? (int)(slash - info.dli_fname) : 1;
  int length = snprintf(path, sizeof path, "%.*s%s/libpyramid_%s.so", folder, slash ? info.dli_fname : ".", beside, device);
  return length > 0 && length < PATH_BYTES ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_object(const char *device) {
  char name[64];
  void *object = open_beside(device, "");
  if (!object) object = open_beside(device, "/../lib");
  snprintf(name, sizeof name, "libpyramid_%s.so", device);
  return object ? object : dlopen(name, RTLD_NOW | RTLD_LOCAL);
}

pyr_status pyr_device_backend_open(pyr_runtime *rt, const char *device, const char *isa, pyr_backend *be) {
  static const pyr_device_host host = { PYR_DEVICE_VERSION, pyr_alloc, pyr_release, pyr_charge, pyr_discharge,
                                        pyr_runtime_set_error };
  void *object = open_object(device);
  if (!object) {
    const char *why = dlerror(), *how = "`make` builds it";
    if (strcmp(device, "cuda") == 0) how = "build it where nvcc is with `make cuda`, and put it beside the program";
    return pyr_runtime_set_error(rt, PYR_DEVICE, "device \"%s\": libpyramid_%s.so cannot be loaded; %s (%s)", device, device, how,
                                 why ? why : "no reason given");
  }
  pyr_device_open_fn open;
  *(void **)&open = dlsym(object, PYR_DEVICE_OPEN);
  if (!open)
    return pyr_runtime_set_error(rt, PYR_DEVICE, "device \"%s\": libpyramid_%s.so is no backend: build it again", device, device);
  return open(&host, rt, isa, be);
}
