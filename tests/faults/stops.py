"""Requests to stop: SIGTERM at random moments, a kill where the time of grace is over, and the same command again."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import judge
from .kills import Command, commands
from .trial import Answer, Case, Trial, drawn

MOMENTS = 10
"""Random moments of a command."""


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    """`share` of 50 moments."""
    found: list[Case] = []
    for command in commands(trial):
        for number in range(MOMENTS if command.long else 0):
            part = draw.random()
            name = f"stop {command.name} after {part:.1%} of its time ({number})"
            found.append(Case(name, partial(_case, command, part), command.name))
    yield from drawn(found, draw, share)


def _case(command: Command, part: float, folder: Path) -> list[str]:
    answer = command.struck_after(part, folder, grace=judge.GRACE)
    fell = judge.ended(answer, codes=(0, judge.STOPPED, -signal.SIGTERM)) + _said(answer)
    judged = judge.without_older_checkpoints
    if answer["code"] == 0:  # it had done its last step
        fell += judge.same(judged(judge.contents(folder / "out")), judged(command.wanted))
    return fell + command.goes_on(folder, command.wanted, judged)


def _said(answer: Answer) -> list[str]:
    """One line that it was stopped; none where it had not begun or was leaving, and has no handler."""
    lines = [line for line in answer["stderr"].splitlines() if line.startswith("stopped by a signal")]
    wanted = answer["code"] == judge.STOPPED
    return [] if len(lines) == wanted else [f"{len(lines)} lines that it was stopped: {answer['stderr'][-300:]}"]
