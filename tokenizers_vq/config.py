"""Configuration of the image tokenizers. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .errors import Problems, UserError

FORMAT = 1
"""Version of `config.json`; a reader refuses files of a later version."""


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


@dataclass(frozen=True, kw_only=True)
class _Codebook(QuantizerConfig):
    codebook_size: int = 1024
    """Number of codes."""
    dim: int = 8
    """Length of a code vector. Short vectors (4 to 32) keep more of a large codebook in use (ViT-VQGAN)."""
    rotation_trick: bool = False
    """Carry gradients to the encoder by rotation (arXiv 2410.06424) instead of copying them straight through."""

    @property
    def width(self) -> int:
        return self.dim

    @property
    def size(self) -> int:
        return self.codebook_size

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(
            self.codebook_size >= 2, f"quantizer.codebook_size is {self.codebook_size}: choose at least 2 codes"
        )
        problems.check(self.dim >= 1, f"quantizer.dim is {self.dim}: choose at least 1")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_weight"):
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
class SimVQ(_Codebook):
    """A frozen random codebook seen through one learned linear map (SimVQ, arXiv 2411.02038): no code can die alone."""

    kind: ClassVar[str] = "simvq"

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
            raise UserError(f"quantizer.levels is {list(self.levels)}: give at least one channel with 2 levels or more")
        if self.size > 2**24:
            raise UserError(f"quantizer.levels {list(self.levels)} make {self.size} codes: choose at most {2**24}")


@dataclass(frozen=True, kw_only=True)
class LFQ(QuantizerConfig):
    """Each latent channel gives one bit, its sign (LFQ of MAGVIT-v2, arXiv 2310.05737)."""

    kind: ClassVar[str] = "lfq"

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
            f"quantizer.codebook_size is {size}: lfq needs a power of two, such as {near}",
        )
        for name in ("commitment_weight", "entropy_weight", "diversity"):
            value = getattr(self, name)
            problems.check(value >= 0, f"quantizer.{name} is {value}: choose 0 or more")
        problems.raise_if_any()


QUANTIZERS: dict[str, type[QuantizerConfig]] = {kind.kind: kind for kind in (VQ, Cosine, SimVQ, FSQ, LFQ)}


@dataclass(frozen=True, kw_only=True)
class ConvVQConfig:
    """A convolutional tokenizer with one grid of codes, wired like VQGAN in taming-transformers (arXiv 2012.09841)."""

    family: ClassVar[str] = "conv_vq"

    image_size: int | tuple[int, int] = 256
    """Pixels, one number for a square or [height, width]. Any other size that the stride divides works too."""
    stem: int = 1
    """Pixels are folded into channels in blocks of this side before the first convolution and unfolded after the last
    one (space-to-depth). 1 keeps the full-resolution convolutions of taming; 2 or 4 is far cheaper."""
    patchwise: bool = False
    """The encoder sees each patch of stride x stride pixels by itself, so that equal patches get equal codes. Without
    it, the codes of plain white vary with what stands beside it: noise that a generator has to learn."""
    channels: int = 128
    """Channels of the first level."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level as multiples of `channels`; each level after the first halves the resolution."""
    blocks: int = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: Literal["none", "middle", "lowest"] = "lowest"
    """Self-attention nowhere, between the two middle blocks, or also after each block of the lowest resolution."""
    latent_dim: int = 256
    """Channels between encoder and quantizer, and between quantizer and decoder (`z_channels` in taming)."""
    quantizer: QuantizerConfig = field(default_factory=VQ)
    """How latents become codes: VQ, Cosine, SimVQ, FSQ or LFQ."""

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))
        object.__setattr__(self, "channel_multipliers", tuple(int(factor) for factor in self.channel_multipliers))
        problems = Problems()
        for name in ("stem", "channels", "blocks", "latent_dim"):
            value = getattr(self, name)
            problems.check(value >= 1, f"tokenizer.{name} is {value}: choose at least 1")
        multipliers = list(self.channel_multipliers)
        problems.check(
            bool(multipliers) and min(multipliers, default=0) >= 1,
            f"tokenizer.channel_multipliers is {multipliers}: give one factor of at least 1 per level",
        )
        problems.check(
            self.attention in ("none", "middle", "lowest"),
            f"tokenizer.attention is {self.attention!r}: choose none, middle or lowest",
        )
        problems.check(
            isinstance(self.image_size, int) or len(self.image_size) == 2,
            f"tokenizer.image_size is {self.image_size}: give one number or [height, width]",
        )
        problems.raise_if_any()
        check_size(*self.size, self.stride, "tokenizer.image_size")

    @property
    def stride(self) -> int:
        """Pixels per code along each side."""
        return self.stem * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `image_size`."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


