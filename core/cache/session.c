/* session.c — a cache in a file: what it keeps, byte for byte, so that a prompt once read need not
 * be read again.
 *
 * Little-endian, in order:
 *   header   magic "PYRCACHE", u32 version, u32 byte order mark, then what it must be loaded into
 *            (layers, kv heads, head_dim, dtype, hash of its arithmetic, fingerprints of weights
 *            and tokenizer,
 *            the model's name for messages) and the counters (tokens, prompt, computed, evicted)
 *   layers   for each: the trigger's numbers and the decode state
 *   lanes    for each: rows, whether a history follows, positions, history, in a compacted layer
 *            the positions that keys came to, then page by page the K rows, the V rows and, in a
 *            compacted layer, the K rows as they came; where pages are packed, before that the
 *            lane's frame (rowbits.h) and for each page a byte, 1 if it is
 *   tiers    version 8 alone: u64 how many lie below the hot one, for each layer u64 how many rows
 *            its trigger recalls, then for each tier u64 which it is and its dtype (dtype_of), and
 *            its lanes, as above
 *   ids      u64 how many tokens are known, from the first on (all, or none), and i32 the id of
 *            each
 *   note     u64 length and as many bytes: a text that the saver wanted kept with it
 *   check    u64 FNV-1a of all bytes before it
 * Version 8 has tiers, and is written of caches that have some alone; version 7 has ids. Versions 5
 * and 6 are those without ids, and are read; version 5 knows what steps read (pyr_read); version 4
 * knows whose it is, version 3 keeps keys as they came in compacted layers, which version 2 did
 * not: its keys would go on wearing out. Files older than version 5 are refused: nobody can tell
 * what model those before version 4 came from. Nothing read is believed before it is checked:
 * counts against the file's size, positions against their order, the sum against the bytes. A file
 * is written beside its destination and put in its place (disk.h), so that a failed save loses
 * nothing, and of two savers one comes last. */
#include "cache/cache.h"
#include "base/disk.h"
#include "base/rowbits.h"
#include "base/fingerprint.h"
#include "model/model.h"
#include "policy/ranked.h"
#include "policy/score.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Byte by byte, of 2 layers with one K/V head, rows of 64 values in f16 (128 bytes), 40 rows in
 * the first lane and 24 in the second, no history, nothing compacted, no note:
 *
 *         0   header              256      magic 8, version and order 8, shape 16, hashes 32,
 *                                          counters 32, name 160
 *       256   state of layer 0    144      18 numbers of 8 bytes
 *       400   state of layer 1    144
 *       544   lane 0: 40, 0        16      rows, and whether a history follows
 *       560   positions           160      40 * 4
 *       720   page 0: K          4096      32 * 128
 *      4816   page 0: V          4096
 *      8912   page 1: K          1024      8 * 128: only rows that are there
 *      9936   page 1: V          1024
 *     10960   lane 1: 24, 0        16
 *     10976   positions            96
 *     11072   page 0: K, V       6144      2 * 24 * 128
 *     17216   ids: 40             168      8 and 40 * 4
 *     17384   length of the note    8      0
 *     17392   check                 8      FNV-1a of bytes 0 to 17391
 *     17400   end
 *
 * Beside positions and rows there are 16 bytes a lane, 144 a layer, 4 a token and 280 a file.
 * Digests of pages are not among them: they are made of the keys again. */
enum { OLDEST_VERSION = 5, IDS_SINCE = 7, PYR_CACHE_VERSION = 7, PYR_CACHE_TIERED = 8,
       PYR_CACHE_ORDER = 0x01020304,
       NOTE_MOST = 64 << 20 /* bytes: any conversation's messages */ };
static const char cache_magic[8] = { 'P', 'Y', 'R', 'C', 'A', 'C', 'H', 'E' };

/* Written as it lies in memory: its members leave no gaps, 256 bytes in all. */
typedef struct pyr_cache_header {
  char magic[8];
  uint32_t version, order;
  int32_t layers, heads, head_dim, dtype;   /* dtype, and the bits of packed pages (dtype_of) */
  uint64_t arithmetic;             /* hash of the frequencies, as rows are stored rotated, and of
                                      switches */
  uint64_t policy;                 /* hash of the policy's name: the triggers are its */
  uint64_t weights, tokenizer;     /* fingerprints; tokenizer 0: none */
  int64_t tokens, prompt, computed, evicted;
  char name[160];                  /* of the model, in UTF-8, filled up with zeros */
} pyr_cache_header;

typedef struct pyr_stream {
  FILE *file;                      /* reading */
  pyr_output *out;                 /* writing */
  char *memory;                    /* writing, of a rank that another writes for: … */
  size_t used, room;               /* … so much of it */
  const char *path;
  pyr_runtime *rt;
  uint64_t hash;
  uint64_t left;                   /* reading: bytes before the check sum */
} pyr_stream;

/* The check is taken along as bytes go out, so that nothing is read twice; likewise in `get`. */
static pyr_status put(pyr_stream *s, const void *data, size_t bytes) {
  char why[PYR_WHY_BYTES];
  if (s->memory) {
    if (bytes > s->room - s->used)
      return pyr_runtime_set_error(s->rt, PYR_MEMORY, "%s: a lane is longer than its room",
                                   s->path);
    if (bytes) memcpy(s->memory + s->used, data, bytes);
    s->used += bytes;
    return PYR_OK;
  }
  s->hash = pyr_fnv(s->hash, data, bytes);
  return pyr_output_write(s->out, data, bytes, why) ? PYR_OK
      : pyr_runtime_set_error(s->rt, pyr_disk_status(), "%s", why);
}

/* Never reads into the check: `left` is what lies before it. So a file that ends early is
 * noticed in the field that it ends in, and one that is longer at the end of the note. */
static pyr_status get(pyr_stream *s, void *data, size_t bytes, const char *field) {
  if (bytes > s->left || (bytes && fread(data, 1, bytes, s->file) != bytes))
    return pyr_runtime_set_error(s->rt, PYR_FORMAT, "%s: truncated in %s", s->path, field);
  s->left -= bytes;
  s->hash = pyr_fnv(s->hash, data, bytes);
  return PYR_OK;
}

/* Rows are stored rotated: under other frequencies, or another gain, they would mean something
 * else. Where all layers turn by the first table, only that is hashed: so files of models without
 * further tables, the oldest, go on to load. */
static uint64_t rope_hash(const pyr_model *model) {
  const pyr_model_config *c = &model->config;
  size_t bytes = (size_t)(c->rope_dims / 2) * sizeof(float);
  uint64_t hash = PYR_FNV_START;
  bool all_first = true;
  for (int layer = 0; layer < c->layers; layer++) all_first &= c->turns[layer] == PYR_TURN_FIRST;
  if (c->rope_freq) hash = pyr_fnv(hash, c->rope_freq, bytes);
  hash = pyr_fnv(hash, &c->rope_gain, sizeof c->rope_gain);
  if (all_first) return hash;
  hash = pyr_fnv(hash, c->turns, (size_t)c->layers * sizeof *c->turns);
  if (c->rope_second) hash = pyr_fnv(hash, c->rope_second, bytes);
  return pyr_fnv(hash, &c->rope_second_gain, sizeof c->rope_second_gain);
}

