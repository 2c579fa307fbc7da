"""A Llama in plain numpy, attention written out in full, and golden data on which every decision is fair.

An oracle is a Llama with prefill(ids), step(token), both giving logits, and kept(), what a case states of its rows.
It knows nothing of Pyramid's engine; float64 throughout, RoPE angles included.

Prompts are stretches of one pool of random ids. A stretch is taken only if no decision hangs on a relative difference
of scores (or of the two best logits) below a margin and no count on a rounding, and if a float32 run then decides the
same with logits within NOISE.

Packages: requirements.txt, beside this file.
"""
import json, math, os, sys

sys.dont_write_bytecode = True
import numpy as np
import torch
from safetensors.torch import load_file

MARGIN, NOISE = 1e-4, 1e-5


class Unfair(Exception):
    pass


class Llama:
    def __init__(self, folder, dtype=np.float64):
        self.config = json.load(open(os.path.join(folder, "config.json")))
        weights = load_file(os.path.join(folder, "model.safetensors"))
        self.w = {name: t.to(torch.float64).numpy().astype(dtype) for name, t in weights.items()}
        self.dtype, self.least = dtype, 1.0
        self.layers, self.heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.d = self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    # --- one layer, rows x hidden ---

    def embed(self, ids):
        return self.w["model.embed_tokens.weight"][ids]

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

    def attention(self, q, k, pos, k_pos):
        """Probabilities of one query head: queries x rows."""
        s = q @ k.T / self.dtype(math.sqrt(self.d))
        s[k_pos[None, :] > pos[:, None]] = -np.inf
        a = np.exp(s - s.max(-1, keepdims=True))
        return a / a.sum(-1, keepdims=True)

    def finish(self, i, x, out):
        """The layer's output, from what its query heads gathered."""
        p = f"model.layers.{i}."
        x = x + np.concatenate(out, -1) @ self.w[p + "self_attn.o_proj.weight"].T
        h = self.norm(x, p + "post_attention_layernorm.weight")
        gate = h @ self.w[p + "mlp.gate_proj.weight"].T
        up = h @ self.w[p + "mlp.up_proj.weight"].T
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.w[p + "mlp.down_proj.weight"].T

    def logits(self, x):
        return self.norm(x, "model.norm.weight") @ self.w["lm_head.weight"].T

    # --- decisions ---

    def best(self, score, k, guard=0):
        """The k highest, the first `guard` always among them, ties to the lower position; in order."""
        order = np.argsort(-score[guard:], kind="stable") + guard
        kept, lost = order[:k - guard], order[k - guard:]
        if len(kept) and len(lost):
            # Where neighbours share one maximum, the line goes through equals: then the next on either side count.
            line, ranked = score[kept[-1]], score[order]
            above, below = ranked[ranked > line], ranked[ranked < line]
            if score[lost[0]] < line:
                above = []
            gaps = ([1 - line / above[-1]] if len(above) else []) + ([1 - below[0] / line] if len(below) else [])
            self.least = min([self.least] + [float(g) for g in gaps])
        return np.sort(np.concatenate([np.arange(guard), kept]))


def whole(x, rounding=math.floor):
    """x made a whole number, refusing a product that rounding could put on either side of one."""
    near = round(x)
    if x != near and abs(x - near) < 1e-9:
        sys.exit(f"a count hangs on rounding ({x!r}): choose other options")
    return rounding(x)


# --- golden data ---

def bits(pos, n):
    """Positions as a bit map: position p is bit p % 4 of hexadecimal digit p // 4."""
    digits = [0] * ((n + 3) // 4)
    for p in pos:
        digits[p // 4] |= 1 << p % 4
    return "".join(f"{d:x}" for d in digits)


def lead(logits):
    second, first = np.sort(logits)[-2:]
    return float((first - second) / np.abs(logits).max())


def run(oracle, ids, steps, store, feed=None):
    """A prompt and `steps` greedy steps (or the ids of `feed`): everything a case states. `store`: steps whose logits count."""
    out = oracle.prefill(np.array(ids))
    result = dict(prefill=oracle.kept(), logits=out, steps=[], fed=[], lead=lead(out) if steps else 1.0)
    for t in range(steps):
        result["fed"].append(int(np.argmax(out)) if feed is None else feed[t])
        out = oracle.step(result["fed"][-1])
        result["lead"] = min(result["lead"], lead(out))
        if feed is None and result["lead"] < MARGIN:
            raise Unfair(f"two ids lie within {result['lead']:.1e}")
        if t in store:
            result["steps"].append(out)
    result["final"], result["least"] = oracle.kept(), oracle.least
    return result


def same(a, b):
    return all(a[key] == b[key] for key in ("prefill", "final"))


def apart(a, b):
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y))
               for x, y in zip([a["logits"]] + a["steps"], [b["logits"]] + b["steps"]))


def fair_case(new, pool, n, start, steps, store, margin=MARGIN):
    """The first stretch of n ids of the pool on which every decision has a margin and float32 decides the same.
    `new` makes the oracle of a dtype."""
    for first in range(start, len(pool) - n, 7):
        ids = pool[first:first + n]
        try:
            exact = run(new(np.float64), ids, steps, store)
            if exact["least"] < margin:
                raise Unfair(f"scores lie within {exact['least']:.1e}")
            single = run(new(np.float32), ids, steps, store, exact["fed"])
            exact["noise"] = apart(single, exact)
            if not same(exact, single) or exact["noise"] > NOISE:
                raise Unfair(f"float32 decides otherwise, or is {exact['noise']:.1e} off")
            return first, exact
        except Unfair as why:
            print(f"  {n} tokens from {first}: {why}", flush=True)
    sys.exit("no fair prompt")


class Golden:
    """golden.json and golden.bin of a folder under way."""

    def __init__(self):
        self.blob, self.cases = bytearray(), []

    def store(self, logits):
        offset = len(self.blob)
        self.blob.extend(logits.astype("<f4").tobytes())
        return offset

    def add(self, head, got, store):
        case = dict(head, prefill=got["prefill"], logits=self.store(got["logits"]), least_gap=got["least"],
                    float32_noise=got["noise"])
        if got["fed"]:
            case["generate"] = dict(ids=got["fed"], positions=got["final"], least_lead=got["lead"],
                                    steps=[dict(step=t + 1, logits=self.store(l)) for t, l in zip(store, got["steps"])])
        self.cases.append(case)

    def write(self, folder, **head):
        with open(os.path.join(folder, "golden.bin"), "wb") as f:
            f.write(self.blob)
        with open(os.path.join(folder, "golden.json"), "w") as f:
            body = ",\n".join(json.dumps(c) for c in self.cases)
            head = json.dumps(dict(made_with=dict(numpy=np.__version__), **head))
            f.write(f'{head[:-1]}, "cases": [\n{body}\n]}}\n')
