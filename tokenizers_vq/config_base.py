"""What the configurations of the image tokenizers have in common. Free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from .errors import Problems, UserError, shown
from .layout import Layout
from .quantizers.config import VQ, QuantizerConfig

MOST_PIXELS, MOST_STRIDE, MOST_WIDTH, MOST_BLOCKS, MOST_LEVELS = 2**16, 256, 2**14, 256, 12
"""What no tokenizer needs more of: pixels of a side, pixels of a patch, channels, blocks or factors, levels."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What every tokenizer's configuration says. Choose one of its subclasses."""

    family: ClassVar[str]

    image_size: int | tuple[int, int] = 256
    """Pixels, one number for a square or [height, width]. Any other size that the stride divides works too."""
    quantizer: QuantizerConfig = field(default_factory=VQ)
    """How latents become codes: VQ, Cosine, MultiVQ, SimVQ, FSQ, LFQ, BSQ, IBQ or Gumbel."""

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))

    @property
    def stride(self) -> int:
        """Pixels per code along each side; each family has its own. (No abstract class: jsonargparse would then take a
        family for a choice, whose options it cannot list.)"""
        raise NotImplementedError(f"{type(self).__name__} does not say its stride")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `image_size`."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def text_tower(self) -> str | None:
        """Folder or hub id of the model that reads the captions of the training pictures; None: they are not read."""
        return None

    def layout_for(self, height: int, width: int) -> Layout:
        """Layout of the codes of pictures of any size that the stride divides; UserError for others."""
        check_size(height, width, self.stride)
        quantizer = self.quantizer
        grids, size = quantizer.grids, quantizer.size // quantizer.grids
        books = tuple((number * size, size) for number in range(grids)) if grids > 1 else ()
        return Layout(((height // self.stride, width // self.stride),) * grids, books)

    def resized(self, height: int, width: int) -> Self:
        """The configuration of the same network for pictures of another size; UserError where there is none."""
        self.layout_for(height, width)
        return dataclasses.replace(self, image_size=height if height == width else (height, width))

    def _check_image_size(self, problems: Problems) -> None:
        """Notes what is not a size; with nothing else wrong, raises for a size that the stride does not divide."""
        problems.check(
            isinstance(self.image_size, int) or len(self.image_size) == 2,
            f"tokenizer.image_size is {self.image_size}: give one number or [height, width]",
        )
        problems.raise_if_any()
        for side in sorted(set(self.size)):
            problems.check_range("tokenizer.image_size", side, 1, MOST_PIXELS)
        problems.raise_if_any()
        check_size(*self.size, self.stride, "tokenizer.image_size")


@dataclass(frozen=True, kw_only=True)
class ConvConfig(TokenizerConfig):
    """A convolutional encoder and decoder, wired like VQGAN in taming-transformers (arXiv 2012.09841)."""

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
    blocks_of_levels: tuple[int, ...] = ()
    """Encoder blocks of each level where they differ, full resolution first. Empty: `blocks` everywhere."""
    decoder_blocks_of_levels: tuple[int, ...] = ()
    """Decoder blocks of each level, full resolution first. Empty: one more than the encoder has."""
    decoder_multipliers: tuple[int, ...] = ()
    """`channel_multipliers` of the decoder, full resolution first. Empty: those of the encoder. More of them than the
    encoder has: its first levels are finer than the encoder's, and its own stem is that much smaller, so that what
    differs within a patch is not left to the last convolution."""
    attention_levels: tuple[int, ...] = ()
    """Further levels (0 is full resolution) whose blocks are followed by attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channel_multipliers", *PER_LEVEL, "attention_levels"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        problems = Problems()
        for name, most in (
            ("stem", MOST_STRIDE), ("channels", MOST_WIDTH), ("blocks", MOST_BLOCKS), ("latent_dim", MOST_WIDTH)
        ):  # fmt: skip
            problems.check_range(f"tokenizer.{name}", getattr(self, name), 1, most)
        multipliers = list(self.channel_multipliers)
        check_multipliers(problems, self.channel_multipliers)
        deepest = len(multipliers) + max(0, (self.stem & -self.stem).bit_length() - 1)  # each level halves the stem
        levels = len(self.decoder_multipliers) or len(multipliers)
        problems.check(
            len(multipliers) <= levels <= deepest,
            f"tokenizer.decoder_multipliers has {levels} levels: give {len(multipliers)} as the encoder has, or up to "
            f"{deepest}, finer ones first",
        )
        problems.check(
            levels == len(multipliers) or not self.attention_levels,
            "tokenizer.attention_levels would mean other resolutions in a decoder with finer levels: leave it empty",
        )
        for name, count in zip(PER_LEVEL, (len(multipliers), levels, levels), strict=True):
            values = getattr(self, name)
            problems.check(
                not values or (len(values) == count and all(1 <= one <= MOST_BLOCKS for one in values)),
                f"tokenizer.{name} is {shown(list(values))}: give {count} numbers from 1 to {MOST_BLOCKS}, one per "
                "level",
            )
        problems.check(
            all(0 <= level < len(multipliers) for level in self.attention_levels),
            f"tokenizer.attention_levels is {shown(list(self.attention_levels))}: levels go from 0 to "
            f"{len(multipliers) - 1}",
        )
        problems.check(
            self.attention in ("none", "middle", "lowest"),
            f"tokenizer.attention is {self.attention!r}: choose none, middle or lowest",
        )
        self._check(problems)
        self._check_image_size(problems)

    def _check(self, problems: Problems) -> None:
        """Notes what is wrong with the options that a family adds."""

    @property
    def stride(self) -> int:
        return self.stem * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def encoder_levels(self) -> list[tuple[int, int]]:
        """(channels, blocks) of each encoder level, full resolution first."""
        blocks = self.blocks_of_levels or [self.blocks] * len(self.channel_multipliers)
        return [(self.channels * factor, n) for factor, n in zip(self.channel_multipliers, blocks, strict=True)]

    @property
    def decoder_levels(self) -> list[tuple[int, int]]:
        """(channels, blocks) of each decoder level, full resolution first."""
        factors = self.decoder_multipliers or self.channel_multipliers
        finer = [self.blocks] * (len(factors) - len(self.channel_multipliers))
        blocks = self.decoder_blocks_of_levels or [n + 1 for n in (*finer, *(n for _, n in self.encoder_levels))]
        return [(self.channels * factor, n) for factor, n in zip(factors, blocks, strict=True)]

    @property
    def decoder_stem(self) -> int:
        """Side of the blocks of pixels that the decoder's last convolution makes from each position."""
        return self.stem // 2 ** (len(self.decoder_levels) - len(self.channel_multipliers))


PER_LEVEL = ("blocks_of_levels", "decoder_blocks_of_levels", "decoder_multipliers")
"""Fields of `ConvConfig` that are empty or hold one number per level, of the encoder or of the decoder."""


def check_multipliers(problems: Problems, multipliers: tuple[int, ...]) -> None:
    """Notes what is wrong with `channel_multipliers`."""
    problems.check(
        1 <= len(multipliers) <= MOST_LEVELS and all(1 <= factor <= MOST_BLOCKS for factor in multipliers),
        f"tokenizer.channel_multipliers is {shown(list(multipliers))}: give a factor from 1 to {MOST_BLOCKS} for each "
        f"of 1 to {MOST_LEVELS} levels",
    )


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
