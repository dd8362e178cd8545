"""Edits of `shapes` scenes: two pictures, the instruction between them, and who judges whether it was followed.

    make the red circle blue                             recolour
    make the small cross large                           resize
    remove the green cross                               remove
    add a small red cross left of the blue square        add
    move the large red circle up                         move, by a quarter of the canvas

The picture after the edit is that of a scene as it was drawn. The scene before it is made from that, backwards, by the
same rules (see `is_orderly`); objects that the instruction does not name keep their places exactly. "The" names an
object of the scene before, as shortly as it can or in full.

An instruction can be applied where it names one object, changes something, and leaves one to three objects of
different colours that lie inside the canvas and apart. Edits are the same on every machine and Python version, as
scenes are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

import numpy as np
import torch

from ...seeding import fold
from .checker import PLACE_TOLERANCE, Found, read_picture, same_kind, same_place
from .naming import THING, Draw, one_of, pick, such, unique_names
from .scenes import (
    COLOURS,
    KINDS,
    LATTICE,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Object,
    Scene,
    box,
    holds,
    in_order,
    is_clear,
    is_orderly,
    kinds_of,
    relation,
    split_of,
)

KINDS_OF_EDIT = ("recolour", "resize", "remove", "add", "move")
SHARES = {
    1: (0.2, 0.3, 0.28, 0.0, 0.22),
    2: (0.15, 0.17, 0.23, 0.3, 0.15),
    3: (0.22, 0.24, 0.0, 0.3, 0.24),
}
"""Share of each kind by the number of objects after the edit: nothing is left before "add" where there is one, and none
more fits before "remove" where there are three. Each kind has 15 to 23 % of the edits in both splits."""
DISTANCE = 0.25
"""How far "move" moves, as a share of the canvas: four steps of the lattice."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TRIES = 50
"""Scenes that are drawn for one kind of edit, until another kind is drawn."""


@dataclass(frozen=True)
class Edit:
    """What leads to a scene."""

    before: Scene
    instruction: str
    """Lower-case words without punctuation marks."""


@dataclass(frozen=True)
class EditVerdict:
    """How a picture follows an instruction. Both are False where the instruction cannot be applied."""

    asked: bool
    """The number of objects is right, and the object that was asked about is as it was asked for, or gone."""
    kept: bool
    """Every other object is there with its kind, at its place (up to `PLACE_TOLERANCE`), and nothing else."""

    @property
    def all(self) -> bool:
        return self.asked and self.kept


# --- making ---------------------------------------------------------------------------------------------------------


def edit(scene: Scene, seed: int, index: int, split: str) -> Edit:
    """The edit that leads to a scene and belongs to one key; "train" has no held-out combination before it either."""
    return edit_to(scene, split, random.Random(fold("shapes", "edit", seed, split, index)).random)


def edit_to(scene: Scene, split: str, draw: Draw, seen: Collection[Scene] = ()) -> Edit:
    """A random edit that leads to a scene, from another scene that is none of `seen` either."""
    makers = (_recolour, _resize, _remove, _add, _move)
    edges = list(accumulate(SHARES[len(scene.objects)]))[:-1]
    while True:
        u = draw()
        maker = makers[sum(u >= edge for edge in edges)]
        for _ in range(TRIES):
            made = maker(scene, draw)
            if made is None or made.before in (scene, *seen) or not is_orderly(made.before):
                continue
            if split == "val" or split_of(kinds_of(made.before)) == split:
                return made


def _recolour(scene: Scene, draw: Draw) -> Edit:
    thing = pick(scene.objects, draw)
    old = replace(thing, kind=replace(thing.kind, colour=pick(list(COLOURS), draw)))
    before = _having(scene, thing, old)
    return Edit(before, f"make the {_called(old, before, draw)} {thing.kind.colour}")


def _resize(scene: Scene, draw: Draw) -> Edit:
    thing = pick(scene.objects, draw)
    old = replace(thing, kind=replace(thing.kind, size=next(size for size in SIZES if size != thing.kind.size)))
    before = _having(scene, thing, old)
    return Edit(before, f"make the {_called(old, before, draw)} {thing.kind.size}")


def _remove(scene: Scene, draw: Draw) -> Edit:
    old = Object(pick(KINDS, draw), *(int(draw() * (LATTICE + 1)) / LATTICE for _ in range(2)))
    before = in_order([*scene.objects, old])
    return Edit(before, f"remove the {_called(old, before, draw)}")


def _add(scene: Scene, draw: Draw) -> Edit | None:
    thing = pick(scene.objects, draw)
    before = Scene(tuple(other for other in scene.objects if other is not thing))
    clear = [other for other in before.objects if is_clear(thing, other)]
    if not clear:
        return None
    other = pick(clear, draw)
    return Edit(before, f"add {thing.kind} {relation(thing, other)} the {_called(other, before, draw)}")


def _move(scene: Scene, draw: Draw) -> Edit:
    thing, name = pick(scene.objects, draw), pick(list(DIRECTIONS), draw)
    x, y = DIRECTIONS[name]
    old = replace(thing, x=thing.x - DISTANCE * x, y=thing.y - DISTANCE * y)
    before = _having(scene, thing, old)
    return Edit(before, f"move the {_called(old, before, draw)} {name}")


def _having(scene: Scene, thing: Object, other: Object) -> Scene:
    """The scene with another object for one of its own."""
    return in_order(other if one is thing else one for one in scene.objects)


