/* llogits.h — making logits objects, for lcache.c. */
#ifndef PYR_LLOGITS_H
#define PYR_LLOGITS_H

#include "lauxpyr.h"

/* Pushes a buffer for `count` times `vocab` floats and returns its memory. */
float *pyr_lua_new_logits_buffer(lua_State *L, int64_t count, int32_t vocab);
/* Pushes a logits object that views vector `index` of the buffer at stack index `buffer`. */
void pyr_lua_push_logits(lua_State *L, int buffer, int64_t index, int32_t vocab);

#endif
