"""The VQ tokenizer: convolutions or transformers over patches, one grid of codes (VQGAN, arXiv 2012.09841) or several
scales (VAR, 2404.02905).

image -> encoder -> conv -> quantizer -> codes -> vectors -> conv -> decoder -> image

B = images, H, W = pixels, h, w = grid, D = width of a code vector
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import ImageTokenizer, TokenizerOutput
from .config import ConvVQConfig
from .conv import Decoder, Encoder
from .layout import Layout
from .multi_scale import MultiScaleQuantizer
from .quantizers import make_quantizer
from .vit import Decoder as ViTDecoder
from .vit import Encoder as ViTEncoder


class ConvVQTokenizer(ImageTokenizer):
    """One or several grids of codes, any image size that the stride divides."""

    decoding = ("post_quant_conv.", "decoder.")

    def __init__(self, config: ConvVQConfig) -> None:
        super().__init__(config)
        vit = config.backbone == "vit"
        self.encoder = ViTEncoder(config.vit, config.latent_dim) if vit else Encoder(config)
        self.quantizer = MultiScaleQuantizer(config) if config.scales else make_quantizer(config.quantizer)
        kernel, width = config.quant_kernel, self.quantizer.width
        self.quant_conv = nn.Conv2d(config.latent_dim, width, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(width, config.latent_dim, kernel, padding=kernel // 2)
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

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self._encoded(self.latents, images))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        if isinstance(self.quantizer, MultiScaleQuantizer):
            vectors = self.quantizer.vectors(codes, layout)
        else:
            vectors = self.quantizer.vectors(codes, layout.grid)
        return self._decoded(lambda some: self.decoder(self.post_quant_conv(some)), vectors)
