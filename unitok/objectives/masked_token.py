"""Masked token: a random share of the codes is hidden and predicted from the rest (MaskGIT, arXiv:2202.04200;
Show-o)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings
from ..seeding import keyed_generator
from ..sequence import IGNORE, Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, code_runs, code_spans

CHOICE_TEMPERATURE = 4.5
"""Noise in the order in which codes are fixed, falling linearly to 0 (MaskGIT's published value for 256 px)."""


def mask_share(progress: float) -> float:
    """The cosine schedule: share of codes still hidden at `progress` in [0, 1]. Training draws progress uniformly;
    decoding walks it from 0 to 1."""
    return math.cos(math.pi / 2 * progress)


class MaskedToken(Objective):
    """Input: the code, or the mask token for a random share. Target: the code, where masked. The image is one
    group."""

    name = "masked_token"
    passes = True

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        ids = vocabulary.image_ids(codes)
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        for row, draw in enumerate(draws):
            progress = torch.rand((), generator=draw.generator).item()
            count = max(1, round(mask_share(progress) * layout.length))
            hidden[row, torch.randperm(layout.length, generator=draw.generator)[:count]] = True
        inputs, targets = ids.masked_fill(hidden, vocabulary.mask), ids.masked_fill(~hidden, IGNORE)
        groups, places = torch.zeros(layout.length, dtype=torch.int64), layout.coordinates()
        runs = code_runs(layout, vocabulary)
        return [Segment(inputs[row], groups, places, targets[row], runs) for row in range(len(ids))]

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return ByConfidence(layout, vocabulary, rows, device)


class ByConfidence(Writer):
    """Draws all codes in each pass and keeps the most confident ones."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> None:
        super().__init__(rows)
        self.layout, self.vocabulary = layout, vocabulary
        self.spans = code_spans(layout, vocabulary)
        self.places = layout.coordinates().to(device)
        self.codes = torch.full((rows, layout.length), -1, device=device)
        """-1 where a code is hidden."""
        self.generators = [torch.Generator()] * rows
        self.unknown = [0] * rows
        """Codes that each row writes."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        self.codes[row] = -1 if known is None else known.to(self.codes.device)
        self.generators[row] = keyed_generator(seed, "masked_token")
        self.unknown[row] = self.layout.length if known is None else int((known < 0).sum())

    def steps(self, row: int) -> int:
        return max(1, min(self.row(row).settings.steps, self.unknown[row]))

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        codes = self.codes[index]
        ids = torch.where(codes < 0, self.vocabulary.mask, codes + self.vocabulary.image_start)
        return Asked(ids, self.places.expand(len(rows), -1, -1), self.spans, keep=False)

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        codes, settings, device = self.codes[index], list(map(self.settings, rows)), self.codes.device
        hidden = codes < 0
        draws = torch.stack([torch.rand(2, self.layout.length, generator=self.generators[row]) for row in rows])
        draws = draws.to(device)
        parts = []
        for logits, (ids, here) in zip(scores, self.spans, strict=True):
            found, chances = choose(logits, draws[:, 0, here], settings)
            parts.append((found + ids.start - self.vocabulary.image_start, chances))
        drawn, chances = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        codes = torch.where(hidden, drawn, codes)
        progress = [(self.row(row).step + 1) / self.steps(row) for row in rows]
        again = [
            0 if done == 1 else int(mask_share(done) * self.unknown[r]) for r, done in zip(rows, progress, strict=True)
        ]
        if any(again):
            # Gumbel noise on the log-probability of the chosen code; codes that are fixed stay fixed.
            gumbel = -torch.log(-torch.log(draws[:, 1].clamp(1e-9, 1 - 1e-7)))
            noise = [
                CHOICE_TEMPERATURE * _number(s.temperature) * (1 - p) for s, p in zip(settings, progress, strict=True)
            ]
            confidence = chances.clamp(min=1e-20).log() + torch.tensor(noise, device=device)[:, None] * gumbel
            confidence = confidence.masked_fill(~hidden, float("inf"))
            rank = confidence.argsort(-1).argsort(-1)
            codes = codes.masked_fill(rank < torch.tensor(again, device=device)[:, None], -1)
        self.codes[index] = codes
        for row in rows:
            self.row(row).step += 1

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]


def _number(value: float | list[float]) -> float:
    assert not isinstance(value, list)
    return value
