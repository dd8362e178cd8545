"""A tokenizer.json that cannot be trusted: told in a line, never the end of the process, never all memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenizers_vq.errors import UserError
from unitok.text import load_text_tokenizer, train_bpe


def spoiled(folder: Path, **change: Any) -> Path:
    """A tokenizer of ours with other values, those of the model by "model"."""
    train_bpe(["a red circle"], 256).save(folder)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"].update(change.pop("model", {}))
    file.write_text(json.dumps(values | change))
    return file


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    tokenizer = load_text_tokenizer(spoiled(tmp_path))
    assert tokenizer.size == 256 and tokenizer.decode(tokenizer.encode("a blue \u2603")) == "a blue \u2603"


MISFIT = {"continuing_subword_prefix": "#" * 9, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
"""A prefix that is longer than the tokens it should be cut from."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"vocab": {"a": 4294967295}, "merges": []}}, "gives 'a' the id 4294967295: ids lie below 4,194,304"),
        ({"model": {"vocab": {}, "merges": []}}, "no vocabulary|not a tokenizer file"),
        ({"model": {"merges": [["a", "zzz"]]}}, "is not a tokenizer file"),
        ({"model": MISFIT}, "is not a tokenizer file"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}}, "charsmap that is damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": 3}}, "precompiled_charsmap that is damaged"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"Regex": "a"}, "content": "a" * 1000}] * 4}},
            "has 9 parts that may make a text 1,000,000,000,000 times as long",
        ),
        ({"version": "9.9"}, "Unknown tokenizer version"),
    ],
)  # fmt: skip
def test_what_is_hostile_is_refused_on_opening(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_text_tokenizer(spoiled(tmp_path, **change))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3", "[]", "", "null", "[" * 100_000, "{}"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load_text_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


@pytest.mark.parametrize(
    "change",
    [
        {"model": MISFIT},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": replace("", "y" * 1000)},
        {"decoder": {"type": "Strip", "content": "a", "start": 2**63 - 1, "stop": 2**63 - 1}},
    ],
)
def test_what_makes_the_native_code_panic_is_told_on_opening_and_in_our_line_alone(
    tmp_path: Path, change: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer file \(.*\): use another tokenizer"):
        load_text_tokenizer(spoiled(tmp_path, **change))
    assert capfd.readouterr().err == ""  # the library writes its panics there, past Python


def test_a_text_without_a_rule_is_refused_when_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
    file.write_text(json.dumps({"version": "1.0", "model": model}))
    tokenizer = load_text_tokenizer(file)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(UserError, match=rf"{file} cannot encode 'b' \(.*\): use another tokenizer"):
        tokenizer.encode("b")
