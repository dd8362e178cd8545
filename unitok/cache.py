"""The one KV cache of every decoder."""

from __future__ import annotations

import torch

from .attention import Visibility, visibility
from .config import TrunkConfig


class KVCache:
    """Keys and values of all layers for B rows, filled from left to right.

    Slots are shared by the rows: `extend` takes the next n slots of every row and says who sees whom there, each layer
    then stores its keys and values, and `rewind` forgets everything after a length. Rows with shorter prompts mark the
    slots they do not use as padding (document -1), which nobody sees.

        extend 8 slots (the prompts)        length 8
        extend 1, extend 1, ...             length 9, 10, ...     code by code
        extend 64, rewind(8), extend 64     length 72, 8, 72      all codes at once, again and again
    """

    def __init__(self, config: TrunkConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.depth, rows, config.key_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.groups = torch.zeros(rows, capacity, device=device, dtype=torch.int64)
        self.documents = torch.full((rows, capacity), -1, device=device, dtype=torch.int64)
        self.length = 0
        self.padded = False
        """Whether some slot so far is padding."""

    def extend(self, groups: torch.Tensor, documents: torch.Tensor | None = None, *, whole: bool = False) -> Visibility:
        """Takes slots for positions with these groups (B, n) and documents (B, n; None: all of document 0).

        `whole` says that the new positions see one another and everything before them, so that without padding no mask
        is needed.
        """
        start, self.length = self.length, self.length + groups.shape[1]
        assert self.length <= self.groups.shape[1], "the KV cache is full"
        self.groups[:, start : self.length] = groups
        if documents is None:
            documents = torch.zeros_like(groups)
        else:
            self.padded = self.padded or bool((documents < 0).any())
        self.documents[:, start : self.length] = documents
        if whole and not self.padded:
            return Visibility("sdpa")
        return visibility(groups, documents, self.groups[:, : self.length], self.documents[:, : self.length])

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores (B, G, n, D) in the slots taken last; gives all keys and values so far, (B, G, length, D)."""
        start = self.length - keys.shape[2]
        self.keys[layer, :, :, start : self.length] = keys
        self.values[layer, :, :, start : self.length] = values
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def rewind(self, length: int) -> None:
        """Forgets all slots from `length` on."""
        assert 0 <= length <= self.length
        self.length = length
