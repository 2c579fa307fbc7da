/* pages.h — the page pool: fixed-size pages of rows, handed out and returned under one byte budget.
 *
 * A page is shared by counting references; whoever wants to write needs the only reference. Pages
 * are cut from slabs, one allocation each: there they begin where pages of memory do, and a step
 * reads them faster than if each lay for itself. A slab goes back to the allocator with its last
 * page, and slabs are a small part of what is held; the pool's bytes are those of pages in use,
 * what its caches hold. The pool also counts the per-row bookkeeping of lanes (positions, history),
 * and keeps the workspace of decode steps between them.
 *
 *     slab   [page 0][page 1] ... [page 15]        one allocation, pages begin at 4096 bytes
 *               |       |
 *     lane A   rows 0..31  (refs 2) --+
 *     lane A'  a fork of it       ----+            shared until one of them writes into it
 *
 *     page   [K of 32 rows][V of 32 rows]          plain
 *            [K of 32 rows][V of 32 rows][K as it came]   wide: of lanes whose keys are turned
 *            either, packed: planes in the layout's few bits, of pages that are full (pack.c)
 *
 * In bytes: head_dim 64 in f16 makes rows of 128 bytes, a plain page 2 * 32 * 128 = 8192 bytes. */
#ifndef PYR_PAGES_H
#define PYR_PAGES_H

#include "backend/backend.h"
#include "cache/tier_file.h"

typedef struct pyr_slab pyr_slab;

typedef struct pyr_page {
  int32_t refs, kind;
  void *data;              /* backend memory, its kind's page_bytes */
  pyr_slab *slab;
  struct pyr_page *next;   /* while it is free: the slab's next free page */
} pyr_page;

/* Wide: with K as it came (op_args.h). A kind is the sum of what is true of it. */
enum { PYR_PAGE_PLAIN, PYR_PAGE_WIDE, PYR_PAGE_PACKED, PYR_PAGE_PACKED_WIDE, PYR_PAGE_KINDS };

/* What describes a page counts with it: this struct, and its entries in a lane's table. */
enum { PYR_PAGE_BESIDE = 48 };

struct pyr_pool {
  int32_t refs;
  pyr_model *model;        /* retained */
  pyr_runtime *rt;
  pyr_backend *be;
  pyr_layout layout;
  size_t page_bytes[PYR_PAGE_KINDS];
  size_t budget;           /* 0: none */
  size_t held;             /* pages in use and bookkeeping, each shared page once */
  pyr_slab *open[PYR_PAGE_KINDS];   /* slabs that have free pages: the first is used up first */
  pyr_slab *leaving;       /* slabs that are being emptied: no page is taken from them (tidy.c) */
  int64_t pages[PYR_PAGE_KINDS];    /* in use, … */
  int64_t spare[PYR_PAGE_KINDS];    /* … and free, of slabs that are there */
  int64_t coming;          /* pages that the call that is running will want: slabs are as large */
  size_t stuck;            /* bytes of spare pages that the last try to empty slabs left, as others
                              have what lies beside them; 0: it left few */
  void *workspace;         /* of decode steps, kept between them; backend memory */
  size_t workspace_bytes;

  /* Tiers: each has a pool, of its own dtype and limits; a cache's rows lie in all of them. */
  pyr_tier tier;
  pyr_pool *below;         /* the next tier's, which goes with this one; NULL: this is the last */
  pyr_pool *top;           /* the hot tier's, whose budget is that of all tiers in memory and whose
                              `held` counts them all; NULL: this is it. Not retained */
  int64_t rows_most;       /* rows of a lane of the tier; 0: any number */
  pyr_tier_file *place;        /* the file that its pages lie in; NULL: memory */
  int32_t lifted;          /* top: while it is not 0, budgets are not asked: rows are on their way
                              from one tier to another, and lie in both for a moment */
  bool pressed;            /* top: where the budget is full, rows go down a tier (tiers.h) */
};

static inline pyr_pool *pyr_pool_top(pyr_pool *pool) { return pool->top ? pool->top : pool; }
static inline const char *pyr_tier_text(pyr_tier tier) {
  return tier == PYR_TIER_HOT ? "hot" : tier == PYR_TIER_WARM ? "warm" : "cold";
}

/* References are counted without locks: pools, caches and models of one runtime belong
 * to one thread at a time. */
pyr_pool *pyr_pool_retain(pyr_pool *pool);

/* A fresh page with one reference, contents undefined. PYR_BUDGET or PYR_MEMORY. Plain pages of
 * a lane's rows 0 to 31 take page_bytes[PYR_PAGE_PLAIN] + PYR_PAGE_BESIDE of the budget, whoever
 * shares them later. */
pyr_status pyr_page_new(pyr_pool *pool, int kind, pyr_page **out);
/* The same whatever the budget says, for a page that takes the place of a larger one at once. */
pyr_status pyr_page_replacement(pyr_pool *pool, int kind, pyr_page **out);
void pyr_page_retain(pyr_page *page);
void pyr_page_free(pyr_pool *pool, pyr_page *page);  /* drops one reference; NULL is legal */

/* Whether free pages are more than a hundredth of what is held. Then picks slabs of a kind to be
 * emptied, the emptiest ones: whether there are any. Until pyr_pool_thinned no page comes from
 * them, and a page in one of them is best replaced (pyr_page_replacement) by its holder. Of slabs
 * with 16, 12, 3 and 1 of 16 pages in use the last two leave: their 4 fit where the second has
 * room. */
bool pyr_pool_gaping(pyr_pool *pool);
bool pyr_pool_thin(pyr_pool *pool, int kind);
bool pyr_page_leaves(const pyr_page *page);
void pyr_pool_thinned(pyr_pool *pool);

/* Bookkeeping of a lane grows or shrinks to so many bytes. PYR_BUDGET: nothing has changed; never
 * for less than there was. A lane whose bookkeeping grows from 64 to 96 rows, without a history,
 * charges 256 and 384 bytes: 128 more. */
pyr_status pyr_pool_charge(pyr_pool *pool, size_t before, size_t bytes);

/* The same without asking: what is put back was held before. */
void pyr_pool_recount(pyr_pool *pool, size_t before, size_t bytes);
/* The decode workspace, at least `bytes` long; contents are not kept when it grows. Not counted
 * against the budget. */
pyr_status pyr_pool_workspace(pyr_pool *pool, size_t bytes, void **out);

#endif
