"""Phrases and boxes of shapes scenes, the judges of boxes and layouts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from unitok.data.shapes.grounding import (
    Grounding,
    box_of,
    boxes_of,
    boxes_right,
    ground,
    layout_verdict,
    named_boxes,
    overlap,
)
from unitok.data.shapes.scenes import (
    RELATIONS,
    Kind,
    Object,
    Scene,
    describe,
    is_held_out,
    render,
    sample_scene,
)

COUNT = 2000


@cache
def scenes_of(split: str) -> list[Scene]:
    return [sample_scene(0, split, i) for i in range(COUNT)]


@cache
def grounded(split: str) -> list[Grounding]:
    return [ground(scene, 0, i) for i, scene in enumerate(scenes_of(split))]


def pairs() -> list[tuple[Grounding, Scene]]:
    return [pair for split in ("train", "val") for pair in zip(grounded(split), scenes_of(split), strict=True)]


CIRCLE = Object(Kind("large", "red", "circle"), 0.25, 0.25)
SQUARE = Object(Kind("small", "blue", "square"), 0.75, 0.3125)
CROSS = Object(Kind("small", "green", "cross"), 0.3125, 0.8125)
SCENE = Scene((CIRCLE, CROSS, SQUARE))


# --- making ---------------------------------------------------------------------------------------------------------


def test_phrases_are_pinned() -> None:
    """Equal on every machine and version; when this fails, every result on boxes must be measured again."""
    assert [one.phrase for one in grounded("train")[:4] + grounded("val")[:4]] == [
        "the square",
        "the small cyan square",
        "the small crosses",
        "the objects",
        "the objects",
        "the small crosses",
        "the objects",
        "the green triangle",
    ]
    assert ground(SCENE, 0, 0) == ground(SCENE, 0, 0)
    assert len({ground(SCENE, 0, index).phrase for index in range(300)}) > 40
    assert [ground(SCENE, 1, i).phrase for i in range(5)] != [ground(SCENE, 0, i).phrase for i in range(5)]


def test_boxes_are_those_that_the_phrase_means() -> None:
    for made, scene in pairs():
        assert boxes_of(made.phrase, scene) == made.boxes, (made, describe(scene))
        right = [box_of(thing) for thing in scene.objects]
        assert [box for box in right if box in made.boxes] == made.boxes, "in the caption's order"
        assert made.box == right[[str(thing.kind) for thing in scene.objects].index(made.description)]
        assert all(0 < left < right < 1 and 0 < top < bottom < 1 for left, top, right, bottom in made.boxes)


def test_the_caption_with_boxes() -> None:
    for made, scene in pairs():
        texts = [part for part in made.named if isinstance(part, str)]
        assert "".join(texts) == describe(scene)
        assert made.named[1::2] == [box_of(thing) for thing in scene.objects]
    assert named_boxes(Scene((CIRCLE, SQUARE))) == [
        "a large red circle",
        box_of(CIRCLE),
        " left of a small blue square",
        box_of(SQUARE),
    ]


def test_a_box_holds_the_ink_of_its_object() -> None:
    for thing in SCENE.objects:
        left, top, right, bottom = (side * 64 for side in box_of(thing))
        ys, xs = np.nonzero(render(Scene((thing,)), 64).min(axis=2) < 128)
        assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == pytest.approx((left, right, top, bottom), abs=1.5)


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_numbers_of_boxes_occur(split: str) -> None:
    counts = Counter(len(made.boxes) for made in grounded(split))
    assert 0.11 < counts[0] / COUNT < 0.19 and counts[2] > 0.05 * COUNT and counts[3] > 10, counts
    phrases = [made.phrase for made in grounded(split)]
    related = sum(any(f" {name} the " in phrase for name in RELATIONS) for phrase in phrases) / COUNT
    grouped = sum(phrase.endswith("s") and not phrase.endswith("cross") for phrase in phrases) / COUNT
    assert related > 0.15 and grouped > 0.25


def test_held_out_kinds_are_no_hint() -> None:
    """Of a single object in training, no phrase names a kind that is never there alone."""
    for made, scene in zip(grounded("train"), scenes_of("train"), strict=True):
        words = made.phrase.split()
        if len(scene.objects) == 1 and len(words) == 4 and not made.boxes:
            assert not is_held_out(Kind(*words[1:]))


@pytest.mark.parametrize(
    ("phrase", "things"),
    [
        ("the circle", [CIRCLE]),
        ("the small objects", [CROSS, SQUARE]),
        ("the objects", [CIRCLE, CROSS, SQUARE]),
        ("the small crosses", [CROSS]),
        ("the triangles", []),
        ("the large blue square", []),
        ("the object left of the blue square", [CIRCLE]),
        ("the objects right of the small square", []),
        ("  the   object below the circle ", [CROSS]),
        ("the object above the circle", []),
    ],
)
def test_phrases_are_read(phrase: str, things: list[Object]) -> None:
    assert boxes_of(phrase, SCENE) == [box_of(thing) for thing in things]


@pytest.mark.parametrize(
    "phrase", ["", "the", "the sky", "a circle", "The circle", "the object", "the object near the circle"]
)
def test_other_texts_are_no_phrases(phrase: str) -> None:
    assert boxes_of(phrase, SCENE) is None


def test_the_object_is_one() -> None:
    twins = Scene((CIRCLE, replace(SQUARE, kind=Kind("small", "blue", "circle"))))
    assert boxes_of("the circle", twins) is None and boxes_of("the objects left of the circle", twins) is None
    assert boxes_of("the blue circle", twins) is not None


# --- judging --------------------------------------------------------------------------------------------------------


def test_overlap() -> None:
    assert overlap([0, 0, 1, 1], [0, 0, 1, 1]) == 1
    assert overlap([0, 0, 0.5, 1], [0, 0, 1, 1]) == 0.5
    assert overlap([0, 0, 0.4, 1], [0.6, 0, 1, 1]) == 0
    assert overlap([1, 1, 0, 0], [0, 0, 1, 1]) == overlap([0.5, 0, 0.5, 1], [0, 0, 1, 1]) == 0


def test_boxes_are_compared_one_to_one() -> None:
    for made, _ in pairs()[:300]:
        assert boxes_right(made.boxes, made.boxes) and boxes_right(made.boxes[::-1], made.boxes)
        assert not boxes_right([*made.boxes, [0.1, 0.1, 0.2, 0.2]], made.boxes)
        if made.boxes:
            assert not boxes_right(made.boxes[1:], made.boxes)
            [left, top, right, bottom], *rest = made.boxes
            half = [left + 0.5 * (right - left), top, right + 0.5 * (right - left), bottom]
            assert not boxes_right([half, *rest], made.boxes)
            assert boxes_right([[left + 0.02, top, right + 0.02, bottom], *rest], made.boxes)
    twice = [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]
    assert not boxes_right(twice, [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]), "one box cannot be two"
    assert boxes_right([[0, 0, 1, 1], [0, 0, 0.5, 1]], [[0, 0, 0.5, 1], [0, 0, 1, 1]])
    assert boxes_right([[0, 0, 0.5, 1], [0, 0, 1, 1]], [[0, 0, 0.6, 1], [0, 0, 0.5, 1]]), "the first fits both"
    assert not boxes_right([[0, 0, 0.8, 1]], [[0, 0, 1, 1]], iou=0.9)


def test_true_layouts_are_right() -> None:
    for made, scene in [*pairs()[:150], *pairs()[COUNT : COUNT + 150]]:
        assert layout_verdict(render(scene, 32), made.named) == [True] * len(scene.objects)


def moved(thing: Object) -> Object:
    return replace(thing, x=1 - thing.x) if abs(thing.x - 0.5) > 0.2 else replace(thing, x=thing.x + 0.25)


def test_wrong_layouts_are_wrong_in_that_box() -> None:
    for _, scene in pairs()[:60]:
        thing, *others = scene.objects
        named, kind = named_boxes(scene), thing.kind
        other = "circle" if kind.shape != "circle" else "square"
        size = "small" if kind.size == "large" else "large"
        for wrong in (moved(thing), replace(thing, kind=replace(kind, shape=other)), None):
            if len(others) and wrong is not None and wrong.x != thing.x:
                continue  # it may lie on another one
            shown = Scene((*([] if wrong is None else [wrong]), *others))
            assert layout_verdict(render(shown, 32), named) == [False, *[True] * len(others)]
        text = str(replace(kind, size=size))
        assert layout_verdict(render(scene, 32), [text, *named[1:]]) == [False, *[True] * len(others)]


def test_any_layout_is_judged() -> None:
    picture, draw = render(SCENE, 32), random.Random(0)
    box = box_of(CIRCLE)
    assert layout_verdict(picture, []) == [] and layout_verdict(picture, ["a large red circle"]) == []
    assert layout_verdict(picture, [box]) == layout_verdict(picture, ["a dog", box]) == [False]
    assert layout_verdict(picture, ["a large red circle", box, box]) == [True, False]
    made: list[Grounding] = grounded("val")[:50]
    words = [word for one in made for word in one.phrase.split()] + ["", "(", "é", "\0"]
    for _ in range(300):
        text = " ".join(draw.choice(words) for _ in range(draw.randrange(7)))
        assert boxes_of(text, SCENE) is None or text.split()[0] == "the"
    for _ in range(30):
        text = " ".join(draw.choice(words) for _ in range(draw.randrange(7)))
        assert layout_verdict(picture, [text, [draw.random() for _ in range(4)]]) == [False]
