"""Tasks: how a record becomes a document, and how a batch mixes them.

A task is a row of `TASKS`: the fields of the record in their order, which of them are learned, and which may be left
out in training, so that guidance can compare with and without.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, groupby, takewhile
from typing import Any, NamedTuple

import torch

from tokenizers_vq.errors import UserError

from .boxes import SPANS, hole_in, is_box, rough
from .modalities import ANSWER, PASSAGE, TEXTS, Further, ImageModality, Modality, TextModality, codes_in
from .objectives.base import Draw
from .sequence import Document, Segment, document

GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, fill [0, 1) evenly: any run of slots holds the tasks in about their
shares."""


class Part(NamedTuple):
    """One field of a task's document."""

    field: str
    learned: bool = False
    drop: str = ""
    """The condition that it is, if it may be left out: "text" leaves an empty text where it is given; else nothing is
    left."""
    varies: bool = False
    """Whether it differs from drawing to drawing where it only leads to what the task ends with. Else it is the most
    likely one."""


TASKS: dict[str, tuple[Part, ...]] = {
    "text_to_image": (Part("caption", drop="text"), Part("image", learned=True)),
    "image_to_text": (Part("image"), Part("caption", learned=True)),
    "text_only": (Part("caption", learned=True),),
    "question": (Part("image"), Part("question"), Part("answer", learned=True)),
    "edit": (Part("source", drop="image"), Part("instruction", drop="text"), Part("image", learned=True)),
    "ground": (Part("image"), Part("phrase"), Part("boxes", learned=True)),
    "interleaved": (Part("parts", learned=True),),
    "describe": (Part("image"), Part("box"), Part("description", learned=True)),
    "ground_caption": (Part("image"), Part("named", learned=True)),
    "layout_to_image": (Part("named", drop="text"), Part("image", learned=True)),
    "inpaint": (Part("known"), Part("caption", drop="text"), Part("image", learned=True)),
    "pointed_question": (
        Part("image"),
        Part("question"),
        Part("boxes", learned=True),
        Part("answer", learned=True),
    ),
    "pointed_edit": (
        Part("source", drop="image"),
        Part("instruction", drop="text"),
        Part("boxes", learned=True, drop="text"),
        Part("image", learned=True),
    ),
    "pointed_inpaint": (
        Part("known"),
        Part("hole"),
        Part("caption", drop="text"),
        Part("named", learned=True, drop="text", varies=True),
        Part("image", learned=True),
    ),
    "pointed_text_to_image": (
        Part("caption", drop="text"),
        Part("named", learned=True, drop="text", varies=True),
        Part("image", learned=True),
    ),
}
FIELDS = {
    **dict.fromkeys(("caption", "question", "answer", "instruction", "phrase", "description"), "text"),
    "answer": ANSWER,
    **dict.fromkeys(("image", "source", "known"), "image"),
    **dict.fromkeys(("boxes", "box", "hole"), "box"),
    "named": "grounded",
}
"""Field of a record -> its modality. A text, an image, a box or the boxes of a phrase may be a list of several; where
fields side by side are lists, their values come in turn: question, answer, question, answer. `parts` is a list of
(modality, value)."""
WITH_HOLES = {"known": "image", "hole": "image"}
"""Field that no record has -> the field that it is made of in training, with a hole in each picture: what is known of
it, and the box around the hole."""
OBJECTS = "named"
"""Field whose boxes are around things that holes may be made for."""
EXACT = 0.5
"""Share of records whose given boxes stay as they are."""
DROPS = ("text", "image")
"""Conditions in the order in which guidance leaves them out."""


QUESTIONS = "question"
"""The task of questions about a picture."""


class Piece(NamedTuple):
    """A value on its way into a document."""

    modality: str
    value: Any
    learned: bool


def needs(tasks: Collection[str]) -> set[str]:
    """The fields that records of these tasks must have."""
    return {WITH_HOLES.get(part.field, part.field) for task in tasks for part in TASKS[task]}


