"""Stories of shapes: one edit after the other, the judge of every step."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from unitok.data.shapes.edits import edit_verdict, kind_of_edit
from unitok.data.shapes.scenes import (
    Kind,
    Object,
    Scene,
    describe,
    is_orderly,
    kinds_of,
    render,
    sample_scene,
    split_of,
)
from unitok.data.shapes.stories import Step, StepVerdict, story, story_verdict

SCENES = {split: [sample_scene(0, split, i) for i in range(200)] for split in ("train", "val")}
STORIES = {split: [story(scene, 0, i, split) for i, scene in enumerate(scenes)] for split, scenes in SCENES.items()}
RIGHT, WRONG = StepVerdict(True, True), StepVerdict(False, False)
UNSEEN = StepVerdict(True, False)

SQUARE = Object(Kind("large", "blue", "square"), 0.625, 0.5)
CROSS = Object(Kind("small", "red", "cross"), 0.1875, 0.5)
TOLD = (
    Step("a large blue square", Scene((SQUARE,))),
    Step("add a small red cross left of the square", Scene((SQUARE, CROSS))),
    Step("move the cross up", Scene((SQUARE, replace(CROSS, y=0.25)))),
)
TEXTS = [step.text for step in TOLD]
PICTURES = [render(step.scene, 32) for step in TOLD]
BLANK = np.full((32, 32, 3), 255, dtype=np.uint8)


def test_stories_are_pinned() -> None:
    """Equal on every machine and version; when this fails, every result on stories must be measured again."""
    assert [step.text for step in STORIES["train"][1]] == [
        "a small cyan square below a small green cross",
        "make the cross red",
        "make the small red cross blue",
    ]
    assert story(SCENES["train"][0], 0, 0, "train") == STORIES["train"][0]
    assert story(SCENES["train"][0], 1, 0, "train") != STORIES["train"][0]


def test_a_story_is_a_caption_and_edits_that_end_in_the_scene() -> None:
    for split, stories in STORIES.items():
        for told, scene in zip(stories, SCENES[split], strict=True):
            first, *more = told
            assert len(told) == 3 and told[-1].scene == scene and first.text == describe(first.scene)
            assert len({step.scene for step in told}) == 3 and all(is_orderly(step.scene) for step in told)
            assert all(kind_of_edit(step.text) for step in more)
            if split == "train":
                assert {split_of(kinds_of(step.scene)) for step in told} == {"train"}


def test_stories_of_other_lengths_end_alike() -> None:
    scene = SCENES["val"][5]
    assert story(scene, 0, 5, "val", steps=1) == (Step(describe(scene), scene),)
    assert story(scene, 0, 5, "val", steps=5)[3:] == story(scene, 0, 5, "val", steps=3)[1:]


def test_the_truth_is_right() -> None:
    for stories in STORIES.values():
        for told in stories[:80]:
            pictures = [render(step.scene, 32) for step in told]
            assert story_verdict([step.text for step in told], pictures) == [RIGHT] * 3
            for before, step, picture in zip(told, told[1:], pictures[1:], strict=False):
                assert edit_verdict(picture, before.scene, step.text).all


def test_a_picture_that_did_not_follow_is_wrong() -> None:
    for told in STORIES["train"][:60]:
        pictures = [render(step.scene, 32) for step in told]
        first, second, _ = story_verdict([step.text for step in told], [pictures[0], pictures[0], pictures[2]])
        assert first == RIGHT and second == UNSEEN
        if describe(told[-1].scene) != told[0].text:  # a caption does not tell a place
            assert not story_verdict([step.text for step in told], [pictures[-1], *pictures[1:]])[0].picture


def test_each_step_is_judged_from_the_picture_before_it() -> None:
    assert story_verdict(TEXTS, PICTURES) == [RIGHT] * 3
    assert story_verdict(TEXTS, [PICTURES[1], *PICTURES[1:]]) == [UNSEEN, WRONG, RIGHT]  # there is a red cross already
    assert story_verdict(TEXTS, [BLANK, *PICTURES[1:]]) == [UNSEEN, WRONG, RIGHT]
    assert story_verdict(TEXTS, [PICTURES[0], BLANK, PICTURES[2]]) == [RIGHT, UNSEEN, WRONG]
    assert story_verdict(["a dog", *TEXTS[1:]], PICTURES) == [WRONG, RIGHT, RIGHT]
    assert story_verdict([TEXTS[0], "a large red circle", TEXTS[2]], PICTURES) == [RIGHT, WRONG, RIGHT]
    assert story_verdict([*TEXTS[:2], "move the circle up"], PICTURES) == [RIGHT, RIGHT, WRONG]
    assert story_verdict([*TEXTS[:2], "move the cross down"], PICTURES) == [RIGHT, RIGHT, UNSEEN]


def test_what_is_missing_is_wrong() -> None:
    assert story_verdict([], []) == []
    assert story_verdict(TEXTS, PICTURES[:2]) == [RIGHT, RIGHT, UNSEEN]
    assert story_verdict(TEXTS[:2], PICTURES) == [RIGHT, RIGHT, WRONG]


def test_any_texts_are_judged() -> None:
    draw = random.Random(0)
    words = [word for told in STORIES["val"][:50] for step in told for word in step.text.split()] + ["", "(", "é", "\0"]
    for _ in range(60):
        texts = [" ".join(draw.choice(words) for _ in range(draw.randrange(9))) for _ in range(3)]
        assert all(one == WRONG for one in story_verdict(texts, PICTURES)), texts
