"""Next token: codes in the order of the layout, each from those before it (VQGAN, arXiv:2012.09841; LlamaGen,
2406.06525)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings
from ..sampling import SampleSettings
from ..seeding import keyed_generator
from ..sequence import Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, code_runs, hidden_places
from .row_window import RowWindow
from .rows import places_in_rows, with_row_ends
from .sub_tokens import join


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
        segments = [Segment(inputs[row], groups, places, ids[row], runs) for row in range(len(ids))]
        if not self.frames.row_end:
            return segments
        end = vocabulary[self.frames.row_end].start
        return [with_row_ends(segment, layout, end) for segment in segments]

    def places(self, layout: Layout) -> torch.Tensor:
        return places_in_rows(layout) if self.frames.row_end else super().places(layout)

    def positions(self, layout: Layout) -> int:
        return super().positions(layout) + (layout.grid[0] - 1 if self.frames.row_end else 0)

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        if self.frames.row_end:
            end = vocabulary[self.frames.row_end].start
            return RowWindow(RowByRow(self.name, layout, vocabulary, rows, device, end), end)
        return RowWindow(CodeByCode(self.name, layout, vocabulary, rows, device, self.sub_tokens))


class CodeByCode(Writer):
    """Writes one code a step, in raster order. Known codes come in the same pass as the next one that is drawn.

    With the setting `ahead`, the codes that follow are guessed and run in the same pass. The number that draws the code
    of a place is fixed before, so a code that follows from right ones is right, and a guess that comes out as it was is
    too. What comes out after the first wrong guess is the guess of the next pass (predictive sampling,
    arXiv:2002.09928; speculative Jacobi decoding, 2410.01699, without its rejections).
    """

    def __init__(
        self,
        key: str,
        layout: Layout,
        vocabulary: Vocabulary,
        rows: int,
        device: torch.device,
        sub_tokens: tuple[int, ...] = (),
    ) -> None:
        super().__init__(rows)
        self.key, self.layout, self.vocabulary, self.sub_tokens = key, layout, vocabulary, sub_tokens
        runs = code_runs(layout, vocabulary)
        self.span_of = [ids for ids, n in runs for _ in range(n)]
        """The ids that can stand at each place."""
        self.spans = list(dict.fromkeys((ids.start, ids.stop) for ids in self.span_of))
        self.places = layout.coordinates().to(device)
        self.codes = torch.zeros(rows, layout.length, dtype=torch.int64, device=device)
        self.known = torch.full_like(self.codes, -1)
        self.uniform = torch.zeros(rows, max(1, len(sub_tokens)), layout.length, device=device)
        """A number for each code, or for each of its sub-tokens."""
        self.chosen: list[torch.Tensor] = []
        """(b, m) each: the sub-tokens that were chosen in the pass that runs."""
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
        self.uniform[row] = torch.rand(self.uniform.shape[1:], generator=keyed_generator(seed, self.key)).to(device)
        order = self._order(row, seed, known)
        self.follow(row, order.tolist(), list(range(1, length + 1)))
        self.at[row] = 0
        self.known[row] = -1
        self.codes[row] = 0
        self.forced.discard(row)
        if known is not None:
            self.forced.add(row)
            self.known[row] = known.to(device)
            self.codes[row] = self.known[row].clamp(min=0)
            drawn = (known.cpu()[order] < 0).nonzero()[:, 0] + 1
            self.ends[row] = drawn.tolist() or [length]  # nothing stands behind the last one that is drawn

    def follow(self, row: int, order: list[int], ends: list[int]) -> None:
        """The places in the order in which a row has their codes, and how many it has after each step."""
        self.order[row] = torch.tensor(order).to(self.order.device)
        self.order_on_host[row], self.ends[row] = order, ends

    def _order(self, row: int, seed: int, known: torch.Tensor | None) -> torch.Tensor:
        """(L,) int64: the places in the order in which they are written."""
        return torch.arange(self.layout.length)

    def settings(self, row: int) -> SampleSettings:
        """Those of the sub-token that comes next."""
        return self.row(row).at(len(self.chosen), max(1, len(self.sub_tokens)), self.guided(row))

    def before(self, row: int) -> int:
        return self.ends[row][self.row(row).step] - 1

    def phase(self, row: int) -> int:
        """Rows that run equally many codes, draw from the same ids, and guess equally many more."""
        step, length = self.row(row).step, self.layout.length
        return (self._guesses(row) * (length + 1) + self._run(row)) * len(self.spans) + self.span_at(row, step)

    def _run(self, row: int) -> int:
        """Codes of this step: known ones, and the one that is drawn."""
        step, ends = self.row(row).step, self.ends[row]
        return ends[step] - (ends[step - 1] if step else 0)

    def _guesses(self, row: int) -> int:
        """Codes that are guessed behind the one that is drawn: those that follow it without a known one, are drawn from
        the same ids, and are guided if it is."""
        state, ends = self.row(row), self.ends[row]
        if not state.settings.ahead:
            return 0
        step, last = state.step, len(ends)
        if state.settings.guided_codes and self.guided(row):
            last = min(last, step + state.settings.guided_codes - self.before(row))
        number = 0
        while (
            number < state.settings.ahead
            and step + number + 1 < last
            and ends[step + number + 1] == ends[step + number] + 1
            and self.span_at(row, step + number + 1) == self.span_at(row, step)
        ):
            number += 1
        return number

    def span_at(self, row: int, step: int) -> int:
        """The number of the ids from which a row draws in a step."""
        here = self.span_of[self.order_on_host[row][self.ends[row][step] - 1]]
        return self.spans.index((here.start, here.stop))

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        run, at, order = self._run(rows[0]), self.at[index][:, None], self.order[index]
        n = run + self._guesses(rows[0])
        groups = None
        if n > 1:
            groups = torch.arange(n, device=at.device)
            at = at + groups
        target, before = order.gather(1, at), order.gather(1, (at - 1).clamp(min=0))  # (b, n)
        ids = self.codes[index].gather(1, before) + self.vocabulary.image_start
        ids = ids.masked_fill(at == 0, self.vocabulary.boi)
        ids_here = slice(*self.spans[self.span_at(rows[0], self.row(rows[0]).step)])
        spans = ((ids_here, slice(run - 1, n)),)
        return self._asked(Asked(ids, self.places[target], spans, groups=groups), at, target, before)

    def _asked(self, asked: Asked, at: torch.Tensor, target: torch.Tensor, before: torch.Tensor) -> Asked:
        """What is asked for, with what stands beside it. Of every position, (b, n): how many codes it has before, the
        place of the code that it predicts, and that of the code that it carries."""
        return asked

    def choose(self, rows: Sequence[int], index: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.draw(index, self._drawn(rows, index)[1], scores, list(map(self.settings, rows)))

    def draw(
        self, index: torch.Tensor, place: torch.Tensor, scores: torch.Tensor, settings: Sequence[SampleSettings]
    ) -> torch.Tensor:
        """Chooses the next sub-tokens of the codes at some places (b, m)."""
        numbers = self.uniform[index[:, None], len(self.chosen), place]
        self.chosen.append(choose(scores, numbers, settings)[0])
        return self.chosen[-1]

    def _drawn(self, rows: Sequence[int], index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, 1 + guesses) each: how many codes come before those that the pass draws, and their places."""
        at = index[:, None]
        first = self.at[at] + self._run(rows[0]) - 1
        drawn = first + torch.arange(1 + self._guesses(rows[0]), device=index.device)
        return drawn, self.order[at, drawn]

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> Sequence[int]:
        state, guesses, at = self.row(rows[0]), self._guesses(rows[0]), index[:, None]
        start = self.spans[self.span_at(rows[0], state.step)][0] - self.vocabulary.image_start
        drawn, place = self._drawn(rows, index)
        self.choose(rows, index, scores[0])
        chosen = join(self.chosen, self.sub_tokens) + start
        self.chosen = []
        self.at[index] += self._run(rows[0])
        if not self.forced.isdisjoint(rows):
            known = self.known[at, place]  # where all are
            chosen = torch.where(known >= 0, known, chosen)
        right = [0] * len(rows)
        if guesses:
            right_so_far = (chosen[:, :-1] == self.codes[at, place[:, :-1]]).long().cumprod(1)
            self.at[index] += right_so_far.sum(1)
            right = right_so_far.sum(1).tolist()
        self.codes[at, place] = chosen
        self._guess(at, drawn[:, -1:], chosen[:, -1:], max(self.row(row).settings.ahead for row in rows))
        for row, more in zip(rows, right, strict=True):
            self.row(row).step += 1 + more
        return [guesses - more for more in right]

    def _guess(self, at: torch.Tensor, last: torch.Tensor, code: torch.Tensor, ahead: int) -> None:
        """Puts the last code (b, 1) of a pass also behind its place, where nothing is known. (The code above is no
        better a guess: docs/log.md, 2026-11-26.)"""
        if ahead:
            behind = (last + 1 + torch.arange(ahead, device=last.device)).clamp(max=self.layout.length - 1)
            place = self.order[at, behind]
            known = self.known[at, place]
            self.codes[at, place] = torch.where(known >= 0, known, code)

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]

    def steps(self, row: int) -> int:
        return len(self.ends[row])

    def so_far(self, row: int) -> torch.Tensor:
        step = self.row(row).step
        left = self.order[row, self.ends[row][step - 1] if step else 0 :]
        return self.codes[row].index_copy(0, left, self.known[row, left])


