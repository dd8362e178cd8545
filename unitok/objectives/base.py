"""What an objective is, and the writer that draws by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import Problems
from tokenizers_vq.layout import Layout

from ..config import ObjectiveSettings, PortConfig
from ..sampling import GivenSettings, SampleSettings
from ..sequence import IGNORE, Segment
from ..vocabulary import FRAMELESS, Frames, Vocabulary

CodeRuns = tuple[tuple[slice, int], ...]
"""(codes that can stand there, number of positions) of runs of positions of an image."""


@dataclass(frozen=True)
class Draw:
    """What is random about one use of one record."""

    generator: torch.Generator
    progress: float = 1.0
    """Share of the training that lies behind, in [0, 1]."""


def code_runs(layout: Layout, vocabulary: Vocabulary) -> CodeRuns:
    """The ids that can stand at each grid of a layout."""
    start = vocabulary.image_start
    if not layout.books:
        return ((vocabulary.image_range, layout.length),)
    books = zip(layout.books, layout.lengths, strict=True)
    return tuple((slice(start + first, start + first + size), n) for (first, size), n in books)


def runs_in_order(layout: Layout, vocabulary: Vocabulary, order: torch.Tensor) -> CodeRuns:
    """The ids that can stand at each place, in an order (L,) of the places."""
    runs = code_runs(layout, vocabulary)
    if not layout.books:
        return runs
    span_of = [ids for ids, n in runs for _ in range(n)]
    return tuple((span_of[place], 1) for place in order.tolist())


def code_spans(layout: Layout, vocabulary: Vocabulary) -> tuple[tuple[slice, slice], ...]:
    """(ids that can stand there, positions) of all codes of an image."""
    spans, start = [], 0
    for ids, n in code_runs(layout, vocabulary):
        spans.append((ids, slice(start, start + n)))
        start += n
    return tuple(spans)


def hidden_places(length: int, share: float, draws: Sequence[Draw]) -> torch.Tensor:
    """(B, length) bool: the places that `code_dropout` hides, a share of its own of each image."""
    found = [torch.rand(1 + length, generator=draw.generator) for draw in draws]
    table = torch.stack(found) if found else torch.zeros(0, 1 + length)
    return table[:, 1:] < share * table[:, :1]


def framed(segment: Segment, before: Sequence[int], behind: Sequence[int]) -> Segment:
    """A segment of one group in one line with ids around it, which belong to the group and are given."""
    if not before and not behind:
        return segment
    ids = torch.cat([torch.tensor(before, dtype=torch.int64), segment.ids, torch.tensor(behind, dtype=torch.int64)])
    places = torch.zeros(len(ids), 3)
    places[:, 0] = torch.arange(len(ids))
    ends = (len(before), len(behind))
    target = None if segment.target is None else F.pad(segment.target, ends, value=IGNORE)
    nothing = slice(0, 0)
    runs = ((nothing, ends[0]), *segment.runs, (nothing, ends[1])) if segment.runs else ()
    at = segment.at and slice(segment.at.start + len(before), segment.at.stop + len(before))
    return replace(segment, ids=ids, groups=torch.zeros_like(ids), places=places, target=target, runs=runs, at=at)


class Objective(ABC):
    """Answers for images: what stands at their positions, what is predicted there, who sees whom, and in which order
    they are drawn."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, float]] = {}
    """Fields of `ObjectiveSettings` that it takes, each with its value unless another is given."""
    sampling: ClassVar[Mapping[str, Any]] = {}
    """Fields of `SampleSettings` that suit it better than their defaults."""
    passes: ClassVar[bool] = False
    """Whether the user says in how many passes an image is drawn."""
    sets_scales: ClassVar[bool] = False
    """Whether sampling settings may be lists with a value for each scale, and a picture is known scale by scale."""
    smooths: ClassVar[bool] = False
    """Whether a picture may be drawn from mixtures of code vectors."""
    bitwise: ClassVar[bool] = False
    """Whether codes are chosen bit by bit."""
    counted: ClassVar[str] = "codes"
    """What the ids of pictures are."""
    authors: ClassVar[Mapping[str, float]] = {}
    """Fields of `settings` that the authors of a published model train with; all others are 0."""
    plain: bool = False
    """Whether what is seen of a picture comes in as published models have it: neither whitened nor with ids beside."""
    frames: Frames = FRAMELESS
    """What stands around pictures: of those that are drawn only `maskgit` has it."""
    cools_fast: bool = False
    """See `MaskGIT`."""
    sub_tokens: tuple[int, ...] = ()
    """Values of each sub-token of a code; empty: a code is one. Of the objectives only `next_token` draws them."""

    @classmethod
    def for_tokenizer(cls, image_tokenizer: ImageTokenizer) -> Self:
        """The objective for the codes of a tokenizer. Raises UserError when it cannot work with them."""
        return cls()

    @classmethod
    def ids_of(cls, image_tokenizer: ImageTokenizer) -> int:
        """How many ids the codes of a tokenizer need."""
        return image_tokenizer.codebook_size

    @classmethod
    def drawn(cls, given: GivenSettings) -> SampleSettings:
        """The sampling settings of a model, with its own for those that are not given. Raises UserError for values out
        of range."""
        return SampleSettings(**{**cls.sampling, **SampleSettings.given(given)})

    @classmethod
    def settled(cls, given: ObjectiveSettings) -> ObjectiveSettings:
        """The settings with its own values for those that are not given. Raises UserError for settings that are given
        and not taken."""
        problems = Problems()
        for item in fields(given):
            value = getattr(given, item.name)
            problems.check(
                value is None or item.name in cls.settings,
                f"--objective_settings.{item.name} is {value}, which objective {cls.name} does not take: leave it out",
            )
        problems.raise_if_any()
        return replace(given, **{name: own for name, own in cls.settings.items() if getattr(given, name) is None})

    def ports(self, layout: Layout) -> dict[str, PortConfig]:
        """What stands beside the ids of images."""
        return {}

    def places(self, layout: Layout) -> torch.Tensor:
        """(L, 3) float32: where the codes of a picture stand that is drawn."""
        places = layout.coordinates()
        places[:, 0] += len(self.frames.drawn[0])
        return places

    def positions(self, layout: Layout) -> int:
        """How many a picture takes that is drawn."""
        return layout.length + sum(map(len, self.frames.drawn))

    @abstractmethod
    def learned(
        self,
        codes: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        draws: Sequence[Draw],
        settings: ObjectiveSettings | None = None,
    ) -> list[Segment]:
        """Codes (B, L) of images that are learned; image b draws whatever is random from `draws[b]` alone, by settings
        that are settled. Without them nothing of what an image is continued from is hidden or changed."""

    def forced(
        self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary, known: torch.Tensor | None = None
    ) -> list[Segment]:
        """Codes (B, L) of images with each predicted as it is when they are drawn, from those that are drawn before.
        Where images are drawn in `passes` it may be said which are known, (B, L) bool, when all others are drawn."""
        return self.learned(codes, layout, vocabulary, [Draw(torch.Generator().manual_seed(0))] * len(codes))

    def given(self, codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary) -> list[Segment]:
        """Codes (B, L) of images that are read, -1 for those that are not known: nothing is predicted, and all
        positions are one group, unless `frames` says otherwise."""
        places, groups = layout.coordinates(), torch.zeros(layout.length, dtype=torch.int64)
        return [self.read(Segment(ids, groups, places), vocabulary) for ids in vocabulary.known_ids(codes).cpu()]

    def read(self, segment: Segment, vocabulary: Vocabulary, opening: Sequence[int] = ()) -> Segment:
        """An image that is read, of one group, with what `frames` says of it, and further ids before the last mark in
        front of it."""
        before, behind = vocabulary.around(self.frames.read)
        found = framed(segment, [*before[:-1], *opening, *before[-1:]], behind)
        return replace(found, groups=torch.arange(len(found))) if self.frames.read_in_order else found

    def unopened(self, segment: Segment, opening: int = 0) -> Segment:
        """An image that `read` made, with so many further ids where a port stands in it, without what comes before the
        last mark in front of it."""
        gone = max(0, len(self.frames.read[0]) - 1) + (opening if segment.port else 0)
        if not gone:
            return segment
        places, groups = segment.places[gone:].clone(), segment.groups[gone:]
        places[:, 0] -= gone
        at = segment.at and slice(segment.at.start - gone, segment.at.stop - gone)
        return replace(segment, ids=segment.ids[gone:], groups=groups - groups[0], places=places, at=at)

    @abstractmethod
    def writer(self, layout: Layout, vocabulary: Vocabulary, rows: int, device: torch.device) -> Writer:
        """A writer of images for so many rows."""


