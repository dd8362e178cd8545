"""Several sources of training data side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..tasks import task_of_slot
from .fingerprint import digest
from .records import LeftOut, Record, RecordDataset, ShardedDataset


@dataclass(frozen=True)
class Source:
    """A data set among those that a run learns from."""

    length: int
    endless: bool
    first: int = 0
    """Its first index among the records of all sources."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Task -> share of the batch; empty where tasks do not matter."""
    weight: float = 1.0
    """Of the losses of its records."""
    shards: Sequence[int] = ()
    """Records of each shard, where records are read shard by shard."""
    prefetch: Callable[[Sequence[int]], None] | None = None
    """Is told which shards are read next."""


class Mixture:
    """Records of several data sets, laid end to end.

    Args:
        parts: data sets.
        tasks: of each, task -> share of the batch.
        weights: of each, the weight of its records' losses.
    """

    def __init__(
        self, parts: Sequence[RecordDataset], tasks: Sequence[dict[str, float]], weights: Sequence[float]
    ) -> None:
        self.parts = list(parts)
        firsts = list(accumulate((len(part) for part in parts), initial=0))
        self._length = firsts.pop()
        self.sources = [
            Source(len(part), part.endless, first, shares, weight, *shards_of(part))
            for part, first, shares, weight in zip(parts, firsts, tasks, weights, strict=True)
        ]

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def endless(self) -> bool:
        return all(part.endless for part in self.parts)

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return [one for part in self.parts for one in part.left_out]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        for part, source in zip(self.parts, self.sources, strict=True):
            if source.first <= index < source.first + source.length:
                return part[index - source.first]
        raise IndexError(f"{self.name} has {len(self)} records, index is {index}")

    def fingerprint(self) -> str:
        facts: list[Any] = [part.fingerprint() for part in self.parts]
        facts += [[source.tasks, source.weight] for source in self.sources]
        return facts[0] if len(self.parts) == 1 else digest(facts, 0, lambda _: b"")


def sources_of(dataset: RecordDataset) -> list[Source]:
    """The sources of a data set; of most, one."""
    if isinstance(dataset, Mixture):
        return dataset.sources
    shards, prefetch = shards_of(dataset)
    return [Source(len(dataset), dataset.endless, shards=shards, prefetch=prefetch)]


def shards_of(dataset: RecordDataset) -> tuple[Sequence[int], Callable[[Sequence[int]], None] | None]:
    """(records of each shard, who is told which are read next) of data that come shard by shard."""
    return (dataset.shards, dataset.prefetch) if isinstance(dataset, ShardedDataset) else ((), None)


def pairs_of(sources: Sequence[Source]) -> list[tuple[int, str, float]]:
    """(source, task, share of the batch), in the order in which slots are dealt out."""
    found = [(n, task, share) for n, source in enumerate(sources) for task, share in source.tasks.items()]
    return found or [(number, "", 1.0) for number in range(len(sources))]


def pair_of_slot(slot: int, sources: Sequence[Source]) -> tuple[int, str]:
    """(source, task) of a place in the global batch."""
    pairs = pairs_of(sources)
    number, task, _ = pairs[task_of_slot(slot, [share for _, _, share in pairs])]
    return number, task


def without_a_slot(sources: Sequence[Source], slots: int) -> list[str]:
    """The tasks that none of so many slots of the global batch belongs to, which are then not trained."""
    served = {pair_of_slot(slot, sources)[1] for slot in range(slots)}
    return sorted({task for _, task, share in pairs_of(sources) if share > 0} - served)


def idle_sources(sources: Sequence[Source], slots: int) -> list[int]:
    """The numbers of the sources of which no record is among so many slots of the global batch."""
    served = {pair_of_slot(slot, sources)[0] for slot in range(slots)}
    return [number for number, one in enumerate(sources) if number not in served and sum(one.tasks.values()) > 0]


def source_of_slot(slot: int, sources: Sequence[Source]) -> int:
    return 0 if len(sources) == 1 else pair_of_slot(slot, sources)[0]
