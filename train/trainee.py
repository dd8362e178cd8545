"""What a trainer brings to the engine (`loop.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from unitok.data.loader import Finish, Transform
from unitok.data.records import RecordBatch


@dataclass
class MicroBatch:
    """One forward pass, ready on the device."""

    data: Any
    counts: torch.Tensor
    """(parts,) float64 on the CPU: what each part of the loss is averaged over, here alone."""
    names: list[str]
    """Files, for errors."""


@dataclass(frozen=True)
class Opponent:
    """A second network that learns against the model, from the same loss and the same backward pass. Its gradient is
    clipped by itself; it is in the checkpoints, but neither averaged nor exported."""

    network: nn.Module
    lr: float
    """Its learning rate where the model's is `optim.lr`."""


class Trainee(Protocol):
    """What a trainer brings to the engine."""

    model: nn.Module
    """What trains, on its device. The engine averages and saves those of its tensors that learn. While the trainee
    evaluates, draws or exports, the averages stand in their place."""

    opponent: Opponent | None
    """What learns against it, if anything does."""

    parts: tuple[str, ...]
    """Names of the loss's parts: `MicroBatch.counts` has one number for each."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the model that fsdp gathers one after another; none: the model is small, and stays whole."""
        ...

    @property
    def transform(self) -> Transform | None:
        """Changes one training record; every draw comes from the generator. It runs in the loader's workers and holds
        nothing heavy, for it travels there."""
        ...

    @property
    def finish(self) -> Finish | None:
        """The last work on a micro-batch; it runs in the loader's workers too."""
        ...

    def compile(self) -> None:
        """Compiles the model, or its hot parts, in place, so that the names of the weights stay."""
        ...

    def prepare(self, records: RecordBatch, step: int) -> MicroBatch:
        """Moves a batch to the device and counts it."""
        ...

    def loss(
        self, forward: Callable[..., Any], data: Any, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one micro-batch, its parts divided by `totals` ((parts,) float32 on the device, at least 1), and
        sums for the log. `forward` calls the model (wrapped for several processes); `last`: the step's last one."""
        ...

    def summarise(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """The numbers to log, from the sums over a log interval and all processes; `.../s` is divided by time."""
        ...

    def notices(self, step: int, numbers: dict[str, float]) -> list[str]:
        """What a user should know about the numbers of the log interval that ends at `step`; the run goes on."""
        ...

    def evaluate(self, pictures: int) -> dict[str, float]:
        """Validation numbers on at most `pictures` pictures (all processes together); empty without validation data."""
        ...

    def draw(self, path: Path) -> None:
        """Writes the picture grid."""
        ...

    @property
    def exports_all(self) -> bool:
        """Whether `export` writes weights that do not learn, too."""
        ...

    def export(self, folder: Path, model: Any) -> None:
        """Writes the finished model directory, of `model` or a copy of it with other weights. It may be called by
        another thread than the one that trains."""
        ...

    def keep(self, folder: Path) -> None:
        """Writes into a checkpoint what a resumed run needs besides the state that the engine saves. By any thread."""
        ...

    def exported(self, folder: Path) -> bool:
        """Whether a folder holds what `export` writes of this model, whole."""
        ...
