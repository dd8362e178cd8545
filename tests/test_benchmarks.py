"""The programs in benchmarks/ keep up with the code they measure."""

from __future__ import annotations

import argparse
import importlib
import json
import random
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from processes import pair

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


@pytest.mark.timeout(300)
def test_shards_are_measured_beside_whole_copies() -> None:
    """On two processes: a step of both ways, and the memory of one."""
    found = runpy.run_path(str(ROOM / "shards.py"))
    model = {"preset": "debug", "tokenizer": "debug", "width": 64, "depth": 1}
    given = argparse.Namespace(**model, rows=1, rounds=1, steps=1, way="fsdp")

    def work(rank: int) -> int:
        with found["join"]("cpu", 1) as world:
            times = found["steps"](given, world)
            assert times.keys() == {"ddp", "fsdp"} and all(min(one.values()) > 0 for one in times.values())
            assert found["memory"](given, world)["parameters"] > 40_000
        return 0

    assert pair(work) == [0, 0]


@pytest.mark.parametrize("part", ["codes", "logits", "bf16", "attention"])
def test_a_part_of_what_a_gpu_is_asked_runs_on_a_cpu(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOM / "gpu"))
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)  # other tests share this process
    found = list(importlib.import_module("checks").PARTS[part]("cpu", True, {}))
    same = {"equal_drawn_codes": 1.0, "equal_captured_codes": 1.0}
    right = {
        "codes": {"preset": "debug", "equal_codes": 1.0, "largest_pixel_difference": 0.0},
        "logits": {"objective": "next_token", "largest_difference": 0.0, **same},
    }
    if part in right:
        assert found == [right[part]]
    elif part == "bf16":
        assert abs(found[0]["nats_prepared"] - found[0]["nats_fp32"]) < 0.05 < found[0]["nats_fp32"]
    else:
        by_name = {(row["backend"], row["backward"]): row for row in found}
        assert by_name["sdpa", True]["largest_difference"] == 0
        assert by_name["flex", False]["largest_difference"] < 1e-5
        assert "failed" in by_name["xformers", False], "it needs a GPU"


def test_what_drawing_needs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of two pictures: passes, and the bytes of weights, keys and values that they read."""
    monkeypatch.syspath_prepend(str(ROOM / "gpu"))
    speeds = importlib.import_module("speeds")
    from unitok.cli.bench_cases import generator
    from unitok.prepare import prepare
    from unitok.sampling import SampleSettings

    model = generator("decode", "masked_token", "debug", 2, "bf16", importlib.import_module("torch").device("cpu"))[1]
    prepare(model, "bf16")
    steps = SampleSettings.of(model.config).steps
    needed, passes = speeds.Needed(model, 2), steps + 1  # one encodes both prompts
    prompts, length = len(model.text_ids(speeds.CAPTION)) + 2, model.layout.length
    trunk, codes = model.config.trunk, model.image_tokenizer.codebook_size
    weights = trunk.parameters(0)["blocks"] - trunk.width * (2 * trunk.depth + 1) - 2 * trunk.head_size * trunk.depth
    assert needed.passes == passes
    assert needed.weights == pytest.approx(2e-9 * (weights + codes * trunk.width))
    slots = (needed.gigabytes - passes * needed.weights) * 1e9 / (4 * 2 * trunk.depth * trunk.width)
    # Four lanes, of which the last pass sees the prompt and all that the passes ran.
    assert 4 * steps * prompts < slots < 4 * steps * (prompts + 2 * length)
    row = speeds.drawing(model, 2, True, needed, {"copy_gb_s": 10.0, "matmul_gflops": {"bf16": 100.0}})
    assert row["s"] > 0 and row["bandwidth_share"] == pytest.approx(needed.gigabytes / row["s"] / 10)
    assert "captures" not in row, "a CPU captures nothing"


def a_run(budget: float, *parts: str) -> dict[str, object]:
    """The options of a run of some parts on a CPU."""
    return {"device": "cpu", "tiny": True, "budget": budget, "parts": parts}


def test_a_part_that_takes_too_long_or_fails_or_has_no_time_is_said_to(tmp_path: Path) -> None:
    """Each leaves what was found before in the file."""
    module = runpy.run_path(str(ROOM / "gpu" / "__main__.py"))
    results = module["Results"](tmp_path / "gpu.json", {"device": "cpu"})
    results.add({"part": "decode", "roofline": {"read_gb_s": 1.0}})
    late, none = argparse.Namespace(**a_run(100)), argparse.Namespace(**a_run(5))
    module["run"]("codes", late, 0.001, results)
    module["run"]("nothing", late, 6, results)
    module["run"]("codes", none, 60, results)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["device"] == "cpu" and written["results"] == results.rows and len(results.rows) == 4
    assert results.roofline() == {"read_gb_s": 1.0}
    too_long, failed, left_out = (row["failed"] for row in results.rows[1:])
    assert too_long == "took longer than 0.01 s" and "invalid choice: 'nothing'" in failed
    assert left_out.startswith("left out: ") and left_out.endswith(" of 5 seconds were left")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of benchmarks/peers can be imported."""
    monkeypatch.syspath_prepend(str(ROOM / "peers"))


