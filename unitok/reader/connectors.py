"""Connectors: from the features of an encoder to vectors of the trunk.

B = pictures, n = features of a picture, F = their size, m = positions that a picture takes, C = width of the trunk
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.families.query import QFormer

from .config import ReaderConfig

DEVIATION = 0.02
"""Of fresh weights."""
HEAD = 64
"""Size of an attention head, at most."""


class Connector(nn.Module):
    """(B, n, F) -> (B, m, C). With `queries`, m does not follow from n, and positions have no place in the picture."""

    queries: int | None = None

    def __init__(self, config: ReaderConfig, features: int, size: int, width: int) -> None:
        super().__init__()


class Linear(Connector):
    """One linear map."""

    def __init__(self, config: ReaderConfig, features: int, size: int, width: int) -> None:
        super().__init__(config, features, size, width)
        self.layer = _fresh(nn.Linear(size, width))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.layer(features)
        return found


class MLP(Connector):
    """Two layers (LLaVA-1.5, arXiv:2310.03744)."""

    def __init__(self, config: ReaderConfig, features: int, size: int, width: int) -> None:
        super().__init__(config, features, size, width)
        self.enter, self.leave = _fresh(nn.Linear(size, width)), _fresh(nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.leave(F.gelu(self.enter(features)))
        return found


class Queries(Connector):
    """Q-Former (BLIP-2, arXiv:2301.12597): queries look at one another and at the features, in every block. It is
    trained from scratch, with the model; BLIP-2 begins with BERT and trains it beside texts."""

    def __init__(self, config: ReaderConfig, features: int, size: int, width: int) -> None:
        super().__init__(config, features, size, width)
        self.queries = config.queries
        self.former = QFormer(config.queries, features, size, config.depth, _heads(size), causal=False)
        self.leave = _fresh(nn.Linear(size, width))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.leave(self.former(features))
        return found


class Perceiver(Connector):
    """Perceiver resampler (Flamingo, arXiv:2204.14198): in each block queries look at the features and at themselves in
    one attention."""

    def __init__(self, config: ReaderConfig, features: int, size: int, width: int) -> None:
        super().__init__(config, features, size, width)
        self.queries = config.queries
        self.latents = nn.Parameter(torch.randn(config.queries, size) * DEVIATION)
        self.places = nn.Parameter(torch.randn(features, size) * DEVIATION)
        self.blocks = nn.ModuleList(PerceiverBlock(size) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        self.leave = _fresh(nn.Linear(size, width))

    def forward(self, features: Tensor) -> Tensor:
        x = self.latents.expand(len(features), -1, -1)
        features = features + self.places
        for block in self.blocks:
            x = block(x, features)
        found: Tensor = self.leave(self.norm(x))
        return found


class PerceiverBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.heads = _heads(size)
        self.norm_x, self.norm_features, self.norm_mlp = (nn.LayerNorm(size) for _ in range(3))
        self.query, self.out = (_fresh(nn.Linear(size, size, bias=False)) for _ in range(2))
        self.key_value = _fresh(nn.Linear(size, 2 * size, bias=False))
        self.mlp = nn.Sequential(_fresh(nn.Linear(size, 4 * size)), nn.GELU(), _fresh(nn.Linear(4 * size, size)))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """x (B, m, F), features (B, n, F) -> (B, m, F)."""
        h = self.norm_x(x)
        k, v = self.key_value(torch.cat([self.norm_features(features), h], 1)).chunk(2, -1)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query(h), k, v))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        found: Tensor = x + self.mlp(self.norm_mlp(x))
        return found


def _heads(size: int) -> int:
    """Heads of at most `HEAD` numbers that divide a size evenly."""
    return next(heads for heads in range(-(-size // HEAD), size + 1) if size % heads == 0)


def _fresh(layer: nn.Linear) -> nn.Linear:
    nn.init.normal_(layer.weight, std=DEVIATION)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


CONNECTORS: dict[str, Callable[[ReaderConfig, int, int, int], Connector]] = {
    "linear": Linear,
    "mlp": MLP,
    "qformer": Queries,
    "perceiver": Perceiver,
}
