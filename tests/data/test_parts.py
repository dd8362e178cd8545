"""`?every=` and `?except=`: a held-out part of data without a split, and the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.data.open import open_data


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for number in range(23):
        save_png(tmp_path / f"{number:02}.png", torch.full((3, 8, 8), number, dtype=torch.uint8))
        (tmp_path / f"{number:02}.txt").write_text(str(number))
    return str(tmp_path)


def numbers(spec: str) -> list[int]:
    data = open_data(spec, 8)
    return [int(data[index].caption or -1) for index in range(len(data))]


def test_the_parts_are_the_whole(folder: str) -> None:
    assert numbers(f"{folder}?every=10") == [9, 19]
    assert numbers(f"{folder}?except=10") == [number for number in range(23) if number not in (9, 19)]
    for step in (2, 3, 7, 23):
        assert sorted(numbers(f"{folder}?every={step}") + numbers(f"{folder}?except={step}")) == list(range(23))
    assert numbers(f"{folder}?except=10&limit=10") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10], "the limit is of the part"


def test_parts_are_other_data(folder: str) -> None:
    sets = [open_data(f"{folder}{query}", 8) for query in ("", "?every=10", "?except=10", "?except=9")]
    assert len({one.fingerprint() for one in sets}) == len({one.name for one in sets}) == 4
    with pytest.raises(IndexError, match="has 2 records, index is 2"):
        sets[1][2]


def test_what_has_no_such_part_is_said(folder: str) -> None:
    for spec, message in {
        f"{folder}?every=1": "every is '1': give a whole number from 2 up",
        f"{folder}?every=3&except=3": "every and except are given both",
        f"{folder}?every=24": "every=24 of a data set with 23 records",
        "shapes?except=10": "except=10 of a data set with no end",
    }.items():
        with pytest.raises(UserError) as caught:
            open_data(spec, 32)
        assert message in str(caught.value)
