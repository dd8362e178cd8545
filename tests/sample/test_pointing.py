"""Boxes that are written before an answer, a picture, or the picture of a document: a model points first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import stir

from tokenizers_vq.errors import UserError
from unitok.boxes import GroundedPassageModality, is_box, words_of
from unitok.cli.main import main
from unitok.config import ModelConfig
from unitok.data.judging import judge
from unitok.data.open import open_data
from unitok.eval.questions import has_questions
from unitok.modalities import PASSAGE
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.best_of import candidate_seeds, reading_scores
from unitok.sample.document_files import read_beginnings, save_documents
from unitok.sample.documents import DocumentWriter, write_documents
from unitok.sample.inpainting import inpainting_job
from unitok.sample.jobs import Job, job_for
from unitok.sample.masks import touched
from unitok.sample.performing import perform
from unitok.sample.pipeline import GREEDY, answer, before_pictures, decoded, draw_each, engine_for, run, score_codes
from unitok.sampling import SampleSettings
from unitok.seeding import fold, keyed_generator
from unitok.tasks import Piece, documents, pieces, way
from unitok.trunk.attention import attention_to_words
from unitok.vocabulary import Vocabulary

BOX = [0.105, 0.205, 0.505, 0.605]
POINTED = ("pointed_question", "pointed_edit", "interleaved")
OBJECTIVES = ["next_token", "masked_token", "next_scale"]


def pointing(make_model: Callable[..., UniTok], objective: str = "next_token") -> UniTok:
    """A model that learned to point, in random weights."""
    made = make_model(objective)
    vocabulary = Vocabulary(made.config.vocabulary).grown("location", 100).grown("box", 1)
    config = ModelConfig(**{**vars(made.config), "vocabulary": vocabulary.spans, "tasks": POINTED, "text_length": 24})
    torch.manual_seed(0)
    return stir(UniTok(config, made.image_tokenizer, made.text_tokenizer).eval())


def codes_for(model: UniTok, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.image_tokenizer.codebook_size, (model.layout.length,), generator=generator)


def test_the_row_that_points_is_taken_where_it_was_learned() -> None:
    assert way("edit", ["edit"]) == "edit" and way("edit", ["edit", "pointed_edit"]) == "pointed_edit"
    assert way("question", ["pointed_question", "image_to_text"]) == "pointed_question"
    assert way("inpaint", ["inpaint", "pointed_inpaint", "edit"]) == "pointed_inpaint"
    assert way("text_to_image", ["image_to_text", "pointed_text_to_image"]) == "pointed_text_to_image"
    assert way("text_to_image", ["layout_to_image", "pointed_edit", "inpaint"]) is None
    assert way("question", ["pointed_edit", "ground"]) is None and way("image_to_text", ["ground_caption"]) is None


def test_boxes_stand_before_what_they_are_for() -> None:
    record = {"image": "picture", "question": ["what", "where"], "boxes": [[BOX], []], "answer": ["a cat", "here"]}
    said = [(piece.value, piece.learned) for piece in pieces("pointed_question", record)]
    assert said == [
        ("picture", False),
        ("what", False), ([BOX], True), ("a cat", True),
        ("where", False), ([], True), ("here", True),
    ]  # fmt: skip
    edit = {"source": "before", "instruction": "do", "boxes": [BOX], "image": "after"}
    assert [piece.value for piece in pieces("pointed_edit", edit)] == ["before", "do", [BOX], "after"]
    without = pieces("pointed_edit", edit, ["text"])
    assert [piece.value for piece in without] == ["before", [], "after"], "no boxes without the instruction"
    named = ["a cat", BOX]
    filled = {"known": "part", "hole": BOX, "caption": "a cat", "named": named, "image": "whole"}
    said = [(piece.value, piece.learned) for piece in pieces("pointed_inpaint", filled)]
    assert said == [("part", False), (BOX, False), ("a cat", False), (named, True), ("whole", True)]
    assert [piece.value for piece in pieces("pointed_inpaint", filled, ["text"])] == ["part", BOX, [], "whole"]
    said = [(piece.value, piece.learned) for piece in pieces("pointed_text_to_image", filled)]
    assert said == [("a cat", False), (named, True), ("whole", True)]
    assert [piece.value for piece in pieces("pointed_text_to_image", filled, ["text"])] == [[], "whole"]
    with pytest.raises(UserError, match="has no boxes, which the task pointed_edit needs"):
        pieces("pointed_edit", {**edit, "boxes": None})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("guidance", [[1.0], [2.0], [2.0, 1.5]])
def test_a_pointed_edit_is_drawn_as_behind_given_boxes(
    make_model: Callable[..., UniTok], objective: str, guidance: list[float]
) -> None:
    """What guidance compares with has neither the instruction nor the boxes, as in training."""
    model = pointing(make_model, objective)
    settings = SampleSettings(guidance=guidance, steps=3)
    records = [
        {"source": codes_for(model, number), "instruction": model.text_ids(text)}
        for number, text in enumerate(["make it blue", "turn the circle", ""])
    ]
    jobs = [job_for("pointed_edit", record, number + 7, settings) for number, record in enumerate(records)]
    together = run(model, jobs, batch_size=3)
    boxes = model.modalities()["box"]
    met = set()
    for number, (record, (pointed, drawn)) in enumerate(zip(records, together, strict=True)):
        [alone] = run(model, [job_for("pointed_edit", record, number + 7, settings)])
        assert torch.equal(alone[0], pointed) and torch.equal(alone[1], drawn), "no row depends on the others"
        where = boxes.value(pointed)
        assert all(map(is_box, where))
        met.add(str(where))
        source, text = Piece("image", record["source"], False), Piece("text", record["instruction"], False)
        prompts = [[source, text, Piece("box", where, False)], [source, Piece("text", [], False)]]
        prompts += [[Piece("text", [], False)]]
        [[wanted]] = run(model, [Job(prompts, "image", fold(number + 7, "turn", 1), settings)])
        assert torch.equal(drawn, wanted)
    assert len(met) > 1, "the boxes follow the instruction"


def learned(make_model: Callable[..., UniTok], *tasks: str) -> UniTok:
    """A model that learned these tasks, in random weights."""
    made = pointing(make_model)
    return stir(UniTok(replace(made.config, tasks=tasks), made.image_tokenizer, made.text_tokenizer).eval())


def test_a_hole_is_filled_as_behind_a_given_caption_with_boxes(make_model: Callable[..., UniTok]) -> None:
    model = learned(make_model, "pointed_inpaint")
    codes, caption = codes_for(model, 0), model.text_ids("a cat")
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[5:20, 8:31] = True
    known = codes.masked_fill(touched(mask[None], model.layout)[0], -1)
    settings = SampleSettings(guidance=2.0)
    [[named, drawn]] = run(model, [inpainting_job(model, known, mask, caption, 7, settings)])
    assert torch.equal(drawn[known >= 0], codes[known >= 0])
    hole = Piece("box", [8 / 32, 5 / 32, 31 / 32, 20 / 32], False)
    given = [Piece("image", known, False), hole, Piece("text", caption, False)]
    prompts = [[*given, Piece("grounded", named.tolist(), False)]]
    prompts += [[*given[:2], Piece("text", [], False)]]
    [[wanted]] = run(model, [Job(prompts, "image", fold(7, "turn", 1), settings, known)])
    assert torch.equal(drawn, wanted)


def test_where_things_are_to_be_differs_from_drawing_to_drawing(make_model: Callable[..., UniTok]) -> None:
    """Boxes of what is there already are the most likely ones; those of what is to be drawn read the seed."""
    model = learned(make_model, "pointed_text_to_image", "pointed_edit", "image_to_text")
    caption, settings = model.text_ids("a cat"), SampleSettings(guidance=2.0)
    jobs = [job_for("pointed_text_to_image", {"caption": caption}, seed, settings) for seed in range(4)]
    written = run(model, jobs)
    assert len({str(named.tolist()) for named, _ in written}) > 1
    [alone] = run(model, jobs[2:3])
    assert torch.equal(alone[0], written[2][0]) and torch.equal(alone[1], written[2][1]), "no row depends on the others"
    named, drawn = written[0]
    prompts = [[Piece("text", caption, False), Piece("grounded", named.tolist(), False)]]
    prompts += [[Piece("text", [], False)]]
    [[wanted]] = run(model, [Job(prompts, "image", fold(0, "turn", 1), settings)])
    assert torch.equal(drawn, wanted), "what guidance compares with has neither the caption nor the boxes"
    record = {"source": codes_for(model, 0), "instruction": caption}
    edited = run(model, [job_for("pointed_edit", record, seed, settings) for seed in range(3)])
    assert len({str(boxes.tolist()) for boxes, _ in edited}) == 1


def test_the_best_of_several_brings_its_own_boxes(make_model: Callable[..., UniTok]) -> None:
    model = learned(make_model, "pointed_text_to_image", "image_to_text")
    settings = SampleSettings(guidance=2.0, best_of=3)
    drawn = {one.place: one for one in draw_each(model, ["a cat", "a dog"], settings, [0, 1])}
    for place, caption in enumerate(["a cat", "a dog"]):
        seeds, ids = candidate_seeds(place, 3), model.text_ids(caption)
        each = run(model, [job_for("pointed_text_to_image", {"caption": ids}, seed, settings) for seed in seeds])
        best = each[int(reading_scores(model, torch.stack([codes for _, codes in each]), ids).argmax())]
        assert all(torch.equal(one, other) for one, other in zip(best, drawn[place].written, strict=True))
        assert torch.equal(decoded(model, best[1][None])[0], drawn[place].picture)


def test_codes_are_scored_behind_the_most_likely_boxes(make_model: Callable[..., UniTok]) -> None:
    model = learned(make_model, "pointed_text_to_image", "image_to_text")
    seen: list[torch.Tensor] = []
    ids, caption = model.text_ids("a cat"), "a cat"
    greedy = replace(job_for("pointed_text_to_image", {"caption": ids}, 0, GREEDY), settings=GREEDY)
    [[named, codes]] = run(model, [greedy])
    assert len(named)
    pointed = Piece("grounded", named.tolist(), False)
    run(
        model,
        [Job([[Piece("text", ids, False), pointed]], "image", 0, GREEDY)],
        watch=lambda _, one: seen.append(one[0]),
    )
    scores = score_codes(model, [caption], codes[None])
    torch.testing.assert_close(scores[0], torch.cat(seen), atol=1e-4, rtol=0)
    _, behind = before_pictures(model, [caption])[0]
    assert torch.equal(behind.ids, model.modalities()["grounded"].given([pointed.value])[0].ids)
    with_boxes, without = attention_to_words(model, caption, codes, [behind]), attention_to_words(model, caption, codes)
    assert with_boxes and without and not torch.allclose(with_boxes[0][1], without[0][1])


def test_how_far_a_picture_is_tells_nothing_of_its_boxes(make_model: Callable[..., UniTok]) -> None:
    model = pointing(make_model)
    record = {"source": codes_for(model, 0), "instruction": model.text_ids("turn it")}
    job = job_for("pointed_edit", record, 7, SampleSettings(guidance=2.0))
    engine = engine_for(model, [job], 1)
    told = []
    while engine.busy:
        told.append(engine.progress(0))
        engine.step()
    [[boxes, codes]] = run(model, [job])
    assert told[: len(boxes)] == [None] * len(boxes)
    pictures = [one for one in told if one is not None]
    assert [one.step for one in pictures] == list(range(len(codes)))
    assert all(one.steps == len(one.so_far) == len(codes) for one in pictures)


def test_an_answer_stands_behind_its_boxes(make_model: Callable[..., UniTok]) -> None:
    model = pointing(make_model)
    picture = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    [code] = model.image_tokenizer.encode(picture[None].float() / 127.5 - 1)
    question = model.text_ids("where is it")
    [pointed, said] = run(model, [job_for("pointed_question", {"image": code, "question": question}, 0, GREEDY)])[0]
    given = [Piece("image", code, False), Piece("text", question, False)]
    given.append(Piece("box", model.modalities()["box"].value(pointed), False))
    [[wanted]] = run(model, [Job([given], "text", fold(0, "turn", 1), GREEDY)])
    assert torch.equal(said, wanted)
    assert answer(model, picture[None], ["where is it"]) == [model.text_tokenizer.decode(said.tolist())]


def test_performed_on_records(make_model: Callable[..., UniTok]) -> None:
    """Boxes of the records themselves are not shown to the model; judges see what is written last."""
    model = pointing(make_model)
    edits = open_data("shapes@val?task=edit&limit=2", model.image_tokenizer.image_size)
    records = [edits[index] for index in range(2)]
    drawn = perform(model, "pointed_edit", records, SampleSettings(guidance=1.5, steps=3))
    for record in records:
        record.fields["boxes"] = [[0.0, 0.0, 1.0, 1.0]]
    again = perform(model, "pointed_edit", records, SampleSettings(guidance=1.5, steps=3), batch_size=1)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert judge("pointed_edit", records[0], records[0].image) and not judge("pointed_edit", records[0], drawn[0])
    questions = open_data("shapes@val?limit=2", model.image_tokenizer.image_size)
    [said] = perform(model, "pointed_question", [questions[0]])
    assert isinstance(said, str) and judge("pointed_question", questions[0], questions[0].fields["answer"])


# --- documents ------------------------------------------------------------------------------------------------------


def test_passages_may_have_boxes(make_model: Callable[..., UniTok]) -> None:
    model = pointing(make_model)
    passages = model.modalities()[PASSAGE]
    assert isinstance(passages, GroundedPassageModality)
    value = ["a cat", BOX, " and", BOX]
    ids, vocabulary = passages.ids(value), model.vocabulary
    found = passages.said(ids, model.text_tokenizer.decode)
    assert [words_of(found), found[1]] == [words_of(value), pytest.approx(BOX, abs=0.01)]
    assert passages.said(passages.ids("a cat"), model.text_tokenizer.decode) == "a cat"
    parts = [("text", value), ("image", codes_for(model, 0)), ("text", "so")]
    draw = Draw(keyed_generator(0, "test"))
    [made] = documents(["interleaved"], [{"parts": parts}], [draw], model.modalities(), {}, {"interleaved": 0})
    assert made.targets is not None
    text = made.targets[: len(ids) + 1]
    assert text.tolist() == [*ids, vocabulary.boi], "what follows is said behind the boxes"
    inside = sum(count for can_stand, count in made.runs if can_stand == vocabulary["location"])
    assert inside == 8


def test_a_model_without_ids_of_boxes_refuses_them(make_model: Callable[..., UniTok]) -> None:
    passages = make_model().modalities()[PASSAGE]
    with pytest.raises(UserError, match="a text of a document has boxes, and this model has no ids for them: train"):
        passages.learned([["a cat", BOX]], [Draw(keyed_generator(0, "test"))], [True])


@torch.inference_mode()
def test_boxes_of_documents_are_whole(make_model: Callable[..., UniTok]) -> None:
    """And no document depends on the others."""
    model = pointing(make_model)
    hot = SampleSettings(guidance=1.0, temperature=3.0, steps=2)
    writer = DocumentWriter(model, hot, hot, pictures=2, context=1000)
    found = dict(write_documents(writer, [[("text", "a cat")], []] * 6, range(12), batch_size=5))
    alone = dict(write_documents(writer, [[("text", "a cat")]], [4]))[0]
    texts = [value for parts in found.values() for kind, value in parts if kind == "text"]
    boxes = [part for text in texts if not isinstance(text, str) for part in text if not isinstance(part, str)]
    assert len(boxes) > 4 and all(map(is_box, boxes))
    assert str(found[4]) == str(alone)


def test_boxes_of_a_hot_text_are_the_likeliest(make_model: Callable[..., UniTok]) -> None:
    """The same begin of a box gives the same box at any temperature, while texts differ."""
    passages = pointing(make_model).modalities()[PASSAGE]
    assert isinstance(passages, GroundedPassageModality)
    vocabulary, device = passages.vocabulary, torch.device("cpu")
    hot = SampleSettings(guidance=1.0, temperature=5.0)
    scores = torch.zeros(vocabulary.size)
    scores[vocabulary["location"].start + 40] = 0.1
    texts, boxes = set(), set()
    for seed in range(4):
        writer = passages.writer(1, device)
        writer.admit(0, seed, hot, torch.tensor([vocabulary["box"].start]))
        writer.missing[0] = 4
        for _ in range(9):
            asked = writer.ask([0], torch.tensor([0]))
            writer.take([0], torch.tensor([0]), [scores[span][None, None] for span, _ in asked.spans])
        ids = writer.ids[0, 1:].tolist()
        boxes.add(tuple(ids[1:5]))
        texts.add(tuple(ids[5:10]))
    assert boxes == {(vocabulary["location"].start + 40,) * 4} and len(texts) > 1


@pytest.mark.parametrize("follows", ["boi", "eos"])
def test_a_passage_full_of_boxes_ends_behind_a_whole_one(make_model: Callable[..., UniTok], follows: str) -> None:
    passages = pointing(make_model).modalities()[PASSAGE]
    assert isinstance(passages, GroundedPassageModality)
    vocabulary, device = passages.vocabulary, torch.device("cpu")
    writer = passages.writer(2, device)
    writer.admit(1, 0, GREEDY, None)
    wanted = torch.zeros(vocabulary.size)
    wanted[vocabulary["box"].start] = 3
    wanted[vocabulary["location"]] = torch.linspace(0, 1, 100)
    wanted[getattr(vocabulary, follows)] = 1
    while not writer.finished([1]):
        asked = writer.ask([1], torch.tensor([1]))
        writer.take([1], torch.tensor([1]), [wanted[span][None, None] for span, _ in asked.spans])
    ids = writer.written(1)
    value = passages.value(ids)
    assert passages.image_follows(ids) == (follows == "boi")
    assert len(value) > passages.longest - 5 and len(value) % 5 == 0 and len(value) <= passages.longest
    boxes = passages.said(value, str)
    assert len(boxes) == len(value) // 5 and all(map(is_box, boxes))


def test_documents_with_boxes_are_written_down_and_read(tmp_path: Path) -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    save_documents(tmp_path / "documents.jsonl", [[("text", ["a cat", BOX]), ("image", picture), ("text", "so")]])
    [(_, parts)] = read_beginnings(tmp_path / "documents.jsonl", (8, 8))
    assert parts[0] == ("text", ["a cat", BOX]) and parts[2] == ("text", "so")
    record = open_data(str(tmp_path / "documents.jsonl"), (8, 8), captions="optional")[0]
    assert record.fields["parts"][0] == ("text", ["a cat", BOX])


# --- as a user ------------------------------------------------------------------------------------------------------


def test_edit_and_ask_by_a_model_that_points(
    make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointing(make_model).save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    common: list[Any] = ["--model", tmp_path / "model"]
    guidance = ["--guidance", "[2, 1.5]"]
    edit = ["edit", tmp_path / "a.png", "turn it", *common, "--n", 2, "--out", tmp_path / "out", *guidance]
    assert main([str(word) for word in edit]) == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3, "two pictures and a sheet"
    assert main([str(word) for word in ["ask", tmp_path / "a.png", "what is it", *common]]) == 0
    capsys.readouterr()


def test_questions_are_measured_where_the_model_points_first(make_model: Callable[..., UniTok]) -> None:
    model = pointing(make_model)
    asked = open_data("shapes@val?limit=2", model.image_tokenizer.image_size)
    assert has_questions(model, asked)
    model.config.tasks = ("pointed_edit",)
    assert not has_questions(model, asked)
