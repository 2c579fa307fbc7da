#!/usr/bin/env python3
"""GGUF files whose contents are known: blocks of every quantised type with their values, and small models.

Owns spec/fixtures/gguf/. Source: the `gguf` Python package, which writes every file here and says what the quantised
blocks hold; Hugging Face transformers, which says what the models of dequantised weights answer. Nothing here knows
Pyramid.

    dtypes.gguf         for each dtype T: tensor T (raw blocks of random bits with sane scales) and T.f32 (its values); for
                        the dtypes that values can be converted to also from.f32 and from.T
    llama3-bf16.gguf    families/llama-gqa-llama3 as a converter for GGUF writes it: q and k permuted, RoPE scaling as
                        the tensor rope_freqs.weight. Its logits are the family's golden ones.
    qwen3-f16.gguf      families/qwen3 likewise
    codellama-q8_0.gguf families/codellama in q8_0, with golden logits of the dequantised weights beside it
    kquants.gguf        one wide layer whose matrices are q4_k, q5_k, q6_k, q4_0 and q8_0, with golden logits likewise

    made.gguf           from.f32, and from.T: what it becomes, for each dtype T of MADE
    converted.gguf      tensor T and T.f32 as in dtypes.gguf, of the dtypes that models hold only converted, and a second
                        tensor T.edges of scales and bits at their ends

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/gguf_fixtures.py              all of it
    python scripts/maker/oracle/gguf_fixtures.py converted    only converted.gguf and made.gguf, which need no torch
"""
import json, os, sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, GGUFWriter, quants

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures")
OUT = os.path.join(ROOT, "gguf")
CONVERTED = dict(q4_1=T.Q4_1, q5_0=T.Q5_0, q5_1=T.Q5_1, q2_k=T.Q2_K, q3_k=T.Q3_K, iq4_nl=T.IQ4_NL, iq4_xs=T.IQ4_XS,
                 mxfp4=T.MXFP4, nvfp4=T.NVFP4, f64=T.F64)
DTYPES = dict(f32=T.F32, f16=T.F16, bf16=T.BF16, q8_0=T.Q8_0, q4_0=T.Q4_0, q4_k=T.Q4_K, q5_k=T.Q5_K, q6_k=T.Q6_K)
MADE = dict(q4_1=T.Q4_1, q5_0=T.Q5_0, q5_1=T.Q5_1)
SCALES = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
          T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
          T.Q2_K: [80, 82], T.Q3_K: [108], T.IQ4_NL: [0], T.IQ4_XS: [0]}  # where the f16 scales of a block lie
OWN_RULES = (T.F32, T.F16, T.BF16, T.F64, T.MXFP4, T.NVFP4)  # no f16 scales: write_dtypes and random_values know what to draw

NAMES = {"model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
         "input_layernorm.": "attn_norm.", "post_attention_layernorm.": "ffn_norm.", "self_attn.q_proj.": "attn_q.",
         "self_attn.k_proj.": "attn_k.", "self_attn.v_proj.": "attn_v.", "self_attn.o_proj.": "attn_output.",
         "self_attn.q_norm.": "attn_q_norm.", "self_attn.k_norm.": "attn_k_norm.", "mlp.gate_proj.": "ffn_gate.",
         "mlp.up_proj.": "ffn_up.", "mlp.down_proj.": "ffn_down.", "model.layers.": "blk."}


