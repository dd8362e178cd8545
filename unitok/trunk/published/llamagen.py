"""LlamaGen's transformers (arXiv:2406.06525): Llama's blocks, of which each position stands in a picture.

A class, or the last state of a caption, stands where the picture begins. What belongs to the caption is turned by a
table of zeros: queries and keys there are zero, so that it is seen by all with the same weight, and sees all alike.
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

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import RMSNorm, rotate_neighbours
from ..rule import Visibility
from . import PublishedTrunk, llama
from .family import Family, Settings, Shape, Weights, layers, number, rows, whole

PRESETS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Width -> heads of the authors' models, which no tensor tells."""
CAPTION = 120
"""States of a caption."""


@dataclass
class LlamaGenTrunk(llama.LlamaSizes):
    """Sizes of a LlamaGen transformer."""

    kind = "llamagen"
    eps: float = 1e-5
    side: int = 16
    """Codes along a side of the picture."""
    caption_width: int = 0
    """Size of the states of a caption; 0: a model of classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check_range("trunk.side", self.side, 1, 2**10)
        problems.check_range("trunk.caption_width", self.caption_width, 0, 2**16)
        problems.raise_if_any()

    @property
    def captions(self) -> Literal["text", "class", "states"]:
        return "states" if self.caption_width else "class"

    @property
    def state_width(self) -> int:
        return self.caption_width

    def build(self) -> Trunk:
        return LlamaGen(self)


class LlamaGen(Trunk):
    """LlamaGen's blocks, and the last norm."""

    turns: Tensor

    def __init__(self, config: LlamaGenTrunk) -> None:
        super().__init__(config)
        self.side = config.side
        self.register_buffer("turns", turns(config), persistent=False)
        self.blocks = nn.ModuleList(llama.Block(config, Attention(config)) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)
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
        # A position predicts the code of its place, and turns as the code before, which it carries.
        at = (places[..., 1] * self.side + places[..., 2]).round().long()
        return self.norm(self.run(x, self.turns[at][:, None], seen, cache))


def turns(config: LlamaGenTrunk) -> Tensor:
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


# --- the published files ---------------------------------------------------------------------------------------------


