/* pages.c — see pages.h. */
#include "cache/pages.h"
#include "base/dtype.h"
#include "base/rowbits.h"
#include "base/versioned.h"
#include "ranks/ranks.h"

#include <stdio.h>

static bool on_cpu(const pyr_dtype_info *info) { return info->cpu & PYR_KERNEL_ROWS; }
static bool on_device(const pyr_dtype_info *info) { return info->device & PYR_KERNEL_ROWS; }

/* Refuses a dtype that cannot hold rows before it takes anything. The pool keeps its model:
 * caches keep the pool, so a model outlives the last cache of it. Slabs come with the first
 * page. */
pyr_status pyr_pool_new_packed(pyr_model *model, pyr_dtype dtype, pyr_bits k, pyr_bits v,
                               size_t budget, pyr_pool **out) {
  pyr_runtime *rt = pyr_model_runtime(model);
  const pyr_model_config *config = pyr_model_get_config(model);
  const char *name = pyr_dtype_name(dtype);
  bool device = pyr_runtime_backend(rt)->own_memory;
  char known[128];
  if (!(pyr_dtype_kernels(dtype, device) & PYR_KERNEL_ROWS))
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED, "cache dtype %s: use one of %s",
                                 name ? name : "?",
                                 pyr_dtype_list(known, sizeof known, device ? on_device : on_cpu));
  if (config->head_dim % pyr_dtype_block(dtype) != 0)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "cache dtype %s needs head_dim %% %d == 0, and it is %d",
                                 name, pyr_dtype_block(dtype), (int)config->head_dim);
  if (pyr_dtype_bytes(dtype, config->head_dim) % 2 != 0)      /* rows begin at even addresses */
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "cache dtype %s needs an even head_dim, and it is %d", name,
                                 (int)config->head_dim);
  pyr_layout layout = { dtype, config->head_dim, k, v };
  if (pyr_layout_packs(layout) && device)
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "cache rows of few bits (q4, q3, q2) need the processor: devices "
                                 "have no kernels for them yet");
  if (pyr_layout_packs(layout) && (config->head_dim % PYR_BITS_STEP != 0
                                   || config->head_dim > PYR_BITS_DIMS))
    return pyr_runtime_set_error(rt, PYR_UNSUPPORTED,
                                 "cache rows of few bits (q4, q3, q2) need head_dim %% %d == 0, "
                                 "and it is %d", PYR_BITS_STEP, (int)config->head_dim);
  pyr_pool *pool = pyr_alloc_zero(rt, sizeof *pool);
  if (!pool) return pyr_nomem(rt, sizeof *pool, "the page pool");
  pool->refs = 1;
  pool->model = pyr_model_retain(model);
  pool->rt = rt;
  pool->be = pyr_runtime_backend(rt);
  pool->layout = layout;
  for (int kind = 0; kind < PYR_PAGE_KINDS; kind++)
    pool->page_bytes[kind] = pyr_layout_page_bytes(layout, kind & PYR_PAGE_PACKED,
                                                   kind & PYR_PAGE_WIDE);
  pool->budget = budget;
  *out = pool;
  return PYR_OK;
}

pyr_status pyr_pool_new(pyr_model *model, pyr_dtype dtype, size_t budget, pyr_pool **out) {
  return pyr_pool_new_packed(model, dtype, PYR_BITS_PLAIN, PYR_BITS_PLAIN, budget, out);
}

pyr_pool *pyr_pool_retain(pyr_pool *pool) {
  pool->refs++;
  return pool;
}

/* With the last reference no page is held: caches hold the pool, and give their pages back
 * first. So there is no slab left to free, only the workspace. */
void pyr_pool_free(pyr_pool *pool) {
  if (pool == NULL || --pool->refs > 0) return;
  pyr_pool_free(pool->below);
  pyr_tier_file_free(pool->place);
  pool->be->release(pool->be, pool->workspace, pool->workspace_bytes);
  pyr_model *model = pool->model;
  pyr_release(pool->rt, pool, sizeof *pool);
  pyr_model_free(model);
}

/* What lies in a file counts, too, beside what the top's budget is of. */
size_t pyr_pool_bytes(const pyr_pool *pool) {
  size_t bytes = pool->held;
  for (const pyr_pool *p = pool->below; p; p = p->below)
    for (int kind = 0; kind < PYR_PAGE_KINDS && p->place; kind++)
      bytes += (size_t)p->pages[kind] * p->page_bytes[kind];
  return bytes;
}

