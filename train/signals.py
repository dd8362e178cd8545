"""Ctrl-C and SIGTERM as a request: the step in progress is finished, saved, and the run leaves."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self


class StopRequest:
    """While entered, notes SIGINT and SIGTERM instead of dying of them.

    A second Ctrl-C more than two seconds after the first one means "now". (torchrun repeats the first one to its
    processes at once, which means nothing.)
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python hands signals to the main thread alone; a run in another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt
