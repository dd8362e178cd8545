"""Neighbouring rows at once: codes of several rows in one pass, without training anew (ZipAR, arXiv:2412.04062).

A code may be drawn as soon as the row above is `window` codes ahead of it. What stands further to the right there is
not seen, and no code sees a row below.

A row goes on from the last code of the row above. A row that begins early has none there yet. As in the authors' code
for LlamaGen, the last code so far of the row above that one stands in for it in one pass; the true one comes when it is
drawn. Above the second row there is no such row, so it waits for the end of the first. Where rows end with an id of
their own, this id is known, and no row waits.

A picture of h rows of w codes takes 2 w + (h - 2) * window passes, with row ends w + (h - 1) * window, and not h * w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from tokenizers_vq.layout import Layout

from ..sampling import SampleSettings
from .base import Asked, Writer
from .sub_tokens import join

if TYPE_CHECKING:
    from .next_token import CodeByCode

BEGIN, ROW_END = -1, -2
"""What a position carries that carries no code: the begin of the picture, the end of a row."""


class Position(NamedTuple):
    """One that is run."""

    number: int
    """Among all positions of the picture: it sees those of no higher number."""
    carries: int
    """The place of its code, or one of the above."""
    predicts: int = 0
    """The place of the code that it draws, if it draws one."""


@dataclass
class Pass:
    """What runs in one pass: positions that only bring what is known, and behind them those that draw a code each."""

    along: list[Position] = field(default_factory=list)
    drawn: list[Position] = field(default_factory=list)
    stands_in: bool = False
    """Whether the last one carries a code that stands in for another."""
    reached: list[int] = field(default_factory=list)
    """Places of codes that were given, and of which the rows have come to the other side."""


@lru_cache(maxsize=64)
def passes_by_rows(layout: Layout, window: int, known: tuple[bool, ...], ends: bool) -> list[Pass]:
    """The passes that draw the codes (L,) that are not known; `ends` says whether rows end with an id. Grids are drawn
    one after another. The last pass draws nothing: it has the known codes behind the last one that is drawn.

    >>> [len(one.drawn) for one in passes_by_rows(Layout(((3, 3),)), 1, (False,) * 9, ends=False)]
    [1, 1, 1, 1, 2, 2, 1, 0]
    """
    found, start = [Pass()], 0
    for height, width in layout.scales:
        grid = _Grid(start, height, width, window, known, ends)
        while grid.unread:
            grid.run(found[-1])
            if found[-1].drawn:
                found.append(Pass())
        start += height * width
    return found


@dataclass
class _Grid:
    """A grid that is drawn."""

    start: int
    height: int
    width: int
    window: int
    known: Sequence[bool]
    ends: bool

    def __post_init__(self) -> None:
        self.have = [0] * self.height
        """Codes that each row has, from the left."""
        self.closed = [False] * self.height
        """Whether the last code of a row was run."""

    @property
    def unread(self) -> bool:
        return self.have != [self.width] * self.height

    def run(self, now: Pass) -> None:
        """Goes as far as one pass can."""
        for row in range(self.height):
            if row and self.have[row - 1] == self.width and (self.ends or self.have[row]) and not self.closed[row - 1]:
                self.closed[row - 1] = True
                now.along.append(Position(self._number(row, 0) - self.ends, self._place(row, 0) - 1))
            while self._ready(row) and self.known[self._place(row, self.have[row])]:
                position = self._next(row)
                if position is not None:
                    now.along.append(position)
                now.reached.append(self._place(row, self.have[row]))
                self.have[row] += 1
        drawn = {row: self._next(row) for row in range(self.height) if self._ready(row)}
        for row, position in drawn.items():
            if position is None:  # of the lowest row that is drawn: those below wait for it
                above = self._place(row - 2, self.have[row - 2] - 1 - (row - 2 in drawn))
                now.stands_in, position = True, Position(self._number(row, 0), above, self._place(row, 0))
            now.drawn.append(position)
            self.have[row] += 1

    def _ready(self, row: int) -> bool:
        """Whether a row can go on."""
        column = self.have[row]
        if column == self.width or row == 0:
            return column < self.width
        ahead = column + self.window
        if row == 1 and column == 0 and self._before(row) is None:
            ahead = self.width
        return self.have[row - 1] >= min(self.width, ahead)

    def _next(self, row: int) -> Position | None:
        """The position behind those that a row has; None: what it carries is not there yet."""
        column, place = self.have[row], self._place(row, self.have[row])
        carries = place - 1 if column else self._before(row)
        if carries is None:
            return None
        if not column and row and not self.ends:
            self.closed[row - 1] = True
        return Position(self._number(row, column), carries, place)

    def _before(self, row: int) -> int | None:
        """What the first position of a row carries; None: it is not there yet."""
        last = self._place(row, 0) - 1
        if row == 0:
            return last  # of the grid before; in front of the first one `BEGIN`
        if self.ends:
            return ROW_END
        return last if self.have[row - 1] == self.width or self.known[last] else None

    def _place(self, row: int, column: int) -> int:
        return self.start + row * self.width + column

    def _number(self, row: int, column: int) -> int:
        return self._place(row, column) + row * self.ends


class RowWindow(Writer):
    """Writes codes of neighbouring rows in one pass, where the settings of a picture have a `row_window`. All other
    pictures are written by the writer that it is made of, which also keeps the codes of both.

    Args:
        plain: writes one code a step.
        end: the id with which rows end, if they do.
    """

    def __init__(self, plain: CodeByCode, end: int | None = None) -> None:
        super().__init__(len(plain.rows))
        self.plain, self.end, self.sub_tokens = plain, end, plain.sub_tokens
        self.rows = plain.rows
        layout, device = plain.layout, plain.at.device
        self.places = plain.places  # of all positions
        if end is not None:
            self.places = torch.zeros(layout.length + layout.grid[0] - 1, 3, device=device)
            self.places[:, 0] = torch.arange(len(self.places))
        self.passes: list[list[Pass]] = [[]] * len(self.rows)
        """Of a row that is written code by code there are none."""
        most = layout.length + sum(height for height, _ in layout.scales)
        self.line = torch.zeros(len(self.rows), most, len(Position._fields), dtype=torch.int64, device=device)
        """All positions of each row, in the order in which they are run."""
        self.ran = torch.zeros(len(self.rows), dtype=torch.int64, device=device)
        """How many of them were."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        plain, settings = self.plain, self.row(row).settings
        plain.admit(row, seed, settings, known)
        given = (False,) * plain.layout.length if known is None else tuple((known >= 0).tolist())
        self.passes[row] = []
        if not settings.row_window:
            return
        *passes, last = passes_by_rows(plain.layout, settings.row_window, given, self.end is not None)
        if all(len(one.drawn) == 1 for one in passes):
            return
        self.passes[row] = passes
        order: list[int] = []
        ends = []
        for one in passes:
            order += [*one.reached, *(position.predicts for position in one.drawn)]
            ends.append(len(order))
        plain.follow(row, [*order, *last.reached], ends)
        line = torch.tensor([position for one in passes for position in (*one.along, *one.drawn)])
        self.line[row, : len(line)] = line.to(self.line.device)
        self.ran[row] = 0

    def settings(self, row: int) -> SampleSettings:
        return self.row(row).at(len(self.plain.chosen), max(1, len(self.sub_tokens)), self.guided(row))

    def before(self, row: int) -> int:
        passes, step = self.passes[row], self.row(row).step
        return self.plain.ends[row][step] - len(passes[step].drawn) if passes else self.plain.before(row)

    def phase(self, row: int) -> int:
        """Rows that run equally many positions, draw equally many codes from the same ids, and give one back or not."""
        if not self.passes[row]:
            return 2 * self.plain.phase(row)
        now, number = self._now(row), 0
        sizes = [
            (len(now.along), self.line.shape[1]),
            (len(now.drawn), self.line.shape[1]),
            (now.stands_in, 2),
            (self._span(row), len(self.plain.spans)),
        ]
        for value, values in sizes:
            number = number * values + value
        return 2 * number + 1

    def _now(self, row: int) -> Pass:
        return self.passes[row][self.row(row).step]

    def _span(self, row: int) -> int:
        return self.plain.span_at(row, self.row(row).step)

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        if not self.passes[rows[0]]:
            return self.plain.ask(rows, index)
        now, vocabulary = self._now(rows[0]), self.plain.vocabulary
        n = len(now.along) + len(now.drawn)
        number, carries, _ = self._positions(index, 0, n)
        ids = self.plain.codes[index].gather(1, carries.clamp(min=0)) + vocabulary.image_start
        ids = ids.masked_fill(carries == BEGIN, vocabulary.boi)
        if self.end is not None:
            ids = ids.masked_fill(carries == ROW_END, self.end)
        spans = ((slice(*self.plain.spans[self._span(rows[0])]), slice(len(now.along), n)),)
        return Asked(ids, self.places[number], spans, numbers=number)

    def _positions(self, index: torch.Tensor, first: int, end: int) -> Iterator[torch.Tensor]:
        """Fields (b, n) of some positions of this pass."""
        at = self.ran[index][:, None] + torch.arange(first, end, device=index.device)
        return iter(self.line[index[:, None], at].unbind(-1))

    def choose(self, rows: Sequence[int], index: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.passes[rows[0]]:
            return self.plain.choose(rows, index, scores)
        return self.plain.draw(index, self._drawn(rows, index), scores, list(map(self.settings, rows)))

    def _drawn(self, rows: Sequence[int], index: torch.Tensor) -> torch.Tensor:
        """(b, m): places of the codes that the pass draws."""
        first, m = len(self._now(rows[0]).along), len(self._now(rows[0]).drawn)
        *_, predicts = self._positions(index, first, first + m)
        return predicts

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> Sequence[int]:
        plain = self.plain
        if not self.passes[rows[0]]:
            return plain.take(rows, index, scores)
        now, place = self._now(rows[0]), self._drawn(rows, index)
        start = plain.spans[self._span(rows[0])][0] - plain.vocabulary.image_start
        self.choose(rows, index, scores[0])
        plain.codes[index[:, None], place] = join(plain.chosen, self.sub_tokens) + start
        plain.chosen = []
        self.ran[index] += len(now.along) + len(now.drawn)
        for row in rows:
            self.row(row).step += 1
        return [int(now.stands_in)] * len(rows)

    def finished(self, rows: Sequence[int]) -> list[int]:
        return self.plain.finished(rows)

    def written(self, row: int) -> torch.Tensor:
        return self.plain.written(row)

    def steps(self, row: int) -> int:
        return self.plain.steps(row)

    def so_far(self, row: int) -> torch.Tensor:
        return self.plain.so_far(row)
