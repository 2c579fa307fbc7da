/* foresee.c — what a pass over tokens would hold and send, of a model that need not be there.
 *
 * Nothing is worked out anew: the same functions count that lay out a prefill (pyr_forward_layout)
 * and a step, the kernels are asked for their scratch, of which the runtime says how much it was,
 * and sums over ranks say what they send (ranks.c). What is left to this file is how often:
 *
 *     a step of b tokens    a layer sums [b, width] once or twice; logits [b, vocab] are gathered;
 *                           one agreement before all
 *     a prompt              chunk after chunk, as a step of each, layer by layer; of the last layer
 *                           the last token goes on alone; an agreement before each layer, and
 *                           before each chunk of it
 *
 * Scores that plans of several ranks gather are left out: of a policy that ranks by attention some
 * heads' floats a candidate, against some widths of floats a token. */
#include "model/foresee.h"
#include "base/versioned.h"
#include "model/forward.h"

/* Two ranks of SmolLM2-135M, width 576, 30 layers, 49,152 ids; a step of one token:
 *
 *     60 sums of 576 floats       138,240 bytes, in 60 exchanges
 *     logits of 24,576 ids         98,304        1
 *     an agreement                      8        1
 *
 * which is what model:ranks() counts, to the byte. Of a prompt under a policy that gathers scores
 * it counts a few thousandths more.
 *
 * Bytes of the rank's own part of the logits of n tokens to each of the others. */
static int64_t logits_bytes(const pyr_model *model, int64_t n) {
  if (!model->ranks) return 0;
  return n * pyr_model_part(model)->vocab.count * (pyr_ranks_size(model->ranks) - 1)
      * (int64_t)sizeof(float);
}

/* Sums of n tokens of one layer. Two where the MLP reads what attention has added (Llama), one
 * where both halves begin at the same place (GPT-NeoX). */
static void add_layer(const pyr_model *model, int64_t n, int64_t *sent, int64_t *swaps) {
  const pyr_model_config *c = &model->config;
  pyr_traffic sum = pyr_ranks_sum_traffic(model->ranks, n * c->width),
      squares = pyr_ranks_sum_traffic(model->ranks, n);
  int64_t norms = c->qk_norm == PYR_QK_WIDTH ? 2 : 0, sums = pyr_forward_sums(c);
  *sent += sums * sum.sent + norms * squares.sent;
  *swaps += sums * sum.calls + norms * squares.calls;
}

/* Of three layers, a prompt of 700 tokens and a policy that leaves 400 of them behind the first:
 *
 *     layer 0   agree | agree, chunk of 512: sums | agree, chunk of 188: sums
 *     layer 1   agree | agree, chunk of 400: sums
 *     layer 2   agree | agree, chunk of 400, of which the last token is summed up
 *     end       agree, and the logits of one token
 *
 * as prefill.c goes. Where a rank's part of a sum is shorter by a float than its neighbour's, it
 * sends as much less: bytes are of this rank, swaps of all alike. */
static void foresee_traffic(const pyr_model *model, const pyr_foresight *what,
                            pyr_foreseen *out) {
  int layers = model->config.layers;
  int64_t agreement = (pyr_ranks_size(model->ranks) - 1) * (int64_t)sizeof(int64_t);
  if (!model->ranks) return;
  for (int layer = 0; layer < layers; layer++) {
    int64_t alive = what->computed ? what->computed[layer] : what->prompt;
    out->prompt_sent += agreement, out->prompt_swaps++;
    for (int64_t at = 0; at < alive; at += PYR_CHUNK) {
      int64_t n = pyr_min(PYR_CHUNK, alive - at);
      out->prompt_sent += agreement, out->prompt_swaps++;
      if (layer < layers - 1) add_layer(model, n, &out->prompt_sent, &out->prompt_swaps);
    }
    add_layer(model, what->batch, &out->step_sent, &out->step_swaps);
  }
  add_layer(model, 1, &out->prompt_sent, &out->prompt_swaps);      /* the last layer's last token */
  out->prompt_sent += logits_bytes(model, 1) + 2 * agreement, out->prompt_swaps += 3;
  out->step_sent += logits_bytes(model, what->batch) + agreement, out->step_swaps += 2;
}

