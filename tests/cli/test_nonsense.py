"""Nonsense for every option of every command: refused in a line, at once, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unitok.cli.arguments import _CommandLine
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main

NUMBERS = (
    "-1" + "0" * 30, "1" + "0" * 30, "9" * 5000, "1e400", "1e308", "nan", "inf", ".nan", "-.inf", "many", "[" * 1000,
    "&a [&b [*a, *b], *a]", "!!python/object:os.system", "{a: 1}", "1e-400x",
)  # fmt: skip
PATHS = ("", "x" * 5000, "a\0b", "caf\udce9")
WORDS = {
    "prompts": "a",
    "pictures": "p.png",
    "family": "llamagen",
    "file": "f.pt",
    "reports": "r",
    "data": "shapes@val",
}


def options(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(option of a command, values that it must refuse)."""
    for key, kind in _CommandLine(name, COMMANDS[name], []).types.items():
        text = str(kind)
        if "int" in text or "float" in text:
            yield key, NUMBERS
        elif "Path" in text and "list" not in text:
            yield key, PATHS
        elif "Literal" in text or kind is bool:
            yield key, ("nonsense", "[" * 1000, "a\0b")
        elif key not in WORDS:
            yield key, PATHS[2:] if "str" in text else ("3", "[]", "!!python/none x")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_refuses_nonsense(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = _CommandLine(name, COMMANDS[name], []).parser  # to build it takes half of the time
    monkeypatch.setattr(_CommandLine, "_build_parser", lambda *_, **__: parser)
    tried = 0
    for number, (key, values) in enumerate(options(name), len(name)):  # a value each, for there are many options
        value = values[number % len(values)]
        assert main([*name.split(), f"--{key}={value}"]) == 2, f"{key} takes {value[:40]!r}"
        told = capsys.readouterr().err
        assert told.startswith("error: ") and len(told.splitlines()) < 7 and len(told) < 1500, (key, value[:40], told)
        tried += 1
    assert tried > 2 and list(tmp_path.iterdir()) == []


TRAIN = "train tokenizer --data shapes --out o --preset debug"
GENERATOR = "train generator --data shapes --out o --image_tokenizer t --preset debug"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("demo --pictures 0", "--pictures is 0: choose 4 or more"),
        ("sample a --model m --n 0", "--n is 0: choose 1 or more"),
        ("encode --data a --image_tokenizer t --out o --max_bad -1", "--max_bad is -1.0: choose 0 or more"),
        ("eval clipscore a --max_bad 1.5", "--max_bad is 1.5: choose at most 1"),
        ("sample a --model m --guidance 1e5", "--guidance is 100000.0: choose a scale from 0 to 1000"),
        ("sample a --model m --temperature []", "--temperature is []: choose a value from 0"),
        ("eval fid a b --limit -1", "--limit is -1: choose 1 or more"),
        ("eval clipscore a --batch_size 0", "--batch_size is 0: choose 1 or more"),
        ("encode --data a --image_tokenizer t --out o --workers 1000000", "--workers is 1000000: choose at most 1024"),
        (f"{GENERATOR} --text_length 0", "--text_length is 0: choose 1 or more"),
        (f"{GENERATOR} --text_vocabulary 10", "--text_vocabulary is 10: choose 256 or more"),
        (f"{GENERATOR} --trunk.width 1000000000000", "trunk.width is 1000000000000: choose at most 65536"),
        (
            f"{GENERATOR} --tasks.text_to_image.weight 0 --tasks.image_to_text.weight 0 --tasks.text_only.weight 0",
            "no task has both a share and a weight",
        ),
        (f"{TRAIN} --run.batch_size 1000000000000000000", "--run.batch_size is 1000000000000000000: choose at most"),
        (f"{TRAIN} --run.threads 100000", "run.threads is 100000: choose at most 1024"),
        (f"{TRAIN} --tokenizer.image_size 1000000000", "tokenizer.image_size is 1000000000: choose at most 65536"),
        (f"{TRAIN} --tokenizer.blocks 100000", "tokenizer.blocks is 100000: choose at most 256"),
        (f"{TRAIN} --tokenizer.quantizer LFQ --tokenizer.quantizer.codebook_size 1099511627776", "at most 16777216"),
        (f"{TRAIN} --tokenizer.channels 16384 --tokenizer.blocks 256", "needs at least"),
        (f"{TRAIN} --tokenizer.image_size 65536 --run.batch_size 65536", "or a smaller run.batch_size"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_work_begins(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data shapes: ")]
    assert len(told) == 1 and message in told[0]
    assert not list(tmp_path.rglob("*.pt"))
