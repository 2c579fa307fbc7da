/* grammar.c — see grammar.h. Owns the program: its nodes, its sets of bytes, and what is found out
 * about it once. What a text in GBNF means is gbnf.c's.
 *
 * Characters as bytes. The code points of one UTF-8 length are numbers of 6-bit digits, so that a
 * range of them falls apart into sequences of byte ranges (Thompson's and RE2's way):
 *
 *     U+0080..U+10FFFF    C2-DF 80-BF
 *                         E0 A0-BF 80-BF          (no overlong forms)
 *                         E1-EC 80-BF 80-BF
 *                         ED 80-9F 80-BF          (no surrogates)
 *                         EE-EF 80-BF 80-BF  …
 *
 * All that is below U+0080 is one set. */
#include "grammar/grammar.h"

#include <string.h>

pyr_grammar *pyr_grammar_retain(pyr_grammar *g) {
  g->refs++;
  return g;
}

void pyr_grammar_free(pyr_grammar *g) {
  if (g == NULL || --g->refs > 0) return;
  pyr_runtime *rt = g->rt;
  pyr_buffer_free(rt, &g->nodes);
  pyr_buffer_free(rt, &g->sets);
  pyr_buffer_free(rt, &g->rules);
  pyr_buffer_free(rt, &g->names);
  pyr_release(rt, g, sizeof *g);
  pyr_runtime_free(rt);
}

pyr_runtime *pyr_grammar_runtime(const pyr_grammar *g) { return g->rt; }

static uint32_t node_count(const pyr_grammar *g) {
  return (uint32_t)(g->nodes.length / sizeof(pyr_grammar_node));
}

