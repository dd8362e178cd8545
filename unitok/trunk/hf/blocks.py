"""A causal language model of transformers as a trunk: the blocks are its authors', who sees whom and where a position
stands is ours.

Attention goes through `rule.attend` and the KV cache of this project, so that one mask rule and one cache serve all
trunks. (The authors' eager attention adds a boolean mask to the scores, and all positions then see the future.)

**Places.** Text stands where the language model has learned it: its places count up one by one, and all rotary pairs of
a head turn with them. In an image every fourth pair turns with order + row and every fourth with order + column, the
others with the order alone (the multimodal rotary of Qwen2-VL, arXiv:2409.12191, with the axes in turn as in Qwen3-VL).
So an image takes one step of the order, as in our own trunk, and a private copy stands where the given one does.
A model with learned positions gets the order's vector, and a linear map of waves of row and column, of which nothing is
added to a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel

from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import GRID_BASE, rotate
from ..rule import Visibility, attend, within

if TYPE_CHECKING:
    from . import HFTrunk

RULE = "unitok_rule"
"""What transformers calls our attention."""
ALL = "all"
"""Rotary positions that all layers have."""
WAVES = 8
"""Of a row or a column, beside learned positions."""

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine."""
How = tuple[Mapping[str, Turn], Mapping[str, Turn], Mapping[int | None, Visibility]]
"""Of each kind of rotary positions: how positions turn, and how much further what others see of them. Of each window:
who sees whom."""


def attend_by_rule(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    seen: Visibility,
    cache: KVCache | None,
    moved: Turn | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a block, in the form that transformers wants: query (B, H, T, D), key and value (B, G, T, D) give
    (B, T, H, D)."""
    if moved is not None:
        n = 2 * moved[0].shape[-1]
        key = torch.cat([rotate(key[..., :n], moved), key[..., n:]], -1)
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms of some models leave float32 under autocast
    if cache is not None:
        key, value = cache.store(module.layer_idx, key, value)
    sharp = scaling * query.shape[-1] ** 0.5  # `attend` divides by this root
    query = query if abs(sharp - 1) < 1e-6 else query * sharp
    return attend(query, key, value, seen).transpose(1, 2), None


AttentionInterface.register(RULE, attend_by_rule)


class Rotary(nn.Module):
    """The rotary positions of a language model over (order, row, column): at row 0, column 0 they are its own.

    Args:
        frequencies: (P,) of the pairs of a head.
        scale: of cosines and sines.
    """

    axes: torch.Tensor
    """(3, P): of order, row and column."""

    def __init__(self, frequencies: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        turn = torch.arange(len(frequencies)) % 4
        axes = torch.stack([torch.ones_like(frequencies), (turn == 1).float(), (turn == 3).float()]) * frequencies
        self.register_buffer("axes", axes, persistent=False)

    def angles(self, places: torch.Tensor) -> torch.Tensor:
        """Places (B, T, 3) to angles (B, T, P), in float32 whatever the autocast."""
        return (places.float()[..., None] * self.axes).sum(-2)

    def forward(self, places: torch.Tensor, dtype: torch.dtype) -> Turn:
        """(B, T, 2 P) each, as the authors' blocks want them."""
        angles = self.angles(places)
        angles = torch.cat([angles, angles], -1)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)

    def further(self, steps: torch.Tensor, dtype: torch.dtype) -> Turn:
        """Steps (B, T, 3) from one place to another to the turn that they make, (B, 1, T, P) each."""
        angles = self.angles(steps)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Grid(nn.Module):
    """What stands beside learned positions: a linear map of waves of row and column. At row 0, column 0 it is nothing.

    The waves are sin and 1 - cos, which are both 0 there."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = GRID_BASE ** -(torch.arange(WAVES) / WAVES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.enter = nn.Linear(4 * WAVES, width, bias=False)
        nn.init.normal_(self.enter.weight, std=0.02)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Places (B, T, 3) to what is added, (B, T, C)."""
        angles = (places[..., 1:, None].float() * self.frequencies).flatten(-2)  # (B, T, 2 WAVES)
        return self.enter(torch.cat([angles.sin(), 1 - angles.cos()], -1).to(self.enter.weight.dtype))


