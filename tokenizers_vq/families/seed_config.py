"""Configuration of the SEED tokenizer. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config_base import MOST_BLOCKS, MOST_WIDTH, TokenizerConfig
from ..errors import Problems, UserError
from ..layout import Layout
from ..quantizers.config import VQ, QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class SeedConfig(TokenizerConfig):
    """A vision transformer reads the picture, causal queries read what it saw and become one row of codes, and the
    codes become an image embedding (SEED-2, arXiv 2310.01218)."""

    family: ClassVar[str] = "seed"

    image_size: int | tuple[int, int] = 224
    """Pixels, one number for a square or [height, width]. Other sizes are refused: the places are learned."""
    quantizer: QuantizerConfig = field(default_factory=lambda: VQ(codebook_size=8192, dim=32))
    """How latents become codes; published with VQ."""
    tokens: int = 32
    """Codes of a picture."""
    patch: int = 14
    """Pixels of a patch along each side."""
    vision_width: int = 1408
    """Channels of the vision transformer (EVA-CLIP g, arXiv 2211.07636)."""
    vision_depth: int = 39
    """Its blocks."""
    vision_heads: int = 16
    """Its attention heads."""
    vision_inner: int = 6144
    """Channels inside the feed-forward parts of its blocks."""
    width: int = 768
    """Channels of the queries, and of the blocks behind the codes."""
    depth: int = 12
    """Layers of the queries."""
    heads: int = 12
    """Attention heads of these layers, and of the blocks behind the codes."""
    inner: int = 3072
    """Channels inside the feed-forward parts of these layers; behind the codes it is 4 * width."""
    look_every: int = 2
    """The queries look at the picture in the first layer and every so many layers."""
    decoder_depth: int = 4
    """Blocks behind the codes."""
    embedding: int = 1024
    """Length of the image embedding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        widths = ("vision_width", "vision_heads", "vision_inner", "width", "heads", "inner", "embedding")
        for name in widths:
            problems.check_range(f"tokenizer.{name}", getattr(self, name), 1, MOST_WIDTH)
        for name in ("vision_depth", "depth", "look_every", "decoder_depth", "patch"):
            problems.check_range(f"tokenizer.{name}", getattr(self, name), 1, MOST_BLOCKS)
        problems.check_range("tokenizer.tokens", self.tokens, 1, 2**16)
        problems.raise_if_any()
        for heads, width in (("vision_heads", "vision_width"), ("heads", "width")):
            problems.check(
                getattr(self, width) % getattr(self, heads) == 0,
                f"tokenizer.{width} is {getattr(self, width)}: choose a multiple of tokenizer.{heads} "
                f"({getattr(self, heads)})",
            )
        problems.check(
            self.quantizer.grids == 1,
            f"tokenizer.quantizer writes {self.quantizer.grids} codes for each place: queries have one code each, "
            "choose another quantizer",
        )
        self._check_image_size(problems)

    @property
    def stride(self) -> int:
        return self.patch

    def layout_for(self, height: int, width: int) -> Layout:
        if (height, width) != self.size:
            raise UserError(
                f"image size {height}x{width}: this tokenizer reads {self.size[0]}x{self.size[1]} alone, scale the "
                "pictures to it"
            )
        return Layout(((1, self.tokens),))
