"""Captions as people word them: true of their scene, never its canonical caption, and judged without a learned part."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from unitok.boxes import words_of
from unitok.data.judging import can_judge, judge
from unitok.data.open import open_data
from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.grounding import box_of
from unitok.data.shapes.scenes import Kind, Object, Scene, describe, render
from unitok.data.shapes.wording import is_open, shows, word

RED, BLUE = Kind("small", "red", "circle"), Kind("large", "blue", "square")
SCENE = Scene((Object(BLUE, 0.7, 0.5), Object(RED, 0.25, 0.5)))
PICTURE = render(SCENE, 32)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a small red circle left of a large blue square", True),
        ("a large blue square right of a small red circle", True),
        ("a circle and a blue square", True),
        ("a square and a  small circle", True),
        ("a large square right of a circle", True),
        ("a small red circle right of a large blue square", False),  # the relation
        ("a large circle and a square", False),  # the size
        ("a blue circle and a red square", False),  # the colours, each of the other
        ("a red circle", False),  # one thing too many is shown
        ("a circle, a square and a cross", False),  # one too few
        ("an orange circle and a square", False),
        ("a circle beside a square", None),
        ("two circles", None),
        ("a Red circle", None),
        ("", None),
    ],
)
def test_what_a_wording_claims(text: str, right: bool | None) -> None:
    assert shows(PICTURE, text) is right


@pytest.mark.parametrize("split", ["train", "val"])
def test_wordings_are_true_and_open(split: str) -> None:
    data = open_data(f"shapes@{split}?task=wording&limit=60", (32, 32))
    seen = set()
    for index in range(60):
        record = data[index]
        assert record.caption is not None and is_open(record.caption)
        assert judge("text_to_image", record, record.image)
        assert can_judge("pointed_text_to_image", record) and not can_judge("image_to_text", record)
        named = words_of(record.fields["named"])
        assert judge("text_to_image", replace(record, caption=named), record.image)
        assert can_judge("ground_caption", record) == (not is_open(named)), "another order is right too"
        seen |= set(record.caption.replace(",", "").split())
    assert {"an", "and", "left", "above", "small"} <= seen


def test_pictures_of_other_wordings_are_wrong() -> None:
    data = open_data("shapes?task=wording&limit=60", (32, 32))
    wrong = [judge("text_to_image", data[index], data[index + 1].image) is False for index in range(59)]
    assert sum(wrong) >= 55  # "a circle" may be true of the next picture too


def test_the_scenes_are_those_of_shapes() -> None:
    worded, plain = ShapesDataset(task="wording"), ShapesDataset()
    assert all(worded.scene(index) == plain.scene(index) for index in range(5))
    assert (worded[3].image == plain[3].image).all() and plain[3].caption == describe(plain.scene(3))


def test_every_wording_of_a_scene_comes() -> None:
    draw = random.Random(0).random
    worded = [word(SCENE, draw) for _ in range(3000)]
    found = {one.caption for one in worded}
    assert {words_of(one.named) for one in worded} == {
        "a small red circle and a large blue square",
        "a large blue square and a small red circle",
        "a small red circle left of a large blue square",
        "a large blue square right of a small red circle",
    }
    boxes = {"a small red circle": box_of(SCENE.objects[1]), "a large blue square": box_of(SCENE.objects[0])}
    for one in worded[:50]:
        for text, box in zip(one.named[::2], one.named[1::2], strict=True):
            assert boxes[" ".join(str(text).split()[-4:])] == box
    assert describe(SCENE) not in found and "a circle and a square" in found
    assert "a small red circle left of a large blue square" in found
    assert all(shows(PICTURE, text) for text in found)
