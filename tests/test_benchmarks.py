"""The programs in benchmarks/ keep up with the code they measure."""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[1] / "benchmarks"
BENCHMARKS = sorted([*ROOM.glob("*.py"), *(path.parent for path in ROOM.glob("*/__main__.py"))])


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert left.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_the_loss_over_spans_is_measured_beside_that_over_all_ids() -> None:
    measure = runpy.run_path(str(ROOM / "spans.py"))["measure"]
    assert measure(True, 400, "debug", 1)["seconds"] > 0 and measure(False, 400, "debug", 1)["seconds"] > 0


@pytest.mark.parametrize("part", ["codes", "logits", "attention"])
def test_a_part_of_what_a_gpu_is_asked_runs_on_a_cpu(part: str) -> None:
    found = runpy.run_path(str(ROOM / "gpu.py"))["PARTS"][part]("cpu", True)
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
    outcome = runpy.run_path(str(ROOM / "gpu.py"))["outcome"]
    late = outcome("codes", "cpu", True, 0.01)
    assert late["part"] == "codes" and late["failed"] == "took longer than 0.01 s"
    assert "invalid choice: 'nothing'" in outcome("nothing", "cpu", True, 60)["failed"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of benchmarks/peers can be imported."""
    monkeypatch.syspath_prepend(str(ROOM / "peers"))


def test_our_side_of_every_row_draws_and_trains(peers: None) -> None:
    rows, ours = importlib.import_module("rows"), importlib.import_module("ours")
    kinds = {(row.work, objective): row for row in rows.ROWS for objective in row.objectives}
    assert len(kinds) == 8 and {row.peer for row in rows.ROWS} == {"llamagen", "var", "open_muse", "showo"}
    for (work, objective), row in kinds.items():
        tiny = replace(row, width=64, depth=1, codebook=32, text=300, batch=2, maps=row.maps[:2])
        for form in ("fp32", "bf16"):
            ours.WORKS[work](tiny, objective)[form]()


def test_a_ratio_is_our_time_over_the_peers(peers: None) -> None:
    least = {("peer", "fp32"): 4.0, ("peer", "bf16"): 2.0, ("var", "fp32"): 3.0, ("var", "bf16"): 1.0}
    assert importlib.import_module("turns").ratios(least, "var") == {"fp32": 0.75, "bf16": 0.25, "both bf16": 0.5}


def test_peers_are_compared_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([], ["--var", "here", "--rows", "next_token"]):
        monkeypatch.setattr(sys, "argv", ["peers", *given])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOM / "peers"), run_name="__main__")
        assert left.value.code == 2 and "nothing to compare: give the checkout" in capsys.readouterr().err
