"""Questions about `shapes` scenes, with answers of one word that are exact.

    how many objects are there                           two
    how many circles are there                           zero
    how many large objects are there                     two
    what colour is the large circle                      red
    is there a small blue square                         no
    is the red circle left of the large square           yes

"The" names one object of the scene, by its shape alone or with its size, its colour or both. A relation is asked only
of two objects that stand clearly along one axis, and a false one is false in every sense: of an object that is left of
another and a little above it, "right of" and "below" are asked as false, "above" is not asked.

The words of a question say little about its answer. "yes" and "no" are drawn first, the words after that. A false "is
there" differs in one word from an object of the scene, and where the scene has several objects, half of these take all
words from the scene. It names a kind that such a scene may show: else a scene of one object, which never shows a
held-out kind in training, would teach that held-out kinds are answered with "no". Counts above one are rare in scenes,
so they are asked for where there are such.

Questions are the same on every machine and Python version, as scenes are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations
from typing import TypeVar

from ...seeding import fold
from .scenes import COLOURS, KINDS, RELATIONS, SHAPES, SIZES, SLANT, Kind, Object, Scene, holds, relation, split_of

KINDS_OF_QUESTION = ("count", "colour", "presence", "relation")
NUMBERS = ("zero", "one", "two", "three")
"""Answers to "how many"."""
ALONE = (0.2, 0.4, 0.4, 0.0)
"""Share of each kind of question about a scene of one object, which has no relation."""
SEVERAL = (0.3, 0.15, 0.15, 0.4)
"""The same for two and three objects. With `ALONE`, each kind has 20 to 28 % of the questions in both splits."""
COUNT_WEIGHTS = (1, 1, 8, 8)
"""How often "how many circles" is asked for the answer zero, one, two, three where a scene allows several answers."""
NAMINGS = (("shape",), ("size", "shape"), ("colour", "shape"), ("size", "colour", "shape"))
"""Attributes by which an object may be named."""
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

Draw = Callable[[], float]
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question about a scene. Text and answer are lower-case words without punctuation marks."""

    kind: str
    """One of `KINDS_OF_QUESTION`."""
    text: str
    answer: str


# --- asking ---------------------------------------------------------------------------------------------------------


def ask(scene: Scene, seed: int, index: int) -> Question:
    """The question about a scene that belongs to one key. Another key gives another question about the same scene."""
    kinds = tuple(thing.kind for thing in scene.objects)
    draw = random.Random(fold("shapes", "question", seed, split_of(kinds), index)).random
    makers = (_count, _colour, _presence, _relation)
    while True:
        u = draw()
        number = sum(u >= edge for edge in list(accumulate(ALONE if len(kinds) == 1 else SEVERAL))[:-1])
        made = makers[number](scene, draw)
        if made is not None:  # no object can be named without its colour, or no relation is clear: another kind
            return Question(KINDS_OF_QUESTION[number], *made)


def _count(scene: Scene, draw: Draw) -> tuple[str, str]:
    kinds = [thing.kind for thing in scene.objects]
    by_shape = {PLURALS[shape]: sum(kind.shape == shape for kind in kinds) for shape in SHAPES}
    by_size = {f"{size} objects": sum(kind.size == size for kind in kinds) for size in SIZES}
    counts = _pick([{"objects": len(kinds)}, by_shape, by_size], draw)
    number = _pick([n for n in sorted(set(counts.values())) for _ in range(COUNT_WEIGHTS[n])], draw)
    what = _pick([what for what, n in counts.items() if n == number], draw)
    return f"how many {what} are there", NUMBERS[number]


