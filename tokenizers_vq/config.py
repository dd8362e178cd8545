"""Configuration of the image tokenizers. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from .config_base import MOST_BLOCKS, MOST_WIDTH, PER_LEVEL, ConvConfig, TokenizerConfig, check_multipliers
from .errors import Problems, UserError, shown
from .families.query_config import QueryVQConfig
from .families.seed_config import SeedConfig
from .layout import Layout
from .networks.vit_config import ViTConfig
from .quantizers.config import BSQ, FSQ, LFQ, MOST_BITS, QUANTIZERS, VQ, Cosine, QuantizerConfig, SimVQ
from .quantizers.scales import check_scales, scale_grids
from .storage.schema import read_dataclass

FORMAT = 1
"""Version of `config.json`; a reader refuses files of a later version."""


@dataclass(frozen=True, kw_only=True)
class ConvVQConfig(ConvConfig):
    """Encoder, quantizer, decoder: convolutions wired like VQGAN in taming-transformers (arXiv 2012.09841), or
    transformers over patches."""

    family: ClassVar[str] = "conv_vq"

    backbone: Literal["conv", "vit"] = "conv"
    """Network of encoder and decoder: convolutions, whose settings stand here, or a transformer over patches (vit)."""
    vit: ViTConfig = field(default=ViTConfig())
    """The transformer over patches, where `backbone` is vit."""
    quant_kernel: int = 1
    """Side of the convolutions before and after the quantizer; VAR has 3. 0: there are none (Infinity)."""
    scales: tuple[int | tuple[int, int], ...] = ()
    """Grids of a multi-scale tokenizer, coarse to fine (VAR, arXiv 2404.02905), each a number for its longer side or
    [height, width]; the last is the whole grid. Empty: one grid. With it, quantizer is VQ or SimVQ; or BSQ, whose
    codes are bits (Infinity, arXiv 2412.04431)."""
    scale_residual: bool = True
    """Each scale writes what the coarser ones left over (VAR). false: each writes the whole picture as far as its grid
    can hold it (FlexVAR, arXiv 2502.20313), and the finest alone is decoded."""
    scale_convs: int = 4
    """Residual convolutions that the scales share; neighbouring scales use the same one. BSQ has none."""
    scale_fold: int = 1
    """With scales and BSQ: a code holds the bits of so many times so many latents."""
    scale_dropout: float = 0.0
    """Share of the training pictures that are decoded from their coarse scales alone, which then carry more of them."""

    def __post_init__(self) -> None:
        scales = tuple(scale if isinstance(scale, int) else tuple(scale) for scale in self.scales)
        object.__setattr__(self, "scales", scales)
        super().__post_init__()
        if self.scales:
            check_scales(self.scales, self.size, self.stride)

    def _check(self, problems: Problems) -> None:
        problems.check_range("tokenizer.scale_convs", self.scale_convs, 1, MOST_BLOCKS)
        problems.check(
            len(self.scales) <= MOST_BLOCKS, f"tokenizer.scales has {len(self.scales)}: give at most {MOST_BLOCKS}"
        )
        problems.check(self.backbone in ("conv", "vit"), f"tokenizer.backbone is {self.backbone!r}: choose conv or vit")
        problems.check(
            self.backbone == "conv" or not self.patchwise,
            "tokenizer.patchwise is true, but the vit backbone looks across patches: leave it out, or take conv",
        )
        problems.check(
            self.quant_kernel in (0, 1, 3),
            f"tokenizer.quant_kernel is {self.quant_kernel}: choose 1 or 3, or 0 for none",
        )
        problems.check(
            self.quant_kernel != 0 or self.latent_dim == self.quantizer.width,
            f"tokenizer.latent_dim is {self.latent_dim}, the quantizer takes {self.quantizer.width} channels: make "
            "them equal, or choose a quant_kernel of 1",
        )
        bits = isinstance(self.quantizer, BSQ) and bool(self.scales)
        problems.check_range("tokenizer.scale_fold", self.scale_fold, 1, 8)
        problems.check(
            self.scale_fold == 1 or (bits and not self.patchwise),
            f"tokenizer.scale_fold is {self.scale_fold}: only BSQ with scales folds, and not patchwise; choose 1",
        )
        width = self.quantizer.width * self.scale_fold**2
        problems.check(
            not bits or width <= MOST_BITS,
            f"tokenizer.scale_fold makes codes of {width} bits: choose at most {MOST_BITS}",
        )
        problems.check(
            not bits or (self.scale_residual and self.scale_dropout == 0),
            "tokenizer.scales with BSQ writes what is left over, in all scales: leave out scale_residual and "
            "scale_dropout",
        )
        problems.check(
            0 <= self.scale_dropout <= 1, f"tokenizer.scale_dropout is {self.scale_dropout}: choose a share from 0 to 1"
        )
        problems.check(
            not self.scales or type(self.quantizer) in (VQ, SimVQ, BSQ),
            f"tokenizer.scales with {type(self.quantizer).__name__}: choose VQ or SimVQ, whose code vectors can be as "
            "short as what the coarse scales leave over, or BSQ",
        )

    def layout_for(self, height: int, width: int) -> Layout:
        layout = super().layout_for(height, width)
        if not self.scales:
            return layout
        home = (self.size[0] // self.stride, self.size[1] // self.stride)
        return Layout(scale_grids(self.scales, home, layout.grid))

    def resized(self, height: int, width: int) -> Self:
        grids = self.layout_for(height, width).scales
        size = height if height == width else (height, width)
        return dataclasses.replace(self, image_size=size, scales=grids if self.scales else ())

    @property
    def stride(self) -> int:
        return (self.vit.patch if self.backbone == "vit" else super().stride) * self.scale_fold


@dataclass(frozen=True, kw_only=True)
class OpenMagvit2Config(TokenizerConfig):
    """The tokenizer of Open-MAGVIT2 (arXiv 2409.04410): convolutions, and norms steered by the codes."""

    family: ClassVar[str] = "open_magvit2"

    quantizer: QuantizerConfig = field(default_factory=lambda: LFQ(codebook_size=2**18))
    """How latents become codes; published with LFQ."""
    channels: int = 128
    """Channels of the first level."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level as multiples of `channels`; each level after the first halves the resolution."""
    blocks: int = 4
    """Residual blocks of each level and in the middle, of encoder and decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channel_multipliers", tuple(int(factor) for factor in self.channel_multipliers))
        problems = Problems()
        problems.check_range("tokenizer.channels", self.channels, 1, MOST_WIDTH)
        problems.check_range("tokenizer.blocks", self.blocks, 1, MOST_BLOCKS)
        check_multipliers(problems, self.channel_multipliers)
        self._check_image_size(problems)
        self.layout_for(*self.size)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    def layout_for(self, height: int, width: int) -> Layout:
        layout = super().layout_for(height, width)
        if layout.length < 2:
            raise UserError(
                f"image size {height}x{width} is a single code: this decoder needs the deviation over several, "
                f"use at least {height}x{2 * width}"
            )
        return layout


@dataclass(frozen=True, kw_only=True)
class Emu3Config(ConvConfig):
    """The tokenizer of Emu3 (arXiv 2409.18869), of videos, for single pictures: VQGAN's wiring, norms steered by the
    codes, and convolutions over time."""

    family: ClassVar[str] = "emu3_vq"

    halvings: int = 2
    """How often convolutions over time join two frames: a picture is 2 ** halvings frames that are alike."""

    def _check(self, problems: Problems) -> None:
        problems.check_range("tokenizer.halvings", self.halvings, 0, 6)
        problems.check(
            self.stem == 1 and not self.patchwise and self.attention != "none",
            "tokenizer.stem, patchwise and attention of an emu3_vq stay as published: leave them out",
        )
        problems.check(
            self.quantizer.grids == 1 and self.quantizer.width == self.latent_dim,
            f"tokenizer.latent_dim is {self.latent_dim}: give the width of the code vectors, of which a place has one",
        )


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
    """For the rendered `shapes` pictures: 32 px, 8x8 codes out of 1000, 0.39 M parameters.

    1700 steps of batch 32 give 37 dB on held-out pictures (`unitok demo`). All convolutions run at the
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


