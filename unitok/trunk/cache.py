"""The KV cache: what the rows of an engine have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from .rule import Visibility, allowed

if TYPE_CHECKING:
    from .base import Sizes


FEWEST = 128
"""Slots of a row that a pass of a fixed form sees at least."""


class Slots(NamedTuple):
    """What n slots of a row hold."""

    keys: torch.Tensor
    """(layers, G, n, D)."""
    values: torch.Tensor
    """(layers, G, n, D)."""
    orders: torch.Tensor
    """(n,) float32: where they stand."""
    pictures: torch.Tensor
    """(n,) bool."""
    looked: bool
    """All as of `KVCache`."""

    def followed_by(self, others: Slots) -> Slots:
        """These and others behind them."""
        keys, values = (torch.cat(pair, 2) for pair in zip(self[:2], others[:2], strict=True))
        orders, pictures = (torch.cat(pair) for pair in zip(self[2:4], others[2:4], strict=True))
        return Slots(keys, values, orders, pictures, self.looked or others.looked)


class KVCache:
    """Keys and values of all layers for B rows of fixed capacity, each row filled from left to right at its own pace.

    A forward pass runs over some of the rows: `extend` takes their next n slots and says who sees whom, each layer then
    stores its keys and values and gets all those of these rows. `rewind` gives slots back. Shapes never change; one
    mask of the slots in use is updated in place.

        extend 8 slots (the prompt)         length 8
        extend 1, extend 1, ...             length 9, 10, ...     code by code
        extend 64, rewind 64, extend 64     length 72, 8, 72      all codes at once, again and again
    """

    def __init__(
        self, config: Sizes, rows: int, capacity: int, device: torch.device, dtype: torch.dtype, further: int = 0
    ) -> None:
        shape = (config.depth + further, rows, config.key_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.orders = torch.zeros(rows, capacity, device=device)
        """Order coordinates of the slots, where some layer sees no further than a window: see `mark`."""
        self.pictures = torch.zeros(rows, capacity, device=device, dtype=torch.bool)
        """Slots of pictures, where some layers see these alone: see `mark`."""
        self.looked = False
        """Whether there may be such; known to the host."""
        self.numbers = torch.full((rows, capacity), -1, device=device)
        """Of slots whose positions were given one: see `extend`. All others have -1."""
        self.used = torch.zeros(rows, capacity, device=device, dtype=torch.bool)
        """Slots that hold something."""
        self.lengths = [0] * rows
        """Slots in use of each row, known to the host."""
        self._on_device = torch.zeros(rows, device=device, dtype=torch.int64)
        """The same."""
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        self._rows: torch.Tensor | slice = slice(0)
        self._index = self._on_device
        self._slots: torch.Tensor | slice = slice(0)
        self._width = 0
        self._layers: list[tuple[torch.Tensor, ...]] = []
        """Keys and values of each layer, for rows that are not in step or a pass of a fixed form: views of these rows,
        or of all where these are no slice. One by one, so that a compiler sees that a layer changes its own alone."""
        self._at, self._among = self._on_device, False
        """Where rows stand in those, and whether others do too."""
        self._blocks: list[tuple[torch.Tensor, ...]] | None = None
        """Of every layer, where rows in step store keys and values, and all those of these rows: views, made once a
        pass and not once a layer."""
        self.gaps = False
        """Whether some slot before a row's length may hold nothing."""

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self.used.shape[1]

    def extend(
        self, rows: Sequence[int], n: int, groups: torch.Tensor | None = None, numbers: torch.Tensor | None = None
    ) -> Visibility:
        """Takes the next n slots of these rows. The new positions see all slots in use, and one another by their groups
        (n,); without groups, they all see one another. With numbers (b, n), which stay, they see of all slots in use
        those of no higher number."""
        even = self.advance(rows, n)
        self._width = max(self.lengths[row] for row in rows)
        if isinstance(self._slots, slice) and isinstance(self._rows, slice):
            views = [
                whole[:, self._rows, :, some]
                for some in (self._slots, slice(self._width))
                for whole in (self.keys, self.values)
            ]
            self._blocks = list(zip(*(view.unbind(0) for view in views), strict=True))
        else:
            self._view(rows)
        if numbers is not None:
            return Visibility("sdpa", mask=self._numbered(numbers))
        if even and groups is None and not self.gaps:
            return Visibility("sdpa")
        used = self.used[self._rows, : self._width]  # (b, W)
        mask = used[:, None, None]
        if groups is not None:
            inside = allowed(groups[None], torch.zeros_like(groups)[None], groups[None], torch.zeros_like(groups)[None])
            mask = mask.repeat(1, 1, n, 1)
            for place, row in enumerate(rows):
                mask[place, 0, :, self.lengths[row] - n : self.lengths[row]] = inside[0, 0]
        return Visibility("sdpa", mask=mask)

    def advance(self, rows: Sequence[int], n: int) -> bool:
        """Takes the next n slots of these rows; says whether the rows are in step."""
        assert all(self.lengths[row] + n <= self.capacity for row in rows), "the KV cache is full"
        starts = {self.lengths[row] for row in rows}
        self._rows = self._every(rows)
        even = len(starts) == 1
        if even and isinstance(self._rows, slice):
            start = starts.pop()
            self._slots = slice(start, start + n)
            self.used[self._rows, self._slots] = True
        else:
            self._index = self.index(rows)
            self._slots = self._on_device[self._index][:, None] + torch.arange(n, device=self.used.device)  # (b, n)
            self.used[self._index[:, None], self._slots] = True
        self._on_device[self._rows] += n
        for row in rows:
            self.lengths[row] += n
        self._blocks = None
        return even

    def reach(self, rows: Sequence[int]) -> int:
        """How many slots `fixed` lets these rows see: one of a few numbers that suffice for all of them."""
        longest = max(self.lengths[row] for row in rows)
        return min(self.capacity, max(FEWEST, 1 << (longest - 1).bit_length()))

    def fixed(
        self, rows: Sequence[int], n: int, width: int, numbers: torch.Tensor | None = None, ends: bool = False
    ) -> Visibility:
        """The n slots that `advance` gave these rows last, in a form that is the same at every step: who stands where
        is read from tensors alone, and all see the first `width` slots, by a mask of those in use, and by their numbers
        (b, n). `ends` says on the host how many slots are in use at most."""
        self._rows, self._index, self._blocks, self._width = self._every(rows), self.index(rows), None, width
        self._slots = self._on_device[self._index][:, None] + torch.arange(-n, 0, device=self.used.device)
        self._view(rows)
        mask = self.used[self._rows, :width][:, None, None] if numbers is None else self._numbered(numbers)
        first = torch.tensor(max(self.lengths[row] for row in rows)) if ends else None
        return Visibility("sdpa", mask=mask, first=first)

    def _view(self, rows: Sequence[int]) -> None:
        self._among = not isinstance(self._rows, slice)
        self._at = self._index if self._among else self.index(range(len(rows)))
        held = slice(None) if self._among else self._rows
        views = [whole[:, held, :, : self._width].unbind(0) for whole in (self.keys, self.values)]
        self._layers = list(zip(*views, strict=True))

    def form(self, rows: Sequence[int]) -> tuple[int, ...] | None:
        """What is common to all rows that lie in memory as these do; None: they stand at uneven distances."""
        every = self._every(rows)
        return (len(rows), every.step, self.rows, self.capacity) if isinstance(every, slice) else None

    def _numbered(self, numbers: torch.Tensor) -> torch.Tensor:
        """(b, 1, n, W) bool: what the slots taken last see, which have these numbers (b, n) from here on."""
        there, documents = self.mark(self.numbers, numbers), self.used[self._rows, : self._width].long() - 1
        return allowed(numbers, torch.zeros_like(numbers), there, documents)

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores (b, G, n, D) in the slots taken last; gives all keys and values of these rows, (b, G, W, D)."""
        if self._blocks is not None:
            own_keys, own_values, all_keys, all_values = self._blocks[layer]
            own_keys.copy_(keys)
            own_values.copy_(values)
            return all_keys, all_values
        where = (self._at[:, None], slice(None), self._slots)
        own_keys, own_values = self._layers[layer]
        own_keys[where] = keys.transpose(1, 2).to(own_keys.dtype)
        own_values[where] = values.transpose(1, 2).to(own_values.dtype)
        return (own_keys[self._at], own_values[self._at]) if self._among else (own_keys, own_values)

    def mark(self, table: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Writes what the slots taken last are (b, n) into a table of all slots; gives that of all slots of these rows,
        (b, W)."""
        step = isinstance(self._slots, slice)
        rows, every = (self._rows, self._rows) if step else (self._index[:, None], self._index)
        table[rows, self._slots] = values.to(table.dtype)
        return table[every, : self._width]

    def rewind(self, rows: Sequence[int], n: int) -> None:
        """Gives the last n slots of these rows back."""
        lengths, every = {self.lengths[row] for row in rows}, self._every(rows)
        if isinstance(every, slice) and len(lengths) == 1:
            end = lengths.pop()
            self._on_device[every] -= n
            self.used[every, end - n : end] = False
            self.numbers[every, end - n : end] = -1
        else:
            index = self.index(rows)
            self._on_device[index] -= n
            slots = self._on_device[index][:, None] + torch.arange(n, device=index.device)
            self.used[index[:, None], slots] = False
            self.numbers[index[:, None], slots] = -1
        for row in rows:
            self.lengths[row] -= n
            assert self.lengths[row] >= 0

    def wipe(self, row: int) -> None:
        """Forgets what a row held that is no number: also where a mask hides it, nothing comes of it but no number."""
        self.keys[:, row] = 0
        self.values[:, row] = 0

    def clear(self, row: int) -> None:
        """Empties a row."""
        self.used[row] = False
        self.numbers[row] = -1
        self._on_device[row] = 0
        self.lengths[row] = 0

    def align(self, rows: Sequence[int]) -> None:
        """Lets these rows go on at the same slot, behind the longest: rows in step are stored as one block."""
        longest = max(self.lengths[row] for row in rows)
        self.gaps = any(self.lengths[row] < longest for row in rows)
        for row in rows:
            self.lengths[row] = longest
        self._on_device[self.index(rows)] = longest

    def held(self, row: int, begin: int, end: int) -> Slots:
        """What some slots of a row hold, copied."""
        here = slice(begin, end)
        keys, values = self.keys[:, row, :, here].clone(), self.values[:, row, :, here].clone()
        return Slots(keys, values, self.orders[row, here].clone(), self.pictures[row, here].clone(), self.looked)

    def copy(self, row: int, slots: Slots) -> None:
        """Fills an empty row with the slots of a prompt."""
        n = len(slots.orders)
        assert self.lengths[row] == 0 and n <= self.capacity
        self._fill(row, slots)
        self.used[row, :n] = True
        self._on_device[row] = n
        self.lengths[row] = n

    def take(self, row: int, other: int, n: int) -> None:
        """Fills a row with the first n slots of another one, in place of what it had."""
        self._fill(row, self.held(other, 0, n))
        self.used[row] = False
        self.used[row, :n] = self.used[other, :n]
        self._on_device[row] = n
        self.lengths[row] = n

    def _fill(self, row: int, slots: Slots) -> None:
        n = len(slots.orders)
        self.keys[:, row, :, :n], self.values[:, row, :, :n] = slots.keys, slots.values
        self.orders[row, :n], self.pictures[row, :n] = slots.orders, slots.pictures
        self.looked = self.looked or slots.looked

    def _every(self, rows: Sequence[int]) -> slice | torch.Tensor:
        """What picks these rows: a slice, which copies nothing, where they stand at even distances (all lanes of an
        engine, or the first lane of each job)."""
        step = max(1, rows[1] - rows[0]) if len(rows) > 1 else 1
        if list(rows) == list(range(rows[0], rows[0] + step * len(rows), step)):
            return slice(rows[0], rows[-1] + 1, step)
        return self.index(rows)

    def index(self, rows: Sequence[int]) -> torch.Tensor:
        """Numbers as a tensor on the device. Each choice is copied once, because a copy waits for the device."""
        key = tuple(rows)
        if key not in self._indices:
            if len(self._indices) > 256:
                self._indices.clear()
            self._indices[key] = torch.tensor(key, device=self.used.device)
        return self._indices[key]
