"""Golden values of quantised Hugging Face layouts: spec/fixtures/packed.

    python scripts/maker/oracle/packed.py            # writes matrices.safetensors and values.bin
    python scripts/maker/oracle/packed.py --errors   # what their targets lose, on normal weights
    python scripts/maker/oracle/packed.py --check DIR
        holds the values against AutoAWQ's packing_utils.py, GPTQModel's qlinear/__init__.py and
        transformers' Fp8Dequantize; DIR has the first two, out of their source packages

Small random matrices [16, 64] in each layout, and their values as f32, from the formats' definition
one value at a time: value = scale * (number - zero). Needs numpy and safetensors, for --check torch
and transformers, all of requirements.txt.
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parents[3] / "spec/fixtures/packed"
ROWS, COLS, GROUP = 16, 64, 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]      # nibble i of a word is row AWQ_ORDER[i] of eight

# name, kind, bits, zeros less one, act order, zeros: all in the middle or any
GPTQ = [("gptq4", 4, True, False, "middle"), ("gptq4_zeros", 4, True, False, "any"),
        ("gptq4_order", 4, True, True, "any"), ("gptq4_v2", 4, False, False, "any"),
        ("gptq8", 8, True, False, "middle"), ("gptq8_v2", 8, False, True, "any")]


def words(numbers, bits):
    """[…, n] numbers to […, n * bits / 32] words, lowest bits first."""
    each = 32 // bits
    grouped = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, each)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(grouped << shifts, axis=-1).astype(np.uint32).view(np.int32)


def gptq(random, bits, less_one, order, zeros_are):
    groups, top = COLS // GROUP, 2**bits
    numbers = random.integers(0, top, (ROWS, COLS))
    low = 1 if less_one else 0
    zeros = (np.full((groups, ROWS), top // 2) if zeros_are == "middle"
             else random.integers(low, top, (groups, ROWS)))
    scales = (random.uniform(0.5, 2, (groups, ROWS)) * 2.0**-7).astype(np.float16)
    index = np.arange(COLS) // GROUP
    if order:
        index = random.permutation(index)
    values = np.empty((ROWS, COLS), np.float32)
    for n in range(ROWS):
        for k in range(COLS):
            g = index[k]
            values[n, k] = np.float32(scales[g, n]) * np.float32(numbers[n, k] - zeros[g, n])
    tensors = {"qweight": np.ascontiguousarray(words(numbers, bits).T), "scales": scales,
               "qzeros": words(zeros - low, bits), "g_idx": index.astype(np.int32)}
    return tensors, values


def dealt(numbers):
    """Rows of eight in AWQ's order, along the last axis."""
    return numbers.reshape(*numbers.shape[:-1], -1, 8)[..., AWQ_ORDER].reshape(numbers.shape)


def awq(random):
    groups = COLS // GROUP
    numbers, zeros = random.integers(0, 16, (ROWS, COLS)), random.integers(0, 16, (groups, ROWS))
    scales = (random.uniform(0.5, 2, (groups, ROWS)) * 2.0**-7).astype(np.float16)
    values = np.empty((ROWS, COLS), np.float32)
    for n in range(ROWS):
        for k in range(COLS):
            g = k // GROUP
            values[n, k] = np.float32(scales[g, n]) * np.float32(numbers[n, k] - zeros[g, n])
    return {"qweight": words(dealt(numbers.T), 4), "qzeros": words(dealt(zeros), 4),
            "scales": scales}, values