/* What the same weights would be other models by: switches, as numbers that are 0 where Llama has
 * none of them, windows and slopes. Of a Llama nothing is mixed in, so that its files, the oldest,
 * go on to load. */
static uint64_t switches_hash(const pyr_model *model, uint64_t hash) {
  const pyr_model_config *c = &model->config;
  bool own_scale = model->scale != 1.0f / sqrtf((float)c->head_dim), any = c->slopes != NULL;
  const float numbers[] = {
    (float)c->norm, c->norm_offset, (float)c->norm_place, (float)c->qk_norm, (float)c->residual,
    (float)c->activation, c->activation_limit, (float)c->plain_mlp, (float)c->positions,
    c->embed_scale - 1, c->residual_scale - 1, c->logit_scale - 1, own_scale ? model->scale : 0,
    c->score_cap, c->logit_cap, c->temper, (float)c->temper_length, (float)c->experts_used,
    (float)c->router, (float)c->router_renormalise, c->router_scale - 1, (float)c->groups,
    (float)c->groups_used,
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) any |= numbers[i] != 0;
  for (int layer = 0; layer < c->layers; layer++) any |= c->window[layer] != 0;
  if (!any) return hash;
  hash = pyr_fnv(hash, numbers, sizeof numbers);
  hash = pyr_fnv(hash, &c->norm_eps, sizeof c->norm_eps);
  hash = pyr_fnv(hash, c->window, (size_t)c->layers * sizeof *c->window);
  c = &model->whole;               /* the slopes of all heads, of whatever rank */
  return c->slopes ? pyr_fnv(hash, c->slopes, (size_t)c->heads * sizeof *c->slopes) : hash;
}

/* By its name, as what it computes cannot be compared. */
static uint64_t name_hash(const pyr_policy *policy) {
  const char *name = policy->name ? policy->name : "";
  return pyr_fnv(PYR_FNV_START, name, strlen(name));
}

/* 0 where nothing ever fires and steps read all: such a file may go on under any policy that does
 * not either. */
static uint64_t policy_hash(const pyr_cache *cache) {
  bool acts = cache->policy.decode && cache->policy.trigger;
  for (int layer = 0; layer < cache->layers; layer++)
    acts = acts || cache->states[layer].read.rows > 0;
  return acts ? name_hash(&cache->policy) : 0;
}

/* q4 keys and values over f16: 1 + 2 * 256 + 2 * 4096. Of caches that pack nothing it is the
 * dtype's number, as in files of builds that knew no packing, which refuse others by it. */
static int32_t dtype_of(pyr_layout layout) {
  return (int32_t)layout.dtype + (int32_t)layout.k * 256 + (int32_t)layout.v * 4096;
}

/* Zeroed first, so that no byte of the file is left to chance and equal caches make equal files. */
static void fill_header(const pyr_cache *cache, pyr_cache_header *h) {
  pyr_model *model = cache->pool->model;
  memset(h, 0, sizeof *h);
  memcpy(h->magic, cache_magic, sizeof h->magic);
  h->version = cache->below ? PYR_CACHE_TIERED : PYR_CACHE_VERSION;
  h->order = PYR_CACHE_ORDER;
  h->layers = cache->layers;
  h->heads = model->whole.kv_heads;
  h->head_dim = cache->pool->layout.head_dim;
  h->dtype = dtype_of(cache->pool->layout);
  h->arithmetic = switches_hash(model, rope_hash(model));
  h->weights = pyr_model_fingerprint(model);
  h->tokenizer = model->tokenizer;
  memcpy(h->name, model->name, sizeof h->name);
  h->policy = policy_hash(cache);
  h->tokens = cache->tokens;
  h->prompt = cache->prompt;
  h->computed = cache->computed;
  h->evicted = pyr_cache_evicted(cache);
}

enum { STATE = 18 };   /* a layer's state as so many 64-bit numbers; the ramp or decay travels as
                          its bits */

/* The order is the file's: [0..2] every, over, window; [3] once; [4..8] the tracked signal, its
 * number x by its bits; [9..13] the decode state; [14..17] what
 * steps read. */
static void pack_state(const pyr_layer_state *state, int64_t out[STATE]) {
  const pyr_trigger *t = &state->trigger;
  uint32_t bits;
  memcpy(&bits, &t->track.x, sizeof bits);
  int64_t numbers[STATE] = { t->every, t->over, t->window, t->once, t->track.code, t->track.a,
                             t->track.b, t->track.n, bits, state->unranked, state->since,
                                 state->past, state->compact, state->turned, state->read.rows,
                                     state->read.first, state->read.last,
                                         (int64_t)state->read.by };
  memcpy(out, numbers, sizeof numbers);
}

/* Numbers have been checked against their types (load_state), so nothing is cut off. */
static void unpack_state(const int64_t in[STATE], pyr_layer_state *state) {
  uint32_t bits = (uint32_t)in[8];
  pyr_trigger *t = &state->trigger;
  memset(state, 0, sizeof *state);
  t->every = in[0];
  t->over = in[1];
  t->window = in[2];
  t->once = (int32_t)in[3];
  t->track = (pyr_score_op){ (uint8_t)in[4], (uint8_t)in[5], (uint8_t)in[6], (int32_t)in[7], 0.0f };
  memcpy(&t->track.x, &bits, sizeof bits);
  state->unranked = in[9];
  state->since = in[10];
  state->past = in[11];
  state->compact = in[12] != 0;
  state->turned = in[13];
  state->read = (pyr_read){ in[14], in[15], in[16], (pyr_digest)in[17] };
}

/* ---- save ------------------------------------------------------------------------------------ */

/* A row's bytes in a plane, and where the plane begins: of one page of a lane. */
typedef struct planes { int count; size_t row[3], at[3], bytes; } planes;

static planes planes_of(const pyr_cache *cache, bool packed, bool wide) {
  pyr_layout layout = cache->pool->layout;
  planes p = { .count = wide ? 3 : 2, .bytes = pyr_layout_page_bytes(layout, packed, wide) };
  for (int i = 0; i < p.count; i++) {
    p.row[i] = pyr_plane_row_bytes(layout, packed, (pyr_plane)i);
    p.at[i] = pyr_plane_at(layout, packed, (pyr_plane)i);
  }
  return p;
}

/* Any page, of whatever kind, fits; those of tiers below, too. */
static size_t largest_page(const pyr_pool *pool) {
  size_t most = 0;
  for (const pyr_pool *p = pool; p; p = p->below)
    for (int kind = 0; kind < PYR_PAGE_KINDS; kind++)
      if (p->page_bytes[kind] > most) most = p->page_bytes[kind];
  return most;
}

