"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.layout import Layout

from ..config import TasksConfig
from ..sequence import IGNORE, DocumentBuilder
from ..vocabulary import Vocabulary


@dataclass
class ImageSegments:
    """B images, ready to stand in documents."""

    inputs: torch.Tensor
    """(B, L) int64 ids."""
    targets: torch.Tensor
    """(B, L) int64 ids, or IGNORE where nothing is predicted."""
    groups: torch.Tensor
    """(L,) int64, counted from 0."""
    layout: Layout
    """Where the positions lie."""
    features: torch.Tensor | None = None
    """(B, L, F) float32: what stands at the positions beside the ids, for objectives that have such."""

    def add_to(self, builder: DocumentBuilder, row: int) -> DocumentBuilder:
        """Adds one of the images to a document."""
        features = None if self.features is None else self.features[row].cpu()
        inputs, targets, groups = self.inputs[row].cpu(), self.targets[row].cpu(), self.groups.cpu()
        return builder.image(inputs, targets, groups, self.layout, features)


def hidden_places(length: int, tasks: TasksConfig, generators: list[torch.Generator]) -> torch.Tensor:
    """(B, length) bool: the places that `tasks.code_dropout` hides, a share of its own of each image."""
    draws = [torch.rand(1 + length, generator=generator) for generator in generators]
    table = torch.stack(draws) if draws else torch.zeros(0, 1 + length)
    return table[:, 1:] < tasks.code_dropout * table[:, :1]


class Objective(ABC):
    """Answers for target images: what stands at their positions, what is predicted there, who sees whom."""

    name: ClassVar[str]

    @classmethod
    def for_tokenizer(cls, image_tokenizer: ImageTokenizer) -> Self:
        """The objective for the codes of a tokenizer. Raises UserError when it cannot work with them."""
        return cls()

    @property
    def features(self) -> int:
        """Length of `ImageSegments.features`; 0: there are none."""
        return 0

    @abstractmethod
    def segments(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        generators: list[torch.Generator],
        tasks: TasksConfig | None = None,
    ) -> ImageSegments:
        """Codes (B, L) to segments; row b draws whatever is random from `generators[b]` alone. `tasks` says what is
        hidden or changed of what a picture is continued from; without it nothing is."""

    def context(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> ImageSegments:
        """Codes (B, L) of images that are read, not drawn: nothing is predicted, and all positions are one group."""
        ids = vocabulary.image_ids(codes)
        return ImageSegments(ids, torch.full_like(ids, IGNORE), torch.zeros_like(ids[0]), layout)

    @abstractmethod
    def groups(self, layout: Layout) -> torch.Tensor:
        """(L,) int64: the group of every position, counted from 0. Training and decoding share it."""
