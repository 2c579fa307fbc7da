/* guide.c — see guide.h. A grammar's states, made when they are met.
 *
 * What a text may go on with is a set of stacks: each is a node that reads a byte, and below it
 * the nodes to return to. Stacks share their lower ends, so each is one number, a frame (node,
 * frame below), and the same stack is the same number. For  root ::= "[" (root ",")* "]"  behind
 * the text "[[" (r: where the inner root returns to):
 *
 *     frame 3: the "[" of the inner list's first item ─┐
 *     frame 4: the "]" of the inner list ──────────────┴─ frame 1: r ── frame 0: the "]" …
 *
 * A state is such a set, sorted, and again the same set is the same number. From a state and the
 * class of a byte follows one state, which is worked out once: the automaton of the grammar, made
 * as far as texts have gone (lazily, as RE2 does it for expressions). State 0 is the empty set:
 * no way on.
 *
 * A state's mask, the tokens that may follow, comes of one walk through the trie of the vocabulary:
 * each of its nodes is one lookup, and what leads to state 0 is skipped with all below it. Masks
 * are kept with their states.
 *
 * Bounds. A state has at most MOST_STACKS stacks, and one step looks at MOST_STEPS nodes: what is
 * more ambiguous is an error that names the rule. Where all that was found out takes more than
 * KEEP bytes, it is forgotten before the next mask, but for where texts stand; one mask alone may
 * take HOLD. So memory and time of a step are bounded whatever the grammar. */
#include "grammar/guide.h"

#include <string.h>

#define NONE UINT32_MAX
#define UNKNOWN UINT32_MAX
enum { MOST_STACKS = 8192, MOST_STEPS = 1 << 16 };
static const size_t KEEP = (size_t)24 << 20, HOLD = (size_t)64 << 20;

typedef struct frame { uint32_t node, below, stamp; } frame;   /* below NONE: the text's end */
typedef struct state {
  uint32_t first, count;         /* in `items`: frames, ascending */
  uint32_t *mask;                /* [words], or NULL: not asked for yet */
} state;

typedef struct tables {          /* all that is found out */
  pyr_buffer frames, states, items, next;   /* next: [states][classes] of uint32_t */
  uint32_t *frame_slots, *state_slots;      /* [slots], powers of two: index + 1; 0: free */
  size_t frame_room, state_room, mask_bytes;
} tables;

struct pyr_guide {
  pyr_runtime *rt;
  int refs;
  pyr_grammar *grammar;
  pyr_lexicon *lexicon;          /* NULL: texts alone */
  tables t;
  uint32_t stamp, start;         /* of the last step; the state before all texts */
  size_t kept;                   /* bytes that were left when it last forgot */
  pyr_buffer work, found;        /* frames to be looked at; those that read bytes, or end */
  uint32_t *path;                /* [longest + 1] states of a walk */
  pyr_place *places;
};

static uint32_t frame_count(const tables *t) {
  return (uint32_t)(t->frames.length / sizeof(frame));
}
static uint32_t state_count(const tables *t) {
  return (uint32_t)(t->states.length / sizeof(state));
}
static frame *frames_of(const tables *t) { return (frame *)t->frames.data; }
static state *states_of(const tables *t) { return (state *)t->states.data; }
static uint32_t *items_of(const tables *t) { return (uint32_t *)t->items.data; }

static void free_tables(pyr_guide *g, tables *t) {
  for (uint32_t i = 0; i < state_count(t); i++)
    if (states_of(t)[i].mask)
      pyr_release(g->rt, states_of(t)[i].mask, g->lexicon->words * sizeof(uint32_t));
  pyr_buffer_free(g->rt, &t->frames);
  pyr_buffer_free(g->rt, &t->states);
  pyr_buffer_free(g->rt, &t->items);
  pyr_buffer_free(g->rt, &t->next);
  if (t->frame_slots) pyr_release(g->rt, t->frame_slots, t->frame_room * sizeof *t->frame_slots);
  if (t->state_slots) pyr_release(g->rt, t->state_slots, t->state_room * sizeof *t->state_slots);
  memset(t, 0, sizeof *t);
}

