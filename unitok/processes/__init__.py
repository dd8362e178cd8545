"""The processes of one command, as torchrun announces them. Free of torch: `world.py` is where they meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers_vq.errors import UserError


def places() -> tuple[int, int, int]:
    """(rank, processes, rank on this machine)."""
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in names)
    return rank, size, local_rank


def can_meet() -> bool:
    """Whether there is an address to meet the others at. A process that is started again by hand may have none."""
    return "MASTER_ADDR" in os.environ


@contextmanager
def refused_together() -> Iterator[None]:
    """Around what a command looks at before its processes `join`. What is wrong in one of them is said once, and all
    leave with the same exit code: the others are told so where they meet. Costs nothing where nothing is wrong."""
    try:
        yield
    except UserError as error:
        if places()[1] > 1 and can_meet():
            from .world import leave_together

            leave_together(error)
        raise
