from __future__ import annotations

import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from data_files import captions, png, records, write, write_parquet, write_tar

from tokenizers_vq.errors import UserError
from unitok.data import RecordDataset, make_loader, open_data
from unitok.data.sources import CaptionTemplate
from unitok.data.spec import parse_spec

EMOJI = Path(os.environ.get("UNITOK_EMOJI", Path(__file__).parents[2] / "../shared/data/emoji"))
needs_emoji = pytest.mark.skipif(not EMOJI.is_dir(), reason=f"the emoji data are not at {EMOJI}: set UNITOK_EMOJI")


def values(data: RecordDataset) -> list[int]:
    """The grey value of each picture, by which the tests tell them apart."""
    return [int(record.image[0, 0, 0]) if record.image is not None else -1 for record in records(data)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    connect = socket.socket.connect

    def local(sock: socket.socket, address: Any) -> Any:
        return connect(sock, address) if sock.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket.socket, "connect", local)  # workers hand over tensors through local sockets


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": png(start + i), "path": f"{start + i}.png"}, "text": f"number {start + i}", "kind": "grey"}
        for i in range(count)
    ]


def test_parquet_folder_with_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001.parquet", rows(2, 10), image=datasets.Image(decode=False))
    write_parquet(tmp_path / "train-00000.parquet", rows(3), image=datasets.Image(decode=False))
    write_parquet(tmp_path / "val-00000.parquet", rows(2, 20), image=datasets.Image(decode=False))
    assert values(open_data(str(tmp_path), 4)) == [0, 1, 2, 10, 11]
    val = open_data(f"{tmp_path}/@validation?caption={{text}} in {{kind}}", 4)
    assert captions(val) == ["number 20 in grey", "number 21 in grey"]
    assert [record.name for record in records(val)] == ["20.png", "21.png"]
    assert values(open_data(f"{tmp_path}/*.parquet", 4)) == [0, 1, 2, 10, 11, 20, 21]
    assert values(open_data(f"{tmp_path}/val-00000.parquet", 4)) == [20, 21]
    assert values(open_data(f"{tmp_path}?limit=2", 4)) == [0, 1]
    assert len(open_data(f"{tmp_path}?limit=100", 4)) == 5


def test_parquet_with_hub_names_and_other_splits(tmp_path: Path) -> None:
    for split in ("train", "extra"):
        write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", rows(1, len(split)))
    assert values(open_data(f"{tmp_path}@extra", 4)) == [5]
    with pytest.raises(UserError, match="has no split 'val': choose one of extra, train"):
        open_data(f"{tmp_path}@val", 4)


def test_parquet_columns(tmp_path: Path) -> None:
    table = [
        {"a": png(1), "b": png(2), "n": 3, "tags": ["x", "y"], "label": 1},
        {"a": None, "b": b"", "n": 4, "tags": [], "label": 0},
    ]
    path = write_parquet(tmp_path / "t.parquet", table, label=datasets.ClassLabel(names=["cat", "dog"]))
    data = open_data(f"{path}?image=b&caption={{label}} {{n}}", 4)
    assert captions(data) == ["dog 3", "cat 4"] and values(data) == [2, -1]
    assert [record.problem for record in records(data)] == [None, "the file is empty"]
    assert captions(open_data(f"{path}?image=a&caption=tags", 4)) == ["x, y", None]
    for spec, message in {
        "?caption=n": r"has pictures in a, b: choose with \?image=COLUMN",
        "?image=a": r"has no captions: .*it has b, n, tags, label: say \?caption=COLUMN",
        "?image=a&caption=title": "has no column 'title' for the caption; it has b, n, tags, label",
        "?image=c": "has no column 'c'; it has a, b, n, tags, label",
        "?image=n": "column 'n' holds no picture files",
        "?image=a&size=3": "takes no 'size', only caption, image, limit",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            open_data(f"{path}{spec}", 4)
        assert "\n" not in str(caught.value)


def test_parquet_without_pictures_or_rows_or_sense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column with picture files; it has text"):
        open_data(str(write_parquet(tmp_path / "a.parquet", [{"text": "x"}])), 4)
    empty = datasets.Dataset.from_list(rows(1)).select([])
    empty.to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(UserError, match="no data"):
        open_data(str(tmp_path / "b.parquet"), 4)
    write(tmp_path, {"c.parquet": "no parquet"})
    with pytest.raises(UserError, match="cannot be read as parquet") as caught:
        open_data(str(tmp_path / "c.parquet"), 4)
    assert "\n" not in str(caught.value)


def test_a_table_cannot_make_us_read_a_device(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"image": {"bytes": b"", "path": "/dev/zero"}, "text": "nothing"}])
    assert open_data(f"{path}?outside=true", 4)[0].problem == "is not a regular file"


def test_changed_files_are_not_read_from_the_cache(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows(2))
    assert values(open_data(str(path), 4)) == [0, 1]
    write_parquet(path, rows(3, 7))
    os.utime(path, (1, 1))
    assert values(open_data(str(path), 4)) == [7, 8, 9]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows(2))
    write(tmp_path, {"file": ""})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert values(open_data(str(path), 4)) == [0, 1]


