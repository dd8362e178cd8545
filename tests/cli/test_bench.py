"""`unitok bench`: what it measures, and what it says of an earlier run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unitok.cli import bench, bench_cases
from unitok.cli.main import main

ROOFLINE = {"matmul_gflops": {"fp32": 50.0}, "read_gb_s": 5.0}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in this process: a new one would import torch for every case."""

    class Here:
        def Pool(self, *_: object, **__: object) -> Here:
            return self

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def apply(self, function: Any, how: tuple[Any, ...]) -> Any:
            return function(*how)

    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda _: Here())
    monkeypatch.setattr(bench, "cases", lambda *_: ["tokenizer encode"])
    monkeypatch.setattr(bench_cases, "MATRIX", 64)
    monkeypatch.setattr(bench_cases, "READ", 2**12)


@pytest.mark.parametrize("case", ["tokenizer encode", "tokenizer train", "train masked_token", "decode maskgit"])
def test_a_case_is_measured(case: str) -> None:
    row = bench_cases.measure(case, "debug", 2, 2, "fp32", None, "cpu", ROOFLINE)
    assert row["case"] == case
    assert row["seconds_quartiles"][0] <= row["seconds_median"] <= row["seconds_quartiles"][1]
    assert row["gflop"] > 0 and row["weights_read_gb"] > 0 and row["peak_memory_gb"] > 0
    assert row["passes"] == {"tokenizer": 0, "train": 1}.get(case.split()[0], row["passes"])
    assert (row["passes"] > 1) == case.startswith("decode")


def test_what_a_layer_needs_is_counted() -> None:
    layer = nn.Linear(100, 50, bias=False)
    gigaflop, gigabytes, passes = bench_cases._needed(lambda: layer(torch.randn(7, 100)), layer)
    assert (gigaflop, gigabytes, passes) == (2 * 7 * 100 * 50 / 1e9, 4 * 100 * 50 / 1e9, 0)
    assert not layer._forward_pre_hooks  # nothing stays behind that the times would pay for


def test_cases_of_presets() -> None:
    assert bench.cases("tokenizer", "debug", None) == ["tokenizer encode", "tokenizer decode", "tokenizer train"]
    assert "tokenizer decode scales" in bench.cases("tokenizer", "shapes", None)
    assert "decode var" in bench.cases("decode", "shapes", None)
    assert "decode var" not in bench.cases("decode", "debug", None)


@pytest.mark.usefixtures("here")
def test_a_run_is_compared_with_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "tokenizer", "--preset", "debug", "--batch_size", "1", "--rounds", "1", "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "tokenizer encode" in told.err and "% of the roofline" in told.err
    found = json.loads(told.out)
    assert found["settings"]["preset"] == "debug" and found["versions"]["torch"] == torch.__version__
    assert [row["case"] for row in found["results"]] == ["tokenizer encode"]

    def baseline(change: Any) -> list[str]:
        values = copy.deepcopy(found)
        change(values)
        path = tmp_path / "before.json"
        path.write_text(json.dumps(values))
        return [*words, "--baseline", str(path)]

    def times(seconds: float, memory: float) -> Any:
        def change(values: dict[str, Any]) -> None:
            for row in values["results"]:
                row["seconds_median"] *= seconds
                row["peak_memory_gb"] *= memory

        return change

    assert main(baseline(times(1000, 2))) == 0
    for slow in (times(1e-3, 2), times(1000, 0.5)):
        with pytest.raises(SystemExit) as left:
            main(baseline(slow))
        assert left.value.code == 1
        assert "times as" in capsys.readouterr().err
    assert main(baseline(lambda values: values["hardware"].update(cpu="another"))) == 2
    assert "has cpu 'another', this run has" in capsys.readouterr().err
    assert main(baseline(lambda values: values["results"][0].pop("case"))) == 2
    assert "is not of unitok bench" in capsys.readouterr().err
    assert main(baseline(lambda values: values["results"].clear())) == 2
    assert "has no tokenizer encode" in capsys.readouterr().err


def test_what_is_slower_or_larger_is_told_beyond_noise() -> None:
    old = [{"case": "decode var", "seconds_median": 1.0, "peak_memory_gb": 1.0}]
    assert bench.worse_than(old, [{**old[0], "seconds_median": 1.14, "peak_memory_gb": 1.04}]) == []
    assert len(bench.worse_than(old, [{**old[0], "seconds_median": 1.16, "peak_memory_gb": 1.06}])) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenizer", "--preset", "large"], "--preset is 'large': choose one of debug, shapes"),
        (["decode", "--objective", "nexttoken"], "--objective is 'nexttoken': choose one of next_token"),
        (["tokenizer", "--objective", "var"], "--objective is of train and decode: leave it out"),
        (["decode", "--preset", "debug", "--objective", "var"], "--preset debug has no tokenizer with scales"),
        (["train", "--batch_size", "0"], "--batch_size is 0: choose 1 or more"),
        (["train", "--baseline", "missing.json"], "--baseline missing.json is not a file"),
    ],
)
def test_bad_settings(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