def test_our_side_of_every_row_draws_and_trains(peers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled or not: what the compiled forms compile is tested elsewhere, and takes long."""
    monkeypatch.setattr("unitok.trunk.compiled.OFTEN", 256)  # the benchmark sets it
    rows, ours = importlib.import_module("rows"), importlib.import_module("ours")
    kinds = {(row.work, objective): row for row in rows.ROWS for objective in row.objectives}
    assert len(kinds) == 8 and {row.peer for row in rows.ROWS} == {"llamagen", "var", "open_muse", "showo"}
    for (work, objective), row in kinds.items():
        tiny = replace(row, width=64, depth=1, codebook=32, text=300, batch=2, maps=row.maps[:2])
        forms = ours.WORKS[work](tiny, objective)
        compiles = work == "train" or tiny.compiles
        assert list(forms) == ["fp32", "bf16", *(["fp32 compiled", "bf16 compiled"] if compiles else [])]
        for form in ("fp32", "bf16"):
            forms[form]()


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


def test_the_comparison_of_connectors_knows_its_options() -> None:
    """Each way to read a picture is a run of its recipe; a table has a row for each."""
    from unitok.cli.arguments import parse
    from unitok.cli.commands import COMMANDS

    script = ROOM.parent / "recipes" / "shapes" / "connectors.py"
    module, name = runpy.run_path(str(script)), "train generator"
    read = set()
    for words in module["WAYS"].values():
        values = parse(name, COMMANDS[name], ["--config", str(script.with_name("reading.yaml")), *words])[1]
        read.add((values["reader"].encoder, values["reader"].connector, values["reader"].fusion))
    assert len(read) == len(module["WAYS"]) == 7
    part = {"exact": 0.5, "interval": [0.4, 0.6], "loss": 1.0, "seconds_a_picture": 0.004}
    found = {"positions": 16, "parameters": 1000, "seconds_a_step": 0.2, "captions": part, "questions": part}
    *_, row = module["table"]({"mlp": found}).splitlines()
    assert row == "| `mlp` | 16 | 1,000 | 50.0 % (40 to 60) | 50.0 % (40 to 60) | 1.00, 1.00 | 4.0, 4.0 | 0.20 |"


def test_layouts_are_changed_by_no_more_than_is_said() -> None:
    """Boxes stay in the picture, words as they are. One that is moved keeps its size, one that grows loses nothing."""
    module = runpy.run_path(str(ROOM.parent / "recipes" / "shapes" / "rough_layouts.py"))
    box = [0.3, 0.4, 0.5, 0.8]
    for change, most in module["CHANGES"]:
        text, found = module["changed"](["a circle", box], change, most, random.Random(1))
        by = [new - old for new, old in zip(found, box, strict=True)]
        assert text == "a circle" and max(map(abs, by)) <= most and any(by) == (most > 0)
        if change.__name__ == "moved":
            assert by[0] == pytest.approx(by[2]) and by[1] == pytest.approx(by[3])
        if change.__name__ == "grown":
            assert max(by[:2]) <= 0 <= min(by[2:])
    (edge,) = module["changed"]([[0.0, 0.0, 1.0, 1.0]], module["grown"], 0.1, random.Random(1))
    assert edge == [0.0, 0.0, 1.0, 1.0]