/* Whether a lane's frame follows. A lane of a tier below learns what queries need before it has a
 * row. */
static bool has_frame(const pyr_cache *cache, int64_t rows) {
  return pyr_layout_packs(cache->pool->layout) && (rows > 0 || cache->pool->top);
}

/* Where pages are packed: what they are packed by, and which are. Of a cache that has read nothing
 * lanes below have no frame yet, and one of zeros is saved; `buffer` holds a page, which is larger.
 * */
static pyr_status save_frame(pyr_stream *s, const pyr_lane *lane, int32_t head_dim, char *buffer) {
  const pyr_frame *frame = lane->frame;
  if (!frame) {
    pyr_frame none = { .head_dim = head_dim };
    memset(buffer, 0, pyr_frame_bytes(head_dim));
    memcpy(buffer, &none, sizeof none);
    return put(s, buffer, pyr_frame_bytes(head_dim));
  }
  PYR_TRY(put(s, frame, pyr_frame_bytes(head_dim)));
  return put(s, lane->packed, (size_t)(lane->rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS);
}

/* The rows of one plane (K or V) of a page lie together; `buffer` holds a page. K comes first, n
 * rows of it, and V, n rows: in memory V begins PYR_PAGE_ROWS rows behind K, whether the page is
 * full or not. Bounded by one page and the numbers of one lane, however long it is. */
static pyr_status save_lane(pyr_stream *s, const pyr_cache *cache, const pyr_lane *lane,
                            char *buffer, void *rows_buffer, const pyr_layer_state *state) {
  bool compact = state->compact;
  const int32_t *born = rows_buffer;
  pyr_backend *be = cache->pool->be;
  size_t used = (size_t)lane->rows * 4;
  int64_t counts[2] = { lane->rows, lane->history != NULL };
  pyr_status status = put(s, counts, sizeof counts);
  if (status == PYR_OK && used) status = be->download(be, rows_buffer, lane->positions, used);
  if (status == PYR_OK) status = put(s, rows_buffer, used);
  if (status == PYR_OK && lane->history) {
    if (used) status = be->download(be, rows_buffer, lane->history, used);
    if (status == PYR_OK) status = put(s, rows_buffer, used);
  }
  if (status == PYR_OK && compact) {
    if (used) status = be->download(be, rows_buffer, lane->born, used);
    for (int64_t i = state->turned; i < lane->rows; i++) ((int32_t *)rows_buffer)[i] = (int32_t)i;
    if (status == PYR_OK) status = put(s, rows_buffer, used);
  }
  if (status == PYR_OK && has_frame(cache, lane->rows))
    status = save_frame(s, lane, cache->pool->layout.head_dim, buffer);
  for (int64_t at = 0; at < lane->rows && status == PYR_OK; at += PYR_PAGE_ROWS) {
    int64_t n = lane->rows - at < PYR_PAGE_ROWS ? lane->rows - at : PYR_PAGE_ROWS;
    planes p = planes_of(cache, lane->packed && lane->packed[at / PYR_PAGE_ROWS], compact);
    status = be->download(be, buffer, lane->data[at / PYR_PAGE_ROWS], p.bytes);
    /* a key that was not turned lies as it came */
    for (int64_t i = 0; i < n && status == PYR_OK && compact; i++)
      if (born[at + i] == at + i)
        memcpy(buffer + p.at[2] + (size_t)i * p.row[0], buffer + (size_t)i * p.row[0], p.row[0]);
    for (int plane = 0; plane < p.count && status == PYR_OK; plane++)
      status = put(s, buffer + p.at[plane], (size_t)n * p.row[plane]);
  }
  return status;
}

static const pyr_layer_state plain_state = { .compact = false };   /* of lanes below the hot ones */

static const pyr_layer_state *state_of(const pyr_cache *hot, const pyr_cache *cache, int layer) {
  return cache == hot ? &hot->states[layer] : &plain_state;
}

/* Behind rows and tiers; a cache whose first tokens are not known saves none. */
static pyr_status save_ids(pyr_stream *s, const pyr_cache *cache) {
  bool whole = pyr_ids_whole(cache->ids, cache->tokens);
  uint64_t count = whole ? (uint64_t)cache->tokens : 0;
  PYR_TRY(put(s, &count, sizeof count));
  return count ? put(s, cache->ids->host, (size_t)count * sizeof *cache->ids->host) : PYR_OK;
}

/* Of several ranks, of all their lanes, a copy counting once. */
static pyr_status sum_evicted(const pyr_cache *cache, int64_t *evicted) {
  const pyr_model *model = cache->pool->model;
  int64_t all[PYR_RANKS_MAX];
  if (model->ranks) {
    PYR_TRY(pyr_ranks_tell(model->ranks, evicted, 1, all));
    *evicted = 0;
    for (int r = 0; r < pyr_ranks_size(model->ranks); r++)
      *evicted += model->parts[r].copy == 0 ? all[r] : 0;
  }
  return pyr_cache_line_sum(cache, evicted);
}

/* Of a K/V head on two ranks each copy tracks what its own query heads gave: .3 (2 heads) and .6
 * (1) are .4 of the head, which is what the file has. The positions and rows of both are the same.
 *
 * What copies of a lane were given becomes what its head was given, while it is written. */
static pyr_status save_whole(pyr_stream *s, const pyr_cache *hot, const pyr_cache *cache,
                             int layer, int own, bool teller, char *buffer, void *rows_buffer) {
  pyr_lane lane = *pyr_cache_lane(cache, layer, own);
  size_t bytes = (size_t)lane.rows * sizeof(float);
  float *whole = NULL;
  pyr_status status = PYR_OK;
  const pyr_model *model = cache->pool->model;
  if (lane.history && bytes && model->ranks && pyr_model_part(model)->copies > 1) {
    const pyr_set set = { cache, layer, false, &hot->states[layer].trigger.track };
    whole = pyr_alloc(s->rt, bytes);
    if (!whole) return pyr_nomem(s->rt, bytes, "saving a cache");
    status = pyr_reduce_heads(&set, PYR_OF_HISTORY, whole, lane.history, 1, lane.rows, lane.rows,
                              PYR_MEAN, 1.0f);
    lane.history = whole;
  }
  if (status == PYR_OK && teller)
    status = save_lane(s, cache, &lane, buffer, rows_buffer, state_of(hot, cache, layer));
  pyr_release(s->rt, whole, bytes);
  return status;
}

/* Which rank of all tells of a head's lane in a layer: the lowest of that stage's team that has it.
 * Which lane of this one's it is, -1: it has none. */
static int teller_of(const pyr_model *model, int layer, int head, int *own) {
  int member;
  *own = pyr_cache_own_lane(model, head, &member);
  if (!pyr_model_has(model, layer)) *own = -1;
  return pyr_model_stage_of(model, layer) * pyr_ranks_size(model->ranks) + member;
}

/* One lane's way from the rank that has it to the file; h1 is rank 1's, h0 the writer's own:
 *
 *     rank 0    h0 -> file     hears "4,210 bytes"     has room?    <- bytes -> file
 *     rank 1    waits          tells "4,210 bytes"     agreed       bytes ->
 *
 * The lane of a head of several ranks: whoever has it makes its bytes, rank 0 writes them. One lane
 * at a time, so that rank 0 holds the bytes of one. */
static pyr_status save_ranked(pyr_stream *s, const pyr_cache *hot, const pyr_cache *cache,
                              int layer, int head, char *buffer, void *rows_buffer) {
  const pyr_model *model = cache->pool->model;
  pyr_ranks *ranks = pyr_runtime_ranks(s->rt);
  int own, rank = pyr_ranks_rank(ranks), teller = teller_of(model, layer, head, &own);
  pyr_stream to = { .path = s->path, .rt = s->rt };
  pyr_status status = PYR_OK;
  int64_t size, all[PYR_RANKS_MAX];
  if (own >= 0 && rank == teller && rank != 0) {
    int64_t rows = pyr_cache_lane(cache, layer, own)->rows;
    to.room = 64 + (size_t)rows * 12 + pyr_frame_bytes(cache->pool->layout.head_dim)
        + (size_t)(rows / PYR_PAGE_ROWS + 1) * (largest_page(cache->pool) + 1);
    to.memory = pyr_alloc(s->rt, to.room);
    if (!to.memory) return pyr_nomem(s->rt, to.room, "saving a cache");
  }
  if (own >= 0)
    status = save_whole(to.memory ? &to : s, hot, cache, layer, own, rank == teller, buffer,
                        rows_buffer);
  size = (int64_t)to.used;
  /* of stages: copies of a lane are put together in a team, and all are told of it */
  if (model->line) status = pyr_ranks_agree(s->rt, status);
  if (status == PYR_OK) status = pyr_ranks_tell(ranks, &size, 1, all);
  char *bytes = NULL;
  size_t length = status == PYR_OK ? (size_t)all[teller] : 0;
  if (status == PYR_OK && rank == 0 && teller != 0) {
    bytes = pyr_alloc(s->rt, length);
    if (!bytes) status = pyr_nomem(s->rt, length, "saving a cache");
  }
  status = pyr_ranks_agree(s->rt, status);   /* whether there is room where they go */
  if (status == PYR_OK) status = pyr_ranks_pass(ranks, teller, 0, to.memory, length, bytes);
  if (status == PYR_OK && bytes) status = put(s, bytes, length);
  pyr_release(s->rt, bytes, length);
  pyr_release(s->rt, to.memory, to.room);
  return status;
}

/* In the order of layers and heads of the whole model, whoever has them: so the file is the same by
 * whatever number of ranks it is written, and one process's. Of a tier, or of the hot one. */
static pyr_status save_lanes(pyr_stream *s, const pyr_cache *hot, const pyr_cache *cache,
                             char *buffer, void *rows_buffer) {
  const pyr_model *model = cache->pool->model;
  for (int layer = 0; layer < cache->layers; layer++)
    for (int head = 0; head < model->whole.kv_heads; head++)
      if (model->ranks || model->line)
        PYR_TRY(save_ranked(s, hot, cache, layer, head, buffer, rows_buffer));
      else PYR_TRY(save_lane(s, cache, pyr_cache_lane(cache, layer, head), buffer, rows_buffer,
                             state_of(hot, cache, layer)));
  return PYR_OK;
}

/* Behind all hot lanes, so that what is read of them does not depend on whether there are tiers. Of
 * several ranks all bring their lanes, and one writes. */
static pyr_status save_tiers(pyr_stream *s, const pyr_cache *cache, bool writes, char *buffer,
                             void *rows_buffer) {
  uint64_t count = 0;
  if (!cache->below) return PYR_OK;
  for (const pyr_cache *at = cache->below; at; at = at->below) count++;
  if (writes) PYR_TRY(put(s, &count, sizeof count));
  for (int layer = 0; layer < cache->layers && writes; layer++) {
    uint64_t recall = (uint64_t)cache->states[layer].trigger.recall;
    PYR_TRY(put(s, &recall, sizeof recall));
  }
  for (const pyr_cache *at = cache->below; at; at = at->below) {
    uint64_t what[2] = { at->pool->tier, (uint64_t)dtype_of(at->pool->layout) };
    if (writes) PYR_TRY(put(s, what, sizeof what));
    PYR_TRY(save_lanes(s, cache, at, buffer, rows_buffer));
  }
  return PYR_OK;
}

/* Without a note: its length is 0. */
pyr_status pyr_cache_save(const pyr_cache *cache, const char *path) {
  return pyr_cache_save_note(cache, path, NULL, 0);
}

/* The cache is only read. A save that fails leaves the destination as it was: what was written
 * beside it is removed (pyr_output_abandon, which does nothing after a commit). */
pyr_status pyr_cache_save_note(const pyr_cache *cache, const char *path, const char *note,
                               size_t length) {
  pyr_runtime *rt = cache->pool->rt;
  uint64_t note_bytes = length;
  if (length > NOTE_MOST)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "%s: a note of %zu bytes (at most %d)", path,
                                 length, NOTE_MOST);
  size_t rows_bytes = 4 * (size_t)(pyr_cache_longest(cache) + 1),
      page_bytes = largest_page(cache->pool);
  char *buffer = pyr_alloc(rt, page_bytes), why[PYR_WHY_BYTES];
  void *rows_buffer = NULL;
  pyr_output out = { .file = NULL };
  pyr_stream s = { .out = &out, .path = path, .rt = rt, .hash = PYR_FNV_START };
  bool writes = pyr_ranks_rank(pyr_runtime_ranks(rt)) == 0;
  pyr_cache_header header;
  pyr_status status = PYR_OK;
  pyr_ranks_begin(rt);
  rows_buffer = pyr_alloc(rt, rows_bytes);
  if (!buffer || !rows_buffer) status = pyr_nomem(rt, rows_bytes + page_bytes, "saving a cache");
  else if (writes && !pyr_output_open(&out, path, why))
    status = pyr_runtime_set_error(rt, pyr_disk_status(), "%s", why);
  status = pyr_ranks_agree(rt, status);
  if (status == PYR_OK) status = pyr_cache_line_sync((pyr_cache *)cache);   /* states of all */
  if (status != PYR_OK) goto done;
  fill_header(cache, &header);
  status = sum_evicted(cache, &header.evicted);
  if (status == PYR_OK && writes) status = put(&s, &header, sizeof header);
  for (int layer = 0; layer < cache->layers && status == PYR_OK && writes; layer++) {
    int64_t numbers[STATE];
    pack_state(&cache->states[layer], numbers);
    status = put(&s, numbers, sizeof numbers);
  }
  if (status == PYR_OK) status = save_lanes(&s, cache, cache, buffer, rows_buffer);
  if (status == PYR_OK) status = save_tiers(&s, cache, writes, buffer, rows_buffer);
  if (status != PYR_OK || !writes) goto done;
  status = save_ids(&s, cache);
  if (status == PYR_OK) status = put(&s, &note_bytes, sizeof note_bytes);
  if (status == PYR_OK) status = put(&s, note, length);
  uint64_t sum = s.hash;
  if (status == PYR_OK) status = put(&s, &sum, sizeof sum);
  if (status == PYR_OK && !pyr_output_commit(&out, why))
    status = pyr_runtime_set_error(rt, pyr_disk_status(), "%s", why);
done:
  status = pyr_ranks_end(rt, status);
  pyr_output_abandon(&out);
  pyr_release(rt, buffer, page_bytes);
  pyr_release(rt, rows_buffer, rows_bytes);
  return status;
}

