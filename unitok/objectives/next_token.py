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
    """Writes one code a step, in raster order. Known codes come in the same pass as the next one that is drawn."""

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
        self.order = torch.zeros_like(self.codes)
        self.order_on_host: list[list[int]] = [[]] * rows
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        """Codes that each row has."""
        self.ends: list[list[int]] = [[]] * rows
        """How many it has after each step."""
        self.forced: set[int] = set()
        """Rows with known codes."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        device, length = self.at.device, self.layout.length
        self.uniform[row] = torch.rand(length, generator=keyed_generator(seed, self.key)).to(device)
        order = self._order(row, seed, known)
        self.order[row], self.order_on_host[row] = order.to(device), order.tolist()
        self.at[row] = 0
        self.known[row] = -1
        self.ends[row] = list(range(1, length + 1))
        self.forced.discard(row)
        if known is not None:
            self.forced.add(row)
            self.known[row] = known.to(device)
            self.codes[row] = self.known[row].clamp(min=0)
            drawn = (known.cpu()[order] < 0).nonzero()[:, 0] + 1
            self.ends[row] = drawn.tolist() or [length]  # nothing stands behind the last one that is drawn

    def _order(self, row: int, seed: int, known: torch.Tensor | None) -> torch.Tensor:
        """(L,) int64: the places in the order in which they are written."""
        return torch.arange(self.layout.length)

    def before(self, row: int) -> int:
        return self.ends[row][self.row(row).step] - 1

    def phase(self, row: int) -> int:
        """Rows that run equally many codes and draw from the same ids."""
        here = self.span_of[self.order_on_host[row][self.ends[row][self.row(row).step] - 1]]
        return self._run(row) * len(self.spans) + self.spans.index((here.start, here.stop))

    def _run(self, row: int) -> int:
        """Codes of this step: known ones, and the one that is drawn."""
        step, ends = self.row(row).step, self.ends[row]
        return ends[step] - (ends[step - 1] if step else 0)

    def _span(self, row: int) -> tuple[int, int]:
        return self.spans[self.phase(row) % len(self.spans)]

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        n, at, order = self._run(rows[0]), self.at[index][:, None], self.order[index]
        groups = None
        if n > 1:
            groups = torch.arange(n, device=at.device)
            at = at + groups
        target, before = order.gather(1, at), order.gather(1, (at - 1).clamp(min=0))  # (b, n)
        ids = self.codes[index].gather(1, before) + self.vocabulary.image_start
        ids = ids.masked_fill(at == 0, self.vocabulary.boi)
        spans = ((slice(*self._span(rows[0])), slice(n - 1, n)),)
        return self._asked(Asked(ids, self.places[target], spans, groups=groups), at, target, before)

    def _asked(self, asked: Asked, at: torch.Tensor, target: torch.Tensor, before: torch.Tensor) -> Asked:
        """What is asked for, with what stands beside it. Of every position, (b, n): how many codes it has before, the
        place of the code that it predicts, and that of the code that it carries."""
        return asked

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        start = self._span(rows[0])[0] - self.vocabulary.image_start
        self.at[index] += self._run(rows[0])
        place = self.order[index, self.at[index] - 1]
        chosen = choose(scores[0], self.uniform[index, place][:, None], list(map(self.settings, rows)))[0][:, 0] + start
        if not self.forced.isdisjoint(rows):
            known = self.known[index, place]  # where all are
            chosen = torch.where(known >= 0, known, chosen)
        self.codes[index, place] = chosen
        for row in rows:
            self.row(row).step += 1

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]

    def steps(self, row: int) -> int:
        return len(self.ends[row])

    def so_far(self, row: int) -> torch.Tensor:
        left = self.order[row, self.at[row] :]
        return self.codes[row].index_copy(0, left, self.known[row, left])
