"""Losses: numbers by hand, and LPIPS from published weights only."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import lpips
import pytest
import torch

from tokenizers_vq.base import TokenizerOutput
from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.reconstruction import TokenizerLoss, load_lpips


def test_losses_by_hand() -> None:
    images = torch.zeros(1, 3, 2, 2)
    output = TokenizerOutput(images + 0.5, torch.zeros(1, 1), {"commitment": torch.tensor(0.25)})
    total, parts = TokenizerLoss(LossConfig(l1=2.0, l2=4.0))(images, output)
    assert {name: float(value) for name, value in parts.items()} == {"l1": 1.0, "l2": 1.0, "commitment": 0.25}
    assert float(total) == 2.25
    assert set(TokenizerLoss(LossConfig())(images, output)[1]) == {"l2", "commitment"}


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the names and shapes of torchvision's squeezenet weights (here random, known to the test)."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_lpips_takes_a_local_file(squeeze: Path) -> None:
    random = torch.get_rng_state()
    model = load_lpips("squeeze", squeeze)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(value.requires_grad for value in model.parameters())
    file = torch.load(squeeze, weights_only=True)
    assert torch.equal(model.net.slice1[0].weight, file["features.0.weight"])
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/squeeze.pth", "cpu", weights_only=True)
    assert torch.equal(model.lin3.model[1].weight, heads["lin3.model.1.weight"])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert model(images, images).abs().max() == 0
    assert (model(images, -images) > 0).all()


def test_lpips_is_part_of_the_loss_and_stays_in_evaluation(squeeze: Path) -> None:
    losses = TokenizerLoss(LossConfig(lpips=0.5, lpips_network="squeeze", lpips_weights=str(squeeze))).train()
    assert losses.lpips is not None
    assert not losses.lpips.training
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    reconstruction = (-images).requires_grad_()
    _, parts = losses(images, TokenizerOutput(reconstruction, torch.zeros(1, 1), {}))
    torch.testing.assert_close(parts["lpips"], 0.5 * losses.lpips(reconstruction, images).mean())
    parts["lpips"].backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0


def test_missing_weights_say_what_where_and_which_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        TokenizerLoss(LossConfig(lpips=1.0))
    for part in ("vgg16-397923af.pth", str(tmp_path / "checkpoints"), "no network", "--losses.lpips_weights FILE"):
        assert part in str(caught.value)


def test_wrong_weight_files_are_refused(tmp_path: Path, squeeze: Path) -> None:
    with pytest.raises(
        UserError, match=r"--lpips-weights /no/file is not a file: give torchvision's vgg16-397923af.pth"
    ):
        load_lpips("vgg", "/no/file")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(
        UserError, match=r"text cannot be read as a checkpoint .* LPIPS alex takes torchvision's alexnet"
    ):
        load_lpips("alex", tmp_path / "text")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match=r"tensor.pth holds no weights .* LPIPS alex takes torchvision's alexnet"):
        load_lpips("alex", tmp_path / "tensor.pth")
    with pytest.raises(UserError, match=r"holds no torchvision weights for LPIPS alex: it lacks features"):
        load_lpips("alex", squeeze)
    state = torch.load(squeeze, weights_only=True)
    torch.save({**state, "features.0.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match=r"does not fit LPIPS squeeze: give squeezenet1_1-b8a52dc0.pth"):
        load_lpips("squeeze", tmp_path / "shape.pth")
    with pytest.raises(UserError, match=r"network 'vgg19' is unknown: choose vgg, alex, squeeze"):
        load_lpips("vgg19")
