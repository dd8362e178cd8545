"""Fields that hold several values."""

from __future__ import annotations

import pytest

from tokenizers_vq.errors import UserError
from unitok.tasks import is_several, pieces, prompt

RECORD = {"image": "picture", "question": ["what", "where"], "answer": ["a cat", "here"]}


def said(found: list) -> list[tuple[object, bool]]:
    return [(piece.value, piece.learned) for piece in found]


def test_lists_side_by_side_come_in_turn() -> None:
    assert said(pieces("question", RECORD)) == [
        ("picture", False), ("what", False), ("a cat", True), ("where", False), ("here", True)
    ]  # fmt: skip
    assert said(prompt("question", {**RECORD, "question": "what"})) == [("picture", False), ("what", False)]


def test_a_list_of_pictures_beside_one_text_stays_together() -> None:
    record = {"source": ["one", "two"], "instruction": "mix", "image": "both"}
    assert said(pieces("edit", record)) == [("one", False), ("two", False), ("mix", False), ("both", True)]


def test_a_list_of_numbers_is_one_text() -> None:
    box = [0.0, 0.0, 1.0, 1.0]
    assert is_several("box", [box]) and not is_several("box", box)
    assert is_several("boxes", [[box], []]) and is_several("boxes", [[], [box]]) and not is_several("boxes", [])
    assert is_several("question", ["a"]) and is_several("question", [[1, 2], [3]])
    assert (
        not is_several("question", [1, 2]) and not is_several("question", []) and not is_several("boxes", [[0.0] * 4])
    )


def test_as_many_answers_as_questions() -> None:
    with pytest.raises(UserError, match="has 2 of question and 1 of answer: give as many of one as of the other"):
        pieces("question", {**RECORD, "answer": ["a cat"]})
