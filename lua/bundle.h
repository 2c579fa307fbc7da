/* bundle.h — the texts packed into the library by scripts/maker/bundle_lua.lua, sorted by kind
 * and name. Constant data. */
#ifndef PYR_BUNDLE_H
#define PYR_BUNDLE_H

#include <stddef.h>

typedef struct pyr_bundle_entry {
  const char *kind;   /* "module", "policy", "script" or "text"; NULL ends the table */
  const char *name;   /* "pyramid.score", "snapkv", "generate", "serve/page/page.css" */
  const char *chunk;  /* what Lua calls it in messages: "@pyramid/score.lua" */
  size_t length;
  const char *text;   /* [length] */
} pyr_bundle_entry;

extern const pyr_bundle_entry pyr_bundle[];

#endif
