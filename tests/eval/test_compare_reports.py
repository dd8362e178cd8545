"""Reports side by side: what may stand in one table, and how sure a difference is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.eval.commands import eval_compare
from unitok.eval.metrics.frechet import frechet_distance
from unitok.eval.report import Number, Report, Section
from unitok.eval.reports.compare_reports import Interval, compare_reports, interval_of, read_report
from unitok.eval.reports.output import write_report

FACTS: dict[str, Any] = {"features": "embedded", "features_sha256": "1", "pictures": 200, "image size": "32x32"}


def report(
    folder: Path,
    scores: torch.Tensor,
    *,
    items: bool = True,
    first: int = 0,
    features: dict[str, torch.Tensor] | None = None,
    fid: float = 1.0,
    **facts: Any,
) -> Path:
    """A written report of a score per picture, with a part of it and with FID."""
    values = [
        {"item": f"picture {first + i}", "seed": i, "clipscore": float(s), "shape": float(s > 0)}
        for i, s in enumerate(scores)
    ]
    about = {**FACTS, **facts}
    numbers = {
        "clipscore": Number("CLIPScore", float(scores.mean()), "", "higher", about),
        "attribute_accuracy": Number(
            "Attributes", {"shape": float((scores > 0).double().mean())}, "%", "higher", about
        ),
        "fid": Number("FID", fid, "", "lower", about),
        "kid": Number("KID", 0.1, "", "lower", about),
    }
    section = Section("generation", "Generation", numbers, values=values if items else [], features=features or {})
    write_report(Report("test", [section]), folder)
    return folder


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def interval(a: Path, b: Path, key: str = "generation.clipscore", seed: int = 0) -> Interval | None:
    return interval_of(read_report(a), read_report(b), key, 2000, seed)


def test_the_interval_of_pairs_is_that_of_the_mean_difference(tmp_path: Path, scores: torch.Tensor) -> None:
    noise = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = report(tmp_path / "a", scores), report(tmp_path / "b", scores + 0.5 + 0.1 * noise)
    found = interval(a, b)
    assert found is not None and found.paired
    half = 1.96 * 0.1 * noise.std().item() / 200**0.5
    assert found.difference == pytest.approx(0.5 + 0.1 * noise.mean().item(), abs=1e-9)
    assert found.low == pytest.approx(found.difference - half, rel=0.1, abs=half / 5)
    assert found.high == pytest.approx(found.difference + half, rel=0.1, abs=half / 5)
    assert found == interval(a, b) and found != interval(a, b, seed=1)
    part = interval(a, b, "generation.attribute_accuracy.shape")
    assert part is not None
    assert part.low <= part.difference <= part.high and part.difference > 0


def test_other_pictures_are_no_pairs_and_say_less(tmp_path: Path, scores: torch.Tensor) -> None:
    a, b = report(tmp_path / "a", scores), report(tmp_path / "b", scores + 0.1)
    c = report(tmp_path / "c", scores + 0.1, first=1000)
    paired, apart = interval(a, b), interval(a, c)
    assert paired is not None and apart is not None
    assert paired.paired and not apart.paired
    assert paired.high - paired.low < 1e-9  # every pair differs by the same
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * (2 / 200) ** 0.5 * scores.std().item(), rel=0.15)


def test_the_interval_holds_the_truth_as_often_as_it_says(tmp_path: Path) -> None:
    held = 0
    for seed in range(60):
        noise = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.3
        a, b = report(tmp_path / f"a{seed}", torch.zeros(40)), report(tmp_path / f"b{seed}", noise)
        found = interval(a, b)
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 52 <= held <= 60


def test_fid_has_an_interval_where_features_were_kept(tmp_path: Path, scores: torch.Tensor) -> None:
    real = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    near = torch.randn(200, 8, generator=torch.Generator().manual_seed(3))

    def of(name: str, drawn: torch.Tensor, **options: Any) -> Path:
        fid = frechet_distance(drawn, real)
        return report(tmp_path / name, scores, features={"drawn": drawn, "real": real}, fid=fid, **options)

    a, b = of("a", near), of("b", near + 1.0)
    found = interval(a, b, "generation.fid")
    assert found is not None and found.paired and 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(8, rel=0.3)
    apart = interval(a, of("other", near + 1.0, items=False), "generation.fid")
    assert apart is not None and not apart.paired, "without their names, no pictures are pairs"
    assert apart.low < apart.difference == found.difference < apart.high
    assert interval(a, report(tmp_path / "c", scores), "generation.fid") is None


def test_fid_of_several_rounds_is_drawn_round_by_round(tmp_path: Path) -> None:
    """The mean of FIDs of 100 pictures, not the FID of 200: that one has less bias and would lie outside."""
    generator = torch.Generator().manual_seed(4)
    real, rounds = torch.randn(400, 12, generator=generator), torch.randn(4, 50, 12, generator=generator)
    means = [sum(frechet_distance(one + shift, real) for one in rounds) / 4 for shift in (0.0, 0.6)]
    a, b = (
        report(
            tmp_path / str(fid),
            torch.zeros(200),
            features={"drawn": rounds.flatten(0, 1) + shift, "real": real},
            fid=fid,
            pictures=50,
        )
        for fid, shift in zip(means, (0.0, 0.6), strict=True)
    )
    found = interval(a, b, "generation.fid")
    assert found is not None and found.low < found.difference < found.high
    assert found.difference == pytest.approx(means[1] - means[0])
    once = report(tmp_path / "once", torch.zeros(50), features={"drawn": rounds[0] + 0.6, "real": real}, pictures=50)
    shorter = interval(a, once, "generation.fid")
    assert shorter is not None and shorter.high - shorter.low > 1.3 * (found.high - found.low), "one round says less"


def test_tables_name_the_better_one_and_what_has_no_interval(tmp_path: Path, scores: torch.Tensor) -> None:
    a, b = report(tmp_path / "a", scores), report(tmp_path / "b", scores + 1)
    side, differences = compare_reports([read_report(a), read_report(b / "report.json")], 200, 0)
    assert side.columns == ("a", "b") and side.numbers["generation.clipscore"].better == "higher"
    assert differences.numbers["generation.clipscore"].label == "CLIPScore: b is better"
    assert differences.numbers["generation.attribute_accuracy.shape"].unit == "%"
    assert "no interval for generation.fid, generation.kid" in differences.warnings[0]
    back = compare_reports([read_report(b), read_report(a)], 200, 0)[1]
    assert back.numbers["generation.clipscore"].label == "CLIPScore: a is worse"
    same = compare_reports([read_report(a), read_report(report(tmp_path / "again", scores))], 200, 0)[1]
    assert same.numbers["generation.clipscore"].label == "CLIPScore: undecided"


def test_a_column_that_is_not_the_number_is_not_taken(tmp_path: Path, scores: torch.Tensor) -> None:
    a = report(tmp_path / "a", scores)
    file = a / "items.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-5]) + "\n")  # five pictures lost
    assert interval(a, report(tmp_path / "b", scores)) is None


def test_what_was_made_differently_is_refused_unless_forced(tmp_path: Path, scores: torch.Tensor) -> None:
    a, b = report(tmp_path / "a", scores), report(tmp_path / "b", scores, pictures=500)
    with pytest.raises(UserError, match=r"of a and of b were made in different ways: pictures 200 and 500: .*--force"):
        eval_compare([a, b])
    eval_compare([a, b], out=tmp_path / "out", force=True)
    assert "pictures 200 and 500" in (tmp_path / "out" / "report.json").read_text()
    assert (tmp_path / "out" / "report.html").exists()


def test_bad_input(tmp_path: Path, scores: torch.Tensor) -> None:
    a = report(tmp_path / "a", scores)
    with pytest.raises(UserError, match="1 report given: give two or more"):
        eval_compare([a])
    with pytest.raises(UserError, match="is given twice"):
        eval_compare([a, a])
    with pytest.raises(UserError, match="--resamples is 5: choose 100 or more"):
        eval_compare([a, a], resamples=5)
    with pytest.raises(UserError, match="cannot read"):
        eval_compare([a, tmp_path / "nothing"])
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"other.json is not a report of unitok"):
        eval_compare([a, tmp_path / "other.json"])
    other = tmp_path / "b"
    write_report(Report("test", [Section("pairs", "Pairs", {"x": Number("x", 1.0)})]), other)
    with pytest.raises(UserError, match="share no number: give reports of the same command"):
        eval_compare([a, other])
