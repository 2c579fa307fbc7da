"""Hugging Face transformers for scripts/bench.lua: measures one thing at a time on request, with PyTorch's own attention (sdpa)
and a dynamic cache in the weights' dtype. A folder, or a GGUF file, whose weights are then what it says, as plain numbers.

Requests and replies, in the form that channel.py says:

    hello                                          {"name", "version", "system", "kernels"}
    ids       ids                                  what prompts and continuations are made of
    open      path threads device                  {"seconds", "dtypes"}: what the model is measured in on "cuda" or "cpu"
    context   name tokens sequences dtype          loads the model in that dtype, where it is not; its cache grows
    prefill   name tokens                          {"seconds"}: reads tokens, logits of the last
    decode    name depth steps                     {"seconds"}: after the first `depth` tokens, which stay for the next
    batch     name count prompt generated          {"first", "seconds", "kv_bytes"}: to the first token of all, and to the end
    drop      name                                 frees what `prefill` left
    memory    reset                                {"peak"}: most bytes of the device, or resident, since the last reset
    close                                          the models go
"""
import gc
import json
import os
import re
import time

import channel

os.environ.setdefault("HF_HUB_OFFLINE", "1")      # everything is in the folder
os.environ.setdefault("TQDM_DISABLE", "1")        # no bars


try:
    import torch
    import transformers
except Exception as fault:
    channel.give_up(f"torch or transformers cannot be imported: {fault}")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WARM = 2                                          # steps of decode that are not timed
NAMES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {dtype: name for name, dtype in NAMES.items()}


def own_dtype(path):
    """The one that config.json states; of a GGUF file, whose blocks become plain numbers, bf16."""
    if path.endswith(".gguf"):
        return "bf16"
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    return DTYPES[getattr(torch, config.get("torch_dtype") or config.get("dtype") or "float32")]


def load(path, dtype):
    """The option's name for the dtype depends on the version, and so does whether a GGUF file's blocks would stay packed."""
    options = {"attn_implementation": "sdpa"}
    if path.endswith(".gguf"):
        options["gguf_file"] = os.path.basename(path)
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        path = os.path.dirname(path) or "."
    build = transformers.AutoModelForCausalLM.from_pretrained
    try:
        return build(path, dtype=NAMES[dtype], **options)
    except TypeError:
        return build(path, torch_dtype=NAMES[dtype], **options)


def kernels():
    """What the processor's products are compiled for, and the oneDNN that has most of them."""
    found = re.search(r"(?:MKL-DNN|oneDNN) (v[\d.]+)", torch.__config__.show())
    return f"{torch.backends.cpu.get_cpu_capability()}{', oneDNN ' + found.group(1) if found else ''}"


class Form:
    """The model in one dtype."""

    def __init__(self, peer, dtype):
        self.device, self.take, self.wait, self.state = peer.device, peer.take, peer.wait, None
        self.model = load(peer.path, dtype).to(NAMES[dtype]).to(peer.device).eval()

    def ids(self, rows, first, count):
        ids = [self.take(first + row * count, count) for row in range(rows)]
        return torch.tensor(ids, device=self.device)

    def forward(self, ids, cache):
        """Logits of the last position, and the cache; logits of a whole prompt would be its largest tensor."""
        result = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return result.logits, result.past_key_values

    def prefill(self, request):
        self.state = None
        ids = self.ids(1, 0, request["tokens"])
        self.wait()
        began = time.perf_counter()
        _, cache = self.forward(ids, None)
        self.wait()
        seconds = time.perf_counter() - began
        self.state = (request["tokens"], cache)
        return {"seconds": seconds}

    def decode(self, request):
        depth, steps = max(1, request["depth"]), request["steps"]
        if self.state is None or self.state[0] != depth:
            self.prefill({"tokens": depth})
        cache = self.state[1]
        ids = self.ids(1, depth, steps + WARM)
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

    def batch(self, request):
        self.state = None
        count, prompt, generated = (request[key] for key in ("count", "prompt", "generated"))
        ids = self.ids(count, 0, prompt)
        following = [self.ids(count, (i + 1) * count, 1) for i in range(generated - 1)]    # the prompt gave the first
        self.wait()
        began = time.perf_counter()
        _, cache = self.forward(ids, None)
        self.wait()
        first = time.perf_counter() - began
        for ids in following:
            _, cache = self.forward(ids, cache)
        self.wait()
        seconds = time.perf_counter() - began
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        rows = cache.get_seq_length() * count
        kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size * rows
        return {"first": first, "seconds": seconds, "kv_bytes": kv_bytes}


class Peer(channel.Ids):
    def __init__(self):
        self.path, self.device, self.forms, self.named = None, "cpu", {}, {}

    def hello(self, _):
        system = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"name": "transformers", "version": version, "system": system, "kernels": kernels()}

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def form(self, dtype):
        if dtype not in self.forms:
            self.forms[dtype] = Form(self, dtype)
        return self.forms[dtype]

    def open(self, request):
        """The processor multiplies f32 and bf16, and which is faster depends on it; a device gets the weights as they are."""
        self.close(request)
        self.path, self.device = request["path"], request["device"]
        torch.set_num_threads(request["threads"])
        dtypes = [own_dtype(self.path)] if self.device == "cuda" else ["f32", "bf16"]
        began = time.perf_counter()
        self.form(dtypes[0])
        self.wait()
        return {"seconds": time.perf_counter() - began, "dtypes": dtypes}

    def context(self, request):
        self.named[request["name"]] = self.form(request["dtype"])
        return {}

    @torch.inference_mode()
    def prefill(self, request):
        return self.named[request["name"]].prefill(request)

    @torch.inference_mode()
    def decode(self, request):
        return self.named[request["name"]].decode(request)

    @torch.inference_mode()
    def batch(self, request):
        result = self.named[request["name"]].batch(request)
        self.release()
        return result

    def release(self):
        """Others need the device's memory, too."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def drop(self, request):
        form = self.named.pop(request["name"], None)
        if form:
            form.state = None
        self.release()
        return {}

    def memory(self, request):
        if self.device != "cuda":
            return channel.resident(request["reset"])
        if request["reset"]:
            torch.cuda.reset_peak_memory_stats()
        return {"peak": torch.cuda.max_memory_allocated()}

    def close(self, _):
        self.forms, self.named = {}, {}
        self.release()
        return {}


channel.serve(Peer())
