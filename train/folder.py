"""The output folder of a run: who may write into it, and what it says about the run.

out/
    run.json            settings, versions, hardware, parameters, seconds, final numbers
    config.json, ...    the finished model (a model directory)
    checkpoints/        see checkpoint.py
    log.jsonl           one line per log interval or evaluation
    tensorboard/        the same for TensorBoard
    samples/            picture grids
    loss.png            the loss curve, at the end
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.files import write_json

from .checkpoint import all_checkpoints, read_about
from .config import FREE_ON_RESUME


class RunFolder:
    """The output folder. Built by every process; only rank 0 calls what writes."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        self.resume = resume
        """Whether to go on from the newest checkpoint in it."""
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.log = path / "log.jsonl"

    def claim(self) -> None:
        """Refuses a folder that is somebody else's, before anything is read or built."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: choose another folder")
        used = self.path.is_dir() and any(self.path.iterdir())
        is_run = (self.path / "run.json").exists()
        if used and not self.resume:
            kind = "already holds a run: add --resume to go on with it, or" if is_run else "is not empty:"
            raise UserError(f"--out {self.path} {kind} choose another folder")
        if used and not is_run:
            raise UserError(f"--out {self.path} holds no run to resume (no run.json): choose the folder of a run")
        nearest = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(nearest, os.W_OK):
            raise UserError(f"--out {self.path} cannot be written (no permission in {nearest}): choose another folder")

    def checkpoint_to_resume(self, settings: dict[str, Any]) -> Path | None:
        """The newest checkpoint, if any; raises UserError when it was made with other settings."""
        newest = all_checkpoints(self.checkpoints)[-1:]
        if not newest:
            return None
        self._compare(plain(settings), read_about(newest[0])["settings"])
        return newest[0]

    def open(self) -> None:
        """Makes the folders, and clears away what a killed process left half-written."""
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be written ({error.strerror}): choose another folder") from error
        for leftover in self.checkpoints.glob(".*.tmp"):
            shutil.rmtree(leftover)

    def describe(self, settings: dict[str, Any], **facts: Any) -> None:
        """Writes run.json: the settings, what they ran on, and `facts`."""
        record = {"settings": plain(settings), "command": sys.argv, **environment(), **facts}
        write_json(self.path / "run.json", record)

    def _compare(self, settings: dict[str, Any], before: dict[str, Any]) -> None:
        now, old = flatten(settings), flatten(before)
        problems = Problems()
        for name in sorted(now.keys() | old.keys()):
            if now.get(name) != old.get(name) and name not in FREE_ON_RESUME:
                problems.check(
                    False,
                    f"{name} is {now.get(name)!r}, but the run in {self.path} was started with {old.get(name)!r}:"
                    " resume with the old value, or choose another --out",
                )
        problems.raise_if_any()


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON reads them back: lists for tuples, text for paths."""
    return json.loads(json.dumps(settings, default=str))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def environment() -> dict[str, Any]:
    """Versions and hardware, for reports."""
    import unitok

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return {
        "versions": {"unitok": unitok.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": {"cpu": cpu, "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu},
    }
