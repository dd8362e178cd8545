"""Configuration of the quantizers. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..errors import Problems, UserError, shown

MOST_CODES = 2**24
"""Of a codebook that some table holds."""
MOST_BITS = 64
"""Of a code that no table holds: codes are int64. The first of 64 bits is its sign."""
MOST_DIM = 2**14
"""Numbers of a code vector, or codebooks."""


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig(ABC):
    """How a latent vector becomes one of `size` codes. Choose one of its subclasses."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of the vectors that are quantized."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of codes."""

    @property
    def grids(self) -> int:
        """Codes per latent vector; each of them has a grid of its own in the layout."""
        return 1


@dataclass(frozen=True, kw_only=True)
class _Codebook(QuantizerConfig):
    codebook_size: int = 1024
    """Number of codes."""
    dim: int = 8
    """Length of a code vector. Short vectors (4 to 32) keep more of a large codebook in use (ViT-VQGAN)."""

    @property
    def width(self) -> int:
        return self.dim

    @property
    def size(self) -> int:
        return self.codebook_size

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check_range("quantizer.codebook_size", self.codebook_size, 2, MOST_CODES)
        problems.check_range("quantizer.dim", self.dim, 1, MOST_DIM)
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_weight") or item.name == "diversity":
                problems.check(value >= 0, f"quantizer.{item.name} is {value}: choose 0 or more")
        decay = getattr(self, "decay", 0.5)
        problems.check(0 < decay < 1, f"quantizer.decay is {decay}: choose a value above 0 and below 1, such as 0.99")
        revive = getattr(self, "revive_below", 0.0)
        problems.check(0 <= revive < 1, f"quantizer.revive_below is {revive}: choose 0 (never) or a share below 1")
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class VQ(_Codebook):
    """A codebook that follows the latents as a moving average (VQ-VAE, arXiv 1711.00937); nearest row by distance."""

    kind: ClassVar[str] = "vq"

    learned: bool = False
    """The codebook learns by gradient, from a loss of weight 1 towards its latents (as in VQGAN), not by averaging."""

    rotation_trick: bool = False
    """Carry gradients to the encoder by rotation (arXiv 2410.06424) instead of copying them straight through."""
    commitment_weight: float = 0.25
    """Weight of the pull of the latents towards their code vectors."""
    decay: float = 0.99
    """Share of the old codebook that is kept at each step."""
    kmeans_init: bool = True
    """Start from k-means of the first training batch instead of noise."""
    revive_below: float = 0.1
    """A code whose use falls below this share of the mean use is replaced by a latent of the batch. 0: never."""


@dataclass(frozen=True, kw_only=True)
class Cosine(VQ):
    """As VQ, with latents and codes on the unit sphere (ViT-VQGAN, arXiv 2110.04627); nearest row by angle."""

    kind: ClassVar[str] = "cosine"


@dataclass(frozen=True, kw_only=True)
class MultiVQ(VQ):
    """The latent is cut into chunks of `dim` channels, each with a codebook of its own (UniTok, arXiv 2502.20321): as
    many codes per place as codebooks, and the picture's vocabulary is a product that no table has to hold."""

    kind: ClassVar[str] = "multi_vq"

    codebook_size: int = 256
    """Number of codes of each codebook."""
    dim: int = 8
    """Length of a code vector, and channels of a chunk."""
    codebooks: int = 4
    """Chunks of a latent, and codes of each place. The ids of the codebooks follow one another."""

    @property
    def width(self) -> int:
        return self.dim * self.codebooks

    @property
    def size(self) -> int:
        return self.codebook_size * self.codebooks

    @property
    def grids(self) -> int:
        return self.codebooks

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check_range("quantizer.codebooks", self.codebooks, 1, MOST_DIM)
        problems.check_range("quantizer.codebook_size * quantizer.codebooks", self.size, 2, MOST_CODES)
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class SimVQ(_Codebook):
    """A frozen random codebook seen through one learned linear map (SimVQ, arXiv 2411.02038): no code can die alone."""

    kind: ClassVar[str] = "simvq"

    rotation_trick: bool = False
    """Carry gradients to the encoder by rotation (arXiv 2410.06424) instead of copying them straight through."""
    commitment_weight: float = 0.25
    """Weight of the pull of the latents towards their code vectors; the pull the other way has weight 1."""


