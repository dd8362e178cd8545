"""Runs of a few steps by the commands' own functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tokenizers_vq.errors import UserError
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS

RUN = ["--run.batch_size", "4", "--run.workers", "0", "--run.device", "cpu", "--run.precision", "fp32", "--data"]
RUN += ["shapes", "--optim.warmup_steps", "1", "--optim.lr", "0.01", "--run.log_every", "1", "--run.save_every", "2"]
CAPTIONS = ["--tasks.text_to_image.share", "0", "--tasks.text_only.share", "0"]  # grids of drawings take time


@cache
def parsed(kind: str) -> tuple[Callable[..., object], dict[str, Any]]:
    """A command and its arguments. Reading them takes as long as a run does."""
    name = f"train {kind}"
    return parse(name, COMMANDS[name], [*RUN, *(CAPTIONS if kind == "generator" else []), "--out", "unused"])


def train(kind: str, out: Path, steps: int = 2, **settings: Any) -> None:
    command, values = parsed(kind)
    command(**{**values, "out": out, "run": replace(values["run"], steps=steps), **settings})


def refused(kind: str, out: Path, **settings: Any) -> str:
    """The error of a run that must not begin."""
    with pytest.raises(UserError) as caught:
        train(kind, out, **settings)
    assert not (out / "run.json").exists() or settings.get("resume")
    return str(caught.value)


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def resumes_to_the_bit(out: Path, again: Path, capsys: pytest.CaptureFixture[str], **start: Any) -> None:
    """An adapter of four steps goes on from its checkpoint to the same bytes; then nothing is left to do."""
    cut_back(out, again)
    train("generator", again, steps=4, resume=True, **start)
    assert (again / "adapter.safetensors").read_bytes() == (out / "adapter.safetensors").read_bytes()
    capsys.readouterr()
    train("generator", again, steps=4, resume=True, **start)
    assert "nothing to do" in capsys.readouterr().err


def cut_back(out: Path, again: Path) -> None:
    """Copies a run as it was at its checkpoint before the last one."""
    shutil.copytree(out, again)
    for checkpoint in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