/* ---- load ------------------------------------------------------------------------------------ */

/* The message names the file, the field and what is wrong with it. */
static pyr_status bad(pyr_stream *s, const char *field, const char *what) {
  return pyr_runtime_set_error(s->rt, PYR_FORMAT, "%s: %s %s", s->path, field, what);
}

/* "NAME (weights 0123456789abcdef)", fit for a message whatever the file holds. Bytes that a
 * terminal would act on become "?". */
static void describe(char out[232], const pyr_cache_header *h) {
  char name[sizeof h->name];
  memcpy(name, h->name, sizeof name);
  name[sizeof name - 1] = 0;
  for (char *p = name; *p; p++)
    if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
  snprintf(out, 232, "%s (weights %016llx, tokenizer %016llx)",
           *name ? name : "a model without a name", (unsigned long long)h->weights,
               (unsigned long long)h->tokenizer);
}

/* A tokenizer is not asked for where one of both has none: the rows do not depend on it, only what
 * ids mean does. */
static pyr_status check_model(pyr_stream *s, const pyr_cache_header *h,
                              const pyr_cache_header *mine) {
  char from[232], into[232];
  bool weights = h->weights == mine->weights;
  if (weights && (h->tokenizer == mine->tokenizer || !h->tokenizer || !mine->tokenizer))
    return PYR_OK;
  describe(from, h);
  describe(into, mine);
  return pyr_runtime_set_error(s->rt, PYR_FORMAT,
                               "%s: belongs to another %s: it was saved from %s, and is to be "
                               "loaded into %s", s->path, weights ? "tokenizer" : "model", from,
                                   into);
}

