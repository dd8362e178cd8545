"""Captions of models that read states: through the text encoder that the model's folder names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.cli.main import main
from unitok.conditions import TextStates
from unitok.config import ObjectiveSettings
from unitok.data.open import open_data
from unitok.eval.sources import model_pictures
from unitok.exporting.card import Facts, card
from unitok.exporting.hub import check_text_encoder
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import decoded, draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import pack
from unitok.tasks import documents
from unitok.text_encoder.cleaning import cleaned
from unitok.text_encoder.encoder import _opened

from .infinity_arithmetic import SQUARE, images_of, infinity_weights
from .test_start import DRAW_ALONE, state, train
from .tiny import llamagen_weights, tokenizer, var_weights
from .tiny_t5 import authors_states, saved_t5

CAPTIONS = ["a red circle left of the blue square", "two", "a small blue circle , large", "w3 " * 600, ""]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_t5(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def folder(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an Infinity that names the encoder."""
    place = tmp_path_factory.mktemp("infinity")
    torch.save(infinity_weights(), place / "x.pth")
    import_generator("infinity", place / "x.pth", images_of(SQUARE), text_encoder=str(t5)).save_pretrained(place / "m")
    return place / "m"


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    _opened.cache_clear()


def llamagen(tmp_path: Path, t5: Path) -> UniTok:
    torch.save(llamagen_weights(caption=256), tmp_path / "x.pt")
    return import_generator("llamagen", tmp_path / "x.pt", tokenizer(), {"n_head": 4}, text_encoder=str(t5))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("family", "most"), [("infinity", 512), ("llamagen", 120)])
