"""Modalities: from values to segments, and back from what was written. Values come in lists, for images are worked on
many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout

from .choose import choose
from .config import ObjectiveSettings
from .objectives.base import Asked, Draw, Objective, Writer
from .reader.config import READER
from .seeding import keyed_generator
from .sequence import Ids, Segment
from .vocabulary import FRAMELESS, Asking, Frames, Vocabulary

PASSAGE = "passage"
"""The modality of the texts of a document of texts and images."""
ANSWER = "answer"
"""The modality of the answers to questions."""
TEXTS = ("text", ANSWER)
"""The modalities whose values are a text."""


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


class Picture(NamedTuple):
    """A picture of a model that reads pictures through a port, and not as codes."""

    pixels: torch.Tensor
    """(3, H, W) uint8."""
    codes: torch.Tensor | None = None
    """(L,), where it is also to be learned."""


class Further(NamedTuple):
    """A picture that is read behind others: what opens the first, as a begin of a text, does not stand before it."""

    value: torch.Tensor | Picture


class Replaced(list[int]):
    """Ids of a text that has others in its place where it is left out."""

    def __init__(self, ids: Sequence[int], instead: list[int]) -> None:
        super().__init__(ids)
        self.instead = instead

    def left_out(self) -> list[int]:
        return self.instead


class Bare(list[int]):
    """Ids that no begin of a text stands before: of a question in the words of the model, behind a picture, or in place
    of a caption that is left out."""


@dataclass(frozen=True)
class TextModality:
    """Texts, or ids of texts: begin, then token by token."""

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    longest: int
    """Of a text, in tokens."""
    wording: str = "{}"
    padded: bool = False
    keeps_wording: bool = False
    frames: Frames = FRAMELESS
    asking: Asking | None = None
    left_out: str = ""
    """All as of `TrunkConfig`."""
    answers: bool = False
    """Whether they answer what `asking` puts into words: they begin with the last of these, and its space."""

    @property
    def replaces(self) -> bool:
        """Whether something stands in place of a text that is left out."""
        return bool(self.padded or self.keeps_wording or self.left_out)

    @property
    def begin(self) -> int:
        """Id at the begin of a text that is learned or written."""
        return self.vocabulary[self.asking.begin if self.answers and self.asking else self.frames.begin].start

    def asked(self, question: str | list[int]) -> Bare:
        """A question in the words of the model, which has such."""
        assert self.asking is not None
        marks, _ = self.vocabulary.around((self.asking.marks, ()))
        before, behind = (self.encode(part) for part in self.asking.question.split("{}"))
        return Bare([*marks, *before, *self.ids(question), *behind])

    def read(self, value: str | list[int]) -> list[int]:
        """The ids of a text that is given, in the wording of the model."""
        if not isinstance(value, str):
            return value
        ids = self.encode(self.wording.replace("{}", value))
        if self.padded:
            return Replaced(ids, [self.vocabulary.pad] * len(ids))
        if self.left_out:
            return Replaced(ids, Bare(self.encode(self.left_out)))
        return Replaced(ids, self.encode(self.wording.replace("{}", ""))) if self.keeps_wording else ids

    def given(self, values: Sequence[str | list[int]]) -> list[Segment]:
        before, behind = self.vocabulary.around(self.frames.text)
        return [
            _segment(value)
            if isinstance(value, Bare)
            else text_segment([*self.read(value), *behind], self.vocabulary, before)
            for value in values
        ]

    def learned(
        self, values: Sequence[str | list[int]], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        return [[self._learned(value, self.vocabulary.eos, self.vocabulary.text_range)] for value in values]

    def _learned(self, value: str | list[int], end: int, can_stand: Ids) -> Segment:
        ids = self.ids(value)
        target = torch.tensor([*ids, end])
        segment = text_segment(ids, self.vocabulary)
        segment.ids[0] = self.begin
        return replace(segment, target=target, runs=self._runs(target, can_stand))

    def _runs(self, target: torch.Tensor, can_stand: Ids) -> tuple[tuple[Ids, int], ...]:
        """The ids that can stand where `target` is learned; `can_stand` where nothing else is known."""
        return ((can_stand, len(target)),)

    def ids(self, value: str | list[int]) -> list[int]:
        space = self.asking.space if self.answers and self.asking and value else ""
        return self.encode(f"{space}{value}") if isinstance(value, str) else value

    def writer(self, rows: int, device: torch.device) -> Writer:
        spans = (self.vocabulary.text_range,)
        return TokenByToken("text", self.vocabulary, spans, self.longest, rows, device, self.begin)

    def value(self, written: torch.Tensor) -> list[int]:
        return written.tolist()


class PassageModality(TextModality):
    """The texts of a document, in which texts and images alternate: the end of each says what follows, `boi` an image
    and `eos` nothing."""

    def ids(self, value: str | list[int]) -> list[int]:
        """
        Raises:
            UserError: a text with boxes.
        """
        if not isinstance(value, str) and not all(isinstance(one, int) for one in value):
            raise UserError(
                "a text of a document has boxes, and this model has no ids for them: train it with a task of texts "
                "with boxes beside it, such as --tasks.ground_caption.share"
            )
        return super().ids(value)

    def learned(
        self, values: Sequence[str | list[int]], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        ends = [self.vocabulary.boi if more else self.vocabulary.eos for more in followed]
        can_stand = self.vocabulary.passage_ranges
        return [[self._learned(value, end, can_stand)] for value, end in zip(values, ends, strict=True)]

    def writer(self, rows: int, device: torch.device) -> Writer:
        return PassageWriter(self.vocabulary, self.longest, rows, device)

    def value(self, written: torch.Tensor) -> list[int]:
        return written.tolist()[: -1 if self.image_follows(written) else None]

    def said(self, ids: list[int], decode: Callable[[list[int]], str]) -> Any:
        """What ids of a passage say."""
        return decode(ids)

    def image_follows(self, written: torch.Tensor) -> bool:
        """Whether a passage ended with an image to come."""
        return written[-1:].tolist() == [self.vocabulary.boi]


def text_segment(ids: list[int], vocabulary: Vocabulary, before: Sequence[int] = ()) -> Segment:
    """The begin of a text and its ids."""
    return _segment([*before, vocabulary.bos, *ids])


def _segment(ids: list[int]) -> Segment:
    """Each id opens a group and takes a step of the order."""
    places = torch.zeros(len(ids), 3)
    places[:, 0] = torch.arange(len(ids))
    return Segment(torch.tensor(ids, dtype=torch.int64), torch.arange(len(ids)), places)


@dataclass(frozen=True)
class ImageModality:
    """Images, learned and written as an objective does. Codes (L,) are read as one group; a `Picture` is read through
    the port of pictures."""

    vocabulary: Vocabulary
    layout: Layout
    objective: Objective
    settings: ObjectiveSettings | None = None
    """Of training; None: nothing is hidden or changed."""
    seen: torch.Tensor | None = None
    """(m, 3) float32: places of the positions that the port of pictures makes of one; None: the model has no such
    port."""
    opening: tuple[int, ...] = ()
    """Ids before such a picture, as of `Asking`."""
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Codes (1, L) to a picture (1, 3, H, W) uint8, where what was written is to be read through the port."""

    @property
    def longest(self) -> int:
        return self.objective.positions(self.layout)

    def given(self, values: Sequence[torch.Tensor | Picture | Further]) -> list[Segment]:
        pictures = [value.value if isinstance(value, Further) else value for value in values]
        codes = [one for one in pictures if not isinstance(one, Picture)]
        read = iter(self.objective.given(torch.stack(codes), self.layout, self.vocabulary) if codes else [])
        segments = [self._seen(one) if isinstance(one, Picture) else next(read) for one in pictures]
        pairs = zip(segments, values, strict=True)
        unopened = self.objective.unopened
        return [unopened(one, len(self.opening)) if isinstance(value, Further) else one for one, value in pairs]

    def _seen(self, picture: Picture) -> Segment:
        assert self.seen is not None, "a model with the port"
        ids, groups = (torch.full((len(self.seen),), value) for value in (self.vocabulary.mask, 0))
        there = slice(0, len(ids))
        segment = Segment(ids, groups, self.seen, features=picture.pixels[None].cpu(), port=READER, at=there)
        return self.objective.read(segment, self.vocabulary, self.opening)

    def learned(
        self, values: Sequence[torch.Tensor | Picture], draws: Sequence[Draw], followed: Sequence[bool]
    ) -> list[list[Segment]]:
        if not values:
            return []
        codes = torch.stack([codes_in(value) for value in values])
        copies = self.objective.learned(codes, self.layout, self.vocabulary, draws, self.settings)
        clean = iter(self.given([value for value, more in zip(values, followed, strict=True) if more]))
        pairs = zip(copies, followed, strict=True)
        return [[replace(copy, private=True), next(clean)] if more else [copy] for copy, more in pairs]

    def writer(self, rows: int, device: torch.device) -> Writer:
        return self.objective.writer(self.layout, self.vocabulary, rows, device)

    def value(self, written: torch.Tensor) -> torch.Tensor | Picture:
        return written if self.decode is None else Picture(self.decode(written[None])[0], written)


