"""Training of the image tokenizer, through the command."""

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

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.networks.vit_config import ViTConfig
from tokenizers_vq.quantizers.config import FSQ, VQ, MultiVQ, SimVQ
from unitok.data.records import Record
from unitok.data.shapes.dataset import ShapesDataset
from unitok.seeding import keyed_generator
from unitok.train.config import AugmentConfig
from unitok.train.pictures import augment


def train_losses(log: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in log if entry["kind"] == "train"]


def test_the_loss_falls_and_the_folder_is_a_tokenizer(
    tmp_path: Path, train_small_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    log = train_small_tokenizer(out, steps=40, batch_size=16)
    assert train_losses(log)[-1] < 0.5 * train_losses(log)[0]
    printed = capsys.readouterr()
    assert f"tokenizer: {out}" in printed.out and "val psnr: " in printed.out and "step 40/40" in printed.err

    tokenizer = load_tokenizer(out)
    pictures = torch.stack([ShapesDataset(split="val")[index].image for index in range(8)])  # type: ignore[misc]
    images = to_float(pictures)
    output = tokenizer(images)
    error = (output.reconstruction.clamp(-1, 1) - images).square().flatten(1).mean(1)
    validation = [entry for entry in log if entry["kind"] == "val"][-1]
    # The folder holds the averaged weights, which are those that were measured (in bf16 where the CPU has it).
    assert validation["psnr"] == pytest.approx((10 * torch.log10(4 / error)).mean().item(), abs=0.1)
    used = len(output.codes.unique()) / tokenizer.codebook_size
    assert validation["codebook_use"] == pytest.approx(used, abs=0.05)
    assert 1 <= validation["perplexity"] <= tokenizer.codebook_size
    grid = Image.open(out / "samples" / "step-00000040.png")
    assert grid.size == (8 * (3 * 32 + 4), 2 * (3 * 32 + 4))


def test_sums_over_an_interval_are_means_over_its_pictures(tmp_path: Path, train_small_tokenizer: Any) -> None:
    every = train_small_tokenizer(tmp_path / "1", steps=4, precision="fp32")
    fourth = train_small_tokenizer(tmp_path / "4", steps=4, precision="fp32", log_every=4)
    for name in ("loss", "loss/l1", "psnr", "l1", "grad_norm"):
        mean = sum(entry[name] for entry in every if entry["kind"] == "train") / 4
        assert fourth[0][name] == pytest.approx(mean), name


@pytest.mark.parametrize("quantizer", [VQ(codebook_size=64, dim=4, kmeans_init=False, revive_below=0), FSQ(), SimVQ()])
def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, train_small_tokenizer: Any, quantizer: Any) -> None:
    whole, parts = (
        train_small_tokenizer(tmp_path / str(size), quantizer=quantizer, steps=3, micro_batch=size, precision="fp32")
        for size in (8, 2)
    )
    assert train_losses(parts) == pytest.approx(train_losses(whole), rel=1e-4)


def test_accumulation_of_a_query_tokenizer(tmp_path: Path, train_small_tokenizer: Any) -> None:
    """Without dropped codes, which are drawn for a micro-batch."""
    config = replace(TOKENIZER_PRESETS["shapes_query"](), width=32, tokens=8, depth=1, channels=16, prefix_dropout=0.0)
    whole, parts = (
        train_small_tokenizer(tmp_path / str(size), tokenizer=config, steps=3, micro_batch=size, precision="fp32")
        for size in (8, 2)
    )
    assert train_losses(parts) == pytest.approx(train_losses(whole), rel=1e-4)


def test_resume_refuses_another_quantizer(tmp_path: Path, train_small_tokenizer: Any) -> None:
    train_small_tokenizer(tmp_path, steps=1)
    with pytest.raises(UserError, match=r"tokenizer.quantizer.kind is 'fsq', but the run .* started with 'vq'"):
        train_small_tokenizer(tmp_path, steps=2, quantizer=FSQ(), resume=True)


@pytest.mark.parametrize("quantizer", [VQ(codebook_size=64, dim=4, learned=True), MultiVQ(codebook_size=16, dim=4)])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, train_small_tokenizer: Any, quantizer: Any) -> None:
    settings = {"quantizer": quantizer, "vit": ViTConfig(patch=8, width=64, depth=1), "steps": 4, "save_every": 2}
    log = train_small_tokenizer(tmp_path, **settings)
    whole = load_file(tmp_path / "model.safetensors")
    grids = {name for name in log[-1] if name.startswith("use/")}
    assert len(grids) == (quantizer.grids if quantizer.grids > 1 else 0)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    (tmp_path / "model.safetensors").unlink()
    train_small_tokenizer(tmp_path, **settings, resume=True)
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_augmentation_is_keyed_and_each_setting_stands_alone() -> None:
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)

    def changed(config: AugmentConfig, index: int) -> torch.Tensor:
        result = augment(Record("x", image=image), config, keyed_generator(0, "augment", 0, index)).image
        assert result is not None and result.dtype == torch.uint8 and result.shape == image.shape
        return result

    both = AugmentConfig(flip=0.5, crop=0.6)
    assert all(torch.equal(changed(both, index), changed(both, index)) for index in range(5))
    flips = [torch.equal(changed(AugmentConfig(flip=0.5), index), image.flip(-1)) for index in range(200)]
    assert 70 < sum(flips) < 130
    assert all(torch.equal(changed(AugmentConfig(), index), image) for index in range(5))
    crops = [changed(AugmentConfig(crop=0.6), index) for index in range(200)]
    assert len({crop.numpy().tobytes() for crop in crops}) > 50
    for index, flipped in enumerate(flips[:20]):
        expected = changed(AugmentConfig(crop=0.6), index)
        mirrored = augment(
            Record("x", image=image.flip(-1)), AugmentConfig(crop=0.6), keyed_generator(0, "augment", 0, index)
        ).image
        assert torch.equal(changed(both, index), mirrored if flipped else expected)  # type: ignore[arg-type]


def test_pictures_are_moved_and_their_border_is_repeated() -> None:
    image = torch.arange(3 * 5 * 6, dtype=torch.uint8).reshape(3, 5, 6)
    rows, columns = torch.arange(5), torch.arange(6)
    places = {
        image[:, (rows - down).clamp(0, 4)][:, :, (columns - right).clamp(0, 5)].numpy().tobytes()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    found = set()
    for index in range(100):
        moved = augment(Record("x", image=image), AugmentConfig(shift=1), keyed_generator(0, "augment", 0, index)).image
        assert moved is not None
        found.add(moved.numpy().tobytes())
    assert found == places


def test_augmented_runs_differ_from_plain_ones(tmp_path: Path, train_small_tokenizer: Any) -> None:
    plain = train_small_tokenizer(tmp_path / "plain", steps=2)
    mirrored = train_small_tokenizer(tmp_path / "mirrored", steps=2, augment=AugmentConfig(flip=1.0))
    assert train_losses(plain) != train_losses(mirrored)
    record = json.loads((tmp_path / "mirrored" / "run.json").read_text())
    assert record["settings"]["augment"]["flip"] == 1.0


def test_checkpointing_changes_no_weight(tmp_path: Path, train_small_tokenizer: Any) -> None:
    train_small_tokenizer(tmp_path / "kept", steps=2)
    train_small_tokenizer(tmp_path / "recomputed", steps=2, checkpointing=True)
    kept, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "recomputed"))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