def test_opening_is_quiet_and_leaves_settings_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows(2))
    capfd.readouterr()
    before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    open_data(str(path), 4)
    assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", f"data {path}: 2 pictures\n")


def test_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, {"notes.txt": "x", "empty/.keep": ""})
    for spec, message in {
        f"{tmp_path}/nowhere": r"there is no file or folder",
        f"{tmp_path}/empty": "holds nothing",
        f"{tmp_path}/notes.txt": r"holds 1 file\(s\) of other kinds",
        f"{tmp_path}/*.tar": "holds nothing",
        "shapes@evening": "split is 'evening'",
        "shapes?caption=text": "takes no 'caption'",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            open_data(spec, 32)
        assert "\n" not in str(caught.value)


def test_shapes() -> None:
    data = open_data("shapes@val?limit=5", 32)
    assert len(data) == 5 and data[0].image.shape == (3, 32, 32) and not data.endless
    assert open_data("shapes?size=64")[0].image.shape == (3, 64, 64)
    assert open_data("shapes").endless and not open_data("shapes?limit=5").endless
    assert not torch.equal(open_data("shapes?seed=1")[0].image, open_data("shapes")[0].image)
    with pytest.raises(UserError, match="is drawn at 64x64, but pictures of 32x32 are wanted"):
        open_data("shapes?size=64", 32)
    with pytest.raises(IndexError):
        data[5]


@pytest.fixture(params=["folder", "parquet", "tar"])
def any_source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], RecordDataset]:
    if request.param == "folder":
        for i in range(6):
            write(tmp_path, {f"{i}.png": png(i), f"{i}.txt": f"number {i}"})
    elif request.param == "parquet":
        write_parquet(tmp_path / "t.parquet", rows(6))
    else:
        write_tar(
            tmp_path / "t.tar",
            {f"{i}.{ext}": png(i) if ext == "png" else f"number {i}" for i in range(6) for ext in ("png", "txt")},
        )
    return lambda: open_data(str(tmp_path), 4)


def test_every_source_reads_the_same_and_survives_pickling(any_source: Callable[[], RecordDataset]) -> None:
    data = any_source()
    for copy in (data, pickle.loads(pickle.dumps(data))):  # as a spawned worker gets it
        assert values(copy) == list(range(6))
        assert captions(copy) == [f"number {i}" for i in range(6)]
    with pytest.raises(IndexError):
        data[6]


def test_every_source_works_in_workers(any_source: Callable[[], RecordDataset]) -> None:
    batch = next(make_loader(any_source(), seed=0, batch_size=6, micro_batch=6, workers=1))
    assert [int(image[0, 0, 0]) for image in batch.images] == [key.index for key in batch.keys]


@pytest.mark.parametrize("template", ["{", "a } b", "{a:3}", "{a!r}", "{}", "no {{column}}"])
def test_templates_hold_plain_columns_only(template: str) -> None:
    with pytest.raises(UserError, match="caption template"):
        CaptionTemplate(template)


def test_templates() -> None:
    assert CaptionTemplate("{a.b}").render({"a.b": "a name with a dot"}) == "a name with a dot"
    assert CaptionTemplate("text").render({"text": " x "}) == "x"
    assert CaptionTemplate("{{{a}}} {b}").render({"a": 1, "b": np.float64(2.5)}) == "{1} 2.5"
    assert CaptionTemplate("{a} {b}").render({"a": "x"}) is None


def test_a_hub_data_set_goes_through_the_same_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list(rows(3)).cast_column("image", datasets.Image())
    asked = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: asked.append((args, named["split"])) or table)
    data = open_data("hf:owner/name@val?config=big&caption={text}!", 4)
    assert asked == [(("owner/name", "big"), "validation")]
    assert captions(data) == ["number 0!", "number 1!", "number 2!"] and values(data) == [0, 1, 2]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, config: str | None) -> list[str]:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(
        UserError, match=r"'hf:owner/name' cannot be opened .*: ConnectionError: Couldn't reach the hub"
    ):
        open_data("hf:owner/name", 4)


@needs_emoji
def test_the_emoji_data() -> None:
    data = open_data(f"{EMOJI}@val?caption={{text}}, {{style}} style", 64)
    found = records(data)
    assert len(found) == 385 and all(record.problem is None for record in found)
    assert {record.image.shape for record in found} == {(3, 64, 64)}
    assert found[0].caption == "donkey, noto style"
    assert {record.caption.rsplit(", ", 1)[1] for record in found} == {
        f"{s} style" for s in ("noto", "twemoji", "openmoji", "fluent")
    }


def test_the_guide_speaks_the_truth() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    specs = [
        part.strip('"') for row in re.findall(r"^\| (`.*?) \|", guide, re.MULTILINE) for part in row.split("`")[1::2]
    ]
    assert len(specs) > 12
    for spec in specs:
        parse_spec(spec)
