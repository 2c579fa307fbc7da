/* cache.h — one sequence's rows: layers -> lanes -> pages.
 *
 * A row is one token's K and V under one KV head of one layer. A lane is the rows of one KV head of
 * one layer, in the order of their positions: K and V in pages, and beside them, one entry a row,
 * the original positions and (where the policy tracks attention) a history. A lane of 70 rows:
 *
 *     pages        [ rows 0..31 ][ rows 32..63 ][ rows 64..69, room for 26 more ]
 *     positions      0 1 2 5 ..    40 41 47 ..    110 .. 115     ascending; gaps are evicted rows
 *     history        .3 .1 0 ..                   .. | 0 0 0     zeros behind the last row
 *     born                                        only where pages are wide
 *
 * Row r lies in page r / 32. A row's index changes as rows before it are evicted; its position
 * never does. Lanes of a layer may differ in length. The cache knows nothing of scores and plans
 * (policy/) nor of transformers (forward.c); it appends, gathers, shares, rolls back and counts.
 * Rows are written by the backend through lane views.
 *
 * Where its pool has tiers (pages.h) a cache has one of its kind below it, with a lane for each of
 * its own, and that one another: further rows of the same sequence, in the order of their positions
 * again. A position is in one tier only. What goes down and comes up is tiers.h's. */
#ifndef PYR_CACHE_H
#define PYR_CACHE_H

#include "cache/digests.h"
#include "cache/ids.h"
#include "cache/learned.h"
#include "cache/probed.h"

typedef struct pyr_trial pyr_trial;

typedef struct pyr_lane {
  pyr_page **pages;        /* [page_cap] the first page_count are held */
  void **data;             /* [page_cap] their memory, as the backend wants it */
  int64_t page_count, page_cap;
  void **table;            /* [page_cap] backend memory: `data`, as far as it is `listed`; NULL
                              where the backend reads the host's */
  int64_t listed;
  int32_t *positions;      /* [row_room] backend memory */
  float *history;          /* [row_room] or NULL; zeros from `rows` on */
  bool wide;               /* its pages are */
  int32_t *born;           /* [row_room] where pages are wide, else NULL: the position K was rotated
                              to when it came (of rows beyond the layer's `turned`: not known yet,
                              as it is their index) */
  uint8_t *packed;         /* [page_cap] 1 where a page is packed; NULL where none can be, … */
  struct pyr_frame *frame; /* … nor is there a frame (pack.c) */
  int64_t row_cap;         /* page_count * PYR_PAGE_ROWS: what counts as held */
  int64_t row_room;        /* grows by half, so that appending is linear */
  int64_t rows;
  int64_t mark;            /* rows before the step or prefill that is running */
  int64_t floor;           /* pages of so many rows stay, whoever leaves (undo.h) */
  pyr_digests digests;
} pyr_lane;

/* In numbers: a trigger that fires every 4 steps with a window of 3, each row ranked once. A
 * prompt left 6 rows, two steps came: since 2, unranked 3 + 2 = 5, past 0. Of the 8 rows the
 * first 3 have been ranked, or lay before the window; the last 5 have not. */
typedef struct pyr_layer_state {  /* what decode plans need to know of a layer */
  pyr_trigger trigger;
  int64_t unranked;        /* once: a lane's last rows that no plan has ranked yet, where it has as
                              many */
  int64_t since;           /* steps since the prefill or since the trigger fired */
  int64_t past;            /* rows held before the last prefill */
  bool compact;            /* keys lie rotated to their rows' indices, and new ones to the next:
                              lanes are of one length */
  int64_t turned;          /* compact: the rows that were there at the last cut; what came since
                              lies as it came */
  pyr_read read;           /* what steps read; rows 0: all */
  int64_t more;            /* of several ranks: rows that the layer's longest lane has more than
                              this rank's (pyr_cache_level) … */
  bool uneven;             /* … and whether lanes of different ranks differ in length */
} pyr_layer_state;

