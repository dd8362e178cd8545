"""Fields that hold several values."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import hole_in, is_box
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.seeding import keyed_generator
from unitok.tasks import documents, is_several, needs, pieces, prompt, with_holes

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


def test_answers_are_plain_texts_but_of_models_that_are_asked_in_words(make_model: Callable[..., UniTok]) -> None:
    """These write a space between the last word of the question and the answer."""
    found = make_model().modalities()
    assert found["answer"] == found["text"]


def test_the_known_part_of_a_picture_is_made_in_training(make_model: Callable[..., UniTok]) -> None:
    """Holes of all sizes, inside and around; codes that are hidden there are learned all the same."""
    assert needs(["inpaint"]) == {"image", "caption"}
    model = make_model()
    count, length = 200, model.layout.length
    codes = torch.randint(model.image_tokenizer.codebook_size, (length,))
    records = [{"image": codes, "caption": [1, 2]}] * count
    draws = [Draw(keyed_generator(0, "task", 0, row)) for row in range(count)]
    made = documents(["inpaint"] * count, records, draws, model.modalities(), {}, {"inpaint": 0})
    ids = model.vocabulary.image_ids(codes)
    shares = []
    for one in made:
        known = one.inputs[:length]
        hidden = known == model.vocabulary.mask
        assert torch.equal(known[~hidden], ids[~hidden])
        rows, columns = hidden.view(model.layout.grid).any(1), hidden.view(model.layout.grid).any(0)
        inside = (rows[:, None] & columns).sum() == hidden.sum()
        shares.append((hidden.float().mean().item(), bool(inside)))
        assert one.targets is not None and torch.equal(one.targets[-length:], ids)
    with pytest.raises(UserError, match="image codes from -2"):
        model.modalities()["image"].given([codes.masked_fill(codes == codes[0], -2)])
    assert min(share for share, _ in shares) < 0.1 and max(share for share, _ in shares) > 0.9
    assert 0.1 < sum(not inside for _, inside in shares) / count < 0.35
    again = documents(
        ["inpaint"] * 2,
        records[:2],
        [Draw(keyed_generator(0, "task", 0, row)) for row in range(2)],
        model.modalities(),
        {},
        {"inpaint": 0},
    )
    assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(again, made, strict=False))


def test_every_other_hole_is_around_a_thing(make_model: Callable[..., UniTok]) -> None:
    """Where boxes of things are known. All places that the hole covers a part of are hidden, and no other."""
    layout, thing, other = make_model().layout, [0.3, 0.2, 0.55, 0.5], [0.7, 0.7, 0.99, 1.0]
    height, width = layout.grid
    around = {0: 0, 1: 0}
    for row in range(400):
        codes, hole = hole_in(layout, Draw(keyed_generator(0, "hole", 0, row)), [thing, other])
        assert is_box(hole) and codes.shape == (layout.length,) and codes.any()
        covered = torch.zeros(height, width, dtype=torch.bool)
        left, top, right, bottom = hole
        covered[floor(top * height) : ceil(bottom * height), floor(left * width) : ceil(right * width)] = True
        if hole != [0, 0, 1, 1]:
            assert torch.equal(codes.view(layout.grid), covered)
        for number, box in enumerate((thing, other)):
            margins = [(box[i] - hole[i]) * (width, height)[i] for i in (0, 1)]
            margins += [(hole[i + 2] - box[i + 2]) * (width, height)[i] for i in (0, 1)]
            around[number] += all(0 <= margin <= 1 for margin in margins) and hole[0] * width % 1 > 0
        plain, _ = hole_in(layout, Draw(keyed_generator(0, "hole", 0, row)))
        assert plain.view(layout.grid).any(1).sum() > 0
    assert all(0.1 < count / 400 < 0.25 for count in around.values()), around
    record = {"image": torch.zeros(layout.length, dtype=torch.int64), "caption": [1], "named": ["a cat", thing]}
    made = with_holes("pointed_inpaint", record, Draw(keyed_generator(0, "hole", 0, 1)), make_model().modalities())
    codes, hole = hole_in(layout, Draw(keyed_generator(0, "hole", 0, 1)), [thing])
    assert made["hole"] == hole and torch.equal(made["known"] < 0, codes)
    assert with_holes("edit", record, Draw(keyed_generator(0, "hole", 0, 1)), make_model().modalities()) is record
