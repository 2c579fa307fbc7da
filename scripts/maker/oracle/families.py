#!/usr/bin/env python3
"""Golden logits of every decoder family: small random models and what Hugging Face transformers says of them.

Owns spec/fixtures/families/<name>/: a model directory in the form users have (config.json, model.safetensors in bf16),
golden.json (token ids, offsets, the greedy continuation) and golden.bin (raw little-endian f32 logits).
Source: the transformers implementation of each family, eager attention, float32 on the CPU. Nothing here knows Pyramid.

The weights are drawn so that a wrong engine cannot pass by luck: attention is peaked (scores of standard deviation 2 to
3), norm weights differ from 1, biases from 0, and RoPE scaling really bends the angles inside 300 positions. A seed is
taken only if at each of the 200 greedy steps the best logit leads the second by more than MARGIN of the largest
magnitude, so that equality of ids is a fair test in float32.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/families.py            makes every family anew (the same bytes each time)
    python scripts/maker/oracle/families.py qwen3      makes one
    python scripts/maker/oracle/families.py --check    compares the stored logits with float64 runs and with perturbed models
"""
import json, os, shutil, sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "families")
LENGTHS, PROMPT, NEW, MARGIN = (1, 7, 300), 7, 200, 1e-3

BASE = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=160, hidden_size=48,
            intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, hidden_act="silu",
            max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
            mlp_bias=False, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16",
            use_cache=True)
GQA = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=256)


def qwen(kind, **more):
    config = {k: v for k, v in BASE.items() if k not in ("attention_bias", "mlp_bias", "rope_scaling")}
    # As published: a window is named but switched off; an engine must not apply it.
    config.update(architectures=[f"Qwen{kind}ForCausalLM"], model_type=f"qwen{kind}", rms_norm_eps=1e-6,
                  rope_theta=1000000.0, sliding_window=64, use_sliding_window=False, max_window_layers=2, **more)
    return config


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