/* *same: whether the policy it is loaded under is the one it was saved under; *version: the
 * file's. From what it is
 * (magic, version, byte order) to whose it is (model, tokenizer) to how it lies (shape,
 * arithmetic, dtype): the first that does not fit is the message that helps. */
static pyr_status load_header(pyr_stream *s, pyr_cache *cache, bool *same, uint32_t *version) {
  pyr_cache_header h, mine;
  fill_header(cache, &mine);
  pyr_status status = get(s, &h, sizeof h, "the header");
  if (status != PYR_OK) return status;
  if (memcmp(h.magic, mine.magic, sizeof h.magic) != 0)
    return bad(s, "magic", "is not that of a saved cache");
  if (h.version >= 1 && h.version < OLDEST_VERSION)
    return pyr_runtime_set_error(s->rt, PYR_FORMAT,
                                 "%s: version is %u, of an older build that wrote caches "
                                 "otherwise (this one: "
                                 "%u); read the prompt again and save it anew", s->path, h.version,
                                     (unsigned)PYR_CACHE_VERSION);
  if (h.version < 1 || h.version > PYR_CACHE_TIERED)
    return bad(s, "version", "is one this build does not read");
  if (h.order != mine.order) return bad(s, "byte order", "is not this machine's");
  if ((status = check_model(s, &h, &mine)) != PYR_OK) return status;
  if (h.layers != mine.layers || h.heads != mine.heads || h.head_dim != mine.head_dim)
    return bad(s, "shape", "is that of another model");
  if (h.arithmetic != mine.arithmetic)
    return bad(s, "arithmetic", "is that of another model: its RoPE, windows, scales or other "
               "switches differ");
  if (h.dtype != mine.dtype) return bad(s, "dtype",
                                        "differs from the cache to load into; ask for the saved "
                                        "one");
  if (h.version % 2 != mine.version % 2)          /* even ones have tiers */
    return bad(s, "tiers", cache->below
               ? "are none: the cache to load into must be made without tiers, too"
               : "are what the cache to load into must have, too (tiers)");
  /* each layer computes a token at most once, each lane drops its row at most once; counts of
   * tokens are positions */
  if (h.tokens < 0 || h.tokens > INT32_MAX || h.prompt < 0 || h.prompt > h.tokens || h.computed < 0
      || h.computed > INT32_MAX * (int64_t)h.layers || h.evicted < 0
          || h.evicted > INT32_MAX * (int64_t)h.layers * h.heads)
    return bad(s, "counters", "are out of range");
  *same = h.policy == name_hash(&cache->policy)
      && (cache->policy.decode != NULL || cache->policy.prefill != NULL);
  cache->tokens = h.tokens;
  cache->prompt = h.prompt;
  cache->computed = h.computed;
  cache->evicted = h.evicted;
  *version = h.version;
  return PYR_OK;
}

/* Each page becomes of the kind that it was saved as. The frame is used only if it can be. */
static pyr_status load_frame(pyr_stream *s, pyr_cache *cache, pyr_lane *lane, int64_t rows) {
  int32_t head_dim = cache->pool->layout.head_dim;
  int64_t count = (rows + PYR_PAGE_ROWS - 1) / PYR_PAGE_ROWS;
  PYR_TRY(get(s, lane->frame, pyr_frame_bytes(head_dim), "a lane's frame"));
  if (lane->frame->head_dim != head_dim) {
    lane->frame->head_dim = head_dim;
    return bad(s, "a lane's frame", "is of another width");
  }
  if ((lane->frame->learned & ~1) || (lane->frame->learned && !pyr_frame_valid(lane->frame)))
    return bad(s, "a lane's frame", "is out of range");
  for (int64_t p = 0; p < count; p++) {
    uint8_t packed;
    PYR_TRY(get(s, &packed, 1, "the kinds of pages"));
    if (packed > 1 || (packed && !lane->frame->learned))
      return bad(s, "the kinds of pages", "are out of range");
    PYR_TRY(pyr_lane_set_kind(cache, lane, p, packed));
  }
  return PYR_OK;
}

/* Counts are checked before memory is asked for: rows against the tokens seen, and their bytes
 * against what is left of the file, so that 16 bad bytes cannot ask for gigabytes. Invariant of
 * the positions' loop: `before` is the last one read, so that they ascend over chunks, too. Page
 * by page: rows behind the last are sent as zeros, not as what lay in the buffer. */
