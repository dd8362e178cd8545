"""IBQ's transformers (arXiv:2412.02692): LlamaGen's blocks, whose norms the class moves (AdaLN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import RMSNorm
from ..rule import Visibility
from . import PublishedTrunk, grid, llama, voken
from .family import Family, Settings, Shape, Weights, layers, rows

RELEASED = {
    "B": (1024, 16, 2.25, 1.1),
    "L": (1280, 20, 2.0, 1.0),
    "XL": (1536, 24, 2.35, 1.15),
    "XXL": (1920, 30, 2.85, 1.2),
}
"""Name -> width, depth, and the guidance and the temperature of its authors."""


@dataclass
class IBQTrunk(grid.GridSizes):
    """Sizes of an IBQ transformer."""

    kind = "ibq_ar"

    def build(self) -> Trunk:
        return IBQ(self)


class IBQ(grid.GridTrunk):
    """IBQ's blocks, and the last norm."""

    def __init__(self, config: IBQTrunk) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, grid.Attention(config)) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)
        self.last = nn.Linear(config.width, 2 * config.width)
        self.start()

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
        moved = F.silu(condition.vector)
        x = self.run(x, (self.turn(places), moved), seen, cache)
        scale, shift = self.last(moved).chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class Block(llama.Block):
    def __init__(self, config: IBQTrunk, attention: llama.Attention) -> None:
        super().__init__(config, attention)
        self.condition = nn.Linear(config.width, 6 * config.width)

    def forward(
        self, x: Tensor, how: tuple[Tensor, Tensor], seen: Visibility, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        turn, condition = how
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.condition(condition).chunk(6, -1)
        moved = self.attention_norm(x) * (1 + scale_1) + shift_1
        x = x + gate_1 * self.attention(moved, turn, seen, cache, layer)
        return x + gate_2 * self.mlp(self.mlp_norm(x) * (1 + scale_2) + shift_2)


# --- the published files ---------------------------------------------------------------------------------------------


class _IBQFamily(voken.VokenFamily):
    config = IBQTrunk
    tokenizer = "ibq"

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        found: dict[str, tuple[PublishedTrunk, int, int]] = {}
        for name, (width, depth, *_) in RELEASED.items():
            found[f"AR_256_{name}.ckpt"] = (IBQTrunk(width, depth, width // 64, grid.inner_of(width)), 1000, 2**14)
        return found

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[IBQTrunk, int, int]:
        self.check_layout(settings, layout)
        codes, width = shapes["tok_emb.weight"]
        sizes = grid.sizes(shapes, "blocks.0.", width, settings, self.heads())
        found = IBQTrunk(**sizes, depth=layers(shapes, "blocks."), side=layout.grid[0])
        return found, shapes["class_emb.embedding_table.weight"][0] - 1, codes

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, IBQTrunk)
        width = config.width
        found: dict[str, Shape] = {
            "tok_emb.weight": (codes, width),
            "class_emb.embedding_table.weight": (classes + 1, width),
            "head_nm.rmsnorm.weight": (width,),
            "head_nm.ada_lin.1.weight": (2 * width, width),
            "head_nm.ada_lin.1.bias": (2 * width,),
            "head.weight": (codes, width),
        }
        moving: dict[str, Shape] = {"ada_lin.1.weight": (6 * width, width), "ada_lin.1.bias": (6 * width,)}
        for layer in range(config.depth):
            block = grid.block_shapes(config) | moving
            found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        found = {
            "ids.embedding.weight": voken.embeddings(weights, vocabulary, weights["tok_emb.weight"]),
            "ids.head.weight": rows(vocabulary, config.width, {"image": weights["head.weight"]}),
            "trunk.norm.weight": weights["head_nm.rmsnorm.weight"],
        }
        found |= {f"trunk.last.{kind}": weights[f"head_nm.ada_lin.1.{kind}"] for kind in ("weight", "bias")}
        for layer in range(config.depth):
            theirs, ours = f"blocks.{layer}.", f"trunk.blocks.{layer}."
            found |= grid.block_state(weights, theirs, ours)
            found |= {f"{ours}condition.{kind}": weights[f"{theirs}ada_lin.1.{kind}"] for kind in ("weight", "bias")}
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' FID."""
        sizes = {width: (guidance, temperature) for width, _, guidance, temperature in RELEASED.values()}
        guidance, temperature = sizes.get(config.width, (2.25, 1.1))
        return {"guidance": guidance, "temperature": temperature}


FAMILY: Family = _IBQFamily()