class Block(nn.Module):
    """A layer of a language model, called as blocks of ours are."""

    def __init__(self, layer: nn.Module, rotary: str, window: int | None) -> None:
        super().__init__()
        self.layer, self.rotary, self.window = layer, rotary, window

    def forward(
        self, x: torch.Tensor, how: How, seen: Visibility, cache: KVCache | None = None, layer: int = 0
    ) -> torch.Tensor:
        turns, further, near = how
        told = {"position_embeddings": turns.get(self.rotary), "moved": further.get(self.rotary)}
        found: torch.Tensor = self.layer(x, attention_mask=None, seen=near.get(self.window, seen), cache=cache, **told)
        return found


class LanguageTrunk(Trunk):
    """The blocks and the last norm of a language model. Its dropout is off."""

    def __init__(self, config: HFTrunk) -> None:
        super().__init__(config)
        model, parts = _without_vocabulary(config), config.parts
        rotaries = _rotaries(model)
        kinds = getattr(config.read, "layer_types", None) or [ALL] * config.depth
        self.blocks = nn.ModuleList(
            Block(layer, kind if kind in rotaries else ALL, window)
            for layer, kind, window in zip(getattr(model, parts.layers), kinds, config.windows, strict=True)
        )
        for module in self.blocks.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.windows = config.windows
        self.norm: nn.Module = getattr(model, parts.norm)
        self.rotaries = nn.ModuleDict(rotaries)
        self.positions: nn.Embedding | None = getattr(model, parts.positions) if parts.positions else None
        self.grid = Grid(config.width) if parts.positions else None
        self.scale = config.width**0.5 if parts.scaled else 1.0

    def forward(
        self,
        x: torch.Tensor,
        places: torch.Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        stands: torch.Tensor | None = None,
        condition: Beside | None = None,
    ) -> torch.Tensor:
        dtype = self.precision(x.dtype, x.device)
        x = x * self.scale
        if self.positions is not None and self.grid is not None:
            here = places if stands is None else stands
            order = here[..., 0].long().clamp(max=self.positions.num_embeddings - 1)
            x = x + self.positions(order) + self.grid(here)
        turns, further = {}, {}
        for kind, rotary in self.rotaries.items():
            assert isinstance(rotary, Rotary)
            turns[kind] = rotary(places, dtype)
            if stands is not None:
                further[kind] = rotary.further(stands - places, dtype)
        near = self._near(seen, places[..., 0], places[..., 0] if stands is None else stands[..., 0], cache)
        found: torch.Tensor = self.norm(self.run(x, (turns, further, near), seen, cache))
        return found

    def _near(
        self, seen: Visibility, here: torch.Tensor, there: torch.Tensor, cache: KVCache | None
    ) -> dict[int | None, Visibility]:
        """Who sees whom in the layers of each window, by orders (B, T) from which positions look and at which they are
        seen. So a picture, which takes one step, is seen whole or not at all, and a private copy moves no window."""
        windows = {window for window in self.windows if window is not None}
        if windows and cache is not None:
            there = cache.mark(cache.orders, there)
        # A step of the order has at least one position: so many hold no window's edge.
        narrow = [window for window in windows if there.shape[1] > window]
        return {window: within(seen, here, there, window) for window in narrow}


def _without_vocabulary(config: HFTrunk) -> Any:
    """The authors' model with fresh weights and a table of one id: ids are the business of `IdPort`."""
    settings = deepcopy(config.read)
    settings.vocab_size = 1
    settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = None
    return AutoModel.from_config(settings, attn_implementation=RULE, dtype=torch.float32)


def _rotaries(model: Any) -> dict[str, Rotary]:
    """Its rotary positions, by the kind of layers that have them."""
    found = getattr(model, "rotary_emb", None)
    if found is None:
        return {}
    if hasattr(found, "inv_freq"):
        return {ALL: Rotary(found.inv_freq, found.attention_scaling)}
    return {
        kind: Rotary(getattr(found, f"{kind}_inv_freq"), getattr(found, f"{kind}_attention_scaling"))
        for kind in found.layer_types
    }