FAMILIES = {
    "llama-mha": BASE,
    "llama-gqa-llama3": dict(BASE, **GQA, head_dim=16, rope_theta=500000.0, rope_scaling=LLAMA3,
                             tie_word_embeddings=True),
    "llama-linear": dict(BASE, rope_scaling=dict(type="linear", factor=4.0)),
    "llama-yarn": dict(BASE, **GQA, rope_scaling=dict(rope_type="yarn", factor=4.0,
                                                      original_max_position_embeddings=128)),
    "codellama": dict(BASE, rope_theta=1000000.0, vocab_size=176, num_attention_heads=2, num_key_value_heads=2,
                      hidden_size=64, intermediate_size=64),
    "mistral": dict(without(BASE, "attention_bias", "mlp_bias", "rope_scaling"), architectures=["MistralForCausalLM"],
                    model_type="mistral", **GQA, sliding_window=64),
    "qwen2": qwen(2, **GQA, tie_word_embeddings=True),
    "qwen2-untied": qwen(2, num_attention_heads=5, num_key_value_heads=1, hidden_size=80, intermediate_size=64,
                         tie_word_embeddings=False),
    "qwen3": dict(qwen(3, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
                  head_dim=32, attention_bias=False, sliding_window=None),
    # The form that newer transformers write: rope_parameters and dtype instead of rope_theta, rope_scaling, torch_dtype.
    "llama-rope-parameters": dict(without(BASE, "rope_theta", "rope_scaling", "torch_dtype"), dtype="bfloat16",
                                  **GQA, rope_parameters=dict(LLAMA3, rope_theta=500000.0)),
}
SHARDED = {"qwen2-untied"}


def draw(config, seed, peak=2.2):
    """Random weights by their Hugging Face names, each exactly representable in bf16; attention scores of standard
    deviation `peak` or more."""
    g = torch.Generator().manual_seed(seed)
    h, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d = config.get("head_dim") or h // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    normal = lambda std, *shape: (torch.randn(*shape, generator=g) * std).to(torch.bfloat16)
    norm = lambda n: (0.5 + torch.rand(n, generator=g)).to(torch.bfloat16)
    w = {"model.embed_tokens.weight": normal(0.5, vocab, h)}
    qk = (peak / h) ** 0.5  # x has unit elements, so q.k/sqrt(d) has standard deviation h * qk^2
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"] = norm(h)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            w[p + f"self_attn.{name}_proj.weight"] = normal(qk if name != "v" else h ** -0.5, rows, h)
            if config["model_type"] == "qwen2":
                w[p + f"self_attn.{name}_proj.bias"] = normal(0.5, rows)
        if config["model_type"] == "qwen3":
            w[p + "self_attn.q_norm.weight"] = norm(d) * 1.5
            w[p + "self_attn.k_norm.weight"] = norm(d)
        w[p + "self_attn.o_proj.weight"] = normal(1.4 * q ** -0.5, h, q)
        w[p + "post_attention_layernorm.weight"] = norm(h)
        w[p + "mlp.gate_proj.weight"] = normal(1.4 * h ** -0.5, inter, h)
        w[p + "mlp.up_proj.weight"] = normal(1.4 * h ** -0.5, inter, h)
        w[p + "mlp.down_proj.weight"] = normal(1.2 * inter ** -0.5, h, inter)
    w["model.norm.weight"] = norm(h)
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = normal(0.5, vocab, h)
    return w


def write_model(folder, config, seed, shards=1, **more):
    """A Hugging Face model directory; with shards > 1 the tensors are dealt in order to numbered files and an index."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), config)
    weights = draw(config, seed, **more)
    names = list(weights)
    files = ["model.safetensors"] if shards == 1 else \
        [f"model-{s + 1:05d}-of-{shards:05d}.safetensors" for s in range(shards)]
    where = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        save_file({n: weights[n] for n in names if where[n] == file}, os.path.join(folder, file), {"format": "pt"})
    if shards > 1:
        total = sum(t.numel() * t.element_size() for t in weights.values())
        write_json(os.path.join(folder, "model.safetensors.index.json"),
                   {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def load(folder, dtype=torch.float32, attention="eager"):
    torch.set_num_threads(1)  # one order of summation, so that the bytes can be made again
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, prompt, count, margin):
    """ids and the smallest relative lead of the best logit; None when a lead is below the margin. No cache is used."""
    ids, least = list(prompt), 1.0
    for _ in range(count):
        last = logits_of(model, ids)[-1]
        top = last.topk(2)
        lead = float((top.values[0] - top.values[1]) / last.abs().max())
        if lead <= margin:
            return None
        least = min(least, lead)
        ids.append(int(top.indices[0]))
    return ids[len(prompt):], least


def random_ids(rng, vocab, n):
    return [int(t) for t in rng.integers(3, vocab, n)]


def make(name):
    config, folder = FAMILIES[name], os.path.join(ROOT, name)
    first = 1000 * (1 + list(FAMILIES).index(name))
    for seed in range(first, first + 400):
        write_model(folder, config, seed, 2 if name in SHARDED else 1)
        model, rng = load(folder), np.random.default_rng(seed)
        sequences = [random_ids(rng, config["vocab_size"], n) for n in LENGTHS]
        found = greedy(model, sequences[LENGTHS.index(PROMPT)], NEW, MARGIN)
        if found and len(set(found[0])) >= 30:  # no short cycle
            break
    else:
        sys.exit(f"{name}: no seed gives a fair greedy continuation")
    blob, index = b"", []
    for ids in sequences:
        out = logits_of(model, ids).numpy().astype("<f4")
        index.append(dict(ids=ids, offset=len(blob), shape=list(out.shape)))
        blob += out.tobytes()
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(blob)
    golden = dict(made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
                  seed=seed, sequences=index,
                  greedy=dict(prompt=sequences[LENGTHS.index(PROMPT)], ids=found[0], least_lead=found[1]))
    with open(os.path.join(folder, "golden.json"), "w") as f:
        f.write(json.dumps(golden).replace('"sequences"', '\n"sequences"').replace('"greedy"', '\n"greedy"') + "\n")
    size = sum(e.stat().st_size for e in os.scandir(folder))
    print(f"{name:22} seed {seed}, {size / 1024:.0f} KiB, {len(set(found[0]))} different ids, least lead {found[1]:.1e}",
          flush=True)


def relative(out, ref):
    return float(((out - ref).norm(dim=-1) / ref.norm(dim=-1)).max())


def check(name):
    """How far float64 is from the stored logits, and how far models with one feature taken away are."""
    folder = os.path.join(ROOT, name)
    golden = json.load(open(os.path.join(folder, "golden.json")))
    blob = open(os.path.join(folder, "golden.bin"), "rb").read()
    item = golden["sequences"][-1]
    ref = torch.from_numpy(np.frombuffer(blob, "<f4", np.prod(item["shape"]), item["offset"]).reshape(item["shape"])
                           .astype(np.float64))
    line = f"{name:22} float64 {relative(logits_of(load(folder, torch.float64), item['ids']), ref):.1e}"
    model = load(folder)
    base, weights = model.config, model.state_dict()
    rope = base.rope_parameters
    theta = 10000.0 if rope["rope_type"] == "default" else rope["rope_theta"]
    for key, value in (("sliding_window", None), ("rope_parameters", dict(rope_type="default", rope_theta=theta))):
        old = getattr(base, key, None)
        if old in (None, value):
            continue
        other = type(base).from_dict(dict(base.to_dict(), **{key: value}))
        other._attn_implementation = "eager"
        twin = type(model)(other).eval()
        twin.load_state_dict(weights)
        line += f", without {key} {relative(logits_of(twin, item['ids']).double(), ref):.1e}"
    print(line, f"; logits std {ref.std():.2f}", flush=True)


if __name__ == "__main__":
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or list(FAMILIES)
    for family in wanted:
        (check if "--check" in sys.argv else make)(family)
