"""llama.cpp for scripts/bench.lua: measures one thing at a time on request, through llama-cpp-python.

Requests and replies, in the form that channel.py says:

    hello                                          {"name", "version", "system", "kernels"}
    ids       ids                                  what prompts and continuations are made of
    open      path threads                         {"seconds"}: the model, mapped
    context   name tokens sequences flash cache    a context of that name; cache is f16, f32, bf16 or q8_0
    prefill   name tokens                          {"seconds"}: reads tokens into an empty sequence 0, logits of the last
    decode    name depth steps                     {"seconds"}: after sequence 0's first `depth` tokens, which stay for the next
    batch     name count prompt generated          {"first", "seconds"}: to the first token of all, and to the end
    drop      name                                 frees the context
    memory    reset                                {"peak"}: most bytes resident since the last reset
    quantize  source target type threads           writes another GGUF file; type is one of its names, such as Q4_K_M
    close                                          the model goes
"""
import ctypes
import os
import sys
import time

import channel

try:
    import llama_cpp as lc
except Exception as fault:
    channel.give_up(f"llama_cpp cannot be imported: {fault}")

CHUNK = 2048                                      # tokens a call of llama_decode, its default
CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
KEPT = []                                         # callbacks must outlive their use


def silence():
    """Keeps errors only."""
    @lc.llama_log_callback
    def log(level, text, _):
        if level == 4:                            # GGML_LOG_LEVEL_ERROR
            sys.stderr.write(text.decode("utf-8", "replace"))
    KEPT.append(log)
    lc.llama_log_set(log, ctypes.c_void_p(0))


class Batch:
    """A llama_batch that is filled token by token."""

    def __init__(self, room):
        self.raw, self.room = lc.llama_batch_init(room, 0, 1), room

    def clear(self):
        self.raw.n_tokens = 0

    def add(self, token, position, sequence, logits):
        i = self.raw.n_tokens
        self.raw.token[i], self.raw.pos[i] = token, position
        self.raw.n_seq_id[i], self.raw.seq_id[i][0] = 1, sequence
        self.raw.logits[i] = logits
        self.raw.n_tokens = i + 1

    def full(self):
        return self.raw.n_tokens == self.room

    def free(self):
        lc.llama_batch_free(self.raw)


class Context:
    def __init__(self, model, request, threads, take):
        self.take = take
        flash, cache = request["flash"], request["cache"]
        params = lc.llama_context_default_params()
        params.n_ctx = request["tokens"] * request["sequences"]
        params.n_seq_max = request["sequences"]
        params.n_batch = min(CHUNK, params.n_ctx)
        params.n_ubatch = min(512, params.n_batch)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = CACHE_TYPES[cache]
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = 1 if flash else 0
        else:
            params.flash_attn = flash
        if hasattr(params, "no_perf"):
            params.no_perf = True
        if hasattr(params, "kv_unified"):
            params.kv_unified = False             # each sequence has a cache of its own: faster for those that share nothing
        self.raw = lc.llama_init_from_model(model, params)
        if not self.raw:
            raise RuntimeError(f"no context (flash {flash}, cache {cache})")
        self.batch = Batch(max(params.n_batch, request["sequences"]))
        self.depth = 0                            # tokens of sequence 0
        self.logits = 0

    def run(self):
        if lc.llama_decode(self.raw, self.batch.raw) != 0:
            raise RuntimeError("llama_decode failed")
        self.batch.clear()

    def finish(self):
        lc.llama_synchronize(self.raw)
        lc.llama_get_logits_ith(self.raw, -1)

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.raw), False)
        self.batch.clear()
        self.depth = 0

    def prefill(self, request):
        ids = self.take(0, request["tokens"])
        self.clear()
        began = time.perf_counter()
        for i, token in enumerate(ids):
            self.batch.add(token, i, 0, i == len(ids) - 1)
            if self.batch.full() or i == len(ids) - 1:
                self.run()
        self.finish()
        seconds = time.perf_counter() - began
        self.depth = len(ids)
        return {"seconds": seconds}

    def decode(self, request):
        depth, steps = max(1, request["depth"]), request["steps"]
        if self.depth != depth:
            self.prefill({"tokens": depth})
        ids = self.take(depth, steps + 2)
        began = 0.0
        for i, token in enumerate(ids):
            if i == 2:                            # two steps to get going
                began = time.perf_counter()
            self.batch.add(token, depth + i, 0, True)
            self.run()
            self.finish()
        seconds = time.perf_counter() - began
        lc.llama_memory_seq_rm(lc.llama_get_memory(self.raw), 0, depth, -1)
        return {"seconds": seconds}

    def batched(self, request):
        count, prompt, generated = (request[key] for key in ("count", "prompt", "generated"))
        ids, at = self.take(0, count * prompt), 0
        self.clear()
        began = time.perf_counter()
        for sequence in range(count):
            for i in range(prompt):
                self.batch.add(ids[at], i, sequence, i == prompt - 1)
                at += 1
                if self.batch.full():
                    self.run()
        if self.batch.raw.n_tokens > 0:
            self.run()
        lc.llama_synchronize(self.raw)
        first = time.perf_counter() - began
        for i in range(generated - 1):            # the prompt gave the first
            for sequence, token in enumerate(self.take((i + 1) * count, count)):
                self.batch.add(token, prompt + i, sequence, True)
            self.run()
            self.finish()
        return {"first": first, "seconds": time.perf_counter() - began}

    def free(self):
        self.batch.free()
        lc.llama_free(self.raw)


