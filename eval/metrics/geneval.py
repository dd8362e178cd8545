"""GenEval (Ghosh et al. 2023, arXiv:2310.11513): does a picture have the objects, numbers, colours and places it was
asked for, as a detector sees them?

unitok brings no detector. Write one as a function from a picture to boxes (`Detector`); the prompts and the verdict are
here, by the published rules:

- boxes count above a confidence of 0.3, in counting prompts 0.9, at most 16 of a class, the surest first;
- a wanted class needs `count` boxes, and of the surest `count` ones each must have the colour and the place asked for;
- an excluded class must have fewer boxes than its `count`;
- A is left of B when the offset of the centres, less a tenth of both widths, is more than half of its whole length.

The score of a task is the share of its pictures that are right, and the overall score the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import parse_json, read_bytes
from tokenizers_vq.storage.schema import read_value

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The tasks, by their published tags; color_attr is attribute binding."""
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST_BOXES = 16
MARGIN = 0.1
LIMIT = 2**26
"""Bytes of a file of prompts; the published one is far smaller."""
HINT = "it needs tag, prompt and include, a list of objects with class and count"


@dataclass(frozen=True)
class Box:
    """One object that a detector found."""

    label: str
    """A class of the prompts, such as "traffic light"."""
    confidence: float
    left: float
    top: float
    right: float
    bottom: float
    color: str | None = None
    """One of GenEval's ten colours; only prompts that ask for a colour look at it."""


class Detector(Protocol):
    def __call__(self, image: Tensor) -> list[Box]:
        """All objects in a picture uint8 (3, H, W)."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One clause of a prompt."""

    label: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None
    """(relation, number of the clause whose objects these must stand so to)."""