/* Written so that nothing overflows: held may be above the budget (rows put back after a failure
 * are not asked for), and `bytes` may be anything. Budget 100,000, 95,000 held: 5,000 more fit,
 * 5,001 do not. */
static pyr_status check_one(const pyr_pool *pool, size_t bytes) {
  if (!pool->budget || (pool->held <= pool->budget && bytes <= pool->budget - pool->held))
    return PYR_OK;
  if (pool->top)
    return pyr_runtime_set_error(pool->rt, PYR_BUDGET,
                                 "the %zu bytes of tier \"%s\" are full: %zu held, %zu more wanted",
                                 pool->budget, pyr_tier_text(pool->tier), pool->held, bytes);
  return pyr_runtime_set_error(pool->rt, PYR_BUDGET,
                               "the cache's budget of %zu bytes is full: %zu held, %zu more "
                               "wanted", pool->budget, pool->held, bytes);
}

/* A tier's own limit, and that of all tiers; what lies in a file is not memory. */
static pyr_status check_budget(const pyr_pool *pool, size_t bytes) {
  const pyr_pool *top = pool->top ? pool->top : pool;
  if (top->lifted) return PYR_OK;
  pyr_status status = check_one(pool, bytes);
  return status == PYR_OK && pool->top ? check_one(top, bytes) : status;
}

/* Three tiers, the last in a file: of 60,000 hot, 30,000 warm and 200,000 cold bytes of pages,
 * 90,000 are of the budget, and `held` is 90,000, 30,000 and 200,000. */
static void hold(pyr_pool *pool, size_t less, size_t more) {
  pool->held = pool->held - less + more;
  if (pool->top) pool->top->held = pool->top->held - less + more;
}

pyr_status pyr_pool_charge(pyr_pool *pool, size_t before, size_t bytes) {
  pyr_status status = bytes > before ? check_budget(pool, bytes - before) : PYR_OK;
  if (status == PYR_OK) hold(pool, before, bytes);
  return status;
}

/* Of a page: what describes it is in memory, wherever the page lies. */
static void hold_page(pyr_pool *pool, int kind, bool more) {
  size_t bytes = pool->page_bytes[kind], memory = PYR_PAGE_BESIDE + (pool->place ? 0 : bytes);
  size_t own = bytes + PYR_PAGE_BESIDE;
  pool->held = more ? pool->held + own : pool->held - own;
  if (pool->top) pool->top->held = more ? pool->top->held + memory : pool->top->held - memory;
  pool->pages[kind] += more ? 1 : -1;
}

