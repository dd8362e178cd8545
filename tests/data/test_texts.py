"""Further texts of a record, from columns that the spec names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_files import captions, png, records, write, write_parquet, write_tar

from tokenizers_vq.errors import UserError
from unitok.data import RecordDataset, open_data

ROWS: list[dict[str, Any]] = [
    {"caption": "grey", "q": "what colour", "a": "grey", "style": ["flat", "small"]},
    {"caption": "dark", "q": "how dark", "a": " ", "style": []},
    {"caption": "none", "q": "", "a": "no", "style": ["flat"]},
]
TEXTS = "?question={q}?&answer=a&label=style"


@pytest.fixture(params=["folder", "json", "parquet", "tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes the rows as a source of each kind, and returns its path."""

    def written(rows: list[dict[str, Any]]) -> Path:
        root = tmp_path / "data"
        pictures: dict[str, bytes | str] = {f"{i}.png": png(i) for i in range(len(rows))}
        beside: dict[str, bytes | str] = {f"{i}.json": json.dumps(row) for i, row in enumerate(rows)}
        if request.param == "folder":
            lines = "".join(json.dumps({"file_name": f"{i}.png", **row}) + "\n" for i, row in enumerate(rows))
            return write(root, {**pictures, "metadata.jsonl": lines})
        if request.param == "json":
            return write(root, {**pictures, **beside})
        if request.param == "parquet":
            return write_parquet(root / "t.parquet", [{"image": png(i), **row} for i, row in enumerate(rows)])
        root.mkdir(exist_ok=True)
        return write_tar(root / "t.tar", dict(sorted({**pictures, **beside}.items())))

    return written


def fields(data: RecordDataset) -> list[dict[str, Any]]:
    return [record.fields for record in records(data)]


def test_named_texts_land_in_the_fields_and_empty_ones_do_not(source: Callable[..., Path]) -> None:
    path = source(ROWS)
    wanted = [
        {"question": "what colour?", "answer": "grey", "label": "flat, small"},
        {"question": "how dark?"},
        {"answer": "no", "label": "flat"},
    ]
    data = open_data(f"{path}{TEXTS}", 4)
    assert captions(data) == ["grey", "dark", "none"] and fields(data) == wanted
    assert all(record.problem is None for record in records(data))
    without = open_data(f"{path}{TEXTS}", 4, captions=False)
    assert captions(without) == [None] * 3 and fields(without) == wanted, "read also where captions are not"
    assert fields(open_data(str(path), 4)) == [{}] * 3
    assert captions(open_data(f"{path}?caption={{caption}} {{a}}&answer=a", 4)) == ["grey grey", None, "none no"]


def test_a_text_that_cannot_be_used_breaks_its_record(source: Callable[..., Path]) -> None:
    data = open_data(f"{source([{'caption': 'c', 'q': {'text': 'what'}}] * 2)}?question=q", 4)
    assert [record.problem for record in records(data)] == ["its q is a map, not a text"] * 2


def test_the_fingerprint_covers_named_texts_alone(source: Callable[..., Path]) -> None:
    def prints(rows: list[dict[str, Any]]) -> list[str]:
        path = source(rows)
        return [open_data(f"{path}{keys}", 4).fingerprint() for keys in ("", "?answer=a", "?question=a", "?label=q")]

    before = prints(ROWS)
    assert len(set(before)) == 4, "which text a column is counts too"
    after = prints([{**ROWS[0], "a": "gray"}, *ROWS[1:]])
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, False, True]
    order = [open_data(f"{source(ROWS)}{keys}").fingerprint() for keys in ("?answer=a&label=q", "?label=q&answer=a")]
    assert order[0] == order[1]


def test_a_label_changes_no_name(source: Callable[..., Path]) -> None:
    path = source(ROWS)
    assert open_data(f"{path}?label=q", 4).name == open_data(str(path), 4).name == str(path)
    assert open_data(f"{path}?answer=a&limit=2", 4).name == f"{path}?answer=a&limit=2 (first 2)"


def test_a_column_that_is_not_there_is_named(source: Callable[..., Path]) -> None:
    path = source(ROWS)
    for keys, message in {
        "?question=what": "has no column 'what' for the question; it has .*style: choose one of them",
        "?answer={a!r}": "answer template '{a!r}': write plain column names in braces",
        "?label={": "label template '{': ",
    }.items():
        for wanted in (True, False):
            with pytest.raises(UserError, match=message) as caught:
                open_data(f"{path}{keys}", 4, captions=wanted)
            assert "\n" not in str(caught.value)


def test_texts_of_loose_pictures(tmp_path: Path) -> None:
    """Folder names and files beside the picture are columns for them too, and leave the caption as it is."""
    write(tmp_path / "cats", {"0.png": png(0), "0.txt": "of the file", "0.text": "the caption"})
    data = open_data(f"{tmp_path}?label=label&phrase=caption&instruction={{txt}}!", 4)
    assert captions(data) == ["the caption"]
    assert fields(data) == [{"label": "cats", "phrase": "of the file", "instruction": "of the file!"}]
    assert fields(open_data(f"{tmp_path}?phrase=txt", 4, captions=False)) == [{"phrase": "of the file"}]


def test_class_numbers_are_named_in_every_text(tmp_path: Path) -> None:
    rows = [{"image": png(i), "text": "x", "kind": i} for i in range(2)]
    path = write_parquet(tmp_path / "t.parquet", rows, kind=datasets.ClassLabel(names=["cat", "dog"]))
    data = open_data(f"{path}?answer=kind", 4)
    assert captions(data) == ["x", "x"] and fields(data) == [{"answer": "cat"}, {"answer": "dog"}]


@pytest.mark.parametrize("source_of_no_columns", ["shapes", "records"])
def test_a_source_without_columns_takes_no_texts(source_of_no_columns: str, tmp_path: Path) -> None:
    write(tmp_path, {"r.jsonl": '{"caption": "a"}\n'})
    spec = {"shapes": "shapes@val", "records": str(tmp_path / "r.jsonl")}[source_of_no_columns]
    with pytest.raises(UserError, match="takes no 'label', only "):
        open_data(f"{spec}?label=text", 32)
