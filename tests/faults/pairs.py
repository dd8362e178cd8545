"""Commands of two processes: at some moment one of them is killed, asked to stop, or hangs; then the same command
again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from processes import Strike, pair
from safetensors.torch import load_file

from . import judge
from .server import preload
from .trial import Case, Trial, drawn

KILLS = 50
"""Moments of kills of each command that the whole trial tries."""
OTHERS = 10
"""Moments of each other strike."""
PATIENCE = 0.2
"""Minutes that a process waits for one that is gone, at least."""


def _contents(out: Path) -> dict[str, Any]:
    """As `judge.contents`. Of shards what they hold: their order in a file is not always the same, nor is it said which
    process writes a single number."""
    found = {name: value for name, value in judge.contents(out).items() if "/shard-" not in name}
    for path in sorted(out.rglob("shard-*.safetensors")):
        for name, tensor in load_file(path).items():
            place = path.parent if tensor.ndim == 0 else path
            found[f"{place.relative_to(out)}: {name}"] = tensor.numpy().tobytes()
    return found


@dataclass
class Pair:
    """A command of two processes: its unbroken run, and those that are struck."""

    trial: Trial
    name: str
    words: list[str]
    finished: Callable[[Path], list[Path]]
    """The files of a folder that no other run may make again."""
    contents: Callable[[Path], dict[str, Any]] = judge.contents
    trains: bool = False

    @cached_property
    def unbroken(self) -> tuple[float, dict[str, Any]]:
        """Its seconds and what it leaves."""
        preload()  # once, before the processes are forked
        folder = self.trial.scratch / "reference" / f"pair-{self.name.replace(' ', '-')}"
        started = time.monotonic()
        assert self.run(folder) == [0, 0], (folder / "said.txt").read_text()
        return time.monotonic() - started, self.contents(folder / "out")

    def run(
        self, folder: Path, *more: str, strike: Strike | None = None, minutes: float = 10, timeout: float = 900
    ) -> list[int]:
        """`minutes`: how long one process waits for the other."""
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.words, *(["--run.timeout_minutes", str(minutes)] if self.trains else []), "--out", "out", *more]

        def work(rank: int) -> int:
            from unitok.cli.main import main
            from unitok.processes import world

            if not self.trains:  # they have no such option: an hour, unless a launcher ends them
                world.join = partial(world.join, timeout_minutes=minutes)  # type: ignore[assignment]
            os.chdir(folder)
            said = (folder / "said.txt").open("a")
            with said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                return main(words)

        # The harness waits longer than the processes, for a busy machine is only slow.
        return pair(work, timeout=timeout, strike=strike)

    @property
    def patience(self) -> float:
        """Minutes that one process waits for the other when one is struck: longer than it would be slow."""
        return max(PATIENCE, round(self.unbroken[0] / 30, 1))

    def struck(self, rank: int, part: float, number: int, folder: Path) -> tuple[list[int], float]:
        """The exit codes where a process is struck after a part of the time of the unbroken run, and the seconds from
        then on. Struck earlier, where they run faster than they did before."""
        after = part * self.unbroken[0]
        while True:
            started = time.monotonic()
            codes = self.run(folder, strike=Strike(rank, after, number), minutes=self.patience)
            if codes != [0, 0]:
                return codes, time.monotonic() - started - after
            shutil.rmtree(folder)
            after /= 2

    def killed(self, rank: int, part: float, folder: Path) -> list[str]:
        """The other process must have ended by itself, its work done or in one line."""
        code = self.struck(rank, part, signal.SIGKILL, folder)[0][1 - rank]
        lines = sum(line.startswith("error: ") for line in (folder / "said.txt").read_text().splitlines())
        held = (code, lines) in [(0, 0), (2, 1)]
        return self._goes_on(folder, [] if held else [f"the other process ended with {code} and {lines} lines"])

    def asked_to_stop(self, rank: int, part: float, folder: Path) -> list[str]:
        """Both save and leave in time. A process that has not begun to train dies of the signal."""
        codes, seconds = self.struck(rank, part, signal.SIGTERM, folder)
        if codes == [judge.STOPPED] * 2:
            late = [f"stopped after {seconds:.0f} s"] if seconds > judge.GRACE else []
            return self._goes_on(folder, late, judge.without_older_checkpoints)
        alone = codes[rank] == -signal.SIGTERM and codes[1 - rank] in (0, 2)
        return self._goes_on(folder, [] if alone else [f"the processes ended with {codes}"])

    def hangs(self, rank: int, part: float, folder: Path) -> list[str]:
        """The other process says its rank and where it stands."""
        code = self.struck(rank, part, signal.SIGSTOP, folder)[0][1 - rank]
        said = (folder / "said.txt").read_text()
        told = f"process {1 - rank} of 2 waited {self.patience:g} minutes for the others at " in said
        fell = [] if code == 0 or (code == 2 and told) else [f"the other process ended with {code}: {said[-300:]}"]
        return self._goes_on(folder, fell)

    def _goes_on(
        self, folder: Path, fell: list[str], judged: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> list[str]:
        """What is wrong after the same command has run to its end. `judged`: what must be as in an unbroken run."""
        out = folder / "out"
        done = {path: path.stat() for path in self.finished(out)}  # a file that is made again has another place
        reported = (out / "report.json").exists()
        codes = self.run(folder, *(["--resume"] if self.trains and out.exists() else []))
        said = (folder / "said.txt").read_text()
        wanted = [2, 2] if reported else [0, 0]  # a folder with a report takes no other
        fell += [] if codes == wanted else [f"the second run ended with {codes}: {said[-300:]}"]
        fell += ["traceback"] if "Traceback" in said else []
        again = [path.name for path, was in done.items() if not os.path.samestat(path.stat(), was)]
        fell += [f"made twice: {', '.join(again[:5])}"] if again else []
        return fell + judge.litter(out) + judge.same(judged(self.contents(out)), judged(self.unbroken[1]))


def pairs(trial: Trial) -> list[Pair]:
    """All commands that share their work between processes."""
    ddp, fsdp = (["--run.parallel", how] for how in ("ddp", "fsdp"))
    tokenizer, generator = [*trial.train_tokenizer(4), *ddp], [*trial.train_generator(4), *fsdp]
    return [
        Pair(trial, "train tokenizer by ddp", tokenizer, lambda out: [], _contents, trains=True),
        Pair(trial, "train generator by fsdp", generator, lambda out: [], _contents, trains=True),
        Pair(trial, "encode", trial.encode(shard_size=1), _told),
        Pair(trial, "eval suite", trial.suite(), lambda out: [*out.glob("shards/*.safetensors")]),
    ]


def _told(out: Path) -> list[Path]:
    """The shards of codes that are done: there is a file that says so, until codes.json lists all."""
    return [path.with_suffix(".safetensors") for path in out.glob("codes-*.json")]


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of 220 strikes."""
    found: list[Case] = []
    for runs in pairs(trial):
        strikes = [("is killed", runs.killed, KILLS)]
        if runs.name.endswith("fsdp"):
            strikes += [("is asked to stop", runs.asked_to_stop, OTHERS), ("hangs", runs.hangs, OTHERS)]
        for what, strike, times in strikes:
            for number in range(times):
                rank, part = draw.randrange(2), draw.random()
                name = f"pair: {runs.name}: process {rank} {what} after {part:.1%} of its time ({number})"
                found.append(Case(name, partial(strike, rank, part), f"{runs.name}, one {what}"))
    yield from drawn(found, draw, share)
