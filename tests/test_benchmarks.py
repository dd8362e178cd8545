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


@pytest.mark.parametrize("part", ["codes", "logits", "attention"])
def test_a_part_of_what_a_gpu_is_asked_runs_on_a_cpu(part: str) -> None:
    found = runpy.run_path(str(BENCHMARKS[0].parent / "gpu.py"))["PARTS"][part]("cpu", True)
    right = {
        "codes": ("debug", {"equal_codes": 1.0, "largest_pixel_difference": 0.0}),
        "logits": ("next_token", {"largest_difference": 0.0, "equal_drawn_codes": 1.0}),
    }
    if part in right:
        assert found == dict([right[part]])
    else:
        assert found["sdpa forward and backward"]["largest_difference"] == 0
        assert found["flex forward"]["largest_difference"] < 1e-5 and found["flex forward"]["bf16_ms"] > 0
        assert "failed" in found["xformers forward"], "it needs a GPU"


def test_a_part_that_takes_too_long_or_fails_is_said_to() -> None:
    outcome = runpy.run_path(str(BENCHMARKS[0].parent / "gpu.py"))["outcome"]
    late = outcome("codes", "cpu", True, 0.01)
    assert late["part"] == "codes" and late["failed"] == "took longer than 0.01 s"
    assert "invalid choice: 'nothing'" in outcome("nothing", "cpu", True, 60)["failed"]
