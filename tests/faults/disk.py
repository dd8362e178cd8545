"""A small disk: every writing command on a file system that is full; then again with room."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import judge
from .kills import Command, commands
from .trial import Case, Trial

SIZES = (16, 64, 160, 400, 1200)
"""Kilobytes of the disk."""


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    if os.geteuid() != 0:
        return
    for command in commands(trial):
        if not command.start:
            for size in draw.sample(SIZES, max(1, round(share * len(SIZES)))):
                yield Case(f"disk of {size} kB for {command.name}", partial(_case, trial, command, size), command.name)


def _case(trial: Trial, command: Command, size: int, folder: Path) -> list[str]:
    out = folder / "out"
    out.mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(out)], capture_output=True)
    if mount.returncode != 0:
        return []  # no right to mount here: nothing was tried, see test_faults.py
    try:
        answer = trial.run(command.again, folder, out=str(out))
        fell = judge.ended(answer)
        subprocess.run(["mount", "-o", "remount,size=500M", str(out)], check=True)
        rest = trial.run(command.again, folder, out=str(out))
        if command.name.startswith("eval") and (out / "report.json").exists() and rest["code"] == 2:
            rest["code"] = 0  # the small disk was large enough
        fell += judge.ended(rest, codes=(0,)) + judge.litter(out)
        fell += judge.same(judge.contents(out), command.wanted)
    finally:
        subprocess.run(["umount", str(out)], check=False)
    return fell
