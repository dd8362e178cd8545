"""What a run tells: live progress on stderr, log.jsonl, TensorBoard, and a loss plot at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from tokenizers_vq.storage.files import atomic_path, log_entries

from .folder import RunFolder


class RunLog:
    """Reports the steps of a run; silent when `folder` is None (every process but the first).

    On a terminal there is one live line; elsewhere one plain line per log interval. Numbers named `loss` or `loss/PART`
    come first. On resume, entries after the checkpoint are dropped, so that no step is logged twice.
    """

    def __init__(self, folder: RunFolder | None, steps: int, done: int) -> None:
        self.steps = steps
        self._folder = folder
        if folder is None:
            return
        self._clock = Clock(done)
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = _BarAndNumbers(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            _TimeLeft(self._clock),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=steps, completed=done)
        _drop_after(folder.log, done)
        self._lines = folder.log.open("a", encoding="utf-8")
        self._board: Any = None

    def __enter__(self) -> RunLog:
        if self._folder is not None:
            # Imported here: it costs a second, and only the process that writes needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder.path / "tensorboard"), purge_step=self._clock.done + 1)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._progress.stop()
            self._lines.close()
            self._board.close()

    def advance(self, step: int) -> None:
        if self._folder is not None and self._live:
            self._progress.update(self._task, completed=step)

    def numbers(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        """Logs the numbers of one kind (`train` or `val`) after `step` steps."""
        if self._folder is None:
            return
        entry = {"kind": kind, "step": step, **numbers, "time": round(time.time(), 3)}
        self._lines.write(json.dumps(entry) + "\n")
        self._lines.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        text = "  ".join(f"{name} {show(value)}" for name, value in numbers.items())
        if kind == "train":
            if self._live:
                self._progress.numbers = text
            else:
                left = timedelta(seconds=round(self._clock.left(step, self.steps)))
                print(f"step {step}/{self.steps}  {text}  left {left}", file=sys.stderr, flush=True)
        else:
            self.say(f"step {step}/{self.steps}  {kind}: {text}")

    def picture(self, step: int, path: Path) -> None:
        if self._folder is not None:
            import numpy as np
            from PIL import Image

            self._board.add_image(path.stem.split("-")[0], np.asarray(Image.open(path)), step, dataformats="HWC")

    def say(self, message: str) -> None:
        """One line on stderr, above the progress bar if there is one."""
        if self._folder is None:
            return
        if self._live:
            self._progress.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)


class Clock:
    """Time left, from the speed since the start of this process."""

    def __init__(self, done: int) -> None:
        self.done = done
        self._start = time.perf_counter()

    def left(self, step: int, steps: int) -> float:
        passed = time.perf_counter() - self._start
        return passed / max(1, step - self.done) * (steps - step)


class _BarAndNumbers(Progress):
    """The bar, and below it the numbers of the last log interval."""

    numbers = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers)


class _TimeLeft(ProgressColumn):
    """From the mean speed since the start: a short window would jump at every evaluation."""

    max_refresh = 0.5

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        if task.completed <= self._clock.done:
            return Text("left -:--:--")
        left = self._clock.left(int(task.completed), int(task.total or 0))
        return Text(f"left {timedelta(seconds=round(left))}")


def show(value: float) -> str:
    """
    >>> show(3.14159), show(1234.5), show(0.0003), show(7)
    ('3.142', '1234', '0.0003', '7')
    """
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log.jsonl (`log_entries`); none where there is no such file."""
    try:
        return list(log_entries(path.read_text(encoding="utf-8", errors="replace")))
    except FileNotFoundError:
        return []


def log_stage(path: Path, step: int, stage: str) -> None:
    """Says in a log.jsonl, once, that a stage, such as "1 of 3", has ended after `step` steps."""
    entry = {"kind": "stage", "step": step, "stage": stage}
    if not any(entry.items() <= one.items() for one in read_log(path)):
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**entry, "time": round(time.time(), 3)}) + "\n")


def _drop_after(path: Path, step: int) -> None:
    kept = [entry for entry in read_log(path) if entry["step"] <= step]
    if path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def plot_losses(log: Path, path: Path) -> None:
    """Draws every loss of a log.jsonl over the steps: training as lines, validation as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100)
    axes = figure.subplots()
    entries = read_log(log)
    for kind, style in (("train", "-"), ("val", "o")):
        mine = [entry for entry in entries if entry["kind"] == kind]
        for name in sorted({name for entry in mine for name in entry if name.split("/")[0] == "loss"}):
            points = [(entry["step"], entry[name]) for entry in mine if isinstance(entry.get(name), int | float)]
            axes.plot(*zip(*points, strict=True), style, label=f"{kind} {name}", linewidth=1, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if axes.has_data():
        axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


class Speed:
    """Seconds of training since the last question, pauses left out, and how many of them this process waited."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self.waited = 0.0

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.waited = 0.0
        return max(seconds, 1e-9)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what stands still until the other processes have come."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def pause(self) -> _Pause:
        return _Pause(self)

    def shift(self, seconds: float) -> None:
        self._since += seconds


class _Pause:
    def __init__(self, speed: Speed) -> None:
        self._speed = speed

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._speed.shift(time.perf_counter() - self._start)


def print_parameters(counts: dict[str, int], is_main: bool) -> None:
    if is_main:
        text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        print(f"parameters: {sum(counts.values()):,} ({text})", file=sys.stderr)


def print_result(kind: str, out: Path, facts: dict[str, Any]) -> None:
    """Results go to stdout: where the model is, and its last numbers."""
    print(f"{kind}: {out}")
    print(f"steps: {facts['steps']}  seconds: {facts['seconds']}")
    for name, value in facts["numbers"].items():
        print(f"{name}: {'-' if value is None else format(value, '.4g')}")
