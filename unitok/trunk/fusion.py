"""How a trunk takes in the pictures that a reader sees.

`sequence` is plain: their vectors stand among those of texts, and the trunk sees them by what it has. The two others
give a trunk weights for pictures alone, beside its own, so that a text without pictures is to it what it was, to the
bit, whatever these weights learn:

- `cross_attention`: gated layers before its blocks look at the pictures (Flamingo, arXiv:2204.14198). The blocks do not
  see them.
- `experts`: a second set of the maps of every block, for the positions of pictures (CogVLM, arXiv:2311.03079).

Modules and hooks of our own, as of low-rank adapters: so they fit our trunk and language models alike, and the names of
a trunk's weights stay as they are. Positions of pictures stay in the rows and in the cache: one rule, one packing and
one cache serve all three.

Letters: B rows, T positions, M of them pictures', K keys, C width, H heads, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..reader.config import ReaderConfig
from .base import Sizes, Trunk
from .cache import KVCache
from .rule import Looks, Visibility, attend, narrowed

GATED, EXPERT = "gated", "expert"
"""Names of the modules inside a block, and inside a map."""
DEVIATION = 0.02
"""Of fresh weights."""


def part_of_fusion(name: str) -> str:
    """A pattern of the weights for pictures alone, if a weight of a trunk is one of them; else nothing.

    >>> part_of_fusion("trunk.blocks.0.gated.query.weight"), part_of_fusion("trunk.blocks.0.mlp.down.weight")
    ('trunk.*.gated.*', '')
    """
    return next((f"trunk.*.{part}.*" for part in (GATED, EXPERT) if f".{part}." in name), "")


class Fusion:
    """Pictures stand among texts. Others add weights to a trunk when they are made."""

    def __init__(self, trunk: Trunk, config: ReaderConfig) -> None:
        pass

    def begin(self, trunk: Trunk) -> None:
        """Makes fresh weights ready, once the trunk has its own."""

    def told(self, seen: Visibility, x: Tensor, at: Tensor | None, cache: KVCache | None) -> Visibility:
        """What blocks are told of a pass over x (B, T, C), of which the flat positions `at` (M,) are pictures'."""
        return seen


class CrossAttention(Fusion):
    """Gated layers before every n-th block. Each looks at all pictures that the rule lets a position see, where
    Flamingo's look at the last one alone; and where there is none it adds nothing, not even by its MLP."""

    def __init__(self, trunk: Trunk, config: ReaderConfig) -> None:
        for block in list(trunk.blocks)[:: config.every]:
            block.add_module(GATED, Gated(trunk.config, trunk.config.depth + trunk.further))
            block.register_forward_pre_hook(_look)
            trunk.further += 1

    def told(self, seen: Visibility, x: Tensor, at: Tensor | None, cache: KVCache | None) -> Visibility:
        """Blocks see no pictures; the gated layers see these alone."""
        if at is None and (cache is None or not cache.looked):
            return seen
        here = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        vectors = None
        if at is not None:
            here.view(-1)[at] = True
            vectors = x.flatten(0, 1)[at]
        there = here
        if cache is not None:
            cache.looked, there = True, cache.mark(cache.pictures, here)
        # A picture sees pictures: a position that saw nothing at all would be no number.
        texts = narrowed(seen, (~there[:, None] | here[:, :, None])[:, None])
        pictures = narrowed(seen, there[:, None, None])
        assert pictures.mask is not None
        sees = pictures.mask.any(-1, keepdim=True)  # (B, 1, T or 1, 1)
        pictures = replace(pictures, mask=pictures.mask | ~sees)
        return replace(texts, looks=Looks(at, vectors, pictures, sees[:, 0]))


