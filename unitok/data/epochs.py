"""Which record stands where in the epochs of a data set: each shuffled anew, in memory that does not grow with it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from ..seeding import keyed_generator

if TYPE_CHECKING:
    import torch

GROUP = 2**20
"""Records that are shuffled together; their order takes 8 MB and about 20 ms."""
WINDOW = 8
"""Shards that are shuffled together, where records of a shard are read together."""


class EpochOrder:
    """The epochs of a data set laid end to end. A record is found by its place alone: nothing is drawn in turn.

    An epoch goes through parts of the data set in an order of its own, and shuffles a few of them at a time. Where any
    record is as near as any other, a part is every G-th record, and one is taken at a time: so each is spread over the
    whole data set, which may be sorted by class, and up to `GROUP` records are one part, shuffled as a whole. Of data
    that come in shards, a part is a shard, and `WINDOW` of them are shuffled together.

    Args:
        seed: of this data set's order.
        length: records, at least 1.
        shards: records of each shard, of data that are read shard by shard.
    """

    def __init__(self, seed: int, length: int, shards: Sequence[int] = ()) -> None:
        assert length >= 1 and (not shards or sum(shards) == length), length
        self.seed, self.length = seed, length
        groups = -(-length // GROUP)
        self._parts = [range(group, length, groups) for group in range(0 if shards else groups)]
        starts = accumulate(shards, initial=0)
        self._parts += [range(start, start + count) for start, count in zip(starts, shards, strict=False)]
        self._together = WINDOW if shards else 1
        # A step touches at most the end of one turn and the start of the next.
        self._turns = lru_cache(maxsize=2)(self._turns_of)
        self._shuffled = lru_cache(maxsize=2)(self._order_in)

    def at(self, place: int) -> tuple[int, int]:
        """(epoch, index of the record) of a place from 0 up, without end."""
        epoch, turn, within = self._find(place)
        within = int(self._shuffled(epoch, turn)[within])
        for part in (self._parts[number] for number in self._turns(epoch)[0][turn]):
            if within < len(part):
                return epoch, part[within]
            within -= len(part)
        raise AssertionError("a turn is as long as its parts")

    def ahead(self, place: int) -> list[int]:
        """The parts of a place's turn, and those of the turn behind it."""
        epoch, turn, _ = self._find(place)
        turns, _ = self._turns(epoch)
        return [*turns[turn], *(turns[turn + 1] if turn + 1 < len(turns) else self._turns(epoch + 1)[0][0])]

    def _find(self, place: int) -> tuple[int, int, int]:
        """(epoch, turn, place in the turn)."""
        epoch, place = divmod(place, self.length)
        _, starts = self._turns(epoch)
        turn = bisect_right(starts, place) - 1
        return epoch, turn, place - starts[turn]

    def _turns_of(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """(numbers of the parts of each turn, where each turn begins in the epoch)."""
        order = _shuffle(len(self._parts), self.seed, "groups", epoch).tolist()
        turns = [order[start : start + self._together] for start in range(0, len(order), self._together)]
        return turns, list(accumulate(map(self._size, turns[:-1]), initial=0))

    def _size(self, turn: list[int]) -> int:
        return sum(len(self._parts[number]) for number in turn)

    def _order_in(self, epoch: int, turn: int) -> torch.Tensor:
        size = self._size(self._turns(epoch)[0][turn])
        return _shuffle(size, self.seed, "order", epoch, *([turn] if turn else []))


def _shuffle(length: int, *key: int | str) -> torch.Tensor:
    import torch

    return torch.randperm(length, generator=keyed_generator(*key))