def shapes_scales() -> ConvVQConfig:
    """As `shapes`, with maps of 1, 2, 4 and 8 codes a side, each of the whole picture: 85 codes out of 64.

    Codes of what coarser maps left over would be a subtraction that a small generator has to learn first.
    """
    scales = (1, 2, 4, 8)
    return dataclasses.replace(shapes(), scales=scales, scale_residual=False, quantizer=VQ(codebook_size=64, dim=8))


def shapes_query() -> QueryVQConfig:
    """As `shapes`, with 32 query tokens out of 1000 in place of the grid."""
    return QueryVQConfig(
        image_size=32,
        stem=4,
        channels=64,
        channel_multipliers=(1,),
        blocks=1,
        attention="none",
        latent_dim=64,
        quantizer=FSQ(levels=(8, 5, 5, 5)),
        width=128,
        depth=2,
        heads=4,
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


def base_vit() -> ConvVQConfig:
    """As `base`, with transformers of 12 blocks over the patches: 256 px, stride 16, 16x16 codes out of 16384."""
    return dataclasses.replace(base(), backbone="vit")


def base_scales() -> ConvVQConfig:
    """The size of VAR's tokenizer: 256 px, stride 16, ten maps of 1 to 16 codes a side, 680 codes out of 4096."""
    return ConvVQConfig(
        channels=160,
        latent_dim=32,
        quantizer=VQ(codebook_size=4096, dim=32),
        scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    )


def base_query() -> QueryVQConfig:
    """The tokens of SEED in number and choice: 256 px, 32 of 8192 (add `--tokenizer.vision` for its semantics)."""
    return QueryVQConfig(quantizer=Cosine(codebook_size=8192, dim=32), width=768, depth=8, heads=12)


TOKENIZER_PRESETS: dict[str, Callable[[], TokenizerConfig]] = {
    preset.__name__: preset
    for preset in (debug, shapes, shapes_scales, shapes_query, emoji, small, base, base_vit, base_scales, base_query)
}

FAMILIES: dict[str, type[TokenizerConfig]] = {
    kind.family: kind for kind in (ConvVQConfig, OpenMagvit2Config, Emu3Config, QueryVQConfig, SeedConfig)
}


# --- config.json ----------------------------------------------------------------------------------------------------

ADDED = {
    *("patchwise", "scales", "scale_residual", "scale_convs", "scale_dropout"),
    *("quant_kernel", *PER_LEVEL, "attention_levels"),
    *("backbone", "vit", "learned", "contrastive_weight", "scale_fold"),
}
"""Keys that the first files of this format do not have. Where one is missing its default holds, and where its default
holds it is not written: so a new key changes neither the file nor the fingerprint of an older tokenizer."""


def config_to_dict(config: TokenizerConfig) -> dict[str, Any]:
    """What `config.json` holds; inverse of `config_from_dict`."""
    quantizer = {"kind": config.quantizer.kind, **_written(config.quantizer)}
    return {"format": FORMAT, "family": config.family, **_written(config), "quantizer": quantizer}


def _written(config: Any) -> dict[str, Any]:
    unset = {f.name for f in dataclasses.fields(config) if f.name in ADDED and getattr(config, f.name) == f.default}
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unset}


def config_from_dict(values: Any, where: str = "config.json") -> TokenizerConfig:
    """The configuration in a `config.json`; UserError, naming `where`, when it is not one of ours."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}: expected the configuration of a tokenizer; restore the file")
    values = dict(values)
    family, version = values.pop("family", None), values.pop("format", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{where} is of family {shown(family)}, not an image tokenizer of this version: known are "
            f"{', '.join(FAMILIES)}"
        )
    if type(version) is not int or version != FORMAT:
        raise UserError(f"{where} has format {shown(version)}, this version of unitok reads {FORMAT}: update unitok")
    quantizer = values.pop("quantizer", None)
    kind = quantizer.get("kind") if isinstance(quantizer, dict) else None
    if not isinstance(kind, str) or kind not in QUANTIZERS:
        raise UserError(f"{where} has quantizer kind {shown(kind)}: known are {', '.join(QUANTIZERS)}")
    settings = {name: value for name, value in quantizer.items() if name != "kind"}
    built: dict[str, Any] = {"quantizer": read_dataclass(QUANTIZERS[kind], settings, f"{where}: quantizer", ADDED)}
    return read_dataclass(FAMILIES[family], {**values, **built}, where, ADDED)
