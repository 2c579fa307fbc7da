#!/usr/bin/env python3
"""Plain oracles of policies that kvpress has no counterpart of, over evictors.py's.

Owns spec/fixtures/newer/<model>/, in the form of evictors.py's. The models are pyramidinfer.py's. n: the prompt's tokens;
budget: `rows`, or ceil(ratio*n) where rows is 0; in generation rows are judged as soon as there are more than budget + slack.
  rkv    The last w = min(window, n) rows stay. A row before them has lambda * a - (1 - lambda) * r. a: the mean attention
         that the last w queries gave it, the highest of the group's heads (in generation their mean), divided by its sum
         over the judged rows; then the maximum of the `kernel` rows around it. r: softmax, over all rows, of the mean
         cosine of its key to the others', less, for each row whose last similar one it is, their cosine: the last j with
         cos(k_i, k_j) > threshold, over the number of rows (arXiv 2505.24133; where a row is like none, the authors' code
         takes the first row for its last similar one, and this does not).
  morphkv  The last `recent` rows stay. A row before them has the sum of the attention that the last `recent` queries gave
         it, mean over the group's heads; with fuse = "max" the highest that any of them gave (arXiv 2503.00979).

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/newer.py          makes the golden data of both models (a few minutes)
"""
import os, sys

sys.dont_write_bytecode = True
import numpy as np

import catalogue, evictors, families, plain, pyramidinfer

ROOT = os.path.join(os.path.dirname(families.ROOT), "newer")
LENGTHS, STEPS, POOL, LOGIT_STEPS, MARGIN = (40, 150), 40, 2000, (0, 19, 39), 3e-6


def maxima(x, kernel):
    half = kernel // 2
    return np.array([x[max(0, j - half):j + half + 1].max() for j in range(len(x))], x.dtype)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class RKV(catalogue.Ranked):
    DEFAULTS = {"ratio": 0.5, "rows": 0, "slack": 128, "window": 8, "kernel": 7, "lambda": 0.07, "threshold": 0.5}

    def guards(self):
        return 0, min(self.o["window"], self.n)

    def redundancy(self, k):
        n = len(k)
        u = k / np.linalg.norm(k, axis=-1, keepdims=True)
        cos = u @ u.T
        np.fill_diagonal(cos, 0)
        mean = cos.mean(0)
        for i in range(n):
            above = np.flatnonzero(cos[i] > self.o["threshold"])
            if len(above):
                mean[above[-1]] -= cos[i, above[-1]] / n
        return softmax(mean)

    def score(self, lane, a, first, end):
        """Above 0, and about as large as what is subtracted."""
        seen = (a[:, -self.o["window"]:].mean(1).max(0) if self.in_prompt else lane["seen"].mean(1))[first:end]
        return (maxima(seen / seen.sum(), self.o["kernel"]) * self.o["lambda"] + 2 / len(lane["pos"])
                - self.redundancy(lane["k"])[first:end] * (1 - self.o["lambda"]))

    def see(self, lane, a):
        """What each row got from the last `window` queries, a column each; rows that came later have 0 from earlier ones."""
        w, seen = self.o["window"], lane.get("seen", np.zeros((0, 0), self.dtype))
        old = np.zeros((len(lane["pos"]), seen.shape[1]), self.dtype)
        old[:len(seen)] = seen
        lane["seen"] = np.concatenate([old, a.mean(0)[-w:].T], 1)[:, -w:]

    def after_prompt(self, lane, a, slack=0):
        if slack == 0:
            self.in_prompt = True
        self.see(lane, a)
        return super().after_prompt(lane, a, slack)

    def after_step(self, lane, a):
        self.in_prompt = False
        return self.after_prompt(lane, a, self.o["slack"])


class Morph(RKV):
    DEFAULTS = dict(ratio=0.5, rows=0, slack=31, recent=32, fuse="sum")

    def __init__(self, folder, options, dtype=np.float64):
        super().__init__(folder, options, dtype)
        self.o["window"] = self.o["recent"]

    def see(self, lane, a):
        super().see(lane, a.max(0, keepdims=True) if self.o["fuse"] == "max" else a)

    def score(self, lane, a, first, end):
        return (lane["seen"].max(1) if self.o["fuse"] == "max" else lane["seen"].sum(1))[first:end]


ORACLES = {"rkv": RKV, "morphkv": Morph}
SETTINGS = [
    ("rkv", dict(slack=12)),
    ("rkv", {"rows": 30, "window": 5, "kernel": 3, "lambda": 0.3, "threshold": 0.3, "slack": 9}),
    ("morphkv", dict(recent=7, slack=6)),
    ("morphkv", dict(rows=25, recent=9, slack=11, fuse="max")),
]


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    vocab, golden = pyramidinfer.MODELS[name]["vocab_size"], plain.Golden()
    pool = families.random_ids(np.random.default_rng(seed), vocab, POOL)
    os.makedirs(folder, exist_ok=True)
    for policy, options in SETTINGS:
        for n in LENGTHS:
            first, got = plain.fair_case(lambda dtype: ORACLES[policy](model, options, dtype), pool, n, len(golden.cases),
                                         STEPS, LOGIT_STEPS, MARGIN)
            golden.add(dict(policy=policy, options=options, first=first, count=n), got, LOGIT_STEPS)
            print(f"{name} {n:5} {policy} {options} gap {got['least']:.1e} lead {got['lead']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 500 + number)
