"""Edits of shapes scenes: the instructions, the scenes before, the judge."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tokenizers_vq.errors import UserError
from unitok.data.shapes.edits import (
    DISTANCE,
    KINDS_OF_EDIT,
    Edit,
    EditVerdict,
    change_of,
    edit,
    edit_verdict,
    kind_of_edit,
    meant,
)
from unitok.data.shapes.grounding import box_of
from unitok.data.shapes.scenes import (
    COLOURS,
    SHAPES,
    Kind,
    Object,
    Scene,
    is_orderly,
    kinds_of,
    render,
    sample_scene,
    split_of,
)

COUNT = 1000


@cache
def scenes_of(split: str) -> list[Scene]:
    return [sample_scene(0, split, i) for i in range(COUNT)]


@cache
def edits_of(split: str) -> list[Edit]:
    return [edit(scene, 0, i, split) for i, scene in enumerate(scenes_of(split))]


def shown() -> list[tuple[Edit, Scene]]:
    return [pair for split in ("train", "val") for pair in zip(edits_of(split)[:120], scenes_of(split), strict=False)]


CIRCLE = Object(Kind("small", "red", "circle"), 0.25, 0.5)
SQUARE = Object(Kind("large", "blue", "square"), 0.75, 0.5)
TWO = Scene((CIRCLE, SQUARE))


def verdict(scene: Scene, before: Scene, instruction: str) -> EditVerdict:
    return edit_verdict(render(scene, 32), before, instruction)


def having(thing: Object, **kind: str) -> Object:
    return replace(thing, kind=replace(thing.kind, **kind))


def covered(things: list[Object], size: int = 64) -> np.ndarray:
    """(size, size) bool: the boxes of objects, and a pixel around them."""
    found = np.zeros((size, size), dtype=bool)
    for thing in things:
        left, top, right, bottom = (round(side * size) for side in box_of(thing))
        found[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    return found


# --- making ---------------------------------------------------------------------------------------------------------


def test_what_changes_lies_in_the_boxes_of_what_is_meant() -> None:
    """The objects that an instruction is about, as they were and as they become, and beside what one is added."""
    numbers = {"recolour": 1, "resize": 2, "remove": 1, "add": 2, "move": 2}
    for made, after in shown():
        things = meant(made, after)
        kind = kind_of_edit(made.instruction)
        assert kind is not None and len(things) == numbers[kind]
        changed = (render(made.before, 64) != render(after, 64)).any(-1)
        assert changed.any() and not (changed & ~covered(things)).any()
        if kind == "add":
            assert things[0] in after.objects and things[1] in made.before.objects and things[1] in after.objects
        else:
            assert things[0] in made.before.objects and things[0] not in after.objects


def test_edits_are_pinned() -> None:
    """Equal on every machine and version; when this fails, every result on edits must be measured again."""
    assert [made.instruction for made in edits_of("train")[:4] + edits_of("val")[:4]] == [
        "make the square yellow",
        "make the small green square cyan",
        "add a small red cross below the large purple cross",
        "make the circle black",
        "make the cross large",
        "move the cross down",
        "make the large blue square black",
        "remove the black triangle",
    ]
    assert edit(scenes_of("train")[0], 0, 0, "train") == edits_of("train")[0]
    assert edit(scenes_of("train")[0], 1, 0, "train") != edits_of("train")[0]
    assert len({edit(TWO, 0, i, "val").instruction for i in range(100)}) > 20


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_before_keep_the_rules(split: str) -> None:
    for made, scene in zip(edits_of(split), scenes_of(split), strict=True):
        assert is_orderly(made.before) and 1 <= len(made.before.objects) <= 3 and made.before != scene
    if split == "train":
        assert {split_of(kinds_of(made.before)) for made in edits_of(split)} == {"train"}
    assert {split_of(kinds_of(scene)) for scene in scenes_of(split)} == {split}


@pytest.mark.parametrize("split", ["train", "val"])
def test_kinds_are_about_even(split: str) -> None:
    counts = Counter(kind_of_edit(made.instruction) for made in edits_of(split))
    assert set(counts) == set(KINDS_OF_EDIT)
    assert all(0.12 < n / COUNT < 0.27 for n in counts.values()), counts


def test_an_edit_changes_one_object_and_as_it_says() -> None:
    for made, scene in zip(edits_of("train"), scenes_of("train"), strict=True):
        gone, new = set(made.before.objects) - set(scene.objects), set(scene.objects) - set(made.before.objects)
        kind = kind_of_edit(made.instruction)
        assert (len(gone), len(new)) == {"remove": (1, 0), "add": (0, 1)}.get(str(kind), (1, 1))
        for old, thing in zip(gone, new, strict=False):
            same = {
                "recolour": having(old, colour=thing.kind.colour),
                "resize": having(old, size=thing.kind.size),
                "move": replace(old, x=thing.x, y=thing.y),
            }
            assert same[str(kind)] == thing
            assert kind != "move" or sorted([abs(thing.x - old.x), abs(thing.y - old.y)]) == [0, DISTANCE]


def test_objects_are_named_shortly_or_in_full() -> None:
    alone = {edit(Scene((CIRCLE,)), 0, i, "val").instruction for i in range(400)}
    names = {text.removeprefix("move the ").rsplit(" ", 1)[0] for text in alone if text.startswith("move")}
    assert names == {"circle", "small red circle"}


# --- judging --------------------------------------------------------------------------------------------------------


def test_the_truth_is_right() -> None:
    assert {edit_verdict(render(scene, 32), made.before, made.instruction) for made, scene in shown()} == {
        EditVerdict(True, True)
    }
    for made, _ in shown():
        assert kind_of_edit(made.instruction) in KINDS_OF_EDIT and change_of(made.instruction, made.before) is not None


def test_what_was_not_done_is_not_there() -> None:
    for made, _ in shown():
        judged = verdict(made.before, made.before, made.instruction)
        assert not judged.asked and judged.kept == (kind_of_edit(made.instruction) != "remove")


def wrong(made: Edit, scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Scenes that are wrong in one way each."""
    others = [thing for thing in scene.objects if thing in made.before.objects]
    [*new] = [thing for thing in scene.objects if thing not in made.before.objects]
    for thing in others:
        rest = tuple(one for one in scene.objects if one is not thing)
        step = 1 / 16 if thing.x < 0.5 else -1 / 16
        yield "a neighbour moved", Scene((*rest, replace(thing, x=thing.x + step)))
        free = next(colour for colour in COLOURS if colour not in {one.kind.colour for one in scene.objects})
        yield "a neighbour recoloured", Scene((*rest, having(thing, colour=free)))
        yield "a neighbour of another shape", Scene((*rest, having(thing, shape=other_shape(thing))))
        yield "a neighbour gone", Scene(rest)
    for thing in new:
        yield "another shape", Scene((*others, having(thing, shape=other_shape(thing))))
        free = next(c for c in COLOURS if c not in {one.kind.colour for one in (*scene.objects, *made.before.objects)})
        yield "another colour", Scene((*others, having(thing, colour=free)))
        yield "gone", Scene(tuple(others))


