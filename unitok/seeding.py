"""Randomness keyed by what it is for, never by what was drawn before.

A draw is a function of its key, such as (seed, epoch, index) for a sample or (seed, step, rank) for a training step.
So no generator state is saved with a checkpoint: the step number is the whole state, and no draw depends on batch
mates.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fold(*key: int | str) -> int:
    """A 63-bit seed from a key; equal on every machine and Python version.

    >>> fold(0, "mask", 7) == fold(0, "mask", 7), fold(0, 1) == fold(1, 0)
    (True, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one key."""
    import torch

    return torch.Generator().manual_seed(fold(*key))