@dataclass
class Asked:
    """Positions that a writer wants to be run, n for each of b rows. They see all before them, and one another."""

    ids: torch.Tensor
    """(b, n) int64."""
    places: torch.Tensor
    """(b, n, 3) float32; the order is counted from the segment's begin."""
    spans: tuple[tuple[slice, slice], ...]
    """(ids, positions among the n) of all that is to be scored."""
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    """Port -> (b, n, F) or (b, n)."""
    stands: torch.Tensor | None = None
    """(b, n, 3): where the ids stand, if elsewhere than at their places."""
    groups: torch.Tensor | None = None
    """(n,) int64: they see one another by these groups; None: all do. Known codes so come in one pass."""
    numbers: torch.Tensor | None = None
    """(b, n) int64, 0 or more, in place of `groups`: they also see of the passes before only positions of no higher
    number, and what has none."""


class Progress(NamedTuple):
    """How far a value is."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all; of a text, at most."""
    so_far: torch.Tensor
    """Codes (L,) int64 of an image, -1 for those that are not drawn yet, or the ids of a text."""


class Writer(ABC):
    """Writes one value in each of many rows, a step at a time. Rows do not depend on each other."""

    sub_tokens: tuple[int, ...] = ()
    """Values of each sub-token of what it writes; empty: it has none."""

    def __init__(self, rows: int) -> None:
        self.rows: list[Row | None] = [None] * rows

    def admit(self, row: int, seed: int, settings: SampleSettings, known: torch.Tensor | None = None) -> None:
        """Begins a value in a row. `known` int64 is given and stays: codes (L,) of an image, -1 for the others, or ids
        (n,) that a text begins with."""
        self.rows[row] = Row(seed, settings)
        self._begin(row, seed, known)

    def row(self, row: int) -> Row:
        state = self.rows[row]
        assert state is not None
        return state

    def settings(self, row: int) -> SampleSettings:
        """The settings of the step that a row is at, every one a number."""
        return self.row(row).at(0, 1, self.guided(row))

    def guided(self, row: int) -> bool:
        """Whether the step that a row is at is guided. If it is not, no later one is."""
        most = self.row(row).settings.guided_codes
        return not most or self.before(row) < most

    def before(self, row: int) -> int:
        """Codes that a row has before the step that it is at; a text has none."""
        return 0

    @abstractmethod
    def _begin(self, row: int, seed: int, known: torch.Tensor | None) -> None: ...

    def phase(self, row: int) -> int:
        """Rows at the same phase ask for equally many positions and run together."""
        return 0

    @abstractmethod
    def ask(self, rows: Sequence[int], index: torch.Tensor) -> Asked:
        """What to run for these rows, which are at the same phase; `index` are they as a tensor on the device."""

    def choose(self, rows: Sequence[int], index: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Sub-tokens (b, m) but the last, from their guided logits (b, m, V), one after another: the next is scored
        behind those before it. `take` then has the logits of the last."""
        raise NotImplementedError

    @abstractmethod
    def take(self, rows: Sequence[int], index: torch.Tensor, scores: list[torch.Tensor]) -> Sequence[int] | None:
        """Guided logits (b, m, V) float32 of each of `Asked.spans`. Returns how many of the positions that were asked
        for, the last ones, nothing later sees, for each row; None: all of them are seen. Never waits for the device,
        unless that number depends on what was drawn."""

    @abstractmethod
    def finished(self, rows: Sequence[int]) -> list[int]:
        """Those of the rows that are written to the end."""

    @abstractmethod
    def written(self, row: int) -> torch.Tensor:
        """What was written, (L,) int64."""

    def progress(self, row: int) -> Progress:
        return Progress(self.row(row).step, self.steps(row), self.so_far(row).clone())

    @abstractmethod
    def steps(self, row: int) -> int:
        """See `Progress`."""

    def so_far(self, row: int) -> torch.Tensor:
        """See `Progress`."""
        return self.written(row)

    def kept(self, row: int) -> int:
        """How many of the positions that a finished value ran are those of the value as it is given; 0: it is read
        again."""
        return 0

    def more(self, row: int, ids: torch.Tensor) -> None:
        """Goes on with a finished value behind further ids (n,) int64, if it is a text."""
        raise NotImplementedError


@dataclass
class Row:
    """A value that is being written."""

    seed: int
    settings: SampleSettings
    step: int = 0
    """Steps done."""
    _at: dict[tuple[int, bool], SampleSettings] = field(default_factory=dict)

    def at(self, scale: int, scales: int, guided: bool = True) -> SampleSettings:
        """The settings of a scale, put together once; with guidance turned off where it is over."""
        if (scale, guided) not in self._at:
            found = self.settings.at_scale(scale, scales)
            self._at[scale, guided] = found if guided else replace(found, guidance=1.0)
        return self._at[scale, guided]
