"""A capture for a CPU: the operations of a work are noted once, and done again over the same memory, as a GPU does it.

Nothing of Python runs again: a number that the host read stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unitok.trunk.steps import Work


class Recorder(TorchDispatchMode):
    """Notes operations with the tensors that they read and make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, before in self.calls:
            now = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # no view, and not in place
                    old.copy_(new)


class Captures:
    """Captures works, and counts."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, work: Work) -> tuple[Callable[[], None], torch.Tensor]:
        recorder = Recorder()
        with recorder:
            result = work()
        result.fill_(float("nan"))  # a GPU computes nothing while it captures
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay, result
