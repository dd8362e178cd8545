"""Masked token: the codes of an image come in passes, each predicted from the codes of all passes before.
That a query is told the place it predicts, apart from what it carries, is ARPG's idea (arXiv:2503.10568).

Every code of an image is predicted once in a row of training, from as many codes as the passes before it have drawn.
Places are filled in any order at first, and then ever more often in the one order that drawing follows: far apart
(`spread_order`), so that codes drawn together depend little on one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import MappingProxyType

import torch

from tokenizers_vq.layout import Layout

from ..choose import choose
from ..config import ObjectiveSettings, PortConfig
from ..seeding import keyed_generator
from ..sequence import IGNORE, Segment
from ..vocabulary import Vocabulary
from .base import Asked, Draw, Objective, Writer, code_spans, hidden_places, runs_in_order
from .orders import known_first, order_in_drawing, order_in_training, pass_sizes, spread_order

PORT = "target"
"""Where the number of the place comes in that is predicted."""
PASSES = 16
"""Of an image in training, and unless the user says otherwise in drawing. Other numbers in training beside it cost a
third more nats and a quarter of the scenes (docs/log.md, 2026-11-25)."""
ALWAYS_PERMUTED = 0.1
"""Share of the images that come in any order to the end of the training: known codes may stand anywhere."""


class MaskedToken(Objective):
    """A position predicts the code of its own place, and carries a code of the pass before, which stands elsewhere, or
    the mask token. Each pass is a group."""

    name = "masked_token"
    settings = MappingProxyType({"code_dropout": 0.8, "permuted_until": 0.2, "ordered_from": 0.5})
    sampling = MappingProxyType({"guidance": 1.5, "top_p": 0.6, "steps": PASSES})
    passes = True

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        return {PORT: PortConfig("table", layout.length)}

    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        home, length = spread_order(layout), layout.length
        ids = vocabulary.image_ids(codes)
        carried = ids
        if settings is not None and settings.code_dropout:
            carried = ids.masked_fill(hidden_places(length, settings.code_dropout, draws), vocabulary.mask)
        sizes, segments = tuple(pass_sizes(length, PASSES)), []
        for row, draw in enumerate(draws):
            order = home if settings is None else order_in_training(home, draw, settings, ALWAYS_PERMUTED)
            segments.append(_in_passes(ids[row], carried[row], order, sizes, layout, vocabulary))
        return segments

    def forced(
        self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary, known: torch.Tensor | None = None
    ) -> list[Segment]:
        """Known codes come first, as in drawing, each from those of the passes before it; then all others in one
        pass."""
        if known is None:
            return super().forced(codes, layout, vocabulary)
        home, segments = spread_order(layout), []
        for ids, given in zip(vocabulary.image_ids(codes), known, strict=True):
            number = int(given.sum())
            sizes = [*_first_passes(layout.length, number), layout.length - number]
            order = known_first(home, given)
            segments.append(_in_passes(ids, ids, order, tuple(filter(None, sizes)), layout, vocabulary))
        return segments

    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        return PassByPass(layout, vocabulary, rows, device)


def _in_passes(
    ids: torch.Tensor,
    carried: torch.Tensor,
    order: torch.Tensor,
    sizes: tuple[int, ...],
    layout: Layout,
    vocabulary: Vocabulary,
) -> Segment:
    """Codes of an image, as ids (L,), in passes of these sizes; `carried` (L,) is seen of them."""
    earlier, target, groups = map(torch.tensor, _passes(sizes))
    nothing, places = earlier < 0, layout.coordinates()
    before, looks = order[earlier.clamp(min=0)], order[target]
    inputs = carried[before].masked_fill(nothing, vocabulary.mask)
    inputs[0] = vocabulary.boi
    here = places[looks]
    stands = torch.where(nothing[:, None], here, places[before])
    wanted = ids[looks].masked_fill(target == earlier, IGNORE)
    runs = runs_in_order(layout, vocabulary, looks)
    return Segment(inputs, groups, here, wanted, runs, looks, PORT, stands=stands)


@lru_cache(maxsize=256)
def _passes(sizes: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Of every position of passes of these sizes: which code of the order it carries, -1 for none; which it
    predicts; and its pass. A pass that predicts fewer codes than it carries has positions that look from where they
    stand, and whose scores nobody asks for."""
    before: list[int] = []
    target: list[int] = []
    groups: list[int] = []
    start, last = 0, 0
    for number, size in enumerate(sizes):
        positions = range(max(size, last))
        before += [start - last + i if i < last else -1 for i in positions]
        target += [start + i if i < size else start - last + i for i in positions]
        groups += [number] * len(positions)
        start, last = start + size, size
    return before, target, groups


