"""LlamaGen's blocks (arXiv:2406.06525): Llama's, of which each position stands on a square grid of codes.

Open-MAGVIT2 and IBQ have them too. A class, or the last state of a caption, stands where the picture begins. What
belongs to the caption is turned by a table of zeros: queries and keys there are zero, so that it is seen by all with
the same weight, and sees all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.layout import Layout

from ..base import Trunk
from ..native import rotate_neighbours
from . import llama
from .family import Settings, Shape, Weights, number, whole

SETTINGS = frozenset(["n_head", "rope_base", "norm_eps"])
"""The authors' names of what no tensor tells."""


@dataclass
class GridSizes(llama.LlamaSizes):
    """Sizes of blocks over a square grid of codes."""

    eps: float = 1e-5
    side: int = 16
    """Codes along a side of the picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check_range("trunk.side", self.side, 1, 2**10)
        problems.raise_if_any()

    @property
    def captions(self) -> Literal["text", "class", "states"]:
        return "class"


class GridTrunk(Trunk):
    """A trunk whose positions turn by their place on the grid."""

    turns: Tensor

    def __init__(self, config: GridSizes) -> None:
        super().__init__(config)
        self.side = config.side
        self.register_buffer("turns", turns(config), persistent=False)

    def start(self) -> None:
        """Fresh weights: normal with deviation 0.02."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def turn(self, places: Tensor) -> Tensor:
        """(B, 1, T, D/2, 2): how positions at places (B, T, 3) turn. A position predicts the code of its place, and
        turns as the code before, which it carries."""
        return self.turns[(places[..., 1] * self.side + places[..., 2]).round().long()][:, None]


def turns(config: GridSizes) -> Tensor:
    """(side * side, D/2, 2) float32: cosine and sine by which a position turns that predicts the code of each place.

    The first half of the pairs turns with the row of the code before, the second with its column. Where there is none
    before, all are zero."""
    half = config.head_size // 2
    frequencies = config.rope_base ** -(torch.arange(0, half, 2)[: half // 2].float() / half)  # (D/4,)
    along = torch.arange(config.side).float()[:, None] * frequencies  # (side, D/4)
    row, column = along[:, None].expand(-1, config.side, -1), along[None].expand(config.side, -1, -1)
    angles = torch.cat([row, column], -1).flatten(0, 1)[:-1]
    return F.pad(torch.stack([angles.cos(), angles.sin()], -1), (0, 0, 0, 0, 1, 0))


class Attention(llama.Attention):
    def turned(self, x: Tensor, turn: Any) -> Tensor:
        return rotate_neighbours(x, turn)


def blocks(config: GridSizes, depth: int) -> nn.ModuleList:
    return nn.ModuleList(llama.Block(config, Attention(config)) for _ in range(depth))


# --- what files hold -------------------------------------------------------------------------------------------------


def inner_of(width: int) -> int:
    """Hidden size of the feed-forward part of the released models."""
    return -(-int(8 * width / 3) // 256) * 256


def sizes(
    shapes: Mapping[str, Shape], first: str, width: int, settings: Settings, presets: Mapping[int, int]
) -> dict[str, Any]:
    """Fields of `GridSizes` but depth and side, of a model `width` wide whose first block's names begin with `first`;
    `presets` has the heads of the released models by their width.

    Raises:
        KeyError: a tensor is missing that says the sizes.
        UserError: heads that neither a setting nor a released model says.
    """
    if "n_head" not in settings and width not in presets:
        raise UserError(
            f"no released model is {width} wide, and no tensor says how many heads this one has: "
            "give --settings '{\"n_head\": ...}'"
        )
    heads = whole(settings, "n_head", presets.get(width, 12))
    keys = (shapes[f"{first}attention.wqkv.weight"][0] - width) // 2 * heads // width
    return {
        "width": width,
        "heads": heads,
        "inner": shapes[f"{first}feed_forward.w1.weight"][0],
        "kv_heads": None if keys == heads else keys,
        "rope_base": number(settings, "rope_base", 10_000.0),
        "eps": number(settings, "norm_eps", 1e-5),
    }


def check_side(wanted: int, layout: Layout, advice: str) -> None:
    """Raises UserError unless a layout has a side of so many codes; the advice is what to do."""
    if wanted != layout.grid[0]:
        raise UserError(
            f"the model draws {wanted}x{wanted} codes, the image tokenizer makes {layout.names[-1]}: {advice}"
        )


def check_square(layout: Layout, who: str, tokenizer: str) -> None:
    """Raises UserError unless a layout is one square grid."""
    if len(layout.scales) > 1 or layout.grid[0] != layout.grid[1]:
        raise UserError(
            f"the image tokenizer makes {' + '.join(layout.names)} codes, {who} draws one square grid: give the "
            f"folder that `unitok import {tokenizer}` made"
        )


def block_shapes(config: GridSizes) -> dict[str, Shape]:
    """The tensors of a block, by their authors' names."""
    width, inner = config.width, config.inner
    return {
        "attention.wqkv.weight": (width + 2 * config.key_heads * config.head_size, width),
        "attention.wo.weight": (width, width),
        "feed_forward.w1.weight": (inner, width),
        "feed_forward.w3.weight": (inner, width),
        "feed_forward.w2.weight": (width, inner),
        "attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
    }


def block_state(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """The tensors of a block by our names, which begin with `ours`; its authors' begin with `theirs`."""
    gate, up = (weights[f"{theirs}feed_forward.{name}.weight"] for name in ("w1", "w3"))
    return {
        f"{ours}attention_norm.weight": weights[f"{theirs}attention_norm.weight"],
        f"{ours}attention.qkv.weight": weights[f"{theirs}attention.wqkv.weight"],
        f"{ours}attention.out.weight": weights[f"{theirs}attention.wo.weight"],
        f"{ours}mlp_norm.weight": weights[f"{theirs}ffn_norm.weight"],
        f"{ours}mlp.gate_up.weight": torch.cat([gate, up]),
        f"{ours}mlp.down.weight": weights[f"{theirs}feed_forward.w2.weight"],
    }
