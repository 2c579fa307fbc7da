"""SentencePiece models as tokenizer.model, and what the library makes of tokenizer_fixtures.py's texts:
spec/fixtures/sentencepiece. Needs the packages of requirements.txt.

    python scripts/maker/oracle/sentencepiece_fixtures.py      makes all anew

bpe.model      as Llama's: identity, a dummy prefix, bytes for what no piece has; a user-defined piece
spaces.model   spaces are cleaned away; no bytes; no dummy prefix
dummy.model    the same with one
unigram.model  what is refused
golden.json    ids by model and text; null for texts with a zero byte, which the binding cuts
"""
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.pop(0)
import sentencepiece

sys.path.insert(0, HERE)
from tokenizer_fixtures import CASES, TEXT

ROOT = os.path.abspath(os.path.join(HERE, "..", "..", "..", "spec", "fixtures", "sentencepiece"))
COMMON = dict(vocab_size=520, normalization_rule_name="identity", num_threads=1, minloglevel=2, character_coverage=0.98)
USER = ["a <tool>", "a<tool>b <tool>  c", " <tool> <tool><tool>", "é<tool>日\n<tool>"]
MODELS = {
    "bpe": dict(model_type="bpe", byte_fallback=True, split_digits=True, remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>"]),
    "spaces": dict(model_type="bpe", remove_extra_whitespaces=True, add_dummy_prefix=False, vocab_size=320),
    "dummy": dict(model_type="bpe", remove_extra_whitespaces=True, vocab_size=320),
    "unigram": dict(model_type="unigram", vocab_size=270),
}


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    os.makedirs(ROOT)
    os.chdir(ROOT)                       # the trainer writes its paths into the model
    golden = {}
    for name, options in MODELS.items():
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_prefix=name, **{**COMMON, **options})
        os.remove(name + ".vocab")
        sp = sentencepiece.SentencePieceProcessor(model_file=name + ".model")
        if name == "unigram":
            continue
        if name == "bpe":
            golden["pieces"] = [[c, sp.encode(c)] for c in USER]
        golden[name] = [None if "\0" in c else {"ids": sp.encode(c), "text": sp.decode(sp.encode(c))} for c in CASES]
    with open("golden.json", "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


main()
