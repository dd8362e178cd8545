"""The transformer over patches as encoder and decoder, under the same tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_vq import build_tokenizer, load_tokenizer
from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from tokenizers_vq.networks.vit import rotate, turn
from tokenizers_vq.networks.vit_config import HEAD_SIZE, ViTConfig
from tokenizers_vq.quantizers.config import VQ, MultiVQ

TINY = ConvVQConfig(
    image_size=32,
    backbone="vit",
    vit=ViTConfig(patch=8, width=64, depth=2),
    latent_dim=16,
    quantizer=VQ(codebook_size=64, dim=4, kmeans_init=False, revive_below=0),
)


def tiny(**changes: object) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_tokenizer(dataclasses.replace(TINY, **changes))


def pictures(count: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (64, 8)])
def test_any_size_that_the_patch_divides(height: int, width: int) -> None:
    tokenizer, images = tiny().eval(), pictures(2, height, width)
    layout = tokenizer.layout_for(height, width)
    assert layout.scales == ((height // 8, width // 8),)
    out, codes = tokenizer(images), tokenizer.encode(images)
    assert torch.equal(codes, out.codes) and codes.shape == (2, layout.length)
    assert out.reconstruction.shape == images.shape
    torch.testing.assert_close(tokenizer.decode(codes, layout), out.reconstruction, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"quantizer": MultiVQ(codebook_size=16, dim=2)}, {"scales": (1, 2, 4)}])
def test_saved_and_loaded_with_every_way_of_quantizing(changes: dict[str, object], tmp_path: Path) -> None:
    tokenizer = tiny(**changes).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config and loaded.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))


def test_every_parameter_gets_a_gradient_and_bf16_is_close() -> None:
    tokenizer = tiny().train()
    images, losses = pictures(), TokenizerLoss(LossConfig())
    losses(images, tokenizer(images))[0].backward()
    without = [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
    assert tokenizer.last_layer.grad is not None and tokenizer.last_layer.shape[0] == 3
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.latents(images)
    torch.testing.assert_close(half.float(), tokenizer.latents(images), atol=0.05, rtol=0.05)


def test_recomputed_activations_and_micro_batches_change_nothing() -> None:
    whole, parts = tiny().train(), tiny().train()
    parts.encoder.trunk.checkpointing = parts.decoder.trunk.checkpointing = True
    images, losses = pictures(), TokenizerLoss(LossConfig())
    losses(images, whole(images))[0].backward()
    for number, part in enumerate(images.split(1)):
        (losses(part, parts(part, accumulate=number < 3))[0] / 4).backward()
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=name)
    torch.testing.assert_close(whole.quantizer.codebook, parts.quantizer.codebook)


def test_positions_are_relative_and_tell_rows_from_columns() -> None:
    """What two places make of each other depends on the way between them alone."""
    torch.manual_seed(0)
    cosine, sine = turn(5, 7, torch.device("cpu"))
    q, k = (torch.randn(HEAD_SIZE).expand(1, 1, 35, HEAD_SIZE) for _ in range(2))
    scores = (rotate(q, cosine, sine) @ rotate(k, cosine, sine).transpose(-1, -2)).reshape(5, 7, 5, 7)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[2, 4 - 1, 4, 6], atol=1e-4, rtol=1e-4)
    assert (scores[0, 0, 1, 0] - scores[0, 0, 0, 1]).abs() > 1e-2


def test_places_matter() -> None:
    tokenizer = tiny().eval()
    images = pictures(1)
    swapped = torch.cat([images[..., 16:], images[..., :16]], -1)
    latents, other = tokenizer.latents(images), tokenizer.latents(swapped)
    back = torch.cat([other[..., 2:], other[..., :2]], -1)
    assert not torch.allclose(latents, back, atol=1e-4)


def test_training_lowers_the_error() -> None:
    tokenizer = tiny().train()
    images = torch.nn.functional.interpolate(pictures(8, 4, 4), (32, 32), mode="bilinear")
    losses, errors = TokenizerLoss(LossConfig()), []
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for _ in range(40):
        loss, parts = losses(images, tokenizer(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(parts["l2"].item())
    assert errors[-1] < 0.4 * errors[0], errors


def test_the_preset_has_the_shape_of_a_base_transformer() -> None:
    with torch.device("meta"):
        tokenizer = build_tokenizer(TOKENIZER_PRESETS["base_vit"]())
    assert tokenizer.stride == 16 and tokenizer.layout.scales == ((16, 16),)
    encoder = sum(value.numel() for value in tokenizer.encoder.parameters())
    assert 85_000_000 < encoder < 87_000_000
