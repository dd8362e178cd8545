"""How texts name the objects of a scene, in questions, instructions and phrases alike.

"The" names one object of the scene, by its shape alone or with its size, its colour or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .scenes import COLOURS, KINDS, RELATIONS, SHAPES, SIZES, Kind, Object, Scene, is_clear, kinds_of, split_of

NAMINGS = (("shape",), ("size", "shape"), ("colour", "shape"), ("size", "colour", "shape"))
"""Attributes by which an object may be named."""
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

Draw = Callable[[], float]
T = TypeVar("T")


# --- choosing -------------------------------------------------------------------------------------------------------


def pick(items: Sequence[T], draw: Draw) -> T:
    return items[int(draw() * len(items))]


def name_of(kind: Kind, by: Sequence[str]) -> str:
    return " ".join(getattr(kind, attribute) for attribute in by)


def unique_names(thing: Object, scene: Scene, namings: Iterable[Sequence[str]] = NAMINGS) -> list[str]:
    """The names that no other object of the scene has, short ones first."""
    others = [other.kind for other in scene.objects if other is not thing]
    return [name_of(thing.kind, by) for by in namings if all(name_of(thing.kind, by) != name_of(k, by) for k in others)]


def near_names(scene: Scene, by: Sequence[str]) -> list[str]:
    """Names of no object of the scene that differ in one word from the name of one.

    They name kinds that such a scene may show: else a scene of one object, which never shows a held-out kind in
    training, would teach that held-out kinds are never there.
    """
    kinds = kinds_of(scene)
    present = [name_of(kind, by) for kind in kinds]
    possible = [kind for kind in KINDS if len(kinds) > 1 or split_of((kind,)) == split_of(kinds)]
    absent = [name for kind in possible if (name := name_of(kind, by)) not in present]
    return [name for name in absent if any(_differing(name, other) == 1 for other in present)]


def _differing(name: str, other: str) -> int:
    """In how many words two names by the same attributes differ."""
    return sum(a != b for a, b in zip(name.split(), other.split(), strict=True))


def standing(name: str, reference: Object, scene: Scene) -> list[Object] | None:
    """The objects that stand in a relation to one of the scene, or None where that is not clear of every object.

    It is clearly true along one axis, and clearly false where not even the direction is right: of an object that is
    left of another and a little above it, neither "above" nor its contrary is clear.
    """
    x, y = RELATIONS[name]
    found = []
    for thing in scene.objects:
        along = x * (thing.x - reference.x) + y * (thing.y - reference.y)
        if thing is reference or along <= 0:
            continue
        if not is_clear(thing, reference) or along < max(abs(thing.x - reference.x), abs(thing.y - reference.y)):
            return None
        found.append(thing)
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def one_of(words: Iterable[str]) -> str:
    """A pattern that is one of these words."""
    return f"(?:{'|'.join(words)})"


PLAIN = f"(?:{one_of(SIZES)} )?{one_of(SHAPES)}"
"""Pattern of a name without a colour."""
THING = f"(?:{one_of(SIZES)} )?(?:{one_of(COLOURS)} )?{one_of(SHAPES)}"
"""Pattern of a name."""
GROUP = f"(?:{one_of(SIZES)} )?(?:objects|{one_of(PLURALS.values())})"
"""Pattern of a name of any number of objects."""


def such(name: str, scene: Scene) -> list[Object]:
    """The objects that all words of a name are true of."""
    singular = {plural: shape for shape, plural in PLURALS.items()}
    words = {singular.get(word, word) for word in name.split() if word != "objects"}
    return [t for t in scene.objects if words <= {t.kind.size, t.kind.colour, t.kind.shape}]
