/* versioned.h — option structs of callers that were made with another version of pyramid.h.
 *
 * Each begins with `size_t size`, and grows at its end only:
 *
 *     caller's   size | a | b |             older: c is taken as zero
 *     library's  size | a | b | c |
 *     caller's   size | a | b | c | d |     newer: refused unless d is zero, as what it
 *                                             asks for would not be done
 *
 * Size 0 stands for the members of version 0.1, `first` bytes, however long the struct is by now.
 */
#ifndef PYR_VERSIONED_H
#define PYR_VERSIONED_H

#include "pyramid.h"

#include <string.h>

/* More than this is no struct of ours, but bytes that were never set; what lies behind is not
 * looked at. */
enum { PYR_OPTIONS_MOST = 4096 };

/* Fills *out, of `bytes`, from the caller's options (NULL: zeros). Returns NULL, or what is wrong
 * with them. */
static inline const char *pyr_take_options(void *out, size_t bytes, size_t first,
                                           const void *options) {
  size_t size = 0;
  memset(out, 0, bytes);
  if (options == NULL) return NULL;
  memcpy(&size, options, sizeof size);
  if (size == 0) size = first;
  if (size < sizeof size || size > PYR_OPTIONS_MOST)
    return "its member `size` is neither 0 nor sizeof: was the struct set to zero, and compiled "
           "with this library's pyramid.h?";
  memcpy(out, options, size < bytes ? size : bytes);
  memcpy(out, &bytes, sizeof bytes);
  for (size_t i = bytes; i < size; i++)
    if (((const unsigned char *)options)[i] != 0)
      return "they ask for something that this library is too old for (their struct is longer "
             "than its own, and not zero there)";
  return NULL;
}

#endif