@dataclass(frozen=True, kw_only=True)
class FSQ(QuantizerConfig):
    """Each latent channel is rounded to a few levels (FSQ, arXiv 2309.15505): nothing to learn, no extra loss."""

    kind: ClassVar[str] = "fsq"

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels per channel; their product is the number of codes."""

    @property
    def width(self) -> int:
        return len(self.levels)

    @property
    def size(self) -> int:
        return math.prod(self.levels)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        if not self.levels or min(self.levels) < 2:
            given = shown(list(self.levels))
            raise UserError(f"quantizer.levels is {given}: give at least one channel with 2 levels or more")
        if len(self.levels) > 64 or self.size > MOST_CODES:
            size = shown(self.size) if len(self.levels) <= 64 else "too many"
            raise UserError(
                f"quantizer.levels {shown(list(self.levels))} make {size} codes: choose at most {MOST_CODES}"
            )


@dataclass(frozen=True, kw_only=True)
class LFQ(QuantizerConfig):
    """Each latent channel gives one bit, its sign (LFQ of MAGVIT-v2, arXiv 2310.05737)."""

    kind: ClassVar[str] = "lfq"
    most_codes: ClassVar[int] = MOST_CODES

    codebook_size: int = 1024
    """Number of codes, a power of two; its logarithm is the number of latent channels."""
    commitment_weight: float = 0.25
    """Weight of the pull of the latents towards -1 and 1."""
    entropy_weight: float = 0.1
    """Weight of the entropy terms: each latent should be sure of its code, and all codes should be used."""
    diversity: float = 1.0
    """Weight of the second entropy term against the first."""

    @property
    def width(self) -> int:
        return self.codebook_size.bit_length() - 1

    @property
    def size(self) -> int:
        return self.codebook_size

    def __post_init__(self) -> None:
        size = self.codebook_size
        near = 2 ** max(1, (max(size, 2) - 1).bit_length())
        problems = Problems()
        problems.check(
            size >= 2 and size & (size - 1) == 0,
            f"quantizer.codebook_size is {shown(size)}: {self.kind} needs a power of two, such as {near}",
        )
        most = self.most_codes
        problems.check(size <= most, f"quantizer.codebook_size is {shown(size)}: choose at most {most}")
        for name in ("commitment_weight", "entropy_weight", "diversity"):
            value = getattr(self, name)
            problems.check(value >= 0, f"quantizer.{name} is {value}: choose 0 or more")
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class BSQ(LFQ):
    """As LFQ, with latents and codes on the unit sphere (BSQ, arXiv 2406.07548): the entropy is counted bit by bit, so
    that no table of the codes is ever made."""

    kind: ClassVar[str] = "bsq"
    most_codes: ClassVar[int] = 2**MOST_BITS


@dataclass(frozen=True, kw_only=True)
class IBQ(_Codebook):
    """A learned codebook all of which gets a gradient, through the choice itself (IBQ, arXiv 2412.02692); the code of
    the largest inner product. Training holds a table of latents x codes."""

    kind: ClassVar[str] = "ibq"

    commitment_weight: float = 1.0
    """Weight of the pull of latents and code vectors towards each other."""
    entropy_weight: float = 0.05
    """Weight of the entropy terms: each latent should be sure of its code, and all codes should be used."""
    diversity: float = 1.0
    """Weight of the second entropy term against the first."""


@dataclass(frozen=True, kw_only=True)
class Gumbel(_Codebook):
    """A 1x1 convolution scores the codes, Gumbel noise draws among them in training (DALL-E, arXiv 2102.12092; VQGAN's
    f8 Gumbel variant); the best score wins when pictures are encoded."""

    kind: ClassVar[str] = "gumbel"

    temperature: float = 1.0
    """Of the draw in training: low values make it nearly one code, high ones mix many."""
    kl_weight: float = 0.0005
    """Weight of the pull of the scores' distribution towards all codes alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"quantizer.temperature is {self.temperature}: choose a value above 0, such as 1")


QUANTIZERS: dict[str, type[QuantizerConfig]] = {
    kind.kind: kind for kind in (VQ, Cosine, MultiVQ, SimVQ, FSQ, LFQ, BSQ, IBQ, Gumbel)
}
