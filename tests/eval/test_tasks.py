"""`unitok eval tasks`: every task that a model learned is performed and judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unitok.boxes import SPANS
from unitok.cli.main import main
from unitok.data.judging import JUDGES
from unitok.data.open import open_data
from unitok.data.records import Record
from unitok.eval import tasks as scored
from unitok.eval.tasks import TITLES, measure_inpainting, measure_task, tasks_of
from unitok.modalities import TEXTS
from unitok.model import UniTok
from unitok.sample.performing import perform
from unitok.tasks import FIELDS, TASKS, ends_in
from unitok.vocabulary import Vocabulary

DATA = ["shapes@val?limit=4", *(f"shapes@val?task={task}&limit=4" for task in ("edit", "condition", "story", "ground"))]


@pytest.fixture
def model(make_model: Callable[..., UniTok]) -> UniTok:
    plain = make_model()
    vocabulary = plain.vocabulary
    for spans in SPANS.values():
        for name, size in spans.items():
            vocabulary = vocabulary if name in vocabulary else vocabulary.grown(name, size)
    config = replace(plain.config, vocabulary=Vocabulary(vocabulary.spans).spans, tasks=tuple(TASKS))
    return UniTok(config, plain.image_tokenizer, plain.text_tokenizer).eval()


def truth(model: UniTok, task: str, records: list[Record], *_: Any, **__: Any) -> list[Any]:
    """What the records say, in place of what a model writes."""
    held = [{"caption": one.caption, "image": one.image, **one.fields} for one in records]
    return [one[ends_in(task)] for one in held]


def test_records_are_used_for_the_tasks_whose_fields_they_have(model: UniTok) -> None:
    found = [tasks_of(model, open_data(one, 32)) for one in DATA]
    caption = ["text_to_image", "image_to_text"]
    pointed = "pointed_text_to_image"
    assert found[0] == [*caption, "question", "pointed_question", pointed]
    assert found[1] == found[2] == [*caption, "edit", "pointed_edit", pointed]
    assert found[3] == [*caption, "interleaved", pointed]
    assert found[4] == [*caption, "ground", "describe", "ground_caption", "layout_to_image", pointed]
    for several in ("questions", "groundings"):  # one question is asked at once
        found = tasks_of(model, open_data(f"shapes@val?task={several}&limit=4", 32))
        assert set(found) <= {*caption, "ground_caption", "layout_to_image", pointed}


def test_the_truth_scores_all_and_another_record_little(model: UniTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """`perform` is replaced: what is tested is who judges what, and how it is counted."""
    for name in ("edit", "ground", "question"):
        data = open_data(f"shapes@val?task={name}&limit=24", 32)
        for task in tasks_of(model, data):
            monkeypatch.setattr(scored, "perform", truth)
            right = measure_task(model, task, data, batch_size=7)
            assert right is not None and right.numbers["exact"].value == 1 and len(right.values) == 24
            monkeypatch.setattr(scored, "perform", lambda *args, **_: truth(*args[:2], args[2][1:] + args[2][:1]))
            wrong = measure_task(model, task, data, batch_size=24)
            assert wrong is not None and float(wrong.numbers["exact"].value) < 0.6  # type: ignore[arg-type]


def test_numbers_by_kind_are_shares_of_their_kind(model: UniTok, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("shapes@val?task=edit&limit=40", 32)
    source = {data[i].name: data[i].fields["source"] for i in range(40)}
    monkeypatch.setattr(
        scored,
        "perform",
        lambda model, task, records, *_, **__: [
            record.image if "remove" in record.fields["instruction"] else source[record.name] for record in records
        ],
    )
    section = measure_task(model, "edit", data)
    assert section is not None
    by_kind = section.numbers["exact_by_kind"].value
    assert isinstance(by_kind, dict) and by_kind.pop("remove") == 1 and set(by_kind.values()) == {0}
    assert section.numbers["exact_by_kind"].interval["remove"] == (1, 1)


def test_long_texts_of_records_are_cut_as_in_training(model: UniTok) -> None:
    record = open_data("shapes@val?limit=1", 32)[0]
    long = replace(record, fields={**record.fields, "question": "is there a small red circle " * 40})
    longer = replace(record, fields={**record.fields, "question": "is there a small red circle " * 60})
    assert perform(model, "question", [long]) == perform(model, "question", [longer])


def test_inpainting_is_right_where_the_box_is_drawn_right(model: UniTok, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("shapes@val?task=ground&limit=12", 32)

    def redrawn(model: UniTok, pictures: torch.Tensor, masks: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The first half as they were, of the others the object is gone."""
        gone = torch.where(masks[:, None], 255, pictures).to(torch.uint8)
        return torch.cat([pictures[:6], gone[6:]])

    monkeypatch.setattr(scored, "inpaint", redrawn)
    section = measure_inpainting(model, data)
    assert section is not None and section.numbers["exact"].value == 0.5 and section.numbers["known_kept"].value == 1
    assert [row["exact"] for row in section.values] == [1] * 6 + [0] * 6
    assert measure_inpainting(model, open_data("shapes@val?limit=4", 32)) is None, "no boxes"


def test_command_performs_every_task(model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert main(["eval", "tasks", *DATA, "--model", str(tmp_path / "model"), "--limit", "2", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert TITLES.keys() | {"edit 2", "pointed_edit 2", "inpaint"} == {
        key for key in report if key.partition(" ")[0] in TASKS
    }
    assert all(0 <= report[task]["exact"] <= 1 for task in TITLES)
    assert report["provenance"]["edit.exact"]["records"] == 2
    assert report["inpaint"]["known_kept"] == 1 and (out / "inpaint.png").exists()
    assert "Documents: shapes:val:story" in capsys.readouterr().out and (out / "report.html").exists()


def test_bad_input(
    model: UniTok, make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_model()
    plain.config = replace(plain.config, tasks=("question",))
    plain.save_pretrained(tmp_path / "model")
    words = ["eval", "tasks", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main([*words, "shapes@val?task=edit&limit=2"]) == 2
    assert "have the fields of no task that" in capsys.readouterr().err
    plain.config = replace(plain.config, tasks=("text_only",))
    plain.save_pretrained(tmp_path / "model")
    assert main([*words, "shapes@val?limit=2"]) == 2
    assert "learned text_only, none of which has a score" in capsys.readouterr().err
    assert main(words) == 2
    assert not (tmp_path / "out").exists()


def test_every_scored_task_has_a_title() -> None:
    assert TITLES.keys() == JUDGES.keys()
    assert set(FIELDS.values()) == {*TEXTS, "image", "box", "grounded"}, "a new modality needs a way to be shown"
