/* line.c — what the stages of a line tell each other of a cache: of the layers that are not its own
 * a stage has no rows, and knows how many there are, when plans are due, and what rows lie turned.
 *
 * Two stages of two layers each, after a prompt of 40 tokens of which the second layer keeps 30 and
 * the others all but ten fewer; `more` makes up for the rows that are elsewhere:
 *
 *     layer     0     1     2     3
 *     rows      40    30    30    30
 *     stage 0   40    30    0+30  0+30
 *     stage 1   0+40  0+30  30    30
 *
 * So that whatever depends on all layers (what fits the context, when the next plan is due) comes
 * out the same on all of them. Every step adds a row everywhere (pyr_cache_line_grow). */
#include "cache/cache.h"
#include "model/model.h"

/* Of one layer, as its own stage has it. */
typedef struct pyr_line_layer {
  pyr_layer_state state;
  int64_t rows;                    /* of its longest lane */
} pyr_line_layer;

size_t pyr_cache_line_bytes(const pyr_model *model) {
  return model->line ? (size_t)model->config.layers * sizeof(pyr_line_layer) : 0;
}

static int64_t longest_of(const pyr_cache *cache, int layer) {
  int64_t rows = 0, first = (int64_t)layer * cache->heads;
  for (int head = 0; head < cache->heads; head++)
    rows = pyr_max(rows, pyr_cache_lane_rows(cache, first + head));
  return rows + cache->states[layer].more;
}

/* Of 30 layers some 5 KB. They lie in the order of layers, as stages do. */
pyr_status pyr_cache_line_sync(pyr_cache *cache) {
  const pyr_model *model = cache->pool->model;
  pyr_line_layer *all = cache->line;
  size_t bytes[PYR_RANKS_MAX];
  if (!model->line) return PYR_OK;
  for (int stage = 0; stage < pyr_ranks_size(model->line); stage++)
    bytes[stage] = (size_t)model->stages[stage].count * sizeof *all;
  for (int layer = 0; layer < cache->layers; layer++)
    if (pyr_model_has(model, layer))
      all[layer] = (pyr_line_layer){ cache->states[layer], longest_of(cache, layer) };
  PYR_TRY(pyr_ranks_gather_known(model->line, all + model->own.first, bytes, all));
  for (int layer = 0; layer < cache->layers; layer++) {
    if (pyr_model_has(model, layer)) continue;
    cache->states[layer] = all[layer].state;
    cache->states[layer].more = all[layer].rows;
  }
  return PYR_OK;
}

void pyr_cache_line_grow(pyr_cache *cache, int64_t by) {
  const pyr_model *model = cache->pool->model;
  for (int layer = 0; layer < cache->layers && model->line; layer++)
    if (!pyr_model_has(model, layer)) cache->states[layer].more += by;
}

/* Of layer 5 stage 1 tells the others. */
pyr_status pyr_cache_line_tell(const pyr_cache *cache, int layer, int64_t *number) {
  const pyr_model *model = cache->pool->model;
  int64_t all[PYR_RANKS_MAX];
  if (!model->line) return PYR_OK;
  PYR_TRY(pyr_ranks_tell(model->line, number, 1, all));
  *number = all[pyr_model_stage_of(model, layer)];
  return PYR_OK;
}

pyr_status pyr_cache_line_sum(const pyr_cache *cache, int64_t *number) {
  const pyr_model *model = cache->pool->model;
  int64_t all[PYR_RANKS_MAX], sum = 0;
  if (!model->line) return PYR_OK;
  PYR_TRY(pyr_ranks_tell(model->line, number, 1, all));
  for (int stage = 0; stage < pyr_ranks_size(model->line); stage++) sum += all[stage];
  *number = sum;
  return PYR_OK;
}
