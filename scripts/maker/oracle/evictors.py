#!/usr/bin/env python3
"""Plain oracles of StreamingLLM (arXiv 2309.17453), SnapKV (arXiv 2404.14469) and H2O (arXiv 2306.14048), over plain.py.

Owns spec/fixtures/evictors/<model>/: golden.json (cases: policy, options, prompt, kept positions of every layer and KV
head as hexadecimal bit maps, fed ids) and golden.bin (raw little-endian f32 logits). The models are pyramidinfer.py's.

Every layer reads the whole prompt; what a KV head keeps of it is decided after the layer. n: the prompt's tokens;
budget: `rows`, or ceil(ratio*n) where rows is 0. Attention is averaged over the head's group of query heads.
  Streaming  The first `sinks` rows and the last ones, budget >= sinks + 1 together. In generation, as soon as there are more than
             budget + slack rows, again so.
  SnapKV     Once, after the prompt. The last w = min(window, n) rows stay. A row before them has the mean attention that
             the last w queries gave it, then the maximum (or mean) over the `kernel` rows around it, those before the
             window only; the highest are kept, budget >= w rows together. heads = "max": the group's maximum.
  H2O        A row has the sum of the attention that every query so far gave it, in prompt and generation. The last
             ceil(budget*recent) rows stay, of the others the highest, budget >= 2 rows together; again in generation as soon as
             there are more than budget + slack rows, the newest query's attention included.
Ties go to the lower position. Positions stay what they were.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/evictors.py           makes the golden data of both models (a few minutes)
    python scripts/maker/oracle/evictors.py --check   compares: logits with transformers, decisions with float32
"""
import json, math, os, sys

sys.dont_write_bytecode = True
import numpy as np
import torch

import families, plain, pyramidinfer
from plain import bits, whole

ROOT = os.path.join(os.path.dirname(families.ROOT), "evictors")
LENGTHS, STEPS, LONG, POOL, LOGIT_STEPS, MARGIN = (1, 5, 40, 300), 100, 1200, 3000, (0, 49, 99), 2e-5


class Evictor(plain.Llama):
    """Lanes of rows, one per layer and KV head: pos, k, v and the sum of attention so far."""

    def __init__(self, folder, options, dtype=np.float64):
        super().__init__(folder, dtype)
        self.o = dict(self.DEFAULTS, **options)

    def budget(self, least):
        return max(self.o["rows"] or whole(self.o["ratio"] * self.n, math.ceil), least)

    def pass_through(self, tokens, pos, judge):
        """The tokens through every layer; judge(lane, a) says which rows stay; a: group x queries x rows."""
        x, group = self.embed(tokens), self.heads // self.kv_heads
        self.next = int(pos[-1]) + 1
        for i, lanes in enumerate(self.lanes):
            q, k, v = self.project(i, x, pos)
            out = []
            for head, lane in enumerate(lanes):
                for name, rows in (("pos", pos), ("k", k[:, head]), ("v", v[:, head]), ("sum", np.zeros(len(pos), self.dtype))):
                    lane[name] = np.concatenate([lane[name], rows]) if name in lane else rows
                mine = range(head * group, (head + 1) * group)
                a = np.stack([self.attention(q[:, h], lane["k"], pos, lane["pos"]) for h in mine])
                out.extend(a @ lane["v"])
                lane["sum"] = lane["sum"] + a.mean(0).sum(0)
                stay = judge(lane, a)
                for name in lane:
                    lane[name] = lane[name][stay]
            x = self.finish(i, x, out)
        return self.logits(x[-1])

    def prefill(self, ids):
        self.n, self.lanes = len(ids), [[{} for _ in range(self.kv_heads)] for _ in range(self.layers)]
        return self.pass_through(ids, np.arange(self.n), self.after_prompt)

    def step(self, token):
        return self.pass_through([token], np.array([self.next]), self.after_step)

    def kept(self):
        return [[bits(lane["pos"], self.next) for lane in lanes] for lanes in self.lanes]

    def highest(self, score, keep, last):
        """The last `last` rows and the highest of the others, `keep` together."""
        judged = len(score) - last
        return np.concatenate([self.best(score[:judged], keep - last), np.arange(judged, len(score))])


class Streaming(Evictor):
    DEFAULTS = dict(sinks=4, ratio=0.5, rows=0, slack=15)

    def after_prompt(self, lane, a, slack=0):
        rows, budget = len(lane["pos"]), self.budget(self.o["sinks"] + 1)
        if rows <= budget + slack:
            return np.arange(rows)
        return np.concatenate([np.arange(self.o["sinks"]), np.arange(rows - budget + self.o["sinks"], rows)])

    def after_step(self, lane, a):
        return self.after_prompt(lane, a, self.o["slack"])


