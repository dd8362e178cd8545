"""Show-o: logits, passes, answers and losses of its authors' code, which is written from a description of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.layout import Layout
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.objectives.maskgit import ByConfidence
from unitok.sample.pipeline import answer, caption_codes, draw_codes, score_codes
from unitok.sample.reading import ask
from unitok.sampling import SampleSettings
from unitok.sequence import lay_out, pack
from unitok.tasks import TASKS, documents
from unitok.tasks import asked as asked_by
from unitok.trunk.published import published_family
from unitok.vocabulary import Vocabulary

from ..foreign import CODES, loss_among, survives
from ..test_generators import some_codes
from ..test_start import trains_on
from ..tiny import SIDES, tokenizer
from .showo_model import (
    CAPTION,
    CAPTIONS,
    END,
    FIRST,
    LENGTH,
    MASK,
    P,
    alone,
    asked,
    drawn,
    passes,
    reading,
    said,
)


@torch.inference_mode()
def test_codes_have_the_authors_logits(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Also where some codes are known, others in each picture."""
    codes = some_codes(LENGTH)
    known = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.7], [0.3], [0.0]])
    found, given = score_codes(model, CAPTIONS, codes), score_codes(model, CAPTIONS, codes, known)
    hidden = torch.full((LENGTH,), -1)
    for row, caption in enumerate(CAPTIONS):
        text = model.text_tokenizer.encode(caption)
        torch.testing.assert_close(found[row], drawn(theirs[0], text, hidden), atol=1e-4, rtol=0)
        wanted = drawn(theirs[0], text, torch.where(known[row], codes[row], -1))
        torch.testing.assert_close(given[row], wanted, atol=1e-4, rtol=0)
    assert found.std() > 0.3 and (found[:2] - given[:2]).std() > 0.1


@torch.inference_mode()
def test_pictures_are_those_of_the_authors_passes(theirs: tuple[Any, Path], model: UniTok) -> None:
    found = []
    for scale, steps in ((0.0, 5), (1.75, 3), (5.0, 18)):
        settings = SampleSettings(guidance=1 + scale, steps=steps)
        found.append(draw_codes(model, CAPTIONS[:2], settings, [3, 4]))
        for row, caption in enumerate(CAPTIONS[:2]):
            wanted = passes(theirs[0], model.text_tokenizer.encode(caption), scale, steps, 3 + row)
            assert torch.equal(found[-1][row], wanted), (scale, steps, caption)
    assert len({tuple(one.flatten().tolist()) for one in found}) == 3


def test_what_is_hidden_is_rounded_as_the_authors_round_it() -> None:
    """In float32: behind 12 of 18 passes 127 of 256 codes are hidden, not half of them."""
    layout = Layout(((16, 16),), in_line=True)
    writer = ByConfidence(layout, Vocabulary.of(P, CODES), 1, torch.device("cpu"), cools_fast=True)
    for steps in (18, 50):
        writer.admit(0, 0, SampleSettings(steps=steps))
        wanted, before = [], 256
        for step in range(steps - 1):
            share = torch.cos(torch.tensor(1.0 * (step + 1) / steps) * math.pi * 0.5)
            before = max(1, min(before - 1, int((256 * share).floor())))
            wanted.append(before)
        assert writer.plan(0).still_hidden == [*wanted, 0]
    writer.admit(0, 0, SampleSettings(steps=18))
    assert writer.plan(0).still_hidden[11] == 127


