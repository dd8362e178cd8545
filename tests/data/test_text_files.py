"""Prompts are read by the same reader as captions: by their mark, or refused."""

from pathlib import Path

import pytest

from unitok.cli.main import main
from unitok.data.text_files import read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_prompts_are_the_same_in_every_marked_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "prompts.txt").write_bytes("a bee\r\né 🐝\r\n".encode(encoding))
    assert read_text(tmp_path / "prompts.txt") == "a bee\né 🐝\n"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_prompts_in_another_encoding_are_refused_before_the_model_is_looked_for(
    tmp_path: Path, encoding: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("a café".encode(encoding))
    assert main(["sample", "--model", str(tmp_path), "--captions", str(file), "--out", str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err == f"error: {file} is not UTF-8 text: save it as UTF-8\n"
    assert not (tmp_path / "out").exists()
