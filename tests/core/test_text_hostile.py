"""Files of text tokenizers that make the native code panic: refused when they are opened, in our one line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenizers_vq.errors import UserError
from unitok.text import FILE, load_text_tokenizer, train_bpe


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file["model"].update(continuing_subword_prefix="éé"),
        lambda file: file.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        lambda file: file.update(normalizer=replace({"Regex": ""}, "y" * 1000)),
        lambda file: file.update(decoder={"type": "Strip", "content": "a", "start": 2**63 - 1, "stop": 2**63 - 1}),
        lambda file: file.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAADDKA=="}),
    ],
)
def test_what_makes_the_native_code_panic_is_refused_when_opened(
    spoil: Callable[[dict[str, Any]], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_bpe(["a red circle"] * 3, 300).save(tmp_path)
    file = json.loads((tmp_path / FILE).read_text())
    spoil(file)
    (tmp_path / FILE).write_text(json.dumps(file))
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer file \(.*\): use another tokenizer"):
        load_text_tokenizer(tmp_path)
    assert capfd.readouterr().err == "", "the library writes its panics past Python"


def test_a_tokenizer_without_a_rule_for_all_texts_opens(tmp_path: Path) -> None:
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}}
    (tmp_path / FILE).write_text(json.dumps(words))
    tokenizer = load_text_tokenizer(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(UserError, match=r"tokenizer.json cannot encode 'b' \(.*\): use another tokenizer"):
        tokenizer.encode("b")