static size_t bytes_of(const tables *t) {
  return t->frames.size + t->states.size + t->items.size + t->next.size + t->mask_bytes
      + (t->frame_room + t->state_room) * sizeof(uint32_t);
}

static pyr_status no_memory(pyr_guide *g) { return pyr_nomem(g->rt, 64, "a grammar's states"); }

/* Names the rule of a node. */
static pyr_status too_much(pyr_guide *g, uint32_t node, const char *what) {
  const pyr_grammar_rule *rule =
      &pyr_grammar_rules(g->grammar)[pyr_grammar_nodes(g->grammar)[node].rule];
  return pyr_runtime_set_error(g->rt, PYR_UNSUPPORTED, "grammar: %s (at rule '%.*s')", what,
                               (int)rule->name_length,
                               (char *)g->grammar->names.data + rule->name);
}

/* ---- frames and states, each once ------------------------------------------------------------ */

static uint32_t mix(uint32_t hash, uint32_t value) {
  hash = (hash ^ value) * 2654435769u;
  return hash ^ hash >> 15;
}

/* Makes a table of slots twice as large once it is half full; `hash_of` gives an index its hash. */
static bool grow_slots(pyr_guide *g, tables *t, uint32_t **slots, size_t *room, uint32_t count,
                       uint32_t (*hash_of)(const tables *t, uint32_t i)) {
  if (2 * ((size_t)count + 1) <= *room) return true;
  size_t more = *room ? 2 * *room : 256;
  uint32_t *fresh = pyr_alloc_zero(g->rt, more * sizeof *fresh);
  if (fresh == NULL) return false;
  for (uint32_t i = 0; i < count; i++) {
    size_t at = hash_of(t, i) & (more - 1);
    while (fresh[at]) at = (at + 1) & (more - 1);
    fresh[at] = i + 1;
  }
  if (*slots) pyr_release(g->rt, *slots, *room * sizeof *fresh);
  *slots = fresh;
  *room = more;
  return true;
}

static uint32_t hash_frame(const tables *t, uint32_t i) {
  return mix(mix(17, frames_of(t)[i].node), frames_of(t)[i].below);
}

/* The number of a frame; false: no memory. */
static bool find_frame(pyr_guide *g, tables *t, uint32_t node, uint32_t below, uint32_t *out) {
  if (!grow_slots(g, t, &t->frame_slots, &t->frame_room, frame_count(t), hash_frame)) return false;
  size_t mask = t->frame_room - 1, at = mix(mix(17, node), below) & mask;
  for (; t->frame_slots[at]; at = (at + 1) & mask) {
    *out = t->frame_slots[at] - 1;
    if (frames_of(t)[*out].node == node && frames_of(t)[*out].below == below) return true;
  }
  frame one = { node, below, 0 };
  *out = frame_count(t);
  if (!pyr_buffer_append(g->rt, &t->frames, &one, sizeof one)) return false;
  t->frame_slots[at] = *out + 1;
  return true;
}

static uint32_t hash_items(const uint32_t *items, uint32_t count) {
  uint32_t hash = count;
  for (uint32_t i = 0; i < count; i++) hash = mix(hash, items[i]);
  return hash;
}

static uint32_t hash_state(const tables *t, uint32_t i) {
  return hash_items(items_of(t) + states_of(t)[i].first, states_of(t)[i].count);
}

/* Shell's sort, as in gbnf.c. */
static void sort(uint32_t *x, uint32_t n) {
  uint32_t h = 1;
  while (h < n / 3) h = 3 * h + 1;
  for (; h > 0; h /= 3)
    for (uint32_t i = h; i < n; i++) {
      uint32_t moving = x[i], j = i;
      for (; j >= h && x[j - h] > moving; j -= h) x[j] = x[j - h];
      x[j] = moving;
    }
}

