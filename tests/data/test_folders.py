"""Loose pictures and WebDataset tars."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import captions, png, records, write, write_tar
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.data import RecordDataset, open_data


def values(data: RecordDataset) -> list[int]:
    """The grey value of each picture, by which the tests tell them apart."""
    return [int(record.image[0, 0, 0]) if record.image is not None else -1 for record in records(data)]


# Loose pictures


def test_text_files_beside_pictures(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.png": png(2),
            "b.txt": "a bee\n",
            "a.png": png(1),
            "a.txt": "\ufeffan ant",
            "z/c.PNG": png(3),
            "z/c.txt": "sea",
        },
    )
    write(tmp_path, {".hidden/d.png": png(9), "README.md": "# no picture"})
    data = open_data(str(tmp_path), 4)
    assert captions(data) == ["an ant", "a bee", "sea"]
    assert values(data) == [1, 2, 3]
    assert [record.name for record in records(data)] == ["a.png", "b.png", "z/c.PNG"]
    assert all(record.image.shape == (3, 4, 4) and record.image.dtype == torch.uint8 for record in records(data))
    assert not data.endless


def test_image_size_may_be_oblong_or_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "a.txt": "x"})
    assert open_data(str(tmp_path), (3, 5))[0].image.shape == (3, 3, 5)
    assert open_data(str(tmp_path))[0].image.shape == (3, 4, 6)
    with pytest.raises(UserError, match="image size is 0"):
        open_data(str(tmp_path), 0)


def test_metadata_jsonl(tmp_path: Path) -> None:
    lines = [
        {"file_name": "b.png", "text": "bee", "n": 1},
        {"file_name": "sub/a.png", "text": "line\u2028separator", "n": [1, 2]},
        {"file_name": "b.png", "text": "the same bee", "n": None},
        {"file_name": "gone.png", "text": "gone"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    write(tmp_path, {"b.png": png(2), "sub/a.png": png(1), "not-listed.png": png(7), "metadata.jsonl": text})
    opened = open_data(str(tmp_path), 4)
    assert opened.left_out == [("gone.png", "is not there (metadata.jsonl)")]
    data = records(opened)
    assert [(record.name, record.caption, record.problem) for record in data] == [
        ("b.png", "bee", None),
        ("b.png", "the same bee", None),
        ("not-listed.png", None, "has no caption"),
        ("sub/a.png", "line\u2028separator", None),
    ]
    assert captions(open_data(f"{tmp_path}?caption={{text}} {{n}}", 4))[:2] == ["bee 1", None]


def test_metadata_csv_in_each_split(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("validation", 2)):
        table = 'file_name,text\nx.png,"red, round"\ny.png,"two\nlines"\n'
        write(tmp_path / split, {"x.png": png(value), "y.png": png(value + 10), "metadata.csv": table})
    assert values(open_data(str(tmp_path), 4)) == [1, 11]
    for name in ("val", "validation", "dev"):
        data = open_data(f"{tmp_path}@{name}", 4)
        assert values(data) == [2, 12] and captions(data) == ["red, round", "two\nlines"]
    with pytest.raises(UserError, match="has no split 'test': choose one of train, val"):
        open_data(f"{tmp_path}@test", 4)


def test_folder_names_as_captions(tmp_path: Path) -> None:
    write(tmp_path, {"cat/1.png": png(1), "dog/1.png": png(2)})
    assert captions(open_data(f"{tmp_path}?caption=a photo of a {{label}}", 4)) == [
        "a photo of a cat",
        "a photo of a dog",
    ]


def test_a_glob_of_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"a1.png": png(1), "a1.txt": "one", "b1.png": png(2), "b1.txt": "two"})
    assert captions(open_data(f"{tmp_path}/a*.png", 4)) == ["one"]


def test_broken_and_uncaptioned_pictures_are_records_with_a_problem(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    noise.save(tmp_path / "a.png")
    write(
        tmp_path,
        {
            "a.png": (tmp_path / "a.png").read_bytes()[:400],
            "a.txt": "a",
            "b.jpg": "no picture",
            "b.txt": "b",
            "c.png": png(3),
        },
    )
    write(
        tmp_path,
        {"d.png": png(4), "d.txt": "  \n", "e.png": png(5), "e.txt": "e", "f.png": png(6, (40, 40)), "f.txt": "f"},
    )
    problems = [record.problem for record in records(open_data(str(tmp_path), 4, max_pixels=1000))]
    assert problems[0].startswith("cannot be decoded") and problems[1].startswith("not a picture file")
    assert problems[2:] == ["has no caption", "has no caption", None, "too large: 40x40 is more than 1000 pixels"]
    no_captions = [record.problem for record in records(open_data(str(tmp_path), 4, captions=False))]
    assert no_captions[2:] == [None] * 4


def test_captions_are_not_needed_when_not_wanted(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1)})
    assert records(open_data(str(tmp_path), 4, captions=False))[0].caption is None
    with pytest.raises(UserError, match=r"has no captions: .* put NAME.txt beside each NAME.png"):
        open_data(str(tmp_path), 4)


def test_captions_that_are_all_empty_are_noticed_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "a.txt": " ", "b.png": png(2), "b.txt": ""})
    with pytest.raises(UserError, match="none of the first 2 pictures has a caption"):
        open_data(str(tmp_path), 4)


# Tars


def test_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", {"x.png": png(3), "x.txt": "three"})
    write_tar(
        tmp_path / "a.tar",
        {
            "d/0.0.png": "a dotted name belongs to sample d/0",
            "d/1.png": png(1), "d/1.json": '{"caption": "one", "n": 1}',
            "d/2.JPG": png(2), "d/2.txt": "two", "d/2.json": "not json",
            "d/3.png": png(9), "d/4.txt": "no picture", "d/5.png": "torn", "d/5.txt": "five",
        },
    )  # fmt: skip
    data = records(open_data(f"{tmp_path}/?caption=txt", 4))
    assert [(r.name, r.caption) for r in data[2:]] == [
        ("a.tar/d/2.JPG", "two"),
        ("a.tar/d/3.png", None),
        ("a.tar/d/4", "no picture"),
        ("a.tar/d/5.png", "five"),
        ("b.tar/x.png", "three"),
    ]
    assert [r.problem for r in data[3:5]] == ["has no caption", "has no picture"]
    assert data[5].problem.startswith("not a picture file") and data[6].problem is None
    assert captions(open_data(f"{tmp_path}/a.tar?caption={{caption}} ({{n}})", 4))[1] == "one (1)"


def test_tars_with_several_pictures_per_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": png(1), "1.depth.png": png(2), "1.txt": "one"})
    with pytest.raises(UserError, match=r"sample a.tar/1 has several pictures, depth.png, jpg: choose with \?image="):
        open_data(f"{tmp_path}/*.tar", 4)
    assert values(open_data(f"{tmp_path}/*.tar?image=depth.png", 4)) == [2]
    with pytest.raises(UserError, match=r"no sample of the tars has a member .gif"):
        open_data(f"{tmp_path}/*.tar?image=gif", 4)


@pytest.mark.parametrize("cut", [700, 1300, 2100])
def test_damaged_tars_are_named(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": png(1), "1.txt": "one", "2.png": png(2), "2.txt": "two"})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"a\.tar (cannot be read as an uncompressed tar|is damaged)"):
        open_data(str(path), 4)
    header = whole.rindex(b"2.png")  # a header that is not one: tarfile alone would take it for the end
    path.write_bytes(whole[:header] + b"\xff" * 512 + whole[header + 512 :])
    with pytest.raises(UserError, match=r"a\.tar is damaged after byte"):
        open_data(str(path), 4)


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UserError, match="uncompressed tar"):
        open_data(f"{tmp_path}/a.tar", 4)
