#!/usr/bin/env python3
"""Golden token ids of SmolLM2's real vocabulary, by the tokenizers library.

Owns spec/fixtures/tokenizers/smollm2.json:

    texts     what is encoded beside the corpus of tokenizer_fixtures.py (cases.json)
    ids[i]    encode(text i), the corpus first; nothing is added to a text by this model
    plain[i]  the same with no special text parsed; null where it equals ids[i]

The library's tokenizer is made anew from the vocabulary in the GGUF file (`make models` fetches it) and the steps that
SmolLM2's tokenizer.json names: single digits, then GPT-2's words and byte alphabet. Texts hold characters of Unicode 14
at most: later ones are letters to the one library and nothing to the other, by the Unicode of their regular expressions.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/smollm2.py                     makes it anew (the same bytes each time)
    python scripts/maker/oracle/smollm2.py TEXTS.json OUT.json the ids of other texts, for a look at more of them
"""
import json
import os
import random
import sys
import unicodedata

sys.path.pop(0)                                   # this folder has a tokenizers.py
import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..")
ROOT = os.path.join(TOP, "spec", "fixtures", "tokenizers")
MODEL = os.path.join(TOP, "models", "fetched", "SmolLM2-135M-Instruct.Q4_1.gguf")
CONTROL = 3                                       # tokenizer.ggml.token_type


def load():
    reader = gguf.GGUFReader(MODEL)

    def column(key):
        field = reader.fields["tokenizer.ggml." + key]
        return [field.parts[i] for i in field.data]

    tokens = [bytes(part).decode() for part in column("tokens")]
    merges = [tuple(bytes(part).decode().split(" ", 1)) for part in column("merges")]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = [int(part[0]) for part in column("token_type")]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                  for text, kind in zip(tokens, kinds) if kind == CONTROL])
    return tokenizer


def made_up(count):
    """Texts of blanks, punctuation, digits of all scripts, contractions and letters from everywhere."""
    blanks = [0x20, 0x0A, 0x0D, 0x09, 0xA0, 0x2003, 0x3000, 0x85, 0x2028, 0x0B, 0x0C]
    rng, out = random.Random(14), []
    for _ in range(count):
        text = ""
        for _ in range(rng.randrange(1, 40)):
            kind = rng.random()
            if kind < 0.3:
                text += chr(rng.choice(blanks)) * rng.choice([1, 1, 2, 5])
            elif kind < 0.6:
                text += chr(rng.randrange(32, 127))
            elif kind < 0.7:
                text += rng.choice("0123456789٣५²½Ⅷ①") * rng.choice([1, 3])
            elif kind < 0.8:
                text += rng.choice(["'s", "'S", "'ll", "’s", "'re"])
            else:
                character = chr(rng.randrange(0x80, 0xD800) if rng.random() < 0.7 else rng.randrange(0x10000, 0x1FB00))
                if unicodedata.category(character) != "Cn":          # of a Python with Unicode 14: 3.11
                    text += character
        out.append(text)
    return out


EXTRA = [" " * 300 + "a", "a" * 1000, "9" * 70, "é" * 300, "\n" * 300 + " x", "\t" * 257,
         "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|im_start", "a<file_sep>b<|endoftext|>",
         "\ufeffBOM", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "e\u0301 é \u0301", "fi ﬁ ﷺ", "def f(x):\n    return {\"a\": [1, 2.5e-3], 'b': x**2}\n",
         "http://example.org/a?b=c&d=%20#e", "\x00\x01\x7f"]


def main():
    assert unicodedata.unidata_version == "14.0.0", "a Python with Unicode 14 is needed (3.11)"
    tokenizer = load()
    if len(sys.argv) == 3:
        with open(sys.argv[1], encoding="utf-8") as f:
            texts = json.load(f)
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            json.dump([tokenizer.encode(text).ids for text in texts], f)
        return
    with open(os.path.join(ROOT, "cases.json"), encoding="utf-8") as f:
        cases = json.load(f)
    texts = EXTRA + made_up(120)
    ids = [tokenizer.encode(text).ids for text in cases + texts]
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(text).ids for text in cases + texts]
    golden = {"texts": texts, "ids": ids, "plain": [None if a == b else b for a, b in zip(ids, plain)]}
    with open(os.path.join(ROOT, "smollm2.json"), "w", encoding="utf-8", newline="") as f:
        json.dump(golden, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


main()
