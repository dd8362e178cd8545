"""Infinity's transformers (arXiv:2412.04431): VAR's blocks with a shared AdaLN, attention to the states of a caption,
and queries and keys that turn with row and column.

One vector of the caption stands at the first map, and moves all norms. At the other maps stands the picture so far, on
the map's grid. Pictures have one of a few shapes; rows and columns of every map count in those of the largest map that
the authors have for this shape, also where a smaller picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.layout import Layout
from tokenizers_vq.published.infinity_vae import Grids, whole_schedule

from ...ports import ATTENDED, pool_heads
from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..rule import Visibility, attend
from . import PublishedTrunk
from .family import Family, Settings, Shape, Weights, layers, rows
from .var import EPS, MLP, Attention, moved

ROPE_BASE = 10_000.0
SQUARE = whole_schedule(((1, 1), (2, 2), (4, 4)))


@dataclass
class InfinityTrunk(PublishedTrunk):
    """Sizes of an Infinity transformer."""

    kind = "infinity"
    head_bias = True
    plain_inputs = True
    text_encoder = "google/flan-t5-xl"
    scales: tuple[tuple[int, int], ...] = SQUARE
    """Codes along the sides of every map, (height, width)."""
    whole: tuple[int, int] = SQUARE[-1]
    """The map in whose rows and columns those of all maps count."""
    bits: int = 32
    """Of a code."""
    caption_width: int = 2048
    """Size of the states of a caption."""
    levels: int = 15
    """Maps that have a vector of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check(
            0 < len(self.scales) <= self.levels
            and all(1 <= side <= 2**10 for grid in (*self.scales, self.whole) for side in grid),
            f"trunk.scales is {str(self.scales)[:80]}: give 1 to trunk.levels ({self.levels}) grids with sides from 1 "
            "to 1024",
        )
        for name, most in (("bits", 62), ("caption_width", 2**16), ("levels", 2**10)):
            problems.check_range(f"trunk.{name}", getattr(self, name), 1, most)
        problems.check(
            self.width % (4 * self.heads) == 0,
            f"trunk.width is {self.width} with trunk.heads {self.heads}: choose a multiple of 4 * heads",
        )
        problems.raise_if_any()

    @property
    def captions(self) -> Literal["text", "class", "states", "attended"]:
        return "attended"

    @property
    def state_width(self) -> int:
        return self.caption_width

    def build(self) -> Trunk:
        return Infinity(self)


class Infinity(Trunk):
    """Infinity's blocks, and the last norm."""

    starts: Tensor
    sides: Tensor
    turns: Tensor

    def __init__(self, config: InfinityTrunk) -> None:
        super().__init__(config)
        width, sides = config.width, torch.tensor(config.scales)  # (K, 2)
        self.register_buffer("sides", sides, persistent=False)
        self.register_buffer("starts", torch.tensor(starts_of(config.scales)), persistent=False)
        self.register_buffer("turns", turns(config), persistent=False)
        self.begin = nn.Parameter(torch.zeros(width))
        """Of the first map, beside the caption."""
        self.scales = nn.Embedding(config.levels, width)
        self.shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last = nn.Linear(width, 2 * width)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Tensor,
        places: Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        stands: Tensor | None = None,
        condition: Beside | None = None,
    ) -> Tensor:
        assert condition is not None and condition.states is not None and condition.shown is not None
        scale = places[..., 0].round().long()
        turn = self.turns[self._position(places, scale)][:, None]
        x = x + self.scales(scale) + self.begin * (scale == 0)[..., None]
        mover = F.silu(condition.vector)
        caption = Visibility("sdpa", mask=condition.shown[:, None, None])
        x = self.run(x, (self.shared(mover), turn, condition.states, caption), seen, cache)
        by, shift = self.last(mover).chunk(2, -1)
        return moved(x, by, shift)

    def _position(self, places: Tensor, scale: Tensor) -> Tensor:
        """(B, T): which of the codes of a picture each position is."""
        # Places count in the units of the finest map.
        sides = self.sides[scale]  # (B, T, 2)
        inside = ((places[..., 1:] + 0.5) * sides / self.sides[-1] - 0.5).round().long()
        return self.starts[scale] + inside[..., 0] * sides[..., 1] + inside[..., 1]


def starts_of(grids: Grids) -> list[int]:
    """The first code of every map."""
    return list(accumulate((height * width for height, width in grids[:-1]), initial=0))


def turns(config: InfinityTrunk) -> Tensor:
    """(L, D/2, 2) float32: cosine and sine by which the codes of a picture turn: the first half of the pairs with the
    row, the second with the column."""
    half = config.head_size // 2
    frequencies = ROPE_BASE ** -(torch.arange(0, half, 2).float() / half)  # (D/4,)
    angles = []
    for grid in config.scales:
        row, column = (
            (torch.arange(side) * (most / side)).round()[:, None] * frequencies
            for side, most in zip(grid, config.whole, strict=True)
        )
        along = torch.cat([row[:, None].expand(-1, grid[1], -1), column[None].expand(grid[0], -1, -1)], -1)
        angles.append(along.flatten(0, 1))
    found = torch.cat(angles)
    return torch.stack([found.cos(), found.sin()], -1)


