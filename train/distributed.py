"""One process, or several started by torchrun.

Every process runs the same program; rank 0 alone writes files. Small facts (counts, "stop now") travel between the CPUs
through gloo, so that agreeing on them never waits for a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tokenizers_vq.errors import UserError
from unitok.device import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_all(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The sums of all processes, by name, float64 on the CPU; one message for all of them.

        Every process brings the same names and shapes.
        """
        flat = torch.cat([value.detach().to(self.device, torch.double).flatten() for value in sums.values()])
        parts = self.sum(flat).cpu().split([value.numel() for value in sums.values()])
        return {name: part.reshape(sums[name].shape) for name, part in zip(sums, parts, strict=True)}

    def average_gradients(self, weights: list[torch.nn.Parameter]) -> None:
        """Replaces gradients by their mean over all processes; for networks small enough to do without DDP, which wants
        every weight to take part in every step."""
        for weight in weights:
            if self.size > 1 and weight.grad is not None:
                self.sum(weight.grad.div_(self.size))

    def gather(self, value: object) -> list[Any]:
        """One value per process, in rank order, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in every process."""
        values: list[Any] = [make() if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str = "auto", threads: int | None = None) -> Iterator[World]:
    """Enters the run: sets up the process group that torchrun announces in the environment, and takes it down."""
    if threads is not None:
        torch.set_num_threads(threads)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local_rank)
    if size == 1:
        yield World(place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    # Gradients of 1x1 convolutions come in either of two equal memory orders; DDP copies a few kilobytes and warns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    dist.init_process_group(backend, timeout=timedelta(hours=1))
    try:
        if dist.get_world_size() != size:
            raise UserError(
                f"torchrun announced WORLD_SIZE {size}, but {dist.get_world_size()} processes met: start again"
            )
        yield World(place, rank=dist.get_rank(), size=size)
    finally:
        dist.destroy_process_group()
