"""The recipes of language models that learn to draw, whole, a few steps a stage: what each stage trains and knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import model_on, save
from language_recipes import RUN, run_recipe
from tuning_runs import changed

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.data.open import open_data
from unitok.model import UniTok
from unitok.sample.performing import perform
from unitok.sampling import SampleSettings
from unitok.train.log import read_log
from unitok.trunk.hf.reading import read_language_model

SHORT = {**RUN, "steps": 2, "save_every": 0, "sample_every": 0}
SIZES = {"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("language")
    for family in ("llama", "phi"):
        save(family, folder / family, **SIZES)
    return lambda family: f"hf:{folder / family}"


@pytest.fixture(scope="module")
def query_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer of six query tokens."""
    folder = tmp_path_factory.mktemp("query")
    torch.manual_seed(0)
    small = replace(TOKENIZER_PRESETS["shapes_query"](), width=32, tokens=6, depth=1, channels=16)
    build_tokenizer(small).save_pretrained(folder)
    return folder


def stages(out: Path) -> list[UniTok]:
    found = sorted(out.glob("stage*"))
    for number, folder in enumerate(found, start=1):
        last = read_log(folder / "log.jsonl")[-1]
        assert (last["kind"], last["step"], last["stage"]) == ("stage", 2, f"{number} of {len(found)}")
    return [UniTok.from_pretrained(folder) for folder in found]


def learned(out: Path) -> list[set[str]]:
    """The tasks that have a loss in each stage."""
    return [
        {name.partition("/")[2] for entry in read_log(folder / "log.jsonl") for name in entry if "loss/" in name}
        for folder in sorted(out.glob("stage*"))
    ]


def written(model: UniTok, task: str, data: str) -> Any:
    record = open_data(data, model.image_tokenizer.image_size)[0]
    return perform(model, task, [record], SampleSettings(steps=2))[0]


def parts(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_showo(language: Callable[[str], str], tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """All weights learn in all stages; only the mixture changes."""
    out = tmp_path / "out"
    assert run_recipe("showo", out, tiny_tokenizer_folder, trunk=language("phi"), run=SHORT) == 0
    first, second, third = stages(out)
    captions = {"text_to_image", "image_to_text", "text_only"}
    assert learned(out) == [captions, captions, {"text_to_image", "question", "text_only"}]
    assert parts(changed(first, second)) == parts(changed(second, third)) == {"trunk", "ids"}
    assert third.config.tasks == ("text_to_image", "image_to_text", "text_only", "question")
    assert third.config.objective == "maskgit"
    assert isinstance(written(third, "question", "shapes?task=question"), str)
    assert written(third, "text_to_image", "shapes").shape == (3, 32, 32)


def test_seed(language: Callable[[str], str], tmp_path: Path, query_folder: Path) -> None:
    """Ids alone, then adapters and ids, then adapters on these."""
    out, trunk = tmp_path / "out", language("llama")
    assert run_recipe("seed", out, query_folder, trunk=trunk, run=SHORT) == 0
    first, second, third = stages(out)
    assert learned(out) == [
        {"text_to_image", "image_to_text"},
        {"text_to_image", "image_to_text", "interleaved", "text_only"},
        {"question", "text_to_image", "edit", "interleaved"},
    ]
    theirs = model_on(read_language_model(trunk), "next_token").trunk
    assert not changed(theirs, first.trunk), "the language model is as it was"
    for number, (before, after) in enumerate([(first, second), (second, third)], start=2):
        about = json.loads((out / f"stage{number}/config.json").read_text())
        assert about["base"] == f"../stage{number - 1}" and about["alpha"] == 32
        moved = changed(before, after)
        maps = {name for name in before.state_dict() if "proj.weight" in name}
        assert maps <= moved and "ids.embedding.weight" in moved and "trunk.norm.weight" in moved
    assert third.layout.grid == (1, 6)
    assert written(third, "edit", "shapes?task=edit").shape == (3, 32, 32)


@pytest.mark.parametrize("way", ["adapters", "whole"])
def test_llava(way: str, language: Callable[[str], str], tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """The projector alone, then projector and adapters, or the language model too."""
    out, trunk = tmp_path / "out", language("llama")
    assert run_recipe("llava", out, tiny_tokenizer_folder, trunk=trunk, run=SHORT, whole=way == "whole") == 0
    first, second = stages(out)
    assert learned(out) == [{"image_to_text"}, {"question"}]
    assert not changed(model_on(read_language_model(trunk), "next_token").trunk, first.trunk)
    moved = changed(first, second)
    assert {name for name in moved if name.startswith("ports.")} == {
        name for name in first.state_dict() if name.startswith("ports.reader.connector.")
    }
    maps = {name for name in first.state_dict() if "proj.weight" in name}
    assert maps <= moved and ("trunk.norm.weight" in moved) == (way == "whole")
    assert (out / "stage2/adapter.safetensors").exists() == (way == "adapters")
    assert isinstance(written(second, "question", "shapes?task=question"), str)


def test_lumina(language: Callable[[str], str], tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    out, trunk = tmp_path / "out", language("llama")
    assert run_recipe("lumina", out, tiny_tokenizer_folder, trunk=trunk, run=SHORT) == 0
    model, before = UniTok.from_pretrained(out), model_on(read_language_model(trunk), "next_token")
    assert changed(before.trunk, model.trunk) == set(before.trunk.state_dict())
    assert written(model, "text_to_image", "shapes").shape == (3, 32, 32)