/* The number of the state of so many frames, which are sorted here; each is there once. */
static bool find_state(pyr_guide *g, tables *t, uint32_t *items, uint32_t count, uint32_t *out) {
  size_t classes = (size_t)g->grammar->classes, row = classes * sizeof(uint32_t);
  if (!grow_slots(g, t, &t->state_slots, &t->state_room, state_count(t), hash_state)) return false;
  sort(items, count);
  size_t mask = t->state_room - 1, at = hash_items(items, count) & mask;
  for (; t->state_slots[at]; at = (at + 1) & mask) {
    *out = t->state_slots[at] - 1;
    const state *s = &states_of(t)[*out];
    if (s->count == count && (count == 0 || memcmp(items_of(t) + s->first, items,
                                                   count * sizeof *items) == 0)) return true;
  }
  /* room for all three first: what is appended stays whole */
  state one = { (uint32_t)(t->items.length / sizeof *items), count, NULL };
  if (!pyr_buffer_reserve(g->rt, &t->items, count * sizeof *items)
      || !pyr_buffer_reserve(g->rt, &t->states, sizeof one)
      || !pyr_buffer_reserve(g->rt, &t->next, row)) return false;
  *out = state_count(t);
  (void)pyr_buffer_append(g->rt, &t->items, items, count * sizeof *items);
  (void)pyr_buffer_append(g->rt, &t->states, &one, sizeof one);
  memset(t->next.data + t->next.length, 0xff, row);              /* UNKNOWN */
  t->next.length += row;
  t->state_slots[at] = *out + 1;
  return true;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Puts a frame on the list of those to be looked at, unless it was there since the step began. */
static pyr_status look_at(pyr_guide *g, uint32_t node, uint32_t below) {
  uint32_t i;
  if (!find_frame(g, &g->t, node, below, &i)) return no_memory(g);
  frame *f = &frames_of(&g->t)[i];
  if (f->stamp == g->stamp) return PYR_OK;
  f->stamp = g->stamp;
  return pyr_buffer_append(g->rt, &g->work, &i, sizeof i) ? PYR_OK : no_memory(g);
}

/* Follows what is on the list without reading a byte, until frames are left that read one, or end.
 * As no rule calls itself before it reads a byte, calls come to an end; loops that read nothing do,
 * as no frame is looked at twice. */
static pyr_status follow(pyr_guide *g) {
  const pyr_grammar_node *nodes = pyr_grammar_nodes(g->grammar);
  const pyr_grammar_rule *rules = pyr_grammar_rules(g->grammar);
  uint32_t most = MOST_STEPS;
  while (g->work.length > 0) {
    g->work.length -= sizeof(uint32_t);
    uint32_t i = ((uint32_t *)g->work.data)[g->work.length / sizeof(uint32_t)];
    frame f = frames_of(&g->t)[i];
    const pyr_grammar_node *n = &nodes[f.node];
    bool reads = n->op == PYR_NODE_BYTES || (n->op == PYR_NODE_END && f.below == NONE);
    if (most-- == 0 || (reads && g->found.length >= MOST_STACKS * sizeof i))
      return too_much(g, f.node, "it is too ambiguous: more than 8192 ways to read the same text");
    if (reads) {
      if (!pyr_buffer_append(g->rt, &g->found, &i, sizeof i)) return no_memory(g);
    } else if (n->op == PYR_NODE_FORK) {
      PYR_TRY(look_at(g, n->b, f.below));
      PYR_TRY(look_at(g, n->a, f.below));
    } else if (n->op == PYR_NODE_END) {
      frame to = frames_of(&g->t)[f.below];
      PYR_TRY(look_at(g, to.node, to.below));
    } else {
      uint32_t back = f.below;   /* nothing is to be done there: the caller's caller is next */
      if (nodes[n->b].op != PYR_NODE_END && !find_frame(g, &g->t, n->b, f.below, &back))
        return no_memory(g);
      PYR_TRY(look_at(g, rules[n->a].start, back));
    }
    if (bytes_of(&g->t) > HOLD)
      return too_much(g, f.node, "its states take more than 64 MiB: it is too ambiguous, or nests "
                      "too deep");
  }
  return PYR_OK;
}

static void begin_step(pyr_guide *g) {
  g->work.length = g->found.length = 0;
  if (++g->stamp == 0) {         /* after 2^32 steps stamps begin anew */
    for (uint32_t i = 0; i < frame_count(&g->t); i++) frames_of(&g->t)[i].stamp = 0;
    g->stamp = 1;
  }
}

static pyr_status end_step(pyr_guide *g, uint32_t *out) {
  PYR_TRY(follow(g));
  if (!find_state(g, &g->t, (uint32_t *)g->found.data,
                  (uint32_t)(g->found.length / sizeof(uint32_t)), out)) return no_memory(g);
  return PYR_OK;
}

/* From a state by a class of bytes. */
static pyr_status step(pyr_guide *g, uint32_t from, uint32_t class, uint32_t *out) {
  size_t at = (size_t)from * (size_t)g->grammar->classes + class;
  *out = ((uint32_t *)g->t.next.data)[at];
  if (*out != UNKNOWN) return PYR_OK;
  const pyr_grammar_node *nodes = pyr_grammar_nodes(g->grammar);
  state s = states_of(&g->t)[from];
  begin_step(g);
  for (uint32_t i = 0; i < s.count; i++) {
    frame f = frames_of(&g->t)[items_of(&g->t)[s.first + i]];
    const pyr_grammar_node *n = &nodes[f.node];
    if (n->op == PYR_NODE_BYTES && pyr_grammar_has(g->grammar, n->a, g->grammar->byte_of[class]))
      PYR_TRY(look_at(g, n->b, f.below));
  }
  PYR_TRY(end_step(g, out));
  ((uint32_t *)g->t.next.data)[at] = *out;
  return PYR_OK;
}

/* State 0, the empty one, and the start. */
static pyr_status begin_tables(pyr_guide *g) {
  uint32_t zero;
  if (!find_state(g, &g->t, NULL, 0, &zero)) return no_memory(g);
  begin_step(g);
  PYR_TRY(look_at(g, pyr_grammar_rules(g->grammar)[0].start, NONE));
  return end_step(g, &g->start);
}

static bool may_end(const pyr_guide *g, uint32_t at) {
  const state *s = &states_of(&g->t)[at];
  for (uint32_t i = 0; i < s->count; i++) {
    frame f = frames_of(&g->t)[items_of(&g->t)[s->first + i]];
    if (pyr_grammar_nodes(g->grammar)[f.node].op == PYR_NODE_END) return true;
  }
  return false;
}

/* ---- forgetting ------------------------------------------------------------------------------ */

/* A frame of old tables in the new ones. The stack is walked down, and built up again. */
static bool move_frame(pyr_guide *g, const tables *old, uint32_t at, uint32_t *out) {
  uint32_t below = NONE;
  g->work.length = 0;
  for (uint32_t i = at; i != NONE; i = frames_of(old)[i].below)
    if (!pyr_buffer_append(g->rt, &g->work, &i, sizeof i)) return false;
  for (size_t k = g->work.length / sizeof at; k-- > 0; below = *out)
    if (!find_frame(g, &g->t, frames_of(old)[((uint32_t *)g->work.data)[k]].node, below, out))
      return false;
  return true;
}

static bool move_state(pyr_guide *g, const tables *old, uint32_t at, uint32_t *out) {
  state s = states_of(old)[at];
  g->found.length = 0;
  for (uint32_t i = 0; i < s.count; i++) {
    uint32_t moved;
    if (!move_frame(g, old, items_of(old)[s.first + i], &moved)
        || !pyr_buffer_append(g->rt, &g->found, &moved, sizeof moved)) return false;
  }
  return find_state(g, &g->t, (uint32_t *)g->found.data, s.count, out);
}

/* Only where texts stand is kept. Without memory nothing has changed: places get their new states
 * when all are known. */
static pyr_status forget(pyr_guide *g) {
  tables old = g->t;
  uint32_t start = g->start;
  memset(&g->t, 0, sizeof g->t);
  pyr_status status = begin_tables(g);
  for (pyr_place *p = g->places; status == PYR_OK && p; p = p->next)
    if (!move_state(g, &old, p->state, &p->moved)) status = no_memory(g);
  if (status != PYR_OK) {
    free_tables(g, &g->t);
    g->t = old;
    g->start = start;
    return status;
  }
  for (pyr_place *p = g->places; p; p = p->next) {
    p->state = p->moved;
    p->ready = false;
  }
  free_tables(g, &old);
  g->kept = bytes_of(&g->t);
  return PYR_OK;
}

/* More than it keeps; and twice what could not be forgotten last time, so that deep stacks are not
 * moved again and again. */
static bool is_full(const pyr_guide *g, size_t keep) {
  size_t held = bytes_of(&g->t);
  return held > keep && held / 2 > g->kept;
}

/* Before a mask. What another place asked for, and has not taken yet, is kept where it can be, as
 * taking does not fail then. */
static pyr_status make_room(pyr_guide *g, const pyr_place *mine) {
  bool waits = false;
  for (const pyr_place *p = g->places; p; p = p->next) waits |= p->ready && p != mine;
  return is_full(g, waits ? (KEEP + HOLD) / 2 : KEEP) ? forget(g) : PYR_OK;
}

/* ---- masks ----------------------------------------------------------------------------------- */

/* All tokens whose bytes lead from a state to one that is not empty, in one walk: path[d] is the
 * state before the byte at depth d. */
static pyr_status walk(pyr_guide *g, uint32_t from, uint32_t *mask) {
  const pyr_lexicon *x = g->lexicon;
  const pyr_trie_node *nodes = (const pyr_trie_node *)x->nodes.data;
  uint32_t count = (uint32_t)(x->nodes.length / sizeof *nodes);
  size_t classes = (size_t)g->grammar->classes;
  g->path[0] = from;
  for (uint32_t i = 0; i < count;) {
    const pyr_trie_node *n = &nodes[i];
    uint32_t class = g->grammar->class_of[n->byte],
        to = ((const uint32_t *)g->t.next.data)[g->path[n->depth] * classes + class];
    if (to == UNKNOWN) PYR_TRY(step(g, g->path[n->depth], class, &to));
    if (to == 0) {
      i = n->skip;
      continue;
    }
    g->path[n->depth + 1] = to;
    for (int32_t id = n->token; id >= 0; id = x->same[id]) mask[id / 32] |= 1u << (id % 32);
    i++;
  }
  if (may_end(g, from))
    for (size_t w = 0; w < x->words; w++) mask[w] |= x->ends[w];
  return PYR_OK;
}

pyr_status pyr_place_mask(pyr_place *place, uint32_t *mask) {
  pyr_guide *g = place->guide;
  size_t bytes = g->lexicon->words * sizeof *mask;
  if (place->lost)
    return pyr_runtime_set_error(g->rt, PYR_MEMORY, "grammar: there was no memory for where the "
                                 "text stands; begin anew");
  if (place->ended) {
    memset(mask, 0, bytes);
    return PYR_OK;
  }
  PYR_TRY(make_room(g, place));
  uint32_t *kept = states_of(&g->t)[place->state].mask;
  if (kept == NULL) {
    kept = pyr_alloc_zero(g->rt, bytes);
    if (kept == NULL) return pyr_nomem(g->rt, bytes, "a grammar's mask");
    pyr_status status = walk(g, place->state, kept);
    if (status != PYR_OK) {
      pyr_release(g->rt, kept, bytes);
      return status;
    }
    states_of(&g->t)[place->state].mask = kept;
    g->t.mask_bytes += bytes;
  }
  memcpy(mask, kept, bytes);
  place->ready = true;
  return PYR_OK;
}

/* The state behind some bytes; the walk has met it where they are an allowed token. */
static pyr_status read_bytes(pyr_guide *g, uint32_t *at, const uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < n && *at != 0; i++)
    PYR_TRY(step(g, *at, g->grammar->class_of[bytes[i]], at));
  return PYR_OK;
}

