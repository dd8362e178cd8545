"""Captions as people word them: things in any order, a size or a colour left out, with or without a relation.

    a red circle
    a small red circle left of a large blue square
    a yellow triangle and a cross
    an orange circle, a square and a small green cross

Every wording is true of its scene and counts its things; what it leaves out is open, or the order is not the canonical
one. `named` says it again with nothing left out: a model that writes it before it draws decides what was open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from .checker import read_picture, scene_of
from .grounding import Box, box_of
from .naming import Draw
from .scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Object,
    Scene,
    caption_order,
    holds,
    is_clear,
    parse,
    relation,
)

WITH_SIZE = 0.5
"""Share of things whose size is said."""
WITH_COLOUR = 0.85
"""Share of things whose colour is said."""
RELATED = 0.5
"""Share of wordings that say where the first thing is beside the others, where this is clear."""
_LISTS = {1: ("",), 2: ("", " and "), 3: ("", ", ", " and ")}
"""What stands before each of so many things that are only listed."""

_THING = rf"an? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})"
_RELATION = rf"({'|'.join(RELATIONS)})"
_SIDE_BY_SIDE = rf"{_THING} {_RELATION} {_THING}(?: and {_RELATION} {_THING})?"
_LISTED = rf"{_THING}(?:(?:, {_THING})? and {_THING})?"
_FORM = re.compile(f"{_SIDE_BY_SIDE}|{_LISTED}")


@dataclass(frozen=True)
class Wording:
    """What is said of a scene, and what is meant by it."""

    caption: str
    named: list[str | Box]
    """The same with nothing left out, a box behind each thing."""


def word(scene: Scene, draw: Draw) -> Wording:
    """A wording of a scene that is not its canonical caption, by `draw` (numbers from 0 to below 1)."""
    while True:
        things = sorted(scene.objects, key=lambda _: draw())
        clear = all(is_clear(things[0], other) for other in things[1:])
        between = _related(things) if draw() < RELATED and clear else _LISTS[len(things)]
        said = [f"{link}{_said(thing.kind, draw)}" for link, thing in zip(between, things, strict=True)]
        if is_open("".join(said)):
            meant = [(f"{link}{thing.kind}", box_of(thing)) for link, thing in zip(between, things, strict=True)]
            return Wording("".join(said), [part for pair in meant for part in pair])


def _related(things: Sequence[Object]) -> list[str]:
    first, *others = things
    return ["", *(f"{' and' * (number > 0)} {relation(first, other)} " for number, other in enumerate(others))]


def _said(kind: Kind, draw: Draw) -> str:
    words = [kind.size] * (draw() < WITH_SIZE) + [kind.colour] * (draw() < WITH_COLOUR) + [kind.shape]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def shows(picture: np.ndarray | torch.Tensor, text: str) -> bool | None:
    """Whether a picture shows all that a wording says, and no more things; None where the text is no wording.

    Args:
        picture: uint8, as `read_picture` takes it.
        text: white space is free, letter case is not.
    """
    text = " ".join(text.split())
    if not _FORM.fullmatch(text):
        return None
    things = re.findall(_THING, text)
    relations = re.findall(_RELATION, text)
    scene = scene_of(read_picture(picture))
    return (
        scene is not None
        and len(scene.objects) == len(things)
        and any(
            all(
                said in ("", is_)
                for thing, found in zip(things, order, strict=True)
                for said, is_ in zip(thing, (found.kind.size, found.kind.colour, found.kind.shape), strict=True)
            )
            and all(
                holds(name, order[0].x - other.x, order[0].y - other.y)
                for name, other in zip(relations, order[1:], strict=False)
            )
            for order in permutations(scene.objects)
        )
    )


def is_open(text: str) -> bool:
    """Whether a text is a wording, but no canonical caption: one of many ways to say it."""
    facts = parse(text)
    if facts is not None:
        return list(facts.kinds) != sorted(facts.kinds, key=caption_order)
    return _FORM.fullmatch(" ".join(text.split())) is not None
