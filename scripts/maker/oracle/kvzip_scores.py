#!/usr/bin/env python3
"""What kvpress' KVzipPress scores and keeps: golden data for the policy `kvzip`.

Owns spec/fixtures/kvpress/<model>/kvzip.json (cases: options, prompt, kept positions of every layer and KV head as
hexadecimal bit maps, where scores lie) and kvzip.bin (raw little-endian f32 scores of all layers, head by head, one for
each of the prompt's tokens). The models are pyramidinfer.py's. Source: kvpress over transformers, float64 on the CPU.

The press reads its instructions by a tokenizer of the model's folder, which these models have not: it is given one that
knows the three texts and gives ids of ours for them, `WORDS`. What KVzipPress does around that (the first reading, the
passes, the choice over layers and heads) is its own. A case is kept only if its line between kept and lost is no tie.

    pip install -r scripts/maker/oracle/requirements-kvpress.txt
    python scripts/maker/oracle/kvzip_scores.py
"""
import json, os, sys

sys.dont_write_bytecode = True
import kvpress
import numpy as np
import torch
import transformers

import families, plain, pyramidinfer

ROOT = os.path.join(os.path.dirname(families.ROOT), "kvpress")
MARGIN, POOL = 1e-5, 600
WORDS = {"\n\nRepeat the previous context exactly.": [21, 5, 33, 8, 13],
         "\n\nRepeat the part of the previous context exactly, starting with": [21, 5, 40, 2, 8, 19, 27],
         "\n": [11]}

# our options, prompt tokens, rows kept of each lane on average
CASES = [
    (dict(), 150, 60),
    (dict(block=48), 150, 45),
    (dict(block=48, uniform=True), 150, 45),
    (dict(block=31, sinks=9), 140, 70),
    (dict(block=64, sinks=0, uniform=True), 100, 30),
    (dict(sinks=0), 90, 12),
]


class Words:
    """As much of a tokenizer as the press asks for."""

    def encode(self, text, return_tensors=None, add_special_tokens=None):
        return torch.tensor([WORDS[text]])


@torch.no_grad()
def run(model, case, ids):
    options, n, rows = case
    c, uniform = model.config, options.get("uniform", False)
    of = c.num_key_value_heads * (1 if uniform else c.num_hidden_layers)       # the lanes that share a budget
    press = kvpress.KVzipPress(compression_ratio=(of * (n - rows) + 0.5) / (of * n), layerwise=uniform,
                               n_sink=options.get("sinks", 4), chunk_size=options.get("block", 2048))
    press._context_ids, press._cache = torch.tensor([ids]), transformers.DynamicCache()
    press._suffix_ids = torch.tensor([WORDS["\n"]])
    model(press._context_ids, past_key_values=press._cache)
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
    seen = {}
    choose = press.compress_post
    def chosen(model):
        seen["scores"] = press.score_val[:, 0].clone()
        choose(model)
    press.compress_post = chosen
    press._perform_kvzip_compression(model, Words())
    kept = []
    for layer in model.model.layers:
        _, heads, places = layer.self_attn.masked_key_indices
        layer.self_attn.masked_key_indices = None
        lost = set(zip(heads.tolist(), places.tolist()))
        kept.append([[i for i in range(n) if (h, i) not in lost] for h in range(c.num_key_value_heads)])
    return seen["scores"], kept


def tight(scores, kept, sinks, together):
    """The smallest relative gap between kept and lost scores, of the layers that share a budget."""
    groups = [range(len(kept))] if together else [[layer] for layer in range(len(kept))]
    least = 1.0
    for group in groups:
        inside, outside = [], []
        for layer in group:
            for head, rows in enumerate(kept[layer]):
                rows = set(rows)
                for i, x in enumerate(scores[layer, head].tolist()):
                    if i >= sinks:
                        (inside if i in rows else outside).append(x)
        if inside and outside:
            low, high = min(inside), max(outside)
            least = min(least, (low - high) / max(abs(low), abs(high), 1e-30))
    return least


def make(name, seed):
    out = os.path.join(ROOT, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(pyramidinfer.ROOT, name), dtype=torch.float64,
                                                              attn_implementation="sdpa").eval()
    pool = families.random_ids(np.random.default_rng(seed), model.config.vocab_size, POOL)
    blob, cases = bytearray(), []
    for case in CASES:
        options, n, rows = case
        for first in range(0, POOL - n, 7):
            scores, kept = run(model, case, pool[first:first + n])
            gap = tight(scores, kept, options.get("sinks", 4), not options.get("uniform", False))
            if gap > MARGIN:
                break
        else:
            sys.exit(f"{name} {options}: no prompt without a tie")
        cases.append(dict(options=dict(options, rows=rows), first=first, count=n, least_gap=gap, scores=len(blob),
                          kept=[[plain.bits(rows, n) for rows in heads] for heads in kept]))
        blob.extend(scores.numpy().astype("<f4").tobytes())
        print(f"{name} kvzip {options}: {[[len(rows) for rows in heads] for heads in kept]} of {n}, gap {gap:.1e}", flush=True)
    with open(os.path.join(out, "kvzip.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(out, "kvzip.json"), "w") as f:
        head = json.dumps(dict(made_with=dict(kvpress="0.5.5", torch=torch.__version__, transformers=transformers.__version__),
                               seed=seed, words=WORDS, pool=[int(t) for t in pool]))
        body = ",\n".join(json.dumps(case) for case in cases)
        f.write(f'{head[:-1]}, "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)              # the press makes its mask in the default dtype
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 320 + number)
