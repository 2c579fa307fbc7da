"""Measures an exported model on text it was not trained on.

    python scripts/train/evaluate.py --model models/tiny recall [--tokens 512 1024] [--questions 50] [--keep 0.3]
    python scripts/train/evaluate.py --model models/tiny bits --books books.txt.gz
    python scripts/train/evaluate.py --model models/tiny samples [--count 10] [--seed 1]

recall: exact match per kind of question, at prompts of about so many tokens, greedy; documents of held-out seeds in which
every fact is told once and nothing is asked before the end. An answer is right if every one of its tokens is the most probable
one after those before it, and then some token that begins with a line end (one line end or two: the tokenizer has both):
the same as greedy decoding, read up to the end of the line, giving it. --keep lets every position
see only the first 4 tokens and the last share of the prompt, as a streaming cache does.
bits: bits per byte of held-out world documents and of the held-out book, in windows of the model's context.
samples: continuations with temperature 0.7, top-k 40, through transformers.
"""

import argparse
import json
import math
import pathlib
import subprocess

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import corpus
import export
import recipe

KINDS = ("attribute", "code", "gift", "moved", "verse", "chain")
HELD_OUT = 1_000_000_000


def documents(first, count, words, *options):
    command = [corpus.LUA, "scripts/train/world.lua", str(first), str(count), str(words), str(words), "--json", *options]
    out = subprocess.run(command, cwd=corpus.ROOT, check=True, stdout=subprocess.PIPE).stdout
    return [json.loads(line) for line in out.decode().split("\n") if line]


def streaming_mask(n, keep):
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    return (j <= i) & ((i - j < max(1, int(n * keep))) | (j < 4))


@torch.no_grad()
def recall(model, tokenizer, tokens, wanted, keep=None):
    """kind -> (right, asked), and the mean length of the prompts."""
    result, lengths = {kind: [0, 0] for kind in KINDS}, []
    seed, words = HELD_OUT + tokens * 1000, int(tokens / 1.42)
    while any(asked < wanted for _, asked in result.values()) and seed < HELD_OUT + tokens * 1000 + 20 * wanted:
        for d in documents(seed, 16, words, "recall=0", "density=45", "questions=12"):
            body = d["text"].encode()[: d["body_bytes"]].decode()
            done = set()
            for q in d["questions"]:
                # One question of a kind per document.
                if q["kind"] in done or result[q["kind"]][1] >= wanted:
                    continue
                done.add(q["kind"])
                prompt = tokenizer.encode(f"{body}\n\nQuestion: {q['question']}\nAnswer:").ids
                answer = tokenizer.encode(" " + q["answer"], add_special_tokens=False).ids
                ids = torch.tensor([prompt + answer + [0]])  # the last is not read
                mask = streaming_mask(ids.shape[1], keep) if keep else None
                guess = model(ids[:, :-1], mask=mask[:-1, :-1] if keep else None)[0, len(prompt) - 1 :].argmax(-1)
                right = guess[:-1].tolist() == answer and tokenizer.id_to_token(guess[-1].item()).startswith("Ċ")
                result[q["kind"]][0] += int(right)
                result[q["kind"]][1] += 1
                lengths.append(len(prompt))
        seed += 16
    return result, float(np.mean(lengths))


@torch.no_grad()
def bits_per_byte(model, tokenizer, texts):
    """Texts longer than the context are cut into windows; each window begins with <|begin|>."""
    window = recipe.MODEL["max_position_embeddings"] - 1
    nats = size = count = 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for at in range(0, len(ids), window):
            piece = torch.tensor([[recipe.BEGIN] + ids[at : at + window]])
            nats += F.cross_entropy(model(piece[:, :-1])[0], piece[0, 1:], reduction="sum").item()
            count += piece.shape[1] - 1
        size += len(text.encode())
    return {"bits_per_byte": round(nats / math.log(2) / size, 4), "loss_per_token": round(nats / count, 4), "bytes": size, "tokens": count}


PROMPTS = [
    "One winter morning Mira", "The Story of Oren and Tamsin\n\n", "It was market day, and", "Once upon a time there was a little",
    "The code of the brass box was 4071. Ada went down to the river.", "\"Tell me, Felix,\" said Nora,", "On Friday Hugo gave the",
    "The sea was", "Clara knew a verse: \"The", "At school the children",
]


def samples(directory, count, seed):
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for i, prompt in enumerate(PROMPTS[:count]):
        torch.manual_seed(seed + i)
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, do_sample=True, temperature=0.7, top_k=40, max_new_tokens=90)
        yield tokenizer.decode(out[0], skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recall", "bits", "samples"))
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--books", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--keep", type=float)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.what == "samples":
        for text in samples(a.model, a.count, a.seed):
            print(text + "\n\n---\n")
        return
    model, tokenizer = export.load(a.model), Tokenizer.from_file(str(a.model / "tokenizer.json"))
    if a.what == "bits":
        print("world", json.dumps(bits_per_byte(model, tokenizer, corpus.world_documents(HELD_OUT, 100, (200, 1000)))), flush=True)
        _, held = corpus.split_books(corpus.books(a.books))
        print("held-out book", json.dumps(bits_per_byte(model, tokenizer, [held[:200_000]])))
        return
    for tokens in a.tokens:
        result, mean = recall(model, tokenizer, tokens, a.questions, a.keep)
        row = {kind: round(right / asked, 3) for kind, (right, asked) in result.items() if asked}
        print(json.dumps({"tokens": round(mean), "keep": a.keep or 1.0, "asked": {k: n for k, (_, n) in result.items()}, "exact_match": row}), flush=True)


if __name__ == "__main__":
    main()
