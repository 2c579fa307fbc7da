"""Hugging Face transformers for scripts/bench.lua: measures one thing at a time on request, with PyTorch's own attention (sdpa)
and a dynamic cache in the weights' dtype.

Requests and replies, in the form that channel.py says:

    hello                                          {"name", "version", "system"}
    open      path threads device                  {"seconds", "dtype"}: the model of a folder, on "cuda" or "cpu"
    context   name tokens sequences                nothing to do: the cache grows
    prefill   name tokens seed                     {"seconds"}: reads tokens, logits of the last
    decode    name depth steps seed                {"seconds"}: after the first `depth` tokens, which stay for the next
    batch     name count prompt generated seed     {"first", "seconds", "kv_bytes"}: to the first token of all, and to the end
    drop      name                                 frees what `prefill` left
    memory    reset                                {"peak"}: most bytes of the device, or resident, since the last reset
    close                                          the model goes
"""
import gc
import json
import os
import random
import time

import channel

os.environ.setdefault("HF_HUB_OFFLINE", "1")      # everything is in the folder


try:
    import torch
    import transformers
except Exception as fault:
    channel.give_up(f"torch or transformers cannot be imported: {fault}")

WARM = 2                                          # steps of decode that are not timed
DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def load(path):
    """In the dtype that config.json states; the option's name depends on the version."""
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    dtype = getattr(torch, config.get("torch_dtype") or config.get("dtype") or "float32")
    build = transformers.AutoModelForCausalLM.from_pretrained
    try:
        return build(path, dtype=dtype, attn_implementation="sdpa")
    except TypeError:
        return build(path, torch_dtype=dtype, attn_implementation="sdpa")


class Peer:
    def __init__(self):
        self.model, self.device, self.state = None, "cpu", None

    def hello(self, _):
        system = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"name": "transformers", "version": version, "system": system}

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def open(self, request):
        self.close(request)
        self.device = request["device"]
        torch.set_num_threads(request["threads"])
        began = time.perf_counter()
        self.model = load(request["path"]).to(self.device).eval()
        self.wait()
        dtype = next(self.model.parameters()).dtype
        self.vocab = self.model.config.vocab_size
        return {"seconds": time.perf_counter() - began, "dtype": DTYPES[dtype]}

    def ids(self, rows, count, seed):
        rng = random.Random(seed)
        ids = [[rng.randrange(3, self.vocab) for _ in range(count)] for _ in range(rows)]
        return torch.tensor(ids, device=self.device)

    def forward(self, ids, cache):
        """Logits of the last position, and the cache; logits of a whole prompt would be its largest tensor."""
        result = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return result.logits, result.past_key_values

    def context(self, _):
        return {}

    @torch.inference_mode()
    def prefill(self, request):
        self.state = None
        ids = self.ids(1, request["tokens"], request["seed"])
        self.wait()
        began = time.perf_counter()
        _, cache = self.forward(ids, None)
        self.wait()
        seconds = time.perf_counter() - began
        self.state = (request["tokens"], cache)
        return {"seconds": seconds}

    @torch.inference_mode()
    def decode(self, request):
        depth, steps = max(1, request["depth"]), request["steps"]
        if self.state is None or self.state[0] != depth:
            self.prefill({"tokens": depth, "seed": request["seed"]})
        cache = self.state[1]
        ids = self.ids(1, steps + WARM, request["seed"] + 1)
        began = 0.0
        for i in range(steps + WARM):
            if i == WARM:
                self.wait()
                began = time.perf_counter()
            _, cache = self.forward(ids[:, i:i + 1], cache)
        self.wait()
        seconds = time.perf_counter() - began
        cache.crop(-(steps + WARM))                # by how many: other versions take no length
        return {"seconds": seconds}

    @torch.inference_mode()
    def batch(self, request):
        self.state = None
        count, prompt, generated = (request[key] for key in ("count", "prompt", "generated"))
        ids = self.ids(count, prompt + generated, request["seed"])
        self.wait()
        began = time.perf_counter()
        _, cache = self.forward(ids[:, :prompt], None)
        self.wait()
        first = time.perf_counter() - began
        for i in range(prompt, prompt + generated - 1):       # the prompt gave the first
            _, cache = self.forward(ids[:, i:i + 1], cache)
        self.wait()
        seconds = time.perf_counter() - began
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        rows = cache.get_seq_length() * count
        kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size * rows
        del cache
        self.release()
        return {"first": first, "seconds": seconds, "kv_bytes": kv_bytes}

    def release(self):
        """Others need the device's memory, too."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def drop(self, _):
        self.state = None
        self.release()
        return {}

    def memory(self, request):
        if self.device != "cuda":
            return channel.resident(request["reset"])
        if request["reset"]:
            torch.cuda.reset_peak_memory_stats()
        return {"peak": torch.cuda.max_memory_allocated()}

    def close(self, _):
        self.model = self.state = None
        self.release()
        return {}


channel.serve(Peer())
