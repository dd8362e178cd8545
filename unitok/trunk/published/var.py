"""VAR's transformers (arXiv:2404.02905): blocks whose norms the class moves (AdaLN), over maps of codes.

The class stands at the first map. At the others stands the picture so far, on the map's grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import rotate_neighbours
from ..rule import Visibility, attend
from . import PublishedTrunk
from .family import Family, Settings, Shape, Weights, layers, rows

EPS = 1e-6
"""Of the norms."""
SHARPEST = math.log(100)
"""Largest logarithm of a head's scale."""
SIDES_256, SIDES_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass
class VARTrunk(PublishedTrunk):
    """Sizes of a VAR transformer."""

    kind = "var"
    head_bias = True
    plain_inputs = True
    sides: tuple[int, ...] = SIDES_256
    """Codes along a side of every map."""
    latent: int = 32
    """Size of the vectors of a code."""
    shared: bool = False
    """Whether all blocks are moved by one map of the class, each with a constant of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check(
            0 < len(self.sides) <= 64 and all(1 <= side <= 2**10 for side in self.sides),
            f"trunk.sides is {str(self.sides)[:80]}: give 1 to 64 sides from 1 to 1024",
        )
        problems.raise_if_any()

    @property
    def captions(self) -> Literal["text", "class", "states"]:
        return "class"

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return sum(side * side for side in self.sides)

    def build(self) -> Trunk:
        return VAR(self)


class VAR(Trunk):
    """VAR's blocks, and the last norm."""

    starts: Tensor
    sides: Tensor

    def __init__(self, config: VARTrunk) -> None:
        super().__init__(config)
        width, sides = config.width, torch.tensor(config.sides)
        self.register_buffer("sides", sides, persistent=False)
        before = list(accumulate((side * side for side in config.sides[:-1]), initial=0))
        self.register_buffer("starts", torch.tensor(before), persistent=False)
        self.begin = nn.Embedding(config.sides[0] ** 2, width)
        """Of each place of the first map, beside `positions`."""
        self.positions = nn.Embedding(config.length, width)
        self.scales = nn.Embedding(len(sides), width)
        self.shared = nn.Linear(width, 6 * width) if config.shared else None
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
        assert condition is not None, "a picture has a class, or the class of none"
        mover = F.silu(condition.vector)
        shared = None if self.shared is None else self.shared(mover)
        x = self.run(x + self._place(places), (mover, shared), seen, cache)
        scale, shift = self.last(mover).chunk(2, -1)
        return moved(x, scale, shift)

    def _place(self, places: Tensor) -> Tensor:
        """(B, T, C): what each position adds by its scale and its place."""
        scale = places[..., 0].round().long()
        sides = self.sides[scale]
        # Places count in the units of the finest map.
        row, column = (
            ((one + 0.5) * sides / self.sides[-1] - 0.5).round().long() for one in places[..., 1:].unbind(-1)
        )
        inside = row * sides + column
        first = self.begin(inside.clamp(max=self.begin.num_embeddings - 1)) * (scale == 0)[..., None]
        return first + self.scales(scale) + self.positions(self.starts[scale] + inside)


def moved(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B, T, C), normed and moved (arXiv:2212.09748)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class Attention(nn.Module):
    """Attention over directions: queries and keys have length 1, and each head a scale of its own."""

    def __init__(self, config: PublishedTrunk) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(config.width))
        self.value_bias = nn.Parameter(torch.zeros(config.width))
        self.scale = nn.Parameter(torch.full((config.heads,), math.log(4)))
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x: Tensor, seen: Visibility, cache: KVCache | None, layer: int, turn: Tensor | None = None
    ) -> Tensor:
        """`turn` (B, 1, T, D/2, 2): the cosines and sines by which positions turn; None: they do not."""
        batch, length, _ = x.shape
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = self.qkv(x)
        qkv = (qkv + bias.to(qkv.dtype)).view(batch, length, 3, self.heads, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        sharp = self.scale.clamp(max=SHARPEST).exp() * self.head_size**0.5  # `attend` divides by this root
        q, k = F.normalize(q, dim=-1) * sharp[:, None, None].to(q.dtype), F.normalize(k, dim=-1)
        if turn is not None:
            q, k = rotate_neighbours(q, turn), rotate_neighbours(k, turn)
        if cache is not None:
            k, v = cache.store(layer, k, v)
        return self.out(attend(q, k, v, seen).transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: PublishedTrunk) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.inner)
        self.down = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: VARTrunk) -> None:
        super().__init__()
        self.condition = None if config.shared else nn.Linear(config.width, 6 * config.width)
        self.own = nn.Parameter(torch.zeros(6 * config.width)) if config.shared else None
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        how: tuple[Tensor, Tensor | None],
        seen: Visibility,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        condition, shared = how
        if self.condition is not None:
            six = self.condition(condition)
        else:
            assert shared is not None and self.own is not None
            six = shared + self.own
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = six.chunk(6, -1)
        x = x + gate_1 * self.attention(moved(x, scale_1, shift_1), seen, cache, layer)
        return x + gate_2 * self.mlp(moved(x, scale_2, shift_2))


# --- the published files ---------------------------------------------------------------------------------------------


