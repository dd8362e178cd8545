"""`unitok ask`, `ground`, `edit` and `sample --layout` as a user calls them, and what they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import count_passes, stir

from tokenizers_vq.images import to_pil
from unitok.boxes import is_box
from unitok.cli.main import main
from unitok.config import ModelConfig
from unitok.model import UniTok
from unitok.sample.commands import printable
from unitok.sample.engine import Engine
from unitok.sample.jobs import job_for
from unitok.sample.pictures import read_picture
from unitok.sample.pipeline import answer, run
from unitok.sample.reading import ask, describe, ground, ground_caption
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import TASKS, prompt
from unitok.vocabulary import Vocabulary

QUESTIONS = ["what colour is it", "how many are there", "is there a red circle"]


def grounded(make_model: Callable[..., UniTok], objective: str = "next_token", tasks: tuple[str, ...] = ()) -> UniTok:
    """A model of all tasks, none of which points before it answers."""
    direct = tuple(task for task, parts in TASKS.items() if sum(part.learned for part in parts) == 1)
    made = make_model(objective)
    vocabulary = Vocabulary(made.config.vocabulary).grown("location", 100).grown("box", 1)
    config = ModelConfig(**{**vars(made.config), "vocabulary": vocabulary.spans, "tasks": tasks or direct})
    torch.manual_seed(0)
    return stir(UniTok(config, made.image_tokenizer, made.text_tokenizer).eval())


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., UniTok], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    grounded(make_model).save_pretrained(place / "model")
    grounded(make_model, tasks=("text_to_image",)).save_pretrained(place / "drawing")
    return place


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize("objective", ["next_token", "next_scale"])
def test_questions_about_a_picture_share_its_positions(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    model = grounded(make_model, objective)
    model.config.text_length = 24
    picture = noise()
    alone = [ask(model, picture, [question])[0] for question in QUESTIONS]
    assert alone == [answer(model, picture[None], [question])[0] for question in QUESTIONS]
    codes = torch.zeros(1, model.layout.length, dtype=torch.int64)
    n = len(model.objective.given(codes, model.layout, model.vocabulary)[0])
    passes = count_passes(model, monkeypatch)
    assert ask(model, picture, QUESTIONS) == alone and len(set(alone)) > 1
    assert passes[0] == (1, n), "the picture, once"
    assert passes[1] == (3, 1 + max(len(model.text_ids(question)) for question in QUESTIONS))
    assert all(length == 1 for _, length in passes[2:])
    passes.clear()
    assert ask(model, picture, [*QUESTIONS, "zebra"], batch_size=2)[:3] == alone
    assert [shape for shape in passes if shape[1] == n] == [(1, n)]


@pytest.mark.parametrize("objective", ["next_token", "next_scale", "random_order"])
@torch.inference_mode()
def test_a_prompt_in_two_passes_is_the_prompt_in_one(make_model: Callable[..., UniTok], objective: str) -> None:
    """Pictures first, then what follows; prompts of several lengths side by side."""
    model = grounded(make_model, objective)
    one, two = (torch.randint(64, (model.layout.length,), generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    records: list[dict[str, Any]] = [
        {"source": one, "instruction": "make it blue"},
        {"source": [one, two], "instruction": "put the circle of the second picture in"},
        {"source": [one, two], "instruction": ""},
    ]
    met: dict[int, torch.Tensor] = {}
    settings = SampleSettings(guidance=1.0, temperature=0.0)
    engine = Engine(model, 3, 300, watch=lambda numbers, logits: met.update(zip(numbers, logits, strict=True)))
    for record in records:
        engine.add(job_for("edit", record, 0, settings))
    engine.step()
    for number, record in enumerate(records):
        modalities = model.modalities()
        given = [s for piece in prompt("edit", record) for s in modalities[piece.modality].given([piece.value])]
        image = model.objective.learned(one[None], model.layout, model.vocabulary, [])
        batch = lay_out([[document([*given, *image])]], pad=model.vocabulary.pad)
        hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)
        place = len(document(given))
        right = model.ids.scores(hidden[0, place], model.vocabulary.image_range)
        if objective == "random_order":  # its first place looks from where the first code stands, in both
            assert met[number].shape == (1, len(right))
        torch.testing.assert_close(met[number][0], right, atol=1e-4, rtol=1e-4)


def test_boxes_and_texts_with_boxes_are_read_from_a_picture(make_model: Callable[..., UniTok]) -> None:
    model = grounded(make_model)
    hot = SampleSettings(guidance=1.0, temperature=2.0)
    found = [ground(model, noise(), "the red circle", hot, seed) for seed in range(3)]
    assert all(is_box(box) for boxes in found for box in boxes) and found[0] != found[1]
    assert found[0] == ground(model, noise(), "the red circle", hot, 0)
    named = ground_caption(model, noise(), hot, 1)
    assert named and all(isinstance(part, str) or is_box(part) for part in named)
    assert describe(model, noise(), [0.1, 0.1, 0.4, 0.4]) != describe(model, noise(), [0.6, 0.6, 0.9, 0.9])


@pytest.mark.parametrize("objective", ["next_token", "maskgit", "next_scale"])
def test_layouts_and_several_sources_are_drawn_from(make_model: Callable[..., UniTok], objective: str) -> None:
    model = grounded(make_model, objective)
    settings = SampleSettings(guidance=[2.0], steps=2)
    box, other = [0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]
    jobs = [job_for("layout_to_image", {"named": ["a circle", one]}, 0, settings) for one in (box, other, box)]
    assert [len(job.prompts) for job in jobs] == [2] * 3 and jobs[0].prompts[1][0].value == []
    first, second, third = (written[0] for written in run(model, jobs))
    assert torch.equal(first, third) and not torch.equal(first, second)
    codes = [torch.full((model.layout.length,), n) for n in (0, 5)]
    both = SampleSettings(guidance=[2.0, 1.5], steps=2)
    edits = [job_for("edit", {"source": some, "instruction": "turn it"}, 0, both) for some in (codes[0], codes)]
    one, two = (written[0] for written in run(model, edits))
    assert not torch.equal(one, two)


def test_ask_prints_a_line_for_each_question(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", str(picture), "--model", str(folder / "model"), *QUESTIONS]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == QUESTIONS and all(line.count("\t") == 1 for line in lines)
    model = UniTok.from_pretrained(folder / "model")
    found = ask(model, read_picture(picture, (32, 32)), QUESTIONS)
    assert [line.split("\t")[1] for line in lines] == [printable(" ".join(text.split())) for text in found]


def test_ground_prints_boxes_in_pixels_of_the_picture(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ground", str(picture), "--model", str(folder / "model"), "--temperature", "1.5"]
    assert main([*words, "the red circle", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    boxes = [[int(side) for side in line.split(",")] for line in lines]
    assert boxes and all(32 <= left <= right <= 96 and 0 <= top <= bottom <= 64 for left, top, right, bottom in boxes)
    with Image.open(tmp_path / "out" / "wide.png") as drawn, Image.open(picture) as given:
        assert drawn.size == given.size and drawn.tobytes() != given.tobytes()
    assert main(words) == 0
    for line in capsys.readouterr().out.splitlines():
        _, *box = line.split("\t")
        assert len(box) <= 1 and all(len(one.split(",")) == 4 for one in box)
    for box in ("40,10,60,30", "0,0,64,64"):
        assert main([*words, "--describe", box]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_edit_writes_pictures_that_name_their_sources(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_pil(noise()).save(tmp_path / "b.png")
    out = tmp_path / "out"
    words = ["edit", str(picture), "make it blue", "--model", str(folder / "model"), "--n", "2", "--out", str(out)]
    words += ["--guidance", "[2, 1.5]"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(out / "sheet.png")
    lines = (out / "pictures" / "metadata.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["caption"], record["seed"]) for record in records] == [("make it blue", 0), ("make it blue", 1)]
    assert [source["file_name"] for source in records[0]["source"]] == ["wide.png"]
    assert records[0]["settings"]["guidance"] == [2, 1.5] and len(records[0]["source"][0]["sha256"]) == 64
    before = {path: path.read_bytes() for path in sorted((out / "pictures").iterdir())}
    assert main(words) == 0
    assert before == {path: path.read_bytes() for path in sorted((out / "pictures").iterdir())}, "it goes on"
    assert main([*words, str(tmp_path / "b.png")]) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err
    words[words.index(str(out))] = str(tmp_path / "two")
    assert main([*words, str(tmp_path / "b.png")]) == 0
    found = [path.read_bytes() for path in sorted((tmp_path / "two" / "pictures").glob("*.png"))]
    assert found != [data for path, data in before.items() if path.suffix == ".png"], "the second source is read"
    words[words.index(str(tmp_path / "two"))] = str(tmp_path / "three")
    assert main([*words, "--guidance", "[1, 2, 3]"]) == 2
    assert "this task has 2 condition(s) that can be left out: give as many" in capsys.readouterr().err
    assert not (tmp_path / "three").exists(), "nothing half-written"


def test_sample_draws_a_layout(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, out = tmp_path / "layout.json", tmp_path / "out"
    named = ["a large blue square", [0.1, 0.1, 0.4, 0.4], " right of a small red circle", [0.6, 0.6, 0.9, 0.9]]
    layout.write_text(json.dumps(named))
    words = ["sample", "--layout", str(layout), "--model", str(folder / "model"), "--n", "1", "--out", str(out)]
    assert main(words) == 0
    (line,) = (out / "pictures" / "metadata.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["caption"] == "a large blue square right of a small red circle" and record["named"] == named
    first = (out / "pictures" / record["file_name"]).read_bytes()
    capsys.readouterr()
    layout.write_text(json.dumps([*named[:3], [0.0, 0.6, 0.1, 0.9]]))
    assert main(words) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "pictures" / record["file_name"]).read_bytes() != first
    captions = ["sample", record["caption"], "--model", str(folder / "model"), "--n", "1", "--out", str(out)]
    assert main(captions) == 2, "pictures of captions do not go among those of a layout"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "PICTURE", "--model", "MODEL"], "nothing to ask: give questions"),
        (["ask", "no.png", "what", "--model", "MODEL"], "no.png is not a file"),
        (["ask", "FILE", "what", "--model", "MODEL"], "cannot be read as a picture: not a picture file"),
        (["ask", "PICTURE", "word " * 99, "--model", "MODEL"], "tokens, this model takes 48: shorten it"),
        (
            ["ask", "PICTURE", "a", "--model", "DRAWING"],
            "learned text_to_image, not question: train it with --tasks.qu",
        ),
        (
            ["ground", "PICTURE", "a", "--model", "DRAWING"],
            "learned text_to_image, not ground: train it with --tasks.g",
        ),
        (["ground", "PICTURE", "--model", "DRAWING"], "not ground_caption: train it with --tasks.ground_caption.share"),
        (["ground", "PICTURE", "--describe", "40,0,60,9", "--model", "DRAWING"], "not describe: train it"),
        (["ground", "PICTURE", "a", "--describe", "1,2,3,4", "--model", "MODEL"], "are two directions: give one of"),
        (
            ["ground", "PICTURE", "--describe", "1,2,3", "--model", "MODEL"],
            "--describe is '1,2,3': give left,top,right",
        ),
        (["ground", "PICTURE", "--describe", "9,2,3,4", "--model", "MODEL"], "left before right and top before bottom"),
        (["ground", "PICTURE", "--describe", "1,2,300,4", "--model", "MODEL"], "the picture, which has 128x64 pixels"),
        (["ground", "PICTURE", "--describe", "0,0,20,9", "--model", "MODEL"], "what the model reads, 32,0,96,64"),
        (["edit", "PICTURE", "a", "--model", "DRAWING"], "learned text_to_image, not edit: train it with --tasks.edit"),
        (["edit", "PICTURE", "PICTURE", "make it", "--model", "MODEL"], "make it is not a file: give the picture, the"),
        (["edit", "PICTURE", "a", "--n", "0", "--model", "MODEL"], "--n is 0: choose 1 or more"),
        (["edit", "PICTURE", "--model", "MODEL"], "INSTRUCTION missing"),
        (
            ["sample", "--layout", "LAYOUT", "--model", "DRAWING"],
            "not layout_to_image: train it with --tasks.layout_to",
        ),
        (["sample", "--layout", "no.json", "--model", "MODEL"], "--layout no.json is not a file"),
        (["sample", "--layout", "FILE", "--model", "MODEL"], "file is not JSON"),
        (["sample", "--layout", "BAD", "--model", "MODEL"], "has a box [0.5, 0, 0.1, 1]: give [left, top, right,"),
        (["sample", "a", "--layout", "LAYOUT", "--model", "MODEL"], "--layout has a caption of its own"),
    ],
)
def test_bad_input(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "layout.json").write_text('["a red circle", [0, 0, 1, 1]]')
    (tmp_path / "bad.json").write_text('["a red circle", [0.5, 0, 0.1, 1]]')
    places = {"MODEL": folder / "model", "DRAWING": folder / "drawing", "PICTURE": picture, "FILE": tmp_path / "file"}
    places |= {"LAYOUT": tmp_path / "layout.json", "BAD": tmp_path / "bad.json"}
    words = [str(places.get(word, word)) for word in words]
    if words[0] in ("sample", "edit"):
        words += ["--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_captions_have_no_question_any_more(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(picture), "--model", str(folder / "model"), "--question", "what"]) == 2
    assert "unknown option --question" in capsys.readouterr().err
