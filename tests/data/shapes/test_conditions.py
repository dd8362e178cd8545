"""Outlines and label maps of shapes scenes, the ways to and from them, the judges."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.data.shapes.checker import check
from unitok.data.shapes.conditions import (
    LABELS,
    LABELS_RIGHT,
    OUTLINE_RIGHT,
    condition,
    label_map,
    label_map_verdict,
    outline,
    outline_verdict,
    painting_verdict,
)
from unitok.data.shapes.scenes import COLOURS, SHAPES, Kind, Object, Scene, describe, render, sample_scene

SCENES = [sample_scene(0, split, i) for i in range(100) for split in ("train", "val")]
CIRCLE = Object(Kind("large", "red", "circle"), 0.3125, 0.3125)
CROSS = Object(Kind("small", "blue", "cross"), 0.75, 0.375)
SCENE = Scene((CIRCLE, CROSS))


def test_outlines_are_thin_black_and_where_the_objects_end() -> None:
    for size, width in ((32, 1), (64, 2)):
        picture = outline(SCENE, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        assert set(np.unique(picture)) == {0, 255}
        row = picture[int(CIRCLE.y * size), :, 0]
        across = np.flatnonzero(row[: size * 5 // 8] == 0)
        assert len(across) == 2 * width, "the circle's left and right side"
        assert across[-1] - across[0] + 1 == pytest.approx(0.36 * size, abs=1.5)


def test_label_maps_show_the_shape_alone() -> None:
    picture = label_map(SCENE, 32)
    assert {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} == {
        (0, 0, 0),
        LABELS["circle"],
        LABELS["cross"],
    }
    assert set(LABELS) == set(SHAPES)
    for colour in COLOURS:
        other = Scene((replace(CIRCLE, kind=replace(CIRCLE.kind, colour=colour)), CROSS))
        assert (label_map(other, 32) == picture).all() and (outline(other, 32) == outline(SCENE, 32)).all()


def test_all_ways_occur() -> None:
    ways: Counter[tuple[str, bool]] = Counter()
    for index in range(400):
        made, scene = condition(SCENES[index % 50], 0, index, 32), SCENES[index % 50]
        if made.instruction == f"paint {describe(scene)}":
            assert (made.target == render(scene, 32)).all()
            is_outline = bool((made.source == outline(scene, 32)).all())
            assert is_outline or (made.source == label_map(scene, 32)).all()
            ways["paint", is_outline] += 1
        else:
            drawn = {"draw the outlines": outline, "draw the labels": label_map}[made.instruction](scene, 32)
            assert (made.source == render(scene, 32)).all() and (made.target == drawn).all()
            ways[made.instruction, True] += 1
    assert len(ways) == 4 and min(ways.values()) > 70, ways
    first, again = condition(SCENE, 0, 3, 32), condition(SCENE, 0, 3, 32)
    assert first.instruction == again.instruction and (first.target == again.target).all()
    assert len({condition(SCENE, seed, 3, 32).instruction for seed in range(20)}) == 3


@pytest.mark.parametrize("size", [24, 32, 64])
def test_the_truth_is_right(size: int) -> None:
    for scene in SCENES[: 150 if size == 32 else 30]:
        for judged in (outline_verdict(outline(scene, size), scene), label_map_verdict(label_map(scene, size), scene)):
            assert judged.right and judged.share == 1
        assert painting_verdict(render(scene, size), scene)


def wrong_scenes(scene: Scene) -> dict[str, Scene]:
    thing, *others = scene.objects
    kind = thing.kind
    shape = list(SHAPES)[(list(SHAPES).index(kind.shape) + 1) % len(SHAPES)]
    found = {
        "shape": replace(thing, kind=replace(kind, shape=shape)),
        "size": replace(thing, kind=replace(kind, size="small" if kind.size == "large" else "large")),
        "place": replace(thing, x=thing.x + (1 / 16 if thing.x < 0.5 else -1 / 16)),
    }
    return {how: Scene((one, *others)) for how, one in found.items()} | {"gone": Scene(tuple(others))}


def test_wrong_maps_are_wrong() -> None:
    for scene in SCENES[:60]:
        for how, other in wrong_scenes(scene).items():
            assert not outline_verdict(outline(other, 32), scene).right, (how, scene)
            assert not label_map_verdict(label_map(other, 32), scene).right, (how, scene)
            assert not painting_verdict(render(other, 32), scene), (how, scene)
        extra = Scene((*scene.objects, Object(Kind("large", "cyan", "square"), 0.5, 0.5)))
        assert not painting_verdict(render(extra, 32), scene)
    extra = Scene((*SCENE.objects, Object(Kind("large", "cyan", "square"), 0.5, 0.75)))
    assert not outline_verdict(outline(extra, 32), SCENE).right
    assert not label_map_verdict(label_map(extra, 32), SCENE).right


def test_other_pictures_are_wrong() -> None:
    blank, black = np.full((32, 32, 3), 255, dtype=np.uint8), np.zeros((32, 32, 3), dtype=np.uint8)
    for picture in (blank, black, render(SCENE, 32)):
        assert not outline_verdict(picture, SCENE).right and not label_map_verdict(picture, SCENE).right
    assert outline_verdict(blank, SCENE).share == label_map_verdict(black, SCENE).share == 0
    assert not outline_verdict(label_map(SCENE, 32), SCENE).right
    assert not label_map_verdict(outline(SCENE, 32), SCENE).right


def test_another_colour_is_another_painting() -> None:
    other = Scene((replace(CIRCLE, kind=replace(CIRCLE.kind, colour="green")), CROSS))
    assert painting_verdict(render(SCENE, 32), SCENE) and not painting_verdict(render(other, 32), SCENE)
    assert not check(render(other, 32), describe(SCENE)).all


def test_noise_and_a_few_pixels_are_forgiven() -> None:
    noise = np.random.default_rng(0)
    for scene in SCENES[:30]:
        for made, judge, enough in (
            (outline, outline_verdict, OUTLINE_RIGHT),
            (label_map, label_map_verdict, LABELS_RIGHT),
        ):
            spoilt = np.clip(0.8 * made(scene, 32) + 25 + noise.normal(0, 15, (32, 32, 3)), 0, 255).astype(np.uint8)
            judged = judge(spoilt, scene)
            assert judged.right and judged.share > enough
            tensor = torch.from_numpy(spoilt).permute(2, 0, 1)
            assert judge(tensor, scene) == judged


@pytest.mark.parametrize("judge", [outline_verdict, label_map_verdict, painting_verdict])
def test_what_is_no_picture_is_refused(judge: object) -> None:
    with pytest.raises(UserError, match="a picture to check is float64"):
        judge(np.zeros((32, 32, 3)), SCENE)  # type: ignore[operator]
