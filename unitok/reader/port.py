"""The port of pictures: an encoder and a connector between pixels and the trunk.

The pictures of a batch are encoded together, once, inside the model: so an encoder may be trained like any other part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.images import to_float
from tokenizers_vq.layout import Layout

from .config import ReaderConfig
from .connectors import CONNECTORS
from .encoders import ENCODERS


class ReaderPort(nn.Module):
    """Pictures (B, 3, H, W) uint8 to vectors (B * m, C), which stand in place of those of the ids there."""

    replaces: ClassVar[bool] = True

    def __init__(self, config: ReaderConfig, width: int, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.encoder = ENCODERS[config.encoder](config, tokenizer).eval().requires_grad_(False)
        self.connector = CONNECTORS[config.connector](config, self.encoder.length, self.encoder.width, width)

    @property
    def length(self) -> int:
        """m: positions of a picture."""
        return self.connector.queries or self.encoder.length

    def places(self, layout: Layout) -> Tensor:
        """(m, 3) float32: where the positions stand, as the codes of a layout do. Queries have no place in a picture
        and stand in one row."""
        grid = self.encoder.grid if self.connector.queries is None else (1, self.connector.queries)
        return replace(layout, scales=(grid, layout.grid), books=()).coordinates()[: self.length]

    def forward(self, pictures: Tensor) -> Tensor:
        return self.connector(self.encoder(to_float(pictures))).flatten(0, 1)

    def train(self, mode: bool = True) -> ReaderPort:
        """An encoder of which nothing is trained drops nothing out, and its norms stay as they are."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def idle(self) -> torch.Tensor:
        """0, by all weights that are trained."""
        return 0.0 * sum((weight.sum() for weight in self.parameters() if weight.requires_grad), torch.tensor(0.0))