def other_shape(thing: Object) -> str:
    return list(SHAPES)[(list(SHAPES).index(thing.kind.shape) + 1) % len(SHAPES)]


def test_wrong_pictures_are_wrong() -> None:
    seen: Counter[str] = Counter()
    for made, scene in shown()[:30] + shown()[120:150]:
        for how, other in wrong(made, scene):
            judged = verdict(other, made.before, made.instruction)
            neighbour = how.startswith("a neighbour")
            assert not (judged.kept if neighbour else judged.asked), (how, made, other)
            if how == "a neighbour moved" and kind_of_edit(made.instruction) != "add":
                assert judged.asked  # each verdict is for itself
            if not neighbour:
                assert judged.kept
            seen[how] += 1
    assert len(seen) == 7 and min(seen.values()) > 20


def test_an_extra_object_is_wrong() -> None:
    extra = Object(Kind("small", "black", "cross"), 0.25, 0.1875)
    after = Scene((having(CIRCLE, colour="green"), SQUARE))
    assert verdict(after, TWO, "make the circle green").all
    assert verdict(Scene((*after.objects, extra)), TWO, "make the circle green") == EditVerdict(False, False)
    assert verdict(Scene((SQUARE, extra)), TWO, "remove the circle") == EditVerdict(False, False)


