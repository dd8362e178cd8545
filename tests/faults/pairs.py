"""A run of two processes that share one model: one of them is killed at some time; then the same command again."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from processes import pair
from safetensors.torch import load_file

from . import judge
from .trial import Case, Trial

TIMES = 20
"""Moments that the whole trial tries."""


class Pair:
    """The unbroken run, and those that are killed."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        folder = trial.scratch / "reference" / "pair"
        started = time.monotonic()
        assert self.run(folder) == [0, 0], (folder / "said.txt").read_text()
        self.seconds = time.monotonic() - started
        self.wanted = _contents(folder / "out")

    def run(self, folder: Path, *more: str, kill: tuple[int, float] | None = None) -> list[int]:
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.trial.train_generator(4), "--run.parallel", "fsdp", "--out", "out", *more]
        # Whoever waits for a process that died before the two had met is told so by the clock alone.
        words += ["--run.timeout_minutes", "1"]

        def work(rank: int) -> int:
            from unitok.cli.main import main

            os.chdir(folder)
            said = (folder / "said.txt").open("a")
            with said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                return main(words)

        # Who hangs says so after that minute. The harness waits longer, for a busy machine is only slow.
        return pair(work, timeout=900, kill=kill)

    def case(self, rank: int, after: float, folder: Path) -> list[str]:
        """Dies, is run again; the other process must have ended by itself, in one line."""
        codes = self.run(folder, kill=(rank, after))
        fell = [] if codes[1 - rank] in (0, 2) else [f"the other process ended with {codes[1 - rank]}"]
        again = ["--resume"] if (folder / "out").exists() else []
        codes = self.run(folder, *again)
        said = (folder / "said.txt").read_text()
        fell += [] if codes == [0, 0] else [f"the second run ended with {codes}: {said[-300:]}"]
        fell += ["traceback"] if "Traceback" in said else []
        return fell + judge.litter(folder / "out") + judge.same(_contents(folder / "out"), self.wanted)


def _contents(out: Path) -> dict[str, Any]:
    """As `judge.contents`. Of shards what they hold: their order in a file is not always the same, nor is it said which
    process writes a single number."""
    found = {name: value for name, value in judge.contents(out).items() if "/shard-" not in name}
    for path in sorted(out.rglob("shard-*.safetensors")):
        for name, tensor in load_file(path).items():
            place = path.parent if tensor.ndim == 0 else path
            found[f"{place.relative_to(out)}: {name}"] = tensor.numpy().tobytes()
    return found


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    import unitok.train.generator
    import unitok.train.parallel.shards  # noqa: F401 (before the processes are forked)

    runs = Pair(trial)
    for _ in range(max(1, round(TIMES * share))):
        rank, after = draw.randrange(2), draw.uniform(0, runs.seconds)
        yield Case(f"pair: process {rank} after {after:.2f} s", partial(runs.case, rank, after))
