"""Kills: SIGKILL just before the n-th change below --out, and at random moments; then the same command again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from . import judge
from .trial import Answer, Case, Trial, copy

Judged = Callable[[dict[str, Any]], dict[str, Any]]

EDGE, BEFORE = 10, 12
"""All of the last so many changes are tried, and so many of those before."""
RANDOM = 5
"""Random moments of a command."""
ALL = 50
"""Moments of one that takes long in earnest (`Command.long`), the changes among them; the others are random."""


def fingerprint(folder: str) -> str:
    """Runs in the server's child: opens a finished model or tokenizer."""
    from tokenizers_vq.base import load_tokenizer
    from unitok.model import UniTok

    if (Path(folder) / "text_tokenizer").exists() or (Path(folder) / ".incoming" / "text_tokenizer").exists():
        return UniTok.from_pretrained(folder).fingerprint()
    return load_tokenizer(folder).fingerprint()


class Command:
    """A command that is killed and run again. `long`: it takes long in earnest, so it is tried more often."""

    def __init__(
        self,
        trial: Trial,
        name: str,
        words: list[str],
        again: list[str] | None = None,
        start: str = "",
        long: bool = False,
    ) -> None:
        self.trial, self.name, self.start, self.long = trial, name, start, long
        self.words = [*words, "--out", "out"]
        self.again = self.words if again is None else [*self.words, *again]
        reference = trial.scratch / "reference" / name.replace(" ", "-")
        self._begin(reference)
        answer = trial.run(self.words if not start else self.again, reference, out=str(reference / "out"))
        assert answer["code"] == 0, (name, answer["stderr"])
        self.events: int = len(answer["events"])
        self.seconds: float = answer["seconds"]
        self.wanted = judge.contents(reference / "out")
        self.trains = name.startswith("train")

    def _begin(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        if self.start:
            copy(Path(self.trial.place(self.start)), folder / "out")

    def killed_at(self, change: int, torn: bool, folder: Path) -> list[str]:
        """Dies just before a change."""
        self._begin(folder)
        return self._judged(self._run(folder, die_at=change, torn=torn), folder)

    def killed_after(self, part: float, folder: Path) -> list[str]:
        """Dies after a part of the time that the unbroken run took."""
        return self._judged(self.struck_after(part, folder), folder)

    def struck_after(self, part: float, folder: Path, **strike: object) -> Answer:
        """How it ended that was struck after a part of its time: earlier, where it runs faster than it did before."""
        after = part * self.seconds
        while True:
            self._begin(folder)
            answer = self._run(folder, strike_after=after, **strike)
            if answer["struck"]:
                return answer
            shutil.rmtree(folder)
            after /= 2

    def _run(self, folder: Path, **strike: object) -> Answer:
        words = self.words if not self.start else self.again
        return self.trial.run(words, folder, out=str(folder / "out"), allowed=[str(folder / "tmp")], **strike)

    def _judged(self, died: Answer, folder: Path) -> list[str]:
        fell = judge.ended(died | {"ended": "itself"}, codes=(-9, 0))  # whoever killed it
        return fell + self._between(folder) + self.goes_on(folder, self.wanted)

    def goes_on(self, folder: Path, wanted: dict[str, Any], judged: Judged = dict) -> list[str]:
        """Runs it again to its end, and then once more. `judged`: what of the folder must be as wanted."""
        out = folder / "out"
        rest = self.trial.run(self.again, folder, out=str(out))
        if self.name.startswith("eval") and rest["code"] == 2 and (out / "report.json").exists():
            return judge.same(judge.contents(out), wanted)  # it had ended before it was struck
        fell = judge.ended(rest, codes=(0,)) + judge.litter(out)
        fell += judge.same(judged(judge.contents(out)), judged(wanted))
        if self.trains:  # once more: it says so and changes nothing
            before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
            fell += judge.ended(self.trial.run(self.again, folder, out=str(out)), codes=(0,))
            if {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} != before:
                fell.append("a finished run was changed")
        return fell

    def _between(self, folder: Path) -> list[str]:
        """What must hold after the kill: an earlier model opens, and nothing says finished without its model."""
        run = folder / "out" / "run.json"
        finished = run.exists() and '"finished": true' in run.read_text()
        if not self.trains or not (self.start or finished):
            return []
        answer = self.trial.run(["out"], folder, call="faults.kills:fingerprint")
        return judge.ended(answer, codes=(0,))


@cache
def commands(trial: Trial) -> list[Command]:
    """All that are killed. Each has run once, unbroken."""
    pictures = ["--data", trial.place("pictures")]
    from_pictures = trial.train_generator(3, trial.place("pictures"))
    resume = ["--resume"]
    return [
        Command(trial, "train tokenizer", trial.train_tokenizer(4), resume, long=True),
        Command(trial, "train generator", trial.train_generator(4), resume, long=True),
        Command(trial, "train generator on pictures", [*from_pictures, "--run.save_every", "0"], resume),
        Command(trial, "train tokenizer further", trial.train_tokenizer(6), resume, start="tokenizer"),
        Command(trial, "train generator further", trial.train_generator(6), resume, start="generator"),
        Command(trial, "encode", trial.encode(), long=True),
        Command(trial, "sample", trial.sample(), long=True),
        Command(trial, "eval tokenizer", ["eval", "tokenizer", "--tokenizer", trial.place("tokenizer"), *pictures]),
        Command(trial, "eval generator", ["eval", "generator", "--model", trial.place("generator"), *pictures]),
        Command(trial, "eval suite", trial.suite(), long=True),
    ]


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of about 380 moments."""
    for command in commands(trial):
        last = range(max(1, command.events - EDGE + 1), command.events + 1)
        spread = draw.sample(range(1, last[0]), min(last[0] - 1, BEFORE)) if last[0] > 1 else []
        moments = sorted([*spread, *last])
        for number in draw.sample(moments, max(1, round(share * len(moments)))):
            torn = draw.random() < 0.5
            name = f"kill {command.name} at {number} of {command.events}{' torn' if torn else ''}"
            yield Case(name, partial(command.killed_at, number, torn), command.name)
        for number in range(int(share * (ALL - len(moments) if command.long else RANDOM))):
            part = draw.random()
            name = f"kill {command.name} after {part:.1%} of its time ({number})"
            yield Case(name, partial(command.killed_after, part), command.name)
