"""`unitok generate` and `unitok chat` as a user calls them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unitok.cli.main import main
from unitok.data.open import open_data
from unitok.model import UniTok
from unitok.sample.chat import Chat
from unitok.sample.documents import DocumentWriter
from unitok.sampling import SampleSettings

PLAIN = SampleSettings(guidance=1.0)


@pytest.fixture
def folder(make_model: Callable[..., UniTok], tmp_path: Path) -> Path:
    """A model folder, a picture, and a file that is none."""
    model = make_model()
    model.config.tasks = ("interleaved",)
    prefer(model, model.vocabulary.boi)
    model.save_pretrained(tmp_path / "model")
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def prefer(model: UniTok, wanted: int) -> None:
    """Makes an id the likeliest by far, wherever it can stand."""
    with torch.no_grad():
        model.ids.embedding.weight[:, 0] = 30
        model.ids.head.weight[:, 0] = 0
        model.ids.head.weight[wanted, 0] = 30


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_go_on_and_are_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beginnings = folder / "beginnings.jsonl"
    records = [
        {"parts": []},
        {"name": "b", "parts": [{"text": "a small <red>"}, {"image": "red.png"}, {"text": "and"}]},
    ]
    beginnings.write_text(json.dumps(records[0]) + "\n\n" + json.dumps(records[1]) + "\n")
    out = folder / "out"
    words = ["generate", str(beginnings), "--model", str(folder / "model"), "--pictures", "2", "--top-k", "9"]
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "documents.html")
    empty, begun = (record["parts"] for record in lines(out / "documents.jsonl"))
    assert [next(iter(part)) for part in empty] == ["image", "image"]
    assert [next(iter(part)) for part in begun] == ["text", "image", "text", "image", "image"]
    assert begun[0] == {"text": "a small <red>"} and begun[2] == {"text": "and"}
    page = (out / "documents.html").read_text()
    assert re.findall('src="(.*?)"', page) == [part["image"] for part in [*empty, *begun] if "image" in part]
    assert "a small &lt;red&gt;" in page
    with Image.open(out / begun[1]["image"]) as given:
        assert given.size == (32, 32) and given.getpixel((5, 5)) == (255, 0, 0)
    data = open_data(str(out / "documents.jsonl"), (32, 32), captions="optional")
    assert [kind for kind, _ in data[1].fields["parts"]] == ["text", "image", "text", "image", "image"]
    again = folder / "again"
    assert main([*words, "--out", str(again), "--batch-size", "1"]) == 0
    assert (again / "documents.jsonl").read_bytes() == (out / "documents.jsonl").read_bytes()
    assert (again / begun[4]["image"]).read_bytes() == (out / begun[4]["image"]).read_bytes()
    assert main([*words, "--out", str(out)]) == 2
    assert f"--out {out} already holds documents: choose another folder" in capsys.readouterr().err


def test_a_document_of_nothing_is_a_record(folder: Path) -> None:
    (folder / "nothing.jsonl").write_text('{"parts": []}\n')
    words = ["generate", str(folder / "nothing.jsonl"), "--model", str(folder / "model"), "--pictures", "0"]
    assert main([*words, "--out", str(folder / "out")]) == 0
    assert lines(folder / "out" / "documents.jsonl") == [{"parts": [{"text": ""}]}]
    data = open_data(str(folder / "out" / "documents.jsonl"), (32, 32), captions="optional")
    assert data[0].problem is None and not (folder / "out" / "pictures").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"parts": []}\n{"caption": "a"}', [], "FILE, line 2 has no list of parts: give {"),
        ('{"parts": "a"}', [], "FILE, line 1 has no list of parts: give {"),
        ('{"parts": [], "boxes": []}', [], "FILE, line 1 has 'boxes', which is no part of a document"),
        ('{"parts": [{"sound": "a"}]}', [], "FILE, line 1 has a part {'sound': 'a'}: give {"),
        ('{"parts": [{"image": 3}]}', [], "FILE, line 1 names a picture 3: give a path"),
        ('{"parts": [{"image": "broken.png"}]}', [], "line 1 names 'broken.png', which cannot be read as a picture"),
        (
            '{"parts": [{"image": "no.png"}]}',
            [],
            "line 1 names 'no.png', which cannot be read as a picture: ",
        ),
        ("\n{", [], "FILE, line 2 is not JSON"),
        ("\n", [], 'FILE holds no document: write one a line, such as {"parts": []}'),
        (
            json.dumps({"parts": [{"image": "red.png"}] * 4}),
            ["--context", "300"],
            "FILE, line 1: the document has 4 pictures and 261 positions, but a context of 300 holds 2 pict",
        ),
        (json.dumps({"parts": [{"text": "zebra " * 30}]}), [], "tokens, this model takes 48: shorten it"),
        ('{"parts": []}', ["--context", "9"], "--context is 9: a picture of this model takes 64 positions"),
        ('{"parts": []}', ["--pictures", "-1"], "--pictures is -1: choose 0 or more"),
        ('{"parts": []}', ["--text_temperature", "-1"], "--text_temperature is -1.0: choose a value from 0 to"),
        ('{"parts": []}', ["--guidance", "[1, 2]"], "condition(s) that can be left out"),
    ],
)
def test_bad_documents(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], message: str
) -> None:
    path = folder / "beginnings.jsonl"
    path.write_text(text)
    words = ["generate", str(path), "--model", str(folder / "model"), "--out", str(folder / "out"), *options]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message.replace("FILE", str(path)) in error and error.count("\n") == 1
    assert not (folder / "out").exists(), "nothing half-written"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_model_that_learned_no_documents_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = json.loads((folder / "model" / "config.json").read_text())
    config["tasks"] = ["text_to_image"]
    del config["files"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "beginnings.jsonl").write_text('{"parts": []}')
    words = [command, *[str(folder / "beginnings.jsonl")][: command == "generate"], "--model", str(folder / "model")]
    assert main([*words, "--out", str(folder / "out")]) == 2
    message = "model learned text_to_image, not interleaved: train it with --tasks.interleaved.share above 0"
    assert message in capsys.readouterr().err and not (folder / "out").exists()


def test_a_chat_of_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    saved = folder / "chats" / "one.jsonl"
    typed = ["a red circle", f"/image {folder / 'broken.png'}", "/what", f"/image {folder / 'red.png'}", "make it blue"]
    typed += [f"/save {saved}", f"/save {saved}", "/quit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    words = ["chat", "--model", str(folder / "model"), "--pictures", "1"]
    assert main([*words, "--out", str(folder / "out")]) == 0
    first, broken, unknown, second, path, twice = capsys.readouterr().out.splitlines()
    assert (first, second) == tuple(str(folder / "out" / "pictures" / f"000{n}.png") for n in (1, 2))
    assert "broken.png cannot be read as a picture" in broken and "unknown command /what: /image FILE" in unknown
    assert path == str(saved) and twice == f"error: {saved} is there already: choose another file"
    (record,) = lines(saved)
    shown = [next(iter(part.items())) for part in record["parts"]]
    assert [kind for kind, _ in shown] == ["text", "image", "image", "text", "image"]
    assert (shown[0][1], shown[3][1]) == ("a red circle", "make it blue")
    data = open_data(str(saved), (32, 32), captions="optional")
    assert data[0].problem is None and len(data[0].fields["parts"]) == 5
    assert (saved.parent / shown[4][1]).read_bytes() == (folder / "out" / "pictures" / "0002.png").read_bytes()


@pytest.mark.parametrize("objective", ["next_token", "maskgit"])
def test_a_chat_runs_nothing_twice(
    make_model: Callable[..., UniTok], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Every position of the document is run once, and a picture that is drawn once more, as its objective draws it."""
    model = make_model(objective)
    prefer(model, model.vocabulary.boi)
    passes: list[int] = []
    hidden = model.hidden

    def counted(ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return hidden(ids, *rest, **named)

    monkeypatch.setattr(model, "hidden", counted)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    said: list[str] = []
    lines = ["a red circle", "a blue square", f"/image {tmp_path / 'red.png'}", "a cat", "a dog"]
    steps = 3
    writer = DocumentWriter(model, SampleSettings(guidance=1.0, steps=steps), PLAIN, pictures=1)
    chat = Chat(writer, iter(lines), tmp_path, say=said.append)
    chat.talk()
    drawn, image = 4, model.layout.length
    assert len(said) == drawn and len(chat.pixels) == drawn + 1
    drawing = image if objective == "next_token" else steps * image
    assert sum(passes) == writer.positions(chat.document) + drawn * drawing


def test_a_text_goes_on_behind_what_the_model_said(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    """The second line is seen behind the first, as in one text; the model answers each as it would the whole."""
    model = make_model()
    prefer(model, model.vocabulary.eos)
    writer = DocumentWriter(model, PLAIN, PLAIN)
    chat = Chat(writer, iter(["a red", "", "circle"]), tmp_path, say=lambda _: None)
    chat.talk()
    (piece,) = chat.document
    assert piece.value == model.text_tokenizer.encode("a red circle")
    said: list[str] = []
    Chat(writer, iter(["zebra " * 6, "zebra " * 6, "/new", "a", "/save"]), tmp_path, say=said.append).talk()
    assert re.match(
        r"error: the text has \d+ tokens behind [1-9]\d* others, and a text of this model up to 48", said[0]
    )
    assert said[1:] == ["error: /save takes a file: /save chat.jsonl"]


def test_a_chat_that_is_full_says_so(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    model = make_model()
    prefer(model, model.vocabulary.boi)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    said: list[str] = []
    writer = DocumentWriter(model, PLAIN, PLAIN, pictures=9, context=200)
    chat = Chat(writer, iter(["a", f"/image {tmp_path / 'red.png'}", "/new", "a"]), tmp_path, say=said.append)
    chat.talk()
    full = "the chat is full: no picture fits into its context of 200 positions any more: write it down with /save FILE"
    assert [line.removeprefix("error: ")[: len(full)] for line in said[2:4]] == [full, full]
    assert len(said) == 7 and said[6].startswith(full) and len(chat.pixels) == 2, "another chat has room again"