@torch.inference_mode()
def test_answers_have_the_logits_and_ids_of_the_authors(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Behind a picture and a question, whose words and marks are tokenized as a whole. A caption is an answer too."""
    codes, text, words = some_codes(LENGTH), [20, 11, 33], model.text_tokenizer.tokenizer
    for task, question in (("image_to_text", CAPTION), ("question", "what is in it?")):
        record = {"image": codes[0], "question": question, "answer": text, "caption": text}
        [made] = documents([task], [record], [Draw(torch.Generator())], model.modalities(), {}, {task: 0})
        ids = asked(words, question)
        assert made.inputs.tolist()[-len(text) - 1] == model.vocabulary["turn"].start
        assert len(made) == 1 + 1 + LENGTH + 1 + 1 + len(ids) + len(text)
        hidden = model.states(lay_out([[made]], pad=model.vocabulary.pad))[0, -len(text) - 1 :]
        found = model.ids.scores(hidden, model.vocabulary.text_range)
        wanted = reading(theirs[0], codes[0], [*ids, *text])[len(ids) :]
        torch.testing.assert_close(found[:, 1:P], wanted[:, 1:P], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[:, P], wanted[:, END], atol=1e-4, rtol=0)  # the end is an id of its own here
        assert (found[:, END] < -1000).all()


@torch.inference_mode()
def test_the_most_likely_answers_are_those_of_the_authors(
    theirs: tuple[Any, Path], model: UniTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "text_length", 40)
    pictures = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    codes, words = model.image_tokenizer.encode(to_float(pictures)), model.text_tokenizer.tokenizer
    decode = model.text_tokenizer.decode

    def wanted(row: int, question: str) -> str:
        return decode(said(theirs[0], codes[row], asked(words, question), 40))

    questions = ["what is in it?", "Is it red? "]
    assert ask(model, pictures[0], questions) == [wanted(0, question) for question in questions]
    assert answer(model, pictures, questions) == [wanted(row, question) for row, question in enumerate(questions)]
    captions = caption_codes(model, codes)
    assert captions == [wanted(row, CAPTION) for row in range(2)]
    other = import_generator("showo", theirs[1], tokenizer(), {"caption": "what is in it?"})
    monkeypatch.setattr(other.config, "text_length", 40)
    assert caption_codes(other, codes[:1]) == [wanted(0, "what is in it?")] != captions[:1]


def test_a_folder_of_before_goes_on_behind_the_picture_alone(model: UniTok) -> None:
    """It lacks the id with which answers begin."""
    before = [span for span in model.config.vocabulary if span[0] != "turn"]
    config = replace(model.config, vocabulary=tuple(before), tasks=("text_to_image", "image_to_text"))
    old = UniTok(config, model.image_tokenizer, model.text_tokenizer)
    modalities = old.modalities()
    for name in ("text", "answer"):
        assert modalities[name].begin == old.vocabulary.bos  # type: ignore[attr-defined]
    record = {"image": some_codes(LENGTH)[0]}
    assert asked_by("image_to_text", record, modalities) == ("image_to_text", record)
    assert asked_by("image_to_text", record, model.modalities())[0] == "question"


def test_the_model_survives_its_folder_and_commands_take_it(
    theirs: tuple[Any, Path], model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survives(model, CAPTIONS, tmp_path / "again")
    tokenizer().save_pretrained(tmp_path / "images")
    words = ["--image_tokenizer", str(tmp_path / "images"), "--out", str(tmp_path / "model")]
    assert main(["import", "showo", str(theirs[1]), *words]) == 0
    assert UniTok.from_pretrained(tmp_path / "model").fingerprint() == model.fingerprint()
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "drawn")]
    assert main(["sample", CAPTIONS[0], "--n", "1", *words]) == 0
    records = [json.loads(line) for line in (tmp_path / "drawn/pictures/metadata.jsonl").read_text().splitlines()]
    assert records[0]["settings"]["guidance"] == 2.75 and records[0]["settings"]["steps"] == 18
    picture = next((tmp_path / "drawn" / "pictures").glob("*.png"))
    assert main(["caption", "--model", str(tmp_path / "model"), str(picture)]) == 0
    capsys.readouterr()
    assert main(["ask", str(picture), "what is in it?", "how many?", "--model", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in said] == ["what is in it?", "how many?"]
    assert main(["ask", str(picture), "why " * 200, "--model", str(tmp_path / "model")]) == 2
    assert "tokens, this model takes 128: shorten it" in capsys.readouterr().err
    trains_on(tmp_path / "model", picture.parent, tmp_path / "tuned", "--tasks.text_only.share", "0")


def test_a_training_step_has_the_loss_of_the_authors(theirs: tuple[Any, Path]) -> None:
    """Pictures, texts alone and captions, by the authors' weights. They take all ids for likely: where only some can
    stand, their loss is higher by what it says of the others."""
    model, codes = import_generator("showo", theirs[1], tokenizer()).train(), some_codes(LENGTH)
    words, weights = model.text_tokenizer.tokenizer, {"text_to_image": 1.0, "text_only": 0.1, "image_to_text": 1.0}
    tasks = [task for task in weights for _ in CAPTIONS]
    records = [{"image": one, "caption": caption} for one, caption in zip(codes, CAPTIONS, strict=True)] * 3
    draws = [Draw(torch.Generator().manual_seed(row)) for row in range(len(tasks))]
    numbers = {task: list(TASKS).index(task) for task in weights}
    made = documents(tasks, records, draws, model.modalities(), {}, numbers)
    batch = pack(made, pad=model.vocabulary.pad)
    losses, counts = model(batch), torch.bincount(batch.tasks, minlength=len(TASKS))
    losses.sum().backward()
    assert all(weight.grad is not None for weight in model.trunk.parameters())
    scores: dict[str, list[Tensor]] = {task: [] for task in weights}
    labels: dict[str, list[Tensor]] = {task: [] for task in weights}
    for task, document, record in zip(tasks, made, records, strict=True):
        text, image = words.encode(record["caption"]).ids, record["image"]
        if task == "text_to_image":
            hidden = document.inputs[-LENGTH - 1 : -1] == model.vocabulary.mask
            scores[task].append(drawn(theirs[0], text, image.masked_fill(hidden, -1), whole=True)[hidden])
            labels[task].append(FIRST + image[hidden])
        elif task == "text_only":
            scores[task].append(alone(theirs[0], text))
            labels[task].append(torch.tensor([*text, END]))
        else:
            # The caption stands behind its question and a space.
            ids = words.encode(f"USER: \n{CAPTION} ASSISTANT:{' ' * bool(text)}{record['caption']}").ids
            begun = len(asked(words, CAPTION))
            scores[task].append(reading(theirs[0], image, ids)[begun:])
            labels[task].append(torch.tensor([*ids[begun:], END]))
    total = torch.tensor(0.0)
    for task, weight in weights.items():
        logits, targets = torch.cat(scores[task]), torch.cat(labels[task])
        assert counts[numbers[task]] == len(targets)
        can_stand = (FIRST, MASK) if task == "text_to_image" else (0, P)
        wanted = loss_among(cross_entropy(logits, targets), logits, [*range(*can_stand)])
        torch.testing.assert_close(losses[numbers[task]] / len(targets), wanted, atol=1e-5, rtol=0)
        total = total + weight * wanted
    torch.testing.assert_close(
        sum(weight * losses[numbers[task]] / counts[numbers[task]] for task, weight in weights.items()),
        total,
        atol=1e-5,
        rtol=0,
    )


def test_released_models_have_the_published_tensors() -> None:
    table = published_family("showo")
    shapes = table.shapes(*table.released()["show-o"])
    assert len(shapes) == 437
    assert shapes["showo.model.embed_tokens.weight"] == (58498, 2048) and shapes["showo.lm_head.bias"] == (58498,)
    assert shapes["showo.model.layers.23.self_attn.q_layernorm.weight"] == (64,)


def test_what_does_not_fit_is_told(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"makes 1x1 \+ 2x2 \+ 3x3 \+ 4x4 codes, Show-o draws one square grid"):
        import_generator("showo", theirs[1], tokenizer(SIDES))
    with pytest.raises(UserError, match="draws 43 codes, the image tokenizer has 50: give the folder that unitok imp"):
        import_generator("showo", theirs[1], tokenizer(), {"llm_vocab_size": P + 7})
    weights = torch.load(theirs[1] / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "mm_projector.0.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((theirs[1] / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"it has unexpected mm_projector.0.weight \(the nearest released model is"):
        import_generator("showo", tmp_path, tokenizer())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no tokenizer.json beside it.*or name it with --settings"):
        import_generator("showo", tmp_path, tokenizer())
    named = {"text_tokenizer": str(theirs[1])}
    found = import_generator("showo", tmp_path, tokenizer(), named)
    assert found.fingerprint() == import_generator("showo", theirs[1], tokenizer()).fingerprint()
