"""Ports: how positions become vectors, and how last states are scored.

`IdPort` holds the table of ids and the head; a trunk between them knows neither. What stands at a position beside its
id comes in through a port of its own, and is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from .config import PortConfig
from .cross_entropy import PIECE, LinearCrossEntropy
from .device import compute_dtype, learns_on_cpu
from .reader.port import ReaderPort
from .sequence import Ids

DEVIATION = 0.02
"""Of fresh weights."""
STATES = 120
"""Most states of a caption."""


class Waves(nn.Module):
    """What the steps of a scale have in common with those near them, in and out: a linear map of cosines and sines of
    the step, with half a wave to `waves` / 4 waves on the whole scale. A table alone would learn each step by itself.

    Args:
        span: ids of the steps, in order.
        waves: cosines and sines together, even.
        width: C.
    """

    steps: torch.Tensor
    """(n + 1, F): of each step, and zeros for what is none."""

    def __init__(self, span: slice, waves: int, width: int) -> None:
        super().__init__()
        self.span = span
        n = span.stop - span.start
        turns = (torch.arange(n)[:, None] + 0.5) / n * math.pi * torch.arange(1, waves // 2 + 1)  # (n, F / 2)
        steps = torch.cat([turns.cos(), turns.sin()], 1)
        self.register_buffer("steps", torch.cat([steps, torch.zeros_like(steps[:1])]), persistent=False)
        self.read = nn.Linear(2 * (waves // 2), width, bias=False)
        self.write = nn.Linear(width, 2 * (waves // 2), bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=DEVIATION)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to what is added to their vectors, (..., C)."""
        step = torch.where((ids >= self.span.start) & (ids < self.span.stop), ids - self.span.start, -1)
        added = self.read(self.steps[step])
        if torch.is_grad_enabled():
            # A batch in which no step is scored: every process of a run must have a gradient for every weight.
            added = added + 0.0 * self.write.weight.sum().to(added.dtype)
        return added

    def scores(self, hidden: torch.Tensor, ids: slice) -> torch.Tensor:
        """What is added to the logits of some steps, (..., n), from states (..., C)."""
        steps = self.steps[ids.start - self.span.start : ids.stop - self.span.start]
        return F.linear(self.write(hidden), steps.to(hidden.dtype))


class Deep(nn.Module):
    """A hidden layer between the last states and the rows of the head of some ids (Janus, arXiv:2410.13848)."""

    def __init__(self, span: slice, width: int) -> None:
        super().__init__()
        self.span = span
        self.layer = nn.Linear(width, width)
        nn.init.normal_(self.layer.weight, std=DEVIATION)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """States (..., C) to states (..., C)."""
        return F.gelu(self.layer(hidden))


