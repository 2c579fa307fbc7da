#!/usr/bin/env python3
"""A plain oracle of PyramidInfer (arXiv 2405.12532): attention written out in full, rows kept in numpy arrays.

Owns spec/fixtures/pyramidinfer/<model>/: two small random Llamas (MHA and GQA, 6 layers, in the form of families.py),
golden.json (cases: options, prompt, kept positions of every layer as hexadecimal bit maps, fed ids) and golden.bin (raw
little-endian f32 logits). It knows nothing of Pyramid's engine; float64 throughout, RoPE angles included.

Prefill, layer i of L, from 0 (class Oracle, prefill): the last r = floor(recent*n) + 1 rows are recent, c rows come
before them. A(row) = mean over query heads, mean over the r recent queries, of w_q * a_q(row); w rises linearly from 1 to `ramp`.
  code   every `interval`-th layer keeps k = floor(c*d_i) context rows if k > floor, else all; d_i falls from 1 to `ratio`.
         The layer's own K and V stay whole; only the survivors go on to layer i+1.
  paper  Algorithm 1: k = max(floor(c*p_i), floor), p_i = ratio * p_decay^i; the layer's own K and V are pruned too.
The first `sinks` rows are always among the k; ties go to the lower position.

Generation (step): the last R = r rows are recent. A row that leaves them waits; when `exceed` wait in a layer they are
judged by the same weighted mean of what the last R queries (the prompt's count) gave them, and the best
max(1, floor(exceed * gen_ratio * g_i)) stay for ever. g_i falls from 1 to gen_decay.

Prompts are stretches of one pool of random ids. A stretch is taken only if no decision hangs on a relative difference
of scores (or of the two best logits) below MARGIN and no count on a rounding, and if a float32 run then decides the same
with logits within NOISE.

    python scripts/oracle/pyramidinfer.py           makes both models and their golden data (a few minutes)
    python scripts/oracle/pyramidinfer.py --check   compares: unpruned logits with transformers, decisions with float32
"""
import json, math, os, sys

sys.dont_write_bytecode = True
import numpy as np
import torch
from safetensors.torch import load_file

import families

ROOT = os.path.join(os.path.dirname(families.ROOT), "pyramidinfer")
LENGTHS, GENERATE, STEPS, POOL, MARGIN, NOISE = (16, 64, 65, 512, 2000), (64, 512), 300, 4000, 1e-4, 1e-5
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


def whole(x):
    """floor(x), refusing a product that rounding could put on either side of a whole number."""
    near = round(x)
    if x != near and abs(x - near) < 1e-9:
        sys.exit(f"a count hangs on rounding ({x!r}): choose other options")
    return math.floor(x)


class Unfair(Exception):
    pass


