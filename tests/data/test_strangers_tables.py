"""Tables of strangers: paths that lead out of the data, and bytes that are not what they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import found, jsonl, pictures, png, refusal, write

from unitok.data import open_data

# Paths inside data


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture outside of the data in `tmp_path / "data"`."""
    pictures(tmp_path / "secret", "s")
    pictures(tmp_path / "data/own", "o", text="")
    (tmp_path / "data/link").symlink_to("../secret")
    return tmp_path


def spellings(root: Path) -> list[str]:
    return ["../secret/s.png", str(root / "secret/s.png"), "own/../../secret/s.png", "..\\secret\\s.png"]


def test_a_table_cannot_read_files_outside_the_data(secret: Path) -> None:
    paths = [*spellings(secret), "link/s.png", "own/o.png", "own\\o.png", "own/../own/o.png", "a\0b", "x" * 5000]
    rows = {"image": [{"bytes": None, "path": path} for path in paths], "text": ["t"] * len(paths)}
    pq.write_table(pa.table(rows), secret / "data/t.parquet")
    data = open_data(f"{secret}/data/t.parquet", 4)
    problems = [data[index].problem for index in range(len(data))]
    for index, path in enumerate([*spellings(secret), "link/s.png"]):
        assert problems[index] == (
            f"row {index} of t.parquet names a file outside the data, {path!r}: if that is meant, add ?outside=true to "
            "the spec"
        )
    assert problems[5:8] == [None] * 3 and None not in problems[8:]
    allowed = open_data(f"{secret}/data/t.parquet?outside=true", 4)
    assert [allowed[index].problem for index in range(8)] == [None] * 8


def test_a_hub_data_set_cannot_either(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"image": [{"bytes": None, "path": path} for path in spellings(secret)], "text": ["t"] * 4}
    table = datasets.Dataset.from_dict(rows)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: table)
    monkeypatch.chdir(secret / "data")
    data = open_data("hf:owner/name", 4)
    problems = [str(data[index].problem) for index in range(4)]
    assert problems[1] == f"row 1 names a file outside the data, {spellings(secret)[1]!r}: if that is meant, add " + (
        "?outside=true to the spec"
    )
    assert "None" not in problems


def test_metadata_cannot_name_files_outside_the_data(secret: Path) -> None:
    names = [*spellings(secret), "own/../own/o.png"]
    write(secret / "data", {"metadata.jsonl": jsonl(*({"file_name": name, "text": "t"} for name in names))})
    data = open_data(f"{secret}/data", 4)
    assert found(data) == {"link/s.png": "x 1", "own/o.png": "t"}  # a link in a folder is its owner's word
    reason = "lies outside the data: if that is meant, add ?outside=true to the spec (metadata.jsonl)"
    assert list(data.left_out) == [(name, reason) for name in spellings(secret)]
    allowed = open_data(f"{secret}/data?outside=true", 4)
    assert "../secret/s.png" in found(allowed) and allowed.left_out == []


def test_tables_that_do_not_agree(tmp_path: Path) -> None:
    """The first has no captions, the second another column of another type, the third no such column."""
    pq.write_table(pa.table({"image": [png(1)], "text": pa.nulls(1), "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": ["x"], "text": ["two"], "image": [png(2)]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": [png(3)]}), tmp_path / "c.parquet")
    data = open_data(str(tmp_path), 4)
    assert [data[index].caption for index in range(3)] == [None, "two", None]
    assert [int(image[0, 0, 0]) for index in range(3) if (image := data[index].image) is not None] == [2]


def test_a_table_that_calls_other_bytes_text(tmp_path: Path) -> None:
    latin = pa.array(["caf\xe9".encode("latin-1"), b"plain"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [png(1), png(2)], "text": latin}), tmp_path / "a.parquet")
    cells = pa.StructArray.from_arrays([pa.array([png(1), png(2)]), latin], ["bytes", "path"])
    pq.write_table(pa.table({"image": cells, "text": ["a", "plain"]}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        data = open_data(f"{tmp_path}/{name}.parquet", 4)
        assert data[0].problem == "its row holds text that is not UTF-8: save it as UTF-8"
        assert data[1].caption == "plain" and data[1].problem is None and len(data.fingerprint()) == 64


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "tail": lambda data: data[-200:],
    "noise": lambda data: data[:8] + b"\xff" * 500 + data[508:],
    "length": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_parquet_is_one_line(tmp_path: Path, damage: str) -> None:
    pq.write_table(pa.table({"image": [png(i) for i in range(20)], "text": ["t"] * 20}), tmp_path / "t.parquet")
    write(tmp_path, {"t.parquet": DAMAGE[damage]((tmp_path / "t.parquet").read_bytes())})
    assert "cannot be read as parquet (t.parquet" in refusal(tmp_path)