def codes_in(value: torch.Tensor | Picture) -> torch.Tensor:
    """The codes (L,) of an image."""
    found = value.codes if isinstance(value, Picture) else value
    assert found is not None, "it was encoded"
    return found


class TokenByToken(Writer):
    """Writes ids of some spans behind those that are known, until the end or the greatest length."""

    def __init__(
        self,
        key: str,
        vocabulary: Vocabulary,
        spans: Sequence[slice],
        length: int,
        rows: int,
        device: torch.device,
        begin: int | None = None,
    ) -> None:
        super().__init__(rows)
        self.key, self.vocabulary, self.spans, self.length = key, vocabulary, tuple(spans), length
        self.choice = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        """(V,) int64: the ids that scores are of."""
        self.ends = torch.tensor([vocabulary.eos], device=device)
        self.ids = torch.full((rows, 1 + length), vocabulary.eos, device=device)
        """The begin of a text, then its ids."""
        self.ids[:, 0] = vocabulary.bos if begin is None else begin
        self.uniform = torch.zeros(rows, length, device=device)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        """Ids that each row has."""
        self.unread = [1] * rows
        """Positions that each row runs next: the one of its last id, and of all before that are known and new."""
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.look_every = 1 if device.type == "cpu" else 8
        """Steps between two looks at what has ended: a look waits for the device."""

    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None:
        self.uniform[row] = torch.rand(self.length, generator=keyed_generator(seed, self.key)).to(self.at.device)
        self._put(row, 0, torch.zeros(0, dtype=torch.int64) if known is None else known)
        self.unread[row] += 1  # the begin

    def _put(self, row: int, at: int, ids: torch.Tensor) -> None:
        """Puts known ids behind the first `at` ids of a row."""
        end = at + len(ids)
        assert end < self.length or not len(ids), "what is known leaves room for an end"
        self.ids[row, 1 + at : 1 + end] = ids.to(self.at.device)
        self.ids[row, 1 + end :] = self.vocabulary.eos
        self.at[row] = end
        self.ended[row] = False
        self.unread[row] = len(ids)
        self.row(row).step = end

    def phase(self, row: int) -> int:
        return self.unread[row]

    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        n = self.unread[rows[0]]
        steps = self.at[index][:, None] + torch.arange(1 - n, 1, device=self.at.device)
        places = torch.zeros(len(rows), n, 3, device=self.at.device)
        places[..., 0] = steps
        groups = torch.arange(n, device=self.at.device) if n > 1 else None
        spans = tuple((span, slice(n - 1, n)) for span in self.spans)
        return Asked(self.ids[index[:, None], steps], places, spans, groups=groups)

    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> None:
        at = self.at[index]
        logits = self._open(torch.cat(scores, -1), index, at)
        chosen = choose(logits, self.uniform[index, at][:, None], list(map(self.settings, rows)))[0][:, 0]
        ids = self.choice[chosen].masked_fill(self.ended[index], self.vocabulary.eos)
        self.ids[index, 1 + at] = ids
        self.ended[index] |= torch.isin(ids, self.ends)
        self.at[index] = at + 1
        for row in rows:
            self.row(row).step += 1
            self.unread[row] = 1

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Logits (b, 1, V) of rows `index` that have `at` (b,) ids, minus infinity for what cannot come next."""
        return logits

    def finished(self, rows: Sequence[int]) -> list[int]:
        full = [row for row in rows if self.row(row).step == self.length]
        looked = [row for row in rows if self.row(row).step % self.look_every == 0]
        ended = self.ended.tolist() if looked else []
        return sorted({*full, *(row for row in looked if ended[row])})

    def written(self, row: int) -> torch.Tensor:
        """The ids before the end, those that were known too."""
        ids = self.ids[row, 1:].cpu()
        return ids[: int((~torch.isin(ids, self.ends.cpu())).long().cumprod(0).sum())]

    def steps(self, row: int) -> int:
        return self.length

    def kept(self, row: int) -> int:
        """The begin and all ids, if an end was written behind them: then the last of them has been run too."""
        written = TokenByToken.written(self, row)
        return len(written) + 1 if self.row(row).step > len(written) else 0

    def more(self, row: int, ids: torch.Tensor) -> None:
        self._put(row, len(TokenByToken.written(self, row)), ids)


class PassageWriter(TokenByToken):
    """Writes a passage and what follows it. One of the greatest length ends there, in one of both ways."""

    def __init__(
        self, vocabulary: Vocabulary, length: int, rows: int, device: torch.device, more: tuple[slice, ...] = ()
    ) -> None:
        TokenByToken.__init__(self, "text", vocabulary, (*vocabulary.passage_ranges, *more), length + 1, rows, device)
        self.ends = torch.tensor([vocabulary.eos, vocabulary.boi], device=device)
        self.inside = ~torch.isin(self.choice, self.ends)

    def _open(self, logits: torch.Tensor, index: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill((at == self.length - 1)[:, None, None] & self.inside, -torch.inf)

    def written(self, row: int) -> torch.Tensor:
        """The ids before the end, and `boi` where that was the end."""
        ids = super().written(row)
        end = self.ids[row, 1 + len(ids)].cpu()[None]
        return torch.cat([ids, end]) if end.item() == self.vocabulary.boi else ids