@dataclass(frozen=True)
class Prompt:
    tag: str
    prompt: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of the published `evaluation_metadata.jsonl`, one JSON object per line.

    Raises:
        UserError: no such file, or a line that is no prompt.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give GenEval's evaluation_metadata.jsonl")
    prompts = []
    for number, line in enumerate(read_bytes(path, LIMIT).split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            prompts.append(_prompt(parse_json(line, where), where))
    if not prompts:
        raise UserError(f"{path} holds no prompts: give GenEval's evaluation_metadata.jsonl")
    return prompts


def judge_boxes(prompt: Prompt, boxes: Iterable[Box]) -> list[str]:
    """What a picture with these boxes gets wrong, a line each; empty when all is right."""
    least = COUNTING_CONFIDENCE if prompt.tag == "counting" else CONFIDENCE
    objects: dict[str, list[Box]] = {}
    for box in sorted(boxes, key=lambda box: -box.confidence):
        same = objects.setdefault(box.label, [])
        if box.confidence > least and len(same) < MOST_BOXES:
            same.append(box)
    wrong: list[str] = []
    matched: list[list[Box] | None] = []
    for wanted in prompt.include:
        found = objects.get(wanted.label, [])[: wanted.count]
        problem = _problem(wanted, found, matched)
        wrong += [problem] if problem else []
        matched.append(None if problem else found)
    for unwanted in prompt.exclude:
        number = len(objects.get(unwanted.label, []))
        if number >= unwanted.count:
            wrong.append(f"fewer than {unwanted.count} {unwanted.label} wanted, {number} found")
    return wrong


def relations(a: Box, b: Box) -> set[str]:
    """How A stands to B: "left of", "right of", "above", "below", two of them, or none when they are too near."""
    offset = [(a.left + a.right - b.left - b.right) / 2, (a.top + a.bottom - b.top - b.bottom) / 2]
    extents = [abs(a.right - a.left) + abs(b.right - b.left), abs(a.bottom - a.top) + abs(b.bottom - b.top)]
    beyond = [max(abs(o) - MARGIN * extent, 0.0) for o, extent in zip(offset, extents, strict=True)]
    if max(beyond) < 1e-3:
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    names = (("left of", "right of"), ("above", "below"))
    clear = [axis for axis in (0, 1) if beyond[axis] / length > 0.5]
    return {names[axis][offset[axis] > 0] for axis in clear}


def geneval(
    detector: Detector, prompts: Sequence[Prompt], pictures: Sequence[Tensor] | Iterable[Tensor]
) -> list[dict[str, bool]]:
    """Verdicts on pictures uint8 (3, H, W), one for each prompt; `overall` makes scores of them.

    Raises:
        UserError: not as many pictures as prompts.
    """
    images = iter(pictures)
    verdicts: list[dict[str, bool]] = []
    for prompt in prompts:
        image = next(images, None)
        if image is None:
            raise UserError(f"{len(verdicts)} pictures and {len(prompts)} prompts: give one picture for each prompt")
        verdicts.append({prompt.tag: not judge_boxes(prompt, detector(image))})
    if next(images, None) is not None:
        raise UserError(f"more pictures than the {len(prompts)} prompts: give one picture for each prompt")
    return verdicts


def overall(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """Share of right pictures per task, over those pictures that have the task, and "overall", the mean over tasks."""
    tags = dict.fromkeys([*CATEGORIES, *(tag for verdict in verdicts for tag in verdict)])
    scores = {}
    for tag in tags:
        right = [verdict[tag] for verdict in verdicts if tag in verdict]
        if right:
            scores[tag] = sum(right) / len(right)
    if not scores:
        raise UserError("there are no verdicts to average: give at least one picture")
    return {**scores, "overall": sum(scores.values()) / len(scores)}


def _problem(wanted: Wanted, found: list[Box], matched: list[list[Box] | None]) -> str | None:
    """Why the surest boxes of a class are not what was asked for, or None."""
    if len(found) < wanted.count:
        return f"{wanted.count} {wanted.label} wanted, {len(found)} found"
    colors = [box.color for box in found]
    if wanted.color is not None and colors.count(wanted.color) < wanted.count:
        seen = ", ".join(str(color) for color in colors)
        return f"{wanted.count} {wanted.color} {wanted.label} wanted, colours are {seen}"
    if wanted.position is not None:
        relation, target = wanted.position
        others = matched[target]
        if others is None:
            return f"nothing for {wanted.label} to be {relation}"
        if any(relation not in relations(box, other) for box in found for other in others):
            return f"{wanted.label} is not {relation} {others[0].label if others else 'it'}"
    return None


def _prompt(line: Any, where: str) -> Prompt:
    """A line of the file; keys that are not needed are left aside."""
    line = {"exclude": [], **read_value(dict[str, Any], line, where, "the prompt")}
    clauses = {
        key: tuple(_wanted(one, where, f"{key}[{i}]") for i, one in enumerate(_value(list[Any], line, where, key)))
        for key in ("include", "exclude")
    }
    include = clauses["include"]
    for number, one in enumerate(include):
        if one.position is not None and not 0 <= one.position[1] < number:
            raise UserError(f"{where}: position of {one.label!r} points at clause {one.position[1]}: {HINT}")
    return Prompt(_value(str, line, where, "tag"), _value(str, line, where, "prompt"), include, clauses["exclude"])


def _wanted(clause: Any, where: str, key: str) -> Wanted:
    clause, where = read_value(dict[str, Any], clause, where, key), f"{where}: {key}"
    return Wanted(
        _value(str, clause, where, "class"),
        _value(int, clause, where, "count"),
        _value(str | None, {"color": None, **clause}, where, "color"),
        _value(tuple[str, int] | None, {"position": None, **clause}, where, "position"),
    )


def _value(kind: Any, values: Mapping[str, Any], where: str, key: str) -> Any:
    if key not in values:
        raise UserError(f"{where} is no GenEval prompt, it lacks {key!r}: {HINT}")
    return read_value(kind, values[key], where, key)