def test_a_moved_object_may_be_off_by_less_than_a_step() -> None:
    for off, right in ((0.0, True), (1.2 / 32, True), (2 / 32, False), (-2 / 32, False), (-DISTANCE, False)):
        for x, y in ((0.25, 0.25 + off), (0.25 + off, 0.25)):
            after = Scene((replace(CIRCLE, x=x, y=y), SQUARE))
            assert verdict(after, TWO, "move the red circle up") == EditVerdict(right, True), off


def test_an_added_object_stands_anywhere_in_the_relation() -> None:
    for x, y, right in ((0.5625, 0.1875, False), (0.3125, 0.25, True), (0.125, 0.75, True), (0.75, 0.125, False)):
        after = Scene((SQUARE, Object(Kind("small", "green", "cross"), x, y)))
        judged = verdict(after, Scene((SQUARE,)), "add a small green cross left of the square")
        assert judged == EditVerdict(right, True), (x, y)


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "a small red circle",
        "make the circle dotted",
        "make the red circle blue.",
        "Remove the circle",
        "remove a circle",
        "remove the cross",  # there is none
        "make the circle red",  # nothing changes
        "make the circle small",
        "make the circle blue",  # a colour that is taken
        "add a small blue cross left of the square",
        "add a small green cross beside the square",
        "add a green cross left of the square",
        "move the square right",  # out of the canvas
        "move the circle away",
        "move the circle",
    ],
)
def test_what_cannot_be_applied_is_wrong(instruction: str) -> None:
    assert change_of(instruction, TWO) is None
    assert verdict(TWO, TWO, instruction) == EditVerdict(False, False)


def test_more_that_cannot_be_applied() -> None:
    assert change_of("remove the circle", Scene((CIRCLE,))) is None, "nothing would be left"
    twins = Scene((CIRCLE, Object(Kind("small", "green", "circle"), 0.75, 0.5)))
    assert change_of("remove the circle", twins) is None and change_of("remove the red circle", twins) is not None
    near = Scene((CIRCLE, Object(Kind("small", "green", "square"), 0.5, 0.5)))
    assert change_of("move the circle right", near) is None, "it would lie on the square"
    three = Scene((*TWO.objects, Object(Kind("small", "green", "cross"), 0.25, 0.1875)))
    assert change_of("add a small black cross below the square", three) is None, "a scene has at most three"
    assert change_of("  remove   the circle ", TWO) is not None, "white space is free"


def test_any_text_is_judged() -> None:
    draw = random.Random(0)
    words = [word for made in edits_of("train")[:100] for word in made.instruction.split()] + ["", "\n", "(", "é", "\0"]
    picture = render(TWO, 32)
    texts = [" ".join(draw.choice(words) for _ in range(draw.randrange(9))) for _ in range(500)]
    assert {edit_verdict(picture, TWO, text).all for text in texts[:50]} == {False}
    for text in texts:
        change_of(text, TWO)
    blank = np.full((32, 32, 3), 255, dtype=np.uint8)
    assert edit_verdict(blank, TWO, "remove the circle") == EditVerdict(False, False)
    with pytest.raises(UserError, match="a picture to check is"):
        edit_verdict(blank[:16], TWO, "remove the circle")
