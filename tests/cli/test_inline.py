"""Options that several commands share stand in one dataclass, and are each command's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenizers_vq.errors import UserError
from unitok.cli.arguments import parse
from unitok.cli.commands import Command


@dataclass(frozen=True)
class Choices:
    """Options that several commands share."""

    top_k: int | None = None
    """How many."""
    rates: float | list[float] | None = None
    """How fast."""


def choose(texts: list[str], seed: int = 0, choices: Choices = Choices(), fast: bool = False) -> None:
    """Choose.

    Args:
        texts: What to choose from.
        seed: Of chance.
        choices: How.
        fast: In a hurry.

    Example:
        unitok try a
    """


CHOOSE = Command(f"{__name__}:choose", "", positional=("texts",), inline="choices")


def read(command: Command, *argv: str) -> dict[str, Any]:
    return parse("try", command, list(argv))[1]


def written(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_fields_of_an_inline_dataclass_are_options_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(CHOOSE, "a") == {"texts": ["a"], "seed": 0, "choices": Choices(), "fast": False}
    assert read(CHOOSE, "a", "--top-k", "3", "--fast", "--rates", "[1, 2]")["choices"] == Choices(3, [1.0, 2.0])
    config = written(tmp_path, "top_k: 4\nrates: 1e-3\n")
    values = read(CHOOSE, "a", "--config", config, "--top_k=5")
    assert values["choices"] == Choices(5, 0.001) and "top_k" not in values
    with pytest.raises(SystemExit):
        read(CHOOSE, "--rates", "2", "--print_config")
    printed = capsys.readouterr().out
    assert printed == "texts: []\nseed: 0\ntop_k: null\nrates: 2.0\nfast: false\n"
    assert read(CHOOSE, "a", "--config", written(tmp_path, printed))["choices"].rates == 2
    with pytest.raises(SystemExit):
        read(CHOOSE, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--top_k TOP_K How many. (type: int | null, default: null)" in shown
    assert shown.index("--seed") < shown.index("--top_k") < shown.index("--fast") and "choices" not in shown
    with pytest.raises(UserError) as caught:
        read(CHOOSE, "a", "--choices.top_k", "3", "--top_k", "x", "--rate", "2")
    assert str(caught.value).split("\n  ")[1:] == [
        "unknown option --choices.top_k: did you mean --top_k?",
        "unknown option --rate: did you mean --rates?",
        "top_k is 'x': expected int or null",
    ]
