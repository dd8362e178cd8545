"""Layout: which codes an image becomes.

An ordered list of scales, each a (height, width) grid. A raster tokenizer has one scale, a multi-scale tokenizer has
several, a 1-D tokenizer has one of height 1; one that writes G codes for each place has G equal ones. Codes travel
flat, (B, L) int64, scale-major then row-major.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """The grids of an image's codes, coarse to fine.

    >>> Layout(((2, 3),)).length
    6
    """

    scales: tuple[tuple[int, int], ...]
    books: tuple[tuple[int, int], ...] = ()
    """(first id, number of ids) that each grid can hold; empty: every grid holds any code."""
    in_line: bool = False
    """Whether codes have places in one line, as the tokens of a language model, and not by row and column."""

    def __post_init__(self) -> None:
        scales = tuple((int(height), int(width)) for height, width in self.scales)
        if not scales or any(height < 1 or width < 1 for height, width in scales):
            raise UserError(f"layout {self.scales} is not a list of (height, width) grids of at least 1x1")
        object.__setattr__(self, "scales", scales)
        books = tuple((int(first), int(size)) for first, size in self.books)
        if books and (len(books) != len(scales) or any(first < 0 or size < 1 for first, size in books)):
            raise UserError(f"layout has {len(scales)} grids and books {list(books)}: give (first, size) for each grid")
        object.__setattr__(self, "books", books)

    @property
    def length(self) -> int:
        """Codes per image."""
        return sum(self.lengths)

    @property
    def grid(self) -> tuple[int, int]:
        """The finest (height, width)."""
        return self.scales[-1]

    @property
    def lengths(self) -> list[int]:
        """Codes of each scale."""
        return [height * width for height, width in self.scales]

    @property
    def names(self) -> list[str]:
        """What to call each scale: its grid, numbered where several are alike.

        >>> Layout(((1, 1), (2, 2), (2, 2))).names
        ['1x1', '2x2 1', '2x2 2']
        """
        names = [f"{height}x{width}" for height, width in self.scales]
        return [f"{n} {names[: i + 1].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]

    def split(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Codes (B, L), or of the first scales only, as one (B, n) per scale.

        >>> import torch
        >>> [part.tolist() for part in Layout(((1, 1), (1, 2))).split(torch.tensor([[7, 8, 9]]))]
        [[[7]], [[8, 9]]]
        """
        parts, start = [], 0
        for length in self.lengths:
            if start < codes.shape[1]:
                parts.append(codes[:, start : start + length])
            start += length
        return parts

    def coordinates(self) -> torch.Tensor:
        """(L, 3) float32: scale, row, column of every code, in the order in which codes travel.

        Rows and columns count in the finest grid's units, so that codes of different scales that show the same place
        have the same coordinates. In one line, the first number counts the codes, and there are no rows and columns.

        >>> Layout(((1, 1), (2, 2))).coordinates().tolist()[:2]
        [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
        >>> Layout(((1, 2),), in_line=True).coordinates().tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
        """
        import torch

        if self.in_line:
            places = torch.zeros(self.length, 3)
            places[:, 0] = torch.arange(self.length)
            return places
        parts = []
        for index, (height, width) in enumerate(self.scales):
            row = (torch.arange(height) + 0.5) * (self.grid[0] / height) - 0.5
            column = (torch.arange(width) + 0.5) * (self.grid[1] / width) - 0.5
            rows, columns = torch.meshgrid(row, column, indexing="ij")
            parts.append(torch.stack([torch.full_like(rows, index), rows, columns], dim=-1).reshape(-1, 3))
        return torch.cat(parts)
