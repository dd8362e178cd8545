"""Pictures that say only a part of a `shapes` scene, outlines and label maps, with the ways to and from them.

    draw the outlines                    picture -> outlines: black contours on white
    draw the labels                      picture -> labels: one flat colour for each shape on black
    paint a small red circle             outlines or labels -> picture

The instruction of the ways back is the caption, which says the colours. All are exact, and the same on every machine
and Python version, as scenes are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...seeding import fold
from .checker import pixels, read_picture, same_kind, same_place
from .naming import pick
from .scenes import SHAPES, SIZES, Kind, Object, Scene, box, coverage, describe, kinds_of, render, split_of

LABELS: dict[str, tuple[int, int, int]] = {
    "circle": (230, 30, 30),
    "square": (30, 200, 30),
    "triangle": (40, 60, 230),
    "cross": (240, 230, 30),
}
"""Colour of each shape in a label map; any two of these and black are at least 190 apart."""
LABELS_RIGHT = 0.75
"""Least share of an object in a label map that is right; a shift by a pixel at 32 leaves 0.6 to 0.8."""
OUTLINE_RIGHT = 0.5
"""Least share of an object's outline that is right: it is a pixel wide, so a shift by half a pixel at 32 leaves 0.4 to
0.6, and one by a pixel 0.2 to 0.3."""


@dataclass(frozen=True)
class Condition:
    """One way from a picture to another, both (size, size, 3) uint8."""

    source: np.ndarray
    instruction: str
    target: np.ndarray


@dataclass(frozen=True)
class MapVerdict:
    """How far outlines or a label map are right."""

    share: float
    """Of the pixels that belong to an object here or in the right picture, those that are equal; of the object where
    this is least, with all that is drawn nearest to it."""
    right: bool
    """Whether that is enough (`OUTLINE_RIGHT`, `LABELS_RIGHT`), and not more with another shape or size of an object.
    The outlines of a small circle and a small square share 0.8 of their pixels at 32, and all of them at 24."""


# --- making ---------------------------------------------------------------------------------------------------------


def outline(scene: Scene, size: int) -> np.ndarray:
    """The contours of a scene in black on white, one pixel wide for each 32 of the side, (size, size, 3) uint8."""
    lines = _lines(_classes(scene, size))
    return np.repeat(np.where(lines, 0, 255)[:, :, None], 3, axis=2).astype(np.uint8)


def label_map(scene: Scene, size: int) -> np.ndarray:
    """One flat colour for each shape, `LABELS`, on black, whatever its colour and size; (size, size, 3) uint8."""
    return _PALETTE[_classes(scene, size)].astype(np.uint8)


def condition(scene: Scene, seed: int, index: int, size: int) -> Condition:
    """The way that belongs to one key: from the picture of a scene or to it, over outlines or labels."""
    draw = random.Random(fold("shapes", "condition", seed, split_of(kinds_of(scene)), index)).random
    instruction, made = pick([("draw the outlines", outline), ("draw the labels", label_map)], draw)
    picture, drawn = render(scene, size), made(scene, size)
    if draw() < 0.5:
        return Condition(picture, instruction, drawn)
    return Condition(drawn, f"paint {describe(scene)}", picture)


_PALETTE = np.array([(0, 0, 0), *LABELS.values()])  # (5, 3)


def _classes(scene: Scene, size: int) -> np.ndarray:
    """(size, size) ints: 0, or 1 + the number of the shape that covers at least half of the pixel."""
    classes = np.zeros((size, size), dtype=np.int64)
    for thing in scene.objects:
        kind = thing.kind
        rows, columns, counts = coverage(kind.shape, SIZES[kind.size], thing.x, thing.y, size)
        classes[rows, columns] = np.where(counts >= 32, 1 + list(SHAPES).index(kind.shape), classes[rows, columns])
    return classes


def _lines(classes: np.ndarray) -> np.ndarray:
    """(size, size) bool: the pixels of objects with one within reach that is of none."""
    inner = classes > 0
    for _ in range(max(1, round(len(classes) / 32))):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return (classes > 0) & ~inner


# --- judging --------------------------------------------------------------------------------------------------------


def outline_verdict(picture: np.ndarray | torch.Tensor, scene: Scene) -> MapVerdict:
    """Whether a picture is the outlines of a scene; a pixel with all channels below the middle is of a line.

    Raises:
        UserError: a picture of another type or shape than `read_picture` takes.
    """
    array = pixels(picture)
    return _verdict((array.max(axis=2) < 128).astype(np.int64), scene, True, OUTLINE_RIGHT)


def label_map_verdict(picture: np.ndarray | torch.Tensor, scene: Scene) -> MapVerdict:
    """Whether a picture is the label map of a scene; each pixel counts as the nearest of `LABELS` and black.

    Raises:
        UserError: a picture of another type or shape than `read_picture` takes.
    """
    array = pixels(picture)
    nearest = ((array[:, :, None] - _PALETTE) ** 2).sum(axis=3).argmin(axis=2)
    return _verdict(nearest, scene, False, LABELS_RIGHT)


def painting_verdict(picture: np.ndarray | torch.Tensor, scene: Scene) -> bool:
    """Whether a picture shows exactly the objects of a scene at their places, as outlines and caption say.

    Raises:
        UserError: a picture of another type or shape.
    """
    found = read_picture(picture)
    return len(found) == len(scene.objects) and all(
        any(same_kind(one, thing.kind) and same_place(one, thing.x, thing.y) for one in found)
        for thing in scene.objects
    )


def _verdict(drawn: np.ndarray, scene: Scene, lines: bool, enough: float) -> MapVerdict:
    """Compares what is drawn, object by object: each pixel is that of the object whose box is nearest."""
    size = len(drawn)
    grid = (np.arange(size) + 0.5) / size
    distances = []
    for thing in scene.objects:
        width, height = box(thing.kind.shape, SIZES[thing.kind.size])
        across, down = abs(grid - thing.x) - 0.5 * width, abs(grid - thing.y) - 0.5 * height
        distances.append(np.maximum(across[None, :], down[:, None]))
    nearest = np.argmin(distances, axis=0)
    least, right = 1.0, True
    for number, thing in enumerate(scene.objects):
        mine = nearest == number

        def share(shape: str, length: str, thing: Object = thing, mine: np.ndarray = mine) -> float:
            """Of the pixels that either has, those that are equal, were the object of this shape and size."""
            classes = _classes(Scene((replace(thing, kind=Kind(length, thing.kind.colour, shape)),)), size)
            wanted = _lines(classes).astype(np.int64) if lines else classes
            return float((drawn == wanted)[mine & ((drawn > 0) | (wanted > 0))].mean())

        own = share(thing.kind.shape, thing.kind.size)
        others = [(shape, length) for shape in SHAPES for length in SIZES]
        others.remove((thing.kind.shape, thing.kind.size))
        least = min(least, own)
        right = right and own >= enough and own >= max(share(*other) for other in others)
    return MapVerdict(least, right)
