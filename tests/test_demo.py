"""What `unitok demo` runs: real commands and recipes, for every objective. Once the run itself, by short recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from language_models import save

from unitok.cli import demo as module
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main
from unitok.objectives import OBJECTIVES
from unitok.tasks import TASKS, way


@pytest.mark.parametrize("objective", [None, *sorted(OBJECTIVES)])
def test_each_objective_has_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str | None) -> None:
    ran: list[tuple[str, dict[str, Any]]] = []

    def note(command: str, words: list[object], out: Path) -> None:
        ran.append((command, parse(command, COMMANDS[command], [*map(str, words), "--out", str(out)])[1]))

    monkeypatch.setattr(module, "run_step", note)
    monkeypatch.setattr(module, "_measure", lambda *_: None)
    module.demo(tmp_path / "demo", objective=objective)
    assert [command for command, _ in ran] == ["train tokenizer", "encode", "train generator"]
    tokenizer, encode, generator = (values for _, values in ran)
    assert bool(tokenizer["tokenizer"].scales) == (objective in ("next_scale", "var"))
    assert generator["objective"] == (objective or "next_token") and generator["optim"].muon
    assert encode["image_tokenizer"] == generator["image_tokenizer"] == tokenizer["out"]
    assert Path(generator["data"]) == encode["out"]
    assert generator["tasks"].pointed_text_to_image.share == 0 or objective is None, "without one, drawing is pointed"
    assert generator["tasks"].text_to_image.share == 0 or objective is not None


@pytest.mark.parametrize("objective", [None, "next_token", "masked_token", "next_scale"])
def test_all_tasks_are_learned_by_any_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str | None
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(
        module,
        "run_step",
        lambda command, words, out: ran.append(
            parse(command, COMMANDS[command], [*map(str, words), "--out", str(out)])[1]
        ),
    )
    monkeypatch.setattr(module, "_measure", lambda *_: None)
    module.demo(tmp_path / "demo", objective=objective, tasks="all")
    tokenizer, generator = ran
    assert tokenizer["data"] == "shapes?task=condition" and "task=condition" in tokenizer["val_data"]
    assert bool(tokenizer["tokenizer"].scales) == (objective == "next_scale")
    assert generator["objective"] == (objective or "next_token") and generator["image_tokenizer"] == tokenizer["out"]
    learned = {task for source in generator["data"] for task, share in source.tasks.items() if share}
    assert all(way(task, learned) for task in TASKS.keys() - {"text_only"}), "in one way or another"
    assert (generator["sampling"].guidance is None) == (objective not in (None, "next_token"))


def short_recipes(folder: Path) -> Path:
    """The recipes of the demo, of a few steps each."""
    (folder / "shapes").mkdir(parents=True)
    for name in ("tokenizer", "pointed"):
        values = yaml.safe_load((module.RECIPES / "shapes" / f"{name}.yaml").read_text())
        values["run"] |= {"steps": 2, "batch_size": 4, "threads": 1, "sample_every": 0, "save_every": 0, "workers": 0}
        values |= {"val_data": "shapes@val?limit=4"} if "val_data" in values else {}
        (folder / "shapes" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_language_model_in_place_of_the_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo itself, by shorter recipes and fewer records."""
    save("llama", tmp_path / "llama", max_position_embeddings=512)
    monkeypatch.setattr(module, "RECIPES", short_recipes(tmp_path / "recipes"))
    monkeypatch.setattr(module, "ENCODED", f"{module.ENCODED.partition('&')[0]}&limit=16")
    out = tmp_path / "demo"
    assert main(["demo", "--trunk", f"hf:{tmp_path / 'llama'}", "--pictures", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
    about = json.loads((out / "generator/config.json").read_text())
    assert about["trunk"]["kind"] == "hf" and about["trunk"]["language_model"]["model_type"] == "llama"
    run = json.loads((out / "generator/run.json").read_text())
    assert run["settings"]["optim"]["lr"] == module.LANGUAGE_LR and run["steps"] == 2
    report = json.loads((out / "report.json").read_text())
    assert report["parameters"] == run["parameters"] and report["generation"].keys() >= {"scene_accuracy", "fid"}
    assert report["captioning"]["exact"] <= 100 and (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("trunk", "message"),
    [("gpt9", "--trunk is 'gpt9': give a language model, as hf:gpt9"), ("hf:/no/where", "no folder /no/where")],
)
def test_a_trunk_that_cannot_be_read_is_told_at_once(
    trunk: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--trunk", trunk, "--out", str(tmp_path / "demo")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}") and not (tmp_path / "demo").exists()
