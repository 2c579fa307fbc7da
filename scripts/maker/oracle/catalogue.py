#!/usr/bin/env python3
"""Plain oracles of what the catalogue's policies do while text is generated, for which kvpress has no counterpart.

Owns spec/fixtures/catalogue/<model>/, in the form of evictors.py's, over whose oracle these are written. The models are
pyramidinfer.py's. n: the prompt's tokens; budget: `rows`, or ceil(ratio*n) where rows is 0. The first `sinks` and the last
`recent` rows stay; the others are judged after the prompt, and in generation as soon as there are more than budget + slack.
  knorm         Lowest |k| first to stay (arXiv 2406.11430).
  keydiff       Lowest cosine of k to the mean of the judged rows' k/|k| first to stay (arXiv 2504.15364).
  tova          One set a layer: highest attention of the newest query, averaged over all heads (arXiv 2401.06104).
  scissorhands  After the prompt, highest sum of what the last `history` queries gave (mean over the group's heads); then of
                what all queries gave, which before each step is multiplied by 1 - 1/history. The last ceil(budget*recent)
                rows stay (arXiv 2305.17118, with sums for its counts).

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/catalogue.py           makes the golden data of both models (a few minutes)
"""
import math, os, sys

sys.dont_write_bytecode = True
import numpy as np

import evictors, families, plain, pyramidinfer
from plain import whole

ROOT = os.path.join(os.path.dirname(families.ROOT), "catalogue")
LENGTHS, STEPS, POOL = (40, 300), 100, 3000


class Ranked(evictors.Evictor):
    """Ranks the rows between the guards by score(lane, a, first, end), which is above 0 and sound when multiplied."""
    DEFAULTS = dict(ratio=0.5, rows=0, sinks=0, recent=0, slack=15)

    def guards(self):
        return self.o["sinks"], self.o["recent"]

    def after_prompt(self, lane, a, slack=0):
        first, last = self.guards()
        rows, budget = len(lane["pos"]), self.budget(max(first + last, 1))
        if rows <= budget + slack:
            return np.arange(rows)
        end = rows - last
        chosen = self.best(self.score(lane, a, first, end), budget - first - last) + first
        return np.concatenate([np.arange(first), chosen, np.arange(end, rows)])

    def after_step(self, lane, a):
        return self.after_prompt(lane, a, self.o["slack"])


class KNorm(Ranked):
    """In the first layer, tokens of one id have keys of one length: it is left `whole`, so that nothing is a tie."""
    DEFAULTS = dict(Ranked.DEFAULTS, whole=0)

    def after_prompt(self, lane, a, slack=0):
        whole_layers = [other for lanes in self.lanes[:self.o["whole"]] for other in lanes]
        if any(lane is other for other in whole_layers):
            return np.arange(len(lane["pos"]))
        return super().after_prompt(lane, a, slack)

    def score(self, lane, a, first, end):
        return 1 / np.linalg.norm(lane["k"][first:end], axis=-1)


class KeyDiff(Ranked):
    def score(self, lane, a, first, end):
        k = lane["k"][first:end]
        k = k / np.linalg.norm(k, axis=-1, keepdims=True)
        anchor = k.mean(0)
        return 2 - k @ (anchor / np.linalg.norm(anchor))


class Tova(Ranked):
    DEFAULTS = dict(ratio=0.5, rows=0, slack=0)

    def guards(self):
        return 0, 1

    def score(self, lane, a, first, end):
        return a[:, -1, first:end].mean(0)

    def pass_through(self, tokens, pos, judge):
        """As the evictors', but a layer's heads are judged together."""
        x, group = self.embed(tokens), self.heads // self.kv_heads
        self.next = int(pos[-1]) + 1
        for i, lanes in enumerate(self.lanes):
            q, k, v = self.project(i, x, pos)
            out, seen = [], []
            for head, lane in enumerate(lanes):
                for name, rows in (("pos", pos), ("k", k[:, head]), ("v", v[:, head])):
                    lane[name] = np.concatenate([lane[name], rows]) if name in lane else rows
                for h in range(head * group, (head + 1) * group):
                    seen.append(self.attention(q[:, h], lane["k"], pos, lane["pos"]))
                    out.append(seen[-1] @ lane["v"])
            stay = judge(lanes[0], np.stack(seen))
            for lane in lanes:
                for name in lane:
                    lane[name] = lane[name][stay]
            x = self.finish(i, x, out)
        return self.logits(x[-1])


class Scissorhands(Ranked):
    DEFAULTS = dict(ratio=0.5, rows=0, recent=0.2, history=400, slack=15)

    def guards(self):
        return 0, whole(self.budget(2) * self.o["recent"], math.ceil)

    def score(self, lane, a, first, end):
        return (a[:, -self.o["history"]:].mean(0).sum(0) if self.n == len(lane["pos"]) == a.shape[1] else lane["sum"])[first:end]

    def after_step(self, lane, a):
        newest = a.mean(0)[0]
        lane["sum"] = (lane["sum"] - newest) * self.dtype(1 - 1 / self.o["history"]) + newest
        return super().after_step(lane, a)


ORACLES = {"knorm": KNorm, "keydiff": KeyDiff, "tova": Tova, "scissorhands": Scissorhands}
SETTINGS = [
    ("knorm", dict(rows=30, sinks=2, recent=3, whole=1, slack=4)),
    ("keydiff", dict(rows=30, sinks=3, recent=2, slack=4)),
    ("keydiff", dict(ratio=0.25)),
    ("tova", {}),
    ("tova", dict(rows=25, slack=7)),
    ("scissorhands", dict(ratio=0.3, history=20, slack=6)),
    ("scissorhands", dict(rows=25, recent=0.4)),
]


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    vocab, golden = pyramidinfer.MODELS[name]["vocab_size"], plain.Golden()
    pool = families.random_ids(np.random.default_rng(seed), vocab, POOL)
    os.makedirs(folder, exist_ok=True)
    for policy, options in SETTINGS:
        for n in LENGTHS:
            first, got = plain.fair_case(lambda dtype: ORACLES[policy](model, options, dtype), pool, n, len(golden.cases),
                                         STEPS, evictors.LOGIT_STEPS, evictors.MARGIN)
            golden.add(dict(policy=policy, options=options, first=first, count=n), got, evictors.LOGIT_STEPS)
            print(f"{name} {n:5} {policy} {options} gap {got['least']:.1e} lead {got['lead']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 400 + number)
