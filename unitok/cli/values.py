"""Checks of option values before any work begins. Free of torch.

What a setting of a group means decides its dataclass; here stand the options that commands share by name, and what no
option may be: a text with a zero byte, a number that is not finite, a path that no file system takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers_vq.errors import shown

LARGEST = 10**9
"""Of numbers that may be fractions."""
LARGEST_COUNT = 2**53
"""Of whole numbers; each of them is also a number in JSON."""
LONGEST_PATH, LONGEST_NAME = 4095, 255
"""Bytes."""

RANGES: dict[str, tuple[int, int]] = {
    "batch_size": (1, 2**16),
    "context": (1, 2**24),
    "image_size": (1, 2**14),
    "limit": (1, 2**40),
    "max_bad": (0, 1),
    "n": (1, 2**20),
    "pictures": (0, 2**20),
    "positions": (1, 2**50),
    "resamples": (100, 10**6),
    "seed": (-(2**53), 2**53),
    "seeds": (1, 2**16),
    "shard_size": (1, 2**24),
    "text_length": (1, 2**20),
    "text_vocabulary": (256, 2**22),
    "workers": (0, 1024),
}
"""Least and most of the options with these names, alike in all commands."""


def text_problem(text: str) -> str | None:
    """Why a text of the command line or of a file cannot be used, or None."""
    if "\0" in text:
        return f"{shown(text)} holds a zero byte: leave it out"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{shown(text)} is not written in UTF-8: write it, or name the file, in UTF-8"
    return None


def value_problems(name: str, value: Any) -> Iterator[str]:
    """A line for each thing that is wrong with the value of an option, or with a value in its list."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from value_problems(f"{name}.{key}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from value_problems(name, one)
    elif isinstance(value, Path):
        if len(os.fsencode(value)) > LONGEST_PATH or any(len(os.fsencode(p)) > LONGEST_NAME for p in value.parts):
            yield f"--{name} is {shown(str(value))}: the path is too long, choose a shorter one"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"--{name} is {value}: choose a finite number"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        largest = LARGEST_COUNT if isinstance(value, int) else LARGEST
        least, most = RANGES.get(name, (-largest, largest))
        if value < least:
            yield f"--{name} is {shown(value)}: choose {least:.16g} or more"
        elif value > most:
            yield f"--{name} is {shown(value)}: choose at most {most:.16g}"
