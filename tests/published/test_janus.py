"""Janus: logits, codes and pictures of transformers' own classes, on a tiny model that they saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unitok.importing import import_generator
from unitok.modalities import Picture
from unitok.objectives.base import Draw
from unitok.sample.pipeline import answer, draw_codes, score_codes
from unitok.sample.pipeline import caption as written
from unitok.sample.reading import ask
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import documents

from .foreign import SIDE, loss_among, mean_losses
from .janus_model import CAPTION, COLON, forced, greedy, ids_of, prompt, said, seen, tiny_janus, words_of
from .test_generators import GREEDY, some_codes


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("janus")
    return tiny_janus(folder), folder


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    model = import_generator("janus", theirs[1])
    codes = some_codes(SIDE * SIDE)
    found = score_codes(model, [CAPTION, "w5", ""], codes)
    for row, caption in enumerate((CAPTION, "w5", "")):
        wanted = forced(theirs[0], ids_of(model, caption), codes[row])
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=0)
    assert found.std() > 0.3


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Guidance compares with padding in place of the caption."""
    model = import_generator("janus", theirs[1])
    drawn = []
    for scale in (1.5, 2.0, 5.0):
        found = draw_codes(model, [CAPTION, "w5"], SampleSettings(guidance=scale, **GREEDY), [0, 1])
        drawn.append(found)
        for row, caption in enumerate((CAPTION, "w5")):
            assert torch.equal(found[row], greedy(theirs[0], ids_of(model, caption), scale)), (scale, caption)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@torch.inference_mode()
def test_texts_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    model = import_generator("janus", theirs[1])
    ids = [20, 11, 33, 9]
    [[segment]] = model.modalities()["answer"].learned([ids], [], [False])
    hidden = model.states(lay_out([[document([segment])]], pad=model.vocabulary.pad))
    found = model.ids.scores(hidden[0], model.vocabulary.text_range)
    wanted = theirs[0](torch.tensor([[COLON, *ids]])).logits[0]
    size = model.text_tokenizer.size
    others = [place for place in range(size) if place != 2]
    torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, size], wanted[:, 2], atol=1e-4, rtol=0)  # the end is an id of its own here
    assert (found[:, 2] < -1000).all()


def some_pictures(count: int) -> Tensor:
    random = torch.Generator().manual_seed(7)
    colours = torch.randint(200, (count, 3, 1, 1), generator=random)
    return (colours + torch.randint(56, (count, 3, SIDE * 4, SIDE * 4), generator=random)).to(torch.uint8)


