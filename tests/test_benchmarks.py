"""The programs in benchmarks/ keep up with the code they measure."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert left.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_the_loss_over_spans_is_measured_beside_that_over_all_ids() -> None:
    measure = runpy.run_path(str(BENCHMARKS[0].parent / "spans.py"))["measure"]
    assert measure(True, 400, "debug", 1)["seconds"] > 0 and measure(False, 400, "debug", 1)["seconds"] > 0
