"""The short form of the trial: a few cases of each kind, drawn by a fixed seed. `make faults` runs all of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the harness is no part of the package

from faults import damage, disk, fuzz, hostile, judge, kills, pairs, stops
from faults.trial import CAPTIONS, Trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("faults") / "trial")
    made.prepare()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["kills", "stops", "damage", "fuzz", "hostile", "disk", "pairs"])
def test_what_is_tried_holds(trial: Trial, tmp_path: Path, kind: str) -> None:
    modules: dict[str, Any] = {"kills": kills, "damage": damage, "fuzz": fuzz, "hostile": hostile, "disk": disk}
    modules |= {"pairs": pairs, "stops": stops}
    shares = {"kills": 0.02, "damage": 0.01, "fuzz": 0.01, "hostile": 0.3, "disk": 0.1, "pairs": 0.01, "stops": 0.02}
    tried, fell = 0, []
    for number, case in enumerate(modules[kind].cases(trial, random.Random(1), shares[kind])):
        lines = case.run(tmp_path / str(number))
        tried += 1
        fell += [(case.name, lines)] if lines else []
    if kind == "disk" and not tried:
        pytest.skip("mounting a small disk needs root")
    assert tried >= {"pairs": 2, "stops": 1}.get(kind, 5) and not fell, fell


def test_the_judge_sees_what_is_wrong(trial: Trial, tmp_path: Path) -> None:
    """A harness that finds nothing proves nothing."""
    whole = judge.contents(Path(trial.place("samples")))
    assert judge.same(whole, {**whole, "sheet.png": b"other"}) and not judge.same(whole, dict(whole))
    (tmp_path / ".a.1.tmp").write_text("half")
    assert judge.litter(tmp_path)
    answer = trial.run([*trial.sample(), "--out", "out"], tmp_path, out=str(tmp_path / "out"), die_at=5)
    assert answer["code"] == -9 and judge.ended(answer)
    silent = {"code": 1, "ended": "itself", "stderr": "Traceback (most recent call last):", "memory": 1, "strayed": []}
    assert len(judge.ended(silent)) == 2
    outside = trial.run(
        [*trial.sample(), "--out", str(tmp_path / "elsewhere")], tmp_path, out=str(tmp_path / "nowhere")
    )
    assert any("outside" in line for line in judge.ended(outside))
    assert CAPTIONS[0] in (tmp_path / "elsewhere" / "pictures" / "metadata.jsonl").read_text()