class Gated(nn.Module):
    """A layer of cross-attention and an MLP behind gates that begin at 0."""

    def __init__(self, config: Sizes, number: int) -> None:
        super().__init__()
        self.number, self.head_size, self.key_heads = number, config.head_size, config.key_heads
        """Number of the layer in the cache."""
        width, inner, keys = config.width, config.heads * config.head_size, config.key_heads * config.head_size
        self.norm, self.norm_pictures, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * keys, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )
        self.gate_attention, self.gate_mlp = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=DEVIATION)

    def forward(self, x: Tensor, looks: Looks | None, cache: KVCache | None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        if looks is None:
            return _idle(x, self)
        assert looks.seen is not None and looks.sees is not None, "as of `CrossAttention`"
        k, v = self._pictures(x, looks)
        if cache is not None:
            k, v = cache.store(self.number, k, v)
        q = self.query(self.norm(x)).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, H, T, D)
        found = attend(q.to(k.dtype), k, v, looks.seen).transpose(1, 2).flatten(2)
        y = x + (self.gate_attention.tanh() * self.out(found)).to(x.dtype)
        y = y + (self.gate_mlp.tanh() * self.mlp(self.norm_mlp(y))).to(x.dtype)
        return torch.where(looks.sees, y, x)

    def _pictures(self, x: Tensor, looks: Looks) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, T, D): of pictures; 0 elsewhere, where nobody looks."""
        batch, length, _ = x.shape
        if looks.at is None or looks.vectors is None:
            empty = _idle(x, self).new_zeros(batch, self.key_heads, length, self.head_size)
            return empty, empty
        found = self.key_value(self.norm_pictures(looks.vectors))  # (M, 2 G D)
        spread = found.new_zeros(batch * length, found.shape[1]).index_copy(0, looks.at, found)
        k, v = spread.view(batch, length, 2, self.key_heads, self.head_size).permute(2, 0, 3, 1, 4)
        return k, v


def _look(block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before a block of (x, how, seen, cache, layer): its gated layer."""
    x, how, seen, *rest = given
    gated = block.get_submodule(GATED)
    return gated(x, seen.looks, rest[0] if rest else None), how, seen, *rest


class Experts(Fusion):
    """A copy of each map of every block: of queries, keys and values, of the output of the attention as in the authors'
    code, and of the MLP. Norms are shared, and so is the attention: pictures and texts see one another by the rule."""

    def __init__(self, trunk: Trunk, config: ReaderConfig) -> None:
        for block in trunk.blocks:
            for layer in list(_maps(block)):
                layer.add_module(EXPERT, deepcopy(layer))
                layer.register_forward_hook(_route)
            block.register_forward_pre_hook(_direct)

    @torch.no_grad()
    def begin(self, trunk: Trunk) -> None:
        """They begin as copies of the maps."""
        for layer in trunk.modules():
            for name, weight in layer.named_parameters(recurse=False) if hasattr(layer, EXPERT) else ():
                layer.get_submodule(EXPERT).get_parameter(name).copy_(weight)

    def told(self, seen: Visibility, x: Tensor, at: Tensor | None, cache: KVCache | None) -> Visibility:
        return seen if at is None else replace(seen, looks=Looks(at))


def _maps(block: nn.Module) -> Iterator[nn.Module]:
    """The maps of vectors in a block: linear layers, and those of GPT-2, which hold their matrix the other way."""
    for module in block.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.ndim == 2:
            yield module


def _direct(block: nn.Module, given: tuple[Any, ...]) -> None:
    """Before a block: tells its maps where pictures are. Also when a block is recomputed in the backward pass."""
    looks = given[2].looks
    for layer in block.modules():
        if hasattr(layer, EXPERT):
            layer.at = None if looks is None else looks.at  # type: ignore[assignment]


def _route(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Behind a map of (B, T, I): what its copy makes of pictures, in place of what it made of them."""
    expert = layer.get_submodule(EXPERT)
    at: Tensor | None = layer.at  # type: ignore[assignment]
    if at is None:
        return _idle(output, expert)
    own = expert(inputs[0].flatten(0, 1)[at])
    return output.flatten(0, 1).index_copy(0, at, own.to(output.dtype)).view_as(output)


def _idle(x: Tensor, module: nn.Module) -> Tensor:
    """x, in a pass without pictures: every process of a run must have a gradient for every weight."""
    learned = [weight for weight in module.parameters() if weight.requires_grad] if torch.is_grad_enabled() else []
    return x + (0.0 * sum((weight.sum() for weight in learned), torch.tensor(0.0))).to(x.dtype) if learned else x


FUSIONS: dict[str, Callable[[Trunk, ReaderConfig], Fusion]] = {
    "sequence": Fusion,
    "cross_attention": CrossAttention,
    "experts": Experts,
}
