"""How sure a share is: bootstrap intervals over distinct captions.

Pictures of one caption are no independent evidence, so captions are drawn again with replacement, each with all its
pictures (a cluster bootstrap; Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..provenance import Fact
from ..report import Number

LEVEL = 0.95
RESAMPLES = 4000
AT_ONCE = 2**20
"""Captions drawn in one call: many small calls take longer, and all in one take a gigabyte."""
COLUMNS = {"scene_accuracy": "scene"}
"""Numbers whose values of single pictures have another name."""


def with_intervals(
    numbers: Mapping[str, Number], values: Sequence[Mapping[str, Fact]], caption: str
) -> dict[str, Number]:
    """The shares among these numbers with their intervals, the others as they are.

    Args:
        numbers: of a section.
        values: of its single pictures, where a share's parts stand under the number's name, or NUMBER.PART, or PART.
        caption: the column that holds the caption.
    """
    result = {}
    for key, number in numbers.items():
        columns = {"": [COLUMNS.get(key, key)]}
        if isinstance(number.value, dict):
            columns = {part: [f"{key}.{part}", part] for part in number.value}
        intervals = {}
        for part, names in columns.items():
            name = next((name for name in names if any(name in row for row in values)), None)
            if number.unit == "%" and name is not None:
                rows = [(str(row[caption]), float(row[name] or 0)) for row in values if row.get(name) is not None]
                intervals[part] = interval_of_mean(rows)
        result[key] = replace(number, interval=intervals) if intervals else number
    return result


def interval_of_mean(rows: Sequence[tuple[str, float]], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean over (caption, value)."""
    names = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    owner = torch.tensor([names[name] for name, _ in rows])
    sums = torch.zeros(len(names), dtype=torch.double)
    sums.index_add_(0, owner, torch.tensor([value for _, value in rows], dtype=torch.double))
    counts = torch.bincount(owner, minlength=len(names)).double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    together = max(1, AT_ONCE // len(names))
    for done in range(0, RESAMPLES, together):
        drawn = torch.randint(len(names), (min(together, RESAMPLES - done), len(names)), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)).tolist()
    return low, high
