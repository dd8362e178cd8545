"""What the generators of SEED-Voken (Open-MAGVIT2, IBQ) have in common in their files."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from tokenizers_vq.layout import Layout

from ...vocabulary import Vocabulary
from . import PublishedTrunk, grid
from .family import Family, Settings, Weights, rows, whole

MINE = "transformer."
"""Beginning of the generator's names in a file of its training."""


class VokenFamily(Family):
    """Captions are classes, codes are drawn one after another on a square grid."""

    objective = "next_token"
    settings = grid.SETTINGS | {"block_size"}
    left_out = ("first_stage_model.", "cond_stage_model.")
    files = ("AR_256_B.ckpt",)

    def named(self, weights: Weights, settings: Settings) -> Weights:
        return {name.removeprefix(MINE): tensor for name, tensor in weights.items()}

    def heads(self) -> Mapping[int, int]:
        """Width -> heads of the released models."""
        return {trunk.width: trunk.heads for trunk, *_ in self.released().values()}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        assert isinstance(config, grid.GridSizes)
        return ((config.side, config.side),)

    def check_layout(self, settings: Settings, layout: Layout) -> None:
        """Raises UserError for a tokenizer of other pictures."""
        grid.check_square(layout, self.config.kind, self.tokenizer)
        side = isqrt(whole(settings, "block_size", layout.length))
        grid.check_side(side, layout, "import the tokenizer for the model's picture size")


def embeddings(weights: Weights, vocabulary: Vocabulary, codes: Tensor | None = None) -> Tensor:
    """(V, C): the vectors of classes and of none, and of codes, where they have one."""
    classes = weights["class_emb.embedding_table.weight"]
    spans = {"text": classes[:-1], "bos": classes[-1:]} | ({} if codes is None else {"image": codes})
    return rows(vocabulary, classes.shape[1], spans)
