/* api.h — grammars as the binding uses them. What a host in C sees of the library stands in
 * pyramid.h, and this is no part of it: it may change with any version. */
#ifndef PYR_GRAMMAR_API_H
#define PYR_GRAMMAR_API_H

#include "pyramid.h"

/* A grammar in GBNF, llama.cpp's notation (core/grammar/gbnf.c says which of it). PYR_FORMAT: it is
 * none, with the line, or a rule begins with itself; PYR_UNSUPPORTED: it is beyond the limits of
 * core/grammar/grammar.h. */
typedef struct pyr_grammar pyr_grammar;
pyr_status pyr_grammar_new(pyr_runtime *rt, const char *text, size_t length, pyr_grammar **out);
pyr_grammar *pyr_grammar_retain(pyr_grammar *grammar);
void pyr_grammar_free(pyr_grammar *grammar);
pyr_runtime *pyr_grammar_runtime(const pyr_grammar *grammar);

/* A vocabulary of `count` ids as the bytes that each of them adds to a text, as a decoder shows
 * them. Special tokens, `unknown` (-1: none) and what shows nothing add none, and match no grammar;
 * `ends` [end_count] are allowed where a text may end. */
typedef struct pyr_lexicon pyr_lexicon;
pyr_status pyr_lexicon_new(pyr_tokenizer *t, int32_t count, int32_t unknown, const int32_t *ends,
                           int32_t end_count, pyr_lexicon **out);
pyr_lexicon *pyr_lexicon_retain(pyr_lexicon *lexicon);
void pyr_lexicon_free(pyr_lexicon *lexicon);

/* The two together, with what was found out about them, for any number of samplers of one thread.
 * lexicon NULL: for texts alone. */
typedef struct pyr_guide pyr_guide;
pyr_status pyr_guide_new(pyr_grammar *grammar, pyr_lexicon *lexicon, pyr_guide **out);
void pyr_guide_free(pyr_guide *guide);
typedef enum pyr_match { PYR_MATCH_NO, PYR_MATCH_PART, PYR_MATCH_WHOLE } pyr_match;
/* WHOLE: a text of the grammar. PART: the beginning of one, perhaps. PYR_UNSUPPORTED: the grammar
 * is too ambiguous. */
pyr_status pyr_guide_match(pyr_guide *guide, const char *text, size_t length, pyr_match *out);
/* From now on the sampler picks what the grammar allows, from its beginning; NULL: anything. It
 * serves one sequence then. PYR_ARGUMENT: the guide has no lexicon. */
pyr_status pyr_sampler_guide(pyr_sampler *sampler, pyr_guide *guide);
void pyr_sampler_begin(pyr_sampler *sampler);  /* a new text begins; ids seen stay */
/* 1: what it picked is a whole text, and nothing may follow */
int pyr_sampler_is_over(const pyr_sampler *sampler);
/* The next pick is one of ids [n], as far as a grammar allows them; n < 0: of any. */
pyr_status pyr_sampler_allow(pyr_sampler *sampler, const int32_t *ids, int64_t n);
/* Another that goes on as this one would. */
pyr_status pyr_sampler_clone(const pyr_sampler *sampler, pyr_sampler **out);

#endif
