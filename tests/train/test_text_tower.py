"""Captions in the training of a tokenizer: how the text tower reads them, and runs that learn from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from unitok.data.open import open_data
from unitok.data.shapes.dataset import ShapesDataset
from unitok.train.text_tower import TextTower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_vision: Any) -> str:
    return save_vision("clip", tmp_path_factory.mktemp("clip"))


def tokenizer_over(vision: str) -> Any:
    small = {"channels": 16, "latent_dim": 16, "tokens": 4, "width": 32, "depth": 1, "heads": 2}
    return replace(TOKENIZER_PRESETS["shapes_query"](), vision=vision, contrastive_weight=0.5, **small)


def captioned(folder: Path, captions: list[str | None]) -> str:
    """A folder of pictures, each beside its caption where it has one."""
    folder.mkdir()
    for index, caption in enumerate(captions):
        image = ShapesDataset()[index].image
        assert image is not None
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
        if caption is not None:
            (folder / f"{index}.txt").write_text(caption)
    return str(folder)


# --- the tower ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), [("clip", 16), ("siglip", 32)])
def test_captions_are_read_as_transformers_reads_them(kind: str, width: int, tmp_path: Path, save_vision: Any) -> None:
    import transformers as hf

    source = save_vision(kind, tmp_path)
    captions = ["a small red circle", "", "a large blue square left of a green star", "a small red circle"]
    vectors, numbers = TextTower(source, CPU).read(captions)
    assert vectors.shape == (4, width) and not vectors.requires_grad and not vectors[1].any()
    assert numbers[1] == -1 and numbers[0] == numbers[3] != numbers[2] and (numbers[[0, 2]] >= 0).all()
    model, words = hf.AutoModel.from_pretrained(source).eval(), hf.AutoTokenizer.from_pretrained(source)
    for row in (0, 2, 3):
        padded = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {}
        ids = words([captions[row]], return_tensors="pt", **padded)["input_ids"]
        with torch.no_grad():
            wanted = model.get_text_features(input_ids=ids).pooler_output[0]
        torch.testing.assert_close(vectors[row], wanted, atol=1e-5, rtol=1e-4)
    assert (vectors[0] - vectors[2]).abs().max() > 1e-3


def test_no_caption_at_all_and_one_that_is_too_long(clip: str) -> None:
    tower = TextTower(clip, CPU)
    vectors, numbers = tower.read(["", ""])
    assert vectors.shape == (2, 16) and not vectors.any() and numbers.tolist() == [-1, -1]
    assert tower.read(["a small red circle and " * 20]).vectors.isfinite().all()


def test_a_folder_without_text_tokenizer_is_refused(tmp_path: Path, save_vision: Any) -> None:
    source = save_vision("clip", tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"its text tokenizer, .* no vocabulary\): put all files of the model"
    ) as caught:
        TextTower(source, CPU)
    assert "\n" not in str(caught.value)


# --- data -----------------------------------------------------------------------------------------------------------


def test_optional_captions_break_no_record(tmp_path: Path) -> None:
    data = captioned(tmp_path / "pictures", ["a red star", None, "a blue star"])
    wanted, optional, unread = (open_data(data, 32, captions=how) for how in (True, "optional", False))
    assert [record.problem for record in (wanted[index] for index in range(3))] == [None, "has no caption", None]
    records = [optional[index] for index in range(3)]
    assert [record.caption for record in records] == ["a red star", None, "a blue star"]
    assert all(record.problem is None and record.image is not None for record in records)
    assert unread[0].caption is None
    with pytest.raises(UserError, match="has no captions"):
        open_data(captioned(tmp_path / "bare", [None, None]), 32, captions="optional")


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, clip: str, train_small_tokenizer: Any) -> None:
    settings = {"tokenizer": tokenizer_over(clip), "steps": 4, "save_every": 2}
    out = tmp_path / "out"
    log = train_small_tokenizer(out, **settings)
    assert all("loss/contrastive" in entry for entry in log)
    whole = load_file(out / "model.safetensors")
    assert {"log_scale", "to_text.weight"} <= whole.keys() and not any("text_model" in name for name in whole)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "model.safetensors").unlink()
    train_small_tokenizer(out, **settings, resume=True)
    again = load_file(out / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in whole.items())


def test_micro_batches_of_one_picture_are_refused(tmp_path: Path, clip: str, train_small_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"compares the pictures of a micro-batch, .* raise run.micro_batch or"):
        train_small_tokenizer(tmp_path, tokenizer=tokenizer_over(clip), steps=1, micro_batch=1)


def test_runs_over_pictures_without_caption(tmp_path: Path, clip: str, train_small_tokenizer: Any) -> None:
    """Half of them, so that some micro-batches of two have no caption at all."""
    captions = [f"a small {colour} star" if index % 2 else None for index, colour in enumerate(["red", "blue"] * 8)]
    data = captioned(tmp_path / "pictures", captions)
    out = tmp_path / "out"
    log = train_small_tokenizer(out, tokenizer=tokenizer_over(clip), data=data, steps=4, micro_batch=2)
    losses = [entry["loss/contrastive"] for entry in log if entry["kind"] == "train"]
    assert all(0 <= loss < 10 for loss in losses)
    assert json.loads((out / "run.json").read_text())["unreadable_pictures"] == 0