class _VARFamily(Family):
    config = VARTrunk
    objective = "var"
    tokenizer = "var_vae"
    settings = frozenset(["patch_nums"])
    wrappers = ("trainer.var_wo_ddp",)
    ignored = ("lvl_1L", "attn_bias_for_masking", "attn.zero_k_bias")
    files = ("var_d16.pth",)

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        found: dict[str, tuple[PublishedTrunk, int, int]] = {}
        for depth in (16, 20, 24, 30):
            trunk = VARTrunk(64 * depth, depth, depth, 256 * depth)
            found[f"var_d{depth}.pth"] = (trunk, 1000, 4096)
        found["var_d36.pth"] = (VARTrunk(2304, 36, 36, 9216, sides=SIDES_512, shared=True), 1000, 4096)
        return found

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        assert isinstance(config, VARTrunk)
        return tuple((side, side) for side in config.sides)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[VARTrunk, int, int]:
        sides, given = [height for height, _ in layout.scales], settings.get("patch_nums")
        if given is not None and list(given) != sides:
            raise UserError(f"setting patch_nums is {given}, the image tokenizer has {sides}: import it with these")
        codes = shapes["pos_1LC"][1]
        if codes != layout.length:
            raise UserError(
                f"the model draws {codes} codes a picture, the image tokenizer makes {layout.length}: import the "
                "tokenizer with --settings '{\"patch_nums\": ...}' for the model's picture size"
            )
        found = VARTrunk(
            shapes["word_embed.weight"][0],
            layers(shapes, "blocks."),
            shapes["blocks.0.attn.scale_mul_1H11"][1],
            shapes["blocks.0.ffn.fc1.weight"][0],
            sides=tuple(sides),
            latent=shapes["word_embed.weight"][1],
            shared="shared_ada_lin.1.weight" in shapes,
        )
        return found, shapes["class_emb.weight"][0] - 1, shapes["head.weight"][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, VARTrunk)
        width, inner = config.width, config.inner
        found: dict[str, Shape] = {
            "pos_start": (1, config.sides[0] ** 2, width),
            "pos_1LC": (1, config.length, width),
            "word_embed.weight": (width, config.latent),
            "word_embed.bias": (width,),
            "class_emb.weight": (classes + 1, width),
            "lvl_embed.weight": (len(config.sides), width),
            "head_nm.ada_lin.1.weight": (2 * width, width),
            "head_nm.ada_lin.1.bias": (2 * width,),
            "head.weight": (codes, width),
            "head.bias": (codes,),
        }
        moving: dict[str, Shape] = {"ada_lin.1.weight": (6 * width, width), "ada_lin.1.bias": (6 * width,)}
        if config.shared:
            found |= {f"shared_{name}": shape for name, shape in moving.items()}
            moving = {"ada_gss": (1, 1, 6, width)}
        for layer in range(config.depth):
            block = moving | {
                "attn.scale_mul_1H11": (1, config.heads, 1, 1),
                "attn.q_bias": (width,),
                "attn.v_bias": (width,),
                "attn.mat_qkv.weight": (3 * width, width),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "ffn.fc1.weight": (inner, width),
                "ffn.fc1.bias": (inner,),
                "ffn.fc2.weight": (width, inner),
                "ffn.fc2.bias": (width,),
            }
            found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        classes, width = weights["class_emb.weight"], config.width
        spans = {"text": classes[:-1], "bos": classes[-1:], "mask": weights["word_embed.bias"][None]}
        head = rows(
            vocabulary, width + 1, {"image": torch.cat([weights["head.weight"], weights["head.bias"][:, None]], 1)}
        )
        found = {
            "ids.embedding.weight": rows(vocabulary, width, spans),
            "ids.head.weight": head[:, :-1],
            "ids.head.bias": head[:, -1],
            "ports.image.projection.weight": weights["word_embed.weight"],
            "trunk.begin.weight": weights["pos_start"][0],
            "trunk.positions.weight": weights["pos_1LC"][0],
            "trunk.scales.weight": weights["lvl_embed.weight"],
        }
        found |= {f"trunk.last.{kind}": weights[f"head_nm.ada_lin.1.{kind}"] for kind in ("weight", "bias")}
        if "shared_ada_lin.1.weight" in weights:
            found |= {f"trunk.shared.{kind}": weights[f"shared_ada_lin.1.{kind}"] for kind in ("weight", "bias")}
        for layer in range(config.depth):
            theirs, ours = f"blocks.{layer}.", f"trunk.blocks.{layer}."
            found |= {
                f"{ours}{name}": weights[theirs + source].flatten()
                for source, name in (
                    ("attn.q_bias", "attention.query_bias"),
                    ("attn.v_bias", "attention.value_bias"),
                    ("attn.scale_mul_1H11", "attention.scale"),
                    ("ada_gss", "own"),
                )
                if theirs + source in weights
            }
            found |= {
                f"{ours}{name}": weights[theirs + source]
                for source, name in (
                    ("attn.mat_qkv.weight", "attention.qkv.weight"),
                    ("attn.proj.weight", "attention.out.weight"),
                    ("attn.proj.bias", "attention.out.bias"),
                    ("ffn.fc1.weight", "mlp.up.weight"),
                    ("ffn.fc1.bias", "mlp.up.bias"),
                    ("ffn.fc2.weight", "mlp.down.weight"),
                    ("ffn.fc2.bias", "mlp.down.bias"),
                    ("ada_lin.1.weight", "condition.weight"),
                    ("ada_lin.1.bias", "condition.bias"),
                )
                if theirs + source in weights
            }
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the paper's FID. The authors' scale t is 1 less: theirs is (1 + t) cond - t uncond."""
        return {"guidance": 2.5, "guidance_rises": True, "top_k": 900, "top_p": 0.96}


FAMILY = _VARFamily()