class IdPort(nn.Module):
    """Ids in and out: a table of vectors, and a head, which may be the same table. `waves`: ids of spans that are steps
    of a scale, and their numbers of waves, by name. `deep`: ids that are scored behind a hidden layer."""

    def __init__(
        self,
        size: int,
        width: int,
        tied: bool,
        bias: bool = False,
        waves: Mapping[str, tuple[slice, int]] = MappingProxyType({}),
        deep: slice | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.head = nn.Linear(width, size, bias=bias)
        nn.init.normal_(self.embedding.weight, std=DEVIATION)
        nn.init.normal_(self.head.weight, std=DEVIATION)
        if tied:
            self.head.weight = self.embedding.weight
        self.waves = nn.ModuleDict({name: Waves(span, number, width) for name, (span, number) in waves.items()})
        self.deep = None if deep is None else Deep(deep, width)
        self.pack: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]] | None = None
        """Makes what multiplies by rows of the head, of a model that is prepared for drawing."""
        self._packed: dict[tuple[int, int], Callable[[torch.Tensor], torch.Tensor]] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to vectors (..., C)."""
        x = self.embedding(ids)
        for waves in self.waves.values():
            x = x + waves(ids)
        if self.deep is not None and torch.is_grad_enabled():
            # A batch in which none of its ids is scored: see `Waves`.
            x = x + 0.0 * sum(weight.sum() for weight in self.deep.parameters())
        return x

    def scores(self, hidden: torch.Tensor, ids: slice) -> torch.Tensor:
        """Logits (..., n) float32 of the n ids of a span alone, from states (..., C)."""
        if self.deep is not None and _inside(ids, self.deep.span):
            hidden = self.deep(hidden)
        bias = None if self.head.bias is None else self.head.bias[ids]
        if self.pack is None:
            found = F.linear(hidden, self.head.weight[ids], bias).float()
        else:
            span = ids.start, ids.stop
            if span not in self._packed:
                self._packed[span] = self.pack(self.head.weight[ids].detach())
            found = self._packed[span](hidden)
            found = found if bias is None else found + bias
        for waves in self._waves_of(ids):
            found = found + waves.scores(hidden, ids).float()
        return found

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, ids: Ids) -> torch.Tensor:
        """Cross-entropies (N,) float32 over the ids that can stand there, from states (N, C) and targets (N,) among
        them."""
        spans = ids if isinstance(ids, tuple) else (ids,)
        places, before = torch.zeros_like(targets), 0
        for span in spans:
            here = (targets >= span.start) & (targets < span.stop)
            places = torch.where(here, targets - span.start + before, places)
            before += span.stop - span.start
        bias: torch.Tensor | None = self.head.bias
        plain = bias is None and self.deep is None and not any(self._waves_of(span) for span in spans)
        if plain and learns_on_cpu(hidden) and len(hidden) * before > PIECE:
            weight = torch.cat([self.head.weight[span] for span in spans])
            return LinearCrossEntropy.apply(hidden, weight, places, compute_dtype(hidden))
        scores = [self.scores(hidden, span) for span in spans]
        return F.cross_entropy(torch.cat(scores, -1) if len(scores) > 1 else scores[0], places, reduction="none")

    def _waves_of(self, ids: slice) -> list[Waves]:
        """The waves whose span these ids lie in."""
        every = [cast("Waves", module) for module in self.waves.values()]
        return [waves for waves in every if _inside(ids, waves.span)]


def _inside(ids: slice, span: slice) -> bool:
    return span.start <= ids.start and ids.stop <= span.stop


class Beside(nn.Module):
    """A port of what is added to the vectors of ids."""

    replaces: ClassVar[bool] = False

    def nothing(self) -> torch.Tensor:
        """One value that adds nothing."""
        raise NotImplementedError

    def idle(self) -> torch.Tensor:
        """0, by all weights that are trained."""
        return 0.0 * self(self.nothing()).sum()


class LinearPort(Beside):
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


class TablePort(Beside):
    """Numbers (M,) below a size, each with a learned vector."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        nn.init.normal_(self.table.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.table(values)

    def nothing(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self.table.weight.device)


class StatesPort(Beside):
    """States (M, F) of a caption through two layers (LlamaGen, arXiv:2406.06525), with those that stand for a caption
    that is left out."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size, width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        self.left_out: torch.Tensor
        self.register_buffer("left_out", torch.randn(STATES, size) / size**0.5)
        """(STATES, F); the authors never train it."""
        for layer in (self.enter, self.leave):
            nn.init.normal_(layer.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.leave(F.gelu(self.enter(values.to(self.enter.weight.dtype)), approximate="tanh"))

    def nothing(self) -> torch.Tensor:
        return self.enter.weight.new_zeros(1, self.enter.in_features)


Port = LinearPort | TablePort | StatesPort | ReaderPort
PORTS: dict[str, Callable[[int, int], Port]] = {"linear": LinearPort, "table": TablePort, "states": StatesPort}


def build_ports(ports: Mapping[str, PortConfig], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: PORTS[port.kind](port.size, width) for name, port in ports.items()})


def add_features(
    x: torch.Tensor, ports: nn.ModuleDict, features: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Vectors (R, T, C) with what stands beside the ids added, or in place of them; `features` as in `PackedBatch`."""
    for name, module in ports.items():
        port = cast("Port", module)
        if name in features:
            at, values = features[name]
            found = port(values).to(x.dtype)
            flat = x.flatten(0, 1)
            x = (flat.index_copy(0, at, found) if port.replaces else flat.index_add(0, at, found)).view_as(x)
        elif torch.is_grad_enabled():
            # A batch without such features: every process of a run must have a gradient for every weight.
            x = x + port.idle().to(x.dtype)
    return x