def _colour(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    things = [
        (name, thing.kind.colour)
        for thing in scene.objects
        for name in _unique_names(thing, scene, (by for by in NAMINGS if "colour" not in by))
    ]
    if not things:
        return None
    name, colour = _pick(things, draw)
    return f"what colour is the {name}", colour


def _presence(scene: Scene, draw: Draw) -> tuple[str, str]:
    kinds = tuple(thing.kind for thing in scene.objects)
    by = _pick(NAMINGS, draw)
    present = [_name(kind, by) for kind in kinds]
    if draw() < 0.5:
        name, answer = _pick(present, draw), "yes"
    else:
        possible = [kind for kind in KINDS if len(kinds) > 1 or split_of((kind,)) == split_of(kinds)]
        absent = [name for kind in possible if (name := _name(kind, by)) not in present]
        near = [name for name in absent if any(_differing(name, other) == 1 for other in present)]
        words = {word for name in present for word in name.split()}
        mixed = [name for name in near if words.issuperset(name.split())]
        name, answer = _pick(mixed if mixed and draw() < 0.5 else near, draw), "no"
    return f"is there {'an' if name[0] in 'aeiou' else 'a'} {name}", answer


def _relation(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    pairs = [
        (subject, other)
        for subject, other in permutations(scene.objects, 2)
        if _is_clear(subject, other) and _unique_names(subject, scene) and _unique_names(other, scene)
    ]
    if not pairs:
        return None
    subject, other = _pick(pairs, draw)
    true = relation(subject, other)
    if draw() < 0.5:
        name, answer = true, "yes"
    else:
        dx, dy = subject.x - other.x, subject.y - other.y
        name, answer = _pick([name for name, (x, y) in RELATIONS.items() if x * dx + y * dy <= 0], draw), "no"
    first, second = _pick(_unique_names(subject, scene), draw), _pick(_unique_names(other, scene), draw)
    return f"is the {first} {name} the {second}", answer


def _pick(items: Sequence[T], draw: Draw) -> T:
    return items[int(draw() * len(items))]


def _name(kind: Kind, by: Sequence[str]) -> str:
    return " ".join(getattr(kind, attribute) for attribute in by)


def _unique_names(thing: Object, scene: Scene, namings: Iterable[Sequence[str]] = NAMINGS) -> list[str]:
    """The names that no other object of the scene has."""
    others = [other.kind for other in scene.objects if other is not thing]
    return [_name(thing.kind, by) for by in namings if all(_name(thing.kind, by) != _name(k, by) for k in others)]


def _differing(name: str, other: str) -> int:
    """In how many words two names by the same attributes differ."""
    return sum(a != b for a, b in zip(name.split(), other.split(), strict=True))


def _is_clear(subject: Object, other: Object) -> bool:
    """Whether one axis dominates, as it does in captions."""
    across, along = sorted([abs(subject.x - other.x), abs(subject.y - other.y)])
    return across <= SLANT * along


# --- answering ------------------------------------------------------------------------------------------------------


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_PLAIN = f"(?:{_one_of(SIZES)} )?{_one_of(SHAPES)}"
_THING = f"(?:{_one_of(SIZES)} )?(?:{_one_of(COLOURS)} )?{_one_of(SHAPES)}"
_PATTERNS = {
    "count": f"how many ((?:{_one_of(SIZES)} )?objects|{_one_of(PLURALS.values())}) are there",
    "colour": f"what colour is the ({_PLAIN})",
    "presence": f"is there (?:an(?= [aeiou])|a(?! [aeiou])) ({_THING})",
    "relation": f"is the ({_THING}) ({_one_of(RELATIONS)}) the ({_THING})",
}


def kind_of(text: str) -> str | None:
    """Which of `KINDS_OF_QUESTION` a text is, or None when it is no question of the language.

    White space is free, letter case is not.
    """
    plain = " ".join(text.split())
    return next((kind for kind, pattern in _PATTERNS.items() if re.fullmatch(pattern, plain)), None)


def answer_of(text: str, scene: Scene) -> str | None:
    """The answer to a question as the scene gives it; `ask` has no part in it.

    None when the text is no question of the language, or asks about "the" object where there is none or several such.
    """
    kind = kind_of(text)
    if kind is None:
        return None
    match = re.fullmatch(_PATTERNS[kind], " ".join(text.split()))
    assert match is not None
    parts = match.groups()
    if kind == "count":
        words = {word for word in parts[0].split() if word != "objects"}
        singular = {plural: shape for shape, plural in PLURALS.items()}
        return NUMBERS[len(_such({singular.get(word, word) for word in words}, scene))]
    if kind == "presence":
        return "yes" if _such(set(parts[0].split()), scene) else "no"
    named = [_such(set(part.split()), scene) for part in parts if part not in RELATIONS]
    if any(len(things) != 1 for things in named):
        return None
    if kind == "colour":
        return named[0][0].kind.colour
    [subject], [other] = named
    return "yes" if holds(parts[1], subject.x - other.x, subject.y - other.y) else "no"


def _such(words: set[str], scene: Scene) -> list[Object]:
    """The objects that all of these words are true of."""
    return [t for t in scene.objects if words <= {t.kind.size, t.kind.colour, t.kind.shape}]