class RowByRow(CodeByCode):
    """Writes one code a step; a row end comes in the same pass as the first code of the next row."""

    def __init__(
        self, key: str, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device, end: int
    ) -> None:
        super().__init__(key, layout, vocabulary, rows, device)
        self.end, self.width = end, layout.grid[1]

    def phase(self, row: int) -> int:
        """Rows that also run equally many row ends."""
        return super().phase(row) * (self.layout.length + 1) + self._ends(row)

    def _ends(self, row: int) -> int:
        """Row ends of this step: those behind the codes that it runs."""
        step, ends = self.row(row).step, self.ends[row]
        before = ends[step - 1] if step else 0
        return (ends[step] - 1) // self.width - max(0, before - 1) // self.width

    def _guesses(self, row: int) -> int:
        """Guesses stay in the row of the code that is drawn: its end is nothing to guess."""
        left = self.width - 1 - (self.ends[row][self.row(row).step] - 1) % self.width
        return min(super()._guesses(row), left)

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        guesses = self._guesses(rows[0])
        n = self._run(rows[0]) + self._ends(rows[0]) + guesses
        at, steps = self.at[index][:, None], torch.arange(n, device=self.at.device)
        place = at + (at - 1).clamp(min=0) // self.width + steps  # (b, n) in the line
        row, column = (place - 1).clamp(min=0) // (self.width + 1), (place - 1).clamp(min=0) % (self.width + 1)
        ids = self.codes[index].gather(1, row * self.width + column.clamp(max=self.width - 1))
        ids = (ids + self.vocabulary.image_start).masked_fill(column == self.width, self.end)
        ids = ids.masked_fill(place == 0, self.vocabulary.boi)
        places = torch.zeros(*place.shape, 3, device=place.device)
        places[..., 0] = place
        spans = ((self.vocabulary.image_range, slice(n - 1 - guesses, n)),)
        return Asked(ids, places, spans, groups=steps if n > 1 else None)
