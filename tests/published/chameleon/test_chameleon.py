"""Chameleon: logits and codes of transformers' own classes, on tiny models that they saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.exporting.language import language_model
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import caption_codes, draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import lay_out
from unitok.tasks import documents

from ..foreign import (
    CODES,
    SIDE,
    WORDS,
    loss_among,
    mean_losses,
    released_as_in_transformers,
    survives,
    text_tokenizer,
)
from ..test_generators import GREEDY, some_codes
from ..test_start import trains_on
from ..tiny import tokenizer
from .chameleon_model import chameleon, image_tokenizer, scored, spelled

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
LENGTH = SIDE * SIDE
BOI, EOI, FIRST = 4, 5, 6
TURN = FIRST + CODES
QUESTION = "What do you see?"
ORDER = torch.randperm(CODES, generator=torch.Generator().manual_seed(7)).tolist()
"""Codes in the order of their ids."""
IDS = torch.tensor([FIRST + ORDER.index(code) for code in range(CODES)])
CAPTIONS = ("w3 w7 w1", "w5", "")


@pytest.fixture(scope="module", params=[False, True], ids=["norms before", "norms behind"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved(tmp_path_factory.mktemp("chameleon"), request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("chameleon"))[1]


def saved(folder: Path, norms_behind: bool = False) -> tuple[Any, Path]:
    names = ["<racm3:break>", "<eoss>", *map(spelled, ORDER), "<reserved08706>"]
    words = text_tokenizer(folder, SPECIALS, names)
    return chameleon(folder, words, image_tokenizer(), swin_norm=norms_behind), folder


def prompt(model: UniTok, caption: str) -> list[int]:
    return [0, *model.text_tokenizer.encode(caption), BOI]


def seen(model: UniTok, codes: torch.Tensor, talks: bool = True) -> list[int]:
    """What stands before the caption of a picture; models that were imported before they were asked go on behind it."""
    question = [*model.text_tokenizer.encode(QUESTION), TURN] if talks else []
    return [0, BOI, *IDS[codes].tolist(), EOI, *question]


def as_before(model: UniTok) -> UniTok:
    """A model that was imported before it was asked."""
    trunk, spans = replace(model.config.trunk, talks=False), model.config.vocabulary[:-1]
    config = replace(model.config, trunk=trunk, vocabulary=spans, tasks=("text_to_image", "image_to_text"))
    found = UniTok(config, model.image_tokenizer, model.text_tokenizer).eval()
    fewer = {
        name: model.state_dict()[name][: len(one)] if one.ndim else one for name, one in found.state_dict().items()
    }
    found.load_state_dict(fewer)
    return found


@torch.inference_mode()
def test_codes_have_the_logits_of_transformers(theirs: tuple[Any, Path]) -> None:
    model, codes = import_generator("chameleon", theirs[1], image_tokenizer()), some_codes(LENGTH)
    found = score_codes(model, CAPTIONS, codes)
    for row, caption in enumerate(CAPTIONS):
        begin = prompt(model, caption)
        wanted = scored(theirs[0], [*begin, *IDS[codes[row, :-1]].tolist()])[len(begin) - 1 :, IDS]
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=0)
    assert found.std() > 0.3


@torch.inference_mode()
def test_the_most_likely_codes_are_those_of_the_authors_guidance(theirs: tuple[Any, Path]) -> None:
    """They compare the prompt with itself without its texts, and with nothing. The prompts here are texts alone, as in
    all drawings of ours: the second and the third are the same, and the scale of pictures, 1.2, cancels."""
    model = import_generator("chameleon", theirs[1], image_tokenizer())
    drawn = []
    for scale in (1.0, 3.0):
        found = draw_codes(model, CAPTIONS[:2], SampleSettings(guidance=scale, **GREEDY), [0, 1])
        drawn.append(found)
        for row, caption in enumerate(CAPTIONS[:2]):
            full, wanted = prompt(model, caption), []
            for _ in range(LENGTH):
                written = IDS[wanted].tolist()
                cond, image, none = (scored(theirs[0], [*one, *written])[-1, IDS] for one in (full, [0, BOI], [0, BOI]))
                wanted.append(int((none + 1.2 * (image - none) + scale * (cond - image)).argmax()))
            assert found[row].tolist() == wanted, (scale, caption)
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("talks", [True, False])
@torch.inference_mode()
def test_captions_have_the_logits_and_ids_of_transformers(
    talks: bool, theirs: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, codes, ids = import_generator("chameleon", theirs[1], image_tokenizer()), some_codes(LENGTH), [70, 61, 88]
    model = model if talks else as_before(model)
    monkeypatch.setattr(model.config, "text_length", 8)
    pictures = [seen(model, one, talks) for one in codes]
    begin = len(pictures[0]) - 1
    task, draws = "image_to_text", [Draw(torch.Generator())]
    [made] = documents([task], [{"image": codes[0], "caption": ids}], draws, model.modalities(), {}, {task: 0})
    hidden = model.states(lay_out([[made]], pad=model.vocabulary.pad))[0, begin:]
    found = model.ids.scores(hidden, model.vocabulary.text_range)
    wanted = theirs[0](torch.tensor([[*pictures[0], *ids]])).logits[0, begin:]  # those of codes are lowest
    size = model.text_tokenizer.size
    closed = {2, *IDS.tolist()}
    others = [place for place in range(size) if place not in closed]
    torch.testing.assert_close(found[:, others], wanted[:, others], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, size], wanted[:, 2], atol=1e-4, rtol=0)  # the end is an id of its own here
    assert (found[:, sorted(closed)] < -1000).all()
    for picture, written in zip(pictures, caption_codes(model, codes), strict=True):
        row: list[int] = []
        while (
            len(row) < 8
            and (chosen := int(theirs[0](torch.tensor([picture + row])).logits[0, -1, :size].argmax())) != 2
        ):
            row.append(chosen)
        assert written == model.text_tokenizer.decode(row)


class Losses:
    """Those of transformers for texts that are learned."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.scores: list[torch.Tensor] = []
        self.learned = 0

    def add(self, model: Any, before: list[int], text: list[int]) -> None:
        out = model(torch.tensor([[*before, *text]]), labels=torch.tensor([[*[-100] * len(before), *text]]))
        self.losses.append(out.loss * len(text))
        self.scores.append(out.logits[0, len(before) - 1 : -1])
        self.learned += len(text)


