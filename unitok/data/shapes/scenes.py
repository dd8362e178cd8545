"""`shapes`: the embedded data set. Captioned scenes of one to three objects, rendered on the fly from a seed.

    a small red circle
    a large blue square right of a small red circle
    a large blue square right of a small red circle and above a small black cross

Every picture has one canonical caption, so that "the caption of a picture" is a function: the objects of a scene are
named in the order large before small, then by colour name (colours never repeat in a scene, so there are no ties). The
first is the subject, and each relation is between the subject and one other object. In a scene of three, the others
stand along different axes of the subject (an L), so both relations are always clear.

Train and held-out scenes differ in their *combinations*. A kind is one (size, colour, shape). A quarter of the 64 kinds
is held out alone, of each size and colour one shape; a tenth of the pairs of kinds is held out by a hash of their
names. A train scene contains no held-out pair and, when it has one object, no held-out kind; a held-out scene (split
"val") contains at least one. Held-out kinds still occur in train scenes of two and three objects, so every word is
learned in every role.

The split "val" has 48 records with as many captions: scenes of one, two and three objects take turns, 16 of each, for
there are no more captions of one held-out object. Any first part of it is balanced too.

Scenes and pixels are the same on every machine and Python version: scenes come from `random.Random(...).random()`
alone, and pixels from + - * and comparisons alone (a fixed grid of sub-pixel samples, mixed in integers).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np

from ...seeding import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Far apart from each other also when mixed with the white background, as blurred edges are (at least 19 degrees as seen
# from white, at least 110 in RGB distance). Pink and grey are missing because they are red and black, blurred.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 20, 50),
    "green": (20, 170, 50),
    "blue": (40, 60, 225),
    "yellow": (250, 230, 0),
    "purple": (150, 40, 170),
    "orange": (250, 120, 0),
    "black": (20, 20, 20),
    "cyan": (50, 205, 230),
}
# Width and height of each shape in diameters. With equal boxes a square has twice the area of a triangle; these factors
# bring the areas together (0.79, 0.81, 0.59, 0.69), so that area says the size and outline says the shape.
SHAPES: dict[str, tuple[float, float]] = {
    "circle": (1.0, 1.0),
    "square": (0.9, 0.9),
    "triangle": (1.12, 1.05),
    "cross": (1.08, 1.08),
}
CROSS_ARM = 0.36
"""Thickness of a cross's arm in widths of the cross."""
SIZES: dict[str, float] = {"small": 0.22, "large": 0.36}
"""Diameter as a share of the canvas: 7 and 11.5 pixels at 32."""
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Direction from the other object to the subject as (x, y); y points down."""

LATTICE = 16
"""Centres lie on a lattice of this many steps a side (2 pixels at 32). So the same object recurs pixel by pixel, and
what a small model has to learn in minutes is the scene, not sub-pixel offsets."""
BORDER = 0.035
"""Least distance of an object to the border, as a share of the canvas (1.1 pixels at 32)."""
GAP = 0.065
"""Least distance of two objects' boxes along one axis (2.1 pixels at 32)."""
SLANT = 0.5
"""Largest offset across a relation's axis, as a share of the offset along it."""
COUNT_SHARES = (0.5, 0.35, 0.15)
"""Share of train scenes with one, two, three objects. Single objects teach the words, the others the relations."""
HELD_OUT_SHARE = 0.1
"""Of the pairs of kinds."""
MIN_SIZE = 24
"""Smallest canvas in pixels; below it, gaps are under 1.5 pixels and a cross has no arms."""
TRAIN_LENGTH = 1_000_000_000
"""Length of the endless split, only so that it has one."""

_SAMPLES = 8  # per pixel and axis: 65 grey levels at an edge
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Kind:
    """What an object is, without its place."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Object:
    """A kind at a place: the centre of its box, x to the right and y down, as shares of the canvas."""

    kind: Kind
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One to three objects in caption order."""

    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Facts:
    """What a caption claims: these kinds, and for each relation (subject, relation, other) with indices into kinds."""

    kinds: tuple[Kind, ...]
    relations: tuple[tuple[int, str, int], ...]


