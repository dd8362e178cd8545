"""Is what a model wrote for a record right? Texts and boxes are compared with the record's own; pictures are judged
where record and instruction speak the language of `shapes`, whose checker reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..boxes import Box, Grounded, words_of
from ..tasks import FIELDS, ends_in, given_fields, is_several
from .records import Record
from .shapes.checker import check, read_picture, scene_of
from .shapes.conditions import label_map_verdict, outline_verdict, painting_verdict
from .shapes.edits import edit_verdict, kind_of_edit
from .shapes.grounding import boxes_right, layout_verdict
from .shapes.scenes import Scene, parse
from .shapes.stories import story_verdict
from .shapes.wording import is_open, shows

MAPS = {"draw the outlines": outline_verdict, "draw the labels": label_map_verdict}
PAINT = "paint "


def judge(task: str, record: Record, written: Any) -> bool | None:
    """Whether a value is right; None where nothing can tell.

    Args:
        task: a row of the task table.
        record: with the fields of the task; its pictures are pixels.
        written: a text; boxes; strings and boxes; a picture (3, H, W) uint8; or pairs ("text", text) and
            ("image", picture).
    """
    return JUDGES[task](record, written)


def _same_text(field: str) -> Callable[[Record, Any], bool]:
    def same(record: Record, written: str) -> bool:
        return written.split() == record.fields[field].split()

    return same


def _drawn(record: Record, picture: torch.Tensor) -> bool | None:
    if not record.caption:
        return None
    return check(picture, record.caption).all if parse(record.caption) else shows(picture, record.caption)


def _captioned(record: Record, written: str) -> bool | None:
    return None if is_open(record.caption or "") else written.split() == (record.caption or "").split()


def _edited(record: Record, picture: torch.Tensor) -> bool | None:
    instruction = record.fields["instruction"]
    if kind_of_edit(instruction):
        before = _scene(record.fields["source"])
        return None if before is None else edit_verdict(picture, before, instruction).all
    if instruction in MAPS:
        scene = _scene(record.fields["source"])
        return None if scene is None else MAPS[instruction](picture, scene).right
    if instruction.startswith(PAINT) and record.image is not None:
        scene = _scene(record.image)
        return None if scene is None else painting_verdict(picture, scene)
    return None


def _scene(picture: torch.Tensor | list[torch.Tensor]) -> Scene | None:
    return scene_of(read_picture(picture)) if isinstance(picture, torch.Tensor) else None


def _grounded(record: Record, boxes: Sequence[Sequence[float]]) -> bool:
    return boxes_right(boxes, record.fields["boxes"])


def _named(record: Record, written: Grounded) -> bool | None:
    right: Grounded = record.fields["named"]
    if is_open(words_of(right)):
        return None
    return _words(written) == _words(right) and boxes_right(_boxes(written), _boxes(right))


def _words(named: Grounded) -> list[str]:
    return "".join(part for part in named if isinstance(part, str)).split()


def _boxes(named: Grounded) -> list[Box]:
    return [part for part in named if not isinstance(part, str)]


def _laid_out(record: Record, picture: torch.Tensor) -> bool | None:
    named = record.fields["named"]
    caption = "".join(part for part in named if isinstance(part, str))
    return all(layout_verdict(picture, named)) if parse(caption) else None


def _told(record: Record, parts: Sequence[tuple[str, Any]]) -> bool | None:
    """A story is right if it begins as the record's, has as many steps, and every step is right."""
    first = next((words_of(value) for kind, value in record.fields["parts"] if kind == "text"), "")
    if parse(first) is None:
        return None
    texts = [words_of(value) for kind, value in parts if kind == "text"]
    pictures = [value for kind, value in parts if kind == "image"]
    wanted = sum(kind == "image" for kind, _ in record.fields["parts"])
    steps = story_verdict(texts, pictures)
    return texts[:1] == [first] and len(steps) == wanted and all(step.all for step in steps)


JUDGES: dict[str, Callable[[Record, Any], bool | None]] = {
    "text_to_image": _drawn,
    "image_to_text": _captioned,
    "question": _same_text("answer"),
    "edit": _edited,
    "ground": _grounded,
    "interleaved": _told,
    "describe": _same_text("description"),
    "ground_caption": _named,
    "layout_to_image": _laid_out,
    "pointed_question": _same_text("answer"),
    "pointed_edit": _edited,
    "pointed_text_to_image": _drawn,
}
"""Task -> its judge. A text out of nothing is never wrong: `text_only` has none."""


def can_judge(task: str, record: Record) -> bool:
    """Whether a record has the fields of a task, one value each, pictures as pixels, and what is written for it can be
    judged."""
    held = {"caption": record.caption, "image": record.image, **record.fields}
    several = {field for field, value in held.items() if FIELDS.get(field) != "image" and is_several(field, value)}
    fields = {field for field, value in held.items() if value is not None} - several
    if task not in JUDGES or not given_fields(task) | {ends_in(task)} <= fields:
        return False
    return judge(task, record, held[ends_in(task)]) is not None
