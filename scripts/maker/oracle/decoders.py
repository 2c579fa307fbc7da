#!/usr/bin/env python3
"""Golden logits of decoders that differ from Llama by a switch: tiny random models and what transformers says of them.

Owns spec/fixtures/decoders/<name>/: a model directory as transformers saves it (config.json, model.safetensors in bf16),
golden.json (token ids, offsets, the greedy continuation) and golden.bin (raw little-endian f32 logits). Source: the
transformers implementation of each family, eager attention, float32 on the CPU. Nothing here knows Pyramid.

Configurations are small and have each switch on. Weights are drawn by what a parameter is, so that a wrong engine cannot
pass by luck: attention is peaked, norm weights differ from 1, biases from 0. A seed is taken only if at each of the 200
greedy steps the best logit leads the second by more than MARGIN of the largest magnitude.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/decoders.py            makes every decoder anew (the same bytes each time)
    python scripts/maker/oracle/decoders.py gemma2     makes one; `defaults` and `names` make the two lists beside them
"""
import json, math, os, re, shutil, sys, zlib

import numpy as np
import torch
import transformers

from safetensors.torch import load_file, save_file

from families import NEW, greedy, load, logits_of, random_ids, write_json

transformers.utils.logging.set_verbosity_error()
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "decoders")
LENGTHS, PROMPT, MARGIN = (1, 7, 90), 7, 5e-4

TINY = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=320, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False)


def tiny(model_type, *without, **more):
    config = dict(TINY, **more)
    for key in without:
        del config[key]
    return transformers.AutoConfig.for_model(model_type, **config)


def gpt_oss(**more):
    return tiny("gpt_oss", **dict(
        num_hidden_layers=2, head_dim=8, sliding_window=24, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(rope_type="default", rope_theta=150000.0), **more))


class MiniCPMConfig(transformers.LlamaConfig):
    """What the configuration class beside MiniCPM's checkpoints adds to Llama's."""
    model_type = "minicpm"
    scale_emb: float = 1
    dim_model_base: int = 1
    scale_depth: float = 1


class MiniCPMForCausalLM(transformers.LlamaForCausalLM):
    """MiniCPM (arXiv 2404.06395): a Llama with three scalars."""
    config_class = MiniCPMConfig

    def __init__(self, config):
        super().__init__(config)
        scale = config.scale_depth / math.sqrt(config.num_hidden_layers)
        self.model.embed_tokens.register_forward_hook(lambda m, args, out: out * config.scale_emb)
        for layer in self.model.layers:
            layer.self_attn.o_proj.register_forward_hook(lambda m, args, out: out * scale)
            layer.mlp.register_forward_hook(lambda m, args, out: out * scale)
        wider = config.hidden_size / config.dim_model_base
        self.lm_head.register_forward_pre_hook(lambda m, args: (args[0] / wider,))


transformers.AutoConfig.register("minicpm", MiniCPMConfig)
transformers.AutoModelForCausalLM.register(MiniCPMConfig, MiniCPMForCausalLM)


