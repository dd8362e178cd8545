"""What comes before a step: this process's share of it, and what all processes must know."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenizers_vq.errors import UserError
from unitok.data.loader import BadPictures
from unitok.data.records import RecordBatch
from unitok.processes.world import World

from .log import Speed
from .signals import StopRequest
from .trainee import MicroBatch, Trainee


def load_step(
    trainee: Trainee, batches: Iterator[RecordBatch], bad: BadPictures, micro_batches: int, step: int
) -> tuple[list[MicroBatch], UserError | None]:
    """This process's share of the step, and what keeps it from having one; micro-batches without a readable picture are
    left out."""
    micros = []
    try:
        for _ in range(micro_batches):
            records = next(batches)
            bad.note(records.problems)
            if records.names:
                micros.append(trainee.prepare(records, step))
    except UserError as error:
        return [], error
    return micros, None


def agree(
    trainee: Trainee,
    micros: list[MicroBatch],
    error: UserError | None,
    stop: StopRequest,
    world: World,
    speed: Speed,
) -> tuple[torch.Tensor, int, bool]:
    """What all processes must know before a step: (totals of the loss's parts, signal to stop or 0, step is usable).

    Raises:
        UserError: the error of the first process that has one; all others leave with the same exit code.
    """
    counts = torch.stack([micro.counts for micro in micros]).sum(0) if micros else torch.zeros(len(trainee.parts))
    one_hot = torch.zeros(65)
    one_hot[stop.signal or 0] = 1
    failed = torch.zeros(world.size)
    failed[world.rank] = float(error is not None)
    mine = torch.cat([counts.double(), one_hot.double(), torch.tensor([float(not micros)], dtype=torch.double), failed])
    with speed.waiting():
        agreed = world.sum(mine)
    counts, one_hot, without, failed = agreed.split([len(trainee.parts), 65, 1, world.size])
    if failed.any():
        if error is not None and not failed[: world.rank].any():
            raise error
        raise SystemExit(2)
    totals = counts.clamp(min=1).float()
    return totals.to(world.device, non_blocking=True), int(one_hot.nonzero().max()), bool(without == 0)
