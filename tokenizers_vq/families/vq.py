"""The VQ tokenizer: convolutions or transformers over patches, one grid of codes (VQGAN, arXiv 2012.09841) or several
scales (VAR, 2404.02905).

image -> encoder -> conv -> quantizer -> codes -> vectors -> conv -> decoder -> image

B = images, H, W = pixels, h, w = grid, D = width of a code vector
"""

from __future__ import annotations

from torch import Tensor, nn

from ..base import ImageTokenizer, TokenizerOutput
from ..config import ConvVQConfig
from ..layout import Layout
from ..networks.conv import Decoder, Encoder
from ..networks.vit import Decoder as ViTDecoder
from ..networks.vit import Encoder as ViTEncoder
from ..quantizers.base import Quantizer
from ..quantizers.bitwise import BitScales
from ..quantizers.config import BSQ
from ..quantizers.multi_scale import MultiScaleQuantizer, ScaleQuantizer
from ..quantizers.single_scale import make_quantizer


class ConvVQTokenizer(ImageTokenizer):
    """One or several grids of codes, any image size that the stride divides."""

    decoding = ("post_quant_conv.", "decoder.")

    def __init__(self, config: ConvVQConfig) -> None:
        super().__init__(config)
        vit = config.backbone == "vit"
        self.encoder = ViTEncoder(config.vit, config.latent_dim) if vit else Encoder(config)
        self.quantizer = _quantizer(config)
        self.codebook_size = self.quantizer.codebook_size
        self.quant_conv, self.post_quant_conv = _around(config)
        self.decoder = ViTDecoder(config.vit, config.latent_dim) if vit else Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def code_vectors(self) -> Tensor:
        return self.quantizer.table()

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), before quantization."""
        return self.quant_conv(self.encoder(images))

    def forward(self, images: Tensor, accumulate: bool = False) -> TokenizerOutput:
        self.check_images(images)
        quantized = self.quantizer(self.latents(images), accumulate)
        reconstruction = self.decoder(self.post_quant_conv(quantized.latents)).float()
        return TokenizerOutput(reconstruction, quantized.codes, quantized.losses)

    def _continuous(self, images: Tensor) -> Tensor:
        return self.latents(images)

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self._encoded(self.latents, images))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        if isinstance(self.quantizer, ScaleQuantizer):
            vectors = self.quantizer.vectors(codes, layout)
        else:
            vectors = self.quantizer.vectors(codes, layout.grid)
        return self._paint(vectors)

    def _paint(self, latents: Tensor) -> Tensor:
        return self._decoded(lambda some: self.decoder(self.post_quant_conv(some)), latents)


def _quantizer(config: ConvVQConfig) -> Quantizer | ScaleQuantizer:
    if not config.scales:
        return make_quantizer(config.quantizer)
    return BitScales(config) if isinstance(config.quantizer, BSQ) else MultiScaleQuantizer(config)


def _around(config: ConvVQConfig) -> tuple[nn.Module, nn.Module]:
    """What stands before the quantizer and behind it."""
    kernel, width = config.quant_kernel, config.quantizer.width
    if not kernel:
        return nn.Identity(), nn.Identity()
    before = nn.Conv2d(config.latent_dim, width, kernel, padding=kernel // 2)
    return before, nn.Conv2d(width, config.latent_dim, kernel, padding=kernel // 2)
