/* tokenizer.h — what the tokenizer's files share. From below: the byte alphabet (token_alphabet.c),
 * the vocabulary (vocab.c), merging (bpe.c), the pipeline from text to words (split.c), what one id
 * stands for (decode_piece.c); on them the building of it all (tokenizer.c) and the way back, a
 * stream of ids to text (decode.c).
 *
 * Inside, a piece is named by its place in `pieces`, in the order in which pieces came; a file's
 * ids, which may be any, are translated where they come in (pyr_vocab_place) and go out (pyr_emit).
 * So memory goes by the pieces that there are, not by the largest id: in these files `id` is a
 * place unless a comment says otherwise.
 *
 * Tokenizers come with strangers' models. What their steps, expressions and added tokens may ask
 * for is bounded for each text, in proportion to it (the limits stand in split.c); beyond that
 * encoding fails, and says of which limit. */
#ifndef PYR_TOKENIZER_H
#define PYR_TOKENIZER_H

#include "base/unicode.h"

struct pcre2_real_general_context_8;
struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;

enum pyr_piece_bits {
  PYR_BIT_PRESENT = 1, PYR_BIT_MODEL = 2 /* in the BPE vocabulary */, PYR_BIT_CLOSED = 4,
  PYR_BIT_LITERAL = 8 /* not spelled in the byte alphabet though the others are */,
      PYR_BIT_ADDED = 16,
  PYR_BIT_WHOLE = 32, PYR_BIT_TORN = 64, /* as a word of its own BPE gives it back whole, or not;
                                            neither: not tried yet */
  PYR_BIT_TOKEN_SHIFT = 8        /* PYR_TOKEN_… flags from here on */
};

typedef struct pyr_vocab_piece {
  int32_t id;                    /* the file's */
  uint32_t start, length;        /* bytes, in text; raw where the vocabulary is byte level */
  uint32_t found_start, found_length; /* the form that an added token is found by, in text; length
                                         0: the piece itself */
  uint32_t score_rank;           /* by score only: lower merges earlier */
  uint16_t bits;                 /* pyr_piece_bits */
} pyr_vocab_piece;

typedef struct pyr_slot { uint32_t hash; int32_t id; } pyr_slot;                 /* id -1: free */
typedef struct pyr_merge { uint32_t left, right, rank; int32_t id; } pyr_merge;  /* id -1: free */

typedef struct pyr_symbol {      /* a piece of the word that is being merged */
  int32_t id;                    /* -1: no piece (only by score) */
  uint32_t start, length;        /* bytes in the word */
  int32_t previous, next;        /* linked list for long words; -1: none */
  uint32_t rank;                 /* of merging with the next one; UINT32_MAX: cannot */
  int32_t merged;                /* what that gives */
} pyr_symbol;

typedef struct pyr_candidate { uint32_t rank, at; } pyr_candidate;

typedef struct pyr_added_set {   /* ids of added tokens, sorted by the bytes they are found by */
  int32_t *ids;
  int32_t count, size;
  uint8_t first[256];            /* 1 for bytes that begin one of them */
} pyr_added_set;

typedef struct pyr_step_data {
  pyr_step_kind kind;
  int a, b;
  uint8_t *pattern, *text;
  size_t pattern_length, text_length;
  struct pcre2_real_code_8 *code;
  struct pcre2_real_match_data_8 *match;
  pyr_buffer scratch;
  bool whole;                    /* the expression asks where the search began (\G): it sees all of
                                    the text at once */
  bool refers;  /* it has back references, each of which may compare as much as the window holds */
  bool recurses;                 /* it calls itself: in PCRE2's interpreter each call costs as much
                                    as it is deep */
  size_t wrote;                  /* bytes, for the text that is encoded now */
} pyr_step_data;

typedef struct pyr_step_list { pyr_step_data *steps; int count, size; } pyr_step_list;

struct pyr_tokenizer {
  pyr_runtime *rt;
  int refs;
  bool ready;
  pyr_tokenizer_options options;