/* One prompt is read at a time, whatever the batch, and sequences step together: a prefill's are of
 * a chunk and of the residual stream of the whole prompt, a step's of as many tokens as sequences.
 * Both are taken in turn, never at once.
 *
 * A step of 32 sequences of SmolLM2 has logits of 6 MiB, and nothing else that counts; a prompt of
 * 700 tokens has 10 MiB of a chunk and 1.5 of the stream.
 *
 * The activations by what they would be laid out as, and what the backend sets aside for them.
 *
 * Rows count for the kernels' scratch alone: the scores of a decode step are kept for all rows of a
 * lane, and all else is tiled. Activations grow with tokens, never with rows. Of a device that has
 * other kernels scratch is another; activations are the same, as it is the same layout that counts
 * them there. Weights that are interleaved or kept in a mapped file count in either case: what is
 * mapped is in memory once it has been read. */
static pyr_status foresee_pass(const pyr_model *model, const pyr_extent *extent, int64_t rows,
                               int64_t sequences, int masses, int64_t *bytes) {
  pyr_backend *be = pyr_runtime_backend(model->rt);
  pyr_forward f = { .model = model, .be = be };
  pyr_arena count = { 0 };
  pyr_work work = pyr_forward_work(model, extent->chunk, rows, sequences);
  size_t before = pyr_runtime_memory(model->rt);
  work.masses = masses;
  pyr_forward_layout(&f, extent, &count);
  PYR_TRY(pyr_ranks_reserve(model->ranks, extent->chunk * model->config.width));
  PYR_TRY(be->reserve(be, &work));
  *bytes = (int64_t)(count.used + pyr_runtime_memory(model->rt) - before);
  return PYR_OK;
}

/* Of a runtime that nothing has been computed with: what its kernels have set aside already is not
 * counted again, so that a second question, of another batch, takes a runtime of its own.
 *
 *     before       step of 32 sequences     prompt of 512 tokens
 *     0            + 3 MiB                  + 9 MiB        scratch: 3 of the step, 12 of the prompt
 *
 * The step first: scratch grows and never shrinks, so that what the prompt takes beyond it is added
 * to what the step has taken. */
pyr_status pyr_model_foresee(const pyr_model *model, const pyr_foresight *what,
                             pyr_foreseen *out) {
  pyr_foresight w;
  const char *fault = pyr_take_options(&w, sizeof w, sizeof w, what);
  if (!fault && (w.prompt < 1 || w.batch < 1 || w.rows < 0 || w.prompt > INT32_MAX
                 || w.batch > INT32_MAX || w.rows > INT32_MAX))
    fault = "a number of tokens is out of range";
  if (fault) return pyr_runtime_set_error(model->rt, PYR_ARGUMENT, "foresee: %s", fault);
  const pyr_model_config *c = &model->config;
  pyr_foreseen made = { .heads = c->heads, .kv_heads = c->kv_heads, .ff = c->ff,
                        .vocab = model->ranks ? pyr_model_part(model)->vocab.count : c->vocab };
  pyr_extent step = pyr_extent_of_step(w.batch, 0, false),
      prompt = pyr_extent_of_prompt(model, w.prompt, 1, false);
  int64_t scratch = 0, more = 0;
  size_t began = pyr_runtime_memory(model->rt);
  PYR_TRY(foresee_pass(model, &step, w.rows, w.batch, 0, &made.step_bytes));
  scratch = (int64_t)(pyr_runtime_memory(model->rt) - began);
  PYR_TRY(foresee_pass(model, &prompt, w.prompt, 1, w.masses ? PYR_MASSES : 0, &more));
  made.prompt_bytes = scratch + more;
  foresee_traffic(model, &w, &made);
  *out = made;
  return PYR_OK;
}

/* Weights are cut as binding cuts them, by the one table of roles (model.c). Of 9 heads over 3 K/V
 * heads on two ranks, k of the first has 64 rows of 192, and of the second 128:
 *
 *     a layer's k in f16, width 576     73,728 bytes    147,456 bytes */
uint64_t pyr_model_foresee_weight(const pyr_model *model, pyr_role role, int layer, int expert,
                                  int tied, pyr_dtype dtype) {
  return pyr_weight_bytes(model, role, layer, expert, tied != 0, dtype);
}
