"""What a record says itself is right; anything else is not; and what cannot be told is not judged."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from unitok.data.judging import JUDGES, judge
from unitok.data.open import open_data
from unitok.data.records import Record
from unitok.tasks import TASKS

DATA = {
    "text_to_image": "question",
    "image_to_text": "question",
    "question": "question",
    "edit": "edit",
    "interleaved": "story",
    **dict.fromkeys(("ground", "describe", "ground_caption", "layout_to_image"), "ground"),
}
"""Task -> the records of `shapes` that it is judged on here."""


def truth(task: str, record: Record) -> Any:
    if task in ("text_to_image", "edit", "layout_to_image"):
        return record.image
    if task == "image_to_text":
        return record.caption
    field = {
        "question": "answer",
        "ground": "boxes",
        "describe": "description",
        "ground_caption": "named",
        "interleaved": "parts",
    }
    return record.fields[field[task]]


def test_every_task_has_a_judge_but_a_text_out_of_nothing_and_a_hole_of_chance() -> None:
    holes = {"inpaint", "pointed_inpaint"}  # filling in is judged by the boxes of objects
    assert JUDGES.keys() == TASKS.keys() - {"text_only"} - holes


@pytest.mark.parametrize("task", DATA)
def test_the_truth_is_right_and_that_of_another_record_is_not(task: str) -> None:
    data = open_data(f"shapes@val?task={DATA[task]}&limit=24", 32)
    records = [data[i] for i in range(24)]
    assert all(judge(task, record, truth(task, record)) for record in records)
    others = [judge(task, record, truth(task, other)) for record, other in pairwise(records)]
    assert None not in others and sum(map(bool, others)) < 12  # answers and empty boxes are alike by chance


def test_maps_and_paintings_are_judged() -> None:
    data = open_data("shapes@val?task=condition&limit=24", 32)
    records = [data[i] for i in range(24)]
    assert {record.fields["instruction"].split()[0] for record in records} == {"draw", "paint"}
    assert all(judge("edit", record, record.image) for record in records)
    untouched = [judge("edit", record, record.fields["source"]) for record in records]
    assert sum(map(bool, untouched)) < 3, "a small black cross is its own outline"


def test_a_story_is_wrong_if_one_step_is_or_one_is_missing() -> None:
    record = open_data("shapes@val?task=story&limit=1", 32)[0]
    parts = record.fields["parts"]
    assert judge("interleaved", record, parts[:4]) is False
    assert judge("interleaved", record, [*parts[:5], parts[1]]) is False
    assert judge("interleaved", record, [*parts[:4], ("text", "once upon a time"), parts[5]]) is False


def test_pictures_of_another_language_are_not_judged() -> None:
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    fields = {"source": picture, "instruction": "make it snow", "named": ["a cat", [0.1, 0.1, 0.4, 0.4]]}
    record = Record(
        "photo", "a cat on a mat", picture, fields=fields | {"parts": [("text", "a cat"), ("image", picture)]}
    )
    for task in ("text_to_image", "edit", "layout_to_image"):
        assert judge(task, record, picture) is None
    assert judge("interleaved", record, record.fields["parts"]) is None
    assert judge("image_to_text", record, " a cat  on a mat") is True, "white space is free"