class Oracle:
    def __init__(self, folder, options, dtype=np.float64):
        self.config = json.load(open(os.path.join(folder, "config.json")))
        weights = load_file(os.path.join(folder, "model.safetensors"))
        self.w = {name: t.to(torch.float64).numpy().astype(dtype) for name, t in weights.items()}
        self.o, self.dtype, self.least = dict(DEFAULTS, **options), dtype, 1.0
        self.layers, self.heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.d = self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    # --- one layer of a Llama, rows x hidden ---

    def norm(self, x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.dtype(self.config["rms_norm_eps"]))
        return x / scale * self.w[name]

    def rope(self, x, pos):
        half = self.d // 2
        frequency = (self.config["rope_theta"] ** -(np.arange(half) / half)).astype(self.dtype)
        angle = pos[:, None].astype(self.dtype) * frequency
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def project(self, i, x, pos):
        p = f"model.layers.{i}."
        h = self.norm(x, p + "input_layernorm.weight")
        q, k, v = (h @ self.w[p + f"self_attn.{n}_proj.weight"].T for n in "qkv")
        split = lambda t, heads: t.reshape(len(x), heads, self.d)
        return self.rope(split(q, self.heads), pos), self.rope(split(k, self.kv_heads), pos), split(v, self.kv_heads)

    def attend(self, i, x, pos, q, k, v, k_pos):
        """The layer's output and its attention, averaged over query heads: queries x rows."""
        group, p = self.heads // self.kv_heads, f"model.layers.{i}."
        hidden = k_pos[None, :] > pos[:, None]
        mean, out = np.zeros(hidden.shape, self.dtype), []
        for head in range(self.heads):
            s = q[:, head] @ k[:, head // group].T / self.dtype(math.sqrt(self.d))
            s[hidden] = -np.inf
            a = np.exp(s - s.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            mean += a / self.dtype(self.heads)
            out.append(a @ v[:, head // group])
        x = x + np.concatenate(out, -1) @ self.w[p + "self_attn.o_proj.weight"].T
        h = self.norm(x, p + "post_attention_layernorm.weight")
        gate = h @ self.w[p + "mlp.gate_proj.weight"].T
        up = h @ self.w[p + "mlp.up_proj.weight"].T
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.w[p + "mlp.down_proj.weight"].T, mean

    def logits(self, x):
        return self.norm(x, "model.norm.weight") @ self.w["lm_head.weight"].T

    # --- the policy ---

    def ramped(self, a):
        """Mean over the queries (rows of a, oldest first) of w_q * a_q(row)."""
        w = np.linspace(1.0, self.o["ramp"], len(a)) if len(a) > 1 else np.ones(1)
        return (w.astype(self.dtype)[:, None] * a).sum(0) / self.dtype(len(a))

    def best(self, score, k, guard=0):
        """The k highest, the first `guard` always among them, ties to the lower position; in order."""
        order = np.argsort(-score[guard:], kind="stable") + guard
        kept, lost = order[:k - guard], order[k - guard:]
        if len(kept) and len(lost):
            self.least = min(self.least, float(1 - score[lost[0]] / score[kept[-1]]))
        return np.sort(np.concatenate([np.arange(guard), kept]))

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
        x, pos, o = self.w["model.embed_tokens.weight"][ids], np.arange(len(ids)), self.o
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
        x, pos = self.w["model.embed_tokens.weight"][[token]], np.array([self.next])
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


# --- golden data ---

def bits(pos, n):
    """Positions as a bit map: position p is bit p % 4 of hexadecimal digit p // 4."""
    digits = [0] * ((n + 3) // 4)
    for p in pos:
        digits[p // 4] |= 1 << p % 4
    return "".join(f"{d:x}" for d in digits)


def kept(oracle):
    return [bits(lane["pos"], oracle.next) for lane in oracle.lanes]


def lead(logits):
    second, first = np.sort(logits)[-2:]
    return float((first - second) / np.abs(logits).max())


def run(folder, options, ids, steps, feed=None, dtype=np.float64):
    """The oracle over a prompt and `steps` greedy steps: everything a case states."""
    oracle = Oracle(folder, options, dtype)
    out = oracle.prefill(np.array(ids))
    result = dict(prefill=kept(oracle), logits=out, steps=[], fed=[], lead=lead(out) if steps else 1.0)
    for t in range(steps):
        result["fed"].append(int(np.argmax(out)) if feed is None else feed[t])
        out = oracle.step(result["fed"][-1])
        result["lead"] = min(result["lead"], lead(out))
        if feed is None and result["lead"] < MARGIN:
            raise Unfair(f"two ids lie within {result['lead']:.1e}")
        if t in LOGIT_STEPS:
            result["steps"].append(out)
    result["final"], result["least"] = kept(oracle), oracle.least
    return result


def same(a, b):
    return all(a[key] == b[key] for key in ("prefill", "final"))


def apart(a, b):
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y))
               for x, y in zip([a["logits"]] + a["steps"], [b["logits"]] + b["steps"]))


def fair_case(folder, options, pool, n, start):
    """The first stretch of n ids of the pool on which every decision has a margin and float32 decides the same."""
    steps = STEPS if n in GENERATE else 0
    for first in range(start, len(pool) - n, 7):
        ids = pool[first:first + n]
        try:
            exact = run(folder, options, ids, steps)
            if exact["least"] < MARGIN:
                raise Unfair(f"scores lie within {exact['least']:.1e}")
            single = run(folder, options, ids, steps, exact["fed"], np.float32)
            exact["noise"] = apart(single, exact)
            if not same(exact, single) or exact["noise"] > NOISE:
                raise Unfair(f"float32 decides otherwise, or is {exact['noise']:.1e} off")
            return first, exact
        except Unfair as why:
            print(f"  {n} tokens from {first}: {why}", flush=True)
    sys.exit("no fair prompt")


def make(name, seed):
    folder, config = os.path.join(ROOT, name), MODELS[name]
    families.write_model(folder, config, seed, peak=1.4)
    pool = families.random_ids(np.random.default_rng(seed), config["vocab_size"], POOL)
    blob, cases = bytearray(), []

    def store(logits):
        offset = len(blob)
        blob.extend(logits.astype("<f4").tobytes())
        return offset

    for n in LENGTHS:
        for setting, options in SETTINGS.items():
            first, got = fair_case(folder, options, pool, n, len(cases))
            case = dict(setting=setting, options=options, first=first, count=n, prefill=got["prefill"],
                        logits=store(got["logits"]), least_gap=got["least"], float32_noise=got["noise"])
            if got["fed"]:
                case["generate"] = dict(ids=got["fed"], positions=got["final"], least_lead=got["lead"],
                                        steps=[dict(step=t + 1, logits=store(l))
                                               for t, l in zip(LOGIT_STEPS, got["steps"])])
            cases.append(case)
            rows = [sum(bin(int(d, 16)).count("1") for d in m) for m in got["prefill"]]
            print(f"{name} {n:5} {setting:28} rows {rows} gap {got['least']:.1e} lead {got['lead']:.1e} "
                  f"float32 noise {got['noise']:.1e}", flush=True)
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        body = ",\n".join(json.dumps(c) for c in cases)
        head = json.dumps(dict(made_with=dict(numpy=np.__version__), seed=seed, vocab=config["vocab_size"], pool=pool))
        f.write(f'{head[:-1]}, "cases": [\n{body}\n]}}\n')


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
        got = run(folder, case["options"], ids, len(fed), fed, np.float32)
        final = case.get("generate", {}).get("positions", case["prefill"])
        assert got["prefill"] == case["prefill"] and got["final"] == final, case["setting"]
    print(f"{name}: {len(golden['cases'])} cases decided the same in float32")


if __name__ == "__main__":
    for number, model_name in enumerate(MODELS):
        check(model_name) if "--check" in sys.argv else make(model_name, 100 + number)
