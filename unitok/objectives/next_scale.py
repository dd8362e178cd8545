"""Next scale: map by map, coarse to fine, and the places of a map that have one parent in turn.

VAR (arXiv:2404.02905) draws all codes of a map at once. Where the coarser map leaves open in which of its four children
an object lies, two children then have it, or none. Here the four are never drawn together: a map comes in four passes,
each of which sees what the passes before have drawn around its places. (docs/log.md, 2026-11-25.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import torch
import torch.nn.functional as F

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings, PortConfig
from ..sampling import SampleSettings
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Writer, hidden_places
from .var import PORT, VAR, ScaleByScale

TURNS = ((0, 2), (3, 1))
"""Of the four places of one parent: which pass draws each."""
AROUND = 9
"""Places of a map that a position sees: its own and those around it."""


class NextScale(VAR):
    """Input: the picture so far on this scale's grid, around the place, and which of it is drawn; the code nearest to
    what is seen at the place itself; and which scale it is. Target: this scale's codes. Each pass is a group."""

    name = "next_scale"
    settings = MappingProxyType({"code_dropout": 0.4, "code_noise": 0.5})
    sampling = MappingProxyType({"guidance": 1.75, "top_p": 0.5})

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        return {PORT: PortConfig("linear", AROUND * (self.quantizer.width + 1) + self.scales)}

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        if not len(codes):
            return []
        drawn = codes
        if settings is not None and settings.code_noise:
            codes, seen, drawn = self.quantizer.rewrite(codes, layout, self.noise(layout, draws, settings.code_noise))
        else:
            seen = self.quantizer.seen_before(codes, layout)  # (B, L, D)
        turns = in_turn(layout)
        order = torch.tensor([place for here in turns for place in here])
        passes = torch.tensor([number for number, here in enumerate(turns) for _ in here])
        groups = torch.empty_like(passes).scatter(0, order, passes)  # the pass of every place
        features = []
        for scale, (some, there, mine) in enumerate(
            zip(seen.split(layout.lengths, 1), layout.split(drawn), groups.split(layout.lengths), strict=True)
        ):
            found = some.new_zeros(*some.shape[:2], self.ports(layout)[PORT].size)
            for number in mine.unique().tolist():
                here = mine == number
                found[:, here] = self.around(some, there, mine < number, scale, layout)[:, here]
            features.append(found)
        ids, inputs = vocabulary.image_ids(codes).cpu(), self.inputs(seen, self.groups(layout), vocabulary).cpu()
        values = torch.cat(features, 1).cpu()
        if settings is not None and settings.code_dropout:
            hidden = hidden_places(layout.length, settings.code_dropout, draws)
            inputs, values = inputs.masked_fill(hidden, vocabulary.mask), values.masked_fill(hidden[..., None], 0.0)
        ids, inputs, values, places = ids[:, order], inputs[:, order], values[:, order], layout.coordinates()[order]
        runs = ((vocabulary.image_range, layout.length),)
        return [Segment(inputs[b], passes, places, ids[b], runs, values[b], PORT) for b in range(len(ids))]

    def given(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> list[Segment]:
        """The whole reconstruction on the finest grid, at each place alone, marked as of no scale. (With the places
        around it, reading is learned sooner and drawing much later: docs/log.md, 2026-11-25.)"""
        width, size = self.quantizer.width, self.ports(layout)[PORT].size
        before = AROUND // 2 * (width + 1)
        segments = super().given(codes, layout, vocabulary)
        return [
            replace(one, features=F.pad(one.features[:, :width], (before, size - before - width)))
            for one in segments
            if one.features is not None
        ]

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return InTurn(self, layout, vocabulary, rows, device)

    def around(
        self, seen: torch.Tensor, codes: torch.Tensor, known: torch.Tensor, scale: int, layout: Layout
    ) -> torch.Tensor:
        """Features (B, n, F) of the places of a scale, of which those that are `known` (n,) have codes (B, n); the
        others are as seen (B, n, D) from the coarser scales."""
        placed = self.quantizer.placed(seen, codes, scale, layout)
        now = self.white(torch.where(known.to(seen.device)[:, None], placed, seen))
        mark = known.to(now)[:, None].expand(*now.shape[:2], 1)
        number = F.one_hot(torch.tensor(scale), self.scales).to(now).expand(*now.shape[:2], -1)
        return torch.cat([neighbours(torch.cat([now, mark], -1), layout.scales[scale]), number], -1)


def neighbours(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, n, 9 F): the values (B, n, F) at each place of a grid and at those around it, row by row; zeros outside."""
    image = values.transpose(1, 2).unflatten(2, grid)  # (B, F, h, w)
    return F.unfold(image, 3, padding=1).unflatten(1, (-1, AROUND)).permute(0, 3, 2, 1).flatten(2)


@cache
def in_turn(layout: Layout) -> list[list[int]]:
    """The places that each pass draws. Of every 2x2 places that have one parent, those across come first."""
    passes, start = [], 0
    for height, width in layout.scales:
        kinds = [TURNS[row % 2][column % 2] for row in range(height) for column in range(width)]
        for kind in sorted(set(kinds)):
            passes.append([start + place for place, one in enumerate(kinds) if one == kind])
        start += height * width
    return passes


class InTurn(ScaleByScale):
    """Writes map by map, each in its passes."""

    def __init__(
        self, objective: NextScale, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device
    ) -> None:
        super().__init__(objective, layout, vocabulary, rows, device)
        self.around = objective.around
        turns = in_turn(layout)
        self.order = [torch.tensor(here, device=device) for here in turns]
        """Of every pass: the places that it draws."""
        self.starts = [sum(layout.lengths[:scale]) for scale in range(len(layout.scales) + 1)]
        self.scales = [bisect_right(self.starts, here[0]) - 1 for here in turns]
        """Of every pass."""
        self.coordinates = layout.coordinates().to(device)

    def settings(self, row: int) -> SampleSettings:
        state = self.row(row)
        return state.at(self.scales[state.step], len(self.layout.scales), self.guided(row))

    def before(self, row: int) -> int:
        return sum(map(len, self.order[: self.row(row).step]))

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        step = self.phase(rows[0])
        scale, here = self.scales[step], self.order[step]
        start, stop = self.starts[scale], self.starts[scale + 1]
        known = torch.zeros(stop - start, dtype=torch.bool, device=here.device)
        for before in self.order[self.scales.index(scale) : step]:
            known[before - start] = True
        seen = self.objective.quantizer.shrink(self.total[index], scale, self.layout)  # (b, n, D)
        values = self.around(seen, self.codes[index, start:stop], known, scale, self.layout)
        ids = self.objective.inputs(seen, self.groups[scale], self.vocabulary)[:, here - start]
        places = self.coordinates[here].expand(len(rows), -1, -1)
        spans = ((self.vocabulary.image_range, slice(0, len(here))),)
        return Asked(ids, places, spans, features={PORT: values[:, here - start]})

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        step = self.phase(rows[0])
        scale, here, at = self.scales[step], self.order[step], index[:, None]
        codes = choose(scores[0], self.uniform[at, here], list(map(self.settings, rows)))[0]
        if not self.forced.isdisjoint(rows):
            known = self.known[at, here]
            codes = torch.where(known >= 0, known, codes)
        self.codes[at, here] = codes
        if step + 1 == len(self.scales) or self.scales[step + 1] > scale:
            whole = self.codes[index, self.starts[scale] : self.starts[scale + 1]]
            self.total[index] = self.objective.quantizer.add(self.total[index], whole, scale, self.layout)
        for row in rows:
            self.row(row).step += 1

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self._whole(row) == self._wanted(row)]

    def steps(self, row: int) -> int:
        return sum(scale < self._wanted(row) for scale in self.scales)

    def _whole(self, row: int) -> int:
        """Scales that a row has in full."""
        step = self.row(row).step
        return self.scales[step] if step < len(self.scales) else len(self.layout.scales)

    def written(self, row: int) -> torch.Tensor:
        """The codes of the scales so far."""
        return self.codes[row, : self.starts[self._whole(row)]]