def reads_pictures(tasks: Collection[str]) -> bool:
    """Whether documents of these tasks have pictures that are given, and whole. Parts may have them."""
    return any(
        part.field == "parts" or (FIELDS[part.field] == "image" and not part.learned and part.field not in WITH_HOLES)
        for task in tasks
        for part in TASKS[task]
    )


def draws_pictures(tasks: Collection[str]) -> bool:
    """Whether documents of these tasks need codes of pictures: to learn them, or to make holes."""
    return any(
        part.field == "parts" or (FIELDS[part.field] == "image" and (part.learned or part.field in WITH_HOLES))
        for task in tasks
        for part in TASKS[task]
    )


def bound_to_pixels(tasks: Collection[str]) -> bool:
    """Whether records of these tasks have fields that are wrong once their picture is moved."""
    return any(field != "image" and is_bound(field) for field in needs(tasks))


def is_bound(field: str) -> bool:
    """Whether a field holds boxes or pictures: wrong where another picture of the record is moved."""
    return field == "parts" or FIELDS.get(field, "text") not in ("text", ANSWER)


def modalities_of(tasks: Collection[str]) -> set[str]:
    """The modalities of the fields of these tasks; parts have their own."""
    return {FIELDS[part.field] for task in tasks for part in TASKS[task] if part.field in FIELDS}


def conditions(task: str) -> list[str]:
    """The conditions of a task that can be left out, in the order of guidance."""
    found = {part.drop for part in TASKS[task]}
    return [drop for drop in DROPS if drop in found]


def given_fields(task: str) -> set[str]:
    """The fields that a task is given."""
    return {part.field for part in TASKS[task] if not part.learned}


def ends_in(task: str) -> str:
    """The field that a task is for: what it writes last."""
    return TASKS[task][-1].field


def way(task: str, learned: Collection[str]) -> str | None:
    """How a model that learned some tasks does one: by the row that is given the same and ends in the same. Of several
    that one which writes most: boxes come before what they are for."""

    def what(row: str) -> tuple[set[str], str]:
        return {WITH_HOLES.get(field, field) for field in given_fields(row)}, ends_in(row)

    same = [one for one in learned if one in TASKS and what(one) == what(task)]
    return max(same, key=lambda one: len(TASKS[one]), default=None)


def pieces(task: str, record: Mapping[str, Any], without: Collection[str] = ()) -> list[Piece]:
    """What a record's document is made of. `without` names conditions that are left out.

    Raises:
        UserError: the record lacks a field of the task, or has not as many of one as of the other.
    """
    return _in_order(task, TASKS[task], record, without)


def prompt(task: str, record: Mapping[str, Any], without: Collection[str] = (), instead: str = "") -> list[Piece]:
    """What stands before the first part of a task that is learned. `instead` stands in place of a text that is left
    out; empty: what its modality has for that."""
    return _in_order(task, tuple(takewhile(lambda part: not part.learned, TASKS[task])), record, without, instead)


def asked(task: str, record: Mapping[str, Any], modalities: Mapping[str, Modality]) -> tuple[str, Mapping[str, Any]]:
    """A task, and a record of it, as a model does it that is asked about pictures in words of its own."""
    texts = modalities["text"]
    if not isinstance(texts, TextModality) or texts.asking is None:
        return task, record
    if task in texts.asking.tasks:
        answer = next((record.get(part.field) for part in TASKS[task] if part.learned), None)
        record, task = {**record, "question": texts.asking.tasks[task], "answer": answer}, QUESTIONS
    question = record.get("question")
    if question is None or task != QUESTIONS:
        return task, record
    several = is_several("question", question)
    pictures: Any = record.get("image")
    found = [texts.asked(one) for one in (question if several else [question])]
    if not several and is_several("image", pictures):
        pictures = [pictures[0], *map(Further, pictures[1:])]
    return task, {**record, "image": pictures, "question": found if several else found[0]}


