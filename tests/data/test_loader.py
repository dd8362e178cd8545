from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.data.loader import BadPictures, StepSampler, collate, make_loader, read_in_order
from unitok.data.mixture import Mixture, Source, slots_of
from unitok.data.records import Key, Record, RecordBatch


class Numbers:
    """Record i is a picture full of i; every seventh is broken when `broken` is set."""

    name = "numbers"
    left_out = ()

    def __init__(self, length: int = 23, endless: bool = False, broken: bool = False, grow: bool = False) -> None:
        self.length, self.endless, self.broken, self.grow = length, endless, broken, grow

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if self.broken and index % 7 == 0:
            return Record(name=f"{index}.png", caption=str(index), problem="torn")
        side = 2 + index if self.grow else 2
        image = torch.full((3, side, side), index, dtype=torch.uint8)
        return Record(name=f"{index}.png", caption=str(index), image=image)


def keys(steps: int, *, length: int = 23, endless: bool = False, seed: int = 0, **options: int) -> list[list[Key]]:
    """The keys of each of the first steps, over all given micro-batches."""
    options = {"batch_size": 8, "micro_batch": 8} | options
    sampler = StepSampler([Source(length, endless)], seed=seed, **options)
    per_step = options["batch_size"] // options.get("world", 1) // options["micro_batch"]
    lists = iter(sampler)
    return [list(itertools.chain(*itertools.islice(lists, per_step))) for _ in range(steps)]


