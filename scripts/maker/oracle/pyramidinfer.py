#!/usr/bin/env python3
"""A plain oracle of PyramidInfer (arXiv 2405.12532), over plain.py.

Owns spec/fixtures/pyramidinfer/<model>/: two small random Llamas (MHA and GQA, 6 layers, in the form of families.py),
golden.json (cases: options, prompt, kept positions of every layer as hexadecimal bit maps, fed ids) and golden.bin (raw
little-endian f32 logits). What makes a prompt fair is in plain.py.

Prefill, layer i of L, from 0 (class Oracle, prefill): the last r = floor(recent*n) + 1 rows are recent, c rows come
before them. A(row) = mean over query heads, mean over the r recent queries, of w_q * a_q(row); w rises linearly from 1 to `ramp`.
  code   every `interval`-th layer keeps k = floor(c*d_i) context rows if k > floor, else all; d_i falls from 1 to `ratio`.
         The layer's own K and V stay whole; only the survivors go on to layer i+1.
  paper  Algorithm 1: k = max(floor(c*p_i), floor), p_i = ratio * p_decay^i; the layer's own K and V are pruned too.
The first `sinks` rows are always among the k; ties go to the lower position.

Generation (step): the last R = r rows are recent. A row that leaves them waits; when `exceed` wait in a layer they are
judged by the same weighted mean of what the last R queries (the prompt's count) gave them, and the best
max(1, floor(exceed * gen_ratio * g_i)) stay for ever. g_i falls from 1 to gen_decay.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/pyramidinfer.py           makes both models and their golden data (a few minutes)
    python scripts/maker/oracle/pyramidinfer.py --check   compares: unpruned logits with transformers, decisions with float32
"""
import json, math, os, sys

sys.dont_write_bytecode = True
import numpy as np
import torch

import families, plain
from plain import bits, whole

ROOT = os.path.join(os.path.dirname(families.ROOT), "pyramidinfer")
LENGTHS, GENERATE, STEPS, POOL = (16, 64, 65, 512, 2000), (64, 512), 300, 4000
LOGIT_STEPS = (0, 15, 16, 31, 100, 200, 299)
NEVER = 1 << 30

DEFAULTS = dict(mode="code", recent=0.2, ratio=0.9, decay="cosine", sinks=4, ramp=1.2, floor=64, interval=1,
                p_decay=0.98, gen_decay=0.1, gen_ratio=0.9, exceed=16)
OTHER = dict(recent=0.1, ratio=0.6, floor=16, sinks=0)
SETTINGS = {
    "code": {},
    "paper": dict(mode="paper"),
    "code, interval 2, no sinks": dict(OTHER, interval=2),
    "paper, steep, no sinks": dict(OTHER, mode="paper", p_decay=0.85),
    "code, linear": dict(decay="linear", ratio=0.537, ramp=2.0, floor=4, sinks=2, gen_ratio=0.5, gen_decay=0.45,
                               exceed=8),
}
MODELS = {
    "mha": dict(families.BASE, num_hidden_layers=6, intermediate_size=64, max_position_embeddings=4096),
    "gqa": dict(families.BASE, num_hidden_layers=6, intermediate_size=64, max_position_embeddings=4096, head_dim=16,
                num_attention_heads=4, num_key_value_heads=2),
}


def fall(kind, last, i, layers):
    """From 1 at the first layer towards `last` at the end."""
    shape = (math.cos(math.pi * i / layers) + 1) / 2 if kind == "cosine" else 1 - i / layers
    return last + (1 - last) * shape