pyr_status pyr_grammar_add(pyr_grammar *g, pyr_grammar_op op, uint32_t a, uint32_t b, uint32_t rule,
                           uint32_t *out) {
  pyr_grammar_node node = { op, a, b, rule };
  *out = node_count(g);
  if (*out >= PYR_GRAMMAR_NODES)
    return pyr_runtime_set_error(g->rt, PYR_UNSUPPORTED, "grammar: it is too large: more than %d "
                                 "places to be in", PYR_GRAMMAR_NODES);
  if (!pyr_buffer_append(g->rt, &g->nodes, &node, sizeof node))
    return pyr_nomem(g->rt, sizeof node, "a grammar");
  return PYR_OK;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* A node that reads a byte of the set. Sets are shared with those of the last few nodes alone:
 * equal ones elsewhere cost 32 bytes each, and a search through all would cost their square. */
static pyr_status add_set(pyr_grammar *g, const pyr_byte_set *set, uint32_t next, uint32_t rule,
                          uint32_t *out) {
  const pyr_byte_set *sets = (const pyr_byte_set *)g->sets.data;
  size_t count = g->sets.length / sizeof *set, at = count;
  while (at > 0 && count - at < 16 && memcmp(&sets[at - 1], set, sizeof *set) != 0) at--;
  bool found = at > 0 && count - at < 16;
  if (!found && !pyr_buffer_append(g->rt, &g->sets, set, sizeof *set))
    return pyr_nomem(g->rt, sizeof *set, "a grammar");
  return pyr_grammar_add(g, PYR_NODE_BYTES, (uint32_t)(found ? at - 1 : count), next, rule, out);
}

static void put_bytes(pyr_byte_set *set, uint32_t lo, uint32_t hi) {
  for (uint32_t c = lo; c <= hi; c++) set->bits[c >> 5] |= 1u << (c & 31);
}

static pyr_status add_bytes(pyr_grammar *g, uint32_t lo, uint32_t hi, uint32_t next, uint32_t rule,
                            uint32_t *out) {
  pyr_byte_set set = { { 0 } };
  put_bytes(&set, lo, hi);
  return add_set(g, &set, next, rule, out);
}

pyr_status pyr_grammar_literal(pyr_grammar *g, const uint8_t *bytes, size_t n, uint32_t next,
                               uint32_t rule, uint32_t *out) {
  while (n-- > 0) PYR_TRY(add_bytes(g, bytes[n], bytes[n], next, rule, &next));
  *out = next;
  return PYR_OK;
}

/* One more way at *way, which is PYR_NO_NODE before the first. */
static pyr_status also(pyr_grammar *g, uint32_t entry, uint32_t rule, uint32_t *way) {
  if (*way == PYR_NO_NODE) *way = entry;
  else PYR_TRY(pyr_grammar_add(g, PYR_NODE_FORK, entry, *way, rule, way));
  return PYR_OK;
}

/* Code points lo..hi, whose UTF-8 is of `digits` bytes behind the first, as ways from *way to
 * `next`. A range whose ends differ in a digit is cut before and after the part in which all
 * lower digits are free: 0x1234..0x3456 in octal would be 1234-1277, 1300-1777, 2000-2777,
 * 3000-3377, 3400-3456 (each digit at most two cuts). What is left has one byte range for each
 * byte. */
static pyr_status add_sequence(pyr_grammar *g, uint32_t lo, uint32_t hi, int digits, uint32_t next,
                               uint32_t rule, uint32_t *way) {
  for (int i = 1; i <= digits; i++) {
    uint32_t free_part = (1u << (6 * i)) - 1;
    if ((lo & ~free_part) == (hi & ~free_part)) continue;
    if (lo & free_part) {
      PYR_TRY(add_sequence(g, lo, lo | free_part, digits, next, rule, way));
      return add_sequence(g, (lo | free_part) + 1, hi, digits, next, rule, way);
    }
    if ((hi & free_part) != free_part) {
      PYR_TRY(add_sequence(g, lo, (hi & ~free_part) - 1, digits, next, rule, way));
      return add_sequence(g, hi & ~free_part, hi, digits, next, rule, way);
    }
  }
  uint8_t low[4], high[4];
  size_t n = pyr_utf8_encode(lo, low), entry = n;
  uint32_t to = next;
  (void)pyr_utf8_encode(hi, high);
  while (entry-- > 0) PYR_TRY(add_bytes(g, low[entry], high[entry], to, rule, &to));
  return also(g, to, rule, way);
}

pyr_status pyr_grammar_chars(pyr_grammar *g, const pyr_char_range *ranges, uint32_t count,
                             uint32_t next, uint32_t rule, uint32_t *out) {
  /* where a character's UTF-8 gets longer; surrogates have none */
  static const struct { uint32_t lo, hi; int digits; } lengths[] = {
    { 0x80, 0x7ff, 1 }, { 0x800, 0xd7ff, 2 }, { 0xe000, 0xffff, 2 }, { 0x10000, 0x10ffff, 3 } };
  pyr_byte_set ascii = { { 0 } };
  uint32_t way = PYR_NO_NODE, entry;
  bool any = false;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t lo = ranges[i].lo, hi = ranges[i].hi;
    if (lo < 0x80) {
      put_bytes(&ascii, lo, hi < 0x80 ? hi : 0x7f);
      any = true;
    }
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
      uint32_t from = lo > lengths[k].lo ? lo : lengths[k].lo,
          to = hi < lengths[k].hi ? hi : lengths[k].hi;
      if (from <= to) PYR_TRY(add_sequence(g, from, to, lengths[k].digits, next, rule, &way));
    }
  }
  /* a class without characters reads the empty set: a dead end, as it says */
  if (any || way == PYR_NO_NODE) {
    PYR_TRY(add_set(g, &ascii, next, rule, &entry));
    PYR_TRY(also(g, entry, rule, &way));
  }
  *out = way;
  return PYR_OK;
}

/* ---- what is found out once ------------------------------------------------------------------ */

/* Each byte's class: bytes that are in the same sets are of the same one. Each set splits the
 * classes that it cuts; there are at most 256 in the end. */
static void find_classes(pyr_grammar *g) {
  size_t sets = g->sets.length / sizeof(pyr_byte_set);
  g->classes = 1;
  for (uint32_t i = 0; i < sets && g->classes < 256; i++) {
    int16_t inside[256], of_before[256], classes = 0;
    uint8_t after[256];
    for (int k = 0; k < 256; k++) inside[k] = of_before[k] = -1;
    for (int c = 0; c < 256; c++) {
      int16_t *half = pyr_grammar_has(g, i, (uint8_t)c) ? inside : of_before;
      int k = g->class_of[c];
      if (half[k] < 0) half[k] = classes++;
      after[c] = (uint8_t)half[k];
    }
    memcpy(g->class_of, after, sizeof after);
    g->classes = classes;
  }
  for (int c = 255; c >= 0; c--) g->byte_of[g->class_of[c]] = (uint8_t)c;
}

