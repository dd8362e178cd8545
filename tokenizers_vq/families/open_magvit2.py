"""The tokenizer of Open-MAGVIT2 (arXiv 2409.04410, code in SEED-Voken): convolutions, no attention.

image -> encoder -> signs -> codes -> vectors of -1 and 1 -> decoder -> image

Unlike VQGAN's network: no bias in the residual blocks, symmetric padding when the resolution halves, depth-to-space
when it doubles, equally many blocks in encoder and decoder, and norms in the decoder whose scale and shift come from
the code vectors of the whole picture.

B = images, C = channels, D = width of a code vector, H, W = pixels, h, w = grid
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..base import ImageTokenizer, TokenizerOutput
from ..config import OpenMagvit2Config
from ..layout import Layout
from ..networks.conv import ResidualBlock, fast_memory, group_norm
from ..quantizers.single_scale import make_quantizer


def _blocks(channels_in: int, channels_out: int, number: int) -> nn.Sequential:
    inputs = [channels_in] + [channels_out] * (number - 1)
    return nn.Sequential(*(ResidualBlock(width, channels_out, bias=False) for width in inputs))


class Upsample(nn.Module):
    """Doubles the resolution: 3x3 to four times the channels, then depth to space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv1(x), 2)


class Level(nn.Module):
    """The blocks of one resolution and the change of resolution."""

    def __init__(
        self, block: nn.Sequential, downsample: nn.Conv2d | None = None, upsample: Upsample | None = None
    ) -> None:
        super().__init__()
        self.block = block
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__()
        width = config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for index, factor in enumerate(config.channel_multipliers):
            block = _blocks(width, config.channels * factor, config.blocks)
            width = config.channels * factor
            lowest = index == len(config.channel_multipliers) - 1
            self.down.append(Level(block, None if lowest else nn.Conv2d(width, width, 3, stride=2, padding=1)))
        self.mid_block = _blocks(width, width, config.blocks)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.quantizer.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fast_memory(x))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift are linear in deviation and mean of the code vectors over the picture."""

    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_norm(channels).num_groups, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_width, channels)
        self.beta = nn.Linear(code_width, channels)

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """x is (B, C, any size), vectors (B, D, h, w) with at least two positions (the variance is the unbiased)."""
        rows = vectors.flatten(2)  # (B, D, h*w)
        scale = self.gamma((rows.var(dim=2) + 1e-6).sqrt())[:, :, None, None]
        return scale * self.norm(x) + self.beta(rows.mean(dim=2))[:, :, None, None]


class Decoder(nn.Module):
    """(B, D, h, w) -> (B, 3, H, W), not clamped."""

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__()
        code_width = config.quantizer.width
        widths = [config.channels * factor for factor in config.channel_multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(code_width, width, 3, padding=1)
        self.mid_block = _blocks(width, width, config.blocks)
        levels, adaptive = [], []
        for index, width_out in reversed(list(enumerate(widths))):
            adaptive.append(AdaptiveNorm(width, code_width))
            block = _blocks(width, width_out, config.blocks)
            levels.append(Level(block, upsample=Upsample(width_out) if index > 0 else None))
            width = width_out
        # As published, index 0 is the full resolution and runs last.
        self.up = nn.ModuleList(reversed(levels))
        self.adaptive = nn.ModuleList(reversed(adaptive))
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(fast_memory(vectors)))
        for level, norm in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = level(norm(x, vectors))
        return self.conv_out(F.silu(self.norm_out(x)))


class OpenMagvit2Tokenizer(ImageTokenizer):
    """One grid of codes, any image size of at least two codes that the stride divides."""

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantizer = make_quantizer(config.quantizer)
        self.decoder = Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def code_vectors(self) -> Tensor:
        return self.quantizer.table()

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), before quantization."""
        return self.encoder(images)

    def forward(self, images: Tensor, accumulate: bool = False) -> TokenizerOutput:
        self.check_images(images)
        quantized = self.quantizer(self.latents(images), accumulate)
        return TokenizerOutput(self.decoder(quantized.latents).float(), quantized.codes, quantized.losses)

    def _continuous(self, images: Tensor) -> Tensor:
        return self.latents(images)

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self._encoded(self.latents, images))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        return self._decoded(self.decoder, self.quantizer.vectors(codes, layout.grid))
