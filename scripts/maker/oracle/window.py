#!/usr/bin/env python3
"""Plain oracles of policies that rank by a window of last queries: SnapKV cut back while text is generated, as kvpress'
DecodingPress does, and HeadKV (arXiv 2410.19258). Over evictors.py's.

Owns spec/fixtures/window/<model>/, in the form of evictors.py's. The models are pyramidinfer.py's.
  snapkv   As there; and with `every` above 0, after so many written tokens, again: the last w = min(window, rows) rows stay, a row
           before them has what the last `window` queries gave it, as far as they came since the last cut, smoothed as after the
           prompt; budget >= w rows stay. (DecodingPress turns all those queries to the newest one's position; here each has its own.)
  headkv   SnapKV's choice, but each KV head h of a layer has its own budget: of budget - w rows beside the window, a `beta`-th
           is put together over all layers and heads, and h has its part S_h of that beside what is left to it,
           w + round(base - base//beta + S_h * layers * heads * (base//beta)), base = budget - w. S: `scores` (by layer, then
           by head), to the power of `temperature`, over their sum. (The authors' heads are query heads.)
Ties go to the lower position.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/window.py
"""
import math, os, sys

sys.dont_write_bytecode = True
import numpy as np

import evictors, families, plain, pyramidinfer

ROOT = os.path.join(os.path.dirname(families.ROOT), "window")
LENGTHS, STEPS, POOL, LOGIT_STEPS, MARGIN = (1, 5, 40, 300), 100, 3000, (0, 49, 99), 2e-5


class SnapKV(evictors.SnapKV):
    DEFAULTS = dict(evictors.SnapKV.DEFAULTS, every=0)

    def smoothed(self, score):
        half, pool = self.o["kernel"] // 2, np.max if self.o["pool"] == "max" else np.mean
        return np.array([pool(score[max(0, j - half):j + half + 1]) for j in range(len(score))], self.dtype)

    def wanted(self, lane, window):
        return self.budget(window)

    def cut(self, lane, given, window):
        """What stays of rows that were given so much."""
        rows = len(given)
        votes = np.concatenate([self.smoothed(given[:rows - window]), np.zeros(window, self.dtype)])
        return self.highest(votes, min(self.wanted(lane, window), rows), window)

    def after_prompt(self, lane, a):
        window = min(self.o["window"], self.n)
        lane["recent"] = a.mean(0)[-window:].T
        return self.cut(lane, lane["recent"].sum(1) / window, window)

    def after_step(self, lane, a):
        lane["recent"] = np.concatenate([np.pad(lane["recent"], ((0, 1), (0, 0))), a.mean(0)[0][:, None]], 1)
        rows, every = len(lane["pos"]), self.o["every"]
        if not every or (self.next - self.n) % every:
            return np.arange(rows)
        given, lane["recent"] = lane["recent"][:, -self.o["window"]:].sum(1) / self.o["window"], np.zeros((rows, 0), self.dtype)
        return self.cut(lane, given, min(self.o["window"], rows))


class HeadKV(SnapKV):
    DEFAULTS = dict(SnapKV.DEFAULTS, scores="", beta=1.2, temperature=1.0)

    def wanted(self, lane, window):
        own = [float(x) for x in self.o["scores"].split(",")]
        s = np.array(own) ** self.o["temperature"]
        lanes = [other for lanes in self.lanes for other in lanes]
        at = next(i for i, other in enumerate(lanes) if other is lane)
        base = self.budget(window) - window
        shared = math.floor(base / self.o["beta"] + 1e-9)
        return window + math.floor(base - shared + s[at] / s.sum() * len(lanes) * shared + 0.5)


ORACLES = {"snapkv": SnapKV, "headkv": HeadKV}


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    config, golden = pyramidinfer.MODELS[name], plain.Golden()
    vocab, lanes = config["vocab_size"], config["num_hidden_layers"] * config["num_key_value_heads"]
    random = np.random.default_rng(seed)
    pool = families.random_ids(random, vocab, POOL)
    scores = ",".join(f"{x:.3f}" for x in random.gamma(1.0, size=lanes) + 0.05)
    os.makedirs(folder, exist_ok=True)
    for policy, options in (("snapkv", dict(ratio=0.3, window=8, kernel=5, pool="avg", every=16)),
                            ("snapkv", dict(rows=40, window=16, kernel=7, pool="avg", every=10)),
                            ("snapkv", dict(ratio=0.5, window=4, kernel=3, pool="avg", every=1)),
                            ("headkv", dict(ratio=0.3, window=8, kernel=5, pool="avg", scores=scores)),
                            ("headkv", dict(rows=40, window=6, kernel=3, pool="avg", scores=scores, beta=2.0, temperature=0.5, every=12))):
        for n in LENGTHS:
            first, got = plain.fair_case(lambda dtype: ORACLES[policy](model, options, dtype), pool, n, len(golden.cases), STEPS,
                                         LOGIT_STEPS, MARGIN)
            golden.add(dict(policy=policy, options=options, first=first, count=n), got, LOGIT_STEPS)
            print(f"{name} {n:5} {policy} {({k: v for k, v in options.items() if k != 'scores'})} gap {got['least']:.1e} "
                  f"lead {got['lead']:.1e} float32 noise {got['noise']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 500 + number)
