"""Float32 means float32: on a GPU, torch lets cuDNN round the numbers of convolutions to TF32 by default.

That changes codes where two entries of a codebook are nearly as near, and moves FID and other measured numbers. All
that is said to cuDNN about it is said here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def forbid_tf32() -> None:
    """For the rest of the process, as the commands have it."""
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def without_tf32() -> Iterator[None]:
    """For the body alone, whatever the program around it allows."""
    before = torch.backends.cudnn.allow_tf32
    forbid_tf32()
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
