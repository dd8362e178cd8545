"""Which record stands where in the epochs of a data set: each shuffled anew, in memory that does not grow with it."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from .seeding import keyed_generator

if TYPE_CHECKING:
    import torch

GROUP = 2**20
"""Records that are shuffled together; their order takes 8 MB and about 20 ms."""


class EpochOrder:
    """The epochs of a data set laid end to end. A record is found by its place alone: nothing is drawn in turn.

    Up to `GROUP` records are shuffled as a whole. More of them are dealt out to groups like cards, record i to group
    i mod G: so every group is spread over the whole data set, which may be sorted by class. An epoch takes the groups
    in an order of its own, and shuffles each.

    Args:
        seed: of this data set's order.
        length: records, at least 1.
    """

    def __init__(self, seed: int, length: int) -> None:
        assert length >= 1, length
        self.seed, self.length = seed, length
        self.groups = -(-length // GROUP)
        # A step touches at most the end of one group and the start of the next.
        self._turns = lru_cache(maxsize=2)(self._order_of_groups)
        self._shuffled = lru_cache(maxsize=2)(self._order_in_group)

    def at(self, place: int) -> tuple[int, int]:
        """(epoch, index of the record) of a place from 0 up, without end."""
        epoch, place = divmod(place, self.length)
        groups, starts = self._turns(epoch)
        turn = bisect_right(starts, place) - 1
        group = groups[turn]
        within = int(self._shuffled(epoch, turn, self._size(group))[place - starts[turn]])
        return epoch, group + self.groups * within

    def _size(self, group: int) -> int:
        return (self.length - group + self.groups - 1) // self.groups

    def _order_of_groups(self, epoch: int) -> tuple[list[int], list[int]]:
        """(groups, where each begins in the epoch)."""
        groups = _shuffle(self.groups, self.seed, "groups", epoch).tolist()
        return groups, list(accumulate(map(self._size, groups[:-1]), initial=0))

    def _order_in_group(self, epoch: int, turn: int, size: int) -> torch.Tensor:
        return _shuffle(size, self.seed, "order", epoch, *([turn] if turn else []))


def _shuffle(length: int, *key: int | str) -> torch.Tensor:
    import torch

    return torch.randperm(length, generator=keyed_generator(*key))