def quantize(request):
    params = lc.llama_model_quantize_default_params()
    params.nthread = request["threads"]
    params.ftype = getattr(lc, "LLAMA_FTYPE_MOSTLY_" + request["type"].upper())
    partial = request["target"] + ".partial"
    if lc.llama_model_quantize(request["source"].encode(), partial.encode(), params) != 0:
        raise RuntimeError("llama_model_quantize failed")
    os.replace(partial, request["target"])
    return {}


def kernels(system):
    """The names that ggml's system information has a 1 behind: "CPU : SSE3 = 1 | AVX512 = 1 | REPACK = 1"."""
    pairs = [part.split("=") for part in system.replace(":", "|").split("|") if "=" in part]
    return " ".join(name.strip() for name, value in pairs if value.strip() == "1")


class Peer(channel.Ids):
    def __init__(self):
        self.model, self.threads, self.contexts = None, 1, {}

    def hello(self, _):
        system = lc.llama_print_system_info().decode("utf-8", "replace").strip()
        return {"name": "llama.cpp", "version": "llama-cpp-python " + lc.__version__, "system": system,
                "kernels": kernels(system)}

    def open(self, request):
        self.close(request)
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        began = time.perf_counter()
        self.model = lc.llama_model_load_from_file(request["path"].encode(), params)
        if not self.model:
            raise RuntimeError(f"{request['path']} cannot be loaded")
        self.threads = request["threads"]
        return {"seconds": time.perf_counter() - began}

    def context(self, request):
        self.drop(request)
        self.contexts[request["name"]] = Context(self.model, request, self.threads, self.take)
        return {}

    def drop(self, request):
        context = self.contexts.pop(request["name"], None)
        if context:
            context.free()
        return {}

    def prefill(self, request):
        return self.contexts[request["name"]].prefill(request)

    def decode(self, request):
        return self.contexts[request["name"]].decode(request)

    def batch(self, request):
        return self.contexts[request["name"]].batched(request)

    def memory(self, request):
        return channel.resident(request["reset"])

    def quantize(self, request):
        return quantize(request)

    def close(self, _):
        for name in list(self.contexts):
            self.drop({"name": name})
        if self.model:
            lc.llama_model_free(self.model)
            self.model = None
        return {}


def main():
    silence()
    lc.llama_backend_init()
    peer = Peer()
    channel.serve(peer)
    peer.close({})


main()
