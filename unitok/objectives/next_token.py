"""Next token: codes in the order of the layout, each from those before it (VQGAN, arXiv:2012.09841; LlamaGen,
2406.06525)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings
from ..seeding import keyed_generator
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, code_runs, hidden_places


class NextToken(Objective):
    """Input: the code before, start-of-image first. Target: this code. Each code is a group."""

    name = "next_token"
    settings = MappingProxyType({"code_dropout": 0.6})

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        ids = vocabulary.image_ids(codes)
        start = torch.full_like(ids[:, :1], vocabulary.boi)
        before = ids[:, :-1]
        if settings is not None and settings.code_dropout:
            hidden = hidden_places(layout.length - 1, settings.code_dropout, draws)
            before = before.masked_fill(hidden, vocabulary.mask)
        inputs = torch.cat([start, before], 1)
        groups, places, runs = torch.arange(layout.length), layout.coordinates(), code_runs(layout, vocabulary)
        return [Segment(inputs[row], groups, places, ids[row], runs) for row in range(len(ids))]

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return CodeByCode("next_token", layout, vocabulary, rows, device)


class CodeByCode(Writer):
    """Writes one code a step."""

    def __init__(self, key: str, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> None:
        super().__init__(rows)
        self.key, self.layout, self.vocabulary = key, layout, vocabulary
        runs = code_runs(layout, vocabulary)
        self.span_of = [ids for ids, n in runs for _ in range(n)]
        """The ids that can stand at each place."""
        self.spans = list(dict.fromkeys((ids.start, ids.stop) for ids in self.span_of))
        self.places = layout.coordinates().to(device)
        self.codes = torch.zeros(rows, layout.length, dtype=torch.int64, device=device)
        self.known = torch.full_like(self.codes, -1)
        self.uniform = torch.zeros(rows, layout.length, device=device)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        """Codes that each row has."""
        self.inputs = torch.zeros(rows, dtype=torch.int64, device=device)
        self.forced: set[int] = set()
        """Rows with known codes."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        self.uniform[row] = torch.rand(self.layout.length, generator=keyed_generator(seed, self.key)).to(self.at.device)
        self.at[row] = 0
        self.inputs[row] = self.vocabulary.boi
        self.known[row] = -1 if known is None else known.to(self.at.device)
        self.forced.discard(row)
        if known is not None:
            self.forced.add(row)

    def phase(self, row: int) -> int:
        here = self.span_of[self.row(row).step]
        return self.spans.index((here.start, here.stop))

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        places = self.places[self.at[index]][:, None]  # (b, 1, 3)
        return Asked(self.inputs[index][:, None], places, ((slice(*self.spans[self.phase(rows[0])]), slice(0, 1)),))

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        start = self.spans[self.phase(rows[0])][0] - self.vocabulary.image_start
        at = self._place(index)
        chosen = choose(scores[0], self.uniform[index, at][:, None], list(map(self.settings, rows)))[0][:, 0] + start
        if not self.forced.isdisjoint(rows):
            known = self.known[index, at]
            chosen = torch.where(known >= 0, known, chosen)
        self.codes[index, at] = chosen
        self.inputs[index] = chosen + self.vocabulary.image_start
        self.at[index] += 1
        for row in rows:
            self.row(row).step += 1

    def _place(self, index: torch.Tensor) -> torch.Tensor:
        """(b,) int64: the place in the layout that each row writes now."""
        return self.at[index]

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.layout.length]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]
