"""Captions as people word them: things in any order, a size or a colour left out, with or without a relation.

    a red circle
    a small red circle left of a large blue square
    a yellow triangle and a cross
    an orange circle, a square and a small green cross

Every wording is true of its scene and counts its things; what it leaves out is open, or the order is not the canonical
one. A model that learns to write the
canonical caption before it draws (`named`) turns any wording into one that it knows.
"""

from __future__ import annotations

import re
from itertools import permutations

import numpy as np
import torch

from .checker import read_picture, scene_of
from .naming import Draw
from .scenes import COLOURS, RELATIONS, SHAPES, SIZES, Kind, Scene, caption_order, holds, parse, relation

WITH_SIZE = 0.5
"""Share of things whose size is said."""
WITH_COLOUR = 0.85
"""Share of things whose colour is said."""
RELATED = 0.5
"""Share of the wordings of several things that say where the first is beside the others."""

_THING = rf"an? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})"
_RELATION = rf"({'|'.join(RELATIONS)})"
_SIDE_BY_SIDE = rf"{_THING} {_RELATION} {_THING}(?: and {_RELATION} {_THING})?"
_LISTED = rf"{_THING}(?:(?:, {_THING})? and {_THING})?"
_FORM = re.compile(f"{_SIDE_BY_SIDE}|{_LISTED}")


def word(scene: Scene, draw: Draw) -> str:
    """A wording of a scene that is not its canonical caption, by `draw` (numbers from 0 to below 1)."""
    while not is_open(text := _worded(scene, draw)):
        pass
    return text


def _worded(scene: Scene, draw: Draw) -> str:
    first, *others = sorted(scene.objects, key=lambda _: draw())
    subject = _said(first.kind, draw)
    if others and draw() < RELATED:
        return subject + " and".join(f" {relation(first, other)} {_said(other.kind, draw)}" for other in others)
    *between, last = [subject, *(_said(other.kind, draw) for other in others)]
    return f"{', '.join(between)} and {last}" if between else last


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
