"""What every trunk is: blocks between embedded positions and their last states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from .cache import FEWEST, KVCache
from .compiled import Compiled
from .rule import Visibility, once

ROW = 16
"""Slots of a cache on a GPU are a multiple of it."""


class Sizes(Protocol):
    """What a trunk's configuration says about its keys and values."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...


class Beside(NamedTuple):
    """What the documents of rows have beside their positions."""

    vector: torch.Tensor
    """(R, 1 or T, C): of a class, or of a caption."""
    states: torch.Tensor | None = None
    """(R, S, C): of a caption, which all positions of its row attend to."""
    shown: torch.Tensor | None = None
    """(R, S) bool: which of them are the caption's own."""

    def row(self, number: int) -> Beside:
        """One of the rows, which is one document, without what is not its own."""
        here = slice(number, number + 1)
        if self.states is None or self.shown is None:
            return Beside(self.vector[here, :1])
        states = self.states[number][self.shown[number]][None]
        return Beside(self.vector[here, :1], states, torch.ones_like(states[..., 0], dtype=torch.bool))

    @classmethod
    def joined(cls, rows: Sequence[Beside]) -> Beside:
        """Rows of one document each, one below the other."""
        vector = torch.cat([one.vector for one in rows])
        states = [one.states[0] for one in rows if one.states is not None]
        if not states:
            return cls(vector)
        lengths = torch.tensor([len(one) for one in states], device=vector.device)
        padded = pad_sequence(states, batch_first=True)
        return cls(vector, padded, torch.arange(padded.shape[1], device=vector.device) < lengths[:, None])


class Trunk(nn.Module):
    """Vectors in, vectors out; it knows no ids. A subclass makes `blocks` and answers `forward`."""

    blocks: nn.ModuleList
    mixes: ClassVar[bool] = False
    """Whether its layers may hand on bf16 where others beside them compute in float32."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.further = 0
        """Layers with keys and values beside those of the blocks."""
        self.held: torch.dtype | None = None
        """Precision of its keys and values, in a model that is prepared; None: that in which the blocks compute."""
        self.compiled: Compiled | None = None
        """Compiled passes, in a model that is prepared with them."""
        self.checkpointing = False
        """Activation checkpointing: recompute a block in the backward pass instead of keeping its activations."""

    def forward(
        self,
        x: torch.Tensor,
        places: torch.Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        stands: torch.Tensor | None = None,
        condition: Beside | None = None,
    ) -> torch.Tensor:
        """Embedded positions (B, T, C) at places (B, T, 3) to their normed last states (B, T, C). Others see them where
        they stand (B, T, 3), by default at their places. `condition` is that of each document."""
        raise NotImplementedError

    def intra(self, x: torch.Tensor) -> torch.Tensor:
        """Of a trunk whose codes have sub-tokens: the state of a position and the vectors of its first sub-tokens
        (N, g, C) to normed last states (N, g, C)."""
        raise NotImplementedError

    def run(self, x: torch.Tensor, how: Any, seen: Visibility, cache: KVCache | None) -> torch.Tensor:
        """x (B, T, C) through all blocks; `how` is what each of them is told beside."""
        if x.is_cuda and torch.is_grad_enabled() and seen.backend == "sdpa" and seen.mask is not None:
            once(seen, self.precision(x.dtype, x.device))  # here and not inside of blocks, which may be compiled
        for layer, block in enumerate(self.blocks):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, how, seen, use_reentrant=False)
            else:
                x = block(x, how, seen, cache, layer)
        return x

    def precision(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """What the blocks compute in now, given vectors of this dtype."""
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype

    def cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache in the precision that the blocks compute in now."""
        weight = next(self.blocks.parameters())
        precision = self.held or self.precision(weight.dtype, weight.device)
        if weight.is_cuda:  # masks over a whole number of rows of memory are not padded
            capacity += -capacity % ROW
        if self.compiled is not None:  # so that a compiled pass serves caches of several lengths
            capacity += -capacity % FEWEST
        return KVCache(self.config, rows, capacity, weight.device, precision, self.further)