def _in_order(
    task: str, parts: Sequence[Part], record: Mapping[str, Any], without: Collection[str], instead: str = ""
) -> list[Piece]:
    found: list[Piece] = []
    for several, side_by_side in groupby(parts, lambda part: is_several(part.field, record.get(part.field))):
        some = list(side_by_side)
        columns = [_pieces(task, part, record, without, instead) for part in some]
        if several and len(some) > 1:
            numbers = {part.field: len(column) for part, column in zip(some, columns, strict=True)}
            if len(set(numbers.values())) > 1:
                said = " and ".join(f"{number} of {field}" for field, number in numbers.items())
                raise UserError(f"{record.get('name', 'a record')} has {said}: give as many of one as of the other")
            found += [piece for row in zip(*columns, strict=True) for piece in row]
        else:
            found += [piece for column in columns for piece in column]
    return found


def is_several(field: str, value: Any) -> bool:
    """Whether a field holds several values; a list of numbers is one text as ids, or one box."""
    if not isinstance(value, list) or not value or FIELDS.get(field) not in (*TEXTS, "image", "box"):
        return False
    first = value[0]
    if field == "boxes":  # one value is a list already
        return isinstance(first, list) and not (first and isinstance(first[0], int | float))
    return not isinstance(first, int | float)


def _pieces(
    task: str, part: Part, record: Mapping[str, Any], without: Collection[str], instead: str = ""
) -> list[Piece]:
    value = record.get(part.field)
    if value is None:
        raise UserError(
            f"{record.get('name', 'a record')} has no {part.field}, which the task {task} needs: add it to the data, "
            f"or set tasks.{task}.share to 0"
        )
    if part.field == "parts":
        return in_turn(value, part.learned)
    modality = FIELDS[part.field]
    if part.drop and part.drop in without:
        return [Piece(modality, instead or _left_out(value), False)] if part.drop == "text" and not part.learned else []
    values = value if is_several(part.field, value) else [value]
    return [Piece(modality, one, part.learned) for one in values]


def _left_out(value: Any) -> Any:
    """What stands for a caption that is left out: an empty text, or what the value itself says."""
    return value.left_out() if hasattr(value, "left_out") else []


def in_turn(parts: Sequence[tuple[str, Any]], learned: bool = False) -> list[Piece]:
    """The pieces of a document of texts and images, in which they alternate: a text stands before the first image and
    behind each, if need be an empty one. So whether an image follows, or the end, is always said at the end of a text.
    Two texts in a row are one."""
    found = [Piece(PASSAGE, "", learned)]
    for modality, value in parts:
        if modality != "text":
            found += [Piece(modality, value, learned), Piece(PASSAGE, "", learned)]
        elif len(value):
            found[-1] = Piece(PASSAGE, _joined(found[-1].value, value), learned)
    return found


def _joined(before: Any, value: Any) -> Any:
    """Two texts in a row, of strings, of ids, or of strings and boxes."""
    if not len(before):
        return value
    if isinstance(before, str) and isinstance(value, str):
        return f"{before} {value}"
    return [*([before] if isinstance(before, str) else before), *([f" {value}"] if isinstance(value, str) else value)]


def roughly(task: str, record: Mapping[str, Any], draw: Draw, noise: float) -> Mapping[str, Any]:
    """The record, in every other case with the boxes that its task is given moved, see `boxes.rough`: a model that only
    saw boxes of things as they are takes their exact sides for a sign of what is in them."""
    given = [part.field for part in TASKS[task] if not part.learned and FIELDS.get(part.field) in SPANS]
    fields = [field for field in given if field in record]
    if not noise or not fields or torch.rand((), generator=draw.generator) < EXACT:
        return record
    return {**record, **{field: rough(record[field], noise, draw) for field in fields}}


def with_holes(
    task: str, record: Mapping[str, Any], draw: Draw, modalities: Mapping[str, Modality]
) -> Mapping[str, Any]:
    """The record with the fields of the task that are made of others: a hole in each picture, and the box around it."""
    fields = {part.field for part in TASKS[task]} & WITH_HOLES.keys()
    value = record.get("image")
    if not fields or value is None:
        return record
    modality = modalities["image"]
    assert isinstance(modality, ImageModality)
    several = is_several("image", value)
    boxes = [part for part in record.get(OBJECTS) or () if is_box(part)] if not several else []
    values = value if several else [value]
    gone, holes = zip(*(hole_in(modality.layout, draw, boxes) for _ in values), strict=True)
    known = [codes_in(one).masked_fill(codes, -1) for one, codes in zip(values, gone, strict=True)]
    return {**record, "known": known if several else known[0], "hole": list(holes) if several else holes[0]}


