"""One process, or several started by torchrun.

Every process runs the same program. In a training rank 0 alone writes files, but for the shards of a checkpoint. Small
facts (counts, "stop now") travel between the CPUs through gloo, so that agreeing on them never waits for a GPU.

Processes that share the work in a folder are together only until the work begins (`sharing`): then one may die and the
others go on.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tokenizers_vq.errors import UserError

from ..device import pick_device
from ..lock import only_writer
from . import can_meet, places

T = TypeVar("T")

LATER = 1.1
"""Times of the longest wait after which torch, which should have said so, is not waited for any longer."""
RESUME = "repeat the command with --resume"
SLOW = ", or raise run.timeout_minutes if they were only slow"
"""What to do about a training that has ended."""


@dataclass
class World:
    """This process among all processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    doing: str = "the start"
    """What this process is at, for the message when the others do not answer."""
    apart: bool = False
    """Whether it speaks to no other, although there are some."""
    group: dist.ProcessGroup | None = None
    """What it speaks to the others through; None is the group that all processes have."""
    timeout: timedelta | None = None
    """How long it waits for the others."""
    advice: str = ""
    """What to do where it waited in vain."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def meets(self) -> bool:
        """Whether there are others that it speaks to."""
        return self.size > 1 and not self.apart

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.meets:
            dist.all_reduce(tensor, group=self.group)
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
            if self.meets and weight.grad is not None:
                self.sum(weight.grad.div_(self.size))

    def gather(self, value: object) -> list[Any]:
        """One value per process, in rank order, in every process."""
        if not self.meets:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in every process. Where it raises a UserError, the others leave
        with the same exit code and say nothing."""
        if not self.meets:
            return make()
        values: list[Any] = [None, False]
        if self.is_main:
            try:
                values = [make(), True]
            except UserError:
                with suppress(RuntimeError):  # they may have left already
                    dist.broadcast_object_list(values, group=self.group)
                raise
        dist.broadcast_object_list(values, group=self.group)
        if not values[1]:
            raise SystemExit(2)
        return values[0]

    def together(self, do: Callable[[], T]) -> T:
        """What `do` returns here. Where it raises a UserError in some processes, the first of them raises it and all
        others leave with the same exit code."""
        if not self.meets:
            return do()
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
        if self.meets:
            dist.barrier(group=self.group)

    def beside(self) -> World:
        """The same processes for another thread of each: messages of two threads must not travel in one group. All
        processes come here."""
        with self.meeting():
            group = dist.new_group(backend="gloo", timeout=self.timeout) if self.meets else None
        return replace(self, device=torch.device("cpu"), group=cast("dist.ProcessGroup | None", group))

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Ends this process if the others do not come in time. torch sees to that, but where the one hangs that keeps
        the addresses of all: its answers are waited for without end, deep inside of torch."""
        if not self.meets or self.timeout is None:
            yield
            return

        def leave() -> None:
            print(f"error: {self.waited()}", file=sys.stderr, flush=True)
            os._exit(2)

        timer = threading.Timer(self.timeout.total_seconds() * LATER + 1, leave)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def waited(self) -> str:
        assert self.timeout is not None, "who waits for nobody is never late"
        minutes = self.timeout.total_seconds() / 60
        return (
            f"process {self.rank} of {self.size} waited {minutes:g} minutes for the others at {self.doing}: one of "
            f"them hangs or has ended, look at what the others say last; {self.advice}"
        )

    def part(self) -> None:
        """Takes leave of the others, when all have come here: from now on each works for itself."""
        if self.meets:
            dist.barrier()
            dist.destroy_process_group()
            self.apart = True


@contextmanager
def join(
    device: str = "auto",
    threads: int | None = None,
    timeout_minutes: float = 60,
    again: str = RESUME,
    slow: str = SLOW,
    refusal: UserError | None = None,
) -> Iterator[World]:
    """Enters the run: sets up the process group that torchrun announces in the environment, and takes it down.

    Args:
        device: of this process; see `pick_device`.
        threads: that torch computes with on a CPU.
        timeout_minutes: how long a process waits for the others.
        again, slow: what to do where one was lost, and what else where they took longer.
        refusal: what this process has found wrong before. It is said once, and all leave.

    Raises:
        UserError: a process waited `timeout_minutes` for the others, or lost one; the message names both sides. Or
            there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    rank, size, local_rank = places()
    if size == 1:
        yield World(pick_device(device, local_rank))
        return
    timeout = timedelta(minutes=timeout_minutes)
    world = World(torch.device("cpu"), rank, size, timeout=timeout, advice=f"{again}{slow}")
    # Gradients of 1x1 convolutions come in either of two equal memory orders; DDP copies a few kilobytes and warns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its follower is not in every torch
    try:
        gpus = device != "cpu" and torch.cuda.is_available()
        if gpus:
            _record_collectives()
        with world.meeting():
            backend, store = "cpu:gloo,cuda:nccl" if gpus else "gloo", _keys_of_a_meeting(timeout)
        with world.meeting():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        world.device = world.together(partial(_device, device, local_rank, refusal))
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        yield world
    except RuntimeError as error:
        if world.apart:
            raise
        text = " ".join(str(error).split())
        if any(sign in text.lower() for sign in _TIMED_OUT):
            raise UserError(world.waited()) from error
        if any(sign in text.lower() for sign in _LOST):
            raise UserError(
                f"process {world.rank} of {size} lost another process at {world.doing}: look at what that one says "
                f"last, then {again}"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _record_collectives() -> None:
    """Turns torch's flight recorder on: where a collective hangs, each process writes what the last ones were. What is
    set already stays."""
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the older name, which torch heeds where it finds no other
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


_STORES: dict[tuple[str | None, str | None], tuple[dist.Store, Iterator[int]]] = {}
"""Address -> where the processes find each other, and the numbers of their meetings."""


def _keys_of_a_meeting(timeout: timedelta) -> dist.Store:
    """Where the processes leave their addresses. They meet several times, as in stages, so the store is kept, and each
    meeting has keys of its own: who comes early would take those of the last one for new."""
    place = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if place not in _STORES:
        _STORES[place] = next(rendezvous("env://", timeout=timeout))[0], itertools.count()
    store, numbers = _STORES[place]
    store.set_timeout(timeout)
    return dist.PrefixStore(f"meeting {next(numbers)}", store)


def _device(device: str, local_rank: int, refusal: UserError | None) -> torch.device:
    if refusal is not None:
        raise refusal
    return pick_device(device, local_rank)


def leave_together(refusal: UserError) -> None:
    """Meets the others, who come here too or to `join`, to say once what is wrong. Does not return."""
    with join(refusal=refusal):
        pass


@contextmanager
def sharing(out: Path, device: str) -> Iterator[World]:
    """Enters a command whose processes share the work in a folder, which the first one locks. They are together until
    they `part`.

    A process without an address to meet the others at speaks to none of them.

    Raises:
        UserError: the folder is in use, or as `join`.
    """
    rank, size, local_rank = places()
    if size > 1 and not can_meet():
        with only_writer(out):
            yield World(pick_device(device, local_rank), rank, size, apart=True)
        return
    with join(device, again="repeat the command", slow="") as world, ExitStack() as stack:
        world.from_main(lambda: stack.enter_context(only_writer(out)))
        yield world


_TIMED_OUT = ("timed out", "timeout")
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused")
"""What errors of gloo, nccl and the store say; they have no types of their own."""
