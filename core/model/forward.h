/* forward.h — the arithmetic of layers, as prefill.c and step.c call it.
 *
 * Owns: what a pass over tokens holds (pyr_forward, laid out in an arena of the caller's), and the
 * order of operations in a layer. Does not own: which tokens go through which layer, cache rows'
 * memory, plans. All of it is backend memory unless it says "host". */
#ifndef PYR_FORWARD_H
#define PYR_FORWARD_H

#include "base/arena.h"
#include "cache/cache.h"
#include "model/model.h"

/* Tokens of a chunk: enough that products are bound by arithmetic and not by reading weights,
 * and few enough that activations stay small. Of width 576, 9 heads of 64 and an MLP of 1,536, a
 * chunk takes 512 * (576 + 576 + 2 * 192 + 576 + 9 + 2 * 1,536) * 4 bytes, 10 MiB; the residual
 * stream, all tokens of it, 2,304 bytes a token. */
enum { PYR_CHUNK = 512 };

/* Sums of a chunk's attention that room is made for: a score's, and what is tracked for decode.
 * More are made one after the other. */
enum { PYR_MASSES = 2 };

typedef struct pyr_forward {       /* the activations of one chunk, backend memory */
  const pyr_model *model;
  pyr_backend *be;
  pyr_layout layout;
  float *x;                        /* [tokens, width] the residual stream */
  float *h;                        /* [chunk, width] normed */
  float *half;                     /* [chunk, width] what half a layer adds, where it is normed or
                                      scaled first */
  float *q;                        /* [chunk, heads, head_dim] */
  float *k, *v;                    /* [chunk, kv_heads, head_dim] */
  float *att;                      /* [chunk, heads, head_dim] */
  float *lse;                      /* [chunk, heads] */
  float *low[2], *low_lse[2];      /* likewise, of lower tiers: of all so far, and of the next */
  float *learned;                  /* [chunk, kv_heads] learned scores, where they are tracked */
  float *gate, *up;                /* [chunk, ff], of plain or shared MLPs */
  float *router;                   /* [chunk, experts] logits of a token's router, … */
  int32_t *chosen;                 /* [chunk, experts_used] … what it chooses, and … */
  float *weights;                  /* [chunk, experts_used] … with what weights */
  float *share;                    /* [chunk] logits of how much of the shared expert there is */
  float *logits;                   /* [logit_rows, vocab] */
  float *parts;                    /* the same of several ranks, a rank's ids after another's */
  float *squares;                  /* [chunk] of several ranks: sums over a norm's width */
  int32_t *ids, *pos;              /* [tokens] */
  int32_t *rot;  /* [turned] positions that q and k are rotated to, where they are not `pos` */
  int32_t *faults;                 /* [faults] by plan: 1 where a score was no number */
  int exact;                       /* PYR_LINEAR_EXACT in a decode step, else 0 */
} pyr_forward;

/* What the activations are of: all tokens, those of a chunk, those whose logits are wanted. */
typedef struct pyr_extent {
  int64_t tokens, chunk, logit_rows, turned, faults;
  bool tiers;                      /* caches hold rows in lower tiers */
} pyr_extent;

/* Of a prefill of n tokens, whose logits are wanted of so many at a time, and of a step. */
pyr_extent pyr_extent_of_prompt(const pyr_model *model, int64_t n, int64_t logit_rows, bool tiers);
pyr_extent pyr_extent_of_step(int64_t tokens, int64_t turned, bool tiers);
/* Sums over ranks that a layer takes of each token. */
int pyr_forward_sums(const pyr_model_config *c);
/* Counts, and then cuts (arena.h), what the extent says; parts that a pass has no use for have no
 * length. */
void pyr_forward_layout(pyr_forward *f, const pyr_extent *e, pyr_arena *arena);
/* The bounds by which a backend reserves its scratch, for all layers of a pass. */
pyr_work pyr_forward_work(const pyr_model *model, int64_t tokens, int64_t rows, int64_t sequences);

/* ids [n] -> out [n, width], as they enter the first layer but for learned positions, … */
pyr_status pyr_forward_embed(pyr_backend *be, const pyr_model *model, float *out,
                             const int32_t *ids, int64_t n);
/* … which this adds to f->x [n, width]; pos [n]. */
pyr_status pyr_forward_add_positions(pyr_forward *f, const int32_t *pos, int64_t n);
/* x [n, width] -> f->q (where wanted), f->k, f->v; q and k rotated to `rot` [n]. *in [n, width]:
 * what the three were made from, until the layer is finished. */
pyr_status pyr_layer_project(pyr_forward *f, int layer, const float *x, const int32_t *rot,
                             int64_t n, bool queries, const float **in);
/* x [n, width] += the ends of both halves, for tokens from `skip` on of the n that were projected
 * last; f->att holds their attention. */
pyr_status pyr_layer_finish(pyr_forward *f, const pyr_layer *l, float *x, int64_t skip,
                            int64_t n);
/* x [n, width] -> f->h [n, width], what logits are made of; … -> f->logits [n, vocab]. */
pyr_status pyr_forward_states(pyr_forward *f, const float *x, int64_t n);
pyr_status pyr_forward_logits(pyr_forward *f, const float *x, int64_t n);

/* Host [cache->heads]: views of a layer's lanes, made anew whenever rows were reserved or moved;
 * and n rows more in lanes and views, once they are stored. */
void pyr_layer_views(const pyr_cache *cache, int layer, pyr_lane_view *views);
void pyr_layer_add_rows(pyr_cache *cache, int layer, pyr_lane_view *views, int64_t n);

/* Attention of `count` calls to all tiers: calls[i] is as the backend wants it for the hot lanes of
 * caches[i / each], lse included, and its out and lse become those over all rows. Calls lie one
 * after the other in f->att and f->lse. tracks [count]: those that calls point to, whose `more` is
 * set; NULL: none. readings [count]: what calls read of lower tiers, instead of all rows, where one
 * is not NULL; NULL: none. lower: host [count], views: host [count * kv_heads]; scratch. */
pyr_status pyr_layer_attend(const pyr_forward *f, int layer, const pyr_attention *calls,
                            pyr_cache *const *caches, int each, int count, pyr_track *tracks,
                            const pyr_reading *const *readings, pyr_attention *lower,
                            pyr_lane_view *views);

/* Before anything is touched: PYR_ARGUMENT for ids outside of the vocabulary, PYR_CONTEXT for n
 * more tokens than the context has room for. */
pyr_status pyr_forward_check_ids(pyr_runtime *rt, const pyr_model_config *c, const int32_t *ids,
                                 int64_t n);
pyr_status pyr_forward_check_room(const pyr_cache *cache, int64_t n);

/* Remembers how many rows each lane holds, and drops those that came since. */
void pyr_forward_mark(pyr_cache *cache);
void pyr_forward_drop(pyr_cache *cache);

#endif
