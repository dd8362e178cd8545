"""Codes in sub-tokens: ids of a large codebook, of which each is several digits (Open-MAGVIT2, arXiv:2409.04410).

The first sub-token is the last digit: with sizes (64, 4096), code = first + 64 * second. No table has a row for each
code. Sub-tokens are drawn in turn, each by those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..ports import DEVIATION
from ..sequence import Ids

Intra = Callable[[torch.Tensor], torch.Tensor]
"""From the state of a position and the vectors of its first sub-tokens, (N, g, C), to the states by which the first
sub-token and those behind them are scored, (N, g, C)."""


def split(codes: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Codes (...) to sub-tokens (..., G). Without sizes a code is the only one.

    >>> split(torch.tensor([200]), (64, 4096)), split(torch.tensor([200]), ())
    (tensor([[8, 3]]), tensor([[200]]))
    """
    parts = []
    for size in sizes[:-1]:
        parts.append(codes % size)
        codes = codes // size
    return torch.stack([*parts, codes], -1)


def join(parts: Sequence[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """Sub-tokens (...), one tensor for each, to codes (...): the inverse of `split`."""
    codes = parts[-1]
    for part, size in zip(parts[-2::-1], sizes[-2::-1], strict=True):
        codes = codes * size + part
    return codes


class SubTokenPort(nn.Module):
    """In place of `IdPort` for a model whose image codes have sub-tokens, and that writes nothing else.

    Args:
        size: ids of the vocabulary.
        image: those of them that are codes.
        sizes: values of each sub-token; their product is the number of codes.
        width: C.
    """

    intra: Intra
    """The transformer inside a position, which is the trunk's: the model puts it here."""

    def __init__(self, size: int, image: slice, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.image, self.sizes = image, tuple(sizes)
        self.codes = image.stop - image.start
        self.embedding = nn.Embedding(size - self.codes, width)
        """Of all ids that are no codes."""
        self.tables = nn.ModuleList(nn.Embedding(number, width) for number in sizes)
        self.heads = nn.ModuleList(nn.Linear(width, number, bias=False) for number in sizes)
        for weight in self.parameters():
            nn.init.normal_(weight, std=DEVIATION)
        self.pack: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]] | None = None
        """As of `IdPort`; the heads are small and stay as they are."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to vectors (..., C). That of a code is the sum of those of its sub-tokens."""
        is_code = (ids >= self.image.start) & (ids < self.image.stop)
        parts = split((ids - self.image.start).masked_fill(~is_code, 0), self.sizes)
        others = torch.where(ids < self.image.start, ids, ids - self.codes).masked_fill(is_code, 0)
        vectors = sum(table(part) for table, part in zip(self.tables, parts.unbind(-1), strict=True))
        return torch.where(is_code[..., None], cast("torch.Tensor", vectors), self.embedding(others))

    def scores(self, hidden: torch.Tensor, ids: slice, before: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Logits (..., n) float32 of the sub-token that follows those `before` it, (...) each, from the states (..., C)
        of positions."""
        return self._scores(self._states(hidden, before)[..., -1, :], len(before))

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, ids: Ids) -> torch.Tensor:
        """Cross-entropies (N,) float32 of codes, summed over their sub-tokens, from states (N, C) and targets (N,)."""
        parts = split(targets - self.image.start, self.sizes).unbind(-1)
        states = self._states(hidden, parts[:-1])  # (N, G, C)
        losses = [
            F.cross_entropy(self._scores(states[:, place], place), part, reduction="none")
            for place, part in enumerate(parts)
        ]
        return torch.stack(losses).sum(0)

    def forced(self, hidden: torch.Tensor, targets: torch.Tensor, ids: slice) -> torch.Tensor:
        """Logits (N, G, n) float32 of the sub-tokens of codes, each behind those before it, from states (N, C) and
        targets (N,); n is the largest of the sizes, and minus infinity stands where a sub-token has fewer values."""
        parts = split(targets - self.image.start, self.sizes).unbind(-1)
        states = self._states(hidden, parts[:-1])
        found = hidden.new_full((len(hidden), *self.shape(ids)), -torch.inf, dtype=torch.float32)
        for place, size in enumerate(self.sizes):
            found[:, place, :size] = self._scores(states[:, place], place)
        return found

    def shape(self, ids: slice) -> tuple[int, ...]:
        """(G, n): see `forced`."""
        return len(self.sizes), max(self.sizes)

    def _states(self, hidden: torch.Tensor, before: Sequence[torch.Tensor]) -> torch.Tensor:
        """(..., 1 + g, C): the states by which the first sub-token is scored, and each that follows one of `before`."""
        vectors = [cast("torch.Tensor", table(part)) for table, part in zip(self.tables, before, strict=False)]
        inside = torch.stack([hidden, *(one.to(hidden.dtype) for one in vectors)], -2)
        return self.intra(inside.flatten(0, -3)).view(inside.shape)

    def _scores(self, states: torch.Tensor, place: int) -> torch.Tensor:
        return cast("torch.Tensor", self.heads[place](states)).float()
