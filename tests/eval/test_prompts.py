"""`unitok eval generator --prompt`: pictures are drawn from other words than those that they are scored by; and the
comparison of recipes/language, which needs it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unitok.eval.generation as generation
from tokenizers_vq.images import save_png
from unitok.cli import arguments
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main
from unitok.eval.reports.output import read_items
from unitok.model import UniTok

LANGUAGE = Path(__file__).resolve().parents[2] / "recipes" / "language"
WORDS = ["a crimson disc", "a navy box", "a lime wedge", "a dark plus"]
NAMES = ["a red circle", "a blue square", "a green triangle", "a black cross"]


def pictures(folder: Path, words: list[str]) -> str:
    folder.mkdir()
    lines = []
    for number, (name, said) in enumerate(zip(NAMES, words, strict=True)):
        save_png(folder / f"{number}.png", torch.full((3, 32, 32), 60 * number, dtype=torch.uint8))
        lines.append(json.dumps({"file_name": f"{number}.png", "text": name, "words": said}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return f"{folder}?caption=text"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    return str(folder)


def test_pictures_are_drawn_from_the_prompts_and_scored_by_the_captions(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    draw = generation.draw

    def listen(given: UniTok, captions: list[str], *rest: Any, **options: Any) -> torch.Tensor:
        asked.extend(captions)
        return draw(given, captions, *rest, **options)

    monkeypatch.setattr(generation, "draw", listen)
    data = pictures(tmp_path / "data", WORDS)
    words = ["eval", "generator", "--model", model, "--captioning", "false", "--save_features", "true", "--out"]
    drawn = {
        "prompted": ["--data", data, "--prompt", "the {words}"],
        "captioned": ["--data", f"{tmp_path / 'data'}?caption=the {{words}}"],
        "named": ["--data", data],
    }
    for name, more in drawn.items():
        assert main([*words, str(tmp_path / name), *more]) == 0
    assert asked == [*(f"the {one}" for one in WORDS)] * 2 + NAMES
    features = {name: load_file(tmp_path / name / "features.safetensors")["generation.drawn"] for name in drawn}
    assert torch.equal(features["prompted"], features["captioned"])
    assert not torch.equal(features["prompted"], features["named"])
    reports = {name: json.loads((tmp_path / name / "report.json").read_text()) for name in drawn}
    real = {name: report["generation"]["clipscore_real"] for name, report in reports.items()}
    assert real["prompted"] == real["named"] != real["captioned"], "captions are what is scored by"
    facts = {name: report["provenance"]["generation.clipscore"] for name, report in reports.items()}
    assert facts["prompted"]["captions_sha256"] == facts["named"]["captions_sha256"]
    assert len(facts["prompted"]["prompts_sha256"]) == 64 and "prompts_sha256" not in facts["named"]
    rows = read_items(tmp_path / "prompted", "generation")
    assert [(row["caption"], row["prompt"]) for row in rows] == [
        (name, f"the {one}") for name, one in zip(NAMES, WORDS, strict=True)
    ]
    assert all("prompt" not in row for row in read_items(tmp_path / "named", "generation"))


def test_prompts_that_are_not_there_are_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "data", [*WORDS[:3], ""])
    words = ["eval", "generator", "--model", model, "--data", data, "--out", str(tmp_path / "out"), "--prompt"]
    assert main([*words, "words"]) == 2
    assert "3.png" in (told := capsys.readouterr().err) and "has no prompt: give it one" in told
    assert main([*words, "saying"]) == 2
    assert "saying" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_trunks", LANGUAGE / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_command_of_the_comparison_of_trunks_is_understood(compare: ModuleType, tmp_path: Path) -> None:
    places = compare.Places(Path("emoji"), tmp_path / "out")
    jobs = [*compare.preparing(places, 10), *compare.training(places, 30, 4, 0), *compare.measuring(places, 8)]
    assert len({job.name for job in jobs}) == len(jobs) == 2 + 3 + 1 + 3 * 5
    found = {}
    for job in jobs:
        length = 2 if " ".join(job.words[:2]) in COMMANDS else 1
        name = " ".join(job.words[:length])
        found[job.name] = arguments.parse(name, COMMANDS[name], job.words[length:])[1]
    stages = found["adapted"]["stages"]
    assert sum(stage["run"]["steps"] for stage in stages) == found["whole"]["run"].steps == 30
    assert found["fresh"]["data"] == found["adapted"]["data"] == found["whole"]["data"]
    assert found["fresh-words"]["prompt"] == compare.WORDS


def test_other_words_share_none_with_the_names() -> None:
    lines = [json.loads(line) for line in (LANGUAGE / "other_words.jsonl").read_text().splitlines()]
    small = {"a", "the", "of", "with", "in", "on", "and", "to", "for", "at"}
    assert len(lines) == len({line["words"] for line in lines}) == len({(a["text"], a["style"]) for a in lines}) > 60
    for line in lines:
        name, other = (set(line[key].replace("-", " ").replace(",", " ").split()) for key in ("text", "words"))
        assert not (name & other) - small, line
        assert line["style"] in ("noto", "twemoji", "openmoji", "fluent")
