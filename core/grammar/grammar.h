/* grammar.h — a grammar as a program over bytes.
 *
 * Rules become a graph of nodes. Whoever follows it keeps a stack of nodes to return to, and reads
 * bytes at BYTES nodes alone; characters are compiled to their UTF-8, so that a token may end in
 * the middle of one. `root ::= "a" b? ; b ::= [x-z] root` is
 *
 *     root: 3 BYTES {a} -> 2     2 FORK 1, 0     1 CALL b, then 0     0 END
 *     b:    6 BYTES {xyz} -> 5                   5 CALL root, then 4  4 END
 *
 * A call whose way back is END alone puts nothing on the stack: lists that are spelled by
 * recursion at their end, as most are, need no more of it the longer they get.
 *
 * What a grammar may ask for is bounded, as grammars come from strangers; the limits stand below.
 * A rule that could call itself before it reads a byte (left recursion) is refused by name: so no
 * stack grows without a byte being read. */
#ifndef PYR_GRAMMAR_H
#define PYR_GRAMMAR_H

#include "base/unicode.h"
#include "grammar/api.h"

enum {
  PYR_GRAMMAR_TEXT = 1 << 20,    /* bytes of a text */
  PYR_GRAMMAR_RULES = 1 << 14,   /* rules with a name */
  PYR_GRAMMAR_NODES = 1 << 18,   /* nodes of the program */
  PYR_GRAMMAR_DEPTH = 200,       /* groups and repetitions in each other */
  PYR_GRAMMAR_TIMES = 1 << 16    /* of {m,n} */
};

#define PYR_NO_NODE UINT32_MAX

typedef enum pyr_grammar_op { PYR_NODE_BYTES, PYR_NODE_CALL, PYR_NODE_FORK,
                              PYR_NODE_END } pyr_grammar_op;

typedef struct pyr_grammar_node {
  uint32_t op;                   /* pyr_grammar_op */
  uint32_t a, b;                 /* BYTES: set, next. CALL: rule, where it returns to. FORK: both */
  uint32_t rule;                 /* that it is of */
} pyr_grammar_node;

typedef struct pyr_byte_set { uint32_t bits[8]; } pyr_byte_set;

typedef struct pyr_grammar_rule {
  uint32_t start;                /* its first node */
  uint32_t name, name_length;    /* in `names`; a part that was made a rule has its rule's */
} pyr_grammar_rule;

struct pyr_grammar {
  pyr_runtime *rt;
  int refs;
  pyr_buffer nodes, sets, rules, names;  /* of the structs above; rule 0 is root */
  uint8_t class_of[256];         /* bytes that no set tells apart are of one class … */
  uint8_t byte_of[256];          /* … of which this is one byte */
  int classes;
};

static inline const pyr_grammar_node *pyr_grammar_nodes(const pyr_grammar *g) {
  return (const pyr_grammar_node *)g->nodes.data;
}
static inline const pyr_grammar_rule *pyr_grammar_rules(const pyr_grammar *g) {
  return (const pyr_grammar_rule *)g->rules.data;
}
static inline bool pyr_grammar_has(const pyr_grammar *g, uint32_t set, uint8_t byte) {
  return ((const pyr_byte_set *)g->sets.data)[set].bits[byte >> 5] >> (byte & 31) & 1;
}

/* For gbnf.c. One more node; *out is its index. */
pyr_status pyr_grammar_add(pyr_grammar *g, pyr_grammar_op op, uint32_t a, uint32_t b, uint32_t rule,
                           uint32_t *out);
/* Nodes that read one character of lo..hi (code points) [count], sorted and apart, then go to
 * `next`. */
typedef struct pyr_char_range { uint32_t lo, hi; } pyr_char_range;
pyr_status pyr_grammar_chars(pyr_grammar *g, const pyr_char_range *ranges, uint32_t count,
                             uint32_t next, uint32_t rule, uint32_t *out);
/* The same for given bytes, one after the other. */
pyr_status pyr_grammar_literal(pyr_grammar *g, const uint8_t *bytes, size_t n, uint32_t next,
                               uint32_t rule, uint32_t *out);
/* After the last node: finds left recursion (PYR_FORMAT), and the classes of bytes. */
pyr_status pyr_grammar_finish(pyr_grammar *g);

#endif