def test_each_epoch_shows_every_picture_once_and_in_another_order() -> None:
    flat = [key for step in keys(23) for key in step]  # 8 x 23 places: 8 epochs
    assert Counter(key.epoch for key in flat) == dict.fromkeys(range(8), 23)
    orders = [[key.index for key in flat if key.epoch == epoch] for epoch in range(8)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert all([key.slot for key in step] == list(range(8)) for step in keys(23))


def test_order_depends_on_the_seed_alone() -> None:
    assert keys(5) == keys(5)
    assert keys(5, seed=1) != keys(5)


def test_a_step_may_span_several_epochs() -> None:
    flat = [key for step in keys(3, length=3) for key in step]
    assert [key.epoch for key in flat] == [place // 3 for place in range(24)]


def test_endless_data_are_read_in_order() -> None:
    assert [[key.index for key in step] for step in keys(2, length=10**9, endless=True)] == [
        list(range(8)),
        list(range(8, 16)),
    ]
    assert {key.epoch for step in keys(2, length=10**9, endless=True) for key in step} == {0}


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_resuming_gives_the_same_steps(start: int) -> None:
    assert keys(3, start_step=start) == keys(start + 3)[start:]


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_do_not_change_a_step(micro_batch: int) -> None:
    assert keys(6, micro_batch=micro_batch) == keys(6)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_step_without_overlap(world: int) -> None:
    parts = [keys(6, world=world, rank=rank, micro_batch=2) for rank in range(world)]
    joined = [list(itertools.chain(*(part[step] for part in parts))) for step in range(6)]
    assert joined == keys(6)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world"), [(8, 3, 1), (8, 8, 2), (9, 1, 2), (0, 1, 1), (8, 0, 1)]
)
def test_sizes_that_do_not_divide_are_refused(batch_size: int, micro_batch: int, world: int) -> None:
    with pytest.raises(UserError, match=f"batch_size {batch_size} is not a multiple of {world} process"):
        StepSampler([Source(5, False)], seed=0, batch_size=batch_size, micro_batch=micro_batch, world=world)


def test_what_is_asked_for_has_a_slot() -> None:
    """However small its share; the others keep theirs. With fewer slots than shares, it is refused."""
    sources = [
        Source(9, True, tasks={"a": 0.5, "b": 0.001, "none": 0.0}),
        Source(9, True, tasks={"b": 0.4, "c": 0.001}),
    ]
    slots = slots_of(sources, 20)
    found = Counter((slot.source, slot.task) for slot in slots)
    assert found.keys() == {(0, "a"), (0, "b"), (1, "b"), (1, "c")}
    assert found[0, "b"] == found[1, "c"] == 1 and abs(found[0, "a"] - 10) <= 1
    assert len(slots_of(sources, 4)) == len(set(slots_of(sources, 4))) == 4
    with pytest.raises(UserError, match=r"4 tasks of 2 data set\(s\) share the 3 record\(s\) of a step"):
        slots_of(sources, 3)
    assert [slot.source for slot in slots_of([Source(5, False)] * 1, 3)] == [0, 0, 0]


def test_sources_stand_side_by_side_in_their_shares() -> None:
    """Each has its own epochs and order; micro-batches and ranks change nothing; a part of the records is not enough to
    starve another source."""
    parts = [Numbers(5), Numbers(3), Numbers(10**9, endless=True)]
    mixture = Mixture(parts, [{"a": 0.5}, {"a": 0.15, "b": 0.1}, {"c": 0.25}], [1.0, 1.0, 2.0])
    assert (
        len(mixture) == 10**9 + 8 and not mixture.endless and mixture[7].name == "2.png" and mixture[8].name == "0.png"
    )
    options: dict[str, Any] = {"seed": 0, "batch_size": 40}

    def steps(count: int, **more: int) -> list[Key]:
        sampler = StepSampler(mixture.sources, **options, **{"micro_batch": 40, **more})
        return [key for step in range(count) for key in sampler.keys(step)]

    keys = steps(6)
    slots = slots_of(mixture.sources, 40)
    assert [slot.weight for slot in slots] == [2.0 if slot.source == 2 else 1.0 for slot in slots]
    tasks = Counter((slots[key.slot].source, slots[key.slot].task) for key in keys)
    for pair, share in {(0, "a"): 0.5, (1, "a"): 0.15, (1, "b"): 0.1, (2, "c"): 0.25}.items():
        assert tasks[pair] / len(keys) == pytest.approx(share, abs=0.03)
    for number, source in enumerate(mixture.sources):
        mine = [key for key in keys if slots[key.slot].source == number]
        assert all(source.first <= key.index < source.first + source.length for key in mine)
        if number < 2:
            first = [key.index for key in mine if key.epoch == 0]
            assert sorted(first) == list(range(source.first, source.first + source.length)), "every record once"
        else:
            assert [key.index - source.first for key in mine] == list(range(len(mine)))
    halves = [
        [
            key
            for step in range(6)
            for key in StepSampler(mixture.sources, **options, micro_batch=5, rank=rank, world=2).keys(step)
        ]
        for rank in (0, 1)
    ]
    assert sorted(map(repr, halves[0] + halves[1])) == sorted(map(repr, keys))


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        StepSampler([Source(0, False)], seed=0, batch_size=1, micro_batch=1)


def jitter(record: Record, key: Key, generator: torch.Generator) -> Record:
    assert record.image is not None
    noise = torch.randint(0, 100, record.image.shape, generator=generator, dtype=torch.uint8)
    return Record(name=record.name, caption=record.caption, image=record.image + noise)


def take(batches: Iterator[RecordBatch], count: int) -> list[RecordBatch]:
    return list(itertools.islice(batches, count))


def assert_equal(first: list[RecordBatch], second: list[RecordBatch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.keys, a.names, a.captions, a.problems) == (b.keys, b.names, b.captions, b.problems)
        assert torch.equal(a.images, b.images)


def test_workers_change_nothing() -> None:
    data = Numbers(broken=True)
    options = {"seed": 3, "batch_size": 8, "micro_batch": 4, "transform": jitter}
    state = torch.get_rng_state()
    alone = take(make_loader(data, workers=0, **options), 10)
    assert_equal(alone, take(make_loader(data, workers=2, **options), 10))
    assert_equal(alone[4:], take(make_loader(data, workers=2, start_step=2, **options), 6))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"


def test_augmentation_is_keyed_by_epoch_and_index() -> None:
    def seen(batches: list[RecordBatch]) -> dict[tuple[int, int], torch.Tensor]:
        return {(k.epoch, k.index): image for b in batches for k, image in zip(b.keys, b.images, strict=True)}

    data = Numbers()
    wide = seen(take(make_loader(data, seed=0, batch_size=8, micro_batch=8, transform=jitter), 6))
    narrow = seen(take(make_loader(data, seed=0, batch_size=4, micro_batch=1, transform=jitter), 48))
    assert wide.keys() == narrow.keys()
    assert all(torch.equal(wide[use], narrow[use]) for use in wide)
    index = next(index for epoch, index in wide if epoch == 1)
    assert not torch.equal(wide[0, index], wide[1, index])


def test_broken_records_are_left_out_and_listed() -> None:
    batches = take(make_loader(Numbers(broken=True), seed=0, batch_size=23, micro_batch=23), 1)
    batch = batches[0]
    assert sorted(batch.problems) == [(index, f"{index}.png", "torn") for index in (0, 7, 14, 21)]
    assert batch.images is not None and len(batch.keys) == len(batch.names) == len(batch.images) == 19
    assert [int(image[0, 0, 0]) for image in batch.images] == [key.index for key in batch.keys]
    assert batch.captions == [str(key.index) for key in batch.keys]


def test_a_batch_of_broken_records_is_empty() -> None:
    batch = collate([Key(0, 5, 0)], [Record(name="a", problem="torn")])
    assert batch.images is None and batch.codes is None and batch.keys == [] and batch.problems == [(5, "a", "torn")]


def test_codes_are_stacked() -> None:
    records = [Record(name=str(i), caption="c", codes=torch.arange(4) + i) for i in range(2)]
    batch = collate([Key(0, i, i) for i in range(2)], records)
    assert batch.images is None and batch.codes is not None and batch.codes.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_different_sizes_are_one_line_even_from_a_worker(workers: int) -> None:
    batches = make_loader(Numbers(grow=True), seed=0, batch_size=4, micro_batch=4, workers=workers)
    with pytest.raises(UserError, match="pictures of different shapes") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


class Signals(Numbers):
    def __getitem__(self, index: int) -> Record:
        return Record(name=f"{os.getpgrp()} {signal.getsignal(signal.SIGTERM)!r}", problem="only its name matters")


def test_signals_to_the_process_group_do_not_reach_workers() -> None:
    handler = signal.signal(signal.SIGTERM, lambda *_: None)  # a trainer that saves on SIGTERM
    try:
        batch = next(make_loader(Signals(), seed=0, batch_size=1, micro_batch=1, workers=1))
    finally:
        signal.signal(signal.SIGTERM, handler)
    group, worker_handler = batch.problems[0][1].split(" ", 1)
    assert int(group) != os.getpgrp() and worker_handler == repr(signal.SIG_DFL)


def test_reading_in_order_sees_every_record_once() -> None:
    for workers in (0, 2):
        batches = list(read_in_order(Numbers(broken=True), batch_size=5, start=3, workers=workers))
        seen = sorted(
            [key.index for b in batches for key in b.keys] + [index for b in batches for index, _, _ in b.problems]
        )
        assert seen == list(range(3, 23))
        assert [len(b.keys) + len(b.problems) for b in batches] == [5, 5, 5, 5]
    assert list(read_in_order(Numbers(), batch_size=4, start=23)) == []
    assert [len(b.keys) for b in read_in_order(Numbers(), batch_size=4, stop=6)] == [4, 2]


def test_bad_pictures_are_named_once_and_stop_the_run_above_the_share(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadPictures(200, limit=0.01)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            bad.note([(4, "four.png", "torn"), (9, "nine.png", "has no caption")])
    assert [record.getMessage() for record in caplog.records] == [
        "skipped four.png: torn",
        "skipped nine.png: has no caption",
    ]
    with pytest.raises(UserError) as caught:
        bad.note([(11, "eleven.png", "torn")])
    assert str(caught.value) == (
        "3 of 200 pictures cannot be used, more than max_bad 0.01 allows (the first: four.png: torn): "
        "raise max_bad to go on with this run (training: with --resume), or repair or remove them and start again in "
        "another --out"
    )


def test_bad_pictures_limits() -> None:
    BadPictures(10, limit=1.0).note([(index, "a", "torn") for index in range(10)])
    with pytest.raises(UserError, match="1 of 10"):
        BadPictures(10, limit=0.0).note([(0, "a", "torn")])
    with pytest.raises(UserError, match="max_bad is 2"):
        BadPictures(10, limit=2)


def test_what_was_left_out_before_counts_as_well() -> None:
    left_out = [("a.heic", "is HEIC"), ("b.heic", "is HEIC")]
    with pytest.raises(UserError, match=r"2 of 100 pictures cannot be used, .*\(the first: a.heic: is HEIC\)"):
        BadPictures(98, 0.01, left_out)
    bad = BadPictures(98, 0.02, left_out)
    with pytest.raises(UserError, match="3 of 100"):
        bad.note([(0, "c.png", "torn")])
