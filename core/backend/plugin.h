/* plugin.h — backends that live in shared objects of their own and are opened at run time: "cuda"
 * and "emulated"; and how any such object is found.
 *
 * Such an object exports one function, PYR_DEVICE_OPEN, of type pyr_device_open_fn. It calls
 * nothing of the core by name, as the core may be linked into a program that exports nothing: what
 * it needs comes in a table. */
#ifndef PYR_DEVICE_H
#define PYR_DEVICE_H

#include "backend/backend.h"
#include "base/runtime.h"

#define PYR_DEVICE_OPEN "pyr_device_open"

typedef struct pyr_device_host {
  int version;
  void *(*alloc)(pyr_runtime *rt, size_t size);  /* host memory, as in runtime.h */
  void (*release)(pyr_runtime *rt, void *ptr, size_t size);
  bool (*charge)(pyr_runtime *rt, size_t size);  /* counts device memory; false: over the limit */
  void (*discharge)(pyr_runtime *rt, size_t size);
  pyr_status (*set_error)(pyr_runtime *rt, pyr_status status, const char *format, ...);
} pyr_device_host;

/* What both sides must agree on, in one number: the sizes of both tables, of what the operations
 * are told and tell (each struct of op_args.h), and how many dtypes there are. Objects of another
 * number are refused. */
#define PYR_MIX(hash, size) ((hash) * 33u + (unsigned)(size))
#define PYR_MIX4(hash, a, b, c, d) \
  PYR_MIX(PYR_MIX(PYR_MIX(PYR_MIX(hash, sizeof(a)), sizeof(b)), sizeof(c)), sizeof(d))
enum {
  PYR_DEVICE_VERSION = (int)(
    PYR_MIX(PYR_MIX(PYR_MIX(PYR_MIX(PYR_MIX(PYR_MIX(PYR_MIX4(PYR_MIX4(PYR_MIX4(PYR_MIX4(PYR_MIX4(
      PYR_MIX4(PYR_MIX(5381u, PYR_DTYPES),
      pyr_backend, pyr_device_host, pyr_lane_view, pyr_page_list),
      pyr_layout, pyr_work, pyr_weighting, pyr_track),
      pyr_attention, pyr_append, pyr_range, pyr_mass),
      pyr_segment, pyr_choice, pyr_moments, pyr_change),
      pyr_pick, pyr_facts, pyr_step_counts, pyr_way_counts),
      pyr_norm, pyr_route, pyr_expert, pyr_experts), sizeof(pyr_masses)), sizeof(pyr_mlp)),
      sizeof(pyr_along)), sizeof(pyr_digests_of)), sizeof(pyr_reading)),
      sizeof(pyr_lane_entry)) & 0x7fffffffu)
};

/* Fills *be. PYR_DEVICE with a message if there is no such device, or it fails. `isa`: NULL, or
 * "bf16" for products of many tokens with operands rounded to 16 bits. The host table outlives the
 * backend. */
typedef pyr_status (*pyr_device_open_fn)(const pyr_device_host *host, pyr_runtime *rt,
                                         const char *isa, struct pyr_backend *be);

bool pyr_device_known(const char *device);   /* "cuda" and "emulated" */

/* What `symbol` is in libpyramid_<name>.so, which stays loaded. PYR_DEVICE: the message begins with
 * `label`, and says `how` to come by the object. */
pyr_status pyr_plugin_open(pyr_runtime *rt, const char *label, const char *name,
                           const char *symbol, const char *how, void **out);

/* Opens the backend of a known device. PYR_DEVICE with a message that says what is missing and what
 * to do. The object stays loaded until the process ends, as drivers want it. */
pyr_status pyr_device_backend_open(pyr_runtime *rt, const char *device, const char *isa,
                                   struct pyr_backend *be);

#endif
