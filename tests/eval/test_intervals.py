"""Intervals over distinct captions, and scores by number of objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unitok.data.shapes.dataset import ShapesDataset
from unitok.eval.generation import exact_numbers
from unitok.eval.metrics.alignment import check_pictures, object_count
from unitok.eval.metrics.intervals import interval_of_mean, with_intervals
from unitok.eval.provenance import INTERVAL
from unitok.eval.report import Number, Report, Section
from unitok.eval.reports.output import print_report, write_report
from unitok.eval.reports.page import render


def test_interval_is_that_of_a_mean_over_independent_captions() -> None:
    low, high = interval_of_mean([(str(i), float(i < 50)) for i in range(100)])
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.02)  # 0.5 less and more 1.96 x sqrt(0.25 / 100)


def test_pictures_of_one_caption_are_one_piece_of_evidence() -> None:
    once = [(str(i), float(i % 2)) for i in range(16)]
    assert interval_of_mean(once * 6) == interval_of_mean(once)
    low, high = interval_of_mean([(str(i), float(i % 2)) for i in range(96)])
    assert high - low < 0.5 * (interval_of_mean(once)[1] - interval_of_mean(once)[0])


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(str(i % 30), float(i % 7)) for i in range(80)]
    whole = interval_of_mean(rows)
    for at_once in (1, 1000):  # resample by resample; in parts of 33, of which the last is smaller
        monkeypatch.setattr("unitok.eval.metrics.intervals.AT_ONCE", at_once)
        assert interval_of_mean(rows) == pytest.approx(whole, rel=1e-12)


def test_scores_by_number_of_objects_and_their_intervals_stand_in_every_form_of_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ShapesDataset(split="val", length=48)
    records = [data[index] for index in range(48)]
    captions = [record.caption or "" for record in records]
    images = torch.stack([record.image for record in records if record.image is not None])
    images[1::3][:8] = 255  # half of those of two objects are blank
    numbers, values = exact_numbers(check_pictures(images, captions), captions, {})
    assert numbers["scene_by_objects"].value == {"one object": 1.0, "two objects": 0.5, "three objects": 1.0}
    rows = [{"caption": text, **row} for text, row in zip(captions, values, strict=True)]
    numbers = with_intervals(numbers, rows, "caption")
    intervals = numbers["scene_by_objects"].interval
    assert intervals["one object"] == (1.0, 1.0) and set(intervals) == {object_count(text) for text in captions}
    low, high = intervals["two objects"]
    assert 0.2 < low < 0.5 < high < 0.8
    low, high = numbers["scene_accuracy"].interval[""]
    assert low < numbers["scene_accuracy"].value < high  # type: ignore[operator]

    report = Report("shapes", [Section("generation", "Generation", numbers)])
    shown = numbers["scene_by_objects"].show(0.5, "two objects")
    assert shown.startswith("50.0 % (") and shown in render(report)
    write_report(report, tmp_path)
    assert report.to_json()["provenance"]["generation.scene_by_objects"][INTERVAL] == intervals
    print_report(report)
    assert "two objects" in capsys.readouterr().out


def test_numbers_without_values_of_single_pictures_have_no_interval() -> None:
    numbers = {"recall": Number("Recall", 0.5, "%"), "fid": Number("FID", 1.0), "scene_accuracy": Number("S", 0.5, "%")}
    rows = [{"caption": "a", "scene": 1, "fid": 1.0}, {"caption": "b", "scene": 0, "fid": 1.0}]
    found = with_intervals(numbers, rows, "caption")
    assert not found["recall"].interval and not found["fid"].interval and found["scene_accuracy"].interval
