"""The checker of shapes pictures, against the renderer."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.data.shapes.checker import (
    FIT_LIMIT,
    MARGIN,
    Found,
    Verdict,
    accuracy,
    caption_from_picture,
    check,
    judge,
    read_picture,
)
from unitok.data.shapes.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Object,
    Scene,
    describe,
    parse,
    relation,
    render,
    sample_scene,
)


@cache
def samples() -> list[Scene]:
    return [sample_scene(3, "val" if i % 2 else "train", i) for i in range(400)]


SUBJECT = Object(Kind("large", "red", "circle"), 0.3, 0.3)
RIGHT = Object(Kind("small", "blue", "cross"), 0.75, 0.35)
BELOW = Object(Kind("small", "green", "square"), 0.35, 0.75)


def uint8(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` pixels along both axes, float64."""
    offsets = np.arange(-4, 5)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    n = picture.shape[0]
    padded = np.pad(picture.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="edge")
    rows = sum(w * padded[i : i + n] for i, w in enumerate(weights))
    return np.asarray(sum(w * rows[:, i : i + n] for i, w in enumerate(weights)))


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))


def exact(scenes: list[Scene], size: int, spoil: Callable[[np.ndarray], np.ndarray]) -> float:
    """Share of scenes whose caption is read back from the spoilt picture word for word."""
    return sum(caption_from_picture(spoil(render(s, size))) == describe(s) for s in scenes) / len(scenes)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_clean_pictures_are_read_back(size: int) -> None:
    assert exact(samples(), size, lambda picture: picture) >= 0.995


def test_other_sizes_are_read_back() -> None:
    assert exact(samples()[:100], 24, lambda picture: picture) >= 0.99
    assert exact(samples()[:100], 50, lambda picture: picture) >= 0.99


@pytest.mark.parametrize("size", [32, 64])
def test_what_a_decoder_does_to_a_picture_is_forgiven(size: int) -> None:
    noise = np.random.default_rng(0)
    scenes = samples()[:250]
    assert exact(scenes, size, lambda p: uint8(blurred(p, 0.6) + noise.normal(0, 8, p.shape))) >= 0.99
    assert exact(scenes, size, lambda p: uint8(blurred(p, 1.0))) >= 0.98
    assert exact(scenes, size, lambda p: jpeg(uint8(blurred(p, 0.6)), quality=60)) >= 0.98
    assert exact(scenes, size, lambda p: uint8(240 - 0.85 * (255.0 - p))) >= 0.98, "grey background, pale colours"


def test_places_are_found() -> None:
    for scene in samples()[:100]:
        found = {thing.colour: thing for thing in read_picture(render(scene, 32))}
        for thing in scene.objects:
            other = found[thing.kind.colour]
            assert (other.x, other.y) == pytest.approx((thing.x, thing.y), abs=0.3 / 32)
            assert other.fit > 0.9


def test_repeated_colours_are_two_objects() -> None:
    scene = Scene((SUBJECT, replace(RIGHT, kind=Kind("small", "red", "cross"))))
    assert sorted((t.size, t.colour, t.shape) for t in read_picture(render(scene, 32))) == [
        ("large", "red", "circle"),
        ("small", "red", "cross"),
    ]


def test_touching_objects_of_two_colours_are_two_objects() -> None:
    picture = render(Scene((SUBJECT, Object(Kind("large", "blue", "square"), 0.3 + 0.345, 0.3))), 32)
    assert (picture[:, 10:20].min(axis=(0, 2)) < 200).all(), "the objects should touch"
    assert sorted((t.size, t.colour, t.shape) for t in read_picture(picture)) == [
        ("large", "blue", "square"),
        ("large", "red", "circle"),
    ]


def test_specks_are_ignored_and_fragments_are_not() -> None:
    caption = describe(Scene((SUBJECT,)))
    picture = render(Scene((SUBJECT,)), 32)
    picture[25:27, 25:28] = COLOURS["black"]
    assert check(picture, caption).all
    picture[24:29, 24:28] = COLOURS["black"]
    verdict = check(picture, caption)
    assert not verdict.count and not verdict.all and verdict.shape == 1


