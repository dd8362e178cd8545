"""From a data set to micro-batches: which pictures a step sees, and how they are read.

The step number is the whole state. What a step sees follows from (seed, step) alone, so a resumed run, any number of
workers, any number of ranks and any micro-batch size read the same pictures.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenizers_vq.errors import UserError

from ..seeding import fold, keyed_generator
from .epochs import EpochOrder
from .mixture import Source, slots_of, sources_of
from .records import Key, LeftOut, Record, RecordBatch, RecordDataset

logger = logging.getLogger(__name__)

Transform = Callable[[Record, Key, torch.Generator], Record]
"""Augmentation of one usable record; the generator is keyed by (seed, "augment", epoch, index)."""

Finish = Callable[[RecordBatch], RecordBatch]
"""Last work on a batch, such as packing it into sequences; it may return a subclass that holds the result."""


class StepSampler(Sampler[list[Key]]):
    """Yields the keys of one micro-batch after the other, for one rank, without end.

    Slot `s` of step `t` reads place `t * batch_size + s` of the epochs laid end to end, each in an order of its own
    (`EpochOrder`); no picture is dropped at the end of an epoch. Ranks take contiguous parts of a step's slots, and
    micro-batches contiguous parts of a rank's. An endless data set is read in order: its index is the place. Of several
    sources each has its own epochs, and the same slots in every step (`unitok.data.mixture.slots_of`).

    Args:
        sources: the data sets that are read side by side.
        batch_size: records per step over all ranks and micro-batches.
        micro_batch: records per yielded list.
        start_step: the first step to yield.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
    ) -> None:
        assert 0 <= rank < world and start_step >= 0, (rank, world, start_step)
        if any(source.length < 1 for source in sources):
            raise UserError("the data set is empty: give one with at least one picture")
        if batch_size < 1 or micro_batch < 1 or batch_size % (world * micro_batch):
            raise UserError(
                f"batch_size {batch_size} is not a multiple of {world} process(es) x micro_batch {micro_batch} = "
                f"{world * micro_batch}: change one of them"
            )
        self.sources = sources
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.rank, self.world, self.start_step = rank, world, start_step
        self._orders = [
            EpochOrder(fold_source(seed, number), 1 if source.endless else source.length, source.shards)
            for number, source in enumerate(sources)
        ]
        self._places: list[tuple[int, int]] = []
        """(source, how many slots before it are of that source) of every slot."""
        self._counts = [0] * len(sources)
        for slot in slots_of(sources, batch_size):
            self._places.append((slot.source, self._counts[slot.source]))
            self._counts[slot.source] += 1

    def keys(self, step: int) -> list[Key]:
        """This rank's keys of a step, in slot order."""
        share = self.batch_size // self.world
        return [self._key(step, slot) for slot in range(self.rank * share, (self.rank + 1) * share)]

    def _key(self, step: int, slot: int) -> Key:
        number, before = self._places[slot]
        source = self.sources[number]
        place = step * self._counts[number] + before
        epoch, index = divmod(place, source.length) if source.endless else self._orders[number].at(place)
        return Key(epoch, source.first + index, slot, step)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in itertools.count(self.start_step):
            for source, order, count in zip(self.sources, self._orders, self._counts, strict=True):
                if source.prefetch is not None:
                    source.prefetch(order.ahead(step * count))
            keys = self.keys(step)
            for start in range(0, len(keys), self.micro_batch):
                yield keys[start : start + self.micro_batch]


def fold_source(seed: int, number: int) -> int:
    """The seed of a source's order: each has its own."""
    return seed if number == 0 else fold(seed, "source", number)


def collate(keys: Sequence[Key], records: Sequence[Record]) -> RecordBatch:
    """Stack the usable records; the others are listed in `problems`. With none usable, images and codes are None.

    Raises:
        UserError: the pictures differ in size.
    """
    good = [(key, record) for key, record in zip(keys, records, strict=True) if record.problem is None]
    problems = [(k.index, r.name, r.problem) for k, r in zip(keys, records, strict=True) if r.problem is not None]
    images = [record.image for _, record in good if record.image is not None]
    codes = [record.codes for _, record in good if record.codes is not None]
    for parts, what in ((images, "pictures"), (codes, "codes")):
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) > 1:
            raise UserError(
                f"{what} of different shapes in one batch, {shapes[0]} and {shapes[-1]}: give an image size"
            )
    return RecordBatch(
        keys=[key for key, _ in good],
        names=[record.name for _, record in good],
        captions=[record.caption or "" for _, record in good],
        images=torch.stack(images) if good and len(images) == len(good) else None,
        codes=torch.stack(codes) if good and len(codes) == len(good) else None,
        problems=problems,
        records=[_bare(record, len(images) == len(good), len(codes) == len(good)) for _, record in good],
    )


def _bare(record: Record, stacked_images: bool, stacked_codes: bool) -> Record:
    """A record without what its batch holds stacked: nothing travels twice."""
    return replace(
        record, image=None if stacked_images else record.image, codes=None if stacked_codes else record.codes
    )


