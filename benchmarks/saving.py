"""What a save costs the training: while it waits (`--run.async_save false`), and from a copy, written beside it.

    python benchmarks/saving.py                                     # about 100 M parameters, 4 GB of memory
    python benchmarks/saving.py --width 64 --depth 2 --rounds 1     # seconds, a try

Both ways in turns in one process, one thread, with the checkpoint and the model folder that a training writes. `stands`
is how long the training stands still, `processor` what of that its own thread computes; `a step beside` is a step while
the copy is written, `a step` one while nothing is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from unitok.model import TEXT_TOKENIZER, UniTok
from unitok.processes.world import World
from unitok.reader.config import NO_READER
from unitok.train.checkpoint import TrainState
from unitok.train.config import OptimConfig, RunConfig
from unitok.train.folder import RunFolder
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.parallel.replicas import Replicas
from unitok.train.plan.model import Wanted, batch_of, build
from unitok.train.saving.saver import Saver
from unitok.tuning.config import NO_LORA

TASK, TOKENS = "text_to_image", 32
Times = dict[str, list[float]]


class Training:
    """A model, and all that a step changes."""

    def __init__(self, given: argparse.Namespace) -> None:
        planned = build(Wanted("debug", "debug", "next_token", None, NO_READER, [], NO_LORA))
        trunk = replace(planned.config.trunk, width=given.width, depth=given.depth, heads=max(1, given.width // 64))
        torch.manual_seed(0)
        self.model = UniTok(
            replace(planned.config, trunk=trunk), planned.image_tokenizer.to_empty(device="cpu"), planned.text_tokenizer
        ).train()
        for frozen in self.model.image_tokenizer.state_dict().values():
            frozen.zero_()
        self.batch = batch_of(self.model, TASK, 1, TOKENS)
        optim = OptimConfig()
        self.state = TrainState(
            self.model, AveragedWeights(self.model, optim.ema), build_optimizers(self.model, optim), 0, {}
        )

    def export(self, folder: Path, model: UniTok) -> None:
        model.save_pretrained(folder)

    def keep(self, folder: Path) -> None:
        self.model.text_tokenizer.save(folder / TEXT_TOKENIZER)

    def step(self) -> float:
        """Seconds."""
        start = time.perf_counter()
        self.model(self.batch).sum().backward()
        for optimizer in self.state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.state.average.update(self.state.step)
        self.state.step += 1
        return time.perf_counter() - start


def measure(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    training, world = Training(given), World(torch.device("cpu"))
    trainee: Any = SimpleNamespace(model=training.model, export=training.export, keep=training.keep)
    parallel, folder = Replicas(trainee, world), RunFolder(out)
    folder.open()
    times: dict[str, Times] = {}
    alone = [training.step() for _ in range(3)][1:]
    with ExitStack() as stack:
        savers = {
            way: stack.enter_context(
                Saver(trainee, parallel, folder, RunConfig(async_save=way == "beside"), world, print, None)
            )
            for way in ("waiting", "beside")
        }
        for turn in range(1 + given.rounds):  # in the first one the memory of the copy is new
            for way, saver in savers.items():
                found = times.setdefault(f"first {way}" if turn == 0 else way, {})
                wall, own = time.perf_counter(), time.thread_time()
                saver.save(training.state, {}, last=False)
                found.setdefault("stands", []).append(time.perf_counter() - wall)
                found.setdefault("processor", []).append(time.thread_time() - own)
                while way == "beside" and saver.writing:
                    found.setdefault("a step beside", []).append(training.step())
                saver.wait()
                alone.append(training.step())
    learned = sum(weight.numel() for weight in training.model.parameters() if weight.requires_grad)
    medians = {
        way: {name: round(statistics.median(seconds), 2) for name, seconds in found.items()}
        for way, found in times.items()
    }
    return {"parameters": learned, "a step": round(statistics.median(alone), 2), **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder on the disk that is to be measured; null = a temporary one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="unitok-saving-", dir=given.out) as out:
        print(json.dumps(measure(given, Path(out)), indent=2))


if __name__ == "__main__":
    main()
