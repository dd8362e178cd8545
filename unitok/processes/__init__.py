"""The processes of one command, as torchrun announces them. Free of torch: `world.py` is where they meet."""

from __future__ import annotations

import os


def places() -> tuple[int, int, int]:
    """(rank, processes, rank on this machine)."""
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in names)
    return rank, size, local_rank


def can_meet() -> bool:
    """Whether there is an address to meet the others at. A process that is started again by hand may have none."""
    return "MASTER_ADDR" in os.environ