void pyr_pool_recount(pyr_pool *pool, size_t before, size_t bytes) {
  hold(pool, before, bytes);
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* A slab of 16 pages, of which 3 are in use:
 *
 *     block   |pad|[0][1][2][3] ... [15]        of a large slab, pages begin at a multiple of 4096
 *     pages     0 1 2 in use: refs >= 1
 *     free      3 -> 4 -> ... -> 15             linked through `next`, the lowest first
 *     used 3    the slab is listed in pool->open[kind], as it has free pages
 *
 * Invariants: a slab is listed while, and only while, it has a free page, in pool->leaving while it
 * is being emptied; used + free pages = count; a slab of which none is used is gone. */
struct pyr_slab {
  pyr_slab *before, *after;      /* in the pool's list, while it has free pages */
  void *block;                   /* backend memory */
  size_t bytes;
  pyr_page *free;
  int kind;
  bool leaving;
  int64_t used, count;
  pyr_page pages[];
};

enum {
  ALIGN = 4096,                  /* of the first page of a slab, … */
  ALIGN_PART = 128,              /* … if that is at most this part of it */
  SLAB_PART = 128,               /* as large as is wanted, or this part of the pages in use, … */
  SLAB_BYTES = 2 << 20,          /* … and so many bytes at most: a large page of the system's */
  SPARE_PART = 128,              /* of what is held: more than that in free pages is tidied up, … */
  LEFT_PART = 512,               /* … to less than this, of each kind */
};

enum { FILE_PAGES = 16 };        /* plain ones of a slab in a file: extents are of one size */

static size_t file_extent(const pyr_pool *pool) {
  return (FILE_PAGES * pool->page_bytes[PYR_PAGE_PLAIN] + ALIGN - 1) / ALIGN * ALIGN;
}

/* 16 plain pages of 8,192 bytes; or, of pages that are packed to 1,160 bytes, 113. */
static int64_t file_pages(const pyr_pool *pool, int kind) {
  return (int64_t)(file_extent(pool) / pool->page_bytes[kind]);
}

/* Sanitizers see the end of an allocation: there each page is one. */
#if defined(__SANITIZE_ADDRESS__)
static int64_t slab_pages(const pyr_pool *pool, int kind) {
  return pool->place ? file_pages(pool, kind) : 1;
}
#else
/* Of pages of 8192 bytes, at most 2 MiB / 8192 = 256. A prompt of 2,000 tokens that is read into 3
 * lanes of 30 layers wants 189 for a layer and as many for the next: 256 are taken. Once 5,670
 * pages are in use a step that wants 90 more takes 5,670 / 128 = 44 at a time. What is taken and
 * not used is so a hundredth of what is held, at most. A page larger than 2 MiB is alone. */
static int64_t slab_pages(const pyr_pool *pool, int kind) {
  if (pool->place) return file_pages(pool, kind);
  int64_t most = (int64_t)(SLAB_BYTES / pool->page_bytes[kind]),
      wanted = pool->pages[kind] / SLAB_PART;
  if (wanted < pool->coming) wanted = pool->coming;
  if (wanted < 1) wanted = 1;
  return wanted < most ? wanted : most > 1 ? most : 1;
}
#endif

static size_t slab_bytes(int64_t count) {
  return sizeof(pyr_slab) + (size_t)count * sizeof(pyr_page);
}

static pyr_slab **list_of(pyr_pool *pool, const pyr_slab *slab) {
  return slab->leaving ? &pool->leaving : &pool->open[slab->kind];
}

/* At the front: the slab that last got a page back is used up first, and the others may run
 * empty and go. */
static void list_slab(pyr_pool *pool, pyr_slab *slab) {
  pyr_slab **list = list_of(pool, slab);
  slab->before = NULL;
  slab->after = *list;
  if (slab->after) slab->after->before = slab;
  *list = slab;
}

static void unlist_slab(pyr_pool *pool, pyr_slab *slab) {
  if (slab->before) slab->before->after = slab->after;
  else *list_of(pool, slab) = slab->after;
  if (slab->after) slab->after->before = slab->before;
}

/* Memory, or an extent of the tier's file; a file that is full, or a disk, says so itself. */
static pyr_status block_new(pyr_pool *pool, size_t bytes, void **out) {
  if (pool->place) return pyr_tier_file_take(pool->place, out);
  *out = pool->be->alloc(pool->be, bytes);
  return *out ? PYR_OK : pyr_nomem(pool->rt, bytes, "the cache");
}

static void block_free(pyr_pool *pool, void *block, size_t bytes) {
  if (pool->place) pyr_tier_file_give(pool->place, block);
  else pool->be->release(pool->be, block, bytes);
}

/* What makes room for the pages to begin at a multiple of 4096: nothing of 16 pages of 8,192 bytes,
 * where it would be a 32nd, and 4,096 of 64 of them. */
static size_t pad_bytes(size_t bytes) { return bytes / ALIGN >= ALIGN_PART ? ALIGN : 0; }

/* A slab of `count` pages. The host's part and the block come together, or neither. */
static pyr_status slab_new(pyr_pool *pool, int kind, int64_t count, pyr_slab **out) {
  size_t bytes = (size_t)count * pool->page_bytes[kind], pad = pad_bytes(bytes);
  void *block = NULL;
  if (!pool->place) bytes += pad;
  PYR_TRY(block_new(pool, bytes, &block));
  pyr_slab *slab = pyr_alloc(pool->rt, slab_bytes(count));
  if (!slab) {
    block_free(pool, block, bytes);
    return pyr_nomem(pool->rt, slab_bytes(count), "the cache");
  }
  *slab = (pyr_slab){ .block = block, .bytes = bytes, .kind = kind, .count = count };
  char *data = (char *)block + (pad ? (ALIGN - (uintptr_t)block % ALIGN) % ALIGN : 0);
  for (int64_t i = count - 1; i >= 0; i--) {
    slab->pages[i] = (pyr_page){ .data = data + (size_t)i * pool->page_bytes[kind], .slab = slab,
                                 .kind = kind, .next = slab->free };
    slab->free = &slab->pages[i];
  }
  list_slab(pool, slab);
  pool->spare[kind] += count;
  *out = slab;
  return PYR_OK;
}

/* The budget is asked first, and counts the page, not the slab. */
pyr_status pyr_page_new(pyr_pool *pool, int kind, pyr_page **out) {
  size_t bytes = PYR_PAGE_BESIDE + (pool->place ? 0 : pool->page_bytes[kind]);
  pyr_status status = check_budget(pool, bytes);
  return status == PYR_OK ? pyr_page_replacement(pool, kind, out) : status;
}

/* Where memory is short a smaller slab is tried: of 50 pages, then 12, then 3. Extents of a file
 * are of one size, and one is tried. On failure nothing has changed. */
pyr_status pyr_page_replacement(pyr_pool *pool, int kind, pyr_page **out) {
  pyr_slab *slab = pool->open[kind];
  pyr_status status = PYR_OK;
  for (int64_t count = slab_pages(pool, kind); !slab && count > 0;
       count = pool->place ? 0 : count / 4)
    status = slab_new(pool, kind, count, &slab);
  if (!slab) return status;
  pyr_page *page = slab->free;
  slab->free = page->next;
  if (!slab->free) unlist_slab(pool, slab);
  slab->used++;
  pool->spare[kind]--;
  if (pool->coming > 0) pool->coming--;
  hold_page(pool, kind, true);
  page->refs = 1;
  *out = page;
  return PYR_OK;
}

void pyr_page_retain(pyr_page *page) { page->refs++; }

/* The page's memory is not cleared: who gets it next writes rows before it reads them. The slab
 * goes with its last page, so memory returns as caches shrink. */
void pyr_page_free(pyr_pool *pool, pyr_page *page) {
  if (page == NULL || --page->refs > 0) return;
  pyr_slab *slab = page->slab;
  hold_page(pool, slab->kind, false);
  pool->spare[slab->kind]++;
  if (--slab->used == 0) {
    if (slab->free) unlist_slab(pool, slab);
    pool->spare[slab->kind] -= slab->count;
    block_free(pool, slab->block, slab->bytes);
    pyr_release(pool->rt, slab, slab_bytes(slab->count));
    return;
  }
  if (!slab->free) list_slab(pool, slab);
  page->next = slab->free;
  slab->free = page;
}

/* ---- emptying slabs -------------------------------------------------------------------------- */

static size_t spare_bytes(const pyr_pool *pool) {
  size_t bytes = 0;
  for (int kind = 0; kind < PYR_PAGE_KINDS; kind++)
    bytes += (size_t)pool->spare[kind] * pool->page_bytes[kind];
  return bytes;
}

/* The part of its pages that a slab uses: of 3 of 16 and 20 of 256 the second is less. */
static double fullness(const pyr_slab *slab) { return (double)slab->used / (double)slab->count; }

/* Until few free pages stay. Each turn takes the emptiest slab that is open, looking at all of
 * them: 30 slabs of 256 pages hold 60 MB. Invariant: `spare` pages are free in slabs that stay,
 * and `used` ones lie in those that leave; what does not fit gets a slab of its own, as large. */
bool pyr_pool_thin(pyr_pool *pool, int kind) {
  int64_t left = (int64_t)(pool->held / LEFT_PART / pool->page_bytes[kind]);
  int64_t spare = pool->spare[kind], used = 0;
  while (spare - used > left) {
    pyr_slab *least = pool->open[kind];
    for (pyr_slab *slab = least; slab; slab = slab->after)
      if (fullness(slab) < fullness(least)) least = slab;
    if (!least) break;
    unlist_slab(pool, least);
    least->leaving = true;
    list_slab(pool, least);
    spare -= least->count - least->used;
    used += least->used;
  }
  pool->coming = used > spare ? used - spare : 0;
  return used > 0;
}

/* Where others hold what lies in half-empty slabs a try is of no use, until there is more. */
bool pyr_pool_gaping(pyr_pool *pool) {
  size_t spare = spare_bytes(pool);
  if (pool->place || pool->be->own_memory) return false;
  if (spare <= pool->held / SPARE_PART) pool->stuck = 0;
  return spare > pool->held / SPARE_PART && spare > pool->stuck + pool->stuck / 4;
}

bool pyr_page_leaves(const pyr_page *page) { return page->slab->leaving; }

/* What could not be emptied serves on. */
void pyr_pool_thinned(pyr_pool *pool) {
  while (pool->leaving) {
    pyr_slab *slab = pool->leaving;
    unlist_slab(pool, slab);
    slab->leaving = false;
    list_slab(pool, slab);
  }
  pool->coming = 0;
  pool->stuck = spare_bytes(pool) > pool->held / SPARE_PART ? spare_bytes(pool) : 0;
}

/* ---- the workspace --------------------------------------------------------------------------- */

/* It never shrinks, and the old block serves on if a larger one cannot be had. One step at a
 * time uses it: steps of one pool follow each other. */
pyr_status pyr_pool_workspace(pyr_pool *pool, size_t bytes, void **out) {
  if (bytes > pool->workspace_bytes) {
    void *fresh = pool->be->alloc(pool->be, bytes);
    if (!fresh) return pyr_nomem(pool->rt, bytes, "the decode workspace");
    pool->be->release(pool->be, pool->workspace, pool->workspace_bytes);
    pool->workspace = fresh;
    pool->workspace_bytes = bytes;
  }
  *out = pool->workspace;
  return PYR_OK;
}

/* ---- tiers ----------------------------------------------------------------------------------- */

/* A cache that is made of the pool before would not have the tier: so there must be none. */
static pyr_status check_tier(const pyr_pool *pool, const pyr_pool *last,
                             const pyr_tier_options *o) {
  if (o->tier <= last->tier || o->tier > PYR_TIER_COLD)
    return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                 "tiers are declared once each, from the hot one down");
  if (!pool->be->move_rows)
    return pyr_runtime_set_error(pool->rt, PYR_UNSUPPORTED,
                                 "tier \"%s\": the backend %s has no tiers; they are the "
                                 "processor's", pyr_tier_text(o->tier), pool->be->name);
  if (pool->refs > 1 || pool->top)
    return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                 "tier \"%s\": the pool has caches already",
                                 pyr_tier_text(o->tier));
  if (o->rows < 0)
    return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT, "tier \"%s\": rows is negative",
                                 pyr_tier_text(o->tier));
  if (o->file && !o->bytes)
    return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT,
                                 "tier \"%s\": a file needs bytes, the most that it may hold",
                                 pyr_tier_text(o->tier));
  return PYR_OK;
}