class Oracle(plain.Llama):
    def __init__(self, folder, options, dtype=np.float64):
        super().__init__(folder, dtype)
        self.o = dict(DEFAULTS, **options)

    def attend(self, i, x, pos, q, k, v, k_pos):
        """The layer's output and its attention, averaged over query heads: queries x rows."""
        group, mean, out = self.heads // self.kv_heads, np.zeros((len(pos), len(k_pos)), self.dtype), []
        for head in range(self.heads):
            a = self.attention(q[:, head], k[:, head // group], pos, k_pos)
            mean += a / self.dtype(self.heads)
            out.append(a @ v[:, head // group])
        return self.finish(i, x, out), mean

    def ramped(self, a):
        """Mean over the queries (rows of a, oldest first) of w_q * a_q(row)."""
        w = np.linspace(1.0, self.o["ramp"], len(a)) if len(a) > 1 else np.ones(1)
        return (w.astype(self.dtype)[:, None] * a).sum(0) / self.dtype(len(a))

    def pivotal(self, i, c, score):
        o = self.o
        if o["mode"] == "paper":
            k = min(c, max(whole(c * (o["ratio"] * o["p_decay"] ** i)), o["floor"]))
        elif i % o["interval"] == 0:
            k = whole(c * fall(o["decay"], o["ratio"], i, self.layers))
            k = k if k > o["floor"] else c
        else:
            k = c
        guard = min(o["sinks"], c)
        return self.best(score, max(k, guard), guard)

    def prefill(self, ids):
        x, pos, o = self.embed(ids), np.arange(len(ids)), self.o
        self.next, self.r, self.lanes, self.waiting = len(ids), math.floor(o["recent"] * len(ids)) + 1, [], []
        for i in range(self.layers):
            q, k, v = self.project(i, x, pos)
            x, mean = self.attend(i, x, pos, q, k, v, pos)
            c = len(pos) - min(self.r, len(pos))
            recent = mean[c:]
            alive = np.concatenate([self.pivotal(i, c, self.ramped(recent)[:c]), np.arange(c, len(pos))])
            own = alive if o["mode"] == "paper" else np.arange(len(pos))
            self.lanes.append(dict(pos=pos[own], k=k[own], v=v[own], seen=recent[:, own]))
            self.waiting.append([])
            x, pos = x[alive], pos[alive]
        return self.logits(x[-1])

    def step(self, token):
        x, pos = self.embed([token]), np.array([self.next])
        self.next += 1
        for i, lane in enumerate(self.lanes):
            q, k, v = self.project(i, x, pos)
            for name, row in (("pos", pos), ("k", k), ("v", v)):
                lane[name] = np.concatenate([lane[name], row])
            x, mean = self.attend(i, x, pos, q, lane["k"], lane["v"], lane["pos"])
            unseen = np.zeros((len(lane["seen"]), 1), self.dtype)  # older queries never saw the new row
            lane["seen"] = np.concatenate([np.concatenate([lane["seen"], unseen], 1), mean])[-self.r:]
            self.waiting[i].append(lane["pos"][-self.r - 1])
            if len(self.waiting[i]) == self.o["exceed"]:
                self.judge(i, lane)
        return self.logits(x[0])

    def judge(self, i, lane):
        o = self.o
        g = fall(o["decay"], o["gen_decay"], i, self.layers)
        rows = np.flatnonzero(np.isin(lane["pos"], self.waiting[i]))
        keep = rows[self.best(self.ramped(lane["seen"])[rows], max(1, whole(o["exceed"] * o["gen_ratio"] * g)))]
        stay = np.isin(np.arange(len(lane["pos"])), np.setdiff1d(rows, keep), invert=True)
        for name in ("pos", "k", "v"):
            lane[name] = lane[name][stay]
        lane["seen"], self.waiting[i] = lane["seen"][:, stay], []

    def kept(self):
        return [bits(lane["pos"], self.next) for lane in self.lanes]


# --- golden data ---

def make(name, seed):
    folder, config, golden = os.path.join(ROOT, name), MODELS[name], plain.Golden()
    families.write_model(folder, config, seed, peak=1.4)
    pool = families.random_ids(np.random.default_rng(seed), config["vocab_size"], POOL)
    for n in LENGTHS:
        for setting, options in SETTINGS.items():
            first, got = plain.fair_case(lambda dtype: Oracle(folder, options, dtype), pool, n, len(golden.cases),
                                         STEPS if n in GENERATE else 0, LOGIT_STEPS)
            golden.add(dict(setting=setting, options=options, first=first, count=n), got, LOGIT_STEPS)
            rows = [sum(bin(int(d, 16)).count("1") for d in m) for m in got["prefill"]]
            print(f"{name} {n:5} {setting:28} rows {rows} gap {got['least']:.1e} lead {got['lead']:.1e} "
                  f"float32 noise {got['noise']:.1e}", flush=True)
    golden.write(folder, seed=seed, vocab=config["vocab_size"], pool=pool)


def check(name):
    """With nothing pruned the oracle must be the model: prefill and 40 steps against transformers."""
    folder = os.path.join(ROOT, name)
    model, nothing = families.load(folder, torch.float64), dict(floor=NEVER, exceed=NEVER)
    golden = json.load(open(os.path.join(folder, "golden.json")))
    for n in LENGTHS:
        ids = golden["pool"][:n]
        ref = families.logits_of(model, ids + ids[:40]).numpy()
        oracle = Oracle(folder, nothing)
        out = [oracle.prefill(np.array(ids))] + [oracle.step(t) for t in ids[:40]]
        ref = ref[-len(out):]
        print(f"{name} {n:>5} tokens and 40 steps, nothing pruned: from transformers "
              f"{np.linalg.norm(out - ref, axis=-1).max() / np.linalg.norm(ref, axis=-1).min():.1e}", flush=True)
    for case in golden["cases"]:
        fed = case.get("generate", {}).get("ids", [])
        ids = golden["pool"][case["first"]:case["first"] + case["count"]]
        got = plain.run(Oracle(folder, case["options"], np.float32), ids, len(fed), (), fed)
        final = case.get("generate", {}).get("positions", case["prefill"])
        assert got["prefill"] == case["prefill"] and got["final"] == final, case["setting"]
    print(f"{name}: {len(golden['cases'])} cases decided the same in float32")


if __name__ == "__main__":
    for number, model_name in enumerate(MODELS):
        check(model_name) if "--check" in sys.argv else make(model_name, 100 + number)
