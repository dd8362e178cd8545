"""A run of two processes that share one model: at some time one of them is killed, asked to stop, or hangs; then the
same command again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from processes import Strike, pair
from safetensors.torch import load_file

from . import judge
from .trial import Case, Trial

TIMES = 20
"""Moments of kills that the whole trial tries."""
OTHERS = 6
"""Moments of each other kind."""
GRACE = 120.0
"""Seconds from a request to stop to a kill, as the script for SLURM in docs/scale.md asks for."""
PATIENCE = 0.2
"""Minutes that a process waits for one that hangs."""


class Pair:
    """The unbroken run, and those that are killed."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        folder = trial.scratch / "reference" / "pair"
        started = time.monotonic()
        assert self.run(folder) == [0, 0], (folder / "said.txt").read_text()
        self.seconds = time.monotonic() - started
        self.wanted = _contents(folder / "out")

    def run(
        self,
        folder: Path,
        *more: str,
        strike: Strike | None = None,
        minutes: float = 10,
        timeout: float = 900,
    ) -> list[int]:
        """`minutes`: how long one process waits for the other."""
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.trial.train_generator(4), "--run.parallel", "fsdp", "--run.timeout_minutes", str(minutes)]
        words += ["--out", "out", *more]

        def work(rank: int) -> int:
            from unitok.cli.main import main

            os.chdir(folder)
            said = (folder / "said.txt").open("a")
            with said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                return main(words)

        # The harness waits longer than the processes, for a busy machine is only slow.
        return pair(work, timeout=timeout, strike=strike)

    def killed(self, strike: Strike, folder: Path) -> list[str]:
        """The other process must have ended by itself, in one line."""
        # Whoever waits for a process that died before the two had met is told so by the clock alone.
        code = self.run(folder, strike=strike, minutes=1)[1 - strike.rank]
        return self._again(folder, [] if code in (0, 2) else [f"the other process ended with {code}"])

    def asked_to_stop(self, strike: Strike, folder: Path) -> list[str]:
        """Both save and leave in time. A process that has not begun to train dies of the signal."""
        codes = self.run(folder, strike=strike, minutes=1, timeout=GRACE)
        mine, other = codes[strike.rank], codes[1 - strike.rank]
        stopped = 128 + signal.SIGTERM
        held = (mine, other) in [(0, 0), (stopped, stopped)] or (mine == -signal.SIGTERM and other in (0, 2))
        return self._again(folder, [] if held else [f"the processes ended with {codes}"])

    def hangs(self, strike: Strike, folder: Path) -> list[str]:
        """The other process says its rank and where it stands."""
        code = self.run(folder, strike=strike, minutes=PATIENCE)[1 - strike.rank]
        said = (folder / "said.txt").read_text()
        told = f"process {1 - strike.rank} of 2 waited {PATIENCE:g} minutes for the others at " in said
        fell = [] if code == 0 or (code == 2 and told) else [f"the other process ended with {code}: {said[-300:]}"]
        return self._again(folder, fell)

    def _again(self, folder: Path, fell: list[str]) -> list[str]:
        """What is wrong after the same command has been run to its end."""
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
    kinds = [
        ("is killed", signal.SIGKILL, runs.killed, TIMES),
        ("is asked to stop", signal.SIGTERM, runs.asked_to_stop, OTHERS),
        ("hangs", signal.SIGSTOP, runs.hangs, OTHERS),
    ]
    for what, number, case, times in kinds:
        for _ in range(max(1, round(times * share))):
            strike = Strike(draw.randrange(2), draw.uniform(0, runs.seconds), number)
            yield Case(f"pair: process {strike.rank} {what} after {strike.after:.2f} s", partial(case, strike))
