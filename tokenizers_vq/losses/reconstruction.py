"""What a tokenizer is trained for, apart from the quantizer's own losses."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import TokenizerOutput
from ..errors import UserError
from ..networks.efficientnet import PerceptualDistance
from ..storage.foreign import cached, fetch, read_tensors
from ..storage.weights import check_finite
from .config import LossConfig

LPIPS_FILES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""Torchvision's weights of each LPIPS network, by their published file names."""


class TokenizerLoss(nn.Module):
    """Total loss of a batch and its parts.

    The parts are weighted, so that they add up to the total. More terms (an adversarial one) would be more parts.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.lpips = (
            load_lpips(config.lpips_network, config.lpips_weights, option="--losses.lpips_weights")
            if config.lpips > 0
            else None
        )
        self.perceptual = PerceptualDistance() if config.perceptual is not None else None

    def forward(self, images: Tensor, output: TokenizerOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss with gradient, and its parts by name.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            output: the tokenizer's, for these images.
        """
        config, parts = self.config, {}
        if config.l1 > 0:
            parts["l1"] = config.l1 * F.l1_loss(output.reconstruction, images)
        if config.l2 > 0:
            parts["l2"] = config.l2 * F.mse_loss(output.reconstruction, images)
        if self.lpips is not None:
            parts["lpips"] = config.lpips * self.lpips(output.reconstruction, images).mean()
        if self.perceptual is not None:
            parts["perceptual"] = config.perceptual_weight * self.perceptual(output.reconstruction, images).mean()
        parts |= output.losses
        return torch.stack(list(parts.values())).sum(), parts

    def train(self, mode: bool = True) -> TokenizerLoss:
        """LPIPS has dropout in its heads and must stay in evaluation mode."""
        super().train(mode)
        if self.lpips is not None:
            self.lpips.eval()
        return self


def load_lpips(network: str = "vgg", weights: str | Path | None = None, option: str = "--lpips-weights") -> nn.Module:
    """LPIPS (arXiv 1801.03924) with its published weights, never with random ones. Call it with images in [-1, 1].

    The linear heads come with the `lpips` package; torchvision's weights of the network come from `weights`, else from
    torch's cache, else by download.

    Args:
        network: vgg, alex or squeeze.
        weights: local file with torchvision's weights.
        option: how the user passes `weights`, for the error message.

    Raises:
        UserError: the weights cannot be had, or the file holds something else.
    """
    import lpips  # heavy, and only needed here

    if network not in LPIPS_FILES:
        raise UserError(f"LPIPS network {network!r} is unknown: choose {', '.join(LPIPS_FILES)}")
    path = _fetched(network, option) if weights is None else Path(weights)
    if not path.is_file():
        raise UserError(f"{option} {weights} is not a file: give torchvision's {LPIPS_FILES[network]}")
    try:
        state = read_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; LPIPS {network} takes torchvision's {LPIPS_FILES[network]}") from None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in a way that is going out of use
        model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    # The network is cut into slices whose layers keep their torchvision numbers: slice2.7.weight is features.7.weight.
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
    missing = sorted(set(wanted.values()) - state.keys())
    if missing:
        raise UserError(
            f"{path} holds no torchvision weights for LPIPS {network}: it lacks {', '.join(missing[:3])}; "
            f"give {LPIPS_FILES[network]}"
        )
    try:
        model.net.load_state_dict({name: state[source] for name, source in wanted.items()})
    except RuntimeError as error:
        raise UserError(f"{path} does not fit LPIPS {network}: give {LPIPS_FILES[network]} of torchvision") from error
    check_finite(model.net.state_dict(), f"{path} holds weights that no network works with", "fetch it again")
    return model.eval().requires_grad_(False)


def lpips_url(network: str) -> str:
    """Where torchvision's weights of an LPIPS network are published."""
    return f"https://download.pytorch.org/models/{LPIPS_FILES[network]}"


def _fetched(network: str, option: str) -> Path:
    name, place = LPIPS_FILES[network], cached(lpips_url(network))
    try:
        return fetch(lpips_url(network))
    except (OSError, RuntimeError) as error:  # no network is an OSError (URLError)
        raise UserError(
            f"LPIPS needs torchvision's weights {name}: looked in {place.parent} and on the network ({error}); "
            f"fetch the file on a machine with a network and pass {option} FILE, or leave LPIPS out"
        ) from error