/* A layer whose lanes grow by a row a step, without being looked at (stride.c). */
typedef struct pyr_stride {
  bool on;
  int32_t left;            /* so many more steps find room in every lane */
  int32_t ahead;           /* rows that each lane holds behind those it counts */
  int32_t mark;            /* `ahead` before the step that is running */
  int64_t longest;         /* rows that the longest lane counts */
} pyr_stride;

/* What the rows of a cache take in memory, tier by tier, and what the pools hold: by the difference
 * of the first to what it is later, and the second, one knows what the pools will hold when undos
 * and snapshots of the call that is running are gone. */
typedef struct pyr_measure { size_t bytes[3], held[3]; } pyr_measure;

struct pyr_cache {
  pyr_pool *pool;          /* retained; retains the model */
  pyr_policy policy;       /* retained through its own callback; all NULL: none */
  int32_t layers, heads;   /* lanes are [layers][heads] with heads = the model's kv_heads */
  pyr_lane *lane_list;     /* by pyr_cache_lane and pyr_cache_lanes, whose rows are all counted */
  pyr_layer_state *states; /* [layers] */
  pyr_stride *strides;     /* [layers] */
  pyr_lane_view *resident; /* [layers][heads] backend memory: views of the lanes there, whose rows
                              `store` counts; NULL: no stride has begun, or never does */
  pyr_lane_view *shown;    /* [layers][heads] host: what of them is known; pages NULL: nothing */
  int64_t tokens;          /* seen */
  int64_t prompt;          /* tokens of the last prefill */
  int64_t computed;        /* token-layers */
  int64_t evicted;         /* rows dropped or never stored */
  struct pyr_undo *undo;   /* of the call that is running, or NULL */
  pyr_probed *probed;      /* what a probe found out of the rows held now, or NULL */
  pyr_trial *trial;        /* histories before each token of the last one (trial.c), or NULL */
  pyr_ids *ids;            /* which token each position is of (ids.h); NULL: none was said. The hot
                              tier's, which it lends to those below */
  pyr_learned *learned;    /* the map that triggers track, shared with forks; NULL: none so far */
  pyr_tracer tracer;       /* retained through its own callback; zeros: none */
  pyr_preparer preparer;   /* likewise */
  pyr_cache *below;        /* the next tier's rows: lanes of its own pool, without policy or states;
                              NULL: none. Tokens, counters and policy are the hot tier's */
  const pyr_measure *began;  /* of the moment when the call began that is running, where it has a
                                way back; else NULL */
  int64_t *lengths;        /* of several ranks: scratch of pyr_cache_level; else NULL */
  bool uneven;             /* … which has had to look */
  void *line;              /* of several stages: scratch of pyr_cache_line_sync; else NULL */
  char *note;              /* [note_bytes] what the file that it was loaded from held for its saver;
                              NULL: nothing */
  size_t note_bytes;
};

/* Of one tier; a lane's index among them is layer * heads + head. */
static inline int64_t pyr_cache_lane_count(const pyr_cache *cache) {
  return (int64_t)cache->layers * cache->heads;
}

/* stride.c: the lanes of a layer count their rows, and the layer's stride is over. */
void pyr_stride_end(const pyr_cache *cache, int layer);

/* Whoever takes a lane may change it, which ends the stride of its layer. */
static inline pyr_lane *pyr_cache_lane(const pyr_cache *cache, int layer, int head) {
  if (cache->strides[layer].on) pyr_stride_end(cache, layer);
  return &cache->lane_list[(int64_t)layer * cache->heads + head];
}

/* All of them, [layers][heads]; likewise. */
static inline pyr_lane *pyr_cache_lanes(const pyr_cache *cache) {
  for (int layer = 0; layer < cache->layers; layer++)
    if (cache->strides[layer].on) pyr_stride_end(cache, layer);
  return cache->lane_list;
}

/* How many rows the i-th of them holds, which ends nothing. */
static inline int64_t pyr_cache_lane_rows(const pyr_cache *cache, int64_t i) {
  return cache->lane_list[i].rows + cache->strides[i / cache->heads].ahead;
}

