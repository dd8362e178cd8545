"""Files of settings that cannot be trusted: read once, within bounds, and told in a line."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.cli.yaml_file import read_yaml

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "aliases .* are not read"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: !!int abc", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: " + "9" * 5000, "is not valid YAML"),
        ("a: .nan", "nan is not finite"),
        ("a: 1\na: 2", "'a' is there twice"),
        ("1: 2", "keys are texts"),
        ('a: "x\\0y"', "zero byte"),
        ("a:\tb:\tc", "is not valid YAML"),
        (b"\xe9: 1", "save it as UTF-8"),
        ("- a", "has no options"),
        ("# " + "x" * 2**20, "is larger than"),
    ],
)
def test_what_is_hostile_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_without_end_is_not_read_whole() -> None:
    with pytest.raises(UserError, match="is larger than"):
        read_yaml(Path("/dev/zero"))


def test_texts_stay_texts_and_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("data: 2024-13-45\nlr: 1e-3".encode("utf-16"))
    assert read_yaml(tmp_path / "c.yaml") == {"data": "2024-13-45", "lr": 0.001}


def test_a_pipe_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("preset: shapes_query\ndata: d\nout: o\ncolour: red\n",))
    writer.start()
    assert main(["train", "tokenizer", "--config", str(pipe)]) == 2
    writer.join()
    assert "unknown key 'colour'" in capsys.readouterr().err


def test_of_many_mistakes_the_first_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("".join(f"k{i}: 1\n" for i in range(2000)))
    assert main(["train", "tokenizer", "--config", str(tmp_path / "c.yaml")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) < 12 and told[0].endswith("problems:") and told[-1].startswith("  and ")
