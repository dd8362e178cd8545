"""Model folders: round trips to the bit, and what a wrong folder gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.text import load_text_tokenizer, train_bpe


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_are_inverse(make_model: Callable[..., UniTok], tmp_path: Path, tied: bool) -> None:
    model = make_model("masked_token", tied_head=tied)
    model.save_pretrained(tmp_path / "model")
    loaded = UniTok.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    for (name, one), (_, two) in zip(
        model.transformer.state_dict().items(), loaded.transformer.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name
    assert loaded.image_tokenizer.fingerprint() == model.image_tokenizer.fingerprint()
    assert loaded.text_tokenizer.encode("a red circle") == model.text_tokenizer.encode("a red circle")
    assert (loaded.transformer.head.weight is loaded.transformer.embedding.weight) == tied


def test_saving_again_replaces_and_keeps_other_files(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    make_model(seed=0).save_pretrained(tmp_path)
    (tmp_path / "log.jsonl").write_text("mine")
    second = make_model(seed=1)
    second.save_pretrained(tmp_path)
    assert UniTok.from_pretrained(tmp_path).fingerprint() == second.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "image_tokenizer", "log.jsonl", "model.safetensors", "text_tokenizer"
    ]  # fmt: skip


def spoil_config(folder: Path, **values: object) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_text("x"), "model.safetensors cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: spoil_config(folder, family="gpt"), "is not a unitok model: family is 'gpt'"),
        (lambda folder: spoil_config(folder, format=99), "has format 99, this unitok reads 1"),
        (lambda folder: spoil_config(folder, colour="red"), "has an unknown key .colour.: known are codebook_size"),
        (lambda folder: spoil_config(folder, codebook_size=7), "the model knows 7 image codes"),
        (lambda folder: spoil_config(folder, text_size=7), "the model knows 7 text ids"),
        (lambda folder: spoil_config(folder, image_tokenizer="0" * 64), "is not the tokenizer this model was trained"),
        (lambda folder: (folder / "text_tokenizer" / "tokenizer.json").write_text("{}"), "is not a tokenizer file"),
    ],
)
def test_a_wrong_folder_is_refused_in_one_line(
    make_model: Callable[..., UniTok], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    make_model().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        UniTok.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_foreign_tensors_are_listed(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["other"] = state.pop("norm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"2 problems:\n.*lacks 1 tensors: norm.weight\n.*has 1 foreign tensors: other"):
        UniTok.from_pretrained(tmp_path)


def test_missing_folder() -> None:
    with pytest.raises(UserError, match="model folder nowhere does not exist"):
        UniTok.from_pretrained("nowhere")


def test_byte_level_bpe_writes_any_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(["a red circle", "a blue circle"], 300)
    for text in ("a red circle", "naïve 😀 zebra", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode("😀 a red circle")) < tokenizer.size <= 300
    assert len(tokenizer.encode("a red circle")) < 6
    tokenizer.save(tmp_path)
    assert load_text_tokenizer(tmp_path).encode("a blue one") == tokenizer.encode("a blue one")


def test_text_tokenizer_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text_vocabulary is 100: choose at least 256"):
        train_bpe(["a"], 100)
    with pytest.raises(UserError, match="not found: give a folder with tokenizer"):
        load_text_tokenizer(tmp_path / "nothing.json")
