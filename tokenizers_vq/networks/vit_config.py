"""Configuration of the patch transformer. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problems

HEAD_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A transformer over patches, as encoder and as decoder (ViT-VQGAN, arXiv 2110.04627)."""

    patch: int = 16
    """Pixels of a patch along each side; a patch is one place of the grid."""
    width: int = 768
    """Channels of the transformer, a multiple of the head size 64."""
    depth: int = 12
    """Blocks of the encoder, and of the decoder."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, most in (("patch", 256), ("depth", 256), ("width", 2**14)):
            problems.check_range(f"tokenizer.vit.{name}", getattr(self, name), 1, most)
        problems.check(
            self.width % HEAD_SIZE == 0,
            f"tokenizer.vit.width is {self.width}: choose a multiple of {HEAD_SIZE}",
        )
        problems.raise_if_any()