/* Arrays for looking at all nodes once; one block. */
typedef struct look {
  uint32_t *work, *waits_next;   /* [nodes] to be looked at; CALLs that wait for one rule, listed */
  uint32_t *waits_first;         /* [rules] */
  uint8_t *seen, *empty, *mark;  /* [nodes]; [rules] may be empty; [rules] 1: open, 2: done */
  uint32_t *edges, *edge_next, *edge_first;  /* [nodes] rules called first by a rule, listed */
  uint32_t *path, *at;           /* [rules] */
  size_t count, edge_count;
} look;

static void visit(look *l, uint32_t node) {
  if (l->seen[node]) return;
  l->seen[node] = 1;
  l->work[l->count++] = node;
}

/* Follows every rule from its start without reading a byte. A CALL leads on where its rule may be
 * empty; until that is known it waits in that rule's list. Each node is looked at once, and each
 * waiting CALL once more. */
static void follow(const pyr_grammar *g, look *l, size_t rules) {
  const pyr_grammar_node *nodes = pyr_grammar_nodes(g);
  for (size_t r = 0; r < rules; r++) visit(l, pyr_grammar_rules(g)[r].start);
  while (l->count > 0) {
    uint32_t at = l->work[--l->count];
    const pyr_grammar_node *n = &nodes[at];
    if (n->op == PYR_NODE_FORK) {
      visit(l, n->a);
      visit(l, n->b);
    } else if (n->op == PYR_NODE_CALL) {
      l->edges[l->edge_count] = n->a;
      l->edge_next[l->edge_count] = l->edge_first[n->rule];
      l->edge_first[n->rule] = (uint32_t)l->edge_count++;
      if (l->empty[n->a]) visit(l, n->b);
      else {
        l->waits_next[at] = l->waits_first[n->a];
        l->waits_first[n->a] = at;
      }
    } else if (n->op == PYR_NODE_END && !l->empty[n->rule]) {
      l->empty[n->rule] = 1;
      for (uint32_t w = l->waits_first[n->rule]; w != PYR_NO_NODE; w = l->waits_next[w])
        visit(l, nodes[w].b);
    }
  }
}

/* A rule that can call itself first, by itself or through others; -1: none. Depth first, with the
 * path in an array. */
static int64_t find_circle(look *l, size_t rules) {
  for (size_t r = 0; r < rules; r++) {
    size_t depth = 0;
    if (l->mark[r]) continue;
    l->path[depth] = (uint32_t)r;
    l->at[depth++] = l->edge_first[r];
    l->mark[r] = 1;
    while (depth > 0) {
      uint32_t edge = l->at[depth - 1];
      if (edge == PYR_NO_NODE) {
        l->mark[l->path[--depth]] = 2;
        continue;
      }
      l->at[depth - 1] = l->edge_next[edge];
      uint32_t to = l->edges[edge];
      if (l->mark[to] == 1) return to;
      if (l->mark[to] == 2) continue;
      l->mark[to] = 1;
      l->path[depth] = to;
      l->at[depth++] = l->edge_first[to];
    }
  }
  return -1;
}

pyr_status pyr_grammar_finish(pyr_grammar *g) {
  size_t nodes = node_count(g), rules = g->rules.length / sizeof(pyr_grammar_rule);
  size_t bytes = nodes * (4 * sizeof(uint32_t) + 1) + rules * (4 * sizeof(uint32_t) + 2);
  uint32_t *block = pyr_alloc_zero(g->rt, bytes);
  if (block == NULL) return pyr_nomem(g->rt, bytes, "a grammar");
  look l = { .work = block, .waits_next = block + nodes, .edges = block + 2 * nodes,
             .edge_next = block + 3 * nodes, .waits_first = block + 4 * nodes };
  l.edge_first = l.waits_first + rules;
  l.path = l.edge_first + rules;
  l.at = l.path + rules;
  l.seen = (uint8_t *)(l.at + rules);
  l.empty = l.seen + nodes;
  l.mark = l.empty + rules;
  for (size_t r = 0; r < rules; r++) l.waits_first[r] = l.edge_first[r] = PYR_NO_NODE;
  follow(g, &l, rules);
  int64_t circle = find_circle(&l, rules);
  pyr_release(g->rt, block, bytes);
  if (circle >= 0) {
    const pyr_grammar_rule *rule = &pyr_grammar_rules(g)[circle];
    return pyr_runtime_set_error(g->rt, PYR_FORMAT, "grammar: rule '%.*s' can begin with itself "
                                 "(left recursion), and would never end",
                                 (int)rule->name_length, (char *)g->names.data + rule->name);
  }
  find_classes(g);
  return PYR_OK;
}