def test_a_blob_is_no_shape_and_a_strange_colour_no_colour() -> None:
    half = render(Scene((SUBJECT,)), 64)
    half[:, 20:] = 255
    assert [(t.shape, t.colour) for t in read_picture(half)] == [(None, "red")]
    ring = render(Scene((SUBJECT,)), 64)
    ring[14:24, 14:24] = 255
    assert [(t.shape, t.colour) for t in read_picture(ring)] == [(None, "red")]
    grey = render(Scene((Object(Kind("large", "black", "circle"), 0.5, 0.5),)), 64)
    assert [(t.shape, t.colour) for t in read_picture(np.maximum(grey, 128))] == [("circle", None)]
    assert caption_from_picture(half) is None


def test_an_object_between_small_and_large_has_no_size() -> None:
    n = 64
    y, x = (np.mgrid[:n, :n] + 0.5) / n - 0.5
    disc = np.where((x**2 + y**2 <= (0.5 * 0.28) ** 2)[:, :, None], COLOURS["red"], 255).astype(np.uint8)
    assert [(t.size, t.colour, t.shape) for t in read_picture(disc)] == [(None, "red", "circle")]


def test_pictures_without_a_scene() -> None:
    assert read_picture(np.full((32, 32, 3), 255, dtype=np.uint8)) == []
    assert caption_from_picture(np.full((32, 32, 3), 255, dtype=np.uint8)) is None
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert caption_from_picture(noise) is None
    assert not check(noise, "a small red circle").all
    assert not check(np.zeros((32, 32, 3), dtype=np.uint8), "a large black square").all


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_clean_outline_is_far_from_any_other(size: int) -> None:
    margins = [thing.margin for scene in samples()[:250] for thing in read_picture(render(scene, size))]
    assert min(margins) > 2 * MARGIN


@pytest.mark.parametrize("diameter", [8, 12])
def test_an_outline_between_two_shapes_is_none(diameter: int) -> None:
    """From a circle to a square by way of rounded squares: between the two there is a stretch that is neither."""
    y, x = (abs(np.arange(32 * 8) + 0.5 - 128) / 8 for _ in range(2))
    read = []
    for power in np.geomspace(2, 40, 25):
        inside = (x[None] ** power + y[:, None] ** power) <= (diameter / 2) ** power
        share = inside.reshape(32, 8, 32, 8).mean(axis=(1, 3))[..., None]
        (thing,) = read_picture(uint8(255 * (1 - share) + np.array(COLOURS["blue"]) * share))
        assert thing.fit >= FIT_LIMIT and (thing.shape is None) == (thing.margin < MARGIN)
        read.append(thing.shape)
    assert list(dict.fromkeys(read)) == ["circle", None, "square"]


def test_tensors_and_arrays_read_the_same() -> None:
    picture = render(samples()[5], 32)
    assert read_picture(torch.from_numpy(picture).permute(2, 0, 1)) == read_picture(picture)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((32, 32, 3)),
        np.zeros((3, 32, 32), dtype=np.uint8),
        np.zeros((32, 48, 3), dtype=np.uint8),
        np.zeros((16, 16, 3), dtype=np.uint8),
        np.zeros((32, 32), dtype=np.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(3, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
    ],
)
def test_other_arrays_are_refused(picture: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"a picture to check is .*: give uint8, \(N, N, 3\)"):
        read_picture(picture)


# --- checking -------------------------------------------------------------------------------------------------------


