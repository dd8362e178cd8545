"""The port of pictures: an encoder and a connector between pixels and the trunk.

The pictures of a batch are encoded together, once, inside the model: so an encoder may be trained like any other part.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.layout import Layout
from tokenizers_vq.storage.weights import read_header

from .config import READER, ReaderConfig
from .connectors import CONNECTORS
from .encoders import ENCODERS


def in_tiles(x: Tensor, n: int) -> Tensor:
    """(..., n h, n w) to its tiles, row by row, (..., n * n, h, w)."""
    return x.unflatten(-1, (n, -1)).unflatten(-3, (n, -1)).transpose(-3, -2).flatten(-4, -3)


class ReaderPort(nn.Module):
    """Pictures (B, 3, H, W) uint8, each whole or also in tiles, to vectors (B * m, C), which stand in place of those of
    the ids there."""

    replaces: ClassVar[bool] = True

    def __init__(self, config: ReaderConfig, width: int, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tiles = config.tiles
        height, across = tokenizer.image_size
        if height % self.tiles or across % self.tiles:
            raise UserError(
                f"reader.tiles is {self.tiles}, and pictures are {height}x{across}: choose a divisor of both"
            )
        self.encoder = ENCODERS[config.encoder](config, tokenizer).eval().requires_grad_(False)
        self.connector = CONNECTORS[config.connector](config, self.encoder.length, self.encoder.width, width)

    def check_width(self, path: Path, advice: str) -> None:
        """Raises UserError where the connector in a model's file of weights reads an encoder of another width."""
        given = read_header(path, advice)
        for name, tensor in self.connector.state_dict().items():
            shape, _ = given.get(f"ports.{READER}.connector.{name}", ((), None))
            if shape and tensor.shape[-1] == self.encoder.width != shape[-1]:
                raise UserError(
                    f"{path} has a connector for an encoder {shape[-1]} wide, and that of config.json is "
                    f"{self.encoder.width} wide: {advice}"
                )

    @property
    def length(self) -> int:
        """m: positions of a picture."""
        return self.crops * (self.connector.queries or self.encoder.length)

    @property
    def crops(self) -> int:
        """How often a picture is seen: whole, and in tiles."""
        return 1 if self.tiles == 1 else 1 + self.tiles**2

    def places(self, layout: Layout) -> Tensor:
        """(m, 3) float32: where the positions stand, as the codes of a layout do; those of tiles a step of the order
        behind those of the whole. Queries have no place in a picture: those of each crop stand in one row, a step
        behind those before."""
        n, grid = self.tiles, self.encoder.grid
        if self.connector.queries is not None:
            scales = self.crops * ((1, self.connector.queries),)
        else:
            scales = (grid,) if n == 1 else (grid, (n * grid[0], n * grid[1]))
        places = replace(layout, scales=(*scales, layout.grid), books=()).coordinates()[: self.length]
        if self.connector.queries is not None or n == 1 or layout.in_line:
            return places
        whole, fine = places[: self.encoder.length], places[self.encoder.length :]
        return torch.cat([whole, in_tiles(fine.T.unflatten(1, scales[1]), n).flatten(1).T])

    def forward(self, pictures: Tensor) -> Tensor:
        images = to_float(pictures)
        features = self.encoder(images)
        if self.tiles > 1:
            tiles = self.encoder(in_tiles(images, self.tiles).transpose(1, 2).flatten(0, 1))
            crops = torch.cat([features[:, None], tiles.unflatten(0, (len(images), -1))], 1)  # (B, crops, n, F)
            features = crops.flatten(0, 1)
        return self.connector(features).flatten(0, 1)

    def train(self, mode: bool = True) -> ReaderPort:
        """An encoder of which nothing is trained drops nothing out, and its norms stay as they are."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def idle(self) -> torch.Tensor:
        """0, by all weights that are trained."""
        return 0.0 * sum((weight.sum() for weight in self.parameters() if weight.requires_grad), torch.tensor(0.0))