def test_states_are_those_of_the_authors_call(
    family: str, most: int, folder: Path, t5: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They pad and cut a batch of captions; here each is run alone."""
    model = UniTok.from_pretrained(folder) if family == "infinity" else llamagen(tmp_path, t5)
    wanted = authors_states(t5, CAPTIONS, most)
    assert [len(one) for one in wanted] == [9, 2, 7, most, 1]
    for caption, states in zip(CAPTIONS, wanted, strict=True):
        found = model.caption_states(caption)
        torch.testing.assert_close(found.states, states, atol=1e-5, rtol=1e-5)
        assert found.length == len(states) and model.too_long(caption) == (len(caption) > 1000)
    assert wanted[0].std() > 0.3
    assert caplog.text.count(f"a caption of 601 tokens is cut to {most}") == 1


def test_codes_are_those_of_ready_states(folder: Path, t5: Path, tmp_path: Path) -> None:
    settings = SampleSettings(guidance=2.0, top_p=0.97)
    for model, most in ((UniTok.from_pretrained(folder), 512), (llamagen(tmp_path, t5), 120)):
        ready = [TextStates.of(one) for one in authors_states(t5, CAPTIONS[:3], most)]
        drawn = draw_codes(model, CAPTIONS[:3], settings, [0, 1, 2])
        assert torch.equal(drawn, draw_codes(model, ready, settings, [0, 1, 2]))
        alone = [draw_codes(model, [caption], settings, [seed]) for seed, caption in enumerate(CAPTIONS[:3])]
        assert torch.equal(drawn, torch.cat(alone)), "no caption depends on the others"
        torch.testing.assert_close(score_codes(model, CAPTIONS[:3], drawn), score_codes(model, ready, drawn))
        pictures = torch.cat([*model_pictures(model, CAPTIONS[:3], settings)])
        assert torch.equal(pictures, decoded(model, drawn)), "evaluation draws from captions too"


def test_guidance_leads_away_from_a_negative_caption(folder: Path, t5: Path, tmp_path: Path) -> None:
    for model in (UniTok.from_pretrained(folder), llamagen(tmp_path, t5)):

        def drawn(guidance: float, negative: str = "", model: UniTok = model) -> torch.Tensor:
            settings = SampleSettings(guidance=guidance, negative=negative, temperature=0.0)
            return draw_codes(model, CAPTIONS[:1], settings, [0])

        assert torch.equal(drawn(3.0, CAPTIONS[0]), drawn(1.0)) and not torch.equal(drawn(3.0, "two"), drawn(3.0))


def test_llamagen_reads_captions_that_are_cleaned(t5: Path, tmp_path: Path) -> None:
    """The authors' results on captions that were cleaned by their code."""
    for caption, wanted in {
        "  A \u201cRed\u201d  Circle (small), left.of a square ": 'a "red" circle small , left. of a square',
        "one_two_three-four-five": "one two three four five",
        "He said: 'hello'": "he said: 'hello",
        "a dog --- and a cat \u2013 on a mat": "a dog - and a cat - on a mat",
        "3.5 meters, 1,000 people.": "3.5 meters, 1,000 people.",
        "a+b 50% off": "a b 50% off",
        "Two dogs... and a cat . end": "two dogs and a cat end",
        "(a) [b] {c} #tag @ home": "a b c tag home",
        "-start and end-": "start and end",
        "time : now": "time: now",
        "well-known, up-to-date": "well-known, up-to-date",
    }.items():
        assert cleaned(caption) == wanted
    model = llamagen(tmp_path, t5)
    one, other = (model.caption_states(caption) for caption in ("A RED *circle*", "a red circle"))
    assert torch.equal(one.states, other.states)


@pytest.mark.parametrize(("family", "reads"), [("infinity", "cross"), ("llamagen", "attention")])
def test_commands_take_captions(
    family: str, reads: str, t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = family == "infinity"
    torch.save(infinity_weights() if bits else llamagen_weights(caption=256), tmp_path / "x.pth")
    (images_of(SQUARE) if bits else tokenizer()).save_pretrained(tmp_path / "images")
    argv = ["import", family, str(tmp_path / "x.pth"), "--image_tokenizer", str(tmp_path / "images")]
    argv += [] if bits else ["--settings", '{"n_head": 4}']
    out = tmp_path / "model"
    assert main([*argv, "--text_encoder", str(t5), "--out", str(out)]) == 0
    assert "captions are states" not in capsys.readouterr().err
    named = json.loads((out / "config.json").read_text())["text_encoder"]
    assert named["name"] == str(t5) and named["revision"] is None and len(named["digest"]) == 64
    assert not list(out.rglob("*t5*")), "its weights stay where they are"
    drawn = tmp_path / "drawn"
    assert main(["sample", "--model", str(out), *CAPTIONS[:2], "--n", "2", "--out", str(drawn)]) == 0
    lines = [json.loads(line) for line in (drawn / "pictures" / "metadata.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == [CAPTIONS[0]] * 2 + [CAPTIONS[1]] * 2
    # Training goes on from the pictures and their captions, and the tuned model draws.
    data = ["--data", str(drawn / "pictures"), "--val_data", str(drawn / "pictures"), "--run.eval_every", "1"]
    assert train(tmp_path / "thin", "--init", str(out), *data, *DRAW_ALONE, "--lora.rank", "2", lr="1e-2") == 0
    before, after = state(out), state(tmp_path / "thin")
    assert any(not torch.equal(before[one], after[one]) for one in before if reads in one)
    words = ["--model", str(tmp_path / "thin"), "a red circle", "--n", "1", "--out", str(tmp_path / "again")]
    assert main(["sample", *words]) == 0


def test_a_training_step_sees_the_states_of_its_captions(folder: Path, tmp_path: Path) -> None:
    """The loss of a run on captions is that of ready states."""
    drawn = tmp_path / "drawn"
    assert main(["sample", "--model", str(folder), *CAPTIONS[:3], "--n", "1", "--out", str(drawn)]) == 0
    quiet = ["--objective_settings.code_noise", "0", "--tasks.caption_dropout", "0", "--run.log_every", "1"]
    words = ["--init", str(folder), "--data", str(drawn / "pictures"), *DRAW_ALONE, *quiet]
    assert train(tmp_path / "tuned", *words, "--run.batch_size", "3") == 0
    log = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    found = next(line["loss"] for line in log if "loss" in line)
    model = UniTok.from_pretrained(folder)
    records = []
    for record in open_data(str(drawn / "pictures"), model.image_tokenizer.image_size, captions="optional"):
        assert record.image is not None and record.caption is not None
        codes = model.image_tokenizer.encode(to_float(record.image[None]))[0]
        records.append({"caption": model.caption_states(record.caption), "image": codes})
    draws = [Draw(torch.Generator().manual_seed(0))] * len(records)
    modalities = model.modalities(settings=ObjectiveSettings(code_noise=0.0))
    made = documents(["text_to_image"] * 3, records, draws, modalities, {}, {"text_to_image": 0})
    loss = model(pack(made, pad=model.vocabulary.pad))[0] / (3 * model.layout.length)
    assert found == pytest.approx(loss.item(), abs=1e-4)


def test_the_hub_is_asked_for_the_commit_that_was_imported(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    cache = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(t5, cache)

    def fetch(name: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        asked.append((name, revision, "model*.safetensors" in allow_patterns))
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    torch.save(infinity_weights(), tmp_path / "x.pth")
    model = import_generator("infinity", tmp_path / "x.pth", images_of(SQUARE), text_encoder="hf:google/tiny-t5")
    found = model.config.text_encoder
    assert found is not None and (found.name, found.revision) == ("hf:google/tiny-t5", "0123abc")
    model.save_pretrained(tmp_path / "m")
    UniTok.from_pretrained(tmp_path / "m").caption_states("a red circle")
    assert asked == [("google/tiny-t5", None, True), ("google/tiny-t5", "0123abc", True)]
    facts = Facts("me/infinity", "mit", "", "", [], None)
    assert "It reads captions through `hf:google/tiny-t5`, commit `0123abc`." in card(model, facts)
    check_text_encoder(model, tmp_path / "m")


def test_what_is_not_there_is_one_line(
    folder: Path, t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, images = tmp_path / "x.pth", tmp_path / "images"
    torch.save(infinity_weights(), weights)
    images_of(SQUARE).save_pretrained(images)
    argv = ["import", "infinity", str(weights), "--image_tokenizer", str(images), "--out"]
    bare = tmp_path / "bare"
    assert main([*argv, str(bare)]) == 0
    assert (
        "captions are states of google/flan-t5-xl: to draw them, import with --text_encoder" in capsys.readouterr().err
    )
    out = str(tmp_path / "none")
    data = ["--data", "shapes?limit=8", *DRAW_ALONE, "--run.steps", "1"]
    for words in (["sample", "--model", str(bare), "two"], ["train", "generator", "--init", str(bare), *data]):
        assert main([*words, "--out", out]) == 2
        said = capsys.readouterr().err
        assert "reads captions through google/flan-t5-xl, and its folder names no text encoder: import it again" in said
        assert not Path(out).exists()
    # It can be named later, or elsewhere.
    assert main(["merge", str(bare), "--text_encoder", str(t5), "--out", str(tmp_path / "named")]) == 0
    assert UniTok.from_pretrained(tmp_path / "named").config == UniTok.from_pretrained(folder).config
    moved = shutil.copytree(t5, tmp_path / "moved")
    model = import_generator("infinity", weights, images_of(SQUARE), text_encoder=str(moved))
    saved = load_file(moved / "model.safetensors")
    save_file({name: one + 0.1 for name, one in saved.items()}, moved / "model.safetensors", {"format": "pt"})
    said = refused(lambda: model.caption_states("two"))
    assert said.startswith(f"{moved} is not the text encoder that the model names: bring that back, or name this one")
    shutil.rmtree(moved)
    said = refused(lambda: model.caption_states("two"))
    assert said.startswith(f"text encoder {moved} has no config.json and no tokenizer.json: give the folder of one")

    def given(name: object) -> str:
        return refused(lambda: import_generator("infinity", weights, images_of(SQUARE), text_encoder=str(name)))

    said = given(saved_t5(tmp_path / "narrow", width=64))
    assert said.endswith(
        "makes states of 64 numbers, this model reads those of 256: give the one of its authors, hf:google/flan-t5-xl"
    )
    other = shutil.copytree(t5, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    assert given(other) == f"text encoder {other} is of type 'gpt2': give one of t5"
    (other / "config.json").write_bytes((t5 / "config.json").read_bytes())
    lacking = load_file(t5 / "model.safetensors")
    del lacking["encoder.final_layer_norm.weight"]
    save_file(lacking, other / "model.safetensors", {"format": "pt"})
    assert given(other) == f"text encoder {other} lacks encoder.final_layer_norm.weight: restore its files"
    (other / "model.safetensors").write_bytes(b"nothing")
    assert given(other).startswith(f"text encoder {other} cannot be read (")
    said = refused(lambda: check_text_encoder(UniTok.from_pretrained(folder), folder))
    assert said.startswith(
        f"{folder} names its text encoder in {t5}, which others do not have: name the one on the hub"
    )
    torch.save(var_weights(False), tmp_path / "var.pt")
    said = refused(lambda: import_generator("var", tmp_path / "var.pt", tokenizer((1, 2, 3, 4)), text_encoder=str(t5)))
    assert said == "the model reads captions without a text encoder: leave --text_encoder out"
    assert main(["import", "var_vae", str(weights), "--text_encoder", str(t5), "--out", out]) == 2
    assert "var_vae is a tokenizer, and reads no captions: leave --text_encoder out" in capsys.readouterr().err