def test_a_training_step_has_the_loss_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Over codes by the scores of its head, for its own loss hides codes; over captions its own loss. What they say of
    ids that cannot stand there is taken off."""
    model, codes = import_generator("chameleon", theirs[1], image_tokenizer()), some_codes(LENGTH)
    tasks = ["text_to_image"] * 3 + ["image_to_text"] * 3 + ["text_only"] * 3
    records = [{"image": one, "caption": text} for one, text in zip(codes, CAPTIONS, strict=True)] * 3
    size = model.text_tokenizer.size
    with torch.no_grad():
        found = mean_losses(model, tasks, records)
        scores, found_of = [], {"image_to_text": Losses(), "text_only": Losses()}
        for one, text in zip(codes, CAPTIONS, strict=True):
            begin = prompt(model, text)
            scores.append(scored(theirs[0], [*begin, *IDS[one[:-1]].tolist()])[len(begin) - 1 :])
            caption = [*model.text_tokenizer.encode(text), 2]
            found_of["image_to_text"].add(theirs[0], seen(model, one), caption)
            found_of["text_only"].add(theirs[0], [0], caption)
    wanted = cross_entropy(torch.cat(scores), IDS[codes].flatten())
    wanted = loss_among(wanted, torch.cat(scores), IDS)
    torch.testing.assert_close(found["text_to_image"], wanted, atol=1e-5, rtol=0)
    others = [place for place in range(size) if place not in IDS.tolist()]
    for task, one in found_of.items():
        wanted = loss_among(sum(one.losses) / one.learned, torch.cat(one.scores), others)
        torch.testing.assert_close(found[task], wanted, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_codes_of_pictures_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    images = import_generator("chameleon", theirs[1], image_tokenizer()).image_tokenizer
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = images.encode(pictures)
    assert torch.equal(IDS[found], theirs[0].get_image_tokens(pictures).long()) and len(found.unique()) > 1


def test_the_command_makes_a_model_that_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out, drawn = tmp_path / "images", tmp_path / "model", tmp_path / "drawn"
    image_tokenizer().save_pretrained(images)
    argv = ["import", "chameleon", str(folder), "--out", str(out)]
    assert main(argv) == 2
    assert "chameleon draws codes of an image tokenizer: give its folder" in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, "--image_tokenizer", str(images)]) == 0
    assert UniTok.from_pretrained(out).config.sampling == {"guidance": 3.0, "temperature": 0.7, "top_p": 0.9}
    assert main(["sample", "--model", str(out), CAPTIONS[0], "--out", str(drawn)]) == 0
    pictures = sorted((drawn / "pictures").glob("*.png"))
    assert len(pictures) == 4
    assert main(["caption", "--model", str(out), str(pictures[0])]) == 0
    trains_on(out, drawn / "pictures", tmp_path / "tuned")


@pytest.mark.parametrize("name", ["chameleon-7b", "chameleon-30b"])
def test_released_models_have_the_tensors_of_transformers(name: str) -> None:
    released_as_in_transformers(
        "chameleon", name, ChameleonForConditionalGeneration, ChameleonConfig, vocabulary_map={"<image>": 0}
    )


def test_the_model_survives_its_folder(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    survives(import_generator("chameleon", theirs[1], image_tokenizer()), CAPTIONS, tmp_path / "model")


def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds the codebook of another image tokenizer"):
        import_generator("chameleon", folder, tokenizer())
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    names = ["<racm3:break>", "<eoss>", *map(spelled, range(CODES - 1)), "<reserved08706>"]
    text_tokenizer(tmp_path, SPECIALS, names)
    with pytest.raises(UserError, match="has no token of code 49, such as IMGIMGAZ of code 0"):
        import_generator("chameleon", tmp_path, image_tokenizer())
    with pytest.raises(UserError, match="rope_scaling of the configuration is 'linear': only plain rotary positions"):
        import_generator("chameleon", folder, image_tokenizer(), {"rope_parameters": {"rope_type": "linear"}})
    with pytest.raises(UserError, match="setting swin_norm is 3: give true or false"):
        import_generator("chameleon", folder, image_tokenizer(), {"swin_norm": 3})


@pytest.mark.parametrize("talks", [True, False])
@torch.inference_mode()
def test_the_model_goes_back_as_it_came(talks: bool, theirs: tuple[Any, Path], tmp_path: Path) -> None:
    """Texts and codes under the authors' ids, and the encoder of pictures."""
    model = import_generator("chameleon", theirs[1], image_tokenizer())
    language_model(model if talks else as_before(model)).write(tmp_path)
    again, info = ChameleonForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    ids = [0, 57, 70, BOI, *IDS[:LENGTH].tolist(), EOI, 60, 2]
    size = FIRST + CODES + 1 + WORDS
    torch.testing.assert_close(scored(again, ids)[:, :size], scored(theirs[0], ids)[:, :size], atol=1e-4, rtol=0)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert torch.equal(again.model.get_image_tokens(pictures), theirs[0].model.get_image_tokens(pictures))


def test_biases_that_were_trained_are_told(folder: Path) -> None:
    model = import_generator("chameleon", folder, image_tokenizer())
    with torch.no_grad():
        model.ids.head.bias[model.vocabulary.image_start] = 0.5
    with pytest.raises(UserError, match=r"^training has moved biases of the head \(ids.head.bias\), which no class"):
        language_model(model)