class PassByPass(Writer):
    """Draws the codes of a pass at once, in the order of `spread_order`, or in one of the seed's own. Known codes come
    first, all of them in one run of the model, for all others to see them."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> None:
        super().__init__(rows)
        self.layout, self.vocabulary = layout, vocabulary
        self.places = layout.coordinates().to(device)
        self.home = spread_order(layout)
        self.codes = torch.zeros(rows, layout.length, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(rows, layout.length, device=device)
        self.order = torch.zeros_like(self.codes)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        """Codes that each row has."""
        self.sizes: list[list[int]] = [[]] * rows
        self.given: list[list[int]] = [[]] * rows
        """Sizes of the passes of known codes, with which each row begins."""
        self.outside = _outside(layout, vocabulary, device)

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        device, length, settings = self.codes.device, self.layout.length, self.row(row).at(0, 1)
        self.uniform[row] = torch.rand(length, generator=keyed_generator(seed, "masked_token")).to(device)
        self.at[row] = 0
        order = order_in_drawing(self.home, "masked_token", seed, settings, known)
        number = 0
        if known is not None:
            self.codes[row] = known.to(device)
            number = int((known >= 0).sum())
        # The unknown ones have as many passes as a whole picture: they stand close together as often as not.
        self.given[row] = _first_passes(length, number)
        self.sizes[row] = self.given[row] + (pass_sizes(length - number, settings.steps) if number < length else [])
        self.order[row] = order.to(device)

    def before(self, row: int) -> int:
        return sum(self.sizes[row][: self.row(row).step])

    def phase(self, row: int) -> int:
        """Rows that carry equally many codes, and draw equally many, or of which equally many are known."""
        if self._reads(row):
            return -sum(self.given[row])
        carried, drawn = self._now(row)
        return carried * (self.layout.length + 1) + drawn

    def _reads(self, row: int) -> bool:
        """Whether a row runs its known codes now."""
        return self.row(row).step == 0 and bool(self.given[row])

    def _now(self, row: int) -> tuple[int, int]:
        step, sizes = self.row(row).step, self.sizes[row]
        return (sizes[step - 1] if step else 0), sizes[step]

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        if self._reads(rows[0]):
            return self._ask_known(rows, index)
        carried, drawn = self._now(rows[0])
        order, at, vocabulary = self.order[index], self.at[index][:, None], self.vocabulary
        before = order.gather(1, at + torch.arange(-carried, 0, device=at.device))
        target = order.gather(1, at + torch.arange(drawn, device=at.device))
        ids = self.codes[index].gather(1, before) + vocabulary.image_start
        mask = ids.new_full((len(rows), max(0, drawn - carried)), vocabulary.mask)
        if not carried:
            mask[:, 0] = vocabulary.boi
        looks = torch.cat([target, before[:, drawn:]], 1)  # behind known codes a pass may draw fewer than it carries
        stands = torch.cat([before, target[:, carried:]], 1)
        return Asked(
            torch.cat([ids, mask], 1),
            self.places[looks],
            ((vocabulary.image_range, slice(0, drawn)),),
            features={PORT: looks},
            stands=self.places[stands],
        )

    def _ask_known(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        """All passes of known codes at once: what each carries is there already."""
        passes = _passes(tuple(self.given[rows[0]]))
        before, target, groups = (torch.tensor(one, device=index.device) for one in passes)
        order, nothing = self.order[index], before < 0
        carried, looks = order[:, before.clamp(min=0)], order[:, target]
        ids = self.codes[index].gather(1, carried) + self.vocabulary.image_start
        ids = ids.masked_fill(nothing, self.vocabulary.mask)
        ids[:, 0] = self.vocabulary.boi
        stands = self.places[torch.where(nothing, looks, carried)]
        return Asked(ids, self.places[looks], (), features={PORT: looks}, stands=stands, groups=groups)

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        if self._reads(rows[0]):
            self.at[index] += sum(self.given[rows[0]])
            for row in rows:
                self.row(row).step = len(self.given[row])
            return
        drawn = self._now(rows[0])[1]
        target = self.order[index].gather(1, self.at[index][:, None] + torch.arange(drawn, device=index.device))
        logits = scores[0] if self.outside is None else scores[0].masked_fill(self.outside[target], -torch.inf)
        codes = choose(logits, self.uniform[index].gather(1, target), list(map(self.settings, rows)))[0]
        self.codes[index[:, None], target] = codes
        self.at[index] += drawn
        for row in rows:
            self.row(row).step += 1

    def finished(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.row(row).step == self.steps(row)]

    def written(self, row: int) -> torch.Tensor:
        return self.codes[row]

    def steps(self, row: int) -> int:
        return len(self.sizes[row])

    def so_far(self, row: int) -> torch.Tensor:
        return self.codes[row].index_fill(0, self.order[row, self.at[row] :], -1)


def _first_passes(length: int, codes: int) -> list[int]:
    """Sizes of the usual passes, up to so many codes."""
    sizes, left = [], codes
    for size in pass_sizes(length, PASSES):
        sizes.append(min(size, left))
        left -= sizes[-1]
    return [size for size in sizes if size]


def _outside(layout: Layout, vocabulary: Vocabulary, device: torch.device) -> torch.Tensor | None:
    """(L, codes) bool: the codes that cannot stand at a place; None if all can."""
    if not layout.books:
        return None
    start = vocabulary.image_start
    table = torch.ones(layout.length, vocabulary.image_range.stop - start, dtype=torch.bool)
    for ids, here in code_spans(layout, vocabulary):
        table[here, ids.start - start : ids.stop - start] = False
    return table.to(device)
