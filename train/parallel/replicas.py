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

from ..checkpoint import TrainState, save
from ..optim import AveragedWeights
from ..trainee import Trainee


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

    def save(
        self, folder: Path, state: TrainState, about: dict[str, Any], keep: int, fill: Callable[[Path], None]
    ) -> None:
        """Writes a checkpoint (see `checkpoint.save`). All processes come here."""
        self._world.from_main(lambda: save(folder, state, about, keep, fill))
