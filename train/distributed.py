"""One process, or several started by torchrun.

Every process runs the same program; rank 0 alone writes files, but for the shards of a checkpoint. Small facts (counts,
"stop now") travel between the CPUs through gloo, so that agreeing on them never waits for a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from tokenizers_vq.errors import UserError
from unitok.device import pick_device

T = TypeVar("T")


@dataclass
class World:
    """This process among all processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    doing: str = "the start"
    """What this process is at, for the message when the others do not answer."""

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
        """What `make` returns in the first process, in every process. Where it raises a UserError, the others leave
        with the same exit code and say nothing."""
        if self.size == 1:
            return make()
        values: list[Any] = [None, False]
        if self.is_main:
            try:
                values = [make(), True]
            except UserError:
                with suppress(RuntimeError):  # they may have left already
                    dist.broadcast_object_list(values)
                raise
        dist.broadcast_object_list(values)
        if not values[1]:
            raise SystemExit(2)
        return values[0]

    def together(self, do: Callable[[], T]) -> T:
        """What `do` returns here. Where it raises a UserError in some processes, the first of them raises it and all
        others leave with the same exit code."""
        error, value = None, None
        try:
            value = do()
        except UserError as found:
            error = found
        failed = [rank for rank, bad in enumerate(self.gather(error is not None)) if bad]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise SystemExit(2)
        return cast("T", value)

    def agreed(self, make: Callable[[], T], what: str) -> T:
        """What `make` returns in every process, which must be the same. `what`: for the message where it is not."""
        values = self.gather(self.together(make))
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is None:
            return cast("T", values[0])
        if self.is_main:
            raise UserError(
                f"processes 0 and {other} see other {what}: it has changed meanwhile, or lies elsewhere on that "
                "machine; give all processes the same and repeat the command"
            )
        raise SystemExit(2)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str = "auto", threads: int | None = None, timeout_minutes: float = 60) -> Iterator[World]:
    """Enters the run: sets up the process group that torchrun announces in the environment, and takes it down.

    Raises:
        UserError: a process waited `timeout_minutes` for the others, or lost one; the message names both sides.
    """
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
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its follower is not in every torch
    world = World(place, int(os.environ.get("RANK", "0")), size)
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
        if dist.get_world_size() != size:
            raise UserError(
                f"torchrun announced WORLD_SIZE {size}, but {dist.get_world_size()} processes met: start again"
            )
        yield world
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if any(sign in text.lower() for sign in _TIMED_OUT):
            raise UserError(
                f"process {world.rank} of {size} waited {timeout_minutes:g} minutes for the others at {world.doing}: "
                "one of them hangs or has ended, look at what the others say last; repeat the command with --resume, "
                "or raise run.timeout_minutes if they were only slow"
            ) from error
        if any(sign in text.lower() for sign in _LOST):
            raise UserError(
                f"process {world.rank} of {size} lost another process at {world.doing}: look at what that one says "
                "last, then repeat the command with --resume"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


_TIMED_OUT = ("timed out", "timeout")
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused")
"""What errors of gloo, nccl and the store say; they have no types of their own."""
