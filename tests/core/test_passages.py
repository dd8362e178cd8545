"""Documents of texts and images: they alternate, and each text ends with what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.layout import Layout
from unitok.modalities import PASSAGE, PassageModality
from unitok.model import modalities
from unitok.objectives import get_objective
from unitok.objectives.base import Draw
from unitok.sampling import SampleSettings
from unitok.sequence import IGNORE, Document, lay_out
from unitok.tasks import TASKS, documents, in_turn
from unitok.vocabulary import Vocabulary

V = Vocabulary.of(20, 16)
LAYOUT = Layout(((2, 2),))
TOKENIZER = build_tokenizer(TOKENIZER_PRESETS["debug"]())
MODALITIES = modalities(V, list, 9, LAYOUT, get_objective("next_token", TOKENIZER))
IMAGE = torch.tensor([3, 1, 4, 1])
NUMBERS = {task: number for number, task in enumerate(TASKS)}


def made(task: str, **record: Any) -> Document:
    return documents([task], [record], [Draw(torch.Generator().manual_seed(0))], MODALITIES, {}, NUMBERS)[0]


def ends(document: Document) -> list[tuple[int, int]]:
    """(ids of a text, target at its last position) of every text of a document."""
    found: list[list[int]] = []
    for here, target in zip(document.inputs.tolist(), document.targets.tolist(), strict=True):
        if here == V.bos:
            found.append([0, target])
        elif here < V.eos:
            found[-1] = [found[-1][0] + 1, target]
    return [(count, target) for count, target in found]


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([], [(0, V.eos)]),
        ([("text", [5, 6])], [(2, V.eos)]),
        ([("image", IMAGE)], [(0, V.boi), (0, V.eos)]),
        ([("text", [5]), ("image", IMAGE)], [(1, V.boi), (0, V.eos)]),
        ([("image", IMAGE), ("text", [5])], [(0, V.boi), (1, V.eos)]),
        ([("text", [5]), ("image", IMAGE), ("text", [6, 7])], [(1, V.boi), (2, V.eos)]),
        ([("text", [5]), ("image", IMAGE), ("image", IMAGE)], [(1, V.boi), (0, V.boi), (0, V.eos)]),
        ([("text", [5]), ("text", []), ("text", [6])], [(2, V.eos)]),
    ],
)
def test_a_text_ends_with_what_follows(parts: list[tuple[str, Any]], wanted: list[tuple[int, int]]) -> None:
    document = made("interleaved", parts=parts)
    assert ends(document) == wanted
    batch = lay_out([[document]], pad=V.pad)
    (count,) = [n for ids, n in batch.spans if ids == V.passage_ranges]
    assert count == sum(1 + length for length, _ in wanted), "both ends can stand at every position of a text"
    images = sum(kind == "image" for kind, _ in parts)
    assert len(document) == count + 2 * images * len(IMAGE), "a learned image is followed, and stands there twice"


def test_texts_of_other_tasks_end_with_the_end_alone() -> None:
    for task, record in (("text_only", {"caption": [5]}), ("image_to_text", {"caption": [5], "image": IMAGE})):
        document = made(task, **record)
        assert document.targets[-1] == V.eos and (V.text_range, 2) in document.runs
        assert V.boi not in document.targets.tolist()


def test_two_texts_in_a_row_are_one() -> None:
    pieces = in_turn([("text", "a b"), ("text", ""), ("text", "c"), ("image", IMAGE), ("image", IMAGE), ("text", "d")])
    assert [piece.modality for piece in pieces] == [PASSAGE, "image", PASSAGE, "image", PASSAGE]
    assert [piece.value for piece in pieces[::2]] == ["a b c", "", "d"]
    assert in_turn(pieces_as_parts(pieces)) == pieces, "what is in turn stays"


def pieces_as_parts(pieces: list[Any]) -> list[tuple[str, Any]]:
    return [("text" if piece.modality == PASSAGE else piece.modality, piece.value) for piece in pieces]


def write(chosen: list[int], known: list[int], length: int = 4) -> tuple[list[int], list[int]]:
    """What a writer of passages writes where these ids are the likeliest, and how many positions each step asks for."""
    writer = PassageModality(V, list, length).writer(1, torch.device("cpu"))
    writer.admit(0, 0, SampleSettings(guidance=1.0, temperature=0.0), torch.tensor(known, dtype=torch.int64))
    index, asked = torch.tensor([0]), []
    for one in chosen:
        request = writer.ask([0], index)
        asked.append(request.ids.shape[1])
        assert (request.groups is None) == (asked[-1] == 1)
        logits = torch.zeros(1, 1, V.size)
        logits[..., one] = 9.0
        writer.take([0], index, [logits[..., ids] for ids, _ in request.spans])
        if writer.finished([0]):
            break
    assert writer.kept(0) == sum(asked), "every position that was run is one of the text"
    return writer.written(0).tolist(), asked


def test_a_passage_is_written_behind_what_is_known() -> None:
    assert write([5, 6, V.eos], []) == ([5, 6], [1, 1, 1])
    assert write([5, V.boi], [7, 8]) == ([7, 8, 5, V.boi], [3, 1])
    assert write([V.boi], [7, 8]) == ([7, 8, V.boi], [3])


def test_a_passage_of_the_greatest_length_ends_and_says_how() -> None:
    text, asked = write([5] * 9, [])
    assert text[:4] == [5, 5, 5, 5] and text[4:] in ([], [V.boi]) and asked == [1] * 5
    assert write([5] * 9, [7, 8, 9, 10])[0][:4] == [7, 8, 9, 10]


def test_a_text_that_ended_goes_on_behind_further_ids() -> None:
    writer = PassageModality(V, list, 6).writer(2, torch.device("cpu"))
    writer.admit(1, 0, SampleSettings(guidance=1.0, temperature=0.0))
    index = torch.tensor([1])

    def step(one: int) -> torch.Tensor:
        request = writer.ask([1], index)
        logits = torch.zeros(1, 1, V.size)
        logits[..., one] = 9.0
        writer.take([1], index, [logits[..., ids] for ids, _ in request.spans])
        return request.ids

    step(5)
    step(V.boi)
    assert writer.written(1).tolist() == [5, V.boi] and writer.kept(1) == 2
    writer.more(1, torch.tensor([8, 9]))
    assert not writer.finished([1]) and step(6).tolist() == [[8, 9]] and step(V.eos).tolist() == [[6]]
    assert writer.written(1).tolist() == [5, 8, 9, 6] and writer.finished([1]) == [1]
    assert set(writer.ids[1, 5:].tolist()) == {V.eos}


def test_nothing_is_predicted_in_given_parts() -> None:
    document = made("interleaved", parts=[("text", [5]), ("image", IMAGE), ("text", [6])])
    assert (document.targets[-6:-2] == IGNORE).all(), "the given copy"


def test_texts_before_images_are_left_out_each_by_chance() -> None:
    parts = [("text", [5]), ("image", IMAGE), ("text", [6, 7]), ("image", IMAGE), ("text", [8])]
    draws = [Draw(torch.Generator().manual_seed(seed)) for seed in range(400)]
    found = documents(["interleaved"] * 400, [{"parts": parts}] * 400, draws, MODALITIES, {"text": 0.25}, NUMBERS)
    empty = torch.tensor([[count == 0 for count, _ in ends(document)] for document in found])
    assert not empty[:, 2].any(), "the last text has no image behind it"
    assert empty[:, 0].float().mean() == pytest.approx(0.25, abs=0.06)
    assert empty[:, 1].float().mean() == pytest.approx(0.25, abs=0.06)
    assert (empty[:, 0] & empty[:, 1]).float().mean() == pytest.approx(0.0625, abs=0.04)
    whole = next(document for document, gone in zip(found, empty.tolist(), strict=True) if gone == [False] * 3)
    second = next(
        document for document, gone in zip(found, empty.tolist(), strict=True) if gone == [False, True, False]
    )
    assert ends(second) == [(1, V.boi), (0, IGNORE), (1, V.eos)], "what is left out is not learned"
    assert ends(whole) == [(1, V.boi), (2, V.boi), (1, V.eos)]
    assert (second.targets != IGNORE).sum() == (whole.targets != IGNORE).sum() - 3, "images are"
    for left_out in documents(["interleaved"] * 40, [{"parts": parts}] * 40, draws[:40], MODALITIES, {}, NUMBERS):
        assert ends(left_out) == ends(whole)