def random_blocks(rng, dtype, rows, blocks, low=2.0 ** -9, high=2.0 ** -5):
    """Any bits will do for the integers; the scales are set to moderate numbers of both signs."""
    raw = rng.integers(0, 256, (rows, blocks, GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    for at in SCALES[dtype]:
        scale = (rng.uniform(low, high, (rows, blocks, 1)) * rng.choice([-1, 1], (rows, blocks, 1))).astype(np.float16)
        raw[..., at:at + 2] = scale.view(np.uint8)
    return raw.reshape(rows, -1)


def check_scales():
    """A type whose scales are drawn like its other bits would make NaN and infinities, which hold no decoder to anything."""
    for name, dtype in {**CONVERTED, **DTYPES}.items():
        if dtype not in SCALES and dtype not in OWN_RULES:
            sys.exit(f"gguf_fixtures.py: {name}: SCALES does not say where the f16 scales of its blocks lie; "
                     "nothing was written")


def sane(name, dtype, values):
    """Values as moderate scales make them: below 2^-5 * 128 * 64, the largest level and factor there are. A scale that was
    drawn like any other bits shows."""
    if not (np.abs(values) < (256 if dtype in SCALES else np.inf)).all():
        sys.exit(f"gguf_fixtures.py: {name}: wild values: do all f16 scales of a block stand in SCALES? "
                 "Its file was not written")
    return values


def add(writer, name, array, dtype):
    writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=dtype)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_dtypes():
    rng = np.random.default_rng(11)
    writer = GGUFWriter(os.path.join(OUT, "dtypes.gguf"), "none")
    writer.add_array("test.strings", ["one", "", "drei"])
    writer.add_array("test.integers", [1, 2, -3])
    writer.add_array("test.numbers", [0.5, 1.5])
    writer.add_uint64("test.long", 1 << 40)
    writer.add_bool("test.yes", True)
    for name, dtype in DTYPES.items():
        if dtype in SCALES:
            raw = random_blocks(rng, dtype, 3, 512 // GGML_QUANT_SIZES[dtype][0])
            values = sane(name, dtype, quants.dequantize(raw, dtype))
        elif dtype == T.F32:
            raw = values = rng.standard_normal((3, 512)).astype(np.float32)
        else:  # every magnitude, both signs, zeros, denormals and infinities
            bits = rng.integers(0, 1 << 16, (3, 512), dtype=np.uint16)
            special = [0, 0x8000, 1, 0x8001, 0x3ff, 0x400] + ([0x7c00, 0xfc00] if dtype == T.F16 else [0x7f80, 0xff80])
            bits[0, :len(special)] = special
            nan = (bits & 0x7fff) > (0x7c00 if dtype == T.F16 else 0x7f80)
            bits[nan] &= 0x3fff
            raw = bits.view(np.float16) if dtype == T.F16 else bits
            values = bits.view(np.float16).astype(np.float32) if dtype == T.F16 else \
                (bits.astype(np.uint32) << 16).view(np.float32)
        add(writer, name, raw.view(np.uint8) if dtype == T.BF16 else raw, dtype)
        if dtype != T.F32:
            add(writer, name + ".f32", values, T.F32)
    source = (rng.standard_normal((4, 512)) * np.array([[1], [1e-3], [50], [1e-6]])).astype(np.float32)
    source[0, :32] = 0
    source[0, 32:64] = np.arange(32) - 16  # ties of rounding
    source[0, 64:96] = (np.arange(32) - 15.5) * 8
    source[0, 96:98] = [65519.0, 65520.0]  # the edge of f16
    add(writer, "from.f32", source, T.F32)
    for name, dtype in DTYPES.items():
        if dtype in (T.F16, T.BF16, T.Q8_0, T.Q4_0):
            with np.errstate(over="ignore"):
                made = quants.quantize(source, dtype)
            add(writer, "from." + name, made, dtype)
    close(writer)


EDGES = (0, -0.0, 2.0 ** -24, -2.0 ** -14, 65504, -65504, 1, 1 / 3)


def random_values(rng, dtype, rows, blocks, edges):
    """Raw rows of a converted dtype: scales moderate, or at their ends in turn, with every bit or none in the last two blocks."""
    if dtype == T.F64:
        values = rng.standard_normal((rows, blocks))
        if edges:
            values[0, :8] = (0, -0.0, 1e-310, 1e300, -1e300, np.inf, 2.0 ** -149, 1 + 2.0 ** -24)
        return values.astype(np.float64)
    raw = random_blocks(rng, dtype, rows, blocks).reshape(rows, blocks, -1) if dtype in SCALES else rng.integers(
        0, 256, (rows, blocks, GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    if edges:
        raw[0, 6], raw[0, 7] = np.where(np.arange(raw.shape[2]) < 4, raw[0, 6], 0), np.where(np.arange(raw.shape[2]) < 4, raw[0, 7], 255)
        for block, scale in zip(raw[0], EDGES):
            for at in SCALES.get(dtype, [])[:1]:
                block[at:at + 2] = np.array([scale], np.float16).view(np.uint8)
    if dtype == T.MXFP4:
        raw[..., 0] = np.arange(blocks) if edges else rng.integers(100, 140, (rows, blocks))
    if dtype == T.NVFP4:
        raw[..., :4] = np.arange(4 * blocks).reshape(blocks, 4) * 4 % 127 if edges else rng.integers(0, 128, (rows, blocks, 4))
    return raw.reshape(rows, -1)


def write_converted():
    rng = np.random.default_rng(13)
    writer = GGUFWriter(os.path.join(OUT, "converted.gguf"), "none")
    for name, dtype in CONVERTED.items():
        for suffix, rows, edges in (("", 2 if GGML_QUANT_SIZES[dtype][0] == 256 else 5, False), (".edges", 1, True)):
            raw = random_values(rng, dtype, rows, 8, edges)
            with np.errstate(all="ignore"):
                values = raw.astype(np.float32) if dtype == T.F64 else quants.dequantize(raw, dtype)
            if not edges:
                sane(name, dtype, values)
            add(writer, name + suffix, raw, dtype)
            add(writer, name + suffix + ".f32", values, T.F32)
    close(writer)


def write_made():
    """Random rows of all sizes; a block of one value, one of zeros, and ties of rounding in each format."""
    rng = np.random.default_rng(17)
    writer = GGUFWriter(os.path.join(OUT, "made.gguf"), "none")
    source = (rng.standard_normal((8, 256)) * 10.0 ** np.arange(-5, 3)[:, None]).astype(np.float32)
    source[0, :32], source[0, 32:64] = 0, 0.3
    source[1, :32] = np.arange(32) / 2 - 7.5
    source[1, 32:64] = (np.arange(32) - 16.5) / 4
    source[1, 64:96] = -np.abs(source[1, 64:96])
    source[2, :32] = np.abs(source[2, :32]) + 1
    add(writer, "from.f32", source, T.F32)
    for name, dtype in MADE.items():
        add(writer, "from." + name, quants.quantize(source, dtype), dtype)
    close(writer)


def read_family(name):
    from safetensors import safe_open
    folder = os.path.join(ROOT, "families", name)
    config = json.load(open(os.path.join(folder, "config.json")))
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        return config, {key: file.get_tensor(key).float().numpy() for key in file.keys()}


def gguf_name(name):
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def permute(w, heads):
    """Rows of each head, so that what RoPE pairs as (i, i + d/2) becomes (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(config, dims):
    p = config["rope_scaling"]
    freq = 1.0 / config["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    length, old = 2 * np.pi / freq, p["original_max_position_embeddings"]
    smooth = (old / length - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
    mixed = 1 / ((1 - smooth) / p["factor"] + smooth)
    return np.where(length < old / p["high_freq_factor"], 1.0,
                    np.where(length > old / p["low_freq_factor"], p["factor"], mixed)).astype(np.float32)


def write_model(path, arch, config, weights, dtype_of):
    """Writes a model; returns its weights as the file holds them, dequantised, by their Hugging Face names."""
    writer = GGUFWriter(path, arch)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(os.path.basename(path))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        add(writer, "rope_freqs.weight", llama3_factors(config, head_dim), T.F32)
    held = {}
    for name, w in weights.items():
        turn = arch == "llama" and ("q_proj" in name or "k_proj" in name)
        n = heads if "q_proj" in name else kv
        dtype = T.F32 if w.ndim == 1 else dtype_of(name)
        w = permute(w, n) if turn else w
        raw = w if dtype == T.F32 else quants.quantize(w, dtype) if w.dtype == np.float32 else w
        add(writer, gguf_name(name), raw, dtype)
        if dtype not in (T.F32, T.F16):
            w = quants.dequantize(raw, dtype)
        if turn:  # back to pairs (i, i + d/2)
            w = w.reshape(n, w.shape[0] // n // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        held[name] = w
    close(writer)
    return held


def write_golden(path, config, weights, seed, count=24):
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).float().eval()
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in weights.items()})
    ids = [int(i) for i in np.random.default_rng(seed).integers(3, config["vocab_size"], count)]
    logits = model(torch.tensor([ids])).logits[0].numpy().astype("<f4")
    with open(path + ".bin", "wb") as f:
        f.write(logits.tobytes())
    with open(path + ".json", "w") as f:
        json.dump(dict(ids=ids, shape=list(logits.shape)), f)
        f.write("\n")


def write_kquants():
    config = dict(read_family("llama-mha")[0], hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=48,
                  num_attention_heads=4, num_key_value_heads=1)
    rng = np.random.default_rng(5)
    kinds = dict(q_proj=T.Q4_K, k_proj=T.Q5_K, v_proj=T.Q6_K, o_proj=T.Q5_K, gate_proj=T.Q4_K, up_proj=T.Q4_0,
                 down_proj=T.Q6_K, embed_tokens=T.Q8_0, lm_head=T.Q6_K)
    rows = dict(k_proj=64, v_proj=64, embed_tokens=48, lm_head=48)
    # Gains that keep the activations near 1, found by the standard deviation that each format's random blocks have.
    gain = dict(q_proj=0.1, k_proj=0.1, v_proj=0.06, o_proj=0.06, gate_proj=0.06, up_proj=0.06, down_proj=0.06,
                embed_tokens=0.5, lm_head=0.1)
    weights = {"model.norm.weight": rng.uniform(0.5, 1.5, 256).astype(np.float32)}
    for part in ("input_layernorm", "post_attention_layernorm"):
        weights[f"model.layers.0.{part}.weight"] = rng.uniform(0.5, 1.5, 256).astype(np.float32)
    for part, dtype in kinds.items():
        raw = random_blocks(rng, dtype, rows.get(part, 256), 256 // GGML_QUANT_SIZES[dtype][0])
        spread = quants.dequantize(raw, dtype).std()
        for at in SCALES[dtype]:
            blocks = raw.reshape(raw.shape[0], -1, GGML_QUANT_SIZES[dtype][1])
            scale = blocks[..., at:at + 2].copy().view(np.float16) * np.float16(gain[part] / spread)
            blocks[..., at:at + 2] = scale.astype(np.float16).view(np.uint8)
        prefix = "lm_head" if part == "lm_head" else "model.embed_tokens" if part == "embed_tokens" else \
            f"model.layers.0.{'mlp' if part in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{part}"
        weights[prefix + ".weight"] = raw
    path = os.path.join(OUT, "kquants")
    held = write_model(path + ".gguf", "llama", config, weights, lambda name: kinds[name.split(".")[-2]])
    write_golden(path, config, held, 6)


def main():
    check_scales()
    os.makedirs(OUT, exist_ok=True)
    write_converted()
    write_made()
    if sys.argv[1:] == ["converted"]:
        return
    write_dtypes()
    for name, family, arch, dtype in (("llama3-bf16", "llama-gqa-llama3", "llama", T.BF16), ("qwen3-f16", "qwen3", "qwen3", T.F16),
                                      ("codellama-q8_0", "codellama", "llama", T.Q8_0)):
        config, weights = read_family(family)
        held = write_model(os.path.join(OUT, name + ".gguf"), arch, config, weights, lambda _: dtype)
        if dtype == T.Q8_0:
            write_golden(os.path.join(OUT, name), config, held, 7)
    write_kquants()
    for entry in sorted(os.scandir(OUT), key=lambda e: e.name):
        print(f"{entry.name:22} {entry.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