void pyr_place_take(pyr_place *place, int32_t id) {
  pyr_guide *g = place->guide;
  const pyr_lexicon *x = g->lexicon;
  place->ready = false;
  if (id < 0 || id >= x->count) return;
  if (x->ends[id / 32] >> (id % 32) & 1) place->ended = true;
  else
    place->lost |= read_bytes(g, &place->state, x->text.data + x->starts[id],
                              x->starts[id + 1] - x->starts[id]) != PYR_OK;
}

/* Nothing reads a byte there, and it is no dead end. */
bool pyr_place_is_over(const pyr_place *place) {
  const pyr_guide *g = place->guide;
  const state *s = &states_of(&g->t)[place->state];
  for (uint32_t i = 0; i < s->count; i++) {
    frame f = frames_of(&g->t)[items_of(&g->t)[s->first + i]];
    if (pyr_grammar_nodes(g->grammar)[f.node].op == PYR_NODE_BYTES) return place->ended;
  }
  return place->ended || s->count > 0;
}

/* ---- places ---------------------------------------------------------------------------------- */

static void link_place(pyr_place *place) {
  pyr_guide *g = place->guide;
  g->refs++;
  place->before = NULL;
  place->next = g->places;
  if (g->places) g->places->before = place;
  g->places = place;
}

