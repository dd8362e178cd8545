"""Contents make the fingerprint of a data set, not where they lie."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unitok.data import open_data
from unitok.data.fingerprint import SAMPLES, spread
from unitok.data.shapes.dataset import RECORDS


def bmp(value: int) -> bytes:
    """Pictures of one size in bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value, value)).save(stream, "BMP")
    return stream.getvalue()


def folder(root: Path, values: list[int], captions: list[str]) -> None:
    root.mkdir(parents=True)
    for number, (value, caption) in enumerate(zip(values, captions, strict=True)):
        (root / f"{number}.bmp").write_bytes(bmp(value))
        (root / f"{number}.txt").write_text(caption)


def parquet(root: Path, values: list[int], captions: list[str]) -> None:
    root.mkdir(parents=True)
    pq.write_table(pa.table({"image": [bmp(value) for value in values], "text": captions}), root / "a.parquet")


def paths(root: Path, values: list[int], captions: list[str]) -> None:
    folder(root / "own", values, captions)
    cells = [{"bytes": None, "path": f"own/{number}.bmp"} for number in range(len(values))]
    pq.write_table(pa.table({"image": cells, "text": captions}), root / "a.parquet")


def tar(root: Path, values: list[int], captions: list[str]) -> None:
    root.mkdir(parents=True)
    with tarfile.open(root / "a.tar", "w") as out:
        for number, (value, caption) in enumerate(zip(values, captions, strict=True)):
            for name, data in ((f"{number}.bmp", bmp(value)), (f"{number}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("make", [folder, parquet, paths, tar])
def test_contents_make_the_fingerprint(
    tmp_path: Path, make: Callable[[Path, list[int], list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    values, captions = [1, 2, 3], ["a", "b", "c"]
    make(tmp_path / "one", values, captions)
    make(tmp_path / "two", values, captions)
    for file in (tmp_path / "two").rglob("*"):
        os.utime(file, (1, 1))
    make(tmp_path / "replaced", [7, 8, 9], captions)
    make(tmp_path / "one other caption", values, ["a", "B", "c"])
    make(tmp_path / "fewer", values[:2], captions[:2])
    suffix = "/a.parquet" if make is paths else ""
    names = ("one", "replaced", "one other caption", "fewer")
    prints = {name: open_data(f"{tmp_path}/{name}{suffix}", 4).fingerprint() for name in names}
    assert len(set(prints.values())) == 4
    assert open_data(f"{tmp_path}/two{suffix}", 4).fingerprint() == prints["one"]
    monkeypatch.chdir(tmp_path / "one")
    assert open_data(f"../one{suffix}", 8).fingerprint() == prints["one"]  # the wanted size is not of the data
    assert open_data(f"../one{suffix}?limit=2", 4).fingerprint() not in prints.values()


def test_rendered_data_have_one_too() -> None:
    prints = [open_data(spec, 32).fingerprint() for spec in ("shapes", "shapes@val", "shapes?seed=1", "shapes?limit=9")]
    tasks = [open_data(f"shapes?task={task}", 32).fingerprint() for task in RECORDS]
    assert len({*prints, *tasks}) == 3 + len(RECORDS) and tasks[0] == prints[0], "the first one is the default"
    assert len(set(prints)) == 4 and open_data("shapes", 32).fingerprint() == prints[0]
    assert open_data("shapes", 48).fingerprint() != prints[0]


def test_samples_are_spread_from_end_to_end() -> None:
    assert list(spread(3)) == [0, 1, 2]
    chosen = spread(10_000)
    assert len(set(chosen)) == SAMPLES and chosen[0] == 0 and chosen[-1] == 9999
