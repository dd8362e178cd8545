"""What a data set yields, one picture at a time and in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


CaptionsWanted = bool | Literal["optional"]
"""Whether captions are read. True: a record without one is broken. "optional": it is whole all the same."""


LeftOut = tuple[str, str]
"""(name, reason) of a picture that is no record of a data set, although a user would count it."""


@dataclass(frozen=True)
class Key:
    """Names one use of one record. `slot` is its place in the global batch of the step (over all micro-batches and
    ranks)."""

    epoch: int
    index: int
    slot: int
    step: int = 0
    """Training step, from 0."""


TEXT_FIELDS = ("question", "answer", "instruction", "phrase", "description")
"""Texts of a record, besides its caption, that tasks are made of."""


@dataclass
class Record:
    """One captioned picture, with pixels, or codes when the data set was encoded before; or what else a task needs."""

    name: str
    """File name (or another name) for logs."""
    caption: str | None = None
    image: torch.Tensor | None = None
    """(3, H, W) uint8."""
    codes: Any = None
    """(L,) int64, or what else a model learns pictures from."""
    problem: str | None = None
    """Why this record cannot be used; then image and codes are None."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields by name: texts (`TEXT_FIELDS`, and `label` and `prompt`, which measuring asks for), `source` (a
    picture as `image`, or a list of them), `box` (four shares), `boxes` (a list of them), `named` (strings and boxes),
    `parts` (pairs of "text" and a text, or "image" and a picture)."""


class RecordDataset(Protocol):
    """A map-style data set of records; index in [0, len)."""

    @property
    def name(self) -> str: ...

    @property
    def endless(self) -> bool:
        """True when every index is a new picture and no epoch needs shuffling (rendered data)."""
        ...

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """Pictures that were found but are no records; what the user chose to leave, such as other splits, is not
        among them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def fingerprint(self) -> str:
        """Quick SHA-256 (hex) of the contents: another one when pictures or captions were replaced, the same wherever
        they lie."""
        ...


@runtime_checkable
class ShardedDataset(RecordDataset, Protocol):
    """A data set whose records are best read shard by shard, for a shard has to come from afar."""

    @property
    def shards(self) -> Sequence[int]:
        """Records of each shard, in the order of the indices."""
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begins to bring these shards, in this order; returns at once."""
        ...


@runtime_checkable
class Captioned(RecordDataset, Protocol):
    """A data set that tells captions without reading pictures."""

    def each_caption(self) -> Iterator[str | None]:
        """Of every record, in order; None where there is none that can be used."""
        ...


def each_caption(dataset: RecordDataset) -> Iterator[str | None]:
    """The caption of every record, in order; None where there is none. Of some data sets their records must be read
    for it. Data without end give as many as their length says."""
    if isinstance(dataset, Captioned):
        return dataset.each_caption()
    return (dataset[index].caption for index in range(len(dataset)))


@dataclass
class RecordBatch:
    """Usable records of one micro-batch. Broken records are left out and listed in `problems`."""

    keys: list[Key]
    names: list[str]
    captions: list[str]
    images: torch.Tensor | None
    """(B, 3, H, W) uint8, when all records have pixels."""
    codes: Sequence[Any] | torch.Tensor | None
    """(B, L) int64, or what else a model learns pictures from, when all records have it."""
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    """(index, name, reason) of the records that were left out."""
    records: list[Record] = field(default_factory=list)
    """The records, without what is stacked in `images` or `codes`."""