class _Batches(Dataset[RecordBatch | UserError]):
    """What a worker runs: keys of one micro-batch -> RecordBatch. A UserError is a value here, because the DataLoader
    would wrap one raised in a worker into a page of traceback."""

    def __init__(
        self, dataset: RecordDataset, seed: int, transform: Transform | None = None, finish: Finish | None = None
    ) -> None:
        self.dataset, self.seed, self.transform, self.finish = dataset, seed, transform, finish

    def _record(self, key: Key) -> Record:
        record = self.dataset[key.index]
        if self.transform is None or record.problem is not None:
            return record
        return self.transform(record, key, keyed_generator(self.seed, "augment", key.epoch, key.index))

    def __getitems__(self, keys: list[Key]) -> RecordBatch | UserError:
        try:
            batch = collate(keys, [self._record(key) for key in keys])
            return self.finish(batch) if self.finish else batch
        except UserError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C and SIGTERM reach the parent's whole process group, but the parent decides when to stop (it may save
    # first). It ends its workers by SIGTERM, so a handler of the parent's must not stand in the way here.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_loader(
    dataset: RecordDataset,
    *,
    seed: int,
    batch_size: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    workers: int = 0,
    transform: Transform | None = None,
    finish: Finish | None = None,
) -> Iterator[RecordBatch]:
    """One `RecordBatch` per micro-batch, without end, from `start_step` on.

    `batch_size` counts the pictures of a step over all ranks; this rank gets batch_size / world / micro_batch batches
    per step. A batch may hold fewer than `micro_batch` records, even none, when some are broken. The number of workers
    changes nothing but speed. `transform` and `finish` run in the workers and travel there by pickle.

    Raises:
        UserError: the sizes do not divide, or (while iterating) pictures of different sizes.
    """
    sampler = StepSampler(
        sources_of(dataset),
        seed=seed,
        batch_size=batch_size,
        micro_batch=micro_batch,
        rank=rank,
        world=world,
        start_step=start_step,
    )
    return _unwrap(_data_loader(_Batches(dataset, seed, transform, finish), sampler, workers))


def read_in_order(
    dataset: RecordDataset, *, batch_size: int, start: int = 0, stop: int | None = None, workers: int = 0
) -> Iterator[RecordBatch]:
    """Records `start` to `stop` (the end) once, in order, in batches; a key's slot is its place in its batch.

    Raises:
        UserError: (while iterating) pictures of different sizes.
    """
    stop = len(dataset) if stop is None else stop
    return read_spans(dataset, [(start, stop)], batch_size=batch_size, workers=workers)


def read_spans(
    dataset: RecordDataset, spans: Iterable[tuple[int, int]], *, batch_size: int, workers: int = 0
) -> Iterator[RecordBatch]:
    """As `read_in_order`, of several spans (start, stop) one after the other. The next one is asked for when the
    workers need it, which is before the records of the last one have all been seen."""
    batches = (
        [Key(0, index, index - first) for index in range(first, min(first + batch_size, stop))]
        for start, stop in spans
        for first in range(start, stop, batch_size)
    )
    return _unwrap(_data_loader(_Batches(dataset, 0), batches, workers))


def _data_loader(
    batches: _Batches, batch_sampler: Iterable[list[Key]], workers: int
) -> DataLoader[RecordBatch | UserError]:
    return DataLoader(
        batches,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_the_parent,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # the DataLoader draws a base seed for its workers: not from the global generator
    )


def _unwrap(loader: DataLoader[RecordBatch | UserError]) -> Iterator[RecordBatch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class BadPictures:
    """Counts the distinct broken records of a data set, names each once in the log, and stops the run when they and
    the pictures that were left out before are more than a share `limit` of all.

    Args:
        dataset_length: records that are read.
        left_out: pictures that were found but are no records; none where only a part of the data is read.

    Raises:
        UserError: more was left out than the limit allows.
    """

    def __init__(self, dataset_length: int, limit: float = 0.01, left_out: Sequence[LeftOut] = ()) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f"max_bad is {limit}: choose a share from 0 to 1, such as 0.01")
        self.length, self.limit, self.left_out = dataset_length, limit, left_out
        self.reasons: dict[int, tuple[str, str]] = {}
        """index -> (name, reason)"""
        self._check()

    def note(self, problems: Sequence[tuple[int, str, str]]) -> None:
        """Take note of a batch's `problems`.

        Raises:
            UserError: more broken pictures than the limit allows.
        """
        for index, name, reason in problems:
            if index not in self.reasons:
                self.reasons[index] = (name, reason)
                logger.warning("skipped %s: %s", name, reason)
        self._check()

    def check_all(self, count: int) -> None:
        """The same of all broken records, of which other processes and earlier runs met some."""
        self._check(max(count, len(self.reasons)))

    def _check(self, count: int | None = None) -> None:
        broken = len(self.reasons) if count is None else count
        lost, total = broken + len(self.left_out), self.length + len(self.left_out)
        if lost > self.limit * total:
            known = next(iter([*self.left_out[:1], *self.reasons.values()]), None)
            first = f" (the first: {known[0]}: {known[1]})" if known else ""
            raise UserError(
                f"{lost} of {total} pictures cannot be used, more than max_bad {self.limit:g} allows{first}: "
                "raise max_bad to go on with this run (training: with --resume), or repair or "
                "remove them and start again in another --out"
            )