KINDS: tuple[Kind, ...] = tuple(Kind(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES)
VAL_LENGTH = 3 * len(KINDS) // 4
"""Records of "val", each with a caption of its own; of a longer split, each so many in a row have."""


# --- combinations ---------------------------------------------------------------------------------------------------


@cache
def is_held_out(*kinds: Kind) -> bool:
    """Whether one kind alone, or an unordered pair of kinds, is held out. Depends on the names alone."""
    if len(kinds) == 1:
        return kinds[0] in _held_out_alone()
    names = sorted(str(kind) for kind in kinds)
    return fold("shapes", "kept back", *names) < HELD_OUT_SHARE * 2**63


@cache
def _held_out_alone() -> frozenset[Kind]:
    """Kinds of which no single one stands in a train scene: of each size and colour one shape, of all shapes as many.

    The order follows no rule that a model could learn instead of reading the caption. (docs/log.md, 2026-11-25.)"""
    shapes, held_out = list(SHAPES), set()
    for size in SIZES:
        colours = sorted(COLOURS, key=lambda colour: fold("shapes", "alone", size, colour))
        for place, colour in enumerate(colours):
            held_out.add(Kind(size, colour, shapes[place % len(shapes)]))
    return frozenset(held_out)


def split_of(kinds: tuple[Kind, ...]) -> str:
    """The split that a scene of these kinds belongs to: "train" or "val"."""
    held_out = is_held_out(kinds[0]) if len(kinds) == 1 else any(is_held_out(*pair) for pair in combinations(kinds, 2))
    return "val" if held_out else "train"


# --- scenes ---------------------------------------------------------------------------------------------------------


def caption_order(kind: Kind) -> tuple[float, str, str]:
    """Sort key of the order in which a caption names its objects: large before small, then by colour name."""
    return (-SIZES[kind.size], kind.colour, kind.shape)


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of one key."""
    if split == "val":
        return _val_scenes(seed, index // VAL_LENGTH)[index % VAL_LENGTH]
    draw = random.Random(fold("shapes", seed, split, index)).random
    u = draw()
    return _draw_scene(draw, 1 + (u >= COUNT_SHARES[0]) + (u >= COUNT_SHARES[0] + COUNT_SHARES[1]), split)


@lru_cache(maxsize=32)
def _val_scenes(seed: int, number: int) -> tuple[Scene, ...]:
    """`VAL_LENGTH` held-out scenes of one, two, three, one, two, ... objects, no two with the same caption."""
    draw = random.Random(fold("shapes", seed, "val", number)).random
    scenes: dict[str, Scene] = {}
    while len(scenes) < VAL_LENGTH:
        scene = _draw_scene(draw, 1 + len(scenes) % 3, "val")
        scenes.setdefault(describe(scene), scene)
    return tuple(scenes.values())


def _draw_scene(draw: Callable[[], float], count: int, split: str) -> Scene:
    while True:
        kinds = tuple(sorted((KINDS[int(draw() * len(KINDS))] for _ in range(count)), key=caption_order))
        if len({kind.colour for kind in kinds}) == count and split_of(kinds) == split:
            break
    places = _places(kinds, draw)
    return Scene(tuple(Object(kind, x, y) for kind, (x, y) in zip(kinds, places, strict=True)))


def _places(kinds: tuple[Kind, ...], draw: Callable[[], float]) -> list[list[float]]:
    """Random centres on the lattice under the rules of this module: borders, gaps and clear relations."""
    extents = [box(kind.shape, SIZES[kind.size]) for kind in kinds]
    first_axis = int(draw() * 2)
    while True:
        places = [[_spread(draw, [extent[axis]])[0] for axis in (0, 1)] for extent in extents]
        for other in range(1, len(kinds)):
            # The second object stands along the first axis of the subject, the third along the other one: each time,
            # the two are placed together along that axis, in either order.
            axis = first_axis if other == 1 else 1 - first_axis
            order = [0, other] if draw() < 0.5 else [other, 0]
            for i, place in zip(order, _spread(draw, [extents[i][axis] for i in order]), strict=True):
                places[i][axis] = place
        places = [[int(centre * LATTICE + 0.5) / LATTICE for centre in place] for place in places]
        if _apart(places, extents) and _clear(places, first_axis):
            return places


def _spread(draw: Callable[[], float], extents: list[float]) -> list[float]:
    """Centres of things of these extents along one axis, in this order, with borders and gaps kept."""
    room = 1 - 2 * BORDER + GAP
    for extent in extents:  # not sum(): from Python 3.12 on, it rounds floats otherwise
        room -= extent + GAP
    places, used = [], BORDER
    for extent, slack in zip(extents, sorted(draw() for _ in extents), strict=True):
        places.append(used + slack * room + 0.5 * extent)
        used += extent + GAP
    return places


def _apart(places: list[list[float]], extents: list[tuple[float, float]]) -> bool:
    """Whether all boxes keep the border and are a gap apart."""
    for place, extent in zip(places, extents, strict=True):
        if any(min(place[i], 1 - place[i]) < 0.5 * extent[i] + BORDER for i in (0, 1)):
            return False
    return all(
        any(abs(places[a][i] - places[b][i]) >= 0.5 * (extents[a][i] + extents[b][i]) + GAP for i in (0, 1))
        for a, b in combinations(range(len(places)), 2)
    )


def _clear(places: list[list[float]], first_axis: int) -> bool:
    """Whether each relation's axis dominates."""
    for other in range(1, len(places)):
        axis = first_axis if other == 1 else 1 - first_axis
        offset = [abs(places[0][i] - places[other][i]) for i in (0, 1)]
        if offset[1 - axis] > SLANT * offset[axis]:
            return False
    return True


def is_clear(subject: Object, other: Object) -> bool:
    """Whether one axis dominates, as it does in captions."""
    across, along = sorted([abs(subject.x - other.x), abs(subject.y - other.y)])
    return across <= SLANT * along


def is_orderly(scene: Scene) -> bool:
    """Whether no colour comes twice, borders and gaps are kept, and each relation of the caption is clear."""
    things = scene.objects
    extents = [box(thing.kind.shape, SIZES[thing.kind.size]) for thing in things]
    return (
        len({thing.kind.colour for thing in things}) == len(things)
        and _apart([[thing.x, thing.y] for thing in things], extents)
        and all(is_clear(things[0], other) for other in things[1:])
    )


def in_order(objects: Iterable[Object]) -> Scene:
    """The scene of these objects, in caption order."""
    return Scene(tuple(sorted(objects, key=lambda thing: (*caption_order(thing.kind), thing.x, thing.y))))


def kinds_of(scene: Scene) -> tuple[Kind, ...]:
    return tuple(thing.kind for thing in scene.objects)


# --- pictures -------------------------------------------------------------------------------------------------------


def box(shape: str, diameter: float) -> tuple[float, float]:
    """Width and height of a shape, in the unit of the diameter."""
    width, height = SHAPES[shape]
    return width * diameter, height * diameter


def coverage(shape: str, diameter: float, x: float, y: float, size: int) -> tuple[slice, slice, np.ndarray]:
    """How much of each pixel a shape covers; diameter and centre are shares of the canvas of `size` pixels.

    Returns (rows, columns, (h, w) int64 counts of covered samples out of 64) for the shape's box, cut to the canvas.
    """
    width, height = box(shape, diameter)
    rows = slice(max(0, int((y - 0.5 * height) * size)), min(size, int((y + 0.5 * height) * size) + 1))
    columns = slice(max(0, int((x - 0.5 * width) * size)), min(size, int((x + 0.5 * width) * size) + 1))
    # Sample k of a pixel lies at (k + 0.5) / _SAMPLES of it. Offsets from the centre in samples: (h, 1), (1, w).
    scale = float(size * _SAMPLES)
    dy = (np.arange(rows.start * _SAMPLES, rows.stop * _SAMPLES) + 0.5 - y * scale)[:, None]
    dx = (np.arange(columns.start * _SAMPLES, columns.stop * _SAMPLES) + 0.5 - x * scale)[None, :]
    w, h = width * scale, height * scale
    if shape == "circle":
        inside = dx * dx + dy * dy <= 0.25 * w * w
    elif shape == "square":
        inside = (abs(dx) <= 0.5 * w) & (abs(dy) <= 0.5 * h)
    elif shape == "triangle":  # apex up
        inside = (abs(dx) * (2 * h) <= (dy + 0.5 * h) * w) & (dy <= 0.5 * h)
    else:
        arm = 0.5 * CROSS_ARM * w
        inside = ((abs(dx) <= arm) & (abs(dy) <= 0.5 * h)) | ((abs(dx) <= 0.5 * w) & (abs(dy) <= arm))
    samples = inside.reshape(rows.stop - rows.start, _SAMPLES, columns.stop - columns.start, _SAMPLES)
    return rows, columns, samples.sum(axis=(1, 3))


def render(scene: Scene, size: int) -> np.ndarray:
    """The picture of a scene on white, (size, size, 3) uint8."""
    picture = np.full((size, size, 3), 255, dtype=np.int64)
    total = _SAMPLES * _SAMPLES
    for thing in scene.objects:
        kind = thing.kind
        rows, columns, counts = coverage(kind.shape, SIZES[kind.size], thing.x, thing.y, size)
        colour = np.array(COLOURS[kind.colour])
        counts = counts[:, :, None]
        picture[rows, columns] = (picture[rows, columns] * (total - counts) + colour * counts + total // 2) // total
    return picture.astype(np.uint8)


# --- captions -------------------------------------------------------------------------------------------------------


def relation(subject: Object, other: Object) -> str:
    """The relation of two objects along the axis on which they are further apart."""
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def holds(name: str, dx: float, dy: float) -> bool:
    """Whether a relation is true when the subject lies at (dx, dy) from the other: at least as far along as across."""
    x, y = RELATIONS[name]
    along, across = (x * dx, abs(dy)) if x else (y * dy, abs(dx))
    return along > 0 and along >= across


def describe(scene: Scene) -> str:
    """The canonical caption of a scene, whatever the order of its objects."""
    subject, *others = in_order(scene.objects).objects
    return str(subject.kind) + " and".join(f" {relation(subject, other)} {other.kind}" for other in others)


def parse(caption: str) -> Facts | None:
    """What a caption claims, or None when it is not a sentence of the language.

    Any order of the objects is a sentence, canonical or not. White space is free, letter case is not.
    """
    words = caption.split()
    kinds: list[Kind] = []
    relations: list[tuple[int, str, int]] = []
    while True:
        match words[:4]:
            case ["a", size, colour, shape] if size in SIZES and colour in COLOURS and shape in SHAPES:
                kinds.append(Kind(size, colour, shape))
            case _:
                return None
        words = words[4:]
        if not words:
            return Facts(tuple(kinds), tuple(relations))
        if len(kinds) == 3:
            return None
        if len(kinds) == 2:
            if words[0] != "and":
                return None
            words = words[1:]
        name = next((name for name in RELATIONS if words[: len(name.split())] == name.split()), None)
        if name is None:
            return None
        relations.append((0, name, len(kinds)))
        words = words[len(name.split()) :]


def matches(facts: Facts, scene: Scene) -> bool:
    """Whether everything a caption claims is true of a scene, and names all of its objects."""
    return len(facts.kinds) == len(scene.objects) and any(
        all(thing.kind == kind for thing, kind in zip(things, facts.kinds, strict=True))
        and all(holds(name, things[i].x - things[j].x, things[i].y - things[j].y) for i, name, j in facts.relations)
        for things in permutations(scene.objects)
    )
