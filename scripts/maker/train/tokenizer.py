"""Trains the byte-level BPE tokenizer. The same inputs give the same file, byte for byte.

    python scripts/maker/train/tokenizer.py --books books.txt.gz --out DIR
"""

import argparse
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import corpus
import recipe

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '\n\nQuestion: ' + m['content'] + '\nAnswer:' }}{% else %}{{ ' ' + m['content'] }}{% endif %}{% endfor %}"
)


def build(books):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(recipe.PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.VOCAB,
        special_tokens=recipe.SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    first, count = recipe.TOKENIZER_SEEDS
    world = corpus.world_documents(first, count, (100, 300))
    size = sum(map(len, world))
    # One part prose to three parts world.
    prose, taken = [], 0
    for text in corpus.prose_sample(books, size // 3):
        prose.append(text)
        taken += len(text)
    # Often enough that a word of the lexicon, with the space before it, becomes one token: what is asked for is one token then.
    words = [" " + " ".join(corpus.lexicon())] * recipe.LEXICON_TIMES
    tokenizer.train_from_iterator(world + prose + words, trainer)
    begin = recipe.SPECIAL[recipe.BEGIN]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, recipe.BEGIN)]
            ),
        ]
    )
    return tokenizer


def save(tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": recipe.SPECIAL[recipe.BEGIN],
        "eos_token": recipe.SPECIAL[recipe.END],
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": recipe.MODEL["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--books", type=pathlib.Path, required=True)
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    a = arguments.parse_args()
    save(build(corpus.books(a.books)), a.out)