class _LlamaGenFamily(Family):
    config = LlamaGenTrunk
    objective = "next_token"
    tokenizer = "llamagen_vq"
    settings = frozenset(["n_head", "rope_base", "norm_eps", "image_size", "downsample_size"])
    wrappers = ("model", "module", "state_dict", "ema")  # the order of the authors' sampler
    ignored = ("freqs_cis", "causal_mask", "kv_cache.k_cache", "kv_cache.v_cache")
    files = ("c2i_B_256.pt", "t2i_XL_stage1_256.pt")

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        sizes = {"B": (768, 12), "L": (1024, 24), "XL": (1280, 36), "XXL": (1536, 48), "3B": (3200, 24)}
        found: dict[str, tuple[PublishedTrunk, int, int]] = {}
        for name, (width, depth) in sizes.items():
            inner = -(-int(8 * width / 3) // 256) * 256
            for side in (16, 24) if name in ("B", "L") else (24,):
                trunk = LlamaGenTrunk(width, depth, PRESETS[width], inner, side=side)
                found[f"c2i_{name}_{16 * side}.pt"] = (trunk, 1000, 16384)
        for name, side in (("stage1_256", 16), ("stage2_512", 32)):
            found[f"t2i_XL_{name}.pt"] = (LlamaGenTrunk(1280, 36, 20, 3584, side=side, caption_width=2048), 0, 16384)
        return found

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        assert isinstance(config, LlamaGenTrunk)
        return ((config.side, config.side),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[LlamaGenTrunk, int, int]:
        wanted = whole(settings, "image_size", 16 * layout.grid[0]) // whole(settings, "downsample_size", 16)
        if wanted != layout.grid[0]:
            raise UserError(
                f"the model draws {wanted}x{wanted} codes, the image tokenizer makes {layout.names[-1]}: import the "
                "tokenizer with --settings '{\"image_size\": ...}'"
            )
        if len(layout.scales) > 1 or layout.grid[0] != layout.grid[1]:
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, LlamaGen draws one square grid: give the "
                f"folder that `unitok import {self.tokenizer}` made"
            )
        width = shapes["tok_embeddings.weight"][1]
        if "n_head" not in settings and width not in PRESETS:
            raise UserError(
                f"no released model is {width} wide, and no tensor says how many heads this one has: "
                "give --settings '{\"n_head\": ...}'"
            )
        heads = whole(settings, "n_head", PRESETS.get(width, 12))
        captions = "cls_embedding.uncond_embedding" in shapes
        keys = (shapes["layers.0.attention.wqkv.weight"][0] - width) // 2 * heads // width
        found = LlamaGenTrunk(
            width,
            layers(shapes, "layers."),
            heads,
            shapes["layers.0.feed_forward.w1.weight"][0],
            side=layout.grid[0],
            kv_heads=None if keys == heads else keys,
            caption_width=shapes["cls_embedding.uncond_embedding"][1] if captions else 0,
            rope_base=number(settings, "rope_base", 10_000.0),
            eps=number(settings, "norm_eps", 1e-5),
        )
        classes = 0 if captions else shapes["cls_embedding.embedding_table.weight"][0] - 1
        return found, classes, shapes["tok_embeddings.weight"][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, LlamaGenTrunk)
        width, inner = config.width, config.inner
        found: dict[str, Shape] = {"cls_embedding.embedding_table.weight": (classes + 1, width)}
        if config.caption_width:
            found = {
                "cls_embedding.uncond_embedding": (CAPTION, config.caption_width),
                "cls_embedding.cap_proj.fc1.weight": (width, config.caption_width),
                "cls_embedding.cap_proj.fc2.weight": (width, width),
            }
        for layer in range(config.depth):
            start = f"layers.{layer}."
            found |= {
                f"{start}attention.wqkv.weight": (width + 2 * config.key_heads * config.head_size, width),
                f"{start}attention.wo.weight": (width, width),
                f"{start}feed_forward.w1.weight": (inner, width),
                f"{start}feed_forward.w3.weight": (inner, width),
                f"{start}feed_forward.w2.weight": (width, inner),
                f"{start}attention_norm.weight": (width,),
                f"{start}ffn_norm.weight": (width,),
            }
        tables = {"tok_embeddings.weight": (codes, width), "output.weight": (codes, width)}
        return {**found, **tables, "norm.weight": (width,)}

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        width = config.width
        spans = {"image": weights["tok_embeddings.weight"]}
        if "cls_embedding.embedding_table.weight" in weights:
            classes = weights["cls_embedding.embedding_table.weight"]
            spans |= {"text": classes[:-1], "bos": classes[-1:]}
        found = {
            "ids.embedding.weight": rows(vocabulary, width, spans),
            "ids.head.weight": rows(vocabulary, width, {"image": weights["output.weight"]}),
            "trunk.norm.weight": weights["norm.weight"],
        }
        if config.captions == "states":
            found |= {
                "ports.caption.left_out": weights["cls_embedding.uncond_embedding"],
                "ports.caption.enter.weight": weights["cls_embedding.cap_proj.fc1.weight"],
                "ports.caption.leave.weight": weights["cls_embedding.cap_proj.fc2.weight"],
            }
        for layer in range(config.depth):
            theirs, ours = f"layers.{layer}.", f"trunk.blocks.{layer}."
            gate, up = (weights[f"{theirs}feed_forward.{name}.weight"] for name in ("w1", "w3"))
            found |= {
                f"{ours}attention_norm.weight": weights[f"{theirs}attention_norm.weight"],
                f"{ours}attention.qkv.weight": weights[f"{theirs}attention.wqkv.weight"],
                f"{ours}attention.out.weight": weights[f"{theirs}attention.wo.weight"],
                f"{ours}mlp_norm.weight": weights[f"{theirs}ffn_norm.weight"],
                f"{ours}mlp.gate_up.weight": torch.cat([gate, up]),
                f"{ours}mlp.down.weight": weights[f"{theirs}feed_forward.w2.weight"],
            }
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """The defaults of the authors' samplers."""
        states = config.captions == "states"
        return {"guidance": 7.5, "top_k": 1000} if states else {"guidance": 4.0, "top_k": 2000}


FAMILY = _LlamaGenFamily()
