/* plain.h — text and numbers as they are written in files, whatever the locale of the process.
 *
 * The C library reads and writes numbers, sorts and classifies characters by the process's locale,
 * which a host may set at any time: after setlocale(LC_ALL, "de_DE.UTF-8") 0.5 is printed as "0,5".
 * A thread, though, may have a locale of its own that comes first. So what must not depend on the
 * process's is done between these two, which cost a few nanoseconds, touch no other thread, and
 * nest:
 *
 *     locale_t outer = pyr_plain_enter();
 *     …
 *     pyr_plain_leave(outer);
 *
 * The C locale is a constant of the C library: nothing is allocated, and nothing need be freed. */
#ifndef PYR_PLAIN_H
#define PYR_PLAIN_H

#include <locale.h>
#include <stdlib.h>

static inline locale_t pyr_plain_enter(void) {
  locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
  return plain ? uselocale(plain) : (locale_t)0;
}

static inline void pyr_plain_leave(locale_t outer) {
  if (outer) uselocale(outer);
}

/* The number that a text begins with. */
static inline double pyr_plain_number(const char *text) {
  locale_t outer = pyr_plain_enter();
  double number = strtod(text, NULL);
  pyr_plain_leave(outer);
  return number;
}

#endif
