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

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.storage.files import is_ours_alone, plain, read_json, write_json
from unitok.config import TaskConfig, TasksConfig
from unitok.lock import LOCK_FILE, only_writer
from unitok.processes.world import World

from .checkpoint import newest_whole, read_about
from .config import FREE_ON_RESUME

RUN_FILE, CHECKPOINTS, SAMPLES = "run.json", "checkpoints", "samples"
DATA = "data_sha256"
"""Setting: the fingerprint of the training data."""
UNUSED = frozenset({LOCK_FILE})
"""What a folder may hold in which nothing has happened yet."""


class RunFolder:
    """The output folder. Built by every process; only rank 0 calls what writes."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        self.resume = resume
        """Whether to go on from the newest checkpoint in it."""
        self.checkpoints = path / CHECKPOINTS
        self.samples = path / SAMPLES
        self.log = path / "log.jsonl"

    @contextmanager
    def held(self, world: World) -> Iterator[None]:
        """Locks the folder for all processes of a run. Where the first one finds it in use, or somebody else's, all
        leave."""
        with ExitStack() as stack:
            world.from_main(lambda: stack.enter_context(only_writer(self.path)))
            world.from_main(self.claim)
            yield

    def claim(self) -> None:
        """Refuses a folder that is somebody else's, before anything is read or built. With `resume` a run goes on from
        wherever it was killed, its first moment included."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: choose another folder")
        used = self.path.is_dir() and not is_ours_alone(self.path, UNUSED)
        begun = any((self.path / name).exists() for name in (RUN_FILE, CHECKPOINTS))
        if used and not self.resume:
            kind = "already holds a run: add --resume to go on with it, or" if begun else "is not empty:"
            raise UserError(f"--out {self.path} {kind} choose another folder")
        if used and not begun:
            raise UserError(f"--out {self.path} holds no run to resume (no {RUN_FILE}): choose the folder of a run")
        nearest = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(nearest, os.W_OK):
            raise UserError(f"--out {self.path} cannot be written (no permission in {nearest}): choose another folder")

    @cached_property
    def newest(self) -> Path | None:
        """The checkpoint to go on from, if any: the newest that is whole. Tells of newer ones that are damaged. Looked
        for once, for that reads all of it; rank 0 alone asks.

        Raises:
            UserError: there are checkpoints, but none is whole.
        """
        if not self.resume:
            return None
        return newest_whole(self.checkpoints, lambda line: print(f"warning: {line}", file=sys.stderr))

    def check_settings(self, settings: dict[str, Any], checkpoint: Path) -> None:
        """Raises UserError when a checkpoint was made with other settings."""
        self._compare(plain(settings), read_about(checkpoint)["settings"])

    def finished(self, step: int) -> dict[str, Any] | None:
        """What run.json says, if it says that the run is finished after `step` steps."""
        try:
            facts = read_json(self.path / RUN_FILE)
        except UserError:
            return None
        whole = isinstance(facts, dict) and facts.get("finished") is True and facts.get("steps") == step
        return facts if whole else None

    def open(self) -> None:
        """Makes the folders."""
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be written ({error.strerror}): choose another folder") from error

    def describe(self, settings: dict[str, Any], **facts: Any) -> None:
        """Writes run.json: the settings, the command that started the run, what it ran on, and `facts`."""
        command = [word for word in sys.argv if word != "--resume"]
        write_json(self.path / RUN_FILE, {"settings": plain(settings), "command": command, **environment(), **facts})

    def _compare(self, settings: dict[str, Any], before: dict[str, Any]) -> None:
        now, old = flatten(settings), flatten(before)
        # A run that was started before a task was invented had none of it.
        none = {
            f"tasks.{task}.{name}": value
            for task, _ in TasksConfig().items()
            for name, value in vars(TaskConfig()).items()
        }
        old = {**{name: value for name, value in none.items() if name in now}, **old}
        problems = Problems()
        if DATA in old:
            problems.check(
                now[DATA] == old[DATA],
                f"data {now.get('data')!r} holds other pictures or captions than those that the run in {self.path} was"
                f" started with ({old.get('pictures')} then, {now.get('pictures')} now): bring them back, or choose"
                " another --out",
            )
        # Data are what they hold, whatever the path to them; runs from before it was kept go by path and number.
        free = FREE_ON_RESUME | ({"data", "pictures", DATA} if DATA in old else {DATA})
        for name in sorted(now.keys() | old.keys()):
            if now.get(name) != old.get(name) and name not in free:
                problems.check(
                    False,
                    f"{name} is {now.get(name)!r}, but the run in {self.path} was started with {old.get(name)!r}:"
                    " resume with the old value, or choose another --out",
                )
        problems.raise_if_any()


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
