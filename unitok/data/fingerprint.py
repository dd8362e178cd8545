"""What a data set holds, as a digest: equal for equal contents wherever they lie, another when they were replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SAMPLES = 64
"""Records whose bytes count, evenly spaced, the first and the last among them."""

_END = 2**15  # bytes of either end of a sampled picture


def digest(facts: Iterable[Any], length: int, read: Callable[[int], bytes]) -> str:
    """SHA-256 (hex) over `facts` (any JSON values, such as names, captions and sizes of all records) and the bytes of
    some of the `length` records: the whole of small ones, both ends of large ones.

    Args:
        read: the bytes of a record, empty where they cannot be read.
    """
    hashed = hashlib.sha256()
    for fact in facts:
        hashed.update(json.dumps(fact, default=str).encode() + b"\n")
    for index in spread(length):
        data = read(index)
        hashed.update(f"{index} {len(data)}\n".encode())
        hashed.update(data if len(data) <= 2 * _END else data[:_END] + data[-_END:])
    return hashed.hexdigest()


def spread(length: int) -> Sequence[int]:
    """Up to `SAMPLES` indices of [0, length), evenly spaced, with both ends."""
    if length <= SAMPLES:
        return range(length)
    return [place * (length - 1) // (SAMPLES - 1) for place in range(SAMPLES)]
