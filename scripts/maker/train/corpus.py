"""Training text: world documents from the Lua generator, prose from a file of books; packed into rows of tokens.

The book file is UTF-8, one paragraph a line, a blank line between books, optionally gzipped; a book's first line is its title.
A row is whole world documents, each `<|begin|> text <|end|>`, best fit first, filled up with a slice of prose.
"""

import gzip
import os
import pathlib
import subprocess

import numpy as np

import recipe

ROOT = pathlib.Path(__file__).resolve().parents[3]
LUA = os.environ.get("LUA", "lua5.4")


def world_documents(first, count, words=None, *options):
    """The texts of `count` documents from seed `first` on; words is a (low, high) range."""
    command = [LUA, "scripts/maker/train/world.lua", str(first), str(count)]
    command += [str(w) for w in words or ()] + list(options)
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return out.decode().split("\0")[:-1]


def lexicon():
    """Every word that the world's documents draw from."""
    return subprocess.run([LUA, "scripts/maker/train/world.lua", "--lexicon"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode().split()


def books(path):
    """The books as lists of paragraphs, less the lines that credit who typed them."""
    raw = pathlib.Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    found = []
    for book in raw.decode().split("\n\n"):
        lines = [line for line in book.split("\n") if line.strip() and not line.startswith("Produced by ")]
        if lines:
            found.append(lines)
    return found


def split_books(all_books):
    """(training texts, held-out text), paragraphs separated by blank lines as in the world's documents."""
    held = [book for book in all_books if book[0].strip().lower() == recipe.HELD_OUT_BOOK.lower()]
    if len(held) != 1:
        raise SystemExit(f"the book to be held out, {recipe.HELD_OUT_BOOK!r}, is not in the file of books")
    return ["\n\n".join(book) for book in all_books if book is not held[0]], "\n\n".join(held[0])


def prose_sample(all_books, size):
    """About `size` characters, an equal share of every training book, in pieces of 4000."""
    texts, _ = split_books(all_books)
    share = size // len(texts)
    for text in texts:
        step = max(4000, len(text) * 4000 // max(share, 1))
        for start in range(0, len(text) - 4000, step):
            yield text[start : start + 4000]


def answer_weights(ids, marks, weight):
    """1 for every token, `weight` for those between `Answer:` and the end of the line. marks: (answer ids, newline ids)."""
    answer, newlines = marks
    weights = np.ones(len(ids), np.float32)
    n = len(answer)
    starts = [i for i in np.flatnonzero(ids == answer[-1]) if i + 1 >= n and (ids[i + 1 - n : i + 1] == answer).all()]
    for i in starts:
        j = i + 1
        while j < len(ids) and ids[j] not in newlines:
            weights[j] = weight
            j += 1
        if j < len(ids):
            weights[j] = weight  # the end of the line ends the answer
    return weights


def answer_marks(tokenizer):
    answer = tokenizer.encode("\nAnswer:", add_special_tokens=False).ids[-2:]
    newlines = {i for t, i in tokenizer.get_vocab().items() if "Ċ" in t}
    return np.array(answer), newlines


class Prose:
    """An endless stream of prose tokens: slices of the training books, starting anywhere at a paragraph."""

    def __init__(self, tokenizer, all_books, rng):
        self.rng = rng
        texts, _ = split_books(all_books)
        self.streams = []
        for text in texts:
            encoded = tokenizer.encode_batch(text.split("\n\n"), add_special_tokens=False)
            gap = tokenizer.encode("\n\n", add_special_tokens=False).ids
            ids, starts = [], []
            for paragraph in encoded:
                starts.append(len(ids))
                ids += paragraph.ids + gap
            self.streams.append((np.array(ids, np.uint16), np.array(starts)))
        sizes = np.array([len(s[0]) for s in self.streams], float)
        self.share = sizes / sizes.sum()

    def take(self, n):
        """n tokens that begin with <|begin|> and the start of a paragraph."""
        ids, starts = self.streams[self.rng.choice(len(self.streams), p=self.share)]
        fitting = starts[: np.searchsorted(starts, len(ids) - n + 1)]
        start = fitting[self.rng.integers(len(fitting))]
        return np.concatenate([[recipe.BEGIN], ids[start : start + n - 1]]).astype(np.uint16)


def rows(tokenizer, all_books, stage, index, wanted, start_seed):
    """Arrays of `wanted` rows (tokens uint16, weights float16 of context + 1 each) for a stage, and the next free seed."""
    length = stage["context"] + 1
    rng = np.random.default_rng([recipe.SEED, index, start_seed])
    prose = rows.prose.get(id(all_books)) or rows.prose.setdefault(id(all_books), Prose(tokenizer, all_books, rng))
    prose.rng = rng
    marks = answer_marks(tokenizer)
    tokens = np.zeros((wanted, length), np.uint16)
    weights = np.ones((wanted, length), np.float16)
    pending, seed = [], start_seed
    for r in range(wanted):
        at = 0
        alone = rng.random() < stage["prose"]
        while not alone and at < length:
            while len(pending) < 128:
                dense = rng.random() < stage["dense"]
                focus = rng.random() < stage["focus"]
                options = (recipe.DENSE if dense else ()) + (stage.get("kinds", recipe.FOCUS) if focus else ())
                words = stage["words"]
                if stage.get("asked") and rng.random() < stage["asked"]:
                    questions = rng.integers(*stage["questions"], endpoint=True)
                    room = length - questions * recipe.QUESTION_TOKENS
                    words = (words[0], max(words[0], min(words[1], int(room / recipe.WORD_TOKENS))))
                    options = tuple(o for o in options if not o.startswith("recall=")) + recipe.TELLING_ONCE + (f"questions={questions}",)
                    if stage.get("things") and rng.random() < stage["things"]:
                        options += ("ask=3",)
                texts = world_documents(seed, 128, words, *options)
                seed += 128
                for encoded in tokenizer.encode_batch(texts, add_special_tokens=False):
                    ids = np.array([recipe.BEGIN] + encoded.ids + [recipe.END], np.uint16)
                    if len(ids) <= length:
                        pending.append((ids, answer_weights(ids, marks, stage.get("answers", recipe.ANSWER_WEIGHT))))
            # The first document of a row is whichever comes; the rest of the row takes the largest that fits.
            fitting = [i for i, d in enumerate(pending[:128]) if len(d[0]) <= length - at]
            if not fitting:
                break
            best = max(fitting, key=lambda i: len(pending[i][0])) if at else 0
            ids, w = pending.pop(best)
            tokens[r, at : at + len(ids)], weights[r, at : at + len(ids)] = ids, w
            at += len(ids)
        if at < length:
            tokens[r, at:] = prose.take(length - at)
    return tokens, weights, seed


rows.prose = {}