def check_size(height: int, width: int, stride: int, what: str = "image size") -> None:
    """Raises UserError unless the stride divides both sides; names the nearest sizes that it divides."""
    if height >= stride and width >= stride and height % stride == 0 and width % stride == 0:
        return

    def near(side: int) -> str:
        below = side // stride * stride
        if below == side and side > 0:
            return f"{side}"
        return f"{below} or {below + stride}" if below > 0 else f"{stride}"

    value = f"{height}" if height == width else f"{height}x{width}"
    choice = near(height) if height == width else f"height {near(height)}, width {near(width)}"
    raise UserError(f"{what} {value} is not a multiple of the tokenizer's stride {stride}: use {choice}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What a tokenizer is trained for. The quantizer's own losses have their weights in its configuration."""

    l1: float = 0.0
    """Weight of the mean absolute error per pixel, images in [-1, 1]."""
    l2: float = 1.0
    """Weight of the mean squared error per pixel, images in [-1, 1]."""
    lpips: float = 0.0
    """Weight of the perceptual distance LPIPS (arXiv 1801.03924). 0: not used, no weights needed."""
    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Feature network of LPIPS; VQGAN uses vgg."""
    lpips_weights: str | None = None
    """Local file with torchvision's weights of that network. Without it torch's cache is used, then the network."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("l1", "l2", "lpips"):
            problems.check(getattr(self, name) >= 0, f"losses.{name} is {getattr(self, name)}: choose 0 or more")
        problems.check(self.l1 + self.l2 > 0, "losses.l1 and losses.l2 are both 0: give at least one a weight")
        problems.raise_if_any()


# --- presets --------------------------------------------------------------------------------------------------------


def debug() -> ConvVQConfig:
    """For tests: 32 px, 8x8 codes out of 64, a few thousand parameters, milliseconds on a CPU."""
    return ConvVQConfig(
        image_size=32,
        stem=2,
        channels=16,
        channel_multipliers=(1, 1),
        blocks=1,
        attention="none",
        latent_dim=16,
        quantizer=VQ(codebook_size=64, dim=4),
    )


def shapes() -> ConvVQConfig:
    """For the rendered `shapes` pictures: 32 px, 8x8 codes out of 1000, 0.65 M parameters.

    1700 steps of batch 32 give 35.9 dB on held-out pictures, every object read back right. All convolutions run at the
    resolution of the codes: a step costs a third of what one more level on top would cost.
    """
    return ConvVQConfig(
        image_size=32,
        stem=4,
        patchwise=True,
        channels=64,
        channel_multipliers=(1,),
        blocks=1,
        attention="none",
        latent_dim=64,
        quantizer=FSQ(levels=(8, 5, 5, 5)),
    )


def emoji() -> ConvVQConfig:
    """For emoji and icons: 64 px, 8x8 codes out of 2048, 11 M parameters; batch 32 takes 0.35 s on two CPU cores."""
    return ConvVQConfig(
        image_size=64,
        stem=4,
        channels=128,
        channel_multipliers=(1, 2),
        blocks=1,
        attention="middle",
        latent_dim=128,
        quantizer=VQ(codebook_size=2048, dim=16),
    )


def small() -> ConvVQConfig:
    """For photographs on one GPU: 128 px, stride 8, 16x16 codes out of 4096."""
    return ConvVQConfig(
        image_size=128,
        channels=64,
        channel_multipliers=(1, 2, 2, 4),
        attention="lowest",
        latent_dim=256,
        quantizer=Cosine(codebook_size=4096, dim=8),
    )


def base() -> ConvVQConfig:
    """The published VQGAN f16 wiring: 256 px, stride 16, 16x16 codes out of 16384 with short unit vectors."""
    return ConvVQConfig(quantizer=Cosine(codebook_size=16384, dim=8))


TOKENIZER_PRESETS: dict[str, Callable[[], ConvVQConfig]] = {
    preset.__name__: preset for preset in (debug, shapes, emoji, small, base)
}

TokenizerConfig = ConvVQConfig
"""Any tokenizer's configuration. One family so far."""

FAMILIES: dict[str, type[TokenizerConfig]] = {ConvVQConfig.family: ConvVQConfig}


# --- config.json ----------------------------------------------------------------------------------------------------


def config_to_dict(config: TokenizerConfig) -> dict[str, Any]:
    """What `config.json` holds; inverse of `config_from_dict`."""
    values = dataclasses.asdict(config)
    values["quantizer"] = {"kind": config.quantizer.kind, **dataclasses.asdict(config.quantizer)}
    return {"format": FORMAT, "family": config.family, **values}


def config_from_dict(values: Mapping[str, Any], where: str = "config.json") -> TokenizerConfig:
    """The configuration in a `config.json`; UserError, naming `where`, when it is not one of ours."""
    values = dict(values)
    family, version = values.pop("family", None), values.pop("format", None)
    if family not in FAMILIES:
        raise UserError(
            f"{where} is of family {family!r}, not an image tokenizer of this version: known are {', '.join(FAMILIES)}"
        )
    if version != FORMAT:
        raise UserError(f"{where} has format {version!r}, this version of unitok reads {FORMAT}: update unitok")
    quantizer = dict(values.pop("quantizer", None) or {})
    kind = quantizer.pop("kind", None)
    if kind not in QUANTIZERS:
        raise UserError(f"{where} has quantizer kind {kind!r}: known are {', '.join(QUANTIZERS)}")
    return _build(
        FAMILIES[family], {**values, "quantizer": _build(QUANTIZERS[kind], quantizer, f"{where}: quantizer")}, where
    )


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    names = {item.name for item in dataclasses.fields(kind)}
    problems = Problems()
    for name in sorted(values.keys() - names):
        problems.check(False, f"{where} has an unknown key {name!r}: known are {', '.join(sorted(names))}")
    for name in sorted(names - values.keys()):
        problems.check(False, f"{where} lacks the key {name!r}: the file is not complete")
    problems.raise_if_any()
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where} has a value of the wrong type ({error}): restore the file") from error
