"""LlamaGen's transformers (arXiv:2406.06525): blocks over a grid of codes, after a class or the states of a caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tokenizers_vq.errors import Problems
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import RMSNorm
from ..rule import Visibility
from . import PublishedTrunk, grid
from .family import Family, Settings, Shape, Weights, layers, rows, whole

PRESETS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Width -> heads of the authors' models, which no tensor tells."""
CAPTION = 120
"""States of a caption."""


@dataclass
class LlamaGenTrunk(grid.GridSizes):
    """Sizes of a LlamaGen transformer."""

    kind = "llamagen"
    text_encoder = "google/flan-t5-xl"
    cleans_captions = True
    caption_width: int = 0
    """Size of the states of a caption; 0: a model of classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
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


class LlamaGen(grid.GridTrunk):
    """LlamaGen's blocks, and the last norm."""

    def __init__(self, config: LlamaGenTrunk) -> None:
        super().__init__(config)
        self.blocks = grid.blocks(config, config.depth)
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
        return self.norm(self.run(x, self.turn(places), seen, cache))


# --- the published files ---------------------------------------------------------------------------------------------


class _LlamaGenFamily(Family):
    config = LlamaGenTrunk
    objective = "next_token"
    tokenizer = "llamagen_vq"
    settings = grid.SETTINGS | {"image_size", "downsample_size"}
    wrappers = ("model", "module", "state_dict", "ema")  # the order of the authors' sampler
    ignored = ("freqs_cis", "causal_mask", "kv_cache.k_cache", "kv_cache.v_cache")
    files = ("c2i_B_256.pt", "t2i_XL_stage1_256.pt")

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        sizes = {"B": (768, 12), "L": (1024, 24), "XL": (1280, 36), "XXL": (1536, 48), "3B": (3200, 24)}
        found: dict[str, tuple[PublishedTrunk, int, int]] = {}
        for name, (width, depth) in sizes.items():
            inner = grid.inner_of(width)
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
        side = whole(settings, "image_size", 16 * layout.grid[0]) // whole(settings, "downsample_size", 16)
        grid.check_side(side, layout, "import the tokenizer with --settings '{\"image_size\": ...}'")
        grid.check_square(layout, "LlamaGen", self.tokenizer)
        width = shapes["tok_embeddings.weight"][1]
        captions = "cls_embedding.uncond_embedding" in shapes
        found = LlamaGenTrunk(
            **grid.sizes(shapes, "layers.0.", width, settings, PRESETS),
            depth=layers(shapes, "layers."),
            side=layout.grid[0],
            caption_width=shapes["cls_embedding.uncond_embedding"][1] if captions else 0,
        )
        classes = 0 if captions else shapes["cls_embedding.embedding_table.weight"][0] - 1
        return found, classes, shapes["tok_embeddings.weight"][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, LlamaGenTrunk)
        width = config.width
        found: dict[str, Shape] = {"cls_embedding.embedding_table.weight": (classes + 1, width)}
        if config.caption_width:
            found = {
                "cls_embedding.uncond_embedding": (CAPTION, config.caption_width),
                "cls_embedding.cap_proj.fc1.weight": (width, config.caption_width),
                "cls_embedding.cap_proj.fc2.weight": (width, width),
            }
        for layer in range(config.depth):
            found |= {f"layers.{layer}.{name}": shape for name, shape in grid.block_shapes(config).items()}
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
            found |= grid.block_state(weights, f"layers.{layer}.", f"trunk.blocks.{layer}.")
        return found

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """The defaults of the authors' samplers."""
        states = config.captions == "states"
        return {"guidance": 7.5, "top_k": 1000} if states else {"guidance": 4.0, "top_k": 2000}


FAMILY = _LlamaGenFamily()
