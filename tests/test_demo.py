"""What `unitok demo` runs: real commands with real recipes, for every objective. (The run itself takes minutes.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unitok.cli import demo as module
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
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


def test_a_language_model_in_place_of_the_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(
        module,
        "run_step",
        lambda command, words, out: ran.append(
            parse(command, COMMANDS[command], [*map(str, words), "--out", str(out)])[1]
        ),
    )
    monkeypatch.setattr(module, "_measure", lambda *_: None)
    module.demo(tmp_path / "demo", trunk="hf:models/tiny")
    assert ran[-1]["trunk"] == "hf:models/tiny" and ran[-1]["optim"].lr == module.LANGUAGE_LR