void pyr_place_open(pyr_guide *guide, pyr_place *out) {
  *out = (pyr_place){ .guide = guide, .state = guide->start };
  link_place(out);
}

void pyr_place_copy(const pyr_place *from, pyr_place *out) {
  *out = *from;
  out->ready = false;
  if (out->guide) link_place(out);
}

void pyr_place_begin(pyr_place *place) {
  place->state = place->guide->start;
  place->ready = place->ended = place->lost = false;
}

void pyr_place_close(pyr_place *place) {
  pyr_guide *g = place->guide;
  if (g == NULL) return;
  if (place->before) place->before->next = place->next;
  else g->places = place->next;
  if (place->next) place->next->before = place->before;
  memset(place, 0, sizeof *place);
  pyr_guide_free(g);
}

/* ---- guides ---------------------------------------------------------------------------------- */

pyr_status pyr_guide_new(pyr_grammar *grammar, pyr_lexicon *lexicon, pyr_guide **out) {
  pyr_runtime *rt = pyr_grammar_runtime(grammar);
  pyr_guide *g = pyr_alloc_zero(rt, sizeof *g);
  if (g == NULL) return pyr_nomem(rt, sizeof *g, "a guide");
  g->rt = pyr_runtime_retain(rt);
  g->refs = 1;
  g->grammar = pyr_grammar_retain(grammar);
  pyr_status status = PYR_OK;
  if (lexicon) {
    size_t bytes = (lexicon->longest + 1) * sizeof *g->path;
    g->lexicon = pyr_lexicon_retain(lexicon);
    g->path = pyr_alloc(rt, bytes);
    if (g->path == NULL) status = pyr_nomem(rt, bytes, "a guide");
  }
  if (status == PYR_OK) status = begin_tables(g);
  if (status == PYR_OK) *out = g;
  else pyr_guide_free(g);
  return status;
}

