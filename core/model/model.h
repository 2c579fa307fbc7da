/* model.h — a bound model, as forward.c sees it.
 *
 * Owns: the checked configuration and every weight of one decoder. Does not own: the arithmetic
 * (forward.c, backend.h). After pyr_model_ready nothing in here changes, so caches of one model
 * share it freely. */
#ifndef PYR_MODEL_H
#define PYR_MODEL_H

#include "base/runtime.h"
#include "backend/op_args.h"
#include "ranks/part.h"
#include "ranks/ranks.h"

/* Matrices are pyr_tensor [out, in]; vectors are f32 in backend memory. What is optional is NULL
 * where absent, and is absent from all layers or from none. In bytes, of a layer with 576 wide
 * residuals, 9 query heads and 3 K/V heads of 64 values and 1,536 values in the MLP: q and o 576
 * * 576, k and v 192 * 576, gate, up and down 1,536 * 576 each; in all 3,538,944 values, of
 * which the MLP has three quarters. */
typedef struct pyr_layer {
  float *attn_norm;                 /* [width] */
  pyr_tensor q;                     /* [heads*head_dim, width] */
  pyr_tensor k, v;                  /* [kv_heads*head_dim, width] */
  float *q_bias;                    /* [heads*head_dim], optional */
  float *k_bias, *v_bias;           /* [kv_heads*head_dim], optional */
  float *q_norm, *k_norm;           /* as config.qk_norm says, optional: before RoPE */
  pyr_tensor o;                     /* [width, heads*head_dim] */
  float *o_bias;                    /* [width], optional */
  float *ffn_norm;                  /* [width] */
  pyr_tensor gate, up;              /* [ff, width] */
  pyr_tensor down;                  /* [width, ff] */
  /* those of switches; NULL or of rank 0 where a model has none */
  float *attn_norm_bias, *ffn_norm_bias;   /* [width] */
  float *attn_post_norm, *ffn_post_norm;   /* [width] */
  float *gate_bias, *up_bias;       /* [ff] */
  float *down_bias;                 /* [width] */
  float *sinks;                     /* [heads] */
  /* of a layer with experts, which has no gate, up and down of its own */
  pyr_tensor router;                /* [experts, width] f32 */
  float *router_bias, *router_correction;   /* [experts] */
  pyr_tensor shared_gate, shared_up;        /* [shared_ff, width] */
  pyr_tensor shared_down;           /* [width, shared_ff] */
  pyr_tensor shared_router;         /* [1, width] f32 */
  pyr_expert *experts;              /* host [config.experts]; NULL: a plain MLP */
  pyr_expert *table;                /* the same in the backend's memory, if that is its own */
} pyr_layer;

/* How a layer turns its q and k. */
typedef struct pyr_turn {
  const float *freq;                /* [dims/2], backend memory; NULL: it does not, and … */
  int32_t dims;                     /* … dims is 0, the gain 1 */
  pyr_rope_style style;
  float gain;
} pyr_turn;

struct pyr_model {
  pyr_runtime *rt;                  /* retained */
  pyr_model_config config;          /* range-checked; arrays are host copies owned here; window,
                                       turns and dense never NULL (zeros); scales that were 0 are
                                       1. Of several ranks: with the heads, the K/V heads and the
                                       widths of MLPs that are this rank's, … */
  pyr_model_config whole;           /* … and those of all of them */
  bool slides;                      /* some layer has a sliding window */
  pyr_ranks *ranks;                 /* those that share the layers; NULL: none do */
  pyr_portion *parts;                  /* [ranks] what each of them has; NULL where there is one */
  pyr_ranks *line;                  /* those that have other layers, by stages; NULL: none do */
  pyr_slice *stages;                /* [line] which layers each of them has; NULL likewise */
  pyr_slice own;                    /* this one's; all where there is no line. Of the others
                                       `layers` has no weights, and caches have no rows */
  float *rope_freq, *rope_second;   /* [rope_dims/2], backend memory; NULL where there is none */
  float *slopes;                    /* [heads], backend memory; or NULL */
  float scale;                      /* of scores: config.score_scale or 1/sqrt(head_dim) */
  pyr_tensor embed;                 /* [vocab, width] */
  pyr_tensor output;                /* [vocab, width]; when tied, embed's view, or its rows in the
                                       backend's order */
  float *out_norm, *out_norm_bias;  /* [width] */
  float *embed_norm, *embed_norm_bias;  /* [width], or NULL */
  pyr_tensor positions;             /* [context, width], or of rank 0 */
  float *output_bias;               /* [vocab], or NULL */
  pyr_layer *layers;                /* [config.layers] */
  pyr_expert *experts;              /* those of all layers, one after the other; or NULL */
  size_t experts_bytes;
  bool ready;                       /* set by pyr_model_ready; nothing may be bound afterwards */

  /* model.c's own */
  int refs;
  uint64_t bytes;                   /* of all weights, mapped or owned */
  int64_t done, expected;           /* values of matrices bound so far, and in all, for progress */
  struct pyr_owned *owned;          /* blocks to release */
  size_t owned_count, owned_room;
  pyr_file **files;                 /* retained because tensors point into them */
  size_t file_count, file_room;
  uint64_t print;                   /* of the weights that were copied; with those in mappings once
                                       it is `printed` */
  bool printed;
  uint64_t tokenizer;               /* fingerprint; 0: none */
  char name[160];                   /* for messages; "" if nobody gave one */
};

/* What this rank has, of several. */
static inline const pyr_portion *pyr_model_part(const pyr_model *model) {
  return &model->parts[pyr_ranks_rank(model->ranks)];
}
/* Whether what a sum over ranks is to have once is this rank's to add. */
static inline bool pyr_model_adds(const pyr_model *model) {
  return pyr_ranks_rank(model->ranks) == 0;
}

/* Whether this stage has the layer; whether it begins with the prompt, and ends with logits. */
static inline bool pyr_model_has(const pyr_model *model, int layer) {
  return layer >= model->own.first && layer < model->own.first + model->own.count;
}
static inline bool pyr_model_begins(const pyr_model *model) { return model->own.first == 0; }
static inline bool pyr_model_ends(const pyr_model *model) {
  return model->own.first + model->own.count == model->config.layers;
}
/* The stage that has a layer. */
static inline int pyr_model_stage_of(const pyr_model *model, int layer) {
  int stage = 0;
  while (model->line && layer >= model->stages[stage].first + model->stages[stage].count) stage++;
  return stage;
}
/* Those that must agree before a stage goes on: they share its layers. */
static inline pyr_status pyr_model_agree(const pyr_model *model, pyr_status status) {
  return model->line ? pyr_ranks_agree_in(model->ranks, status)
      : pyr_ranks_agree(model->rt, status);
}

/* Of layer 0 <= layer < config.layers. */
static inline pyr_turn pyr_model_turn(const pyr_model *model, int layer) {
  const pyr_model_config *c = &model->config;
  switch (c->turns[layer]) {
    case PYR_TURN_FIRST:
      return (pyr_turn){ model->rope_freq, c->rope_dims, c->rope_style, c->rope_gain };
    case PYR_TURN_SECOND:
      return (pyr_turn){ model->rope_second, c->rope_dims, c->rope_style, c->rope_second_gain };
    default: return (pyr_turn){ NULL, 0, c->rope_style, 1 };
  }
}

/* Bytes of a weight of this rank, were it bound; see pyr_model_foresee_weight. */
uint64_t pyr_weight_bytes(const pyr_model *model, pyr_role role, int layer, int expert, bool tied,
                          pyr_dtype dtype);

#endif
