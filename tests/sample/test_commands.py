"""`unitok sample` and `unitok caption` as a user calls them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.data.open import open_data
from unitok.model import UniTok
from unitok.sample.commands import caption as write_captions
from unitok.sampling import GivenSettings, SampleSettings


@pytest.fixture
def folder(make_model: Callable[..., UniTok], tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "pictures" / "metadata.jsonl").read_text().splitlines()]


def test_pictures_records_and_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["sample", "a red circle", "a blue square", "--model", str(folder), "--n", "2", "--out", str(out)]
    assert main([*words, "--guidance", "2", "--top-k", "9"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "sheet.png")
    found = records(out)
    assert [(r["caption"], r["seed"]) for r in found] == [
        ("a red circle", 0), ("a red circle", 1), ("a blue square", 0), ("a blue square", 1)
    ]  # fmt: skip
    assert found[0]["settings"]["top_k"] == 9 and len(found[0]["model_sha256"]) == 64
    for record in found:
        assert Image.open(out / "pictures" / record["file_name"]).size == (32, 32)
    assert Image.open(out / "sheet.png").size[0] > 2 * 32
    data = open_data(str(out / "pictures"))  # the sheet is no part of it
    assert sorted(data[i].caption or "" for i in range(len(data))) == ["a blue square"] * 2 + ["a red circle"] * 2


def test_a_command_takes_every_setting_and_none_unasked() -> None:
    options, settings = get_type_hints(GivenSettings), get_type_hints(SampleSettings)
    assert list(options) == list(settings), "one list, in one order"
    assert options == {name: kind | None for name, kind in settings.items()}
    assert set(vars(GivenSettings()).values()) == {None} and SampleSettings.given(GivenSettings()) == {}
    assert SampleSettings.given(GivenSettings(guidance=[2.0, 1.0], top_k=0)) == {"guidance": [2.0, 1.0], "top_k": 0}


def test_guidance_may_be_a_list(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "a red circle", "--model", str(folder), "--n", "1", "--out"]
    assert main([*words, str(tmp_path / "a"), "--guidance", "2"]) == 0
    assert main([*words, str(tmp_path / "b"), "--guidance", "[2]"]) == 0
    one, two = (folder / "pictures" / records(folder)[0]["file_name"] for folder in (tmp_path / "a", tmp_path / "b"))
    assert one.read_bytes() == two.read_bytes()
    assert main([*words, str(tmp_path / "c"), "--guidance", "[2, 3]"]) == 2
    assert "this task has 1 condition(s) that can be left out: give as many" in capsys.readouterr().err


def test_progress_shows_each_scale(
    make_model: Callable[..., UniTok], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("next_scale")
    model.config.sampling = {"guidance": 2.0}
    model.save_pretrained(tmp_path / "scaled")
    out = tmp_path / "out"
    words = ["sample", "a red circle", "--n", "2", "--out", str(out), "--progress", "--model"]
    assert main([*words, str(tmp_path / "scaled")]) == 0
    assert capsys.readouterr().out.split() == [str(out / "sheet.png"), str(out / "progress.png")]
    assert records(out)[0]["settings"]["guidance"] == 2.0, "the model's own"
    with Image.open(out / "progress.png") as progress:
        assert progress.size == (4 * (96 + 4), 2 * (96 + 4))
        last = np.asarray(progress.convert("RGB"))[2:98, 302:398][::3, ::3]
    with Image.open(out / "pictures" / records(out)[0]["file_name"]) as picture:
        assert np.array_equal(np.asarray(picture), last)
    fewer = [str(tmp_path / "fewer") if word == str(out) else word for word in words]
    assert main([*fewer, str(tmp_path / "scaled"), "--scales", "2"]) == 0
    with Image.open(tmp_path / "fewer" / "progress.png") as progress:
        assert progress.size == (2 * (96 + 4), 2 * (96 + 4)), "what is drawn and no more"
    assert main([*words, str(folder)]) == 2
    assert "--progress shows scales, but this model draws by next_token" in capsys.readouterr().err


def test_a_record_reproduces_its_picture(folder: Path, tmp_path: Path) -> None:
    base = ["sample", "--model", str(folder), "--guidance", "2", "--out"]
    assert main([*base, str(tmp_path / "a"), "a red circle", "a blue square", "--n", "3"]) == 0
    record = records(tmp_path / "a")[4]
    assert main([*base, str(tmp_path / "b"), record["caption"], "--seed", str(record["seed"]), "--n", "1"]) == 0
    one, two = (
        tmp_path / name / "pictures" / found["file_name"]
        for name, found in (("a", record), ("b", records(tmp_path / "b")[0]))
    )
    assert one.read_bytes() == two.read_bytes()


def test_captions_from_a_file_go_on_where_they_stopped(folder: Path, tmp_path: Path) -> None:
    captions, out = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("one\ntwo\n\nthree\n")
    words = ["sample", "--model", str(folder), "--captions", str(captions), "--n", "1", "--out", str(out)]
    assert main(words) == 0
    whole = records(out)
    assert [r["caption"] for r in whole] == ["one", "two", "three"]
    # As after a crash: a picture without its record, and a record cut off in the middle.
    lines = (out / "pictures" / "metadata.jsonl").read_text().splitlines()
    (out / "pictures" / "metadata.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    before = (out / "pictures" / whole[0]["file_name"]).stat().st_mtime_ns
    assert main(words) == 0
    assert sorted(r["caption"] for r in records(out)) == ["one", "three", "two"]
    assert (out / "pictures" / whole[0]["file_name"]).stat().st_mtime_ns == before


def test_captions_of_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / name)
    assert main(["caption", "--model", str(folder), str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"two\nlines.png", r"two\nlines.png"),
        (b"a\ttab.png", r"a\ttab.png"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        ("café\u2028.png".encode(), r"café\u2028.png"),
        (b"\x1b[31m.png", r"\x1b[31m.png"),
    ],
)
def test_a_line_of_output_is_one_picture_whatever_its_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes, shown: str
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    try:
        Image.new("RGB", (40, 40), "red").save(path, "png")
    except OSError:
        pytest.skip("a file system that takes no such names")
    write_captions([Path(path)], folder)
    out = capsys.readouterr().out
    (line,) = out.splitlines()
    found, _ = line.split("\t")
    assert Path(found).name == shown and found.isprintable()
    os.remove(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / shown))} is not a file$"):
        write_captions([Path(path)], folder)


def test_a_file_of_captions_is_read_by_its_mark_or_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions, found = tmp_path / "captions.txt", []
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        captions.write_bytes("a café\r\ntwo\r\n".encode(encoding))
        out = tmp_path / encoding
        assert main(["sample", "--model", str(folder), "--captions", str(captions), "--n", "1", "--out", str(out)]) == 0
        found.append([(r["caption"], (out / "pictures" / r["file_name"]).read_bytes()) for r in records(out)])
    assert found[0] == found[1] == found[2] and [caption for caption, _ in found[0]] == ["a café", "two"]
    captions.write_bytes("a café\r\n".encode("cp1252"))
    assert main(["sample", "--model", str(folder), "--captions", str(captions), "--out", str(tmp_path / "no")]) == 2
    assert f"{captions} is not UTF-8 text: save it as UTF-8" in capsys.readouterr().err


def test_a_caption_of_a_file_that_is_too_long_is_refused_with_its_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions, out = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("one\n\n" + "word " * 99 + "\n")
    assert main(["sample", "--model", str(folder), "--captions", str(captions), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert f"--captions {captions}, line 3: the caption 'word word" in message and "this model takes 48" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "a"], "model"),
        (["sample", "--model", "MODEL"], "nothing to draw: give captions"),
        (["sample", "a", "--model", "nowhere"], "model folder nowhere does not exist"),
        (["sample", "a", "--model", "MODEL", "--guidance", "-1"], "--guidance is -1.0: choose a scale from 0 to 1000"),
        (["sample", "a", "--model", "MODEL", "--top-p", "1.5"], "--top-p is 1.5: choose a value in (0, 1]"),
        (["sample", "a", "--model", "MODEL", "--n", "0"], "--n is 0: choose 1 or more"),
        (["sample", "word " * 99, "--model", "MODEL"], "tokens, this model takes 48"),
        (["sample", "--model", "MODEL", "--captions", "no.txt"], "--captions no.txt is not a file"),
        (["sample", "a", "--model", "MODEL", "--out", "FILE"], "is a file: choose another folder"),
        (["caption", "--model", "MODEL"], "nothing to caption: give picture files"),
        (["caption", "--model", "MODEL", "FILE"], "cannot be read as a picture"),
        (["caption", "--model", "MODEL", "no.png"], "no.png is not a file"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("x")
    places = {"MODEL": str(folder), "FILE": str(tmp_path / "file")}
    words = [places.get(word, word) for word in words]
    if words[0] == "sample" and "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_a_folder_of_another_run_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "a", "--model", str(folder), "--n", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--temperature", "0.5"]) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err


def test_the_record_names_the_precision(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records of before it was written down are of fp32."""
    out = tmp_path / "out"
    words = ["sample", "a", "--model", str(folder), "--n", "1", "--out", str(out)]
    assert main(words) == 0
    [record] = records(out)
    assert record["precision"] == "fp32", "a small model gains nothing"
    assert main([*words, "--precision", "bf16"]) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err

    picture = out / "pictures" / record["file_name"]
    old = {key: value for key, value in record.items() if key not in ("precision", "sha256")}
    old["sha256"] = hashlib.sha256(picture.read_bytes() + json.dumps(old, sort_keys=True).encode()).hexdigest()
    (out / "pictures" / "metadata.jsonl").write_text(json.dumps(old) + "\n")
    before = contents(out / "pictures")
    assert main(words) == 0
    assert contents(out / "pictures") == before, "nothing is drawn again"

    half = tmp_path / "half"
    assert main([*words[:-1], str(half), "--precision", "bf16"]) == 0
    assert records(half)[0]["precision"] == "bf16"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "damage",
    [
        lambda pictures: (pictures / "a-red-circle-s1.png").unlink(),
        lambda pictures: (pictures / "a-red-circle-s1.png").write_bytes(b""),
        lambda pictures: flip(pictures / "a-red-circle-s1.png"),
        lambda pictures: flip(pictures / "metadata.jsonl"),
        lambda pictures: (pictures / "metadata.jsonl").write_bytes(b"\xff\xfe" + b"[" * 9999),
        lambda pictures: cut(pictures / "metadata.jsonl"),
        lambda pictures: change(pictures / "metadata.jsonl", "a red circle", "a rad circle"),
        lambda pictures: change(pictures / "metadata.jsonl", '"seed": 1', '"seed": "1"'),
        lambda pictures: change(pictures / "metadata.jsonl", "a-red-circle-s1.png", "../../secret.png"),
    ],
)
def test_what_is_damaged_is_drawn_again(folder: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    words = [
        "sample",
        "a red circle",
        "a blue square",
        "--model",
        str(folder),
        "--n",
        "2",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main(words) == 0
    before = contents(tmp_path / "a")
    damage(tmp_path / "a" / "pictures")
    assert contents(tmp_path / "a") != before
    assert main(words) == 0
    assert contents(tmp_path / "a") == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))