def sentence(kinds: list[Kind], relations: list[str]) -> str:
    clauses = [f" {name} {kind}" for name, kind in zip(relations, kinds[1:], strict=True)]
    return str(kinds[0]) + " and".join(clauses)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_wrong_attribute_is_noticed(count: int) -> None:
    """One change of the caption makes exactly that attribute wrong, by its share, and the whole."""
    scenes = [scene for scene in samples() if len(scene.objects) == count][:12]
    values: dict[str, list[str]] = {"shape": list(SHAPES), "colour": list(COLOURS), "size": list(SIZES)}
    for scene in scenes:
        kinds = [thing.kind for thing in scene.objects]
        relations = [relation(scene.objects[0], other) for other in scene.objects[1:]]
        found = read_picture(render(scene, 32))

        def verdict(kinds: list[Kind], relations: list[str], found: list[Found] = found) -> Verdict:
            facts = parse(sentence(kinds, relations))
            assert facts is not None
            return judge(found, facts)

        assert sentence(kinds, relations) == describe(scene)
        right = Verdict(True, 1.0, 1.0, 1.0, 1.0 if relations else None, tuple(found))
        assert verdict(kinds, relations) == right and right.all
        for i, kind in enumerate(kinds):
            for attribute, names in values.items():
                for name in names:
                    if name == getattr(kind, attribute):
                        continue
                    wrong = verdict([*kinds[:i], replace(kind, **{attribute: name}), *kinds[i + 1 :]], relations)
                    share: dict[str, Any] = {attribute: (count - 1) / count}
                    assert wrong == replace(right, **share) and not wrong.all
        for i, name in enumerate(relations):
            for other in set(RELATIONS) - {name}:
                wrong = verdict(kinds, [*relations[:i], other, *relations[i + 1 :]])
                assert wrong == replace(right, relation=1 - 1 / len(relations)) and not wrong.all
        if count > 1:  # one object less in the caption
            wrong = verdict(kinds[:-1], relations[:-1])
            assert (wrong.count, wrong.shape, wrong.all) == (False, 1, False)
        if count < 3:  # one object more
            wrong = verdict([*kinds, Kind("small", "cyan", "cross")], [*relations, "left of"])
            assert not wrong.count and wrong.shape <= 1 - 1 / (count + 1) and not wrong.all


def test_other_true_orderings_are_right() -> None:
    picture = render(Scene((SUBJECT, RIGHT)), 32)
    assert check(picture, "a small blue cross right of a large red circle").all
    assert not check(picture, "a small blue cross left of a large red circle").all


def test_missing_objects_count_as_wrong() -> None:
    caption = describe(Scene((SUBJECT, RIGHT, BELOW)))
    verdict = check(render(Scene((SUBJECT,)), 32), caption)
    assert (verdict.count, verdict.relation, verdict.all) == (False, 0.0, False)
    assert [verdict.shape, verdict.colour, verdict.size] == pytest.approx([1 / 3] * 3)
    verdict = check(render(Scene((SUBJECT, BELOW)), 32), caption)
    assert verdict.relation == 0.5 and verdict.colour == pytest.approx(2 / 3)
    blank = check(np.full((32, 32, 3), 255, dtype=np.uint8), caption)
    assert replace(blank, found=()) == Verdict(False, 0.0, 0.0, 0.0, 0.0)


def test_extra_objects_spoil_the_count_alone() -> None:
    verdict = check(render(Scene((SUBJECT, RIGHT, BELOW)), 32), describe(Scene((SUBJECT, RIGHT))))
    assert replace(verdict, found=()) == Verdict(False, 1.0, 1.0, 1.0, 1.0) and not verdict.all


def test_captions_outside_the_language_are_refused() -> None:
    with pytest.raises(UserError, match="'a dog' is not a shapes caption: write such as 'a large blue square"):
        check(render(samples()[0], 32), "a dog")


def test_accuracy_averages_pictures() -> None:
    verdicts = [
        Verdict(True, 1.0, 0.5, 1.0, 0.0),
        Verdict(False, 1.0, 0.0, 0.5, None),
        Verdict(True, 1.0, 1.0, 1.0, 1.0),
    ]
    assert accuracy(verdicts) == pytest.approx(
        {"count": 2 / 3, "shape": 1, "colour": 0.5, "size": 2.5 / 3, "relation": 0.5, "scene": 1 / 3}
    )
    assert "relation" not in accuracy([Verdict(True, 1.0, 1.0, 1.0, None)])
    with pytest.raises(UserError, match="no pictures to average over"):
        accuracy([])
