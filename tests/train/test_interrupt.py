"""A run that a signal stops, and its resumption, against the run that nothing stopped: equal to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unitok.cli.main import main
from unitok.train.log import RunLog, read_log

STEPS, STOPPED = 10, 4
RUN = f"--run.steps {STEPS} --run.batch_size 4 --run.log_every 1 --run.eval_pictures 4 --run.eval_every 5"


def stop_in_the_middle(words: list[str], number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Runs a command in a forked process, which is signalled when it has logged a few steps."""
    capfd.readouterr()
    log = RunLog.numbers

    def log_and_be_signalled(self: RunLog, kind: str, step: int, numbers: dict[str, float]) -> None:
        log(self, kind, step, numbers)
        if (kind, step) == ("train", STOPPED):
            os.kill(os.getpid(), number)

    def run() -> None:
        RunLog.numbers = log_and_be_signalled  # type: ignore[method-assign]
        sys.exit(main(words))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    process.kill()
    stdout, stderr = capfd.readouterr()
    assert process.exitcode == 128 + number, stderr
    assert "stopped by a signal after step" in stderr and "repeat the command with --resume" in stderr
    assert stdout == "" and "Traceback" not in stderr


def assert_equal_runs(stopped: Path, whole: Path) -> None:
    logs: list[list[dict[str, Any]]] = []
    for out in (stopped, whole):
        entries = read_log(out / "log.jsonl")
        logs.append([{k: v for k, v in entry.items() if k != "time" and not k.endswith("/s")} for entry in entries])
    assert logs[0] == logs[1]
    names = [path.name for path in sorted((whole / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))]
    assert len(names) == 4
    for name in [f"checkpoints/step-{STEPS:08d}/{name}" for name in names] + ["model.safetensors"]:
        mine, other = load_file(stopped / name), load_file(whole / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine), name


@pytest.mark.parametrize(
    "kind", ["tokenizer", "query tokenizer", "adversarial tokenizer", "generator", "next_scale generator"]
)
def test_resume_after_a_signal_equals_the_unbroken_run(
    tmp_path: Path, kind: str, words_of: Any, run_command: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(kind), *RUN.split()]
    words += ["--augment.flip", "0.5", "--augment.crop", "0.7"] if kind.endswith("tokenizer") else []
    words += ["--trunk.dropout", "0.1"] if kind.endswith("generator") else []
    if kind == "query tokenizer":
        words += ["--preset", "shapes_query", "--tokenizer.width", "32", "--tokenizer.tokens", "8"]
    if kind == "generator":
        words += ["--objective_settings.code_dropout", "0.5"]
    if kind == "next_scale generator":
        words += ["--optim.muon", "true", "--objective_settings.code_noise", "0.5"]
    run_command([*words, "--out", str(tmp_path / "whole")])
    number = signal.SIGTERM if kind == "tokenizer" else signal.SIGINT
    stop_in_the_middle([*words, "--out", str(tmp_path / "stopped")], number, capfd)
    done = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert done in ([f"step-{STOPPED:08d}"], [f"step-{STOPPED + 1:08d}"])
    run_command([*words, "--out", str(tmp_path / "stopped"), "--resume"])
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
