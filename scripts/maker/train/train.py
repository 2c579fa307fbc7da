"""Trains the default model on the CPU, resumably.

    python scripts/maker/train/train.py --books books.txt.gz --tokenizer DIR --work DIR (--minutes M | --tokens N) [--workers 2]
        [--from models/tiny --at 84.5e6] [--precision f32]

Each worker process has one thread; a step's micro-batches are handed out as workers come free, so that a core which others
use slows the run down but does not stall it. Progress is a share of --minutes (of running, over all resumed runs) or of
--tokens. It rules the stages and the learning rate: with --tokens the run is a function of its arguments up to the order of
floating-point sums; with --minutes it fits the time there is. DIR/last.pt is the checkpoint, also
written on SIGTERM; the same command goes on from it.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import signal
import threading
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.multiprocessing as mp
from tokenizers import Tokenizer

import corpus
import export
import hints
import model as llama
import recipe
from optimizer import Optimizer

MICRO_TOKENS = 2048
CHUNK_STEPS = 48  # rows are made for so many steps at a time


def parameters(model, teacher):
    return [*model.named_parameters(), *(("hints." + name, p) for name, p in teacher.named_parameters())]


def micro_batches(shared, model, teacher, compiled, grads, bf16):
    """Takes micro-batches of the current step until none is left; adds up gradients. Returns the sums of the loss and of what
    hints.Hints gives for the log."""
    model.zero_grad(set_to_none=True)
    teacher.zero_grad(set_to_none=True)
    rows, context = shared["shape"][0].item(), shared["shape"][1].item()
    size = max(1, MICRO_TOKENS // context)
    weight = shared["hints"].value
    keep = hints.LAYER if weight else None
    total = torch.zeros(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        while True:
            with shared["next"].get_lock():
                at = shared["next"].value
                shared["next"].value = at + size
            if at >= rows:
                break
            block = slice(at, min(at + size, rows))
            ids = shared["tokens"][block, : context + 1].long()
            loss, plain, kept = compiled(ids[:, :-1], ids[:, 1:], shared["weights"][block, 1 : context + 1], keep=keep)
            total[0] += plain
            if weight:
                with torch.autocast("cpu", enabled=False):
                    hinted, sums = teacher(model, ids[:, :-1], kept)
                loss = loss + weight * hinted
                total[1:] += sums
            loss.backward()
    for (_, p), g in zip(parameters(model, teacher), grads):
        if p.grad is None:
            g.zero_()
        else:
            g.copy_(p.grad)
    return total


def helper(shared, model, teacher, grads, losses, bf16):
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process decides when to stop
    parent = os.getppid()

    def follow():
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    compiled = torch.compile(model, dynamic=False)
    while True:
        shared["start"].wait()
        if shared["stop"].value:
            return
        losses.copy_(micro_batches(shared, model, teacher, compiled, grads, bf16))
        shared["end"].wait()


def learning_rate(progress, steps):
    warm = min(1.0, (steps + 1) / recipe.WARMUP_STEPS)
    at, factors = zip(*recipe.LR_KNOTS)
    return warm * float(np.interp(progress * sum(s["share"] for s in recipe.STAGES), at, factors))


def stage_at(progress):
    total = sum(s["share"] for s in recipe.STAGES)
    bound = 0
    for i, stage in enumerate(recipe.STAGES):
        bound += stage["share"] / total
        if progress < bound or i == len(recipe.STAGES) - 1:
            return i


def chunks(tokenizer, books, at):
    """Endless (stage, tokens, weights) per step. at: the stage and seeds to go on from, kept up to date for checkpoints."""
    pool = concurrent.futures.ThreadPoolExecutor(1)

    def make(index, seed):
        stage = recipe.STAGES[index]
        return corpus.rows(tokenizer, books, stage, index, stage["batch"] * CHUNK_STEPS, seed)

    while True:
        index = at["stage"]
        coming = pool.submit(make, index, at["seeds"][index])
        while index == at["stage"]:
            tokens, weights, at["seeds"][index] = coming.result()
            coming = pool.submit(make, index, at["seeds"][index])
            batch = recipe.STAGES[index]["batch"]
            for i in range(0, len(tokens), batch):
                if index != at["stage"]:
                    break
                yield index, torch.from_numpy(tokens[i : i + batch].astype("int32")), torch.from_numpy(weights[i : i + batch]).float()


def save(path, **what):
    torch.save(what, str(path) + ".new")
    os.replace(str(path) + ".new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--minutes", type=float)
    limit.add_argument("--tokens", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--from", dest="origin", type=pathlib.Path, help="without a checkpoint: exported weights to go on from")
    parser.add_argument("--at", type=float, default=0, help="with --from: how many tokens those have seen")
    parser.add_argument("--precision", choices=("bf16", "f32"), default="bf16", help="of products; f32 is faster where bfloat16 is slow")
    parser.add_argument("--save-every", type=float, default=120, metavar="SECONDS")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.manual_seed(recipe.SEED)
    tokenizer = Tokenizer.from_file(str(a.tokenizer / "tokenizer.json"))
    books = corpus.books(a.books)
    model = llama.Llama(recipe.MODEL)
    teacher = hints.Hints(recipe.MODEL, tokenizer)
    named = parameters(model, teacher)
    optimizer = Optimizer(named, recipe.LR_MUON, recipe.LR_ADAM)
    seeds = [1 + i * recipe.STAGE_SEEDS for i in range(len(recipe.STAGES))]
    run = {"seconds": 0.0, "tokens": 0, "steps": 0, "stage": 0, "seeds": seeds}
    last, bf16 = a.work / "last.pt", a.precision == "bf16"
    if a.origin and not last.exists():
        model.load_state_dict(export.load(a.origin).state_dict())
        run["tokens"], run["steps"] = int(a.at), recipe.WARMUP_STEPS
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        teacher.load_state_dict(saved["hints"])
        optimizer.load_state_dict(saved["optimizer"])
        run = saved["run"]
        run["seeds"] += seeds[len(run["seeds"]) :]  # stages added since
    log = open(a.work / "log.jsonl", "a")

    context = mp.get_context("spawn")
    model.share_memory()
    teacher.share_memory()
    most_rows = max(s["batch"] for s in recipe.STAGES)
    longest = max(s["context"] for s in recipe.STAGES) + 1
    shared = {
        "tokens": torch.zeros(most_rows, longest, dtype=torch.int32).share_memory_(),
        "weights": torch.zeros(most_rows, longest).share_memory_(),
        "shape": torch.zeros(2, dtype=torch.int64).share_memory_(),
        "next": context.Value("q", 0), "stop": context.Value("b", 0), "hints": context.Value("d", 0.0),
        "start": context.Barrier(a.workers), "end": context.Barrier(a.workers),
    }
    grads = [[torch.zeros_like(p).share_memory_() for _, p in named] for _ in range(a.workers)]
    losses = [torch.zeros(5).share_memory_() for _ in range(a.workers)]
    helpers = [context.Process(target=helper, args=(shared, model, teacher, grads[i], losses[i], bf16), daemon=True) for i in range(1, a.workers)]
    for h in helpers:
        h.start()

    asked_to_stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.append(True))

    names = [name for name, _ in named]
    compiled = torch.compile(model, dynamic=False)
    clock, saved_at, since = time.time(), time.time(), [torch.zeros(5), 0, time.time()]
    for index, tokens, weights in chunks(tokenizer, books, run):
        progress = run["seconds"] / 60 / a.minutes if a.minutes else run["tokens"] / a.tokens
        if progress >= 1 or asked_to_stop:
            break
        run["stage"] = stage_at(progress)
        rows, length = tokens.shape
        shared["tokens"][:rows, :length], shared["weights"][:rows, :length] = tokens, weights
        shared["shape"].copy_(torch.tensor([rows, length - 1]))
        shared["next"].value = 0
        shared["hints"].value = recipe.STAGES[index].get("hints", 0.0)
        if shared["hints"].value and not teacher.planted:
            teacher.plant(model, tokens[:, :-1].long())
        shared["start"].wait()
        losses[0].copy_(micro_batches(shared, model, teacher, compiled, grads[0], bf16))
        shared["end"].wait()
        total = sum(losses)
        torch.set_num_threads(a.workers)  # the others wait
        weight = weights[:, 1:].sum()
        summed = {name: sum(g) / weight for name, g in zip(names, zip(*grads))}
        norm = torch.stack([g.norm() for g in summed.values()]).norm()
        if not norm.isfinite():
            for h in helpers:
                h.kill()
            raise SystemExit(f"step {run['steps']}: gradients are no numbers; go on from {last} with --precision f32")
        optimizer.step({n: g * min(1.0, 1.0 / norm.item()) for n, g in summed.items()} if norm > 1 else summed, learning_rate(progress, run["steps"]))
        torch.set_num_threads(1)

        now = time.time()
        run["seconds"] += now - clock
        clock = now
        count = rows * (length - 1)
        run["tokens"] += count
        run["steps"] += 1
        since[0] += total
        since[1] += count
        if run["steps"] % 20 == 0:
            loss, people, places, looking, looks = since[0].tolist()
            line = {"step": run["steps"], "tokens": run["tokens"], "seconds": round(run["seconds"]), "stage": recipe.STAGES[index]["name"],
                "loss": round(loss / since[1], 4), "norm": round(norm.item(), 3), "tokens_per_second": round(since[1] / (now - since[2]))}
            if places and looks:
                line["people"], line["looking"] = round(people / places, 3), round(looking / looks, 3)
            log.write(json.dumps(line) + "\n")
            log.flush()
            since = [torch.zeros(5), 0, now]
        if now - saved_at > a.save_every:
            saved_at = now
            save(last, model=model.state_dict(), hints=teacher.state_dict(), optimizer=optimizer.state_dict(), run=run)
    save(last, model=model.state_dict(), hints=teacher.state_dict(), optimizer=optimizer.state_dict(), run=run)
    shared["stop"].value = 1
    shared["start"].wait()


if __name__ == "__main__":
    main()
