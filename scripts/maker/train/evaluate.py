"""Measures an exported model on text it was not trained on, and against other people's code. (Recall: `pyramid recall`.)

    python scripts/maker/train/evaluate.py --model models/tiny bits --books books.txt.gz
    python scripts/maker/train/evaluate.py --model models/tiny samples [--count 10] [--seed 1]
    python scripts/maker/train/evaluate.py --model models/tiny agree --gguf FILE [--pyramid build/pyramid]

bits: bits per byte of held-out world documents and of the held-out book, in windows of the model's context.
samples: continuations with temperature 0.7, top-k 40, through transformers.
agree: token ids and 100 greedy tokens of every sample's prompt and of questions about held-out documents, with transformers in
float32, llama-cpp-python (FILE is llama.cpp's conversion, see scripts/maker/peers/to_gguf.py) and Pyramid. Where two go apart, says how
far transformers' first two logits were from each other there.
"""

import argparse
import json
import math
import pathlib
import subprocess

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import corpus
import export
import recipe

HELD_OUT = 1_000_000_000


def documents(first, count, words, *options):
    command = [corpus.LUA, "scripts/maker/train/world.lua", str(first), str(count), str(words), str(words), "--json", *options]
    out = subprocess.run(command, cwd=corpus.ROOT, check=True, stdout=subprocess.PIPE).stdout
    return [json.loads(line) for line in out.decode().split("\n") if line]


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


def apart(a, b):
    """Where two sequences first differ, or None."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@torch.no_grad()
def agree(directory, gguf, pyramid, count=100):
    """One line for each prompt; True if all agree."""
    import llama_cpp
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    window = recipe.MODEL["max_position_embeddings"]
    llama = llama_cpp.Llama(str(gguf), n_ctx=window, logits_all=False, n_threads=1, verbose=False, type_k=0, type_v=0)
    prompts, same = list(PROMPTS), True
    for d in documents(HELD_OUT + 5_000_000, 6, 500, "recall=0", "questions=1"):
        prompts.append(d["text"].encode()[: d["body_bytes"]].decode() + f"\n\nQuestion: {d['questions'][0]['question']}\nAnswer:")
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        theirs = llama.tokenize(prompt.encode(), add_bos=True, special=False)
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
        reference = out.sequences[0, len(ids) :].tolist()
        second, llama_ids = [], theirs
        for id in llama.generate(theirs, temp=0.0, reset=True):
            second.append(id)
            if len(second) == count:
                break
        mine = subprocess.run([str(pyramid), "generate", "--model", str(directory), "--temperature", "0", "-n", str(count), "--ignore-eos", "--cache-dtype", "f32",
            "--json", "--", prompt], check=True, stdout=subprocess.PIPE)
        third = json.loads(mine.stdout)["ids"]
        words = [f"{len(ids)} ids equal" if ids == llama_ids else "IDS DIFFER"]
        for name, other in (("llama.cpp", second), ("Pyramid", third)):
            at = apart(reference, other)
            if at is not None:
                top = out.logits[at][0].topk(2).values
                words.append(f"{name} goes another way at token {at}, where the first two logits are {top[0] - top[1]:.4f} apart")
            else:
                words.append(f"{name} equal")
            same = same and at is None
        same = same and ids == llama_ids
        print(f"{prompt[:30]!r}: " + "; ".join(words), flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bits", "samples", "agree"))
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--books", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--pyramid", type=pathlib.Path, default=corpus.ROOT / "build/pyramid")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.what == "samples":
        for text in samples(a.model, a.count, a.seed):
            print(text + "\n\n---\n")
        return
    if a.what == "agree":
        raise SystemExit(0 if agree(a.model, a.gguf, a.pyramid) else 1)
    model, tokenizer = export.load(a.model), Tokenizer.from_file(str(a.model / "tokenizer.json"))
    print("world", json.dumps(bits_per_byte(model, tokenizer, corpus.world_documents(HELD_OUT, 100, (200, 1000)))), flush=True)
    _, held = corpus.split_books(corpus.books(a.books))
    print("held-out book", json.dumps(bits_per_byte(model, tokenizer, [held[:200_000]])))


if __name__ == "__main__":
    main()