def _read(task: str, record: Mapping[str, Any], modalities: Mapping[str, Modality]) -> Mapping[str, Any]:
    """The record with the texts read that may be left out: a text as ids knows what stands for it."""
    read = {
        part.field: modality.read(record[part.field])
        for part in TASKS[task]
        if part.drop == "text"
        and isinstance(modality := modalities[FIELDS[part.field]], TextModality)
        and modality.replaces
        and isinstance(record.get(part.field), str)
    }
    return {**record, **read}


def task_of_slot(slot: int, shares: Sequence[float]) -> int:
    """Which of several shares a place in the global batch belongs to, so that micro-batches and ranks do not change
    the mix."""
    total = sum(shares)
    edges = [edge / total for edge in accumulate(shares)]
    return min(bisect_right(edges, (slot * GOLDEN) % 1), len(shares) - 1)


def _without_texts(made_of: list[Piece], draw: Draw, share: float) -> list[Piece]:
    """A document of texts and images with a share of the texts before images left out, each by chance of its own: empty
    ones that are not learned. So guidance can compare a document with itself without its last text."""
    before_images = [
        place for place, piece in enumerate(made_of[:-1]) if piece.modality == PASSAGE and piece.value and piece.learned
    ]
    rolls = torch.rand(len(before_images), generator=draw.generator).tolist() if before_images else []
    left_out = {place for place, roll in zip(before_images, rolls, strict=True) if roll < share}
    return [Piece(PASSAGE, [], False) if place in left_out else piece for place, piece in enumerate(made_of)]


def documents(
    tasks: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    draws: Sequence[Draw],
    modalities: Mapping[str, Modality],
    dropout: Mapping[str, float],
    numbers: Mapping[str, int],
    weights: Sequence[float] | None = None,
    noise: float = 0.0,
) -> list[Document]:
    """One document for each record.

    Args:
        tasks: of each record.
        records: field -> value; images as codes (L,).
        draws: of each record; whatever is random about it comes from there alone.
        modalities: by name.
        dropout: condition -> share of the records that it is left out of.
        numbers: task -> its number in the documents.
        weights: of each record's losses.
        noise: how far the sides of given boxes move, see `roughly`.

    Raises:
        UserError: a record lacks a field of its task.
    """
    parts: list[list[Piece]] = []
    for whole_task, whole_record, draw in zip(tasks, records, draws, strict=True):
        task, record = asked(whole_task, whole_record, modalities)
        rolls = {drop: torch.rand((), generator=draw.generator).item() for drop in conditions(task)}
        without = {drop for drop, roll in rolls.items() if roll < dropout.get(drop, 0.0)}
        if "text" in without:
            record = _read(task, record, modalities)
        record = with_holes(task, roughly(task, record, draw, noise), draw, modalities)
        made_of = pieces(task, record, without)
        parts.append(_without_texts(made_of, draw, dropout.get("text", 0.0)))
    made: dict[tuple[int, int], list[Segment]] = {}
    for name, modality in modalities.items():
        mine = [(r, p) for r, row in enumerate(parts) for p, piece in enumerate(row) if piece.modality == name]
        given = [where for where in mine if not parts[where[0]][where[1]].learned]
        learned = [where for where in mine if parts[where[0]][where[1]].learned]
        for where, segment in zip(given, modality.given([parts[r][p].value for r, p in given]), strict=True):
            made[where] = [segment]
        values = [parts[r][p].value for r, p in learned]
        followed = [p + 1 < len(parts[r]) for r, p in learned]
        copies = modality.learned(values, [draws[r] for r, _ in learned], followed)
        made.update(zip(learned, copies, strict=True))
    found = []
    for row, task in enumerate(tasks):
        whole = [segment for p in range(len(parts[row])) for segment in made[row, p]]
        if weights is not None and weights[row] != 1:
            for segment in whole:
                segment.weight = segment.weight * weights[row]
        found.append(document(whole, numbers[task]))
    return found
