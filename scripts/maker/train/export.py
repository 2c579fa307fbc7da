"""Writes a checkpoint as an ordinary Hugging Face directory, weights in bfloat16 (what training multiplied with).

    python scripts/maker/train/export.py --work DIR --tokenizer DIR --out models/tiny [--check]

--check loads the directory with transformers and compares its logits with the trainer's.
"""

import argparse
import hashlib
import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file

import model as llama
import recipe

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def config():
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **recipe.MODEL,
        # Where llama.cpp's converter looks for it.
        "original_max_position_embeddings": recipe.MODEL["rope_scaling"]["original_max_position_embeddings"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": recipe.BEGIN,
        "eos_token_id": recipe.END,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }


def write(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def load(directory):
    """The trainer's model with the weights of an exported directory, in float32."""
    model = llama.Llama(recipe.MODEL)
    model.load_state_dict({k: v.float() for k, v in load_file(pathlib.Path(directory) / "model.safetensors").items()})
    return model.eval()


def check(directory):
    from transformers import AutoTokenizer, LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = 'Mira kept the tin box at the inn. Its code was 4071.\n\nQuestion: What was the code of the tin box?\nAnswer:'
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == recipe.BEGIN and tokenizer.decode(ids[0, 1:]) == text
    with torch.no_grad():
        difference = (theirs(ids).logits - load(directory)(ids)).abs().max().item()
    assert difference < 1e-3, difference
    print(f"transformers agrees: largest difference of a logit {difference:.1e} over {ids.shape[1]} positions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    saved = torch.load(a.work / "last.pt")
    weights = {name: p.to(torch.bfloat16).contiguous() for name, p in saved["model"].items()}
    # Replaced as a whole: somebody may have the old file mapped.
    new = a.out / "model.safetensors.new"
    save_file(weights, new, metadata={"format": "pt"})
    new.chmod(0o644)
    new.replace(a.out / "model.safetensors")
    write(a.out / "config.json", config())
    write(a.out / "generation_config.json", {"bos_token_id": recipe.BEGIN, "eos_token_id": recipe.END})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(a.tokenizer / name, a.out / name)
    if a.check:
        check(a.out)
    print(json.dumps({**{k: saved["run"][k] for k in ("steps", "tokens", "seconds")},
                      "parameters": sum(p.numel() for p in weights.values())}))
    for name in FILES:
        print(hashlib.sha256((a.out / name).read_bytes()).hexdigest(), name)
