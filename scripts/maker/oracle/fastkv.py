#!/usr/bin/env python3
"""A plain oracle of FastKV (arXiv 2502.01068), over evictors.py's.

Owns spec/fixtures/fastkv/<model>/, in the form of evictors.py's. The models are pyramidinfer.py's. n: the prompt's tokens; w =
min(window, n). After each layer a KV head keeps max(w, floor(ratio*n)) of its rows (or `rows`): the last w, and of the others
the highest by the mean attention of the last w queries over its group, averaged over the `kernel` rows around, as far as there
are any. Layer floor(at*layers), counted from 1, keeps and hands to the next max(w, floor(handed*n)): the last w tokens, and the
highest by the mean of that over all heads. Deeper layers never see the others. While text is generated nothing is dropped.
Ties go to the lower position. Two things differ from the authors' code: it cuts the cache of the layer that hands on by head,
too, and its averages at both ends count what is not there as 0.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/fastkv.py         makes the golden data of both models (a few minutes)
"""
import os, sys

sys.dont_write_bytecode = True
import numpy as np

import evictors, families, plain, pyramidinfer

ROOT = os.path.join(os.path.dirname(families.ROOT), "fastkv")
LENGTHS, STEPS, POOL, LOGIT_STEPS, MARGIN = (5, 60, 150), 12, 2000, (0, 5, 11), 3e-6
SETTINGS = [{}, dict(ratio=0.3, handed=0.55, at=0.4, window=3, kernel=5), dict(rows=20, handed=0.4, at=0.7, window=1, kernel=1)]


class FastKV(evictors.Evictor):
    DEFAULTS = dict(ratio=0.1, rows=0, handed=0.2, at=0.5, window=8, kernel=7)

    def prefill(self, ids):
        self.n = self.next = len(ids)
        self.lanes, group = [], self.heads // self.kv_heads
        x, pos, half = self.embed(ids), np.arange(self.n), self.o["kernel"] // 2
        for i in range(self.layers):
            q, k, v = self.project(i, x, pos)
            w, m, out, votes = min(self.o["window"], self.n), len(pos), [], []
            for head in range(self.kv_heads):
                a = np.stack([self.attention(q[:, h], k[:, head], pos, pos) for h in range(head * group, (head + 1) * group)])
                out.extend(a @ v[:, head])
                seen = a[:, -w:].mean(1).mean(0)[:m - w]
                votes.append(np.array([seen[max(0, j - half):j + half + 1].mean() for j in range(m - w)] + [0] * w, self.dtype))
            x = self.finish(i, x, out)
            hands_on = i + 1 == plain.whole(self.o["at"] * self.layers)
            if hands_on:
                keep = max(w, plain.whole(self.o["handed"] * self.n))
                stay = self.highest(sum(votes) / len(votes), min(keep, m), w)
                stays = [stay] * self.kv_heads
            else:
                keep = max(w, self.o["rows"] or plain.whole(self.o["ratio"] * self.n))
                stays = [self.highest(vote, min(keep, m), w) for vote in votes]
            self.lanes.append([dict(pos=pos[s], k=k[s, head], v=v[s, head], sum=np.zeros(len(s), self.dtype))
                               for head, s in enumerate(stays)])
            if hands_on:
                x, pos = x[stay], pos[stay]
        return self.logits(x[-1])

    def after_step(self, lane, a):
        return np.arange(len(lane["pos"]))


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    vocab, golden = pyramidinfer.MODELS[name]["vocab_size"], plain.Golden()
    pool = families.random_ids(np.random.default_rng(seed), vocab, POOL)
    os.makedirs(folder, exist_ok=True)
    for options in SETTINGS:
        for n in LENGTHS:
            first, got = plain.fair_case(lambda dtype: FastKV(model, options, dtype), pool, n, len(golden.cases), STEPS,
                                         LOGIT_STEPS, MARGIN)
            golden.add(dict(policy="fastkv", options=options, first=first, count=n), got, LOGIT_STEPS)
            print(f"{name} {n:5} {options} gap {got['least']:.1e} lead {got['lead']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 600 + number)