class SnapKV(Evictor):
    DEFAULTS = dict(ratio=0.5, rows=0, window=32, kernel=7, pool="max", heads="mean")

    def after_prompt(self, lane, a):
        window = min(self.o["window"], self.n)
        each = a[:, -window:].mean(1)
        score = (each.max(0) if self.o["heads"] == "max" else each.mean(0))[:self.n - window]
        half, pool = self.o["kernel"] // 2, np.max if self.o["pool"] == "max" else np.mean
        pooled = [pool(score[max(0, j - half):j + half + 1]) for j in range(len(score))]
        return self.highest(np.array(pooled + [0] * window, self.dtype), min(self.budget(window), self.n), window)

    def after_step(self, lane, a):
        return np.arange(len(lane["pos"]))


class H2O(Evictor):
    DEFAULTS = dict(ratio=0.5, rows=0, recent=0.5, slack=0)

    def after_prompt(self, lane, a, slack=0):
        rows, budget = len(lane["pos"]), self.budget(2)
        if rows <= budget + slack:
            return np.arange(rows)
        return self.highest(lane["sum"], budget, whole(budget * self.o["recent"], math.ceil))

    def after_step(self, lane, a):
        return self.after_prompt(lane, a, self.o["slack"])


ORACLES = {"streaming": Streaming, "snapkv": SnapKV, "h2o": H2O}
SETTINGS = [
    ("streaming", {}),
    ("streaming", dict(rows=24, slack=0, sinks=0)),
    ("streaming", dict(ratio=0.2, slack=6, sinks=7)),
    ("snapkv", {}),
    ("snapkv", dict(ratio=0.3, window=8, kernel=5, pool="avg")),
    ("snapkv", dict(rows=20, window=3, kernel=31, pool="avg")),
    ("snapkv", dict(ratio=0.37, window=1, kernel=1, heads="max")),
    ("h2o", {}),
    ("h2o", dict(ratio=0.3, recent=0.25, slack=6)),
    ("h2o", dict(rows=20, recent=0, slack=3)),
]


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    vocab, golden = pyramidinfer.MODELS[name]["vocab_size"], plain.Golden()
    pool = families.random_ids(np.random.default_rng(seed), vocab, POOL)
    os.makedirs(folder, exist_ok=True)
    for policy, options in SETTINGS:
        for n in LENGTHS + (() if options else (LONG,)):
            first, got = plain.fair_case(lambda dtype: ORACLES[policy](model, options, dtype), pool, n, len(golden.cases),
                                         0 if n == LONG else STEPS, LOGIT_STEPS, MARGIN)
            golden.add(dict(policy=policy, options=options, first=first, count=n), got, LOGIT_STEPS)
            print(f"{name} {n:5} {policy} {options} gap {got['least']:.1e} lead {got['lead']:.1e} "
                  f"float32 noise {got['noise']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


def check(name):
    """With nothing dropped the oracles must be the model; float32 must decide as float64 did."""
    model = os.path.join(pyramidinfer.ROOT, name)
    golden = json.load(open(os.path.join(ROOT, name, "golden.json")))
    torch_model = families.load(model, torch.float64)
    for policy, oracle_of in ORACLES.items():
        ids = golden["pool"][:340]
        ref = families.logits_of(torch_model, ids).numpy()[-41:]
        oracle = oracle_of(model, dict(rows=pyramidinfer.NEVER))
        out = [oracle.prefill(np.array(ids[:300]))] + [oracle.step(t) for t in ids[300:]]
        print(f"{name} {policy}, 300 tokens and 40 steps, nothing dropped: from transformers "
              f"{np.linalg.norm(out - ref, axis=-1).max() / np.linalg.norm(ref, axis=-1).min():.1e}", flush=True)
    for case in golden["cases"]:
        fed = case.get("generate", {}).get("ids", [])
        ids = golden["pool"][case["first"]:case["first"] + case["count"]]
        got = plain.run(ORACLES[case["policy"]](model, case["options"], np.float32), ids, len(fed), (), fed)
        final = case.get("generate", {}).get("positions", case["prefill"])
        assert got["prefill"] == case["prefill"] and got["final"] == final, case
    print(f"{name}: {len(golden['cases'])} cases decided the same in float32")


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        check(model_name) if "--check" in sys.argv else make(model_name, 200 + number)
