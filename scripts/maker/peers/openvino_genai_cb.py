"""OpenVINO GenAI for scripts/bench.lua: measures one thing at a time on request, through its continuous batching, which its
LLMPipeline uses for single prompts, too. It reads GGUF files itself: of architectures llama, qwen2 and qwen3, with a tokenizer
that lists merges ("gpt2"), as files of F16, Q8_0, Q4_0 or Q4_1 by their general.file_type; of others it says what went wrong
(2026.4: "map::at" for want of merges, "Unsupported quantization type" for BF16 and F32). Quantised weights stay so, in 8 or 4 bits
with scales.

What is fed next is its own pick, where other engines are given ids: nothing else can be asked of it. Prefixes of earlier prompts
are not kept, since every run reads the same ids; so `decode` reads its depth anew, untimed.

Requests and replies, in the form that channel.py says:

    hello                                          {"name", "version", "system", "kernels"}
    ids       ids                                  what prompts are made of
    open      path threads                         {"seconds", "caches"}: rows that it can have, the default first
    context   name tokens sequences cache          a pipeline with such rows, where it is not there
    prefill   name tokens                          {"seconds"}: reads tokens and picks one
    decode    name depth steps                     {"seconds"}: after `depth` tokens
    batch     name count prompt generated          {"first", "seconds"}: to the first token of all, and to the end
    drop      name                                 nothing to do: rows go with their requests
    memory    reset                                {"peak"}: most bytes resident since the last reset
    close                                          the pipelines go
"""
import gc
import time

import channel

try:
    import numpy
    import openvino
    import openvino_genai
except Exception as fault:
    channel.give_up(f"openvino_genai cannot be imported: {fault}")

WARM = 2                                          # steps of decode that are not timed
CACHES = {"u8": "u8", "q8_0": "u8", "f16": "f16", "bf16": "bf16", "f32": "f32"}


def generation(count):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = count
    config.ignore_eos, config.do_sample = True, False
    return config


def scheduler():
    """Whole prompts at once, as LLMPipeline asks for them; rows as they are needed."""
    config = openvino_genai.SchedulerConfig()
    config.enable_prefix_caching, config.dynamic_split_fuse = False, False
    config.max_num_batched_tokens, config.cache_size = 1 << 30, 0
    return config


class Peer(channel.Ids):
    def __init__(self):
        self.path, self.threads, self.pipelines, self.named = None, 1, {}, {}

    def hello(self, _):
        core = openvino.Core()
        abilities = " ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        return {"name": "openvino", "version": "openvino-genai " + openvino_genai.__version__,
                "system": core.get_property("CPU", "FULL_DEVICE_NAME"), "kernels": abilities}

    def pipeline(self, cache):
        if cache not in self.pipelines:
            properties = {"INFERENCE_NUM_THREADS": self.threads, "KV_CACHE_PRECISION": cache}
            self.pipelines[cache] = openvino_genai.ContinuousBatchingPipeline(self.path, scheduler(), "CPU", properties)
        return self.pipelines[cache]

    def open(self, request):
        self.close(request)
        self.path, self.threads = request["path"], request["threads"]
        began = time.perf_counter()
        self.pipeline("u8")
        return {"seconds": time.perf_counter() - began, "caches": ["u8", "f16", "bf16", "f32"]}

    def context(self, request):
        self.named[request["name"]] = self.pipeline(CACHES[request["cache"]])
        return {}

    def run(self, request, prompts, generated):
        """Moments after each step of so many prompts that are added at once, the beginning first."""
        pipeline, handles = self.named[request["name"]], []
        moments = [time.perf_counter()]
        for i, prompt in enumerate(prompts):
            ids = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
            handles.append(pipeline.add_request(i, ids, generation(generated)))
        while pipeline.has_non_finished_requests():
            pipeline.step()
            moments.append(time.perf_counter())
        for handle in handles:
            found = len(handle.read_all()[0].generated_ids)
            if found != generated:
                raise RuntimeError(f"{found} tokens were generated, not {generated}")
        return moments

    def prefill(self, request):
        moments = self.run(request, [self.take(0, request["tokens"])], 1)
        return {"seconds": moments[-1] - moments[0]}

    def decode(self, request):
        steps = request["steps"]
        moments = self.run(request, [self.take(0, max(1, request["depth"]))], 1 + WARM + steps)
        return {"seconds": moments[-1] - moments[-1 - steps]}

    def batch(self, request):
        count, prompt, generated = (request[key] for key in ("count", "prompt", "generated"))
        prompts = [self.take(i * prompt, prompt) for i in range(count)]
        moments = self.run(request, prompts, generated)
        return {"first": moments[-generated] - moments[0], "seconds": moments[-1] - moments[0]}

    def drop(self, request):
        self.named.pop(request["name"], None)
        return {}

    def memory(self, request):
        return channel.resident(request["reset"])

    def close(self, _):
        self.pipelines, self.named = {}, {}
        gc.collect()
        return {}


channel.serve(Peer())