static pyr_status load_lane(pyr_stream *s, pyr_cache *cache, int64_t tokens, pyr_lane *lane,
                            char *buffer, const pyr_layer_state *state) {
  pyr_backend *be = cache->pool->be;
  pyr_layout layout = cache->pool->layout;
  bool packs = pyr_layout_packs(layout);
  planes least = planes_of(cache, packs, state->compact);
  int64_t counts[2] = { 0, 0 };
  int32_t chunk[PYR_PAGE_ROWS], before = -1;
  pyr_status status = get(s, counts, sizeof counts, "a lane's counts");
  if (status != PYR_OK) return status;
  int64_t rows = counts[0];
  if (rows < 0 || rows > tokens || (counts[1] != 0 && counts[1] != 1))
    return bad(s, "rows", "are out of range");
  size_t row = 4, plain = pyr_row_bytes(layout.dtype, layout.head_dim);   /* what a row takes … */
  for (int plane = 0; plane < least.count; plane++)                       /* … at least */
    row += least.row[plane] < plain ? least.row[plane] : plain;
  if ((uint64_t)rows * row > s->left)
    return bad(s, "rows", "are more than the file holds");
  if (state->turned > rows) return bad(s, "rows", "are fewer than were turned");
  if (state->compact) status = pyr_lane_widen(cache, lane);
  if (status == PYR_OK) status = pyr_lane_reserve_packed(cache, lane, rows, counts[1] != 0);
  if (status == PYR_OK)
    status = pyr_digests_reserve(cache->pool, &lane->digests, state->read.by, rows);
  if (status != PYR_OK) return status;
  for (int plane = 0; plane <= counts[1]; plane++)          /* positions, then the history */
    for (int64_t at = 0; at < rows && status == PYR_OK; at += PYR_PAGE_ROWS) {
      int64_t n = rows - at < PYR_PAGE_ROWS ? rows - at : PYR_PAGE_ROWS;
      status = get(s, chunk, (size_t)n * 4, plane ? "a history" : "positions");
      for (int64_t i = 0; plane == 0 && i < n && status == PYR_OK; i++) {
        if (chunk[i] <= before || chunk[i] >= tokens)
          status = bad(s, "positions", "are not ascending token positions");
        before = chunk[i];
      }
      void *to = plane ? (void *)(lane->history + at) : (void *)(lane->positions + at);
      if (status == PYR_OK) status = be->upload(be, to, chunk, (size_t)n * 4);
    }
  for (int64_t at = 0; at < rows && status == PYR_OK && state->compact; at += PYR_PAGE_ROWS) {
    int64_t n = rows - at < PYR_PAGE_ROWS ? rows - at : PYR_PAGE_ROWS;
    status = get(s, chunk, (size_t)n * 4, "the keys' first positions");
    for (int64_t i = 0; i < n && status == PYR_OK && at + i < state->turned; i++)
      if (chunk[i] < at + i) status = bad(s, "the keys' first positions", "are out of range");
    if (status == PYR_OK) status = be->upload(be, lane->born + at, chunk, (size_t)n * 4);
  }
  if (status == PYR_OK && has_frame(cache, rows)) status = load_frame(s, cache, lane, rows);
  for (int64_t at = 0; at < rows && status == PYR_OK; at += PYR_PAGE_ROWS) {
    static const char *const fields[] = { "keys", "values", "keys as they came" };
    int64_t n = rows - at < PYR_PAGE_ROWS ? rows - at : PYR_PAGE_ROWS;
    planes p = planes_of(cache, packs && lane->packed[at / PYR_PAGE_ROWS], state->compact);
    memset(buffer, 0, p.bytes);
    for (int plane = 0; plane < p.count && status == PYR_OK; plane++)
      status = get(s, buffer + p.at[plane], (size_t)n * p.row[plane], fields[plane]);
    if (status == PYR_OK) status = be->upload(be, lane->data[at / PYR_PAGE_ROWS], buffer, p.bytes);
  }
  if (status == PYR_OK) lane->rows = rows;
  return status;
}

/* A position that is in two tiers would be attended to twice. lists: host, the positions of two
 * lanes behind each other. */
static pyr_status check_apart(pyr_stream *s, const pyr_cache *one, const pyr_cache *other,
                              int64_t i, int32_t *lists) {
  const pyr_lane *a = &pyr_cache_lanes(one)[i], *b = &pyr_cache_lanes(other)[i];
  pyr_backend *be = one->pool->be;
  int32_t *behind = lists + a->rows;
  if (a->rows == 0 || b->rows == 0) return PYR_OK;
  PYR_TRY(be->download(be, lists, a->positions, (size_t)a->rows * sizeof *lists));
  PYR_TRY(be->download(be, behind, b->positions, (size_t)b->rows * sizeof *lists));
  for (int64_t x = 0, y = 0; x < a->rows && y < b->rows;) {
    if (lists[x] == behind[y]) return bad(s, "positions", "are in two tiers");
    if (lists[x] < behind[y]) x++;
    else y++;
  }
  return PYR_OK;
}

/* Every pair of tiers, lane by lane: of three tiers and 90 lanes 270 pairs of lists, each walked
 * once. */
static pyr_status check_tiers(pyr_stream *s, const pyr_cache *cache) {
  size_t bytes = 2 * (size_t)(pyr_cache_longest(cache) + 1) * sizeof(int32_t);
  int32_t *lists = pyr_alloc(s->rt, bytes);
  pyr_status status = lists ? PYR_OK : pyr_nomem(s->rt, bytes, "loading a cache");
  for (const pyr_cache *a = cache; a; a = a->below)
    for (const pyr_cache *b = a->below; b; b = b->below)
      for (int64_t i = 0; i < (int64_t)a->layers * a->heads && status == PYR_OK; i++)
        status = check_apart(s, a, b, i, lists);
  pyr_release(s->rt, lists, bytes);
  return status;
}

/* Of a file with lanes h0, h1 and h2 of each layer, on two ranks:
 *
 *     rank 0    keeps h0, reads h1 and h2 and lets them go
 *     rank 1    reads h0 and lets it go, keeps h1 and h2
 *
 * so all of them check all of it, and none needs the others for that.
 *
 * Every rank reads the whole file, and keeps the lanes that are its own: others are read into a
 * lane that goes again. What a copy of a lane is given from here on is added to what its head had.
 * `cache`: the hot one, or one below it, whose layers have no state but what is read of them. */
static pyr_status load_lanes(pyr_stream *s, const pyr_cache *hot, pyr_cache *cache,
                             char *buffer) {
  const pyr_model *model = cache->pool->model;
  pyr_slice own = model->ranks ? pyr_model_part(model)->lanes
      : (pyr_slice){ 0, cache->heads };
  for (int layer = 0; layer < cache->layers; layer++)
    for (int head = 0; head < model->whole.kv_heads; head++) {
      pyr_lane other = { 0 };
      bool mine = pyr_model_has(model, layer) && head >= own.first && head < own.first + own.count;
      pyr_lane *lane = mine ? pyr_cache_lane(cache, layer, head - own.first) : &other;
      pyr_layer_state below = { .read = hot->states[layer].read };
      pyr_status status = load_lane(s, cache, hot->tokens, lane, buffer,
                                    cache == hot ? &hot->states[layer] : &below);
      if (!mine) pyr_lane_free(cache, &other);
      PYR_TRY(status);
    }
  return PYR_OK;
}

