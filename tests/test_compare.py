"""`unitok compare` on tiny models: the same compute for each, a row for each way to draw, a plot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.train.generator import GeneratorTrainee


@pytest.fixture(autouse=True)
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw none: what is compared is drawn behind them."""
    monkeypatch.setattr(GeneratorTrainee, "draw", lambda *_: None)


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    """Three generators, one for each objective; the scales make longer sequences than the single grid."""
    torch.manual_seed(0)
    preset = TOKENIZER_PRESETS["debug"]()
    build_tokenizer(preset).save_pretrained(tmp_path / "grid")
    build_tokenizer(dataclasses.replace(preset, scales=(1, 2, 4, 8))).save_pretrained(tmp_path / "scales")
    files = []
    for objective in ("next_token", "masked_token", "next_scale"):
        values = {
            "data": "shapes?limit=200",  # of which few texts are read
            "image_tokenizer": str(tmp_path / ("scales" if objective in ("next_scale", "var") else "grid")),
            "out": "unused",
            "preset": "debug",
            "objective": objective,
            "text_vocabulary": 300,
            "run": {"batch_size": 4 if objective in ("next_scale", "var") else 8, "log_every": 1},
        }
        files.append(tmp_path / f"{objective}.yaml")
        files[-1].write_text(yaml.safe_dump(values))
    return files


def words(files: list[Path], out: Path, positions: str = "3000") -> list[str]:
    listed = json.dumps([str(file) for file in files])
    options = ["--val_data", "shapes@val", "--positions", positions, "--limit", "8", "--sweep", '{"steps": [2, 4]}']
    return ["compare", "--generators", listed, *options, "--out", str(out), "--batch_size", "4"]


def test_each_objective_gets_the_same_compute(configs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(configs, out)) == 0
    report = json.loads((out / "report.json").read_text())
    assert {"next_token", "masked_token, steps 2", "masked_token, steps 4", "next_scale"} <= report.keys()
    for name in ("next_token", "masked_token, steps 2", "next_scale"):
        assert {"fid", "clipscore", "scene_accuracy", "seconds", "seconds_alone"} <= report[name].keys()
    assert all("exact_captions" in report[name] for name in ("next_token", "masked_token, steps 2", "next_scale"))
    trained = {}
    for config in configs:
        log = [json.loads(line) for line in (out / config.stem / "log.jsonl").read_text().splitlines()]
        run = json.loads((out / config.stem / "run.json").read_text())
        trained[config.stem] = run["steps"]
        assert run["finished"] and len([entry for entry in log if entry["kind"] == "train"]) == run["steps"]
    assert trained["next_token"] == trained["masked_token"] == report["steps_next_token"]
    ratio = trained["next_scale"] / trained["next_token"] / 2  # in steps of half the pictures
    assert 0.7 < ratio < 0.9, "85 codes and a caption of about 15 tokens against 64 and the caption"
    with Image.open(out / "compare.png") as plot:
        assert plot.size[0] > plot.size[1]
    assert (out / "report.html").stat().st_size > 10_000


def test_several_lengths_show_what_training_brings(configs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(configs[:2], out, "[3000, 1000, 3000]")) == 0
    report = json.loads((out / "report.json").read_text())
    names = {"next_token_1000", "next_token_3000", "masked_token_1000, steps 4", "masked_token_3000, steps 2"}
    assert names <= report.keys() and report["positions"] == "1000, 3000"
    assert report["steps_next_token_3000"] / report["steps_next_token_1000"] == pytest.approx(3, abs=0.6)
    assert "exact_captions" in report["masked_token_1000, steps 2"] and report["training_seconds_next_token_1000"] > 0
    with Image.open(out / "training.png") as plot:
        assert plot.size[0] > 2 * plot.size[1], "three panels"
    assert main(words(configs[:2], tmp_path / "other", "[]")) == 2
    assert main(words(configs[:2], tmp_path / "other", "[3000, 0]")) == 2


def test_what_cannot_be_compared_is_refused(
    configs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([word for word in words(configs[:1], out) if word not in ("--sweep", '{"steps": [2, 4]}')]) == 2
    assert "--generators has 1: give two or more to compare, or --sweep for one" in capsys.readouterr().err
    assert main(words([configs[0], tmp_path / "no.yaml"], out)) == 2
    assert "no.yaml is not a file, nor a folder of a model" in capsys.readouterr().err
    for sweep, message in (
        ('{"passes": [1]}', "--sweep has 'passes': choose of guidance, temperature"),
        ('{"best_of": []}', "--sweep has no value for 'best_of'"),
    ):
        assert main([*words(configs, out), "--sweep", sweep]) == 2
        assert message in capsys.readouterr().err
    values = yaml.safe_load(configs[1].read_text())
    values["trunk"] = {"depth": 1}
    configs[1].write_text(yaml.safe_dump(values))
    assert main(words(configs[:2], out)) == 2
    error = capsys.readouterr().err
    assert "differ in trunk: compare the same trunk" in error
    assert not (out / "next_token").exists(), "nothing is trained"


def test_a_trained_model_is_drawn_in_several_ways(
    make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    listed = json.dumps([str(tmp_path / name) for name in ("one", "two")])
    options = ["--val_data", "shapes@val", "--limit", "4", "--batch_size", "4"]
    sweep = ["--sweep", '{"best_of": [1, 2], "guidance": [1.0, 2.0, 3.0], "steps": [2]}']
    assert main(["compare", "--generators", listed, *options, *sweep, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    ways = [
        f"{tmp_path / name}, {way}" for name in ("one", "two") for way in ("best_of 1", "best_of 2", "guidance 2.0")
    ]
    assert set(ways) <= report.keys() and not any("steps" in name for name in report), "it has no passes"
    assert report[ways[0]]["seconds"] > 0 and "positions" not in report
    assert "steps of training" not in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()
    sweep = ["--sweep", '{"guidance": [-1.0]}']
    assert main(["compare", "--generators", listed, *options, *sweep, "--out", str(tmp_path / "other")]) == 2
    assert "--guidance is -1.0: choose a scale from 0" in capsys.readouterr().err
