"""MaskGIT: a random share of the codes is hidden and predicted from the rest, which sees it too (arXiv:2202.04200;
Show-o, 2408.12528)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings
from ..seeding import keyed_generator
from ..sequence import IGNORE, Segment
from ..vocabulary import BARE, Frame, Vocabulary
from .base import Asked, Draw, Objective, Writer, code_runs, code_spans, framed
from .orders import mask_share

CHOICE_TEMPERATURE = 4.5
"""Noise in the order in which codes are fixed, falling linearly to 0 (MaskGIT's published value for 256 px)."""


class MaskGIT(Objective):
    """Input: the code, or the mask token for a random share. Target: the code, where masked. The image is one group,
    with what stands around it.

    The noise in the order falls linearly, or, if `cools_fast`, as in Show-o's code: there each pass multiplies the
    noise of the pass before with the share of the passes that is left. Each pass but the last hides one code at least,
    and fixes one as long as others are left. What is hidden is counted off the whole picture, also where a part of it
    is known, and there are as many passes as asked for.
    """

    name = "maskgit"
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
        around = vocabulary.around(self.frames.drawn)
        segments = [Segment(inputs[row], groups, places, targets[row], runs) for row in range(len(ids))]
        return [framed(segment, *around) for segment in segments]

    def forced(
        self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary, known: torch.Tensor | None = None
    ) -> list[Segment]:
        """Unless it is said what is known, as in the first pass, which draws all codes: in which pass one is fixed
        depends on the drawing."""
        ids, groups = vocabulary.image_ids(codes), torch.zeros(layout.length, dtype=torch.int64)
        hidden = torch.ones_like(ids, dtype=torch.bool) if known is None else ~known
        inputs, runs = ids.masked_fill(hidden, vocabulary.mask), code_runs(layout, vocabulary)
        around, places = vocabulary.around(self.frames.drawn), layout.coordinates()
        segments = [Segment(inputs[row], groups, places, ids[row], runs) for row in range(len(ids))]
        return [framed(segment, *around) for segment in segments]

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return ByConfidence(layout, vocabulary, rows, device, self.frames.drawn, self.cools_fast)


@dataclass(frozen=True)
class Plan:
    """What is known of all passes of a row before the first; on the device, so that no pass waits for it."""

    draws: torch.Tensor
    """(steps, 2, L): uniform, for the codes and for the order in which they are fixed."""
    hidden: torch.Tensor
    """(steps,): codes that are hidden again."""
    noise: torch.Tensor
    """(steps,): of the confidence."""
    still_hidden: list[int]
    """`hidden`, known to the host."""
    unknown: int
    """Codes that are hidden before the first pass."""


class ByConfidence(Writer):
    """Draws all codes in each pass and keeps the most confident ones."""

    def __init__(
        self,
        layout: Layout,
        vocabulary: Vocabulary,
        rows: int,
        device: torch.device,
        frame: Frame = BARE,
        cools_fast: bool = False,
    ) -> None:
        super().__init__(rows)
        self.layout, self.vocabulary, self.cools_fast = layout, vocabulary, cools_fast
        self.spans = code_spans(layout, vocabulary)
        length = layout.length
        nothing = Segment(torch.zeros(length, dtype=torch.int64), torch.zeros(length), layout.coordinates())
        around = vocabulary.around(frame)
        whole = framed(nothing, *around)
        self.places = whole.places.to(device)
        self.ids = whole.ids.to(device)
        """Of all positions, with what stands around the codes."""
        self.inside = slice(len(around[0]), len(around[0]) + length)
        """The positions of the codes."""
        self.codes = torch.full((rows, layout.length), -1, device=device)
        """-1 where a code is hidden."""
        self.plans: list[Plan | None] = [None] * rows

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        device, length, settings = self.codes.device, self.layout.length, self.row(row).at(0, 1)
        self.codes[row] = -1 if known is None else known.to(device)
        unknown = length if known is None else int((known < 0).sum())
        temperature = _number(settings.temperature)
        if self.cools_fast and unknown:
            progress = _progress(settings.steps)
            hidden = [unknown]
            # Rounded as theirs are, in float32: behind two thirds of the passes they hide one code less than half.
            for share in torch.tensor(progress[:-1]).mul(math.pi).mul(0.5).cos().tolist():
                hidden.append(max(1, min(int(share * length), hidden[-1] - 1)))
            hidden = [*hidden[1:], 0]
            noise = [temperature * left for left in accumulate((1 - done for done in progress), mul)]
        else:
            progress = _progress(max(1, min(settings.steps, unknown)))
            hidden = [0 if done == 1 else int(mask_share(done) * unknown) for done in progress]
            noise = [CHOICE_TEMPERATURE * temperature * (1 - done) for done in progress]
        steps = len(progress)
        draws = torch.rand(
            steps, 2, length, generator=keyed_generator(seed, "masked_token")
        )  # the pictures of older models
        on_device = (draws.to(device), torch.tensor(hidden).to(device), torch.tensor(noise).to(device))
        self.plans[row] = Plan(*on_device, hidden, unknown)

    def plan(self, row: int) -> Plan:
        plan = self.plans[row]
        assert plan is not None
        return plan

    def before(self, row: int) -> int:
        plan, step = self.plan(row), self.row(row).step
        return self.layout.length - (plan.still_hidden[step - 1] if step else plan.unknown)

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        codes = self.codes[index]
        ids = self.ids.repeat(len(rows), 1)
        ids[:, self.inside] = torch.where(codes < 0, self.vocabulary.mask, codes + self.vocabulary.image_start)
        first = self.inside.start
        spans = tuple((span, slice(first + here.start, first + here.stop)) for span, here in self.spans)
        return Asked(ids, self.places.expand(len(rows), -1, -1), spans)

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> Sequence[int]:
        codes, steps = self.codes[index], [self.row(row).step for row in rows]
        plans = [(self.plan(row), step) for row, step in zip(rows, steps, strict=True)]
        hidden = codes < 0
        draws = torch.stack([plan.draws[step] for plan, step in plans])  # (b, 2, L)
        settings = list(map(self.settings, rows))
        parts = []
        for logits, (ids, here) in zip(scores, self.spans, strict=True):
            found, chances = choose(logits, draws[:, 0, here], settings)
            parts.append((found + ids.start - self.vocabulary.image_start, chances))
        drawn, chances = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        codes = torch.where(hidden, drawn, codes)
        if any(plan.still_hidden[step] for plan, step in plans):
            # Gumbel noise on the log-probability of the chosen code; codes that are fixed stay fixed.
            gumbel = -torch.log(-torch.log(draws[:, 1].clamp(1e-9, 1 - 1e-7)))
            noise = torch.stack([plan.noise[step] for plan, step in plans])[:, None]
            confidence = (chances.clamp(min=1e-20).log() + noise * gumbel).masked_fill(~hidden, float("inf"))
            rank = confidence.argsort(-1).argsort(-1)
            codes = codes.masked_fill(rank < torch.stack([plan.hidden[step] for plan, step in plans])[:, None], -1)
        self.codes[index] = codes
        for row in rows:
            self.row(row).step += 1
        return [len(self.ids)] * len(rows)

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]

    def steps(self, row: int) -> int:
        return len(self.plan(row).still_hidden)


def _progress(steps: int) -> list[float]:
    """The share of so many passes that is done behind each of them."""
    return [(step + 1) / steps for step in range(steps)]


def _number(value: float | list[float]) -> float:
    assert not isinstance(value, list)
    return value