@torch.inference_mode()
def test_answers_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Behind one picture or two and a question, of several documents in one row."""
    model = import_generator("janus", theirs[1], settings={"system": "w1 w2 \n\n"})
    pictures, text = some_pictures(3), [20, 11, 33]
    task, given = "question", [Picture(one) for one in pictures]
    images = [*given, given[:2]]
    record = [{"image": one, "question": "w5 w6", "answer": text} for one in images]
    draws = [Draw(torch.Generator())] * 4
    made = documents([task] * 4, record, draws, model.modalities(), {}, {task: 0})
    for number, item in enumerate(made):
        hidden = model.states(lay_out([[item, made[0]]], pad=model.vocabulary.pad))[0, : len(item)]
        pixels = [pictures[number]] if number < 3 else pictures[:2]
        ids = [*prompt(model, "w5 w6", "w1 w2 \n\n", len(pixels)), *text]
        assert len(ids) == len(item)
        wanted = theirs[0](torch.tensor([ids]), pixel_values=torch.cat([*map(seen, pixels)])).logits[0, -4:]
        found = model.ids.scores(hidden[-4:], model.vocabulary.text_range)
        size = model.text_tokenizer.size
        others = [place for place in range(size) if place != 2]
        torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[:, size], wanted[:, 2], atol=1e-4, rtol=0)


def test_a_training_step_has_the_loss_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Over codes behind a caption or behind the padding in its place, and over answers and captions. Its own loss over
    texts takes all ids for likely; what it says of ids that no token has is taken off."""
    model, codes, pictures = import_generator("janus", theirs[1]), some_codes(SIDE * SIDE), some_pictures(2)
    captions, answers = (CAPTION, "w5", ""), ("w1 w2 w9", "w4")
    drawn = [{"caption": text, "image": one} for text, one in zip(captions, codes, strict=True)]
    read = [
        {"image": Picture(one), "question": "w5 w6", "answer": text, "caption": text}
        for one, text in zip(pictures, answers, strict=True)
    ]
    with torch.no_grad():
        for dropped in (0.0, 1.0):
            found = mean_losses(model, ["text_to_image"] * 3, drawn, dropped)["text_to_image"]
            scores = []
            for text, one in zip(captions, codes, strict=True):
                ids = ids_of(model, text)
                ids = [ids[0], *[3] * (len(ids) - 2), ids[-1]] if dropped else ids
                scores.append(forced(theirs[0], ids, one))
            torch.testing.assert_close(found, cross_entropy(torch.cat(scores), codes.flatten()), atol=1e-5, rtol=0)
        for task, question in (("question", "w5 w6"), ("image_to_text", "Describe the image.")):
            found, losses, logits = mean_losses(model, [task] * 2, read)[task], [], []
            for one, text in zip(pictures, answers, strict=True):
                begin, learned = prompt(model, question), [*model.text_tokenizer.encode(text), 2]
                labels = torch.tensor([[*[-100] * len(begin), *learned]])
                out = theirs[0](torch.tensor([[*begin, *learned]]), pixel_values=seen(one), labels=labels)
                losses.append(out.loss * len(learned))
                logits.append(out.logits[0, len(begin) - 1 : -1])
            whole = sum(losses) / sum(map(len, logits))
            wanted = loss_among(whole, torch.cat(logits), [*range(model.text_tokenizer.size)])
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_most_likely_answers_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Captions are answers to a question of the model's."""
    model = import_generator("janus", theirs[1])
    length = model.config.text_length
    model.config.text_length = 12
    pictures = some_pictures(3)
    captions = written(model, pictures)
    wanted = [words_of(model, said(theirs[0], prompt(model, "Describe the image."), one)) for one in pictures]
    assert captions == wanted and len(set(captions)) > 1
    answers = answer(model, pictures, ["w5 w6", "w7", "w8 w9 w10"])
    pairs = zip(pictures, ["w5 w6", "w7", "w8 w9 w10"], strict=True)
    assert answers == [words_of(model, said(theirs[0], prompt(model, question), one)) for one, question in pairs]
    assert ask(model, pictures[0], ["w5 w6"]) == answers[:1]
    model.config.text_length = length


@torch.inference_mode()
def test_pictures_and_their_codes_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    images = import_generator("janus", theirs[1]).image_tokenizer
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = theirs[0].model.vqmodel.encode(pictures).image_tokens.view(3, -1)
    assert torch.equal(images.encode(pictures), encoded) and len(encoded.unique()) > 5
    wanted = theirs[0].model.vqmodel.decode(encoded)
    torch.testing.assert_close(images.decode(encoded), wanted, atol=1e-4, rtol=0)


def test_a_caption_that_training_leaves_out_is_padding_too(theirs: tuple[Any, Path]) -> None:
    model, codes = import_generator("janus", theirs[1]), some_codes(SIDE * SIDE)[:1]
    record = {"caption": CAPTION, "image": codes[0]}
    task, texts = "text_to_image", model.modalities()
    rows = []
    for share in (0.0, 1.0):
        draws = [Draw(torch.Generator().manual_seed(0))]
        [made] = documents([task], [record], draws, texts, {"text": share}, {task: 0})
        rows.append(made.inputs.tolist())
    caption = len(ids_of(model, CAPTION)) - 2
    assert len(rows[0]) == 1 + caption + SIDE * SIDE and model.vocabulary.pad not in rows[0]
    assert rows[1] == [rows[0][0], *[model.vocabulary.pad] * caption, *rows[0][1 + caption :]]
