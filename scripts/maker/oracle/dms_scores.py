#!/usr/bin/env python3
"""What kvpress' DMSPress keeps around KVzapPress: golden data for the policy `dms` and for score.learned in decode.

Owns spec/fixtures/kvpress/<model>/dms.json (cases: options, prompt, steps, kept positions of every layer and KV head as
hexadecimal bit maps, where numbers lie) and dms.bin (raw little-endian f32: the map, [layers * heads][width + 1], the
bias last; then scores of all layers, head by head, one for each token read). The models are pyramidinfer.py's. Source:
kvpress over transformers, float64 on the CPU. Published maps are of other models, so KVzapPress is given one of random
numbers; a case is kept only if no score is near its threshold.

    pip install -r scripts/maker/oracle/requirements-kvpress.txt
    python scripts/maker/oracle/dms_scores.py
"""
import json, os, sys

sys.dont_write_bytecode = True
import kvpress
import numpy as np
import torch
import transformers
from kvpress.presses.kvzap_press import KVzapConfig, KVzapModel

import families, plain, pyramidinfer

ROOT = os.path.join(os.path.dirname(families.ROOT), "kvpress")
MARGIN, POOL = 2e-4, 600
# threshold, window, prompt tokens, steps
CASES = [(0.1, 16, 90, 0), (-0.2, 8, 60, 40), (0.3, 20, 12, 30), (0.0, 1, 40, 10)]


class GivenKVzap(kvpress.KVzapPress):
    """With a map that was not published."""

    def post_init_from_model(self, model):
        pass

    def score(self, module, *rest):
        scores = super().score(module, *rest)
        self.seen.setdefault(module.layer_idx, []).append(scores[0])
        return scores


class ToldDMS(kvpress.DMSPress):
    """Told where the tokens stand, which transformers 5.23 no longer tells an attention module."""

    def forward_hook(self, module, input, kwargs, output):
        held, read = kwargs["past_key_values"].get_seq_length(module.layer_idx), kwargs["hidden_states"].shape[1]
        return super().forward_hook(module, input, dict(kwargs, cache_position=torch.arange(held - read, held)), output)


@torch.no_grad()
def run(model, zap, case, ids):
    threshold, window, n, steps = case
    inner = GivenKVzap(model_type="linear")
    inner.kvzap_model, inner.seen = zap, {}
    press = ToldDMS(press=inner, threshold=threshold, sliding_window_size=window, decoding=True)
    cache = transformers.DynamicCache()
    with press(model):
        model(torch.tensor([ids[:n]]), past_key_values=cache)
        for i in range(n, n + steps):
            model(torch.tensor([[ids[i]]]), past_key_values=cache)
        scores = torch.stack([torch.cat(inner.seen[layer], dim=-1) for layer in sorted(inner.seen)])
        kept = []
        for layer in model.model.layers:
            masked = layer.self_attn.masked_key_indices
            lost = set() if masked is None else set(zip(masked[1].tolist(), masked[2].tolist()))
            kept.append([[i for i in range(n + steps) if (h, i) not in lost] for h in range(scores.shape[1])])
            layer.self_attn.masked_key_indices = None
    return scores, kept


def make(name, seed):
    out = os.path.join(ROOT, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(pyramidinfer.ROOT, name), dtype=torch.float64,
                                                              attn_implementation="sdpa").eval()
    c = model.config
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal((c.num_hidden_layers, c.num_key_value_heads, c.hidden_size + 1)).astype("<f4")
    numbers[..., :-1] /= np.float32(c.hidden_size ** 0.5)
    numbers[..., -1] *= np.float32(0.1)
    zap = KVzapModel(KVzapConfig(input_dim=c.hidden_size, output_dim=c.num_key_value_heads, n_modules=c.num_hidden_layers))
    zap = zap.to(torch.float64)
    for linear, rows in zip(zap.layers, numbers):
        linear.weight.data = torch.tensor(rows[:, :-1], dtype=torch.float64)
        linear.bias.data = torch.tensor(rows[:, -1], dtype=torch.float64)
    pool = families.random_ids(rng, c.vocab_size, POOL)
    blob, cases = bytearray(numbers.tobytes()), []
    for case in CASES:
        threshold, window, n, steps = case
        for first in range(0, POOL - n - steps, 7):
            scores, kept = run(model, zap, case, pool[first:first + n + steps])
            gap = float((scores - threshold).abs().min())
            if gap > MARGIN:
                break
        else:
            sys.exit(f"{name} {case}: no prompt without a score near the threshold")
        cases.append(dict(above=threshold, window=window, first=first, count=n, steps=steps, least_gap=gap,
                          scores=len(blob), kept=[[plain.bits(rows, n + steps) for rows in heads] for heads in kept]))
        blob.extend(scores.numpy().astype("<f4").tobytes())
        print(f"{name} dms {case}: {[[len(rows) for rows in heads] for heads in kept]}, gap {gap:.1e}", flush=True)
    with open(os.path.join(out, "dms.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(out, "dms.json"), "w") as f:
        head = json.dumps(dict(made_with=dict(kvpress="0.5.5", torch=torch.__version__, transformers=transformers.__version__),
                               seed=seed, width=c.hidden_size, pool=[int(t) for t in pool]))
        body = ",\n".join(json.dumps(case) for case in cases)
        f.write(f'{head[:-1]}, "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 420 + number)
