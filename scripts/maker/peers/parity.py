#!/usr/bin/env python3
"""Whether Pyramid and llama.cpp read the same model file alike: perplexity of the same windows and greedy continuations.

    python scripts/maker/peers/parity.py MODEL.gguf [MODEL.gguf …] --text FILE [--windows 4] [--tokens 512] [--prompts FILE]
    python scripts/maker/peers/parity.py --from F32.gguf --types Q4_0,Q5_K_M,… --text FILE --out FOLDER

With --from, llama.cpp's own quantiser makes a file of each type first. Needs llama-cpp-python; `--program` is Pyramid's
(build/pyramid). Both are given the same ids, Pyramid's; f32 caches, no flash attention. llama.cpp rounds what it multiplies with
quantised weights to 8 bits, as Pyramid's int8 does. So it is asked twice: with the file, which Pyramid's int8 is held against,
and with the same weights written as f32 (`pyramid convert`), which Pyramid's f32 is: then both do the same arithmetic. A line a
file: perplexities and their differences, how many of the continuations are equal, rounded and not; of those that are not
rounded, where the first difference is and both engines' gaps between their two highest logits there.
"""
import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile

import llama_cpp as lc
import numpy as np

PROMPTS = ["The capital of France is", "Once upon a time, there was a little girl who", "def fibonacci(n):\n",
           "The most important thing about the ocean is that", "In 1969, the first man", "Water boils at a temperature of"]


class Peer:
    def __init__(self, path, room, threads):
        self.path = path
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = params.n_batch = room
        params.n_ubatch = min(512, room)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        self.context = lc.llama_init_from_model(self.model, params)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.batch = lc.llama_batch_init(room, 0, 1)

    def read(self, ids, at, every):
        """Logits of all ids, or of the last, at positions from `at` on."""
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i], self.batch.pos[i], self.batch.n_seq_id[i] = token, at + i, 1
            self.batch.seq_id[i][0], self.batch.logits[i] = 0, every or i == len(ids) - 1
        if lc.llama_decode(self.context, self.batch) != 0:
            sys.exit(f"{self.path}: llama_decode failed")
        wanted = range(len(ids)) if every else [len(ids) - 1]
        return [np.ctypeslib.as_array(lc.llama_get_logits_ith(self.context, i), (self.vocab,)).copy() for i in wanted]

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def nll(self, window):
        self.clear()
        logits, total = self.read(window, 0, True), 0.0
        for at in range(len(window) // 2, len(window)):
            row = logits[at - 1].astype(np.float64)
            top = row.max()
            total -= row[window[at]] - top - math.log(np.exp(row - top).sum())
        return total

    def greedy(self, prompt, count):
        self.clear()
        logits, ids, gaps = self.read(prompt, 0, False)[0], [], []
        for step in range(count):
            top = np.argpartition(-logits, 1)[:2]
            top = top[np.argsort(-logits[top], kind="stable")]
            ids.append(int(top[0]))
            gaps.append(float(logits[top[0]] - logits[top[1]]))
            if step < count - 1:
                logits = self.read(ids[-1:], len(prompt) + step, False)[0]
        return ids, gaps

    def close(self):
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)


def ours(program, script, request):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        run = subprocess.run([program, script, file.name], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{request['model']}: {run.stderr.strip()}")
    return json.loads(run.stdout)


def perplexity(sums, args):
    return math.exp(sum(sums) / (len(sums) * (args.tokens - args.tokens // 2)))


def compare(path, text, prompts, args):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "parity.lua")
    request = dict(model=path, precision="f32", text=text, tokens=args.tokens, windows=args.windows, prompts=prompts,
                   count=args.count, threads=args.threads)
    mine = [ours(args.program, script, dict(request, precision=precision)) for precision in ("f32", "int8")]
    line, differences = [], []
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        plain = os.path.join(folder, "f32.gguf")
        subprocess.run([args.program, "convert", path, plain, "--weights", "f32"], check=True, capture_output=True)
        for own, file in zip(mine, (plain, path)):
            peer = Peer(file, max(args.tokens, 512), args.threads)
            a, b = perplexity(own["nll"], args), perplexity([peer.nll(window) for window in own["windows"]], args)
            equal = 0
            for ids, run in zip(own["prompts"], own["greedy"]):
                found, gaps = peer.greedy(ids, args.count)
                at = next((i for i in range(args.count) if found[i] != run["ids"][i]), None)
                equal += at is None
                if at is not None and file == plain:
                    differences.append(f"step {at + 1}: {run['gaps'][at]:.3f} / {gaps[at]:.3f}")
            peer.close()
            line.append((a, b, equal))
    (a, b, equal), (c, d, rounded) = line
    print(f"| {os.path.basename(path)} | {a:.4f} | {b:.4f} | {100 * (a / b - 1):+.3f} % | {equal} of {len(prompts)} | "
          f"{c:.4f} | {d:.4f} | {100 * (c / a - 1):+.3f} % | {100 * (d / b - 1):+.3f} % | {rounded} of {len(prompts)} | "
          f"{'; '.join(differences)} |", flush=True)


def quantize(source, target, kind, threads):
    params = lc.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = getattr(lc, "LLAMA_FTYPE_MOSTLY_" + kind)
    if lc.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        sys.exit(f"{target}: llama_model_quantize failed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--types", default="")
    parser.add_argument("--out", default=".")
    parser.add_argument("--text", required=True)
    parser.add_argument("--prompts", help="a prompt a line")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="build/pyramid")
    args = parser.parse_args()

    @lc.llama_log_callback
    def quiet(level, text, _):
        if level == 4:
            sys.stderr.write(text.decode("utf-8", "replace"))
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    text = open(args.text, encoding="utf-8").read()
    prompts = open(args.prompts, encoding="utf-8").read().splitlines() if args.prompts else PROMPTS
    print("| file | f32 | llama.cpp, f32 | difference | greedy equal | int8 | llama.cpp, as is | int8 loses | llama.cpp loses | "
          "greedy equal | first differences in f32: gaps, ours / theirs |")
    print("|" + " --- |" * 11, flush=True)
    for path in args.models:
        compare(path, text, prompts, args)
    for kind in filter(None, args.types.split(",")):
        target = os.path.join(args.out, f"{os.path.splitext(os.path.basename(args.source))[0]}.{kind}.gguf")
        if not os.path.exists(target):
            quantize(args.source, target, kind, args.threads)
        compare(target, text, prompts, args)


main()
