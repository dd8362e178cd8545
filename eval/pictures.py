"""Reads the pictures of a data set for measuring: in order, each once, broken ones counted and named in the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.loader import BadPictures
from unitok.data.records import Record, RecordDataset

ENDLESS_LIMIT = 1000
"""Pictures taken of an endless data set when no limit is given."""
MAX_BAD = 0.01
"""Share of broken pictures that is left out; more of them stop a measurement."""
T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The items themselves, with a bar on stderr that leaves nothing behind; none where stderr is no terminal."""
    console = Console(stderr=True)
    return track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)


def count_pictures(dataset: RecordDataset, limit: int | None) -> int:
    """How many records of a data set are read. Raises UserError for a limit under 1."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}: choose 1 or more, or leave it out")
    return min(len(dataset), limit or (ENDLESS_LIMIT if dataset.endless else len(dataset)))


def read_records(dataset: RecordDataset, limit: int | None = None, max_bad: float = MAX_BAD) -> Iterator[Record]:
    """The usable ones of the first `limit` records; see `read_indexed`."""
    return (record for _, record in read_indexed(dataset, limit, max_bad))


def read_indexed(
    dataset: RecordDataset, limit: int | None = None, max_bad: float = MAX_BAD
) -> Iterator[tuple[int, Record]]:
    """(index, record) of those of the first `limit` records that have a picture, and a caption if captions were opened.

    Raises:
        UserError: a data set of codes, more than a share `max_bad` of broken pictures, or nothing but broken ones.
    """
    count = count_pictures(dataset, limit)
    bad = BadPictures(count, max_bad, dataset.left_out if count == len(dataset) else ())
    for index in range(count):
        record = dataset[index]
        if record.problem is not None:
            bad.note([(index, record.name, record.problem)])
        elif record.image is None:
            raise UserError(f"data {dataset.name!r} holds codes, not pictures: give the pictures they were made from")
        else:
            yield index, record
    if len(bad.reasons) == count:
        raise UserError(f"data {dataset.name!r} has no picture that can be used: all {count} are broken")


def picture_batches(records: Iterable[Record], batch_size: int) -> Iterator[tuple[Tensor, list[Record]]]:
    """Batches of at most `batch_size` neighbours of one size: pictures uint8 (B, 3, H, W), and their records."""
    batch: list[Record] = []
    for record in records:
        assert record.image is not None
        full = len(batch) == batch_size
        if batch and (full or record.image.shape != _image(batch[0]).shape):
            yield torch.stack([_image(one) for one in batch]), batch
            batch = []
        batch.append(record)
    if batch:
        yield torch.stack([_image(one) for one in batch]), batch


def _image(record: Record) -> Tensor:
    assert record.image is not None
    return record.image
