#!/usr/bin/env python3
"""Which of transformers' causal language models Pyramid loads: docs/model-types.md.

build/pyramid is asked (model_types.lua) about the default configuration of every model type that AutoModelForCausalLM
knows. Those that it does not refuse by that alone are made narrow, of few layers and with random weights, saved, and opened:
what loads must have transformers' logits, or this ends with an error.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/model_types.py              writes docs/model-types.md
    python scripts/maker/oracle/model_types.py opt mamba    prints these
"""
import json, os, re, subprocess, sys, tempfile

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")
IDS = [1, 2, 3, 4, 5, 6]

# Sizes, under all names that configurations have for them. Everything else stays what the class takes by default.
LAYERS, MOST = 2, 5e7
SMALL = dict.fromkeys(["hidden_size", "n_embd", "d_model"], 64)
SMALL.update(dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"], LAYERS))
SMALL.update(dict.fromkeys(["num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"], 4))
SMALL.update(dict.fromkeys(["intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "encoder_ffn_dim"], 96))
SMALL.update(dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32))
SMALL.update(dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4))
SMALL.update(num_experts_per_tok=2, head_dim=16, vocab_size=128, rotary_dim=8, word_embed_proj_dim=64, n_group=1, topk_group=1,
             dim_model_base=64)


def shrink(config):
    for key, value in SMALL.items():
        if getattr(config, key, None) is not None or key == "head_dim" and hasattr(config, key):
            try:
                setattr(config, key, value)
            except AttributeError:
                pass  # computed from others
    for key in ("num_key_value_heads", "num_kv_heads"):
        if hasattr(config, key):
            setattr(config, key, 2)
    if getattr(config, "attention_types", None):
        config.attention_types = [[config.attention_types[0][0], 1]]  # GPT-Neo: a list and how often it comes
        config.attention_layers = config.attention_types[0][0]
    for key in ("layer_types", "no_rope_layers"):
        if getattr(config, key, None):
            setattr(config, key, getattr(config, key)[:LAYERS])
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)
    for key in ("text_config", "vision_config", "audio_config"):
        if hasattr(getattr(config, key, None), "to_dict"):
            shrink(getattr(config, key))


def save_config(kind, folder):
    try:
        config = transformers.AutoConfig.for_model(kind)
        config.architectures = [CLASSES[kind]]
        config.save_pretrained(folder)
    except Exception:  # not even a configuration without arguments
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(dict(model_type=kind, architectures=[CLASSES[kind]]), f)


@torch.no_grad()
def save_model(kind, folder):
    """A small model, and its logits behind IDS."""
    config = transformers.AutoConfig.for_model(kind)
    shrink(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        sys.exit(f"{kind}: {size} parameters; SMALL lacks what its sizes are called")
    torch.manual_seed(1)
    if hasattr(config, "initializer_range"):
        config.initializer_range = 0.2  # so that logits tell whether the same is computed
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    model.save_pretrained(folder)
    return model(torch.tensor([IDS]), use_cache=False).logits[0, -1]


def open_all(folders):
    """[(verdict, rest)] of model_types.lua."""
    command = [os.path.join(ROOT, "build", "pyramid"), os.path.join(HERE, "model_types.lua"), *folders]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split("\t", 1) for line in lines]


def why(message, folder):
    """A message without what is the same in all of them."""
    message = message.replace(folder + "/config.json: ", "").replace(folder + ": ", "")
    message = re.sub(r" \(known families: .*?\)", "", message)
    message = re.sub(r"^(text_config: |config.json: )?model_type [^ ,:]+(, architectures [^ :]+)?(: )?", "", message)
    return message or "no family of its name"


def ask(kinds):
    """[(kind, loads, reason)]"""
    with tempfile.TemporaryDirectory() as base:
        folders = {kind: os.path.join(base, kind) for kind in kinds}
        for kind, folder in folders.items():
            os.makedirs(folder)
            save_config(kind, folder)
        said = dict(zip(kinds, open_all(folders.values()), strict=True))
        tried = [kind for kind in kinds if "(known families: " not in said[kind][1]]
        logits = {kind: save_model(kind, folders[kind]) for kind in tried}
        said.update(zip(tried, open_all(folders[kind] for kind in tried), strict=True))
        rows = []
        for kind, (verdict, rest) in said.items():
            if verdict == "loads":
                got, ref = torch.tensor([float(x) for x in rest.split()]), logits[kind]
                error = float((got - ref).norm() / ref.norm())
                if not error <= 1e-4:
                    sys.exit(f"{kind}: loads, but its logits are off by {error:.1e}")
            rows.append((kind, verdict == "loads", "" if verdict == "loads" else why(rest, folders[kind])))
    return rows


HEAD = """# Model types

What becomes of every causal language model that transformers {version} has a class for. {count} of {all}
types load: made by it with their default configuration, but narrow and of {layers} layers, they have the
same logits here. The others are refused by what their config.json says; of models for images or
speech, by their text part. A checkpoint that asks for more than its type's default (another
activation, a scaling of RoPE, …) may be refused as well, by the field's name. InternLM2 and MiniCPM
load, too: their classes come with their checkpoints. Made by
[model_types.py](../scripts/maker/oracle/model_types.py); how to add a type is told in
[adding-a-family.md](adding-a-family.md).

| type | class | loads | refused because |
| --- | --- | --- | --- |
"""


def main():
    kinds = sys.argv[1:] or sorted(CLASSES)
    rows = ask(kinds)
    if sys.argv[1:]:
        for row in rows:
            print(*row, sep="\t")
        return
    loads = [k for k, ok, _ in rows if ok]
    text = HEAD.format(version=transformers.__version__, layers=LAYERS, count=len(loads), all=len(rows))
    for kind, ok, reason in rows:
        text += f"| {kind} | {CLASSES[kind]} | {'yes' if ok else ''} | {reason.replace('|', '/')} |\n"
    with open(os.path.join(ROOT, "docs", "model-types.md"), "w") as f:
        f.write(text)
    print(f"{len(loads)} of {len(rows)} load")


if __name__ == "__main__":
    main()
