"""The order of records: each epoch a permutation, as ever for small data, and nothing to wait for in large."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unitok.data import epochs
from unitok.data.epochs import EpochOrder
from unitok.data.loader import StepSampler, make_loader, read_in_order
from unitok.data.mixture import Source
from unitok.data.records import Record, RecordBatch
from unitok.seeding import keyed_generator


def test_small_data_are_shuffled_as_a_whole() -> None:
    """Runs from before there were groups go on in their order."""
    order = EpochOrder(5, 100)
    for epoch in (0, 1, 7):
        expected = torch.randperm(100, generator=keyed_generator(5, "order", epoch)).tolist()
        assert [order.at(100 * epoch + place) for place in range(100)] == [(epoch, index) for index in expected]


@pytest.mark.parametrize("length", [1, 9, 10, 11, 20, 47, 101])
def test_an_epoch_of_groups_shows_every_record_once(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "GROUP", 10)
    order = EpochOrder(0, length)
    found = [order.at(place) for place in range(3 * length)]
    orders = [[index for at, index in found if at == epoch] for epoch in range(3)]
    assert all(sorted(one) == list(range(length)) for one in orders)
    assert length == 1 or orders[0] != orders[1] != orders[2] != orders[0]
    backwards = EpochOrder(0, length)
    assert [backwards.at(place) for place in reversed(range(3 * length))] == found[::-1], "it depends on what was asked"
    if length > 10:
        assert [EpochOrder(1, length).at(place) for place in range(length)] != found[:length]


def test_every_group_is_spread_over_sorted_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "GROUP", 100)
    order = EpochOrder(0, 1000)
    for first in range(0, 1000, 100):
        tenths = {order.at(place)[1] // 100 for place in range(first, first + 100)}
        assert tenths == set(range(10)), "a class is missing from a stretch as long as a group"


def test_groups_change_nothing_for_ranks_and_resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "GROUP", 10)

    def indices(step: int, **more: int) -> list[int]:
        options = {"batch_size": 8, "micro_batch": 2, **more}
        return [key.index for key in StepSampler([Source(37, False)], seed=3, **options).keys(step)]

    whole = StepSampler([Source(37, False)], seed=3, batch_size=8, micro_batch=8)
    for step in range(12):
        expected = [key.index for key in whole.keys(step)]
        assert indices(step) == expected
        assert indices(step, world=2, rank=0) + indices(step, world=2, rank=1) == expected
    resumed = StepSampler([Source(37, False)], seed=3, batch_size=8, micro_batch=8, start_step=7)
    assert [key.index for key in next(iter(resumed))] == indices(7)


def test_shards_are_taken_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every epoch each record once, from at most `WINDOW` shards at a time; `ahead` names the shards in time."""
    monkeypatch.setattr(epochs, "WINDOW", 3)
    shards = [5, 1, 7, 4, 4, 9, 2]
    of = [number for number, count in enumerate(shards) for _ in range(count)]
    order = EpochOrder(0, 32, shards)
    found = [order.at(place) for place in range(96)]
    seen = [[index for at, index in found if at == epoch] for epoch in range(3)]
    assert all(sorted(one) == list(range(32)) for one in seen) and seen[0] != seen[1] != seen[2]
    for epoch, indices in enumerate(seen):
        turns = list(dict.fromkeys(tuple(order.ahead(32 * epoch + place)) for place in range(32)))
        assert len(turns) == 3 and turns[0][3:] == turns[1][:3] and turns[1][3:] == turns[2][:1]
        assert turns[2][1:] == tuple(order.ahead(32 * (epoch + 1))[:3]), "the next epoch's first"
        for place, index in enumerate(indices):
            assert of[index] in order.ahead(32 * epoch + place)[:3]
        firsts = sum(shards[number] for number in turns[0][:3])
        assert {of[index] for index in indices[:firsts]} == set(turns[0][:3])


class Billion:
    name, endless, left_out = "a billion", False, ()

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> Record:
        return Record(name=str(index), codes=torch.zeros(4, dtype=torch.int64))

    def fingerprint(self) -> str:
        return ""


def cost(batches: Iterator[RecordBatch], answers: Any) -> None:
    """Sends (seconds of computing, MiB, names) of the first three batches."""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    names = [name for batch in itertools.islice(batches, 3) for name in batch.names]
    seconds = time.process_time() - start
    answers.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024, names))


def test_a_billion_records_cost_nothing_at_the_start() -> None:
    """From the first step, from the middle of an epoch, in a later epoch, and read in order."""
    options: dict[str, Any] = {"seed": 0, "batch_size": 64, "micro_batch": 64}
    runs = [lambda step=step: make_loader(Billion(), start_step=step, **options) for step in (0, 10**6, 10**8)]
    runs.append(lambda: read_in_order(Billion(), batch_size=64, start=5))
    seen: list[str] = []
    for run in runs:
        mine, its = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=lambda run=run, its=its: cost(run(), its))
        process.start()
        assert mine.poll(60)
        seconds, memory, names = mine.recv()
        process.join()
        assert seconds < 2 and memory < 100, (seconds, memory)
        seen += names
    assert len(set(seen)) == 4 * 3 * 64 and seen[-192:] == [str(index) for index in range(5, 197)]
