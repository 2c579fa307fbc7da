/* arena.h — one block of memory for all parts of a piece of work.
 *
 * A function that lays parts out runs twice: first without a block, which counts, then on a block
 * of that size. So the size and the places can never disagree:
 *
 *     static void layout(work *w, pyr_arena *arena) {
 *       PYR_PART(arena, w->scores, rows);          PYR_PART(arena, w->chosen, 1);
 *     }
 *     pyr_arena count = { 0 };
 *     layout(&w, &count);                          count.used is the size, w's pointers are NULL
 *     pyr_arena arena = { be->alloc(be, count.used) };
 *     layout(&w, &arena);                          … now they point into the block
 *
 *       block  |scores ............|pad|chosen|pad|          each part begins a cache line
 *              0                       64·k       used
 *
 * The arena owns nothing: whoever allocates the block releases it. It does not care whether that is
 * host memory or a backend's, as it never reads or writes a part. */
#ifndef PYR_ARENA_H
#define PYR_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct pyr_arena { void *block; size_t used; } pyr_arena;

static inline void *pyr_arena_part(pyr_arena *arena, int64_t count, size_t size) {
  void *part = arena->block ? (char *)arena->block + arena->used : NULL;
  arena->used += ((size_t)count * size + 63) / 64 * 64;
  return part;
}

/* pointer = the place of `count` values of its type, or NULL while the arena only counts. */
#define PYR_PART(arena, pointer, count) \
  ((pointer) = pyr_arena_part(arena, count, sizeof *(pointer)))

#endif
