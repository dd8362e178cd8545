"""What a generator learns from: one data set, or several side by side."""

from __future__ import annotations

from unitok.config import TasksConfig
from unitok.data.mixture import Mixture
from unitok.data.open import open_data
from unitok.tasks import needs

from .config import SourceConfig


def open_sources(data: str | list[SourceConfig], tasks: TasksConfig, size: tuple[int, int]) -> Mixture:
    """Opens all sources. A record that lacks the caption that its tasks need is broken.

    Raises:
        UserError: as `open_data`.
    """
    sources = [SourceConfig(data=data)] if isinstance(data, str) else data
    shares = []
    for source in sources:
        mine = {task: share for task, share in (source.tasks or tasks.shares()).items() if share > 0}
        total = sum(mine.values())
        shares.append({task: source.share * share / total for task, share in mine.items()})
    parts = [
        open_data(source.data, size, captions="caption" in needs(mine))
        for source, mine in zip(sources, shares, strict=True)
    ]
    return Mixture(parts, shares, [source.weight for source in sources])
