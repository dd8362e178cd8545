"""What a model that points looked at first, where its user sees it: in records, beside answers, over pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import stir

from unitok.boxes import is_box, uncropped
from unitok.cli.main import main
from unitok.config import ModelConfig
from unitok.data.open import open_data
from unitok.model import UniTok
from unitok.sample.inpainting import inpainting_task
from unitok.sample.jobs import job_for
from unitok.sample.performing import pointed_first
from unitok.sample.pictures import as_read, read_picture
from unitok.sample.pipeline import GREEDY, run
from unitok.sampling import SampleSettings
from unitok.vocabulary import Vocabulary

QUESTIONS = ["where is it", "what\tis it"]
WINDOW = [0.25, 0.0, 0.75, 1.0]
"""What the model reads of the picture."""


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok]) -> UniTok:
    """It learned to point, in random weights."""
    made = make_model()
    vocabulary = Vocabulary(made.config.vocabulary).grown("location", 100).grown("box", 1)
    tasks = ("pointed_question", "pointed_edit", "pointed_inpaint", "pointed_text_to_image")
    config = ModelConfig(**{**vars(made.config), "vocabulary": vocabulary.spans, "tasks": tasks, "text_length": 24})
    torch.manual_seed(0)
    return stir(UniTok(config, made.image_tokenizer, made.text_tokenizer).eval())


@pytest.fixture(scope="module")
def folder(model: UniTok, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    return place


def seen(model: UniTok, picture: Path) -> Any:
    return as_read(model, read_picture(picture, (32, 32))[None])[0]


def unitok(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pictures" / "metadata.jsonl").read_text().splitlines()]


def test_ask_says_where_it_looked(
    model: UniTok, folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    unitok("ask", picture, *QUESTIONS, "--model", folder, "--out", out)
    lines = capsys.readouterr().out.splitlines()
    wanted = []
    for question in QUESTIONS:
        record = {"image": seen(model, picture), "question": model.text_ids(question)}
        [written] = run(model, [job_for("pointed_question", record, 0, GREEDY)])
        wanted.append([uncropped(box, WINDOW) for box in model.modalities()["box"].value(written[0])])
    assert any(wanted)
    for line, boxes in zip(lines, wanted, strict=True):
        sides = [",".join(str(round(128 * one)) if n % 2 == 0 else str(round(64 * one)) for n, one in enumerate(box))
                 for box in boxes]  # fmt: skip
        assert line.split("\t")[2] == " ".join(sides)
    # The same as a file of records, which trains what a person has put right.
    data = open_data(str(out / "wide.jsonl"), (32, 32), captions="optional")
    for number, (question, boxes) in enumerate(zip(QUESTIONS, wanted, strict=True)):
        found = json.loads((out / "wide.jsonl").read_text().splitlines()[number])
        assert found.keys() == {"image", "question", "boxes", "answer"} and found["question"] == question
        assert found["boxes"] == boxes and all(map(is_box, boxes))
        assert data[number].problem is None and len(data[number].fields["boxes"]) == len(boxes)
    with Image.open(out / "wide.png") as whole, Image.open(out / "wide-boxes.png") as drawn, Image.open(picture) as own:
        assert whole.tobytes() == own.tobytes() != drawn.tobytes() and drawn.size == own.size


def test_a_model_that_does_not_point_answers_as_ever(
    make_model: Callable[..., UniTok], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    model.config.tasks = ("question",)
    model.save_pretrained(tmp_path / "model")
    unitok("ask", picture, *QUESTIONS, "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert all(line.count("\t") == 1 for line in capsys.readouterr().out.splitlines())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["wide.jsonl", "wide.png"]
    assert pointed_first(model, "question", [torch.zeros(3)]) == {}


@pytest.mark.parametrize("command", ["ask", "ground"])
def test_the_picture_is_never_written_over(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = picture.read_bytes()
    assert main([command, str(picture), "what", "--model", str(folder), "--out", str(picture.parent)]) == 2
    assert "is the folder of the picture, which would be written over: choose another" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_records_of_edits_have_the_boxes(model: UniTok, folder: Path, picture: Path, tmp_path: Path) -> None:
    words = ["edit", picture, "turn it", "--model", folder, "--out", tmp_path / "out", "--steps", 2]
    unitok(*words, "--n", 2)
    record = {"source": [seen(model, picture)], "instruction": model.text_ids("turn it")}
    [[written, _]] = run(model, [job_for("pointed_edit", record, 0, GREEDY)])
    boxes = model.modalities()["box"].value(written)
    assert boxes and [one["pointed"] for one in records(tmp_path / "out")] == [{"boxes": boxes}] * 2
    # The folder goes on, and a record whose boxes were changed is drawn again.
    lines = (tmp_path / "out" / "pictures" / "metadata.jsonl").read_text()
    changed = lines.replace('"pointed": {"boxes": [[', '"pointed": {"boxes": [[0.5, ', 1)
    assert changed != lines
    (tmp_path / "out" / "pictures" / "metadata.jsonl").write_text(changed)
    unitok(*words, "--n", 3)
    assert [one["pointed"] for one in records(tmp_path / "out")] == [{"boxes": boxes}] * 3


def test_records_of_what_is_filled_in_have_its_caption_with_boxes(
    model: UniTok, folder: Path, picture: Path, tmp_path: Path
) -> None:
    """Each its own: where things are to be differs from drawing to drawing."""
    assert inpainting_task(model) == "pointed_inpaint"
    fixed = ["--caption", "a red circle", "--box", "40,8,80,40", "--out", tmp_path / "out", "--n", 3, "--steps", 2]
    unitok("inpaint", picture, "--model", folder, *fixed)
    found = [record["pointed"] for record in records(tmp_path / "out")]
    assert len({str(one) for one in found}) > 1
    assert all(one.keys() == {"named"} and one["named"] for one in found)
    assert all(isinstance(part, str) or is_box(part) for one in found for part in one["named"])


def test_records_of_drawings_have_their_boxes(model: UniTok, folder: Path, tmp_path: Path) -> None:
    words = ["sample", "a red circle", "--model", folder, "--out", tmp_path / "out", "--n", 3, "--steps", 2]
    unitok(*words)
    job = {"caption": model.text_ids("a red circle")}
    for seed, record in enumerate(records(tmp_path / "out")):
        settings = SampleSettings(**record["settings"])
        [written] = run(model, [job_for("pointed_text_to_image", job, seed, settings)])
        assert record["pointed"] == pointed_first(model, "pointed_text_to_image", written)
