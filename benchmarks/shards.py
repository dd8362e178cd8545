"""What a model in shards (fsdp) costs and saves beside whole copies (ddp), on processes of this machine.

    python benchmarks/shards.py                       # a step at `shapes`, memory at 200 M parameters
    python benchmarks/shards.py --parts memory        # that alone; takes 10 GB
    python benchmarks/shards.py --preset debug --rows 2 --rounds 1 --steps 2 --width 64 --depth 2    # seconds, a try

Steps: the same batch in both ways, in turns in the same processes, one thread each. A step is timed by the clock, which
says little where the cores are busy with other work, and by the processor time of the processes, which leaves out
waiting. Memory: each way has processes of its own. It is what a process has grown since before the model was built:
held between two steps (weights, moments, averages), and at the most within a step, when gradients and what is gathered
are there too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import TRUNK_PRESETS
from unitok.model import UniTok
from unitok.processes.world import World, join
from unitok.reader.config import NO_READER
from unitok.sequence import PackedBatch
from unitok.train.config import OptimConfig, RunConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.parallel.replicas import Replicas
from unitok.train.parallel.shards import Shards
from unitok.train.plan.model import Wanted, batch_of, build
from unitok.tuning.config import NO_LORA

TASK, TOKENS = "text_to_image", 32


class Training:
    """A model that is trained in one of the two ways on one batch."""

    def __init__(self, way: str, planned: UniTok, batch: PackedBatch, world: World) -> None:
        torch.manual_seed(0)
        model = UniTok(planned.config, planned.image_tokenizer, planned.text_tokenizer).train()
        trainee: Any = SimpleNamespace(model=model, blocks=list(model.trunk.blocks), exports_all=True)
        run = RunConfig(precision="fp32")
        self.parallel = Shards(trainee, run, world) if way == "fsdp" else Replicas(trainee, world)
        model = trainee = None
        self.optimizers = build_optimizers(self.parallel.model, OptimConfig())
        self.average = AveragedWeights(self.parallel.model, OptimConfig().ema)
        self.parallel.start()
        self.weights = [weight for one in self.optimizers for group in one.param_groups for weight in group["params"]]
        self.batch = batch

    def step(self, number: int) -> None:
        with self.parallel.exchanging(last=True):
            self.parallel.forward(self.batch).sum().backward()
        self.parallel.clip(self.weights, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(number)


def steps(given: argparse.Namespace, world: World) -> dict[str, Any]:
    """Seconds of a step, each way: by the clock, and of a processor, the mean of the processes."""
    planned = planned_model(given.preset, given.tokenizer)
    batch = batch_of(planned, TASK, given.rows, TOKENS)
    both = {way: Training(way, planned, batch, world) for way in ("ddp", "fsdp")}
    clock: dict[str, list[float]] = {way: [] for way in both}
    processor: dict[str, list[float]] = {way: [] for way in both}
    for turn in range(1 + given.rounds):  # the first is not counted
        for way, training in both.items():
            for number in range(given.steps):
                world.wait()
                start, own = time.perf_counter(), time.process_time()
                training.step(number)
                own = time.process_time() - own
                world.wait()
                if turn:
                    clock[way].append(time.perf_counter() - start)
                    processor[way].append(own)
    return {
        way: {
            "seconds": round(statistics.median(clock[way]), 4),
            "processor_seconds": round(statistics.mean(world.gather(statistics.median(processor[way]))), 4),
        }
        for way in both
    }


def memory(given: argparse.Namespace, world: World) -> dict[str, Any]:
    """Bytes of one way, the mean of the processes."""
    planned = planned_model(given.preset, given.tokenizer, width=given.width, depth=given.depth)
    batch = batch_of(planned, TASK, 1, TOKENS)
    small = planned_model("debug", "debug")
    Training(given.way, small, batch_of(small, TASK, 1, TOKENS), world).step(0)  # what torch takes for itself
    before = resident()
    training = Training(given.way, planned, batch, world)
    for number in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        training.step(number)
    met = world.gather((resident() - before, peak() - before))
    parameters = sum(weight.numel() for weight in planned.parameters() if weight.requires_grad)
    held, most = (statistics.mean(numbers) for numbers in zip(*met, strict=True))
    return {"parameters": parameters, "held_mb": round(held / 1e6), "peak_mb": round(most / 1e6)}


def planned_model(preset: str, tokenizer: str, **trunk: int) -> UniTok:
    """Without memory."""
    model = build(Wanted(preset, tokenizer, "next_token", None, NO_READER, [], NO_LORA))
    if not trunk:
        return model
    width, depth = trunk["width"], trunk["depth"]
    config = replace(model.config, trunk=replace(model.config.trunk, width=width, depth=depth, heads=width // 64))
    with torch.device("meta"):
        return UniTok(config, model.image_tokenizer, model.text_tokenizer).train()


def resident() -> int:
    """Bytes that are in use."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Bytes, since the peak began anew."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


PARTS = {"steps": steps, "memory": memory}


def several(given: argparse.Namespace, part: str, way: str = "") -> dict[str, Any]:
    """What the first of several processes finds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [sys.executable, __file__, *sys.argv[1:], "--process", part, "--way", way]
    meet = {"WORLD_SIZE": str(given.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = []
    for rank in range(given.processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(words, env={**os.environ, **meet, **place}, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process has failed: see above")
    return json.loads(said[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=TRUNK_PRESETS, default="shapes")
    parser.add_argument("--tokenizer", choices=TOKENIZER_PRESETS, default="shapes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="of a process, in a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--width", type=int, default=1024, help="of the model whose memory is measured")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--process", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        with join("cpu", 1) as world:
            found = PARTS[given.process](given, world)
            if world.is_main:
                print(json.dumps(found))
        return
    print(f"{given.processes} processes, one thread each; in shards, in whole copies:", flush=True)
    if "steps" in given.parts:
        taken = several(given, "steps")
        print(json.dumps({"preset": given.preset, "rows": given.rows, "steps": taken}))
        for name, what in (("seconds", "by the clock"), ("processor_seconds", "of a processor")):
            shards, copies = taken["fsdp"][name], taken["ddp"][name]
            print(f"a step at `{given.preset}`: {shards:.3f}, {copies:.3f} s {what} ({shards / copies:.2f} times)")
    if "memory" in given.parts:
        taken = {}
        for way in ("ddp", "fsdp"):
            taken[way] = several(given, "memory", way)
            print(json.dumps({"memory": {way: taken[way]}}), flush=True)
        model = f"a model of {taken['ddp']['parameters'] / 1e6:.0f} M parameters"
        for name, what in (("held_mb", "between two steps"), ("peak_mb", "at the most")):
            shards, copies = taken["fsdp"][name], taken["ddp"][name]
            print(f"{model}: {shards:,}, {copies:,} MB a process {what} ({shards / copies:.2f} times)")


if __name__ == "__main__":
    main()
