"""Pictures and features without a file."""

from __future__ import annotations

import torch
from torch import Tensor

from unitok.data.shapes.dataset import ShapesDataset


def pictures(count: int, seed: int = 0) -> Tensor:
    dataset = ShapesDataset(split="val", seed=seed, length=1024)
    return torch.stack([image for index in range(count) if (image := dataset[index].image) is not None])


def rows(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift
