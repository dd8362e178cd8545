"""The model whole in every process: alone, or with gradients averaged by DDP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unitok.processes.world import World

from ..checkpoint import Saved, TrainState, save
from ..optim import AveragedWeights
from ..saving.copies import Copies, Snapshot, shadow
from ..trainee import Trainee
from .tensors import size


class Replicas:
    """What the engine needs of a model that every process holds. `Shards` answers the same."""

    in_step = False
    """Whether every micro-batch is a pass of all processes."""

    def __init__(self, trainee: Trainee, world: World) -> None:
        self.model = trainee.model
        """What optimizers, averages and checkpoints see."""
        self._trainee, self._world = trainee, world
        self._ddp: DistributedDataParallel | None = None

    @property
    def name(self) -> str:
        return "ddp" if self._world.size > 1 else "one process"

    def compile(self) -> None:
        self._trainee.compile()

    def start(self) -> None:
        """After a checkpoint was loaded: every process begins with the weights of the first."""
        if self._world.size > 1:
            devices = [self._world.device] if self._world.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(
                self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def forward(self) -> Callable[..., Any]:
        return self._ddp or self.model

    def exchanging(self, last: bool) -> AbstractContextManager[object]:
        """Around one micro-batch: gradients travel in the last one of a step alone."""
        return nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def clip(self, weights: list[nn.Parameter], longest: float) -> torch.Tensor:
        """The norm of the gradient, before it is cut to `longest`."""
        return nn.utils.clip_grad_norm_(weights, longest)

    def showing(self, average: AveragedWeights) -> AbstractContextManager[None]:
        """While entered, the trainee's model has the averages. All processes come here."""
        return average.in_place()

    def to_copy(self, state: TrainState) -> int:
        """Bytes of what `copied` copies in this process."""
        return sum(size(tensors) for tensors in _copied_parts(state).values()) if self._world.is_main else 0

    def copied(self, state: TrainState, copies: Copies) -> Snapshot:
        """The state in the host's memory, for `save`, and the model with its averages. All processes come here."""
        if not self._world.is_main:
            return Snapshot(state.step, state.sums, {}, None)
        tensors = {part: copies.take(part, live) for part, live in _copied_parts(state).items()}
        shown = shadow(self.model, tensors.pop(SHOWN) if SHOWN in tensors else tensors["average"])
        return Snapshot(state.step, state.sums, tensors, shown)

    def save(
        self, world: World, folder: Path, state: Saved, about: dict[str, Any], keep: int, fill: Callable[[Path], None]
    ) -> None:
        """Writes a checkpoint (see `checkpoint.save`). All processes come here; they speak through `world`."""
        world.from_main(lambda: save(folder, state, about, keep, fill))


SHOWN = "shown"


def _copied_parts(state: TrainState) -> dict[str, dict[str, torch.Tensor]]:
    parts = state.parts()
    return parts if "average" in parts else {**parts, SHOWN: state.average.tensors}