void pyr_guide_free(pyr_guide *g) {
  if (g == NULL || --g->refs > 0) return;
  pyr_runtime *rt = g->rt;
  free_tables(g, &g->t);
  pyr_buffer_free(rt, &g->work);
  pyr_buffer_free(rt, &g->found);
  if (g->path) pyr_release(rt, g->path, (g->lexicon->longest + 1) * sizeof *g->path);
  pyr_lexicon_free(g->lexicon);
  pyr_grammar_free(g->grammar);
  pyr_release(rt, g, sizeof *g);
  pyr_runtime_free(rt);
}

const pyr_lexicon *pyr_guide_lexicon(const pyr_guide *g) { return g->lexicon; }
pyr_runtime *pyr_guide_runtime(const pyr_guide *g) { return g->rt; }

pyr_status pyr_guide_match(pyr_guide *g, const char *text, size_t length, pyr_match *out) {
  uint32_t at = g->start;
  for (size_t i = 0; i < length && at != 0; i++) {
    if (is_full(g, KEEP)) {                /* however long the text is */
      pyr_place here = { .guide = g, .state = at };
      link_place(&here);
      pyr_status status = forget(g);
      at = here.state;
      pyr_place_close(&here);
      if (status != PYR_OK) return status;
    }
    PYR_TRY(step(g, at, g->grammar->class_of[(uint8_t)text[i]], &at));
  }
  *out = at == 0 ? PYR_MATCH_NO : may_end(g, at) ? PYR_MATCH_WHOLE : PYR_MATCH_PART;
  return PYR_OK;
}
