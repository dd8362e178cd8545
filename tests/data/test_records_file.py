"""Files of records: every task's form, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.data.open import open_data
from unitok.data.records_file import RecordsFile
from unitok.tasks import TASKS, needs

LINES: dict[str, dict[str, Any]] = {
    "text_to_image": {"image": "a.png", "caption": "a red circle"},
    "image_to_text": {"image": "a.png", "caption": "a red circle"},
    "text_only": {"caption": "a text without a picture"},
    "question": {"image": "a.png", "question": "what colour is the circle", "answer": "red"},
    "edit": {"source": "a.png", "instruction": "make it blue", "image": "b.png"},
    "ground": {"image": "a.png", "phrase": "the red circle", "boxes": [[0.1, 0.2, 0.5, 0.6]]},
    "interleaved": {"parts": [{"text": "Here it is."}, {"image": "a.png"}, {"text": "It is red."}]},
    "describe": {"image": "a.png", "box": [0.1, 0.2, 0.5, 0.6], "description": "the red circle"},
    "ground_caption": {"image": "a.png", "named": ["a red circle", [0.1, 0.2, 0.5, 0.6], " on grey"]},
    "layout_to_image": {"image": "a.png", "named": ["a red circle", [0, 0, 1, 1]]},
    "inpaint": {"image": "a.png", "caption": "a red circle"},
    "pointed_question": {"image": "a.png", "question": "what colour is it", "boxes": [[0, 0, 1, 1]], "answer": "red"},
    "pointed_edit": {"source": "a.png", "instruction": "move it", "boxes": [[0, 0, 0.5, 1]], "image": "b.png"},
    "pointed_text_to_image": {"image": "a.png", "caption": "a red circle", "named": ["a red circle", [0, 0, 1, 1]]},
    "pointed_inpaint": {"image": "a.png", "caption": "a red circle", "named": ["a red circle", [0, 0, 1, 1]]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value, name in enumerate(("a", "b")):
        save_png(tmp_path / f"{name}.png", torch.full((3, 8, 8), 100 * value, dtype=torch.uint8))
    return tmp_path


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_one_form_holds_every_task(folder: Path) -> None:
    assert LINES.keys() == TASKS.keys()
    data = open_data(str(write(folder, [*LINES.values(), ""])), 8, captions=False)
    assert len(data) == len(LINES)
    for index, task in enumerate(LINES):
        record = data[index]
        assert record.problem is None, record.problem
        found = {"caption": record.caption, "image": record.image, **record.fields}
        assert all(found.get(field) is not None for field in needs([task])), task
    edit, ground, interleaved = data[4], data[5], data[6]
    assert edit.fields["source"].unique().item() == 0 and edit.image is not None and edit.image.unique().item() == 100
    assert ground.fields["boxes"] == [[0.1, 0.2, 0.5, 0.6]]
    assert data[7].fields == {"box": [0.1, 0.2, 0.5, 0.6], "description": "the red circle"}
    assert data[8].fields == {"named": ["a red circle", [0.1, 0.2, 0.5, 0.6], " on grey"]}, "white space parts words"
    kinds = [(kind, value if kind == "text" else tuple(value.shape)) for kind, value in interleaved.fields["parts"]]
    assert kinds == [("text", "Here it is."), ("image", (3, 8, 8)), ("text", "It is red.")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is [1], not an object with keys"),
        ({"picture": "a.png"}, "has an unknown key 'picture': known are name, image, caption, question"),
        ({"image": "none.png"}, "cannot be read"),
        ({"image": 7}, "names a picture 7: give a path"),
        ({"image": "../other.png"}, "names a file outside the data"),
        ({"image": "a.png", "boxes": [[0, 0, 2, 1]]}, "has a box [0, 0, 2, 1]: give [left, top, right, bottom]"),
        ({"image": "a.png", "boxes": {}}, "has boxes {}: give a list"),
        ({"image": "a.png", "boxes": [[0, 0, 1, 1], []]}, "has a box []: give [left, top, right, bottom]"),
        ({"image": "a.png", "boxes": [[], [0, 0, 1, 1]]}, "has a box 0: give [left, top, right, bottom]"),
        (
            {"image": "a.png", "boxes": [[0.5, 0, 0.2, 1]]},
            "has a box [0.5, 0, 0.2, 1]: give [left, top, right, bottom] ",
        ),
        ({"image": "a.png", "box": [0, 0.5, 1, 0.2]}, "left up to right and top up to bottom"),
        ({"image": "a.png", "box": [[0, 0, 1, 1], 1]}, "has a box 1: give"),
        ('{"image": "a.png", "box": [0, 0, NaN, 1]}', "has a box [0, 0, nan, 1]: give"),
        ({"image": "a.png", "named": "a circle"}, "has named 'a circle': give a list"),
        ({"image": "a.png", "named": ["a circle", 7]}, "has 7 in named: give strings and boxes"),
        ({"image": "a.png", "named": ["a circle", [0, 0, 1]]}, "has a box [0, 0, 1]: give"),
        ('{"image": "a.png", "named": ["\\ud800"]}', "its named is not valid text"),
        ({"image": "a.png", "source": ["a.png", 7]}, "names a picture 7: give a path"),
        ({"image": "a.png", "source": []}, "has source []: give a list"),
        ({"parts": [{"text": "a", "image": "b.png"}]}, "has a part {'image': 'b.png', 'text': 'a'}: give"),
        ({"parts": [{"text": ["a", 7]}]}, "has 7 in text: give strings and boxes"),
        ({"parts": [{"text": ["a", [0, 0, 1]]}]}, "has a box [0, 0, 1]: give"),
        ({"caption": {"a": 1}}, "its caption is a map"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_record_with_a_problem(folder: Path, line: Any, problem: str) -> None:
    save_png(folder.parent / "other.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    data = RecordsFile(write(folder, [line, LINES["question"]]), (8, 8))
    assert problem in str(data[0].problem)
    assert data[1].problem is None and data[1].fields["answer"] == "red"


def test_a_problem_names_the_file_and_the_line(folder: Path) -> None:
    bad = {"image": "a.png", "box": [1, 0, 0, 1]}
    data = RecordsFile(write(folder, [LINES["question"], "", bad, {**bad, "name": "mine"}]), (8, 8))
    assert [data[index].name for index in (1, 2)] == ["records.jsonl, line 3", "mine (records.jsonl, line 4)"]


def test_boxes_follow_a_picture_that_is_cropped(folder: Path) -> None:
    """A wide picture loses a quarter on each side, one that its EXIF turns, of its height as it is shown."""
    Image.new("RGB", (32, 16)).save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16)).save(folder / "turned.jpg", exif=exif)
    box, gone = [0.3, 0.25, 0.5, 0.75], [0.0, 0.0, 0.2, 1.0]
    lines: list[Any] = [
        {"image": "wide.png", "boxes": [box, [0.0, 0.0, 0.5, 1.0]]},
        {"image": "wide.png", "named": ["a", box, " b"]},
        {"image": "turned.jpg", "box": [0.25, 0.3, 0.75, 0.5]},
        {"image": "wide.png", "box": gone},
        {"image": "wide.png", "box": [0.3, 0.5, 0.3, 0.5]},
    ]
    path = write(folder, lines)
    data = RecordsFile(path, (8, 8))
    near = [pytest.approx(side) for side in (0.1, 0.25, 0.5, 0.75)]
    assert data[0].fields["boxes"] == [near, [0, 0, 0.5, 1]], "what sticks out is cut off"
    assert data[1].fields["named"] == ["a", near, " b"]
    assert data[2].fields["box"] == [pytest.approx(side) for side in (0.25, 0.1, 0.75, 0.5)]
    assert "has a box [0.0, 0.0, 0.2, 1.0] outside of what is read of the picture" in str(data[3].problem)
    assert data[4].problem is None, "a box may be a point"
    assert RecordsFile(path)[0].fields["boxes"][0] == box, "at its own size nothing is cropped"


def test_phrases_and_descriptions_may_be_several(folder: Path) -> None:
    """Also none of the boxes of a phrase: there may be no such thing."""
    Image.new("RGB", (32, 16)).save(folder / "wide.png")
    a, b = [0.3, 0.25, 0.5, 0.75], [0.5, 0.0, 0.5, 1.0]
    lines: list[Any] = [
        {"image": "wide.png", "phrase": ["the cat", "the dogs", "the cow"], "boxes": [[a], [a, b], []]},
        {"image": "wide.png", "description": ["a cat", "a dog"], "box": [a, b]},
        {"image": "wide.png", "phrase": "the cow", "boxes": []},
    ]
    data = RecordsFile(write(folder, lines), (8, 8))
    near = [pytest.approx(side) for side in (0.1, 0.25, 0.5, 0.75)]
    assert data[0].fields["boxes"] == [[near], [near, [0.5, 0, 0.5, 1]], []]
    assert data[1].fields["box"] == [near, [0.5, 0, 0.5, 1]]
    assert data[2].fields["boxes"] == []


def test_a_source_may_be_several_pictures(folder: Path) -> None:
    record = RecordsFile(write(folder, [{**LINES["edit"], "source": ["a.png", "b.png"]}]), (8, 8))[0]
    assert [picture.unique().item() for picture in record.fields["source"]] == [0, 100]


def test_captions_can_be_demanded_and_names_given(folder: Path) -> None:
    path = write(folder, [{"image": "a.png", "name": "mine"}, {"image": "a.png", "caption": "b"}])
    assert open_data(str(path), 8)[0].problem == "has no caption" and open_data(str(path), 8)[1].caption == "b"
    record = open_data(str(path), 8, captions=False)[0]
    assert record.name == "mine" and record.problem is None
    with pytest.raises(UserError, match="a file of records has no splits: remove @val"):
        open_data(f"{path}@val", 8)
    assert len(open_data(f"{path}?limit=1", 8)) == 1


def test_the_fingerprint_is_that_of_the_contents(folder: Path) -> None:
    path = write(folder, [LINES["question"]])
    before = RecordsFile(path).fingerprint()
    assert RecordsFile(path).fingerprint() == before
    write(folder, [{**LINES["question"], "answer": "blue"}])
    changed = RecordsFile(path).fingerprint()
    write(folder, [LINES["question"]])
    save_png(folder / "a.png", torch.full((3, 8, 8), 7, dtype=torch.uint8))
    assert len({before, changed, RecordsFile(path).fingerprint()}) == 3


def test_a_long_line_is_refused(folder: Path) -> None:
    path = write(folder, ['{"caption": "' + "x" * 2**21 + '"}'])
    with pytest.raises(UserError, match=r"line 1 is longer than 1,048,576 bytes: cut it"):
        RecordsFile(path)
