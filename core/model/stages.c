/* stages.c — see stages.h. Messages are cut, as MPI counts bytes in an int. */
#include "model/stages.h"
#include "model/flight.h"

enum { PIECE = 1 << 26 };   /* floats of a message at most: 256 MiB */

int pyr_stages_deal(const double *cost, int count, double tail, int stages, int32_t *layers) {
  pyr_slice dealt[PYR_RANKS_MAX];
  if (stages < 1 || stages > PYR_RANKS_MAX || count < stages) return -1;
  pyr_layers_deal(cost, count, tail, stages, dealt);
  for (int s = 0; s < stages; s++) layers[s] = dealt[s].count;
  return 0;
}

/* From one stage to the next, in pieces. */
static pyr_status pass(const pyr_model *model, int from, float *x, int64_t n) {
  pyr_status status = PYR_OK;
  for (int64_t at = 0; at < n && status == PYR_OK; at += PIECE)
    status = pyr_ranks_pass(model->line, from, from + 1, x + at,
                            (size_t)pyr_min(PIECE, n - at) * sizeof *x, x + at);
  return status;
}

pyr_status pyr_stage_take(const pyr_model *model, float *x, int64_t n) {
  if (pyr_model_begins(model)) return PYR_OK;
  return pass(model, pyr_ranks_rank(model->line) - 1, x, n * model->config.width);
}

pyr_status pyr_stage_hand(const pyr_model *model, const float *x, int64_t n) {
  if (pyr_model_ends(model)) return PYR_OK;
  return pass(model, pyr_ranks_rank(model->line), (float *)x, n * model->config.width);
}

/* Two numbers first: how it went, and how many tokens there are. */
pyr_status pyr_stage_receive(const pyr_model *model, float *x, int32_t *pos, int64_t most,
                             int64_t *n) {
  int64_t word[2] = { 0 };
  if (pyr_model_begins(model)) return PYR_OK;
  int from = pyr_ranks_rank(model->line) - 1;
  PYR_TRY(pyr_ranks_pass(model->line, from, from + 1, NULL, sizeof word, word));
  if (word[0] != PYR_OK) return (pyr_status)word[0];   /* why, that stage says when all agree */
  if (word[1] < 1 || word[1] > most)
    return pyr_runtime_set_error(model->rt, PYR_DEVICE, "ranks: %lld tokens came where %lld at "
                                 "most were waited for", (long long)word[1], (long long)most);
  *n = word[1];
  PYR_TRY(pyr_ranks_pass(model->line, from, from + 1, NULL, (size_t)*n * sizeof *pos, pos));
  return pyr_stage_take(model, x, *n);
}

pyr_status pyr_stage_settle(const pyr_model *model, pyr_status status) {
  return model->line ? pyr_ranks_agree_in(model->ranks, status) : status;
}

pyr_status pyr_stage_send(const pyr_model *model, pyr_status status, const float *x,
                          const int32_t *pos, int64_t n) {
  int64_t word[2] = { status, n };
  if (pyr_model_ends(model)) return status;
  int from = pyr_ranks_rank(model->line);
  pyr_status sent = pyr_ranks_pass(model->line, from, from + 1, word, sizeof word, NULL);
  if (status != PYR_OK || sent != PYR_OK) return status != PYR_OK ? status : sent;
  PYR_TRY(pyr_ranks_pass(model->line, from, from + 1, pos, (size_t)n * sizeof *pos, NULL));
  return pyr_stage_hand(model, x, n);
}

/* Of 32 tokens and 49,152 ids 6 MiB to each of the others. */
static pyr_status spread(const pyr_model *model, int from, float *out, int64_t n) {
  for (int64_t at = 0; at < n && model->line; at += PIECE) {
    size_t bytes[PYR_RANKS_MAX] = { 0 };
    bytes[from] = (size_t)pyr_min(PIECE, n - at) * sizeof *out;
    PYR_TRY(pyr_ranks_gather_known(model->line, out + at, bytes, out + at));
  }
  return PYR_OK;
}

pyr_status pyr_stage_spread(const pyr_model *model, float *out, int64_t n) {
  return spread(model, pyr_ranks_size(model->line) - 1, out, n);
}
pyr_status pyr_stage_spread_first(const pyr_model *model, float *out, int64_t n) {
  return spread(model, 0, out, n);
}
