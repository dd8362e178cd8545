"""Folders as other people and programs leave them: used as meant, or refused or counted in a line that says why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import found, jsonl, pictures, png, refusal, write

from tokenizers_vq.errors import UserError
from unitok.data import open_data

WORDS = ("a bee", "an ant", "é, ü and 🐝")


# Text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_prompts_csv_and_jsonl_in_every_marked_encoding(tmp_path: Path, encoding: str) -> None:
    names = [f"{number}.png" for number in range(3)]
    shown = dict(zip(names, WORDS, strict=True))
    for name, word in shown.items():
        write(tmp_path / "texts", {name: png(1), name.replace("png", "txt"): f"{word}\r\n".encode(encoding)})
    table = "file_name,text\r\n" + "".join(f'{name},"{word}"\r\n' for name, word in shown.items())
    lines = jsonl(*({"file_name": name, "text": word} for name, word in shown.items())).replace("\n", "\r\n")
    for kind, text in {"csv": table, "jsonl": lines}.items():
        write(tmp_path / kind, dict.fromkeys(names, png(1)))
        write(tmp_path / kind, {f"metadata.{kind}": text.encode(encoding)})
    for kind in ("texts", "csv", "jsonl"):
        assert found(open_data(str(tmp_path / kind), 4)) == shown, kind


@pytest.mark.parametrize(
    "data", ["café".encode("cp1252"), "café".encode("utf-16-le"), "é".encode("utf-16") + b"\0", b"\xff\xfe\x00\xd8"]
)
def test_text_without_its_mark_is_never_guessed(tmp_path: Path, data: bytes) -> None:
    pictures(tmp_path / "a", "0", "1")
    write(tmp_path / "a", {"1.txt": data})
    assert found(open_data(str(tmp_path / "a"), 4)) == {
        "0.png": "x 1",
        "1.png": "[1.txt is not UTF-8 text: save it as UTF-8]",
    }
    assert open_data(str(tmp_path / "a"), 4, captions=False)[1].problem is None
    write(tmp_path / "a", {"metadata.csv": b"file_name,text\n0.png,a\n1.png," + data})
    assert refusal(tmp_path / "a").endswith("metadata.csv is not UTF-8 text: save it as UTF-8")
    write(tmp_path / "b", {"0.png": png(1), "0.txt": data})
    assert "(0.png: 0.txt is not UTF-8 text: save it as UTF-8)" in refusal(tmp_path / "b")


def test_captions_that_are_none(tmp_path: Path) -> None:
    texts: dict[str, Any] = {
        "nan": float("nan"), "null": None, "list": ["a", "", "b"], "number": 7, "blank": " ", "map": {"en": "a"},
        "half": "half \ud83d",
    }  # fmt: skip
    for name in texts:
        write(tmp_path, {f"{name}.png": png(1)})
    write(tmp_path, {"metadata.jsonl": jsonl(*({"file_name": f"{n}.png", "text": t} for n, t in texts.items()))})
    assert found(open_data(str(tmp_path), 4)) == {
        "blank.png": "[has no caption]",
        "half.png": "[its text is not valid text (it has an unpaired surrogate): fix it]",
        "list.png": "a, b",
        "map.png": "[its text is a map, not a text]",
        "nan.png": "[has no caption]",
        "null.png": "[has no caption]",
        "number.png": "7",
    }


def test_a_caption_comes_from_the_first_column_that_holds_one(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", "c", "d", text="txt")
    entries: list[dict[str, Any]] = [
        {"file_name": "a.png", "caption": "caption", "text": "text"},
        {"file_name": "b.png", "caption": None, "text": "text"},
        {"file_name": "c.png", "caption": float("nan"), "text": ""},
    ]
    write(tmp_path, {"metadata.jsonl": jsonl(*entries), "d.caption": "dot caption", "d.json": '{"text": "json"}'})
    assert list(found(open_data(str(tmp_path), 4)).values()) == ["caption", "text", "txt 3", "dot caption"]
    assert list(found(open_data(f"{tmp_path}?caption=text", 4)).values())[3] == "json"
    rows = {"image": [png(i) for i in range(3)], "caption": ["c", None, ""], "text": ["t", "t", None], "txt": ["x"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert list(found(open_data(f"{tmp_path}/a.parquet", 4)).values()) == ["c", "t", "x"]


def test_text_that_is_no_file(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", "c")
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    write(tmp_path, {"c.txt": "x" * 2**20 + "y"})
    data = found(open_data(str(tmp_path), 4))
    assert data["a.png"] == "x 1" and "is not a regular file" in str(data["b.png"]) and "larger" in str(data["c.png"])
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert "metadata.jsonl: it is not a regular file" in refusal(tmp_path)


# Tables of captions


@pytest.mark.parametrize(
    "table",
    [
        "file_name;text\n0.png;a, b\n1.png;c\n",
        "file_name\ttext\n0.png\ta, b\n1.png\tc\n",
        "sep=;\nfile_name;text\n0.png;a, b\n1.png;c;\n;;\n\n",
        'file_name, text\n0.png, "a, b"\n1.png, c\n',
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path: Path, table: str) -> None:
    write(pictures(tmp_path, "0", "1", text=""), {"metadata.csv": table})
    assert found(open_data(str(tmp_path), 4)) == {"0.png": "a, b", "1.png": "c"}


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        (
            "csv",
            "file_name,text\n0.png,a\n1.png,a, b\n",
            r"line 3 has 3 cell\(s\), its header 2: put a text that holds",
        ),
        ("csv", "file_name,text,n\n0.png,a,1\n1.png\n", r"line 3 has 1 cell\(s\), its header 3: fill in the others"),
        ("csv", 'file_name,text\n0.png,"a\n1.png,b\n', "line 3 is not CSV"),
        ("csv", "name,text\n0.png,a\n", "names no column file_name, but reads 'name,text'"),
        ("csv", "", "names no column file_name"),
        ("jsonl", '{"file_name": "0.png"}\n{"file_n', "line 2 is not JSON"),
        ("jsonl", '[{"file_name": "0.png"}]', "line 1 is not a JSON object: give one per line"),
        ("jsonl", '{"file_name": 3}', "line 1 has no file_name"),
        ("jsonl", "[" * 100_000, "line 1 is nested too deep"),
        ("jsonl", '{"file_name": "' + "x" * 2**20, "line 1 is longer than"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, name: str, table: str, message: str) -> None:
    write(pictures(tmp_path, "0", "1"), {f"metadata.{name}": table})
    with pytest.raises(UserError, match=message) as caught:
        open_data(str(tmp_path), 4)
    assert f"metadata.{name}" in str(caught.value) and "\n" not in str(caught.value)


# Names


def test_names_are_matched_as_they_are_meant(tmp_path: Path) -> None:
    write(tmp_path, {"A.JPG": png(1), "A.TXT": "upper", "b.png": png(2), "B.Caption": "other case"})
    write(tmp_path, {"sub/c.png": png(3), "sub/d.png": png(4), "e\u0301.png": png(5)})
    entries = ({"file_name": "sub\\c.png", "text": "backslash"}, {"file_name": ".\\Sub/D.PNG", "text": "case"})
    accent = {"file_name": "\u00e9.png", "text": "composed"}
    write(tmp_path, {"METADATA.JSONL": jsonl(*entries, accent)})
    assert found(open_data(str(tmp_path), 4)) == {
        "A.JPG": "upper",
        "b.png": "other case",
        "e\u0301.png": "composed",
        "sub/c.png": "backslash",
        "sub/d.png": "case",
    }


def test_a_text_belongs_to_the_picture_of_its_very_name(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "A.png": png(2), "a.txt": "small"})
    assert found(open_data(str(tmp_path), 4)) == {"A.png": "[has no caption]", "a.png": "small"}


@pytest.mark.parametrize("folder", ["icons@2x", "a [1] b", "what?", "p?size=3", "100% #1", "star*", "cats@val"])
def test_a_folder_that_exists_is_meant_by_its_name(tmp_path: Path, folder: str) -> None:
    pictures(tmp_path / folder, "a", "b", text="t")
    for spec in (f"{tmp_path}/{folder}", f"{tmp_path}/{folder}?limit=2", f"{tmp_path}/{folder}/@train?limit=2"):
        assert list(found(open_data(spec, 4)).values()) == ["t 1", "t 2"]
    if "=" not in folder:
        assert len(open_data(f"{tmp_path}/{folder}/*.png", 4)) == 2


def test_names_that_are_not_text_or_not_one_line(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(odd)
    for name in (b"/\xff.png", b"/a\nb.png"):
        Path(os.fsdecode(odd + name)).write_bytes(png(1))
        Path(os.fsdecode(odd + name[:-3] + b"txt")).write_text("text")
    data = open_data(str(tmp_path), 4)
    assert found(data) == {"caf\\xe9/a\\x0ab.png": "text", "caf\\xe9/\\xff.png": "text"}
    assert len(data.fingerprint()) == 64
    assert "its label is not valid text" in refusal(f"{tmp_path}?caption={{label}}")
    assert "rename the folder" in refusal(os.fsdecode(odd))


# What is left out


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    pictures(tmp_path / "store/cats", "1")
    data = tmp_path / "data"
    data.mkdir()
    (data / "cats").symlink_to("../store/cats")
    (tmp_path / "store/cats/up").symlink_to("..")
    (data / "self").symlink_to("self")
    (data / "gone.png").symlink_to("nowhere.png")
    assert found(open_data(str(data), 4)) == {
        "cats/1.png": "x 1",
        "gone.png": "[cannot be read: No such file or directory]",
    }


def test_formats_that_are_not_read_are_counted_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, "a", "b")
    write(tmp_path, {"a.heic": "x", "c.jxl": "x", "d.JXL": "x", "notes.md": "x"})  # a.png is there: nothing is lost
    data = open_data(str(tmp_path), 4)
    assert [name for name, _ in data.left_out] == ["c.jxl", "d.JXL"]
    line = "2 pictures; left out 2 (c.jxl, ...): is of a format that is not read: save it as PNG or JPEG"
    assert capfd.readouterr().err == f"data {tmp_path}: {line}\n"
    assert "d.JXL" in refusal(f"{tmp_path}/*.JXL") and open_data(f"{tmp_path}?limit=1", 4).left_out == ()


def test_folders_are_splits_or_classes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in ("cats", "dogs", "test", "dev"):
        pictures(tmp_path / "classes" / folder, "1", text="")
    assert len(open_data(f"{tmp_path}/classes?caption={{label}}", 4)) == 4
    assert "4 pictures; folders dev, test are no splits: other folders stand beside them" in capfd.readouterr().err
    assert "choose one of train" in refusal(f"{tmp_path}/classes@test?caption={{label}}")
    for folder in ("cats/train", "cats/test", "dogs/train"):
        pictures(tmp_path / "deep" / folder, "1")
    assert len(open_data(f"{tmp_path}/deep", 4)) == 2 and len(open_data(f"{tmp_path}/deep@test", 4)) == 1
    assert "2 pictures; split train (also there: test 1)" in capfd.readouterr().err


def test_metadata_that_names_what_is_not_there(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", text="")
    write(
        tmp_path, {"metadata.jsonl": jsonl({"file_name": "a.png", "text": "a"}, {"file_name": "z/b.png", "text": "b"})}
    )
    data = open_data(str(tmp_path), 4)
    assert list(data.left_out) == [("z/b.png", "is not there (metadata.jsonl)")] and len(data) == 2
    write(tmp_path, {"metadata.jsonl": jsonl({"file_name": "z/b.png", "text": "b"})})
    for captions in (True, False):
        message = refusal(tmp_path, captions=captions)
        assert "none of the pictures in the metadata exists: metadata.jsonl, line 1 names 'z/b.png'" in message
        assert "there is 'a.png'" in message


def test_metadata_makes_pictures_of_files_without_an_extension(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "0001": png(2)})
    write(tmp_path, {"metadata.jsonl": jsonl({"file_name": "a.png", "text": "a"}, {"file_name": "0001", "text": "b"})})
    assert found(open_data(str(tmp_path), 4)) == {"0001": "b", "a.png": "a"}


def test_the_opening_line_comes_once_and_from_the_first_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, "a", "b")
    monkeypatch.setenv("RANK", "1")
    open_data(str(tmp_path), 4)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    for caption in ("txt", "label"):
        open_data(f"{tmp_path}?caption={caption}", 4)
    assert capfd.readouterr().err == f"data {tmp_path}: 2 pictures\n"


# Several kinds of files


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three loose pictures, a table of two more, and a tar without any."""
    pictures(tmp_path, "a", "b", "c")
    rows = {"image": [png(8), png(9)], "text": ["row 0", "row 1"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    return tmp_path


def test_what_holds_most_pictures_is_the_data(mixed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(open_data(str(mixed), 4)) == 3
    assert "took 3 loose picture(s), left 1 parquet file(s) (?kind= decides)" in capfd.readouterr().err
    assert list(found(open_data(f"{mixed}?kind=parquet", 4)).values()) == ["row 0", "row 1"]
    assert "holds no tar, but parquet, pictures" in refusal(f"{mixed}?kind=tar")
    assert "kind is 'zip': choose parquet or tar or pictures" in refusal(f"{mixed}?kind=zip")


def test_a_table_without_pictures_is_not_the_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "00000", "a")
    pq.write_table(pa.table({"url": ["u"] * 9, "caption": ["c"] * 9}), tmp_path / "00000.parquet")
    assert found(open_data(str(tmp_path), 4)) == {"00000/a.png": "x 1"}
    assert "left 1 parquet file(s) without pictures (?kind= decides)" in capfd.readouterr().err
