"""Next token: codes in the order of the layout, each from those before it (VQGAN, arXiv:2012.09841; LlamaGen,
2406.06525)."""

from __future__ import annotations

import torch

from tokenizers_vq.layout import Layout

from ..config import TasksConfig
from ..vocabulary import Vocabulary
from .base import ImageSegments, Objective, hidden_places


class NextToken(Objective):
    """Input: the code before, start-of-image first. Target: this code. Each code is a group."""

    name = "next_token"

    def segments(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        generators: list[torch.Generator],
        tasks: TasksConfig | None = None,
    ) -> ImageSegments:
        ids = vocabulary.image_ids(codes)
        start = torch.full_like(ids[:, :1], vocabulary.boi)
        before = ids[:, :-1]
        if tasks is not None and tasks.code_dropout > 0:
            before = before.masked_fill(hidden_places(layout.length - 1, tasks, generators), vocabulary.mask)
        return ImageSegments(torch.cat([start, before], 1), ids, self.groups(layout), layout)

    def groups(self, layout: Layout) -> torch.Tensor:
        return torch.arange(layout.length)
