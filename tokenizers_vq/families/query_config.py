"""Configuration of the query tokenizer. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config_base import MOST_BLOCKS, MOST_WIDTH, ConvConfig
from ..errors import Problems, UserError
from ..layout import Layout


@dataclass(frozen=True, kw_only=True)
class QueryVQConfig(ConvConfig):
    """Learned queries read the picture, each the queries before it too, and become one row of codes (SEED, arXiv
    2307.08041). The convolutional encoder makes the features that they read, the convolutional decoder the pixels."""

    family: ClassVar[str] = "query_vq"

    image_size: int | tuple[int, int] = 256
    """Pixels, one number for a square or [height, width]. Other sizes are refused: the queries know this one alone."""
    tokens: int = 32
    """Codes of a picture."""
    width: int = 256
    """Channels of the queries, on both sides of the codes."""
    depth: int = 4
    """Blocks that read the picture, and blocks that turn the codes back into a grid."""
    heads: int = 4
    """Attention heads of each block."""
    prefix_dropout: float = 0.25
    """Share of the training pictures that are decoded from their first codes alone, so that the first say the most. 0:
    a picture is decoded from all of its codes only."""
    vision: str | None = None
    """Folder or hub id of a frozen CLIP, SigLIP or DINOv2 model whose features the queries read, in place of the
    convolutional encoder; its weights become part of the tokenizer. null: the encoder."""
    feature_weight: float = 1.0
    """Weight of the cosine distance between the features of `vision` and what the codes give back of them; 0: off."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss between the codes of a picture and its caption, which the text tower of
    `vision` (a CLIP or SigLIP model) reads. 0: off."""
    vision_model: dict[str, Any] | None = None
    """What the model of `vision` is, written when its weights are read; leave it out."""

    def _check(self, problems: Problems) -> None:
        for name, most in (("tokens", 2**16), ("width", MOST_WIDTH), ("depth", MOST_BLOCKS), ("heads", MOST_WIDTH)):
            problems.check_range(f"tokenizer.{name}", getattr(self, name), 1, most)
        problems.check(
            self.heads < 1 or self.width % self.heads == 0,
            f"tokenizer.width is {self.width}: choose a multiple of tokenizer.heads ({self.heads})",
        )
        problems.check(
            self.quantizer.grids == 1,
            f"tokenizer.quantizer writes {self.quantizer.grids} codes for each place: queries have one code each, "
            "choose another quantizer",
        )
        problems.check(
            0 <= self.prefix_dropout <= 1,
            f"tokenizer.prefix_dropout is {self.prefix_dropout}: choose a share from 0 to 1",
        )
        problems.check(
            self.feature_weight >= 0, f"tokenizer.feature_weight is {self.feature_weight}: choose 0 (off) or more"
        )
        problems.check(
            self.contrastive_weight >= 0,
            f"tokenizer.contrastive_weight is {self.contrastive_weight}: choose 0 (off) or more",
        )
        problems.check(
            self.contrastive_weight <= 0 or self.vision is not None,
            f"tokenizer.contrastive_weight is {self.contrastive_weight} without tokenizer.vision: give that a CLIP or "
            "SigLIP model, whose text tower reads the captions",
        )

    def layout_for(self, height: int, width: int) -> Layout:
        if (height, width) != self.size:
            raise UserError(
                f"image size {height}x{width}: this tokenizer's queries know {self.size[0]}x{self.size[1]} alone, "
                "scale the pictures to it"
            )
        return Layout(((1, self.tokens),))

    @property
    def text_tower(self) -> str | None:
        return self.vision if self.contrastive_weight > 0 else None

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the features of the convolutional encoder and decoder."""
        return self.size[0] // self.stride, self.size[1] // self.stride