def _called(thing: Object, scene: Scene, draw: Draw) -> str:
    """One of the shortest names that only this object has, or the full one."""
    names = unique_names(thing, scene) or [""]  # colours that come twice may leave none: such a scene is drawn anew
    shortest = [name for name in names if len(name.split()) == len(names[0].split())]
    return pick(shortest, draw) if draw() < 0.5 else names[-1]


# --- applying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What an instruction makes of a scene."""

    others: tuple[Object, ...]
    """What it does not name."""
    shown: Callable[[Found], bool]
    """Whether a found object is the one that was asked for or, where that is to be gone, the one that was there."""
    gone: bool = False


_PATTERNS = {
    "recolour": f"make the ({THING}) ({one_of(COLOURS)})",
    "resize": f"make the ({THING}) ({one_of(SIZES)})",
    "remove": f"remove the ({THING})",
    "add": f"add a ({one_of(SIZES)}) ({one_of(COLOURS)}) ({one_of(SHAPES)}) ({one_of(RELATIONS)}) the ({THING})",
    "move": f"move the ({THING}) ({one_of(DIRECTIONS)})",
}


def kind_of_edit(instruction: str) -> str | None:
    """Which of `KINDS_OF_EDIT` a text is, or None when it is no instruction of the language.

    White space is free, letter case is not.
    """
    plain = " ".join(instruction.split())
    return next((kind for kind, pattern in _PATTERNS.items() if re.fullmatch(pattern, plain)), None)


def meant(made: Edit, after: Scene) -> list[Object]:
    """The objects that the instruction of an edit is about, as they stand before and after it: what changes, and what
    it becomes where its place or size is another; what is new, and what it stands beside."""
    old = [thing for thing in made.before.objects if thing not in after.objects]
    new = [thing for thing in after.objects if thing not in made.before.objects]
    if old:
        return [*old, *(thing for thing in new if (thing.x, thing.y, thing.kind.size) != _seat(old[0]))]
    match = re.fullmatch(_PATTERNS["add"], made.instruction)
    assert match is not None, "nothing else leaves all that was there"
    return [*new, *such(match.groups()[-1], made.before)]


def _seat(thing: Object) -> tuple[float, float, str]:
    return thing.x, thing.y, thing.kind.size


def change_of(instruction: str, scene: Scene) -> Change | None:
    """What an instruction makes of a scene, or None when it cannot be applied; `edit` has no part in it."""
    kind = kind_of_edit(instruction)
    if kind is None:
        return None
    match = re.fullmatch(_PATTERNS[kind], " ".join(instruction.split()))
    assert match is not None
    parts = match.groups()
    named = such(parts[-1] if kind == "add" else parts[0], scene)
    if len(named) != 1:
        return None
    [thing] = named
    if kind == "add":
        return _added(Kind(*parts[:3]), parts[3], thing, scene)
    others = tuple(other for other in scene.objects if other is not thing)
    if kind == "remove":
        return Change(others, lambda found: same_kind(found, thing.kind), gone=True) if others else None
    if kind == "move":
        x, y = DIRECTIONS[parts[1]]
        new = replace(thing, x=thing.x + DISTANCE * x, y=thing.y + DISTANCE * y)
    else:
        new = replace(thing, kind=replace(thing.kind, **{"colour" if kind == "recolour" else "size": parts[1]}))
    if new == thing or not _fits(new, others):
        return None
    return Change(others, lambda found: same_kind(found, new.kind) and same_place(found, new.x, new.y))


def _added(kind: Kind, name: str, other: Object, scene: Scene) -> Change | None:
    if len(scene.objects) == 3 or kind.colour in {thing.kind.colour for thing in scene.objects}:
        return None

    def shown(found: Found) -> bool:
        return same_kind(found, kind) and holds(name, found.x - other.x, found.y - other.y)

    return Change(scene.objects, shown)


def _fits(new: Object, others: tuple[Object, ...]) -> bool:
    """Whether an object has a colour of its own and room, up to what a checker's places may be off."""
    things = [new, *others]
    boxes = [[thing.x, thing.y, *box(thing.kind.shape, SIZES[thing.kind.size])] for thing in things]
    slack = PLACE_TOLERANCE
    inside = all(0.5 * one[2 + i] - slack <= one[i] <= 1 - 0.5 * one[2 + i] + slack for one in boxes for i in (0, 1))
    apart = all(
        any(abs(a[i] - b[i]) >= 0.5 * (a[2 + i] + b[2 + i]) - slack for i in (0, 1)) for a, b in combinations(boxes, 2)
    )
    return inside and apart and new.kind.colour not in {other.kind.colour for other in others}


# --- judging --------------------------------------------------------------------------------------------------------


def edit_verdict(picture: np.ndarray | torch.Tensor, before: Scene, instruction: str) -> EditVerdict:
    """Whether a picture shows what an instruction makes of a scene.

    Args:
        picture: uint8, as `read_picture` takes it.
        before: the scene that the instruction was given for.
        instruction: any text.

    Raises:
        UserError: a picture of another type or shape.
    """
    found, change = read_picture(picture), change_of(instruction, before)
    return EditVerdict(False, False) if change is None else judge_change(found, change)


def judge_change(found: list[Found], change: Change) -> EditVerdict:
    """Compares found objects with what an instruction makes of a scene."""
    rest, kept = list(found), True
    for other in change.others:
        match = next((t for t in rest if same_kind(t, other.kind) and same_place(t, other.x, other.y)), None)
        kept = kept and match is not None
        if match is not None:
            rest.remove(match)
    count = len(change.others) + (not change.gone)
    shown = any(change.shown(thing) for thing in rest)
    return EditVerdict(asked=len(found) == count and shown != change.gone, kept=kept and len(found) <= count)
