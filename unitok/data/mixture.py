"""Several sources of training data side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from tokenizers_vq.errors import UserError

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


def parts_of(dataset: RecordDataset) -> list[RecordDataset]:
    """The data sets that `sources_of` are of."""
    return dataset.parts if isinstance(dataset, Mixture) else [dataset]


def shards_of(dataset: RecordDataset) -> tuple[Sequence[int], Callable[[Sequence[int]], None] | None]:
    """(records of each shard, who is told which are read next) of data that come shard by shard."""
    return (dataset.shards, dataset.prefetch) if isinstance(dataset, ShardedDataset) else ((), None)


@dataclass(frozen=True)
class Slot:
    """A place in the global batch: the same in every step, so micro-batches and ranks do not change the mix."""

    source: int
    """Its number."""
    task: str
    weight: float = 1.0
    """Of the losses of its record."""


def slots_of(sources: Sequence[Source], number: int) -> list[Slot]:
    """The slots of a global batch of so many records.

    Each task of each source has as many as its share says, evenly spread, and at least one: what comes into no step is
    not learned. The slot is then one of those who have most beyond their share.

    Raises:
        UserError: there are fewer slots than shares.
    """
    pairs = [(source, task, share) for source, one in enumerate(sources) for task, share in one.tasks.items() if share]
    pairs = pairs or [(source, "", 1.0) for source in range(len(sources))]
    if number < len(pairs):
        raise UserError(
            f"{len(pairs)} tasks of {len(sources)} data set(s) share the {number} record(s) of a step, so some would "
            "never be learned: raise --run.batch_size, or set some shares to 0, as in --tasks.image_to_text.share 0"
        )
    shares = [share for *_, share in pairs]
    dealt = [task_of_slot(slot, shares) for slot in range(number)]
    for missing in sorted(set(range(len(pairs))) - set(dealt)):
        excess = [dealt.count(one) - number * shares[one] / sum(shares) for one in range(len(pairs))]
        richest = max((one for one in range(len(pairs)) if dealt.count(one) > 1), key=lambda one: excess[one])
        dealt[dealt.index(richest)] = missing
    return [Slot(*pairs[one][:2], sources[pairs[one][0]].weight) for one in dealt]