/* What the last probe found out of a lane's rows, from the first on; there was one. */
static inline float *pyr_cache_lane_probed(const pyr_cache *cache, int layer, int head) {
  return cache->probed->values + cache->probed->at[(int64_t)layer * cache->heads + head];
}

/* Whether rows carry a history under this trigger: what queries gave them, … */
static inline bool pyr_trigger_sums(const pyr_trigger *trigger) {
  return trigger->track.code == PYR_S_ATTENTION || trigger->track.code == PYR_S_HISTORY;
}
/* … or what a learned map gave them when they were made. */
static inline bool pyr_trigger_learns(const pyr_trigger *trigger) {
  return trigger->track.code == PYR_S_LEARNED;
}
static inline bool pyr_trigger_tracks(const pyr_trigger *trigger) {
  return pyr_trigger_sums(trigger) || pyr_trigger_learns(trigger);
}

/* Whether rows in lower tiers carry one, too, and some come up when it fires. */
static inline bool pyr_trigger_recalls(const pyr_trigger *trigger) {
  return trigger->recall > 0 && pyr_trigger_sums(trigger);
}

/* Whether that is the highest that any query and any query head gave, and not a sum. */
static inline bool pyr_signal_tracks_max(const pyr_score_op *track) {
  return track->code == PYR_S_ATTENTION && track->a == PYR_MAX;
}
static inline bool pyr_trigger_tracks_max(const pyr_trigger *trigger) {
  return pyr_signal_tracks_max(&trigger->track);
}

/* Of this rank's lanes: as pyr_cache_positions. */
pyr_status pyr_lane_positions(const pyr_cache *cache, int layer, int head, int32_t *out);
pyr_lane_view pyr_lane_get_view(const pyr_lane *lane);
int64_t pyr_cache_layer_rows(const pyr_cache *cache, int layer);   /* of its longest lane */
/* Which of this rank's lanes a K/V head of the whole model is, -1: none; *teller: the lowest rank
 * of a team that has it. */
int pyr_cache_own_lane(const pyr_model *model, int head, int *teller);
bool pyr_cache_lanes_equal(const pyr_cache *cache, int layer);      /* whether all are as long */
int64_t pyr_cache_longest(const pyr_cache *cache);   /* rows of the longest lane, in any tier */
bool pyr_cache_lies_below(const pyr_cache *cache, int layer);   /* whether lower tiers hold rows */
/* What the rows of a layer take, in all tiers: whole pages, and what lies beside the rows in them.
 * A call that is running may hold more. */
size_t pyr_cache_layer_bytes(const pyr_cache *cache, int layer);

pyr_measure pyr_cache_measure(const pyr_cache *cache);

/* Makes room for `more` rows in a lane and makes the pages they touch writable (a shared tail page
 * is copied). `history`: whether rows carry one; a history that appears later starts at zero. All
 * or nothing. Bounded by the pages that are new and one that is copied, however long the lane
 * is; what lies beside the rows moves only when its room is used up. */
pyr_status pyr_lane_reserve(pyr_cache *cache, pyr_lane *lane, int64_t more, bool history);
/* A call that gives each lane `more` rows is at `layer` of the cache: slabs are made as large as
 * what it will want next. */
void pyr_cache_expect(pyr_cache *cache, int layer, int64_t more);
/* Who goes over all lanes is at lane `at` of lane_list: what the next ones will need of memory is
 * asked for. */
void pyr_lanes_expect(const pyr_cache *cache, int64_t at);
/* Brings the page tables of `count` lanes that follow each other up to date on the backend, if it
 * has any. */
pyr_status pyr_lanes_list(pyr_cache *cache, pyr_lane *lanes, int64_t count);
/* Gives a lane wide pages; its rows lie as they came, rotated to their positions. All or nothing;
 * nothing where it has them. */
pyr_status pyr_lane_widen(pyr_cache *cache, pyr_lane *lane);
/* Page `at` of its table, whoever held that place before. */
void pyr_lane_set_page(pyr_lane *lane, int64_t at, pyr_page *page);
/* Gives a lane a frame that has learned nothing, where its pool packs and it has none. */
pyr_status pyr_lane_frame(pyr_cache *cache, pyr_lane *lane);
/* Reserves for a lane of which most pages will be packed, if its pool packs, and that is about to
 * be filled; then gives it, in the place of page `at`, one that is packed or plain, of rows
 * undefined. */
