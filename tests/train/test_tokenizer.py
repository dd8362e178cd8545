"""Training of the image tokenizer, through the command."""

from __future__ import annotations

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
from unitok.data.shapes.dataset import ShapesDataset


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


@pytest.mark.parametrize(
    ("quantizer", "network"),
    [
        (VQ(codebook_size=64, dim=4, learned=True), {"vit": ViTConfig(patch=8, width=64, depth=1)}),
        (MultiVQ(codebook_size=16, dim=4), {"vit": ViTConfig(patch=8, width=64, depth=1)}),
        (FSQ(), {"muon": True}),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, train_small_tokenizer: Any, quantizer: Any, network: dict[str, Any]
) -> None:
    settings = {"quantizer": quantizer, **network, "steps": 4, "save_every": 2}
    log = train_small_tokenizer(tmp_path, **settings)
    whole = load_file(tmp_path / "model.safetensors")
    grids = {name for name in log[-1] if name.startswith("use/")}
    assert len(grids) == (quantizer.grids if quantizer.grids > 1 else 0)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    (tmp_path / "model.safetensors").unlink()
    train_small_tokenizer(tmp_path, **settings, resume=True)
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_checkpointing_changes_no_weight(tmp_path: Path, train_small_tokenizer: Any) -> None:
    train_small_tokenizer(tmp_path / "kept", steps=2)
    train_small_tokenizer(tmp_path / "recomputed", steps=2, checkpointing=True)
    kept, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "recomputed"))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
