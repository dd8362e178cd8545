"""Open-MAGVIT2's transformers (arXiv:2409.04410): LlamaGen's blocks over the codes of a picture, and further ones
inside each position, which draw the sub-tokens of its code in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenizers_vq.errors import Problems
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import RMSNorm
from ..rule import Visibility
from . import PublishedTrunk, grid, voken
from .family import Family, Settings, Shape, Weights, layers

RELEASED = {
    "B": (1024, 24, 2, [1.9, 2.0], 1.0),
    "L": (1280, 36, 3, [1.9, 1.9], [1.1, 1.0]),
    "XL": (1536, 48, 4, [1.75, 1.85], [1.1, 1.0]),
}
"""Name -> width, depth, depth inside a position, and the guidance and the temperature of its authors."""


@dataclass
class OpenMagvit2Trunk(grid.GridSizes):
    """Sizes of an Open-MAGVIT2 transformer."""

    kind = "open_magvit2_ar"
    inner_depth: int = 2
    """Blocks inside a position."""
    sub_tokens: tuple[int, ...] = (64, 4096)
    """Values of each sub-token of a code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check_range("trunk.side", self.side, 2, 2**10)
        problems.check_range("trunk.inner_depth", self.inner_depth, 0, 1024)
        problems.check(
            2 <= len(self.sub_tokens) <= self.side and all(1 <= size <= 2**20 for size in self.sub_tokens),
            f"trunk.sub_tokens is {str(self.sub_tokens)[:80]}: give 2 to {self.side} sizes from 1 to {2**20}",
        )
        problems.raise_if_any()

    def build(self) -> Trunk:
        return OpenMagvit2(self)


class OpenMagvit2(grid.GridTrunk):
    """The blocks over a picture, those inside a position, and the last norm, which stands behind the latter."""

    def __init__(self, config: OpenMagvit2Trunk) -> None:
        super().__init__(config)
        self.blocks = grid.blocks(config, config.depth)
        self.inner = grid.blocks(config, config.inner_depth)
        self.norm = RMSNorm(config.width, config.eps)
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
        return self.run(x, self.turn(places), seen, cache)

    def intra(self, x: Tensor) -> Tensor:
        # The state of the position turns as what belongs to the caption does, sub-tokens as the first codes do.
        turn, seen = self.turns[None, None, : x.shape[1]], Visibility("sdpa", causal=True)
        for block in self.inner:
            x = block(x, turn, seen)
        return self.norm(x)


# --- the published files ---------------------------------------------------------------------------------------------


class _OpenMagvit2Family(voken.VokenFamily):
    config = OpenMagvit2Trunk
    tokenizer = "open_magvit2"

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        found: dict[str, tuple[PublishedTrunk, int, int]] = {}
        for name, (width, depth, inside, *_) in RELEASED.items():
            trunk = OpenMagvit2Trunk(width, depth, width // 64, grid.inner_of(width), inner_depth=inside)
            found[f"AR_256_{name}.ckpt"] = (trunk, 1000, 2**18)
        return found

    def read(
        self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout
    ) -> tuple[OpenMagvit2Trunk, int, int]:
        self.check_layout(settings, layout)
        sizes, width = zip(*(shapes[f"{name}_emb.weight"] for name in ("pre", "post")), strict=True)
        found = OpenMagvit2Trunk(
            **grid.sizes(shapes, "spatial_blocks.0.", width[0], settings, self.heads()),
            depth=layers(shapes, "spatial_blocks."),
            side=layout.grid[0],
            inner_depth=layers(shapes, "factorized_blocks."),
            sub_tokens=sizes,
        )
        return found, shapes["class_emb.embedding_table.weight"][0] - 1, sizes[0] * sizes[1]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, OpenMagvit2Trunk)
        width, (pre, post) = config.width, config.sub_tokens
        found: dict[str, Shape] = {
            "pre_emb.weight": (pre, width),
            "post_emb.weight": (post, width),
            "class_emb.embedding_table.weight": (classes + 1, width),
            "norm.weight": (width,),
            "head.0.weight": (pre, width),
            "head.1.weight": (post, width),
        }
        for start, depth in (("spatial_blocks", config.depth), ("factorized_blocks", config.inner_depth)):
            for layer in range(depth):
                found |= {f"{start}.{layer}.{name}": shape for name, shape in grid.block_shapes(config).items()}
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        assert isinstance(config, OpenMagvit2Trunk)
        found = {
            "ids.embedding.weight": voken.embeddings(weights, vocabulary)[: vocabulary.image_start],
            "ids.tables.0.weight": weights["pre_emb.weight"],
            "ids.tables.1.weight": weights["post_emb.weight"],
            "ids.heads.0.weight": weights["head.0.weight"],
            "ids.heads.1.weight": weights["head.1.weight"],
            "trunk.norm.weight": weights["norm.weight"],
        }
        for layer in range(config.depth):
            found |= grid.block_state(weights, f"spatial_blocks.{layer}.", f"trunk.blocks.{layer}.")
        for layer in range(config.inner_depth):
            found |= grid.block_state(weights, f"factorized_blocks.{layer}.", f"trunk.inner.{layer}.")
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' FID."""
        sizes = {width: (guidance, temperature) for width, *_, guidance, temperature in RELEASED.values()}
        guidance, temperature = sizes.get(config.width, ([1.9, 2.0], 1.0))
        return {"guidance": guidance, "guidance_by_sub_token": True, "temperature": temperature}


FAMILY: Family = _OpenMagvit2Family()