  /* vocabulary */
  pyr_buffer text;
  pyr_vocab_piece *pieces;       /* [count], room for size */
  int32_t count, size;
  int32_t *places;  /* [place_count], a power of two: places by the file's ids; -1: free */
  size_t place_count;
  int32_t unknown;               /* place of options.unknown; -1: none */
  uint32_t longest;              /* bytes of the longest piece that merging can make */
  pyr_slot *slots;               /* [slot_count], a power of two: open pieces by their bytes */
  size_t slot_count, slot_used;
  pyr_merge *merges;             /* [merge_count], a power of two: by (left, right) */
  size_t merge_count, merge_used;
  uint32_t next_rank;
  int32_t byte_piece[256];       /* byte level: the piece of that byte; byte fallback: <0xNN>; -1:
                                    none */
  int32_t ascii_piece[128];      /* character level: piece of that character; -1: none */
  bool cut_at_marks;             /* character level: no piece has U+2581 behind another character,
                                    so words end there */

  pyr_added_set added, raw, normalized;
  pyr_step_list stages[3];       /* by pyr_stage */
  bool bytes_spelled;  /* the split stage ends in GPT-2's alphabet and must be turned back */
  int32_t *around;               /* the file's ids: before, then after */
  int32_t before_count, after_count;

  struct pcre2_real_general_context_8 *pcre;
  struct pcre2_real_match_context_8 *pcre_match;

  /* what is left of the limits for the text that is encoded now; see split.c */
  size_t growth, merge_left;
  uint64_t regex_left, added_left;
  double regex_until;            /* seconds of the thread */
  unsigned searches;

  /* scratch of one encode; kept between calls */
  pyr_buffer ids, symbols, heap, unspelled, normal[2], work, spelling;
};

/* vocab.c. There is room for one piece after pyr_vocab_reserve, for a merge after
 * pyr_merge_reserve. */
/* open piece with these bytes, or -1 */
int32_t pyr_vocab_find(const pyr_tokenizer *t, const uint8_t *s, size_t n);
int32_t pyr_vocab_place(const pyr_tokenizer *t, int32_t file_id);  /* -1: no piece has this id */
const pyr_merge *pyr_merge_find(const pyr_tokenizer *t, int32_t left, int32_t right);
pyr_status pyr_vocab_reserve(pyr_tokenizer *t);
void pyr_vocab_append(pyr_tokenizer *t, pyr_vocab_piece piece);  /* its bytes are in t->text */
/* from now on it is found by its bytes; the later of two equal ones replaces the earlier */
void pyr_vocab_insert(pyr_tokenizer *t, int32_t id);
pyr_status pyr_merge_reserve(pyr_tokenizer *t);
void pyr_merge_insert(pyr_tokenizer *t, pyr_merge m);
bool pyr_emit(pyr_tokenizer *t, int32_t id);  /* the file's id of a place goes to t->ids */
/* what an added token is found by: its text, or that text normalised */
const uint8_t *pyr_found_by(const pyr_tokenizer *t, int32_t id, size_t *length);

/* token_alphabet.c: GPT-2's byte alphabet. Printable Latin-1 bytes stand for themselves, the other
 * 68 for U+0100 onwards. */
bool pyr_alphabet_spell(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out);
/* false with *memory false: some character is not of the alphabet (out is as before); true: no
 * memory. */
bool pyr_alphabet_unspell(pyr_runtime *rt, const uint8_t *s, size_t n, pyr_buffer *out,
                          bool *memory);

/* bpe.c: encodes one word; the ids go to t->ids. `broken` words hold bytes that are not UTF-8. */
pyr_status pyr_bpe_word(pyr_tokenizer *t, const uint8_t *word, size_t n, bool broken);

/* decode_piece.c: what one id stands for goes to *piece (*other is scratch), and false is no
 * memory; PYR_FORMAT if some piece becomes far more text than it has itself */
bool pyr_decode_piece(const pyr_tokenizer *t, int32_t id, pyr_buffer *piece, pyr_buffer *other);
pyr_status pyr_decode_check(pyr_tokenizer *t);

/* split.c */
void pyr_limits_begin(pyr_tokenizer *t, size_t n);  /* for a text of n bytes */
pyr_status pyr_pattern_compile(pyr_tokenizer *t, pyr_step_data *step);
void pyr_pattern_free(pyr_step_data *step);
void pyr_patterns_free(pyr_tokenizer *t);
pyr_status pyr_normalize(pyr_tokenizer *t, const uint8_t *s, size_t n, bool at_start,
                         const uint8_t **out, size_t *out_n);
/* whole text -> t->ids */
pyr_status pyr_pretokenize(pyr_tokenizer *t, const uint8_t *s, size_t n, bool parse);

#endif
