/* fingerprint.h — telling one model from another by a number: FNV-1a, the hash of saved caches as
 * well.
 *
 * It is no proof against somebody who wants to deceive; it is against taking the wrong file. */
#ifndef PYR_FINGERPRINT_H
#define PYR_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

#define PYR_FNV_START 0xcbf29ce484222325u

static inline uint64_t pyr_fnv(uint64_t hash, const void *data, size_t bytes) {
  const unsigned char *p = data;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}

/* The same of large data, from 64 pieces of 64 bytes that lie evenly in it, its first and last
 * bytes among them; data of at most 16 KiB is taken whole. What changes between the pieces only is
 * not seen: a fine-tuned model is another one everywhere, one whose single row was edited may pass
 * for the old. */
static inline uint64_t pyr_fnv_sample(uint64_t hash, const void *data, size_t bytes) {
  enum { WHOLE = 16 << 10, PIECES = 64, PIECE = 64 };
  if (bytes <= WHOLE) return pyr_fnv(hash, data, bytes);
  size_t step = (bytes - PIECE) / (PIECES - 1);
  for (size_t i = 0; i + 1 < PIECES; i++)
    hash = pyr_fnv(hash, (const char *)data + i * step, PIECE);
  return pyr_fnv(hash, (const char *)data + bytes - PIECE, PIECE);
}

/* Fingerprints that are added up come through this, so that what differs twice does not cancel out.
 */
static inline uint64_t pyr_fnv_mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

#endif
