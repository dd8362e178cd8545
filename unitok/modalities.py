"""Modalities: from values to segments, and back from what was written. Values come in lists, for images are worked on
many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from tokenizers_vq.layout import Layout

from .choose import choose
from .config import ObjectiveSettings
from .objectives.base import Asked, Draw, Objective, Writer
from .seeding import keyed_generator
from .sequence import Segment
from .vocabulary import Vocabulary


class Modality(Protocol):
    """One kind of value. A value is what a record's field holds."""

    @property
    def longest(self) -> int:
        """Ids that are written at most."""
        ...

    def given(self, values: Sequence[Any]) -> list[Segment]:
        """A segment for each value that is read."""
        ...

    def learned(self, values: Sequence[Any], draws: Sequence[Draw], followed: Sequence[bool]) -> list[list[Segment]]:
        """The segments of each value that is learned. One that is followed by more is seen by that as it is given: a
        masked or noised copy stays private."""
        ...

    def writer(self, rows: int, device: torch.device) -> Writer:
        """Writes values in so many rows."""
        ...

    def value(self, written: torch.Tensor) -> Any:
        """What a writer wrote, as a value that can be given."""
        ...


@dataclass(frozen=True)
class TextModality:
    """Texts, or ids of texts: begin, then token by token."""

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    longest: int
    """Of a text, in tokens."""

    def given(self, values: Sequence[str | list[int]]) -> list[Segment]:
        return [text_segment(self.ids(value), self.vocabulary) for value in values]

    def learned(
        self, values: Sequence[str | list[int]], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        segments = []
        for value in values:
            ids = self.ids(value)
            target = torch.tensor([*ids, self.vocabulary.eos])
            runs = ((self.vocabulary.text_range, len(target)),)
            segments.append([replace(text_segment(ids, self.vocabulary), target=target, runs=runs)])
        return segments

    def ids(self, value: str | list[int]) -> list[int]:
        return self.encode(value) if isinstance(value, str) else value

    def writer(self, rows: int, device: torch.device) -> Writer:
        return TokenByToken("text", self.vocabulary, (self.vocabulary.text_range,), self.longest, rows, device)

    def value(self, written: torch.Tensor) -> list[int]:
        return written.tolist()


def text_segment(ids: list[int], vocabulary: Vocabulary) -> Segment:
    """The begin of a text and its ids; each opens a group and takes a step of the order."""
    inputs = torch.tensor([vocabulary.bos, *ids])
    places = torch.zeros(len(inputs), 3)
    places[:, 0] = torch.arange(len(inputs))
    return Segment(inputs, torch.arange(len(inputs)), places)


@dataclass(frozen=True)
class ImageModality:
    """Codes (L,) of images, read as one group, learned and written as an objective does."""

    vocabulary: Vocabulary
    layout: Layout
    objective: Objective
    settings: ObjectiveSettings | None = None
    """Of training; None: nothing is hidden or changed."""

    @property
    def longest(self) -> int:
        return self.layout.length

    def given(self, values: Sequence[torch.Tensor]) -> list[Segment]:
        return self.objective.given(torch.stack(list(values)), self.layout, self.vocabulary) if values else []

    def learned(
        self, values: Sequence[torch.Tensor], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        if not values:
            return []
        codes = torch.stack(list(values))
        copies = self.objective.learned(codes, self.layout, self.vocabulary, draws, self.settings)
        clean = iter(self.given([value for value, more in zip(values, followed, strict=True) if more]))
        pairs = zip(copies, followed, strict=True)
        return [[replace(copy, private=True), next(clean)] if more else [copy] for copy, more in pairs]

    def writer(self, rows: int, device: torch.device) -> Writer:
        return self.objective.writer(self.layout, self.vocabulary, rows, device)

    def value(self, written: torch.Tensor) -> torch.Tensor:
        return written


class TokenByToken(Writer):
    """Writes ids of some spans, the end among them, until the end or the greatest length."""

    def __init__(
        self,
        key: str,
        vocabulary: Vocabulary,
        spans: tuple[slice, ...],
        length: int,
        rows: int,
        device: torch.device,
    ) -> None:
        super().__init__(rows)
        self.key, self.vocabulary, self.spans, self.length = key, vocabulary, spans, length
        self.choice = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        """(V,) int64: the ids that scores are of."""
        self.ids = torch.full((rows, length), vocabulary.eos, device=device)
        self.uniform = torch.zeros(rows, length, device=device)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        self.inputs = torch.full((rows,), vocabulary.bos, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.look_every = 1 if device.type == "cpu" else 8
        """Steps between two looks at what has ended: a look waits for the device."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        assert known is None, "a text has no known part; what is known stands in its prompt"
        self.uniform[row] = torch.rand(self.length, generator=keyed_generator(seed, self.key)).to(self.at.device)
        self.ids[row] = self.vocabulary.eos
        self.inputs[row] = self.vocabulary.bos
        self.at[row] = 0
        self.ended[row] = False

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        at = self.at[index]
        places = torch.zeros(len(rows), 1, 3, device=at.device)
        places[:, 0, 0] = at
        return Asked(self.inputs[index][:, None], places, tuple((span, slice(0, 1)) for span in self.spans))

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        at = self.at[index]
        logits = self._open(torch.cat(scores, -1), index, at)
        chosen = choose(logits, self.uniform[index, at][:, None], list(map(self.settings, rows)))[0][:, 0]
        ids = self.choice[chosen].masked_fill(self.ended[index], self.vocabulary.eos)
        self.ids[index, at] = ids
        self.inputs[index] = ids
        self.ended[index] |= ids == self.vocabulary.eos
        self.at[index] = at + 1
        for row in rows:
            self.row(row).step += 1

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Logits (b, 1, V), minus infinity for what cannot stand at the places `at` (b,) of the rows."""
        return logits

    def finished(self, rows: Sequence[int]) -> list[int]:
        full = [row for row in rows if self.row(row).step == self.length]
        looked = [row for row in rows if self.row(row).step % self.look_every == 0]
        ended = self.ended.tolist() if looked else []
        return sorted({*full, *(row for row in looked if ended[row])})

    def written(self, row: int) -> torch.Tensor:
        """The ids before the end."""
        ids = self.ids[row].cpu()
        return ids[: int((ids != self.vocabulary.eos).long().cumprod(0).sum())]
