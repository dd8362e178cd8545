"""Masked token: a random share of the codes is hidden and predicted from the rest (MaskGIT, arXiv:2202.04200;
Show-o)."""

from __future__ import annotations

import math

import torch

from tokenizers_vq.layout import Layout

from ..config import TasksConfig
from ..sequence import IGNORE
from ..vocabulary import Vocabulary
from .base import ImageSegments, Objective


def mask_share(progress: float) -> float:
    """The cosine schedule: share of codes still hidden at `progress` in [0, 1]. Training draws progress uniformly;
    decoding walks it from 0 to 1."""
    return math.cos(math.pi / 2 * progress)


class MaskedToken(Objective):
    """Input: the code, or the mask token for a random share. Target: the code, where masked. The image is one
    group."""

    name = "masked_token"

    def segments(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        generators: list[torch.Generator],
        tasks: TasksConfig | None = None,
    ) -> ImageSegments:
        ids = vocabulary.image_ids(codes)
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        for row, generator in enumerate(generators):
            progress = torch.rand((), generator=generator).item()
            count = max(1, round(mask_share(progress) * layout.length))
            hidden[row, torch.randperm(layout.length, generator=generator)[:count]] = True
        return ImageSegments(
            ids.masked_fill(hidden, vocabulary.mask), ids.masked_fill(~hidden, IGNORE), self.groups(layout), layout
        )

    def groups(self, layout: Layout) -> torch.Tensor:
        return torch.zeros(layout.length, dtype=torch.int64)