class CrossAttention(nn.Module):
    """Attention of positions to the states of a caption."""

    def __init__(self, config: InfinityTrunk) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.keys_values = nn.Linear(config.width, 2 * config.width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(config.width))
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, states: Tensor, shown: Visibility) -> Tensor:
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, self.heads, -1).transpose(1, 2)
        bias = torch.cat([torch.zeros_like(self.value_bias), self.value_bias])
        keys_values = self.keys_values(states)
        keys_values = (keys_values + bias.to(keys_values.dtype)).view(batch, states.shape[1], 2, self.heads, -1)
        k, v = keys_values.permute(2, 0, 3, 1, 4)  # (B, H, S, D) each
        return self.out(attend(q, k, v, shown).transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, config: InfinityTrunk) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(6 * config.width))
        self.attention = Attention(config)
        self.cross_norm = nn.LayerNorm(config.width, EPS)
        self.cross = CrossAttention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        how: tuple[Tensor, Tensor, Tensor, Visibility],
        seen: Visibility,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        shared, turn, states, caption = how
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = (shared + self.own).chunk(6, -1)
        x = x + gate_1 * self.attention(moved(x, scale_1, shift_1), seen, cache, layer, turn)
        x = x + self.cross(self.cross_norm(x), states, caption)
        return x + gate_2 * self.mlp(moved(x, scale_2, shift_2))


# --- the published files ---------------------------------------------------------------------------------------------

FIXED = {
    "use_bit_label": 1,
    "rope2d_each_sa_layer": 1,
    "rope2d_normalized_by_hw": 2,
    "add_lvl_embeding_only_first_block": 1,
    "cos_attn": 1,
    "shared_aln": 1,
    "swiglu": 0,
    "rms_norm": 0,
    "nm0": 0,
    "head_depth": 1,
}
"""Settings of the authors' that have one value in all released models."""
BLOCK = {
    "attention.qkv.weight": "sa.mat_qkv.weight",
    "attention.query_bias": "sa.q_bias",
    "attention.value_bias": "sa.v_bias",
    "attention.out.weight": "sa.proj.weight",
    "attention.out.bias": "sa.proj.bias",
    "cross_norm.weight": "ca_norm.weight",
    "cross_norm.bias": "ca_norm.bias",
    "cross.query.weight": "ca.mat_q.weight",
    "cross.query.bias": "ca.mat_q.bias",
    "cross.keys_values.weight": "ca.mat_kv.weight",
    "cross.value_bias": "ca.v_bias",
    "cross.out.weight": "ca.proj.weight",
    "cross.out.bias": "ca.proj.bias",
    "mlp.up.weight": "ffn.fc1.weight",
    "mlp.up.bias": "ffn.fc1.bias",
    "mlp.down.weight": "ffn.fc2.weight",
    "mlp.down.bias": "ffn.fc2.bias",
}
"""Our names of the tensors of a block that are the authors' as they are -> theirs."""
CAPTION = {
    "left_out": "cfg_uncond",
    "norm.weight": "text_norm.weight",
    "keys_values.weight": "text_proj_for_sos.ca.mat_kv.weight",
    "value_bias": "text_proj_for_sos.ca.v_bias",
    "pooled.weight": "text_proj_for_sos.ca.proj.weight",
    "pooled.bias": "text_proj_for_sos.ca.proj.bias",
    "enter.weight": "text_proj_for_ca.0.weight",
    "enter.bias": "text_proj_for_ca.0.bias",
    "leave.weight": "text_proj_for_ca.2.weight",
    "leave.bias": "text_proj_for_ca.2.bias",
}
"""The same of the port of captions."""


