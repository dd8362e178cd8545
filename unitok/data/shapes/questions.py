"""Questions about `shapes` scenes, with answers of a word or two that are exact.

    how many objects are there                               two
    how many circles are there                               zero
    how many small crosses are there                         one
    how many objects are left of the large square            one
    what colour is the large circle                          red
    is there a small blue square                             no
    is the red circle left of the large square               yes
    is the red circle larger than the blue square            no
    which is further left, the circle or the blue square     circle
    where is the red circle                                  top

"The" names one object of the scene, see `naming.py`. A relation is asked only of two objects that stand clearly along
one axis, and a false one is false in every sense: of an object that is left of another and a little above it, "right
of" and "below" are asked as false, "above" is not asked. Likewise "where" is asked only of what stands clearly towards
one side or in the middle, and objects are compared only where they clearly differ.

The words of a question say little about its answer. "yes" and "no" are drawn first, the words after that. A false "is
there" differs in one word from an object of the scene, and where the scene has several objects, half of these take all
words from the scene. Counts above one are rare in scenes, so they are asked for where there are such.

Questions are the same on every machine and Python version, as scenes are.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import accumulate, permutations

from ...seeding import fold
from .naming import (
    GROUP,
    NAMINGS,
    PLAIN,
    PLURALS,
    THING,
    Draw,
    name_of,
    near_names,
    one_of,
    pick,
    standing,
    such,
    unique_names,
)
from .scenes import RELATIONS, SHAPES, SIZES, SLANT, Object, Scene, holds, is_clear, kinds_of, relation, split_of

KINDS_OF_QUESTION = ("count", "colour", "presence", "relation", "compare", "where")
NUMBERS = ("zero", "one", "two", "three")
"""Answers to "how many"."""
ALONE = (0.15, 0.2, 0.2, 0.0, 0.0, 0.45)
"""Share of each kind of question about a scene of one object, which has no relation."""
SEVERAL = (0.18, 0.12, 0.1, 0.22, 0.25, 0.13)
"""The same for two and three objects. With `ALONE`, each kind has 11 to 21 % of the questions in both splits."""
COUNT_WEIGHTS = (1, 1, 8, 8)
"""How often "how many circles" is asked for the answer zero, one, two, three where a scene allows several answers."""
SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
"""Where an object is that stands so from the middle of the canvas."""
MIDDLE = "in the middle"
INNER, OUTER = 1 / 16, 3 / 16
"""Up to `INNER` from the middle along both axes an object is in the middle; at a side it is from `OUTER` on."""
COMPARED = {
    "further left": lambda thing: -thing.x,
    "further right": lambda thing: thing.x,
    "higher": lambda thing: -thing.y,
    "lower": lambda thing: thing.y,
    "larger": lambda thing: SIZES[thing.kind.size],
    "smaller": lambda thing: -SIZES[thing.kind.size],
}
"""What two objects are compared by: the one that the word is true of has more of it."""
APART = 2 / 16
"""Least difference of two objects that are compared, as a share of the canvas: in places, or in diameters."""


@dataclass(frozen=True)
class Question:
    """A question about a scene. Text and answer are lower-case words; the only punctuation mark is the comma behind
    "which is larger" and its like."""

    kind: str
    """One of `KINDS_OF_QUESTION`."""
    text: str
    answer: str


# --- asking ---------------------------------------------------------------------------------------------------------


def ask(scene: Scene, seed: int, index: int) -> Question:
    """The question about a scene that belongs to one key. Another key gives another question about the same scene."""
    kinds = kinds_of(scene)
    draw = random.Random(fold("shapes", "question", seed, split_of(kinds), index)).random
    makers = (_count, _colour, _presence, _relation, _compare, _where)
    edges = list(accumulate(ALONE if len(kinds) == 1 else SEVERAL))[:-1]
    while True:
        u = draw()
        number = sum(u >= edge for edge in edges)
        made = makers[number](scene, draw)
        if made is not None:  # no object can be named without its colour, or no relation is clear: another kind
            return Question(KINDS_OF_QUESTION[number], *made)


def _count(scene: Scene, draw: Draw) -> tuple[str, str]:
    kinds = kinds_of(scene)
    by_shape = {f"{PLURALS[shape]} are there": sum(kind.shape == shape for kind in kinds) for shape in SHAPES}
    by_size = {f"{size} objects are there": sum(kind.size == size for kind in kinds) for size in SIZES}
    by_both = {
        f"{size} {PLURALS[shape]} are there": sum((kind.size, kind.shape) == (size, shape) for kind in kinds)
        for size in SIZES
        for shape in SHAPES
    }
    by_place = {
        f"objects are {name} the {pick(names, draw)}": len(things)
        for other in scene.objects
        if len(kinds) > 1 and (names := unique_names(other, scene))
        for name in RELATIONS
        if (things := standing(name, other, scene)) is not None
    }
    counts = pick(
        [one for one in ({"objects are there": len(kinds)}, by_shape, by_size, by_both, by_place) if one], draw
    )
    number = pick([n for n in sorted(set(counts.values())) for _ in range(COUNT_WEIGHTS[n])], draw)
    what = pick([what for what, n in counts.items() if n == number], draw)
    return f"how many {what}", NUMBERS[number]


def _colour(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    things = [
        (name, thing.kind.colour)
        for thing in scene.objects
        for name in unique_names(thing, scene, (by for by in NAMINGS if "colour" not in by))
    ]
    if not things:
        return None
    name, colour = pick(things, draw)
    return f"what colour is the {name}", colour


def _presence(scene: Scene, draw: Draw) -> tuple[str, str]:
    by = pick(NAMINGS, draw)
    present = [name_of(kind, by) for kind in kinds_of(scene)]
    if draw() < 0.5:
        name, answer = pick(present, draw), "yes"
    else:
        near = near_names(scene, by)
        words = {word for name in present for word in name.split()}
        mixed = [name for name in near if words.issuperset(name.split())]
        name, answer = pick(mixed if mixed and draw() < 0.5 else near, draw), "no"
    return f"is there {'an' if name[0] in 'aeiou' else 'a'} {name}", answer


def _relation(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    pairs = [
        (subject, other)
        for subject, other in permutations(scene.objects, 2)
        if is_clear(subject, other) and unique_names(subject, scene) and unique_names(other, scene)
    ]
    if not pairs:
        return None
    subject, other = pick(pairs, draw)
    true = relation(subject, other)
    if draw() < 0.5:
        name, answer = true, "yes"
    else:
        dx, dy = subject.x - other.x, subject.y - other.y
        name, answer = pick([name for name, (x, y) in RELATIONS.items() if x * dx + y * dy <= 0], draw), "no"
    first, second = pick(unique_names(subject, scene), draw), pick(unique_names(other, scene), draw)
    return f"is the {first} {name} the {second}", answer


def _compare(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    """Which of two objects has more of something; about sizes, half are asked with yes or no."""
    word = pick(list(COMPARED), draw)
    by_size = word in ("larger", "smaller")
    namings = [by for by in NAMINGS if not (by_size and "size" in by)]  # a name must not tell the answer
    measure = COMPARED[word]
    pairs = [
        (more, less)
        for more, less in permutations(scene.objects, 2)
        if measure(more) - measure(less) >= APART
        and unique_names(more, scene, namings)
        and unique_names(less, scene, namings)
    ]
    if not pairs:
        return None
    more, less = (pick(unique_names(thing, scene, namings), draw) for thing in pick(pairs, draw))
    first, second, yes = (more, less, "yes") if draw() < 0.5 else (less, more, "no")
    if by_size and draw() < 0.5:
        return f"is the {first} {word} than the {second}", yes
    return f"which is {word}, the {first} or the {second}", more


def _where(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    things = [thing for thing in scene.objects if unique_names(thing, scene)]
    if not things:
        return None
    thing = pick(things, draw)
    middle = Object(thing.kind, 0.5, 0.5)
    furthest = max(abs(thing.x - 0.5), abs(thing.y - 0.5))
    if furthest <= INNER:
        answer = MIDDLE
    elif furthest >= OUTER and is_clear(thing, middle):
        answer = SIDES[relation(thing, middle)]
    else:
        return None
    return f"where is the {pick(unique_names(thing, scene), draw)}", answer


# --- answering ------------------------------------------------------------------------------------------------------


_PATTERNS = {
    "count": f"how many (?:({GROUP}) are there|objects are ({one_of(RELATIONS)}) the ({THING}))",
    "colour": f"what colour is the ({PLAIN})",
    "presence": f"is there (?:an(?= [aeiou])|a(?! [aeiou])) ({THING})",
    "relation": f"is the ({THING}) ({one_of(RELATIONS)}) the ({THING})",
    "compare": f"is the ({THING}) (larger|smaller) than the ({THING})"
    f"|which is ({one_of(COMPARED)}), the ({THING}) or the ({THING})",
    "where": f"where is the ({THING})",
}


def kind_of(text: str) -> str | None:
    """Which of `KINDS_OF_QUESTION` a text is, or None when it is no question of the language.

    White space is free, letter case is not.
    """
    plain = " ".join(text.split())
    return next((kind for kind, pattern in _PATTERNS.items() if re.fullmatch(pattern, plain)), None)


def answer_of(text: str, scene: Scene) -> str | None:
    """The answer to a question as the scene gives it; `ask` has no part in it.

    None when the text is no question of the language, asks about "the" object where there is none or several such, asks
    which of two that are alike, or asks for a place between two answers.
    """
    kind = kind_of(text)
    if kind is None:
        return None
    match = re.fullmatch(_PATTERNS[kind], " ".join(text.split()))
    assert match is not None
    parts = [part for part in match.groups() if part is not None]
    if kind == "presence":
        return "yes" if such(parts[0], scene) else "no"
    if kind == "count" and len(parts) == 1:
        return NUMBERS[len(such(parts[0], scene))]
    names = [part for part in parts if part not in RELATIONS and part not in COMPARED]
    named = [such(name, scene) for name in names]
    if any(len(things) != 1 for things in named):
        return None
    things = [thing for [thing] in named]
    if kind == "colour":
        return things[0].kind.colour
    if kind == "count":
        [other] = things
        return NUMBERS[sum(holds(parts[0], thing.x - other.x, thing.y - other.y) for thing in scene.objects)]
    if kind == "where":
        return _place(things[0])
    subject, other = things
    if kind == "relation":
        return "yes" if holds(parts[1], subject.x - other.x, subject.y - other.y) else "no"
    word = next(part for part in parts if part in COMPARED)
    ahead = COMPARED[word](subject) - COMPARED[word](other)
    if parts[0] != word:
        return "yes" if ahead > 0 else "no"
    return None if ahead == 0 else names[ahead < 0]


def meant(text: str, scene: Scene) -> list[Object]:
    """The objects of a scene that a question is about, in the order in which it names them: those that are counted
    before those beside which they stand. Raises ValueError for what is no question."""
    kind = kind_of(text)
    if kind is None:
        raise ValueError(f"{text!r} is no question")
    match = re.fullmatch(_PATTERNS[kind], " ".join(text.split()))
    assert match is not None
    parts = [part for part in match.groups() if part is not None]
    if kind == "count" and len(parts) == 2:
        [other] = such(parts[1], scene)
        return [*(thing for thing in scene.objects if holds(parts[0], thing.x - other.x, thing.y - other.y)), other]
    names = [part for part in parts if part not in RELATIONS and part not in COMPARED]
    return [thing for name in names for thing in such(name, scene)]


def _place(thing: Object) -> str | None:
    dx, dy = thing.x - 0.5, thing.y - 0.5
    if abs(dx) <= INNER and abs(dy) <= INNER:
        return MIDDLE
    for name, (x, y) in RELATIONS.items():
        along, across = (x * dx, abs(dy)) if x else (y * dy, abs(dx))
        if along >= OUTER and across <= SLANT * along:
            return SIDES[name]
    return None
