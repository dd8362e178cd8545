"""One id space for text, special tokens and image codes: the only place that adds or subtracts an offset.

A vocabulary is a row of named spans. A model folder keeps its own, and a span is only ever added behind the others: a
model that was written before a span was invented opens as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from tokenizers_vq.errors import Problems, UserError, shown

if TYPE_CHECKING:
    import torch

SPECIALS = ("eos", "bos", "boi", "mask", "pad")
"""End of a text (it follows the text ids, so that "text or end" is one range), its begin, begin of an image that is
drawn code by code, a code that is not known, filler of rows."""
LARGEST = 2**25
"""Ids of a whole vocabulary."""


Spans = tuple[tuple[str, int], ...]
Frame = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of spans whose first ids stand before a value and behind it."""
BARE: Frame = ((), ())


class Frames(NamedTuple):
    """What stands around values, and how pictures are read."""

    text: Frame = BARE
    """Around a caption that is given."""
    drawn: Frame = BARE
    """Around a picture that is drawn."""
    read: Frame = BARE
    """Around a picture that is read."""
    read_in_order: bool = False
    """Whether each code of a picture that is read sees those before it alone."""
    begin: str = "bos"
    """Span of the begin of a text that is learned or written, if it is no answer (`Asking.begin`)."""
    row_end: str = ""
    """Span whose first id stands behind each row of a picture that is drawn code by code, but the last; empty: none."""


FRAMELESS = Frames()


class Asking(NamedTuple):
    """The words in which a model is asked about a picture, where its authors trained it on turns of a talk."""

    before: str
    """Stands before the picture, in front of the last mark of its frame."""
    question: str
    """What a question is put into, in place of {}, without `begin`."""
    begin: str
    """Span of the last of these words: an answer begins with it."""
    tasks: Mapping[str, str]
    """Task -> the question by which it is done."""
    marks: tuple[str, ...] = ()
    """Spans whose first ids stand before the words."""
    space: str = " "
    """Stands before an answer that has words."""

    def known_to(self, vocabulary: Vocabulary) -> Asking | None:
        """None where the vocabulary lacks an id of it: the model was imported before its family was asked in words."""
        return self if self.begin in vocabulary else None


@dataclass(frozen=True)
class Vocabulary:
    """Named spans of ids, laid end to end.

    >>> v = Vocabulary.of(text_size=100, codebook_size=16)
    >>> v.size, v.image_start, v.grown("location", 8)["location"]
    (121, 105, slice(121, 129, None))
    """

    spans: Spans
    """(name, number of ids), in the order of the ids."""

    def __post_init__(self) -> None:
        problems = Problems()
        names = [name for name, _ in self.spans]
        for name, size in self.spans:
            problems.check_range(f"vocabulary: {shown(name)}", size, 1, LARGEST)
            problems.check(names.count(name) == 1, f"vocabulary has {shown(name)} twice: keep one")
        missing = [name for name in ("text", *SPECIALS, "image") if name not in names]
        problems.check(not missing, f"vocabulary has no {', '.join(missing)}: a model needs these spans")
        problems.check(
            bool(missing) or names.index("eos") == names.index("text") + 1,
            "vocabulary has eos elsewhere than behind text: a text is written from one range of ids",
        )
        problems.raise_if_any()
        problems.check(self.size <= LARGEST, f"vocabulary has {self.size} ids: choose at most {LARGEST}")
        problems.raise_if_any()

    @classmethod
    def of(cls, text_size: int, codebook_size: int) -> Vocabulary:
        """What a new model starts with."""
        return cls((("text", text_size), *((name, 1) for name in SPECIALS), ("image", codebook_size)))

    def grown(self, name: str, size: int) -> Vocabulary:
        """With one more span, behind all others: every id keeps its meaning."""
        return Vocabulary((*self.spans, (name, size)))

    @cached_property
    def _starts(self) -> dict[str, int]:
        names, sizes = zip(*self.spans, strict=True)
        return dict(zip(names, accumulate(sizes, initial=0), strict=False))

    def __contains__(self, name: str) -> bool:
        return name in self._starts

    def __getitem__(self, name: str) -> slice:
        """The ids of a span."""
        start = self._starts[name]
        return slice(start, start + dict(self.spans)[name])

    @property
    def size(self) -> int:
        return sum(size for _, size in self.spans)

    @property
    def eos(self) -> int:
        return self._starts["eos"]

    @property
    def bos(self) -> int:
        return self._starts["bos"]

    @property
    def boi(self) -> int:
        return self._starts["boi"]

    @property
    def mask(self) -> int:
        return self._starts["mask"]

    @property
    def pad(self) -> int:
        return self._starts["pad"]

    @property
    def image_start(self) -> int:
        return self._starts["image"]

    @property
    def codebook_size(self) -> int:
        return dict(self.spans)["image"]

    @property
    def text_range(self) -> slice:
        """Ids that may be written in a text: the text ids and the end."""
        return slice(self._starts["text"], self.eos + 1)

    @property
    def passage_ranges(self) -> tuple[slice, slice]:
        """Ids that may be written in a passage: the text ids, the end of the document, and the begin of the image that
        follows."""
        return self.text_range, slice(self.boi, self.boi + 1)

    @property
    def image_range(self) -> slice:
        """Ids of image codes."""
        return self["image"]

    def around(self, frame: Frame) -> tuple[list[int], list[int]]:
        """The ids before a value and behind it."""
        before, behind = ([self[name].start for name in names] for names in frame)
        return before, behind

    def image_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Ids of image codes. Raises UserError for codes outside the codebook."""
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            raise UserError(
                f"image codes from {int(codes.min())} to {int(codes.max())} do not fit a codebook of "
                f"{self.codebook_size}: encode the pictures with the tokenizer of this model"
            )
        return codes + self.image_start

    def known_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """As `image_ids`, of codes that are -1 where they are not known: those are masked."""
        hidden = codes == -1
        return self.image_ids(codes.masked_fill(hidden, 0)).masked_fill(hidden, self.mask)
