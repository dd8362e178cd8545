"""Kills: SIGKILL just before the n-th change below --out, and at random times; then the same command again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from . import judge
from .trial import Case, Trial, copy

EDGE = 10
"""All of the last so many changes are tried."""


def fingerprint(folder: str) -> str:
    """Runs in the server's child: opens a finished model or tokenizer."""
    from tokenizers_vq.base import load_tokenizer
    from unitok.model import UniTok

    if (Path(folder) / "text_tokenizer").exists() or (Path(folder) / ".incoming" / "text_tokenizer").exists():
        return UniTok.from_pretrained(folder).fingerprint()
    return load_tokenizer(folder).fingerprint()


class Command:
    """A command that is killed and run again."""

    def __init__(
        self, trial: Trial, name: str, words: list[str], again: list[str] | None = None, start: str = ""
    ) -> None:
        self.trial, self.name, self.start = trial, name, start
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

    def case(self, folder: Path, **kill: object) -> list[str]:
        """Dies, is run again, and then once more."""
        self._begin(folder)
        out = folder / "out"
        words = self.words if not self.start else self.again
        died = self.trial.run(words, folder, out=str(out), allowed=[str(folder / "tmp")], **kill)
        fell = judge.ended(died | {"ended": "itself"}, codes=(-9, 0))  # whoever killed it
        fell += self._between(folder)
        rest = self.trial.run(self.again, folder, out=str(out))
        if self.name.startswith("eval") and rest["code"] == 2 and (out / "report.json").exists():
            return fell + judge.same(judge.contents(out), self.wanted)  # it had ended before it was killed
        fell += judge.ended(rest, codes=(0,)) + judge.litter(out)
        fell += judge.same(judge.contents(out), self.wanted)
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
    encode = ["encode", *pictures, *trial.with_tokenizer(), "--shard_size", "4"]
    suite = ["eval", "suite", "--model", trial.place("generator"), *pictures, "--seeds", "1", "--guidances", "[1, 2]"]
    resume = ["--resume"]
    return [
        Command(trial, "train tokenizer", trial.train_tokenizer(4), resume),
        Command(trial, "train generator", trial.train_generator(4), resume),
        Command(trial, "train generator on pictures", [*from_pictures, "--run.save_every", "0"], resume),
        Command(trial, "train tokenizer further", trial.train_tokenizer(6), resume, start="tokenizer"),
        Command(trial, "train generator further", trial.train_generator(6), resume, start="generator"),
        Command(trial, "encode", encode),
        Command(trial, "sample", trial.sample()),
        Command(trial, "eval tokenizer", ["eval", "tokenizer", "--tokenizer", trial.place("tokenizer"), *pictures]),
        Command(trial, "eval generator", ["eval", "generator", "--model", trial.place("generator"), *pictures]),
        Command(trial, "eval suite", suite),
    ]


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of about 250 moments."""
    for command in commands(trial):
        last = range(max(1, command.events - EDGE + 1), command.events + 1)
        spread = draw.sample(range(1, last[0]), min(last[0] - 1, 12)) if last[0] > 1 else []
        moments = sorted([*spread, *last])
        for number in draw.sample(moments, max(1, round(share * len(moments)))):
            torn = draw.random() < 0.5
            name = f"kill {command.name} at {number} of {command.events}{' torn' if torn else ''}"
            yield Case(name, partial(command.case, die_at=number, torn=torn))
        for number in range(round(5 * share)):
            after = draw.uniform(0, command.seconds)
            yield Case(f"kill {command.name} after {after:.3f} s ({number})", partial(command.case, kill_after=after))
