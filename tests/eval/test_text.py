"""`unitok eval text`: perplexity is that of transformers' own forward pass, long texts are read in pieces."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from language_models import WORDS, save

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.eval.metrics.perplexity import measure_texts
from unitok.model import UniTok
from unitok.text import number_tokenizer
from unitok.trunk.hf.reading import read_language_model

TEXTS = ["a small red circle", "and", "a large blue square left of a small green circle and a red square"]
BEGIN, END, TEXT_IDS = 13, 12, 14
"""Rows of the language model: of the marks, and so many are of texts."""


def foreseen(theirs: torch.nn.Module, ids: list[int], ends: bool) -> float:
    """Nats of ids behind the begin, by transformers; the end is an id beside those of texts, with the row of theirs."""
    with torch.no_grad():
        logits = theirs(torch.tensor([[BEGIN, *ids]])).logits[0].double()
    scores = torch.cat([logits[:, :TEXT_IDS], logits[:, [END]]], 1).log_softmax(1)
    targets = [*ids, TEXT_IDS] if ends else ids
    return -sum(scores[at, wanted].item() for at, wanted in enumerate(targets))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("language")
    return folder, save("llama", folder)


@pytest.mark.parametrize("length", [16, 5, 1])
def test_it_is_that_of_transformers(language: tuple[Path, torch.nn.Module], length: int) -> None:
    folder, theirs = language
    model = read_language_model(f"hf:{folder}").alone(16)
    nats, count = 0.0, 0
    for text in TEXTS:
        ids = [WORDS.index(word) for word in text.split()]
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
        nats += sum(foreseen(theirs, piece, ends=piece is pieces[-1]) for piece in pieces)
        count += len(ids) + 1
    found = {size: measure_texts(model, TEXTS, "texts", length=length, batch_size=size) for size in (1, 2, 64)}
    for section in found.values():
        numbers = section.numbers
        assert numbers["perplexity"].value == pytest.approx(math.exp(nats / count), rel=1e-4)
        size = sum(map(len, TEXTS))
        assert numbers["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size, rel=1e-4)
        assert numbers["perplexity"].provenance["tokens"] == count


def test_the_command_takes_a_model_or_a_language_model(
    language: tuple[Path, torch.nn.Module], make_model: Callable[..., UniTok], tmp_path: Path
) -> None:
    (tmp_path / "prose.txt").write_text("\n  a red circle \n\nand a blue square\r\n")
    make_model().save_pretrained(tmp_path / "model")
    words = ["eval", "text", str(tmp_path / "prose.txt"), "--out"]
    assert main([*words, str(tmp_path / "ours"), "--model", str(tmp_path / "model"), "--length", "8"]) == 0
    assert main([*words, str(tmp_path / "theirs"), "--trunk", f"hf:{language[0]}"]) == 0
    ours, theirs = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("ours", "theirs"))
    facts = ours["provenance"]["text.perplexity"]
    assert facts["texts"] == 2 and facts["length"] == 8 and facts["bytes"] == len("a red circle" + "and a blue square")
    assert theirs["provenance"]["text.perplexity"]["length"] == 128
    assert facts["captions_sha256"] == theirs["provenance"]["text.perplexity"]["captions_sha256"]
    expected = measure_texts(make_model(), ["a red circle", "and a blue square"], "the same", length=8)
    assert ours["text"]["perplexity"] == expected.numbers["perplexity"].value > 1


def test_what_cannot_be_measured_is_said(
    language: tuple[Path, torch.nn.Module],
    make_model: Callable[..., UniTok],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "prose.txt").write_text("a red circle\n")
    prose, model, out = str(tmp_path / "prose.txt"), str(tmp_path / "model"), str(tmp_path / "out")
    for words, message in (
        ([prose], "give a model with --model, or a language model with --trunk"),
        ([prose, "--model", model, "--trunk", "hf:x"], "give a model with --model, or a language model with --trunk"),
        ([prose, "--model", model, "--length", "0"], "--length is 0: choose 1 or more"),
        ([prose, "--model", model, "--length", "49"], "this model reads texts of 1 to 48 tokens"),
        ([str(tmp_path / "empty.txt"), "--model", model], "empty.txt has no text: give a file with a text on each"),
        ([str(tmp_path / "none.txt"), "--model", model], "none.txt"),
        ([prose, "--trunk", f"hf:{language[0]}/config.json"], "holds sizes alone"),
        ([prose, "--trunk", "hf:/nowhere"], "no folder /nowhere"),
    ):
        assert main(["eval", "text", *words, "--out", out]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and message in told[0], told
        assert not (tmp_path / "out" / "report.json").exists()


def test_a_model_of_classes_is_refused(make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch) -> None:
    from unitok.conditions import ClassModality

    model = make_model()
    classes = ClassModality(model.vocabulary, lambda text: number_tokenizer(3).encode(text))
    monkeypatch.setattr(model, "captions", lambda encode: classes)
    with pytest.raises(UserError, match="are no texts"):
        measure_texts(model, ["1"], "classes")