class _InfinityFamily(Family):
    config = InfinityTrunk
    objective = "infinity"
    tokenizer = "infinity_vae"
    settings = frozenset(FIXED)
    wrappers = ("trainer.gpt_fsdp",)
    ignored = ("zero_k_bias",)
    files = ("infinity_2b_reg.pth",)

    def named(self, weights: Weights, settings: Settings) -> Weights:
        """Blocks may stand in chunks, and the scales of heads along another axis."""
        chunked = [name.split(".") for name in weights if name.startswith("block_chunks.")]
        numbered = [name for name in chunked if all(part.isdecimal() and len(part) < 5 for part in name[1:3])]
        per_chunk = max((int(name[2]) for name in numbered), default=0) + 1
        found = {}
        for name, tensor in weights.items():
            parts = name.split(".")
            if parts in numbered:
                name = ".".join(["blocks", str(int(parts[1]) * per_chunk + int(parts[2])), *parts[3:]])
            if name.endswith("scale_mul_1H11"):
                tensor = tensor.reshape(1, -1, 1, 1)
            found[name] = tensor[:ATTENDED] if name == "cfg_uncond" else tensor
        return found

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        return {
            "infinity_2b_reg.pth": (InfinityTrunk(2048, 32, 16, 8192), 0, 64),
            "infinity_8b_weights": (InfinityTrunk(3584, 40, 28, 14336, bits=56), 0, 112),
        }

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ()

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[InfinityTrunk, int, int]:
        problems = Problems()
        for name, value in FIXED.items():
            given = settings.get(name, value)
            problems.check(given == value, f"setting {name} is {shown(given)}: only {value} is built")
        problems.raise_if_any()
        if layout.scales[0] != (1, 1):
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, Infinity begins with a map of one: give "
                f"the folder that `unitok import {self.tokenizer}` made"
            )
        width, bits = shapes["word_embed.weight"]
        found = InfinityTrunk(
            width,
            layers(shapes, "blocks."),
            prod(shapes["blocks.0.sa.scale_mul_1H11"]),
            shapes["blocks.0.ffn.fc1.weight"][0],
            scales=layout.scales,
            whole=whole_schedule(layout.scales)[-1],
            bits=bits,
            caption_width=shapes["text_norm.weight"][0],
            levels=shapes["lvl_embed.weight"][0],
        )
        return found, 0, shapes["head.weight"][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, InfinityTrunk)
        width, inner, text = config.width, config.inner, config.caption_width
        heads = pool_heads(text, width)
        found: dict[str, Shape] = {
            "cfg_uncond": (ATTENDED, text),
            "pos_start": (1, 1, width),
            "text_norm.weight": (text,),
            "text_proj_for_sos.ca.mat_q": (1, heads, width // heads),
            "text_proj_for_sos.ca.v_bias": (width,),
            "text_proj_for_sos.ca.mat_kv.weight": (2 * width, text),
            "text_proj_for_sos.ca.proj.weight": (width, width),
            "text_proj_for_sos.ca.proj.bias": (width,),
            "text_proj_for_ca.0.weight": (width, text),
            "text_proj_for_ca.0.bias": (width,),
            "text_proj_for_ca.2.weight": (width, width),
            "text_proj_for_ca.2.bias": (width,),
            "lvl_embed.weight": (config.levels, width),
            "word_embed.weight": (width, config.bits),
            "word_embed.bias": (width,),
            "shared_ada_lin.1.weight": (6 * width, width),
            "shared_ada_lin.1.bias": (6 * width,),
            "head_nm.ada_lin.1.weight": (2 * width, width),
            "head_nm.ada_lin.1.bias": (2 * width,),
            "head.weight": (codes, width),
            "head.bias": (codes,),
        }
        block: dict[str, Shape] = {
            "ada_gss": (1, 1, 6, width),
            "sa.scale_mul_1H11": (1, config.heads, 1, 1),
            "sa.q_bias": (width,),
            "sa.v_bias": (width,),
            "sa.mat_qkv.weight": (3 * width, width),
            "sa.proj.weight": (width, width),
            "sa.proj.bias": (width,),
            "ca.v_bias": (width,),
            "ca.mat_q.weight": (width, width),
            "ca.mat_q.bias": (width,),
            "ca.mat_kv.weight": (2 * width, width),
            "ca.proj.weight": (width, width),
            "ca.proj.bias": (width,),
            "ca_norm.weight": (width,),
            "ca_norm.bias": (width,),
            "ffn.fc1.weight": (inner, width),
            "ffn.fc1.bias": (inner,),
            "ffn.fc2.weight": (width, inner),
            "ffn.fc2.bias": (width,),
        }
        for layer in range(config.depth):
            found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        width = config.width
        head = torch.cat([weights["head.weight"], weights["head.bias"][:, None]], 1)
        head = rows(vocabulary, width + 1, {"image": head})
        found = {
            "ids.embedding.weight": rows(vocabulary, width, {"mask": weights["word_embed.bias"][None]}),
            "ids.head.weight": head[:, :-1],
            "ids.head.bias": head[:, -1],
            "ports.image.projection.weight": weights["word_embed.weight"],
            "ports.caption.query": weights["text_proj_for_sos.ca.mat_q"].flatten(),
            "trunk.begin": weights["pos_start"].flatten(),
            "trunk.scales.weight": weights["lvl_embed.weight"],
        }
        found |= {f"ports.caption.{ours}": weights[theirs] for ours, theirs in CAPTION.items()}
        for ours, theirs in (("last", "head_nm.ada_lin.1"), ("shared", "shared_ada_lin.1")):
            found |= {f"trunk.{ours}.{kind}": weights[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
        for layer in range(config.depth):
            start, into = f"blocks.{layer}.", f"trunk.blocks.{layer}."
            found |= {f"{into}{ours}": weights[start + theirs] for ours, theirs in BLOCK.items()}
            found[f"{into}own"] = weights[f"{start}ada_gss"].flatten()
            found[f"{into}attention.scale"] = weights[f"{start}sa.scale_mul_1H11"].flatten()
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' scripts; their k of the most likely is more than the two values of a bit."""
        assert isinstance(config, InfinityTrunk)
        return {"guidance": 4.0, "temperature": 0.5 if config.bits <= 32 else 1.0, "top_p": 0.97}


FAMILY = _InfinityFamily()
