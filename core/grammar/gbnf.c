/* gbnf.c — grammars as text: GBNF, llama.cpp's notation.
 *
 *     root  ::= "yes" | "no" | list         # a comment
 *     list  ::= "[" item ("," item){0,3} "]"
 *     item  ::= [0-9]+ | [^\x00-\x1f",\]] . "\u00e9"?
 *
 * A rule ends with its line, unless a group is open or `|` or `::=` stood last. Names are of
 * letters, digits, - and _. In literals and classes \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH
 * \UHHHHHHHH stand for characters (\xHH too: it is a code point, no byte). `*`, `+`, `?`, {m},
 * {m,}, {m,n} repeat what stands before them: a literal as a whole. `.` is any character.
 * llama.cpp's elements for whole tokens (<[13]>, <name>) are refused.
 *
 * The text is read into a tree, and the tree written as a program from its end to its beginning:
 * each part is told which node follows it, and returns its first. What is repeated several times
 * is made a rule of its own first, so that {1000} of a long group is 1000 calls and one group. */
#include "grammar/grammar.h"

#include <string.h>

enum { SLOTS = 2 * PYR_GRAMMAR_RULES };

typedef enum part_kind { PART_LITERAL, PART_CHARS, PART_RULE, PART_SEQUENCE, PART_CHOICE,
                         PART_REPEAT } part_kind;

typedef struct part {
  uint32_t kind;                 /* part_kind */
  uint32_t before;               /* the part before it in the same sequence or choice, or none */
  uint32_t a, b;                 /* LITERAL: offset, length in `bytes`. CHARS: first, count in
                                    `ranges`. RULE: which. SEQUENCE, CHOICE: a is the last part, or
                                    none. REPEAT: a of it … */
  uint32_t least, most;          /* … so often; most PYR_NO_NODE: without end */
  uint32_t depth;                /* of parts below it */
} part;

typedef struct named {           /* a rule while it is read */
  uint32_t body;                 /* part, or PYR_NO_NODE: not defined yet */
  uint32_t line;                 /* where it was met first */
} named;

typedef struct reader {
  pyr_runtime *rt;
  pyr_grammar *g;
  const char *at, *end;
  uint32_t line;
  pyr_buffer parts, ranges, bytes, named;
  uint16_t *slots;               /* [SLOTS] rule + 1 by name; 0: free */
} reader;

static pyr_status fail(reader *r, const char *what) {
  return pyr_runtime_set_error(r->rt, PYR_FORMAT, "grammar: line %u: %s", r->line, what);
}

static pyr_status append(reader *r, pyr_buffer *to, const void *bytes, size_t n) {
  return pyr_buffer_append(r->rt, to, bytes, n) ? PYR_OK : pyr_nomem(r->rt, n, "a grammar");
}

static part *part_at(reader *r, uint32_t i) { return (part *)r->parts.data + i; }

static pyr_status add_part(reader *r, part p, uint32_t *out) {
  *out = (uint32_t)(r->parts.length / sizeof p);
  if (p.depth > PYR_GRAMMAR_DEPTH) return fail(r, "groups or repetitions are nested too deep");
  return append(r, &r->parts, &p, sizeof p);
}

/* ---- characters ------------------------------------------------------------------------------ */

static char peek(const reader *r) { return r->at < r->end ? *r->at : '\0'; }

static void skip(reader *r, bool lines) {
  for (; r->at < r->end; r->at++) {
    char c = *r->at;
    if (c == '#') {
      while (r->at < r->end && *r->at != '\n' && *r->at != '\r') r->at++;
      r->at--;                   /* what ends the line is looked at next */
    } else if (lines && (c == '\n' || c == '\r')) r->line += c == '\n';
    else if (c != ' ' && c != '\t') return;
  }
}

static bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-'
      || c == '_';
}

