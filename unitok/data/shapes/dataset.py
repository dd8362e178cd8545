"""Rendered scenes as a data set, with the fields of a task beside caption and picture."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tokenizers_vq.errors import Problems

from ...seeding import fold
from ..fingerprint import digest
from ..records import LeftOut, Record
from . import edits, questions
from .conditions import condition
from .edits import edit
from .grounding import box_of, ground
from .questions import ask
from .scenes import MIN_SIZE, SPLITS, TRAIN_LENGTH, VAL_LENGTH, Scene, describe, render, sample_scene
from .stories import story
from .wording import word

DEFAULT = "question"
QUESTIONS = 8
"""To one picture, where a record has several; equal ones are asked once."""
PHRASES = 6
"""The same for phrases that boxes are asked of."""
UNPLANNED = 0.15
"""Share of the instructions of a planned story that are written before any box."""
Fields = tuple[torch.Tensor, dict[str, Any]]


class ShapesDataset:
    """Captioned scenes as a `RecordDataset`: "train" is endless, "val" (held-out combinations) is finite.

    Args:
        size: Side of the pictures in pixels, at least 24.
        split: "train" or "val".
        seed: Another seed gives other scenes; the split of combinations stays the same.
        length: Number of scenes, None for the default of the split.
        task: What a record has beside its caption and picture, one of `RECORDS`.

    Raises:
        UserError: A value outside its range.
    """

    left_out: Sequence[LeftOut] = ()

    def __init__(
        self,
        size: int = 32,
        split: str = "train",
        seed: int = 0,
        length: int | None = None,
        task: str = DEFAULT,
    ) -> None:
        problems = Problems()
        problems.check(size >= MIN_SIZE, f"shapes: size is {size}: choose {MIN_SIZE} or more pixels, such as 32 or 64")
        problems.check(split in SPLITS, f"shapes: split is {split!r}: choose train or val, as in shapes@val")
        problems.check(length is None or length > 0, f"shapes: length is {length}: choose a number above 0")
        known = ", ".join(RECORDS)
        problems.check(task in RECORDS, f"shapes: task is {task!r}: choose one of {known}, as in shapes?task=edit")
        problems.raise_if_any()
        self.size = size
        self.split = split
        self.seed = seed
        self.task = task
        self._length = length or (TRAIN_LENGTH if split == "train" else VAL_LENGTH)

    @property
    def name(self) -> str:
        task = "" if self.task == DEFAULT else f":{self.task}"
        return f"shapes:{self.split}{task}:seed{self.seed}"

    @property
    def endless(self) -> bool:
        return self.split == "train"

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> Scene:
        """The scene behind a record."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has {self._length} records, index is {index}")
        return sample_scene(self.seed, self.split, index)

    def __getitem__(self, index: int) -> Record:
        scene = self.scene(index)
        image, fields = RECORDS[self.task](self, scene, index)
        caption = fields.pop("caption", describe(scene))
        return Record(name=f"{self.name}:{index}", caption=caption, image=image, fields=fields)

    def picture(self, scene: Scene) -> torch.Tensor:
        """(3, size, size) uint8."""
        return _tensor(render(scene, self.size))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the settings and of a few records, which tell of a change of the renderer or of a task."""

        def drawn(index: int) -> bytes:
            record = self[index]
            return repr((record.caption, _plain(record.fields), _plain(record.image))).encode()

        return digest([self.name, self.size, len(self)], len(self), drawn)


def _question(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    question = ask(scene, data.seed, index)
    return data.picture(scene), {"question": question.text, "answer": question.answer}


def _questions(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    asked = [ask(scene, data.seed, QUESTIONS * index + number) for number in range(QUESTIONS)]
    found = {question.text: question.answer for question in asked}
    boxes = [list(map(box_of, questions.meant(text, scene))) for text in found]
    return data.picture(scene), {"question": list(found), "boxes": boxes, "answer": list(found.values())}


def _edit(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    made = edit(scene, data.seed, index, data.split)
    return data.picture(scene), {
        "source": data.picture(made.before),
        "instruction": made.instruction,
        "boxes": list(map(box_of, edits.meant(made, scene))),
    }


def _story(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    steps = story(scene, data.seed, index, data.split)
    parts = [part for step in steps for part in (("text", step.text), ("image", data.picture(step.scene)))]
    return data.picture(scene), {"parts": parts}


def _pointed_story(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    return _story_with_boxes(data, scene, index, planned=False)


def _planned_story(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    return _story_with_boxes(data, scene, index, planned=True)


def _story_with_boxes(data: ShapesDataset, scene: Scene, index: int, planned: bool) -> Fields:
    """Behind each text stand the boxes of what it is about. In a story that is planned those of what was there before
    stand in front of it, but for a share of the texts: a text that somebody else writes has none in front."""
    draw = random.Random(fold("shapes", "planned", data.seed, data.split, index)).random
    first, *later = story(scene, data.seed, index, data.split)
    parts: list[tuple[str, Any]] = []
    before = None
    for step in (first, *later):
        things = step.scene.objects if before is None else edits.meant(edits.Edit(before, step.text), step.scene)
        known = before.objects if planned and before is not None and draw() >= UNPLANNED else ()
        there = [thing for thing in things if thing in known]
        behind = [thing for thing in things if thing not in there]
        text = [*map(box_of, there), step.text, *map(box_of, behind)]
        parts += [("text", text), ("image", data.picture(step.scene))]
        before = step.scene
    return data.picture(scene), {"parts": parts}


def _ground(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    made = ground(scene, data.seed, index)
    return data.picture(scene), vars(made)


def _groundings(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    made = [ground(scene, data.seed, PHRASES * index + number) for number in range(PHRASES)]
    phrases = {one.phrase: one.boxes for one in made}
    described = {one.description: one.box for one in made}
    return data.picture(scene), {
        "phrase": list(phrases),
        "boxes": list(phrases.values()),
        "description": list(described),
        "box": list(described.values()),
        "named": made[0].named,
    }


def _wording(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    draw = random.Random(fold("shapes", "wording", data.seed, data.split, index)).random
    return data.picture(scene), vars(word(scene, draw))


def _condition(data: ShapesDataset, scene: Scene, index: int) -> Fields:
    made = condition(scene, data.seed, index, data.size)
    return _tensor(made.target), {"source": _tensor(made.source), "instruction": made.instruction, "boxes": []}


RECORDS: dict[str, Callable[[ShapesDataset, Scene, int], Fields]] = {
    DEFAULT: _question,
    "questions": _questions,
    "edit": _edit,
    "story": _story,
    "pointed_story": _pointed_story,
    "planned_story": _planned_story,
    "ground": _ground,
    "groundings": _groundings,
    "wording": _wording,
    "condition": _condition,
}
"""Picture and further fields of a record, for each value of `task`. A picture is that of the scene but for "condition",
where it is what the instruction asks for; a caption that is not the scene's own stands among the fields."""


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def _plain(value: Any) -> Any:
    """Values of fields with their pictures as bytes, which `repr` writes in full."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
