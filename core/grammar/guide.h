/* guide.h — which tokens a grammar lets follow.
 *
 * A lexicon is a vocabulary as bytes; a guide is a grammar over a lexicon, with all that was found
 * out about the two, for any number of texts; a place is where one text stands in it. */
#ifndef PYR_GUIDE_H
#define PYR_GUIDE_H

#include "grammar/grammar.h"

/* A trie of the bytes of all tokens, as an array in the order of a walk through it, depth first:
 * below a node stands what follows it, and `skip` is where the walk goes on without that. */
typedef struct pyr_trie_node {
  uint32_t skip;
  int32_t token;                 /* that ends here; -1: none. Others of the same bytes: `same` */
  uint16_t depth;                /* bytes before it */
  uint8_t byte;
} pyr_trie_node;

struct pyr_lexicon {
  pyr_runtime *rt;
  int refs;
  int32_t count;                 /* ids are 0..count-1 */
  size_t words;                  /* of a mask: a bit for each id, in 32 bits each */
  pyr_buffer nodes;              /* pyr_trie_node */
  pyr_buffer text;
  uint32_t *starts;              /* [count + 1] in text; a token of no bytes stands nowhere */
  int32_t *same;                 /* [count] the next token of the same bytes, or -1 */
  uint32_t *ends;                /* [words] the tokens that end a text */
  uint32_t longest;              /* bytes of a token */
};

typedef struct pyr_place {
  pyr_guide *guide;              /* NULL: none */
  struct pyr_place *before, *next;       /* others of the guide; the guide knows the first */
  uint32_t state, moved;         /* of the guide's; the same while the guide forgets others */
  bool ready;                    /* its mask was asked for: `take` finds all that it needs */
  bool ended;                    /* by a token that ends a text */
  bool lost;                     /* memory ran out behind it: it cannot go on */
} pyr_place;

/* The place before the first token. It is known to the guide until it is closed. */
void pyr_place_open(pyr_guide *guide, pyr_place *out);
void pyr_place_copy(const pyr_place *from, pyr_place *out);
void pyr_place_close(pyr_place *place);                /* a zeroed one is legal */
void pyr_place_begin(pyr_place *place);
/* mask [guide's lexicon->words]: the tokens that may follow. */
pyr_status pyr_place_mask(pyr_place *place, uint32_t *mask);
/* One of those follows. */
void pyr_place_take(pyr_place *place, int32_t id);
bool pyr_place_is_over(const pyr_place *place);        /* no text may follow */
const pyr_lexicon *pyr_guide_lexicon(const pyr_guide *guide);   /* NULL: it has none */
pyr_runtime *pyr_guide_runtime(const pyr_guide *guide);

#endif
