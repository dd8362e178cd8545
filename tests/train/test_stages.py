"""Stages follow one another in one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tuning_runs import changed, cut_back, refused, train

from tokenizers_vq.errors import UserError
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
from unitok.config import TrunkConfig
from unitok.model import UniTok
from unitok.reader.config import ReaderSettings
from unitok.train.log import read_log

STAGES: list[dict[str, Any]] = [
    {"run": {"steps": 3}},
    {
        "data": [{"data": "shapes?seed=1", "tasks": {"image_to_text": 1}}],
        "trainable": ["trunk.*"],
        "optim": {"lr": 1e-3},
        "run": {"steps": 4},
    },
    {"lora": {"rank": 2}, "run": {"steps": 4}},
]


SMALL = TrunkConfig(width=32, depth=2, heads=2)


def test_stages_follow_one_another_and_are_resumed(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def staged(out: Path, **settings: Any) -> None:
        train("generator", out, image_tokenizer=tokenizer_folder, trunk=SMALL, stages=STAGES, **settings)

    staged(whole)
    said = capsys.readouterr().err
    assert "stage 1 of 3: " in said and "stage 2 of 3 ends after 4 steps" in said
    first, second, third = (UniTok.from_pretrained(whole / f"stage{number}") for number in (1, 2, 3))
    assert {name.split(".")[0] for name in changed(first, second)} == {"trunk"}
    assert (whole / "stage3/adapter.safetensors").exists() and changed(second, third)
    ends = [
        [one for one in read_log(whole / f"stage{number}/log.jsonl") if one["kind"] == "stage"] for number in (1, 2)
    ]
    assert [(one["step"], one["stage"]) for (one,) in ends] == [(3, "1 of 3"), (4, "2 of 3")]
    settings = json.loads((whole / "stage2/run.json").read_text())["settings"]
    assert settings["optim"]["lr"] == 1e-3 and settings["optim"]["warmup_steps"] == 1, "the rest is the recipe's"
    assert settings["data"][0]["data"] == "shapes?seed=1" and settings["run"]["batch_size"] == 4

    # Killed between two stages and inside the second, and then inside the third, whose adapter learns.
    shutil.copytree(whole / "stage1", killed / "stage1")
    cut_back(whole / "stage2", killed / "stage2")
    capsys.readouterr()
    staged(killed, resume=True)
    said = capsys.readouterr().err
    assert "stage1 is finished after 3 steps: nothing to do" in said and "going on from" in said
    for number, model in ((2, second), (3, third)):
        assert UniTok.from_pretrained(killed / f"stage{number}").fingerprint() == model.fingerprint()
    for number in (1, 2, 3):
        kinds = [one["kind"] for one in read_log(killed / f"stage{number}/log.jsonl")]
        assert kinds.count("stage") == 1 and kinds[-1] == "stage", "once, also where it was finished before"
    with pytest.raises(UserError, match="already holds stages: add --resume"):
        staged(killed)
    shutil.rmtree(killed / "stage3")
    cut_back(whole / "stage3", killed / "stage3")
    staged(killed, resume=True)
    assert UniTok.from_pretrained(killed / "stage3").fingerprint() == third.fingerprint()


def test_stages_that_cannot_be(tokenizer_folder: Path, tmp_path: Path) -> None:
    """All that can be known is said before the first stage begins."""

    def told_of(*stages: dict[str, Any], **settings: Any) -> str:
        common = {"image_tokenizer": tokenizer_folder, "trunk": SMALL, **settings}
        said = refused("generator", tmp_path / "no", stages=list(stages), **common)
        assert not (tmp_path / "no/stage1").exists()
        return said

    assert told_of({}, {"lr": 3}).startswith("stage 2 has an unknown key 'lr': a stage may have data, val_data,")
    assert "stage 2: optim has an unknown key 'lrr': known are" in told_of({}, {"optim": {"lrr": 3}})
    assert told_of({"run": {"steps": "x"}}) == "stage 1: run: steps is 'x': expected a whole number"
    assert told_of({"run": {"steps": 0}}) == "stage 1: run: run.steps is 0: choose 1 or more"
    assert told_of({"run": 3}).startswith("stage 1: run is 3")
    assert "stage 2: --trainable 'trnk.*' matches nothing" in told_of({}, {"trainable": "trnk.*"})
    assert "stage 2: --trainable names nothing" in told_of({}, {"trainable": []})
    assert "stage 1: --trainable trains a part of a model" in told_of({"trainable": "trunk.*"})
    assert "stage 2: lora.rank is 64, but" in told_of({}, {"lora": {"rank": 64}})
    assert "nowhere" in told_of({}, {"data": "nowhere/"})
    blind = {"trainable": "ports.reader.*", "tasks": {"image_to_text": {"share": 0}, "text_only": {"share": 1}}}
    assert "stage 2: --trainable trains only weights that read pictures, and no task here reads one (text_only)" in (
        told_of({}, blind, reader=ReaderSettings(encoder="latents", connector="mlp"))
    )
    assert "stage 2: optim: optim.lr is 0: choose a value above 0" in told_of({}, {"optim": {"lr": 0}})
    assert "stage 2: tasks: all tasks have share 0" in told_of({}, {"tasks": {"image_to_text": {"share": 0}}})
    assert "which objective next_token does not take" in told_of({}, {"objective_settings": {"code_noise": 1}})
    assert told_of().startswith("stages is an empty list")
    (tmp_path / "no").mkdir()
    (tmp_path / "no/mine.txt").write_text("")
    assert "holds no stages to resume" in told_of({}, resume=True)
    assert "is not empty: choose another folder" in told_of({})


def test_stages_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text("out: x\ndata: shapes\nstages:\n- {optim: {lr: 1e-4}}\n- {trainable: ['*norm']}\n")
    values = parse("train generator", COMMANDS["train generator"], ["--config", str(path)])[1]
    assert values["stages"] == [{"optim": {"lr": 1e-4}}, {"trainable": ["*norm"]}]
