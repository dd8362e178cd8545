"""The shapes data set: the language, the split, the pictures."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import words_of
from unitok.data.open import open_data
from unitok.data.shapes import questions
from unitok.data.shapes.conditions import condition
from unitok.data.shapes.dataset import RECORDS, ShapesDataset
from unitok.data.shapes.edits import Edit, edit, meant
from unitok.data.shapes.grounding import box_of, boxes_of, ground
from unitok.data.shapes.questions import answer_of
from unitok.data.shapes.scenes import (
    BORDER,
    COLOURS,
    GAP,
    KINDS,
    RELATIONS,
    SHAPES,
    SIZES,
    SLANT,
    VAL_LENGTH,
    Kind,
    Object,
    Scene,
    box,
    describe,
    is_held_out,
    matches,
    parse,
    relation,
    render,
    sample_scene,
    split_of,
)
from unitok.data.shapes.stories import story

FIELDS = {
    "questions": {"question", "boxes", "answer"},
    "question": {"question", "answer"},
    "edit": {"source", "instruction", "boxes"},
    "story": {"parts"},
    "pointed_story": {"parts"},
    "planned_story": {"parts"},
    "ground": {"phrase", "boxes", "description", "box", "named"},
    "groundings": {"phrase", "boxes", "description", "box", "named"},
    "wording": {"named"},
    "condition": {"source", "instruction", "boxes"},
}
COUNTS = {"train": 5000, "val": 3000}


@cache
def scenes_of(split: str) -> list[Scene]:
    return [sample_scene(0, split, i) for i in range(COUNTS[split])]


def kinds_of(scene: Scene) -> list[Kind]:
    return [thing.kind for thing in scene.objects]


def pairs_of(scenes: list[Scene]) -> set[frozenset[Kind]]:
    return {frozenset(pair) for scene in scenes for pair in combinations(kinds_of(scene), 2)}


# --- captions -------------------------------------------------------------------------------------------------------


def test_captions_read_as_the_language_says() -> None:
    circle = Object(Kind("small", "red", "circle"), 0.2, 0.5)
    square = Object(Kind("large", "blue", "square"), 0.7, 0.4)
    cross = Object(Kind("small", "black", "cross"), 0.6, 0.9)
    assert describe(Scene((circle,))) == "a small red circle"
    assert describe(Scene((circle, square))) == "a large blue square right of a small red circle"
    assert describe(Scene((circle, cross, square))) == (
        "a large blue square above a small black cross and right of a small red circle"
    )


def test_captions_are_canonical() -> None:
    """The order of the objects in the scene does not matter, and scenes arrive in caption order."""
    rng = random.Random(0)
    for scene in scenes_of("train")[:500]:
        shuffled = Scene(tuple(rng.sample(scene.objects, len(scene.objects))))
        assert describe(shuffled) == describe(scene)
        facts = parse(describe(scene))
        assert facts is not None and list(facts.kinds) == kinds_of(scene)


def test_a_caption_decides_everything_but_the_places() -> None:
    """Scenes with one caption have the same objects and relations, and scenes with two captions do not."""
    meanings: dict[str, object] = {}
    for scene in scenes_of("train") + scenes_of("val"):
        subject, *others = scene.objects
        meaning = (tuple(kinds_of(scene)), tuple(relation(subject, other) for other in others))
        assert meanings.setdefault(describe(scene), meaning) == meaning
    assert len(set(meanings.values())) == len(meanings)


def test_captions_are_parsed_back_and_true() -> None:
    for scene in scenes_of("train")[:1000] + scenes_of("val")[:1000]:
        facts = parse(describe(scene))
        assert facts is not None and matches(facts, scene)
        assert len(facts.relations) == len(scene.objects) - 1


def test_any_true_ordering_matches_and_no_false_one() -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for scene in [s for s in scenes_of("train") if len(s.objects) == 2][:200]:
        subject, other = scene.objects
        name = relation(subject, other)
        for caption, true in [
            (f"{other.kind} {opposite[name]} {subject.kind}", True),
            (f"{other.kind} {name} {subject.kind}", False),
            (f"{subject.kind}", False),
            (f"{subject.kind} {name} {other.kind} and {name} {other.kind}", False),
        ]:
            facts = parse(caption)
            assert facts is not None and matches(facts, scene) == true, caption


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a",
        "a red circle",
        "a small pink circle",
        "a small red circle left",
        "a small red circle left of",
        "a small red circle near a small blue circle",
        "a small red circle a small blue circle",
        "a small red circle and left of a small blue circle",
        "a small red circle left of a small blue circle above a small green cross",
        "a small red circle left of a small blue circle and",
        "a small red circle left of a small blue circle and above a small green cross and below a small black cross",
        "a small red circle.",
        "A small red circle",
    ],
)
def test_other_text_is_not_parsed(caption: str) -> None:
    assert parse(caption) is None


# --- split ----------------------------------------------------------------------------------------------------------


def test_combinations_of_train_and_held_out_are_disjoint() -> None:
    train_pairs = pairs_of(scenes_of("train"))
    train_singles = {scene.objects[0].kind for scene in scenes_of("train") if len(scene.objects) == 1}
    assert not any(is_held_out(*pair) for pair in train_pairs)
    assert not any(is_held_out(kind) for kind in train_singles)
    for scene in scenes_of("val"):
        kinds = kinds_of(scene)
        if len(kinds) == 1:
            assert is_held_out(kinds[0]) and kinds[0] not in train_singles
        else:
            assert pairs_of([scene]) - train_pairs and any(is_held_out(*pair) for pair in combinations(kinds, 2))
    assert not {describe(scene) for scene in scenes_of("train")} & {describe(scene) for scene in scenes_of("val")}


def test_split_is_fixed_balanced_and_ignores_order() -> None:
    pairs = [pair for pair in combinations(KINDS, 2) if pair[0].colour != pair[1].colour]
    assert (len(KINDS), sum(is_held_out(kind) for kind in KINDS)) == (64, 16)
    alone = [kind for kind in KINDS if is_held_out(kind)]
    assert {Counter(kind.shape for kind in alone)[shape] for shape in SHAPES} == {4}
    assert len({(kind.size, kind.colour) for kind in alone}) == 16
    assert (len(pairs), sum(is_held_out(*pair) for pair in pairs)) == (1792, 180)
    assert all(is_held_out(a, b) == is_held_out(b, a) for a, b in pairs)
    assert {split_of((kind,)) for kind in KINDS} == {"train", "val"}


def test_train_shows_every_kind_beside_others_in_every_role() -> None:
    assert {kind for scene in scenes_of("train") if len(scene.objects) > 1 for kind in kinds_of(scene)} == set(KINDS)


def test_seeds_and_splits_give_different_scenes() -> None:
    captions = [[describe(sample_scene(seed, "train", i)) for i in range(50)] for seed in (0, 1)]
    assert sum(a == b for a, b in zip(*captions, strict=True)) < 10


# --- scenes and pictures --------------------------------------------------------------------------------------------


def test_mix_of_scenes() -> None:
    counts = Counter(len(scene.objects) for scene in scenes_of("train"))
    assert [counts[n] / len(scenes_of("train")) for n in (1, 2, 3)] == pytest.approx([0.5, 0.35, 0.15], abs=0.03)
    values = Counter(word for scene in scenes_of("train") for word in describe(scene).split())
    for names in (SHAPES, COLOURS, SIZES, ["left", "right", "above", "below"]):
        shares = np.array([values[name] for name in names]) / sum(values[name] for name in names)
        assert shares.min() > 0.75 / len(names), dict(zip(names, shares, strict=True))


def test_places_keep_borders_gaps_and_clear_relations() -> None:
    for scene in scenes_of("train") + scenes_of("val"):
        boxes = []
        for thing in scene.objects:
            w, h = box(thing.kind.shape, SIZES[thing.kind.size])
            boxes.append((thing.x - w / 2, thing.y - h / 2, thing.x + w / 2, thing.y + h / 2))
        assert all(BORDER - 1e-9 <= edge <= 1 - BORDER + 1e-9 for box_ in boxes for edge in box_)
        for a, b in combinations(boxes, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= GAP - 1e-9
        assert len({thing.kind.colour for thing in scene.objects}) == len(scene.objects)
        subject, *others = scene.objects
        axes = []
        for other in others:
            x, y = RELATIONS[relation(subject, other)]
            dx, dy = abs(subject.x - other.x), abs(subject.y - other.y)
            assert (dy <= SLANT * dx) if x else (dx <= SLANT * dy)
            axes.append(bool(y))
        assert len(set(axes)) == len(axes), "two relations along one axis"


def test_pictures_are_white_at_the_border_and_anti_aliased() -> None:
    for scene in scenes_of("train")[:100]:
        picture = render(scene, 32)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        ring = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (ring == 255).all()
        colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
        assert {COLOURS[thing.kind.colour] for thing in scene.objects} < colours
        assert len(colours) > 2 * len(scene.objects) + 1, "no mixed colours at the edges"


@pytest.mark.parametrize("shape", SHAPES)
def test_size_says_the_area(shape: str) -> None:
    """Every small shape covers less than every large one, by a factor that survives blur."""

    def covered(size: str) -> float:
        return 255 - float(render(Scene((Object(Kind(size, "black", shape), 0.5, 0.5),)), 64).mean())

    def square(size: str) -> float:
        return 255 - float(render(Scene((Object(Kind(size, "black", "square"), 0.5, 0.5),)), 64).mean())

    assert 0.65 * square("small") < covered("small") <= 1.01 * square("small")
    assert covered("large") > 1.8 * square("small")


def test_another_size_shows_the_same_scene() -> None:
    for scene in scenes_of("train")[:20]:
        small = render(scene, 32).astype(float)
        large = render(scene, 64).astype(float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert abs(small - large).max() <= 255 / 8 + 1, "more than one row of samples differs"


def test_pictures_are_pinned() -> None:
    """Equal on every machine and version; when this fails, every result on shapes must be measured again."""

    def digest(seed: int, split: str, size: int) -> str:
        pixels = b"".join(render(sample_scene(seed, split, i), size).tobytes() for i in range(20))
        return hashlib.sha256(pixels).hexdigest()[:16]

    digests = [digest(0, "train", 32), digest(0, "val", 64), digest(7, "train", 24)]
    assert digests == ["0f24a75a1dedacc2", "e23db975f2d373ed", "defd69e2b13e116d"]
    assert describe(sample_scene(0, "train", 2)) == ("a large purple cross above a small red cross")


# --- the data set ---------------------------------------------------------------------------------------------------


def test_records() -> None:
    data = ShapesDataset(size=32, split="train", seed=0)
    record = data[123]
    assert data.endless and len(data) >= 10**9
    assert record.name == "shapes:train:seed0:123" and record.problem is None and record.codes is None
    assert record.image is not None and record.image.dtype == torch.uint8 and record.image.shape == (3, 32, 32)
    assert record.caption == describe(data.scene(123))
    assert torch.equal(record.image.permute(1, 2, 0), torch.from_numpy(render(data.scene(123), 32)))
    again = ShapesDataset(size=32, split="train", seed=0)[123].image
    assert again is not None and torch.equal(record.image, again)


def test_records_of_tasks() -> None:
    """Caption and picture are those of the scene, but for a wording; the fields of the task stand beside them."""
    for split in ("train", "val"):
        plain = ShapesDataset(split=split)
        for task in RECORDS:
            data = ShapesDataset(split=split, task=task)
            for index in range(20):
                record, again = data[index], data[index]
                assert (record.caption == plain[index].caption) == (task != "wording") and record.image is not None
                if task != "condition":
                    assert torch.equal(record.image, data.picture(data.scene(index)))
                assert repr(record.fields) == repr(again.fields)
                assert set(record.fields) == FIELDS[task]
    assert ShapesDataset(split="val").name == "shapes:val:seed0"
    assert ShapesDataset(split="val", task="edit").name == "shapes:val:edit:seed0"


def test_pictures_of_tasks_are_those_of_their_texts() -> None:
    data = {task: ShapesDataset(size=64, split="val", task=task) for task in RECORDS}
    unplanned: list[bool] = []
    for index in range(40):
        scene, picture = data["edit"].scene(index), data["edit"].picture
        edited, told = data["edit"][index], story(data["edit"].scene(index), 0, index, "val")
        made = edit(scene, 0, index, "val")
        assert edited.fields["instruction"] == made.instruction
        assert torch.equal(edited.fields["source"], picture(made.before))
        assert edited.fields["boxes"] == list(map(box_of, meant(made, scene)))
        parts = data["story"][index].fields["parts"]
        assert [kind for kind, _ in parts] == ["text", "image"] * 3
        assert [text for _, text in parts[::2]] == [step.text for step in told]
        assert all(torch.equal(part[1], picture(step.scene)) for part, step in zip(parts[1::2], told, strict=True))
        pointed = data["pointed_story"][index].fields["parts"]
        assert all(words_of(one) == text for (_, one), (_, text) in zip(pointed[::2], parts[::2], strict=True))
        boxes = [[box for box in text if not isinstance(box, str)] for _, text in pointed[::2]]
        assert boxes[0] == list(map(box_of, told[0].scene.objects))
        planned = data["planned_story"][index].fields["parts"]
        assert planned[0] == pointed[0], "its caption comes from elsewhere"
        for number in (1, 2):
            before, step = told[number - 1].scene, told[number]
            things = meant(Edit(before, step.text), step.scene)
            assert pointed[2 * number][1] == [step.text, *map(box_of, things)]
            there = [thing for thing in things if thing in before.objects]
            made = [thing for thing in things if thing not in there]
            foreseen = [*map(box_of, there), step.text, *map(box_of, made)]
            assert planned[2 * number][1] in (foreseen, pointed[2 * number][1]) and there
            unplanned.append(planned[2 * number][1] != foreseen)
            assert torch.equal(planned[2 * number + 1][1], picture(step.scene))
        grounded, right = data["ground"][index].fields, ground(scene, 0, index)
        assert grounded == vars(right)
        several = data["groundings"][index].fields
        assert 3 <= len(set(several["phrase"])) == len(several["boxes"]) <= 6
        assert [boxes_of(phrase, scene) for phrase in several["phrase"]] == several["boxes"]
        pairs = zip(several["description"], several["box"], strict=True)
        assert dict(pairs).items() <= {str(o.kind): box_of(o) for o in scene.objects}.items()
        drawn, way = data["condition"][index], condition(scene, 0, index, 64)
        assert drawn.image is not None and drawn.fields["instruction"] == way.instruction
        assert (drawn.image.permute(1, 2, 0).numpy() == way.target).all()
        asked = data["questions"][index].fields
        assert 4 <= len(set(asked["question"])) == len(asked["answer"]) <= 8
        assert [answer_of(text, scene) for text in asked["question"]] == asked["answer"]
        about = [questions.meant(text, scene) for text in asked["question"]]
        assert asked["boxes"] == [list(map(box_of, things)) for things in about]
        assert (drawn.fields["source"].permute(1, 2, 0).numpy() == way.source).all()
    assert 0.05 < sum(unplanned) / len(unplanned) < 0.3


def test_an_unknown_task_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        open_data("shapes?task=paint", 32)
    assert str(caught.value) == (
        "shapes: task is 'paint': choose one of question, questions, edit, story, pointed_story, planned_story, "
        "ground, groundings, wording, condition, as in shapes?task=edit"
    )
    assert len(open_data("shapes@val?task=story&limit=60", 32)) == 60


def test_val_is_finite() -> None:
    data = ShapesDataset(split="val", length=3)
    assert not data.endless and len(data) == 3 and len(ShapesDataset(split="val")) == 48
    assert [data[i].name for i in range(len(data))] == [f"shapes:val:seed0:{i}" for i in range(3)]
    with pytest.raises(IndexError, match="has 3 records, index is 3"):
        data[3]


@pytest.mark.parametrize("seed", [0, 1, 9])
def test_val_holds_distinct_captions_as_many_of_each_number_of_objects(seed: int) -> None:
    data = ShapesDataset(split="val", seed=seed, length=3 * VAL_LENGTH)
    for start in range(0, len(data), VAL_LENGTH):  # a longer split is several of them
        scenes = [data.scene(index) for index in range(start, start + VAL_LENGTH)]
        assert len({describe(scene) for scene in scenes}) == VAL_LENGTH
        assert [len(scene.objects) for scene in scenes] == [1, 2, 3] * (VAL_LENGTH // 3)
        assert {split_of(tuple(kinds_of(scene))) for scene in scenes} == {"val"}
    assert len({describe(data.scene(index)) for index in range(len(data))}) > 2 * VAL_LENGTH
    kinds = {tuple(kinds_of(data.scene(index))) for index in range(0, VAL_LENGTH, 3)}
    assert kinds == {(kind,) for kind in KINDS if is_held_out(kind)}


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(UserError, match="size is 16: choose 24 or more") as caught:
        ShapesDataset(size=16, split="test", length=0)
    assert "split is 'test': choose train or val" in str(caught.value)
    assert "length is 0: choose a number above 0" in str(caught.value)
