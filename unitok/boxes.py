"""Boxes: alone, and in the middle of a text.

A box is [left, top, right, bottom], each a share of the picture from 0 to 1. It is written as four ids of the span
`location`, whose size says how many steps a side has. In a text an id of the span `box` stands before the four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from typing import Any

import torch

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.layout import Layout

from .modalities import PASSAGE, Modality, PassageModality, PassageWriter, TokenByToken, text_segment
from .objectives.base import Draw, Writer
from .sequence import Ids, Segment
from .vocabulary import Vocabulary

LOCATION, BOX = "location", "box"
"""Spans of a vocabulary: the steps of a side, and the begin of a box in a text."""
SPANS = {"box": {LOCATION: 1000}, "grounded": {LOCATION: 1000, BOX: 1}}
"""Modality -> the spans that a new model needs for it, and their sizes."""
WAVES = 32
"""Of the locations: steps near one another have much in common."""
MOST_BOXES = 16
"""Boxes that are written at most."""
OUTSIDE = 0.3
"""Share of the pictures with a hole that are known inside a box alone."""
AROUND_THINGS = 0.5
"""Share of the others whose hole is around a thing, where things have boxes."""

Box = Sequence[float]
"""[left, top, right, bottom]."""
Grounded = Sequence["str | Box"]
"""A text with boxes in it, in the order of reading; its strings make the text without."""


def is_box(value: Any) -> bool:
    """Whether a value is [left, top, right, bottom] from 0 to 1, neither upside down nor back to front."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    if not all(type(side) in (int, float) and 0 <= side <= 1 for side in value):
        return False
    left, top, right, bottom = value
    return left <= right and top <= bottom


BOX_RULE = "give [left, top, right, bottom] from 0 to 1, left up to right and top up to bottom"


def cropped(box: Box, window: Box) -> list[float] | None:
    """A box in what a window keeps of a picture, both as shares of the picture, as shares of what is kept; None where
    nothing of it is kept."""
    left, top, right, bottom = window
    sides = [(box[0] - left) / (right - left), (box[1] - top) / (bottom - top)]
    sides += [(box[2] - left) / (right - left), (box[3] - top) / (bottom - top)]
    kept = [min(max(side, 0.0), 1.0) for side in sides]
    gone = any(kept[i] == kept[i + 2] and sides[i] < sides[i + 2] for i in (0, 1))
    return None if gone or any(sides[i + 2] < 0 or sides[i] > 1 for i in (0, 1)) else kept


def rough(value: Any, share: float, draw: Draw) -> Any:
    """A value whose boxes are as a person draws them: sides move by up to a share of its size, at most half."""
    if not is_box(value):
        return [rough(one, share, draw) for one in value] if isinstance(value, list | tuple) else value
    width, height = value[2] - value[0], value[3] - value[1]
    moves = (share * (2 * torch.rand(4, generator=draw.generator) - 1)).tolist()
    moved = zip(value, moves, (width, height, width, height), strict=True)
    return [min(max(side + move * size, 0.0), 1.0) for side, move, size in moved]


