"""Phrases about objects of `shapes` scenes and the boxes of these objects, and who judges boxes and layouts.

    the red circle                               one box, or none where there is no such object
    the small objects, the circles, the small circles
    the object left of the blue square, the objects left of the blue square

A phrase names exactly the objects whose boxes it has. A relation is used only where it is clearly true or clearly false
of every object, see `standing`. A box is [left, top, right, bottom] as shares of the canvas; boxes come in the order in
which the caption names the objects. Phrases are the same on every machine and Python version, as scenes are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...seeding import fold
from .checker import read_picture, same_kind
from .naming import GROUP, NAMINGS, PLURALS, THING, Draw, near_names, one_of, pick, standing, such, unique_names
from .scenes import (
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Object,
    Scene,
    box,
    holds,
    kinds_of,
    parse,
    relation,
    split_of,
)

Box = list[float]
"""[left, top, right, bottom] as shares of the canvas."""

EMPTY = 0.15
"""Share of phrases that no object is meant by."""
ENOUGH = 0.5
"""Least overlap (intersection over union) of a box with the right one."""


@dataclass(frozen=True)
class Grounding:
    """A phrase with boxes, a description with its box, and a caption with all boxes."""

    phrase: str
    boxes: list[Box]
    """Of exactly the objects that the phrase names; empty where there is none."""
    description: str
    """The kind of one object, such as "a small red circle"."""
    box: Box
    """Of that object."""
    named: list[str | Box]
    """The caption in pieces, each ending in a noun phrase and followed by its box; the texts join to the caption."""


# --- making ---------------------------------------------------------------------------------------------------------


def ground(scene: Scene, seed: int, index: int) -> Grounding:
    """The phrase and the description of a scene that belong to one key."""
    draw = random.Random(fold("shapes", "ground", seed, split_of(kinds_of(scene)), index)).random
    phrase, things = _phrase(scene, draw)
    thing = pick(scene.objects, draw)
    return Grounding(
        phrase=phrase,
        boxes=[box_of(one) for one in things],
        description=str(thing.kind),
        box=box_of(thing),
        named=named_boxes(scene),
    )


def box_of(thing: Object) -> Box:
    """The box of an object."""
    return _box(thing.kind, thing.x, thing.y)


def named_boxes(scene: Scene) -> list[str | Box]:
    """The caption of a scene in caption order with a box behind each noun phrase."""
    subject, *others = scene.objects
    named: list[str | Box] = [str(subject.kind), box_of(subject)]
    for number, other in enumerate(others):
        named += [f"{' and' * (number > 0)} {relation(subject, other)} {other.kind}", box_of(other)]
    return named


def _phrase(scene: Scene, draw: Draw) -> tuple[str, list[Object]]:
    empty = draw() < EMPTY
    while True:
        named = pick((_one, _group, _relation), draw)(scene, draw)
        numbers = sorted({len(things) for _, things in named if (not things) == empty})
        if numbers:  # else nothing of this kind is clear, or nothing is missing: another kind
            number = pick(numbers, draw)
            return pick([one for one in named if len(one[1]) == number], draw)


def _one(scene: Scene, draw: Draw) -> list[tuple[str, list[Object]]]:
    by = pick(NAMINGS, draw)
    there = [(f"the {name}", [thing]) for thing in scene.objects for name in unique_names(thing, scene, [by])]
    return there + [(f"the {name}", []) for name in near_names(scene, by)]


def _group(scene: Scene, draw: Draw) -> list[tuple[str, list[Object]]]:
    sizes = ["", *(f"{size} " for size in SIZES)]
    names = [f"{size}{what}" for size in sizes for what in ("objects", *(PLURALS[shape] for shape in SHAPES))]
    return [(f"the {name}", such(name, scene)) for name in names]


def _relation(scene: Scene, draw: Draw) -> list[tuple[str, list[Object]]]:
    found = []
    for other in scene.objects:
        for name in unique_names(other, scene):
            for side in RELATIONS:
                things = standing(side, other, scene)
                if things is not None:
                    found.append((f"the {'object' if len(things) < 2 else 'objects'} {side} the {name}", things))
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def boxes_of(phrase: str, scene: Scene) -> list[Box] | None:
    """The boxes of the objects that a phrase names; `ground` has no part in it.

    White space is free, letter case is not. None when the text is no phrase of the language, or says "the" of one
    object where there are several.
    """
    plain = " ".join(phrase.split())
    if match := re.fullmatch(f"the ({GROUP})", plain):
        return [box_of(thing) for thing in such(match[1], scene)]
    if match := re.fullmatch(f"the ({THING})", plain):
        things, single = such(match[1], scene), True
    elif match := re.fullmatch(f"the (objects?) ({one_of(RELATIONS)}) the ({THING})", plain):
        others, single = such(match[3], scene), match[1] == "object"
        if len(others) != 1:
            return None
        x, y = others[0].x, others[0].y
        things = [thing for thing in scene.objects if holds(match[2], thing.x - x, thing.y - y)]
    else:
        return None
    return None if single and len(things) > 1 else [box_of(thing) for thing in things]


# --- judging --------------------------------------------------------------------------------------------------------


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where one of them has no area."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def boxes_right(written: Sequence[Sequence[float]], right: Sequence[Sequence[float]], iou: float = ENOUGH) -> bool:
    """Whether two lists hold the same boxes, in any order: as many, and one to one with at least this overlap."""
    if len(written) != len(right):
        return False
    near = [[j for j, one in enumerate(right) if overlap(box, one) >= iou] for box in written]
    partner: dict[int, int] = {}
    """Number of a right box -> that of the written one."""

    def find(i: int, tried: set[int]) -> bool:
        """A partner for a written box, for which others may have to change theirs."""
        for j in near[i]:
            if j not in tried:
                tried.add(j)
                if j not in partner or find(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    return all(find(i, set()) for i in range(len(written)))


def layout_verdict(picture: np.ndarray | torch.Tensor, named: Sequence[str | Sequence[float]]) -> list[bool]:
    """Whether each box of a caption with boxes holds an object of its kind, whose own box overlaps enough with it.

    Args:
        picture: uint8, as `read_picture` takes it.
        named: texts and boxes in turns, as in `Grounding`; a box behind a text that ends in no kind is wrong.

    Returns:
        One value for each box, in order.

    Raises:
        UserError: a picture of another type or shape.
    """
    found, verdicts, text = read_picture(picture), [], ""
    for part in named:
        if isinstance(part, str):
            text = part
            continue
        facts = parse(" ".join(text.split()[-4:]))
        kind, text = facts.kinds[0] if facts else None, ""
        verdicts.append(
            kind is not None
            and any(same_kind(t, kind) and overlap(_box(kind, t.x, t.y), part) >= ENOUGH for t in found)
        )
    return verdicts


def _box(kind: Kind, x: float, y: float) -> Box:
    width, height = box(kind.shape, SIZES[kind.size])
    return [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height]
