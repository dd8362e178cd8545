"""The score of answers to questions about pictures."""

from __future__ import annotations

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.questions import ask
from unitok.data.shapes.scenes import describe
from unitok.eval.provenance import INTERVAL
from unitok.eval.questions import SHOWN, questions_section, score_answers
from unitok.eval.report import Report
from unitok.eval.reports.page import render

QUESTIONS = [
    "how many objects are there",
    "how many circles are there",
    "how many objects are there",
    "is there a cross",
]
REFERENCE = ["one", "two", "one", "yes"]


def test_shares_overall_and_by_kind_beside_a_guess() -> None:
    numbers, values = score_answers(QUESTIONS, [" one\n", "one", "One", "yes"], REFERENCE, {"data": "d"})
    assert {key: number.value for key, number in numbers.items()} == {
        "exact": 0.5,
        "guess": 0.75,
        "exact_by_kind": {"count": pytest.approx(1 / 3), "presence": 1.0},
        "guess_by_kind": {"count": pytest.approx(2 / 3), "presence": 1.0},
    }
    assert [row["exact"] for row in values] == [1, 0, 0, 1]
    assert values[3] == {
        "question": "is there a cross",
        "written": "yes",
        "reference": "yes",
        "exact": 1,
        "exact_by_kind.presence": 1,
    }
    assert numbers["exact"].better == "higher" and numbers["guess"].better == ""
    assert "Baseline" in numbers["guess"].label and numbers["exact"].provenance == {"data": "d"}


def test_questions_of_other_data_count_overall() -> None:
    numbers, values = score_answers(["what is it", "who is it"], ["a dog", "me"], ["a dog", "you"], {})
    assert {key: number.value for key, number in numbers.items()} == {"exact": 0.5, "guess": 0.5}
    assert list(values[0]) == ["question", "written", "reference", "exact"]
    mixed, _ = score_answers(["what is it", *QUESTIONS], ["a dog", *REFERENCE], ["a cat", *REFERENCE], {})
    assert mixed["exact"].value == 0.8 and mixed["exact_by_kind"].value == {"count": 1.0, "presence": 1.0}


def test_section_of_a_report() -> None:
    data = ShapesDataset(split="val", length=48)
    images = torch.stack([image for index in range(48) if (image := data[index].image) is not None])
    asked = [ask(data.scene(index), 0, index) for index in range(48)]
    reference = [question.answer for question in asked]
    written = [answer if index % 4 else "" for index, answer in enumerate(reference)]
    names = [data[index].name for index in range(48)]
    section = questions_section(images, [q.text for q in asked], written, reference, {"data": data.name}, names)
    assert (section.name, section.title) == ("questions", "Questions")
    assert section.numbers["exact"].value == 0.75
    low, high = section.numbers["exact"].interval[""]
    assert 0.55 < low < 0.75 < high < 0.92
    parts = section.numbers["exact_by_kind"].value
    assert isinstance(parts, dict) and set(section.numbers["exact_by_kind"].interval) == set(parts)
    assert not section.numbers["guess"].interval and not section.numbers["guess_by_kind"].interval
    assert [row["item"] for row in section.values] == names
    assert len({row["picture"] for row in section.values}) == len({describe(data.scene(i)) for i in range(48)}) == 48

    items = section.figures[0].items
    assert len(items) == SHOWN and torch.equal(items[5].pictures[0], images[5])
    assert (items[0].text, items[0].right) == (f"{asked[0].text}: (empty)", False)
    assert items[0].detail == f"right is: {reference[0]}"
    assert (items[1].text, items[1].right, items[1].detail) == (f"{asked[1].text}: {reference[1]}", True, "")
    report = Report("questions", [section])
    page = render(report)
    assert asked[0].text in page and "Baseline" in page
    provenance = report.to_json()["provenance"]["questions.exact"]
    assert provenance[INTERVAL] == (low, high) and provenance["intervals over"] == "distinct pictures"


def test_questions_of_one_picture_are_one_piece_of_evidence() -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    facts = (["q"] * 12, ["a", "b"] * 6, ["a"] * 12, {})
    apart = questions_section(images, *facts, names=["n"] * 12).numbers["exact"].interval[""]
    two = images[:2].repeat(6, 1, 1, 1)
    assert questions_section(two, *facts, names=["n"] * 12).numbers["exact"].interval[""] == (0.0, 1.0) != apart


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="no questions to score"):
        score_answers([], [], [], {})
    with pytest.raises(ValueError, match="shorter"):
        score_answers(["q", "q"], ["a"], ["a", "b"], {})
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="shorter"):
        questions_section(images, ["q", "q"], ["a", "a"], ["a", "b"], {}, ["n", "m"])
