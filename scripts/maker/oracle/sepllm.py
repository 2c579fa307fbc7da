#!/usr/bin/env python3
"""A plain oracle of SepLLM's cache (arXiv 2412.12094), over plain.py.

Owns spec/fixtures/sepllm/<model>/: golden.json and golden.bin, as evictors.py writes them; the models are pyramidinfer.py's.
Separators are ids of ours, a ninth of the vocabulary: these models have no words.

Every layer reads the whole prompt; all KV heads keep the same rows, which are decided after the layer. n: the prompt's tokens; budget:
`rows`, or ceil(ratio*n) where rows is 0, and at least sinks + 2. The first `sinks` rows stay, and the last
w = max(1, ceil(recent*(budget - sinks))) ones. Of those between them the separators stay, the newest first, as many as fit in
the budget; with `fill` the newest others, too, as long as there is room. In generation, as soon as there are more than budget +
slack rows, again so. Positions stay what they were (the authors' streaming code moves them).

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/sepllm.py
"""
import math, os, sys

sys.dont_write_bytecode = True
import numpy as np

import evictors, families, plain, pyramidinfer
from plain import whole

ROOT = os.path.join(os.path.dirname(families.ROOT), "sepllm")
LENGTHS, STEPS, POOL, LOGIT_STEPS, MARGIN = (1, 5, 40, 300), 100, 3000, (0, 49, 99), 2e-5


class SepLLM(evictors.Evictor):
    DEFAULTS = dict(ratio=0.5, rows=0, slack=15, sinks=4, recent=0.5, fill=True, ids="")

    def prefill(self, ids):
        self.seen = list(ids)
        return super().prefill(ids)

    def step(self, token):
        self.seen.append(token)
        return super().step(token)

    def after_prompt(self, lane, a, slack=0):
        rows, sinks, budget = len(lane["pos"]), self.o["sinks"], self.budget(self.o["sinks"] + 2)
        if rows <= budget + slack:
            return np.arange(rows)
        last = max(1, whole(self.o["recent"] * max(min(budget, rows) - sinks, 1), math.ceil))
        separators = {int(word) for word in self.o["ids"].split(",")}
        middle = list(range(sinks, rows - last))[::-1]                         # the newest first
        chosen = [i for i in middle if self.seen[int(lane["pos"][i])] in separators]
        if self.o["fill"]:
            chosen += [i for i in middle if i not in set(chosen)]
        chosen = sorted(chosen[:max(0, budget - sinks - last)])
        return np.array(list(range(sinks)) + chosen + list(range(rows - last, rows)), dtype=int)

    def after_step(self, lane, a):
        return self.after_prompt(lane, a, self.o["slack"])


def make(name, seed):
    model, folder = os.path.join(pyramidinfer.ROOT, name), os.path.join(ROOT, name)
    vocab, golden = pyramidinfer.MODELS[name]["vocab_size"], plain.Golden()
    random = np.random.default_rng(seed)
    pool = families.random_ids(random, vocab, POOL)
    ids = ",".join(str(int(i)) for i in sorted(random.choice(vocab, vocab // 9, replace=False)))
    os.makedirs(folder, exist_ok=True)
    for options in (dict(), dict(ratio=0.2, sinks=1, recent=0.3, slack=6), dict(rows=30, slack=3, fill=False),
                    dict(ratio=0.6, recent=0.0, fill=False, sinks=0), dict(rows=24, recent=1.0, slack=0)):
        options = dict(options, ids=ids)
        for n in LENGTHS:
            first, got = plain.fair_case(lambda dtype: SepLLM(model, options, dtype), pool, n, len(golden.cases), STEPS, LOGIT_STEPS,
                                         MARGIN)
            golden.add(dict(policy="sepllm", options=options, first=first, count=n), got, LOGIT_STEPS)
            print(f"{name} {n:5} {({k: v for k, v in options.items() if k != 'ids'})} lead {got['lead']:.1e} "
                  f"float32 noise {got['noise']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=vocab, pool=pool)


if __name__ == "__main__":
    for number, model_name in enumerate(pyramidinfer.MODELS):
        make(model_name, 400 + number)
