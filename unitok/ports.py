"""Ports: how positions become vectors, and how last states are scored.

`IdPort` holds the table of ids and the head; a trunk between them knows neither. What stands at a position beside its
id comes in through a port of its own, and is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .config import PortConfig
from .cross_entropy import PIECE, LinearCrossEntropy
from .device import compute_dtype, learns_on_cpu
from .sequence import Ids

DEVIATION = 0.02
"""Of fresh weights."""


class IdPort(nn.Module):
    """Ids in and out: a table of vectors, and a head, which may be the same table."""

    def __init__(self, size: int, width: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.head = nn.Linear(width, size, bias=False)
        nn.init.normal_(self.embedding.weight, std=DEVIATION)
        nn.init.normal_(self.head.weight, std=DEVIATION)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to vectors (..., C)."""
        return self.embedding(ids)

    def scores(self, hidden: torch.Tensor, ids: slice) -> torch.Tensor:
        """Logits (..., n) float32 of the n ids of a span alone, from states (..., C)."""
        return F.linear(hidden, self.head.weight[ids]).float()

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, ids: Ids) -> torch.Tensor:
        """Cross-entropies (N,) float32 over the ids that can stand there, from states (N, C) and targets (N,) among
        them."""
        spans = ids if isinstance(ids, tuple) else (ids,)
        places, before = torch.zeros_like(targets), 0
        for span in spans:
            here = (targets >= span.start) & (targets < span.stop)
            places = torch.where(here, targets - span.start + before, places)
            before += span.stop - span.start
        parts = [self.head.weight[span] for span in spans]
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        if learns_on_cpu(hidden) and len(hidden) * len(weight) > PIECE:
            dtype = compute_dtype(hidden)
            return LinearCrossEntropy.apply(hidden, weight, places, dtype)
        return F.cross_entropy(F.linear(hidden, weight).float(), places, reduction="none")


class LinearPort(nn.Module):
    """Vectors (M, F) through a linear map."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(size, width, bias=False)
        nn.init.normal_(self.projection.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.projection(values.to(self.projection.weight.dtype))

    def nothing(self) -> torch.Tensor:
        """One value that adds nothing, (1, F)."""
        return self.projection.weight.new_zeros(1, self.projection.in_features)


class TablePort(nn.Module):
    """Numbers (M,) below a size, each with a learned vector."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        nn.init.normal_(self.table.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.table(values)

    def nothing(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self.table.weight.device)


PORTS: dict[str, Callable[[int, int], LinearPort | TablePort]] = {"linear": LinearPort, "table": TablePort}


def build_ports(ports: Mapping[str, PortConfig], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: PORTS[port.kind](port.size, width) for name, port in ports.items()})


def add_features(
    x: torch.Tensor, ports: nn.ModuleDict, features: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Vectors (R, T, C) with what stands beside the ids added; `features` as in `PackedBatch`."""
    for name, module in ports.items():
        port = cast("LinearPort | TablePort", module)
        if name in features:
            at, values = features[name]
            added = port(values)
            x = x.flatten(0, 1).index_add(0, at, added.to(x.dtype)).view_as(x)
        elif torch.is_grad_enabled():
            # A batch without such features: every process of a run must have a gradient for every weight.
            x = x + 0.0 * port(port.nothing()).sum().to(x.dtype)
    return x