/* Of several ranks the file tells of the rows that all of them have lost: this one's are those that
 * it would hold and does not, in any tier. */
static void count_lost(pyr_cache *cache) {
  int64_t lanes = pyr_cache_lane_count(cache), held = 0;
  const pyr_model *model = cache->pool->model;
  for (const pyr_cache *at = cache; at; at = at->below)
    for (int64_t i = 0; i < lanes; i++) held += pyr_cache_lane_rows(at, i);
  if (model->ranks || model->line)
    cache->evicted = (int64_t)model->own.count * cache->heads * cache->tokens - held;
}

/* The header has said that there are some, as the cache has. In a file of their own rows are not
 * looked for: a saved cache holds all of them, and may be loaded where that tier lies elsewhere. */
static pyr_status load_tiers(pyr_stream *s, pyr_cache *cache, char *buffer, bool same) {
  uint64_t count, mine = 0;
  if (!cache->below) return PYR_OK;
  for (const pyr_cache *at = cache->below; at; at = at->below) mine++;
  PYR_TRY(get(s, &count, sizeof count, "the tiers"));
  if (count != mine) return bad(s, "tiers", "are not as many as the cache to load into has");
  for (int layer = 0; layer < cache->layers; layer++) {
    uint64_t recall;
    pyr_trigger *trigger = &cache->states[layer].trigger;
    PYR_TRY(get(s, &recall, sizeof recall, "the rows recalled"));
    if (recall > INT32_MAX || (recall > 0 && same && (!pyr_trigger_sums(trigger) || trigger->once)))
      return bad(s, "the rows recalled", "are out of range");
    trigger->recall = same ? (int64_t)recall : 0;
  }
  for (pyr_cache *at = cache->below; at; at = at->below) {
    uint64_t what[2];
    PYR_TRY(get(s, what, sizeof what, "the tiers"));
    if (what[0] != (uint64_t)at->pool->tier || what[1] != (uint64_t)dtype_of(at->pool->layout))
      return bad(s, "tiers", "differ, by name or dtype, from those of the cache to load into");
    PYR_TRY(load_lanes(s, cache, at, buffer));
  }
  return check_tiers(s, cache);
}

/* -1 is a row that was given as an embedding. */
static pyr_status load_ids(pyr_stream *s, pyr_cache *cache) {
  uint64_t count;
  PYR_TRY(get(s, &count, sizeof count, "the tokens"));
  if (count != 0 && count != (uint64_t)cache->tokens)
    return bad(s, "the tokens", "are not as many as the counters say");
  if (count > s->left / sizeof(int32_t)) return bad(s, "the tokens", "are more than the file has");
  if (count == 0) return PYR_OK;
  int32_t *ids = pyr_alloc(s->rt, (size_t)count * sizeof *ids);
  if (!ids) return pyr_nomem(s->rt, (size_t)count * sizeof *ids, "a cache's tokens");
  pyr_status status = get(s, ids, (size_t)count * sizeof *ids, "the tokens");
  for (uint64_t i = 0; i < count && status == PYR_OK; i++)
    if (ids[i] < -1 || ids[i] >= cache->pool->model->whole.vocab)
      status = bad(s, "the tokens", "are no ids of the model's");
  if (status == PYR_OK)
    status = pyr_ids_put(cache->pool, &cache->ids, 0, ids, (int64_t)count);
  pyr_release(s->rt, ids, (size_t)count * sizeof *ids);
  return status;
}

/* At most 64 MiB, and at most what the file has left. */
static pyr_status load_note(pyr_stream *s, pyr_cache *cache) {
  uint64_t length;
  pyr_status status = get(s, &length, sizeof length, "the note");
  if (status != PYR_OK || length == 0) return status;
  if (length > NOTE_MOST || length > s->left)
    return bad(s, "the note", "is longer than the file, or than a note may be");
  cache->note = pyr_alloc(s->rt, (size_t)length);
  if (cache->note == NULL) return pyr_nomem(s->rt, (size_t)length, "a cache's note");
  cache->note_bytes = (size_t)length;
  return get(s, cache->note, (size_t)length, "the note");
}

/* A learned score is tracked by the number of a table, which is this process' own: the policy is
 * asked for it anew. What else its trigger says stands in the file. */
static pyr_status load_track(pyr_stream *s, pyr_cache *cache, int layer) {
  const pyr_policy *policy = &cache->policy;
  const pyr_model_config *c = &cache->pool->model->whole;
  pyr_layer_state *state = &cache->states[layer];
  pyr_trigger now = { .track = { .code = PYR_SCORE_CODES } };
  const pyr_shape shape = { .layer = layer, .layers = c->layers, .heads = c->heads,
                            .kv_heads = c->kv_heads, .head_dim = c->head_dim,
                            .prompt = cache->prompt, .past = state->past,
                            .rows = state->past + cache->prompt, .tokens = cache->tokens };
  if (policy->trigger) PYR_TRY(policy->trigger(policy->ud, &shape, &now));
  if (!pyr_trigger_learns(&now))
    return bad(s, "a layer's state", "tracks a learned score, and the policy none");
  state->trigger.track = now.track;
  return PYR_OK;
}

/* Under another policy, nothing fires, and steps read all, until the next prefill asks it. Ranges
 * are those of the types that they go into: bytes from 3 to 6, 32 bits of a float at 8, counts
 * that fit int32 elsewhere. */
static pyr_status load_state(pyr_stream *s, pyr_cache *cache, int layer, bool same) {
  int64_t numbers[STATE];
  pyr_status status = get(s, numbers, sizeof numbers, "a layer's state");
  if (status != PYR_OK) return status;
  for (int i = 0; i < STATE; i++)
    if (numbers[i] < 0 || (i >= 3 && i <= 6 && numbers[i] > 255)
        || (i == 8 && numbers[i] > UINT32_MAX) || (i != 8 && numbers[i] > INT32_MAX))
      return bad(s, "a layer's state", "is out of range");
  pyr_layer_state idle = cache->states[layer];
  unpack_state(numbers, &cache->states[layer]);
  pyr_trigger *trigger = &cache->states[layer].trigger;
  const pyr_read *read = &cache->states[layer].read;
  if (!same) *trigger = idle.trigger, cache->states[layer].read = idle.read;
  if ((read->rows > 0) != (read->by != PYR_DIGEST_NONE) || read->by >= PYR_DIGESTS)
    return bad(s, "a layer's state", "reads in a way that is not known");
  if (read->rows > 0 && !cache->pool->be->pick_pages)
    return pyr_runtime_set_error(s->rt, PYR_UNSUPPORTED,
                                 "%s: its steps read less than is held, and the device \"%s\" "
                                 "reads all rows", s->path, cache->pool->be->name);
  const pyr_model_config *c = &cache->pool->model->config;
  bool slides = c->window && c->window[layer] > 0;    /* beside compact layers it has no end */
  if (!cache->states[layer].compact && !slides && cache->tokens > c->context)
    return bad(s, "counters", "are out of range");
  if (!pyr_trigger_tracks(trigger)) return PYR_OK;
  int depth;
  if (pyr_trigger_learns(trigger)) return load_track(s, cache, layer);
  pyr_score alone = { 1, { trigger->track } };
  return pyr_score_check(&alone, &depth) ? bad(s, "a layer's state", "tracks something unknown")
      : PYR_OK;
}

