#!/usr/bin/env python3
"""What llama.cpp's caches of few bits cost, in the windows of `pyramid perplexity --append`.

    python scripts/maker/peers/rows.py MODEL.gguf --text FILE [--context 1920] [--predict 128] [--stride 2048] [--windows 12]
        [--types f16,q8_0,q4_0] [--ours f16,q4]

Windows are as docs/quality.md, "Rows of fewer bits", has them, of the ids that Pyramid makes of the text (`--program`); f32 in a
name's place is a file of `pyramid convert --weights f32`, so that only rows are rounded. Keys and values have the same type, and
llama.cpp rotates both by Hadamard's matrix where they are quantised. A context goes in by batches of `--batch` tokens, which read
what earlier ones left, as it was stored; so do the scored tokens. Pyramid is given the same batches. A line a type: bits a value,
perplexity, what it is over the first type's. Of Pyramid's packed rows each head's first and newest page, of 32, stay f16, and count.
"""
import argparse
import ctypes
import json
import math
import subprocess
import sys

import llama_cpp as lc
import numpy as np

TYPES = {"f32": (0, 32), "f16": (1, 16), "q8_0": (8, 8.5), "q5_1": (7, 6), "q5_0": (6, 5.5), "q4_1": (3, 5), "q4_0": (2, 4.5)}
PACKED = {"q4": 4.25, "q3": 3.25, "q2": 2.25}
BITS = {"f32": 32, "f16": 16, "q8_0": 8.5, **PACKED}

WINDOWS = """
local cli, perplexity = require "pyramid.tools.cli", require "pyramid.tools.perplexity"
local pyramid, json = require "pyramid", require "pyramid.json"
local t = assert(pyramid.tokenizer(arg[1]))
local n = function(i) return math.tointeger(arg[i]) end
print(json.encode(perplexity.windows(assert(t:encode(cli.read(arg[2]), { special = false })),
  { context = n(3), predict = n(4), stride = n(5), limit = n(6), bos = t.adds_bos and t.bos or nil })))
"""

OURS = """
local pyramid, json = require "pyramid", require "pyramid.json"
local model = assert(pyramid.model(arg[1], { precision = "f32", threads = math.tointeger(arg[4]) }))
local sum, count = 0, 0
for _, window in ipairs(json.decode(io.read "a")) do
  local cache <close>, all = assert(model:cache { dtype = arg[2] })
  local n, batch = #window.context, math.tointeger(arg[3])
  for at = 1, n, batch do
    all = assert(cache:prefill(table.move(window.context, at, math.min(n, at + batch - 1), 1, {})))
  end
  local logits = { all, table.unpack(assert(cache:prefill(
    table.move(window.targets, 1, #window.targets - 1, 1, {}), { all = true }))) }
  for i, target in ipairs(window.targets) do sum, count = sum - logits[i]:logprob(target), count + 1 end
end
print(math.exp(sum / count))
"""


def read(context, batch, ids, at, last):
    """Logits of the last so many of ids, at positions from `at` on."""
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, i >= len(ids) - last
    if lc.llama_decode(context, batch) != 0:
        sys.exit("llama_decode failed")
    size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(lc.llama_get_model(context)))
    return [np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), (size,)).astype(np.float64)
            for i in range(len(ids) - last, len(ids))]


def score(model, kind, windows, args):
    params = lc.llama_context_default_params()
    params.n_ctx = args.context + args.predict
    params.n_batch = params.n_ubatch = max(args.batch, args.predict)
    params.n_threads = params.n_threads_batch = args.threads
    params.type_k = params.type_v = TYPES[kind][0]
    params.flash_attn_type = 1
    context = lc.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"no context with rows in {kind}")
    batch, total = lc.llama_batch_init(params.n_batch, 0, 1), 0.0
    for window in windows:
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        ids = window["context"]
        for at in range(0, len(ids), args.batch):
            logits = read(context, batch, ids[at:at + args.batch], at, 1)
        logits += read(context, batch, window["targets"][:-1], len(ids), len(window["targets"]) - 1)
        for row, target in zip(logits, window["targets"]):
            top = row.max()
            total -= row[target] - top - math.log(np.exp(row - top).sum())
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    return math.exp(total / (len(windows) * args.predict))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("--ours", default="f16,q4")
    parser.add_argument("--batch", type=int, default=512)
    for name, value in (("context", 1920), ("predict", 128), ("stride", 2048), ("windows", 12), ("threads", 2)):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--program", default="build/pyramid")
    args = parser.parse_args()

    @lc.llama_log_callback
    def quiet(level, text, _):
        if level == 4:
            sys.stderr.write(text.decode("utf-8", "replace"))
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    run = subprocess.run([args.program, "-e", WINDOWS, args.model, args.text, *map(str, (
        args.context, args.predict, args.stride, args.windows))], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr.strip())
    windows = json.loads(run.stdout)
    model = lc.llama_model_load_from_file(args.model.encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {args.model}")
    first = None
    for kind in filter(None, args.types.split(",")):
        found = score(model, kind, windows, args)
        first = first or found
        print(f"| llama.cpp, {kind} | {TYPES[kind][1]} | {found:.3f} ({100 * (found / first - 1):+.2f} %) |", flush=True)
    first = None
    for kind in filter(None, args.ours.split(",")):
        mine = subprocess.run([args.program, "-e", OURS, args.model, kind, str(args.batch), str(args.threads)],
                              input=run.stdout, capture_output=True, text=True)
        if mine.returncode != 0:
            sys.exit(mine.stderr.strip())
        found = float(mine.stdout)
        first = first or found
        rows, plain = args.context + args.predict, 64 if kind in PACKED else 0
        bits = (16 * plain + BITS[kind] * (rows - plain)) / rows
        print(f"| Pyramid, {kind} | {bits:.2f} | {found:.3f} ({100 * (found / first - 1):+.2f} %) |", flush=True)


main()