def uncropped(box: Box, window: Box) -> list[float]:
    """The inverse of `cropped`."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    return [left + box[0] * width, top + box[1] * height, left + box[2] * width, top + box[3] * height]


def hole_in(layout: Layout, draw: Draw, boxes: Sequence[Box] = ()) -> tuple[torch.Tensor, list[float]]:
    """A hole in a picture: the codes (L,) bool that are not known any more, and the box around it as shares of the
    picture. What is drawn anew lies inside a picture or around one: in three of ten pictures the hole is all that is
    outside a box of any size, else it is such a box, or, in every other picture in which things have boxes, one of them
    with a margin of up to one place. Codes of coarser grids than the finest stay: nobody reads them."""
    height, width = layout.grid
    size, place, (side, thing) = torch.rand(3, 2, generator=draw.generator).tolist()
    rows, columns = 1 + int(size[0] * height), 1 + int(size[1] * width)
    top, left = int(place[0] * (height - rows + 1)), int(place[1] * (width - columns + 1))
    around = [left / width, top / height, (left + columns) / width, (top + rows) / height]
    if side >= OUTSIDE and boxes and thing < AROUND_THINGS:
        box = boxes[int(thing / AROUND_THINGS * len(boxes))]
        around = [max(0.0, box[0] - size[0] / width), max(0.0, box[1] - size[1] / height)]
        around += [min(1.0, box[2] + place[0] / width), min(1.0, box[3] + place[1] / height)]
        left, top = min(int(around[0] * width), width - 1), min(int(around[1] * height), height - 1)
        rows, columns = max(1, ceil(around[3] * height) - top), max(1, ceil(around[2] * width) - left)
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top : top + rows, left : left + columns] = True
    if side < OUTSIDE and not hole.all():
        hole, around = ~hole, [0.0, 0.0, 1.0, 1.0]
    grids = [hole if grid == (height, width) else torch.zeros(grid, dtype=torch.bool) for grid in layout.scales]
    return torch.cat([grid.flatten() for grid in grids]), around


@dataclass(frozen=True)
class BoxModality:
    """One box, or a list of them in the order given, four ids each: begin, then id by id, and the end of a text."""

    vocabulary: Vocabulary
    longest: int = 4 * MOST_BOXES

    def given(self, values: Sequence[Box | Sequence[Box]]) -> list[Segment]:
        return [text_segment(self.ids(value), self.vocabulary) for value in values]

    def learned(
        self, values: Sequence[Box | Sequence[Box]], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        segments = []
        for value, segment in zip(values, self.given(values), strict=True):
            ids, location, end = self.ids(value), self.vocabulary[LOCATION], _end(self.vocabulary)
            either: tuple[Ids, int] = ((location, end), 1)  # one more box, or none
            runs = ((either, (location, 3)) * (len(ids) // 4)) + (either,)
            segments.append([replace(segment, target=torch.tensor([*ids, end.start]), runs=runs)])
        return segments

    def ids(self, boxes: Box | Sequence[Box]) -> list[int]:
        """
        Raises:
            UserError: what is no box, or no list of boxes.
        """
        one = len(boxes) > 0 and isinstance(boxes[0], int | float)
        found: list[int] = []
        for box in [boxes] if one else boxes:
            if not is_box(box):
                raise UserError(f"box {shown(box)} is no box: {BOX_RULE}")
            found += location_ids(box, self.vocabulary)  # type: ignore[arg-type]
        return found

    def value(self, written: torch.Tensor) -> list[list[float]]:
        ids = written.tolist()
        return [box_of(ids[i : i + 4], self.vocabulary) for i in range(0, len(ids) - 3, 4)]

    def writer(self, rows: int, device: torch.device) -> Writer:
        spans = (self.vocabulary[LOCATION], _end(self.vocabulary))
        return BoxByBox("boxes", self.vocabulary, spans, self.longest, rows, device)


@dataclass(frozen=True)
class GroundedTextModality:
    """Texts with boxes (as in Kosmos-2, arXiv:2306.14824), or ids of them: a box stands behind what it is around."""

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    text_length: int
    """Longest text in tokens, its boxes not counted."""
    restates: bool = False  # as of ModelConfig

    @property
    def longest(self) -> int:
        return self.text_length + 5 * MOST_BOXES

    def given(self, values: Sequence[Grounded | list[int] | str]) -> list[Segment]:
        return [text_segment(self.ids(value), self.vocabulary) for value in values]

    def learned(
        self, values: Sequence[Grounded | list[int]], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        outside = (self.vocabulary.text_range, self.vocabulary[BOX])
        segments = []
        for segment in self.given(values):
            target = torch.tensor([*segment.ids.tolist()[1:], self.vocabulary.eos])
            segments.append([replace(segment, target=target, runs=_runs(target, outside, self.vocabulary))])
        return segments

    def ids(self, value: Grounded | list[int] | str) -> list[int]:
        """
        Raises:
            UserError: a part that is no text and no box.
        """
        return grounded_ids(value, self.vocabulary, self.encode)

    def parts(self, ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str | list[float]]:
        """The inverse of `ids`: strings, and boxes by the middles of their steps."""
        return grounded_parts(ids, self.vocabulary, decode)

    def value(self, written: torch.Tensor) -> list[int]:
        return written.tolist()

    def writer(self, rows: int, device: torch.device) -> Writer:
        spans = (self.vocabulary.text_range, self.vocabulary[BOX], self.vocabulary[LOCATION])
        return AroundWords(self.restates, "grounded", self.vocabulary, spans, self.longest, rows, device)


class GroundedPassageModality(PassageModality):
    """The texts of a document, which may have boxes in them; `longest` counts these too."""

    def ids(self, value: str | Grounded | list[int]) -> list[int]:
        """Of a text, or of strings and boxes."""
        return grounded_ids(value, self.vocabulary, self.encode)

    def _runs(self, target: torch.Tensor, can_stand: Ids) -> tuple[tuple[Ids, int], ...]:
        return _runs(target, (*self.vocabulary.passage_ranges, self.vocabulary[BOX]), self.vocabulary)

    def writer(self, rows: int, device: torch.device) -> Writer:
        return GroundedPassageWriter(self.vocabulary, self.longest, rows, device)

    def said(self, ids: list[int], decode: Callable[[list[int]], str]) -> str | list[str | list[float]]:
        """A text, or strings and boxes where it has boxes."""
        parts = grounded_parts(ids, self.vocabulary, decode)
        return parts if any(not isinstance(part, str) for part in parts) else decode(ids)


def with_boxes(
    vocabulary: Vocabulary, encode: Callable[[str], list[int]], text_length: int, restates: bool = False
) -> dict[str, Modality]:
    """The modalities with boxes that a vocabulary has the ids for, by name."""
    found: dict[str, Modality] = {}
    if LOCATION in vocabulary:
        found["box"] = BoxModality(vocabulary)
    if BOX in vocabulary:
        found["grounded"] = GroundedTextModality(vocabulary, encode, text_length, restates)
        found[PASSAGE] = GroundedPassageModality(vocabulary, encode, text_length + 5 * MOST_BOXES)
    return found


def grounded_ids(
    value: str | Grounded | list[int], vocabulary: Vocabulary, encode: Callable[[str], list[int]]
) -> list[int]:
    """Ids of a text, or of strings and boxes; ids stay.

    Raises:
        UserError: a part that is no text and no box.
    """
    found: list[int] = []
    for part in [value] if isinstance(value, str) else value:
        if isinstance(part, int):
            found.append(part)
        elif isinstance(part, str):
            found += encode(part)
        elif is_box(part):
            found += [vocabulary[BOX].start, *location_ids(part, vocabulary)]
        else:
            raise UserError(f"{shown(part)} is no text and no box: {BOX_RULE}")
    return found


def grounded_parts(
    ids: Sequence[int], vocabulary: Vocabulary, decode: Callable[[list[int]], str]
) -> list[str | list[float]]:
    """The inverse of `grounded_ids`: strings, and boxes by the middles of their steps."""
    found: list[str | list[float]] = []
    text: list[int] = []
    place = 0
    while place < len(ids):
        if ids[place] == vocabulary[BOX].start:
            found += [decode(text)] if text else []
            found.append(box_of(ids[place + 1 : place + 5], vocabulary))
            text, place = [], place + 5
        else:
            text.append(ids[place])
            place += 1
    return [*found, decode(text)] if text else found


def strings_of(value: str | Grounded) -> list[str]:
    """The strings of a text with or without boxes."""
    return [value] if isinstance(value, str) else [part for part in value if isinstance(part, str)]


def words_of(value: str | Grounded) -> str:
    """A text without its boxes."""
    return "".join(strings_of(value))


def written_out(value: str | Grounded) -> str:
    """A text as one string, its boxes too."""
    if isinstance(value, str):
        return value
    shown_box = (one if isinstance(one, str) else [round(side, 3) for side in one] for one in value)
    return " ".join(str(one).strip() for one in shown_box)


def _runs(target: torch.Tensor, outside: Ids, vocabulary: Vocabulary) -> tuple[tuple[Ids, int], ...]:
    """What can stand where ids of texts with boxes are learned: locations in a box, else `outside`."""
    inside = vocabulary[LOCATION]
    in_box = groupby(inside.start <= one < inside.stop for one in target.tolist())
    return tuple((inside if within else outside, len(list(some))) for within, some in in_box)


def location_ids(box: Box, vocabulary: Vocabulary) -> list[int]:
    """The steps that the sides of a box lie in."""
    span = vocabulary[LOCATION]
    steps = span.stop - span.start
    return [span.start + min(int(side * steps), steps - 1) for side in box]


def box_of(ids: Sequence[int], vocabulary: Vocabulary) -> list[float]:
    """The middles of the steps that four ids name."""
    span = vocabulary[LOCATION]
    return [(one - span.start + 0.5) / (span.stop - span.start) for one in ids]


def _end(vocabulary: Vocabulary) -> slice:
    return slice(vocabulary.eos, vocabulary.eos + 1)


class BoxByBox(TokenByToken):
    """Writes boxes, and text around them if its spans have text. A box that is begun gets its four locations, the right
    not left of the left and the bottom not above the top; none is begun that would not fit."""

    def __init__(
        self,
        key: str,
        vocabulary: Vocabulary,
        spans: tuple[slice, ...],
        length: int,
        rows: int,
        device: torch.device,
    ) -> None:
        super().__init__(key, vocabulary, spans, length, rows, device)
        self._open_boxes(rows, device)

    def _open_boxes(self, rows: int, device: torch.device) -> None:
        vocabulary = self.vocabulary
        marked = BOX in vocabulary and vocabulary[BOX] in self.spans
        self.begin = vocabulary[BOX if marked else LOCATION]
        self.follow = 4 if marked else 3
        """Locations behind the id that begins a box: the first side, where no mark stands before it."""
        self.room = self.length  # ids that boxes must fit into
        self.is_location = _within(self.choice, vocabulary[LOCATION])
        self.begins = _within(self.choice, self.begin)
        self.missing = torch.zeros(rows, dtype=torch.int64, device=device)  # locations that the box of a row lacks

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        super()._begin(row, seed, known)
        self.missing[row] = 0

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        missing = self.missing[index][:, None]
        opposite = self.ids[index, (at - 1).clamp(min=0)][:, None]
        inside = self.is_location & ((missing > 2) | (self.choice >= opposite))
        fits = at[:, None] + self.follow < self.room
        outside = torch.where(self.begins, fits, ~self.is_location)
        opened = super()._open(logits, index, at)
        return opened.masked_fill(~torch.where(missing > 0, inside, outside)[:, None], float("-inf"))

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        super().take(rows, index, scores)
        missing = self.missing[index]
        begun = torch.where(_within(self.ids[index, self.at[index]], self.begin), self.follow, 0)
        self.missing[index] = torch.where(missing > 0, missing - 1, begun)


class AroundWords(BoxByBox):
    """Writes a text with boxes. Where it restates the caption before it, words are known, and only boxes are chosen."""

    def __init__(self, restates: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.restates, self.words, self.said = restates, torch.full_like(self.ids, -1), torch.zeros_like(self.at)

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        super()._begin(row, seed, None)
        self.words[row], self.said[row] = -1, 0  # nothing is known
        if self.restates and known is not None:
            self.words[row, : len(known) + 1] = torch.cat([known, self.ends.cpu()])

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        words, said = self.words[index], self.said[index][:, None]
        word, left = words.gather(1, said), (words >= 0).sum(1, keepdim=True) - said
        fits = at[:, None] + self.follow + left < self.room
        others = (word >= 0) & (self.choice != word) & ~self.is_location & ~(self.begins & fits)
        return super()._open(logits, index, at).masked_fill(others[:, None], float("-inf"))

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        super().take(rows, index, scores)
        self.said[index] += self.ids[index, self.at[index]] == self.words[index, self.said[index]]


class GroundedPassageWriter(BoxByBox, PassageWriter):
    """Writes a passage with boxes in it, and what follows it. Whatever the temperature of the text, a box that is begun
    is the most likely one: what is drawn or said behind it stands on it."""

    def __init__(self, vocabulary: Vocabulary, length: int, rows: int, device: torch.device) -> None:
        PassageWriter.__init__(self, vocabulary, length, rows, device, (vocabulary[BOX], vocabulary[LOCATION]))
        self._open_boxes(rows, device)
        self.room = self.length - 1  # an end stands behind all

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        opened = super()._open(logits, index, at)
        likeliest = torch.zeros_like(opened, dtype=torch.bool).scatter_(-1, opened.argmax(-1, keepdim=True), True)
        in_box = (self.missing[index] > 0)[:, None, None]
        return opened.masked_fill(in_box & ~likeliest, float("-inf"))


def _within(ids: torch.Tensor, span: slice) -> torch.Tensor:
    return (ids >= span.start) & (ids < span.stop)