/* A new cache is filled and handed out only when the check has matched; else it is freed, pages
 * and all, and *out is as it was. The check comes last, so every field before it is checked by
 * itself first: nothing in between may trust the file. */
pyr_status pyr_cache_load(pyr_model *model, pyr_pool *pool, const pyr_policy *policy,
                          const char *path, pyr_cache **out) {
  pyr_runtime *rt = pool->rt;
  pyr_cache *cache = NULL;
  char *buffer = NULL;
  char why[PYR_WHY_BYTES];
  int fd = -1;
  uint64_t size;
  bool same = false;
  uint64_t sum = 0, expected;
  uint32_t version = 0;
  pyr_stream s = { .path = path, .rt = rt, .hash = PYR_FNV_START };
  pyr_status status = PYR_OK;
  pyr_ranks_begin(rt);
  if (!pyr_disk_open(path, &fd, &size, why)) {
    status = pyr_runtime_set_error(rt, pyr_disk_status(), "%s", why);
    goto done;
  }
  s.file = fdopen(fd, "rb");
  if (!s.file) {
    close(fd);
    status = pyr_nomem(rt, BUFSIZ, "loading a cache");
    goto done;
  }
  if (size < sizeof(pyr_cache_header) + sizeof sum) {
    status = pyr_runtime_set_error(rt, PYR_FORMAT, "%s: too short to be a saved cache", path);
    goto done;
  }
  s.left = size - sizeof sum;
  status = pyr_cache_new(model, pool, policy, &cache);
  if (status != PYR_OK) goto done;
  buffer = pyr_alloc(rt, largest_page(pool));
  if (!buffer) {
    status = pyr_nomem(rt, largest_page(pool), "loading a cache");
    goto done;
  }
  status = load_header(&s, cache, &same, &version);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++)
    status = load_state(&s, cache, layer, same);
  if (status == PYR_OK) status = load_lanes(&s, cache, cache, buffer);
  for (int layer = 0; layer < cache->layers && status == PYR_OK; layer++) {
    if (!cache->states[layer].compact) continue;
    if (!pyr_cache_lanes_equal(cache, layer))
      status = bad(&s, "rows", "differ between the heads of a compacted layer");
    else if (pyr_cache_layer_rows(cache, layer) > model->config.context) status = bad(&s, "rows",
        "are out of range");
  }
  if (status == PYR_OK) status = load_tiers(&s, cache, buffer, same);
  if (status == PYR_OK && version >= IDS_SINCE) status = load_ids(&s, cache);
  if (status == PYR_OK) status = load_note(&s, cache);
  if (status != PYR_OK) goto done;
  count_lost(cache);
  expected = s.hash;
  if (s.left != 0) status = bad(&s, "the end", "comes later than the note does");
  else if (fread(&sum, 1, sizeof sum, s.file) != sizeof sum || sum != expected) status = bad(&s,
      "check sum", "does not match");
done:
  if (s.file) fclose(s.file);
  pyr_release(rt, buffer, buffer ? largest_page(pool) : 0);
  bool several = model->ranks || model->line;
  if (several && status == PYR_OK) cache->uneven = true;
  status = pyr_ranks_agree(rt, status);
  if (several && status == PYR_OK) status = pyr_cache_level(cache);
  pyr_ranks_leave(rt);
  if (status == PYR_OK) *out = cache;
  else pyr_cache_free(cache);
  return status;
}

/* ---- a file that may serve again ------------------------------------------------------------- */

/* All that load_header and load_tiers hold against the cache it loads into, and nothing of what a
 * cache has read. The policy is left out: rows that no plan has touched are the same under any. */
uint64_t pyr_cache_identity(const pyr_cache *cache) {
  pyr_cache_header h;
  fill_header(cache, &h);
  h.policy = 0;
  h.tokens = h.prompt = h.computed = h.evicted = 0;
  memset(h.name, 0, sizeof h.name);
  uint64_t hash = pyr_fnv(PYR_FNV_START, &h, sizeof h);
  for (const pyr_cache *at = cache->below; at; at = at->below) {
    uint64_t what[2] = { at->pool->tier, (uint64_t)dtype_of(at->pool->layout) };
    hash = pyr_fnv(hash, what, sizeof what);
  }
  return hash;
}

/* What was loaded changes places with the cache's emptiness. Tracer and preparer, which the caller
 * gave the cache and not the file, change places once more before that, so that each stays where it
 * was; the file's note goes with the loaded copy. A file of 3,000 tokens of which 2,900 are wanted
 * was computed for 3,000: the counter goes down with the rows, where none were pruned. */
pyr_status pyr_cache_load_prefix(pyr_cache *cache, const char *path, int64_t tokens) {
  pyr_runtime *rt = cache->pool->rt;
  pyr_cache *loaded = NULL;
  if (cache->tokens > 0 || tokens < 1)
    return pyr_runtime_set_error(rt, PYR_ARGUMENT, "%s: %s", path,
                                 tokens < 1 ? "no tokens of it are wanted"
                                 : "the cache to load into has read tokens already");
  const pyr_policy *policy = cache->policy.ud ? &cache->policy : NULL;
  PYR_TRY(pyr_cache_load(cache->pool->model, cache->pool, policy, path, &loaded));
  pyr_status status = loaded->tokens >= tokens ? PYR_OK
      : pyr_runtime_set_error(rt, PYR_ARGUMENT, "%s: holds %lld tokens, and %lld are wanted", path,
                              (long long)loaded->tokens, (long long)tokens);
  if (status == PYR_OK) status = pyr_cache_truncate(loaded, tokens);
  if (status != PYR_OK) {
    pyr_cache_free(loaded);
    return status;
  }
  if (loaded->evicted == 0) loaded->computed = tokens * cache->layers;
  pyr_tracer tracer = loaded->tracer;
  pyr_preparer preparer = loaded->preparer;
  loaded->tracer = cache->tracer, cache->tracer = tracer;
  loaded->preparer = cache->preparer, cache->preparer = preparer;
  pyr_release(rt, loaded->note, loaded->note_bytes);
  loaded->note = NULL, loaded->note_bytes = 0;
  pyr_cache_restore(cache, loaded);
  return PYR_OK;
}
