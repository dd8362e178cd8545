"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenizers_vq.layout import Layout

from ..vocabulary import Vocabulary


@dataclass
class ImageSegments:
    """B target images of one layout, ready to stand in documents."""

    inputs: torch.Tensor
    """(B, L) int64 ids."""
    targets: torch.Tensor
    """(B, L) int64 ids, or IGNORE where nothing is predicted."""
    groups: torch.Tensor
    """(L,) int64, counted from 0."""


class Objective(ABC):
    """Answers for target images: what stands at their positions, what is predicted there, who sees whom."""

    name: ClassVar[str]

    @abstractmethod
    def segments(
        self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary, generators: list[torch.Generator]
    ) -> ImageSegments:
        """Codes (B, L) to segments; row b draws whatever is random from `generators[b]` alone."""

    @abstractmethod
    def groups(self, layout: Layout) -> torch.Tensor:
        """(L,) int64: the group of every position, counted from 0. Training and decoding share it."""