def as_internlm2(folder):
    """A Llama's files as InternLM2's: it computes the same, by other names, q, k and v in one matrix: for each K/V head
    the rows of its queries, of its key, of its value."""
    path, tensors, out = os.path.join(folder, "config.json"), {}, {}
    with open(path) as f:
        config = json.load(f)
    config.update(model_type="internlm2", architectures=["InternLM2ForCausalLM"], bias=config.pop("attention_bias"))
    del config["mlp_bias"]
    write_json(path, config)
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    for old, new in (("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("input_layernorm", "attention_norm"),
                     ("post_attention_layernorm", "ffn_norm"), ("self_attn.o_proj", "attention.wo"),
                     ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"),
                     ("mlp.down_proj", "feed_forward.w2")):
        tensors = {name.replace(old, new): t for name, t in tensors.items()}
    heads = config["num_key_value_heads"]
    for name, q in tensors.items():
        if "q_proj" in name:
            parts = [tensors[name.replace("q_proj", p + "_proj")] for p in "qkv"]
            parts = [t.reshape(heads, t.shape[0] // heads, *t.shape[1:]) for t in parts]
            out[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(parts, 1).flatten(0, 1).contiguous()
        elif "self_attn" not in name:
            out[name] = q
    save_file(out, path, {"format": "pt"})


def as_gguf(folder):
    """GPT-OSS as a GGUF file, in llama.cpp's names: experts by themselves, each gate and up out of its turns."""
    import gguf
    weights = load_file(os.path.join(folder, "model.safetensors"))
    config = json.load(open(os.path.join(folder, "config.json")))
    out = gguf.GGUFWriter(os.path.join(folder, "model.gguf"), "gpt-oss")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_expert_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    out.add_sliding_window(config["sliding_window"])
    out.add_expert_count(config["num_local_experts"])
    out.add_expert_used_count(config["num_experts_per_tok"])

    def add(name, t):
        if t.dim() == 1 or name.endswith(".bias") or "gate_inp" in name:
            return out.add_tensor(name, t.float().numpy())
        raw = t.contiguous().view(torch.uint16).numpy()
        out.add_tensor(name, raw.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights["lm_head.weight"])
    for i in range(config["num_hidden_layers"]):
        part = lambda name: weights[f"model.layers.{i}.{name}"]
        add(f"blk.{i}.attn_norm.weight", part("input_layernorm.weight"))
        add(f"blk.{i}.post_attention_norm.weight", part("post_attention_layernorm.weight"))
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")):
            for kind in ("weight", "bias"):
                add(f"blk.{i}.attn_{ours}.{kind}", part(f"self_attn.{theirs}.{kind}"))
        add(f"blk.{i}.attn_sinks.weight", part("self_attn.sinks"))
        for kind in ("weight", "bias"):
            add(f"blk.{i}.ffn_gate_inp.{kind}", part(f"mlp.router.{kind}"))
        both, bias = part("mlp.experts.gate_up_proj").transpose(1, 2), part("mlp.experts.gate_up_proj_bias")
        for at, name in enumerate(("gate", "up")):
            add(f"blk.{i}.ffn_{name}_exps.weight", both[:, at::2])
            add(f"blk.{i}.ffn_{name}_exps.bias", bias[:, at::2].contiguous())
        add(f"blk.{i}.ffn_down_exps.weight", part("mlp.experts.down_proj").transpose(1, 2))
        add(f"blk.{i}.ffn_down_exps.bias", part("mlp.experts.down_proj_bias"))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.remove(os.path.join(folder, "model.safetensors"))


FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def fp4(t):
    """[experts, in, out] in blocks of 32 along `in`: numbers [experts, out, blocks, 32] and exponents, of the nearest values."""
    x = t.float().transpose(1, 2).unflatten(2, (-1, 32))
    exponents = torch.ceil(torch.log2(x.abs().amax(-1) / 6)).clamp(-126, 126)
    scaled = x / 2.0 ** exponents[..., None]
    return (scaled[..., None] - FP4).abs().argmin(-1), exponents


def round_to_fp4(model):
    """Weights of experts become values that mxfp4 has, all of which bf16 has, too."""
    for name, t in model.named_parameters():
        if re.search(r"experts\.\w+_proj$", name):
            numbers, exponents = fp4(t)
            t.copy_((FP4[numbers] * 2.0 ** exponents[..., None]).flatten(2).transpose(1, 2))


def as_mxfp4(folder):
    """GPT-OSS as published: experts' matrices in blocks of fp4, as transformers reads them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    for name in [n for n in tensors if re.search(r"experts\.\w+_proj$", n)]:
        values = tensors.pop(name)
        numbers, exponents = fp4(values)
        blocks = (numbers[..., 0::2] | numbers[..., 1::2] << 4).to(torch.uint8).contiguous()
        scales = (exponents + 127).to(torch.uint8).contiguous()
        assert torch.equal(convert_moe_packed_tensors(blocks, scales), values), name
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
    save_file(tensors, path, {"format": "pt"})
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn",
                                         "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
    write_json(path, config)


# What is done to drawn weights that a format would round.
ROUNDED = {"gpt-oss-mxfp4": round_to_fp4}

# How a family's checkpoints are published where transformers has its arithmetic under another's name, or saves them otherwise.
PUBLISHED = {"internlm2": as_internlm2, "gpt-oss": as_gguf, "gpt-oss-mxfp4": as_mxfp4}

DECODERS = {
    "gemma": lambda: tiny("gemma", head_dim=8, tie_word_embeddings=True),
    # Soft caps of scores and logits that bend, a scale of scores of its own, a window in every other layer.
    "gemma2": lambda: tiny("gemma2", head_dim=12, sliding_window=24, query_pre_attn_scalar=9, attn_logit_softcapping=4.0,
                           final_logit_softcapping=0.25, tie_word_embeddings=True),
    # Two tables of RoPE, one for windowed layers, of which there are two between full ones.
    "gemma3": lambda: tiny("gemma3_text", head_dim=8, sliding_window=24, query_pre_attn_scalar=6,
                           layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                           tie_word_embeddings=True),
    "phi3": lambda: tiny("phi3", partial_rotary_factor=0.5, sliding_window=None),
    # Of its sequences transformers turns those within 32 positions by the short factors, that of 90 by the long ones.
    # Six heads, as in falcon-alibi. The length of its training stands in files alone.
    "bloom": lambda: transformers.BloomConfig(vocab_size=96, hidden_size=24, n_layer=3, n_head=6, seq_length=320,
                                              bos_token_id=1, eos_token_id=2, pad_token_id=0),
    "phi3-longrope": lambda: tiny("phi3", head_dim=8, sliding_window=None, original_max_position_embeddings=32,
                                  rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=1.0,
                                                       original_max_position_embeddings=32, short_factor=[1.0, 1.1, 1.3, 1.2],
                                                       long_factor=[1.5, 3.0, 6.0, 9.0])),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=320,
                                            bos_token_id=1, eos_token_id=2),
    "gpt-neox": lambda: tiny("gpt_neox", "num_key_value_heads", rotary_pct=0.5),
    "gpt-neox-sequential": lambda: tiny("gpt_neox", "num_key_value_heads", rotary_pct=0.25, use_parallel_residual=False),
    # Sinks, biases of experts and routers, a clamped SwiGLU that clamps, a window in every other layer.
    "gpt-oss": lambda: gpt_oss(),
    # Folders: experts transposed, of which gate and up have a column in turn; and in mxfp4.
    "gpt-oss-folder": lambda: gpt_oss(swiglu_limit=5.0),
    "gpt-oss-mxfp4": lambda: gpt_oss(intermediate_size=64),
    # Mixtures of experts: weights renormalised or not, plain layers between, a shared expert with a router of its own.
    "mixtral": lambda: tiny("mixtral", intermediate_size=20, num_local_experts=6, num_experts_per_tok=2,
                            sliding_window=24),
    "qwen2-moe": lambda: tiny("qwen2_moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16,
                              shared_expert_intermediate_size=24, mlp_only_layers=[1], norm_topk_prob=False),
    "qwen3-moe": lambda: tiny("qwen3_moe", head_dim=12, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=12,
                              decoder_sparse_step=2, norm_topk_prob=True),
    "olmoe": lambda: tiny("olmoe", intermediate_size=16, num_experts=6, num_experts_per_tok=2),
    # Corrected sigmoids, groups, weights that are scaled, experts behind a plain layer.
    "glm4-moe": lambda: tiny("glm4_moe", head_dim=12, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
                             moe_intermediate_size=12, n_shared_experts=2, routed_scaling_factor=1.7, use_qk_norm=True,
                             attention_bias=True),

    "starcoder2": lambda: tiny("starcoder2", sliding_window=24),
    "stablelm": lambda: tiny("stablelm", use_qkv_bias=True, partial_rotary_factor=0.5),
    "stablelm-parallel": lambda: tiny("stablelm", use_parallel_residual=True, partial_rotary_factor=0.25, num_hidden_layers=2),
    "phi": lambda: tiny("phi", partial_rotary_factor=0.5),
    "cohere": lambda: tiny("cohere", use_qk_norm=True, logit_scale=0.25, tie_word_embeddings=True),
    # Three layers of four slide and turn, the fourth sees all and does not.
    "cohere2": lambda: tiny("cohere2", num_hidden_layers=4, sliding_window=24, logit_scale=0.25, attention_bias=True,
                            tie_word_embeddings=True),
    "opt": lambda: tiny("opt", "num_key_value_heads", "intermediate_size", ffn_dim=48),
    "falcon": lambda: tiny("falcon", "num_key_value_heads", "intermediate_size", ffn_hidden_size=48),
    "falcon-groups": lambda: tiny("falcon", "num_key_value_heads", "intermediate_size", num_kv_heads=2,
                                  new_decoder_architecture=True, num_hidden_layers=2),
    "falcon-one-norm": lambda: tiny("falcon", "num_key_value_heads", "intermediate_size", num_kv_heads=2,
                                    new_decoder_architecture=True, num_ln_in_parallel_attn=1, num_hidden_layers=2),
    # Six heads: slopes that are no powers of one base.
    "falcon-alibi": lambda: tiny("falcon", "num_key_value_heads", "intermediate_size", hidden_size=24, alibi=True, bias=True,
                                 num_attention_heads=6, multi_query=False, parallel_attn=False),
    "nemotron": lambda: tiny("nemotron", partial_rotary_factor=0.5, attention_bias=True, mlp_bias=True),
    "gptj": lambda: transformers.GPTJConfig(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=320, rotary_dim=4,
                                            bos_token_id=1, eos_token_id=2),
    "gpt-bigcode": lambda: transformers.GPTBigCodeConfig(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=320,
                                                         bos_token_id=1, eos_token_id=2),
    "gpt-bigcode-heads": lambda: transformers.GPTBigCodeConfig(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=320, multi_query=False, bos_token_id=1, eos_token_id=2),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, max_position_embeddings=320,
        attention_types=[[["global", "local"], 1], [["global"], 1]], window_size=24, bos_token_id=1, eos_token_id=2),
    "helium": lambda: tiny("helium", head_dim=8, attention_bias=True, mlp_bias=True),
    "ernie4-5": lambda: tiny("ernie4_5", head_dim=12, use_bias=True, tie_word_embeddings=True),
    "jais2": lambda: tiny("jais2"),
    "vaultgemma": lambda: tiny("vaultgemma", head_dim=12, sliding_window=24, query_pre_attn_scalar=9,
                               attn_logit_softcapping=4.0, final_logit_softcapping=0.25, tie_word_embeddings=True),
    "mpt": lambda: transformers.MptConfig(vocab_size=96, d_model=24, n_layers=3, n_heads=6, max_seq_len=320, bos_token_id=1,
                                          eos_token_id=2),  # attn_config: transformers does not look at alibi_bias_max
    # The fourth layer does not turn: GGUF files can say no other.
    "smollm3": lambda: tiny("smollm3", num_hidden_layers=4, attention_bias=True, mlp_bias=True),
    "granite": lambda: tiny("granite", embedding_multiplier=6.0, residual_multiplier=0.6, attention_multiplier=0.5,
                            logits_scaling=2.0),
    "olmo2": lambda: tiny("olmo2"),
    # Scaled angles in the full layer alone.
    "olmo3": lambda: tiny("olmo3", sliding_window=24,
                          layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                          rope_parameters=dict(
                              sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                              full_attention=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                                  original_max_position_embeddings=80))),
    "glm": lambda: tiny("glm", head_dim=12),
    "glm4": lambda: tiny("glm4", head_dim=12),
    "arcee": lambda: tiny("arcee", mlp_bias=True),
    "seed-oss": lambda: tiny("seed_oss", head_dim=12, attention_out_bias=True),
    "exaone4": lambda: tiny("exaone4", sliding_window=24,
                            layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "ministral": lambda: tiny("ministral", head_dim=12, sliding_window=24,
                              layer_types=["full_attention", "sliding_attention", "full_attention"]),
    # Queries that grow from position 16 on: most of the 90 tokens lie beyond the original context.
    "ministral3": lambda: tiny("ministral3", head_dim=12, rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=20.0, original_max_position_embeddings=16, beta_fast=32.0,
        beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4)),
    "minicpm": lambda: tiny("minicpm", scale_emb=6, scale_depth=1.1, dim_model_base=16),
    "internlm2": lambda: tiny("llama", attention_bias=True),
}

# Fixtures from before seeds were made of names.
FIRST_SEEDS = {"gemma": 1000, "gemma2": 2000, "gemma3": 3000, "phi3": 4000, "gpt2": 5000, "gpt-neox": 6000,
               "gpt-neox-sequential": 7000, "mixtral": 8000, "qwen2-moe": 9000, "qwen3-moe": 10000,
               "olmoe": 11000}

# Falcon's eager attention adds ALiBi twice in transformers 5: in the mask, and to the scores.
ATTENTION = {"falcon-alibi": "sdpa"}

EMBED_SCALE = dict(vaultgemma=32 ** 0.5, gemma=32 ** 0.5, gemma2=32 ** 0.5, gemma3_text=32 ** 0.5, granite=6, minicpm=6)
ONE = re.compile(r"(norm|norm_\w+|ln_\w+|layernorm\w*)\.weight$")


def draw(name, t, offset, g, width):
    """A parameter's values, exactly representable in bf16."""
    normal = lambda std: torch.randn(t.shape, generator=g) * std
    if ONE.search(name):  # norms: around 1, with what is added to them taken off
        x = 0.5 + torch.rand(t.shape, generator=g) - offset
    elif t.dim() == 1:
        x = normal(0.3)
    elif re.search(r"embed|wte|wpe|lm_head", name):
        x = normal((0.15 if tied else 0.5) / EMBED_SCALE.get(name_of_family, 1))  # large, tied ones only repeat
    else:
        fan = t.shape[0] if re.search(r"c_attn|c_proj|c_fc", name) and "gpt2" in name_of_family else t.shape[-1]
        # projections of q and k, alone or in one matrix with v: scores with a standard deviation of 2
        peaked = re.search(r"(q_proj|k_proj|qkv|query_key_value|c_attn|wqkv|Wqkv|W_pack)\.weight$", name)
        clamped = name_of_family == "gpt_oss" and name.endswith("gate_up_proj")  # beyond its limit of 7 now and then
        x = normal((2.0 if peaked else 6.0 if clamped else 1.3) / math.sqrt(fan))
    return x.to(torch.bfloat16)


def norm_offset(config):
    return 1.0 if "gemma" in config.model_type or config.model_type == "nemotron" else 0.0


def write_model(folder, config, seed, change=lambda model: None):
    global name_of_family, tied
    name_of_family, tied = config.model_type, config.tie_word_embeddings
    shutil.rmtree(folder, ignore_errors=True)
    g = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, t in sorted(model.named_parameters()):
            t.copy_(draw(name, t, norm_offset(config), g, config.hidden_size))
        for name, t in sorted(model.named_buffers()):
            if name.endswith("e_score_correction_bias"):
                t.copy_(draw(name, t, 0, g, config.hidden_size))
        change(model)
    model.save_pretrained(folder)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        os.remove(os.path.join(folder, "generation_config.json"))


def first_seed(name):
    """Where the search for a seed begins: of the name alone, so that entries may stand in any order."""
    return FIRST_SEEDS.get(name, 1000 + zlib.crc32(name.encode()) % 1000 * 1000)


def make(name):
    folder = os.path.join(ROOT, name)
    first = first_seed(name)
    for seed in range(first, first + 100):
        config = DECODERS[name]()
        write_model(folder, config, seed, ROUNDED.get(name, lambda model: None))
        model, rng = load(folder, attention=ATTENTION.get(name, "eager")), np.random.default_rng(seed)
        sequences = [random_ids(rng, config.vocab_size, n) for n in LENGTHS]
        found = greedy(model, sequences[LENGTHS.index(PROMPT)], NEW, MARGIN)
        if found and len(set(found[0])) >= 12:  # no short cycle
            break
    else:
        sys.exit(f"{name}: no seed gives a fair greedy continuation")
    blob, index = b"", []
    for ids in sequences:
        out = logits_of(model, ids).numpy().astype("<f4")
        index.append(dict(ids=ids, offset=len(blob), shape=list(out.shape)))
        blob += out.tobytes()
    PUBLISHED.get(name, lambda _: None)(folder)
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(blob)
    write_json(os.path.join(folder, "golden.json"), dict(
        made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__), seed=seed,
        sequences=index, greedy=dict(prompt=sequences[LENGTHS.index(PROMPT)], ids=found[0], least_lead=found[1])))
    size = sum(e.stat().st_size for e in os.scandir(folder))
    print(f"{name:22} seed {seed}, {size / 1024:.0f} KiB, {len(set(found[0]))} different ids, least lead {found[1]:.1e}, "
          f"logits std {np.frombuffer(blob, '<f4').std():.2f}", flush=True)


# Model types whose defaults families state; what is no field of a configuration but stands in the class's code.
CLASSES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox",
           "gpt_oss", "starcoder2", "stablelm", "phi", "cohere", "cohere2", "opt", "falcon", "nemotron", "gptj", "gpt_bigcode",
           "mpt", "helium", "ernie4_5", "jais2", "vaultgemma", "gpt_neo",
           "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe",
           "smollm3", "granite", "olmo2", "olmo3", "glm", "glm4", "arcee", "seed_oss", "exaone4", "ministral", "ministral3", "bloom"]
IN_CODE = dict(bloom=dict(seq_length=2048), vaultgemma=dict(sliding_window_pattern=2), gemma2=dict(sliding_window_pattern=2), gpt_oss=dict(sliding_window_pattern=2), qwen2=dict(sliding_window=4096), qwen3=dict(sliding_window=4096),
               qwen2_moe=dict(sliding_window=4096), qwen3_moe=dict(sliding_window=4096),
               cohere2=dict(sliding_window_pattern=4), opt=dict(layer_norm_eps=1e-5), gptj=dict(rope_theta=10000),
               olmo3=dict(sliding_window_pattern=4))


def make_defaults():
    """What the classes take for fields that config.json leaves out, in the names of published files."""
    out = {}
    for kind in CLASSES:
        config = transformers.AutoConfig.for_model(kind)
        fields = config.to_dict()
        rope = fields.get("rope_parameters") or {}
        if "sliding_attention" in rope:
            fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        for old, new in (("rope_theta", "rope_theta"), ("rotary_pct", "partial_rotary_factor"),
                         ("partial_rotary_factor", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
            if old not in fields and new in rope:
                fields[old] = rope[new]
        if "_sliding_window_pattern" in fields:
            fields["sliding_window_pattern"] = fields["_sliding_window_pattern"]
        fields.update(IN_CODE.get(kind, {}))
        out[kind] = {k: v for k, v in sorted(fields.items()) if isinstance(v, (bool, int, float, str))}
    write_json(os.path.join(ROOT, "defaults.json"), out)


# Fixtures that are written as GGUF files, too (spec/loaders/gguf_names_spec.lua), and what those call their architectures.
GGUF = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "phi3": "phi3", "gpt2": "gpt2", "gpt-neox": "gptneox", "gpt-neox-sequential": "gptneox",
        "starcoder2": "starcoder2", "stablelm": "stablelm", "stablelm-parallel": "stablelm", "phi": "phi2",
        "cohere": "command-r", "cohere2": "cohere2", "falcon": "falcon", "falcon-groups": "falcon", "falcon-one-norm": "falcon", "nemotron": "nemotron",
        "gpt-bigcode": "starcoder", "mpt": "mpt", "ernie4-5": "ernie4_5",
        "smollm3": "smollm3", "granite": "granite", "olmo2": "olmo2", "olmo3": "olmo2", "glm": "chatglm", "glm4": "glm4",
        "arcee": "arcee", "seed-oss": "seed_oss", "exaone4": "exaone4", "minicpm": "minicpm", "internlm2": "internlm2", "ministral3": "mistral3", "bloom": "bloom"}


def make_names():
    """What llama.cpp's converters call the tensors, by the `gguf` package's own table: those outside of layers and of layer 0."""
    import gguf
    from safetensors import safe_open
    out = {}
    for name, arch in GGUF.items():
        known = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(known[arch], 1)
        with safe_open(os.path.join(ROOT, name, "model.safetensors"), "pt") as f:
            tensors = [t for t in f.keys() if not re.search(r"\.[1-9]\d*\.", t)]
        suffixes = (".weight", ".bias")
        # BLOOM's converter takes the prefix away before it looks
        find = lambda t: table.get_name(t, suffixes) or table.get_name(t.removeprefix("transformer."), suffixes)
        out[name] = dict(architecture=arch, names={t: find(t) for t in sorted(tensors)})
    write_json(os.path.join(ROOT, "gguf_names.json"), out)


if __name__ == "__main__":
    if not sys.argv[1:] or "defaults" in sys.argv:
        make_defaults()
    for decoder in [a for a in sys.argv[1:] if a not in ("defaults", "names")] or ([] if sys.argv[1:] else list(DECODERS)):
        make(decoder)
    if not sys.argv[1:] or "names" in sys.argv:
        make_names()