def e4m3(byte):
    """OCP's 8-bit float: 4 bits of exponent, 3 of mantissa, no infinities."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0**(exponent - 7)


def scaled(random, block):
    numbers = random.integers(0, 256, (ROWS, COLS)).astype(np.uint8)
    numbers[numbers & 127 == 127] = 0                                        # NaN
    shape = (-(-ROWS // block[0]), -(-COLS // block[1]))
    scales = (random.uniform(0.5, 2, shape) * 2.0**-9).astype(np.float32)
    values = np.empty((ROWS, COLS), np.float32)
    for n in range(ROWS):
        for k in range(COLS):
            values[n, k] = np.float32(e4m3(int(numbers[n, k]))) * scales[n // block[0],
                                                                         k // block[1]]
    return {"weight": numbers, "weight_scale_inv": scales}, values


def make():
    random, cases = np.random.default_rng(19), {}
    for name, bits, less_one, order, zeros in GPTQ:
        cases[name] = {"kind": "gptq", "bits": bits, "group": [1, GROUP], "less_one": less_one,
                       "parts": gptq(random, bits, less_one, order, zeros)}
    cases["awq"] = {"kind": "awq", "bits": 4, "group": [1, GROUP], "parts": awq(random)}
    for name, block in (("fp8_block", [6, 24]), ("fp8_row", [1, COLS]), ("fp8", [ROWS, COLS])):
        cases[name] = {"kind": "scaled", "bits": 8, "group": block,
                       "parts": scaled(random, block)}
    return cases


def write(cases):
    OUT.mkdir(parents=True, exist_ok=True)
    tensors, head, at, data = {}, {"rows": ROWS, "cols": COLS, "cases": {}}, 0, b""
    for name, case in cases.items():
        parts, values = case.pop("parts")
        for part, tensor in parts.items():
            tensors[f"{name}.{part}"] = tensor
        head["cases"][name] = {**case, "offset": len(data)}
        data += values.tobytes()
    save_file(tensors, OUT / "matrices.safetensors")
    (OUT / "values.bin").write_bytes(data)
    (OUT / "values.json").write_text(json.dumps(head, indent=1) + "\n")


def q8_0(x):
    blocks = x.reshape(-1, 32)
    d = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    return (np.round(blocks / np.where(d == 0, 1, d)) * d).reshape(x.shape)


def errors():
    """Root mean squares of normal weights' errors: of the format, and of what its target adds."""
    random = np.random.default_rng(1)
    weights = random.normal(0, 0.02, (256, 4096)).astype(np.float32)
    rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

    def say(name, values, targets):
        own = rms(values - weights) / rms(weights)
        print(f"{name:22} loses {100 * own:.2f} %", *(
            f"{target} adds {100 * rms(x - values) / rms(weights):.3f} %, in all "
            f"{100 * rms(x - weights) / rms(weights):.2f} %" for target, x in targets), sep="; ")

    table = np.array([e4m3(i) if i & 127 != 127 else np.inf for i in range(128)])
    blocks = weights.reshape(2, 128, 32, 128)
    scale = np.abs(blocks).max((1, 3), keepdims=True) / 448
    middles = (table[1:-1] + table[:-2]) / 2
    near = table[np.searchsorted(middles, np.abs(blocks / scale))] * np.sign(blocks) * scale
    values = near.reshape(weights.shape).astype(np.float32)
    bf16 = ((values.view(np.uint32) + 0x7fff + (values.view(np.uint32) >> 16 & 1)) >> 16 << 16
            ).view(np.float32)
    say("fp8, 128 x 128", values, [("q8_0", q8_0(values)), ("bf16", bf16)])
    groups = weights.reshape(256, 32, 128)
    low, high = groups.min(2, keepdims=True), groups.max(2, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, 15)
    values = (np.clip(np.round(groups / scale + zero), 0, 15) - zero) * scale
    order = random.permutation(4096)
    values = values.reshape(weights.shape)
    say("int4, groups of 128", values, [("f32", values)])
    weights, values = weights[:, order], values[:, order]
    say("int4, act order", values, [("q8_0", q8_0(values)),
                                    ("f16", values.astype(np.float16).astype(np.float32))])


def check(folder, cases):
    """The values, by other people's code."""
    import ast
    import importlib.util

    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def find(name):
        return next(p for p in sorted(pathlib.Path(folder).rglob(name.split("/")[-1]))
                    if str(p).endswith(name))

    spec = importlib.util.spec_from_file_location("packing_utils", find("awq/utils/packing_utils.py"))
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    tree = ast.parse(find("qlinear/__init__.py").read_text())
    wanted = {"dequantize_weight", "_dequantize_from_codes"}
    functions = [n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body
                 if isinstance(n, ast.FunctionDef) and n.name in wanted]
    world = {"t": torch, "_torch_right_shift": torch.bitwise_right_shift}
    exec(compile(ast.Module(functions, []), "qlinear", "exec"), world)

    for name, case in cases.items():
        parts, values = case["parts"]
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in parts.items()}
        if case["kind"] == "awq":
            got = utils.dequantize_gemm(tensors["qweight"], tensors["qzeros"],
                                        tensors["scales"].float(), 4, GROUP).T
        elif case["kind"] == "gptq":
            bits, layer = case["bits"], type("Layer", (), {k: world[k] for k in wanted})()
            zeros = tensors["qzeros"]
            if case["less_one"]:          # as convert_gptq_v1_to_v2_format_module does
                zeros = zeros + (0x11111111 if bits == 4 else 0x01010101)
            shifts = torch.arange(0, 32, bits, dtype=torch.int32)
            layer.__dict__.update(
                planar=False, bits=bits, maxq=2**bits - 1, pack_factor=32 // bits, qzeros=zeros,
                qweight=tensors["qweight"], scales=tensors["scales"].float(),
                g_idx=tensors["g_idx"], in_features=COLS, out_features=ROWS,
                dequant_dtype=torch.int16 if bits == 8 else torch.int8,
                wf_unsqueeze_zero=shifts.view(1, 1, -1), wf_unsqueeze_neg_one=shifts.view(1, -1, 1),
                _init_wf_unsqueeze_buffers=lambda: None)
            got = layer.dequantize_weight().T
        elif ROWS % case["group"][0] or COLS % case["group"][1]:
            continue                      # theirs wants whole blocks
        else:
            got = Fp8Dequantize(None)._dequantize_one(
                tensors["weight"].view(torch.float8_e4m3fn), tensors["weight_scale_inv"])
        same = np.array_equal(got.float().numpy(), values)
        print(f"{name:12} {'equal' if same else 'DIFFERS'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--errors"]:
        errors()
    elif sys.argv[1:2] == ["--check"]:
        check(sys.argv[2], make())
    else:
        write(make())
