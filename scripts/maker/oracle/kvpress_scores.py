#!/usr/bin/env python3
"""What kvpress keeps, and how it scores: golden data for the policies that have a counterpart there.

Owns spec/fixtures/kvpress/<model>/: golden.json (cases: policy, options, prompt, kept positions of every layer and KV head
as hexadecimal bit maps, where scores lie) and golden.bin (raw little-endian f32 scores of the first and the last layer,
head by head, one for each of the prompt's tokens). The models are pyramidinfer.py's. Source: kvpress over transformers,
float64 on the CPU; only its public classes are used.

kvpress keeps int(n * (1 - compression_ratio)) rows; ratios are chosen to make that the `rows` of a case. Its average pooling
divides by the kernel also where that hangs over an end; ours by the values inside, so count_include_pad is switched off
here ("avg"), and for "max" the pooling is replaced (for a model whose KV heads have one query head each: kvpress
pools before it averages over these). A score of infinity means "first of all". A case is kept only if its line between
kept and lost is no tie.

    pip install -r scripts/maker/oracle/requirements-kvpress.txt
    python scripts/maker/oracle/kvpress_scores.py     makes the golden data of both models
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
average, highest = torch.nn.functional.avg_pool1d, torch.nn.functional.max_pool1d
SNAP = dict(window_size=16, kernel_size=5)



def finch(ratio, window, **how):
    """The press, told the length of the question that its delimiter would tell it."""
    press = kvpress.FinchPress(ratio, rerotate_keys=False, **how)
    press.window_size = window
    return press


FILTERS = {}                 # of the model in hand: [layers][KV heads][head_dim], as the press has them


def qfilter(ratio):
    press = kvpress.QFilterPress(ratio)
    press.q_filters = FILTERS["now"]
    return press


# policy, our options, prompt tokens, rows kept (None: as it comes), attention, the press for a compression ratio
CASES = [
    ("knorm", {}, 150, 60, "sdpa", lambda r: kvpress.KnormPress(r)),
    ("keydiff", {}, 150, 60, "sdpa", lambda r: kvpress.KeyDiffPress(r)),
    ("lagkv", dict(lag=16), 150, 4 + 18 + 8 * 8, "sdpa", lambda r: kvpress.LagKVPress(r, lag_size=16)),
    ("lagkv", dict(lag=21, ranked=False), 140, 70, "sdpa", lambda r: kvpress.LagKVPress(r, lag_size=21, cross_scoring=True)),
    ("lagkv", dict(lag=64), 120, 50, "sdpa", lambda r: kvpress.LagKVPress(r, lag_size=64)),
    ("expected_attention", dict(future=512), 150, 60, "sdpa", lambda r: kvpress.ExpectedAttentionPress(r)),
    ("expected_attention", dict(future=40, sinks=7, covariance=False, epsilon=0.02), 150, 60, "sdpa",
     lambda r: kvpress.ExpectedAttentionPress(r, n_future_positions=40, n_sink=7, use_covariance=False, epsilon=0.02)),
    ("tova", {}, 150, 60, "sdpa", lambda r: kvpress.TOVAPress(r)),
    ("observed", {}, 150, 60, "eager", lambda r: kvpress.ObservedAttentionPress(r)),
    ("snapkv", dict(window=16, kernel=5, pool="avg"), 150, 60, "sdpa", lambda r: kvpress.SnapKVPress(r, **SNAP)),
    ("snapkv", dict(window=16, kernel=5, pool="max"), 150, 60, "sdpa", lambda r: kvpress.SnapKVPress(r, **SNAP)),
    ("criticalkv", dict(window=16, kernel=5, pool="avg"), 150, 60, "sdpa",
     lambda r: kvpress.CriticalKVPress(kvpress.SnapKVPress(r, **SNAP))),
    ("criticalkv", dict(window=16, kernel=5, pool="avg", first=0.0, epsilon=0.01), 150, 60, "sdpa",
     lambda r: kvpress.CriticalKVPress(kvpress.SnapKVPress(r, **SNAP), epsilon=0.01, first_stage_ratio=0.0)),
    ("chunkkv", dict(window=16, chunk=8), 160, 80, "sdpa",
     lambda r: kvpress.ChunkKVPress(kvpress.SnapKVPress(r, window_size=16, kernel_size=1), chunk_length=8)),
    ("pyramidkv", dict(window=16, kernel=5, pool="avg", beta=5), 200, 100, "sdpa", lambda r: kvpress.PyramidKVPress(r, beta=5, **SNAP)),
    ("pyramidkv", dict(window=16, kernel=5, pool="avg", beta=4), 400, 100, "sdpa", lambda r: kvpress.PyramidKVPress(r, beta=4, **SNAP)),
    ("pyramidkv", dict(window=16, kernel=5, pool="avg"), 200, 50, "sdpa", lambda r: kvpress.PyramidKVPress(r, **SNAP)),
    ("curdkv", {}, 150, 60, "sdpa", lambda r: kvpress.CURPress(r)),
    ("curdkv", dict(sinks=2, run=12), 132, 40, "sdpa", lambda r: kvpress.CURPress(r, num_sinks=2, local_window_size=12)),
    ("finch", dict(window=16), 150, 60, "sdpa", lambda r: finch(r, 16)),
    ("finch", dict(window=5, normalize=False), 150, 60, "sdpa", lambda r: finch(r, 5, normalize_scores=False)),
    ("qfilter", {}, 150, 60, "sdpa", lambda r: qfilter(r)),
]


def watch(model, press, seen):
    """Hooks that ask `press` after each layer's attention, with what the layer had and holds, and record the scores and
    which rows it leaves. (kvpress' own hooks want arguments that this transformers no longer hands to a layer.)"""
    score = getattr(press, "score", None)
    if score:
        def scored(module, *args, **kwargs):
            seen["scores"].append(score(module, *args, **kwargs)[0].clone())
            return seen["scores"][-1][None]
        press.score = scored

    def asked(module, args, kwargs, output):
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        left, _ = press.compress(module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs)
        place = [{row.numpy().tobytes(): i for i, row in enumerate(head)} for head in layer.keys[0]]
        seen["kept"].append([sorted(place[h][row.numpy().tobytes()] for row in head) for h, head in enumerate(left[0])])

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
        yield layer.self_attn.register_forward_hook(asked, with_kwargs=True)


def tight(scores, kept):
    """The smallest relative gap between kept and lost scores."""
    least = 1.0
    for head, rows in zip(scores, kept):
        inside = torch.zeros(len(head), dtype=torch.bool)
        inside[rows] = True
        if inside.all():
            continue
        low, high = head[inside].min(), head[~inside].max()
        least = min(least, float((low - high) / max(abs(low), abs(high), 1e-30)))
    return least


@torch.no_grad()
def run(models, case, ids):
    policy, options, n, rows, how, make = case
    pool = options.get("pool")
    exact = policy == "pyramidkv"                      # its budgets are made of the ratio itself
    press, seen = make(1 - (rows + (0 if exact else 0.5)) / n), dict(scores=[], kept=[])
    hooks = list(watch(models[how], press, seen))
    torch.nn.functional.avg_pool1d = (
        (lambda x, kernel_size, padding, stride: highest(x, kernel_size, stride, padding)) if pool == "max" else
        (lambda x, **how: average(x, count_include_pad=False, **how)))
    models[how](torch.tensor([ids]), past_key_values=transformers.DynamicCache())
    torch.nn.functional.avg_pool1d = average
    for hook in hooks:
        hook.remove()
    gap = min((tight(s, k) for s, k in zip(seen["scores"], seen["kept"])), default=1.0)
    if policy == "chunkkv" or pool == "max":           # scores not of chunks; neighbours that share a maximum
        gap = 1.0
    return seen, gap


def make(name, seed):
    folder, out = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    models = {how: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation=how).eval()
              for how in ("sdpa", "eager")}
    config = pyramidinfer.MODELS[name]
    pool = families.random_ids(np.random.default_rng(seed), config["vocab_size"], POOL)
    heads, width = config["num_key_value_heads"], config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    FILTERS["now"] = torch.tensor(np.random.default_rng(seed + 50).normal(size=(config["num_hidden_layers"], heads, width)))
    blob, cases = bytearray(), []
    for case in CASES:
        policy, options, n, rows = case[:4]
        if options.get("pool") == "max" and config["num_attention_heads"] != config["num_key_value_heads"]:
            continue
        for first in range(0, POOL - n, 7):
            seen, gap = run(models, case, pool[first:first + n])
            if gap > MARGIN:
                break
        else:
            sys.exit(f"{name} {policy}: no prompt without a tie")
        stored = dict(policy=policy, options=dict(options, rows=rows), first=first, count=n, least_gap=gap,
                      kept=[[plain.bits(rows, n) for rows in heads] for heads in seen["kept"]])
        if options.get("pool") == "max":
            del stored["kept"]                         # which of equal neighbours stay is anybody's choice
        # chunkkv's are of rows, before chunks are made of them; of a short prompt, lagkv only tells old from new.
        if policy != "chunkkv" and n >= 4 + 2 * options.get("lag", 0):
            stored["scores"] = len(blob)
            for layer in (0, -1):
                scores = seen["scores"][layer]
                scores = torch.where(scores > 1e30, torch.inf, scores)
                if policy == "curdkv":             # its sinks have 1, and all rows together 1
                    scores[:, :options.get("sinks", 4)] = torch.inf
                blob.extend(scores.numpy().astype("<f4").tobytes())
        if policy == "qfilter":                        # ours point the other way: the highest stay
            stored["filters"] = [[[float(x) for x in -head] for head in layer] for layer in FILTERS["now"]]
        if policy in ("curdkv", "finch"):          # ours are theirs times a number of each head
            stored["factor"] = True
        cases.append(stored)
        print(f"{name} {policy} {options}: {[len(heads[0]) for heads in seen['kept']]} of {n}, gap {gap:.1e}", flush=True)
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "golden.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(out, "golden.json"), "w") as f:
        head = json.dumps(dict(made_with=dict(kvpress="0.5.5", torch=torch.__version__, transformers=transformers.__version__),
                               seed=seed, pool=[int(t) for t in pool]))
        body = ",\n".join(json.dumps(case) for case in cases)
        f.write(f'{head[:-1]}, "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 300 + number)
