"""Layout: which codes an image becomes.

An ordered list of scales, each a (height, width) grid. A raster tokenizer has one scale, a multi-scale tokenizer has
several, a 1-D tokenizer has one of height 1. Codes travel flat, (B, L) int64, scale-major then row-major.
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

    def __post_init__(self) -> None:
        scales = tuple((int(height), int(width)) for height, width in self.scales)
        if not scales or any(height < 1 or width < 1 for height, width in scales):
            raise UserError(f"layout {self.scales} is not a list of (height, width) grids of at least 1x1")
        object.__setattr__(self, "scales", scales)

    @property
    def length(self) -> int:
        """Codes per image."""
        return sum(height * width for height, width in self.scales)

    @property
    def grid(self) -> tuple[int, int]:
        """The finest (height, width)."""
        return self.scales[-1]

    def coordinates(self) -> torch.Tensor:
        """(L, 3) int64: scale, row, column of every code, in the order in which codes travel."""
        import torch

        parts = []
        for index, (height, width) in enumerate(self.scales):
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            scale = torch.full_like(row, index)
            parts.append(torch.stack([scale, row, column], dim=-1).reshape(height * width, 3))
        return torch.cat(parts)