pyr_status pyr_lane_reserve_packed(pyr_cache *cache, pyr_lane *lane, int64_t more, bool history);
pyr_status pyr_lane_set_kind(pyr_cache *cache, pyr_lane *lane, int64_t at, bool packed);
/* Drops rows from `rows` on and the pages that no longer hold any. Cannot fail. */
void pyr_lane_truncate(pyr_cache *cache, pyr_lane *lane, int64_t rows);
/* Gives back pages beyond the rows held (after a reserve that was not used). */
void pyr_lane_trim(pyr_cache *cache, pyr_lane *lane);
/* Drops the first `drop` rows, whole pages of them, of which forks keep theirs. Cannot fail. */
void pyr_lane_slide(pyr_cache *cache, pyr_lane *lane, int64_t drop);
/* slide.c: gives back rows of a layer that no query from position `next` on can see, if it has a
 * sliding window; of all layers, from the cache's next token on. Cannot fail. Looks at counts
 * alone, but where PYR_SLIDE_ROWS rows have come since the last time. */
void pyr_cache_slide_layer(pyr_cache *cache, int layer, int64_t next);
void pyr_cache_slide(pyr_cache *cache);
/* pack.c: packs the pages of a layer, of all layers, that are full, neither the first of their lane
 * nor its newest, and not packed yet. Cannot fail: a page for which there is no memory stays as it
 * is. Within the reserved rows. */
void pyr_cache_pack_layer(pyr_cache *cache, int layer);
void pyr_cache_pack(pyr_cache *cache);
/* tidy.c: gives back memory that rows have left in all tiers, by moving pages together; of several
 * caches of one pool at once. Cannot fail. Nothing is held that goes back to what was: an undo or a
 * snapshot keeps its pages where they are. */
void pyr_cache_tidy(pyr_cache *cache);
void pyr_caches_tidy(pyr_cache *const *caches, int count);
/* Learns the lane's frame from rows [begin, end) of its own, or the first of them. Whether it is
 * there: already, or now; not where rows are few, or memory is short. */
bool pyr_lane_learn(pyr_cache *cache, pyr_lane *lane, int64_t begin, int64_t end);
/* Whether lanes of the layer, in any tier, want to know what queries need: their pool packs, and
 * they have learned nothing yet. And tells those: sums of squares of queries [heads, head_dim],
 * host memory, those of a lane's query heads together. */
bool pyr_cache_wants_needs(const pyr_cache *cache, int layer);
void pyr_cache_add_needs(pyr_cache *cache, int layer, const float *sums);
/* Gives a lane `rows` rows, what lies beside them (room for whole pages; born: wide pages) and,
 * unless `pages` is NULL, the pages [count] of them, which lose a reference else; what it has goes.
 * Takes all of it over. Cannot fail. */
void pyr_lane_put_back(pyr_cache *cache, pyr_lane *lane, int64_t rows, int32_t *positions,
                       float *history, int32_t *born, pyr_page **pages, int64_t count);
/* Copies shared pages from row `from` on, so that a later gather cannot fail. A fork of a lane
 * of 3 pages, unshared from row 40 on, has page 0 in common and pages 1 and 2 of its own. */
pyr_status pyr_lane_unshare(pyr_cache *cache, pyr_lane *lane, int64_t from);
/* Keeps rows idx[0..keep), ascending backend memory, of which the first `fixed` are known to be
 * 0..fixed-1, in each of `count` lanes that follow each other and hold equally many: pages of those
 * stay shared. Fails, and allocates, only where shared pages must be copied; then the lanes are as
 * before. views: scratch, host [2 * count]. Bytes moved: at most those of the rows behind
 * `fixed` that stay. */