static int hex_digit(char c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A'
      && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One character of a literal or a class, escaped or not. The text is known to be UTF-8. */
static pyr_status read_char(reader *r, uint32_t *cp) {
  size_t length = 1;
  if (r->at >= r->end || *r->at == '\n' || *r->at == '\r')
    return fail(r, "a literal or a class is not closed in its line");
  if (*r->at != '\\') {
    *cp = pyr_utf8_decode((const uint8_t *)r->at, &length);
    r->at += length;
    return PYR_OK;
  }
  char c = r->at + 1 < r->end ? r->at[1] : '\0';
  int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
  r->at += 2;
  *cp = c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : (uint32_t)c;
  if (digits > 0) {
    *cp = 0;
    for (int i = 0; i < digits; i++, r->at++) {
      int value = r->at < r->end ? hex_digit(*r->at) : -1;
      if (value < 0) return fail(r, "\\x is followed by 2, \\u by 4, \\U by 8 hexadecimal digits");
      if (*cp >> 24) return fail(r, "a character beyond U+10FFFF");
      *cp = *cp << 4 | (uint32_t)value;
    }
    if (*cp > 0x10ffff || (*cp >= 0xd800 && *cp < 0xe000))
      return fail(r, "an escape that is no character");
  } else if (c == '\0' || strchr("nrt\\\"[]-^", c) == NULL)
    return fail(r, "an escape that GBNF has not (known: \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\x "
                "\\u \\U)");
  return PYR_OK;
}

static pyr_status read_literal(reader *r, uint32_t *out) {
  part p = { .kind = PART_LITERAL, .a = (uint32_t)r->bytes.length };
  for (r->at++; peek(r) != '"';) {
    uint32_t cp;
    uint8_t utf8[4];
    PYR_TRY(read_char(r, &cp));
    PYR_TRY(append(r, &r->bytes, utf8, pyr_utf8_encode(cp, utf8)));
  }
  r->at++;
  p.b = (uint32_t)r->bytes.length - p.a;
  return add_part(r, p, out);
}

/* Sorts ranges [n] and joins those that touch; how many are left. Shell's sort, by 3 h + 1: no
 * order of them is slow enough to hurt. */
static uint32_t merge_ranges(pyr_char_range *x, uint32_t n) {
  uint32_t kept = 0, h = 1;
  while (h < n / 3) h = 3 * h + 1;
  for (; h > 0; h /= 3)
    for (uint32_t i = h; i < n; i++) {
      pyr_char_range moving = x[i];
      uint32_t j = i;
      for (; j >= h && x[j - h].lo > moving.lo; j -= h) x[j] = x[j - h];
      x[j] = moving;
    }
  for (uint32_t i = 0; i < n; i++)
    if (kept > 0 && x[i].lo <= x[kept - 1].hi + 1) {
      if (x[i].hi > x[kept - 1].hi) x[kept - 1].hi = x[i].hi;
    } else x[kept++] = x[i];
  return kept;
}

static pyr_status add_range(reader *r, uint32_t lo, uint32_t hi) {
  pyr_char_range range = { lo, hi };
  return append(r, &r->ranges, &range, sizeof range);
}

/* What no range of [first, first + n) holds takes their place. */
static pyr_status negate(reader *r, uint32_t first, uint32_t n) {
  uint32_t from = 0;
  for (uint32_t i = 0; i < n; i++) {
    pyr_char_range x = ((pyr_char_range *)r->ranges.data)[first + i];
    if (x.lo > from) PYR_TRY(add_range(r, from, x.lo - 1));
    from = x.hi + 1;
  }
  if (from <= 0x10ffff) PYR_TRY(add_range(r, from, 0x10ffff));
  pyr_char_range *all = (pyr_char_range *)r->ranges.data;
  size_t count = r->ranges.length / sizeof *all - first - n;
  memmove(all + first, all + first + n, count * sizeof *all);
  r->ranges.length = (first + count) * sizeof *all;
  return PYR_OK;
}

static pyr_status read_class(reader *r, uint32_t *out) {
  part p = { .kind = PART_CHARS, .a = (uint32_t)(r->ranges.length / sizeof(pyr_char_range)) };
  r->at++;
  bool not_these = peek(r) == '^';
  r->at += not_these;
  while (peek(r) != ']') {
    uint32_t lo, hi;
    PYR_TRY(read_char(r, &lo));
    hi = lo;
    if (peek(r) == '-' && r->at + 1 < r->end && r->at[1] != ']') {
      r->at++;
      PYR_TRY(read_char(r, &hi));
      if (hi < lo) return fail(r, "a range of a class ends before it begins");
    }
    PYR_TRY(add_range(r, lo, hi));
  }
  r->at++;
  uint32_t n = (uint32_t)(r->ranges.length / sizeof(pyr_char_range)) - p.a;
  if (n > 0) n = merge_ranges((pyr_char_range *)r->ranges.data + p.a, n);
  r->ranges.length = (p.a + n) * sizeof(pyr_char_range);
  if (not_these) PYR_TRY(negate(r, p.a, n));
  p.b = (uint32_t)(r->ranges.length / sizeof(pyr_char_range)) - p.a;
  return add_part(r, p, out);
}

/* ---- rules ----------------------------------------------------------------------------------- */

/* The rule of the name that stands here, which is new where it was not met before. */
static pyr_status read_name(reader *r, uint32_t *out) {
  const char *name = r->at;
  uint32_t hash = 2166136261u, count = (uint32_t)(r->named.length / sizeof(named));
  while (is_word(peek(r))) hash = (hash ^ (uint8_t)*r->at++) * 16777619u;
  size_t n = (size_t)(r->at - name), slot = hash & (SLOTS - 1);
  for (; r->slots[slot]; slot = (slot + 1) & (SLOTS - 1)) {
    const pyr_grammar_rule *rule = &pyr_grammar_rules(r->g)[r->slots[slot] - 1];
    if (rule->name_length == n && memcmp(r->g->names.data + rule->name, name, n) == 0) {
      *out = r->slots[slot] - 1u;
      return PYR_OK;
    }
  }
  if (count >= PYR_GRAMMAR_RULES) return fail(r, "there are more than 16384 rules");
  pyr_grammar_rule rule = { PYR_NO_NODE, (uint32_t)r->g->names.length, (uint32_t)n };
  named one = { PYR_NO_NODE, r->line };
  PYR_TRY(append(r, &r->g->names, name, n));
  PYR_TRY(append(r, &r->g->rules, &rule, sizeof rule));
  PYR_TRY(append(r, &r->named, &one, sizeof one));
  r->slots[slot] = (uint16_t)(count + 1);
  *out = count;
  return PYR_OK;
}

static pyr_status read_number(reader *r, uint32_t *out) {
  uint32_t value = 0;
  if (!(peek(r) >= '0' && peek(r) <= '9')) return fail(r, "a repetition wants a number here");
  for (; peek(r) >= '0' && peek(r) <= '9'; r->at++) {
    value = value * 10 + (uint32_t)(*r->at - '0');
    if (value > PYR_GRAMMAR_TIMES) return fail(r, "a repetition of more than 65536 times");
  }
  *out = value;
  return PYR_OK;
}

/* *, +, ? or {…} behind a part, which becomes part of a new one. */
static pyr_status read_repeat(reader *r, uint32_t *last) {
  part p = { .kind = PART_REPEAT, .a = *last, .before = part_at(r, *last)->before,
             .depth = part_at(r, *last)->depth + 1, .most = PYR_NO_NODE };
  char c = *r->at++;
  if (c == '+') p.least = 1;
  else if (c == '?') p.most = 1;
  else if (c == '{') {
    skip(r, true);
    PYR_TRY(read_number(r, &p.least));
    skip(r, true);
    p.most = p.least;
    if (peek(r) == ',') {
      r->at++;
      skip(r, true);
      p.most = PYR_NO_NODE;
      if (peek(r) != '}') PYR_TRY(read_number(r, &p.most));
      skip(r, true);
    }
    if (peek(r) != '}') return fail(r, "a repetition wants } here");
    r->at++;
    if (p.most < p.least) return fail(r, "a repetition's most is below its least");
  }
  return add_part(r, p, last);
}

static pyr_status read_choice(reader *r, bool nested, uint32_t depth, uint32_t *out);

static pyr_status read_group(reader *r, uint32_t depth, uint32_t *out) {
  if (depth > PYR_GRAMMAR_DEPTH) return fail(r, "groups are nested too deep");
  r->at++;
  skip(r, true);
  PYR_TRY(read_choice(r, true, depth + 1, out));
  if (peek(r) != ')') return fail(r, "a group wants ) here");
  r->at++;
  return PYR_OK;
}

static pyr_status read_sequence(reader *r, bool nested, uint32_t depth, uint32_t *out) {
  part p = { .kind = PART_SEQUENCE, .a = PYR_NO_NODE, .before = PYR_NO_NODE };
  for (;;) {
    char c = peek(r);
    uint32_t one = PYR_NO_NODE;
    if (c == '"') PYR_TRY(read_literal(r, &one));
    else if (c == '[') PYR_TRY(read_class(r, &one));
    else if (c == '(') PYR_TRY(read_group(r, depth, &one));
    else if (c == '.') {
      part any = { .kind = PART_CHARS, .a = (uint32_t)(r->ranges.length / sizeof(pyr_char_range)),
                   .b = 1 };
      PYR_TRY(add_range(r, 0, 0x10ffff));
      r->at++;
      PYR_TRY(add_part(r, any, &one));
    } else if (is_word(c)) {
      part call = { .kind = PART_RULE };
      PYR_TRY(read_name(r, &call.a));
      PYR_TRY(add_part(r, call, &one));
    } else if (c == '*' || c == '+' || c == '?' || c == '{') {
      if (p.a == PYR_NO_NODE) return fail(r, "there is nothing before a repetition to repeat");
      PYR_TRY(read_repeat(r, &p.a));
    } else if (c == '<' || c == '!')
      return fail(r, "elements for whole tokens (<…>) are not supported; write their text");
    else break;
    if (one != PYR_NO_NODE) {
      part_at(r, one)->before = p.a;
      p.a = one;
    }
    if (part_at(r, p.a)->depth >= p.depth) p.depth = part_at(r, p.a)->depth + 1;
    skip(r, nested);
  }
  return add_part(r, p, out);
}

static pyr_status read_choice(reader *r, bool nested, uint32_t depth, uint32_t *out) {
  part p = { .kind = PART_CHOICE, .a = PYR_NO_NODE, .before = PYR_NO_NODE };
  for (;;) {
    uint32_t one = PYR_NO_NODE;
    PYR_TRY(read_sequence(r, nested, depth, &one));
    part_at(r, one)->before = p.a;
    p.a = one;
    if (part_at(r, one)->depth >= p.depth) p.depth = part_at(r, one)->depth + 1;
    if (peek(r) != '|') return add_part(r, p, out);
    r->at++;
    skip(r, true);
  }
}

static pyr_status read_rule(reader *r) {
  uint32_t rule, body, line = r->line;
  if (!is_word(peek(r))) return fail(r, "a rule is wanted here: NAME ::= …");
  PYR_TRY(read_name(r, &rule));
  skip(r, false);
  if (r->end - r->at < 3 || memcmp(r->at, "::=", 3) != 0)
    return fail(r, "behind a rule's name ::= is wanted");
  if (((named *)r->named.data)[rule].body != PYR_NO_NODE) return fail(r, "a rule is defined twice");
  r->at += 3;
  skip(r, true);
  PYR_TRY(read_choice(r, false, 1, &body));
  ((named *)r->named.data)[rule] = (named){ body, line };
  if (r->at < r->end && *r->at != '\n' && *r->at != '\r')
    return fail(r, "something is wrong here: the end of the rule was wanted");
  skip(r, true);
  return PYR_OK;
}

/* ---- from the tree to nodes ------------------------------------------------------------------ */

static pyr_status write_part(reader *r, uint32_t i, uint32_t next, uint32_t rule, uint32_t *out);

/* Whether a part is one node wherever it stands. */
static bool is_small(reader *r, const part *p) {
  if (p->kind == PART_RULE) return true;
  if (p->kind == PART_LITERAL) return p->b <= 1;
  if (p->kind != PART_CHARS) return false;
  const pyr_char_range *ranges = (const pyr_char_range *)r->ranges.data + p->a;
  return p->b == 0 || ranges[p->b - 1].hi < 0x80;
}

/* A part that is written several times, as the call of a rule. */
static pyr_status make_rule(reader *r, uint32_t *i, uint32_t rule) {
  pyr_grammar_rule own = pyr_grammar_rules(r->g)[rule];
  uint32_t end, index = (uint32_t)(r->g->rules.length / sizeof own);
  own.start = PYR_NO_NODE;
  PYR_TRY(append(r, &r->g->rules, &own, sizeof own));
  PYR_TRY(pyr_grammar_add(r->g, PYR_NODE_END, 0, 0, index, &end));
  PYR_TRY(write_part(r, *i, end, index, &own.start));
  ((pyr_grammar_rule *)r->g->rules.data)[index].start = own.start;
  part call = { .kind = PART_RULE, .a = index };
  return add_part(r, call, i);
}

/* x{2,4} before N is  x x FORK(x FORK(x N, N), N);  x{2,}:  x L with L = FORK(x -> L, N), its last
 * copy leading into the loop. The loop's fork is there before what leads back to it. */
static pyr_status write_repeat(reader *r, const part *p, uint32_t next, uint32_t rule,
                               uint32_t *out) {
  uint32_t copies = p->most == PYR_NO_NODE ? p->least : p->most, body = p->a, entry;
  pyr_grammar_node *fork;
  if (copies > 1 && !is_small(r, part_at(r, body))) PYR_TRY(make_rule(r, &body, rule));
  *out = next;
  if (p->most == PYR_NO_NODE) {
    PYR_TRY(pyr_grammar_add(r->g, PYR_NODE_FORK, next, next, rule, out));
    PYR_TRY(write_part(r, body, *out, rule, &entry));
    fork = (pyr_grammar_node *)r->g->nodes.data + *out;
    fork->a = entry;
    /* x+ is entered by its one copy; a loop of nothing has no end to it but `next` */
    if (p->least == 1) {
      *out = entry;
      return PYR_OK;
    }
  } else {
    for (uint32_t i = p->least; i < p->most; i++) {
      PYR_TRY(write_part(r, body, *out, rule, &entry));
      PYR_TRY(pyr_grammar_add(r->g, PYR_NODE_FORK, entry, next, rule, out));
    }
  }
  for (uint32_t i = 0; i < p->least; i++) PYR_TRY(write_part(r, body, *out, rule, out));
  return PYR_OK;
}

/* Nodes for a part before `next`; recursion is as deep as parts are nested. */
static pyr_status write_part(reader *r, uint32_t i, uint32_t next, uint32_t rule, uint32_t *out) {
  const part p = *part_at(r, i);
  uint32_t entry, way = PYR_NO_NODE;
  switch (p.kind) {
    case PART_LITERAL:
      return pyr_grammar_literal(r->g, r->bytes.data + p.a, p.b, next, rule, out);
    case PART_CHARS:
      return pyr_grammar_chars(r->g, (const pyr_char_range *)r->ranges.data + p.a, p.b, next, rule,
                               out);
    case PART_RULE: return pyr_grammar_add(r->g, PYR_NODE_CALL, p.a, next, rule, out);
    case PART_REPEAT: return write_repeat(r, &p, next, rule, out);
    case PART_SEQUENCE:
      for (uint32_t k = p.a; k != PYR_NO_NODE; k = part_at(r, k)->before)
        PYR_TRY(write_part(r, k, next, rule, &next));
      *out = next;
      return PYR_OK;
    default:
      for (uint32_t k = p.a; k != PYR_NO_NODE; k = part_at(r, k)->before) {
        PYR_TRY(write_part(r, k, next, rule, &entry));
        if (way == PYR_NO_NODE) way = entry;
        else PYR_TRY(pyr_grammar_add(r->g, PYR_NODE_FORK, entry, way, rule, &way));
      }
      *out = way;
      return PYR_OK;
  }
}

static pyr_status write_rule(reader *r, uint32_t rule) {
  named one = ((named *)r->named.data)[rule];
  uint32_t end, start;
  if (one.body == PYR_NO_NODE && rule == 0)
    return pyr_runtime_set_error(r->rt, PYR_FORMAT, "grammar: there is no rule 'root', with which "
                                 "every text begins");
  if (one.body == PYR_NO_NODE) {
    const pyr_grammar_rule *its = &pyr_grammar_rules(r->g)[rule];
    return pyr_runtime_set_error(r->rt, PYR_FORMAT, "grammar: line %u: rule '%.*s' is used, and "
                                 "not defined", one.line, (int)its->name_length,
                                 (char *)r->g->names.data + its->name);
  }
  PYR_TRY(pyr_grammar_add(r->g, PYR_NODE_END, 0, 0, rule, &end));
  PYR_TRY(write_part(r, one.body, end, rule, &start));
  ((pyr_grammar_rule *)r->g->rules.data)[rule].start = start;
  return PYR_OK;
}

static pyr_status read_all(reader *r) {
  uint32_t root;
  const char *text = r->at;
  if ((size_t)(r->end - r->at) > PYR_GRAMMAR_TEXT)
    return fail(r, "the text is longer than 1 MiB");
  size_t good = pyr_utf8_valid((const uint8_t *)r->at, (size_t)(r->end - r->at));
  if (good < (size_t)(r->end - r->at)) {
    for (size_t i = 0; i < good; i++) r->line += text[i] == '\n';
    return fail(r, "this is no UTF-8");
  }
  r->at = "root";                /* so that it is rule 0 */
  const char *end = r->end;
  r->end = r->at + 4;
  PYR_TRY(read_name(r, &root));
  r->at = text;
  r->end = end;
  skip(r, true);
  while (r->at < r->end) PYR_TRY(read_rule(r));
  for (uint32_t i = 0; i < r->named.length / sizeof(named); i++) PYR_TRY(write_rule(r, i));
  return pyr_grammar_finish(r->g);
}

pyr_status pyr_grammar_new(pyr_runtime *rt, const char *text, size_t length, pyr_grammar **out) {
  pyr_grammar *g = pyr_alloc_zero(rt, sizeof *g);
  if (g == NULL) return pyr_nomem(rt, sizeof *g, "a grammar");
  g->rt = pyr_runtime_retain(rt);
  g->refs = 1;
  reader r = { .rt = rt, .g = g, .at = text, .end = text + length, .line = 1 };
  r.slots = pyr_alloc_zero(rt, SLOTS * sizeof *r.slots);
  pyr_status status = r.slots ? read_all(&r) : pyr_nomem(rt, SLOTS * sizeof *r.slots, "a grammar");
  pyr_release(rt, r.slots, r.slots ? SLOTS * sizeof *r.slots : 0);
  pyr_buffer_free(rt, &r.parts);
  pyr_buffer_free(rt, &r.ranges);
  pyr_buffer_free(rt, &r.bytes);
  pyr_buffer_free(rt, &r.named);
  if (status == PYR_OK) *out = g;
  else pyr_grammar_free(g);
  return status;
}