/* A tier's file. Ranks may be told of one path, and each needs one of its own: of "rows" rank 1 has
 * "rows.1". */
static pyr_status open_place(pyr_pool *made, const pyr_tier_options *o) {
  const pyr_ranks *ranks = pyr_runtime_ranks(made->rt);
  if (pyr_ranks_size(ranks) == 1)
    return pyr_tier_file_new(made->rt, o->file, o->bytes, file_extent(made), &made->place);
  size_t bytes = strlen(o->file) + 16;
  char *path = pyr_alloc(made->rt, bytes);
  if (!path) return pyr_nomem(made->rt, bytes, "the path of a tier's file");
  snprintf(path, bytes, "%s.%d", o->file, pyr_ranks_rank(ranks));
  pyr_status status = pyr_tier_file_new(made->rt, path, o->bytes, file_extent(made), &made->place);
  pyr_release(made->rt, path, bytes);
  return status;
}

/* A file's bound is its extents', which say so themselves: pages that are counted in halves of one
 * would be a second bound beside it. One rank alone may have no room for its file: then none has
 * the tier. */
pyr_status pyr_pool_add_tier(pyr_pool *pool, const pyr_tier_options *options) {
  pyr_tier_options o;
  pyr_pool *last = pool, *made = NULL;
  const char *fault = pyr_take_options(&o, sizeof o, sizeof o, options);
  if (fault) return pyr_runtime_set_error(pool->rt, PYR_ARGUMENT, "a tier: %s", fault);
  while (last->below) last = last->below;
  PYR_TRY(check_tier(pool, last, &o));
  pyr_ranks_begin(pool->rt);
  pyr_status status = pyr_pool_new_packed(pool->model, o.dtype, o.k, o.v, o.file ? 0 : o.bytes,
                                          &made);
  if (status == PYR_OK) {
    made->tier = o.tier;
    made->rows_most = o.rows;
    if (o.file) status = open_place(made, &o);
  }
  status = pyr_ranks_end(pool->rt, status);
  if (status != PYR_OK) {
    pyr_pool_free(made);
    return status;
  }
  made->top = pool;
  last->below = made;
  return PYR_OK;
}

pyr_runtime *pyr_pool_runtime(const pyr_pool *pool) { return pool->rt; }
/* For all caches of the pool, as the budget is. */
void pyr_pool_set_pressure(pyr_pool *pool, int demote) { pool->pressed = demote != 0; }