pyr_status pyr_lanes_gather(pyr_cache *cache, pyr_lane *lanes, int count, pyr_lane_view *views,
                            const int32_t *idx, int64_t keep, int64_t fixed);

/* A lane of `rows` rows that has the first `skip` pages in common with `lane`, and fresh ones
 * behind them, whose rows are yet to be written: what lies beside them, too, from row skip *
 * PYR_PAGE_ROWS on. All or nothing. A lane of 70 rows remade with 90 and skip 1 shares rows 0 to
 * 31. */
pyr_status pyr_lane_remake(pyr_cache *cache, const pyr_lane *lane, int64_t skip, int64_t rows,
                           pyr_lane *out);
/* `made` takes the place of the lane, whose pages lose a reference, with its frame and what is
 * known of its pages; the first `same` rows are those that it had. Cannot fail. */
void pyr_lane_replace(pyr_cache *cache, pyr_lane *lane, pyr_lane *made, int64_t same);
/* It is empty then, and may be used again. */
void pyr_lane_free(pyr_cache *cache, pyr_lane *lane);

/* Of several ranks: tells how long the lanes of each are, where plans may have made them unequal.
 * All of them call it, when rows have gone. PYR_DEVICE alone: takes no memory. */
pyr_status pyr_cache_level(pyr_cache *cache);

/* line.c, of several stages; all of them call it. What of other stages' layers is known is brought
 * up to date; counts n rows that a step has added to them. A number that a layer's stage has; the
 * sum of all stages' numbers. PYR_DEVICE alone. */
pyr_status pyr_cache_line_sync(pyr_cache *cache);
void pyr_cache_line_grow(pyr_cache *cache, int64_t by);
pyr_status pyr_cache_line_tell(const pyr_cache *cache, int layer, int64_t *number);
pyr_status pyr_cache_line_sum(const pyr_cache *cache, int64_t *number);
size_t pyr_cache_line_bytes(const pyr_model *model);

/* Rows have changed: what a probe found out of them goes, and a trial of them ends. */
void pyr_cache_rows_changed(pyr_cache *cache);

/* resident.c: each layer that is in no stride begins one, whose lanes have room for a row, which is
 * theirs alone; their views on the backend are right then. PYR_MEMORY; some have begun then. */
pyr_status pyr_strides_begin(pyr_cache *cache);
/* Views of a layer's lanes in backend memory; in a stride. */
static inline pyr_lane_view *pyr_stride_views(const pyr_cache *cache, int layer) {
  return cache->resident + (int64_t)layer * cache->heads;
}
/* A row has been stored in each of the layer's lanes. */
static inline void pyr_stride_add_row(pyr_cache *cache, int layer) {
  cache->strides[layer].ahead++;
  cache->strides[layer].left--;
}
/* What the backend's views say is not known: a step failed. And they go. */
void pyr_strides_forget(pyr_cache *cache);
void pyr_strides_free(pyr_cache *cache);

/* trial.c: a trial of n tokens begins: rows for them are reserved, and none is there yet. All or
 * nothing. */
pyr_status pyr_trial_begin(pyr_cache *cache, int64_t n);
/* Keeps the histories of a layer as they are before token t (from 0) of the trial, whose row is
 * there. */
pyr_status pyr_trial_remember(pyr_cache *cache, int layer, int64_t t);
/* Whether tracked attention can go back to what it was when n tokens had been seen. */
bool pyr_trial_covers(const pyr_cache *cache, int64_t n);
/* Puts the histories back; lanes have been cut to n tokens. */
pyr_status pyr_trial_put_back(pyr_cache *cache, int64_t n);
void pyr_trial_end(pyr_cache *cache);    /* there is no way back any more */
void pyr_trial_free(pyr_cache *cache);

/* A copy that shares all pages; also the snapshot that a failed prefill returns to. Takes
 * references to pages, no bytes of the budget but what lies beside the rows. */
pyr_status pyr_cache_snapshot(const pyr_cache *cache, pyr_cache **out);
/* swaps contents; frees the snapshot */
void pyr_cache_restore(pyr_cache *cache, pyr_cache *snapshot);

#endif
