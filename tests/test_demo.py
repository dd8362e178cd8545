"""What `unitok demo` runs: real commands with real recipes, for every objective. (The run itself takes minutes.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unitok.cli import demo as module
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
from unitok.objectives import OBJECTIVES


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_each_objective_has_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    ran: list[tuple[str, dict[str, Any]]] = []

    def note(command: str, words: list[object], out: Path) -> None:
        ran.append((command, parse(command, COMMANDS[command], [*map(str, words), "--out", str(out)])[1]))

    monkeypatch.setattr(module, "_run", note)
    monkeypatch.setattr(module, "_measure", lambda *_: None)
    module.demo(tmp_path / "demo", objective=objective)
    assert [command for command, _ in ran] == ["train tokenizer", "encode", "train generator"]
    tokenizer, encode, generator = (values for _, values in ran)
    assert bool(tokenizer["tokenizer"].scales) == (objective in ("next_scale", "var"))
    assert generator["objective"] == objective and generator["optim"].muon
    assert encode["image_tokenizer"] == generator["image_tokenizer"] == tokenizer["out"]
    assert Path(generator["data"]) == encode["out"]
